"""Three-way merge of snapshots: what one side left as the base had it, the other side decides.

Directories whose ids are equal are not looked into, so merging costs what differs. Equal content never
conflicts, however it came about. Text that both sides changed is merged by lines; what can not be merged is
kept side by side: ours under its own name, theirs as `report.conflict-<label>.md`, and the result's report says
so. Where one side deleted what the other changed, the change stays, and the report says that too. No byte of
either side is lost that the base did not have.

A merge writes only what no side has: merged texts, changed directories, the report. What it refers to else are
packs of the snapshots given, which must be named by a head now (invariant 7).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from runlore import errors
from runlore.snapshots import building, chunks, library, names, packs, reading, saving, textmerge, trees
from runlore.store import port

CONFLICTS_MAX = 1000
"""Conflicts that a report lists; beyond them it only counts."""
LABEL_CHARS_MAX = 40

BOTH_CHANGED, BOTH_ADDED, DELETED, KINDS, MODE, XATTRS = (
    "both changed",
    "both added",
    "deleted on one side",
    "file against directory or link",
    "mode",
    "xattrs",
)

ROWS = ("skipped", "changed", "hardlinks", "normalised", "conflicts")
"""The lists of a report."""

Offload = Callable[..., Awaitable[Any]]


async def on_the_spot(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


@dataclass(frozen=True)
class Side:
    """One snapshot to merge, and what it is called in names and reports (`head`, a branch's name)."""

    label: str
    opened: reading.Opened


@dataclass(frozen=True, order=True)
class Conflict:
    """A path that both sides want otherwise, and where each side's version is now (None: it deleted it)."""

    path: bytes
    kind: str
    kept: tuple[tuple[str, bytes | None], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        text = names.to_text
        kept = {label: text(path) if path is not None else None for label, path in self.kept}
        return {"path": text(self.path), "kind": self.kind, "kept": kept}


@dataclass(frozen=True)
class Merged:
    """A merged tree, whose new blobs are in memory until `write` puts them."""

    record: trees.Record
    needed: frozenset[bytes]
    new: Mapping[bytes, bytes]
    conflicts: tuple[Conflict, ...]
    bases: tuple[reading.Opened, ...]
    report: Mapping[str, Any]

    def is_snapshot(self) -> names.Ref | None:
        """The snapshot given whose content this is exactly, if any."""
        return next((one.ref for one in self.bases if one.ref.id == self.record.id), None)


@dataclass
class _State:
    """A tree while merges are folded into it: its root as an entry, and its report."""

    root: trees.Dir
    report: dict[str, Any]


class _Blobs:
    """Blobs of every snapshot given, and the new ones."""

    def __init__(self, opened: Sequence[reading.Opened]) -> None:
        self._opened = opened
        self.new: dict[bytes, bytes] = {}

    async def many(self, wanted: set[bytes]) -> dict[bytes, bytes]:
        found = {blob: self.new[blob] for blob in wanted if blob in self.new}
        for one in self._opened:
            held = [blob for blob in wanted if blob not in found and blob in one.index]
            found |= await one.blobs(held) if held else {}
        absent = wanted - found.keys()
        if absent:
            raise errors.Corrupt(f"blob {min(absent).hex()[:12]} is in none of the merged snapshots' packs")
        return found

    async def tree(self, entry: trees.Entry | None) -> trees.Tree:
        # What branches began from may be nothing at all: then no snapshot holds the empty tree.
        if not isinstance(entry, trees.Dir) or entry.tree == _EMPTY_TREE.tree:
            return trees.EMPTY
        return trees.decode((await self.many({entry.tree}))[entry.tree])

    async def content(self, file: trees.File) -> bytes:
        found = await self.many(set(file.chunks))
        parts, at = [], 0
        chunk = iter(file.chunks)
        pieces = file.pieces()
        for offset, length in zip(pieces[::2], pieces[1::2], strict=True):
            parts.append(bytes(offset - at))
            at = offset
            while at < offset + length:
                parts.append(found[next(chunk)])
                at += len(parts[-1])
        return b"".join([*parts, bytes(file.size - at)])


async def merge(
    base: reading.Opened | None,
    ours: Side,
    others: Sequence[Side],
    *,
    bases: Mapping[str, reading.Opened] | None = None,
    offload: Offload = on_the_spot,
) -> Merged:
    """`others` merged into `ours`, one after the other in order of their labels.

    `base` is what all of them began from (None: nothing); `bases` names another one for some labels. Raises
    `errors.Corrupt`, `errors.NativeSnapshot` where a side is not a tree.
    """
    bases = bases or {}
    others = sorted(others, key=lambda side: side.label)
    given = [ours.opened, *(side.opened for side in others)]
    froms = [bases.get(side.label, base) for side in others]
    given += [one for one in froms if one is not None]
    given = list({one.ref: one for one in given}.values())
    blobs = _Blobs(given)
    state = await _state(ours.opened)
    conflicts: list[Conflict] = []
    for side, start in zip(others, froms, strict=True):
        before = await _state(start) if start is not None else _State(_EMPTY_ROOT, trees.Report().as_dict())
        theirs = await _state(side.opened)
        work = _Merge(blobs, ours.label, side.label, offload)
        try:
            root = await work.root(before.root, state.root, theirs.root)
        except RecursionError:
            raise errors.Refused("the directories that differ are too deep to be merged") from None
        report = _reports(before.report, state.report, theirs.report)
        state = _State(root, report)
        conflicts += work.conflicts
    return await _close(blobs, given, state, sorted(conflicts))


_EMPTY_TREE = trees.encode((), (), ())
_EMPTY_ROOT = trees.Dir(b"", 0o755, 0, _EMPTY_TREE.tree, _EMPTY_TREE.content)


async def _state(opened: reading.Opened) -> _State:
    record = opened.whole()
    root = trees.Dir(b"", record.mode, record.mtime_ns, record.tree, record.content)
    return _State(root, await opened.report())


def _safe(label: str) -> str:
    """A label as a part of a file's name."""
    return re.sub(r"[^a-zA-Z0-9_.-]+", "-", label)[:LABEL_CHARS_MAX].strip(".-") or "other"


# --- trees ------------------------------------------------------------------------------------------------


class _Merge:
    """One three-way merge."""

    def __init__(self, blobs: _Blobs, ours: str, theirs: str, offload: Offload) -> None:
        self._blobs, self._offload = blobs, offload
        self._ours, self._theirs = ours, theirs
        self.conflicts: list[Conflict] = []

    async def root(self, base: trees.Dir, ours: trees.Dir, theirs: trees.Dir) -> trees.Dir:
        if ours == theirs or theirs == base:
            return ours
        if ours == base:
            return theirs
        return await self._dirs(b"", base, ours, theirs)

    async def _dirs(
        self, path: bytes, base: trees.Dir | None, ours: trees.Dir, theirs: trees.Dir
    ) -> trees.Dir:
        """Two directories, entry by entry."""
        found = await self._entries(path, base, ours, theirs)
        mode = self._mode(path, base, ours, theirs)
        xattrs = self._xattrs(path, base, ours, theirs)
        encoded = _encode(found)
        for side, other in ((ours, theirs), (theirs, ours)):
            if encoded.tree == side.tree and (mode, xattrs) == (side.mode, side.xattrs):
                # Nothing but its time may differ: the newer one, if both sides hold the same.
                return side if encoded.tree != other.tree else max(ours, theirs, key=_time)
        self._blobs.new.setdefault(encoded.tree, encoded.raw)
        newest = max(ours.mtime_ns, theirs.mtime_ns)
        return trees.Dir(ours.name, mode, newest, encoded.tree, encoded.content, xattrs)

    async def _entries(
        self, path: bytes, base: trees.Entry | None, ours: trees.Entry | None, theirs: trees.Entry | None
    ) -> dict[bytes, trees.Entry]:
        b, o, t = [await self._blobs.tree(one) for one in (base, ours, theirs)]
        listed = {name for tree in (b, o, t) for name in (*tree.dirs, *tree.files, *tree.links)}
        found: dict[bytes, trees.Entry] = {}
        aside: list[tuple[bytes, trees.Entry]] = []
        for name in sorted(listed):
            below = path + b"/" + name if path else name
            kept, other = await self._entry(below, b.get(name), o.get(name), t.get(name))
            if kept is not None:
                found[name] = kept
            if other is not None:
                aside.append((below, other))
        for below, other in aside:
            is_ours = o.get(other.name) == other
            name = _free_name(other.name, _safe(self._ours if is_ours else self._theirs), listed)
            listed.add(name)
            found[name] = replace(other, name=name)
            at = below[: len(below) - len(other.name)] + name
            mine, yours = (at, below) if is_ours else (below, at)
            kind = BOTH_CHANGED if b.get(other.name) is not None else BOTH_ADDED
            if type(o.get(other.name)) is not type(t.get(other.name)):
                kind = KINDS
            self.conflicts.append(Conflict(below, kind, ((self._ours, mine), (self._theirs, yours))))
        return found

    async def _entry(
        self, path: bytes, b: trees.Entry | None, o: trees.Entry | None, t: trees.Entry | None
    ) -> tuple[trees.Entry | None, trees.Entry | None]:
        """What stands at a name, and what must stand beside it."""
        if o == t or t == b:
            return o, None
        if o == b:
            return t, None
        # From here on both sides differ from the base in something; perhaps only in times.
        if o is not None and t is not None and _same(o, t):
            return max(o, t, key=_time), None
        if _same(t, b):
            return o, None
        if _same(o, b):
            return t, None
        if o is None or t is None:
            return await self._deleted(path, b, o, t), None
        if isinstance(o, trees.Dir) and isinstance(t, trees.Dir):
            return await self._dirs(path, b if isinstance(b, trees.Dir) else None, o, t), None
        if isinstance(o, trees.File) and isinstance(t, trees.File):
            return await self._files(path, b if isinstance(b, trees.File) else None, o, t)
        # A directory keeps its name, because the paths below it need it; else ours does.
        return (t, o) if isinstance(t, trees.Dir) else (o, t)

    async def _deleted(
        self, path: bytes, b: trees.Entry | None, o: trees.Entry | None, t: trees.Entry | None
    ) -> trees.Entry | None:
        """One side deleted what the other changed."""
        left = o if o is not None else t
        assert left is not None
        if isinstance(b, trees.Dir) and isinstance(left, trees.Dir):
            # What it did not change below goes; what it did stays.
            found = await self._entries(path, b, o, t)
            if not found:
                return None
            encoded = _encode(found)
            self._blobs.new.setdefault(encoded.tree, encoded.raw)
            return replace(left, tree=encoded.tree, content=encoded.content)
        kept = (
            (self._ours, path if o is not None else None),
            (self._theirs, path if t is not None else None),
        )
        self.conflicts.append(Conflict(path, DELETED, kept))
        return left

    # --- files --------------------------------------------------------------------------------------------

    async def _files(
        self, path: bytes, b: trees.File | None, o: trees.File, t: trees.File
    ) -> tuple[trees.Entry, trees.Entry | None]:
        if _content(o) == _content(t) or (b and _content(t) == _content(b)):
            content: trees.File | None = o
        elif b and _content(o) == _content(b):
            content = t
        else:
            content = await self._text(b, o, t)
            if content is None:
                return o, t
        mode, xattrs = self._mode(path, b, o, t), self._xattrs(path, b, o, t)
        newest = max(o.mtime_ns, t.mtime_ns)
        return replace(content, mode=mode, xattrs=xattrs, mtime_ns=newest), None

    async def _text(self, b: trees.File | None, o: trees.File, t: trees.File) -> trees.File | None:
        """Both sides' changes in one file, by lines; None where that can not be."""
        if b is None or max(one.size for one in (b, o, t)) > textmerge.TEXT_BYTES_MAX:
            return None
        texts = [await self._blobs.content(one) for one in (b, o, t)]
        merged = await self._offload(textmerge.merge, *texts)
        if merged is None:
            return None
        size, ids, extents = _cut(merged, self._blobs.new)
        return replace(o, size=size, chunks=ids, extents=extents)

    def _mode(self, path: bytes, b: Any, o: Any, t: Any) -> int:
        if o.mode == t.mode or (b is not None and t.mode == b.mode):
            return o.mode
        if b is not None and o.mode == b.mode:
            return t.mode
        self.conflicts.append(Conflict(path, MODE))
        return o.mode & t.mode  # Whoever took a right away had a reason.

    def _xattrs(self, path: bytes, b: Any, o: Any, t: Any) -> Mapping[str, bytes] | None:
        before, mine, other = (dict(one.xattrs or {}) if one is not None else {} for one in (b, o, t))
        out = {}
        for name in sorted({*mine, *other}):
            was, one, two = before.get(name), mine.get(name), other.get(name)
            if one == two or two == was:
                value = one
            elif one == was:
                value = two
            else:
                self.conflicts.append(Conflict(path, XATTRS))
                value = max(one or b"", two or b"")
            if value is not None:
                out[name] = value
        return out or None


def _time(entry: trees.Entry) -> int:
    return entry.mtime_ns


def _content(file: trees.File) -> tuple[Any, ...]:
    return (file.size, file.chunks, file.pieces())


def _same(one: trees.Entry | None, two: trees.Entry | None) -> bool:
    """Whether two entries differ in nothing but times."""
    if isinstance(one, trees.Dir) and isinstance(two, trees.Dir):
        return (one.content, one.mode, one.xattrs) == (two.content, two.mode, two.xattrs)
    if isinstance(one, trees.File) and isinstance(two, trees.File):
        return _content(one) == _content(two) and (one.mode, one.xattrs) == (two.mode, two.xattrs)
    if isinstance(one, trees.Link) and isinstance(two, trees.Link):
        return one.target == two.target
    return one is None and two is None


def _encode(found: Mapping[bytes, trees.Entry]) -> trees.Encoded:
    entries = list(found.values())
    return trees.encode(
        [one for one in entries if isinstance(one, trees.Dir)],
        [one for one in entries if isinstance(one, trees.File)],
        [one for one in entries if isinstance(one, trees.Link)],
    )


def _free_name(name: bytes, suffix: str, taken: set[bytes]) -> bytes:
    """`report.md` → `report.conflict-<label>.md`, or with a number where that is taken."""
    stem, dot, extension = name.rpartition(b".")
    if not stem or len(extension) > 16:
        stem, dot, extension = name, b"", b""
    number = 1
    while True:
        mark = f".conflict-{suffix}" + (f"-{number}" if number > 1 else "")
        tail = mark.encode() + dot + extension
        candidate = _shortened(stem, trees.NAME_BYTES_MAX - len(tail)) + tail
        if candidate not in taken:
            return candidate
        number += 1


def _shortened(stem: bytes, most: int) -> bytes:
    """At most `most` bytes of a name, and no half of a character where it is text: some systems refuse those."""
    if len(stem) <= most:
        return stem
    try:
        stem.decode("utf-8")
    except UnicodeDecodeError:
        return stem[:most]
    return stem[:most].decode("utf-8", "ignore").encode("utf-8")


def _cut(raw: bytes, new: dict[bytes, bytes]) -> saving.Content:
    """A merged file as a save would cut it; its chunks go to `new`."""

    class Taking:
        def add(self, content: bytes | memoryview) -> bytes:
            blob = names.blob_id(content)
            new.setdefault(blob, bytes(content))
            return blob

    taking = Taking()
    if len(raw) <= chunks.WHOLE_BYTES_MAX:
        return len(raw), ((taking.add(raw),) if raw else ()), None
    return saving.cut_stream(iter([raw]), chunks.cutter(), taking)  # type: ignore[arg-type]


# --- the result -------------------------------------------------------------------------------------------


@dataclass
class _Counts:
    files: int = 0
    dirs: int = 0
    links: int = 0
    bytes: int = 0
    needed: set[bytes] = field(default_factory=set)


async def _count(blobs: _Blobs, root: trees.Dir) -> _Counts:
    """What the merged tree holds and needs: every directory is looked at once, a level at a time."""
    out = _Counts()
    level = [root]
    while level:
        ids = {folder.tree for folder in level}
        out.needed |= ids
        decoded = {tree: trees.decode(raw) for tree, raw in (await blobs.many(ids)).items()}
        below: list[trees.Dir] = []
        for folder in level:
            tree = decoded[folder.tree]
            out.files += len(tree.files)
            out.links += len(tree.links)
            out.dirs += len(tree.dirs)
            for file in tree.files.values():
                out.bytes += file.size
                out.needed.update(file.chunks)
            below += tree.dirs.values()
        level = below
    return out


async def _close(
    blobs: _Blobs, given: Sequence[reading.Opened], state: _State, conflicts: Sequence[Conflict]
) -> Merged:
    counts = await _count(blobs, state.root)
    report, raw = _with_conflicts(state.report, conflicts)
    report_id = None
    if raw is not None:
        report_id = names.blob_id(raw)
        blobs.new.setdefault(report_id, raw)
        counts.needed.add(report_id)
    root = state.root
    record = trees.Record(
        trees.TREE, root.tree, root.content, root.mode, root.mtime_ns, counts.files, counts.dirs, counts.links,
        counts.bytes, report_id,
    )  # fmt: skip
    needed = frozenset(counts.needed)
    new = {blob: content for blob, content in blobs.new.items() if blob in needed}
    return Merged(record, needed, new, tuple(conflicts), tuple(given), report)


def _reports(base: Mapping[str, Any], ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Three reports merged row by row: what a side added stays, what it dropped goes."""
    if theirs in (base, ours):
        return dict(ours)
    if ours == base:
        return dict(theirs)
    out: dict[str, Any] = {"counts": {}}
    for kind in ROWS:
        b, o, t = ({names.canonical(row) for row in one.get(kind, ())} for one in (base, ours, theirs))
        rows = sorted((o & t) | (o - b) | (t - b))
        listed = trees.HARDLINKS_MAX if kind == "hardlinks" else trees.REPORT_ROWS_MAX
        out[kind] = [packs.loads(row) for row in rows[:listed]]
        # A report counts more rows than it lists.
        most = max(int(one.get("counts", {}).get(kind, 0)) for one in (ours, theirs))
        out["counts"][kind] = max(len(rows), most) if rows else 0
    b, o, t = (dict(one.get("excluded", {})) for one in (base, ours, theirs))
    both = {rule: max(o.get(rule, 0), t.get(rule, 0)) for rule in sorted({*o, *t})}
    out["excluded"] = o if t in (b, o) else t if o == b else both
    return out


def _with_conflicts(
    report: Mapping[str, Any], conflicts: Sequence[Conflict]
) -> tuple[dict[str, Any], bytes | None]:
    """The result's report, and its bytes; None where there is nothing to tell."""
    rows = [*report.get("conflicts", ()), *(one.as_dict() for one in conflicts)]
    body: dict[str, Any] = {"format": trees.REPORT_FORMAT, "counts": {}}
    for kind in ROWS[:-1]:
        body[kind] = list(report.get(kind, ()))
        body["counts"][kind] = max(len(body[kind]), int(report.get("counts", {}).get(kind, 0)))
    body["excluded"] = dict(report.get("excluded", {}))
    body["counts"]["excluded"] = sum(body["excluded"].values())
    if rows:
        body["conflicts"] = rows[:CONFLICTS_MAX]
        body["counts"]["conflicts"] = max(len(rows), int(report.get("counts", {}).get("conflicts", 0)))
    return body, names.canonical(body) if any(body["counts"].values()) else None


# --- writing ----------------------------------------------------------------------------------------------


async def write(
    store: port.ObjectStore, project: str, merged: Merged, *, offload: Offload = on_the_spot
) -> library.Saved:
    """Put what is new of a merged tree; the snapshot, which no head names yet.

    The snapshots that were merged must be named by a head now. Nothing is written where the result is one of
    them.
    """
    stats = {name: getattr(merged.record, name) for name in ("files", "dirs", "links", "bytes")}
    record = merged.record
    there = merged.is_snapshot()
    if there is not None:
        return library.Saved(there, record.tree.hex(), record.content.hex(), 0, 0, dict(merged.report), stats)
    full: list[packs.Pack] = []
    builder = building.Builder(full.append, bases=merged.bases, level=packs.LEVEL_SMALL)
    needed = set(merged.needed)
    contents = await offload(_fill, builder, merged, needed)
    copied: dict[bytes, bytes] = {}
    for base in merged.bases:
        held = [blob for blob in contents if blob not in copied and blob in base.index]
        copied |= await base.blobs(held) if held else {}
    builder.copy(copied)
    built = await offload(builder.finish, record, needed)
    for pack in [*full, built.root_pack]:
        await library.put_pack(store, project, pack)
    return library.Saved(
        built.ref, record.tree.hex(), record.content.hex(), built.packs_written, built.bytes_written,
        dict(merged.report), stats,
    )  # fmt: skip


def _fill(builder: building.Builder, merged: Merged, needed: set[bytes]) -> set[bytes]:
    """Give the builder the new blobs; what it wants copied out of the bases."""
    batch = builder.batch()
    for blob in sorted(merged.new):
        batch.add(merged.new[blob])
    batch.flush()
    return builder.settle(needed)
