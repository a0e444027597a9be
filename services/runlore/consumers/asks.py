"""Asks: what waits for a model in each memory, and when it is due, as a LIST of the marks tells it.

An ask never changes, so each is read once and remembered while it stands; what is remembered decides nothing that the
store does not say.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence

from runlore import clock, errors
from runlore.commit import marks
from runlore.models import due
from runlore.store import port

PolicyOf = Callable[[str, str], due.Policy]
Verdicts = dict[tuple[str, str], due.Verdict]


class Asks:
    """The asks of one kind, of all memories, as one process sees them."""

    def __init__(self, store: port.ObjectStore, kind: str) -> None:
        self._store, self._kind = store, kind
        self._known: dict[str, marks.Mark] = {}

    async def standing(self, project: str | None = None) -> dict[tuple[str, str], list[marks.Mark]]:
        """(Project, memory) → its oldest asks, as many as are judged, oldest first."""
        listed: dict[tuple[str, str], list[str]] = {}
        for one in [project] if project is not None else await marks.projects(self._store):
            async for row in self._store.list(f"{one}/{self._kind}/"):
                named = listed.setdefault((one, row.key.split("/")[3]), [])
                if len(named) < due.ASKS_MAX:
                    named.append(row.key)
        wanted = [key for named in listed.values() for key in named]
        fresh = [key for key in wanted if key not in self._known]
        read = await self._store.get_many(fresh)
        known = {key: self._known[key] for key in wanted if key in self._known}
        known |= {
            key: _parsed(key, stored.body)
            for key, stored in zip(fresh, read, strict=True)
            if stored is not None
        }
        # What stands no more is forgotten; of one project alone the others are not known.
        self._known = known if project is None else {**self._known, **known}
        found = {one: [known[key] for key in named if key in known] for one, named in listed.items()}
        return {one: asks for one, asks in found.items() if asks}

    async def verdicts(self, policy_of: PolicyOf) -> Verdicts:
        """Every memory with asks, and whether they are due."""
        now = clock.now()
        return {one: due.is_due(asks, policy_of(*one), now) for one, asks in (await self.standing()).items()}


def _parsed(key: str, raw: bytes) -> marks.Mark:
    """The ask; one that is none is due, so that whoever works its memory says so, and the others go on."""
    try:
        return marks.parse(key, raw)
    except errors.Corrupt:
        return marks.Mark(key, (), "")


def next_at(verdicts: Sequence[due.Verdict]) -> dt.datetime | None:
    """When the first of those that are not due becomes so by time alone."""
    return min((one.at for one in verdicts if not one.is_due and one.at is not None), default=None)
