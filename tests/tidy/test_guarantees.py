"""docs/GUARANTEES.md names what exists: each invariant, its checkers, holes, tests and figures."""

from __future__ import annotations

import json
import re

import guarantees
import pytest
import reference

PAGE = (reference.ROOT / "docs/GUARANTEES.md").read_text("utf-8")
TESTS = reference.ROOT / "tests"
SECTIONS = {
    name: text
    for name, text in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    if "**Promise.**" in text
}
RAN = {
    "format": guarantees.FORMAT,
    "date": "2026-11-23",
    "processes": 2,
    "schedules": 1_030,
    "steps": 61_234,
    "simulated_seconds": 864_000_000,
    "wall_seconds": 600.0,
    "schedules_per_minute": 103,
    "deployments": {"seeds": 10, "dense": 7, "long": 3, "erasing": 2, "real_memory": 1},
    "random": {"seeds": 20},
    "exhaustive": [{"scenario": "three runs, three crashes", "schedules": 1_000, "whole": True}],
    "faults": {"lost reply": 2, "crash": 12_345},
    "invariants": [{"number": 6, "name": "6 what is published can be restored", "mutants": ["a hole"], "checks": 7,
                    "checkers": ["invariants.another", "snapshot_invariants.trees_are_whole"]}],
    "broken": [],
}  # fmt: skip


def test_every_invariant_of_the_design_has_its_row_and_its_section():
    design = (reference.ROOT / "docs/DESIGN.md").read_text("utf-8")
    part = design.split("\n## Invariants\n")[1].split("\n## ")[0]
    numbers = [int(one) for one in re.findall(r"^(\d+)\. ", part, re.M)]
    assert [one.number for one in guarantees.PROOFS] == numbers == list(range(1, 13))
    promised = [
        int(number)
        for text in SECTIONS.values()
        for group in re.findall(r"\*\*Promise\.\*\* \(([\d, ]+)\)", text)
        for number in group.split(", ")
    ]
    assert sorted(promised) == numbers
    for one in guarantees.PROOFS:
        assert re.search(rf"\*\*Promise\.\*\* \([\d, ]*\b{one.number}\b", SECTIONS[one.section]), one.number


@pytest.mark.parametrize("name", SECTIONS)
def test_each_promise_says_on_what_it_rests_and_what_is_not_promised(name):
    found = re.findall(r"^\*\*([A-Z][a-z ]+\.)\*\*", SECTIONS[name], re.M)
    proved = ["Proof."] if any(one.section == name for one in guarantees.PROOFS) else []
    assert found == ["Promise.", *proved, "Rests on.", "Not promised."]
    assert re.search(r"\*\*Not promised\.\*\*\n\n- ", SECTIONS[name])


def test_each_checker_hole_and_test_that_is_named_exists():
    for one in guarantees.PROOFS:
        assert one.checkers and all(callable(guarantees.checker(name)) for name in one.checkers)
        for file, hole in one.holes:
            assert hole in (TESTS / "simulation" / file).read_text("utf-8"), (file, hole)
        for name in one.tests:
            file, _, test = name.partition("::")
            assert (
                f"def {test}(" in (TESTS / file).read_text("utf-8") if test else (TESTS / file).is_file()
            ), name
    for path in re.findall(r"`((?:tests|benchmarks|infra|docs)/[\w./-]*)`", PAGE):
        assert (reference.ROOT / path).exists(), path


def test_the_table_says_which_checkers_verify_comes_to():
    found = guarantees.verified()
    assert {"invariants.offsets_follow_effects", "erasure_invariants.of_entry"} <= found
    # They need to see a write as it lands, or a home in which all work is done.
    assert not {"invariants.moved_well", "invariants.follows", "invariants.every_mark_is_worked"} & found
    told = guarantees.proof_of("Nothing is overwritten")
    assert "`revisions_form_one_line` (also by `runlore verify`); `moved_well`, `follows` (in the sim" in told
    assert re.search(r"^\| 3 \| .+ \| 3, 1 \| ", guarantees.proof_table(), re.M)


def test_a_kept_run_is_told_with_its_faults_its_checks_and_what_broke():
    told = guarantees.told(RAN)
    assert "**1,030 schedules, 61,234 steps, 12,347 faults: no violations.**" in told
    assert "(7 of ten minutes, 3 of two weeks; 2 with an erasure, 1 with the real memory and a model)" in told
    assert told.index("| crash | 12,345 |") < told.index("| lost reply | 2 |")
    assert "10,000 days" in told and "(1 scenarios to their end, 0 up to a bound) | 1,000 |" in told
    assert "explored to their end: " in told and "Up to the bound" not in told
    wrong = {"kind": "deployment", "name": "17", "what": "a run has no end"}
    broken = guarantees.told({**RAN, "broken": [wrong]})
    assert "faults: 1 violation.**" in broken and "- broken: deployment 17: a run has no end" in broken


def test_a_hole_of_a_kept_run_is_in_its_row_and_in_the_simulation(monkeypatch, tmp_path):
    monkeypatch.setattr(guarantees, "FIGURES", tmp_path / "simulation.json")
    guarantees.FIGURES.write_text(json.dumps(RAN), "utf-8")
    assert re.search(r"^\| 6 \| .+ \| 7 \|$", guarantees.proof_table(), re.M)
    (row,) = [one for one in guarantees.proof_of(guarantees.PROOFS[5].section).splitlines() if "- 6, " in one]
    assert "`trees_are_whole` (also by `runlore verify`); `another` (in the sim" in row
    assert "Found when put back: a hole." in row


def test_the_holes_and_checkers_of_the_kept_run_exist():
    ran = guarantees.figures()
    if ran is None:
        pytest.skip("no run is kept in docs/figures: `make soak` makes one")
    texts = "".join(path.read_text("utf-8") for path in (TESTS / "simulation").glob("*.py"))
    assert [one["number"] for one in ran["invariants"]] == list(range(1, 13)) and ran["broken"] == []
    for one in ran["invariants"]:
        assert one["checks"] > 0 and one["mutants"] and one["checkers"], one["name"]
        for hole in one["mutants"]:
            assert hole in texts or hole.replace(" ", "_") in texts, hole
        for name in one["checkers"]:
            module, _, function = name.partition(".")
            assert (
                hasattr(guarantees.MODULES[module], function)
                if module in guarantees.MODULES
                else function in texts
            )
    assert ran["schedules"] >= 100_000


def test_measured_figures_are_those_of_the_pages_on_figures():
    kept = "".join(
        (reference.ROOT / f"docs/{one}.md").read_text("utf-8")
        for one in ("BENCHMARKS", "SNAPSHOTS-BENCHMARK", "REDACTION")
    )
    measured = SECTIONS["Cost follows what changed"].split("|---|---|\n")[1].split("\n\n")[0]
    figures = [one for row in measured.splitlines() for one in re.findall(r"\$?\d+\.\d+", row)]
    assert len(figures) == 7 and all(one in kept for one in figures)
    for one in ("p50 5.0 s", "p99 9.1 s", "2,076 of\n23,720 requests"):
        assert one in kept
        assert one.replace("\n", " ") in PAGE.replace("\n", " ")
