"""A store that refuses every few writes (503) slows recording down; it must not make it begin anew each time.

A batch holds up to a poll's runs of one rollout. Were it given up for one refused write, its next try would need as
many writes again, and from some rate of refusals on none would ever come to its end.
"""

from __future__ import annotations

import asyncio
import random

import pytest

import made
from runlore import clock, errors
from runlore.consumers import consolidate, record
from runlore.producer import Producer
from runlore.testing.buses import MemoryBus
from runlore.testing.stores import MemoryStore

RUNS = 100


class Refusing(MemoryStore):
    """Refuses a share of its conditional writes and counts them. (`put` a store sends again by itself.)"""

    def __init__(self, share):
        super().__init__()
        self.share, self.dice = share, random.Random(7)
        self.asked = 0

    def _may_refuse(self):
        self.asked += 1
        if self.dice.random() < self.share:
            raise errors.StoreUnavailable("503 SlowDown")

    async def put_if_absent(self, key, body):
        self._may_refuse()
        return await super().compare_and_set(key, body, None)

    async def compare_and_set(self, key, body, etag, *, guard=None):
        self._may_refuse()
        return await super().compare_and_set(key, body, etag, guard=guard)


class Hasty(clock.World):
    """Nobody waits."""

    async def sleep(self, seconds):
        await asyncio.sleep(0)


async def recorded(store):
    """The runs of one rollout, taken in as one batch."""
    clock.install(Hasty())
    bus = MemoryBus()
    runs = [made.data(number, rollout="conv-1") for number in range(RUNS)]
    calm = MemoryStore()
    await Producer(calm, bus).publish(runs, source="/test")
    consumer = await bus.consumer(group="record", topics=["runs"])
    messages = await consumer.poll(records_max=RUNS, timeout_seconds=0)
    assert len(messages) == RUNS
    return await record.RecordStage(store, bus).process(messages), bus


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
async def test_a_batch_costs_a_refused_write_and_no_more(share):
    store = Refusing(share)
    processed, bus = await recorded(store)
    assert processed.count(record.RECORDED) == RUNS
    writes = RUNS + 2  # The head and the mark.
    assert store.asked <= writes / (1 - share) + writes * 0.2
    assert (await consolidate.ConsolidateStage(store, bus).work("acme", "support")).revision == 1


async def test_a_store_that_refuses_everything_is_told_and_not_asked_for_ever():
    store = Refusing(1.0)
    with pytest.raises(errors.StoreUnavailable):
        await recorded(store)
    assert store.asked < 20
