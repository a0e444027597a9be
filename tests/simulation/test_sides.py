"""Building a side line and promoting it, through every crash, lost reply and order beside a worker.

Goal: whatever happens to whoever builds or promotes, the memory's own line stays one line that covers every run, no
run is left without an end, and a promotion that came to its end is in the line. Method: the production code, driven
one call at a time (`harness.py`); each schedule ends with one fresh worker and every checker.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from harness import Broken, Scenario, builder, consolidator, event, promoter, worker

from runlore.commit import heads, revisions, rollouts
from runlore.consumers import promote, rebuild
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


# --- mutants: each leaves out what closes a hole ----------------------------------------------------------


def test_mutant_what_the_memory_took_in_since_is_forgotten(monkeypatch):
    async def nothing(*_):
        return {}

    monkeypatch.setattr(promote, "_lacking", nothing)
    with pytest.raises(Broken, match="came since"):
        promoted(Faults(), processes=[promoter()], before=LACKING).explore()


def test_mutant_the_coverage_is_that_of_the_side(monkeypatch):
    def older(one, **changes):
        made = replace(one, **changes)
        if isinstance(made, revisions.Draft):
            made.maps["coverage"].set("r2", {**made.maps["coverage"].get("r2"), "counter": 1})
        return made

    monkeypatch.setattr(promote, "replace", older)
    with pytest.raises(Broken, match="covers less of r2"):
        promoted(Faults(), processes=[promoter()], before=LACKING).explore()


def test_mutant_a_side_is_built_through_the_heads_of_rollouts(monkeypatch):
    """As if a side's part of a rollout stood in the rollout's head: a head that moves and leaves no mark."""
    true = rebuild.Rebuild._input

    async def moves(self, head, *rest):
        await heads.move(self._store, head, {"model": None}, fmt=rollouts.HEAD_FORMAT)
        return await true(self, head, *rest)

    monkeypatch.setattr(rebuild.Rebuild, "_input", moves)
    with pytest.raises(AssertionError):
        before = [*BUILT, ([], consolidator())]
        Scenario([], processes=[], before=before, holds=covers_its_heads, compare=False).explore()


def covers_its_heads(view):
    """Nothing waits without a mark: each head stands where the memory covers it."""
    behind = [name for name, head in view.rollouts.items() if view.coverage[name]["counter"] < head.counter]
    return f"no mark waits for {behind}" if behind else None


def test_a_side_leaves_no_head_where_the_memory_does_not_cover_it():
    Scenario([], processes=[], before=BUILT, holds=covers_its_heads, compare=False).explore()
