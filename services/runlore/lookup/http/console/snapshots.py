"""Pages of snapshots: lines of versions, trees, files, differences, and the merge of a line's branches."""

from __future__ import annotations

import asyncio
import difflib
import posixpath
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from runlore import errors
from runlore.commit import heads, lines
from runlore.events import ids
from runlore.lookup import merging, workspaces
from runlore.lookup.http import answers, callers
from runlore.lookup.http import snapshots as routes
from runlore.lookup.http.console import operations, pages, sessions, texts
from runlore.snapshots import comparing, names, reading, trees
from runlore.upkeep import audit

router = APIRouter(
    prefix="/projects/{project}",
    include_in_schema=False,
    dependencies=[Depends(pages.asked_by_a_browser)],
    route_class=pages.Route,
)
LINES_SHOWN = 50
ENTRIES_SHOWN = 200
CHANGES_SHOWN = 200
VERSIONS_SHOWN = 100
FILE_BYTES_MAX = 256 * 1024
"""So much of a file is read to be shown; the whole can be saved."""

Viewer = Annotated[sessions.Viewer, sessions.sees(callers.READ)]
Writer = Annotated[sessions.Viewer, sessions.sees(callers.WRITE)]
Name = callers.Segment
FilePath = Annotated[str, Query(max_length=8192)]


async def _open(request: Request, project: str, snapshot: str) -> reading.Opened:
    made = callers.service_of(request).snapshots(project)
    return (await workspaces.resolve(made, snapshot))[0]


@router.get("/snapshots")
async def listed(
    request: Request, project: callers.Project, viewer: Viewer, cursor: callers.Cursor = None
) -> Response:
    """The lines of workspaces, the one that moved last first."""
    service, after = callers.service_of(request), answers.place_of(cursor, str, str, str)
    rows = await service.lists.page(
        lambda index: index.snapshots(project, limit=LINES_SHOWN + 1, after=after)
    )
    page = answers.page(
        rows, LINES_SHOWN, lambda row: answers.cursor_of(row["moved_at"], row["rollout"], row["agent"])
    )
    return await pages.shown(request, "lines.html", title=f"Snapshots · {project}", page=page)


async def _line(request: Request, project: str, rollout: str, agent: str) -> tuple[lines.Line, heads.Head]:
    line = lines.Line(project, ids.as_alias(rollout), ids.as_alias(agent))
    head = await lines.read(callers.service_of(request).store, line)
    if not head.counter:
        raise errors.NotFound("the project has no such line of snapshots")
    return line, head


def _line_url(line: lines.Line, **query: object) -> str:
    return pages.url("projects", line.project, "lines", line.rollout, line.agent, **query)


@router.get("/lines/{rollout}/{agent}")
async def line(
    request: Request, project: callers.Project, rollout: Name, agent: Name, viewer: Viewer
) -> Response:
    """A line: its version, the ones before it, branches and tags."""
    found, head = await _line(request, project, rollout, agent)
    return await _line_page(request, found, head)


async def _line_page(
    request: Request, found: lines.Line, head: heads.Head, merged: dict[str, Any] | None = None
) -> Response:
    body = head.body
    now = [{"ref": body["ref"], "version": body["version"], "at": body["version_at"], "by": body["moved_by"]}]
    versions = (now if body.get("ref") else []) + list(reversed(body.get("versions", ())))
    shown = versions[:VERSIONS_SHOWN]
    for one, before in zip(shown, [*versions[1:], None], strict=False):
        one["before"] = before["ref"] if before else None
    return await pages.shown(
        request,
        "line.html",
        title=f"Snapshots of {found.rollout}",
        line=found,
        body=body,
        versions=shown,
        branches=sorted(body.get("branches", {}).items()),
        tags=sorted(body.get("tags", {}).items()),
        merged=merged,
    )


@router.post("/lines/{rollout}/{agent}/merge")
async def merge(
    request: Request, project: callers.Project, rollout: Name, agent: Name, viewer: Writer
) -> Response:
    """The line's branches into its version; or, to try it, what that would give."""
    fields = await sessions.form_of(request, viewer)
    found, head = await _line(request, project, rollout, agent)
    service = callers.service_of(request)
    made = service.snapshots(project)
    if "try" in fields:
        done = await merging.merge_branches(made, found, dry_run=True)
        return await _line_page(request, found, head, merging.told(done, found, dry_run=True))
    reason = operations.reason_of(fields)
    async with audit.acting(
        service.store,
        by=viewer.by(),
        what="snapshot merge",
        projects=[project],
        reason=reason,
        arguments={"line": str(found), "branches": None},
    ) as act:
        done = await merging.merge_branches(made, found)
        act.result |= {"state": done.state, "snapshot": done.saved.id if done.saved else None}
    return pages.go(_line_url(found, done="branched" if done.state == lines.BRANCHED else "merged"))


