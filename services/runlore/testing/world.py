"""A simulated world: production coroutines driven by hand, one call to a port at a time.

Fault model. Each call to the store or the bus is one step; between two steps anything may happen that the
design allows:

- another process goes on (each process is one coroutine; the store and the log are shared);
- the process dies before the call, or after its effect (a later incarnation begins with empty hands);
- a write's reply is lost: the write has landed, never will, or lands at any later moment;
- 409: the store refused a concurrent conditional write, nothing landed; 503: nothing happened;
- the power goes: every process dies at once.

A LIST and each GET are steps of their own, and a LIST of several pages is several. The log delivers at least
once: a new consumer starts at the committed offset, and a topic may be replayed from its start.

The driven code may await the ports and `runlore.clock` only. Each process has its own clock and ids, a
function of its name and of what it did, so that the order in which others go changes nothing in what it
writes, and states that differ in nothing else are one.
"""

from __future__ import annotations

import contextvars
import datetime as dt
import hashlib
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Generator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from typing import Any

from runlore import clock, errors
from runlore.bus.port import Message, Outgoing, TopicPartition
from runlore.store.port import Guard, Listed, Stored
from runlore.testing.buses import MemoryBus, MemoryConsumer, Watched
from runlore.testing.exhaust import Gen
from runlore.testing.stores import MemoryStore

STEPS_MAX = 3000
"""Steps of one schedule; more means that something goes round in circles."""
INCARNATIONS_MAX = 8
EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

OK, CRASH_BEFORE, CRASH_AFTER = "ok", "crash before", "crash after"
LOST_LANDED, LOST, LATE = "reply lost, landed", "reply lost, never lands", "reply lost, lands later"
CONFLICT, UNAVAILABLE = "409", "503"
POWER_CUT = "power cut"

STORE_WRITES = ("put", "put_if_absent", "compare_and_set", "delete", "compare_and_delete")
CONDITIONAL = ("put_if_absent", "compare_and_set", "compare_and_delete")
BUS_WRITES = ("produce", "commit")


class Crash(BaseException):
    """The process is gone; no handler runs, so none may take this."""


class Stuck(AssertionError):
    """A schedule does not come to an end: nothing is left that could happen, or far too much happens."""


@dataclass(frozen=True)
class Call:
    """One call to a port, waiting to be performed."""

    kind: str
    what: str
    perform: Callable[[], Any]

    @property
    def writes(self) -> bool:
        return self.kind in STORE_WRITES or self.kind in BUS_WRITES

    def __str__(self) -> str:
        return f"{self.kind} {self.what}"


@dataclass(frozen=True)
class Faults:
    """How much may go wrong in one schedule."""

    crashes: int = 0
    lost: int = 0
    """Lost replies, of all three kinds."""
    refused: int = 0
    """409 and 503."""
    power_cuts: int = 0
    switches: int | None = None
    """How often a process that could go on is left for another; None: as often as it likes."""


NO_FAULTS = Faults()


class _Step:
    """What a coroutine awaits for one step."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __await__(self) -> Generator[Call, Any, Any]:
        return (yield self._call)


class ProcessClock(clock.World):
    """A process's own time and ids: a function of its name and of how often it asked."""

    def __init__(self, name: str, seconds: float) -> None:
        self._name = name
        self._seconds = seconds
        self._drawn = 0

    def now(self) -> dt.datetime:
        return EPOCH + dt.timedelta(seconds=self._seconds)

    def monotonic(self) -> float:
        return self._seconds

    async def sleep(self, seconds: float) -> None:
        self._seconds += seconds

    def random_bytes(self, count: int) -> bytes:
        self._drawn += 1
        return hashlib.sha256(f"{self._name}/{self._drawn}".encode()).digest()[:count]

    def random(self) -> float:
        return 0.5


Main = Callable[["SimStore", "SimBus"], Coroutine[Any, Any, Any]]


@dataclass
class Process:
    """One process: its program, its present incarnation, and the call that it waits for."""

    name: str
    number: int
    main: Main
    restarts: bool
    """Whether a new incarnation begins when it dies."""
    incarnation: int = 0
    coroutine: Coroutine[Any, Any, Any] | None = None
    context: contextvars.Context = field(default_factory=contextvars.Context)
    call: Call | None = None
    history: int = 0
    """A hash of all that this incarnation was told: with it, its local state is determined."""

    @property
    def alive(self) -> bool:
        return self.coroutine is not None

    def state(self) -> tuple[Any, ...]:
        return (self.number, self.incarnation, self.history, self.alive, str(self.call))


