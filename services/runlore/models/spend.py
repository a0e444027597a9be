"""Spend: what calls to models took, and whether one more may be made. Pure; `ledger.py` keeps it.

A call is *opened* at the most that it can take, and *settled* at what it took. What is open counts against a budget at
that bound, so calls at the same time, also of several workers, do not pass it together. A call of which no end is
known (its process died) is *lost*: it stays counted at its bound, as nobody knows what was billed.

A month of a project is one JSON value: `days` (day → memory → model → row), `open` (id → call), `deferred` (memory →
why), `minute` (what the present minute's calls come to). A row counts calls, tokens, dollars, the calls whose cost
nobody knows, and those that were lost.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pydantic

from runlore.models import port, prices

FORMAT = "runlore.spend/1"
OPEN_SECONDS_MAX = 7200.0
"""After so long an open call is lost. Longer than any ask takes, with its tries."""
BYTES_PER_TOKEN_MIN = 2
"""For the bound of a call: prose has 4 bytes a token, code 3, digits and hashes 2."""
EMPTY = {
    "calls": 0,
    "input_tokens": 0,
    "cached_tokens": 0,
    "output_tokens": 0,
    "cost_usd": 0.0,
    "unknown": 0,
    "lost": 0,
}
DAY, MONTH = "day", "month"
BUDGET, SPEND_LIMIT, ORGANIZATION_LIMIT, RATE = "budget", "spend_limit", "organization_limit", "rate"
"""What refuses a call: a budget of the file of models, a spend limit of the project or of the organization, or the
project's rate limit."""
MINUTES_AHEAD_MAX = dt.timedelta(minutes=2)
"""A minute that another worker's clock began early is counted in; one further ahead is a clock that went wrong."""

Row = dict[str, Any]
Body = dict[str, Any]


class Budget(pydantic.BaseModel):
    """What may be spent in a UTC day or month; None: any amount."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    day_usd: float | None = pydantic.Field(None, ge=0, allow_inf_nan=False)
    month_usd: float | None = pydantic.Field(None, ge=0, allow_inf_nan=False)
    day_tokens: int | None = pydantic.Field(None, ge=0, strict=True)
    month_tokens: int | None = pydantic.Field(None, ge=0, strict=True)
    unknown: Literal["tokens", "refuse"] = "tokens"
    """What becomes of a call without a price under a budget in dollars: it goes by the budget in tokens, and where
    there is none of the same length, or with `refuse`, it is not made."""


@dataclass(frozen=True)
class Limits:
    """What an administrator lets a project take, beside its budgets. None: any amount."""

    project_usd: float | None = None
    """Of a month; so is the next."""
    organization_usd: float | None = None
    others_usd: float = 0.0
    """What all other projects spent of the organization's, as it was read a while ago."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True)
class Budgets:
    """The budgets that one call is held against, and the limits."""

    project: Budget = field(default_factory=Budget)
    memory: Budget = field(default_factory=Budget)
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Bound:
    """The most that one call can take; `usd` is None where the model has no price."""

    model: str
    tokens: int
    usd: float | None


@dataclass(frozen=True)
class Used:
    """What was spent, what is open counted at its bound."""

    tokens: int = 0
    usd: float = 0.0
    unknown: int = 0


@dataclass(frozen=True)
class Refusal:
    """Why a call is not made, and until when that surely holds if no budget is raised."""

    cause: str
    until: str
    is_open: bool = False
    """Whether there would be room if nothing else were open: it may come once that is settled."""
    by: str = BUDGET
    usd: float = 0.0
    """What the call could have cost."""

    @property
    def told(self) -> str:
        """The cause, and how it ends."""
        return f"{self.cause}; {ends(self.by, self.until)}"


def bound(ask: port.Ask, table: prices.Table) -> Bound:
    """The most that an ask can take: its input from above, its output at its limit."""
    size = len(ask.instructions.encode("utf-8", "replace")) + len(ask.input.encode("utf-8", "replace"))
    came, went = size // BYTES_PER_TOKEN_MIN + 1000, ask.output_tokens_max
    known = table.models.get(ask.model)
    # Above some length a model may have no price: a call that came to it has an unknown cost, whatever its bound.
    priced = min(came, known.input_tokens_max or came) if known is not None else came
    usage = port.Usage(input_tokens=priced, output_tokens=went)
    cost = table.cost_usd(ask.model, tier=ask.tier, usage=usage)
    return Bound(ask.model, came + went, cost)


