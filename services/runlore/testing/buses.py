"""The bus in memory: the fake that every test may use, held to the contract of the real ones.

No call suspends but a `poll` that has to wait, so a simulation that polls with no time-out decides alone
where one step ends and the next begins.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import replace

from runlore import clock, errors
from runlore.bus.port import Listener, Message, Outgoing, TopicPartition, partition_of


class MemoryBus:
    """`bus.port.Bus` in lists. Like the embedded bus, it gives every member of a group every partition."""

    def __init__(self, *, partitions: int = 8) -> None:
        self._partitions = partitions
        self._logs: dict[TopicPartition, list[Message]] = {}
        self._commits: dict[str, dict[TopicPartition, int]] = {}
        self._consumers: set[MemoryConsumer] = set()

    async def produce(self, messages: Sequence[Outgoing]) -> list[tuple[TopicPartition, int]]:
        placed = []
        for message in messages:
            at = TopicPartition(message.topic, partition_of(message, self._partitions))
            log = self._logs.setdefault(at, [])
            placed.append((at, len(log)))
            now = clock.now().timestamp()
            headers = list(message.headers)
            log.append(Message(*at, len(log), message.key, message.value, headers, now))
        for consumer in self._consumers:
            consumer.wake()
        return placed

    async def consumer(
        self, *, group: str, topics: Sequence[str], listener: Listener | None = None
    ) -> MemoryConsumer:
        positions: dict[TopicPartition, int] = {}
        for topic in topics:
            for partition, offset in (await self.committed(group=group, topic=topic)).items():
                positions[TopicPartition(topic, partition)] = offset
        commits = self._commits.setdefault(group, {})
        consumer = MemoryConsumer(group, self._logs, commits, positions, self._consumers.discard, listener)
        self._consumers.add(consumer)
        if listener is not None:
            await listener.assigned(consumer.assignment())
        return consumer

    async def read(self, topic: str, *, start: Mapping[int, int] | None = None) -> AsyncIterator[Message]:
        there_now = [log[:] for _, log in sorted(self._topic(topic).items())]
        for log in there_now:
            for message in log:
                if message.offset >= (start or {}).get(message.partition, 0):
                    yield message

    async def reread(self, topic: str, offsets: Mapping[int, Collection[int]]) -> list[Message]:
        wanted = {TopicPartition(topic, partition): set(found) for partition, found in offsets.items()}
        logs = {at: self._logs.get(at, []) for at in sorted(wanted)}
        return [log[n] for at, log in logs.items() for n in sorted(wanted[at]) if 0 <= n < len(log)]

    async def lag(self, *, group: str, topic: str) -> dict[int, int]:
        committed = await self.committed(group=group, topic=topic)
        ends = {at.partition: len(log) for at, log in self._topic(topic).items()}
        return {partition: max(0, ends.get(partition, 0) - offset) for partition, offset in committed.items()}

    async def committed(self, *, group: str, topic: str) -> dict[int, int]:
        commits = self._commits.get(group, {})
        return {p: commits.get(TopicPartition(topic, p), 0) for p in range(self._partitions)}

    async def oldest(self, *, group: str, topic: str) -> float | None:
        committed = await self.committed(group=group, topic=topic)
        waiting = [log[committed[at.partition] :] for at, log in self._topic(topic).items()]
        return min((log[0].time for log in waiting if log), default=None)

    async def rewind(self, *, group: str, topic: str, start: float | None = None) -> None:
        if any(consumer.reads(group, topic) for consumer in self._consumers):
            raise errors.Refused(f"group {group!r} is reading {topic!r}")
        commits = self._commits.setdefault(group, {})
        for at in [at for at in commits if at.topic == topic]:
            del commits[at]
        if start is not None:
            for at, log in self._topic(topic).items():
                commits[at] = next((one.offset for one in log if one.time >= start), len(log))

    async def overwrite(self, messages: Sequence[Message]) -> None:
        for one in messages:
            log = self._logs[one.at]
            log[one.offset] = replace(
                log[one.offset], key=one.key, value=one.value, headers=list(one.headers)
            )

    async def close(self) -> None:
        for consumer in list(self._consumers):
            await consumer.close()

    # --- for tests ----------------------------------------------------------------------------------

    @property
    def partitions(self) -> int:
        """How many each topic has."""
        return self._partitions

    def add_partitions(self, count: int) -> None:
        """More of them, for every topic: from here on a key may go elsewhere."""
        self._partitions += count

    def page(self, at: TopicPartition, offset: int, records_max: int) -> list[Message]:
        """Messages of one partition from `offset` on."""
        return self._logs.get(at, [])[offset : offset + max(0, records_max)]

    def note_commit(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit for a group, whoever is in it. Never moves backwards."""
        commits = self._commits.setdefault(group, {})
        for at, offset in offsets.items():
            commits[at] = max(offset, commits.get(at, 0))

    def copy(self) -> MemoryBus:
        """Another bus with the same messages and commits, and nobody in its groups."""
        out = MemoryBus(partitions=self._partitions)
        out._logs = {at: list(log) for at, log in self._logs.items()}
        out._commits = {group: dict(offsets) for group, offsets in self._commits.items()}
        return out

    def fingerprint(self, *, ignore: Sequence[str] = ()) -> int:
        """A hash of every message and commit, but for the messages of the topics in `ignore`."""
        logs = [
            (at, tuple(hash((message.key, message.value)) for message in log))
            for at, log in sorted(self._logs.items())
            if at.topic not in ignore
        ]
        commits = [
            (group, at, offset)
            for group, offsets in sorted(self._commits.items())
            for at, offset in sorted(offsets.items())
            if at.topic not in ignore
        ]
        return hash((tuple(logs), tuple(commits)))

    def _topic(self, topic: str) -> dict[TopicPartition, list[Message]]:
        return {at: log for at, log in self._logs.items() if at.topic == topic}


