"""Promote: a side line's notes become the memory's next revision, by one compare-and-set.

    head → side → heads of rollouts that the side lacks runs of → pack → manifest → CAS the head → put join → ring

The parent is the memory's present revision, and its coverage stays, so no mark and no run is forgotten: what is still
to be taken in is taken in after, as ever. Rollouts of which the memory has taken in runs that the side does not know
are taken in anew, in the same revision, from their heads; what the side's model said of their earlier runs stays. What
the memory holds for review stays held, and its notes are left out. `runlore revert` takes all of it back.

Heads of rollouts do not move. So what the side's model said of a rollout stands until that rollout's next run, and from
then on what the memory's own model says: whoever wants the same one from there on sets it (docs/MODELS.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from runlore import clock, errors
from runlore.bus import port as bus_port
from runlore.commit import heads, keys, marks, revisions, rollouts, sides
from runlore.consumers import approvals, consolidate, rebuild, record, summarize
from runlore.consumers.runtime import SEQUENTIAL, Runtime
from runlore.events import models
from runlore.memory import joint
from runlore.store import port as store_port


@dataclass(frozen=True)
class Promoted:
    """What a promotion did."""

    revision: int
    side_revision: int
    taken_in: tuple[str, ...] = ()
    """Rollouts of which the side lacked runs."""
    held: tuple[str, ...] = ()
    """Of those, the ones that a guard refused."""


async def promote(
    store: store_port.ObjectStore,
    bus: bus_port.Bus,
    reader: revisions.Reader,
    project: str,
    memory: str,
    side: str,
    *,
    reason: str,
    joins: bool = False,
    runtime: Runtime = SEQUENTIAL,
) -> Promoted:
    """Make the notes of a side line the memory's. Interrupted, the same call does it, or finds it done.

    `joins`: whether there is a model that brings statements together: those of the side it has not seen.

    Raises `errors.NotFound`; `errors.Refused` where the side is not finished or too far behind; and
    `errors.GuardFailed` where its own notes do not pass.
    """
    name, floor = clock.new_id(), None
    for _ in range(summarize.RESTARTS_MAX):
        head = await reader.head(project, memory)
        before = await reader.current(head, project, memory)
        if before is None:
            raise errors.Refused(
                f"memory {project}/{memory} has no revision yet", hint="`runlore up` makes its first"
            )
        floor = before.number if floor is None else floor
        done = await _landed(reader, before, floor, name)
        if done is None:
            wanted = await _side(reader, before, side)
            done = _is_promoted(before.body, wanted[1])
        if done is None:
            try:
                done, head = await _moved((store, reader, runtime), head, before, wanted, name, reason)
            except errors.HeadMoved:
                continue
        if joins:
            await marks.put(store, project, memory, [*done.taken_in], kind=keys.JOINS)
        bell = models.Changed(kind="memory", project=project, memory=memory, counter=head.counter)
        await record.ring(bus, [bell])
        return done
    raise errors.StoreUnavailable(f"the head of memory {project}/{memory} is contended")


async def _landed(
    reader: revisions.Reader, before: revisions.Revision, floor: int, name: str
) -> Promoted | None:
    """This very promotion, where it landed though its reply was lost: perhaps others came after it."""
    start = (before.number, before.sha256)
    if before.number == floor:
        return None
    async for body in reader.line_from(before.project, before.memory, start):
        if int(body["revision"]) == floor:
            break
        if (body.get("promoted") or {}).get("id") == name:
            return _promoted(body)
    return None


def _is_promoted(body: Mapping[str, Any], side: revisions.Revision) -> Promoted | None:
    """Whether the memory's present revision is a promotion of this very revision: of somebody who was interrupted."""
    return _promoted(body) if (body.get("promoted") or {}).get("manifest") == side.sha256 else None


def _promoted(body: Mapping[str, Any]) -> Promoted:
    promoted = body["promoted"]
    taken = tuple(one["rollout"] for one in body["covers"])
    return Promoted(int(body["revision"]), int(promoted["revision"]), taken, tuple(promoted["held"]))


async def _side(
    reader: revisions.Reader, before: revisions.Revision, side: str
) -> tuple[heads.Head, revisions.Revision]:
    head = await reader.head(before.project, before.memory, side=side)
    if head.body["state"] != sides.BUILT:
        raise errors.Refused(
            f"side line {side} is not finished",
            hint="`runlore rebuild` with the same --as goes on building it",
        )
    found = await reader.current(head, before.project, before.memory)
    if found is None:
        raise errors.Refused(f"side line {side} holds nothing: each of its rollouts is held")
    return head, found


