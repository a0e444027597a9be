"""A client for the SDK's `RemoteSnapshot` and `RemoteSnapshotSpec`, for programs that wire their sandbox themselves.

    dependencies = Dependencies().bind_factory(
        "runlore", lambda _: SnapshotClient(lore, "conv-7"), cache=True, owns_result=True)
    client = UnixLocalSandboxClient(dependencies=dependencies)
    sandbox = SandboxRunConfig(client=client, snapshot=RemoteSnapshotSpec(client_dependency_key="runlore"))

One object serves one session. Whatever id the SDK asks for (a new one for each session), it gets the present version of
the rollout's line, and what it uploads is a new version: fenced, so that it replaces only what this session began from.
"""

from __future__ import annotations

import asyncio
import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

from runlore import clock, errors
from runlore.agents import outbox, runs
from runlore.agents.runner import Runlore
from runlore.sources import payloads


class SnapshotClient:
    """`upload`, `download` and `exists` for one session, on the line of `rollout`.

    Inside of `Runlore.run` it is the run's own rollout, and what is uploaded goes with the run's event; else a rollout
    is needed, and each upload is an event of its own with an empty record.
    """

    def __init__(self, lore: Runlore, rollout: str | None = None) -> None:
        self._lore, self._link = lore, lore.link
        inside = runs.CURRENT.get()
        if inside is None and not rollout:
            raise errors.InvalidInput("outside of Runlore.run a rollout is needed")
        self._is_inside = inside is not None
        self._run = inside or runs.Run(
            self._link, None, [], lore.ask(None, None, rollout), parent=None, resumed={}
        )
        self._space: runs.Space | None = None

    async def exists(self, snapshot_id: str) -> bool:
        """Whether the line has a version. It is fetched here, so that a failing service leaves the session empty.

        Then it is no base that was seen, and what the session leaves replaces nothing.
        """
        self._space = await self._run.space()
        return self._space.restored

    async def download(self, snapshot_id: str) -> io.IOBase:
        """The version as an uncompressed tar that can be sought in."""
        space = self._space if self._space is not None else await self._run.space()
        self._space = space
        if not space.restored:
            raise errors.SnapshotNotFound(f"the rollout {self._run.ask.rollout.alias} has no workspace")
        return await asyncio.to_thread(open, space.path, "rb")

    async def upload(self, snapshot_id: str, data: io.IOBase) -> None:
        """Keep what the session leaves, on this machine's disk; it is handed over in the background."""
        space = self._space
        if space is None:  # Nothing was asked before: no base was seen.
            space = self._run.new_space()
        files = await asyncio.to_thread(self._keep, space.path, data)
        if self._is_inside:
            # With the run's event; that the session started, the run's own client has seen.
            space.take()
            return
        if space.restored and not files:
            # A session whose start failed uploads the tree that it cleared; nothing here tells the two apart.
            space.base = None
        space.started = space.taken = True
        terminal = payloads.terminal(payloads.COMPLETED)
        rollout = self._run.ask.rollout.alias
        line = payloads.build(
            updated_at=clock.now_iso(),
            rollout_id=rollout,
            input=[],
            generated_items=[],
            terminal_metadata=terminal,
        )
        event = self._run.event(payloads.dump(line), None)
        await asyncio.to_thread(self._link.outbox.put, event, self._run.left())
        self._link.delivery.begin()

    def _keep(self, path: Path, data: io.IOBase) -> int:
        """Write the tar in one step; how many files it holds (1 where it is no tar but a provider's reference)."""
        self._link.outbox.make()
        new = path.with_name(f"{outbox.TEMPORARY}{clock.new_id()}")
        try:
            with open(new, "wb") as file:
                shutil.copyfileobj(data, file)  # type: ignore[misc]
            new.chmod(0o600)
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
        try:
            with tarfile.open(path, "r:*") as archive:
                return sum(not member.isdir() for member in archive)
        except tarfile.TarError:
            return 1


def of(lore: Runlore, rollout: str | None = None) -> Any:
    """A factory for `Dependencies.bind_factory`."""
    return lambda _: SnapshotClient(lore, rollout)
