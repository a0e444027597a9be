"""Routes that administer the deployment: admin keys, projects and their service accounts, keys and rate limits.

They are OpenAI's Admin API, so that its own client works (docs/ADMIN.md). Each needs an admin key, which opens nothing
else; whoever may not is refused before anything is read of what is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.responses import Response

from runlore import errors
from runlore.lookup.http import answers, callers, shapes
from runlore.lookup.http import organization_shapes as theirs
from runlore.upkeep import access, administration, lastuse
from runlore.upkeep import organization as organizations

router = APIRouter(prefix="/v1/organization", tags=["administration"])
PAGE_MAX, PAGE_DEFAULT = 100, 20
REASON_HEADER = "runlore-reason"
SCOPES = {"api.all.read": access.READ, **{one: one for one in access.SCOPES}}
"""What a key's `scopes` may name: one of OpenAI's own, or ours. None: it may write."""

Limit = Annotated[int, Query(ge=1, le=PAGE_MAX)]
After = Annotated[str | None, Query(max_length=512, description="`last_id` of the page before.")]
B = TypeVar("B", bound=BaseModel)
R = TypeVar("R")


class Body(BaseModel):
    # What has no meaning here is refused, not passed over: whoever asks for a residency must not think it is had.
    model_config = ConfigDict(extra="forbid")


class AdminKeyBody(Body):
    name: str
    expires_in_seconds: int | None = None


class ProjectBody(Body):
    name: str


class AccountBody(Body):
    name: str
    create_service_account_only: bool | None = None
    expires_in_seconds: int | None = None


class AccountChange(Body):
    name: str | None = None
    role: Literal["member", "owner"] | None = None


class RateLimitBody(Body):
    max_requests_per_1_minute: int | None = None
    max_tokens_per_1_minute: int | None = None
    max_bytes_per_1_minute: int | None = None
    """Ours: theirs counts no bytes."""


class KeyBody(Body):
    name: str = "key"
    scopes: list[str] | None = None
    expires_in_seconds: int | None = None
    limits: dict[str, RateLimitBody | None] | None = None
    """Ours: theirs limits no key of its own."""


class KeyChange(Body):
    scopes: list[str] | None = None
    expires_in_seconds: int | None = None
    limits: dict[str, RateLimitBody | None] | None = None


async def body_of(request: Request, model: type[B]) -> B:
    """The body as `model`. Raises `errors.InvalidInput`, which tells no value: it may be a secret."""
    try:
        return model.model_validate(await answers.object_of(request))
    except ValidationError as exc:
        found = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in exc.errors()[:3]]
        raise errors.InvalidInput("; ".join(found), hint="docs/ADMIN.md") from None


def administrator(request: Request, key: organizations.AdminKey) -> administration.Administrator:
    """Whoever sent the request, as the log keeps them."""
    by = {"key": key.id, "key_name": key.name, "user": key.owner.id}
    store = callers.service_of(request).store
    forget = request.app.state.keyring.forget
    return administration.Administrator(store, by, request.headers.get(REASON_HEADER), forget)


async def told(request: Request, body: BaseModel | dict[str, Any]) -> Response:
    return await answers.found(request, body.model_dump() if isinstance(body, BaseModel) else body)


def cut(
    rows: Iterable[R], after: str | None, limit: int, name: Callable[[R], str], *, newest_first: bool = False
) -> tuple[list[R], bool]:
    """A page of rows, in the order of their ids. A cursor may be of what is gone by now."""
    ordered = sorted(rows, key=name, reverse=newest_first)
    left = [
        one for one in ordered if after is None or (name(one) < after if newest_first else name(one) > after)
    ]
    return left[:limit], len(left) > limit


# --- admin keys ---------------------------------------------------------------------------------------------


@router.post(
    "/admin_api_keys",
    summary="Make an admin key",
    responses=shapes.answers(theirs.AdminKeyMade),
    openapi_extra=shapes.takes(AdminKeyBody),
)
async def create_admin_key(request: Request, admin: callers.Administering) -> Response:
    given = await body_of(request, AdminKeyBody)
    made, token = await administrator(request, admin).create_admin_key(
        given.name, owner=admin.owner, expires_in_seconds=given.expires_in_seconds
    )
    return await told(request, {**theirs.admin_key(made, {}).model_dump(), "value": token})


@router.get("/admin_api_keys", summary="List admin keys", responses=shapes.answers(theirs.Page))
async def list_admin_keys(
    request: Request,
    admin: callers.Administering,
    after: After = None,
    limit: Limit = PAGE_DEFAULT,
    order: Literal["asc", "desc"] = "asc",
) -> Response:
    store = callers.service_of(request).store
    kept = (await administration.read(store)).admin_keys.values()
    rows, more = cut(kept, after, limit, lambda one: one.id, newest_first=order == "desc")
    used = await lastuse.of(store, [one.id for one in rows])
    return await told(request, theirs.page([theirs.admin_key(one, used) for one in rows], has_more=more))


@router.get("/admin_api_keys/{key_id}", summary="One admin key", responses=shapes.answers(theirs.AdminKey))
async def admin_key(request: Request, admin: callers.Administering, key_id: callers.Segment) -> Response:
    store = callers.service_of(request).store
    found = (await administration.read(store)).admin_keys.get(key_id)
    if found is None:
        raise errors.NotFound(f"there is no admin key {key_id!r}")
    return await told(request, theirs.admin_key(found, await lastuse.of(store, [found.id])))


@router.delete(
    "/admin_api_keys/{key_id}", summary="End an admin key", responses=shapes.answers(theirs.Deleted)
)
async def delete_admin_key(
    request: Request, admin: callers.Administering, key_id: callers.Segment
) -> Response:
    await administrator(request, admin).delete_admin_key(key_id)
    return await told(request, theirs.Deleted(object="organization.admin_api_key.deleted", id=key_id))


# --- projects -----------------------------------------------------------------------------------------------


async def project_of(request: Request, project: str) -> organizations.Project:
    """One project; one that only events made as it would be administered. Raises `errors.NotFound`."""
    store = callers.service_of(request).store
    found = (await administration.read(store)).projects.get(project)
    if found is None and project in await administration.known_projects(store):
        found = await _implied(request, project)
    if found is None:
        raise errors.NotFound(f"there is no project {project!r}")
    return found


async def _implied(request: Request, project: str) -> organizations.Project:
    seen = await administration.first_seen(callers.service_of(request).store, project)
    return organizations.Project(id=project, name=project, created_at=seen)


@router.post(
    "/projects",
    summary="Make a project",
    responses=shapes.answers(theirs.Project),
    openapi_extra=shapes.takes(ProjectBody),
)
async def create_project(request: Request, admin: callers.Administering) -> Response:
    given = await body_of(request, ProjectBody)
    return await told(request, theirs.project(await administrator(request, admin).create_project(given.name)))


@router.get("/projects", summary="List projects", responses=shapes.answers(theirs.Page))
async def list_projects(
    request: Request,
    admin: callers.Administering,
    after: After = None,
    limit: Limit = PAGE_DEFAULT,
    include_archived: bool = False,
) -> Response:
    store = callers.service_of(request).store
    kept = (await administration.read(store)).projects
    hidden = () if include_archived else {name for name, one in kept.items() if one.archived_at is not None}
    names = (await administration.known_projects(store) | kept.keys()).difference(hidden)
    rows, more = cut(names, after, limit, lambda one: one)
    shown = [theirs.project(kept.get(name) or await _implied(request, name)) for name in rows]
    return await told(request, theirs.page(shown, has_more=more))


@router.get("/projects/{project_id}", summary="One project", responses=shapes.answers(theirs.Project))
async def project(request: Request, admin: callers.Administering, project_id: callers.Segment) -> Response:
    return await told(request, theirs.project(await project_of(request, project_id)))


@router.post(
    "/projects/{project_id}",
    summary="Rename a project",
    responses=shapes.answers(theirs.Project),
    openapi_extra=shapes.takes(ProjectBody),
)
async def update_project(
    request: Request, admin: callers.Administering, project_id: callers.Segment
) -> Response:
    given = await body_of(request, ProjectBody)
    made = await administrator(request, admin).rename_project(project_id, given.name)
    return await told(request, theirs.project(made))


@router.post(
    "/projects/{project_id}/archive",
    summary="Archive a project: its keys open nothing any more",
    responses=shapes.answers(theirs.Project),
)
async def archive_project(
    request: Request, admin: callers.Administering, project_id: callers.Segment
) -> Response:
    return await told(
        request, theirs.project(await administrator(request, admin).archive_project(project_id))
    )


# --- service accounts ---------------------------------------------------------------------------------------


@router.post(
    "/projects/{project_id}/service_accounts",
    summary="Make a service account, with a key unless told otherwise",
    responses=shapes.answers(theirs.AccountMade),
    openapi_extra=shapes.takes(AccountBody),
)
async def create_account(
    request: Request, admin: callers.Administering, project_id: callers.Segment
) -> Response:
    given = await body_of(request, AccountBody)
    alone = bool(given.create_service_account_only)
    if alone and given.expires_in_seconds is not None:
        raise errors.InvalidInput(
            "expires_in_seconds is the key's, and create_service_account_only makes none"
        )
    administration.check_expiry(given.expires_in_seconds)
    hand = administrator(request, admin)
    role = organizations.NONE if alone else organizations.MEMBER
    made = await hand.create_account(project_id, given.name, role=role)
    key = None
    if not alone:
        key = theirs.key_made(
            *await hand.create_key(
                project_id, made.id, made.name, expires_in_seconds=given.expires_in_seconds
            )
        ).model_dump()
    return await told(request, {**theirs.account(made).model_dump(), "api_key": key})


@router.get(
    "/projects/{project_id}/service_accounts",
    summary="List service accounts",
    responses=shapes.answers(theirs.Page),
)
async def list_accounts(
    request: Request,
    admin: callers.Administering,
    project_id: callers.Segment,
    after: After = None,
    limit: Limit = PAGE_DEFAULT,
) -> Response:
    kept = (await project_of(request, project_id)).accounts.values()
    rows, more = cut(kept, after, limit, lambda one: one.id)
    return await told(request, theirs.page([theirs.account(one) for one in rows], has_more=more))


@router.get(
    "/projects/{project_id}/service_accounts/{account_id}",
    summary="One service account",
    responses=shapes.answers(theirs.Account),
)
async def account(
    request: Request, admin: callers.Administering, project_id: callers.Segment, account_id: callers.Segment
) -> Response:
    org = await administration.read(callers.service_of(request).store)
    return await told(request, theirs.account(organizations.account_of(org, project_id, account_id)))


@router.post(
    "/projects/{project_id}/service_accounts/{account_id}",
    summary="Another name or role of a service account",
    responses=shapes.answers(theirs.Account),
    openapi_extra=shapes.takes(AccountChange),
)
async def update_account(
    request: Request, admin: callers.Administering, project_id: callers.Segment, account_id: callers.Segment
) -> Response:
    given = await body_of(request, AccountChange)
    made = await administrator(request, admin).update_account(
        project_id, account_id, name=given.name, role=given.role
    )
    return await told(request, theirs.account(made))


@router.delete(
    "/projects/{project_id}/service_accounts/{account_id}",
    summary="Take a service account away, and its keys",
    responses=shapes.answers(theirs.Deleted),
)
async def delete_account(
    request: Request, admin: callers.Administering, project_id: callers.Segment, account_id: callers.Segment
) -> Response:
    await administrator(request, admin).delete_account(project_id, account_id)
    gone = theirs.Deleted(object="organization.project.service_account.deleted", id=account_id)
    return await told(request, gone)


@router.post(
    "/projects/{project_id}/service_accounts/{account_id}/api_keys",
    summary="Make a key of a service account",
    responses=shapes.answers(theirs.KeyMade),
    openapi_extra=shapes.takes(KeyBody),
)
async def create_key(
    request: Request, admin: callers.Administering, project_id: callers.Segment, account_id: callers.Segment
) -> Response:
    given = await body_of(request, KeyBody)
    made = await administrator(request, admin).create_key(
        project_id,
        account_id,
        given.name,
        scope=_scope(given.scopes),
        expires_in_seconds=given.expires_in_seconds,
        limits=_own_limits(given.limits),
    )
    return await told(request, theirs.key_made(*made))


def _scope(scopes: list[str] | None) -> str:
    """The one scope that these come to: the highest. Raises `errors.InvalidInput`."""
    unknown = [one for one in scopes or () if one not in SCOPES]
    if unknown:
        raise errors.InvalidInput("scopes: one is not known", hint=f"scopes: {', '.join(SCOPES)}")
    return max((SCOPES[one] for one in scopes or ()), key=access.SCOPES.index, default=access.WRITE)


# --- keys of projects ---------------------------------------------------------------------------------------


async def _keys(request: Request, project: str) -> tuple[organizations.Organization, list[access.Key]]:
    """The keys of a project that have not ended; of an archived one those that it had."""
    store = callers.service_of(request).store
    await project_of(request, project)
    listed = await access.list_all(store, project)
    # Read after: a key is put before the organization names it.
    org = await administration.read(store)
    good = [
        one
        for one in listed
        if one.revoked_at is None
        and one.id not in org.ended_keys
        and (one.account is None or organizations.names_key(org, one))
    ]
    return org, good


@router.get(
    "/projects/{project_id}/api_keys", summary="List keys of a project", responses=shapes.answers(theirs.Page)
)
async def list_keys(
    request: Request,
    admin: callers.Administering,
    project_id: callers.Segment,
    after: After = None,
    limit: Limit = PAGE_DEFAULT,
    owner_project_access: Literal["active", "inactive", "any"] = "any",
) -> Response:
    org, kept = await _keys(request, project_id)
    used = await lastuse.of(callers.service_of(request).store, [one.id for one in kept])
    shown = [theirs.project_key(one, org, used) for one in kept]
    wanted = [one for one in shown if owner_project_access in ("any", one.owner_project_access)]
    rows, more = cut(wanted, after, limit, lambda one: one.id)
    return await told(request, theirs.page(rows, has_more=more))


@router.get(
    "/projects/{project_id}/api_keys/{key_id}",
    summary="One key of a project",
    responses=shapes.answers(theirs.ProjectKey),
)
async def key(
    request: Request, admin: callers.Administering, project_id: callers.Segment, key_id: callers.Segment
) -> Response:
    org, kept = await _keys(request, project_id)
    for one in kept:
        if one.id == key_id:
            used = await lastuse.of(callers.service_of(request).store, [one.id])
            return await told(request, theirs.project_key(one, org, used))
    raise errors.NotFound(f"project {project_id} has no key {key_id!r}")


@router.post(
    "/projects/{project_id}/api_keys/{key_id}",
    summary="Another scope or end of a service account's key",
    responses=shapes.answers(theirs.ProjectKey),
    openapi_extra=shapes.takes(KeyChange),
)
async def update_key(
    request: Request, admin: callers.Administering, project_id: callers.Segment, key_id: callers.Segment
) -> Response:
    given = await body_of(request, KeyChange)
    made = await administrator(request, admin).update_key(
        project_id,
        key_id,
        scope=None if given.scopes is None else _scope(given.scopes),
        expires_in_seconds=given.expires_in_seconds,
        limits=_own_limits(given.limits),
    )
    store = callers.service_of(request).store
    org, used = await administration.read(store), await lastuse.of(store, [key_id])
    return await told(request, theirs.project_key(made, org, used))


@router.delete(
    "/projects/{project_id}/api_keys/{key_id}",
    summary="End a key of a project",
    responses=shapes.answers(theirs.Deleted),
)
async def delete_key(
    request: Request, admin: callers.Administering, project_id: callers.Segment, key_id: callers.Segment
) -> Response:
    await administrator(request, admin).delete_key(project_id, key_id)
    return await told(request, theirs.Deleted(object="organization.project.api_key.deleted", id=key_id))


# --- rate limits --------------------------------------------------------------------------------------------


@router.get(
    "/projects/{project_id}/rate_limits",
    summary="What a project may ask for in a minute",
    responses=shapes.answers(theirs.Page),
)
async def rate_limits(
    request: Request,
    admin: callers.Administering,
    project_id: callers.Segment,
    after: After = None,
    before: After = None,
    limit: Limit = PAGE_MAX,
) -> Response:
    kept = await project_of(request, project_id)
    rows = [theirs.rate_limit(what, kept) for what in organizations.LIMITED]
    newer = [one for one in rows if before is None or one.id < before]
    if before is not None:
        return await told(request, theirs.page(newer[-limit:], has_more=len(newer) > limit))
    found, more = cut(newer, after, limit, lambda one: one.id)
    return await told(request, theirs.page(found, has_more=more))


@router.post(
    "/projects/{project_id}/rate_limits/{rate_limit_id}",
    summary="Say what a project may ask for in a minute",
    responses=shapes.answers(theirs.RateLimit),
    openapi_extra=shapes.takes(RateLimitBody),
)
async def update_rate_limit(
    request: Request,
    admin: callers.Administering,
    project_id: callers.Segment,
    rate_limit_id: callers.Segment,
) -> Response:
    given = await body_of(request, RateLimitBody)
    what = rate_limit_id.removeprefix(theirs.RATE_LIMIT)
    known = [f"{theirs.RATE_LIMIT}{one}" for one in organizations.LIMITED]
    if rate_limit_id not in known:
        raise errors.NotFound(
            f"there is no rate limit {rate_limit_id!r}", hint=f"there are {', '.join(known)}"
        )
    units = {unit: most for unit, most in _units(what, given).items() if most is not None}
    if not units:
        needed = [f"max_{unit}_per_1_minute" for unit in organizations.UNITS[what]]
        raise errors.InvalidInput(f"{' or '.join(needed)} is needed")
    made = await administrator(request, admin).limit(project_id, what, units)
    return await told(request, theirs.rate_limit(what, made))


def _units(what: str, given: RateLimitBody) -> dict[str, int | None]:
    """Unit → how much, as it was given. What is as good as no limit may stand also where nothing is counted."""
    counted = organizations.UNITS.get(what, ())
    found = {unit: getattr(given, f"max_{unit}_per_1_minute") for unit in theirs.UNLIMITED}
    return {
        unit: most
        for unit, most in found.items()
        if f"max_{unit}_per_1_minute" in given.model_fields_set
        and (unit in counted or most not in (None, theirs.UNLIMITED[unit]))
    }


def _own_limits(given: dict[str, RateLimitBody | None] | None) -> administration.Limits | None:
    """A key's own limits as they are to be; null for a thing ends all of it."""
    if given is None:
        return None
    return {
        what: dict.fromkeys(organizations.UNITS.get(what, ())) if one is None else _units(what, one)
        for what, one in given.items()
    }
