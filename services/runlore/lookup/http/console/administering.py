"""Pages of whoever administers: projects, and what is inside of one: service accounts, keys, limits, users.

They do what the routes of `lookup/http/organization.py` do, by the same functions. Every change asks why; what is made
and shown once is the answer to the form itself, which no cache keeps and no address leads to again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from runlore import clock, errors
from runlore.lookup.http import answers, callers
from runlore.lookup.http.console import operations, pages, sessions
from runlore.upkeep import access, administration, allotments, lastuse, people
from runlore.upkeep import organization as organizations

router = APIRouter(
    prefix=f"/{pages.ADMINISTRATION}",
    include_in_schema=False,
    dependencies=[Depends(pages.asked_by_a_browser)],
    route_class=pages.Route,
)
PROJECTS_SHOWN = 50
KEYS_SHOWN = 200
EXPIRES = (("", "never"), ("1", "in a day"), ("30", "in 30 days"), ("90", "in 90 days"), ("365", "in a year"))
"""When a key that is made here ends: days, and in words."""

Operator = Annotated[sessions.Operator, Depends(sessions.administers)]
Id = callers.Segment


def root(*segments: object, **query: object) -> str:
    return pages.url(pages.ADMINISTRATION, *segments, **query)


@dataclass(frozen=True)
class Change:
    """A form that changes something: its fields, and the hand that does it."""

    fields: dict[str, str]
    hand: administration.Administrator

    def get(self, name: str) -> str:
        return self.fields.get(name, "").strip()

    @property
    def expires_in_seconds(self) -> int | None:
        days = self.get("expires")
        if not days:
            return None
        if days not in dict(EXPIRES):
            raise errors.InvalidInput("the key's end is none of those that can be chosen")
        return int(days) * 86_400


async def change_of(request: Request, operator: sessions.Operator, project: str | None = None) -> Change:
    """The form, of somebody who may change that. Raises `errors.Forbidden`, `errors.InvalidInput`."""
    fields = await sessions.form_of(request, operator)
    if not operator.changes(project):
        raise errors.Forbidden(callers.MAY_READ)
    store, forget = callers.service_of(request).store, request.app.state.keyring.forget
    why = operations.reason_of(fields)
    return Change(fields, administration.Administrator(store, operator.by(), why, forget))


async def organization(request: Request) -> organizations.Organization:
    """As it is now: what was just changed shows."""
    return await administration.read(callers.service_of(request).store)


async def value(
    request: Request, *, title: str, what: str, token: str, back: str, note: str = ""
) -> Response:
    """The page that shows a secret, this once."""
    return await pages.shown(
        request, "value.html", title=title, what=what, value=token, back=back, note_=note
    )


# --- projects -----------------------------------------------------------------------------------------------


@router.get("")
async def projects(request: Request, operator: Operator, cursor: callers.Cursor = None) -> Response:
    """Every project, those that only events made too."""
    after = (answers.place_of(cursor, str) or ("",))[0]
    org = await organization(request)
    names = org.projects.keys() | await administration.known_projects(callers.service_of(request).store)
    behind = [name for name in sorted(names) if name > after][: PROJECTS_SHOWN + 1]
    page = answers.page(
        behind,
        PROJECTS_SHOWN,
        answers.cursor_of,
        lambda name: {"id": name, "kept": org.projects.get(name)},
    )
    now = clock.now()
    waiting = [one for one in org.invites.values() if not people.is_over(one, now)]
    return await pages.shown(
        request,
        "admin_projects.html",
        title="Projects · Administration",
        org=org,
        page=page,
        total=len(names),
        waiting=len(waiting),
        is_first=not after,
    )


@router.post("/projects")
async def create_project(request: Request, operator: Operator) -> Response:
    change = await change_of(request, operator)
    made = await change.hand.create_project(change.get("name"))
    return pages.go(root("projects", made.id, done="made"))


async def _kept(request: Request, project: str) -> tuple[organizations.Organization, organizations.Project]:
    """A project as it is administered. Raises `errors.NotFound`."""
    store, org = callers.service_of(request).store, await organization(request)
    if project in org.projects:
        return org, org.projects[project]
    hand = administration.Administrator(store, {})
    implied = await hand.implied(project)
    if implied is None:
        raise errors.NotFound(f"there is no project {project!r}")
    return org, implied


@router.get("/projects/{project_id}")
async def project(request: Request, project_id: Id, operator: Operator) -> Response:
    """A project: its service accounts, keys, limits, users."""
    _, kept = await _kept(request, project_id)
    store = callers.service_of(request).store
    listed = await access.list_all(store, project_id)
    # Read after: a key is put before the organization names it.
    org = await organization(request)
    good = [
        org.present(one)
        for one in listed[::-1]
        if one.revoked_at is None
        and one.id not in org.ended_keys
        and (one.account is None or organizations.names_key(org, one))
    ]
    shown = good[:KEYS_SHOWN]
    now = clock.now()
    return await pages.shown(
        request,
        "admin_project.html",
        title=f"{kept.name} · Administration",
        org=org,
        one=kept,
        keys=shown,
        total=len(good),
        used=await lastuse.of(store, [key.id for key in shown]),
        over={key.id for key in shown if key.is_over(now)},
        members=[(org.users[name], member) for name, member in kept.members.items() if name in org.users],
        others=[user for user in org.users.values() if user.id not in kept.members],
        limits=await _limits(request, kept),
        unlimited=organizations.UNLIMITED,
        own={key.id: organizations.terms_of(org, key).limits for key in shown},
        expires=EXPIRES,
        scopes=access.SCOPES,
        redacted=access.redacted,
        may=operator.changes(project_id) and kept.archived_at is None,
        may_all=operator.changes() and kept.archived_at is None,
    )


@router.post("/projects/{project_id}/rename")
async def rename_project(request: Request, project_id: Id, operator: Operator) -> Response:
    change = await change_of(request, operator)
    await change.hand.rename_project(project_id, change.get("name"))
    return pages.go(root("projects", project_id, done="changed"))


@router.post("/projects/{project_id}/archive")
async def archive_project(request: Request, project_id: Id, operator: Operator) -> Response:
    change = await change_of(request, operator)
    # There is no way back: the name is typed, not only clicked past.
    if change.get("name") != project_id:
        raise errors.InvalidInput("to archive a project, type its id")
    await change.hand.archive_project(project_id)
    return pages.go(root("projects", project_id, done="archived"))


# --- service accounts and keys --------------------------------------------------------------------------------


@router.post("/projects/{project_id}/accounts")
async def create_account(request: Request, project_id: Id, operator: Operator) -> Response:
    """A service account with its first key, as the API makes one."""
    change = await change_of(request, operator, project_id)
    expires, role = change.expires_in_seconds, change.get("role") or organizations.MEMBER
    if role not in (organizations.MEMBER, organizations.OWNER):
        raise errors.InvalidInput("the role is member or owner")
    made = await change.hand.create_account(project_id, change.get("name"), role=role)
    _, token = await change.hand.create_key(project_id, made.id, made.name, expires_in_seconds=expires)
    what = f"The key of the service account {made.name}, of scope write"
    return await value(
        request, title="Service account made", what=what, token=token, back=root("projects", project_id)
    )


@router.post("/projects/{project_id}/accounts/{account_id}/role")
async def account_role(request: Request, project_id: Id, account_id: Id, operator: Operator) -> Response:
    change = await change_of(request, operator, project_id)
    await change.hand.update_account(project_id, account_id, role=change.get("role"))
    return pages.go(root("projects", project_id, done="changed"))


@router.post("/projects/{project_id}/accounts/{account_id}/delete")
async def delete_account(request: Request, project_id: Id, account_id: Id, operator: Operator) -> Response:
    change = await change_of(request, operator, project_id)
    await change.hand.delete_account(project_id, account_id)
    return pages.go(root("projects", project_id, done="gone"))


@router.post("/projects/{project_id}/keys")
async def create_key(request: Request, project_id: Id, operator: Operator) -> Response:
    change = await change_of(request, operator, project_id)
    scope = change.get("scope")
    key, token = await change.hand.create_key(
        project_id,
        change.get("account"),
        change.get("name"),
        scope=scope,
        expires_in_seconds=change.expires_in_seconds,
    )
    what = f"The key {key.name} of the project {project_id}, of scope {scope}"
    return await value(request, title="Key made", what=what, token=token, back=root("projects", project_id))


@router.post("/projects/{project_id}/keys/{key_id}/end")
async def end_key(request: Request, project_id: Id, key_id: Id, operator: Operator) -> Response:
    change = await change_of(request, operator, project_id)
    await change.hand.delete_key(project_id, key_id)
    return pages.go(root("projects", project_id, done="revoked"))


# --- limits and users -----------------------------------------------------------------------------------------


async def _limits(request: Request, kept: organizations.Project) -> list[dict[str, Any]]:
    """What is limited, with its units: how much in a minute (None: no limit), and how much went out in this one."""
    things = organizations.LIMITED
    store = callers.service_of(request).store
    taken = await allotments.handed_out(store, [(kept.id, what, None) for what in things])
    rows = []
    for what, out in zip(things, taken, strict=True):
        most = kept.limits[what].most() if what in kept.limits else {}
        units = [(unit, most.get(unit), out.get(unit)) for unit in organizations.UNITS[what]]
        rows.append({"what": what, "units": units})
    return rows


@router.post("/projects/{project_id}/limits/{what}")
async def limit(request: Request, project_id: Id, what: Id, operator: Operator) -> Response:
    """So many requests, bytes or tokens in a minute; none said: no limit."""
    change = await change_of(request, operator, project_id)
    units: dict[str, int | None] = {}
    for unit in organizations.UNITS.get(what, ()):
        given = change.get(unit)
        if given and not (given.isascii() and given.isdigit() and len(given) < 15):
            raise errors.InvalidInput(f"{unit} in a minute are a whole number")
        units[unit] = int(given) if given else None
    await change.hand.limit(project_id, what, units)
    return pages.go(root("projects", project_id, done="changed"))


@router.post("/projects/{project_id}/users")
async def member(request: Request, project_id: Id, operator: Operator) -> Response:
    """Make somebody one of the project's, or give them another role there."""
    change = await change_of(request, operator, project_id)
    await people.add_member(change.hand, project_id, change.get("user"), change.get("role"))
    return pages.go(root("projects", project_id, done="changed"))


@router.post("/projects/{project_id}/users/{user_id}/remove")
async def remove_member(request: Request, project_id: Id, user_id: Id, operator: Operator) -> Response:
    change = await change_of(request, operator, project_id)
    await people.remove_member(change.hand, project_id, user_id)
    return pages.go(root("projects", project_id, done="gone"))
