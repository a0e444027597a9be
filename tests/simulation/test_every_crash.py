"""The stages keep every invariant through every crash, lost reply, refusal and replay.

Method: one worker and a few events; every sequence of faults up to the number given, each fault at every call
to the store or the bus. A worker that died is started again, and after it all one fresh worker recovers. See
`harness` for what is checked, and when.
"""

from __future__ import annotations

import pytest
import toy
from harness import Scenario, edit, event, garbage, worker

from runlore.testing.world import Faults

RUNS = [event("a"), event("b"), event("c", rollout="r2")]
# A run's second attempt comes before its first, other bytes claim to be that attempt, one rollout passes no
# guard, and one message is no event.
TROUBLE = [
    event("a", attempt=2),
    event("a", attempt=1),
    event("b", rollout="r2", text=toy.POISON),
    event("a", attempt=2, text="other bytes"),
    garbage(),
]


def test_an_undisturbed_worker_does_what_the_others_are_compared_with():
    def as_told(view):
        ends = {run: view.end(rollout, run, 1) for rollout, run in (("r1", "a"), ("r1", "b"), ("r2", "c"))}
        return None if set(ends.values()) == {"consolidated"} else str(ends)

    explored = Scenario(RUNS, holds=as_told).explore()
    assert explored.schedules == 1


def test_three_runs_through_every_crash_three_crashes_deep():
    explored = Scenario(RUNS, faults=Faults(crashes=3)).explore()
    assert explored.complete > 300


def test_runs_polled_one_by_one_through_every_crash_two_crashes_deep():
    explored = Scenario(RUNS, processes=[worker(1)], faults=Faults(crashes=2)).explore()
    assert explored.complete > 300


def test_attempts_conflicts_guards_and_garbage_through_every_crash_two_crashes_deep():
    def guilty_alone_is_held(view):
        ends = {rollout: view.end(rollout, run, at) for rollout, run, at in (("r1", "a", 2), ("r2", "b", 1))}
        wrong = ends != {"r1": "consolidated", "r2": "held"} or view.end("r1", "a", 1) != "superseded"
        return f"ends: {ends}" if wrong else None

    scenario = Scenario(TROUBLE, faults=Faults(crashes=2), holds=guilty_alone_is_held)
    assert scenario.explore().complete > 150


EDITS = [event("a"), edit("e"), edit("e"), edit("f", rollout="r2"), edit("e", text="- other bytes\n")]


def test_live_edits_among_the_runs_through_every_crash_two_crashes_deep():
    def each_once(view):
        ends = {name: view.end(rollout, name, 1) for rollout, name in (("r1", "a"), ("r1", "e"), ("r2", "f"))}
        return None if set(ends.values()) == {"consolidated"} else f"ends: {ends}"

    for records_max in (1, 100):
        scenario = Scenario(EDITS, processes=[worker(records_max)], faults=Faults(crashes=2), holds=each_once)
        assert scenario.explore().complete > 100


def test_a_live_edit_through_every_lost_reply_and_replayed_from_the_start():
    assert Scenario(EDITS[:2], faults=Faults(lost=1)).explore().complete > 50
    assert (
        Scenario([], before=[(EDITS, worker(2))], replay=True, faults=Faults(crashes=1)).explore().complete
        > 5
    )


def test_a_lost_reply_at_every_write_landed_never_or_later():
    assert Scenario(RUNS, faults=Faults(lost=1)).explore().complete > 200


def test_a_lost_reply_and_a_crash():
    assert Scenario(RUNS[:2], faults=Faults(lost=1, crashes=1)).explore().complete > 1000


def test_every_refusal_two_deep_and_with_a_crash():
    assert Scenario(RUNS[:2], faults=Faults(refused=2)).explore().complete > 300
    assert Scenario(RUNS[:2], faults=Faults(refused=1, crashes=1)).explore().complete > 300


@pytest.mark.parametrize("records_max", [1, 100])
def test_a_replay_from_the_start_changes_nothing_two_crashes_deep(records_max):
    scenario = Scenario(
        [],
        processes=[worker(records_max)],
        before=[(TROUBLE, worker())],
        replay=True,
        faults=Faults(crashes=2),
    )
    assert scenario.explore().complete > 20


def test_a_replay_with_a_lost_reply():
    scenario = Scenario([event("d")], before=[(RUNS, worker())], replay=True, faults=Faults(lost=1))
    assert scenario.explore().complete > 100


def test_a_rollout_that_does_not_fit_in_one_revision_through_every_crash(monkeypatch):
    from runlore.consumers import consolidate

    monkeypatch.setattr(consolidate, "ROLLOUTS_PER_REVISION_MAX", 1)
    assert Scenario(RUNS, faults=Faults(crashes=2)).explore().complete > 200
