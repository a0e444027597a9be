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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runlore.agents import outbox, port

if TYPE_CHECKING:
    from runlore.agents import runs

PREFIX = "tool."
LINES_MAX = 32
"""Agents whose workspaces one run keeps at most, as tools; an event holds 64 workspaces in all."""


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
    last = line.last
    if last is not None and await asyncio.to_thread(_again, last, space):
        space.base, space.snapshot, space.files, space.restored = last.base, last.snapshot, last.files, True
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


def _again(last: runs.Space, space: runs.Space) -> bool:
    """Begin a call with what the one before it in this run left. A file that the SDK replaces is another one then."""
    try:
        outbox.link(last.path, space.path)
    except OSError:
        return False
    return True
