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
- a disk is full for a while: a process's own (its index), or the one on which store and bus lie; what is there can be
  read and deleted, and nothing is added;
- a doorbell is lost, whatever was said of it;
- a poll says that nothing is there, or gives a part of what is; a commit or a produce fails, before or after its
  effect; a group is shared out anew in the middle of work, a member that was away is left out; partitions are added.

Each fault has a name, so that a failing schedule can be run again without some of them (`without`). What came of them
is counted by kind (`happened`, `KINDS`): a fault that is only drawn proves nothing.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import datetime as dt
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from runlore import clock, errors
from runlore.commit import age
from runlore.testing.buses import MemoryBus
from runlore.testing.cluster_ports import Group, SimBus, SimStore
from runlore.testing.simloop import PROCESS, Process, SimLoop
from runlore.testing.stores import MemoryStore
from runlore.testing.world import CONDITIONAL

EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
SKEW_SECONDS_MAX = 30.0
"""How far a process's clock may be off, in either direction: a half of what a sweep allows for."""
RESTART_SECONDS = (0.5, 30.0)
SIGNATURE_SECONDS_MAX = age.WINDOW.total_seconds()
"""How old a guarded request's signature may be before the store refuses it; no request is under way for longer."""
REFUSES_OLD_SIGNATURES = True
FREEING = ("delete", "compare_and_delete")
"""What a full disk takes all the same."""
REQUEST_SECONDS_MAX = 60.0
"""After so long a client gives a request up."""
AFTER_CHECK = 60.0
"""How many times likelier a process stands still or dies between the check of its age and its commit."""
HOME = "home"
"""The disk on which the store and the bus of one machine lie."""

CRASH, PAUSE, LONG_PAUSE = "crash", "pause", "pause longer than T"
REFUSED, CONFLICT, SLOW, LOST = "503", "409", "slow", "lost reply"
LATE, TOO_OLD = "late write", "signature too old"
FULL, FULL_OWN = "full disk", "full disk of an index"
STALE, TORN, NO_BELL = "stale poll", "torn poll", "doorbell lost"
AGAIN, REPLAY, REORDER = "redelivery", "replay from the start", "reorder"
REBALANCE, PARTITIONS, JUMP = "rebalance mid-write", "partition added", "clock jump"
KINDS = (
    *(CRASH, LOST, LATE, CONFLICT, REFUSED, SLOW, STALE, TORN, NO_BELL, AGAIN, REPLAY, REORDER, REBALANCE),
    *(PARTITIONS, JUMP, PAUSE, LONG_PAUSE, TOO_OLD, FULL, FULL_OWN),
)
"""What may go wrong, as it is counted where it takes effect."""


@dataclass(frozen=True)
class Rates:
    """How often each thing goes wrong: chances for a request, and mean seconds between faults of whole processes."""

    refused: float = 0.02
    lost: float = 0.01
    slow: float = 0.02
    stale: float = 0.05
    """Polls that show nothing, or not all."""
    bells: float = 0.2
    """Doorbells that nobody ever hears."""
    crash_seconds: float = 300.0
    pause_seconds: float = 600.0
    long_pause: float = 0.1
    """Which part of the pauses is longer than a term."""
    jump_seconds: float = 600.0
    partitions_seconds: float = 3600.0
    at_request: float = 0.002
    """Chance that a process dies, or stands still, just as it sends a request: most of its time it is idle."""
    disk_seconds: float = 900.0
    full_seconds: float = 30.0
    """How long a disk is full, on average."""


CALM = Rates(*[0.0] * len(dataclasses.fields(Rates)))
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


