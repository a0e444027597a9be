"""The worker's loops on the shipped fakes: what a fault, a permission or one memory stops, and what not."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

import made
from runlore import errors
from runlore.commit import keys, marks, puts, revisions
from runlore.consumers import consolidate, dead, record
from runlore.events import envelope, models
from runlore.lookup import asking, explain
from runlore.lookup import index as lookup_index
from runlore.lookup import status as lookup_status
from runlore.lookup import waiting as lookup_waiting
from runlore.memory import guards
from runlore.settings import Settings
from runlore.testing import buses, invariants, stores
from runlore.worker import concurrency, loop, retry

FAST = {
    "poll_timeout_seconds": 0.02,
    "marks_interval_seconds": 0.05,
    "retry_seconds_max": 0.1,
    "drain_seconds_max": 5.0,
}


class Faulty(stores.MemoryStore):
    """A store that asks `fault(call, key)` before each call, and raises what it is given."""

    def __init__(self):
        super().__init__()
        self.fault = lambda call, key: None
        self.trace = []

    def _meet(self, call, key):
        self.trace.append((call, key))
        problem = self.fault(call, key)
        if problem is not None:
            raise problem

    async def get(self, key):
        self._meet("get", key)
        return await super().get(key)

    async def put(self, key, body):
        self._meet("put", key)
        return await super().put(key, body)

    async def put_if_absent(self, key, body):
        self._meet("put", key)
        return await stores.MemoryStore.compare_and_set(self, key, body, None)

    async def compare_and_set(self, key, body, etag, *, guard=None):
        self._meet("put", key)
        return await super().compare_and_set(key, body, etag, guard=guard)

    async def delete(self, key):
        self._meet("delete", key)
        await super().delete(key)


class World:
    """A store, a bus, an index and a worker's status."""

    def __init__(self, tmp_path, **settings):
        self.store, self.bus = Faulty(), buses.MemoryBus()
        self.index = lookup_index.Index(tmp_path / "index.db")
        self.settings = Settings(**{**FAST, **settings})
        self.worker = None

    async def emit(self, *events):
        messages = []
        for one in events:
            made_event = envelope.from_structured(one)
            checked = models.run_completed(made_event.data)
            messages.append(
                record.message_of(made_event, f"{checked.project}/{checked.rollout.alias}", "runs")
            )
        await self.bus.produce(messages)

    def new_worker(self):
        self.worker = loop.Worker(self.store, self.bus, self.index, self.settings)
        return self.worker

    @contextlib.asynccontextmanager
    async def up(self):
        """A worker that runs meanwhile; it ends in peace."""
        worker = self.new_worker()
        running = asyncio.create_task(worker.run())
        try:
            yield worker.progress.stages
        finally:
            worker.stopping.set()
            await asyncio.wait_for(running, 20)

    async def lag(self):
        return sum((await self.bus.lag(group="record", topic="runs")).values())

    async def settled(self, *memories):
        """Wait until nothing is left to do for these memories."""
        wanted = memories or ("acme",)
        await until(lambda: self._done(wanted))

    async def _done(self, projects):
        marked = await marks.marked(self.store)
        return not await self.lag() and not [one for one in marked if one[0] in projects]

    async def check(self):
        assert await invariants.check(self.store, self.bus, settled=True) == []
        assert await dead.read_all(self.bus) == []

    async def revision(self, project="acme", memory="support"):
        return await revisions.Reader(self.store).at(project, memory)


@pytest.fixture
def world(tmp_path):
    made_world = World(tmp_path)
    yield made_world
    made_world.index.close()


async def until(condition, seconds=20):
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_store_that_is_away_for_a_while_loses_nothing(world):
    # It is away for a number of calls: how long the worker waits between them changes nothing.
    world.settings = world.settings.model_copy(update={"retry_seconds_max": 0.01})
    await world.emit(*(made.event(number) for number in range(40)))
    failed = 0

    def fault(call, key):
        nonlocal failed
        failed += 1
        return errors.StoreUnavailable("503") if failed % 3 and failed < 200 else None

    world.store.fault = fault
    async with world.up() as stages:
        await until(lambda: _is(lambda: stages["record"].tries or stages["consolidate"].tries))
        await world.settled()
        await until(lambda: _is(lambda: {one.state for one in stages.values()} == {loop.RUNNING}))
    world.store.fault = lambda call, key: None
    await world.check()
    assert len((await world.revision()).map("coverage")) == 7


async def _is(condition):
    return bool(condition())


