"""An event loop whose time is simulated, and processes on it that can be killed, paused and run again the same way.

`world.py` drives a coroutine by hand, one call at a time; that is exhaustive, and takes only code that awaits nothing
but ports. Here the whole worker runs as it is, with its tasks, timers and threads: nothing ever waits for real, since
the loop jumps to the next timer, and what is given to a thread is done on the spot.

- A *process* is whatever runs in its context. Killed, not one line of it runs any more, no `finally` either: its
  callbacks are put aside as they come up. Paused, they are, too, until it goes on.
- The same program with the same draws takes the same steps, in any interpreter: callbacks run in the order in which
  they were asked for, whatever the addresses of objects and the seed of hashes.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from runlore.testing.world import Stuck, finish

THREAD_SECONDS = 0.001
"""How long anything takes that is given to a thread, in simulated seconds."""
CANCEL_ROUNDS_MAX = 100
"""How often what is left at the end is cancelled before that counts as a fault of its own."""
CLOSING_CALLBACKS_MAX = 10_000_000

T = TypeVar("T")
PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("simulated_process", default=None)


@dataclass(eq=False)
class Process:
    """One incarnation of a process: what runs in `context`."""

    name: str
    dead: bool = False
    paused: bool = False
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    held: list[Turn] = field(default_factory=list)
    """What came up while it was paused, or after its death."""


@dataclass(eq=False)
class Turn:
    """One callback of a process."""

    process: Process
    callback: Callable[..., Any]
    args: tuple[Any, ...]
    context: contextvars.Context | None
    handle: Any = None


class _NoFiles(selectors.SelectSelector):
    """Waits for nothing: instead of the timeout, simulated time passes."""

    def __init__(self, passes: Callable[[float | None], None]) -> None:
        super().__init__()
        self._passes = passes

    def select(self, timeout: float | None = None) -> list[Any]:
        self._passes(timeout)
        return []


class SimLoop(asyncio.SelectorEventLoop):
    """The loop. Raises `Stuck` where nothing can happen any more, or past `callbacks_max` callbacks."""

    def __init__(self, *, callbacks_max: int = 10_000_000) -> None:
        self._now, self._callbacks_left, self._tasks_max = 0.0, callbacks_max, 1000
        self._tasks: list[tuple[asyncio.Task[Any], Process | None]] = []
        """Every task, and whose it is: one that were collected early would run its `finally` after its process died."""
        super().__init__(_NoFiles(self._pass))
        self.set_task_factory(self._new_task)

    def time(self) -> float:
        return self._now

    def _pass(self, timeout: float | None) -> None:
        if timeout is None:
            raise Stuck("every process waits for something that nobody will do")
        self._now += max(0.0, timeout)

    # --- whose callbacks run ------------------------------------------------------------------------------

    def call_soon(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:
        turn = self._turn(callback, args, context)
        if turn is None:
            return super().call_soon(callback, *args, context=context)
        turn.handle = super().call_soon(self._run, turn, context=context)
        return turn.handle

    def call_at(
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> Any:
        turn = self._turn(callback, args, context)
        if turn is None:
            return super().call_at(when, callback, *args, context=context)
        turn.handle = super().call_at(when, self._run, turn, context=context)
        return turn.handle

    def _turn(self, callback: Any, args: tuple[Any, ...], context: contextvars.Context | None) -> Turn | None:
        """A callback with whose it is; None where it is nobody's."""
        self._callbacks_left -= 1
        if self._callbacks_left < 0:
            raise Stuck("far too many steps: something goes round in circles")
        process = PROCESS.get() if context is None else context.get(PROCESS)
        return None if process is None else Turn(process, callback, args, context)

    def _run(self, turn: Turn) -> None:
        if turn.process.paused or turn.process.dead:
            turn.context = turn.context or contextvars.copy_context()
            turn.process.held.append(turn)
        else:
            turn.callback(*turn.args)

    def _new_task(self, loop: Any, work: Coroutine[Any, Any, Any], **more: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(work, loop=loop, **more)
        context = more.get("context")
        self._tasks.append((task, PROCESS.get() if context is None else context.get(PROCESS)))
        if len(self._tasks) > self._tasks_max:
            self._tasks = [one for one in self._tasks if not one[0].done()]
            self._tasks_max = 2 * len(self._tasks) + 1000
        return task

    # --- processes ----------------------------------------------------------------------------------------

    def spawn(self, process: Process, main: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
        """Begin a process. Its context is what `main` and all that it begins run in."""
        process.context.run(PROCESS.set, process)
        work = process.context.run(main)
        return self.create_task(work, context=process.context)

    def resume(self, process: Process) -> None:
        """Let a paused process go on: what came up meanwhile runs first."""
        process.paused = False
        held, process.held = process.held, []
        for turn in held:
            self.call_soon(self._go_on, turn, context=turn.context)

    def _go_on(self, turn: Turn) -> None:
        """What was put aside; not what somebody who came first has called off meanwhile."""
        if not turn.handle.cancelled():
            turn.callback(*turn.args)

    def run_in_executor(self, executor: Executor | None, func: Callable[..., Any], *args: Any) -> Any:
        """Do it on the spot, as one step of whoever asked."""
        done = self.create_future()

        def work() -> None:
            if done.cancelled():
                return
            try:
                done.set_result(func(*args))
            except Exception as exc:
                done.set_exception(exc)

        self.call_later(THREAD_SECONDS, work)
        return done

    def close(self) -> None:
        """End every task that is left, of dead processes too. Whatever they do now must have no effect."""
        self._callbacks_left = CLOSING_CALLBACKS_MAX
        for process in {id(one): one for _, one in self._tasks if one is not None}.values():
            process.dead = False
            self.resume(process)
        for _ in range(CANCEL_ROUNDS_MAX):
            left = [task for task, _ in self._tasks if not task.done()]
            if not left:
                break
            for task in left:
                task.cancel()
            with contextlib.suppress(Stuck):
                self.run_until_complete(asyncio.sleep(1.0))
        for task, _ in self._tasks:
            if task.done() and not task.cancelled():
                task.exception()
        super().close()


@contextlib.contextmanager
def simulated(*, callbacks_max: int = 10_000_000) -> Iterator[SimLoop]:
    """A loop of its own for the time of a `with`."""
    loop = SimLoop(callbacks_max=callbacks_max)
    try:
        yield loop
    finally:
        loop.close()


def at_once(awaitable: Awaitable[T]) -> T:
    """The result of a call that waits for nothing, as if no loop ran: what would go to a thread is done here.

    For whoever looks at a fake while the loop runs.
    """
    running = asyncio.events._get_running_loop()
    asyncio.events._set_running_loop(None)
    try:
        return finish(awaitable)
    finally:
        asyncio.events._set_running_loop(running)
