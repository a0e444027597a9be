"""The loops of a worker: one per stage, each with its own cause when it can not go on.

A failing stage stops no other: a passing fault is retried in place with growing waits (the order of a key is
kept), a missing permission pauses the stage until a person acts, an invariant that does not hold stops it.
Nothing is dead-lettered for a fault of the store, the bus or the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import structlog

from runlore import clock, errors, pipeline
from runlore.bus import port as bus_port
from runlore.commit import marks, revisions
from runlore.consumers import consolidate, record, snapshot
from runlore.consumers import index as index_consumer
from runlore.lookup import index as lookup_index
from runlore.settings import Settings
from runlore.store import port as store_port
from runlore.worker import concurrency

log = structlog.get_logger("runlore.worker")

TRIES_ONCE_MAX = 6
"""How often `--once` tries a stage that a passing fault stops, before it gives up and says so."""
RETRY_SECONDS_MIN = 0.1

RUNNING, WAITING, BLOCKED, FAILED = "running", "waiting", "blocked", "failed"


@dataclass
class StageStatus:
    """How a stage is: what `runlore status` shows, with the cause in words."""

    state: str = RUNNING
    cause: str | None = None
    since: str | None = None
    tries: int = 0
    done: int = 0
    """Messages, marks or heads worked since the start."""
    memories: dict[str, str] = field(default_factory=dict)
    """Memories that can not go on, while the stage does: `project/memory` → why."""

    def ok(self) -> None:
        if self.state != RUNNING:
            self.state, self.cause, self.since, self.tries = RUNNING, None, None, 0

    def fail(self, state: str, error: BaseException) -> None:
        if self.state == RUNNING:
            self.since = clock.now_iso()
        self.state, self.tries = state, self.tries + 1
        self.cause = f"{getattr(error, 'kind', type(error).__name__)}: {error}"


@dataclass
class Progress:
    """Counts since the start, for a progress bar and for `--json`."""

    recorded: int = 0
    already: int = 0
    superseded: int = 0
    dead: int = 0
    revisions: int = 0
    covered: int = 0
    held: int = 0
    snapshots: int = 0
    """Versions that became a line's head."""
    branches: int = 0
    stages: dict[str, StageStatus] = field(
        default_factory=lambda: {
            name: StageStatus() for name in ("record", "consolidate", "snapshot", "index")
        }
    )


