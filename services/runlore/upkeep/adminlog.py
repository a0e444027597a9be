"""The log of what was administered: who, what, when, why; a chain (`upkeep/chain.py`), named by the organization.

The head of the organization is moved to the newest entry in the same write that makes the change: so no change is
without its entry and no entry without its change, whoever dies when.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from runlore import errors
from runlore.commit import keys
from runlore.events import envelope
from runlore.store import port
from runlore.upkeep import chain
from runlore.upkeep.organization import Tip

FORMAT = "runlore.adminlog/1"
WHAT = "the log of what was administered"
ENTRIES_OF_A_CHANGE_MAX = 3


@dataclass(frozen=True)
class Event:
    """What is about to change: its type (one of OpenAI's audit events), where, of what, and how. No secret."""

    type: str
    target: str
    project: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One link. `id` is drawn, so that no two entries are equal."""

    number: int
    previous: str
    id: str
    at: str
    by: Mapping[str, Any]
    type: str
    target: str
    project: str | None
    details: Mapping[str, Any]
    reason: str | None

    @property
    def raw(self) -> bytes:
        return envelope.dump({"format": FORMAT, **asdict(self)})

    @property
    def tip(self) -> Tip:
        """The log's newest link once this is it."""
        return Tip(number=self.number, sha256=hashlib.sha256(self.raw).hexdigest())


def parse(key: str, raw: bytes) -> Entry:
    """An entry, if its bytes are those of its name. Raises `errors.Corrupt`."""
    try:
        return Entry(**chain.body_of(key, raw, fmt=FORMAT, what=WHAT))
    except TypeError:
        raise errors.Corrupt(f"the entry {key} of {WHAT} is not what was written", key=key) from None


LOG = chain.Chain(keys.log(), keys.log_entry, WHAT, parse, entries_of_a_move_max=ENTRIES_OF_A_CHANGE_MAX)
newest_first = LOG.newest_first
Kept = chain.Kept[Entry]


async def put(store: port.ObjectStore, entry: Entry) -> None:
    """Put an entry, before the head names it."""
    await LOG.put(store, entry.tip, entry.raw)
