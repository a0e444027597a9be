"""Trees: one canonical JSON document per directory, and the records that name a whole snapshot. Pure.

A tree holds names, modes, times and the ids of chunks and of trees below; never where anything lies. Beside
each tree id stands a *content id*, the same without times, so that a touched file is no other content.
Whatever is read back is checked as a stranger's work: a name that climbs or doubles is refused before any
caller joins it to a path.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runlore import errors
from runlore.snapshots import chunks, names, packs

RECORD_FORMAT = "runlore.snapshot/1"
REPORT_FORMAT = "runlore.snapshot-report/1"
MODE_MASK = 0o7777
NAME_BYTES_MAX = 255
DEPTH_MAX = 1024
"""Directories below each other; a deeper tree could not be opened by path on any common system."""
TIME_NS_MAX = 2**40 * 10**9
"""The farthest time from 1970, in ns: some 35,000 years, which every call of the system still takes."""
XATTR_PREFIX = "user."
"""The only attributes that are kept: others are rights and labels of one machine."""
TREE, NATIVE = "tree", "native"
_CHUNKER = chunks.CHUNKER


@dataclass(frozen=True, slots=True)
class File:
    """A regular file of a tree."""

    name: bytes
    mode: int
    mtime_ns: int
    size: int
    chunks: tuple[bytes, ...] = ()
    extents: tuple[int, ...] | None = None
    """Where the chunks' bytes go: (offset, length, offset, length …). None: one after the other from 0."""
    xattrs: Mapping[str, bytes] | None = None

    def pieces(self) -> tuple[int, ...]:
        """The extents, also where they are the whole file."""
        return self.extents if self.extents is not None else ((0, self.size) if self.size else ())


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link: its target is data, whatever it says."""

    name: bytes
    mtime_ns: int
    target: bytes


@dataclass(frozen=True, slots=True)
class Dir:
    """A directory as its parent names it."""

    name: bytes
    mode: int
    mtime_ns: int
    tree: bytes
    content: bytes
    xattrs: Mapping[str, bytes] | None = None


Entry = File | Link | Dir


@dataclass(slots=True)
class Tree:
    """One directory: its entries by name."""

    dirs: dict[bytes, Dir] = field(default_factory=dict)
    files: dict[bytes, File] = field(default_factory=dict)
    links: dict[bytes, Link] = field(default_factory=dict)

    def get(self, name: bytes) -> Entry | None:
        return self.dirs.get(name) or self.files.get(name) or self.links.get(name)

    def entries(self) -> list[Entry]:
        """Every entry, in order of names."""
        found: list[Entry] = [*self.dirs.values(), *self.files.values(), *self.links.values()]
        return sorted(found, key=lambda entry: entry.name)


EMPTY = Tree()


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tree's bytes, its id and its content id."""

    raw: bytes
    tree: bytes
    content: bytes


def encode(dirs: Iterable[Dir], files: Iterable[File], links: Iterable[Link]) -> Encoded:
    """The one encoding of a directory, whatever order its entries come in. Raises `errors.InvalidInput`."""
    text, by_name = names.to_text, lambda entry: entry.name
    dirs, files, links = sorted(dirs, key=by_name), sorted(files, key=by_name), sorted(links, key=by_name)
    rows: dict[str, list[Any]] = {
        "dirs": [
            [text(d.name), d.mode, d.mtime_ns, d.tree.hex(), d.content.hex(), *_extra(d.xattrs)] for d in dirs
        ],
        "files": [
            [text(f.name), f.mode, f.mtime_ns, f.size, _chunks(f.chunks), *_extra(f.xattrs, f.extents)]
            for f in files
        ],
        "links": [[text(link.name), link.mtime_ns, text(link.target)] for link in links],
    }
    raw = names.canonical(rows)
    if len(raw) > packs.BLOB_BYTES_MAX:
        raise errors.InvalidInput("a directory holds too many entries", hint="exclude it or spread its files")
    for row in rows["dirs"]:
        del row[2:4]
    for row in rows["files"] + rows["links"]:
        del row[2 if len(row) > 3 else 1]
    return Encoded(raw, names.blob_id(raw), names.blob_id(names.canonical(rows)))


def _chunks(ids: tuple[bytes, ...]) -> str | list[str]:
    return ids[0].hex() if len(ids) == 1 else [chunk.hex() for chunk in ids]


def _extra(xattrs: Mapping[str, bytes] | None, extents: tuple[int, ...] | None = None) -> list[Any]:
    extra: dict[str, Any] = {}
    if extents is not None:
        extra["data"] = list(extents)
    if xattrs:
        raw = {name.encode("utf-8", "surrogateescape"): value for name, value in xattrs.items()}
        extra["xattrs"] = {names.to_text(name): base64.b64encode(raw[name]).decode() for name in sorted(raw)}
    return [extra] if extra else []


