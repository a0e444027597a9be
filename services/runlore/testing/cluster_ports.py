"""What one process of a simulated cluster sees of its store and its bus (`cluster.py`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runlore import errors, pipeline
from runlore.bus.port import Listener, Message, Outgoing, TopicPartition
from runlore.store.port import Guard, Listed, Stored
from runlore.testing.buses import Watched
from runlore.testing.simloop import Process, SimLoop
from runlore.testing.world import finish

if TYPE_CHECKING:
    from runlore.testing.cluster import Cluster

SESSION_SECONDS = 10.0
"""After so long without a sign of life a member is left out of its group."""
REBALANCE_SECONDS_MAX = 60.0
LIST_PAGE = 7
"""Rows of one page of a LIST: few, so that others go on in between."""


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


class SimBus(Watched):
    """`bus.port.Bus` as one process sees it."""

    def __init__(self, cluster: Cluster, process: Process) -> None:
        self._cluster, self._process, self._inner = cluster, process, cluster.bus

    async def produce(self, messages: Sequence[Outgoing]) -> list[tuple[TopicPartition, int]]:
        if not messages:
            return []
        topics = ",".join(sorted({message.topic for message in messages}))
        if topics == pipeline.CHANGED.name and self._cluster.goes_wrong(
            self._process.name, "bell lost", self._cluster.rates.bells
        ):
            self._cluster.happened["doorbell lost"] += 1
            return []
        sent_at = self._cluster.loop.time()

        def perform() -> list[tuple[TopicPartition, int]]:
            for message in messages:
                self._cluster.lands((message.topic, message.key), sent_at)
            return finish(self._inner.produce(messages))

        placed = await self._cluster.request(
            self._process,
            "produce",
            topics,
            perform,
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

    async def reread(self, topic: str, offsets: Mapping[int, Collection[int]]) -> list[Message]:
        return await self._cluster.request(
            self._process,
            "poll",
            f"{topic} again",
            lambda: finish(self._inner.reread(topic, offsets)),
            refused_as=errors.BusUnavailable,
        )


@dataclass(eq=False)
class Group:
    """A consumer group of one topic: who is in it, who has which partitions. Shared out eagerly, as by aiokafka."""

    cluster: Cluster
    name: str
    topic: str
    consumers: list[SimConsumer] = field(default_factory=list)
    generation: int = 0
    given: dict[TopicPartition, int] = field(default_factory=dict)
    """Up to where each partition was handed out once."""
    _newest: dict[bytes | None, float] = field(default_factory=dict)
    """Of each key, the time of the newest message that was handed out."""
    _is_due: bool = False

    def handed_out(self, page: Sequence[Message]) -> None:
        """Note what is seen a second time, and what comes after a message of its key that is newer."""
        happened = self.cluster.happened
        for message in page:
            if message.offset < self.given.get(message.at, 0):
                happened["redelivery"] += 1
                continue
            self.given[message.at] = message.offset + 1
            newest = self._newest.get(message.key, 0.0)
            happened["reorder"] += message.time < newest
            self._newest[message.key] = max(newest, message.time)

    def forget(self) -> None:
        """It begins at the start again: what it sees then is a replay."""
        self.given.clear()
        self._newest.clear()

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
            self.cluster.later(
                seconds, lambda: self.cluster.loop.create_task(self._share(), context=self.cluster.context)
            )

    async def _share(self) -> None:
        self._is_due = False
        self.generation += 1
        mine = self.generation
        consumers = list(self.consumers)
        if any(self.cluster.writing[consumer.process.name] for consumer in consumers):
            self.cluster.happened["rebalance mid-write"] += 1
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

    def __init__(self, cluster: Cluster, process: Process, group: Group, listener: Listener | None) -> None:
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
            there = any(self._cluster.bus.page(at, offset, 1) for at, offset in self._positions.items())
            self._cluster.happened["stale poll"] += there
            return []
        torn = self._cluster.goes_wrong(stream, "torn poll", rates.stale)
        wanted, records_max = records_max, 1 if torn else records_max
        found: list[Message] = []
        for at in sorted(self._positions.keys() - self._paused):
            page = self._cluster.bus.page(at, self._positions[at], records_max - len(found))
            if page:
                self._positions[at] = page[-1].offset + 1
                found += page
        if torn:
            more = any(self._cluster.bus.page(at, offset, 1) for at, offset in self._positions.items())
            self._cluster.happened["torn poll"] += more and len(found) < wanted
        self._group.handed_out(found)
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
