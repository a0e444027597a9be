"""Delivery: what waits in the outbox goes to Runlore, in the background, again and again until it is there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from runlore import clock, errors
from runlore.agents import outbox, port

WAIT_SECONDS_MIN, WAIT_SECONDS_MAX = 0.5, 60.0
TIDY_SECONDS = 60.0
"""How often a program that goes on running looks after what its outbox keeps."""
POLL_SECONDS = 0.05
"""How often the work of another process is looked at."""


class Delivery:
    """Hands over the entries of `box` to `backend`, oldest first."""

    def __init__(
        self, backend: port.Backend, box: outbox.Outbox, failed: Callable[[str, BaseException], None]
    ) -> None:
        self._backend, self._box, self._failed = backend, box, failed
        self._task: asyncio.Task[None] | None = None
        self._last = ""
        self._tidied: float | None = None
        self._lock: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    def begin(self) -> None:
        """Deliver in the background of the running loop; what is not done when it ends is done at the next start."""
        task = self._task
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="runlore-delivery")

    async def end(self) -> None:
        """Stop; nothing is lost."""
        task, self._task = self._task, None
        if task is not None and task.get_loop() is asyncio.get_running_loop():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        wait = WAIT_SECONDS_MIN
        if self._tidied is None or clock.monotonic() - self._tidied > TIDY_SECONDS:
            self._tidied = clock.monotonic()
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._box.tidy)
        while True:
            try:
                if await self.once():
                    return
                wait = WAIT_SECONDS_MIN
            except Exception as exc:
                self._tell(exc)
            await clock.sleep(wait * (0.5 + clock.jitter()))
            wait = min(wait * 2, WAIT_SECONDS_MAX)

    async def flush(self, *, rollout: str | None = None) -> None:
        """Return once everything that waits (of one rollout) is delivered, whoever does it; the caller has a deadline.

        Raises what stops it.
        """
        while any(rollout in (None, _rollout_of(one)) for one in await asyncio.to_thread(self._box.waiting)):
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
            for entry in await asyncio.to_thread(self._box.waiting):
                try:
                    refused = await self._backend.send(entry.data, entry.left)
                except (errors.Poison, errors.InvalidInput) as exc:
                    await self._set_aside(entry, exc)
                    continue
                except errors.ServiceUnavailable as exc:
                    if "status" not in exc.context:
                        raise
                    # It answers, if only that something is wrong: what is wrong with one run stops no other.
                    stopped = stopped or exc
                    continue
                if refused:
                    await self._set_aside(entry, errors.ArchiveRefused("; ".join(refused)))
                else:
                    await asyncio.to_thread(self._box.done, entry)
            if stopped is not None:
                raise stopped
            self._last = ""
            return True

    async def _set_aside(self, entry: outbox.Entry, exc: errors.RunloreError) -> None:
        self._failed(f"run {entry.name}, kept in {self._box.folder / 'refused'}", exc)
        await asyncio.to_thread(self._box.set_aside, entry.path, f"{exc.kind}: {exc.message}\n")

    def _tell(self, exc: Exception) -> None:
        """An outage is told once, not at every try."""
        what = getattr(exc, "kind", type(exc).__name__)
        if what != self._last:
            self._last = what
            self._failed("delivering what the outbox holds (it is tried again)", exc)


def _rollout_of(entry: outbox.Entry) -> str:
    named = ("conversation_id", "session_id", "group_id", "run_id")
    ask = port.Ask(**{name: entry.data.get(name) for name in named})  # type: ignore[arg-type]
    return ask.rollout.original
