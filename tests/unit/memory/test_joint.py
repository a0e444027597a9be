"""Joint statements: their support follows their notes by code alone, in any order, and a person's edit wins."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runlore.memory import edits, handbook, joining, joint, judging, lines, notes, operations, values


def at(day):
    return f"2026-03-{day:02d}T00:00:00.000000+00:00"


def said(known, rollout, text, *, day=1, section="knowledge", subject=None, run="run-1", **more):
    """`known` with a model's statement of a rollout."""
    op = operations.add_text(
        rollout=rollout,
        section=section,
        statement=text,
        evidence=[values.Evidence(rollout, run, 1, 0)],
        subject=subject,
        at=at(day),
    )
    if more:
        op = operations.Operation(
            "add", rollout, "text", op.note, op.evidence, op.key, op.body | more, subject
        )
    known, refused = operations.apply(known, [op])
    assert refused == []
    return known


def note(text, *, section="knowledge", subject=None):
    return notes.note_id("text", {"section": section, "subject": subject, "text": text})


def proposal(action, text="", *, replaces=(), evidence=(), section="knowledge", owner=None):
    return judging.Proposed(
        owner, action, action, section, text, tuple(replaces), tuple(evidence), {"model": "m", "at": at(9)}
    )


def done(known, *proposed):
    known, _, refused = judging.apply(known, proposed)
    assert refused == []
    return known


def told(known, subject=None):
    return sorted(one.text for one in lines.statements(known) if one.subject == subject)


def the_joint(known):
    ((identity, entry),) = [one for one in known.of_kind("joint")]
    return identity, entry


A, B, C = "The sheet is locked on Mondays.", "On Mondays the sheet is locked.", "Use make check for tests."
BOTH = "The sheet is locked on Mondays, so use another sheet on Mondays."


@pytest.fixture
def merged():
    known = said(said(said(notes.Notes(), "r1", A), "r2", B, day=2), "r3", C, day=3)
    return done(known, proposal("merge", BOTH, replaces=[note(A), note(B)]))


def test_a_merged_statement_stands_in_place_of_those_and_rests_on_both_rollouts(merged):
    assert told(merged) == sorted([BOTH, C])
    (one,) = [one for one in lines.statements(merged) if one.text == BOTH]
    assert one.rollouts == ("r1", "r2")
    _, entry = the_joint(merged)
    assert entry["support"]["r1"]["evidence"] == [["run-1", 1, 0]] and joint.settle(merged) is merged
    assert [line for line, _ in handbook.tips(merged, [])] == [f"- {BOTH}"], "two rollouts bear it"


def test_dropping_a_rollout_takes_its_support_away_and_the_last_takes_the_statement(merged):
    one = joint.settle(merged.drop("r1"))
    assert told(one) == sorted([BOTH, C]) and set(the_joint(one)[1]["support"]) == {"r2"}
    none = joint.settle(one.drop("r2"))
    assert told(none) == [C] and list(none.of_kind("joint")) == []


def test_a_rollout_that_says_it_no_more_bears_it_no_more_and_one_that_says_it_later_does(merged):
    withdrawn, _ = operations.apply(
        merged,
        [operations.Operation("retire", "r1", "text", note(A), (values.Evidence("r1", "run-1", 1, 0),))],
    )
    assert set(the_joint(joint.settle(withdrawn))[1]["support"]) == {"r2"}
    joined = joint.settle(said(withdrawn, "r9", B, day=9))
    assert set(the_joint(joined)[1]["support"]) == {"r2", "r9"} and told(joined) == sorted([BOTH, C])


def test_what_a_rollout_says_now_withdraws_nothing_that_is_computed(merged):
    summary = {"runs": [], "subject": None, "agents": [], "memory": "support", "edits": []}
    proposed = operations.propose(joint.with_told(merged, [note(A)]), "r1", summary)
    assert {(op.action, op.kind) for op in proposed} == {("retire", "text")}


def test_nobody_but_code_may_touch_what_is_computed(merged):
    identity, entry = the_joint(merged)
    cited = (values.Evidence("r1", "run-1", 1, 0),)
    for action in operations.ACTIONS:
        op = operations.Operation(action, "r1", "joint", identity, cited, entry["key"], {"text": "x"})
        assert operations.apply(merged, [op])[1], action


def test_a_statement_that_is_merged_again_rests_on_all_notes_and_the_one_before_is_gone(merged):
    identity, _ = the_joint(merged)
    known = said(merged, "r4", "The sheet is locked on Mondays until noon.", day=4)
    known = done(
        known,
        proposal(
            "merge",
            "The sheet is locked on Mondays until noon; use another sheet.",
            replaces=[identity, note("The sheet is locked on Mondays until noon.")],
        ),
    )
    _, entry = the_joint(known)
    assert set(entry["support"]) == {"r1", "r2", "r4"} and len(entry["key"]["covers"]) == 3
    assert told(known) == sorted(["The sheet is locked on Mondays until noon; use another sheet.", C])


