"""Errors as RFC 9457 problem details, each with the `kind` that it has everywhere else."""

from __future__ import annotations

import json
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from runlore import errors

log = structlog.get_logger("runlore.http")

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 2
ORGANIZATION = "/v1/organization/"
_OPENAI_TYPES = ((500, "server_error"), (400, "invalid_request_error"))
STATUS: tuple[tuple[type[errors.RunloreError], int], ...] = (
    # The first that fits: what is narrower stands before its group.
    (errors.Unauthorized, 401),
    (errors.Forbidden, 403),
    (errors.BodyTooLarge, 413),
    (errors.EventTooLarge, 413),
    (errors.RecordTooLarge, 413),
    (errors.BadRange, 416),
    (errors.WaitTimeout, 504),
    (errors.TooSlow, 408),
    (errors.RateLimited, 429),
    (errors.InvalidInput, 400),
    (errors.Poison, 400),
    (errors.NotFound, 404),
    (errors.Erased, 410),
    (errors.Refused, 409),
    (errors.Retryable, 503),
    (errors.PreconditionFailed, 503),
    (errors.Blocked, 503),
)
"""What is in no row is a fault of ours: 500."""


def status_of(exc: errors.RunloreError) -> int:
    return next((status for kind, status in STATUS if isinstance(exc, kind)), 500)


def problem(exc: errors.RunloreError, status: int | None = None, *, path: str = "") -> Response:
    """The answer that tells an error; on a `path` that administers in the shape that OpenAI's clients read."""
    status = status or status_of(exc)
    told = exc.as_dict()
    theirs = path.startswith(ORGANIZATION)
    body: dict[str, Any] = (
        _openai(exc, status)
        if theirs
        else {
            "type": f"urn:runlore:error:{exc.kind}",
            "title": (type(exc).__doc__ or exc.kind).strip().splitlines()[0],
            "status": status,
            "detail": told["message"],
            "kind": exc.kind,
            "hint": told.get("hint"),
            "context": told.get("context", {}),
        }
    )
    headers = {"Cache-Control": "no-store"}
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="runlore"'
    if theirs and status == 409:
        # Their client takes a conflict for a lock, and would ask again.
        headers["x-should-retry"] = "false"
    if status == 408:
        # The rest of the body may still come: nobody reads it.
        headers["Connection"] = "close"
    if status in (429, 503):
        headers["Retry-After"] = str(exc.context.get("retry_seconds", RETRY_SECONDS))
    return Response(json.dumps(body), status, headers, "application/json" if theirs else MEDIA_TYPE)


def _openai(exc: errors.RunloreError, status: int) -> dict[str, Any]:
    """The error as OpenAI's API tells one: their client makes its exception of it, with `code` and `type`."""
    hint = f" ({exc.hint})" if exc.hint else ""
    kind = next((name for least, name in _OPENAI_TYPES if status >= least), "server_error")
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(status, kind)
    return {"error": {"message": f"{exc.message}{hint}", "type": kind, "param": None, "code": exc.kind}}


class _Internal(errors.RunloreError):
    """Something went wrong in Runlore."""


async def _ours(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, errors.RunloreError)
    if status_of(exc) >= 500:
        log.warning("request failed", kind=exc.kind, problem=exc.message)
    return problem(exc, path=request.url.path)


async def _theirs(request: Request, exc: Exception) -> Response:
    """What the framework refuses itself: no such route, no such method."""
    assert isinstance(exc, HTTPException)
    path = request.url.path
    if path.startswith(ORGANIZATION) and exc.status_code in (404, 405):
        told = errors.NotFound(
            f"Runlore has no {request.method} {path[len('/v1') :].split('/')[2]} of this kind",
            hint="docs/ADMIN.md lists what is there, and what has no meaning here",
        )
        return problem(told, path=path)
    if exc.status_code == 404:
        return problem(errors.NotFound("there is nothing here", hint="docs/HTTP.md lists the routes"))
    answer = problem(errors.InvalidInput(str(exc.detail)), exc.status_code)
    answer.headers.update(exc.headers or {})
    return answer


async def _invalid(request: Request, exc: Exception) -> Response:
    """A parameter that does not fit. Its value is not told: it may be a secret."""
    assert isinstance(exc, RequestValidationError)
    found = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in exc.errors()[:3]]
    return problem(errors.InvalidInput("; ".join(found)), path=request.url.path)


def internal(exc: Exception, *, path: str = "") -> Response:
    """A bug of ours: logged with its trace, told without a word of it."""
    log.error("a request met a bug", exc_info=exc)
    return problem(_Internal("something went wrong in Runlore; its log says what"), path=path)


def install(app: FastAPI) -> None:
    app.add_exception_handler(errors.RunloreError, _ours)
    app.add_exception_handler(HTTPException, _theirs)
    app.add_exception_handler(RequestValidationError, _invalid)
