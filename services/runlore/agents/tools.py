"""Agents that are called as tools, with a sandbox of their own: each has a line of its own in the run's rollout.

The SDK makes a new sandbox for each call and throws it away. Here a call goes on where the one before it stopped, in
this run or an earlier one of the rollout; what the last call left goes with the event of the run that nobody called,
which is the only one that moves lines (invariant 5). So it costs one upload for each run, however often a tool is
called, and the run's own workspace is never touched: a tool's line is named `tool.` and the agent.

Of calls that are under way at once, the first to begin holds the line. The others begin with the same version, as
copies; what they leave is not kept, and that is told.
"""

from __future__ import annotations

import asyncio
import io
import pathlib
import shutil
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runlore.agents import outbox, port
from runlore.snapshots import library
from runlore.store import directory

if TYPE_CHECKING:
    from runlore.agents import runs

PREFIX = "tool."
LINES_MAX = 32
"""Agents whose workspaces one run keeps at most, as tools; an event holds 64 workspaces in all."""

AGAIN_SECONDS_MIN = 10.0
"""Going on in what the call before left may take this long: without it that is lost to the run."""
COPY_BYTES = 1024 * 1024


@dataclass
class Line:
    """The workspace of one agent, over the calls of one run."""

    holder: runs.Run | None = None
    """The call that is under way, and whose workspace will be the line's."""
    last: runs.Space | None = None
    """What the last call left."""

    def is_held(self) -> bool:
        # A call whose event is out is over, also where its session never came to its end.
        return self.holder is not None and not self.holder.attempt


@dataclass
class Tools:
    """The lines of one run that nobody called."""

    lines: dict[str, Line] = field(default_factory=dict)

    def left(self) -> list[port.Left]:
        spaces = [line.last for line in self.lines.values() if line.last is not None]
        return [one for space in spaces if (one := space.left) is not None]


def is_a_line_of(name: str) -> bool:
    """Whether a line is that of a tool."""
    return name.startswith(PREFIX)


async def fill(top: runs.Run, call: runs.Run, space: runs.Space, name: str) -> None:
    """Let `space`, of a call inside of the run `top`, go on in the line `name`."""
    line = top.tools.lines.get(name)
    if line is None:
        if len(top.tools.lines) >= LINES_MAX:
            top.link.once(
                f"a run keeps the workspaces of {LINES_MAX} agents that are called as tools, and no more"
            )
            space.kept = False
            return
        line = top.tools.lines[name] = Line()
    space.agent = name
    space.kept = not line.is_held()
    if space.kept:
        # Before anything is waited for, so that of several at once one holds it.
        hold(line, call, space)
    else:
        top.link.once(
            f"calls are under way at once that share the workspace {name}: each has a copy, and what the first to"
            " begin leaves is kept"
        )
    if line.last is not None and await _again(top, line.last, space):
        return
    # Where there was no seed, nothing else is asked for.
    found = await top.line_of(name) if top.seed is not None else None
    await top.fill(space, found or port.Workspace(agent=name))


def hold(line: Line, call: runs.Run, space: runs.Space) -> None:
    """Let `call` hold a line until its space is taken, or is not."""

    def ended() -> None:
        if line.holder is call:
            line.holder = None
        if space.taken:
            line.last = space

    line.holder, space.ended = call, ended


async def _again(top: runs.Run, last: runs.Space, space: runs.Space) -> bool:
    """Begin a call with what the one before it in this run left; whether that was possible.

    The SDK archives what it then refuses to restore (a virtualenv's links, say). So the tar goes through the same hands
    here as a workspace that is handed over: a snapshot in a store that lasts as long as this takes.
    """
    layout = last.layout or port.OWN_LAYOUT
    without = [layout.memories_dir, layout.sessions_dir, port.OWN_FOLDER]
    try:
        async with top.waiting(seconds_min=AGAIN_SECONDS_MIN):
            folder = await asyncio.to_thread(tempfile.mkdtemp, prefix=outbox.TEMPORARY, dir=last.path.parent)
            try:
                files = await _normalised(pathlib.Path(folder), last.path, space.path, without)
            finally:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    except Exception as exc:
        top.link.failed(f"going on in what the call before left ({space.agent})", exc)
        return False
    space.base, space.snapshot, space.files, space.restored = last.base, last.snapshot, files, True
    return True


async def _normalised(folder: pathlib.Path, old: pathlib.Path, new: pathlib.Path, without: list[str]) -> int:
    """Write the tar `old` as one that restores; its files."""
    store = directory.DirectoryStore(folder / "store", fsync=False)
    try:
        made = library.Snapshots(store, "call")
        with await asyncio.to_thread(open, old, "rb") as archive:
            saved = await made.ingest(archive, without=without)
        exported = await made.export(saved.ref)
        try:
            await asyncio.to_thread(_write, exported, folder / "new.tar")
        finally:
            exported.close()
        files = int(saved.stats.get("files", 0))
        # At the very end: where this fails there must be nothing that the SDK would restore.
        await asyncio.to_thread((folder / "new.tar").replace, new)
        return files
    finally:
        await store.close()


def _write(archive: io.RawIOBase, path: pathlib.Path) -> None:
    with open(path, "wb") as file:
        shutil.copyfileobj(archive, file, COPY_BYTES)
    path.chmod(0o600)
