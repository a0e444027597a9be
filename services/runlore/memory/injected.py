"""The guard `instruction`: which lines of a revision read like an instruction, judged by where their words came from.

Every line of a part rests on notes, and a note says what it is: a failure quotes a tool, a correction the person; a
model's statement carries what it cited (`said_by`). Only what a revision changes is judged, so a line that was there
before the guard was, or that a person approved, holds nobody up. An instruction that is cut in two is looked for in
lines that stand one below the other.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from runlore.memory import instructions, joint, render, text
from runlore.memory import notes as _notes

_QUOTED = re.compile(r'"([^"]+)"|`([^`]+)`')
_BULLET = re.compile(r"^\s*- ")
_LIST = re.compile(r"(?:- )?(?:[^:,]{0,40}: )?[^\s,]+(?:, [^\s,]+){2,}")
"""Search words, in the order of the alphabet: what stands side by side in them nobody said."""
_ACROSS = ("template", "fetched", "sent", "override", "conceal")
"""Signals that are looked for across two lines: those that need no second one."""
_TRUST = (instructions.TOOL, instructions.AGENT, instructions.USER)
_WHENCE = {
    instructions.TOOL: "a tool's output",
    instructions.AGENT: "what an agent wrote",
    instructions.USER: "what a person said",
}


class Found(NamedTuple):
    """A line that must not be shown as it is. `message` holds none of its words."""

    message: str
    rollouts: tuple[str, ...]
    """Those that support it."""
    key: str
    """Names what the line says, wherever and however often it stands."""
    part: str
    line: int


class _Candidate(NamedTuple):
    first: int
    last: int
    body: str
    """What the line quotes, else the line."""


def check(
    before: _notes.Notes | None, after: _notes.Notes, parts: Mapping[str, render.Part]
) -> Iterator[Found]:
    """Each thing that is said, once, at the first place where it stands."""
    seen: set[str] = set()
    for name, part in parts.items():
        for one in _candidates(part.text):
            for found in _judged(before, after, name, part, one):
                if found.key not in seen:
                    seen.add(found.key)
                    yield found


@functools.lru_cache(maxsize=4_096)
def _candidates(body: str) -> tuple[_Candidate, ...]:
    """The lines with any signal, and the pairs of lines that have one together. Few texts have one."""
    out, above = [], ""
    for number, line in enumerate(body.split("\n"), 1):
        said = _said(line) if line and not _LIST.fullmatch(line) else ""
        own = instructions.signals(line) if said else ()
        if own:
            out.append(_Candidate(number, number, said))
        if above and said:
            alone = {one.kind for one in [*own, *instructions.signals(above)]}
            joined = instructions.signals(f"{above} {said}")
            if any(one.kind in _ACROSS and one.kind not in alone for one in joined):
                out.append(_Candidate(number - 1, number, f"{above} {said}"))
        above = said if _BULLET.match(line) else ""
    return tuple(out)


def _said(line: str) -> str:
    quoted = [one or other for one, other in _QUOTED.findall(line)]
    return " ".join(quoted) if quoted else _BULLET.sub("", line)


def _judged(
    before: _notes.Notes | None, after: _notes.Notes, name: str, part: render.Part, one: _Candidate
) -> Iterator[Found]:
    behind = {
        note: entry
        for first, last, note in part.why
        if first <= one.last and one.first <= last and (entry := after.get(note)) is not None
    }
    if before is not None and behind and all(before.get(note) == entry for note, entry in behind.items()):
        return
    whole = part.text.split("\n")[one.first - 1] if one.first == one.last else one.body
    # A line without a note is a frame of the file's: nobody may have put such words there.
    source = _least({_source(after, entry, whole) for entry in behind.values()})
    reasons = instructions.against(whole, source)
    if reasons:
        kinds = ", ".join(dict.fromkeys(reason.kind for reason in reasons))
        rollouts = {rollout for entry in behind.values() for rollout in entry["support"]}
        message = f"{name}:{one.first} reads like an instruction ({kinds}), from {_WHENCE[source]}"
        suspects = tuple(sorted(rollouts or ({part.rollout} if part.rollout else set())))
        yield Found(message, suspects, _key(kinds, _guilty(whole, source) or [one.body]), name, one.first)


def _guilty(line: str, source: str) -> list[str]:
    """The quotations of a line that would be held alone: the same words stand in several places, framed otherwise."""
    quoted = [one or other for one, other in _QUOTED.findall(line)]
    return [one for one in quoted if instructions.against(one, source)]


def _key(kinds: str, said: Iterable[str]) -> str:
    told = "\n".join([kinds, *sorted({instructions.folded(one) for one in said})])
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _least(sources: set[str]) -> str:
    return next((one for one in _TRUST if one in sources), instructions.TOOL)


def _source(after: _notes.Notes, entry: Mapping[str, Any], line: str) -> str:
    """Where the words of a line came from that rests on this note."""
    if entry["kind"] == joint.KIND:
        # As a statement that cites them all: a model's words, of what it read there.
        over = [found for note in entry["key"]["over"] if (found := after.get(note)) is not None]
        return instructions.cited({_source(after, one, line) for one in over})
    if entry["kind"] == "correction":
        return instructions.USER
    if entry["kind"] == "fact":
        return instructions.AGENT
    if entry["kind"] == "text":
        return _source_of_statement(entry)
    if entry["kind"] == "rollout":
        return _least({_source_in_card(card, line) for card in entry["support"].values()})
    return instructions.TOOL


def _source_of_statement(entry: Mapping[str, Any]) -> str:
    """Of a statement that several rollouts support, the best that is known: the words are the same."""
    said = {
        instructions.AGENT if one.get("by") else str(one.get("said_by") or instructions.TOOL)
        for one in entry["support"].values()
    }
    return next((one for one in reversed(_TRUST) if one in said), instructions.TOOL)


def _source_in_card(card: Mapping[str, Any], line: str) -> str:
    excerpts = [one.excerpt for one in instructions.signals(line)]
    asked = [one["text"] for one in [card["first"], *card["requests"], *card["corrections"]] if one]
    asked += [one["turn"] for one in card["open"] if "turn" in one]
    if _stand_in(excerpts, asked):
        return instructions.USER
    failed = [one.get("message", "") for one in [*card["failures"], card.get("last_failing") or {}]]
    return instructions.TOOL if _stand_in(excerpts, failed, some=True) else instructions.AGENT


def _stand_in(excerpts: list[str], texts: list[str], *, some: bool = False) -> bool:
    shown = [text.inline(one, instructions.SCAN_CHARS_MAX) for one in texts]
    bodies = [f"{instructions.folded(one)}\n{instructions.likened(one)}" for one in shown]
    return (any if some else all)(any(one in body for body in bodies) for one in excerpts)
