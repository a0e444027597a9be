"""SQLite files that several processes open: what SQLite's own wait for a lock does not cover.

`busy_timeout` makes most statements wait for another process. Two do not wait and fail at once with "database
is locked": the change of a new file to WAL, and a transaction that read before it writes while another one
wrote in between. So the first is tried again here, and a transaction that writes says so at its beginning.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

BUSY_SECONDS_MAX = 30.0
"""How long another process may hold a file before a call gives up."""
WAIT_SECONDS = 0.01
FREE_BYTES_MIN = 1024 * 1024
"""With less free space than this a failed write is told as a full disk, in bytes."""
FULL_HINT = "free space on its disk: what failed is tried again, and nothing is lost"


def connect(path: Path, *, wait_seconds_max: float = BUSY_SECONDS_MAX) -> sqlite3.Connection:
    """A connection that any thread may use, one at a time. It begins no transaction by itself."""
    # Legacy transaction control with no implicit BEGIN: every transaction is written out.
    return sqlite3.connect(path, timeout=wait_seconds_max, isolation_level=None, check_same_thread=False)


def use_wal(connection: sqlite3.Connection) -> None:
    """Put the file into WAL mode. Raises `sqlite3.OperationalError` if another process holds it for longer."""
    for tries_left in reversed(range(int(BUSY_SECONDS_MAX / WAIT_SECONDS))):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as exc:
            busy = exc.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not busy or not tries_left:
                raise
        time.sleep(WAIT_SECONDS)


def is_full(exc: sqlite3.Error, path: Path) -> bool:
    """Whether a file failed because its disk is full: SQLite tells that of a write ahead log as an "I/O error"."""
    code = (getattr(exc, "sqlite_errorcode", None) or 0) & 0xFF
    if code != sqlite3.SQLITE_IOERR:
        return code == sqlite3.SQLITE_FULL
    try:
        return shutil.disk_usage(path.parent).free < FREE_BYTES_MIN
    except OSError:
        return False


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    """One transaction, rolled back if its body raises. Inside it sqlite-utils nests savepoints."""
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
