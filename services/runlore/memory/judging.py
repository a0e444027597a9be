"""What code lets through of a model's consolidation: each operation is judged by the notes as they are, or refused.

An answer is first made into operations on notes (`accept`): that is kept, and is a function of the answer and of what
was shown. It is then applied to the notes that are there when it is taken in (`apply`), which may be others: so an
operation is refused where a note that it names does not stand any more. What is refused changes nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from runlore.memory import joining, joint, keywords, operations, skills, text
from runlore.memory import notes as _notes

OPERATIONS_MAX = 32
"""Operations of one answer that are looked at."""
SKILLS_MAX = 4
"""Skills of one answer that are looked at."""
REPLACED_MAX = 8
"""Notes that one operation replaces."""
RETIRED_SHARE_MAX, RETIRED_MIN = 0.3, 2
"""Of the statements that stand for one owner, what one answer may retire (or two, if that is more)."""
JOINTS_MAX = 512
"""Joint statements of one memory."""
ALIKE_MIN = 0.25
"""Share of the words of the shorter of two texts that both have, for one to stand in place of the other."""
GROUNDED_MIN = 1 / 3
"""Share of a statement's words that its evidence has."""
REASON_CHARS_MAX = 240
_NUMBER = re.compile(r"\d{3,}")


def accept(said: joining.Consolidation, plan: joining.Plan) -> dict[str, Any]:
    """What is kept of an answer: its operations in notes instead of numbers, and those that cite what was not shown."""
    kept: list[dict[str, Any]] = []
    refused: list[list[str]] = []
    for number, one in enumerate(said.operations, 1):
        what = _named(number, one)
        strange = _strange((*one.replaces, *one.evidence), plan)
        if number > OPERATIONS_MAX:
            refused.append([what, f"there are {OPERATIONS_MAX} operations already"])
            break
        if strange:
            refused.append([what, strange])
        elif one.action != "retire" and (reason := operations.reason_against_text(one.text)):
            refused.append([what, reason])
        else:
            kept.append(
                {
                    "what": what,
                    "action": one.action,
                    "section": one.section,
                    "text": ""
                    if one.action == "retire"
                    else text.inline(one.text, operations.TEXT_CHARS_MAX),
                    "replaces": list(dict.fromkeys(plan.numbers[each] for each in one.replaces)),
                    "evidence": list(dict.fromkeys(plan.numbers[each] for each in one.evidence)),
                }
            )
    for number, skill in enumerate(said.skills[:SKILLS_MAX], 1):
        what = f"skill {number}"
        strange = _strange(skill.evidence, plan)
        if strange:
            refused.append([what, strange])
        elif why := skills.reason_against(skill.name, skill.description, skill.steps):
            refused.append([what, why])
        else:
            kept.append(
                {
                    "what": what,
                    "action": "skill",
                    "section": skills.SECTION,
                    "text": text.inline(skill.description, skills.DESCRIPTION_CHARS_MAX),
                    "replaces": [],
                    "evidence": list(dict.fromkeys(plan.numbers[each] for each in skill.evidence)),
                    "name": skill.name,
                    "steps": [text.inline(step, operations.TEXT_CHARS_MAX) for step in skill.steps],
                }
            )
    reason = text.inline(said.reason, REASON_CHARS_MAX)
    safe = reason if reason and operations.reason_against_text(reason) is None else ""
    return {"operations": kept, "refused": refused, "reason": "" if kept else safe}


def _strange(cited: Sequence[int], plan: joining.Plan) -> str | None:
    """What is wrong with the numbers that are cited."""
    return next(
        (f"it cites {_number(each)}, which was not shown" for each in cited if each not in plan.numbers), None
    )


def _number(cited: int) -> str:
    return f"#{str(cited)[:9]}"


def _named(number: int, one: joining.Operation) -> str:
    """An operation by its numbers alone: its words may be anybody's."""
    of, by = (" ".join(map(_number, some[:REPLACED_MAX])) for some in (one.replaces, one.evidence))
    return f"{number}: {one.action}{f' of {of}' if of else ''}{f' by {by}' if by else ''}"


