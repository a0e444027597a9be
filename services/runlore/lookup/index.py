"""The index: rows of a SQLite file, for search and lists. A cache: deleting the file loses nothing.

It applies a head only when its counter is higher than the row's (a late doorbell changes nothing), and
compares a LIST of all heads with its rows at start and on a schedule (a lost doorbell costs nothing). Rows go
by tombstone, never by absence from a LIST. Writing is sqlite-utils inside one transaction; searching is FTS5.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
from sqlite_utils import Database

from runlore import errors, sqlitefile
from runlore.commit import heads, keys, lines, marks, revisions, rollouts
from runlore.store import port

log = structlog.get_logger("runlore.index")

SCHEMA_VERSION = 2
RESULTS_MAX = 100
TEXT_CHARS_MAX = 200_000
"""Characters of one rollout's summary that are searchable."""
APPLY_BATCH = 256

_SCHEMA = """
CREATE TABLE heads (key TEXT PRIMARY KEY, counter INTEGER NOT NULL, etag TEXT NOT NULL) STRICT;
CREATE TABLE memories (
  project TEXT NOT NULL, memory TEXT NOT NULL, counter INTEGER NOT NULL, revision INTEGER NOT NULL,
  manifest TEXT, held INTEGER NOT NULL, moved_at TEXT NOT NULL, PRIMARY KEY (project, memory)
) STRICT;
CREATE TABLE rollouts (
  project TEXT NOT NULL, memory TEXT NOT NULL, rollout TEXT NOT NULL, kind TEXT NOT NULL, original TEXT NOT NULL,
  subject TEXT, counter INTEGER NOT NULL, runs INTEGER NOT NULL, updated_at TEXT NOT NULL, moved_at TEXT NOT NULL,
  PRIMARY KEY (project, memory, rollout)
) STRICT;
CREATE TABLE runs (
  project TEXT NOT NULL, memory TEXT NOT NULL, rollout TEXT NOT NULL, run TEXT NOT NULL, attempt INTEGER NOT NULL,
  event TEXT NOT NULL, ended_at TEXT NOT NULL, superseded INTEGER NOT NULL,
  PRIMARY KEY (project, memory, rollout, run, attempt)
) STRICT;
CREATE TABLE snapshots (
  project TEXT NOT NULL, rollout TEXT NOT NULL, agent TEXT NOT NULL, counter INTEGER NOT NULL,
  version INTEGER NOT NULL, ref TEXT, versions INTEGER NOT NULL, branches INTEGER NOT NULL, tags TEXT NOT NULL,
  moved_at TEXT NOT NULL, PRIMARY KEY (project, rollout, agent)
) STRICT;
CREATE INDEX runs_by_event ON runs (event);
CREATE INDEX runs_by_run ON runs (run);
CREATE VIRTUAL TABLE summaries USING fts5(
  project UNINDEXED, memory UNINDEXED, rollout UNINDEXED, subject UNINDEXED, text, tokenize = 'unicode61'
);
"""


_MAY_PASS = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_NOMEM,
}
"""What SQLite says when the file may be sound, but can not be used now."""


class IndexRemade(errors.Retryable):
    """The index file was damaged and was made anew; ask again."""

    kind = "index_remade"


