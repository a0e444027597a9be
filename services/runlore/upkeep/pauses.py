"""Pauses: a person holds a stage back. Durable objects in `_operations/pauses/`, which every worker obeys.

`consolidate` can be paused everywhere, for a project or for one memory: its marks stand meanwhile. `record` and
`snapshot` read a topic in which the runs of all memories follow each other, so they are paused as a whole:
to pass over one memory's messages would commit their offsets without an effect (invariant 4), and to wait at them
would hold every other memory of the partition. To keep a memory from learning, pause `consolidate` for it.

A worker looks every `REFRESH_SECONDS`: one LIST, and a GET for what is new. Work in hand is finished.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runlore import clock, errors
from runlore.commit import keys
from runlore.events import envelope
from runlore.store import port

FORMAT = "runlore.pause/1"
WHOLE_ONLY = ("record", "snapshot")
STAGES = (*WHOLE_ONLY, "summarize", "consolidate")
REFRESH_SECONDS = 10.0


class StagePaused(errors.Blocked):
    """A person paused this stage."""

    kind = "stage_paused"
    of_stage = True


@dataclass(frozen=True)
class Pause:
    """One pause as it stands. `project` and `memory` are None where it holds for all of them."""

    stage: str
    project: str | None
    memory: str | None
    reason: str
    by: Mapping[str, str]
    at: str
    key: str = ""
    etag: str = ""

    def __str__(self) -> str:
        where = f" of {'/'.join(filter(None, (self.project, self.memory)))}" if self.project else ""
        return f"{self.stage}{where} is paused since {self.at} by {self.by.get('user', '?')}: {self.reason}"

    @property
    def end(self) -> str:
        """The command that ends it."""
        where = f" --memory {self.project}/{self.memory}" if self.memory else ""
        where = where or (f" --project {self.project}" if self.project else "")
        return f"runlore resume {self.stage}{where} --reason …"

    def holds(self, stage: str, project: str | None = None, memory: str | None = None) -> bool:
        """Whether it holds `stage` back, for this memory if one is named."""
        return self.stage == stage and self.project in (None, project) and self.memory in (None, memory)

    def as_dict(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "project": self.project,
            "memory": self.memory,
            "reason": self.reason,
            "by": dict(self.by),
            "at": self.at,
        }


def check(stage: str, project: str | None, memory: str | None) -> None:
    """Whether this may be paused. Raises `errors.InvalidInput` where not, saying what may."""
    if stage not in STAGES:
        raise errors.InvalidInput(f"{stage!r} can not be paused", hint=f"stages: {', '.join(STAGES)}")
    if stage in WHOLE_ONLY and project is not None:
        raise errors.InvalidInput(
            f"{stage} can only be paused as a whole: the runs of all memories follow each other in its topic",
            hint=f"`runlore pause consolidate --memory {project}/{memory or '…'}` keeps them from being learnt",
        )


async def put(
    store: port.ObjectStore,
    stage: str,
    *,
    project: str | None,
    memory: str | None,
    reason: str,
    by: Mapping[str, str],
) -> Pause:
    """Pause. Raises `errors.Refused` where it is paused already, `errors.InvalidInput` as `check` does."""
    check(stage, project, memory)
    key = keys.pause(stage, project, memory)
    body = {"format": FORMAT, "stage": stage, "project": project, "memory": memory}
    body |= {"reason": reason, "by": dict(by), "at": clock.now().isoformat(timespec="seconds")}
    try:
        etag = await store.put_if_absent(key, envelope.dump(body))
    except errors.PreconditionFailed:
        found = await store.get(key)
        if found is None:
            raise errors.HeadMoved(f"{stage} was paused and resumed meanwhile; look again", key=key) from None
        standing = parse(key, found)
        raise errors.Refused(str(standing), hint=f"`{standing.end}` first") from None
    return parse(key, port.Stored(envelope.dump(body), etag))


async def lift(store: port.ObjectStore, stage: str, *, project: str | None, memory: str | None) -> Pause:
    """Resume: end exactly this pause, which was read. Raises `errors.NotFound` where there is none."""
    key = keys.pause(stage, project, memory)
    found = await store.get(key)
    if found is None:
        raise errors.NotFound("there is no such pause", hint="`runlore pause` lists those that stand")
    standing = parse(key, found)
    try:
        await store.compare_and_delete(key, found.etag)
    except errors.PreconditionFailed:
        raise errors.HeadMoved("the pause changed meanwhile; look again", key=key) from None
    return standing


async def read_all(store: port.ObjectStore, known: Mapping[str, Pause] | None = None) -> dict[str, Pause]:
    """Every pause by its key; `known` are those that need not be read again."""
    rows = {row.key: row.etag async for row in store.list(keys.pauses())}
    found = {
        key: known[key] for key, etag in rows.items() if known and key in known and known[key].etag == etag
    }
    wanted = sorted(rows.keys() - found.keys())
    for key, one in zip(wanted, await store.get_many(wanted), strict=True):
        if one is not None:
            found[key] = parse(key, one)
    return found


def parse(key: str, stored: port.Stored) -> Pause:
    """Raises `errors.Corrupt`: what may be a pause must not be passed over."""
    try:
        body = envelope.kept(stored.body)
        pause = Pause(
            str(body["stage"]),
            body["project"],
            body["memory"],
            str(body["reason"]),
            dict(body["by"]),
            str(body["at"]),
            key,
            stored.etag,
        )
        if body["format"] == FORMAT and keys.pause(pause.stage, pause.project, pause.memory) == key:
            return pause
    except (ValueError, KeyError, TypeError):
        pass
    raise errors.Corrupt(f"the pause {key} can not be read", key=key)


class Pauses:
    """The pauses as one worker sees them: at most `REFRESH_SECONDS` old."""

    def __init__(self, store: port.ObjectStore) -> None:
        self._store = store
        self._standing: dict[str, Pause] = {}
        self._read_at: float | None = None
        self._reading = asyncio.Lock()

    async def standing(self) -> list[Pause]:
        """Every pause. Raises as the store does: whether there is one is then not known."""
        async with self._reading:
            if self._read_at is None or clock.monotonic() - self._read_at >= REFRESH_SECONDS:
                began = clock.monotonic()
                self._standing = await read_all(self._store, self._standing)
                self._read_at = began
        return list(self._standing.values())

    async def of(self, stage: str, project: str | None = None, memory: str | None = None) -> Pause | None:
        """The pause that holds this back, if any."""
        for one in await self.standing():
            if one.holds(stage, project, memory):
                return one
        return None

    async def check(self, stage: str) -> None:
        """Raises `StagePaused` while the whole stage is paused."""
        found = await self.of(stage)
        if found is not None:
            raise StagePaused(str(found), hint=f"`{found.end}`")
