"""The worker's stage `summarize`: a model that is away holds back nothing but its own part, and says so."""

from __future__ import annotations

import asyncio
import contextlib
import re

import pytest

import made
from runlore import errors, producer
from runlore.commit import keys, marks, revisions
from runlore.consumers import summarize
from runlore.lookup import index as lookup_index
from runlore.lookup import status as lookup_status
from runlore.models import choices
from runlore.settings import Settings
from runlore.testing import invariants, models
from runlore.testing.buses import MemoryBus
from runlore.testing.stores import MemoryStore
from runlore.upkeep import pauses
from runlore.worker import health, loop

FAST = {
    "poll_timeout_seconds": 0.02,
    "marks_interval_seconds": 0.05,
    "retry_seconds_max": 0.1,
    "drain_seconds_max": 5.0,
}
VALUE = {
    "title": "a task",
    "outcome": "uncertain",
    "outcome_evidence": [],
    "statements": [{"section": "knowledge", "text": "The sheet is locked on Mondays.", "evidence": [1]}],
    "reason": "",
}


class World:
    def __init__(self, tmp_path):
        self.store, self.bus = MemoryStore(), MemoryBus()
        self.index = lookup_index.Index(tmp_path / "index.db")
        self.fault = ""
        self.engine = models.ScriptedEngine(lambda seen: models.Reply(VALUE, self.fault))
        self.status_path = tmp_path / "status.json"

    def worker(self, stages=loop.STAGES, **settings):
        summaries = loop.Summaries(self.engine, choices.Choices())
        return loop.Worker(
            self.store, self.bus, self.index, Settings(**FAST | settings), stages=stages, summaries=summaries
        )

    async def publish(self, *runs):
        await producer.Producer(self.store, self.bus).publish(runs, source="/t")

    @contextlib.asynccontextmanager
    async def up(self):
        worker = self.worker()
        running = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stopping.set()
            await asyncio.wait_for(running, 20)

    async def texts(self):
        try:
            revision = await revisions.Reader(self.store).at("acme", "support")
        except errors.NotFound:
            return None
        return [entry["key"]["text"] for _, entry in revision.map("notes").items() if entry["kind"] == "text"]

    async def asks(self):
        return await marks.standing(self.store, keys.ASKS)


@pytest.fixture
def world(tmp_path):
    made_world = World(tmp_path)
    yield made_world
    made_world.index.close()


async def until(condition):
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def is_true(look):
    async def condition():
        return bool(await look())

    return condition


async def test_a_model_that_is_blocked_is_told_and_the_rules_go_on_until_a_person_has_acted(world):
    world.fault = "unauthorized"
    await world.publish(made.data(1, rollout="conv"))
    async with world.up() as worker:
        stage = worker.progress.stages["summarize"]

        async def is_blocked():
            return stage.state == loop.BLOCKED and await world.texts() == []

        await until(is_blocked)
        assert "model_blocked" in stage.cause and worker.progress.stages["consolidate"].state == loop.RUNNING
        assert worker.progress.revisions == 1 and await world.asks()
        world.fault = ""
        await until(is_true(world.texts))

        async def is_well():
            return stage.state == loop.RUNNING and not await world.asks()

        await until(is_well)
    assert await world.texts() == ["The sheet is locked on Mondays."]
    assert await invariants.check(world.store, world.bus, settled=True) == []


async def test_once_a_model_that_is_away_is_told_after_all_else_is_done(world):
    world.fault = "no_quota"
    await world.publish(made.data(1, rollout="conv"))
    worker = world.worker()
    with pytest.raises(errors.ModelBlocked):
        await worker.drain()
    assert (worker.progress.recorded, worker.progress.revisions) == (1, 1) and await world.texts() == []
    found = await lookup_status.status(world.store, world.bus, world.index, world.status_path, None)
    assert (found["summarize"]["marks"], found["summarize"]["rollouts"]) == (1, 1)
    assert found["consolidate"]["marks"] == 0
    world.fault = ""
    await world.worker().drain()
    assert await world.texts() == ["The sheet is locked on Mondays."] and not await world.asks()


async def test_once_takes_the_models_part_into_the_first_revision(world):
    await world.publish(made.data(1, rollout="conv"))
    worker = world.worker()
    await worker.drain()
    assert worker.progress.revisions == 1 and await world.texts() == ["The sheet is locked on Mondays."]


async def test_a_paused_stage_leaves_its_asks_standing(world):
    where = {"project": "acme", "memory": "support"}
    await pauses.put(world.store, "summarize", **where, reason="too dear", by={"user": "ada", "host": "desk"})
    await world.publish(made.data(1, rollout="conv"), made.data(2, rollout="conv", memory="sales"))
    await world.worker().drain()
    assert set(await world.asks()) == {("acme", "support")} and len(world.engine.asked) == 1
    head = await summarize.read(world.store, "acme", "sales", "conv")
    assert head.body["model"]["statements"]


