"""Administration: each change of the organization, in one move of its head with its entry in the log.

    head → what it becomes, and the entry → put the entry → compare-and-set the head

A key's own object is put before the head names it, and its secret is told after: a crash in between leaves an object
that opens nothing. What ends a key is the head alone, at once for every replica; its object says so a moment later.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from runlore import clock, errors
from runlore.commit import heads, keys, puts
from runlore.events import ids
from runlore.memory import redact
from runlore.store import port
from runlore.upkeep import access, acts, adminlog, chain
from runlore.upkeep import organization as organizations
from runlore.upkeep.organization import Account, AdminKey, Organization, Person, Project

RESTARTS_MAX = 32
REASON_CHARS_MAX = 2000
EXPIRES_SECONDS_MAX = 10 * 365 * 86400
ENDED_KEYS_KEPT = 64
"""From so many on those whose own objects say for long that they ended are dropped from the head."""
ENDED_KEPT = dt.timedelta(hours=1)
"""So long at least a key that ended stays in the head: replicas remember its object of before for a while."""
FIRST_ENTRIES_MAX = 3
"""Entries that one change may have put where there was no organization."""
ADMIN_PREFIX = "rla"

_TOKEN = re.compile(r"rla_([0-9a-f]{32})_([0-9a-f]{64})", re.ASCII)

T = TypeVar("T")
Limits = Mapping[str, Mapping[str, int | None]]
"""Thing → unit → how much in a minute."""
Events = adminlog.Event | tuple[adminlog.Event, ...]
Step = Callable[[Organization, str], tuple[Organization, Events, T]]
"""From what the organization is, and the time: what it becomes, what is told of it, and what whoever asked gets."""


async def read(store: port.ObjectStore) -> Organization:
    """The organization as it is now. Raises `errors.Corrupt`."""
    return organizations.parse(await heads.read(store, keys.organization(), fmt=organizations.FORMAT))


async def refuse_lost(store: port.ObjectStore) -> None:
    """Raises `errors.HeadLost` where there was an organization: one begun anew would have no users, keys or limits.

    `errors.HeadMoved` where there is one by now. The entries of a first change say nothing: whoever wrote them may
    have died before there was a head.
    """
    if any(number > FIRST_ENTRIES_MAX for number in await adminlog.LOG.names(store)):
        raise await heads.gone(
            store,
            keys.organization(),
            "the head of the organization is gone, and its log is there: nothing is administered beside it",
            hint="put the head's version before back (the bucket's versions, a backup); docs/DRILLS.md",
        )


async def verify(
    store: port.ObjectStore,
    expected: chain.Named | None = None,
    *,
    seen: Sequence[chain.Named] = (),
    on_progress: chain.OnProgress = lambda count, what: None,
) -> chain.Verified:
    """Whether every entry of the log is there, as it was written; also those `seen` by another log."""

    async def tip() -> organizations.Tip:
        return (await read(store)).tip

    return await adminlog.LOG.verify(store, tip, expected, seen=seen, on_progress=on_progress)


def parse_admin(token: str) -> tuple[str, str] | None:
    """(key id, secret) of an admin key as it is sent; None where it is none."""
    found = _TOKEN.fullmatch(token)
    return (found[1], found[2]) if found else None


async def known_projects(store: port.ObjectStore) -> set[str]:
    """Every project that holds anything, administered or not."""
    return {name for name in await store.children("") if not name.startswith("_")}


@dataclass(frozen=True)
class Administrator:
    """Whoever changes something: on whose behalf, and why. `by` is kept in the log as it is: no secret."""

    store: port.ObjectStore
    by: Mapping[str, Any]
    reason: str | None = None
    on_change: Callable[[], None] = lambda: None
    """Called once a change is made: whoever remembers the organization reads it anew."""

    # --- admin keys -----------------------------------------------------------------------------------------

    async def create_admin_key(
        self, name: str, *, owner: Person, expires_in_seconds: int | None = None
    ) -> tuple[AdminKey, str]:
        """Make a key that administers; it, and the token that is shown once."""
        name = access.checked_name(name, "an admin key")
        key_id, secret = clock.new_id(), clock.secret_hex(access.SECRET_BYTES)
        expires_at = _expiry(expires_in_seconds)

        def step(org: Organization, now: str) -> tuple[Organization, adminlog.Event, AdminKey]:
            if len(org.admin_keys) >= organizations.ADMIN_KEYS_MAX:
                raise errors.Refused(
                    f"there are {organizations.ADMIN_KEYS_MAX} admin keys, as many as may be"
                )
            made = AdminKey(
                **{"id": key_id, "name": name, "sha256": access.hashed(secret), "owner": owner},
                **{"created_at": now, "expires_at": expires_at},
            )
            told = adminlog.Event("api_key.created", key_id, details={"scopes": ["admin"], "name": name})
            return organizations.changed(org, admin_keys={**org.admin_keys, key_id: made}), told, made

        return await self.move(step), f"{ADMIN_PREFIX}_{key_id}_{secret}"

    async def delete_admin_key(self, key_id: str) -> None:
        """End an admin key. Raises `errors.NotFound`; `errors.Refused` for the last one that is good."""

        def step(org: Organization, now: str) -> tuple[Organization, adminlog.Event, None]:
            if key_id not in org.admin_keys:
                raise errors.NotFound(f"there is no admin key {key_id!r}")
            rest = {name: one for name, one in org.admin_keys.items() if name != key_id}
            return (
                organizations.changed(org, admin_keys=rest),
                adminlog.Event("api_key.deleted", key_id),
                None,
            )

        await self.move(step)

    # --- projects -------------------------------------------------------------------------------------------

    async def create_project(self, name: str) -> Project:
        """Make a project. Its id is made of its name: that name itself where it may be one, and is free."""
        name = access.checked_name(name, "a project")
        taken = await known_projects(self.store)
        drawn = clock.new_id()[-6:]

        def step(org: Organization, now: str) -> tuple[Organization, adminlog.Event, Project]:
            _has_room(org)
            wanted = project_id(name)
            if wanted in taken or wanted in org.projects:
                wanted = f"{wanted[:56]}-{drawn}"
            made = Project(id=wanted, name=name, created_at=now)
            told = adminlog.Event("project.created", wanted, wanted, {"name": name})
            return organizations.with_project(org, made), told, made

        return await self.move(step)

    async def rename_project(self, project: str, name: str) -> Project:
        name = access.checked_name(name, "a project")
        implied = await self.implied(project)

        def step(org: Organization, now: str) -> tuple[Organization, adminlog.Event, Project]:
            org = with_implied(org, implied)
            made = organizations.changed(organizations.project_of(org, project), name=name)
            told = adminlog.Event("project.updated", project, project, {"name": name})
            return organizations.with_project(org, made), told, made

        return await self.move(step)

    async def archive_project(self, project: str) -> Project:
        """From now on no key of the project opens anything. What it holds stays; what it was stays as it is."""
        implied = await self.implied(project)

        def step(org: Organization, now: str) -> tuple[Organization, adminlog.Event, Project]:
            org = with_implied(org, implied)
            made = organizations.changed(organizations.project_of(org, project), archived_at=now)
            return (
                organizations.with_project(org, made),
                adminlog.Event("project.archived", project, project),
                made,
            )

        return await self.move(step)

    # --- service accounts -----------------------------------------------------------------------------------

    async def create_account(self, project: str, name: str, *, role: str = organizations.MEMBER) -> Account:
        name = access.checked_name(name, "a service account")
        implied = await self.implied(project)
        account_id = f"svc-{clock.new_id()}"

        def step(org: Organization, now: str) -> tuple[Organization, adminlog.Event, Account]:
            org = with_implied(org, implied)
            if len(organizations.project_of(org, project).accounts) >= organizations.ACCOUNTS_MAX:
                raise errors.Refused(f"the project has {organizations.ACCOUNTS_MAX} service accounts")
            made = Account(**{"id": account_id, "name": name, "role": role, "created_at": now})
            told = adminlog.Event(
                "service_account.created", account_id, project, {"role": role, "name": name}
            )
            return organizations.with_account(org, project, made), told, made

        return await self.move(step)

    async def update_account(
        self, project: str, account: str, *, name: str | None = None, role: str | None = None
    ) -> Account:
        """Another name or role. What its keys may do follows at once."""
        if role is not None and role not in (organizations.MEMBER, organizations.OWNER):
            raise errors.InvalidInput(f"{role!r} is no role of a service account: member or owner")
        given: dict[str, Any] = {"role": role} if role is not None else {}
        if name is not None:
            given["name"] = access.checked_name(name, "a service account")

        def step(org: Organization, now: str) -> tuple[Organization, adminlog.Event, Account]:
            organizations.project_of(org, project)
            made = organizations.changed(organizations.account_of(org, project, account), **given)
            told = adminlog.Event("service_account.updated", account, project, given)
            return organizations.with_account(org, project, made), told, made

        return await self.move(step)

    async def delete_account(self, project: str, account: str) -> None:
        """Take a service account away; its keys end with it."""

        def step(org: Organization, now: str) -> tuple[Organization, adminlog.Event, tuple[str, ...]]:
            gone = organizations.account_of(org, project, account)
            kept = org.projects[project]
            rest = {name: one for name, one in kept.accounts.items() if name != account}
            org = organizations.with_project(org, organizations.changed(kept, accounts=rest))
            told = adminlog.Event("service_account.deleted", account, project, {"keys": list(gone.keys)})
            return org, told, gone.keys

        for key_id in await self.move(step):
            await self._end_object(project, key_id)

    # --- keys of projects -----------------------------------------------------------------------------------

    async def create_key(
        self,
        project: str,
        account: str,
        name: str,
        *,
        scope: str = access.WRITE,
        expires_in_seconds: int | None = None,
        limits: Limits | None = None,
    ) -> tuple[access.Key, str]:
        """A key of a service account; it, and the token that is shown once. `limits`: of its own."""
        own = _own_limits({}, limits)
        org = await read(self.store)
        organizations.project_of(org, project)
        organizations.account_of(org, project, account)
        key, token = await access.create(
            self.store,
            project,
            **{"scope": scope, "name": name, "account": account, "expires_at": _expiry(expires_in_seconds)},
        )

        def step(org: Organization, now: str) -> tuple[Organization, adminlog.Event, None]:
            organizations.project_of(org, project)
            holder = organizations.account_of(org, project, account)
            _check_scope(holder, scope)
            if len(holder.keys) >= organizations.KEYS_MAX:
                raise errors.Refused(f"the service account has {organizations.KEYS_MAX} keys")
            given = {"scopes": [scope], "name": key.name, "account": account, **_told_limits(limits)}
            told = adminlog.Event("api_key.created", key.id, project, given)
            terms = {**holder.terms, key.id: organizations.Terms(limits=own)} if own else holder.terms
            holder = organizations.changed(holder, keys=(*holder.keys, key.id), terms=terms)
            return organizations.with_account(org, project, holder), told, None

        await self.move(step)
        return key, token

    async def create_machine_key(self, project: str, *, scope: str, name: str) -> tuple[access.Key, str]:
        """A key of no service account, as `runlore keys create` makes one."""
        key, token = await access.create(self.store, project, scope=scope, name=name)
        told = adminlog.Event("api_key.created", key.id, project, {"scopes": [scope], "name": key.name})

        def step(org: Organization, now: str) -> tuple[Organization, adminlog.Event, None]:
            if project in org.projects:
                organizations.project_of(org, project)
            return org, told, None

        try:
            await self.move(step)
        except errors.RunloreError:
            # It is good without the head's word: what is in no log must not stay.
            await access.revoke(self.store, project, key.id)
            raise
        return key, token

    async def update_key(
        self,
        project: str,
        key_id: str,
        *,
        scope: str | None = None,
        expires_in_seconds: int | None = None,
        limits: Limits | None = None,
    ) -> access.Key:
        """Another scope, end or limits of a service account's key; as it is by then. One that is over stays over."""
        key = await access.read(self.store, key_id)
        gone = errors.NotFound(f"project {project} has no key {key_id!r}")
        expires_at = _expiry(expires_in_seconds)

        def step(org: Organization, now: str) -> tuple[Organization, adminlog.Event, access.Key]:
            if key is None or key.project != project or key.revoked_at is not None:
                raise gone
            if key.account is None:
                raise errors.Refused("a key of no service account stays as it is", hint="make another one")
            if not organizations.names_key(org, key):
                raise gone
            organizations.project_of(org, project)
            before = org.present(key)
            if before.is_over(dt.datetime.fromisoformat(now)):
                raise errors.Refused("the key is over", hint="make another one")
            holder = organizations.account_of(org, project, key.account)
            _check_scope(holder, scope or before.scope)
            terms = holder.terms.get(key_id, organizations.Terms())
            made = organizations.changed(
                terms,
                scope=scope or before.scope,
                expires_at=expires_at or before.expires_at,
                limits=_own_limits(terms.limits, limits),
            )
            holder = organizations.changed(holder, terms={**holder.terms, key_id: made})
            org = organizations.with_account(org, project, holder)
            asked = {"scopes": [scope] if scope else None, "expires_in_seconds": expires_in_seconds}
            given = {name: value for name, value in asked.items() if value is not None}
            given |= _told_limits(limits)
            return org, adminlog.Event("api_key.updated", key_id, project, given), org.present(key)

        return await self.move(step)

    async def delete_key(self, project: str, key_id: str) -> None:
        """End a key of a project. Raises `errors.NotFound` also for another project's, and for one that has ended."""
        key = await access.read(self.store, key_id)
        gone = errors.NotFound(f"project {project} has no key {key_id!r}")
        if key is None or key.project != project or key.revoked_at is not None:
            raise gone
        ended = await self._ended_by_now()

        def step(org: Organization, now: str) -> tuple[Organization, adminlog.Event, None]:
            if key_id in org.ended_keys or (
                key.account is not None and not organizations.names_key(org, key)
            ):
                raise gone
            if key.account is None:
                kept = [one for one in org.ended_keys if one not in ended]
                org = organizations.changed(org, ended_keys=(*kept, key_id))
            else:
                holder = organizations.account_of(org, project, key.account)
                rest = tuple(one for one in holder.keys if one != key_id)
                terms = {name: one for name, one in holder.terms.items() if name != key_id}
                holder = organizations.changed(holder, keys=rest, terms=terms)
                org = organizations.with_account(org, project, holder)
            return org, adminlog.Event("api_key.deleted", key_id, project), None

        await self.move(step)
        await self._end_object(project, key_id)

    async def _ended_by_now(self) -> set[str]:
        """Of the keys that the head ended, those whose own objects say so for long enough."""
        listed = (await read(self.store)).ended_keys
        if len(listed) < ENDED_KEYS_KEPT:
            return set()
        found = [await access.read(self.store, one) for one in listed]
        least = clock.now() - ENDED_KEPT
        return {one.id for one in found if one is not None and access.has_passed(one.revoked_at, least)}

    async def _end_object(self, project: str, key_id: str) -> None:
        try:
            await access.revoke(self.store, project, key_id)
        except (errors.NotFound, errors.Retryable):
            # It has ended by the head's word; its own says so for lists and older replicas, at the next chance.
            return

    # --- limits ---------------------------------------------------------------------------------------------

    async def limit(self, project: str, what: str, units: Mapping[str, int | None]) -> Project:
        """How much a project may ask of one thing in a minute, by unit; null: as much as it likes."""
        implied = await self.implied(project)

        def step(org: Organization, now: str) -> tuple[Organization, adminlog.Event, Project]:
            org = with_implied(org, implied)
            kept = organizations.project_of(org, project)
            made = organizations.changed(kept, limits=organizations.with_limits(kept.limits, {what: units}))
            told = adminlog.Event("rate_limit.updated", what, project, told_limit(units))
            return organizations.with_project(org, made), told, made

        return await self.move(step)

    # --- retention ------------------------------------------------------------------------------------------

    async def retain(
        self, kind: str, days: int | None, *, project: str | None = None
    ) -> organizations.Retention:
        """How long a project's rollouts are kept after their last run, or (None) those of each that does not say."""
        own = (organizations.KEEP,) if project is None else (organizations.INHERITED, organizations.KEEP_HERE)
        if kind not in (*own, organizations.FOR_DAYS):
            raise errors.InvalidInput(
                f"retention_type: {kind!r} has no meaning here",
                hint=", ".join((*own, organizations.FOR_DAYS)),
            )
        if (days is not None) != (kind == organizations.FOR_DAYS):
            raise errors.InvalidInput(f"days: they go with {organizations.FOR_DAYS}, and with nothing else")
        if days is not None and not 1 <= days <= organizations.RETENTION_DAYS_MAX:
            raise errors.InvalidInput(f"days: 1 to {organizations.RETENTION_DAYS_MAX}")
        implied = await self.implied(project) if project is not None else None
        made = organizations.Retention.model_validate({"type": kind, "days": days})

        def step(org: Organization, now: str) -> tuple[Organization, adminlog.Event, organizations.Retention]:
            told = {"retention_type": kind, "days": days}
            if project is None:
                org = organizations.changed(org, retention=made)
                return org, adminlog.Event("organization.updated", "organization", None, told), made
            org = with_implied(org, implied)
            kept = organizations.changed(organizations.project_of(org, project), retention=made)
            org = organizations.with_project(org, kept)
            return org, adminlog.Event("project.updated", project, project, told), made

        return await self.move(step)

    # --- the move -------------------------------------------------------------------------------------------

    async def implied(self, project: str) -> Project | None:
        """A project that only events made, as it is administered from now on. None where it is no such one."""
        if ids.is_file_safe(project) and project in await known_projects(self.store):
            return Project(id=project, name=project, created_at=await first_seen(self.store, project))
        return None

    async def move(self, step: Step[T]) -> T:
        """Make one change, as `step` says; what it gives."""
        result = await self._moved(step)
        self.on_change()
        return result

    async def _moved(self, step: Step[T]) -> T:
        tried: list[tuple[organizations.Tip, T]] = []
        for attempt in range(RESTARTS_MAX):
            head = await heads.read(self.store, keys.organization(), fmt=organizations.FORMAT)
            if head.etag is None:
                try:
                    await refuse_lost(self.store)
                except errors.HeadMoved:
                    continue
            org = organizations.parse(head)
            # Another was first, or a reply was lost, of any try before: then the chain holds its entry.
            for made, result in tried:
                if await adminlog.LOG.holds(self.store, org.tip, made):
                    return result
            now = clock.now_iso()
            after, events, result = step(org, now)
            _check_administered(org, after, now)
            tip = org.tip
            for event in events if isinstance(events, tuple) else (events,):
                entry = self._entry(tip, event, now)
                await adminlog.put(self.store, entry)
                tip = entry.tip
            seen = await self._acts_seen(org)
            body = organizations.changed(after, tip=tip, acts=seen).model_dump(mode="json")
            try:
                await heads.move(self.store, head, body, fmt=organizations.FORMAT)
                return result
            except errors.HeadMoved:
                tried.append((tip, result))
                await puts.wait(min(attempt, 5))
        raise errors.StoreUnavailable("many change the organization at the same time")

    async def _acts_seen(self, org: Organization) -> organizations.Tip:
        """What the log of acts has come to; as it was known before where that can not be read, or is less."""
        try:
            tip = (await acts.read(self.store)).tip
        except errors.RunloreError:
            return org.acts
        return organizations.Tip(**asdict(tip)) if tip.number > org.acts.number else org.acts

    def _entry(self, tip: organizations.Tip, event: adminlog.Event, now: str) -> adminlog.Entry:
        return adminlog.Entry(
            number=tip.number + 1,
            previous=tip.sha256,
            id=clock.new_id(),
            at=now,
            by=dict(self.by),
            type=event.type,
            target=event.target,
            project=event.project,
            details=dict(event.details),
            reason=redact.text(self.reason)[:REASON_CHARS_MAX] if self.reason else None,
        )


