"""Which runs a model is shown next, so that a rollout's next run costs about one run.

A rollout's runs have one order (when they ended, then their name). Each answer is a *point*: it covers a beginning of
that order, and its name finds the statements that it left. The next run goes on from the newest point; a late run, or
a higher attempt of an old one, from the last point before it. Every `FULL_RUNS` runs all are shown anew, so that
what was lost in one answer does not stay lost. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runlore.memory import values

FULL_RUNS = 8
"""Runs after which all are shown anew."""
SHOWN_RUNS_MAX = 32
"""Runs that one ask shows; of more a full pass shows the newest, and keeps what is known of the others."""
POINTS_MAX = 16

RunAt = tuple[str, int]
"""A run and its attempt."""


@dataclass(frozen=True)
class Plan:
    """One ask that brings a rollout's model summary further."""

    shown: tuple[RunAt, ...]
    before: RunAt | None
    """The run before the first that is shown."""
    base: str | None
    """The name of the answer whose statements are known."""
    is_full: bool
    runs: int
    """Runs that it covers, from the first on."""
    upto: str
    """A hash of them."""
    whole: str
    """A hash of all runs."""
    points: tuple[Mapping[str, Any], ...]
    """The points before it that still hold."""
    full: int
    """Runs covered by the last full pass, after this."""


def order(runs: Mapping[str, Mapping[str, Any]]) -> list[RunAt]:
    """The runs of a head in their order; what one of them edited is no run that a model could be shown."""
    shown = [pair for pair in runs.items() if "edit_of" not in pair[1]]
    named = sorted(shown, key=lambda pair: (values.time_key(pair[1]["ended_at"]), pair[0]))
    return [(run, int(entry["attempt"])) for run, entry in named]


def plan(runs: Mapping[str, Mapping[str, Any]], part: Mapping[str, Any] | None) -> Plan | None:
    """What to ask next for a rollout with these runs and this part of its head; None where nothing is left."""
    ordered = order(runs)
    hashes = _hashes(ordered)
    if not ordered or (part is not None and part["upto"] == hashes[-1]):
        return None
    place = {one: count for count, one in enumerate(hashes)}
    points = [one for one in (part or {}).get("points", ()) if one["upto"] in place]
    base = points[-1] if points else None
    done = place[base["upto"]] if base else 0
    is_full = base is None or len(ordered) - int(base["full"]) > FULL_RUNS
    if is_full:
        first, last = max(0, len(ordered) - SHOWN_RUNS_MAX), len(ordered)
        known = base["answer"] if base and first else None
    else:
        first, last = done, min(len(ordered), done + SHOWN_RUNS_MAX)
        known = base["answer"]
    return Plan(
        shown=tuple(ordered[first:last]),
        before=ordered[first - 1] if first else None,
        base=known,
        is_full=is_full,
        runs=last,
        upto=hashes[last],
        whole=hashes[-1],
        points=tuple(points),
        full=last if is_full else int(base["full"]),
    )


def holds(part: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether what a part covers is still a beginning of the runs."""
    return part["upto"] in _hashes(order(runs))


def point(plan: Plan, answer: str) -> dict[str, Any]:
    """The point that an answer makes."""
    return {"upto": plan.upto, "runs": plan.runs, "full": plan.full, "answer": answer}


def known(plan: Plan, statements: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of the base's statements those that the ask takes as known: in a full pass, what no shown run bears."""
    if not plan.is_full:
        return list(statements)
    shown = {run for run, _ in plan.shown}
    return [one for one in statements if not any(run in shown for _, run, _, _ in one["evidence"])]


def _hashes(ordered: Sequence[RunAt]) -> list[str]:
    """The hash of each beginning of the order, the empty one first."""
    out = [""]
    for run, attempt in ordered:
        out.append(hashlib.sha256(f"{out[-1]}/{run}.{attempt}".encode()).hexdigest()[:24])
    return out
