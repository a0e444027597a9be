"""Two processes that both believe they own everything keep every invariant, in every order of their calls.

Method: at each call any process may go on; states that were met before are not explored again, so the number
of schedules is that of the different states. Calls whose order can make no difference (`harness.private`) are
no points of choice. With faults as well, the number of times that a process is left for another is bounded.
"""

from __future__ import annotations

import os

import pytest
import toy
from harness import Scenario, approver, consolidator, event, recorder, rejecter, releaser, reverter, worker

from runlore.testing.world import Faults

TWO = [event("a"), event("b")]
APART = [event("a"), event("b", rollout="r2")]
DEEP = bool(os.environ.get("RUNLORE_TEST_DEEP"))
"""Without bounds on switches the smaller scenarios take a minute each and the larger ones hours: not for every day."""


def switches(count):
    """How often a process may be left for another."""
    return None if DEEP else count


def test_the_two_loops_of_one_worker_in_every_order_with_a_crash():
    scenario = Scenario(TWO, processes=[recorder(1), consolidator(2)], faults=Faults(crashes=1))
    assert scenario.explore().complete > 1000


@pytest.mark.parametrize("messages", [TWO, APART], ids=["one-rollout", "two-rollouts"])
def test_the_power_goes_at_every_point_of_two_workers(messages):
    faults = Faults(power_cuts=1, switches=switches(1))
    scenario = Scenario(messages, processes=[worker(), worker()], faults=faults, schedules_max=10**6)
    assert scenario.explore().complete > 300


def test_two_workers_left_for_each_other_at_every_call():
    scenario = Scenario([event("a")], processes=[worker(), worker()], faults=Faults(switches=switches(3)))
    assert scenario.explore().complete > 1000


def test_two_workers_that_poll_differently():
    scenario = Scenario(APART, processes=[worker(1), worker()], faults=Faults(switches=switches(2)))
    assert scenario.explore().complete > 300


def test_two_workers_of_which_one_dies_and_comes_back():
    faults = Faults(crashes=1, switches=switches(1))
    assert Scenario(TWO, processes=[worker(), worker()], faults=faults).explore().complete > 500


def test_two_recorders_of_one_rollout_with_a_lost_reply():
    scenario = Scenario(TWO, processes=[recorder(), recorder()], faults=Faults(lost=1, switches=switches(1)))
    assert scenario.explore().complete > 100


def test_two_consolidators_beside_a_recorder():
    scenario = Scenario(
        [event("b", rollout="r2")],
        before=[([event("a")], recorder())],
        processes=[recorder(), consolidator(), consolidator()],
        faults=Faults(switches=switches(2)),
    )
    assert scenario.explore().complete > 200


def test_marks_listed_page_by_page_while_others_come_and_go():
    before = [([event("a")], recorder()), ([event("b", rollout="r2")], recorder())]
    scenario = Scenario(
        [event("c", rollout="r3")], before=before, processes=[recorder(), consolidator(2)], list_page=1
    )
    assert scenario.explore().complete > 40


def test_an_attempt_that_supersedes_one_that_is_being_consolidated():
    scenario = Scenario(
        [event("a", attempt=2)], before=[([event("a")], recorder())], processes=[recorder(), consolidator(2)]
    )
    assert scenario.explore().complete > 20


def test_a_replay_from_the_start_beside_a_working_consolidator():
    scenario = Scenario(
        [event("c")],
        before=[(APART, recorder())],
        replay=True,
        processes=[recorder(1), consolidator(2)],
        faults=Faults(switches=switches(4)),
    )
    assert scenario.explore().complete > 100


# --- a person beside the pipeline -----------------------------------------------------------------------------


def reverted(faults):
    before = [([event("a")], worker()), ([event("b", rollout="r2", text="bad")], worker())]

    def stays_out(view):
        files = [view.revision.text(entry["sha256"]) for _, entry in view.revision.map("files").items()]
        out = view.end("r2", "c", 1) == "held" and not any("bad" in text for text in files)
        return None if out else f"the reverted rollout is in memory again: {files}"

    return Scenario(
        [event("c", rollout="r2")],
        processes=[reverter(), worker()],
        before=before,
        faults=faults,
        compare=False,
        holds=stays_out,
    )


def test_a_revert_beside_a_new_run_of_the_reverted_rollout_in_every_order():
    # The new run may be taken in just before the revert: then it is reverted with the rest.
    assert reverted(Faults()).explore().complete > 20


def test_a_revert_that_dies_at_any_point_and_is_tried_again():
    assert reverted(Faults(crashes=1, switches=1)).explore().complete > 100


def released(faults):
    before = [([event("a", text=toy.POISON), event("b", rollout="r2")], worker())]
    processes = [releaser("r1"), recorder(), consolidator()]
    return Scenario(
        [event("c", rollout="r2")], processes=processes, before=before, faults=faults, compare=False
    )


def test_a_release_beside_a_worker_is_never_lost():
    assert released(Faults()).explore().complete > 50


def test_a_release_that_dies_at_any_point_and_is_tried_again():
    assert released(Faults(crashes=1, switches=1)).explore().complete > 100


def reviewed(faults, *processes):
    """A held rollout gets a run while somebody decides of it."""
    before = [([event("a", text=f"{toy.ORDER}-1")], worker())]

    def nothing_unseen_is_let_in(view):
        files = view.revision.map("files").items() if view.revision else ()
        told = [view.revision.text(entry["sha256"]) for _, entry in files]
        return "what nobody was shown is in memory" if any(f"{toy.ORDER}-2" in one for one in told) else None

    return Scenario(
        [event("c", text=f"{toy.ORDER}-2")],
        processes=[*processes, recorder(), consolidator()],
        before=before,
        faults=faults,
        compare=False,
        holds=nothing_unseen_is_let_in,
    )


def test_an_approval_beside_a_new_run_lets_in_what_was_shown_or_nothing():
    assert reviewed(Faults(crashes=1, switches=1), approver("r1")).explore().complete > 20


def test_a_rejection_beside_a_new_run_keeps_it_out_and_loses_nothing():
    assert reviewed(Faults(crashes=1, switches=1), rejecter("r1")).explore().complete > 20


def test_an_approval_and_a_rejection_at_once_let_in_nothing_unseen():
    assert reviewed(Faults(switches=2), approver("r1"), rejecter("r1")).explore().complete > 20
