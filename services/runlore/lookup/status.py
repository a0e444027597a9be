"""Status: how the pipeline is, over all its workers: what waits since when, what stands still, and why, in words.

It reads what is stored, what the bus says, and what each worker last said of itself (`upkeep/workers.py`). A part
that can not be asked is a cause, and hides no other: at night the rest is what is looked for.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from runlore import clock, errors, pipeline
from runlore.bus import port as bus_port
from runlore.commit import keys, marks
from runlore.consumers import dead
from runlore.lookup import asked
from runlore.lookup import index as lookup_index
from runlore.models import choices
from runlore.store import port as store_port
from runlore.upkeep import pauses, workers

MARKS_READ_MAX = 500
"""Marks that are read to count the rollouts which wait; those beyond are counted as marks alone."""
OPERATORS = "the operators of the service can see why (`runlore status`)"
READERS = (pipeline.RECORD, pipeline.SNAPSHOT)
STAGES = ("record", "snapshot", "summarize", "consolidate", "index")


async def status(
    store: store_port.ObjectStore,
    bus: bus_port.Bus,
    index: lookup_index.Index,
    status_path: Path,
    up: int | None,
    *,
    chosen: choices.Choices | None = None,
) -> dict[str, Any]:
    """How the pipeline is, as `runlore status --json` prints it; `causes` is empty where all is well.

    `chosen`: when what waits for a model is due.
    """
    causes: list[str] = []
    await _ask(causes, "the store", lambda: lookup_index.reconcile(index, store), None)
    letters = await _ask(causes, "the dead letters", lambda: dead.read_all(bus), [])
    letters = [one for one in letters if one.resolution is None]
    found = await told(store, bus, index.memories(), letters, local=status_path, up=up, chosen=chosen)
    return {**found, "causes": [*causes, *found["causes"]]}


async def told(
    store: store_port.ObjectStore,
    bus: bus_port.Bus,
    memories: list[dict[str, Any]],
    letters: list[dead.Letter],
    *,
    local: Path | None,
    up: int | None,
    project: str | None = None,
    chosen: choices.Choices | None = None,
) -> dict[str, Any]:
    """The same of memories and open letters that are known. With a `project`, nothing that names another or a machine:
    the marks, pauses and stuck memories are its own; lag and states of stages are everybody's."""
    causes: list[str] = []
    seen = await _ask(causes, "the workers", lambda: workers.read_all(store), [])
    standing = await _ask(causes, "the pauses", lambda: pauses.read_all(store), {})
    if project is not None:
        standing = {name: one for name, one in standing.items() if one.project in (None, project)}
    said = workers.together(seen) | (_local(local) if up and local else {})
    out: dict[str, Any] = {"up": up, "workers": [one.as_dict() for one in seen]}
    for stage in READERS:
        out[stage.name] = await _ask(
            causes, f"the bus, for {stage.name},", lambda stage=stage: _waits(bus, stage), {}
        )
    out["summarize"] = await _ask(causes, "the asks", lambda: _marks(store, keys.ASKS, project), {})
    joins = await _ask(causes, "the joins", lambda: _marks(store, keys.JOINS, project), {})
    # What a stage says of itself may name another project.
    of_stages = said if project is None else None
    waits = await _ask(
        causes, "the asks", lambda: asked.of_all(store, chosen=chosen, stages=of_stages, project=project), {}
    )
    out["summarize"] |= {"joins": joins.get("marks")}
    out["summarize"] |= {"waits": {name: one.as_dict() for name, one in waits.items()}}
    out["consolidate"] = await _ask(causes, "the marks", lambda: _marks(store, keys.MARKS, project), {})
    out["index"] = {}
    for name in STAGES:
        out[name] = {**_EMPTY.get(name, {}), **out[name], **_told(said.get(name, {}))}
        if project is not None:
            out[name] |= _own(out[name], project)
    out["pauses"] = [one.as_dict() for _, one in sorted(standing.items())]
    out["dead"] = {"open": len(letters), "reasons": _count(letter.reason for letter in letters)}
    out["memories"] = memories
    if project is not None:
        causes = [one.partition(":")[0] for one in causes]
        out["workers"] = [{"silent": one["silent"], "version": one["version"]} for one in out["workers"]]
    wrong = _causes(out, seen, list(standing.values()), names_machines=project is None)
    out["causes"] = [*causes, *wrong]
    return out


def _own(stage: Mapping[str, Any], project: str) -> dict[str, Any]:
    """What of a stage a project is told: a cause may name an object of another."""
    own = {}
    if "memories" in stage:
        own["memories"] = {
            name: why for name, why in stage["memories"].items() if name.startswith(f"{project}/")
        }
    if "projects" in stage:
        own["projects"] = {name: why for name, why in stage["projects"].items() if name == project}
    if stage.get("cause"):
        own["cause"] = OPERATORS
    return own


async def _ask(causes: list[str], what: str, work: Callable[[], Awaitable[Any]], otherwise: Any) -> Any:
    """What a part says; one that can not be asked is a cause."""
    try:
        return await work()
    except (errors.RunloreError, OSError) as exc:
        causes.append(f"{what} can not be asked: {getattr(exc, 'kind', 'error')}: {exc}")
        return otherwise


