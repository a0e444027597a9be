"""Writing a snapshot into a directory: planned by frame, verified by chunk, given its name at the end.

Everything is written below a private directory that we made ourselves (mode 0700, beside the target), relative
to its descriptor, and symbolic links come after everything else: while files are written there is no link below
it that could lead elsewhere. One rename then makes it the target, so whoever waits for the target sees a whole
tree or none. What a killed restore left beside the target holds no lock any more, and the next one removes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import itertools
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from runlore import clock, errors
from runlore.snapshots import ignore, names, reading, removing, saving, scan, statcache, symlinks, trees

WRITERS_MAX = 4
"""Writers at most; no more than there are processors, but two. More only fight over the kernel's locks and Python's
own: on two processors four of them took 30 % more processor time than two for 48,000 files."""
RANGES_AHEAD = 3
"""Ranges that each writer has on their way while it writes one: what hides a store's latency."""
MARK = ".runlore-"
"""What the name of an unfinished restore beside its target holds."""
CTIME_WAIT_SECONDS = 0.05
"""How long a restore waits for the file system's clock to pass its last write, so that the cache may trust it."""
MAKE_TRIES_MAX = 8
"""How often a restore makes its directory anew that another one swept before it was locked."""
_XATTR_REFUSED = frozenset({errno.ENOTSUP, errno.E2BIG, errno.ENOSPC, errno.ERANGE, errno.EPERM})
"""What a file system answers that takes no attribute, or none so large. ext4 says ENOSPC for the latter."""
KEEP, INSIDE = "keep", "inside"
"""Policies for links: all as they were, or only those that stay inside of the tree (the others are told)."""

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Target:
    """A file to be written."""

    path: bytes
    file: trees.File
    left: int = 0
    """Chunks that are still to be written."""
    row: statcache.Row | None = None


@dataclass
class Plan:
    """What is to be written, from the trees alone."""

    folders: list[tuple[bytes, trees.Dir]] = field(default_factory=list)
    files: dict[bytes, Target] = field(default_factory=dict)
    links: list[tuple[bytes, trees.Link]] = field(default_factory=list)
    hardlinks: list[list[bytes]] = field(default_factory=list)
    encoded: dict[bytes, tuple[bytes, bytes]] = field(default_factory=dict)
    """Tree id and content id of each folder, for the stat cache."""
    skipped: list[tuple[bytes, str]] = field(default_factory=list)


async def plan(opened: reading.Opened, *, links: str = KEEP) -> Plan:
    """Read every tree of the snapshot. Raises `errors.Corrupt`, `errors.NativeSnapshot`."""
    made, record = Plan(), opened.whole()
    made.encoded[b""] = (record.tree, record.content)
    async for path, tree in opened.walk():
        prefix = path + b"/" if path else b""
        for folder in tree.dirs.values():
            made.folders.append((prefix + folder.name, folder))
            made.encoded[prefix + folder.name] = (folder.tree, folder.content)
        for file in tree.files.values():
            at = prefix + file.name
            made.files[at] = Target(at, file)
        made.links += [(prefix + link.name, link) for link in tree.links.values()]
    if links != KEEP:
        targets = {at: link.target for at, link in made.links}
        outer = {at for at, target in targets.items() if not symlinks.stays_inside(at, target, targets)}
        made.skipped += [(at, "link leads outside") for at in targets if at in outer]
        made.links = [(at, link) for at, link in made.links if at not in outer]
    if record.report is not None:
        made.hardlinks = _linked(await opened.report(), made.files)
    return made


def _linked(report: dict[str, Any], files: dict[bytes, Target]) -> list[list[bytes]]:
    """The groups of names that were one file, as far as the tree agrees that they are equal."""
    groups, taken = [], set()
    for listed in report.get("hardlinks", ()):
        paths = [path for path in map(names.from_text, listed) if path in files and path not in taken]
        alike = [path for path in paths if _same(files[path].file, files[paths[0]].file)]
        taken.update(alike)
        if len(alike) > 1:
            groups.append(alike)
    return groups


def _same(one: trees.File, two: trees.File) -> bool:
    return (one.mode, one.mtime_ns, one.size, one.chunks, one.extents) == (
        two.mode, two.mtime_ns, two.size, two.chunks, two.extents
    )  # fmt: skip


# --- the target -------------------------------------------------------------------------------------------


