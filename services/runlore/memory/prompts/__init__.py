"""The prompts that models are given, one file each. A changed byte makes another ask, so kept answers stay true."""

from __future__ import annotations

import functools
import importlib.resources

NAMES = ("summary", "consolidate")


@functools.cache
def load(name: str) -> str:
    """The prompt `name`, as it stands in its file."""
    return importlib.resources.files(__name__).joinpath(f"{name}.md").read_text("utf-8").strip() + "\n"


def instructions(name: str, extra: str, *, instead: str = "") -> str:
    """The prompt `name`, and behind it what a team adds: what all memories share begins the text.

    `instead`: another prompt in its place, which a side line tries out.
    """
    added = extra.strip()
    prompt = instead.strip() + "\n" if instead.strip() else load(name)
    return prompt + (f"\n# From the owners of this memory\n\n{added}\n" if added else "")
