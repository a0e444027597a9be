"""End to end: real `runlore` processes, each test on a home of its own."""

from __future__ import annotations

import os
import subprocess
import sys
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
def wheel(tmp_path_factory):
    """The wheel that this source makes."""
    pytest.importorskip("hatchling", reason="hatchling is not installed: the wheel can't be built")
    folder = tmp_path_factory.mktemp("wheel")
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]
    _pip("wheel", str(homes.ROOT), *offline, "--wheel-dir", str(folder))
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """A folder in which the wheel is installed; what comes before the source tree on `PYTHONPATH`."""
    folder = tmp_path_factory.mktemp("installed")
    _pip("install", str(wheel), "--no-index", "--no-deps", "--no-compile", "--target", str(folder))
    return folder


def _pip(*words):
    made = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "--quiet", *words]
    done = subprocess.run(made, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def recorded():
    """The folder of recorded runs, which is not in the repository. Skips where it is absent."""
    folder = Path(os.environ.get("RUNLORE_TEST_DATA") or homes.ROOT.parent / "shared" / "data")
    missing = [name for name in ("tau-bench", "swe-agent") if not (folder / name).is_dir()]
    if missing:
        pytest.skip(f"no recorded runs ({' and '.join(missing)}): set RUNLORE_TEST_DATA to their folder")
    return folder
