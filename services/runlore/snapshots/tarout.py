"""A snapshot as a tar: seekable, uncompressed, made as it is read, the same bytes for the same id. Blocking.

Every header is written here, not by a library, so no new version of anything changes a byte: ustar, with a PAX
record where a name, size or time does not fit. Only the place of each entry is kept; headers are made and
chunks are fetched when they are read.

What the SDK's restore refuses (links that leave the tree, names that look like Windows paths) is left out, and
`Export.left_out` tells what and why: such an archive always restores.
"""

from __future__ import annotations

import asyncio
import bisect
import io
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from runlore import errors
from runlore.snapshots import names, reading, symlinks, trees

BLOCK = 512
END_BYTES = 2 * BLOCK
_OCTAL_MAX = 8**11 - 1
"""The largest number that an 11-digit octal field holds: a size, or seconds."""
_FIELD = 100

T = TypeVar("T")


class Bridge:
    """A loop in a thread of its own, so that a plain `read` can wait for the store, whichever thread calls it.

    The caller may itself be on a loop (the SDK reads archives there); waiting on that loop would never end.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="runlore-export", daemon=True)
        self._thread.start()

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def refused(path: bytes, entry: trees.Entry, links: Mapping[bytes, bytes]) -> str | None:
    """Why this entry is left out: the SDK's restore would refuse it, or it leads outside through one of `links`."""
    if b"\\" in path:
        return "name with a backslash"
    if path[1:2] == b":":
        return "name like a Windows drive"
    if isinstance(entry, trees.Link) and not symlinks.stays_inside(path, entry.target, links):
        return "absolute link" if entry.target.startswith(b"/") else "link leads outside"
    return None


def header(path: bytes, entry: trees.Entry) -> bytes:
    """The header of one member, with a PAX record before it where one is needed."""
    is_dir, is_link = isinstance(entry, trees.Dir), isinstance(entry, trees.Link)
    name = path + b"/" if is_dir and path != b"." else path
    size = entry.size if isinstance(entry, trees.File) else 0
    target = entry.target if isinstance(entry, trees.Link) else b""
    mode = 0o777 if isinstance(entry, trees.Link) else entry.mode
    seconds, fraction = divmod(entry.mtime_ns, 10**9)
    records: list[tuple[bytes, bytes]] = []
    if fraction or not 0 <= seconds <= _OCTAL_MAX:
        records.append((b"mtime", _decimal(entry.mtime_ns)))
        seconds = min(max(seconds, 0), _OCTAL_MAX)
    if size > _OCTAL_MAX:
        records.append((b"size", b"%d" % size))
    if len(name) > _FIELD or not name.isascii():
        records.append((b"path", name))
    if len(target) > _FIELD or not target.isascii():
        records.append((b"linkpath", target))
    if not is_link and entry.xattrs:
        records += [(b"SCHILY.xattr." + _xattr_key(key), entry.xattrs[key]) for key in entry.xattrs]
    kind = b"5" if is_dir else b"2" if is_link else b"0"
    main = _block(name[:_FIELD], mode, min(size, _OCTAL_MAX), seconds, kind, target[:_FIELD])
    return _pax(records) + main if records else main


def _decimal(nanoseconds: int) -> bytes:
    sign = b"-" if nanoseconds < 0 else b""
    seconds, fraction = divmod(abs(nanoseconds), 10**9)
    return sign + (b"%d.%09d" % (seconds, fraction)).rstrip(b"0").rstrip(b".")


def _pax(records: list[tuple[bytes, bytes]]) -> bytes:
    body = b""
    if not all(_is_utf8(value) for key, value in records if key in (b"path", b"linkpath")):
        body = _record(b"hdrcharset", b"BINARY")
    body += b"".join(_record(key, value) for key, value in sorted(records))
    return _block(b"PaxHeader", 0o644, len(body), 0, b"x", b"") + _padded(body)


