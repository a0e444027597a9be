"""The invariants of docs/DESIGN.md as checkers, each named as it is named there.

The simulation runs them after every schedule, and `runlore verify` on a real home: they read any
`ObjectStore` and `Bus`, and write nothing. Each says what is wrong as `Violation`s; none raises on what it
finds, because a check that stops at the first fault hides the others.

`settled=True` adds what holds only once faults have stopped and all work is done (invariant 12). Without it
a home may be checked while it is at work: what it reads are moments apart, so only what may never be is
reported; a reader that finds something on a busy home should look twice.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runlore import errors
from runlore.bus import port as bus_port
from runlore.commit import erasures, heads, keys, marks, revisions, rollouts
from runlore.consumers import approvals, consolidate, dead, record, summarize, told
from runlore.memory import guards, joint, render, rules
from runlore.memory import notes as _notes
from runlore.store import port as store_port
from runlore.testing import checks

DANGLING = "1 heads name what exists"
ONCE = "2 every run takes effect once"
ONE_LINE = "3 revisions form one line"
MARKED = "4 offsets follow effects and marks"
HELD = "8 what is shown passed the guards, what is held has a reason"
APART = "9 projects and subjects are apart"
ERASED = "10 what was erased stays away"
SEEDS = "11 seeds give the same bytes"
ENDS = "12 every run reaches an end"

GROUP = "record"
TOPIC = "runs"


@dataclass(frozen=True)
class Violation:
    """One thing that may not be: which invariant, where, and what is wrong."""

    invariant: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"[{self.invariant}] {self.where}: {self.what}"


@dataclass
class MemoryView:
    """One memory as read: head, revision, rollouts, what a LIST shows of their records, and marks."""

    project: str
    memory: str
    head: heads.Head
    revision: revisions.Revision | None = None
    coverage: dict[str, dict[str, Any]] = field(default_factory=dict)
    rollouts: dict[str, heads.Head] = field(default_factory=dict)
    records: dict[str, dict[str, dict[int, str]]] = field(default_factory=dict)
    marks: list[marks.Mark] = field(default_factory=list)
    rows: list[erasures.Row] = field(default_factory=list)
    """What the project's ledger of erasures says by time."""
    broken: list[Violation] = field(default_factory=list)
    """What could not even be read."""

    @property
    def name(self) -> str:
        return f"{self.project}/{self.memory}"

    @property
    def held(self) -> Mapping[str, Any]:
        return self.head.body.get("held", {})

    def is_erased(self, incoming: record.Incoming) -> bool:
        rollout = self.rollouts.get(incoming.line_of[2], heads.Head("", {}, None))
        return incoming.is_erased(rollout, self.rows)

    def marks_name(self, rollout: str) -> bool:
        return any(rollout in mark.rollouts for mark in self.marks)

    def end(self, rollout: str, run: str, attempt: int) -> str | None:
        """The end of a run (`superseded`, `held`, `rejected`, `consolidated`), or None: something is left to do."""
        head = self.rollouts.get(rollout)
        entry = head.body["runs"].get(run) if head else None
        if head is not None and erasures.is_erased(head.body, run):
            return "erased"
        if not summarize.has(entry, attempt):
            return None
        assert entry is not None
        if int(entry["attempt"]) > attempt:
            return "superseded"
        if rollout in self.held:
            hold, lifted = self.held[rollout], consolidate.released(self.held, self.marks)
            if rollout in lifted or approvals.is_undecided(hold, entry):
                return None
            return "rejected" if approvals.is_rejected(hold) else "held"
        covered = int(self.coverage.get(rollout, {"counter": 0})["counter"])
        return "consolidated" if covered >= int(entry["since"]) else None


