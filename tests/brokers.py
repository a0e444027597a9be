"""A real Kafka broker for tests: where one can not start, they are skipped, unless RUNLORE_TEST_REQUIRE names it.

One broker serves all tests of a process; each test has topics and groups of its own, under a prefix.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from infra.dev import kafka as dev_kafka  # noqa: E402


def is_required(name: str) -> bool:
    """Whether a test that needs `name` (kafka, s3) must fail rather than be skipped."""
    return name in [one.strip() for one in os.environ.get("RUNLORE_TEST_REQUIRE", "").split(",")]


@contextlib.contextmanager
def broker(folder: Path):
    """A running broker."""
    problem = dev_kafka.missing()
    if problem and not is_required("kafka"):
        pytest.skip(problem)
    with dev_kafka.KafkaServer(folder, brief=True) as server:
        yield server


@contextlib.asynccontextmanager
async def admin(servers: str):
    client = AIOKafkaAdminClient(bootstrap_servers=servers)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def create_topics(servers: str, *names: str, partitions: int = 8, **configs: str) -> None:
    """Make topics, and return once a client sees them. Underscores in the names of `configs` are dots."""
    settings = {name.replace("_", "."): value for name, value in configs.items()}
    async with admin(servers) as client:
        made = await client.create_topics(
            [NewTopic(name, partitions, 1, topic_configs=settings) for name in names]
        )
        assert not [one for one in made.topic_errors if one[1]], made
        while not set(names) <= set(await client.list_topics()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def add_partitions(servers: str, topic: str, count: int) -> None:
    async with admin(servers) as client:
        await client.create_partitions({topic: NewPartitions(count)})


async def delete_records(servers: str, topic: str, before: dict[int, int]) -> None:
    """Remove the first messages of partitions, as retention does."""
    from aiokafka import TopicPartition
    from aiokafka.admin import RecordsToDelete

    async with admin(servers) as client:
        await client.delete_records(
            {TopicPartition(topic, partition): RecordsToDelete(at) for partition, at in before.items()}
        )


async def everything(servers: str, topic: str) -> list:
    """Every record of a topic, read without our own code."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=servers, auto_offset_reset="earliest", group_id=None)
    await consumer.start()
    try:
        ends = await consumer.end_offsets(consumer.assignment())
        found = []
        while any([await consumer.position(at) < end for at, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += records
        return found
    finally:
        await consumer.stop()
