"""Consolidate: the rollouts that marks name become the memory's next revision.

    marks → head → inputs (summaries not covered) → pack → manifest → CAS head → ring → put join → delete marks

Where a model is set, a join says that it may look at what is new (`model_notes.py`).

Read in this order, a mark that lands while the revision is made is simply left for the next pass. What is
covered is each rollout's counter (`coverage`), apart from what is selected: the newest `ROLLOUTS_SELECTED_MAX`
rollouts have notes, older ones stay covered and searchable. A batch that fails the guards is split until the
guilty rollouts stand alone; those are held in the head for review, the rest proceed (invariant 8).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from runlore import clock, errors
from runlore.bus import port as bus_port
from runlore.commit import erasures, heads, keys, marks, packs, pages, revisions
from runlore.consumers import approvals, record, summarize
from runlore.consumers.runtime import SEQUENTIAL, Runtime
from runlore.events import envelope, models
from runlore.memory import guards, joint, model_summary, notes, operations, render, rules
from runlore.store import port as store_port

log = structlog.get_logger("runlore.consolidate")

ROLLOUTS_SELECTED_MAX = 256
"""Rollouts that a revision holds notes of: the SDK's `max_raw_memories_for_consolidation`."""
ROLLOUTS_PER_REVISION_MAX = 256
"""Rollouts that one revision takes in."""
MARKS_PER_PASS_MAX = 512
MEMOS_MAX = 16
"""Memories of which the last rendering is kept, a few MB each."""
HELD_MAX = 2000
"""Rollouts that one memory holds for review at most; past it consolidation of that memory stops and says so."""


class ReviewFull(errors.Blocked):
    """The memory holds as many rollouts for review as it can."""

    kind = "review_full"


@dataclass(frozen=True)
class Pass:
    """What one pass over a memory's marks did."""

    revision: int | None = None
    """The revision it made, if any."""
    covered: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    marks_deleted: int = 0
    more: bool = False
    """Whether marks are left that this pass could not finish."""


@dataclass(frozen=True)
class Memory:
    """The notes of a memory and which rollouts they are of: the pure state that a revision is made from."""

    notes: notes.Notes
    selected: Mapping[str, str]
    """Rollout → when it was last updated."""


@dataclass(frozen=True)
class Made:
    """The state after a batch, rendered."""

    state: Memory
    parts: Mapping[str, render.Part]
    refused: list[Any] = field(default_factory=list)


