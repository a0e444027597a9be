"""Tasks that begin and end with whoever waits for them: none goes on once the wait is over."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any


async def together(jobs: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Run every job to its end at the same time; the first failure ends the others, and is raised."""
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def any_of(*events: asyncio.Event, seconds_max: float) -> None:
    """Until one of `events` is set, or so many seconds are over."""
    waits = {asyncio.create_task(event.wait()) for event in events}
    try:
        await asyncio.wait(waits, timeout=max(0.0, seconds_max), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