def empty(project: str, month: str) -> Body:
    return {"format": FORMAT, "project": project, "month": month, "days": {}, "open": {}, "deferred": {}}


def used(body: Mapping[str, Any], *, memory: str | None = None, day: str | None = None) -> Used:
    """What was spent in a month, or on one of its days; in all memories, or in one."""
    tokens, usd, unknown = 0, 0.0, 0
    for at, name, _, row in rows(body):
        if (day is None or at == day) and memory in (None, name):
            tokens += row["input_tokens"] + row["output_tokens"]
            usd += row["cost_usd"]
            unknown += row["unknown"]
    for call in body["open"].values():
        if (day is None or call["day"] == day) and memory in (None, call["memory"]):
            tokens += call["tokens"]
            usd += call["usd"] or 0.0
            unknown += call["usd"] is None
    return Used(tokens, usd, unknown)


def rows(body: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Row]]:
    """Every (day, memory, model, row)."""
    for day, memories in body["days"].items():
        for memory, models in memories.items():
            for model, row in models.items():
                yield day, memory, model, {**EMPTY, **row}


def refusal(
    body: Mapping[str, Any], budgets: Budgets, memory: str, now: dt.datetime, wanted: Bound
) -> Refusal | None:
    """Why a call of this memory may not be made now; None: it may."""
    why = _refusal(body, budgets, memory, now, wanted)
    if why is None:
        return _over_rate(body, budgets.limits, now, wanted)
    if not body["open"]:
        return why
    alone = _refusal({**body, "open": {}}, budgets, memory, now, wanted)
    return replace(why, is_open=alone is None)


def ends(by: str, until: str) -> str:
    """How long a refusal holds, in words."""
    raised = {
        BUDGET: "the budget",
        SPEND_LIMIT: "the spend limit",
        ORGANIZATION_LIMIT: "the spend limit",
        RATE: "the rate limit",
    }
    return f"it goes on at {until}, or once {raised.get(by, raised[BUDGET])} is raised"


def _refusal(
    body: Mapping[str, Any], budgets: Budgets, memory: str, now: dt.datetime, wanted: Bound
) -> Refusal | None:
    return _over_budget(body, budgets, memory, now, wanted) or _over_limit(body, budgets.limits, now, wanted)


def _over_limit(body: Mapping[str, Any], limits: Limits, now: dt.datetime, wanted: Bound) -> Refusal | None:
    """Why an administrator's limit in dollars does not let a call be made."""
    if limits.project_usd is None and limits.organization_usd is None:
        return None
    sofar, until = used(body).usd, _end(now, MONTH)
    what = "the project's spend limit of a month"
    if wanted.usd is None:
        cause = f"{wanted.model} has no price, and {what} is in dollars"
        if limits.project_usd is not None:
            return Refusal(cause, until, by=SPEND_LIMIT)
        return Refusal(cause.replace("project's", "organization's"), until, by=ORGANIZATION_LIMIT)
    if limits.project_usd is not None and sofar + wanted.usd > limits.project_usd:
        most = f"and one call may take ${wanted.usd:.4f}"
        cause = f"{what}, ${limits.project_usd:g}: ${sofar:.4f} are used, {most}"
        return Refusal(cause, until, by=SPEND_LIMIT, usd=wanted.usd)
    if (
        limits.organization_usd is not None
        and sofar + limits.others_usd + wanted.usd > limits.organization_usd
    ):
        # What other projects spent is not told here: whoever may read this project reads it.
        cause = (
            f"the organization's spend limit of a month leaves less than the ${wanted.usd:.4f} of one call"
        )
        return Refusal(cause, until, by=ORGANIZATION_LIMIT, usd=wanted.usd)
    return None


