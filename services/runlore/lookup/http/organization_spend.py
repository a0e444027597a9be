"""Routes of spend limits and spend alerts, of the organization and of its projects.

Both kinds are the same but for where they stand: each route is registered twice, and `whose` None means the
organization.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from runlore import clock, errors
from runlore.lookup.http import callers, shapes
from runlore.lookup.http import organization as routes
from runlore.lookup.http import organization_shapes as theirs
from runlore.lookup.http.organization import After, Limit, administrator, body_of, told
from runlore.upkeep import administration, spendlimits, spendwatch
from runlore.upkeep import organization as organizations

router = APIRouter(prefix="/v1/organization", tags=["administration"])
LIMIT, ALERTS = "/spend_limit", "/spend_alerts"
OF_PROJECT = "/projects/{project_id}"
IN_PATH = {"name": "project_id", "in": "path", "required": True, "schema": {"type": "string"}}
Order = Literal["asc", "desc"]
Handler = TypeVar("Handler", bound=Callable[..., Awaitable[Response]])


def _whose(request: Request) -> str | None:
    """The project in the path; None where it is the organization's route."""
    name = request.path_params.get("project_id")
    try:
        return None if name is None else callers.unquoted(name)
    except UnicodeDecodeError:
        raise errors.InvalidInput("the project in the path is no UTF-8") from None


Whose = Annotated[str | None, Depends(_whose)]


def _route(
    method: str, path: str, does: str, answer: type[BaseModel], takes: type[BaseModel] | None = None
) -> Callable[[Handler], Handler]:
    """Register a handler for the organization and for a project. `does` says what, with `{whose}` in it."""

    def register(handler: Handler) -> Handler:
        for prefix, name in (("", "the organization"), (OF_PROJECT, "a project")):
            extra: dict[str, Any] = {"parameters": [IN_PATH]} if prefix else {}
            if takes is not None:
                extra |= shapes.takes(takes)
            router.add_api_route(
                prefix + path,
                handler,
                methods=[method],
                name=f"project_{handler.__name__}" if prefix else handler.__name__,
                summary=does.format(whose=name),
                responses=shapes.answers(answer),
                openapi_extra=extra,
            )
        return handler

    return register


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


async def _told_limit(request: Request, whose: str | None, kept: organizations.SpendLimit) -> Response:
    store = callers.service_of(request).store
    enforcing = await spendwatch.is_enforcing(store, whose, kept, clock.now())
    return await told(request, theirs.spend_limit(kept, of=_of(whose), enforcing=enforcing))


@_route("GET", LIMIT, "The spend limit of {whose}", theirs.SpendLimit)
async def spend_limit(request: Request, admin: callers.Administering, whose: Whose) -> Response:
    return await _told_limit(request, whose, spendlimits.limit_of(await _holder(request, whose)))


@_route("POST", LIMIT, "Set the spend limit of {whose}", theirs.SpendLimit, takes=LimitBody)
async def update_spend_limit(request: Request, admin: callers.Administering, whose: Whose) -> Response:
    given = await body_of(request, LimitBody)
    made = await spendlimits.set_limit(administrator(request, admin), whose, given.threshold_amount)
    return await _told_limit(request, whose, made)


@_route("DELETE", LIMIT, "Take the spend limit of {whose} away", theirs.SpendLimitDeleted)
async def delete_spend_limit(request: Request, admin: callers.Administering, whose: Whose) -> Response:
    await spendlimits.delete_limit(administrator(request, admin), whose)
    gone = theirs.SpendLimitDeleted.model_validate({"object": f"{_of(whose)}.spend_limit.deleted"})
    return await told(request, gone)


# --- alerts -------------------------------------------------------------------------------------------------


@_route("GET", ALERTS, "List the spend alerts of {whose}", theirs.Page)
async def list_spend_alerts(
    request: Request,
    admin: callers.Administering,
    whose: Whose,
    after: After = None,
    before: After = None,
    limit: Limit = routes.PAGE_DEFAULT,
    order: Order = "asc",
) -> Response:
    kept = [
        theirs.spend_alert(one, of=_of(whose))
        for one in (await _holder(request, whose)).spend_alerts.values()
    ]
    rows = sorted(kept, key=lambda one: one.id, reverse=order == "desc")
    if before is not None:
        # The page that ends at it: those right before it, in the same order.
        earlier = [one for one in rows if (one.id > before if order == "desc" else one.id < before)]
        return await told(request, theirs.page(earlier[-limit:], has_more=len(earlier) > limit))
    found, more = routes.cut(kept, after, limit, lambda one: one.id, newest_first=order == "desc")
    return await told(request, theirs.page(found, has_more=more))


@_route("POST", ALERTS, "Make a spend alert of {whose}", theirs.SpendAlert, takes=AlertBody)
async def create_spend_alert(request: Request, admin: callers.Administering, whose: Whose) -> Response:
    given = await body_of(request, AlertBody)
    made = await spendlimits.create_alert(
        administrator(request, admin),
        whose,
        given.threshold_amount,
        recipients=given.notification_channel.recipients,
        subject_prefix=given.notification_channel.subject_prefix,
    )
    return await told(request, theirs.spend_alert(made, of=_of(whose)))


@_route("GET", f"{ALERTS}/{{alert_id}}", "One spend alert of {whose}", theirs.SpendAlert)
async def spend_alert(
    request: Request, admin: callers.Administering, whose: Whose, alert_id: callers.Segment
) -> Response:
    kept = spendlimits.alert_of(await _holder(request, whose), alert_id)
    return await told(request, theirs.spend_alert(kept, of=_of(whose)))


@_route(
    "POST", f"{ALERTS}/{{alert_id}}", "Change a spend alert of {whose}", theirs.SpendAlert, takes=AlertBody
)
async def update_spend_alert(
    request: Request, admin: callers.Administering, whose: Whose, alert_id: callers.Segment
) -> Response:
    given = await body_of(request, AlertBody)
    made = await spendlimits.update_alert(
        administrator(request, admin),
        whose,
        alert_id,
        given.threshold_amount,
        recipients=given.notification_channel.recipients,
        subject_prefix=given.notification_channel.subject_prefix,
    )
    return await told(request, theirs.spend_alert(made, of=_of(whose)))


@_route("DELETE", f"{ALERTS}/{{alert_id}}", "Take a spend alert of {whose} away", theirs.Deleted)
async def delete_spend_alert(
    request: Request, admin: callers.Administering, whose: Whose, alert_id: callers.Segment
) -> Response:
    await spendlimits.delete_alert(administrator(request, admin), whose, alert_id)
    return await told(request, theirs.Deleted(object=f"{_of(whose)}.spend_alert.deleted", id=alert_id))
