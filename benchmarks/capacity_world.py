"""A deployment of many workers under load in simulated time: what `capacity.py` checks its model against.

The workers, the stages, the rules, heads, marks and packs are production code, on the fake store and bus of the tests'
cluster (`runlore.testing.cluster`). What is added here is time: each request takes what a request to S3 or Kafka takes
(`Latency`: log-normal, by kind), and each worker has one core (`Costs`): requests and the work that is given to threads
queue for it. So many workers with many memories can be looked at on one machine, at whatever speed that has.

Nothing fails here: faults are the business of tests/simulation. Lag is from when an event is sent to when a memory's
head names a revision that covers it.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from runlore import clock, errors
from runlore.bus.port import Outgoing
from runlore.commit import keys
from runlore.consumers import consolidate, record
from runlore.events import envelope, models
from runlore.settings import Settings
from runlore.testing import cluster, cluster_ports, simloop
from runlore.testing.stores import MemoryStore
from runlore.worker import loop as worker_loop

LIST_PAGE = 1000
"""Rows of one page of a LIST, as on S3."""
SELECTED_MAX = consolidate.ROLLOUTS_SELECTED_MAX
TICK_SECONDS = 0.05
"""Runs that end within so long are produced together."""
CALLBACKS_MAX = 10**10
SETTLE_SECONDS_MAX = 600.0


@dataclass(frozen=True)
class Latency:
    """How long a request takes: a log-normal time by its median and its 99th percentile, in milliseconds."""

    p50: float
    p99: float

    @property
    def sigma(self) -> float:
        return math.log(self.p99 / self.p50) / 2.326

    @property
    def mean(self) -> float:
        return self.p50 * math.exp(self.sigma**2 / 2)

    def seconds(self, dice: random.Random) -> float:
        return self.p50 / 1000 * math.exp(self.sigma * dice.gauss(0.0, 1.0))


LATENCIES = {
    "GET": Latency(15, 60),
    "PUT": Latency(20, 100),
    "LIST": Latency(30, 150),
    "DELETE": Latency(15, 80),
    "produce": Latency(6, 40),
    "poll": Latency(15, 40),
    "commit": Latency(6, 40),
}
KINDS = {
    "get": "GET",
    "list": "LIST",
    "delete": "DELETE",
    "compare_and_delete": "DELETE",
    "put": "PUT",
    "put_if_absent": "PUT",
    "compare_and_set": "PUT",
}


@dataclass(frozen=True)
class Costs:
    """Processor time of a worker, in milliseconds: of a request by its kind, of a run that is recorded, of a pass."""

    request: dict[str, float]
    run: float
    state: float
    """Of what a pass does, for each rollout that has notes: load, render, guards, draft."""
    taken: float
    """For each rollout that a pass takes in."""
    made: float
    """Of a pass that makes a revision, whatever is in it."""

    def of_pass(self, selected: float, taken: float) -> float:
        return self.made + self.state * selected + self.taken * taken


@dataclass(frozen=True)
class Load:
    """What comes in: runs a second over memories, the k-th of which gets a share of 1 / k^skew."""

    runs_per_second: float
    memories: int
    skew: float = 1.1
    seconds: float = 60.0
    projects: int = 100
    runs_per_rollout: float = 4.0
    seed: int = 1
    is_aged: bool = False
    """Whether each pass is charged as one of a memory that holds notes of 256 rollouts, as all do in the end."""

    def rates(self) -> list[float]:
        """Runs a second of each memory, the hottest first."""
        weights = [(rank + 1) ** -self.skew for rank in range(self.memories)]
        total = sum(weights)
        return [self.runs_per_second * weight / total for weight in weights]

    def name(self, rank: int) -> tuple[str, str]:
        return f"p{rank % self.projects:03d}", f"m{rank:05d}"


@dataclass(frozen=True)
class Fleet:
    """Who works it."""

    workers: int
    partitions: int = 64
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Measured:
    """What one simulation came to."""

    runs: int = 0
    seconds: float = 0.0
    """From the first run to the last one covered."""
    lags: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Of each memory, by rank: seconds from a run's end to the revision that covers it."""
    requests: Counter[str] = field(default_factory=Counter)
    by_part: Counter[str] = field(default_factory=Counter)
    """By kind of request and part of the key."""
    conflicts: Counter[str] = field(default_factory=Counter)
    moves: Counter[int] = field(default_factory=Counter)
    """Revisions of each memory, by rank."""
    passes_lost: int = 0
    """Revisions that were written and that no head came to name."""
    core_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    bytes_out: Counter[str] = field(default_factory=Counter)
    bytes_in: int = 0
    covered_late: int = 0
    """Runs that were not covered when the last run had been sent."""
    uncovered: int = 0
    """Runs that were never covered while it was watched."""

    def all_lags(self) -> list[float]:
        return sorted(itertools.chain.from_iterable(self.lags.values()))


