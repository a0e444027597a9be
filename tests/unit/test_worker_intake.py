"""The intake on the shipped fake. Goal: polls never stop, memory is bounded, a key keeps its order, a rebalance ends in
its time, and nothing is committed that has no effect.

Method: a stage made of one function, which a test lets hang, fail or refuse; then random worlds in which faults,
rebalances and stops come at random, ended in peace and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter

import pytest
import structlog

from runlore import errors
from runlore.bus.port import Outgoing
from runlore.settings import Settings
from runlore.testing import buses
from runlore.worker import intake, progress, retry

FAST = {"poll_timeout_seconds": 0.02, "retry_seconds_max": 0.05, "rebalance_seconds_max": 0.2}


class Stage:
    """A bus, an intake on it, and a function as its stage: `meet(messages)` says what happens."""

    def __init__(self, **settings):
        self.bus = buses.MemoryBus(partitions=4)
        self.settings = Settings(**{**FAST, **settings})
        self.stopping = asyncio.Event()
        self.status = progress.StageStatus()
        self.effects, self.batches, self.polls = [], [], 0
        self.held = {}
        self.meet = None
        self.most = (0, 0)
        self.new_intake()

    def new_intake(self, kind=intake.Intake, **more):
        self.retries = retry.Retries(
            "test", self.status, seconds_max=self.settings.retry_seconds_max, stopping=self.stopping
        )
        self.intake = kind(
            self.bus,
            self.settings,
            self.retries,
            group="g",
            topic="t",
            process=self.process,
            stopping=self.stopping,
            **more,
        )

    async def process(self, messages):
        self.most = max(self.most[0], self.intake.records), max(self.most[1], self.intake.size)
        self.batches.append([message.value for message in messages])
        keys = {message.key for message in messages}
        assert not keys & set(self.held), "a key is in two batches"
        self.held |= dict.fromkeys(keys)
        try:
            if self.meet is not None:
                await self.meet(messages)
            self.effects += [message.value for message in messages]
        finally:
            for key in keys:
                del self.held[key]

    async def send(self, *pairs, size=0):
        await self.bus.produce([Outgoing("t", k, v + b"." * size, []) for k, v in pairs])

    async def lag(self):
        return sum((await self.bus.lag(group="g", topic="t")).values())

    @property
    def consumer(self):
        return self.intake._consumer

    @contextlib.asynccontextmanager
    async def running(self):
        """The intake runs meanwhile, and ends in peace."""
        running = asyncio.create_task(self.intake.run())
        try:
            await until(lambda: self.consumer is not None or running.done())
            yield running
        finally:
            self.stopping.set()
            await asyncio.wait_for(asyncio.gather(running, return_exceptions=True), 10)


async def until(condition, seconds=10):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def none_waits(stage):
    async with asyncio.timeout(10):
        while await stage.lag():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def pairs(count, keys=5):
    return [(b"k%d" % (n % keys), b"%d" % n) for n in range(count)]


async def test_a_slow_key_stalls_no_other_and_its_partition_is_committed_only_behind_it():
    stage = Stage(poll_records_max=10)
    go = asyncio.Event()

    async def meet(messages):
        if any(message.key == b"slow" for message in messages):
            await go.wait()

    stage.meet = meet
    await stage.send((b"slow", b"s1"), *pairs(100), (b"slow", b"s2"))
    async with stage.running():
        # The slow one's first batch holds the keys that came with it; all others end.
        await until(lambda: len(stage.effects) >= 60)
        held = [value for batch in stage.batches for value in batch if value not in stage.effects]
        assert b"s1" in held and await stage.lag() > 0
        go.set()
        await none_waits(stage)
    assert sorted(stage.effects) == sorted([b"s1", b"s2", *(value for _, value in pairs(100))])
    assert stage.effects.index(b"s1") < stage.effects.index(b"s2")


async def test_a_backlog_is_worked_in_large_batches_and_a_single_message_at_once(monkeypatch):
    monkeypatch.setattr(intake, "FOLLOW_SECONDS", 1000)
    stage = Stage(poll_records_max=50)

    async def meet(messages):
        await asyncio.sleep(0.01)

    stage.meet = meet
    await stage.send(*pairs(500, keys=100))
    async with stage.running():
        await none_waits(stage)
        assert len(stage.batches) <= 15, [len(batch) for batch in stage.batches]
        await stage.send((b"one", b"more"))
        await until(lambda: b"more" in stage.effects)


async def test_what_trickles_in_while_a_batch_is_at_work_is_worked_together(monkeypatch):
    monkeypatch.setattr(intake, "FOLLOW_SECONDS", 1000)
    stage = Stage()
    go = asyncio.Event()

    async def meet(messages):
        await go.wait()

    stage.meet = meet
    async with stage.running():
        await stage.send((b"first", b"f"))
        await until(lambda: stage.batches)
        for number, one in enumerate(pairs(30, keys=30), 2):
            await stage.send(one)
            await until(lambda number=number: stage.intake.records == number)
        assert len(stage.batches) == 1
        go.set()
        await none_waits(stage)
    assert len(stage.batches) == 2, stage.batches


async def test_a_small_batch_begins_beside_a_slow_one_after_a_moment(monkeypatch):
    monkeypatch.setattr(intake, "FOLLOW_SECONDS", 0.05)
    stage = Stage(poll_timeout_seconds=30)  # No poll comes back meanwhile.
    go = asyncio.Event()

    async def meet(messages):
        if messages[0].key == b"slow":
            await go.wait()

    stage.meet = meet
    async with stage.running():
        await stage.send((b"slow", b"s"))
        await until(lambda: stage.batches)
        await stage.send((b"fast", b"f"))
        await until(lambda: b"f" in stage.effects)
        go.set()


@pytest.mark.parametrize("limit", [{"queue_records_max": 20}, {"queue_bytes_max": 1024 * 1024}])
async def test_a_stage_that_hangs_fills_its_queue_to_its_limit_and_polls_go_on(limit):
    stage = Stage(poll_records_max=5, parked_records_max=0, **limit)
    go = asyncio.Event()

    async def meet(messages):
        await go.wait()

    stage.meet = meet
    await stage.send(*pairs(200, keys=50), size=50_000)
    async with stage.running():
        await until(lambda: stage.consumer._paused)
        before = stage.intake.polled_at
        await until(lambda: stage.intake.polled_at > before + 0.1)
        assert stage.consumer._paused == stage.consumer.assignment()
        assert stage.intake.records <= 25 + 4 * 5 and stage.intake.size <= 1024 * 1024 + 5 * 50_010
        # Also after a rebalance, which forgets that they are paused.
        await stage.consumer.rebalance(stage.consumer.assignment())
        held = stage.intake.records
        await until(lambda: stage.consumer._paused or stage.intake.records > 2 * held + 20)
        assert stage.intake.records <= 3 * 25 and stage.intake.size <= 2 * (1024 * 1024 + 5 * 50_010)
        go.set()
        await none_waits(stage)
        assert not stage.consumer._paused
    assert set(stage.effects) == {value + b"." * 50_000 for _, value in pairs(200, keys=50)}


class ForgetsToPauseAgain(intake.Intake):
    def _pause_again(self, partitions):
        pass


class Held(errors.Blocked):
    of_stage = True


@pytest.mark.parametrize(
    "refusal", [errors.Blocked("the key may not write"), Held("paused")], ids=["project", "stage"]
)
async def test_a_blocked_stage_polls_keeps_its_place_begins_nothing_more_and_says_so_once(refusal):
    stage = Stage(poll_records_max=50)
    refused = refusal

    async def meet(messages):
        if refused is not None:
            raise refused

    stage.meet = meet
    await stage.send(*pairs(10))
    with structlog.testing.capture_logs() as lines:
        async with stage.running():
            await until(lambda: stage.status.state == progress.BLOCKED)
            before, tries = stage.intake.polled_at, stage.status.tries
            await stage.send(*pairs(500))
            await until(lambda: stage.status.tries > tries + 2 and stage.intake.polled_at > before)
            assert {len(batch) for batch in stage.batches} == {10}
            assert str(refusal) in stage.status.cause and await stage.lag() == 510
            # Others' messages may lie behind, unless it is the stage itself that waits.
            is_held = refusal.of_stage
            assert (stage.consumer._paused == stage.consumer.assignment()) == is_held
            await until(lambda: stage.intake.records + stage.intake.parked == (10 if is_held else 510))
            refused = None
            await none_waits(stage)
            assert stage.status.state == progress.RUNNING and not stage.consumer._paused
    assert [(line["event"], line.get("state")) for line in lines] == [
        ("stage waits", "blocked"),
        ("stage goes on", None),
    ]
    assert len(stage.effects) == 510


async def test_while_one_batch_is_blocked_no_other_of_its_project_begins():
    stage = Stage(poll_records_max=2)
    refused = True

    async def meet(messages):
        if refused and messages[0].key == b"bad":
            raise errors.Blocked("the key may not write")
        await asyncio.sleep(0.005)

    stage.meet = meet
    await stage.send(*pairs(4, keys=4), (b"bad", b"b"), *((b"o%d" % n, b"o%d" % n) for n in range(50)))
    async with stage.running():
        await until(lambda: stage.status.state == progress.BLOCKED and len(stage.intake._waits()) == 1)
        await until(lambda: not stage.held)
        before, tries = len(stage.effects), stage.status.tries
        await until(lambda: stage.status.tries > tries + 3)
        assert len(stage.effects) == before < 50
        refused = False
        await none_waits(stage)


async def test_pauses_are_set_again_after_a_rebalance_and_a_fault_in_that_is_seen():
    async def paused_after_rebalance(kind):
        stage = Stage(queue_records_max=5, poll_records_max=5, parked_records_max=0)
        stage.new_intake(kind)
        go = asyncio.Event()

        async def meet(messages):
            await go.wait()

        stage.meet = meet
        await stage.send(*pairs(100, keys=100))
        async with stage.running():
            await until(lambda: stage.consumer._paused)
            # What is in hand outlives the rebalance, so the queue is as full as before.
            await stage.consumer.rebalance(stage.consumer.assignment())
            found = stage.consumer._paused == stage.consumer.assignment()
            go.set()
        return found

    assert await paused_after_rebalance(intake.Intake)
    assert not await paused_after_rebalance(ForgetsToPauseAgain)


@pytest.mark.parametrize(
    "problem",
    [errors.StoreUnavailable("503"), errors.Blocked("no"), errors.Corrupt("a torn head"), KeyError("a bug")],
    ids=lambda problem: type(problem).__name__,
)
async def test_what_is_wrong_with_one_project_holds_up_no_other_and_is_told(problem):
    """Whatever it is: a store's path that fails, a missing right, damage, a bug that its data brings out."""
    stage = Stage(poll_records_max=2)
    problems = [problem]

    async def meet(messages):
        if problems and messages[0].key.startswith(b"bad/"):
            raise problems[0]

    stage.meet = meet
    with structlog.testing.capture_logs():
        async with stage.running() as running:
            await stage.send(*((b"bad/%d" % n, b"b%d" % n) for n in range(30)))
            await until(lambda: stage.status.projects)
            for n in range(20):
                await stage.send((b"good/%d" % n, b"g%d" % n))
                await until(lambda n=n: b"g%d" % n in stage.effects)
            assert len(stage.effects) == 20 and not running.done()
            why = stage.status.projects
            assert (
                list(why) == ["bad"] and str(problem) in why["bad"] and stage.status.state != progress.RUNNING
            )
            problems.clear()
            await none_waits(stage)
            assert stage.status.projects == {} and stage.status.state == progress.RUNNING
    assert len(stage.effects) == 50