def test_a_retired_statement_comes_back_with_newer_evidence_for_it():
    old, new = "The sheet is locked on Mondays.", "The sheet is locked on Fridays."
    known = said(said(notes.Notes(), "r1", old, day=1), "r2", new, day=5)
    known = done(known, proposal("retire", replaces=[note(old)], evidence=[note(new)]))
    assert told(known) == [new]
    assert told(joint.settle(said(known, "r3", old, day=4))) == [new], "older than what stands against it"
    assert told(joint.settle(said(known, "r3", old, day=6))) == sorted([old, new])
    assert told(joint.settle(known.drop("r2"))) == [old], "nothing stands against it any more"


# --- a person wins ----------------------------------------------------------------------------------------------


def edited(known, rollout, target, *, now=(), day=20, subject=None):
    """`known` with a live edit that took the line of a note out, or changed it."""
    summary = {
        "runs": [],
        "subject": subject,
        "agents": [],
        "memory": "support",
        "edits": [
            {
                "at": at(day),
                "id": f"e-{rollout}",
                "item": 0,
                "by": f"run-{rollout}",
                "revision": 1,
                "file": "MEMORY.md",
                "was": "it",
                "notes": {target: at(day - 1)},
                **({"now": now[0], "section": "knowledge"} if now else {}),
            }
        ],
    }
    known, refused = operations.apply(known, operations.propose(known, rollout, summary))
    assert refused == []
    return joint.settle(known)


def test_a_joint_statement_that_a_person_took_out_stays_out_with_all_that_it_stood_for(merged):
    identity, _ = the_joint(merged)
    assert told(edited(merged, "p1", identity)) == [C]


def test_what_a_person_wrote_in_its_place_stands_and_no_model_may_replace_it(merged):
    identity, _ = the_joint(merged)
    known = edited(merged, "p1", identity, now=["The sheet is never locked."])
    assert told(known) == sorted([C, "The sheet is never locked."])
    theirs = note("The sheet is never locked.")
    assert joining.board(known, None)[theirs].origin == "person"
    bad = proposal("merge", "The sheet is locked; use make check.", replaces=[theirs, note(C)])
    assert "a person" in judging.apply(known, [bad])[2][0][1]
    # Not by the way of what lay under it either: that is not among what may be worked with.
    assert note(A) not in joining.board(known, None)


def test_a_line_that_a_person_takes_out_late_is_out_though_a_model_had_merged_it(merged):
    known = edited(merged, "p1", note(A))
    assert told(known) == sorted([B, C]), "the joint statement gives way, and what nobody took out stands"
    assert told(joint.settle(known.drop("p1"))) == sorted([BOTH, C])


# --- any order --------------------------------------------------------------------------------------------------


@given(st.permutations(range(5)), st.sets(st.integers(0, 4)))
def test_given_the_joint_statements_the_order_of_rollouts_changes_nothing(order, dropped):
    texts = [A, B, C, A, B]
    base = done(
        said(said(notes.Notes(), "r0", A, day=1), "r1", B, day=2),
        proposal("merge", BOTH, replaces=[note(A), note(B)]),
    )

    def worked(order):
        known = base
        for number in order:
            known = joint.settle(said(known, f"r{number}", texts[number], day=number + 1))
        for number in sorted(dropped & set(order) - {0}):
            known = joint.settle(known.drop(f"r{number}"))
        return json.dumps(known.entries())

    assert worked(order) == worked(range(5))


def test_what_was_shown_is_remembered_for_each_rollout_until_it_is_said_no_more():
    known = said(said(notes.Notes(), "r1", A), "r2", A, day=2)
    assert joint.fresh(known) == {note(A)}
    known = joint.with_told(known, [note(A)])
    assert joint.fresh(known) == set() and joint.with_told(known, [note(A)]) is known
    assert joint.fresh(said(known, "r3", A, day=3)) == {note(A)}, "a third rollout says it"
    assert [one for one, _ in joint.settle(known.drop("r1").drop("r2")).of_kind("shown")] == []


def test_a_person_is_no_model():
    known = said(notes.Notes(), "r1", A, by="run-9", revision=1, was="")
    assert joint.fresh(known) == set()


def test_subjects_stay_apart_in_what_a_statement_rests_on():
    one, other = "u_1", "u_2"
    known = notes.Notes()
    for number, subject in enumerate((None, one, other, one), 1):
        known = said(known, f"r{number}", f"{A} {number}", day=number, subject=subject)
    for owner, subject in itertools.product((None, one, other), repeat=2):
        mine = {f"{A} {n}" for n, s in enumerate((None, one, other, one), 1) if s == owner}
        shown = {item.text for item in joining.board(known, owner).values()}
        assert shown == mine
        key = joint.key_of(
            section="knowledge", subject=subject, text="x", over=joining.board(known, owner), covers=[]
        )
        assert bool(joint.support_of(key, known)) == (owner == subject)


def test_an_edit_of_a_subject_hides_what_is_that_subjects():
    known = said(said(notes.Notes(), "r1", A, subject="u_1"), "r2", B, day=2, subject="u_1")
    known = done(
        known,
        proposal("merge", BOTH, replaces=[note(A, subject="u_1"), note(B, subject="u_1")], owner="u_1"),
    )
    identity, _ = the_joint(known)
    assert told(known, "u_1") == [BOTH] and told(edited(known, "p1", identity, subject="u_1"), "u_1") == []
    assert identity in edits.verdict(edited(known, "p1", identity, subject="u_1")).hidden
