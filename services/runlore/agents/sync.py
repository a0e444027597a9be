"""`run_sync`: a run for a program without an event loop, as the SDK's own `Runner.run_sync` makes it.

The SDK keeps one loop for each thread, which stands still between two runs. So what is handed over after a run is
handed over by a thread of its own (`delivery.LOOP_STOPS`).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import agents
from agents.run import AgentRunner

from runlore import errors
from runlore.agents import delivery

_SIGNATURE = inspect.signature(agents.Runner.run_sync)


class Entry(AgentRunner):
    """The SDK's `run_sync` (its loop, its restrictions, its errors) around a run of ours."""

    def __init__(self, run: Callable[[Any, Any, dict[str, Any]], Awaitable[agents.RunResult]]) -> None:
        self._run = run

    async def run(self, starting_agent: Any, input: Any, **named: Any) -> Any:
        delivery.LOOP_STOPS.set(True)
        return await self._run(starting_agent, input, named)


def run(entry: Entry, agent: Any, input: Any, named: dict[str, Any]) -> agents.RunResult:
    """One run to its end. Raises what `Runner.run_sync` raises, inside of a running loop RuntimeError."""
    # The SDK's runner drops what it does not know; its `Runner` refuses it.
    _SIGNATURE.bind(agent, input, **named)
    result: agents.RunResult = entry.run_sync(agent, input, **named)
    return result


def close(aclose: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `aclose` where no loop runs. Raises `errors.Refused` inside of one."""
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        raise errors.Refused("an event loop is running: `await lore.aclose()`")
    # Not `asyncio.run`: it would take away the loop that the SDK keeps for this thread.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(aclose())
