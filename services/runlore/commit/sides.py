"""Side lines: revisions of a memory beside its own line, made from the same records by another model or prompt.

A side line has a head of its own and moves no other: nobody's seed holds it unless it is asked for by name. Its
manifests and packs lie among those of the memory, so a seed that is pinned to one of its revisions needs nothing that
other seeds do not have. Nothing of a side line is marked, asked for or waited for: who builds it goes on from its head.

A side line that is dropped keeps its head, as every head (invariant 3): it stops naming a revision, and remembers
since when, so that what a seed was pinned to stays for its term (`commit/age.py`, `commit/sweep.py`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from runlore import errors
from runlore.commit import age, heads, keys
from runlore.events import ids
from runlore.store import port

FORMAT = "runlore.side/1"
MAIN = "main"
"""What the memory's own line is called where lines are named."""
BUILDING, BUILT, DROPPED = "building", "built", "dropped"
SIDES_MAX = 32
"""Side lines of one memory that may stand at the same time."""


def check_name(name: str) -> str:
    """`name`, if a side line can be called so. Raises `errors.InvalidId`."""
    ids.check_name(name, "side line")
    if name == MAIN or name.isdigit():
        raise errors.InvalidId(
            f"a side line can not be called {name!r}",
            hint="`main` is the memory's own line, and a number is a revision of it",
        )
    return name


async def read(store: port.ObjectStore, project: str, memory: str, name: str) -> heads.Head:
    """The head of a side line; counter 0 where there never was one. Raises `errors.InvalidId`."""
    return await heads.read(store, keys.side_head(project, memory, check_name(name)), fmt=FORMAT)


async def existing(store: port.ObjectStore, project: str, memory: str, name: str) -> heads.Head:
    """The head of a side line that stands. Raises `errors.NotFound`."""
    head = await read(store, project, memory, name)
    if not stands(head.body):
        raise errors.NotFound(
            f"{project}/{memory} has no side line {name!r}", hint="`runlore rebuild list` lists them"
        )
    return head


def stands(body: Mapping[str, Any]) -> bool:
    """Whether a head is of a side line that was begun and not dropped since."""
    return body.get("state", DROPPED) != DROPPED


async def all_heads(store: port.ObjectStore, project: str) -> list[heads.Head]:
    """The heads of a project's side lines, also of dropped ones. Raises `errors.Corrupt`."""
    found = [row.key async for row in store.list(f"{project}/{keys.SIDES}/")]
    stored = await store.get_many(found)
    return [heads.parse(key, one, fmt=FORMAT) for key, one in zip(found, stored, strict=True)]


async def of_memory(store: port.ObjectStore, project: str, memory: str) -> list[heads.Head]:
    """The side lines of a memory that stand, by name."""
    found = [
        head
        for head in await all_heads(store, project)
        if head.body.get("memory") == memory and stands(head.body)
    ]
    return sorted(found, key=lambda head: str(head.body["side"]))


def kept(body: Mapping[str, Any], now: dt.datetime) -> list[tuple[int, str]]:
    """The newest revisions (number, manifest) of which all ancestors must stay: what is named, and what was."""
    wanted = [body] if body.get("manifest") else []
    wanted += [one for one in body.get("was", ()) if age.is_kept(one["at"], now)]
    return [(int(one["revision"]), str(one["manifest"])) for one in wanted]


async def drop(store: port.ObjectStore, project: str, memory: str, name: str, *, reason: str) -> heads.Head:
    """Let a side line go. Raises `errors.NotFound`, `errors.HeadMoved` (start again)."""
    head = await existing(store, project, memory, name)

    def changes(at: str) -> dict[str, Any]:
        was = [
            one for one in head.body.get("was", ()) if age.is_kept(one["at"], dt.datetime.fromisoformat(at))
        ]
        if head.body.get("manifest"):
            was.append({"revision": head.body["revision"], "manifest": head.body["manifest"], "at": at})
        gone = {"revision": None, "manifest": None, "held": {}, "setup": None}
        return {**gone, "state": DROPPED, "was": was, "reason": reason}

    return await heads.move(store, head, changes, fmt=FORMAT)