class Shelf(MemoryStore):
    """The store in memory; it knows its projects without looking through all keys."""

    def __init__(self) -> None:
        super().__init__()
        self._projects: set[str] = set()

    async def children(self, prefix: str) -> list[str]:
        return sorted(self._projects) if prefix == "" else await super().children(prefix)

    def _write(self, key: str, body: bytes) -> str:
        self._projects.add(key.split("/", 1)[0])
        return super()._write(key, body)


class CostedLoop(simloop.SimLoop):
    """The simulated loop; what is given to a thread takes its process's core for as long as `cost` says."""

    cost: Callable[[str, Sequence[Any]], float]
    core: Callable[[Any, float], float]

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        done = self.create_future()

        def work() -> None:
            if done.cancelled():
                return
            try:
                done.set_result(func(*args))
            except Exception as exc:
                done.set_exception(exc)

        inner = getattr(func, "args", (func,))  # `asyncio.to_thread` gives a partial of `context.run`.
        seconds = self.cost(getattr(inner[0], "__name__", ""), inner[1:])
        self.call_later(self.core(simloop.PROCESS.get(), seconds), work)
        return done


class World(cluster.Cluster):
    """A cluster in which nothing goes wrong, and everything takes its time."""

    def __init__(self, loop: CostedLoop, load: Load, fleet: Fleet, costs: Costs) -> None:
        super().__init__(loop, load.seed, partitions=fleet.partitions)
        self.store = Shelf()
        self.found, self.costs, self.load = Measured(), costs, load
        self._dice = random.Random(load.seed)
        self._free: dict[str, float] = defaultdict(float)
        loop.cost, loop.core = self._cost, self._core
        self.sent: dict[str, tuple[int, float]] = {}
        """Run → its memory's rank, and when it was sent."""
        self._drafts: dict[str, list[str]] = {}
        """Manifest → the runs that it covers, until a head names it."""
        self.sent_all_at = math.inf

    def tell(self, what: str) -> None:
        return None

    # --- time -------------------------------------------------------------------------------------------

    def _core(self, process: Any, seconds: float) -> float:
        """How long until a process's core has worked for so long, after what it was given before."""
        if process is None or not process.name.startswith("worker"):
            return seconds
        name, now = process.name, self.loop.time()
        self._free[name] = max(now, self._free[name]) + seconds
        self.found.core_seconds[name] += seconds
        return self._free[name] - now

    def _cost(self, name: str, args: Sequence[Any]) -> float:
        costs = self.costs
        if name == "make":
            return costs.run / 1000
        if name == "accept":
            state, batch = args[0], args[1]
            held = SELECTED_MAX if self.load.is_aged else len({*state.selected, *batch})
            return costs.of_pass(held, len(batch)) / 1000
        return 0.0  # The costs above are of all that is done in threads for a run, or for a pass.

    async def request(
        self, process: Any, kind: str, what: str, perform: Callable[[], Any], **more: Any
    ) -> Any:
        if self.over:
            raise errors.StoreUnavailable("the simulation is over")
        name = KINDS.get(kind, kind)
        waits = self._core(process, self.costs.request.get(name, 0.0) / 1000)
        takes = LATENCIES[name].seconds(self._dice) if process.name.startswith("worker") else 0.001
        await asyncio.sleep(waits + takes / 2)
        part = what.split("/", 2)[1] if what.count("/") > 1 else ""
        if kind in KINDS and process.name.startswith("worker"):
            self.found.requests[name] += 1
            self.found.by_part[f"{name} {part}"] += 1
        try:
            result = perform()
        except errors.RunloreError as exc:
            self.found.conflicts[f"{part} {exc.kind}"] += 1
            await asyncio.sleep(takes / 2)
            raise
        if more.get("writes") and "/" in what:
            self._landed(part, what)
        elif name == "GET" and result is not None:
            self.found.bytes_in += len(getattr(result, "body", result))
        await asyncio.sleep(takes / 2)
        return result

    # --- what landed ------------------------------------------------------------------------------------

    def _landed(self, part: str, key: str) -> None:
        body = self.store.body(key)
        if body is None:
            return
        self.found.bytes_out[part] += len(body)
        if part == keys.MANIFESTS:
            covers = json.loads(body)["covers"]
            name = key.rsplit("-", 1)[1]
            self._drafts[name] = [run for one in covers for run, _ in one["runs"]]
        elif part == keys.MEMORIES:
            named = json.loads(body).get("manifest")
            for run in (runs := self._drafts.pop(named, [])):
                rank, at = self.sent.pop(run)
                self.found.lags[rank].append(self.loop.time() - at)
                self.found.covered_late += self.loop.time() > self.sent_all_at
            if runs:
                self.found.moves[rank] += 1


# --- a run of it --------------------------------------------------------------------------------------------


