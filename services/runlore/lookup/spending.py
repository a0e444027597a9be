"""Spending: what calls to models took in a month, by day, model or memory; and what the budgets leave."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from runlore import clock, errors
from runlore.commit import marks
from runlore.events import ids
from runlore.models import choices, ledger, spend
from runlore.store import port
from runlore.upkeep import administration, spendwatch

BY = ("memory", "model", "day", "project")


async def report(
    store: port.ObjectStore,
    *,
    project: str | None = None,
    memory: str | None = None,
    by: str = "memory",
    month: str | None = None,
    chosen: choices.Choices | None = None,
) -> dict[str, Any]:
    """What was spent in one month, as `runlore spend --json` prints it. Raises `errors.InvalidInput`."""
    if by not in BY:
        raise errors.InvalidInput(f"{by!r} is nothing to sum by", hint=f"one of {', '.join(BY)}")
    if project is not None:
        ids.check_name(project, "project")
    month = month or spend.month_of(clock.now())
    if re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", month, re.ASCII) is None:
        raise errors.InvalidInput(f"{month!r} is not a month", hint="like 2026-11")
    named = [project] if project is not None else await marks.projects(store)
    kept = ledger.Ledger(store)
    bodies = {name: await kept.month(name, month) for name in named}
    rows: dict[str, spend.Row] = {}
    total: spend.Row = {**spend.EMPTY, "open": 0}
    for name, body in bodies.items():
        for row_name, row in _rows(name, body, by, memory):
            rows[row_name] = _added(rows.get(row_name, {}), row)
            total = _added(total, row)
    told = {
        "month": month,
        "by": by,
        "rows": [{"name": name, **row} for name, row in sorted(rows.items())],
        "total": total,
        "deferred": _deferred(bodies, memory),
    }
    budgets = _budgets(bodies, memory, chosen, month) if chosen is not None else []
    return {**told, "budgets": budgets, "limits": await _limits(store, bodies, month, project)}


async def _limits(
    store: port.ObjectStore, bodies: Mapping[str, spend.Body], month: str, project: str | None
) -> list[dict[str, Any]]:
    """Every spend limit that holds. Of the organization's a project is told only whether it refuses calls now."""
    now, out = clock.now(), []
    if month != spend.month_of(now):
        return []
    org = await administration.read(store)
    if org.spend_limit is not None:
        limit, every = spendwatch.usd(org.spend_limit.cents), bodies
        if project is not None:
            every = await ledger.month_of_all(store, month, now)
        enforcing = spend.is_enforcing(every.values(), limit, spend.ORGANIZATION_LIMIT, now)
        line: dict[str, Any] = {"project": None, "enforcing": enforcing}
        if project is None:
            line |= _left(limit, sum(spend.used(body).usd for body in every.values()))
        out.append(line)
    for name, body in bodies.items():
        kept = org.projects.get(name)
        if kept is not None and kept.spend_limit is not None:
            limit = spendwatch.usd(kept.spend_limit.cents)
            enforcing = spend.is_enforcing([body], limit, spend.SPEND_LIMIT, now)
            out.append({"project": name, "enforcing": enforcing, **_left(limit, spend.used(body).usd)})
    return out


def _left(limit: float, used: float) -> dict[str, float]:
    return {"limit": limit, "used": used, "left": max(0.0, limit - used)}


def _rows(project: str, body: Mapping[str, Any], by: str, memory: str | None) -> list[tuple[str, spend.Row]]:
    def name_of(day: str, at: str, model: str) -> str:
        return {"memory": f"{project}/{at}", "model": model, "day": day, "project": project}[by]

    found = [
        (name_of(day, at, model), {**row, "open": 0})
        for day, at, model, row in spend.rows(body)
        if memory in (None, at)
    ]
    for call in body["open"].values():
        if memory in (None, call["memory"]):
            name = name_of(call["day"], call["memory"], call["model"])
            found.append((name, {**spend.EMPTY, "open": 1}))
    return found


def _added(one: Mapping[str, Any], other: Mapping[str, Any]) -> spend.Row:
    return {**spend.added(one, other), "open": one.get("open", 0) + other.get("open", 0)}


def _deferred(bodies: Mapping[str, Any], memory: str | None) -> list[dict[str, Any]]:
    now, out = clock.now(), []
    for project, body in bodies.items():
        for name in sorted(body["deferred"]):
            found = spend.deferred(body, name, now)
            if found is not None and memory in (None, name):
                by = found.get("by", spend.BUDGET)
                told = {"since": found["since"], "cause": found["cause"], "until": found["until"], "by": by}
                ends = spend.ends(by, found["until"])
                out.append({"project": project, "memory": name, **told, "ends": ends})
    return out


def _budgets(
    bodies: Mapping[str, Any], memory: str | None, chosen: choices.Choices, month: str
) -> list[dict[str, Any]]:
    """Every budget that holds, with what is used of it (open calls at their bound) and left."""
    now = clock.now()
    is_now = month == spend.month_of(now)
    out: list[dict[str, Any]] = []
    for project, body in bodies.items():
        named = {one for _, one, _, _ in spend.rows(body)} | {
            name.split("/")[1] for name in chosen.memories if name.split("/")[0] == project
        }
        scopes = [(None, chosen.budgets(project, "").project)]
        scopes += [(one, chosen.budgets(project, one).memory) for one in sorted(named)]
        for name, budget in scopes:
            if memory is not None and name not in (None, memory):
                continue
            for length in (spend.DAY, spend.MONTH) if is_now else (spend.MONTH,):
                day = spend.day_of(now) if length == spend.DAY else None
                used = spend.used(body, memory=name, day=day)
                for unit, took in (("usd", used.usd), ("tokens", used.tokens)):
                    limit = getattr(budget, f"{length}_{unit}")
                    if limit is not None:
                        line = {"project": project, "memory": name, "length": length, "unit": unit}
                        out.append({**line, "limit": limit, "used": took, "left": max(0, limit - took)})
    return out