class Simulation:
    """One schedule: a world, its processes, and a generator that chooses what happens next."""

    def __init__(
        self,
        gen: Gen,
        *,
        faults: Faults = NO_FAULTS,
        store: MemoryStore | None = None,
        bus: MemoryBus | None = None,
        list_page: int = 1000,
        watch: Callable[[Simulation, Call, bytes | None], None] | None = None,
        private: Callable[[Call], bool] | None = None,
    ) -> None:
        self.gen = gen
        self.allow(faults)
        self.store = store or MemoryStore()
        self.bus = bus or MemoryBus(partitions=1)
        self.list_page = list_page
        self.watch = watch
        self.private = private or (lambda call: False)
        """Calls that no other process can notice or disturb: nobody else goes on just before one."""
        self.processes: list[Process] = []
        self.current: Process | None = None
        self.late: list[Call] = []
        self.trace: list[str] = []
        self.named: set[tuple[int, str]] = set()
        """Revisions that a head has named, for whoever watches."""

    # --- processes ----------------------------------------------------------------------------------------

    def spawn(self, name: str, main: Main, *, restarts: bool = True) -> Process:
        process = Process(name, len(self.processes), main, restarts)
        self.processes.append(process)
        self._begin(process)
        return process

    def run(self) -> None:
        """Go on until every process has ended, or died for good."""
        for _ in range(STEPS_MAX):
            alive = [process for process in self.processes if process.alive]
            if not alive:
                return
            if len(alive) == 1 and not self.late and not any(self.left.values()):
                self._take(alive[0], OK, 0)
                continue
            options = self._options(alive)
            chosen = self.gen.choose(len(options), self.state) if len(options) > 1 else 0
            self._take(*options[chosen])
        raise Stuck(f"{STEPS_MAX} steps and no end:\n" + "\n".join(self.trace[-40:]))

    def land(self) -> None:
        """Let every write whose reply was lost, and that is still under way, land now."""
        while self.late:
            self._perform(self.late.pop(0), "late")

    def allow(self, faults: Faults) -> None:
        """From here on this much may go wrong."""
        self.left = {"crash": faults.crashes, "lost": faults.lost, "refused": faults.refused}
        self.left["power"] = faults.power_cuts
        self.switches = faults.switches

    def quietly(self) -> None:
        """From here on nothing goes wrong any more: faults stop."""
        self.allow(Faults(switches=0))

    def state(self) -> tuple[Any, ...]:
        """Everything that the rest of the schedule depends on."""
        return (
            self.store.fingerprint(),
            self.bus.fingerprint(ignore=("changed",)),
            tuple(process.state() for process in self.processes),
            tuple(sorted(str(call) for call in self.late)),
            tuple(self.left.values()),
            self.switches,
            self.current.number if self.current else None,
        )

    # --- choices ------------------------------------------------------------------------------------------

    def _options(self, alive: Sequence[Process]) -> list[tuple[Process | None, str, int]]:
        """What may happen next: (process, action, which late write). The undisturbed way comes first."""
        first = self.current if self.current in alive else alive[0]
        others: Sequence[Process] = [process for process in alive if process is not first]
        if first is self.current and (self.switches == 0 or (first.call and self.private(first.call))):
            others = []
        options: list[tuple[Process | None, str, int]] = []
        for process in [first, *others]:
            assert process.call is not None
            options += [(process, action, 0) for action in self._actions(process.call)]
        options += [(None, LATE, number) for number in range(len(self.late))]
        if self.left["power"]:
            options.append((None, POWER_CUT, 0))
        return options

    def _actions(self, call: Call) -> list[str]:
        actions = [OK]
        if call.writes and self.left["crash"]:
            actions += [CRASH_BEFORE, CRASH_AFTER]
        if call.writes and self.left["lost"]:
            actions += [LOST_LANDED, LOST] + ([LATE] if call.kind in STORE_WRITES else [])
        if self.left["refused"]:
            actions += [UNAVAILABLE] + ([CONFLICT] if call.kind in CONDITIONAL else [])
        return actions

    def _take(self, process: Process | None, action: str, number: int) -> None:
        if process is None:
            if action == POWER_CUT:
                self._power_cut()
            else:
                self._perform(self.late.pop(number), "late")
            return
        if self.current is not process and self.current is not None and self.current.alive and self.switches:
            self.switches -= 1
        self.current = process
        call = process.call
        assert call is not None
        self.trace.append(
            f"{process.name}.{process.incarnation}: {call}" + (f" [{action}]" if action != OK else "")
        )
        if action in (CRASH_BEFORE, CRASH_AFTER):
            self.left["crash"] -= 1
            if action == CRASH_AFTER:
                self._perform(call, "landed")
            self._kill(process)
            if process.restarts and process.incarnation < INCARNATIONS_MAX:
                self._begin(process)
            return
        self._resume(process, *self._outcome(call, action))

    def _outcome(self, call: Call, action: str) -> tuple[Any, BaseException | None]:
        """Perform `call` as `action` says; what its process is told."""
        if action == OK:
            return self._perform(call)
        if action in (UNAVAILABLE, CONFLICT):
            self.left["refused"] -= 1
            if action == CONFLICT:
                return None, errors.WriteConflict()
            return None, errors.BusUnavailable() if _on_bus(call) else errors.StoreUnavailable()
        self.left["lost"] -= 1
        if action == LOST_LANDED:
            self._perform(call, "landed")
        elif action == LATE:
            self.late.append(call)
        return None, errors.BusUnavailable() if _on_bus(call) else errors.OutcomeUnknown()

    def _perform(self, call: Call, why: str = "") -> tuple[Any, BaseException | None]:
        if why == "late":
            self.trace.append(f"(late) {call}")
        before = self.store.body(call.what) if call.kind in STORE_WRITES else None
        try:
            result = call.perform()
        except errors.RunloreError as exc:
            return None, exc
        if self.watch is not None and call.writes:
            self.watch(self, call, before)
        return result, None

    # --- coroutines ---------------------------------------------------------------------------------------

    def _begin(self, process: Process) -> None:
        process.incarnation += 1
        process.history = 0
        name = f"{process.name}.{process.incarnation}"
        # A time of its own for each incarnation: what it writes differs from what another one would.
        own = ProcessClock(name, process.incarnation * 600 + process.number * 60)
        process.context = contextvars.copy_context()
        process.context.run(clock.install, own)
        store, bus = SimStore(self), SimBus(self)
        process.coroutine = process.context.run(process.main, store, bus)
        self._resume(process, None, None)

    def _resume(self, process: Process, result: Any, error: BaseException | None) -> None:
        assert process.coroutine is not None
        told = _print_of(result) if error is None else type(error).__name__
        process.history = hash((process.history, told))
        try:
            if error is None:
                process.call = process.context.run(process.coroutine.send, result)
            else:
                process.call = process.context.run(process.coroutine.throw, error)
            if not isinstance(process.call, Call):
                raise AssertionError(f"{process.name} waits for something that is no port: {process.call}")
        except StopIteration:
            process.coroutine = process.call = None
        except errors.Retryable as exc:
            # A supervisor starts a process again that gave up on a passing fault.
            self.trace.append(f"{process.name}.{process.incarnation} gave up: {exc.kind}")
            process.coroutine = process.call = None
            if process.incarnation < INCARNATIONS_MAX:
                self._begin(process)

    def _kill(self, process: Process) -> None:
        assert process.coroutine is not None
        try:
            process.context.run(process.coroutine.throw, Crash())
        except Crash:
            pass
        else:
            raise AssertionError(f"{process.name} went on after it died, to {process.call}")
        process.coroutine = process.call = None

    def _power_cut(self) -> None:
        self.left["power"] -= 1
        self.trace.append("(power cut)")
        for process in self.processes:
            if process.alive:
                self._kill(process)


