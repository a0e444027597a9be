"""Operations: the only way in which notes change, for rules and models alike.

Whoever thinks proposes operations; code checks every one and applies those that stand. Each belongs to one
rollout and cites the items that bear it, so a note can always be asked "why", and taking a rollout away
takes away what it said. (What a model makes of the notes of several rollouts is not theirs: see `joining.py`.)

==========  =======================================================================================
`add`       this rollout supports the note about `key` (a new one, or one that others support too)
`amend`     this rollout says a model's note better: its newest wording is the one shown
`retire`    of its own support: withdrawn. Of a note of others: this rollout is evidence against it
`merge`     this rollout shows that the note says the same as note `into`, which is the one shown
==========  =======================================================================================
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from runlore.memory import edits, handbook, instructions, joint, redact, signatures, text, values
from runlore.memory import notes as _notes

ACTIONS = ("add", "amend", "retire", "merge")
TEXT_CHARS_MAX = 600
EVIDENCE_MAX = 32
CONTRIBUTION_BYTES_MAX = 64 * 1024

Notes = _notes.Notes


@dataclass(frozen=True)
class Operation:
    """One proposed change."""

    action: str
    rollout: str
    kind: str
    note: str
    """Id of the note it is about."""
    evidence: tuple[values.Evidence, ...]
    key: dict[str, Any] = field(default_factory=dict)
    """What the note is about; needed by `add`."""
    body: dict[str, Any] = field(default_factory=dict)
    """The contribution: JSON."""
    subject: str | None = None
    """The subject of the rollout that it cites."""


class Told(NamedTuple):
    """What a model says of a rollout."""

    card: Mapping[str, Any]
    """What tells this from what it said before; on the rollout's card."""
    statements: Sequence[tuple[str, str, Sequence[Sequence[Any]], str]]
    """(section, text, evidence, where the words came from: `user`, `agent` or `tool`)."""


class Refused(NamedTuple):
    """An operation that was not applied, and why."""

    operation: Operation
    reason: str


# --- what the rules propose -------------------------------------------------------------------------


def propose(notes: Notes, rollout: str, summary: dict[str, Any], told: Told | None = None) -> list[Operation]:
    """The operations for a rollout that is new or changed: all that it says now, nothing it said before.

    `told`: what a model says of it besides the rules.
    """
    wanted = {op.note: op for op in _said(rollout, summary, told)} if summary else {}
    out = []
    for identity, entry in notes.supported_by(rollout).items():
        if identity not in wanted and entry["kind"] not in joint.COMPUTED:
            out.append(_withdrawal(rollout, identity, entry))
    for identity, op in wanted.items():
        known = notes.get(identity)
        if known is None or known["support"].get(rollout) != op.body:
            out.append(op)
    return sorted(out, key=lambda op: op.note)


def add_text(
    *,
    rollout: str,
    section: str,
    statement: str,
    evidence: Iterable[values.Evidence],
    subject: str | None,
    at: str,
    said_by: str = instructions.TOOL,
) -> Operation:
    """A model's statement as an operation. `said_by`: where its words came from; unknown, they count least."""
    key = {"section": section, "subject": subject, "text": " ".join(statement.split())}
    body = {"text": statement, "at": at, "said_by": said_by}
    return Operation("add", rollout, "text", _notes.note_id("text", key), tuple(evidence), key, body, subject)


def _withdrawal(rollout: str, identity: str, entry: dict[str, Any]) -> Operation:
    told = entry["support"][rollout].get("evidence") or [["", 0, 0]]
    evidence = tuple(values.Evidence(rollout, *one) for one in told)
    return Operation("retire", rollout, entry["kind"], identity, evidence)


def _said(rollout: str, summary: dict[str, Any], model: Told | None) -> list[Operation]:
    out = _said_by_runs(rollout, summary, model) if summary["runs"] else []
    for one in edits.said(summary):
        cited = tuple(values.Evidence(rollout, *told) for told in one.body["evidence"])
        out.append(
            Operation("add", rollout, one.kind, one.note, cited, one.key, one.body, summary["subject"])
        )
    return out


