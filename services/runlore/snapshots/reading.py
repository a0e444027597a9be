"""From an id to bytes: root → indexes → frames → blobs, each blob checked against its id.

Read in the opposite order of writing. A reader holds what the root's indexes say and never lists packs. All
of it is awaited on the store alone, so a simulation can drive it; what works on files brings its own threads.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from runlore import errors
from runlore.commit import keys
from runlore.snapshots import names, packs, trees
from runlore.store import port

ROOT_FORMAT = "runlore.snapshot-root/1"
TAIL_BYTES = 256 * 1024
"""The first read of a root pack: holds the index and root of a small change, often the whole pack."""
ROOT_BYTES_MAX = 16 * 1024 * 1024
INDEXES_MAX = 64
"""Indexes that a reader follows from one root; writers keep them far below (`building.INDEXES_MAX`)."""
GAP_BYTES_MAX = 256 * 1024
"""Unneeded bytes between two frames that are read rather than asked around."""
RANGE_BYTES_MAX = 4 * 1024 * 1024
"""One ranged read, in bytes."""
FRAMES_KEPT_BYTES = 32 * 1024 * 1024
"""Inflated frames that a reader keeps."""
FRAMES_AHEAD = 8
"""Frames that one read of a sequence fetches."""
TREES_AHEAD = 2048
"""Directories of one level that are read and decoded together."""
REQUESTS_MAX = 8
"""Ranged reads at the same time."""

T = TypeVar("T")


@dataclass(frozen=True)
class IndexRef:
    """Where an index lies: the pack that holds it, and which bytes of it."""

    pack: str
    at: int
    bytes: int


@dataclass(frozen=True)
class Root:
    """The end of a root pack: the snapshot's record and where its indexes lie."""

    record: bytes
    indexes: tuple[IndexRef, ...]
    base: str | None
    saved_at: str

    def encode(self) -> bytes:
        return names.canonical(
            {"format": ROOT_FORMAT, "record": self.record.decode("ascii"),
             "indexes": [[ref.pack, ref.at, ref.bytes] for ref in self.indexes],
             "base": self.base, "saved_at": self.saved_at}
        )  # fmt: skip


def decode_root(raw: bytes) -> Root:
    """Raises `errors.Corrupt`."""
    body = packs.loads(raw)
    try:
        if body["format"] != ROOT_FORMAT:
            raise errors.Fatal(
                f"a root has the format {body['format']!r}; this Runlore reads {ROOT_FORMAT!r}"
            )
        refs = tuple(IndexRef(names.check_pack(p), at, size) for p, at, size in body["indexes"])
        # As much as the largest index takes as it is stored, where nothing of it can be made smaller.
        most = packs.INDEX_BYTES_MAX
        whole = all(type(n) is int and n >= 0 for ref in refs for n in (ref.at, ref.bytes))
        if len(refs) > INDEXES_MAX or not whole or any(ref.at >= 2**63 or ref.bytes > most for ref in refs):
            raise errors.Corrupt("a root names indexes that can not be")
        return Root(body["record"].encode("ascii"), refs, body["base"], body["saved_at"])
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise errors.Corrupt(f"a root can not be read: {exc}") from None


@dataclass
class Loaded:
    """One index that a root names: where it lies and what it says."""

    ref: IndexRef
    table: packs.Table