_EMPTY: dict[str, dict[str, Any]] = {
    "record": {"lag": None, "oldest": None},
    "snapshot": {"lag": None, "oldest": None},
    "summarize": {"marks": None, "rollouts": None, "oldest": None, "joins": None, "waits": {}},
    "consolidate": {"marks": None, "rollouts": None, "oldest": None},
}


async def _waits(bus: bus_port.Bus, stage: pipeline.Stage) -> dict[str, Any]:
    """How far a stage is behind, and since when the oldest message waits."""
    lag = sum((await bus.lag(group=str(stage.group), topic=stage.reads)).values())
    oldest = await bus.oldest(group=str(stage.group), topic=stage.reads) if lag else None
    return {"lag": lag, "oldest": _iso(oldest) if oldest is not None else None}


async def _marks(store: store_port.ObjectStore, kind: str, only: str | None = None) -> dict[str, Any]:
    """What consolidation, or a model, has to do. A mark's name begins with its time, so the oldest needs no read."""
    found: list[str] = []
    for project in [only] if only is not None else await marks.projects(store):
        found += [row.key async for row in store.list(f"{project}/{kind}/")]
    found.sort(key=lambda key: key.rpartition("/")[2])
    rollouts: set[tuple[str, ...]] = set()
    read = found[:MARKS_READ_MAX]
    for key, one in zip(read, await store.get_many(read), strict=True):
        if one is not None:
            project, _, _, memory = key.split("/")[:4]
            rollouts |= {(project, memory, name) for name in marks.parse(key, one.body).rollouts}
    return {
        "marks": len(found),
        "rollouts": len(rollouts),
        "oldest": _iso(int(found[0].rpartition("/")[2][:12], 16) / 1000) if found else None,
    }


async def stages_told(store: store_port.ObjectStore, status_path: Path, up: int | None) -> dict[str, Any]:
    """How the stages say that they are, over all workers."""
    return workers.together(await workers.read_all(store)) | (_local(status_path) if up else {})


def _local(path: Path) -> dict[str, Any]:
    """What `runlore up` on this machine says of its stages."""
    try:
        return json.loads(path.read_bytes())["stages"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _told(stage: Mapping[str, Any]) -> dict[str, Any]:
    names = ("state", "cause", "since", "retry_seconds", "memories", "projects", "workers", "ill")
    return {name: stage[name] for name in names if name in stage}


def _count(names: Iterable[str]) -> dict[str, int]:
    counted: dict[str, int] = {}
    for name in names:
        counted[name] = counted.get(name, 0) + 1
    return dict(sorted(counted.items()))


def _causes(
    out: dict[str, Any],
    seen: list[workers.Seen],
    standing: list[pauses.Pause],
    *,
    names_machines: bool = True,
) -> list[str]:
    """What is wrong or waiting, in words."""
    causes = []
    alive = [one for one in seen if not one.is_silent]
    work = out["record"]["lag"] or out["snapshot"]["lag"] or out["consolidate"]["marks"]
    if work and not out["up"] and not alive:
        causes.append(
            "nothing runs the stages: `runlore up` (or `runlore up --once`), or `runlore worker` past one machine, "
            "works off what waits"
        )
    for name in STAGES:
        # A stage that a person holds back is told by the pause itself.
        if not any(one.holds(name) for one in standing):
            causes += _stage(name, out[name])
    causes += [f"{one} (`{one.end}`)" for one in standing]
    for one in seen:
        if one.is_silent:
            which = f"worker {one.name} on {one.host}" if names_machines else "a worker"
            causes.append(f"{which} is silent since {one.at:%Y-%m-%d %H:%M}: did it die?")
    versions = sorted({one.version for one in alive})
    if len(versions) > 1:
        causes.append(f"workers run different versions ({', '.join(versions)}): finish the roll-out")
    for name in ("summarize", "consolidate"):
        for memory, why in out[name].get("memories", {}).items():
            causes.append(f"memory {memory} can not go on: {why}")
    for name in ("record", "snapshot"):
        for project, why in out[name].get("projects", {}).items():
            causes.append(f"{name} waits for project {project} alone: {why}")
    for memory, one in out["summarize"]["waits"].items():
        if one["state"] == asked.DEFERRED:
            causes.append(f"memory {memory} {one['told']} (`runlore spend`)")
    if out["dead"]["open"]:
        reasons = ", ".join(f"{reason} {count}" for reason, count in out["dead"]["reasons"].items())
        causes.append(f"{out['dead']['open']} dead letters ({reasons}): `runlore dead` lists them")
    held = sum(row["held"] for row in out["memories"])
    if held:
        causes.append(f"{held} rollouts held for review: `runlore review` lists them")
    return causes


def _stage(name: str, one: Mapping[str, Any]) -> list[str]:
    if one.get("state", "running") == "running":
        return []
    where = f" in {one['ill']} of {one['workers']} workers" if one.get("workers", 0) > 1 else ""
    again = f"; next try within {one['retry_seconds']:.0f} s" if one.get("retry_seconds") else ""
    return [f"{name} {one['state']}{where} since {one['since']}: {one['cause']}{again}"]


def _iso(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="milliseconds")


def age(moment: str | None) -> str:
    """How long ago that was, for a person: `38 min`; '' for None."""
    if not moment:
        return ""
    seconds = max(0.0, (clock.now() - dt.datetime.fromisoformat(moment)).total_seconds())
    for unit, length, most in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < most * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"
