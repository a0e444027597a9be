"""Record: a run's event, or that of an edit which it made, becomes a record, its rollout's summary, and a mark.

    head → ledger of erasures → put record if absent → CAS the rollout's head → put mark if absent → ring → offset

A poll's events are taken together: one move of a rollout's head for all its runs in the poll, one mark per
memory. A redelivered run costs one read of its head. Whatever can never take effect becomes a dead letter
with its reason, and its offset is committed only after that is on the bus.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runlore import clock, errors
from runlore.bus import port as bus_port
from runlore.commit import erasures, heads, keys, lines, marks, redaction, revisions, rollouts
from runlore.consumers import dead, edited, summarize, told
from runlore.consumers.runtime import SEQUENTIAL, Runtime
from runlore.events import envelope, ids, models, records
from runlore.memory import redact
from runlore.store import port as store_port

BYTES_PER_TOKEN = 4
"""Of a record, to say about how many tokens wait for a model."""
RECORDED, ALREADY, SUPERSEDED, DEAD = "recorded", "already", "superseded", "dead"
ERASED = "erased"
ERASED_HEADER = "rl_erased"
"""What an event's message has instead of its bytes once a bus of ours let them go."""


class Unprocessable(errors.Poison):
    """The rules failed on this record; it is kept until a version that can read it redrives it."""

    kind = "unprocessable"


@dataclass(frozen=True)
class Incoming:
    """One run-completed or memory-edited event in hand."""

    message: bus_port.Message
    event: envelope.Event
    data: models.RunCompleted | models.MemoryEdited

    @property
    def line_of(self) -> tuple[str, str, str]:
        """Project, memory and rollout alias: whose head it moves."""
        return self.data.project, self.data.memory, self.data.rollout.alias

    @property
    def run(self) -> str:
        """What it is called among its rollout's runs: an edit has a name of its own there."""
        return ids.alias(self.data.identity)

    def is_erased(self, head: heads.Head, rows: Sequence[erasures.Row]) -> bool:
        """Whether it was erased, as its rollout's head or the ledger's rows say: an edit goes with its run."""
        if erasures.is_erased(head.body, self.run, ids.alias(self.data.run_id)):
            return True
        subject = summarize.subject_of(self.data.subject)
        return any(row.holds(self.data.memory, subject, self.event.time) for row in rows)


@dataclass(frozen=True)
class Outcome:
    """What became of one message: `recorded`, `already`, `superseded`, `erased` or `dead` (with its kind)."""

    message: bus_port.Message
    state: str
    error: errors.Poison | None = None


@dataclass(frozen=True)
class Processed:
    """What one batch came to: an outcome per message, and the offsets that may be committed now."""

    outcomes: list[Outcome]
    offsets: dict[bus_port.TopicPartition, int] = field(default_factory=dict)

    def count(self, state: str) -> int:
        return sum(outcome.state == state for outcome in self.outcomes)


