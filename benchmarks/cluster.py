"""What the pipeline costs on a real broker and a real S3 server, side by side in one run: part 4 of `pipeline.py`.

    python benchmarks/pipeline.py --cluster [--events 2000] [--minutes 2] [--quick]

1. Events per second through record and summarize (the rules) against a bare loop that consumes the same messages
   and puts the same objects (`bare.py`), rounds interleaved; and where the processor's time goes.
2. Requests per run at saturation, by class, with and without a small snapshot; what a million runs cost at S3's
   list prices.
3. Throughput by workers and lanes.
4. From a run's end to its being visible in a seed, at half of the load that one worker bears; the worker's memory.

Broker, S3 server and everything measured share this machine's cores, so the ratios say more than the rates.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pipeline as samples

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from infra.dev import kafka as dev_kafka  # noqa: E402
from infra.dev import s3 as dev_s3  # noqa: E402

from runlore.bus.kafka import KafkaBus  # noqa: E402
from runlore.producer import Producer, put_claim  # noqa: E402
from runlore.settings import Settings  # noqa: E402
from runlore.snapshots import library  # noqa: E402
from runlore.store.s3 import S3Store  # noqa: E402
from runlore.testing.stores import MemoryStore  # noqa: E402

PER_1000 = {"PUT": 0.005, "GET": 0.0004}
"""US dollars for 1,000 requests of S3 Standard in us-east-1, list price as of August 2026 (aws.amazon.com/s3/pricing):
PUT, COPY, POST and LIST, and GET with all others. A DELETE is free."""
CLASSES = {
    **dict.fromkeys(("PutObject", "ListObjectsV2", "CreateMultipartUpload", "UploadPart"), "PUT"),
    **dict.fromkeys(("CompleteMultipartUpload",), "PUT"),
    **dict.fromkeys(("GetObject", "HeadObject"), "GET"),
    **dict.fromkeys(("DeleteObject", "DeleteObjects", "AbortMultipartUpload"), "DELETE"),
}
RUNS_PER_ROLLOUT = 4
MEMORIES = 4
ROUNDS = 3
SNAPSHOTS_MAX = 400
STEADY_EVENTS = MEMORIES * RUNS_PER_ROLLOUT * 150
DRAIN_SECONDS_MAX = 600.0


# --- servers and topics -----------------------------------------------------------------------------------


@dataclass
class Place:
    """One broker and one S3 server; each measurement has topics, groups and a prefix of its own."""

    kafka: dev_kafka.KafkaServer
    s3: dev_s3.S3Server
    folder: Path
    numbers: int = 0

    def environment(self, **more: object) -> dict[str, str]:
        self.numbers += 1
        name = f"b{self.numbers}"
        given = {
            **self.s3.environment,
            "RUNLORE_HOME": str(self.folder / name),
            "RUNLORE_S3_PREFIX": f"{name}/",
            "RUNLORE_BUS": "kafka",
            "RUNLORE_KAFKA_SERVERS": self.kafka.servers,
            "RUNLORE_KAFKA_TOPIC_PREFIX": f"{name}.",
            "RUNLORE_KAFKA_GROUP_PREFIX": f"{name}.",
            "RUNLORE_LOG_LEVEL": "error",
            **{f"RUNLORE_{key}".upper(): str(value) for key, value in more.items()},
        }
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RUNLORE_")}
        words = [Path(sys.executable).with_name("runlore"), "topics", "apply", "--yes"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(words, env={**kept, **given}, check=True, **quiet)
        return {**kept, **given}


@contextlib.contextmanager
def servers() -> Iterator[Place]:
    """Both servers, from their start to their end."""
    problems = [problem for problem in (dev_kafka.missing(), dev_s3.missing()) if problem]
    if problems:
        raise SystemExit("\n".join(problems))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kafka, s3 = dev_kafka.KafkaServer(folder / "kafka"), dev_s3.S3Server(folder / "s3")
        try:
            kafka.start()
            s3.start()
            yield Place(kafka, s3, folder)
        finally:
            kafka.stop()
            s3.stop()


def settings_of(environment: dict[str, str]) -> Settings:
    names = Settings.model_fields
    given = {name: environment.get(f"RUNLORE_{name.upper()}") for name in names}
    return Settings(**{name: value for name, value in given.items() if value is not None})


# --- what is sent -----------------------------------------------------------------------------------------


def runs(count: int) -> list[dict[str, Any]]:
    """Runs of about 8 KB, four to a rollout, over four memories; those of a rollout in order, with others between."""
    by_rollout: dict[str, list[dict[str, Any]]] = {}
    for number in range(count):
        data = samples.sample(number, RUNS_PER_ROLLOUT)
        data["memory"] = f"code-{(number // RUNS_PER_ROLLOUT) % MEMORIES}"
        by_rollout.setdefault(data["session_id"], []).append(data)
    order = [name for name, some in by_rollout.items() for _ in some]
    random.Random(7).shuffle(order)
    return [by_rollout[name].pop(0) for name in order]


async def publish(
    environment: dict[str, str], datas: list[dict[str, Any]], *, snapshots: bool = False
) -> None:
    settings = settings_of(environment)
    store, bus = S3Store.of(settings), KafkaBus.of(settings)
    try:
        if snapshots:
            await add_workspaces(store, datas)
        for at in range(0, len(datas), 100):
            await Producer(store, bus).publish(datas[at : at + 100], source="/bench")
    finally:
        await bus.close()
        await store.close()


async def add_workspaces(store: S3Store, datas: list[dict[str, Any]]) -> None:
    """Give each run an archive that moves its rollout's line on from the one before it."""
    lines: dict[str, tuple[int, str]] = {}
    apart = library.Snapshots(MemoryStore(), "bench")
    for data in datas:
        archive = workspace(data["run_id"])
        claim = await put_claim(store, data["project"], archive)
        version, before = lines.get(data["session_id"], (0, ""))
        base = {"base": {"counter": version, "snapshot": before}} if before else {}
        data["workspaces"] = [{"archive": claim.model_dump(), **base}]
        saved = await apart.ingest(io.BytesIO(archive))
        lines[data["session_id"]] = version + 1, saved.ref.id


