"""A workspace's line: the head moves only from a base that its writer saw, and each run takes effect once.

Method: offers in the orders in which they can come (redelivered, late, replayed), on the store in memory.
"""

from __future__ import annotations

import datetime as dt
import json

import pytest

from runlore import clock, errors
from runlore.commit import age, keys, lines
from runlore.testing.stores import MemoryStore
from runlore.testing.world import finish

LINE = lines.Line("acme", "conv-1")
X, Y, Z, W = (f"{digit * 64}/{'0' * 63}{digit}" for digit in "1234")


class Clock(clock.World):
    """A clock that a test sets."""

    def __init__(self):
        self.at = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        self.drawn = 0

    def now(self):
        return self.at

    def pass_(self, **much):
        self.at += dt.timedelta(**much)

    async def sleep(self, seconds):
        self.at += dt.timedelta(seconds=seconds)

    def random_bytes(self, count):
        self.drawn += 1
        return self.drawn.to_bytes(count, "big")


@pytest.fixture
def time():
    before = clock._world.get()
    made = Clock()
    clock.install(made)
    yield made
    clock.install(before)


@pytest.fixture
def store(time):
    return MemoryStore()


def head(store):
    return finish(lines.read(store, LINE))


def base(store):
    return lines.base_of(head(store).body)


def offer(store, run, ref, start, *, attempt=1, child=False):
    made = lines.Offer(run, attempt, ref, start, f"event-{run}", child=child)
    return finish(lines.advance(store, LINE, made))


NOTHING = lines.Base()


def test_the_first_run_moves_an_absent_head(store):
    placed = offer(store, "a", X, NOTHING)
    assert placed.state == lines.MOVED
    body = head(store).body
    assert (body["ref"], body["version"], body["moved_by"]["run"]) == (X, 1, "a")
    assert (body["project"], body["rollout"], body["agent"]) == ("acme", "conv-1", "main")


def test_a_run_that_saw_the_head_moves_it_and_the_one_before_stays_named(store):
    offer(store, "a", X, NOTHING)
    assert offer(store, "b", Y, base(store)).state == lines.MOVED
    assert lines.named(head(store).body) == {X, Y}


@pytest.mark.parametrize(
    "start", [NOTHING, lines.Base(7, "9" * 64), lines.Base(1, "9" * 64), lines.Base(2, "1" * 64)]
)
def test_a_run_that_did_not_see_the_head_becomes_the_branch_of_its_own_name(store, start):
    offer(store, "a", X, NOTHING)
    assert offer(store, "b", Y, start).state == lines.BRANCHED
    body = head(store).body
    assert body["ref"] == X
    assert body["branches"]["b"]["ref"] == Y
    assert body["branches"]["b"]["why"] == "its base is not the head"


def test_a_base_that_is_given_where_there_is_no_head_is_refused(store):
    assert offer(store, "a", X, lines.Base(3, "9" * 64)).state == lines.BRANCHED
    assert head(store).body.get("ref") is None


def test_a_run_with_a_parent_never_moves_the_head_even_where_it_saw_it(store):
    assert offer(store, "child", X, NOTHING, child=True).state == lines.BRANCHED
    offer(store, "a", Y, NOTHING)
    assert offer(store, "child2", Z, base(store), child=True).state == lines.BRANCHED
    assert head(store).body["ref"] == Y


def test_a_redelivered_run_changes_nothing(store):
    offer(store, "a", X, NOTHING)
    before = store.snapshot()
    assert offer(store, "a", X, NOTHING).state == lines.ALREADY
    assert store.snapshot() == before


def test_x_y_x_does_not_replay_y(store):
    """By ids alone Y would apply again once its base is back, and undo what came after."""
    offer(store, "x1", X, NOTHING)
    y_base = base(store)
    offer(store, "y", Y, y_base)
    offer(store, "x2", X, base(store))
    assert head(store).body["ref"] == X
    assert offer(store, "y", Y, y_base).state == lines.ALREADY
    assert offer(store, "late", Z, y_base).state == lines.BRANCHED
    assert head(store).body["ref"] == X


