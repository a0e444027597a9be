"""Consolidation by a model: what it is shown of the notes, the shape of its answer, and what code lets through.

    notes ─plans─▶ one text for each owner ─▶ (a model) ─▶ `Consolidation` ─accept, apply─▶ notes with joint statements

A model is shown the statements that are new, those that they touch by their words, and an index of the rest: so what it
costs follows what changed. Each ask shows the notes of one owner alone (one subject, or nobody in particular) and what
it answers can be about those alone, so nothing can cross. It answers operations; code refuses, with a reason, what
cites nothing that was shown, names what its evidence does not name, replaces what a person or the rules wrote, or
takes away more than it may. What is refused changes nothing: the statements stand as they were.

Pure, and a function of the notes: the same notes give the same text, and so the same kept answer.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import pydantic

from runlore.memory import documents, handbook, joint, keywords, lines, operations, text, values
from runlore.memory import notes as _notes

FRESH_MAX = 48
"""New statements that one ask shows; the rest waits for the next."""
TOUCHED_MAX = 48
"""Notes that one ask shows because the new ones touch them."""
OPERATIONS_MAX = 32
"""Operations of one answer that are looked at."""
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
CONVERSATIONS_MAX = 24
"""Conversations whose titles an ask tells."""
ENTRY_TOKENS = 24
"""What an entry's own line costs, at most."""
REASON_CHARS_MAX = 240
_NUMBER = re.compile(r"\d{3,}")
_WORD = re.compile(r"\w{3,}")


class Operation(pydantic.BaseModel):
    """One change that a model proposes."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    action: Literal["add", "merge", "reword", "retire"]
    section: Literal["preferences", "knowledge", "failures"]
    text: str
    replaces: list[int]
    evidence: list[int]


class Consolidation(pydantic.BaseModel):
    """What a model answers."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    operations: list[Operation]
    reason: str


class Refused(NamedTuple):
    """An operation that was not applied, and why. Without its words: they may be anybody's."""

    what: str
    reason: str


# --- what a model may work with -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """One note of an owner, as it stands."""

    note: str
    origin: str
    """`statement` (of one conversation's summary), `joint`, `person`, or `rules`."""
    section: str
    text: str
    rollouts: tuple[str, ...]
    at: tuple[int, str]

    @property
    def may_go(self) -> bool:
        """Whether another may stand in its place: what a person wrote, and what the rules write, stays."""
        return self.origin in ("statement", "joint")


def owners(notes: _notes.Notes) -> list[str | None]:
    """Whose statements there are: nobody's in particular, then each subject's."""
    found = {entry["key"]["subject"] for _, entry in notes.of_kind("text")} - {_notes.MIXED}
    return sorted(found, key=lambda one: (one is not None, one or ""))


def board(notes: _notes.Notes, owner: str | None) -> dict[str, Item]:
    """The notes of `owner` that stand, by their id. Not those in a conflict: that is a person's to end."""
    contested = joint.people_changed(notes)
    against = {entry["key"]["note"] for _, entry in notes.of_kind("edit")}
    out: dict[str, Item] = {}

    def put(note: str, section: str, said: str, origin: str) -> None:
        entry = notes.get(note)
        whose = {one.get("subject") for one in entry["support"].values()} if entry else set()
        if entry is None or note in contested or whose != {owner}:
            return
        rollouts = tuple(sorted(entry["support"]))
        out[note] = Item(note, origin, section, said, rollouts, joint.newest(entry))

    for one in lines.statements(notes):
        entry = notes.get(one.note)
        if one.subject == owner and entry is not None:
            theirs = note_of_a_person(entry) or one.note in against
            origin = "person" if theirs else "joint" if entry["kind"] == joint.KIND else "statement"
            put(one.note, one.section, one.text, origin)
    for fact in lines.facts(notes):
        if fact.subject == owner:
            put(fact.note, "knowledge", fact.text, "rules")
    for note, entry in notes.of_kind("correction"):
        if entry["key"]["subject"] == owner:
            put(note, "preferences", f'the user said: "{entry["key"]["text"]}"', "rules")
    # A failure's values are shared once two subjects show them; what was shared may stop being so. Nobody's stay.
    for lesson in lines.lessons(notes) if owner is None else ():
        put(lesson.note, "failures", lesson.text, "rules")
    return out


def note_of_a_person(entry: Mapping[str, Any]) -> bool:
    """Whether a live edit says this."""
    return any(one.get("by") for one in entry["support"].values())


# --- what it is shown ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """One ask: what is shown, and what its numbers stand for."""

    owner: str | None
    text: str
    numbers: Mapping[int, str]
    """Number → note."""
    fresh: tuple[str, ...]
    """The new statements that are shown."""
    more: bool
    """Whether others had no room."""


