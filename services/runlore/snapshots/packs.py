"""Frames, packs and indexes: how blobs lie in objects. Pure.

    pack    = "RLSNPK1\\n" frame* index root? trailer
    trailer = index bytes, root bytes (4 bytes each, big-endian; 0: none) "RLSNPK1\\n"
    frame   = one zstd frame of whole blobs, joined
    index   = one zstd frame: which blobs lie in which frames of which packs

A pack is named by the BLAKE3 of its bytes and carries the index of its own frames, so the indexes can be
made again from the packs. A *root pack* ends with the root of a snapshot, and its index also covers the other
packs that the same save wrote. An index may lie: every blob is checked against its id when it is read, so a
lie costs an error, never wrong bytes (docs/FORMAT.md, "Threat model").
"""

from __future__ import annotations

import json
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator, MutableSequence, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import zstandard

from runlore import errors
from runlore.snapshots import names

MAGIC = b"RLSNPK1\n"
TRAILER = struct.Struct(">II8s")
FRAME_BYTES = 1024 * 1024
"""A frame is closed once it holds this many bytes of blobs."""
FRAME_BYTES_MAX = 80 * 1024 * 1024
"""The most that a reader inflates from one frame, in bytes: a bound against a forged one."""
BLOB_BYTES_MAX = 64 * 1024 * 1024
"""The largest blob, in bytes; only the tree of a directory with some 500,000 entries comes near it."""
PACK_BYTES = 16 * 1024 * 1024
"""A pack is closed once it holds this many bytes of frames."""
INDEX_BYTES_MAX = 512 * 1024 * 1024
"""The most that a reader inflates from one index, in bytes."""
LEVEL_BULK, LEVEL_SMALL = 1, 3
"""Compression levels of zstd: for large saves, where time is what one waits for, and for small ones."""
SELF = ""
"""How an index names the pack that it lies in, whose name is not known yet."""


def compress(parts: Sequence[bytes | memoryview], level: int) -> bytes:
    """One frame."""
    stored = zstandard.ZstdCompressor(level=level, write_content_size=True).compress(b"".join(parts))
    return bytes(memoryview(stored))  # What the library returns keeps the memory of the worst case.


def inflate(stored: bytes, size: int) -> bytes:
    """The content of a frame that should hold `size` bytes. Raises `errors.Corrupt`; never inflates more."""
    try:
        # The size in the frame's own header decides how much memory is taken, so it is checked first.
        if zstandard.frame_content_size(stored) != size:
            raise errors.Corrupt("a frame holds another number of bytes than its index says")
        return zstandard.ZstdDecompressor().decompress(stored, max_output_size=max(1, size))
    except zstandard.ZstdError as exc:
        raise errors.Corrupt(f"a frame can not be inflated: {exc}") from None


@dataclass(frozen=True)
class Frame:
    """One frame in memory: its stored bytes and the blobs in it, in order."""

    stored: bytes
    ids: Sequence[bytes]
    lengths: Sequence[int]


@dataclass
class Table:
    """What an index says, as it is collected: packs, frames of packs, blobs of frames."""

    packs: list[str] = field(default_factory=list)
    frames: list[tuple[int, int, int, int]] = field(default_factory=list)
    """(pack number, offset, stored bytes, number of blobs) each."""
    ids: list[bytes] = field(default_factory=list)
    lengths: MutableSequence[int] = field(default_factory=lambda: array("I"))

    def add_pack(self, name: str, frames: Iterable[tuple[int, int, Sequence[bytes], Sequence[int]]]) -> None:
        """Add a pack and its frames: (offset, stored bytes, ids, lengths) each."""
        number = len(self.packs)
        self.packs.append(name)
        for offset, stored, ids, lengths in frames:
            self.frames.append((number, offset, stored, len(ids)))
            self.ids += ids
            self.lengths.extend(lengths)

    def own_end(self) -> int:
        """Where the frames of the pack that this table lies in end, and so where the table itself begins."""
        own = [offset + stored for pack, offset, stored, _ in self.frames if self.packs[pack] == SELF]
        return max(own, default=len(MAGIC))

    def encode(self, *, made: str = "") -> bytes:
        """The index's bytes. `made` is a text used once: no writer ever makes a pack of a name that was used before.

        Else a sweep that listed what a dead writer left could delete it just after somebody wrote the same bytes
        under the same name, and named them.
        """
        fields = {"packs": self.packs, "frames": [number for frame in self.frames for number in frame]}
        header = names.canonical({**fields, "made": made} if made else fields)
        count = len(self.ids)
        body = [
            struct.pack(">II", len(header), count),
            header,
            *self.ids,
            struct.pack(f">{count}I", *self.lengths),
        ]
        return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(b"".join(body))


