"""A seed's workspace on disk: restored before memory is laid over it, and never over somebody's work.

A folder that holds anything is replaced only if it is exactly what some seed put there; what it was put there as,
its receipt says. Whether it is still that is decided by reading it: its content id against the snapshot's.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runlore import errors
from runlore.commit import heads, lines
from runlore.lookup import seeds
from runlore.snapshots import building, ignore, library, names, reading, saving, scan, statcache, trees

OWN_DIR = ".runlore"
BASES = "workspaces"
"""Folder of the cache that holds what saved and restored folders began as."""


def not_saved(layout: Mapping[str, Any]) -> list[str]:
    """The folders of a workspace that are never part of a snapshot: memory, which a seed lays over, and our own."""
    return [*(str(layout[name]) for name in ("memories_dir", "sessions_dir") if name in layout), OWN_DIR]


async def restore(
    made: library.Snapshots,
    opened: seeds.Opened,
    target: Path,
    *,
    force: bool = False,
    progress: library.Progress | None = None,
) -> library.Restored | None:
    """Put the seed's workspace at `target`; None where it is there already, or the seed has none.

    Raises `errors.TargetModified` where `target` holds what no seed put there, or was edited, unless `force`.
    """
    if opened.seed.snapshot is None:
        return None
    found = await made.open(opened.seed.snapshot)
    if await asyncio.to_thread(_is_empty, target):
        return await made.restore(found.ref, target, progress=progress)
    if not force:
        await asyncio.to_thread(seeds.check_unedited, opened, target)
    receipt = await asyncio.to_thread(seeds.receipt_of, target)
    layout = receipt.get("layout") if isinstance(receipt.get("layout"), dict) else opened.layout
    present = await asyncio.to_thread(content_of, target, not_saved(layout))
    if present == found.record.content:
        return None
    if not force and present not in await _put_there(made, receipt):
        raise errors.TargetModified(
            f"{target} holds what no seed put there, or was edited since",
            hint="save it (`runlore snapshot save`), choose another --into, or replace it with --force",
        )
    return await made.restore(found.ref, target, replace=True, progress=progress)


async def _put_there(made: library.Snapshots, receipt: Mapping[str, Any]) -> list[bytes]:
    """The content ids of what Runlore may have put into a folder with this receipt."""
    empty = trees.encode((), (), ()).content
    earlier = receipt.get("snapshot")
    if not isinstance(earlier, str):
        return [empty]
    try:
        return [empty, (await made.open(earlier)).record.content]
    except (errors.RunloreError, ValueError):
        return [empty]


def _is_empty(target: Path) -> bool:
    try:
        return not os.listdir(target)
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        raise errors.TargetModified(f"{target} is a file") from None


def content_of(path: Path, without: Sequence[str]) -> bytes:
    """The content id of a folder as it would be saved. Blocking; writes nothing."""
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        rules = ignore.rules(
            (), list(without), ignore.mounts_below(os.fsencode(os.path.realpath(path))), None
        )
        cache = statcache.load(None, statcache.filesystem(root), xattrs=False)
        found = scan.scan(root, cache, rules, before=None)
        builder = building.Builder(lambda pack: None)
        return saving.build(root, builder, found, cache, before=None).record.content
    finally:
        os.close(root)


# --- what a folder began as -------------------------------------------------------------------------------


def _base_path(cache_dir: Path, folder: Path, line: lines.Line) -> Path:
    where = f"{os.path.realpath(folder)}\n{line.project}\n{line.rollout}\n{line.agent}"
    return cache_dir / BASES / f"{hashlib.sha256(where.encode('utf-8', 'surrogateescape')).hexdigest()}.json"


def remember(cache_dir: Path, folder: Path, line: lines.Line, base: lines.Base) -> None:
    """Note that `folder` now is this version of the line: what its next save replaces. Blocking."""
    path = _base_path(cache_dir, folder, line)
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {
        "folder": os.fsdecode(os.path.realpath(folder)),
        "version": base.version,
        "snapshot": base.snapshot,
    }
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(body), "utf-8")
    os.replace(temporary, path)


def began_as(cache_dir: Path, folder: Path, line: lines.Line) -> lines.Base | None:
    """What `folder` began as, if this home or a seed's receipt knows. Blocking."""
    try:
        body = json.loads(_base_path(cache_dir, folder, line).read_bytes())
        return lines.Base(int(body["version"]), body["snapshot"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    receipt = seeds.receipt_of(folder)
    if [receipt.get(name) for name in ("project", "rollout", "agent")] != [
        line.project,
        line.rollout,
        line.agent,
    ]:
        return None
    ref = receipt.get("snapshot") if not receipt.get("template") else None
    return lines.Base(int(receipt.get("version", 0)), lines.id_of(ref) if isinstance(ref, str) else None)


def row_of(head: heads.Head) -> dict[str, Any]:
    """A line as lists tell it."""
    body = head.body
    return {
        "project": body["project"],
        "rollout": body["rollout"],
        "agent": body["agent"],
        "snapshot": lines.id_of(body["ref"]) if body.get("ref") else None,
        "ref": body.get("ref"),
        "version": int(body.get("version", 0)),
        "moved_at": body["moved_at"],
        "moved_by": body.get("moved_by"),
        "versions": list(reversed(body.get("versions", ()))),
        "branches": body.get("branches", {}),
        "tags": body.get("tags", {}),
    }


async def resolve(
    made: library.Snapshots, name: str, *, rollout: str | None = None, agent: str | None = None
) -> tuple[reading.Opened, lines.Line | None, lines.Base | None]:
    """What `name` means in a project: a rollout, a tag, a branch, a seed, or the beginning of an id.

    The snapshot, the line that names it, and the base that whoever has it may replace (only for a line's head).
    Raises `errors.NotFound`, or `errors.InvalidInput` where it may mean several.
    """
    if name.startswith(seeds.PREFIX):
        seed = seeds.parse(name)
        if seed.project != made.project or seed.snapshot is None:
            raise errors.NotFound("the seed holds no workspace of this project")
        line = lines.Line(seed.project, seed.rollout, seed.agent)
        base = lines.Base(seed.base["counter"], seed.base["snapshot"])
        return await made.open(seed.snapshot), line, base
    if all(map(names.is_id, name.split("/"))) and "/" in name:
        return await made.open(name), None, None
    found = await _named(made, name, rollout, agent)
    if len(found) > 1:
        shown = ", ".join(sorted({f"{lines.id_of(ref)[:12]} ({line})" for ref, line, _ in found})[:5])
        raise errors.InvalidInput(
            f"{name!r} may mean {shown}", hint="give more of the id, or --rollout and --agent"
        )
    if found:
        ref, line, base = found[0]
        return await made.open(ref), line, base
    if len(name) == 64:
        return await made.open(name), None, None  # One that no head names may still be in its term.
    raise errors.NotFound(
        f"{name!r} is no rollout, tag, branch or snapshot of {made.project}",
        hint="`runlore snapshot ls` lists them",
    )


async def _named(
    made: library.Snapshots, name: str, rollout: str | None, agent: str | None
) -> list[tuple[str, lines.Line, lines.Base | None]]:
    """What heads call `name`: a rollout first, then tags and branches, then ids that begin so."""
    if rollout is not None:
        wanted = lines.line_of(made.project, rollout, agent)
        heads = [
            one for one in await lines.of_rollout(made.store, made.project, wanted.rollout) if one.counter
        ]
        heads = [one for one in heads if agent is None or one.body["agent"] == wanted.agent]
    else:
        heads = await lines.all_heads(made.store, made.project)
    alias = lines.line_of(made.project, name, agent) if name.strip() else None
    by_rollout, by_label, by_id = [], [], {}
    for head in heads:
        body, line = head.body, lines.line_from(head)
        base = lines.base_of(body)
        if body.get("ref") and alias and line.rollout == alias.rollout and line.agent == alias.agent:
            by_rollout.append((body["ref"], line, base))
        for label, ref in body.get("tags", {}).items():
            if label == name:
                by_label.append((ref, line, base if ref == body.get("ref") else None))
        by_label += [
            (one["ref"], line, None) for label, one in body.get("branches", {}).items() if label == name
        ]
        if len(name) >= 4:
            # Of one id's roots the head's own first, then one that is named: a tag takes no other.
            present, named = body.get("ref"), lines.named(body)
            rank = lambda ref, present=present, named=named: (ref != present, ref not in named, ref)  # noqa: E731
            for ref in sorted(lines.kept(body, head.read_at), key=rank):
                if ref.startswith(name):
                    by_id.setdefault(lines.id_of(ref), (ref, line, base if ref == present else None))
    return by_rollout or by_label or list(by_id.values())
