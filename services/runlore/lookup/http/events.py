"""Routes that take in: a run's event, and the archive of its workspace. For producers without Kafka.

An event is on the bus, durably, before it is answered; a stage judges it as it judges any other. What no stage would
take is refused here, so that its producer hears of it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import hashlib
import json
import mmap
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from runlore import clock, errors, producer
from runlore.commit import keys
from runlore.events import envelope, models, records
from runlore.lookup.http import answers, callers, limiting, shapes
from runlore.lookup.http import service as services
from runlore.store import port

T = TypeVar("T")

router = APIRouter(prefix="/v1/projects/{project}")
TEMPORARY = ".upload"
REQUEST_FORMAT = "runlore.request/1"
KEY_CHARS_MAX = 255
_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
MAPPED_FROM_BYTES = 32 * 1024 * 1024
_EVENT_BODY = {
    "required": True,
    "description": (
        "A run's data (schemas/io.runlore.run.completed.v1.json), or a live edit's (…memory.edited.v1.json: it has an"
        " `edit_id` and no record), or either as a CloudEvent in structured mode."
    ),
    "content": {"application/json": {"schema": {"type": "object"}}},
}
_ARCHIVE_BODY = {
    "required": True,
    "description": "A tar, plain or gzipped.",
    "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}},
}
_URL_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["sha256", "size"],
                "properties": {"sha256": {"type": "string"}, "size": {"type": "integer", "minimum": 0}},
            }
        }
    },
}


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """An event as it goes onto the bus, and the record that goes to the store before it."""

    event: envelope.Event
    checked: models.RunCompleted | models.MemoryEdited
    claimed: list[tuple[str, bytes]]
    """Hash and bytes of each claim that the event makes here."""
    sha256: str
    """Of what came, however its fields were ordered."""


@router.post(
    "/events",
    status_code=202,
    summary="Hand in the event of a run, or of a live edit of memory",
    tags=["events"],
    openapi_extra={"requestBody": _EVENT_BODY},
    responses=shapes.answers(shapes.Sent, 202),
)
async def events(
    request: Request,
    project: callers.Project,
    _: Annotated[Any, callers.needs(callers.WRITE, counts=limiting.PUBLISH)],
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=KEY_CHARS_MAX, description="The run's id without another."),
    ] = None,
) -> Response:
    service = callers.service_of(request)
    with service.events.entered(project):
        raw = await answers.body_of(request, services.JSON_BYTES_MAX)
        if limiting.told_bytes(request) is None:
            await limiting.count_bytes(request, len(raw))
        # Off the loop: a record may have 64 MiB.
        key = await service.hashing.of_or_none(project)
        made = await asyncio.to_thread(_prepare, raw, project, idempotency_key, key)
        del raw
        if idempotency_key is not None:
            await _first_of_its_key(service.store, project, idempotency_key, made)
        for sha256, content in made.claimed:
            await service.store.put(keys.claim(project, sha256), content)
        sender = producer.Producer(service.store, service.bus)
        message = await sender.message(made.event)
        await service.bus.produce(
            [dataclasses.replace(message, headers=[*message.headers, *_trace(request)])]
        )
    data = made.checked
    body = {
        "event": made.event.id,
        "rollout": data.rollout.original,
        "run": data.identity,
        "attempt": data.attempt,
    }
    return await answers.found(request, body, status=202)


def _trace(request: Request) -> list[tuple[str, bytes]]:
    """The caller's trace, which the stages go on with (W3C; what is none begins one of its own)."""
    given = request.headers.get("traceparent", "")
    return [("traceparent", given.encode("ascii"))] if _TRACEPARENT.fullmatch(given) else []


