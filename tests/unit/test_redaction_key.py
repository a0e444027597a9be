"""Redaction keys, and redaction on both sides of the bus: one key a project, and one run whatever the rules."""

from __future__ import annotations

import asyncio
import json

import pytest

import made
from runlore import errors, producer
from runlore.commit import keys, redaction, rollouts
from runlore.consumers import record
from runlore.memory import redact
from runlore.testing import buses, stores

TOKEN = "ghp_" + "aB3dE5" * 6


class Denied(stores.MemoryStore):
    """A store whose rights do not reach the redaction keys."""

    async def get(self, key):
        if key.startswith(keys.redactions()):
            raise errors.Blocked("denied")
        return await super().get(key)


class Lost(stores.MemoryStore):
    """A store whose first put of a key lands, and whose reply is lost."""

    async def put_if_absent(self, key, body):
        await super().put_if_absent(key, body)
        if not hasattr(self, "lost"):
            self.lost = True
            raise errors.OutcomeUnknown("the reply is lost")


def run(number=1, text=f"pushed with {TOKEN}", **more):
    return made.data(number, record=made.payload(number, text=text), **more)


async def stored(store, data):
    names = [row.key async for row in store.list(f"{data['project']}/records/")]
    return [rollouts.decode(name, (await store.get(name)).body) for name in sorted(names)]


async def published(store, *datas, hashing=True):
    bus = buses.MemoryBus()
    made_of = producer.Producer(store, bus, hashing=redaction.Keys(store) if hashing else None)
    await made_of.publish(datas, source="/test")
    return bus, [one async for one in bus.read("runs")]


async def test_whoever_asks_first_draws_the_key_and_everybody_has_that_one():
    store = stores.MemoryStore()
    found = await asyncio.gather(*(redaction.Keys(store).of("acme") for _ in range(8)))
    assert len(set(found)) == 1 and found[0] != await redaction.Keys(store).of("other")


async def test_a_lost_reply_draws_no_second_key():
    store = Lost()
    assert await redaction.read(store, "acme") == await redaction.read(store, "acme")


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"format":"runlore.redaction/1","key":"00"}', b"[1]"])
async def test_a_broken_key_is_told_and_not_shown(raw):
    store = stores.MemoryStore()
    await store.put(keys.redaction("acme"), raw)
    with pytest.raises(errors.Corrupt) as caught:
        await redaction.read(store, "acme")
    assert "00" not in str(caught.value)


async def test_no_secret_reaches_the_bus_and_the_record_holds_its_hash():
    store = stores.MemoryStore()
    bus, messages = await published(store, run())
    assert all(TOKEN.encode() not in message.value for message in messages)
    stage = record.RecordStage(store, bus, hashing=redaction.Keys(store))
    assert (await stage.process(messages)).count(record.RECORDED) == 1
    (kept,) = await stored(store, run())
    assert redact.placeholder("github-token", TOKEN, await redaction.read(store, "acme")) in kept.line
    assert kept.meta["redacted"] == {"github-token": 1} and kept.meta["rules"] == redact.rules()


@pytest.mark.parametrize("first", [True, False], ids=["hidden first", "plain first"])
async def test_a_run_is_the_same_whether_its_producer_hid_anything_or_not(first):
    store = stores.MemoryStore()
    hidden_bus, hidden = await published(store, run(), hashing=True)
    _, plain = await published(store, run(), hashing=False)
    assert (
        hidden[0].value != plain[0].value
        and dict(hidden[0].headers)["ce_id"] == dict(plain[0].headers)["ce_id"]
    )
    stage = record.RecordStage(store, hidden_bus, hashing=redaction.Keys(store))
    order = (hidden, plain) if first else (plain, hidden)
    states = [(await stage.process(messages)).outcomes[0].state for messages in order]
    assert states == [record.RECORDED, record.ALREADY]


async def test_a_record_kept_by_other_rules_is_the_same_run():
    store = stores.MemoryStore()
    bus, messages = await published(store, run(), hashing=False)
    await record.RecordStage(store, bus).process(
        messages
    )  # Without a key: the placeholder says the kind alone.
    head = [row.key async for row in store.list("acme/rollouts/")]
    await store.delete(head[0])  # As after a crash between the record and its head.
    done = await record.RecordStage(store, bus, hashing=redaction.Keys(store)).process(messages)
    assert [one.state for one in done.outcomes] == [record.RECORDED]
    (kept,) = await stored(store, run())
    assert "[redacted:github-token]" in kept.line


async def test_a_producer_that_may_not_read_the_key_leaves_redaction_to_record():
    store = Denied()
    _, (message,) = await published(store, run())
    assert TOKEN.encode() in message.value and b"received" not in message.value


async def test_a_run_without_a_secret_is_published_byte_for_byte():
    store = stores.MemoryStore()
    _, (with_key,) = await published(store, run(text="nothing here"))
    _, (without,) = await published(store, run(text="nothing here"), hashing=False)
    assert with_key.value == without.value


async def test_a_large_record_is_claimed_after_its_secrets_are_hidden():
    store = stores.MemoryStore()
    _, (message,) = await published(store, run(text=f"{TOKEN} " + "x" * 300_000))
    claim = json.loads(message.value)["record_claim"]
    body = (await store.get(keys.claim("acme", claim["sha256"]))).body
    assert TOKEN.encode() not in body and len(json.loads(message.value)["received"]) == 32
