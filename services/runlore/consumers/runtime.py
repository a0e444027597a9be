"""How a stage runs its jobs: in turn and on the spot (simulation), or concurrently and off the loop (worker)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


async def in_turn(jobs: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """The results of the jobs, run one after the other; the first error ends it."""
    return [await job() for job in jobs]


async def on_the_spot(function: Callable[..., T], *args: Any) -> T:
    """`function(*args)`, here and now."""
    return function(*args)


@dataclass(frozen=True)
class Runtime:
    """`gather` runs independent jobs; `offload` runs blocking or CPU-bound work."""

    gather: Callable[[Sequence[Callable[[], Awaitable[Any]]]], Awaitable[list[Any]]] = in_turn
    offload: Callable[..., Awaitable[Any]] = on_the_spot


SEQUENTIAL = Runtime()
