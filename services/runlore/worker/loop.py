"""The loops of a worker: one per stage, each with its own cause when it can not go on.

A failing stage stops no other, and what fails for one project stops no other project of its stage (`intake`,
`memories`): it is tried again with growing waits, the order of a key is kept, and what a person must mend is told.
Nothing is dead-lettered for a fault of the store, the bus or the machine.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from runlore import clock, errors, pipeline, tasks, telemetry
from runlore.bus import port as bus_port
from runlore.commit import marks, redaction, revisions
from runlore.consumers import consolidate, dead, model_notes, model_summaries, record, snapshot
from runlore.consumers import index as index_consumer
from runlore.lookup import index as lookup_index
from runlore.models import choices
from runlore.models import port as models_port
from runlore.settings import Settings
from runlore.store import port as store_port
from runlore.upkeep import mail, pauses, spendalerts
from runlore.worker import concurrency, intake, memories, progress, retry

log = structlog.get_logger("runlore.worker")

RECONCILE_EVERY = 12
"""The index compares its rows with a LIST so many times less often than marks are listed, and less with many heads."""

LOOK_SECONDS_PER_PROJECT = 0.1
"""Marks are listed no more often than this allows: ten LISTs a second, whatever the number of projects."""

RUNNING, WAITING, BLOCKED, FAILED = progress.RUNNING, progress.WAITING, progress.BLOCKED, progress.FAILED
StageStatus, Progress = progress.StageStatus, progress.Progress
STAGES = ("record", "summarize", "consolidate", "snapshot", "index")
"""`summarize` is all that asks a model: summaries, then its consolidation of what the rules have consolidated. It
runs only where there is a model: the rules' summary is part of record."""


@dataclass(frozen=True)
class Summaries:
    """The model that writes summaries and brings them together, where there is one."""

    engine: models_port.Engine
    chosen: choices.Choices
    reload: Callable[[], choices.Choices] | None = None
    """Gives them again, from a file that may have changed."""


