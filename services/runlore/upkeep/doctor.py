"""Doctor: is this machine, and this home, fit to run? It tries what the pipeline relies on, for real."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from runlore import clock, errors, wiring
from runlore.settings import Settings
from runlore.store import port as store_port

FREE_BYTES_MIN = 512 * 1024 * 1024
"""Below this much free space the home is called nearly full, in bytes."""
EARLIEST = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
"""A clock before this is wrong: times order what a memory keeps."""


@dataclass(frozen=True)
class Check:
    """One thing that was tried."""

    what: str
    ok: bool
    message: str
    hint: str = ""


async def examine(settings: Settings) -> list[Check]:
    """Every check, each with its result in words; none raises."""
    checks = [_python(), _clock(), _sqlite()]
    root = settings.root
    checks.append(await asyncio.to_thread(_home, root))
    if not checks[-1].ok:
        return checks
    checks.append(await asyncio.to_thread(_space, root))
    if not (root / "home.json").exists():
        return checks
    async with wiring.open_home(settings) as opened:
        checks.append(
            await _try(
                "store", "put-if-absent, compare-and-set and delete work", lambda: _store(opened.store)
            )
        )
        checks.append(await _try("bus", "the log can be read", lambda: _bus(opened)))
        checks.append(
            await _try("index", "the index opens and agrees with the heads", lambda: _index(opened))
        )
    up = wiring.up_is_running(root)
    checks.append(
        Check("stages", True, f"process {up} runs them" if up else "nothing runs them now (`runlore up`)")
    )
    if not settings.fsync:
        checks.append(
            Check(
                "fsync",
                False,
                "RUNLORE_FSYNC is off: a power cut may lose acknowledged runs",
                "unset it but for tests",
            )
        )
    return checks


async def _try(what: str, good: str, work: Callable[[], Awaitable[None]]) -> Check:
    try:
        await work()
    except errors.RunloreError as exc:
        return Check(what, False, f"{exc.kind}: {exc.message}", exc.hint or "")
    return Check(what, True, good)


def _python() -> Check:
    import platform

    return Check("python", True, f"{platform.python_version()} on {platform.system()}")


def _clock() -> Check:
    now = clock.now()
    return Check(
        "clock", now > EARLIEST, f"it is {now.isoformat(timespec='seconds')}", "set the machine's clock"
    )


def _sqlite() -> Check:
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute("CREATE VIRTUAL TABLE t USING fts5(text)")
    except sqlite3.OperationalError:
        return Check(
            "sqlite",
            False,
            f"SQLite {sqlite3.sqlite_version} has no FTS5",
            "use a Python whose SQLite has FTS5",
        )
    finally:
        connection.close()
    return Check("sqlite", True, f"SQLite {sqlite3.sqlite_version} with FTS5")


def _home(root: Path) -> Check:
    try:
        if not root.exists():
            parent = next(path for path in root.parents if path.exists())
            if not os.access(parent, os.W_OK):
                return Check(
                    "home", False, f"{root} can not be made: {parent} is not writable", "name another --home"
                )
            return Check("home", True, f"{root} is not made yet; the first import or emit makes it")
        wiring.check_home(root, create=False)
    except errors.NotFound:
        empty = root.is_dir() and not any(root.iterdir())
        return Check(
            "home", empty, f"{root} is {'empty' if empty else 'not a Runlore home'}", "name another --home"
        )
    except (errors.RunloreError, OSError) as exc:
        return Check("home", False, str(exc), getattr(exc, "hint", None) or "name another --home")
    if not os.access(root, os.W_OK):
        return Check("home", False, f"{root} is not writable", "give this user write permission")
    return Check("home", True, f"{root} is a home")


def _space(root: Path) -> Check:
    at = root if root.exists() else next(path for path in root.parents if path.exists())
    free = shutil.disk_usage(at).free
    return Check("disk", free >= FREE_BYTES_MIN, f"{free // 2**20:,} MiB are free", "free some space")


async def _store(store: store_port.ObjectStore) -> None:
    """Try each conditional write and its refusal: a store that ignores conditions would overwrite heads."""
    key = f"_doctor/{clock.new_id()}"
    try:
        etag = await store.put_if_absent(key, b"1")
        await _refused(store.put_if_absent(key, b"2"), "put-if-absent overwrote an object")
        etag = await store.compare_and_set(key, b"3", etag)
        await _refused(store.compare_and_set(key, b"4", "0" * 64), "compare-and-set ignored its condition")
        await _refused(store.compare_and_delete(key, "0" * 64), "compare-and-delete ignored its condition")
        found = await store.get(key)
        if found is None or found.body != b"3":
            raise errors.Fatal("the store does not read back what was written")
    finally:
        await store.delete(key)


async def _refused(write: Awaitable[object], otherwise: str) -> None:
    try:
        await write
    except errors.PreconditionFailed:
        return
    raise errors.Fatal(f"{otherwise}: this store can not keep what Runlore promises")


async def _bus(opened: wiring.Home) -> None:
    await opened.bus.lag(group="record", topic="runs")


async def _index(opened: wiring.Home) -> None:
    from runlore.lookup import index as lookup_index

    index = lookup_index.Index(opened.index_path)
    try:
        await lookup_index.reconcile(index, opened.store)
    finally:
        index.close()
