"""The index: rows of a SQLite file, for search and lists. A cache: deleting the file loses nothing.

It applies a head only when its counter is higher than the row's (a late doorbell changes nothing), and
compares a LIST of all heads with its rows at start and on a schedule (a lost doorbell costs nothing). Rows go
by tombstone, never by absence from a LIST. Writing is sqlite-utils inside one transaction; searching is FTS5.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from sqlite_utils import Database

from runlore import errors, sqlitefile
from runlore.commit import erasures, heads, keys, lines, marks, revisions, rollouts
from runlore.lookup import index_schema, ranking
from runlore.lookup import rows as rows_of
from runlore.store import port

log = structlog.get_logger("runlore.index")

RESULTS_MAX = 100
RANKED_MAX = 200
"""Matches of a search that are compared, the newest: each text is read for it."""
TEXT_CHARS_MAX = 200_000
"""Characters of one rollout's summary that are searchable."""
APPLY_BATCH = 256
DAY_RUNS_MAX = 10_000
"""Runs of one day that are counted: a chart needs no more, and a page must not read a busy month whole."""

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


class _Rows(Database):
    """sqlite-utils, but what SQLite can do is known: `STRICT` in `index_schema` is newer than `ON CONFLICT`.

    Left to itself the library tries it out at the first rows, by making a table. On a full disk that fails, and for as
    long as the file is open new rows are dropped in silence (`INSERT OR IGNORE` of a row without its columns).
    """

    @property
    def supports_on_conflict(self) -> bool:
        return True