class RecordStage:
    """Takes batches of messages of the topic `runs`."""

    def __init__(
        self,
        store: store_port.ObjectStore,
        bus: bus_port.Bus,
        *,
        runtime: Runtime = SEQUENTIAL,
        asks: bool = False,
        hashing: redaction.Keys | None = None,
    ) -> None:
        """`hashing`: the projects' redaction keys; without, placeholders say the kind alone."""
        self._store = store
        self._hashing = hashing
        self._bus = bus
        self._runtime = runtime
        self._reader = revisions.Reader(store)
        self._asks = asks
        """Whether each run waits for a model's summary too."""

    async def process(self, messages: Sequence[bus_port.Message]) -> Processed:
        """Put the effect of every message in the store; only then are there offsets to commit.

        Raises `errors.Retryable` or `errors.Blocked` where the store or the bus fails: nothing is lost then,
        and the same messages may be processed again.
        """
        outcomes: dict[int, Outcome] = {}
        groups: dict[tuple[str, str, str], list[tuple[int, Incoming]]] = {}
        for number, message in enumerate(messages):
            if is_blank(message):
                outcomes[number] = Outcome(message, ERASED)
                continue
            try:
                incoming = parse(message)
            except errors.Poison as exc:
                outcomes[number] = await self._unread(message, exc)
            else:
                groups.setdefault(incoming.line_of, []).append((number, incoming))
        jobs = [
            lambda line=line, members=members: self._rollout(line, members)
            for line, members in groups.items()
        ]
        moved: list[heads.Head] = []
        counters: dict[tuple[str, str, str], int] = {}
        for line, (found, head, is_moved) in zip(groups, await self._runtime.gather(jobs), strict=True):
            outcomes |= found
            moved += [head] if is_moved else []
            counters[line] = head.counter
        await self._mark(counters, _sizes(groups, outcomes))
        ordered = [outcomes[number] for number in range(len(messages))]
        await self._bury([outcome for outcome in ordered if outcome.error])
        await self._ring(groups, moved)
        offsets: dict[bus_port.TopicPartition, int] = {}
        for message in messages:
            offsets[message.at] = max(offsets.get(message.at, 0), message.offset + 1)
        return Processed(ordered, offsets)

    async def _unread(self, message: bus_port.Message, why: errors.Poison) -> Outcome:
        """What becomes of what is no event: a dead letter, unless it says that it is of what was erased."""
        said = await self._runtime.offload(told.by_one_that_is_broken, message.headers, message.value)
        if said is not None and said.memory is not None:
            with contextlib.suppress(errors.Fatal):  # A broken head stops those who can be read.
                head = await summarize.read(self._store, said.project, said.memory, said.rollout)
                rows = erasures.rows(await erasures.ledger(self._store, said.project))
                if said.is_erased(head, rows):
                    return Outcome(message, ERASED)
        return Outcome(message, DEAD, why)

    async def _rollout(
        self, line: tuple[str, str, str], members: Sequence[tuple[int, Incoming]]
    ) -> tuple[dict[int, Outcome], heads.Head, bool]:
        """The effect of a rollout's messages; their outcomes, the head that covers them, whether this moved it."""
        for restart in range(summarize.RESTARTS_MAX):
            head = await summarize.read(self._store, *line)
            # After the head: an erasure puts its row, then moves every head that it finds.
            rows = erasures.rows(await erasures.ledger(self._store, line[0]))
            left = {number: one for number, one in members if not one.is_erased(head, rows)}
            gone = {number: Outcome(one.message, ERASED) for number, one in members if number not in left}
            outcomes, recorded = await self._put(head, list(left.items()))
            outcomes |= gone
            try:
                after = (
                    head
                    if not recorded
                    else await summarize.advance(self._store, head, recorded, self._runtime)
                )
            except errors.HeadMoved:
                await clock.sleep(0.005 * restart * clock.jitter())
                continue
            return outcomes, after, after is not head
        raise errors.StoreUnavailable(f"the head of rollout {line[2]} in {line[0]}/{line[1]} is contended")

    async def _put(
        self, head: heads.Head, members: Sequence[tuple[int, Incoming]]
    ) -> tuple[dict[int, Outcome], list[rollouts.Record]]:
        """Put the records that `head` does not cover; the outcome of each message, and the records."""
        runs: dict[str, Any] = dict(head.body.get("runs", {}))
        outcomes: dict[int, Outcome] = {}
        put: list[rollouts.Record] = []
        for number, incoming in members:
            try:
                record = await self._make(incoming)
                where = summarize.place(runs.get(record.run), record.attempt, record.received, record.run)
                if where == summarize.COVERED:
                    state = ALREADY
                else:
                    key = keys.record(*incoming.line_of, record.run, record.attempt)
                    record, _ = await rollouts.put_record(self._store, key, record, began=head.read_at)
                    put.append(record)
                    runs[record.run] = summarize.note(runs.get(record.run), record, head.counter + 1)
                    state = SUPERSEDED if where == summarize.OLDER else RECORDED
                outcomes[number] = Outcome(incoming.message, state)
            except errors.Poison as exc:
                outcomes[number] = self._refused(incoming, runs.get(incoming.run), exc)
        return outcomes, put

    @staticmethod
    def _refused(incoming: Incoming, known: Mapping[str, Any] | None, why: errors.Poison) -> Outcome:
        """A dead letter; but an edit that took effect when its base was there needs it no more."""
        is_again = known is not None and known["event"] == incoming.event.id
        if is_again and isinstance(why, errors.EditBaseUnknown):
            return Outcome(incoming.message, ALREADY)
        return Outcome(incoming.message, DEAD, why)

    async def _make(self, incoming: Incoming) -> rollouts.Record:
        """The record of an event: a function of it, of redaction's rules, of an edit's base. Raises a `Poison`."""
        key = await self._hashing.of(incoming.data.project) if self._hashing is not None else None
        if isinstance(incoming.data, models.MemoryEdited):
            found = await edited.line_of(self._store, self._reader, incoming.data, self._runtime, key)
            return await self._runtime.offload(make_edit, incoming, *found, key)
        return await self._runtime.offload(make, incoming, await self._line(incoming.data), key)

    async def _line(self, data: models.RunCompleted) -> str:
        """The record as received: inline, or the bytes that the claim names, checked."""
        if data.record is not None:
            return data.record
        claim = data.record_claim
        assert claim is not None
        if claim.size > models.RECORD_BYTES_MAX:
            raise errors.RecordTooLarge(
                f"the record has {claim.size} bytes; at most {models.RECORD_BYTES_MAX} are accepted"
            )
        # No more than it says that there is: under its name lies whatever somebody put there.
        body = await self._store.get_range(keys.claim(data.project, claim.sha256), 0, claim.size + 1)
        if body is None:
            raise errors.ClaimMissing(
                f"the claim {claim.sha256[:12]} is not in project {data.project}",
                hint="upload the record, then `runlore dead redrive`",
            )
        return await self._runtime.offload(open_claim, claim, body)

    async def _mark(
        self,
        counters: Mapping[tuple[str, str, str], int],
        sizes: Mapping[tuple[str, str], Mapping[str, Mapping[str, int]]] | None = None,
    ) -> None:
        """One mark per memory for the whole batch, after its effects: also where they were there before."""
        by_memory: dict[tuple[str, str], dict[str, int]] = {}
        for (project, memory, rollout), counter in counters.items():
            by_memory.setdefault((project, memory), {})[rollout] = counter

        async def mark(one: tuple[str, str], found: dict[str, int]) -> None:
            await marks.put(self._store, *one, found, counters=found)
            if self._asks:
                waits = (sizes or {}).get(one)
                await marks.put(self._store, *one, found, counters=found, kind=keys.ASKS, sizes=waits)

        # A batch of a project with many memories has about as many marks as runs.
        await self._runtime.gather(
            [lambda one=one, found=found: mark(one, found) for one, found in by_memory.items()]
        )

    async def _bury(self, outcomes: Sequence[Outcome]) -> None:
        letters = [
            await dead.letter(self._store, outcome.message, outcome.error)
            for outcome in outcomes
            if outcome.error is not None
        ]
        if letters:
            await self._bus.produce(letters)

    async def _ring(self, groups: Mapping[tuple[str, str, str], Any], moved: Sequence[heads.Head]) -> None:
        bells = [
            models.Changed(
                kind="rollout",
                project=head.body["project"],
                memory=head.body["memory"],
                rollout=head.body["rollout"],
                counter=head.counter,
            )
            for head in moved
        ]
        memories = dict.fromkeys((project, memory) for project, memory, _ in groups)
        bells += [models.Changed(kind="mark", project=project, memory=memory) for project, memory in memories]
        await ring(self._bus, bells)


