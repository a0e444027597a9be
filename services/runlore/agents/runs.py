"""One run, from its seed to its event: who it is, what it began with, which agents worked, what they left.

Everything here is called from inside somebody's agent run, so nothing raises but a cancellation: what fails is told to
`Link.failed`, and the run goes on without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tarfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import agents
from agents.sandbox import SandboxAgent
from agents.sandbox.capabilities import Memory

from runlore import clock, errors
from runlore.agents import delivery, outage, outbox, port, tools
from runlore.events import ids, models
from runlore.snapshots import tarin

log = logging.getLogger("runlore.agents")
SETTLE_SHARE = 0.8
"""The share of what is left of the deadline that working off earlier runs may take; the rest is for the seed."""


@dataclass
class Link:
    """What all runs of one `Runlore` share."""

    project: str
    memory: str
    subject: str | None
    deadline_seconds: float
    backend: port.Backend
    outbox: outbox.Outbox
    delivery: delivery.Delivery
    failed: Callable[[str, BaseException], None]
    outage: outage.Outage = field(default_factory=outage.Outage)
    said: set[str] = field(default_factory=set)
    lore: Any = None
    """The `Runlore` itself, for runs inside of its runs."""

    def is_like(self, other: Link) -> bool:
        """Whether both see the same: a run of the one may share the seed of a run of the other."""
        return [self.project, self.memory, self.subject, self.outbox.folder] == [
            other.project,
            other.memory,
            other.subject,
            other.outbox.folder,
        ]

    def answers(self) -> None:
        """A seed came: an outage is over."""
        if self.outage.over():
            log.info("the lookup service answers again")

    def once(self, text: str) -> None:
        """Tell something that is the same for every run."""
        if text not in self.said:
            self.said.add(text)
            log.warning("%s", text)


@dataclass
class Space:
    """One workspace of a run: where its tar lies, what it began as, whether it may be taken."""

    id: str
    path: Path
    agent: str | None
    base: Mapping[str, Any] | None
    snapshot: str | None = None
    files: int = 0
    layout: models.Layout | None = None
    """Where the session's agent reads memory."""
    restored: bool = False
    """Whether there was a tar to begin from."""
    kept: bool = True
    """Whether what it leaves belongs on a line."""
    ended: Callable[[], None] | None = None
    """Is called once it was taken, or could not be."""
    began: tuple[int, int] | None = None
    started: bool = False
    taken: bool = False

    def start(self) -> None:
        """The session started: what the file is now is what it began from."""
        self.began, self.started = _identity(self.path), True
        if self.restored and self.began is None:
            # It was gone when the session wanted it: what began empty has seen no base.
            self.began_empty()

    def began_empty(self) -> None:
        """What was offered could not be restored, so the base was not seen."""
        self.base, self.restored, self.files, self.snapshot = None, False, 0, None

    def take(self) -> None:
        """Accept the tar: only of a session that started, and only one that the stop has written."""
        now = _identity(self.path)
        # A session whose start failed is stopped all the same, and persists a tree that is cleared or half made.
        self.taken = self.started and now is not None and now != self.began
        if self.ended is not None:
            self.ended()

    @property
    def left(self) -> port.Left | None:
        if not (self.taken and self.kept):
            return None
        layout = (self.layout or port.OWN_LAYOUT).model_dump()
        return port.Left(self.path, self.agent, self.base, layout)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


