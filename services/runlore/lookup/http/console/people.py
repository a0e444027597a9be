"""Pages of the people who administer: users, invitations, admin keys; and the page where an invitation is accepted.

The last is for whoever has the invitation's token, who is nobody here yet. It shows the first admin key of the new user
once, and makes no session: signing in with that key is the first use of it.
"""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from runlore import clock, errors
from runlore.lookup.http import callers
from runlore.lookup.http.console import administering, pages, sessions
from runlore.lookup.http.console.administering import Id, Operator, change_of, organization, root, value
from runlore.upkeep import access, administration, invitations, lastuse, people
from runlore.upkeep import organization as organizations

router = APIRouter(
    include_in_schema=False,
    dependencies=[Depends(pages.asked_by_a_browser)],
    route_class=pages.Route,
)
ADMIN = f"/{pages.ADMINISTRATION}"
INVITES_SHOWN = 100


# --- users and invitations --------------------------------------------------------------------------------------


@router.get(f"{ADMIN}/people")
async def shown(request: Request, operator: Operator) -> Response:
    """Users with their roles, and who is invited."""
    org, now = await organization(request), clock.now()
    invites = sorted(org.invites.values(), key=lambda one: one.created_at, reverse=True)
    open_ones = [one for one in invites if one.accepted_at is None]
    in_projects: dict[str, list[tuple[str, str]]] = {}
    for name, kept in sorted(org.projects.items()):
        for user, member in kept.members.items():
            in_projects.setdefault(user, []).append((name, member.role))
    return await pages.shown(
        request,
        "admin_people.html",
        title="People · Administration",
        users=sorted(org.users.values(), key=lambda one: (one.name.casefold(), one.id)),
        in_projects=in_projects,
        invites=open_ones[:INVITES_SHOWN],
        total=len(open_ones),
        over={one.id for one in open_ones if people.is_over(one, now)},
        is_mailed=callers.service_of(request).post.relay is not None,
        projects=[one.id for one in org.projects.values() if one.archived_at is None],
        me=operator.key.owner.id,
    )


@router.post(f"{ADMIN}/people/{{user_id}}/role")
async def change_role(request: Request, user_id: Id, operator: Operator) -> Response:
    change = await change_of(request, operator)
    await people.change_role(change.hand, user_id, change.get("role"))
    return pages.go(root("people", done="changed"))


@router.post(f"{ADMIN}/people/{{user_id}}/remove")
async def remove(request: Request, user_id: Id, operator: Operator) -> Response:
    change = await change_of(request, operator)
    await people.remove(change.hand, user_id)
    return pages.go(root("people", done="gone"))


@router.post(f"{ADMIN}/invites")
async def invite(request: Request, operator: Operator) -> Response:
    change = await change_of(request, operator)
    role, project, there = change.get("role"), change.get("project"), change.get("project_role")
    if role not in (organizations.OWNER, organizations.READER):
        raise errors.InvalidInput("the role is owner or reader")
    if project and there not in (organizations.OWNER, organizations.MEMBER):
        raise errors.InvalidInput("the role in the project is owner or member")
    projects = {project: there} if project else {}
    made, token = await people.invite(change.hand, change.get("email"), role=role, projects=projects)
    return await _delivered(request, made, token)


@router.post(f"{ADMIN}/invites/{{invite_id}}/resend")
async def resend(request: Request, invite_id: Id, operator: Operator) -> Response:
    change = await change_of(request, operator)
    return await _delivered(request, *await people.renew(change.hand, invite_id))


@router.post(f"{ADMIN}/invites/{{invite_id}}/withdraw")
async def withdraw(request: Request, invite_id: Id, operator: Operator) -> Response:
    change = await change_of(request, operator)
    await people.withdraw(change.hand, invite_id)
    return pages.go(root("people", done="gone"))


