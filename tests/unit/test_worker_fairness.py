"""No project starves another. Goal: however much one project sends, and however long its work takes, another's
messages, memories and calls have their turn after a small, stated number of the first one's.

Method: a world in which reading costs nothing and work ends only when the test says so, one piece at a time: then the
order in which pieces begin is all that there is, and it is counted. The same with the fairness taken out must fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter

import pytest

from runlore import errors, turns
from runlore.bus.port import Outgoing
from runlore.settings import Settings
from runlore.testing import buses
from runlore.worker import intake, memories, offsets, progress, retry

POLL = 100


class Stage:
    """An intake of which each batch ends when `end_one` says so, the one that began first."""

    def __init__(self, *, partitions=1, sent=(), **settings):
        self.bus = buses.MemoryBus(partitions=partitions)
        self.settings = Settings(poll_timeout_seconds=0.02, poll_records_max=POLL, **settings)
        self.stopping, self.status = asyncio.Event(), progress.StageStatus()
        self.sent, self.effects, self.begun = list(sent), [], []
        self.new_intake()

    def new_intake(self):
        retries = retry.Retries("test", self.status, seconds_max=0.05, stopping=self.stopping)
        self.intake = intake.Intake(
            self.bus,
            self.settings,
            retries,
            group="g",
            topic="t",
            process=self.process,
            stopping=self.stopping,
        )

    async def process(self, messages):
        end = asyncio.get_running_loop().create_future()
        self.begun.append(end)
        if not self.stopping.is_set():
            await end
        self.effects += [(message.key, message.value) for message in messages]

    @contextlib.asynccontextmanager
    async def running(self):
        await self.bus.produce([Outgoing("t", key, value, []) for key, value in self.sent])
        running = asyncio.create_task(self.intake.run())
        try:
            yield running
        finally:
            self.stopping.set()
            for one in self.begun:
                if not one.done():
                    one.set_result(None)
            await asyncio.wait_for(asyncio.gather(running, return_exceptions=True), 20)

    async def read_on(self):
        """Until all is read, or the partitions are paused, and every batch that may begin has begun."""
        before = None
        async with asyncio.timeout(20):
            while before != (before := (len(self.begun), self.in_hand)) or not self.is_read:  # noqa: ASYNC110
                await asyncio.sleep(0.002 if before else 0)

    @property
    def in_hand(self):
        return self.intake.records + self.intake.parked

    @property
    def is_read(self):
        consumer = self.intake._consumer
        if consumer is None:
            return False
        ends = {at: len(log) for at, log in self.bus._logs.items()}
        return bool(consumer._paused) or all(consumer._positions[at] == end for at, end in ends.items())

    async def end_one(self):
        await self.read_on()
        next(one for one in self.begun if not one.done()).set_result(None)
        await asyncio.sleep(0)

    def done(self, project):
        return sum(key.startswith(project + b"/") for key, _ in self.effects)


def messages(noisy, quiet, *, spread):
    """Keys and values: `noisy` of one project, `quiet` of another, evenly among them or all behind them."""
    out = [(b"noisy/%d" % (n % 500), b"n%d" % n) for n in range(noisy)]
    more = [(b"quiet/%d" % (n % 20), b"q%d" % n) for n in range(quiet)]
    if not spread:
        return out + more
    step = noisy // quiet
    return [one for n in range(quiet) for one in (*out[n * step : (n + 1) * step], more[n])]


async def noisy_done_when_quiet_is(stage, quiet):
    async with stage.running():
        while stage.done(b"quiet") < quiet:
            await stage.end_one()
        return stage.done(b"noisy")


def bound(quiet):
    """docs/DESIGN.md: what is at work of one project, once more for each batch of the other, and before its first."""
    batches = -(-quiet // POLL) + 1  # What comes first begins at once, and may be a batch of its own.
    return intake.BATCHES_MAX * POLL * (batches + 1)


@pytest.mark.parametrize(
    ("partitions", "spread"), [(1, True), (1, False), (4, False)], ids=["spread", "behind", "4 partitions"]
)
async def test_one_project_at_100_times_delays_another_by_a_few_batches(partitions, spread, monkeypatch):
    monkeypatch.setattr(intake, "FOLLOW_SECONDS", 1000)
    sent = messages(10_000, 100, spread=spread)
    done = await noisy_done_when_quiet_is(Stage(partitions=partitions, sent=sent), 100)
    assert done <= bound(100) == 900


@pytest.mark.parametrize("fault", ["the order of the log", "nothing is parked"])
async def test_with_the_fairness_taken_out_the_other_waits_behind_nearly_everything(fault, monkeypatch):
    monkeypatch.setattr(intake, "FOLLOW_SECONDS", 1000)
    settings = {}
    if fault == "nothing is parked":
        settings["parked_records_max"] = 0
    else:
        monkeypatch.setattr(offsets, "project_of", lambda message: "")
    stage = Stage(sent=messages(3_000, 30, spread=False), **settings)
    assert await noisy_done_when_quiet_is(stage, 30) >= 1_900 > 2 * bound(30)


async def test_past_what_may_be_parked_the_other_waits_for_that_much_less(monkeypatch):
    """Then the partitions are paused: the stated limit of the promise."""
    monkeypatch.setattr(intake, "FOLLOW_SECONDS", 1000)
    stage = Stage(sent=messages(4_000, 40, spread=False), parked_records_max=1_000)
    async with stage.running():
        most = 0
        while stage.done(b"quiet") < 40:
            await stage.end_one()
            most = max(most, stage.intake.parked)
        assert most <= 1_000 + POLL
        # Reading goes on at half of it; the rest of what is then in hand is not waited for.
        assert 4_000 - 1_000 - stage.settings.queue_records_max <= stage.done(b"noisy")
        assert stage.done(b"noisy") <= 4_000 - 500 + bound(40)


async def test_what_is_parked_takes_no_memory_and_is_worked_once_and_in_order():
    sent = [(key, value + b"." * 1000) for key, value in messages(3_000, 30, spread=True)]
    stage = Stage(partitions=3, sent=sent, queue_records_max=300, queue_bytes_max=1024 * 1024)
    async with stage.running():
        await stage.read_on()
        assert stage.intake.parked > 2_500 and stage.intake.records <= 300 + len(stage.begun) * POLL
        assert sum((await stage.bus.lag(group="g", topic="t")).values()) == 3_030
        while len(stage.effects) < 3_030:
            await stage.end_one()
            assert stage.intake.size <= 1024 * 1024
    assert sorted(stage.effects) == sorted(sent) and stage.in_hand == 0
    for key in {key for key, _ in sent}:
        assert [one for one in stage.effects if one[0] == key] == [one for one in sent if one[0] == key]
    assert sum((await stage.bus.lag(group="g", topic="t")).values()) == 0


async def test_a_worker_that_dies_with_messages_parked_loses_none_and_one_alone_has_the_whole_stage(
    monkeypatch,
):
    monkeypatch.setattr(intake, "FOLLOW_SECONDS", 0)
    sent = messages(1_500, 15, spread=True)
    stage = Stage(partitions=2, sent=sent, queue_records_max=200)
    running = asyncio.create_task(stage.intake.run())
    await stage.bus.produce([Outgoing("t", key, value, []) for key, value in sent])
    for _ in range(6):
        await stage.end_one()
    # A project alone may have all of its batches at the same time.
    assert sum(not one.done() for one in stage.begun) >= intake.BATCHES_MAX and stage.intake.parked
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    first, stage.effects = list(stage.effects), []
    committed = await stage.bus.committed(group="g", topic="t")
    there = [message async for message in stage.bus.read("t")]
    for message in there:
        if message.offset < committed[message.partition]:
            assert (message.key, message.value) in first
    stage.sent, stage.begun = [], []
    stage.new_intake()
    async with stage.running():
        while sum((await stage.bus.lag(group="g", topic="t")).values()):
            if any(not one.done() for one in stage.begun):
                await stage.end_one()
            await asyncio.sleep(0)
    assert set(first) | set(stage.effects) == set(sent)
    # What comes again is what the mark had not passed, and no more.
    assert Counter(stage.effects).most_common(1)[0][1] == 1


async def test_a_message_that_retention_took_while_it_was_parked_is_told_and_holds_up_nobody():
    stage = Stage(sent=messages(500, 5, spread=True), queue_records_max=50)
    real = stage.bus.reread

    async def reread(topic, wanted):
        return [one for one in await real(topic, wanted) if one.offset >= 300]

    stage.bus.reread = reread
    async with stage.running():
        while sum((await stage.bus.lag(group="g", topic="t")).values()):
            if any(not one.done() for one in stage.begun):
                await stage.end_one()
            await asyncio.sleep(0)
    kept = {value for _, value in stage.effects}
    assert {value for _, value in stage.sent[300:]} <= kept and stage.in_hand == 0 and len(kept) < 505


async def test_a_bus_that_is_away_when_parked_messages_are_read_again_is_waited_for():
    stage = Stage(sent=messages(400, 4, spread=True), queue_records_max=50)
    real, away = stage.bus.reread, [errors.BusUnavailable("away")] * 5

    async def reread(topic, wanted):
        if away:
            raise away.pop()
        return await real(topic, wanted)

    stage.bus.reread = reread
    async with stage.running():
        while sum((await stage.bus.lag(group="g", topic="t")).values()):
            if any(not one.done() for one in stage.begun):
                await stage.end_one()
            await asyncio.sleep(0.001)
    assert not away and sorted(stage.effects) == sorted(stage.sent)
    assert stage.status.state == progress.RUNNING


async def test_a_project_with_nothing_at_work_never_waits_for_anothers_batch():
    """Batches that take for ever, as an archive of many gigabytes would."""
    stage = Stage(sent=messages(1_000, 1, spread=False), lanes=2)
    async with stage.running():
        await stage.read_on()
        slow = list(stage.begun)
        assert len(slow) == intake.BATCHES_MAX + 1
        slow[-1].set_result(None)
        await stage.read_on()
        assert stage.done(b"quiet") == 1 and stage.done(b"noisy") == 0


# --- memories and models ----------------------------------------------------------------------------------


class Memories:
    """The memories of a stage, of which each pass ends when the test says so."""

    def __init__(self, due):
        self.due, self.stopping = due, asyncio.Event()
        self.status = progress.StageStatus()
        self.passes, self.ends, self.meet = [], [], {}
        self.stage = memories.Memories(
            retry.Retries("test", self.status, seconds_max=0.05, stopping=self.stopping),
            marked=self.marked,
            work=self.work,
            stopping=self.stopping,
            interval_seconds=1000,
        )

    async def marked(self):
        return self.due

    async def work(self, project, memory):
        one, end = (project, memory), asyncio.get_running_loop().create_future()
        self.passes.append(one)
        self.ends.append((one, end))
        await end
        if isinstance(what := self.meet.get(one), BaseException):
            raise what
        return bool(what)

    @property
    def at_work(self):
        return [one for one, end in self.ends if not end.done()]

    async def end(self, one=None):
        """End the pass of `one`, or the first that began."""
        next(end for name, end in self.ends if not end.done() and one in (None, name)).set_result(None)
        await self.settle()

    async def settle(self):
        for _ in range(20):
            await asyncio.sleep(0)

    @contextlib.asynccontextmanager
    async def running(self):
        running = asyncio.create_task(self.stage.run())
        await self.settle()
        try:
            yield
        finally:
            self.stopping.set()
            for _, end in self.ends:
                if not end.done():
                    end.set_result(None)
            await asyncio.wait_for(running, 10)


async def test_one_projects_memories_leave_places_for_anothers_and_it_is_served_next():
    world = Memories([("a", f"m{n:02d}") for n in range(50)])
    async with world.running():
        assert world.at_work == [("a", f"m{n:02d}") for n in range(memories.MEMORIES_MAX)]
        world.stage.ring([("z", "m"), ("y", "m"), ("x", "m")])
        await world.settle()
        # Those of other projects begin at once; of three, two find a place.
        assert len(world.at_work) == memories.PLACES_MAX == 6
        assert {project for project, _ in world.at_work[memories.MEMORIES_MAX :]} < {"x", "y", "z"}
        await world.end(("a", "m00"))
        assert {project for project, _ in world.at_work} == {"a", "x", "y", "z"}
        while world.at_work:
            await world.end()
        assert sorted(world.passes) == sorted([*world.due, ("x", "m"), ("y", "m"), ("z", "m")])


async def test_of_two_projects_with_many_memories_neither_has_more_than_its_share():
    world = Memories([("a", f"m{n:02d}") for n in range(40)] + [("b", f"m{n:02d}") for n in range(10)])
    async with world.running():
        while (
            any(one[0] == "b" for one in world.due if one not in world.passes)
            or ("b", "m09") in world.at_work
        ):
            await world.end()
            held = Counter(project for project, _ in world.at_work)
            assert abs(held["a"] - held["b"]) <= 2 or ("b", "m09") in world.passes
        begun = Counter(project for project, _ in world.passes)
        assert begun["a"] <= begun["b"] + memories.PLACES_MAX


async def test_a_memory_that_always_has_more_to_do_stands_in_line_again_after_each_pass():
    world = Memories([("a", "busy"), *(("a", f"m{n}") for n in range(9))])
    world.meet[("a", "busy")] = True
    async with world.running():
        for _ in range(30):
            await world.end()
        assert set(world.passes) == set(world.due) and world.passes.count(("a", "busy")) > 3


@pytest.mark.parametrize("problem", [errors.Blocked("no"), errors.StoreUnavailable("503"), OSError("disk")])
async def test_memories_that_fail_hold_no_place_while_they_wait_and_are_tried_again(problem):
    bad = [(project, f"m{n}") for project in ("a", "b", "c") for n in range(3)]
    world = Memories(bad)
    world.meet = dict.fromkeys(bad, problem)
    async with world.running():
        for _ in bad:
            await world.end()
        assert not set(bad) - set(world.passes) and world.status.state != progress.RUNNING
        # Those that are tried again have half of the places, whatever they wait for.
        async with asyncio.timeout(10):
            while len(world.at_work) < memories.PLACES_MAX // 2:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        assert len(world.at_work) == memories.PLACES_MAX // 2
        world.stage.ring([("good", "m1"), ("good", "m2")])
        await world.settle()
        assert world.at_work[-2:] == [("good", "m1"), ("good", "m2")]
        world.meet.clear()
        async with asyncio.timeout(10):
            while world.status.state != progress.RUNNING:
                if world.at_work:
                    await world.end()
                await asyncio.sleep(0.005)


async def test_a_gate_gives_its_next_place_to_the_project_that_has_the_fewest():
    gate, order, held = turns.Gate(4), [], {}

    async def call(project, number):
        async with gate.place(project):
            order.append((project, number))
            held[project, number] = asyncio.get_running_loop().create_future()
            await held[project, number]

    calls = [asyncio.create_task(call("noisy", n)) for n in range(100)]
    await asyncio.sleep(0)
    assert len(order) == 4  # Alone it has all.
    calls += [asyncio.create_task(call("quiet", n)) for n in range(3)]
    await asyncio.sleep(0)
    for n in range(2):
        held["noisy", n].set_result(None)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert order[4:] == [("quiet", 0), ("quiet", 1)]
    held["quiet", 0].set_result(None)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert order[6:] == [("quiet", 2)]
    for task in calls:
        task.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert gate._free == 4 and not gate._waiting and not gate._turns._held


@pytest.mark.parametrize("seed", range(10))
async def test_a_gate_that_calls_are_taken_back_from_at_any_time_loses_no_place(seed):
    rng, most = random.Random(seed), 0
    gate, inside = turns.Gate(3), Counter()

    async def call(project):
        nonlocal most
        async with gate.place(project):
            inside[project] += 1
            most = max(most, inside.total())
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            inside[project] -= 1

    calls = []
    for _ in range(200):
        calls.append(asyncio.create_task(call(rng.choice("aaab"))))
        if rng.random() < 0.4:
            rng.choice(calls).cancel()
        if rng.random() < 0.5:
            await asyncio.sleep(0)
    await asyncio.gather(*calls, return_exceptions=True)
    assert gate._free == 3 and not gate._waiting and not gate._turns._held
    assert most <= 3 + sum(one.cancelled() for one in calls)


def test_turns_of_projects_that_are_long_gone_are_forgotten(monkeypatch):
    monkeypatch.setattr(turns, "REMEMBERED_MAX", 10)
    line = turns.Turns()
    for n in range(100):
        line.begin(f"p{n}")
        line.end(f"p{n}")
    assert len(line._last) == 10 and not line._held
    assert line.next(["p99", "p98", "new"]) == "new"