@pytest.mark.parametrize("kind", [{"mixed": True}, {"whole": True}], ids=["mixed", "whole"])
@pytest.mark.parametrize("problem", [errors.Corrupt("a torn head"), KeyError("a bug")], ids=["fatal", "bug"])
async def test_where_projects_are_not_apart_what_can_not_pass_ends_the_stage_and_commits_nothing(
    kind, problem
):
    stage = Stage()
    stage.new_intake(**kind)

    async def meet(messages):
        raise problem

    stage.meet = meet
    await stage.send(*((b"p%d/r" % n, b"%d" % n) for n in range(10)))
    with pytest.raises(type(problem)):
        await asyncio.wait_for(stage.intake.run(), 10)
    assert await stage.lag() == 10 and stage.bus._consumers == set() and stage.intake.records == 10
    assert stage.status.state == (
        progress.FAILED if isinstance(problem, errors.Corrupt) else progress.RUNNING
    )


async def test_where_projects_are_mixed_a_batch_holds_a_key_of_each_in_turn():
    stage = Stage(poll_records_max=4)
    stage.new_intake(mixed=True)
    go = asyncio.Event()

    async def meet(messages):
        await go.wait()

    stage.meet = meet
    await stage.send((b"noisy/0", b"n"), *((b"noisy/%d" % n, b"n") for n in range(1, 40)))
    async with stage.running():
        await stage.send((b"a/0", b"a"), (b"b/0", b"b"))
        await until(lambda: stage.intake.records == 42)
        go.set()
        await none_waits(stage)
    assert {b"a", b"b", b"n"} <= set(stage.batches[1]) and max(map(len, stage.batches)) == 4


