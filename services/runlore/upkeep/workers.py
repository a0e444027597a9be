"""Workers: what each process says of itself, so that `runlore status` works past one machine. A hint, no truth.

One small object per worker in `_operations/workers/`, with one writer, put whole: when a stage's state, cause or stuck
memories change (at most every `CHANGED_SECONDS`), else every `EVERY_SECONDS`. A worker at rest costs 288 PUTs a
day. It is deleted when the worker ends in peace; what is older than `SILENT_SECONDS` belongs to one that died or is
cut off, and is deleted by whoever starts after `FORGOTTEN`. Nothing but what people look at rests on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

import runlore
from runlore import clock, errors
from runlore.commit import keys
from runlore.events import envelope, ids
from runlore.store import port

log = structlog.get_logger("runlore.workers")

FORMAT = "runlore.worker/1"
LOOK_SECONDS = 1.0
CHANGED_SECONDS = 5.0
EVERY_SECONDS = 300.0
SILENT_SECONDS = 2 * EVERY_SECONDS + 60
"""After this long without a word a worker counts as gone."""
FORGOTTEN = dt.timedelta(hours=24)
STUCK_MAX = 100
"""Stuck memories that one worker names."""
WORST = ("failed", "blocked", "waiting", "running")

Stages = Mapping[str, Mapping[str, Any]]
"""Stage → state, cause, since, tries, memories, projects: `StageStatus` as a dict."""


@dataclass(frozen=True)
class Seen:
    """One worker as it last spoke."""

    name: str
    host: str
    pid: int
    version: str
    started_at: str
    at: dt.datetime
    stages: Stages
    etag: str = field(default="", compare=False)

    @property
    def is_silent(self) -> bool:
        return (clock.now() - self.at).total_seconds() > SILENT_SECONDS

    def as_dict(self) -> dict[str, Any]:
        return {
            "worker": self.name,
            "host": self.host,
            "pid": self.pid,
            "version": self.version,
            "started_at": self.started_at,
            "at": self.at.isoformat(timespec="seconds"),
            "silent": self.is_silent,
            "stages": {name: dict(one) for name, one in self.stages.items()},
        }


class Teller:
    """Says how one worker is, while it runs."""

    def __init__(
        self,
        store: port.ObjectStore,
        stages: Callable[[], Stages],
        *,
        instance: str = "",
        what: str = "worker",
    ) -> None:
        self._store, self._stages = store, stages
        # A pod's name comes again after a restart, and then takes the place of the one that died.
        self.name = ids.alias(f"{what}-{instance}") if instance else f"{what}-{clock.new_id()}"
        self._what = what
        self._started = clock.now_iso()

    async def run(self) -> None:
        """Tell until cancelled; then take the object away. A store that fails stops nothing: it is told later."""
        told: Stages | None = None
        told_at = clock.monotonic() - EVERY_SECONDS
        try:
            await self._quietly(self._forget)
            while True:
                present = essence(self._stages())
                age = clock.monotonic() - told_at
                if age >= EVERY_SECONDS or (present != told and age >= CHANGED_SECONDS):
                    if await self._quietly(lambda stages=present: self._put(stages)):
                        told = present
                    told_at = clock.monotonic()
                await clock.sleep(LOOK_SECONDS)
        finally:
            with contextlib.suppress(errors.RunloreError, TimeoutError):
                await asyncio.wait_for(self._store.delete(keys.worker(self.name)), CHANGED_SECONDS)

    async def _put(self, stages: Stages) -> None:
        body = {
            "format": FORMAT,
            "worker": self.name,
            "what": self._what,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": runlore.__version__,
            "started_at": self._started,
            "at": clock.now_iso(),
            "stages": stages,
        }
        await self._store.put(keys.worker(self.name), envelope.dump(body))

    async def _forget(self) -> None:
        """Delete what workers that died said long ago."""
        for one in await read_all(self._store):
            if clock.now() - one.at > FORGOTTEN:
                with contextlib.suppress(errors.PreconditionFailed):
                    await self._store.compare_and_delete(keys.worker(one.name), one.etag)

    async def _quietly(self, work: Callable[[], Any]) -> bool:
        try:
            await work()
        except errors.RunloreError as exc:
            log.info("the worker's status can not be told", kind=exc.kind, error=str(exc))
            return False
        return True


def essence(stages: Stages) -> dict[str, dict[str, Any]]:
    """What of the stages is worth a PUT when it changes: not the counts, which change all the time."""
    found = {}
    for name, one in stages.items():
        stuck = dict(sorted(dict(one.get("memories") or {}).items())[:STUCK_MAX])
        found[name] = {"state": one.get("state"), "cause": one.get("cause"), "since": one.get("since")}
        found[name] |= {"retry_seconds": one["retry_seconds"]} if one.get("retry_seconds") else {}
        found[name] |= {"memories": stuck} if stuck else {}
        found[name] |= {"projects": dict(sorted(one["projects"].items()))} if one.get("projects") else {}
    return found


async def read_all(store: port.ObjectStore) -> list[Seen]:
    """Every worker that spoke within the last `FORGOTTEN`, the one that spoke last first."""
    rows = [row.key async for row in store.list(keys.workers())]
    found = []
    for key, one in zip(rows, await store.get_many(rows), strict=True):
        if one is not None:
            with contextlib.suppress(errors.Corrupt):
                found.append(parse(key, one))
    return sorted(found, key=lambda one: one.at, reverse=True)


def parse(key: str, stored: port.Stored) -> Seen:
    """Raises `errors.Corrupt`."""
    try:
        body = envelope.kept(stored.body)
        if body["format"] != FORMAT or keys.worker(body["worker"]) != key:
            raise ValueError
        return Seen(
            str(body["worker"]),
            str(body["host"]),
            int(body["pid"]),
            str(body["version"]),
            str(body["started_at"]),
            dt.datetime.fromisoformat(body["at"]),
            {str(name): dict(one) for name, one in body["stages"].items()},
            stored.etag,
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise errors.Corrupt(f"{key} is no worker's status", key=key) from None


def together(seen: list[Seen]) -> dict[str, dict[str, Any]]:
    """How each stage is over all workers that are not silent: the worst, its cause, and how many there are."""
    out: dict[str, dict[str, Any]] = {}
    for worker in seen:
        if worker.is_silent:
            continue
        for name, one in worker.stages.items():
            held = out.setdefault(
                name, {"state": "running", "cause": None, "since": None, "workers": 0, "ill": 0}
            )
            held["workers"] += 1
            held["ill"] += one.get("state") != "running"
            stuck = dict(one.get("memories") or {})
            held["memories"] = held.get("memories", {}) | stuck
            if waits := dict(one.get("projects") or {}):
                held["projects"] = held.get("projects", {}) | waits
            if _rank(one.get("state")) < _rank(held["state"]):
                held |= {field: one.get(field) for field in ("state", "cause", "since", "retry_seconds")}
    return out


def _rank(state: Any) -> int:
    return WORST.index(state) if state in WORST else len(WORST)