@dataclass
class Opened:
    """A snapshot that was found: its record, its indexes, and the way to its blobs."""

    store: port.ObjectStore
    project: str
    ref: names.Ref
    root: Root
    record: trees.Record
    tables: list[Loaded]
    index: packs.Index
    _kept: OrderedDict[int, bytes] = field(default_factory=OrderedDict)
    _kept_bytes: int = 0

    def key(self, pack: str) -> str:
        return keys.snapshot_pack(self.project, pack)

    def packs(self) -> set[str]:
        """The key of every pack that this snapshot names: what a sweep must keep for it."""
        found = {name for loaded in self.tables for name in loaded.table.packs if name != packs.SELF}
        return {
            self.key(name) for name in found | {self.ref.pack} | {loaded.ref.pack for loaded in self.tables}
        }

    # --- blobs ------------------------------------------------------------------------------------------

    async def blob(self, blob: bytes) -> bytes:
        """One blob, verified. Raises `errors.Corrupt`."""
        return (await self.blobs([blob]))[blob]

    async def blobs(self, wanted: Collection[bytes]) -> dict[bytes, bytes]:
        """Some blobs, verified; frames read for them are kept for the next call. Raises `errors.Corrupt`."""
        by_frame: dict[int, list[bytes]] = {}
        for blob in wanted:
            by_frame.setdefault(self.index.locate(blob)[0], []).append(blob)
        found: dict[bytes, bytes] = {}
        absent = []
        for frame, ids in by_frame.items():
            content = self._kept.get(frame)
            if content is None:
                absent.append(frame)
            else:
                self._kept.move_to_end(frame)
                found.update((blob, cut(self.index, blob, content)) for blob in ids)
        async for frame, content in self.frames(absent):
            found.update((blob, cut(self.index, blob, content)) for blob in by_frame[frame])
            self._keep(frame, content)
        return found

    async def blob_ahead(self, blob: bytes) -> bytes:
        """One blob, verified, of a sequence of reads: the frames behind its own are fetched with it."""
        frame = self.index.locate(blob)[0]
        content = self._kept.get(frame)
        if content is None:
            wanted = [one for one in _following(self.index, frame) if one not in self._kept]
            async for found, inflated in self.frames(wanted):
                self._keep(found, inflated)
                # Held here: the frames behind it may be large enough to push it out again.
                content = inflated if found == frame else content
            assert content is not None
        return cut(self.index, blob, content)

    def forget(self) -> None:
        """Let go of the frames that were kept: whoever read the trees needs them no more."""
        self._kept.clear()
        self._kept_bytes = 0

    def release(self) -> None:
        """Let go of the indexes too: nothing more is read through this."""
        self.forget()
        self.tables, self.index = [], packs.Index()

    def _keep(self, frame: int, content: bytes) -> None:
        self._kept_bytes += len(content) - len(self._kept.pop(frame, b""))
        self._kept[frame] = content
        while self._kept_bytes > FRAMES_KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])

    async def frames(self, wanted: Iterable[int]) -> AsyncIterator[tuple[int, bytes]]:
        """The content of some frames (not verified: only ids are), in the order in which they lie."""
        ranges = plan(self.index, wanted)
        for at in range(0, len(ranges), REQUESTS_MAX):
            batch = ranges[at : at + REQUESTS_MAX]
            for one, raw in zip(batch, await together([self.fetch(one) for one in batch]), strict=True):
                for frame in one.frames:
                    yield frame, one.content(self.index, raw, frame)

    async def fetch(self, one: Range) -> bytes:
        """The bytes of a range. Raises `errors.Corrupt` where they are not there."""
        raw = await self.store.get_range(self.key(one.pack), one.start, one.length)
        if raw is None or len(raw) != one.length:
            state = "missing" if raw is None else "cut off"
            raise errors.Corrupt(
                f"pack {one.pack[-64:][:12]} of snapshot {self.ref.id[:12]} is {state}",
                hint="run `runlore snapshot verify`; restore another snapshot of this rollout meanwhile",
            )
        return raw

    # --- trees ------------------------------------------------------------------------------------------

    def whole(self) -> trees.Record:
        """The record, if the snapshot is a tree. Raises `errors.NativeSnapshot`."""
        if self.record.kind != trees.TREE:
            raise errors.NativeSnapshot(
                f"snapshot {self.ref.id[:12]} is a reference of {self.record.provider}: it has no files of its own",
                hint="export it and give it to that provider's sandbox",
            )
        return self.record

    async def tree(self, tree: bytes) -> trees.Tree:
        return trees.decode(await self.blob(tree))

    async def walk(self, tree: bytes | None = None) -> AsyncIterator[tuple[bytes, trees.Tree]]:
        """Every directory with its path, a level at a time; a level's trees are read together."""
        level = [(b"", tree if tree is not None else self.whole().tree)]
        for _ in range(trees.DEPTH_MAX + 1):  # The root itself is above the first of them.
            following = []
            for start in range(0, len(level), TREES_AHEAD):
                piece = level[start : start + TREES_AHEAD]
                raws = await self.blobs({below for _, below in piece})
                # Many directories may be one tree (an empty one, say): it is decoded once.
                decoded = await off_loop(_decode_all, raws)
                del raws
                for path, below in piece:
                    found = decoded[below]
                    yield path, found
                    prefix = path + b"/" if path else b""
                    following += [(prefix + d.name, d.tree) for d in found.dirs.values()]
            if not following:
                return
            level = following
        raise errors.Corrupt(f"a tree is deeper than {trees.DEPTH_MAX} directories")

    async def lookup(self, path: bytes) -> trees.Entry | None:
        """The entry at `path` (None for the root itself). Raises `errors.PathNotFound`."""
        entry: trees.Entry | None = None
        tree = await self.tree(self.whole().tree)
        parts = [part for part in path.split(b"/") if part not in (b"", b".")]
        for number, part in enumerate(parts):
            entry = tree.get(part)
            last = number == len(parts) - 1
            if entry is None or (not last and not isinstance(entry, trees.Dir)):
                raise errors.PathNotFound(f"snapshot {self.ref.id[:12]} has no {names.to_text(path)!r}")
            if isinstance(entry, trees.Dir) and not last:
                tree = await self.tree(entry.tree)
        return entry

    async def report(self) -> dict[str, Any]:
        """What the save could not keep as it was."""
        if self.record.report is None:
            return trees.Report().as_dict()
        return trees.decode_report(await self.blob(self.record.report))

    async def content(
        self, file: trees.File, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """The bytes of a file from `offset` on, a few chunks at a time; holes as zeros."""
        end = file.size if length is None else min(file.size, offset + length)
        for start, chunk, size in spans(file, self.index):
            if chunk is None or start >= end or start + size <= offset:
                if chunk is None:
                    for zeros in _zeros(min(end, start + size) - max(offset, start)):
                        yield zeros
                continue
            body = await self.blob_ahead(chunk)
            yield body[max(0, offset - start) : end - start]


def _decode_all(raws: Mapping[bytes, bytes]) -> dict[bytes, trees.Tree]:
    return {tree: trees.decode(raw) for tree, raw in raws.items()}


def _zeros(count: int) -> Iterable[bytes]:
    while count > 0:
        yield bytes(min(count, 1024 * 1024))
        count -= 1024 * 1024


def spans(file: trees.File, index: packs.Index) -> Iterable[tuple[int, bytes | None, int]]:
    """A file as (offset, chunk or None for a hole, length), in order. Raises `errors.Corrupt` on a misfit."""
    at, chunk = 0, iter(file.chunks)
    extents = file.pieces()
    for offset, length in zip(extents[::2], extents[1::2], strict=True):
        if offset > at:
            yield at, None, offset - at
        at, end = offset, offset + length
        while at < end:
            blob = next(chunk, None)
            size = index.length(blob) if blob is not None else 0
            if blob is None or size == 0 or at + size > end:
                raise errors.Corrupt(
                    f"the chunks of {names.to_text(file.name)!r} are not as long as the file"
                )
            yield at, blob, size
            at += size
    if next(chunk, None) is not None:
        raise errors.Corrupt(f"{names.to_text(file.name)!r} has more chunks than bytes")
    if at < file.size:
        yield at, None, file.size - at


def cut(index: packs.Index, blob: bytes, content: bytes) -> bytes:
    """A blob out of its frame, verified. Raises `errors.Corrupt`."""
    _, offset, length = index.locate(blob)
    found = content[offset : offset + length]
    if names.blob_id(found) != blob:
        raise errors.Corrupt(
            f"blob {blob.hex()[:12]} has other bytes than its id says",
            hint="run `runlore snapshot verify`; restore another snapshot of this rollout meanwhile",
        )
    return found


# --- ranges -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """One ranged read: some frames of one pack that lie close together."""

    pack: str
    start: int
    length: int
    frames: tuple[int, ...]

    def content(self, index: packs.Index, raw: bytes, frame: int) -> bytes:
        """A frame out of the range's bytes. Raises `errors.Corrupt`."""
        size = index.frame_raw[frame]
        if size > packs.FRAME_BYTES_MAX:
            raise errors.Corrupt(f"a frame of {size} bytes is not accepted")
        at = index.frame_offset[frame] - self.start
        return packs.inflate(raw[at : at + index.frame_stored[frame]], size)


def plan(index: packs.Index, wanted: Iterable[int]) -> list[Range]:
    """The reads that fetch the frames `wanted`, in the order in which they lie."""
    offsets, stored, pack_of = index.frame_offset, index.frame_stored, index.frame_pack
    ranges: list[Range] = []
    group: list[int] = []

    def close() -> None:
        start = offsets[group[0]]
        end = max(offsets[frame] + stored[frame] for frame in group)
        ranges.append(Range(index.packs[pack_of[group[0]]], start, end - start, tuple(group)))
        group.clear()

    for frame in sorted(set(wanted), key=lambda frame: (pack_of[frame], offsets[frame])):
        if group:
            last = group[-1]
            gap = offsets[frame] - (offsets[last] + stored[last])
            length = offsets[frame] + stored[frame] - offsets[group[0]]
            if pack_of[frame] != pack_of[last] or gap > GAP_BYTES_MAX or length > RANGE_BYTES_MAX:
                close()
        group.append(frame)
    if group:
        close()
    return ranges


def _following(index: packs.Index, frame: int) -> list[int]:
    """`frame` and those behind it in its pack."""
    pack, last = index.frame_pack[frame], min(frame + FRAMES_AHEAD, len(index.frame_pack))
    return [one for one in range(frame, last) if index.frame_pack[one] == pack]


# --- opening ----------------------------------------------------------------------------------------------


async def open_snapshot(store: port.ObjectStore, project: str, snapshot: names.Ref | str) -> Opened:
    """The snapshot `snapshot`: a `Ref`, its text, or the bare id. Raises `errors.SnapshotNotFound`, `Corrupt`.

    A bare id costs one LIST of its root packs; a `Ref` costs none, and falls back to it where that root is gone
    (it was packed anew).
    """
    if isinstance(snapshot, str) and "/" in snapshot:
        snapshot = names.Ref.parse(snapshot)
    if isinstance(snapshot, names.Ref):
        opened, was = await together(
            [_open_root(store, project, snapshot), _is_erased(store, project, snapshot)]
        )
        if opened is not None and not was:
            return opened
        snapshot = snapshot.id
    if not names.is_id(snapshot):
        raise errors.InvalidId(f"{snapshot!r} names no snapshot", hint="a snapshot's id is 64 hex digits")
    failure: errors.RunloreError | None = None
    for root in await store.children(keys.snapshot_roots(project, snapshot)):
        if not names.is_id(root):
            continue
        try:
            opened = await _open_root(store, project, names.Ref(snapshot, root))
        except errors.Corrupt as exc:
            failure = exc  # Another writer's root of the same snapshot may be whole.
            continue
        if opened is not None and await _is_erased(store, project, opened.ref):
            failure = errors.Erased(f"snapshot {snapshot[:12]} of project {project} was erased")
        elif opened is not None:
            return opened
    if failure is not None:
        raise failure
    raise errors.SnapshotNotFound(
        f"there is no snapshot {snapshot[:12]} in project {project}",
        hint="`runlore snapshot ls` shows what there is",
    )


async def _is_erased(store: port.ObjectStore, project: str, ref: names.Ref) -> bool:
    """Whether nobody may read this root any more, though other writers may build on its packs until its term ends."""
    return await store.get(keys.erased_snapshot(project, ref.id, ref.root)) is not None


async def open_exact(store: port.ObjectStore, project: str, ref: names.Ref) -> Opened:
    """The snapshot by exactly this root pack: what a writer builds on. Raises `errors.SnapshotNotFound`."""
    opened = await _open_root(store, project, ref)
    if opened is None:
        raise errors.SnapshotNotFound(
            f"snapshot {ref.id[:12]} has no root pack {ref.root[:12]}",
            hint="read the head again: it has moved",
        )
    return opened


async def _open_root(store: port.ObjectStore, project: str, ref: names.Ref) -> Opened | None:
    key = keys.snapshot_pack(project, ref.pack)
    tail = await store.get_tail(key, TAIL_BYTES)
    if tail is None:
        return None
    end = packs.parse_end(tail)
    if end.root is None:
        if end.needed > packs.INDEX_BYTES_MAX + ROOT_BYTES_MAX:
            raise errors.Corrupt(f"the root pack of snapshot {ref.id[:12]} has an end of {end.needed} bytes")
        tail = await store.get_tail(key, end.needed)
        end = packs.parse_end(tail or b"")
    if not end.root or not end.index:
        raise errors.Corrupt(f"the root pack of snapshot {ref.id[:12]} holds no root")
    root = decode_root(end.root)
    record = trees.decode_record(root.record, ref.id)
    opened = Opened(store, project, ref, root, record, [], packs.Index())
    for one, stored in zip(root.indexes, await _indexes(opened), strict=True):
        opened.tables.append(Loaded(one, packs.decode_table(stored)))
    # The newest last: where two name one blob, the newer pack is likelier to be whole.
    table = packs.decode_table(end.index)
    opened.tables.append(Loaded(IndexRef(ref.pack, table.own_end(), len(end.index)), table))
    for loaded in opened.tables:
        opened.index.add(loaded.table, loaded.ref.pack)
    return opened


async def _indexes(opened: Opened) -> list[bytes]:
    ranges = [Range(ref.pack, ref.at, ref.bytes, ()) for ref in opened.root.indexes]
    return await together([opened.fetch(one) for one in ranges])


async def off_loop(work: Callable[..., T], *args: Any) -> T:
    """`work` in a thread, or here where a simulation drives us and no loop could be held up."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work(*args)
    return await asyncio.to_thread(work, *args)


async def together(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of `calls`, at the same time on a loop, one after the other where a simulation drives us."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return await _in_turn(calls)
    return list(await asyncio.gather(*calls))


async def _in_turn(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    try:
        return [await call for call in calls]
    finally:
        for call in calls:
            call.close()  # Those behind one that failed; nothing happens to the others.
