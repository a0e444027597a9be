"""Allotments: over any number of replicas no more is let through than the limit, and hardly less where it is asked for.

Replicas are tasks of one loop on one store in memory, which lets others go first as Hypothesis says, refuses, and
loses replies; the clock stands still until somebody moves it.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json

import hypothesis
import pytest
from hypothesis import strategies as st

from runlore import clock, errors
from runlore.commit import heads, keys
from runlore.testing.stores import MemoryStore
from runlore.upkeep import allotments

BEGAN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
MINUTE = int(BEGAN.timestamp() // 60)
FINE, CONFLICT, AWAY, LOST, LANDED, LATE = "fine", "409", "503", "lost", "lost, landed", "lost, lands later"


class Stopped(clock.World):
    """A clock that somebody moves; who sleeps lets others go."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds

    def now(self):
        return BEGAN + dt.timedelta(seconds=self.seconds)

    def monotonic(self):
        return self.seconds

    async def sleep(self, seconds):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def world():
    found, before = Stopped(), clock._world.get()
    clock.install(found)
    yield found
    clock.install(before)


class Faulty(MemoryStore):
    """A store whose calls take as long, and whose writes go as wrong, as they are told."""

    def __init__(self, waits=(), faults=()):
        super().__init__()
        self._waits, self._faults = list(waits), list(faults)
        self.writes, self.late = 0, []

    async def _pass(self):
        for _ in range(self._waits.pop() if self._waits else 0):
            await asyncio.sleep(0)

    async def get(self, key):
        await self._pass()
        found = await super().get(key)
        await self._pass()
        return found

    async def compare_and_set(self, key, body, etag, *, guard=None):
        await self._pass()
        fault = self._faults.pop() if self._faults else FINE
        if fault == CONFLICT:
            raise errors.WriteConflict
        if fault == AWAY:
            raise errors.StoreUnavailable
        if fault == LATE:
            self.late.append((key, body, etag))
        if fault in (FINE, LANDED):
            self.writes += 1
            fault_etag = await super().compare_and_set(key, body, etag, guard=guard)
            if fault == FINE:
                if self.late:
                    await self._land()
                return fault_etag
        raise errors.OutcomeUnknown

    async def _land(self):
        """What was on its way lands, if nobody wrote since."""
        key, body, etag = self.late.pop()
        try:
            await super().compare_and_set(key, body, etag)
        except errors.PreconditionFailed:
            return


def want(most=10, **more):
    given = {"limits": {"requests": most}, "units": {"requests": 1}, **more}
    return allotments.Want("acme", "seed", **given)


async def let_through(replica, *wants):
    try:
        await replica.spend(wants)
    except errors.RateLimited:
        return False
    return True


def handed_out(store, thing="seed", key=None):
    """minute → what the tally says was handed out of it."""
    raw = store.body(keys.tally("acme", thing, key))
    return {one["minute"]: one["taken"] for one in json.loads(raw)["minutes"]} if raw else {}


SCHEDULES = st.fixed_dictionaries(
    {
        "limit": st.one_of(st.integers(0, 45), st.integers(46, 400)),
        "replicas": st.integers(1, 6),
        "waits": st.lists(st.integers(0, 3), max_size=80),
        "faults": st.lists(
            st.sampled_from([FINE, FINE, FINE, CONFLICT, AWAY, LOST, LANDED, LATE]), max_size=20
        ),
        "order": st.lists(st.integers(0, 5), min_size=1, max_size=60),
        "at_once": st.integers(1, 40),
    }
)


async def whole_minute(one, replica_of=allotments.Allotments):
    """Everybody asks until everybody was refused: (let through, by whom, what the tally says, the store)."""
    store = Faulty(one["waits"], one["faults"])
    replicas = [replica_of(store) for _ in range(one["replicas"])]
    passed = [0] * len(replicas)

    async def ask(number):
        if await let_through(replicas[number], want(one["limit"])):
            passed[number] += 1
            return True
        return False

    for first in range(0, len(one["order"]), one["at_once"]):
        some = one["order"][first : first + one["at_once"]]
        await asyncio.gather(*(ask(number % len(replicas)) for number in some))
    # Then one of them is asked until it refuses: what the others hold by then is what is let go to waste.
    last = one["order"][0] % len(replicas)
    while await ask(last):
        assert sum(passed) <= one["limit"], (one, passed)
    taken = handed_out(store).get(MINUTE, {}).get("requests", 0)
    return passed, last, taken, store


