"""Review: what is held of a memory, what taking it in would make of it, and a person's decision.

    list ─▶ show (the guards' violations, the diff, the statements) ─▶ approve: one mark │ reject: one move of the head

An approval lets pass exactly what the hold says, by key: what comes later, or was never shown, holds the rollout anew.
What would harm others is never let pass (`guards.SOFT` says what may be). Nothing here leaves with a secret in it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runlore import clock, errors
from runlore.bus import port as bus_port
from runlore.commit import heads, revisions
from runlore.consumers import approvals, consolidate, record, summarize
from runlore.events import ids, models
from runlore.lookup import memories
from runlore.memory import guards, redact, render
from runlore.store import port as store_port

HELD, REJECTED = "held", "rejected"
REJECTED_MAX = 2000
"""Rejected rollouts that one memory remembers at most."""
FILE_CHARS_MAX = 20_000
"""Of one file's diff."""
STATEMENTS_MAX = 200
LINE_CHARS_MAX = 600
_PLACE = re.compile(r"^(\S+):(\d+) ")
_SAID = {"text": "text", "correction": "text", "fact": "command"}
"""Kinds of notes that say something → what in their key says it; a failure's is what is shown of it."""


@dataclass(frozen=True)
class Judged:
    """A held rollout as the guards see it now."""

    head: heads.Head
    """The memory's."""
    rollout: heads.Head
    before: revisions.Revision | None
    made: consolidate.Made | None
    """None where the engine fails on it."""
    violations: list[guards.Violation]


@dataclass(frozen=True)
class Approved:
    """What an approval did."""

    names: list[str]
    let_pass: dict[str, list[str]]
    """The kinds of violations that were let pass, of each."""
    left: dict[str, str]
    """Of all that waited, those that nobody may let in, and why."""


# --- list -------------------------------------------------------------------------------------------


def rows_of(head: heads.Head) -> list[dict[str, Any]]:
    """What a memory holds, those that wait for a person first."""
    return sorted((_row(head, name, one) for name, one in head.body.get("held", {}).items()), key=place_of)


