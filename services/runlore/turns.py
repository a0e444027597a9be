"""Whose turn it is where a few places are shared out by project: who may be worked, who may ask a model.

A project alone may hold every place. As soon as another waits, the next place that is free is that of the one that
holds the fewest; of several, of the one that had its last turn longest ago. Within a project, whoever came first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable

REMEMBERED_MAX = 10_000
"""Projects of which the last turn is remembered; one that is forgotten counts as one that had none."""


class Turns:
    """Who holds how many places, and who had a turn when."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()
        self._last: dict[str, int] = {}
        self._number = 0

    def next(self, names: Iterable[str]) -> str | None:
        """Whose turn it is among these; None where there are none."""
        return min(names, key=lambda name: (self._held[name], self._last.get(name, 0), name), default=None)

    def held(self, name: str) -> int:
        return self._held[name]

    def begin(self, name: str) -> None:
        """It takes a place."""
        self._held[name] += 1
        self._number += 1
        self._last.pop(name, None)  # So that the order of the dict is that of the turns.
        self._last[name] = self._number
        if len(self._last) > REMEMBERED_MAX:
            del self._last[next(iter(self._last))]

    def end(self, name: str) -> None:
        """It gives a place back."""
        self._held[name] -= 1
        if not self._held[name]:
            del self._held[name]


class Gate:
    """So many places at the same time; who waits gets one when it is its project's turn."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._turns = Turns()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @contextlib.asynccontextmanager
    async def place(self, name: str) -> AsyncIterator[None]:
        """Hold a place for `name` meanwhile."""
        await self._enter(name)
        try:
            yield
        finally:
            self._leave(name)

    async def _enter(self, name: str) -> None:
        if self._free:
            self._free -= 1
            self._turns.begin(name)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(name, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._leave(name)  # The place came at the same moment.
            elif turn in self._waiting.get(name, ()):
                self._forget(name, turn)
            raise

    def _leave(self, name: str) -> None:
        self._turns.end(name)
        while (heir := self._turns.next(self._waiting)) is not None:
            turn = self._waiting[heir][0]
            self._forget(heir, turn)
            if not turn.cancelled():  # Its caller was cancelled, and has not run since.
                self._turns.begin(heir)
                turn.set_result(None)
                return
        self._free += 1

    def _forget(self, name: str, turn: asyncio.Future[None]) -> None:
        self._waiting[name].remove(turn)
        if not self._waiting[name]:
            del self._waiting[name]
