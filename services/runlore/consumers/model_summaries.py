"""Summaries by a model: beside the rules' summary of a rollout, which stands at once and stays.

    asks → head → records → answer (put if absent) → CAS the rollout's head → put mark → ring → delete asks

The record stage puts an ask (a mark of its own kind, as each wait has its own) after the rollout's head was moved; so
the rules' summary stands before any model was asked, and a model that is away only leaves asks behind. The
model's part of the head says which runs it covers; whoever works an ask compares that with the head's runs and goes on
from the last point that holds (`memory/rolling.py`). An older part never replaces a newer: a head moves only from the
version that was read, and what was paid for by then is found again under its name (`models/answers.py`).

When asks are worked, their memory's policy says (`models/due.py`); each call is counted before it is made
(`models/ledger.py`), and over budget the rollout's ask stands, deferred, while other memories go on.

Where a model gives no answer that can be used, the part says so, the statements so far stay, and it is asked again
with the rollout's next run. What may pass, and what a person must mend, is raised: the asks stand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from runlore import clock, errors
from runlore.bus import port as bus_port
from runlore.commit import heads, keys, marks, redaction, rollouts
from runlore.consumers import asks, record, summarize
from runlore.consumers.runtime import SEQUENTIAL, Runtime
from runlore.events import models as events
from runlore.memory import model_summary, prompts, rolling, showing
from runlore.models import answers, choices, port
from runlore.store import port as store_port

log = structlog.get_logger("runlore.summarize")

ASKS_PER_PASS_MAX = 64
ROLLOUTS_PER_PASS_MAX = 64
"""So that what was summarized is consolidated while others wait; one ask may name more."""
STEPS_MAX = 32
"""Answers that one pass asks for one rollout before it gives up for now."""
TRIES_MAX = 2
"""Asks for one thing where the answer is not of the shape that was asked for."""
PROMPT = "summary"


@dataclass(frozen=True)
class Pass:
    """What one pass over a memory's asks did."""

    rollouts: int = 0
    moved: int = 0
    """Heads that have a new part of a model."""
    asks_deleted: int = 0
    deferred: int = 0
    """Rollouts that wait for budget."""
    more: bool = False


@dataclass(frozen=True)
class _Worked:
    """What became of one rollout."""

    head: heads.Head
    moved: bool
    is_deferred: bool = False
    is_open: bool = False
    """Whether there may be budget once other calls are settled at what they took."""


