"""Rebuild: a side line of a memory, from its recorded runs, by the rules as they are now or by another model or prompt.

    side head → rollout heads, records → answers (put if absent) → pack → manifest → CAS the side's head

It reads what the memory has and writes only what is the side's own: no rollout's head moves, no mark is put, nothing is
rung. A model's part of a rollout, which in the memory's own line stands in the rollout's head, stands here in the
coverage of the side's revisions. So a side can be built beside a pipeline at work, and brought up to date later at the
price of the runs that came since.

Each batch is a revision of the side. Killed at any point, the same call goes on from the side's head; what a model was
asked in the batch that was lost is found again under its name (`models/answers.py`) and not paid for twice. Rollouts
that the memory holds for review are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from runlore import clock, errors
from runlore.bus import port as bus_port
from runlore.commit import heads, keys, redaction, revisions, rollouts, sides
from runlore.consumers import approvals, consolidate, model_summaries, summarize
from runlore.consumers.runtime import SEQUENTIAL, Runtime
from runlore.memory import prompts, render, rules
from runlore.models import choices, port
from runlore.store import port as store_port

ROLLOUTS_PER_REVISION_MAX = 128
"""Rollouts that one revision of a side takes in where no model is asked."""
ASKED_PER_REVISION_MAX = 16
"""Rollouts of one revision where a model is: what a kill may have to read again."""
HEADS_AT_ONCE = 64
PROMPT_CHARS_MAX = 64_000
NO_SPEND = {"answers": 0, "input_tokens": 0, "output_tokens": 0, "cost_usd": 0.0, "unknown": 0}


@dataclass
class Progress:
    """How far a build is, and what it has paid for so far: what was kept before costs nothing again."""

    rollouts: int = 0
    rollouts_total: int = 0
    runs: int = 0
    runs_total: int = 0
    asks: int = 0
    """Asks that went out."""
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    unknown: int = 0
    """Answers whose cost nobody knows."""


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Built:
    """What a build did."""

    revision: int
    """The side's newest; 0 where there was nothing to take in."""
    held: tuple[str, ...]
    """Rollouts that a guard refused: they have no notes in the side."""
    left_out: tuple[str, ...]
    """Rollouts that the memory itself holds for review."""
    progress: Progress = field(default_factory=Progress)


@dataclass(frozen=True)
class _Waiting:
    """A rollout that the side does not cover yet."""

    rollout: str
    updated_at: str
    runs: int


class Meter:
    """An engine that counts what goes out, and lets nothing out once a limit is spent.

    Asks that are under way when the limit is reached are waited for: they are paid, and so they are kept.
    """

    def __init__(
        self,
        engine: port.Engine,
        progress: Progress,
        *,
        limit_usd: float | None = None,
        on_ask: Report = lambda progress: None,
    ) -> None:
        self._engine, self._progress = engine, progress
        self._limit_usd, self._on_ask = limit_usd, on_ask

    async def ask(self, ask: port.Ask) -> port.Answer:
        if self._limit_usd is not None and (
            self._progress.cost_usd >= self._limit_usd or self._progress.unknown
        ):
            unpriced = (
                f", and {self._progress.unknown} answers have no price" if self._progress.unknown else ""
            )
            raise errors.SpendLimit(
                f"{self._progress.cost_usd:.4f} of {self._limit_usd:.4f} US dollars are spent{unpriced}",
                hint="a higher --limit-usd goes on where this stopped",
            )
        self._progress.asks += 1
        try:
            answer = await self._engine.ask(ask)
        except errors.NoAnswer as exc:
            self._count(exc.context, exc.context.get("cost_usd"))
            raise
        self._count(answer.usage.as_dict() if answer.usage else {}, answer.cost_usd)
        return answer

    async def close(self) -> None:
        await self._engine.close()

    def _count(self, usage: Mapping[str, Any], cost_usd: float | None) -> None:
        self._progress.input_tokens += int(usage.get("input_tokens", 0))
        self._progress.output_tokens += int(usage.get("output_tokens", 0))
        self._progress.cost_usd += cost_usd or 0.0
        self._progress.unknown += cost_usd is None
        self._on_ask(self._progress)