async def ring(bus: bus_port.Bus, bells: Sequence[models.Changed]) -> None:
    """Publish doorbells. Losing one costs nothing, so a bus that is away is not waited for."""
    if not bells:
        return
    try:
        await bus.produce(
            [message_of(envelope.changed(bell), f"{bell.project}/{bell.memory}", "changed") for bell in bells]
        )
    except errors.BusUnavailable:
        return


def _sizes(
    groups: Mapping[tuple[str, str, str], Sequence[tuple[int, Incoming]]], outcomes: Mapping[int, Outcome]
) -> dict[tuple[str, str], dict[str, dict[str, int]]]:
    """(Project, memory) → rollout → its runs in this batch, with an estimate of their tokens. Edits are no runs."""
    found: dict[tuple[str, str], dict[str, dict[str, int]]] = {}
    for (project, memory, rollout), members in groups.items():
        for number, incoming in members:
            data = incoming.data
            if outcomes[number].state in (DEAD, ERASED) or isinstance(data, models.MemoryEdited):
                continue
            claim = data.record_claim
            size = claim.size if claim is not None else len(data.record or "")
            runs = found.setdefault((project, memory), {}).setdefault(rollout, {})
            runs[f"{incoming.run}.{data.attempt}"] = size // BYTES_PER_TOKEN
    return found


