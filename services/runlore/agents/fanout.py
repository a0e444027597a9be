"""A fan-out: several runs at once from one seed, each on a rollout of its own, merged afterwards.

The SDK refuses to run one SandboxAgent twice at the same time, so each branch runs a copy of the agents; its result
names the program's own agents again.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import agents
from agents import Handoff

from runlore import clock
from runlore.agents import nested, port, runs

BRANCHES_MAX = 256
MERGE_SECONDS_MAX = 120.0
"""How long a merge waits for what its branches left to be worked off, in seconds."""


@dataclass(frozen=True)
class Merged(port.Seeded):
    """The seed after a merge, and how the merge went."""

    state: str = "nothing"
    """What became of the line: `moved`, `unchanged`, `branched`; `nothing` where no branch left a workspace."""
    merged: tuple[str, ...] = ()
    conflicts: tuple[Mapping[str, Any], ...] = ()
    """Paths that branches want otherwise; each side's version is kept beside the other."""


@dataclass
class Branch:
    """One of the runs of a fan-out. It may run several times, one after the other: each goes on where it stopped."""

    name: str
    rollout: str
    _lore: Any = field(repr=False)
    _seeded: Callable[[], Any] = field(repr=False)
    _begun: bool = field(default=False, repr=False)

    async def run(self, agent: Any, input: Any, **named: Any) -> agents.RunResult:
        """`Runlore.run` on this branch."""
        copy = Copy(agent)
        result: agents.RunResult = await self._lore._run(copy.agent, input, named, branch=self)
        copy.restore(result)
        return result

    def run_streamed(self, agent: Any, input: Any, **named: Any) -> agents.RunResultStreaming:
        """`Runlore.run_streamed` on this branch. Its events name the copies that the branch runs."""
        copy = Copy(agent)
        result: agents.RunResultStreaming = self._lore._stream(copy.agent, input, named, branch=self)
        nested.when_done(result, lambda: copy.restore(result))
        return result

    def first_seed(self) -> Callable[[], Any] | None:
        """The seed that all branches share, for the first run; later ones ask for their own."""
        if self._begun:
            return None
        self._begun = True
        return self._seeded


class FanOut:
    """`async with lore.fan_out("audit-42", n=8) as branches`."""

    def __init__(self, lore: Any, rollout: str, n: int) -> None:
        # Never used before, so that a second fan-out of the rollout begins anew.
        self.name = clock.new_id()[-6:]
        self.rollout = rollout
        self.seed: port.Seeded | None = None
        self._lore = lore
        self._seeding: asyncio.Future[port.Seeded | None] | None = None
        self.branches = [
            Branch(f"b{i}", runs.usable(f"{rollout}.{self.name}.b{i}"), lore, self._seeded) for i in range(n)
        ]

    async def __aenter__(self) -> list[Branch]:
        await self._seeded()
        return self.branches

    async def __aexit__(self, *_: object) -> None:
        return None

    async def _seeded(self) -> port.Seeded | None:
        """The one seed. A branch's own line is empty: what it begins with replaces nothing there."""
        if self._seeding is None:
            self._seeding = asyncio.ensure_future(self._lore._seed_for(self.rollout))
        found: port.Seeded | None = await asyncio.shield(self._seeding)
        self.seed = found
        if found is None:
            return None
        return dataclasses.replace(
            found, workspace=port.Workspace(snapshot=found.workspace.snapshot, base=dict(port.NO_BASE))
        )

    def noted(self) -> dict[str, Any]:
        """What a later merge has to know."""
        return {
            "base": self.seed.workspace.snapshot if self.seed is not None else None,
            "branches": {one.name: one.rollout for one in self.branches},
        }


class Copy:
    """An agent and all that it may hand off to, copied; tools and models are shared."""

    def __init__(self, agent: Any) -> None:
        self._copies: dict[int, Any] = {}
        self._originals: dict[int, Any] = {}
        self.agent = self._copy(agent)

    def _copy(self, agent: Any) -> Any:
        if id(agent) in self._copies:
            return self._copies[id(agent)]
        copy = agent.clone()
        self._copies[id(agent)], self._originals[id(copy)] = copy, agent
        copy.handoffs = [
            self._handoff(one) if isinstance(one, Handoff) else self._copy(one) for one in agent.handoffs
        ]
        return copy

    def _handoff(self, handoff: Any) -> Any:
        invoke = handoff.on_invoke_handoff

        async def invoked(context: Any, arguments: str) -> Any:
            return self._copy(await invoke(context, arguments))

        return dataclasses.replace(handoff, on_invoke_handoff=invoked)

    def restore(self, result: Any) -> None:
        """Let the result name the program's own agent."""
        original = self._originals.get(id(result.last_agent))
        if original is None:
            return
        if isinstance(result, agents.RunResultStreaming):
            result.current_agent = original
        else:
            result._last_agent = original
