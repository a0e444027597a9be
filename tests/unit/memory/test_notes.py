"""Notes and operations: the same rollouts give the same notes, and code refuses what does not stand."""

from __future__ import annotations

import dataclasses
import json

import pytest
import records
from hypothesis import given
from hypothesis import strategies as st

from runlore.memory import notes, operations, render, values


def rollout(number: int, version: int, subject: str | None):
    """One of a few overlapping summaries: several rollouts share failures, commands and corrections."""
    world = records.WORLDS[number % 3]
    about = records.meta(f"r{number}", f"run{version}", subject=subject, agents=["helfer"])
    turns = [records.user(f"{world.greeting} {number % 2}")]
    if (number + version) % 2:
        turns += [
            world.refused(world.wrong, f"x{number}", id="a"),
            world.granted(world.right, f"x{number}", id="b"),
        ]
    turns += [records.shell(f"pruefe --stufe {version % 2}", "gut"), records.agent(world.thanks)]
    return records.summary(*turns, about=about)


SUMMARIES = {
    (number, version): rollout(number, version, subject)
    for number, subject in enumerate([None, "rl-a", "rl-a", "rl-b", None])
    for version in range(3)
}
moves = st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 2)), max_size=12)


def played(made) -> notes.Notes:
    known = notes.Notes()
    for number, version in made:
        gone = version < 0
        known = known.drop(f"r{number}") if gone else records.learn([SUMMARIES[number, version]], known)
    return known


@given(moves)
def test_notes_depend_on_the_rollouts_alone_and_not_on_how_they_came(made):
    last = {number: version for number, version in made}
    scratch = records.learn([SUMMARIES[key] for key in sorted(last.items()) if key[1] >= 0])
    known = played(made)
    assert json.dumps(known.entries()) == json.dumps(scratch.entries())
    assert render.parts(known, records.LAYOUT) == render.parts(scratch, records.LAYOUT)


@given(moves)
def test_notes_survive_being_stored(made):
    known = played(made)
    stored = json.loads(json.dumps(known.entries()))
    again = notes.Notes.load(stored)
    assert again == known
    assert render.parts(again, records.LAYOUT) == render.parts(known, records.LAYOUT)
    for number in range(5):
        key = (number, 0)
        one = SUMMARIES[key]
        assert operations.propose(again, one["rollout"], one) == operations.propose(
            known, one["rollout"], one
        )


def test_dropping_every_rollout_leaves_nothing():
    known = records.learn(list(SUMMARIES.values()))
    assert known.rollouts() == {f"r{number}" for number in range(5)}
    for number in range(5):
        known = known.drop(f"r{number}")
    assert known.entries() == {}


def test_a_change_leaves_the_other_notes_untouched():
    known = records.learn([SUMMARIES[0, 1], SUMMARIES[1, 0]])
    after = records.learn([SUMMARIES[4, 0]], known)
    card = notes.note_id("rollout", {"rollout": "r0"})
    assert after.get(card) is known.get(card)


def test_proposing_what_is_known_already_proposes_nothing():
    known = records.learn([SUMMARIES[0, 1]])
    assert operations.propose(known, "r0", SUMMARIES[0, 1]) == []


def test_an_empty_summary_withdraws_all_that_the_rollout_said():
    known = records.learn([SUMMARIES[0, 1]])
    known, refused = operations.apply(known, operations.propose(known, "r0", {}))
    assert (known.entries(), refused) == ({}, [])


# --- what code lets through -------------------------------------------------------------------------

SHOWN = values.Evidence("r1", "run1", 1, 4)


def statement(**changes):
    given = {
        "rollout": "r1",
        "section": "knowledge",
        "statement": "Das Lager öffnet um 7 Uhr.",
        "evidence": [SHOWN],
        "subject": None,
        "at": "2026-03-01T10:00:00+00:00",
    }
    return operations.add_text(**(given | changes))


