"""The benchmark of memory runs: a model beside the rules, a blind reading and its score, a rollout that grows."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import homes
import pytest
from test_model_summaries_through_the_pipeline import SAID, Served, says

import made


def benchmark(*words, code=0):
    done = subprocess.run(
        [sys.executable, homes.ROOT / "benchmarks" / "memory.py", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=homes.WAIT_SECONDS_MAX,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.fixture
def runs(tmp_path):
    """A folder of six runs, as the SDK leaves them."""
    folder = tmp_path / "runs"
    folder.mkdir()
    for number in range(6):
        line = {**made.payload(number), "rollout_id": f"r{number}"}
        (folder / f"r{number}.jsonl").write_text(json.dumps(line, separators=(",", ":")) + "\n")
    return folder


@pytest.mark.process
def test_a_model_is_measured_beside_the_rules_and_no_answer_is_paid_for_twice(runs, tmp_path):
    kept, reading = tmp_path / "kept", tmp_path / "lines.csv"
    with Served(says) as server:
        words = (runs, "--model", "gpt-5.4-mini", "--base-url", f"{server.url}", "--kept", kept, "--json")
        first = json.loads(benchmark(*words, "--reading", reading))
        assert len(server.seen) == 6
        again = json.loads(benchmark(*words))
        assert len(server.seen) == 6
    (split,) = first["splits"]
    assert {"runlore", "runlore+model"} <= split["engines"].keys()
    assert split["contenders"]["runlore+model@1500"].keys() == split["contenders"]["runlore@1500"].keys()
    assert first["model"]["answers"] == first["model"]["statements"] == 6 and first["model"]["cost_usd"] > 0
    assert (again["model"]["kept_before"], again["model"]["input_tokens"]) == (6, 0)
    assert again["splits"] == first["splits"]
    with Served(says) as server:
        # One JSON object also where something is logged: that a model has no price.
        unpriced = json.loads(benchmark(runs, "--model", "our/own", "--base-url", server.url, "--json"))
    assert unpriced["model"]["cost_unknown"] == 6
    score(reading)


def score(reading):
    """Fill the reading as somebody would who believes the model alone, and look at its score."""
    with reading.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["verdict"] for row in rows} == {""} and not any("model" in row["line"] for row in rows)
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    found = json.loads(benchmark("--score", reading, "--json"))["engines"]
    assert (
        found["model"]["line_precision"] is None
        and found["rules"]["not_filled"] == found["rules"]["lines"] > 0
    )
    with reading.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows({**row, "verdict": "Y" if SAID in row["line"] else "n"} for row in rows)
    found = json.loads(benchmark("--score", reading, "--json"))["engines"]
    assert (found["model"]["line_precision"], found["rules"]["line_precision"]) == (1.0, 0.0)
    low, high = found["model"]["interval_95"]
    assert low < 0.5 and high == 1.0
    reading.write_text(reading.read_text().replace(",n,", ",perhaps,"))
    benchmark("--score", reading, code=1)


@pytest.mark.process
def test_a_rollout_that_grows_costs_its_runs_and_not_their_square(runs):
    found = json.loads(benchmark(runs, "--growth", 40, "--json"))
    ways = {way: one["input_tokens"] for way, one in found["ways"].items()}
    assert len(found["rows"]) == 40 and ways["rolling"] < ways["whole_cut"] <= ways["whole"]
    own = sum(row["own"] for row in found["rows"])
    assert ways["rolling"] < 6 * own