async def check(
    store: store_port.ObjectStore,
    bus: bus_port.Bus | None = None,
    *,
    settled: bool = False,
    only: str | None = None,
) -> list[Violation]:
    """Every violation that is found in a home; or in one project of it, and then nothing of the others is read."""
    found: list[Violation] = []
    views: dict[tuple[str, str], MemoryView] = {}
    # Read first: what is committed now has its effect in everything that is read later.
    committed = await bus.committed(group=GROUP, topic=TOPIC) if bus is not None else {}
    for project in await projects(store):
        for view in await look(store, project) if only in (None, project) else ():
            views[view.project, view.memory] = view
            found += view.broken
            for checker in CHECKERS:
                found += await checker(store, view)
            if settled:
                found += every_mark_is_worked(view)
    if bus is not None:
        wrong = await offsets_follow_effects(bus, views, committed)
        found += [one for one in wrong if only is None or one.where.startswith(f"{only}/")]
        if settled:
            found += await every_run_reaches_an_end(bus, views)
    return found


async def projects(store: store_port.ObjectStore) -> list[str]:
    """The projects that hold anything."""
    return [name for name in await store.children("") if not name.startswith("_")]


# --- looking ----------------------------------------------------------------------------------------------


async def look(store: store_port.ObjectStore, project: str) -> list[MemoryView]:
    """Every memory of a project."""
    named: dict[str, list[str]] = {}
    async for row in store.list(f"{project}/"):
        named.setdefault(row.key.split("/")[1], []).append(row.key)
    names = {
        key.split("/")[3] for kind in (keys.ROLLOUTS, keys.RECORDS, keys.MARKS) for key in named.get(kind, ())
    }
    names |= {key.split("/")[3].removesuffix(".json") for key in named.get(keys.MEMORIES, ())}
    return [await _look(store, project, memory, named) for memory in sorted(names)]


async def _look(
    store: store_port.ObjectStore, project: str, memory: str, named: Mapping[str, Sequence[str]]
) -> MemoryView:
    reader = revisions.Reader(store)
    key = keys.memory_head(project, memory)
    view = MemoryView(project, memory, heads.Head(key, {}, None))
    try:
        view.rows = erasures.rows(await erasures.ledger(store, project))
    except errors.Fatal as exc:
        view.broken.append(Violation(ERASED, keys.erasure_ledger(project), exc.message))
    try:
        view.head = await reader.head(project, memory)
        view.revision = await reader.current(view.head, project, memory)
        if view.revision is not None:
            view.coverage = dict(view.revision.map("coverage").items())
    except errors.Fatal as exc:
        view.broken.append(Violation(DANGLING, key, exc.message))
    for key in _of(named.get(keys.ROLLOUTS, ()), memory):
        alias = key.rpartition("/")[2].removesuffix(".json")
        try:
            found = heads.parse(key, await store.get(key), fmt=rollouts.HEAD_FORMAT)
        except errors.Fatal as exc:
            view.broken.append(Violation(DANGLING, key, exc.message))
            continue
        if found.counter:
            view.rollouts[alias] = found
    for key in _of(named.get(keys.RECORDS, ()), memory):
        run, attempt = keys.record_name(key)
        view.records.setdefault(key.split("/")[4], {}).setdefault(run, {})[attempt] = key
    for key in _of(named.get(keys.MARKS, ()), memory):
        stored = await store.get(key)
        if stored is None:
            continue
        try:
            view.marks.append(marks.parse(key, stored.body))
        except errors.Fatal as exc:
            view.broken.append(Violation(MARKED, key, exc.message))
    return view


def _of(found: Iterable[str], memory: str) -> Iterable[str]:
    return (key for key in found if key.split("/")[3] == memory)


# --- 1 ----------------------------------------------------------------------------------------------------


