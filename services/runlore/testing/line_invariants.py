"""Invariant 11 of the revisions behind a head, for `runlore verify`: each can still be read, as its seeds need it.

The other checkers look at the revision that a head names now, and at the bytes of what is there: a pack that an earlier
revision alone needs, and that is not there, is seen by neither.
"""

from __future__ import annotations

from runlore import errors
from runlore.commit import keys, revisions, sides
from runlore.store import port as store_port
from runlore.testing import checks
from runlore.testing.invariants import SEEDS, Violation


@checks.of(SEEDS)
async def earlier_revisions_keep_their_packs(store: store_port.ObjectStore, project: str) -> list[Violation]:
    """Every pack that a revision names and that is not there, of all lines of a project."""
    reader = revisions.Reader(store)
    named: dict[str, str] = {}
    """Key of a pack → the oldest revision that names it, in words."""
    async for row in store.list(f"{project}/{keys.MEMORIES}/"):
        memory = row.key.rpartition("/")[2].removesuffix(".json")
        named |= await packs_of_line(reader, project, memory)
    try:
        for head in await sides.all_heads(store, project):
            memory, side = str(head.body.get("memory")), str(head.body.get("side"))
            if sides.stands(head.body):
                named |= await packs_of_line(reader, project, memory, side=side)
    except errors.Fatal:
        pass  # Told by invariant 1, of that head.
    # Listed after the lines were read: what a revision names was put before it.
    there = {row.key async for row in store.list(f"{project}/{keys.PACKS}/")}
    return [
        Violation(SEEDS, key, f"{whose} names it, and it is not there")
        for key, whose in sorted(named.items())
        if key not in there
    ]


async def packs_of_line(
    reader: revisions.Reader, project: str, memory: str, *, side: str | None = None
) -> dict[str, str]:
    """The packs that a line's revisions name, as far back as its manifests can be read."""
    named: dict[str, str] = {}
    of = f"{project}/{memory}" + (f", side {side}" if side else "")
    try:
        async for body in reader.line(project, memory, side=side):
            named |= {
                keys.pack(project, str(one["sha256"])): f"{of}: revision {body['revision']}"
                for one in body["packs"]
            }
    except (errors.Fatal, errors.NotFound):
        pass  # Told by invariant 1 or 3; or a side line that was dropped just now.
    return named
