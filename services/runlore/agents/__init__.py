"""Beside an agent of the OpenAI Agents SDK: what a run needs before it begins, and what it leaves, without waiting.

`Runlore` is the one object that a program needs (docs/AGENTS.md). Nothing in here may end or delay an agent's run:
what fails is told once, kept in the outbox, and tried again.
"""

from runlore.agents.runner import Runlore

__all__ = ["Runlore"]
