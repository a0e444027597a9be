"""Trying again: a passing fault is waited for in place, with growing waits, and told once.

Transient faults (`errors.Retryable`, the machine's `OSError`) and missing permissions (`errors.Blocked`) are tried
until they pass, the stage stops, or nobody wants the result any more. What can not pass is raised: poison never comes
here (a stage makes a dead letter of it), `errors.Fatal` ends the stage.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from runlore import clock, errors, tasks
from runlore.worker import progress

log = structlog.get_logger("runlore.worker")

RETRY_SECONDS_MIN = 0.1
BLOCKED_TRIES = 8
"""A missing permission waits as long as a fault that was tried so often: a person has to act."""

TRIES_MAX = 6
"""How often a step is tried where somebody waits for an end, before it gives up and says so."""

T = TypeVar("T")


async def few_tries(
    step: Callable[[], Awaitable[T]], *, tell: Callable[[errors.Retryable], None] = lambda exc: None
) -> T:
    """The result of `step`, tried a few times while a fault may pass; then its error. `tell` is told of each."""
    for attempt in range(TRIES_MAX):
        try:
            return await step()
        except errors.Retryable as exc:
            tell(exc)
            if attempt == TRIES_MAX - 1:
                raise
        await clock.sleep(RETRY_SECONDS_MIN * 2**attempt)
    raise AssertionError("unreachable")


class Retries:
    """The waits of one stage."""

    def __init__(
        self,
        stage: str,
        status: progress.StageStatus,
        *,
        seconds_max: float,
        stopping: asyncio.Event,
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        self.stage, self.troubles = stage, progress.Troubles(status)
        self._seconds_max, self._stopping, self._tell = seconds_max, stopping, tell
        self._awake = asyncio.Event()

    def wake(self) -> None:
        """Let whoever waits look now whether it still should."""
        self._awake.set()
        self._awake = asyncio.Event()

    async def run(
        self, what: str, step: Callable[[], Awaitable[T]], *, wanted: Callable[[], bool] = lambda: True
    ) -> T | None:
        """The result of `step`, tried until it succeeds; None once the stage stops or it is not `wanted`.

        Raises what is neither transient nor blocked. An `errors.Fatal` is told before.
        """
        tries = 0
        while True:
            try:
                result = await step()
            except errors.Fatal as exc:
                # It stays open until the same thing succeeds: nothing else mends it.
                self.troubles.fail(what, progress.FAILED, exc)
                log.error("stage failed", stage=self.stage, kind=exc.kind, error=str(exc))
                raise
            except (errors.RunloreError, OSError) as exc:
                self._note(what, exc)
                tries = max(tries + 1, BLOCKED_TRIES if isinstance(exc, errors.Blocked) else 0)
            else:
                self._well(what)
                return result
            seconds = min(self._seconds_max, RETRY_SECONDS_MIN * 2 ** min(tries, 16))
            self.troubles.status.retry_seconds = seconds
            await self._wait(seconds)
            if self._stopping.is_set() or not wanted():
                self._well(what)
                return None

    def _well(self, what: str) -> None:
        if self.troubles.ok(what) and not self._stopping.is_set():
            log.info("stage goes on", stage=self.stage)

    def _note(self, what: str, exc: BaseException) -> None:
        state = progress.BLOCKED if isinstance(exc, errors.Blocked) else progress.WAITING
        if self.troubles.fail(what, state, exc):
            hint = getattr(exc, "hint", None)
            log.warning(
                "stage waits",
                stage=self.stage,
                state=state,
                cause=f"{getattr(exc, 'kind', type(exc).__name__)}: {exc}",
                **({"hint": hint} if hint else {}),
            )
        self._tell()

    async def _wait(self, seconds: float) -> None:
        """Between a half and the whole of `seconds`; shorter once the stage stops or is woken."""
        await tasks.any_of(self._stopping, self._awake, seconds_max=seconds * (0.5 + clock.jitter() / 2))
