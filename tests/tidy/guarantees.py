"""The tables of docs/GUARANTEES.md: what proves each promise, and what the last run of the simulation found.

What proves a promise stands here, by name; test_guarantees.py looks each up. The figures are those that `make soak`
left in docs/figures/simulation.json. `python tests/tidy/reference.py` writes the tables anew.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import runlore.testing
from runlore.testing import invariants
from runlore.upkeep import verify

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ROOT / "docs/figures/simulation.json"
FORMAT = "runlore.simulation.1"
MODULES = {
    one.name: importlib.import_module(f"runlore.testing.{one.name}")
    for one in pkgutil.iter_modules(runlore.testing.__path__)
    if one.name.endswith("invariants")
}
"""Where checkers live."""
ONLY_SETTLED = {"invariants.every_mark_is_worked", "invariants.every_run_reaches_an_end"}
"""What `verify` leaves out: on a home at work there is always something left to do."""


@dataclass(frozen=True)
class Proof:
    """One invariant of docs/DESIGN.md: its promise in a user's words, and what would tell if it were broken."""

    number: int
    promise: str
    section: str
    """Heading of docs/GUARANTEES.md that says the rest."""
    checkers: tuple[str, ...]
    tests: tuple[str, ...]
    """Beyond the simulation: `file` or `file::test`, below tests/."""
    holes: tuple[tuple[str, str], ...] = ()
    """(file below tests/simulation, the hole by its name there), some of them: put back, each must be found."""


PROOFS = (
    Proof(
        1,
        "what a head names is there, whole",
        "What is kept is whole, and stays for its term",
        (
            "invariants.heads_name_what_exists",
            "invariants.manifest_names_what_exists",
            "invariants.rollout_names_what_exists",
            "invariants.objects_have_their_names",
            "snapshot_invariants.packs_have_their_names",
        ),
        (
            "contract/test_store_contract.py::"
            "test_a_process_killed_at_any_point_loses_nothing_it_was_told_and_tears_nothing",
        ),
        (
            ("mutants.py", "manifest before its pack"),
            ("mutants.py", "head before its manifest"),
            ("mutants.py", "head before its record"),
        ),
    ),
    Proof(
        2,
        "every run takes effect exactly once",
        "Nothing is lost, nothing is doubled",
        ("invariants.runs_take_effect_once",),
        (
            "e2e/test_kill.py::test_fifty_kills_of_up_over_an_import_end_as_an_undisturbed_run",
            "e2e/test_cluster.py::test_nothing_is_lost_or_doubled_while_workers_broker_and_store_break",
        ),
        (
            ("mutants.py", "a 412 taken for a rival without reading what is there"),
            ("mutants.py", "sameness judged after redaction"),
            ("mutants.py", "revert carries the old coverage"),
        ),
    ),
    Proof(
        3,
        "revisions form one line, and nobody reads half of one",
        "Nothing is overwritten",
        ("invariants.revisions_form_one_line", "invariants.moved_well", "invariants.follows"),
        (
            "contract/test_store_contract.py::test_of_racing_processes_exactly_one_wins_each_key",
            "contract/test_store_contract.py::test_a_reader_never_sees_part_of_a_body",
        ),
        (
            ("mutants.py", "a head moved without compare-and-set"),
            ("mutants.py", "head read again after the revision was made"),
            ("mutants.py", "fields of a head that this version does not know are dropped"),
        ),
    ),
    Proof(
        4,
        "an event leaves the bus only once its effect is in the store",
        "Nothing is lost, nothing is doubled",
        ("invariants.offsets_follow_effects",),
        ("integration/test_worker_kafka.py", "unit/test_worker_offsets.py"),
        (
            ("mutants.py", "offset before the effect"),
            ("mutants.py", "offset before the mark"),
            ("mutants.py", "already there, return early without a mark"),
        ),
    ),
    Proof(
        5,
        "a workspace is replaced only by who saw it",
        "Nothing is overwritten",
        (
            "snapshot_invariants.body_makes_sense",
            "snapshot_invariants.moved_well",
            "snapshot_invariants.forgets_nothing",
        ),
        ("integration/test_agents_workspace.py", "integration/test_sdk_weaknesses.py"),
        (
            ("test_snapshot_stage.py", "test_mutant_bases_by_content_alone"),
            ("test_snapshot_stage.py", "test_mutant_a_child_reaches_the_base_test"),
            ("test_snapshot_stage.py", "test_mutant_no_outcome_before_the_head_forgets_a_run"),
        ),
    ),
    Proof(
        6,
        "what was saved can be restored",
        "What is kept is whole, and stays for its term",
        ("snapshot_invariants.trees_are_whole",),
        ("unit/snapshots/test_snapshots_round_trip.py", "golden/test_snapshot_format.py"),
    ),
    Proof(
        7,
        "what was named stays for its term, and a sweep takes garbage alone",
        "What is kept is whole, and stays for its term",
        ("snapshot_invariants.refs_are_whole",),
        (
            "simulation/test_sweep.py::"
            "test_a_writer_paused_anywhere_for_any_time_has_all_it_names_or_fails_cleanly",
        ),
        (
            ("test_sweep.py", "test_mutant_superseded_is_not_kept_for_its_term"),
            ("test_sweep.py", "test_mutant_no_signature_window"),
            ("test_sweep.py", "test_mutant_referring_to_what_is_only_in_its_term"),
        ),
    ),
    Proof(
        8,
        "what fails the guards is not published",
        "What fails the guards waits for a person",
        ("invariants.held_rollouts_have_a_reason",),
        ("unit/memory/test_guards.py", "integration/test_review.py"),
    ),
    Proof(
        9,
        "projects and subjects are apart",
        "Projects and people are apart",
        ("invariants.projects_and_subjects_are_apart",),
        (
            "e2e/test_isolation.py",
            "integration/test_http_access.py::"
            "test_no_route_answers_anybody_without_a_good_key_or_with_a_key_of_another_project",
            "infra/test_terraform.py",
        ),
    ),
    Proof(
        10,
        "what was erased stays away",
        "What was erased stays away",
        ("erasure_invariants.of_entry",),
        (
            "unit/test_erasing.py::test_an_erasure_that_died_at_any_write_is_finished_by_another_pass",
            "e2e/test_forget_command.py",
        ),
        (
            ("test_erasure.py", "the record stage does not look at what was erased"),
            ("test_erasure.py", "the memory's head does not move where no revision holds it"),
        ),
    ),
    Proof(
        11,
        "a seed stays what it was, and never goes back",
        "A seed stays what it was",
        ("invariants.seeds_give_the_same_bytes", "line_invariants.earlier_revisions_keep_their_packs"),
        ("integration/test_http_seeds.py", "integration/test_agents_seen.py"),
        (("test_fleet.py", "looks_at_an_old_head"),),
    ),
    Proof(
        12,
        "every run comes to an end that can be asked for",
        "Every run comes to an end",
        (
            "invariants.every_run_reaches_an_end",
            "invariants.every_mark_is_worked",
            "snapshot_invariants.every_workspace_reaches_an_end",
        ),
        ("simulation/test_every_crash.py", "e2e/test_cluster.py"),
        (
            ("mutants.py", "a mark goes only with the revision that covers it"),
            ("test_fleet.py", "never_lists_marks"),
        ),
    ),
)


