"""What only Kafka can do wrong. Goal: each fault is told apart, in bounded time, and nothing is sent behind a back.

Method: a real broker that is stopped, that refuses a login or a topic, that has removed old messages; and two members
that share a topic out between them.
"""

from __future__ import annotations

import asyncio
import logging
import time

import pytest
import structlog
from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors

import brokers
from runlore import errors
from runlore.bus import kafka, kafka_clients
from runlore.bus.port import Outgoing
from runlore.settings import Settings

pytestmark = pytest.mark.usefixtures("kafka_server")


def settings_of(server, prefix, **more):
    return Settings(
        bus="kafka",
        kafka_servers=more.pop("servers", None) or server.servers,
        kafka_topic_prefix=prefix,
        kafka_group_prefix=prefix,
        **more,
    )


def message(value, key=b"k", topic="t"):
    return Outgoing(topic, key, value, [])


class Topics:
    """A prefix on the broker, and its buses, which are closed with the block."""

    def __init__(self, server, prefix):
        self.server, self.prefix, self.made = server, prefix, []

    async def create(self, *names, **more):
        await brokers.create_topics(self.server.servers, *(self.prefix + name for name in names), **more)

    def bus(self, **more):
        self.made.append(kafka.KafkaBus.of(settings_of(self.server, self.prefix, **more)))
        return self.made[-1]

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc):
        for bus in self.made:
            await bus.close()


@pytest.fixture
def topics(kafka_server, request):
    return Topics(kafka_server, f"{request.node.name[:60].replace('[', '-').replace(']', '')}.")


async def poll_all(consumer, count):
    found = []
    async with asyncio.timeout(30):
        while len(found) < count:
            found += await consumer.poll(records_max=100, timeout_seconds=1)
    return found


async def test_a_topic_that_is_not_there_is_a_persons_matter_and_is_not_made(topics):
    async with topics:
        bus = topics.bus()
        for call in (
            bus.produce([message(b"1")]),
            bus.consumer(group="g", topics=["t"]),
            bus.lag(group="g", topic="t"),
            bus.oldest(group="g", topic="t"),
            bus.rewind(group="g", topic="t"),
            anext(bus.read("t")),
        ):
            with pytest.raises(errors.Blocked, match=f"topic {topics.prefix}t is not there") as caught:
                await call
            assert "runlore topics apply" in caught.value.hint
        async with brokers.admin(topics.server.servers) as admin:
            assert f"{topics.prefix}t" not in await admin.list_topics()
        await topics.create("t")
        await bus.produce([message(b"1")])


async def test_what_retention_removed_is_no_lag_and_a_replay_begins_after_it(topics):
    async with topics:
        await topics.create("t", partitions=2)
        bus = topics.bus()
        placed = await bus.produce([message(b"%d" % n, key=b"%d" % n) for n in range(40)])
        counts = {p: sum(at.partition == p for at, _ in placed) for p in (0, 1)}
        await brokers.delete_records(topics.server.servers, f"{topics.prefix}t", {0: 5, 1: 3})
        left = {0: counts[0] - 5, 1: counts[1] - 3}
        again = await bus.reread("t", {0: range(counts[0]), 1: [1, 3]})
        assert [(m.partition, m.offset) for m in again] == [*((0, n) for n in range(5, counts[0])), (1, 3)]
        assert await bus.lag(group="g", topic="t") == left
        assert await bus.committed(group="g", topic="t") == {0: 5, 1: 3}
        assert len([one async for one in bus.read("t", start={0: 0})]) == sum(left.values())
        await bus.rewind(group="g", topic="t")
        assert await bus.committed(group="g", topic="t") == {0: 5, 1: 3}
        assert await bus.oldest(group="g", topic="t") is not None
        consumer = await bus.consumer(group="g", topics=["t"])
        found = await poll_all(consumer, sum(left.values()))
        assert min(one.offset for one in found if one.partition == 0) == 5
        await consumer.commit({one.at: one.offset + 1 for one in found})
        # What was committed and then removed counts as nothing, too.
        await brokers.delete_records(topics.server.servers, f"{topics.prefix}t", dict(counts))
        assert await bus.reread("t", {0: [7], 1: range(99)}) == []
        assert await bus.lag(group="g", topic="t") == {0: 0, 1: 0}
        assert await bus.oldest(group="g", topic="t") is None


