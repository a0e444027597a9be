"""Routes of data retention: how long rollouts are kept after their last run, of all projects and of one."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from runlore.lookup.http import answers, callers, shapes
from runlore.lookup.http import organization as routes
from runlore.lookup.http import organization_shapes as theirs
from runlore.lookup.http.organization import administrator, body_of, project_of
from runlore.upkeep import administration

router = APIRouter(prefix="/v1/organization", tags=["administration"])
DAYS_HEADER = "Runlore-Retention-Days"
"""Their types have no field for it."""


class RetentionBody(routes.Body):
    retention_type: str
    days: int | None = None


@router.get(
    "/data_retention",
    summary="How long rollouts are kept, where a project does not say",
    responses=shapes.answers(theirs.OrganizationRetention),
)
async def retention(request: Request, admin: callers.Administering) -> Response:
    org = await administration.read(callers.service_of(request).store)
    return await _told(request, theirs.OrganizationRetention(type=org.retention.type), org.retention.days)


@router.post(
    "/data_retention",
    summary="Say how long rollouts are kept, where a project does not say",
    responses=shapes.answers(theirs.OrganizationRetention),
    openapi_extra=shapes.takes(RetentionBody),
)
async def update_retention(request: Request, admin: callers.Administering) -> Response:
    given = await body_of(request, RetentionBody)
    made = await administrator(request, admin).retain(given.retention_type, given.days)
    return await _told(request, theirs.OrganizationRetention(type=made.type), made.days)


@router.get(
    "/projects/{project_id}/data_retention",
    summary="How long a project's rollouts are kept",
    responses=shapes.answers(theirs.ProjectRetention),
)
async def project_retention(
    request: Request, admin: callers.Administering, project_id: callers.Segment
) -> Response:
    kept = await project_of(request, project_id)
    org = await administration.read(callers.service_of(request).store)
    return await _told(
        request, theirs.ProjectRetention(type=kept.retention.type), org.retention_of(project_id).days
    )


@router.post(
    "/projects/{project_id}/data_retention",
    summary="Say how long a project's rollouts are kept",
    responses=shapes.answers(theirs.ProjectRetention),
    openapi_extra=shapes.takes(RetentionBody),
)
async def update_project_retention(
    request: Request, admin: callers.Administering, project_id: callers.Segment
) -> Response:
    given = await body_of(request, RetentionBody)
    made = await administrator(request, admin).retain(given.retention_type, given.days, project=project_id)
    org = await administration.read(callers.service_of(request).store)
    return await _told(request, theirs.ProjectRetention(type=made.type), org.retention_of(project_id).days)


async def _told(
    request: Request, body: theirs.OrganizationRetention | theirs.ProjectRetention, days: int | None
) -> Response:
    headers = {DAYS_HEADER: str(days)} if days is not None else {}
    return await answers.found(request, body.model_dump(), headers=headers)