def test_a_refused_run_is_not_applied_when_its_base_returns(store):
    offer(store, "a", X, NOTHING)
    start = base(store)
    offer(store, "b", Y, start)
    assert offer(store, "c", Z, start).state == lines.BRANCHED
    finish(lines.delete_branch(store, LINE, "c"))
    offer(store, "d", X, base(store))
    assert offer(store, "c", Z, start).state == lines.ALREADY
    assert head(store).body["ref"] == X
    assert head(store).body["branches"] == {}


def test_the_outcome_is_there_before_the_head_forgets_the_run(store, monkeypatch):
    monkeypatch.setattr(lines, "VERSIONS_MAX", 1)
    offer(store, "a", X, NOTHING)
    offer(store, "b", Y, base(store))
    key = keys.outcome("acme", "conv-1", "main", "a", 1)
    assert store.body(key) is None and not head(store).body["forgot"]
    offer(store, "c", Z, base(store))
    assert finish(lines.outcome(store, key))["state"] == lines.MOVED
    assert head(store).body["forgot"]


def test_a_run_of_an_earlier_version_is_known_without_a_list(store, monkeypatch):
    monkeypatch.setattr(store, "list", None)
    offer(store, "a", X, NOTHING)
    start = base(store)
    offer(store, "b", Y, start)
    offer(store, "c", X, base(store))
    assert offer(store, "b", Y, start).state == lines.ALREADY
    assert head(store).body["ref"] == X


def test_a_head_from_before_it_was_noted_may_have_forgotten_runs(store):
    offer(store, "a", X, NOTHING)
    body = {name: value for name, value in head(store).body.items() if name not in ("forgot", "versions")}
    key = keys.outcome("acme", "conv-1", "main", "old", 1)
    outcome = {"format": lines.OUTCOME_FORMAT, "run": "old", "attempt": 1, "state": lines.MOVED, "ref": Z}
    finish(store.put(LINE.key, json.dumps(body).encode()))
    finish(store.put(key, json.dumps(outcome).encode()))
    assert offer(store, "old", Z, NOTHING).state == lines.ALREADY
    offer(store, "b", Y, base(store))
    assert head(store).body["forgot"]


def test_a_version_that_retention_lets_go_leaves_its_run_an_outcome(store):
    offer(store, "a", X, NOTHING)
    start = base(store)
    offer(store, "b", Y, start)
    finish(lines.retain(store, LINE, lines.Keep()))
    assert finish(lines.outcomes(store, LINE, "a")).keys() == {1}
    assert offer(store, "a", X, NOTHING).state == lines.ALREADY


def test_a_higher_attempt_replaces_its_own_lower_one_while_that_is_the_head(store):
    offer(store, "a", X, NOTHING)
    start = base(store)
    offer(store, "b", Y, start)
    assert offer(store, "b", Z, start, attempt=2).state == lines.MOVED
    body = head(store).body
    assert body["ref"] == Z
    assert Y not in lines.named(body)
    assert [one["ref"] for one in body["superseded"]] == [Y]
    assert offer(store, "b", Y, start, attempt=1).state == lines.ALREADY


def test_a_higher_attempt_is_a_branch_once_somebody_else_moved_on(store):
    offer(store, "a", X, NOTHING)
    start = base(store)
    offer(store, "b", Y, start)
    offer(store, "c", Z, base(store))
    assert offer(store, "b", W, start, attempt=2).state == lines.BRANCHED
    assert head(store).body["ref"] == Z


def test_a_lower_attempt_that_comes_late_is_superseded(store):
    offer(store, "a", X, NOTHING, attempt=2)
    assert offer(store, "a", Y, NOTHING, attempt=1).state == lines.SUPERSEDED
    offer(store, "b", Z, base(store))
    assert offer(store, "a", Y, NOTHING, attempt=1).state == lines.SUPERSEDED
    assert head(store).body["branches"] if head(store).body.get("branches") else True


def test_a_higher_attempt_takes_the_branch_of_its_lower_one(store):
    offer(store, "a", X, NOTHING)
    assert offer(store, "b", Y, NOTHING, attempt=1).state == lines.BRANCHED
    assert offer(store, "b", Z, NOTHING, attempt=2).state == lines.BRANCHED
    assert head(store).body["branches"]["b"]["ref"] == Z
    assert offer(store, "b", W, base(store), attempt=3).state == lines.MOVED
    assert head(store).body["branches"] == {}


