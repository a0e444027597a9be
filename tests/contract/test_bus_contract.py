"""What every bus must do, whichever it is. Goal: a stage that is right on the fake is right on Kafka.

Method: the same assertions for each adapter, in the words of the port: positions, commits, groups, replay;
then restarts, processes and kills for the adapters that outlive their process.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time

import pytest

from runlore import clock, errors
from runlore.bus.port import Outgoing, TopicPartition, partition_of
from runlore.bus.sqlite import SqliteBus


def _message(value, key=b"k", topic="t"):
    return Outgoing(topic, key, value, [("ce_id", value[:10])])


async def _drain(consumer, count=None, records_max=100):
    """Messages until `count` came, or until there are none."""
    found = []
    while count is None or len(found) < count:
        page = await consumer.poll(records_max=records_max, timeout_seconds=0.05 if count is None else 5)
        if not page:
            break
        found += page
    return found


def _next(messages):
    """The offsets to commit after `messages`."""
    return {message.at: message.offset + 1 for message in messages}


async def _all(bus, topic="t", **start):
    return [message async for message in bus.read(topic, **start)]


async def _all_and_close(bus):
    """For tests that have no loop of their own."""
    try:
        return await _all(bus)
    finally:
        await bus.close()


# --- what was sent is what is read ----------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [b"", b"\x00\xff", b"v" * (3 * 1024 * 1024), None], ids=["empty", "binary", "3MB", "none"]
)
async def test_a_message_is_read_as_it_was_sent(bus, value):
    headers = [("ce_id", b"1"), ("ce_id", b"again"), ("raw", b"\x00\xff\xfe")]
    before = time.time()
    ((at, offset),) = await bus.produce([Outgoing("t", b"\x00k", value, headers)])
    consumer = await bus.consumer(group="g", topics=["t"])
    (message,) = await _drain(consumer, 1)
    assert (message.at, message.offset, message.key, message.value) == (at, offset, b"\x00k", value)
    assert message.headers == headers
    assert before - 1 < message.time < time.time() + 1


async def test_producing_nothing_does_nothing(bus):
    assert await bus.produce([]) == []


async def test_messages_of_one_key_are_in_one_partition_in_order(bus):
    messages = [_message(b"%d" % n, key=b"key-%d" % (n % 5)) for n in range(200)]
    placed = await bus.produce(messages)
    assert len({at for at, _ in placed}) > 1
    consumer = await bus.consumer(group="g", topics=["t"])
    found = await _drain(consumer, 200, records_max=7)
    for key in {message.key for message in messages}:
        mine = [message for message in found if message.key == key]
        assert len({message.at for message in mine}) == 1
        assert [message.value for message in mine] == [m.value for m in messages if m.key == key]
        assert [message.offset for message in mine] == sorted(message.offset for message in mine)


async def test_messages_without_a_key_are_spread_and_none_is_lost(bus):
    messages = [_message(b"%d" % n, key=None) for n in range(64)]
    placed = await bus.produce(messages)
    assert len({at for at, _ in placed}) > 1
    found = await _drain(await bus.consumer(group="g", topics=["t"]), 64)
    assert {message.value for message in found} == {message.value for message in messages}
    assert {message.key for message in found} == {None}


async def test_topics_are_apart(bus):
    await bus.produce([_message(b"1", topic="t"), _message(b"2", topic="u")])
    only = await bus.consumer(group="g", topics=["u"])
    assert [message.value for message in await _drain(only)] == [b"2"]
    both = await bus.consumer(group="h", topics=["t", "u"])
    assert {message.topic for message in await _drain(both)} == {"t", "u"}


# --- poll -----------------------------------------------------------------------------------------


async def test_a_poll_of_nothing_waits_its_time_and_no_longer(bus):
    consumer = await bus.consumer(group="g", topics=["t"])
    begin = time.monotonic()
    assert await consumer.poll(records_max=10, timeout_seconds=0.2) == []
    assert 0.15 < time.monotonic() - begin < 2
    assert await consumer.poll(records_max=10, timeout_seconds=0) == []


async def test_a_waiting_poll_wakes_when_a_message_comes(bus):
    consumer = await bus.consumer(group="g", topics=["t"])
    waiting = asyncio.create_task(consumer.poll(records_max=10, timeout_seconds=20))
    await asyncio.sleep(0.3)
    begin = time.monotonic()
    await bus.produce([_message(b"1")])
    assert [message.value for message in await waiting] == [b"1"]
    assert time.monotonic() - begin < 5


async def test_a_poll_gives_at_most_what_was_asked_and_the_next_goes_on(bus):
    await bus.produce([_message(b"%d" % n, key=b"%d" % n) for n in range(50)])
    consumer = await bus.consumer(group="g", topics=["t"])
    found = []
    while page := await consumer.poll(records_max=7, timeout_seconds=0):
        assert len(page) <= 7
        found += page
    assert sorted(int(message.value) for message in found) == list(range(50))


async def test_a_full_partition_does_not_starve_the_others(bus):
    messages = [_message(b"busy")] * 200 + [_message(b"quiet", key=b"q%d" % n) for n in range(8)]
    placed = await bus.produce(messages)
    consumer = await bus.consumer(group="g", topics=["t"])
    seen = []
    for _ in range(16):
        seen += await consumer.poll(records_max=5, timeout_seconds=0)
    quiet = {at.partition for at, _ in placed[200:]} - {placed[0][0].partition}
    assert quiet <= {message.partition for message in seen}


async def test_a_poll_is_bounded_in_bytes_yet_always_moves(make_bus):
    if make_bus.adapter == "memory":
        pytest.skip("its messages are in memory already")
    bus = make_bus()
    await bus.produce([_message(b"v" * (3 * 1024 * 1024)) for _ in range(5)])
    consumer = await bus.consumer(group="g", topics=["t"])
    sizes = []
    while page := await consumer.poll(records_max=100, timeout_seconds=0):
        sizes.append(len(page))
    assert sizes == [3, 2]


# --- commits and redelivery -----------------------------------------------------------------------


async def test_what_was_not_committed_is_given_again_to_the_next_member(bus):
    await bus.produce([_message(b"%d" % n) for n in range(10)])
    first = await bus.consumer(group="g", topics=["t"])
    found = await _drain(first, 10)
    await first.commit(_next(found[:4]))
    await first.close()
    second = await bus.consumer(group="g", topics=["t"])
    assert [message.value for message in await _drain(second)] == [b"%d" % n for n in range(4, 10)]


async def test_leaving_a_group_commits_nothing(bus):
    await bus.produce([_message(b"1")])
    first = await bus.consumer(group="g", topics=["t"])
    await _drain(first, 1)
    await first.close()
    assert sum((await bus.committed(group="g", topic="t")).values()) == 0


async def test_a_position_moves_on_without_a_commit(bus):
    await bus.produce([_message(b"1"), _message(b"2")])
    consumer = await bus.consumer(group="g", topics=["t"])
    assert [m.value for m in await consumer.poll(records_max=1, timeout_seconds=1)] == [b"1"]
    assert [m.value for m in await consumer.poll(records_max=1, timeout_seconds=1)] == [b"2"]


async def test_seek_reads_again_from_there(bus):
    await bus.produce([_message(b"%d" % n) for n in range(5)])
    consumer = await bus.consumer(group="g", topics=["t"])
    found = await _drain(consumer, 5)
    await consumer.seek({found[0].at: found[2].offset})
    assert [message.value for message in await _drain(consumer)] == [b"2", b"3", b"4"]
    assert sum((await bus.committed(group="g", topic="t")).values()) == 0


async def test_a_commit_never_moves_backwards(bus):
    await bus.produce([_message(b"%d" % n) for n in range(5)])
    consumer = await bus.consumer(group="g", topics=["t"])
    at = (await _drain(consumer, 5))[0].at
    await consumer.commit({at: 4})
    await consumer.commit({at: 2})
    assert (await bus.committed(group="g", topic="t"))[at.partition] == 4


async def test_groups_do_not_see_each_others_commits(bus):
    await bus.produce([_message(b"%d" % n) for n in range(3)])
    one = await bus.consumer(group="one", topics=["t"])
    await one.commit(_next(await _drain(one, 3)))
    two = await bus.consumer(group="two", topics=["t"])
    assert len(await _drain(two, 3)) == 3
    assert sum((await bus.lag(group="one", topic="t")).values()) == 0
    assert sum((await bus.lag(group="two", topic="t")).values()) == 3


async def test_a_group_that_comes_late_starts_at_the_first_message(bus):
    await bus.produce([_message(b"early")])
    consumer = await bus.consumer(group="late", topics=["t"])
    assert [message.value for message in await _drain(consumer)] == [b"early"]


async def test_lag_and_committed_name_every_partition_even_of_a_topic_nobody_wrote(bus):
    await bus.produce([_message(b"1")])
    (at, _), *_ = await bus.produce([_message(b"2")])
    lag = await bus.lag(group="g", topic="t")
    assert lag[at.partition] == 2
    assert sum(lag.values()) == 2
    assert (
        set(lag)
        == set(await bus.committed(group="g", topic="t"))
        == set(await bus.lag(group="g", topic="none"))
    )


# --- reading everything, and replay ---------------------------------------------------------------


async def test_read_gives_everything_there_is_and_leaves_groups_alone(bus):
    await bus.produce([_message(b"%d" % n, key=b"%d" % n) for n in range(450)])
    found = await _all(bus)
    assert sorted(int(message.value) for message in found) == list(range(450))
    assert sum((await bus.lag(group="g", topic="t")).values()) == 450
    assert await _all(bus, "none") == []


async def test_read_goes_on_from_where_it_is_told(bus):
    placed = await bus.produce([_message(b"%d" % n) for n in range(10)])
    partition = placed[0][0].partition
    found = await _all(bus, start={partition: placed[7][1]})
    assert [message.value for message in found] == [b"7", b"8", b"9"]


async def test_read_ends_although_its_reader_produces(bus):
    await bus.produce([_message(b"%d" % n) for n in range(3)])
    count = 0
    async for _ in bus.read("t"):
        count += 1
        await bus.produce([_message(b"more")])
    assert count == 3


async def test_messages_are_read_again_by_their_offsets_in_order_and_no_others(bus):
    placed = await bus.produce([_message(b"%d" % n, key=b"%d" % n) for n in range(300)])
    values = {(at.partition, offset): b"%d" % n for n, (at, offset) in enumerate(placed)}
    consumer = await bus.consumer(group="g", topics=["t"])
    await _drain(consumer, 300)
    for step, start in ((1, 0), (7, 3), (2, 0), (1, 250)):  # Forwards, with gaps, and back again.
        wanted = {}
        for partition, offset in sorted(values)[start::step]:
            wanted.setdefault(partition, []).insert(0, offset)
        found = await bus.reread("t", wanted)
        for partition, offsets in wanted.items():
            mine = [m for m in found if m.partition == partition]
            assert [m.offset for m in mine] == sorted(offsets)
            assert [m.value for m in mine] == [values[partition, offset] for offset in sorted(offsets)]
        assert len(found) == sum(map(len, wanted.values())) and {m.topic for m in found} == {"t"}
    # It moves nobody's position, and commits nothing.
    assert await consumer.poll(records_max=10, timeout_seconds=0) == []
    assert sum((await bus.lag(group="g", topic="t")).values()) == 300


async def test_what_is_not_there_any_more_is_left_out_when_read_again(bus):
    ((at, offset),) = await bus.produce([Outgoing("t", b"k", b"1", [("h", b"\x00")])])
    other = (at.partition + 1) % 8
    wanted = {at.partition: [offset + 5000, offset], other: [0, 17]}
    (found,) = await bus.reread("t", wanted)
    assert (found.at, found.offset, found.key, found.value) == (at, offset, b"k", b"1")
    assert found.headers == [("h", b"\x00")] and abs(found.time - time.time()) < 60
    assert await bus.reread("t", {}) == await bus.reread("t", {at.partition: []}) == []


async def test_rewind_replays_a_topic_to_one_group_from_its_start(bus):
    await bus.produce([_message(b"%d" % n) for n in range(3)] + [_message(b"u", topic="u")])
    for group in ("g", "h"):
        consumer = await bus.consumer(group=group, topics=["t", "u"])
        await consumer.commit(_next(await _drain(consumer, 4)))
        await consumer.close()
    await bus.rewind(group="g", topic="t")
    again = await bus.consumer(group="g", topics=["t", "u"])
    assert [message.value for message in await _drain(again)] == [b"0", b"1", b"2"]
    assert sum((await bus.lag(group="h", topic="t")).values()) == 0


async def test_a_topic_is_not_rewound_under_its_reader(bus):
    consumer = await bus.consumer(group="g", topics=["t"])
    with pytest.raises(errors.Refused):
        await bus.rewind(group="g", topic="t")
    await consumer.close()
    await bus.rewind(group="g", topic="t")


async def test_a_rewind_to_a_time_begins_at_the_first_message_of_then(bus):
    keys = [b"%d" % n for n in range(24)]
    await bus.produce([_message(b"early", key=key) for key in keys])
    await asyncio.sleep(0.05)
    between = time.time()
    await asyncio.sleep(0.05)
    await bus.produce([_message(b"late", key=key) for key in keys[:6]])
    first = await bus.consumer(group="g", topics=["t"])
    await first.commit(_next(await _drain(first, 10)))
    await first.close()
    # Whether it was committed or not, and also in partitions where nothing came since then.
    await bus.rewind(group="g", topic="t", start=between)
    assert sum((await bus.lag(group="g", topic="t")).values()) == 6
    second = await bus.consumer(group="g", topics=["t"])
    found = await _drain(second)
    assert {message.key for message in found} == set(keys[:6])
    assert {message.value for message in found} == {b"late"}
    await second.close()
    await bus.rewind(group="g", topic="t", start=time.time() + 3600)
    assert sum((await bus.lag(group="g", topic="t")).values()) == 0
    await bus.rewind(group="g", topic="t")
    assert sum((await bus.lag(group="g", topic="t")).values()) == 30


async def test_the_age_of_what_waits_is_that_of_the_oldest_message_not_committed(bus):
    assert await bus.oldest(group="g", topic="t") is None
    times = []
    for key in (b"a", b"b", b"c", b"d"):
        before = time.time()
        await bus.produce([_message(b"1", key=key), _message(b"2", key=key)])
        times.append((before - 0.01, time.time() + 0.01))
        await asyncio.sleep(0.03)
    consumer = await bus.consumer(group="g", topics=["t"])
    found = await _drain(consumer, 8)
    for number, key in enumerate((b"a", b"b", b"c", b"d")):
        oldest = await bus.oldest(group="g", topic="t")
        assert times[number][0] <= oldest <= times[number][1]
        # Keys may share a partition, where only a beginning can be committed.
        partitions = {m.at for m in found if m.key == key}
        done = [m for m in found if m.at in partitions and m.key <= key]
        await consumer.commit(_next(done))
    assert await bus.oldest(group="g", topic="t") is None
    assert times[0][0] <= await bus.oldest(group="other", topic="t") <= times[0][1]


async def test_a_paused_partition_gives_nothing_until_it_is_resumed(bus):
    placed = await bus.produce([_message(b"%d" % n, key=b"%d" % n) for n in range(40)])
    consumer = await bus.consumer(group="g", topics=["t"])
    assert consumer.assignment() >= {at for at, _ in placed}
    # One poll first: what was fetched before a pause is held back as well.
    found = await consumer.poll(records_max=1, timeout_seconds=5)
    some = sorted(consumer.assignment())[::2]
    consumer.pause(some)
    found += await _drain(consumer)
    assert not {message.at for message in found[1:]} & set(some)
    consumer.pause(consumer.assignment())
    await bus.produce([_message(b"more", key=b"%d" % n) for n in range(40)])
    begin = time.monotonic()
    assert await consumer.poll(records_max=100, timeout_seconds=0.2) == []
    assert 0.15 < time.monotonic() - begin < 2
    consumer.resume(some[:1])
    mine = await _drain(consumer)
    assert {message.at for message in mine} <= set(some[:1])
    consumer.resume(consumer.assignment())
    found += mine + await _drain(consumer)
    assert len(found) == len({(message.at, message.offset) for message in found}) == 80
    for at in consumer.assignment():
        offsets = [message.offset for message in found if message.at == at]
        assert offsets == sorted(offsets)


async def test_a_resume_wakes_a_waiting_poll(bus):
    await bus.produce([_message(b"1")])
    consumer = await bus.consumer(group="g", topics=["t"])
    consumer.pause(consumer.assignment())
    waiting = asyncio.create_task(consumer.poll(records_max=10, timeout_seconds=20))
    await asyncio.sleep(0.05)
    begin = time.monotonic()
    consumer.resume(consumer.assignment())
    assert [message.value for message in await waiting] == [b"1"]
    assert time.monotonic() - begin < 5


async def test_a_listener_is_told_of_its_partitions_before_any_message_comes(bus):
    told = []

    class Listener:
        async def revoked(self, partitions):
            told.append(("revoked", partitions))

        async def assigned(self, partitions):
            told.append(("assigned", partitions))

    await bus.produce([_message(b"1")])
    consumer = await bus.consumer(group="g", topics=["t"], listener=Listener())
    await _drain(consumer, 1)
    assert told == [("assigned", consumer.assignment())] and len(consumer.assignment()) == 8


async def test_a_commit_for_a_partition_of_nobody_here_is_passed_over(bus):
    (at, _), *_ = await bus.produce([_message(b"1", topic="u")])
    consumer = await bus.consumer(group="g", topics=["t"])
    await consumer.commit({at: 1})
    assert sum((await bus.committed(group="g", topic="u")).values()) == 0


async def test_a_closed_consumer_gives_nothing_and_stops_waiting(bus):
    consumer = await bus.consumer(group="g", topics=["t"])
    waiting = asyncio.create_task(consumer.poll(records_max=1, timeout_seconds=30))
    await asyncio.sleep(0.05)
    await consumer.close()
    assert await asyncio.wait_for(waiting, 5) == []
    await bus.produce([_message(b"1")])
    assert await consumer.poll(records_max=1, timeout_seconds=0) == []


async def test_two_instances_see_each_others_messages_and_commits(make_bus):
    writer, reader = make_bus(), make_bus()
    consumer = await reader.consumer(group="g", topics=["t"])
    waiting = asyncio.create_task(consumer.poll(records_max=10, timeout_seconds=20))
    await asyncio.sleep(0.05)
    await writer.produce([_message(b"1")])
    (message,) = await waiting
    await consumer.commit({message.at: message.offset + 1})
    assert sum((await writer.lag(group="g", topic="t")).values()) == 0


async def test_many_producers_at_once_lose_nothing_and_share_no_offset(make_bus):
    buses = [make_bus() for _ in range(3)]

    async def send(number):
        for step in range(10):
            await buses[number % 3].produce([_message(b"%d-%d" % (number, step), key=b"%d" % number)])

    await asyncio.gather(*(send(number) for number in range(9)))
    found = await _all(buses[0])
    assert len({message.value for message in found}) == 90
    assert len({(message.at, message.offset) for message in found}) == 90


# --- what only a bus that outlives its process can do ---------------------------------------------


def _only_durable(factory):
    if not factory.durable:
        pytest.skip(f"the {factory.adapter} bus ends with its process")


async def test_messages_and_commits_are_there_after_a_restart(make_bus):
    _only_durable(make_bus)
    first = make_bus()
    await first.produce([_message(b"%d" % n) for n in range(3)])
    consumer = await first.consumer(group="g", topics=["t"])
    await consumer.commit(_next((await _drain(consumer, 3))[:2]))
    await first.close()
    second = make_bus()
    consumer = await second.consumer(group="g", topics=["t"])
    assert [message.value for message in await _drain(consumer)] == [b"2"]


@pytest.mark.process
def test_processes_that_produce_at_once_into_a_new_file_lose_nothing(make_bus):
    _only_durable(make_bus)
    processes = [make_bus.process("produce", f"p{number}", 50) for number in range(4)]
    assert [make_bus.acknowledged(process) for process in processes] == [["done"]] * 4
    found = asyncio.run(_all_and_close(make_bus()))
    for number in range(4):
        mine = [int(message.value) for message in found if message.key == b"p%d" % number]
        assert mine == list(range(50))


@pytest.mark.process
async def test_a_message_of_another_process_wakes_a_waiting_poll(make_bus):
    _only_durable(make_bus)
    bus = make_bus()
    consumer = await bus.consumer(group="g", topics=["t"])
    waiting = asyncio.create_task(consumer.poll(records_max=10, timeout_seconds=30))
    await asyncio.sleep(0.05)
    process = make_bus.process("produce", "p", 1)
    assert [message.value for message in await waiting] == [b"0"]
    await asyncio.to_thread(make_bus.acknowledged, process)


@pytest.mark.process
def test_a_producer_killed_at_any_point_keeps_what_it_was_told_and_no_half_batch(make_bus):
    _only_durable(make_bus)
    last = -1
    for kill in range(6):
        process = make_bus.process("produce_for_ever")
        for _ in range(1 + kill * 3):
            process.stdout.readline()
        process.kill()
        make_bus.acknowledged(process)
        values = [message.value for message in asyncio.run(_all_and_close(make_bus()))]
        pairs = len(values) // 2
        assert values == [b"%d-%d" % (n, half) for n in range(pairs) for half in (0, 1)]
        assert pairs >= last + 1 + kill * 3
        last = pairs


# --- what only the SQLite log can do wrong --------------------------------------------------------


class _Clock(clock.World):
    """A world whose time is set by hand."""

    def __init__(self):
        self.seconds = super().now().timestamp()

    def now(self):
        import datetime as dt

        return dt.datetime.fromtimestamp(self.seconds, dt.UTC)


async def test_trim_removes_only_what_every_group_committed_and_what_is_old(tmp_path):
    world = _Clock()
    clock.install(world)
    bus = SqliteBus(tmp_path / "bus.db", fsync=False)
    await bus.produce([_message(b"%d" % n) for n in range(4)])
    assert await bus.trim("t", older_than_seconds=0) == 0
    slow = await bus.consumer(group="slow", topics=["t"])
    fast = await bus.consumer(group="fast", topics=["t"])
    found = await _drain(fast, 4)
    await fast.commit(_next(found))
    await slow.commit(_next(found[:3]))
    assert await bus.trim("t", older_than_seconds=60) == 0
    world.seconds += 3600
    await bus.produce([_message(b"4")])
    assert await bus.trim("t", older_than_seconds=60) == 3
    assert [message.value for message in await _all(bus)] == [b"3", b"4"]
    partition = found[0].partition
    assert [m.value for m in await bus.reread("t", {partition: range(5)})] == [b"3", b"4"]
    # Offsets go on where they were, and a group that comes now starts at the first that is left.
    late = await bus.consumer(group="late", topics=["t"])
    assert [message.offset for message in await _drain(late)] == [3, 4]
    assert sum((await bus.lag(group="late", topic="t")).values()) == 2
    await bus.close()


async def test_a_file_that_is_no_log_is_blocked_and_left_as_it_is(tmp_path):
    path = tmp_path / "bus.db"
    path.write_bytes(b"this is not SQLite" * 100)
    bus = SqliteBus(path)
    with pytest.raises(errors.Blocked, match="damaged"):
        await bus.produce([_message(b"1")])
    with pytest.raises(errors.Blocked):
        await _all(bus)
    await bus.close()
    assert path.read_bytes() == b"this is not SQLite" * 100


async def test_a_log_of_a_newer_version_is_refused(tmp_path):
    path = tmp_path / "bus.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    bus = SqliteBus(path)
    with pytest.raises(errors.Blocked, match="newer"):
        await bus.produce([_message(b"1")])
    await bus.close()


async def test_a_full_disk_is_a_passing_fault_that_says_what_to_do(tmp_path):
    bus = SqliteBus(tmp_path / "bus.db", fsync=False)
    await bus.produce([_message(b"1")])
    await bus._log.run(lambda connection: connection.execute("PRAGMA max_page_count=12").fetchone())
    with pytest.raises(errors.BusUnavailable, match="full") as caught:
        await bus.produce([_message(b"v" * 500_000)])
    assert "free space" in caught.value.hint
    await bus._log.run(lambda connection: connection.execute("PRAGMA max_page_count=100000").fetchone())
    await bus.produce([_message(b"2")])
    assert [message.value for message in await _all(bus)] == [b"1", b"2"]
    await bus.close()


async def test_a_closed_bus_says_so(tmp_path):
    bus = SqliteBus(tmp_path / "bus.db")
    await bus.close()
    await bus.close()
    with pytest.raises(errors.BusUnavailable, match="closed"):
        await bus.produce([_message(b"1")])


async def test_the_number_of_partitions_is_the_files_own(tmp_path):
    first = SqliteBus(tmp_path / "bus.db", partitions=3, fsync=False)
    await first.produce([_message(b"%d" % n, key=b"%d" % n) for n in range(30)])
    second = SqliteBus(tmp_path / "bus.db", partitions=16, fsync=False)
    await second.produce([_message(b"%d" % n, key=b"%d" % n) for n in range(30)])
    assert set(await second.committed(group="g", topic="t")) == {0, 1, 2}
    for n in range(30):
        where = {message.at for message in await _all(second) if message.key == b"%d" % n}
        assert where == {TopicPartition("t", partition_of(_message(b"", key=b"%d" % n), 3))}
    await first.close()
    await second.close()


async def test_only_the_log_syncs_and_it_does_so_by_default(tmp_path):
    bus = SqliteBus(tmp_path / "bus.db")
    levels = [
        await c.run(lambda c: c.execute("PRAGMA synchronous").fetchone()[0]) for c in (bus._log, bus._reader)
    ]
    assert levels == [2, 1]
    assert await bus._log.run(lambda c: c.execute("PRAGMA journal_mode").fetchone()[0]) == "wal"
    await bus.close()
