"""Routes about models: what their calls cost, and making what waits for them due."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from runlore.events import ids
from runlore.lookup import spending
from runlore.lookup.http import answers, callers, shapes
from runlore.upkeep import audit
from runlore.upkeep import refresh as upkeep_refresh

router = APIRouter(prefix="/v1/projects/{project}", tags=["models"])


@router.get("/spend", summary="What calls to models took in a month", responses=shapes.answers(shapes.Spend))
async def spend(
    request: Request,
    project: callers.Project,
    _: Annotated[Any, callers.needs(callers.READ)],
    month: Annotated[str | None, Query(max_length=7, description="Like 2026-11; else this one.")] = None,
    by: Annotated[str, Query(max_length=16, description="memory, model or day.")] = "memory",
    memory: Annotated[str | None, Query(max_length=512, description="Only of this memory.")] = None,
) -> Response:
    service = callers.service_of(request)
    known = await service.knows()
    body = await spending.report(
        service.store, project=project, memory=memory, by=by, month=month, chosen=known.chosen
    )
    return await answers.found(request, body)


@router.post(
    "/memories/{memory}/refresh",
    status_code=202,
    summary="Work what waits for a model until it is due now",
    responses=shapes.answers(shapes.Refreshed, 202),
)
async def refresh(
    request: Request,
    project: callers.Project,
    memory: callers.Memory,
    _: Annotated[Any, callers.needs(callers.WRITE)],
) -> Response:
    service = callers.service_of(request)
    ids.check_name(memory, "memory")
    async with audit.acting(
        service.store,
        by=callers.caller(request),
        what="refresh",
        projects=[project],
        reason=None,
        arguments={"memory": memory},
    ):
        asked = await upkeep_refresh.refresh(service.store, project, memory)
    body = {"project": project, "memory": memory, "asks": sum(one.asks for one in asked)}
    return await answers.found(request, body, status=202)
