"""Seeds of the whole deployment keep every invariant; each part of it that is left out breaks one.

RUNLORE_TEST_FLEET_SEEDS=200 runs more of them; `make soak` makes a failing one small.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import fleet
import pytest
import soak

from runlore.commit import sweep
from runlore.lookup import seeds
from runlore.testing import cluster, invariants, snapshot_invariants
from runlore.worker import intake, loop, offsets

WHOLE_PROCESSES = True
"""Tells conftest to leave the stages as they are: each schedule says itself which memory it has."""
COUNT = int(os.environ.get("RUNLORE_TEST_FLEET_SEEDS", "9"))


def test_a_whole_deployment_keeps_every_invariant_whatever_happens_to_its_processes():
    happened = Counter()
    for seed in range(COUNT):
        world = soak.run(seed)
        assert len(world.faults) > 30, "too little went wrong to prove anything"
        happened += world.happened
    # A fault that never takes effect is one that nothing is proved of.
    assert {kind for kind in cluster.KINDS if not happened[kind]} == set()


def test_the_same_seed_takes_the_same_steps_in_another_interpreter():
    code = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1]); import soak;"
        "print(hashlib.sha256('\\n'.join(soak.run(1).trace).encode()).hexdigest())"
    )
    here = hashlib.sha256("\n".join(soak.run(1).trace).encode()).hexdigest()
    there = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        env={**os.environ, "PYTHONHASHSEED": "17"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == here


def test_nothing_rests_on_the_rebalance_itself(monkeypatch):
    async def deaf(self, partitions):
        return None

    # What was taken back is still worked and committed, beside whoever has it now.
    monkeypatch.setattr(intake.Intake, "revoked", deaf)
    for seed in (0, 2):
        soak.run(seed)


# --- mutants: each leaves one thing out -----------------------------------------------------------------------


def commits_what_it_took(patch):
    """Offsets of a batch are committed as it begins."""
    take = offsets.Lanes.take

    def taken(self, *args):
        batch = take(self, *args)
        if batch is not None:
            for entry in batch.entries:
                entry.flow.finish(entry.offset)
        return batch

    patch.setattr(offsets.Lanes, "take", taken)


def never_lists_marks(patch):
    """A lost doorbell is a lost run."""

    async def nothing(self):
        return []

    patch.setattr(loop.Worker, "_marked", nothing)
    patch.setattr(loop.Worker, "_left_standing", nothing)


def never_lists_heads(patch):
    """The index has what doorbells brought."""

    async def for_ever(self):
        self.caught_up = True
        await asyncio.Event().wait()

    async def until_stopped(self):
        taking_in = self._intake(
            "index", loop.pipeline.CHANGED, self._apply, group=self._index_group, mixed=True
        )
        await taking_in.run()

    patch.setattr(loop.Worker, "_index_loop", until_stopped)
    patch.setattr(loop.Worker, "_reconcile_loop", for_ever)


def sweeps_what_is_young(patch):
    """A sweep that keeps nothing for its term."""
    patch.setattr(sweep, "age", SimpleNamespace(TERM=dt.timedelta(0)))


def looks_at_an_old_head(patch):
    """A lookup that remembers the heads it read, each replica for itself, without end."""
    resolve, kept = seeds.resolve, {}

    async def remembered(*args, **more):
        found = await resolve(*args, **more)
        if found is not None:
            kept.setdefault("first", found)
        kept["count"] = kept.get("count", 0) + 1
        return kept.get("first") if kept["count"] % 5 == 0 else found

    patch.setattr(fleet.seeds, "resolve", remembered)


# With the seed that found it last: others find it too, but not each.
MUTANTS = [
    (commits_what_it_took, invariants.MARKED, 0),
    (never_lists_marks, invariants.ENDS, 17),
    (never_lists_heads, fleet.INDEXED, 0),
    (sweeps_what_is_young, snapshot_invariants.KEPT, 2),
    (looks_at_an_old_head, fleet.STALE, 1),
]


@pytest.mark.parametrize(("mutant", "invariant", "at"), MUTANTS, ids=[one.__name__ for one, *_ in MUTANTS])
def test_what_is_left_out_is_found(mutant, invariant, at):
    for seed in (at, *range(20)):
        try:
            soak.run(seed, mutant=mutant)
        except fleet.Broken as exc:
            if invariant in exc.names:
                return
    pytest.fail("no seed found it")


def test_a_failing_schedule_is_told_with_fewer_faults():
    with pytest.raises(fleet.Broken) as broken:
        soak.run(1, mutant=commits_what_it_took)
    least = soak.smaller(1, broken.value, mutant=commits_what_it_took, tries_max=12)
    assert least.names & broken.value.names and len(least.faults) < len(broken.value.faults)
