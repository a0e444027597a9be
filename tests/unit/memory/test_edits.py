"""Live edits: what counts as a change, what it means for the lines that are shown; and no order changes anything."""

from __future__ import annotations

import json

import pytest
import records
from hypothesis import example, given
from hypothesis import strategies as st

from runlore.memory import edits, guards, notes, operations, render, rules, summary, values

FAILURE = "aaaaaaaaaaaaaaaaaaaa"
FACT = "bbbbbbbbbbbbbbbbbbbb"
SEEN = {FAILURE: "2026-03-01T10:00:00+00:00", FACT: "2026-03-01T09:00:00+00:00"}
BASE = edits.Base(
    "# Task Group: m\n\n## Task 1: Go (success)\n\n### keywords\n\n- go, fly\n\n## Reusable knowledge\n\n"
    '- `make fly` worked (once).\n\n## Failures and how to do differently\n\n- `fly` answered "no wings" (once).\n',
    {11: [FACT], 15: [FAILURE], 1: ["cccccccccccccccccccc"], 7: ["cccccccccccccccccccc"]},
)


def changed(new, base=BASE):
    return edits.changes("MEMORY.md", base, new, SEEN)


# --- a file against what was seeded -----------------------------------------------------------------------


def test_the_file_as_it_was_seeded_has_no_changes():
    assert changed(BASE.text) == []


def test_a_line_that_was_added_stands_in_the_section_of_its_heading():
    new = (
        BASE.text.replace("## Failures", "- Ask before landing\n\n## Failures")
        + "\n## User preferences\n\n* in French\n"
    )
    assert changed(new) == [
        {"file": "MEMORY.md", "section": "knowledge", "now": "Ask before landing"},
        {"file": "MEMORY.md", "section": "preferences", "now": "in French"},
    ]


def test_a_line_that_was_taken_out_names_its_notes_and_what_was_known_of_them():
    (one,) = changed(BASE.text.replace('- `fly` answered "no wings" (once).\n', ""))
    assert one["notes"] == {FAILURE: SEEN[FAILURE]} and "now" not in one and "no wings" in one["was"]


def test_a_line_that_was_changed_is_both():
    (one,) = changed(BASE.text.replace("`make fly` worked (once).", "`make fly` worked, but only at night."))
    assert one["notes"] == {FACT: SEEN[FACT]} and one["now"] == "`make fly` worked, but only at night."
    assert one["section"] == "knowledge"


def test_another_line_in_the_place_of_one_is_no_change_of_it():
    out, into = changed(BASE.text.replace("`make fly` worked (once).", "Bananas are yellow."))
    assert (out["now"], out.get("notes")) == ("Bananas are yellow.", None) and into["notes"] == {
        FACT: SEEN[FACT]
    }


def test_a_line_that_was_moved_has_not_changed():
    line = "- `make fly` worked (once).\n"
    assert changed(BASE.text.replace(line, "") + line) == []


@pytest.mark.parametrize(
    "added",
    ["\n\n", "## Task 2: More (fail)\n", "scope: all\n", "```\n", "# Task Group: n\n", "   \n", "---\n"],
)
def test_the_frame_of_a_file_says_nothing(added):
    assert changed(BASE.text + added) == []


def test_search_words_and_references_are_no_statements():
    new = BASE.text.replace("- go, fly\n", "- go, fly, swim\n- rollout_summaries/x.md (rollout_id=x)\n")
    assert changed(new) == []


def test_a_line_below_the_search_words_is_a_statement():
    for new in (
        BASE.text.replace("- go, fly\n", "- go, fly\n- Ask first\n"),
        BASE.text + "### keywords\n\n- x\n- Ask first\n",
    ):
        (one,) = changed(new)
        assert (one["now"], one["section"]) == ("Ask first", "knowledge")


def test_lines_that_go_on_belong_to_their_bullet():
    (one,) = changed(BASE.text + "- First half\n  and second half\n")
    assert one["now"] == "First half and second half"


def test_a_mark_of_ours_is_no_change():
    marked = BASE.text.replace("(once).\n\n## Fail", "(once). [conflict abc123: said by run r1]\n\n## Fail")
    assert marked != BASE.text and changed(marked) == []


def test_a_file_that_was_written_anew_takes_nothing_out():
    (one,) = changed("- spoiled\n")
    assert (one["now"], one.get("notes")) == ("spoiled", None)


def test_more_than_a_few_lines_taken_out_at_once_are_no_evidence():
    seen = {f"{number:020d}": "2026-03-01T10:00:00+00:00" for number in range(20)}
    base = edits.Base(
        "# Top\n" + "".join(f"- line {number}\n" for number in range(20)),
        {number + 2: [f"{number:020d}"] for number in range(20)},
    )
    few = edits.changes("MEMORY.md", base, base.text.replace("- line 3\n", ""), seen)
    many = edits.changes("MEMORY.md", base, "# Top\n- line 3\n- line 4\n- new\n", seen)
    assert [list(one["notes"]) for one in few] == [[f"{3:020d}"]]
    assert [one.get("notes") for one in many] == [None] and many[0]["now"] == "new"


