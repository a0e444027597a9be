"""What the routes that administer answer: the shapes of OpenAI's Admin API, as its `openai` package reads them.

Each field is one of theirs, by its name and meaning; docs/ADMIN.md says what it is here. Times are Unix seconds.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from runlore import clock
from runlore.upkeep import access, administration, adminlog
from runlore.upkeep import organization as organizations

UNLIMITED = organizations.UNLIMITED
"""What a limit says where there is none: a number, because theirs is one always."""
RATE_LIMIT = "rl-"


class _Shape(BaseModel):
    model_config = ConfigDict(extra="allow")


class Owner(_Shape):
    """Whose an admin key is."""

    object: Literal["organization.user"] = "organization.user"
    type: Literal["user"] = "user"
    id: str
    name: str
    created_at: int
    role: Literal["owner"] = "owner"


class AdminKey(_Shape):
    """A key that administers."""

    object: Literal["organization.admin_api_key"] = "organization.admin_api_key"
    id: str
    name: str
    redacted_value: str
    created_at: int
    expires_at: int | None
    last_used_at: int | None
    owner: Owner


class AdminKeyMade(AdminKey):
    """The same with its value: this once."""

    value: str


class Project(_Shape):
    """A project."""

    object: Literal["organization.project"] = "organization.project"
    id: str
    name: str
    created_at: int
    archived_at: int | None
    status: Literal["active", "archived"]


class Account(_Shape):
    """A service account of a project."""

    object: Literal["organization.project.service_account"] = "organization.project.service_account"
    id: str
    name: str
    role: Literal["owner", "member", "none"]
    created_at: int


class KeyMade(_Shape):
    """A key of a service account, with its value: this once."""

    object: Literal["organization.project.service_account.api_key"] = (
        "organization.project.service_account.api_key"
    )
    id: str
    name: str
    value: str
    created_at: int
    expires_at: int | None


class AccountMade(Account):
    """A new service account with its first key."""

    api_key: KeyMade | None


class KeyAccount(_Shape):
    """The service account that a key belongs to."""

    id: str
    name: str
    created_at: int
    role: str


class KeyOwner(_Shape):
    """Whose a project's key is; nobody's where it was made by `runlore keys create`."""

    type: Literal["service_account"] | None = None
    service_account: KeyAccount | None = None
    user: None = None


class ProjectKey(_Shape):
    """A key of a project."""

    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    id: str
    name: str
    redacted_value: str
    created_at: int
    expires_at: int | None
    last_used_at: int | None
    owner: KeyOwner
    owner_project_access: Literal["active", "inactive"]


class RateLimit(_Shape):
    """What a project may ask for of one thing."""

    object: Literal["project.rate_limit"] = "project.rate_limit"
    id: str
    model: str
    max_requests_per_1_minute: int
    max_tokens_per_1_minute: int


class OrganizationRetention(_Shape):
    """How long rollouts are kept, where a project does not say. The days are in the header `Runlore-Retention-Days`."""

    object: Literal["organization.data_retention"] = "organization.data_retention"
    type: str


class ProjectRetention(_Shape):
    """How long a project's rollouts are kept. The days are in the header `Runlore-Retention-Days`."""

    object: Literal["project.data_retention"] = "project.data_retention"
    type: str


class User(_Shape):
    """A person who administers, or reads."""

    object: Literal["organization.user"] = "organization.user"
    id: str
    email: str
    name: str
    role: Literal["owner", "reader"]
    added_at: int


class ProjectUser(_Shape):
    """A user of a project."""

    object: Literal["organization.project.user"] = "organization.project.user"
    id: str
    email: str
    name: str
    role: Literal["owner", "member"]
    added_at: int


class Invite(_Shape):
    """An invitation. Its token is in the header `Runlore-Invite` of the answer that made it, and nowhere else."""

    object: Literal["organization.invite"] = "organization.invite"
    id: str
    email: str
    role: Literal["owner", "reader"]
    status: Literal["accepted", "expired", "pending"]
    projects: list[dict[str, str]]
    created_at: int
    expires_at: int
    accepted_at: int | None


class Accepted(_Shape):
    """Who became a user, and their first admin key."""

    object: Literal["organization.invite.accepted"] = "organization.invite.accepted"
    user: User
    admin_api_key: AdminKeyMade


class Enforcement(_Shape):
    """Whether a spend limit refuses calls now."""

    status: Literal["inactive", "enforcing"]


