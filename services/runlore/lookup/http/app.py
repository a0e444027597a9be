"""The application: its routes, its probes, and what holds for every request.

    bind check → only this machine, without keys → path as it came → so many at once → key → route → problem

Made from a `Service` and nothing else: what is behind it, the command line wires.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Request, Security
from fastapi.openapi.utils import get_openapi
from starlette.responses import JSONResponse, Response

from runlore import __version__, errors
from runlore.commit import keys
from runlore.lookup.http import (
    answers,
    callers,
    events,
    memory,
    problems,
    routing,
    seeds,
    snapshots,
    watching,
)
from runlore.lookup.http import service as services

READY_SECONDS_MAX = 3.0
"""How long the store may take to say that it is there."""
probes = APIRouter(tags=["probes"])
DESCRIPTION = (
    "Seeds, memory and snapshots for the next run of an agent, and events from producers without Kafka. "
    "docs/HTTP.md is the contract."
)


class Application:
    """The service as an ASGI application."""

    def __init__(self, service: services.Service) -> None:
        self.service, self.keyring = service, callers.Keyring(service.store)
        self._watched = watching.Watched(routing.router(_routes()), service=service)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._watched({**scope, "app": self}, receive, send)


def make(service: services.Service) -> Application:
    """The application."""
    return Application(service)


def _routes() -> list[Any]:
    return [route for one in _ROUTERS for route in one.routes]


@functools.cache
def openapi() -> dict[str, Any]:
    """The OpenAPI document, which needs no service: what FastAPI makes of the routes, with our problems for its own."""
    app = FastAPI(
        title="Runlore",
        version=__version__,
        openapi_url=None,
        separate_input_output_schemas=False,
        generate_unique_id_function=lambda route: f"{(route.tags or ['x'])[0]}_{route.name}",
    )
    for one in _ROUTERS:
        app.include_router(one, responses={} if one is probes else _RESPONSES)
    found = get_openapi(title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes)
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    for theirs in ("HTTPValidationError", "ValidationError"):
        schemas.pop(theirs, None)
    schemas["Problem"] = PROBLEM_SCHEMA
    for path in found["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    return dict(found)


_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "description": "A problem (RFC 9457), with its `kind`.",
        "content": {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
}
PROBLEM_SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "kind"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "kind": {"type": "string"},
        "hint": {"type": ["string", "null"]},
        "context": {"type": "object"},
    },
}


@probes.get("/livez", summary="Whether the process answers")
async def livez(request: Request) -> Response:
    return JSONResponse({"live": True, "reasons": []}, headers={"Cache-Control": "no-store"})


@probes.get("/readyz", summary="Whether it can do its work, and why not")
async def readyz(request: Request) -> Response:
    reasons = await not_ready(callers.service_of(request))
    body = {"ready": not reasons, "reasons": reasons}
    return JSONResponse(body, 503 if reasons else 200, {"Cache-Control": "no-store"})


@probes.get("/v1", summary="What this service is")
async def about(request: Request, _: Annotated[Any, Security(callers.bearer)] = None) -> Response:
    body = {
        "version": __version__,
        "keys": callers.service_of(request).with_keys,
        "limits": {
            "json_bytes": services.JSON_BYTES_MAX,
            "archive_bytes": services.ARCHIVE_BYTES_MAX,
            "page_items": services.PAGE_ITEMS_MAX,
            "wait_seconds": services.WAIT_SECONDS_MAX,
        },
    }
    return await answers.found(request, body)


@probes.get("/openapi.json", include_in_schema=False)
async def document(request: Request) -> Response:
    return await answers.found(request, openapi())


_ROUTERS = (probes, seeds.router, memory.router, snapshots.router, events.router)


async def not_ready(service: services.Service) -> list[str]:
    """Why it can not do its work now: what a person is told, without a secret."""
    if service.stopping.is_set():
        return ["it is stopping"]
    try:
        async with asyncio.timeout(READY_SECONDS_MAX):
            # A key that is never there: that the store says so is all that is asked.
            await service.store.get(keys.probe("ready"))
    except TimeoutError:
        return [f"the store did not answer within {READY_SECONDS_MAX:g} seconds"]
    except errors.RunloreError as exc:
        return [f"{exc.kind}: {exc.message}"]
    return []