class Run:
    """One run of the SDK."""

    def __init__(
        self,
        link: Link,
        agent: Any,
        input: Any,
        ask: port.Ask,
        *,
        parent: Run | None,
        resumed: Mapping[str, Any],
    ) -> None:
        self.link, self.ask, self.parent = link, ask, parent
        self.input: Any = input
        self.resumed = resumed
        self.current: Any = agent
        self.agents: list[str] = []
        self.items: list[Any] = []
        """What the hooks saw, for an error that brings no items of its own."""
        self.spaces: list[Space] = []
        self.calls: list[Space] = []
        """The workspaces of a run that was called as a tool: they go with the event of the run around it."""
        self.tools = tools.Tools()
        self.also: list[port.Ask] = []
        """Runs inside of this one, in rollouts of their own: what they left before is waited for, too."""
        self.layout: models.Layout | None = None
        self.entered_by: Any = None
        """The wrapped runner that this run went through first; what it is given after that is another run."""
        self.refreshed = False
        """Whether a session that the program owns was given this run's seed."""
        self.is_expected = False
        """Whether an event of its own will come."""
        self.live: list[Any] = []
        """Sessions of the program's own that it was given."""
        self.edits: list[dict[str, Any]] = []
        """Live edits of memory that wait for the run's own event."""
        self.attempt = 0
        self.record: tuple[str, dict[str, int] | None] | None = None
        """The record and the usage, once the run's event is out."""
        self.seed_from: Callable[[], Any] | None = None
        self._seeding: asyncio.Future[port.Seeded | None] | None = None
        self._left_seconds = link.deadline_seconds

    @property
    def id(self) -> str:
        return self.ask.run_id

    @property
    def top(self) -> Run:
        """The run around all others, which nobody called; most often this one."""
        return self if self.parent is None else self.parent.top

    @contextlib.asynccontextmanager
    async def waiting(self, *, share: float = 1.0, seconds_min: float = 0.0) -> AsyncIterator[None]:
        """Make the run wait, for `share` of what is left of its deadline; TimeoutError ends it.

        Only such time counts: an agent that is handed to after an hour finds its workspace all the same.
        """
        began = clock.monotonic()
        try:
            async with asyncio.timeout(max(self._left_seconds * share, seconds_min)):
                yield
        finally:
            self._left_seconds = max(0.0, self._left_seconds - (clock.monotonic() - began))

    # --- seed -----------------------------------------------------------------------------------------------

    async def seeded(self) -> port.Seeded | None:
        """The seed, asked for once; None where it could not be had in time."""
        if self.parent is not None:
            return await self.parent.seeded()
        asked = self._seeding
        if asked is None or not (asked.done() or asked.get_loop() is asyncio.get_running_loop()):
            # What another loop asked for can't be waited for here: a tool may run an agent in a thread.
            self._seeding = asked = asyncio.ensure_future(self._seed())
        return await asyncio.shield(asked)

    @property
    def seed(self) -> port.Seeded | None:
        """The seed, if it was asked for and came."""
        if self.parent is not None:
            return self.parent.seed
        done = self._seeding is not None and self._seeding.done() and not self._seeding.cancelled()
        return self._seeding.result() if done and self._seeding is not None else None

    async def _seed(self) -> port.Seeded | None:
        if self.seed_from is not None:
            found: port.Seeded | None = await self.seed_from()
            return found
        before = self._left_seconds
        if not await self._is_there():
            return None
        stopped: Exception | None = None
        try:
            async with self.waiting(share=SETTLE_SHARE):
                # Past this machine what other rollouts left is not in the next seed at once anyway.
                only = None if self.link.backend.is_here else self.ask.rollout.alias
                await self.link.delivery.flush(rollout=only)
                await self.link.backend.settle()
                for one in () if self.link.backend.is_here else self.also:
                    await self.link.delivery.flush(rollout=one.rollout.alias)
                    await self.link.backend.caught_up(one, is_patient=False)
        except TimeoutError:
            log.info("earlier runs are not worked off yet; the seed is what there is")
        except Exception as exc:
            stopped = exc
        try:
            async with self.waiting():
                found = await self.link.backend.seed(self.ask, name_of(self.current))
        except Exception as exc:
            self._not_had("the seed", exc, before)
            return None
        if stopped is not None:
            # Where the seed does not come either, that is told, and once.
            self.link.failed("working off earlier runs", stopped)
        self.link.answers()
        return found

    async def _is_there(self) -> bool:
        """Whether to ask for a seed: while the service is out, once it has answered something small."""
        out, before = self.link.outage, self._left_seconds
        if not out.is_on:
            return True
        if not out.may_probe():
            return False
        try:
            async with self.waiting(share=outage.PROBE_SHARE):
                await self.link.backend.probe(self.ask)
        except Exception as exc:
            self._not_had("the seed", exc, before)
            return False
        return True

    def _not_had(self, what: str, exc: Exception, before: float) -> None:
        """Tell what did not come, an outage once. `before`: what was left of the deadline before it was asked for."""
        waited, deadline = before - self._left_seconds, self.link.deadline_seconds
        out = self.link.outage
        # This machine is not away: it may be busy, which the next run need not meet.
        if self.link.backend.is_here or out.seen(exc, waited_seconds=waited, deadline_seconds=deadline):
            self.link.failed(what, exc)

    @contextlib.asynccontextmanager
    async def asking(self, *, seconds_min: float = 0.0) -> AsyncIterator[None]:
        """`waiting` for something more; where the service is out it is not asked: it did not give the seed either."""
        if self.link.outage.is_on:
            raise errors.ServiceUnavailable("the lookup service is out, and was not asked")
        async with self.waiting(seconds_min=seconds_min):
            yield

    # --- workspaces -----------------------------------------------------------------------------------------

    async def space(self) -> Space:
        """A workspace for the present agent's new session, with its line's tar in place where there is one."""
        space = self.new_space()
        seeded = await self.seeded()
        name = name_of(self.current)
        if self.parent is not None:
            if name is None:
                space.kept = False
            else:
                await tools.fill(self.top, self, space, usable(tools.PREFIX + name))
            return space
        if seeded is None:
            return space
        found = seeded.workspace
        if self.spaces[1:] and name is not None:
            found = await self.line_of(name) or port.Workspace(agent=name)
        space.agent = found.agent
        await self.fill(space, found)
        return space

    def new_space(self) -> Space:
        """One more workspace, of which nothing is known yet."""
        mine = self.spaces if self.parent is None else self.calls
        name = f"{self.id}-{len(mine)}"
        space = Space(name, self.link.outbox.sessions / f"{name}.tar", None, None)
        space.layout = port.layout_of(memory_of(self.current))
        mine.append(space)
        return space

    async def line_of(self, agent: str) -> port.Workspace | None:
        """The present version of an agent's own line; none where it could not be asked for."""
        try:
            async with self.asking():
                return await self.link.backend.workspace(self.ask, agent)
        except Exception as exc:
            self.link.failed(f"the workspace of {agent}", exc)
            return None

    async def fill(self, space: Space, found: port.Workspace) -> None:
        """Put the line's tar where the SDK restores from. The base counts as seen only if that is there."""
        if found.snapshot is None:
            space.base = found.base
            return
        new = space.path.with_name(f"{outbox.TEMPORARY}{clock.new_id()}")
        try:
            async with self.asking():
                await asyncio.to_thread(self.link.outbox.make)
                await asyncio.to_thread(_make, space.path.parent)
                await self.link.backend.fetch(found, new)
                files = await asyncio.to_thread(check_tar, new)
                await asyncio.to_thread(_into_place, new, space.path)
        except Exception as exc:
            self.link.failed(f"the workspace {found.snapshot[:12]}", exc)
            return
        finally:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
        space.base, space.snapshot, space.files, space.restored = found.base, found.snapshot, files, True

    async def resumed_space(self, name: str, path: Path) -> Space:
        """The workspace of a session that is resumed from our own snapshot file, brought back if it is gone."""
        top = self.top
        noted = await asyncio.to_thread(self.link.outbox.recall, f"space-{name}")
        space = Space(name, path, noted.get("agent"), None)
        space.layout = port.layout_of(memory_of(self.current))
        (self.spaces if self.parent is None else self.calls).append(space)
        if self.parent is not None:
            # Only a line that it held may go on in it, and only one call at a time.
            line = self._tool_line(space.agent)
            space.kept = line is not None and not line.is_held()
            if line is not None and space.kept:
                tools.hold(line, self, space)
        seeded = await self.seeded()
        before = noted.get("run_id")
        if not await asyncio.to_thread(path.is_file):
            found = seeded.workspace if seeded is not None and self.parent is None else None
            if seeded is not None and space.agent is not None:
                found = await top.line_of(space.agent)
            if found is not None:
                await top.fill(space, found)
            return space
        space.restored = True
        if before:
            with contextlib.suppress(Exception):
                async with top.asking(seconds_min=0.01):
                    space.base = await self.link.backend.began_by(top.ask, space.agent, before)
        return space

    def _tool_line(self, name: str | None) -> tools.Line | None:
        if name is None or not tools.is_a_line_of(name):
            return None
        return self.top.tools.lines.setdefault(name, tools.Line())

    # --- the event ------------------------------------------------------------------------------------------

    def saw(self, agent: Any) -> None:
        """An agent works now: the chain, and the layout that it reads memory in."""
        self.current = agent
        name = name_of(agent)
        if name is not None and self.agents[-1:] != [name]:
            self.agents.append(name)
        if self.layout is None and (memory := memory_of(agent)) is not None:
            self.layout = port.layout_of(memory)

    def event(self, record: str, usage: Mapping[str, int] | None) -> dict[str, Any]:
        """The data of the run's event, as the next attempt; its workspaces go beside it."""
        self.attempt += 1
        seeded = self.seed
        body: dict[str, Any] = {
            "project": self.link.project,
            "memory": self.link.memory,
            "layout": (self.layout or models.Layout()).model_dump(),
            **self.ask.given(),
            "attempt": self.attempt,
            "agents": self.agents or [name for name in [name_of(self.current)] if name],
            "parent_run_id": self.parent.id if self.parent else None,
            "resumed_from": self.resumed.get("run_id"),
            "record": record,
            "seed": seeded.id if seeded else None,
            "usage": dict(usage) if usage else None,
        }
        return {name: value for name, value in body.items() if value is not None}

    def started(self) -> None:
        """A session that the program wired itself has started: so have the workspaces that it asked for."""
        for space in (*self.spaces, *self.calls):
            if not space.started:
                space.start()

    def left(self) -> list[port.Left]:
        usual = (self.layout or models.Layout()).model_dump()
        found = [one for space in self.spaces if (one := space.left) is not None] + self.tools.left()
        # Told only where it is not what the event says anyway.
        return [replace(one, layout=None) if one.layout == usual else one for one in found]

    def shown(self) -> str:
        """What the run began with, in half a line."""
        seeded, parts = self.seed, []
        if seeded is not None and seeded.revision:
            parts.append(f"revision {seeded.revision} ({seeded.notes} notes)")
        for space in (*self.spaces, *self.calls):
            if space.snapshot:
                parts.append(f"snapshot {space.snapshot[:8]} ({space.files} files)")
        if parts:
            return "seeded " + " + ".join(parts)
        asked = self._seeding is not None
        return "without a seed" if asked and seeded is None else "nothing to seed"