def _on_bus(call: Call) -> bool:
    return call.kind in (*BUS_WRITES, "poll")


def _print_of(result: Any) -> Any:
    """A hashable name for what a process was told."""
    if isinstance(result, Stored):
        return result.etag
    if isinstance(result, list):
        return tuple(_print_of(one) for one in result)
    if isinstance(result, Listed):
        return (result.key, result.etag)
    if isinstance(result, Message):
        return (result.at, result.offset)
    return result


def finish(awaitable: Awaitable[Any]) -> Any:
    """The result of a coroutine that never suspends: a call to a fake."""
    steps = awaitable.__await__()
    try:
        next(steps)
    except StopIteration as exc:
        return exc.value
    raise AssertionError("a fake suspended")


async def _rows(store: MemoryStore, prefix: str, after: str, count: int) -> list[Listed]:
    found: list[Listed] = []
    async for row in store.list(prefix):
        if row.key > after:
            found.append(row)
            if len(found) == count:
                break
    return found


class SimStore:
    """`store.port.ObjectStore` as one process sees it: every request is a step."""

    def __init__(self, simulation: Simulation) -> None:
        self._sim = simulation
        self._inner = simulation.store

    async def _call(self, kind: str, what: str, work: Callable[[], Awaitable[Any]]) -> Any:
        return await _Step(Call(kind, what, lambda: finish(work())))

    async def get(self, key: str) -> Stored | None:
        return await self._call("get", key, lambda: self._inner.get(key))

    async def get_many(self, keys: Sequence[str]) -> list[Stored | None]:
        return [await self.get(key) for key in keys]

    async def get_range(self, key: str, offset: int, length: int) -> bytes | None:
        return await self._call("get", key, lambda: self._inner.get_range(key, offset, length))

    async def get_tail(self, key: str, length: int) -> bytes | None:
        return await self._call("get", key, lambda: self._inner.get_tail(key, length))

    async def put(self, key: str, body: bytes) -> str:
        return await self._call("put", key, lambda: self._inner.put(key, body))

    async def put_if_absent(self, key: str, body: bytes) -> str:
        return await self._call("put_if_absent", key, lambda: self._inner.put_if_absent(key, body))

    async def compare_and_set(
        self, key: str, body: bytes, etag: str | None, *, guard: Guard | None = None
    ) -> str:
        # Time stands still within an incarnation here; `tests/simulation/test_sweep.py` lets it jump.
        if guard is not None:
            guard()
        return await self._call("compare_and_set", key, lambda: self._inner.compare_and_set(key, body, etag))

    async def delete(self, key: str) -> None:
        await self._call("delete", key, lambda: self._inner.delete(key))

    async def delete_many(self, keys: Sequence[str]) -> None:
        for key in keys:  # Each is a step: no store promises that they go together.
            await self.delete(key)

    async def compare_and_delete(self, key: str, etag: str) -> None:
        await self._call("compare_and_delete", key, lambda: self._inner.compare_and_delete(key, etag))

    async def list(self, prefix: str) -> AsyncIterator[Listed]:
        after, count = "", self._sim.list_page
        while True:
            # `after` is bound now: the call may be performed later.
            page = await self._call(
                "list", prefix, lambda after=after: _rows(self._inner, prefix, after, count)
            )
            for row in page:
                yield row
            if len(page) < count:
                return
            after = page[-1].key

    async def children(self, prefix: str) -> list[str]:
        return await self._call("list", prefix, lambda: self._inner.children(prefix))

    async def settle(self) -> None:
        return None

    async def close(self) -> None:
        return None


