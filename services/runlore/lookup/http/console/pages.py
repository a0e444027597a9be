"""How a page is made: templates, headers, where links lead, and errors as pages.

A page loads nothing from elsewhere and runs no script that stands in it: the policy below says so to the browser, so
that text of others which came through unescaped after all would do nothing.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import importlib.resources
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode

import jinja2
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse, Response

from runlore import __version__, errors
from runlore.lookup.http import answers, problems
from runlore.lookup.http.console import sessions, texts
from runlore.upkeep import access

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    # Not `no-referrer`: with it a browser hides the origin of a form from us too.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
HTML = "text/html; charset=utf-8"
STATIC = {
    "console.css": "text/css; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
PARTS = (
    # What the menu of a project leads to, and the scope that sees it. A new page of a project joins here.
    ("Memories", "", access.READ),
    ("Runs", "runs", access.READ),
    ("Snapshots", "snapshots", access.READ),
    ("Review", "reviews", access.READ),
    ("Dead letters", "dead", access.READ),
    ("Spend", "spend", access.READ),
    ("Status", "status", access.READ),
    ("Keys", "keys", access.ADMIN),
    ("Audit log", "audit", access.ADMIN),
)
ADMINISTRATION = "administration"
ADMINISTERS = (
    # What the menu of whoever administers leads to.
    ("Projects", ""),
    ("People", "people"),
    ("Admin keys", "keys"),
    ("Audit log", "audit"),
)
DONE = {
    # What a page says after a form; named in the address by its code, so nobody can put words in our mouth.
    "redriven": "The event is on the bus again. If it takes effect, it shows among the runs.",
    "approved": "Approved: the workers, or the next `runlore up`, take it in.",
    "rejected": "Rejected: it stays out as it stands, and approving undoes it.",
    "made": "It is made.",
    "changed": "It is changed. It holds within 5 seconds everywhere.",
    "gone": "It is gone. That holds within 5 seconds everywhere.",
    "archived": "The project is archived: within 5 seconds none of its keys opens anything.",
    "mailed": "The invitation is mailed.",
    "revoked": "The key is revoked. It ends within 5 seconds everywhere.",
    "merged": "The branches are merged into the line.",
    "branched": "The line moved meanwhile: the merge was kept as a branch.",
}


def wants_html(request: Request) -> bool:
    """Whether a browser asks."""
    return "text/html" in request.headers.get("accept", "").lower()


def asked_by_a_browser(request: Request) -> None:
    """Pages are for browsers: any other program is told what it always was. Raises `errors.NotFound`."""
    if not wants_html(request):
        raise errors.NotFound("there is nothing here", hint="docs/HTTP.md lists the routes")


# --- where links lead -------------------------------------------------------------------------------------------


def url(*segments: object, **query: object) -> str:
    """The address of a page: segments percent-encoded, `/` too; what of the query is None is left out."""
    path = "/" + "/".join(quote(str(one), safe="", errors="replace") for one in segments)
    given = {name.rstrip("_"): str(one) for name, one in query.items() if one not in (None, "")}
    return path + (f"?{urlencode(given, errors='replace')}" if given else "")


def with_query(path: str, **query: str) -> str:
    """A path with what is asked of it; `from` and its like may be names."""
    return path + (f"?{urlencode(query, errors='replace')}" if query else "")


def path_url(base: str, path: str, /, **query: object) -> str:
    """The address of a file below a page: its slashes stay."""
    given = {name.rstrip("_"): str(one) for name, one in query.items() if one not in (None, "")}
    tail = quote(path, safe="/", errors="replace")
    return f"{base}/{tail}" + (f"?{urlencode(given, errors='replace')}" if given else "")


# --- templates --------------------------------------------------------------------------------------------------


@functools.cache
def static(name: str) -> tuple[bytes, str]:
    """The bytes of a file that pages load, and a name of its content."""
    raw = (importlib.resources.files(__package__) / "static" / name).read_bytes()
    return raw, hashlib.sha256(raw).hexdigest()[:16]


def static_url(name: str) -> str:
    return url("static", name, v=static(name)[1])


@functools.cache
def environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__ or "", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=texts.visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"url": url, "path_url": path_url, "static_url": static_url, "version": __version__}
    made.filters |= {
        "size": texts.size,
        "moment": texts.moment,
        "ticked": texts.ticked,
        "found_in": texts.found_in,
        "short": lambda text: str(text or "")[:12],
    }
    return made


async def shown(
    request: Request, template: str, *, title: str, status: int = 200, **context: Any
) -> Response:
    """A page."""
    viewer: sessions.Somebody | None = getattr(request.state, "viewer", None)
    project = getattr(request.state, "project", None)
    token = await sessions.form_token(request, viewer) if viewer else ""
    done = DONE.get(request.query_params.get("done", ""))

    def render() -> bytes:
        found = environment().get_template(template)
        text = found.render(
            title=title,
            viewer=viewer,
            project=project,
            menu=menu(viewer, project, request.url.path),
            token=token,
            done=done,
            **context,
        )
        return text.encode("utf-8", "replace")

    # Off the loop: a large page takes a while.
    raw = await asyncio.to_thread(render)
    return await answers.compressed(request, raw, HTML, dict(HEADERS), status)


def menu(viewer: sessions.Somebody | None, project: str | None, here: str) -> list[tuple[str, str, bool]]:
    """What the menu leads to: name, address, whether it is where the page is."""
    if isinstance(viewer, sessions.Operator):
        parts, root, first = list(ADMINISTERS), url(ADMINISTRATION), ("projects",)
    elif viewer is not None and project:
        parts = [(name, place) for name, place, scope in PARTS if viewer.may(scope)]
        root, first = url("projects", project), ("memories",)
    else:
        return []
    also = {"snapshots": ("lines",), "": first}
    found = []
    for name, place in parts:
        address = f"{root}/{place}" if place else root
        below = [f"{root}/{one}/" for one in (place, *also.get(place, ())) if one]
        found.append((name, address, here == address or here.startswith(tuple(below))))
    return found


def go(address: str) -> Response:
    """To another page, once a form has done its work."""
    return RedirectResponse(address, 303, {"Cache-Control": "no-store"})


# --- errors -----------------------------------------------------------------------------------------------------


def install(app: FastAPI) -> None:
    """Tell errors as pages where a browser asked for one; everybody else is told as before."""
    for kind in (errors.RunloreError, HTTPException, RequestValidationError):
        plain = app.exception_handlers[kind]
        app.add_exception_handler(kind, _told_by(plain))  # type: ignore[arg-type]


class Route(APIRoute):
    """A route of the console: a bug of ours is told as a page too, without a word of it."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        handler = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handler(request)
            except (errors.RunloreError, HTTPException, RequestValidationError, ClientDisconnect):
                raise
            except Exception as exc:
                return await error(request, problems.internal(exc))

        return handled


