"""Every test here runs the production stages in a simulated world, on the toy memory unless it asks for the real."""

from __future__ import annotations

import harness
import pytest
import toy


@pytest.fixture(autouse=True)
def _stages(monkeypatch, request):
    harness.install(monkeypatch)
    if "real_memory" not in request.keywords:
        toy.install(monkeypatch)
