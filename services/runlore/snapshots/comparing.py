"""What differs between two snapshots, and whether one is whole. Awaits the store alone.

`diff` goes down only where two trees have different ids, so its cost follows the difference. `verify` reads
everything that a snapshot names and holds it against the ids.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from runlore import errors
from runlore.snapshots import names, packs, reading, restoring, trees

ADDED, REMOVED, CHANGED, TOUCHED = "added", "removed", "changed", "touched"
"""`touched`: only times differ."""
PROBLEMS_MAX = 100
"""Problems that one check lists; beyond them it only counts."""


@dataclass(frozen=True)
class Change:
    """One path that differs. A directory that is in one only is told with everything below it."""

    path: bytes
    what: str
    old: trees.Entry | None
    new: trees.Entry | None

    def as_dict(self) -> dict[str, object]:
        kind = type(self.new or self.old).__name__.lower()
        size = {
            side: entry.size
            for side, entry in (("old_bytes", self.old), ("new_bytes", self.new))
            if isinstance(entry, trees.File)
        }
        return {"path": names.to_text(self.path), "what": self.what, "kind": kind, **size}


async def diff(old: reading.Opened, new: reading.Opened) -> AsyncIterator[Change]:
    """Every path that differs, parents before what is below them, in order of names in each directory."""
    stack: list[tuple[bytes, bytes | None, bytes | None]] = [(b"", old.whole().tree, new.whole().tree)]
    while stack:
        path, one, two = stack.pop()
        if one == two:
            continue
        before = await old.tree(one) if one is not None else trees.EMPTY
        after = await new.tree(two) if two is not None else trees.EMPTY
        below = []
        all_names = {entry.name for entry in before.entries()} | {entry.name for entry in after.entries()}
        for name in sorted(all_names):
            left, right = before.get(name), after.get(name)
            if left == right:
                continue
            at = path + b"/" + name if path else name
            yield Change(at, _what(left, right), left, right)
            ids = [entry.tree if isinstance(entry, trees.Dir) else None for entry in (left, right)]
            if ids[0] != ids[1]:
                below.append((at, ids[0], ids[1]))
        stack += reversed(below)


def _what(old: trees.Entry | None, new: trees.Entry | None) -> str:
    if old is None:
        return ADDED
    if new is None:
        return REMOVED
    return TOUCHED if _content(old) == _content(new) else CHANGED


def _content(entry: trees.Entry) -> tuple[object, ...]:
    if isinstance(entry, trees.File):
        return (trees.File, entry.mode, entry.size, entry.chunks, entry.extents, entry.xattrs)
    if isinstance(entry, trees.Link):
        return (trees.Link, entry.target)
    return (trees.Dir, entry.mode, entry.content, entry.xattrs)


@dataclass
class Verified:
    """What a check saw."""

    packs: int = 0
    frames: int = 0
    blobs: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)
    problems_count: int = 0

    def problem(self, text: str) -> None:
        self.problems_count += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(text)


async def verify(opened: reading.Opened, *, progress: restoring.Progress | None = None) -> Verified:
    """Read everything that the snapshot names; every blob must be what its id says, every file as long as told."""
    seen, wanted = Verified(), set()
    if opened.record.kind == trees.NATIVE:
        wanted.update(opened.record.chunks)
    else:
        try:
            async for path, tree in opened.walk():
                wanted.update(folder.tree for folder in tree.dirs.values())
                for file in tree.files.values():
                    wanted.update(file.chunks)
                    _check_file(opened, path, file, seen)
        except errors.Corrupt as exc:
            seen.problem(exc.message)
        wanted.add(opened.record.tree)
        if opened.record.report is not None:
            wanted.add(opened.record.report)
    await _check_blobs(opened, wanted, seen, progress)
    seen.packs = len(opened.packs())
    return seen


def _check_file(opened: reading.Opened, path: bytes, file: trees.File, seen: Verified) -> None:
    try:
        for _ in reading.spans(file, opened.index):
            pass
    except errors.Corrupt as exc:
        seen.problem(f"{names.to_text(path + b'/' + file.name)}: {exc.message}")


async def _check_blobs(
    opened: reading.Opened, wanted: set[bytes], seen: Verified, progress: restoring.Progress | None
) -> None:
    by_frame: dict[int, list[bytes]] = {}
    for blob in wanted:
        if blob in opened.index:
            by_frame.setdefault(opened.index.locate(blob)[0], []).append(blob)
        else:
            seen.problem(f"blob {blob.hex()[:12]} is in none of the snapshot's packs")
    for one in reading.plan(opened.index, by_frame):
        try:
            raw = await opened.fetch(one)
        except errors.Corrupt as exc:
            seen.problem(exc.message)
            continue
        await reading.off_loop(_check_range, opened.index, one, raw, by_frame, seen)
        if progress is not None:
            progress(seen.blobs, seen.bytes)


def _check_range(
    index: packs.Index, one: reading.Range, raw: bytes, by_frame: dict[int, list[bytes]], seen: Verified
) -> None:
    for frame in one.frames:
        _check_frame(index, one, raw, frame, by_frame[frame], seen)


def _check_frame(
    index: packs.Index, one: reading.Range, raw: bytes, frame: int, blobs: list[bytes], seen: Verified
) -> None:
    seen.frames += 1
    try:
        content = one.content(index, raw, frame)
    except errors.Corrupt as exc:
        seen.problem(f"pack {one.pack[-64:][:12]}: {exc.message}; {len(blobs)} blobs are lost")
        return
    for blob in blobs:
        try:
            seen.bytes += len(reading.cut(index, blob, content))
            seen.blobs += 1
        except errors.Corrupt as exc:
            seen.problem(f"pack {one.pack[-64:][:12]}: {exc.message}")
