"""Source: a team's own topic becomes run-completed events on `runs`, through a mapping.

    map → hide secrets → claims in the store → produce to `runs` → dead letters → offset

A message that its mapping can not make a run of becomes a dead letter with its reason and its key, value and headers
as they came; both kinds are acknowledged before the offset is committed. Mapping is a function of the message, so
what is mapped twice is one run. A fault that may pass (the bus, the store, an object's bucket, a registry) fails
the whole batch, which comes again; nothing is dead-lettered for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from runlore import errors, producer
from runlore.bus import port as bus_port
from runlore.commit import redaction
from runlore.consumers import dead
from runlore.consumers.runtime import SEQUENTIAL, Runtime
from runlore.sources.mapping import event, fields, objects
from runlore.store import port as store_port

MAPPED, FILTERED, TOMBSTONE, DEAD = "mapped", event.FILTERED, event.TOMBSTONE, "dead"


@dataclass(frozen=True)
class Outcome:
    """What became of one message: mapped, filtered, a tombstone, or dead (with its kind)."""

    message: bus_port.Message
    state: str
    error: errors.Poison | None = None
    mapped: event.Mapped | None = None


@dataclass
class Counts:
    """What became of all messages so far."""

    states: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, outcomes: Sequence[Outcome]) -> None:
        self.states.update(one.state for one in outcomes)
        self.reasons.update(one.error.kind for one in outcomes if one.error)

    @property
    def total(self) -> int:
        return self.states.total()

    def __str__(self) -> str:
        """`97 mapped · 2 skipped · 3 dead letters (missing_rollout 3)`"""
        parts = [f"{self.states[MAPPED]:,} mapped"]
        parts += [f"{self.states[FILTERED]:,} skipped"] if self.states[FILTERED] else []
        parts += [f"{self.states[TOMBSTONE]:,} tombstones"] if self.states[TOMBSTONE] else []
        if self.reasons:
            why = ", ".join(f"{kind} {count:,}" for kind, count in sorted(self.reasons.items()))
            letters = "dead letter" if self.states[DEAD] == 1 else "dead letters"
            parts.append(f"{self.states[DEAD]:,} {letters} ({why})")
        return " · ".join(parts)

    def as_dict(self) -> dict[str, object]:
        return {
            "mapped": self.states[MAPPED],
            "skipped": self.states[FILTERED],
            "tombstones": self.states[TOMBSTONE],
            "dead": self.states[DEAD],
            "reasons": dict(sorted(self.reasons.items())),
        }


class SourceStage:
    """Takes batches of messages of a foreign topic."""

    def __init__(
        self,
        store: store_port.ObjectStore,
        bus: bus_port.Bus,
        mapping: event.Mapping,
        fetch: objects.Fetch,
        *,
        runtime: Runtime = SEQUENTIAL,
    ) -> None:
        self._store, self._bus = store, bus
        self._mapping, self._fetch = mapping, fetch
        self._runtime = runtime
        self._producer = producer.Producer(store, bus, hashing=redaction.Keys(store))

    async def process(
        self, messages: Sequence[bus_port.Message]
    ) -> tuple[list[Outcome], dict[bus_port.TopicPartition, int]]:
        """The effect of every message on the bus: (an outcome each, the offsets that may be committed now).

        Raises `errors.Retryable` or `errors.Blocked`: then the same messages may be processed again.
        """
        # Each job ends with a message of bounded size: no more records are in memory than there are lanes.
        done = await self._runtime.gather([lambda one=one: self._take(one) for one in messages])
        outgoing = [message for _, message in done if message is not None]
        outcomes = [outcome for outcome, _ in done]
        letters = [
            await dead.letter(self._store, one.message, one.error, source=self._mapping.name)
            for one in outcomes
            if one.error is not None
        ]
        if outgoing:
            await self._bus.produce(outgoing)
        if letters:
            await self._bus.produce(letters)
        offsets: dict[bus_port.TopicPartition, int] = {}
        for message in messages:
            offsets[message.at] = max(offsets.get(message.at, 0), message.offset + 1)
        return outcomes, offsets

    async def look(self, messages: Sequence[bus_port.Message]) -> list[Outcome]:
        """What would become of each message; nothing is produced or stored."""
        return await self._runtime.gather([lambda one=one: self._map(one) for one in messages])

    async def _map(self, message: bus_port.Message) -> Outcome:
        try:
            found = await self._runtime.offload(self._mapping.map, given(message), self._fetch)
        except errors.Poison as exc:
            return Outcome(message, DEAD, exc)
        if isinstance(found, event.Skipped):
            return Outcome(message, found.why)
        return Outcome(message, MAPPED, mapped=found)

    async def _take(self, message: bus_port.Message) -> tuple[Outcome, bus_port.Outgoing | None]:
        """What becomes of a message, and the message that it becomes; its claims are in the store."""
        outcome = await self._map(message)
        if outcome.mapped is None:
            return outcome, None
        try:
            return Outcome(message, MAPPED), await self._message(outcome.mapped)
        except errors.Poison as exc:
            return Outcome(message, DEAD, exc), None

    async def _message(self, mapped: event.Mapped) -> bus_port.Outgoing:
        for raw in mapped.claims:
            await producer.put_claim(self._store, mapped.project, raw)
        return await self._producer.message(mapped.event)

    async def redrive(self, letter: dead.Letter, *, why: str, dry_run: bool = False) -> Outcome:
        """Map the event of a dead letter anew, and note it; where it fails again, the letter stays open.

        A crash between the two maps it twice, which is harmless: the run is recognised. Raises
        `errors.ForeignLetter` for a letter of another source.
        """
        if letter.source != self._mapping.name:
            whose = f"source {letter.source}" if letter.source else "a stage"
            raise errors.ForeignLetter(
                f"dead letter {letter.id} is one of {whose}, not of {self._mapping.name}"
            )
        value = await dead.value_of(self._store, letter)
        message = bus_port.Message(
            letter.topic, letter.partition, letter.offset, letter.key, value, letter.headers, letter.time
        )
        if dry_run:
            return await self._map(message)
        outcome, outgoing = await self._take(message)
        if outgoing is not None:
            await self._bus.produce([outgoing])
        if outcome.error is None:
            await dead.resolve(self._bus, letter, dead.REDRIVEN, why)
        return outcome


def given(message: bus_port.Message) -> fields.Given:
    """A message of the bus as the mapping reads it."""
    return fields.Given(
        message.topic,
        message.partition,
        message.offset,
        message.key,
        message.value,
        tuple(message.headers),
        message.time,
    )
