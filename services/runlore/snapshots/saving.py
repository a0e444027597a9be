"""Saving a directory: scan, read what is new, build the trees, close the root. Blocking; runs in threads.

Memory is bounded by bytes, whatever the tree's size: each reader holds one buffer and one frame, one pack grows,
and the sink lets at most `library.UPLOADS_MAX` packs wait. What grows with the tree is one row per entry.

A file that changes while it is read is read again; if it never holds still, its last reading is kept and the
report says so. Such a file proves nothing to the stat cache.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from runlore.snapshots import building, chunks, scan, statcache, trees

READERS_MAX = 4
PIECE_BYTES = 2 * 1024 * 1024
"""One read of a large file, in bytes."""
BATCH_BYTES = 1024 * 1024
BATCH_FILES = 256
"""A reader takes so many bytes or files at a time."""
READ_TRIES_MAX = 3
"""How often a file is read that changes meanwhile."""

Progress = Callable[[int, int], None]


class Stopped(Exception):
    """Whoever waited for this work has gone."""


_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class Tree:
    """A scanned and read tree: its record, the blobs it needs, and what the next scan may trust."""

    record: trees.Record
    needed: set[bytes]
    report: trees.Report
    cache: statcache.StatCache | None
    cache_changed: bool
    files_read: int
    bytes_read: int


def build(
    root: int,
    builder: building.Builder,
    found: scan.Scan,
    cache: statcache.StatCache,
    *,
    before: int | None,
    xattrs: bool = False,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Tree:
    """Read what `found` wants, and build every tree from below."""
    _doubt(found, builder)
    # Backwards, because readers take them from the end: what is read is let go.
    found.wanted.sort(key=lambda wanted: (wanted.folder.path, wanted.name), reverse=True)
    reader = _Reader(root, builder, found.report, before, xattrs, progress, stop)
    reader.read(found.wanted)
    found.report.hardlinks += [group for group in found.linked.values() if len(group) > 1]
    return _Assembly(builder, found, cache, reader).run()


def _doubt(found: scan.Scan, builder: building.Builder) -> None:
    """Want files again that are unchanged, but whose chunks no base holds (another base, another rollout)."""
    known: set[bytes] = set()
    for folder in found.folders:
        for row in folder.rows.values():
            if stat.S_ISREG(row[4]):
                known.update(row[5])
    absent = builder.absent(known)
    if not absent:
        return
    for folder in found.folders:
        lost = [
            name
            for name, row in folder.rows.items()
            if stat.S_ISREG(row[4]) and not absent.isdisjoint(row[5])
        ]
        for name in lost:
            found.wanted.append(scan.Wanted(folder, name, folder.rows.pop(name)[statcache.SIZE]))
            folder.same = False


# --- reading ----------------------------------------------------------------------------------------------


class _Reader:
    """Reads files with a few threads; each has its own buffer, cutter and frame."""

    def __init__(
        self,
        root: int,
        builder: building.Builder,
        report: trees.Report,
        before: int | None,
        xattrs: bool,
        progress: Progress | None,
        stop: threading.Event | None,
    ) -> None:
        self._stop = stop
        self._root, self._builder, self._report = root, builder, report
        self._before, self._xattrs = before, xattrs
        self._progress = progress
        self._lock = threading.Lock()
        self.files = self.bytes = 0

    def read(self, wanted: list[scan.Wanted]) -> None:
        """Read the files of a list, which is empty then."""
        count = min(READERS_MAX, max(1, os.cpu_count() or 1), len(wanted))
        batches = _batches(wanted)
        if count <= 1:
            self._work(batches)
            return
        with ThreadPoolExecutor(count, thread_name_prefix="runlore-read") as pool:
            for done in [pool.submit(self._work, batches) for _ in range(count)]:
                done.result()

    def _work(self, batches: Iterator[list[scan.Wanted]]) -> None:
        cdc, batch = chunks.cutter(), self._builder.batch()
        while True:
            with self._lock:
                files = next(batches, None)
            if files is None:
                break
            if self._stop is not None and self._stop.is_set():
                raise Stopped
            size = 0
            for folder, group in _by_folder(files):
                size += self._read_folder(folder, group, cdc, batch)
            with self._lock:
                self.files += len(files)
                self.bytes += size
                done = self.files, self.bytes
            if self._progress is not None:
                self._progress(*done)
        batch.flush()

    def _read_folder(
        self, folder: scan.Folder, group: list[scan.Wanted], cdc: object, batch: building.Batch
    ) -> int:
        size = 0
        try:
            with scan.opened(self._root, folder) as descriptor:
                for wanted in group:
                    size += self._read_file(descriptor, wanted, cdc, batch)
        except OSError as exc:
            self._skip([wanted for wanted in group if wanted.name not in folder.rows], exc)
        return size

    def _skip(self, files: list[scan.Wanted], exc: OSError) -> None:
        with self._lock:
            for wanted in files:
                if not isinstance(exc, FileNotFoundError):
                    self._report.skipped.append((wanted.path, f"file: {os.strerror(exc.errno or 0)}"))

    def _read_file(self, descriptor: int, wanted: scan.Wanted, cdc: object, batch: building.Batch) -> int:
        """Read one file until it holds still; its bytes."""
        for attempt in range(READ_TRIES_MAX):
            try:
                file = os.open(wanted.name, _OPEN_FILE, dir_fd=descriptor)
            except OSError as exc:
                self._skip([wanted], exc)
                return 0
            try:
                status = os.fstat(file)
                if not stat.S_ISREG(status.st_mode):
                    with self._lock:
                        self._report.skipped.append((wanted.path, "changed while it was read"))
                    return 0
                xattrs = scan.read_xattrs(file) if self._xattrs else None
                size, ids, extents = _content(file, status, cdc, batch)
                after = os.fstat(file)
            except OSError as exc:
                self._skip([wanted], exc)
                return 0
            finally:
                os.close(file)
            still = size == status.st_size and _unchanged(status, after)
            if still or attempt == READ_TRIES_MAX - 1:
                break
        if not still:
            with self._lock:
                self._report.changed.append(wanted.path)
        row = statcache.row_of(status, self._before if still else None, ids, extents, xattrs)
        wanted.folder.rows[wanted.name] = (*row[:2], size, *row[3:])
        return size


def _unchanged(one: os.stat_result, two: os.stat_result) -> bool:
    return (one.st_ctime_ns, one.st_mtime_ns, one.st_size) == (two.st_ctime_ns, two.st_mtime_ns, two.st_size)


def _batches(wanted: list[scan.Wanted]) -> Iterator[list[scan.Wanted]]:
    batch: list[scan.Wanted] = []
    size = 0
    while wanted:
        one = wanted.pop()
        batch.append(one)
        size += one.size
        if size >= BATCH_BYTES or len(batch) >= BATCH_FILES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _by_folder(files: list[scan.Wanted]) -> Iterator[tuple[scan.Folder, list[scan.Wanted]]]:
    group: list[scan.Wanted] = []
    for one in files:
        if group and group[0].folder is not one.folder:
            yield group[0].folder, group
            group = []
        group.append(one)
    if group:
        yield group[0].folder, group


Content = tuple[int, tuple[bytes, ...], tuple[int, ...] | None]
"""What a file holds: (size, chunks, extents)."""


def _content(file: int, status: os.stat_result, cdc: object, batch: building.Batch) -> Content:
    if status.st_size <= chunks.WHOLE_BYTES_MAX:
        # One byte more than expected tells whether it grew.
        raw = os.read(file, status.st_size + 1)
        return len(raw), ((batch.add(raw),) if raw else ()), None
    return cut_stream(_pieces(file, status), cdc, batch)


def _pieces(file: int, status: os.stat_result) -> Iterator[bytes | int]:
    """A large file as bytes and (ints) as holes, in multiples of a block but for the last."""
    sparse = status.st_blocks * 512 < status.st_size
    at = 0
    while at < status.st_size:
        if sparse:
            try:
                data = os.lseek(file, at, os.SEEK_DATA)
            except OSError:
                data = status.st_size  # ENXIO: nothing but a hole follows.
            blocks = (data - at) // chunks.BLOCK_BYTES * chunks.BLOCK_BYTES
            if blocks:
                yield blocks
                at += blocks
                continue
        piece = _read_fully(file, at, min(PIECE_BYTES, status.st_size - at))
        yield piece
        at += len(piece)
        if len(piece) % chunks.BLOCK_BYTES:
            return


def _read_fully(file: int, at: int, size: int) -> bytes:
    piece = os.pread(file, size, at)
    if len(piece) == size or not piece:
        return piece
    parts = [piece]  # A short read is rare, and cuts depend on whole blocks.
    while piece and sum(map(len, parts)) < size:
        piece = os.pread(file, size - sum(map(len, parts)), at + sum(map(len, parts)))
        parts.append(piece)
    return b"".join(parts)


def cut_stream(pieces: Iterator[bytes | int], cdc: object, batch: building.Batch) -> Content:
    """Cut what `pieces` yield (bytes, or the length of a hole) and keep the chunks."""
    cutter = chunks.Cutter(cdc)  # type: ignore[arg-type]
    ids: list[bytes] = []
    size = 0
    for piece in pieces:
        if isinstance(piece, int):
            ids += map(batch.add, cutter.skip(piece))
            size += piece
        elif piece:
            ids += map(batch.add, cutter.feed(piece))
            size += len(piece)
        else:
            break
    ids += map(batch.add, cutter.finish())
    extents = tuple(cutter.extents)
    return size, tuple(ids), None if extents == ((0, size) if size else ()) else extents


# --- trees ------------------------------------------------------------------------------------------------


class _Assembly:
    """Builds the trees of a scan from below, and counts."""

    def __init__(
        self, builder: building.Builder, found: scan.Scan, cache: statcache.StatCache, reader: _Reader
    ) -> None:
        self._builder, self._found, self._reader = builder, found, reader
        self._old = cache
        self._needed: set[bytes] = set()
        self._folders: dict[bytes, statcache.Folder] = {}
        self._files = self._links = self._bytes = self._fresh = 0

    def run(self) -> Tree:
        for folder in reversed(self._found.folders):
            self._folder(folder)
        first, report = self._found.folders[0], self._found.report.encode()
        report_id = None
        if report is not None:
            self._builder.add_tree(report)
            report_id = building.names.blob_id(report)
            self._needed.add(report_id)
        record = trees.Record(
            trees.TREE, first.tree, first.content, stat.S_IMODE(first.mode), first.mtime_ns, self._files,
            len(self._found.folders) - 1, self._links, self._bytes, report_id,
        )  # fmt: skip
        changed = self._fresh > 0 or self._folders.keys() != self._old.folders.keys()
        cache = statcache.StatCache(self._old.filesystem, self._old.xattrs, self._folders)
        reader = self._reader
        return Tree(record, self._needed, self._found.report, cache, changed, reader.files, reader.bytes)

    def _folder(self, folder: scan.Folder) -> None:
        needed, rows = self._needed, folder.rows
        for row in rows.values():
            if stat.S_ISREG(row[4]):
                needed.update(row[5])
                self._files += 1
                self._bytes += row[2]
            else:
                self._links += 1
        if folder.same and self._same_folders(folder):
            assert folder.cached is not None
            folder.tree, folder.content, _ = self._folders[folder.path] = folder.cached
            if not self._builder.has(folder.tree):
                self._builder.add_tree(_encode(folder).raw)
        else:
            encoded = _encode(folder)
            folder.tree, folder.content = encoded.tree, encoded.content
            self._builder.add_tree(encoded.raw)
            self._fresh += 1
            # The rows themselves and no copy: nobody looks at them as the folder's any more.
            rows |= {name: _folder_row(one) for name, one in folder.folders.items()}
            self._folders[folder.path] = (folder.tree, folder.content, rows)
            folder.rows = {}
        needed.add(folder.tree)

    def _same_folders(self, folder: scan.Folder) -> bool:
        assert folder.cached is not None
        old = folder.cached[2]
        return all(old.get(name) == _folder_row(below) for name, below in folder.folders.items())


def _folder_row(folder: scan.Folder) -> statcache.Row:
    """A directory as its parent's cache entry holds it: all that its parent's tree says of it."""
    return (0, 0, 0, folder.mtime_ns, folder.mode, folder.tree, folder.content, folder.xattrs)


def _encode(folder: scan.Folder) -> trees.Encoded:
    files, links = [], []
    for name, (_, _, size, mtime, mode, content, extents, xattrs) in folder.rows.items():
        if stat.S_ISREG(mode):
            files.append(trees.File(name, stat.S_IMODE(mode), mtime, size, content, extents, xattrs))
        else:
            links.append(trees.Link(name, mtime, content))
    dirs = [
        trees.Dir(name, stat.S_IMODE(below.mode), below.mtime_ns, below.tree, below.content, below.xattrs)
        for name, below in folder.folders.items()
    ]
    return trees.encode(dirs, files, links)
