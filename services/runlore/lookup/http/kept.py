"""What was composed from a revision, kept for the next requests: it never changes, and making it reads every part.

Bounded by the size that its maker tells. Who asks while it is being made waits for it instead of making it too.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """Values by name, the ones that were asked for last, up to `size_max` together."""

    def __init__(self, *, size_max: int) -> None:
        self._size_max, self._size = size_max, 0
        self._found: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._making: dict[Hashable, asyncio.Task[tuple[T, int]]] = {}

    async def get(self, name: Hashable, make: Callable[[], Awaitable[tuple[T, int]]]) -> T:
        """The value of `name`; `make` gives it and its size where it is not there."""
        if name in self._found:
            self._found.move_to_end(name)
            return self._found[name][0]
        if name not in self._making:
            self._making[name] = asyncio.ensure_future(self._made(name, make))
        # Who goes away does not take it from the others.
        return (await asyncio.shield(self._making[name]))[0]

    async def _made(self, name: Hashable, make: Callable[[], Awaitable[tuple[T, int]]]) -> tuple[T, int]:
        try:
            value, size = await make()
        finally:
            del self._making[name]
        self._found[name] = value, size
        self._size += size
        while self._size > self._size_max and len(self._found) > 1:
            self._size -= self._found.popitem(last=False)[1][1]
        return value, size

    def clear(self) -> None:
        self._found.clear()
        self._size = 0
