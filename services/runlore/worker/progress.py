"""How the stages of a worker are: what `runlore status` shows, a progress bar counts, and a probe asks.

A stage is as bad as the worst of what it does at the same time: `Troubles` keeps each open fault apart, so that one
batch that succeeds does not hide another that waits.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from runlore import clock

RUNNING, WAITING, BLOCKED, FAILED = "running", "waiting", "blocked", "failed"


@dataclass
class StageStatus:
    """How a stage is: what `runlore status` shows, with the cause in words."""

    state: str = RUNNING
    cause: str | None = None
    since: str | None = None
    tries: int = 0
    retry_seconds: float | None = None
    """How long it waits at most before it tries again."""
    done: int = 0
    """Messages, marks or heads worked since the start."""
    memories: dict[str, str] = field(default_factory=dict)
    """Memories that can not go on, while the stage does: `project/memory` → why."""
    projects: dict[str, str] = field(default_factory=dict)
    """Projects of which a batch waits to be tried again, while those of others go on: project → why."""

    def ok(self) -> None:
        if self.state != RUNNING:
            self.state, self.cause, self.since, self.tries = RUNNING, None, None, 0
            self.retry_seconds = None

    def fail(self, state: str, error: BaseException) -> None:
        if self.state == RUNNING:
            self.since = clock.now_iso()
        self.state, self.tries = state, self.tries + 1
        self.cause = f"{getattr(error, 'kind', type(error).__name__)}: {error}"


@dataclass
class Progress:
    """Counts since the start, for a progress bar and for `--json`."""

    recorded: int = 0
    already: int = 0
    superseded: int = 0
    erased: int = 0
    dead: int = 0
    revisions: int = 0
    covered: int = 0
    held: int = 0
    snapshots: int = 0
    """Versions that became a line's head."""
    branches: int = 0
    stages: dict[str, StageStatus] = field(
        default_factory=lambda: {
            name: StageStatus() for name in ("record", "summarize", "consolidate", "snapshot", "index")
        }
    )


class Troubles:
    """The open faults of a stage, each by what it stands in the way of; they make its status."""

    def __init__(self, status: StageStatus) -> None:
        self.status = status
        self._open: dict[str, tuple[str, str]] = {}

    def fail(self, what: str, state: str, error: BaseException) -> bool:
        """Note a fault of `what`; whether it is news to whoever reads the log.

        A store that is away stands in the way of everything at once: one line is enough for that.
        """
        self.status.fail(state, error)
        cause = self.status.cause or ""
        known = {(one, told.partition(":")[0]) for one, told in self._open.values()}
        news = (state, cause.partition(":")[0]) not in known
        self._open[what] = (state, cause)
        self._show()
        return news

    def ok(self, what: str) -> bool:
        """`what` goes on, or was given up; whether that ended the last open fault."""
        if self._open.pop(what, None) is None:
            return False
        if not self._open:
            self.status.ok()
            return True
        self._show()
        return False

    def _show(self) -> None:
        self.status.state, self.status.cause = max(self._open.values(), key=lambda one: _WORSE.index(one[0]))


_WORSE = (RUNNING, WAITING, BLOCKED, FAILED)
