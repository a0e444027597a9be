"""The audit log as pages: who changed what, when and why; whether the chain is whole.

Entries are read newest first, so many of a page and no more; where a filter lets few through, a page ends after
`LOOKED_MAX` entries and says how far it looked. Whoever administers sees every entry; a key of scope admin sees its own
project's.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from runlore.lookup.http import answers, callers
from runlore.lookup.http import organization_shapes as theirs
from runlore.lookup.http.console import pages, sessions
from runlore.upkeep import administration, adminlog
from runlore.upkeep import organization as organizations

router = APIRouter(
    include_in_schema=False,
    dependencies=[Depends(pages.asked_by_a_browser)],
    route_class=pages.Route,
)
ENTRIES_SHOWN = 50
LOOKED_MAX = 2000
"""Entries that one page looks at."""
DETAILS_CHARS_MAX = 300
FILTER_CHARS_MAX = 200

Operator = Annotated[sessions.Operator, Depends(sessions.administers)]
Admin = Annotated[sessions.Viewer, sessions.sees(callers.ADMIN)]
Filter = Annotated[str, Query(max_length=FILTER_CHARS_MAX)]
Day = Annotated[str, Query(pattern=r"^(\d{4}-\d{2}-\d{2})?$")]


@dataclass(frozen=True)
class Row:
    """One entry as it is shown."""

    number: int
    at: str
    who: str
    actor: str
    type: str
    project: str | None
    target: str
    details: str
    reason: str | None


@dataclass(frozen=True)
class Wanted:
    """Which entries are asked for; what is empty lets every one through. Days are whole, in UTC."""

    project: str = ""
    type: str = ""
    actor: str = ""
    since: str = ""
    until: str = ""

    def takes(self, entry: adminlog.Entry) -> bool:
        return (
            (not self.project or entry.project == self.project)
            # `project` finds all that happens to projects, `project.archived` that alone.
            and (not self.type or entry.type == self.type or entry.type.startswith(f"{self.type}."))
            and (not self.actor or self.actor in theirs.actor_ids(entry.by))
            and (not self.until or _day(entry.at) <= self.until)
            and not self.is_before(entry)
        )

    def is_before(self, entry: adminlog.Entry) -> bool:
        """Whether an entry is of before what is asked for: no later one of the walk can fit."""
        return bool(self.since) and _day(entry.at) < self.since

    def query(self) -> dict[str, str]:
        return {
            **{"project": self.project, "type": self.type, "actor": self.actor},
            **{"from": self.since, "to": self.until},
        }


def _day(at: str) -> str:
    return dt.datetime.fromisoformat(at).astimezone(dt.UTC).date().isoformat()


@dataclass(frozen=True)
class Found:
    """A page of entries: where the next begins, and since when nothing fitted where it ended early."""

    rows: list[adminlog.Entry]
    next: int | None
    looked_back_to: str = ""


async def found(entries: AsyncIterator[adminlog.Entry], wanted: Wanted, below: int | None) -> Found:
    """The page of what is wanted among entries that come newest first, below a number."""
    rows: list[adminlog.Entry] = []
    looked = 0
    async for entry in entries:
        if below is not None and entry.number >= below:
            continue
        if wanted.is_before(entry):
            break
        looked += 1
        if wanted.takes(entry):
            if len(rows) == ENTRIES_SHOWN:
                return Found(rows, rows[-1].number)
            rows.append(entry)
        if looked == LOOKED_MAX and entry.number > 1:
            return Found(rows, entry.number, entry.at)
    return Found(rows, None)


def row(entry: adminlog.Entry, org: organizations.Organization) -> Row:
    """An entry in words."""
    user, key = str(entry.by.get("user") or ""), str(entry.by.get("key") or "")
    known = org.users.get(user)
    name = str(entry.by.get("key_name") or entry.by.get("name") or "")
    person = known.name if known is not None else user if not user.startswith(organizations.USER) else ""
    told = json.dumps(entry.details, ensure_ascii=False) if entry.details else ""
    return Row(
        entry.number,
        entry.at,
        " · ".join(part for part in (person, name) if part) or key or "somebody",
        user or key,
        entry.type,
        entry.project,
        entry.target,
        _cut(_plain(entry.details) or told),
        entry.reason,
    )


def _plain(details: Mapping[str, Any]) -> str:
    """Details of one level as words."""
    parts = []
    for name, value in details.items():
        if isinstance(value, Mapping):
            return ""
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        parts.append(f"{name}: {shown}")
    return " · ".join(parts)


def _cut(text: str) -> str:
    return text if len(text) <= DETAILS_CHARS_MAX else text[:DETAILS_CHARS_MAX] + "…"


def _place(cursor: str | None) -> int | None:
    place = answers.place_of(cursor, int)
    return place[0] if place else None


@router.get(f"/{pages.ADMINISTRATION}/audit")
async def log(
    request: Request,
    operator: Operator,
    project: Filter = "",
    type_: Annotated[str, Query(alias="type", max_length=FILTER_CHARS_MAX)] = "",
    actor: Filter = "",
    since: Annotated[str, Query(alias="from", pattern=r"^(\d{4}-\d{2}-\d{2})?$")] = "",
    until: Annotated[str, Query(alias="to", pattern=r"^(\d{4}-\d{2}-\d{2})?$")] = "",
    cursor: callers.Cursor = None,
    verify: bool = False,
) -> Response:
    """What was administered, newest first."""
    store, kept = callers.service_of(request).store, request.app.state.log_entries
    wanted = Wanted(project, type_.strip(), actor.strip(), since, until)
    org = await administration.read(store)
    page = await found(adminlog.newest_first(store, org.tip, kept), wanted, _place(cursor))
    checked = await administration.verify(store) if verify else None
    actors = {one.id: one.name for one in org.users.values()}
    actors |= {one.owner.id: one.owner.id for one in org.admin_keys.values() if one.owner.id not in actors}
    here = pages.url(pages.ADMINISTRATION, "audit", **wanted.query())
    return await pages.shown(
        request,
        "admin_audit.html",
        title="Audit log · Administration",
        rows=[row(one, org) for one in page.rows],
        wanted=wanted,
        is_filtered=any(wanted.query().values()),
        looked_back_to=page.looked_back_to,
        here=here,
        next=_next(page, pages.ADMINISTRATION, "audit", **wanted.query()),
        is_first=cursor is None,
        checked=checked,
        tip=org.tip,
        projects=sorted(org.projects),
        actors=sorted(actors.items(), key=lambda one: one[1].casefold()),
    )


def _next(page: Found, *segments: str, **query: str) -> str | None:
    if page.next is None:
        return None
    return pages.url(*segments, **query, cursor=answers.cursor_of(page.next))
