"""Retention: rollouts whose last run ended longer ago than they are kept are erased, by the same path as `forget`.

So a replay brings none back: the rollout's head stays, and says that all of it was erased. A rollout whose time is not
known counts from when its head last moved.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from dataclasses import dataclass

from runlore import clock
from runlore.commit import erasures, heads, keys, rollouts
from runlore.consumers import summarize
from runlore.store import port

DAYS_MAX = 36_500
HEADS_AT_ONCE = 256
BATCH = 500
"""Rollouts of one erasure: a pass over more would hold its memory's head up for long."""


@dataclass(frozen=True)
class Due:
    """A rollout past its days."""

    memory: str
    rollout: str
    ended_at: str


async def due(store: port.ObjectStore, project: str, *, days: int) -> AsyncIterator[Due]:
    """The rollouts of a project that are kept no longer. Reads every rollout's head."""
    oldest = clock.now() - dt.timedelta(days=days)
    batch: list[str] = []
    async for row in store.list(f"{project}/{keys.ROLLOUTS}/"):
        batch.append(row.key)
        if len(batch) == HEADS_AT_ONCE:
            for one in await _of(store, batch, oldest):
                yield one
            batch = []
    for one in await _of(store, batch, oldest):
        yield one


async def _of(store: port.ObjectStore, batch: list[str], oldest: dt.datetime) -> list[Due]:
    found = []
    for key, stored in zip(batch, await store.get_many(batch), strict=True):
        body = heads.parse(key, stored, fmt=rollouts.HEAD_FORMAT).body
        if not body or erasures.is_whole(body):
            continue
        ended = body.get("updated_at")
        if ended in (None, summarize.UNKNOWN):
            ended = body["moved_at"]
        if dt.datetime.fromisoformat(str(ended)) < oldest:
            found.append(Due(str(body["memory"]), str(body["rollout"]), str(ended)))
    return found


def targets(found: list[Due]) -> list[erasures.Target]:
    return [erasures.Target(one.memory, one.rollout) for one in found]
