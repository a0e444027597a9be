"""Long runs with random faults: what the exhaustive tests bound, this reaches now and then.

Many events, three processes, a dozen faults of every kind. A failure prints its seed;
RUNLORE_TEST_SEEDS=17,18 runs those again, RUNLORE_TEST_SEED_COUNT=5000 is for a nightly run.
"""

from __future__ import annotations

import os
import random

import pytest
import toy
from harness import Scenario, consolidator, event, garbage, worker

from runlore.testing import exhaust
from runlore.testing.world import Faults

SEEDS = os.environ.get("RUNLORE_TEST_SEEDS")
COUNT = int(os.environ.get("RUNLORE_TEST_SEED_COUNT", "200"))
GROUP = 50


class Dice(exhaust.Gen):
    """Chooses at random, mostly what is undisturbed."""

    def __init__(self, seed):
        super().__init__()
        self._dice = random.Random(seed)
        self._taken = []

    def choose(self, count, state=None):
        calm = self._dice.random() < 0.8
        self._taken.append(0 if calm else self._dice.randrange(count))
        return self._taken[-1]

    def choices(self):
        return self._taken


def messages(seed):
    """Runs of a few rollouts with attempts in any order, doubles, and something bad."""
    dice = random.Random(seed)
    sent = []
    for number in range(dice.randrange(4, 10)):
        run, attempt = f"n{dice.randrange(5)}", dice.randrange(1, 4)
        # The rollout follows from the run, as it does for a producer; the text from both.
        sent.append(event(run, rollout=f"r{int(run[1]) % 3}", attempt=attempt))
        if dice.random() < 0.1:
            # In a rollout of its own: what is in memory of one that was good before depends on when it went bad.
            sent.append(event(f"bad{number}", rollout=f"bad{number}", text=toy.POISON))
        if dice.random() < 0.2:
            sent.append(sent[dice.randrange(len(sent))])
        if number == 3:
            sent.append(garbage())
    return sent


def scenario_of(seed):
    """Three processes, a dozen faults of every kind."""
    faults = Faults(crashes=3, lost=4, refused=6)
    processes = [worker(1), worker(2), consolidator(3)]
    return Scenario(messages(seed), processes=processes, faults=faults, list_page=2)


def seeds():
    if SEEDS:
        return [[int(seed) for seed in SEEDS.split(",")]]
    return [range(start, min(start + GROUP, COUNT)) for start in range(0, COUNT, GROUP)]


@pytest.mark.parametrize("group", seeds(), ids=lambda group: f"{group[0]}-{group[-1]}")
def test_a_long_run_with_random_faults_ends_as_an_undisturbed_one(group):
    for seed in group:
        try:
            scenario_of(seed).run(Dice(seed))
        except AssertionError as exc:
            raise AssertionError(f"seed {seed}: {exc}") from exc
