"""Answers: JSON with its ETag and compression, pages, and streams with ranges."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import re
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, BinaryIO, Protocol, TypeVar

import pydantic
import zstandard
from fastapi import Request
from starlette.responses import Response, StreamingResponse

from runlore import errors
from runlore.lookup.http import service as services
from runlore.upkeep import audit

IMMUTABLE = "private, max-age=31536000, immutable"
FOLLOWS = "private, no-cache"
COMPRESSED_FROM_BYTES = 1024
OFF_LOOP_BYTES = 256 * 1024
"""From here on a body is made in a thread: it would hold up the loop."""
PIECE_BYTES = 1024 * 1024
LENGTH_DIGITS_MAX = 20
GZIP_LEVEL, ZSTD_LEVEL = 5, 3

T = TypeVar("T")
_JSON: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(
    Any, config=pydantic.ConfigDict(ser_json_inf_nan="constants")
)


# --- ETags ------------------------------------------------------------------------------------------------


def is_known(request: Request, etag: str) -> bool:
    """Whether the client has this version already (`If-None-Match`, compared weakly)."""
    given = request.headers.get("if-none-match", "")
    listed = [one.strip().removeprefix("W/") for one in given.split(",")]
    return bool(given) and ("*" in listed or etag.removeprefix("W/") in listed)


def quoted(*parts: object, weak: bool = False) -> str:
    """An ETag of these parts; `weak`: it follows a head."""
    text = re.sub(r"[^A-Za-z0-9._:+-]", "_", ".".join(str(part) for part in parts))
    return f'{"W/" if weak else ""}"{text}"'


def unchanged(etag: str, caching: str) -> Response:
    return Response(status_code=304, headers={"ETag": etag, "Cache-Control": caching})


# --- whole bodies -----------------------------------------------------------------------------------------


async def found(
    request: Request,
    body: Any,
    *,
    etag: str | None = None,
    immutable: bool = False,
    status: int = 200,
    headers: dict[str, str] | None = None,
) -> Response:
    """`body` as JSON."""
    caching = IMMUTABLE if immutable else FOLLOWS if etag else "no-store"
    if etag and is_known(request, etag):
        return unchanged(etag, caching)
    raw = encoded(body)
    more = {"Cache-Control": caching, **({"ETag": etag} if etag else {}), **(headers or {})}
    return await compressed(request, raw, "application/json", more, status)


def encoded(body: Any) -> bytes:
    """`body` as JSON, in UTF-8."""
    try:
        # Several times as fast as json.dumps on a page or a list of files.
        return _JSON.dump_json(body)
    except ValueError:
        # A name may hold half a surrogate pair, which is no UTF-8 but can be escaped; or it is no type of JSON's.
        return json.dumps(body, separators=(",", ":"), default=str).encode()


async def text(request: Request, content: str, *, etag: str, immutable: bool) -> Response:
    """A file of a memory. Never guessed to be anything but text."""
    caching = IMMUTABLE if immutable else FOLLOWS
    if is_known(request, etag):
        return unchanged(etag, caching)
    headers = {"Cache-Control": caching, "ETag": etag}
    return await compressed(request, content.encode("utf-8"), "text/plain; charset=utf-8", headers, 200)


async def compressed(
    request: Request, raw: bytes, media_type: str, headers: dict[str, str], status: int
) -> Response:
    """`raw`, compressed as the client takes it."""
    headers = {**headers, "Vary": "Accept-Encoding"}
    coding = _coding(request.headers.get("accept-encoding", ""))
    if coding and len(raw) >= COMPRESSED_FROM_BYTES:
        work = _CODINGS[coding]
        raw = await asyncio.to_thread(work, raw) if len(raw) > OFF_LOOP_BYTES else work(raw)
        headers["Content-Encoding"] = coding
    return Response(raw, status, headers, media_type)


_CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "zstd": lambda raw: zstandard.ZstdCompressor(ZSTD_LEVEL).compress(raw),
    "gzip": lambda raw: gzip.compress(raw, GZIP_LEVEL, mtime=0),
}


def _coding(accepted: str) -> str | None:
    """The best coding that a client takes."""
    taken = set()
    for one in accepted.split(","):
        name, _, quality = one.partition(";")
        if not re.fullmatch(r"\s*q\s*=\s*0(\.0*)?\s*", quality):
            taken.add(name.strip().lower())
    return next((coding for coding in _CODINGS if coding in taken), None)


# --- pages ------------------------------------------------------------------------------------------------


def cursor_of(*values: Any) -> str:
    """Where the next page begins."""
    return base64.urlsafe_b64encode(json.dumps(values, separators=(",", ":")).encode()).decode().rstrip("=")


def place_of(cursor: str | None, *kinds: type) -> tuple[Any, ...] | None:
    """What `cursor_of` was given; None at the beginning. Raises `errors.InvalidInput`."""
    if cursor is None:
        return None
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if len(values) == len(kinds) and all(
            type(value) is kind and _is_sound(value) for value, kind in zip(values, kinds, strict=True)
        ):
            return tuple(values)
    except (ValueError, TypeError, RecursionError):
        pass
    raise errors.InvalidInput("the cursor is none that this list gave")


def _is_sound(value: Any) -> bool:
    """Whether the index can take it: a number of 63 bits, or text without half a surrogate pair."""
    if isinstance(value, int):
        return 0 <= value < 2**63
    return not any("\ud800" <= char <= "\udfff" for char in value)


def page(
    rows: Sequence[T], limit: int, cursor: Callable[[T], str], shown: Callable[[T], Any] = lambda row: row
) -> dict[str, Any]:
    """A page of `rows`, of which there is one more than `limit` where the list goes on."""
    here = rows[:limit]
    return {"items": [shown(row) for row in here], "next": cursor(here[-1]) if len(rows) > limit else None}


# --- streams ----------------------------------------------------------------------------------------------


class Content(Protocol):
    """Bytes of a known size, read from anywhere; `close` it."""

    size: int

    def parts(self, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from `start` up to `end`."""
        ...

    def close(self) -> None: ...