@dataclass(frozen=True)
class Proposed:
    """An operation on notes, of one owner, with where it comes from."""

    owner: str | None
    what: str
    action: str
    section: str
    text: str
    replaces: tuple[str, ...]
    evidence: tuple[str, ...]
    made: Mapping[str, Any]
    """The model, and the name of the kept answer."""
    name: str = ""
    """Of a skill."""
    steps: tuple[str, ...] = ()

    @classmethod
    def of(cls, kept: Mapping[str, Any], owner: str | None, made: Mapping[str, Any]) -> Proposed:
        """From what `accept` kept."""
        return cls(
            owner=owner,
            what=kept["what"],
            action=kept["action"],
            section=kept["section"],
            text=kept["text"],
            replaces=tuple(kept["replaces"]),
            evidence=tuple(kept["evidence"]),
            made=made,
            name=kept.get("name", ""),
            steps=tuple(kept.get("steps", ())),
        )

    @property
    def cited(self) -> tuple[str, ...]:
        """All that it rests on. A retirement rests on what stands against the other, not on that."""
        return (
            self.evidence
            if self.action == "retire"
            else tuple(dict.fromkeys((*self.replaces, *self.evidence)))
        )


def apply(
    notes: _notes.Notes, proposed: Sequence[Proposed]
) -> tuple[_notes.Notes, list[Proposed], list[tuple[Proposed, str]]]:
    """The notes after the operations that may stand, those, and the others with the reason.

    Judged by the notes as they are now, which may be others than the model was shown.
    """
    boards = {owner: joining.board(notes, owner) for owner in {one.owner for one in proposed}}
    changed: dict[str, dict[str, Any]] = {}
    done: list[Proposed] = []
    refused: list[tuple[Proposed, str]] = []
    state = _State(notes, boards, Counter(), set(), sum(1 for _ in notes.of_kind(joint.KIND)))
    for one in proposed:
        reason = _reason_against(one, state)
        if reason is None:
            identity, entry = _entry(one, notes)
            named = [each for each in done if each.name and (each.owner, each.name) == (one.owner, one.name)]
            if named or identity in changed or notes.get(identity) is not None:
                reason = "it is there already"
            elif not entry["support"]:
                reason = "no conversation bears it any more"
        if reason is not None:
            refused.append((one, reason))
            continue
        changed[identity] = entry
        for note in _taken_over(one, notes):
            known = notes.get(note)
            if known is not None and known["kind"] == joint.KIND:
                # Whatever it rested on and stood for, the new one does.
                changed[note] = known | {"support": {}}
                state = replace(state, joints=state.joints - 1)
        state.gone.update(one.replaces)
        state.retired[one.owner] += one.action == "retire"
        state = replace(state, joints=state.joints + 1)
        done.append(one)
    return notes.replace(changed), done, refused


@dataclass(frozen=True)
class _State:
    notes: _notes.Notes
    boards: Mapping[str | None, Mapping[str, joining.Item]]
    retired: Counter[str | None]
    gone: set[str]
    """Notes that an operation of this batch has replaced."""
    joints: int


def _taken_over(one: Proposed, notes: _notes.Notes) -> list[str]:
    """The notes whose place and support it takes: of a skill, the one that has its name."""
    if one.action == "skill":
        return [
            note
            for note, known in notes.of_kind(joint.KIND)
            if (known["key"]["subject"], known["key"].get("name")) == (one.owner, one.name)
        ]
    return [] if one.action == "retire" else list(one.replaces)


def _over(one: Proposed, notes: _notes.Notes) -> set[str]:
    cited = dict.fromkeys((*one.cited, *_taken_over(one, notes)))
    found = {source for note in cited for source in joint.over_of(note, notes.get(note) or {})}
    return {source for source in found if notes.get(source) is not None}


def _entry(one: Proposed, notes: _notes.Notes) -> tuple[str, dict[str, Any]]:
    covers: list[str] = []
    for note in one.replaces:
        known = notes.get(note) or {}
        is_joint = known.get("kind") == joint.KIND and one.action != "retire"
        covers += known["key"]["covers"] if is_joint else [note]
    covers = [note for note in covers if notes.get(note) is not None]
    key = joint.key_of(
        section=one.section,
        subject=one.owner,
        text=one.text,
        over=_over(one, notes),
        covers=covers,
        name=one.name,
        steps=one.steps,
    )
    entry = {"kind": joint.KIND, "key": key, "support": joint.support_of(key, notes), "made": dict(one.made)}
    return _notes.note_id(joint.KIND, key), entry


