"""Merging a line's branches into its version, or into nothing where it has none yet."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runlore import errors
from runlore.commit import lines
from runlore.snapshots import library, merge, names, reading

HEAD = "head"


@dataclass(frozen=True)
class Done:
    """What a merge did: the tree, the snapshot (None: a dry run), what became of it, the branches that it took."""

    merged: merge.Merged
    saved: library.Saved | None
    state: str
    branches: list[str]


def told(done: Done, line: lines.Line, *, dry_run: bool = False) -> dict[str, Any]:
    """What a merge did, as people and programs are told."""
    return {
        "snapshot": done.saved.id if done.saved else done.merged.record.id,
        "project": line.project,
        "rollout": line.rollout,
        "agent": line.agent,
        "state": done.state,
        "branches": done.branches,
        "files": done.merged.record.files,
        "conflicts": [one.as_dict() for one in done.merged.conflicts],
        "dry_run": dry_run,
    }


async def merge_branches(
    made: library.Snapshots, line: lines.Line, wanted: Sequence[str] | None = None, *, dry_run: bool = False
) -> Done:
    """Merge the branches `wanted` (None: all) into the line's version, and let them go with the same move.

    Where somebody moves the line meanwhile the result becomes a branch itself. Raises `errors.NotFound`.
    """
    head = await lines.read(made.store, line)
    listed = head.body.get("branches", {})
    chosen = list(wanted) if wanted is not None else sorted(listed)
    unknown = [name for name in chosen if name not in listed]
    if unknown or not chosen:
        raise errors.NotFound(
            f"{line} has no branch {unknown[0]!r}" if unknown else f"{line} has no branches",
            hint="`runlore snapshot ls ROLLOUT` shows them",
        )
    sides = {name: await _open(made, listed[name]["ref"]) for name in chosen}
    bases = {name: await _base(made, listed[name]) for name in chosen}
    present = head.body.get("ref")
    if present:
        ours = merge.Side(HEAD, await _open(made, present))
        others = [merge.Side(name, opened) for name, opened in sides.items()]
    else:
        # Nothing moved the line yet: the first branch is what the others are merged into.
        first, *rest = sorted(sides)
        ours = merge.Side(first, sides[first])
        others = [merge.Side(name, sides[name]) for name in rest]
    known = {name: base for name, base in bases.items() if base is not None}
    merged = await merge.merge(None, ours, others, bases=known, offload=asyncio.to_thread)
    if dry_run:
        return Done(merged, None, "dry run", chosen)
    saved = await merge.write(made.store, made.project, merged, offload=asyncio.to_thread)
    placed = await lines.save(
        made.store,
        line,
        str(saved.ref),
        lines.base_of(head.body),
        reason=f"merged {', '.join(chosen)}"[:500],
        began=head.read_at,
        merged={name: listed[name]["ref"] for name in chosen},
    )
    return Done(merged, saved, placed.state, chosen)


async def merge_rollouts(
    made: library.Snapshots,
    line: lines.Line,
    rollouts: Mapping[str, str],
    *,
    base: str | None = None,
    dry_run: bool = False,
) -> Done:
    """Merge the present versions of other rollouts (label → id as given) into the line; theirs stay as they are.

    `base` is the snapshot that all of them began from; without it everything that differs is a conflict. Raises
    `errors.NotFound` where none of them has a version.
    """
    head = await lines.read(made.store, line)
    found = {}
    for label, rollout in rollouts.items():
        other = lines.Line(line.project, lines.line_of(line.project, rollout, None).rollout, line.agent)
        one = await lines.read(made.store, other)
        if one.body.get("ref"):
            found[label] = one
    if not found:
        raise errors.NotFound(f"none of the {len(rollouts)} rollouts has a version to merge into {line}")
    # What the result refers to must be named by a head now: the base is looked for by its content.
    refs = [lines.named(one.body) for one in (head, *found.values())]
    start = next(
        (ref for ref in sorted(set().union(*refs)) if base and lines.id_of(ref) == lines.id_of(base)), None
    )
    sides = [merge.Side(label, await _open(made, one.body["ref"])) for label, one in sorted(found.items())]
    present = head.body.get("ref")
    ours = merge.Side(HEAD, await _open(made, present)) if present else sides.pop(0)
    began = min(head.read_at, *(one.read_at for one in found.values()))
    opened = await _open(made, start) if start else None
    merged = await merge.merge(opened, ours, sides, offload=asyncio.to_thread)
    if dry_run:
        return Done(merged, None, "dry run", sorted(found))
    saved = await merge.write(made.store, made.project, merged, offload=asyncio.to_thread)
    reason = f"merged {', '.join(sorted(found))}"[:500]
    placed = await lines.save(
        made.store, line, str(saved.ref), lines.base_of(head.body), reason=reason, began=began
    )
    return Done(merged, saved, placed.state, sorted(found))


async def _open(made: library.Snapshots, ref: str) -> reading.Opened:
    """A side: by exactly the root pack that the head names, because the result will refer to its packs."""
    return await reading.open_exact(made.store, made.project, names.Ref.parse(ref))


async def _base(made: library.Snapshots, branch: dict[str, object]) -> reading.Opened | None:
    """What a branch began from, if the head kept it; without it everything that differs is a conflict."""
    ref = branch.get("base_ref")
    return await _open(made, str(ref)) if ref else None
