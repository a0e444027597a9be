"""Three-way merge of text by lines. Pure, and symmetric: swapping the sides changes nothing.

The standard diff3: where both sides still have a stretch of the base, they are in step; between two such
places whichever side changed wins, and where both did the same that is taken once. Where both did something
else there is no answer, and none is made up: the caller keeps both files. Built on difflib, because the
library that does it (merge3) is under the GPL, which Runlore's licence does not allow it to bring along.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

TEXT_BYTES_MAX = 4 * 1024 * 1024
"""A larger file is not merged by line, in bytes: both are kept."""
LINES_MAX = 20_000
"""Nor one with more lines between what both sides begin and end with."""
PAIRS_MAX = 4_000_000
"""Pairs of equal lines that one comparison looks at: some seconds. Lines that repeat often make many."""


def is_text(raw: bytes) -> bool:
    """Whether a file is one that lines mean something in: as git judges, by the absence of zero bytes."""
    return len(raw) <= TEXT_BYTES_MAX and b"\0" not in raw


def merge(base: bytes, ours: bytes, theirs: bytes) -> bytes | None:
    """The merged text; None where both sides changed the same lines, or the texts are too large to compare."""
    if not (is_text(base) and is_text(ours) and is_text(theirs)):
        return None
    sides = [text.splitlines(keepends=True) for text in (base, ours, theirs)]
    try:
        merged = _merge_lines(*_trimmed(sides))
    except _TooManyPairs:
        return None
    if merged is None:
        return None
    head, tail = _common(sides)
    return b"".join([*sides[0][:head], *merged, *sides[0][len(sides[0]) - tail :]])


def _common(sides: Sequence[list[bytes]]) -> tuple[int, int]:
    """How many lines all sides begin with, and end with."""
    shortest = min(map(len, sides))
    head = 0
    while head < shortest and sides[0][head] == sides[1][head] == sides[2][head]:
        head += 1
    tail = 0
    while tail < shortest - head and sides[0][-1 - tail] == sides[1][-1 - tail] == sides[2][-1 - tail]:
        tail += 1
    return head, tail


def _trimmed(sides: Sequence[list[bytes]]) -> list[list[bytes]]:
    head, tail = _common(sides)
    return [lines[head : len(lines) - tail] for lines in sides]


def _merge_lines(base: list[bytes], ours: list[bytes], theirs: list[bytes]) -> list[bytes] | None:
    if max(len(base), len(ours), len(theirs)) > LINES_MAX:
        return None
    out: list[bytes] = []
    at = (0, 0, 0)
    for start, end in _in_step(base, ours, theirs):
        taken = _choose(base[at[0] : start[0]], ours[at[1] : start[1]], theirs[at[2] : start[2]])
        if taken is None:
            return None
        out += taken
        out += base[start[0] : end[0]]
        at = end
    return out


def _choose(base: list[bytes], ours: list[bytes], theirs: list[bytes]) -> list[bytes] | None:
    if ours == theirs or theirs == base:
        return ours
    return theirs if ours == base else None


Place = tuple[int, int, int]


def _in_step(base: list[bytes], ours: list[bytes], theirs: list[bytes]) -> Iterator[tuple[Place, Place]]:
    """The stretches that all three have, in order, as (first, past the last) in base, ours and theirs; at last
    the empty one behind the ends."""
    one, two = _blocks(base, ours), _blocks(base, theirs)
    i = j = 0
    while i < len(one) and j < len(two):
        (b1, o, n1), (b2, t, n2) = one[i], two[j]
        first, past = max(b1, b2), min(b1 + n1, b2 + n2)
        if first < past:
            yield (first, o + first - b1, t + first - b2), (past, o + past - b1, t + past - b2)
        if b1 + n1 < b2 + n2:
            i += 1
        else:
            j += 1
    ends = (len(base), len(ours), len(theirs))
    yield ends, ends


def _blocks(base: list[bytes], side: list[bytes]) -> list[tuple[int, int, int]]:
    """The stretches that two texts share. Raises `_TooManyPairs`."""
    try:
        return _matched(_Bounded(None, base, side, autojunk=False))
    except _TooManyPairs:
        # Lines that make up more than a hundredth of the text begin no stretch then; they still continue one.
        return _matched(_Bounded(None, base, side, autojunk=True))


def _matched(matcher: _Bounded) -> list[tuple[int, int, int]]:
    return [tuple(block) for block in matcher.get_matching_blocks()]


class _TooManyPairs(Exception):
    """A comparison would take too long."""


class _Bounded(difflib.SequenceMatcher):  # type: ignore[type-arg]
    """Counts the pairs that it is about to look at, so that a hostile text costs seconds and not days."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._before = [0, *accumulate(len(self.b2j.get(line, ())) for line in self.a)]
        self._pairs = 0

    def find_longest_match(
        self, alo: int = 0, ahi: int | None = None, blo: int = 0, bhi: int | None = None
    ) -> difflib.Match:
        self._pairs += self._before[len(self.a) if ahi is None else ahi] - self._before[alo]
        if self._pairs > PAIRS_MAX:
            raise _TooManyPairs
        return super().find_longest_match(alo, ahi, blo, bhi)
