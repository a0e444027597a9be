"""Pages of rollouts and runs: lists with each run's named state, what a rollout was about, where a run is; search."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from runlore import errors
from runlore.commit import heads, keys, rollouts
from runlore.events import ids
from runlore.lookup import explain, index, memories, states
from runlore.lookup import rows as rows_of
from runlore.lookup.http import answers, callers
from runlore.lookup.http import memory as routes
from runlore.lookup.http.console import charts, pages, sessions, texts

router = APIRouter(
    prefix="/projects/{project}",
    include_in_schema=False,
    dependencies=[Depends(pages.asked_by_a_browser)],
    route_class=pages.Route,
)
SHOWN = 50
FOUND_SHOWN = 30
STEPS = ("stage", "what")
Viewer = Annotated[sessions.Viewer, sessions.sees(callers.READ)]


@router.get("/runs")
async def newest(
    request: Request, project: callers.Project, viewer: Viewer, cursor: callers.Cursor = None
) -> Response:
    """The newest runs."""
    after, service = answers.place_of(cursor, *rows_of.RUN_PLACE), callers.service_of(request)
    rows = await service.lists.page(lambda found: found.recent_runs(project, limit=SHOWN + 1, after=after))
    page = answers.page(rows, SHOWN, lambda row: answers.cursor_of(*rows_of.run_place(row)))
    await _with_states(request, project, page["items"])
    chart = None
    if after is None:
        names = charts.days()
        counts = await service.lists.ask(lambda found: found.runs_by_day(project, names))
        chart = charts.per_day(names, counts, index.DAY_RUNS_MAX)
    return await pages.shown(request, "runs.html", title=f"Runs · {project}", page=page, chart=chart)


async def _with_states(request: Request, project: str, rows: list[dict[str, Any]]) -> None:
    found = await states.of_rows(callers.service_of(request).reader, project, rows)
    for row, state in zip(rows, found, strict=True):
        row["state"] = state


@router.get("/explain")
async def where(
    request: Request,
    project: callers.Project,
    viewer: Viewer,
    name: Annotated[str, Query(alias="id", min_length=1, max_length=ids.ID_CHARS_MAX)],
) -> Response:
    """From an id that was typed in to the page of what it names."""
    return pages.go(pages.url("projects", project, "runs", name.strip() or name))


@router.get("/runs/{run}")
async def run(request: Request, project: callers.Project, run: callers.Segment, viewer: Viewer) -> Response:
    """Where a run, an event or a rollout is: every step, what it waits for, what happens next."""
    service = callers.service_of(request)
    ids.check_id(run, "run")
    rows = await service.lists.ask(lambda found: explain.rows_of(found, run, project))
    stories = await explain.tell(service.store, service.bus, service.reader, run, rows, project=project)
    told = [
        {
            "story": story,
            "steps": [
                {**step, "details": {name: one for name, one in step.items() if name not in STEPS}}
                for step in story.steps
            ],
        }
        for story in stories
    ]
    return await pages.shown(request, "run.html", title=f"Run {run}", run=run, stories=told)


@router.get("/memories/{memory}/rollouts")
async def listed(
    request: Request,
    project: callers.Project,
    memory: callers.Memory,
    viewer: Viewer,
    cursor: callers.Cursor = None,
) -> Response:
    """The rollouts of a memory, newest first."""
    after = answers.place_of(cursor, str, str)
    ids.check_name(memory, "memory")
    lists = callers.service_of(request).lists
    rows = await lists.page(lambda found: found.rollouts(project, memory, limit=SHOWN + 1, after=after))
    page = answers.page(
        rows, SHOWN, lambda row: answers.cursor_of(rows_of.place(row["updated_at"]), row["rollout"])
    )
    title = f"Rollouts · {memory}"
    return await pages.shown(request, "rollouts.html", title=title, memory=memory, page=page)


@router.get("/memories/{memory}/rollouts/{rollout}")
async def rollout(
    request: Request,
    project: callers.Project,
    memory: callers.Memory,
    rollout: callers.Segment,
    viewer: Viewer,
    subject: callers.Subject = None,
) -> Response:
    """One rollout: its runs, each with its state, and what memory says of it."""
    service, alias = callers.service_of(request), ids.as_alias(rollout)
    ids.check_name(memory, "memory")
    key = keys.rollout_head(project, memory, alias)
    head = await heads.read(service.store, key, fmt=rollouts.HEAD_FORMAT)
    if not head.counter:
        raise errors.NotFound(f"memory {memory} has no rollout {rollout!r}")
    rows = [
        {"memory": memory, "rollout": alias, "run": run, "superseded": False, **entry}
        for run, entry in head.body["runs"].items()
        if "edit_of" not in entry
    ]
    newest = rows[-SHOWN:][::-1]
    await _with_states(request, project, newest)
    whom = memories.whom_of(subject)
    is_shown = head.body.get("subject") in (None, whom)
    page = await _page_of(request, project, memory, alias, whom) if is_shown else None
    return await pages.shown(
        request,
        "rollout.html",
        title=f"Rollout {head.body['original']}",
        memory=memory,
        head=head.body,
        alias=alias,
        rows=newest,
        more=len(rows) - len(newest),
        summary=page,
        is_shown=is_shown,
        subject=subject or "",
    )


async def _page_of(
    request: Request, project: str, memory: str, alias: str, whom: str | None
) -> dict[str, Any] | None:
    """The rollout's page in the newest revision; None where it has none there."""
    service = callers.service_of(request)
    head = await service.reader.head(project, memory)
    files = await service.composed(project, memory, head, whom)
    path = files.place(alias, [])[0] if files else None
    if files is None or path is None or path not in files.files:
        return None
    lines = files.files[path].text.splitlines()
    return {
        "path": path,
        "n": int(head.body["revision"]),
        "lines": texts.lines_of(lines),
        "count": len(lines),
    }


@router.get("/memories/{memory}/search")
async def search(
    request: Request,
    project: callers.Project,
    memory: callers.Memory,
    viewer: Viewer,
    q: Annotated[str, Query(max_length=routes.QUERY_CHARS_MAX)] = "",
    subject: callers.Subject = None,
) -> Response:
    """Rollouts whose summary has every word, and the line of memory that tells of each."""
    ids.check_name(memory, "memory")
    service, whom = callers.service_of(request), memories.whom_of(subject)
    results: list[dict[str, Any]] = []
    number = 0
    if q.strip():
        rows = await service.lists.ask(
            lambda found: found.search(q, project, memory, subject=whom, limit=FOUND_SHOWN)
        )
        head = await service.reader.head(project, memory)
        files, words = await service.composed(project, memory, head, whom), memories.words_of(q)
        number = int(head.body.get("revision", 0))
        for row in rows:
            path, line = files.place(row["rollout"], words) if files else (None, None)
            results.append({**row, "path": path, "line": line})
    return await pages.shown(
        request,
        "search.html",
        title=f"Search · {memory}",
        memory=memory,
        q=q,
        results=results,
        n=number,
        most=FOUND_SHOWN,
        subject=subject or "",
    )
