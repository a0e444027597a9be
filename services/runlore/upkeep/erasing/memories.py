"""A memory's line, without what is erased: a revision anew, then stubs in place of those that were shown it.

    side heads → memory's head → rollouts' heads → pack → manifest → CAS the head → stubs → packs → marks

What is dropped of the notes is what the rollouts supported, and every joint statement that rests on them: its words are
a model's, who was shown them. Of a rollout of which runs are left nothing stays either: a mark brings those runs back
through the guards, from the summary that was built anew. Whatever the line holds from the first revision that covered
any of it up to the new one becomes stubs, also where a rollout had left the notes by then: their packs hold its pages.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from runlore import clock, errors
from runlore.bus import port as bus_port
from runlore.commit import erasures, heads, keys, marks, pages, revisions, rollouts, sides
from runlore.consumers import consolidate, record, summarize
from runlore.consumers.runtime import Runtime
from runlore.events import models
from runlore.memory import joint, render
from runlore.store import port as store_port
from runlore.upkeep.erasing import rollouts as erasing_rollouts

Ports = tuple[store_port.ObjectStore, bus_port.Bus, revisions.Reader, Runtime]


@dataclass
class Line:
    """What an erasure does to one memory."""

    project: str
    memory: str
    name: str
    """The erasure's id."""
    targets: Mapping[str, erasures.Target]
    """By rollout."""
    heads: Mapping[str, heads.Head]
    """The rollouts' heads, which hold nothing of it any more."""
    strict: bool = False
    floor: int | None = None
    """The first revision that was shown any of it; None: none was, or nobody has looked yet."""
    clean: int | None = None
    """The first one without it."""
    stubs: int = 0
    packs: int = 0
    sides: list[str] = field(default_factory=list)
    doomed: set[str] = field(default_factory=set)
    """Packs that what is a stub now named."""


async def erase(ports: Ports, line: Line) -> None:
    """Make the memory hold nothing of it. Interrupted, or done, it may be done again."""
    store, bus, reader, _ = ports
    await _sides(ports, line)
    for restart in range(erasures.RESTARTS_MAX):
        head = await reader.head(line.project, line.memory)
        await _look(reader, head, line)
        told = (head.body.get("erased") or {}).get("erasure")
        if line.clean is not None or (line.floor is None and told == line.name):
            break
        try:
            head = await _moved(ports, head, line)
            break
        except errors.HeadMoved:
            await clock.sleep(0.005 * restart * clock.jitter())
    else:
        raise errors.StoreUnavailable(f"the head of memory {line.project}/{line.memory} is contended")
    if line.clean is not None and line.floor is not None:
        await _stubs(store, reader, line)
    await _packs(store, reader, line)
    await _bring_back(store, line)
    bell = models.Changed(kind="memory", project=line.project, memory=line.memory, counter=head.counter)
    await record.ring(bus, [bell])


async def _look(reader: revisions.Reader, head: heads.Head, line: Line) -> None:
    """Find, in the memory's line, the first revision that was shown any of it, and the one that this erasure made."""
    line.floor = line.clean = None
    if not head.body.get("manifest"):
        return
    is_shown = False
    async for body in reader.line(line.project, line.memory):
        for row in body["covers"]:
            target = line.targets.get(row["rollout"])
            taken = {run for run, _ in [*row["runs"], *row.get("edits", ())]}
            if target is not None and _names(target, line.heads[row["rollout"]], taken):
                line.floor, is_shown = int(body["revision"]), True
        takes_over = body["reason"] in revisions.TAKE_OVER and body.get("erasure") != line.name
        if takes_over and await _holds(reader, body, line):
            line.floor, is_shown = int(body["revision"]), True
        if (body.get("erased") or {}).get("erasure") == line.name:
            line.floor = int(body["revision"])
        if body.get("erasure") == line.name and not is_shown:
            line.clean = line.clean or int(body["revision"])


async def _holds(reader: revisions.Reader, body: Mapping[str, Any], line: Line) -> bool:
    """Whether a revision that took notes over has any of the targets, from before they were erased."""
    try:
        found = await reader.load(line.project, line.memory, int(body["revision"]), str(body["sha256"]))
    except errors.Erased:
        return False
    selected, coverage = found.map("selected"), found.map("coverage")
    taken = [name for name in line.targets if selected.get(name) is not None]
    return any(not _is_in_again(line.heads[name], coverage.get(name)) for name in taken)


def _names(target: erasures.Target, head: heads.Head, taken: set[str]) -> bool:
    """Whether a revision that took these runs in was shown something of the target."""
    return target.runs is None or any(erasures.is_erased(head.body, run) for run in taken)