class Worker:
    """All stages of one process, over any store and bus."""

    def __init__(
        self,
        store: store_port.ObjectStore,
        bus: bus_port.Bus,
        index: lookup_index.Index,
        settings: Settings,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        stopping: asyncio.Event | None = None,
    ) -> None:
        self._store, self._bus, self._settings = store, bus, settings
        runtime = concurrency.runtime(settings.lanes)
        self._record = record.RecordStage(store, bus, runtime=runtime)
        self._consolidate = consolidate.ConsolidateStage(
            store, bus, reader=revisions.Reader(store), runtime=runtime
        )
        self._snapshot = snapshot.SnapshotStage(
            store, bus, folders=settings.workspace_folders, runtime=runtime
        )
        self._index = index_consumer.IndexStage(store, index)
        self._on_progress = on_progress
        self.progress = Progress()
        self.stopping = stopping or asyncio.Event()

    # --- until stopped ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until `stopping` is set; then finish what is in hand, for at most the drain time."""
        loops = {
            asyncio.create_task(loop(), name=name)
            for name, loop in (
                ("record", self._record_loop),
                ("consolidate", self._consolidate_loop),
                ("snapshot", self._snapshot_loop),
                ("index", self._index_loop),
            )
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
        consumer = await self._bus.consumer(group="record", topics=[pipeline.RUNS.name])
        try:
            while not self.stopping.is_set():
                messages = await self._attempt("record", lambda: self._poll(consumer))
                if messages:
                    await self._attempt("record", lambda messages=messages: self._take(consumer, messages))
        finally:
            await consumer.close()

    async def _snapshot_loop(self) -> None:
        consumer = await self._bus.consumer(group="snapshot", topics=[pipeline.RUNS.name])
        try:
            while not self.stopping.is_set():
                messages = await self._attempt("snapshot", lambda: self._poll(consumer))
                if messages:
                    await self._attempt("snapshot", lambda messages=messages: self._place(consumer, messages))
        finally:
            await consumer.close()

    async def _consolidate_loop(self) -> None:
        consumer = await self._bus.consumer(group="consolidate", topics=[pipeline.CHANGED.name])
        listed = -self._settings.marks_interval_seconds
        try:
            while not self.stopping.is_set():
                rung = await self._attempt("consolidate", lambda: self._bells(consumer))
                due: set[tuple[str, str]] = rung or set()
                if clock.monotonic() - listed >= self._settings.marks_interval_seconds:
                    marked = await self._attempt("consolidate", self._marked) or set()
                    self._forget_but(marked)
                    due |= marked
                    listed = clock.monotonic()
                for project, memory in sorted(due):
                    if self.stopping.is_set():
                        break
                    await self._attempt("consolidate", lambda p=project, m=memory: self._work_memory(p, m))
        finally:
            await consumer.close()

    async def _index_loop(self) -> None:
        consumer = await self._bus.consumer(group="index", topics=[pipeline.CHANGED.name])
        listed = -self._settings.marks_interval_seconds * 12
        try:
            while not self.stopping.is_set():
                if clock.monotonic() - listed >= self._settings.marks_interval_seconds * 12:
                    await self._attempt("index", self._index.reconcile)
                    listed = clock.monotonic()
                messages = await self._attempt("index", lambda: self._poll(consumer))
                if messages:
                    await self._attempt("index", lambda messages=messages: self._apply(consumer, messages))
        finally:
            await consumer.close()

    # --- until there is nothing left ----------------------------------------------------------------------

    async def drain(self) -> None:
        """Work until every message is recorded and every mark is worked, then return.

        Raises what stops it: with `--once` somebody is waiting for an end, so faults are tried a few times
        and then told. An interrupt is safe at any point.
        """
        consumer = await self._bus.consumer(group="record", topics=[pipeline.RUNS.name])
        try:
            while not self.stopping.is_set():
                messages = await self._tries("record", lambda: self._poll(consumer, timeout_seconds=0.0))
                if not messages:
                    break
                await self._tries("record", lambda messages=messages: self._take(consumer, messages))
        finally:
            await consumer.close()
        await self._drain_snapshots()
        failed: Exception | None = None
        for project, memory in sorted(await self._tries("consolidate", self._marked)):
            if self.stopping.is_set():
                return
            try:
                await self._tries("consolidate", lambda p=project, m=memory: self._work_marks(p, m))
            except Exception as exc:
                # One memory that can not go on stops no other.
                failed = failed or exc
        await self._tries("index", self._index.reconcile)
        if failed is not None:
            raise failed

    async def _drain_snapshots(self) -> None:
        consumer = await self._bus.consumer(group="snapshot", topics=[pipeline.RUNS.name])
        try:
            while not self.stopping.is_set():
                messages = await self._tries("snapshot", lambda: self._poll(consumer, timeout_seconds=0.0))
                if not messages:
                    break
                await self._tries("snapshot", lambda messages=messages: self._place(consumer, messages))
        finally:
            await consumer.close()

    # --- one step each ------------------------------------------------------------------------------------

    async def _poll(
        self, consumer: bus_port.Consumer, *, timeout_seconds: float | None = None
    ) -> list[bus_port.Message]:
        wait = self._settings.poll_timeout_seconds if timeout_seconds is None else timeout_seconds
        return await consumer.poll(records_max=self._settings.poll_records_max, timeout_seconds=wait)

    async def _take(self, consumer: bus_port.Consumer, messages: list[bus_port.Message]) -> None:
        processed = await self._record.process(messages)
        await consumer.commit(processed.offsets)
        progress = self.progress
        for state in (record.RECORDED, record.ALREADY, record.SUPERSEDED, record.DEAD):
            setattr(progress, state, getattr(progress, state) + processed.count(state))
        progress.stages["record"].done += len(messages)
        _log_dead("record", processed)
        self._tell()

    async def _place(self, consumer: bus_port.Consumer, messages: list[bus_port.Message]) -> None:
        processed = await self._snapshot.process(messages)
        await consumer.commit(processed.offsets)
        progress = self.progress
        progress.snapshots += processed.count(snapshot.MOVED)
        progress.branches += processed.count(snapshot.BRANCHED)
        progress.dead += processed.count(record.DEAD)
        progress.stages["snapshot"].done += len(messages)
        _log_dead("snapshot", processed)
        self._tell()

    async def _bells(self, consumer: bus_port.Consumer) -> set[tuple[str, str]]:
        messages = await self._poll(consumer)
        bells = [bell for message in messages if (bell := index_consumer.bell(message))]
        await consumer.commit({message.at: message.offset + 1 for message in messages})
        return {(bell.project, bell.memory) for bell in bells if bell.kind == "mark"}

    async def _apply(self, consumer: bus_port.Consumer, messages: list[bus_port.Message]) -> None:
        await self._index.process(messages)
        await consumer.commit({message.at: message.offset + 1 for message in messages})
        self.progress.stages["index"].done += len(messages)

    async def _marked(self) -> set[tuple[str, str]]:
        """Every memory that has a mark."""
        return await marks.marked(self._store)

    async def _work_marks(self, project: str, memory: str) -> None:
        while True:
            done = await self._consolidate.work(project, memory)
            progress = self.progress
            progress.revisions += done.revision is not None
            progress.covered += len(done.covered)
            progress.held += len(done.held)
            progress.stages["consolidate"].done += done.marks_deleted
            for rollout in done.held:
                log.warning("held for review", project=project, memory=memory, rollout=rollout)
            self._tell()
            if not done.more or self.stopping.is_set():
                return

    async def _work_memory(self, project: str, memory: str) -> None:
        """`_work_marks`; what is wrong with this memory alone is told, and stops no other.

        Its marks stand, so the next schedule looks again.
        """
        stuck = self.progress.stages["consolidate"].memories
        name = f"{project}/{memory}"
        try:
            await self._work_marks(project, memory)
            stuck.pop(name, None)
        except consolidate.ReviewFull as exc:
            self._stuck(name, exc)
        except (errors.Retryable, errors.Blocked, OSError):
            raise
        except Exception as exc:
            self._stuck(name, exc)

    def _stuck(self, name: str, exc: Exception) -> None:
        stuck = self.progress.stages["consolidate"].memories
        why = f"{getattr(exc, 'kind', 'internal')}: {exc or type(exc).__name__}"
        if stuck.get(name) != why:
            log.error(
                "memory can not go on",
                memory=name,
                cause=why,
                exc_info=not isinstance(exc, errors.RunloreError),
            )
        stuck[name] = why

    def _forget_but(self, marked: set[tuple[str, str]]) -> None:
        """Forget what was wrong with memories for which nothing is left to do."""
        stuck = self.progress.stages["consolidate"].memories
        for name in stuck.keys() - {f"{project}/{memory}" for project, memory in marked}:
            del stuck[name]

    def _tell(self) -> None:
        if self._on_progress:
            self._on_progress(self.progress)

    # --- faults -------------------------------------------------------------------------------------------

    async def _attempt(self, stage: str, step: Callable[[], Awaitable[Any]]) -> Any:
        """`step`, again and again while a fault may pass; None once the worker stops.

        A memory's own corruption (`Fatal`) is told and left: the other memories go on, and the next
        schedule looks again.
        """
        status = self.progress.stages[stage]
        tries = 0
        while True:
            try:
                result = await step()
                status.ok()
                return result
            except errors.Fatal as exc:
                status.fail(FAILED, exc)
                log.error("stage failed", stage=stage, kind=exc.kind, error=str(exc))
                if stage in ("record", "snapshot"):  # They must not pass a message that had no effect.
                    raise
                return None
            except errors.Blocked as exc:
                status.fail(BLOCKED, exc)
                tries = max(tries, 8)
            except (errors.RunloreError, OSError) as exc:
                status.fail(WAITING, exc)
            tries += 1
            log.warning(
                "stage waits", stage=stage, state=status.state, cause=status.cause, tries=status.tries
            )
            self._tell()
            wait = min(self._settings.retry_seconds_max, RETRY_SECONDS_MIN * 2 ** min(tries, 16))
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), wait * (0.5 + clock.jitter() / 2))
            if self.stopping.is_set():
                return None

    async def _tries(self, stage: str, step: Callable[[], Awaitable[Any]]) -> Any:
        """`step`, a few times while a fault may pass; then its error."""
        for attempt in range(TRIES_ONCE_MAX):
            try:
                return await step()
            except errors.Retryable as exc:
                self.progress.stages[stage].fail(WAITING, exc)
                if attempt == TRIES_ONCE_MAX - 1:
                    raise
                await clock.sleep(RETRY_SECONDS_MIN * 2**attempt)


def _log_dead(stage: str, processed: record.Processed) -> None:
    for outcome in processed.outcomes:
        if outcome.error is not None:
            at = outcome.message
            log.warning(
                "dead letter",
                stage=stage,
                reason=outcome.error.kind,
                topic=at.topic,
                partition=at.partition,
                offset=at.offset,
            )
