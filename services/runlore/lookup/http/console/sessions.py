"""Who looks at the console: a key, shown once and exchanged for a signed session; and that a form is one of ours.

A project's key makes a `Viewer`, who sees that project and nothing that administers; an admin key makes an `Operator`,
who administers and sees no project's data. A session says which key and until when, and proves nothing else: what the
key may do is read anew with each request, so a revoked one ends here as fast as everywhere
(`callers.ENDS_SECONDS_MAX`). The routes below /v1 take no session, so no page of somebody else can use one there; a
form carries a token of its session besides.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import urllib.parse
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import Depends, Request
from starlette.responses import Response

from runlore import clock, errors
from runlore.events import ids
from runlore.lookup.http import answers, callers
from runlore.upkeep import access, administration, organization

COOKIE = "runlore_session"
TERM_SECONDS = 8 * 3600
"""How long a session lasts: a working day. Then the key is asked for again."""
SIGNING = "console-signing"
SESSION, ADMINISTRATION, FORMS = "session", "administration", "form"
"""What a signature is for: what was made for one of these opens no other."""
FORM_BYTES_MAX = 64 * 1024
FIELDS_MAX = 50
FORM = "application/x-www-form-urlencoded"
NONCE_BYTES = 16


@dataclass(frozen=True)
class Viewer:
    """Who looks. `key` is None where the service needs none: then it is whoever sits at this machine."""

    key: access.Key | None = None
    nonce: str = ""

    def may(self, scope: str) -> bool:
        return self.key is None or self.key.allows(scope)

    @property
    def rank(self) -> str:
        """What the page says beside the name."""
        return self.key.scope if self.key is not None else ""

    def by(self) -> dict[str, str]:
        """Who acts, as the audit log keeps it."""
        if self.key is None:
            return {"via": "console", "client": "without a key"}
        return {"via": "console", "key": self.key.id, "name": self.key.name}


@dataclass(frozen=True)
class Operator:
    """Who administers: whoever has an admin key, and what it may do at this moment."""

    key: organization.AdminKey
    role: str
    org: organization.Organization
    nonce: str

    @property
    def rank(self) -> str:
        return self.role

    def may(self, scope: str) -> bool:
        """No page of a project is shown to them."""
        return False

    def changes(self, project: str | None = None) -> bool:
        """Whether they may change something: everything, or (a reader) what is inside of a project that they own."""
        if self.role == organization.OWNER:
            return True
        return project is not None and self.org.owns(self.key, project)

    def by(self) -> dict[str, str]:
        """Who acts, as the audit log keeps it."""
        return {"via": "console", "key": self.key.id, "key_name": self.key.name, "user": self.key.owner.id}


Somebody = Viewer | Operator


def _mac(secret: bytes, purpose: str, text: str) -> str:
    raw = hmac.digest(secret, f"{purpose}\n{text}".encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def sealed(secret: bytes, purpose: str, text: str, seconds: float) -> str:
    """`text` with the time until which it is good, and a signature over both. `text` has no dot at its end's parts."""
    body = f"{text}.{int(clock.now().timestamp() + seconds)}"
    return f"{body}.{_mac(secret, purpose, body)}"


def opened(secret: bytes, purpose: str, given: str) -> str | None:
    """What `sealed` was given; None where it was made up, was made for something else, or has ended."""
    body, _, mac = given.rpartition(".")
    if not hmac.compare_digest(_mac(secret, purpose, body).encode(), mac.encode("utf-8", "replace")):
        return None
    text, _, until = body.rpartition(".")
    return text if clock.now().timestamp() < int(until) else None


async def secret_of(request: Request) -> bytes:
    """What sessions and forms are signed with: the deployment's own, so every replica takes the same ones."""
    state = request.app.state
    if getattr(state, "console_secret", None) is None:
        state.console_secret = await access.secret(state.service.store, SIGNING)
    return bytes(state.console_secret)


# --- signing in and out -----------------------------------------------------------------------------------


async def begin(request: Request, token: str) -> tuple[Somebody, str]:
    """Whoever has the key that was typed in, and the value of the cookie that stands for it.

    Raises `errors.Unauthorized`, also for a project's key where none is needed.
    """
    token, nonce = token.strip(), clock.secret_hex(NONCE_BYTES)
    keyring, somebody, purpose = request.app.state.keyring, None, SESSION
    if administration.parse_admin(token) is not None:
        somebody = Operator(*await keyring.admin(token), nonce)
        purpose = ADMINISTRATION
    elif callers.service_of(request).with_keys:
        somebody = Viewer(await keyring.key(token), nonce)
    if somebody is None or somebody.key is None:
        raise errors.Unauthorized("it is no admin key: here projects need none")
    text = f"{somebody.key.id}.{nonce}"
    return somebody, sealed(await secret_of(request), purpose, text, TERM_SECONDS)


