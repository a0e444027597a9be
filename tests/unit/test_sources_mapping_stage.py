"""The source stage: nothing lost or doubled whatever fails, letters before offsets, redrive through the mapping.

Goal: each message of their topic ends as exactly one event of `runs` (by its id) or one dead letter, and never is an
offset committed before. Method: every call of the bus and the store fails in turn, before and after its effect.
"""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

import foreign
from runlore import errors
from runlore.bus import port
from runlore.consumers import dead, source
from runlore.consumers import record as record_stage
from runlore.settings import Settings
from runlore.sources.mapping import event
from runlore.testing.buses import MemoryBus
from runlore.testing.stores import MemoryStore
from runlore.worker import source as loop

GOOD = [foreign.order(event_id=f"e-{n}", chat={"id": f"c-{n % 2}", "closing": f"r-{n}"}) for n in range(3)]
NO_ROLLOUT = foreign.order(event_id="e-lost", chat={"closing": "r-lost"})
OTHER = {"type": "chat_opened"}
HEADERS = [("trace", b"\x00\xff"), ("content-type", b"application/json")]
SETTINGS = Settings(poll_records_max=2, poll_timeout_seconds=0.05, retry_seconds_max=0.1)


class Crash(BaseException):
    """The process is gone."""


class Failing:
    """A bus or a store of which the call number `at` fails, before or after its effect."""

    def __init__(self, inner, watched, trouble):
        self._inner, self._watched, self._trouble = inner, watched, trouble

    def __getattr__(self, name):
        found = getattr(self._inner, name)
        if name not in self._watched:
            return found

        async def call(*args, **more):
            self._trouble.check("before")
            result = await found(*args, **more)
            self._trouble.check("after")
            return Failing(result, ("commit", "poll"), self._trouble) if name == "consumer" else result

        return call


class Trouble:
    """Which of all calls fails, when, and how."""

    def __init__(self, at=-1, when="before", error=Crash):
        self.at, self.when, self.error, self.calls = at, when, error, 0

    def check(self, when):
        if when == "before":
            self.calls += 1
        if self.calls - 1 == self.at and when == self.when:
            self.at = -1
            raise self.error()


async def filled(*values):
    bus = MemoryBus(partitions=2)
    await bus.produce(
        [
            port.Outgoing(
                "shop.chat.closed", b"k%d" % n, None if one is None else json.dumps(one).encode(), HEADERS
            )
            for n, one in enumerate(values)
        ]
    )
    return bus


async def work(bus, store, trouble=None, made=None, fetch=event.no_objects, **plan):
    """Run the source over what is there; what each message became."""
    trouble = trouble or Trouble()
    made = made or foreign.mapping(foreign.ORDERS)
    bus, store = Failing(bus, ("produce", "consumer"), trouble), Failing(store, ("put",), trouble)
    counts = source.Counts()
    stage = source.SourceStage(store, bus, made, fetch)
    one = loop.Source(bus, stage, made, SETTINGS, counts.add)
    await loop.run(one, loop.Plan(**{"once": True, **plan}))
    return counts


async def runs(bus):
    return [record_stage.parse(message).event.id async for message in bus.read("runs")]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_at_any_call_loses_nothing_and_what_comes_twice_is_the_same_event(when):
    async def one(at):
        bus, store = await filled(*GOOD, None, NO_ROLLOUT, OTHER), MemoryStore()
        trouble = Trouble(at, when)
        with contextlib.suppress(Crash):
            await work(bus, store, trouble)
        committed = await bus.committed(group="source-orders", topic="shop.chat.closed")
        await check_committed(bus, committed)
        await work(bus, store)
        assert set(await runs(bus)) == {"e-0", "e-1", "e-2"}
        (letter,) = await dead.read_all(bus)
        assert (letter.reason, letter.source) == ("missing_rollout", "orders")
        assert not any((await bus.lag(group="source-orders", topic="shop.chat.closed")).values())
        assert len({message.value async for message in bus.read("runs")}) == 3
        return trouble.calls

    calls = asyncio.run(one(10_000))
    assert calls > 8
    for at in range(calls):
        asyncio.run(one(at))


async def check_committed(bus, committed):
    """Every message below the mark has had its effect."""
    done = set(await runs(bus)) | {(one.partition, one.offset) for one in await dead.read_all(bus)}
    async for message in bus.read("shop.chat.closed"):
        if message.offset < committed[message.partition] and message.value is not None:
            value = json.loads(message.value)
            assert value == OTHER or {value["event_id"], (message.partition, message.offset)} & done


