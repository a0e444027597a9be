"""A home for the benchmark of the lookup service: a memory with a full revision, and an index of many rollouts.

The revision is what the pipeline makes of `REAL` runs (`pipeline.sample`), so that a seed and a search meet notes of
256 rollouts. The rest of the index are heads that no store holds, taken in by the index's own `apply`: the index can
not tell, and nothing that the lists and the search do reads them.
"""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path
from typing import Any

import pipeline

from runlore import wiring
from runlore.commit import heads, keys, revisions, rollouts
from runlore.consumers import consolidate, record
from runlore.lookup import index as lookup_index
from runlore.producer import Producer
from runlore.settings import Settings
from runlore.worker import concurrency

PROJECT, MEMORY = "bench", "code"
REAL = 300
BATCH = 2000
START = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
NOUNS = ("parser", "invoice", "retry", "schema", "cursor", "upload", "session", "parcel", "ledger", "widget")


async def real_runs(settings: Settings, count: int) -> None:
    """Record and consolidate so many runs, one to a rollout, in the home that `settings` name."""
    async with wiring.open_home(settings, create=True) as home:
        runtime = concurrency.runtime(pipeline.LANES)
        stage = record.RecordStage(home.store, home.bus, runtime=runtime)
        reader = revisions.Reader(home.store)
        consolidation = consolidate.ConsolidateStage(home.store, home.bus, reader=reader, runtime=runtime)
        datas = [pipeline.sample(number, runs_per_rollout=1) for number in range(count)]
        await Producer(home.store, home.bus).publish(datas, source="/bench")
        consumer = await home.bus.consumer(group="record", topics=["runs"])
        while messages := await consumer.poll(records_max=pipeline.POLL, timeout_seconds=0):
            await consumer.commit((await stage.process(messages)).offsets)
        await consumer.close()
        while (await consolidation.work(PROJECT, MEMORY)).more:
            pass
        index = lookup_index.Index(home.index_path)
        try:
            await lookup_index.reconcile(index, home.store)
        finally:
            index.close()


def synthetic(number: int) -> heads.Head:
    """The head of a rollout with one run, as the record stage would leave it, with a summary of about 1 KB."""
    name = f"synthetic-{number:06}"
    at = (START + dt.timedelta(seconds=number)).isoformat(timespec="microseconds")
    noun, other = NOUNS[number % len(NOUNS)], NOUNS[number // len(NOUNS) % len(NOUNS)]
    summary: dict[str, Any] = {
        "request": f"Look why the {noun} of the {other} fails since ticket T{number}",
        "files": [f"src/module_{(number + at) % 997}.py" for at in range(12)],
        "commands": [f"pytest tests/test_{noun}_{number % 311}.py -k case{at}" for at in range(6)],
        "answer": f"The {noun} was read before the {other} was written; mended in module {number % 997}. "
        * 3,
    }
    body = {
        "format": rollouts.HEAD_FORMAT,
        "counter": 1,
        "project": PROJECT,
        "memory": MEMORY,
        "rollout": name,
        "kind": "session",
        "original": name,
        "subject": None,
        "updated_at": at,
        "moved_at": at,
        "runs": {f"run-{name}": {"event": f"event-{number}", "ended_at": at, "attempt": 1, "received": "0"}},
        "summary": summary,
    }
    return heads.Head(keys.rollout_head(PROJECT, MEMORY, name), body, f"etag-{number}")


def fill(path: Path, count: int) -> float:
    """Take `count` synthetic rollouts into the index at `path`; the seconds that it took."""
    began = time.perf_counter()
    index = lookup_index.Index(path)
    try:
        for start in range(0, count, BATCH):
            index.apply([synthetic(number) for number in range(start, min(count, start + BATCH))])
    finally:
        index.close()
    return time.perf_counter() - began


async def make(root: Path, *, rollouts: int, real: int = REAL) -> dict[str, float]:
    """The home at `root`; the seconds that its parts took."""
    settings = Settings(home=root, fsync=False)
    began = time.perf_counter()
    await real_runs(settings, min(real, rollouts))
    made = time.perf_counter() - began
    return {"pipeline": made, "index": fill(root / "index.db", max(0, rollouts - real))}