def message_of(event: envelope.Event, key: str, topic: str) -> bus_port.Outgoing:
    """An event as a message in binary mode."""
    return bus_port.Outgoing(topic, key.encode(), event.value(), event.headers())


def is_blank(message: bus_port.Message) -> bool:
    """Whether the message is what was left of one that was erased."""
    return message.value is None and any(name == ERASED_HEADER for name, _ in message.headers)


def parse(message: bus_port.Message) -> Incoming:
    """The run-completed or memory-edited event of a message. Raises a `Poison`."""
    event = envelope.parse(message.headers, message.value)
    envelope.check_type(event, models.RUN_COMPLETED, models.MEMORY_EDITED)
    return Incoming(message, event, models.handed_in(event.type, event.data))


def open_claim(claim: models.Claim, body: bytes) -> str:
    """The record in a claim's bytes. Raises `errors.ClaimMismatch`."""
    import hashlib

    if len(body) != claim.size or hashlib.sha256(body).hexdigest() != claim.sha256:
        raise errors.ClaimMismatch(f"the object {claim.sha256[:12]} has other bytes than its claim says")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        raise errors.InvalidRecord("the record is not UTF-8") from None


def make(incoming: Incoming, line: str, key: bytes | None = None) -> rollouts.Record:
    """The record of an event and its line, with its digest. Pure. Raises a `Poison`."""
    kept, meta = prepare(incoming, line, key)
    return _digested(rollouts.Record(meta, kept))


def make_edit(
    incoming: Incoming, line: str, received: str, redacted: Mapping[str, int], key: bytes | None = None
) -> rollouts.Record:
    """The record of an edit. Pure."""
    ended_at = moment(getattr(incoming.data, "edited_at", "") or incoming.event.time)
    claims = claims_of(incoming.data)
    meta = _meta(incoming, received=received, ended_at=ended_at, redacted=redacted, key=key, claims=claims)
    return _digested(rollouts.Record({**meta, "is_edit": True}, line))


def _digested(record: rollouts.Record) -> rollouts.Record:
    try:
        summarize.digest(record)
    except Exception as exc:
        # A bug in the rules must not stop a partition, and the run must not be lost to it.
        raise Unprocessable(f"the rules failed on this record: {type(exc).__name__}") from exc
    return record