def test_a_run_that_changed_nothing_moves_nothing(store):
    offer(store, "a", X, NOTHING)
    start = base(store)
    before = store.snapshot()
    assert offer(store, "b", X, start).state == lines.UNCHANGED
    offer(store, "c", Y, start)
    assert offer(store, "b", X, start).state == lines.UNCHANGED
    assert "b" not in head(store).body.get("branches", {})
    assert len(store.snapshot()) == len(before)


def test_a_run_whose_name_continues_anothers_is_another_run(store, monkeypatch):
    monkeypatch.setattr(lines, "VERSIONS_MAX", 0)
    offer(store, "a", X, NOTHING)
    offer(store, "b", Y, base(store))
    assert finish(lines.outcomes(store, LINE, "a")).keys() == {1}
    offer(store, "a.b", Z, base(store))
    offer(store, "c", W, base(store))
    assert finish(lines.outcomes(store, LINE, "a")).keys() == {1}
    assert finish(lines.outcomes(store, LINE, "a.b")).keys() == {1}


def test_a_tag_or_a_branch_does_not_spoil_a_base(store):
    """Only a moved version is another base: else every refused run would refuse the next one too."""
    offer(store, "a", X, NOTHING)
    start = base(store)
    finish(lines.tag(store, LINE, "good", X))
    offer(store, "lost", Z, NOTHING)
    assert offer(store, "b", Y, start).state == lines.MOVED


def test_branches_are_bounded_and_a_run_beyond_them_is_a_dead_letter(store, monkeypatch):
    monkeypatch.setattr(lines, "BRANCHES_MAX", 2)
    offer(store, "a", X, NOTHING)
    for run in ("b", "c"):
        offer(store, run, Y, NOTHING)
    with pytest.raises(errors.BranchesFull):
        offer(store, "d", Z, NOTHING)


# --- what is kept -----------------------------------------------------------------------------------------


def test_what_stops_being_named_stays_for_its_term_and_not_longer(store, time):
    offer(store, "a", X, NOTHING)
    offer(store, "b", Y, NOTHING)
    finish(lines.delete_branch(store, LINE, "b"))
    body = head(store).body
    assert Y not in lines.named(body)
    assert Y in lines.kept(body, time.now() + age.SUPERSEDED_KEPT)
    assert Y not in lines.kept(body, time.now() + age.SUPERSEDED_KEPT + dt.timedelta(seconds=1))
    time.pass_(hours=80)
    finish(lines.tag(store, LINE, "t", X))
    assert head(store).body["superseded"] == []


def test_a_branch_keeps_the_base_that_it_needs_to_be_merged(store):
    offer(store, "a", X, NOTHING)
    start = base(store)
    offer(store, "b", Y, start)
    offer(store, "c", Z, start)
    finish(lines.retain(store, LINE, lines.Keep()))
    assert head(store).body["branches"]["c"]["base_ref"] == X
    assert lines.named(head(store).body) == {X, Y, Z}


def test_a_tag_is_refused_for_what_is_only_in_its_term(store):
    offer(store, "a", X, NOTHING)
    offer(store, "b", Y, NOTHING)
    finish(lines.delete_branch(store, LINE, "b"))
    with pytest.raises(errors.NotFound):
        finish(lines.tag(store, LINE, "t", Y))


def test_a_tag_keeps_its_snapshot_until_it_is_taken_away(store):
    offer(store, "a", X, NOTHING)
    finish(lines.tag(store, LINE, "good", X))
    offer(store, "b", Y, base(store))
    finish(lines.retain(store, LINE, lines.Keep()))
    assert lines.named(head(store).body) == {X, Y}
    assert [one["ref"] for one in head(store).body["versions"]] == [X]  # With its number, time and author.
    finish(lines.untag(store, LINE, "good"))
    finish(lines.retain(store, LINE, lines.Keep()))
    assert lines.named(head(store).body) == {Y}
    with pytest.raises(errors.NotFound):
        finish(lines.untag(store, LINE, "good"))


def test_versions_beyond_the_limit_stop_being_named(store, monkeypatch):
    monkeypatch.setattr(lines, "VERSIONS_MAX", 1)
    for run, ref in zip("abc", (X, Y, Z), strict=True):
        offer(store, run, ref, base(store))
    assert lines.named(head(store).body) == {Y, Z}
    assert [one["ref"] for one in head(store).body["superseded"]] == [X]