@given(st.text(max_size=300), st.text(max_size=300))
def test_any_text_against_any_text_gives_changes_that_can_be_said(old, new):
    for one in edits.changes("MEMORY.md", edits.Base(old), new, {}):
        assert one["now"].strip() and one["section"] in ("preferences", "knowledge", "failures")


# --- runs and edits of a few rollouts, in any order -------------------------------------------------------

WORLD = records.WORLDS[0]


def at(minute):
    return f"2026-03-01T10:{minute:02d}:00+00:00"


def met(rollout, minute, subject=None):
    """The digest of a run that met the failure and cured it."""
    about = records.meta(rollout, f"{rollout}-{minute}", subject=subject, ended_at=at(minute))
    turns = [
        records.user(f"{WORLD.greeting} {rollout}"),
        WORLD.refused(WORLD.wrong, f"x{minute}", id=f"a{minute}"),
    ]
    return records.digest(*turns, WORLD.granted(WORLD.right, f"x{minute}", id=f"b{minute}"), about=about)


def the_failure():
    known = records.learn([rules.build([met("r1", 0), met("r2", 1)])])
    (identity,) = [one for one, _ in known.of_kind("failure")]
    return identity


TARGET = the_failure()


def edit(rollout, minute, *changes, subject=None, by=None):
    """The digest of an edit."""
    body = {"run": by or f"{rollout}-run", "revision": 1, "changes": list(changes)}
    about = records.meta(
        rollout, f"{rollout}-edit-{minute}", subject=subject, ended_at=at(minute), is_edit=True
    )
    return rules.digest(json.dumps({"edit": body}), about)


def put(said, section="knowledge", *, instead_of=None, seen=5):
    one = {"file": "MEMORY.md", "section": section, "now": said}
    return one | ({"was": "the line", "notes": {instead_of: at(seen)}} if instead_of else {})


def out(note=TARGET, seen=5):
    return {"file": "MEMORY.md", "was": "the line", "notes": {note: at(seen)}}


def notes_of(*digests):
    by: dict[str, list] = {}
    for one in digests:
        by.setdefault(one["rollout"], []).append(one)
    return records.learn([rules.build(some) for _, some in sorted(by.items())])


def shown(known, **whom):
    return records.tree(known, **whom)["MEMORY.md"].splitlines()


def lessons(known, **whom):
    return [line for line in shown(known, **whom) if line.startswith(f"- `{WORLD.tool}`")]


RUNS = [met("r1", 0), met("r2", 1), met("r3", 2, "rl-a"), met("r2", 30)]
EDITS = [
    edit("r1", 10, put("Ein Satz")),
    edit("r1", 11, out(), put("Noch einer", "preferences")),
    edit("r2", 12, put("So geht es", "failures", instead_of=TARGET)),
    edit("r2", 13, put("Ein Satz")),
    edit("r3", 14, put("Nur für sie", instead_of=TARGET), subject="rl-a"),
    edit("r4", 15, put("Anders geht es", "failures", instead_of=TARGET)),
    edit(
        "r1",
        16,
        out(notes.note_id("text", {"section": "knowledge", "subject": None, "text": "Ein Satz"}), 13),
    ),
]
EVERY = [*RUNS, *EDITS]


@given(st.permutations(range(len(EVERY))), st.lists(st.integers(1, 4), min_size=11, max_size=11))
@example(list(range(len(EVERY))), [1] * 11)
def test_the_order_and_the_batches_in_which_runs_and_edits_come_change_nothing(order, batches):
    assert folded(order, batches) == folded(range(len(EVERY)), [len(EVERY)] * 11)


def folded(order, batches):
    """The notes, after each batch was taken into its rollouts' summaries, and these into the notes, each twice."""
    left, summaries, known = [EVERY[number] for number in order], {}, notes.Notes()
    have: dict[str, list] = {}
    for size in batches:
        batch, left = left[:size], left[size:]
        for rollout in sorted({one["rollout"] for one in batch}):
            fresh = [one for one in batch if one["rollout"] == rollout]
            have.setdefault(rollout, []).extend(fresh)
            extended = summary.extend(summaries.get(rollout, {}), fresh)
            summaries[rollout] = extended if extended is not None else rules.build(have[rollout])
            assert json.loads(json.dumps(summaries[rollout])) == json.loads(
                json.dumps(rules.build(have[rollout]))
            )
            for _ in range(2):
                known, refused = operations.apply(
                    known, operations.propose(known, rollout, summaries[rollout])
                )
                assert refused == []
    return json.dumps(known.entries()), records.tree(known), records.tree(known, subject="rl-a")