def workspace(run: str) -> bytes:
    """A tar of three small files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("notes.md", "result.json", "src/check.py"):
            body = f"{name} of {run}\n".encode() * 40
            member = tarfile.TarInfo(name)
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    return out.getvalue()


# --- processes --------------------------------------------------------------------------------------------


class Process:
    """A child that prints one line when it is ready and one when it has ended."""

    def __init__(self, environment: dict[str, str], script: str, *words: str) -> None:
        command = [sys.executable, str(Path(__file__).with_name(script)), *words]
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert json.loads(self._process.stdout.readline())["ready"]

    @property
    def pid(self) -> int:
        return self._process.pid

    def end(self) -> dict[str, Any]:
        self._process.send_signal(signal.SIGTERM)
        out, _ = self._process.communicate(timeout=60)
        return json.loads(out.splitlines()[-1])


async def drained(environment: dict[str, str], groups: list[str], *, marks: bool = False) -> None:
    """Wait until the groups have committed everything, and (with `marks`) no mark is left."""
    from runlore.commit import marks as marks_of

    settings = settings_of(environment)
    bus, store = KafkaBus.of(settings), S3Store.of(settings)
    give_up = time.monotonic() + DRAIN_SECONDS_MAX
    try:
        while time.monotonic() < give_up:
            lags = [sum((await bus.lag(group=group, topic="runs")).values()) for group in groups]
            if not any(lags) and not (marks and await marks_of.marked(store)):
                return
            await asyncio.sleep(0.3)
        raise SystemExit(f"not drained within {DRAIN_SECONDS_MAX:.0f} s: {lags}")
    finally:
        await bus.close()
        await store.close()


def measured(
    place: Place,
    datas: list[dict[str, Any]],
    *,
    stages: str = "record",
    workers: int = 1,
    snapshots: bool = False,
    keep: Path | None = None,
    **settings: object,
) -> dict[str, Any]:
    """Runlore's worker over a backlog: events per second, what it did and what it took."""
    environment = place.environment(**settings)
    asyncio.run(publish(environment, datas, snapshots=snapshots))
    words = [stages, str(keep or "")]
    found = [Process(environment, "working.py", *words) for _ in range(workers)]
    groups = [stage for stage in stages.split(",") if stage != "consolidate"]
    asyncio.run(drained(environment, groups, marks="consolidate" in stages))
    ends = [one.end() for one in found]
    return together(ends, len(datas))


