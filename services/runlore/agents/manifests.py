"""A program's manifest over a restored workspace: what it changed since the line's last run arrives all the same.

The SDK applies no lasting entries where it restores a snapshot, so a file that the program changed would stay as it
was in the first run. What changed is known by digests that this machine noted; on another machine it is only told.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

from agents.sandbox.entries import Dir, Mount

from runlore.agents import runs

APPLY_SECONDS_MIN = 10.0
"""Bringing changed entries in may take this long: without them the run would work on what is out of date."""


async def apply(run: runs.Run, space: runs.Space, session: Any) -> None:
    """Apply what changed to a restored workspace, and note what it is now. Raises nothing but a cancellation."""
    manifest = session.state.manifest
    try:
        entries = {
            path.as_posix(): entry
            for path, entry in manifest.iter_entries()
            if not entry.ephemeral and not isinstance(entry, Dir | Mount)
        }
        digests = {path: digest(entry) for path, entry in entries.items()}
        name = hashlib.sha256(f"{run.top.ask.rollout.alias}\n{space.agent or ''}".encode()).hexdigest()
        box = run.link.outbox
        noted = (await asyncio.to_thread(box.recall, f"manifest-{name}")).get("digests")
        if space.restored and entries:
            if noted is None:
                run.link.once(
                    "the workspace was restored, and this machine does not know with which manifest it began: entries"
                    " that changed since are not applied"
                )
            else:
                async with run.waiting(seconds_min=APPLY_SECONDS_MIN):
                    for path, entry in entries.items():
                        if noted.get(path) != digests[path]:
                            await entry.apply(session, Path(manifest.root) / path, Path.cwd())
        if digests != noted:
            await asyncio.to_thread(box.remember, f"manifest-{name}", {"digests": digests})
    except Exception as exc:
        run.link.failed("applying the manifest to the restored workspace", exc)


def digest(entry: Any) -> str:
    """What an entry says. The content of a file on this machine is not looked into, only its path."""
    content = getattr(entry, "content", None)
    rest = entry.model_dump_json(exclude={"content"}) if content is not None else entry.model_dump_json()
    raw = content if isinstance(content, bytes) else str(content).encode("utf-8", "surrogatepass")
    return hashlib.sha256(rest.encode() + b"\0" + raw).hexdigest()