async def test_many_projects_that_fail_leave_room_for_one_that_does_not():
    """A try takes as long as a time-out: those that are tried again may fill half of the room at most."""
    stage = Stage(poll_records_max=5, lanes=1)
    go, tried = asyncio.Event(), Counter()

    async def meet(messages):
        if messages[0].key.startswith(b"bad"):
            tried[messages[0].key] += 1
            if tried[messages[0].key] > 1:
                await go.wait()
            raise errors.StoreUnavailable("503")

    stage.meet = meet
    await stage.send(*((b"bad%d/r" % n, b"b%d" % n) for n in range(12)))
    async with stage.running():
        await until(lambda: len(tried) == 12 and len(stage.held) == 2)
        assert sum(tried.values()) == 12 + 2
        await stage.send(*((b"good/%d" % n, b"g%d" % n) for n in range(20)))
        await until(lambda: len(stage.effects) == 20)
        assert sum(tried.values()) == 12 + 2
        tried.clear()
        stage.meet = None
        go.set()
        await none_waits(stage)


async def test_a_batch_that_is_tried_again_keeps_its_keys_and_others_go_on():
    stage = Stage(poll_records_max=4, retry_seconds_max=0.02)
    fails = 12

    async def meet(messages):
        nonlocal fails
        if any(message.key == b"bad" for message in messages) and fails:
            fails -= 1
            raise errors.StoreUnavailable("503")

    stage.meet = meet
    await stage.send((b"bad", b"b1"), (b"bad", b"b2"))
    async with stage.running():
        await until(lambda: fails < 10)
        await stage.send(*pairs(40), (b"bad", b"b3"))
        await until(lambda: len(stage.effects) >= 40)
        await none_waits(stage)
    mine = [value for value in stage.effects if value.startswith(b"b")]
    assert mine == [b"b1", b"b2", b"b3"] and stage.status.state == progress.RUNNING