class SimBus(Watched):
    """`bus.port.Bus` as one process sees it."""

    def __init__(self, simulation: Simulation) -> None:
        self._inner = simulation.bus

    async def produce(self, messages: Sequence[Outgoing]) -> list[tuple[TopicPartition, int]]:
        if not messages:
            return []
        topics = ",".join(sorted({message.topic for message in messages}))
        return await _Step(Call("produce", topics, lambda: finish(self._inner.produce(messages))))

    async def consumer(self, *, group: str, topics: Sequence[str]) -> SimConsumer:
        return SimConsumer(group, await self._inner.consumer(group=group, topics=topics))

    async def reread(self, topic: str, offsets: Mapping[int, Collection[int]]) -> list[Message]:
        return await self._inner.reread(topic, offsets)


class SimConsumer:
    """A consumer that never waits: what is not there now does not come."""

    def __init__(self, group: str, inner: MemoryConsumer) -> None:
        self._group = group
        self._inner = inner

    async def poll(self, *, records_max: int, timeout_seconds: float) -> list[Message]:
        call = lambda: finish(self._inner.poll(records_max=records_max, timeout_seconds=0))  # noqa: E731
        return await _Step(Call("poll", self._group, call))

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        fixed = dict(offsets)
        await _Step(Call("commit", self._group, lambda: finish(self._inner.commit(fixed))))

    async def seek(self, offsets: Mapping[TopicPartition, int]) -> None:
        await self._inner.seek(offsets)

    async def close(self) -> None:
        await self._inner.close()
