"""The rules model: deterministic, offline, the default where no key is configured. It abstains, never guesses.

Three steps, so that each record is read once: `digest` (one run's facts), `build` or `extend` (a rollout's
summary), then `operations.propose` (what the summary says to the memory). Their parts: `transcript` reads
items, `calls` compares them, `failures` and `fixes` find what failed and what cured it, `signatures` name it.
"""

from __future__ import annotations

from typing import Any

from runlore.memory import digest as _digest
from runlore.memory import edits, values
from runlore.memory import summary as _summary

ENGINE = _summary.ENGINE
"""Every summary carries it; one that carries another is built anew."""

build = _summary.build
extend = _summary.extend


def digest(line: str, meta: values.RunMeta) -> dict[str, Any]:
    """The digest of a record: of a run, or of a live edit."""
    return edits.digest(line, meta) if meta.is_edit else _digest.of(line, meta)
