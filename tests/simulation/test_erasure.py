"""Erasure beside workers: whatever the order and whoever dies, what was erased stays away (invariant 10)."""

from __future__ import annotations

import harness
import mutants
import pytest
from harness import PROJECT, Broken, Scenario, consolidator, event, recorder, worker

from runlore.commit import erasures, keys
from runlore.consumers import record
from runlore.testing import erasure_invariants, invariants, side_invariants, world
from runlore.testing.world import Faults, finish
from runlore.upkeep.erasing import asking, eraser, memories

NEEDLE = "heliotrope"


def forgetter(**named):
    """Somebody who asks for an erasure; or, started again, goes on with what was asked for."""

    async def main(store, bus):
        one = eraser.Eraser(store, bus, PROJECT)
        begun = [entry async for entry in erasures.every(store, PROJECT)]
        if not begun:
            begun = [await one.begin(asking.wanted_of(project=PROJECT, **named))]
        for entry in begun:
            await one.carry_on(str(entry.body["id"]))

    return main


class Erasing(Scenario):
    """A scenario at whose end the erasure is looked at once more, as after its term."""

    def _world(self, gen):
        return world.Simulation(gen, list_page=self.list_page, watch=self._watch, private=_private)

    def _recover(self, simulation):
        simulation.quietly()
        found = []
        for again in range(2):
            simulation.current = None
            simulation.processes.clear()
            simulation.spawn(f"fresh{len(simulation.trace)}", worker())
            simulation.run()
            # From the first date on nothing of it is shown, whatever a stage had in hand.
            found += finish(erasure_invariants.check(simulation.store, PROJECT))
            if not again:
                simulation.processes.clear()
                simulation.spawn(f"eraser{len(simulation.trace)}", forgetter(run="a"))
                simulation.run()
        found += finish(invariants.check(simulation.store, simulation.bus, settled=True))
        found += finish(side_invariants.check(simulation.store, PROJECT))
        found += [
            invariants.Violation(invariants.ERASED, key, "it holds what was erased")
            for key, body in simulation.store.snapshot().items()
            if NEEDLE.encode() in body
        ]
        if found := harness.heard(found):
            raise Broken(found, simulation)


def _private(call):
    """As for every scenario, but that here the ledger changes."""
    return harness.private(call) and f"/{keys.ERASURES}/" not in call.what


def said(run, **more):
    return event(run, text=f"{NEEDLE} {run}", **more)


def beside_a_worker(**more):
    return Erasing(
        [said("a", rollout="r1")],
        processes=[forgetter(run="a"), worker()],
        before=[([event("b", rollout="r1")], worker())],
        compare=False,
        **more,
    )


def beside_a_replay(**more):
    return Erasing(
        [],
        processes=[forgetter(run="a"), worker()],
        before=[([said("a", rollout="r1"), event("b", rollout="r1")], worker())],
        replay=True,
        compare=False,
        **more,
    )


def alone(**more):
    return Erasing(
        [],
        processes=[forgetter(run="a")],
        before=[([said("a", rollout="r1")], worker())],
        replay=True,
        compare=False,
        **more,
    )


def beside_a_consolidator(**more):
    return Erasing(
        [],
        processes=[consolidator(), forgetter(run="a")],
        before=[([event("b", rollout="r2")], worker()), ([said("a", rollout="r1")], recorder())],
        compare=False,
        **more,
    )


SCENARIOS = {
    "a worker records the run meanwhile": lambda: beside_a_worker(faults=Faults(switches=2)),
    "the topic is replayed meanwhile": lambda: beside_a_replay(faults=Faults(switches=1)),
    "a revision is made meanwhile": lambda: beside_a_consolidator(faults=Faults(switches=2)),
    "the eraser dies": lambda: alone(faults=Faults(crashes=1)),
    "a reply is lost": lambda: alone(faults=Faults(lost=1)),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_was_erased_stays_away(name):
    assert SCENARIOS[name]().explore().schedules > 10


MUTANTS = {
    "the record stage does not look at what was erased": (
        [
            (
                record.Incoming.is_erased,
                "if erasures.is_erased(head.body, self.run, ids.alias(self.data.run_id)):",
                "if False:",
            )
        ],
        lambda: beside_a_replay(faults=Faults(switches=0)),
    ),
    "the memory's head does not move where no revision holds it": (
        [
            (
                memories.erase,
                "if line.clean is not None or (line.floor is None and told == line.name):",
                "if line.clean is not None or line.floor is None:",
            )
        ],
        lambda: beside_a_consolidator(faults=Faults(switches=2)),
    ),
}


@pytest.mark.parametrize("hole", MUTANTS)
def test_each_hole_is_found(hole, monkeypatch):
    lines, scenario = MUTANTS[hole]
    mutants.Mutant(hole, lines, scenario, {invariants.ERASED}).apply(monkeypatch)
    with pytest.raises(Broken) as told:
        scenario().explore()
    assert told.value.names
