"""The eraser: carries an erasure from the ledger's entry to its two dates. Every step may be repeated.

    entry → ledger's head → rollouts' heads → claims noted → records, answers, outcomes, asks → memories → workspaces
    → bus, dead letters, claims → who was seeded, noted → ledger's head → first date … a term … → sweep → second date

Whoever dies leaves an open entry, and any pass goes on with it: `runlore forget --resume`, `runlore upkeep`. An erasure
by time (a subject, a memory) is looked at once more when whoever had an event in hand has put it or given up.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from runlore import clock
from runlore.bus import port as bus_port
from runlore.commit import age, erasures, heads, keys, marks, revisions, sweep
from runlore.consumers import record
from runlore.consumers.runtime import SEQUENTIAL, Runtime
from runlore.events import models
from runlore.store import port as store_port
from runlore.upkeep.erasing import asking, memories, seeded, traces, workspaces
from runlore.upkeep.erasing import rollouts as erasing_rollouts

IN_HAND = 2 * age.WINDOW
"""After which a stage that had an event in hand has put it, or met the ledger."""
LAST_LOOK = age.SUPERSEDED_KEPT + sweep.CLOCK_SLACK + age.WINDOW
"""After the first date: by then nothing that was named, or under way, is kept for anybody."""
RUNS_NAMED_MAX = 10_000
"""Runs of whole rollouts that an entry names."""
Progress = Callable[[int, str], None]


def nothing(count: int, what: str) -> None:
    """Tell nobody."""


class Eraser:
    """Erases in one project."""

    def __init__(
        self,
        store: store_port.ObjectStore,
        bus: bus_port.Bus,
        project: str,
        *,
        runtime: Runtime = SEQUENTIAL,
        on_progress: Progress = nothing,
    ) -> None:
        self._store, self._bus, self._project = store, bus, project
        self._runtime, self._progress = runtime, on_progress
        self._reader = revisions.Reader(store)
        self._done = 0

    async def plan(self, wanted: asking.Wanted) -> dict[str, Any]:
        """What an erasure would name; nothing is written. Raises `errors.NotFound`."""
        found = await asking.targets(self._store, self._bus, wanted)
        named = {one.memory for one in found}
        count = 0
        for one in found:
            async for row in self._store.list(keys.records(self._project, one.memory, one.rollout)):
                count += one.runs is None or keys.record_name(row.key)[0] in one.runs
        told = [one.as_dict() for one in found]
        return {"targets": told, "rollouts": len(found), "records": count, "memories": sorted(named)}

    async def begin(self, wanted: asking.Wanted) -> heads.Head:
        """Put the entry. Raises `errors.NotFound` where no run and no rollout has that name."""
        found = await asking.targets(self._store, self._bus, wanted)
        said = {
            "scope": wanted.scope,
            "name": wanted.alias,
            "memory": wanted.memory,
            "snapshots": wanted.snapshots,
            "strict": wanted.strict,
        }
        return await self._begun(said, found, lambda name, at: asking.row_of(wanted, name, at))

    async def begin_retention(self, found: Sequence[erasures.Target], *, days: int) -> heads.Head:
        """Put the entry of rollouts that are past their days."""
        said = {
            "scope": erasures.RETENTION,
            "name": f"{days} days",
            "memory": None,
            "snapshots": asking.ERASE,
            "strict": False,
        }
        return await self._begun(said, found, lambda name, at: None)

    async def _begun(
        self,
        said: Mapping[str, Any],
        found: Sequence[erasures.Target],
        row_of: Callable[[str, str], erasures.Row | None],
    ) -> heads.Head:
        name = clock.new_id()
        asked_at = clock.now_iso()
        row = row_of(name, asked_at)
        body = {
            **said,
            "asked_at": asked_at,
            "state": erasures.OPEN,
            "row": asdict(row) if row is not None else None,
            "targets": [one.as_dict() for one in found],
            "runs": await self._runs(found),
            "claims": [],
            "parts": [],
            "removed": {},
            "seeded": {"total": 0, "runs": []},
            "left": {},
            "first_at": None,
            "second_at": None,
        }
        return await erasures.begin(self._store, self._project, name, body, row)

    async def _runs(self, found: Sequence[erasures.Target]) -> list[str]:
        """The runs of rollouts that go as a whole, by alias: whoever asks for one is told what became of it."""
        names: set[str] = set()
        for one in found:
            if one.runs is None and len(names) < RUNS_NAMED_MAX:
                async for row in self._store.list(keys.records(self._project, one.memory, one.rollout)):
                    names.add(keys.record_name(row.key)[0])
        return sorted(names)[:RUNS_NAMED_MAX]

    async def carry_on(self, name: str) -> heads.Head:
        """One pass over an erasure; its entry after that. Once it is done, nothing."""
        entry = await erasures.read(self._store, self._project, name)
        if entry.body["state"] == erasures.DONE:
            return entry
        began = clock.now()
        row = erasures.Row(**entry.body["row"]) if entry.body["row"] else None
        # The ledger first: whoever put the entry may have died before.
        await erasures.ring(self._store, self._project, row)
        targets = await self._targets(entry, row)
        removed: Counter[str] = Counter()
        heads_of = await self._rollouts(entry, targets, removed)
        lines = await self._memories(entry, targets, heads_of, removed)
        refs = await self._workspaces(entry, targets, removed)
        found = await self._traces(entry, targets, row, removed)
        told = await self._told(entry, targets, lines, refs, found)
        await erasures.ring(self._store, self._project)
        await self._ring(heads_of)
        return await self._dated(entry, began, told, removed)

    # --- one place each -----------------------------------------------------------------------------------

    async def _targets(self, entry: heads.Head, row: erasures.Row | None) -> list[erasures.Target]:
        known = [erasures.target_of(one) for one in entry.body["targets"]]
        if row is None:
            return known
        late = await asking.late(self._store, self._project, [row], known)
        everything = sorted({*known, *late}, key=lambda one: (one.memory, one.rollout, one.runs or ()))
        if len(everything) > len(known):
            told = {"targets": [one.as_dict() for one in everything]}
            await erasures.note(self._store, self._project, str(entry.body["id"]), told)
        return everything

    async def _rollouts(
        self, entry: heads.Head, targets: Sequence[erasures.Target], removed: Counter[str]
    ) -> dict[tuple[str, str], heads.Head]:
        """The rollouts' heads, and everything that is kept beside them."""
        store, project, name = self._store, self._project, str(entry.body["id"])
        found: dict[tuple[str, str], heads.Head] = {}
        for one in targets:
            found[one.memory, one.rollout] = await erasing_rollouts.tombstone(
                store, project, name, one, self._runtime
            )
            self._tell("rollouts")
        records = [
            key for head in found.values() for key in await erasing_rollouts.records_of(store, project, head)
        ]
        claims = set(entry.body["claims"])
        for key in records:
            claims |= erasing_rollouts.claims_in(await erasing_rollouts.meta_of(store, key))
            self._tell("records")
        if claims - set(entry.body["claims"]):
            # Before the records that name them go.
            await erasures.note(store, project, name, {"claims": sorted(claims)})
        removed["records"] += await erasing_rollouts.delete(store, records)
        answers = await erasing_rollouts.answers_of(store, project, targets)
        removed["kept answers of models"] += await erasing_rollouts.delete(store, answers)
        for one in targets:
            outcomes = await erasing_rollouts.outcomes_of(store, project, one, removed)
            await erasing_rollouts.delete(store, outcomes)
        for memory in sorted({one.memory for one in targets}):
            whole = {
                rollout for (of, rollout), head in found.items() if of == memory and not head.body["runs"]
            }
            asks = await erasing_rollouts.asks_of(store, project, memory, whole)
            await marks.delete(store, asks)
            removed["asks"] += len(asks)
        return found

    async def _memories(
        self,
        entry: heads.Head,
        targets: Sequence[erasures.Target],
        found: Mapping[tuple[str, str], heads.Head],
        removed: Counter[str],
    ) -> list[memories.Line]:
        out = []
        named = {one.memory for one in targets}
        if entry.body["scope"] == erasures.MEMORY:
            named.add(str(entry.body["name"]))
        for memory in sorted(named):
            own = {rollout: head for (of, rollout), head in found.items() if of == memory}
            line = memories.Line(
                self._project,
                memory,
                str(entry.body["id"]),
                memories.part(targets, memory),
                own,
                strict=bool(entry.body["strict"]),
            )
            await memories.erase((self._store, self._bus, self._reader, self._runtime), line)
            removed["revisions"] += line.stubs
            removed["packs"] += line.packs
            removed["side lines"] += len(line.sides)
            self._tell("memories")
            out.append(line)
        return out

    async def _workspaces(
        self, entry: heads.Head, targets: Sequence[erasures.Target], removed: Counter[str]
    ) -> Mapping[str, int]:
        """A rollout's workspaces are the project's: they stay while another memory holds the rollout."""
        if entry.body["snapshots"] != asking.ERASE:
            return {"snapshots kept by policy": 1}
        gone = {(one.memory, one.rollout) for one in targets if one.runs is None}
        elsewhere = set()
        if any(one.runs is None for one in targets):
            async for memory, rollout in asking.named(self._store, self._project, None):
                if (memory, rollout) not in gone:
                    elsewhere.add(rollout)
        left: Counter[str] = Counter()
        for one in targets:
            if one.runs is None and one.rollout in elsewhere:
                left["rollouts whose workspaces another memory still has"] += 1
                continue
            done = await workspaces.erase(self._store, self._project, str(entry.body["id"]), one)
            removed["snapshots"] += done.refs
            if done.later:
                left["later versions that may hold files of an erased one"] += done.later
            self._tell("workspaces")
        return left

    async def _traces(
        self,
        entry: heads.Head,
        targets: Sequence[erasures.Target],
        row: erasures.Row | None,
        removed: Counter[str],
    ) -> traces.Traces:
        rows = [row] if row is not None else []
        matches = traces.matcher(self._project, targets, rows)
        found = await traces.find(self._store, self._bus, self._project, matches)
        name = str(entry.body["id"])
        body = (await erasures.read(self._store, self._project, name)).body
        noted = {
            "claims": found.claims | set(body["claims"]),
            "parts": found.parts | set(body.get("parts", ())),
        }
        # Before what names them goes: a later pass looks again, as one may have been under way.
        await erasures.note(
            self._store, self._project, name, {what: sorted(one) for what, one in noted.items()}
        )
        parts = await traces.there(self._store, sorted(noted["parts"]))
        removed["parts of dead letters"] += await erasing_rollouts.delete(self._store, parts)
        for what, count in (await traces.erase(self._store, self._bus, found, name)).items():
            removed[what] += count
        claims = await traces.claims_to_delete(self._store, self._project, noted["claims"], found.kept_claims)
        removed["claims"] += await erasing_rollouts.delete(self._store, claims)
        self._tell("events")
        return found

    async def _told(
        self,
        entry: heads.Head,
        targets: Sequence[erasures.Target],
        lines: Sequence[memories.Line],
        left: Mapping[str, int],
        found: traces.Traces,
    ) -> dict[str, Any]:
        """What the entry says of this pass beside its dates."""
        floors = dict(entry.body.get("revisions") or {})
        for line in lines:
            if line.clean is not None:
                first = floors.get(line.memory, [line.floor])[0] or line.floor
                floors[line.memory] = [first, line.clean - 1]
        told: dict[str, Any] = {"revisions": floors}
        if not entry.body["seeded"]["total"]:
            told["seeded"] = await seeded.runs_of(self._store, self._project, floors, targets)
        can = isinstance(self._bus, bus_port.Overwrites)
        until = None
        if (found.messages or found.letter_messages) and not can:
            until = traces.bus_until(found)
        told["left"] = {**dict(entry.body["left"]), **left}
        if until is not None:
            # A later pass sees fewer of them: the letters are resolved by then.
            told["left"]["bus messages until"] = max(until, told["left"].get("bus messages until", ""))
        if found.foreign:
            told["left"]["dead letters of foreign topics, unread"] = found.foreign
        if found.unread:
            told["left"]["dead letters that do not say whose they are"] = found.unread
        return told

    async def _ring(self, found: Mapping[tuple[str, str], heads.Head]) -> None:
        bells = [
            models.Changed(
                kind="rollout", project=self._project, memory=memory, rollout=rollout, counter=head.counter
            )
            for (memory, rollout), head in found.items()
        ]
        await record.ring(self._bus, bells)

    async def _dated(
        self, entry: heads.Head, began: dt.datetime, told: dict[str, Any], removed: Counter[str]
    ) -> heads.Head:
        """Note what the pass did, and a date where one is reached."""
        was = Counter(entry.body["removed"])
        was.update(removed)
        told["removed"] = {what: count for what, count in sorted(was.items()) if count}
        asked = dt.datetime.fromisoformat(entry.body["asked_at"])
        first = entry.body["first_at"]
        if first is None and began >= asked + (IN_HAND if entry.body["row"] else dt.timedelta()):
            told |= {"state": erasures.UNREACHABLE, "first_at": clock.now_iso()}
        elif first is not None and began >= (next_pass(entry.body) or began):
            # What this pass found late is younger than a term, and needs another.
            if removed["records"] or removed["revisions"]:
                told |= {"first_at": clock.now_iso(), "wait_until": None}
            elif (until := await self._swept(dt.datetime.fromisoformat(first))) is not None:
                told |= {"wait_until": until.isoformat(timespec="seconds")}
            else:
                told |= {"state": erasures.DONE, "second_at": clock.now_iso()}
        return await erasures.note(self._store, self._project, str(entry.body["id"]), told)

    async def _swept(self, first: dt.datetime) -> dt.datetime | None:
        """Sweep; and when to do it again, where something is too young to go that may hold what was erased.

        Whoever read it before the first date puts his packs within a term, then finds that the head has moved.
        """
        plan = await sweep.scan(self._store, self._project, on_progress=self._progress)
        await sweep.delete(self._store, plan, on_progress=self._progress)
        until = (first + age.TERM + age.WINDOW).timestamp()
        late = max((at for at in plan.written if at <= until), default=None)
        if late is None:
            return None
        return (
            dt.datetime.fromtimestamp(late, dt.UTC) + age.TERM + sweep.CLOCK_SLACK + dt.timedelta(seconds=1)
        )

    def _tell(self, what: str) -> None:
        self._done += 1
        self._progress(self._done, what)