def setup_of(choice: choices.Choice | None) -> dict[str, Any]:
    """All that decides what a side holds besides its runs; None: the rules alone."""
    said: dict[str, Any] = {"rules": dict(rules.ENGINE), "model": None}
    if choice is not None:
        text = prompts.instructions(model_summaries.PROMPT, choice.extra_prompt, instead=choice.prompt)
        said["model"] = choice.model_dump() | {"instructions": hashlib.sha256(text.encode()).hexdigest()}
    return said


def choice_of(setup: Mapping[str, Any]) -> choices.Choice | None:
    """The choice that a setup was made of."""
    if setup["model"] is None:
        return None
    said = {name: value for name, value in setup["model"].items() if name != "instructions"}
    return choices.Choice.model_validate(said)


def check_setup(body: Mapping[str, Any], setup: Mapping[str, Any]) -> None:
    """Raises `errors.Refused` where a side that stands was begun with another setup."""
    if body["setup"] == setup:
        return
    was, now = body["setup"]["model"] or {}, setup["model"] or {}
    changed = sorted(name for name in {*was, *now} if was.get(name) != now.get(name)) or ["the rules"]
    raise errors.Refused(
        f"side line {body['side']} was begun with other settings: {', '.join(changed)}",
        hint="build it under another name, or `runlore rebuild drop` it first",
    )


class _Chosen:
    """The file of models with one choice in place of its own: what else it says of the memory stays."""

    def __init__(self, said: choices.Choices, choice: choices.Choice) -> None:
        self._said, self._choice = said, choice

    def of(self, project: str, memory: str, phase: str) -> choices.Choice:
        return self._choice

    def __getattr__(self, name: str) -> Any:
        return getattr(self._said, name)


