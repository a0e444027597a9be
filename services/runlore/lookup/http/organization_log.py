"""The route of the audit log of what was administered, with the filters and cursors of OpenAI's client."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from runlore import errors
from runlore.lookup.http import answers, callers, organization, shapes
from runlore.lookup.http import organization_shapes as theirs
from runlore.upkeep import administration, adminlog
from runlore.upkeep.organization import Organization

router = APIRouter(prefix="/v1/organization", tags=["administration"])
FILTER_VALUES_MAX = 100

_ID = re.compile(r"audit_log-(\d{12})-[0-9a-f]{16}", re.ASCII)
_TENANT = "tenant."

Cursor = Annotated[str | None, Query(max_length=64, description="An entry's id.")]
Second = Annotated[int | None, Query()]


@dataclass(frozen=True)
class Wanted:
    """Which entries are asked for; an empty filter lets every one through."""

    types: frozenset[str]
    projects: frozenset[str]
    actors: frozenset[str]
    emailed: frozenset[str] | None
    """Users with the addresses that are asked for; None where none is."""
    resources: frozenset[str]
    tenant_only: bool
    within: Callable[[int], bool]

    def takes(self, entry: adminlog.Entry) -> bool:
        return (
            (not self.types or entry.type in self.types)
            and (not self.projects or entry.project in self.projects)
            and (not self.actors or bool(self.actors & theirs.actor_ids(entry.by)))
            and (self.emailed is None or entry.by.get("user") in self.emailed)
            and (
                not self.resources
                or bool(self.resources & {entry.target, f"{theirs.RATE_LIMIT}{entry.target}"})
            )
            and (not self.tenant_only or entry.type.startswith(_TENANT))
            and self.within(theirs.seconds(entry.at))
        )


def _wanted(
    request: Request, org: Organization, within: Callable[[int], bool], *, tenant_only: bool
) -> Wanted:
    """The filters, as their client sends lists (`name[]`), or plainly."""

    def values(name: str) -> frozenset[str]:
        given = [*request.query_params.getlist(f"{name}[]"), *request.query_params.getlist(name)]
        if len(given) > FILTER_VALUES_MAX:
            raise errors.InvalidInput(f"{name}: at most {FILTER_VALUES_MAX}")
        return frozenset(given)

    emails = {one.casefold() for one in values("actor_emails")}
    emailed = frozenset(one.id for one in org.users.values() if one.email.casefold() in emails)
    return Wanted(
        types=values("event_types"),
        projects=values("project_ids"),
        actors=values("actor_ids"),
        emailed=emailed if emails else None,
        resources=values("resource_ids"),
        tenant_only=tenant_only,
        within=within,
    )


def _number(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    found = _ID.fullmatch(cursor)
    if found is None:
        raise errors.InvalidInput("the cursor is no entry's id")
    return int(found[1])


@router.get(
    "/audit_logs", summary="What was administered, newest first", responses=shapes.answers(theirs.Page)
)
async def audit_logs(
    request: Request,
    admin: callers.Administering,
    after: Cursor = None,
    before: Cursor = None,
    limit: organization.Limit = organization.PAGE_DEFAULT,
    tenant_only: bool = False,
    above: Annotated[int | None, Query(alias="effective_at[gt]")] = None,
    least: Annotated[int | None, Query(alias="effective_at[gte]")] = None,
    below: Annotated[int | None, Query(alias="effective_at[lt]")] = None,
    most: Annotated[int | None, Query(alias="effective_at[lte]")] = None,
) -> Response:
    def within(at: int) -> bool:
        return (
            (above is None or at > above)
            and (least is None or at >= least)
            and (below is None or at < below)
            and (most is None or at <= most)
        )

    store = callers.service_of(request).store
    older_than, newer_than = _number(after), _number(before)
    org = await administration.read(store)
    wanted = _wanted(request, org, within, tenant_only=tenant_only)
    found: list[adminlog.Entry] = []
    async for entry in adminlog.newest_first(store, org.tip, request.app.state.log_entries):
        if newer_than is not None and entry.number <= newer_than:
            break
        if (older_than is None or entry.number < older_than) and wanted.takes(entry):
            found.append(entry)
            if newer_than is None and len(found) > limit:
                break
    # A page before an entry is the one that ends at it.
    rows = found[-limit:] if newer_than is not None else found[:limit]
    body = theirs.page([theirs.audit_log(one, org) for one in rows], has_more=len(found) > limit)
    return await answers.found(request, body)
