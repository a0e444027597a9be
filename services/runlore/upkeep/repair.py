"""Repair: what a head was, from what it named. For heads that somebody deleted, or put back from an older copy.

Objects named by their content, records, marks and the ledger of erasures are what everything was made from; a head only
says which of them is the newest. So most of a lost head can be made again, and nothing that it named is touched:

    ledger of erasures → rollouts (records) → memories (manifests) → workspaces (runs on the bus) → marks

A head that is there is never moved back, and never to another line; where two answers would be right, nothing is done
and both are told. Every counter that is made lies `heads.LEAP` beyond all that is known of it, so that nobody who saw
the lost head (an index, a client, a mark) takes the new one for older. What was erased stays erased: the ledger is read
before anything is made, and a revision that shows what was erased is not taken.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from runlore import errors
from runlore.bus import port as bus_port
from runlore.commit import erasures, heads, keys, marks, revisions, rollouts
from runlore.consumers import consolidate, summarize
from runlore.consumers.runtime import SEQUENTIAL, Runtime
from runlore.store import port as store_port
from runlore.upkeep import repair_lines, repair_memories
from runlore.upkeep.erasing import rollouts as erasing_rollouts

HEADS_AT_ONCE = 256
MARKS_MAX = 10_000
LEDGER, ROLLOUT, MEMORY, WORKSPACE, MARK = "ledger of erasures", "rollout", "memory", "workspace", "mark"

Where = tuple[str, str]
"""Memory, rollout."""


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was: what, where, and what can be done about it."""

    kind: str
    where: str
    what: str
    does: str = ""
    """What the repair makes; empty where a person must decide, or nothing can be done."""
    hint: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Step:
    """A finding, and the work that mends it."""

    finding: Finding
    work: Callable[[], Awaitable[None]] | None = None


@dataclass
class Known:
    """What is known of a project's rollouts without their heads."""

    listed: dict[Where, dict[str, set[int]]] = field(default_factory=dict)
    """Run → attempts, of records that lie there."""
    floors: dict[Where, int] = field(default_factory=dict)
    """The highest counter that anything names."""
    covered: dict[Where, Mapping[str, Any]] = field(default_factory=dict)
    """What the memory's revision covers of it."""
    targets: dict[Where, list[tuple[str, erasures.Target]]] = field(default_factory=dict)
    """The erasures that name it."""

    def at_least(self, where: Where, counter: int) -> None:
        self.floors[where] = max(self.floors.get(where, 0), counter)


