"""Dead letters: events that could not take effect, kept with their reason until redriven or dropped.

A letter keeps the message's key, value and headers as they came, and adds headers that begin with `rl_`.
Its id is a function of where the message stood (topic, partition, offset), so burying it twice is one
letter. A value too large for the topic lies in the store, and the letter points to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from runlore import clock, errors, telemetry
from runlore.bus import port as bus_port
from runlore.commit import keys
from runlore.events import envelope, ids, models
from runlore.store import port as store_port

VALUE_BYTES_MAX = envelope.EVENT_BYTES_MAX - 64 * 1024
"""Largest value that a letter carries itself, in bytes; its headers need room below the message limit."""
PART_BYTES = 16 * 1024 * 1024
"""Size of one object of a value that lies in the store, in bytes."""
MESSAGE_CHARS_MAX = 500
PREFIX = "rl_"
_POINTER = re.compile(rf"{keys.DEAD_LETTERS}/[0-9a-f]{{2}}/[0-9a-f]{{64}}", re.ASCII)
REDRIVEN, DROPPED, ERASED = "redriven", "dropped", "erased"


@dataclass
class Letter:
    """One dead letter, and what became of it."""

    id: str
    reason: str
    message: str
    topic: str
    partition: int
    offset: int
    at: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]] = field(default_factory=list)
    pointers: tuple[str, ...] = ()
    """Keys of the objects that hold the value, in order, where the bus could not."""
    size: int = 0
    source: str | None = None
    """The source whose mapping refused it, where the event is one of a team's own topic."""
    time: float = 0.0
    """When the bus took the event, in seconds since 1970; only of a source's letter."""
    resolution: str | None = None
    resolved_at: str | None = None
    resolved_why: str | None = None

    @property
    def event_id(self) -> str | None:
        """The CloudEvents id, where the event has one."""
        for name, raw in self.headers:
            if name.lower() == "ce_id":
                return raw.decode("utf-8", "replace")
        return None


def letter_id(topic: str, partition: int, offset: int, stage: str = "record") -> str:
    """Two stages that refuse one message write two letters: the cause of one may go while the other stays."""
    where = f"{topic}/{partition}/{offset}" + ("" if stage == "record" else f"/{stage}")
    return hashlib.sha256(where.encode()).hexdigest()[:16]


async def letter(
    store: store_port.ObjectStore,
    message: bus_port.Message,
    error: errors.Poison,
    *,
    stage: str = "record",
    source: str | None = None,
) -> bus_port.Outgoing:
    """The dead letter for a message; a value that is too large is put in the store first.

    `source` names the source whose mapping refused it: then the letter is its, and is mapped anew by it alone.
    """
    stage = f"source-{source}" if source else stage
    name = letter_id(message.topic, message.partition, message.offset, stage)
    if message.value is None or len(message.value) <= VALUE_BYTES_MAX:
        return compose(name, message, error, source=source)
    stored = await put_parts(store, _whole(message.value))
    return compose(name, message, error, stored=stored, source=source)


async def _whole(value: bytes) -> AsyncIterator[bytes]:
    yield value


async def put_parts(store: store_port.ObjectStore, parts: AsyncIterator[bytes]) -> tuple[list[str], int]:
    """Put the bytes of a value that the bus can not take, part by part: (their keys, their size in bytes)."""
    pointers, size = [], 0
    async for part in parts:
        size += len(part)
        for at in range(0, len(part), PART_BYTES):
            piece = part[at : at + PART_BYTES]
            pointers.append(keys.dead_letter(hashlib.sha256(piece).hexdigest()))
            await store.put(pointers[-1], piece)
    return pointers, size


