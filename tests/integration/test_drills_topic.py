"""Disaster drill: the log is older than the store: a topic was made anew, or put back, under a group's old offsets.

Method: a real broker, whose topic is deleted and made again below workers that stopped, or that go on. Whatever the
offsets say, each run that is in the topic must be recorded once, or `doctor` must say that some were passed over.
"""

from __future__ import annotations

import asyncio
import itertools

import pytest

import brokers
import made
from runlore.bus import kafka
from runlore.consumers import record
from runlore.producer import Producer
from runlore.settings import Settings
from runlore.testing import stores
from runlore.upkeep import ages
from runlore.worker import intake, progress, retry

NUMBERS = itertools.count()
FAST = {"kafka_session_seconds": 6, "poll_timeout_seconds": 0.2, "retry_seconds_max": 0.2}


class Deployment:
    """A store, a topic on the broker, and workers of the record stage."""

    def __init__(self, server, prefix):
        self.server, self.prefix, self.store = server, prefix, stores.MemoryStore()
        self.settings = Settings(
            bus="kafka",
            kafka_servers=server.servers,
            kafka_topic_prefix=prefix,
            kafka_group_prefix=prefix,
            **FAST,
        )
        self.bus = kafka.KafkaBus.of(self.settings)
        self.bus._options["metadata_max_age_ms"] = 500
        self._running = None

    async def make(self, *, anew=False):
        name = f"{self.prefix}runs"
        if anew:
            async with brokers.admin(self.server.servers) as client:
                await client.delete_topics([name])
                while name in await client.list_topics():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        await brokers.create_topics(self.server.servers, name, partitions=1)

    async def send(self, *numbers):
        # A broker needs a moment until it takes messages for a topic of the same name.
        async with asyncio.timeout(30):
            sent = await Producer(self.store, self.bus).publish(
                [made.data(n) for n in numbers], source="/test"
            )
        return sent

    def start(self):
        self._stopping = asyncio.Event()
        retries = retry.Retries("record", progress.StageStatus(), seconds_max=0.2, stopping=self._stopping)
        one = intake.Intake(
            self.bus,
            self.settings,
            retries,
            group="record",
            topic="runs",
            process=record.RecordStage(self.store, self.bus).process,
            stopping=self._stopping,
        )
        self._running = asyncio.create_task(one.run())

    async def stop(self):
        if self._running is not None:
            self._stopping.set()
            await asyncio.wait_for(self._running, 60)
            self._running = None

    def recorded(self):
        return sorted(
            int(key.rpartition("/run-")[2].split(".")[0])
            for key in self.store.snapshot()
            if "/records/" in key
        )

    async def until(self, *numbers):
        async with asyncio.timeout(60):
            while self.recorded() != sorted(numbers):
                assert not self._running.done(), self._running.result()
                await asyncio.sleep(0.05)
            while sum((await self.bus.lag(group="record", topic="runs")).values()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def __aenter__(self):
        await self.make()
        await brokers.create_topics(
            self.server.servers, f"{self.prefix}dead", f"{self.prefix}changed", partitions=1
        )
        return self

    async def __aexit__(self, *exc):
        await self.stop()
        await self.bus.close()


@pytest.fixture
def deployment(kafka_server):
    return Deployment(kafka_server, f"drill{next(NUMBERS)}.")


@pytest.mark.parametrize("worker", ["stopped", "goes on"])
async def test_a_topic_made_anew_below_old_offsets_loses_no_run_and_doubles_none(deployment, worker):
    async with deployment as one:
        await one.send(*range(12))
        one.start()
        await one.until(*range(12))
        if worker == "stopped":
            await one.stop()
        await one.make(anew=True)
        await one.send(10, 11, 12, 13)
        if worker == "stopped":
            one.start()
        await one.until(*range(14))
        await one.send(14)
        await one.until(*range(15))
        assert (await ages.missing(one.store, one.bus))[0] == 0


async def test_a_topic_that_outgrew_old_offsets_is_found_and_a_replay_brings_what_was_passed_over(deployment):
    async with deployment as one:
        await one.send(0, 1, 2)
        one.start()
        await one.until(0, 1, 2)
        await one.stop()
        await one.make(anew=True)
        await one.send(*range(10, 20))
        # As a broker keeps them that was put back from a copy: the group's offsets outlive the topic.
        consumer = await one.bus.consumer(group="record", topics=["runs"])
        (at,) = consumer.assignment()
        await consumer.commit({at: 3})
        await consumer.close()
        assert (await ages.missing(one.store, one.bus))[0] == 3
        one.start()
        await one.until(0, 1, 2, *range(13, 20))
        await one.stop()
        # Also after a worker went on from there.
        assert (await ages.missing(one.store, one.bus))[0] == 3
        told = await ages.check(one.store, one.bus)
        assert not told.ok and "runlore replay" in told.hint
        await one.bus.rewind(group="record", topic="runs")
        one.start()
        await one.until(0, 1, 2, *range(10, 20))
