"""The invariants of side lines as checkers: what a memory's own line must keep, a side line must too.

Run by the simulation and by `runlore verify`. They read any store, write nothing, and raise on nothing that they find.
"""

from __future__ import annotations

from runlore import errors
from runlore.commit import heads, keys, revisions, sides
from runlore.store import port as store_port
from runlore.testing import invariants


async def check(store: store_port.ObjectStore, project: str) -> list[invariants.Violation]:
    """Every violation that is found in a project's side lines."""
    found: list[invariants.Violation] = []
    async for row in store.list(f"{project}/{keys.SIDES}/"):
        try:
            head = heads.parse(row.key, await store.get(row.key), fmt=sides.FORMAT)
        except errors.Fatal as exc:
            found.append(invariants.Violation(invariants.DANGLING, row.key, exc.message))
            continue
        found += await _of(store, project, head)
    return found


async def _of(store: store_port.ObjectStore, project: str, head: heads.Head) -> list[invariants.Violation]:
    memory, side = str(head.body.get("memory")), str(head.body.get("side"))
    if (head.body.get("project"), head.key) != (project, keys.side_head(project, memory, side)):
        said = f"{head.body.get('project')}/{memory} side {side}"
        return [invariants.Violation(invariants.APART, head.key, f"the head says that it is of {said}")]
    # What an invariant says of a memory's own line, of this one: without rollouts and records, which are not its own.
    view = invariants.MemoryView(project, memory, head)
    try:
        view.revision = await revisions.Reader(store).current(head, project, memory)
    except errors.Fatal as exc:
        return [invariants.Violation(invariants.DANGLING, head.key, exc.message)]
    found = [
        *await invariants.heads_name_what_exists(store, view),
        *await invariants.revisions_form_one_line(store, view),
    ]
    if view.revision is not None and view.revision.body.get("side") != side:
        wrong = f"revision {view.revision.number} was written for {view.revision.body.get('side') or 'the memory'}"
        found.append(invariants.Violation(invariants.ONE_LINE, head.key, wrong))
    return found