def _over_rate(body: Mapping[str, Any], limits: Limits, now: dt.datetime, wanted: Bound) -> Refusal | None:
    """Why the project's rate limit does not let a call be made in this minute."""
    if limits.requests_per_minute is None and limits.tokens_per_minute is None:
        return None
    minute, usd = _minute(body, now), wanted.usd or 0.0
    for limit, sofar, one, unit in (
        (limits.requests_per_minute, minute["requests"], 1, "calls"),
        (limits.tokens_per_minute, minute["tokens"], wanted.tokens, "tokens"),
    ):
        if limit is None or sofar + one <= limit:
            continue
        what = f"the project's rate limit of {limit:,} {unit} in a minute"
        if one > limit:
            # No minute has room for it.
            return Refusal(f"{what}: one call may take {one:,}", _end(now, MONTH), by=RATE, usd=usd)
        most = f", and one call may take {one:,}" if unit == "tokens" else ""
        until = dt.datetime.fromisoformat(minute["at"]) + dt.timedelta(minutes=1)
        of_open = [call["tokens"] for call in body["open"].values() if call.get("minute") == minute["at"]]
        is_open = unit == "tokens" and sofar - sum(of_open) + one <= limit
        return Refusal(f"{what}: {sofar:,} are used{most}", until.isoformat(), is_open, by=RATE, usd=usd)
    return None


def _minute(body: Mapping[str, Any], now: dt.datetime) -> dict[str, Any]:
    """The minute that a call is counted in now, and what its calls come to."""
    at = now.astimezone(dt.UTC).replace(second=0, microsecond=0)
    kept = body.get("minute")
    if kept is not None and at <= dt.datetime.fromisoformat(kept["at"]) <= at + MINUTES_AHEAD_MAX:
        return dict(kept)
    return {"at": at.isoformat(), "requests": 0, "tokens": 0}


def _over_budget(
    body: Mapping[str, Any], budgets: Budgets, memory: str, now: dt.datetime, wanted: Bound
) -> Refusal | None:
    day = day_of(now)
    for scope, budget, name in (("project", budgets.project, None), ("memory", budgets.memory, memory)):
        for length in (DAY, MONTH):
            limit_usd, limit_tokens = getattr(budget, f"{length}_usd"), getattr(budget, f"{length}_tokens")
            if limit_usd is None and limit_tokens is None:
                continue
            sofar = used(body, memory=name, day=day if length == DAY else None)
            what = f"the {scope}'s budget of a {length}"
            until = _end(now, length)
            if limit_usd is not None:
                if wanted.usd is None and (budget.unknown == "refuse" or limit_tokens is None):
                    cause = f"{wanted.model} has no price, and {what} is in dollars"
                    return Refusal(cause, until)
                if sofar.usd + (wanted.usd or 0.0) > limit_usd:
                    most = f"and one call may take ${wanted.usd or 0.0:.4f}"
                    return Refusal(f"{what}, ${limit_usd:g}: ${sofar.usd:.4f} are used, {most}", until)
            if limit_tokens is not None and sofar.tokens + wanted.tokens > limit_tokens:
                most = f"and one call may take {wanted.tokens:,}"
                return Refusal(f"{what}, {limit_tokens:,} tokens: {sofar.tokens:,} are used, {most}", until)
    return None


def opened(
    body: Body, call: str, memory: str, wanted: Bound, *, now: dt.datetime, seconds: float = OPEN_SECONDS_MAX
) -> Body:
    """The month with this call open; itself where it is so already."""
    if call in body["open"]:
        return body
    entry = {
        "memory": memory,
        "model": wanted.model,
        "day": day_of(now),
        "tokens": wanted.tokens,
        "usd": wanted.usd,
        "until": (now + dt.timedelta(seconds=seconds)).isoformat(timespec="seconds"),
    }
    deferred = {name: why for name, why in body["deferred"].items() if name != memory}
    minute = _minute(body, now)
    entry["minute"] = minute["at"]
    minute |= {"requests": minute["requests"] + 1, "tokens": minute["tokens"] + wanted.tokens}
    return {**body, "open": {**body["open"], call: entry}, "deferred": deferred, "minute": minute}


def settled(body: Body, call: str, usage: port.Usage | None, cost_usd: float | None) -> Body:
    """The month with this call at what it took; itself where it is not open: then it was settled, or is lost.

    `usage` None: the endpoint did not say; its bound stands.
    """
    entry = body["open"].get(call)
    if entry is None:
        return body
    took = _row_of(entry) if usage is None else _row(usage, cost_usd)
    body = _in_minute(body, entry, took["input_tokens"] + took["output_tokens"])
    return _closed(body, call, entry, took)


def dropped(body: Body, call: str) -> Body:
    """The month without this call: it was surely not billed. It was made: as a request of its minute it stays."""
    entry = body["open"].get(call)
    if entry is None:
        return body
    return _without(_in_minute(body, entry, 0), call)


