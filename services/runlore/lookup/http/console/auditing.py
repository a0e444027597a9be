"""The audit log as pages: who changed what, did what, was handed which seed; when, why, and whether it is whole.

Three logs (`upkeep/adminlog.py`, `audit.py`, `seedlog.py`), each read newest first, so many of a page and no more;
where a filter lets few through a page ends after `LOOKED_MAX` entries and says how far it looked. Whoever administers
sees every entry. A key of scope admin sees its own project's: no other project's name, no machine's.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from runlore.lookup.http import answers, callers
from runlore.lookup.http.console import pages, sessions
from runlore.store import port
from runlore.upkeep import acts, administration, adminlog, audit, chain, logs, seedlog
from runlore.upkeep import organization as organizations

router = APIRouter(
    include_in_schema=False,
    dependencies=[Depends(pages.asked_by_a_browser)],
    route_class=pages.Route,
)
ENTRIES_SHOWN = 50
LOOKED_MAX = 5000
"""Entries that one page looks at."""
ABOUT_CHARS_MAX = 300
VALUE_CHARS_MAX = 80
FILTER_CHARS_MAX = 200
CHANGES, ACTS, SEEDS = "changes", "acts", "seeds"
LOGS = ((CHANGES, "Administration"), (ACTS, "Acts"), (SEEDS, "Seeds handed out"))
SEVERAL = "an act on several projects"
HOW = {
    seedlog.SEED: "seed",
    seedlog.UNCHANGED: "seed, unchanged",
    seedlog.AGAIN: "seed, again",
    seedlog.CONTENT: "files of a seed",
}

Operator = Annotated[sessions.Operator, Depends(sessions.administers)]
Admin = Annotated[sessions.Viewer, sessions.sees(callers.ADMIN)]
Log = Annotated[Literal["changes", "acts", "seeds"], Query()]


@dataclass(frozen=True)
class Row:
    """One entry as it is shown. `id` says where the next page goes on; `state` what came of it, where not well."""

    id: str
    at: str
    by: Mapping[str, str]
    who: str
    what: str
    projects: tuple[str, ...]
    about: str
    reason: str | None
    target: str = ""
    state: str = ""
    is_chained: bool = True

    @property
    def actor(self) -> str:
        """What finds the rest of what they did."""
        return str(self.by.get("user") or self.by.get("key") or "")


class Wanted:
    """Which entries are asked for; what is empty lets every one through. Days are whole, in UTC."""

    def __init__(
        self,
        project_: Annotated[str, Query(alias="project", max_length=FILTER_CHARS_MAX)] = "",
        type_: Annotated[str, Query(alias="type", max_length=FILTER_CHARS_MAX)] = "",
        actor: Annotated[str, Query(max_length=FILTER_CHARS_MAX)] = "",
        since: Annotated[str, Query(alias="from", pattern=r"^(\d{4}-\d{2}-\d{2})?$")] = "",
        until: Annotated[str, Query(alias="to", pattern=r"^(\d{4}-\d{2}-\d{2})?$")] = "",
    ) -> None:
        self.project, self.type, self.actor = project_.strip(), type_.strip(), actor.strip()
        self.since, self.until = since, until

    def takes(self, row: Row) -> bool:
        # `project` finds all that happens to projects, `project.archived` that alone.
        is_type = (
            not self.type or row.what == self.type or row.what.startswith((f"{self.type}.", f"{self.type} "))
        )
        return (
            is_type
            and (not self.project or self.project in row.projects)
            and (not self.actor or audit.names_actor(row.by, self.actor))
            and (not self.until or _day(row.at) <= self.until)
        )

    def is_before(self, row: Row) -> bool:
        """Whether an entry is of before what is asked for: none that comes after it can fit."""
        return bool(self.since) and _day(row.at) < self.since

    def query(self) -> dict[str, str]:
        return {
            **{"project": self.project, "type": self.type, "actor": self.actor},
            **{"from": self.since, "to": self.until},
        }


def _day(at: str) -> str:
    return dt.datetime.fromisoformat(at).astimezone(dt.UTC).date().isoformat()


@dataclass(frozen=True)
class Found:
    """A page of entries: behind which the next begins, and since when nothing fitted where it ended early."""

    rows: list[Row]
    next: str | None = None
    looked_back_to: str = ""


async def found(entries: AsyncIterator[Row], wanted: Wanted, after: str | None = None) -> Found:
    """The page of what is wanted among entries that come newest first, behind the one called `after`."""
    rows: list[Row] = []
    looked = 0
    async for row in entries:
        if after is not None:
            after = None if row.id == after else after
            continue
        if wanted.is_before(row):
            break
        looked += 1
        if wanted.takes(row):
            if len(rows) == ENTRIES_SHOWN:
                return Found(rows, rows[-1].id)
            rows.append(row)
        if looked == LOOKED_MAX:
            return Found(rows, row.id, row.at)
    return Found(rows)


# --- the three logs as rows --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """Reads entries, and puts them into words. `mine`: the project whose key looks; None: whoever administers."""

    store: port.ObjectStore
    org: organizations.Organization
    kept: adminlog.Kept
    kept_acts: chain.Kept[acts.Entry]
    mine: str | None = None

    async def page(self, log: str, wanted: Wanted, after: str | None) -> Found:
        """The page of a log behind the entry called `after`."""
        if self.mine is not None:
            wanted.project = self.mine
        if log == SEEDS:
            # It finds the place by itself; the others are walked to it, through what is remembered.
            return await found(self._seeds(after), wanted)
        return await found(self._changes() if log == CHANGES else self._acts(wanted), wanted, after)

    async def _changes(self) -> AsyncIterator[Row]:
        async for entry in adminlog.newest_first(self.store, self.org.tip, self.kept):
            yield Row(
                *(str(entry.number), entry.at, entry.by, self._who(entry.by), entry.type),
                projects=(entry.project,) if entry.project else (),
                about=_about(entry.details),
                reason=entry.reason,
                target="" if entry.target == entry.project else entry.target,
            )

    async def _acts(self, wanted: Wanted) -> AsyncIterator[Row]:
        project = wanted.project or None
        async for act in audit.newest_first(self.store, project=project, kept=self.kept_acts):
            error = act.result.get("error")
            told = str(error.get("message", "")) if isinstance(error, Mapping) else ""
            row = Row(
                *(act.id, act.at, act.by, self._who(act.by), act.what, tuple(act.projects)),
                about=" · ".join(part for part in (_about(act.arguments), told) if part),
                reason=act.reason,
                state="" if act.state == audit.DONE else act.state,
                is_chained=act.number is not None,
            )
            yield self._mine(row)

    def _mine(self, row: Row) -> Row:
        """What a project may see of an act that was on others, too: neither them nor what names them."""
        if self.mine is None or row.projects == (self.mine,):
            return row
        return dataclasses.replace(row, projects=(self.mine,), about=SEVERAL, reason=None)

    async def _seeds(self, after: str | None) -> AsyncIterator[Row]:
        # Of all projects: what is read is counted, also where few of them fit.
        async for one in seedlog.newest_first(self.store, after=after):
            parts = (
                f"{one.memory} revision {one.revision}",
                f"snapshot {one.snapshot[:12]}" if one.snapshot else "",
                f"rollout {one.rollout}" + (f"/{one.agent}" if one.agent != "main" else ""),
                f"for {one.subject}" if one.subject else "",
            )
            yield Row(
                *(one.id, one.at, one.by, self._who(one.by), HOW.get(one.how, one.how), (one.project,)),
                about=" · ".join(part for part in parts if part),
                reason=None,
            )

    def _who(self, by: Mapping[str, Any]) -> str:
        """Whose act it was, for a person. For a project without the machine."""
        user, host = str(by.get("user") or ""), str(by.get("host") or "")
        known = self.org.users.get(user)
        key = str(by.get("key_name") or by.get("name") or "")
        if known is not None:
            return known.name if self.mine is not None else " · ".join(filter(None, (known.name, key)))
        if user.startswith(organizations.USER):
            # Taken away since.
            return key or user[: len(organizations.USER) + 8]
        if self.mine is not None:
            user, host = user.partition("@")[0], ""
        person = f"{user}@{host}" if user and host else user
        return " · ".join(filter(None, (person, key))) or str(by.get("key") or by.get("client") or "somebody")


def _about(details: Mapping[str, Any]) -> str:
    """Details in words: so much of each, so much of all."""
    parts = []
    for name, value in details.items():
        if value is None or value == [] or value == {}:
            continue
        if isinstance(value, list | tuple):
            shown = ", ".join(map(str, value))
        else:
            shown = json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else str(value)
        parts.append(f"{name.replace('_', ' ')}: {_cut(shown, VALUE_CHARS_MAX)}")
    return _cut(" · ".join(parts), ABOUT_CHARS_MAX)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + "…"


# --- the pages ----------------------------------------------------------------------------------------------------


async def _reader(request: Request, mine: str | None) -> Reader:
    store, state = callers.service_of(request).store, request.app.state
    return Reader(store, await administration.read(store), state.log_entries, state.act_entries, mine)


def _place(cursor: str | None) -> str | None:
    place = answers.place_of(cursor, str)
    return place[0] if place else None


@router.get(f"/{pages.ADMINISTRATION}/audit")
async def everything(
    request: Request,
    operator: Operator,
    wanted: Annotated[Wanted, Depends()],
    log: Log = "changes",
    cursor: callers.Cursor = None,
    verify: bool = False,
) -> Response:
    """What was administered, done and handed out."""
    reader = await _reader(request, None)
    org = reader.org
    actors = {one.owner.id: one.owner.id for one in org.admin_keys.values()}
    actors |= {one.id: one.name for one in org.users.values()}
    return await _shown(
        request,
        reader,
        wanted,
        log,
        cursor,
        here=pages.url(pages.ADMINISTRATION, "audit"),
        checked=await logs.verify(reader.store) if verify else None,
        projects=sorted(org.projects),
        actors=sorted(actors.items(), key=lambda one: one[1].casefold()),
    )


@router.get("/projects/{project}/audit")
async def of_project(
    request: Request,
    project: callers.Project,
    viewer: Admin,
    wanted: Annotated[Wanted, Depends()],
    log: Log = "changes",
    cursor: callers.Cursor = None,
) -> Response:
    """The same of one project."""
    reader = await _reader(request, project)
    here = pages.url("projects", project, "audit")
    return await _shown(request, reader, wanted, log, cursor, here=here, checked=None, projects=[], actors=[])


async def _shown(
    request: Request, reader: Reader, wanted: Wanted, log: str, cursor: str | None, *, here: str, **more: Any
) -> Response:
    page = await reader.page(log, wanted, _place(cursor))
    asked = {name: value for name, value in wanted.query().items() if value}
    if reader.mine is not None:
        del asked["project"]
    place = pages.with_query(here, log=log, **asked)
    return await pages.shown(
        request,
        "audit.html",
        title="Audit log" + (f" · {reader.mine}" if reader.mine else " · Administration"),
        rows=page.rows,
        looked_back_to=page.looked_back_to,
        next=pages.with_query(here, log=log, **asked, cursor=answers.cursor_of(page.next))
        if page.next
        else None,
        is_first=cursor is None,
        wanted=wanted,
        is_filtered=bool(asked),
        log=log,
        logs=[(name, told, pages.with_query(here, log=name, **asked)) for name, told in LOGS],
        here=here,
        place=place,
        with_project=reader.mine is None,
        tip=reader.org.tip,
        **more,
    )