class SpendLimit(_Shape):
    """What calls to models may cost in a month, of the organization or of a project."""

    object: Literal["organization.spend_limit", "project.spend_limit"]
    threshold_amount: int
    currency: Literal["USD"] = "USD"
    interval: Literal["month"] = "month"
    enforcement: Enforcement


class SpendLimitDeleted(_Shape):
    """A spend limit that is gone."""

    object: Literal["organization.spend_limit.deleted", "project.spend_limit.deleted"]
    deleted: Literal[True] = True


class NotificationChannel(_Shape):
    """Whom a spend alert is mailed to."""

    type: Literal["email"] = "email"
    recipients: list[str]
    subject_prefix: str | None


class SpendAlert(_Shape):
    """Whom to tell once a month's calls to models have cost so much."""

    object: Literal["organization.spend_alert", "project.spend_alert"]
    id: str
    threshold_amount: int
    currency: Literal["USD"] = "USD"
    interval: Literal["month"] = "month"
    notification_channel: NotificationChannel


class Deleted(_Shape):
    """What is gone."""

    object: str
    id: str
    deleted: Literal[True] = True


class AuditLog(_Shape):
    """One administrative change; what it was about stands under the name of its type."""

    id: str
    type: str
    effective_at: int
    actor: dict[str, Any]
    project: dict[str, str] | None = None


class UsagePage(_Shape):
    """A page of days, and what calls to models took or cost on each, in groups."""

    object: Literal["page"] = "page"
    data: list[dict[str, Any]]
    has_more: bool
    next_page: str | None


class Page(_Shape):
    """A page of a list, and whether there is more of it after `last_id`."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Error(_Shape):
    """An error, as OpenAI's API tells one; `code` is the `kind` that it has everywhere else."""

    error: dict[str, str | None]


# --- made of what is kept -----------------------------------------------------------------------------------


def seconds(at: str) -> int:
    return int(dt.datetime.fromisoformat(at).timestamp())


def _maybe(at: str | None) -> int | None:
    return None if at is None else seconds(at)


def admin_key(one: organizations.AdminKey, used: Mapping[str, str]) -> AdminKey:
    owner = Owner(id=one.owner.id, name=one.owner.name, created_at=seconds(one.owner.created_at))
    return AdminKey(
        id=one.id,
        name=one.name,
        redacted_value=access.redacted(one.id, administration.ADMIN_PREFIX),
        created_at=seconds(one.created_at),
        expires_at=_maybe(one.expires_at),
        last_used_at=_maybe(used.get(one.id)),
        owner=owner,
    )


def project(one: organizations.Project) -> Project:
    return Project(
        id=one.id,
        name=one.name,
        created_at=seconds(one.created_at),
        archived_at=_maybe(one.archived_at),
        status="active" if one.archived_at is None else "archived",
    )


def account(one: organizations.Account) -> Account:
    return Account(id=one.id, name=one.name, role=one.role, created_at=seconds(one.created_at))


def key_made(key: access.Key, token: str) -> KeyMade:
    return KeyMade(
        id=key.id,
        name=key.name,
        value=token,
        created_at=seconds(key.created_at),
        expires_at=_maybe(key.expires_at),
    )


def project_key(key: access.Key, org: organizations.Organization, used: Mapping[str, str]) -> ProjectKey:
    owner = KeyOwner()
    if key.account is not None:
        holder = organizations.account_of(org, key.project, key.account)
        kept = KeyAccount(
            id=holder.id, name=holder.name, created_at=seconds(holder.created_at), role=holder.role
        )
        owner = KeyOwner(type="service_account", service_account=kept)
    return ProjectKey(
        id=key.id,
        name=key.name,
        redacted_value=access.redacted(key.id),
        created_at=seconds(key.created_at),
        expires_at=_maybe(org.present(key).expires_at),
        last_used_at=_maybe(used.get(key.id)),
        owner=owner,
        owner_project_access="active" if org.closed(key, clock.now()) is None else "inactive",
        **_own_limits(key, org),
    )


def user(one: organizations.User) -> User:
    return User(id=one.id, email=one.email, name=one.name, role=one.role, added_at=seconds(one.added_at))


def project_user(one: organizations.User, member: organizations.Member) -> ProjectUser:
    return ProjectUser(
        id=one.id, email=one.email, name=one.name, role=member.role, added_at=seconds(member.added_at)
    )


def invite(one: organizations.Invite) -> Invite:
    over = access.has_passed(one.expires_at, clock.now())
    return Invite(
        id=one.id,
        email=one.email,
        role=one.role,
        status="accepted" if one.accepted_at is not None else "expired" if over else "pending",
        projects=[{"id": name, "role": role} for name, role in sorted(one.projects.items())],
        created_at=seconds(one.created_at),
        expires_at=seconds(one.expires_at),
        accepted_at=_maybe(one.accepted_at),
    )


