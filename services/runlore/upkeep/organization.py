"""The organization: who administers a deployment, its projects, and which of their accounts hold which keys. Pure.

It is one small head (`_operations/admin/organization.json`), so that what must hold across all of it holds in one
move: the last admin key can not go, an archived project opens nothing, and no change is without its entry in the log
(`upkeep/administration.py` moves it, `upkeep/adminlog.py` keeps the log). A project that only ever had events is in
it once somebody administers it. Fields that this version does not know survive every move.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runlore import errors
from runlore.commit import heads
from runlore.upkeep import access

FORMAT = "runlore.organization/1"
ADMIN_KEYS_MAX = 100
PROJECTS_MAX = 1_000
ACCOUNTS_MAX = 200
"""Service accounts of one project."""
USERS_MAX, INVITES_MAX = 1_000, 500
KEYS_MAX = 50
"""Keys of one service account."""
GENERATE = "generate"
"""Calls to models: what the workers count, not the service (`models/spend.py`)."""
LIMITED = (GENERATE, "publish", "read", "seed")
"""What is counted for a project."""
OF_A_KEY = ("publish", "read", "seed")
"""What is counted for one key, too: what it is that came with a request."""
UNITS: Mapping[str, tuple[str, ...]] = {
    GENERATE: ("requests", "tokens"),
    "publish": ("requests", "bytes"),
    "read": ("requests",),
    "seed": ("requests",),
}
"""What each limited thing is counted in."""
UNLIMITED: Mapping[str, int] = {"requests": 10**9, "tokens": 10**9, "bytes": 10**12}
"""So much in a minute is as good as no limit."""
KEEP, FOR_DAYS, INHERITED, KEEP_HERE = (
    "modified_abuse_monitoring",
    "zero_data_retention",
    "organization_default",
    "none",
)
"""What is kept until it is erased; what is erased after some days; as the organization says; kept whatever it says."""
RETENTION_DAYS_MAX = 36_500
MEMBER, OWNER, NONE, READER = "member", "owner", "none", "reader"
USER = "user-"
"""What the id of a user begins with. An admin key whose owner is none was made at the machine: it may do everything."""
HIGHEST: Mapping[str, str | None] = {OWNER: access.ADMIN, MEMBER: access.WRITE, NONE: None}
"""The highest scope that a service account's role gives its keys."""