class ConsolidateStage:
    """Works the marks of one memory at a time."""

    def __init__(
        self,
        store: store_port.ObjectStore,
        bus: bus_port.Bus,
        *,
        reader: revisions.Reader | None = None,
        runtime: Runtime = SEQUENTIAL,
        joins: bool = False,
    ) -> None:
        """`joins`: whether a model is to look at what is new."""
        self._store = store
        self._bus = bus
        self._joins = joins
        self._reader = reader or revisions.Reader(store)
        self._runtime = runtime
        self._memos: OrderedDict[tuple[str, str], render.Memo] = OrderedDict()

    def _memo(self, project: str, memory: str) -> render.Memo:
        """What was rendered of this memory last. One pass works a memory at a time, so it has no lock."""
        found = self._memos.setdefault((project, memory), render.Memo())
        self._memos.move_to_end((project, memory))
        while len(self._memos) > MEMOS_MAX:
            self._memos.popitem(last=False)
        return found

    async def work(self, project: str, memory: str) -> Pass:
        """One pass over the memory's marks. Raises `errors.Retryable` or `errors.Blocked` as the store does."""
        for restart in range(summarize.RESTARTS_MAX):
            try:
                return await self._pass(project, memory)
            except errors.HeadMoved:
                await clock.sleep(0.005 * restart * clock.jitter())
        raise errors.StoreUnavailable(f"the head of memory {project}/{memory} is contended")

    async def _pass(self, project: str, memory: str) -> Pass:
        found = await marks.read_all(self._store, project, memory, marks_max=MARKS_PER_PASS_MAX)
        if not found:
            return Pass()
        head = await self._reader.head(project, memory)
        if not head.counter:
            await revisions.refuse_lost(self._reader, project, memory)
        named = sorted({rollout for mark in found for rollout in mark.rollouts})
        inputs = await self._inputs(project, memory, named, marks.covered_from(found))
        before = await self._reader.current(head, project, memory)
        inputs = await self._regained(project, memory, before, inputs)
        held: dict[str, Any] = dict(head.body.get("held", {}))
        pending = uncovered(before, held, released(held, found), inputs)
        batch, later = pending[:ROLLOUTS_PER_REVISION_MAX], pending[ROLLOUTS_PER_REVISION_MAX:]
        made = Pass()
        if batch:
            made, head = await self._move(
                project, memory, head, before, {name: inputs[name] for name in batch}, found
            )
        if waits := approvals.seen_in(head.body.get("held", {}), inputs):
            held = {**head.body["held"]}
            held |= {name: {**held[name], "seen": counter} for name, counter in waits.items()}
            head = await heads.move(self._store, head, {"held": held}, fmt=revisions.HEAD_FORMAT)
        # A mark is deleted exactly when nothing it names is uncovered: also where there was nothing to do.
        left = set(later)
        done = [mark for mark in found if left.isdisjoint(mark.rollouts)]
        if self._joins and done:
            # Also where nothing moved: whoever moved it may have died before its join.
            waits = [rollout for mark in done for rollout in mark.rollouts]
            await marks.put(self._store, project, memory, waits, kind=keys.JOINS)
        await marks.delete(self._store, done)
        more = bool(left) or len(found) == MARKS_PER_PASS_MAX
        return Pass(made.revision, made.covered, made.held, len(done), more)

    async def _inputs(
        self, project: str, memory: str, named: Sequence[str], covered: Mapping[str, int]
    ) -> dict[str, heads.Head]:
        """The head of each named rollout that has one, after its summary covers its records."""
        jobs = [
            lambda name=name: summarize.bring_up(
                self._store, project, memory, name, self._runtime, covered=covered.get(name)
            )
            for name in named
        ]
        found = await self._runtime.gather(jobs)
        return {name: head for name, head in zip(named, found, strict=True) if head.counter}

    async def _regained(
        self,
        project: str,
        memory: str,
        before: revisions.Revision | None,
        inputs: Mapping[str, heads.Head],
    ) -> dict[str, heads.Head]:
        """`inputs`, where heads that stand behind what the revision covers of them are made anew from their records.

        Such a head was lost, or put back from an older copy of the store. *Otherwise:* its counter says that all of it
        is covered, its mark is deleted, and the run that came since is in no revision.
        """
        if before is None:
            return dict(inputs)
        coverage, out = before.map("coverage"), dict(inputs)
        for name, head in inputs.items():
            known = coverage.get(name)
            if known is not None and is_behind(head, known):
                log.warning("the head of a rollout was lost or put back: made anew", rollout=name)
                out[name] = await summarize.regain(
                    self._store, project, memory, name, self._runtime, above=int(known["counter"])
                )
        return out

    async def _move(
        self,
        project: str,
        memory: str,
        head: heads.Head,
        before: revisions.Revision | None,
        batch: Mapping[str, heads.Head],
        found: Sequence[marks.Mark],
    ) -> tuple[Pass, heads.Head]:
        """Make the revision that takes `batch` in, and move the head to it."""
        layout = head.body.get("layout") or next(iter(batch.values())).body["layout"]
        state = await self._runtime.offload(load_state, before)
        known = head.body.get("held", {})
        lifted, passes = released(known, found), approvals.let_pass(head.body, found)
        barred = {
            name: approvals.again(known[name]) for name in batch if name in known and name not in lifted
        }
        accepted, guilty, made = await self._runtime.offload(
            accept, state, batch, layout, self._memo(project, memory), passes, barred
        )
        present = before.number if before else 0
        held: dict[str, Any] = {name: why for name, why in known.items() if name not in accepted}
        held |= {
            name: approvals.hold(batch[name], why, head.counter + 1, present) for name, why in guilty.items()
        }
        if (waits := len(approvals.waiting(held))) > HELD_MAX:
            raise ReviewFull(
                f"memory {project}/{memory} holds {waits} rollouts for review; at most {HELD_MAX} can be",
                hint="`runlore review` lists them with reasons",
            )
        changes: dict[str, Any] = {"project": project, "memory": memory, "layout": layout, "held": held}
        approved = approvals.kept(head.body, passes, made.state.selected)
        changes |= {"approved": approved} if approved or head.body.get("approved") else {}
        number = None
        if accepted:
            draft = await self._runtime.offload(draft_of, before, made, batch, accepted, layout)
            if by_hand := approvals.told(found, head.body, accepted):
                draft = replace(draft, facts={**draft.facts, "approved": by_hand})
            revision = await revisions.write(
                self._store, self._reader, project, memory, parent=before, draft=draft
            )
            changes |= {"revision": revision.number, "manifest": revision.sha256}
            number = revision.number
        head = await heads.move(self._store, head, changes, fmt=revisions.HEAD_FORMAT)
        bell = models.Changed(kind="memory", project=project, memory=memory, counter=head.counter)
        await record.ring(self._bus, [bell])
        return Pass(number, tuple(sorted(accepted)), tuple(sorted(guilty))), head