def plans(notes: _notes.Notes, *, tokens_max: int, owners_max: int) -> tuple[list[Plan], bool]:
    """What is to be asked, each owner's on its own; whether something is left for another time.

    None for an owner whose new statements touch nothing of another conversation: there is nothing to bring together.
    """
    waiting = joint.fresh(notes)
    out: list[Plan] = []
    for owner in owners(notes) if waiting else ():
        if any(_owner_of(notes, one) == owner for one in waiting):
            made = _plan(notes, owner, waiting, tokens_max)
            out += [made] if made else []
        if len(out) > owners_max:
            return out[:owners_max], True
    return out, any(one.more for one in out)


def _owner_of(notes: _notes.Notes, note: str) -> str | None:
    entry = notes.get(note)
    return entry["key"]["subject"] if entry else None


def _plan(notes: _notes.Notes, owner: str | None, waiting: set[str], tokens_max: int) -> Plan | None:
    items = board(notes, owner)
    new = sorted(
        (one for one in items.values() if one.note in waiting and one.may_go),
        key=lambda one: (one.at, one.note),
    )
    left = tokens_max
    fresh: list[Item] = []
    for one in new[:FRESH_MAX]:
        if (cost := _cost(one)) * 2 > left:
            break  # Half of the room is kept for what they touch.
        fresh.append(one)
        left -= cost
    touched: list[Item] = []
    for one in _touched(items, fresh)[:TOUCHED_MAX]:
        if (cost := _cost(one)) <= left:
            touched.append(one)
            left -= cost
    met = {rollout for one in (*fresh, *touched) for rollout in one.rollouts}
    if not fresh or len(fresh) + len(touched) < 2 or len(met) < 2:
        return None
    shown = [*fresh, *sorted(touched, key=lambda one: (one.section, one.note))]
    numbers = {number: one.note for number, one in enumerate(shown, 1)}
    body = _written(notes, owner, shown, len(fresh), len(items))
    return Plan(owner, body, numbers, tuple(one.note for one in fresh), len(fresh) < len(new))


def _cost(one: Item) -> int:
    return ENTRY_TOKENS + text.token_estimate(one.text)


def _touched(items: Mapping[str, Item], fresh: Sequence[Item]) -> list[Item]:
    """The other notes that share words with the new ones, by how rare those words are; the best first."""
    new = {one.note for one in fresh}
    pool = {note: words(one.text) for note, one in items.items() if note not in new}
    spread = Counter(word for some in pool.values() for word in some)
    wanted = {word for one in fresh for word in words(one.text)}
    scores = {
        note: sum(math.log((1 + len(pool)) / spread[word]) for word in some & wanted)
        for note, some in pool.items()
    }
    found = [note for note, score in scores.items() if score > 0]
    return [items[note] for note in sorted(found, key=lambda note: (-scores[note], note))]


def words(body: str) -> set[str]:
    """What two texts are compared by, in any script."""
    return {word.casefold() for word in keywords.count([body])} | {
        word.casefold() for word in _WORD.findall(body)
    }


def _written(notes: _notes.Notes, owner: str | None, shown: Sequence[Item], fresh: int, standing: int) -> str:
    met = dict.fromkeys(rollout for one in shown for rollout in one.rollouts)
    short = {rollout: f"c{number}" for number, rollout in enumerate(met, 1)}
    out = ["== new"]
    for number, one in enumerate(shown, 1):
        if number == fresh + 1:
            out.append("== already there, and touched by the new")
        named = ", ".join(short[rollout] for rollout in one.rollouts[-8:])
        count = len(one.rollouts)
        many = f"{count} conversation{'s' if count > 1 else ''}: {named}"
        day = one.at[1][:10] or values.UNKNOWN
        out += [f"#{number} {one.section} ({one.origin}; {many}; newest {day})", f"| {_line(one.text, 700)}"]
    out.append("== conversations")
    for rollout in [*met][:CONVERSATIONS_MAX]:
        card = notes.card(rollout)
        if card is not None:
            told = card.get("model", {})
            outcome = told.get("outcome") or documents.outcome(card)[0]
            out += [
                f"{short[rollout]}: {outcome}",
                f"| {_line(told.get('title') or documents.title(card), 120)}",
            ]
    out += ["== index", f"{standing} notes stand in all, {standing - len(shown)} of them not shown."]
    cards = {one: card for one in sorted(_rollouts_of(notes, owner)) if (card := notes.card(one))}
    out += [f"| {_line(line, 400)}" for line, _ in handbook.index(cards, [], "memory") if line.strip()]
    inner = "\n".join(out)
    tag = f"notes-{hashlib.sha256(inner.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
    return f"<{tag}>\n{inner}\n</{tag}>\n"


def _rollouts_of(notes: _notes.Notes, owner: str | None) -> list[str]:
    return [
        rollout
        for _, entry in notes.of_kind("rollout")
        for rollout, card in entry["support"].items()
        if card["subject"] == owner
    ]


def _line(body: str, limit: int) -> str:
    return text.inline(body, limit)


def again(plan: Plan, refused: Sequence[Refused]) -> str:
    """The text of a second ask, after the first: what was refused, and why."""
    told = "\n".join(f"- {one.what}: {one.reason}" for one in refused)
    return (
        f"{plan.text}\nYou answered this once. These of your operations were refused, the others are done:\n"
        f"{told}\nAnswer with better ones in place of those that can be mended, and with nothing else.\n"
    )


