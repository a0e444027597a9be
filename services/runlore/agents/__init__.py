"""Beside an agent of the OpenAI Agents SDK: what a run needs before it begins, and what it leaves, without waiting.

`Runlore` is the one object that a program needs (docs/AGENTS.md). Nothing in here may end or delay an agent's run:
what fails is told once, kept in the outbox, and tried again.
"""

try:
    from runlore.agents.runner import Runlore
except ModuleNotFoundError as exc:
    if (exc.name or "").partition(".")[0] not in ("agents", "httpx2"):
        raise
    # The SDK's module has a plain name: without this a stranger looks for a file of ours that is missing.
    raise ModuleNotFoundError(
        "runlore.agents needs the OpenAI Agents SDK: pip install 'runlore[agents]'", name=exc.name
    ) from None

__all__ = ["Runlore"]