def _xattr_key(name: str) -> bytes:
    """An attribute's name as GNU tar writes it: a record's key ends at the first '='."""
    return name.encode("utf-8", "surrogateescape").replace(b"%", b"%25").replace(b"=", b"%3D")


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _record(key: bytes, value: bytes) -> bytes:
    """One PAX record: its own length, which counts itself, then key=value."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1
    return b"%d %s=%s\n" % (length, key, value)


def _block(name: bytes, mode: int, size: int, seconds: int, kind: bytes, target: bytes) -> bytes:
    fields = (
        name.ljust(_FIELD, b"\0"),
        b"%07o\0" % mode,
        b"0000000\0" * 2,  # Nobody's: owners are not kept.
        b"%011o\0" % size,
        b"%011o\0" % seconds,
        b" " * 8,  # The checksum counts itself as spaces.
        kind,
        target.ljust(_FIELD, b"\0"),
        b"ustar\x0000",
        bytes(64),
        b"0000000\0" * 2,
        bytes(167),
    )
    raw = b"".join(fields)
    return raw[:148] + b"%06o\0 " % sum(raw) + raw[156:]


def _padded(body: bytes) -> bytes:
    return body + bytes(-len(body) % BLOCK)


class Export(io.RawIOBase):
    """The tar of a snapshot, readable and seekable. Close it: it holds a thread."""

    def __init__(self, opened: reading.Opened, members: list[tuple[bytes, trees.Entry]]) -> None:
        self._opened, self._members = opened, members
        self._bridge = Bridge()
        self._starts: list[int] = []
        self._at = 0
        self.left_out: list[tuple[str, str]] = []
        """Paths that are not in the archive, and why."""
        place = 0
        for path, entry in members:
            self._starts.append(place)
            size = entry.size if isinstance(entry, trees.File) else 0
            place += len(header(path, entry)) + size + -size % BLOCK
        self._end = place
        self.size = place + END_BYTES
        self._spans: tuple[int, list[tuple[int, bytes | None, int]]] = (-1, [])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check_open()
        starts = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}
        if whence not in starts or starts[whence] + offset < 0:
            raise ValueError("a place before the beginning, or from nowhere")
        start = starts[whence]
        self._at = start + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Bytes from here on; all that is left for -1."""
        self._check_open()
        left = self.size - self._at if size is None or size < 0 else min(size, self.size - self._at)
        parts = []
        while left > 0:
            piece = self._piece(left)
            parts.append(piece)
            self._at += len(piece)
            left -= len(piece)
        return b"".join(parts)

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the archive is closed")

    def readinto(self, buffer: Any) -> int:
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            self._bridge.close()
        super().close()

    def _piece(self, most: int) -> bytes:
        """Some bytes from here on, at least one."""
        if self._at >= self._end:
            return bytes(min(most, self.size - self._at))
        number = bisect.bisect_right(self._starts, self._at) - 1
        path, entry = self._members[number]
        head = header(path, entry)
        inside = self._at - self._starts[number]
        if inside < len(head):
            return head[inside : inside + most]
        inside -= len(head)
        assert isinstance(entry, trees.File)
        if inside >= entry.size:
            return bytes(min(most, -entry.size % BLOCK - (inside - entry.size)))
        return self._content(number, entry, inside, most)

    def _content(self, number: int, file: trees.File, offset: int, most: int) -> bytes:
        if self._spans[0] != number:
            self._spans = (number, list(reading.spans(file, self._opened.index)))
        spans = self._spans[1]
        start, chunk, size = spans[bisect.bisect_right(spans, offset, key=lambda span: span[0]) - 1]
        if chunk is None:
            return bytes(min(most, start + size - offset, 1024 * 1024))
        body = self._bridge.run(self._opened.blob_ahead(chunk))
        return body[offset - start : offset - start + most]


async def export(
    opened: reading.Opened, *, without: Callable[[bytes, trees.Entry], bool] | None = None
) -> io.RawIOBase:
    """The tar of a snapshot; of a provider's reference, the reference itself. Raises `errors.Corrupt`.

    `without` says which entries are left out: something else takes their place. Raises `errors.NativeSnapshot` where
    a reference has none.
    """
    if without is not None:
        opened.whole()
    if opened.record.kind == trees.NATIVE:
        body = b"".join([await opened.blob(chunk) for chunk in opened.record.chunks])
        if len(body) != opened.record.bytes:
            raise errors.Corrupt("a provider's reference has another length than its record says")
        return _Whole(body)
    folders: dict[bytes, trees.Tree] = {}
    links: dict[bytes, bytes] = {}
    async for path, tree in opened.walk():
        folders[path] = tree
        prefix = path + b"/" if path else b""
        links |= {prefix + link.name: link.target for link in tree.links.values()}
    record = opened.record
    root = trees.Dir(b".", record.mode, record.mtime_ns, record.tree, record.content)
    members: list[tuple[bytes, trees.Entry]] = [(b".", root)]
    left_out: list[tuple[str, str]] = []
    stack = [(b"", iter(folders[b""].entries()))]
    while stack:
        path, entries = stack[-1]
        entry = next(entries, None)
        if entry is None:
            stack.pop()
            folders.pop(path, None)
            continue
        at = path + b"/" + entry.name if path else entry.name
        if without is not None and without(at, entry):
            continue
        why = refused(at, entry, links)
        if why is not None:
            left_out.append((names.to_text(at), why))
            continue
        members.append((at, entry))
        if isinstance(entry, trees.Dir):
            stack.append((at, iter(folders[at].entries())))
    made = Export(opened, members)
    made.left_out = left_out
    return made


class _Whole(io.BytesIO, io.RawIOBase):  # type: ignore[misc]
    """Bytes that are there already, with what an `Export` has."""

    left_out: tuple[tuple[str, str], ...] = ()
