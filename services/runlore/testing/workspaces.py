"""Small snapshots made in memory, without a file system: for tests and simulations.

A workspace is a dict: path → bytes (a file), `Link`, `File` (with a mode) or None (an empty directory).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runlore.snapshots import building, library, names, packs, reading, trees
from runlore.store import port


@dataclass(frozen=True)
class File:
    """A file with what else matters of it."""

    content: bytes
    mode: int = 0o644
    mtime_ns: int = 0


@dataclass(frozen=True)
class Link:
    target: bytes
    mtime_ns: int = 0


Workspace = Mapping[str, Any]


async def put(
    store: port.ObjectStore, project: str, files: Workspace, *, bases: Sequence[reading.Opened] = ()
) -> names.Ref:
    """Save `files` as a snapshot that may refer to the packs of `bases`; its ref, which no head names yet."""
    full: list[packs.Pack] = []
    builder = building.Builder(full.append, bases=bases, level=packs.LEVEL_SMALL)
    counts = {"files": 0, "dirs": 0, "links": 0, "bytes": 0}
    needed: set[bytes] = set()
    root = _folder(builder, _nested(files), counts, needed, b"")
    record = trees.Record(trees.TREE, root.tree, root.content, root.mode, root.mtime_ns, **counts)
    copied: dict[bytes, bytes] = {}
    for base in bases:
        wanted = [blob for blob in builder.settle(needed) if blob not in copied and blob in base.index]
        copied |= await base.blobs(wanted) if wanted else {}
    if not bases:
        builder.settle(needed)
    builder.copy(copied)
    built = builder.finish(record, needed)
    for pack in [*full, built.root_pack]:
        await library.put_pack(store, project, pack)
    return built.ref


async def read(store: port.ObjectStore, project: str, ref: names.Ref | str) -> dict[str, Any]:
    """What a snapshot holds: files and links as they were put, empty directories as None. Verifies every byte."""
    opened = await reading.open_snapshot(store, project, ref)
    found: dict[str, Any] = {}
    async for path, tree in opened.walk():
        prefix = path.decode() + "/" if path else ""
        for file in tree.files.values():
            parts = [part async for part in opened.content(file)]
            found[prefix + file.name.decode()] = File(b"".join(parts), file.mode, file.mtime_ns)
        for link in tree.links.values():
            found[prefix + link.name.decode()] = Link(link.target, link.mtime_ns)
        if path and not tree.entries():
            found[path.decode()] = None
    return found


def plain(files: Workspace) -> dict[str, Any]:
    """The contents alone: without modes and times."""
    bare = {path: one.content if isinstance(one, File) else one for path, one in files.items()}
    return {path: Link(one.target) if isinstance(one, Link) else one for path, one in bare.items()}


def _nested(files: Workspace) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for path, one in files.items():
        *above, name = path.split("/")
        at = root
        for part in above:
            at = at.setdefault(part, {})
        if one is None:
            at.setdefault(name, {})
        else:
            at[name] = one
    return root


def _folder(
    builder: building.Builder,
    entries: dict[str, Any],
    counts: dict[str, int],
    needed: set[bytes],
    name: bytes,
) -> trees.Dir:
    dirs, files, links = [], [], []
    batch = builder.batch()
    for text, one in entries.items():
        raw = text.encode()
        if isinstance(one, dict):
            dirs.append(_folder(builder, one, counts, needed, raw))
        elif isinstance(one, Link):
            links.append(trees.Link(raw, one.mtime_ns, one.target))
        else:
            file = one if isinstance(one, File) else File(one)
            ids = (batch.add(file.content),) if file.content else ()
            needed.update(ids)
            counts["bytes"] += len(file.content)
            files.append(trees.File(raw, file.mode, file.mtime_ns, len(file.content), ids))
    batch.flush()
    for kind, listed in (("dirs", dirs), ("files", files), ("links", links)):
        counts[kind] += len(listed)
    encoded = trees.encode(dirs, files, links)
    builder.add_tree(encoded.raw)
    needed.add(encoded.tree)
    return trees.Dir(name, 0o755, 0, encoded.tree, encoded.content)


def read_plain(store: port.ObjectStore, project: str, ref: names.Ref | str) -> dict[str, Any]:
    """What a snapshot in a fake store holds: contents, links without times."""
    from runlore.testing.world import finish

    return plain(finish(read(store, project, ref)))
