"""The log of seeds: no seed leaves before its entry is kept; no change to a chain is unseen; read newest first."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import json

import pytest

from runlore import clock, errors
from runlore.commit import keys, puts
from runlore.testing.buses import MemoryBus
from runlore.testing.stores import MemoryStore
from runlore.upkeep import acts, logs, seedlog, seedwriter, verify

BY = {"user": "serve", "host": "pod-1"}
T0 = dt.datetime(2026, 1, 5, 12, 30, tzinfo=dt.UTC)


class Times(clock.World):
    """A clock that stands until it is moved."""

    def __init__(self):
        self.at = T0
        self.steady = 0.0

    def now(self):
        return self.at

    def monotonic(self):
        return self.steady

    async def sleep(self, seconds):
        await asyncio.sleep(0)


@pytest.fixture
def times():
    world = Times()
    clock.install(world)
    yield world
    clock.install(clock.World())


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(puts, "WAIT_SECONDS_MIN", 0.0)
    monkeypatch.setattr(seedwriter, "AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(seedwriter, "GATHER_SECONDS", 0.0)


def seed(number=1, *, key="k1", project="acme", rollout="conv", revision=41, **more):
    return seedlog.Handed(
        at=clock.now_iso(),
        how=seedlog.SEED,
        by={"via": "http", "key": key, "name": f"name of {key}"},
        project=project,
        memory="support",
        seed=f"s1.{number}",
        revision=revision,
        manifest="a" * 64,
        rollout=rollout,
        agent="main",
        **{"snapshot": "b" * 64, **more},
    )


async def turns(count):
    """Let what runs beside have so many turns."""
    for _ in range(count):
        await asyncio.sleep(0)


async def links(store):
    return [row.key async for row in store.list(keys.seeds())]


async def told(store, wanted=None, **more):
    return [one.seed async for one in seedlog.newest_first(store, wanted, **more)]


async def problems(store):
    return (await logs.verify(store)).problems


class Gated(MemoryStore):
    """A store in which the put of a link waits to be let go."""

    def __init__(self):
        super().__init__()
        self.gate, self.reached = asyncio.Event(), asyncio.Event()

    async def put_if_absent(self, key, body):
        if key.startswith(keys.seeds()):
            self.reached.set()
            await self.gate.wait()
        return await super().put_if_absent(key, body)


class Faulty(MemoryStore):
    """A store whose writes of some keys go wrong, so often as is said."""

    def __init__(self, prefix, *faults):
        super().__init__()
        self.prefix, self.faults = prefix, list(faults)

    async def compare_and_set(self, key, body, etag, *, guard=None):
        fault = self.faults.pop(0) if self.faults and key.startswith(self.prefix) else None
        if isinstance(fault, errors.RunloreError):
            raise fault
        made = await super().compare_and_set(key, body, etag, guard=guard)
        if fault == "landed":
            raise errors.OutcomeUnknown("reset")
        return made


LOST = errors.OutcomeUnknown("reset")
REFUSED = errors.Blocked("no right to it")


# --- writing ------------------------------------------------------------------------------------------------


async def test_nobody_is_answered_before_the_entry_is_kept_and_those_that_wait_share_a_link():
    store = Gated()
    writer = seedwriter.Writer(store, by=BY)
    first = asyncio.create_task(writer.hand_out(seed(0)))
    await store.reached.wait()
    others = [asyncio.create_task(writer.hand_out(seed(number))) for number in range(1, 50)]
    await asyncio.sleep(0)
    assert not first.done() and not any(one.done() for one in others)
    store.gate.set()
    await asyncio.gather(first, *others)
    assert len(await links(store)) == 2 and len(await told(store)) == 50
    await writer.close()
    found = await logs.verify(store)
    assert (found.seeds.writers, found.seeds.links, found.seeds.entries, found.problems) == (1, 2, 50, [])
    anchors = [one async for one in acts.LOG.newest_first(store, found.acts.tip)]
    assert [one.body["state"] for one in anchors] == ["ended", "began"]


@pytest.mark.parametrize(
    "prefix", [keys.seeds(), keys.acts_head(), keys.acts()], ids=["link", "head", "anchor"]
)
@pytest.mark.parametrize("faults", [(LOST,), ("landed",), (LOST, "landed"), (errors.WriteConflict("409"),)])
async def test_a_lost_reply_neither_loses_an_entry_nor_doubles_one(prefix, faults):
    store = Faulty(prefix, *faults)
    writer = seedwriter.Writer(store, by=BY)
    for number in range(3):
        await writer.hand_out(seed(number))
    await writer.close()
    assert await told(store) == ["s1.2", "s1.1", "s1.0"] and await problems(store) == []


@pytest.mark.parametrize("prefix", [keys.seeds(), keys.acts_head()], ids=["link", "anchor"])
@pytest.mark.parametrize("fault", [LOST, REFUSED], ids=["lost", "refused"])
async def test_where_it_can_not_be_kept_no_seed_is_handed_out_and_the_chain_goes_on_afterwards(prefix, fault):
    store = Faulty(prefix, *[fault] * 200)
    writer = seedwriter.Writer(store, by=BY)
    with pytest.raises((errors.StoreUnavailable, errors.Blocked)):
        await writer.hand_out(seed(0))
    store.faults.clear()
    await writer.hand_out(seed(1))
    await writer.close()
    # What was refused may be told, too: never less than what was handed out.
    assert await told(store) == ["s1.1", "s1.0"] and await problems(store) == []


async def test_a_store_that_does_not_answer_ends_the_wait(monkeypatch):
    monkeypatch.setattr(seedwriter, "WAIT_SECONDS_MAX", 0.01)
    monkeypatch.setattr(seedwriter, "CLOSE_SECONDS_MAX", 0.01)
    store = Gated()
    writer = seedwriter.Writer(store, by=BY)
    with pytest.raises(errors.StoreUnavailable):
        await writer.hand_out(seed())
    await writer.close()
    with pytest.raises(errors.StoreUnavailable):
        await writer.hand_out(seed())
    assert await links(store) == []


async def test_who_went_away_while_waiting_harms_nobody():
    store = Gated()
    writer = seedwriter.Writer(store, by=BY)
    gone = asyncio.create_task(writer.hand_out(seed(0)))
    await store.reached.wait()
    gone.cancel()
    stays = asyncio.create_task(writer.hand_out(seed(1)))
    store.gate.set()
    await stays
    assert await told(store) == ["s1.1", "s1.0"]
    await writer.close()


async def test_beside_nobody_waits_and_what_waits_is_put_when_it_closes():
    store = Gated()
    writer = seedwriter.Writer(store, by=BY, mode=seedwriter.BESIDE)
    for number in range(3):
        await writer.hand_out(seed(number))
    assert await links(store) == []
    store.gate.set()
    await writer.close()
    assert await told(store) == ["s1.2", "s1.1", "s1.0"] and await problems(store) == []


async def test_beside_a_store_that_is_away_for_a_while_loses_nothing_and_for_long_ends_the_handing_out(
    monkeypatch,
):
    monkeypatch.setattr(seedwriter, "WAITING_MAX", 3)
    store = Faulty(keys.seeds(), *[LOST] * 30)
    writer = seedwriter.Writer(store, by=BY, mode=seedwriter.BESIDE)
    for number in range(3):
        await writer.hand_out(seed(number))
    with pytest.raises(errors.Overloaded):
        await writer.hand_out(seed(3))
    await turns(500)
    await writer.close()
    assert len(await told(store)) == 3 and await problems(store) == []


async def test_off_writes_nothing():
    store = MemoryStore()
    writer = seedwriter.Writer(store, by=BY, mode=seedwriter.OFF)
    await writer.hand_out(seed())
    await writer.close()
    assert store.snapshot() == {}


async def test_of_one_who_has_a_seed_its_files_are_not_told_again():
    store = MemoryStore()
    writer = seedwriter.Writer(store, by=BY)
    await writer.hand_out(seed(1))
    for key in ("k1", "k2", "k2"):
        await writer.hand_out(seed(1, key=key), once=True)
    assert [one.by["key"] async for one in seedlog.newest_first(store)] == ["k2", "k1"]
    await writer.close()


async def test_a_chain_is_anchored_as_it_grows_and_a_clock_that_goes_back_moves_no_link_to_an_earlier_hour(
    times, monkeypatch
):
    monkeypatch.setattr(seedwriter, "ANCHOR_LINKS", 3)
    store = MemoryStore()
    writer = seedwriter.Writer(store, by=BY)
    for number in range(8):
        await writer.hand_out(seed(number))
        times.at -= dt.timedelta(hours=number)
        # The writer's own turn, in which it anchors.
        await turns(20)
    assert len({seedlog.named(key).hour for key in await links(store)}) == 1
    anchors = [one.body async for one in acts.LOG.newest_first(store, (await acts.read(store)).tip)]
    assert [one["number"] for one in anchors] == [7, 4, 1]
    # Killed here: its chain has no end, and is whole.
    assert await problems(store) == []
    for key in (await links(store))[6:]:
        await store.delete(key)
    (problem,) = await problems(store)
    assert "cut after 6" in problem
    await writer.close()


async def test_a_time_that_has_come_anchors_what_was_added_since(times, monkeypatch):
    store = MemoryStore()
    writer = seedwriter.Writer(store, by=BY)
    await writer.hand_out(seed(0))
    await writer.hand_out(seed(1))
    assert (await acts.read(store)).tip.number == 1
    times.steady += seedwriter.ANCHOR_SECONDS
    await writer.hand_out(seed(2))
    await turns(100)
    assert (await acts.read(store)).tip.number == 2
    assert await problems(store) == []
    await writer.close()


@pytest.mark.parametrize("mode", [seedwriter.BEFORE, seedwriter.BESIDE])
async def test_a_process_that_begins_anchors_what_one_that_was_killed_left(mode, monkeypatch):
    store = await filled(4, close=False)
    for _ in range(2):
        # The next one, and one that finds it.
        other = seedwriter.Writer(store, by=BY, mode=mode, looks_at_others=True)
        await other.hand_out(seed(9))
        await turns(100)
    assert await problems(store) == []
    await store.delete((await links(store))[3])
    (problem,) = await problems(store)
    assert "cut after 3" in problem
    await other.close()


# --- changes to a log ---------------------------------------------------------------------------------------


async def filled(count=5, *, close=True, store=None, key="k1"):
    """A store with so many links of one writer."""
    store = store or MemoryStore()
    writer = seedwriter.Writer(store, by=BY)
    for number in range(count):
        await writer.hand_out(seed(number, key=key))
    if close:
        await writer.close()
    return store


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize(
    "how", ["removed", "altered", "altered and renamed", "exchanged", "moved", "doubled"]
)
async def test_a_link_that_was_removed_altered_exchanged_moved_or_added_is_found(number, how):
    store = await filled()
    assert await problems(store) == []
    key = (await links(store))[number]
    name, raw = seedlog.named(key), store.body(key)
    other = store.body((await links(store))[number - 1])
    changed = json.dumps({**json.loads(raw), "at": "2026"}).encode()
    renamed = keys.seeds_link(name.hour, name.writer, name.number, hashlib.sha256(changed).hexdigest())
    if how != "doubled":
        await store.delete(key)
    if how == "altered":
        await store.put(key, changed)
    elif how in ("altered and renamed", "doubled"):
        await store.put(renamed, changed)
    elif how == "exchanged":
        await store.put(key, other)
    elif how == "moved":
        await store.put(keys.seeds_link("2026-01-01-00", name.writer, name.number, name.sha256), raw)
    found = await problems(store)
    assert found and name.writer in found[0]


@pytest.mark.parametrize("left", range(5))
async def test_a_chain_that_was_cut_behind_its_end_or_is_gone_is_found(left):
    store = await filled()
    for key in (await links(store))[left:]:
        await store.delete(key)
    (problem,) = await problems(store)
    assert ("missing" if left == 0 else f"cut after {left}") in problem


async def test_a_link_after_the_end_and_a_chain_that_nobody_began_are_found():
    store = await filled(2)
    (*_, last) = await links(store)
    name = seedlog.named(last)
    body = {**json.loads(store.body(last)), "number": 3, "previous": name.sha256}
    raw = json.dumps(body).encode()
    await store.put(keys.seeds_link(name.hour, name.writer, 3, hashlib.sha256(raw).hexdigest()), raw)
    assert "after its end" in (await problems(store))[0]
    previous = ""
    strange = await filled(1)
    for number in (1, 2):
        raw = json.dumps({**body, "writer": "x", "number": number, "previous": previous}).encode()
        previous = hashlib.sha256(raw).hexdigest()
        await strange.put(keys.seeds_link(name.hour, "x", number, previous), raw)
    assert "does not know the writer x" in (await problems(strange))[0]


async def test_a_writer_that_died_before_it_answered_anybody_is_no_problem():
    store = Faulty(keys.acts_head(), *[LOST] * 200)
    writer = seedwriter.Writer(store, by=BY)
    with pytest.raises(errors.StoreUnavailable):
        await writer.hand_out(seed())
    found = await logs.verify(store)
    assert (found.seeds.beside, found.seeds.links, found.problems) == (1, 1, [])


async def test_a_writer_that_began_while_the_others_were_looked_at_is_no_problem():
    store = await filled()
    anchors = seedlog.Anchors()
    await acts.verify(store, on_entry=anchors.look)
    await filled(3, store=store)
    found = await seedlog.verify(store, anchors)
    assert (found.writers, found.problems) == (2, [])


async def test_an_anchor_that_was_removed_is_found_by_the_log_of_acts():
    store = await filled()
    await store.delete(sorted(key for key in store.snapshot() if key.startswith(keys.acts()))[0])
    assert await problems(store)


async def test_runlore_verify_tells_of_a_broken_log_of_seeds():
    store = await filled()
    assert not (await verify.verify(store, MemoryBus())).violations
    await store.delete((await links(store))[2])
    (violation,) = (await verify.verify(store, MemoryBus())).violations
    assert violation.where == keys.seeds() and "missing" in violation.what


# --- reading ------------------------------------------------------------------------------------------------


async def test_seeds_of_all_writers_are_told_newest_first_by_what_is_asked_and_from_any_one_on(times):
    store = MemoryStore()
    writers = [seedwriter.Writer(store, by=BY) for _ in range(3)]
    given = []
    for number in range(60):
        times.at += dt.timedelta(minutes=7)
        one = seed(number, key=f"k{number % 4}", rollout=f"r{number % 5}", revision=40 + number % 2)
        await writers[number % 3].hand_out(one)
        given.append(one)
    for writer in writers:
        await writer.close()
    everything = [one async for one in seedlog.newest_first(store)]
    assert [one.seed for one in everything] == [one.seed for one in reversed(given)]
    for at in (0, 7, 58):
        assert await told(store, after=everything[at].id) == [one.seed for one in everything[at + 1 :]]
    since = given[30]
    wanted = seedlog.Wanted(since=dt.datetime.fromisoformat(since.at))
    assert len(await told(store, wanted)) == 30
    for asked, is_meant in (
        (seedlog.Wanted(revision=41), lambda one: one.revision == 41),
        (seedlog.Wanted(actor="k2"), lambda one: one.by["key"] == "k2"),
        (
            seedlog.Wanted(actor="name of k2", rollout="r1"),
            lambda one: one.by["key"] == "k2" and one.rollout == "r1",
        ),
        (seedlog.Wanted(project="zeta"), lambda one: False),
        (seedlog.Wanted(project="acme", memory="support", snapshot="bbbb"), lambda one: True),
    ):
        assert await told(store, asked) == [one.seed for one in reversed(given) if is_meant(one)]


async def test_the_newest_are_told_without_reading_what_came_before(times):
    store = await filled(3)
    old = await links(store)
    times.at += dt.timedelta(days=1)
    await filled(3, store=store)
    read = []
    get_many = store.get_many

    async def noted(wanted):
        read.extend(wanted)
        return await get_many(wanted)

    store.get_many = noted
    found = seedlog.newest_first(store)
    for _ in range(3):
        await anext(found)
    await found.aclose()
    assert read and not set(read) & set(old)


async def test_an_entry_of_a_newer_version_is_read_and_a_broken_link_is_told():
    store = MemoryStore()
    writer = seedwriter.Writer(store, by=BY)
    await writer.hand_out(seed(1, request="r-1", subject="rl-abc", snapshot=None))
    await writer.close()
    (one,) = [one async for one in seedlog.newest_first(store)]
    assert (one.request, one.subject, one.snapshot) == ("r-1", "rl-abc", None)
    (key,) = await links(store)
    body = json.loads(store.body(key))
    body["entries"][0]["newer"] = 1
    raw = json.dumps(body).encode()
    name = seedlog.named(key)
    await store.delete(key)
    await store.put(keys.seeds_link(name.hour, name.writer, 1, hashlib.sha256(raw).hexdigest()), raw)
    assert await told(store) == ["s1.1"]
    await store.put((await links(store))[0], b"{}")
    with pytest.raises(errors.Corrupt):
        await told(store)
