"""Exhaustive scenarios that go deeper than every day's, and small random schedules: for `make soak DEEP=1`.

Each is one of the tests' scenarios with more faults, more switches between processes, or both. Where there are more
schedules than asked for, the exploration ends there and says so: it goes depth first, so what was seen is one corner.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

import harness
import pytest
import test_erasure
import test_every_crash
import test_every_interleaving
import test_seeded
import test_sides
import toy
from harness import Scenario, consolidator, event, promoter, recorder, worker

from runlore.testing.world import Faults

RUNS, TROUBLE, EDITS = test_every_crash.RUNS, test_every_crash.TROUBLE, test_every_crash.EDITS
TWO, APART = test_every_interleaving.TWO, test_every_interleaving.APART


@contextlib.contextmanager
def prepared():
    """The stages as the exhaustive tests have them, on the toy memory."""
    with pytest.MonkeyPatch.context() as patch:
        harness.install(patch)
        toy.install(patch)
        yield


def random_schedule(seed):
    """One long run of three processes with random faults; its simulation."""
    return test_seeded.scenario_of(seed).run(test_seeded.Dice(seed))


def _of(make):
    """A scenario as a function of how many schedules it may have, and of what says that its time is over."""
    return lambda bound, is_over: replace(make(), schedules_max=bound).explore(partly=True, is_over=is_over)


def _two(messages, *processes, **faults):
    return _of(lambda: Scenario(messages, processes=[one() for one in processes], faults=Faults(**faults)))


SCENARIOS = {
    "three runs, four crashes": _of(lambda: Scenario(RUNS, faults=Faults(crashes=4))),
    "runs polled one by one, three crashes": _of(
        lambda: Scenario(RUNS, processes=[worker(1)], faults=Faults(crashes=3))
    ),
    "attempts, conflicts, guards and garbage, three crashes": _of(
        lambda: Scenario(TROUBLE, faults=Faults(crashes=3))
    ),
    "live edits among runs, three crashes": _of(lambda: Scenario(EDITS, faults=Faults(crashes=3))),
    "two lost replies": _of(lambda: Scenario(RUNS[:2], faults=Faults(lost=2))),
    "a lost reply and two crashes": _of(lambda: Scenario(RUNS[:2], faults=Faults(lost=1, crashes=2))),
    "three refusals and a crash": _of(lambda: Scenario(RUNS[:2], faults=Faults(refused=3, crashes=1))),
    "a refusal, a lost reply and a crash": _of(
        lambda: Scenario(RUNS[:2], faults=Faults(refused=1, lost=1, crashes=1))
    ),
    "replayed from the start, three crashes": _of(
        lambda: Scenario([], before=[(TROUBLE, worker())], replay=True, faults=Faults(crashes=3))
    ),
    "the two loops of a worker, two crashes": _two(
        TWO, lambda: recorder(1), lambda: consolidator(2), crashes=2
    ),
    "two workers in every order": _two([event("a")], worker, worker),
    "two workers, two rollouts, in every order": _two(APART, worker, worker),
    "two workers that poll differently": _two(APART, lambda: worker(1), worker, switches=4),
    "two workers, two crashes": _two(TWO, worker, worker, crashes=2, switches=2),
    "two workers, two power cuts": _two(TWO, worker, worker, power_cuts=2, switches=2),
    "two recorders, a lost reply": _two(TWO, recorder, recorder, lost=1, switches=2),
    "two recorders, two lost replies": _two(TWO, recorder, recorder, lost=2, switches=1),
    "two consolidators beside a recorder": _of(
        lambda: Scenario(
            [event("b", rollout="r2")],
            before=[([event("a")], recorder())],
            processes=[recorder(), consolidator(), consolidator()],
            faults=Faults(switches=4),
        )
    ),
    "three workers": _two(TWO, worker, worker, worker, switches=3),
    "a revert that dies twice": _of(lambda: test_every_interleaving.reverted(Faults(crashes=2, switches=2))),
    "a release that dies twice": _of(lambda: test_every_interleaving.released(Faults(crashes=2, switches=2))),
    "a promotion that dies beside a worker": _of(
        lambda: test_sides.promoted(
            Faults(crashes=1, switches=3), processes=[promoter(), worker()], before=test_sides.BUILT
        )
    ),
    "an erasure beside a worker": _of(lambda: test_erasure.beside_a_worker(faults=Faults(switches=4))),
    "an erasure that dies beside a worker": _of(
        lambda: test_erasure.beside_a_worker(faults=Faults(crashes=1, switches=2))
    ),
    "an erasure beside a replay": _of(lambda: test_erasure.beside_a_replay(faults=Faults(switches=3))),
    "an erasure beside a consolidation": _of(
        lambda: test_erasure.beside_a_consolidator(faults=Faults(switches=4))
    ),
}
"""Name → a function of how many schedules there may be, which gives what was explored. Raises `harness.Broken`."""
WHOLE = {"two workers in every order": 100_000}
"""Explored to its end in any case, with more schedules than it has: each order of the calls of two workers, 33,090."""
