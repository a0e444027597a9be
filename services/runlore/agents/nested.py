"""Runs inside of a run (agents as tools): the SDK's default runner, wrapped so that each is recorded too.

The SDK calls this part of it experimental; without it runs inside of runs have no events of their own, and nothing else
changes. Whatever runner is installed does the work, and outside of our runs it is not touched.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import agents
from agents.run import AgentRunner, get_default_agent_runner, set_default_agent_runner

from runlore.agents import delivery, runs


@dataclass(frozen=True)
class Child:
    """A nested run, and how it ends: awaited, or at once."""

    run: runs.Run
    ended: Callable[[runs.Run, Any, BaseException | None], Awaitable[None]]
    put_now: Callable[[runs.Run, Any, BaseException | None], None]


Begin = Callable[[runs.Run, Any, Any, dict[str, Any]], Child]


def install(begin: Begin) -> None:
    """Wrap the SDK's present runner, once."""
    present = get_default_agent_runner()
    if not isinstance(present, _Runner):
        set_default_agent_runner(_Runner(present, begin))


def when_done(result: agents.RunResultStreaming, put: Callable[[], None]) -> None:
    """Call `put` when the stream's run has ended, however it ended."""
    task = result.run_loop_task
    if task is None:
        put()
    else:
        task.add_done_callback(lambda _: put())


class _Runner(AgentRunner):
    def __init__(self, inner: AgentRunner, begin: Begin) -> None:
        self._inner, self._begin = inner, begin

    async def run(self, starting_agent: Any, input: Any, **named: Any) -> Any:
        parent = self._parent()
        if parent is None:
            return await self._inner.run(starting_agent, input, **named)
        child = self._begin(parent, starting_agent, input, named)
        child.run.entered_by = self
        token = runs.CURRENT.set(child.run)
        try:
            result = await self._inner.run(starting_agent, input, **named)
        except BaseException as exc:
            await child.ended(child.run, None, exc)
            raise
        finally:
            runs.CURRENT.reset(token)
        await child.ended(child.run, result, None)
        return result

    def run_sync(self, starting_agent: Any, input: Any, **named: Any) -> Any:
        if self._parent() is None or type(self._inner).run_sync is not AgentRunner.run_sync:
            return self._inner.run_sync(starting_agent, input, **named)
        # In a tool's thread: the SDK's own, which comes to `run` above.
        token = delivery.LOOP_STOPS.set(True)
        try:
            return super().run_sync(starting_agent, input, **named)
        finally:
            delivery.LOOP_STOPS.reset(token)

    def run_streamed(self, starting_agent: Any, input: Any, **named: Any) -> Any:
        parent = self._parent()
        if parent is None:
            return self._inner.run_streamed(starting_agent, input, **named)
        child = self._begin(parent, starting_agent, input, named)
        child.run.entered_by = self
        token = runs.CURRENT.set(child.run)
        try:
            result = self._inner.run_streamed(starting_agent, input, **named)
        except BaseException as exc:
            child.put_now(child.run, None, exc)
            raise
        finally:
            runs.CURRENT.reset(token)
        when_done(result, lambda: child.put_now(child.run, result, result.run_loop_exception))
        return result

    def _parent(self) -> runs.Run | None:
        """The run that this one is inside of; the first call of a run of ours is that run itself."""
        run = runs.CURRENT.get()
        if run is None:
            return None
        if run.entered_by is None:
            run.entered_by = self
            return None
        # Another wrapper of ours may lie below somebody else's runner: there it is the same call on its way in.
        return run if run.entered_by is self else None