def next_pass(body: Mapping[str, Any]) -> dt.datetime | None:
    """When a pass brings an erasure on; None: it is done."""
    if body["state"] == erasures.DONE:
        return None
    if body["first_at"] is not None:
        last = dt.datetime.fromisoformat(body["first_at"]) + LAST_LOOK
        until = body.get("wait_until")
        return max(last, dt.datetime.fromisoformat(until)) if until else last
    asked = dt.datetime.fromisoformat(body["asked_at"])
    return asked + (IN_HAND if body["row"] else dt.timedelta())


async def unfinished(store: store_port.ObjectStore, project: str) -> list[heads.Head]:
    """The erasures of a project that are not done, the oldest first."""
    found = [one async for one in erasures.every(store, project) if one.body["state"] != erasures.DONE]
    return sorted(found, key=lambda one: str(one.body["asked_at"]))


async def due(store: store_port.ObjectStore, project: str) -> list[heads.Head]:
    """Those of them that a pass brings on now."""
    now = clock.now()
    found = await unfinished(store, project)
    return [one for one in found if (at := next_pass(one.body)) is not None and at <= now]


def whole_rollouts_of(found: Sequence[heads.Head]) -> set[tuple[str, str]]:
    """(Memory, rollout) of all that these erasures name as a whole."""
    targets = (erasures.target_of(one) for entry in found for one in entry.body["targets"])
    return {(one.memory, one.rollout) for one in targets if one.runs is None}
