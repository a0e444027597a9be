"""A cluster of real processes, and what breaks them: workers, a producer, a proxy in front of S3; a broker to stop.

Everything that is broken, and when, follows from the seed and from the share of runs that are recorded: so a
schedule can be replayed, as far as processes on a busy machine can. Whether work is done is asked of the broker
and of S3 themselves.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import homes
from aiokafka import AIOKafkaConsumer

import brokers
from cluster import ledger, plan

HERE = Path(__file__).resolve().parent
RATES = {
    "slow_down": 0.02,
    "conflict": 0.01,
    "dropped": 0.005,
    "lost_reply": 0.01,
    "late": 0.005,
    "cut": 0.01,
}
RATES |= {"slow": 0.02}
"""What the proxy does to requests, by share."""
STALL_SECONDS = 15.0
"""How long an act waits for the runs that it is due at: then it is time anyway."""
STOP_SECONDS_MAX = 40.0
GROUPS = ("record", "snapshot")


@dataclass(frozen=True)
class Form:
    """How large, how long, and how much is broken."""

    events: int
    rollouts: int
    workers: int
    spread_seconds: float
    """Over how long the producer spreads its sends."""
    settle_seconds_max: float
    acts: tuple[tuple[str, int], ...]
    """What is done, and how often."""


SHORT = Form(200, 40, 2, 8, 60, (("kill_worker", 1), ("restart_broker", 1), ("add_partitions", 1)))
FULL = Form(
    *(2000, 200, 3, 60, 300),
    (
        ("kill_worker", 9),
        ("kill_all_workers", 1),
        ("restart_broker", 2),
        ("crash_broker", 1),
        ("add_partitions", 2),
        ("kill_producer", 2),
        ("change_faults", 4),
    ),
)


@dataclass(frozen=True)
class Act:
    """Something that is broken, once so large a share of the runs is recorded."""

    at: float
    what: str


def schedule(form: Form, seed: int) -> list[Act]:
    dice = random.Random(f"acts {seed}")
    acts = [Act(dice.uniform(0.05, 0.9), what) for what, times in form.acts for _ in range(times)]
    return sorted(acts, key=lambda act: act.at)


class Cluster:
    """Processes on one bucket and one prefix of topics."""

    def __init__(self, folder: Path, kafka, s3, form: Form, seed: int) -> None:
        self.folder, self.kafka, self.s3, self.form = folder, kafka, s3, form
        self.dice = random.Random(f"cluster {seed}")
        self.seed = seed
        self.name = f"cluster-{os.getpid()}-{time.monotonic_ns() % 10**9}"
        self.partitions = 8
        self.client = s3.client(max_pool_connections=16)
        self.made = plan.make(seed, events=form.events, rollouts=form.rollouts, folder=folder / "left")
        self.ledger_file = folder / "ledger.jsonl"
        self.proxy: subprocess.Popen | None = None
        self.proxied = ""
        self.workers: list[subprocess.Popen | None] = [None] * form.workers
        self.begun: dict[int, int] = {}
        """Where in its log each worker's present process began."""
        self.driver: subprocess.Popen | None = None
        self.said: list[str] = []
        self.began = time.monotonic()

    # --- begin and end ------------------------------------------------------------------------------------

    def start(self) -> None:
        self.client.create_bucket(Bucket=self.name)
        self.client.put_bucket_versioning(Bucket=self.name, VersioningConfiguration={"Status": "Enabled"})
        self.made.write(self.folder / "plan.jsonl")
        self.runlore("topics", "apply", "--yes")
        self.proxy = self._spawn(
            *("proxy", sys.executable, "-m", "runlore.testing.s3proxy", "--upstream", self.s3.endpoint),
            *("--seed", str(self.seed), *(f"--rate={name}={rate}" for name, rate in RATES.items())),
        )
        wait_until(lambda: (self.folder / "proxy.log").read_text().count("\n"), "the proxy", 15)
        self.proxied = json.loads((self.folder / "proxy.log").read_text().splitlines()[0])["endpoint"]
        for number in range(len(self.workers)):
            self.start_worker(number)
        self.start_producer()

    def close(self) -> None:
        for process in (*self.workers, self.driver, self.proxy):
            if process is not None and process.poll() is None:
                process.kill()
            if process is not None:
                process.wait()
        self.client.close()

    def environment(self, home: str, endpoint: str | None = None) -> dict[str, str]:
        """The settings of a process; `endpoint`: S3 itself, or the proxy in front of it."""
        given = {
            **self.s3.environment,
            "RUNLORE_HOME": str(self.folder / home),
            "RUNLORE_S3_BUCKET": self.name,
            "RUNLORE_S3_ENDPOINT": endpoint or self.proxied,
            "RUNLORE_S3_TIMEOUT_SECONDS": "5",
            "RUNLORE_S3_CONNECTIONS_MAX": "16",
            "RUNLORE_BUS": "kafka",
            "RUNLORE_KAFKA_SERVERS": self.kafka.servers,
            "RUNLORE_KAFKA_TOPIC_PREFIX": f"{self.name}.",
            "RUNLORE_KAFKA_GROUP_PREFIX": f"{self.name}.",
            "RUNLORE_KAFKA_SESSION_SECONDS": "6",
            "RUNLORE_REBALANCE_SECONDS_MAX": "3",
            "RUNLORE_POLL_TIMEOUT_SECONDS": "0.5",
            "RUNLORE_MARKS_INTERVAL_SECONDS": "2",
            "RUNLORE_RETRY_SECONDS_MAX": "2",
            "RUNLORE_WORKSPACE_FOLDERS": json.dumps([str(self.folder / "left")]),
        }
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        path = os.pathsep.join([str(HERE.parent), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
        return {**kept, **given, "HOME": str(self.folder), "PYTHONPATH": path}

    def runlore(self, *words: str, timeout: float = 120) -> dict:
        """What a command answers; it asks S3 itself, not the proxy."""
        done = subprocess.run(
            [homes.RUNLORE, *words, "--json"],
            env=self.environment("home-cli", self.s3.endpoint),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    def _spawn(self, name: str, *words: str, more: dict[str, str] | None = None) -> subprocess.Popen:
        with open(self.folder / f"{name}.log", "ab") as log:
            return subprocess.Popen(
                words,
                env={**self.environment(f"home-{name}"), **(more or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    # --- what is broken -----------------------------------------------------------------------------------

    def start_worker(self, number: int) -> None:
        # Every second one is a static member of its groups: it comes back to its partitions without a rebalance.
        more = {"RUNLORE_KAFKA_INSTANCE": f"worker-{number}"} if number % 2 else {}
        words = (str(homes.RUNLORE), "worker", "--stages", "record,snapshot,consolidate")
        log = self.folder / f"worker-{number}.log"
        self.begun[number] = log.stat().st_size if log.exists() else 0
        self.workers[number] = self._spawn(f"worker-{number}", *words, more=more)

    def is_up(self, number: int) -> bool:
        """Whether a worker has begun to work: before that nobody is there to take a SIGTERM."""
        log = (self.folder / f"worker-{number}.log").read_bytes()
        return b"runlore worker runs" in log[self.begun[number] :]

    def kill_worker(self, number: int | None = None) -> None:
        """kill -9, and another one in its place a moment later."""
        number = self.dice.randrange(len(self.workers)) if number is None else number
        self._kill(number)
        time.sleep(self.dice.uniform(0, 2))
        self.start_worker(number)

    def kill_all_workers(self) -> None:
        for number in range(len(self.workers)):
            self._kill(number)
        for number in range(len(self.workers)):
            self.start_worker(number)

    def _kill(self, number: int) -> None:
        process = self.workers[number]
        assert process is not None
        assert process.poll() is None, f"worker {number} ended by itself: {process.returncode}\n{self.logs()}"
        process.kill()
        process.wait()

    def restart_broker(self) -> None:
        self.kafka.stop()
        time.sleep(self.dice.uniform(0, 3))
        self.kafka.start()

    def crash_broker(self) -> None:
        self.kafka.kill()
        self.kafka.start()

    def add_partitions(self) -> None:
        self.partitions += 4
        self.runlore("topics", "apply", "--yes", "--partitions", f"runs={self.partitions}")

    def start_producer(self) -> None:
        words = (
            sys.executable,
            str(HERE / "driver.py"),
            str(self.folder / "plan.jsonl"),
            str(self.ledger_file),
        )
        self.driver = self._spawn("producer", *words, str(self.form.spread_seconds))

    def kill_producer(self) -> None:
        assert self.driver is not None
        if self.driver.poll() is None:
            self.driver.kill()
            self.driver.wait()
            self.start_producer()

    def change_faults(self) -> None:
        """Calm, rough, or the same faults in other shares."""
        factor = self.dice.choice((0.0, 1.0, 3.0))
        self.set_faults({name: rate * factor * self.dice.uniform(0.5, 1.5) for name, rate in RATES.items()})

    def set_faults(self, rates: dict[str, float]) -> dict:
        """Tell the proxy what to do from now on; what it counted."""
        request = urllib.request.Request(
            f"{self.proxied}/-/faults", json.dumps({"rates": rates}).encode(), method="PUT"
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)["counts"]

    # --- what goes on -------------------------------------------------------------------------------------

    def run(self) -> None:
        """The whole schedule, until everything is sent and nothing is left to do."""
        for act in schedule(self.form, self.seed):
            self._wait_for_share(act.at)
            self.say(f"{act.what} at {self.recorded()} records")
            getattr(self, act.what)()
        wait_until(lambda: self.driver.poll() is not None, "the producer to end", 120, self.logs)
        assert self.driver.returncode == 0, self.logs()
        self.say(f"all sent; {self.recorded()} records")
        counts = self.set_faults({})
        self.say(f"faults stop: {counts}")
        self.settle()
        self.say("settled")

    def settle(self) -> None:
        """Until the broker has every offset and S3 no mark."""
        wait_until(self.is_done, "an end of all work", self.form.settle_seconds_max, self.what_waits, 0.5)

    def is_done(self) -> bool:
        return not self.marks() and not any(self.lags().values())

    def what_waits(self) -> str:
        return f"lags {self.lags()}, marks {self.marks()}\n{self.logs()}"

    def stop_workers(self) -> None:
        """SIGTERM: each must end in order."""
        for number in range(len(self.workers)):
            wait_until(lambda number=number: self.is_up(number), f"worker {number}", 30, self.logs)
        for number, process in enumerate(self.workers):
            assert process is not None
            assert process.poll() is None, f"worker {number} ended: {process.returncode}\n{self.logs()}"
            process.send_signal(signal.SIGTERM)
        for number, process in enumerate(self.workers):
            assert process is not None
            code = process.wait(STOP_SECONDS_MAX)
            assert code == 0, f"worker {number} did not end in order: {code}\n{self.logs()}"

    def lags(self) -> dict[str, int]:
        """Messages of `runs` that a group has not committed, by partition with any, asked of the broker."""
        return asyncio.run(
            _lags(self.kafka.servers, f"{self.name}.runs", [f"{self.name}.{g}" for g in GROUPS])
        )

    def marks(self) -> list[str]:
        return [key for key in self.keys() if key.split("/")[1] == "marks"]

    def recorded(self) -> int:
        return sum(key.split("/")[1] == "records" for key in self.keys())

    def keys(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return [row["Key"] for page in pages for row in page.get("Contents", ())]

    def ledger(self) -> ledger.Ledger:
        return ledger.read(self.ledger_file)

    def logs(self) -> str:
        """The last lines of every process."""
        tails = [f"seed {self.seed}", *self.said]
        for path in sorted(self.folder.glob("*.log")):
            tails += [f"--- {path.name}", *path.read_text(errors="replace").splitlines()[-12:]]
        return "\n".join(tails)

    def say(self, what: str) -> None:
        self.said.append(f"{time.monotonic() - self.began:6.1f} s  {what}")
        print(self.said[-1], flush=True)

    def _wait_for_share(self, share: float) -> None:
        wanted = share * len(self.made.identities)
        give_up = time.monotonic() + STALL_SECONDS
        while self.recorded() < wanted and time.monotonic() < give_up:
            time.sleep(0.2)


async def _lags(servers: str, topic: str, groups: list[str]) -> dict[str, int]:
    async with brokers.admin(servers) as admin:
        consumer = AIOKafkaConsumer(topic, bootstrap_servers=servers, group_id=None)
        await consumer.start()
        try:
            ends = await consumer.end_offsets(consumer.assignment())
        finally:
            await consumer.stop()
        found = {}
        for group in groups:
            committed = await admin.list_consumer_group_offsets(group, partitions=list(ends))
            for at, end in ends.items():
                lag = end - max(0, committed[at].offset if at in committed else 0)
                if lag:
                    found[f"{group}/{at.partition}"] = lag
        return found


def wait_until(condition, what: str, seconds: float, tell=lambda: "", pause: float = 0.1) -> None:
    """Wait until `condition()` holds, for at most so long; `tell` says why not."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}\n{tell()}"
        time.sleep(pause)
