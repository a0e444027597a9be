"""Which later runs began from what is erased: by the seed that each record names."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

from runlore.commit import erasures, keys
from runlore.events import envelope
from runlore.store import port
from runlore.upkeep.erasing import rollouts as erasing_rollouts

LISTED_MAX = 1000
"""Runs that a receipt lists; it counts them all."""


async def runs_of(
    store: port.ObjectStore,
    project: str,
    floors: Mapping[str, Sequence[int]],
    targets: Sequence[erasures.Target],
) -> dict[str, Any]:
    """The runs that are kept and whose seed was a revision that is a stub now. Reads the metadata of their records."""
    found: list[dict[str, Any]] = []
    total = 0
    gone = {(one.memory, one.rollout) for one in targets if one.runs is None}
    async for row in store.list(f"{project}/{keys.RECORDS}/"):
        memory, rollout = row.key.split("/")[3:5]
        if not floors or (memory, rollout) in gone:
            continue
        given = ((await erasing_rollouts.meta_of(store, row.key)).get("ids") or {}).get("seed")
        said = seed_of(given)
        if said is None or said[0] not in floors:
            continue
        first, last = floors[said[0]]
        if first <= said[1] <= last:
            total += 1
            run, attempt = keys.record_name(row.key)
            one = {"memory": memory, "rollout": rollout, "run": run, "attempt": attempt, "revision": said[1]}
            found += [one] if len(found) < LISTED_MAX else []
    return {"total": total, "runs": found}


def seed_of(seed_id: Any) -> tuple[str, int] | None:
    """(Memory, revision) that a seed's id says, whoever made it; None where it says none."""
    if not isinstance(seed_id, str):
        return None
    text = seed_id.removeprefix("s1.").partition(".")[0]
    try:
        said = envelope.kept(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        return (str(said[1]), said[2]) if type(said[2]) is int else None
    except (ValueError, binascii.Error, IndexError, TypeError, KeyError):
        return None
