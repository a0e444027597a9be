"""The log of what was administered: who, what, when, why; a chain of hashes whose newest link the head names.

An entry is an object of its own, put if absent under its number and its SHA-256, and holds the hash of the one before.
The head of the organization is moved to (number, hash) in the same write that makes the change: so no change is without
its entry and no entry without its change, whoever dies when. Who loses the race for a number leaves an entry that
nobody names: it is not in the log.

What that proves: an entry of the chain that was altered, removed, inserted or moved is found, and so is a head that was
set back while later entries stayed. What it does not: whoever may write every object below `_operations/admin/` can
write a whole other chain. Against that somebody writes down (number, hash) elsewhere, and asks for it (`verify`).
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from runlore import errors
from runlore.commit import keys, puts
from runlore.events import envelope
from runlore.store import port
from runlore.upkeep.organization import Tip

FORMAT = "runlore.adminlog/1"
READ_BATCH = 200
KEPT_MAX = 20_000
"""Entries that a service remembers: some 20 MB."""
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


@dataclass
class Verified:
    """What a look at the whole chain found. `beside`: entries that lost a race; they were never in the log."""

    entries: int
    tip: Tip
    beside: int = 0
    problems: list[str] = field(default_factory=list)


async def put(store: port.ObjectStore, entry: Entry) -> None:
    """Put an entry, before the head names it."""
    tip = entry.tip
    await puts.once(
        store, keys.log_entry(tip.number, tip.sha256), entry.raw, what="an entry of the administration's log"
    )


def parse(key: str, raw: bytes) -> Entry:
    """An entry, if its bytes are those of its name. Raises `errors.Corrupt`."""
    number, _, sha256 = key.rpartition("/")[2].removesuffix(".json").partition("-")
    try:
        body = json.loads(raw)
        if body.pop("format") == FORMAT and hashlib.sha256(raw).hexdigest() == sha256:
            entry = Entry(**body)
            if entry.number == int(number):
                return entry
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise errors.Corrupt(f"the entry {key} of the log is not what was written", key=key)


class Kept:
    """Entries that were read: none ever changes. The oldest of them go first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, Entry] = OrderedDict()

    def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def put(self, key: str, entry: Entry) -> None:
        self._entries[key] = entry
        while len(self._entries) > KEPT_MAX:
            self._entries.popitem(last=False)


async def newest_first(store: port.ObjectStore, tip: Tip, kept: Kept | None = None) -> AsyncIterator[Entry]:
    """Every entry of the chain that ends in `tip`. Raises `errors.Corrupt` where a link is missing or altered."""
    names: dict[int, list[str]] | None = None
    ahead: dict[str, port.Stored | None] = {}
    number, sha256 = tip.number, tip.sha256
    while number:
        key = keys.log_entry(number, sha256)
        entry = kept.get(key) if kept is not None else None
        if entry is None:
            if key not in ahead:
                names = await _names(store) if names is None else names
                ahead = await _ahead(store, names, number)
            stored = ahead.get(key)
            if stored is None:
                raise errors.Corrupt(f"the entry {number} of the log is missing", key=key)
            entry = parse(key, stored.body)
            if kept is not None:
                kept.put(key, entry)
        yield entry
        number, sha256 = number - 1, entry.previous
    if sha256:
        raise errors.Corrupt("the first entry of the log says that there was one before it")


async def _ahead(
    store: port.ObjectStore, names: Mapping[int, list[str]], number: int
) -> dict[str, port.Stored | None]:
    """The entries from `number` back, so many as are read together; also those that lost a race."""
    wanted = [name for one in range(number, max(0, number - READ_BATCH), -1) for name in names.get(one, ())]
    return dict(zip(wanted, await store.get_many(wanted), strict=True))


async def holds(store: port.ObjectStore, tip: Tip, wanted: Tip) -> bool:
    """Whether the chain that ends in `tip` has the link `wanted`."""
    number, sha256 = tip.number, tip.sha256
    while number > wanted.number:
        key = keys.log_entry(number, sha256)
        stored = await store.get(key)
        if stored is None:
            raise errors.Corrupt(f"the entry {number} of the log is missing", key=key)
        number, sha256 = number - 1, parse(key, stored.body).previous
    return (number, sha256) == (wanted.number, wanted.sha256)


async def verify(
    store: port.ObjectStore, read_tip: Callable[[], Awaitable[Tip]], expected: Tip | None = None
) -> Verified:
    """Look at every link. `expected`: one that somebody wrote down; the chain must still hold it."""
    # Listed before the head is read: whatever is there then is at most one past it, also on a busy deployment.
    names = await _names(store)
    out = Verified(0, await read_tip())
    seen: set[str] = set()
    was_there = expected is None
    try:
        async for entry in newest_first(store, out.tip):
            out.entries += 1
            seen.add(keys.log_entry(entry.number, entry.tip.sha256))
            was_there = was_there or entry.tip == expected
    except errors.Corrupt as exc:
        out.problems.append(exc.message)
    if not was_there and expected is not None:
        out.problems.append(f"the log does not hold the entry {expected.number} that was written down")
    out.beside = len({name for listed in names.values() for name in listed} - seen)
    # A writer numbers its entries from one after the head's: what lies further on was put when the head was, too.
    late = [number for number in names if number > out.tip.number + ENTRIES_OF_A_CHANGE_MAX]
    if late:
        out.problems.append(
            f"there is an entry {max(late)}, and the head names {out.tip.number}: it was set back"
        )
    return out


async def _names(store: port.ObjectStore) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    async for row in store.list(keys.log()):
        number = row.key.rpartition("/")[2].partition("-")[0]
        if number.isascii() and number.isdigit():
            found.setdefault(int(number), []).append(row.key)
    return found