class Worker:
    """All stages of one process, over any store and bus."""

    _projects_listed = 0
    """By the last look for marks."""

    def __init__(
        self,
        store: store_port.ObjectStore,
        bus: bus_port.Bus,
        index: lookup_index.Index,
        settings: Settings,
        *,
        stages: Collection[str] = STAGES,
        index_group: str = "index",
        on_progress: Callable[[Progress], None] | None = None,
        stopping: asyncio.Event | None = None,
        summaries: Summaries | None = None,
    ) -> None:
        strange = set(stages) - set(STAGES)
        if strange or not stages:
            raise errors.InvalidInput(f"a worker's stages are {', '.join(STAGES)}; not {', '.join(strange)}")
        self.stages = frozenset(stages) - (set() if summaries else {"summarize"})
        if not self.stages:
            raise errors.InvalidInput(
                "there is no model to summarize with", hint="set RUNLORE_MODEL_KEY, or RUNLORE_MODEL_URL"
            )
        self._store, self._bus, self._settings = store, bus, settings
        runtime = concurrency.runtime(settings.lanes)
        hashing, has_model = redaction.Keys(store), settings.has_model or summaries is not None
        self._record = record.RecordStage(store, bus, runtime=runtime, asks=has_model, hashing=hashing)
        self._summaries = summaries and model_summaries.ModelSummariesStage(
            store,
            bus,
            summaries.engine,
            summaries.chosen,
            runtime=runtime,
            hashing=hashing,
            reload=summaries.reload,
        )
        self._consolidate = consolidate.ConsolidateStage(
            store, bus, reader=revisions.Reader(store), runtime=runtime, joins=has_model
        )
        self._model_notes = summaries and model_notes.ModelNotesStage(
            store, bus, summaries.engine, summaries.chosen, runtime=runtime, reload=summaries.reload
        )
        self._alerts = spendalerts.Alerts(store, mail.relay_of(settings)) if summaries else None
        self._snapshot = snapshot.SnapshotStage(
            store,
            bus,
            folders=settings.workspace_folders,
            cache_dir=settings.cache_dir,
            runtime=runtime,
        )
        self._index, self._index_group = index_consumer.IndexStage(store, index), index_group
        self._pauses, self._on_progress = pauses.Pauses(store), on_progress
        self._asks_due, self._joins_due = set[tuple[str, str]](), set[tuple[str, str]]()
        self.progress = Progress(stages={name: StageStatus() for name in STAGES if name in self.stages})
        self.stopping = stopping or asyncio.Event()
        self._retries = {
            name: retry.Retries(
                name,
                status,
                seconds_max=settings.retry_seconds_max,
                stopping=self.stopping,
                tell=self._tell,
            )
            for name, status in self.progress.stages.items()
        }
        self.intakes: dict[str, intake.Intake] = {}
        """The intake of each stage that runs: what is in hand, and when it last polled."""
        self._consolidating: memories.Memories | None = None
        self._oldest: dict[tuple[str, str], float] | None = None  # Mark of each memory, as of the last look.
        self._indexing, self._salt = asyncio.Lock(), clock.new_id()
        self.caught_up = False
        """Whether the index agreed with a LIST of all heads once."""

    @property
    def bus(self) -> bus_port.Bus:
        return self._bus

    def rollouts_held(self) -> int:
        """Rollouts held for review in all memories, by this worker's index."""
        return self._index.held()

    # --- until stopped ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until `stopping` is set; then finish what is in hand, for at most the drain time."""
        loops = {
            asyncio.create_task(loop(), name=name)
            for name, loop in (
                ("record", self._record_loop),
                ("summarize", self._summarize_loop),
                ("consolidate", self._consolidate_loop),
                ("snapshot", self._snapshot_loop),
                ("index", self._index_loop),
            )
            if name in self.stages
        }
        stopper = asyncio.create_task(self.stopping.wait())
        try:
            await asyncio.wait({stopper, *loops}, return_when=asyncio.FIRST_COMPLETED)
            self.stopping.set()
            _, late = await asyncio.wait(loops, timeout=self._settings.drain_seconds_max)
            for task in late:
                # What is cancelled here comes again: its offset was not committed, its marks are there.
                task.cancel()
            results = await asyncio.gather(*loops, return_exceptions=True)
        finally:
            stopper.cancel()
            for task in loops:
                task.cancel()
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _record_loop(self) -> None:
        await self._intake("record", pipeline.RUNS, self._recorded).run()

    async def _snapshot_loop(self) -> None:
        await self._intake("snapshot", pipeline.RUNS, self._placed).run()

    async def _consolidate_loop(self) -> None:
        self._consolidating = self._memories(
            "consolidate",
            self._left_standing,
            self._consolidated,
            looked=lambda found: None,
            least_seconds=self._look_seconds,
        )
        # Bells only say where to look: they are committed as they come, and a memory takes as long as it takes.
        taking_in = self._intake("consolidate", pipeline.CHANGED, self._note_bells, mixed=True)
        await tasks.together([taking_in.run(), self._consolidating.run()])

    async def _summarize_loop(self) -> None:
        assert self._alerts is not None
        # Found by a LIST alone: an answer takes longer than the time between two of them.
        asking = self._memories("summarize", self._for_a_model, self._ask, wakes_at=self._model_wakes_at)
        await tasks.together([asking.run(), self._alerts.run(self.stopping)])

    async def _index_loop(self) -> None:
        # A group of its own for each replica: in one they would share the doorbells out between them.
        group = self._index_group
        taking_in = self._intake("index", pipeline.CHANGED, self._apply, group=group, mixed=True)
        await tasks.together([taking_in.run(), self._reconcile_loop()])

    def _intake(
        self, stage: str, topic: pipeline.Topic, process: intake.Process, *, group: str = "", **more: Any
    ) -> intake.Intake:
        self.intakes[stage] = intake.Intake(
            self._bus,
            self._settings,
            self._retries[stage],
            group=group or stage,
            topic=topic.name,
            process=process,
            stopping=self.stopping,
            **more,
        )
        return self.intakes[stage]

    def _memories(
        self,
        stage: str,
        marked: Callable[[], Awaitable[Iterable[memories.One]]],
        work: Callable[[str, str], Awaitable[bool]],
        **more: Any,
    ) -> memories.Memories:
        return memories.Memories(
            self._retries[stage],
            marked=marked,
            work=lambda project, memory: self._work_memory(stage, (project, memory), work),
            stopping=self.stopping,
            interval_seconds=self._settings.marks_interval_seconds,
            **{"looked": lambda found: self._forget_but(stage, found), **more},
        )

    async def _reconcile_loop(self) -> None:
        while not self.stopping.is_set():
            await self._attempt("index", "list", self._reconcile)
            listed = clock.monotonic()
            while (
                not self.stopping.is_set() and (left := listed + self._list_seconds() - clock.monotonic()) > 0
            ):
                # Looked at again meanwhile: bells may stop coming, and the file may be deleted.
                await tasks.any_of(self.stopping, seconds_max=min(left, self._list_seconds_min))

    @property
    def _list_seconds_min(self) -> float:
        return self._settings.marks_interval_seconds * RECONCILE_EVERY

    def _list_seconds(self) -> float:
        """How long it may be from one LIST of all heads to the next."""
        least = self._list_seconds_min
        if self.progress.stages["index"].state != RUNNING:
            return least  # No bell is heard, or what they told was not taken in.
        return self._index.list_seconds(least=least, most=self._settings.heads_interval_seconds_max)

    # --- until there is nothing left ----------------------------------------------------------------------

    async def drain(self) -> None:
        """Work until every message is recorded and every mark is worked, then return.

        Raises what stops it: with `--once` somebody is waiting for an end, so faults are tried a few times
        and then told. An interrupt is safe at any point.
        """
        if "record" in self.stages:
            await self._drain_runs("record", self._take)
        if "snapshot" in self.stages:
            await self._drain_runs("snapshot", self._place)
        failed: Exception | None = None
        # A model that is away stops no consolidation: the rules stand.
        for stage, marked, work in (
            ("summarize", self._asked, self._summarized),
            ("consolidate", self._marked, self._consolidated),
            ("summarize", self._joinable, self._joined),
        ):
            if stage not in self.stages:
                continue
            for project, memory in sorted(await self._tries(stage, marked)):
                if self.stopping.is_set():
                    return
                try:
                    while await self._tries(stage, lambda work=work, p=project, m=memory: work(p, m)):
                        if self.stopping.is_set():
                            return
                except Exception as exc:
                    # One memory that can not go on stops no other.
                    failed = failed or exc
        if self._alerts is not None and "summarize" in self.stages:
            await self._alerts.check()
        if "index" in self.stages:
            await self._tries("index", self._index.reconcile)
        if failed is not None:
            raise failed

    async def _drain_runs(self, stage: str, take: Callable[..., Awaitable[None]]) -> None:
        consumer = await self._bus.consumer(group=stage, topics=[pipeline.RUNS.name])
        try:
            while not self.stopping.is_set():
                messages = await self._tries(stage, lambda: self._poll(consumer, timeout_seconds=0.0))
                if not messages:
                    break
                await self._tries(stage, lambda messages=messages: take(consumer, messages))
        finally:
            await consumer.close()

    # --- one step each ------------------------------------------------------------------------------------

    async def _poll(
        self, consumer: bus_port.Consumer, *, timeout_seconds: float | None = None
    ) -> list[bus_port.Message]:
        wait = self._settings.poll_timeout_seconds if timeout_seconds is None else timeout_seconds
        return await consumer.poll(records_max=self._settings.poll_records_max, timeout_seconds=wait)

    async def _take(self, consumer: bus_port.Consumer, messages: list[bus_port.Message]) -> None:
        processed = await self._recorded(messages)
        await consumer.commit(processed.offsets)

    async def _place(self, consumer: bus_port.Consumer, messages: list[bus_port.Message]) -> None:
        processed = await self._placed(messages)
        await consumer.commit(processed.offsets)

    async def _recorded(self, messages: Sequence[bus_port.Message]) -> record.Processed:
        await self._pauses.check("record")
        processed = await self._record.process(messages)
        counts = self.progress
        for state in (record.RECORDED, record.ALREADY, record.SUPERSEDED, record.ERASED, record.DEAD):
            setattr(counts, state, getattr(counts, state) + processed.count(state))
        counts.stages["record"].done += len(messages)
        dead.tell(log, "record", ((one.message, one.error) for one in processed.outcomes))
        telemetry.worked("record", messages, [one.state for one in processed.outcomes])
        self._tell()
        return processed

    async def _placed(self, messages: Sequence[bus_port.Message]) -> record.Processed:
        await self._pauses.check("snapshot")
        processed = await self._snapshot.process(messages)
        counts = self.progress
        counts.snapshots += processed.count(snapshot.MOVED)
        counts.branches += processed.count(snapshot.BRANCHED)
        counts.dead += processed.count(record.DEAD)
        counts.stages["snapshot"].done += len(messages)
        dead.tell(log, "snapshot", ((one.message, one.error) for one in processed.outcomes))
        telemetry.worked("snapshot", messages, [one.state for one in processed.outcomes])
        self._tell()
        return processed

    async def _note_bells(self, messages: Sequence[bus_port.Message]) -> None:
        bells = [bell for message in messages if (bell := index_consumer.bell(message))]
        assert self._consolidating is not None
        self._consolidating.ring((bell.project, bell.memory) for bell in bells if bell.kind == "mark")

    async def _apply(self, messages: Sequence[bus_port.Message]) -> None:
        async with self._indexing:
            try:
                await self._index.process(messages)
            except errors.Fatal as exc:
                # One memory's corruption stops no other's rows; the next LIST looks again.
                self._retries["index"].troubles.fail("list", FAILED, exc)
                log.error("stage failed", stage="index", kind=exc.kind, error=str(exc))
        self.progress.stages["index"].done += len(messages)
        telemetry.worked("index", messages, ())

    async def _reconcile(self) -> None:
        async with self._indexing:
            await self._index.reconcile()
            self.caught_up = True

    async def _marked(self) -> list[memories.One]:
        """Every memory that has a mark, the longest waiting first."""
        standing = await marks.standing(self._store)
        telemetry.marks_standing([one for rows in standing.values() for one in rows])
        return sorted(standing, key=lambda one: (min(standing[one]), one))

    async def _left_standing(self) -> list[memories.One]:
        """Every memory whose oldest mark stood at the look before, too; at the first look, every one that has a mark.

        What is newer has rung, and is the work of who heard it. With all of it, every worker would work every memory
        with the others: each writes a revision, and the head takes one.
        """
        projects = await marks.projects(self._store)
        standing = await marks.standing(self._store, among=projects)
        telemetry.marks_standing([one for rows in standing.values() for one in rows])
        before, self._oldest = self._oldest, {one: min(rows) for one, rows in standing.items()}
        self._projects_listed = len(projects)
        self._forget_but("consolidate", set(standing))
        found = [one for one, at in self._oldest.items() if before is None or before.get(one) == at]
        # In an order of its own: workers that take in the same order meet at each memory.
        return sorted(found, key=lambda one: hashlib.sha256("/".join((self._salt, *one)).encode()).digest())

    def _look_seconds(self) -> float:
        """How long it must be between two looks: each takes a LIST for each project, and bells bring what is new."""
        most = self._settings.heads_interval_seconds_max
        return min(most, self._projects_listed * LOOK_SECONDS_PER_PROJECT)

    async def _consolidated(self, project: str, memory: str) -> bool:
        """One pass over a memory's marks; whether there are more."""
        # Looked at before each pass; the marks of a paused memory stand until it is resumed.
        if await self._pauses.of("consolidate", project, memory) is not None:
            return False
        with telemetry.processing("consolidate", "marks"):
            done = await self._consolidate.work(project, memory)
        telemetry.consolidated(done.revision is not None, len(done.covered), len(done.held))
        progress = self.progress
        progress.revisions += done.revision is not None
        progress.covered += len(done.covered)
        progress.held += len(done.held)
        progress.stages["consolidate"].done += done.marks_deleted
        for rollout in done.held:
            log.warning("held for review", project=project, memory=memory, rollout=rollout)
        self._tell()
        return done.more

    async def _asked(self) -> set[memories.One]:
        """Every memory in which what waits for a model's summary is due."""
        assert self._summaries is not None
        return await self._summaries.model.due()

    async def _summarized(self, project: str, memory: str) -> bool:
        """One pass over a memory's asks; whether there are more."""
        assert self._summaries is not None
        if await self._pauses.of("summarize", project, memory) is not None:
            return False
        with telemetry.processing("summarize", "asks"):
            done = await self._summaries.work(project, memory)
        self.progress.stages["summarize"].done += done.asks_deleted
        self._tell()
        return done.more

    async def _joinable(self) -> set[memories.One]:
        """Every memory in which statements that a model may bring together are due."""
        assert self._model_notes is not None
        return await self._model_notes.model.due()

    async def _joined(self, project: str, memory: str) -> bool:
        """One pass over a memory's joins; whether there are more."""
        assert self._model_notes is not None
        # It asks a model, and it moves the memory's head: a pause of either holds it.
        for stage in ("summarize", "consolidate"):
            if await self._pauses.of(stage, project, memory) is not None:
                return False
        with telemetry.processing("summarize", "joins"):
            done = await self._model_notes.work(project, memory)
        telemetry.consolidated(done.revision is not None, 0, 0)
        self.progress.revisions += done.revision is not None
        self.progress.stages["summarize"].done += done.joins_deleted
        self._tell()
        return done.more

    async def _for_a_model(self) -> list[memories.One]:
        self._asks_due, self._joins_due = await self._asked(), await self._joinable()
        return sorted(self._asks_due | self._joins_due)

    def _model_wakes_at(self) -> dt.datetime | None:
        assert self._summaries is not None and self._model_notes is not None
        found = (self._summaries.model.next_at, self._model_notes.model.next_at)
        return min((one for one in found if one is not None), default=None)

    async def _ask(self, project: str, memory: str) -> bool:
        # Each has a policy of its own: one that is due makes not the other so.
        one = (project, memory)
        if one in self._asks_due:
            if await self._summarized(project, memory):
                return True
            self._asks_due.discard(one)
        return one in self._joins_due and not self.stopping.is_set() and await self._joined(project, memory)

    async def _work_memory(
        self, stage: str, one: memories.One, work: Callable[[str, str], Awaitable[bool]]
    ) -> bool:
        """`work`; what is wrong with this memory alone is told, and stops no other.

        Its marks stand, so the next schedule looks again.
        """
        stuck = self.progress.stages[stage].memories
        name = "/".join(one)
        try:
            has_more = await work(*one)
            stuck.pop(name, None)
            return has_more
        except consolidate.ReviewFull as exc:
            self._stuck(stage, name, exc)
        except (errors.Retryable, errors.Blocked, OSError):
            raise
        except Exception as exc:
            self._stuck(stage, name, exc)
        return False

    def _stuck(self, stage: str, name: str, exc: Exception) -> None:
        stuck = self.progress.stages[stage].memories
        why = f"{getattr(exc, 'kind', 'internal')}: {exc or type(exc).__name__}"
        if stuck.get(name) != why:
            log.error(
                "memory can not go on",
                memory=name,
                stage=stage,
                cause=why,
                exc_info=not isinstance(exc, errors.RunloreError),
            )
        stuck[name] = why

    def _forget_but(self, stage: str, marked: set[memories.One]) -> None:
        """Forget what was wrong with memories for which nothing is left to do."""
        stuck = self.progress.stages[stage].memories
        for name in stuck.keys() - {f"{project}/{memory}" for project, memory in marked}:
            del stuck[name]

    def _tell(self) -> None:
        if self._on_progress:
            self._on_progress(self.progress)

    # --- faults -------------------------------------------------------------------------------------------

    async def _attempt(self, stage: str, what: str, step: Callable[[], Awaitable[Any]]) -> Any:
        """`step`, again and again while a fault may pass; None once the worker stops.

        A memory's own corruption (`Fatal`) is told and left: the other memories go on, and the next
        schedule looks again.
        """
        try:
            return await self._retries[stage].run(what, step)
        except errors.Fatal:
            return None

    async def _tries(self, stage: str, step: Callable[[], Awaitable[Any]]) -> Any:
        """`step`, a few times while a fault may pass; then its error."""
        status = self.progress.stages[stage]
        return await retry.few_tries(step, tell=lambda exc: status.fail(WAITING, exc))
