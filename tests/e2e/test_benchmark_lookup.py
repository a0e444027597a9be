"""The benchmark of the lookup service runs: each part at a size that measures nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "rollouts": 40,
    "real": 6,
    "rates": "",
    "seconds": 0.1,
    "rounds": 1,
    "searches": 3,
    "seeds": 2,
    "files": 60,
    "runs": 1,
    "think-seconds": 0,
}
DEEP = pytest.mark.skipif(not os.environ.get("RUNLORE_TEST_DEEP"), reason="RUNLORE_TEST_DEEP is not set")


@pytest.mark.process
@pytest.mark.parametrize(
    "part",
    ["search", "http", *(pytest.param(part, marks=DEEP) for part in ("seed", "audit", "workspace", "run"))],
)
def test_a_part_measures_and_tells(part, tmp_path):
    sizes = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    found = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "lookup.py", "--only", part, *sizes, "--json", found],
        stdout=subprocess.PIPE,
        text=True,
        timeout=200,
        cwd=tmp_path,
    )
    assert done.returncode == 0 and f"{part}: " in done.stdout
    assert part in json.loads(found.read_text())