_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))", re.ASCII)


def range_of(header: str | None, size: int) -> tuple[int, int] | None:
    """(start, end) of the one range that is asked for; None for the whole. Raises `errors.BadRange`.

    More than one range, or a unit that is not known, counts as none (RFC 9110, 14.2).
    """
    asked = _RANGE.fullmatch((header or "").replace(" ", ""))
    if asked is None:
        return None
    first, last, tail = asked.groups()
    if tail is not None:
        start, end = max(0, size - int(tail)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
    if start >= end:
        raise errors.BadRange(f"there are {size} bytes", size=size)
    return start, end


async def stream(
    request: Request,
    open_content: Callable[[], Any],
    *,
    gate: services.Gate,
    project: str,
    etag: str,
    media_type: str,
    immutable: bool,
    headers: dict[str, str] | None = None,
) -> Response:
    """Bytes with `Range`. What is read is let go when the last byte is sent, or the client goes away."""
    caching = IMMUTABLE if immutable else FOLLOWS
    if is_known(request, etag):
        return unchanged(etag, caching)
    gate.enter(project)
    content: Content | None = None
    try:
        content = await open_content()
        asked = request.headers.get("range")
        if request.headers.get("if-range", etag) != etag:
            asked = None
        part = range_of(asked, content.size)
    except BaseException as exc:
        if content is not None:
            content.close()
        gate.leave(project)
        if isinstance(exc, errors.BadRange) and content is not None:
            return _unsatisfiable(exc, content.size)
        raise
    start, end = part or (0, content.size)
    sent = {
        **(headers or {}),
        "ETag": etag,
        "Cache-Control": caching,
        "Accept-Ranges": "bytes",
        "Content-Length": str(end - start),
        # It is somebody's file: nothing that a browser should run.
        "Content-Security-Policy": "sandbox",
    }
    if part is not None:
        sent["Content-Range"] = f"bytes {start}-{end - 1}/{content.size}"
    body = content.parts(start, end)
    return _Stream(body, content.close, lambda: gate.leave(project), 206 if part else 200, sent, media_type)


def _unsatisfiable(exc: errors.BadRange, size: int) -> Response:
    from runlore.lookup.http import problems

    answer = problems.problem(exc)
    answer.headers["Content-Range"] = f"bytes */{size}"
    return answer


class _Stream(StreamingResponse):
    """A stream that lets go of what it reads however it ends, also where it never began."""

    def __init__(
        self,
        body: AsyncIterator[bytes],
        close: Callable[[], None],
        leave: Callable[[], None],
        status: int,
        headers: dict[str, str],
        media_type: str,
    ) -> None:
        super().__init__(body, status, headers, media_type)
        self._body, self._close, self._leave = body, close, leave

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            try:
                await self._body.aclose()  # type: ignore[attr-defined]
            finally:
                try:
                    await asyncio.to_thread(self._close)
                finally:
                    # Not on that thread: a gate is counted on the loop alone.
                    self._leave()


class Files:
    """A readable, seekable file whose reads block, as content."""

    def __init__(self, file: BinaryIO, size: int, *behind: bytes) -> None:
        self._file, self._own, self._behind = file, size, b"".join(behind)
        self.size = size + len(self._behind)
        # A read may be under way when its client goes away, and nothing ends it: closing waits for it.
        self._reading = threading.Lock()

    async def parts(self, start: int, end: int) -> AsyncIterator[bytes]:
        """The file's bytes, then those behind it."""
        if start < self._own:
            self._file.seek(start)
        at = start
        while at < min(end, self._own):
            piece = await asyncio.to_thread(self._read, min(PIECE_BYTES, min(end, self._own) - at))
            if not piece:
                raise errors.Corrupt("what is sent is shorter than it should be")
            at += len(piece)
            yield piece
        rest = self._behind[at - self._own : end - self._own] if end > self._own else b""
        for begin in range(0, len(rest), PIECE_BYTES):
            yield rest[begin : begin + PIECE_BYTES]

    def _read(self, count: int) -> bytes:
        with self._reading:
            return b"" if self._file.closed else self._file.read(count)

    def close(self) -> None:
        """Blocking."""
        with self._reading:
            self._file.close()


class Pieces:
    """Content that a function makes from (offset, length)."""

    def __init__(self, size: int, make: Callable[[int, int], AsyncIterator[bytes]]) -> None:
        self.size, self._make = size, make

    async def parts(self, start: int, end: int) -> AsyncIterator[bytes]:
        if end > start:
            async for piece in self._make(start, end - start):
                yield piece

    def close(self) -> None:
        """Nothing is held."""


# --- bodies that come in ------------------------------------------------------------------------------------


def check_length(request: Request, most: int) -> None:
    """Raises `errors.BodyTooLarge` where the client says itself that it is."""
    told = request.headers.get("content-length", "")
    # Of so many digits that Python would not read them, it is no less too large.
    if told.isascii() and told.isdigit() and (len(told) > LENGTH_DIGITS_MAX or int(told) > most):
        raise too_large(most)


def too_large(most: int) -> errors.BodyTooLarge:
    return errors.BodyTooLarge(f"the body is larger than {most} bytes", hint="see `limits` of GET /v1")


async def body_of(request: Request, most: int) -> bytes:
    """The whole body. Raises `errors.BodyTooLarge` as soon as that is known."""
    check_length(request, most)
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > most:
            raise too_large(most)
        pieces.append(piece)
    return b"".join(pieces)


def reason_of(body: Mapping[str, Any], does: str) -> str:
    """Why, as a body says; `does`: what the request does. Raises `errors.InvalidInput`."""
    reason = body.get("reason")
    if not isinstance(reason, str) or not reason.strip() or len(reason) > audit.REASON_CHARS_MAX:
        raise errors.InvalidInput(f"{does}: say why in `reason` ({audit.REASON_CHARS_MAX} characters)")
    return reason.strip()


async def object_of(request: Request) -> dict[str, Any]:
    """A small JSON object; {} for an empty body. Raises `errors.BadJson`, `errors.InvalidInput`."""
    from runlore.events import envelope

    raw = await body_of(request, services.SMALL_JSON_BYTES_MAX)
    body = envelope.strict(raw, "the body") if raw.strip() else {}
    if not isinstance(body, dict):
        raise errors.InvalidInput("the body is not a JSON object")
    return body