class Index:
    """The index file at `path`. Not safe for two threads; each process may open its own."""

    def __init__(self, path: Path, *, wait_seconds_max: float = sqlitefile.BUSY_SECONDS_MAX) -> None:
        self.path, self._wait_seconds_max = path, wait_seconds_max
        path.parent.mkdir(parents=True, exist_ok=True)
        self.files = 0
        """How many files this has been: one that was deleted or damaged is begun anew, empty."""
        self._deleted = False
        """Whether rows were deleted whose bytes are still to go."""
        self._db = self._open()
        self._file_id = _file_id(path)

    def _open(self) -> Database:
        self.files += 1
        try:
            return self._prepare()
        except sqlite3.DatabaseError as exc:
            if _may_pass(exc):
                raise self._away(exc) from exc
            return self._remake()

    def _remake(self) -> Database:
        """A new file in place of a damaged one: it is a cache."""
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        return self._prepare()

    def _away(self, exc: sqlite3.DatabaseError) -> errors.StoreUnavailable:
        if sqlitefile.is_full(exc, self.path):
            return errors.StoreUnavailable(
                f"the disk of the index {self.path} is full: {exc}", hint=sqlitefile.FULL_HINT
            )
        return errors.StoreUnavailable(f"the index {self.path} can not be used: {exc}")

    @contextlib.contextmanager
    def _file(self) -> Iterator[None]:
        """Make a fault of the file an error of ours; a damaged file is made anew."""
        try:
            yield
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.NotSupportedError):
            raise
        except sqlite3.DatabaseError as exc:
            if _may_pass(exc):
                raise self._away(exc) from exc
            self._db.close()
            self._db = self._remake()
            self._file_id = _file_id(self.path)
            self.files += 1
            raise IndexRemade() from exc

    def _prepare(self) -> Database:
        connection = sqlitefile.connect(self.path, wait_seconds_max=self._wait_seconds_max)
        try:
            if _version(connection) != index_schema.VERSION:
                sqlitefile.use_wal(connection)
                _make(connection)
            connection.execute("PRAGMA synchronous=NORMAL")
            # What is deleted leaves no bytes in free pages.
            connection.execute("PRAGMA secure_delete=ON")
            return _Rows(connection)
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        self._db.close()

    def follow(self) -> bool:
        """Begin another file where this one was deleted (it is a cache, so anybody may); whether it was."""
        if _file_id(self.path) == self._file_id:
            return False
        self._db.close()
        self._db = self._open()
        self._file_id = _file_id(self.path)
        return True

    # --- writing --------------------------------------------------------------------------------------

    def apply(self, found: Iterable[heads.Head]) -> int:
        """Take these heads in, where their counters are higher than the rows'; how many were."""
        newest: dict[str, heads.Head] = {}
        with self._file(), sqlitefile.transaction(self._db.conn):
            for head in found:
                row = self._one("SELECT counter FROM heads WHERE key = ?", [head.key])
                known = max(
                    row["counter"] if row else 0, newest[head.key].counter if head.key in newest else 0
                )
                if head.counter > known:
                    newest[head.key] = head
            rows = [
                {"key": one.key, "counter": one.counter, "etag": one.etag or ""} for one in newest.values()
            ]
            self._put("heads", rows, "key")
            by_format: dict[str, list[heads.Head]] = {}
            for head in newest.values():
                by_format.setdefault(head.body["format"], []).append(head)
            self._rollouts(by_format.pop(rollouts.HEAD_FORMAT, []))
            snapshots = map(rows_of.snapshot_of, by_format.pop(lines.HEAD_FORMAT, []))
            self._put("snapshots", snapshots, "project", "rollout", "agent")
            for others in by_format.values():
                self._put("memories", map(rows_of.memory_of, others), "project", "memory")
        if self._deleted:
            self.scrub()
        return len(newest)

    def scrub(self) -> None:
        """Leave no byte of a row that was deleted: neither among the words of the full text nor in the write-ahead log.

        Deleting leaves a text's words in the full-text index until its parts are merged.
        """
        with self._file():
            with sqlitefile.transaction(self._db.conn):
                self._db.execute("INSERT INTO summaries (summaries) VALUES ('optimize')")
            # Busy, the log is written over later: who deletes the last of it is whoever reads on.
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._deleted = False

    def _put(self, table: str, rows: Iterable[dict[str, Any]], *key: str) -> None:
        """Rows of one kind at once: for a single one sqlite-utils looks as long at the table as for a hundred."""
        if made := list(rows):
            self._db[table].upsert_all(made, pk=key if len(key) > 1 else key[0])

    def vacuum(self) -> None:
        """Write the file anew, without a free page: what was deleted before pages were cleared may lie in one."""
        self.scrub()
        with self._file():
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _rollouts(self, heads_: Sequence[heads.Head]) -> None:
        for head in heads_:
            if head.body.get("erased"):
                self._forget(head)
        found = [head for head in heads_ if not erasures.is_empty(head.body)]
        rows = [rows_of.rollout_of(head) for head in found]
        totals: Counter[tuple[str, str, str]] = Counter()
        for row in rows:
            before = self._one(
                "SELECT runs FROM rollouts WHERE project = ? AND memory = ? AND rollout = ?", _name(row)
            )
            totals[row["project"], row["memory"], "rollouts"] += before is None
            totals[row["project"], row["memory"], "runs"] += row["runs"] - (before["runs"] if before else 0)
        self._put("rollouts", rows, *rows_of.ROLLOUT)
        self._put(
            "runs",
            (run for head in found for run in rows_of.runs_of(head)),
            *rows_of.ROLLOUT,
            "run",
            "attempt",
        )
        for project, memory in dict.fromkeys((row["project"], row["memory"]) for row in rows):
            added = [totals[project, memory, name] for name in ("rollouts", "runs")]
            self._db.execute(
                """INSERT INTO totals (project, memory, rollouts, runs) VALUES (?, ?, ?, ?)
                   ON CONFLICT DO UPDATE SET rollouts = rollouts + excluded.rollouts, runs = runs + excluded.runs""",
                [project, memory, *added],
            )
        # A text is put whole: FTS5 changes no part of one.
        self._db.conn.executemany(
            """INSERT OR REPLACE INTO summaries (rowid, text)
               SELECT id, ? FROM rollouts WHERE project = ? AND memory = ? AND rollout = ?""",
            [(text_of(head.body["summary"]), *_name(row)) for head, row in zip(found, rows, strict=True)],
        )

    def _forget(self, head: heads.Head) -> None:
        """Take out the rows of a rollout from which something was erased; what is left of it is put anew."""
        name = [head.body[one] for one in rows_of.ROLLOUT]
        row = self._one(
            "SELECT id, runs, counter FROM rollouts WHERE project = ? AND memory = ? AND rollout = ?", name
        )
        if row is not None:
            # Of a rollout that goes on its head says for ever what was erased of it.
            self._deleted |= row["counter"] < erasures.newest(head.body)
            self._db.execute("DELETE FROM summaries WHERE rowid = ?", [row["id"]])
            self._db.execute("DELETE FROM rollouts WHERE id = ?", [row["id"]])
            self._db.execute(
                "UPDATE totals SET rollouts = rollouts - 1, runs = runs - ? WHERE project = ? AND memory = ?",
                [row["runs"], *name[:2]],
            )
        self._db.execute("DELETE FROM runs WHERE project = ? AND memory = ? AND rollout = ?", name)

    # --- reading --------------------------------------------------------------------------------------

    def etags(self, wanted: Sequence[str]) -> dict[str, str]:
        """The ETags of these heads, as far as they are known."""
        # Not of all that there are: that holds up every other thread while it is read.
        sql = "SELECT key, etag FROM heads WHERE key IN (SELECT value FROM json_each(?))"
        return {row["key"]: row["etag"] for row in self._all(sql, [json.dumps(wanted)])}

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
                      h.moved_at, COALESCE(t.rollouts, 0) AS rollouts, COALESCE(t.runs, 0) AS runs
               FROM (SELECT project, memory FROM memories UNION SELECT project, memory FROM totals) m
               LEFT JOIN memories h USING (project, memory) LEFT JOIN totals t USING (project, memory)
               WHERE :project IS NULL OR m.project = :project ORDER BY m.project, m.memory""",
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
        behind = "AND place <= :place AND (place < :place OR rollout > :rollout)" if after else ""
        rows = self._all(
            f"""SELECT * FROM rollouts WHERE project = :project AND memory = :memory {behind}
                ORDER BY place DESC, rollout LIMIT :limit""",
            {"project": project, "memory": memory, "limit": limit, **_place(("place", "rollout"), after)},
        )
        return [_without(row, "place", "id") for row in rows]

    def snapshots(
        self,
        project: str | None = None,
        *,
        limit: int = RESULTS_MAX,
        after: tuple[str, str, str] | None = None,
    ) -> list[dict[str, Any]]:
        """The lines of workspaces, the one that moved last first; those behind `after` (when, rollout, agent)."""
        where = _where(
            "project = :project" if project is not None else "",
            "moved_at <= :at AND (moved_at < :at OR (rollout, agent) > (:rollout, :agent))" if after else "",
        )
        return self._all(
            f"SELECT * FROM snapshots {where} ORDER BY moved_at DESC, project, rollout, agent LIMIT :limit",
            {"project": project, "limit": limit, **_place(("at", "rollout", "agent"), after)},
        )

    def tagged(self, project: str, tag: str = "template") -> list[dict[str, Any]]:
        """The lines of workspaces with a snapshot of this tag, the one that moved last first."""
        return self._all(
            # Named: by itself SQLite takes the index of all lines, which has the same order.
            """SELECT * FROM snapshots INDEXED BY snapshots_tagged
               WHERE project = ? AND tags <> '' AND instr(' ' || tags || ' ', ?) > 0
               ORDER BY moved_at DESC, rollout, agent LIMIT 100""",
            [project, f" {tag} "],
        )

    def runs(self, name: str, project: str | None = None) -> list[dict[str, Any]]:
        """The runs, and the live edits, with this event id, run id alias (or edit id alias) or rollout alias."""
        rows = self._all(
            """SELECT * FROM runs WHERE (event = :name OR run = :name OR rollout = :name)
               AND (:project IS NULL OR project = :project)
               ORDER BY ended_at DESC, run, attempt LIMIT 100""",
            {"name": name, "project": project},
        )
        return [_without(row, "place", *(() if row["edit_of"] else ("edit_of",))) for row in rows]

    def recent_runs(
        self, project: str | None = None, *, limit: int = 20, after: Sequence[Any] | None = None
    ) -> list[dict[str, Any]]:
        """The newest runs first; those behind `after`, the `run_place` of one of them."""
        # By nothing that this file alone knows: a number of its own would differ from replica to replica, and tell
        # how many runs all projects have.
        order = ("place", "memory", "rollout", "run", "attempt")
        where = _where(
            "edit_of IS NULL",
            "project = :project" if project is not None else "",
            f"({', '.join(order)}) < ({', '.join(f':{one}' for one in order)})" if after else "",
        )
        rows = self._all(
            f"SELECT * FROM runs {where} ORDER BY {', '.join(f'{one} DESC' for one in order)} LIMIT :limit",
            {"project": project, "limit": limit, **_place(order, after)},
        )
        return [_without(row, "place", "edit_of") for row in rows]

    def runs_by_day(self, project: str, days: Sequence[str]) -> list[int]:
        """How many runs ended on each of these days (`2026-03-01`); a day is counted up to `DAY_RUNS_MAX`."""
        return [
            self._all(
                """SELECT COUNT(*) AS runs FROM (
                     SELECT 1 FROM runs WHERE project = ? AND place >= ? AND place < ? AND edit_of IS NULL
                     AND superseded = 0 LIMIT ?)""",
                # Behind every time of that day, and before any of the next.
                [project, day, f"{day}~", DAY_RUNS_MAX],
            )[0]["runs"]
            for day in days
        ]

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
        asked = {"words": words, "project": project, "memory": memory, "subject": subject}
        # No rank of the library's: it weighs a word by how often it stands in all rows there are, also of projects
        # and subjects that whoever asks may not know of.
        found = self._all(
            """WITH newest AS MATERIALIZED (
                 SELECT r.id, r.rollout FROM summaries JOIN rollouts r ON r.id = summaries.rowid
                 WHERE summaries MATCH :words AND r.project = :project AND r.memory = :memory
                   AND (r.subject IS NULL OR r.subject = :subject)
                 ORDER BY r.place DESC, r.rollout LIMIT :most
               )
               SELECT newest.id, newest.rollout, length(CAST(text AS BLOB)) AS bytes,
                 length(CAST(highlight(summaries, 0, char(1), '') AS BLOB)) AS marked
               FROM newest CROSS JOIN summaries ON summaries.rowid = newest.id WHERE summaries MATCH :words""",
            {**asked, "most": RANKED_MAX},
        )
        best = ranking.ranked(found)[: min(limit, RESULTS_MAX)]
        # Only the best get a snippet: made for every match, they cost more than all the rest.
        snippets = self._all(
            """SELECT best.value AS id, snippet(summaries, 0, '[', ']', ' … ', 16) AS snippet
               FROM json_each(:best) best CROSS JOIN summaries ON summaries.rowid = best.value
               WHERE summaries MATCH :words""",
            {"words": words, "best": json.dumps([row["id"] for row, _ in best])},
        )
        told = {row["id"]: row["snippet"] for row in snippets}
        return [
            {"rollout": row["rollout"], "snippet": told[row["id"]], "rank": rank}
            for row, rank in best
            if row["id"] in told
        ]

    def runs_for(
        self, project: str, memory: str | None, *, subject: str | None = None, limit: int = 20
    ) -> list[dict[str, Any]]:
        """The newest runs of a project, or of one memory of it; only those without a subject, or of `subject`."""
        return self._all(
            """SELECT u.memory, u.rollout, u.run, u.attempt, u.ended_at FROM runs u
               JOIN rollouts r USING (project, memory, rollout)
               WHERE u.project = :project AND (:memory IS NULL OR u.memory = :memory) AND u.superseded = 0
                     AND u.edit_of IS NULL AND (r.subject IS NULL OR r.subject = :subject)
               ORDER BY u.place DESC, u.rowid DESC LIMIT :limit""",
            {"project": project, "memory": memory, "subject": subject, "limit": limit},
        )

    def _all(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[dict[str, Any]]:
        with self._file():
            # Not by `Database.query`, which costs several times the query of one row.
            found = self._db.conn.execute(sql, parameters)
            names = [column[0] for column in found.description]
            return [dict(zip(names, row, strict=True)) for row in found]

    def _one(self, sql: str, parameters: Sequence[Any]) -> dict[str, Any] | None:
        rows = self._all(sql, parameters)
        return rows[0] if rows else None


def _name(row: Mapping[str, Any]) -> list[str]:
    """What a rollout's row is found by."""
    return [row[name] for name in rows_of.ROLLOUT]


