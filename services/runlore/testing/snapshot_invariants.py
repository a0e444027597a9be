"""The invariants of snapshots as checkers, for the simulation and for `runlore verify` (docs/DESIGN.md).

They read any `ObjectStore`, write nothing, and say what is wrong without raising on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import blake3

from runlore import clock, errors, pipeline
from runlore.bus import port as bus_port
from runlore.commit import erasures, heads, keys, lines, rollouts
from runlore.consumers import dead, record, snapshot
from runlore.snapshots import names, packs, reading
from runlore.store import port as store_port
from runlore.testing import checks
from runlore.testing.invariants import DANGLING, Violation

BASES = "5 a snapshot head moves only from the base that was seen"
RESTORABLE = "6 what is published can be restored"
KEPT = "7 what a head named stays for its term"
PLACED = "12 every workspace reaches an end"


async def check(store: store_port.ObjectStore, project: str) -> list[Violation]:
    """Every violation on the lines of a project."""
    found: list[Violation] = []
    async for row in store.list(f"{project}/{keys.WORKSPACES}/"):
        try:
            head = heads.parse(row.key, await store.get(row.key), fmt=lines.HEAD_FORMAT)
        except errors.Fatal as exc:
            found.append(Violation(DANGLING, row.key, exc.message))
            continue
        found += body_makes_sense(row.key, head.body)
        found += await refs_are_whole(store, project, head)
    return found


@checks.of(BASES)
def body_makes_sense(key: str, body: Mapping[str, Any]) -> list[Violation]:
    """What a head says of itself: versions only grow, a child never moved it, each run stands in one place."""
    out = []
    versions = [int(one["version"]) for one in body.get("versions", ())]
    if body.get("ref"):
        versions.append(int(body["version"]))
        if int(body["version"]) > int(body["counter"]):
            out.append(
                Violation(BASES, key, f"version {body['version']} is above the counter {body['counter']}")
            )
        if int(body["base"]["version"]) >= int(body["version"]):
            out.append(Violation(BASES, key, "its version does not come after its base"))
    if versions != sorted(set(versions)):
        out.append(Violation(BASES, key, f"its versions are {versions}"))
    for name, entry in body.get("branches", {}).items():
        if entry.get("run") not in (None, name):
            out.append(Violation(BASES, key, f"branch {name} is of run {entry['run']}"))
    return out


@checks.of(KEPT)
async def refs_are_whole(store: store_port.ObjectStore, project: str, head: heads.Head) -> list[Violation]:
    """Every snapshot that a head names, or named within its term, has its packs, and trees that name only what is
    in them."""
    out = []
    named = lines.named(head.body)
    for ref in sorted(lines.kept(head.body, clock.now())):
        rule = DANGLING if ref in named else KEPT
        try:
            opened = await reading.open_exact(store, project, names.Ref.parse(ref))
            absent = [key for key in sorted(opened.packs()) if await store.get_tail(key, 1) is None]
        except (errors.RunloreError, ValueError) as exc:
            out.append(Violation(rule, head.key, f"{ref[:12]} can not be opened: {exc}"))
            continue
        out += [Violation(rule, head.key, f"{ref[:12]} needs {key}, which is not there") for key in absent]
        if not absent:
            out += await trees_are_whole(head.key, opened)
    return out


@checks.of(RESTORABLE)
async def trees_are_whole(where: str, opened: reading.Opened) -> list[Violation]:
    """Every tree of a snapshot can be read, and every chunk that it names lies in a pack."""
    label = opened.ref.id[:12]
    if opened.record.kind != reading.trees.TREE:
        wanted = set(opened.record.chunks)
    else:
        wanted = set()
        try:
            async for _, tree in opened.walk():
                for file in tree.files.values():
                    wanted.update(file.chunks)
        except errors.Fatal as exc:
            return [Violation(RESTORABLE, where, f"{label}: {exc.message}")]
    missing = opened.index.missing(wanted)
    return [Violation(RESTORABLE, where, f"{label}: {len(missing)} chunks are in no pack")] if missing else []


@checks.of(DANGLING)
async def packs_have_their_names(store: store_port.ObjectStore, project: str) -> list[Violation]:
    """Every pack has the bytes that its name promises. Reads everything."""
    out = []
    for kind in (keys.SNAPSHOTS, keys.BLOBS):
        async for row in store.list(f"{project}/{kind}/"):
            stored = await store.get(row.key)
            if stored is None:
                continue
            if blake3.blake3(stored.body).hexdigest() != row.key.rpartition("/")[2]:
                out.append(Violation(DANGLING, row.key, "it has other bytes than its name says"))
                continue
            try:
                packs.parse_end(stored.body)
            except errors.Fatal as exc:
                out.append(Violation(DANGLING, row.key, exc.message))
    return out


@checks.of(PLACED)
async def every_workspace_reaches_an_end(store: store_port.ObjectStore, bus: bus_port.Bus) -> list[Violation]:
    """Each workspace of each event on the bus is on its line, or the event is dead. Only once work is settled."""
    buried = {letter.id for letter in await dead.read_all(bus)}
    out = []
    async for message in bus.read(pipeline.RUNS.name):
        try:
            incoming = record.parse(message)
        except errors.Poison:
            continue
        for workspace in incoming.data.workspaces:
            work = snapshot.Work(incoming, workspace)
            left, found = workspace.snapshot, work.base.snapshot
            if left is not None and lines.id_of(left) == found:
                continue  # It left what it found.
            head = await lines.read(store, work.line)
            if await _is_erased(store, incoming, head):
                continue
            done = await lines.outcomes(store, work.line, incoming.run)
            placed = lines.place(head.body, done, incoming.run, incoming.data.attempt)
            letter = dead.letter_id(message.topic, message.partition, message.offset, "snapshot")
            if placed is None and letter not in buried:
                run = f"run {incoming.run} attempt {incoming.data.attempt}"
                out.append(Violation(PLACED, str(work.line), f"{run} is neither on the line nor dead"))
    return out


async def _is_erased(store: store_port.ObjectStore, incoming: record.Incoming, line: heads.Head) -> bool:
    project, memory, rollout = incoming.line_of
    key = keys.rollout_head(project, memory, rollout)
    head = await heads.read(store, key, fmt=rollouts.HEAD_FORMAT)
    return any(erasures.is_erased(body, incoming.run) for body in (head.body, line.body))


@checks.of(BASES)
def moved_well(key: str, before: bytes | None, after: bytes | None) -> list[Violation]:
    """A line's head moves by one, from the base that it says, and is never deleted. For whoever sees every write."""
    if after is None:
        return [Violation(BASES, key, "the head was deleted")]
    old, new = json.loads(before) if before else {}, json.loads(after)
    out = []
    if new["counter"] != old.get("counter", 0) + 1:
        out.append(
            Violation(BASES, key, f"the counter went from {old.get('counter', 0)} to {new['counter']}")
        )
    if new.get("version", 0) != old.get("version", 0):
        said = lines.Base(int(new["base"]["version"]), new["base"]["snapshot"])
        by, was = new["moved_by"], old.get("moved_by", {})
        own = by.get("run") is not None and by.get("run") == was.get("run") and by["attempt"] > was["attempt"]
        if said != lines.base_of(old) and not (own and new["base"] == old.get("base")):
            out.append(Violation(BASES, key, f"moved from {lines.base_of(old)}, but its writer saw {said}"))
    gone = lines.named(old) - lines.named(new) - {one["ref"] for one in new.get("superseded", ())}
    if gone:
        out.append(Violation(KEPT, key, f"{len(gone)} refs are gone without a date"))
    return out


@checks.of(BASES)
async def forgets_nothing(
    store: store_port.ObjectStore, key: str, before: bytes | None, after: bytes
) -> list[Violation]:
    """Each run that a move makes the head forget has an outcome by then."""
    old, new = json.loads(before) if before else {}, json.loads(after)
    line = lines.Line(new["project"], new["rollout"], new["agent"])
    out = []
    for run, attempt in lines.runs_of(old).keys() - lines.runs_of(new).keys():
        if attempt not in await lines.outcomes(store, line, run):
            out.append(Violation(BASES, key, f"run {run} attempt {attempt} is forgotten without an outcome"))
        elif not new.get("forgot"):
            out.append(
                Violation(BASES, key, f"run {run} attempt {attempt} is forgotten, and nobody would ask")
            )
    return out
