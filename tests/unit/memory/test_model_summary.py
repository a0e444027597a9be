"""What code lets through of a model's summary: evidence that was shown, no secrets, no preference that nobody said."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import made
from runlore.memory import model_summary, notes, operations, redact, rules, showing, values
from runlore.models import port

SECRET = "sk-proj-" + "a1B2c3D4" * 5


def place(item):
    return values.Evidence("conv", "run-1", 1, item)


SHOWN = showing.Shown(
    text="",
    evidence={1: (place(0),), 2: (place(3),), 3: (place(5),), 4: (place(7), place(9))},
    kinds={1: "user", 2: "tool", 3: "assistant", 4: "known preferences"},
    left_out=0,
    tokens=0,
)


def said(*statements, **more):
    told = {"title": "a task", "outcome": "uncertain", "outcome_evidence": [], "reason": ""} | more
    parts = [
        model_summary.Statement(section=section, text=text, evidence=evidence)
        for section, text, evidence in statements
    ]
    return model_summary.Summary(statements=parts, **told)


def accepted(*statements, **more):
    return model_summary.accept(said(*statements, **more), SHOWN)


def test_endpoints_hold_a_model_to_the_shape():
    assert port.schema_of(model_summary.Summary)["required"]


def test_a_statement_stands_with_the_places_that_its_numbers_stand_for():
    out = accepted(("knowledge", "Sheet 7 is  locked.\n", [2, 4, 2]))
    assert out["statements"] == [
        {
            "section": "knowledge",
            "text": "Sheet 7 is locked.",
            "evidence": [list(place(3)), list(place(7)), list(place(9))],
            "said_by": "tool",
        }
    ]
    assert out["dropped"] == [] and out["reason"] == ""
    assert json.loads(json.dumps(out)) == out


@pytest.mark.parametrize(
    ("statement", "reason"),
    (
        (("knowledge", "x is y", []), "cites nothing"),
        (("knowledge", "x is y", [2, 5]), "#5, which was not shown"),
        (("knowledge", "x is y", [0]), "#0, which was not shown"),
        (("failures", " \u200b\n ", [2]), "empty"),
        (("failures", "x" * 601, [2]), "longer than"),
        (("preferences", "the user prefers Perl", [2]), "what the person said"),
        (("preferences", "the user prefers Perl", [3]), "what the person said"),
    ),
    ids=("nothing", "not shown", "zero", "empty", "long", "a tool's word", "the agent's word"),
)
def test_what_does_not_stand_is_dropped_with_its_reason_and_without_its_words(statement, reason):
    out = accepted(statement, ("failures", "it fails", [1]))
    assert [one["text"] for one in out["statements"]] == ["it fails"]
    (dropped,) = out["dropped"]
    assert reason in dropped["reason"] and statement[0] in dropped["what"]
    assert "Perl" not in json.dumps(out) and SECRET not in json.dumps(out)


def test_a_secret_becomes_its_placeholder_with_the_hash_that_a_record_has():
    told = said(("knowledge", f"the\nkey is {SECRET}", [2]), title=f"use {SECRET}", reason=SECRET)
    out = model_summary.accept(told, SHOWN, b"k" * 32)
    hidden = redact.placeholder("openai-key", SECRET, b"k" * 32)
    assert [one["text"] for one in out["statements"]] == [f"the key is {hidden}"]
    assert hidden in out["title"] and out["redacted"] == {"openai-key": 3} and SECRET not in json.dumps(out)
    assert model_summary.accept(told, SHOWN)["statements"][0]["text"] == "the key is [redacted:openai-key]"


def test_no_half_of_a_secret_is_left_where_a_text_is_cut():
    title = "x" * (model_summary.TITLE_CHARS_MAX - 20) + f" {SECRET}"
    out = accepted(("knowledge", "it holds", [2]), title=title)
    assert SECRET[:12] not in out["title"]


def test_a_preference_stands_on_what_the_person_said_or_what_was_known_of_it():
    out = accepted(("preferences", "wants French", [1, 2]), ("preferences", "wants tables", [4]))
    assert [one["text"] for one in out["statements"]] == ["wants French", "wants tables"]


def test_the_same_said_twice_is_one_with_all_its_evidence():
    out = accepted(("knowledge", "X is y.", [1]), ("knowledge", "x is  Y.", [2]))
    (one,) = out["statements"]
    assert one["evidence"] == [list(place(0)), list(place(3))]


def test_of_too_many_the_rest_is_dropped_and_told():
    out = accepted(*(("knowledge", f"fact {number}", [1]) for number in range(45)))
    assert len(out["statements"]) == model_summary.STATEMENTS_MAX and len(out["dropped"]) == 5


def test_nothing_to_say_is_a_result_with_its_reason():
    assert accepted(reason="a greeting only")["reason"] == "a greeting only"
    assert accepted()["reason"] == model_summary.NO_REASON
    assert "stands" in accepted(("knowledge", "x", []))["reason"]
    assert accepted(("knowledge", "x", [1]), reason="none")["reason"] == ""
    assert SECRET not in accepted(reason=f"only the key {SECRET}")["reason"]


@pytest.mark.parametrize(("cited", "outcome"), (([2], "success"), ([], "uncertain"), ([9], "uncertain")))
def test_an_outcome_needs_evidence(cited, outcome):
    out = accepted(outcome="success", outcome_evidence=cited)
    assert out["outcome"] == outcome and bool(out["dropped"]) == (outcome == "uncertain")


RULES = rules.build(
    [
        rules.digest(
            json.dumps(made.payload(1)),
            values.RunMeta("acme", "support", "conv", "run-1", 1, subject="ada", ended_at=made.moment(1)),
        )
    ]
)


def test_a_statement_on_a_replaced_attempt_waits_and_changes_the_card():
    part = {**accepted(("knowledge", "x is y", [2])), "points": [{"answer": "abc"}]}
    now, then = model_summary.told(part, {"run-1": 1}), model_summary.told(part, {"run-1": 2})
    assert len(now.statements) == 1 and then.statements == [] and now.card != then.card
    assert model_summary.told(None, {}) is None
    assert model_summary.told({"points": [], "failed": {}, "upto": ""}, {}) is None


ANY = st.text(max_size=700) | st.sampled_from(["", SECRET, "a\u2028b", "# heading", "\ud800"])
STATEMENTS = st.lists(
    st.tuples(
        st.sampled_from(["preferences", "knowledge", "failures"]),
        ANY,
        st.lists(st.integers(-2, 9), max_size=6),
    ),
    max_size=50,
)


@given(STATEMENTS, ANY, ANY, st.lists(st.integers(-2, 9), max_size=3))
def test_whatever_a_model_says_what_stands_can_be_applied_to_the_notes(statements, title, reason, cited):
    out = accepted(*statements, title=title, reason=reason, outcome="fail", outcome_evidence=cited)
    assert redact.text(json.dumps(out)) == json.dumps(out)
    told = model_summary.told({**out, "points": [{"answer": "abc"}]}, {"run-1": 1})
    ops = [op for op in operations.propose(notes.Notes(), "conv", RULES, told) if op.kind == "text"]
    shown = {one for places in SHOWN.evidence.values() for one in places}
    after, refused = operations.apply(notes.Notes(), ops, shown=shown)
    assert refused == [] and len(ops) == len(out["statements"])
    for _, entry in after.of_kind("text"):
        assert entry["key"]["subject"] == RULES["subject"]
    assert bool(out["reason"]) == (not out["statements"])