def _reason_against(one: Proposed, state: _State) -> str | None:
    """Why an operation is not done; None if it is."""
    items = state.boards[one.owner]
    if any(note not in items for note in (*one.replaces, *one.evidence)):
        return "a note that it names does not stand any more"
    if any(not items[note].may_go for note in one.replaces):
        return "it replaces what a person or the rules wrote; that can be cited, and not replaced"
    if state.gone.intersection(one.replaces):
        return "another operation replaced a note of it already"
    takes = any(items[note].origin == "joint" for note in one.replaces) and one.action != "retire"
    if state.joints >= JOINTS_MAX and not takes:
        return f"the memory has {JOINTS_MAX} joint statements already"
    cited = [items[note] for note in one.cited]
    if (count := len(_over(one, state.notes))) > joint.OVER_MAX:
        return f"it rests on {count} notes; at most {joint.OVER_MAX} can be"
    if one.action == "skill":
        return _reason_against_skill(one, cited, state)
    if one.action == "retire":
        return _reason_against_retiring(one, state)
    return _reason_against_counts(one, cited) or _reason_against_words(one, cited, items)


def _reason_against_counts(one: Proposed, cited: Sequence[joining.Item]) -> str | None:
    count = len(one.replaces)
    if one.action == "merge" and not 2 <= count <= REPLACED_MAX:
        return f"a merge replaces 2 to {REPLACED_MAX} notes"
    if one.action == "reword" and count != 1:
        return "a rewording replaces one note"
    if one.action == "add" and (count or not one.evidence):
        return "what is added replaces nothing, and cites its evidence"
    if one.action == "add" and len({rollout for each in cited for rollout in each.rollouts}) < 2:
        return "what is added must be shown by two conversations"
    return None


def _reason_against_words(
    one: Proposed, cited: Sequence[joining.Item], items: Mapping[str, joining.Item]
) -> str | None:
    sections = {each.section for each in cited}
    if one.section == "preferences" and sections != {"preferences"}:
        return "a preference must rest on preferences alone"
    if any(items[note].section != one.section for note in one.replaces):
        return "its section is another than that of what it replaces"
    if one.action == "add" and any(
        each.text.casefold() == one.text.casefold() and each.section == one.section for each in items.values()
    ):
        return "it is there already"
    if reason := _reason_against_ground(one.text, cited):
        return reason
    if any(not _alike(items[note].text, one.text) for note in one.replaces):
        return "it does not say what a note says that it replaces"
    return _reason_against_strangers(one.text, cited)


def _reason_against_ground(said: str, cited: Sequence[joining.Item]) -> str | None:
    """Whether what is said is made of what its evidence says."""
    told = "\n".join(each.text for each in cited).casefold()
    named = [word for word in keywords.count([said]) if keywords.is_name(word)] + _NUMBER.findall(said)
    if any(word.casefold() not in told for word in named):
        return "it names something that none of its evidence names"
    own = joining.words(said)
    if len(own & joining.words(told)) < GROUNDED_MIN * len(own):
        return "it says what its evidence does not say: keep to the words of the notes"
    return None


def _reason_against_skill(one: Proposed, cited: Sequence[joining.Item], state: _State) -> str | None:
    if not cited:
        return "it cites nothing"
    met = {rollout for each in cited for rollout in each.rollouts}
    if len(skills.successes(state.notes, met)) < skills.ROLLOUTS_MIN:
        return f"fewer than {skills.ROLLOUTS_MIN} conversations that ended in success show it"
    for said in (one.text, *one.steps):
        if reason := _reason_against_ground(said, cited):
            return reason
    return _reason_against_strangers(skills.whole(one.name, one.text, one.steps), cited)


def _reason_against_strangers(said: str, cited: Sequence[joining.Item]) -> str | None:
    """Else a note of just any second conversation would make something out as shown by two."""
    return None if all(_alike(each.text, said) for each in cited) else "it cites a note about something else"


def _reason_against_retiring(one: Proposed, state: _State) -> str | None:
    items = state.boards[one.owner]
    standing = sum(1 for each in items.values() if each.may_go)
    most = max(RETIRED_MIN, int(standing * RETIRED_SHARE_MAX))
    if len(one.replaces) != 1 or not one.evidence:
        return "a retirement names one note, and cites what stands against it"
    if set(one.evidence) & {*one.replaces, *state.gone}:
        return "what stands against the note does not stand itself"
    if state.retired[one.owner] >= most:
        return f"one answer retires at most {most} of the {standing} statements that stand"
    (old,) = (items[note] for note in one.replaces)
    for note in one.evidence:
        new = items[note]
        if new.section != old.section or not _alike(old.text, new.text):
            return "what stands against the note is about something else"
        if new.at <= old.at:
            return "what stands against the note is not newer"
    return None


def _alike(one: str, other: str) -> bool:
    mine, theirs = joining.words(one), joining.words(other)
    return len(mine & theirs) >= ALIKE_MIN * max(1, min(len(mine), len(theirs)))