def _said_by_runs(rollout: str, summary: dict[str, Any], model: Told | None) -> list[Operation]:
    subject, agent = summary["subject"], (summary["agents"] or [""])[0]
    last = [summary["runs"][-1][0], summary["runs"][-1][1], 0]
    common = {"subject": subject, "memory": summary["memory"], "agent": agent}

    def add(kind: str, key: dict[str, Any], body: dict[str, Any], evidence: list[list[Any]]) -> Operation:
        body = body | {"evidence": evidence}
        cited = tuple(values.Evidence(rollout, *one) for one in evidence)
        return Operation("add", rollout, kind, _notes.note_id(kind, key), cited, key, body, subject)

    told = [_at(one) for one in (summary["first"], summary["answer"]) if one]
    card = _card(summary) | ({"model": dict(model.card)} if model else {})
    out = [add("rollout", {"rollout": rollout}, card, told or [last])]
    for section, statement, evidence, said_by in model.statements if model else ():
        cited = [values.Evidence(*one) for one in evidence]
        out.append(
            add_text(
                rollout=rollout,
                section=section,
                statement=statement,
                evidence=cited,
                subject=subject,
                at=summary["updated_at"],
                said_by=said_by,
            )
        )
    for one in summary["failures"]:
        key = {"head": one["head"], "key": one["key"]}
        out.append(add("failure", key, common | _failure(one), _failure_evidence(one)))
    for one in summary["facts"]:
        body = {"count": one["count"], "at": one["at"], "where": one.get("where", "")}
        out.append(add("fact", {"command": one["command"]}, common | body, [_at(one)]))
    for one in summary["corrections"]:
        key = {"subject": subject, "text": one["text"]}
        body = {name: one[name] for name in ("head", "paths", "repeat", "at") if name in one}
        out.append(add("correction", key, common | body, [_at(one)]))
    for one in summary["tools"]:
        body = {"calls": one["calls"], "data": one["data"], "shapes": one["shapes"]}
        out.append(add("tool", {"head": one["head"]}, common | body, [last]))
    return out


def _at(one: dict[str, Any]) -> list[Any]:
    return [one["run"], one["attempt"], one["item"]]


def _card(summary: dict[str, Any]) -> dict[str, Any]:
    dropped = ("v", "engine", "seen", "broken", "retried", "runs_unsure", "tools")
    card = {name: value for name, value in summary.items() if name not in dropped}
    if "edits" in card:
        card["edits"] = edits.fingerprint(card["edits"])
    return card | {"runs": summary["runs"][-8:], "failures": [_brief(one) for one in summary["failures"]]}


def _brief(one: dict[str, Any]) -> dict[str, Any]:
    return {
        name: one[name] for name in ("head", "key", "message", "call", "evidence", "count") if name in one
    }


def _failure(one: dict[str, Any]) -> dict[str, Any]:
    kept = ("count", "at", "sure", "shown", "shape", "masked", "flaky")
    fixes = [{name: value for name, value in fix.items() if name not in ("attempt",)} for fix in one["fixes"]]
    return {name: one[name] for name in kept if one.get(name)} | {"fixes": fixes}


def _failure_evidence(one: dict[str, Any]) -> list[list[Any]]:
    return [_at(one["evidence"]), *(_at(fix) for fix in one["fixes"])]


# --- what code lets through -------------------------------------------------------------------------


def apply(
    notes: Notes, ops: Iterable[Operation], *, shown: Collection[values.Evidence] | None = None
) -> tuple[Notes, list[Refused]]:
    """The notes after `ops`, and those that were refused with the reason.

    `shown` holds the evidence that the proposer was given; None where it is the rules, who read it all.
    """
    refused: list[Refused] = []
    changed: dict[str, dict[str, Any]] = {}
    for op in ops:
        entry = changed.get(op.note) or notes.get(op.note)
        reason = _reason_against(op, entry, notes, shown)
        if reason:
            refused.append(Refused(op, reason))
            continue
        changed[op.note] = _applied(op, entry)
    return notes.replace(changed), refused