def bare(place: Place, datas: list[dict[str, Any]], objects: Path, **settings: object) -> dict[str, Any]:
    environment = place.environment(**settings)
    asyncio.run(publish(environment, datas))
    process = Process(environment, "bare.py", str(objects))
    asyncio.run(drained(environment, ["bare"]))
    return together([process.end()], len(datas))


def together(ends: list[dict[str, Any]], events: int) -> dict[str, Any]:
    """What several processes did as one."""
    began = min(one["began"] for one in ends if one["began"])
    out: dict[str, Any] = {
        "per_second": events / (max(one["ended"] for one in ends) - began),
        "cpu_ms": sum(one["cpu"] for one in ends) / events * 1000,
    }
    for name in ("requests", "bytes_out", "parts", "calls"):
        out[name] = dict(sum((Counter(one.get(name, {})) for one in ends), Counter()))
    return out


# --- 1. against bare --------------------------------------------------------------------------------------


def measure_against_bare(place: Place, events: int, rounds: int) -> dict[str, Any]:
    objects = place.folder / "objects"
    first = measured(place, runs(events), keep=objects)  # Not timed: it warms up, and says what to put.
    rows: dict[str, list[dict[str, Any]]] = {"bare": [], "runlore": []}
    loads = []
    for _ in range(rounds):
        rows["bare"].append(bare(place, runs(events), objects))
        rows["runlore"].append(measured(place, runs(events)))
        loads.append(os.getloadavg()[0])
    ratios = [
        mine["per_second"] / its["per_second"]
        for mine, its in zip(rows["runlore"], rows["bare"], strict=True)
    ]
    return {
        "events": events,
        "load": loads,
        "bare": median(rows["bare"]),
        "runlore": median(rows["runlore"]),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "puts_per_event": first["requests"].get("PutObject", 0) / events,
        "kib_per_event": first["bytes_out"].get("PutObject", 0) / events / 1024,
    }