class Repair:
    """Of a whole store, or of one project."""

    def __init__(
        self,
        store: store_port.ObjectStore,
        bus: bus_port.Bus,
        *,
        runtime: Runtime = SEQUENTIAL,
        asks: bool = False,
        take: Iterable[str] = (),
    ) -> None:
        """`asks`: whether a model adds to summaries. `take`: manifests (`<revision>-<sha256>`, or a beginning of it)
        that a person chose where several would do."""
        self._store, self._bus, self._runtime, self._asks = store, bus, runtime, asks
        self._reader = revisions.Reader(store)
        self._take = tuple(take)

    async def run(
        self,
        project: str | None = None,
        *,
        apply: bool = False,
        kinds: Collection[str] = (),
        on_progress: Callable[[int, str], None] = lambda count, what: None,
    ) -> list[Finding]:
        """What is lost or behind; `apply`: mended, as far as it can be. `kinds`: only these.

        Interrupted, another goes on from there.
        """
        found: list[Finding] = []
        for name in [project] if project else await marks.projects(self._store):
            parts = {
                LEDGER: self._ledger,
                ROLLOUT: self._rollouts,
                MEMORY: self._memories,
                WORKSPACE: self._workspaces,
                MARK: self._marks,
            }
            # In this order: each part reads what the one before it has mended.
            for part in [part for kind, part in parts.items() if kind in (kinds or parts)]:
                for step in [step async for step in part(name)]:
                    found.append(step.finding)
                    on_progress(len(found), step.finding.where)
                    if apply and step.work is not None:
                        await step.work()
        return found

    # --- erasures -----------------------------------------------------------------------------------------

    async def _ledger(self, project: str) -> AsyncIterator[Step]:
        """The ledger's head: which subjects and memories are erased by time. Each erasure's own entry says it, too."""
        wanted = [entry async for entry in erasures.every(self._store, project)]
        said = [erasures.Row(**entry.body["row"]) for entry in wanted if entry.body.get("row")]
        head = await erasures.ledger(self._store, project)
        missing = [row for row in said if row not in erasures.rows(head)]
        if (head.counter or not wanted) and not missing:
            return

        async def work() -> None:
            now = await erasures.ledger(self._store, project)
            rows = [*erasures.rows(now), *missing]
            changes = {"project": project, "rows": [asdict(row) for row in rows]}
            above = now.counter + heads.LEAP if not now.counter else 0
            await heads.move(self._store, now, changes, fmt=erasures.LEDGER_FORMAT, above=above)

        what = (
            "it lacks what an erasure says"
            if head.counter
            else f"its head is gone; {len(wanted)} erasures are there"
        )
        does = f"the head, with {len(missing)} subjects and memories that are erased by time"
        yield Step(Finding(LEDGER, head.key, what, does), work)

    # --- rollouts -----------------------------------------------------------------------------------------

    async def _rollouts(self, project: str) -> AsyncIterator[Step]:
        known = await self._known(project)
        wheres = sorted(known.listed.keys() | known.targets.keys() | known.covered.keys())
        for at in range(0, len(wheres), HEADS_AT_ONCE):
            batch = wheres[at : at + HEADS_AT_ONCE]
            named = [keys.rollout_head(project, *where) for where in batch]
            for where, key, stored in zip(batch, named, await self._store.get_many(named), strict=True):
                try:
                    head = heads.parse(key, stored, fmt=rollouts.HEAD_FORMAT)
                except errors.Fatal as exc:
                    yield Step(_unreadable(ROLLOUT, key, exc))
                    continue
                if (step := self._of_rollout(project, where, head, known)) is not None:
                    yield step

    def _of_rollout(self, project: str, where: Where, head: heads.Head, known: Known) -> Step | None:
        """What is wrong with one rollout's head; None: nothing."""
        listed, targets = known.listed.get(where, {}), known.targets.get(where, [])
        runs = head.body.get("runs", {})
        missing = [
            (run, attempt)
            for run, attempts in listed.items()
            for attempt in attempts
            if not summarize.has(runs.get(run), attempt) and not erasures.is_erased(head.body, run)
        ]
        floor, key = known.floors.get(where, 0), head.key
        if not head.counter and not listed and not targets:
            return Step(
                Finding(
                    ROLLOUT,
                    key,
                    "its head and its records are gone, and a revision covers it",
                    hint="put the records back from a backup, or `runlore replay` while the bus has its runs",
                )
            )
        covered = known.covered.get(where)
        is_other = covered is not None and consolidate.is_behind(head, covered)
        if head.counter and floor <= head.counter and not is_other and not missing:
            return None
        if not head.counter:
            what = f"its head is gone; {sum(map(len, listed.values()))} records are there"
        elif missing:
            what = f"its head does not name {len(missing)} of its records"
        else:
            what = f"its head stands at {head.counter}, and a revision or a mark knows it at {floor}"

        async def work() -> None:
            if head.counter and floor <= head.counter and not is_other:
                # It is the one that was there: whoever put the records may be about to move it.
                now = await summarize.bring_up(self._store, project, *where, self._runtime)
                await self._mark(project, where[0], {where[1]: now.counter})
            else:
                await self._make_rollout(project, where, max(floor, head.counter), targets)

        does = "the head from its records" if listed else "the head, which says that it was erased"
        return Step(Finding(ROLLOUT, key, what, f"{does}, and a mark"), work)

    async def _make_rollout(
        self, project: str, where: Where, floor: int, targets: Sequence[tuple[str, erasures.Target]]
    ) -> None:
        memory, rollout = where
        for name, target in targets:
            await erasing_rollouts.tombstone(self._store, project, name, target, self._runtime)
        above = floor + heads.LEAP
        head = await summarize.regain(self._store, project, memory, rollout, self._runtime, above=floor)
        if head.counter <= floor:
            # Nothing is left of it but that it was erased.
            head = await heads.move(self._store, head, {}, fmt=rollouts.HEAD_FORMAT, above=above)
        await self._mark(project, memory, {rollout: head.counter})

    async def _mark(self, project: str, memory: str, counters: Mapping[str, int]) -> None:
        for kind in (keys.MARKS, keys.ASKS) if self._asks else (keys.MARKS,):
            await marks.put(self._store, project, memory, counters, counters=counters, kind=kind)

    async def _known(self, project: str) -> Known:
        known = Known()
        async for row in self._store.list(f"{project}/{keys.RECORDS}/"):
            memory, rollout = row.key.split("/")[3:5]
            run, attempt = keys.record_name(row.key)
            known.listed.setdefault((memory, rollout), {}).setdefault(run, set()).add(attempt)
        async for entry in erasures.every(self._store, project):
            for target in map(erasures.target_of, entry.body["targets"]):
                found = known.targets.setdefault((target.memory, target.rollout), [])
                found.append((str(entry.body["id"]), target))
        for memory in await self._named(project):
            await self._of_memory(project, memory, known)
        return known

    async def _of_memory(self, project: str, memory: str, known: Known) -> None:
        """What a memory's revision, head and marks know of its rollouts."""
        try:
            head = await self._reader.head(project, memory)
            newest = [await self._reader.current(head, project, memory)]
        except errors.Fatal:
            return  # Which is told of the memory itself, or by `verify`.
        if not head.counter:
            newest = [one.revision for one in await repair_memories.tips(self._reader, project, memory)]
        for revision in newest:
            for rollout, entry in revision.map("coverage").items() if revision is not None else ():
                known.at_least((memory, rollout), int(entry["counter"]))
                if len(newest) == 1:
                    known.covered[memory, rollout] = entry
        for rollout, hold in head.body.get("held", {}).items():
            known.at_least((memory, rollout), max(int(hold["counter"]), int(hold.get("seen") or 0)))
        for kind in (keys.MARKS, keys.ASKS):
            for mark in await marks.read_all(self._store, project, memory, marks_max=MARKS_MAX, kind=kind):
                for rollout, counter in mark.counters.items():
                    known.at_least((memory, rollout), int(counter))

    async def _named(self, project: str) -> list[str]:
        """Every memory that has anything."""
        found = set()
        for kind in (keys.MEMORIES, keys.MANIFESTS, keys.ROLLOUTS, keys.RECORDS, keys.MARKS):
            async for row in self._store.list(f"{project}/{kind}/"):
                found.add(row.key.split("/")[3].removesuffix(".json"))
        return sorted(found)

    # --- memories -----------------------------------------------------------------------------------------

    async def _memories(self, project: str) -> AsyncIterator[Step]:
        entries = [entry async for entry in erasures.every(self._store, project)]
        for memory in await self._named(project):
            key = keys.memory_head(project, memory)
            try:
                head = await self._reader.head(project, memory)
            except errors.Fatal as exc:
                yield Step(_unreadable(MEMORY, key, exc))
                continue
            if head.counter:
                continue
            found = await repair_memories.tips(self._reader, project, memory)
            if not found:
                continue
            if found[0].number == 1 and await marks.read_all(self._store, project, memory, marks_max=1):
                continue  # Of a writer that is about to name it, or died before: whoever works the mark goes on.
            told = await repair_memories.choose(self._reader, found, entries, self._take)
            if told.chosen is None:
                yield Step(Finding(MEMORY, key, f"its head is gone; {told.why}", hint=told.hint))
                continue
            chosen = told.chosen

            async def work(head: heads.Head = head, chosen: repair_memories.Tip = chosen) -> None:
                changes = await repair_memories.body(self._reader, chosen, at=heads.LEAP + chosen.number)
                above = chosen.number + heads.LEAP - 1
                await heads.move(self._store, head, changes, fmt=revisions.HEAD_FORMAT, above=above)

            what = f"its head is gone; revisions up to {chosen.number} are whole"
            yield Step(Finding(MEMORY, key, what, f"the head at revision {chosen.number}"), work)

    # --- workspaces ---------------------------------------------------------------------------------------

    async def _workspaces(self, project: str) -> AsyncIterator[Step]:
        async for lost in repair_lines.lost(self._store, self._bus, project):
            what = f"its head is gone; {lost.runs} runs on the bus have left something there"
            if lost.why:
                yield Step(Finding(WORKSPACE, lost.line.key, f"{what}; {lost.why}", hint=lost.hint))
                continue

            async def work(lost: repair_lines.Lost = lost) -> None:
                await repair_lines.make(self._store, lost, above=heads.LEAP)

            yield Step(Finding(WORKSPACE, lost.line.key, what, lost.does, hint=lost.hint), work)

    # --- marks --------------------------------------------------------------------------------------------

    async def _marks(self, project: str) -> AsyncIterator[Step]:
        """Rollouts that no revision covers, no hold keeps back and no mark names: nobody would ever take them in."""
        standing: dict[str, dict[str, int]] = {}
        async for row in self._store.list(f"{project}/{keys.ROLLOUTS}/"):
            stored = await self._store.get(row.key)
            try:
                head = heads.parse(row.key, stored, fmt=rollouts.HEAD_FORMAT)
            except errors.Fatal:
                continue  # Told before.
            if head.body.get("runs"):
                memory, rollout = row.key.removesuffix(".json").split("/")[3:5]
                standing.setdefault(memory, {})[rollout] = head.counter
        for memory, counters in sorted(standing.items()):
            try:
                due = await self._unmarked(project, memory, counters)
            except errors.Fatal:
                continue
            if due:
                what = f"no revision covers {len(due)} rollouts, and no mark names them"

                async def work(memory: str = memory, due: dict[str, int] = due) -> None:
                    await self._mark(project, memory, due)

                yield Step(Finding(MARK, f"{project}/{memory}", what, "a mark"), work)

    async def _unmarked(self, project: str, memory: str, counters: Mapping[str, int]) -> dict[str, int]:
        # Marks first: one that is worked meanwhile is covered by what is read after it.
        waiting = await marks.read_all(self._store, project, memory, marks_max=MARKS_MAX)
        named = {rollout for mark in waiting for rollout in mark.rollouts}
        head = await self._reader.head(project, memory)
        if not head.counter and await repair_memories.tips(self._reader, project, memory):
            return {}  # Which it would be is not known before the head is there again.
        revision = await self._reader.current(head, project, memory)
        coverage = revision.map("coverage") if revision is not None else None
        out = {}
        for rollout, counter in counters.items():
            known = coverage.get(rollout) if coverage is not None else None
            is_covered = known is not None and int(known["counter"]) >= counter
            if not is_covered and rollout not in named and rollout not in head.body.get("held", {}):
                out[rollout] = counter
        return out


def _unreadable(kind: str, key: str, exc: errors.Fatal) -> Finding:
    return Finding(
        kind,
        key,
        exc.message,
        hint="put the object's version before it back; without one, delete it and run `runlore repair` again",
    )
