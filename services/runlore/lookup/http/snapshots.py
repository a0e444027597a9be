"""Routes of snapshots: lists, trees, files, archives, comparisons, and the merge of a line's branches."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from runlore import errors
from runlore.commit import heads, keys, lines
from runlore.events import ids
from runlore.lookup import merging, workspaces
from runlore.lookup.http import answers, callers, shapes
from runlore.snapshots import comparing, names, reading, tarout, trees
from runlore.upkeep import audit

router = APIRouter(prefix="/v1/projects/{project}", tags=["snapshots"])
TAR, BYTES = "application/x-tar", "application/octet-stream"
EXPORT_FORMAT = "tar1"
"""Part of an archive's ETag: another way of writing tars would be other bytes under the same snapshot."""
BRANCHES_NAMED_MAX = 256

Name = callers.Segment
Rollout = Annotated[
    str | None, Query(max_length=ids.ID_CHARS_MAX, description="Whose, where a name may be several's.")
]
Agent = Annotated[str | None, Query(max_length=ids.ID_CHARS_MAX, description="Whose workspace.")]
_MERGE_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["rollout"],
                "properties": {
                    "rollout": {"type": "string"},
                    "agent": {"type": ["string", "null"]},
                    "branches": {"type": ["array", "null"], "items": {"type": "string"}},
                    "rollouts": {"type": ["object", "null"], "additionalProperties": {"type": "string"}},
                    "base": {"type": ["string", "null"]},
                    "dry_run": {"type": "boolean"},
                    "reason": {"type": ["string", "null"]},
                },
            }
        }
    },
}


async def _found(
    request: Request, project: str, name: str, rollout: str | None, agent: str | None
) -> tuple[reading.Opened, lines.Line | None, lines.Base | None]:
    made = callers.service_of(request).snapshots(project)
    return await workspaces.resolve(made, name, rollout=rollout, agent=agent)


@router.get(
    "/snapshots",
    summary="The lines of workspaces, the one that moved last first",
    responses=shapes.answers(shapes.Page),
)
async def listed(
    request: Request,
    project: callers.Project,
    _: Annotated[Any, callers.needs(callers.READ)],
    limit: callers.Limit = callers.PAGE,
    cursor: callers.Cursor = None,
) -> Response:
    service = callers.service_of(request)
    after = answers.place_of(cursor, str, str, str)
    rows = await service.lists.page(lambda index: index.snapshots(project, limit=limit + 1, after=after))
    wanted = [keys.snapshot_head(project, row["rollout"], row["agent"]) for row in rows[:limit]]
    stored = await service.store.get_many(wanted)
    # The index says which; what each line is, its head says.
    shown = [
        workspaces.row_of(heads.parse(key, one, fmt=lines.HEAD_FORMAT))
        for key, one in zip(wanted, stored, strict=True)
        if one is not None
    ]
    body = answers.page(
        rows, limit, lambda row: answers.cursor_of(row["moved_at"], row["rollout"], row["agent"])
    )
    return await answers.found(request, {**body, "items": shown})


@router.post(
    "/snapshots/merge",
    summary="A line's branches merged into its version",
    openapi_extra={"requestBody": _MERGE_BODY},
    responses=shapes.answers(shapes.Merged),
)
async def merge(
    request: Request, project: callers.Project, _: Annotated[Any, callers.needs(callers.WRITE)]
) -> Response:
    service = callers.service_of(request)
    body = await answers.object_of(request)
    rollout, agent = _text(body, "rollout"), _text(body, "agent")
    branches, reason, dry_run = body.get("branches"), _text(body, "reason"), body.get("dry_run", False)
    is_list = isinstance(branches, list) and all(isinstance(one, str) for one in branches)
    if rollout is None or not (branches is None or (is_list and len(branches) <= BRANCHES_NAMED_MAX)):
        raise errors.InvalidInput("`rollout` is needed, and `branches` is a list of names, if any")
    if type(dry_run) is not bool:
        raise errors.InvalidInput("`dry_run` is neither true nor false")
    made, line = service.snapshots(project), lines.line_of(project, rollout, agent)
    others = _labelled(body)

    async def work() -> merging.Done:
        if others:
            return await merging.merge_rollouts(made, line, others, base=_text(body, "base"), dry_run=dry_run)
        return await merging.merge_branches(made, line, branches or None, dry_run=dry_run)

    if dry_run:
        done = await work()
    else:
        async with audit.acting(
            service.store,
            by=callers.caller(request),
            what="snapshot merge",
            projects=[project],
            reason=reason,
            arguments={"line": str(line), "branches": sorted(others) if others else branches},
        ) as act:
            done = await work()
            act.result |= {"state": done.state, "snapshot": done.saved.id if done.saved else None}
    return await answers.found(request, merging.told(done, line, dry_run=dry_run))