class ModelSummariesStage:
    """Works the asks of one memory at a time."""

    def __init__(
        self,
        store: store_port.ObjectStore,
        bus: bus_port.Bus,
        engine: port.Engine,
        chosen: choices.Choices,
        *,
        runtime: Runtime = SEQUENTIAL,
        hashing: redaction.Keys | None = None,
        reload: Callable[[], choices.Choices] | None = None,
    ) -> None:
        """`hashing`: the projects' redaction keys; without, placeholders in what a model says tell the kind alone."""
        self._store, self._bus = store, bus
        self._hashing = hashing
        self._runtime = runtime
        self.model = asks.Phase(store, engine, chosen, phase=port.SUMMARIZE, runtime=runtime, reload=reload)
        """When asks are due, and what asking may cost."""

    async def work(self, project: str, memory: str) -> Pass:
        """One pass. Raises `errors.Retryable` or `errors.Blocked` as the store and the engine do; the asks stand."""
        standing = await marks.read_all(
            self._store, project, memory, marks_max=ASKS_PER_PASS_MAX, kind=keys.ASKS
        )
        if not standing:
            return Pass()
        found = _first(standing)
        covered = marks.covered_from(found)
        named = sorted({name for one in found for name in one.rollouts})
        jobs = [lambda name=name: self._rollout(project, memory, name, covered.get(name)) for name in named]
        results = dict(zip(named, await self._runtime.gather(jobs), strict=True))
        # A rollout without a head has no records: its ask was put by hand.
        worked = [one for one in results.values() if one.head.counter]
        # Also where nothing moved: whoever moved it may have died before its mark.
        counters = {str(one.head.body["rollout"]): one.head.counter for one in worked}
        if counters:
            await marks.put(self._store, project, memory, counters, counters=counters)
        await self._ring(project, memory, [one.head for one in worked if one.moved])
        deferred = {name for name, one in results.items() if one.is_deferred}
        done = [mark for mark in found if deferred.isdisjoint(mark.rollouts)]
        if deferred:
            done = [mark for mark in done if not mark.is_refresh]  # It is for what is left, too.
        await marks.delete(self._store, done)
        moved = sum(one.moved for one in worked)
        if deferred:
            # What is left may fit now that what this pass paid is counted at what it took.
            more = moved > 0 and all(one.is_open for one in results.values() if one.is_deferred)
            if not more:
                await self.model.defer(project, memory)
        else:
            more = len(found) < len(standing) or len(standing) == ASKS_PER_PASS_MAX
        return Pass(len(worked), moved, len(done), len(deferred), more)

    async def _ring(self, project: str, memory: str, moved: list[heads.Head]) -> None:
        bells = [
            events.Changed(
                kind="rollout",
                project=project,
                memory=memory,
                rollout=head.body["rollout"],
                counter=head.counter,
            )
            for head in moved
        ]
        bells += [events.Changed(kind="mark", project=project, memory=memory)]
        await record.ring(self._bus, bells)

    async def _rollout(self, project: str, memory: str, rollout: str, covered: int | None) -> _Worked:
        """The rollout's head once its part covers all its runs, or there is no budget for that."""
        moved = False
        late: tuple[Any, Any, dict[str, Any]] | None = None
        for restart in range(summarize.RESTARTS_MAX + STEPS_MAX):
            head = await summarize.bring_up(
                self._store, project, memory, rollout, self._runtime, covered=covered
            )
            runs, before = head.body.get("runs", {}), head.body.get("model")
            rescanned = head.body.get("rescanned")
            if late is not None and late[:2] == (before, rescanned) and rolling.holds(late[2], runs):
                # The head moved while the model was asked, and what it answered covers a beginning of the runs that
                # are there now: thrown away, a rollout whose runs come faster than answers would pay for ever. But not
                # where a rescan hid something in the records that the model was shown.
                part = late[2]
            else:
                plan = rolling.plan(runs, before)
                if plan is None:
                    return _Worked(head, moved)
                base = await self._base(project, runs, plan)
                try:
                    part = await self._part(project, memory, head, *base)
                except errors.OverBudget as exc:
                    return _Worked(head, moved, is_deferred=True, is_open=bool(exc.context["is_open"]))
            try:
                head = await heads.move(self._store, head, {"model": part}, fmt=rollouts.HEAD_FORMAT)
                moved, late = True, None
            except errors.HeadMoved:
                late = before, rescanned, part
                await clock.sleep(0.005 * restart * clock.jitter())
        raise errors.StoreUnavailable(f"the head of rollout {rollout} in {project}/{memory} is contended")

    async def next_part(self, project: str, memory: str, head: heads.Head) -> dict[str, Any] | None:
        """The head's part after one more ask; None where it covers all runs. Writes no head.

        Raises as `work` does.
        """
        runs = head.body.get("runs", {})
        plan = rolling.plan(runs, head.body.get("model"))
        if plan is None:
            return None
        return await self._part(project, memory, head, *await self._base(project, runs, plan))

    async def _base(
        self, project: str, runs: Mapping[str, Any], plan: rolling.Plan
    ) -> tuple[rolling.Plan, list[Mapping[str, Any]]]:
        """The plan, and the statements that it goes on from."""
        if plan.base is None:
            return plan, []
        kept = await answers.read(self._store, project, plan.base)
        if kept is None:
            # Somebody took the kept answer away: all is shown anew.
            return rolling.plan(runs, None) or plan, []
        return plan, rolling.known(plan, kept.result["statements"])

    async def _part(
        self,
        project: str,
        memory: str,
        head: heads.Head,
        plan: rolling.Plan,
        known: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        """The head's part after one ask: the model's, or the old one that says why there is none."""
        before = head.body.get("model") or {"points": []}
        rollout = str(head.body["rollout"])
        try:
            kept = await self._asked(project, memory, rollout, plan, known)
        except errors.NoAnswer as exc:
            why, context = f"{exc.kind}: {exc.message}", exc.context
        except errors.RunloreError:
            raise
        except Exception as exc:
            # A bug in what shows a run or reads an answer must not stop a memory.
            log.exception("a model's summary failed", project=project, memory=memory, rollout=rollout)
            why, context = f"internal: {type(exc).__name__}", {}
        else:
            points = [*plan.points, rolling.point(plan, kept.name)][-rolling.POINTS_MAX :]
            spent = _spent(before, kept.usage, kept.cost_usd)
            said = {"model": kept.model, "upto": plan.upto, "points": points, "spent": spent, "at": kept.at}
            return {**kept.result, **said}
        log.warning("no summary by a model", project=project, memory=memory, rollout=rollout, cause=why)
        failed = {"why": why, "runs": plan.runs}
        spent = _spent(before, context, context.get("cost_usd"))
        # Of all runs, not only of those that were shown: the next try comes with the next run.
        return {**before, "upto": plan.whole, "failed": failed, "spent": spent, "at": clock.now_iso()}

    async def _asked(
        self,
        project: str,
        memory: str,
        rollout: str,
        plan: rolling.Plan,
        known: Sequence[Mapping[str, Any]],
    ) -> answers.Kept:
        key = await self._hashing.of(project) if self._hashing is not None else None
        choice = self.model.chosen.of(project, memory, port.SUMMARIZE)
        wanted = [*([plan.before] if plan.before else []), *plan.shown]
        named = [keys.record(project, memory, rollout, run, attempt) for run, attempt in wanted]
        runs = {
            (one.run, one.attempt): showing.Run(summarize.meta_of(one), one.line)
            for one in await summarize.load(self._store, named)
        }
        shown = await self._runtime.offload(
            _shown,
            [runs[one] for one in plan.shown if one in runs],
            known,
            runs.get(plan.before) if plan.before else None,
            choice.input_tokens_max,
        )
        ask = port.Ask(
            model=choice.model,
            effort=choice.effort,
            tier=choice.tier,
            instructions=prompts.instructions(PROMPT, choice.extra_prompt, instead=choice.prompt),
            input=shown.text,
            answer=model_summary.Summary,
            output_tokens_max=choice.output_tokens_max,
            about={"memory": memory, "rollouts": [rollout]},
        )
        for number in range(TRIES_MAX):
            try:
                return await self.model.ask(
                    project,
                    memory,
                    replace(ask, number=number),
                    lambda said: model_summary.accept(said, shown, key),
                )
            except errors.BadAnswer:
                if number == TRIES_MAX - 1:
                    raise
        raise AssertionError("unreachable")


def _first(standing: Sequence[marks.Mark]) -> list[marks.Mark]:
    """The oldest asks, as many as one pass works."""
    found: list[marks.Mark] = []
    named: set[str] = set()
    for one in standing:
        named |= set(one.rollouts)
        if found and len(named) > ROLLOUTS_PER_PASS_MAX:
            break
        found.append(one)
    return found


def _shown(
    runs: Sequence[showing.Run],
    known: Sequence[Mapping[str, Any]],
    before: showing.Run | None,
    tokens_max: int,
) -> showing.Shown:
    return showing.render(runs, tokens_max=tokens_max, known=known, before=before)


def _spent(
    before: Mapping[str, Any], usage: Mapping[str, Any] | None, cost_usd: float | None
) -> dict[str, Any]:
    """What a rollout's part has cost so far; `unknown` counts the answers whose cost nobody knows."""
    was = before.get("spent") or {
        "answers": 0,
        "input_tokens": 0,
        "output_tokens": 0,
        "cost_usd": 0.0,
        "unknown": 0,
    }
    return {
        "answers": was["answers"] + 1,
        "input_tokens": was["input_tokens"] + int((usage or {}).get("input_tokens", 0)),
        "output_tokens": was["output_tokens"] + int((usage or {}).get("output_tokens", 0)),
        "cost_usd": round(was["cost_usd"] + (cost_usd or 0.0), 9),
        "unknown": was["unknown"] + (cost_usd is None),
    }
