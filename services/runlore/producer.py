"""The producer: run-completed events onto the bus, with a claim check for what is too large for it.

Whatever is handed in ends on the bus or in a dead letter; nothing is dropped, and nothing is judged here
that a stage would judge. An event is a function of the run, so sending it twice changes nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import queue
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from runlore import clock, errors
from runlore.bus import port as bus_port
from runlore.commit import keys, redaction
from runlore.consumers import dead, record
from runlore.events import envelope, ids, models, records
from runlore.memory import redact
from runlore.store import port as store_port

LINE_BYTES_MAX = models.RECORD_BYTES_MAX + 1024 * 1024
"""Longest input line that is read as an event, in bytes; a longer one becomes a dead letter unread."""
READ_BYTES = 1024 * 1024
BATCH = 100
IDLE_SECONDS = 0.2
"""What was read is sent after this much time without another line, in seconds."""


@dataclass(frozen=True)
class Sent:
    """What became of one input: the event's id, and what a stage will object to, if that is known already."""

    line: int
    event_id: str | None
    problem: errors.Poison | None = None


class Producer:
    """Publishes on the topic `runs`."""

    def __init__(
        self, store: store_port.ObjectStore, bus: bus_port.Bus, *, hashing: redaction.Keys | None = None
    ) -> None:
        """`hashing`: the projects' redaction keys. Who has none, or may not read one, leaves redaction to record."""
        self._store = store
        self._bus = bus
        self._hashing = hashing

    async def publish(self, datas: Sequence[dict[str, Any]], *, source: str) -> list[str]:
        """Publish run-completed data; the event ids. Raises `errors.Poison` on data that no stage would take."""
        messages, names = [], []
        for data in datas:
            checked = models.run_completed(data)
            event = envelope.of_run({**data, "record": checked.record}, source=source)
            data, checked = await self._redacted(data, checked)
            event = dataclasses.replace(event, data=await self._claimed(data, checked))
            messages.append(record.message_of(event, key_of(checked), "runs"))
            names.append(event.id)
        await self._bus.produce(messages)
        return names

    async def message(self, event: envelope.Event) -> bus_port.Outgoing:
        """The message of a run-completed event that has its id already; a large record is claimed in the store.

        Raises `errors.Poison` on an event that no stage would take.
        """
        checked = models.run_completed(event.data)
        data, checked = await self._redacted(event.data, checked)
        event = dataclasses.replace(event, data=await self._claimed(data, checked))
        message = record.message_of(event, key_of(checked), "runs")
        if len(message.value or b"") > envelope.EVENT_BYTES_MAX:
            raise errors.EventTooLarge(f"the event has {len(message.value or b'')} bytes without its record")
        return message

    async def emit(self, stream: BinaryIO, *, source: str, first_line: int = 1) -> AsyncIterator[list[Sent]]:
        """Publish each line of `stream`: a CloudEvent in structured mode, or a run's data alone.

        Yields what became of each batch once it is durable. A line that no stage can take is published as
        it came, and becomes a dead letter with its reason; one too long for the bus goes to the store.
        """
        lines = _Lines(stream)
        try:
            async for batch in self._emit(lines, source, first_line):
                yield batch
        finally:
            lines.end()

    async def _emit(self, lines: _Lines, source: str, first_line: int) -> AsyncIterator[list[Sent]]:
        batch: list[tuple[bus_port.Outgoing, Sent]] = []
        number = first_line - 1
        while True:
            asked = lines.ask(LINE_BYTES_MAX + 1)
            try:
                # What a slow pipe has brought does not wait for what it has not.
                done, _ = await asyncio.wait({asked}, timeout=IDLE_SECONDS)
            except asyncio.CancelledError:
                await self._send(batch)
                raise
            if batch and not done:
                yield await self._send(batch)
                batch = []
            raw = await asked
            number += 1
            is_long = len(raw) > LINE_BYTES_MAX and not raw.endswith(b"\n")
            if raw.strip() and not is_long:
                batch.append(await self._message(number, raw, source))
            if batch and (is_long or not raw or len(batch) == BATCH):
                yield await self._send(batch)
                batch = []
            if is_long:
                yield [await self._bury_long_line(number, raw, lines)]
            if not raw:
                return

    async def _send(self, batch: Sequence[tuple[bus_port.Outgoing, Sent]]) -> list[Sent]:
        await self._bus.produce([message for message, _ in batch])
        return [sent for _, sent in batch]

    async def _message(self, number: int, raw: bytes, source: str) -> tuple[bus_port.Outgoing, Sent]:
        """The message for one line, and what a stage will object to."""
        try:
            event = event_of(raw, source)
            if event.type == models.RUN_COMPLETED:
                message = await self.message(event)
            else:
                message = record.message_of(event, event.id, "runs")
            if len(message.value or b"") > envelope.EVENT_BYTES_MAX:
                raise errors.EventTooLarge(
                    f"the event has {len(message.value or b'')} bytes without its record"
                )
            return message, Sent(number, event.id, _objection(event))
        except errors.Poison as exc:
            return await self._as_it_came(number, raw, exc)

    async def _as_it_came(
        self, number: int, raw: bytes, problem: errors.Poison
    ) -> tuple[bus_port.Outgoing, Sent]:
        """A line that no stage will take, to be refused by the stage itself: one place judges, and keeps it.

        The bus takes no more than its limit; a longer one becomes a dead letter here.
        """
        event_id = hashlib.sha256(raw).hexdigest()[:32]
        structured = problem.kind != errors.BadJson.kind and is_structured(raw)
        if structured:
            headers = [("content-type", b"application/cloudevents+json")]
        else:
            event = envelope.Event(event_id, "/runlore/emit", models.RUN_COMPLETED, None, clock.now_iso())
            headers = event.headers()
        if len(raw) <= envelope.EVENT_BYTES_MAX:
            return bus_port.Outgoing("runs", event_id.encode(), raw, headers), Sent(number, event_id, problem)
        message = bus_port.Message("emit", 0, int(event_id[:12], 16), event_id.encode(), raw, headers, 0.0)
        return await dead.letter(self._store, message, problem), Sent(number, event_id, problem)

    async def _redacted(
        self, data: dict[str, Any], checked: models.RunCompleted
    ) -> tuple[dict[str, Any], models.RunCompleted]:
        """`data` without the secrets in its record; a claimed record is left to the record stage.

        The event's id was made before, so that a producer with other rules sends the same event.
        """
        if self._hashing is None or checked.record is None:
            return data, checked
        try:
            key = await self._hashing.of(checked.project)
        except errors.Blocked:
            return data, checked
        found = await asyncio.to_thread(redacted, checked.record, key)
        if found is None:
            return data, checked
        data = {**data, **found, "received": data.get("received") or found["received"]}
        return data, models.run_completed(data)

    async def _claimed(self, data: dict[str, Any], checked: models.RunCompleted) -> dict[str, Any]:
        """`data`, with a record above the limit exchanged for a claim on it."""
        line = checked.record
        if line is None:
            return data
        # ASCII only, so that the size on the bus is the length here.
        line = records.to_ascii(line)
        rest = {name: value for name, value in data.items() if name not in ("record", "record_claim")}
        if len(line) <= models.RECORD_INLINE_BYTES_MAX:
            return {**rest, "record": line}
        if len(line) > models.RECORD_BYTES_MAX:
            raise errors.RecordTooLarge(
                f"the record has {len(line)} bytes; at most {models.RECORD_BYTES_MAX} are accepted"
            )
        raw = line.encode("ascii")
        claim = await put_claim(self._store, checked.project, raw)
        return {**rest, "record_claim": claim.model_dump()}

    async def _bury_long_line(self, number: int, start: bytes, lines: _Lines) -> Sent:
        """A line longer than `LINE_BYTES_MAX`: its bytes to the store, and a dead letter that points to them."""
        digest = hashlib.sha256()

        async def parts() -> AsyncIterator[bytes]:
            part = start
            while part:
                digest.update(part)
                yield part
                part = b"" if part.endswith(b"\n") else await lines.ask(READ_BYTES)

        stored = await dead.put_parts(self._store, parts())
        problem = errors.EventTooLarge(
            f"the line has {stored[1]} bytes; at most {LINE_BYTES_MAX} are accepted"
        )
        event_id = digest.hexdigest()[:32]
        message = bus_port.Message("emit", 0, int(event_id[:12], 16), None, None, [], 0.0)
        name = dead.letter_id(message.topic, message.partition, message.offset)
        await self._bus.produce([dead.compose(name, message, problem, stored=stored)])
        return Sent(number, event_id, problem)


