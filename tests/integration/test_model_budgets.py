"""When a model is asked, and over budget not: across restarts, two workers, a killed one, a budget that is raised."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt

import pytest

import made
from runlore import clock, errors, producer
from runlore.commit import keys, marks, revisions
from runlore.consumers import model_summaries, summarize
from runlore.lookup import asked as lookup_asked
from runlore.lookup import asking, explain, spending, waiting
from runlore.lookup import index as lookup_index
from runlore.lookup import status as lookup_status
from runlore.models import choices, ledger, spend
from runlore.settings import Settings
from runlore.testing import invariants, models
from runlore.testing.buses import MemoryBus
from runlore.testing.stores import MemoryStore
from runlore.upkeep import pauses, refresh
from runlore.worker import loop

FAST = {
    "poll_timeout_seconds": 0.02,
    "marks_interval_seconds": 0.05,
    "retry_seconds_max": 0.1,
    "drain_seconds_max": 5.0,
}
SUPPORT = ("acme", "support")


class Shifted(clock.World):
    """The real clock, some time off."""

    off = dt.timedelta(0)

    def now(self):
        return super().now() + self.off


@pytest.fixture(autouse=True)
def shifted():
    world = Shifted()
    clock.install(world)
    yield world
    clock.install(clock.World())


class World:
    def __init__(self, tmp_path, **toml):
        self.store, self.bus = MemoryStore(), MemoryBus()
        self.index = lookup_index.Index(tmp_path / "index.db")
        self.fault = ""
        self.engine = models.ScriptedEngine(lambda seen: models.Reply(fault=self.fault))
        self.chosen = choices.parse(toml)
        self.status_path = tmp_path / "status.json"
        self.published = 0

    def says(self, **toml):
        """The file of models is another now."""
        self.chosen = choices.parse(toml)

    def worker(self, **settings):
        summaries = loop.Summaries(self.engine, self.chosen, reload=lambda: self.chosen)
        return loop.Worker(self.store, self.bus, self.index, Settings(**FAST | settings), summaries=summaries)

    async def runs(self, count, *, rollout=None, memory="support"):
        found = []
        for _ in range(count):
            self.published += 1
            name = rollout or f"conv-{self.published}"
            found.append(made.data(self.published, rollout=name, memory=memory))
        await producer.Producer(self.store, self.bus).publish(found, source="/t")

    @contextlib.asynccontextmanager
    async def up(self, workers=1, **settings):
        found = [self.worker(**settings) for _ in range(workers)]
        running = [asyncio.create_task(one.run()) for one in found]
        try:
            yield found
        finally:
            for one in found:
                one.stopping.set()
            await asyncio.wait_for(asyncio.gather(*running), 20)

    async def asks(self, memory="support"):
        return await marks.read_all(self.store, "acme", memory, marks_max=99, kind=keys.ASKS)

    async def covered(self):
        try:
            revision = await revisions.Reader(self.store).at(*SUPPORT)
        except errors.NotFound:
            return 0
        return len(revision.map("coverage"))

    async def told(self):
        return await lookup_asked.of_memory(self.store, *SUPPORT, chosen=self.chosen)

    async def wait(self, name, seconds=10, **more):
        async def tell():
            await lookup_index.reconcile(self.index, self.store)
            where = (self.store, self.bus, revisions.Reader(self.store), self.index, name)
            return await explain.explain(*where, known=explain.Known(self.chosen))

        asker = asking.Asker(self.store, self.bus, revisions.Reader(self.store))
        return await waiting.wait_for(tell, asker, name, seconds=seconds, **more)


@pytest.fixture
def worlds(tmp_path):
    out = []

    def make(**toml):
        out.append(World(tmp_path, **toml))
        return out[-1]

    yield make
    for one in out:
        one.index.close()


async def until(condition):
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def due(**said):
    return {"summarize": {"due": said}}


# --- when -----------------------------------------------------------------------------------------------------


async def test_asks_wait_for_their_policy_while_the_rules_are_in_a_revision_and_then_a_model_is_asked(worlds):
    world = worlds(**due(runs=3, age_seconds=3600))
    await world.runs(2)
    await world.worker().drain()
    assert not world.engine.asked and await world.covered() == 2 and len(await world.asks()) == 1
    told = await world.told()
    assert told.state == "waits" and told.told.endswith("or with 1 more run")
    found = await lookup_status.status(
        world.store, world.bus, world.index, world.status_path, None, chosen=world.chosen
    )
    assert found["summarize"]["waits"]["acme/support"]["state"] == "waits" and found["causes"] == []
    await world.runs(1)
    await world.worker().drain()
    assert len(world.engine.asked) == 3 and await world.asks() == []


async def test_runs_of_one_rollout_that_waited_together_are_one_call(worlds):
    world = worlds(**due(runs=4))
    for _ in range(4):
        await world.runs(1, rollout="conv")
        await world.worker().drain()
    assert len(world.engine.asked) == 1 and "== run 4 of 4" in world.engine.asked[0].input


async def test_age_and_a_restart_on_another_worker_end_the_wait_as_the_first_would_have(worlds, shifted):
    world = worlds(**due(runs=99, age_seconds=600))
    await world.runs(1)
    await world.worker().drain()
    shifted.off = dt.timedelta(seconds=590)
    await world.worker().drain()
    assert not world.engine.asked
    shifted.off = dt.timedelta(seconds=601)
    await world.worker().drain()
    assert len(world.engine.asked) == 1


async def test_a_clock_that_went_back_an_hour_makes_it_early_and_not_late(worlds, shifted):
    world = worlds(**due(runs=99, age_seconds=600))
    await world.runs(1)
    await world.worker().drain()
    shifted.off = -dt.timedelta(hours=1)
    await world.worker().drain()
    assert len(world.engine.asked) == 1


async def test_a_running_worker_wakes_for_what_becomes_due_by_time_between_two_lists(worlds):
    world = worlds(**due(idle_seconds=0.3))
    async with world.up(marks_interval_seconds=3600):
        await world.runs(1)
        # Its LIST was at the start, and the next is in an hour: only what it knows can wake it.
        await until(lambda: _true(world.asks))
        (worker,) = [world.worker(marks_interval_seconds=3600)]
        running = asyncio.create_task(worker.run())

        async def is_asked():
            return bool(world.engine.asked)

        await until(is_asked)
        worker.stopping.set()
        await running
    assert await world.asks() == []


async def _true(look):
    return bool(await look())


async def test_a_refresh_makes_all_due_for_every_worker_and_dies_with_what_it_was_for(worlds):
    world = worlds(**due(runs=99))
    await world.runs(3)
    await world.runs(1, memory="sales")
    await world.worker().drain()
    assert not world.engine.asked
    (one,) = await refresh.refresh(world.store, "acme", "support")
    assert (one.memory, one.asks) == ("support", 1) and await refresh.left(world.store, [one]) == {
        one.mark: 1
    }
    assert (await world.told()).told == "due: a refresh was asked for"
    await world.worker().drain()
    assert len(world.engine.asked) == 3 and await world.asks() == [] and len(await world.asks("sales")) == 1
    assert await refresh.left(world.store, [one]) == {} and not await refresh.unconsolidated(world.store, one)
    assert await refresh.refresh(world.store, "acme", "support") == []
    assert [found.memory for found in await refresh.refresh(world.store, "acme")] == ["sales"]


# --- budgets --------------------------------------------------------------------------------------------------


async def test_over_budget_one_memory_waits_and_the_others_and_the_rules_go_on(worlds):
    world = worlds(memories={"acme/support": {"budget": {"day_usd": 0.0}}})
    await world.runs(2)
    await world.runs(2, memory="sales")
    worker = world.worker()
    await worker.drain()
    assert len(world.engine.asked) == 2 and await world.covered() == 2
    assert len(await world.asks()) == 1 and await world.asks("sales") == []
    assert worker.progress.stages["summarize"].state == loop.RUNNING
    told = await world.told()
    assert told.state == "deferred" and "the memory's budget of a day" in told.told
    found = await lookup_status.status(world.store, world.bus, world.index, world.status_path, None)
    assert any("waits for budget" in cause and "runlore spend" in cause for cause in found["causes"])
    assert await invariants.check(world.store, world.bus, settled=True) == []


async def test_raising_the_budget_in_the_file_works_off_what_was_deferred_without_a_restart(worlds):
    world = worlds(budget={"day_usd": 0.0})
    await world.runs(3)
    async with world.up() as (worker,):

        async def is_deferred():
            told = await world.told()
            return told is not None and told.state == "deferred"

        await until(is_deferred)
        for _ in range(3):
            await worker._asked()
        assert not world.engine.asked and not await worker._asked()
        world.says(budget={"day_usd": 5.0})

        async def is_done():
            return not await world.asks()

        await until(is_done)
    assert len(world.engine.asked) == 3
    report = await spending.report(world.store, chosen=world.chosen)
    assert report["deferred"] == [] and report["total"]["calls"] == 3
    budget = report["budgets"][0]
    assert (budget["limit"], budget["unit"]) == (5.0, "usd") and budget["left"] == 5.0 - budget["used"] < 5.0


async def bound_of_a_call(worlds):
    """The most that a call of these tests can take, in tokens; it takes 1,100."""
    world = worlds()
    await world.runs(1)
    await world.worker().drain()
    return spend.bound(world.engine.asked[0], world.chosen.table()).tokens


async def test_the_next_day_works_off_what_was_deferred(worlds, shifted):
    world = worlds(budget={"day_tokens": await bound_of_a_call(worlds) + 1200})
    shifted.off = clock.now().replace(hour=12) - clock.now()
    await world.runs(5)
    for day in range(3):
        for _ in range(2):
            await world.worker().drain()
            assert len(world.engine.asked) == min(5, 2 * (day + 1)), day
        shifted.off += dt.timedelta(days=1)
    assert await world.asks() == [] and await world.covered() == 5


async def test_what_was_made_before_the_budget_ended_is_consolidated(worlds):
    world = worlds(budget={"day_tokens": await bound_of_a_call(worlds) + 1200})
    await world.runs(4)
    await world.worker().drain()
    heads = [await summarize.read(world.store, *SUPPORT, f"conv-{number}") for number in range(1, 5)]
    assert len([head for head in heads if "model" in head.body]) == len(world.engine.asked) == 2
    revision = await revisions.Reader(world.store).at(*SUPPORT)
    coverage = revision.map("coverage")
    assert all(coverage.get(head.body["rollout"])["counter"] == head.counter for head in heads)
    assert len(await world.asks()) == 1


async def test_two_workers_on_one_budget_pay_no_more_than_it(worlds):
    limit = await bound_of_a_call(worlds) + 11_000
    world = worlds(budget={"month_tokens": limit})
    await world.runs(30)
    async with world.up(workers=2):

        async def is_quiet():
            told = await world.told()
            return await world.covered() == 30 and told is not None and told.state == "deferred"

        await until(is_quiet)
    month = await world_month(world)
    assert month["open"] == {} and spend.used(month).tokens == 1100 * len(world.engine.asked) <= limit
    assert len(world.engine.asked) >= 10


async def world_month(world):
    return await ledger.Ledger(world.store).month("acme", spend.month_of(clock.now()))


class Dies(BaseException):
    """The process is gone."""


class Killed(MemoryStore):
    """Dies at its `at`-th write: before it, or after it landed."""

    at, after = 0, False
    count = 0

    async def _step(self, write):
        self.count += 1
        if self.count == self.at and not self.after:
            raise Dies
        result = await write()
        if self.count == self.at:
            raise Dies
        return result

    async def put_if_absent(self, key, body):
        return await self._step(lambda: MemoryStore.compare_and_set(self, key, body, None))

    async def compare_and_set(self, key, body, etag, *, guard=None):
        return await self._step(lambda: MemoryStore.compare_and_set(self, key, body, etag, guard=guard))

    async def delete(self, key):
        return await self._step(lambda: MemoryStore.delete(self, key))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_wherever_a_worker_dies_the_next_ends_with_the_same_and_no_call_is_lost_or_counted_twice(
    worlds, after
):
    writes = 1
    while True:
        world = worlds()
        await world.runs(1, rollout="conv")
        stage = model_summaries.ModelSummariesStage(world.store, world.bus, world.engine, world.chosen)
        recording = world.worker()
        await recording._drain_runs("record", recording._take)
        killed = Killed()
        killed._objects, killed._order = world.store._objects, world.store._order
        killed.at, killed.after, killed.count = writes, after, 0
        dying = model_summaries.ModelSummariesStage(killed, world.bus, world.engine, world.chosen)
        died = False
        try:
            await dying.work(*SUPPORT)
        except Dies:
            died = True
        await stage.work(*SUPPORT)
        month = await world_month(world)
        counted = sum(row["calls"] for *_, row in spend.rows(month)) + len(month["open"])
        head = await summarize.read(world.store, *SUPPORT, "conv")
        assert head.body["model"]["upto"] and await world.asks() == []
        # What was open when it died may never have been asked: it stays counted. No call is not counted.
        assert len(world.engine.asked) <= counted <= len(world.engine.asked) + 1, writes
        assert len(world.engine.asked) <= 2
        if not died:
            assert counted == len(world.engine.asked) == 1
            break
        writes += 1
    assert writes > 5


# --- ends -----------------------------------------------------------------------------------------------------


async def test_a_run_ends_by_the_rules_at_once_and_by_the_model_as_consolidated_deferred_or_blocked(worlds):
    world = worlds(budget={"day_usd": 0.0})
    await world.runs(1)
    await world.worker().drain()
    (ended,) = await world.wait("run-1")
    assert ended.end == waiting.CONSOLIDATED
    (ended,) = await world.wait("run-1", with_model=True)
    assert ended.end == waiting.DEFERRED and "budget" in ended.cause
    with pytest.raises(errors.RunStandsStill, match="deferred"):
        waiting.check([ended])
    world.says()
    await pauses.put(world.store, "summarize", project="acme", memory=None, reason="dear", by={"user": "ada"})
    (ended,) = await world.wait("run-1", with_model=True)
    assert ended.end == waiting.BLOCKED and "runlore resume" in ended.cause
    await pauses.lift(world.store, "summarize", project="acme", memory=None)
    await world.worker().drain()
    (ended,) = await world.wait("run-1", with_model=True)
    assert ended.end == waiting.CONSOLIDATED
    waiting.check([ended])


async def test_a_wait_that_is_too_short_says_what_the_run_waits_for(worlds):
    world = worlds(**due(runs=2))
    with pytest.raises(errors.WaitTimeout, match="nothing has that name"):
        await world.wait("run-1", seconds=0)
    await world.runs(1)
    with pytest.raises(errors.WaitTimeout, match="it is waiting"):
        await world.wait("run-1", seconds=0)
    await world.worker().drain()
    with pytest.raises(errors.WaitTimeout, match="or with 1 more run"):
        await world.wait("run-1", seconds=0, with_model=True)
    assert (await world.wait("run-1", seconds=0))[0].end == waiting.CONSOLIDATED


async def test_a_paused_consolidation_and_a_replaced_attempt_are_ends_too(worlds):
    world = worlds()
    await pauses.put(world.store, "consolidate", project="acme", memory=None, reason="x", by={"user": "ada"})
    await world.runs(1)
    await world.worker().drain()
    (ended,) = await world.wait("run-1")
    assert ended.end == waiting.BLOCKED
    await pauses.lift(world.store, "consolidate", project="acme", memory=None)
    again = made.data(1, rollout="conv-1", attempt=2)
    await producer.Producer(world.store, world.bus).publish([again], source="/t")
    await world.worker().drain()
    assert sorted(one.end for one in await world.wait("run-1")) == [waiting.CONSOLIDATED, waiting.SUPERSEDED]


async def test_a_rollout_that_is_not_selected_ends_as_such(worlds, monkeypatch):
    from runlore.consumers import consolidate

    monkeypatch.setattr(consolidate, "ROLLOUTS_SELECTED_MAX", 1)
    world = worlds()
    await world.runs(2)
    await world.worker().drain()
    assert sorted([(await world.wait(f"run-{number}"))[0].end for number in (1, 2)]) == [
        waiting.CONSOLIDATED,
        waiting.NOT_SELECTED,
    ]


def test_every_end_is_in_the_list_and_each_has_its_words():
    assert set(waiting.GOOD) < set(waiting.ENDS) and all(waiting.ENDS.values())


async def test_an_ask_that_is_none_stops_its_own_memory_alone(worlds):
    world = worlds()
    await world.store.put(keys.mark(*SUPPORT, "0" * 32, keys.ASKS), b"not an ask")
    await world.runs(1, memory="sales")
    async with world.up() as (worker,):

        async def is_told():
            stuck = worker.progress.stages["summarize"].memories
            return "acme/support" in stuck or worker.progress.stages["summarize"].state == loop.FAILED

        await until(is_told)

        async def is_done():
            return not await world.asks("sales") and bool(world.engine.asked)

        await until(is_done)


async def test_a_dead_workers_open_call_makes_the_memory_wait_and_says_so(worlds):
    limit = await bound_of_a_call(worlds) + 1000
    world = worlds(budget={"day_tokens": limit})
    await ledger.Ledger(world.store).open(*SUPPORT, spend.Budgets(), spend.Bound("gpt-5.4-mini", limit, 0.0))
    await world.runs(1)
    await world.worker().drain()
    assert not world.engine.asked and (await world.told()).state == "deferred"
