"""Where a file is cut: small files whole, large ones by content, and runs of zeros left out. Pure.

Cuts depend on the bytes alone, never on how a disk laid them out or in which pieces they were read: that is
what makes equal files equal on every machine. The rules are normative (docs/FORMAT.md, "Chunks").
"""

from __future__ import annotations

from collections.abc import Iterator

import pyfastcdc

CHUNKER = "fastcdc-nc1-16k-64k-256k"
"""The name of these rules in a snapshot's record. Other rules would cut elsewhere and find nothing again."""
CHUNK_BYTES_MIN = 16 * 1024
CHUNK_BYTES_AVG = 64 * 1024
CHUNK_BYTES_MAX = 256 * 1024
WHOLE_BYTES_MAX = 64 * 1024
"""A file of at most this size is one chunk."""
BLOCK_BYTES = 64 * 1024
"""Zeros are left out in whole blocks of this size, counted from the file's beginning."""

_ZEROS = bytes(BLOCK_BYTES)


def cutter() -> pyfastcdc.FastCDC:
    """A cutter; one per thread."""
    return pyfastcdc.FastCDC(
        CHUNK_BYTES_AVG, min_size=CHUNK_BYTES_MIN, max_size=CHUNK_BYTES_MAX, normalized_chunking=1, seed=0
    )


class Cutter:
    """Cuts one large file that is fed in order, in pieces whose lengths are multiples of a block (but the last).

    `feed` and `skip` yield chunks; `extents` grows into [offset, length, offset, length …] of the data.
    """

    def __init__(self, cdc: pyfastcdc.FastCDC) -> None:
        self._cdc = cdc
        self._pending = b""
        self._at = 0
        self.extents: list[int] = []

    def feed(self, piece: bytes) -> Iterator[memoryview]:
        """The chunks that `piece` completes. Raises nothing; takes any bytes."""
        for is_zero, run in _runs(piece):
            if is_zero:
                yield from self._end_run()
            else:
                self._extend(len(run))
                yield from self._cut(run, last=False)
            self._at += len(run)

    def skip(self, length: int) -> Iterator[memoryview]:
        """The same as feeding `length` zeros, which must be whole blocks."""
        yield from self._end_run()
        self._at += length

    def finish(self) -> Iterator[memoryview]:
        yield from self._end_run()

    def _extend(self, length: int) -> None:
        extents = self.extents
        if extents and extents[-2] + extents[-1] == self._at:
            extents[-1] += length
        else:
            extents += [self._at, length]

    def _end_run(self) -> Iterator[memoryview]:
        yield from self._cut(memoryview(b""), last=True)

    def _cut(self, run: memoryview, *, last: bool) -> Iterator[memoryview]:
        # Where a chunk ends depends on at most CHUNK_BYTES_MAX bytes from its beginning, so a chunk is final
        # once that many are there, or once the run is over.
        buffer = memoryview(b"".join((self._pending, run)) if self._pending else run)
        done = 0
        if last or len(buffer) >= CHUNK_BYTES_MAX:
            for chunk in self._cdc.cut_buf(buffer) if len(buffer) else ():
                if not last and len(buffer) - chunk.offset < CHUNK_BYTES_MAX:
                    break
                done = chunk.offset + chunk.length
                yield buffer[chunk.offset : done]
        self._pending = bytes(buffer[done:])


def _runs(piece: bytes) -> Iterator[tuple[bool, memoryview]]:
    """`piece` as runs of zero blocks and of others."""
    view = memoryview(piece)
    start, kind = 0, False
    for at in range(0, len(piece), BLOCK_BYTES):
        block = piece[at : at + BLOCK_BYTES] if piece[at] == 0 else b"\1"
        zero = block == _ZEROS  # A short last block is data, even when it is zeros.
        if at and zero != kind:
            yield kind, view[start:at]
            start = at
        kind = zero
    if len(piece) > start:
        yield kind, view[start:]
