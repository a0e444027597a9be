"""Summaries: a function of the set of runs, bounded, and extended exactly or not at all."""

from __future__ import annotations

import json

import records
from hypothesis import given, settings
from hypothesis import strategies as st

from runlore.memory import rules, summary

WORLD = records.WORLDS[0]


def made(run: int, attempt: int, minute: int, fails: bool):
    about = records.meta("r1", f"run{run}", attempt=attempt, ended_at=f"2026-03-01T10:{minute:02d}:00+00:00")
    turns = [records.user(f"Auftrag {run} {attempt}")]
    if fails:
        turns += [WORLD.refused(f"2026-02-3{run % 10}", f"x{run}{attempt}", id=f"a{run}{attempt}")]
    turns += [WORLD.granted("2026-02-28", f"x{run}{attempt}", id=f"b{run}{attempt}")]
    return records.digest(*turns, about=about)


digests = st.lists(
    st.builds(made, st.integers(0, 5), st.integers(1, 3), st.integers(0, 9), st.booleans()),
    max_size=10,
    unique_by=lambda one: (one["run"], one["attempt"]),
)


@given(digests, st.randoms())
def test_the_order_of_digests_does_not_matter(given_digests, random):
    shuffled = list(given_digests)
    random.shuffle(shuffled)
    assert json.dumps(rules.build(shuffled)) == json.dumps(rules.build(given_digests))


@given(digests, st.integers(0, 10))
def test_extending_equals_building_from_all_or_says_that_it_cannot(given_digests, cut):
    first, rest = given_digests[:cut], given_digests[cut:]
    extended = rules.extend(rules.build(first), rest)
    assert extended is None or json.dumps(extended) == json.dumps(rules.build(given_digests))


def test_newer_runs_are_extended_without_the_older_digests():
    first = [made(0, 1, 0, True), made(1, 1, 1, False)]
    later = [made(2, 1, 2, True)]
    assert rules.extend(rules.build(first), later) == rules.build([*first, *later])


def test_a_late_run_and_a_replaced_run_cannot_be_extended():
    known = rules.build([made(1, 1, 5, True)])
    assert rules.extend(known, [made(2, 1, 3, True)]) is None
    assert rules.extend(known, [made(1, 2, 9, True)]) is None


def test_a_run_that_is_covered_already_changes_nothing():
    known = rules.build([made(1, 2, 5, True)])
    assert rules.extend(known, [made(1, 2, 5, True)]) == known
    assert rules.extend(known, [made(1, 1, 9, True)]) == known


def test_only_the_highest_attempt_counts():
    assert rules.build([made(1, 1, 1, True), made(1, 2, 2, False)]) == rules.build([made(1, 2, 2, False)])


@settings(max_examples=3)
@given(st.integers(100, 140))
def test_a_summary_stays_bounded_and_exact_past_the_runs_it_names(count):
    every = [
        made(run, 2 if run == 6 else 1, 0, True) | {"ended_at": f"2026-03-01T{run:05d}"}
        for run in range(count)
    ]
    whole = rules.build(every)
    assert len(json.dumps(whole)) <= summary.SUMMARY_BYTES_MAX
    assert whole["runs_total"] == count
    assert rules.extend(rules.build(every[:-1]), every[-1:]) == whole
    replaced = every[6] | {"attempt": 9, "ended_at": "2026-09"}
    assert rules.extend(whole, [replaced]) is None


def test_history_that_a_resumed_run_repeats_counts_once():
    turns = [
        records.user("Auftrag"),
        WORLD.refused("2026-02-30", id="a"),
        WORLD.granted("2026-02-28", id="b"),
    ]
    first = records.digest(*turns, about=records.meta("r1", "run1"))
    again = records.digest(
        *turns,
        records.user("Und weiter"),
        about=records.meta("r1", "run2", ended_at="2026-03-02T10:00:00+00:00"),
    )
    both = rules.build([first, again])
    assert both["failures"][0]["count"] == 1
    assert [one["text"] for one in both["requests"]] == ["Auftrag", "Und weiter"]


def test_a_rollout_of_two_subjects_belongs_to_neither():
    one = records.digest(records.user("Auftrag"), about=records.meta("r1", "run1", subject="rl-a"))
    two = records.digest(records.user("Auftrag"), about=records.meta("r1", "run2", subject="rl-b"))
    assert rules.build([one, two])["subject"] == summary.MIXED