class Zipf:
    """Draws ranks."""

    def __init__(self, rates: Sequence[float]) -> None:
        self._ends = list(itertools.accumulate(rates))

    def draw(self, dice: random.Random) -> int:
        return min(bisect.bisect(self._ends, dice.random() * self._ends[-1]), len(self._ends) - 1)


class Agents:
    """What ends runs: at random times, each of a memory drawn by its share, in a rollout that goes on or begins."""

    RECENT = 64

    def __init__(self, world: World, load: Load) -> None:
        self._world, self._load = world, load
        self._dice = random.Random(load.seed + 1)
        self._zipf = Zipf(load.rates())
        self._rollouts: dict[int, list[str]] = defaultdict(list)
        self._count = 0

    async def main(self, store: Any, bus: Any) -> None:
        load = self._load
        end = self._world.loop.time() + load.seconds
        carried = 0.0
        while self._world.loop.time() < end:
            carried += load.runs_per_second * TICK_SECONDS
            count, carried = int(carried), carried % 1.0
            if count:
                await bus.produce([self._run() for _ in range(count)])
            await clock.sleep(TICK_SECONDS - 0.001)
        self._world.sent_all_at = self._world.loop.time()

    def _run(self) -> Outgoing:
        rank = self._zipf.draw(self._dice)
        self._count += 1
        run = f"run{self._count:07d}"
        project, memory = self._load.name(rank)
        self._world.sent[run] = (rank, self._world.loop.time())
        self._world.found.runs += 1
        data = {
            "project": project,
            "memory": memory,
            "session_id": self._rollout(rank),
            "run_id": run,
            "attempt": 1,
            "record": _record(self._count),
        }
        rollout = models.run_completed(data).rollout.alias
        return record.message_of(envelope.of_run(data, source="/load"), f"{project}/{rollout}", "runs")

    def _rollout(self, rank: int) -> str:
        known = self._rollouts[rank]
        if not known or self._dice.random() < 1 / self._load.runs_per_rollout:
            known.append(f"s{self._count:07d}")
            del known[: -self.RECENT]
            return known[-1]
        return known[int(self._dice.random() * len(known))]


def _record(number: int) -> str:
    """A small run; its processor time is charged as that of one of 8 KB."""
    call = {"call_id": "c", "name": "query", "arguments": json.dumps({"table": number % 40})}
    items = [
        {"type": "function_call", **call},
        {"type": "function_call_output", "call_id": "c", "output": f"{number} rows"},
    ]
    line = {
        "updated_at": clock.now_iso(),
        "input": [{"role": "user", "content": f"Count the rows of table {number % 40}"}],
        "generated_items": items,
        "terminal_metadata": {"terminal_state": "completed", "has_final_output": True},
        "final_output": f"{number} rows",
    }
    return json.dumps(line)


@contextmanager
def _costed() -> Iterator[CostedLoop]:
    loop = CostedLoop(callbacks_max=CALLBACKS_MAX)
    with mock.patch.object(cluster_ports, "LIST_PAGE", LIST_PAGE):
        try:
            yield loop
        finally:
            loop.close()


def simulate(
    load: Load, fleet: Fleet, costs: Costs, *, tell: Callable[[float, Measured], None] | None = None
) -> Measured:
    """What becomes of a load."""
    with _costed() as loop:
        world = World(loop, load, fleet, costs)
        try:
            loop.run_until_complete(loop.create_task(_drive(world, load, fleet, tell), context=world.context))
        finally:
            world.over = True
        if world.failed:
            raise world.failed[0]
        return world.found


async def _drive(
    world: World, load: Load, fleet: Fleet, tell: Callable[[float, Measured], None] | None
) -> None:
    stopping = asyncio.Event()
    for number in range(fleet.workers):
        world.start(f"worker{number:02d}", _worker(fleet, stopping))
    await asyncio.sleep(5.0)  # The groups are shared out.
    world.found.requests.clear()
    world.found.by_part.clear()
    world.found.core_seconds.clear()
    began = world.loop.time()
    agents = world.start("agents", Agents(world, load).main)
    while not agents.done or world.sent:
        await asyncio.sleep(1.0)
        if world.failed or world.loop.time() - began > load.seconds + SETTLE_SECONDS_MAX:
            break
        if tell is not None:
            tell(world.loop.time() - began, world.found)
    world.found.seconds = world.loop.time() - began
    world.found.uncovered = len(world.sent)
    world.found.passes_lost = len(world._drafts)


def _worker(fleet: Fleet, stopping: asyncio.Event) -> cluster.Main:
    settings = Settings(bus="sqlite").model_copy(update=fleet.settings)

    async def main(store: Any, bus: Any) -> None:
        one = worker_loop.Worker(
            store,
            bus,
            None,  # type: ignore[arg-type]  # The index is no stage here.
            settings,
            stages=("record", "consolidate"),
            stopping=stopping,
        )
        await one.run()

    return main
