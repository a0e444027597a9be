"""What a bus and the store hold of events: messages, dead letters, claims.

A bus that is a file of ours lets the bytes go at once. Kafka keeps a message for as long as its topic does; until
then no stage takes it in, and no interface shows it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from runlore import errors, pipeline
from runlore.bus import port as bus_port
from runlore.commit import erasures, keys
from runlore.consumers import dead, record, summarize
from runlore.events import ids
from runlore.store import port as store_port

BATCH = 200


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
    foreign: int = 0
    """Dead letters of a team's own topic, whose words nobody here can read."""


Matches = Callable[[record.Incoming], bool]


def matcher(project: str, targets: Sequence[erasures.Target], rows: Sequence[erasures.Row]) -> Matches:
    """Whether an event is of what is erased."""
    known: dict[tuple[str, str], set[str] | None] = {}
    for one in targets:
        runs = known.get((one.memory, one.rollout), set())
        known[one.memory, one.rollout] = None if one.runs is None or runs is None else runs | set(one.runs)

    def matches(incoming: record.Incoming) -> bool:
        own, memory, rollout = incoming.line_of
        if own != project:
            return False
        subject = summarize.subject_of(incoming.data.subject)
        if any(row.holds(memory, subject, incoming.event.time) for row in rows):
            return True
        if (memory, rollout) not in known:
            return False
        runs = known[memory, rollout]
        return runs is None or bool(runs & {incoming.run, ids.alias(incoming.data.run_id)})

    return matches


async def find(store: store_port.ObjectStore, bus: bus_port.Bus, project: str, matches: Matches) -> Traces:
    """Look through the topics that hold events."""
    found = Traces()
    async for message in bus.read(pipeline.RUNS.name):
        incoming = _parsed(message)
        if incoming is None or incoming.data.project != project:
            continue
        claims = set(record.claims_of(incoming.data))
        if not matches(incoming):
            found.kept_claims |= claims
            continue
        _add(found, incoming, message.time)
        found.messages.append(message)
    for letter in await dead.read_all(bus):
        if letter.resolution == dead.ERASED:
            continue
        if letter.source is not None:
            found.foreign += 1
            continue
        incoming = _parsed(await _as_it_came(store, letter))
        if incoming is not None and incoming.data.project == project and matches(incoming):
            _add(found, incoming, 0.0)
            found.letters.append(letter)
    named = {one.id for one in found.letters}
    async for message in bus.read(pipeline.DEAD.name):
        told = dict(message.headers)
        if told.get("rl_dead", b"").decode() in named and "rl_resolution" not in told:
            found.letter_messages.append(message)
            found.newest = max(found.newest, message.time)
    return found


async def _as_it_came(store: store_port.ObjectStore, letter: dead.Letter) -> bus_port.Message:
    value = None
    with contextlib.suppress(errors.NotFound):
        value = await dead.value_of(store, letter)
    where = (letter.topic, letter.partition, letter.offset)
    return bus_port.Message(*where, letter.key, value, letter.headers, 0.0)


def _parsed(message: bus_port.Message) -> record.Incoming | None:
    try:
        return record.parse(message)
    except errors.Poison:
        return None


def _add(found: Traces, incoming: record.Incoming, time: float) -> None:
    _, memory, rollout = incoming.line_of
    found.targets.add(erasures.Target(memory, rollout, (incoming.run,)))
    found.claims |= set(record.claims_of(incoming.data))
    found.newest = max(found.newest, time)


async def erase(
    store: store_port.ObjectStore, bus: bus_port.Bus, found: Traces, name: str
) -> Mapping[str, int]:
    """Let the bytes of what was found go, as far as they are ours to let go; how many of each kind."""
    pointers = sorted({one for letter in found.letters for one in letter.pointers})
    await store.delete_many(pointers)
    for letter in found.letters:
        await dead.resolve(bus, letter, dead.ERASED, f"erasure {name}")
    counts = {"dead letters": len(found.letters), "parts of dead letters": len(pointers)}
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
    found = []
    for key in (keys.claim(project, one) for one in sorted(claims - kept)):
        # Nothing is read: one may be as large as an archive.
        found += [row.key async for row in store.list(key) if row.key == key]
    return found