async def _moved(ports: Ports, head: heads.Head, line: Line) -> heads.Head:
    """The memory's head, moved: also where nothing of it is in the line, so that whoever read an input starts again."""
    store, _, reader, _ = ports
    before = await reader.current(head, line.project, line.memory)
    without = {
        what: {name: one for name, one in (head.body.get(what) or {}).items() if name not in line.targets}
        for what in ("held", "approved")
    }
    changes: dict[str, Any] = {"project": line.project, "memory": line.memory, "held": without["held"]}
    changes |= {"approved": without["approved"]} if head.body.get("approved") else {}
    number = None
    if before is not None and line.floor is not None:
        draft = await _draft(ports, before, line)
        made = await revisions.write(
            store, reader, line.project, line.memory, parent=before, draft=draft, anew=True
        )
        changes |= {"revision": made.number, "manifest": made.sha256}
        number = made.number
    told = {"erasure": line.name, "at": clock.now_iso(), "counter": head.counter + 1, "revision": number}
    head = await heads.move(store, head, {**changes, "erased": told}, fmt=revisions.HEAD_FORMAT)
    line.clean = number
    return head


async def _draft(ports: Ports, before: revisions.Revision, line: Line) -> revisions.Draft:
    """What the next revision holds: whole, so that it needs no pack of the ones before."""
    runtime = ports[3]
    state = await runtime.offload(consolidate.load_state, before)
    layout = before.body["layout"]
    coverage = dict(before.map("coverage").items())
    gone = {name for name in line.targets if not _is_in_again(line.heads[name], coverage.get(name))}
    made = await runtime.offload(_without, state, gone, layout)
    if line.strict:
        made = await _from_the_rest(ports, made.state, line, layout)
    for name in gone & coverage.keys():
        if erasures.is_empty(line.heads[name].body):
            coverage[name] = {"counter": line.heads[name].counter, "updated_at": summarize.UNKNOWN}
    maps = {name: pages.PagedMap(None, _no_page) for name in revisions.MAPS}
    maps["coverage"].replace(coverage)
    maps["notes"].replace(made.state.notes.entries())
    maps["selected"].replace(dict(made.state.selected))
    contents, live = consolidate.lay_out(made.parts, maps["files"])
    facts = {
        "reason": "erasure",
        "erasure": line.name,
        "engine": before.body["engine"],
        "tokens": 0,
        "cost_usd": 0,
        "layout": layout,
        "covers": [],
        "totals": consolidate.totals(made.parts, made.state, len(coverage)),
    }
    return revisions.Draft(maps, contents, frozenset(live), facts)


def _no_page(name: str) -> bytes:
    raise errors.Corrupt(f"a map that is made anew has no page {name[:12]}")


def _is_in_again(head: heads.Head, covered: Mapping[str, Any] | None) -> bool:
    """Whether what is left of a rollout was taken in since it was erased from it."""
    if erasures.is_empty(head.body) or covered is None:
        return False
    return int(covered["counter"]) >= erasures.newest(head.body)


def _without(state: consolidate.Memory, gone: set[str], layout: Mapping[str, Any]) -> consolidate.Made:
    """The state without what these rollouts supported, and without what a model made of it. Pure."""
    now = joint.dropped(state.notes, gone)
    selected = {name: at for name, at in state.selected.items() if name not in gone}
    return consolidate.Made(
        consolidate.Memory(now, selected), render.parts(now, models.Layout(**layout), None)
    )


async def _from_the_rest(
    ports: Ports, state: consolidate.Memory, line: Line, layout: Mapping[str, Any]
) -> consolidate.Made:
    """The notes made anew from the summaries of the rollouts that are left: nothing is taken over."""
    store, _, _, runtime = ports
    named = [keys.rollout_head(line.project, line.memory, name) for name in sorted(state.selected)]
    found = await store.get_many(named)
    read = [heads.parse(key, one, fmt=rollouts.HEAD_FORMAT) for key, one in zip(named, found, strict=True)]
    batch = {str(one.body["rollout"]): one for one in read if one.counter and one.body.get("runs")}
    empty = consolidate.Memory(state.notes.load({}), {})
    _, _, made = await runtime.offload(consolidate.accept, empty, batch, layout)
    return (
        made
        if made.parts
        else consolidate.Made(empty, render.parts(empty.notes, models.Layout(**layout), None))
    )


# --- stubs ------------------------------------------------------------------------------------------------


