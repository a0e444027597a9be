"""The library: save, restore, open, diff and verify the snapshots of one project on any object store.

Async on the outside; work on files runs in threads, which reach the store through the loop that awaits them.
Order of writes: packs, then the root pack. Until the root pack is there the snapshot does not exist, and what
a dead writer left is garbage that nothing names. Moving a head is the caller's next step, never ours.
"""

from __future__ import annotations

import asyncio
import io
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from runlore import clock, errors
from runlore.commit import keys
from runlore.snapshots import (
    building,
    comparing,
    ignore,
    names,
    packs,
    reading,
    restoring,
    saving,
    scan,
    statcache,
    tarin,
    tarout,
    trees,
)
from runlore.store import port

UPLOADS_MAX = 2
"""Packs on their way to the store at the same time; a third one waits, and with it the readers."""
PUT_TRIES_MAX = 4
"""How often a pack is sent: its name is its content, so sending it again is harmless."""
SMALL_SAVE_BYTES = 32 * 1024 * 1024
"""A save that reads less than this is compressed harder: nobody waits for it."""

if TYPE_CHECKING:
    from runlore.snapshots import merge

T = TypeVar("T")

Progress = saving.Progress
"""Called from any thread with (files, bytes) done so far."""


@dataclass(frozen=True)
class Saved:
    """What a save made. `ref` is what a head names; `id` alone names the content."""

    ref: names.Ref
    tree: str
    content_id: str
    packs_written: int
    bytes_written: int
    report: dict[str, Any]
    stats: dict[str, int]

    @property
    def id(self) -> str:
        return self.ref.id


@dataclass(frozen=True)
class Restored:
    """What a restore did."""

    ref: names.Ref
    into: str
    stats: dict[str, int]
    report: dict[str, Any]
    """The report of the save."""
    skipped: tuple[tuple[str, str], ...] = ()
    """What this restore left out, and why."""


