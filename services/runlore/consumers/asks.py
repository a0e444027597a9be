"""Asks: what waits for a model in each memory, when it is due, and what asking may cost.

An ask never changes, so each is read once and remembered while it stands; what is remembered decides nothing that the
store does not say. `Phase` is what every stage that asks a model goes by.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Sequence

import structlog

from runlore import clock, errors, telemetry
from runlore.commit import marks
from runlore.consumers.runtime import SEQUENTIAL, Runtime
from runlore.models import answers, choices, due, ledger, port, spend
from runlore.store import port as store_port
from runlore.upkeep import spendwatch

log = structlog.get_logger("runlore.models")

PolicyOf = Callable[[str, str], due.Policy]
Verdicts = dict[tuple[str, str], due.Verdict]


class Asks:
    """The asks of one kind, of all memories, as one process sees them."""

    def __init__(self, store: store_port.ObjectStore, kind: str) -> None:
        self._store, self._kind = store, kind
        self._known: dict[str, marks.Mark] = {}

    async def standing(self, project: str | None = None) -> dict[tuple[str, str], list[marks.Mark]]:
        """(Project, memory) → its oldest asks, as many as are judged, oldest first."""
        listed: dict[tuple[str, str], list[str]] = {}
        for one in [project] if project is not None else await marks.projects(self._store):
            async for row in self._store.list(f"{one}/{self._kind}/"):
                named = listed.setdefault((one, row.key.split("/")[3]), [])
                if len(named) < due.ASKS_MAX:
                    named.append(row.key)
        wanted = [key for named in listed.values() for key in named]
        fresh = [key for key in wanted if key not in self._known]
        read = await self._store.get_many(fresh)
        known = {key: self._known[key] for key in wanted if key in self._known}
        known |= {
            key: _parsed(key, stored.body)
            for key, stored in zip(fresh, read, strict=True)
            if stored is not None
        }
        # What stands no more is forgotten; of one project alone the others are not known.
        self._known = known if project is None else {**self._known, **known}
        found = {one: [known[key] for key in named if key in known] for one, named in listed.items()}
        return {one: asks for one, asks in found.items() if asks}

    async def verdicts(self, policy_of: PolicyOf) -> Verdicts:
        """Every memory with asks, and whether they are due."""
        now = clock.now()
        return {one: due.is_due(asks, policy_of(*one), now) for one, asks in (await self.standing()).items()}


def _parsed(key: str, raw: bytes) -> marks.Mark:
    """The ask; one that is none is due, so that whoever works its memory says so, and the others go on."""
    try:
        return marks.parse(key, raw)
    except errors.Corrupt:
        return marks.Mark(key, (), "")


def next_at(verdicts: Sequence[due.Verdict]) -> dt.datetime | None:
    """When the first of those that are not due becomes so by time alone."""
    return min((one.at for one in verdicts if not one.is_due and one.at is not None), default=None)


class Phase:
    """One phase of what a model does, in one process: which memories are due, and each call within their budgets."""

    def __init__(
        self,
        store: store_port.ObjectStore,
        engine: port.Engine,
        chosen: choices.Choices,
        *,
        phase: str,
        runtime: Runtime = SEQUENTIAL,
        reload: Callable[[], choices.Choices] | None = None,
    ) -> None:
        self._store, self._engine, self._phase = store, engine, phase
        self._runtime, self._reload = runtime, reload
        self.chosen = chosen
        self._asks = Asks(store, due.KINDS[phase])
        self._ledger, self._watch = ledger.Ledger(store), spendwatch.Watch(store)
        self._refused: dict[tuple[str, str], spend.Bound] = {}
        """What the last call that was refused for a memory could have taken."""
        self._deferred: dict[tuple[str, str], spend.Bound] = {}
        """Memories that are left alone until there is room for such a call."""
        self.next_at: dt.datetime | None = None
        """When the next memory becomes due by time, by the last look."""

    async def due(self) -> set[tuple[str, str]]:
        """Every memory whose asks are due, and not deferred."""
        self.next_at = None
        if self._reload is not None:
            self.chosen = await self._runtime.offload(self._reload)
        verdicts = await self._asks.verdicts(
            lambda project, memory: self.chosen.due(project, memory, self._phase)
        )
        self.next_at = next_at(list(verdicts.values()))
        found = {one for one, verdict in verdicts.items() if verdict.is_due}
        for one, wanted in list(self._deferred.items()):
            why = None
            if one in found:
                why = await self._ledger.refusal(*one, await self._budgets(*one), wanted)
            if why is not None:
                found.discard(one)
                until = dt.datetime.fromisoformat(why.until)
                self.next_at = until if self.next_at is None else min(until, self.next_at)
            elif (one in found or one not in verdicts) and self._deferred.pop(one, None) is not None:
                telemetry.MODEL_DEFERRED.inc(-1)
        return found

    async def ask(self, project: str, memory: str, one: port.Ask, accept: answers.Accept) -> answers.Kept:
        """The answer, as `answers.ask` gives it. Raises `errors.OverBudget` where no more may be asked now.

        Whoever catches that leaves the ask standing. `is_open` in its context: there may be room once other calls are
        settled, also those of the same pass; where there is none after it, `defer`.
        """
        budgets, table = await self._budgets(project, memory), self.chosen.table()
        engine = ledger.Metered(self._engine, self._ledger, project, memory, budgets=budgets, table=table)
        try:
            return await answers.ask(self._store, engine, project, one, accept)
        except errors.OverBudget:
            assert engine.refused is not None
            self._refused[project, memory] = engine.refused
            raise

    async def defer(self, project: str, memory: str) -> None:
        """Leave a memory alone until there is room for the call that was refused last, and say so once."""
        wanted = self._refused[project, memory]
        why = await self._ledger.defer(project, memory, await self._budgets(project, memory), wanted)
        if why is None:
            return
        if (project, memory) not in self._deferred:
            # That a minute is full ends with it.
            say = log.info if why.by == spend.RATE else log.warning
            say("memory waits for budget", project=project, memory=memory, cause=why.cause, until=why.until)
            telemetry.MODEL_REFUSED.inc()
            telemetry.MODEL_DEFERRED.inc()
        self._deferred[project, memory] = wanted

    async def _budgets(self, project: str, memory: str) -> spend.Budgets:
        """What a call of a memory is held against: the file of models, and what an administrator limits."""
        limits = await self._watch.limits(project)
        return dataclasses.replace(self.chosen.budgets(project, memory), limits=limits)
