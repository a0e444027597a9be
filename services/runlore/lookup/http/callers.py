"""Who calls: the key that comes with a request, what it may do, and the parameters that every route shares.

A request for another project than its key's is refused before anything is read, so the answer is the same whether
that project exists or not (invariant 9).
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hmac
import ipaddress
import math
import urllib.parse
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, Path, Query, Request, Security
from fastapi.security import HTTPBearer
from pydantic import AfterValidator

from runlore import clock, errors
from runlore.events import ids
from runlore.lookup.http import limiting
from runlore.lookup.http.service import PAGE_ITEMS_DEFAULT, PAGE_ITEMS_MAX, Service
from runlore.store import port
from runlore.upkeep import access, administration, lastuse, organization

KEPT_SECONDS = 15.0
"""How long a key itself is remembered: nothing of it changes but that it ends, which the organization says first."""
ORGANIZATION_SECONDS = 2.0
"""How long what the organization says is remembered; from half of it on it is read anew beside the requests."""
ENDS_SECONDS_MAX = 5.0
"""What was read longer ago opens nothing: so a key that was ended is over by then, also under a slow store."""
KEPT_MAX = 10_000
READ, WRITE, ADMIN = access.READ, access.WRITE, access.ADMIN
ADMINISTRATION = "_operations"
"""Whose share of a gate the routes that administer take: no project is called so."""
NOT_YOURS = "the key is not one for this project"
MAY_READ = "whoever has this admin key may read, and change projects that they own"
ADMINISTERS_NOTHING = "a project's key administers nothing: that takes an admin key"
OPENS_NO_PROJECT = "an admin key opens no project: that takes a key of it"
NOT_GOOD, NOT_GOOD_HINT = "the key is not good", "`runlore keys create` makes one"


def unquoted(text: str) -> str:
    """A segment of the path as it was meant: paths are matched as they came, so that `%2F` is part of an id."""
    return urllib.parse.unquote(text, errors="strict")


Segment = Annotated[str, Path(max_length=8192), AfterValidator(unquoted)]
Project = Annotated[str, Path(description="Project (tenant).", max_length=512), AfterValidator(unquoted)]
Memory = Annotated[str, Path(description="Memory of the project.", max_length=512), AfterValidator(unquoted)]
Limit = Annotated[int, Query(ge=1, le=PAGE_ITEMS_MAX, description="Items of a page.")]
Cursor = Annotated[str | None, Query(max_length=2048, description="`next` of the page before.")]
Subject = Annotated[
    str | None, Query(max_length=ids.ID_CHARS_MAX, description="Whose personal parts are shown too.")
]
PAGE = PAGE_ITEMS_DEFAULT
bearer = HTTPBearer(auto_error=False, description="`rl_<key id>_<secret>` of `runlore keys create`.")


class Keyring:
    """Keys by their id, remembered for a moment; also that there is none. And the organization, which ends them."""

    def __init__(self, store: port.ObjectStore) -> None:
        self._store = store
        self._kept: OrderedDict[str, tuple[float, access.Key | None]] = OrderedDict()
        self._organization: tuple[float, organization.Organization] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._notes = lastuse.Notes(store)

    async def key(self, token: str) -> access.Key:
        """The key that a token opens, with what it may do now. Raises `errors.Unauthorized`."""
        came = clock.monotonic()
        parsed = access.parse(token)
        key = await self._read(parsed[0]) if parsed else None
        if parsed is None or key is None or not key.opens_with(parsed[1]):
            raise errors.Unauthorized(NOT_GOOD, hint=NOT_GOOD_HINT)
        return await self._standing(key, came)

    async def standing(self, key_id: str) -> access.Key:
        """The key with this id, whose secret was shown before. Raises `errors.Unauthorized` where it has ended."""
        came = clock.monotonic()
        key = await self._read(key_id)
        if key is None:
            raise errors.Unauthorized(NOT_GOOD, hint=NOT_GOOD_HINT)
        return await self._standing(key, came)

    async def _standing(self, key: access.Key, came: float) -> access.Key:
        """The key with what it may do now, for a request that came then. Raises `errors.Unauthorized`."""
        if key.revoked_at is not None:
            raise errors.Unauthorized(NOT_GOOD, hint=NOT_GOOD_HINT)
        org = await self.organization(came - ORGANIZATION_SECONDS)
        if org.closed(key, clock.now()) is not None:
            # An account and its key may be newer than what is remembered.
            org = await self.organization(came)
        if (why := org.closed(key, clock.now())) is not None:
            raise errors.Unauthorized(why, hint="whoever administers the project makes another")
        await self._notes.used(key.id)
        return dataclasses.replace(key, scope=org.scope_of(key) or key.scope)

    async def admin(self, token: str) -> tuple[organization.AdminKey, str, organization.Organization]:
        """The admin key that a token opens, its role, and where. Raises `errors.Unauthorized`.

        Raises `errors.Forbidden` for a key of a project.
        """
        parsed = administration.parse_admin(token)
        if parsed is None:
            await self.key(token)
            raise errors.Forbidden(ADMINISTERS_NOTHING)
        return await self._admin(parsed[0], parsed[1])

    async def standing_admin(
        self, key_id: str
    ) -> tuple[organization.AdminKey, str, organization.Organization]:
        """The same of an admin key whose secret was shown before. Raises `errors.Unauthorized`."""
        return await self._admin(key_id, None)

    async def _admin(
        self, key_id: str, secret: str | None
    ) -> tuple[organization.AdminKey, str, organization.Organization]:
        came = clock.monotonic()
        org = await self.organization(came - ORGANIZATION_SECONDS)
        if key_id not in org.admin_keys:
            org = await self.organization(came)
        key = org.admin_keys.get(key_id)
        role = None if key is None else org.role_of(key, clock.now())
        is_wrong = key is not None and (
            secret is not None and not hmac.compare_digest(key.sha256, access.hashed(secret))
        )
        if key is None or role is None or is_wrong:
            raise errors.Unauthorized("the admin key is not good", hint="`runlore admin bootstrap` makes one")
        await self._notes.used(key.id)
        return key, role, org

    async def limits(self, key: access.Key, thing: str) -> list[tuple[str | None, dict[str, int]]]:
        """The limits of a key for a thing: its own, by its id, and its project's."""
        return (await self.organization(clock.monotonic() - ORGANIZATION_SECONDS)).limits_of(key, thing)

    async def organization(self, since: float) -> organization.Organization:
        """The organization as it was at `since` or later; read once for all who wait for it."""
        while True:
            asked, found = self._organization or (-math.inf, None)
            if found is not None and asked >= since:
                age = clock.monotonic() - asked
                if age > ENDS_SECONDS_MAX:
                    raise errors.StoreUnavailable(
                        "the store took too long to say whether the key is still good"
                    )
                if age > ORGANIZATION_SECONDS / 2:
                    self._begin()
                return found
            await asyncio.shield(self._begin())

    def _begin(self) -> asyncio.Task[None]:
        """The read that is under way, or a new one."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._asking

    def forget(self) -> None:
        """Read the organization anew for the next one who asks: it was changed here."""
        self._organization = None

    async def _ask(self) -> None:
        asked = clock.monotonic()
        try:
            self._organization = asked, await administration.read(self._store)
        finally:
            self._asking = None

    async def _read(self, key_id: str) -> access.Key | None:
        asked = clock.monotonic()
        kept = self._kept.get(key_id)
        if kept is not None and asked - kept[0] < KEPT_SECONDS:
            return kept[1]
        found = await access.read(self._store, key_id)
        self._kept[key_id] = (asked, found)
        self._kept.move_to_end(key_id)
        while len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)
        return found


def service_of(request: Request) -> Service:
    return request.app.state.service


def needs(scope: str, *, counts: str | None = None) -> Any:
    """The dependency of a route that needs `scope` in its path's project, and takes a place of that project's share.

    A request is counted for the rate limits: as `counts`, and without as `read` where it reads.
    """
    counted = counts or (limiting.READ if scope == READ else None)

    async def check(
        request: Request, project: Project, _: Annotated[Any, Security(bearer)] = None
    ) -> AsyncIterator[None]:
        service = service_of(request)
        if service.with_keys:
            key = await authenticated(request)
            if key.project != project:
                raise errors.Forbidden(NOT_YOURS)
            if not key.allows(scope):
                raise errors.Forbidden(f"the key's scope is {key.scope}; this needs {scope}")
            request.state.key = key
        else:
            request.state.caller = {"client": "without a key"}
            ids.check_name(project, "project")
        # Left once the answer is sent, a stream's too.
        with service.requests.entered(project):
            if counted is not None:
                await limiting.count_request(request, counted)
            yield

    check.scope = scope  # type: ignore[attr-defined]
    return Depends(check)


async def authenticated(request: Request) -> access.Key:
    """The key that came with the request, whatever project it is for. Raises `errors.Unauthorized`."""
    token = token_of(request)
    if administration.parse_admin(token) is not None:
        await request.app.state.keyring.admin(token)
        raise errors.Forbidden(OPENS_NO_PROJECT)
    key = await request.app.state.keyring.key(token)
    account = {"account": key.account} if key.account is not None else {}
    request.state.caller = {"key": key.id, "name": key.name, **account}
    return key


async def administering(
    request: Request, _: Annotated[Any, Security(bearer)] = None
) -> AsyncIterator[organization.AdminKey]:
    """The dependency of every route that administers: the admin key of the request. It needs one always."""
    service = service_of(request)
    key, role, org = await request.app.state.keyring.admin(token_of(request))
    request.state.caller = {"key": key.id, "name": key.name}
    if role != organization.OWNER and request.method != "GET" and not _owns_project(request, key, org):
        raise errors.Forbidden(MAY_READ)
    with service.requests.entered(ADMINISTRATION):
        yield key


def _owns_project(request: Request, key: organization.AdminKey, org: organization.Organization) -> bool:
    """Whether what is to be changed is inside of a project that the key's owner owns: not the project itself."""
    path = request.scope["route"].path
    if "/{project_id}/" not in path or path.endswith("/archive"):
        return False
    return org.owns(key, unquoted(request.path_params["project_id"]))


