"""Doctor: is this machine, this home, and this deployment fit to run? It tries what the pipeline relies on, for real.

Every check is a sentence with what to do, and none hides the next. What lies past one machine is in
`upkeep/deployment.py`. It writes only a probe, which it takes away, and one doorbell that rings for nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runlore import clock, errors, wiring
from runlore.commit import keys
from runlore.settings import Settings
from runlore.store import port as store_port

FREE_BYTES_MIN = 512 * 1024 * 1024
"""Below this much free space the home is called nearly full, in bytes."""
EARLIEST = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
"""A clock before this is wrong: times order what a memory keeps."""
UNFIT = "choose a store that keeps them: AWS S3, or one that `runlore doctor` finds nothing wrong with"


@dataclass(frozen=True)
class Check:
    """One thing that was tried."""

    what: str
    ok: bool
    message: str
    hint: str = ""


async def examine(settings: Settings) -> list[Check]:
    """Every check, each with its result in words; none raises."""
    from runlore.upkeep import deployment

    checks = [_python(), _clock(), _sqlite()]
    root = settings.root
    checks.append(await asyncio.to_thread(_home, root))
    if not checks[-1].ok:
        return checks
    checks.append(await asyncio.to_thread(_space, root))
    embedded = settings.bus == "sqlite" and settings.store == "directory"
    if (settings.bus == "sqlite" or settings.store == "directory") and not (root / "home.json").exists():
        return checks
    try:
        async with wiring.open_home(settings) as opened:
            of_the_store = await of_store(opened.store)
            # A store that answers nothing is told once, not by everything that would ask it.
            answers = of_the_store[0].what != "store" or of_the_store[0].ok
            checks += of_the_store
            if answers:
                checks += await deployment.of_store(opened.store, settings)
            checks += await deployment.of_bus(opened.bus, settings)
            if answers:
                checks += await _ages(opened)
            checks += await deployment.of_model(settings)
            if answers:
                checks += await deployment.of_workers(opened.store, settings)
                checks.append(await tried("index", lambda: _index(opened)))
    except errors.RunloreError as exc:
        checks.append(Check("home", False, f"{exc.kind}: {exc.message}", exc.hint or ""))
    if embedded:
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


async def tried(what: str, work: Callable[[], Awaitable[Any]], good: str = "") -> Check:
    """What `work` says if it says a sentence, else `good`; or its error in words."""
    try:
        said = await work()
    except (errors.RunloreError, OSError) as exc:
        return Check(what, False, f"{getattr(exc, 'kind', 'error')}: {exc}", getattr(exc, "hint", None) or "")
    return said if isinstance(said, Check) else Check(what, True, said or good)


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


# --- what a store must do ---------------------------------------------------------------------------------


async def of_store(store: store_port.ObjectStore) -> list[Check]:
    """Try every call that heads, marks and sweeps rest on, and that each is refused where it must be.

    One line where all is well, or where nothing works at all (no bucket, a wrong key); else one for each that fails.
    """
    key = keys.probe(clock.new_id())
    first = await tried("store", lambda: store.put_if_absent(key, b"1"))
    if not first.ok:
        return [first]
    tries: list[tuple[str, Callable[[], Awaitable[Any]]]] = [
        ("put-if-absent", lambda: _put_if_absent(store, key)),
        ("compare-and-set", lambda: _compare_and_set(store, key)),
        ("compare-and-delete", lambda: _compare_and_delete(store, key)),
        ("read and list", lambda: _read_and_list(store, key)),
        ("delete", lambda: _delete(store, key)),
    ]
    try:
        found = [await tried(f"store: {what}", work) for what, work in tries]
    finally:
        with contextlib.suppress(errors.RunloreError, OSError):
            await store.delete(key)
    bad = [one for one in found if not one.ok]
    return bad or [
        Check("store", True, f"{', '.join(what for what, _ in tries)} work, and refuse what they must")
    ]


async def _put_if_absent(store: store_port.ObjectStore, key: str) -> None:
    await _refused(store.put_if_absent(key, b"2"), "put-if-absent overwrote an object")


async def _compare_and_set(store: store_port.ObjectStore, key: str) -> None:
    old = await store.put(key, b"3")
    await store.compare_and_set(key, b"4", old)
    await _refused(store.compare_and_set(key, b"5", old), "compare-and-set ignored its condition")
    await _refused(store.compare_and_set(key, b"5", None), "compare-and-set ignored that something is there")
    stray = f"{key}-none"
    try:
        await _refused(store.compare_and_set(stray, b"5", old), "compare-and-set wrote where nothing was")
    finally:
        await store.delete(stray)


async def _compare_and_delete(store: store_port.ObjectStore, key: str) -> None:
    old = await store.put(key, b"6")
    new = await store.put(key, b"7")
    await _refused(store.compare_and_delete(key, old), "compare-and-delete ignored its condition")
    await store.compare_and_delete(key, new)
    if await store.get(key) is not None:
        raise errors.Fatal("compare-and-delete did not delete", hint=UNFIT)


async def _read_and_list(store: store_port.ObjectStore, key: str) -> None:
    etag = await store.put(key, b"89")
    found = await store.get(key)
    if found is None or (found.body, found.etag) != (b"89", etag) or await store.get_range(key, 1, 1) != b"9":
        raise errors.Fatal("the store does not read back what was written", hint=UNFIT)
    if [row.etag async for row in store.list(keys.probe("")) if row.key == key] != [etag]:
        raise errors.Fatal("a LIST does not show what was just written, with its etag", hint=UNFIT)


async def _delete(store: store_port.ObjectStore, key: str) -> None:
    await store.delete(key)
    if await store.get(key) is not None:
        raise errors.Fatal("the store still has what was deleted", hint=UNFIT)


async def _refused(write: Awaitable[object], otherwise: str) -> None:
    try:
        await write
    except errors.PreconditionFailed:
        return
    raise errors.Fatal(f"{otherwise}: this store can not keep what Runlore promises", hint=UNFIT)


async def _ages(opened: wiring.Home) -> list[Check]:
    """Whether the store and the log are of one time; nothing where the bus is away, as its own checks tell that."""
    from runlore.upkeep import ages

    try:
        return [await ages.check(opened.store, opened.bus)]
    except (errors.BusUnavailable, errors.Blocked):
        return []
    except errors.RunloreError as exc:
        return [Check(ages.WHAT, False, f"{exc.kind}: {exc.message}", exc.hint or "")]


async def _index(opened: wiring.Home) -> Check:
    """Whether the index opens, and how far it was behind the heads before it was compared with them."""
    from runlore.lookup import index as lookup_index

    index = lookup_index.Index(opened.index_path)
    try:
        behind = (await lookup_index.reconcile(index, opened.store)).applied
    finally:
        index.close()
    said = f"it was {behind:,} heads behind, and is not any more" if behind else "it agrees with the heads"
    return Check("index", True, f"{opened.index_path.name} opens; {said}")
