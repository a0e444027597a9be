"""Building a side line and promoting it, through every crash, lost reply and order beside a worker.

Goal: whatever happens to whoever builds or promotes, the memory's own line stays one line that covers every run, no
run is left without an end, and a promotion that came to its end is in the line. Method: the production code, driven
one call at a time (`harness.py`); each schedule ends with one fresh worker and every checker.
"""

from __future__ import annotations

import pytest
from harness import Scenario, builder, consolidator, event, promoter, worker

from runlore.testing.world import Faults

OLD = [event("a"), event("b", rollout="r2", text="bees")]
NEW = [event("c", rollout="r2", text="came since")]


def ends(view):
    """Every run is in memory."""
    wanted = (("r1", "a"), ("r2", "b"), ("r2", "c"))
    found = {run: view.end(rollout, run, 1) for rollout, run in wanted if rollout in view.rollouts}
    return None if set(found.values()) == {"consolidated"} else f"ends: {found}"


def is_promoted(view):
    """Every run is in memory, and the promotion in its line. A later run's consolidation may be on top of it."""
    reason = view.revision.body["reason"]
    if reason not in ("promote", "runs"):
        return f"the newest revision is of {reason}"
    files = [view.revision.text(entry["sha256"]) for _, entry in view.revision.map("files").items()]
    wanted = [text for text in ("bees", "came since") if not any(text in one for one in files)]
    return f"memory lacks {wanted}" if wanted else ends(view)


@pytest.mark.parametrize("faults", [Faults(crashes=2), Faults(lost=1), Faults(refused=1)], ids=str)
def test_a_side_that_is_built_again_after_every_fault_leaves_the_memory_as_it_is(faults):
    scenario = Scenario([], processes=[builder()], before=[(OLD, worker())], faults=faults)
    assert scenario.explore().complete > 5


def test_a_side_is_built_beside_a_worker_in_every_order():
    scenario = Scenario(
        NEW, processes=[builder(), worker()], before=[(OLD, worker())], faults=Faults(switches=2), holds=ends
    )
    assert scenario.explore().complete > 20


def test_two_who_build_the_same_side_make_one_line():
    scenario = Scenario(
        [], processes=[builder(), builder()], before=[(OLD, worker())], faults=Faults(switches=2)
    )
    assert scenario.explore().complete > 20


def promoted(faults, *, processes, before):
    return Scenario(NEW, processes=processes, before=before, faults=faults, compare=False, holds=is_promoted)


BUILT = [(OLD, worker()), ([], builder())]
LACKING = [*BUILT, (NEW, worker())]
"""The memory has taken in a run that the side does not know."""


@pytest.mark.parametrize("faults", [Faults(crashes=2), Faults(lost=1), Faults(refused=1)], ids=str)
@pytest.mark.parametrize("before", [BUILT, LACKING], ids=["side is newest", "side lacks a run"])
def test_a_promotion_through_every_fault_at_every_call(faults, before):
    assert promoted(faults, processes=[promoter()], before=before).explore().complete > 5


def test_a_promotion_beside_a_worker_in_every_order():
    for before in (BUILT, LACKING):
        one = promoted(Faults(switches=3), processes=[promoter(), worker()], before=before)
        assert one.explore().complete > 20


def test_a_promotion_that_dies_beside_a_worker_and_is_tried_again():
    one = promoted(Faults(crashes=1, switches=1), processes=[promoter(), worker()], before=BUILT)
    assert one.explore().complete > 20


def test_a_promotion_whose_reply_is_lost_beside_a_consolidation_is_not_done_twice():
    def once(view):
        return is_promoted(view) or (None if view.revision.number <= 4 else "it was promoted twice")

    one = Scenario(
        NEW,
        processes=[promoter(), consolidator()],
        before=BUILT,
        faults=Faults(lost=1, switches=1),
        compare=False,
        holds=once,
    )
    assert one.explore().complete > 20
