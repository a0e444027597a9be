"""Golden tests compare with what others wrote: the real SDK, the published schemas, recorded runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def recorded() -> Path:
    """The folder of recorded runs, which is not in the repository. Skips where it is absent."""
    folder = Path(os.environ.get("RUNLORE_TEST_DATA") or ROOT.parent / "shared" / "data")
    missing = [name for name in ("tau-bench", "swe-agent") if not (folder / name).is_dir()]
    if missing:
        pytest.skip(f"no recorded runs ({' and '.join(missing)}): set RUNLORE_TEST_DATA to their folder")
    return folder