def prepare(incoming: Incoming, line: str, key: bytes | None = None) -> tuple[str, dict[str, Any]]:
    """(the line as it is kept, the record's metadata). Pure. Raises `errors.InvalidRecord`.

    `key`: the project's redaction key.
    """
    payload = records.check(line)
    kept, redacted = redact.line(records.to_ascii(line.rstrip("\r\n")), key)
    data = incoming.data
    assert isinstance(data, models.RunCompleted)
    meta = _meta(
        incoming,
        # Of the line before its producer hid anything: another version of its rules must not make it another run.
        received=data.received or records.received_hash(line),
        ended_at=moment(payload.get("updated_at")),
        redacted=redacted,
        key=key,
        # Whoever waits for the run waits for these lines too.
        workspaces=sorted({_agent(one) for one in data.workspaces}),
        claims=claims_of(data),
        usage=data.usage.model_dump() if data.usage else None,
    )
    return kept, meta


def _meta(
    incoming: Incoming,
    *,
    received: str,
    ended_at: str,
    redacted: Mapping[str, int],
    key: bytes | None,
    workspaces: Sequence[str] = (),
    claims: Sequence[str] = (),
    usage: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """The metadata of a run's record or of an edit's: which it is, whose, when."""
    data = incoming.data
    given = {
        name: value
        for name in (
            "conversation_id",
            "session_id",
            "group_id",
            "parent_run_id",
            "resumed_from",
            "subject",
            "seed",
        )
        if (value := getattr(data, name, None)) is not None
    }
    meta = {
        "project": data.project,
        "memory": data.memory,
        "rollout": data.rollout.alias,
        "run": incoming.run,
        "attempt": data.attempt,
        "received": received,
        "ended_at": ended_at,
        "event": {"id": incoming.event.id, "source": incoming.event.source, "time": incoming.event.time},
        "ids": {"kind": data.rollout.kind, "original": data.rollout.original, "run_id": data.run_id, **given},
        "subject_alias": summarize.subject_of(data.subject),
        "agents": list(data.agents),
        "workspaces": list(workspaces),
        # What an erasure has to take away besides.
        "claims": list(claims),
        "layout": data.layout.model_dump(),
        "usage": usage,
        "redacted": counted(redacted, data.redacted),
        # What `rescan` goes by.
        "rules": redact.rules(),
        # What a newer producer sent survives here.
        "extra": redact_extra(data.model_extra or {}, key),
    }
    return {name: value for name, value in meta.items() if value not in (None, {}, [])}


def claims_of(data: models.RunCompleted | models.MemoryEdited) -> list[str]:
    """The hashes of the claims that an event names."""
    if isinstance(data, models.MemoryEdited):
        named = [one.text_claim for one in data.files]
    else:
        named = [data.record_claim, *(one.archive for one in data.workspaces)]
    return sorted({one.sha256 for one in named if one is not None})


def _agent(workspace: models.Workspace) -> str:
    """The agent of a workspace's line, as an alias."""
    named = (workspace.agent or "").strip()
    return ids.alias(named) if named else lines.MAIN


def counted(*found: Mapping[str, int]) -> dict[str, int]:
    """How many secrets of each kind, of all that looked."""
    out: Counter[str] = Counter()
    for one in found:
        out.update(one)
    return dict(sorted(out.items()))


def redact_extra(extra: Mapping[str, Any], key: bytes | None = None) -> dict[str, Any]:
    """Unknown fields, with the same redaction as the record."""
    return json.loads(redact.line(json.dumps(dict(extra)), key)[0]) if extra else {}


def moment(value: Any) -> str:
    """A record's time as UTC with microseconds, so that text order is time order; `unknown` where it has none."""
    if not isinstance(value, str):
        return summarize.UNKNOWN
    try:
        parsed = dt.datetime.fromisoformat(value)
    except ValueError:
        return summarize.UNKNOWN
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=dt.UTC)
    try:
        return parsed.astimezone(dt.UTC).isoformat(timespec="microseconds")
    except OverflowError:
        return summarize.UNKNOWN
