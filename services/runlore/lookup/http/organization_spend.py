"""Routes of spend limits and spend alerts, of the organization and of its projects.

Both kinds are the same but for where they stand, so each pair of routes shares what answers it; `project` None means
the organization.
"""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import ConfigDict
from starlette.responses import Response

from runlore import clock
from runlore.lookup.http import callers, shapes
from runlore.lookup.http import organization as routes
from runlore.lookup.http import organization_shapes as theirs
from runlore.lookup.http.organization import After, Limit, administrator, body_of, told
from runlore.upkeep import administration, spendlimits, spendwatch
from runlore.upkeep import organization as organizations

router = APIRouter(prefix="/v1/organization", tags=["administration"])
LIMIT, ALERTS = "/spend_limit", "/spend_alerts"
OF_PROJECT = "/projects/{project_id}"
Order = Literal["asc", "desc"]


class _Exact(routes.Body):
    # Cents that come as 12.5, or as "12", are a mistake in dollars.
    model_config = ConfigDict(extra="forbid", strict=True)


class LimitBody(_Exact):
    threshold_amount: int
    currency: Literal["USD"]
    interval: Literal["month"]


class Channel(_Exact):
    type: Literal["email"]
    recipients: list[str]
    subject_prefix: str | None = None


class AlertBody(LimitBody):
    notification_channel: Channel


async def _holder(
    request: Request, project: str | None
) -> organizations.Organization | organizations.Project:
    """What holds the limit and the alerts. Raises `errors.NotFound`."""
    if project is not None:
        return await routes.project_of(request, project)
    return await administration.read(callers.service_of(request).store)


def _of(project: str | None) -> str:
    return "organization" if project is None else "project"


# --- limits -------------------------------------------------------------------------------------------------


async def _show_limit(request: Request, project: str | None) -> Response:
    kept = spendlimits.limit_of(await _holder(request, project))
    return await _told_limit(request, project, kept)


async def _told_limit(request: Request, project: str | None, kept: organizations.SpendLimit) -> Response:
    store = callers.service_of(request).store
    enforcing = await spendwatch.is_enforcing(store, project, kept, clock.now())
    return await told(request, theirs.spend_limit(kept, of=_of(project), enforcing=enforcing))


async def _set_limit(request: Request, admin: organizations.AdminKey, project: str | None) -> Response:
    given = await body_of(request, LimitBody)
    made = await spendlimits.set_limit(administrator(request, admin), project, given.threshold_amount)
    return await _told_limit(request, project, made)


async def _delete_limit(request: Request, admin: organizations.AdminKey, project: str | None) -> Response:
    await spendlimits.delete_limit(administrator(request, admin), project)
    gone = theirs.SpendLimitDeleted.model_validate({"object": f"{_of(project)}.spend_limit.deleted"})
    return await told(request, gone)


@router.get(LIMIT, summary="The organization's spend limit", responses=shapes.answers(theirs.SpendLimit))
async def spend_limit(request: Request, admin: callers.Administering) -> Response:
    return await _show_limit(request, None)


@router.post(LIMIT, summary="Set the organization's spend limit", responses=shapes.answers(theirs.SpendLimit))
async def update_spend_limit(request: Request, admin: callers.Administering) -> Response:
    return await _set_limit(request, admin, None)


@router.delete(
    LIMIT,
    summary="Take the organization's spend limit away",
    responses=shapes.answers(theirs.SpendLimitDeleted),
)
async def delete_spend_limit(request: Request, admin: callers.Administering) -> Response:
    return await _delete_limit(request, admin, None)


@router.get(
    f"{OF_PROJECT}{LIMIT}", summary="A project's spend limit", responses=shapes.answers(theirs.SpendLimit)
)
async def project_spend_limit(
    request: Request, admin: callers.Administering, project_id: callers.Segment
) -> Response:
    return await _show_limit(request, project_id)


@router.post(
    f"{OF_PROJECT}{LIMIT}", summary="Set a project's spend limit", responses=shapes.answers(theirs.SpendLimit)
)
async def update_project_spend_limit(
    request: Request, admin: callers.Administering, project_id: callers.Segment
) -> Response:
    return await _set_limit(request, admin, project_id)


@router.delete(
    f"{OF_PROJECT}{LIMIT}",
    summary="Take a project's spend limit away",
    responses=shapes.answers(theirs.SpendLimitDeleted),
)
async def delete_project_spend_limit(
    request: Request, admin: callers.Administering, project_id: callers.Segment
) -> Response:
    return await _delete_limit(request, admin, project_id)


# --- alerts -------------------------------------------------------------------------------------------------


async def _list_alerts(
    request: Request, project: str | None, after: str | None, before: str | None, limit: int, order: Order
) -> Response:
    kept = [
        theirs.spend_alert(one, of=_of(project))
        for one in (await _holder(request, project)).spend_alerts.values()
    ]
    rows = sorted(kept, key=lambda one: one.id, reverse=order == "desc")
    if before is not None:
        # The page that ends at it: those right before it, in the same order.
        earlier = [one for one in rows if (one.id > before if order == "desc" else one.id < before)]
        return await told(request, theirs.page(earlier[-limit:], has_more=len(earlier) > limit))
    found, more = routes.cut(kept, after, limit, lambda one: one.id, newest_first=order == "desc")
    return await told(request, theirs.page(found, has_more=more))


