"""Every known hole of the protocol, put back, must be found, and by the invariant that it breaks.

This tests the simulation itself: a harness that no mutant can be hidden from is one whose silence means something.
"""

from __future__ import annotations

import harness
import mutants
import pytest


@pytest.mark.parametrize("mutant", mutants.ALL, ids=lambda mutant: mutant.hole.replace(" ", "-"))
def test_a_hole_that_is_put_back_is_found(mutant, monkeypatch):
    mutant.apply(monkeypatch)
    with pytest.raises(harness.Broken) as caught:
        mutant.scenario.explore()
    assert caught.value.names & mutant.caught_by, caught.value


def test_the_scenarios_of_the_mutants_hold_without_them():
    # Else a mutant could be caught for what its scenario breaks anyhow.
    done = set()
    for mutant in mutants.ALL:
        scenario = mutant.scenario
        name = (
            str(scenario.messages),
            len(scenario.processes),
            str(scenario.faults),
            str(scenario.before)[:200],
        )
        # The one with three processes is in test_every_interleaving.
        if name in done or len(scenario.processes) > 2:
            continue
        done.add(name)
        scenario.explore()
