"""A simulated cluster: whole processes over one store and one bus, and everything that the design allows to go wrong.

Time, ids, latencies and faults are functions of a seed alone, so a seed is a schedule: the same one takes the same
steps in any interpreter (`Cluster.trace`). Production code runs as it is (`simloop.py`).

Fault model. Every request leaves its process, takes effect at the store or bus some time later, and is answered some
time after that. Between any two of these moments others go on. And:

- a process dies (requests that had left land, or not), is paused (for seconds, or for longer than a term), starts
  anew with empty hands, has a clock up to half a minute off that jumps;
- a write's answer is lost: it has landed, never will, or lands up to a signature's window later; a guarded write that
  arrives later than that after it was signed is refused by the store;
- 409: nothing landed; 503: nothing happened; slow: seconds to minutes;
- a poll says that nothing is there, or gives a part of what is; a commit or a produce fails, before or after its
  effect; a group is shared out anew in the middle of work, a member that was away is left out; partitions are added.

Each fault has a name, so that a failing schedule can be run again without some of them (`without`).
"""

from __future__ import annotations

import asyncio
import contextvars
import datetime as dt
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runlore import clock, errors
from runlore.bus.port import Listener, Message, Outgoing, TopicPartition
from runlore.commit import age
from runlore.store.port import Guard, Listed, Stored
from runlore.testing.buses import MemoryBus
from runlore.testing.simloop import PROCESS, Process, SimLoop
from runlore.testing.stores import MemoryStore
from runlore.testing.world import CONDITIONAL, finish

EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
SKEW_SECONDS_MAX = 30.0
"""How far a process's clock may be off, in either direction: a half of what a sweep allows for."""
RESTART_SECONDS = (0.5, 30.0)
SESSION_SECONDS = 10.0
"""After so long without a sign of life a member is left out of its group."""
SIGNATURE_SECONDS_MAX = age.WINDOW.total_seconds()
"""How old a guarded request's signature may be before the store refuses it; no request is under way for longer."""
REFUSES_OLD_SIGNATURES = True
REBALANCE_SECONDS_MAX = 60.0
REQUEST_SECONDS_MAX = 60.0
"""After so long a client gives a request up."""
LIST_PAGE = 7
"""Rows of one page of a LIST: few, so that others go on in between."""


@dataclass(frozen=True)
class Rates:
    """How often each thing goes wrong: chances for a request, and mean seconds between faults of whole processes."""

    refused: float = 0.02
    lost: float = 0.01
    slow: float = 0.02
    stale: float = 0.05
    """Polls that show nothing, or not all."""
    crash_seconds: float = 300.0
    pause_seconds: float = 600.0
    long_pause: float = 0.1
    """Which part of the pauses is longer than a term."""
    jump_seconds: float = 600.0
    partitions_seconds: float = 3600.0
    at_request: float = 0.002
    """Chance that a process dies, or stands still, just as it sends a request: most of its time it is idle."""


