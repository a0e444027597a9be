"""The application: its routes, its probes, and what holds for every request.

    bind check → only this machine, without keys → path as it came → so many at once → key → route → problem

Made from a `Service` and nothing else: what is behind it, the command line wires.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import FastAPI, Request, Security
from fastapi.openapi.utils import get_openapi
from starlette.responses import JSONResponse, Response

from runlore import __version__, errors
from runlore.commit import keys
from runlore.lookup.http import (
    answers,
    callers,
    erasures,
    events,
    memory,
    models,
    organization,
    organization_log,
    organization_people,
    organization_retention,
    organization_shapes,
    organization_spend,
    organization_usage,
    problems,
    review,
    seeds,
    snapshots,
    watching,
)
from runlore.lookup.http import service as services
from runlore.lookup.http.console import app as console
from runlore.upkeep import adminlog, allotments, chain

READY_SECONDS_MAX = 3.0
"""How long the store may take to say that it is there."""
DESCRIPTION = (
    "Seeds, memory and snapshots for the next run of an agent, and events from producers without Kafka. "
    "docs/HTTP.md is the contract."
)


def make(service: services.Service) -> FastAPI:
    """The application."""
    app = _routed()
    app.state.service = service
    app.state.keyring = callers.Keyring(service.store)
    app.state.allotments = allotments.Allotments(service.store)
    app.state.log_entries = adminlog.Kept()
    app.state.act_entries = chain.Kept()
    problems.install(app)
    console.errors_as_pages(app)
    app.add_middleware(watching.Watched, service=service)
    return app


def _routed() -> FastAPI:
    app = FastAPI(
        title="Runlore",
        version=__version__,
        description=DESCRIPTION,
        openapi_url="/openapi.json",
        docs_url=None,  # It would load scripts from elsewhere.
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
        generate_unique_id_function=lambda route: f"{(route.tags or ['x'])[0]}_{route.name}",
    )
    _probes(app)
    for one in (seeds, memory, review, models, snapshots, events, erasures):
        app.include_router(one.router, responses=_RESPONSES)
    for other in (
        organization,
        organization_people,
        organization_retention,
        organization_spend,
        organization_usage,
        organization_log,
    ):
        app.include_router(other.router, responses=_ERRORS)
    console.routes(app)
    made: dict[str, Any] = {}

    def document() -> dict[str, Any]:
        if not made:
            made.update(_document(app))
        return made

    app.openapi = document  # type: ignore[method-assign]
    return app


def openapi() -> dict[str, Any]:
    """The OpenAPI document, which needs no service."""
    return dict(_routed().openapi())


def _document(app: FastAPI) -> dict[str, Any]:
    """What the framework makes of the routes, with our problems in place of its own."""
    found = get_openapi(title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes)
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    for theirs in ("HTTPValidationError", "ValidationError"):
        schemas.pop(theirs, None)
    schemas["Problem"] = PROBLEM_SCHEMA
    for path in found["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    return found


_FAULT = "What may pass (503, `Retry-After`), did not come in time (504), or is a bug (500)."
_PROBLEM = {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "A problem (RFC 9457), with its `kind`.", "content": _PROBLEM},
    "5XX": {"description": _FAULT, "content": _PROBLEM},
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "An error, as OpenAI's API tells one.", "model": organization_shapes.Error},
    "5XX": {"description": _FAULT, "model": organization_shapes.Error},
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


def _probes(app: FastAPI) -> None:
    @app.get("/livez", tags=["probes"], summary="Whether the process answers")
    async def livez() -> Response:
        return JSONResponse({"live": True, "reasons": []}, headers={"Cache-Control": "no-store"})

    not_yet = {503: {"description": "It can not, and why."}}

    @app.get("/readyz", tags=["probes"], summary="Whether it can do its work, and why not", responses=not_yet)
    async def readyz(request: Request) -> Response:
        reasons = await not_ready(request.app.state.service)
        body = {"ready": not reasons, "reasons": reasons}
        return JSONResponse(body, 503 if reasons else 200, {"Cache-Control": "no-store"})

    @app.get("/v1", tags=["probes"], summary="What this service is")
    async def about(request: Request, _: Annotated[Any, Security(callers.bearer)] = None) -> Response:
        service: services.Service = request.app.state.service
        body = {
            "version": __version__,
            "keys": service.with_keys,
            "limits": {
                "json_bytes": services.JSON_BYTES_MAX,
                "archive_bytes": services.ARCHIVE_BYTES_MAX,
                "page_items": services.PAGE_ITEMS_MAX,
                "wait_seconds": services.WAIT_SECONDS_MAX,
            },
        }
        return await answers.found(request, body)


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
