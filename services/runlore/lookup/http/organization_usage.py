"""Routes of usage and costs, with the filters, groups and cursors of OpenAI's client."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from runlore import errors
from runlore.lookup import usage as usages
from runlore.lookup.http import callers, shapes
from runlore.lookup.http import organization_shapes as theirs
from runlore.lookup.http.organization import told

router = APIRouter(prefix="/v1/organization", tags=["administration"])
FILTER_VALUES_MAX = 100
BUCKETS_DEFAULT, COMPLETIONS_BUCKETS_MAX, COSTS_BUCKETS_MAX = 7, 31, 180
SECONDS_MAX = 253_402_300_799
"""The end of the year 9999."""

Second = Annotated[int, Query(ge=0, le=SECONDS_MAX)]
Until = Annotated[int | None, Query(ge=0, le=SECONDS_MAX)]
Cursor = Annotated[str | None, Query(max_length=32, description="`next_page` of the page before.")]


def _values(request: Request, name: str) -> list[str]:
    """A list as their client sends it (`name[]`), or plainly."""
    given = [*request.query_params.getlist(f"{name}[]"), *request.query_params.getlist(name)]
    if len(given) > FILTER_VALUES_MAX:
        raise errors.InvalidInput(f"{name}: at most {FILTER_VALUES_MAX}")
    return given


def _refuse(request: Request, *names: str) -> None:
    """Raises `errors.InvalidInput` for a filter by what calls are not kept by."""
    for name in names:
        if _values(request, name):
            raise errors.InvalidInput(f"{name}: the workers ask models, for no key and no user of a project")


@router.get(
    "/usage/completions",
    summary="What calls to models took, by day",
    responses=shapes.answers(theirs.UsagePage),
)
async def completions(
    request: Request,
    admin: callers.Administering,
    start_time: Second,
    end_time: Until = None,
    bucket_width: Literal["1m", "1h", "1d"] = "1d",
    limit: Annotated[int, Query(ge=1, le=COMPLETIONS_BUCKETS_MAX)] = BUCKETS_DEFAULT,
    page: Cursor = None,
    batch: bool | None = None,
) -> Response:
    if bucket_width != "1d":
        raise errors.InvalidInput("bucket_width: what calls took is kept by day (UTC), so it is 1d")
    _refuse(request, "api_key_ids", "user_ids")
    by = usages.checked_by(_values(request, "group_by"), usages.COMPLETIONS_BY)
    wanted = usages.Wanted(
        start=start_time,
        end=end_time,
        buckets_max=limit,
        page=page,
        by=by,
        projects=frozenset(_values(request, "project_ids")),
        models=frozenset(_values(request, "models")),
        # No call is one of a batch.
        is_none=batch is True,
    )
    found, after = await usages.buckets(callers.service_of(request).store, wanted)
    return await told(request, usages.page(found, after, usages.completions(by)))


@router.get("/costs", summary="What calls to models cost, by day", responses=shapes.answers(theirs.UsagePage))
async def costs(
    request: Request,
    admin: callers.Administering,
    start_time: Second,
    end_time: Until = None,
    bucket_width: Literal["1d"] = "1d",
    limit: Annotated[int, Query(ge=1, le=COSTS_BUCKETS_MAX)] = BUCKETS_DEFAULT,
    page: Cursor = None,
) -> Response:
    _refuse(request, "api_key_ids", "user_ids")
    by = usages.checked_by(_values(request, "group_by"), usages.COSTS_BY)
    wanted = usages.Wanted(
        start=start_time,
        end=end_time,
        buckets_max=limit,
        page=page,
        by=by,
        projects=frozenset(_values(request, "project_ids")),
        models=frozenset(_values(request, "line_items")),
    )
    found, after = await usages.buckets(callers.service_of(request).store, wanted)
    return await told(request, usages.page(found, after, usages.costs(by)))
