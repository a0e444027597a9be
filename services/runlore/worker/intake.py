"""The intake of a stage that reads a topic: poll, work in batches, commit what is done. For every bus.

    poll ─▶ lanes (by project, by key) ─▶ batches, each of one project ─▶ effects ─▶ low-water mark ─▶ commit
                 └── beyond the queue: parked, read again when its turn comes ──┘

Polls go on while work is in hand, so a batch that is tried again for an hour keeps the group's membership. A stage
takes batches because it commits its effects by batch (one mark per memory, one move of a rollout's head), so a second
batch of a project begins only when it is full or the first is slow: at saturation batches are large, when idle nothing
waits.

No project starves another. At most `BATCHES_MAX` batches are of one project, and there is room for one more than that:
a project that has nothing at work need not wait for another's batch. Where several fill the room, the next place is
that of the project with the least at work (`offsets.Lanes`). A batch that fails, for whatever reason, waits beside the
others, holds no place until it is tried again, and holds up its own project alone; those that are tried again have
half of the room at most. Only what holds the stage itself (`errors.Blocked.of_stage`: a pause) stops them all. So
another's messages delay a project's by being read, not by being worked, while `parked_records_max` is not reached.

A rebalance takes partitions back: no new work begins on them, what is in hand has `rebalance_seconds_max` to end, what
is done is committed, and the rest comes again elsewhere. `offsets.Lanes` keeps the promises about order and offsets;
this is the shell around it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

import structlog

from runlore import clock, errors, telemetry
from runlore.bus import port as bus_port
from runlore.settings import Settings
from runlore.worker import offsets, retry

log = structlog.get_logger("runlore.worker")

BATCHES_MAX = 3
"""Batches of one project in hand at a time: one slow rollout does not stall the others."""
BATCH_BYTES_MAX = 8 * 1024 * 1024
FOLLOW_SECONDS = 0.25
"""How long a batch runs before one that is not full may begin beside it."""
COMMIT_SECONDS = 1.0
"""How often offsets are committed while there is work; when there is none, at once."""
REJOIN_SECONDS = 60.0
"""How long polls may fail before the group is joined anew: some of a client's faults end only with the client."""
LAST_COMMIT_SECONDS_MAX = 5.0
"""How long the commit of a rebalance or of the end may take; without it messages come again."""

PROJECTS_TOLD_MAX = 20
"""Projects that a stage names as waiting."""

Process = Callable[[Sequence[bus_port.Message]], Awaitable[object]]


@dataclass(frozen=True)
class _Wait:
    """A batch that failed, until it is tried again."""

    batch: offsets.Batch
    tries: int
    until: float
    cause: str
    is_stuck: bool
    """Whether a person has to act."""
    of_stage: bool


