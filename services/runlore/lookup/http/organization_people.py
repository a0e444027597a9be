"""Routes of the people who administer: users with a role, users of a project, invitations and how one is accepted."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from runlore import errors
from runlore.lookup.http import answers, callers, shapes
from runlore.lookup.http import organization as routes
from runlore.lookup.http import organization_shapes as theirs
from runlore.lookup.http.organization import After, Limit, administrator, body_of, cut, told
from runlore.upkeep import administration, invitations, people
from runlore.upkeep import organization as organizations

router = APIRouter(prefix="/v1/organization", tags=["administration"])
INVITE_HEADER = "Runlore-Invite"
MAIL_HEADER = "Runlore-Invite-Mail"
PROJECTS_MAX = 100
"""Projects of one invitation."""


class InviteProject(routes.Body):
    id: str
    role: Literal["member", "owner"]


class InviteBody(routes.Body):
    email: str
    role: Literal["owner", "reader"]
    projects: list[InviteProject] = Field(default_factory=list, max_length=PROJECTS_MAX)


class AcceptBody(routes.Body):
    name: str


class UserChange(routes.Body):
    role: Literal["owner", "reader"]


class MemberBody(routes.Body):
    role: Literal["owner", "member"]
    email: str | None = None
    user_id: str | None = None


class MemberChange(routes.Body):
    role: Literal["owner", "member"]


async def _organization(request: Request) -> organizations.Organization:
    return await administration.read(callers.service_of(request).store)


# --- users --------------------------------------------------------------------------------------------------


@router.get("/users", summary="List users", responses=shapes.answers(theirs.Page))
async def list_users(
    request: Request, admin: callers.Administering, after: After = None, limit: Limit = routes.PAGE_DEFAULT
) -> Response:
    given = [*request.query_params.getlist("emails[]"), *request.query_params.getlist("emails")]
    wanted = {one.casefold() for one in given}
    kept = (await _organization(request)).users.values()
    found = [one for one in kept if not wanted or one.email.casefold() in wanted]
    rows, more = cut(found, after, limit, lambda one: one.id)
    return await told(request, theirs.page([theirs.user(one) for one in rows], has_more=more))


@router.get("/users/{user_id}", summary="One user", responses=shapes.answers(theirs.User))
async def user(request: Request, admin: callers.Administering, user_id: callers.Segment) -> Response:
    return await told(request, theirs.user(people.user_of(await _organization(request), user_id)))


@router.post(
    "/users/{user_id}",
    summary="Another role of a user",
    responses=shapes.answers(theirs.User),
    openapi_extra=shapes.takes(UserChange),
)
async def update_user(request: Request, admin: callers.Administering, user_id: callers.Segment) -> Response:
    given = await body_of(request, UserChange)
    made = await people.change_role(administrator(request, admin), user_id, given.role)
    return await told(request, theirs.user(made))


@router.delete(
    "/users/{user_id}",
    summary="Take a user away, and their admin keys",
    responses=shapes.answers(theirs.Deleted),
)
async def delete_user(request: Request, admin: callers.Administering, user_id: callers.Segment) -> Response:
    await people.remove(administrator(request, admin), user_id)
    return await told(request, theirs.Deleted(object="organization.user.deleted", id=user_id))


# --- users of a project -------------------------------------------------------------------------------------


@router.post(
    "/projects/{project_id}/users",
    summary="Make a user one of a project's",
    responses=shapes.answers(theirs.ProjectUser),
    openapi_extra=shapes.takes(MemberBody),
)
async def create_member(
    request: Request, admin: callers.Administering, project_id: callers.Segment
) -> Response:
    given = await body_of(request, MemberBody)
    if (given.email is None) == (given.user_id is None):
        raise errors.InvalidInput("one of email and user_id is needed")
    user_id = given.user_id or people.user_named(await _organization(request), given.email or "").id
    made = await people.add_member(administrator(request, admin), project_id, user_id, given.role)
    return await told(request, theirs.project_user(*made))


@router.get(
    "/projects/{project_id}/users", summary="List a project's users", responses=shapes.answers(theirs.Page)
)
async def list_members(
    request: Request,
    admin: callers.Administering,
    project_id: callers.Segment,
    after: After = None,
    limit: Limit = routes.PAGE_DEFAULT,
) -> Response:
    members = (await routes.project_of(request, project_id)).members
    rows, more = cut(members, after, limit, lambda one: one)
    org = await _organization(request)
    shown = [theirs.project_user(org.users[one], members[one]) for one in rows if one in org.users]
    return await told(request, theirs.page(shown, has_more=more))


@router.get(
    "/projects/{project_id}/users/{user_id}",
    summary="One user of a project",
    responses=shapes.answers(theirs.ProjectUser),
)
async def member(
    request: Request, admin: callers.Administering, project_id: callers.Segment, user_id: callers.Segment
) -> Response:
    org = await _organization(request)
    found = people.member_of(org, project_id, user_id)
    return await told(request, theirs.project_user(people.user_of(org, user_id), found))


@router.post(
    "/projects/{project_id}/users/{user_id}",
    summary="Another role of a user in a project",
    responses=shapes.answers(theirs.ProjectUser),
    openapi_extra=shapes.takes(MemberChange),
)
async def update_member(
    request: Request, admin: callers.Administering, project_id: callers.Segment, user_id: callers.Segment
) -> Response:
    given = await body_of(request, MemberChange)
    people.member_of(await _organization(request), project_id, user_id)
    made = await people.add_member(administrator(request, admin), project_id, user_id, given.role)
    return await told(request, theirs.project_user(*made))


@router.delete(
    "/projects/{project_id}/users/{user_id}",
    summary="Take a user out of a project",
    responses=shapes.answers(theirs.Deleted),
)
async def delete_member(
    request: Request, admin: callers.Administering, project_id: callers.Segment, user_id: callers.Segment
) -> Response:
    await people.remove_member(administrator(request, admin), project_id, user_id)
    return await told(request, theirs.Deleted(object="organization.project.user.deleted", id=user_id))


# --- invitations --------------------------------------------------------------------------------------------


@router.post(
    "/invites",
    summary="Invite somebody",
    responses=shapes.answers(theirs.Invite),
    openapi_extra=shapes.takes(InviteBody),
)
async def create_invite(request: Request, admin: callers.Administering) -> Response:
    given = await body_of(request, InviteBody)
    made, token = await people.invite(
        administrator(request, admin),
        given.email,
        role=given.role,
        projects={one.id: one.role for one in given.projects},
    )
    return await _sent(request, made, token)


async def _sent(request: Request, made: organizations.Invite, token: str) -> Response:
    """The invitation, mailed where that is wanted. What is ours stands beside the body, whose shape is theirs."""
    delivery = await invitations.deliver(callers.service_of(request).post, made, token)
    headers = {MAIL_HEADER: delivery.told}
    if delivery.state != invitations.SENT:
        # Whoever invites hands it on.
        headers[INVITE_HEADER] = token
    return await answers.found(request, theirs.invite(made).model_dump(), headers=headers)


@router.post(
    "/invites/{invite_id}/resend",
    summary="Another token of an invitation, mailed anew",
    responses=shapes.answers(theirs.Invite),
)
async def resend_invite(
    request: Request, admin: callers.Administering, invite_id: callers.Segment
) -> Response:
    return await _sent(request, *await people.renew(administrator(request, admin), invite_id))


@router.get("/invites", summary="List invitations", responses=shapes.answers(theirs.Page))
async def list_invites(
    request: Request, admin: callers.Administering, after: After = None, limit: Limit = routes.PAGE_DEFAULT
) -> Response:
    rows, more = cut((await _organization(request)).invites.values(), after, limit, lambda one: one.id)
    return await told(request, theirs.page([theirs.invite(one) for one in rows], has_more=more))


@router.get("/invites/{invite_id}", summary="One invitation", responses=shapes.answers(theirs.Invite))
async def invite(request: Request, admin: callers.Administering, invite_id: callers.Segment) -> Response:
    return await told(request, theirs.invite(people.invite_of(await _organization(request), invite_id)))


@router.delete(
    "/invites/{invite_id}", summary="Take an invitation back", responses=shapes.answers(theirs.Deleted)
)
async def delete_invite(
    request: Request, admin: callers.Administering, invite_id: callers.Segment
) -> Response:
    await people.withdraw(administrator(request, admin), invite_id)
    return await told(request, theirs.Deleted(object="organization.invite.deleted", id=invite_id))


@router.post(
    "/invites/accept",
    summary="Become a user: the bearer token is the invitation's",
    responses=shapes.answers(theirs.Accepted),
    openapi_extra=shapes.takes(AcceptBody),
)
async def accept_invite(request: Request) -> Response:
    token = callers.token_of(request)
    with callers.service_of(request).requests.entered(callers.ADMINISTRATION):
        given = await body_of(request, AcceptBody)
        store, forget = callers.service_of(request).store, request.app.state.keyring.forget
        hand = administration.Administrator(store, {}, None, forget)
        made, key, value = await people.accept(hand, token, given.name)
    shown = {**theirs.admin_key(key, {}).model_dump(), "value": value}
    accepted = theirs.Accepted(user=theirs.user(made), admin_api_key=theirs.AdminKeyMade(**shown))
    return await told(request, accepted)