@pytest.mark.parametrize("problem", [errors.Blocked("the key may not write"), errors.StoreUnavailable("503")])
async def test_a_stage_that_is_stopped_buries_nothing_and_the_others_go_on(world, tmp_path, problem):
    kind = keys.MEMORIES

    def fault(call, key):
        return problem if call == "put" and f"/{kind}/" in key else None

    world.store.fault = fault
    await world.emit(*(made.event(number) for number in range(10)))
    async with world.up() as stages:
        await until(lambda: _is(lambda: stages["consolidate"].state != loop.RUNNING))
        # Recording goes on meanwhile, and so does the index.
        await world.emit(*(made.event(number) for number in range(10, 20)))
        # "Already": consolidate, which looks again and again, had taken the run's record in before its stage had.
        counts = world.worker.progress
        await until(lambda: _is(lambda: counts.recorded + counts.already == 20))
        await until(lambda: _is(lambda: sum(row["runs"] for row in world.index.memories()) == 20))
        status = tmp_path / "status.json"
        told = {"stages": {name: vars(one) for name, one in stages.items()}}
        status.write_text(json.dumps(told))
        causes = (await lookup_status.status(world.store, world.bus, world.index, status, 1))["causes"]
        wanted = "blocked" if isinstance(problem, errors.Blocked) else "waiting"
        assert any(f"consolidate {wanted} since" in cause and str(problem) in cause for cause in causes), (
            causes
        )
        assert await dead.read_all(world.bus) == []
        world.store.fault = lambda call, key: None
        await world.settled()
    await world.check()


async def test_a_memory_that_can_not_go_on_stops_no_other_and_says_why(world):
    await world.emit(made.event(1), made.event(2, project="zoo"))
    async with world.up():
        await world.settled("acme", "zoo")
    key = keys.memory_head("acme", "support")
    good = world.store.body(key)
    await world.store.put(key, b"{torn")
    await world.emit(made.event(3), made.event(4, project="zoo"))
    async with world.up() as stages:
        await world.settled("zoo")
        await until(lambda: _is(lambda: "acme/support" in stages["consolidate"].memories))
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert stages["consolidate"].state == loop.RUNNING
            assert "corrupt" in stages["consolidate"].memories["acme/support"]
        await world.store.put(key, good)
        await world.settled("acme", "zoo")
        await until(lambda: _is(lambda: not stages["consolidate"].memories))
    await world.check()


async def test_damage_in_one_project_stops_no_other_at_any_stage_and_is_told_to_whom_it_concerns(
    world, tmp_path
):
    await world.emit(made.event(1, rollout="conv"), made.event(2, project="zoo"))
    async with world.up():
        await world.settled("acme", "zoo")
    key = keys.rollout_head("acme", "support", "conv")
    good = world.store.body(key)
    await world.store.put(key, b"{torn")
    await world.emit(made.event(3, rollout="conv"))
    async with world.up() as stages:
        await until(lambda: _is(lambda: "acme" in stages["record"].projects))
        await world.emit(*(made.event(number, project="zoo") for number in range(4, 9)))
        counts = world.worker.progress
        await until(lambda: _is(lambda: counts.recorded + counts.already == 5))
        assert stages["record"].state == loop.FAILED and list(stages["record"].projects) == ["acme"]
        status = tmp_path / "status.json"
        status.write_text(json.dumps({"stages": {name: vars(one) for name, one in stages.items()}}))
        where = (world.store, world.bus, world.index, status, 1)
        causes = (await lookup_status.status(*where))["causes"]
        assert any("record waits for project acme alone: corrupt" in cause for cause in causes), causes
        told = {
            project: await lookup_status.told(
                world.store, world.bus, [], [], local=status, up=1, project=project
            )
            for project in ("acme", "zoo")
        }
        assert "corrupt" in told["acme"]["record"]["projects"]["acme"]
        assert told["zoo"]["record"]["projects"] == {} and "acme" not in str(told["zoo"])
        await world.store.put(key, good)
        await world.settled("acme", "zoo")
        await until(lambda: _is(lambda: not stages["record"].projects))
    await world.check()


async def test_draining_ends_in_its_time_though_the_store_hangs(tmp_path):
    world = World(tmp_path, drain_seconds_max=0.3)
    await world.emit(made.event(1))
    hanging = asyncio.Event()

    async def get(key):
        hanging.set()
        await asyncio.sleep(3600)

    world.store.get = get
    worker = world.new_worker()
    running = asyncio.create_task(worker.run())
    await hanging.wait()
    worker.stopping.set()
    before = asyncio.get_running_loop().time()
    await asyncio.wait_for(running, 5)
    assert asyncio.get_running_loop().time() - before < 2
    # What was cancelled comes again.
    assert await world.lag() == 1
    del world.store.get
    async with world.up():
        await world.settled()
    await world.check()
    world.index.close()


