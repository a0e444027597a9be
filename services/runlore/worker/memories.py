"""The memories of a stage that works marks: which of those that are due is worked next, so that none waits for ever.

    LIST of marks, bells ─▶ due ─▶ a place ─▶ one pass ─▶ due again, if the pass left something

A LIST takes a request for each project, so work goes on beside it. Places are shared out by project (`turns`): at
most `MEMORIES_MAX` are one project's, and there are more than that. A pass is bounded, and a memory that has more to do
stands in line again after it. What fails waits outside of the line, holds no place until it is tried again, and those
that are tried again have half of the places at most. Marks are the truth: what is known here may be forgotten at any
time.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import math
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from runlore import clock, errors, tasks, turns
from runlore.worker import retry

MEMORIES_MAX = 4
"""Memories of one project that are worked at the same time: one with a slow model does not stall the others."""
PLACES_MAX = 6
"""Memories that are: a project that has none at work need not wait for another's."""
WAIT_SECONDS_MAX = 60.0
"""How long nothing but a bell, an end or the stop wakes it."""
WAIT_SECONDS_MIN = 0.001
"""A timer may come a little early: then nothing is due yet, and it must not go round without time passing."""
LOOK_SECONDS_MIN = 0.05
"""Between two LISTs of marks, however soon something becomes due."""

One = tuple[str, str]
"""Project and memory."""


@dataclass(frozen=True)
class _Again:
    """A memory whose last try failed."""

    tries: int
    until: float


class Memories:
    """What one stage has to do for memories, and does."""

    def __init__(
        self,
        retries: retry.Retries,
        *,
        marked: Callable[[], Awaitable[Iterable[One]]],
        work: Callable[[str, str], Awaitable[bool]],
        stopping: asyncio.Event,
        interval_seconds: float,
        looked: Callable[[set[One]], None] = lambda found: None,
        least_seconds: Callable[[], float] = lambda: 0.0,
        wakes_at: Callable[[], dt.datetime | None] = lambda: None,
    ) -> None:
        """`marked`: what has a mark, the longest waiting first. `work`: one pass; whether it left something.

        `looked` is told what has a mark. `least_seconds`: between two looks, by what the last one cost.
        `wakes_at`: when, by the last look, something that waits becomes due before the next look.
        """
        self._retries, self._stopping = retries, stopping
        self._marked, self._work, self._looked = marked, work, looked
        self._wakes_at, self._interval_seconds, self._least_seconds = (
            wakes_at,
            interval_seconds,
            least_seconds,
        )
        self._due: dict[One, None] = {}
        """The longest waiting first."""
        self._again: dict[One, _Again] = {}
        self._at_work: dict[One, asyncio.Task] = {}
        self._turns = turns.Turns()
        self._rung = asyncio.Event()
        self._failed: list[BaseException] = []

    def ring(self, found: Iterable[One]) -> None:
        """These have something to do."""
        self._due |= dict.fromkeys(found)
        self._rung.set()

    async def run(self) -> None:
        """Work what is due until `stopping` is set; then end what is in hand."""
        next_look = clock.monotonic()
        looking: asyncio.Task[None] | None = None
        try:
            while not self._stopping.is_set():
                self._rung.clear()
                if looking is not None and looking.done():
                    looking.result()
                    looking, next_look = None, clock.monotonic() + self._until_look()
                if looking is None and clock.monotonic() >= next_look:
                    # Beside the work: it takes a LIST for each project, and places must not stand empty meanwhile.
                    looking, next_look = asyncio.create_task(self._look()), math.inf
                    looking.add_done_callback(lambda task: self._rung.set())
                while (one := self._next()) is not None:
                    self._begin(one)
                # A bell, the end of a memory's work, the stop, a try that is due, or the next look at the marks.
                await tasks.any_of(self._rung, self._stopping, seconds_max=self._seconds_to(next_look))
                if self._failed:
                    raise self._failed[0]
            if self._at_work:
                await asyncio.wait(set(self._at_work.values()))
        finally:
            left = [*self._at_work.values(), *([looking] if looking is not None else [])]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _look(self) -> None:
        try:
            found = list(await self._retries.run("marks", self._marked) or ())
        except errors.Fatal:
            found = []  # It was told; the next look may find more.
        self._looked(set(found))
        self._due |= dict.fromkeys(found)

    def _until_look(self) -> float:
        """Seconds until marks are listed again."""
        interval, wakes_at = max(self._interval_seconds, self._least_seconds()), self._wakes_at()
        if wakes_at is None:
            return interval
        soon = (wakes_at - clock.now()).total_seconds()
        return min(interval, max(LOOK_SECONDS_MIN, soon))

    def _seconds_to(self, next_look: float) -> float:
        now = clock.monotonic()
        tries = [one.until for one in self._again.values() if one.until > now]
        return max(WAIT_SECONDS_MIN, min([next_look, *tries, now + WAIT_SECONDS_MAX]) - now)

    def _next(self) -> One | None:
        """The memory that is worked next; None where none may begin now."""
        if len(self._at_work) >= PLACES_MAX:
            return None
        has_room = 2 * sum(one in self._again for one in self._at_work) < PLACES_MAX
        first: dict[str, One] = {}
        for one in self._due:
            project, again = one[0], self._again.get(one)
            if project in first or one in self._at_work or self._turns.held(project) >= MEMORIES_MAX:
                continue
            if again is None or (has_room and again.until <= clock.monotonic()):
                first[project] = one
        project = self._turns.next(first)
        return first[project] if project is not None else None

    def _begin(self, one: One) -> None:
        del self._due[one]
        self._turns.begin(one[0])
        self._at_work[one] = asyncio.create_task(self._try(one))
        self._at_work[one].add_done_callback(lambda task: self._ended(one))

    def _ended(self, one: One) -> None:
        task = self._at_work.pop(one)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed.append(error)
        self._turns.end(one[0])
        self._rung.set()

    async def _try(self, one: One) -> None:
        """One pass over a memory. A fault that may pass is waited for outside of the line."""
        name = "/".join(one)
        try:
            has_more = await self._work(*one)
        except (errors.Retryable, errors.Blocked, OSError) as exc:
            tries = self._again[one].tries if one in self._again else 0
            tries, seconds = self._retries.fault(name, exc, tries, memory=name)
            self._again[one] = _Again(tries, clock.monotonic() + retry.jittered(seconds))
            self._due.setdefault(one)
            return
        self._retries.well(name)
        self._again.pop(one, None)
        if has_more:
            self._due.setdefault(one)