def _prepare(raw: bytes, project: str, idempotency_key: str | None, key: bytes | None) -> _Prepared:
    """What came, checked and made an event. Blocking. Raises a `Poison`, or `errors.Forbidden`."""
    document = envelope.strict(raw, "the body")
    if not isinstance(document, dict):
        raise errors.InvalidEvent("the body is not a JSON object")
    if records.is_too_deep(document):
        raise errors.BadJson(f"the event's data is nested more than {records.DEPTH_MAX} deep")
    sha256 = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    event = envelope.from_structured(document) if "specversion" in document else None
    if event is not None:
        envelope.check_type(event, *producer.HANDED_IN)
    given = event.data if event is not None else document
    if not isinstance(given, dict):
        raise errors.InvalidEvent("the event's data is not a JSON object")
    if given.get("project", project) != project:
        raise errors.Forbidden(callers.NOT_YOURS)
    data = {"project": project, **given}
    event_type = event.type if event is not None else models.type_of(data)
    if idempotency_key is not None and event_type == models.RUN_COMPLETED and "run_id" not in data:
        data["run_id"] = idempotency_key
    checked = models.handed_in(event_type, data)
    if event is None:
        event = producer.event_from(data, checked, source=f"/runlore/http/{project}")
    # After the event has its id: with other rules the same body is the same event.
    if key is not None:
        data, checked = producer.hidden(data, checked, key)
    data, checked, claimed = _claimed(data, checked)
    return _Prepared(dataclasses.replace(event, data=data), checked, claimed, sha256)


def _claimed(
    data: dict[str, Any], checked: models.RunCompleted | models.MemoryEdited
) -> tuple[dict[str, Any], models.RunCompleted | models.MemoryEdited, list[tuple[str, bytes]]]:
    """What is too large for the bus (a record, an edited file) exchanged for a claim on it, and its bytes."""
    if isinstance(checked, models.MemoryEdited):
        data, raws = producer.edit_claims(data, checked)
        return data, checked, [(hashlib.sha256(raw).hexdigest(), raw) for raw in raws]
    if checked.record is None:
        return data, checked, []
    line = records.to_ascii(checked.record)
    if len(line) > models.RECORD_BYTES_MAX:
        raise errors.RecordTooLarge(
            f"the record has {len(line)} bytes; at most {models.RECORD_BYTES_MAX} are accepted"
        )
    rest = {name: value for name, value in data.items() if name not in ("record", "record_claim")}
    if len(line) <= models.RECORD_INLINE_BYTES_MAX:
        return {**rest, "record": line}, checked, []
    raw = line.encode("ascii")
    claim = models.Claim(sha256=hashlib.sha256(raw).hexdigest(), size=len(raw))
    data = {**rest, "record_claim": claim.model_dump()}
    return data, models.run_completed(data), [(claim.sha256, raw)]


async def _first_of_its_key(
    store: port.ObjectStore, project: str, idempotency_key: str, made: _Prepared
) -> None:
    """Note what this key stands for, before it takes effect. Raises `errors.IdempotencyConflict`.

    The same body again goes on: its event has the same id, and is recognised by the stages.
    """
    name = hashlib.sha256(idempotency_key.encode("utf-8", "surrogatepass")).hexdigest()
    where = keys.request(project, name)
    body = {"format": REQUEST_FORMAT, "sha256": made.sha256, "event": made.event.id, "at": clock.now_iso()}
    try:
        await store.put_if_absent(where, envelope.dump(body))
        return
    except errors.PreconditionFailed:
        pass
    except errors.OutcomeUnknown:
        pass  # It may have landed: what is there now says so.
    stored = await store.get(where)
    if stored is None:
        raise errors.StoreUnavailable("the idempotency key could not be kept", hint="send the same again")
    try:
        known = json.loads(stored.body)["sha256"]
    except (ValueError, KeyError, TypeError):
        raise errors.Corrupt(f"the request {where} is not one", key=where) from None
    if known != made.sha256:
        raise errors.IdempotencyConflict(
            "another body came under this idempotency key before",
            hint="a corrected run needs a key of its own, or a higher `attempt` and no key",
        )


# --- archives -----------------------------------------------------------------------------------------------


@router.post(
    "/archives",
    status_code=201,
    summary="Hand in the archive of a workspace, for an event to claim",
    tags=["events"],
    openapi_extra={"requestBody": _ARCHIVE_BODY},
    responses=shapes.answers(shapes.Claim, 201),
)
async def archives(
    request: Request, project: callers.Project, _: Annotated[Any, callers.needs(callers.WRITE)]
) -> Response:
    service = callers.service_of(request)
    answers.check_length(request, services.ARCHIVE_BYTES_MAX)
    if (told := limiting.told_bytes(request)) is not None:
        await limiting.count_bytes(request, told)
    with service.uploads.entered(project):
        sha256, size = await _claim(request, service, project)
    return await answers.found(request, {"sha256": sha256, "size": size}, status=201)


