"""The port to Runlore itself: what a seed holds, what a run hands over, and who may answer.

Two adapters: `embedded` (a home on this machine, no server) and `remote` (the lookup service, docs/HTTP.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from runlore.events import ids, models

NO_BASE: Mapping[str, Any] = {"counter": 0, "snapshot": None}
"""The base of a line that has nothing yet."""


@dataclass(frozen=True)
class Ask:
    """For whom a seed is: the ids of the next run, as the SDK knows them."""

    run_id: str
    conversation_id: str | None = None
    session_id: str | None = None
    group_id: str | None = None
    subject: str | None = None
    follows: str | None = None
    """A run of the same rollout, maybe of another machine, after which this one must begin."""

    @property
    def rollout(self) -> ids.Rollout:
        return ids.resolve_rollout(
            conversation_id=self.conversation_id,
            session_id=self.session_id,
            group_id=self.group_id,
            run_id=self.run_id,
        )

    def given(self) -> dict[str, str]:
        """The ids that are given, under the names of the event."""
        named = {"conversation_id": self.conversation_id, "session_id": self.session_id}
        named |= {"group_id": self.group_id, "subject": self.subject, "run_id": self.run_id}
        return {name: value for name, value in named.items() if value is not None and value.strip()}


@dataclass(frozen=True)
class Workspace:
    """The present version of one line: the snapshot to begin with, and what a run gives as its `base`."""

    agent: str | None = None
    """The line's agent; none: the rollout's main line."""
    snapshot: str | None = None
    base: Mapping[str, Any] = field(default_factory=lambda: dict(NO_BASE))


@dataclass(frozen=True)
class Seeded:
    """What a run begins with. Memory's files are path in the workspace → content."""

    id: str | None = None
    revision: int = 0
    notes: int = 0
    memories_dir: str = "memories"
    files: Mapping[str, bytes] = field(default_factory=dict)
    workspace: Workspace = field(default_factory=Workspace)


@dataclass(frozen=True)
class Ended:
    """How a run has ended: one of the ends of docs/CLI.md, and why."""

    run: str
    end: str
    cause: str = ""


@dataclass(frozen=True)
class Left:
    """A workspace that a run left: a tar in the outbox, and what it began as."""

    path: Path
    agent: str | None
    base: Mapping[str, Any] | None
    layout: Mapping[str, str] | None = None
    """Where memory lies in it."""

    def told(self, source: Mapping[str, Any]) -> dict[str, Any]:
        """Itself in an event; `source` is its snapshot or archive."""
        more = {"agent": self.agent, "base": self.base, "layout": self.layout}
        return {**source, **{name: value for name, value in more.items() if value}}


class Backend(Protocol):
    """Runlore, wherever it is. Any method may raise; whoever calls sees to it that the run does not."""

    is_here: bool
    """Whether this process works off what is handed over."""

    async def seed(self, ask: Ask, agent: str | None) -> Seeded:
        """The seed for the next run; its workspace is the agent's own line, or the rollout's main line."""
        ...

    async def probe(self, ask: Ask) -> None:
        """Return where a seed could be asked for now; the smallest question that tells."""
        ...

    async def workspace(self, ask: Ask, agent: str) -> Workspace:
        """The agent's own line."""
        ...

    async def fetch(self, workspace: Workspace, to: Path) -> None:
        """Write the snapshot as a plain tar."""
        ...

    async def send(self, data: dict[str, Any], left: Sequence[Left]) -> list[str]:
        """Hand over a run; what of it was refused for good. Doing it twice changes nothing."""
        ...

    async def settle(self) -> None:
        """Work off what was handed over, as far as this process is the one that works."""
        ...

    async def began_by(self, ask: Ask, agent: str | None, run: str) -> Mapping[str, Any] | None:
        """The base of a line whose present version `run` left; none where another run moved it since."""
        ...

    async def caught_up(self, ask: Ask, *, is_patient: bool = True) -> None:
        """Return once what was handed over for the rollout is worked off, or it takes too long.

        A merge is patient, a run is not.
        """
        ...

    async def wait_for(
        self, run: str, *, rollout: str | None, seconds: float, with_model: bool
    ) -> Sequence[Ended]:
        """How a run that was handed over has ended. Raises `errors.WaitTimeout`."""
        ...

    async def merge(self, rollout: str, branches: Mapping[str, str], base: str | None) -> Mapping[str, Any]:
        """Merge the lines of `branches` (label → rollout), which began from `base`, into the rollout's line.

        `snapshot`, `state`, `branches`, `conflicts`. Raises `errors.NotFound` where none of them has a version.
        """
        ...


OWN_FOLDER = ".runlore"
"""What is ours in a workspace, and in no snapshot."""
OWN_LAYOUT = models.Layout(memories_dir=".runlore/memories", sessions_dir=".runlore/sessions")
"""Where memory lies for an agent that does not say: a program may have folders of the usual names for itself."""


def layout_of(memory: Any) -> models.Layout:
    """The layout of the SDK's `Memory`, or our own where an agent has none."""
    layout = getattr(memory, "layout", None)
    if layout is None:
        return OWN_LAYOUT
    return models.Layout(
        memories_dir=str(layout.memories_dir).rstrip("/"), sessions_dir=str(layout.sessions_dir).rstrip("/")
    )
