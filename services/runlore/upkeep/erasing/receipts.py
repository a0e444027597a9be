"""Receipts: what an erasure did, with its two dates and what is not ours to erase. No text of what is gone. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runlore import errors
from runlore.commit import erasures
from runlore.events import envelope, ids
from runlore.upkeep.erasing import eraser

FORMAT = "runlore.erasure-receipt/1"
KEPT = ("id", "project", "scope", "name", "memory", "snapshots", "strict", "asked_at", "state")
REPLAYED = ("targets", "row", "removed", "revisions", "seeded", "left")
"""What else an entry is made of again."""
ELSEWHERE = (
    "copies that agents and clients fetched: seeds, restored workspaces, caches, outboxes",
    "what a model's provider keeps of what it was asked",
    "backups, and versions that a bucket keeps (a lifecycle rule ends them)",
    "logs and traces of others; text that a later run repeated in its own record",
)


def of(body: Mapping[str, Any]) -> dict[str, Any]:
    """The receipt of an erasure's entry."""
    due = eraser.next_pass(body)
    left = dict(body["left"])
    until = left.pop("bus messages until", None)
    elsewhere = [f"messages on the bus, which keeps them until {until}"] if until else []
    return {
        "format": FORMAT,
        **{name: body[name] for name in KEPT},
        "first_at": body["first_at"],
        "second_at": body["second_at"],
        "next_pass_at": due.isoformat(timespec="seconds") if due else None,
        "targets": body["targets"],
        # Of rollouts that went whole, by alias: after `forget --again` `explain` and `wait` know what became of them.
        "runs": body["runs"],
        "row": body["row"],
        "removed": body["removed"],
        "revisions": body.get("revisions") or {},
        "seeded": body["seeded"],
        "left": left,
        "elsewhere": [*elsewhere, *ELSEWHERE],
    }


def parse(raw: bytes | str) -> dict[str, Any]:
    """A receipt as it was printed or kept. Raises `errors.InvalidInput`."""
    try:
        body = envelope.kept(raw)
        body = body.get("receipt", body)
        if body["format"] != FORMAT or body["scope"] not in erasures.SCOPES:
            raise ValueError
        if not {*KEPT, *REPLAYED} <= body.keys():
            raise ValueError
        ids.check_name(body["project"], "project")
        for one in body["targets"]:
            erasures.target_of(one)
        if body["row"]:
            erasures.Row(**body["row"])
        return dict(body)
    except (ValueError, KeyError, TypeError, AttributeError, errors.InvalidId):
        raise errors.InvalidInput(
            "this is no receipt of an erasure", hint="`runlore forget --receipt ID --json` prints one"
        ) from None


def as_entry(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """An entry that does again what a receipt says was done: for a store that was restored from before."""
    kept = {name: receipt[name] for name in KEPT if name not in ("id", "project", "state")}
    return {
        **kept,
        "state": erasures.OPEN,
        "row": receipt["row"],
        "targets": receipt["targets"],
        "runs": receipt.get("runs", []),
        "claims": [],
        "removed": receipt["removed"],
        "seeded": receipt["seeded"],
        "left": receipt["left"],
        "revisions": receipt["revisions"],
        "first_at": None,
        "second_at": None,
    }