def rate_limit(what: str, one: organizations.Project | None) -> RateLimit:
    """A limit. What it counts that theirs has no field for, bytes, is a field of ours beside theirs."""
    limit = one.limits.get(what) if one is not None else None
    most = {**UNLIMITED, **(limit.most() if limit is not None else {})}
    told = administration.told_limit({unit: most[unit] for unit in organizations.UNITS[what]})
    return RateLimit(
        **{"id": f"{RATE_LIMIT}{what}", "model": what},
        **{"max_tokens_per_1_minute": UNLIMITED["tokens"], **told},
    )


def spend_limit(one: organizations.SpendLimit, *, of: str, enforcing: bool) -> SpendLimit:
    status = Enforcement(status="enforcing" if enforcing else "inactive")
    return SpendLimit(object=f"{of}.spend_limit", threshold_amount=one.cents, enforcement=status)


def spend_alert(one: organizations.SpendAlert, *, of: str) -> SpendAlert:
    channel = NotificationChannel(recipients=list(one.recipients), subject_prefix=one.subject_prefix)
    return SpendAlert(
        object=f"{of}.spend_alert", id=one.id, threshold_amount=one.cents, notification_channel=channel
    )


def _own_limits(key: access.Key, org: organizations.Organization) -> dict[str, Any]:
    """The limits of a key's own, where it has any: ours beside their fields."""
    terms = organizations.terms_of(org, key)
    found = {what: administration.told_limit(one.most()) for what, one in sorted(terms.limits.items())}
    return {"limits": found} if found else {}


def log_id(entry: adminlog.Entry) -> str:
    return f"audit_log-{entry.number:012d}-{entry.tip.sha256[:16]}"


def audit_log(entry: adminlog.Entry, org: organizations.Organization) -> AuditLog:
    """An entry as theirs. What they have no field for (why, a name) `runlore admin log` tells."""
    found = AuditLog(
        id=log_id(entry), type=entry.type, effective_at=seconds(entry.at), actor=_actor(entry.by, org)
    )
    if entry.project is not None:
        kept = org.projects.get(entry.project)
        found.project = {"id": entry.project, "name": kept.name if kept is not None else entry.project}
    setattr(found, entry.type, _details(entry))
    return found


def actor_ids(by: Mapping[str, Any]) -> set[str]:
    """Every id under which a list may be asked for what somebody did."""
    return {str(by[name]) for name in ("key", "user") if by.get(name)}


def _actor(by: Mapping[str, Any], org: organizations.Organization) -> dict[str, Any]:
    known = org.users.get(str(by.get("user")))
    person = {"id": by.get("user"), "email": known.email if known is not None else None}
    if "key" in by:
        return {"type": "api_key", "api_key": {"id": by["key"], "type": "user", "user": person}}
    return {"type": "session", "session": {"user": person}}


def _details(entry: adminlog.Entry) -> dict[str, Any]:
    given = entry.details
    rest: dict[str, dict[str, Any]] = {
        "api_key.created": {"data": {name: given[name] for name in ("scopes", "limits") if name in given}},
        "api_key.updated": {"changes_requested": dict(given)},
        "project.created": {"data": {"name": given.get("name"), "title": given.get("name")}},
        # Of spend limits and alerts theirs has no field: ours stand beside theirs.
        "project.updated": {
            "changes_requested": {"title" if name == "name" else name: one for name, one in given.items()}
        },
        "organization.updated": {"changes_requested": dict(given)},
        "service_account.created": {"data": {"role": given.get("role")}},
        "service_account.updated": {"changes_requested": {"role": given.get("role")}},
        "rate_limit.updated": {"changes_requested": dict(given)},
        "user.added": {"data": {"role": given.get("role")}},
        "user.updated": {"changes_requested": {"role": given.get("role")}},
        "invite.sent": {"data": {"email": given.get("email"), "role": given.get("role")}},
    }
    target = f"{RATE_LIMIT}{entry.target}" if entry.type.startswith("rate_limit.") else entry.target
    return {"id": target, **rest.get(entry.type, {})}


def page(rows: Sequence[BaseModel], *, has_more: bool) -> dict[str, Any]:
    """A page of rows that have ids."""
    data = [one.model_dump(exclude_none=isinstance(one, AuditLog)) for one in rows]
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return {"object": "list", "data": data, **ends, "has_more": has_more}
