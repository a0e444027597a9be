"""What workers say of themselves: told on a change, cheap at rest, gone with them, forgotten when old."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest

from runlore import clock, errors
from runlore.commit import keys
from runlore.testing.stores import MemoryStore
from runlore.upkeep import workers


class Fast(clock.World):
    """A clock that a sleep moves."""

    def __init__(self):
        self.seconds = 0.0

    def now(self):
        return dt.datetime(2026, 1, 5, tzinfo=dt.UTC) + dt.timedelta(seconds=self.seconds)

    def monotonic(self):
        return self.seconds

    async def sleep(self, seconds):
        self.seconds += seconds
        await asyncio.sleep(0)


@pytest.fixture
def world():
    made = Fast()
    clock.install(made)
    yield made
    clock.install(clock.World())


class Counting(MemoryStore):
    puts = 0
    down = False

    async def put(self, key, body):
        if self.down:
            raise errors.StoreUnavailable("503")
        self.puts += 1
        return await super().put(key, body)


def stage(state="running", **more):
    return {"state": state, "cause": None, "since": None, "tries": 0, "done": 0, "memories": {}, **more}


async def until(world, seconds):
    end = world.seconds + seconds
    while world.seconds < end:  # noqa: ASYNC110 - the worker's own sleeps move the clock.
        await asyncio.sleep(0)


async def end(task):
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_worker_at_rest_costs_one_put_in_five_minutes_and_takes_its_object_with_it(world):
    store, stages = Counting(), {"record": stage()}
    task = asyncio.create_task(workers.Teller(store, lambda: stages).run())
    await until(world, 3600)
    assert 12 <= store.puts <= 13
    stages["record"]["done"] = 5_000_000  # Counts are not worth a PUT.
    stages["record"]["tries"] = 9
    await until(world, 100)
    assert store.puts <= 13
    await end(task)
    assert store.snapshot() == {}


async def test_a_change_is_told_within_seconds_and_a_stage_that_flaps_does_not_flood_the_store(world):
    store, stages = Counting(), {"record": stage()}
    task = asyncio.create_task(workers.Teller(store, lambda: stages).run())
    await until(world, 30)
    for number in range(120):
        stages["record"] = stage("blocked", cause=f"denied {number}", since="2026-01-05")
        await until(world, 1)
    await until(world, workers.CHANGED_SECONDS + 2)
    (seen,) = await workers.read_all(store)
    assert seen.stages["record"]["cause"] == "denied 119"
    assert store.puts <= 2 + 130 / workers.CHANGED_SECONDS
    await end(task)


async def test_a_store_that_fails_stops_nothing_and_is_told_later(world):
    store, stages = Counting(), {"record": stage()}
    store.down = True
    task = asyncio.create_task(workers.Teller(store, lambda: stages).run())
    await until(world, 60)
    store.down = False
    await until(world, 60)
    assert len(await workers.read_all(store)) == 1 and not task.done()
    await end(task)


async def test_a_dead_worker_is_silent_then_forgotten_and_its_pods_name_comes_again(world):
    store = Counting()
    task = asyncio.create_task(workers.Teller(store, lambda: {"record": stage()}, instance="Pod_0").run())
    await until(world, 10)
    kept = store.copy()  # It was killed: nobody took its object away.
    await end(task)
    (seen,) = await workers.read_all(kept)
    assert not seen.is_silent
    world.seconds += workers.SILENT_SECONDS + 10
    assert seen.is_silent and workers.together([seen]) == {}
    again = asyncio.create_task(workers.Teller(kept, lambda: {}, instance="Pod_0").run())
    await until(world, 10)
    assert [one.is_silent for one in await workers.read_all(kept)] == [False]
    other = store.copy()
    other._objects, other._order = dict(kept._objects), list(kept._order)
    await end(again)
    world.seconds += workers.FORGOTTEN.total_seconds()
    new = asyncio.create_task(workers.Teller(other, lambda: {}).run())
    await until(world, 10)
    assert len(await workers.read_all(other)) == 1
    await end(new)


async def test_stages_together_are_as_bad_as_the_worst_of_them(world):
    store = MemoryStore()
    told = [
        {"record": stage(), "index": stage()},
        {"record": stage("waiting", cause="503", since="1", projects={"b": "503"})},
        {"record": stage("blocked", cause="denied", since="2"), "consolidate": stage(memories={"a/b": "x"})},
    ]
    tasks = [asyncio.create_task(workers.Teller(store, lambda one=one: one).run()) for one in told]
    await until(world, 10)
    found = workers.together(await workers.read_all(store))
    assert workers.essence(told[1]) != workers.essence({"record": told[1]["record"] | {"projects": {}}})
    assert found["record"] | {"memories": {}} == {
        "state": "blocked",
        "cause": "denied",
        "since": "2",
        "retry_seconds": None,
        "workers": 3,
        "ill": 2,
        "memories": {},
        "projects": {"b": "503"},
    }
    assert found["index"]["state"] == "running" and found["consolidate"]["memories"] == {"a/b": "x"}
    for task in tasks:
        await end(task)


async def test_what_is_no_status_is_left_out(world):
    store = MemoryStore()
    for number, body in enumerate((b"", b"[]", b"{}", b'{"format":"runlore.worker/1","worker":"other"}')):
        await store.put(keys.worker(f"w{number}"), body)
    assert await workers.read_all(store) == []
