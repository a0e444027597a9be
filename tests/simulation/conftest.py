"""Every test here runs the production stages in a simulated world, on the toy memory unless it asks for the real."""

from __future__ import annotations

import os

import harness
import pytest
import schedules
import toy

from runlore.testing import exhaust


@pytest.fixture(autouse=True)
def _explored(request):
    """Each test explores as much as is said of it (`schedules.LEAST`)."""
    name = f"{request.path.name}::{request.node.originalname}"
    before = exhaust.RAN["schedules"]
    yield
    least = schedules.LEAST.get(name, 0)
    explored = exhaust.RAN["schedules"] - before
    if (path := os.environ.get("RUNLORE_TEST_COUNTS")) and explored:
        with open(path, "a") as file:
            file.write(f"{name} {explored}\n")
    if least:
        assert explored >= least, f"{explored} schedules; schedules.py says that there are {least} at least"


@pytest.fixture(autouse=True)
def _stages(monkeypatch, request):
    if getattr(request.module, "WHOLE_PROCESSES", False):
        return
    harness.install(monkeypatch)
    if not getattr(request.module, "REAL_MEMORY", False):
        toy.install(monkeypatch)