CURRENT: ContextVar[Run | None] = ContextVar("runlore_run", default=None)
"""The run that this code is part of."""


def name_of(agent: Any) -> str | None:
    """An agent's name as an id that Runlore takes."""
    name = getattr(agent, "name", None)
    return usable(name) if isinstance(name, str) and name.strip() else None


def usable(value: str) -> str:
    """`value`, or where Runlore refuses it as an id its alias: a run is not lost for its id."""
    try:
        return ids.check_id(value, "id")
    except errors.InvalidId:
        return ids.alias(value)


def memory_of(agent: Any) -> Any:
    """The agent's own `Memory` capability, if it has one."""
    if not isinstance(agent, SandboxAgent):
        return None
    return next((one for one in agent.capabilities if isinstance(one, Memory)), None)


def check_tar(path: Path) -> int:
    """Read a whole tar's headers; its files. Raises `errors.BadArchive`: what breaks off is not offered to the SDK."""
    try:
        with open(path, "rb") as file:
            if file.read(64).startswith(tuple(tarin.NATIVE_PREFIXES)):
                return 0  # A provider's own reference, which its client understands.
        with tarfile.open(path, "r:") as archive:
            files = sum(member.isreg() for member in archive)
    except (tarfile.TarError, OSError, EOFError) as exc:
        raise errors.BadArchive(f"the workspace's archive can not be read: {exc}") from exc
    return files


