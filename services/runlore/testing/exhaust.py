"""Exhaustive exploration: run a function once for every sequence of outcomes of its choices.

`Gen` is an odometer over choices (after TigerBeetle's exhaustigen): each run replays a prefix and takes the
next outcome of the last choice that has one. A run says at each choice which state it is in; a state that
was met before has had all its continuations explored already, so the run is given up (`Pruned`). That is
what makes every interleaving of two workers affordable: the orders of steps that do not touch each other
meet in one state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field


class Pruned(BaseException):
    """This run has come to a state whose continuations are known; not an error, so no handler takes it."""


@dataclass
class Gen:
    """Chooses; the same prefix of choices must always meet the same numbers of options."""

    seen: set[Hashable] = field(default_factory=set)
    path: list[list[int]] = field(default_factory=list)
    """For each choice so far: the outcome taken, and how many there were."""
    at: int = 0
    started: bool = False

    def done(self) -> bool:
        """Whether every sequence was run; else the next one begins."""
        if not self.started:
            self.started = True
            return False
        while self.path and self.path[-1][0] == self.path[-1][1] - 1:
            self.path.pop()
        if not self.path:
            return True
        self.path[-1][0] += 1
        self.at = 0
        return False

    def choose(self, count: int, state: Callable[[], Hashable] | None = None) -> int:
        """A number below `count`. `state` names everything that the rest of the run depends on."""
        if self.at == len(self.path):
            if state is not None:
                name = state()
                if name in self.seen:
                    raise Pruned
                self.seen.add(name)
            self.path.append([0, count])
        chosen, options = self.path[self.at]
        if options != count:
            raise AssertionError(
                f"choice {self.at} had {options} options and now has {count}: not deterministic"
            )
        self.at += 1
        return chosen

    def choices(self) -> list[int]:
        """The outcomes taken so far: enough to run this once more (`replay`)."""
        return [chosen for chosen, _ in self.path[: self.at]]


class Replay(Gen):
    """Takes the outcomes of one run again, and then always the first."""

    def __init__(self, choices: list[int]) -> None:
        super().__init__()
        self._wanted = list(choices)

    def choose(self, count: int, state: Callable[[], Hashable] | None = None) -> int:
        chosen = self._wanted[self.at] if self.at < len(self._wanted) else 0
        assert chosen < count, (
            f"choice {self.at} has only {count} options: these are choices of something else"
        )
        self.at += 1
        return chosen


@dataclass(frozen=True)
class Explored:
    """How much an exploration did: runs that came to an end, runs given up at a known state, states met."""

    complete: int
    pruned: int
    states: int
    whole: bool = True
    """Whether these are all that there are."""

    @property
    def schedules(self) -> int:
        return self.complete + self.pruned


RAN: Counter[str] = Counter()
"""What all explorations of this process came to: `schedules`, and of them those that were `complete`."""


def explore(
    run: Callable[[Gen], None],
    *,
    schedules_max: int,
    partly: bool = False,
    is_over: Callable[[], bool] = lambda: False,
) -> Explored:
    """Run `run` for every sequence of choices.

    Past `schedules_max` runs it raises `AssertionError`; with `partly` it ends there, and says so. So it does once
    `is_over` says that its time is.
    """
    gen = Gen()
    complete = pruned = 0
    whole = True
    while not gen.done():
        if is_over():
            whole = False
            break
        if complete + pruned >= schedules_max:
            if not partly:
                raise AssertionError(f"more than {schedules_max} schedules: bound the scenario")
            whole = False
            break
        try:
            RAN["schedules"] += 1
            run(gen)
            complete += 1
            RAN["complete"] += 1
        except Pruned:
            pruned += 1
    return Explored(complete, pruned, len(gen.seen), whole)
