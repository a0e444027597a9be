"""The index for the routes that list and search.

A page comes in an index's own order, so reading it takes less than handing it to a thread would: it is read on the
loop. What may look at many rows, a search, is done on a thread; comparing with the heads on another, which nobody
waits for long. Threads share one interpreter, so what that one does still delays every answer: it takes in the heads
that doorbells name, and looks through all of them only at the start and every `WHOLE_SECONDS`.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from runlore import clock, errors, pipeline
from runlore.bus import port as bus_port
from runlore.consumers import index as index_stage
from runlore.lookup import index as lookup_index
from runlore.store import port

T = TypeVar("T")

WAIT_SECONDS_MAX = 0.005
"""How long a read on the loop waits for a file that is locked; then it is asked again on the thread, which may wait."""
LATE_SECONDS_MAX = 0.1
"""How long an answer waits for the comparison with the heads; then it is of what the index holds."""
WHOLE_SECONDS = 30.0
"""How often all heads are listed although doorbells tell what moved: one may be lost, with a process that died."""
NOBODY = "lists-of-serve"
"""A group that commits nothing: asked for its lag, a bus tells where its topics end."""
REFRESH_SHARE_MAX = 0.2
"""Of the time, the most that is spent on comparing the index with the heads: a large store takes long to list."""


class Lists:
    """The index file at `path`.

    With `refresh_seconds` it is brought up to the heads before an answer, if that is longer ago (with 0 always, however
    long it takes); None where a stage of this process keeps it. Without a `bus` there are no doorbells to go by.
    """

    def __init__(
        self,
        path: Path,
        store: port.ObjectStore,
        bus: bus_port.Bus | None = None,
        *,
        refresh_seconds: float | None = 1.0,
    ) -> None:
        self._path, self._store, self._bus, self._refresh = path, store, bus, refresh_seconds
        # Three connections, each used by one thread alone: the loop's, one for searches and one for comparing.
        self._asking = ThreadPoolExecutor(1, thread_name_prefix="runlore-lists")
        self._comparing = ThreadPoolExecutor(1, thread_name_prefix="runlore-heads")
        self._on_loop: lookup_index.Index | None = None
        self._index: lookup_index.Index | None = None
        self._compared: lookup_index.Index | None = None
        self._under_way: asyncio.Future[None] | None = None
        self._refreshed: float | None = None
        self._refresh_took = 0.0
        self._whole: float | None = None
        self._whole_took = 0.0
        self._heard: dict[int, int] = {}
        """The next doorbell to hear, by partition."""

    async def ask(self, question: Callable[[lookup_index.Index], T]) -> T:
        """What `question` finds in the index, on a thread."""
        await self._catch_up()
        return await _in(self._asking, functools.partial(self._ask, question))

    async def page(self, question: Callable[[lookup_index.Index], T]) -> T:
        """What `question` finds in the index, where that is a bounded number of rows that an index leads to."""
        await self._catch_up()
        try:
            if self._on_loop is None:
                self._on_loop = lookup_index.Index(self._path, wait_seconds_max=WAIT_SECONDS_MAX)
            if self._on_loop.follow() and self._refresh is not None:
                self._refreshed = None
                await self._catch_up()
            return question(self._on_loop)
        except lookup_index.IndexRemade:
            self._refreshed = None
            raise
        except errors.StoreUnavailable:
            return await _in(self._asking, functools.partial(self._ask, question))

    def _ask(self, question: Callable[[lookup_index.Index], T]) -> T:
        if self._index is None:
            self._index = lookup_index.Index(self._path)
        if self._index.follow():
            self._refreshed = None
        try:
            return question(self._index)
        except lookup_index.IndexRemade:
            self._refreshed = None
            raise

    # --- comparing with the heads -------------------------------------------------------------------------------

    async def _catch_up(self) -> None:
        """Take in what moved, if that is due. Whoever came before it was done waits for it, but not for long."""
        if not self._is_due():
            return
        if self._under_way is None or self._under_way.done() or not self._refresh:
            self._under_way = asyncio.ensure_future(self._bring_up())
        patience = LATE_SECONDS_MAX if self._refresh and self._refreshed is not None else None
        done, _ = await asyncio.wait({self._under_way}, timeout=patience)
        for one in done:
            one.result()

    def _is_due(self) -> bool:
        if self._refresh is None:
            return False
        if self._refreshed is None or not self._refresh:
            return True
        return clock.monotonic() - self._refreshed >= _pause(self._refresh, self._refresh_took)

    async def _bring_up(self) -> None:
        began = clock.monotonic()
        if self._bus is None or self._refreshed is None or self._whole is None or self._whole_is_due(began):
            # The ends first: what moves while the heads are listed is heard afterwards.
            heard = await self._ends()
            await _in(self._comparing, self._compare)
            self._heard, self._whole = heard, clock.monotonic()
            self._whole_took = self._whole - began
        else:
            bells = [one async for one in self._bus.read(pipeline.CHANGED.name, start=self._heard)]
            if bells:
                await _in(self._comparing, functools.partial(self._take_in, bells))
            self._heard |= {one.partition: one.offset + 1 for one in bells}
        self._refreshed = clock.monotonic()
        self._refresh_took = self._refreshed - began

    def _whole_is_due(self, now: float) -> bool:
        return not self._refresh or now - (self._whole or 0.0) >= _pause(WHOLE_SECONDS, self._whole_took)

    async def _ends(self) -> dict[int, int]:
        if self._bus is None:
            return {}
        lag = await self._bus.lag(group=NOBODY, topic=pipeline.CHANGED.name)
        first = await self._bus.committed(group=NOBODY, topic=pipeline.CHANGED.name)
        return {partition: first.get(partition, 0) + behind for partition, behind in lag.items()}

    def _compare(self) -> None:
        # The thread's own loop: the rows are written here, where they block nobody.
        asyncio.run(lookup_index.reconcile(self._comparing_index(), self._store))

    def _take_in(self, bells: list[bus_port.Message]) -> None:
        index = self._comparing_index()
        if index.follow():
            return self._compare()
        try:
            asyncio.run(index_stage.IndexStage(self._store, index).process(bells))
        except lookup_index.IndexRemade:
            self._compare()

    def _comparing_index(self) -> lookup_index.Index:
        if self._compared is None:
            self._compared = lookup_index.Index(self._path)
        return self._compared

    async def close(self) -> None:
        if self._under_way is not None:
            await asyncio.gather(self._under_way, return_exceptions=True)
        for executor in (self._asking, self._comparing):
            await asyncio.to_thread(executor.shutdown)
        for one in (self._on_loop, self._index, self._compared):
            if one is not None:
                one.close()


def _pause(seconds: float, took: float) -> float:
    """How long until it is done again, so that it has its share of the time at most."""
    return max(seconds, took * (1 / REFRESH_SHARE_MAX - 1))


async def _in(executor: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    """`work` on a thread, with the context, which holds the clock."""
    run = functools.partial(contextvars.copy_context().run, work)
    return await asyncio.get_running_loop().run_in_executor(executor, run)
