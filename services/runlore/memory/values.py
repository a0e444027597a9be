"""The values that memory's functions pass to one another: plain, frozen, comparable."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

UNKNOWN = "unknown"
"""A time that no record tells; the SDK writes and sorts the same word."""


@dataclass(frozen=True)
class RunMeta:
    """What the event said about a run, where its record does not."""

    project: str
    memory: str
    rollout: str
    """Alias: safe as a file name."""
    run: str
    """Alias."""
    attempt: int = 1
    subject: str | None = None
    """Alias of whom the run was for; None where it was for nobody in particular."""
    ended_at: str = UNKNOWN
    """RFC 3339, or "unknown"."""
    agents: list[str] = field(default_factory=list)
    is_edit: bool = False
    """Whether it is no run but a live edit that one made."""


class Evidence(NamedTuple):
    """Where a statement can be looked up: an item of one attempt of one run of one rollout."""

    rollout: str
    run: str
    attempt: int
    item: int
    """Position in `input + generated_items` of the record."""


class Layout(Protocol):
    """The two folders of the SDK's `MemoryLayoutConfig`."""

    @property
    def memories_dir(self) -> str: ...
    @property
    def sessions_dir(self) -> str: ...


def time_key(at: str) -> tuple[int, str]:
    """The SDK's order of times (`_updated_at_sort_key` of its memory storage): unknown first, then by text."""
    return (0, "") if not at or at == UNKNOWN else (1, at)