class Snapshots:
    """The snapshots of `project` in `store`. `cache_dir` keeps stat caches; without it every save reads every file."""

    def __init__(self, store: port.ObjectStore, project: str, *, cache_dir: Path | str | None = None) -> None:
        self.store = store
        self.project = project
        self._cache_dir = Path(cache_dir) if cache_dir is not None else None

    async def open(self, snapshot: names.Ref | str) -> reading.Opened:
        """A snapshot to look into: its record, its trees, its files. Raises `errors.SnapshotNotFound`."""
        return await reading.open_snapshot(self.store, self.project, snapshot)

    # --- saving -------------------------------------------------------------------------------------------

    async def save(
        self,
        path: str | os.PathLike[str],
        *,
        base: names.Ref | str | None = None,
        bases: Sequence[names.Ref | str] = (),
        exclude: Sequence[str] = (),
        without: Sequence[str | bytes] = (),
        size_bytes_max: int | None = None,
        xattrs: bool = False,
        progress: Progress | None = None,
    ) -> Saved:
        """Save the directory `path`.

        `base` (and `bases`) are what it may share packs with: refs that a head names *now*. A bare id is refused
        there, because a listing does not show what a sweep is about to take (invariant 7). `exclude` are globs
        of .gitignore, `without` exact paths (memory directories).
        """
        opened = await self._bases([base, *bases])
        root = _open_root(path)
        try:
            where = _absolute(path)
            rules = ignore.rules(exclude, without, ignore.mounts_below(where), size_bytes_max)
            cache_path = self._cache_path(where)
            uploads = Uploads(self.store, self.project)
            builder = building.Builder(uploads.sink, bases=opened)
            work = _Save(root, builder, rules, cache_path, xattrs, progress, bool(opened))
            try:
                tree = await _in_thread(work.run, work.stop)
            except OSError as exc:  # Of the directory itself; whatever is below it is told in the report.
                raise errors.InvalidInput(f"{os.fspath(path)!r} can not be saved: {exc.strerror}") from exc
            finally:
                await uploads.drain()
        finally:
            os.close(root)
        saved = await self._commit(builder, uploads, tree)
        if cache_path is not None and tree.cache is not None and tree.cache_changed:
            await asyncio.to_thread(statcache.save, cache_path, tree.cache)
        return saved

    async def _bases(self, given: Sequence[names.Ref | str | None]) -> list[reading.Opened]:
        refs = []
        for one in given:
            if one is None:
                continue
            if isinstance(one, str):
                if "/" not in one:
                    raise errors.InvalidInput(
                        "a base is a snapshot with its root pack",
                        hint="give the ref that the rollout's head names: <id>/<root>",
                    )
                one = names.Ref.parse(one)
            if one not in refs:
                refs.append(one)
        return await reading.together([reading.open_exact(self.store, self.project, ref) for ref in refs])

    def _cache_path(self, root: bytes) -> Path | None:
        if self._cache_dir is None:
            return None
        if statcache.lies_in(self._cache_dir, root):
            raise errors.InvalidInput(
                f"the stat cache lies in the workspace: {self._cache_dir}", hint="put it outside"
            )
        return statcache.path_of(self._cache_dir, self.project, root)

    async def _commit(self, builder: building.Builder, uploads: Uploads, tree: saving.Tree) -> Saved:
        """Put the root pack, after everything that it names."""
        record, stats = tree.record, _stats(tree.record)
        stats |= {"files_read": tree.files_read, "bytes_read": tree.bytes_read}
        same = next((base for base in builder.bases if base.ref.id == record.id), None)
        if same is not None:
            return _saved(same.ref, record, tree.report, uploads, stats)
        copied = builder.settle(tree.needed)
        contents: dict[bytes, bytes] = {}
        for base in builder.bases:
            held = [blob for blob in copied if blob not in contents and blob in base.index]
            contents |= await base.blobs(held)
        builder.copy(contents)
        built = await asyncio.to_thread(builder.finish, record, tree.needed)
        await uploads.drain()
        await uploads.put(built.root_pack)
        return _saved(built.ref, record, tree.report, uploads, stats)

    # --- restoring ------------------------------------------------------------------------------------------

    async def restore(
        self,
        snapshot: names.Ref | str,
        into: str | os.PathLike[str],
        *,
        replace: bool = False,
        links: str = restoring.KEEP,
        progress: Progress | None = None,
    ) -> Restored:
        """Write the snapshot to the directory `into`, which must be absent or empty.

        With `replace` it may hold an older tree: files that the stat cache proves equal are kept, everything else
        goes. Either way `into` shows the old state or the new one. `links="inside"` leaves links out that lead
        elsewhere, and says which. Raises `errors.TargetModified`, `UnsafeTarget`, `RestoreFailed`, `Corrupt`.
        """
        opened = await self.open(snapshot)
        report = await opened.report()
        made = await restoring.plan(opened, links=links)
        opened.forget()
        cache_path = self._cache_path(_absolute(into))
        fetch = restoring.bridge(opened, asyncio.get_running_loop())
        work = _Restore(opened, made, into, fetch, cache_path, replace, progress)
        stats = await _in_thread(work.run, work.stop)
        skipped = tuple((names.to_text(path), why) for path, why in made.skipped)
        return Restored(opened.ref, os.fspath(into), stats, report, skipped)

    # --- archives -------------------------------------------------------------------------------------------

    async def ingest(
        self,
        archive: IO[bytes],
        *,
        base: names.Ref | str | None = None,
        bases: Sequence[names.Ref | str] = (),
        exclude: Sequence[str] = (),
        without: Sequence[str | bytes] = (),
        limits: tarin.Limits | None = None,
        progress: Progress | None = None,
    ) -> Saved:
        """Save what a tar holds (plain or gzipped), or keep a provider's own reference as it is.

        `archive` is read once, in a thread, and never held. `exclude` are globs of .gitignore, `without` exact paths
        (memory directories): none of their bytes are kept. Raises `errors.HostileArchive`, `BadArchive`,
        `ArchiveLimit`; then nothing names what was sent so far.
        """
        uploads = Uploads(self.store, self.project)
        builder = building.Builder(uploads.sink, bases=await self._bases([base, *bases]))
        stop = threading.Event()
        rules = ignore.rules(exclude, without)
        work = tarin.Ingest(builder, limits or tarin.Limits(), progress, stop, rules)
        try:
            record, needed = await _in_thread(lambda: work.run(archive), stop)
        finally:
            await uploads.drain()
        tree = saving.Tree(record, needed, work.report, None, False, record.files, record.bytes)
        return await self._commit(builder, uploads, tree)

    async def export(self, snapshot: names.Ref | str) -> io.RawIOBase:
        """The snapshot as an uncompressed tar: seekable, made as it is read, always the same bytes for one id.

        It restores in the real SDK: what that refuses is left out, and told in `left_out`. Close it.
        """
        return await tarout.export(await self.open(snapshot))

    # --- looking --------------------------------------------------------------------------------------------

    async def diff(self, old: names.Ref | str, new: names.Ref | str) -> list[comparing.Change]:
        """Every path that differs between two snapshots."""
        one, two = await self.open(old), await self.open(new)
        return [change async for change in comparing.diff(one, two)]

    async def merge(
        self,
        base: names.Ref | str | None,
        ours: names.Ref | str,
        theirs: names.Ref | str,
        *,
        labels: tuple[str, str] = ("ours", "theirs"),
    ) -> tuple[Saved, tuple[merge.Conflict, ...]]:
        """What both sides made of `base` (None: of nothing), and where they want it otherwise.

        All three are refs that a head names now, as for `save`: the result refers to their packs. What conflicts is
        kept side by side, under names that hold the labels. Raises `errors.Corrupt`, `errors.NativeSnapshot`.
        """
        from runlore.snapshots import merge as merging  # It builds on this module.

        started, one, two = [
            (await self._bases([ref]))[0] if ref is not None else None for ref in (base, ours, theirs)
        ]
        assert one is not None and two is not None
        sides = merging.Side(labels[0], one), [merging.Side(labels[1], two)]
        merged = await merging.merge(started, *sides, offload=asyncio.to_thread)
        saved = await merging.write(self.store, self.project, merged, offload=asyncio.to_thread)
        return saved, merged.conflicts

    async def verify(
        self, snapshot: names.Ref | str, *, progress: Progress | None = None
    ) -> comparing.Verified:
        """Read everything that the snapshot names and hold it against its ids."""
        return await comparing.verify(await self.open(snapshot), progress=progress)

    async def stats(self, snapshot: names.Ref | str) -> dict[str, int]:
        """How large a snapshot is: its files, and the packs that it names with what of them it uses."""
        opened = await self.open(snapshot)
        stored = {frame: opened.index.frame_stored[frame] for frame in range(len(opened.index.frame_pack))}
        return _stats(opened.record) | {
            "packs": len(opened.packs()),
            "indexes": len(opened.tables),
            "blobs": len(opened.index),
            "stored_bytes": sum(stored.values()),
            "raw_bytes": sum(opened.index.frame_raw),
        }


