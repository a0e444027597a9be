"""The outbox: what a run left, on this machine's disk, until Runlore has taken it.

    <folder>/waiting/<run>.<attempt>/event.json, 0.tar, …    to be handed over; `rollout` says whose it is
    <folder>/waiting/<run>.1.<edit>/event.json               a live edit of memory that the run made
    <folder>/refused/<run>.<attempt>/                        what Runlore will never take, with `why.txt`
    <folder>/sessions/<id>.tar                               the SDK's own LocalSnapshot files (workspaces)
    <folder>/resumes/<name>.json                             notes: which run was interrupted, which one left a tar

An entry is put in one step (a folder, synced, then renamed), so a crash leaves a whole entry or none. Handing one over
twice changes nothing, so the lock only saves work: of the processes that share the folder one delivers at a time.
Everything is readable by its owner alone: records are redacted when they are handed over.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runlore import clock, errors
from runlore.agents import port
from runlore.events import ids

ENTRIES_MAX = 1000
"""Runs that wait at most; one more is not kept, with a warning."""
BYTES_MAX = 4 * 1024**3
"""Bytes that wait at most; over it a run is kept without its workspace."""
REFUSED_MAX = 100
SESSIONS_BYTES_MAX = 2 * 1024**3
"""Bytes of the SDK's own snapshot files that are kept, for saved RunStates; the oldest go first."""
SESSION_SECONDS_MAX = 7 * 24 * 3600
TEMPORARY_SECONDS_MAX = 3600
RESUMES_MAX = 5000
"""Notes of that kind that are kept; the oldest go first."""
EVENT, ROLLOUT, WHY = "event.json", "rollout", "why.txt"
UNKNOWN = "?"
TEMPORARY = ".new-"


@dataclass(frozen=True)
class Entry:
    """One run that waits."""

    path: Path
    data: dict[str, Any]
    left: tuple[port.Left, ...]

    @property
    def name(self) -> str:
        return self.path.name


def rollout_of(data: Mapping[str, Any]) -> str:
    """The alias of an event's rollout; one that no rollout has where the event does not say."""
    named = ("conversation_id", "session_id", "group_id", "run_id")
    try:
        return port.Ask(**{name: data.get(name) for name in named}).rollout.alias  # type: ignore[arg-type]
    except (errors.RunloreError, AttributeError):
        return UNKNOWN