async def test_an_offset_is_committed_only_after_effect_and_mark(world):
    commits = []
    original = buses.MemoryConsumer.commit

    async def commit(self, offsets):
        if self._group == "record" and offsets:
            commits.append((await invariants.check(world.store, world.bus), len(world.store.trace)))
        await original(self, offsets)
        if self._group == "record" and offsets:
            found = await invariants.check(world.store, world.bus)
            assert found == [], found

    buses.MemoryConsumer.commit, restore = commit, original
    try:
        world.settings = Settings(**FAST, poll_records_max=3)
        await world.emit(*(made.event(number) for number in range(20)))
        await world.new_worker().drain()
    finally:
        buses.MemoryConsumer.commit = restore
    assert len(commits) >= 7
    await world.check()


async def test_a_rollout_that_a_guard_refuses_is_held_and_the_rest_proceed(world, monkeypatch):
    real = guards.check

    def check(before, after, parts):
        bad = [name for name, part in parts.items() if "BAD" in part.text]
        return [*real(before, after, parts), *([guards.Violation("leak", bad[0], ())] if bad else [])]

    monkeypatch.setattr(guards, "check", check)
    events = [made.event(number, rollout=f"conv-{number}") for number in range(20)]
    for number in (3, 11, 12):
        events.append(
            made.event(100 + number, rollout=f"bad-{number}", record=made.payload(number, text="BAD words"))
        )
    await world.emit(*events)
    worker = world.new_worker()
    await worker.drain()
    assert worker.progress.held == 3 and worker.progress.covered == 20
    head = await revisions.Reader(world.store).head("acme", "support")
    assert set(head.body["held"]) == {"bad-3", "bad-11", "bad-12"}
    assert all("leak" in why["reason"] for why in head.body["held"].values())
    assert not await marks.marked(world.store)
    stories = await explain.explain(
        world.store, world.bus, revisions.Reader(world.store), world.index, "bad-11"
    )
    assert [story.state for story in stories] == ["held"]
    # Another run of it does not bring it in, and makes no revision.
    await world.emit(made.event(200, rollout="bad-3"))
    again = world.new_worker()
    await again.drain()
    assert (again.progress.revisions, again.progress.held) == (0, 0) and not await marks.marked(world.store)
    await world.check()


async def test_an_engine_that_fails_on_a_rollout_holds_it_alone(world, monkeypatch):
    real = consolidate.operations.propose

    def propose(notes, name, summary, told):
        if name == "conv-3":
            raise KeyError("a bug")
        return real(notes, name, summary, told)

    monkeypatch.setattr(consolidate.operations, "propose", propose)
    await world.emit(*(made.event(number) for number in range(7)))
    worker = world.new_worker()
    await worker.drain()
    assert (worker.progress.covered, worker.progress.held) == (6, 1)
    await world.check()


async def test_a_memory_that_holds_too_many_stops_alone(world, monkeypatch):
    monkeypatch.setattr(consolidate, "HELD_MAX", 2)
    real = guards.check

    def check(before, after, parts):
        bad = any("BAD" in part.text for part in parts.values())
        return [*real(before, after, parts), *([guards.Violation("leak", "x", ())] if bad else [])]

    monkeypatch.setattr(guards, "check", check)
    for number in range(3):
        await world.emit(made.event(number, rollout=f"bad-{number}", record=made.payload(number, text="BAD")))
    await world.emit(made.event(9, project="zoo"))
    async with world.up() as stages:
        await world.settled("zoo")
        await until(
            lambda: _is(lambda: "review_full" in stages["consolidate"].memories.get("acme/support", ""))
        )
        assert stages["consolidate"].state == loop.RUNNING
        monkeypatch.setattr(consolidate, "HELD_MAX", 3)
        await world.settled("acme", "zoo")
    await world.check()


async def test_batches_and_marks_beyond_their_limits_are_worked_in_passes(world, monkeypatch):
    monkeypatch.setattr(consolidate, "ROLLOUTS_PER_REVISION_MAX", 4)
    monkeypatch.setattr(consolidate, "MARKS_PER_PASS_MAX", 2)
    world.settings = Settings(**FAST, poll_records_max=5)
    await world.emit(*(made.event(number, rollout=f"conv-{number}") for number in range(37)))
    worker = world.new_worker()
    await worker.drain()
    assert worker.progress.covered == 37 and worker.progress.revisions >= 37 / 4
    await world.check()
    other = World(world.index.path.parent / "other")
    monkeypatch.undo()
    await other.emit(*(made.event(number, rollout=f"conv-{number}") for number in range(37)))
    await other.new_worker().drain()
    ours, theirs = await world.revision(), await other.revision()
    for name in ("notes", "files", "selected"):
        assert dict(ours.map(name).items()) == dict(theirs.map(name).items())
    other.index.close()