def _without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def _where(*conditions: str) -> str:
    """A WHERE of those that there are."""
    found = [one for one in conditions if one]
    return f"WHERE {' AND '.join(found)}" if found else ""


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


class Reconciled(NamedTuple):
    """What comparing with a LIST came to."""

    applied: int
    """Heads that were newer than their rows."""
    listed: int
    """Heads that there are: what a LIST costs."""


async def reconcile(index: Index, store: port.ObjectStore) -> Reconciled:
    """Compare a LIST of all heads with the rows, and take in what differs."""
    index.follow()
    try:
        return await _reconcile(index, store)
    except IndexRemade:
        return await _reconcile(index, store)


async def _reconcile(index: Index, store: port.ObjectStore) -> Reconciled:
    applied = count = 0
    batch: list[str] = []
    listed: list[port.Listed] = []

    async def differing() -> int:
        """What differs of those listed goes into the batch; how many heads were applied."""
        known = index.etags([row.key for row in listed])
        batch.extend(row.key for row in listed if known.get(row.key) != row.etag)
        listed.clear()
        done = 0
        while len(batch) >= APPLY_BATCH:
            done += await take_in(index, store, batch[:APPLY_BATCH])
            del batch[:APPLY_BATCH]
        return done

    for project in await marks.projects(store):
        for kind in (keys.ROLLOUTS, keys.MEMORIES, keys.WORKSPACES):
            async for row in store.list(f"{project}/{kind}/"):
                listed.append(row)
                count += 1
                if len(listed) == APPLY_BATCH:
                    applied += await differing()
    applied += await differing()
    return Reconciled(applied + await take_in(index, store, batch), count)


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
        if _version(connection) == index_schema.VERSION:
            return
        _clear(connection)
        for statement in index_schema.STATEMENTS.split(";\n"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version={index_schema.VERSION}")


def _clear(connection: sqlite3.Connection) -> None:
    rows = connection.execute(
        """SELECT name FROM sqlite_master
           WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name NOT LIKE 'summaries_%'"""
    ).fetchall()
    for (name,) in rows:
        connection.execute(f'DROP TABLE "{name}"')
