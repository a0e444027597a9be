"""The worker's `Runtime`: independent jobs at the same time, blocking work in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from runlore.consumers.runtime import Runtime


def runtime(lanes: int) -> Runtime:
    """A runtime that works `lanes` jobs at the same time."""

    async def gather(jobs: Sequence[Callable[[], Awaitable[Any]]]) -> list[Any]:
        waiting = iter(enumerate(jobs))
        results: list[Any] = [None] * len(jobs)
        failed: list[BaseException] = []

        async def lane() -> None:
            for number, job in waiting:
                if failed:
                    return
                try:
                    results[number] = await job()
                except Exception as exc:
                    failed.append(exc)

        # Every lane ends before the error is raised: no job of this batch still writes while it is retried.
        await asyncio.gather(*(lane() for _ in range(min(lanes, len(jobs)))))
        if failed:
            raise failed[0]
        return results

    async def offload(function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.to_thread(function, *args)

    return Runtime(gather, offload)
