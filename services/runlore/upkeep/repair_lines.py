"""What a workspace's lost head named, from the runs on the bus: each says what it began from, and what it left.

    runs on the bus → the newest base that a run saw → what that run left → versions, branches, outcomes

Whoever saw a base saw the head, so the newest base among a line's runs was its version, and the first run that began
there and was called by no other moved it. A run whose snapshot another began from moved the line, too; every other
becomes a branch, shown and to be merged, as nobody can tell what became of it: nothing is dropped. A run that brought
an archive or a folder has no snapshot in its event: a replay of the stage `snapshot` takes it in anew.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

from runlore import clock, errors
from runlore.bus import port as bus_port
from runlore.commit import erasures, heads, keys, lines, puts, rollouts
from runlore.consumers import dead, record, snapshot
from runlore.events import envelope
from runlore.snapshots import names, reading
from runlore.store import port as store_port

TOPIC, GROUP = "runs", "snapshot"
REPLAY = "then `runlore replay --from beginning --stage snapshot --reason …`, and start the workers"
NO_TRACE = (
    "tags, and what was saved or merged by hand since, are not on the bus: `runlore snapshot save` them again"
)


@dataclass
class Lost:
    """A line without a head, and what is known of it."""

    line: lines.Line
    works: list[snapshot.Work] = field(default_factory=list)
    """In the order of the bus."""
    ref: str | None = None
    """What the head named; None: nothing, and a replay makes the line from its beginning."""
    base: lines.Base = field(default_factory=lines.Base)
    """What the last run that moved it, or the next one, began from."""
    mover: snapshot.Work | None = None
    """The run that left `ref`; None: it stood there before any run that the bus has."""
    why: str = ""
    """Why nothing can be made."""
    hint: str = ""

    @property
    def runs(self) -> int:
        return len(self.works)

    @property
    def does(self) -> str:
        if self.ref is None:
            return "an empty head, for a replay"
        return f"the head at {lines.id_of(self.ref)[:12]}, {self.runs - len(_moved(self))} branches"


async def lost(store: store_port.ObjectStore, bus: bus_port.Bus, project: str) -> AsyncIterator[Lost]:
    """Every line of a project whose head is gone, though its stage has passed a run of it, or it has an outcome."""
    found: dict[lines.Line, Lost] = {}
    async for work in _works(bus, project):
        found.setdefault(work.line, Lost(work.line)).works.append(work)
    async for row in store.list(f"{project}/{keys.OUTCOMES}/"):
        line = lines.Line(project, *row.key.split("/")[3:5])
        found.setdefault(line, Lost(line))
    for one in sorted(found.values(), key=lambda one: one.line.key):
        if await store.get(one.line.key) is None and not await _is_erased(store, one):
            await _decide(store, one)
            yield one


async def _works(bus: bus_port.Bus, project: str) -> AsyncIterator[snapshot.Work]:
    committed = await bus.committed(group=GROUP, topic=TOPIC)
    buried = {one.id for one in await dead.read_all(bus)}
    async for message in bus.read(TOPIC):
        if message.offset >= committed.get(message.partition, 0):
            continue
        if dead.letter_id(message.topic, message.partition, message.offset, GROUP) in buried:
            continue
        try:
            incoming = record.parse(message)
        except errors.Poison:
            continue
        if incoming.data.project == project:
            for workspace in incoming.data.workspaces:
                yield snapshot.Work(incoming, workspace)


async def _is_erased(store: store_port.ObjectStore, one: Lost) -> bool:
    """Leave out runs that were erased; whether nothing is left of a line that had any."""
    had = bool(one.works)
    rows = erasures.rows(await erasures.ledger(store, one.line.project))
    left = []
    for work in one.works:
        key = keys.rollout_head(*work.incoming.line_of)
        head = heads.parse(key, await store.get(key), fmt=rollouts.HEAD_FORMAT)
        if not work.incoming.is_erased(head, rows):
            left.append(work)
    one.works = left
    if not had:
        # What its outcomes tell of may be erased with the whole rollout.
        async for entry in erasures.every(store, one.line.project):
            if any(target["rollout"] == one.line.rollout for target in entry.body["targets"]):
                return True
    return had and not left


async def _decide(store: store_port.ObjectStore, one: Lost) -> None:
    """What the head is to name."""
    if not one.works:
        one.why = "none of its runs is on the bus any more"
        one.hint = (
            "put the head's version before back; what it named is there until a sweep, so run none before"
        )
        return
    one.base = max((work.base for work in one.works), key=lambda base: base.version)
    movers = [work for work in one.works if work.base == one.base and not work.offer("").child]
    one.mover = next((work for work in movers if work.workspace.snapshot), None) if movers else None
    one.hint = NO_TRACE
    if movers and movers[0].workspace.snapshot is None:
        one.mover = None  # Its snapshot is made by a replay, which moves the line from the base.
    wanted = one.mover.workspace.snapshot if one.mover else one.base.snapshot
    if wanted is None:
        one.hint = REPLAY
        return
    try:
        one.ref = str((await reading.open_snapshot(store, one.line.project, _named(wanted))).ref)
    except (errors.NotFound, errors.Corrupt) as exc:
        one.why, one.hint = (
            f"what it named can not be read: {exc.message}",
            "put that object back from a backup",
        )
    if any(work.workspace.snapshot is None for work in one.works):
        one.hint = f"{REPLAY}. {NO_TRACE}"


def _named(wanted: str) -> names.Ref | str:
    return names.Ref.parse(wanted) if "/" in wanted else wanted


async def make(store: store_port.ObjectStore, one: Lost, *, above: int) -> None:
    """Put the head, and before it the outcomes of the runs that a later one began from."""
    head = await lines.read(store, one.line)
    if head.counter:
        raise errors.HeadMoved(f"{one.line} has a head again", key=head.key)
    await _outcomes(store, one)
    by = one.mover.offer("").by() if one.mover else {"reason": "repair"}
    branches = {
        work.incoming.run: {
            **work.offer("").by(),
            "ref": work.workspace.snapshot,
            "base": {"version": work.base.version, "snapshot": work.base.snapshot},
            "base_ref": None,
            "why": "its line's head was lost: what became of it is not known",
            "at": clock.now_iso(),
        }
        for work in await _readable(store, one, _branched(one))
    }

    def changes(now: str) -> dict[str, object]:
        # One that the base names keeps the base's number, so that the run which began there moves it.
        version = above + 1 if one.mover else one.base.version
        base = {"version": one.base.version, "snapshot": one.base.snapshot} if one.mover else None
        told = {
            "ref": one.ref,
            "version": version,
            "version_at": now,
            "base": base,
            "moved_by": by,
            "versions": [],
        }
        return {**(told if one.ref else {}), "branches": branches}

    completed = lines.finish(head, one.line, changes)
    # Of what it named before, outcomes alone are left.
    await heads.move(
        store, head, lambda now: {**completed(now), "forgot": True}, fmt=lines.HEAD_FORMAT, above=above
    )


def _moved(one: Lost) -> list[snapshot.Work]:
    """The runs that are known to have moved the line: another began from what they left; and the last mover."""
    began = {work.base.snapshot and lines.id_of(work.base.snapshot) for work in one.works}
    return [
        work
        for work in one.works
        if work is one.mover
        or (
            work.workspace.snapshot
            and lines.id_of(work.workspace.snapshot) in began
            and not work.offer("").child
        )
    ]


def _branched(one: Lost) -> list[snapshot.Work]:
    moved = {id(work) for work in _moved(one)}
    return [work for work in one.works if id(work) not in moved and work.workspace.snapshot]


async def _readable(
    store: store_port.ObjectStore, one: Lost, works: Iterable[snapshot.Work]
) -> list[snapshot.Work]:
    found = []
    for work in works:
        try:
            await reading.open_snapshot(store, one.line.project, _named(str(work.workspace.snapshot)))
        except (errors.NotFound, errors.Corrupt):
            continue
        found.append(work)
    return found[: lines.BRANCHES_MAX]


async def _outcomes(store: store_port.ObjectStore, one: Lost) -> None:
    for work in _moved(one):
        if work is not one.mover:
            key = keys.outcome(
                one.line.project,
                one.line.rollout,
                one.line.agent,
                work.incoming.run,
                work.incoming.data.attempt,
            )
            body = {
                "format": lines.OUTCOME_FORMAT,
                "run": work.incoming.run,
                "attempt": work.incoming.data.attempt,
                "state": lines.MOVED,
                "ref": work.workspace.snapshot,
                "head": work.base.version + 1,
            }
            await puts.once(store, key, envelope.dump(body), what=f"the outcome {key}")
