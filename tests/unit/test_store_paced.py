"""A paced store: no more requests a second than it was told, and everything else as the store below it."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest

from runlore import clock
from runlore.store import paced
from runlore.testing import stores


class Ticking(clock.World):
    """Time that passes by sleeping alone."""

    def __init__(self):
        self.seconds = 0.0

    def monotonic(self):
        return self.seconds

    def now(self):
        return dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=self.seconds)

    async def sleep(self, seconds):
        self.seconds += seconds


@pytest.fixture
def world():
    made = Ticking()
    clock.install(made)
    yield made
    clock.install(clock.World())


async def test_no_more_requests_a_second_are_made_than_it_was_told(world):
    clock.install(world)  # Of this task.
    store = paced.Paced(stores.MemoryStore(), per_second=10)
    for number in range(50):
        await store.put(f"a/b/{number:02}", b"x")
    assert world.seconds == pytest.approx(4.9)
    assert len(await store.get_many([f"a/b/{number:02}" for number in range(50)])) == 50
    assert world.seconds == pytest.approx(5.0)
    # Each of those counted.
    await store.delete_many([f"a/b/{number:02}" for number in range(49)])
    assert world.seconds == pytest.approx(10.0)
    assert [row.key async for row in store.list("a/")] == ["a/b/49"]
    assert world.seconds == pytest.approx(14.9)


async def test_who_asks_at_the_same_time_waits_in_turn(world):
    clock.install(world)
    store = paced.Paced(stores.MemoryStore(), per_second=2)
    etag = await store.put_if_absent("a/b/c", b"1")
    await asyncio.gather(*(store.get("a/b/c") for _ in range(9)))
    assert world.seconds >= 4.5
    await store.compare_and_set("a/b/c", b"2", etag)
    assert (await store.get_range("a/b/c", 0, 1), await store.get_tail("a/b/c", 1)) == (b"2", b"2")
    assert await store.children("a/") == ["b"]
    await store.compare_and_delete("a/b/c", (await store.get("a/b/c")).etag)
    await store.delete("a/b/c")
    await store.settle()
    assert await store.get("a/b/c") is None and [row async for row in store.list("a/")] == []
    await store.close()