def _without(body: Body, call: str) -> Body:
    return {**body, "open": {name: one for name, one in body["open"].items() if name != call}}


def swept(body: Body, now: dt.datetime) -> Body:
    """The month with what was open for too long counted as lost, at its bound."""
    for call, entry in list(body["open"].items()):
        if dt.datetime.fromisoformat(entry["until"]) < now:
            body = _closed(body, call, entry, {**_row_of(entry), "lost": 1})
    return body


def deferring(body: Body, memory: str, why: Refusal, now: dt.datetime) -> Body:
    """The month that says that a memory waits for budget; itself where it says so already."""
    known = body["deferred"].get(memory)
    if known is not None and known["until"] == why.until and known.get("by", BUDGET) == why.by:
        return body
    entry = {"since": now.isoformat(timespec="seconds"), "cause": why.cause, "until": why.until}
    entry |= {"by": why.by, "usd": why.usd}
    return {**body, "deferred": {**body["deferred"], memory: entry}}


def deferred(body: Mapping[str, Any], memory: str, now: dt.datetime) -> Mapping[str, Any] | None:
    """Since when, why and until when a memory waits for budget; None where it does not."""
    found = body["deferred"].get(memory)
    return found if found and now < dt.datetime.fromisoformat(found["until"]) else None


def settled_usd(body: Mapping[str, Any]) -> float:
    """What the month's calls that have ended cost, as far as that is known."""
    return sum(float(row["cost_usd"]) for *_, row in rows(body))


def is_enforcing(bodies: Iterable[Mapping[str, Any]], limit_usd: float, by: str, now: dt.datetime) -> bool:
    """Whether a spend limit over these months refuses calls now: it is used up, or a call waits that does not fit."""
    kept = list(bodies)
    sofar = sum(used(body).usd for body in kept)
    waiting = [
        float(one.get("usd", 0.0))
        for body in kept
        for name in body["deferred"]
        if (one := deferred(body, name, now)) is not None and one.get("by") == by
    ]
    return sofar >= limit_usd or any(sofar + usd > limit_usd for usd in waiting)


def added(one: Mapping[str, Any], other: Mapping[str, Any]) -> Row:
    """Two rows together."""
    out = {name: one.get(name, 0) + other.get(name, 0) for name in EMPTY}
    return {**out, "cost_usd": round(out["cost_usd"], 9)}


def day_of(now: dt.datetime) -> str:
    return now.astimezone(dt.UTC).date().isoformat()


def month_of(now: dt.datetime) -> str:
    return day_of(now)[:7]


def _closed(body: Body, call: str, entry: Mapping[str, Any], took: Mapping[str, Any]) -> Body:
    day, memory, model = entry["day"], entry["memory"], entry["model"]
    of_day = dict(body["days"].get(day, {}))
    models = dict(of_day.get(memory, {}))
    models[model] = added(models.get(model, {}), took)
    of_day[memory] = models
    return {**_without(body, call), "days": {**body["days"], day: of_day}}


def _in_minute(body: Body, entry: Mapping[str, Any], tokens: int) -> Body:
    """The month with a call's tokens in place of its bound, where its minute is the present one."""
    minute = body.get("minute")
    if minute is None or minute["at"] != entry.get("minute"):
        return body
    return {**body, "minute": {**minute, "tokens": max(0, minute["tokens"] - entry["tokens"] + tokens)}}


def _row(usage: port.Usage, cost_usd: float | None) -> Row:
    return {
        "calls": 1,
        "input_tokens": usage.input_tokens,
        "cached_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
        "cost_usd": cost_usd or 0.0,
        "unknown": int(cost_usd is None),
    }


def _row_of(entry: Mapping[str, Any]) -> Row:
    """What an open call counts for where nobody says what it took. Input and output are not told apart."""
    usd = entry["usd"]
    row = {"calls": 1, "input_tokens": entry["tokens"], "cost_usd": usd or 0.0, "unknown": int(usd is None)}
    return {**EMPTY, **row}


def _end(now: dt.datetime, length: str) -> str:
    """When the period that `now` is in ends."""
    day = now.astimezone(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if length == DAY:
        return (day + dt.timedelta(days=1)).isoformat()
    return (day.replace(day=1) + dt.timedelta(days=32)).replace(day=1).isoformat()