def _make(folder: Path) -> None:
    """The folder of the SDK's snapshot files: ours, or where a RunState of another machine says."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)


def _into_place(new: Path, path: Path) -> None:
    new.chmod(0o600)
    new.replace(path)


class Hooks(agents.RunHooks[Any]):
    """The program's own hooks, and ours beside them. What the program's raise is the run's; ours raise nothing."""

    def __init__(
        self, run: Run, inner: agents.RunHooks[Any] | None, before: Callable[[], Any] | None
    ) -> None:
        self._run, self._inner, self._before = run, inner, before

    async def on_agent_start(self, context: Any, agent: Any) -> None:
        self._run.saw(agent)
        if self._before is not None:
            await self._before()
        if self._inner is not None:
            await self._inner.on_agent_start(context, agent)

    async def on_agent_end(self, context: Any, agent: Any, output: Any) -> None:
        if self._inner is not None:
            await self._inner.on_agent_end(context, agent, output)

    async def on_handoff(self, context: Any, from_agent: Any, to_agent: Any) -> None:
        self._run.saw(to_agent)
        if self._inner is not None:
            await self._inner.on_handoff(context=context, from_agent=from_agent, to_agent=to_agent)

    async def on_tool_start(self, context: Any, agent: Any, tool: Any) -> None:
        if self._inner is not None:
            await self._inner.on_tool_start(context, agent, tool)

    async def on_tool_end(self, context: Any, agent: Any, tool: Any, result: Any) -> None:
        call = getattr(context, "tool_call_id", None)
        if call is not None:
            output = result if isinstance(result, str) else str(result)
            self._run.items.append({"call_id": call, "output": output, "type": "function_call_output"})
        if self._inner is not None:
            await self._inner.on_tool_end(context, agent, tool, result)

    async def on_llm_start(self, context: Any, agent: Any, system_prompt: Any, input_items: Any) -> None:
        if self._inner is not None:
            await self._inner.on_llm_start(context, agent, system_prompt, input_items)

    async def on_llm_end(self, context: Any, agent: Any, response: Any) -> None:
        with contextlib.suppress(Exception):
            self._run.items += response.to_input_items()
        if self._inner is not None:
            await self._inner.on_llm_end(context, agent, response)