def decode(raw: bytes) -> Tree:
    """The directory in `raw`, checked. Raises `errors.Corrupt`."""
    body, tree = packs.loads(raw), Tree()
    unhex, name_of = bytes.fromhex, _name
    try:
        for name, mode, mtime, below, content, *extra in body["dirs"]:
            key = name_of(name)
            _, xattrs = _read_extra(extra) if extra else (None, None)
            tree.dirs[key] = Dir(key, mode, mtime, unhex(below), unhex(content), xattrs)
        for name, mode, mtime, size, listed, *extra in body["files"]:
            key = name_of(name)
            ids = (unhex(listed),) if type(listed) is str else tuple([unhex(chunk) for chunk in listed])
            extents, xattrs = _read_extra(extra) if extra else (None, None)
            tree.files[key] = File(key, mode, mtime, size, ids, extents, xattrs)
        for name, mtime, target in body["links"]:
            key = name_of(name)
            tree.links[key] = Link(key, mtime, names.from_text(target))
        _check(tree, len(body["dirs"]) + len(body["files"]) + len(body["links"]))
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as exc:
        raise errors.Corrupt(f"a tree can not be read: {exc}") from None
    return tree


def _name(text: str) -> bytes:
    raw = names.from_text(text)
    if not raw or raw in (b".", b"..") or b"/" in raw or b"\0" in raw or len(raw) > NAME_BYTES_MAX:
        raise errors.Corrupt(f"a tree holds the name {text[:80]!r}, which no file can have")
    return raw


def _check(tree: Tree, count: int) -> None:
    if len({*tree.dirs, *tree.files, *tree.links}) != count:
        raise errors.Corrupt("a tree holds one name twice")
    for file in tree.files.values():
        if not (type(file.size) is int and 0 <= file.size < 2**63 and _is_mode(file.mode)):
            raise errors.Corrupt("a tree holds a size or mode that no file has")
        if not _is_time(file.mtime_ns):
            raise errors.Corrupt("a tree holds a time that no clock shows")
        if file.extents is not None:
            _check_extents(file.extents, file.size)
    for folder in tree.dirs.values():
        if not (_is_mode(folder.mode) and _is_time(folder.mtime_ns) and len(folder.tree) == names.ID_BYTES):
            raise errors.Corrupt("a tree holds a directory that can not be")
    if not all(
        _is_time(link.mtime_ns) and link.target and b"\0" not in link.target for link in tree.links.values()
    ):
        raise errors.Corrupt("a tree holds a link without a target")


def _is_mode(value: object) -> bool:
    return type(value) is int and 0 <= value <= MODE_MASK


def _is_time(value: object) -> bool:
    return type(value) is int and -TIME_NS_MAX < value < TIME_NS_MAX


def _check_extents(extents: tuple[int, ...], size: int) -> None:
    at = 0
    for offset, length in zip(extents[::2], extents[1::2], strict=True):
        if type(offset) is not int or type(length) is not int or offset < at or length <= 0:
            raise errors.Corrupt("a tree holds a file whose parts overlap")
        at = offset + length
    if at > size:
        raise errors.Corrupt("a tree holds a file with data beyond its end")


def _read_extra(extra: list[Any]) -> tuple[tuple[int, ...] | None, dict[str, bytes] | None]:
    (fields,) = extra
    xattrs = fields.get("xattrs")
    decoded = {_xattr(name): base64.b64decode(value, validate=True) for name, value in (xattrs or {}).items()}
    return (tuple(fields["data"]) if "data" in fields else None), decoded or None


def _xattr(text: str) -> str:
    """An attribute's name. A forged tree must not hand out capabilities or labels where root restores it."""
    name = names.from_text(text).decode("utf-8", "surrogateescape")
    if not name.startswith(XATTR_PREFIX) or "\0" in name or name == XATTR_PREFIX:
        raise errors.Corrupt(f"a tree holds the attribute {text[:80]!r}, which no snapshot keeps")
    return name


