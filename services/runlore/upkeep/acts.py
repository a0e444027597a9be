"""The log of acts: what people did, in one chain for the whole deployment, under a small head of its own.

    the act's `begun` → put it → move the head → the act → its `ended` → put it → move the head

What acts are `audit.py` says, which writes them. An *anchor* is the third kind of entry: what a chain that is too busy
for a head of its own (seeds that were handed out, `seedlog.py`) had come to, so that it can not be cut behind it.

Entries are of human scale, anchors come every few minutes: so each entry names, beside the one before it, the newest
before it that is no anchor, and whoever lists acts goes from one to the next. `latest` is the latest time of all
entries so far: clocks differ, and jump; whoever lists acts since a time stops where all that is left is older.

The logs are each other's witness: the organization's head names what this one had come to when it was changed last, and
anchors name what the log of what was administered had come to. So none can be cut, or taken away, alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runlore import clock, errors
from runlore.commit import heads, keys, puts
from runlore.events import envelope
from runlore.store import port
from runlore.upkeep import chain

FORMAT = "runlore.acts/1"
WHAT = "the log of acts"
BEGUN, ENDED, ANCHOR = "begun", "ended", "anchor"
RESTARTS_MAX = 48
"""Writers that meet follow each other: some ten moves of the head a second is what a store gives."""
WAIT_EXPONENT_MAX = 5


@dataclass(frozen=True)
class Entry:
    """One link. `act` is the newest entry before it that is no anchor; `body` what its kind says."""

    number: int
    previous: str
    kind: str
    act: chain.Tip
    latest: str
    at: str
    body: Mapping[str, Any]


@dataclass(frozen=True)
class State:
    """What the head says: the newest entry, the newest that is no anchor, and the latest time of all."""

    tip: chain.Tip = chain.START
    act: chain.Tip = chain.START
    latest: str = ""


def parse(key: str, raw: bytes) -> Entry:
    """An entry, if its bytes are those of its name. Raises `errors.Corrupt`."""
    body = chain.body_of(key, raw, fmt=FORMAT, what=WHAT)
    try:
        return Entry(
            number=body["number"],
            previous=str(body["previous"]),
            kind=str(body["kind"]),
            act=chain.place_of(body["act"]),
            latest=str(body["latest"]),
            at=str(body["at"]),
            body=dict(body["body"]),
        )
    except (ValueError, KeyError, TypeError):
        raise errors.Corrupt(f"the entry {key} of {WHAT} is not one", key=key) from None


LOG = chain.Chain(keys.acts(), keys.act_entry, WHAT, parse)


async def read(store: port.ObjectStore) -> State:
    """What the log has come to. Raises `errors.Corrupt`."""
    return _state(await heads.read(store, keys.acts_head(), fmt=FORMAT))


def _state(head: heads.Head) -> State:
    if head.etag is None:
        return State()
    try:
        return State(
            chain.place_of(head.body["tip"]), chain.place_of(head.body["act"]), str(head.body["latest"])
        )
    except (ValueError, KeyError, TypeError):
        raise errors.Corrupt(f"the head {head.key} names no entry", key=head.key) from None


async def append(store: port.ObjectStore, kind: str, body: Mapping[str, Any]) -> chain.Tip:
    """Add one entry, once, whatever is lost on the way; its place.

    Raises `errors.StoreUnavailable` or `errors.Blocked`: then it is not in the log, or nobody can say.
    """
    # Drawn, so that no two entries are equal: what the chain holds is ours, or it is not.
    drawn = clock.new_id()
    tried: list[chain.Tip] = []
    for attempt in range(RESTARTS_MAX):
        head = await heads.read(store, keys.acts_head(), fmt=FORMAT)
        state = _state(head)
        if head.etag is None:
            try:
                await _refuse_lost(store)
            except errors.HeadMoved:
                continue
        # Another was first, or a reply was lost, of any try before: then the chain holds its entry.
        for made in tried:
            if await LOG.holds(store, state.tip, made):
                return made
        # A move that did not land can not any more once the head is past what it was made from.
        tried = [made for made in tried if made.number > state.tip.number]
        place, raw, after = _next(state, kind, body, drawn)
        await LOG.put(store, place, raw)
        try:
            await heads.move(store, head, after, fmt=FORMAT)
            return place
        except errors.HeadMoved:
            tried.append(place)
            await puts.wait(min(attempt, WAIT_EXPONENT_MAX))
    raise errors.StoreUnavailable("many write to the log of acts at the same time", hint="try again")


async def _refuse_lost(store: port.ObjectStore) -> None:
    """Raises `errors.HeadLost` where there is no head, and was one: another chain would hide all that this one told.

    `errors.HeadMoved` where there is one by now.
    """
    if any(number > 1 for number in await LOG.names(store)):
        message = f"the head of {WHAT} is gone, and its entries are there"
        raise await heads.gone(store, keys.acts_head(), message, hint="`runlore repair` makes it again")


async def lost(store: port.ObjectStore) -> tuple[str, chain.Tip | None] | None:
    """What of a lost head can be told: words, and the newest entry of a whole chain; None: nothing is lost.

    The newest of them may be of a writer that died before it moved the head: it was about to. Two of one number are of
    two writers that met, and then the one that the log had is not known.
    """
    if (await heads.read(store, keys.acts_head(), fmt=FORMAT)).etag is not None:
        return None
    names = await LOG.names(store)
    if not any(number > 1 for number in names):
        return None
    number = max(names)
    found = []
    for key in names[number]:
        tip = chain.Tip(number, key.rpartition("-")[2].removesuffix(".json"))
        try:
            async for _ in LOG.newest_first(store, tip):
                pass
        except errors.Corrupt as exc:
            return f"its head is gone, and {exc.message}", None
        found.append(tip)
    if len(found) > 1:
        return f"its head is gone, and {len(found)} writers met at entry {number}", None
    return f"its head is gone; {number} entries are whole", found[0]


async def make_head(store: port.ObjectStore, tip: chain.Tip) -> None:
    """Put the head that names `tip`, where there is none."""
    entry = await chain.Reader(LOG, store).at(tip)
    act = entry.act if entry.kind == ANCHOR else tip
    body = {"tip": _told(tip), "act": _told(act), "latest": entry.latest}
    head = await heads.read(store, keys.acts_head(), fmt=FORMAT)
    if head.etag is None:
        await heads.move(store, head, body, fmt=FORMAT, above=tip.number)


def _next(
    state: State, kind: str, body: Mapping[str, Any], drawn: str
) -> tuple[chain.Tip, bytes, dict[str, Any]]:
    """The entry after what the head says: its place and bytes, and what the head says then."""
    at = clock.now_iso()
    latest = max(at, state.latest)
    raw = envelope.dump(
        {
            **{"format": FORMAT, "number": state.tip.number + 1, "previous": state.tip.sha256},
            **{"kind": kind, "act": _told(state.act), "id": drawn, "at": at, "latest": latest},
            "body": dict(body),
        }
    )
    place = chain.Tip(state.tip.number + 1, hashlib.sha256(raw).hexdigest())
    act = state.act if kind == ANCHOR else place
    return place, raw, {"tip": _told(place), "act": _told(act), "latest": latest}


def _told(place: chain.Tip) -> dict[str, Any]:
    return {"number": place.number, "sha256": place.sha256}


async def newest_first(
    store: port.ObjectStore, *, since: str = "", kept: chain.Kept[Entry] | None = None
) -> AsyncIterator[Entry]:
    """Every entry that is no anchor, and nothing from where on all are older than `since` (as `clock.now_iso`).

    Raises `errors.Corrupt` where one is missing or altered.
    """
    place = (await read(store)).act
    reader = chain.Reader(LOG, store, kept)
    while place.number:
        entry = await reader.at(place)
        if entry.latest < since:
            return
        yield entry
        if entry.act.number >= place.number:
            raise errors.Corrupt(f"the entry {place.number} of {WHAT} names a later one as the one before")
        place = entry.act


async def verify(
    store: port.ObjectStore,
    expected: chain.Named | None = None,
    *,
    seen: Sequence[chain.Named] = (),
    on_entry: Callable[[Entry], None] = lambda entry: None,
    on_progress: chain.OnProgress = lambda count, what: None,
) -> chain.Verified:
    """Whether every entry is there, as it was written, and in its place; each is shown to `on_entry`, newest first."""
    state = State()
    problems: list[str] = []
    # What the entry above says is the newest act before it, until that one comes.
    wanted: chain.Tip | None = None
    place = chain.START

    async def tip() -> chain.Tip:
        nonlocal state, wanted, place
        state = await read(store)
        wanted, place = state.act, state.tip
        return state.tip

    def look(entry: Entry) -> None:
        nonlocal wanted, place
        if entry.kind != ANCHOR:
            if wanted != place:
                problems.append(f"the entry {place.number} of {WHAT} is passed over by those after it")
            wanted = entry.act
        elif entry.act != wanted:
            problems.append(
                f"the entry {place.number} of {WHAT} names another act before it than those after it"
            )
        if entry.latest < entry.at:
            problems.append(f"the entry {place.number} of {WHAT} says that it is older than it is")
        place = chain.Tip(entry.number - 1, entry.previous)
        on_entry(entry)

    found = await LOG.verify(store, tip, expected, seen=seen, on_entry=look, on_progress=on_progress)
    if not found.problems and wanted != chain.START:
        problems.append(f"the first entry of {WHAT} says that there was one before it")
    found.problems += problems
    return found
