"""docs/SCALE.md shows what its command prints from the figures that are kept."""

from __future__ import annotations

import json
import subprocess
import sys

import reference

PAGE = reference.ROOT / "docs" / "SCALE.md"
COMMAND = reference.ROOT / "benchmarks" / "capacity.py"


def command(*words):
    done = subprocess.run(
        [sys.executable, COMMAND, *words], capture_output=True, text=True, check=True, timeout=300
    )
    return done.stdout


def test_the_tables_of_the_page_are_those_that_the_command_prints():
    page = PAGE.read_text("utf-8")
    parts = command().split("## ")[1:]
    assert len(parts) == page.count("<!-- generated: ") == 6
    for part in parts:
        name, _, text = part.partition("\n\n")
        between = page.split(f"<!-- generated: {name} -->")[1].split(f"<!-- end: {name} -->")[0]
        assert between.strip() == text.strip(), "run: python benchmarks/capacity.py --keep"


def test_a_load_is_told_with_its_workers_its_lag_and_its_costs():
    told = command("--runs-per-second", "20", "--memories", "50")
    for word in (
        "20 runs/s over 50 memories",
        "workers of one core",
        "lag, mean",
        "a million runs, PUT and LIST",
    ):
        assert word in told


def test_what_is_measured_can_not_be_measured_with_folders_that_are_not_there():
    done = subprocess.run(
        [sys.executable, COMMAND, "--measure", "no-such-folder"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "no such folder: no-such-folder" in done.stderr


def test_the_kept_figures_say_what_they_are_of():
    kept = json.loads((reference.ROOT / "docs" / "figures" / "capacity.json").read_text("utf-8"))
    assert kept["measured"]["events"]["runs"] > 0 and kept["measured"]["events"]["of"]
    assert all(one["told"] and one["simulated"] for one in kept["checks"].values())