class Rebuild:
    """Builds one side line of one memory, and brings it up to date."""

    def __init__(
        self,
        store: store_port.ObjectStore,
        bus: bus_port.Bus,
        project: str,
        memory: str,
        side: str,
        *,
        reader: revisions.Reader | None = None,
        runtime: Runtime = SEQUENTIAL,
        on_progress: Report = lambda progress: None,
    ) -> None:
        self._store, self._bus = store, bus
        self._meant, self._side = (project, memory), sides.check_name(side)
        self._reader = reader or revisions.Reader(store)
        self._runtime, self._report = runtime, on_progress
        self._memo = render.Memo()

    async def build(
        self,
        setup: Mapping[str, Any],
        *,
        reason: str,
        engine: port.Engine | None = None,
        said: choices.Choices | None = None,
        limit_usd: float | None = None,
    ) -> Built:
        """Begin the side, or go on with it, until it covers every run that is recorded now.

        `engine` is needed where the setup names a model; `said` is the file of models. Raises `errors.Refused` where it
        was begun otherwise, what the engine raises, and `errors.SpendLimit`: then the same call goes on later.
        """
        progress = Progress()
        asking = None
        if (choice := choice_of(setup)) is not None:
            if engine is None:
                raise errors.Refused(
                    "no model is configured", hint="set RUNLORE_MODEL_KEY or RUNLORE_MODEL_URL"
                )
            meter = Meter(engine, progress, limit_usd=limit_usd, on_ask=self._report)
            chosen = _Chosen(said or choices.Choices(), choice)
            hashing = redaction.Keys(self._store)
            asking = model_summaries.ModelSummariesStage(
                self._store, self._bus, meter, chosen, runtime=self._runtime, hashing=hashing
            )
        head = await self._begun(setup, reason)
        for restart in range(summarize.RESTARTS_MAX):
            check_setup(head.body, setup)
            try:
                return await self._built(head, asking, progress)
            except errors.HeadMoved:
                # Somebody else builds it too, or has dropped it: which, its head says.
                await clock.sleep(0.005 * restart * clock.jitter())
                head = await sides.existing(self._store, *self._meant, self._side)
        raise errors.StoreUnavailable(f"the head of side line {self._side} is contended")

    async def _begun(self, setup: Mapping[str, Any], reason: str) -> heads.Head:
        for _ in range(summarize.RESTARTS_MAX):
            head = await sides.read(self._store, *self._meant, self._side)
            if sides.stands(head.body):
                return head
            if len(await sides.of_memory(self._store, *self._meant)) >= sides.SIDES_MAX:
                raise errors.Refused(
                    f"{'/'.join(self._meant)} has {sides.SIDES_MAX} side lines already",
                    hint="`runlore rebuild drop` lets one go",
                )
            begun = {
                "project": self._meant[0],
                "memory": self._meant[1],
                "side": self._side,
                "state": sides.BUILDING,
                "setup": dict(setup),
                "reason": reason,
                "began_at": clock.now_iso(),
                "revision": None,
                "manifest": None,
                "held": {},
                "spent": NO_SPEND,
            }
            try:
                return await heads.move(self._store, head, begun, fmt=sides.FORMAT)
            except errors.HeadMoved:
                continue
        raise errors.StoreUnavailable(f"the head of side line {self._side} is contended")

    async def _built(
        self, head: heads.Head, asking: model_summaries.ModelSummariesStage | None, progress: Progress
    ) -> Built:
        main = await self._reader.head(*self._meant)
        before = await self._reader.current(head, *self._meant)
        waiting, left_out = await self._waiting(before, head.body["held"], main.body.get("held", {}))
        progress.rollouts_total = progress.rollouts + len(waiting)
        progress.runs_total = progress.runs + sum(one.runs for one in waiting)
        self._report(progress)
        at_once = ROLLOUTS_PER_REVISION_MAX if asking is None else ASKED_PER_REVISION_MAX
        for first in range(0, len(waiting), at_once):
            batch = waiting[first : first + at_once]
            head, before = await self._batch(head, before, batch, main, asking, progress)
        if waiting or head.body["state"] != sides.BUILT:
            done = {"state": sides.BUILT, "built_at": clock.now_iso()}
            head = await heads.move(self._store, head, done, fmt=sides.FORMAT)
        number = int(head.body["revision"] or 0)
        return Built(number, tuple(sorted(head.body["held"])), tuple(left_out), progress)

    async def _waiting(
        self,
        before: revisions.Revision | None,
        held: Mapping[str, Any],
        held_by_main: Mapping[str, Any],
    ) -> tuple[list[_Waiting], list[str]]:
        """The rollouts of which the side lacks a run, oldest first; and those that the memory holds for review."""
        coverage = before.map("coverage") if before else None
        found: list[_Waiting] = []
        left_out: list[str] = []
        async for some in self._heads():
            for one in some:
                name = str(one.body["rollout"])
                if name in held_by_main:
                    left_out.append(name)
                    continue
                known = coverage.get(name) if coverage is not None else None
                counters = [int(row["counter"]) for row in (known, held.get(name)) if row]
                # By its runs, not by its counter, which moves with what the memory's own model says too.
                if lacks(one.body, max(counters, default=0)):
                    found.append(_Waiting(name, str(one.body["updated_at"]), len(one.body["runs"])))
        found.sort(key=lambda one: (consolidate.recency(one.updated_at), one.rollout))
        return found, sorted(left_out)

    async def _heads(self) -> AsyncIterator[list[heads.Head]]:
        """The heads of the memory's rollouts, some at a time."""
        project, memory = self._meant
        named = [
            row.key
            async for row in self._store.list(f"{project}/{keys.ROLLOUTS}/")
            if row.key.split("/")[3] == memory
        ]
        if not named:
            raise errors.NotFound(
                f"memory {project}/{memory} has no runs", hint="`runlore log` lists memories"
            )
        for first in range(0, len(named), HEADS_AT_ONCE):
            yield await self._read(named[first : first + HEADS_AT_ONCE])

    async def _read(self, named: Sequence[str]) -> list[heads.Head]:
        found = await self._store.get_many(named)
        parsed = (
            heads.parse(key, one, fmt=rollouts.HEAD_FORMAT) for key, one in zip(named, found, strict=True)
        )
        return [head for head in parsed if head.counter]

    async def _batch(
        self,
        side: heads.Head,
        before: revisions.Revision | None,
        batch: Sequence[_Waiting],
        main: heads.Head,
        asking: model_summaries.ModelSummariesStage | None,
        progress: Progress,
    ) -> tuple[heads.Head, revisions.Revision | None]:
        """The side after one more revision."""
        read = await self._read([keys.rollout_head(*self._meant, one.rollout) for one in batch])
        known = {str(one.body["rollout"]): part_of(before, one) for one in read}
        jobs = [lambda one=one: self._input(one, known, asking, progress) for one in read]
        inputs = {str(one.body["rollout"]): one for one in await self._runtime.gather(jobs)}
        layout = main.body.get("layout") or next(iter(inputs.values())).body["layout"]
        state = await self._runtime.offload(consolidate.load_state, before)
        passes = approvals.let_pass(main.body, [])
        accepted, guilty, made = await self._runtime.offload(
            consolidate.accept, state, inputs, layout, self._memo, passes
        )
        held = {name: why for name, why in side.body["held"].items() if name not in accepted}
        present = int(side.body["revision"] or 0)
        held |= {
            name: approvals.hold(inputs[name], why, side.counter + 1, present) for name, why in guilty.items()
        }
        spent = _spent(inputs, known)
        changes: dict[str, Any] = {
            "held": held,
            "spent": _sum(side.body["spent"], spent),
            "state": sides.BUILDING,
        }
        if accepted:
            draft = await self._runtime.offload(consolidate.draft_of, before, made, inputs, accepted, layout)
            draft = self._of_side(draft, side, inputs, accepted, spent)
            before = await revisions.write(
                self._store, self._reader, *self._meant, parent=before, draft=draft
            )
            changes |= {"revision": before.number, "manifest": before.sha256}
        return await heads.move(self._store, side, changes, fmt=sides.FORMAT), before

    async def _input(
        self,
        head: heads.Head,
        known: Mapping[str, Any],
        asking: model_summaries.ModelSummariesStage | None,
        progress: Progress,
    ) -> heads.Head:
        """A rollout's head as the side sees it: the present rules' summary, and the side's own model's part."""
        body = {**head.body, "model": known[str(head.body["rollout"])]}
        body["summary"] = await summarize.present(self._store, head, self._runtime)
        for _ in range(model_summaries.STEPS_MAX):
            one = replace(head, body=body)
            part = await asking.next_part(*self._meant, one) if asking is not None else None
            if part is None:
                break
            body = {**body, "model": part}
        progress.rollouts += 1
        progress.runs += len(body["runs"])
        self._report(progress)
        return replace(head, body=body)

    def _of_side(
        self,
        draft: revisions.Draft,
        side: heads.Head,
        inputs: Mapping[str, heads.Head],
        accepted: Sequence[str],
        spent: Mapping[str, Any],
    ) -> revisions.Draft:
        """A draft of the memory's own line as one of the side: with the models' parts, and what it is."""
        for name in accepted:
            if inputs[name].body["model"] is not None:
                entry = draft.maps["coverage"].get(name)
                draft.maps["coverage"].set(name, {**entry, "model": inputs[name].body["model"]})
        model = side.body["setup"]["model"]
        engine = dict(rules.ENGINE) if model is None else {**rules.ENGINE, "name": f"rules+{model['model']}"}
        own = {
            "side": self._side,
            "reason": "rebuild",
            "engine": engine,
            "tokens": spent["input_tokens"] + spent["output_tokens"],
            "cost_usd": None if spent["unknown"] else spent["cost_usd"],
        }
        return replace(draft, facts={**draft.facts, **own})


