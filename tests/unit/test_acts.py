"""The log of acts: each entry is in it once, whatever is lost and whoever writes beside; no change to it is unseen.

Every schedule of two writers with faults is run, on the production code; then each way to change a log that is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hashlib
import json

import pytest

from runlore import clock, errors
from runlore.commit import keys
from runlore.testing import exhaust
from runlore.testing.stores import MemoryStore
from runlore.upkeep import acts, audit, chain

T0 = dt.datetime(2026, 1, 5, 12, tzinfo=dt.UTC)


class Clocks(clock.World):
    """A clock for each writer, far apart, that stands; ids that do not depend on who was first."""

    def __init__(self):
        self.who, self.drawn = 0, {}

    def now(self):
        return T0 + dt.timedelta(days=self.who * 400)

    async def sleep(self, seconds):
        return None

    def random(self):
        return 0.5

    def random_bytes(self, count):
        self.drawn[self.who] = self.drawn.get(self.who, 0) + 1
        return hashlib.sha256(f"{self.who}/{self.drawn[self.who]}".encode()).digest()[:count]


@pytest.fixture
def clocks():
    world = Clocks()
    clock.install(world)
    yield world
    clock.install(clock.World())


class Crash(BaseException):
    """The process dies here."""


class Turn:
    def __await__(self):
        yield


class Stepped(MemoryStore):
    """A store in which each call is a step of its own, whose outcome the schedule chooses for writes."""

    def __init__(self):
        super().__init__()
        self.outcome = lambda: "ok"
        self.told = lambda value: None
        self.late = []

    async def get(self, key):
        await Turn()
        if key == keys.acts_head():
            found = await super().get(key)
            # A move whose reply was lost lands once the writer has looked.
            for write in self.late:
                with contextlib.suppress(errors.PreconditionFailed):
                    await super().compare_and_set(*write)
            self.late.clear()
        else:
            found = await super().get(key)
        self.told(found and found.etag)
        return found

    async def get_many(self, wanted):
        return [await self.get(key) for key in wanted]

    async def put_if_absent(self, key, body):
        return await self._meets(key, body, None)

    async def compare_and_set(self, key, body, etag, *, guard=None):
        return await self._meets(key, body, etag)

    async def _meets(self, key, body, etag):
        await Turn()
        outcome = self.outcome()
        if outcome == "crash before":
            raise Crash
        if outcome == "late" and key == keys.acts_head():
            self.late.append((key, body, etag))
        if outcome in ("lost", "late"):
            raise errors.OutcomeUnknown("reset")
        try:
            made = await MemoryStore.compare_and_set(self, key, body, etag)
        except errors.PreconditionFailed:
            self.told("412")
            raise
        self.told(made)
        if outcome == "crash after":
            raise Crash
        if outcome == "lost but landed":
            raise errors.OutcomeUnknown("reset")
        return made


FAULTS = ("ok", "lost", "lost but landed", "late", "crash before", "crash after")


def run_writers(gen, clocks, *, writers, faults):
    """Every writer appends one entry, one step at a time; (the store, what each got)."""
    store, left = Stepped(), [faults]
    clocks.drawn.clear()
    history, steps = [[] for _ in range(writers)], [0] * writers
    got = {}

    async def write(number):
        try:
            got[number] = await acts.append(store, acts.BEGUN, {"of": number})
        except Crash:
            got[number] = "crashed"
        except errors.RunloreError as exc:
            got[number] = exc.kind

    def outcome():
        options = FAULTS if left[0] else FAULTS[:1]
        chosen = options[gen.choose(len(options))] if len(options) > 1 else "ok"
        left[0] -= chosen != "ok"
        history[clocks.who].append(chosen)
        return chosen

    store.outcome = outcome
    store.told = lambda value: history[clocks.who].append(value)
    running = {number: write(number) for number in range(writers)}
    try:
        while running:
            names = sorted(running)

            def state():
                return store.fingerprint(), left[0], repr(store.late), repr(history), tuple(steps)

            clocks.who = names[gen.choose(len(names), state)] if len(names) > 1 else names[0]
            steps[clocks.who] += 1
            try:
                running[clocks.who].send(None)
            except StopIteration:
                del running[clocks.who]
    finally:
        for one in running.values():
            one.close()
    return store, got


def check_writers(store, got):
    async def look():
        plain = MemoryStore()
        plain._objects, plain._order = store._objects, store._order
        found = await acts.verify(plain)
        assert found.problems == [], (found.problems, got)
        held = [one async for one in acts.newest_first(plain)]
        for number, place in got.items():
            mine = [one for one in held if one.body["of"] == number]
            # Told that it is in the log: it is, there, once. Not told: once at most.
            assert len(mine) <= 1
            if isinstance(place, chain.Tip):
                assert [one.number for one in mine] == [place.number]
        assert found.entries == len(held)

    asyncio.run(look())


@pytest.mark.parametrize(("writers", "faults"), [(2, 1), (1, 3), (3, 0)])
def test_whoever_was_told_that_an_entry_is_in_the_log_finds_it_there_once(clocks, writers, faults):
    def run(gen):
        check_writers(*run_writers(gen, clocks, writers=writers, faults=faults))

    explored = exhaust.explore(run, schedules_max=60_000)
    assert explored.complete > 20


@pytest.mark.parametrize("mutant", ["forgets what it tried", "puts no entry"])
def test_the_schedules_find_a_writer_that_is_wrong(clocks, monkeypatch, mutant):
    async def holds_nothing(self, store, tip, wanted):
        return False

    async def puts_nothing(self, store, place, raw):
        await Turn()

    if mutant == "forgets what it tried":
        monkeypatch.setattr(chain.Chain, "holds", holds_nothing)
    else:
        monkeypatch.setattr(chain.Chain, "put", puts_nothing)
    with pytest.raises((AssertionError, errors.Corrupt)):
        exhaust.explore(
            lambda gen: check_writers(*run_writers(gen, clocks, writers=2, faults=1)), schedules_max=9_000
        )


# --- changes to a log -------------------------------------------------------------------------------------------


async def filled(count=6):
    """A store with a log of acts and anchors, what was written, and the head as it was after each entry."""
    store, heads_then = MemoryStore(), []
    for number in range(count):
        kind = acts.ANCHOR if number % 3 == 1 else acts.BEGUN
        await acts.append(store, kind, {"of": number})
        heads_then.append(store.body(keys.acts_head()))
    return store, heads_then


def entries(store):
    return sorted(key for key in store.snapshot() if key.startswith(keys.acts()))


async def problems(store, expected=None):
    return (await acts.verify(store, expected)).problems


async def test_an_untouched_log_is_whole_and_anchors_are_passed_over_by_whoever_lists_acts():
    store, _ = await filled(9)
    found = await acts.verify(store)
    assert (found.entries, found.beside, found.problems) == (9, 0, [])
    assert [one.body["of"] async for one in acts.newest_first(store)] == [8, 6, 5, 3, 2, 0]


async def test_an_empty_log_is_whole_and_has_no_acts():
    assert await problems(MemoryStore()) == []
    assert [one async for one in acts.newest_first(MemoryStore())] == []


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("how", ["removed", "altered", "altered and renamed", "exchanged"])
async def test_an_entry_that_was_removed_altered_or_exchanged_is_found(number, how):
    store, _ = await filled()
    key = entries(store)[number]
    raw = store.body(key)
    changed = json.dumps({**json.loads(raw), "body": {"of": 99}}).encode()
    other = store.body(entries(store)[number - 1])
    await store.delete(key)
    if how == "altered":
        await store.put(key, changed)
    elif how == "altered and renamed":
        await store.put(keys.act_entry(number + 1, hashlib.sha256(changed).hexdigest()), changed)
    elif how == "exchanged":
        await store.put(key, other)
    assert await problems(store)


async def test_an_entry_that_was_put_in_between_is_told_as_beside_and_changes_nothing():
    store, _ = await filled()
    raw = json.loads(store.body(entries(store)[3]))
    forged = json.dumps({**raw, "body": {"of": 99}}).encode()
    await store.put(keys.act_entry(4, hashlib.sha256(forged).hexdigest()), forged)
    found = await acts.verify(store)
    assert (found.entries, found.beside, found.problems) == (6, 1, [])
    assert 99 not in [one.body["of"] async for one in acts.newest_first(store)]


@pytest.mark.parametrize("back", range(2, 6))
@pytest.mark.parametrize("later", [0, 1, 7])
async def test_a_head_that_was_set_back_is_found_while_entries_stay_also_once_others_wrote_on(back, later):
    store, heads_then = await filled()
    await store.put(keys.acts_head(), heads_then[5 - back])
    for number in range(later):
        await acts.append(store, acts.BEGUN, {"of": 100 + number})
    (problem,) = await problems(store)
    assert "set back" in problem


async def test_a_head_set_back_by_one_hides_how_one_act_ended_and_is_found_by_what_was_written_down():
    store, heads_then = await filled()
    written = (await acts.read(store)).tip
    await store.put(keys.acts_head(), heads_then[4])
    assert await problems(store) == [] and await problems(store, written)


async def test_a_tail_that_was_cut_with_its_head_set_back_is_found_by_what_was_written_down():
    store, heads_then = await filled()
    written = (await acts.read(store)).tip
    await store.put(keys.acts_head(), heads_then[2])
    for key in entries(store)[3:]:
        await store.delete(key)
    assert await problems(store) == []
    (problem,) = await problems(store, written)
    assert "written down" in problem


async def test_a_tail_that_was_cut_below_its_head_is_found():
    store, _ = await filled()
    await store.delete(entries(store)[-1])
    assert "missing" in (await problems(store))[0]


async def test_a_head_that_passes_over_acts_is_found():
    store, heads_then = await filled()
    head = json.loads(heads_then[-1])
    head["act"] = json.loads(heads_then[0])["act"]
    await store.put(keys.acts_head(), json.dumps(head).encode())
    assert await problems(store)


async def test_a_head_or_an_entry_of_another_shape_is_told_and_never_written_over():
    store, _ = await filled()
    await store.put(keys.acts_head(), b'{"format": "runlore.acts/1", "tip": 7}')
    with pytest.raises(errors.Corrupt):
        await acts.append(store, acts.BEGUN, {})
    await store.put(keys.acts_head(), b'{"format": "runlore.acts/2"}')
    with pytest.raises(errors.Fatal):
        await acts.append(store, acts.BEGUN, {})


async def test_many_writers_each_have_their_acts_in_one_chain():
    store = MemoryStore()

    async def act(number):
        async with audit.acting(store, by={"user": f"u{number}"}, what="pause", projects=["acme"]):
            await asyncio.sleep(0)

    await asyncio.gather(*(act(number) for number in range(12)))
    found = [one async for one in audit.newest_first(store)]
    assert {one.by["user"] for one in found} == {f"u{number}" for number in range(12)}
    assert all(one.state == audit.DONE for one in found) and await problems(store) == []


async def test_a_list_since_a_time_ends_where_all_is_older_also_where_a_clock_was_ahead(clocks):
    store = MemoryStore()
    for who in (*(0,) * 40, 3, 0, 1, 0):
        clocks.who = who
        async with audit.acting(store, by={"user": f"u{who}"}, what="pause"):
            pass
    since = T0 + dt.timedelta(days=399)
    read = []
    get_many = store.get_many

    async def noted(wanted):
        read.extend(wanted)
        return await get_many(wanted)

    store.get_many = noted
    assert [one.by["user"] async for one in audit.newest_first(store, since=since)] == ["u1", "u3"]
    assert min(int(key.rpartition("/")[2][:12]) for key in read) > 50
