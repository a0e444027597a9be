"""The workspace: a sandbox client that begins a session from our snapshot, and takes what it left.

The program's own client does the work. A new session gets the SDK's stock `LocalSnapshot` below our outbox, with
the line's tar in place: the SDK restores it at the start and replaces it at the stop, and a saved RunState can be
resumed by a program without Runlore. A program that gives a `snapshot`, a `session_state` or a live session of its
own keeps it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from agents.sandbox import LocalSnapshot
from agents.sandbox.session import BaseSandboxClient

from runlore.agents import manifests, recording, runs, seeding


class Client(BaseSandboxClient[Any]):
    """The client of a run's sandbox configuration, with `inner` as the one that does it."""

    def __init__(
        self, inner: BaseSandboxClient[Any], *, own_snapshot: bool, ended: Callable[[runs.Run], None]
    ) -> None:
        self.inner = inner
        # What a RunState names must be what it is resumed with, with or without us.
        self.backend_id = inner.backend_id
        self.supports_default_options = getattr(inner, "supports_default_options", False)
        self._own_snapshot, self._ended = own_snapshot, ended
        self._spaces: weakref.WeakKeyDictionary[Any, tuple[runs.Run, runs.Space | None]] = (
            weakref.WeakKeyDictionary()
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def create(self, *, snapshot: Any = None, manifest: Any = None, options: Any = None) -> Any:
        run = runs.CURRENT.get()
        if run is None or self._own_snapshot:
            session = await self.inner.create(snapshot=snapshot, manifest=manifest, options=options)
            return self._attached(session, run, None)
        space = await run.space()
        ours = LocalSnapshot(id=space.id, base_path=run.link.outbox.sessions)
        session = await self.inner.create(snapshot=ours, manifest=manifest, options=options)
        return self._attached(session, run, space, is_new=True)

    async def resume(self, state: Any) -> Any:
        run, space = runs.CURRENT.get(), None
        snapshot = getattr(state, "snapshot", None)
        if run is not None and is_ours(run.link, snapshot):
            space = await run.resumed_space(snapshot.id, snapshot.base_path / f"{snapshot.id}.tar")
        return self._attached(await self.inner.resume(state), run, space)

    async def delete(self, session: Any) -> Any:
        run, space = self._spaces.pop(session, (None, None))
        if space is not None:
            space.take()
        try:
            return await self.inner.delete(session)
        finally:
            # Also where a client of our own in the program's hands took something (`snapshots.py`).
            # What a call left goes with the run around it.
            if run is not None and (space.left if space is not None else run.top.left()):
                self._ended(run.top)

    def serialize_session_state(self, state: Any) -> dict[str, object]:
        return self.inner.serialize_session_state(state)

    def deserialize_session_state(self, payload: dict[str, object]) -> Any:
        return self.inner.deserialize_session_state(payload)

    def _attached(
        self, session: Any, run: runs.Run | None, space: runs.Space | None, *, is_new: bool = False
    ) -> Any:
        """The session, which from now on gets memory when it starts."""
        if run is None:
            return session
        self._spaces[session] = (run, space)
        seeding.gate(run, session)
        start = session.start

        async def started() -> None:
            try:
                await start()
            except Exception as exc:
                if space is None or not space.restored:
                    raise
                # Ours was the tar that could not be restored: the run begins with an empty workspace instead.
                run.link.failed("restoring the workspace", exc)
                space.began_empty()
                space.path.unlink(missing_ok=True)
                await start()
            if space is not None:
                space.start()
                if is_new:
                    await manifests.apply(run, space, session)
            else:
                run.started()
            await seeding.write(run, session, is_fresh=True)

        session.start = started
        return session


def is_ours(link: runs.Link, snapshot: Any) -> bool:
    """Whether an earlier run of ours made this snapshot, on this machine or another."""
    if not isinstance(snapshot, LocalSnapshot):
        return False
    return recording.is_like(snapshot.base_path, link.outbox.sessions)