def lacks(body: Mapping[str, Any], counter: int) -> bool:
    """Whether a rollout's head has what was not there when its counter was `counter`: a run, or words now hidden."""
    return is_hidden_since(body, counter) or any(int(one["since"]) > counter for one in body["runs"].values())


def is_hidden_since(body: Mapping[str, Any], counter: int) -> bool:
    """Whether a rescan has hidden something of a rollout since its head's counter was `counter`."""
    return int((body.get("rescanned") or {}).get("counter", 0)) > counter


def part_of(side: revisions.Revision | None, head: heads.Head) -> dict[str, Any] | None:
    """What a side's model said of a rollout so far; None where that may repeat what was hidden since."""
    entry = side.map("coverage").get(str(head.body["rollout"])) if side is not None else None
    if entry is None or is_hidden_since(head.body, int(entry["counter"])):
        return None
    part: dict[str, Any] | None = entry.get("model")
    return part


def _spent(inputs: Mapping[str, heads.Head], known: Mapping[str, Any]) -> dict[str, Any]:
    """What the answers behind these parts cost, less what was counted with the parts before."""
    total = dict(NO_SPEND)
    for name, head in inputs.items():
        now = (head.body["model"] or {}).get("spent", NO_SPEND)
        was = (known[name] or {}).get("spent", NO_SPEND)
        total = _sum(total, {what: now[what] - was[what] for what in NO_SPEND})
    return total


def _sum(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {what: round(one[what] + other[what], 9) for what in NO_SPEND}
