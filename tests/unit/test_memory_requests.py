"""What memory asks of the store: a mark says where its rollouts' heads stand, so that records are not listed again."""

from __future__ import annotations

import made
from runlore.commit import keys, marks, revisions
from runlore.consumers import consolidate, record, summarize
from runlore.producer import Producer
from runlore.testing.buses import MemoryBus
from runlore.testing.stores import MemoryStore


class Listing(MemoryStore):
    """Notes which prefixes are listed."""

    def __init__(self):
        super().__init__()
        self.listed = []

    def list(self, prefix):
        self.listed.append(prefix)
        return super().list(prefix)


async def pipeline(count):
    """A store with so many runs of one rollout recorded, and the stage that consolidates them."""
    store, bus = Listing(), MemoryBus()
    runs = [made.data(number, rollout="conv-1") for number in range(count)]
    await Producer(store, bus).publish(runs, source="/test")
    consumer = await bus.consumer(group="record", topics=["runs"])
    stage = record.RecordStage(store, bus)
    for message in await consumer.poll(records_max=100, timeout_seconds=0):
        await stage.process([message])
    return store, consolidate.ConsolidateStage(store, bus)


async def covered(store):
    reader = revisions.Reader(store)
    revision = await reader.current(await reader.head("acme", "support"), "acme", "support")
    return {run for body in [revision.body] for covers in body["covers"] for run, _ in covers["runs"]}


async def test_consolidation_lists_marks_and_no_records():
    store, stage = await pipeline(3)
    await stage.work("acme", "support")
    assert await covered(store) == {"run-0", "run-1", "run-2"}
    # Once in a memory's life, where it has no head: whether it had one.
    assert {prefix.split("/")[1] for prefix in store.listed} == {keys.MARKS, keys.MANIFESTS}
    store.listed.clear()
    await stage.work("acme", "support")
    assert {prefix.split("/")[1] for prefix in store.listed} == {keys.MARKS}


async def test_a_head_that_stands_before_its_mark_is_brought_up_from_a_list():
    """As after a restore from a backup: the records and the mark are newer than the rollout's head."""
    store, stage = await pipeline(1)
    key = keys.rollout_head("acme", "support", "conv-1")
    early = store.body(key)
    store, stage = await pipeline(3)
    await store.put(key, early)
    await stage.work("acme", "support")
    assert await covered(store) == {"run-0", "run-1", "run-2"}


async def test_a_mark_without_counters_has_its_rollouts_brought_up_from_a_list():
    store, stage = await pipeline(2)
    await store.delete(keys.rollout_head("acme", "support", "conv-1"))
    for mark in await marks.read_all(store, "acme", "support", marks_max=10):
        await store.delete(mark.key)
    await marks.put(store, "acme", "support", ["conv-1"])
    await stage.work("acme", "support")
    assert await covered(store) == {"run-0", "run-1"}


def test_one_mark_without_a_counter_spoils_the_counters_of_the_others():
    one = marks.Mark("k1", ("a", "b"), "", counters={"a": 3, "b": 1})
    two = marks.Mark("k2", ("a",), "", counters={"a": 5})
    three = marks.Mark("k3", ("b",), "")
    assert marks.covered_from([one, two]) == {"a": 5, "b": 1}
    assert marks.covered_from([one, two, three]) == {"a": 5}


async def test_a_redelivered_run_has_a_mark_that_says_where_the_head_stands():
    store, bus = Listing(), MemoryBus()
    await Producer(store, bus).publish([made.data(0, rollout="conv-1")], source="/test")
    (message,) = await (await bus.consumer(group="record", topics=["runs"])).poll(
        records_max=1, timeout_seconds=0
    )
    for _ in range(2):
        await record.RecordStage(store, bus).process([message])
    head = await summarize.read(store, "acme", "support", "conv-1")
    first, again = await marks.read_all(store, "acme", "support", marks_max=10)
    assert first.counters == again.counters == {"conv-1": head.counter}
