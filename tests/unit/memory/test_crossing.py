"""What crosses between subjects: what the renderer writes, the guards let through, whatever was shown by whom."""

from __future__ import annotations

import re
from unittest import mock

import hypothesis
import pytest
import records
from hypothesis import strategies as st

from runlore.memory import crossing, guards, notes, render, summary

SUBJECTS = [None, "rl-a", "rl-b", "rl-c", summary.MIXED]
PIECES = ["wrong", "right", "2", "17", "2024", "ana", "@", " ", "-", "."]
VALUES = st.one_of(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join),
    st.sampled_from(["2026-03-01", "wrong-2", "npm run 17", "ana@right.wrong", "2024-17-2", "fact wrong-2"]),
)
CHANGES = st.builds(
    lambda was, now: {"changes": [{"path": "argument", "how": "set", "was": was, "is": now}]}, VALUES, VALUES
)
FIXES = st.one_of(
    CHANGES,
    st.builds(lambda was, now: {"was": was, "command": now}, VALUES, VALUES),
    st.builds(lambda steps: {"after": steps}, st.lists(VALUES, min_size=1, max_size=2)),
    st.builds(lambda was, now: {"pieces": [[was, now]], "command": now, "was": was}, VALUES, VALUES),
)
SHOWN = st.builds("sheet {} is locked".format, VALUES)
CASES = st.lists(
    st.tuples(
        st.sampled_from(SUBJECTS), st.sampled_from(["a", "b"]), SHOWN, st.lists(FIXES, max_size=3), VALUES
    ),
    min_size=1,
    max_size=8,
)


def known(cases) -> notes.Notes:
    """The notes of a rollout for each case: a failure of a tool, its fixes, a command that worked."""
    entries = notes.Notes({})
    for number, (subject, tool, shown, fixes, command) in enumerate(cases):
        about = {"subject": subject, "memory": "m", "agent": "", "at": "2026-03-01T00:00:00Z", "evidence": []}
        failure = about | {"count": 1, "sure": True, "shown": shown, "shape": "s", "fixes": fixes}
        fact = about | {"count": 1, "where": ""}
        for kind, key, body in (
            ("failure", {"head": f"send_{tool}", "key": tool}, failure),
            ("fact", {"command": command}, fact),
        ):
            identity = notes.note_id(kind, key)
            entry = entries.get(identity) or {"kind": kind, "key": key, "support": {}}
            entries = entries.replace({identity: notes.supported(entry, f"r{number}", body)})
    return entries


def crossed(all_notes: notes.Notes) -> list[guards.Violation]:
    found = guards.check(None, all_notes, render.parts(all_notes, records.LAYOUT))
    return [one for one in found if one.kind == "subject"]


@hypothesis.given(CASES)
@hypothesis.settings(max_examples=400, deadline=None)
def test_no_guard_holds_what_the_rules_render(cases):
    assert crossed(known(cases)) == []


WORDS_OF_OTHERS = [
    ("rl-a", "a", "locked", [{"changes": [{"path": "day", "how": "set", "was": "x-1", "is": "2024-05-17"}]}], "a"),
    ("rl-b", "a", "locked", [{"changes": [{"path": "day", "how": "set", "was": "x-1", "is": "2024-06-18"}]}], "a"),
    ("rl-c", "a", "locked", [{"changes": [{"path": "day", "how": "set", "was": "x-1", "is": "2024-05-18"}]}], "a"),
    ("rl-b", "a", "locked", [{"changes": [{"path": "day", "how": "set", "was": "x-1", "is": "2024-06-17"}]}], "a"),
]  # fmt: skip


def test_a_date_of_one_subject_is_not_told_though_others_showed_each_of_its_numbers():
    told = render.parts(known(WORDS_OF_OTHERS), records.LAYOUT)["base/MEMORY.md"].text
    assert "another `day`" in told and not re.search(r"\d{4}-\d{2}-1[78]", told)


def test_the_property_catches_a_renderer_that_looks_at_words_alone():
    with mock.patch.object(crossing.Personal, "hide", lambda self, body: body):
        assert crossed(known(WORDS_OF_OTHERS))


@pytest.mark.parametrize(
    "other",
    [("rl-b", "b", "x is locked", [], "npm run 17 now"), (None, "b", "npm run 17 is locked", [], "x")],
)
def test_a_command_that_another_rollout_shows_at_another_place_may_stand_in_a_shared_line(other):
    own = ("rl-a", "a", "locked", [{"was": "npm run 17", "command": "npm ci"}], "x")
    all_notes = known([own, other])
    told = render.Part("- `npm run 17` worked\n")
    shared = render.parts(all_notes, records.LAYOUT) | {"base/tips.md": told}
    assert "subject" not in {one.kind for one in guards.check(None, all_notes, shared)}
    alone = render.parts(known([own]), records.LAYOUT) | {"base/tips.md": told}
    assert "subject" in {one.kind for one in guards.check(None, known([own]), alone)}


def test_the_day_of_a_run_is_told_though_it_is_also_a_subjects_value():
    own = (
        "rl-a",
        "a",
        "locked",
        [{"changes": [{"path": "d", "how": "set", "was": "x", "is": "2026-03-01"}]}],
        "x",
    )
    all_notes = known([own])
    assert crossed(all_notes) == []
    assert "2026-03-01" in render.parts(all_notes, records.LAYOUT)["base/MEMORY.md"].text
