"""What holds for every request, before its route and after it: limits, the log of accesses, metrics.

Plain ASGI, so that a stream is never held. A line of the log names the route, not the path: paths hold ids, and a
query may hold a subject. No header is logged.
"""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from runlore import clock, errors, telemetry
from runlore.lookup.http import callers, problems
from runlore.lookup.http import service as services

log = structlog.get_logger("runlore.http")

PROBES = ("/livez", "/readyz")
NO_ROUTE = "none"
HEADERS_MAX = 100
BODY_BYTES_MIN = 64 * 1024
"""Of a body, or all that is left of it: what must come within the time that a client may stand still."""


class _Body:
    """A body that must go on coming. Raises `errors.TooSlow`.

    Only the time that somebody waits for it counts: not while the disk is written, or an answer is made.
    """

    def __init__(self, receive: Any, stall_seconds: float) -> None:
        self._receive, self._most = receive, stall_seconds
        self._waited, self._came, self._is_whole = 0.0, 0, False

    async def __call__(self) -> Any:
        if self._is_whole:
            return await self._receive()
        began = clock.monotonic()
        try:
            async with asyncio.timeout(self._most - self._waited):
                message = await self._receive()
        except TimeoutError:
            self._is_whole = True
            raise errors.TooSlow(
                f"within {self._most:g} seconds neither {BODY_BYTES_MIN} bytes of the body came nor its end"
            ) from None
        self._waited += clock.monotonic() - began
        self._came += len(message.get("body", b""))
        if self._came >= BODY_BYTES_MIN:
            self._waited, self._came = 0.0, 0
        self._is_whole = not message.get("more_body", False)
        return message


class Watched:
    """The outermost layer."""

    def __init__(self, app: Any, service: services.Service) -> None:
        self._app, self._service = app, service
        # Of everybody, whoever they say they are; each project's share is its route's affair, which knows the key.
        self._gate = services.Gate("requests", service.requests_max)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Matched as it came: a `%2F` is part of an id, and no `/` (`callers.unquoted`).
        raw = scope.get("raw_path") or scope["path"].encode()
        scope = {**scope, "path": raw.decode("latin-1"), "state": {}}
        began, seen = clock.monotonic(), {"status": 0, "bytes": 0}

        async def told(message: Any) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                headers = message.setdefault("headers", [])
                headers += [(b"x-content-type-options", b"nosniff"), *scope["state"].get("headers", ())]
                seen["seconds"] = clock.monotonic() - began
            elif message["type"] == "http.response.body":
                seen["bytes"] += len(message.get("body", b""))
            await send(message)

        try:
            await self._answered(scope, receive, told, seen)
        finally:
            self._note(scope, seen, clock.monotonic() - began)

    async def _answered(self, scope: Any, receive: Any, send: Any, seen: dict[str, Any]) -> None:
        is_probe = scope["path"] in PROBES
        try:
            if len(scope["headers"]) > HEADERS_MAX:
                told = errors.InvalidInput(f"the request has more than {HEADERS_MAX} headers")
                await problems.problem(told, 431)(scope, receive, send)
                return
            if any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"]):
                receive = _Body(receive, self._service.stall_seconds)
            if not self._service.with_keys and not is_probe:
                callers.check_local(Headers(scope=scope).get)
            if is_probe:
                await self._app(scope, receive, send)
                return
            with self._gate.entered():
                await self._app(scope, receive, send)
        except errors.RunloreError as exc:
            if seen["status"]:
                # Half sent: the connection ends before its length, so nobody takes it for whole.
                log.warning("an answer broke off", kind=exc.kind, problem=exc.message)
                raise
            await problems.problem(exc, path=scope["path"])(scope, receive, send)
        except asyncio.CancelledError:
            if not self._service.stopping.is_set():
                raise
            # The time for draining is over. Its connection ends before the answer's length.
            log.warning("an answer broke off", kind="stopping")
        except ClientDisconnect:
            seen["status"] = seen["status"] or 499
        except Exception as exc:
            answer = problems.internal(exc, path=scope["path"])
            if seen["status"]:
                raise
            await answer(scope, receive, send)

    def _note(self, scope: Any, seen: dict[str, Any], seconds: float) -> None:
        route = getattr(scope.get("route"), "path", NO_ROUTE)
        status = str(seen["status"])
        telemetry.HTTP_REQUESTS.inc(route=route, method=scope["method"], status=status)
        telemetry.HTTP_SECONDS.observe(seen.get("seconds", seconds), route=route)
        if scope["path"] in PROBES:
            return
        caller = scope.get("state", {}).get("caller", {})
        log.info(
            "request",
            route=route,
            method=scope["method"],
            status=seen["status"],
            bytes=seen["bytes"],
            seconds=round(seconds, 4),
            key=caller.get("key"),
        )