def _limits(settings: Settings, *, parked_max: int) -> offsets.Limits:
    """The queue has half of the bytes; the other half is for what is read again."""
    return offsets.Limits(
        records_max=settings.queue_records_max,
        bytes_max=settings.queue_bytes_max // 2,
        parked_max=parked_max,
        batch_bytes_max=min(BATCH_BYTES_MAX, settings.queue_bytes_max // 8),
        jobs_max=settings.lanes,
    )


class Intake:
    """One member of a stage's consumer group, from joining to leaving."""

    def __init__(
        self,
        bus: bus_port.Bus,
        settings: Settings,
        retries: retry.Retries,
        *,
        group: str,
        topic: str,
        process: Process,
        stopping: asyncio.Event,
        mixed: bool = False,
        whole: bool = False,
    ) -> None:
        """`mixed`: projects share batches, one at a time; for what is quick, and cheaper together. `whole`: the topic
        is one project's. Either way what can not pass ends the stage.
        """
        self._bus, self._settings, self._retries = bus, settings, retries
        self._group, self._topic, self._process = group, topic, process
        self._stopping, self._mixed, self._is_apart = stopping, mixed, not (mixed or whole)
        self._consumer: bus_port.Consumer | None = None
        project_of = (lambda message: "") if whole else offsets.project_of
        self._parked_max = 0 if whole else settings.parked_records_max
        limits = _limits(settings, parked_max=self._parked_max)
        self._lanes = offsets.Lanes(limits, mixed=mixed, project_of=project_of)
        self._running: dict[asyncio.Task, tuple[offsets.Batch, _Wait | None]] = {}
        """Batches at work, and why each is tried again."""
        self._waiting: dict[int, _Wait] = {}
        """Batches that failed, by their number, until they are tried again."""
        self._began: dict[str, float] = {}
        """When each project's last batch began."""
        self._timer: asyncio.TimerHandle | None = None
        self._paused = False
        self._over = False
        self._ended: asyncio.Future = asyncio.get_running_loop().create_future()
        self._moved = asyncio.Event()
        """Set when a batch ends."""
        self._commit_now = asyncio.Event()
        self._committing = asyncio.Lock()
        self.rebalances = 0
        self.joined = False
        """Whether the group has given this member its share once, if only of nothing."""
        self.polled_at = clock.monotonic()
        """When the last poll ended, well or not: what a liveness probe asks. A bus that is away is no reason to
        restart."""
        self._polled_well_at = self.polled_at

    @property
    def records(self) -> int:
        """Messages in memory: queued, and in batches."""
        return self._lanes.records

    @property
    def size(self) -> int:
        """Bytes of the values of the messages in memory."""
        return self._lanes.size

    @property
    def parked(self) -> int:
        """Messages that were read past, and wait on the bus."""
        return self._lanes.parked

    @property
    def assigned_partitions(self) -> frozenset[bus_port.TopicPartition]:
        """The partitions that this member reads now; none before it has joined."""
        return self._consumer.assignment() if self._consumer is not None else frozenset()

    async def run(self) -> None:
        """Work until `stopping` is set, then end what is in hand, commit and leave.

        Raises what ends a stage: `errors.Fatal`, or an error that nobody foresaw, unless it came up in the work of one
        project, where others have theirs. Cancelled, it gives up
        what is in hand: its offsets are not committed, so it comes again.
        """
        self._consumer = await self._retries.run("join", self._join)
        if self._consumer is None:
            return
        loops = [asyncio.create_task(loop()) for loop in (self._poll_loop, self._commit_loop)]
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({stop, self._ended, *loops}, return_when=asyncio.FIRST_COMPLETED)
            self._over = True
            self._retries.wake()
            if not self._ended.done() and self._running:
                await asyncio.wait(set(self._running))
        finally:
            self._over = True
            await self._leave(stop, loops)
        for one in (self._ended, *loops):
            if one.done() and not one.cancelled() and (error := one.exception()) is not None:
                raise error

    async def _join(self) -> bus_port.Consumer:
        return await self._bus.consumer(group=self._group, topics=[self._topic], listener=self)

    async def _leave(self, stop: asyncio.Task, loops: Sequence[asyncio.Task]) -> None:
        """Give up what is still in hand, commit what is done, leave the group."""
        stop.cancel()
        if self._timer is not None:
            self._timer.cancel()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._give_up_waiting(lambda wait: True)
        loops[1].cancel()
        await self._last_commit()
        # A poll that waits ends with its consumer; only then may its loop be cancelled.
        if self._consumer is not None:
            await self._consumer.close()
        loops[0].cancel()
        await asyncio.gather(stop, *loops, return_exceptions=True)

    # --- polling ------------------------------------------------------------------------------------------

    async def _poll_loop(self) -> None:
        while not self._over:
            messages = await self._retries.run("poll", self._poll, wanted=lambda: not self._over)
            self._lanes.add(messages or ())
            self._advance()
            await asyncio.sleep(0)  # A poll that finds messages need not have let anybody else run.

    async def _poll(self) -> list[bus_port.Message]:
        settings = self._settings
        if self._consumer is None:
            self._consumer = await self._join()
        try:
            messages = await self._consumer.poll(
                records_max=min(settings.poll_records_max, settings.queue_records_max),
                timeout_seconds=settings.poll_timeout_seconds,
            )
        except errors.RunloreError:
            if clock.monotonic() - self._polled_well_at > REJOIN_SECONDS and not self._over:
                self._polled_well_at = clock.monotonic()
                await self._part()
            raise
        finally:
            self.polled_at = clock.monotonic()
        self._polled_well_at = self.polled_at
        return messages

    async def _part(self) -> None:
        """Leave the group, to join it anew: what is in hand and not done by then comes again."""
        consumer = self._consumer
        if consumer is not None:
            log.warning("stage joins its group anew", stage=self._retries.stage)
            await self.revoked(consumer.assignment())
            self._consumer = None
            await consumer.close()

    def _balance(self) -> None:
        """Pause all partitions over the limits or while the stage is held; resume them at half of that."""
        if self._consumer is None:
            return
        most = self._fullness()
        wanted = self._is_held or most >= 1 or (self._paused and most > 0.5)
        if wanted != self._paused:
            self._paused = wanted
            partitions = self._consumer.assignment()
            if wanted:
                self._consumer.pause(partitions)
            else:
                self._consumer.resume(partitions)

    def _fullness(self) -> float:
        settings, lanes = self._settings, self._lanes
        if self._parked_max:
            return lanes.parked / self._parked_max
        return max(lanes.records / settings.queue_records_max, lanes.size / settings.queue_bytes_max)

    # --- batches ------------------------------------------------------------------------------------------

    @property
    def _is_held(self) -> bool:
        """Whether the stage itself waits for a person, and not only some of its projects."""
        return any(wait.of_stage for wait in self._waits())

    def _waits(self) -> list[_Wait]:
        """What failed and has not succeeded since, also while it is tried again."""
        return [*self._waiting.values(), *(wait for _, wait in self._running.values() if wait is not None)]

    def _advance(self) -> None:
        """Begin every batch that may begin now."""
        if self._over:
            return
        while (begun := self._next()) is not None:
            batch, wait = begun
            task = asyncio.create_task(self._work(batch, wait.tries if wait else 0))
            self._running[task] = begun
            self._began |= dict.fromkeys(batch.projects, clock.monotonic())
            task.add_done_callback(self._batch_ended)
        self._balance()
        self._look_again()
        if not self._running:
            self._commit_now.set()

    def _next(self) -> tuple[offsets.Batch, _Wait | None] | None:
        """The next batch, and why it is tried again; None where none may begin now."""
        if (again := self._due()) is not None:
            return again.batch, again
        if self._is_held or not self._has_room():
            return None
        batch = self._lanes.take(self._settings.poll_records_max, self._may_have_one_more)
        return (batch, None) if batch is not None else None

    def _has_room(self) -> bool:
        if self._mixed:
            return not self._running
        batches = [batch for batch, _ in self._running.values()]
        jobs = sum(batch.jobs for batch in batches)
        size = sum(entry.size for batch in batches for entry in batch.entries)
        return jobs < (BATCHES_MAX + 1) * self._settings.lanes and size <= self._settings.queue_bytes_max // 2

    def _may_have_one_more(self, project: offsets.Project) -> bool:
        if project.batches >= (1 if self._mixed else BATCHES_MAX) or self._is_stuck(project.name):
            return False
        if project.ready >= self._settings.poll_records_max:
            return True
        return clock.monotonic() - self._began.get(project.name, 0.0) >= FOLLOW_SECONDS

    def _is_stuck(self, project: str) -> bool:
        """Whether a batch of it waits for a person: the next would meet the same."""
        return any(wait.is_stuck and project in wait.batch.projects for wait in self._waits())

    def _due(self) -> _Wait | None:
        """The batch that has waited longest for being tried again."""
        if not self._waiting or (self._mixed and self._running):
            return None
        wait = min(self._waiting.values(), key=lambda one: one.until)
        again = sum(batch.jobs for batch, is_again in self._running.values() if is_again is not None)
        room = (BATCHES_MAX + 1) * self._settings.lanes // 2
        if wait.until > clock.monotonic() or (again and again + wait.batch.jobs > room):
            return None
        del self._waiting[wait.batch.number]
        return wait

    def _look_again(self) -> None:
        """When time alone may let a batch begin: one that waits, or a second one of a project."""
        now = clock.monotonic()
        # One that is due by now waits for room: the end of a batch looks again.
        seconds = [wait.until - now for wait in self._waiting.values() if wait.until > now]
        seconds += [FOLLOW_SECONDS] if self._running else []
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if seconds:
            later = max(0.0, min(seconds)) + 0.01
            self._timer = asyncio.get_running_loop().call_later(later, self._advance)

    async def _work(self, batch: offsets.Batch, tries: int) -> None:
        """The effects of a batch, tried once."""
        try:
            await self._load(batch)
            with telemetry.processing(self._retries.stage, self._topic, batch.messages):
                await self._process(batch.messages)
        except asyncio.CancelledError:
            self._lanes.give_back(batch)
            raise
        except Exception as exc:
            can_pass = isinstance(exc, errors.RunloreError | OSError) and not isinstance(exc, errors.Fatal)
            if not (can_pass or self._is_apart):
                self._lanes.give_back(batch)
                if isinstance(exc, errors.Fatal):
                    self._retries.fault(f"batch {batch.number}", exc)
                raise
            self._put_off(batch, tries, exc)
        else:
            self._retries.well(f"batch {batch.number}")
            self._lanes.finish(batch)
            self._tell_projects()

    async def _load(self, batch: offsets.Batch) -> None:
        """Read again what of a batch was parked."""
        wanted: dict[str, dict[int, list[int]]] = {}
        for at, found in batch.parked.items():
            wanted.setdefault(at.topic, {})[at.partition] = found
        for topic, found in wanted.items():
            gone = self._lanes.load(batch, await self._bus.reread(topic, found))
            if gone:
                telemetry.MESSAGES.inc(gone, stage=self._retries.stage, outcome=telemetry.GONE)
                log.error(
                    "messages were gone before their turn came", stage=self._retries.stage, messages=gone
                )

    def _put_off(self, batch: offsets.Batch, tries: int, exc: Exception) -> None:
        """A batch failed: it is tried again after a while, and only its own project waits for that."""
        if not batch.fed or self._over:
            self._retries.well(f"batch {batch.number}")
            self._lanes.give_back(batch)
            return
        whose = {"project": batch.projects[0]} if self._is_apart and batch.projects[0] else {}
        tries, seconds = self._retries.fault(f"batch {batch.number}", exc, tries, **whose)
        self._lanes.rest(batch)
        self._waiting[batch.number] = _Wait(
            batch,
            tries,
            clock.monotonic() + retry.jittered(seconds),
            f"{getattr(exc, 'kind', type(exc).__name__)}: {exc}",
            is_stuck=isinstance(exc, errors.Blocked | errors.Fatal)
            or not isinstance(exc, errors.RunloreError | OSError),
            of_stage=isinstance(exc, errors.Blocked) and exc.of_stage,
        )
        self._tell_projects()

    def _give_up_waiting(self, which: Callable[[_Wait], bool]) -> None:
        for wait in [one for one in self._waiting.values() if which(one)]:
            del self._waiting[wait.batch.number]
            self._retries.well(f"batch {wait.batch.number}")
            self._lanes.give_back(wait.batch)
        self._tell_projects()

    def _tell_projects(self) -> None:
        """Say which projects wait, while others may go on."""
        told = self._retries.troubles.status.projects
        if told or self._waiting:
            found = {
                name: wait.cause
                for wait in self._waiting.values()
                if self._is_apart and not wait.of_stage
                for name in wait.batch.projects
                if name
            }
            told.clear()
            told |= dict(sorted(found.items())[:PROJECTS_TOLD_MAX])

    def _batch_ended(self, task: asyncio.Task) -> None:
        batch, _ = self._running.pop(task)
        for name in batch.projects:
            if not any(name in one.projects for one, _ in self._running.values()):
                self._began.pop(name, None)
        self._moved.set()
        if not task.cancelled() and (error := task.exception()) is not None and not self._ended.done():
            self._ended.set_exception(error)
        self._advance()

    # --- offsets ------------------------------------------------------------------------------------------

    async def _commit_loop(self) -> None:
        while not self._over:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._commit_now.wait(), COMMIT_SECONDS)
            self._commit_now.clear()
            await self._retries.run("commit", self._commit, wanted=lambda: not self._over)

    async def _commit(self) -> None:
        async with self._committing:
            generation, marks = self._lanes.generation, self._lanes.offsets()
            if marks and self._consumer is not None:
                await self._consumer.commit(marks)
                self._lanes.committed(marks, generation)

    async def _last_commit(self) -> None:
        """A commit that nobody can wait for. What it can not commit comes again."""
        try:
            async with asyncio.timeout(LAST_COMMIT_SECONDS_MAX):
                await self._commit()
        except (errors.RunloreError, OSError) as exc:  # TimeoutError is an OSError.
            log.warning(
                "offsets not committed", stage=self._retries.stage, cause=str(exc) or "no answer in time"
            )

    # --- rebalance (`bus.port.Listener`) ------------------------------------------------------------------

    async def revoked(self, partitions: Collection[bus_port.TopicPartition]) -> None:
        self.rebalances += 1
        try:
            self._lanes.stop(partitions)
            # A batch that only waits to be tried again need not be waited for.
            self._give_up_waiting(lambda wait: not wait.batch.fed)
            self._retries.wake()
            await self._settle(partitions)
            await self._last_commit()
        except Exception as exc:
            # Whoever called this only logs what is raised, and the stage must not go on with half of it.
            if not self._ended.done():
                self._ended.set_exception(exc)
        finally:
            self._lanes.drop(partitions)
            self._balance()

    async def _settle(self, partitions: Collection[bus_port.TopicPartition]) -> None:
        """Wait until no batch holds any of `partitions`, for at most `rebalance_seconds_max`."""
        deadline = clock.monotonic() + self._settings.rebalance_seconds_max
        while (left := deadline - clock.monotonic()) > 0 and self._lanes.in_hand(partitions):
            self._moved.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._moved.wait(), left)
        late = self._lanes.in_hand(partitions)
        if late:
            log.warning("rebalance went on without work in hand", stage=self._retries.stage, messages=late)

    async def assigned(self, partitions: Collection[bus_port.TopicPartition]) -> None:
        self.joined = True
        self._lanes.assign(partitions)
        self._pause_again(partitions)

    def _pause_again(self, partitions: Collection[bus_port.TopicPartition]) -> None:
        """A rebalance forgets pauses."""
        if self._paused and self._consumer is not None:
            self._consumer.pause(partitions)
