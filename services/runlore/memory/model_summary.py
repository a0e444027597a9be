"""What a model says of a rollout: the shape of its answer, and what code lets through.

    showing.render ─▶ (a model) ─▶ `Summary` ─accept─▶ statements with evidence, and what was dropped and why

A statement stands only with evidence that was shown, and a preference only where the person said it: what a tool's
output says that "the user prefers" is dropped, however the model was talked into it. Dropping a statement costs a line
of memory; keeping a false one costs every run that reads it. A secret in it becomes its placeholder, as in a record.

What is accepted is plain JSON (`Accepted`), in which evidence is places in records and no more the numbers of one ask:
so it can be kept, and shown to the next ask as what is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pydantic

from runlore.memory import handbook, instructions, operations, redact, showing, text

STATEMENTS_MAX = 40
EVIDENCE_PER_STATEMENT_MAX = 16
TITLE_CHARS_MAX = 120
REASON_CHARS_MAX = 240
DROPPED_MAX = 40
NO_REASON = "the model gave no reason"
_SPEAKERS = {"user": instructions.USER, "assistant": instructions.AGENT, "tool": instructions.TOOL}
"""Kinds of entries; a `known` one carries its own."""


class Statement(pydantic.BaseModel):
    """One thing worth knowing."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    section: Literal["preferences", "knowledge", "failures"]
    text: str
    evidence: list[int]


class Summary(pydantic.BaseModel):
    """What a model answers."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    title: str
    outcome: Literal["success", "partial", "fail", "uncertain"]
    outcome_evidence: list[int]
    statements: list[Statement]
    reason: str


Accepted = dict[str, Any]
"""`title`, `outcome`, `outcome_evidence`, `statements` (section, text, evidence, said_by), `dropped` (what, reason),
`reason`; `redacted` (kind → how many) where secrets were hidden.

`reason` says why there are no statements, and is empty where there are: nothing to say is a result, and no fault.
"""


def accept(said: Summary, shown: showing.Shown, key: bytes | None = None) -> Accepted:
    """What stands of an answer, given what was shown for it. Never raises on what a model may say.

    `key`: the project's redaction key.
    """
    said, redacted = _hidden(said, key)
    kept: dict[tuple[str, str], dict[str, Any]] = {}
    dropped: list[dict[str, str]] = []
    for number, one in enumerate(said.statements, 1):
        statement = text.inline(one.text, operations.TEXT_CHARS_MAX + 1)
        reason = _reason_against(one, statement, shown)
        said_of = (one.section, statement.casefold())
        if reason is None and said_of not in kept and len(kept) == STATEMENTS_MAX:
            reason = f"there are {STATEMENTS_MAX} statements already"
        if reason is not None:
            dropped.append({"what": f"{one.section} {number}", "reason": reason})
            continue
        cited, said_by = _evidence(one.evidence, shown), _said_by(one.evidence, shown)
        if said_of in kept:
            cited = _distinct([*kept[said_of]["evidence"], *cited])
            said_by = said_by if said_by == kept[said_of]["said_by"] else instructions.AGENT
        kept[said_of] = {"section": one.section, "text": statement, "evidence": cited, "said_by": said_by}
    outcome, why = said.outcome, _reason_against_outcome(said, shown)
    if why is not None:
        dropped.append({"what": f"outcome {outcome}", "reason": why})
        outcome = "uncertain"
    given = text.inline(said.reason, REASON_CHARS_MAX)
    empty = "" if kept else _safe(given) or ((dropped and "nothing that was said stands") or NO_REASON)
    out = {
        "title": _safe(text.plain(said.title, TITLE_CHARS_MAX)),
        "outcome": outcome,
        "outcome_evidence": [] if why or outcome == "uncertain" else _evidence(said.outcome_evidence, shown),
        "statements": list(kept.values()),
        "dropped": dropped[:DROPPED_MAX],
        "reason": empty,
    }
    return out | ({"redacted": redacted} if redacted else {})


def _hidden(said: Summary, key: bytes | None) -> tuple[Summary, dict[str, int]]:
    """The answer without secrets, before anything of it is cut, and how many there were of each kind."""
    counts: Counter[str] = Counter()

    def hide(value: str) -> str:
        kept, found = redact.counted_text(value, key)
        counts.update(found)
        return kept

    statements = [one.model_copy(update={"text": hide(one.text)}) for one in said.statements]
    changed = {"title": hide(said.title), "statements": statements, "reason": hide(said.reason)}
    return (said.model_copy(update=changed), dict(sorted(counts.items()))) if counts else (said, {})


def _reason_against(one: Statement, statement: str, shown: showing.Shown) -> str | None:
    reason = operations.reason_against_text(statement)
    if reason is None and one.section not in handbook.SECTIONS:
        reason = f"there is no section {one.section}"
    if reason is None:
        reason = _reason_against_evidence(one.evidence, shown)
    if reason is None and one.section == "preferences":
        own = ("user", f"{showing.KNOWN} preferences")
        if not any(shown.kinds[number] in own for number in one.evidence):
            return "a preference must cite what the person said"
    return reason or _instructs(statement, _said_by(one.evidence, shown))


def _instructs(statement: str, said_by: str) -> str | None:
    found = instructions.against(statement, said_by)
    kinds = ", ".join(dict.fromkeys(one.kind for one in found))
    return f"it reads like an instruction to whoever reads it ({kinds})" if found else None


def _reason_against_evidence(numbers: Sequence[int], shown: showing.Shown) -> str | None:
    if not numbers:
        return "it cites nothing"
    strange = [number for number in numbers if number not in shown.evidence]
    return f"it cites #{strange[0]}, which was not shown" if strange else None


def _reason_against_outcome(said: Summary, shown: showing.Shown) -> str | None:
    return None if said.outcome == "uncertain" else _reason_against_evidence(said.outcome_evidence, shown)


def _said_by(numbers: Sequence[int], shown: showing.Shown) -> str:
    """Where a statement came from, as the guard against instructions weighs it: a tool's words alone count least."""
    said = {
        _SPEAKERS.get(shown.kinds[number]) or shown.known_by.get(number, instructions.TOOL)
        for number in numbers
    }
    return instructions.cited(said)


def _evidence(numbers: Sequence[int], shown: showing.Shown) -> list[list[Any]]:
    return _distinct([list(place) for number in numbers for place in shown.evidence[number]])


def _distinct(places: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Each place once; of too many the newest, which stand last."""
    found = dict.fromkeys(tuple(place) for place in places)
    return [list(place) for place in found][-EVIDENCE_PER_STATEMENT_MAX:]


def _safe(line: str) -> str:
    """`line`, if it may be kept: one with a secret is no loss."""
    return line if line and operations.reason_against_text(line) is None else ""


def told(part: Mapping[str, Any] | None, attempts: Mapping[str, int]) -> operations.Told | None:
    """What a rollout's part says, for the notes; None where a model has said nothing yet.

    `attempts`: the attempt of each run that counts now. A statement that rests on one that was replaced waits until
    the model has seen the new one.
    """
    if part is None or "statements" not in part:
        return None
    standing = [
        (one["section"], one["text"], one["evidence"], one.get("said_by", instructions.TOOL))
        for one in part["statements"]
        if all(attempts.get(run) == attempt for _, run, attempt, _ in one["evidence"])
    ]
    card = {"title": part["title"], "outcome": part["outcome"], "answer": part["points"][-1]["answer"]}
    return operations.Told(card | {"statements": len(standing)}, standing)
