"""Sweeping beside writers and readers, without a lock: every interleaving of small cases, with jumps of time.

Goal: whatever is paused where and for however long, what a commit names is there, or the commit fails cleanly;
and what a head named less than T ago can be read. Method: the production writer, mover, sweep and reader, one
store call at a time (`sweeping.py`), in every order. Each word of the age rule is then left out in turn, and the
same search must find the hole.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random

import pytest
import sweeping
from sweeping import Broken, P, World, reader, sweeper, writer

from runlore import errors
from runlore.commit import age, lines, sweep
from runlore.snapshots import packs
from runlore.testing import exhaust, workspaces

OLD = {"big": b"o" * 400, "a": b"1"}
NEXT = {**OLD, "a": b"2"}
OTHER = {"c": b"something else"}
SCHEDULES_MAX = 60_000

DEEP = pytest.mark.skipif(
    not os.environ.get("RUNLORE_TEST_DEEP"), reason="minutes of schedules: set RUNLORE_TEST_DEEP=1"
)


@functools.cache
def _beginning(garbage):
    """A line whose head names OLD, long ago; and what a writer left that died even longer ago."""
    made = World(exhaust.Replay([]))
    if garbage:
        made.calmly("dead", lambda store: workspaces.put(store, P, dict(garbage)))
        made.at += 2 * sweeping.TERM
    made.calmly("first", writer("r1", "first", OLD))
    made.at += 2 * sweeping.TERM
    return made


def world(gen, *, garbage=None, **more):
    """A new world at that beginning."""
    return _beginning(tuple((garbage or {}).items())).copy(gen, **more)


def explore(run):
    return exhaust.explore(run, schedules_max=SCHEDULES_MAX)


def ends(made):
    return [process.result for process in made.processes]


@pytest.fixture(autouse=True)
def _lets_go(monkeypatch):
    """What a head moves past is superseded at once: retention that keeps nothing."""
    monkeypatch.setattr(lines, "VERSIONS_MAX", 0)


# --- what must hold ---------------------------------------------------------------------------------------


def paused_writer(*, jumps=2, **more):
    """One writer that builds on its line, paused anywhere; a sweep at any time."""

    def run(gen):
        made = world(gen, jumps=jumps, **more)
        made.spawn("writer", writer("r1", "w", NEXT))
        made.spawn("sweep", sweeper())
        made.run()
        return made

    return run


def two_lines(*, jumps=1, switches=2, **more):
    """A writer takes its base from a line that meanwhile stops naming it; and a sweep."""

    def run(gen):
        made = world(gen, jumps=jumps, switches=switches, coarse=True, **more)
        made.spawn("borrower", writer("r2", "w2", NEXT, source="r1"))
        made.spawn("mover", _replace())
        made.spawn("sweep", sweeper())
        made.run()
        return made

    return run


def _replace():
    """The line moves to something that shares nothing; no earlier version is kept here (`_lets_go`)."""

    return writer("r1", "w1", OTHER, base=_nothing)


async def _nothing(store, head):
    return None


@pytest.mark.parametrize("jumps", [1, pytest.param(2, marks=DEEP)])
def test_a_writer_paused_anywhere_for_any_time_has_all_it_names_or_fails_cleanly(jumps):
    results = set()

    def run(gen):
        for result in ends(paused_writer(jumps=jumps)(gen)):
            results.add(getattr(result, "kind", None) or getattr(result, "state", None))

    explored = explore(run)
    assert explored.states > 1000
    # The cases that the test is about did come up. A signature that the store refuses is no end of its own: the move
    # is signed anew, after its age was checked anew.
    assert {"moved", "commit_too_late"} <= results


@DEEP
def test_two_lines_a_mover_and_a_sweep_in_every_order():
    explored = explore(two_lines())
    assert explored.states > 1000


@DEEP
def test_two_sweeps_at_once_do_no_more_harm_than_one():
    def run(gen):
        made = world(gen, jumps=1, switches=2, garbage=OTHER)
        made.spawn("writer", writer("r1", "w", NEXT))
        made.spawn("sweep1", sweeper())
        made.spawn("sweep2", sweeper())
        made.run()

    explore(run)


def test_a_writer_that_is_too_late_starts_again_and_gets_through():
    def run(gen):
        made = world(gen, jumps=1, switches=3)
        made.spawn("writer", writer("r1", "w", NEXT, tries=3))
        made.spawn("sweep", sweeper())
        made.run()
        result = made.processes[0].result
        if not isinstance(result, errors.StoreUnavailable):
            assert result.state == lines.MOVED, result
            head = made.calmly("look", lambda store: lines.read(store, lines.Line(P, "r1")))
            assert workspaces.read_plain(made.store, P, head.body["ref"]) == NEXT

    explore(run)


@DEEP
def test_a_reader_gets_every_byte_of_what_was_named_or_an_error_after_its_term():
    read = []

    def run(gen):
        found = []
        made = world(gen, jumps=1, switches=2)
        made.spawn("reader", reader("r1", found))
        made.spawn("mover", _replace())
        made.spawn("sweep", sweeper())
        made.run()
        assert found in ([], [OLD], [OTHER])
        read.extend(found)

    explore(run)
    assert OLD in read and OTHER in read


@contextlib.contextmanager
def small_packs(monkeypatch, request):
    """Data packs of one frame each, so that small trees have some."""
    _beginning.cache_clear()
    request.addfinalizer(_beginning.cache_clear)
    with monkeypatch.context() as patch:
        patch.setattr(packs, "FRAME_BYTES", 1)
        patch.setattr(packs, "PACK_BYTES", 1)
        yield


def same_bytes_again(gen):
    """A writer saves what a dead one had saved before, while that is swept."""
    made = world(gen, jumps=0, garbage=NEXT)
    made.spawn("writer", writer("r2", "w", NEXT))
    made.spawn("sweep", sweeper())
    made.run()


def test_a_writer_saves_what_a_dead_one_left_while_it_is_swept(monkeypatch, request):
    with small_packs(monkeypatch, request):
        assert explore(same_bytes_again).states > 50


def test_a_sweep_takes_garbage_and_only_garbage():
    made = world(exhaust.Replay([]), jumps=0, garbage=OTHER)
    plan = made.calmly("scan", lambda store: sweep.scan(store, P))
    assert [victim.kind for victim in plan.victims] == ["snapshots"]
    made.calmly("sweep", sweeper())
    again = made.calmly("scan", lambda store: sweep.scan(store, P))
    assert again.victims == [] and again.kept == {"snapshots": 1}


def test_what_a_head_let_go_stays_for_its_term_and_then_goes():
    made = world(exhaust.Replay([]), jumps=0)
    made.calmly("mover", _replace())
    made.at += age.TERM
    assert made.calmly("scan", lambda store: sweep.scan(store, P)).victims == []
    made.at += 3 * age.WINDOW
    assert len(made.calmly("scan", lambda store: sweep.scan(store, P)).victims) == 1


def test_a_head_that_names_what_can_not_be_read_stops_the_sweep():
    made = world(exhaust.Replay([]), jumps=0, garbage=OTHER)
    head = made.calmly("look", lambda store: lines.read(store, lines.Line(P, "r1")))
    made.store._remove(f"{P}/snapshots/{head.body['ref'][:2]}/{head.body['ref']}")
    with pytest.raises(errors.Corrupt, match="nothing is swept"):
        made.calmly("scan", lambda store: sweep.scan(store, P))


@pytest.mark.parametrize("seed", range(40))
def test_long_random_schedules(seed):
    """Three writers, two readers, retention and two sweeps, with many jumps."""
    chance = random.Random(seed)

    class Random(exhaust.Replay):
        def choose(self, count, state=None):
            return chance.randrange(count)

    made = world(Random([]), jumps=12)
    for number in range(3):
        source = chance.choice([None, "r1"])
        files = {**OLD, f"n{number}": b"%d" % number}
        made.spawn(
            f"w{number}", writer(f"r{chance.choice('12')}", f"w{number}", files, source=source, tries=3)
        )
    made.spawn("mover", _replace())
    for number in range(2):
        made.spawn(f"reader{number}", reader("r1", []))
    made.spawn("sweep1", sweeper(2))
    made.spawn("sweep2", sweeper(2))
    made.run()


# --- mutants: each leaves one word of the rule out, and must be found ----------------------------------------


def caught(run):
    with pytest.raises(Broken) as found:
        explore(run)
    return str(found.value)


def test_mutant_superseded_is_not_kept_for_its_term(monkeypatch):
    monkeypatch.setattr(age, "is_kept", lambda at, now: False)
    assert "needs" in caught(two_lines())


def test_mutant_no_age_check(monkeypatch):
    monkeypatch.setattr(age, "guard", lambda began, made: lambda: None)
    caught(paused_writer())


def test_mutant_no_signature_window(monkeypatch):
    """The age is checked against T itself: a request that is signed then may land a window later."""
    monkeypatch.setattr(age, "WINDOW", sweeping.dt.timedelta(0))
    monkeypatch.setattr(age, "guard", _guard_without_window)
    caught(paused_writer())


def _guard_without_window(began, made):
    def check():
        if sweeping.clock.now() - began > age.TERM:
            raise errors.CommitTooLate

    return check


def test_mutant_the_client_retries_and_signs_anew():
    caught(paused_writer(retries=True))


def test_mutant_referring_to_what_is_only_in_its_term():
    """The version before the head's, let go long ago: it may be there, and gone at the next moment."""

    async def in_its_term(store, head):
        return head.body["superseded"][-1]["ref"] if head.body.get("superseded") else head.body["ref"]

    def run(gen):
        made = world(gen, jumps=0)
        made.calmly("mover", _replace())
        made.at += age.TERM
        made.jumps = 1
        made.spawn("borrower", writer("r2", "w2", NEXT, source="r1", base=in_its_term))
        made.spawn("sweep", sweeper())
        made.run()

    caught(run)


def test_mutant_a_pack_name_that_is_used_twice(monkeypatch, request):
    """A dead writer's pack is listed; somebody writes the same bytes under the same name; it is deleted; they commit.

    Every index holds a text that is used once; it is left out here.
    """
    encode = packs.Table.encode
    monkeypatch.setattr(packs.Table, "encode", lambda table, made: encode(table))
    with small_packs(monkeypatch, request):
        caught(same_bytes_again)


def test_mutant_referring_to_what_a_listing_shows():
    """Deduplicating against whatever packs there are: garbage may be about to go."""

    async def listed(store, head):
        rows = [row async for row in store.list(f"{P}/snapshots/")]
        return max(
            f"{row.key.split('/')[3]}/{row.key.split('/')[4]}"
            for row in rows
            if row.key.split("/")[3] not in str(head.body)
        )

    def run(gen):
        made = world(gen, jumps=1, garbage={"g": b"garbage" * 50})
        made.spawn(
            "borrower", writer("r2", "w2", {"g": b"garbage" * 50, "n": b"n"}, source="r1", base=listed)
        )
        made.spawn("sweep", sweeper())
        made.run()

    caught(run)
