"""Waiting for a run until it has come to an end: the one list of ends, for the library, the command line and HTTP.

What the rules make of a run is in the next seed within seconds, so by default that is waited for, and its workspaces;
`with_model` waits for what a model adds, too, which may wait for its policy or for budget (docs/MODELS.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from runlore import clock, errors
from runlore.lookup import asked, asking, explain

CONSOLIDATED, NOT_SELECTED, SUPERSEDED, BRANCHED, HELD, REJECTED, DEAD, ERASED, DEFERRED, BLOCKED = (
    "consolidated",
    "not_selected",
    "superseded",
    "branched",
    "held",
    "rejected",
    "dead",
    "erased",
    "deferred",
    "blocked",
)
ENDS: Mapping[str, str] = {
    CONSOLIDATED: "a revision holds its rollout's notes",
    NOT_SELECTED: "a revision covers it, but its rollout is not among the newest ones that have notes",
    SUPERSEDED: "a higher attempt of the run took its place",
    BRANCHED: "as consolidated; a workspace that it left is a branch, and not its line's next version",
    HELD: "its rollout waits for review",
    REJECTED: "a person keeps its rollout out of memory, as it stands",
    DEAD: "its event could not take effect, and is kept as a dead letter",
    ERASED: "it was erased, and no event brings it back",
    DEFERRED: "the rules' part is in; a model's waits for budget",
    BLOCKED: "what it needs next waits for a person: a pause, or a model whose endpoint takes nothing (401)",
}
"""Every end, and what it means."""
GOOD = (CONSOLIDATED, NOT_SELECTED, SUPERSEDED, BRANCHED)
"""Those in which memory has the run: the others ask for a person, or for money."""
POLL_SECONDS_MIN, POLL_SECONDS_MAX = 0.1, 5.0


@dataclass(frozen=True)
class Ended:
    """A run that has come to an end."""

    end: str
    cause: str
    story: explain.Story

    def as_dict(self) -> dict[str, Any]:
        return {"end": self.end, "cause": self.cause, **asdict(self.story)}


Tell = Callable[[], Awaitable[Sequence[explain.Story]]]
"""The stories of what is waited for, as they are now. Raises `errors.NotFound` while there is none."""


async def wait_for(
    tell: Tell,
    asker: asking.Asker,
    name: str,
    *,
    seconds: float,
    with_model: bool = False,
    stopping: Callable[[], bool] = lambda: False,
) -> list[Ended]:
    """How every run that is meant has ended, once each has.

    Raises `errors.WaitTimeout`, with what the first that has not waits for.
    """
    give_up, pause = clock.monotonic() + seconds, POLL_SECONDS_MIN
    while True:
        stories: Sequence[explain.Story] = []
        with contextlib.suppress(errors.NotFound):  # It may be on its way to the bus.
            stories = await tell()
        ended = [await end_of(story, asker, with_model=with_model) for story in stories]
        found = [one for one in ended if one is not None]
        if stories and len(found) == len(stories):
            return found
        left = give_up - clock.monotonic()
        if left <= 0 or stopping():
            raise errors.WaitTimeout(
                f"{name!r} has come to no end after {seconds:g} seconds; {_told(stories, ended)}",
                hint="`runlore status` tells what is behind, and why",
            )
        await clock.sleep(min(pause, left))
        pause = min(POLL_SECONDS_MAX, pause * 1.5)


async def end_of(story: explain.Story, asker: asking.Asker, *, with_model: bool = False) -> Ended | None:
    """The end to which a run has come; None while something is left to do."""
    if story.state in (explain.DEAD, explain.SUPERSEDED, explain.HELD, explain.REJECTED, explain.ERASED):
        return Ended(story.state, story.next, story)
    if story.paused:
        return Ended(BLOCKED, story.next, story)
    if story.state != explain.CONSOLIDATED:
        return None
    assert story.project and story.memory and story.rollout and story.run and story.attempt
    place = (story.project, story.memory, story.rollout, story.run, story.attempt)
    if not await asker.workspaces_done(*place):
        return None
    waits = story.model or {}
    if with_model and waits.get("state") in (asked.DEFERRED, asked.BLOCKED):
        end = DEFERRED if waits["state"] == asked.DEFERRED else BLOCKED
        return Ended(end, str(waits["told"]), story)
    if with_model and (waits or not story.current):
        return None
    if story.branched:
        return Ended(BRANCHED, story.next, story)
    return Ended(CONSOLIDATED if story.selected else NOT_SELECTED, story.next, story)


def check(ended: Sequence[Ended]) -> None:
    """Raises what tells, by its exit code, that a run has come to an end that is none of `GOOD`."""
    for one in ended:
        told = f"run {one.story.run or one.story.event} is {one.end}: {one.cause}"
        if one.end in (HELD, REJECTED, DEAD, ERASED):
            raise errors.RunNotTaken(told)
        if one.end in (DEFERRED, BLOCKED):
            raise errors.RunStandsStill(told)


def _told(stories: Sequence[explain.Story], ended: Sequence[Ended | None]) -> str:
    """What the first run that has not ended waits for."""
    for story, end in zip(stories, ended, strict=True):
        if end is None:
            if story.state != explain.CONSOLIDATED:
                return f"it is {story.state}: {story.next}"
            if story.model:
                return f"the rules' part is in; a model's {story.model['told']}"
            return "it is in a revision, but what a model or the snapshot stage adds is not, yet"
    return "nothing has that name"
