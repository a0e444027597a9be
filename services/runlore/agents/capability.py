"""Memory for programs that call `Runner.run` themselves: a capability that seeds each run's session.

    SandboxAgent(capabilities=[Shell(), Filesystem(), Seeding(lore=lore, rollout="conv-7"), Memory(generate=None)])

It stands before `Memory()`, so that this reads what was written just now: in a fresh session, a resumed one and a live
one. It records nothing (`Runlore.run` does), and inside of `Runlore.run` it has nothing to do.
"""

from __future__ import annotations

from typing import Any, Literal

from agents.sandbox import MemoryLayoutConfig
from agents.sandbox.capabilities import Capability
from agents.sandbox.manifest import Manifest
from pydantic import Field, PrivateAttr

from runlore.agents import port, runs, seeding


class Seeding(Capability):
    """Writes the seed of `rollout` into the session before the first turn of each run."""

    type: Literal["runlore_seeding"] = "runlore_seeding"
    lore: Any = Field(exclude=True, repr=False)
    """The `Runlore` that is asked."""
    rollout: str
    layout: MemoryLayoutConfig = Field(default_factory=MemoryLayoutConfig)
    """The layout of the `Memory()` that reads it."""
    _seeded: bool = PrivateAttr(default=False)

    def clone(self) -> Seeding:
        """A copy for one run, which asks anew; what it asks is shared."""
        copy = self.model_copy(deep=False, update={"session": None})
        copy._seeded = False
        return copy

    async def instructions(self, manifest: Manifest) -> str | None:
        """Nothing for the prompt; but this is awaited before `Memory()` reads."""
        if not self._seeded and self.session is not None and runs.CURRENT.get() is None:
            self._seeded = True
            link = self.lore.link
            run = runs.Run(link, None, [], self.lore.ask(None, None, self.rollout), parent=None, resumed={})
            await seeding.write(run, self.session, port.layout_of(self))
        return None