@checks.of(DANGLING)
async def heads_name_what_exists(store: store_port.ObjectStore, view: MemoryView) -> list[Violation]:
    """A head must name a manifest that exists and verifies; a manifest must name only objects that exist."""
    out = []
    if view.revision is not None:
        for name in revisions.MAPS:
            try:
                entries = list(view.revision.map(name).items())
                if name == "files":
                    for _, entry in entries:
                        view.revision.frames.content(entry["sha256"])
                        view.revision.frames.content(entry["why"])
            except errors.Fatal as exc:
                out.append(
                    Violation(DANGLING, view.name, f"revision {view.revision.number}, {name}: {exc.message}")
                )
    for alias, head in view.rollouts.items():
        for run, entry in head.body["runs"].items():
            attempts = [int(entry["attempt"]), *(int(at) for at, _, _ in entry.get("earlier", ()))]
            for attempt in attempts:
                if attempt not in view.records.get(alias, {}).get(run, {}):
                    out.append(Violation(DANGLING, head.key, f"run {run} attempt {attempt} has no record"))
    return out


# --- 2 ----------------------------------------------------------------------------------------------------


@checks.of(ONCE)
async def runs_take_effect_once(store: store_port.ObjectStore, view: MemoryView) -> list[Violation]:
    """What a rollout's head says is a function of its records: no run twice, none missing, none older."""
    out = []
    for alias, head in view.rollouts.items():
        found, expected = await _rebuilt(store, view, alias, head)
        out += found
        if expected is not None and expected != head.body["summary"]:
            out.append(Violation(ONCE, head.key, "its summary is not the one that its records give"))
        covered = view.coverage.get(alias)
        if covered and int(covered["counter"]) > head.counter:
            out.append(
                Violation(ONCE, head.key, f"covered up to {covered['counter']}, but it is at {head.counter}")
            )
    for alias in view.coverage:
        if alias not in view.rollouts:
            out.append(Violation(ONCE, view.name, f"covers rollout {alias}, which has no head"))
    return out


async def _rebuilt(
    store: store_port.ObjectStore, view: MemoryView, alias: str, head: heads.Head
) -> tuple[list[Violation], Any]:
    """What is wrong with the records that a head names, and the summary that they give."""
    out: list[Violation] = []
    digests = []
    for run, entry in sorted(head.body["runs"].items()):
        known = {int(entry["attempt"]): entry["received"]}
        known |= {int(at): received for at, received, _ in entry.get("earlier", ())}
        if max(known) != int(entry["attempt"]):
            out.append(Violation(ONCE, head.key, f"run {run}: an earlier attempt replaced a later one"))
        for attempt, received in known.items():
            key = keys.record(view.project, view.memory, alias, run, attempt)
            stored = await store.get(key)
            if stored is None:
                return out, None  # Told by invariant 1.
            try:
                one = rollouts.decode(key, stored.body)
            except errors.Fatal as exc:
                out.append(Violation(DANGLING, key, exc.message))
                return out, None
            if (one.run, one.attempt, one.received) != (run, attempt, received):
                out.append(Violation(ONCE, key, "the record is not of the run that the head names"))
            if attempt == int(entry["attempt"]):
                digests.append(summarize.digest(one))
    if not summarize._same_rules(head.body.get("summary")):
        return out, None  # Made by other rules, or by a model: not to be computed again.
    return out, json.loads(json.dumps(rules.build(digests)))


# --- 3 ----------------------------------------------------------------------------------------------------


@checks.of(ONE_LINE)
async def revisions_form_one_line(store: store_port.ObjectStore, view: MemoryView) -> list[Violation]:
    """From the head back to revision 1, each manifest names the one before it, and coverage only grows."""
    out: list[Violation] = []
    if view.revision is None:
        return out
    reader = revisions.Reader(store)
    number, body = view.revision.number, view.revision.body
    if view.head.counter < number:
        out.append(
            Violation(ONE_LINE, view.head.key, f"counter {view.head.counter} is below revision {number}")
        )
    while True:
        parent = body.get("parent")
        if body["revision"] != number:
            out.append(
                Violation(ONE_LINE, view.name, f"manifest {number} says that it is {body['revision']}")
            )
        if not parent:
            if number != 1:
                out.append(Violation(ONE_LINE, view.name, f"the line ends at revision {number}"))
            return out
        if int(parent["revision"]) != number - 1:
            out.append(Violation(ONE_LINE, view.name, f"the parent of {number} is {parent['revision']}"))
            return out
        number -= 1
        try:
            body = await reader.manifest(view.project, view.memory, number, str(parent["manifest"]))
        except errors.Fatal as exc:
            out.append(Violation(ONE_LINE, view.name, exc.message))
            return out