async def _stubs(store: store_port.ObjectStore, reader: revisions.Reader, line: Line) -> None:
    """Put stubs in place of the manifests from the clean revision back to the floor.

    The floor's own goes last: whoever goes on after a crash finds the floor by it.
    """
    assert line.floor is not None and line.clean is not None
    async for body in reader.line(line.project, line.memory):
        if line.floor <= int(body["revision"]) < line.clean and not body.get("erased"):
            await _stub(store, line, body)


async def _packs(store: store_port.ObjectStore, reader: revisions.Reader, line: Line) -> None:
    """Delete the packs that stubs alone named.

    They may go at once: whoever builds on them moves a head that has moved. What a crash leaves of a side line's
    nothing names, and the sweep of the second date takes it.
    """
    kept: set[str] = set()
    async for body in reader.line(line.project, line.memory):
        kept |= {str(one["sha256"]) for one in body["packs"]}
        told = body.get("erased") or {}
        line.doomed |= set(told["packs"]) if told.get("erasure") == line.name else set()
    for one in await sides.all_heads(store, line.project):
        if one.body.get("memory") == line.memory:
            async for body in _line_of(reader, one, line):
                kept |= {str(pack["sha256"]) for pack in body["packs"]}
    wanted = [keys.pack(line.project, pack) for pack in sorted(line.doomed - kept)]
    line.packs += await erasing_rollouts.delete(
        store, [key for key in wanted if await store.get_range(key, 0, 1) is not None]
    )


async def _stub(store: store_port.ObjectStore, line: Line, body: Mapping[str, Any]) -> None:
    where = keys.manifest(line.project, line.memory, int(body["revision"]), str(body["sha256"]))
    await store.put(where, revisions.stub_of(body, line.name, clock.now_iso()))
    line.stubs += 1


async def _line_of(reader: revisions.Reader, head: heads.Head, line: Line) -> AsyncIterator[dict[str, Any]]:
    """Every manifest that a side's head names, or named within the term."""
    for start in sides.kept(head.body, clock.now()):
        async for body in reader.line_from(line.project, line.memory, start):
            yield body


async def _sides(ports: Ports, line: Line) -> None:
    """Drop every side line that was shown it, with all its revisions: it can be built again from what is left."""
    store, _, reader, _ = ports
    for restart in range(erasures.RESTARTS_MAX):
        contended = False
        for head in await sides.all_heads(store, line.project):
            if head.body.get("memory") != line.memory:
                continue
            bodies = [body async for body in _line_of(reader, head, line)]
            is_tainted = any(
                row["rollout"] in line.targets for body in bodies for row in body["covers"]
            ) or bool(line.targets.keys() & (head.body.get("held") or {}).keys())
            # Interrupted, it names what is a stub already.
            is_tainted = is_tainted or any(body.get("erased") for body in bodies)
            if not is_tainted:
                continue
            for body in bodies:
                line.doomed |= {str(one["sha256"]) for one in body["packs"]}
                line.doomed |= set((body.get("erased") or {}).get("packs", ()))
                if not body.get("erased"):
                    await _stub(store, line, body)
            gone = {"state": sides.DROPPED, "revision": None, "manifest": None, "held": {}, "setup": None}
            try:
                await heads.move(
                    store, head, {**gone, "was": [], "reason": f"erasure {line.name}"}, fmt=sides.FORMAT
                )
                line.sides.append(str(head.body["side"]))
            except errors.HeadMoved:
                contended = True
        if not contended:
            return
        await clock.sleep(0.005 * restart * clock.jitter())
    raise errors.StoreUnavailable(f"the side lines of {line.project}/{line.memory} are contended")


async def _bring_back(store: store_port.ObjectStore, line: Line) -> None:
    """Mark the rollouts of which runs are left: consolidation takes them in anew, through the guards."""
    left = {
        name: one.counter
        for name, one in line.heads.items()
        if one.body.get("runs") and not erasures.is_whole(one.body)
    }
    if left:
        await marks.put(store, line.project, line.memory, left, counters=left)


def part(targets: Sequence[erasures.Target], memory: str) -> dict[str, erasures.Target]:
    """The targets in one memory, by rollout: where one is named twice, the larger."""
    out: dict[str, erasures.Target] = {}
    for one in targets:
        if one.memory != memory:
            continue
        other = out.get(one.rollout)
        if other is None or one.runs is None:
            out[one.rollout] = one
        elif other.runs is not None:
            out[one.rollout] = replace(one, runs=tuple(sorted({*one.runs, *other.runs})))
    return out