# --- one snapshot ----------------------------------------------------------------------------------------------


def _crumbs(base: str, path: str) -> list[tuple[str, str]]:
    """(name, address) of every folder down to `path`."""
    found, at = [], ""
    for part in [one for one in path.split("/") if one]:
        at = f"{at}/{part}" if at else part
        found.append((part, f"{base}/tree?{pages.urlencode({'path': at})}"))
    return found


def _snapshot_url(project: str, ref: object) -> str:
    return pages.url("projects", project, "snapshots", ref)


@router.get("/snapshots/{snapshot}/tree")
async def tree(
    request: Request,
    project: callers.Project,
    snapshot: Name,
    viewer: Viewer,
    path: FilePath = "",
    cursor: callers.Cursor = None,
) -> Response:
    """One folder of a snapshot."""
    after = answers.place_of(cursor, str)
    found = await _open(request, project, snapshot)
    base = _snapshot_url(project, found.ref)
    if found.record.kind != trees.TREE:
        title = f"Snapshot {found.ref.id[:12]}"
        return await pages.shown(request, "native.html", title=title, found=found, base=base)
    entry = await found.lookup(names.from_text(path))
    if entry is not None and not isinstance(entry, trees.Dir):
        return pages.go(f"{base}/file?{pages.urlencode({'path': path})}")
    folder = await found.tree(entry.tree if entry is not None else found.whole().tree)
    start = names.from_text(after[0]) if after else None
    rows = [one for one in folder.entries() if start is None or one.name > start][: ENTRIES_SHOWN + 1]
    prefix = path.strip("/") + "/" if path.strip("/") else ""
    page = answers.page(
        rows,
        ENTRIES_SHOWN,
        lambda row: answers.cursor_of(names.to_text(row.name)),
        lambda row: _entry(base, prefix, row),
    )
    return await pages.shown(
        request,
        "tree.html",
        title=f"Snapshot {found.ref.id[:12]}",
        found=found,
        base=base,
        path=path.strip("/"),
        crumbs=_crumbs(base, path),
        page=page,
        report=(await found.report())["counts"] if not path.strip("/") and after is None else {},
    )


def _entry(base: str, prefix: str, entry: trees.Entry) -> dict[str, Any]:
    name = names.to_text(entry.name)
    kind = type(entry).__name__.lower()
    where = "tree" if kind == "dir" else "file"
    return {
        "name": name,
        "kind": kind,
        "href": f"{base}/{where}?{pages.urlencode({'path': prefix + name})}",
        "bytes": entry.size if isinstance(entry, trees.File) else None,
        "target": names.to_text(entry.target) if isinstance(entry, trees.Link) else None,
        "is_executable": isinstance(entry, trees.File) and bool(entry.mode & 0o111),
    }


async def _head_of(found: reading.Opened, entry: trees.File) -> bytes:
    """The first bytes of a file: as much as is shown."""
    pieces = [piece async for piece in found.content(entry, offset=0, length=FILE_BYTES_MAX)]
    return b"".join(pieces)


@router.get("/snapshots/{snapshot}/file")
async def file(
    request: Request,
    project: callers.Project,
    snapshot: Name,
    path: FilePath,
    viewer: Viewer,
    first: Annotated[int, Query(ge=1, le=10**9, alias="from")] = 1,
) -> Response:
    """A file of a snapshot: its lines, or the head of its bytes where it is no text."""
    found = await _open(request, project, snapshot)
    entry = await routes.file_of(found, path)
    raw = await _head_of(found, entry)
    is_cut = entry.size > len(raw)
    text = texts.as_text(raw, is_cut=is_cut)
    split = text.splitlines() if text is not None else []
    base = _snapshot_url(project, found.ref)
    return await pages.shown(
        request,
        "snapshot_file.html",
        title=f"{posixpath.basename(path)} · snapshot {found.ref.id[:12]}",
        found=found,
        base=base,
        path=path,
        crumbs=_crumbs(base, posixpath.dirname(path)),
        entry=entry,
        is_text=text is not None,
        is_cut=is_cut,
        read=len(raw),
        lines=texts.lines_of(split, first),
        count=len(split),
        first=first,
        step=texts.LINES_MAX,
        rows=[] if text is not None else texts.hex_lines(raw),
        hex_bytes=texts.HEX_BYTES_MAX,
    )