async def _lacking(
    store: store_port.ObjectStore,
    before: revisions.Revision,
    side: revisions.Revision,
    held: Mapping[str, Any],
) -> dict[str, heads.Head]:
    """The heads of rollouts that the side has not as the memory has them, as the promotion takes them in.

    Those of which the memory took in a run since; and those of which a rescan has hidden something that the side's
    notes may still hold.
    """
    known = {name: int(entry["counter"]) for name, entry in side.map("coverage").items()}
    covered = {name: int(entry["counter"]) for name, entry in before.map("coverage").items()}
    behind = {name for name, counter in covered.items() if counter > known.get(name, 0)}
    wanted = sorted((behind | {name for name, _ in side.map("selected").items()}) - held.keys())
    out: dict[str, heads.Head] = {}
    for first in range(0, len(wanted), rebuild.HEADS_AT_ONCE):
        some = wanted[first : first + rebuild.HEADS_AT_ONCE]
        named = [keys.rollout_head(before.project, before.memory, name) for name in some]
        found = await store.get_many(named)
        for name, key, stored in zip(some, named, found, strict=True):
            head = heads.parse(key, stored, fmt=rollouts.HEAD_FORMAT)
            counter = known.get(name, 0)
            is_hidden = rebuild.is_hidden_since(head.body, counter)
            if head.counter and (is_hidden or (name in behind and rebuild.lacks(head.body, counter))):
                own = name not in known or is_hidden
                part = head.body.get("model") if own else rebuild.part_of(side, head)
                out[name] = replace(head, body={**head.body, "model": part})
    return out


async def _moved(
    ports: tuple[store_port.ObjectStore, revisions.Reader, Runtime],
    head: heads.Head,
    before: revisions.Revision,
    wanted: tuple[heads.Head, revisions.Revision],
    name: str,
    reason: str,
) -> tuple[Promoted, heads.Head]:
    """Write the revision and move the head to it. Raises `errors.HeadMoved`."""
    store, reader, runtime = ports
    side_head, side = wanted
    where = f"{before.project}/{before.memory}"
    held: dict[str, Any] = dict(head.body.get("held", {}))
    batch = await _lacking(store, before, side, held)
    if len(batch) > consolidate.ROLLOUTS_PER_REVISION_MAX:
        raise errors.Refused(
            f"side line {side_head.body['side']} lacks runs of {len(batch)} rollouts that {where} has; at most"
            f" {consolidate.ROLLOUTS_PER_REVISION_MAX} are taken in with a promotion",
            hint="`runlore rebuild` with the same --as brings it up to date",
        )
    layout = head.body.get("layout") or before.body["layout"]
    state = await runtime.offload(_state, side, before, held)
    passes = approvals.let_pass(head.body, [])
    made, found = await runtime.offload(consolidate.judge, state, {}, layout)
    violations = approvals.left(found, passes, ())
    if made is None or violations:
        first = "; ".join(f"{one.kind}: {one.message}" for one in violations[:3])
        raise errors.GuardFailed(f"side line {side_head.body['side']} does not pass the guards: {first}")
    accepted: list[str] = []
    guilty: dict[str, Any] = {}
    if batch:
        accepted, guilty, made = await runtime.offload(consolidate.accept, state, batch, layout, None, passes)
        if not accepted:
            made, _ = await runtime.offload(consolidate.judge, state, {}, layout)
    assert made is not None
    held |= {
        one: approvals.hold(batch[one], why, head.counter + 1, before.number) for one, why in guilty.items()
    }
    if (waits := len(approvals.waiting(held))) > consolidate.HELD_MAX:
        raise consolidate.ReviewFull(
            f"memory {where} would hold {waits} rollouts for review; at most {consolidate.HELD_MAX} can be",
            hint="`runlore review` lists them with reasons",
        )
    draft = await runtime.offload(consolidate.draft_of, before, made, batch, accepted, layout)
    promoted = {
        "id": name,
        "side": side_head.body["side"],
        "revision": side.number,
        "manifest": side.sha256,
        "held": sorted(guilty),
    }
    own = {"reason": "promote", "note": reason, "promoted": promoted, "engine": side.body["engine"]}
    draft = replace(draft, facts={**draft.facts, **own})
    revision = await revisions.write(store, reader, before.project, before.memory, parent=before, draft=draft)
    changes = {"revision": revision.number, "manifest": revision.sha256, "held": held}
    head = await heads.move(store, head, changes, fmt=revisions.HEAD_FORMAT)
    done = Promoted(revision.number, side.number, tuple(sorted(accepted)), tuple(sorted(guilty)))
    return done, head


def _state(
    side: revisions.Revision, before: revisions.Revision, held: Mapping[str, Any]
) -> consolidate.Memory:
    """The side's notes, without those of rollouts that the memory holds; what a model was shown stays shown."""
    state = consolidate.load_state(side)
    kept = joint.keep_told(state.notes, consolidate.load_state(before).notes)
    for rollout in sorted(held):
        kept = kept.drop(rollout)
    selected = {name: at for name, at in state.selected.items() if name not in held}
    return consolidate.Memory(kept, selected)