class Place:
    """The directory beside the target that is written, and how it becomes the target."""

    def __init__(self, into: str | os.PathLike[str], *, replace: bool) -> None:
        self.target = os.fsencode(os.path.abspath(into))
        self.parent, self.name = os.path.split(self.target)
        if not self.name:
            raise errors.UnsafeTarget("the root of the machine is no target")
        # A mount point can not be replaced by a rename, and what lies beside it is another file system.
        # A bind mount from the same file system is known to the kernel's table alone.
        self._mounted = os.path.ismount(self.target) or self.name in ignore.mounts_below(self.parent)
        self._beside = self.target if self._mounted else self.parent
        self._check(replace)
        os.makedirs(self.parent, exist_ok=True)
        self._sweep()
        self.temp, self.root = self._make()

    def _make(self) -> tuple[bytes, int]:
        """The directory that is written, locked: (its path, its descriptor)."""
        for _ in range(MAKE_TRIES_MAX):
            temp = os.path.join(self._beside, self._prefix + clock.new_id().encode())
            os.mkdir(temp, 0o700)
            with contextlib.suppress(FileNotFoundError):
                root = os.open(temp, _DIR)
                fcntl.flock(root, fcntl.LOCK_EX)
                # Between the two lines above another restore may have taken it for what a dead one left.
                if os.path.isdir(temp):
                    return temp, root
                os.close(root)
        raise errors.RestoreFailed(
            f"other restores of {os.fsdecode(self.target)} took this one for a dead one {MAKE_TRIES_MAX} times",
            hint="restore into one directory once at a time",
        )

    @property
    def _prefix(self) -> bytes:
        return b"." + self.name[:200] + MARK.encode()

    def _check(self, replace: bool) -> None:
        try:
            status = os.lstat(self.target)
        except FileNotFoundError:
            return
        shown = os.fsdecode(self.target)
        if stat.S_ISLNK(status.st_mode):
            raise errors.UnsafeTarget(f"{shown} is a link", hint="give the directory that it leads to")
        if not stat.S_ISDIR(status.st_mode):
            raise errors.TargetModified(f"{shown} is a file")
        if not replace and not all(name.startswith(self._prefix) for name in os.listdir(self.target)):
            raise errors.TargetModified(
                f"{shown} is not empty", hint="restore into a new directory, or say that it may be replaced"
            )
        mounts = ignore.mounts_below(self.target)
        if mounts:
            # Replacing removes what is there, and would empty the other file system first.
            raise errors.UnsafeTarget(
                f"{shown} holds a mount at {names.to_text(min(mounts))!r}, which is no part of a workspace",
                hint="unmount it, or restore into another directory",
            )

    def _sweep(self) -> None:
        """Remove what killed restores of this target left: nobody holds its lock."""
        for entry in os.scandir(self._beside):
            if entry.name.startswith(self._prefix) and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    left = os.open(entry.path, _DIR)
                    try:
                        fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        removing.remove(entry.path)
                    finally:
                        os.close(left)

    def publish(self) -> None:
        """Make the written directory the target."""
        if self._mounted:
            self._move_in()
            return
        try:
            os.rename(self.temp, self.target)  # Also over an empty directory.
            return
        except OSError as exc:
            if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        old = self.temp + b".old"
        os.rename(self.target, old)
        try:
            os.rename(self.temp, self.target)
        except OSError:
            os.rename(old, self.target)
            raise
        removing.remove(old)

    def _move_in(self) -> None:
        """Into a mount point: entry by entry. While our directory is still in it, the tree is not whole."""
        status = os.fstat(self.root)
        os.fchmod(self.root, 0o700)
        for entry in list(os.scandir(self.target)):
            if not entry.name.startswith(self._prefix):
                removing.remove(entry.path)
        for entry in list(os.scandir(self.temp)):
            os.rename(entry.path, os.path.join(self.target, entry.name))
        os.rmdir(self.temp)
        os.utime(self.target, ns=(status.st_mtime_ns, status.st_mtime_ns))
        os.chmod(self.target, stat.S_IMODE(status.st_mode))

    def close(self, *, failed: bool) -> None:
        os.close(self.root)
        if failed:
            removing.remove(self.temp)


# --- writing ----------------------------------------------------------------------------------------------

Fetch = Callable[[reading.Range], "Future[bytes]"]


@dataclass(slots=True)
class Write:
    """One chunk of a frame and where it goes."""

    at: int
    length: int
    blob: bytes
    target: Target
    offset: int


