"""People who administer: invited, accepted with a token, each with a role, and with another one in single projects.

A user signs in nowhere: what they have is admin keys, which may do what their role says at that moment
(`organization.Organization.role_of`). Whoever is taken away takes their keys with them, in the same move.
"""

from __future__ import annotations

import datetime as dt
import hmac
import re
from collections.abc import Mapping

from runlore import clock, errors
from runlore.events import ids
from runlore.upkeep import access, administration, adminlog
from runlore.upkeep import organization as organizations
from runlore.upkeep.administration import Administrator
from runlore.upkeep.organization import AdminKey, Invite, Member, Organization, Person, Project, User

INVITE_DAYS = 7
EMAIL_CHARS_MAX = 254
INVITE_PREFIX = "rli"
FIRST_KEY = "from the invitation"

_TOKEN = re.compile(r"rli_([0-9a-f]{32})_([0-9a-f]{64})", re.ASCII)
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")


def parse_invite(token: str) -> tuple[str, str] | None:
    """(id, secret) of an invitation's token; None where it is none."""
    found = _TOKEN.fullmatch(token)
    return (found[1], found[2]) if found else None


def is_over(one: Invite, now: dt.datetime) -> bool:
    return one.accepted_at is not None or access.has_passed(one.expires_at, now)


async def invite(
    hand: Administrator, email: str, *, role: str, projects: Mapping[str, str]
) -> tuple[Invite, str]:
    """Invite somebody; the invitation, and its token that is shown once."""
    if len(email) > EMAIL_CHARS_MAX or _EMAIL.fullmatch(email) is None or ids.has_control(email):
        raise errors.InvalidInput("email is no address")
    invite_id, secret = clock.new_id(), clock.secret_hex(access.SECRET_BYTES)
    over = (clock.now() + dt.timedelta(days=INVITE_DAYS)).isoformat(timespec="microseconds")
    implied = [found for one in sorted(projects) if (found := await hand.implied(one)) is not None]

    def step(org: Organization, now: str) -> tuple[Organization, adminlog.Event, Invite]:
        moment = dt.datetime.fromisoformat(now)
        waiting = [one for one in org.invites.values() if not is_over(one, moment)]
        if _named(org, email) or any(_same(one.email, email) for one in waiting):
            raise errors.Refused("whoever has this address is a user, or was invited")
        if len(waiting) >= organizations.INVITES_MAX:
            raise errors.Refused(f"{organizations.INVITES_MAX} invitations wait, as many as may")
        known = {one.id for one in implied}
        for project in set(projects) - known:
            organizations.project_of(org, project)
        made = Invite.model_validate(
            {
                **{"id": invite_id, "email": email, "role": role, "projects": dict(projects)},
                **{"sha256": access.hashed(secret), "created_at": now, "expires_at": over},
            }
        )
        kept = {**org.invites, invite_id: made}
        for name in [name for name, one in org.invites.items() if is_over(one, moment)]:
            if len(kept) <= organizations.INVITES_MAX:
                break
            del kept[name]
        told = adminlog.Event("invite.sent", invite_id, details={"email": email, "role": role})
        return organizations.changed(org, invites=kept), told, made

    return await hand.move(step), f"{INVITE_PREFIX}_{invite_id}_{secret}"


async def withdraw(hand: Administrator, invite_id: str) -> None:
    """Take an invitation back. Raises `errors.Refused` where it was accepted."""

    def step(org: Organization, now: str) -> tuple[Organization, adminlog.Event, None]:
        if invite_of(org, invite_id).accepted_at is not None:
            raise errors.Refused("the invitation was accepted", hint="its user can be deleted")
        rest = {name: one for name, one in org.invites.items() if name != invite_id}
        return organizations.changed(org, invites=rest), adminlog.Event("invite.deleted", invite_id), None

    await hand.move(step)


