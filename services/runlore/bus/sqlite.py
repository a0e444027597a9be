"""The bus on one SQLite file: the embedded default, and what Kafka is on one machine.

Every process of the machine may write and read (`runlore emit` beside `runlore up`): the file is in WAL mode
and each write is one short `BEGIN IMMEDIATE`. `produce` returns when its messages are on the disk.

Two connections, each on a thread of its own so that the loop never waits for the disk:

- the **log** (synchronous=FULL) produces, rewinds and trims;
- the **reader** (synchronous=NORMAL) polls and commits offsets. A commit that a power cut takes back is a
  redelivery, which every stage must bear anyway; so a commit costs no sync.

Every member of a group is given every partition: this adapter never shares a topic out, and correctness
rests on it nowhere. Offsets of a partition have no gaps until `trim`, and are never given twice.

The hot path is plain `sqlite3`: sqlite-utils takes longer to import than `runlore emit` to run. It is loaded
only to migrate a file whose `user_version` is behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from runlore import clock, errors, sqlitefile
from runlore.bus.port import Listener, Message, Outgoing, TopicPartition, partition_of

PARTITIONS = 8
WAIT_SECONDS_MIN = 0.01
WAIT_SECONDS_MAX = 0.25
"""An idle poll looks for other processes' messages at least this often; this process's wake it at once."""
POLL_BYTES_MAX = 8 * 1024 * 1024
"""A poll stops after the message that reaches this many bytes of values."""
READ_PAGE = 200
"""Messages that `read` fetches at a time."""
VARIABLES_MAX = 500
"""Offsets that one statement names."""
SCHEMA_VERSION = 1
APPLICATION_ID = 0x524C4F47  # "RLOG", so that file(1) and a person can tell what the file is.

T = TypeVar("T")
Headers = list[tuple[str, bytes]]


class SqliteBus:
    """`bus.port.Bus` on the file `path`. `partitions` counts only where this call makes the file."""

    def __init__(self, path: Path | str, *, partitions: int = PARTITIONS, fsync: bool = True) -> None:
        if partitions < 1:
            raise errors.InvalidInput("a topic needs at least one partition")
        self.path = Path(path)
        synchronous = "FULL" if fsync else "OFF"
        self._log = _Connection(self.path, partitions, synchronous)
        self._reader = _Connection(self.path, partitions, "NORMAL" if fsync else "OFF")
        self._consumers: set[SqliteConsumer] = set()

    async def produce(self, messages: Sequence[Outgoing]) -> list[tuple[TopicPartition, int]]:
        if not messages:
            return []
        placed = await self._log.run(_produce, list(messages), clock.now().timestamp())
        for consumer in self._consumers:
            consumer.wake()
        return placed

    async def consumer(
        self, *, group: str, topics: Sequence[str], listener: Listener | None = None
    ) -> SqliteConsumer:
        positions: dict[TopicPartition, int] = {}
        for topic in topics:
            committed = await self._reader.run(_committed, group, topic)
            positions |= {TopicPartition(topic, partition): at for partition, at in committed.items()}
        consumer = SqliteConsumer(self._reader, group, positions, self._consumers.discard)
        self._consumers.add(consumer)
        if listener is not None:
            await listener.assigned(consumer.assignment())
        return consumer

    async def read(self, topic: str, *, start: Mapping[int, int] | None = None) -> AsyncIterator[Message]:
        # The ends are read first: what comes while the caller reads is not "there now".
        ends = await self._reader.run(_ends, topic)
        for partition, end in ends.items():
            at = (start or {}).get(partition, 0)
            while at < end:
                where = TopicPartition(topic, partition)
                page = await self._reader.run(_fetch, where, at, end, READ_PAGE, POLL_BYTES_MAX)
                if not page:
                    break
                for message in page:
                    yield message
                at = page[-1].offset + 1

    async def reread(self, topic: str, offsets: Mapping[int, Collection[int]]) -> list[Message]:
        wanted = {TopicPartition(topic, partition): sorted(found) for partition, found in offsets.items()}
        return await self._reader.run(_reread, wanted)

    async def lag(self, *, group: str, topic: str) -> dict[int, int]:
        return await self._reader.run(_lag, group, topic)

    async def committed(self, *, group: str, topic: str) -> dict[int, int]:
        return await self._reader.run(_committed, group, topic)

    async def oldest(self, *, group: str, topic: str) -> float | None:
        return await self._reader.run(_oldest, group, topic)

    async def rewind(self, *, group: str, topic: str, start: float | None = None) -> None:
        if any(consumer.reads(group, topic) for consumer in self._consumers):
            raise errors.Refused(f"group {group!r} is reading {topic!r}", hint="stop its stage first")
        await self._log.run(_rewind, group, topic, start)

    async def trim(self, topic: str, *, older_than_seconds: float) -> int:
        """Delete messages that every group of `topic` has committed and that are older than a term; how many.

        It is never automatic. A topic that no group has committed on keeps everything.
        """
        return await self._log.run(_trim, topic, clock.now().timestamp() - older_than_seconds)

    async def overwrite(self, messages: Sequence[Message]) -> None:
        await self._log.run(_overwrite, list(messages))

    async def close(self) -> None:
        for consumer in list(self._consumers):
            await consumer.close()
        await self._reader.close()
        await self._log.close()


class SqliteConsumer:
    """One member of a group: it holds its positions in memory, the group's commits are in the file."""

    def __init__(
        self,
        reader: _Connection,
        group: str,
        positions: dict[TopicPartition, int],
        leave: Callable[[SqliteConsumer], None],
    ) -> None:
        self._reader = reader
        self._group = group
        self._positions = positions
        self._leave = leave
        self._paused: set[TopicPartition] = set()
        self._produced = asyncio.Event()
        self._closed = False
        self._turn = 0

    async def poll(self, *, records_max: int, timeout_seconds: float) -> list[Message]:
        deadline = clock.monotonic() + timeout_seconds
        wait = WAIT_SECONDS_MIN
        while not self._closed:
            self._produced.clear()  # Before the look, so that a message after it is not slept over.
            found = await self._reader.run(_poll, self._in_turn(), records_max)
            if found:
                for message in found:
                    self._positions[message.at] = message.offset + 1
                return found
            left = deadline - clock.monotonic()
            if left <= 0:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._produced.wait(), min(wait, left))
            wait = min(wait * 2, WAIT_SECONDS_MAX)
        return []

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        mine = {at: offset for at, offset in offsets.items() if at in self._positions}
        await self._reader.run(_commit, self._group, mine)

    async def seek(self, offsets: Mapping[TopicPartition, int]) -> None:
        self._positions.update(offsets)

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(self._positions)

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        self._paused |= set(partitions)

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        self._paused -= set(partitions)
        self.wake()

    async def close(self) -> None:
        self._closed = True
        self.wake()
        self._leave(self)

    def wake(self) -> None:
        """Let a waiting poll look again now."""
        self._produced.set()

    def reads(self, group: str, topic: str) -> bool:
        return self._group == group and any(at.topic == topic for at in self._positions)

    def _in_turn(self) -> list[tuple[TopicPartition, int]]:
        # Each poll begins one partition further, so that a full one does not starve the others.
        order = sorted(item for item in self._positions.items() if item[0] not in self._paused)
        self._turn = (self._turn + 1) % max(1, len(order))
        return order[self._turn :] + order[: self._turn]