def test_a_summary_that_kept_edits_as_they_came_would_be_told(monkeypatch):
    def merged_as_they_come(known, digests):
        found = list(known)
        for one in digests:
            common = {"at": one["ended_at"], "id": one["run"], **one["edit"]}
            found += [{**common, "item": item, **change} for item, change in enumerate(one["changes"])]
        return found

    monkeypatch.setattr(edits, "merged", merged_as_they_come)
    order = list(reversed(range(len(EVERY))))
    with pytest.raises(AssertionError):
        assert folded(order, [1] * 11) == folded(range(len(EVERY)), [len(EVERY)] * 11)


def test_dropping_the_rollout_drops_its_edits():
    known = notes_of(*RUNS, *EDITS)
    without = known.drop("r1").drop("r2").drop("r4")
    assert without == notes_of(*[one for one in EVERY if one["rollout"] == "r3"])
    assert known.drop("r3") == notes_of(*[one for one in EVERY if one["rollout"] != "r3"])


def test_the_guards_let_edits_through_and_they_survive_being_stored():
    before, known = notes_of(*RUNS), notes_of(*EVERY)
    assert guards.check(before, known, render.parts(known, records.LAYOUT)) == []
    again = notes.Notes.load(json.loads(json.dumps(known.entries())))
    assert render.parts(again, records.LAYOUT) == render.parts(known, records.LAYOUT)


def test_only_the_newest_changes_of_a_rollout_are_kept_and_the_guards_take_it():
    many = [edit("r1", minute, *[put(f"Satz {minute} {n}") for n in range(20)]) for minute in (20, 21, 22)]
    before, after = notes_of(*RUNS, *many[:2]), notes_of(*RUNS, *many)
    assert len([one for one in after.of_kind("text")]) == edits.CHANGES_MAX
    assert guards.check(before, after, render.parts(after, records.LAYOUT)) == []


# --- what they mean ---------------------------------------------------------------------------------------


def test_a_line_that_was_taken_out_is_hidden_in_every_file_and_its_rollouts_keep_what_happened():
    known = notes_of(met("r1", 0), met("r2", 1), edit("r4", 10, out()))
    assert lessons(known) == []
    assert WORLD.tool not in records.tree(known)["memory_summary.md"].split("What's in Memory")[0]
    assert known.get(TARGET) is not None


def test_it_is_shown_again_once_others_meet_the_failure_later_and_nothing_marks_it():
    known = notes_of(met("r1", 0), met("r2", 1), edit("r4", 10, out()), met("r5", 20))
    assert len(lessons(known)) == 1 and "conflict" not in lessons(known)[0]


def test_what_the_editing_rollout_met_before_its_edit_brings_nothing_back_and_what_it_meets_later_does():
    first = [met("r1", 0), met("r2", 1), met("r4", 8), edit("r4", 10, out())]
    assert lessons(notes_of(*first)) == []
    assert len(lessons(notes_of(*first, met("r4", 20)))) == 1


def test_an_edit_of_a_line_that_changed_since_its_base_keeps_both_and_says_so():
    known = notes_of(met("r1", 0), met("r2", 1), met("r5", 8), edit("r4", 10, out()))
    (line,) = lessons(known)
    assert line.endswith(f"[conflict {TARGET[:6]}: taken out by run r4-run, seen again since]")


def test_two_edits_of_one_line_in_two_ways_are_both_shown_with_their_runs():
    known = notes_of(
        met("r1", 0),
        edit("r4", 10, put("Erst so", "failures", instead_of=TARGET)),
        edit("r5", 11, put("Erst anders", "failures", instead_of=TARGET)),
    )
    lines = shown(known)
    assert f"- Erst so [conflict {TARGET[:6]}: said by run r4-run]" in lines
    assert f"- Erst anders [conflict {TARGET[:6]}: said by run r5-run]" in lines
    assert lessons(known) == []
    assert guards.check(None, known, render.parts(known, records.LAYOUT)) == []


def test_a_conflict_ends_when_one_of_its_lines_is_taken_out():
    other = notes.note_id("text", {"section": "failures", "subject": None, "text": "Erst anders"})
    known = notes_of(
        met("r1", 0),
        edit("r4", 10, put("Erst so", "failures", instead_of=TARGET)),
        edit("r5", 11, put("Erst anders", "failures", instead_of=TARGET)),
        edit("r6", 12, out(other, 11)),
    )
    lines = shown(known)
    assert "- Erst so" in lines and not any("Erst anders" in line or "conflict" in line for line in lines)


def test_two_edits_that_say_the_same_are_one_line_and_no_conflict():
    both = [edit(name, 10, put("Genau so", "failures", instead_of=TARGET)) for name in ("r4", "r5")]
    lines = shown(notes_of(met("r1", 0), *both))
    assert lines.count("- Genau so") == 1


