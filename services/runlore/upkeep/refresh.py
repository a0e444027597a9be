"""Refresh: what waits until it is due is worked now. One mark for each memory, which every worker sees.

The mark is an ask that names no rollout: whoever judges the asks beside it finds them due, and it is taken away with
the last of those that stood before it. So a crash loses nothing, and asking twice costs one more look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runlore.commit import keys, marks
from runlore.consumers import asks
from runlore.models import due
from runlore.store import port


@dataclass(frozen=True)
class Asked:
    """A memory whose asks were made due."""

    project: str
    memory: str
    asks: int
    """How many stood."""
    mark: str
    """The key of the mark; gone once they are worked."""


async def refresh(store: port.ObjectStore, project: str, memory: str | None = None) -> list[Asked]:
    """Make everything due that waits for a model in a memory, or in all of a project; what that was."""
    out = []
    for kind in due.KINDS.values():
        for (at, name), found in sorted((await asks.Asks(store, kind).standing(project)).items()):
            if at == project and memory in (None, name):
                mark = await marks.put(store, project, name, (), kind=kind, is_refresh=True)
                count = sum(not one.is_refresh for one in found)
                out.append(Asked(project, name, count, mark))
    return out


async def left(store: port.ObjectStore, wanted: Sequence[Asked]) -> Mapping[str, int]:
    """Key of its mark → asks that still stand before it, of each that is not worked yet."""
    found = await store.get_many([one.mark for one in wanted])
    out = {}
    for one, stored in zip(wanted, found, strict=True):
        if stored is not None:
            before = one.mark.rpartition("/")[0] + "/"
            out[one.mark] = len([row async for row in store.list(before) if row.key < one.mark])
    return out


async def unconsolidated(store: port.ObjectStore, one: Asked) -> bool:
    """Whether marks of the memory stand: what a model said is put under one before its ask is taken away."""
    async for _ in store.list(keys.marks(one.project, one.memory)):
        return True
    return False