class _Kept(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class Person(_Kept):
    """Whose an admin key is."""

    id: str
    name: str
    created_at: str


class AdminKey(_Kept):
    """A key that administers: it opens no project."""

    id: str
    name: str
    sha256: str
    owner: Person
    created_at: str
    expires_at: str | None = None


class Limit(_Kept):
    """What a project, or one key, may ask of one thing in a minute; null: as much as it likes."""

    requests_per_minute: int | None = None
    bytes_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def most(self) -> dict[str, int]:
        """Unit → how much, of those that are limited."""
        given = {unit: getattr(self, f"{unit}_per_minute") for unit in UNLIMITED}
        return {unit: most for unit, most in given.items() if most is not None and most < UNLIMITED[unit]}


class Terms(_Kept):
    """What was changed of a key since it was made; null: nothing."""

    scope: str | None = None
    expires_at: str | None = None
    limits: dict[str, Limit] = Field(default_factory=dict)
    """The key's own, beside its project's."""


UNCHANGED = Terms()


class Account(_Kept):
    """A service account of a project: a program, whose keys come and go. Only the keys that it names are good."""

    id: str
    name: str
    role: Literal["member", "owner", "none"]
    created_at: str
    keys: tuple[str, ...] = ()
    terms: dict[str, Terms] = Field(default_factory=dict)
    """Of those keys that were changed."""


class Member(_Kept):
    """What a user is in a project: an owner administers it, a member is one of its people."""

    role: Literal["member", "owner"]
    added_at: str


class User(_Kept):
    """A person who was invited. What their admin keys may do follows their role."""

    id: str
    email: str
    name: str
    role: Literal["owner", "reader"]
    added_at: str


class Invite(_Kept):
    """An invitation to become a user, good until it is accepted or over. Its token is shown once, kept as a hash."""

    id: str
    email: str
    role: Literal["owner", "reader"]
    projects: dict[str, Literal["member", "owner"]] = Field(default_factory=dict)
    sha256: str
    created_at: str
    expires_at: str
    accepted_at: str | None = None


class SpendLimit(_Kept):
    """What calls to models may cost in a UTC month."""

    cents: int


class SpendAlert(_Kept):
    """Whom to tell once a month's calls to models have cost so much."""

    id: str
    cents: int
    recipients: tuple[str, ...]
    subject_prefix: str | None = None
    created_at: str


class Retention(_Kept):
    """How long rollouts are kept after their last run, in the words of OpenAI's client; `days` of `FOR_DAYS` alone."""

    type: Literal["modified_abuse_monitoring", "zero_data_retention", "organization_default", "none"]
    days: int | None = None


class Project(_Kept):
    """What is administered of a project; `archived_at`: from then on its keys open nothing."""

    id: str
    name: str
    created_at: str
    archived_at: str | None = None
    accounts: dict[str, Account] = Field(default_factory=dict)
    limits: dict[str, Limit] = Field(default_factory=dict)
    members: dict[str, Member] = Field(default_factory=dict)
    spend_limit: SpendLimit | None = None
    spend_alerts: dict[str, SpendAlert] = Field(default_factory=dict)
    retention: Retention = Retention(type="organization_default")


class Tip(_Kept):
    """The newest entry of the log, and so all before it; number 0 before the first."""

    number: int = 0
    sha256: str = ""


class Organization(_Kept):
    """The head's body."""

    admin_keys: dict[str, AdminKey] = Field(default_factory=dict)
    projects: dict[str, Project] = Field(default_factory=dict)
    users: dict[str, User] = Field(default_factory=dict)
    invites: dict[str, Invite] = Field(default_factory=dict)
    spend_limit: SpendLimit | None = None
    """Over all projects."""
    spend_alerts: dict[str, SpendAlert] = Field(default_factory=dict)
    ended_keys: tuple[str, ...] = ()
    """Keys of no account that were ended here: each stays until its own object says so too."""
    retention: Retention = Retention(type="modified_abuse_monitoring")
    tip: Tip = Tip()
    acts: Tip = Tip()
    """What the log of acts had come to at the newest change: it can not be cut behind that unseen."""

    def present(self, key: access.Key) -> access.Key:
        """A key as it is by now: with what its account says was changed of it."""
        given = terms_of(self, key).model_dump(include={"scope", "expires_at"}, exclude_none=True)
        return dataclasses.replace(key, **given) if given else key

    def closed(self, key: access.Key, now: dt.datetime) -> str | None:
        """Why a key opens nothing now; None where it is good."""
        project = self.projects.get(key.project)
        if self.present(key).is_over(now) or key.id in self.ended_keys:
            return "the key is not good"
        if project is not None and project.archived_at is not None:
            return "the key's project is archived"
        if key.account is not None and self.scope_of(key) is None:
            return "the key is not good"
        return None

    def role_of(self, key: AdminKey, now: dt.datetime) -> str | None:
        """What an admin key may do: all (`owner`), or read (`reader`). None: nothing any more."""
        if access.has_passed(key.expires_at, now) or key.id not in self.admin_keys:
            return None
        if not key.owner.id.startswith(USER):
            return OWNER
        user = self.users.get(key.owner.id)
        return user.role if user is not None else None

    def owns(self, key: AdminKey, project: str) -> bool:
        """Whether an admin key's user is an owner of the project, and so changes what is inside of it."""
        kept = self.projects.get(project)
        member = kept.members.get(key.owner.id) if kept is not None else None
        return member is not None and member.role == OWNER

    def retention_of(self, project: str) -> Retention:
        """How long a project's rollouts are kept: as it says itself, else as all do."""
        own = self.projects.get(project)
        return self.retention if own is None or own.retention.type == INHERITED else own.retention

    def is_administered(self, now: dt.datetime) -> bool:
        """Whether some admin key may do everything."""
        return any(self.role_of(one, now) == OWNER for one in self.admin_keys.values())

    def scope_of(self, key: access.Key) -> str | None:
        """What a key may do: its scope, and no more than its account's role gives. None: nothing."""
        if key.account is None:
            return key.scope
        if not names_key(self, key):
            return None
        most = HIGHEST[self.projects[key.project].accounts[key.account].role]
        return most if most is None else min(self.present(key).scope, most, key=access.SCOPES.index)

    def limits_of(self, key: access.Key, thing: str) -> list[tuple[str | None, dict[str, int]]]:
        """(the key's id, or None: its project's; unit → how much in a minute) of every limit that there is."""
        project = self.projects.get(key.project)
        found = [(key.id, terms_of(self, key).limits.get(thing))]
        if project is not None:
            found.append((None, project.limits.get(thing)))
        return [(whose, most) for whose, limit in found if limit is not None and (most := limit.most())]


K = TypeVar("K", bound=_Kept)


def changed(one: K, **fields: Any) -> K:
    return one.model_copy(update=fields)


def parse(head: heads.Head) -> Organization:
    """The organization in a head as read. Raises `errors.Corrupt`."""
    try:
        return Organization.model_validate(
            {name: value for name, value in head.body.items() if name in Organization.model_fields}
        )
    except ValidationError:
        raise errors.Corrupt(f"the head {head.key} is no organization", key=head.key) from None


def project_of(org: Organization, project: str) -> Project:
    """A project as it is administered. Raises `errors.NotFound`, or `errors.Refused` where it is archived."""
    found = org.projects.get(project)
    if found is None:
        raise errors.NotFound(f"there is no project {project!r}")
    if found.archived_at is not None:
        raise errors.Refused(f"the project {project} is archived")
    return found


def account_of(org: Organization, project: str, account: str) -> Account:
    """A service account. Raises `errors.NotFound`."""
    found = org.projects.get(project)
    if found is None or account not in found.accounts:
        raise errors.NotFound(f"project {project} has no service account {account!r}")
    return found.accounts[account]


def names_key(org: Organization, key: access.Key) -> bool:
    """Whether a key of a service account is one that its account names, whatever may be done with it now."""
    project = org.projects.get(key.project)
    account = project.accounts.get(key.account or "") if project is not None else None
    return account is not None and key.id in account.keys


def terms_of(org: Organization, key: access.Key) -> Terms:
    """What was changed of a key since it was made."""
    if not names_key(org, key):
        return UNCHANGED
    return org.projects[key.project].accounts[key.account or ""].terms.get(key.id, UNCHANGED)


def with_project(org: Organization, project: Project) -> Organization:
    return changed(org, projects={**org.projects, project.id: project})


def with_account(org: Organization, project: str, account: Account) -> Organization:
    kept = org.projects[project]
    return with_project(org, changed(kept, accounts={**kept.accounts, account.id: account}))


def with_limits(
    before: Mapping[str, Limit],
    given: Mapping[str, Mapping[str, int | None]],
    *,
    limited: tuple[str, ...] = LIMITED,
) -> dict[str, Limit]:
    """Limits with those changed that are given: thing → unit → how much in a minute, null: no limit any more.

    Raises `errors.NotFound`, `errors.InvalidInput`.
    """
    out = dict(before)
    for thing, units in given.items():
        if thing not in limited:
            raise errors.NotFound(f"there is no limit of {thing!r}", hint=f"there are: {', '.join(limited)}")
        for unit, most in units.items():
            if unit not in UNITS[thing]:
                counted = " and ".join(UNITS[thing])
                raise errors.InvalidInput(f"of {thing} no {unit} are counted, but {counted}")
            if most is not None and not 0 <= most <= UNLIMITED[unit]:
                raise errors.InvalidInput(f"{unit} in a minute are 0 to {UNLIMITED[unit]}")
        changes = {f"{unit}_per_minute": most for unit, most in units.items()}
        out[thing] = changed(out.get(thing, Limit()), **changes)
        if not out[thing].most() and not out[thing].model_extra:
            del out[thing]
    return out
