"""In which state the runs of a list are: the named ones of `lookup.explain`, for a page of rows at once.

What a story tells of one run takes a walk through revisions; a list needs the state alone, and that takes the heads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from runlore.commit import heads, keys, revisions, rollouts
from runlore.lookup import explain

Row = Mapping[str, Any]


async def of_rows(reader: revisions.Reader, project: str, rows: Sequence[Row]) -> list[str]:
    """The state of each run that the index lists (`memory`, `rollout`, `superseded`), in their order."""
    lines = list(dict.fromkeys((str(row["memory"]), str(row["rollout"])) for row in rows))
    wanted = [keys.rollout_head(project, *line) for line in lines]
    found = await reader.store.get_many(wanted)
    counters = {
        line: heads.parse(key, one, fmt=rollouts.HEAD_FORMAT).counter
        for line, key, one in zip(lines, wanted, found, strict=True)
    }
    states: dict[tuple[str, str], str] = {}
    for memory in dict.fromkeys(memory for memory, _ in lines):
        mine = {line: counter for line, counter in counters.items() if line[0] == memory}
        states |= await _of_memory(reader, project, memory, mine)
    return [
        explain.SUPERSEDED if row["superseded"] else states[str(row["memory"]), str(row["rollout"])]
        for row in rows
    ]


async def _of_memory(
    reader: revisions.Reader, project: str, memory: str, counters: Mapping[tuple[str, str], int]
) -> dict[tuple[str, str], str]:
    head = await reader.head(project, memory)
    revision = await reader.current(head, project, memory)
    held = head.body.get("held", {})

    def work() -> dict[tuple[str, str], str]:
        covered = revision.map("coverage") if revision else None
        made = {}
        for line, counter in counters.items():
            known = covered.get(line[1]) if covered is not None else None
            is_in = known is not None and int(known["counter"]) >= counter
            made[line] = (
                explain.HELD if line[1] in held else explain.CONSOLIDATED if is_in else explain.RECORDED
            )
        return made

    # Off the loop: it decodes pages of the revision.
    return await asyncio.to_thread(work)
