"""Handing out a seed: what the log of seeds keeps of it, whoever asks (`upkeep/seedlog.py`)."""

from __future__ import annotations

from collections.abc import Mapping

from runlore import clock
from runlore.commit import lines
from runlore.lookup import seeds
from runlore.store import port
from runlore.upkeep import seedlog, seedwriter


def handed(
    found: seeds.Seed, *, by: Mapping[str, str], how: str = seedlog.SEED, request: str | None = None
) -> seedlog.Handed:
    """The entry of a seed that is about to be handed out: no body of it, and its id without the signature."""
    return seedlog.Handed(
        at=clock.now_iso(),
        how=how,
        by=by,
        project=found.project,
        memory=found.memory,
        seed=found.id,
        revision=found.revision,
        manifest=found.manifest,
        snapshot=lines.id_of(found.snapshot) if found.snapshot else None,
        rollout=found.rollout,
        agent=found.agent,
        subject=found.subject,
        request=request,
    )


async def once(
    store: port.ObjectStore, found: seeds.Seed, *, by: Mapping[str, str], mode: seedwriter.Mode
) -> None:
    """Note one seed of a process that hands out no other: a chain of one link. Raises what forbids handing it out."""
    if mode == seedwriter.OFF:
        return
    # Whoever ends at once has to wait for it in any case.
    writer = seedwriter.Writer(store, by=by, mode=seedwriter.BEFORE)
    try:
        await writer.hand_out(handed(found, by=by))
    finally:
        await writer.close()