def is_behind(head: heads.Head, covered: Mapping[str, Any]) -> bool:
    """Whether a rollout's head stands before what a revision covers of it, or is another one at the same counter."""
    counter = int(covered["counter"])
    if head.counter == counter:
        return bool(head.body.get("updated_at") != covered["updated_at"])
    return head.counter < counter


def released(held: Mapping[str, Any], found: Iterable[marks.Mark]) -> set[str]:
    """The rollouts whose present hold a mark lifts; a hold that came later is another one."""
    return {
        name
        for mark in found
        for name, hold in mark.releases.items()
        if held.get(name, {}).get("hold") == hold
    }


def uncovered(
    before: revisions.Revision | None,
    held: Mapping[str, Any],
    released: set[str],
    inputs: Mapping[str, heads.Head],
) -> list[str]:
    """The rollouts whose summary's counter is above the one covered, oldest first; held ones wait for a person.

    A rejected one with a run that nobody has judged is among them: it is to be held anew.
    """
    coverage = before.map("coverage") if before else None
    pending = []
    for name, head in inputs.items():
        if name in held and name not in released and not approvals.has_new_run(held[name], head):
            continue
        known = coverage.get(name) if coverage else None
        if known is None or int(known["counter"]) < head.counter or name in held:
            pending.append(name)
    return sorted(pending, key=lambda name: (recency(inputs[name].body["updated_at"]), name))


def recency(updated_at: str) -> tuple[int, str]:
    """Sorts as the SDK does: an unknown time counts as oldest."""
    return (0, "") if updated_at == summarize.UNKNOWN else (1, updated_at)


def load_state(revision: revisions.Revision | None) -> Memory:
    """The pure state of a revision."""
    if revision is None:
        return Memory(notes.Notes.load({}), {})
    return Memory(
        notes.Notes.load(dict(revision.map("notes").items())), dict(revision.map("selected").items())
    )


