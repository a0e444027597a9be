"""End to end: real `runlore` processes, each test on a home of its own."""

from __future__ import annotations

import os
from pathlib import Path

import homes
import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(item.path).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.process)


@pytest.fixture(autouse=True)
def no_process_outlives_its_test():
    yield
    homes.end_all()


@pytest.fixture
def home(tmp_path):
    """A home that is not made yet."""
    return homes.Home(tmp_path / "home")


@pytest.fixture(scope="session")
def recorded():
    """The folder of recorded runs, which is not in the repository. Skips where it is absent."""
    folder = Path(os.environ.get("RUNLORE_TEST_DATA") or homes.ROOT.parent / "shared" / "data")
    missing = [name for name in ("tau-bench", "swe-agent") if not (folder / name).is_dir()]
    if missing:
        pytest.skip(f"no recorded runs ({' and '.join(missing)}): set RUNLORE_TEST_DATA to their folder")
    return folder
