"""What the pipeline costs, side by side in one run.

    python benchmarks/pipeline.py [--events 400] [--rollouts 1000] [--json]
    python benchmarks/pipeline.py --cluster [--events 2000] [--minutes 2] [--quick]

1. Events per second through `record` on the embedded bus and store: with the rules, with the rules stubbed
   (what the pipeline itself costs), and the *bare* cost: the same objects with the same bytes written by the
   same adapters in the same number of lanes, and nothing else. All with fsync. Rounds are interleaved.
2. Time, bytes and objects of the nth revision of one memory, as it grows to `--rollouts` rollouts.
3. Cold start of the command line.
4. With --cluster only this: the pipeline on a real broker and a real S3 server (`cluster.py`).

Absolute times are this machine's; the ratios are what to compare.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from runlore.bus.sqlite import SqliteBus
from runlore.commit import revisions
from runlore.consumers import consolidate, record
from runlore.memory import rules
from runlore.producer import Producer
from runlore.store import port
from runlore.store.directory import DirectoryStore
from runlore.worker import concurrency

LANES = 8
START = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
POLL = 100
ROUNDS = 3


def sample(number: int, runs_per_rollout: int) -> dict[str, Any]:
    """A run of about 8 KB: a request, twelve calls of which one fails and is mended, an answer."""
    items: list[dict[str, Any]] = []
    for call in range(12):
        wrong = call == 4
        arguments = json.dumps(
            {"path": f"src/module_{(number + call) % 40}.py", "mode": "x" if wrong else "r"}
        )
        output = "ValueError: mode 'x' is not one of r, w" if wrong else f"line {call} " + "lorem ipsum " * 40
        name = f"call_{number}_{call}"
        items.append({"type": "function_call", "name": "read_file", "arguments": arguments, "call_id": name})
        items.append({"type": "function_call_output", "call_id": name, "output": output})
    line = {
        "updated_at": (START + dt.timedelta(minutes=number)).isoformat(),
        "input": [{"role": "user", "content": f"Please look at module {number % 40} and say what it does."}],
        "generated_items": items,
        "terminal_metadata": {"terminal_state": "completed", "has_final_output": True},
        "final_output": f"Module {number % 40} reads files.",
    }
    return {
        "project": "bench",
        "memory": "code",
        "session_id": f"session-{number // runs_per_rollout}",
        "run_id": f"run-{number}",
        "record": json.dumps(line, separators=(",", ":")),
    }


class Counting(DirectoryStore):
    """The directory store, noting what is written."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.written: list[tuple[str, bytes]] = []

    async def put(self, key: str, body: bytes) -> str:
        self.written.append((key, body))
        return await super().put(key, body)

    async def put_if_absent(self, key: str, body: bytes) -> str:
        self.written.append((key, body))
        return await super().put_if_absent(key, body)

    async def compare_and_set(
        self, key: str, body: bytes, etag: str | None, *, guard: port.Guard | None = None
    ) -> str:
        self.written.append((key, body))
        return await super().compare_and_set(key, body, etag, guard=guard)


@contextlib.contextmanager
def stubbed() -> Iterator[None]:
    """The rules, doing nothing."""
    empty = {"engine": rules.ENGINE}

    def digest(line: str, meta: Any) -> dict[str, Any]:
        return {"run": meta.run, "attempt": meta.attempt}

    patches = {"digest": digest, "build": lambda digests: empty, "extend": lambda summary, digests: empty}
    with contextlib.ExitStack() as stack:
        for name, function in patches.items():
            stack.enter_context(mock.patch.object(rules, name, function))
        yield


async def through_record(folder: Path, datas: list[dict[str, Any]]) -> tuple[float, list[tuple[str, bytes]]]:
    """(seconds from the first poll to the last commit, everything that was written)."""
    store, bus = Counting(folder / "store"), SqliteBus(folder / "log.db")
    try:
        await Producer(store, bus).publish(datas, source="/bench")
        stage = record.RecordStage(store, bus, runtime=concurrency.runtime(LANES))
        consumer = await bus.consumer(group="record", topics=["runs"])
        begin = time.perf_counter()
        while messages := await consumer.poll(records_max=POLL, timeout_seconds=0):
            processed = await stage.process(messages)
            await consumer.commit(processed.offsets)
        took = time.perf_counter() - begin
        await consumer.close()
        return took, store.written
    finally:
        await bus.close()
        await store.close()


async def bare(folder: Path, writes: list[tuple[str, bytes]]) -> float:
    """Seconds to write the same bytes under the same keys, `LANES` at a time."""
    store = DirectoryStore(folder / "store")
    waiting = iter(writes)

    async def lane() -> None:
        for key, body in waiting:
            await store.put(key, body)

    try:
        begin = time.perf_counter()
        await asyncio.gather(*(lane() for _ in range(LANES)))
        return time.perf_counter() - begin
    finally:
        await store.close()