async def test_a_message_larger_than_the_topic_takes_says_so_and_harms_no_other(topics):
    async with topics:
        await topics.create("t", max_message_bytes="100000")
        bus = topics.bus(kafka_compression="none")
        with pytest.raises(errors.EventTooLarge, match="larger than the topic takes"):
            await bus.produce([message(b"v" * 200_000)])
        with pytest.raises(errors.EventTooLarge, match="at most"):
            await bus.produce([message(b"small"), message(b"v" * (kafka.MESSAGE_BYTES_MAX + 1))])
        await bus.produce([message(b"after")])
        # Nothing of a batch that can not go is sent.
        assert [one.value async for one in bus.read("t")] == [b"after"]
        with pytest.raises(errors.InvalidInput):
            await bus.produce([Outgoing("t", None, None, [])])


async def test_a_wrong_password_and_a_missing_permission_are_blocked_not_away(topics):
    async with topics:
        await topics.create("t")
        login = {
            "servers": topics.server.sasl_servers,
            "kafka_security": "sasl_plaintext",
            "kafka_sasl_mechanism": "PLAIN",
            "kafka_username": brokers.dev_kafka.SASL_USER,
        }
        wrong = topics.bus(**login, kafka_password="wrong-password")
        begin = time.monotonic()
        for call in (
            wrong.produce([message(b"1")]),
            wrong.consumer(group="g", topics=["t"]),
            wrong.lag(group="g", topic="t"),
        ):
            with pytest.raises(errors.Blocked, match="refused") as caught:
                await call
            assert "wrong-password" not in str(caught.value.as_dict())
        assert time.monotonic() - begin < 20
        # Logged in, but without an ACL.
        right = topics.bus(**login, kafka_password=brokers.dev_kafka.SASL_PASSWORD)
        with pytest.raises(errors.Blocked, match="may not see it"):
            await right.produce([message(b"1")])
        right._known.add(f"{topics.prefix}t")
        for call in (right.produce([message(b"1")]), right.consumer(group="g", topics=["t"])):
            with pytest.raises(errors.Blocked, match="refused"):
                await call


@pytest.mark.parametrize("call", ["produce", "consumer", "lag", "read"])
async def test_a_broker_that_never_was_there_is_told_in_bounded_time(topics, call):
    async with topics:
        bus = topics.bus(servers="127.0.0.1:1")
        calls = {
            "produce": lambda: bus.produce([message(b"1")]),
            "consumer": lambda: bus.consumer(group="g", topics=["t"]),
            "lag": lambda: bus.lag(group="g", topic="t"),
            "read": lambda: anext(bus.read("t")),
        }
        begin = time.monotonic()
        with pytest.raises(errors.BusUnavailable, match=r"127\.0\.0\.1:1"):
            await calls[call]()
        assert time.monotonic() - begin < 10


async def test_two_members_share_a_topic_out_and_the_first_keeps_nothing_it_lost(topics):
    told = []

    class Listener:
        async def revoked(self, partitions):
            told.append(("revoked", len(partitions)))
            await first.commit({at: 3 for at in partitions})

        async def assigned(self, partitions):
            told.append(("assigned", len(partitions)))

    async with topics:
        await topics.create("t")
        one, two = topics.bus(kafka_session_seconds=6), topics.bus(kafka_session_seconds=6)
        await one.produce([message(b"%d" % n, key=b"%d" % n) for n in range(400)])
        first = await one.consumer(group="g", topics=["t"], listener=Listener())
        # Something lies fetched and not given out when the other joins.
        assert len(await first.poll(records_max=5, timeout_seconds=5)) == 5
        first.pause(first.assignment())
        joining = asyncio.create_task(two.consumer(group="g", topics=["t"]))
        async with asyncio.timeout(30):
            while told[-1] != ("assigned", 4):
                assert await first.poll(records_max=100, timeout_seconds=0.05) == [] or told[-1][1] == 4
        second = await joining
        assert told == [("assigned", 8), ("revoked", 8), ("assigned", 4)]
        # What the listener committed counts, and the pause was forgotten.
        mine = first.assignment()
        await first.seek(dict.fromkeys(mine, 3))
        found = await first.poll(records_max=5000, timeout_seconds=5)
        assert found and {m.at for m in found} <= mine
        theirs = await second.poll(records_max=5000, timeout_seconds=5)
        assert theirs and not {m.at for m in theirs} & mine and min(m.offset for m in theirs) == 3
        # A commit for what is the other's is passed over.
        await first.commit({at: 7 for at in second.assignment()})
        committed = await one.committed(group="g", topic="t")
        assert {committed[at.partition] for at in second.assignment()} == {3}


