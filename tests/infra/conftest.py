"""What the tests of infra/ share: the files, parsed; and promtool, where it is there or must be."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

INFRA = Path(__file__).resolve().parents[2] / "infra"


@pytest.fixture(scope="session")
def infra():
    return INFRA


@pytest.fixture(scope="session")
def compose():
    return yaml.safe_load((INFRA / "compose.yaml").read_text("utf-8"))


@pytest.fixture(scope="session")
def rules():
    """Every alert by its name."""
    groups = yaml.safe_load((INFRA / "prometheus/alerts.yml").read_text("utf-8"))["groups"]
    return {one["alert"]: one for group in groups for one in group["rules"] if "alert" in one}


@pytest.fixture(scope="session")
def promtool():
    """Runs promtool: (exit code, output). Required where RUNLORE_TEST_REQUIRE names it."""
    found = shutil.which("promtool")
    if found is None:
        missing = "promtool is not on PATH: apt-get install prometheus"
        if "promtool" in os.environ.get("RUNLORE_TEST_REQUIRE", "").split(","):
            pytest.fail(missing)
        pytest.skip(missing)

    def run(*words):
        done = subprocess.run([found, *map(str, words)], capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    return run
