"""Lanes and offsets: which messages may be worked together now, and how far a partition is done. Pure.

What holds, whatever order batches end in, and whatever a rebalance takes back:

- An offset is offered for commit only when every message before it, of this assignment, is done.
- The messages of a key are worked in the order in which they came, and a key is in at most one batch at a time, also
  while a batch of an assignment that has ended is still in hand.
- A message that was given up is worked again, or comes again: none is forgotten.

Messages without a key are each a lane of their own. Offsets of a partition may have gaps (compaction, markers of
transactions), so done is what was received, never what was counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from runlore.bus.port import Message, TopicPartition


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


@dataclass(frozen=True, eq=False)
class _Entry:
    message: Message
    flow: _Flow
    size: int


@dataclass(frozen=True, eq=False)
class Batch:
    """Messages to be worked together: whole keys, each in order."""

    number: int
    entries: tuple[_Entry, ...]

    @property
    def messages(self) -> list[Message]:
        return [entry.message for entry in self.entries]

    @property
    def fed(self) -> bool:
        """Whether any of it is still ours to finish; else nobody waits for it, and it comes again elsewhere."""
        return any(entry.flow.fed for entry in self.entries)


class Lanes:
    """The messages of a stage in hand: queued by key, in batches, done up to a mark."""

    def __init__(self) -> None:
        self._flows: dict[TopicPartition, _Flow] = {}
        self._queues: dict[Hashable, deque[_Entry]] = {}
        self._busy: set[Hashable] = set()
        self._batches: dict[int, Batch] = {}
        self._numbers = 0
        self.generation = 0
        """Counts assignments: what was read of offsets in one says nothing in another."""
        self.records = 0
        """Messages queued and in batches."""
        self.queued = 0
        self.size = 0
        """Bytes of their values."""

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
            entry = _Entry(message, flow, len(message.value or b""))
            self._queues.setdefault(_lane(message), deque()).append(entry)
            self.queued += 1
            self.records += 1
            self.size += entry.size

    def take(self, records_max: int) -> Batch | None:
        """The next batch: keys that nobody works, the longest waiting first; None where there is none."""
        found: list[_Entry] = []
        lanes = []
        for lane, queue in self._queues.items():
            if len(found) >= records_max:
                break
            if self._is_free(lane):
                lanes.append(lane)
                while queue and len(found) < records_max:
                    found.append(queue.popleft())
        if not found:
            return None
        for lane in lanes:
            self._busy.add(lane)
            if not self._queues[lane]:
                del self._queues[lane]
        self.queued -= len(found)
        self._numbers += 1
        batch = Batch(self._numbers, tuple(found))
        self._batches[batch.number] = batch
        return batch

    # --- batches end --------------------------------------------------------------------------------------

    def finish(self, batch: Batch) -> None:
        """Its effects are in the store."""
        self._end(batch)
        for entry in batch.entries:
            self._count_out(entry)
            if not entry.flow.dropped:
                entry.flow.finish(entry.message.offset)

    def give_back(self, batch: Batch) -> None:
        """It was given up: what is still ours is queued again, before what came after it."""
        self._end(batch)
        for entry in reversed(batch.entries):
            if entry.flow.fed:
                self._queues.setdefault(_lane(entry.message), deque()).appendleft(entry)
                self.queued += 1
            else:
                self._count_out(entry)

    def offsets(self) -> dict[TopicPartition, int]:
        """What may be committed and was not: for each partition, the first offset that is not done."""
        return {at: flow.low for at, flow in self._flows.items() if flow.low > flow.committed}

    def committed(self, offsets: Mapping[TopicPartition, int], generation: int) -> None:
        """`offsets` were committed; they count if no partition came or went since they were read."""
        if generation == self.generation:
            for at, offset in offsets.items():
                self._flows[at].committed = max(self._flows[at].committed, offset)

    # --- parts --------------------------------------------------------------------------------------------

    def _is_free(self, lane: Hashable) -> bool:
        return lane not in self._busy

    def _end(self, batch: Batch) -> None:
        del self._batches[batch.number]
        for entry in batch.entries:
            self._busy.discard(_lane(entry.message))

    def _count_out(self, entry: _Entry) -> None:
        self.records -= 1
        self.size -= entry.size

    def _begin_again(self, flow: _Flow) -> _Flow:
        flow.fed, flow.dropped = False, True
        self._forget_queued()
        self._flows[flow.at] = _Flow(flow.at)
        return self._flows[flow.at]

    def _forget_queued(self) -> None:
        for lane, queue in list(self._queues.items()):
            kept = deque(entry for entry in queue if entry.flow.fed)
            for entry in queue:
                if not entry.flow.fed:
                    self._count_out(entry)
                    self.queued -= 1
            if kept:
                self._queues[lane] = kept
            else:
                del self._queues[lane]


def _lane(message: Message) -> Hashable:
    return (message.topic, message.key) if message.key is not None else (message.at, message.offset)
