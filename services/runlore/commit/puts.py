"""Putting what must be there: sent again, with growing waits, until the store says what became of it.

For objects that are put if absent, by whoever comes first. A head is moved by `heads.py`, which starts again from
what it read instead; an object named by its content is the store's own to send again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from runlore import clock, errors
from runlore.store import port

TRIES_MAX = 8
WAIT_SECONDS_MIN = 0.01

T = TypeVar("T")


async def wait(attempt: int) -> None:
    """Between the try `attempt` (from 0) and the next: doubled each time, from half of it to one and a half."""
    await clock.sleep(WAIT_SECONDS_MIN * 2**attempt * (0.5 + clock.jitter()))


async def again(step: Callable[[], Awaitable[T]], *, what: str, key: str | None = None) -> T:
    """The result of `step`, which puts one object and may find there what an earlier try of its own has put.

    It is sent again where nothing landed (409, 503) and where something may have (a lost reply); what a 412 means is
    its own to say. Raises `errors.StoreUnavailable`, with `what` and `key` to tell, where that never ends.
    """
    last: errors.RunloreError | None = None
    for attempt in range(TRIES_MAX):
        try:
            return await step()
        except (errors.WriteConflict, errors.OutcomeUnknown, errors.StoreUnavailable) as exc:
            last = exc
            await wait(attempt)
    assert last is not None
    # With why: it is all that whoever is woken by it gets to see.
    raise errors.StoreUnavailable(
        f"{what} could not be put: {last.message}", hint=last.hint, **({"key": key} if key else {})
    ) from last


async def once(store: port.ObjectStore, key: str, body: bytes, *, what: str) -> None:
    """Put `body`, where whatever is at `key` by then means the same."""

    async def put() -> None:
        try:
            await store.put_if_absent(key, body)
        except errors.PreconditionFailed:
            return

    await again(put, what=what, key=key)
