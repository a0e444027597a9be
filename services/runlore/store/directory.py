"""The object store on a directory: the embedded default, and what S3 is on one machine.

One file per key. A body is written to a file in `.tmp`, synced, and only then given its name, so a reader
sees a whole body or none, whatever is killed and when. How each write keeps the port's promises:

====================  ==================================================================================
`put_if_absent`       `link(2)`: the kernel gives the name to one of any number of racing processes. It needs
                      no lock, because a key that is there is never absent during a compare-and-set.
`compare_and_set`     under the key's lock: read the etag again, then `rename(2)`. With None: `put_if_absent`.
`put`, `delete`,      under the same lock. Without it a plain write could fall between the reading of the etag
`compare_and_delete`  and the rename, and be lost without anybody having been told.
====================  ==================================================================================

A lock is `flock(2)` on one of 256 files in `.locks`, picked by the key's hash: it holds between threads and
processes, and ends with its owner. Nothing is done under it but a read, a rename or an unlink.

Durability: file, then folder, then every folder made for it are synced before a call returns. A process
may be killed at any point; what is left in `.tmp` is garbage. A failure *after* the name was given is an
`OutcomeUnknown`, never a "nothing landed". POSIX only (flock, link).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import fcntl
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from runlore import clock, errors
from runlore.store.port import Guard, Listed, Stored, check_key, check_prefix

THREADS_MAX = 8
"""Calls that work on the disk at the same time."""
READS_PER_HOP = 64
"""Keys that one thread works in a row for `*_many`: small files cost less than a hop between threads."""
LIST_PAGE = 256
"""Rows that one thread hop of a LIST reads ahead."""
LOCK_FILES = 256
COMMIT_LOCK = "commit"
SETTLE_SECONDS_MAX = 60
"""How long `settle` waits for a write that passed its guard, in seconds."""
TEMP_AGE_SECONDS_MAX = 3600
"""A temporary file older than this belongs to no living write, in seconds."""
FOLDERS_KNOWN_MAX = 65_536
"""Folders remembered as durable, so that each is synced into its parent once per process."""
TRIES_MAX = 32
"""How often a write makes its folder again after somebody pruned it."""

_TEMP = ".tmp"
_LOCKS = ".locks"
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV}
"""What a person must change: rights, or a file system without links or locks."""
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}

T = TypeVar("T")


def etag_of(body: bytes) -> str:
    """The etag of a body: its SHA-256, so equal bodies have equal etags, as on S3."""
    return hashlib.sha256(body).hexdigest()


class DirectoryStore:
    """`store.port.ObjectStore` on the folder `root`, for any number of processes of one machine.

    The folder is made by the first write, so that reading never needs the right to write. With
    `fsync=False` a power cut may lose writes (a kill may not): for tests and throw-away homes.
    """

    def __init__(self, root: Path | str, *, fsync: bool = True) -> None:
        self.root = Path(root)
        self._fsync = fsync
        self._pool = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="runlore-store")
        self._opened = False
        self._durable: set[str] = set()

    # --- the port -----------------------------------------------------------------------------------

    async def get(self, key: str) -> Stored | None:
        return await self._run(self._read, check_key(key))

    async def get_many(self, keys: Sequence[str]) -> list[Stored | None]:
        checked = [check_key(key) for key in keys]
        parts = [checked[at : at + READS_PER_HOP] for at in range(0, len(checked), READS_PER_HOP)]
        found: list[Stored | None] = []
        # At most one hop per thread is under way, so that a huge batch does not fill the pool's queue.
        for at in range(0, len(parts), THREADS_MAX):
            batch = parts[at : at + THREADS_MAX]
            for stored in await asyncio.gather(*(self._run(self._read_all, part) for part in batch)):
                found += stored
        return found

    async def get_range(self, key: str, offset: int, length: int) -> bytes | None:
        return await self._run(self._part, check_key(key), offset, length)

    async def get_tail(self, key: str, length: int) -> bytes | None:
        return await self._run(self._part, check_key(key), None, length)

    async def put(self, key: str, body: bytes) -> str:
        return await self._run(self._put, check_key(key), body)

    async def put_if_absent(self, key: str, body: bytes) -> str:
        return await self._run(self._put_if_absent, check_key(key), body)

    async def compare_and_set(
        self, key: str, body: bytes, etag: str | None, *, guard: Guard | None = None
    ) -> str:
        if etag is None:
            return await self._run(self._put_if_absent, check_key(key), body, guard)
        return await self._run(self._compare_and_set, check_key(key), body, etag, guard)

    async def delete(self, key: str) -> None:
        await self._run(self._delete, check_key(key), None)

    async def delete_many(self, keys: Sequence[str]) -> None:
        checked = [check_key(key) for key in keys]
        for at in range(0, len(checked), READS_PER_HOP):
            await self._run(self._delete_all, checked[at : at + READS_PER_HOP])

    async def compare_and_delete(self, key: str, etag: str) -> None:
        await self._run(self._delete, check_key(key), etag)

    async def list(self, prefix: str) -> AsyncIterator[Listed]:
        rows = self._walk_objects(check_prefix(prefix))
        while page := await self._run(list, islice(rows, LIST_PAGE)):
            for row in page:
                yield row

    async def children(self, prefix: str) -> list[str]:
        return await self._run(self._children, check_prefix(prefix, folder=True))

    async def settle(self) -> None:
        """Wait until no writer is between its guard and its rename: they hold a lock for that moment."""
        give_up = clock.monotonic() + SETTLE_SECONDS_MAX
        while not await self._run(self._nobody_commits):
            if clock.monotonic() > give_up:
                raise errors.StoreUnavailable(
                    f"a process holds a write to {self.root} open for more than {SETTLE_SECONDS_MAX} seconds",
                    hint="a stopped runlore process? `fuser` on its .locks/commit names it",
                )
            await clock.sleep(0.02 * (0.5 + clock.jitter()))

    async def close(self) -> None:
        await asyncio.to_thread(self._pool.shutdown)

    # --- beyond the port ----------------------------------------------------------------------------

    async def prune(self) -> int:
        """Remove folders that hold nothing (their names may be what an erasure must remove); how many."""
        return await self._run(self._prune)

    # --- one blocking call each, in a thread of the pool ------------------------------------------------

    async def _run(self, work: Callable[..., T], *args: Any) -> T:
        context = contextvars.copy_context()  # The clock's world is the caller's.
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: context.run(_translated, work, *args))

    def _path(self, key: str) -> str:
        return f"{self.root}/{key}"

    def _body(self, key: str) -> bytes | None:
        try:
            with open(self._path(key), "rb", buffering=0) as file:
                return file.readall()
        except OSError as exc:
            if exc.errno in _MISSING:
                return None
            raise

    def _part(self, key: str, offset: int | None, length: int) -> bytes | None:
        """`length` bytes from `offset` on, or (None) the last `length` ones."""
        try:
            with open(self._path(key), "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                start = max(0, size - length) if offset is None else offset
                length = min(length, size - start)  # A forged length must not allocate memory.
                return os.pread(file.fileno(), length, start) if length > 0 else b""
        except OSError as exc:
            if exc.errno in _MISSING:
                return None
            raise

    def _read(self, key: str) -> Stored | None:
        body = self._body(key)
        return None if body is None else Stored(body, etag_of(body))

    def _read_all(self, keys: Sequence[str]) -> list[Stored | None]:
        return [self._read(key) for key in keys]

    def _put(self, key: str, body: bytes) -> str:
        with self._temporary(body) as temp:
            with self._lock(key):
                self._place(key, lambda target: os.replace(temp, target))
            self._sync_folder_of(key)
        return etag_of(body)

    def _put_if_absent(self, key: str, body: bytes, guard: Guard | None = None) -> str:
        # Most losers are known before their bytes are written; the link decides among the others.
        self._expect_absent(key)
        with self._temporary(body) as temp:
            try:
                with self._committing(guard):
                    self._place(key, lambda target: os.link(temp, target))
            except FileExistsError:
                self._expect_absent(key)
                raise errors.PreconditionFailed(f"{key} was there") from None
            self._sync_folder_of(key)
        return etag_of(body)

    def _compare_and_set(self, key: str, body: bytes, etag: str, guard: Guard | None) -> str:
        with self._temporary(body) as temp:
            with self._lock(key), self._committing(guard):
                self._expect(key, etag)
                self._place(key, lambda target: os.replace(temp, target))
            self._sync_folder_of(key)
        return etag_of(body)

    def _expect_absent(self, key: str) -> None:
        if os.path.isdir(self._path(key)):
            raise errors.InvalidId(f"{key} is a folder of other keys")
        if os.path.lexists(self._path(key)):
            raise errors.PreconditionFailed(f"{key} exists")

    def _expect(self, key: str, etag: str) -> None:
        present = self._read(key)
        if present is None or present.etag != etag:
            raise errors.PreconditionFailed(f"{key} is not what was read" if present else f"{key} is gone")

    def _delete(self, key: str, etag: str | None) -> None:
        if not os.path.lexists(self._path(key)):
            return  # Nothing to lock for, and a read-only home stays untouched.
        with self._lock(key):
            present = self._read(key)
            if present is None:
                return
            if etag is not None and present.etag != etag:
                raise errors.PreconditionFailed(f"{key} is not what was read")
            os.unlink(self._path(key))
        self._sync_folder_of(key)

    def _delete_all(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._delete(key, None)

    # --- writing ------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Make the folders of the store once, and sweep what killed processes left in `.tmp`."""
        if self._opened:
            return
        self._make_root()
        for name in (_TEMP, _LOCKS):
            self._make_folder(f"{self.root}/{name}")
        oldest = clock.now().timestamp() - TEMP_AGE_SECONDS_MAX
        with os.scandir(f"{self.root}/{_TEMP}") as entries:
            for entry in entries:
                # Another process may sweep at the same time.
                with contextlib.suppress(FileNotFoundError):
                    if entry.stat(follow_symlinks=False).st_mtime < oldest:
                        os.unlink(entry.path)
        self._opened = True

    def _make_root(self) -> None:
        made = [path for path in (self.root, *self.root.parents) if not path.exists()]
        try:
            os.makedirs(self.root, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise errors.Blocked(f"{self.root} is not a folder", hint="give runlore a folder") from None
        for path in made:
            self._sync_folder(str(path.parent))

    @contextlib.contextmanager
    def _temporary(self, body: bytes) -> Iterator[str]:
        """A synced file with `body`; gone at the end unless it was renamed."""
        self._open()
        path = f"{self.root}/{_TEMP}/{clock.new_id()}"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                view = memoryview(body)
                while view:
                    view = view[os.write(descriptor, view) :]
                if self._fsync:
                    _sync(descriptor)
            finally:
                os.close(descriptor)
            yield path
        finally:
            # What cannot be removed now is swept later; it must not hide how the write itself ended.
            with contextlib.suppress(OSError):
                os.unlink(path)

    @contextlib.contextmanager
    def _committing(self, guard: Guard | None) -> Iterator[None]:
        """Call `guard`, and hold off a sweep from then on until the write has its name.

        It is what a signature's age is on S3: a process stopped in here is waited for by `settle`.
        """
        if guard is None:
            yield
            return
        descriptor = self._open_lock(COMMIT_LOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            guard()
            yield
        finally:
            os.close(descriptor)

    def _nobody_commits(self) -> bool:
        """Whether, at one moment of this call, no guarded write was under way."""
        if not self.root.is_dir():
            return True
        descriptor = self._open_lock(COMMIT_LOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True

    def _open_lock(self, name: str) -> int:
        self._open()
        return os.open(f"{self.root}/{_LOCKS}/{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    @contextlib.contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        stripe = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % LOCK_FILES
        descriptor = self._open_lock(f"{stripe:02x}")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)  # Closing the only descriptor of this open file ends the lock.

    def _place(self, key: str, give_name: Callable[[str], None]) -> None:
        """Give a temporary file its name, making its folder as often as somebody prunes it."""
        target = self._path(key)
        folder = os.path.dirname(target)
        for _ in range(TRIES_MAX):
            try:
                self._make_folder(folder)
                give_name(target)
                return
            except FileNotFoundError:
                self._durable.clear()
                self._make_root()
            except (IsADirectoryError, NotADirectoryError):
                raise errors.InvalidId(f"{key} is a folder of another key, or lies below one") from None
        raise errors.StoreUnavailable(f"the folder of {key} keeps vanishing")

    def _make_folder(self, folder: str) -> None:
        """`folder` and its parents, each synced into its parent once by this process.

        A folder that is there already may have been made by a process that died before its sync, so
        finding it proves nothing.
        """
        if folder in self._durable:
            return
        missing = []
        while folder != str(self.root):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path)
            if path not in self._durable:
                self._sync_folder(os.path.dirname(path))
        if len(self._durable) > FOLDERS_KNOWN_MAX:
            self._durable.clear()
        self._durable.update(missing)

    def _sync_folder_of(self, key: str) -> None:
        """Make the name durable. It has been given, so a failure here leaves the outcome unknown."""
        try:
            self._sync_folder(os.path.dirname(self._path(key)))
        except FileNotFoundError:
            return  # Deleted and pruned since: somebody's later write.
        except OSError as exc:
            raise errors.OutcomeUnknown(f"{key}: {exc.strerror}") from exc

    def _sync_folder(self, folder: str) -> None:
        if not self._fsync:
            return
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _sync(descriptor)
        except OSError as exc:
            if exc.errno != errno.EINVAL:  # Some file systems have no sync for folders.
                raise
        finally:
            os.close(descriptor)

    # --- walking ------------------------------------------------------------------------------------

    def _entries(self, folder: str, prefix: str = "") -> list[tuple[str, bool]]:
        """Names in `folder` that begin with `prefix`, in the order of the keys below them; is it a folder?

        A folder sorts as `name/`, because that is what its keys begin with.
        """
        try:
            with os.scandir(f"{self.root}/{folder}") as entries:
                found = [
                    (f"{entry.name}/" if is_folder else entry.name, is_folder)
                    for entry in entries
                    if entry.name.startswith(prefix) and not entry.name.startswith(".")
                    for is_folder in (entry.is_dir(follow_symlinks=False),)
                ]
        except OSError as exc:
            if exc.errno in _MISSING:
                return []
            raise
        return sorted(found)

    def _walk(self, folder: str, prefix: str = "") -> Iterator[str]:
        """Keys in order. Memory is bounded by the folders on one path, not by the store."""
        for name, is_folder in self._entries(folder, prefix):
            if is_folder:
                yield from self._walk(folder + name)
            else:
                yield folder + name

    def _walk_objects(self, prefix: str) -> Iterator[Listed]:
        folder, slash, rest = prefix.rpartition("/")
        for key in self._walk(folder + slash, rest):
            row = self._row(key)
            if row is not None:
                yield row

    def _row(self, key: str) -> Listed | None:
        try:
            with open(self._path(key), "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        except OSError as exc:
            if exc.errno in _MISSING:  # It was deleted while the list was under way.
                return None
            raise
        return Listed(key, digest, status.st_size, status.st_mtime)

    def _children(self, prefix: str) -> list[str]:
        found = []
        for name, is_folder in self._entries(prefix):
            # A folder that holds no object is no child: S3 has no empty folders.
            if not is_folder or next(self._walk(prefix + name), None) is not None:
                found.append(name.rstrip("/"))
        return sorted(found)

    def _prune(self) -> int:
        removed = 0
        for folder, folders, _ in os.walk(self.root, topdown=False):
            if folder == str(self.root):
                folders[:] = [name for name in folders if not name.startswith(".")]
            for name in folders:
                with contextlib.suppress(OSError):  # It is not empty, or a writer was faster.
                    os.rmdir(os.path.join(folder, name))
                    removed += 1
        self._durable.clear()
        return removed


def _sync(descriptor: int) -> None:
    # On macOS fsync leaves the bytes in the drive's cache.
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        fcntl.fcntl(descriptor, full)
    else:
        os.fsync(descriptor)


def _translated(work: Callable[..., T], *args: Any) -> T:
    """`work`, with what the machine raises turned into what the port promises."""
    try:
        return work(*args)
    except OSError as exc:
        where = f" ({exc.filename})" if exc.filename else ""
        if exc.errno in _DENIED:
            raise errors.Blocked(
                f"the store's folder can not be used: {exc.strerror}{where}",
                hint="let the user that runs runlore read and write this folder",
            ) from exc
        hint = "free space on its disk" if exc.errno in (errno.ENOSPC, errno.EDQUOT) else None
        raise errors.StoreUnavailable(f"the store's disk failed: {exc.strerror}{where}", hint=hint) from exc
