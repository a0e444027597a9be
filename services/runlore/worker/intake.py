"""The intake of a stage that reads a topic: poll, work in batches, commit what is done. For every bus.

    poll ─▶ lanes (by key) ─▶ up to 3 batches at a time ─▶ effects ─▶ low-water mark ─▶ commit

Polls go on while work is in hand, so a batch that is tried again for an hour keeps the group's membership; over its
limits the queue pauses its partitions instead. A stage takes batches because it commits its effects by batch (one mark
per memory, one move of a rollout's head), so a second batch begins only when it is full or the first is slow: at
saturation batches are large, when idle nothing waits.

A rebalance takes partitions back: no new work begins on them, what is in hand has `rebalance_seconds_max` to end, what
is done is committed, and the rest comes again elsewhere. `offsets.Lanes` keeps the promises about order and offsets;
this is the shell around it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Sequence

import structlog

from runlore import clock, errors, telemetry
from runlore.bus import port as bus_port
from runlore.settings import Settings
from runlore.worker import offsets, retry

log = structlog.get_logger("runlore.worker")

BATCHES_MAX = 3
"""Batches in hand at a time: one slow rollout does not stall the others."""
FOLLOW_SECONDS = 0.25
"""How long a batch runs before one that is not full may begin beside it."""
COMMIT_SECONDS = 1.0
"""How often offsets are committed while there is work; when there is none, at once."""
REJOIN_SECONDS = 60.0
"""How long polls may fail before the group is joined anew: some of a client's faults end only with the client."""
LAST_COMMIT_SECONDS_MAX = 5.0
"""How long the commit of a rebalance or of the end may take; without it messages come again."""

Process = Callable[[Sequence[bus_port.Message]], Awaitable[object]]


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
        batches_max: int = BATCHES_MAX,
    ) -> None:
        self._bus, self._settings, self._retries = bus, settings, retries
        self._group, self._topic, self._process = group, topic, process
        self._stopping, self._batches_max = stopping, batches_max
        self._consumer: bus_port.Consumer | None = None
        self._lanes = offsets.Lanes()
        self._batches: dict[asyncio.Task, float] = {}
        """Batches in hand, and when each began."""
        self._blocked: set[int] = set()
        """Batches that a person must help."""
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
        """Messages in hand: queued, and in batches."""
        return self._lanes.records

    @property
    def size(self) -> int:
        """Bytes of the values of the messages in hand."""
        return self._lanes.size

    @property
    def assigned_partitions(self) -> frozenset[bus_port.TopicPartition]:
        """The partitions that this member reads now; none before it has joined."""
        return self._consumer.assignment() if self._consumer is not None else frozenset()

    async def run(self) -> None:
        """Work until `stopping` is set, then end what is in hand, commit and leave.

        Raises what ends a stage: `errors.Fatal`, or an error that nobody foresaw. Cancelled, it gives up what is in
        hand: its offsets are not committed, so it comes again.
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
            if not self._ended.done() and self._batches:
                await asyncio.wait(set(self._batches))
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
        for task in self._batches:
            task.cancel()
        await asyncio.gather(*self._batches, return_exceptions=True)
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
        """Pause all partitions over the queue's limits or while blocked; resume them at half of that."""
        if self._consumer is None:
            return
        most = max(
            self._lanes.records / self._settings.queue_records_max,
            self._lanes.size / self._settings.queue_bytes_max,
        )
        wanted = bool(self._blocked) or most >= 1 or (self._paused and most > 0.5)
        if wanted != self._paused:
            self._paused = wanted
            partitions = self._consumer.assignment()
            if wanted:
                self._consumer.pause(partitions)
            else:
                self._consumer.resume(partitions)

    # --- batches ------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Begin every batch that may begin now."""
        if self._over:
            return
        while self._may_begin() and (batch := self._lanes.take(self._settings.poll_records_max)):
            task = asyncio.create_task(self._work(batch))
            self._batches[task] = clock.monotonic()
            task.add_done_callback(self._batch_ended)
            asyncio.get_running_loop().call_later(FOLLOW_SECONDS + 0.01, self._advance)
        self._balance()
        if not self._batches:
            self._commit_now.set()

    def _may_begin(self) -> bool:
        if self._blocked or len(self._batches) >= self._batches_max:
            return False
        if not self._batches or self._lanes.queued >= self._settings.poll_records_max:
            return True
        return clock.monotonic() - max(self._batches.values()) >= FOLLOW_SECONDS

    async def _work(self, batch: offsets.Batch) -> None:
        """The effects of a batch, tried until they are there or nobody waits for them."""

        async def step() -> bool:
            try:
                with telemetry.processing(self._retries.stage, self._topic, batch.messages):
                    await self._process(batch.messages)
            except errors.Blocked:
                self._blocked.add(batch.number)
                self._balance()
                raise
            return True

        done = None
        try:
            done = await self._retries.run(f"batch {batch.number}", step, wanted=lambda: batch.fed)
        finally:
            self._blocked.discard(batch.number)
            if done:
                self._lanes.finish(batch)
            else:
                self._lanes.give_back(batch)

    def _batch_ended(self, task: asyncio.Task) -> None:
        del self._batches[task]
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
            self._retries.wake()  # A batch that only waits to be tried again need not be waited for.
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