def decode_table(stored: bytes) -> Table:
    """The index in `stored`. Raises `errors.Corrupt`: it may have been written by anybody."""
    try:
        size = zstandard.frame_content_size(stored)
        if not 8 <= size <= INDEX_BYTES_MAX:
            raise errors.Corrupt(f"an index of {size} bytes is not accepted")
        raw = zstandard.ZstdDecompressor().decompress(stored, max_output_size=size)
        header_bytes, count = struct.unpack_from(">II", raw)
        at = 8 + header_bytes
        if len(raw) != at + count * (names.ID_BYTES + 4):
            raise errors.Corrupt("an index is cut off")
        header = loads(raw[8:at])
        end = at + count * names.ID_BYTES
        ids = [raw[i : i + names.ID_BYTES] for i in range(at, end, names.ID_BYTES)]
        lengths = array("I", raw[end:])  # 4 bytes each, where a list takes 36.
        if sys.byteorder == "little":
            lengths.byteswap()
        numbers = header["frames"]
        frames = list(zip(numbers[0::4], numbers[1::4], numbers[2::4], numbers[3::4], strict=True))
        packs = [name if name == SELF else names.check_pack(name) for name in header["packs"]]
        _check_table(packs, frames, count)
    except (zstandard.ZstdError, struct.error, ValueError, KeyError, TypeError) as exc:
        raise errors.Corrupt(f"an index can not be read: {exc}") from None
    return Table(packs, frames, ids, lengths)


def _check_table(packs: list[str], frames: list[tuple[int, int, int, int]], count: int) -> None:
    whole = all(type(number) is int and 0 <= number < 2**63 for frame in frames for number in frame)
    if not whole or any(frame[0] >= len(packs) for frame in frames) or sum(f[3] for f in frames) != count:
        raise errors.Corrupt("an index contradicts itself")


class Index:
    """Where blobs lie, in memory: 50 bytes a blob and one dict. Grows only; later tables win."""

    def __init__(self) -> None:
        self.packs: list[str] = []
        self.frame_pack = array("I")
        self.frame_offset = array("Q")
        self.frame_stored = array("Q")
        self.frame_raw = array("Q")
        self._where: dict[bytes, int] = {}
        self._frame = array("I")
        self._offset = array("Q")
        self._length = array("I")

    def __contains__(self, blob: bytes) -> bool:
        return blob in self._where

    def __len__(self) -> int:
        return len(self._where)

    @property
    def ids(self) -> Iterable[bytes]:
        return self._where.keys()

    def missing(self, blobs: set[bytes]) -> set[bytes]:
        return blobs - self._where.keys()

    def add(self, table: Table, self_name: str) -> None:
        """Take in a table that was read from the pack `self_name`."""
        first_pack, at = len(self.packs), 0
        self.packs += [self_name if name == SELF else name for name in table.packs]
        first_blob = len(self._frame)
        for pack, offset, stored, count in table.frames:
            lengths = table.lengths[at : at + count]
            number = len(self.frame_pack)
            self.frame_pack.append(first_pack + pack)
            self.frame_offset.append(offset)
            self.frame_stored.append(stored)
            self.frame_raw.append(sum(lengths))
            self._frame.extend([number] * count)
            self._offset.extend(accumulate(lengths[:-1], initial=0) if count else ())
            self._length.extend(lengths)
            at += count
        self._where.update(zip(table.ids, range(first_blob, first_blob + at), strict=True))

    def locate(self, blob: bytes) -> tuple[int, int, int]:
        """(frame number, offset in the frame's content, length). Raises `errors.Corrupt` where it is in none."""
        at = self._where.get(blob)
        if at is None:
            raise errors.Corrupt(
                f"blob {blob.hex()[:12]} is in none of the snapshot's packs",
                hint="run `runlore snapshot verify`; restore another snapshot of this rollout meanwhile",
            )
        return self._frame[at], self._offset[at], self._length[at]

    def length(self, blob: bytes) -> int:
        return self.locate(blob)[2]


# --- packs ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pack:
    """A pack to be written: its name as indexes write it, its bytes, and how many blobs are new in it."""

    name: str
    raw: bytes


@dataclass
class Draft:
    """A pack as it grows."""

    frames: list[Frame] = field(default_factory=list)
    size: int = len(MAGIC)

    def add(self, frame: Frame) -> None:
        self.frames.append(frame)
        self.size += len(frame.stored)

    def rows(self) -> Iterator[tuple[int, int, Sequence[bytes], Sequence[int]]]:
        at = len(MAGIC)
        for frame in self.frames:
            yield at, len(frame.stored), frame.ids, frame.lengths
            at += len(frame.stored)

    def close(self, index: bytes, root: bytes = b"") -> bytes:
        """The pack's bytes."""
        trailer = TRAILER.pack(len(index), len(root), MAGIC)
        return b"".join([MAGIC, *(frame.stored for frame in self.frames), index, root, trailer])


@dataclass(frozen=True)
class End:
    """The end of a pack as read: its index and root as stored (None where `tail` was too short for them)."""

    index: bytes | None
    root: bytes | None
    needed: int
    """How long a tail holds both, in bytes."""


def parse_end(tail: bytes) -> End:
    """What the last bytes of a pack say. Raises `errors.Corrupt`."""
    if len(tail) < TRAILER.size:
        raise errors.Corrupt("a pack is cut off")
    index_bytes, root_bytes, magic = TRAILER.unpack(tail[-TRAILER.size :])
    if magic != MAGIC:
        raise errors.Corrupt("a pack does not end as one")
    needed = TRAILER.size + root_bytes + index_bytes
    if len(tail) < needed:
        return End(None, None, needed)
    end = len(tail) - TRAILER.size
    return End(tail[end - root_bytes - index_bytes : end - root_bytes], tail[end - root_bytes : end], needed)


def loads(raw: bytes) -> Any:
    """JSON from the store. Raises `errors.Corrupt`."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise errors.Corrupt("a part of the snapshot is not JSON") from None