@pytest.mark.parametrize("error", [errors.BusUnavailable, errors.StoreUnavailable, errors.OutcomeUnknown])
def test_a_passing_fault_is_tried_again_and_dead_letters_nothing(error):
    async def main():
        for at in range(12):
            bus = await filled(*GOOD)
            counts = await work(bus, MemoryStore(), Trouble(at, "before", error))
            assert (counts.states["mapped"], counts.states["dead"]) == (3, 0)
            assert set(await runs(bus)) == {"e-0", "e-1", "e-2"} and not await dead.read_all(bus)

    asyncio.run(main())


def test_a_missing_permission_stops_it_and_dead_letters_nothing():
    async def main():
        bus = await filled(*GOOD)
        with pytest.raises(errors.Blocked):
            await work(bus, MemoryStore(), Trouble(2, "before", errors.Blocked))
        assert not await dead.read_all(bus)
        assert sum((await bus.lag(group="source-orders", topic="shop.chat.closed")).values()) == 3

    asyncio.run(main())


def test_reading_from_the_beginning_gives_the_same_events_again_and_one_letter():
    async def main():
        bus, store = await filled(*GOOD, NO_ROLLOUT), MemoryStore()
        await work(bus, store)
        first = {message.value async for message in bus.read("runs")}
        await bus.rewind(group="source-orders", topic="shop.chat.closed")
        await work(bus, store)
        assert {message.value async for message in bus.read("runs")} == first and len(await runs(bus)) == 6
        assert len(await dead.read_all(bus)) == 1

    asyncio.run(main())


def test_a_limit_stops_after_so_many_messages_and_the_next_run_goes_on_there():
    async def main():
        bus, store = await filled(*GOOD, NO_ROLLOUT), MemoryStore()
        counts = [(await work(bus, store, limit=limit)).total for limit in (3, 3)]
        assert counts == [3, 1] and sorted(await runs(bus)) == ["e-0", "e-1", "e-2"]

    asyncio.run(main())


def test_without_an_end_it_goes_on_until_it_is_told_and_commits_what_it_did():
    async def main():
        bus, store, stopping = await filled(*GOOD), MemoryStore(), asyncio.Event()
        made, counts = foreign.mapping(foreign.ORDERS), source.Counts()

        def tell(outcomes):
            counts.add(outcomes)
            if counts.total == 4:
                stopping.set()

        one = loop.Source(bus, source.SourceStage(store, bus, made, event.no_objects), made, SETTINGS, tell)
        working = asyncio.create_task(loop.run(one, loop.Plan(stopping=stopping)))
        await asyncio.sleep(0.2)
        await bus.produce([port.Outgoing("shop.chat.closed", b"k", json.dumps(NO_ROLLOUT).encode(), [])])
        await asyncio.wait_for(working, 10)
        assert sorted(await runs(bus)) == ["e-0", "e-1", "e-2"] and len(await dead.read_all(bus)) == 1
        assert not any((await bus.lag(group="source-orders", topic="shop.chat.closed")).values())

    asyncio.run(main())


def test_a_rehearsal_counts_the_same_and_leaves_nothing_behind():
    async def main():
        bus, store = await filled(*GOOD, None, NO_ROLLOUT, OTHER), MemoryStore()
        made, counts = foreign.mapping(foreign.ORDERS), source.Counts()
        one = loop.Source(
            bus, source.SourceStage(store, bus, made, event.no_objects), made, SETTINGS, counts.add
        )
        for _ in range(2):
            await loop.rehearse(one, loop.Plan(), from_beginning=False)
        assert str(counts) == "6 mapped · 2 skipped · 2 tombstones · 2 dead letters (missing_rollout 2)"
        assert not await runs(bus) and not await dead.read_all(bus) and not store.snapshot()
        assert sum((await bus.lag(group="source-orders", topic="shop.chat.closed")).values()) == 6
        limited = source.Counts()
        await loop.rehearse(
            loop.Source(bus, one.stage, made, SETTINGS, limited.add), loop.Plan(limit=3), from_beginning=True
        )
        assert limited.total == 3

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (errors.SourceUnavailable, None),
        (OSError, None),
        (errors.Blocked, None),
        (errors.ObjectMissing, "object_missing"),
        (errors.ObjectTooLarge, "object_too_large"),
    ],
)
def test_an_object_that_does_not_answer_is_nobodys_dead_letter_and_one_that_is_not_there_is(fault, reason):
    async def main():
        tables = {"messages": {"object": "url", "at": "turns"}, "objects": {"prefixes": ["s3://chats/"]}}
        made = foreign.mapping(foreign.PLAIN, {**tables, "topic": "shop.chat.closed"}, name="orders")
        bus, store, faults = await filled({"url": "s3://chats/1"}), MemoryStore(), [fault(), fault()]

        def fetch(url, bytes_max):
            if faults:
                raise faults.pop()
            return json.dumps({"turns": [{"role": "user", "content": "Hello."}]}).encode()

        if fault in (errors.Blocked, OSError):
            with pytest.raises(fault):
                await work(bus, store, made=made, fetch=fetch)
            assert sum((await bus.lag(group="source-orders", topic="shop.chat.closed")).values()) == 1
            faults.clear()
        counts = await work(bus, store, made=made, fetch=fetch)
        assert counts.states["mapped"] == (0 if reason else 1)
        assert [one.reason for one in await dead.read_all(bus)] == ([reason] if reason else [])

    asyncio.run(main())


