"""The index for the routes that list and search.

A page comes in an index's own order, so reading it takes less than handing it to a thread would: it is read on the
loop. What may look at many rows, a search, is done on a thread; comparing with the heads on another, which nobody
waits for long.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from runlore import clock, errors
from runlore.lookup import index as lookup_index
from runlore.store import port

T = TypeVar("T")

WAIT_SECONDS_MAX = 0.005
"""How long a read on the loop waits for a file that is locked; then it is asked again on the thread, which may wait."""
LATE_SECONDS_MAX = 0.1
"""How long an answer waits for the comparison with the heads; then it is of what the index holds."""
REFRESH_SHARE_MAX = 0.2
"""Of the time, the most that is spent on comparing the index with the heads: a large store takes long to list."""


class Lists:
    """The index file at `path`.

    With `refresh_seconds` it is compared with the heads before an answer, if that is longer ago (with 0 always, however
    long it takes); None where a stage of this process keeps it.
    """

    def __init__(self, path: Path, store: port.ObjectStore, *, refresh_seconds: float | None = 1.0) -> None:
        self._path, self._store, self._refresh = path, store, refresh_seconds
        # Three connections, each used by one thread alone: the loop's, one for searches and one for comparing.
        self._asking = ThreadPoolExecutor(1, thread_name_prefix="runlore-lists")
        self._comparing = ThreadPoolExecutor(1, thread_name_prefix="runlore-heads")
        self._on_loop: lookup_index.Index | None = None
        self._index: lookup_index.Index | None = None
        self._compared: lookup_index.Index | None = None
        self._under_way: asyncio.Future[None] | None = None
        self._refreshed: float | None = None
        self._refresh_took = 0.0

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
            self._on_loop.follow()
            return question(self._on_loop)
        except lookup_index.IndexRemade:
            self._refreshed = None
            raise
        except errors.StoreUnavailable:
            return await _in(self._asking, functools.partial(self._ask, question))

    def _ask(self, question: Callable[[lookup_index.Index], T]) -> T:
        if self._index is None:
            self._index = lookup_index.Index(self._path)
        self._index.follow()
        try:
            return question(self._index)
        except lookup_index.IndexRemade:
            self._refreshed = None
            raise

    # --- comparing with the heads -------------------------------------------------------------------------------

    async def _catch_up(self) -> None:
        """Compare with the heads if that is due. Whoever came before it was done waits for it, but not for long."""
        if not self._is_due():
            return
        if self._under_way is None or self._under_way.done() or not self._refresh:
            self._under_way = asyncio.ensure_future(_in(self._comparing, self._compare))
        patience = LATE_SECONDS_MAX if self._refresh and self._refreshed is not None else None
        done, _ = await asyncio.wait({self._under_way}, timeout=patience)
        for one in done:
            one.result()

    def _is_due(self) -> bool:
        if self._refresh is None:
            return False
        if self._refreshed is None or not self._refresh:
            return True
        every = max(self._refresh, self._refresh_took * (1 / REFRESH_SHARE_MAX - 1))
        return clock.monotonic() - self._refreshed >= every

    def _compare(self) -> None:
        began = clock.monotonic()
        if self._compared is None:
            self._compared = lookup_index.Index(self._path)
        # The thread's own loop: the rows are written here, where they block nobody.
        asyncio.run(lookup_index.reconcile(self._compared, self._store))
        self._refreshed = clock.monotonic()
        self._refresh_took = self._refreshed - began

    async def close(self) -> None:
        if self._under_way is not None:
            await asyncio.gather(self._under_way, return_exceptions=True)
        for executor in (self._asking, self._comparing):
            await asyncio.to_thread(executor.shutdown)
        for one in (self._on_loop, self._index, self._compared):
            if one is not None:
                one.close()


async def _in(executor: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    """`work` on a thread, with the context, which holds the clock."""
    run = functools.partial(contextvars.copy_context().run, work)
    return await asyncio.get_running_loop().run_in_executor(executor, run)
