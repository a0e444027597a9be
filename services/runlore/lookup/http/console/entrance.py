"""The way in: the projects of this machine, or signing in with a key; signing out; and what pages load."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from runlore import errors
from runlore.lookup.http import answers, callers
from runlore.lookup.http.console import pages, sessions

router = APIRouter(include_in_schema=False, route_class=pages.Route)
Browser = Depends(pages.asked_by_a_browser)
_NEXT = re.compile(r"/(projects|administration)[A-Za-z0-9%._~/?&=+-]{0,2000}", re.ASCII)


@router.get("/", dependencies=[Browser])
async def projects(request: Request) -> Response:
    """Without keys every project of this machine; with keys the one that the key is of."""
    with_keys = callers.service_of(request).with_keys
    request.state.viewer = (
        await sessions.operator_of(request) if with_keys else None
    ) or await sessions.viewer_of(request)
    if with_keys:
        return pages.go(pages.whose(request))
    lists = callers.service_of(request).lists
    rows = await lists.ask(lambda index: [*index.memories(), *index.snapshots(limit=1000)])
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        one = found.setdefault(row["project"], {"memories": 0, "rollouts": 0, "runs": 0, "held": 0})
        if "memory" in row:
            one["memories"] += 1
            for name in ("rollouts", "runs", "held"):
                one[name] += row[name]
    return await pages.shown(request, "projects.html", title="Projects", projects=sorted(found.items()))


@router.get("/sign-in", dependencies=[Browser])
async def form(request: Request) -> Response:
    return await _form(request, request.query_params.get("next", ""))


async def _form(request: Request, wanted: str, problem: str = "", status: int = 200) -> Response:
    return await pages.shown(
        request,
        "sign_in.html",
        title="Sign in",
        status=status,
        problem=problem,
        wanted=wanted,
        form=await sessions.form_token(request, sessions.Viewer()),
        with_keys=callers.service_of(request).with_keys,
    )


@router.post("/sign-in", dependencies=[Browser])
async def sign_in(request: Request) -> Response:
    fields = await sessions.form_of(request, sessions.Viewer())
    try:
        request.state.viewer, cookie = await sessions.begin(request, fields.get("key", ""))
    except errors.Unauthorized as exc:
        return await _form(request, fields.get("next", ""), problem=exc.message, status=401)
    wanted, mine = fields.get("next", ""), pages.whose(request)
    # Only to a page of ours, and of this key's project: an address that somebody sent leads nowhere else.
    is_mine = _NEXT.fullmatch(wanted) and (wanted == mine or wanted.startswith((f"{mine}/", f"{mine}?")))
    answer = pages.go(wanted if is_mine else mine)
    sessions.put_cookie(request, answer, cookie)
    return answer


@router.post("/sign-out", dependencies=[Browser])
async def sign_out(request: Request) -> Response:
    """End the session in this browser. Where it has ended already nothing is left to do."""
    try:
        operator = await sessions.operator_of(request)
        await sessions.form_of(request, operator or await sessions.viewer_of(request))
    except errors.Unauthorized:
        pass
    answer = pages.go(pages.url("sign-in"))
    sessions.put_cookie(request, answer, "")
    return answer


@router.get("/static/{name}")
async def static(request: Request, name: Annotated[str, callers.Segment]) -> Response:
    """A file of the console itself. It tells nothing of anybody."""
    if name not in pages.STATIC:
        raise errors.NotFound("there is nothing here")
    raw, content = pages.static(name)
    etag = answers.quoted(content)
    caching = "public, max-age=86400"
    if answers.is_known(request, etag):
        return answers.unchanged(etag, caching)
    headers: dict[str, Any] = {"Cache-Control": caching, "ETag": etag}
    return await answers.compressed(request, raw, pages.STATIC[name], headers, 200)