def accept(
    state: Memory,
    batch: Mapping[str, heads.Head],
    layout: Mapping[str, Any],
    memo: render.Memo | None = None,
    passes: approvals.Keys | None = None,
    barred: Mapping[str, guards.Violation] | None = None,
) -> tuple[list[str], dict[str, list[guards.Violation]], Made]:
    """Take in as much of `batch` as passes the guards: (accepted, guilty with reasons, the state after).

    Halving finds each guilty rollout in the logarithm of the batch; since notes are a function of the set of
    rollouts, the order of trying changes nothing in the result. `passes`: what a person let pass. `barred`: rollouts
    that only a person may let in; the guards say of them what else there is to see.
    """
    accepted: list[str] = []
    guilty: dict[str, list[guards.Violation]] = {}
    best = Made(state, {})

    def attempt(names: list[str]) -> None:
        nonlocal best
        tried = [*accepted, *names]
        made, violations = judge(state, {name: batch[name] for name in tried}, layout, memo)
        if made is not None and not approvals.left(violations, passes or {}, tried):
            accepted.extend(names)
            best = made
        elif len(names) == 1:
            guilty[names[0]] = approvals.against(violations, passes or {}, names[0], accepted)
        else:
            middle = len(names) // 2
            attempt(names[:middle])
            attempt(names[middle:])

    if free := [name for name in batch if name not in (barred or {})]:
        attempt(free)
    for name, why in (barred or {}).items():
        tried = {one: batch[one] for one in [*accepted, name]}
        found = judge(state, tried, layout)[1]
        guilty[name] = [why, *approvals.against(found, passes or {}, name, accepted)]
    return accepted, guilty, best


def judge(
    state: Memory,
    batch: Mapping[str, heads.Head],
    layout: Mapping[str, Any],
    memo: render.Memo | None = None,
) -> tuple[Made | None, list[guards.Violation]]:
    """The state after `batch`, and what the guards say against it.

    An engine that fails on a rollout is a reason to hold that rollout, not to stop its memory.
    """
    try:
        made = take_in(state, batch, layout, memo)
    except Exception as exc:
        log.exception("the engine failed", rollouts=len(batch))
        return None, [
            guards.Violation(
                "engine_failed", f"{type(exc).__name__} in the {rules.ENGINE['name']} engine", ()
            )
        ]
    return made, guards.check(state.notes, made.state.notes, made.parts)


def take_in(
    state: Memory,
    batch: Mapping[str, heads.Head],
    layout: Mapping[str, Any],
    memo: render.Memo | None = None,
) -> Made:
    """The state after `batch`: selection first, then the operations of what is selected."""
    gone = [name for name, head in batch.items() if erasures.is_empty(head.body)]
    candidates = {**state.selected, **{name: head.body["updated_at"] for name, head in batch.items()}}
    chosen = select({name: at for name, at in candidates.items() if name not in gone})
    now = state.notes
    for name in [*state.selected, *gone]:
        if name not in chosen:
            now = now.drop(name)
    refused: list[Any] = []
    for name, head in batch.items():
        if name in chosen:
            attempts = {run: int(entry["attempt"]) for run, entry in head.body["runs"].items()}
            told = model_summary.told(head.body.get("model"), attempts)
            proposed = operations.propose(now, name, head.body["summary"], told)
            now, rejected = operations.apply(now, proposed, shown=None)
            refused += [{"note": op.note, "rollout": op.rollout, "reason": why} for op, why in rejected]
    now = joint.settle(now)
    selected = {name: candidates[name] for name in chosen}
    return Made(Memory(now, selected), render.parts(now, models.Layout(**layout), memo), refused)


def select(candidates: Mapping[str, str]) -> set[str]:
    """The newest rollouts, as many as a revision holds."""
    order = sorted(candidates, key=lambda name: (recency(candidates[name]), name), reverse=True)
    return set(order[:ROLLOUTS_SELECTED_MAX])


