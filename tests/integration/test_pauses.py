"""A running worker obeys pauses: what is held back waits whole and in order, the rest goes on, nothing is dead."""

from __future__ import annotations

import asyncio

import pytest
from test_worker import World, until

import made
from runlore.commit import marks
from runlore.upkeep import pauses

BY = {"user": "ada", "host": "desk"}


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(pauses, "REFRESH_SECONDS", 0.0)
    made_world = World(tmp_path)
    yield made_world
    made_world.index.close()


async def pause(world, stage, project=None, memory=None):
    await pauses.put(world.store, stage, project=project, memory=memory, reason="ticket", by=BY)


async def resume(world, stage, project=None, memory=None):
    await pauses.lift(world.store, stage, project=project, memory=memory)


async def test_a_stage_paused_while_it_runs_takes_no_more_and_goes_on_where_it_was(world):
    await world.emit(*(made.event(number) for number in range(5)))
    async with world.up() as stages:
        await world.settled()
        await pause(world, "record")
        await world.emit(*(made.event(number) for number in range(5, 40)))
        await until(lambda: _is(lambda: stages["record"].state == "blocked"))
        assert "stage_paused" in stages["record"].cause and "ticket" in stages["record"].cause
        before = await world.bus.committed(group="record", topic="runs")
        await asyncio.sleep(0.3)
        assert await world.bus.committed(group="record", topic="runs") == before
        assert world.worker.progress.recorded == 5 and await world.lag() == 35
        # The other reader of the same topic is not held back.
        await until(lambda: _is(lambda: world.worker.progress.stages["snapshot"].done == 40))
        await resume(world, "record")
        await world.settled()
        await until(lambda: _is(lambda: stages["record"].state == "running"))
    assert world.worker.progress.recorded == 40
    await world.check()


async def test_a_worker_that_is_stopped_while_paused_ends_in_peace_and_commits_nothing(world):
    await pause(world, "record")
    await world.emit(*(made.event(number) for number in range(10)))
    async with world.up() as stages:
        await until(lambda: _is(lambda: stages["record"].state == "blocked"))
    assert await world.lag() == 10
    await resume(world, "record")
    async with world.up():
        await world.settled()
    await world.check()


@pytest.mark.parametrize("where", [(None, None), ("acme", None), ("acme", "support")])
async def test_marks_of_what_is_paused_stand_and_the_rest_is_consolidated(world, where):
    await pause(world, "consolidate", *where)
    await world.emit(made.event(1), made.event(2, memory="sales"), made.event(3, project="zeta"))
    everything = {("acme", "support"), ("acme", "sales"), ("zeta", "support")}
    held = {one for one in everything if where[0] in (None, one[0]) and where[1] in (None, one[1])}
    async with world.up() as stages:
        await until(lambda: _is(lambda: world.worker.progress.recorded == 3))
        await until(lambda: _marked(world, held))
        await asyncio.sleep(0.2)
        assert await marks.marked(world.store) == held
        # It is a person's wish, not a fault.
        assert stages["consolidate"].state == "running" and not stages["consolidate"].memories
        await resume(world, "consolidate", *where)
        await world.settled("acme", "zeta")
    await world.check()


async def _is(condition):
    return condition()


async def _marked(world, wanted):
    return await marks.marked(world.store) == wanted