def _labelled(body: dict[str, Any]) -> dict[str, str]:
    """Other rollouts to merge, by what each is called in conflicts."""
    given = body.get("rollouts") or {}
    is_map = isinstance(given, dict) and all(isinstance(one, str) for one in given.values())
    if not is_map or len(given) > BRANCHES_NAMED_MAX:
        raise errors.InvalidInput("`rollouts` is an object of labels and rollouts")
    for label in given:
        ids.check_id(label, "label")
    return given


def _text(body: dict[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise errors.InvalidInput(f"`{name}` is not text")
    return value if value and value.strip() else None


@router.get("/snapshots/{snapshot}", summary="A snapshot", responses=shapes.answers(shapes.Snapshot))
async def one(
    request: Request,
    project: callers.Project,
    snapshot: Name,
    _: Annotated[Any, callers.needs(callers.READ)],
    rollout: Rollout = None,
    agent: Agent = None,
) -> Response:
    found, line, base = await _found(request, project, snapshot, rollout, agent)
    record = found.record
    body = {
        "snapshot": found.ref.id,
        "ref": str(found.ref),
        "content": record.content.hex(),
        "kind": record.kind,
        "files": record.files,
        "dirs": record.dirs,
        "links": record.links,
        "bytes": record.bytes,
        "saved_at": found.root.saved_at,
        "report": await found.report(),
        "rollout": line.rollout if line else None,
        "agent": line.agent if line else None,
        "base": {"counter": base.version, "snapshot": base.snapshot} if base else None,
    }
    etag = answers.quoted(found.ref.id, base.version if base else 0, weak=True)
    return await answers.found(request, body, etag=etag)


@router.get(
    "/snapshots/{snapshot}/archive.tar",
    summary="A snapshot as a tar",
    responses=shapes.content(TAR, "A plain tar; 206 with `Range`"),
)
async def archive(
    request: Request,
    project: callers.Project,
    snapshot: Name,
    _: Annotated[Any, callers.needs(callers.READ)],
    rollout: Rollout = None,
    agent: Agent = None,
) -> Response:
    found, _line, _base = await _found(request, project, snapshot, rollout, agent)

    async def content() -> answers.Files:
        export = await tarout.export(found)
        size = export.size if isinstance(export, tarout.Export) else found.record.bytes
        return answers.Files(export, size)  # type: ignore[arg-type]

    return await answers.stream(
        request,
        content,
        gate=callers.service_of(request).downloads,
        project=project,
        etag=answers.quoted(found.ref.id, EXPORT_FORMAT),
        media_type=TAR if found.record.kind == trees.TREE else BYTES,
        immutable=snapshot == found.ref.id,
        headers={"Runlore-Snapshot": found.ref.id},
    )


@router.get(
    "/snapshots/{snapshot}/tree", summary="The entries of one folder", responses=shapes.answers(shapes.Page)
)
async def tree(
    request: Request,
    project: callers.Project,
    snapshot: Name,
    _: Annotated[Any, callers.needs(callers.READ)],
    path: Annotated[str, Query(max_length=8192, description="The folder; the root without it.")] = "",
    limit: callers.Limit = callers.PAGE,
    cursor: callers.Cursor = None,
    rollout: Rollout = None,
    agent: Agent = None,
) -> Response:
    after = answers.place_of(cursor, str)
    found, _line, _base = await _found(request, project, snapshot, rollout, agent)
    entry = await found.lookup(names.from_text(path))
    if entry is not None and not isinstance(entry, trees.Dir):
        raise errors.InvalidInput(f"{path!r} is no folder", hint="GET …/files/{path} gives a file")
    folder = await found.tree(entry.tree if entry is not None else found.whole().tree)
    start = names.from_text(after[0]) if after else None
    rows = [one for one in folder.entries() if start is None or one.name > start][: limit + 1]
    prefix = path.strip("/") + "/" if path.strip("/") else ""
    body = answers.page(
        rows,
        limit,
        lambda row: answers.cursor_of(names.to_text(row.name)),
        lambda row: _entry(prefix, row),
    )
    etag = answers.quoted(found.ref.id, "tree")
    return await answers.found(request, body, etag=etag, immutable=snapshot == found.ref.id)


def _entry(prefix: str, entry: trees.Entry) -> dict[str, Any]:
    name = names.to_text(entry.name)
    row: dict[str, Any] = {"name": name, "path": prefix + name, "kind": type(entry).__name__.lower()}
    if isinstance(entry, trees.Link):
        return {**row, "target": names.to_text(entry.target), "mtime_ns": entry.mtime_ns}
    row |= {"mode": entry.mode, "mtime_ns": entry.mtime_ns}
    return {**row, "bytes": entry.size} if isinstance(entry, trees.File) else row


@router.get(
    "/snapshots/{snapshot}/files/{path:path}",
    summary="The bytes of one file",
    responses=shapes.content(BYTES, "The bytes; 206 with `Range`"),
)
async def file(
    request: Request,
    project: callers.Project,
    snapshot: Name,
    path: callers.Segment,
    _: Annotated[Any, callers.needs(callers.READ)],
    rollout: Rollout = None,
    agent: Agent = None,
) -> Response:
    found, _line, _base = await _found(request, project, snapshot, rollout, agent)
    return await bytes_of(request, project, found, path, immutable=snapshot == found.ref.id)


async def file_of(found: reading.Opened, path: str) -> trees.File:
    """The file at `path`. Raises `errors.PathNotFound`, and `errors.InvalidInput` where it is none."""
    entry = await found.lookup(names.from_text(path))
    if isinstance(entry, trees.File):
        return entry
    what = "a link; it is not followed" if isinstance(entry, trees.Link) else "a folder"
    raise errors.InvalidInput(f"{path!r} is {what}")


async def bytes_of(
    request: Request,
    project: str,
    found: reading.Opened,
    path: str,
    *,
    immutable: bool,
    headers: dict[str, str] | None = None,
) -> Response:
    """The bytes of a file, with `Range`. Raises as `file_of`."""
    entry = await file_of(found, path)

    async def content() -> answers.Pieces:
        return answers.Pieces(
            entry.size, lambda start, length: found.content(entry, offset=start, length=length)
        )

    return await answers.stream(
        request,
        content,
        gate=callers.service_of(request).downloads,
        project=project,
        etag=answers.quoted(found.ref.id, names.blob_id(path.encode("utf-8", "surrogatepass")).hex()[:32]),
        media_type=BYTES,
        immutable=immutable,
        headers=headers,
    )


@router.get(
    "/snapshots/{snapshot}/diff",
    summary="What differs between two snapshots",
    responses=shapes.answers(shapes.Changes),
)
async def diff(
    request: Request,
    project: callers.Project,
    snapshot: Name,
    _: Annotated[Any, callers.needs(callers.READ)],
    to: Annotated[str, Query(max_length=ids.ID_CHARS_MAX, description="The other snapshot, named as this.")],
    limit: callers.Limit = callers.PAGE,
    cursor: callers.Cursor = None,
    rollout: Rollout = None,
    agent: Agent = None,
) -> Response:
    after = answers.place_of(cursor, str, str, int)
    # A page goes on between the snapshots that its first began with, whatever their names mean by now.
    old, new = after[:2] if after else (snapshot, to)
    one, _line, _base = await _found(request, project, old, rollout, agent)
    two, _line, _base = await _found(request, project, new, rollout, agent)
    passed, rows = (after[2] if after else 0), []
    number = 0
    async for change in comparing.diff(one, two):
        number += 1
        if number > passed:
            rows.append((number, change))
        if len(rows) > limit:
            break
    body = answers.page(
        rows,
        limit,
        lambda row: answers.cursor_of(str(one.ref), str(two.ref), row[0]),
        lambda row: row[1].as_dict(),
    )
    answer = {"from": one.ref.id, "to": two.ref.id, "changes": body["items"], "next": body["next"]}
    return await answers.found(request, answer)