class Writer:
    """Writes what a plan says below `root`."""

    def __init__(
        self,
        opened: reading.Opened,
        made: Plan,
        root: int,
        fetch: Fetch,
        progress: Progress | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self._opened, self._plan, self._root, self._fetch = opened, made, root, fetch
        self._stopped = stop
        self._progress = progress
        self._lock = threading.Lock()
        self._umask = _umask()
        self._links: dict[bytes, statcache.Row] = {}
        self.files = self.bytes = 0

    def run(self, reuse: Reuse | None = None) -> None:
        """Everything but the root's own mode and time, which `finish` sets."""
        for path, _ in self._plan.folders:  # A level at a time, so parents come first.
            os.mkdir(path, 0o700, dir_fd=self._root)
        linked = {path for group in self._plan.hardlinks for path in group[1:]}
        todo = [target for path, target in self._plan.files.items() if path not in linked]
        if reuse is not None:
            todo = [target for target in todo if not reuse.link(target, self._root)]
        self._write_files(todo)
        self._link()
        for path, folder in reversed(self._plan.folders):
            self._finish_folder(path, folder)

    def _write_files(self, todo: list[Target]) -> None:
        frames: dict[int, list[Write]] = {}
        empty: list[Target] = []
        index = self._opened.index
        for target in todo:
            file = target.file
            if len(file.chunks) == 1 and file.extents is None:
                frame, at, length = index.locate(file.chunks[0])
                if length != file.size:
                    raise errors.Corrupt(f"{names.to_text(target.path)!r} and its chunk differ in length")
                frames.setdefault(frame, []).append(Write(at, length, file.chunks[0], target, 0))
                continue
            for offset, blob, _ in reading.spans(file, index):
                if blob is not None:
                    frame, at, length = index.locate(blob)
                    frames.setdefault(frame, []).append(Write(at, length, blob, target, offset))
                    target.left += 1
            if target.left:
                self._make(target)
            else:
                empty.append(target)
        ranges = iter(reading.plan(index, frames))
        count = min(WRITERS_MAX, max(2, os.cpu_count() or 1))
        with ThreadPoolExecutor(count, thread_name_prefix="runlore-write") as pool:
            works = [pool.submit(self._write_empty, empty)]
            works += [pool.submit(self._work, ranges, frames) for _ in range(count)]
            try:
                for work in works:
                    work.result()
            except BaseException:
                self._stop(ranges)
                raise

    def _stop(self, ranges: Iterator[reading.Range]) -> None:
        with self._lock:
            for _ in ranges:  # The other writers find nothing more to do.
                pass

    def _make(self, target: Target) -> None:
        """A large file: at its full length from the start, so what is never written is a hole."""
        descriptor = os.open(target.path, _NEW, 0o600, dir_fd=self._root)
        try:
            os.ftruncate(descriptor, target.file.size)
        finally:
            os.close(descriptor)

    def _write_empty(self, targets: list[Target]) -> None:
        for target in targets:
            self._write_whole(target, b"")

    def _work(self, ranges: Iterator[reading.Range], frames: dict[int, list[Write]]) -> None:
        coming: deque[tuple[reading.Range, Future[bytes]]] = deque()
        while True:
            while len(coming) <= RANGES_AHEAD and (following := self._next(ranges)) is not None:
                coming.append(following)
            if not coming:
                return
            if self._stopped is not None and self._stopped.is_set():
                raise saving.Stopped
            one, fetched = coming.popleft()
            raw = fetched.result()
            for frame in one.frames:
                self._write_frame(one.content(self._opened.index, raw, frame), frames.pop(frame))

    def _next(self, ranges: Iterator[reading.Range]) -> tuple[reading.Range, Future[bytes]] | None:
        with self._lock:
            one = next(ranges, None)
        return None if one is None else (one, self._fetch(one))

    def _write_frame(self, content: bytes, writes: list[Write]) -> None:
        view = memoryview(content)
        checked: set[bytes] = set()
        descriptor, current = -1, None
        size = 0
        try:
            for write in writes:
                body = view[write.at : write.at + write.length]
                if write.blob not in checked:
                    if names.blob_id(body) != write.blob:
                        raise errors.Corrupt(
                            f"blob {write.blob.hex()[:12]} has other bytes than its id says",
                            hint="run `runlore snapshot verify`; restore another snapshot meanwhile",
                        )
                    checked.add(write.blob)
                size += write.length
                if not write.target.left:
                    self._write_whole(write.target, body)
                    continue
                if current is not write.target:
                    if descriptor >= 0:
                        os.close(descriptor)
                    current = write.target
                    descriptor = os.open(current.path, _OLD, dir_fd=self._root)
                _pwrite(descriptor, body, write.offset)
                with self._lock:
                    write.target.left -= 1
                    done = write.target.left == 0
                if done:
                    self._seal(descriptor, write.target)
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        with self._lock:
            self.bytes += size
        if self._progress is not None:
            self._progress(self.files, self.bytes)

    def _write_whole(self, target: Target, body: bytes | memoryview) -> None:
        descriptor = os.open(target.path, _NEW, target.file.mode & 0o777 | 0o200, dir_fd=self._root)
        try:
            if len(body):
                _pwrite(descriptor, body, 0)
            elif target.file.size:
                os.ftruncate(descriptor, target.file.size)
            self._seal(descriptor, target, made_with=target.file.mode & 0o777 | 0o200)
        finally:
            os.close(descriptor)

    def _seal(self, descriptor: int, target: Target, made_with: int | None = None) -> None:
        """A file's attributes, once its bytes are there."""
        file = target.file
        if file.xattrs:
            self._set_xattrs(descriptor, target.path, file.xattrs)
        # The mode last but for the time: a write would clear set-user-id bits.
        if made_with is None or made_with & ~self._umask != file.mode:
            os.fchmod(descriptor, file.mode)
        os.utime(descriptor, ns=(file.mtime_ns, file.mtime_ns))
        target.row = _row(os.fstat(descriptor), file)
        self.files += 1

    def _set_xattrs(self, descriptor: int, path: bytes, xattrs: Mapping[str, bytes]) -> None:
        """Those that this file system takes; the others are told, because a tree without them is worth having."""
        for name, value in xattrs.items():
            try:
                os.setxattr(descriptor, name, value)
            except OSError as exc:
                if exc.errno not in _XATTR_REFUSED:
                    raise
                with self._lock:
                    self._plan.skipped.append((path, f"attribute {name}: {exc.strerror}"))

    def _link(self) -> None:
        for path, link in self._plan.links:
            os.symlink(link.target, path, dir_fd=self._root)
            os.utime(path, ns=(link.mtime_ns, link.mtime_ns), dir_fd=self._root, follow_symlinks=False)
            # Now, while every directory can still be entered; its own mode may forbid that later.
            status = os.stat(path, dir_fd=self._root, follow_symlinks=False)
            self._links[path] = (status.st_ino, status.st_ctime_ns, status.st_size, status.st_mtime_ns,
                                 status.st_mode, link.target, None, None)  # fmt: skip
        for group in self._plan.hardlinks:
            for path in group[1:]:
                os.link(group[0], path, src_dir_fd=self._root, dst_dir_fd=self._root, follow_symlinks=False)
            status = os.stat(group[0], dir_fd=self._root, follow_symlinks=False)  # Each link moved its ctime.
            for path in group:
                target = self._plan.files[path]
                target.row = _row(status, target.file)
            self.files += len(group) - 1

    def _finish_folder(self, path: bytes, folder: trees.Dir) -> None:
        if folder.xattrs:
            descriptor = os.open(path, _DIR, dir_fd=self._root)
            try:
                self._set_xattrs(descriptor, path, folder.xattrs)
            finally:
                os.close(descriptor)
        os.utime(path, ns=(folder.mtime_ns, folder.mtime_ns), dir_fd=self._root)
        os.chmod(path, folder.mode, dir_fd=self._root)

    def finish(self) -> None:
        """The root's own time and mode; the lock's descriptor still works after its mode was taken away."""
        record = self._opened.whole()
        os.utime(self._root, ns=(record.mtime_ns, record.mtime_ns))
        os.fchmod(self._root, record.mode)

    # --- the stat cache -------------------------------------------------------------------------------------

    def cache(self) -> statcache.StatCache | None:
        """What the next save may trust: we wrote these bytes, and nobody else could reach them."""
        before = self._settled()
        if before is None:
            return None
        found = statcache.StatCache(statcache.filesystem(self._root))
        for path, (tree, content) in self._plan.encoded.items():
            found.folders[path] = (tree, content, {})
        record = self._opened.whole()
        for path, folder in self._plan.folders:
            mode = stat.S_IFDIR | folder.mode
            row = (0, 0, 0, folder.mtime_ns, mode, folder.tree, folder.content, None)
            _put(found, path, folder.name, row)
        rows = (
            (one.path, one.file.name, one.row) for one in self._plan.files.values() if one.row is not None
        )
        links = ((path, link.name, self._links[path]) for path, link in self._plan.links)
        for path, name, made in itertools.chain(rows, links):
            trusted = made[statcache.CTIME] < before
            _put(found, path, name, made if trusted else (made[0], statcache.NO_CTIME, *made[2:]))
        return found if record.kind == trees.TREE else None

    def _settled(self) -> int | None:
        """A time by the file system's clock that lies after our last write, or the best that can be had."""
        rows = (target.row for target in self._plan.files.values() if target.row is not None)
        last = max((row[statcache.CTIME] for row in itertools.chain(rows, self._links.values())), default=0)
        for _ in range(10):
            at = statcache.now_there(self._root)
            if at is None or at > last:
                break
            time.sleep(CTIME_WAIT_SECONDS / 10)  # The kernel's own clock, which no simulation owns.
        return at


def _put(cache: statcache.StatCache, path: bytes, name: bytes, row: statcache.Row) -> None:
    """Note an entry under the very `name` that its tree holds, which is there already."""
    cache.folders[path[: -len(name) - 1]][2][name] = row


def _row(status: os.stat_result, file: trees.File) -> statcache.Row:
    # The tree's own numbers where they are the same: a row is what grows with the tree.
    size = file.size if file.size == status.st_size else status.st_size
    mtime = file.mtime_ns if file.mtime_ns == status.st_mtime_ns else status.st_mtime_ns
    return (status.st_ino, status.st_ctime_ns, size, mtime, status.st_mode, file.chunks,
            file.extents, None)  # fmt: skip


def _pwrite(descriptor: int, body: bytes | memoryview, offset: int) -> None:
    view = memoryview(body)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _umask() -> int:
    """The process's umask, read without changing it, which would race with other threads."""
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"Umask:"):
                    return int(line.split()[1], 8)
    except (OSError, ValueError):
        pass
    return 0o777  # Unknown: every file gets its mode explicitly.