class Index:
    """The index file at `path`. Not safe for two threads; each process may open its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = self._open()
        self._file_id = _file_id(path)

    def _open(self) -> Database:
        try:
            return self._prepare()
        except sqlite3.DatabaseError as exc:
            if _may_pass(exc):
                raise errors.StoreUnavailable(f"the index {self.path} can not be used: {exc}") from exc
            return self._remake()

    def _remake(self) -> Database:
        """A new file in place of a damaged one: it is a cache."""
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        return self._prepare()

    @contextlib.contextmanager
    def _file(self) -> Iterator[None]:
        """Make a fault of the file an error of ours; a damaged file is made anew."""
        try:
            yield
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.NotSupportedError):
            raise
        except sqlite3.DatabaseError as exc:
            if _may_pass(exc):
                raise errors.StoreUnavailable(f"the index {self.path} can not be used: {exc}") from exc
            self._db.close()
            self._db = self._remake()
            self._file_id = _file_id(self.path)
            raise IndexRemade() from exc

    def _prepare(self) -> Database:
        connection = sqlitefile.connect(self.path)
        try:
            if _version(connection) != SCHEMA_VERSION:
                sqlitefile.use_wal(connection)
                _make(connection)
            connection.execute("PRAGMA synchronous=NORMAL")
            return Database(connection)
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        self._db.close()

    def follow(self) -> None:
        """Where the file was deleted under this process (it is a cache, so anybody may): begin a new one."""
        if _file_id(self.path) != self._file_id:
            self._db.close()
            self._db = self._open()
            self._file_id = _file_id(self.path)

    # --- writing --------------------------------------------------------------------------------------

    def apply(self, found: Iterable[heads.Head]) -> int:
        """Take these heads in, where their counters are higher than the rows'; how many were."""
        applied = 0
        with self._file(), sqlitefile.transaction(self._db.conn):
            for head in found:
                row = self._one("SELECT counter FROM heads WHERE key = ?", [head.key])
                if head.counter == 0 or (row and row["counter"] >= head.counter):
                    continue
                self._db["heads"].upsert(
                    {"key": head.key, "counter": head.counter, "etag": head.etag or ""}, pk="key"
                )
                if head.body["format"] == rollouts.HEAD_FORMAT:
                    self._rollout(head)
                elif head.body["format"] == lines.HEAD_FORMAT:
                    self._snapshot(head)
                else:
                    self._memory(head)
                applied += 1
        return applied

    def _memory(self, head: heads.Head) -> None:
        body = head.body
        row = {
            "project": body["project"],
            "memory": body["memory"],
            "counter": head.counter,
            "revision": int(body.get("revision", 0)),
            "manifest": body.get("manifest"),
            "held": len(body.get("held", {})),
            "moved_at": body["moved_at"],
        }
        self._db["memories"].upsert(row, pk=("project", "memory"))

    def _snapshot(self, head: heads.Head) -> None:
        body = head.body
        row = {
            **{name: body[name] for name in ("project", "rollout", "agent", "moved_at")},
            "counter": head.counter,
            "version": int(body.get("version", 0)),
            "ref": body.get("ref"),
            "versions": len(body.get("versions", ())),
            "branches": len(body.get("branches", {})),
            "tags": " ".join(sorted(body.get("tags", {}))),
        }
        self._db["snapshots"].upsert(row, pk=("project", "rollout", "agent"))

    def _rollout(self, head: heads.Head) -> None:
        body = head.body
        where = {name: body[name] for name in ("project", "memory", "rollout")}
        row = {
            **where,
            "kind": body["kind"],
            "original": body["original"],
            "subject": body.get("subject"),
            "counter": head.counter,
            "runs": len(body["runs"]),
            "updated_at": body["updated_at"],
            "moved_at": body["moved_at"],
        }
        self._db["rollouts"].upsert(row, pk=("project", "memory", "rollout"))
        runs = []
        for run, entry in body["runs"].items():
            common = {**where, "run": run, "ended_at": entry["ended_at"]}
            runs.append({**common, "attempt": entry["attempt"], "event": entry["event"], "superseded": 0})
            for attempt, _, event in entry.get("earlier", ()):
                runs.append({**common, "attempt": attempt, "event": event, "superseded": 1})
        self._db["runs"].upsert_all(runs, pk=("project", "memory", "rollout", "run", "attempt"))
        match = [where["project"], where["memory"], where["rollout"]]
        self._db.execute("DELETE FROM summaries WHERE project = ? AND memory = ? AND rollout = ?", match)
        self._db.execute(
            "INSERT INTO summaries (project, memory, rollout, subject, text) VALUES (?, ?, ?, ?, ?)",
            [*match, body.get("subject"), text_of(body["summary"])],
        )

    # --- reading --------------------------------------------------------------------------------------

    def etags(self) -> dict[str, str]:
        return {row["key"]: row["etag"] for row in self._all("SELECT key, etag FROM heads")}

    def behind(self, counters: Mapping[str, int]) -> list[str]:
        """The heads, of those named with a counter, of which the rows are older; with 0, which says nothing, all."""
        found = []
        for key, counter in sorted(counters.items()):
            row = self._one("SELECT counter FROM heads WHERE key = ?", [key])
            if row is None or not counter or row["counter"] < counter:
                found.append(key)
        return found

    def memories(self, project: str | None = None) -> list[dict[str, Any]]:
        """Memories with their revision and how many rollouts and runs they have."""
        return self._all(
            """SELECT m.project, m.memory, COALESCE(h.revision, 0) AS revision, COALESCE(h.held, 0) AS held,
                      h.moved_at, COUNT(r.rollout) AS rollouts, COALESCE(SUM(r.runs), 0) AS runs
               FROM (SELECT project, memory FROM memories UNION SELECT project, memory FROM rollouts) m
               LEFT JOIN memories h USING (project, memory) LEFT JOIN rollouts r USING (project, memory)
               WHERE :project IS NULL OR m.project = :project
               GROUP BY m.project, m.memory ORDER BY m.project, m.memory""",
            {"project": project},
        )

    def held(self) -> int:
        """Rollouts that all memories hold for review."""
        return int(self._all("SELECT COALESCE(SUM(held), 0) AS held FROM memories", {})[0]["held"])

    def rollouts(
        self, project: str, memory: str, *, limit: int = RESULTS_MAX, after: tuple[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """The rollouts of a memory, newest first; those behind `after` (when it was updated, its alias)."""
        # A rollout of an unknown time sorts behind every other: no time is below ''.
        rows = self._all(
            """SELECT *, CASE updated_at WHEN 'unknown' THEN '' ELSE updated_at END AS place FROM rollouts
               WHERE project = :project AND memory = :memory
                 AND (:rollout IS NULL OR place < :place OR (place = :place AND rollout > :rollout))
               ORDER BY place DESC, rollout LIMIT :limit""",
            {
                **{"project": project, "memory": memory, "limit": limit},
                **_place(("place", "rollout"), after),
            },
        )
        return [_without(row, "place") for row in rows]

    def snapshots(
        self,
        project: str | None = None,
        *,
        limit: int = RESULTS_MAX,
        after: tuple[str, str, str] | None = None,
    ) -> list[dict[str, Any]]:
        """The lines of workspaces, the one that moved last first; those behind `after` (when, rollout, agent)."""
        return self._all(
            """SELECT * FROM snapshots WHERE (:project IS NULL OR project = :project)
                 AND (:at IS NULL OR moved_at < :at
                      OR (moved_at = :at AND (rollout, agent) > (:rollout, :agent)))
               ORDER BY moved_at DESC, project, rollout, agent LIMIT :limit""",
            {"project": project, "limit": limit, **_place(("at", "rollout", "agent"), after)},
        )

    def tagged(self, project: str, tag: str = "template") -> list[dict[str, Any]]:
        """The lines of workspaces with a snapshot of this tag, the one that moved last first."""
        return self._all(
            """SELECT * FROM snapshots WHERE project = ? AND instr(' ' || tags || ' ', ?) > 0
               ORDER BY moved_at DESC, rollout, agent LIMIT 100""",
            [project, f" {tag} "],
        )

    def runs(self, name: str, project: str | None = None) -> list[dict[str, Any]]:
        """The runs with this event id, run id alias or rollout alias."""
        return self._all(
            """SELECT * FROM runs WHERE (event = :name OR run = :name OR rollout = :name)
               AND (:project IS NULL OR project = :project)
               ORDER BY ended_at DESC, run, attempt LIMIT 100""",
            {"name": name, "project": project},
        )

    def recent_runs(
        self,
        project: str | None = None,
        *,
        limit: int = 20,
        after: tuple[str, int] | None = None,
        numbered: bool = False,
    ) -> list[dict[str, Any]]:
        """The newest runs first; those behind `after` (when one ended, its `number`: with `numbered`)."""
        rows = self._all(
            """SELECT *, rowid AS number, CASE ended_at WHEN 'unknown' THEN '' ELSE ended_at END AS place FROM runs
               WHERE (:project IS NULL OR project = :project)
                 AND (:number IS NULL OR place < :place OR (place = :place AND rowid < :number))
               ORDER BY place DESC, rowid DESC LIMIT :limit""",
            {"project": project, "limit": limit, **_place(("place", "number"), after)},
        )
        return [_without(row, "place", *(() if numbered else ("number",))) for row in rows]

    def search(
        self, query: str, project: str, memory: str, *, subject: str | None = None, limit: int = 20
    ) -> list[dict[str, Any]]:
        """Summaries that match every word of `query`, best first. Only those without a subject, or of `subject`."""
        # Half a surrogate pair, as a terminal may hand in, is no character that SQLite could take; and a NUL would end
        # the expression inside of its quotes, which would look like a damaged file.
        query = query.encode("utf-8", "replace").decode("utf-8").replace("\0", " ")
        words = " ".join('"' + word.replace('"', '""') + '"' for word in query.split())
        if not words:
            raise errors.InvalidInput("the query has no word")
        return self._all(
            """SELECT rollout, snippet(summaries, 4, '[', ']', ' … ', 16) AS snippet, bm25(summaries) AS rank
               FROM summaries
               WHERE summaries MATCH ? AND project = ? AND memory = ? AND (subject IS NULL OR subject = ?)
               ORDER BY rank LIMIT ?""",
            [words, project, memory, subject, min(limit, RESULTS_MAX)],
        )

    def runs_for(
        self, project: str, memory: str | None, *, subject: str | None = None, limit: int = 20
    ) -> list[dict[str, Any]]:
        """The newest runs of a project, or of one memory of it; only those without a subject, or of `subject`."""
        return self._all(
            """SELECT u.memory, u.rollout, u.run, u.attempt, u.ended_at FROM runs u
               JOIN rollouts r USING (project, memory, rollout)
               WHERE u.project = :project AND (:memory IS NULL OR u.memory = :memory) AND u.superseded = 0
                     AND (r.subject IS NULL OR r.subject = :subject)
               ORDER BY u.ended_at = 'unknown', u.ended_at DESC, u.rowid DESC LIMIT :limit""",
            {"project": project, "memory": memory, "subject": subject, "limit": limit},
        )

    def _all(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[dict[str, Any]]:
        with self._file():
            return list(self._db.query(sql, parameters))

    def _one(self, sql: str, parameters: Sequence[Any]) -> dict[str, Any] | None:
        rows = self._all(sql, parameters)
        return rows[0] if rows else None


def _without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def place(time: str) -> str:
    """A time as lists sort by it: an unknown one behind every other."""
    return "" if time == "unknown" else time


def _place(names: Sequence[str], after: Sequence[Any] | None) -> dict[str, Any]:
    """Where a list goes on, as parameters of its query."""
    return dict(zip(names, after or [None] * len(names), strict=True))


def text_of(summary: Any) -> str:
    """Every text in a summary, one a line: what search looks through."""
    found: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, dict):
            for one in value.values():
                walk(one)
        elif isinstance(value, list):
            for one in value:
                walk(one)

    walk(summary)
    return "\n".join(found)[:TEXT_CHARS_MAX]


async def reconcile(index: Index, store: port.ObjectStore) -> int:
    """Compare a LIST of all heads with the rows, and take in what differs; how many heads were applied."""
    index.follow()
    try:
        return await _reconcile(index, store)
    except IndexRemade:
        return await _reconcile(index, store)


async def _reconcile(index: Index, store: port.ObjectStore) -> int:
    known = index.etags()
    applied = 0
    batch: list[str] = []
    for project in await marks.projects(store):
        for kind in (keys.ROLLOUTS, keys.MEMORIES, keys.WORKSPACES):
            async for row in store.list(f"{project}/{kind}/"):
                if known.get(row.key) != row.etag:
                    batch.append(row.key)
                if len(batch) == APPLY_BATCH:
                    applied += await take_in(index, store, batch)
                    batch = []
    return applied + await take_in(index, store, batch)


async def take_in(index: Index, store: port.ObjectStore, head_keys: Sequence[str]) -> int:
    """Read these heads and apply them; how many were newer.

    One that can not be read is left out: it must not hide the others, and `runlore verify` names it.
    """
    readable = []
    for key, one in zip(head_keys, await store.get_many(head_keys), strict=True):
        try:
            if one is not None:
                readable.append(heads.parse(key, one, fmt=fmt_of(key)))
        except errors.Fatal as exc:
            log.warning("head left out of the index", key=key, problem=exc.message)
    return index.apply(readable)


def _may_pass(exc: sqlite3.DatabaseError) -> bool:
    """Whether the file may be sound: what is busy, full or not ours to open is not damaged."""
    return (getattr(exc, "sqlite_errorcode", 0) & 0xFF) in _MAY_PASS


def fmt_of(key: str) -> str:
    """The format of the head at `key`."""
    kind = key.split("/")[1]
    return {keys.ROLLOUTS: rollouts.HEAD_FORMAT, keys.WORKSPACES: lines.HEAD_FORMAT}.get(
        kind, revisions.HEAD_FORMAT
    )


def _file_id(path: Path) -> tuple[int, int] | None:
    """Which file is at `path` now; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _version(connection: sqlite3.Connection) -> int:
    return connection.execute("PRAGMA user_version").fetchone()[0]


def _make(connection: sqlite3.Connection) -> None:
    """Empty tables of this version, unless another process made them meanwhile."""
    with sqlitefile.transaction(connection):
        if _version(connection) == SCHEMA_VERSION:
            return
        _clear(connection)
        for statement in _SCHEMA.split(";\n"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def _clear(connection: sqlite3.Connection) -> None:
    rows = connection.execute(
        """SELECT name FROM sqlite_master
           WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name NOT LIKE 'summaries_%'"""
    ).fetchall()
    for (name,) in rows:
        connection.execute(f'DROP TABLE "{name}"')
