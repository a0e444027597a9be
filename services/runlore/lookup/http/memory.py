"""Routes of memory: revisions, their files and differences, why a line is there, search; and where a run is."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from runlore import errors
from runlore.commit import revisions
from runlore.events import ids
from runlore.lookup import asking, explain, index, memories, waiting
from runlore.lookup import rows as rows_of
from runlore.lookup import why as lookup_why
from runlore.lookup.http import answers, callers, shapes
from runlore.lookup.http.service import WAIT_SECONDS_MAX

router = APIRouter(prefix="/v1/projects/{project}", tags=["memory"])
QUERY_CHARS_MAX = 1000
NUMBER_CHARS_MAX = 9
NAME_CHARS_MAX = 63

Rollout = Annotated[
    str | None, Query(max_length=ids.ID_CHARS_MAX, description="As a seed that continues this rollout.")
]
Number = Annotated[callers.Segment, "A revision's number, or `head`."]
Side = Annotated[
    str | None, Query(max_length=NAME_CHARS_MAX, description="A side line instead of the memory's own.")
]


def _number(text: str) -> int | None:
    """The revision that a path names; None for the newest. Raises `errors.InvalidInput`."""
    if text == "head":
        return None
    if text.isascii() and text.isdigit() and len(text) <= NUMBER_CHARS_MAX:
        return int(text)
    raise errors.InvalidInput("a revision is a number, or `head`")


async def _files(
    request: Request,
    project: str,
    memory: str,
    n: str,
    subject: str | None,
    rollout: str | None,
    side: str | None = None,
) -> tuple[revisions.Revision, dict[str, Any]]:
    revision = await callers.service_of(request).reader.at(project, memory, _number(n), side=side)
    alias = ids.alias(rollout.strip()) if rollout and rollout.strip() else None
    # Off the loop: it reads and verifies every part.
    return revision, await asyncio.to_thread(memories.compose, revision, memories.whom_of(subject), alias)


def _file(files: dict[str, Any], path: str) -> Any:
    """The file at exactly this path, which is one that the revision lists. Raises `errors.NotFound`."""
    if path not in files:
        raise errors.NotFound(f"the revision has no file {path!r}")
    return files[path]


def _is_fixed(n: str, side: str | None) -> bool:
    """Whether a number names the same for ever: that of a side line may begin again under its name."""
    return n != "head" and side is None


def _etag(revision: revisions.Revision, is_fixed: bool, *more: object) -> str:
    return answers.quoted(revision.sha256, *more, weak=not is_fixed)


@router.get("/memories", summary="The memories of the project", responses=shapes.answers(shapes.Page))
async def listed(
    request: Request,
    project: callers.Project,
    _: Annotated[Any, callers.needs(callers.READ)],
    limit: callers.Limit = callers.PAGE,
    cursor: callers.Cursor = None,
) -> Response:
    after = answers.place_of(cursor, str)
    rows = await callers.service_of(request).lists.page(lambda found: found.memories(project))
    behind = [row for row in rows if after is None or row["memory"] > after[0]][: limit + 1]
    shown = ("memory", "revision", "rollouts", "runs", "held", "moved_at")
    body = answers.page(
        behind,
        limit,
        lambda row: answers.cursor_of(row["memory"]),
        lambda row: {name: row[name] for name in shown},
    )
    return await answers.found(request, body)


@router.get(
    "/memories/{memory}/revisions",
    summary="The revisions of a memory, newest first",
    responses=shapes.answers(shapes.Page),
)
async def log(
    request: Request,
    project: callers.Project,
    memory: callers.Memory,
    _: Annotated[Any, callers.needs(callers.READ)],
    limit: callers.Limit = callers.PAGE,
    cursor: callers.Cursor = None,
    side: Side = None,
) -> Response:
    after = answers.place_of(cursor, int, str)
    reader = callers.service_of(request).reader
    ids.check_name(memory, "memory")
    rows: list[dict[str, Any]] = []
    try:
        line = reader.line_from(project, memory, after) if after else reader.line(project, memory, side=side)
        async for body in line:
            rows.append(body)
            if len(rows) > limit:
                break
    except (errors.Corrupt, errors.InvalidId):
        if rows or after is None:
            raise
        raise errors.InvalidInput("the cursor is none that this list gave") from None
    if not rows and after is None:
        await reader.at(project, memory, side=side)  # It says that there is none.
    page = answers.page(
        rows,
        limit,
        lambda row: answers.cursor_of(int(row["parent"]["revision"]), str(row["parent"]["manifest"])),
        memories.log_row,
    )
    etag = answers.quoted(rows[0]["sha256"] if rows else "end", limit, weak=True)
    return await answers.found(request, page, etag=etag)


@router.get(
    "/memories/{memory}/revisions/{n}",
    summary="The files of a revision",
    responses=shapes.answers(shapes.Revision),
)
async def files(
    request: Request,
    project: callers.Project,
    memory: callers.Memory,
    n: Number,
    _: Annotated[Any, callers.needs(callers.READ)],
    subject: callers.Subject = None,
    rollout: Rollout = None,
    side: Side = None,
) -> Response:
    revision, found = await _files(request, project, memory, n, subject, rollout, side)
    body = {
        "project": project,
        "memory": memory,
        "revision": revision.number,
        "created_at": revision.body["created_at"],
        "layout": dict(revision.body["layout"]),
        "files": memories.sizes((path, one.text) for path, one in sorted(found.items())),
    }
    return await answers.found(
        request, body, etag=_etag(revision, _is_fixed(n, side), "files"), immutable=_is_fixed(n, side)
    )


@router.get(
    "/memories/{memory}/revisions/{n}/files/{path:path}",
    summary="One file of a revision",
    responses=shapes.content("text/plain", "The file"),
)
async def file(
    request: Request,
    project: callers.Project,
    memory: callers.Memory,
    n: Number,
    path: callers.Segment,
    _: Annotated[Any, callers.needs(callers.READ)],
    subject: callers.Subject = None,
    rollout: Rollout = None,
    side: Side = None,
) -> Response:
    revision, found = await _files(request, project, memory, n, subject, rollout, side)
    one = _file(found, path)
    etag = _etag(revision, _is_fixed(n, side), memories.sizes([(path, one.text)])[0]["sha256"])
    return await answers.text(request, one.text, etag=etag, immutable=_is_fixed(n, side))


@router.get(
    "/memories/{memory}/revisions/{n}/why/{path:path}",
    summary="What supports a line",
    responses=shapes.answers(shapes.Why),
)
async def why(
    request: Request,
    project: callers.Project,
    memory: callers.Memory,
    n: Number,
    path: callers.Segment,
    line: Annotated[int, Query(ge=1, description="From 1.")],
    _: Annotated[Any, callers.needs(callers.READ)],
    subject: callers.Subject = None,
    rollout: Rollout = None,
    side: Side = None,
) -> Response:
    revision, found = await _files(request, project, memory, n, subject, rollout, side)
    one = _file(found, path)
    texts = one.text.splitlines()
    if line > len(texts):
        raise errors.NotFound(f"{path} has {len(texts)} lines, not {line}")
    store, whom = callers.service_of(request).store, memories.whom_of(subject)
    notes = await lookup_why.of_line(store, revision, one, line, subject=whom)
    body = {"revision": revision.number, "path": path, "line": line, "text": texts[line - 1], "notes": notes}
    return await answers.found(request, body)


@router.get(
    "/memories/{memory}/diff",
    summary="What changed between two revisions",
    responses=shapes.answers(shapes.Difference),
)
async def diff(
    request: Request,
    project: callers.Project,
    memory: callers.Memory,
    _: Annotated[Any, callers.needs(callers.READ)],
    older: Annotated[
        int | None, Query(alias="from", ge=0, description="Older revision (else `to`'s parent).")
    ] = None,
    newer: Annotated[
        int | None, Query(alias="to", ge=1, description="Newer revision (else the newest).")
    ] = None,
    subject: callers.Subject = None,
) -> Response:
    after_n = "head" if newer is None else str(newer)
    revision, after = await _files(request, project, memory, after_n, subject, None)
    begin = revision.number - 1 if older is None else older
    before = (await _files(request, project, memory, str(begin), subject, None))[1] if begin else {}
    changes = await asyncio.to_thread(memories.changes, before, after)
    body = {"project": project, "memory": memory, "from": begin, "to": revision.number, "files": changes}
    etag = answers.quoted("diff", begin, revision.sha256, weak=newer is None)
    return await answers.found(request, body, etag=etag, immutable=newer is not None)


@router.get(
    "/memories/{memory}/rollouts",
    summary="The rollouts of a memory, newest first",
    responses=shapes.answers(shapes.Page),
)
async def rollouts(
    request: Request,
    project: callers.Project,
    memory: callers.Memory,
    _: Annotated[Any, callers.needs(callers.READ)],
    limit: callers.Limit = callers.PAGE,
    cursor: callers.Cursor = None,
) -> Response:
    after = answers.place_of(cursor, str, str)
    lists = callers.service_of(request).lists
    rows = await lists.page(lambda found: found.rollouts(project, memory, limit=limit + 1, after=after))
    shown = ("rollout", "kind", "original", "subject", "runs", "updated_at", "moved_at")
    body = answers.page(
        rows,
        limit,
        lambda row: answers.cursor_of(rows_of.place(row["updated_at"]), row["rollout"]),
        lambda row: {name: row[name] for name in shown},
    )
    return await answers.found(request, body)


@router.get(
    "/memories/{memory}/search",
    summary="Search the summaries of a memory's rollouts",
    responses=shapes.answers(shapes.Results),
)
async def search(
    request: Request,
    project: callers.Project,
    memory: callers.Memory,
    q: Annotated[
        str, Query(min_length=1, max_length=QUERY_CHARS_MAX, description="Words that must all occur.")
    ],
    _: Annotated[Any, callers.needs(callers.READ)],
    subject: callers.Subject = None,
    limit: Annotated[int, Query(ge=1, le=index.RESULTS_MAX)] = 20,
) -> Response:
    service, whom = callers.service_of(request), memories.whom_of(subject)
    rows = await service.lists.ask(lambda found: found.search(q, project, memory, subject=whom, limit=limit))
    head = await service.reader.head(project, memory) if rows else None
    rows = memories.let_in(rows, head) if head else []
    found = await service.composed(project, memory, head, whom) if head else None
    words = memories.words_of(q)
    results = []
    for row in rows:
        path, line = found.place(row["rollout"], words) if found else (None, None)
        results.append({**row, "path": path, "line": line})
    number = int(head.body.get("revision", 0)) if head else 0
    return await answers.found(
        request, {"project": project, "memory": memory, "revision": number, "results": results}
    )


# --- runs -----------------------------------------------------------------------------------------------------


@router.get("/runs", summary="The newest runs", tags=["runs"], responses=shapes.answers(shapes.Page))
async def runs(
    request: Request,
    project: callers.Project,
    _: Annotated[Any, callers.needs(callers.READ)],
    limit: callers.Limit = callers.PAGE,
    cursor: callers.Cursor = None,
) -> Response:
    after = answers.place_of(cursor, *rows_of.RUN_PLACE)
    rows = await callers.service_of(request).lists.page(
        lambda found: found.recent_runs(project, limit=limit + 1, after=after)
    )
    shown = ("memory", "rollout", "run", "attempt", "event", "ended_at", "superseded")
    body = answers.page(
        rows,
        limit,
        lambda row: answers.cursor_of(*rows_of.run_place(row)),
        lambda row: {name: bool(row[name]) if name == "superseded" else row[name] for name in shown},
    )
    return await answers.found(request, body)


@router.get(
    "/runs/{run}",
    summary="Where a run, an event or a rollout is",
    tags=["runs"],
    responses=shapes.answers(shapes.Stories),
)
async def run(
    request: Request,
    project: callers.Project,
    run: callers.Segment,
    _: Annotated[Any, callers.needs(callers.READ)],
    wait_seconds: Annotated[
        float, Query(ge=0, le=WAIT_SECONDS_MAX, description="Wait so long until each has come to an end.")
    ] = 0.0,
    with_model: Annotated[bool, Query(description="Wait for what a model adds, too.")] = False,
    rollout: Annotated[
        str | None, Query(max_length=ids.ID_CHARS_MAX, description="Only runs of this rollout.")
    ] = None,
) -> Response:
    service = callers.service_of(request)
    ids.check_id(run, "run")
    alias = ids.alias(rollout.strip()) if rollout and rollout.strip() else None

    async def tell() -> list[explain.Story]:
        rows = await service.lists.ask(lambda found: explain.rows_of(found, run, project))
        where = (service.store, service.bus, service.reader, run, rows)
        found = await explain.tell(*where, project=project, known=await service.knows())
        return [one for one in found if alias in (None, one.rollout) or one.rollout is None]

    if not wait_seconds:
        return await answers.found(request, {"runs": [dataclasses.asdict(one) for one in await tell()]})
    asker = asking.Asker(service.store, service.bus, service.reader, letters=service.letters)
    ended = await waiting.wait_for(
        tell,
        asker,
        run,
        seconds=wait_seconds,
        with_model=with_model,
        stopping=service.stopping.is_set,
    )
    return await answers.found(request, {"runs": [one.as_dict() for one in ended]})