def place_of(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Where a row stands among the others."""
    return str(row["state"]), str(row["at"]), str(row["rollout"])


def _row(head: heads.Head, name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    rejected = entry.get("rejected") or {}
    kinds = sorted({kind for kind, _, _ in entry.get("violations", ())})
    return {
        "project": head.body["project"],
        "memory": head.body["memory"],
        "rollout": name,
        "state": REJECTED if rejected else HELD,
        "kind": entry["kind"],
        "kinds": kinds,
        "reason": entry["reason"],
        "at": entry["at"],
        "counter": entry["counter"],
        "hold": entry["hold"],
        "revision": entry.get("revision"),
        "rejected_at": rejected.get("at"),
        "rejected_reason": rejected.get("reason"),
    }


def names_of(held: Mapping[str, Any], given: Sequence[str]) -> list[str]:
    """The held rollouts that are meant: as they are listed (an alias), or as the producer named them."""
    return list(dict.fromkeys(one if one in held else ids.alias(one.strip()) for one in given))


# --- show -------------------------------------------------------------------------------------------


async def show(
    store: store_port.ObjectStore, reader: revisions.Reader, project: str, memory: str, rollout: str
) -> dict[str, Any]:
    """All that a person needs to decide. Raises `errors.NotFound` where it is not held."""
    head = await reader.head(project, memory)
    (name,) = names_of(head.body.get("held", {}), [rollout])
    _must_be_held(head, project, memory, [name])
    judged = await _judged(store, reader, head, name)
    return await asyncio.to_thread(_shown, judged, name)


async def _judged(
    store: store_port.ObjectStore, reader: revisions.Reader, head: heads.Head, name: str
) -> Judged:
    project, memory = head.body["project"], head.body["memory"]
    rollout = await summarize.read(store, project, memory, name)
    before = await reader.current(head, project, memory)
    return await asyncio.to_thread(_judge, head, rollout, before, name)


def _judge(head: heads.Head, rollout: heads.Head, before: revisions.Revision | None, name: str) -> Judged:
    state = consolidate.load_state(before)
    layout = head.body.get("layout") or rollout.body["layout"]
    made, violations = consolidate.judge(state, {name: rollout}, layout)
    passes = approvals.let_pass(head.body, [])
    return Judged(head, rollout, before, made, approvals.against(violations, passes, name, []))


def _shown(judged: Judged, name: str) -> dict[str, Any]:
    entry = judged.head.body["held"][name]
    known = {key for _, _, key in entry.get("violations", ())}
    return {
        **_row(judged.head, name, entry),
        "runs": len(judged.rollout.body.get("runs", {})),
        "present_revision": judged.before.number if judged.before else 0,
        "new_runs": judged.rollout.counter > int(entry["counter"]),
        "violations": [_violation(one, judged.made, known) for one in judged.violations],
        "statements": _statements(judged.made, name),
        "files": _changes(judged, name),
    }


def _violation(one: guards.Violation, made: consolidate.Made | None, known: set[str]) -> dict[str, Any]:
    place = _PLACE.match(one.message)
    part = made.parts.get(place.group(1)) if made and place else None
    line = redact.text(part.text).split("\n")[int(place.group(2)) - 1] if part and place else None
    return {
        "kind": one.kind,
        "message": one.message,
        "may_pass": one.kind in guards.SOFT,
        # One that the hold does not name is not let pass by approving it.
        "is_new": bool(one.key) and one.key not in known,
        "line": line[:LINE_CHARS_MAX] if line is not None else None,
    }


def _statements(made: consolidate.Made | None, name: str) -> list[dict[str, Any]]:
    """What the rollout says, with its evidence."""
    out = []
    for note, entry in sorted((made.state.notes.supported_by(name) if made else {}).items()):
        one = entry["support"][name]
        said = entry["key"].get(
            _SAID.get(entry["kind"], ""), one.get("shown") if entry["kind"] == "failure" else None
        )
        if said is None or len(out) == STATEMENTS_MAX:
            continue
        evidence = [{"run": run, "attempt": attempt, "item": item} for run, attempt, item in one["evidence"]]
        row = {
            "note": note,
            "kind": entry["kind"],
            "text": redact.text(str(one.get("text") or said))[:LINE_CHARS_MAX],
        }
        out.append(row | {"said_by": one.get("said_by"), "evidence": evidence})
    return out


def _changes(judged: Judged, name: str) -> list[dict[str, Any]]:
    """What taking it in would make of the files, as a seed that continues it would hold them; secrets are masked."""
    if judged.made is None:
        return []
    whom = judged.rollout.body.get("subject")
    layout = models.Layout(**(judged.head.body.get("layout") or judged.rollout.body["layout"]))
    before = memories.compose(judged.before, whom, name) if judged.before else {}
    after = render.compose(judged.made.parts, subject=whom, rollout=name, layout=layout)
    found = memories.changes(_masked(before), _masked(after))
    return [
        {**one, "diff": one["diff"][:FILE_CHARS_MAX], "cut": len(one["diff"]) > FILE_CHARS_MAX}
        for one in found
    ]


def _masked(files: Mapping[str, render.Composed]) -> dict[str, render.Composed]:
    return {path: render.Composed(redact.text(one.text)) for path, one in files.items()}


# --- decide -----------------------------------------------------------------------------------------


async def approve(
    store: store_port.ObjectStore,
    bus: bus_port.Bus,
    reader: revisions.Reader,
    project: str,
    memory: str,
    rollouts: Sequence[str] | None,
    *,
    reason: str,
    hold: int | None = None,
) -> Approved:
    """Let held or rejected rollouts in, with what their holds say.

    `rollouts` None: all that wait and may. `hold`: the number that the person saw. Raises `errors.NotFound`, and
    `errors.Refused` where a named one has what nobody may let pass, or is held anew since.
    """
    head = await reader.head(project, memory)
    names = _meant(head, project, memory, rollouts)
    held = head.body["held"]
    if hold is not None and [held[name]["hold"] for name in names] != [hold]:
        raise errors.Refused(f"{', '.join(names)} is not held by {hold} any more", hint="look at it again")
    left: dict[str, str] = {}
    for name in names:
        try:
            await _must_be_soft(store, reader, head, name)
        except errors.Refused as exc:
            if rollouts is not None:
                raise
            left[name] = exc.message
    names = [name for name in names if name not in left]
    if not names:
        raise errors.Refused(
            f"none of the {len(left)} that wait may be let in", hint="`runlore review show` says why"
        )
    keys = {name: approvals.keys_of(held[name]) for name in names}
    approves = {name: some for name, some in keys.items() if some}
    let_pass = {
        name: sorted({kind for kind, _, key in held[name].get("violations", ()) if key in keys[name]})
        for name in names
    }
    await consolidate.release(
        store, bus, reader, project, memory, names, reason=reason, approves=approves, seen=head
    )
    return Approved(names, let_pass, left)


def _meant(head: heads.Head, project: str, memory: str, given: Sequence[str] | None) -> list[str]:
    held = head.body.get("held", {})
    names = names_of(held, given) if given is not None else approvals.waiting(held)
    if not names:
        raise errors.NotFound(f"{project}/{memory} holds nothing")
    _must_be_held(head, project, memory, names)
    return names


def _must_be_held(head: heads.Head, project: str, memory: str, names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in head.body.get("held", {})]
    if unknown:
        raise errors.NotFound(
            f"{project}/{memory} does not hold {', '.join(unknown)}",
            hint="`runlore review` lists what it holds",
        )


async def _must_be_soft(
    store: store_port.ObjectStore, reader: revisions.Reader, head: heads.Head, name: str
) -> None:
    entry = head.body["held"][name]
    if entry.get("violations_total", 0) > approvals.VIOLATIONS_KEPT_MAX:
        raise errors.Refused(
            f"{name} has {entry['violations_total']} violations; at most {approvals.VIOLATIONS_KEPT_MAX} may pass",
            hint="`runlore review reject` keeps it out",
        )
    if all(kind in guards.SOFT for kind, _, _ in entry.get("violations", ())):
        return
    # The guards, or what redaction finds, may have changed since.
    judged = await _judged(store, reader, head, name)
    hard = sorted({one.kind for one in judged.violations if one.kind not in guards.SOFT})
    if hard:
        raise errors.Refused(
            f"{name} can not be let in: {', '.join(hard)} harms whoever reads it, whatever was decided",
            hint="`runlore review show` says where; `runlore review reject` keeps it out",
        )


async def reject(
    store: store_port.ObjectStore,
    bus: bus_port.Bus,
    reader: revisions.Reader,
    project: str,
    memory: str,
    rollouts: Sequence[str] | None,
    *,
    reason: str,
) -> list[str]:
    """Keep held rollouts out as they stand now; their names. Records and snapshots stay, and approving undoes it.

    One move of the head, which gives each hold a new number: an approval that was made before lifts nothing.
    Raises `errors.NotFound`, and `errors.Refused` past `REJECTED_MAX`.
    """
    for restart in range(summarize.RESTARTS_MAX):
        head = await reader.head(project, memory)
        names = _meant(head, project, memory, rollouts)
        held = dict(head.body["held"])
        for name in names:
            seen = await summarize.read(store, project, memory, name)
            held[name] = approvals.rejected(
                held[name], counter=seen.counter, reason=redact.text(reason), number=head.counter + 1
            )
        if len(held) - len(approvals.waiting(held)) > REJECTED_MAX:
            raise errors.Refused(
                f"{project}/{memory} has rejected {REJECTED_MAX} rollouts, as many as it may"
            )
        try:
            head = await heads.move(store, head, {"held": held}, fmt=revisions.HEAD_FORMAT)
        except errors.HeadMoved:
            await clock.sleep(0.005 * restart * clock.jitter())
            continue
        bell = models.Changed(kind="memory", project=project, memory=memory, counter=head.counter)
        await record.ring(bus, [bell])
        return names
    raise errors.StoreUnavailable(f"the head of memory {project}/{memory} is contended")