def draft_of(
    before: revisions.Revision | None,
    made: Made,
    batch: Mapping[str, heads.Head],
    accepted: Sequence[str],
    layout: Mapping[str, Any],
) -> revisions.Draft:
    """What the next revision writes: only pages and contents that are not in its parent."""
    maps = {name: before.map(name) if before else _empty() for name in revisions.MAPS}
    covers = []
    for name in sorted(accepted):
        body = batch[name].body
        known = int(maps["coverage"].get(name, {"counter": 0})["counter"])
        # What an erasure left of it comes in anew: an earlier revision that says so may be a stub.
        known = known if known >= erasures.newest(body) else 0
        fresh = {run: entry for run, entry in body["runs"].items() if entry["since"] > known}
        runs = sorted([run, entry["attempt"]] for run, entry in fresh.items() if "edit_of" not in entry)
        edited = sorted([run, entry["attempt"]] for run, entry in fresh.items() if "edit_of" in entry)
        covers.append({"rollout": name, "counter": batch[name].counter, "runs": runs})
        covers[-1] |= {"edits": edited} if edited else {}
        maps["coverage"].set(name, {"counter": batch[name].counter, "updated_at": body["updated_at"]})
    maps["notes"].replace(made.state.notes.entries())
    maps["selected"].replace(dict(made.state.selected))
    contents, live = lay_out(made.parts, maps["files"])
    facts = {
        "reason": "runs",
        "engine": rules.ENGINE,
        "tokens": 0,
        "cost_usd": 0,
        "layout": dict(layout),
        "covers": covers,
        "refused": made.refused[:100],
        "totals": totals(made.parts, made.state, len(maps["coverage"])),
    }
    return revisions.Draft(maps, contents, frozenset(live), facts)


def lay_out(parts: Mapping[str, render.Part], files: pages.PagedMap) -> tuple[dict[str, bytes], set[str]]:
    """Make `files` name exactly `parts`; (the contents by name, all names)."""
    contents: dict[str, bytes] = {}
    entries: dict[str, Any] = {}
    for key, part in parts.items():
        raw = part.text.encode("utf-8")
        why = envelope.dump([list(span) for span in part.why])
        entries[key] = {"sha256": packs.name(raw), "size": len(raw), "why": packs.name(why)}
        entries[key] |= {"rollout": part.rollout} if part.rollout else {}
        entries[key] |= {"subject": part.subject} if part.subject else {}
        contents[entries[key]["sha256"]], contents[entries[key]["why"]] = raw, why
    files.replace(entries)
    return contents, set(contents)


def totals(parts: Mapping[str, render.Part], state: Memory, covered: int) -> dict[str, int]:
    return {
        "files": len(parts),
        "bytes": sum(len(part.text.encode("utf-8")) for part in parts.values()),
        "notes": len(state.notes.entries()),
        "selected": len(state.selected),
        "rollouts": covered,
    }


def _empty() -> pages.PagedMap:
    return pages.PagedMap(None, _nothing)


def _nothing(name: str) -> bytes:
    raise errors.Corrupt(f"an empty map has no page {name[:12]}")