async def test_beyond_the_limit_the_newest_rollouts_have_notes_and_older_ones_stay_covered(
    world, monkeypatch
):
    monkeypatch.setattr(consolidate, "ROLLOUTS_SELECTED_MAX", 6)
    monkeypatch.setattr(consolidate, "ROLLOUTS_PER_REVISION_MAX", 5)
    await world.emit(*(made.event(number, rollout=f"conv-{number:02d}") for number in reversed(range(20))))
    await world.new_worker().drain()
    revision = await world.revision()
    assert len(revision.map("coverage")) == 20
    assert set(dict(revision.map("selected").items())) == {f"conv-{number:02d}" for number in range(14, 20)}
    assert {row["rollout"] for row in world.index.search("task", "acme", "support", limit=100)} == {
        f"conv-{number:02d}" for number in range(20)
    }
    stories = await explain.explain(
        world.store, world.bus, revisions.Reader(world.store), world.index, "run-0"
    )
    assert [story.state for story in stories] == ["consolidated"] and "searchable" in stories[0].next
    # A new run of an old rollout brings it back in, and moves the oldest out.
    await world.emit(made.event(90, rollout="conv-03"))
    await world.new_worker().drain()
    selected = set(dict((await world.revision()).map("selected").items()))
    assert "conv-03" in selected and "conv-14" not in selected and len(selected) == 6
    await world.check()


def wait_for(world, name, seconds):
    reader = revisions.Reader(world.store)
    asker = asking.Asker(world.store, world.bus, reader)
    where = (world.store, world.bus, reader, world.index, name)
    return lookup_waiting.wait_for(lambda: explain.explain(*where), asker, name, seconds=seconds)


async def test_who_waits_for_a_run_is_told_its_end_also_where_the_wait_began_before_the_event(world):
    waiting = asyncio.create_task(wait_for(world, "run-0", 30))
    await asyncio.sleep(0)
    await world.emit(made.event(0))
    await world.new_worker().drain()
    assert [one.end for one in await waiting] == ["consolidated"]


async def test_who_waits_in_vain_is_told_where_the_run_is(world):
    with pytest.raises(errors.WaitTimeout, match="nothing has that name"):
        await wait_for(world, "run-0", 0.01)
    await world.emit(made.event(0))
    with pytest.raises(errors.WaitTimeout, match="it is waiting: the next"):
        await wait_for(world, "run-0", 0.01)


async def test_every_job_has_ended_before_an_error_is_raised():
    """Else a job of the failed batch would still write while the batch is tried again."""
    running = set()
    started = []

    def job(number):
        async def work():
            running.add(number)
            started.append(number)
            await asyncio.sleep(0.01 * (number % 4))
            running.discard(number)
            if number % 3 == 1:
                raise errors.StoreUnavailable(str(number))
            return number

        return work

    runtime = concurrency.runtime(4)
    assert await runtime.gather([job(number) for number in (0, 2, 3, 5, 6)]) == [0, 2, 3, 5, 6]
    assert await runtime.gather([]) == []
    started.clear()
    with pytest.raises(errors.StoreUnavailable):
        await runtime.gather([job(number) for number in range(40)])
    assert not running and len(started) < 40


async def test_a_replay_from_the_start_changes_nothing(world):
    await world.emit(*(made.event(number) for number in range(20)))
    await world.new_worker().drain()
    before = world.store.fingerprint()
    await world.bus.rewind(group="record", topic="runs")
    worker = world.new_worker()
    await worker.drain()
    assert (worker.progress.already, worker.progress.recorded, worker.progress.revisions) == (20, 0, 0)
    assert world.store.fingerprint() == before


async def test_once_gives_up_on_a_store_that_stays_away_and_says_why(world, monkeypatch):
    monkeypatch.setattr(retry, "RETRY_SECONDS_MIN", 0.001)
    monkeypatch.setattr(puts, "WAIT_SECONDS_MIN", 0.0001)
    await world.emit(made.event(1))
    world.store.fault = lambda call, key: errors.StoreUnavailable("503") if call == "put" else None
    with pytest.raises(errors.StoreUnavailable):
        await world.new_worker().drain()
    world.store.fault = lambda call, key: None
    assert await world.lag() == 1
    await world.new_worker().drain()
    await world.check()
