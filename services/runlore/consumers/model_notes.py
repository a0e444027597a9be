"""Consolidation by a model: beside the rules', which stands at once and is never held up.

    joins → head → notes → answers (put if absent) → apply, guards → pack → manifest → CAS head → ring → delete joins

The consolidate stage puts a join (a mark of its own kind, as each wait has its own) after the memory's head moved and
before it deletes its own marks. What is left to do is in the revision itself: which statements of each rollout a model
was shown (`memory/joint.py`). So a join only says where to look, and one too many costs a look.

The head moves only from the version that was read. Where it moved meanwhile, what was answered is judged anew by the
notes that are there now: code refuses what does not fit them any more. What was paid for is kept under its input's
hash (`models/answers.py`), and what was shown is part of the revision: so a crash or a second worker pays once.

An operation that code or the guards refuse is told to the model once, with the reason; refused again, it is dropped.
Where a model gives no answer that can be used, the statements stand as they are, and count as shown. What may pass,
and what a person must mend, is raised: the joins stand. So they do where there is no budget for more.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from runlore import clock, errors
from runlore.bus import port as bus_port
from runlore.commit import heads, keys, marks, revisions
from runlore.consumers import approvals, asks, consolidate, record, summarize
from runlore.consumers.runtime import SEQUENTIAL, Runtime
from runlore.events import models as events
from runlore.memory import guards, joining, joint, judging, prompts, render
from runlore.models import choices, port
from runlore.store import port as store_port

log = structlog.get_logger("runlore.consolidate")

JOINS_PER_PASS_MAX = 512
OWNERS_PER_PASS_MAX = 8
"""Subjects (and nobody in particular) that one pass asks about: each is an ask of its own."""
TRIES_MAX = 2
"""Asks for one thing where the answer is not of the shape that was asked for."""
REFUSED_MAX = 100
"""Refused operations that a revision tells."""
PROMPT = "consolidate"


@dataclass(frozen=True)
class Pass:
    """What one pass over a memory's joins did."""

    revision: int | None = None
    asked: int = 0
    done: int = 0
    """Operations that stand."""
    refused: int = 0
    joins_deleted: int = 0
    is_deferred: bool = False
    """Whether what is left waits for budget."""
    more: bool = False


@dataclass(frozen=True)
class Asked:
    """What came of one ask."""

    plan: joining.Plan
    proposed: tuple[judging.Proposed, ...] = ()
    refused: tuple[joining.Refused, ...] = ()
    answers: tuple[str, ...] = ()
    """Names of the kept answers."""
    model: str = ""
    tokens: int = 0
    cost_usd: float | None = 0.0
    """None once the cost of one answer is not known."""


@dataclass(frozen=True)
class Fitted:
    """Notes with the operations that stand, rendered."""

    made: consolidate.Made
    done: list[judging.Proposed]
    refused: list[tuple[judging.Proposed, str]] = field(default_factory=list)


