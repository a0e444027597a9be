"""Chains: logs in which no entry can be altered, removed, added or moved without that being found.

An entry is an object of its own, put if absent under its number and its SHA-256, and holds the hash of the one before.
Then a head is moved to (number, hash), by compare-and-set: what the head leads to is the log. Who loses the race for a
number leaves an entry that nobody names: it is not in the log. Whose logs these are: `adminlog.py`, `acts.py`.

What a chain proves: an entry that the head leads to is as it was written, and stands where it stood. A head that was
set back is found while the entries that it led to stay: they follow each other, and those of writers that lost follow
the chain. What it does not: whoever may write every object of it can write a whole other one. Against that somebody
writes down (number, hash) elsewhere, and asks for it (`verify`).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from runlore import errors
from runlore.commit import puts
from runlore.events import envelope
from runlore.store import port

READ_BATCH = 200
"""Entries that are read together, by whoever goes back far enough."""
READ_GROWS = 4
KEPT_MAX = 20_000
"""Entries that a service remembers: some 20 MB."""
BLOCK = 1_000
"""Entries whose names begin alike, so that one LIST finds them."""


class Named(Protocol):
    """A place in a chain: an entry, and so all before it; number 0 before the first."""

    @property
    def number(self) -> int: ...
    @property
    def sha256(self) -> str: ...


@dataclass(frozen=True)
class Tip:
    """One such place."""

    number: int = 0
    sha256: str = ""


START = Tip()
"""Before the first entry."""


class Entry(Protocol):
    """What every entry says."""

    @property
    def number(self) -> int: ...
    @property
    def previous(self) -> str: ...


E = TypeVar("E", bound=Entry)
OnProgress = Callable[[int, str], None]


@dataclass
class Verified:
    """What a look at a whole chain found. `beside`: entries that lost a race; they were never in the log."""

    entries: int
    tip: Named
    beside: int = 0
    problems: list[str] = field(default_factory=list)


class Kept(Generic[E]):
    """Entries that were read: none ever changes. The oldest of them go first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, E] = OrderedDict()

    def get(self, key: str) -> E | None:
        return self._entries.get(key)

    def put(self, key: str, entry: E) -> None:
        self._entries[key] = entry
        while len(self._entries) > KEPT_MAX:
            self._entries.popitem(last=False)


@dataclass(frozen=True)
class Chain(Generic[E]):
    """One log: where its entries lie, how messages call it, how many entries one move of its head may add."""

    prefix: str
    name: Callable[[int, str], str]
    """The key of an entry by number and hash: so a LIST is in order, and a writer that lost harms nobody."""
    what: str
    parse: Callable[[str, bytes], E]
    """An entry by its key and bytes. Raises `errors.Corrupt`."""
    entries_of_a_move_max: int = 1

    def key(self, place: Named) -> str:
        return self.name(place.number, place.sha256)

    async def put(self, store: port.ObjectStore, place: Named, raw: bytes) -> None:
        """Put an entry, before the head names it."""
        await puts.once(store, self.key(place), raw, what=f"an entry of {self.what}")

    async def newest_first(
        self, store: port.ObjectStore, tip: Named, kept: Kept[E] | None = None
    ) -> AsyncIterator[E]:
        """Every entry of the chain that ends in `tip`. Raises `errors.Corrupt` where one is missing or altered."""
        reader = Reader(self, store, kept)
        place: Named = tip
        while place.number:
            entry = await reader.at(place)
            yield entry
            place = Tip(place.number - 1, entry.previous)
        if place.sha256:
            raise errors.Corrupt(f"the first entry of {self.what} says that there was one before it")

    async def holds(self, store: port.ObjectStore, tip: Named, wanted: Named) -> bool:
        """Whether the chain that ends in `tip` has the entry `wanted`."""
        place: Named = tip
        reader = Reader(self, store)
        while place.number > wanted.number:
            place = Tip(place.number - 1, (await reader.at(place)).previous)
        return (place.number, place.sha256) == (wanted.number, wanted.sha256)

    async def verify(
        self,
        store: port.ObjectStore,
        read_tip: Callable[[], Awaitable[Named]],
        expected: Named | None = None,
        *,
        seen: Sequence[Named] = (),
        on_entry: Callable[[E], None] = lambda entry: None,
        on_progress: OnProgress = lambda count, what: None,
    ) -> Verified:
        """Look at every entry. `expected`: one that somebody wrote down, `seen`: those that another log names; the
        chain must still hold them."""
        # Listed before the head is read: whatever is there then is at most one move past it, also on a busy deployment.
        names = await self.names(store)
        try:
            out = Verified(0, await read_tip())
        except errors.Corrupt as exc:
            return Verified(0, START, problems=[exc.message])
        # Hashes by number: of a chain there is one each.
        inside: dict[int, str] = {0: ""}
        place: Named = out.tip
        try:
            async for entry in self.newest_first(store, out.tip):
                out.entries += 1
                inside[place.number] = place.sha256
                place = Tip(entry.number - 1, entry.previous)
                on_entry(entry)
                on_progress(out.entries, self.what)
        except errors.Corrupt as exc:
            out.problems.append(exc.message)
        if expected is not None and inside.get(expected.number) != expected.sha256:
            out.problems.append(
                f"{self.what} does not hold the entry {expected.number} that was written down"
            )
        gone = [one.number for one in seen if one.number and inside.get(one.number) != one.sha256]
        if gone:
            out.problems.append(f"{self.what} does not hold the entry {max(gone)} that another log has seen")
        beside = [
            key
            for number, listed in names.items()
            for key in listed
            if number not in inside or key != self.key(Tip(number, inside[number]))
        ]
        if out.problems:
            # Where the chain is broken nothing can be said of what lies beside it.
            return out
        out.beside = len(beside)
        out.problems += await self._beside(store, inside, beside)
        return out

    async def _beside(
        self, store: port.ObjectStore, inside: Mapping[int, str], beside: Sequence[str]
    ) -> list[str]:
        """What is wrong with entries that are in no chain: those of a writer that lost follow one of the chain, and
        are no more than one move adds. Others were in it."""
        follow: dict[str, Entry] = {}
        try:
            for at in range(0, len(beside), READ_BATCH):
                batch = beside[at : at + READ_BATCH]
                for key, stored in zip(batch, await store.get_many(batch), strict=True):
                    if stored is not None:
                        follow[key] = self.parse(key, stored.body)
        except errors.Corrupt as exc:
            return [exc.message]
        problems = []
        for key in sorted(follow):
            entry, depth = follow[key], 1
            while depth < self.entries_of_a_move_max and inside.get(entry.number - 1) != entry.previous:
                name = self.key(Tip(entry.number - 1, entry.previous))
                # A LIST may have passed a place before the entry was put there.
                if name not in follow and (stored := await store.get(name)) is not None:
                    follow[name] = self.parse(name, stored.body)
                if name not in follow:
                    break
                entry, depth = follow[name], depth + 1
            if inside.get(entry.number - 1) != entry.previous:
                number = follow[key].number
                problems.append(
                    f"the entry {number} of {self.what} was in it, and is not: the head was set back"
                )
                break
        return problems

    async def names(self, store: port.ObjectStore, beginning: str = "") -> dict[int, list[str]]:
        """Number → the keys with it; of those numbers alone that begin so."""
        found: dict[int, list[str]] = {}
        async for row in store.list(f"{self.prefix}{beginning}"):
            number = row.key.rpartition("/")[2].partition("-")[0]
            if number.isascii() and number.isdigit():
                found.setdefault(int(number), []).append(row.key)
        return found