Administering = Annotated[organization.AdminKey, Depends(administering)]


def token_of(request: Request) -> str:
    """What came as the request's bearer token. Raises `errors.Unauthorized`."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not token.strip():
        raise errors.Unauthorized(
            "the request has no key", hint="send it as `Authorization: Bearer rl_<key id>_<secret>`"
        )
    return token.strip()


def caller(request: Request) -> dict[str, str]:
    """Who acts, as the audit log keeps it."""
    return {"via": "http", **getattr(request.state, "caller", {})}


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own."""
    host = host.strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@functools.lru_cache(maxsize=64)
def _names_loopback(url: str) -> bool:
    """The same of a URL's host. Kept: nearly all requests name the same one."""
    try:
        return is_loopback(urllib.parse.urlsplit(url).hostname or "")
    except ValueError:
        return False


def check_bind(host: str, *, with_keys: bool) -> None:
    """Raises `errors.Refused` where everybody on a network could read every project."""
    if not with_keys and not is_loopback(host):
        raise errors.Refused(
            f"{host} can be reached from other machines, and requests need no key",
            hint="set RUNLORE_HTTP_KEYS=true and make keys with `runlore keys create`",
        )


def check_local(headers: Callable[[str], str | None]) -> None:
    """Without keys only programs of this machine may ask: a page in a browser that knows the address may not.

    Its requests name its own host (after DNS rebinding) or its origin. Raises `errors.Forbidden`.
    """
    origin = headers("origin")
    if not _names_loopback(f"//{headers('host') or ''}") or (origin and not _names_loopback(origin)):
        raise errors.Forbidden("without keys only programs of this machine are answered")


Scoped = Callable[..., Awaitable[access.Key | None]]