async def first_seen(store: port.ObjectStore, project: str) -> str:
    """About since when there is a project that only events made: the time of one of its objects."""
    async for row in store.list(f"{project}/"):
        return dt.datetime.fromtimestamp(row.modified, dt.UTC).isoformat()
    return clock.now_iso()


def project_id(name: str) -> str:
    """The id of a project of this name: itself where it may be one."""
    try:
        return ids.check_name(name, "project")
    except errors.InvalidId:
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:48].strip("-")
        return slug if ids.is_file_safe(slug) else f"project-{slug}".strip("-")


def with_implied(org: Organization, implied: Project | None) -> Organization:
    if implied is None or implied.id in org.projects:
        return org
    _has_room(org)
    return organizations.with_project(org, implied)


def told_limit(units: Mapping[str, int | None]) -> dict[str, int]:
    """A limit in the words of the API and the log; a unit that is not limited says so by its highest number."""
    return {
        f"max_{unit}_per_1_minute": organizations.UNLIMITED[unit] if most is None else most
        for unit, most in units.items()
    }


def _own_limits(
    before: Mapping[str, organizations.Limit], limits: Limits | None
) -> dict[str, organizations.Limit]:
    return organizations.with_limits(before, limits or {}, limited=organizations.OF_A_KEY)


def _told_limits(limits: Limits | None) -> dict[str, Any]:
    return {"limits": {thing: told_limit(units) for thing, units in limits.items()}} if limits else {}