class _Connection:
    """One connection and its thread. It opens at the first call, so that a bus nobody uses makes no file."""

    def __init__(self, path: Path, partitions: int, synchronous: str) -> None:
        self._path = path
        self._partitions = partitions
        self._synchronous = synchronous
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="runlore-bus")
        self._open: sqlite3.Connection | None = None
        self._closed = False

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """`work(connection, *args)` on the thread, with SQLite's failures as the port's."""
        if self._closed:
            raise errors.BusUnavailable("the bus is closed")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._call, work, *args)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._close)

    def _call(self, work: Callable[..., T], *args: Any) -> T:
        try:
            if self._open is None:
                self._open = _connect(self._path, self._partitions, self._synchronous)
            return work(self._open, *args)
        except sqlite3.Error as exc:
            raise _translated(exc, self._path) from exc
        except OSError as exc:
            raise errors.Blocked(f"{self._path} can not be used: {exc.strerror}") from exc

    def _close(self) -> None:
        def close() -> None:
            if self._open is not None:
                self._open.close()
                self._open = None

        self._thread.submit(close).result()
        self._thread.shutdown()


# --- the file ---------------------------------------------------------------------------------------------


def _connect(path: Path, partitions: int, synchronous: str) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlitefile.connect(path)
    try:
        if _pragma(connection, "user_version") != SCHEMA_VERSION:
            _migrate(connection, partitions)
        connection.execute(f"PRAGMA synchronous={synchronous}")
    except BaseException:
        connection.close()
        raise
    return connection


