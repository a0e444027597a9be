"""Marks: small durable objects that say what is left to do, and for which rollouts.

A stage puts its mark after its effect and before its offset, on every delivery, also where the effect was
there already (invariant 4). A mark is its own object under a name never used twice, and is deleted by that
name, exactly when nothing it names is uncovered. Each of these words closes a hole (docs/DESIGN.md, "Marks").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from runlore import clock, errors
from runlore.commit import keys, puts
from runlore.events import envelope
from runlore.store import port

FORMAT = "runlore.mark/1"


@dataclass(frozen=True)
class Mark:
    """One mark as read."""

    key: str
    rollouts: tuple[str, ...]
    put_at: str
    releases: Mapping[str, int] = field(default_factory=dict)
    """Rollout → the hold on it that this mark lifts (the counter of the head's move that made the hold)."""
    approves: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Rollout → the keys of the violations that a person let pass with that hold."""
    reason: str | None = None
    counters: Mapping[str, int] = field(default_factory=dict)
    """Rollout → the counter at which its head covers what this mark waits for, where whoever put it saw that."""
    sizes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Rollout → the runs that an ask waits for (`<run>.<attempt>`) → their size in tokens, estimated."""
    is_refresh: bool = False
    """Whether it says that all that waits beside it is to be worked now."""


async def put(
    store: port.ObjectStore,
    project: str,
    memory: str,
    rollouts: Iterable[str],
    *,
    counters: Mapping[str, int] | None = None,
    releases: Mapping[str, int] | None = None,
    approves: Mapping[str, Sequence[str]] | None = None,
    reason: str | None = None,
    kind: str = keys.MARKS,
    sizes: Mapping[str, Mapping[str, int]] | None = None,
    is_refresh: bool = False,
) -> str:
    """Put one mark for `rollouts` of a memory; its key.

    `kind`: what they wait for: consolidation, or a model's summary (`keys.ASKS`), or a model's consolidation
    (`keys.JOINS`). Each wait has marks of its own.
    `counters`: where each one's head stands that covers the runs which the mark is put for. `releases`, `approves`
    and `reason`: the holds that a person lifts, and what they let pass. `sizes` and `is_refresh`: of an ask, for when
    it is due (`models/due.py`).
    """
    body = {
        "format": FORMAT,
        "project": project,
        "memory": memory,
        "rollouts": sorted(set(rollouts)),
        "put_at": clock.now_iso(),
    }
    if counters:
        body["counters"] = dict(counters)
    if releases:
        body |= {"releases": dict(releases), "reason": reason}
        body |= {"approves": {name: list(keys) for name, keys in approves.items()}} if approves else {}
    if sizes:
        body["sizes"] = {rollout: dict(runs) for rollout, runs in sizes.items()}
    if is_refresh:
        body["refresh"] = True

    async def put_one() -> str:
        # A fresh name each time: after a lost reply two marks may stand, and the second costs one look.
        key = keys.mark(project, memory, clock.new_id(), kind)
        try:
            await store.put_if_absent(key, envelope.dump(body))
            return key
        except errors.PreconditionFailed as exc:
            raise errors.WriteConflict(f"the name of a mark is taken: {key}", key=key) from exc

    return await puts.again(put_one, what=f"a mark for {project}/{memory}")


async def read_all(
    store: port.ObjectStore, project: str, memory: str, *, marks_max: int, kind: str = keys.MARKS
) -> list[Mark]:
    """The oldest `marks_max` marks of a memory, oldest first (their names sort by time)."""
    found: list[str] = []
    async for row in store.list(keys.marks(project, memory, kind)):
        found.append(row.key)
        if len(found) == marks_max:
            break
    stored = await store.get_many(found)
    # One that is gone meanwhile was worked by somebody else.
    return [parse(key, one.body) for key, one in zip(found, stored, strict=True) if one is not None]


def parse(key: str, raw: bytes) -> Mark:
    try:
        body = envelope.kept(raw)
        optional = {
            name: body[name] for name in ("releases", "approves", "reason", "counters") if name in body
        }
        sizes = {rollout: dict(runs) for rollout, runs in body.get("sizes", {}).items()}
        is_refresh = bool(body.get("refresh", False))
        put_at = str(body.get("put_at", ""))
        counts = [*body.get("counters", {}).values(), *body.get("releases", {}).values()]
        lists = [list(some) for some in body.get("approves", {}).values()]
        texts = [*body["rollouts"], *(one for some in lists for one in some)]
        if any(type(one) is not int for one in counts) or any(type(one) is not str for one in texts):
            raise ValueError
        return Mark(key, tuple(body["rollouts"]), put_at, **optional, sizes=sizes, is_refresh=is_refresh)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise errors.Corrupt(f"the mark {key} is not a mark", key=key) from None


def covered_from(marks: Iterable[Mark]) -> dict[str, int]:
    """Rollout → the counter from which its head covers what all these marks wait for, where each of them says it."""
    found: dict[str, int] = {}
    unsaid: set[str] = set()
    for mark in marks:
        for rollout in mark.rollouts:
            if rollout in mark.counters:
                found[rollout] = max(found.get(rollout, 0), int(mark.counters[rollout]))
            else:
                unsaid.add(rollout)
    return {rollout: counter for rollout, counter in found.items() if rollout not in unsaid}


async def delete(store: port.ObjectStore, marks: Sequence[Mark]) -> None:
    """Delete these marks by name. What is lost of this is deleted by whoever looks next."""
    if marks:
        # Together: one by one, those of a memory that many runs end in take longer than all else of its pass.
        await store.delete_many([mark.key for mark in marks])


async def projects(store: port.ObjectStore) -> list[str]:
    """The projects of a store: every top-level part that can be a project's name."""
    return [name for name in await store.children("") if not name.startswith("_")]


async def standing(
    store: port.ObjectStore, kind: str = keys.MARKS, *, among: Sequence[str] | None = None
) -> dict[tuple[str, str], list[float]]:
    """Every (project, memory) that has a mark, and when each of its marks was put (seconds since 1970).

    `among`: the projects to look at, where they were listed already; a LIST each.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for project in among if among is not None else await projects(store):
        async for row in store.list(f"{project}/{kind}/"):
            found.setdefault((project, row.key.split("/")[3]), []).append(row.modified)
    return found


async def marked(store: port.ObjectStore) -> set[tuple[str, str]]:
    """Every (project, memory) that has a mark."""
    return set(await standing(store))


async def waiting(store: port.ObjectStore, *, marks_max: int = 10_000) -> list[Mark]:
    """Every mark there is, up to `marks_max` per memory: what consolidation still has to do."""
    found = []
    for project, memory in sorted(await marked(store)):
        found += await read_all(store, project, memory, marks_max=marks_max)
    return found