@router.post(
    "/archives/url",
    summary="Where to put an archive directly, if the store has such places",
    tags=["events"],
    openapi_extra={"requestBody": _URL_BODY},
    responses=shapes.answers(shapes.Place),
)
async def archive_url(
    request: Request, project: callers.Project, _: Annotated[Any, callers.needs(callers.WRITE)]
) -> Response:
    service = callers.service_of(request)
    claim = models.parse_data(models.Claim, await answers.object_of(request))
    if claim.size > services.ARCHIVE_BYTES_MAX:
        raise answers.too_large(services.ARCHIVE_BYTES_MAX)
    presigned_put = getattr(service.store, "presigned_put", None)
    if presigned_put is None:
        raise errors.Refused("the store gives out no places", hint="POST …/archives takes the bytes")
    # They go past this service: what is asked for counts, whether it comes or not.
    await limiting.count_bytes(request, claim.size)
    found = await presigned_put(keys.claim(project, claim.sha256), sha256=claim.sha256, size=claim.size)
    expires = clock.now() + dt.timedelta(seconds=found.seconds)
    body = {
        "url": found.url,
        "method": "PUT",
        "headers": dict(found.headers),
        "expires": expires.isoformat(timespec="seconds"),
        "claim": {"sha256": claim.sha256, "size": claim.size},
    }
    return await answers.found(request, body)


async def _claim(request: Request, service: services.Service, project: str) -> tuple[str, int]:
    """The body in the store, by way of a file here: (its SHA-256, its size)."""
    path, file = await _on_disk(_temporary, service.work_dir)
    try:
        size, sha256 = await _received(request, file)
        if not size:
            raise errors.BadArchive("the archive is empty")
        if limiting.told_bytes(request) is None:
            await limiting.count_bytes(request, size)
        await service.store.put(keys.claim(project, sha256), await _on_disk(_mapped, file, size))
        return sha256, size
    finally:
        await asyncio.to_thread(_let_go, path, file)


async def _on_disk(work: Callable[..., T], *arguments: Any) -> T:
    """`work` in a thread. Raises `errors.StoreUnavailable` where the disk does not do it: another replica's may."""
    try:
        return await asyncio.to_thread(work, *arguments)
    except OSError as exc:
        raise errors.StoreUnavailable(f"the archive can not be kept here: {exc.strerror}") from exc


def _temporary(folder: Path) -> tuple[Path, BinaryIO]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{clock.new_id()}{TEMPORARY}"
    return path, open(path, "x+b")


def _mapped(file: BinaryIO, size: int) -> bytes:
    """A small file's bytes; a large one mapped: the store takes from the disk as much at a time as it sends."""
    if size <= MAPPED_FROM_BYTES:
        file.seek(0)
        return file.read()
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # type: ignore[return-value]


def _let_go(path: Path, file: BinaryIO) -> None:
    file.close()
    path.unlink(missing_ok=True)


async def _received(request: Request, file: BinaryIO) -> tuple[int, str]:
    """The body in a file: (bytes, SHA-256), hashed as it comes. Raises `errors.BodyTooLarge`."""
    digest, size = hashlib.sha256(), 0
    held: list[bytes] = []
    waiting = 0

    def write(pieces: list[bytes]) -> None:
        for piece in pieces:
            digest.update(piece)
            file.write(piece)

    async for piece in request.stream():
        size += len(piece)
        if size > services.ARCHIVE_BYTES_MAX:
            raise answers.too_large(services.ARCHIVE_BYTES_MAX)
        held.append(piece)
        waiting += len(piece)
        if waiting >= answers.PIECE_BYTES:
            await _on_disk(write, held)
            held, waiting = [], 0
    await _on_disk(write, held)
    await _on_disk(file.flush)
    return size, digest.hexdigest()


def sweep(folder: Path) -> None:
    """Remove what a killed service left half received: at the start, when no upload of this folder is under way."""
    for left in folder.glob(f"*{TEMPORARY}"):
        left.unlink(missing_ok=True)
