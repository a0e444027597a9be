"""Sweep: delete what nothing names any more, without a lock and without a lease (invariant 7).

    settle → heads → what they name → LIST of packs and manifests → delete

A sweep deletes a pack or manifest only if no head names it, nothing superseded within its term does, and it is
older than the term at the start of the scan. Writers commit no later than a term after they began and refer only
to what was named when they began, or to what they wrote since (`commit/age.py`): so what this chooses can never
be named again, however long the deleting takes, and how often it is interrupted or run twice at once.

It takes snapshot packs (`snapshots/`, `blobs/`), the packs and manifests of memories that lost a race, and what the
idempotency keys of requests stood for (`requests/`). It leaves everything else: heads and outcomes are never deleted;
a claim may be what a replay of the bus needs, and records, marks and dead letters are not garbage.

Where a head names something that can not be read nothing is deleted in that project: what a broken snapshot
still needs can not be known.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from runlore import clock, errors
from runlore.commit import age, heads, keys, lines, revisions, sides
from runlore.snapshots import names, reading
from runlore.store import port

CLOCK_SLACK = dt.timedelta(minutes=1)
"""What the store's clock may be behind the writers': objects count as so much younger."""
DELETES_PER_SECOND = 200
DELETES_AT_ONCE_MAX = 1000
"""Objects of one request, where the store takes several: what S3 takes."""
KINDS = (keys.SNAPSHOTS, keys.BLOBS, keys.PACKS, keys.MANIFESTS, keys.REQUESTS)

Progress = Callable[[int, str], None]
"""Called with (objects done, what)."""


@dataclass(frozen=True)
class Victim:
    """One object that may go."""

    key: str
    bytes: int
    modified: float

    @property
    def kind(self) -> str:
        return self.key.split("/")[1]


@dataclass
class Plan:
    """What a scan of one project found."""

    project: str
    started_at: str
    heads: int = 0
    snapshots: int = 0
    """Snapshots that are named, or were within their term."""
    victims: list[Victim] = field(default_factory=list)
    kept: dict[str, int] = field(default_factory=dict)
    """Objects that stay, by kind."""
    young: int = 0
    """Objects that nothing names, too young to go: work under way, or garbage of a later sweep."""
    written: list[float] = field(default_factory=list)
    """When each of those was written that could hold somebody's bytes, in seconds since 1970."""

    @property
    def bytes(self) -> int:
        return sum(victim.bytes for victim in self.victims)


async def scan(
    store: port.ObjectStore, project: str, *, on_progress: Progress = lambda count, what: None
) -> Plan:
    """What may go in `project`. Reads heads first, then lists. Raises `errors.Corrupt` where a head is broken."""
    started = clock.now()
    plan = Plan(project, started.isoformat(timespec="seconds"))
    # Whoever checked its age before now has landed, and is seen below; whoever checks it later began late
    # enough for all that it needs to be young, or in its term.
    await store.settle()
    wanted = await _of_snapshots(store, plan, started, on_progress)
    wanted |= await _of_memories(store, plan, started, on_progress)
    oldest = (started - age.TERM - CLOCK_SLACK).timestamp()
    seen = 0
    for kind in KINDS:
        async for row in store.list(f"{project}/{kind}/"):
            seen += 1
            on_progress(seen, kind)
            if row.key in wanted:
                plan.kept[kind] = plan.kept.get(kind, 0) + 1
            elif row.modified >= oldest:
                plan.young += 1
                plan.written += [row.modified] if kind != keys.REQUESTS else []
            else:
                plan.victims.append(Victim(row.key, row.size, row.modified))
    return plan


