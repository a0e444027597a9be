"""Routes of erasure: having something forgotten, how far that is, and its receipt. For admin keys of the project."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Request
from starlette.responses import Response

from runlore import errors
from runlore.commit import erasures
from runlore.consumers.runtime import Runtime
from runlore.lookup.http import answers, callers, service, shapes
from runlore.upkeep import audit
from runlore.upkeep.erasing import asking, eraser, receipts

log = structlog.get_logger("runlore.http")

router = APIRouter(prefix="/v1/projects/{project}/erasures", tags=["erasure"])
NAMES = ("run", "rollout", "subject", "memory")
_TEXT = {"type": ["string", "null"]}
_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["reason"],
                "properties": {
                    **dict.fromkeys(NAMES, _TEXT),
                    "snapshots": {"enum": [asking.ERASE, asking.KEEP]},
                    "strict": {"type": "boolean"},
                    "reason": {"type": "string"},
                },
            }
        }
    },
}


@router.post(
    "",
    status_code=202,
    summary="Erase a run, a rollout, all that was for a subject, or a memory",
    openapi_extra={"requestBody": _BODY},
    responses=shapes.answers(shapes.Erasure, 202),
)
async def begin(
    request: Request, project: callers.Project, _: Annotated[Any, callers.needs(callers.ADMIN)]
) -> Response:
    own = callers.service_of(request)
    wanted, reason = _asked(project, await answers.object_of(request))
    one = _eraser(own, project)
    # The alias alone: a subject is often an address.
    given = {"scope": wanted.scope, "name": wanted.alias, "memory": wanted.memory, "strict": wanted.strict}
    async with audit.acting(
        own.store,
        by=callers.caller(request),
        what="forget",
        projects=[project],
        reason=reason,
        arguments=given,
    ) as act:
        entry = await one.begin(wanted)
        act.result["erasure"] = entry.body["id"]
    own.behind(_carried_on(one, own, project, str(entry.body["id"])))
    return await answers.found(request, receipts.of(entry.body), status=202)


@router.post(
    "/plan",
    summary="What an erasure would name; nothing is erased",
    openapi_extra={"requestBody": _BODY},
    responses=shapes.answers(shapes.ErasurePlan),
)
async def plan(
    request: Request, project: callers.Project, _: Annotated[Any, callers.needs(callers.ADMIN)]
) -> Response:
    wanted, _reason = _asked(project, await answers.object_of(request), why=False)
    found = await _eraser(callers.service_of(request), project).plan(wanted)
    return await answers.found(request, {"project": project, **found})


@router.get(
    "", summary="The erasures of the project, the oldest first", responses=shapes.answers(shapes.Page)
)
async def listed(
    request: Request,
    project: callers.Project,
    _: Annotated[Any, callers.needs(callers.ADMIN)],
    limit: callers.Limit = callers.PAGE,
    cursor: callers.Cursor = None,
) -> Response:
    after = answers.place_of(cursor, str, str)
    found = [one.body async for one in erasures.every(callers.service_of(request).store, project)]
    found.sort(key=lambda body: (str(body["asked_at"]), str(body["id"])))
    rows = [one for one in found if after is None or (one["asked_at"], one["id"]) > after]
    shown = ("id", "scope", "name", "memory", "state", "asked_at", "first_at", "second_at")
    body = answers.page(
        rows[: limit + 1],
        limit,
        lambda row: answers.cursor_of(str(row["asked_at"]), str(row["id"])),
        lambda row: {name: row[name] for name in shown},
    )
    return await answers.found(request, body)


@router.get(
    "/{erasure}", summary="How far an erasure is: its receipt", responses=shapes.answers(shapes.Erasure)
)
async def shown(
    request: Request,
    project: callers.Project,
    erasure: callers.Segment,
    _: Annotated[Any, callers.needs(callers.ADMIN)],
) -> Response:
    if not (erasure.isascii() and erasure.isalnum() and erasure == erasure.lower()):
        raise errors.NotFound(f"project {project} has no erasure {erasure!r}")
    entry = await erasures.read(callers.service_of(request).store, project, erasure)
    return await answers.found(request, receipts.of(entry.body))


def _eraser(own: service.Service, project: str) -> eraser.Eraser:
    # Off the loop: it makes revisions.
    return eraser.Eraser(own.store, own.bus, project, runtime=Runtime(offload=asyncio.to_thread))


def _asked(project: str, body: dict[str, Any], *, why: bool = True) -> tuple[asking.Wanted, str]:
    """(What is asked for, why). Raises `errors.InvalidInput`."""
    named = {name: body.get(name) for name in NAMES}
    strict = body.get("strict", False)
    if any(value is not None and not isinstance(value, str) for value in named.values()):
        raise errors.InvalidInput(f"{', '.join(NAMES)} are texts")
    if not isinstance(strict, bool):
        raise errors.InvalidInput("`strict` is true or false")
    reason = answers.reason_of(body, "this erases") if why else ""
    wanted = asking.wanted_of(
        project=project, snapshots=str(body.get("snapshots", asking.ERASE)), strict=strict, **named
    )
    return wanted, reason


async def _carried_on(one: eraser.Eraser, own: service.Service, project: str, name: str) -> None:
    """A first pass, where this process has the rights: else, or if it dies, `runlore upkeep` does it."""
    try:
        await one.carry_on(name)
        own.forget_erased(project)
    except errors.RunloreError as exc:
        log.warning("an erasure is left to upkeep", project=project, erasure=name, kind=exc.kind)
