"""A tar stream into a snapshot: read once, never held, refused as soon as it is hostile. Blocking; one thread.

What is refused (names that climb, links below which things lie, doubled names, more than a limit) is refused before
anything names it: the packs already sent are garbage. What the SDK's restore would refuse and an honest workspace
may hold (hard links, FIFOs, set-user-id bits) is normalised and told in the report.

Memory: one buffer, one frame, one pack, and a row per entry. `Guard` counts what is read between two entries,
so headers that claim gigabytes end at a limit too, and never inflates past the ratio that is allowed.
"""

from __future__ import annotations

import io
import re
import tarfile
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO, Any

from runlore import errors
from runlore.snapshots import building, chunks, ignore, names, saving, trees

NATIVE_PREFIXES = {
    b"E2B_SANDBOX_SNAPSHOT_V1\n": "e2b",
    b"MODAL_SANDBOX_FS_SNAPSHOT_V1\n": "modal-fs",
    b"MODAL_SANDBOX_DIR_SNAPSHOT_V1\n": "modal-dir",
    b"RUNLOOP_SANDBOX_SNAPSHOT_V1\n": "runloop",
    b"UC_VERCEL_SNAPSHOT_V1\n": "vercel",
}
"""How a hosted sandbox's own reference begins: it is kept as it is, because only that provider can read it."""
NATIVE_BYTES_MAX = 1024 * 1024
HEADER_BYTES_MAX = 1024 * 1024
"""Bytes between the contents of two entries: names, PAX records and sparse maps."""
READ_BYTES = 1024 * 1024
PAST_END_READS_MAX = 64
"""Reads behind the end of an archive; an honest one needs two or three."""
_RATIO_FROM_BYTES = 16 * 1024 * 1024
"""Below this an archive may inflate as it likes: it is small either way."""
_XATTR_KEY = "SCHILY.xattr."
_MTIME = re.compile(r"(-?)(\d{1,12})(?:\.(\d{1,18}))?", re.ASCII)


@dataclass(frozen=True)
class Limits:
    """What an archive may hold."""

    bytes_max: int = 64 * 1024**3
    """Bytes of all files together, holes included."""
    entries_max: int = 2_000_000
    depth_max: int = 256
    name_bytes_max: int = trees.NAME_BYTES_MAX
    path_bytes_max: int = 4095
    held_bytes_max: int = 256 * 1024**2
    """Bytes of all names, link targets and attributes together: they are held in memory until the end."""
    ratio_max: int = 1000
    """How often a compressed archive may grow."""


_EndMark: type[Exception] = tarfile.EOFHeaderError  # type: ignore[attr-defined]
_BadHeader: type[Exception] = tarfile.HeaderError


