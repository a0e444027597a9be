"""The ACLs that `runlore topics plan --acls` prints are enough for each role's work, and for no more, on a real broker.

Method: the broker's second listener knows one user, who may do nothing. Each role gets topics and groups under a prefix
of its own, with exactly the printed rules, and does its work. aiokafka has no request for ACLs, so it is spelt here.
"""

from __future__ import annotations

import contextlib

import pytest
from aiokafka.protocol import api, types
from aiokafka.protocol.struct import Struct

import brokers
from runlore import errors, pipeline
from runlore.bus import kafka, topics
from runlore.bus.port import Outgoing
from runlore.settings import Settings
from runlore.upkeep import deployment

OPERATIONS = (
    "Read",
    "Write",
    "Create",
    "Delete",
    "Alter",
    "Describe",
    "ClusterAction",
    "DescribeConfigs",
    "AlterConfigs",
)
RESOURCES = {"topic": 2, "group": 3, "cluster": 4}
LITERAL, PREFIXED, ALLOW = 3, 4, 3


class CreateAclsResponse(api.Response):
    API_KEY, API_VERSION = 30, 1
    SCHEMA = types.Schema(
        ("throttle_time_ms", types.Int32),
        ("results", types.Array(("error_code", types.Int16), ("error_message", types.String("utf-8")))),
    )


class CreateAclsStruct(api.RequestStruct):
    API_KEY, API_VERSION = 30, 1
    RESPONSE_TYPE = CreateAclsResponse
    SCHEMA = types.Schema(
        (
            "creations",
            types.Array(
                ("resource_type", types.Int8),
                ("resource_name", types.String("utf-8")),
                ("pattern_type", types.Int8),
                ("principal", types.String("utf-8")),
                ("host", types.String("utf-8")),
                ("operation", types.Int8),
                ("permission_type", types.Int8),
            ),
        )
    )


class CreateAcls(api.Request[CreateAclsStruct]):
    API_KEY = 30

    def __init__(self, creations):
        self._creations = creations

    def build(self, request_struct_class) -> Struct:
        return request_struct_class(self._creations)


def operation(name):
    """Kafka's number for an operation (`AclOperation`): Read is 3, and so on in this order but for the last two."""
    return {
        **{one: 3 + at for at, one in enumerate(OPERATIONS[:7])},
        "DescribeConfigs": 10,
        "AlterConfigs": 11,
    }[name]


async def grant(server, principal, rules):
    creations = [
        (
            RESOURCES[rule.resource],
            rule.name or "kafka-cluster",
            PREFIXED if rule.prefixed else LITERAL,
            principal,
            "*",
            operation(one),
            ALLOW,
        )
        for rule in rules
        for one in rule.operations
    ]
    async with brokers.admin(server.servers) as admin:
        answer = await admin._send_to_controller(CreateAcls(creations))
        assert [one for one in answer.results if one[0]] == []


@contextlib.asynccontextmanager
async def role(server, name):
    """The settings of a user with exactly this role, on topics of their own, and a bus with them."""
    from infra.dev import kafka as dev_kafka

    prefix = f"acl-{name}."
    await brokers.create_topics(server.servers, *(prefix + one.name for one in pipeline.TOPICS), partitions=2)
    rules = [one for one in topics.rules(topic_prefix=prefix, group_prefix=prefix) if one.role == name]
    await grant(server, f"User:{dev_kafka.SASL_USER}", rules)
    settings = Settings(
        bus="kafka",
        kafka_servers=server.sasl_servers,
        kafka_security="sasl_plaintext",
        kafka_sasl_mechanism="PLAIN",
        kafka_username=dev_kafka.SASL_USER,
        kafka_password=dev_kafka.SASL_PASSWORD,
        kafka_topic_prefix=prefix,
        kafka_group_prefix=prefix,
    )
    bus = kafka.KafkaBus.of(settings)
    try:
        yield settings, bus
    finally:
        await bus.close()


def message(topic):
    return Outgoing(topic, b"acme/x", b"{}", [])


async def consume(bus, group, topic):
    """Join, read what is there, commit, leave."""
    consumer = await bus.consumer(group=group, topics=[topic])
    try:
        found = []
        while not found:
            found = await consumer.poll(records_max=10, timeout_seconds=1.0)
        await consumer.commit({one.at: one.offset + 1 for one in found})
        return found
    finally:
        await consumer.close()


async def fill(server, prefix):
    """One message in each topic, from somebody who may."""
    bus = kafka.KafkaBus.of(
        Settings(
            bus="kafka", kafka_servers=server.servers, kafka_topic_prefix=prefix, kafka_group_prefix=prefix
        )
    )
    await bus.produce([message(one.name) for one in pipeline.TOPICS])
    await bus.close()


async def test_a_producer_and_a_source_write_runs_and_dead_letters_and_read_none(kafka_server):
    for name in ("producer", "source"):
        async with role(kafka_server, name) as (_, bus):
            await bus.produce([message("runs"), message("dead")])
            with pytest.raises(errors.Blocked):
                await bus.produce([message("changed")])
            with pytest.raises((errors.Blocked, errors.BusUnavailable)):
                await consume(bus, "record", "runs")


async def test_a_worker_reads_runs_and_bells_and_writes_bells_and_dead_letters(kafka_server):
    async with role(kafka_server, "worker") as (settings, bus):
        await fill(kafka_server, settings.kafka_topic_prefix)
        for stage in pipeline.STAGES:
            if stage.group:
                topic = "runs" if stage.reads == "runs" else "changed"
                group = stage.group if stage.name != "index" else "index-pod-0"
                assert await consume(bus, group, topic)
        await bus.produce([message("changed"), message("dead")])
        assert sum((await bus.lag(group="record", topic="runs")).values()) == 0
        assert await bus.oldest(group="snapshot", topic="runs") is None
        with pytest.raises(errors.Blocked):
            await bus.produce([message("runs")])


async def test_an_index_reads_bells_alone(kafka_server):
    async with role(kafka_server, "index") as (settings, bus):
        await fill(kafka_server, settings.kafka_topic_prefix)
        assert await consume(bus, "index-pod-1", "changed")
        for topic in ("runs", "dead"):
            with pytest.raises(errors.Blocked):
                await bus.consumer(group="index-pod-1", topics=[topic])
        with pytest.raises(errors.Blocked):
            await bus.produce([message("changed")])


async def test_an_operator_plans_applies_examines_replays_and_redrives(kafka_server):
    async with role(kafka_server, "operator") as (settings, bus):
        await fill(kafka_server, settings.kafka_topic_prefix)
        wanted = topics.wanted(pipeline.TOPICS, prefix=settings.kafka_topic_prefix, replication=1)
        async with topics.connect(settings) as cluster:
            planned = await cluster.plan(wanted)
            assert {one.state for one in planned} == {topics.DIFFERS}
            await cluster.apply(planned)
            assert {one.state for one in await cluster.plan(wanted)} == {topics.FINE}
            more = topics.wanted([pipeline.RUNS], prefix=f"{settings.kafka_topic_prefix}more.", replication=1)
            await cluster.apply(await cluster.plan(more))
        found = await deployment.of_bus(bus, settings)
        assert [one.what for one in found if not one.ok] == ["topics' prefix"], found
        await bus.rewind(group="record", topic="runs")
        assert sum((await bus.lag(group="record", topic="runs")).values()) == 1
        assert len([one async for one in bus.read("dead")]) == 1
        await bus.produce([message("runs"), message("dead")])
