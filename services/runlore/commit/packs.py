"""Packs: the small immutable pieces of a revision, many to an object.

A revision of a memory changes a few files and a few pages of its maps. Each piece is a *frame*, named by the
SHA-256 of its content; the new frames of a revision go into one *pack*, so that a revision costs three writes
(pack, manifest, head) however many rollouts it took in. A manifest names the packs that hold its frames.
Where a frame lies is no part of any id: it is in the pack's own index, so repacking changes no reference.

    pack   = "RLPACK1\\n" frame* index index-length
    frame  = zlib(content)
    index  = zlib(JSON {sha256 of content: [offset, stored bytes]})
    index-length = 4 bytes, big-endian
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from runlore import errors
from runlore.events import envelope

MAGIC = b"RLPACK1\n"
PACKS_MAX = 12
"""Packs that one manifest names at most: a bound on the reads of a seed."""
DEAD_BYTES_SLACK = 64 * 1024
"""Dead bytes that a manifest's packs may hold beyond their live bytes before they are repacked."""
INDEX_BYTES_MAX = 64 * 1024 * 1024
"""Largest index of a pack, inflated, in bytes: some 700,000 frames."""
FRAME_BYTES_MAX = 256 * 1024 * 1024
"""Largest content of one frame, in bytes: a bound against a forged pack that inflates without end."""


def name(content: bytes) -> str:
    """The name of a frame, and of any content-named object."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Pack:
    """One pack in memory: its name, its bytes and where each frame lies in them."""

    sha256: str
    raw: bytes
    index: Mapping[str, tuple[int, int]]

    def stored(self, frame: str) -> bytes:
        """The frame as stored (compressed)."""
        offset, length = self.index[frame]
        return self.raw[offset : offset + length]

    def content(self, frame: str) -> bytes:
        """The frame's content, verified. Raises `errors.Corrupt`."""
        try:
            inflate = zlib.decompressobj()
            content = inflate.decompress(self.stored(frame), FRAME_BYTES_MAX)
        except zlib.error:
            content = b""
        if name(content) != frame:
            raise errors.Corrupt(
                f"frame {frame[:12]} of pack {self.sha256[:12]} has other bytes than its name says"
            )
        return content


def encode(stored: Mapping[str, bytes], *, salt: str = "") -> Pack:
    """A pack of these stored (compressed) frames, in order of their names, so that equal frames make equal packs.

    But for `salt`: a writer gives its time, so that no name is used twice. Else a sweep that listed what a dead
    writer left could delete it just after somebody wrote the same bytes under the same name, and named them.
    """
    parts, index, offset = [MAGIC], {}, len(MAGIC)
    for frame in sorted(stored):
        parts.append(stored[frame])
        index[frame] = (offset, len(stored[frame]))
        offset += len(stored[frame])
    if salt:
        index[f"salt {salt}"] = (0, 0)
    tail = zlib.compress(envelope.dump(index))
    raw = b"".join([*parts, tail, struct.pack(">I", len(tail))])
    return Pack(name(raw), raw, index)


def compress(content: bytes) -> bytes:
    return zlib.compress(content, 6)


def decode(sha256: str, raw: bytes) -> Pack:
    """The pack in `raw`, verified against its name. Raises `errors.Corrupt`."""
    if name(raw) != sha256 or not raw.startswith(MAGIC):
        raise errors.Corrupt(f"pack {sha256[:12]} has other bytes than its name says")
    try:
        (length,) = struct.unpack(">I", raw[-4:])
        inflate = zlib.decompressobj()
        tail = inflate.decompress(raw[-4 - length : -4], INDEX_BYTES_MAX)
        if not inflate.eof:
            raise ValueError
        index = {frame: (int(at), int(size)) for frame, (at, size) in envelope.kept(tail).items()}
        if any(at < 0 or size < 0 or at + size > len(raw) for at, size in index.values()):
            raise ValueError
    except (zlib.error, struct.error, ValueError, TypeError, AttributeError, OverflowError):
        raise errors.Corrupt(f"the index of pack {sha256[:12]} can not be read") from None
    return Pack(sha256, raw, index)


class Frames:
    """The frames of some packs, by name."""

    def __init__(self, packs: Iterable[Pack] = ()) -> None:
        self.packs = list(packs)
        self._where = {frame: pack for pack in self.packs for frame in pack.index}

    def __contains__(self, frame: str) -> bool:
        return frame in self._where

    def content(self, frame: str) -> bytes:
        """Raises `errors.Corrupt` where no pack has it: a manifest must name only what exists."""
        pack = self._where.get(frame)
        if pack is None:
            raise errors.Corrupt(f"frame {frame[:12]} is in none of the manifest's packs")
        return pack.content(frame)


def repack(
    frames: Frames, live: set[str], new: Mapping[str, bytes], *, salt: str = ""
) -> tuple[list[Pack], Pack | None]:
    """The packs that a manifest should name for the frames `live`, of which `new` (contents) are not stored yet.

    Returns (the packs to name, the one of them that must be written; None where nothing is new). Packs
    without a live frame are left out. While there would be more than `PACKS_MAX`, or more dead bytes than
    live ones, the pack with the fewest live bytes moves into the new one: like the levels of an LSM tree,
    so each byte is moved a few times, not once per revision.
    """
    stored = {frame: compress(content) for frame, content in new.items() if frame not in frames}
    owned: dict[str, set[str]] = {pack.sha256: set() for pack in frames.packs}
    for frame in live - stored.keys():
        pack = frames._where.get(frame)
        if pack is None:
            raise errors.Corrupt(f"frame {frame[:12]} is neither new nor in the parent's packs")
        owned[pack.sha256].add(frame)
    kept = [pack for pack in frames.packs if owned[pack.sha256]]
    live_bytes = {pack.sha256: sum(pack.index[f][1] for f in owned[pack.sha256]) for pack in kept}
    kept.sort(key=lambda pack: (live_bytes[pack.sha256], pack.sha256), reverse=True)
    while kept and (
        len(kept) >= PACKS_MAX or _dead(kept, live_bytes) > sum(live_bytes.values()) + DEAD_BYTES_SLACK
    ):
        # Fold a few at a time: folding one per revision would rewrite the newest pack each time.
        for pack in kept[max(1, len(kept) // 2) :] or [kept[0]]:
            kept.remove(pack)
            stored |= {frame: pack.stored(frame) for frame in owned[pack.sha256]}
    written = encode(stored, salt=salt) if stored else None
    return ([*kept, written] if written else kept), written


def _dead(kept: list[Pack], live_bytes: Mapping[str, int]) -> int:
    return sum(len(pack.raw) - live_bytes[pack.sha256] for pack in kept)
