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
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pydantic

from runlore.memory import documents, handbook, joint, keywords, lines, skills, text, values
from runlore.memory import notes as _notes

FRESH_MAX = 48
"""New statements that one ask shows; the rest waits for the next."""
TOUCHED_MAX = 48
"""Notes that one ask shows because the new ones touch them."""
CONVERSATIONS_MAX = 24
"""Conversations whose titles an ask tells."""
ENTRY_TOKENS = 24
"""What an entry's own line costs, at most."""
# Not `\w`: vowel signs of Indic scripts are none, and would cut every word.
_WORD = re.compile(
    "[^\\s\\x00-/:-@\\[-^`{-\\x7f\u2000-\u206f\u3000-\u303f\u060c\u061b\u061f\u0964\u0965]{3,}"
)


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
    skills: list[skills.Skill]
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
    """`statement` (of one conversation's summary), `joint`, `skill`, `person`, or `rules`."""
    section: str
    text: str
    rollouts: tuple[str, ...]
    at: tuple[int, str]

    @property
    def may_go(self) -> bool:
        """Whether another may stand in its place: what a person wrote, and what the rules write, stays."""
        return self.origin in ("statement", "joint")


def board(notes: _notes.Notes, owner: str | None) -> dict[str, Item]:
    """The notes of `owner` that stand, by their id. Not those in a conflict: that is a person's to end."""
    if "boards" not in notes.memo:
        # Of all owners in one look: a memory may have hundreds.
        notes.memo["boards"] = _boards(notes)
    found: dict[str, Item] = notes.memo["boards"].get(owner, {})
    return found


def _boards(notes: _notes.Notes) -> dict[str | None, dict[str, Item]]:
    contested = joint.people_changed(notes)
    against = {entry["key"]["note"] for _, entry in notes.of_kind("edit")}
    out: dict[str | None, dict[str, Item]] = defaultdict(dict)

    def put(note: str, owner: str | None, section: str, said: str, origin: str) -> None:
        entry = notes.get(note)
        whose = {one.get("subject") for one in entry["support"].values()} if entry else set()
        if entry is None or note in contested or whose != {owner}:
            return
        rollouts = tuple(sorted(entry["support"]))
        out[owner][note] = Item(note, origin, section, said, rollouts, joint.newest(entry))

    for one in lines.statements(notes):
        entry = notes.get(one.note) or {"kind": "", "support": {}}
        theirs = note_of_a_person(entry) or one.note in against
        origin = "person" if theirs else "joint" if entry["kind"] == joint.KIND else "statement"
        put(one.note, one.subject, one.section, one.text, origin)
    for fact in lines.facts(notes):
        put(fact.note, fact.subject, "knowledge", fact.text, "rules")
    for note, entry in notes.of_kind("correction"):
        words_of = f'the user said: "{entry["key"]["text"]}"'
        put(note, entry["key"]["subject"], "preferences", words_of, "rules")
    for note, known in skills.of(notes):
        key = known["key"]
        said = skills.whole(key["name"], key["text"], key["steps"])
        put(note, key["subject"], skills.SECTION, said, "skill")
    # A failure's values are shared once two subjects show them; what was shared may stop being so. Nobody's stay.
    for lesson in lines.lessons(notes):
        put(lesson.note, None, "failures", lesson.text, "rules")
    return dict(out)


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
    found = {entry["key"]["subject"] for one in waiting if (entry := notes.get(one))} - {_notes.MIXED}
    out: list[Plan] = []
    for owner in sorted(found, key=lambda one: (one is not None, one or "")):
        made = _plan(notes, owner, waiting, tokens_max)
        out += [made] if made else []
        if len(out) > owners_max:
            return out[:owners_max], True
    return out, any(one.more for one in out)


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
    folded = body.casefold()
    found = set(_WORD.findall(folded))
    # Where there are no blanks between words they are cut into pieces.
    return found if body.isascii() else found | set(keywords.count([folded]))


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
    index = (line for line, _ in handbook.index(cards, [], "memory") if line.startswith("- "))
    out += [f"| {_line(line, 400)}" for line in index]
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
