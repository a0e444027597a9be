"""Verify: every invariant, on what is stored (the checkers are those of the simulation)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from runlore import errors
from runlore.bus import port as bus_port
from runlore.commit import keys, lines, redaction
from runlore.models import answers
from runlore.store import port as store_port
from runlore.testing import (
    erasure_invariants,
    invariants,
    line_invariants,
    object_invariants,
    side_invariants,
    snapshot_invariants,
)
from runlore.upkeep import audit, logs, pauses, repair

LOGGED = "the logs of what people did and of seeds are whole"
LOST = "heads are there"
READABLE = "audit entries, pauses, outcomes, kept answers and redaction keys can be read"


@dataclass
class Verified:
    """What was checked, and what is wrong."""

    checked: dict[str, int] = field(default_factory=dict)
    """Kind of object → how many were read."""
    violations: list[invariants.Violation] = field(default_factory=list)


async def verify(
    store: store_port.ObjectStore,
    bus: bus_port.Bus,
    *,
    project: str | None = None,
    on_progress: Callable[[int, str], None] = lambda count, what: None,
) -> Verified:
    """Check a home, which may be at work meanwhile.

    Reading takes time, so on a busy home a check may see moments apart. What it finds is therefore looked at
    once more, and only what is found twice is told.
    """
    out = Verified()
    done = 0
    for name in await invariants.projects(store):
        if project not in (None, name):
            continue
        async for row in store.list(f"{name}/"):
            kind = row.key.split("/")[1]
            out.checked[kind] = out.checked.get(kind, 0) + 1
            done += 1
            on_progress(done, kind)
        out.violations += await object_invariants.objects_have_their_names(store, name)
        out.violations += await snapshot_invariants.packs_have_their_names(store, name)
        out.violations += await _readable(store, keys.audit(name), audit.parse)
        out.violations += await _readable(store, keys.answers(name), answers.parse)
        out.violations += await _outcomes(store, name)
    if project is None:
        out.violations += await _readable(store, keys.audit(keys.OPERATIONS), audit.parse)
        out.violations += await _readable(store, keys.pauses(), _pause)
        out.violations += await _readable(store, keys.redactions(), redaction.parse)
        out.violations += await _logged(store)
    found = await _check(store, bus, project)
    if found:
        again = set(await _check(store, bus, project))
        out.violations += [one for one in found if one in again]
    if project is not None:
        out.violations = [
            one for one in out.violations if one.where.startswith((f"{project}/", f"{project}:"))
        ]
    return out


async def _check(
    store: store_port.ObjectStore, bus: bus_port.Bus, only: str | None
) -> list[invariants.Violation]:
    found = await invariants.check(store, bus, only=only)
    for project in await invariants.projects(store):
        if only not in (None, project):
            continue
        found += await snapshot_invariants.check(store, project)
        found += await side_invariants.check(store, project)
        found += await line_invariants.earlier_revisions_keep_their_packs(store, project)
        found += await erasure_invariants.check(store, project)
        # Of rollouts the other checkers tell: while they are at work, a record may be there before its head.
        kinds = (repair.LEDGER, repair.MEMORY, repair.WORKSPACE)
        try:
            lost = await repair.Repair(store, bus).run(project, kinds=kinds)
        except errors.Fatal as exc:
            found.append(invariants.Violation(LOST, f"{project}/", exc.message))
            continue
        found += [invariants.Violation(LOST, one.where, f"{one.what} (`runlore repair`)") for one in lost]
    return found


async def _readable(
    store: store_port.ObjectStore, prefix: str, parse: Callable[[str, bytes], object]
) -> list[invariants.Violation]:
    """What people did and what they hold back is there to be read: each object below `prefix` parses."""
    found = []
    async for row in store.list(prefix):
        stored = await store.get(row.key)
        try:
            if stored is not None:
                parse(row.key, stored.body)
        except errors.Corrupt as exc:
            found.append(invariants.Violation(READABLE, row.key, exc.message))
    return found


async def _outcomes(store: store_port.ObjectStore, project: str) -> list[invariants.Violation]:
    """What became of runs that a workspace's head forgot can be read, too."""
    found = []
    async for row in store.list(f"{project}/{keys.OUTCOMES}/"):
        try:
            await lines.outcome(store, row.key)
        except errors.Corrupt as exc:
            # One that was erased meanwhile is no fault.
            if await store.get(row.key) is not None:
                found.append(invariants.Violation(READABLE, row.key, exc.message))
    return found


async def _logged(store: store_port.ObjectStore) -> list[invariants.Violation]:
    """What people did and which seeds were handed out is in its log as it was written."""
    try:
        found = await logs.verify(store)
    except errors.RunloreError as exc:
        return [invariants.Violation(LOGGED, keys.log(), exc.message)]
    told = ((keys.log(), found.administration), (keys.acts(), found.acts), (keys.seeds(), found.seeds))
    return [invariants.Violation(LOGGED, where, one) for where, each in told for one in each.problems]


def _pause(key: str, raw: bytes) -> object:
    return pauses.parse(key, store_port.Stored(raw, ""))
