"""The newest seed that this machine saw of each line: asked for again, an older one is never taken (invariant 11).

One SQLite file beside the outbox, which several processes share and a restart finds again. What was seen is kept for as
long as a seed lasts: a store that was put back to an earlier state costs the seeds of that time, not all that follow.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runlore import clock, errors, sqlitefile

FILE = "seen.db"
LINES_MAX = 10_000
"""Lines (a rollout, or an agent of it) whose newest seed is remembered; what was asked for longest ago goes first."""
SECONDS_MAX = 72 * 3600
"""How long what was seen counts, in seconds: the term of a seed."""
FRESH_SECONDS = 3600
"""What says nothing new is written down again only after this long."""
BUSY_SECONDS_MAX = 1.0
"""How long another process may hold the file, in seconds; it takes milliseconds."""
_TABLE = """
CREATE TABLE IF NOT EXISTS seen (
    place TEXT, rollout TEXT, line TEXT, seed TEXT NOT NULL, revision INTEGER NOT NULL, version INTEGER NOT NULL,
    at REAL NOT NULL, PRIMARY KEY (place, rollout, line)
);
CREATE INDEX IF NOT EXISTS seen_at ON seen (at);
"""


@dataclass(frozen=True)
class Newest:
    """The newest of what was seen of a line; `seed` is empty where only its workspace was asked for."""

    seed: str
    revision: int
    version: int

    def and_then(self, later: Newest) -> Newest:
        """The newest of both. Where replicas gave each a part of it, the seed is that of the newer workspace."""
        first, last = sorted((self, later), key=lambda one: (bool(one.seed), one.version, one.revision))
        return Newest(last.seed, max(first.revision, last.revision), max(first.version, last.version))


class Seen:
    """What was seen at `place` (whoever answers), in `folder`. What fails is told, and stops nobody."""

    def __init__(self, folder: Path, place: str, failed: Callable[[str, BaseException], None]) -> None:
        self._path = folder / FILE
        # Of a URL, which may hold a password, nothing is written down.
        self._place = hashlib.sha256(place.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        self._failed = failed

    async def before(self, rollout: str, line: str | None) -> Newest | None:
        """The newest seed of a line (an agent's, or the rollout's main one); none where none counts any more."""
        found = await self._told(self._read, rollout, line or "")
        return found[0] if found is not None else None

    async def checked(self, rollout: str, line: str | None, now: Newest, before: Newest | None) -> None:
        """Note what an answer says. Raises `errors.SeedBehind` where `before` was newer."""
        if before is not None and (now.revision < before.revision or now.version < before.version):
            raise errors.SeedBehind(
                f"revision {now.revision} and version {now.version} of the workspace are older than what was seen:"
                f" {before.revision} and {before.version}",
                hint=f"if the store was put back on purpose: remove {self._path}",
            )
        if now.revision or now.version:
            await self._told(self._note, rollout, line or "", now)

    async def forget(self, rollout: str, line: str | None) -> None:
        await self._told(self._forget, rollout, line or "")

    async def _told(self, work: Callable[..., Any], *args: Any) -> Any:
        try:
            return await asyncio.to_thread(work, *args)
        except (OSError, sqlite3.Error) as exc:
            self._failed("what was seen of seeds", exc)
            return None

    # --- blocking -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlitefile.connect(self._path, wait_seconds_max=BUSY_SECONDS_MAX)
        try:
            # A power cut may take the last of it back, and what is older is still true.
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.executescript(_TABLE)
            yield connection
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            self._path.unlink(missing_ok=True)  # It is none, or broken: what was seen begins anew.
            raise
        finally:
            connection.close()

    def _read(self, rollout: str, line: str) -> tuple[Newest, float] | None:
        if not self._path.exists():
            return None
        with self._open() as connection:
            return self._row(connection, rollout, line)

    def _row(self, connection: sqlite3.Connection, rollout: str, line: str) -> tuple[Newest, float] | None:
        row = connection.execute(
            "SELECT seed, revision, version, at FROM seen WHERE place = ? AND rollout = ? AND line = ?",
            (self._place, rollout, line),
        ).fetchone()
        if row is None or abs(clock.now().timestamp() - row[3]) > SECONDS_MAX:
            return None
        return Newest(*row[:3]), row[3]

    def _note(self, rollout: str, line: str, newest: Newest) -> None:
        now = clock.now().timestamp()
        with self._open() as connection:
            old = self._row(connection, rollout, line)
            if old is not None and old[0].and_then(newest) == old[0] and now - old[1] < FRESH_SECONDS:
                return
            with sqlitefile.transaction(connection):
                # Once more, now that nobody else writes.
                old = self._row(connection, rollout, line)
                kept = newest if old is None else old[0].and_then(newest)
                connection.execute(
                    "INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (self._place, rollout, line, kept.seed, kept.revision, kept.version, now),
                )
                connection.execute(
                    "DELETE FROM seen WHERE rowid IN (SELECT rowid FROM seen ORDER BY at DESC LIMIT -1 OFFSET ?)",
                    (LINES_MAX,),
                )

    def _forget(self, rollout: str, line: str) -> None:
        with self._open() as connection:
            connection.execute(
                "DELETE FROM seen WHERE place = ? AND rollout = ? AND line = ?", (self._place, rollout, line)
            )
