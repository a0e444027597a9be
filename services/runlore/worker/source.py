"""The loop of `runlore source run`: poll their topic, map, produce, and only then commit.

It stops at a limit, once it has caught up, or when it is told to; what is in hand is finished first. A passing
fault is waited for in place, so the order of their topic is kept; a missing permission waits for a person. A member
that waits longer than the group's patience is taken for dead and its messages come again: mapping them twice is
harmless.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import structlog

from runlore import clock, errors
from runlore.bus import port as bus_port
from runlore.consumers import source
from runlore.settings import Settings
from runlore.sources.mapping import event

log = structlog.get_logger("runlore.source")

RETRY_SECONDS_MIN = 0.1
TRIES_ONCE_MAX = 6
"""How often `once` tries a batch that a passing fault stops, before it gives up and says so."""
BLOCKED_TRIES = 8
"""A missing permission waits as long as a fault that was tried so often: a person has to act."""

OnBatch = Callable[[list[source.Outcome]], None]


@dataclass(frozen=True)
class Plan:
    """How far to go. `limit` is a number of messages; `once`: until no message is there."""

    limit: int | None = None
    once: bool = False
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


async def run(
    bus: bus_port.Bus,
    stage: source.SourceStage,
    mapping: event.Mapping,
    settings: Settings,
    plan: Plan,
    tell: OnBatch,
) -> None:
    """Map what comes, until the plan ends. Raises what stops it where `plan.once` waits for an end."""
    consumer = await bus.consumer(group=mapping.group, topics=[mapping.topic])
    handled = 0
    wait = 0.0 if plan.once else settings.poll_timeout_seconds
    try:
        while not plan.stopping.is_set() and (plan.limit is None or handled < plan.limit):
            count = settings.poll_records_max
            count = count if plan.limit is None else min(count, plan.limit - handled)
            messages = await _attempt(
                lambda count=count: consumer.poll(records_max=count, timeout_seconds=wait), settings, plan
            )
            if not messages:
                if plan.once:
                    return
                continue
            outcomes = await _attempt(
                lambda messages=messages: _take(stage, consumer, messages), settings, plan
            )
            if outcomes is None:
                return  # Told to stop while it waited: nothing of this batch is committed, and it comes again.
            handled += len(outcomes)
            _log_dead(outcomes)
            tell(outcomes)
    finally:
        await consumer.close()


async def _take(
    stage: source.SourceStage, consumer: bus_port.Consumer, messages: list[bus_port.Message]
) -> list[source.Outcome]:
    outcomes, offsets = await stage.process(messages)
    await consumer.commit(offsets)
    return outcomes


async def rehearse(
    bus: bus_port.Bus,
    stage: source.SourceStage,
    mapping: event.Mapping,
    settings: Settings,
    plan: Plan,
    tell: OnBatch,
    *,
    from_beginning: bool,
) -> None:
    """What `run` would do with what is there now; outside of the group, so that nothing moves."""
    start = None if from_beginning else await bus.committed(group=mapping.group, topic=mapping.topic)
    reading = bus.read(mapping.topic, start=start)
    async with contextlib.aclosing(reading):  # type: ignore[type-var]
        async for messages in _batches(reading, settings.poll_records_max, plan.limit):
            if plan.stopping.is_set():
                return
            tell(await stage.look(messages))


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


async def _attempt(step: Callable[[], Awaitable[Any]], settings: Settings, plan: Plan) -> Any:
    """`step`, again and again while a fault may pass; None where it was told to stop meanwhile."""
    tries, told = 0, ""
    while True:
        try:
            return await step()
        except (errors.Retryable, errors.Blocked, OSError) as exc:
            tries += 1
            if plan.once and (isinstance(exc, errors.Blocked) or tries == TRIES_ONCE_MAX):
                raise
            why = f"{getattr(exc, 'kind', type(exc).__name__)}: {exc}"
            if why != told:
                log.warning("source waits", cause=why, hint=getattr(exc, "hint", None))
                told = why
            exponent = BLOCKED_TRIES if isinstance(exc, errors.Blocked) else min(tries, 16)
        wait = min(settings.retry_seconds_max, RETRY_SECONDS_MIN * 2**exponent)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(plan.stopping.wait(), wait * (0.5 + clock.jitter() / 2))
        if plan.stopping.is_set():
            return None


def _log_dead(outcomes: list[source.Outcome]) -> None:
    for one in outcomes:
        if one.error is not None:
            at = one.message
            log.warning(
                "dead letter",
                reason=one.error.kind,
                topic=at.topic,
                partition=at.partition,
                offset=at.offset,
            )