class MemoryConsumer:
    """One member of a group."""

    def __init__(
        self,
        group: str,
        logs: dict[TopicPartition, list[Message]],
        commits: dict[TopicPartition, int],
        positions: dict[TopicPartition, int],
        leave: Callable[[MemoryConsumer], None],
        listener: Listener | None = None,
    ) -> None:
        self._group = group
        self._logs = logs
        self._commits = commits
        self._positions = positions
        self._leave = leave
        self._listener = listener
        self._paused: set[TopicPartition] = set()
        self._waiting: asyncio.Event | None = None
        self._closed = False
        self._taken = False
        self._turn = 0

    async def poll(self, *, records_max: int, timeout_seconds: float) -> list[Message]:
        deadline = clock.monotonic() + timeout_seconds
        while not self._closed:
            found = self._take(records_max)
            left = deadline - clock.monotonic()
            if found or left <= 0:
                return found
            self._waiting = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._waiting.wait(), left)
        return []

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        for at, offset in offsets.items():
            if at in self._positions:
                self._commits[at] = max(offset, self._commits.get(at, 0))

    async def seek(self, offsets: Mapping[TopicPartition, int]) -> None:
        self._positions.update(offsets)
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
        self.wake()
        self._leave(self)

    async def rebalance(self, partitions: Collection[TopicPartition]) -> None:
        """For tests: everything is taken back, and these are given, as Kafka does when a member joins."""
        before, self._taken = self.assignment(), True
        if self._listener is not None:
            await self._listener.revoked(before)
        self._positions = {at: self._commits.get(at, 0) for at in partitions}
        self._paused.clear()
        if self._listener is not None:
            await self._listener.assigned(self.assignment())
        self._taken = False
        self.wake()

    def wake(self) -> None:
        """Let a waiting poll look again now."""
        if self._waiting is not None:
            self._waiting.set()

    def reads(self, group: str, topic: str) -> bool:
        return self._group == group and any(at.topic == topic for at in self._positions)

    def _take(self, records_max: int) -> list[Message]:
        if self._taken:
            return []
        # Each poll begins one partition further, so that a full one does not starve the others.
        order = sorted(self._positions.keys() - self._paused)
        self._turn = (self._turn + 1) % max(1, len(order))
        found: list[Message] = []
        for at in order[self._turn :] + order[: self._turn]:
            start = self._positions[at]
            page = self._logs.get(at, [])[start : start + records_max - len(found)]
            if page:
                self._positions[at] = page[-1].offset + 1
                found += page
        return found


class Watched:
    """What a simulated bus passes on as it is: who looks at groups and logs takes no step of the schedule."""

    _inner: MemoryBus

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
