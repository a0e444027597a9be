"""The index for the routes that list and search.

A page comes in an index's own order, so reading it takes less than handing it to a thread would: it is read on the
loop. What may look at many rows (a search, a comparison with the heads) is done on a thread of its own.
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
REFRESH_SHARE_MAX = 0.2
"""Of the time, the most that is spent on comparing the index with the heads: a large store takes long to list."""


class Lists:
    """The index file at `path`.

    With `refresh_seconds` it is compared with the heads before an answer, if that is longer ago; None where a stage
    of this process keeps it.
    """

    def __init__(self, path: Path, store: port.ObjectStore, *, refresh_seconds: float | None = 1.0) -> None:
        self._path, self._store, self._refresh = path, store, refresh_seconds
        # One thread: neither connection is ever used by two.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="runlore-lists")
        self._index: lookup_index.Index | None = None
        self._on_loop: lookup_index.Index | None = None
        self._refreshed: float | None = None
        self._refresh_took = 0.0

    async def ask(self, question: Callable[[lookup_index.Index], T]) -> T:
        """What `question` finds in the index, on the thread."""
        # With the context, which holds the clock.
        work = functools.partial(contextvars.copy_context().run, self._ask, question)
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def page(self, question: Callable[[lookup_index.Index], T]) -> T:
        """What `question` finds in the index, where that is a bounded number of rows that an index leads to."""
        if self._on_loop is None or self._is_due():
            await self.ask(lambda index: None)  # Made, and compared with the heads, where it blocks nobody.
        if self._on_loop is None:
            self._on_loop = lookup_index.Index(self._path, wait_seconds_max=WAIT_SECONDS_MAX)
        try:
            self._on_loop.follow()
            return question(self._on_loop)
        except lookup_index.IndexRemade:
            self._refreshed = None
            raise
        except errors.StoreUnavailable:
            return await self.ask(question)

    def _is_due(self) -> bool:
        if self._refresh is None:
            return False
        if self._refreshed is None or not self._refresh:
            return True
        every = max(self._refresh, self._refresh_took * (1 / REFRESH_SHARE_MAX - 1))
        return clock.monotonic() - self._refreshed >= every

    def _ask(self, question: Callable[[lookup_index.Index], T]) -> T:
        if self._index is None:
            self._index = lookup_index.Index(self._path)
        self._index.follow()
        if self._is_due():
            began = clock.monotonic()
            # The thread's own loop: the rows are written here, where they block nobody.
            asyncio.run(lookup_index.reconcile(self._index, self._store))
            self._refreshed = clock.monotonic()
            self._refresh_took = self._refreshed - began
        try:
            return question(self._index)
        except lookup_index.IndexRemade:
            self._refreshed = None
            raise

    async def close(self) -> None:
        await asyncio.to_thread(self._thread.shutdown)
        for one in (self._index, self._on_loop):
            if one is not None:
                one.close()
