"""Pages of review and spend: what is held, what letting it in would do, a person's decision; what models cost."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from runlore import clock, errors
from runlore.commit import heads, keys, revisions
from runlore.events import ids
from runlore.lookup import reviewing, spending
from runlore.lookup.http import answers, callers
from runlore.lookup.http.console import charts, operations, pages, sessions, texts
from runlore.models import spend as spends
from runlore.upkeep import audit

router = APIRouter(
    prefix="/projects/{project}",
    include_in_schema=False,
    dependencies=[Depends(pages.asked_by_a_browser)],
    route_class=pages.Route,
)
MEMORIES_READ_MAX = 200
"""Memories whose heads one list reads: those that hold most come first."""
ROWS_SHOWN = 50
Viewer = Annotated[sessions.Viewer, sessions.sees(callers.READ)]
Admin = Annotated[sessions.Viewer, sessions.sees(callers.ADMIN)]


# --- review ------------------------------------------------------------------------------------------------------


@router.get("/reviews")
async def reviews(
    request: Request, project: callers.Project, viewer: Viewer, cursor: callers.Cursor = None
) -> Response:
    """What is held in any memory, those that wait for a person first."""
    passed = (answers.place_of(cursor, int) or (0,))[0]
    service = callers.service_of(request)
    memories = await service.lists.ask(lambda index: index.memories(project))
    named = [str(row["memory"]) for row in sorted(memories, key=lambda row: -int(row["held"]))]
    wanted = [keys.memory_head(project, name) for name in named[:MEMORIES_READ_MAX]]
    found = await service.store.get_many(wanted)
    rows = [
        row
        for key, stored in zip(wanted, found, strict=True)
        for row in reviewing.rows_of(heads.parse(key, stored, fmt=revisions.HEAD_FORMAT))
    ]
    rows.sort(key=reviewing.place_of)
    shown = list(enumerate(rows, 1))[passed : passed + ROWS_SHOWN + 1]
    page = answers.page(shown, ROWS_SHOWN, lambda row: answers.cursor_of(row[0]), lambda row: row[1])
    return await pages.shown(
        request,
        "reviews.html",
        title=f"Review · {project}",
        page=page,
        total=len(rows),
        unread=max(0, len(named) - MEMORIES_READ_MAX),
    )


@router.get("/reviews/{memory}/{rollout}")
async def review(
    request: Request,
    project: callers.Project,
    memory: callers.Memory,
    rollout: callers.Segment,
    # It is what the guards keep from every reader.
    viewer: Admin,
) -> Response:
    """One held rollout: why, what it says, what taking it in would change, and the decision."""
    return await _page(request, project, memory, rollout)


async def _page(
    request: Request, project: str, memory: str, rollout: str, problem: str = "", status: int = 200
) -> Response:
    service = callers.service_of(request)
    ids.check_name(memory, "memory")
    found = await reviewing.show(service.store, service.reader, project, memory, rollout)
    changes = [{**one, "lines": texts.changed(one["diff"])} for one in found["files"]]
    return await pages.shown(
        request,
        "review.html",
        title=f"Review of {found['rollout']}",
        status=status,
        memory=memory,
        found=found,
        changes=changes,
        may_pass=all(one["may_pass"] for one in found["violations"]),
        problem=problem,
    )


@router.post("/reviews/{memory}/{rollout}/{decision}")
async def decide(
    request: Request,
    project: callers.Project,
    memory: callers.Memory,
    rollout: callers.Segment,
    decision: callers.Segment,
    viewer: Admin,
) -> Response:
    """Approve what was shown, or reject it."""
    if decision not in ("approve", "reject"):
        raise errors.NotFound("a review is approved or rejected")
    fields = await sessions.form_of(request, viewer)
    ids.check_name(memory, "memory")
    service = callers.service_of(request)
    try:
        why = operations.reason_of(fields)
        hold = int(fields.get("hold", ""))
    except (errors.InvalidInput, ValueError) as exc:
        message = exc.message if isinstance(exc, errors.InvalidInput) else "the form is not whole"
        return await _page(request, project, memory, rollout, problem=message, status=400)
    ports = (service.store, service.bus, service.reader, project, memory, [rollout])
    try:
        async with audit.acting(
            service.store,
            by=viewer.by(),
            what=f"review {decision}",
            projects=[project],
            reason=why,
            arguments={"memory": memory, "rollouts": [rollout]},
        ):
            if decision == "approve":
                await reviewing.approve(*ports, reason=why, hold=hold)
            else:
                await reviewing.reject(*ports, reason=why)
    except errors.Refused as exc:
        return await _page(request, project, memory, rollout, problem=exc.message, status=409)
    done = "approved" if decision == "approve" else "rejected"
    return pages.go(pages.url("projects", project, "reviews", done=done))


# --- spend -------------------------------------------------------------------------------------------------------


@router.get("/spend")
async def spend(
    request: Request,
    project: callers.Project,
    viewer: Viewer,
    month: Annotated[str | None, Query(max_length=7)] = None,
    by: Annotated[str, Query(max_length=16)] = "memory",
) -> Response:
    """What calls to models took in a month, and what budgets leave."""
    service = callers.service_of(request)
    if by not in ("memory", "model", "day"):
        raise errors.InvalidInput("spend is summed by memory, model or day")
    found = await spending.report(
        service.store, project=project, by=by, month=month or None, chosen=(await service.knows()).chosen
    )
    # By day besides, for the chart: one object more, of the same month.
    days = (
        found
        if by == "day"
        else await spending.report(service.store, project=project, by="day", month=found["month"])
    )
    first = dt.date.fromisoformat(f"{found['month']}-01")
    return await pages.shown(
        request,
        "spend.html",
        title=f"Spend · {project}",
        found=found,
        chart=_chart(days) if days["rows"] else None,
        before=f"{first - dt.timedelta(days=1):%Y-%m}",
        after=None
        if found["month"] >= spends.month_of(clock.now())
        else f"{first + dt.timedelta(days=31):%Y-%m}",
    )


def _chart(found: Mapping[str, Any]) -> charts.Chart:
    """What was spent on each day: dollars, or tokens where no cost is known."""
    by_day = {row["name"]: row for row in found["rows"]}
    names, total = charts.days_of(found["month"]), found["total"]
    # A call that began before midnight may be of a day that is not over yet elsewhere.
    names = sorted({*names, *by_day})
    if total["cost_usd"]:
        values = [by_day[day]["cost_usd"] if day in by_day else 0.0 for day in names]
        told = [f"${value:,.4f}" for value in values]
        return charts.bars("US dollars per day", names, values, told, f"${total['cost_usd']:,.4f} in all")
    tokens = [
        by_day[day]["input_tokens"] + by_day[day]["output_tokens"] if day in by_day else 0 for day in names
    ]
    in_all = f"{sum(tokens):,} in all"
    return charts.bars("Tokens per day", names, tokens, [f"{one:,} tokens" for one in tokens], in_all)
