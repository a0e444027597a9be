"""In which state the runs of a list are: the named ones of `lookup.explain`, for a page of rows at once.

What a story tells of one run takes a walk through revisions; a list needs the state alone, and that takes the heads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from runlore.commit import heads, keys, revisions, rollouts
from runlore.consumers import approvals
from runlore.lookup import explain

Row = Mapping[str, Any]


async def of_rows(reader: revisions.Reader, project: str, rows: Sequence[Row]) -> list[str]:
    """The state of each run that the index lists (`memory`, `rollout`, `run`, `superseded`), in their order."""
    lines = list(dict.fromkeys((str(row["memory"]), str(row["rollout"])) for row in rows))
    wanted = [keys.rollout_head(project, *line) for line in lines]
    found = await reader.store.get_many(wanted)
    of_line = {
        line: heads.parse(key, one, fmt=rollouts.HEAD_FORMAT)
        for line, key, one in zip(lines, wanted, found, strict=True)
    }
    memories = {name: await _memory(reader, project, name) for name, _ in lines}

    def work() -> list[str]:
        return [
            _state(row, of_line[str(row["memory"]), str(row["rollout"])], *memories[str(row["memory"])])
            for row in rows
        ]

    # Off the loop: it decodes pages of the revisions.
    return await asyncio.to_thread(work)


async def _memory(
    reader: revisions.Reader, project: str, memory: str
) -> tuple[Mapping[str, Any], revisions.Revision | None]:
    """What a memory holds, and its present revision."""
    head = await reader.head(project, memory)
    return head.body.get("held", {}), await reader.current(head, project, memory)


def _state(row: Row, head: heads.Head, held: Mapping[str, Any], revision: revisions.Revision | None) -> str:
    """As `explain` tells it of this run alone."""
    if row["superseded"]:
        return explain.SUPERSEDED
    rollout = str(row["rollout"])
    run = head.body.get("runs", {}).get(row["run"], {"since": head.counter})
    if hold := held.get(rollout):
        if approvals.is_undecided(hold, run):
            return explain.RECORDED
        return explain.REJECTED if approvals.is_rejected(hold) else explain.HELD
    covered = revision.map("coverage").get(rollout) if revision is not None else None
    is_in = covered is not None and int(covered["counter"]) >= int(run["since"])
    return explain.CONSOLIDATED if is_in else explain.RECORDED
