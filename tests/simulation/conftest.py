"""Every test here runs the production stages in a simulated world, on the toy memory unless it asks for the real."""

from __future__ import annotations

import harness
import pytest
import toy


@pytest.fixture(autouse=True)
def _stages(monkeypatch, request):
    if getattr(request.module, "WHOLE_PROCESSES", False):
        return
    harness.install(monkeypatch)
    if not getattr(request.module, "REAL_MEMORY", False):
        toy.install(monkeypatch)