async def put_claim(store: store_port.ObjectStore, project: str, raw: bytes) -> models.Claim:
    """Put a record's bytes under their hash in its own project; the claim on them."""
    sha256 = hashlib.sha256(raw).hexdigest()
    await store.put(keys.claim(project, sha256), raw)
    return models.Claim(sha256=sha256, size=len(raw))


def redacted(line: str, key: bytes) -> dict[str, Any] | None:
    """The fields of an event whose record holds secrets, without them; None where it holds none. Blocking.

    A record that is no valid line is left as it is, to be refused by the record stage.
    """
    try:
        records.check(line)
    except errors.InvalidRecord:
        return None
    kept, counts = redact.line(records.to_ascii(line.rstrip("\r\n")), key)
    return {"record": kept, "received": records.received_hash(line), "redacted": counts} if counts else None


def key_of(data: models.RunCompleted) -> str:
    """The message key: everything of one rollout is in order."""
    return f"{data.project}/{data.rollout.alias}"


def event_of(raw: bytes, source: str) -> envelope.Event:
    """The event on a line. Raises `errors.Poison`."""
    document = envelope.load(raw, "the line")
    if isinstance(document, dict) and "specversion" in document:
        return envelope.from_structured(document)
    if not isinstance(document, dict):
        raise errors.InvalidEvent("the line is not a JSON object")
    checked = models.run_completed(document)
    return envelope.of_run({**document, "record": checked.record}, source=source)