def compose(
    name: str,
    message: bus_port.Message,
    error: errors.Poison,
    *,
    stored: tuple[list[str], int] | None = None,
    source: str | None = None,
) -> bus_port.Outgoing:
    """The letter `name` for a message, whose value is in the store where `stored` says so."""
    value = message.value if stored is None else None
    extra = [] if stored is None else [("rl_pointers", ",".join(stored[0])), ("rl_size", str(stored[1]))]
    # With its time, an event that has none of its own is mapped to the same bytes again.
    extra += [("rl_source", source), ("rl_time", repr(message.time))] if source else []
    fields = [
        ("rl_dead", name),
        ("rl_reason", error.kind),
        ("rl_message", error.message[:MESSAGE_CHARS_MAX]),
        ("rl_topic", message.topic),
        ("rl_partition", str(message.partition)),
        ("rl_offset", str(message.offset)),
        ("rl_at", clock.now_iso()),
        *extra,
    ]
    original = [(name, raw) for name, raw in message.headers if not name.startswith(PREFIX)]
    encoded = [(name, text.encode("utf-8", "replace")) for name, text in fields]
    return bus_port.Outgoing("dead", message.key, value, [*original, *encoded])


async def read_all(bus: bus_port.Bus) -> list[Letter]:
    """Every letter still on the bus, oldest first, with what became of it."""
    letters: dict[str, Letter] = {}
    async for message in bus.read("dead"):
        fields = {name: (raw or b"").decode("utf-8", "replace") for name, raw in message.headers}
        name = fields.get("rl_dead", "")
        if "rl_resolution" in fields:
            # What was erased stays so, whatever is said of it later.
            if name in letters and letters[name].resolution != ERASED:
                letters[name].resolution = fields["rl_resolution"]
                letters[name].resolved_at = fields.get("rl_at")
                letters[name].resolved_why = fields.get("rl_why")
                if letters[name].resolution == ERASED:
                    letters[name] = _blank(letters[name])
            continue
        if name and name not in letters:
            letters[name] = _letter(name, fields, message)
    return list(letters.values())


async def value_of(store: store_port.ObjectStore, letter: Letter) -> bytes | None:
    """The event's value as it came. Raises `errors.NotFound` where the store lost it."""
    if letter.resolution == ERASED:
        raise errors.Erased(f"the event of dead letter {letter.id} was erased")
    if not letter.pointers:
        return letter.value
    if any(_POINTER.fullmatch(one) is None for one in letter.pointers):
        # Who may write to the topic must not choose what is read for whoever looks into a letter.
        raise errors.NotFound(f"dead letter {letter.id} points to what is no part of a dead letter")
    found = await store.get_many(letter.pointers)
    if None in found:
        raise errors.NotFound(f"the bytes of dead letter {letter.id} are not in the store")
    return b"".join(one.body for one in found if one)


def project_of(letter: Letter) -> str | None:
    """The project that a dead event says it is of; None where it says none that could be one.

    It is what its producer wrote and nobody could take, so it sorts letters, and proves nothing.
    """
    if letter.source is not None:
        return None  # In a team's own words; which project it is of, its mapping alone knows.
    named = None
    with contextlib.suppress(ValueError, AttributeError, RecursionError):
        named = json.loads(letter.value or b"").get("project")
    if not isinstance(named, str):
        # The key of a run's event is project/rollout; of what could not be read it is some id.
        named, slash, _ = (letter.key or b"").decode("utf-8", "replace").partition("/")
        named = named if slash else ""
    with contextlib.suppress(errors.InvalidId):
        return ids.check_name(named, "project")
    return None


def run_of(letter: Letter) -> str | None:
    """The run (or the edit) that a dead event says it is, as its producer wrote it; None where it says none."""
    with contextlib.suppress(ValueError, AttributeError, RecursionError):
        said = json.loads(letter.value or b"")
        named = said.get("edit_id" if models.type_of(said) == models.MEMORY_EDITED else "run_id")
        return named if isinstance(named, str) else None
    return None


def fits(letter: Letter) -> bool:
    """Whether the event can be published again as it came: the bus takes its size, and it is of a topic of ours."""
    return letter.source is None and letter.size <= envelope.EVENT_BYTES_MAX