async def revert(
    store: store_port.ObjectStore,
    bus: bus_port.Bus,
    reader: revisions.Reader,
    project: str,
    memory: str,
    *,
    to: int,
    reason: str,
) -> tuple[int, list[str]]:
    """Make a revision with the notes of revision `to`; (its number, the rollouts now held).

    It is a new manifest whose parent is the present one, with the old notes and the *present* coverage; what
    was taken in since is held until somebody releases it. With the old coverage instead, the next run of a
    bad rollout would bring it straight back.
    """
    for _ in range(summarize.RESTARTS_MAX):
        head = await reader.head(project, memory)
        before = await reader.at(project, memory)
        if to == before.number:
            raise errors.Refused(f"revision {to} is what {project}/{memory} has already")
        old = await reader.at(project, memory, to)
        reverted = changed_since(old, before)
        if len({*approvals.waiting(head.body.get("held", {})), *reverted}) > HELD_MAX:
            raise errors.Refused(
                f"reverting to {to} would hold {len(reverted)} rollouts for review; at most {HELD_MAX} can be",
                hint="revert to a newer revision",
            )
        state = load_state(old)
        await _refuse_hidden(store, project, memory, old, state.selected)
        # Else a model's answer that is to be undone would be found kept, and taken in again.
        state = replace(state, notes=joint.keep_told(state.notes, load_state(before).notes))
        made = Made(state, render.parts(state.notes, models.Layout(**old.body["layout"])))
        maps = {name: before.map(name) for name in revisions.MAPS}
        contents, live = lay_out(made.parts, maps["files"])
        maps["notes"].replace(state.notes.entries())
        maps["selected"].replace(dict(state.selected))
        facts = {
            "reason": "revert",
            "note": reason,
            "reverted_to": to,
            "engine": old.body["engine"],
            "tokens": 0,
            "cost_usd": 0,
            "layout": old.body["layout"],
            "covers": [],
            "totals": totals(made.parts, state, len(maps["coverage"])),
        }
        draft = revisions.Draft(maps, contents, frozenset(live), facts)
        revision = await revisions.write(store, reader, project, memory, parent=before, draft=draft)
        why = {"kind": "revert", "reason": reason, "at": clock.now_iso(), "hold": head.counter + 1}
        held = {name: {"counter": counter, **why} for name, counter in reverted.items()}
        changes = {
            "revision": revision.number,
            "manifest": revision.sha256,
            "held": {**head.body.get("held", {}), **held},
        }
        if int(head.body["revision"]) != before.number:
            continue
        try:
            head = await heads.move(store, head, changes, fmt=revisions.HEAD_FORMAT)
        except errors.HeadMoved:
            continue
        await record.ring(
            bus, [models.Changed(kind="memory", project=project, memory=memory, counter=head.counter)]
        )
        return revision.number, sorted(reverted)
    raise errors.StoreUnavailable(f"the head of memory {project}/{memory} is contended")


async def _refuse_hidden(
    store: store_port.ObjectStore,
    project: str,
    memory: str,
    old: revisions.Revision,
    selected: Iterable[str],
) -> None:
    """Raises `errors.Refused` where the notes of an old revision hold what a rescan has hidden since."""
    coverage = dict(old.map("coverage").items())
    covered = {name: int(coverage[name]["counter"]) for name in selected if name in coverage}
    if found := await summarize.rescanned_since(store, project, memory, covered):
        raise errors.Refused(
            f"revision {old.number} holds what `runlore rescan` has hidden since, from {len(found)} rollouts",
            hint="revert to a revision that was made after the rescan",
        )


def changed_since(old: revisions.Revision, now: revisions.Revision) -> dict[str, int]:
    """The rollouts that `now` covers further than `old` did, with the counter covered."""
    then = {name: int(entry["counter"]) for name, entry in old.map("coverage").items()}
    present = {name: int(entry["counter"]) for name, entry in now.map("coverage").items()}
    return {name: counter for name, counter in present.items() if counter > then.get(name, 0)}


async def release(
    store: store_port.ObjectStore,
    bus: bus_port.Bus,
    reader: revisions.Reader,
    project: str,
    memory: str,
    rollouts: Sequence[str],
    *,
    reason: str,
    approves: Mapping[str, Sequence[str]] | None = None,
    seen: heads.Head | None = None,
) -> None:
    """Let held rollouts be taken in again. Raises `errors.NotFound` for one that is not held.

    `approves`: the violations that a person lets pass with it, by their keys. `seen`: the head in which they saw the
    holds, where that is not the present one. It is one write: a mark that names the holds which it lifts. Whoever
    works it takes the rollouts in and ends the holds in one move of the head. In two writes (the head, then a mark) a
    crash between them would leave rollouts that nothing says wait; and a mark that named no hold could, worked twice,
    lift a later one.
    """
    head = seen or await reader.head(project, memory)
    held = head.body.get("held", {})
    unknown = [name for name in rollouts if name not in held]
    if unknown:
        raise errors.NotFound(f"{project}/{memory} does not hold {', '.join(unknown)}")
    lifted = {name: int(held[name]["hold"]) for name in rollouts}
    await marks.put(store, project, memory, rollouts, releases=lifted, approves=approves, reason=reason)
    await record.ring(bus, [models.Changed(kind="mark", project=project, memory=memory)])