def _told_by(plain: Any) -> Callable[[Request, Exception], Any]:
    async def tell(request: Request, exc: Exception) -> Response:
        answer: Response = await plain(request, exc)
        if request.url.path.startswith("/v1") or not wants_html(request):
            return answer
        if answer.status_code == 401 and request.method == "GET":
            return go(url("sign-in", next_=_here(request)))
        return await error(request, answer)

    return tell


def _here(request: Request) -> str:
    query = request.url.query
    return request.url.path + (f"?{query}" if query else "")


async def error(request: Request, plain: Response) -> Response:
    """An error as a page, with the words and the status that a program would be told."""
    told = json.loads(bytes(plain.body))
    page = await shown(
        request,
        "error.html",
        title=told["title"].rstrip("."),
        status=plain.status_code,
        told=told,
    )
    for name in ("allow", "retry-after"):
        if name in plain.headers:
            page.headers[name] = plain.headers[name]
    return page


def whose(request: Request) -> str:
    """Where somebody who asks for `/` belongs."""
    viewer: sessions.Somebody = request.state.viewer
    if isinstance(viewer, sessions.Operator):
        return url(ADMINISTRATION)
    return url("projects", viewer.key.project) if viewer.key else "/"


def attachment(name: str) -> dict[str, str]:
    """The headers of bytes that a browser saves, and never shows."""
    plain = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "_" for char in name)
    encoded = quote(name, safe="", errors="replace")
    return {
        "Content-Disposition": f"attachment; filename=\"{plain[-100:] or 'file'}\"; filename*=UTF-8''{encoded}",
        "Content-Security-Policy": "sandbox",
    }


def download(raw: bytes, name: str) -> Response:
    """Bytes to be saved."""
    headers = {**attachment(name), "Cache-Control": "no-store"}
    return Response(raw, 200, headers, "application/octet-stream")
