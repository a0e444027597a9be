"""From blobs to packs: deduplicated against the bases, joined into frames, frames into packs, the root last.

`Builder` is sync and may be fed by several threads; it never touches a store. Full packs go to a `sink`, which
may block: that is how a slow store slows the readers down instead of filling memory.

Invariant 7: what is not written anew is named in an index of a base that the caller gave, and before the root
is closed *every* blob of the snapshot is looked up in what the root will name. A base whose index was cut
down elsewhere therefore costs bytes, never a hole.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from runlore import clock, errors
from runlore.snapshots import names, packs, reading, trees

INDEXES_MAX = 12
"""Indexes that a root names: a bound on the reads of an open. At this many the smaller half is joined."""
SMALL_PACK_BYTES = 1024 * 1024
"""A pack with fewer live bytes than this is copied when its index is joined; a larger one stays where it is."""
COPY_BYTES_MAX = 32 * 1024 * 1024
"""Stored bytes that one save copies out of older packs at most."""

Sink = Callable[[packs.Pack], None]
Row = tuple[int, int, Sequence[bytes], Sequence[int]]
"""A frame as a table takes it: offset, stored bytes, ids, lengths."""


@dataclass(frozen=True)
class Built:
    """A snapshot ready to be put: its root pack goes last, and makes it exist."""

    ref: names.Ref
    record: trees.Record
    root_pack: packs.Pack
    packs_written: int
    bytes_written: int


class Batch:
    """Blobs of one thread on their way into a frame."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._parts: list[bytes | memoryview] = []
        self._ids: list[bytes] = []
        self._lengths: list[int] = []
        self._size = 0

    def add(self, content: bytes | memoryview) -> bytes:
        """Keep `content` if nobody has it yet; its id."""
        blob = names.blob_id(content)
        if self._builder.claim(blob):
            self.take(blob, content)
        return blob

    def take(self, blob: bytes, content: bytes | memoryview) -> None:
        """Keep `content`, which is claimed. A view into a read buffer is held until the frame is full."""
        self._parts.append(content)
        self._ids.append(blob)
        self._lengths.append(len(content))
        self._size += len(content)
        if self._size >= packs.FRAME_BYTES:
            self.flush()

    def flush(self) -> None:
        """Close the frame."""
        if self._ids:
            stored = packs.compress(self._parts, self._builder.level)
            self._builder.add_frame(packs.Frame(stored, self._ids, self._lengths))
            self._parts, self._ids, self._lengths, self._size = [], [], [], 0