def median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of the median rate, so that its parts belong together."""
    return sorted(rows, key=lambda row: row["per_second"])[len(rows) // 2]


# --- 2. requests ------------------------------------------------------------------------------------------


def measure_requests(place: Place, events: int) -> dict[str, Any]:
    out = {}
    for name, stages, snapshots in (
        ("memory only", "record,consolidate", False),
        ("with a small snapshot", "record,consolidate,snapshot", True),
    ):
        events = min(events, SNAPSHOTS_MAX) if snapshots else events
        found = measured(place, runs(events), stages=stages, snapshots=snapshots)
        classes: Counter[str] = Counter()
        for operation, count in found["requests"].items():
            classes[CLASSES[operation]] += count
        out[name] = {
            "per_run": {one: classes[one] / events for one in ("PUT", "GET", "DELETE")},
            "operations": {one: count / events for one, count in sorted(found["requests"].items())},
            "dollars_per_million": sum(classes[one] / events * 1000 * PER_1000[one] for one in PER_1000),
            "per_second": found["per_second"],
        }
    return out


# --- 3. workers and lanes -----------------------------------------------------------------------------------


def measure_scaling(place: Place, events: int, *, quick: bool) -> dict[str, Any]:
    by_workers = {
        count: measured(place, runs(events), workers=count)["per_second"]
        for count in ((1, 2) if quick else (1, 2, 4))
    }
    by_lanes = {
        count: measured(place, runs(events), lanes=count)["per_second"]
        for count in ((1, 8) if quick else (1, 4, 8, 16, 32))
    }
    return {"workers": by_workers, "lanes": by_lanes}


# --- 4. freshness and memory ------------------------------------------------------------------------------


def measure_freshness(place: Place, minutes: float) -> dict[str, Any]:
    """Runs at half of what one worker bears: when each is in the head's revision, and the worker's memory."""
    # Of memories as large as those that the steady load meets: a pass over more rollouts costs more.
    full = measured(place, runs(STEADY_EVENTS), stages="record,consolidate,snapshot")["per_second"]
    environment = place.environment()
    process = Process(environment, "working.py", "record,consolidate,snapshot", "")
    try:
        found = asyncio.run(_steady(environment, full / 2, minutes * 60, process.pid))
    finally:
        process.end()
    return {"full_per_second": full, "load": os.getloadavg()[0], **found}


async def _steady(environment: dict[str, str], rate: float, seconds: float, pid: int) -> dict[str, Any]:
    settings = settings_of(environment)
    store, bus = S3Store.of(settings), KafkaBus.of(settings)
    sent: dict[str, float] = {}
    seen: dict[str, float] = {}
    sizes: list[tuple[float, float]] = []
    ended = asyncio.Event()
    watchers = [asyncio.create_task(_watch(store, f"code-{n}", seen, ended)) for n in range(MEMORIES)]
    watchers.append(asyncio.create_task(_weigh(pid, sizes, ended)))
    producer = Producer(store, bus)
    began = time.monotonic()
    number = 0
    try:
        while (now := time.monotonic() - began) < seconds:
            due = int(now * rate) - number
            datas = [samples.sample(number + one, RUNS_PER_ROLLOUT) for one in range(max(0, due))]
            for data in datas:
                data["memory"] = f"code-{(number // RUNS_PER_ROLLOUT) % MEMORIES}"
                number += 1
            if datas:
                at = time.time()
                await producer.publish(datas, source="/bench")
                sent.update(dict.fromkeys((data["run_id"] for data in datas), at))
            await asyncio.sleep(0.05)
        for _ in range(600):
            if len(seen) == len(sent):
                break
            await asyncio.sleep(0.1)
    finally:
        ended.set()
        await asyncio.gather(*watchers)
        await bus.close()
        await store.close()
    waits = sorted(seen[run] - at for run, at in sent.items() if run in seen)
    return {
        "rate": rate,
        "runs": len(sent),
        "unseen": len(sent) - len(waits),
        "seconds": {
            name: waits[int(len(waits) * share)]
            for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
        },
        "rss": grown(sizes),
    }


async def _watch(store: S3Store, memory: str, seen: dict[str, float], ended: asyncio.Event) -> None:
    """Note when each run of a memory is covered by the revision that its head names: what a seed reads."""
    from runlore.commit import revisions

    reader = revisions.Reader(store)
    known = 0
    while not ended.is_set():
        head = await reader.head("bench", memory)
        at = time.time()
        number, sha256 = int(head.body.get("revision", 0)), head.body.get("manifest")
        newest = number
        while sha256 and number > known:
            body = await reader.manifest("bench", memory, number, sha256)
            for covers in body["covers"]:
                for run, _ in covers["runs"]:
                    seen.setdefault(run, at)
            parent = body["parent"] or {"revision": 0, "manifest": None}
            number, sha256 = parent["revision"], parent["manifest"]
        known = newest
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), 0.2)


async def _weigh(pid: int, sizes: list[tuple[float, float]], ended: asyncio.Event) -> None:
    began = time.monotonic()
    while not ended.is_set():
        text = Path(f"/proc/{pid}/status").read_text()  # noqa: ASYNC240  (no disk behind it)
        kib = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS"))
        sizes.append((time.monotonic() - began, kib / 1024))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), 2)


def grown(sizes: list[tuple[float, float]]) -> dict[str, Any]:
    """MiB at the end of each eighth, and how much more each minute over the second half."""
    later = sizes[len(sizes) // 2 :]
    slope = statistics.linear_regression([at for at, _ in later], [size for _, size in later]).slope
    eighths = [sizes[len(sizes) * part // 8 - 1][1] for part in range(1, 9)]
    return {"eighths": eighths, "most": max(size for _, size in sizes), "per_minute": slope * 60}


# --- all --------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with servers() as place:
        wanted = options.only.split(",") if options.only else ("bare", "requests", "scaling", "freshness")
        found: dict[str, Any] = {}
        if "bare" in wanted:
            found["bare"] = measure_against_bare(place, options.events, 1 if options.quick else ROUNDS)
        if "requests" in wanted:
            found["requests"] = measure_requests(place, options.events)
        if "scaling" in wanted:
            found["scaling"] = measure_scaling(place, options.events, quick=options.quick)
        if "freshness" in wanted:
            found["freshness"] = measure_freshness(place, options.minutes)
        return found


def tell(found: dict[str, Any]) -> None:
    if "bare" in found:
        _tell_bare(found["bare"])
    if "requests" in found:
        print("4b. requests per run at saturation, and what a million runs cost at S3's list prices")
        for name, row in found["requests"].items():
            per = ", ".join(f"{count:.2f} {kind}" for kind, count in row["per_run"].items())
            print(f"   {name:<22} {per}   ${row['dollars_per_million']:.2f} a million runs")
            print("      " + ", ".join(f"{kind} {count:.3f}" for kind, count in row["operations"].items()))
    if "scaling" in found:
        print("4c. events/s through record, by workers and by lanes of one worker")
        for kind, rows in found["scaling"].items():
            print(f"   {kind:<8} " + "   ".join(f"{count}: {rate:.0f}" for count, rate in rows.items()))
    if "freshness" in found:
        row = found["freshness"]
        print(
            f"4d. run end to visible in a seed, {row['rate']:.0f} runs/s (half of {row['full_per_second']:.0f})"
        )
        waits = "   ".join(f"{name} {value:.2f} s" for name, value in row["seconds"].items())
        print(f"   {waits}   {row['runs']} runs, {row['unseen']} not seen, load {row['load']:.1f}")
        rss = row["rss"]
        told = ", ".join(f"{size:.0f}" for size in rss["eighths"])
        print(
            f"   worker's memory by eighths of the time: {told} MiB; {rss['most']:.0f} at most, "
            f"{rss['per_minute']:+.2f} MiB a minute over the second half"
        )


def _tell_bare(row: dict[str, Any]) -> None:
    loads = ", ".join(f"{load:.1f}" for load in row["load"])
    print(f"4a. record and summarize on real servers, {row['events']} events of about 8 KB; load {loads}")
    print(
        f"   {row['puts_per_event']:.2f} PUTs and {row['kib_per_event']:.1f} KiB per event, the same for both"
    )
    for name in ("bare", "runlore"):
        one = row[name]
        print(
            f"   {name:<8} {one['per_second']:6.0f} events/s   {one['cpu_ms']:6.2f} ms of processor per event"
        )
    ratios = ", ".join(f"{ratio:.2f}" for ratio in row["ratios"])
    print(f"   runlore is {row['ratio']:.2f} of bare (rounds: {ratios})")
    mine = row["runlore"]
    print("   where its processor time goes, ms per event:")
    parts = {name: seconds / row["events"] * 1000 for name, seconds in mine["parts"].items()}
    parts["rest (loop, aiokafka, threads)"] = mine["cpu_ms"] - sum(parts.values())
    for name, value in sorted(parts.items(), key=lambda one: -one[1]):
        calls = mine["calls"].get(name)
        print(f"      {name:<32} {value:6.2f}" + (f"   {calls / row['events']:.2f} calls" if calls else ""))