@hypothesis.given(SCHEDULES)
def test_replicas_never_let_through_more_than_the_limit_and_hold_little_of_it_back(one):
    passed, last, taken, store = asyncio.run(whole_minute(one))
    limit = one["limit"]
    assert sum(passed) <= taken <= limit
    lost = [fault for fault in one["faults"] if fault in (LANDED, LATE)]
    if not lost:
        held = [min(max(0, limit // allotments.SHARE - 1), count) for count in passed]
        held[last] = 0
        assert sum(passed) >= limit - sum(held), (passed, taken)
    assert not store.late or lost


async def credited_when_lost(store, where, minute, wanted):
    """The mutant that takes a lost reply, or a lost race, for a write that landed."""
    head = await heads.read(store, where, fmt=allotments.FORMAT)
    taken = allotments._taken(head, minute)
    units = wanted(taken)
    after = {unit: taken.get(unit, 0) + units.get(unit, 0) for unit in {*taken, *units}}
    try:
        minutes = allotments._minutes(head, minute, after)
        await heads.move(store, head, {"minutes": minutes}, fmt=allotments.FORMAT)
    except errors.HeadMoved:
        pass
    return units, after


@pytest.mark.parametrize("which", ["what did not land is used", "the tally is written over"])
def test_a_mutant_that_hands_out_twice_is_caught(monkeypatch, which):
    if which == "what did not land is used":
        monkeypatch.setattr(allotments, "take", credited_when_lost)
    else:
        monkeypatch.setattr(MemoryStore, "_expect", lambda self, key, etag: None)

    def is_broken(one):
        try:
            passed, *_ = asyncio.run(whole_minute(one))
        except AssertionError:
            return True
        return sum(passed) > one["limit"]

    # Raises where nothing shows it.
    hypothesis.find(SCHEDULES, is_broken, settings=hypothesis.settings(phases=[hypothesis.Phase.generate]))


async def test_a_limit_below_forty_is_exact_whoever_asks():
    for most in (0, 1, 7, 39):
        store = Faulty()
        replicas = [allotments.Allotments(store) for _ in range(5)]
        asked = [await let_through(replicas[number % 5], want(most)) for number in range(2 * most + 5)]
        assert asked == [True] * most + [False] * (most + 5)


async def test_few_writes_let_many_through_and_those_who_wait_at_once_share_one():
    store = Faulty()
    one = allotments.Allotments(store)
    assert sum([await let_through(one, want(6000)) for _ in range(6100)]) == 6000
    assert store.writes < 70
    before = store.writes
    big = [let_through(one, want(6000, key="k")) for _ in range(500)]
    assert all(await asyncio.gather(*big)) and store.writes == before + 1


async def test_nobody_reads_the_store_for_one_who_is_refused_until_the_minute_turns(world):
    store = Faulty()
    one, other = allotments.Allotments(store), allotments.Allotments(store)
    assert [await let_through(one, want(2)) for _ in range(3)] == [True, True, False]
    assert not await let_through(other, want(2))
    store.get = None
    world.seconds = 42.5
    with pytest.raises(errors.RateLimited) as refused:
        await other.spend([want(2)])
    assert refused.value.context["retry_seconds"] == 18
    assert "may ask for seed 2 times" in refused.value.message
    del store.get
    world.seconds = 60.0
    assert [await let_through(each, want(2)) for each in (one, other, one)] == [True, True, False]


async def test_clocks_that_disagree_count_each_its_own_minute_and_old_minutes_do_not_pile_up(world):
    store = Faulty()
    one = allotments.Allotments(store)
    for seconds in (0, 86_400, 0, 86_400, 60, 86_460, 60):
        world.seconds = seconds
        while await let_through(one, want(5)):
            pass
    days = {0, 1, 1440, 1441}
    assert handed_out(store) == {MINUTE + minute: {"requests": 5} for minute in days}
    for minute in range(2, 40):
        world.seconds = minute * 60
        assert await let_through(one, want(5))
    assert len(handed_out(store)) == allotments.MINUTES_KEPT and len(store.snapshot()) == 1


async def test_a_request_passes_all_of_its_limits_or_takes_of_none():
    store = Faulty()
    one = allotments.Allotments(store)
    own = want(3, key="0123")
    assert [await let_through(one, own, want(10)) for _ in range(4)] == [True] * 3 + [False]
    assert one.standing([own, want(10)])["requests"] == allotments.Standing(3, 0, 60)
    # What the key was refused took nothing of the project's.
    assert [await let_through(one, want(10)) for _ in range(8)] == [True] * 7 + [False]
    assert handed_out(store, key="0123") == {MINUTE: {"requests": 3}}
    assert not await let_through(one, want(10, key="4567"), want(10))
    assert one.standing([want(10, key="4567")])["requests"].remaining == 10


async def test_bytes_are_counted_beside_requests_and_what_does_not_fit_leaves_room_for_what_does():
    store = Faulty()
    one = allotments.Allotments(store)

    def body(size):
        return want(limits={"requests": 100, "bytes": 1000}, units={"requests": 1, "bytes": size})

    assert [await let_through(one, body(size)) for size in (400, 400, 400, 150, 0, 51, 50, 1)] == [
        *(True, True, False, True, True, False, True, False)
    ]
    with pytest.raises(errors.RateLimited) as refused:
        await one.spend([body(1001)])
    assert "1000 bytes in a minute, and this alone has 1001" in refused.value.message
    together = allotments.Allotments(Faulty())
    sizes = (600, 600, 300, 300)
    assert await asyncio.gather(*(let_through(together, body(size)) for size in sizes)) == [
        *(True, False, True, False)
    ]


async def test_a_limit_that_is_changed_holds_for_what_is_asked_from_then_on():
    store = Faulty()
    one, other = allotments.Allotments(store), allotments.Allotments(store)
    for each in (one, other):
        for _ in range(20):
            assert await let_through(each, want(1000))
    # What was taken in advance under the higher limit is let go.
    assert not await let_through(one, want(40))
    assert [await let_through(one, want(44)) for _ in range(2)] == [False, False]
    assert await let_through(other, want(1000))
    taken = handed_out(store)[MINUTE]["requests"]
    assert [await let_through(one, want(taken + 2)) for _ in range(3)] == [True, True, False]
    more = want(limits={"requests": 1000, "bytes": 10}, units={"requests": 1, "bytes": 9})
    assert [await let_through(one, more) for _ in range(2)] == [True, False]


async def test_what_is_held_lets_through_while_the_store_is_away_and_then_nobody_can_say():
    store = Faulty()
    one = allotments.Allotments(store)
    for _ in range(5):
        assert await let_through(one, want(1000))
    store._faults = [AWAY] * 1000
    held = 0
    with pytest.raises(errors.StoreUnavailable):
        while True:
            held += await let_through(one, want(1000))
    assert held == handed_out(store)[MINUTE]["requests"] - 5 > 0
    store._faults = []
    assert await let_through(one, want(1000))


async def test_a_store_that_never_answers_is_given_up_and_what_lands_late_is_nobody_s(monkeypatch):
    monkeypatch.setattr(allotments, "TAKE_SECONDS_MAX", 0.01)
    store = Faulty()
    one, write, hold, late = allotments.Allotments(store), store.compare_and_set, asyncio.Event(), []

    async def slowly(*given, **more):
        late.append(asyncio.create_task(landed(*given, **more)))
        await asyncio.shield(late[0])

    async def landed(*given, **more):
        await hold.wait()
        return await write(*given, **more)

    store.compare_and_set = slowly
    with pytest.raises(errors.StoreUnavailable):
        await one.spend([want(3)])
    hold.set()
    store.compare_and_set = write
    await asyncio.gather(*late)
    assert [await let_through(one, want(3)) for _ in range(3)] == [True, True, False]


async def test_one_who_goes_away_leaves_those_who_wait_with_them_theirs():
    store = Faulty()
    one = allotments.Allotments(store)
    store._waits = [1] * 50
    waiting = [asyncio.create_task(let_through(one, want(4))) for _ in range(4)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    assert await asyncio.gather(*waiting[1:]) == [True] * 3
    # What was taken for the first is the next one's.
    assert [await let_through(one, want(4)) for _ in range(2)] == [True, False]


async def test_a_tally_that_is_none_is_told_and_one_of_a_newer_version_is_left_alone():
    store = MemoryStore()
    where = keys.tally("acme", "seed")
    for body, error in (
        (b'{"format": "runlore.tally/1", "minutes": [1]}', errors.Corrupt),
        (b'{"format": "runlore.tally/2"}', errors.Fatal),
    ):
        await store.put(where, body)
        with pytest.raises(error):
            await allotments.Allotments(store).spend([want()])
        assert store.body(where) == body