def test_a_line_that_was_put_and_taken_out_and_put_again_stands():
    mine = notes.note_id("text", {"section": "knowledge", "subject": None, "text": "Ein Satz"})
    story = [met("r1", 0), edit("r4", 10, put("Ein Satz")), edit("r5", 11, out(mine, 10))]
    assert "- Ein Satz" not in shown(notes_of(*story))
    assert "- Ein Satz" in shown(notes_of(*story, edit("r6", 12, put("Ein Satz"))))


def test_what_a_subject_s_run_writes_is_shown_to_that_subject_alone():
    known = notes_of(
        met("r1", 0), met("r3", 2, "rl-a"), edit("r3", 10, put("Fährt gern Zug"), subject="rl-a")
    )
    assert "- Fährt gern Zug" in shown(known, subject="rl-a")
    for whom in ({}, {"subject": "rl-b"}, {"rollout": "r1"}):
        assert not any("Zug" in text for text in records.tree(known, **whom).values())
    assert guards.check(None, known, render.parts(known, records.LAYOUT)) == []


def test_what_is_written_for_several_subjects_is_shown_to_nobody():
    known = notes_of(
        met("r3", 2, "rl-a"), met("r3", 3, "rl-b"), edit("r3", 10, put("Fährt gern Zug"), subject="rl-a")
    )
    for whom in ({}, {"subject": "rl-a"}, {"subject": "rl-b"}):
        assert not any("Zug" in text for text in records.tree(known, **whom).values())


def test_one_subject_s_run_hides_no_line_from_others_and_two_subjects_do():
    one = edit("r3", 10, put("Für mich anders", "failures", instead_of=TARGET), subject="rl-a")
    known = notes_of(met("r1", 0), met("r3", 2, "rl-a"), one)
    assert len(lessons(known)) == 1 and "conflict" not in lessons(known)[0]
    (mine,) = [line for line in shown(known, subject="rl-a") if "Für mich" in line]
    assert mine.endswith("said by run r3-run, others see another line]")
    two = notes_of(met("r1", 0), met("r3", 2, "rl-a"), one, edit("r6", 11, out(), subject="rl-b"))
    assert lessons(two) == []


def test_a_public_line_never_names_the_run_of_a_subject():
    known = notes_of(
        met("r1", 0),
        edit("r3", 10, out(), subject="rl-a"),
        edit("r6", 11, out(), subject="rl-b"),
        met("r5", 9),
    )
    (line,) = lessons(known)
    assert "by a run for somebody else" in line and "r3" not in line and "r6" not in line


def test_an_edit_before_its_run_is_shown_and_the_run_changes_only_where_it_stands():
    known = notes_of(edit("r4", 10, put("Ein Satz")))
    assert "- Ein Satz" in shown(known)
    assert "- Ein Satz" in shown(notes_of(edit("r4", 10, put("Ein Satz")), met("r4", 9)))


def test_a_statement_that_two_rollouts_support_is_in_the_summary():
    two = [
        edit(name, 10, put("Immer fragen", "preferences"), put("Es geht", "knowledge"))
        for name in ("r4", "r5")
    ]
    text = records.tree(notes_of(met("r1", 0), *two))["memory_summary.md"]
    assert "- Immer fragen" in text and "- Es geht" in text
    assert "Immer fragen" not in records.tree(notes_of(met("r1", 0), two[0]))["memory_summary.md"]


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("Run `make test` first", "- Run `make test` first"),
        ("A stray ` stays a quote", "- A stray ' stays a quote"),
        ("Don't run `make`", "- Don't run `make`"),
        ("```sh rm -rf```", "- sh rm -rf"),
        ("# Task Group: mine", "- Task Group: mine"),
        ("hid\u202eden and \x07 bell", "- hidden and bell"),
    ],
)
def test_a_statement_is_one_safe_line(said, line):
    known = notes_of(met("r1", 0), edit("r4", 10, put(said)))
    assert guards.check(None, known, render.parts(known, records.LAYOUT)) == []
    assert line in [one.replace("'sh", "sh").replace("rf'", "rf") for one in shown(known)]


@given(st.text(max_size=700))
def test_whatever_an_agent_writes_the_guards_let_the_memory_through(said):
    known = notes_of(met("r1", 0), edit("r4", 10, *([put(said)] if said.strip() else [])))
    assert guards.check(None, known, render.parts(known, records.LAYOUT)) == []


def test_nothing_of_a_rollout_without_a_time_is_newer_than_an_edit():
    known = notes_of(met("r1", 0), edit("r4", 10, {**out(), "notes": {TARGET: values.UNKNOWN}}))
    assert len(lessons(known)) == 1  # Its base had seen nothing, so both stand.
