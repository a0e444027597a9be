"""Index: doorbells make the index read the heads that they name. A lost doorbell costs nothing."""

from __future__ import annotations

from collections.abc import Sequence

from runlore import errors
from runlore.bus import port as bus_port
from runlore.commit import keys, lines
from runlore.events import envelope, ids, models
from runlore.lookup import index as lookup_index
from runlore.store import port as store_port

HEADS_PER_SECOND = 1000 / 3
"""How many heads are listed, on average: a page of 1,000 each three seconds is 28,800 LISTs a day."""


class IndexStage:
    """Takes batches of messages of the topic `changed`."""

    def __init__(self, store: store_port.ObjectStore, index: lookup_index.Index) -> None:
        self._store = store
        self._index = index
        self._listed, self._listed_into = 0, 0

    async def process(self, messages: Sequence[bus_port.Message]) -> int:
        """Apply the heads that these doorbells name; how many were newer than their rows.

        Of a bell for what the rows hold already nothing is read: a replica that begins, and so hears every bell
        that the topic keeps, has it all from its LIST.
        """
        named: dict[str, int] = {}
        for message in messages:
            found = bell(message)
            if found is not None and (key := head_key(found)):
                named[key] = max(named.get(key, 0), found.counter)
        return await lookup_index.take_in(self._index, self._store, self._index.behind(named))

    async def reconcile(self) -> lookup_index.Reconciled:
        """Compare a LIST with the rows: at start and on a schedule."""
        found = await lookup_index.reconcile(self._index, self._store)
        self._listed, self._listed_into = found.listed, self._index.files
        return found

    def list_seconds(self, *, least: float, most: float) -> float:
        """How long it may be from the last LIST to the next, while doorbells are heard.

        A LIST costs by what there is, and bells bring what changes: a larger store is listed less often, so that a
        day's LISTs stay the same. A file that was begun anew lacks what the last LIST brought.
        """
        self._index.follow()
        if self._index.files != self._listed_into:
            return least
        return max(least, min(most, self._listed / HEADS_PER_SECOND))

    def held(self) -> int:
        """Rollouts held for review, in all memories."""
        return self._index.held()


def bell(message: bus_port.Message) -> models.Changed | None:
    """The doorbell in a message; None for one that is not: it is a hint, so a broken one is no loss."""
    try:
        event = envelope.parse(message.headers, message.value)
        envelope.check_type(event, models.CHANGED)
        found = models.parse_data(models.Changed, event.data)
        ids.check_name(found.project, "project")
        ids.check_name(found.memory, "memory")
        return found
    except errors.Poison:
        return None


def head_key(found: models.Changed) -> str | None:
    """The key of the head that a doorbell names; None for a mark's, which is for consolidation."""
    if found.kind == "mark":
        return None
    if found.kind == "snapshot":
        names = [name for name in (found.rollout, found.agent or lines.MAIN) if name and _is_alias(name)]
        return keys.snapshot_head(found.project, *names) if len(names) == 2 else None
    if found.kind == "rollout" and found.rollout:
        if not _is_alias(found.rollout):
            return None
        return keys.rollout_head(found.project, found.memory, found.rollout)
    return keys.memory_head(found.project, found.memory)


def _is_alias(name: str) -> bool:
    return ids.alias(name) == name or name.startswith(ids.ALIAS_PREFIX)