async def _in_thread(work: Callable[[], T], stop: threading.Event) -> T:
    """`work` in a thread. Whoever is cancelled meanwhile waits until it stopped: it uses what we would close."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # It is seen here; the cancellation is what counts.
        raise


def _saved(
    ref: names.Ref, record: trees.Record, report: trees.Report, uploads: Uploads, stats: dict[str, int]
) -> Saved:
    return Saved(
        ref, record.tree.hex(), record.content.hex(), uploads.packs, uploads.bytes, report.as_dict(), stats
    )


def _absolute(path: str | os.PathLike[str]) -> bytes:
    return os.fsencode(os.path.abspath(path))


def _stats(record: trees.Record) -> dict[str, int]:
    return {"files": record.files, "dirs": record.dirs, "links": record.links, "bytes": record.bytes}


def _open_root(path: str | os.PathLike[str]) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise errors.InvalidInput(f"{os.fspath(path)!r} can not be saved: {exc.strerror}") from None


class Uploads:
    """Puts packs, at most `UPLOADS_MAX` at a time. `sink` is for threads, `put` for the loop."""

    def __init__(self, store: port.ObjectStore, project: str) -> None:
        self._store, self._project = store, project
        self._slots = threading.BoundedSemaphore(UPLOADS_MAX)
        self._loop = asyncio.get_running_loop()
        self._under_way: list[Future[None]] = []
        self.packs = self.bytes = 0

    def sink(self, pack: packs.Pack) -> None:
        """Send `pack` in the background; waits while too many are under way. Raises what an earlier one met."""
        self._slots.acquire()
        for done in [future for future in self._under_way if future.done()]:
            if done.exception() is not None:
                self._slots.release()
                done.result()
            self._under_way.remove(done)
        future = asyncio.run_coroutine_threadsafe(self.put(pack), self._loop)
        future.add_done_callback(lambda _: self._slots.release())
        self._under_way.append(future)

    async def drain(self) -> None:
        """Wait until every pack is there. Raises what the first one met that is not."""
        under_way, self._under_way = self._under_way, []
        results = await asyncio.gather(*map(asyncio.wrap_future, under_way), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def put(self, pack: packs.Pack) -> None:
        await put_pack(self._store, self._project, pack)
        self.packs += 1
        self.bytes += len(pack.raw)


async def put_pack(store: port.ObjectStore, project: str, pack: packs.Pack) -> None:
    """Put a pack, which is named by its content: a lost reply is answered by sending it again."""
    for attempt in range(PUT_TRIES_MAX):
        try:
            await store.put(keys.snapshot_pack(project, pack.name), pack.raw)
            return
        except errors.Retryable:
            if attempt == PUT_TRIES_MAX - 1:
                raise
            await clock.sleep(0.1 * 2**attempt * (0.5 + clock.jitter()))


@dataclass
class _Save:
    """The blocking part of a save."""

    root: int
    builder: building.Builder
    rules: ignore.Rules
    cache_path: Path | None
    xattrs: bool
    progress: Progress | None
    has_base: bool
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> saving.Tree:
        # The file system's time is taken before the first look: what changes later gets a later ctime.
        before = statcache.now_there(self.root) if self.cache_path is not None else None
        where = statcache.filesystem(self.root)
        # Without a base every file has to be read anyway.
        path = self.cache_path if self.has_base else None
        cache = statcache.load(path, where, xattrs=self.xattrs)
        found = scan.scan(self.root, cache, self.rules, before=before, xattrs=self.xattrs)
        wanted = sum(one.size for one in found.wanted)
        self.builder.level = packs.LEVEL_SMALL if wanted < SMALL_SAVE_BYTES else packs.LEVEL_BULK
        return saving.build(
            self.root,
            self.builder,
            found,
            cache,
            before=before,
            xattrs=self.xattrs,
            progress=self.progress,
            stop=self.stop,
        )


@dataclass
class _Restore:
    """The blocking part of a restore."""

    opened: reading.Opened
    made: restoring.Plan
    into: str | os.PathLike[str]
    fetch: restoring.Fetch
    cache_path: Path | None
    replace: bool
    progress: Progress | None
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> dict[str, int]:
        try:
            place = restoring.Place(self.into, replace=self.replace)
        except OSError as exc:
            raise restoring.translated(exc) from exc
        failed = True
        try:
            writer = restoring.Writer(
                self.opened, self.made, place.root, self.fetch, self.progress, self.stop
            )
            reuse, old = self._reuse(place)
            try:
                writer.run(reuse)
            finally:
                if old >= 0:
                    os.close(old)
            self.opened.release()
            cache = writer.cache() if self.cache_path is not None else None
            writer.finish()
            place.publish()
            failed = False
        except OSError as exc:
            raise restoring.translated(exc) from exc
        finally:
            place.close(failed=failed)
        if cache is not None and self.cache_path is not None:
            statcache.save(self.cache_path, cache)
        stats = _stats(self.opened.record)
        return stats | {"files_kept": reuse.files if reuse else 0, "bytes_written": writer.bytes}

    def _reuse(self, place: restoring.Place) -> tuple[restoring.Reuse | None, int]:
        """The older tree at the target, as far as the stat cache knows it."""
        if not self.replace or self.cache_path is None or not os.path.isdir(place.target):
            return None, -1
        try:
            old = os.open(place.target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None, -1  # It can be replaced without being read.
        cache = statcache.load(self.cache_path, statcache.filesystem(old), xattrs=False)
        try:
            found = scan.scan(old, cache, ignore.rules(), before=None)
        except (OSError, errors.InvalidInput):
            os.close(old)
            return None, -1
        return restoring.Reuse(old, found), old