async def renew(hand: Administrator, invite_id: str) -> tuple[Invite, str]:
    """Another token of an invitation that was not accepted, good for another week; the one before is good no more."""
    secret = clock.secret_hex(access.SECRET_BYTES)
    over = (clock.now() + dt.timedelta(days=INVITE_DAYS)).isoformat(timespec="microseconds")

    def step(org: Organization, now: str) -> tuple[Organization, adminlog.Event, Invite]:
        found = invite_of(org, invite_id)
        if found.accepted_at is not None:
            raise errors.Refused("the invitation was accepted", hint="its user can be deleted")
        moment = dt.datetime.fromisoformat(now)
        others = [one for one in org.invites.values() if one.id != invite_id and not is_over(one, moment)]
        if _named(org, found.email) or any(_same(one.email, found.email) for one in others):
            raise errors.Refused("whoever has this address is a user, or was invited anew")
        if len(others) >= organizations.INVITES_MAX:
            raise errors.Refused(f"{organizations.INVITES_MAX} invitations wait, as many as may")
        made = organizations.changed(found, sha256=access.hashed(secret), expires_at=over)
        told = adminlog.Event(
            "invite.sent", invite_id, details={"email": made.email, "role": made.role, "again": True}
        )
        return organizations.changed(org, invites={**org.invites, invite_id: made}), told, made

    return await hand.move(step), f"{INVITE_PREFIX}_{invite_id}_{secret}"


def invite_of(org: Organization, invite_id: str) -> Invite:
    """An invitation. Raises `errors.NotFound`."""
    if invite_id not in org.invites:
        raise errors.NotFound(f"there is no invitation {invite_id!r}")
    return org.invites[invite_id]


async def accept(hand: Administrator, token: str, name: str) -> tuple[User, AdminKey, str]:
    """Become a user by the token of an invitation; the user, their first admin key, and its token, shown once.

    `hand.by` is not used: whoever has the token acts. Raises `errors.Unauthorized`.
    """
    name = access.checked_name(name, "a user")
    parsed = parse_invite(token)
    user_id, key_id = f"{organizations.USER}{clock.new_id()}", clock.new_id()
    secret = clock.secret_hex(access.SECRET_BYTES)

    def step(
        org: Organization, now: str
    ) -> tuple[Organization, tuple[adminlog.Event, ...], tuple[User, AdminKey]]:
        found = org.invites.get(parsed[0]) if parsed is not None else None
        good = found is not None and not is_over(found, dt.datetime.fromisoformat(now))
        if parsed is None or found is None or not good:
            raise errors.Unauthorized("the invitation is not good", hint="ask for another one")
        if not hmac.compare_digest(found.sha256, access.hashed(parsed[1])):
            raise errors.Unauthorized("the invitation is not good", hint="ask for another one")
        if len(org.users) >= organizations.USERS_MAX or len(org.admin_keys) >= organizations.ADMIN_KEYS_MAX:
            raise errors.Refused("there are as many users, or admin keys, as may be")
        user = User(id=user_id, email=found.email, name=name, role=found.role, added_at=now)
        key = AdminKey(
            id=key_id,
            name=FIRST_KEY,
            sha256=access.hashed(secret),
            owner=Person(id=user_id, name=name, created_at=now),
            created_at=now,
        )
        projects = dict(org.projects)
        for project, role in found.projects.items():
            kept = projects.get(project) or Project(id=project, name=project, created_at=now)
            member = Member(role=role, added_at=now)
            projects[project] = organizations.changed(kept, members={**kept.members, user_id: member})
        after = organizations.changed(
            org,
            users={**org.users, user_id: user},
            admin_keys={**org.admin_keys, key_id: key},
            invites={**org.invites, found.id: organizations.changed(found, accepted_at=now)},
            projects=projects,
        )
        told = (
            adminlog.Event("invite.accepted", found.id),
            adminlog.Event("user.added", user_id, details={"role": found.role}),
            adminlog.Event("api_key.created", key_id, details={"scopes": ["admin"], "name": FIRST_KEY}),
        )
        return after, told, (user, key)

    invited = Administrator(hand.store, {"user": user_id}, hand.reason, hand.on_change)
    user, key = await invited.move(step)
    return user, key, f"{administration.ADMIN_PREFIX}_{key_id}_{secret}"


