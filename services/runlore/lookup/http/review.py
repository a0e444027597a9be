"""Routes of review: what is held of a memory, what letting it in would do, and a person's decision."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from runlore import errors
from runlore.commit import heads
from runlore.events import ids
from runlore.lookup import reviewing
from runlore.lookup.http import answers, callers, shapes
from runlore.upkeep import audit

router = APIRouter(prefix="/v1/projects/{project}/memories/{memory}/review", tags=["review"])
ROLLOUTS_NAMED_MAX = 256
_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["reason"],
                "properties": {
                    "rollouts": {"type": ["array", "null"], "items": {"type": "string"}},
                    "all": {"type": "boolean"},
                    "hold": {"type": ["integer", "null"]},
                    "reason": {"type": "string"},
                },
            }
        }
    },
}


async def _head(request: Request, project: str, memory: str) -> heads.Head:
    ids.check_name(memory, "memory")
    return await callers.service_of(request).reader.head(project, memory)


@router.get(
    "", summary="What is held, those that wait for a person first", responses=shapes.answers(shapes.Page)
)
async def listed(
    request: Request,
    project: callers.Project,
    memory: callers.Memory,
    _: Annotated[Any, callers.needs(callers.READ)],
    limit: callers.Limit = callers.PAGE,
    cursor: callers.Cursor = None,
) -> Response:
    after = answers.place_of(cursor, str, str, str)
    rows = [
        row
        for row in reviewing.rows_of(await _head(request, project, memory))
        if after is None or reviewing.place_of(row) > tuple(after)
    ]
    body = answers.page(rows[: limit + 1], limit, lambda row: answers.cursor_of(*reviewing.place_of(row)))
    return await answers.found(request, body)


@router.get(
    "/{rollout}",
    summary="Why a rollout is held, and what letting it in would change",
    responses=shapes.answers(shapes.Held),
)
async def shown(
    request: Request,
    project: callers.Project,
    memory: callers.Memory,
    rollout: callers.Segment,
    # It is what the guards keep from every reader.
    _: Annotated[Any, callers.needs(callers.ADMIN)],
) -> Response:
    service = callers.service_of(request)
    ids.check_name(memory, "memory")
    found = await reviewing.show(service.store, service.reader, project, memory, rollout)
    return await answers.found(request, found)


@router.post(
    "/approve",
    summary="Let rollouts in, with what their holds say",
    openapi_extra={"requestBody": _BODY},
    responses=shapes.answers(shapes.Approved),
)
async def approve(
    request: Request,
    project: callers.Project,
    memory: callers.Memory,
    _: Annotated[Any, callers.needs(callers.ADMIN)],
) -> Response:
    service = callers.service_of(request)
    rollouts, reason, hold = await _decision(request, memory)
    async with audit.acting(
        service.store,
        by=callers.caller(request),
        what="review approve",
        projects=[project],
        reason=reason,
        arguments={"memory": memory, "rollouts": rollouts or "all"},
    ) as act:
        done = await reviewing.approve(
            service.store, service.bus, service.reader, project, memory, rollouts, reason=reason, hold=hold
        )
        told = {"approved": done.names, "let_pass": done.let_pass, "left": done.left}
        act.result |= told
    return await answers.found(request, {"project": project, "memory": memory, **told})


@router.post(
    "/reject",
    summary="Keep rollouts out as they stand",
    openapi_extra={"requestBody": _BODY},
    responses=shapes.answers(shapes.Rejected),
)
async def reject(
    request: Request,
    project: callers.Project,
    memory: callers.Memory,
    _: Annotated[Any, callers.needs(callers.ADMIN)],
) -> Response:
    service = callers.service_of(request)
    rollouts, reason, _hold = await _decision(request, memory)
    async with audit.acting(
        service.store,
        by=callers.caller(request),
        what="review reject",
        projects=[project],
        reason=reason,
        arguments={"memory": memory, "rollouts": rollouts or "all"},
    ) as act:
        names = await reviewing.reject(
            service.store, service.bus, service.reader, project, memory, rollouts, reason=reason
        )
        act.result |= {"rejected": names}
    return await answers.found(request, {"project": project, "memory": memory, "rejected": names})


async def _decision(request: Request, memory: str) -> tuple[list[str] | None, str, int | None]:
    """(the rollouts, None for all that wait; why; the hold that was shown). Raises `errors.InvalidInput`."""
    ids.check_name(memory, "memory")
    body = await answers.object_of(request)
    rollouts, hold = body.get("rollouts"), body.get("hold")
    reason = answers.reason_of(body, "this changes what others see")
    is_list = isinstance(rollouts, list) and all(isinstance(one, str) and one.strip() for one in rollouts)
    if (body.get("all") is True) == bool(rollouts) or not (
        rollouts is None or (is_list and len(rollouts) <= ROLLOUTS_NAMED_MAX)
    ):
        raise errors.InvalidInput(
            f"`rollouts` is a list of 1 to {ROLLOUTS_NAMED_MAX} names, or `all` is true"
        )
    if hold is not None and type(hold) is not int:
        raise errors.InvalidInput("`hold` is not a number")
    return rollouts or None, reason, hold
