"""Live edits of memory: what an agent changed in the files that it was seeded with, taken back as one event.

The SDK tells an agent to write what it learns into `MEMORY.md` in the same turn. What was seeded is known here, with
its revision; what differs from it is read back at the end of each run, before a session stops, and before a live
session is refreshed. It goes into the outbox after the event of the run that was seeded so, and is recognised by its
content: an edit that is found twice is one edit.

Nothing here raises but a cancellation. A folder whose edits could not be kept is not written to: better an older memory
than a lost edit.
"""

from __future__ import annotations

import asyncio
import hashlib
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.sandbox.errors import WorkspaceReadNotFoundError

from runlore import clock, errors
from runlore.agents import port, runs
from runlore.events import models

FILES = ("MEMORY.md", "memory_summary.md")
SECONDS_MIN = 2.0
"""Reading back may take this long, also where the deadline is used up."""


@dataclass
class Held:
    """What one folder of memory in a session holds by us, and the run that it was written for."""

    run: runs.Run
    seeded: port.Seeded
    layout: models.Layout
    files: dict[str, bytes] = field(default_factory=dict)
    """Path in the workspace → content."""
    is_whole: bool = False
    """Whether all of it was written: of half a seed nobody can tell what was edited."""
    taken: dict[str, str] = field(default_factory=dict)
    """File → the hash of the edit that was taken already."""


_held: weakref.WeakKeyDictionary[Any, dict[str, Held]] = weakref.WeakKeyDictionary()
"""Session → folder of memory → what it holds."""
_hooked: weakref.WeakSet[Any] = weakref.WeakSet()
"""Sessions whose next stop is waited for."""


def of(session: Any) -> dict[str, Held]:
    """The folders of memory that we wrote in a session."""
    return _held.setdefault(session, {})


def forget(session: Any) -> None:
    """The session started anew: memory is in no snapshot, so what was written before may be gone."""
    _held.pop(session, None)
    _hooked.discard(session)


def before_stop(session: Any) -> None:
    """See to it that edits are taken before the session stops: once for each time that it does."""
    if session in _hooked:
        return
    kept = weakref.ref(session)

    async def hook() -> None:
        here = kept()
        if here is not None:
            _hooked.discard(here)
            await take_all(here)

    try:
        session.register_pre_stop_hook(hook)
        _hooked.add(session)
    except Exception as exc:
        for held in of(session).values():
            held.run.link.failed("waiting for the end of a session", exc)
            return


async def take_all(session: Any, run: runs.Run | None = None) -> None:
    """Take the edits of a session, as far as they are of `run` if one is given."""
    for held in list(of(session).values()):
        if run is None or held.run is run:
            try:
                async with held.run.waiting(seconds_min=SECONDS_MIN):
                    await take(session, held)
            except Exception as exc:
                held.run.link.failed("reading back what was edited in memory", exc)


async def take(session: Any, held: Held) -> bool:
    """Take what was edited in one folder; whether it may be written to now."""
    if not held.is_whole:
        return True
    link = held.run.link
    found: dict[str, bytes] = {}
    for name in FILES:
        path = f"{held.layout.memories_dir}/{name}"
        try:
            raw = await _read(session, path)
        except Exception as exc:
            link.failed(f"reading back {path}: it is left as it is", exc)
            return False
        if not raw.strip() or raw == held.files.get(path, b"") or _hash(raw) == held.taken.get(name):
            continue  # An empty file is what the SDK makes where there is none.
        if len(raw) > models.EDITED_BYTES_MAX:
            larger = f"the edited {path} has more than {models.EDITED_BYTES_MAX} bytes; it is left as it is"
            link.failed("a live edit of memory", errors.RecordTooLarge(larger))
            return False
        found[name] = raw
    if not found:
        return True
    try:
        await _hand_over(held.run, _event(held, found))
    except Exception as exc:
        link.failed("keeping a live edit of memory: the file is left as it is", exc)
        return False
    held.taken |= {name: _hash(raw) for name, raw in found.items()}
    return True


async def note_present(session: Any, held: Held) -> None:
    """What lies there already, and is not ours, is no edit."""
    for name in FILES:
        path = f"{held.layout.memories_dir}/{name}"
        if path not in held.files and (raw := await _read(session, path)).strip():
            held.taken[name] = _hash(raw)


async def _read(session: Any, path: str) -> bytes:
    """The file's bytes, one more than an edit may have at most; none where it is not there."""
    try:
        handle = await session.read(Path(path))
    except (WorkspaceReadNotFoundError, FileNotFoundError):
        return b""
    try:
        content = await asyncio.to_thread(handle.read, models.EDITED_BYTES_MAX + 1)
    finally:
        handle.close()
    return content if isinstance(content, bytes) else str(content).encode("utf-8", "surrogatepass")


def _event(held: Held, found: dict[str, bytes]) -> dict[str, Any]:
    """The event's data: a function of the run, of what it was seeded with and of what it left."""
    run, seeded = held.run, held.seeded
    files = []
    for name, raw in found.items():
        base = held.files.get(f"{held.layout.memories_dir}/{name}", b"")
        text = raw.decode("utf-8", "replace")
        files.append({"path": name, "text": text, "base_sha256": _hash(base)})
    told = "\n".join(
        [held.layout.memories_dir, *(f"{one['path']} {_hash(found[one['path']])}" for one in files)]
    )
    body: dict[str, Any] = {
        "project": run.link.project,
        "memory": run.link.memory,
        "layout": held.layout.model_dump(),
        **run.ask.given(),
        "edit_id": f"{run.id}.{_hash(f'{seeded.id} {told}'.encode())[:16]}",
        "agents": run.agents[-1:],
        "seed": seeded.id if seeded.revision else None,
        "revision": seeded.revision,
        "files": files,
    }
    return {name: value for name, value in body.items() if value not in (None, [])}


async def _hand_over(run: runs.Run, data: dict[str, Any]) -> None:
    """Into the outbox; where the run's own event is still to come, right after that."""
    if run.is_expected and run.record is None:
        run.edits.append(data)
        return
    await asyncio.to_thread(put, run, data)
    run.link.delivery.begin()


def put(run: runs.Run, data: dict[str, Any]) -> None:
    """Keep an edit in the outbox; blocking. Raises `errors.OutboxFull`, or OSError."""
    run.link.outbox.put(dated(data), [])


def dated(data: dict[str, Any]) -> dict[str, Any]:
    """An edit with its time: not before the run's own record, since what the run met, whoever edited in it knew."""
    return {**data, "edited_at": clock.now_iso()}


def _hash(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