# --- large -------------------------------------------------------------------------------------------------


def test_a_large_conversation_travels_as_a_claim_and_a_large_letter_as_a_pointer():
    async def main():
        long = {
            "turns": [{"from": "customer", "text": "x" * 400_000}, {"from": "assistant", "text": "Done."}]
        }
        fat = {"blob": "y" * 1_500_000}
        bus, store = await filled({**GOOD[0], **long}, {**NO_ROLLOUT, **fat}), MemoryStore()
        await work(bus, store)
        (message,) = [message async for message in bus.read("runs")]
        assert len(message.value) < 4000 and "record_claim" in json.loads(message.value)
        processed = await record_stage.RecordStage(store, bus).process([message])
        assert [one.state for one in processed.outcomes] == ["recorded"]
        (letter,) = await dead.read_all(bus)
        assert letter.pointers and json.loads(await dead.value_of(store, letter)) == {**NO_ROLLOUT, **fat}

    asyncio.run(main())


# --- letters -----------------------------------------------------------------------------------------------


def test_a_letter_keeps_the_message_as_it_came_and_never_goes_to_runs_unmapped():
    async def main():
        bus, store = await filled(NO_ROLLOUT), MemoryStore()
        await work(bus, store)
        (letter,) = await dead.read_all(bus)
        assert (letter.key, json.loads(letter.value), letter.headers) == (b"k0", NO_ROLLOUT, HEADERS)
        assert (letter.topic, letter.offset, letter.source) == ("shop.chat.closed", 0, "orders")
        with pytest.raises(errors.ForeignLetter):
            await dead.redrive(bus, store, [letter], why="x")
        assert not dead.fits(letter) and not await runs(bus)
        assert len([message async for message in bus.read("shop.chat.closed")]) == 1

    asyncio.run(main())


def test_a_letter_is_mapped_anew_by_a_mended_mapping_with_the_id_and_time_of_its_first_reading():
    async def main():
        nameless = {"type": "chat_closed", "ticket": "c-9", "turns": GOOD[0]["turns"]}
        bus, store = await filled(nameless), MemoryStore()
        await work(bus, store)
        (letter,) = await dead.read_all(bus)
        (came,) = [message async for message in bus.read("shop.chat.closed")]
        mended = foreign.mapping(foreign.ORDERS, {"run": {"rollout": "ticket"}})
        stage = source.SourceStage(store, bus, mended, event.no_objects)
        found = await stage.redrive(letter, why="mended", dry_run=True)
        assert found.state == "mapped" and not await runs(bus)
        await stage.redrive(letter, why="mended")
        (message,) = [message async for message in bus.read("runs")]
        first = mended.map(source.given(came), event.no_objects)
        assert message.value == first.event.value() and message.headers == first.event.headers()
        assert record_stage.parse(message).event.id == f"shop.chat.closed/{came.partition}/0"
        assert [one.resolution for one in await dead.read_all(bus)] == ["redriven"]

    asyncio.run(main())


def test_a_letter_that_fails_again_stays_open_and_one_of_another_source_is_refused():
    async def main():
        bus, store = await filled(NO_ROLLOUT), MemoryStore()
        await work(bus, store)
        (letter,) = await dead.read_all(bus)
        stage = source.SourceStage(store, bus, foreign.mapping(foreign.ORDERS), event.no_objects)
        assert (await stage.redrive(letter, why="x")).error.kind == "missing_rollout"
        assert [one.resolution for one in await dead.read_all(bus)] == [None]
        other = foreign.mapping(foreign.ORDERS, {"name": "other"})
        with pytest.raises(errors.ForeignLetter):
            await source.SourceStage(store, bus, other, event.no_objects).redrive(letter, why="x")

    asyncio.run(main())


def test_two_sources_that_refuse_one_message_leave_a_letter_each():
    async def main():
        bus, store = await filled(NO_ROLLOUT), MemoryStore()
        for name in ("orders", "again"):
            await work(bus, store, made=foreign.mapping(foreign.ORDERS, {"name": name}))
        assert {one.source for one in await dead.read_all(bus)} == {"orders", "again"}

    asyncio.run(main())