class Reader(Generic[E]):
    """Reads entries for somebody who goes back: one alone, and ever more together while they are asked in a row."""

    def __init__(self, chain: Chain[E], store: port.ObjectStore, kept: Kept[E] | None = None) -> None:
        self._chain, self._store, self._kept = chain, store, kept
        self._names: dict[int, dict[int, list[str]]] = {}
        self._ahead: dict[str, port.Stored | None] = {}
        self._last, self._together = 0, 1

    async def at(self, place: Named) -> E:
        """The entry at a place. Raises `errors.Corrupt`."""
        key = self._chain.key(place)
        entry = self._kept.get(key) if self._kept is not None else None
        if entry is None:
            if key not in self._ahead:
                await self._read(place, key)
            stored = self._ahead.get(key)
            if stored is None:
                raise errors.Corrupt(f"the entry {place.number} of {self._chain.what} is missing", key=key)
            entry = self._chain.parse(key, stored.body)
            if self._kept is not None:
                self._kept.put(key, entry)
        self._last = place.number
        return entry

    async def _read(self, place: Named, key: str) -> None:
        in_a_row = place.number == self._last - 1
        self._together = min(self._together * READ_GROWS, READ_BATCH) if in_a_row else 1
        wanted = [key]
        for number in range(place.number - 1, max(0, place.number - self._together), -1):
            # Also those that lost a race: which one is in the chain, the entry after it says.
            wanted += await self._named(number)
        self._ahead = dict(zip(wanted, await self._store.get_many(wanted), strict=True))

    async def _named(self, number: int) -> list[str]:
        block = number // BLOCK
        if block not in self._names:
            self._names = {block: await self._chain.names(self._store, f"{block:09d}")}
        return self._names[block].get(number, [])


def body_of(key: str, raw: bytes, *, fmt: str, what: str) -> dict[str, Any]:
    """What an entry says, without its format, if its bytes are those of its name. Raises `errors.Corrupt`."""
    number, _, sha256 = key.rpartition("/")[2].removesuffix(".json").partition("-")
    try:
        body = envelope.kept(raw)
        whole = hashlib.sha256(raw).hexdigest() == sha256
        if whole and body.pop("format") == fmt and body["number"] == int(number):
            return dict(body)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise errors.Corrupt(f"the entry {key} of {what} is not what was written", key=key)


def parsed(text: str) -> Tip | None:
    """A place as it is written down, `N:SHA256`; None where it is none."""
    number, _, sha256 = text.partition(":")
    if number.isascii() and number.isdigit() and len(number) <= 12 and sha256:
        return Tip(int(number), sha256)
    return None


def text_of(place: Named) -> str:
    return f"{place.number}:{place.sha256}"


def place_of(value: Any) -> Tip:
    """A place in the body of a head or an entry. Raises `ValueError`, `KeyError` or `TypeError`."""
    if not isinstance(value, Mapping) or type(value["number"]) is not int:
        raise TypeError
    return Tip(value["number"], str(value["sha256"]))
