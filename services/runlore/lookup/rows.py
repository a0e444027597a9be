"""Rows: what the index keeps of each head. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from runlore.commit import heads

ROLLOUT = ("project", "memory", "rollout")
"""What names a row of a rollout."""


def memory_of(head: heads.Head) -> dict[str, Any]:
    body = head.body
    return {
        "project": body["project"],
        "memory": body["memory"],
        "counter": head.counter,
        "revision": int(body.get("revision", 0)),
        "manifest": body.get("manifest"),
        # Those that wait for a person: a rejected one does not.
        "held": sum("rejected" not in one for one in body.get("held", {}).values()),
        "moved_at": body["moved_at"],
    }


def snapshot_of(head: heads.Head) -> dict[str, Any]:
    body = head.body
    return {
        **{name: body[name] for name in ("project", "rollout", "agent", "moved_at")},
        "counter": head.counter,
        "version": int(body.get("version", 0)),
        "ref": body.get("ref"),
        "versions": len(body.get("versions", ())),
        "branches": len(body.get("branches", {})),
        "tags": " ".join(sorted(body.get("tags", {}))),
    }


def rollout_of(head: heads.Head) -> dict[str, Any]:
    body = head.body
    return {
        **{name: body[name] for name in ROLLOUT},
        "kind": body["kind"],
        "original": body["original"],
        "subject": body.get("subject"),
        "counter": head.counter,
        "runs": sum("edit_of" not in entry for entry in body["runs"].values()),
        "updated_at": body["updated_at"],
        "moved_at": body["moved_at"],
    }


def runs_of(head: heads.Head) -> Iterator[dict[str, Any]]:
    """The runs of a rollout, each attempt a row; and the live edits that they made."""
    where = {name: head.body[name] for name in ROLLOUT}
    for run, entry in head.body["runs"].items():
        common = {**where, "run": run, "ended_at": entry["ended_at"], "edit_of": entry.get("edit_of")}
        yield {**common, "attempt": entry["attempt"], "event": entry["event"], "superseded": 0}
        for attempt, _, event in entry.get("earlier", ()):
            yield {**common, "attempt": attempt, "event": event, "superseded": 1}


def place(time: str) -> str:
    """A time as lists sort by it: an unknown one behind every other."""
    return "" if time == "unknown" else time


def run_place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Where a list of runs stands that ended with this row."""
    return (place(row["ended_at"]), row["memory"], row["rollout"], row["run"], row["attempt"])


RUN_PLACE = (str, str, str, str, int)