class Outbox:
    """The outbox in `folder`. Every method blocks; none is slow but for `put` with many bytes."""

    def __init__(self, folder: Path, *, entries_max: int = ENTRIES_MAX, bytes_max: int = BYTES_MAX) -> None:
        self.folder = folder
        self.sessions = folder / "sessions"
        self._waiting, self._refused, self._resumes = (
            folder / "waiting",
            folder / "refused",
            folder / "resumes",
        )
        self._entries_max, self._bytes_max = entries_max, bytes_max
        self._known: dict[str, str] = {}
        """Of each entry that waits, its rollout."""

    def make(self) -> None:
        """The folders, for their owner alone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        for one in (self.sessions, self._waiting, self._refused, self._resumes):
            one.mkdir(mode=0o700, exist_ok=True)

    # --- entries ------------------------------------------------------------------------------------------

    def put(self, data: Mapping[str, Any], left: Sequence[port.Left]) -> list[port.Left]:
        """Keep a run until it is delivered; the workspaces for which there was no room.

        Tars are linked, not copied. Raises `errors.OutboxFull`, or OSError.
        """
        self.make()
        name = name_of(data)
        there = sorted(self._names())
        if "edit_id" in data and name in there:
            return []  # The same edit, found twice.
        if len(there) >= self._entries_max:
            raise errors.OutboxFull(f"{len(there)} runs wait in {self.folder} already")
        room = self._bytes_max - sum(_size(self._waiting / one) for one in there)
        kept: list[port.Left] = []
        without: list[port.Left] = []
        for one in left:
            size = one.path.stat().st_size
            (kept if size <= room else without).append(one)
            room -= size if size <= room else 0
        made = self._waiting / f"{TEMPORARY}{clock.new_id()}"
        made.mkdir(mode=0o700)
        try:
            rows = []
            for number, one in enumerate(kept):
                _link(one.path, made / f"{number}.tar")
                row = {"agent": one.agent, "base": one.base, "layout": one.layout}
                rows.append({"file": f"{number}.tar", **row})
            body = {"data": dict(data), "left": rows}
            _write(made / EVENT, json.dumps(body).encode("ascii"))
            _write(made / ROLLOUT, rollout_of(data).encode("utf-8"))
            _sync(made)
            os.replace(made, self._waiting / name)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        _sync(self._waiting)
        return without

    def names(self) -> list[str]:
        """What waits, oldest first. Nothing of it is read: records are large, and there may be a thousand."""
        found = [(_modified(self._waiting / name / EVENT), name) for name in self._names()]
        return [name for _, name in sorted(found)]

    def rollouts(self) -> set[str]:
        """The aliases of the rollouts whose runs wait."""
        names = self._names()
        # What an entry says it is never changes, so that each is read once.
        self._known = {name: self._known.get(name) or self._rollout_of(name) for name in names}
        return set(filter(None, self._known.values()))

    def _rollout_of(self, name: str) -> str:
        try:
            return (self._waiting / name / ROLLOUT).read_text("utf-8", "replace")
        except FileNotFoundError:
            entry = self.read(name)  # Delivered meanwhile, or left by an earlier version of this.
            return rollout_of(entry.data) if entry is not None else ""

    def read(self, name: str) -> Entry | None:
        """One of them; none where it is delivered meanwhile, or can not be read, which sets it aside."""
        path = self._waiting / name
        try:
            body = json.loads((path / EVENT).read_bytes())
            left = tuple(
                port.Left(path / row["file"], row["agent"], row["base"], row.get("layout"))
                for row in body["left"]
            )
            return Entry(path, dict(body["data"]), left)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as exc:
            self.set_aside(path, f"it can not be read: {exc}")
            return None

    def done(self, entry: Entry) -> None:
        """Forget what was delivered."""
        gone = self._waiting / f"{TEMPORARY}{clock.new_id()}"
        try:
            # In one step, so that nobody reads half of it.
            os.replace(entry.path, gone)
        except FileNotFoundError:
            return
        shutil.rmtree(gone, ignore_errors=True)

    def set_aside(self, path: Path, why: str) -> None:
        """Keep what Runlore will never take for a person to look at; the newest of them."""
        with contextlib.suppress(OSError):
            (path / WHY).write_text(why, "utf-8")
        target = self._refused / path.name
        shutil.rmtree(target, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.replace(path, target)
        for name in sorted(os.listdir(self._refused))[:-REFUSED_MAX]:
            shutil.rmtree(self._refused / name, ignore_errors=True)

    @contextlib.contextmanager
    def delivering(self) -> Iterator[bool]:
        """Whether this process may deliver now: one at a time does."""
        self.make()
        with open(self.folder / "delivering.lock", "a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def _names(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return [name for name in os.listdir(self._waiting) if not name.startswith(TEMPORARY)]
        return []

    # --- what a run that is resumed was ----------------------------------------------------------------------

    def remember(self, digest: str, body: Mapping[str, Any]) -> None:
        """Note what whoever resumes an interrupted run has to know."""
        self.make()
        made = self._resumes / f"{TEMPORARY}{clock.new_id()}"
        _write(made, json.dumps(dict(body)).encode("ascii"))
        os.replace(made, self._resumes / f"{digest}.json")

    def recall(self, digest: str) -> dict[str, Any]:
        """What was noted; {} where nothing was, as on another machine."""
        try:
            body = json.loads((self._resumes / f"{digest}.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return body if isinstance(body, dict) else {}

    # --- bounds ---------------------------------------------------------------------------------------------

    def tidy(self) -> None:
        """Remove what a killed process left, and the oldest of what is only kept for convenience."""
        self.make()
        now = clock.now().timestamp()
        for folder in (self._waiting, self._resumes, self.sessions):
            for left in [*folder.glob(f"{TEMPORARY}*"), *folder.glob(".*.tmp")]:
                if now - _modified(left) > TEMPORARY_SECONDS_MAX:
                    shutil.rmtree(left, ignore_errors=True)
                    with contextlib.suppress(OSError):
                        left.unlink()
        files = sorted(self._resumes.glob("*.json"), key=_modified, reverse=True)
        for old in files[RESUMES_MAX:]:
            old.unlink(missing_ok=True)
        room = SESSIONS_BYTES_MAX
        for tar in sorted(self.sessions.glob("*.tar"), key=_modified, reverse=True):
            with contextlib.suppress(FileNotFoundError):
                room -= tar.stat().st_size
                age = now - _modified(tar)
                # A young one may be what a session is about to be restored from.
                if age > SESSION_SECONDS_MAX or (room < 0 and age > TEMPORARY_SECONDS_MAX):
                    tar.unlink()


def name_of(data: Mapping[str, Any]) -> str:
    """The name of an event's entry: a run's; or an edit's, which comes after its run's in the order of names."""
    run = ids.alias(str(data["run_id"]))
    if "edit_id" in data:
        return f"{run}.1.{hashlib.sha256(str(data['edit_id']).encode()).hexdigest()[:16]}"
    return f"{run}.{data['attempt']}"


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _link(source: Path, target: Path) -> None:
    """The same bytes under another name; what the SDK replaces later, it replaces by a new file."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    target.chmod(0o600)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(folder: Path) -> int:
    try:
        with os.scandir(folder) as rows:
            return sum(row.stat().st_size for row in rows)
    except OSError:
        return 0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
