"""The index for the routes that list and search: on a thread of its own, because SQLite blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from runlore import clock
from runlore.lookup import index as lookup_index
from runlore.store import port

T = TypeVar("T")


class Lists:
    """The index file at `path`.

    With `refresh_seconds` it is compared with the heads before an answer, if that is longer ago; None where a stage
    of this process keeps it.
    """

    def __init__(self, path: Path, store: port.ObjectStore, *, refresh_seconds: float | None = 1.0) -> None:
        self._path, self._store, self._refresh = path, store, refresh_seconds
        # One thread: the connection is never used by two.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="runlore-lists")
        self._index: lookup_index.Index | None = None
        self._refreshed: float | None = None

    async def ask(self, question: Callable[[lookup_index.Index], T]) -> T:
        """What `question` finds in the index."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._ask, question)

    def _ask(self, question: Callable[[lookup_index.Index], T]) -> T:
        if self._index is None:
            self._index = lookup_index.Index(self._path)
        self._index.follow()
        due = self._refreshed is None or clock.monotonic() - self._refreshed >= (self._refresh or 0.0)
        if self._refresh is not None and due:
            # The thread's own loop: the rows are written here, where they block nobody.
            asyncio.run(lookup_index.reconcile(self._index, self._store))
            self._refreshed = clock.monotonic()
        try:
            return question(self._index)
        except lookup_index.IndexRemade:
            self._refreshed = None
            raise

    async def close(self) -> None:
        await asyncio.to_thread(self._thread.shutdown)
        if self._index is not None:
            self._index.close()
