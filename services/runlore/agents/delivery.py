"""Delivery: what waits in the outbox goes to Runlore, in the background, again and again until it is there."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

from runlore import clock, errors
from runlore.agents import outbox, port

WAIT_SECONDS_MIN, WAIT_SECONDS_MAX = 0.5, 60.0
TIDY_SECONDS = 60.0
"""How often a program that goes on running looks after what its outbox keeps."""
POLL_SECONDS = 0.05
"""How often the work of another process is looked at."""

LOOP_STOPS: ContextVar[bool] = ContextVar("runlore_loop_stops", default=False)
"""Whether the running loop stands still once the present run has ended, as that of `run_sync` does."""


class Delivery:
    """Hands over the entries of `box` to `backend`, oldest first: on the running loop, or in a thread of its own."""

    def __init__(
        self, backend: port.Backend, box: outbox.Outbox, failed: Callable[[str, BaseException], None]
    ) -> None:
        self._backend, self._box, self._failed = backend, box, failed
        self._task: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], object] | None = None
        self._ending = False
        self._guard = threading.Lock()
        self._asked = 0
        self._last = ""
        self._tidied: float | None = None
        self._lock: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    def begin(self) -> None:
        """Deliver in the background; what is not done when the loop or the program ends is done at the next start."""
        with self._guard:
            self._asked += 1
            if LOOP_STOPS.get():
                if self._thread is None:
                    self._ending = False
                    # Nobody waits for it: a program that ends is not held up, and the outbox keeps what is left.
                    self._thread = threading.Thread(target=self._beside, name="runlore-delivery", daemon=True)
                    self._thread.start()
                return
        task = self._task
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="runlore-delivery")

    async def end(self) -> None:
        """Stop; nothing is lost."""
        with self._guard:
            thread, self._ending = self._thread, True
            if self._stop is not None:
                self._stop()
        if thread is not None:
            await asyncio.to_thread(thread.join)
        task, self._task = self._task, None
        if task is not None and task.get_loop() is asyncio.get_running_loop():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _beside(self) -> None:
        """Deliver in this thread, until nothing waits, or the program ends: what is left then is in the outbox."""
        try:
            self._deliver_beside()
        except Exception:
            if not _program_ends():
                raise

    def _deliver_beside(self) -> None:
        # A `Delivery` of its own: what belongs to a loop is not shared by two.
        mine = Delivery(self._backend, self._box, self._failed)
        # Not `asyncio.run`, which takes the thread's own loop away.
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            loop = runner.get_loop()
            while True:
                asked = self._asked
                task = loop.create_task(mine._run())
                with self._guard:
                    self._stop = functools.partial(loop.call_soon_threadsafe, task.cancel)
                    if self._ending:
                        task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    loop.run_until_complete(task)
                with self._guard:
                    if asked == self._asked or task.cancelled():
                        self._thread = self._stop = None
                        return

    async def _run(self) -> None:
        wait = WAIT_SECONDS_MIN
        if self._tidied is None or clock.monotonic() - self._tidied > TIDY_SECONDS:
            self._tidied = clock.monotonic()
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._box.tidy)
        while True:
            asked = self._asked
            try:
                # What came while it was busy is delivered too.
                if await self.once() and asked == self._asked:
                    return
                wait = WAIT_SECONDS_MIN
            except Exception as exc:
                if _program_ends():
                    return  # What a thread needs goes with it: that is no outage.
                self._tell(exc)
            await clock.sleep(wait * (0.5 + clock.jitter()))
            wait = min(wait * 2, WAIT_SECONDS_MAX)

    async def flush(self, *, rollout: str | None = None) -> None:
        """Return once everything that waits (of one rollout, by its alias) is delivered, whoever does it.

        The caller has a deadline. Raises what stops it.
        """
        while found := await asyncio.to_thread(self._box.rollouts):
            if rollout is not None and rollout not in found:
                return
            if not await self.once():
                await clock.sleep(POLL_SECONDS)

    async def once(self) -> bool:
        """Deliver everything that waits; False where another process is at it. Raises what stops it."""
        async with self._one():
            return await self._deliver()

    def _one(self) -> asyncio.Lock:
        """This process's own turn; a lock belongs to one loop, and a program may run several after each other."""
        running = asyncio.get_running_loop()
        if self._lock is None or self._lock[0] is not running:
            self._lock = running, asyncio.Lock()
        return self._lock[1]

    async def _deliver(self) -> bool:
        with self._box.delivering() as mine:
            if not mine:
                return False
            stopped: errors.ServiceUnavailable | None = None
            for name in await asyncio.to_thread(self._box.names):
                stopped = await self._hand_over(name) or stopped
            if stopped is not None:
                raise stopped
            self._last = ""
            return True

    async def _hand_over(self, name: str) -> errors.ServiceUnavailable | None:
        """One run, which is in memory only here; what stops it alone. Raises what stops all."""
        entry = await asyncio.to_thread(self._box.read, name)
        if entry is None:
            return None
        try:
            refused = await self._backend.send(entry.data, entry.left)
        except (errors.Poison, errors.InvalidInput) as exc:
            await self._set_aside(entry, exc)
            return None
        except errors.ServiceUnavailable as exc:
            if "status" not in exc.context:
                raise
            # It answers, if only that something is wrong: what is wrong with one run stops no other.
            return exc
        if refused:
            await self._set_aside(entry, errors.ArchiveRefused("; ".join(refused)))
        else:
            await asyncio.to_thread(self._box.done, entry)
        return None

    async def _set_aside(self, entry: outbox.Entry, exc: errors.RunloreError) -> None:
        self._failed(f"run {entry.name}, kept in {self._box.folder / 'refused'}", exc)
        await asyncio.to_thread(self._box.set_aside, entry.path, f"{exc.kind}: {exc.message}\n")

    def _tell(self, exc: Exception) -> None:
        """An outage is told once, not at every try."""
        what = getattr(exc, "kind", type(exc).__name__)
        if what != self._last:
            self._last = what
            self._failed("delivering what the outbox holds (it is tried again)", exc)


def _program_ends() -> bool:
    """Whether the interpreter is on its way out: then no executor takes work, even before the main thread has ended."""
    try:
        with ThreadPoolExecutor(1) as one:
            one.submit(bool)
    except RuntimeError as exc:
        return "shutdown" in str(exc)
    return not threading.main_thread().is_alive()