def _objection(event: envelope.Event) -> errors.Poison | None:
    """What the record stage will say against an event's type."""
    try:
        envelope.check_type(event, models.RUN_COMPLETED)
    except errors.Poison as exc:
        return exc
    return None


def is_structured(raw: bytes) -> bool:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and "specversion" in document


def source_of(project: str) -> str:
    return f"/runlore/{ids.check_name(project, 'project')}"


class _Lines:
    """A stream's lines, read on a thread of its own: a pipe may stand still, and the loop may not.

    The thread is a daemon, because nothing can wake it from a read: it must not hold the process at its end.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._loop = asyncio.get_running_loop()
        self._asked: queue.SimpleQueue[tuple[int, asyncio.Future[bytes]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(stream,), name="runlore-emit", daemon=True).start()

    def ask(self, bytes_max: int) -> asyncio.Future[bytes]:
        """The next line, or as much of it; empty at the end."""
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._asked.put((bytes_max, future))
        return future

    def end(self) -> None:
        """Let the thread go, once it is not in a read."""
        self._asked.put(None)

    def _read(self, stream: BinaryIO) -> None:
        while asked := self._asked.get():
            bytes_max, future = asked
            try:
                raw: bytes | Exception = stream.readline(bytes_max)
            except (OSError, ValueError) as exc:
                raw = exc
            try:
                self._loop.call_soon_threadsafe(_answer, future, raw)
            except RuntimeError:  # The loop has ended.
                return


def _answer(future: asyncio.Future[bytes], raw: bytes | Exception) -> None:
    if future.done():
        return
    if isinstance(raw, Exception):
        future.set_exception(raw)
    else:
        future.set_result(raw)
