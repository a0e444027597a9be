"""Wiring: the one place where ports get their adapters. The embedded default is one folder, the home.

<home>/home.json    what this folder is, and in which version
<home>/log.db       the bus: a durable SQLite log
<home>/store/       the object store: a directory
<home>/index.db     the index: a cache; delete it and it is made again
<home>/agents/      outboxes of `runlore.agents`: runs that were not handed over yet
<home>/run/         the lock and the status of a running `runlore up`
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from runlore import clock, errors, telemetry
from runlore.bus import port as bus_port
from runlore.commit import revisions
from runlore.models import choices
from runlore.models import port as models_port
from runlore.settings import Settings
from runlore.sources.mapping import objects
from runlore.store import port as store_port

HOME_FORMAT = "runlore.home/1"
LOCK_TRIES = 20


@dataclass(frozen=True)
class Home:
    """An open home: its adapters and its folders."""

    root: Path
    settings: Settings
    store: store_port.ObjectStore
    bus: bus_port.Bus
    reader: revisions.Reader

    @property
    def index_path(self) -> Path:
        return self.root / "index.db"

    @property
    def status_path(self) -> Path:
        return self.root / "run" / "status.json"


@contextlib.asynccontextmanager
async def open_home(settings: Settings, *, create: bool = False) -> AsyncIterator[Home]:
    """Open the home that `settings` name; `create` makes it where there is none.

    Raises `errors.NotFound` where there is none, `errors.Refused` where the folder is something else.
    """
    root = settings.root
    # Past one machine the home holds caches only, so that a pod may begin with an empty one.
    create = create or (settings.bus != "sqlite" and settings.store != "directory")
    check_home(root, create=create)
    async with contextlib.AsyncExitStack() as stack:
        # First in, last out: what the adapters do while they close is still told.
        await stack.enter_async_context(telemetry.tracing(settings))
        store = store_of(settings)
        stack.push_async_callback(store.close)
        bus = telemetry.observed(bus_of(settings), settings)
        stack.push_async_callback(bus.close)
        yield Home(root, settings, store, bus, revisions.Reader(store))


def store_of(settings: Settings) -> store_port.ObjectStore:
    """The store that `settings` name. Nothing is asked of it yet."""
    if settings.store == "s3":
        from runlore.store.s3 import S3Store

        store = S3Store.of(settings)
        store.on_request = telemetry.store_request
        return store
    from runlore.store.directory import DirectoryStore

    return DirectoryStore(settings.root / "store", fsync=settings.fsync)


def bus_of(settings: Settings) -> bus_port.Bus:
    """The bus that `settings` name. Nothing is asked of it yet."""
    if settings.bus == "kafka":
        from runlore.bus.kafka import KafkaBus

        return KafkaBus.of(settings)
    from runlore.bus.sqlite import SqliteBus

    return SqliteBus(settings.root / "log.db", fsync=settings.fsync)


def engine_of(settings: Settings) -> models_port.Engine | None:
    """The engine that `settings` name; None where they name no endpoint and no key. Nothing is asked of it yet."""
    if not settings.has_model:
        return None
    from runlore.models.openai import OpenAIEngine

    return OpenAIEngine.of(settings, choices.load(settings.models_file).table())


def source_bus(settings: Settings) -> bus_port.Bus:
    """The bus as a team's own topic is on it: without our prefix. Nothing is asked of it yet."""
    if settings.bus == "kafka":
        from runlore.bus.kafka import KafkaBus

        return KafkaBus.of(settings, topic_prefix="")
    return bus_of(settings)


def object_reader(settings: Settings) -> objects.Fetch:
    """How a source reads what its events point to: with the credentials of the store's settings."""
    return objects.lazily(
        lambda: objects.client(
            endpoint=settings.s3_endpoint,
            region=settings.s3_region,
            access_key_id=settings.s3_access_key_id.get_secret_value(),
            secret_access_key=settings.s3_secret_access_key.get_secret_value(),
            timeout_seconds=settings.s3_timeout_seconds,
            connections_max=settings.s3_connections_max,
        )
    )


def check_home(root: Path, *, create: bool) -> None:
    """Make sure that `root` is a home of this version, or make it one."""
    marker = root / "home.json"
    try:
        found = json.loads(marker.read_bytes())["format"]
    except (FileNotFoundError, NotADirectoryError):
        found = None
    except (ValueError, KeyError, TypeError):
        raise errors.Refused(
            f"{marker} is not readable as a Runlore home", hint="choose another --home"
        ) from None
    if found == HOME_FORMAT:
        return
    if found is not None:
        raise errors.Refused(f"{root} has the format {found!r}; this Runlore reads {HOME_FORMAT!r}")
    if not create:
        raise errors.NotFound(
            f"there is no Runlore home at {root}",
            hint="`runlore import` or `runlore emit` makes one; or name another with --home or RUNLORE_HOME",
        )
    if root.exists() and not root.is_dir():
        raise errors.Refused(f"{root} is a file", hint="choose another --home")
    # A home whose making was interrupted has some of these and no marker yet.
    strangers = {entry.name for entry in root.iterdir()} if root.is_dir() else set()
    if strangers - {
        "home.json",
        "log.db",
        "log.db-wal",
        "log.db-shm",
        "store",
        "index.db",
        "run",
        "agents",
    } and not any(name.startswith("home.json.") for name in strangers):
        raise errors.Refused(f"{root} holds other files", hint="choose an empty or a new folder for --home")
    root.mkdir(parents=True, exist_ok=True)
    made = {"format": HOME_FORMAT, "made_at": clock.now_iso()}
    write_file(marker, (json.dumps(made) + "\n").encode(), durable=True)


def write_file(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Replace `path` in one step; `durable` where a power cut must not leave it empty."""
    temporary = path.with_name(f"{path.name}.{clock.new_id()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Hold the home's stages for this process; the kernel lets go when it ends, however it ends.

    Two would do no harm (nothing rests on ownership), only every piece of work twice. Raises
    `errors.HomeInUse` with the process that holds it.
    """
    try:
        lock = _lock_of(root)
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise errors.StoreUnavailable(
                f"the disk of {root} is full: {exc.strerror}", hint="free space on its disk"
            ) from exc
        raise errors.Blocked(
            f"{root} can not be written: {exc.strerror}",
            hint="`runlore doctor` says what is wrong with the home",
        ) from exc
    with lock:
        yield


def _lock_of(root: Path) -> IO[str]:
    """The lock's file, held and with this process's number in it. Raises `errors.HomeInUse`, `OSError`."""
    folder = root / "run"
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(open(folder / "up.lock", "a+"))
        if not _locked(lock):
            lock.seek(0)
            holder = lock.read().strip() or "?"
            raise errors.HomeInUse(
                f"process {holder} runs the stages of {root} already",
                hint="emit, import, seed and every other command work beside it; or choose another --home",
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        stack.pop_all()
    return lock


def _locked(lock: IO[str]) -> bool:
    """Take the lock. `up_is_running` holds it for a moment, so one refusal is not an answer yet."""
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.01)
    return False


def up_is_running(root: Path) -> int | None:
    """The process that runs the home's stages; None where none does."""
    try:
        with open(root / "run" / "up.lock") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(lock.read().strip() or 0)
    except (FileNotFoundError, NotADirectoryError):
        pass
    return None
