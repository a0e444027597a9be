"""The console's routes, put beside those below /v1."""

from __future__ import annotations

from fastapi import FastAPI

from runlore.lookup.http.console import (
    administering,
    auditing,
    entrance,
    memories,
    operations,
    pages,
    people,
    reviews,
    runs,
    snapshots,
)

ROUTERS = (
    *(entrance.router, memories.router, runs.router, snapshots.router),
    *(reviews.router, operations.router, administering.router, people.router, auditing.router),
)


def routes(app: FastAPI) -> None:
    """Add the pages. They are in no OpenAPI document: they are for people, and change with what helps them."""
    for one in ROUTERS:
        app.include_router(one)


def errors_as_pages(app: FastAPI) -> None:
    """After `problems.install`: what a browser is told of an error is a page."""
    pages.install(app)