def _applied(op: Operation, entry: dict[str, Any] | None) -> dict[str, Any]:
    if op.action == "add":
        base = entry or {"kind": op.kind, "key": op.key, "support": {}}
        return _notes.supported(base, op.rollout, _cited(op))
    assert entry is not None
    if op.action == "retire" and op.rollout in entry["support"]:
        return _notes.without(entry, op.rollout)
    return _notes.supported(entry, op.rollout, _cited(op) | {"action": op.action})


def _cited(op: Operation) -> dict[str, Any]:
    return op.body | {"evidence": [list(one[1:]) for one in op.evidence], "subject": op.subject}


def _reason_against(
    op: Operation, entry: dict[str, Any] | None, notes: Notes, shown: Collection[values.Evidence] | None
) -> str | None:
    if op.action not in ACTIONS or op.kind not in _notes.KINDS or op.kind in joint.COMPUTED:
        return f"there is no operation {op.action!r} on notes of kind {op.kind!r}"
    if not op.evidence or len(op.evidence) > EVIDENCE_MAX:
        return f"it must cite 1 to {EVIDENCE_MAX} items"
    for one in op.evidence:
        if one.rollout != op.rollout:
            return f"it cites rollout {one.rollout}, but belongs to {op.rollout}"
        if shown is not None and one not in shown:
            return f"it cites item {one.item} of run {one.run}, which was not shown"
    if op.action != "add" and entry is None:
        return f"there is no note {op.note}"
    if op.action == "add":
        return _reason_against_add(op)
    return _reason_against_change(op, entry or {}, notes)


def _reason_against_add(op: Operation) -> str | None:
    if op.note != _notes.note_id(op.kind, op.key):
        return "its id is not the id of what it is about"
    if len(signatures.as_json(op.body)) > CONTRIBUTION_BYTES_MAX:
        return f"it is longer than {CONTRIBUTION_BYTES_MAX} bytes"
    if op.kind in ("text", "correction") and op.key.get("subject") != op.subject:
        return "what is known from a subject's rollout must stay with that subject"
    if op.kind == "edit" and (set(op.key) != {"note"} or not isinstance(op.body.get("now"), list)):
        return "it does not say against which note it stands"
    if op.kind == "text":
        if op.key.get("section") not in handbook.SECTIONS:
            return f"there is no section {op.key.get('section')!r}"
        return reason_against_text(op.body.get("text"))
    return None


def _reason_against_change(op: Operation, entry: dict[str, Any], notes: Notes) -> str | None:
    if op.action == "retire" and op.rollout in entry["support"]:
        return None
    if entry["kind"] != "text":
        return "the rules' own notes follow their evidence; a model may only add to them"
    if entry["key"].get("subject") not in (None, op.subject):
        return "the note is about another subject"
    if entry["key"].get("subject") != op.subject and op.action == "amend":
        return "what is known from a subject's rollout must stay with that subject"
    if op.action == "amend":
        return reason_against_text(op.body.get("text"))
    if op.action == "merge":
        into = notes.get(str(op.body.get("into")))
        if into is None or into is entry or into["kind"] != "text":
            return "there is no other note to merge into"
        if into["key"].get("subject") != entry["key"].get("subject"):
            return "the notes are about different subjects"
    return None


def reason_against_text(statement: Any) -> str | None:
    """Why a model's statement is not taken; None where it is."""
    if not isinstance(statement, str) or not text.inline(statement, TEXT_CHARS_MAX).strip():
        return "its text is empty"
    if len(statement) > TEXT_CHARS_MAX:
        return f"its text is longer than {TEXT_CHARS_MAX} characters"
    if redact.text(statement) != statement:
        return "its text holds a secret"
    return None