async def test_a_static_member_that_leaves_and_comes_back_causes_no_rebalance(topics):
    told = []

    class Listener:
        async def revoked(self, partitions):
            told.append("revoked")

        async def assigned(self, partitions):
            told.append("assigned")

    async with topics:
        await topics.create("t")
        stays = topics.bus(kafka_instance="a", kafka_session_seconds=20)
        goes = topics.bus(kafka_instance="b", kafka_session_seconds=20)
        joining = asyncio.create_task(goes.consumer(group="g", topics=["t"]))
        one = await stays.consumer(group="g", topics=["t"], listener=Listener())
        other = await joining
        async with asyncio.timeout(20):
            while len(one.assignment()) != 4:
                await one.poll(records_max=1, timeout_seconds=0.1)
        before, told[:] = one.assignment(), []
        await other.close()
        back = topics.bus(kafka_instance="b", kafka_session_seconds=20)
        again = await back.consumer(group="g", topics=["t"])
        for _ in range(10):
            await one.poll(records_max=1, timeout_seconds=0.1)
        assert told == [] and one.assignment() == before
        assert again.assignment().isdisjoint(before) and len(again.assignment()) == 4
        with pytest.raises(errors.Refused, match="is reading"):
            await back.rewind(group="g", topic="t")


def test_one_cause_is_one_line_and_debug_shows_no_value():
    kafka_clients.hush()
    kafka_clients.hush()
    log = logging.getLogger("aiokafka.client")
    with structlog.testing.capture_logs() as lines:
        for number in range(50):
            log.error("Unable connect to node with id %s: %s", number, OSError("refused by a test"))
            log.debug("Sending (key=%s value=%s)", "k", "a secret value")
        log.warning("another cause of this test")
    assert [line["said"] for line in lines] == [
        "Unable connect to node with id 0: refused by a test",
        "another cause of this test",
    ]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (kafka_errors.SaslAuthenticationFailed("no"), errors.Blocked),
        (kafka_errors.GroupAuthorizationFailedError("g"), errors.Blocked),
        (kafka_errors.UnknownTopicOrPartitionError(), errors.Blocked),
        (kafka_errors.MessageSizeTooLargeError(), errors.EventTooLarge),
        (kafka_errors.KafkaConnectionError("x"), errors.BusUnavailable),
        (kafka_errors.OutOfOrderSequenceNumber(), errors.BusUnavailable),
        (TimeoutError(), errors.BusUnavailable),
        (ConnectionRefusedError(), errors.BusUnavailable),
        (errors.Blocked("ours"), errors.Blocked),
    ],
)
def test_faults_are_told_apart_by_what_mends_them(raised, expected):
    assert type(kafka_clients.fault(raised, "take messages", "s")) is expected


def test_a_tls_file_that_is_not_there_is_blocked_before_anything_is_asked(tmp_path):
    bad = settings_of(
        None, "p.", servers="127.0.0.1:1", kafka_security="ssl", kafka_ca_file=str(tmp_path / "none.pem")
    )
    with pytest.raises(errors.Blocked, match="TLS"):
        kafka.client_options(bad)
    good = settings_of(None, "p.", servers="a:1, b:2", kafka_security="sasl_ssl", kafka_username="u")
    options = kafka.client_options(good)
    assert options["bootstrap_servers"] == ["a:1", "b:2"] and options["security_protocol"] == "SASL_SSL"
    assert options["ssl_context"].check_hostname


async def test_the_marker_at_the_end_of_a_transaction_is_no_message_to_wait_for(topics):
    """A team's own topic may be written in transactions; their markers take offsets that nobody is given."""
    async with topics:
        await topics.create("t", partitions=2)
        producer = AIOKafkaProducer(
            bootstrap_servers=topics.server.servers, transactional_id=f"{topics.prefix}writer"
        )
        await producer.start()
        try:
            for number in range(3):
                async with producer.transaction():
                    await producer.send_and_wait(f"{topics.prefix}t", b"%d" % number, b"k")
        finally:
            await producer.stop()
        bus = topics.bus()
        begin = time.monotonic()
        assert [one.value async for one in bus.read("t")] == [b"0", b"1", b"2"]
        consumer = await bus.consumer(group="g", topics=["t"])
        found = []
        while page := await consumer.poll(records_max=2, timeout_seconds=0):
            found += page
        assert [one.value for one in found] == [b"0", b"1", b"2"]
        assert [one.offset for one in found] == [0, 2, 4]
        await consumer.commit({one.at: one.offset + 1 for one in found})
        assert await bus.oldest(group="g", topic="t") is None
        assert time.monotonic() - begin < 10