Main = Callable[[SimStore, SimBus], Coroutine[Any, Any, Any]]


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
        """The faults that were drawn, by name, in order."""
        self.happened: Counter[str] = Counter()
        """How often each kind of fault took effect (`KINDS`)."""
        self.full: set[str] = set()
        """Disks that are full now: members' own by name, and `HOME`."""
        self.on_disk: Callable[[str, bool], None] = lambda name, is_full: None
        """Told when a member's own disk is full, and when it is not any more."""
        self.writing: Counter[str] = Counter()
        """Writes that each process waits for."""
        self._sent_at: dict[tuple[str, bytes | None], float] = {}
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
        for name in sorted(self.full):
            self._freed(name)
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
        self.happened[CRASH] += 1
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
        self.happened[LONG_PAUSE if seconds > age.TERM.total_seconds() else PAUSE] += 1
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
            "disk": rates.disk_seconds,
        }
        await asyncio.gather(*(self._disturb(kind, mean, names) for kind, mean in kinds.items() if mean))

    async def _disturb(self, kind: str, mean: float, names: Sequence[str]) -> None:
        while self.rates is not CALM:
            await asyncio.sleep(self.between(kind, 0.2, 1.8) * mean)
            chosen = [*names, HOME] if kind == "disk" else names
            name = chosen[int(self.draw(f"{kind}/whom") * len(chosen))]
            if self.rates is CALM or not self.goes_wrong("world", f"{kind} of {name}", 1.0):
                continue
            if kind == "disk":
                self.fill(name)
                continue
            whom = self.members[name]
            if kind == "crash":
                self.kill(whom)
            elif kind == "pause":
                self.pause(whom, self._pause_seconds())
            elif kind == "jump":
                whom.clock.skew_seconds = self._skew(whom.process.name)
                self.tell(f"the clock of {whom.process.name} is off by {whom.clock.skew_seconds:.1f} s")
                self.happened[JUMP] += 1
            else:
                self.add_partitions(1)

    def add_partitions(self, count: int) -> None:
        self.bus.add_partitions(count)
        self.tell("a partition is added")
        self.happened[PARTITIONS] += 1
        for group in self.groups.values():
            group.unsettled()

    def fill(self, name: str) -> None:
        """A disk is full for a while."""
        if name in self.full:
            return
        seconds = self.between("disk/seconds", 0.2, 1.8) * self.rates.full_seconds
        self.tell(f"the disk of {name} is full for {seconds:.0f} s")
        self.full.add(name)
        self.on_disk(name, True)
        self.later(seconds, lambda: self._freed(name))

    def _freed(self, name: str) -> None:
        if name in self.full:
            self.tell(f"the disk of {name} has room again")
            self.full.discard(name)
            self.on_disk(name, False)

    def lands(self, key: tuple[str, bytes | None], sent_at: float) -> None:
        """A message lands on the bus: before it, one of the same key may have that was sent later."""
        newest = self._sent_at.get(key, 0.0)
        self.happened[REORDER] += sent_at < newest
        self._sent_at[key] = max(newest, sent_at)

    async def replay(self, topic: str, groups: Sequence[str]) -> None:
        """Let these groups begin at the start of a topic again. None of their members may be at work."""
        for name in groups:
            await self.bus.rewind(group=name, topic=topic)
            if (name, topic) in self.groups:
                self.groups[name, topic].forget()
        self.happened[REPLAY] += 1

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
        assert PROCESS.get() is process, f"{process.name} used a port from elsewhere: {kind} {what}"
        stream, rates = process.name, self.rates
        there, back = self.between(stream, 0.002, 0.05), self.between(stream, 0.002, 0.05)
        if kind != "poll" and self.goes_wrong(stream, "slow", rates.slow):
            self.happened[SLOW] += 1
            there += self.draw(stream) ** 4 * SIGNATURE_SECONDS_MAX
            back += self.draw(stream) ** 4 * REQUEST_SECONDS_MAX
        refused = self.goes_wrong(stream, "503", rates.refused)
        conflict = kind in CONDITIONAL and self.goes_wrong(stream, "409", rates.refused / 2)
        lost = writes and self.goes_wrong(stream, "lost", rates.lost)
        full = writes and HOME in self.full and kind not in FREEING
        fate = self.draw(f"{stream}/fate")
        if lost and fate > 0.6:
            there += self.draw(stream) * SIGNATURE_SECONDS_MAX
        sent_at = self.loop.time()
        there += self._interrupted(process, fate, AFTER_CHECK if guarded else 1.0)
        answer: asyncio.Future[Any] = self.loop.create_future()

        def reply(result: Any, error: BaseException | None, seconds: float) -> None:
            self.later(seconds, lambda: _give(answer, result, error))

        def land() -> None:
            if process.dead and fate < 0.5:
                return  # It had not left.
            if guarded and self.loop.time() - sent_at > SIGNATURE_SECONDS_MAX and REFUSES_OLD_SIGNATURES:
                self.tell(f"{process.name}: {kind} {what} [its signature is too old]")
                self.happened[TOO_OLD] += 1
                return reply(None, errors.StoreUnavailable("RequestTimeTooSkewed"), back)
            result, error = self._perform(process, kind, what, perform, writes)
            self.happened[LATE] += writes and answer.done()
            if not lost:
                reply(result, error, back)

        self.happened[LOST] += lost and not (refused or conflict or full)
        if refused or conflict or full:
            why = CONFLICT if conflict else FULL if full else REFUSED
            self.tell(f"{process.name}: {kind} {what} [{why}]")
            self.happened[why] += 1
            # Not behind the pause of whoever asked: it may be woken before its end, as everybody is once faults stop.
            seconds = min(there, REQUEST_SECONDS_MAX) + back
            reply(None, errors.WriteConflict() if conflict else refused_as(), seconds)
        elif lost and fate < 0.3:
            self.tell(f"{process.name}: {kind} {what} [lost]")
            reply(None, lost_as(), min(there, REQUEST_SECONDS_MAX) + back)
        else:
            if lost or min(there, SIGNATURE_SECONDS_MAX) + back > REQUEST_SECONDS_MAX:
                # Its client gives up; what it sent is under way all the same.
                gave_up = lost_as() if writes else refused_as()
                reply(None, gave_up, REQUEST_SECONDS_MAX if not lost else 0.1 + back)
            self.later(there, land)
        self.writing[process.name] += writes
        try:
            return await answer
        finally:
            self.writing[process.name] -= writes

    def _interrupted(self, process: Process, fate: float, likely: float) -> float:
        """A process may die or stand still just as it sends: how much later its request leaves because of that."""
        member = self.members[process.name.rpartition(".")[0]]
        rate = self.rates.at_request * likely if member.name in self.disturbed else 0.0
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


def _give(answer: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)
