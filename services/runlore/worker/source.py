"""The loop of `runlore source run`: poll their topic, map, produce, and only then commit.

Without an end it is an intake as every stage has (`intake.py`): polls go on while a fault is waited for, keys keep
their order, a rebalance has its time. With an end (a limit, or until it has caught up) it goes batch by batch, and a
fault that stays is told, because somebody waits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import structlog

from runlore import telemetry
from runlore.bus import port as bus_port
from runlore.consumers import dead, source
from runlore.settings import Settings
from runlore.sources.mapping import event
from runlore.worker import intake, progress, retry

log = structlog.get_logger("runlore.source")

STAGE = "source"
"""What logs and metrics call every source: a label that grows with the mappings would be one too many."""
OnBatch = Callable[[list[source.Outcome]], None]


@dataclass(frozen=True)
class Plan:
    """How far to go. `limit` is a number of messages; `once`: until no message is there."""

    limit: int | None = None
    once: bool = False
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True)
class Source:
    """One source at work: where it reads, what it makes of it, and who is told of each batch."""

    topics: bus_port.Bus
    stage: source.SourceStage
    mapping: event.Mapping
    settings: Settings
    tell: OnBatch

    async def take(self, messages: Sequence[bus_port.Message]) -> dict[bus_port.TopicPartition, int]:
        """The effect of a batch; the offsets that may be committed now."""
        outcomes, offsets = await self.stage.process(messages)
        telemetry.worked(STAGE, messages, [one.state for one in outcomes])
        dead.tell(log, STAGE, ((one.message, one.error) for one in outcomes))
        self.tell(outcomes)
        return offsets


async def run(one: Source, plan: Plan) -> None:
    """Map what comes, until the plan ends or is told to stop; what is in hand is finished first."""
    if plan.once or plan.limit is not None:
        await _bounded(one, plan)
        return
    retries = retry.Retries(
        STAGE,
        progress.StageStatus(),
        seconds_max=one.settings.retry_seconds_max,
        stopping=plan.stopping,
    )
    taking_in = intake.Intake(
        one.topics,
        one.settings,
        retries,
        group=one.mapping.group,
        topic=one.mapping.topic,
        process=one.take,
        stopping=plan.stopping,
        whole=True,
    )
    working, stop = asyncio.create_task(taking_in.run()), asyncio.create_task(plan.stopping.wait())
    try:
        await asyncio.wait({working, stop}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({working}, timeout=one.settings.drain_seconds_max)
        if working.done():
            await working
    finally:
        # What is cancelled here comes again: its offset was not committed.
        for task in (working, stop):
            task.cancel()
        await asyncio.gather(working, stop, return_exceptions=True)


async def _bounded(one: Source, plan: Plan) -> None:
    """Batch by batch. Raises what stops it, once it was tried a few times."""
    group, topic = one.mapping.group, one.mapping.topic
    consumer = await retry.few_tries(lambda: one.topics.consumer(group=group, topics=[topic]))
    left = plan.limit
    # With no time, an empty poll says that no message is there now.
    wait = 0.0 if plan.once else one.settings.poll_timeout_seconds
    try:
        while not plan.stopping.is_set() and left != 0:
            most = one.settings.poll_records_max
            count = most if left is None else min(most, left)
            messages = await retry.few_tries(
                lambda count=count: consumer.poll(records_max=count, timeout_seconds=wait)
            )
            if messages:
                offsets = await retry.few_tries(lambda messages=messages: one.take(messages))
                await retry.few_tries(lambda offsets=offsets: consumer.commit(offsets))
                left = None if left is None else left - len(messages)
            elif plan.once:
                return
    finally:
        await consumer.close()


async def rehearse(one: Source, plan: Plan, *, from_beginning: bool) -> None:
    """What `run` would do with what is there now; outside of the group, so that nothing moves."""
    group, topic = one.mapping.group, one.mapping.topic
    start = None if from_beginning else await one.topics.committed(group=group, topic=topic)
    async with contextlib.aclosing(one.topics.read(topic, start=start)) as reading:  # type: ignore[type-var]
        async for messages in _batches(reading, one.settings.poll_records_max, plan.limit):
            if plan.stopping.is_set():
                return
            one.tell(await one.stage.look(messages))


async def _batches(
    reading: AsyncIterator[bus_port.Message], count: int, limit: int | None
) -> AsyncIterator[list[bus_port.Message]]:
    batch: list[bus_port.Message] = []
    handled = 0
    async for message in reading:
        batch.append(message)
        handled += 1
        if len(batch) == count or handled == limit:
            yield batch
            batch = []
        if handled == limit:
            return
    if batch:
        yield batch
