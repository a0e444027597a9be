"""Due: when what waits for a model is worked, judged from the asks alone.

An ask says when it was put, and how large the runs are that it waits for. So a restart, or a second worker, judges
as the first did, and nothing waits in memory. A policy holds for one phase of one memory, over all of its asks: each of
its bounds alone makes them due, and the age always ends it. Pure.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import pydantic

from runlore.commit import keys, marks
from runlore.models import port

KINDS = {port.SUMMARIZE: keys.ASKS, port.CONSOLIDATE: keys.JOINS}
"""Phase → the kind of its asks."""
AGE_SECONDS_DEFAULT = 3600.0
"""Where a policy says how much is to come together, and not how long it may take."""
SECONDS_MAX = 7 * 86_400.0
SKEW_SECONDS = 60.0
"""An ask that is dated later than this after now was put by another clock: it is due, so that none waits for ever."""
ASKS_MAX = 1000
"""Asks of one memory that are judged; with more of them they are due."""


class Policy(pydantic.BaseModel):
    """When asks are due; without any bound: at once."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    runs: int | None = pydantic.Field(None, ge=1, le=100_000)
    tokens: int | None = pydantic.Field(None, ge=1, le=1_000_000_000)
    """Of the records as they came: estimated from their size."""
    idle_seconds: float | None = pydantic.Field(None, gt=0, le=SECONDS_MAX)
    """So long no run came into the memory."""
    age_seconds: float | None = pydantic.Field(None, ge=0, le=SECONDS_MAX)
    """So long the oldest ask has waited; 0: at once."""

    def over(self, before: Policy) -> Policy:
        """This policy, with what it does not say from `before`."""
        return Policy(**{**before.model_dump(exclude_none=True), **self.model_dump(exclude_none=True)})

    @property
    def is_at_once(self) -> bool:
        return self.age_seconds == 0 or not self.model_dump(exclude_none=True)

    @property
    def age(self) -> float:
        return AGE_SECONDS_DEFAULT if self.age_seconds is None else self.age_seconds


@dataclass(frozen=True)
class Verdict:
    """Whether asks are due, and what makes them so."""

    is_due: bool
    why: str = ""
    at: dt.datetime | None = None
    """When they become due if nothing more comes."""
    runs_left: int | None = None
    """So many more runs make them due before that."""
    tokens_left: int | None = None

    def told(self, now: dt.datetime) -> str:
        """In words: `due in 40 s, or with 3 more runs`."""
        if self.is_due or self.at is None:
            return f"due: {self.why}" if self.is_due else self.why
        parts = [f"due in {max(0.0, (self.at - now).total_seconds()):.0f} s"]
        if self.runs_left is not None:
            parts.append(f"with {self.runs_left} more run{'s' * (self.runs_left != 1)}")
        if self.tokens_left is not None:
            parts.append(f"with {self.tokens_left:,} more tokens")
        return ", or ".join(parts)


def is_due(asks: Sequence[marks.Mark], policy: Policy, now: dt.datetime) -> Verdict:
    """Whether these asks of one memory, of one phase, are due."""
    if not asks:
        return Verdict(False, "nothing waits")
    if any(one.is_refresh for one in asks):
        return Verdict(True, "a refresh was asked for")
    if policy.is_at_once:
        return Verdict(True, "at once")
    if len(asks) >= ASKS_MAX:
        return Verdict(True, f"{ASKS_MAX} asks or more")
    times = [_time(one.put_at) for one in asks]
    known = [one for one in times if one is not None]
    if len(known) < len(times):
        return Verdict(True, "an ask does not say since when it waits")
    oldest, newest = min(known), max(known)
    if newest - now > dt.timedelta(seconds=SKEW_SECONDS):
        return Verdict(True, "an ask is dated in the future")
    runs, tokens = size(asks)
    ends = [(oldest + dt.timedelta(seconds=policy.age), f"it has waited {policy.age:g} s")]
    if policy.idle_seconds is not None:
        idle = newest + dt.timedelta(seconds=policy.idle_seconds)
        ends.append((idle, f"no run came for {policy.idle_seconds:g} s"))
    at, why = min(ends)
    if policy.runs is not None and runs >= policy.runs:
        return Verdict(True, f"{runs} runs")
    if policy.tokens is not None and tokens >= policy.tokens:
        return Verdict(True, f"{tokens:,} tokens")
    if at <= now:
        return Verdict(True, why)
    return Verdict(
        False,
        "it waits",
        at,
        policy.runs - runs if policy.runs is not None else None,
        policy.tokens - tokens if policy.tokens is not None else None,
    )


def size(asks: Sequence[marks.Mark]) -> tuple[int, int]:
    """(Runs, tokens) that these asks wait for, each run once. An ask of an older version counts a run a rollout."""
    found: dict[tuple[str, str], int] = {}
    unsaid: set[str] = set()
    for one in asks:
        for rollout in one.rollouts:
            if rollout not in one.sizes:
                unsaid.add(rollout)
            for run, tokens in one.sizes.get(rollout, {}).items():
                found[rollout, run] = max(found.get((rollout, run), 0), int(tokens))
    unsaid -= {rollout for rollout, _ in found}
    return len(found) + len(unsaid), sum(found.values())


def _time(text: str) -> dt.datetime | None:
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else None