def _check_scope(holder: Account, scope: str) -> None:
    """Raises `errors.Refused` where the account's role gives no key of this scope."""
    most = organizations.HIGHEST[holder.role]
    if most is None or access.SCOPES.index(scope) > access.SCOPES.index(most):
        raise errors.Refused(f"the service account's role is {holder.role}: no key of scope {scope}")


def _check_administered(before: Organization, after: Organization, now: str) -> None:
    """Nobody locks everybody out. Raises `errors.Refused`."""
    moment = dt.datetime.fromisoformat(now)
    if before.is_administered(moment) and not after.is_administered(moment):
        raise errors.Refused(
            "it would end the last admin key of an owner: nobody could administer any more",
            hint="make another one first",
        )


def _has_room(org: Organization) -> None:
    if len(org.projects) >= organizations.PROJECTS_MAX:
        raise errors.Refused(f"there are {organizations.PROJECTS_MAX} projects, as many as are administered")


def check_expiry(seconds: int | None) -> None:
    """Raises `errors.InvalidInput`."""
    if seconds is not None and not 1 <= seconds <= EXPIRES_SECONDS_MAX:
        raise errors.InvalidInput(f"expires_in_seconds is 1 to {EXPIRES_SECONDS_MAX}")


def _expiry(seconds: int | None) -> str | None:
    check_expiry(seconds)
    if seconds is None:
        return None
    return (clock.now() + dt.timedelta(seconds=seconds)).isoformat(timespec="microseconds")