class ModelNotesStage:
    """Works the joins of one memory at a time."""

    def __init__(
        self,
        store: store_port.ObjectStore,
        bus: bus_port.Bus,
        engine: port.Engine,
        chosen: choices.Choices,
        *,
        reader: revisions.Reader | None = None,
        runtime: Runtime = SEQUENTIAL,
        reload: Callable[[], choices.Choices] | None = None,
    ) -> None:
        self._store, self._bus = store, bus
        self._reader = reader or revisions.Reader(store)
        self._runtime = runtime
        self.model = asks.Phase(store, engine, chosen, phase=port.CONSOLIDATE, runtime=runtime, reload=reload)
        """When joins are due, and what asking may cost."""

    async def work(self, project: str, memory: str) -> Pass:
        """One pass. Raises `errors.Retryable` or `errors.Blocked` as the store and the engine do; the joins stand."""
        late: list[Asked] = []
        erased: Any = None
        memo = render.Memo()
        for restart in range(summarize.RESTARTS_MAX):
            found = await marks.read_all(
                self._store, project, memory, marks_max=JOINS_PER_PASS_MAX, kind=keys.JOINS
            )
            if not found:
                return Pass()
            head = await self._reader.head(project, memory)
            before = await self._reader.current(head, project, memory)
            if before is None:
                await marks.delete(self._store, found)
                return Pass(joins_deleted=len(found))
            state = await self._runtime.offload(consolidate.load_state, before)
            # An answer of which all is in the notes by now was taken in by us, or by whoever asked the same.
            waiting = joint.fresh(state.notes)
            # One that was asked before something was erased of the memory may repeat it.
            known = late if erased == head.body.get("erased") else []
            asked = [one for one in known if waiting.intersection(one.plan.fresh)]
            more, over = bool(asked), None
            if not asked:
                asked, more, over = await self._ask(project, memory, head, state, memo)
            try:
                done = (
                    await self._move(project, memory, head, before, state, asked, memo) if asked else Pass()
                )
            except errors.HeadMoved:
                late, erased = asked, head.body.get("erased")
                await clock.sleep(0.005 * restart * clock.jitter())
                continue
            if over is not None:
                # What is left may fit now that what this pass paid is counted at what it took.
                more = bool(asked) and bool(over.context["is_open"])
                if not more:
                    await self.model.defer(project, memory)
                return replace(done, is_deferred=True, more=more)
            if not more:
                await marks.delete(self._store, found)
            deleted = 0 if more else len(found)
            return replace(done, joins_deleted=deleted, more=more or len(found) == JOINS_PER_PASS_MAX)
        raise errors.StoreUnavailable(f"the head of memory {project}/{memory} is contended")

    # --- asking ---------------------------------------------------------------------------------------------------

    async def _ask(
        self, project: str, memory: str, head: heads.Head, state: consolidate.Memory, memo: render.Memo
    ) -> tuple[list[Asked], bool, errors.OverBudget | None]:
        """What a model says to all that is to be asked now; whether something is left; what has no budget."""
        choice = self.model.chosen.of(project, memory, port.CONSOLIDATE)
        planned, more = await self._runtime.offload(_plans, state, choice.input_tokens_max)
        out = []
        for plan in planned:
            try:
                out.append(await self._asked(project, memory, head, state, plan, choice, memo))
            except errors.OverBudget as exc:
                return out, True, exc
            except errors.RunloreError:
                raise
            except Exception as exc:
                # A bug in what reads an answer must not stop a memory.
                log.exception("consolidation by a model failed", project=project, memory=memory)
                out.append(
                    Asked(plan, refused=(joining.Refused("answer", f"internal: {type(exc).__name__}"),))
                )
        return out, more, None

    async def _asked(
        self,
        project: str,
        memory: str,
        head: heads.Head,
        state: consolidate.Memory,
        plan: joining.Plan,
        choice: choices.Choice,
        memo: render.Memo,
    ) -> Asked:
        ask = port.Ask(
            model=choice.model,
            effort=choice.effort,
            tier=choice.tier,
            instructions=prompts.instructions(PROMPT, choice.extra_prompt),
            input=plan.text,
            answer=joining.Consolidation,
            output_tokens_max=choice.output_tokens_max,
            about={"memory": memory, "rollouts": None},
        )
        first = await self._answered(project, memory, ask, Asked(plan))
        if not first.proposed and not first.refused:
            return first
        passes = approvals.let_pass(head.body, [])
        fitted = await self._runtime.offload(fit, state, first.proposed, head.body["layout"], memo, passes)
        refused = [*first.refused, *(joining.Refused(one.what, why) for one, why in fitted.refused)]
        if not refused or not first.answers:
            return first
        second = replace(ask, input=joining.again(plan, refused))
        stands = replace(first, proposed=tuple(fitted.done), refused=tuple(refused))
        try:
            return await self._answered(project, memory, second, stands)
        except errors.OverBudget:
            return stands  # What was paid for is taken in; what was refused, is.

    async def _answered(self, project: str, memory: str, ask: port.Ask, so_far: Asked) -> Asked:
        """What came of it so far, with the answer to `ask`."""
        plan = so_far.plan
        for number in range(TRIES_MAX):
            try:
                kept = await self.model.ask(
                    project,
                    memory,
                    replace(ask, number=number),
                    lambda said: judging.accept(said, plan),
                )
            except errors.NoAnswer as exc:
                so_far = _with_cost(so_far, exc.context, exc.context.get("cost_usd"))
                if isinstance(exc, errors.BadAnswer) and number < TRIES_MAX - 1:
                    continue
                log.warning("no consolidation by a model", project=project, cause=exc.kind)
                why = joining.Refused("answer", f"{exc.kind}: {exc.message}")
                return replace(so_far, refused=(*so_far.refused, why))
            made = {"model": kept.model, "answer": kept.name, "at": kept.at}
            said = [judging.Proposed.of(one, plan.owner, made) for one in kept.result["operations"]]
            refused = [joining.Refused(what, why) for what, why in kept.result["refused"]]
            return replace(
                _with_cost(so_far, kept.usage, kept.cost_usd),
                proposed=(*so_far.proposed, *said),
                refused=(*so_far.refused, *refused),
                answers=(*so_far.answers, kept.name),
                model=kept.model,
            )
        raise AssertionError("unreachable")

    # --- taking in ------------------------------------------------------------------------------------------------

    async def _move(
        self,
        project: str,
        memory: str,
        head: heads.Head,
        before: revisions.Revision,
        state: consolidate.Memory,
        asked: Sequence[Asked],
        memo: render.Memo,
    ) -> Pass:
        """Make the revision with what stands of the answers, and move the head to it. Raises `errors.HeadMoved`."""
        layout = head.body["layout"]
        shown = [note for one in asked for note in one.plan.fresh]
        told = replace(state, notes=joint.with_told(state.notes, shown))
        proposed = [operation for one in asked for operation in one.proposed]
        passes = approvals.let_pass(head.body, [])
        fitted = await self._runtime.offload(fit, told, proposed, layout, memo, passes)
        refused = [each for one in asked for each in one.refused]
        refused += [joining.Refused(one.what, why) for one, why in fitted.refused]
        for one in refused:
            where = {"project": project, "memory": memory}
            log.info("operation refused", **where, operation=one.what, reason=one.reason)
        draft = await self._runtime.offload(_draft, before, fitted, asked, refused, layout)
        revision = await revisions.write(
            self._store, self._reader, project, memory, parent=before, draft=draft
        )
        changes = {"revision": revision.number, "manifest": revision.sha256}
        head = await heads.move(self._store, head, changes, fmt=revisions.HEAD_FORMAT)
        bell = events.Changed(kind="memory", project=project, memory=memory, counter=head.counter)
        await record.ring(self._bus, [bell])
        return Pass(revision.number, len(asked), len(fitted.done), len(refused))


