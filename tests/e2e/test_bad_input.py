"""Bad input becomes a dead letter with its reason, and what stands around it takes effect all the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from pathlib import Path

import homes
import pytest

import made
from runlore import producer

LONG_BYTES = 300 * 1024 * 1024
MEMORY_BYTES_MAX = 400 * 1024 * 1024


def claimed(number, line, **more):
    """An event whose record is claimed, not inline."""
    claim = {"sha256": hashlib.sha256(line).hexdigest(), "size": len(line)}
    event = made.event(number, **more)
    event["data"] = {**event["data"], "record": None, "record_claim": claim}
    return event


def peak_of(process):
    """The most memory that a process ever had, in bytes, once it ended; 0 where the system does not say.

    What `wait4` says of it counts the memory of the process that forked, too.
    """
    peak = 0
    while process.poll() is None:
        with contextlib.suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
            peak = max(peak, int(found[1]) * 1024 if found else 0)
        time.sleep(0.005)
    return peak


def changed(number, **attributes):
    return made.event(number) | attributes


def with_data(number, **data):
    event = made.event(number)
    return event | {"data": event["data"] | data}


LINE = json.dumps(made.payload(70), separators=(",", ":")).encode()
BAD = {
    "unknown_type": [changed(50, type="io.runlore.run.started.v1"), changed(51, type="com.example.order")],
    "unknown_version": [changed(52, type="io.runlore.run.completed.v2"), changed(53, specversion="0.3")],
    "bad_json": [b"{", b'{"specversion": "1.0",', b"\xff\xfe", b"[" * 5000],
    "invalid_event": [b"[]", b'"text"', b"{}", with_data(54, run_id=7), with_data(55, record=None)],
    "invalid_id": [
        with_data(56, run_id="../../etc/passwd"),
        with_data(57, session_id="a/../../b"),
        with_data(58, project="../acme"),
        with_data(59, memory="a/b"),
        with_data(60, conversation_id="a\nb"),
    ],
    "invalid_record": [with_data(61, record="[]"), with_data(62, record='{"input": 7}')],
    "event_too_large": [with_data(63, agents=["x" * 2_000_000])],
    "claim_missing": [claimed(64, LINE)],
    "run_conflict": [made.event(1, record=made.payload(1, text="quite another request"))],
}


def raw(one):
    return one if isinstance(one, bytes) else json.dumps(one).encode()


def test_each_bad_input_is_a_dead_letter_with_its_reason_and_the_others_take_effect(home):
    home.emit(made.lines([made.event(1)]))
    home.up_once()
    reasons = [reason for reason, inputs in BAD.items() for _ in inputs]
    inputs = [one for inputs in BAD.values() for one in inputs]
    good = [made.event(100 + number) for number in range(len(inputs))]
    lines = [raw(one) for pair in zip(inputs, good, strict=True) for one in pair]
    told = home.emit(b"\n".join(lines))
    assert told["sent"] == len(lines)
    done = home.up_once()
    assert done["recorded"] == len(good)
    listed = home.json("dead", "list")
    assert sorted(one["reason"] for one in listed["dead"]) == sorted(reasons)
    assert listed["total"] == len(reasons) and home.json("status")["dead"]["open"] == len(reasons)
    # Nothing that one of them named has left a trace outside of the store.
    assert {path.name for path in home.root.parent.iterdir()} <= {"home"}
    home.verified()


def test_a_claim_with_other_bytes_than_it_says_is_a_dead_letter(home):
    event = claimed(70, LINE)
    wrong = LINE.replace(b"task 70", b"task 71")

    async def put(opened):
        from runlore.commit import keys

        await opened.store.put(keys.claim("acme", event["data"]["record_claim"]["sha256"]), wrong)

    home.opened(put)
    home.emit(made.lines([event]))
    assert home.up_once()["dead"] == 1
    assert [one["reason"] for one in home.json("dead")["dead"]] == ["claim_mismatch"]


def test_a_letter_can_be_listed_shown_written_redriven_and_dropped(home, tmp_path):
    event = claimed(70, LINE)
    home.emit(made.lines([event]) + b"{\n")
    home.up_once()
    (claim,) = home.json("dead", "list", "--reason", "claim_missing")["dead"]
    (json_letter,) = home.json("dead", "list", "--reason", "bad_json")["dead"]

    shown = home.json("dead", "show", claim["id"][:6], "--out", tmp_path / "event.json")
    assert shown["id"] == claim["id"] and "run-70" in shown["event_preview"]
    assert json.loads((tmp_path / "event.json").read_bytes()) == event["data"]
    assert home.json("explain", event["id"])["runs"][0]["state"] == "dead"

    # Still missing: it comes back as another letter. A dry run does nothing.
    assert len(home.json("dead", "redrive", "--reason", "claim_missing", "--dry-run")["dead"]) == 1
    assert home.json("status")["record"]["lag"] == 0
    home.json("dead", "redrive", claim["id"], "--note", "let us see")
    assert home.up_once()["dead"] == 1
    assert home.json("dead")["total"] == 2

    home.opened(lambda opened: producer.put_claim(opened.store, "acme", LINE))
    home.json("dead", "redrive", "--reason", "claim_missing", "--note", "uploaded")
    assert home.up_once()["recorded"] == 1
    told = home.json("explain", event["id"])["runs"]
    assert {one["state"] for one in told} == {"consolidated", "dead"}

    home.json("dead", "drop", json_letter["id"], "--note", "test data")
    assert home.json("dead")["total"] == 0
    resolved = {one["reason"]: one["resolution"] for one in home.json("dead", "list", "--all")["dead"]}
    assert resolved == {"claim_missing": "redriven", "bad_json": "dropped"}
    home.json("dead", "show", "0123456789abcdef", code=3)
    home.json("dead", "redrive", code=2)
    home.verified()


def test_a_line_of_300_mb_is_buried_in_bounded_memory_and_stops_nothing(home, tmp_path):
    process = home.start("emit", "-", "--json", stdin=-1)
    process.stdin.write(made.lines([made.event(1)]))
    part = b"x" * (1024 * 1024)
    process.stdin.write(b'{"specversion": "1.0", "data": "')
    for _ in range(LONG_BYTES // len(part)):
        process.stdin.write(part)
    process.stdin.write(b'"}\n' + made.lines([made.event(2)]))
    process.stdin.close()
    peak = peak_of(process)
    out = process.stdout.read()
    process.stdout.close(), process.stderr.close()
    told = json.loads(out)
    assert process.returncode == 0 and told["sent"] == 3
    assert [(one["line"], one["kind"]) for one in told["problems"]] == [(2, "event_too_large")]
    assert peak < MEMORY_BYTES_MAX
    assert home.up_once()["recorded"] == 2
    (letter,) = home.json("dead")["dead"]
    assert letter["reason"] == "event_too_large" and letter["bytes"] > LONG_BYTES
    # It can never be redriven as it is, and that stops no other letter.
    home.json("dead", "redrive", letter["id"], "--note", "x", code=2)
    home.json("dead", "show", letter["id"], "--out", tmp_path / "long")
    assert (tmp_path / "long").stat().st_size == letter["bytes"]
    home.verified()


def test_one_letter_that_is_too_large_does_not_stop_the_redrive_of_the_others(home):
    home.emit(raw(with_data(63, agents=["x" * 2_000_000])) + b"\n" + made.lines([claimed(70, LINE)]))
    home.up_once()
    home.opened(lambda opened: producer.put_claim(opened.store, "acme", LINE))
    told = home.json("dead", "redrive", "--all", "--note", "x")
    assert [one["reason"] for one in told["dead"]] == ["claim_missing"]
    assert [one["reason"] for one in told["left"]] == ["event_too_large"]
    assert home.up_once()["recorded"] == 1
    assert [one["reason"] for one in home.json("dead")["dead"]] == ["event_too_large"]


@pytest.mark.parametrize("attempts", [(1, 2), (2, 1)])
def test_the_higher_attempt_stands_whatever_comes_first(home, attempts):
    events = {
        attempt: made.event(7, attempt=attempt, record=made.payload(7, text=f"asked {attempt} times"))
        for attempt in attempts
    }
    for attempt in attempts:
        home.emit(made.lines([events[attempt]]))
        home.up_once()
    told = {one["attempt"]: one["state"] for one in home.json("explain", "run-7")["runs"]}
    assert told == {1: "superseded", 2: "consolidated"}
    seeded = home.json("seed", "conv-0", *homes.MEANT)
    texts = [home.json("search", words)["results"] for words in ("asked 2 times", "asked 1 times")]
    assert len(texts[0]) == 1 and texts[1] == [] and seeded["notes"] > 0
    home.verified()