# --- records ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """What a snapshot is: its id is the hash of this, and of nothing else."""

    kind: str = TREE
    tree: bytes = b""
    content: bytes = b""
    mode: int = 0o755
    mtime_ns: int = 0
    files: int = 0
    dirs: int = 0
    links: int = 0
    bytes: int = 0
    report: bytes | None = None
    provider: str | None = None
    """Of a native reference: whose."""
    chunks: tuple[bytes, ...] = ()
    """Of a native reference: its bytes."""
    chunker: str = _CHUNKER

    def encode(self) -> bytes:
        counts = {"files": self.files, "dirs": self.dirs, "links": self.links, "bytes": self.bytes}
        report = self.report.hex() if self.report else None
        if self.kind == NATIVE:
            listed = [chunk.hex() for chunk in self.chunks]
            return names.canonical(
                {"format": RECORD_FORMAT, "kind": NATIVE, "provider": self.provider, "bytes": self.bytes,
                 "chunks": listed, "content": self.content.hex()}
            )  # fmt: skip
        return names.canonical(
            {"format": RECORD_FORMAT, "kind": TREE, "tree": self.tree.hex(), "content": self.content.hex(),
             "mode": self.mode, "mtime": self.mtime_ns, **counts, "chunker": self.chunker, "report": report}
        )  # fmt: skip

    @property
    def id(self) -> str:
        return names.digest(self.encode())


def decode_record(raw: bytes, snapshot: str) -> Record:
    """The record in `raw`, if it is the one of `snapshot`. Raises `errors.Corrupt`."""
    if names.digest(raw) != snapshot:
        raise errors.Corrupt(f"the record of snapshot {snapshot[:12]} has other bytes than its id says")
    body = packs.loads(raw)
    try:
        if body["format"] != RECORD_FORMAT:
            raise errors.Fatal(
                f"snapshot {snapshot[:12]} has the format {body['format']!r}; this Runlore reads {RECORD_FORMAT!r}",
                hint="use the newer version of Runlore that wrote it",
            )
        if body["kind"] == NATIVE:
            listed = tuple(bytes.fromhex(chunk) for chunk in body["chunks"])
            content = bytes.fromhex(body["content"])
            return Record(
                NATIVE, content=content, bytes=body["bytes"], provider=body["provider"], chunks=listed
            )
        if body["kind"] != TREE or not (_is_mode(body["mode"]) and _is_time(body["mtime"])):
            raise ValueError("it is of no kind, or has a mode or time that no directory has")
        return Record(
            TREE, bytes.fromhex(body["tree"]), bytes.fromhex(body["content"]), body["mode"], body["mtime"],
            body["files"], body["dirs"], body["links"], body["bytes"],
            bytes.fromhex(body["report"]) if body["report"] else None, chunker=body["chunker"],
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as exc:
        raise errors.Corrupt(f"the record of snapshot {snapshot[:12]} can not be read: {exc}") from None


# --- reports ----------------------------------------------------------------------------------------------

REPORT_ROWS_MAX = 1000
"""Rows of one kind that a report lists; beyond them it only counts."""
HARDLINKS_MAX = 10_000


@dataclass
class Report:
    """What a save could not keep as it was: part of the snapshot, so that whoever restores it can tell."""

    skipped: list[tuple[bytes, str]] = field(default_factory=list)
    changed: list[bytes] = field(default_factory=list)
    hardlinks: list[list[bytes]] = field(default_factory=list)
    normalised: list[tuple[bytes, str]] = field(default_factory=list)
    excluded: dict[str, int] = field(default_factory=dict)

    def count(self, rule: str) -> None:
        """Something was left out by `rule`."""
        self.excluded[rule] = self.excluded.get(rule, 0) + 1

    def as_dict(self) -> dict[str, Any]:
        text = names.to_text
        pairs = lambda rows: [[text(path), why] for path, why in sorted(rows)[:REPORT_ROWS_MAX]]  # noqa: E731
        groups = sorted(sorted(group) for group in self.hardlinks)
        return {
            "format": REPORT_FORMAT,
            "counts": {
                "skipped": len(self.skipped), "changed": len(self.changed), "hardlinks": len(groups),
                "normalised": len(self.normalised), "excluded": sum(self.excluded.values()),
            },
            "skipped": pairs(self.skipped),
            "changed": [text(path) for path in sorted(self.changed)[:REPORT_ROWS_MAX]],
            "hardlinks": [[text(path) for path in group] for group in groups[:HARDLINKS_MAX]],
            "normalised": pairs(self.normalised),
            "excluded": {rule: self.excluded[rule] for rule in sorted(self.excluded)},
        }  # fmt: skip

    def encode(self) -> bytes | None:
        """None where there is nothing to tell, so that a clean tree has one record everywhere."""
        body = self.as_dict()
        return names.canonical(body) if any(body["counts"].values()) else None


def decode_report(raw: bytes) -> dict[str, Any]:
    body = packs.loads(raw)
    if not isinstance(body, dict) or body.get("format") != REPORT_FORMAT:
        raise errors.Corrupt("a report can not be read")
    return body