CALM = Rates(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
Watch = Callable[[str, str, bytes | None], None]
"""Told of each write that landed: (kind, key, what was there before)."""


class SimClock(clock.World):
    """A process's time (the cluster's, and how far its clock is off) and ids."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster, self._name = cluster, name
        self.skew_seconds = 0.0

    def now(self) -> dt.datetime:
        return EPOCH + dt.timedelta(seconds=self._cluster.loop.time() + self.skew_seconds)

    def monotonic(self) -> float:
        return self._cluster.loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def random_bytes(self, count: int) -> bytes:
        return self._cluster.bytes(f"{self._name}/id")[:count]

    def random(self) -> float:
        return self._cluster.draw(f"{self._name}/jitter")


Main = Callable[["SimStore", "SimBus"], Coroutine[Any, Any, Any]]


@dataclass(eq=False)
class Member:
    """A program that is started again whenever it dies or gives up, until it ends by itself."""

    name: str
    main: Main
    process: Process
    clock: SimClock
    starts: int = 0
    done: bool = False
    task: asyncio.Task[Any] | None = None


class Cluster:
    """The world of one schedule. Everything in it happens on `loop`."""

    def __init__(
        self,
        loop: SimLoop,
        seed: int | str,
        *,
        rates: Rates = CALM,
        watch: Watch | None = None,
        without: Collection[str] = (),
        partitions: int = 3,
    ) -> None:
        self.loop, self.seed, self.rates, self.watch = loop, seed, rates, watch
        self.store, self.bus = MemoryStore(), MemoryBus(partitions=partitions)
        self.groups: dict[tuple[str, str], Group] = {}
        self.members: dict[str, Member] = {}
        self.trace: list[str] = []
        self.faults: list[str] = []
        """The faults that happened, by name, in order."""
        self.failed: list[BaseException] = []
        """What no process may raise: an invariant that broke, or an error that nobody foresaw."""
        self.over = False
        self.disturbed: frozenset[str] = frozenset()
        """Members that may die and stand still."""
        self._without, self._drawn = frozenset(without), Counter[str]()
        self.context = contextvars.copy_context()
        self.context.run(clock.install, SimClock(self, "world"))

    # --- chance -------------------------------------------------------------------------------------------

    def bytes(self, stream: str) -> bytes:
        """32 bytes: a function of the seed, the stream, and how often it was asked."""
        self._drawn[stream] += 1
        return hashlib.sha256(f"{self.seed}/{stream}/{self._drawn[stream]}".encode()).digest()

    def draw(self, stream: str) -> float:
        """A number in [0, 1)."""
        return int.from_bytes(self.bytes(stream)[:6], "big") / 2**48

    def between(self, stream: str, least: float, most: float) -> float:
        return least + (most - least) * self.draw(stream)

    def goes_wrong(self, stream: str, what: str, chance: float) -> bool:
        """Whether a fault happens here; if so it is noted under its name."""
        if not chance or self.draw(f"{stream}/{what}") >= chance:
            return False
        name = f"{stream}/{what}#{self._drawn[f'{stream}/{what}']}"
        if name in self._without:
            return False
        self.faults.append(name)
        return True

    def tell(self, what: str) -> None:
        self.trace.append(f"{self.loop.time():12.3f} {what}")

    def calm(self) -> None:
        """From here on nothing goes wrong any more."""
        self.rates = CALM
        for member in self.members.values():
            member.clock.skew_seconds = 0.0
            if member.process.paused:
                self.loop.resume(member.process)

    # --- processes ----------------------------------------------------------------------------------------

    def start(self, name: str, main: Main) -> Member:
        member = Member(name, main, Process(name), SimClock(self, name))
        self.members[name] = member
        self._begin(member)
        return member

    def _begin(self, member: Member) -> None:
        if member.done or self.over:
            return
        member.starts += 1
        name = f"{member.name}.{member.starts}"
        context = self.context.copy()
        member.clock = SimClock(self, name)
        member.clock.skew_seconds = self._skew(name)
        context.run(clock.install, member.clock)
        member.process = Process(name, context=context)
        self.tell(f"{name} starts")
        store, bus = SimStore(self, member.process), SimBus(self, member.process)
        member.task = self.loop.spawn(member.process, lambda: member.main(store, bus))
        process = member.process
        member.task.add_done_callback(lambda task: self._ended(member, process, task), context=self.context)

    def _skew(self, name: str) -> float:
        return self.between(f"{name}/skew", -1, 1) * SKEW_SECONDS_MAX if self.rates is not CALM else 0.0

    def _ended(self, member: Member, process: Process, task: asyncio.Task[Any]) -> None:
        if self.over or member.process is not process or process.dead:
            return
        error = task.exception() if not task.cancelled() else None
        if error is None:
            member.done = True
            self.tell(f"{process.name} ends")
        elif isinstance(error, errors.Retryable | OSError):
            # A supervisor starts a process again that gave up on a passing fault.
            self.tell(f"{process.name} gives up: {error}")
            process.dead = True
            self._again(member)
        else:
            member.done = True
            self.failed.append(error)

    def kill(self, member: Member) -> None:
        """Not one line of it runs any more. It is started again a little later."""
        if member.done or member.process.dead:
            return
        self.tell(f"{member.process.name} dies")
        member.process.dead = True
        for group in self.groups.values():
            group.lost(member.process)
        self._again(member)

    def _again(self, member: Member) -> None:
        seconds = self.between(f"{member.name}/restart", *RESTART_SECONDS)
        self.later(seconds, lambda: self._begin(member))

    def pause(self, member: Member, seconds: float) -> None:
        process = member.process
        if member.done or process.dead or process.paused:
            return
        self.tell(f"{process.name} stands still for {seconds:.0f} s")
        process.paused = True
        for group in self.groups.values():
            group.lost(process)

        def resume() -> None:
            if process.paused:
                self.tell(f"{process.name} goes on")
                self.loop.resume(process)

        self.later(seconds, resume)

    def later(self, seconds: float, work: Callable[[], Any]) -> None:
        """Do `work` so much later, as the world: whatever has become of who asked."""
        self.loop.call_later(seconds, self._as_world, work, context=self.context)

    def _as_world(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except Exception as exc:  # An invariant that broke as it was watched: the schedule is over.
            self.failed.append(exc)

    # --- what happens to whole processes ------------------------------------------------------------------

    async def disturb(self, names: Sequence[str]) -> None:
        """Kill, pause and confuse these members for as long as anything goes wrong."""
        self.disturbed = frozenset(names)
        rates = self.rates
        kinds = {
            "crash": rates.crash_seconds,
            "pause": rates.pause_seconds,
            "jump": rates.jump_seconds,
            "partitions": rates.partitions_seconds,
        }
        await asyncio.gather(*(self._disturb(kind, mean, names) for kind, mean in kinds.items() if mean))

    async def _disturb(self, kind: str, mean: float, names: Sequence[str]) -> None:
        while self.rates is not CALM:
            await asyncio.sleep(self.between(kind, 0.2, 1.8) * mean)
            whom = self.members[names[int(self.draw(f"{kind}/whom") * len(names))]]
            if self.rates is CALM or not self.goes_wrong("world", f"{kind} of {whom.name}", 1.0):
                continue
            if kind == "crash":
                self.kill(whom)
            elif kind == "pause":
                self.pause(whom, self._pause_seconds())
            elif kind == "jump":
                whom.clock.skew_seconds = self._skew(whom.process.name)
                self.tell(f"the clock of {whom.process.name} is off by {whom.clock.skew_seconds:.1f} s")
            else:
                self.add_partitions(1)

    def add_partitions(self, count: int) -> None:
        self.bus.add_partitions(count)
        self.tell("a partition is added")
        for group in self.groups.values():
            group.unsettled()

    # --- one request --------------------------------------------------------------------------------------

    async def request(
        self,
        process: Process,
        kind: str,
        what: str,
        perform: Callable[[], Any],
        *,
        guarded: bool = False,
        lost_as: type[errors.RunloreError] = errors.OutcomeUnknown,
        refused_as: type[errors.RunloreError] = errors.StoreUnavailable,
        writes: bool = False,
    ) -> Any:
        """One request of a process: it leaves now, lands later, and is answered after that."""
        if self.over:
            raise errors.StoreUnavailable("the simulation is over")
        if PROCESS.get() is not process:
            raise AssertionError(f"{process.name} used a port from elsewhere: {kind} {what}")
        stream, rates = process.name, self.rates
        there, back = self.between(stream, 0.002, 0.05), self.between(stream, 0.002, 0.05)
        if kind != "poll" and self.goes_wrong(stream, "slow", rates.slow):
            there += self.draw(stream) ** 4 * SIGNATURE_SECONDS_MAX
            back += self.draw(stream) ** 4 * REQUEST_SECONDS_MAX
        refused = self.goes_wrong(stream, "503", rates.refused)
        conflict = kind in CONDITIONAL and self.goes_wrong(stream, "409", rates.refused / 2)
        lost = writes and self.goes_wrong(stream, "lost", rates.lost)
        fate = self.draw(f"{stream}/fate")
        if lost and fate > 0.6:
            there += self.draw(stream) * SIGNATURE_SECONDS_MAX
        sent_at = self.loop.time()
        there += self._interrupted(process, fate)
        answer: asyncio.Future[Any] = self.loop.create_future()

        def reply(result: Any, error: BaseException | None, seconds: float) -> None:
            def give() -> None:
                if answer.done():
                    return
                if error is not None:
                    answer.set_exception(error)
                else:
                    answer.set_result(result)

            self.later(seconds, give)

        def land() -> None:
            if process.dead and fate < 0.5:
                return  # It had not left.
            if guarded and self.loop.time() - sent_at > SIGNATURE_SECONDS_MAX and REFUSES_OLD_SIGNATURES:
                self.tell(f"{process.name}: {kind} {what} [its signature is too old]")
                return reply(None, errors.StoreUnavailable("RequestTimeTooSkewed"), back)
            result, error = self._perform(process, kind, what, perform, writes)
            if not lost:
                reply(result, error, back)

        if refused or conflict:
            self.tell(f"{process.name}: {kind} {what} [{'409' if conflict else '503'}]")
            reply(None, errors.WriteConflict() if conflict else refused_as(), there + back)
        elif lost and fate < 0.3:
            self.tell(f"{process.name}: {kind} {what} [lost]")
            reply(None, lost_as(), there + back)
        else:
            if lost or min(there, SIGNATURE_SECONDS_MAX) + back > REQUEST_SECONDS_MAX:
                # Its client gives up; what it sent is under way all the same.
                gave_up = lost_as() if writes else refused_as()
                reply(None, gave_up, REQUEST_SECONDS_MAX if not lost else 0.1 + back)
            self.later(there, land)
        return await answer

    def _interrupted(self, process: Process, fate: float) -> float:
        """A process may die or stand still just as it sends: how much later its request leaves because of that."""
        member = self.members[process.name.rpartition(".")[0]]
        rate = self.rates.at_request if member.name in self.disturbed else 0.0
        if self.goes_wrong(process.name, "dies sending", rate):
            self.kill(member)
        elif self.goes_wrong(process.name, "stands still sending", rate):
            seconds = self._pause_seconds()
            self.pause(member, seconds)
            return seconds if fate < 0.5 else 0.0
        return 0.0

    def _pause_seconds(self) -> float:
        long = self.draw("pause/long") < self.rates.long_pause
        most = 1.2 * age.TERM.total_seconds() if long else 120.0
        return (0.3 if long else 0.01) * most + self.draw("pause/length") * most

    def _perform(
        self, process: Process, kind: str, what: str, perform: Callable[[], Any], writes: bool
    ) -> tuple[Any, BaseException | None]:
        before = self.store.body(what) if writes and "/" in what else None
        try:
            result = perform()
        except errors.RunloreError as exc:
            self.tell(f"{process.name}: {kind} {what} [{exc.kind}]")
            return None, exc
        if writes or kind == "poll":
            self.tell(f"{process.name}: {kind} {what}")
        if writes and self.watch is not None:
            self.watch(kind, what, before)
        return result, None


class SimStore:
    """`store.port.ObjectStore` as one process sees it."""

    def __init__(self, cluster: Cluster, process: Process) -> None:
        self._cluster, self._process, self._inner = cluster, process, cluster.store

    async def _read(self, kind: str, key: str, work: Callable[[], Awaitable[Any]]) -> Any:
        return await self._cluster.request(self._process, kind, key, lambda: finish(work()))

    async def _write(
        self, kind: str, key: str, work: Callable[[], Awaitable[Any]], *, guarded: bool = False
    ) -> Any:
        return await self._cluster.request(
            self._process, kind, key, lambda: finish(work()), writes=True, guarded=guarded
        )

    async def get(self, key: str) -> Stored | None:
        return await self._read("get", key, lambda: self._inner.get(key))

    async def get_many(self, keys: Sequence[str]) -> list[Stored | None]:
        return list(await asyncio.gather(*map(self.get, keys)))

    async def get_range(self, key: str, offset: int, length: int) -> bytes | None:
        return await self._read("get", key, lambda: self._inner.get_range(key, offset, length))

    async def get_tail(self, key: str, length: int) -> bytes | None:
        return await self._read("get", key, lambda: self._inner.get_tail(key, length))

    async def put(self, key: str, body: bytes) -> str:
        # An adapter sends it again after a passing fault: its name is its content.
        while True:
            try:
                return await self._write("put", key, lambda: self._inner.put(key, body))
            except (errors.StoreUnavailable, errors.OutcomeUnknown):
                if self._cluster.over:
                    raise
                await asyncio.sleep(1.0)

    async def put_if_absent(self, key: str, body: bytes) -> str:
        return await self._write("put_if_absent", key, lambda: self._inner.put_if_absent(key, body))

    async def compare_and_set(
        self, key: str, body: bytes, etag: str | None, *, guard: Guard | None = None
    ) -> str:
        if guard is not None:
            guard()
        return await self._write(
            "compare_and_set",
            key,
            lambda: self._inner.compare_and_set(key, body, etag),
            guarded=guard is not None,
        )

    async def delete(self, key: str) -> None:
        await self._write("delete", key, lambda: self._inner.delete(key))

    async def delete_many(self, keys: Sequence[str]) -> None:
        await asyncio.gather(*map(self.delete, keys))

    async def compare_and_delete(self, key: str, etag: str) -> None:
        await self._write("compare_and_delete", key, lambda: self._inner.compare_and_delete(key, etag))

    async def list(self, prefix: str) -> AsyncIterator[Listed]:
        after = ""
        while True:
            page = await self._read("list", prefix, lambda after=after: self._page(prefix, after))
            for row in page:
                yield row
            if len(page) < LIST_PAGE:
                return
            after = page[-1].key

    async def _page(self, prefix: str, after: str) -> list[Listed]:
        return self._inner.page(prefix, after=after, rows_max=LIST_PAGE)

    async def children(self, prefix: str) -> list[str]:
        return await self._read("list", prefix, lambda: self._inner.children(prefix))

    async def settle(self) -> None:
        return None

    async def close(self) -> None:
        return None


class SimBus:
    """`bus.port.Bus` as one process sees it."""

    def __init__(self, cluster: Cluster, process: Process) -> None:
        self._cluster, self._process, self._inner = cluster, process, cluster.bus

    async def produce(self, messages: Sequence[Outgoing]) -> list[tuple[TopicPartition, int]]:
        if not messages:
            return []
        topics = ",".join(sorted({message.topic for message in messages}))
        placed = await self._cluster.request(
            self._process,
            "produce",
            topics,
            lambda: finish(self._inner.produce(messages)),
            writes=True,
            lost_as=errors.BusUnavailable,
            refused_as=errors.BusUnavailable,
        )
        for group in self._cluster.groups.values():
            group.wake()
        return placed

    async def consumer(
        self, *, group: str, topics: Sequence[str], listener: Listener | None = None
    ) -> SimConsumer:
        (topic,) = topics
        joined = self._cluster.groups.setdefault((group, topic), Group(self._cluster, group, topic))
        consumer = SimConsumer(self._cluster, self._process, joined, listener)
        joined.join(consumer)
        return consumer

    def read(self, topic: str, *, start: Mapping[int, int] | None = None) -> AsyncIterator[Message]:
        return self._inner.read(topic, start=start)

    async def lag(self, *, group: str, topic: str) -> dict[int, int]:
        return await self._inner.lag(group=group, topic=topic)

    async def committed(self, *, group: str, topic: str) -> dict[int, int]:
        return await self._inner.committed(group=group, topic=topic)

    async def oldest(self, *, group: str, topic: str) -> float | None:
        return await self._inner.oldest(group=group, topic=topic)

    async def rewind(self, *, group: str, topic: str, start: float | None = None) -> None:
        await self._inner.rewind(group=group, topic=topic, start=start)

    async def close(self) -> None:
        return None


@dataclass(eq=False)
class Group:
    """A consumer group of one topic: who is in it, and who has which partitions. Shared out eagerly, as aiokafka does."""

    cluster: Cluster
    name: str
    topic: str
    consumers: list[SimConsumer] = field(default_factory=list)
    generation: int = 0
    _is_due: bool = False

    def join(self, consumer: SimConsumer) -> None:
        if consumer not in self.consumers:
            self.consumers.append(consumer)
            self.unsettled()

    def leave(self, consumer: SimConsumer) -> None:
        if consumer in self.consumers:
            self.consumers.remove(consumer)
            consumer.take_away()
            self.unsettled()

    def lost(self, process: Process) -> None:
        """A process gives no sign of life any more: after a while its members are left out."""

        def leave_out() -> None:
            for consumer in list(self.consumers):
                if consumer.process is process and (process.dead or process.paused):
                    self.leave(consumer)

        self.cluster.later(SESSION_SECONDS, leave_out)

    def unsettled(self) -> None:
        """Who is in the group changed: it is shared out anew in a moment."""
        if not self._is_due:
            self._is_due = True
            seconds = self.cluster.between(f"group {self.name}", 0.05, 3.0)
            self.cluster.later(seconds, lambda: self.cluster.loop.create_task(self._share(), context=self.cluster.context))

    async def _share(self) -> None:
        self._is_due = False
        self.generation += 1
        mine = self.generation
        consumers = list(self.consumers)
        revoked = {consumer: consumer.revoke() for consumer in consumers}
        if revoked:
            await asyncio.wait(revoked.values(), timeout=REBALANCE_SECONDS_MAX)
        if self.generation != mine:
            return  # Shared out anew meanwhile.
        for consumer, ended in revoked.items():
            if not ended.done():
                self.leave(consumer)
        present = [consumer for consumer in consumers if consumer in self.consumers]
        count = self.cluster.bus.partitions
        for number, consumer in enumerate(present):
            consumer.give([p for p in range(count) if p % len(present) == number])
        self.cluster.tell(f"group {self.name} of {self.topic}: {len(present)} members, {count} partitions")

    def wake(self) -> None:
        for consumer in self.consumers:
            consumer.wake()


class SimConsumer:
    """One member of a group."""

    def __init__(
        self, cluster: Cluster, process: Process, group: Group, listener: Listener | None
    ) -> None:
        self._cluster, self.process, self._group, self._listener = cluster, process, group, listener
        self._positions: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._woken = asyncio.Event()
        self._closed = self._revoking = False
        self._told: asyncio.Future[Any] | None = None

    # --- what the group does with it ----------------------------------------------------------------------

    def revoke(self) -> asyncio.Future[Any]:
        """Ask it to end its work; done once it has."""
        if self._listener is None:
            self._positions = {}
            return _done(self._cluster.loop)
        self._revoking = True
        taken = self.assignment()
        return self._call(lambda listener: listener.revoked(taken))

    def give(self, partitions: Sequence[int]) -> None:
        topic, bus = self._group.topic, self._cluster.bus
        committed = finish(bus.committed(group=self._group.name, topic=topic))
        self._positions = {TopicPartition(topic, p): committed[p] for p in partitions}
        self._paused.clear()
        self._revoking = False
        if self._listener is not None:
            given = self.assignment()
            self._call(lambda listener: listener.assigned(given))
        self.wake()

    def take_away(self) -> None:
        """It was left out: it learns of it when it polls."""
        self._positions, self._revoking = {}, False

    def _call(self, what: Callable[[Listener], Coroutine[Any, Any, Any]]) -> asyncio.Future[Any]:
        """Tell the listener, after what it was told before."""
        assert self._listener is not None
        listener, before = self._listener, self._told

        async def tell() -> None:
            if before is not None:
                await before
            await what(listener)

        self._told = self._cluster.loop.create_task(tell(), context=self.process.context)
        return self._told

    # --- what its process asks ----------------------------------------------------------------------------

    async def poll(self, *, records_max: int, timeout_seconds: float) -> list[Message]:
        deadline = self._cluster.loop.time() + timeout_seconds
        if not self._closed and self not in self._group.consumers:
            # Left out while it stood still: what it has in hand is somebody else's.
            if self._listener is not None:
                await self._call(lambda listener: listener.revoked(self.assignment()))
            self._group.join(self)
        while not self._closed:
            self._woken.clear()
            found = await self._cluster.request(
                self.process,
                "poll",
                self._group.name,
                lambda: self._take(records_max),
                refused_as=errors.BusUnavailable,
            )
            left = deadline - self._cluster.loop.time()
            if found or left <= 0:
                return found
            try:
                await asyncio.wait_for(self._woken.wait(), left)
            except TimeoutError:
                return []
        return []

    def _take(self, records_max: int) -> list[Message]:
        if self._revoking:
            return []
        stream, rates = self.process.name, self._cluster.rates
        if self._cluster.goes_wrong(stream, "stale poll", rates.stale):
            return []
        if self._cluster.goes_wrong(stream, "torn poll", rates.stale):
            records_max = 1
        found: list[Message] = []
        for at in sorted(self._positions.keys() - self._paused):
            page = self._cluster.bus.page(at, self._positions[at], records_max - len(found))
            if page:
                self._positions[at] = page[-1].offset + 1
                found += page
        return found

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        fixed = dict(offsets)

        def perform() -> None:
            mine = {at: offset for at, offset in fixed.items() if at in self._positions}
            self._cluster.bus.note_commit(self._group.name, mine)

        await self._cluster.request(
            self.process,
            "commit",
            self._group.name,
            perform,
            writes=True,
            lost_as=errors.BusUnavailable,
            refused_as=errors.BusUnavailable,
        )

    async def seek(self, offsets: Mapping[TopicPartition, int]) -> None:
        self._positions.update({at: offset for at, offset in offsets.items() if at in self._positions})
        self.wake()

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(self._positions)

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        self._paused |= set(partitions)

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        self._paused -= set(partitions)
        self.wake()

    async def close(self) -> None:
        self._closed = True
        self._group.leave(self)
        self.wake()

    def wake(self) -> None:
        self._woken.set()


def _done(loop: SimLoop) -> asyncio.Future[Any]:
    future = loop.create_future()
    future.set_result(None)
    return future
