"""Looking at a directory tree: what is there, and what the stat cache proves unchanged.

Every directory is opened by its path and must then be the very inode that its parent listed, and every file is
opened below such a directory without following links. So a process that swaps a directory for a link while
we look can make us miss something, and can not make us read outside of the workspace.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from runlore import errors
from runlore.snapshots import ignore, statcache, trees

ENTRIES_MAX = 5_000_000
"""Entries of one tree: a bound on the memory that a scan takes."""
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ENCODING = sys.getfilesystemencoding()
_IGNORE = os.fsdecode(ignore.IGNORE_FILE)
_KINDS = {stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}


@dataclass(slots=True)
class Folder:
    """One directory as scanned."""

    path: bytes
    inode: int
    device: int
    mode: int
    mtime_ns: int
    rows: dict[bytes, statcache.Row] = field(default_factory=dict)
    """Files and links that need no reading any more."""
    folders: dict[bytes, Folder] = field(default_factory=dict)
    cached: statcache.Folder | None = None
    same: bool = False
    """Whether every file and link is the cached one, and no entry came or went; folders may still differ."""
    xattrs: dict[str, bytes] | None = None
    tree: bytes = b""
    content: bytes = b""


@dataclass(slots=True)
class Wanted:
    """A file that has to be read."""

    folder: Folder
    name: bytes
    size: int

    @property
    def path(self) -> bytes:
        return join(self.folder.path, self.name)


@dataclass
class Scan:
    """What a scan found. Folders come before what is below them."""

    root: int
    folders: list[Folder] = field(default_factory=list)
    wanted: list[Wanted] = field(default_factory=list)
    report: trees.Report = field(default_factory=trees.Report)
    linked: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)
    """Paths of files with more than one name, by device and inode: on overlayfs a tree has files of several."""
    entries: int = 0


def join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


@contextmanager
def opened(root: int, folder: Folder) -> Iterator[int]:
    """A descriptor of a scanned directory. Raises `OSError` where its path leads elsewhere by now."""
    descriptor = os.open(folder.path or b".", _OPEN_DIR, dir_fd=root)
    try:
        status = os.fstat(descriptor)
        if (status.st_ino, status.st_dev) != (folder.inode, folder.device):
            raise OSError(errno.ESTALE, "the directory was replaced", folder.path)
        yield descriptor
    finally:
        os.close(descriptor)


def scan(
    root: int, cache: statcache.StatCache, rules: ignore.Rules, *, before: int | None, xattrs: bool = False
) -> Scan:
    """Look at everything below the open directory `root`; `before` is when this began, by its file system."""
    status = os.fstat(root)
    found = Scan(root)
    first = Folder(b"", status.st_ino, status.st_dev, status.st_mode, status.st_mtime_ns)
    stack = [(first, rules, 0)]
    while stack:
        folder, inherited, depth = stack.pop()
        try:
            with opened(root, folder) as descriptor:
                folder.xattrs = read_xattrs(descriptor) if xattrs else None
                own = _look(descriptor, folder, inherited, cache, found, before)
        except OSError as exc:
            if folder is first:
                raise
            # A directory that vanished is a change like any other; one that can not be read is told.
            own = inherited
            if exc.errno != errno.ENOENT:
                found.report.skipped.append((folder.path, f"directory: {os.strerror(exc.errno or 0)}"))
        found.folders.append(folder)
        if folder.folders and depth >= trees.DEPTH_MAX:
            raise errors.InvalidInput(f"the tree is deeper than {trees.DEPTH_MAX} directories")
        stack.extend([(below, own, depth + 1) for below in folder.folders.values()])
        if found.entries > ENTRIES_MAX:
            raise errors.InvalidInput(
                f"the tree has more than {ENTRIES_MAX} entries", hint="exclude some of it"
            )
    return found


def _ignore_file(descriptor: int, folder: Folder, rules: ignore.Rules) -> ignore.Rules:
    try:
        file = os.open(
            ignore.IGNORE_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=descriptor
        )
    except OSError:
        return rules
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return rules
        return rules.below(folder.path, os.read(file, ignore.IGNORE_BYTES_MAX + 1))
    finally:
        os.close(file)


def _look(
    descriptor: int,
    folder: Folder,
    rules: ignore.Rules,
    cache: statcache.StatCache,
    found: Scan,
    before: int | None,
) -> ignore.Rules:
    """One directory; returns the rules that hold below it.

    The loop is the hot path of a save that finds nothing changed, so it is kept flat.
    """
    folder.cached = cache.folders.get(folder.path)
    known = folder.cached[2] if folder.cached else {}
    known_get, rows, path, device = known.get, folder.rows, folder.path, folder.device
    hits = others = 0
    with os.scandir(descriptor) as listed:
        entries = list(listed)
        if _IGNORE in [entry.name for entry in entries]:
            rules = _ignore_file(descriptor, folder, rules)
        filtered = bool(rules.levels or rules.size_bytes_max is not None or rules.exact)
        for entry in entries:
            name = entry.name.encode(_ENCODING, "surrogateescape")
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            mode = status.st_mode
            is_dir = stat.S_ISDIR(mode)
            # Only for directories: on overlayfs a file's device may differ from its directory's.
            if is_dir and status.st_dev != device:
                found.report.count("mount")
                continue
            if filtered and (why := _why(rules, join(path, name), status)):
                found.report.count(why)
                continue
            if is_dir:
                folder.folders[name] = Folder(
                    join(path, name), status.st_ino, device, mode, status.st_mtime_ns
                )
                continue
            if status.st_nlink > 1 and stat.S_ISREG(mode):
                found.linked.setdefault((status.st_dev, status.st_ino), []).append(join(path, name))
            row = known_get(name)
            if (
                row is not None
                and row[1] == status.st_ctime_ns
                and row[0] == status.st_ino
                and row[2] == status.st_size
                and row[3] == status.st_mtime_ns
                and row[4] == mode
            ):
                rows[name] = row
                hits += 1
                continue
            others += 1
            if stat.S_ISREG(mode):
                found.wanted.append(Wanted(folder, name, status.st_size))
            elif stat.S_ISLNK(mode):
                _link(descriptor, folder, name, found, before)
            else:
                others -= 1
                found.report.skipped.append((join(path, name), _KINDS.get(stat.S_IFMT(mode), "unknown kind")))
    found.entries += hits + others + len(folder.folders)
    # Every row of the cache was met: as a hit, or as a folder, which `saving` compares with its row.
    folder.same = folder.cached is not None and not others and hits + len(folder.folders) == len(known)
    return rules


def _why(rules: ignore.Rules, path: bytes, status: os.stat_result) -> str | None:
    limit = rules.size_bytes_max
    if limit is not None and status.st_size > limit and stat.S_ISREG(status.st_mode):
        return "size"
    return rules.why(path, is_dir=stat.S_ISDIR(status.st_mode))


def _link(descriptor: int, folder: Folder, name: bytes, found: Scan, before: int | None) -> None:
    try:
        # The status first: if the link is replaced in between, its recorded ctime is the older one.
        status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        target = os.readlink(name, dir_fd=descriptor)
    except OSError:
        found.report.skipped.append((join(folder.path, name), "changed while it was read"))
        return
    folder.rows[name] = statcache.row_of(status, before, target, None, None)


def read_xattrs(file: int) -> dict[str, bytes] | None:
    """The extended attributes in the user's namespace; None where there are none."""
    try:
        listed = [name for name in os.listxattr(file) if name.startswith("user.")]
        return {name: os.getxattr(file, name) for name in listed} or None
    except OSError:
        return None