# --- what code lets through ---------------------------------------------------------------------------------------


def accept(said: Consolidation, plan: Plan) -> dict[str, Any]:
    """What is kept of an answer: its operations in notes instead of numbers, and those that cite what was not shown."""
    kept: list[dict[str, Any]] = []
    refused: list[list[str]] = []
    for number, one in enumerate(said.operations, 1):
        what = _named(number, one)
        strange = [each for each in (*one.replaces, *one.evidence) if each not in plan.numbers]
        statement = text.inline(one.text, operations.TEXT_CHARS_MAX + 1)
        if number > OPERATIONS_MAX:
            refused.append([what, f"there are {OPERATIONS_MAX} operations already"])
            break
        if strange:
            refused.append([what, f"it cites #{strange[0]}, which was not shown"])
        elif one.action != "retire" and (reason := operations.reason_against_text(statement)):
            refused.append([what, reason])
        else:
            kept.append(
                {
                    "what": what,
                    "action": one.action,
                    "section": one.section,
                    "text": "" if one.action == "retire" else statement,
                    "replaces": list(dict.fromkeys(plan.numbers[each] for each in one.replaces)),
                    "evidence": list(dict.fromkeys(plan.numbers[each] for each in one.evidence)),
                }
            )
    reason = text.inline(said.reason, REASON_CHARS_MAX)
    safe = reason if reason and operations.reason_against_text(reason) is None else ""
    return {"operations": kept, "refused": refused, "reason": "" if kept else safe}


def _named(number: int, one: Operation) -> str:
    """An operation by its numbers alone: its words may be anybody's."""
    of, by = (" ".join(f"#{each}" for each in some[:REPLACED_MAX]) for some in (one.replaces, one.evidence))
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
    boards = {owner: board(notes, owner) for owner in {one.owner for one in proposed}}
    changed: dict[str, dict[str, Any]] = {}
    done: list[Proposed] = []
    refused: list[tuple[Proposed, str]] = []
    state = _State(notes, boards, Counter(), set(), sum(1 for _ in notes.of_kind(joint.KIND)))
    for one in proposed:
        reason = _reason_against(one, state)
        if reason is None:
            identity, entry = _entry(one, notes)
            if identity in changed or notes.get(identity) is not None:
                reason = "it is there already"
            elif not entry["support"]:
                reason = "no conversation bears it any more"
        if reason is not None:
            refused.append((one, reason))
            continue
        changed[identity] = entry
        for note in one.replaces if one.action != "retire" else ():
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
    boards: Mapping[str | None, Mapping[str, Item]]
    retired: Counter[str | None]
    gone: set[str]
    """Notes that an operation of this batch has replaced."""
    joints: int


def _entry(one: Proposed, notes: _notes.Notes) -> tuple[str, dict[str, Any]]:
    over = [source for note in one.cited for source in joint.over_of(note, notes.get(note) or {})]
    covers: list[str] = []
    for note in one.replaces:
        known = notes.get(note) or {}
        is_joint = known.get("kind") == joint.KIND and one.action != "retire"
        covers += known["key"]["covers"] if is_joint else [note]
    key = joint.key_of(section=one.section, subject=one.owner, text=one.text, over=over, covers=covers)
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
    over = {source for each in cited for source in joint.over_of(each.note, state.notes.get(each.note) or {})}
    if len(over) > joint.OVER_MAX:
        return f"it rests on {len(over)} notes; at most {joint.OVER_MAX} can be"
    if one.action == "retire":
        return _reason_against_retiring(one, state)
    return _reason_against_counts(one, cited) or _reason_against_words(one, cited, items)


def _reason_against_counts(one: Proposed, cited: Sequence[Item]) -> str | None:
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


def _reason_against_words(one: Proposed, cited: Sequence[Item], items: Mapping[str, Item]) -> str | None:
    sections = {each.section for each in cited}
    if one.section == "preferences" and sections != {"preferences"}:
        return "a preference must rest on preferences alone"
    if one.action != "add" and one.section not in {items[note].section for note in one.replaces}:
        return "its section is none of those that it replaces"
    if one.action == "add" and any(
        each.text.casefold() == one.text.casefold() and each.section == one.section for each in items.values()
    ):
        return "it is there already"
    told = "\n".join(each.text for each in cited).casefold()
    named = [word for word in keywords.count([one.text]) if keywords.is_name(word)] + _NUMBER.findall(
        one.text
    )
    if any(word.casefold() not in told for word in named):
        return "it names something that none of its evidence names"
    own = words(one.text)
    if len(own & words(told)) < GROUNDED_MIN * len(own):
        return "it says what its evidence does not say: keep to the words of the notes"
    if any(not _alike(items[note].text, one.text) for note in one.replaces):
        return "it does not say what a note says that it replaces"
    return None


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
    mine, theirs = words(one), words(other)
    return len(mine & theirs) >= ALIKE_MIN * max(1, min(len(mine), len(theirs)))