@checks.of(ONE_LINE)
def moved_well(key: str, before: bytes | None, after: bytes | None) -> list[Violation]:
    """A head moves by exactly one from the version that was there, and is never deleted.

    For whoever sees every write of a head: the simulation, or a store that keeps versions.
    """
    if after is None:
        return [Violation(ONE_LINE, key, "the head was deleted")]
    old, new = json.loads(before) if before else {}, json.loads(after)
    out = []
    if new["counter"] != old.get("counter", 0) + 1:
        out.append(
            Violation(ONE_LINE, key, f"the counter went from {old.get('counter', 0)} to {new['counter']}")
        )
    was, now = int(old.get("revision") or 0), int(new.get("revision") or 0)
    if now - was not in (0, 1):
        out.append(Violation(ONE_LINE, key, f"the revision went from {was} to {now}"))
    lost = [name for name in old if name not in new]
    if lost:
        out.append(Violation(ONE_LINE, key, f"the fields {', '.join(lost)} did not survive the move"))
    missing = [
        run
        for run in old.get("runs", {})
        if run not in new.get("runs", {}) and not erasures.is_erased(new, run)
    ]
    if missing:
        out.append(Violation(ONCE, key, f"the runs {', '.join(missing)} are gone from the head"))
    return out


@checks.of(ONE_LINE)
async def follows(
    store: store_port.ObjectStore, project: str, memory: str, before: bytes | None, after: bytes
) -> list[Violation]:
    """The revision that a head moves to exists, has the one before as its parent, and covers no less."""
    old, new = json.loads(before) if before else {}, json.loads(after)
    if new.get("manifest") == old.get("manifest"):
        return []
    reader = revisions.Reader(store)
    where = f"{project}/{memory}"
    try:
        now = await reader.load(project, memory, int(new["revision"]), str(new["manifest"]))
        coverage = dict(now.map("coverage").items())
    except errors.Fatal as exc:
        return [Violation(DANGLING, where, exc.message)]
    parent = (old["revision"], old["manifest"]) if old.get("manifest") else None
    if now.parent != parent:
        return [
            Violation(
                ONE_LINE, where, f"revision {now.number} has parent {now.parent}, the head was at {parent}"
            )
        ]
    if parent is None:
        return []
    then = dict((await reader.load(project, memory, *parent)).map("coverage").items())
    lower = [
        name
        for name, entry in then.items()
        if coverage.get(name, {"counter": 0})["counter"] < entry["counter"]
    ]
    return (
        [Violation(ONCE, where, f"revision {now.number} covers less of {', '.join(lower)}")] if lower else []
    )


# --- 4 ----------------------------------------------------------------------------------------------------


def _was_erased(message: bus_port.Message, views: Mapping[tuple[str, str], MemoryView]) -> bool:
    """Whether a message that is no event says that it is of what was erased."""
    one = told.by_one_that_is_broken(message.headers, message.value)
    view = views.get((one.project, one.memory or "")) if one is not None else None
    if one is None or view is None:
        return False
    head = view.rollouts.get(one.rollout) or heads.Head("", {}, None)
    return one.is_erased(head, view.rows)


