"""Every invariant has a checker, and a mutant of the production code that its checkers alone see."""

from __future__ import annotations

import importlib
from pathlib import Path

import harness
import proof
import pytest
import schedules
import test_erasure
import test_snapshot_stage
from harness import worker

from runlore.commit import lines
from runlore.testing import checks, exhaust, world
from runlore.testing.stores import MemoryStore
from runlore.testing.world import finish
from runlore.upkeep import verify


def names(row):
    return f"{row.number}-{row.mutant.hole}".replace(" ", "-")


def test_the_table_has_every_invariant_of_the_design_once_and_each_has_a_checker():
    assert [row.number for row in proof.TABLE] == sorted(proof.said()) == list(range(1, 13))
    for row in proof.TABLE:
        assert proof.checkers(row.number), f"nothing checks invariant {row.number}"


@pytest.mark.parametrize("row", proof.TABLE, ids=names)
def test_a_mutant_of_each_invariant_is_seen_by_its_own_checkers_alone(row, monkeypatch):
    row.explore()  # Without the mutant it holds.
    row.mutant.apply(monkeypatch)
    with pytest.raises(harness.Broken) as told:
        row.explore()
    assert {harness.number_of(one) for one in told.value.violations} == {row.number}, told.value
    monkeypatch.setattr(harness, "DEAF", {row.number})
    row.explore()


def test_what_verify_checks_is_what_the_table_says(monkeypatch):
    monkeypatch.setattr(lines, "VERSIONS_MAX", 100)
    simulation = world.Simulation(exhaust.Replay([]), store=MemoryStore())
    for key, body in test_snapshot_stage.refs()[0].items():
        finish(simulation.store.put(key, body))
    finish(simulation.bus.produce(test_snapshot_stage.chain()))
    for main in (worker(), test_snapshot_stage.worker(), test_erasure.forgetter(run="a")):
        simulation.spawn("one", main)
        simulation.run()
    checks.RAN.clear()
    assert finish(verify.verify(simulation.store, simulation.bus)).violations == []
    assert {int(name.split()[0]) for name, count in checks.RAN.items() if count} == proof.IN_VERIFY


def test_the_suite_explores_ten_thousand_schedules():
    """Each of these tests fails if it explores fewer (`conftest.py`): so the sum holds however they are spread."""
    for name in schedules.LEAST:
        file, _, test = name.partition("::")
        assert hasattr(importlib.import_module(Path(file).stem), test), f"there is no {name}"
    assert sum(schedules.LEAST.values()) >= schedules.IN_ALL
