"""Usage and costs by day, over projects: what OpenAI's usage routes answer, made of the spend ledgers.

The ledger keeps what calls took by UTC day, memory and model, and by nothing narrower: so a bucket is a day, and what
is asked by the hour, by key or by user is refused in words rather than answered with something else.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runlore import clock, errors
from runlore.commit import marks
from runlore.models import ledger, spend
from runlore.store import port

DAY_SECONDS = 86_400
PROJECT, MODEL, BATCH, LINE_ITEM = "project_id", "model", "batch", "line_item"
COMPLETIONS_BY, COSTS_BY = (PROJECT, MODEL, BATCH), (PROJECT, LINE_ITEM)
USD_DIGITS = 9

_PAGE = re.compile(r"page_(\d{1,12})", re.ASCII)


@dataclass(frozen=True)
class Wanted:
    """What is asked for: from when to when (Unix seconds; the days that these are in), of what, by what."""

    start: int
    end: int | None
    buckets_max: int
    page: str | None = None
    by: Sequence[str] = ()
    projects: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    is_none: bool = False
    """Whether no call is meant: the days are there, and empty."""


@dataclass(frozen=True)
class Bucket:
    """One day, and what it comes to in each group: (project, model) → row; None where it is not grouped by that."""

    start: int
    end: int
    groups: Mapping[tuple[str | None, str | None], spend.Row] = field(default_factory=dict)


def checked_by(given: Sequence[str], allowed: Sequence[str]) -> tuple[str, ...]:
    """What is grouped by. Raises `errors.InvalidInput` for what calls are not kept by."""
    strange = [one for one in given if one not in allowed]
    if strange:
        raise errors.InvalidInput(
            f"group_by: what calls took is kept by {', '.join(allowed)}; not by {strange[0][:40]}"
        )
    return tuple(dict.fromkeys(given))


async def buckets(store: port.ObjectStore, wanted: Wanted) -> tuple[list[Bucket], str | None]:
    """A page of days, oldest first, and the cursor of the next one. Raises `errors.InvalidInput`."""
    now = clock.now()
    end = min(wanted.end if wanted.end is not None else _seconds(now) + 1, _seconds(now) + 1)
    if wanted.end is not None and wanted.end <= wanted.start:
        raise errors.InvalidInput("end_time is after start_time")
    first = wanted.start - wanted.start % DAY_SECONDS
    at = _page(wanted.page, first) if wanted.page is not None else first
    last = min(at + wanted.buckets_max * DAY_SECONDS, end)
    days = list(range(at, last, DAY_SECONDS))
    months = sorted({_day(one)[:7] for one in days})
    known = await marks.projects(store)
    named = [one for one in known if not wanted.projects or one in wanted.projects]
    read = [await ledger.month_of_all(store, one, now, named) for one in months]
    found: dict[str, dict[tuple[str | None, str | None], spend.Row]] = {}
    for bodies in read:
        for project, body in bodies.items():
            for day, _, model, row in spend.rows(body):
                if wanted.is_none or (wanted.models and model not in wanted.models):
                    continue
                name = (
                    project if PROJECT in wanted.by else None,
                    model if {MODEL, LINE_ITEM} & set(wanted.by) else None,
                )
                of_day = found.setdefault(day, {})
                of_day[name] = spend.added(of_day.get(name, {}), row)
    rows = [Bucket(one, one + DAY_SECONDS, found.get(_day(one), {})) for one in days]
    after = at + len(days) * DAY_SECONDS
    return rows, f"page_{after}" if days and after < end else None


def page(
    rows: Sequence[Bucket], after: str | None, shown: Callable[[str | None, str | None, spend.Row], Any]
) -> dict[str, Any]:
    """The days as OpenAI's client reads them; `shown` makes one result of (project, model, row)."""
    data = [
        {
            "object": "bucket",
            "start_time": one.start,
            "end_time": one.end,
            "results": [
                shown(*name, row)
                for name, row in sorted(one.groups.items(), key=lambda item: [str(part) for part in item[0]])
            ],
        }
        for one in rows
    ]
    return {"object": "page", "data": data, "has_more": after is not None, "next_page": after}


def completions(by: Sequence[str]) -> Callable[[str | None, str | None, spend.Row], dict[str, Any]]:
    """One result of what calls took in tokens."""

    def shown(project: str | None, model: str | None, row: spend.Row) -> dict[str, Any]:
        return {
            "object": "organization.usage.completions.result",
            "input_tokens": row["input_tokens"],
            "input_cached_tokens": row["cached_tokens"],
            "input_uncached_tokens": row["input_tokens"] - row["cached_tokens"],
            "output_tokens": row["output_tokens"],
            "num_model_requests": row["calls"],
            "project_id": project,
            "model": model,
            "batch": False if BATCH in by else None,
            **dict.fromkeys(("user_id", "api_key_id", "service_tier", "api_source")),
        }

    return shown


def costs(by: Sequence[str]) -> Callable[[str | None, str | None, spend.Row], dict[str, Any]]:
    """One result of what calls cost. A line item is a model: a call's cost is kept whole."""
    has_items = LINE_ITEM in by

    def shown(project: str | None, model: str | None, row: spend.Row) -> dict[str, Any]:
        return {
            "object": "organization.costs.result",
            "amount": {"value": round(row["cost_usd"], USD_DIGITS), "currency": "usd"},
            "project_id": project,
            "line_item": model,
            "quantity": float(row["input_tokens"] + row["output_tokens"]) if has_items else None,
            "quantity_unit": "tokens" if has_items else None,
            **dict.fromkeys(("user_id", "api_key_id", "api_source")),
        }

    return shown


def _page(cursor: str, first: int) -> int:
    found = _PAGE.fullmatch(cursor)
    if found is None or int(found[1]) % DAY_SECONDS or int(found[1]) < first:
        raise errors.InvalidInput("page: it is no cursor of this list")
    return int(found[1])


def _seconds(at: dt.datetime) -> int:
    return int(at.timestamp())


def _day(seconds: int) -> str:
    return spend.day_of(dt.datetime.fromtimestamp(seconds, dt.UTC))
