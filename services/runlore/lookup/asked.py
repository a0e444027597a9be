"""Asked: what waits for a model, and for what that waits: more runs, time, budget, or a person.

From the asks and the ledger in the store alone; when asks are due, the file of models says, where whoever asks has the
settings that the workers have.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runlore import clock
from runlore.commit import marks
from runlore.consumers import asks
from runlore.models import choices, due, ledger, port, spend
from runlore.store import port as store_port
from runlore.upkeep import pauses

RATE_WAIT_MAX = dt.timedelta(minutes=5)
"""A call that only its minute has no room for comes by itself: nobody is asked for anything."""
WAITS, DUE, DEFERRED, BLOCKED = "waits", "due", "deferred", "blocked"


@dataclass(frozen=True)
class Asked:
    """What a memory's asks wait for."""

    state: str
    """`waits` (for its policy), `due` (the next worker works it), `deferred` (budget) or `blocked` (a person)."""
    told: str
    asks: int = 0
    since: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {"state": self.state, "told": self.told, "asks": self.asks, "since": self.since}


class Asks:
    """The asks of some memories, each read once; what is read is as old as this object."""

    def __init__(
        self,
        store: store_port.ObjectStore,
        *,
        chosen: choices.Choices | None = None,
        stages: Mapping[str, Any] | None = None,
    ) -> None:
        self._store, self._chosen, self._stages = store, chosen, stages
        self._read: dict[tuple[str, str], list[tuple[Asked, set[str]]]] = {}

    async def of(self, project: str, memory: str, rollout: str | None = None) -> Asked | None:
        """What a memory waits for; with `rollout`: if that is among what waits."""
        if (project, memory) not in self._read:
            self._read[project, memory] = [one async for one in self._look(project, memory)]
        for one, named in self._read[project, memory]:
            if rollout is None or rollout in named:
                return one
        return None

    async def _look(self, project: str, memory: str) -> AsyncIterator[tuple[Asked, set[str]]]:
        for phase, kind in due.KINDS.items():
            found = await marks.read_all(self._store, project, memory, marks_max=due.ASKS_MAX, kind=kind)
            if found:
                held = list((await pauses.read_all(self._store)).values())
                month = await ledger.Ledger(self._store).month(project, spend.month_of(clock.now()))
                judged = _judge(project, memory, phase, found, month, self._chosen, self._stages, held)
                yield judged, {name for one in found for name in one.rollouts}


async def of_memory(
    store: store_port.ObjectStore,
    project: str,
    memory: str,
    *,
    chosen: choices.Choices | None = None,
    stages: Mapping[str, Any] | None = None,
) -> Asked | None:
    """What a memory waits for now."""
    return await Asks(store, chosen=chosen, stages=stages).of(project, memory)


async def of_all(
    store: store_port.ObjectStore,
    *,
    chosen: choices.Choices | None = None,
    stages: Mapping[str, Any] | None = None,
    project: str | None = None,
) -> dict[str, Asked]:
    """What every memory with asks waits for, by `<project>/<memory>`; with `project`, of its memories alone."""
    out: dict[str, Asked] = {}
    kept = ledger.Ledger(store)
    held = list((await pauses.read_all(store)).values())
    for phase, kind in due.KINDS.items():
        for (name, memory), found in sorted((await asks.Asks(store, kind).standing(project)).items()):
            month = await kept.month(name, spend.month_of(clock.now()), seconds_max=60)
            out.setdefault(
                f"{name}/{memory}", _judge(name, memory, phase, found, month, chosen, stages, held)
            )
    return out


def _judge(
    project: str,
    memory: str,
    phase: str,
    found: Sequence[marks.Mark],
    month: Mapping[str, Any],
    chosen: choices.Choices | None,
    stages: Mapping[str, Any] | None,
    held: Sequence[pauses.Pause],
) -> Asked:
    now, since = clock.now(), found[0].put_at
    count = sum(not one.is_refresh for one in found)
    # A model's consolidation is work of stage `summarize`; it moves the memory's head, so a pause of either holds it.
    stages_of = {port.SUMMARIZE, phase}
    paused = next((one for one in held if any(one.holds(of, project, memory) for of in stages_of)), None)
    if paused is not None:
        return Asked(BLOCKED, f"{paused} (`{paused.end}`)", count, paused.at)
    stage = (stages or {}).get(port.SUMMARIZE, {})
    if stage.get("state") in ("blocked", "failed"):
        return Asked(BLOCKED, f"{phase} is {stage['state']}: {stage.get('cause')}", count, stage.get("since"))
    waits = spend.deferred(month, memory, now)
    if waits is not None:
        by = waits.get("by", spend.BUDGET)
        told = f"{waits['cause']}; {spend.ends(by, waits['until'])}"
        if by == spend.RATE and dt.datetime.fromisoformat(waits["until"]) - now < RATE_WAIT_MAX:
            return Asked(WAITS, f"waits for the next minute: {told}", count, waits["since"])
        return Asked(DEFERRED, f"waits for budget: {told}", count, waits["since"])
    verdict = due.is_due(found, chosen.due(project, memory, phase) if chosen else due.Policy(), now)
    if verdict.is_due:
        cause = f"; {phase}: {stage['cause']}" if stage.get("cause") else ""
        return Asked(DUE, f"{verdict.told(now)}{cause}", count, since)
    return Asked(WAITS, verdict.told(now), count, since)
