"""The producer: runs' and edits' events onto the bus, with a claim check for what is too large for it.

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
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from runlore import clock, errors
from runlore.bus import port as bus_port
from runlore.commit import keys, redaction
from runlore.consumers import dead, edited, record
from runlore.events import envelope, ids, models, records
from runlore.memory import redact
from runlore.store import port as store_port

LINE_BYTES_MAX = models.RECORD_BYTES_MAX + 1024 * 1024
"""Longest input line that is read as an event, in bytes; a longer one becomes a dead letter unread."""
READ_BYTES = 1024 * 1024
HANDED_IN = (models.RUN_COMPLETED, models.MEMORY_EDITED)
"""What a producer may hand in."""
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
        """Publish runs' and edits' data; the event ids. Raises `errors.Poison` on data that no stage would take."""
        messages, names = [], []
        for data in datas:
            checked = models.handed_in(models.type_of(data), data)
            event = event_from(data, checked, source=source)
            data, checked = await self._redacted(data, checked)
            event = dataclasses.replace(event, data=await self._claimed(data, checked))
            messages.append(record.message_of(event, key_of(checked), "runs"))
            names.append(event.id)
        await self._bus.produce(messages)
        return names

    async def message(self, event: envelope.Event) -> bus_port.Outgoing:
        """The message of an event that has its id already; a large record or text is claimed in the store.

        Raises `errors.Poison` on an event that no stage would take.
        """
        checked = models.handed_in(event.type, event.data)
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
            if event.type in HANDED_IN:
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
        self, data: dict[str, Any], checked: models.RunCompleted | models.MemoryEdited
    ) -> tuple[dict[str, Any], models.RunCompleted | models.MemoryEdited]:
        """`data` without the secrets in its record or texts; what came as a claim is left to the record stage."""
        if self._hashing is None:
            return data, checked
        key = await self._hashing.of_or_none(checked.project)
        return await asyncio.to_thread(hidden, data, checked, key) if key is not None else (data, checked)

    async def _claimed(
        self, data: dict[str, Any], checked: models.RunCompleted | models.MemoryEdited
    ) -> dict[str, Any]:
        """`data`, with a record or a text above the limit exchanged for a claim on it."""
        if isinstance(checked, models.MemoryEdited):
            changed, raws = edit_claims(data, checked)
            for raw in raws:
                await put_claim(self._store, checked.project, raw)
            return changed
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


def edit_claims(data: dict[str, Any], checked: models.MemoryEdited) -> tuple[dict[str, Any], list[bytes]]:
    """An edit's data, with each text above the limit exchanged for a claim; and the bytes to claim.

    Raises `errors.RecordTooLarge`.
    """
    files, raws = [], []
    for one in checked.files:
        one.check_size()
    for file in data["files"]:
        text = file.get("text")
        if text is None or len(envelope.dump(text)) <= models.RECORD_INLINE_BYTES_MAX:
            files.append(file)
            continue
        raws.append(text.encode("utf-8", "replace"))
        claim = {"sha256": hashlib.sha256(raws[-1]).hexdigest(), "size": len(raws[-1])}
        files.append({**{name: one for name, one in file.items() if name != "text"}, "text_claim": claim})
    return {**data, "files": files}, raws


async def put_claim(store: store_port.ObjectStore, project: str, raw: bytes) -> models.Claim:
    """Put a record's bytes under their hash in its own project; the claim on them."""
    sha256 = hashlib.sha256(raw).hexdigest()
    await store.put(keys.claim(project, sha256), raw)
    return models.Claim(sha256=sha256, size=len(raw))


def event_from(
    data: dict[str, Any], checked: models.RunCompleted | models.MemoryEdited, *, source: str
) -> envelope.Event:
    """The event for data that was checked: of a run, its record as text; or of an edit."""
    if isinstance(checked, models.MemoryEdited):
        return envelope.of_edit(data, source=source)
    return envelope.of_run({**data, "record": checked.record}, source=source)


def hidden(
    data: dict[str, Any], checked: models.RunCompleted | models.MemoryEdited, key: bytes
) -> tuple[dict[str, Any], models.RunCompleted | models.MemoryEdited]:
    """`data` without the secrets in its record, texts and unknown fields; as it is where there are none. Blocking.

    What was given is told by its hash (`received`), so that a producer with other rules sends the same run. An event's
    id must be made before.
    """
    extra = checked.model_extra or {}
    told, counts = _hidden_extra(extra, key)
    if isinstance(checked, models.MemoryEdited):
        files, found = _hidden_files(data["files"], key)
        told |= {"files": files} if found else {}
    else:
        line, received, found = _hidden_record(checked.record, key)
        told |= {"record": line, "received": checked.received or received} if found else {}
    if not found and not counts:
        return data, checked
    rest = {name: one for name, one in data.items() if name not in extra}
    data = {**rest, **told, "redacted": record.counted(checked.redacted, found, counts)}
    is_edit = isinstance(checked, models.MemoryEdited)
    return data, models.handed_in(models.MEMORY_EDITED if is_edit else models.RUN_COMPLETED, data)


def _hidden_extra(extra: Mapping[str, Any], key: bytes) -> tuple[dict[str, Any], dict[str, int]]:
    """(Unknown fields, how many secrets of each kind were in them): the record keeps such fields."""
    line, counts = redact.line(json.dumps(dict(extra)), key) if extra else ("{}", {})
    return json.loads(line), counts


def _hidden_record(line: str | None, key: bytes) -> tuple[str, str, dict[str, int]]:
    """(The record without secrets, the hash of what it was, how many of each kind).

    One that came as a claim, or is no valid line, is left as it is, for the record stage.
    """
    try:
        if line is not None:
            records.check(line)
    except (errors.InvalidRecord, errors.RecordTooLarge):
        line = None
    if line is None:
        return "", "", {}
    kept, counts = redact.line(records.to_ascii(line.rstrip("\r\n")), key)
    return kept, records.received_hash(line), counts


def _hidden_files(files: Sequence[dict[str, Any]], key: bytes) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The same for the texts of an edit; one that came as a claim is left to the record stage."""
    out, counts = [], dict[str, int]()
    for file in files:
        text = file.get("text")
        kept, found = redact.counted_text(text, key) if text is not None else (None, {})
        if found:
            received = file.get("received") or edited.received_hash(text)
            file = {**file, "text": kept, "received": received}
            counts = record.counted(counts, found)
        out.append(file)
    return out, counts


def key_of(data: models.RunCompleted | models.MemoryEdited) -> str:
    """The message key: everything of one rollout is in order."""
    return f"{data.project}/{data.rollout.alias}"


def event_of(raw: bytes, source: str) -> envelope.Event:
    """The event on a line. Raises `errors.Poison`."""
    document = envelope.strict(raw, "the line")
    if isinstance(document, dict) and "specversion" in document:
        return envelope.from_structured(document)
    if not isinstance(document, dict):
        raise errors.InvalidEvent("the line is not a JSON object")
    checked = models.handed_in(models.type_of(document), document)
    return event_from(document, checked, source=source)


def _objection(event: envelope.Event) -> errors.Poison | None:
    """What the record stage will say against an event's type."""
    try:
        envelope.check_type(event, *HANDED_IN)
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