@router.get("/snapshots/{snapshot}/raw")
async def raw(
    request: Request, project: callers.Project, snapshot: Name, path: FilePath, viewer: Viewer
) -> Response:
    """The bytes of a file, to be saved."""
    found = await _open(request, project, snapshot)
    saved = pages.attachment(posixpath.basename(path))
    return await routes.bytes_of(request, project, found, path, immutable=False, headers=saved)


# --- what differs ------------------------------------------------------------------------------------------------


@router.get("/compare")
async def compare(
    request: Request,
    project: callers.Project,
    viewer: Viewer,
    one: Annotated[str, Query(alias="from", min_length=1, max_length=ids.ID_CHARS_MAX)],
    two: Annotated[str, Query(alias="to", min_length=1, max_length=ids.ID_CHARS_MAX)],
) -> Response:
    """From two snapshots that were chosen to what differs between them."""
    return pages.go(pages.url("projects", project, "snapshots", one, "diff", to=two))


@router.get("/snapshots/{snapshot}/diff")
async def diff(
    request: Request,
    project: callers.Project,
    snapshot: Name,
    viewer: Viewer,
    to: Annotated[str, Query(min_length=1, max_length=ids.ID_CHARS_MAX)],
    path: FilePath = "",
    cursor: callers.Cursor = None,
) -> Response:
    """What differs between two snapshots; with a path, the lines of that file."""
    one, two = await _open(request, project, snapshot), await _open(request, project, to)
    base = _snapshot_url(project, one.ref)
    shared = {"one": one, "two": two, "base": base, "path": path}
    title = f"{one.ref.id[:12]} to {two.ref.id[:12]}"
    if path:
        return await pages.shown(
            request,
            "snapshot_file_diff.html",
            title=f"{posixpath.basename(path)} · {title}",
            **shared,
            diff=await _file_diff(one, two, path),
        )
    passed = (answers.place_of(cursor, int) or (0,))[0]
    rows: list[tuple[int, dict[str, object]]] = []
    number = 0
    async for change in comparing.diff(one, two):
        number += 1
        if number > passed:
            rows.append((number, change.as_dict()))
        if len(rows) > CHANGES_SHOWN:
            break
    page = answers.page(rows, CHANGES_SHOWN, lambda row: answers.cursor_of(row[0]), lambda row: row[1])
    return await pages.shown(request, "snapshot_diff.html", title=title, **shared, page=page)


@dataclass(frozen=True)
class FileDiff:
    """The lines of a file that differ, or why they are not shown; and which of the two snapshots have it."""

    has: tuple[bool, bool]
    lines: list[texts.Changed]
    why: str = ""


async def _file_diff(one: reading.Opened, two: reading.Opened, path: str) -> FileDiff:
    entries: list[trees.File | None] = []
    for found in (one, two):
        try:
            entries.append(await routes.file_of(found, path))
        except errors.PathNotFound:
            entries.append(None)
    has = (entries[0] is not None, entries[1] is not None)
    if not any(has):
        raise errors.PathNotFound(f"neither snapshot has {path!r}")
    sides: list[list[str]] = []
    for found, entry in zip((one, two), entries, strict=True):
        if entry is not None and entry.size > FILE_BYTES_MAX:
            most = texts.size(FILE_BYTES_MAX)
            return FileDiff(has, [], f"It is larger than {most}: lines are compared of smaller files alone.")
        text = texts.as_text(await _head_of(found, entry), is_cut=False) if entry is not None else ""
        if text is None:
            return FileDiff(has, [], "It is no text.")
        sides.append(text.splitlines(keepends=True))
    made = await asyncio.to_thread(lambda: list(difflib.unified_diff(*sides, n=3)))
    joined = "".join(line if line.endswith("\n") else line + "\n" for line in made)
    return FileDiff(has, texts.changed(joined), "" if made else "Its lines are the same.")