async def _of_snapshots(
    store: port.ObjectStore, plan: Plan, started: dt.datetime, on_progress: Progress
) -> set[str]:
    """The keys of every pack that a line names, or named within its term."""
    refs: set[str] = set()
    there: set[tuple[str, str]] = set()
    for head in await lines.all_heads(store, plan.project):
        refs |= lines.kept(head.body, started)
        there.add((head.body["rollout"], head.body["agent"]))
        plan.heads += 1
    async for row in store.list(f"{plan.project}/{keys.OUTCOMES}/"):
        rollout, agent = row.key.split("/")[3:5]
        if (rollout, agent) not in there:
            # What a lost head named would look like what nothing names.
            told = await heads.gone(
                store,
                keys.snapshot_head(plan.project, rollout, agent),
                f"the head of workspace {plan.project}/{rollout} ({agent}) is gone, and outcomes of it are there",
                hint="`runlore repair` says what it was, and makes it again",
            )
            if not isinstance(told, errors.HeadMoved):
                raise told
            there.add((rollout, agent))  # It began since.
    wanted: set[str] = set()
    for number, ref in enumerate(sorted(refs), 1):
        try:
            opened = await reading.open_exact(store, plan.project, names.Ref.parse(ref))
        except (errors.NotFound, errors.InvalidId, errors.Corrupt) as exc:
            raise errors.Corrupt(
                f"a head of {plan.project} names {ref[:12]}, which can not be read ({exc.message}): nothing is swept",
                hint="`runlore verify` says which; merge, tag or retention can let it go",
            ) from None
        wanted |= opened.packs()
        on_progress(number, "heads")
    plan.snapshots = len(refs)
    return wanted


async def _of_memories(
    store: port.ObjectStore, plan: Plan, started: dt.datetime, on_progress: Progress
) -> set[str]:
    """The keys of every manifest in a memory's line, and of their packs: all revisions are kept.

    Of a side line too, while it stands and until its term ends.
    """
    wanted: set[str] = set()
    reader = revisions.Reader(store)
    prefix = f"{plan.project}/{keys.MEMORIES}/"
    memories = [row.key.rpartition("/")[2].removesuffix(".json") async for row in store.list(prefix)]
    listed = [row.key.split("/")[3] async for row in store.list(f"{plan.project}/{keys.MANIFESTS}/")]
    for memory in sorted({*listed} - {*memories}):
        # What a lost head named would look like what nothing names.
        try:
            await revisions.refuse_lost(reader, plan.project, memory)
        except errors.HeadMoved:
            memories.append(memory)  # It began since.
    for memory in memories:
        plan.heads += 1
        async for body in reader.line(plan.project, memory):
            wanted.add(keys.manifest(plan.project, memory, int(body["revision"]), str(body["sha256"])))
            wanted |= {keys.pack(plan.project, str(pack["sha256"])) for pack in body["packs"]}
            on_progress(len(wanted), "revisions")
    for head in await sides.all_heads(store, plan.project):
        plan.heads += 1
        for start in sides.kept(head.body, started):
            async for body in reader.line_from(plan.project, str(head.body["memory"]), start):
                named = (int(body["revision"]), str(body["sha256"]))
                wanted.add(keys.manifest(plan.project, str(head.body["memory"]), *named))
                wanted |= {keys.pack(plan.project, str(pack["sha256"])) for pack in body["packs"]}
    return wanted


async def delete(
    store: port.ObjectStore,
    plan: Plan,
    *,
    per_second: float = DELETES_PER_SECOND,
    on_progress: Progress = lambda count, what: None,
    go_on: Callable[[], Awaitable[bool]] | None = None,
) -> int:
    """Delete what a plan chose, at most `per_second`; how many. Interrupted, another scan finds the rest."""
    done = 0
    at_once = max(1, min(DELETES_AT_ONCE_MAX, int(per_second)))
    while done < len(plan.victims) and (go_on is None or await go_on()):
        batch = plan.victims[done : done + at_once]
        await store.delete_many([victim.key for victim in batch])
        done += len(batch)
        on_progress(done, batch[-1].kind)
        await clock.sleep(len(batch) / per_second)
    return done


async def projects(store: port.ObjectStore) -> list[str]:
    """Every project that holds anything."""
    return [name for name in await store.children("") if not name.startswith("_")]
