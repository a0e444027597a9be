"""The index of a simulated process on a disk of its own, which may be full for a while."""

from __future__ import annotations

import contextlib
import sqlite3

from runlore import errors
from runlore.lookup import index as lookup_index
from runlore.testing import cluster


class Index(lookup_index.Index):
    """The production index on a disk that may be full: then SQLite itself says so where the file would grow."""

    def __init__(self, path, world, name):
        self._world, self._name = world, name
        super().__init__(path)

    def _prepare(self):
        if self._name in self._world.full and not self.path.exists():
            self._world.happened[cluster.FULL_OWN] += 1
            full = sqlite3.OperationalError("database or disk is full")
            full.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise full
        made = super()._prepare()
        # Nothing here outlives the schedule, so nothing has to be on the disk for sure.
        made.conn.execute("PRAGMA synchronous=OFF")
        self._limit(made, self._name in self._world.full)
        return made

    def is_full(self, is_full):
        self._limit(self._db, is_full)

    @staticmethod
    def _limit(made, is_full):
        # SQLite takes no limit below what the file has.
        made.conn.execute(f"PRAGMA max_page_count={1 if is_full else 2**30}")

    @contextlib.contextmanager
    def _file(self):
        try:
            with super()._file():
                yield
        except errors.StoreUnavailable as exc:
            self._world.happened[cluster.FULL_OWN] += (
                exc.__cause__.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL
            )
            raise


def small_pages(connect):
    """SQLite files whose every few rows need a page more, so that a full disk is felt."""

    def connected(*args, **more):
        made = connect(*args, **more)
        made.execute("PRAGMA synchronous=OFF")
        made.execute("PRAGMA page_size=512")
        return made

    return connected
