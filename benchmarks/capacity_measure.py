"""What goes into the capacity model, measured: requests, bytes and processor time of production code.

    python benchmarks/capacity.py --measure [FOLDER…]

- *Requests and bytes*: the worker over the store in memory, which counts. Twice: many runs of one memory at once
  (`together`), and one run after the other, each with a revision of its own (`alone`). What happens lies between.
- *Bytes of events* and of their records: of the runs in the folders that are given, if any; else of made-up ones of
  8 KB.
- *Processor time*: of recording a run, of a pass by what the memory holds and takes in, of taking a head into the
  index, of a seed: over the store in memory; and of one request to S3, by kind, of a real client to a real server.

Processor time is this machine's (`time.process_time`, so waiting and others' work do not count).
"""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pipeline as samples
import zstandard

from runlore.commit import heads, keys, revisions
from runlore.consumers import consolidate, record
from runlore.events import envelope, models
from runlore.lookup import index as lookup_index
from runlore.lookup import seeds
from runlore.settings import Settings
from runlore.store.port import Guard, Listed, Stored
from runlore.testing.buses import MemoryBus
from runlore.testing.stores import MemoryStore
from runlore.worker import loop as worker_loop

ROOT = Path(__file__).resolve().parents[1]
PROJECT, MEMORY = "bench", "code"
RUNS_PER_ROLLOUT = 4
SIZES = (16, 64, 128, 256)
"""Rollouts with notes, for the time of a pass."""
TAKEN = (1, 32, 128)
"""Rollouts that a pass takes in."""
INDEXED = (5_000, 20_000)


class Counted(MemoryStore):
    """The store in memory, counting requests and bytes by kind and part of the key."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: Counter[str] = Counter()
        self.written: Counter[str] = Counter()

    def _count(self, kind: str, key: str, body: bytes = b"") -> None:
        part = key.split("/", 2)[1] if "/" in key else "projects"
        self.requests[f"{kind} {part}"] += 1
        self.written[part] += len(body)

    async def get(self, key: str) -> Stored | None:
        self._count("GET", key)
        return await super().get(key)

    async def put(self, key: str, body: bytes) -> str:
        self._count("PUT", key, body)
        return await super().put(key, body)

    async def compare_and_set(
        self, key: str, body: bytes, etag: str | None, *, guard: Guard | None = None
    ) -> str:
        self._count("PUT", key, body)
        return await super().compare_and_set(key, body, etag, guard=guard)

    async def delete_many(self, keys: Sequence[str]) -> None:
        self._count("DELETE", keys[0])  # One request for up to 1,000.
        for key in keys:
            await super().delete(key)

    async def list(self, prefix: str) -> AsyncIterator[Listed]:
        self._count("LIST", prefix)
        async for row in super().list(prefix):
            yield row

    def by_kind(self, runs: int) -> dict[str, float]:
        found: Counter[str] = Counter()
        for name, count in self.requests.items():
            found[name.split(" ")[0]] += count
        return {kind: round(found[kind] / runs, 3) for kind in ("PUT", "GET", "LIST", "DELETE")}


# --- runs -------------------------------------------------------------------------------------------------


def made_up(count: int, *, runs_per_rollout: int = RUNS_PER_ROLLOUT) -> list[dict[str, Any]]:
    return [samples.sample(number, runs_per_rollout=runs_per_rollout) for number in range(count)]


def real(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Every run below these folders, as its importer gives it."""
    import memory

    from runlore import sources

    found = []
    for folder in folders:
        for file in sorted([*folder.rglob("*.jsonl"), *folder.rglob("*.traj")]):
            for one in sources.read(memory._format(file), file, project=PROJECT, memory=MEMORY):
                if not isinstance(one, sources.Problem):
                    found.append(dict(one.data))
    return found


def messages(datas: Sequence[dict[str, Any]]) -> list[Any]:
    out = []
    for data in datas:
        checked = models.run_completed(data)
        event = envelope.of_run(data, source="/bench")
        out.append(record.message_of(event, f"{checked.project}/{checked.rollout.alias}", "runs"))
    return out


def worker(store: MemoryStore, bus: MemoryBus) -> worker_loop.Worker:
    index: Any = None  # No stage here asks it.
    return worker_loop.Worker(store, bus, index, Settings(bus="sqlite"), stages=("record", "consolidate"))


# --- requests and bytes -------------------------------------------------------------------------------------


