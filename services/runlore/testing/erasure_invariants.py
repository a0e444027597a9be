"""Invariant 10 as a checker: what the ledger of erasures says is gone can not be reached, and then is nowhere.

After the first date no head, no revision and no snapshot shows any of it; after the second no record of it lies there
either. What a stage put late in between is garbage that nothing names: it is the last pass's to take.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from runlore import errors
from runlore.commit import erasures, heads, keys, lines, revisions, rollouts
from runlore.store import port
from runlore.testing import checks, invariants


async def check(store: port.ObjectStore, project: str) -> list[invariants.Violation]:
    """Every violation of invariant 10 in a project."""
    found: list[invariants.Violation] = []
    async for key in erasures.keys_of(store, project):
        try:
            entry = await heads.read(store, key, fmt=erasures.FORMAT)
            if entry.body["state"] != erasures.OPEN:
                found += await of_entry(store, project, entry.body)
        except errors.Fatal as exc:  # Of the entry, or of a head that it names.
            found.append(_violation(key, exc.message))
    return found


@checks.of(invariants.ERASED)
async def of_entry(
    store: port.ObjectStore, project: str, entry: Mapping[str, Any]
) -> list[invariants.Violation]:
    """What one erasure, or its receipt, says is gone, and is not."""
    targets = [erasures.target_of(one) for one in entry["targets"]]
    found: list[invariants.Violation] = []
    for one in targets:
        found += await _of_rollout(store, project, entry, one)
    for memory in sorted({one.memory for one in targets}):
        found += await _of_memory(store, project, memory, [one for one in targets if one.memory == memory])
    return found


def _violation(where: str, what: str) -> invariants.Violation:
    return invariants.Violation(invariants.ERASED, where, what)


async def _of_rollout(
    store: port.ObjectStore, project: str, entry: Mapping[str, Any], target: erasures.Target
) -> list[invariants.Violation]:
    key = keys.rollout_head(project, target.memory, target.rollout)
    head = await heads.read(store, key, fmt=rollouts.HEAD_FORMAT)
    out = []
    if target.runs is None and not erasures.is_whole(head.body):
        out.append(_violation(key, "the rollout was erased, and its head does not say so"))
    shown = {
        run
        for run, one in head.body.get("runs", {}).items()
        if erasures.is_erased(head.body, run) or {run, one.get("edit_of")} & set(target.runs or ())
    }
    out += [_violation(key, f"run {run} was erased, and the head names it") for run in sorted(shown)]
    unsaid = [run for run in target.runs or () if not erasures.is_erased(head.body, run)]
    out += [_violation(key, f"run {run} was erased, and the head does not say so") for run in unsaid]
    if entry["state"] == erasures.DONE:
        for run in await rollouts.recorded(store, project, target.memory, target.rollout):
            if erasures.is_erased(head.body, run):
                out.append(_violation(key, f"run {run} was erased, and its record is there"))
    if target.runs is None and entry["snapshots"] == "erase":
        for line in await lines.of_rollout(store, project, target.rollout):
            if lines.named(line.body) and erasures.is_whole(line.body):
                out.append(_violation(line.key, "the rollout was erased, and the head names a snapshot"))
    return out


async def _of_memory(
    store: port.ObjectStore, project: str, memory: str, targets: Sequence[erasures.Target]
) -> list[invariants.Violation]:
    """No revision that can be read has taken a run in that was erased."""
    where = f"{project}/{memory}"
    named = {one.rollout for one in targets}
    told: dict[str, Mapping[str, Any]] = {}
    for rollout in named:
        key = keys.rollout_head(project, memory, rollout)
        told[rollout] = (await heads.read(store, key, fmt=rollouts.HEAD_FORMAT)).body
    out = []
    reader, is_newest = revisions.Reader(store), True
    try:
        async for body in reader.line(project, memory):
            if (is_newest or body["reason"] in revisions.TAKE_OVER) and not body.get("erased"):
                # Of what it took over no `covers` may be left that says it.
                out += await _of_notes(reader, project, memory, body, told)
            is_newest = False
            for row in body["covers"]:
                taken = [run for run, _ in [*row["runs"], *row.get("edits", ())]]
                shown = [run for run in taken if erasures.is_erased(told.get(row["rollout"], {}), run)]
                if shown:
                    what = f"revision {body['revision']} was shown run {shown[0]}, which was erased"
                    out.append(_violation(where, what))
    except errors.Fatal:
        return out  # Told by invariant 1 or 3.
    return out


async def _of_notes(
    reader: revisions.Reader,
    project: str,
    memory: str,
    body: Mapping[str, Any],
    told: Mapping[str, Mapping[str, Any]],
) -> list[invariants.Violation]:
    """A revision has no notes of a rollout from before something of it was erased."""
    number = int(body["revision"])
    found = await reader.load(project, memory, number, str(body["sha256"]))
    selected = found.map("selected")
    shown = [rollout for rollout in sorted(told) if selected.get(rollout) is not None]
    notes = found.map("notes").items() if shown else ()
    supports = [note.get("support", {}) for _, note in notes]
    out = []
    for rollout in shown:
        own = [one[rollout] for one in supports if rollout in one]
        runs = set((told[rollout].get("erased") or {}).get("runs", {}))
        if erasures.is_whole(told[rollout]) or _names(own, runs):
            what = f"revision {number} has notes of what was erased of rollout {rollout}"
            out.append(_violation(f"{project}/{memory}", what))
    return out


def _names(value: Any, runs: Collection[str]) -> bool:
    """Whether evidence in a note names one of these runs: as `run`, or as the first of (run, attempt, …)."""
    if isinstance(value, dict):
        return value.get("run") in runs or any(_names(one, runs) for one in value.values())
    if isinstance(value, list):
        is_pair = len(value) > 1 and isinstance(value[0], str) and isinstance(value[1], int)
        return (is_pair and value[0] in runs) or any(_names(one, runs) for one in value)
    return False