def put_cookie(request: Request, answer: Response, value: str) -> None:
    """Set the session; an empty value ends it."""
    # TLS ends at a proxy: the browser itself says whether it came by https.
    is_https = request.headers.get("origin", "").startswith("https://")
    answer.set_cookie(
        COOKIE,
        value,
        max_age=TERM_SECONDS if value else 0,
        path="/",
        secure=is_https,
        httponly=True,
        samesite="strict",
    )


async def _said(request: Request, purpose: str) -> tuple[str, str] | None:
    """(key id, nonce) of the session for this purpose that came with the request."""
    said = opened(await secret_of(request), purpose, request.cookies.get(COOKIE, ""))
    if said is None:
        return None
    key_id, _, nonce = said.partition(".")
    return key_id, nonce


async def operator_of(request: Request) -> Operator | None:
    """Who administers, if an admin key signed in. Raises `errors.Unauthorized` where that has ended."""
    if (said := await _said(request, ADMINISTRATION)) is None:
        return None
    found = Operator(*await request.app.state.keyring.standing_admin(said[0]), said[1])
    request.state.caller = {"key": found.key.id, "name": found.key.name}
    return found


async def viewer_of(request: Request) -> Viewer:
    """Who looks at projects. Raises `errors.Unauthorized` where nobody is signed in who must be."""
    if not callers.service_of(request).with_keys:
        request.state.caller = {"client": "without a key"}
        return Viewer()
    if (said := await _said(request, SESSION)) is None:
        raise errors.Unauthorized("nobody is signed in, or the session has ended")
    key = await request.app.state.keyring.standing(said[0])
    request.state.caller = {"key": key.id, "name": key.name}
    return Viewer(key, said[1])


def sees(scope: str) -> Any:
    """The dependency of a page that needs `scope` in its path's project, and takes a place of that project's share."""

    async def check(request: Request, project: callers.Project) -> AsyncIterator[Viewer]:
        service = callers.service_of(request)
        if service.with_keys and (operator := await operator_of(request)) is not None:
            request.state.viewer = operator
            raise errors.Forbidden(callers.OPENS_NO_PROJECT)
        viewer = request.state.viewer = await viewer_of(request)
        if viewer.key is not None:
            # Before anything is read: it is the same whether that project exists or not (invariant 9).
            if viewer.key.project != project:
                raise errors.Forbidden(callers.NOT_YOURS)
            if not viewer.key.allows(scope):
                raise errors.Forbidden(f"the key's scope is {viewer.key.scope}; this needs {scope}")
        else:
            ids.check_name(project, "project")
        request.state.project = project
        with service.requests.entered(project):
            yield viewer

    check.scope = scope  # type: ignore[attr-defined]
    return Depends(check)


async def administers(request: Request) -> AsyncIterator[Operator]:
    """The dependency of every page that administers. It needs an admin key always, as the routes do."""
    operator = await operator_of(request)
    if operator is None:
        if callers.service_of(request).with_keys and await _said(request, SESSION) is not None:
            request.state.viewer = await viewer_of(request)
            raise errors.Forbidden(callers.ADMINISTERS_NOTHING)
        raise errors.Unauthorized("nobody is signed in with an admin key, or the session has ended")
    request.state.viewer = operator
    with callers.service_of(request).requests.entered(callers.ADMINISTRATION):
        yield operator


# --- forms ------------------------------------------------------------------------------------------------


async def form_token(request: Request, viewer: Somebody) -> str:
    """What each form of this viewer carries."""
    return sealed(await secret_of(request), FORMS, f"f{viewer.nonce}", TERM_SECONDS)


async def form_of(request: Request, viewer: Somebody) -> dict[str, str]:
    """The fields of a form that one of our pages sent. Raises `errors.Forbidden`, `errors.InvalidInput`."""
    check_origin(request)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        raise errors.InvalidInput("this is no form of the console")
    raw = await answers.body_of(request, FORM_BYTES_MAX)
    try:
        pairs = urllib.parse.parse_qsl(raw.decode(), keep_blank_values=True, max_num_fields=FIELDS_MAX)
    except ValueError:
        raise errors.InvalidInput("the form can not be read") from None
    fields = dict(pairs)
    if opened(await secret_of(request), FORMS, fields.pop("token", "")) != f"f{viewer.nonce}":
        raise errors.Forbidden(
            "the form is not one of this session, or it stood open for too long",
            hint="go back, load the page anew, and send it again",
        )
    return fields


def check_origin(request: Request) -> None:
    """Only our own pages send forms. Raises `errors.Forbidden`."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        # What the browser says itself holds behind a proxy too, which may have changed the host's name.
        is_ours = site in ("same-origin", "none")
    else:
        is_ours = origin is None or urllib.parse.urlsplit(origin).netloc == request.headers.get("host")
    if not is_ours:
        raise errors.Forbidden("the form was sent by another site")