async def redrive(
    bus: bus_port.Bus, store: store_port.ObjectStore, letters: Sequence[Letter], *, why: str
) -> None:
    """Publish the events again as they came, then note it.

    A crash between the two redrives twice, which is harmless: a run is recognised. Raises
    `errors.EventTooLarge`, before it publishes anything, where one of them does not fit on the bus, and
    `errors.ForeignLetter` where one is of a team's own topic: there others would read it twice.
    """
    for one in letters:
        if one.resolution == ERASED:
            raise errors.Erased(f"the event of dead letter {one.id} was erased")
        if one.source is not None:
            raise errors.ForeignLetter(
                f"dead letter {one.id} is an event of {one.topic}, which source {one.source} maps",
                hint=f"`runlore source redrive MAP {one.id}` maps it anew",
            )
        if not fits(one):
            raise errors.EventTooLarge(
                f"dead letter {one.id} has {one.size} bytes; the bus takes {envelope.EVENT_BYTES_MAX}",
                hint="`runlore dead show ID --out FILE` writes it to a file; mend and `runlore emit` it, or drop it",
            )
    for one in letters:
        value = await value_of(store, one)
        headers = [*one.headers, ("rl_redriven", one.id.encode())]
        await bus.produce([bus_port.Outgoing(one.topic, one.key, value, headers)])
        await resolve(bus, one, REDRIVEN, why)


async def drop(bus: bus_port.Bus, letters: Sequence[Letter], *, why: str) -> None:
    """Note that nobody wants these events any more."""
    for one in letters:
        await resolve(bus, one, DROPPED, why)


async def resolve(bus: bus_port.Bus, letter: Letter, resolution: str, why: str) -> None:
    fields = [
        ("rl_dead", letter.id),
        ("rl_resolution", resolution),
        ("rl_at", clock.now_iso()),
        ("rl_why", why),
    ]
    headers = [(name, text.encode("utf-8", "replace")) for name, text in fields]
    await bus.produce([bus_port.Outgoing("dead", letter.key, None, headers)])


def tell(log: Any, stage: str, outcomes: Iterable[tuple[bus_port.Message, errors.Poison | None]]) -> None:
    """Count and log the messages that became a letter of `stage`, each by where it stands."""
    for message, error in outcomes:
        if error is not None:
            telemetry.DEAD_LETTERS.inc(stage=stage, reason=error.kind)
            log.warning(
                "dead letter",
                stage=stage,
                reason=error.kind,
                topic=message.topic,
                partition=message.partition,
                offset=message.offset,
            )


def _blank(letter: Letter) -> Letter:
    """What is shown of a letter whose event was erased: the bus may hold its bytes for as long as it holds any."""
    return replace(letter, message="", key=None, value=None, headers=[], pointers=())


def _letter(name: str, fields: dict[str, str], message: bus_port.Message) -> Letter:
    size = _number(fields.get("rl_size"))
    return Letter(
        id=name,
        reason=fields.get("rl_reason", "unknown"),
        message=fields.get("rl_message", ""),
        topic=fields.get("rl_topic", "runs"),
        partition=_number(fields.get("rl_partition")) or 0,
        offset=_number(fields.get("rl_offset")) or 0,
        at=fields.get("rl_at", ""),
        key=message.key,
        value=message.value,
        headers=[(key, raw) for key, raw in message.headers if not key.startswith(PREFIX)],
        pointers=tuple(fields["rl_pointers"].split(",")) if "rl_pointers" in fields else (),
        size=len(message.value or b"") if size is None else size,
        source=fields.get("rl_source"),
        time=_seconds(fields.get("rl_time")),
    )


def _number(text: str | None) -> int | None:
    """A number of a letter's headers; None where it is none: one strange letter must not hide the others."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 19 else None


def _seconds(text: str | None) -> float:
    with contextlib.suppress(ValueError):
        value = float(text or 0.0)
        return value if 0 <= value < 2**40 else 0.0
    return 0.0