def test_retention_keeps_the_last_the_hourly_the_daily_and_the_young(store, time):
    made = []
    for number in range(60):
        ref = f"{number:064x}/{number:064x}"
        offer(store, f"r{number}", ref, base(store))
        made.append((time.now(), ref))
        time.pass_(minutes=30)
    body = head(store).body
    kept = lambda **rules: [one["version"] for one in lines.retained(body, lines.Keep(**rules), time.now())]  # noqa: E731
    assert kept(last=3) == [57, 58, 59]
    assert kept(hourly=3) == [56, 58, 59]
    assert kept(daily=2) == [48, 59]
    assert kept(within=dt.timedelta(hours=2)) == [57, 58, 59]
    assert kept(last=1, daily=2) == [48, 59]
    assert kept() == []
    let_go = finish(lines.retain(store, LINE, lines.Keep(last=3), dry_run=True))
    assert len(let_go) == 56 and head(store).body == body
    finish(lines.tag(store, LINE, "good", made[9][1]))
    let_go = finish(lines.retain(store, LINE, lines.Keep(last=3)))
    assert len(let_go) == 55 and made[9][1] not in {one["ref"] for one in let_go}
    assert [one["version"] for one in head(store).body["versions"]] == [10, 57, 58, 59]
    assert len(lines.named(head(store).body)) == 5
    superseded = {one["ref"]: one["at"] for one in head(store).body["superseded"]}
    assert superseded == {one["ref"]: time.now().isoformat(timespec="microseconds") for one in let_go}


# --- by hand ----------------------------------------------------------------------------------------------


def test_a_save_by_hand_moves_the_head_or_becomes_a_branch(store, time):
    began = time.now()
    save = lambda ref, start, **more: finish(  # noqa: E731
        lines.save(store, LINE, ref, start, reason="by hand", began=began, **more)
    )
    assert save(X, NOTHING).state == lines.MOVED
    assert save(X, NOTHING).state == lines.UNCHANGED
    start = base(store)
    assert save(Y, start).state == lines.MOVED
    placed = save(Z, start)
    assert placed.state == lines.BRANCHED
    assert list(head(store).body["branches"]) == ["save-" + "3" * 12]
    assert save(Z, start).state == lines.ALREADY


def test_a_merge_takes_the_branches_that_it_holds_and_their_runs_stay_known(store, time):
    offer(store, "a", X, NOTHING)
    start = base(store)
    for run, ref in (("b", Y), ("c", Z)):
        offer(store, run, ref, NOTHING)
    merged = {"b": Y, "c": X}  # c has moved on since it was read.
    placed = finish(lines.save(store, LINE, W, start, reason="merge", began=time.now(), merged=merged))
    assert placed.state == lines.MOVED
    assert list(head(store).body["branches"]) == ["c"]
    assert offer(store, "b", Y, NOTHING).state == lines.ALREADY


# --- the age rule -----------------------------------------------------------------------------------------


def test_a_move_that_began_too_long_ago_is_refused_and_nothing_is_sent(store, time):
    began = time.now()
    time.pass_(hours=72)
    made = lines.Offer("a", 1, X, NOTHING, "e")
    with pytest.raises(errors.CommitTooLate):
        finish(lines.advance(store, LINE, made, began=began))
    assert store.body(LINE.key) is None
    assert (
        finish(lines.advance(store, LINE, made, began=time.now() - age.TERM + age.WINDOW)).state
        == lines.MOVED
    )


def test_a_body_that_was_made_too_long_ago_is_made_again(store, time, monkeypatch):
    """Its dates say when the old version stopped being named: a late one would let it go too early."""
    send, pauses = MemoryStore.compare_and_set, [dt.timedelta(hours=1)]

    async def slow(self, key, body, etag, *, guard=None):
        if pauses:
            time.at += pauses.pop()
        return await send(self, key, body, etag, guard=guard)

    monkeypatch.setattr(MemoryStore, "compare_and_set", slow)
    offer(store, "a", X, NOTHING)
    assert head(store).body["moved_at"].startswith("2026-01-01T01:00")