# --- an older tree at the target ----------------------------------------------------------------------------


class Reuse:
    """Files of the tree that is replaced, proven unchanged by the stat cache: they are linked, not written."""

    def __init__(self, root: int, found: scan.Scan) -> None:
        self._root = root
        self._rows = {
            scan.join(folder.path, name): row for folder in found.folders for name, row in folder.rows.items()
        }
        self.files = 0

    def link(self, target: Target, into: int) -> bool:
        """Give the old file its new name beside the old one; False where it is another file."""
        row, file = self._rows.get(target.path), target.file
        if row is None or file.xattrs or row[statcache.MODE] != stat.S_IFREG | file.mode:
            return False
        if (row[2], row[3], row[5], row[6]) != (file.size, file.mtime_ns, file.chunks, file.extents):
            return False
        try:
            os.link(target.path, target.path, src_dir_fd=self._root, dst_dir_fd=into, follow_symlinks=False)
        except OSError:
            return False
        status = os.stat(target.path, dir_fd=into, follow_symlinks=False)
        # Another file may have taken the name since the scan. And one with a third name is some other file too (a
        # package manager's store, a hard link of the old tree): an edit here must not reach it.
        same = (status.st_ino, status.st_size, status.st_mtime_ns) == (row[0], row[2], row[3])
        if not same or status.st_nlink != 2:
            os.unlink(target.path, dir_fd=into)
            return False
        # Removing the old name will move the ctime once more, when others can reach the file already. So it
        # proves nothing, and the next save reads this file.
        row = _row(status, file)
        target.row = (row[0], statcache.NO_CTIME, *row[2:])
        self.files += 1
        return True


def translated(exc: OSError) -> errors.RunloreError:
    """What the machine raised, as an error that says what to do."""
    what = f"{exc.strerror or exc}" + (f" ({os.fsdecode(exc.filename)})" if exc.filename else "")
    hints = {
        errno.ENOSPC: "free space on the disk, or restore elsewhere",
        errno.EDQUOT: "raise the quota, or restore elsewhere",
        errno.EACCES: "restore where this user may write",
        errno.EROFS: "restore to a file system that can be written",
        errno.ENAMETOOLONG: "this file system does not take names as long as the snapshot's",
    }
    return errors.RestoreFailed(
        f"the snapshot can not be written here: {what}", hint=hints.get(exc.errno or 0)
    )


def bridge(opened: reading.Opened, loop: asyncio.AbstractEventLoop) -> Fetch:
    """Ranged reads for threads, made on the loop that owns the store."""
    return lambda one: asyncio.run_coroutine_threadsafe(opened.fetch(one), loop)