async def _delivered(request: Request, made: organizations.Invite, token: str) -> Response:
    """The invitation is on its way; where it is not, what whoever invites hands on, this once."""
    post = callers.service_of(request).post
    delivery = await invitations.deliver(post, made, token)
    if delivery.state == invitations.SENT:
        return pages.go(root("people", done="mailed"))
    note = ""
    if delivery.problem is not None:
        why = f"({delivery.problem.kind}): {delivery.problem.message}"
        note = f"The mail could not be sent {why}. The invitation stands."
    return await value(
        request,
        title="Invitation made",
        what=f"The invitation of {made.email}: hand it on. It is good once, for a week",
        # Without a public address: the one under which the browser itself reached this page.
        token=invitations.link(post.public_url or _origin(request), token) or token,
        back=root("people"),
        note=note,
    )


def _origin(request: Request) -> str:
    """Where the browser is, as it says itself with a form that it sends."""
    origin = request.headers.get("origin", "")
    return origin if origin.startswith(("http://", "https://")) else ""


# --- admin keys ---------------------------------------------------------------------------------------------------


@router.get(f"{ADMIN}/keys")
async def keys(request: Request, operator: Operator) -> Response:
    """Who may administer."""
    org, now = await organization(request), clock.now()
    found = sorted(org.admin_keys.values(), key=lambda one: one.created_at, reverse=True)
    return await pages.shown(
        request,
        "admin_keys.html",
        title="Admin keys · Administration",
        keys=found,
        roles={one.id: org.role_of(one, now) for one in found},
        used=await lastuse.of(callers.service_of(request).store, [one.id for one in found]),
        prefix=administration.ADMIN_PREFIX,
        redacted=access.redacted,
        users=org.users,
        expires=administering.EXPIRES,
        may=operator.changes(),
    )


@router.post(f"{ADMIN}/keys")
async def create_key(request: Request, operator: Operator) -> Response:
    """Another admin key, of whoever asks."""
    change = await change_of(request, operator)
    made, token = await change.hand.create_admin_key(
        change.get("name"), owner=operator.key.owner, expires_in_seconds=change.expires_in_seconds
    )
    what = f"The admin key {made.name}, which may do what your role says"
    return await value(request, title="Admin key made", what=what, token=token, back=root("keys"))


@router.post(f"{ADMIN}/keys/{{key_id}}/end")
async def end_key(request: Request, key_id: Id, operator: Operator) -> Response:
    change = await change_of(request, operator)
    await change.hand.delete_admin_key(key_id)
    return pages.go(root("keys", done="revoked"))


# --- accepting an invitation --------------------------------------------------------------------------------------


@router.get(invitations.PAGE)
async def invitation(request: Request) -> Response:
    """Where the link of an invitation leads. Its token is behind `#`: the page's script puts it into the field."""
    return await _invitation(request)


async def _invitation(request: Request, problem: str = "", name: str = "", status: int = 200) -> Response:
    form = await sessions.form_token(request, sessions.Viewer())
    return await pages.shown(
        request,
        "invitation.html",
        title="Accept an invitation",
        status=status,
        problem=problem,
        name=name,
        form=form,
    )


@router.post(invitations.PAGE)
async def accept(request: Request) -> Response:
    """Become a user; the first admin key is shown this once."""
    fields = await sessions.form_of(request, sessions.Viewer())
    name = fields.get("name", "")
    service = callers.service_of(request)
    hand = administration.Administrator(service.store, {}, None, request.app.state.keyring.forget)
    try:
        with service.requests.entered(callers.ADMINISTRATION):
            made, _, token = await people.accept(hand, fields.get("invitation", "").strip(), name)
    except (errors.Unauthorized, errors.InvalidInput, errors.Refused) as exc:
        status = 401 if isinstance(exc, errors.Unauthorized) else 400
        return await _invitation(request, exc.message, name, status)
    return await value(
        request,
        title=f"Welcome, {made.name}",
        what=f"Your admin key. You are {made.role}, and sign in with it",
        token=token,
        back=pages.url("sign-in"),
    )
