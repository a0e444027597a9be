"""The producer: every line ends on the bus or in a dead letter; the same run is the same event."""

from __future__ import annotations

import io
import json
import random

import pytest

import made
from runlore import errors, producer
from runlore.commit import keys
from runlore.consumers import dead, record
from runlore.events import envelope, models
from runlore.testing import buses, stores


async def emitted(raw):
    store, bus = stores.MemoryStore(), buses.MemoryBus()
    sent = []
    async for batch in producer.Producer(store, bus).emit(io.BytesIO(raw), source="/test"):
        sent += batch
    messages = [message async for message in bus.read("runs")]
    return sent, messages, await dead.read_all(bus), store


@pytest.mark.parametrize("number", range(40))
async def test_every_line_however_broken_ends_on_the_bus_as_it_came(number):
    dice = random.Random(number)
    good = json.dumps(made.event(1)).encode()
    lines = []
    for _ in range(6):
        line = bytearray(good)
        for _ in range(dice.randrange(4)):
            at = dice.randrange(len(line))
            line[at : at + dice.randrange(3)] = dice.randbytes(dice.randrange(3))
        lines.append(bytes(line).replace(b"\n", b"").replace(b"\r", b""))
    sent, messages, letters, _ = await emitted(b"\n".join(lines) + b"\n")
    assert len(sent) == 6 == len(messages) + len(letters)
    # What the producer said of a line is what the stage says of it.
    said = sorted(one.problem.kind if one.problem else "" for one in sent)
    found = []
    for message in messages:
        try:
            record.parse(message)
            found.append("")
        except errors.Poison as exc:
            found.append(exc.kind)
    assert sorted(found) == said


async def test_the_same_run_is_the_same_event_and_another_attempt_another():
    data = made.data(1)
    events = [
        envelope.of_run(one, source="/x") for one in (data, dict(data), data | {"attempt": 2}, made.data(2))
    ]
    assert events[0].id == events[1].id and len({event.id for event in events}) == 3


@pytest.mark.parametrize("size", [models.RECORD_INLINE_BYTES_MAX, models.RECORD_INLINE_BYTES_MAX + 1])
async def test_a_record_above_the_limit_goes_as_a_claim_on_its_own_bytes(size):
    payload = made.payload(1, text="")
    line = json.dumps(payload, separators=(",", ":"))
    payload["final_output"] += "x" * (size - len(line))
    store, bus = stores.MemoryStore(), buses.MemoryBus()
    await producer.Producer(store, bus).publish([made.data(1, record=payload)], source="/test")
    (message,) = [one async for one in bus.read("runs")]
    body = json.loads(message.value)
    if size == models.RECORD_INLINE_BYTES_MAX:
        assert len(body["record"]) == size and "record_claim" not in body
        return
    claim = models.Claim(**body["record_claim"])
    assert "record" not in body and claim.size == size
    raw = store.body(keys.claim("acme", claim.sha256))
    assert json.loads(record.open_claim(claim, raw)) == payload
    done = await record.RecordStage(store, bus).process([message])
    assert [outcome.state for outcome in done.outcomes] == ["recorded"]


async def test_a_line_and_its_end_may_be_missing_and_blank_lines_are_none():
    sent, messages, letters, _ = await emitted(b"\n  \n" + json.dumps(made.event(1)).encode())
    assert [(one.line, one.problem) for one in sent] == [(3, None)]
    assert len(messages) == 1 and not letters


async def test_a_line_beyond_the_limit_is_buried_whole_and_the_next_is_read(monkeypatch):
    monkeypatch.setattr(producer, "LINE_BYTES_MAX", 5000)
    monkeypatch.setattr(producer, "READ_BYTES", 700)
    good = made.lines([made.event(1)])
    for length in (5001, 5002, 5700, 5701, 20_000):
        long = b"x" * length
        sent, messages, letters, store = await emitted(long + b"\n" + good + long)
        assert [one.problem and one.problem.kind for one in sent] == [
            "event_too_large",
            None,
            "event_too_large",
        ]
        assert len(messages) == 1
        assert {await dead.value_of(store, letter) for letter in letters} == {long + b"\n", long}
    sent, messages, letters, _ = await emitted(b"x" * 5000 + b"\n" + good)
    assert len(messages) == 2 and not letters
