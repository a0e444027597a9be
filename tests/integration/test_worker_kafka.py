"""The intake and the worker on a real broker. Goal: what a producer was told is there is worked exactly as the embedded
bus would: nothing lost, keys in order, no membership lost to slow work, no memory without a bound.

Method: members that join while batches are in hand, a broker that is stopped, killed and started, partitions that are
added, replies that are cut off, a stage slower than the group's patience.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter

import pytest

import brokers
import made
from runlore import errors
from runlore.bus import kafka, kafka_consumer
from runlore.bus.port import Outgoing
from runlore.consumers import dead, record
from runlore.events import envelope, models
from runlore.lookup import index as lookup_index
from runlore.settings import Settings
from runlore.testing import invariants, stores
from runlore.worker import intake, loop, progress, retry

FAST = {
    "poll_timeout_seconds": 0.2,
    "marks_interval_seconds": 0.2,
    "retry_seconds_max": 0.3,
    "rebalance_seconds_max": 3,
    "kafka_session_seconds": 6,
}


class Group:
    """A topic on the broker, members of a group that read it, and what they did."""

    def __init__(self, server, prefix):
        self.server, self.prefix = server, prefix
        self.buses, self.running = [], []
        self.effects = []
        self.seconds = 0.0
        self.stopping = asyncio.Event()

    def bus(self, *, servers=None, poll_interval_seconds_max=None, **more):
        settings = self.settings(servers=servers, **more)
        made_bus = kafka.KafkaBus.of(settings)
        made_bus._options["metadata_max_age_ms"] = 500
        if poll_interval_seconds_max:
            made_bus._group_options["max_poll_interval_ms"] = int(poll_interval_seconds_max * 1000)
        self.buses.append(made_bus)
        return made_bus

    def settings(self, servers=None, **more):
        return Settings(
            bus="kafka",
            kafka_servers=servers or self.server.servers,
            kafka_topic_prefix=self.prefix,
            kafka_group_prefix=self.prefix,
            **{**FAST, **more},
        )

    async def create(self, *names, **more):
        await brokers.create_topics(self.server.servers, *(self.prefix + name for name in names), **more)

    async def process(self, messages):
        await asyncio.sleep(self.seconds)
        self.effects += [(message.key, message.value) for message in messages]

    def member(self, bus, process=None, **more):
        """An intake that runs until the end of the test."""
        settings = self.settings(**more)
        retries = retry.Retries(
            "test", progress.StageStatus(), seconds_max=settings.retry_seconds_max, stopping=self.stopping
        )
        one = intake.Intake(
            bus,
            settings,
            retries,
            group="g",
            topic="t",
            process=process or self.process,
            stopping=self.stopping,
        )
        self.running.append(asyncio.create_task(one.run()))
        return one

    async def lag(self):
        return sum((await self.buses[0].lag(group="g", topic="t")).values())

    async def none_waits(self, seconds=60):
        async with asyncio.timeout(seconds):
            while await self.lag():  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc):
        self.stopping.set()
        found = await asyncio.wait_for(asyncio.gather(*self.running, return_exceptions=True), 60)
        for bus in self.buses:
            await bus.close()
        assert [one for one in found if one is not None] == []

    def check(self, sent):
        """Every message had its effect, and the first effects of a key came in order."""
        assert set(self.effects) == set(sent)
        firsts = list(dict.fromkeys(self.effects))
        for key in {key for key, _ in sent}:
            assert [one for one in firsts if one[0] == key] == [one for one in sent if one[0] == key]


NUMBERS = itertools.count()


@pytest.fixture
def group(kafka_server):
    yield Group(kafka_server, f"g{next(NUMBERS)}.")
    kafka_server.start()  # Whatever a test that failed left.


def pairs(start, count, keys=17):
    return [(b"k%d" % (n % keys), b"%d" % n) for n in range(start, start + count)]


def outgoing(sent):
    return [Outgoing("t", key, value, []) for key, value in sent]


async def until(condition, seconds=30):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_members_that_join_and_leave_while_batches_are_in_hand_lose_nothing(group):
    async with group:
        await group.create("t")
        group.seconds = 0.3
        sent = pairs(0, 600)
        first = group.bus()
        await first.produce(outgoing(sent[:300]))
        one = group.member(first, poll_records_max=20)
        await until(lambda: len(one._running) >= 2)
        two = group.member(group.bus(), poll_records_max=20)
        await until(lambda: len(two.assigned_partitions) == 4 == len(one.assigned_partitions))
        assert one.rebalances == 1 and one.assigned_partitions.isdisjoint(two.assigned_partitions)
        await first.produce(outgoing(sent[300:]))
        await until(lambda: two.records > 0)
        # The second leaves at once: what it had in hand comes again.
        group.running[1].cancel()
        await asyncio.gather(group.running.pop(1), return_exceptions=True)
        await until(lambda: len(one.assigned_partitions) == 8)
        await group.none_waits()
        group.check(sent)


async def test_a_rebalance_waits_for_the_batch_in_hand_and_nothing_is_worked_twice(group):
    async with group:
        await group.create("t")
        group.seconds = 1.0
        sent = pairs(0, 40)
        first = group.bus()
        await first.produce(outgoing(sent))
        one = group.member(first)
        await until(lambda: one._running)
        group.member(group.bus())
        await until(lambda: one.rebalances == 1)
        await group.none_waits()
        group.check(sent)
        assert max(Counter(group.effects).values()) == 1


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_what_was_acknowledged_is_consumed_though_the_broker_goes_and_comes(group, how):
    async with group:
        await group.create("t")
        bus, stop = group.bus(), asyncio.Event()
        group.member(group.bus(), poll_records_max=20)
        acknowledged, refused = [], []

        async def produce(number):
            step = 0
            while not stop.is_set():
                one = (b"p%d" % number, b"%d-%d" % (number, step))
                try:
                    await bus.produce(outgoing([one]))
                    acknowledged.append(one)
                except errors.BusUnavailable:
                    refused.append(one)  # It may be there or not: the producer sends it again, as a new one.
                step += 1
                await asyncio.sleep(0.01)

        producing = [asyncio.create_task(produce(number)) for number in range(4)]
        await until(lambda: len(group.effects) > 50)
        await asyncio.to_thread(getattr(group.server, how))
        before = len(acknowledged)
        await asyncio.sleep(1)
        await asyncio.to_thread(group.server.start)
        await until(lambda: len(acknowledged) > before + 50, 60)
        stop.set()
        await asyncio.gather(*producing)
        await group.none_waits()
        assert set(acknowledged) <= set(group.effects) <= set(acknowledged) | set(refused)
        # Idempotence: a reply that a restart swallowed is not a second message.
        found = [
            (one.key, one.value) for one in await brokers.everything(group.server.servers, f"{group.prefix}t")
        ]
        doubled = [one for one, count in Counter(found).items() if count > 1]
        assert doubled == [] and set(acknowledged) <= set(found)
        firsts = list(dict.fromkeys(group.effects))
        for number in range(4):
            steps = [int(value.split(b"-")[1]) for key, value in firsts if key == b"p%d" % number]
            assert steps == sorted(steps)


async def test_while_the_broker_is_away_calls_end_in_their_time_and_nothing_is_sent_behind_a_back(
    group, monkeypatch
):
    monkeypatch.setattr(kafka, "PRODUCE_SECONDS_MAX", 2.0)
    monkeypatch.setattr(kafka, "ASK_SECONDS_MAX", 2.0)
    monkeypatch.setattr(kafka_consumer, "ENDS_SECONDS_MAX", 2.0)
    async with group:
        await group.create("t")
        bus = group.bus()
        await bus.produce(outgoing([(b"k", b"before")]))
        consumer = await bus.consumer(group="g", topics=["t"])
        assert len(await consumer.poll(records_max=10, timeout_seconds=5)) == 1
        await asyncio.to_thread(group.server.stop)
        calls = [
            lambda: bus.produce(outgoing([(b"k", b"during")])),
            lambda: consumer.poll(records_max=10, timeout_seconds=0.1),
            lambda: bus.lag(group="g", topic="t"),
            lambda: anext(bus.read("t")),
        ]
        for call in calls:
            begin = time.monotonic()
            with pytest.raises(errors.BusUnavailable):
                await call()
            assert time.monotonic() - begin < 8
        begin = time.monotonic()
        await consumer.close()
        assert time.monotonic() - begin < 15
        await asyncio.to_thread(group.server.start)
        monkeypatch.undo()
        await bus.produce(outgoing([(b"k", b"after")]))
        await asyncio.sleep(1)
        assert [one.value async for one in bus.read("t")] == [b"before", b"after"]


class Proxy:
    """A proxy in front of the broker that can swallow what it answers, and then cut the connection."""

    def __init__(self, server):
        self.server, self.swallow, self.swallowed = server, False, 0
        self._tasks = set()

    async def __aenter__(self):
        self.listening = await asyncio.start_server(self.serve, "127.0.0.1", self.server.proxy_port)
        return self

    async def __aexit__(self, *exc):
        self.listening.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.listening.wait_closed()

    async def serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        theirs, ours = await asyncio.open_connection("127.0.0.1", self.server.behind_port)
        try:
            pumps = [
                asyncio.create_task(self.pump(reader, ours, answers=False)),
                asyncio.create_task(self.pump(theirs, writer, answers=True)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in pumps:
                one.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for one in (writer, ours):
                one.close()
                with contextlib.suppress(OSError):
                    await one.wait_closed()
            self._tasks.discard(asyncio.current_task())

    async def pump(self, reader, writer, *, answers):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if answers and self.swallow:
                    self.swallowed += 1
                    return
                writer.write(data)
                await writer.drain()


async def test_a_reply_that_is_lost_is_no_second_message(group):
    async with group, Proxy(group.server) as proxy:
        await group.create("t", partitions=1)
        bus = group.bus(servers=group.server.proxied_servers)
        await bus.produce(outgoing([(b"k", b"0")]))
        for number in range(1, 6):
            proxy.swallow = True
            producing = asyncio.create_task(bus.produce(outgoing([(b"k", b"%d" % number)])))
            before = proxy.swallowed
            await until(lambda before=before: proxy.swallowed > before)
            proxy.swallow = False
            ((_, offset),) = await producing
            assert offset in (number, -1)
        found = await brokers.everything(group.server.servers, f"{group.prefix}t")
        assert [one.value for one in found] == [b"%d" % number for number in range(6)]


async def test_partitions_that_are_added_are_read_too(group):
    async with group:
        await group.create("t", partitions=2)
        bus = group.bus()
        sent = pairs(0, 50)
        await bus.produce(outgoing(sent))
        one = group.member(bus)
        await group.none_waits()
        await brokers.add_partitions(group.server.servers, f"{group.prefix}t", 6)
        await until(lambda: len(one.assigned_partitions) == 6)
        async with asyncio.timeout(30):
            places, more = set(), 50
            while len(places) < 5:
                sent += pairs(more, 100, keys=97)
                places |= {at.partition for at, _ in await bus.produce(outgoing(sent[more:]))}
                more += 100
                await asyncio.sleep(0.2)
        await group.none_waits()
        assert set(group.effects) == set(sent) and len(await bus.lag(group="g", topic="t")) == 6


async def test_a_stage_slower_than_the_groups_patience_keeps_its_place(group):
    async with group:
        await group.create("t")
        group.seconds = 2.5
        sent = pairs(0, 30)
        bus = group.bus(poll_interval_seconds_max=1.5)
        await bus.produce(outgoing(sent))
        # Full: it polls with all its partitions paused.
        one = group.member(bus, queue_records_max=10, poll_records_max=10, parked_records_max=5)
        await until(lambda: one._paused)
        await group.none_waits()
        group.check(sent)
        assert one.rebalances == 0 and max(Counter(group.effects).values()) == 1


async def test_a_stage_that_hangs_holds_a_bounded_part_of_a_large_backlog(group):
    async with group:
        await group.create("t")
        bus = group.bus()
        body = b"." * 20_000
        sent = [(key, value + body) for key, value in pairs(0, 3000, keys=300)]
        for start in range(0, len(sent), 300):
            await bus.produce(outgoing(sent[start : start + 300]))
        go = asyncio.Event()

        async def process(messages):
            await go.wait()
            await group.process(messages)

        limit = 2 * 1024 * 1024
        one = group.member(bus, process, queue_bytes_max=limit, poll_records_max=50, parked_records_max=1000)
        await until(lambda: one._paused)
        polled = one.polled_at
        await until(lambda: one.polled_at > polled + 1)
        held = sum(len(m.value) for queue in one._consumer._held.values() for m in queue)
        # 60 MB wait on the broker; here lie the queue, what is at work, and one fetch of each partition.
        assert one.size <= limit + 50 * 20_010 and 1000 <= one.parked <= 1050
        assert held <= 8 * kafka.PARTITION_FETCH_BYTES_MAX * 40, held
        go.set()
        await group.none_waits()
        group.check(sent)
        assert max(Counter(group.effects).values()) == 1


async def test_one_project_at_100_times_delays_no_other_and_a_kill_loses_none_of_what_is_parked(group):
    async with group:
        await group.create("t")
        noisy = [(b"noisy/%d" % (n % 200), b"n%d" % n) for n in range(3000)]
        quiet = [(b"quiet/%d" % (n % 10), b"q%d" % n) for n in range(30)]
        bus, waiting = group.bus(), []
        await bus.produce(outgoing(noisy))
        await bus.produce(outgoing(quiet))

        async def process(messages):
            waiting.append(asyncio.get_running_loop().create_future())
            await waiting[-1]
            await group.process(messages)

        one = group.member(bus, process, poll_records_max=50, queue_records_max=200)
        # Reading goes on although nothing ends, until all has been seen.
        await until(lambda: one.records + one.parked == 3030)
        assert one.parked >= 3030 - 200 - 4 * 50 and await group.lag() == 3030
        while len({value for key, value in group.effects if key.startswith(b"quiet")}) < 30:
            first = next((end for end in waiting if not end.done()), None)
            if first is not None:
                first.set_result(None)
            await asyncio.sleep(0.01)
        assert len(group.effects) - 30 <= intake.BATCHES_MAX * 50 * 3
        # It dies: nothing more is committed, and what was read past comes again elsewhere.
        one._last_commit = lambda: asyncio.sleep(0)
        group.running[0].cancel()
        await asyncio.gather(group.running.pop(), return_exceptions=True)
        before = set(group.effects)
        group.effects.clear()
        group.member(group.bus(), poll_records_max=50, queue_records_max=200)
        await group.none_waits()
        assert before | set(group.effects) == {*noisy, *quiet} and max(Counter(group.effects).values()) == 1
        for key in {key for key, _ in group.effects}:
            mine = [pair for pair in group.effects if pair[0] == key]
            assert mine == [pair for pair in (*noisy, *quiet) if pair in mine]


async def test_a_worker_killed_with_runs_parked_leaves_every_run_recorded_once(group, tmp_path):
    async with group:
        await group.create("runs", "changed")
        await group.create("dead", partitions=1)
        store, bus = stores.MemoryStore(), group.bus()
        messages = []
        for number in range(124):
            project = "quiet" if number % 31 == 30 else "noisy"
            event = envelope.from_structured(
                made.event(number, project=project, rollout=f"conv-{number % 13}")
            )
            alias = models.run_completed(event.data).rollout.alias
            messages.append(record.message_of(event, f"{project}/{alias}", "runs"))
        await bus.produce(messages)
        index = lookup_index.Index(tmp_path / "index.db")
        settings = group.settings(poll_records_max=4, queue_records_max=8)
        first = loop.Worker(store, group.bus(), index, settings, stages=["record"])
        running = asyncio.create_task(first.run())
        await until(lambda: "record" in first.intakes and first.progress.recorded >= 8)
        taking_in = first.intakes["record"]
        assert taking_in.parked > 0
        taking_in._last_commit = lambda: asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        second = loop.Worker(store, group.bus(), index, settings)
        running = asyncio.create_task(second.run())
        async with asyncio.timeout(60):
            while sum((await bus.lag(group="record", topic="runs")).values()) or await second._marked():  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        second.stopping.set()
        await asyncio.wait_for(running, 30)
        assert await invariants.check(store, bus, settled=True) == [] and await dead.read_all(bus) == []
        recorded = first.progress.recorded + second.progress.recorded
        already = first.progress.already + second.progress.already
        assert recorded <= 124 <= recorded + already
        index.close()


async def test_three_workers_record_every_run_once_and_a_replay_changes_nothing(group, tmp_path):
    async with group:
        await group.create("runs", "changed")
        await group.create("dead", partitions=1)
        store, bus = stores.MemoryStore(), group.bus()
        events = [made.event(number, rollout=f"conv-{number % 13}") for number in range(120)]
        messages = []
        for one in events:
            event = envelope.from_structured(one)
            checked = models.run_completed(event.data)
            messages.append(record.message_of(event, f"{checked.project}/{checked.rollout.alias}", "runs"))
        await bus.produce(messages[:60])
        index = lookup_index.Index(tmp_path / "index.db")
        workers = [loop.Worker(store, group.bus(), index, group.settings()) for _ in range(3)]
        running = [asyncio.create_task(one.run()) for one in workers]
        await bus.produce(messages[60:])

        async def left():
            lag = await bus.lag(group="record", topic="runs")
            return sum(lag.values()) or await workers[0]._marked()

        try:
            async with asyncio.timeout(90):
                while await left():  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
        finally:
            for one in workers:
                one.stopping.set()
            await asyncio.wait_for(asyncio.gather(*running), 30)
        assert await invariants.check(store, bus, settled=True) == []
        assert await dead.read_all(bus) == []
        # "Already" are redeliveries of a rebalance, and runs that consolidate had taken in before their stage had.
        recorded = sum(one.progress.recorded for one in workers)
        already = sum(one.progress.already for one in workers)
        assert recorded <= 120 <= recorded + already, [vars(one.progress) for one in workers]
        before = store.fingerprint()
        await bus.rewind(group="record", topic="runs")
        again = loop.Worker(store, bus, index, group.settings())
        await again.drain()
        assert (again.progress.already, again.progress.recorded) == (120, 0)
        assert store.fingerprint() == before
        index.close()
