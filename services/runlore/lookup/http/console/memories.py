"""Pages of memories: the project's list, revisions on a time line, files, differences, why for a line."""

from __future__ import annotations

import asyncio
import posixpath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from runlore import errors
from runlore.commit import revisions
from runlore.events import ids
from runlore.lookup import index as lookup_index
from runlore.lookup import memories
from runlore.lookup import why as lookup_why
from runlore.lookup.http import answers, callers
from runlore.lookup.http.console import charts, pages, sessions, texts
from runlore.memory import render

router = APIRouter(
    prefix="/projects/{project}",
    include_in_schema=False,
    dependencies=[Depends(pages.asked_by_a_browser)],
    route_class=pages.Route,
)
MEMORIES_SHOWN = 100
REVISIONS_SHOWN = 25
COVERED_SHOWN = 12
FIRST_FILES = ("memory_summary.md", "MEMORY.md")
"""What somebody who opens a revision most likely wants to read."""
DIFF_FILES_MAX = 50

Viewer = Annotated[sessions.Viewer, sessions.sees(callers.READ)]
Number = Annotated[int, "A revision's number."]
Path = callers.Segment
NUMBER_MAX = 10**9


@router.get("")
async def overview(
    request: Request, project: callers.Project, viewer: Viewer, cursor: callers.Cursor = None
) -> Response:
    """A project: its memories, and how many runs ended on each day."""
    lists, names = callers.service_of(request).lists, charts.days()
    after = answers.place_of(cursor, str)
    rows = await lists.page(lambda index: index.memories(project))
    behind = [row for row in rows if after is None or row["memory"] > after[0]][: MEMORIES_SHOWN + 1]
    page = answers.page(behind, MEMORIES_SHOWN, lambda row: answers.cursor_of(row["memory"]))
    # On a thread: a busy month is many rows.
    counts = await lists.ask(lambda index: index.runs_by_day(project, names))
    chart = charts.per_day(names, counts, lookup_index.DAY_RUNS_MAX)
    return await pages.shown(
        request, "project.html", title=project, page=page, chart=chart, is_first=after is None
    )


@router.get("/memories/{memory}")
async def memory(
    request: Request,
    project: callers.Project,
    memory: callers.Memory,
    viewer: Viewer,
    cursor: callers.Cursor = None,
) -> Response:
    """A memory: its revisions on a time line, newest first, and what is held."""
    after = answers.place_of(cursor, int, str)
    reader = callers.service_of(request).reader
    ids.check_name(memory, "memory")
    head = await reader.head(project, memory)
    if not head.counter:
        await _known(request, project, memory)
    start = after or (
        (int(head.body["revision"]), str(head.body["manifest"])) if head.body.get("manifest") else None
    )
    rows: list[dict[str, Any]] = []
    if start is not None:
        async for body in reader.line_from(project, memory, start):
            rows.append(body)
            if len(rows) > REVISIONS_SHOWN:
                break
    page = answers.page(
        rows,
        REVISIONS_SHOWN,
        lambda row: answers.cursor_of(int(row["parent"]["revision"]), str(row["parent"]["manifest"])),
        _revision,
    )
    return await pages.shown(
        request,
        "memory.html",
        title=f"{memory} · {project}",
        memory=memory,
        revision=int(head.body.get("revision", 0)),
        held=sorted(head.body.get("held", {}).items()),
        page=page,
        is_first=after is None,
    )


async def _known(request: Request, project: str, memory: str) -> None:
    """Raises `errors.NotFound` where the project has no such memory, not even one without a revision."""
    rows = await callers.service_of(request).lists.page(lambda index: index.memories(project))
    if memory not in {row["memory"] for row in rows}:
        raise errors.NotFound(f"the project has no memory {memory!r}")


def _revision(body: dict[str, Any]) -> dict[str, Any]:
    """A revision of the time line: as the log tells it, and the runs that it newly covers."""
    runs = [
        {"rollout": covers["rollout"], "run": run, "attempt": attempt}
        for covers in body["covers"]
        for run, attempt in covers["runs"]
    ]
    edits = sum(len(covers.get("edits", ())) for covers in body["covers"])
    shown = runs[:COVERED_SHOWN]
    return {**memories.log_row(body), "covered": shown, "more": len(runs) - len(shown), "edits": edits}


# --- a revision -----------------------------------------------------------------------------------------------


async def _files(
    request: Request, project: str, memory: str, n: int, subject: str | None
) -> tuple[revisions.Revision, dict[str, render.Composed]]:
    if not 0 < n < NUMBER_MAX:
        raise errors.NotFound("revisions are numbered from 1")
    ids.check_name(memory, "memory")
    revision = await callers.service_of(request).reader.at(project, memory, n)
    # Off the loop: it reads and verifies every part.
    return revision, await asyncio.to_thread(memories.compose, revision, memories.whom_of(subject))


def _base(project: str, memory: str, n: int) -> str:
    return pages.url("projects", project, "memories", memory, "revisions", n)


@router.get("/memories/{memory}/revisions/{n}")
async def revision(
    request: Request,
    project: callers.Project,
    memory: callers.Memory,
    n: Number,
    viewer: Viewer,
    subject: callers.Subject = None,
) -> Response:
    """A revision: its files, and the one that is read first."""
    found, files = await _files(request, project, memory, n, subject)
    first = next((name for name in FIRST_FILES if name in files), None)
    body = _body(files, first, _base(project, memory, n), subject) if first else None
    return await pages.shown(
        request,
        "revision.html",
        title=f"Revision {n} · {memory}",
        memory=memory,
        n=n,
        base=_base(project, memory, n),
        log=_revision({**found.body, "sha256": found.sha256}),
        files=memories.sizes((path, one.text) for path, one in sorted(files.items())),
        first=first,
        body=body,
        subject=subject or "",
    )


