"""Whose an event is, by its own words: also of one that no stage could read, as far as it says anything. Pure.

An erasure goes by it: what was refused is kept as a dead letter, and holds as much of a run as what was not.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runlore import errors
from runlore.commit import erasures, heads
from runlore.consumers import summarize
from runlore.events import ids

if TYPE_CHECKING:
    from runlore.consumers.record import Incoming

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class Told:
    """What an event says of itself."""

    project: str
    memory: str | None
    rollout: str
    """Its alias."""
    runs: tuple[str, ...]
    """Aliases: what it is called in its rollout, then the run's, which an edit names besides."""
    subject: str | None
    """Its alias."""
    time: str
    claims: frozenset[str] = frozenset()

    def is_erased(self, head: heads.Head, rows: Sequence[erasures.Row]) -> bool:
        """Whether it was erased, as its rollout's head or the ledger's rows say: an edit goes with its run."""
        if erasures.is_erased(head.body, *self.runs):
            return True
        return any(row.holds(self.memory or "", self.subject, self.time) for row in rows)


def of(incoming: Incoming) -> Told:
    from runlore.consumers import record

    data = incoming.data
    return Told(
        data.project,
        data.memory,
        data.rollout.alias,
        (incoming.run, ids.alias(data.run_id)),
        summarize.subject_of(data.subject),
        incoming.event.time,
        frozenset(record.claims_of(data)),
    )


def by_one_that_is_broken(headers: Iterable[tuple[str, bytes]], value: bytes | None) -> Told | None:
    """What a message says that is no event; None where it names no project, or no run."""
    try:
        said = json.loads(value or b"")
        inner = said.get("data")
    except (ValueError, RecursionError, AttributeError):
        return None
    time = said.get("time") if isinstance(inner, dict) else None
    said = inner if isinstance(inner, dict) else said
    given = {name: text for name, text in said.items() if isinstance(text, str) and text.strip()}
    project, memory = _name(given.get("project")), _name(given.get("memory"))
    if project is None or "run_id" not in given:
        return None
    rollout = ids.resolve_rollout(
        conversation_id=given.get("conversation_id"),
        session_id=given.get("session_id"),
        group_id=given.get("group_id"),
        run_id=given["run_id"],
    )
    found = {name.lower(): raw for name, raw in headers}
    return Told(
        project,
        memory,
        rollout.alias,
        tuple(ids.alias(given[name]) for name in ("edit_id", "run_id") if name in given),
        summarize.subject_of(given.get("subject")),
        time if isinstance(time, str) else (found.get("ce_time") or b"").decode("utf-8", "replace"),
        frozenset(_claims(said)),
    )


def _name(text: str | None) -> str | None:
    with contextlib.suppress(errors.InvalidId):
        return ids.check_name(text or "", "it")
    return None


def _claims(said: Mapping[str, Any]) -> Iterable[str]:
    """The hashes of claims, wherever an event of ours may name one."""
    rows = [said.get("record_claim")]
    for name, field in (("workspaces", "archive"), ("files", "text_claim")):
        listed = said.get(name)
        rows += [
            one.get(field) for one in (listed if isinstance(listed, list) else ()) if isinstance(one, dict)
        ]
    for one in rows:
        sha256 = one.get("sha256") if isinstance(one, dict) else None
        if isinstance(sha256, str) and _SHA256.fullmatch(sha256):
            yield sha256