class Builder:
    """Collects the new blobs of one snapshot. `bases` are what it may refer to."""

    def __init__(
        self, sink: Sink, *, bases: Sequence[reading.Opened] = (), level: int = packs.LEVEL_BULK
    ) -> None:
        self.level = level
        self.bases = list(bases)
        self._sink = sink
        self._lock = threading.Lock()
        self._claimed: set[bytes] = set()
        self._draft = packs.Draft()
        self._table = packs.Table()
        self._packs = 0
        self._bytes = 0
        self._indexes = [base.index for base in bases]
        self._trees = Batch(self)
        self._kept: list[reading.Loaded] = []
        self._joined: list[reading.Loaded] = []

    # --- blobs ------------------------------------------------------------------------------------------

    def has(self, blob: bytes) -> bool:
        """Whether the snapshot may name `blob` as things stand."""
        return blob in self._claimed or any(blob in index for index in self._indexes)

    def absent(self, blobs: set[bytes]) -> set[bytes]:
        """Those of `blobs` that it may not name as things stand."""
        for index in self._indexes:
            blobs = index.missing(blobs)
        return blobs - self._claimed

    def claim(self, blob: bytes) -> bool:
        """Whether the caller is the one to store `blob`."""
        if self.has(blob):
            return False
        with self._lock:
            if blob in self._claimed:
                return False
            self._claimed.add(blob)
            return True

    def batch(self) -> Batch:
        """A way in for one thread; `flush` it at the end."""
        return Batch(self)

    def add_tree(self, raw: bytes) -> None:
        """Keep a tree or a report. For one thread; trees lie together, because they are read together."""
        self._trees.add(raw)

    def add_frame(self, frame: packs.Frame) -> None:
        with self._lock:
            if self._draft.frames and self._draft.size + len(frame.stored) > packs.PACK_BYTES:
                full, self._draft = self._draft, packs.Draft()
            else:
                full = None
            self._draft.add(frame)
        if full is not None:
            self._write(full)

    def _write(self, draft: packs.Draft) -> None:
        own = packs.Table()
        own.add_pack(packs.SELF, draft.rows())
        raw = draft.close(own.encode(made=clock.new_id()))
        pack = packs.Pack(names.digest(raw), raw)
        with self._lock:
            self._table.add_pack(pack.name, draft.rows())
            self._packs += 1
            self._bytes += len(raw)
        draft.frames.clear()
        del own
        self._sink(pack)

    # --- the root -----------------------------------------------------------------------------------------

    def settle(self, needed: set[bytes]) -> set[bytes]:
        """Decide which indexes the root will name. Returns blobs that must be copied out of the bases first.

        Below `INDEXES_MAX` indexes nothing is copied. At it the half with the fewest live bytes is joined into
        the new one, and what lies scattered in small packs moves into the new pack: like the levels of an LSM
        tree, so each byte moves a few times in its life, not once per save.
        """
        self._trees.flush()
        self._kept = self._bases_needed(needed)
        self._joined = []
        if len(self._kept) < INDEXES_MAX:
            return set()
        live = {loaded.ref: _live_bytes(loaded.table, needed) for loaded in self._kept}
        self._kept.sort(key=lambda loaded: live[loaded.ref], reverse=True)
        self._joined = self._kept[INDEXES_MAX // 2 :]
        del self._kept[INDEXES_MAX // 2 :]
        found = self._claimed.union(*(loaded.table.ids for loaded in self._kept))
        copied: set[bytes] = set()
        budget = COPY_BYTES_MAX
        for loaded in self._joined:
            for _, rows in _rows_by_pack(loaded, needed):
                ids = {blob for row in rows for blob in row[2] if blob in needed and blob not in found}
                size = sum(row[1] for row in rows)
                if size < SMALL_PACK_BYTES and size <= budget:
                    budget -= size
                    copied |= ids
        return copied

    def copy(self, contents: Mapping[bytes, bytes]) -> None:
        """Take the blobs that `settle` asked for into the new pack."""
        batch = Batch(self)
        for blob in sorted(contents):
            batch.take(blob, contents[blob])
        batch.flush()
        self._claimed.update(contents)

    def finish(self, record: trees.Record, needed: set[bytes]) -> Built:
        """Close the last pack around `record`, whose blobs are `needed`. Raises `errors.Fatal` if one is nowhere."""
        rest = needed - self._claimed
        for loaded in self._joined:
            for name, rows in _rows_by_pack(loaded, rest):
                self._table.add_pack(name, rows)
        self._table.add_pack(packs.SELF, self._draft.rows())
        self._check_closed(self._kept, needed)
        root = reading.Root(
            record.encode(),
            tuple(loaded.ref for loaded in self._kept),
            str(self.bases[0].ref) if self.bases else None,
            clock.now_iso(),
        )
        raw = self._draft.close(self._table.encode(made=clock.new_id()), root.encode())
        ref = names.Ref(record.id, names.digest(raw))
        return Built(ref, record, packs.Pack(ref.pack, raw), self._packs + 1, self._bytes + len(raw))

    def _bases_needed(self, needed: set[bytes]) -> list[reading.Loaded]:
        """The bases' indexes with a blob that is needed and in no newer one."""
        kept: dict[reading.IndexRef, reading.Loaded] = {}
        open_blobs = needed - self._claimed
        for base in self.bases:
            for loaded in reversed(base.tables):
                if loaded.ref not in kept and not open_blobs.isdisjoint(loaded.table.ids):
                    open_blobs.difference_update(loaded.table.ids)
                    kept[loaded.ref] = loaded
        return list(kept.values())

    def _check_closed(self, kept: list[reading.Loaded], needed: set[bytes]) -> None:
        absent = needed.difference(self._table.ids, *(loaded.table.ids for loaded in kept))
        if absent:
            raise errors.Fatal(f"{len(absent)} blobs of the snapshot are in none of its packs")


def _live_bytes(table: packs.Table, needed: set[bytes]) -> int:
    return sum(length for blob, length in zip(table.ids, table.lengths, strict=True) if blob in needed)


def _rows_by_pack(loaded: reading.Loaded, needed: set[bytes]) -> Iterator[tuple[str, list[Row]]]:
    """The frames of an index that hold a needed blob, by pack, as `Table.add_pack` takes them."""
    table, at = loaded.table, 0
    by_pack: dict[int, list[Row]] = {}
    for pack, offset, stored, count in table.frames:
        ids, lengths = table.ids[at : at + count], table.lengths[at : at + count]
        at += count
        if not needed.isdisjoint(ids):
            by_pack.setdefault(pack, []).append((offset, stored, ids, lengths))
    for pack, rows in by_pack.items():
        name = table.packs[pack]
        yield (loaded.ref.pack if name == packs.SELF else name), rows