async def test_a_rebalance_waits_for_work_in_hand_and_commits_it():
    stage = Stage(rebalance_seconds_max=5)
    go = asyncio.Event()

    async def meet(messages):
        await go.wait()

    stage.meet = meet
    await stage.send(*pairs(10))
    async with stage.running():
        await until(lambda: stage.batches)
        rebalancing = asyncio.create_task(stage.consumer.rebalance([]))
        await asyncio.sleep(0.05)
        assert not rebalancing.done()
        go.set()
        await rebalancing
        assert await stage.lag() == 0 and stage.intake.records == 0
        assert stage.consumer.assignment() == frozenset()


async def test_a_rebalance_does_not_wait_longer_than_its_time_nor_for_a_retry():
    for hangs in (True, False):
        stage = Stage(rebalance_seconds_max=0.2 if hangs else 20, retry_seconds_max=30)
        go = asyncio.Event()

        async def meet(messages, hangs=hangs, go=go):
            if not hangs:
                raise errors.Blocked("no")
            await go.wait()

        stage.meet = meet
        await stage.send(*pairs(10))
        async with stage.running():
            await until(lambda stage=stage: stage.batches)
            await asyncio.sleep(0.02)
            begin = asyncio.get_running_loop().time()
            await stage.consumer.rebalance([])
            assert asyncio.get_running_loop().time() - begin < 5
            assert await stage.lag() == 10
            # What ends late counts for nothing.
            go.set()
            await until(lambda stage=stage: stage.intake.records == 0)
            assert await stage.lag() == 10
        assert await stage.lag() == 10


