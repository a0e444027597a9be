"""Trying again: a passing fault is waited for in place, with growing waits, and told once.

Transient faults (`errors.Retryable`, the machine's `OSError`) and missing permissions (`errors.Blocked`) are tried
until they pass, the stage stops, or nobody wants the result any more. What can not pass is raised: poison never comes
here (a stage makes a dead letter of it). `errors.Fatal` is raised, too: whoever called knows whether it is the stage's
or one project's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
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


def jittered(seconds: float) -> float:
    """Between a half and the whole of it, so that what failed together is not tried together."""
    return seconds * (0.5 + clock.jitter() / 2)


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
                self.fault(what, exc)
                raise
            except (errors.RunloreError, OSError) as exc:
                tries, seconds = self.fault(what, exc, tries)
            else:
                self.well(what)
                return result
            await self._wait(seconds)
            if self._stopping.is_set() or not wanted():
                self.well(what)
                return None

    def fault(self, what: str, exc: BaseException, tries: int = 0, **told: str) -> tuple[int, float]:
        """Tell what stands in the way of `what`: (how often that was tried, seconds until it should be again).

        `told` is for the log. What can not pass waits for the longest: a person has to act.
        """
        if isinstance(exc, errors.Blocked):
            state, tries = progress.BLOCKED, max(tries + 1, BLOCKED_TRIES)
        elif isinstance(exc, errors.Fatal) or not isinstance(exc, errors.RunloreError | OSError):
            state, tries = progress.FAILED, max(tries + 1, BLOCKED_TRIES)
        else:
            state, tries = progress.WAITING, tries + 1
        seconds = min(self._seconds_max, RETRY_SECONDS_MIN * 2 ** min(tries, 16))
        if self.troubles.fail(what, state, exc):
            self._log(state, exc, told)
        self.troubles.status.retry_seconds = seconds
        self._tell()
        return tries, seconds

    def well(self, what: str) -> None:
        """`what` goes on, or was given up."""
        if self.troubles.ok(what) and not self._stopping.is_set():
            log.info("stage goes on", stage=self.stage)

    def _log(self, state: str, exc: BaseException, told: Mapping[str, str]) -> None:
        kind = getattr(exc, "kind", type(exc).__name__)
        if state == progress.FAILED:
            trace = exc if not isinstance(exc, errors.RunloreError) else None
            log.error("stage failed", stage=self.stage, kind=kind, error=str(exc), exc_info=trace, **told)
            return
        hint = getattr(exc, "hint", None)
        log.warning(
            "stage waits",
            stage=self.stage,
            state=state,
            cause=f"{kind}: {exc}",
            **({"hint": hint} if hint else {}),
            **told,
        )

    async def _wait(self, seconds: float) -> None:
        """About `seconds`; shorter once the stage stops or is woken."""
        await tasks.any_of(self._stopping, self._awake, seconds_max=jittered(seconds))
