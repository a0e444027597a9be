"""Guards: each one lets a good revision through and stops the revision that its rule is about."""

from __future__ import annotations

import dataclasses

import pytest
import records

from runlore.memory import guards, notes, operations, render

WORLD = records.WORLDS[0]


def made(rollout: str, subject: str | None = None, run: str = "run1"):
    return records.summary(
        records.user("Ein sehr persönlicher Auftrag an das Haus am See"),
        WORLD.refused("termin-77123", id="a"),
        WORLD.granted("termin-88123", id="b"),
        records.shell("pruefe --alles", "gut"),
        about=records.meta(rollout, run, subject=subject),
    )


KNOWN = records.learn([made("r1"), made("r2", "rl-a"), made("r3")])
PARTS = render.parts(KNOWN, records.LAYOUT)


def kinds(parts, before=None, after=KNOWN):
    return {one.kind for one in guards.check(before, after, parts)}


def changed(name: str, **changes):
    return PARTS | {name: dataclasses.replace(PARTS[name], **changes)}


def test_a_good_revision_passes():
    assert guards.check(None, KNOWN, PARTS) == []
    assert guards.check(KNOWN, KNOWN, PARTS) == []


@pytest.mark.parametrize(
    ("name", "addition", "kind"),
    [
        ("base/MEMORY.md", "# Anything Else\n", "format"),
        ("base/MEMORY.md", "a\u2028b\n", "format"),
        ("base/MEMORY.md", "```\n", "format"),
        ("base/MEMORY.md", "no newline", "format"),
        ("base/MEMORY.md", "- x" * 2_000 + "\n", "format"),
        ("base/MEMORY.md", "- rollout_summaries/r9_x.md (rollout_id=r9, updated_at=x)\n", "dangling"),
        ("base/tips.md", "- nimm sk-proj-abcdefghijklmnopqrstuvwxyz012345\n", "secret"),
        ("base/tips.md", "- wort" * 900 + "\n", "size"),
        ("rollout.r1/raw_memory.md", "- wort\n" * 900, "size"),
        ("base/MEMORY.md", "- Ein sehr persönlicher Auftrag an das Haus am See\n", "subject"),
    ],
)
def test_what_must_not_stand_in_a_part_is_found(name, addition, kind):
    known = KNOWN
    if kind == "subject":
        # Where two rollouts of nobody in particular say it too it is no secret; here only the subject says it.
        known = records.learn([made("r2", "rl-a")])
        parts = render.parts(known, records.LAYOUT)
        parts |= {name: render.Part(parts[name].text + addition)}
        assert kind in kinds(parts, after=known)
    else:
        assert kind in kinds(changed(name, text=PARTS[name].text + addition))


def test_a_raw_memory_without_the_sdk_header_is_found():
    body = PARTS["rollout.r1/raw_memory.md"].text
    assert "format" in kinds(changed("rollout.r1/raw_memory.md", text=body.partition("\n")[2]))


def test_a_part_that_lost_its_subject_is_found():
    assert "subject" in kinds(changed("rollout.r2/raw_memory.md", subject=None))


def test_a_subjects_value_in_a_shared_part_is_found():
    known = records.learn([made("r2", "rl-a")])
    parts = render.parts(known, records.LAYOUT)
    leaking = parts | {"base/tips.md": render.Part("- nimm termin-88123\n")}
    assert kinds(parts, after=known) == set()
    assert "subject" in kinds(leaking, after=known)


def test_a_note_that_vanished_without_a_reason_is_found_and_one_with_a_reason_is_not():
    command = notes.note_id("fact", {"command": "pruefe --alles"})
    entries = {name: entry for name, entry in KNOWN.entries().items() if name != command}
    assert "removal" in kinds({}, before=KNOWN, after=notes.Notes(entries))
    dropped = KNOWN.drop("r2")
    assert kinds(render.parts(dropped, records.LAYOUT), before=KNOWN, after=dropped) == set()


def test_a_rollout_that_says_something_else_now_may_take_its_notes_with_it():
    other = records.summary(records.user("Etwas anderes"), about=records.meta("r1", "run2"))
    after, _ = operations.apply(KNOWN, operations.propose(KNOWN, "r1", other))
    assert kinds(render.parts(after, records.LAYOUT), before=KNOWN, after=after) == set()


def test_a_memory_that_shrank_without_a_reason_is_found():
    def padded(entry):
        return entry | {
            "support": {name: one | {"pad": "x" * 5_000} for name, one in entry["support"].items()}
        }

    fat = {name: padded(one) if one["kind"] == "failure" else one for name, one in KNOWN.entries().items()}
    assert "shrink" in kinds({}, before=notes.Notes(fat), after=KNOWN)
    assert "shrink" not in kinds({}, before=KNOWN, after=KNOWN)
    assert "shrink" not in kinds({}, before=notes.Notes(fat), after=KNOWN.drop("r1").drop("r2").drop("r3"))


def test_the_violation_names_the_rollout_behind_the_line():
    body = (
        PARTS["rollout.r3/rollout_summary.md"].text
        + "# Another heading\nsk-proj-abcdefghijklmnopqrstuvwxyz0123\n"
    )
    found = guards.check(None, KNOWN, changed("rollout.r3/rollout_summary.md", text=body))
    assert {one.rollouts for one in found} == {("r3",)}
