"""The rollouts of an erasure: their heads become what remains, then their records go.

    CAS the rollout's head, which says what was erased → note what its records name → records, answers, outcomes, asks

The head first: from then on no writer that read it before can move it, and none that reads it takes the run in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from runlore import clock, errors
from runlore.commit import erasures, heads, keys, marks
from runlore.commit import rollouts as commit_rollouts
from runlore.consumers import summarize
from runlore.consumers.runtime import Runtime
from runlore.events import envelope, models
from runlore.models import answers
from runlore.store import port

META_BYTES = 64 * 1024
"""How much of a record is read for its metadata, which is its first line; a longer one is read whole."""
KEPT = ("format", "project", "memory", "rollout", "layout", "counter", "moved_at")
"""What a head from which everything was erased keeps of its fields."""
ASKS_MAX = 10_000
DELETE_BATCH = 500


async def tombstone(
    store: port.ObjectStore, project: str, name: str, target: erasures.Target, runtime: Runtime
) -> heads.Head:
    """The rollout's head, moved so that it holds nothing of the target and says so. Done before: as it is."""
    for restart in range(erasures.RESTARTS_MAX):
        head = await summarize.read(store, project, target.memory, target.rollout)
        known: dict[str, Any] = head.body.get("runs", {})
        gone = runs_of(known, target)
        said = (
            erasures.is_whole(head.body)
            if target.runs is None
            else all(erasures.is_erased(head.body, run) for run in target.runs)
        )
        if said and not gone:
            return head
        at = clock.now_iso()
        marked = erasures.marked(
            head.body,
            name,
            None if target.runs is None else sorted({*gone, *target.runs}),
            counter=head.counter + 1,
            at=at,
        )
        left = {run: entry for run, entry in known.items() if run not in gone}
        changes = (
            await _remaining(store, head, left, runtime) if left else _nothing(head.body, project, target)
        )
        try:
            return await heads.move(
                store, head, {**changes, "erased": marked}, fmt=commit_rollouts.HEAD_FORMAT
            )
        except errors.HeadMoved:
            await clock.sleep(0.005 * restart * clock.jitter())
    raise errors.StoreUnavailable(f"the head of rollout {target.rollout} in {project} is contended")


def runs_of(known: dict[str, Any], target: erasures.Target) -> set[str]:
    """The runs of a head that a target names: with a run go the live edits that it made."""
    if target.runs is None:
        return set(known)
    named = set(target.runs)
    return {run for run, entry in known.items() if run in named or entry.get("edit_of") in named}


async def _remaining(
    store: port.ObjectStore, head: heads.Head, left: dict[str, Any], runtime: Runtime
) -> dict[str, Any]:
    """The fields of a head that holds these runs alone. What a model said of it goes: it is asked anew."""
    summary = await summarize.rebuilt(store, replace(head, body={**head.body, "runs": left}), runtime)
    return {
        "runs": left,
        "summary": summary,
        "subject": (summary or {}).get("subject"),
        "model": None,
        "updated_at": summarize.latest(entry["ended_at"] for entry in left.values()),
    }


def _nothing(body: dict[str, Any], project: str, target: erasures.Target) -> dict[str, Any]:
    """The fields of a head that holds no run. One that this version does not know may hold anything, so it goes too."""
    blank: dict[str, Any] = {field: None for field in body if field not in KEPT}
    return blank | {
        "project": project,
        "memory": target.memory,
        "rollout": target.rollout,
        "kind": "erased",
        "original": target.rollout,
        "subject": None,
        "layout": body.get("layout") or models.Layout().model_dump(),
        "updated_at": summarize.UNKNOWN,
        "runs": {},
        "summary": None,
        "model": None,
    }


# --- records ----------------------------------------------------------------------------------------------


async def records_of(store: port.ObjectStore, project: str, head: heads.Head) -> list[str]:
    """The keys of records that lie there of what a head says was erased: also of what landed late."""
    memory, rollout = str(head.body["memory"]), str(head.body["rollout"])
    found = await commit_rollouts.recorded(store, project, memory, rollout)
    return [
        key
        for run, attempts in sorted(found.items())
        if erasures.is_erased(head.body, run)
        for _, key in sorted(attempts.items())
    ]


async def meta_of(store: port.ObjectStore, key: str) -> dict[str, Any]:
    """A record's metadata; {} where it is gone, or can not be read."""
    raw = await store.get_range(key, 0, META_BYTES)
    if raw is not None and b"\n" not in raw:
        stored = await store.get(key)
        raw = stored.body if stored else None
    try:
        found = envelope.kept((raw or b"").split(b"\n", 1)[0])
        return found if isinstance(found, dict) else {}
    except ValueError:
        return {}


def claims_in(meta: dict[str, Any]) -> set[str]:
    return {str(one) for one in meta.get("claims", ())}


async def delete(store: port.ObjectStore, found: Sequence[str]) -> int:
    for at in range(0, len(found), DELETE_BATCH):
        await store.delete_many(found[at : at + DELETE_BATCH])
    return len(found)


# --- what else is kept of them ----------------------------------------------------------------------------


async def answers_of(store: port.ObjectStore, project: str, targets: Iterable[erasures.Target]) -> list[str]:
    """The kept answers whose input held any of it; those that do not say whose they are, too: they cost money alone."""
    named: dict[str, set[str]] = {}
    for one in targets:
        named.setdefault(one.memory, set()).add(one.rollout)
    found = []
    async for row in store.list(keys.answers(project)):
        stored = await store.get(row.key)
        told = answers.about(stored.body) if stored is not None else {"memory": None}
        rollouts = named.get((told or {}).get("memory") or "", set())
        if told is None or (rollouts and (told["rollouts"] is None or rollouts & set(told["rollouts"]))):
            found.append(row.key)
    return found


async def asks_of(
    store: port.ObjectStore, project: str, memory: str, whole: Collection[str]
) -> list[marks.Mark]:
    """The asks and joins that wait for nothing but rollouts of which nothing is left."""
    found = []
    for kind in (keys.ASKS, keys.JOINS):
        standing = await marks.read_all(store, project, memory, marks_max=ASKS_MAX, kind=kind)
        found += [one for one in standing if one.rollouts and set(one.rollouts) <= set(whole)]
    return found


async def outcomes_of(
    store: port.ObjectStore, project: str, target: erasures.Target, found: Counter[str]
) -> list[str]:
    """What became of the target's workspaces, as kept beside their heads."""
    prefix = f"{project}/{keys.OUTCOMES}/{keys.spread(target.rollout)}/{target.rollout}/"
    out = [
        row.key
        async for row in store.list(prefix)
        if target.runs is None or keys.record_name(row.key)[0] in target.runs
    ]
    found["outcomes"] += len(out)
    return out
