"""Which memories a worker works, and when it looks for them.

Goal: no place stands empty while marks are listed, no two workers go for the same memories, looking costs no more with
many projects. Method: production code over the fake store, with a LIST, a PUT or a DELETE that is counted or held up.
"""

from __future__ import annotations

import asyncio

import made
from runlore.commit import keys, marks
from runlore.consumers import record
from runlore.events import envelope, models
from runlore.settings import Settings
from runlore.testing import buses, stores
from runlore.worker import concurrency, loop, memories, progress, retry

ONE, OTHER = ("acme", "support"), ("acme", "sales")


def worker(store):
    return loop.Worker(
        store, buses.MemoryBus(), None, Settings(bus="sqlite"), stages=("record", "consolidate")
    )


async def test_what_a_bell_names_is_worked_while_the_marks_are_being_listed():
    listing, worked, stopping = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def marked():
        listing.set()
        await asyncio.Event().wait()

    async def work(project, memory):
        worked.set()
        return False

    retries = retry.Retries("test", progress.StageStatus(), seconds_max=1.0, stopping=stopping)
    found = memories.Memories(retries, marked=marked, work=work, stopping=stopping, interval_seconds=5.0)
    running = asyncio.create_task(found.run())
    await listing.wait()
    found.ring([ONE])
    async with asyncio.timeout(5):
        await worked.wait()
        stopping.set()
        await running


async def test_a_look_leaves_a_new_mark_to_whoever_heard_its_bell_until_it_stands_at_the_next_look_too():
    store = stores.MemoryStore()
    one = worker(store)
    await marks.put(store, *ONE, ["r1"])
    assert await one._left_standing() == [ONE]  # Whoever begins knows of no bell.
    await marks.put(store, *OTHER, ["r2"])
    assert await one._left_standing() == [ONE]
    assert sorted(await one._left_standing()) == sorted([ONE, OTHER])


async def test_a_look_leaves_a_memory_alone_whose_marks_come_and_go():
    store = stores.MemoryStore()
    one = worker(store)
    await one._left_standing()
    for number in range(3):
        mark = await marks.put(store, *ONE, [f"r{number}"])
        assert await one._left_standing() == []
        await store.delete(mark)


async def test_workers_that_look_at_the_same_marks_begin_with_different_memories():
    store = stores.MemoryStore()
    for number in range(40):
        await marks.put(store, "acme", f"m{number}", ["r"])
    orders = [await worker(store)._left_standing() for _ in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == sorted(orders[0]) for order in orders)


async def test_marks_of_many_projects_are_listed_less_often():
    store = stores.MemoryStore()
    one = worker(store)
    assert one._look_seconds() == 0.0
    for number in range(300):
        await store.put(f"p{number}/records/aa/x", b"")
    await one._left_standing()
    assert 25 < one._look_seconds() < 35


class Meeting(stores.MemoryStore):
    """A store that lets no mark in until `wanted` of them are on their way; and counts what deletes."""

    def __init__(self, wanted=0):
        super().__init__()
        self._all_there = asyncio.Barrier(wanted) if wanted else None
        self.deletes = []

    async def put_if_absent(self, key, body):
        if self._all_there is not None and key.split("/")[1] == keys.MARKS:
            await self._all_there.wait()
        return await super().put_if_absent(key, body)

    async def delete_many(self, keys):
        self.deletes.append(len(keys))
        await super().delete_many(keys)


def message(number, memory):
    event = envelope.of_run(made.data(number, memory=memory), source="/test")
    checked = models.run_completed(event.data)
    return record.message_of(event, f"{checked.project}/{checked.rollout.alias}", "runs")


async def test_a_batch_of_several_memories_puts_their_marks_at_the_same_time():
    store, bus = Meeting(wanted=4), buses.MemoryBus(partitions=1)
    await bus.produce([message(number, f"m{number}") for number in range(4)])
    consumer = await bus.consumer(group="record", topics=["runs"])
    found = await consumer.poll(records_max=10, timeout_seconds=0.0)
    async with asyncio.timeout(5):
        await record.RecordStage(store, bus, runtime=concurrency.runtime(4)).process(found)
    assert len(await marks.marked(store)) == 4


async def test_the_marks_of_a_pass_are_deleted_in_one_request():
    store = Meeting()
    for number in range(5):
        await marks.put(store, *ONE, [f"r{number}"])
    await marks.delete(store, await marks.read_all(store, *ONE, marks_max=9))
    await marks.delete(store, [])
    assert store.deletes == [5] and not await marks.marked(store)
