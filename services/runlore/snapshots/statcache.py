"""The stat cache: what proves a file unchanged without reading it. A cache: deleting it costs time only.

Only ctime and inode, recorded on this file system, prove anything: nobody can set a ctime, while sizes and
mtimes repeat (package managers ship equal ones on purpose). An entry counts only if its ctime lies *before* the
moment at which the scan began, by the clock of that same file system: a later change then gets a later ctime.
What is younger ("racy") is written down without a ctime and read again next time.

The file lies outside of every workspace, named by project and path, and says which device and file system it
speaks of. It holds raw names and hashes, no contents.
"""

from __future__ import annotations

import contextlib
import itertools
import marshal
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blake3

from runlore import clock

VERSION = 2
FOLDERS_PER_PIECE = 256
"""Directories that are written and read at once: the whole in one piece would take its size in memory twice more."""
NO_CTIME = -1
"""The ctime of an entry that proves nothing."""

Row = tuple[Any, ...]
"""An entry: (inode, ctime_ns, size, mtime_ns, st_mode, chunks or target, extents, xattrs)."""
INODE, CTIME, SIZE, MTIME, MODE, CONTENT, EXTENTS, XATTRS = range(8)
Folder = tuple[bytes, bytes, dict[bytes, Row]]
"""A directory: its tree id, its content id, and its entries by name."""


@dataclass
class StatCache:
    """What is known of one workspace on one file system."""

    filesystem: tuple[int, int]
    xattrs: bool = False
    folders: dict[bytes, Folder] = field(default_factory=dict)


def filesystem(descriptor: int) -> tuple[int, int]:
    """Which file system a file lies on: the device number, which a later mount may reuse, and the file system's id."""
    return os.fstat(descriptor).st_dev, os.fstatvfs(descriptor).f_fsid


def now_there(descriptor: int) -> int | None:
    """The present time by the file system of the directory `descriptor`, as it would stamp a ctime, in ns.

    A nameless file (O_TMPFILE) is stamped and forgotten, so the workspace itself does not change. None where the
    file system can not do that; then nothing is trusted.
    """
    try:
        probe = os.open(f"/proc/self/fd/{descriptor}", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except (OSError, AttributeError):
        return None
    try:
        return os.fstat(probe).st_ctime_ns
    finally:
        os.close(probe)


def row_of(status: os.stat_result, before: int | None, *content: Any) -> Row:
    """The entry for a file as it was read; without a ctime unless it was last changed before `before`."""
    ctime = status.st_ctime_ns if before is not None and status.st_ctime_ns < before else NO_CTIME
    return (status.st_ino, ctime, status.st_size, status.st_mtime_ns, status.st_mode, *content)


def path_of(folder: Path, project: str, root: bytes) -> Path:
    name = blake3.blake3(project.encode() + b"\0" + os.path.realpath(root)).hexdigest()
    return folder / f"{name[:40]}.stat"


def lies_in(folder: Path, root: str | bytes) -> bool:
    """Whether the caches' `folder` lies in the workspace `root`, which a save would then change. Blocking."""
    inside = os.path.realpath(os.fsencode(root)).rstrip(b"/") + b"/"
    return (os.path.realpath(os.fsencode(folder)) + b"/").startswith(inside)


def load(path: Path | None, where: tuple[int, int], *, xattrs: bool) -> StatCache:
    """What is known, or nothing: a cache that is missing, damaged, or speaks of elsewhere is no error."""
    fresh = StatCache(where, xattrs)
    if path is None:
        return fresh
    try:
        raw = memoryview(path.read_bytes())
    except OSError:
        return fresh
    # The digest keeps a torn file away from marshal, which is fast because it trusts what it reads.
    if len(raw) < 32 or blake3.blake3(raw[32:]).digest() != raw[:32]:
        return fresh
    try:
        pieces = _pieces(raw[32:])
        version, *found = next(pieces)
        if version != (VERSION, sys.version_info[:2]) or found != [where, xattrs]:
            return fresh
        for piece in pieces:
            fresh.folders.update(piece)
    except (ValueError, EOFError, TypeError, StopIteration):
        return StatCache(where, xattrs)
    return fresh


def _pieces(raw: memoryview) -> Iterator[Any]:
    """Each piece is its length in 4 bytes and then itself."""
    at = 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "big")
        yield marshal.loads(raw[at + 4 : end])
        at = end


def save(path: Path, cache: StatCache) -> None:
    """Replace what is known. A failure is no error: the next save reads more."""
    temp = path.with_name(f".{path.name}.{clock.new_id()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(temp, "wb") as file:
            file.write(bytes(32))
            hasher = blake3.blake3()
            for piece in _cut(cache):
                body = marshal.dumps(piece)
                for part in (len(body).to_bytes(4, "big"), body):
                    hasher.update(part)
                    file.write(part)
            file.seek(0)
            file.write(hasher.digest())
        os.replace(temp, path)
    with contextlib.suppress(OSError):
        temp.unlink()


def _cut(cache: StatCache) -> Iterator[Any]:
    yield (VERSION, sys.version_info[:2]), cache.filesystem, cache.xattrs
    folders = iter(cache.folders.items())
    while piece := dict(itertools.islice(folders, FOLDERS_PER_PIECE)):
        yield piece


def is_file(row: Row) -> bool:
    return stat.S_ISREG(row[MODE])