@router.get("/memories/{memory}/revisions/{n}/files/{path:path}")
async def file(
    request: Request,
    project: callers.Project,
    memory: callers.Memory,
    n: Number,
    path: Path,
    viewer: Viewer,
    subject: callers.Subject = None,
    view: Annotated[str, Query(pattern="^(page|lines)$")] = "page",
    first: Annotated[int, Query(ge=1, le=NUMBER_MAX, alias="from")] = 1,
) -> Response:
    """One file: rendered, or line by line; each line leads to its why."""
    _revision, files = await _files(request, project, memory, n, subject)
    one, base = _file(files, path), _base(project, memory, n)
    body = _body(files, path, base, subject) if view == "page" and first == 1 else None
    split = one.text.splitlines()
    return await pages.shown(
        request,
        "file.html",
        title=f"{posixpath.basename(path)} · revision {n} · {memory}",
        memory=memory,
        n=n,
        path=path,
        base=base,
        body=body,
        can_render=_can_render(path, one.text),
        lines=[] if body is not None else texts.lines_of(split, first),
        known=_known_lines(one),
        count=len(split),
        first=first,
        step=texts.LINES_MAX,
        bytes=len(one.text.encode("utf-8", "replace")),
        subject=subject or "",
    )


def _file(files: dict[str, render.Composed], path: str) -> render.Composed:
    if path not in files:
        raise errors.NotFound(f"the revision has no file {path!r}")
    return files[path]


def _can_render(path: str, text: str) -> bool:
    # Lines are counted as `why` counts them; where Markdown would count others, numbers would lie.
    is_sound = len(text.splitlines()) == text.count("\n") + (not text.endswith("\n") and bool(text))
    return path.endswith(".md") and is_sound and len(text) <= texts.MARKDOWN_CHARS_MAX


def _known_lines(one: render.Composed) -> set[int]:
    """The lines that a note is behind."""
    return {line for first, last, _ in one.why for line in range(first, last + 1)}


def _body(files: dict[str, render.Composed], path: str, base: str, subject: str | None) -> Any:
    """The file as a page; None where it is shown by lines instead."""
    one = files[path]
    if not _can_render(path, one.text):
        return None

    def linked(target: str) -> str | None:
        name = posixpath.normpath(posixpath.join(posixpath.dirname(path), target.partition("#")[0]))
        return pages.path_url(f"{base}/files", name, subject=subject) if name in files else None

    def why(line: int) -> str:
        return pages.path_url(f"{base}/why", path, line=line, subject=subject)

    return texts.markdown(one.text, why, _known_lines(one), linked)


@router.get("/memories/{memory}/revisions/{n}/raw/{path:path}")
async def raw(
    request: Request,
    project: callers.Project,
    memory: callers.Memory,
    n: Number,
    path: Path,
    viewer: Viewer,
    subject: callers.Subject = None,
) -> Response:
    """The bytes of one file, to be saved."""
    _revision, files = await _files(request, project, memory, n, subject)
    return pages.download(_file(files, path).text.encode("utf-8", "surrogatepass"), posixpath.basename(path))


@router.get("/memories/{memory}/revisions/{n}/why/{path:path}")
async def why(
    request: Request,
    project: callers.Project,
    memory: callers.Memory,
    n: Number,
    path: Path,
    viewer: Viewer,
    line: Annotated[int, Query(ge=1, le=NUMBER_MAX)],
    subject: callers.Subject = None,
) -> Response:
    """Why a line is there: the notes behind it, and the runs and items that support each."""
    found, files = await _files(request, project, memory, n, subject)
    one = _file(files, path)
    split = one.text.splitlines()
    if line > len(split):
        raise errors.NotFound(f"{path} has {len(split)} lines, not {line}")
    whom, store = memories.whom_of(subject), callers.service_of(request).store
    notes = await lookup_why.of_line(store, found, one, line, subject=whom)
    return await pages.shown(
        request,
        "why.html",
        title=f"Why line {line} of {posixpath.basename(path)}",
        memory=memory,
        n=n,
        path=path,
        line=line,
        text=split[line - 1][: texts.LINE_CHARS_MAX],
        base=_base(project, memory, n),
        notes=notes,
        most=lookup_why.QUOTES_MAX,
        whom=whom,
        subject=subject or "",
    )


@router.get("/memories/{memory}/diff")
async def diff(
    request: Request,
    project: callers.Project,
    memory: callers.Memory,
    viewer: Viewer,
    newer: Annotated[int, Query(alias="to", ge=1, le=NUMBER_MAX)],
    older: Annotated[int | None, Query(alias="from", ge=0, le=NUMBER_MAX)] = None,
    subject: callers.Subject = None,
) -> Response:
    """What changed between any two revisions."""
    begin = newer - 1 if older is None else older
    after = (await _files(request, project, memory, newer, subject))[1]
    before = (await _files(request, project, memory, begin, subject))[1] if begin else {}
    found = await asyncio.to_thread(memories.changes, before, after)
    changes = [{**one, "lines": texts.changed(one["diff"])} for one in found[:DIFF_FILES_MAX]]
    return await pages.shown(
        request,
        "diff.html",
        title=f"Revisions {begin} to {newer} · {memory}",
        memory=memory,
        older=begin,
        newer=newer,
        changes=changes,
        more=len(found) - len(changes),
        subject=subject or "",
    )