@checks.of(MARKED)
async def offsets_follow_effects(
    bus: bus_port.Bus, views: Mapping[tuple[str, str], MemoryView], committed: Mapping[int, int]
) -> list[Violation]:
    """Below the committed offsets every message has its effect; what is left to do for it is in a mark."""
    out = []
    buried = {letter.id for letter in await dead.read_all(bus)}
    async for message in bus.read(TOPIC):
        if message.offset >= committed.get(message.partition, 0):
            continue
        where = f"{message.topic}/{message.partition}/{message.offset}"
        is_buried = dead.letter_id(message.topic, message.partition, message.offset) in buried
        if is_buried or record.is_blank(message):
            continue
        try:
            incoming = record.parse(message)
        except errors.Poison:
            if not _was_erased(message, views):
                out.append(Violation(MARKED, where, "committed, but it is neither a run nor a dead letter"))
            continue
        project, memory, rollout = incoming.line_of
        where, view = f"{project}/{memory}: {where}", views.get((project, memory))
        if view is not None and view.is_erased(incoming):
            continue
        attempts = view.records.get(rollout, {}).get(incoming.run, {}) if view else {}
        if view is None or incoming.data.attempt not in attempts:
            out.append(Violation(MARKED, where, f"committed, but run {incoming.run} is not recorded"))
        elif view.end(rollout, incoming.run, incoming.data.attempt) is None and not view.marks_name(rollout):
            out.append(Violation(MARKED, where, f"run {incoming.run} waits, but no mark names {rollout}"))
    return out


# --- 8, 9, 11 ---------------------------------------------------------------------------------------------


@checks.of(HELD)
async def revisions_pass_the_guards(store: store_port.ObjectStore, view: MemoryView) -> list[Violation]:
    """What a head names holds nothing that the guards let no person pass; older rules had other guards."""
    if view.revision is None or view.revision.body.get("engine") != rules.ENGINE:
        return []
    with contextlib.suppress(errors.Fatal):  # Told by invariant 1.
        shown = {path: _part(view.revision, one) for path, one in view.revision.map("files").items()}
        found = guards.check(None, consolidate.load_state(view.revision).notes, shown)
        # A secret that a newer detector knows is for `runlore rescan`.
        told = [one for one in found if one.kind not in (*guards.SOFT, "secret")]
        return [Violation(HELD, view.name, f"revision {view.revision.number}: {one.message}") for one in told]
    return []


def _part(revision: revisions.Revision, entry: Mapping[str, Any]) -> render.Part:
    why = [tuple(span) for span in json.loads(revision.text(entry["why"]))]
    return render.Part(revision.text(entry["sha256"]), entry.get("rollout"), entry.get("subject"), why)


@checks.of(HELD)
async def held_rollouts_have_a_reason(store: store_port.ObjectStore, view: MemoryView) -> list[Violation]:
    """What waits for a person says since when and why, and for which version."""
    out = []
    for rollout, why in view.held.items():
        missing = [name for name in ("counter", "kind", "reason", "at") if not why.get(name)]
        if missing:
            out.append(Violation(HELD, view.name, f"held rollout {rollout} has no {', '.join(missing)}"))
        head = view.rollouts.get(rollout)
        if head is None or int(why.get("counter") or 0) > head.counter:
            out.append(Violation(HELD, view.name, f"held rollout {rollout} was never at that version"))
    return out


@checks.of(APART)
async def projects_and_subjects_are_apart(store: store_port.ObjectStore, view: MemoryView) -> list[Violation]:
    """Every object is of where it lies; a part about a subject rests on that subject's rollouts."""
    out = []
    for alias, head in view.rollouts.items():
        said = tuple(head.body.get(name) for name in ("project", "memory", "rollout"))
        if said != (view.project, view.memory, alias):
            out.append(Violation(APART, head.key, f"the head says that it is of {'/'.join(map(str, said))}"))
        if head.key != keys.rollout_head(view.project, view.memory, alias):
            out.append(Violation(APART, head.key, "the head does not lie where its name says"))
    if view.revision is None:
        return out
    said = (view.revision.body["project"], view.revision.body["memory"])
    if said != (view.project, view.memory):
        out.append(Violation(APART, view.name, f"its manifest is of {'/'.join(said)}"))
    known = _notes.Notes.load(dict(view.revision.map("notes").items()))
    if joint.settle(known) is not known:
        out.append(Violation(APART, view.name, "a joint statement has other support than its notes give it"))
    for path, entry in view.revision.map("files").items():
        owner, subject = entry.get("rollout"), entry.get("subject")
        head = view.rollouts.get(owner) if owner else None
        if head is None or int(view.coverage.get(owner, {"counter": 0})["counter"]) < head.counter:
            continue  # A run that is not taken in yet may be for another subject: the revision could not know.
        if owner in view.held:
            continue  # Of one that a revert took back it shows what it was then, to whom it was for then.
        if subject and head.body.get("subject") not in (None, subject):
            out.append(
                Violation(APART, view.name, f"part {path} is shown to a subject that its rollout is not of")
            )
    return out


