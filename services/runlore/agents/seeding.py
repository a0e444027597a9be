"""Memory into a session: written after its start, kept out of its snapshots, refreshed where the session lives on.

An agent that has the SDK's `Memory()` reads it there unchanged. What that would generate itself is left out, because
Runlore does it: the same run would be paid for twice.
"""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from runlore.agents import harvest, port, runs
from runlore.events import models

WRITE_SECONDS_MIN = 2.0
"""Writing what is here already may take this long, also where the deadline is used up."""


async def write(
    run: runs.Run, session: Any, layout: models.Layout | None = None, *, is_fresh: bool = False
) -> None:
    """Bring a started session's memory to the run's seed. Raises nothing but a cancellation.

    `is_fresh`: the session holds no memory but what is written now.
    """
    seeded = await run.seeded()
    layout = layout or port.layout_of(runs.memory_of(run.current))
    try:
        for folder in (layout.memories_dir, layout.sessions_dir):
            session.register_persist_workspace_skip_path(folder)
    except Exception as exc:
        # The archive is cleared of these folders on its way in, too.
        run.link.failed("keeping memory out of the snapshot", exc)
    if seeded is None:
        if not is_fresh:
            return
        # There was none to be had; what the agent writes down is taken all the same.
        seeded = port.Seeded()
    try:
        async with run.waiting(seconds_min=WRITE_SECONDS_MIN):
            await _write(run, session, seeded, layout)
        harvest.before_stop(session)
    except Exception as exc:
        run.link.failed("writing memory into the workspace", exc)


def at_start(run: runs.Run, session: Any) -> None:
    """Write memory once a session of the program's own has started."""
    start = session.start

    async def started() -> None:
        session.start = start
        await start()
        harvest.forget(session)
        await write(run, session)

    session.start = started


def placed(seeded: port.Seeded, layout: models.Layout) -> dict[str, bytes]:
    """A seed's files where the agent reads them."""
    prefix = seeded.memories_dir + "/"
    return {
        f"{layout.memories_dir}/{path.removeprefix(prefix)}" if path.startswith(prefix) else path: content
        for path, content in seeded.files.items()
    }


async def _write(run: runs.Run, session: Any, seeded: port.Seeded, layout: models.Layout) -> None:
    """Write what differs from the last seed there; agents that share a session may have a folder each.

    What was edited since is taken first, and where that can not be, nothing is written. A file of which both seeds say
    the same stays as the agent left it.
    """
    folders, files = harvest.of(session), placed(seeded, layout)
    last = folders.get(layout.memories_dir)
    if last is not None and not await harvest.take(session, last):
        return
    # Of half a seed nobody can tell what was edited, so until it is whole nothing is taken for an edit.
    before = last.files if last is not None and last.is_whole else {}
    held = harvest.Held(run, seeded, layout, files)
    held.taken = {
        name: sha256
        for name, sha256 in (last.taken if last is not None else {}).items()
        if before.get(f"{layout.memories_dir}/{name}") == files.get(f"{layout.memories_dir}/{name}")
    }
    stale = (last.files.keys() if last is not None else set()) - files.keys()
    folders[layout.memories_dir] = held
    if last is None:
        await harvest.note_present(session, held)
    made: set[Path] = set()
    for path, content in files.items():
        if before.get(path) == content:
            continue
        parent = Path(path).parent
        if parent not in made:
            await session.mkdir(parent, parents=True)
            made.add(parent)
        await session.write(Path(path), io.BytesIO(content))
    for path in sorted(stale):
        await session.rm(Path(path), recursive=True)
    held.is_whole = True


def gate(run: runs.Run, session: Any) -> None:
    """See to it that the SDK does not generate memory for what Runlore records.

    Only its generation is held back, and only where all runs of the session were ours: the hook of a live session
    with a plain run in between goes ahead. Should the SDK's class get another name, memory is paid for twice and
    nothing is lost.
    """
    if getattr(session, "_runlore_gated", False):
        return
    try:
        from agents.sandbox.memory.manager import SandboxMemoryGenerationManager
    except ImportError:
        return
    register = session.register_pre_stop_hook

    def registered(hook: Callable[[], Awaitable[None]]) -> None:
        manager = getattr(hook, "__self__", None)
        ours = runs.CURRENT.get()
        if isinstance(manager, SandboxMemoryGenerationManager) and hook == manager.flush:
            if ours is not None:
                ours.link.once(
                    "the agent's Memory() would generate memory itself; Runlore does that, so the SDK's own phases are"
                    " left out (Memory(generate=None) says the same)"
                )
            hook = _unless_ours(manager)
        register(hook)

    session.register_pre_stop_hook = registered
    session._runlore_gated = True


def _unless_ours(manager: Any) -> Callable[[], Awaitable[None]]:
    """The manager's flush, left out while no run but ours gave it anything."""
    enqueue, plain = manager.enqueue_rollout_payload, []

    async def enqueued(*args: Any, **named: Any) -> None:
        if runs.CURRENT.get() is None:
            plain.append(True)
        await enqueue(*args, **named)

    async def flush() -> None:
        if plain:
            await manager.flush()

    manager.enqueue_rollout_payload = enqueued
    return flush
