"""Time, ids and randomness: the only module that asks the machine for any of them.

A simulation installs its own `World` and so owns all three (`tests/tidy` forbids `time.time`,
`datetime.now`, `uuid` and `random` elsewhere). Ids are drawn only where a name must never be used twice
(a mark, a temporary file); every identity that matters is derived from the event instead.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import random
import time
from contextvars import ContextVar


class World:
    """The real machine."""

    def now(self) -> dt.datetime:
        """The present time, aware, in UTC."""
        return dt.datetime.now(dt.UTC)

    def monotonic(self) -> float:
        """Seconds from an arbitrary start that never go back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""
        await asyncio.sleep(seconds)

    def random_bytes(self, count: int) -> bytes:
        """`count` bytes that nobody can guess."""
        return os.urandom(count)

    def random(self) -> float:
        """A number in [0, 1): for jitter only."""
        return random.random()


_world: ContextVar[World] = ContextVar("runlore_world", default=World())  # noqa: B039


def install(world: World) -> None:
    """Make `world` the source of time, ids and randomness in the present context."""
    _world.set(world)


def now() -> dt.datetime:
    return _world.get().now()


def now_iso() -> str:
    """The present time as RFC 3339 with microseconds and `+00:00`, as the SDK writes it."""
    return now().isoformat(timespec="microseconds")


def monotonic() -> float:
    return _world.get().monotonic()


async def sleep(seconds: float) -> None:
    await _world.get().sleep(seconds)


def jitter() -> float:
    return _world.get().random()


def new_id() -> str:
    """A name never used before, that sorts by time: 48 bits of milliseconds and 80 of randomness, in hex."""
    milliseconds = int(now().timestamp() * 1000)
    return f"{milliseconds:012x}{_world.get().random_bytes(10).hex()}"


def secret_hex(bytes_count: int) -> str:
    """What nobody can guess, in hex."""
    return _world.get().random_bytes(bytes_count).hex()
