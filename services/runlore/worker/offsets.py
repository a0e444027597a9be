"""Lanes and offsets: whose turn it is, which messages may be worked together now, how far a partition is done. Pure.

What holds, whatever order batches end in, and whatever a rebalance takes back:

- An offset is offered for commit only when every message before it, of this assignment, is done.
- The messages of a key are worked in the order in which they came, and a key is in at most one batch at a time, also
  while a batch of an assignment that has ended is still in hand.
- A message that was given up is worked again, or comes again: none is forgotten.
- A batch is of one project, and the next one is of the project that has the least at work; of those that have nothing
  at work, the one that has waited longest. So what one project sends, or how long its work takes, is no other's wait.

Beyond the limits of the queue a message is **parked**: its place in the order is kept and its body is not, so that
reading goes on past what a noisy project has sent. Whoever works it reads it again by its offset. Its offset is open
all the while: a crash or a rebalance forgets that it was parked, and it comes again.

Messages without a key are each a lane of their own. Offsets of a partition may have gaps (compaction, markers of
transactions), so done is what was received, never what was counted.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from runlore.bus.port import Message, TopicPartition


@dataclass(frozen=True)
class Limits:
    """What is kept in memory. `parked_max` 0: everything, and nothing is parked."""

    records_max: int = 1000
    bytes_max: int = 32 * 1024 * 1024
    parked_max: int = 0
    batch_bytes_max: int = 8 * 1024 * 1024
    jobs_max: int = 8
    """Keys of one batch that are worked at the same time: how much of the stage it takes."""


@dataclass(eq=False)
class _Flow:
    """One partition during one assignment: its messages from the queue to the low-water mark."""

    at: TopicPartition
    open: deque[int] = field(default_factory=deque)
    """Offsets received and not yet below the mark, in order."""
    done: set[int] = field(default_factory=set)
    next: int = -1
    """After the last offset received; -1 where none was."""
    committed: int = -1
    fed: bool = True
    """Whether new work may begin on it."""
    dropped: bool = False

    @property
    def low(self) -> int:
        """The first offset that is not done: what may be committed. -1 where nothing was received."""
        return self.open[0] if self.open else self.next

    def finish(self, offset: int) -> None:
        self.done.add(offset)
        while self.open and self.open[0] in self.done:
            self.done.remove(self.open.popleft())


@dataclass(eq=False, slots=True)
class _Entry:
    """One message: slim, because tens of thousands may be parked."""

    flow: _Flow
    offset: int
    lane: Hashable
    project: str
    size: int
    message: Message | None
    """None while it is parked."""


@dataclass(eq=False)
class Project:
    """What a project has in hand."""

    name: str
    free: OrderedDict[Hashable, list[_Entry]] = field(default_factory=OrderedDict)
    """Messages by key, of keys that nobody works: the longest waiting first."""
    behind: dict[Hashable, list[_Entry]] = field(default_factory=dict)
    """Those of keys that are in a batch."""
    ready: int = 0
    """Messages in `free`."""
    batches: int = 0
    jobs: int = 0
    """Keys at work at the same time, in those batches."""
    turn: int = 0
    """When it had its last one, as a number that grows."""
    records: int = 0
    size: int = 0
    parked: int = 0

    @property
    def is_empty(self) -> bool:
        return not (self.records or self.parked or self.batches)


@dataclass(frozen=True, eq=False)
class Batch:
    """Messages to be worked together: whole keys, each in order."""

    number: int
    entries: tuple[_Entry, ...]
    lanes: tuple[Hashable, ...]
    projects: tuple[str, ...]
    """One, unless projects are mixed."""
    jobs: int

    @property
    def messages(self) -> list[Message]:
        """Those that are there: all, unless some are parked, or are gone from the bus."""
        return [entry.message for entry in self.entries if entry.message is not None]

    @property
    def parked(self) -> dict[TopicPartition, list[int]]:
        """Offsets of those that must be read again before it is worked."""
        found: dict[TopicPartition, list[int]] = {}
        for entry in self.entries:
            if entry.message is None:
                found.setdefault(entry.flow.at, []).append(entry.offset)
        return found

    @property
    def fed(self) -> bool:
        """Whether any of it is still ours to finish; else nobody waits for it, and it comes again elsewhere."""
        return any(entry.flow.fed for entry in self.entries)


def project_of(message: Message) -> str:
    """Whose it is, by its key: `project/rollout`. What says no project is shared by all who say none.

    Who may write to the topic may write any key, as they may name any project: it decides whose turn it is, no more.
    """
    name, slash, _ = (message.key or b"").partition(b"/")
    return name.decode("utf-8", "replace") if slash else ""


class Lanes:
    """The messages of a stage in hand: queued by project and key, in batches, done up to a mark."""

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        mixed: bool = False,
        project_of: Callable[[Message], str] = project_of,
    ) -> None:
        """`mixed`: a batch takes a key of each project in turn, where working them apart would cost more."""
        self._limits, self._mixed, self._project_of = limits or Limits(), mixed, project_of
        self._flows: dict[TopicPartition, _Flow] = {}
        self._projects: dict[str, Project] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        """Projects with free messages and nothing at work; the longest waiting first."""
        self._served: set[str] = set()
        """Those with free messages and something at work."""
        self._busy: set[Hashable] = set()
        self._batches: dict[int, Batch] = {}
        self._numbers = 0
        self.generation = 0
        """Counts assignments: what was read of offsets in one says nothing in another."""
        self.records = 0
        """Messages queued and in batches, with their bodies."""
        self.size = 0
        """Bytes of their values."""
        self.parked = 0
        """Messages queued and in batches whose bodies are on the bus alone."""

    # --- partitions come and go ---------------------------------------------------------------------------

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        """These are ours from now on, each from wherever its first message is."""
        self.generation += 1
        for at in partitions:
            self._flows[at] = _Flow(at)

    def stop(self, partitions: Collection[TopicPartition]) -> None:
        """No new work on these: what is queued of them is dropped, what is in a batch may end."""
        for at in partitions:
            if at in self._flows:
                self._flows[at].fed = False
        self._forget_queued()

    def drop(self, partitions: Iterable[TopicPartition]) -> None:
        """These are not ours any more: what ends late does not count."""
        self.generation += 1
        for at in list(partitions):
            flow = self._flows.pop(at, None)
            if flow is not None:
                flow.fed, flow.dropped = False, True
        self._forget_queued()

    def in_hand(self, partitions: Collection[TopicPartition]) -> int:
        """Messages of these that are in batches and still count."""
        return sum(
            entry.flow.at in partitions and not entry.flow.dropped
            for batch in self._batches.values()
            for entry in batch.entries
        )

    # --- messages come ------------------------------------------------------------------------------------

    def add(self, messages: Iterable[Message]) -> None:
        """Queue what a poll gave. Messages of partitions that are not ours are passed over."""
        for message in messages:
            flow = self._flows.get(message.at)
            if flow is None or not flow.fed:
                continue
            if message.offset < flow.next:
                # The position went back (a seek, a topic made anew): what was known of it is of no use.
                flow = self._begin_again(flow)
            flow.open.append(message.offset)
            flow.next = message.offset + 1
            name = self._project_of(message)
            project = self._projects.setdefault(name, Project(name))
            size, lane = len(message.value or b""), _lane(message)
            entry = _Entry(flow, message.offset, lane, name, size, message if self._keeps(project) else None)
            self._count(entry, 1)
            if lane in self._busy:
                project.behind.setdefault(lane, []).append(entry)
            else:
                project.free.setdefault(lane, []).append(entry)
                project.ready += 1
                self._settle(project)

    def take(self, records_max: int, may: Callable[[Project], bool] = lambda project: True) -> Batch | None:
        """The next batch: keys that nobody works, of the project whose turn it is; None where there is none.

        `may` says whether a project that has something at work may have one more batch now.
        """
        found: list[_Entry] = []
        lanes: list[Hashable] = []
        while len(found) < records_max and (project := self._next(may)) is not None:
            taken = self._take_lane(project, found, lanes, records_max)
            while taken and not self._mixed and project.free:
                taken = self._take_lane(project, found, lanes, records_max)
            self._numbers += 1
            project.turn = self._numbers
            self._settle(project, after=True)
            if not (self._mixed and taken):
                break
        if not found:
            return None
        jobs = min(len(lanes), self._limits.jobs_max)
        names = tuple(dict.fromkeys(entry.project for entry in found))
        batch = Batch(self._numbers, tuple(found), tuple(lanes), names, jobs)
        self._batches[batch.number] = batch
        for project in self._of(batch):
            project.batches += 1
            project.jobs += jobs
            self._settle(project)
        return batch

    def load(self, batch: Batch, messages: Iterable[Message]) -> int:
        """Take in what was read again of a batch; how many of it the bus has not any more.

        Those have no effect, ever: the rest of the batch is worked, and their offsets are done with it.
        """
        there = {(message.at, message.offset): message for message in messages}
        gone = 0
        for entry in batch.entries:
            if entry.message is None:
                message = there.get((entry.flow.at, entry.offset))
                self._keep(entry, message)
                gone += message is None
        return gone

    def rest(self, batch: Batch) -> None:
        """A batch waits to be tried again: what the queue has no room for is read again then."""
        for entry in batch.entries:
            if self._limits.parked_max and self._is_full():
                self._keep(entry, None)

    # --- batches end --------------------------------------------------------------------------------------

    def finish(self, batch: Batch) -> None:
        """Its effects are in the store."""
        for entry in batch.entries:
            self._count(entry, -1)
            if not entry.flow.dropped:
                entry.flow.finish(entry.offset)
        self._end(batch)

    def give_back(self, batch: Batch) -> None:
        """It was given up: what is still ours is queued again, before what came after it."""
        for entry in reversed(batch.entries):
            if entry.flow.fed:
                self._projects[entry.project].behind.setdefault(entry.lane, []).insert(0, entry)
            else:
                self._count(entry, -1)
        self._end(batch)

    def offsets(self) -> dict[TopicPartition, int]:
        """What may be committed and was not: for each partition, the first offset that is not done."""
        return {at: flow.low for at, flow in self._flows.items() if flow.low > flow.committed}

    def committed(self, offsets: Mapping[TopicPartition, int], generation: int) -> None:
        """`offsets` were committed; they count if no partition came or went since they were read."""
        if generation == self.generation:
            for at, offset in offsets.items():
                self._flows[at].committed = max(self._flows[at].committed, offset)

    # --- parts --------------------------------------------------------------------------------------------

    def _next(self, may: Callable[[Project], bool]) -> Project | None:
        if self._idle:
            return self._projects[next(iter(self._idle))]
        waiting = [one for name in self._served if may(one := self._projects[name])]
        return min(waiting, key=lambda one: (one.jobs, one.turn), default=None)

    def _settle(self, project: Project, *, after: bool = False) -> None:
        """Stand it in the line where it belongs; `after` all others."""
        if project.free and not project.batches:
            self._served.discard(project.name)
            self._idle.setdefault(project.name)
            if after:
                self._idle.move_to_end(project.name)
            return
        self._idle.pop(project.name, None)
        if project.free:
            self._served.add(project.name)
            return
        self._served.discard(project.name)
        if project.is_empty:
            self._projects.pop(project.name, None)

    def _take_lane(
        self, project: Project, found: list[_Entry], lanes: list[Hashable], records_max: int
    ) -> int:
        """Take of the key that has waited longest what fits into the batch; how many messages."""
        lane, queue = next(iter(project.free.items()))
        count, size = 0, sum(one.size for one in found)
        for entry in queue:
            size += entry.size
            if len(found) == records_max or (found and size > self._limits.batch_bytes_max):
                break
            found.append(entry)
            count += 1
        if count:
            self._busy.add(lane)
            lanes.append(lane)
            del project.free[lane]
            project.ready -= len(queue)
            if left := queue[count:]:
                project.behind[lane] = left
        return count

    def _end(self, batch: Batch) -> None:
        del self._batches[batch.number]
        for lane in reversed(batch.lanes):
            self._busy.discard(lane)
            for project in self._of(batch):
                if queue := project.behind.pop(lane, None):
                    # Its messages are older than those of the keys that wait.
                    project.free[lane] = queue
                    project.free.move_to_end(lane, last=False)
                    project.ready += len(queue)
        for project in self._of(batch):
            project.batches -= 1
            project.jobs -= batch.jobs
            self._settle(project, after=True)

    def _of(self, batch: Batch) -> list[Project]:
        return [self._projects[name] for name in batch.projects]

    def _keeps(self, project: Project) -> bool:
        """Whether the next message of a project is kept in memory: half of the room at most is one project's."""
        if not self._limits.parked_max:
            return True
        is_large = (
            2 * project.records >= self._limits.records_max or 2 * project.size >= self._limits.bytes_max
        )
        # What is parked is read again in one piece with what came after it.
        return not (project.parked or is_large or self._is_full())

    def _is_full(self) -> bool:
        return self.records >= self._limits.records_max or self.size >= self._limits.bytes_max

    def _keep(self, entry: _Entry, message: Message | None) -> None:
        self._count(entry, -1)
        entry.message = message
        self._count(entry, 1)

    def _count(self, entry: _Entry, sign: int) -> None:
        for one in (self, self._projects[entry.project]):
            if entry.message is None:
                one.parked += sign
            else:
                one.records += sign
                one.size += sign * entry.size

    def _begin_again(self, flow: _Flow) -> _Flow:
        flow.fed, flow.dropped = False, True
        self._forget_queued()
        self._flows[flow.at] = _Flow(flow.at)
        return self._flows[flow.at]

    def _forget_queued(self) -> None:
        for project in list(self._projects.values()):
            for queues in (project.free, project.behind):
                for lane, queue in list(queues.items()):
                    kept = [entry for entry in queue if entry.flow.fed]
                    for entry in queue:
                        if not entry.flow.fed:
                            self._count(entry, -1)
                    if kept:
                        queues[lane] = kept
                    else:
                        del queues[lane]
            project.ready = sum(map(len, project.free.values()))
            self._settle(project)


def _lane(message: Message) -> Hashable:
    return (message.topic, message.key) if message.key is not None else (message.at, message.offset)