def _pragma(connection: sqlite3.Connection, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def _migrate(connection: sqlite3.Connection, partitions: int) -> None:
    import sqlite_utils
    from sqlite_utils.migrations import Migrations

    if _pragma(connection, "user_version") > SCHEMA_VERSION:
        raise errors.Blocked("the log was written by a newer Runlore", hint="upgrade runlore")
    sqlitefile.use_wal(connection)
    steps = Migrations("runlore-bus")

    @steps()
    def m001_log(db: sqlite_utils.Database) -> None:
        for statement in _TABLES:
            db.execute(statement)
        db.execute("INSERT INTO settings VALUES ('partitions', ?)", [partitions])

    # The steps run inside one write transaction: of two processes that open a new file, the second finds it
    # made. Inside it sqlite-utils nests savepoints.
    with sqlitefile.transaction(connection):
        steps.apply(sqlite_utils.Database(connection, execute_plugins=False))
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


_TABLES = (
    "CREATE TABLE settings (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    # The next offset of each partition. Kept apart from the messages, so that a trim gives none again.
    "CREATE TABLE ends (topic TEXT, partition INTEGER, next INTEGER NOT NULL,"
    " PRIMARY KEY (topic, partition)) WITHOUT ROWID",
    # `offset` is a word of SQL's own.
    'CREATE TABLE messages (topic TEXT NOT NULL, partition INTEGER NOT NULL, "offset" INTEGER NOT NULL,'
    " key BLOB, value BLOB, headers TEXT NOT NULL, time REAL NOT NULL)",
    'CREATE UNIQUE INDEX messages_at ON messages (topic, partition, "offset")',
    "CREATE TABLE commits (group_name TEXT, topic TEXT, partition INTEGER, next INTEGER NOT NULL,"
    " PRIMARY KEY (group_name, topic, partition)) WITHOUT ROWID",
)


def _translated(exc: sqlite3.Error, path: Path) -> errors.RunloreError:
    # The low byte is the error's class; above it, its detail (sqlite.org/rescode.html).
    code = (getattr(exc, "sqlite_errorcode", None) or 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return errors.Blocked(
            f"{path} is damaged: {exc}",
            hint="move the file away; what was recorded is in the store, other events must be sent again",
        )
    if code in (
        sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH,
    ):  # fmt: skip
        return errors.Blocked(
            f"{path} can not be used: {exc}", hint="let the user that runs runlore read and write it"
        )
    if sqlitefile.is_full(exc, path):
        return errors.BusUnavailable(f"the disk of {path} is full: {exc}", hint=sqlitefile.FULL_HINT)
    return errors.BusUnavailable(f"{path}: {exc}")


# --- one call each, on a connection's thread --------------------------------------------------------------


def _produce(
    connection: sqlite3.Connection, messages: list[Outgoing], now: float
) -> list[tuple[TopicPartition, int]]:
    partitions = _partitions(connection)
    placed: list[tuple[TopicPartition, int]] = []
    rows = []
    with sqlitefile.transaction(connection):
        ends: dict[TopicPartition, int] = {}
        for message in messages:
            at = TopicPartition(message.topic, partition_of(message, partitions))
            if at not in ends:
                ends[at] = _end(connection, at)
            offset = ends[at]
            ends[at] = offset + 1
            placed.append((at, offset))
            rows.append((*at, offset, message.key, message.value, _dump(message.headers), now))
        connection.executemany("INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        connection.executemany(
            "INSERT OR REPLACE INTO ends VALUES (?, ?, ?)", [(*at, end) for at, end in ends.items()]
        )
    return placed


def _poll(
    connection: sqlite3.Connection, positions: list[tuple[TopicPartition, int]], records_max: int
) -> list[Message]:
    # One look at the ends tells which partitions have news: an idle poll is one small query per topic.
    ends: dict[TopicPartition, int] = {}
    for topic in {at.topic for at, _ in positions}:
        ends |= {TopicPartition(topic, partition): end for partition, end in _ends(connection, topic).items()}
    found: list[Message] = []
    bytes_left = POLL_BYTES_MAX
    for at, position in positions:
        if len(found) >= records_max or bytes_left <= 0:
            break
        if position < ends.get(at, 0):
            page = _fetch(connection, at, position, ends[at], records_max - len(found), bytes_left)
            bytes_left -= sum(len(message.value or b"") for message in page)
            found += page
    return found


def _fetch(
    connection: sqlite3.Connection, at: TopicPartition, start: int, end: int, count: int, bytes_max: int
) -> list[Message]:
    """Messages of one partition from `start` to before `end`, until `count` or `bytes_max` is reached."""
    cursor = connection.execute(
        'SELECT "offset", key, value, headers, time FROM messages WHERE topic = ? AND partition = ?'
        ' AND "offset" >= ? AND "offset" < ? ORDER BY "offset" LIMIT ?',
        (*at, start, end, count),
    )
    found: list[Message] = []
    with contextlib.closing(cursor):
        for offset, key, value, headers, taken in cursor:
            found.append(Message(*at, offset, key, value, _load(headers), taken))
            bytes_max -= len(value or b"")
            if bytes_max <= 0:
                break
    return found


def _reread(connection: sqlite3.Connection, wanted: dict[TopicPartition, list[int]]) -> list[Message]:
    found: list[Message] = []
    for at, offsets in sorted(wanted.items()):
        for start in range(0, len(offsets), VARIABLES_MAX):
            page = offsets[start : start + VARIABLES_MAX]
            rows = connection.execute(
                'SELECT "offset", key, value, headers, time FROM messages WHERE topic = ? AND partition = ?'
                f' AND "offset" IN ({",".join("?" * len(page))}) ORDER BY "offset"',
                (*at, *page),
            )
            found += [
                Message(*at, offset, key, value, _load(headers), taken)
                for offset, key, value, headers, taken in rows
            ]
    return found


def _commit(connection: sqlite3.Connection, group: str, offsets: dict[TopicPartition, int]) -> None:
    with sqlitefile.transaction(connection):
        connection.executemany(
            "INSERT INTO commits VALUES (?, ?, ?, ?) ON CONFLICT (group_name, topic, partition)"
            " DO UPDATE SET next = max(next, excluded.next)",
            [(group, *at, offset) for at, offset in offsets.items()],
        )


def _rewind(connection: sqlite3.Connection, group: str, topic: str, start: float | None) -> None:
    # The rows stay at 0, so that `trim` still knows that this group reads the topic.
    with sqlitefile.transaction(connection):
        if start is None:
            connection.execute(
                "UPDATE commits SET next = 0 WHERE group_name = ? AND topic = ?", (group, topic)
            )
            return
        for partition, end in _ends(connection, topic).items():
            query = 'SELECT min("offset") FROM messages WHERE topic = ? AND partition = ? AND time >= ?'
            found = connection.execute(query, (topic, partition, start)).fetchone()[0]
            row = (group, topic, partition, end if found is None else found)
            connection.execute("INSERT OR REPLACE INTO commits VALUES (?, ?, ?, ?)", row)


def _oldest(connection: sqlite3.Connection, group: str, topic: str) -> float | None:
    query = (
        'SELECT time FROM messages WHERE topic = ? AND partition = ? AND "offset" >= ?'
        ' ORDER BY "offset" LIMIT 1'
    )
    with sqlitefile.transaction(connection, "BEGIN"):
        committed = _committed(connection, group, topic)
        rows = [connection.execute(query, (topic, *one)).fetchone() for one in committed.items()]
    return min((row[0] for row in rows if row), default=None)


def _trim(connection: sqlite3.Connection, topic: str, before: float) -> int:
    removed = 0
    with sqlitefile.transaction(connection):
        groups = connection.execute(
            "SELECT count(DISTINCT group_name) FROM commits WHERE topic = ?", (topic,)
        ).fetchone()[0]
        done = connection.execute(
            "SELECT partition, min(next) FROM commits WHERE topic = ? GROUP BY partition HAVING count(*) = ?",
            (topic, groups),
        ).fetchall()
        for partition, lowest in done:
            # Only a beginning of the log goes: a young message stops it, whatever comes after.
            young = connection.execute(
                'SELECT min("offset") FROM messages WHERE topic = ? AND partition = ? AND time >= ?',
                (topic, partition, before),
            ).fetchone()[0]
            cursor = connection.execute(
                'DELETE FROM messages WHERE topic = ? AND partition = ? AND "offset" < ?',
                (topic, partition, lowest if young is None else min(lowest, young)),
            )
            removed += cursor.rowcount
    return removed


def _overwrite(connection: sqlite3.Connection, messages: list[Message]) -> None:
    connection.execute("PRAGMA secure_delete=ON")
    with sqlitefile.transaction(connection):
        connection.executemany(
            'UPDATE messages SET key = ?, value = ?, headers = ? WHERE topic = ? AND partition = ? AND "offset" = ?',
            [(one.key, one.value, _dump(one.headers), *one.at, one.offset) for one in messages],
        )
    # The write-ahead log beside the file holds the pages as they were.
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _lag(connection: sqlite3.Connection, group: str, topic: str) -> dict[int, int]:
    # One read transaction: the ends and the commits are of one moment.
    with sqlitefile.transaction(connection, "BEGIN"):
        ends, committed = _ends(connection, topic), _committed(connection, group, topic)
        firsts = {partition: _first(connection, TopicPartition(topic, partition), ends) for partition in ends}
    return {p: max(0, end - max(committed[p], firsts[p])) for p, end in ends.items()}


def _first(connection: sqlite3.Connection, at: TopicPartition, ends: dict[int, int]) -> int:
    """The first offset that a trim has left."""
    query = 'SELECT min("offset") FROM messages WHERE topic = ? AND partition = ?'
    found = connection.execute(query, at).fetchone()[0]
    return ends[at.partition] if found is None else found


def _committed(connection: sqlite3.Connection, group: str, topic: str) -> dict[int, int]:
    rows = connection.execute(
        "SELECT partition, next FROM commits WHERE group_name = ? AND topic = ?", (group, topic)
    )
    return dict.fromkeys(range(_partitions(connection)), 0) | dict(rows.fetchall())


def _ends(connection: sqlite3.Connection, topic: str) -> dict[int, int]:
    rows = connection.execute("SELECT partition, next FROM ends WHERE topic = ?", (topic,))
    return dict.fromkeys(range(_partitions(connection)), 0) | dict(rows.fetchall())


def _end(connection: sqlite3.Connection, at: TopicPartition) -> int:
    row = connection.execute("SELECT next FROM ends WHERE topic = ? AND partition = ?", at).fetchone()
    return row[0] if row else 0


def _partitions(connection: sqlite3.Connection) -> int:
    # Of the file, not of the call: two processes must put one key into one partition.
    return connection.execute("SELECT value FROM settings WHERE name = 'partitions'").fetchone()[0]


def _dump(headers: Headers) -> str:
    # Latin-1 maps each byte to one character and back, and keeps what is text readable in the file.
    return json.dumps([[name, raw.decode("latin-1")] for name, raw in headers])


def _load(headers: str) -> Headers:
    return [(name, text.encode("latin-1")) for name, text in json.loads(headers)]