def figures():
    """What the last large run left; None where none is kept."""
    if not FIGURES.is_file():
        return None
    found = json.loads(FIGURES.read_text("utf-8"))
    assert found["format"] == FORMAT, found["format"]
    return found


def kept():
    """What the kept run says of each invariant, by number."""
    return {one["number"]: one for one in (figures() or {"invariants": ()})["invariants"]}


def checkers_of(one):
    """Its checkers by `module.function`: those above, then what the kept run had besides."""
    more = kept().get(one.number, {}).get("checkers", ())
    return list(dict.fromkeys(map(located, [*one.checkers, *more])))


def located(name):
    """`module.function` of a checker, also where it moved to another of the modules; as it is if it is not there."""
    module, _, function = name.partition(".")
    if hasattr(MODULES.get(module), function):
        return name
    return next((f"{one}.{function}" for one, there in MODULES.items() if hasattr(there, function)), name)


def checker(name):
    """A checker by `module.function`."""
    module, _, function = located(name).partition(".")
    return inspect.unwrap(getattr(MODULES[module], function))


def verified():
    """Every function of the checkers' modules that `runlore verify` comes to, by what each names in its code."""
    known = {
        name: f"{short}.{name}"
        for short, module in MODULES.items()
        for name, one in vars(module).items()
        if inspect.isfunction(one) and one.__module__ == module.__name__
    }
    by_code = {**{name: [name] for name in known}, "CHECKERS": [one.__name__ for one in invariants.CHECKERS]}
    found, left = set(), [inspect.unwrap(verify.verify).__code__, verify._check.__code__]
    while left:
        for name in _names(left.pop()):
            for called in by_code.get(name, ()):
                full = known[called]
                if full not in found and full not in ONLY_SETTLED:
                    found.add(full)
                    left += [
                        inspect.unwrap(vars(module)[called]).__code__
                        for module in MODULES.values()
                        if called in vars(module)
                    ]
    return found


def _names(code):
    yield from code.co_names
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _names(one)