async def test_a_commit_that_fails_is_tried_again_and_loses_nothing():
    stage = Stage()
    async with stage.running():
        real, failed = stage.consumer.commit, 0

        async def commit(offsets):
            nonlocal failed
            failed += 1
            if failed < 4:
                raise errors.BusUnavailable("away")
            await real(offsets)

        stage.consumer.commit = commit
        await stage.send(*pairs(10))
        await none_waits(stage)
    assert failed >= 4 and len(stage.effects) == 10


async def test_a_poll_that_fails_is_tried_again_and_the_cause_is_shown():
    stage = Stage()
    consumer_of = stage.bus.consumer

    async def consumer(**more):
        made = await consumer_of(**more)
        real = made.poll
        failures = iter([errors.BusUnavailable("away")] * 4)

        async def poll(**more):
            problem = next(failures, None)
            if problem:
                raise problem
            return await real(**more)

        made.poll = poll
        return made

    stage.bus.consumer = consumer
    await stage.send(*pairs(10))
    async with stage.running():
        await until(lambda: stage.status.state == progress.WAITING)
        assert "bus_unavailable" in stage.status.cause
        await none_waits(stage)
        assert stage.status.state == progress.RUNNING


async def test_a_client_that_is_beyond_help_is_given_up_for_another(monkeypatch):
    monkeypatch.setattr(intake, "REJOIN_SECONDS", 0.2)
    stage = Stage(rebalance_seconds_max=0.05)
    await stage.send(*pairs(20))
    go = asyncio.Event()

    async def meet(messages):
        await go.wait()

    stage.meet = meet
    async with stage.running():
        await until(lambda: stage.batches)
        first = stage.consumer

        async def poll(**more):
            raise errors.BusUnavailable("the member is not known")

        first.poll = poll
        await until(lambda: stage.consumer not in (None, first))
        assert first._closed and stage.bus._consumers == {stage.consumer}
        # What it had in hand counts for nothing, and its keys wait until it ends.
        assert await stage.lag() == 20
        go.set()
        await none_waits(stage)
    assert Counter(stage.effects) == {value: 2 for _, value in pairs(20)}


async def test_joining_is_tried_until_the_bus_is_there():
    stage = Stage()
    real, tries = stage.bus.consumer, 0

    async def consumer(**more):
        nonlocal tries
        tries += 1
        if tries < 4:
            raise errors.Blocked("topic t is not there")
        return await real(**more)

    stage.bus.consumer = consumer
    await stage.send(*pairs(3))
    async with stage.running():
        await none_waits(stage)
    assert tries == 4