@checks.of(SEEDS)
async def seeds_give_the_same_bytes(
    store: store_port.ObjectStore, project: str, memory: str, number: int, manifest: str
) -> list[Violation]:
    """A revision that was once named by a head still reads and verifies, every byte of it.

    Names are hashes of content, so whatever can be read under them is what was there.
    """
    try:
        revision = await revisions.Reader(store).load(project, memory, number, manifest)
        for name in revisions.MAPS:
            list(revision.map(name).items())
        for _, entry in revision.map("files").items():
            revision.text(entry["sha256"])
    except errors.Fatal as exc:
        return [Violation(SEEDS, f"{project}/{memory}", exc.message)]
    return []


# --- 12 ---------------------------------------------------------------------------------------------------


@checks.of(ENDS)
def every_mark_is_worked(view: MemoryView) -> list[Violation]:
    """Once faults stop and all work is done, no mark is left and nothing waits."""
    out, names = [], ", ".join(sorted({name for mark in view.marks for name in mark.rollouts}))
    if view.marks:
        out.append(Violation(ENDS, view.name, f"{len(view.marks)} marks are left, for {names}"))
    for rollout, runs in view.records.items():
        for run, attempts in runs.items():
            for attempt in attempts:
                if view.end(rollout, run, attempt) is None:
                    out.append(
                        Violation(ENDS, view.name, f"run {run} of {rollout} is not taken in and not held")
                    )
    return out


@checks.of(ENDS)
async def every_run_reaches_an_end(
    bus: bus_port.Bus, views: Mapping[tuple[str, str], MemoryView]
) -> list[Violation]:
    """Every accepted run is consolidated, superseded, held or dead."""
    out = []
    if lag := sum((await bus.lag(group=GROUP, topic=TOPIC)).values()):
        out.append(Violation(ENDS, TOPIC, f"{lag} messages are not committed"))
    buried = {letter.id for letter in await dead.read_all(bus)}
    async for message in bus.read(TOPIC):
        is_buried = dead.letter_id(message.topic, message.partition, message.offset) in buried
        if is_buried or record.is_blank(message):
            continue
        try:
            incoming = record.parse(message)
        except errors.Poison:
            if not _was_erased(message, views):
                what = f"message {message.offset} is neither a run nor a dead letter"
                out.append(Violation(ENDS, TOPIC, what))
            continue
        view = views.get(incoming.line_of[:2])
        if view is not None and view.is_erased(incoming):
            continue
        if view is None or view.end(incoming.line_of[2], incoming.run, incoming.data.attempt) is None:
            out.append(
                Violation(ENDS, TOPIC, f"run {incoming.run} attempt {incoming.data.attempt} has no end")
            )
    return out


Checker = Callable[[store_port.ObjectStore, MemoryView], Awaitable[list[Violation]]]
CHECKERS: tuple[Checker, ...] = (
    heads_name_what_exists,
    runs_take_effect_once,
    revisions_form_one_line,
    revisions_pass_the_guards,
    held_rollouts_have_a_reason,
    projects_and_subjects_are_apart,
)