async def change_role(hand: Administrator, user_id: str, role: str) -> User:
    """Another role. What the user's keys may do follows at once; the last owner who can administer stays one."""
    if role not in (organizations.OWNER, organizations.READER):
        raise errors.InvalidInput(f"{role!r} is no role of a user: owner or reader")

    def step(org: Organization, now: str) -> tuple[Organization, adminlog.Event, User]:
        made = organizations.changed(user_of(org, user_id), role=role)
        told = adminlog.Event("user.updated", user_id, details={"role": role})
        return organizations.changed(org, users={**org.users, user_id: made}), told, made

    return await hand.move(step)


async def remove(hand: Administrator, user_id: str) -> None:
    """Take a user away, out of every project too; their admin keys end."""

    def step(org: Organization, now: str) -> tuple[Organization, adminlog.Event, None]:
        user_of(org, user_id)
        ended = [name for name, one in org.admin_keys.items() if one.owner.id == user_id]
        after = organizations.changed(
            org,
            users={name: one for name, one in org.users.items() if name != user_id},
            admin_keys={name: one for name, one in org.admin_keys.items() if name not in ended},
            projects={name: _without(one, user_id) for name, one in org.projects.items()},
        )
        return after, adminlog.Event("user.deleted", user_id, details={"keys": ended}), None

    await hand.move(step)


async def add_member(hand: Administrator, project: str, user_id: str, role: str) -> tuple[User, Member]:
    """Make a user one of a project's people, or give them another role there."""
    if role not in (organizations.OWNER, organizations.MEMBER):
        raise errors.InvalidInput(f"{role!r} is no role in a project: owner or member")
    implied = await hand.implied(project)

    def step(org: Organization, now: str) -> tuple[Organization, adminlog.Event, tuple[User, Member]]:
        org = administration.with_implied(org, implied)
        kept, user = organizations.project_of(org, project), user_of(org, user_id)
        before = kept.members.get(user_id)
        made = Member.model_validate({"role": role, "added_at": before.added_at if before else now})
        org = organizations.with_project(
            org, organizations.changed(kept, members={**kept.members, user_id: made})
        )
        what = "user.updated" if before else "user.added"
        return org, adminlog.Event(what, user_id, project, {"role": role}), (user, made)

    return await hand.move(step)


async def remove_member(hand: Administrator, project: str, user_id: str) -> None:
    """Take a user out of a project."""

    def step(org: Organization, now: str) -> tuple[Organization, adminlog.Event, None]:
        member_of(org, project, user_id)
        org = organizations.with_project(org, _without(org.projects[project], user_id))
        return org, adminlog.Event("user.deleted", user_id, project), None

    await hand.move(step)


def user_of(org: Organization, user_id: str) -> User:
    """A user. Raises `errors.NotFound`."""
    if user_id not in org.users:
        raise errors.NotFound(f"there is no user {user_id!r}")
    return org.users[user_id]


def user_named(org: Organization, email: str) -> User:
    """The user with this address. Raises `errors.NotFound`."""
    found = _named(org, email)
    if found is None:
        raise errors.NotFound("nobody with this address is a user", hint="invite them first")
    return found


def member_of(org: Organization, project: str, user_id: str) -> Member:
    """What a user is in a project. Raises `errors.NotFound`."""
    kept = org.projects.get(project)
    if kept is None or user_id not in kept.members:
        raise errors.NotFound(f"project {project} has no user {user_id!r}")
    return kept.members[user_id]


def _named(org: Organization, email: str) -> User | None:
    return next((one for one in org.users.values() if _same(one.email, email)), None)


def _same(one: str, other: str) -> bool:
    return one.casefold() == other.casefold()


def _without(project: Project, user_id: str) -> Project:
    if user_id not in project.members:
        return project
    rest = {name: one for name, one in project.members.items() if name != user_id}
    return organizations.changed(project, members=rest)