async def measure_events(events: int) -> dict[str, Any]:
    rows: dict[str, list[float]] = {"bare writes": [], "rules stubbed": [], "with rules": []}
    counts: dict[str, Any] = {}
    datas = [sample(number, runs_per_rollout=4) for number in range(events)]
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as name, stubbed():
            took, writes = await through_record(Path(name), datas)
            rows["rules stubbed"].append(took)
        with tempfile.TemporaryDirectory() as name:
            rows["bare writes"].append(await bare(Path(name), writes))
        with tempfile.TemporaryDirectory() as name:
            took, written = await through_record(Path(name), datas)
            rows["with rules"].append(took)
        size = sum(len(body) for _, body in written)
        counts = {"writes_per_event": len(written) / events, "bytes_per_event": size / events}
    best = {name: events / statistics.median(seconds) for name, seconds in rows.items()}
    ratio = {name: best[name] / best["bare writes"] for name in best}
    return {"events": events, "per_second": best, "of_bare": ratio, **counts}


async def measure_revisions(rollouts: int) -> list[dict[str, Any]]:
    """The cost of a revision that takes in one new rollout, when the memory has n already."""
    steps = [n for n in (1, 10, 50, 100, 200, 256, 300, 500, 750, 1000, 2000, 5000) if n <= rollouts]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        store, bus = Counting(Path(name) / "store"), SqliteBus(Path(name) / "log.db")
        runtime = concurrency.runtime(LANES)
        stage = record.RecordStage(store, bus, runtime=runtime)
        consolidation = consolidate.ConsolidateStage(
            store, bus, reader=revisions.Reader(store), runtime=runtime
        )
        consumer = await bus.consumer(group="record", topics=["runs"])
        made = 0

        async def take(upto: int) -> None:
            nonlocal made
            datas = [sample(number, runs_per_rollout=1) for number in range(made, upto)]
            await Producer(store, bus).publish(datas, source="/bench")
            while messages := await consumer.poll(records_max=POLL, timeout_seconds=0):
                await consumer.commit((await stage.process(messages)).offsets)
            made = upto

        try:
            for step in steps:
                if step - 3 > made:
                    await take(step - 3)
                    while (await consolidation.work("bench", "code")).more:
                        pass
                samples = []
                while made < step:
                    await take(made + 1)
                    store.written.clear()
                    begin = time.perf_counter()
                    await consolidation.work("bench", "code")
                    took = time.perf_counter() - begin
                    kinds = [(key.split("/")[1], len(body)) for key, body in store.written]
                    samples.append((took, kinds))
                took, kinds = sorted(samples, key=lambda one: one[0])[len(samples) // 2]
                rows.append(
                    {
                        "rollouts": step,
                        "milliseconds": took * 1000,
                        "objects": len(kinds),
                        "bytes": sum(size for _, size in kinds),
                        "of_which_pack": sum(size for kind, size in kinds if kind == "packs"),
                    }
                )
        finally:
            await consumer.close()
            await bus.close()
            await store.close()
    return rows


def measure_start() -> dict[str, float]:
    """Milliseconds, median of nine: the interpreter alone, and `runlore --help`."""

    def timed(command: list[str]) -> float:
        times = []
        for _ in range(9):
            begin = time.perf_counter()
            subprocess.run(
                command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "COLUMNS": "100"}
            )
            times.append(time.perf_counter() - begin)
        return statistics.median(times) * 1000

    return {
        "python -c pass": timed([sys.executable, "-c", "pass"]),
        "runlore --help": timed([sys.executable, "-m", "runlore.cli.main", "--help"]),
        "runlore --version": timed([sys.executable, "-m", "runlore.cli.main", "--version"]),
    }


def measure_cluster(options: argparse.Namespace) -> None:
    import cluster

    options.events = options.events or 2000
    found = cluster.measure(options)
    print(json.dumps(found, indent=2)) if options.json else cluster.tell(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, help="events of part 1 (default 400) or 4 (default 2000)")
    parser.add_argument(
        "--rollouts", type=int, default=1000, help="rollouts that part 2 grows to (default 1000)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--cluster", action="store_true", help="on a real Kafka broker and a real S3 server")
    parser.add_argument("--minutes", type=float, default=2, help="part 4: how long the steady load lasts")
    parser.add_argument("--quick", action="store_true", help="part 4: one round, fewer workers and lanes")
    parser.add_argument("--only", default="", help="part 4: of bare,requests,scaling,freshness")
    options = parser.parse_args()
    if options.cluster:
        measure_cluster(options)
        return
    found = {
        "events": asyncio.run(measure_events(options.events or 400)),
        "revisions": asyncio.run(measure_revisions(options.rollouts)),
        "start_milliseconds": measure_start(),
    }
    if options.json:
        print(json.dumps(found, indent=2))
        return
    events = found["events"]
    print(
        f"1. {events['events']} events of about 8 KB, 4 to a rollout, median of {ROUNDS} interleaved rounds"
    )
    for name, per_second in events["per_second"].items():
        print(f"   {name:<16} {per_second:8.0f} events/s   {events['of_bare'][name]:5.2f}x bare")
    print(
        f"   {events['writes_per_event']:.2f} writes and {events['bytes_per_event'] / 1024:.1f} KiB per event"
    )
    print("2. the nth revision of one memory (each takes in one new rollout)")
    print("   rollouts   time ms   objects     bytes   of which pack")
    for row in found["revisions"]:
        told = f"{row['rollouts']:8}  {row['milliseconds']:8.1f}  {row['objects']:8}  {row['bytes']:8}"
        print(f"   {told}  {row['of_which_pack']:8}")
    print("3. cold start, median of 9")
    for name, milliseconds in found["start_milliseconds"].items():
        print(f"   {name:<18} {milliseconds:6.0f} ms")


if __name__ == "__main__":
    main()
