"""`make soak`: what a run of many schedules tells, and what it says of one that breaks."""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections import Counter

import figures
import fleet
import pytest
import soak

from runlore.testing import cluster, exhaust, invariants

WHOLE_PROCESSES = True
"""Each schedule says itself which memory it has."""


def told(kind, name, **more):
    return soak.Told(kind, name, **more)


def test_the_figures_count_every_schedule_once_and_name_every_fault_and_invariant(tmp_path):
    explored = exhaust.Explored(complete=30, pruned=12, states=50, whole=False)
    done = [
        told("deployment", "2", steps=10, simulated_seconds=86_400.0, happened=Counter(crash=3)),
        told("deployment", "3", steps=5, happened=Counter(crash=1)),
        told("random", "0-49", schedules=50, steps=7),
        told("exhaustive", "two workers", schedules=42, explored=explored),
    ]
    done[0].checked = Counter({invariants.ENDS: 2})
    figures.write(tmp_path / "new" / "figures.json", figures.of(done, seconds=60.0, processes=2))
    report = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert (report["schedules"], report["schedules_per_minute"], report["steps"]) == (94, 94, 22)
    assert report["deployments"]["seeds"] == 2 and report["deployments"]["long"] == 1
    assert report["exhaustive"][0] == {
        "scenario": "two workers",
        "schedules": 42,
        "complete": 30,
        "states": 50,
        "whole": False,
        "cpu_seconds": 0.0,
    }
    assert set(report["faults"]) == set(cluster.KINDS) and report["faults"]["crash"] == 4
    assert [one["number"] for one in report["invariants"]] == list(range(1, 13))
    assert report["invariants"][11]["checks"] == 2 and report["broken"] == []
    assert "94 schedules" in figures.told(report) and "nothing broke" in figures.told(report)


def test_a_failing_seed_is_told_before_it_is_made_small(monkeypatch, capsys):
    class World:
        faults, trace = ["a", "b", "c"], ["1 worker-a.1: poll record", "2 worker-a.1: put x"]

    def breaks(seed, *, without=(), mutant=None):
        world = World()
        world.faults = [one for one in World.faults if one not in without]
        if "b" in world.faults:
            raise fleet.Broken(seed, [invariants.Violation(invariants.ENDS, "here", "it waits")], world)

    monkeypatch.setattr(soak, "run", breaks)
    monkeypatch.setattr(soak, "_done", lambda jobs, *_: [soak.job(*one) for one in jobs])
    asked = argparse.Namespace(processes=1, minutes=None, shrink_seconds=9.0, report=None)
    assert soak.soak([("deployment", 7)], asked) == 1
    said = capsys.readouterr().out
    order = [
        "broken: deployment 7",
        "it waits",
        "SEEDS=7,",
        "made small, for 9 s",
        "1 faults are enough",
        "put x",
    ]
    assert sorted(order, key=said.index) == order
    assert "poll record" not in said


def test_no_time_for_it_leaves_a_failing_schedule_as_it_is(monkeypatch):
    monkeypatch.setattr(soak, "run", lambda *_, **__: pytest.fail("nothing is run"))
    broken = argparse.Namespace(faults=["a"], names={"x"})
    assert soak.smaller(1, broken, seconds_max=0.0) is broken


def test_ctrl_c_begins_nothing_more_and_tells_what_was_done(monkeypatch, capsys):
    over = multiprocessing.Event()
    monkeypatch.setattr(soak, "OVER", over)
    monkeypatch.setattr(soak, "run", lambda *_, **__: pytest.fail("nothing is run"))
    done = iter([told("deployment", "7", steps=3)])
    monkeypatch.setattr(soak, "_done", lambda *_: done)
    soak._interrupted()
    with pytest.raises(KeyboardInterrupt):
        soak._interrupted()
    assert soak.job("deployment", 8) is None
    asked = argparse.Namespace(processes=1, minutes=None, shrink_seconds=9.0, report=None)
    assert soak.soak([("deployment", 7), ("deployment", 8)], asked) == soak.ENDED
    said = capsys.readouterr().out
    assert "1 schedules" in said and "interrupted after 1 of 2 jobs" in said