class Guard(io.RawIOBase):
    """The archive's bytes, inflated if need be, counted, and cut off at the limits."""

    def __init__(self, raw: IO[bytes], limits: Limits, *, stays_small: bool = False) -> None:
        """`stays_small`: all of it may be held at once, so that nobody says when a header ends."""
        self._raw, self._limits = raw, limits
        self._head = b""
        while len(self._head) < 64 and (piece := raw.read(64 - len(self._head))):
            self._head += piece
        self._inflate = zlib.decompressobj(wbits=31) if self._head.startswith(b"\x1f\x8b") else None
        self._ready = b""
        self._in = self.out = self._past_end = 0
        self.headers = 0
        """Bytes handed out since the last entry's content."""
        self.in_header = not stays_small

    def readable(self) -> bool:
        return True

    @property
    def head(self) -> bytes:
        return self._head

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes. Raises `errors.ArchiveLimit`, `errors.BadArchive`."""
        if size < 0:
            size = READ_BYTES
        piece = self._take(size) if self._inflate is None else self._inflated(size)
        self.out += len(piece)
        self._past_end += not piece
        if self._past_end > PAST_END_READS_MAX:
            # The standard reader passes over what an entry claims in small pieces, also where nothing is left.
            raise errors.BadArchive("the archive is cut off")
        if self.in_header:
            self.headers += len(piece)
            # The tar reader itself reads in blocks ahead of what it asks for.
            if self.headers > HEADER_BYTES_MAX + tarfile.RECORDSIZE * 2:
                raise errors.ArchiveLimit("an entry's header is longer than a megabyte")
        if self.out > self._limits.bytes_max + self._limits.entries_max * 2048:
            raise errors.ArchiveLimit(f"the archive is longer than {self._limits.bytes_max} bytes")
        if self.out > _RATIO_FROM_BYTES and self.out > self._limits.ratio_max * max(1, self._in):
            raise errors.ArchiveLimit(f"the archive grows more than {self._limits.ratio_max}-fold")
        return piece

    def _take(self, size: int) -> bytes:
        if self._head:
            piece, self._head = self._head[:size], self._head[size:]
        else:
            piece = self._raw.read(size) or b""
        self._in += len(piece)
        return piece

    def _inflated(self, size: int) -> bytes:
        assert self._inflate is not None
        try:
            while True:
                if self._inflate.eof:
                    rest = self._inflate.unused_data or self._take(READ_BYTES)
                    rest = rest.lstrip(b"\0") if rest else rest
                    if not rest:
                        return b""
                    self._inflate = zlib.decompressobj(wbits=31)  # Another member of the same file.
                    self._ready = rest
                source = self._ready or self._take(64 * 1024)
                piece = self._inflate.decompress(source, size)
                self._ready = self._inflate.unconsumed_tail
                if piece:
                    return piece
                if not source and not self._inflate.eof:
                    raise errors.BadArchive("the archive is cut off")
        except zlib.error as exc:
            raise errors.BadArchive(f"the archive can not be inflated: {exc}") from None


class _Info(tarfile.TarInfo):
    """A member whose extended headers are bounded before they are read into memory.

    The standard reader takes a damaged header, and an archive that merely stops, for the end of the archive.
    Here only the empty block that every tar ends with is one.
    """

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> Any:
        try:
            return super().fromtarfile(tarfile)
        except _EndMark:
            raise
        except _BadHeader as exc:
            raise errors.BadArchive(f"the archive is damaged or cut off: {exc}") from None

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        extended = self.type in (
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        )
        if extended and not 0 <= self.size <= HEADER_BYTES_MAX:
            raise errors.ArchiveLimit("an entry's header is longer than a megabyte")
        if self.size < 0:
            raise errors.HostileArchive("an entry has a negative size")
        return super()._proc_member(tar)  # type: ignore[misc,no-any-return]


DAMAGE = (
    tarfile.TarError,
    ValueError,
    EOFError,
    OverflowError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
)
"""What the standard reader raises on bytes that are no archive, or a damaged one."""


def opened(raw: IO[bytes], limits: Limits) -> tarfile.TarFile:
    """A tar, plain or gzipped, to be read once. It raises `DAMAGE`, `errors.ArchiveLimit`, `errors.HostileArchive`."""
    return _open(Guard(raw, limits, stays_small=True))


def _open(guard: Guard) -> tarfile.TarFile:
    return tarfile.open(  # type: ignore[call-overload,no-any-return]
        fileobj=guard, mode="r|", tarinfo=_Info, encoding="utf-8", errors="surrogateescape"
    )


@dataclass(slots=True)
class _Dir:
    """A directory as it is collected."""

    mode: int = 0o755
    mtime_ns: int = 0
    entries: dict[bytes, Any] | None = None
    told: bool = False
    """Whether the archive had an entry for it."""
    xattrs: dict[str, bytes] | None = None

    def __post_init__(self) -> None:
        self.entries = {}


class Ingest:
    """Reads one archive into a builder. What `rules` leave out is read over, never kept; ignore files in an archive
    are files like others, because they may come after what they name."""

    def __init__(
        self,
        builder: building.Builder,
        limits: Limits,
        progress: saving.Progress | None = None,
        stop: threading.Event | None = None,
        rules: ignore.Rules | None = None,
    ) -> None:
        self._stop = stop
        self._rules = rules or ignore.Rules()
        self._outside: dict[bytes, bool] = {}
        """Whether the directories met so far are left out."""
        self._builder, self._limits, self._progress = builder, limits, progress
        self._cdc, self._batch = chunks.cutter(), builder.batch()
        self._root = _Dir()
        self._later: list[tuple[bytes, bytes]] = []
        self._dropped: set[bytes] = set()
        """Paths of FIFOs and devices, which hard links may name."""
        self._entries = self._bytes = self._held = 0
        self.report = trees.Report()

    def run(self, raw: IO[bytes]) -> tuple[trees.Record, set[bytes]]:
        """The record of what `raw` holds and the blobs that it needs. Raises `errors.HostileArchive` and its kin."""
        guard = Guard(raw, self._limits)
        for prefix, provider in NATIVE_PREFIXES.items():
            if guard.head.startswith(prefix):
                return self._native(guard, provider)
        try:
            with _open(guard) as tar:
                self._members(tar, guard)
        except DAMAGE as exc:
            raise errors.BadArchive(
                f"the archive can not be read: {exc}", hint="send a plain or gzipped tar"
            ) from None
        self._resolve()
        self._batch.flush()
        return self._record()

    def _native(self, guard: Guard, provider: str) -> tuple[trees.Record, set[bytes]]:
        parts, size = [], 0
        while piece := guard.read(64 * 1024):
            parts.append(piece)
            size += len(piece)
            if size > NATIVE_BYTES_MAX:
                raise errors.ArchiveLimit(f"a {provider} reference is longer than {NATIVE_BYTES_MAX} bytes")
        body = b"".join(parts)
        blob = self._batch.add(body)
        self._batch.flush()
        record = trees.Record(trees.NATIVE, content=blob, bytes=size, provider=provider, chunks=(blob,))
        return record, {blob}

    # --- members ------------------------------------------------------------------------------------------

    def _members(self, tar: tarfile.TarFile, guard: Guard) -> None:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # Or a million entries are kept.
            guard.headers, guard.in_header = 0, False
            if member.size > self._limits.bytes_max:
                raise errors.ArchiveLimit(f"an entry claims {member.size} bytes")
            if self._stop is not None and self._stop.is_set():
                raise saving.Stopped
            self._entries += 1
            if self._entries > self._limits.entries_max:
                raise errors.ArchiveLimit(f"the archive has more than {self._limits.entries_max} entries")
            self._member(tar, member)
            if tar.offset > tar.fileobj.tell():  # type: ignore[union-attr,attr-defined]
                tar.fileobj.seek(tar.offset - 1)  # type: ignore[union-attr,attr-defined]
            guard.in_header = True
            if self._progress is not None and self._entries % 256 == 0:
                self._progress(self._entries, self._bytes)

    def _member(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = self._path(member)
        if self._left_out(path, is_dir=member.isdir()):
            return
        xattrs = _xattrs(member)
        self._hold(member, xattrs)
        mtime = _mtime_ns(member)
        mode = member.mode & trees.MODE_MASK
        if mode & 0o7000 and not member.issym():
            self.report.normalised.append((path, f"mode {mode:o} to {mode & 0o777:o}"))
            mode &= 0o777
        if not path:
            if not member.isdir():
                raise errors.HostileArchive("the archive's root is no directory")
            self._root.mode, self._root.mtime_ns, self._root.told = mode, mtime, True
        elif member.isdir():
            self._folder(path, mode, mtime, xattrs)
        elif member.issym():
            target = member.linkname.encode("utf-8", "surrogateescape")
            if not target or b"\0" in target or len(target) > self._limits.path_bytes_max:
                raise errors.HostileArchive(f"the link {_shown(path)} has no target that could be")
            self._put(path, trees.Link(_base(path), mtime, target))
        elif member.islnk():
            target = self._clean(member.linkname.encode("utf-8", "surrogateescape"))
            if self._left_out(target, is_dir=False, tell=False):
                self.report.skipped.append((path, "hard link to what is left out"))
                return
            self._later.append((path, target))
            self._put(path, None)
        elif member.isreg():
            self._put(path, self._file(tar, member, path, mode, mtime, xattrs))
        else:
            self._dropped.add(path)
            kind = "fifo" if member.isfifo() else "device" if member.isdev() else "unknown kind"
            self.report.skipped.append((path, kind))

    def _left_out(self, path: bytes, *, is_dir: bool, tell: bool = True) -> bool:
        """Whether a rule leaves this entry out, or a directory above it, also one that has no entry of its own."""
        if not path or self._rules == ignore.Rules():
            return False
        if is_dir and path in self._outside:
            return self._outside[path]
        # Recursion is bounded by `Limits.depth_max`.
        out = self._left_out(path.rpartition(b"/")[0], is_dir=True)
        if not out and (why := self._rules.why(path, is_dir=is_dir)) is not None:
            out = True
            if tell:
                self.report.count(why)
        if is_dir:
            self._outside[path] = out
        return out

    def _path(self, member: tarfile.TarInfo) -> bytes:
        return self._clean(member.name.encode("utf-8", "surrogateescape"))

    def _clean(self, raw: bytes) -> bytes:
        """A name as a path below the root. Raises `errors.HostileArchive`, `errors.ArchiveLimit`."""
        if raw.startswith(b"/"):
            raise errors.HostileArchive(f"the archive holds the absolute name {_shown(raw)}")
        parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise errors.HostileArchive(f"the archive holds the name {_shown(raw)}, which climbs")
        if b"\0" in raw:
            raise errors.HostileArchive(f"the archive holds the name {_shown(raw)}, which no file can have")
        limits = self._limits
        if len(parts) > limits.depth_max:
            raise errors.ArchiveLimit(f"the archive is deeper than {limits.depth_max} directories")
        if len(raw) > limits.path_bytes_max or any(len(part) > limits.name_bytes_max for part in parts):
            raise errors.ArchiveLimit(f"the archive holds a name that is too long: {_shown(raw)}")
        return b"/".join(parts)

    def _parent(self, path: bytes) -> _Dir:
        at = self._root
        for part in path.split(b"/")[:-1]:
            assert at.entries is not None
            below = at.entries.setdefault(part, _Dir()) if part not in at.entries else at.entries[part]
            if not isinstance(below, _Dir):
                raise errors.HostileArchive(f"{_shown(path)} lies below something that is no directory")
            at = below
        return at

    def _hold(self, member: tarfile.TarInfo, xattrs: dict[str, bytes] | None) -> None:
        self._held += len(member.name) + len(member.linkname)
        self._held += sum(len(name) + len(value) for name, value in (xattrs or {}).items())
        if self._held > self._limits.held_bytes_max:
            raise errors.ArchiveLimit(
                f"the archive's names, links and attributes are longer than {self._limits.held_bytes_max} bytes"
            )

    def _folder(self, path: bytes, mode: int, mtime: int, xattrs: dict[str, bytes] | None) -> None:
        entries = self._parent(path).entries
        assert entries is not None
        found = entries.setdefault(_base(path), _Dir())
        if not isinstance(found, _Dir):
            raise errors.HostileArchive(f"the archive holds {_shown(path)} twice")
        found.mode, found.mtime_ns, found.told, found.xattrs = mode, mtime, True, xattrs

    def _put(self, path: bytes, entry: trees.File | trees.Link | None) -> None:
        entries = self._parent(path).entries
        assert entries is not None
        if _base(path) in entries:
            raise errors.HostileArchive(f"the archive holds {_shown(path)} twice")
        entries[_base(path)] = entry

    def _file(
        self,
        tar: tarfile.TarFile,
        member: tarfile.TarInfo,
        path: bytes,
        mode: int,
        mtime: int,
        xattrs: dict[str, bytes] | None,
    ) -> trees.File:
        self._bytes += member.size
        if self._bytes > self._limits.bytes_max:
            raise errors.ArchiveLimit(f"the archive holds more than {self._limits.bytes_max} bytes")
        body = tar.extractfile(member)
        assert body is not None
        if member.size <= chunks.WHOLE_BYTES_MAX:
            raw = body.read(member.size)
            content: saving.Content = (len(raw), (self._batch.add(raw),) if raw else (), None)
        else:
            content = saving.cut_stream(_pieces(body, member), self._cdc, self._batch)
        size, ids, extents = content
        if size != member.size:
            raise errors.BadArchive(f"{_shown(path)} is cut off: {size} of {member.size} bytes")
        return trees.File(_base(path), mode, mtime, size, ids, extents, xattrs)

    def _resolve(self) -> None:
        """Hard links become copies: their content is shared anyway, and the SDK refuses links."""
        waiting = self._later
        while waiting:
            left = []
            for path, target in waiting:
                found = self._find(target)
                entries = self._parent(path).entries
                assert entries is not None
                if found is None and target in self._dropped:
                    del entries[_base(path)]
                    self._dropped.add(path)
                    self.report.skipped.append((path, "hard link to what is no file"))
                elif isinstance(found, trees.File | trees.Link):
                    # `cp -al` and package managers link links too.
                    entries[_base(path)] = replace(found, name=_base(path))
                    self._bytes += found.size if isinstance(found, trees.File) else 0
                    self.report.normalised.append((path, f"hard link to {names.to_text(target)} copied"))
                else:
                    left.append((path, target))
            if self._bytes > self._limits.bytes_max:
                raise errors.ArchiveLimit(f"the archive holds more than {self._limits.bytes_max} bytes")
            if len(left) == len(waiting):
                path, target = left[0]
                raise errors.HostileArchive(
                    f"{_shown(path)} is a hard link to {_shown(target)}, which is no file here"
                )
            waiting = left

    def _find(self, path: bytes) -> Any:
        at: Any = self._root
        for part in path.split(b"/"):
            if not isinstance(at, _Dir) or at.entries is None:
                return None
            at = at.entries.get(part)
        return at

    # --- trees --------------------------------------------------------------------------------------------

    def _record(self) -> tuple[trees.Record, set[bytes]]:
        counts = {"files": 0, "dirs": 0, "links": 0, "bytes": 0}
        needed: set[bytes] = set()
        done = self._tree(self._root, counts, needed)
        report_id = None
        report = self.report.encode()
        if report is not None:
            self._builder.add_tree(report)
            report_id = names.blob_id(report)
            needed.add(report_id)
        record = trees.Record(trees.TREE, done.tree, done.content, self._root.mode, self._root.mtime_ns,
                              report=report_id, **counts)  # fmt: skip
        return record, needed

    def _tree(self, folder: _Dir, counts: dict[str, int], needed: set[bytes]) -> trees.Encoded:
        # Recursion is bounded by `Limits.depth_max`.
        dirs, files, links = [], [], []
        for name, entry in (folder.entries or {}).items():
            if isinstance(entry, _Dir):
                below = self._tree(entry, counts, needed)
                dirs.append(
                    trees.Dir(name, entry.mode, entry.mtime_ns, below.tree, below.content, entry.xattrs)
                )
            elif isinstance(entry, trees.Link):
                links.append(entry)
            else:
                files.append(entry)
                needed.update(entry.chunks)
                counts["bytes"] += entry.size
        counts["dirs"] += len(dirs)
        counts["files"] += len(files)
        counts["links"] += len(links)
        encoded = trees.encode(dirs, files, links)
        self._builder.add_tree(encoded.raw)
        needed.add(encoded.tree)
        folder.entries = None
        return encoded


def _pieces(body: IO[bytes], member: tarfile.TarInfo) -> Iterator[bytes | int]:
    """A large file as bytes and (ints) as holes, in multiples of a block but for the last.

    A hole is passed over: a kilobyte of archive may claim one of gigabytes, and to read its zeros takes a minute.
    """
    at = 0
    # Below its buffer, which can not be sought in a stream.
    body = body.raw if member.sparse is not None else body  # type: ignore[attr-defined]
    for start, end in _holes(member):
        yield from _read(body, start - at)
        yield end - start
        body.seek(end)
        at = end
    yield from _read(body, member.size - at)


def _holes(member: tarfile.TarInfo) -> Iterator[tuple[int, int]]:
    """Where whole blocks of a sparse file are in no part of it that has data, in order."""
    if member.sparse is None:
        return
    at = 0
    for start, size in [*sorted(member.sparse), (member.size, 0)]:
        first = -(-at // chunks.BLOCK_BYTES) * chunks.BLOCK_BYTES
        last = min(start, member.size) // chunks.BLOCK_BYTES * chunks.BLOCK_BYTES
        if first < last:
            yield first, last
        at = max(at, start + size)


def _read(body: IO[bytes], left: int) -> Iterator[bytes]:
    while left > 0:
        wanted = min(saving.PIECE_BYTES, left)
        parts, have = [], 0
        while have < wanted:  # Cuts depend on whole blocks, so short reads are joined.
            piece = body.read(wanted - have)
            if not piece:
                break
            parts.append(piece)
            have += len(piece)
        if not have:
            return
        yield b"".join(parts)
        left -= have


def _xattrs(member: tarfile.TarInfo) -> dict[str, bytes] | None:
    """The user's attributes, as GNU tar (`--xattrs`) and an export write them; others are not kept."""
    found = {}
    for key, value in member.pax_headers.items():
        if key.startswith(_XATTR_KEY + trees.XATTR_PREFIX):
            name = key.removeprefix(_XATTR_KEY).replace("%3D", "=").replace("%25", "%")
            found[name] = str(value).encode("utf-8", "surrogateescape")
    return found or None


def _mtime_ns(member: tarfile.TarInfo) -> int:
    """The exact time: a PAX record holds it in decimals, which a float would round."""
    text = str(member.pax_headers.get("mtime", ""))
    match = _MTIME.fullmatch(text)
    if match:
        sign, seconds, fraction = match.groups()
        value = int(seconds) * 10**9 + int((fraction or "").ljust(9, "0")[:9])
        return -value if sign else value
    seconds = int(member.mtime)
    if not -(2**40) < seconds < 2**40:
        raise errors.HostileArchive("an entry has a time that no clock shows")
    return seconds * 10**9


def _base(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]


def _shown(path: bytes) -> str:
    return repr(names.to_text(path[:120]))