def test_a_statement_that_cites_what_was_shown_is_applied():
    known, refused = operations.apply(notes.Notes(), [statement()], shown={SHOWN})
    assert refused == []
    assert len(known) == 1


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (statement(evidence=[SHOWN._replace(item=5)]), "not shown"),
        (statement(evidence=[]), "must cite"),
        (statement(evidence=[SHOWN._replace(rollout="r2")]), "belongs to"),
        (statement(statement="   "), "empty"),
        (statement(statement="x" * 601), "longer"),
        (statement(statement="nimm sk-proj-abcdefghijklmnopqrstuvwxyz012345"), "secret"),
        (statement(section="befehle"), "no section"),
        (dataclasses.replace(statement(subject="rl-a"), subject="rl-b"), "stay with that subject"),
        (dataclasses.replace(statement(), action="explode"), "no operation"),
        (dataclasses.replace(statement(), note="0" * 20), "not the id"),
        (dataclasses.replace(statement(), action="amend"), "no note"),
    ],
)
def test_an_operation_that_does_not_stand_is_refused_with_the_reason(operation, reason):
    known, refused = operations.apply(notes.Notes(), [operation], shown={SHOWN})
    assert known.entries() == {}
    assert reason in refused[0].reason


def test_a_model_cannot_retire_what_the_rules_saw():
    known = records.learn([SUMMARIES[0, 1]])
    identity = notes.note_id("rollout", {"rollout": "r0"})
    attack = operations.Operation("retire", "r1", "rollout", identity, (SHOWN,))
    after, refused = operations.apply(known, [attack], shown={SHOWN})
    assert after == known
    assert "follow their evidence" in refused[0].reason


# --- statements of models ---------------------------------------------------------------------------


def said(action: str, rollout: str, at: str, note: str = "", **body):
    seen = values.Evidence(rollout, "run1", 1, 0)
    add = statement(rollout=rollout, evidence=[seen], at=at)
    if action == "add":
        return add
    return operations.Operation(action, rollout, "text", note or add.note, (seen,), body={"at": at} | body)


def shown_after(*ops):
    known = records.learn([SUMMARIES[0, 0], SUMMARIES[4, 0]])
    for op in ops:
        known, refused = operations.apply(known, [op])
        assert not refused
    return known


def memory_of(known):
    return records.tree(known)["MEMORY.md"]


def test_a_statement_stands_in_its_section_and_goes_with_the_rollout_that_said_it():
    known = shown_after(said("add", "r0", "2026-01"))
    assert "## Reusable knowledge\n\n- Das Lager öffnet um 7 Uhr.\n" in memory_of(known)
    assert "Lager" not in memory_of(known.drop("r0"))


def test_the_newest_wording_is_shown_and_dropping_who_said_it_brings_the_older_back():
    known = shown_after(
        said("add", "r0", "2026-01"), said("amend", "r4", "2026-02", text="Das Lager öffnet um 8 Uhr.")
    )
    assert "um 8 Uhr" in memory_of(known) and "um 7 Uhr" not in memory_of(known)
    assert "um 7 Uhr" in memory_of(known.drop("r4"))


def test_a_retired_statement_is_gone_until_it_is_said_again_later():
    gone = shown_after(said("add", "r0", "2026-01"), said("retire", "r4", "2026-02"))
    assert "Lager" not in memory_of(gone)
    assert "Lager" in memory_of(gone.drop("r4"))
    again = shown_after(said("add", "r0", "2026-03"), said("retire", "r4", "2026-02"))
    assert "Lager" in memory_of(again)


def test_a_merged_statement_is_shown_as_the_one_it_was_merged_into():
    other = operations.add_text(
        rollout="r4",
        section="knowledge",
        statement="Das Lager macht um sieben auf.",
        evidence=[values.Evidence("r4", "run1", 1, 0)],
        subject=None,
        at="2026-02",
    )
    first = said("add", "r0", "2026-01")
    known = shown_after(first, other, said("merge", "r4", "2026-02", note=first.note, into=other.note))
    assert "um sieben" in memory_of(known) and "um 7 Uhr" not in memory_of(known)