async def test_the_end_finishes_what_is_in_hand_commits_it_and_leaves():
    stage = Stage(poll_records_max=4)
    go = asyncio.Event()

    async def meet(messages):
        await go.wait()

    stage.meet = meet
    await stage.send(*pairs(100, keys=50))
    running = asyncio.create_task(stage.intake.run())
    await until(lambda: len(stage.batches) == intake.BATCHES_MAX)
    stage.stopping.set()
    await asyncio.sleep(0.05)
    assert not running.done()
    go.set()
    await asyncio.wait_for(running, 5)
    # Nothing new was begun, and what was done is committed as far as it is contiguous.
    assert len(stage.effects) == 12 and stage.bus._consumers == set()
    before = await stage.lag()
    stage.stopping.clear()
    stage.new_intake()
    async with stage.running():
        await none_waits(stage)
    assert len(stage.effects) - 12 == before and set(stage.effects) == {value for _, value in pairs(100)}


async def test_what_ends_last_is_committed_before_the_stage_leaves(monkeypatch):
    monkeypatch.setattr(intake, "COMMIT_SECONDS", 100)
    stage = Stage()
    go = asyncio.Event()

    async def meet(messages):
        await go.wait()

    stage.meet = meet
    await stage.send(*pairs(10))
    async with stage.running():
        await until(lambda: stage.batches)
        stage.stopping.set()
        await asyncio.sleep(0.02)
        go.set()
    assert await stage.lag() == 0


async def test_an_end_that_is_cut_short_commits_only_what_is_done():
    stage = Stage(poll_records_max=2)

    async def meet(messages):
        if len(stage.effects) >= 4:
            await asyncio.sleep(3600)

    stage.meet = meet
    await stage.send(*pairs(50, keys=50))
    running = asyncio.create_task(stage.intake.run())
    await until(lambda: len(stage.intake._running) == intake.BATCHES_MAX and len(stage.effects) >= 4)
    stage.stopping.set()
    await asyncio.sleep(0.02)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 5)
    assert await stage.lag() >= 50 - len(stage.effects) and stage.bus._consumers == set()


@pytest.mark.parametrize("seed", range(12))
async def test_random_faults_rebalances_and_restarts_lose_nothing_and_keep_keys_in_order(seed):
    rng = random.Random(seed)
    stage = Stage(
        poll_records_max=rng.choice([1, 3, 10]),
        queue_records_max=rng.choice([5, 30]),
        parked_records_max=rng.choice([0, 4, 1000]),
        retry_seconds_max=0.01,
        rebalance_seconds_max=0.03,
    )

    async def meet(messages):
        await asyncio.sleep(rng.random() * 0.01)
        if rng.random() < 0.2:
            raise rng.choice(
                [errors.StoreUnavailable("503"), errors.Blocked("no"), errors.OutcomeUnknown("?")]
            )
        if rng.random() < 0.02:
            await asyncio.sleep(0.1)

    stage.meet = meet
    sent = [(b"p%d/k%d" % (int(rng.random() ** 3 * 4), rng.randrange(8)), b"%d" % n) for n in range(150)]
    for _ in range(3):
        await stage.send(*sent[:50])
        sent = sent[50:]
        async with stage.running():
            everything = stage.consumer.assignment()
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(rng.random() * 0.05)
                await stage.consumer.rebalance(rng.sample(sorted(everything), rng.randrange(5)))
                await check(stage)
            await stage.consumer.rebalance(everything)
            if rng.random() < 0.5:
                await none_waits(stage)
        await check(stage)
        stage.stopping.clear()
        stage.new_intake()
    async with stage.running():
        await none_waits(stage)
    await check(stage)
    found = [message async for message in stage.bus.read("t")]
    assert {message.value for message in found} == set(stage.effects) and len(found) == 150


async def check(stage):
    """Nothing is committed without its effect; the first effects of a key are in order."""
    committed = await stage.bus.committed(group="g", topic="t")
    firsts = {value: number for number, value in reversed(list(enumerate(stage.effects)))}
    by_key = {}
    async for message in stage.bus.read("t"):
        if message.offset < committed[message.partition]:
            assert message.value in firsts
        by_key.setdefault(message.key, []).append(firsts.get(message.value, 1 << 60))
    assert all(numbers == sorted(numbers) for numbers in by_key.values())