def _plans(state: consolidate.Memory, tokens_max: int) -> tuple[list[joining.Plan], bool]:
    return joining.plans(state.notes, tokens_max=tokens_max, owners_max=OWNERS_PER_PASS_MAX)


def _with_cost(so_far: Asked, usage: Mapping[str, Any] | None, cost_usd: float | None) -> Asked:
    used = usage or {}
    tokens = int(used.get("input_tokens", 0)) + int(used.get("output_tokens", 0))
    known = so_far.cost_usd is not None and cost_usd is not None
    cost = round((so_far.cost_usd or 0.0) + (cost_usd or 0.0), 9) if known else None
    return replace(so_far, tokens=so_far.tokens + tokens, cost_usd=cost)


def fit(
    state: consolidate.Memory,
    proposed: Sequence[judging.Proposed],
    layout: Mapping[str, Any],
    memo: render.Memo | None = None,
    passes: approvals.Keys | None = None,
) -> Fitted:
    """As many of the operations as code lets through and the guards pass, but for what a person let pass; pure.

    Halving finds each one that the guards are against, as it finds a guilty rollout. What the guards say against the
    notes as they were is no operation's fault.
    """
    memo = memo or render.Memo()
    _, standing, refused = judging.apply(state.notes, proposed)
    accepted: list[judging.Proposed] = []
    best: consolidate.Made | None = None
    old: Counter[str] | None = None

    def attempt(some: Sequence[judging.Proposed]) -> None:
        nonlocal best, old
        made = _made(state, [*accepted, *some], layout, memo)
        found = guards.check(state.notes, made.state.notes, made.parts)
        against = approvals.left(found, passes or {}, ())
        if against:
            if old is None:
                parts = _made(state, [], layout, memo).parts
                found = guards.check(state.notes, state.notes, parts)
                old = Counter(one.kind for one in approvals.left(found, passes or {}, ()))
            more = Counter(one.kind for one in against) - old
            against = [one for one in against if more[one.kind]]
        if not against:
            accepted.extend(some)
            best = made
        elif len(some) == 1:
            refused.append((some[0], f"{against[0].kind}: {against[0].message}"))
        else:
            middle = len(some) // 2
            attempt(some[:middle])
            attempt(some[middle:])

    if standing:
        attempt(standing)
    return Fitted(best or _made(state, [], layout, memo), accepted, refused)


def _made(
    state: consolidate.Memory,
    proposed: Sequence[judging.Proposed],
    layout: Mapping[str, Any],
    memo: render.Memo,
) -> consolidate.Made:
    now, _, _ = judging.apply(state.notes, proposed)
    return consolidate.Made(replace(state, notes=now), render.parts(now, events.Layout(**layout), memo))


def _draft(
    before: revisions.Revision,
    fitted: Fitted,
    asked: Sequence[Asked],
    refused: Sequence[joining.Refused],
    layout: Mapping[str, Any],
) -> revisions.Draft:
    maps = {name: before.map(name) for name in revisions.MAPS}
    maps["notes"].replace(fitted.made.state.notes.entries())
    contents, live = consolidate.lay_out(fitted.made.parts, maps["files"])
    costs = [one.cost_usd for one in asked]
    prompt = hashlib.sha256(prompts.load(PROMPT).encode()).hexdigest()
    facts = {
        "reason": "model",
        "engine": {"name": next((one.model for one in asked if one.model), "none"), "prompt": prompt},
        "answers": sorted({name for one in asked for name in one.answers}),
        "tokens": sum(one.tokens for one in asked),
        "cost_usd": None if None in costs else round(sum(one or 0.0 for one in costs), 9),
        "layout": dict(layout),
        "covers": [],
        "operations": {
            action: count
            for action in ("add", "merge", "reword", "retire")
            if (count := sum(one.action == action for one in fitted.done))
        },
        "shown": sum(len(one.plan.fresh) for one in asked),
        "refused": [one._asdict() for one in refused][:REFUSED_MAX],
        "totals": consolidate.totals(fitted.made.parts, fitted.made.state, len(maps["coverage"])),
    }
    return revisions.Draft(maps, contents, frozenset(live), facts)