def proof_table():
    """A row for each invariant: its promise, whether `verify` asks it, and how often the last run did."""
    checks = {number: f"{one['checks']:,}" for number, one in kept().items()}
    by_verify = verified()
    out = [
        "| | promise | checkers, of which `runlore verify` runs | checks in the last run |",
        "|---|---|---|---|",
    ]
    for one in PROOFS:
        ours = sum(name in by_verify for name in checkers_of(one))
        told_of = f"[{one.promise}](#{anchor(one.section)})"
        cells = (one.number, told_of, f"{len(checkers_of(one))}, {ours}", checks.get(one.number, "–"))
        out.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(out)


def proof_of(section):
    """What proves the promises of a section: checkers, holes that are put back, tests beyond the simulation."""
    by_verify = verified()
    out = ["**Proof.**", ""]
    for one in (one for one in PROOFS if one.section == section):
        parts = [
            (
                words,
                [f"`{name.partition('.')[2]}`" for name in checkers_of(one) if (name in by_verify) is asked],
            )
            for asked, words in ((True, "also by `runlore verify`"), (False, "in the simulation alone"))
        ]
        checked = "; ".join(f"{', '.join(names)} ({words})" for words, names in parts if names)
        holes = [hole.removeprefix("test_mutant_").replace("_", " ") for _, hole in one.holes]
        holes += [hole for hole in kept().get(one.number, {}).get("mutants", ()) if hole not in holes]
        found = f" Found when put back: {'; '.join(holes)}." if holes else ""
        files = dict.fromkeys(f"`tests/{name.partition('::')[0]}`" for name in one.tests)
        out.append(f"- {one.number}, {one.promise}: {checked}.{found} Beyond that: {', '.join(files)}.")
    return "\n".join(out)


def anchor(heading):
    """What a heading is linked by."""
    return "".join(one for one in heading.lower() if one.isalnum() or one in " -").replace(" ", "-")


def run_table():
    """What the last large run of the simulation explored, did to it, and found."""
    ran = figures()
    if ran is None:
        return "No figures of a large run are kept here yet."
    return told(ran)


def told(ran):
    """A kept run in words and tables."""
    whole, seeds = ran["deployments"], ran.get("random", {"seeds": 0})
    broken = len(ran["broken"])
    days, minutes = ran["simulated_seconds"] / 86_400, round(ran["wall_seconds"] / 60)
    small, whole_ones = ran["exhaustive"], sum(one["whole"] for one in ran["exhaustive"])
    out = [
        f"**{ran['schedules']:,} schedules, {ran['steps']:,} steps, {sum(ran['faults'].values()):,} faults: "
        f"{broken or 'no'} violation{'s' * (broken != 1)}.** On {ran['date']}, in {minutes:,} minutes "
        f"by {ran['processes']} at once ({ran['schedules_per_minute']:,} schedules a minute). All figures are in "
        "`docs/figures/simulation.json`.",
        "",
        "| kind of schedule | how many |",
        "|---|---|",
        f"| small: every crash point, interleaving or lost reply ({whole_ones} scenarios to their end, "
        f"{len(small) - whole_ones} up to a bound) | {sum(one['schedules'] for one in small):,} |",
        f"| one stage or two, many runs, random faults | {seeds['seeds']:,} |",
        f"| whole deployments of processes in simulated time ({whole['dense']:,} of ten minutes, {whole['long']:,} of "
        f"two weeks; {whole['erasing']:,} with an erasure, {whole['real_memory']:,} with the real memory and a model) "
        f"| {whole['seeds']:,} |",
        "",
        *_small(small),
        f"Together they simulate {days:,.0f} days. What was done to whole deployments:",
        "",
        "| fault | times |",
        "|---|---|",
        *(
            f"| {name} | {count:,} |"
            for name, count in sorted(ran["faults"].items(), key=lambda one: (-one[1], one[0]))
        ),
    ]
    out += ["", *(f"- broken: {one['kind']} {one['name']}: {one['what']}" for one in ran["broken"])]
    return "\n".join(out)


def _small(explored):
    """Which small scenarios were explored to their end, and which in part."""
    parts = (
        ("Small scenarios that were explored to their end", [one for one in explored if one["whole"]]),
        (
            "Up to the bound, depth first, which is one corner of each",
            [one for one in explored if not one["whole"]],
        ),
    )
    for words, rows in parts:
        if rows:
            yield f"{words}: " + "; ".join(f"{one['scenario']} ({one['schedules']:,})" for one in rows) + "."
            yield ""


PARTS = {"proof": proof_table, "run": run_table}
PARTS |= {
    f"proof {section}": functools.partial(proof_of, section) for section in {one.section: 0 for one in PROOFS}
}
"""Name of each part of the page that is made → what makes it."""
