"""Who calls: the key that comes with a request, what it may do, and the parameters that every route shares.

A request for another project than its key's is refused before anything is read, so the answer is the same whether
that project exists or not (invariant 9).
"""

from __future__ import annotations

import functools
import ipaddress
import urllib.parse
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, Path, Query, Request, Security
from fastapi.security import HTTPBearer
from pydantic import AfterValidator

from runlore import clock, errors
from runlore.events import ids
from runlore.lookup.http.service import PAGE_ITEMS_DEFAULT, PAGE_ITEMS_MAX, Service
from runlore.store import port
from runlore.upkeep import access

KEPT_SECONDS = 15.0
"""How long what a key may do is remembered: so long a revoked one goes on, and as long again under a slow store."""
KEPT_MAX = 10_000
READ, WRITE, ADMIN = access.READ, access.WRITE, access.ADMIN
NOT_YOURS = "the key is not one for this project"
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
    """Keys by their id, remembered for a moment; also that there is none."""

    def __init__(self, store: port.ObjectStore) -> None:
        self._store = store
        self._kept: OrderedDict[str, tuple[float, access.Key | None]] = OrderedDict()

    async def key(self, token: str) -> access.Key:
        """The key that a token opens. Raises `errors.Unauthorized`."""
        parsed = access.parse(token)
        key = await self._read(parsed[0]) if parsed else None
        if parsed is None or key is None or not key.opens_with(parsed[1]):
            raise errors.Unauthorized(NOT_GOOD, hint=NOT_GOOD_HINT)
        return await self.standing(key.id)

    async def standing(self, key_id: str) -> access.Key:
        """The key with this id, whose secret was shown before. Raises `errors.Unauthorized` where it has ended."""
        key = await self._read(key_id)
        if key is None or key.revoked_at is not None:
            raise errors.Unauthorized(NOT_GOOD, hint=NOT_GOOD_HINT)
        return key

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


def needs(scope: str) -> Any:
    """The dependency of a route that needs `scope` in its path's project, and takes a place of that project's share."""

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
        else:
            request.state.caller = {"client": "without a key"}
            ids.check_name(project, "project")
        # Left once the answer is sent, a stream's too.
        with service.requests.entered(project):
            yield

    check.scope = scope  # type: ignore[attr-defined]
    return Depends(check)


async def authenticated(request: Request) -> access.Key:
    """The key that came with the request, whatever project it is for. Raises `errors.Unauthorized`."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not token.strip():
        raise errors.Unauthorized(
            "the request has no key", hint="send it as `Authorization: Bearer rl_<key id>_<secret>`"
        )
    key = await request.app.state.keyring.key(token.strip())
    request.state.caller = {"key": key.id, "name": key.name}
    return key


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