async def test_a_worker_with_nothing_but_summaries_is_ready_at_once_and_refused_without_a_model(world):
    worker = world.worker(stages=("summarize",))
    assert worker.stages == {"summarize"}
    assert not list(health.Health(worker, Settings())._not_ready())
    with pytest.raises(errors.InvalidInput, match="no model"):
        loop.Worker(world.store, world.bus, world.index, Settings(), stages=("summarize",))


async def test_a_worker_that_has_the_settings_but_asks_nobody_leaves_asks_to_others(world):
    await world.publish(made.data(1, rollout="conv"))
    settings = Settings(**FAST, model_key="sk-secret")
    await loop.Worker(world.store, world.bus, world.index, settings).drain()
    assert await world.texts() == [] and await world.asks() and not world.engine.asked
    await world.worker().drain()
    assert await world.texts() == ["The sheet is locked on Mondays."]


async def test_without_a_model_there_is_no_such_stage(world):
    worker = loop.Worker(world.store, world.bus, world.index, Settings(**FAST))
    assert "summarize" not in worker.stages and "summarize" not in worker.progress.stages
    await world.publish(made.data(1, rollout="conv"))
    await worker.drain()
    assert await world.texts() == [] and not await world.asks()


# --- consolidation by a model -----------------------------------------------------------------------------------


def brings_together(seen):
    if "operations" not in seen.schema["properties"]:
        number = re.search(r"task (\d+)", seen.input).group(1)
        said = VALUE["statements"][0] | {"text": f"The sheet of list {number} is locked on Mondays."}
        return models.Reply(VALUE | {"statements": [said]})
    found = [int(one) for one in re.findall(r"^#(\d+) \w+ \((?:statement|joint);", seen.input, re.MULTILINE)]
    merge = {"action": "merge", "section": "knowledge", "text": "The sheet is locked on Mondays."}
    merge |= {"replaces": found, "evidence": []}
    return models.Reply({"operations": [merge], "skills": [], "reason": ""})


async def joined(world):
    revision = await revisions.Reader(world.store).at("acme", "support")
    found = [entry for _, entry in revision.map("notes").items() if entry["kind"] == "joint"]
    return [sorted(entry["support"]) for entry in found]


async def test_a_worker_brings_together_what_the_rules_took_in_and_later_what_joins_it(world):
    world.engine = models.ScriptedEngine(brings_together)
    await world.publish(made.data(1, rollout="a"), made.data(2, rollout="b"))
    async with world.up():

        async def two():
            return await world.texts() and await joined(world) == [["a", "b"]]

        await until(two)
        await world.publish(made.data(3, rollout="c"))

        async def three():
            return await joined(world) == [["a", "b", "c"]]

        await until(three)

        async def is_done():
            return not await marks.standing(world.store, keys.JOINS)

        await until(is_done)
    assert await invariants.check(world.store, world.bus, settled=True) == []


@pytest.mark.parametrize("stage", ("summarize", "consolidate"))
async def test_a_pause_of_either_stage_holds_what_a_model_would_bring_together(world, stage):
    world.engine = models.ScriptedEngine(brings_together)
    await world.publish(made.data(1, rollout="a"), made.data(2, rollout="b"))
    await world.worker(stages=("record", "summarize")).drain()
    await world.worker(stages=("consolidate",)).drain()
    where = {"project": "acme", "memory": "support"}
    await pauses.put(world.store, stage, **where, reason="too dear", by={"user": "ada", "host": "desk"})
    asked = len(world.engine.asked)
    await world.worker(stages=("summarize",)).drain()
    assert len(world.engine.asked) == asked and await marks.standing(world.store, keys.JOINS)
    await pauses.lift(world.store, stage, **where)
    await world.worker().drain()
    assert await joined(world) == [["a", "b"]]


async def test_a_blocked_model_holds_up_no_revision_of_the_rules(world):
    is_away = True

    def script(seen):
        if "operations" in seen.schema["properties"] and is_away:
            return models.Reply(fault="no_quota")
        return brings_together(seen)

    world.engine = models.ScriptedEngine(script)
    await world.publish(made.data(1, rollout="a"), made.data(2, rollout="b"))
    with pytest.raises(errors.ModelBlocked):
        await world.worker().drain()
    assert len(await world.texts()) == 2 and await joined(world) == []
    found = await lookup_status.status(world.store, world.bus, world.index, world.status_path, None)
    assert found["summarize"]["joins"] == 1 and found["consolidate"]["marks"] == 0
    is_away = False
    await world.worker().drain()
    assert await joined(world) == [["a", "b"]]
