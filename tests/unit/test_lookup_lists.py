"""Lists: pages are read on the loop, and nothing that may take long is."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading

from runlore import clock, pipeline
from runlore.commit import heads, keys, revisions
from runlore.consumers import record
from runlore.events import models
from runlore.lookup.http import lists
from runlore.testing import buses, stores


async def put(store, memory):
    body = {"project": "acme", "memory": memory}
    head = heads.Head(keys.memory_head("acme", memory), body, None)
    await heads.move(store, head, {"revision": 1, "manifest": "0" * 64}, fmt=revisions.HEAD_FORMAT)


@contextlib.asynccontextmanager
async def opened(tmp_path, store=None, *, bus=None, **more):
    if store is None:
        store = stores.MemoryStore()
        await put(store, "one")
    made = lists.Lists(tmp_path / "index.db", store, bus, **more)
    try:
        yield made, store
    finally:
        await made.close()


def names(index):
    return threading.current_thread() is threading.main_thread(), [
        row["memory"] for row in index.memories("acme")
    ]


async def test_a_page_is_read_on_the_loop_and_a_search_on_a_thread(tmp_path):
    async with opened(tmp_path, refresh_seconds=0) as (made, store):
        assert await made.page(names) == (True, ["one"])
        assert await made.ask(names) == (False, ["one"])
        await put(store, "two")
        assert await made.page(names) == (True, ["one", "two"])


async def test_an_index_that_a_stage_keeps_is_not_compared(tmp_path):
    async with opened(tmp_path, refresh_seconds=None) as (made, _):
        assert await made.page(names) == (True, [])


async def test_a_locked_file_is_waited_for_on_the_thread_not_on_the_loop(tmp_path):
    async with opened(tmp_path, refresh_seconds=0) as (made, _):
        await made.page(names)
        made._refresh = None
        with contextlib.closing(sqlite3.connect(made._path, isolation_level=None)) as other:
            # Out of WAL a writer keeps readers out: as the making of a file does.
            made._on_loop.close()
            made._on_loop = None
            made._compared.close()
            made._compared = None
            other.execute("PRAGMA journal_mode=DELETE")
            other.execute("BEGIN EXCLUSIVE")
            asked = asyncio.ensure_future(made.page(names))
            done, _ = await asyncio.wait([asked], timeout=0.05)
            assert not done
            other.execute("ROLLBACK")
            assert (await asked)[1] == ["one"]


async def test_comparing_with_a_large_store_takes_a_share_of_the_time_at_most(tmp_path):
    class World(clock.World):
        seconds = 0.0

        def monotonic(self):
            return self.seconds

    class Slow(stores.MemoryStore):
        lists = 0

        async def list(self, prefix):
            self.lists += 1
            World.seconds += 10
            async for row in super().list(prefix):
                yield row

    clock.install(World())
    try:
        slow = Slow()
        await put(slow, "one")
        async with opened(tmp_path, slow, refresh_seconds=1.0) as (made, _):
            await made.page(names)
            first = slow.lists
            World.seconds += 20
            await made.page(names)
            assert slow.lists == first
            World.seconds += 500
            await made.page(names)
            assert slow.lists == 2 * first
    finally:
        clock.install(clock.World())


async def test_a_slow_store_keeps_no_answer_waiting_once_there_is_one(tmp_path, monkeypatch):
    """The answer is of what the index holds; the comparison goes on, and the next answer has it."""
    may = threading.Event()
    may.set()

    class Slow(stores.MemoryStore):
        async def list(self, prefix):
            await asyncio.to_thread(may.wait)
            async for row in super().list(prefix):
                yield row

    monkeypatch.setattr(lists, "LATE_SECONDS_MAX", 0.01)
    monkeypatch.setattr(lists, "REFRESH_SHARE_MAX", 1.0)
    slow = Slow()
    await put(slow, "one")
    async with opened(tmp_path, slow, refresh_seconds=1e-6) as (made, _):
        assert await made.page(names) == (True, ["one"])
        await put(slow, "two")
        may.clear()
        assert await made.page(names) == (True, ["one"])
        assert await made.ask(names) == (False, ["one"])
        may.set()
        await made._under_way
        assert await made.page(names) == (True, ["one", "two"])


class World(clock.World):
    """Time that stands until it is told to go on."""

    seconds = 0.0

    def monotonic(self):
        return self.seconds


class Counting(stores.MemoryStore):
    """A store that counts its LISTs."""

    lists = 0

    async def list(self, prefix):
        self.lists += 1
        async for row in super().list(prefix):
            yield row


@contextlib.asynccontextmanager
async def heard(tmp_path):
    """Lists that go by the doorbells of a bus, with one memory taken in."""
    world, store, bus = World(), Counting(), buses.MemoryBus()
    clock.install(world)
    try:
        await put(store, "one")
        async with opened(tmp_path, store, bus=bus, refresh_seconds=1.0) as (made, _):
            assert await made.page(names) == (True, ["one"])
            yield made, store, bus, world
    finally:
        clock.install(clock.World())


async def ring(bus, memory):
    await record.ring(bus, [models.Changed(kind="memory", project="acme", memory=memory, counter=1)])


async def test_what_a_doorbell_names_is_taken_in_and_nothing_is_listed_for_it(tmp_path):
    async with heard(tmp_path) as (made, store, bus, world):
        listed = store.lists
        for memory in ("two", "three"):
            await put(store, memory)
            await ring(bus, memory)
        world.seconds += 1
        assert await made.page(names) == (True, ["one", "three", "two"])
        world.seconds += 1
        assert await made.ask(names) == (False, ["one", "three", "two"])
        assert store.lists == listed


async def test_a_doorbell_from_before_the_first_look_is_not_heard_again(tmp_path):
    bus = buses.MemoryBus()
    await ring(bus, "one")
    store = stores.MemoryStore()
    await put(store, "one")
    async with opened(tmp_path, store, bus=bus) as (made, _):
        await made.page(names)
        assert sum(made._heard.values()) == 1
        assert [one async for one in bus.read(pipeline.CHANGED.name, start=made._heard)] == []


async def test_a_lost_doorbell_costs_half_a_minute_at_most(tmp_path):
    async with heard(tmp_path) as (made, store, _, world):
        await put(store, "two")
        world.seconds += lists.WHOLE_SECONDS - 1
        assert await made.page(names) == (True, ["one"])
        world.seconds += 1
        assert await made.page(names) == (True, ["one", "two"])


async def test_a_file_that_is_deleted_is_filled_again_before_the_next_answer(tmp_path):
    async with heard(tmp_path) as (made, _, _bus, _world):
        for suffix in ("", "-wal", "-shm"):
            (tmp_path / f"index.db{suffix}").unlink(missing_ok=True)
        assert await made.page(names) == (True, ["one"])