async def _create_alert(request: Request, admin: organizations.AdminKey, project: str | None) -> Response:
    given = await body_of(request, AlertBody)
    made = await spendlimits.create_alert(
        administrator(request, admin),
        project,
        given.threshold_amount,
        recipients=given.notification_channel.recipients,
        subject_prefix=given.notification_channel.subject_prefix,
    )
    return await told(request, theirs.spend_alert(made, of=_of(project)))


async def _show_alert(request: Request, project: str | None, alert_id: str) -> Response:
    kept = spendlimits.alert_of(await _holder(request, project), alert_id)
    return await told(request, theirs.spend_alert(kept, of=_of(project)))


async def _update_alert(
    request: Request, admin: organizations.AdminKey, project: str | None, alert_id: str
) -> Response:
    given = await body_of(request, AlertBody)
    made = await spendlimits.update_alert(
        administrator(request, admin),
        project,
        alert_id,
        given.threshold_amount,
        recipients=given.notification_channel.recipients,
        subject_prefix=given.notification_channel.subject_prefix,
    )
    return await told(request, theirs.spend_alert(made, of=_of(project)))


async def _delete_alert(
    request: Request, admin: organizations.AdminKey, project: str | None, alert_id: str
) -> Response:
    await spendlimits.delete_alert(administrator(request, admin), project, alert_id)
    return await told(request, theirs.Deleted(object=f"{_of(project)}.spend_alert.deleted", id=alert_id))


@router.get(ALERTS, summary="List the organization's spend alerts", responses=shapes.answers(theirs.Page))
async def list_spend_alerts(
    request: Request,
    admin: callers.Administering,
    after: After = None,
    before: After = None,
    limit: Limit = routes.PAGE_DEFAULT,
    order: Order = "asc",
) -> Response:
    return await _list_alerts(request, None, after, before, limit, order)


@router.post(
    ALERTS, summary="Make a spend alert of the organization", responses=shapes.answers(theirs.SpendAlert)
)
async def create_spend_alert(request: Request, admin: callers.Administering) -> Response:
    return await _create_alert(request, admin, None)


@router.get(
    f"{ALERTS}/{{alert_id}}",
    summary="One spend alert of the organization",
    responses=shapes.answers(theirs.SpendAlert),
)
async def spend_alert(request: Request, admin: callers.Administering, alert_id: callers.Segment) -> Response:
    return await _show_alert(request, None, alert_id)


@router.post(
    f"{ALERTS}/{{alert_id}}",
    summary="Change a spend alert of the organization",
    responses=shapes.answers(theirs.SpendAlert),
)
async def update_spend_alert(
    request: Request, admin: callers.Administering, alert_id: callers.Segment
) -> Response:
    return await _update_alert(request, admin, None, alert_id)


@router.delete(
    f"{ALERTS}/{{alert_id}}",
    summary="Take a spend alert of the organization away",
    responses=shapes.answers(theirs.Deleted),
)
async def delete_spend_alert(
    request: Request, admin: callers.Administering, alert_id: callers.Segment
) -> Response:
    return await _delete_alert(request, admin, None, alert_id)


@router.get(
    f"{OF_PROJECT}{ALERTS}", summary="List a project's spend alerts", responses=shapes.answers(theirs.Page)
)
async def list_project_spend_alerts(
    request: Request,
    admin: callers.Administering,
    project_id: callers.Segment,
    after: After = None,
    before: After = None,
    limit: Limit = routes.PAGE_DEFAULT,
    order: Order = "asc",
) -> Response:
    return await _list_alerts(request, project_id, after, before, limit, order)


@router.post(
    f"{OF_PROJECT}{ALERTS}",
    summary="Make a spend alert of a project",
    responses=shapes.answers(theirs.SpendAlert),
)
async def create_project_spend_alert(
    request: Request, admin: callers.Administering, project_id: callers.Segment
) -> Response:
    return await _create_alert(request, admin, project_id)


@router.get(
    f"{OF_PROJECT}{ALERTS}/{{alert_id}}",
    summary="One spend alert of a project",
    responses=shapes.answers(theirs.SpendAlert),
)
async def project_spend_alert(
    request: Request, admin: callers.Administering, project_id: callers.Segment, alert_id: callers.Segment
) -> Response:
    return await _show_alert(request, project_id, alert_id)


@router.post(
    f"{OF_PROJECT}{ALERTS}/{{alert_id}}",
    summary="Change a spend alert of a project",
    responses=shapes.answers(theirs.SpendAlert),
)
async def update_project_spend_alert(
    request: Request, admin: callers.Administering, project_id: callers.Segment, alert_id: callers.Segment
) -> Response:
    return await _update_alert(request, admin, project_id, alert_id)


@router.delete(
    f"{OF_PROJECT}{ALERTS}/{{alert_id}}",
    summary="Take a spend alert of a project away",
    responses=shapes.answers(theirs.Deleted),
)
async def delete_project_spend_alert(
    request: Request, admin: callers.Administering, project_id: callers.Segment, alert_id: callers.Segment
) -> Response:
    return await _delete_alert(request, admin, project_id, alert_id)
