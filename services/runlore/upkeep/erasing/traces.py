"""What a bus and the store hold of events: messages, dead letters, claims.

A bus that is a file of ours lets the bytes go at once. Kafka keeps a message for as long as its topic does; until
then no stage takes it in, and no interface shows it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from runlore import errors, pipeline
from runlore.bus import port as bus_port
from runlore.commit import erasures, keys
from runlore.consumers import dead, record, told
from runlore.store import port as store_port

BATCH = 200
READ_BYTES_MAX = 64 * 1024 * 1024
"""Size of a dead letter's value that is looked at; of a larger one nobody here can say whose it is."""


@dataclass
class Traces:
    """What was found of the targets on the bus."""

    targets: set[erasures.Target] = field(default_factory=set)
    """Of which runs: those that are not recorded, too."""
    messages: list[bus_port.Message] = field(default_factory=list)
    letters: list[dead.Letter] = field(default_factory=list)
    letter_messages: list[bus_port.Message] = field(default_factory=list)
    claims: set[str] = field(default_factory=set)
    kept_claims: set[str] = field(default_factory=set)
    """Claims that other events on the bus name."""
    newest: float = 0.0
    """When the newest of them came, in seconds since 1970."""
    parts: set[str] = field(default_factory=set)
    """Keys of the objects that hold letters' values."""
    foreign: int = 0
    """Dead letters of a team's own topic, whose words nobody here can read."""
    unread: int = 0
    """Dead letters of this project that do not say whose they are."""


Matches = Callable[[told.Told], bool]


def matcher(project: str, targets: Sequence[erasures.Target], rows: Sequence[erasures.Row]) -> Matches:
    """Whether an event is of what is erased."""
    known: dict[tuple[str, str], set[str] | None] = {}
    for one in targets:
        runs = known.get((one.memory, one.rollout), set())
        known[one.memory, one.rollout] = None if one.runs is None or runs is None else runs | set(one.runs)

    def matches(one: told.Told) -> bool:
        if one.project != project:
            return False
        if any(row.holds(one.memory or row.memory or "", one.subject, one.time) for row in rows):
            return True
        # An event that names no memory may be of any.
        found = [
            known[place] for place in known if place[1] == one.rollout and one.memory in (None, place[0])
        ]
        return any(runs is None or runs & set(one.runs) for runs in found)

    return matches


async def find(store: store_port.ObjectStore, bus: bus_port.Bus, project: str, matches: Matches) -> Traces:
    """Look through the topics that hold events."""
    found = Traces()
    async for message in bus.read(pipeline.RUNS.name):
        one = _told(message)
        if one is None or one.project != project:
            continue
        if not matches(one):
            found.kept_claims |= one.claims
            continue
        _add(found, one, message.time)
        found.messages.append(message)
    for letter in await dead.read_all(bus):
        if letter.resolution == dead.ERASED:
            continue
        if letter.source is not None:
            found.foreign += 1
            continue
        came = await _as_it_came(store, letter)
        one = _told(came)
        if one is None:
            found.unread += came.value is not None and dead.project_of(letter) in (project, None)
        elif one.project == project and matches(one):
            _add(found, one, 0.0)
            found.letters.append(letter)
            found.parts |= set(letter.pointers)
    named = {one.id for one in found.letters}
    async for message in bus.read(pipeline.DEAD.name):
        said = dict(message.headers)
        if said.get("rl_dead", b"").decode() in named and "rl_resolution" not in said:
            found.letter_messages.append(message)
            found.newest = max(found.newest, message.time)
    return found


async def _as_it_came(store: store_port.ObjectStore, letter: dead.Letter) -> bus_port.Message:
    value = None
    if letter.size <= READ_BYTES_MAX:
        with contextlib.suppress(errors.NotFound):
            value = await dead.value_of(store, letter)
    where = (letter.topic, letter.partition, letter.offset)
    return bus_port.Message(*where, letter.key, value, letter.headers, 0.0)


def _told(message: bus_port.Message) -> told.Told | None:
    try:
        return told.of(record.parse(message))
    except errors.Poison:
        return told.by_one_that_is_broken(message.headers, message.value)


def _add(found: Traces, one: told.Told, time: float) -> None:
    if one.memory is not None:
        found.targets.add(erasures.Target(one.memory, one.rollout, one.runs[:1]))
    found.claims |= one.claims
    found.newest = max(found.newest, time)


async def erase(
    store: store_port.ObjectStore, bus: bus_port.Bus, found: Traces, name: str
) -> Mapping[str, int]:
    """Let the bytes of what was found go, as far as they are ours to let go; how many of each kind."""
    for letter in found.letters:
        await dead.resolve(bus, letter, dead.ERASED, f"erasure {name}")
    counts = {"dead letters": len(found.letters)}
    if not isinstance(bus, bus_port.Overwrites):
        return counts | {"bus messages": 0}
    blanks = [replace(one, value=None, headers=[(record.ERASED_HEADER, b"1")]) for one in found.messages]
    blanks += [
        replace(one, value=None, headers=[row for row in one.headers if _is_ours(row[0])])
        for one in found.letter_messages
    ]
    for at in range(0, len(blanks), BATCH):
        await bus.overwrite(blanks[at : at + BATCH])
    return counts | {"bus messages": len(blanks)}


def _is_ours(name: str) -> bool:
    """Whether a letter's header says where it stood and why, in our words, and nothing of the event."""
    return name.startswith(dead.PREFIX) and name not in ("rl_message", "rl_pointers")


def bus_until(found: Traces) -> str:
    """Until when a bus that lets nothing go keeps what was found, by the retention that its topics are made with."""
    hours = max(pipeline.RUNS.retention_hours, pipeline.DEAD.retention_hours if found.letter_messages else 0)
    newest = dt.datetime.fromtimestamp(found.newest, dt.UTC)
    return (newest + dt.timedelta(hours=hours)).isoformat(timespec="seconds")


async def claims_to_delete(
    store: store_port.ObjectStore, project: str, claims: set[str], kept: set[str]
) -> list[str]:
    """The keys of these claims that nothing else on the bus names, as far as they are there."""
    return await there(store, [keys.claim(project, one) for one in sorted(claims - kept)])


async def there(store: store_port.ObjectStore, named: Iterable[str]) -> list[str]:
    """Those of these keys that there are. Nothing is read: one may be as large as an archive."""
    found = []
    for key in named:
        found += [row.key async for row in store.list(key) if row.key == key]
    return found