async def counted(datas: Sequence[dict[str, Any]], *, at_once: int) -> dict[str, Any]:
    """Requests and bytes of each run, `at_once` of them in each round."""
    store, bus = Counted(), MemoryBus(partitions=1)
    one = worker(store, bus)
    for start in range(0, len(datas), at_once):
        await bus.produce(messages(datas[start : start + at_once]))
        await one.drain()
    runs = len(datas)
    return {
        "runs": runs,
        "requests": store.by_kind(runs),
        "by_part": {name: round(count / runs, 3) for name, count in sorted(store.requests.items())},
        "bytes_written": {part: round(size / runs) for part, size in sorted(store.written.items()) if size},
        "bytes_kept": {
            part: round(
                sum(len(body) for key, body in store.snapshot().items() if key.split("/")[1] == part) / runs
            )
            for part in (keys.RECORDS, keys.ROLLOUTS, keys.PACKS, keys.MANIFESTS)
        },
    }


def events(datas: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Bytes of an event on the bus: as sent, and compressed as a producer's batch of 20."""
    sent = [
        (one.value or b"") + (one.key or b"") + b"".join(name.encode() + value for name, value in one.headers)
        for one in messages([data for data in datas if len(data["record"]) < models.RECORD_INLINE_BYTES_MAX])
    ]
    packed = [zstandard.compress(b"".join(sent[at : at + 20]), 3) for at in range(0, len(sent), 20)]
    return {
        "runs": len(sent),
        "bytes": round(statistics.mean(map(len, sent))),
        "bytes_compressed": round(sum(map(len, packed)) / len(sent)),
    }


# --- processor time -----------------------------------------------------------------------------------------


async def record_ms(runs: int = 400) -> float:
    store, bus = MemoryStore(), MemoryBus(partitions=1)
    await bus.produce(messages(made_up(runs)))
    stage, consumer = record.RecordStage(store, bus), await bus.consumer(group="record", topics=["runs"])
    began = time.process_time()
    while found := await consumer.poll(records_max=100, timeout_seconds=0.0):
        await stage.process(found)
    return (time.process_time() - began) / runs * 1000


async def pass_ms() -> list[dict[str, float]]:
    """Processor time of passes, by the rollouts with notes after it and those taken in."""
    store, bus = MemoryStore(), MemoryBus(partitions=1)
    stage = record.RecordStage(store, bus)
    consolidation = consolidate.ConsolidateStage(store, bus, reader=revisions.Reader(store))
    consumer = await bus.consumer(group="record", topics=["runs"])
    made, rows = 0, []

    async def take(count: int) -> float:
        nonlocal made
        datas = [samples.sample(number, runs_per_rollout=1) for number in range(made, made + count)]
        made += count
        await bus.produce(messages(datas))
        while found := await consumer.poll(records_max=100, timeout_seconds=0.0):
            await stage.process(found)
        began = time.process_time()
        while (await consolidation.work(PROJECT, MEMORY)).more:
            pass
        return (time.process_time() - began) * 1000

    await take(1)
    for size in SIZES:
        if size - made - 3 > 0:
            await take(size - made - 3)
        for taken in (1, 1, 1):
            took = await take(taken)
            rows.append({"selected": min(made, 256), "taken": taken, "ms": round(took, 2)})
    for taken in TAKEN[1:]:
        rows += [{"selected": 256, "taken": taken, "ms": round(await take(taken), 2)} for _ in range(2)]
    return rows


def fit(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """`made + state × selected + taken × taken`, by least squares."""
    columns = [[1.0, row["selected"], row["taken"]] for row in rows]
    weights = [
        1 / row["ms"] for row in rows
    ]  # Ratios count, not milliseconds: a small pass as much as a large one.
    matrix = [
        [sum(w * w * a[i] * a[j] for w, a in zip(weights, columns, strict=True)) for j in range(3)]
        + [sum(w * w * a[i] * row["ms"] for w, a, row in zip(weights, columns, rows, strict=True))]
        for i in range(3)
    ]
    for i in range(3):
        for j in range(3):
            if i != j:
                factor = matrix[j][i] / matrix[i][i]
                matrix[j] = [a - factor * b for a, b in zip(matrix[j], matrix[i], strict=True)]
    made, state, taken = (round(max(0.0, matrix[i][3] / matrix[i][i]), 3) for i in range(3))
    return {"made": made, "state": state, "taken": taken}


async def index_costs() -> dict[str, Any]:
    """Bytes of the index and processor time for each rollout, as it grows."""
    store, bus = MemoryStore(), MemoryBus(partitions=1)
    await bus.produce(messages(made_up(200, runs_per_rollout=RUNS_PER_ROLLOUT)))
    await worker(store, bus).drain()
    models_of = [
        heads.parse(key, Stored(body, "e"), fmt=lookup_index.fmt_of(key))
        for key, body in store.snapshot().items()
        if key.split("/")[1] == keys.ROLLOUTS
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.db"
        index = lookup_index.Index(path)
        done = 0
        for count in INDEXED:
            began, before = time.process_time(), done
            while done < count:
                found = [
                    _another(models_of[n % len(models_of)], n) for n in range(done, min(count, done + 500))
                ]
                index.apply(found)
                done += len(found)
            ms = (time.process_time() - began) / (done - before) * 1000
            size = _size(path)
            rows.append({"rollouts": count, "bytes": size, "ms": round(ms, 3)})
        index.close()
    return {"runs_per_rollout": RUNS_PER_ROLLOUT, "rows": rows}


def _size(path: Path) -> int:
    files = [Path(f"{path}{end}") for end in ("", "-wal")]
    return sum(file.stat().st_size for file in files if file.exists())


def _another(head: heads.Head, number: int) -> heads.Head:
    """The same rollout under another name."""
    name = f"conv-{number:07d}"
    body = {**head.body, "rollout": name, "original": name}
    body["runs"] = {f"{run}-{number}": entry for run, entry in head.body["runs"].items()}
    return dataclasses.replace(
        head, key=keys.rollout_head(PROJECT, MEMORY, name), body=body, etag=f"e{number}"
    )


async def seed_ms(count: int = 50) -> tuple[float, float]:
    """Processor time of resolving a seed of a full memory, and of making its files, without requests to the store."""
    store, bus = MemoryStore(), MemoryBus(partitions=1)
    await bus.produce(messages(made_up(300, runs_per_rollout=1)))
    await worker(store, bus).drain()
    reader = revisions.Reader(store)
    await seeds.open_seed(reader, await seeds.resolve(reader, PROJECT, MEMORY, "session-0"))
    began = time.process_time()
    found = [await seeds.resolve(reader, PROJECT, MEMORY, f"session-{number}") for number in range(count)]
    resolved = time.process_time()
    for seed in found:
        await seeds.open_seed(reader, seed)
    return (resolved - began) / count * 1000, (time.process_time() - resolved) / count * 1000


async def s3_ms(count: int = 300) -> dict[str, float]:
    """Processor time of this process for one request to a real S3 server, by kind."""
    sys.path.insert(0, str(ROOT))
    from infra.dev import s3 as dev_s3

    from runlore.store.s3 import S3Store

    if problem := dev_s3.missing():
        raise SystemExit(problem)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        server = dev_s3.S3Server(folder)
        server.start()
        try:
            store = S3Store.of(Settings(store="s3", **_settings(server.environment)))
            body = b"x" * 4096

            async def timed(kind: str, work: Any) -> None:
                await work(0)
                began = time.process_time()
                for at in range(0, count, 10):
                    await asyncio.gather(*(work(1 + at + more) for more in range(10)))
                found[kind] = round((time.process_time() - began) / count * 1000, 3)

            await timed("PUT", lambda n: store.put_if_absent(f"p/records/aa/{n}", body))
            await timed("GET", lambda n: store.get(f"p/records/aa/{n}"))
            await timed("LIST", lambda n: _listed(store, f"p/records/aa/{n}"))
            await timed("DELETE", lambda n: store.delete(f"p/records/aa/{n}"))
            await store.close()
        finally:
            server.stop()
    return found


def _settings(environment: dict[str, str]) -> dict[str, Any]:
    return {
        name.removeprefix("RUNLORE_").lower(): value
        for name, value in environment.items()
        if name.startswith("RUNLORE_S3")
    }


async def _listed(store: Any, prefix: str) -> int:
    return len([row async for row in store.list(prefix)])


# --- all of it ----------------------------------------------------------------------------------------------


async def measure(folders: Sequence[Path]) -> dict[str, Any]:
    datas = real(folders) if folders else made_up(400)
    passes = await pass_ms()
    resolve, opened = await seed_ms()
    return {
        "events": {
            **events(datas),
            "of": "the runs in the given folders" if folders else "made-up runs of 8 KB",
        },
        "together": await counted(made_up(400), at_once=400),
        "alone": await counted(made_up(64, runs_per_rollout=1), at_once=1),
        "passes": passes,
        "ms": {
            "request": await s3_ms(),
            "record": round(await record_ms(), 3),
            "pass": fit(passes),
            "resolve": round(resolve, 3),
            "seed": round(opened, 3),
        },
        "index": await index_costs(),
    }
