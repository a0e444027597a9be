"""One member of a consumer group on Kafka: what aiokafka fetches, given out as the port wants it.

aiokafka moves a partition's position as it gives messages out, and a rebalance takes every partition back. So
what was fetched and not yet given lies here, by partition, and is dropped when partitions are taken back: then a
poll never gives a message of a partition that is another's, a full partition starves no other, and a pause holds
from the next poll on.

`getmany` is never cancelled (that would turn off the client's own poll check): a poll whose time is over leaves it
running, and the next one goes on with it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord
from aiokafka import TopicPartition as KafkaPartition
from aiokafka import errors as kafka_errors

from runlore import clock
from runlore.bus import kafka_clients
from runlore.bus.port import Listener, Message, TopicPartition

JOIN_SECONDS_MAX = 90.0
"""How long joining a group may take: a rebalance waits for members that are slow to give up their work."""
COMMIT_SECONDS_MAX = 10.0
ENDS_SECONDS_MAX = 10.0
FETCH_SECONDS_MAX = 0.25
"""One wait of aiokafka for messages: how long a `resume` may take to be seen."""
LOOK_SECONDS = 0.02
POLL_BYTES_MAX = 8 * 1024 * 1024
"""A poll stops after the message that reaches this many bytes of values."""

Fault = Callable[[BaseException, str], Any]
_NOWHERE = KafkaPartition("", 0)
"""`getmany` of no partition means all of them; of this one, none. The poll still counts as one."""


def message_of(record: ConsumerRecord, topic: str) -> Message:
    """A record as a message of `topic`, the name without the prefix."""
    headers = [(name, raw if raw is not None else b"") for name, raw in record.headers]
    return Message(
        topic, record.partition, record.offset, record.key, record.value, headers, record.timestamp / 1000
    )


class KafkaConsumer:
    """`bus.port.Consumer`. `prefix` is what Kafka's topic names have before ours."""

    def __init__(
        self,
        client: AIOKafkaConsumer,
        *,
        prefix: str,
        fault: Fault,
        leave: Callable[[KafkaConsumer], None],
        listener: Listener | None,
    ) -> None:
        self._client, self._prefix, self._fault = client, prefix, fault
        self._leave, self._listener = leave, listener
        self._held: dict[TopicPartition, deque[Message]] = {}
        self._paused: set[TopicPartition] = set()
        self._committed: dict[TopicPartition, int] = {}
        self._taken_back = False
        self._fetching: asyncio.Task | None = None
        self._closing: asyncio.Future = asyncio.get_running_loop().create_future()
        self._turn = 0

    async def join(self, topics: Collection[str]) -> None:
        """Subscribe and wait for the first assignment."""
        self._client.subscribe(topics=[self._prefix + topic for topic in topics], listener=_Rebalance(self))
        try:
            async with asyncio.timeout(JOIN_SECONDS_MAX):
                await self._client.start()
        except (kafka_errors.KafkaError, OSError, TimeoutError) as exc:
            raise await self._fault(exc, "join a consumer group") from exc

    async def poll(self, *, records_max: int, timeout_seconds: float) -> list[Message]:
        deadline = clock.monotonic() + timeout_seconds
        while not self._closed:
            left = deadline - clock.monotonic()
            await self._fetch(0.0 if self._ready() else max(0.0, left))
            found = self._take(records_max)
            if found:
                return found
            if left <= 0:
                if await self._nothing_is_there():
                    break
                # The time is over, yet a message is there: its fetch is on the way.
                await self._fetch(LOOK_SECONDS)
                if found := self._take(records_max):
                    return found
                if clock.monotonic() - deadline > ENDS_SECONDS_MAX:
                    break
        return []

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        mine = self.assignment()
        forward = {
            at: offset
            for at, offset in offsets.items()
            if at in mine and offset > self._committed.get(at, -1)
        }
        if not forward or self._closed:
            return
        try:
            async with asyncio.timeout(COMMIT_SECONDS_MAX):
                await self._client.commit({self._theirs(at): offset for at, offset in forward.items()})
        except (kafka_errors.CommitFailedError, kafka_errors.IllegalStateError):
            return  # They are another's by now, and come again there.
        except (kafka_errors.KafkaError, OSError, TimeoutError) as exc:
            raise await self._fault(exc, "commit offsets") from exc
        self._committed |= forward

    async def seek(self, offsets: Mapping[TopicPartition, int]) -> None:
        mine = self.assignment()
        for at, offset in offsets.items():
            if at in mine:
                self._client.seek(self._theirs(at), offset)
                self._held.pop(at, None)

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(self._ours(at) for at in self._client.assignment())

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        mine = self.assignment() & set(partitions)
        self._client.pause(*(self._theirs(at) for at in mine))
        self._paused |= mine

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        mine = self.assignment() & set(partitions)
        self._client.resume(*(self._theirs(at) for at in mine))
        self._paused -= mine

    async def close(self) -> None:
        if self._closed:
            return
        self._closing.set_result(None)
        self._leave(self)
        await kafka_clients.stop_consumer(self._client)
        if self._fetching is not None:
            # Nothing counts its polls any more, so now it may be cancelled.
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)
        self._held.clear()

    # --- rebalance ----------------------------------------------------------------------------------------

    async def revoked(self, partitions: Collection[KafkaPartition]) -> None:
        self._taken_back = True
        self._held.clear()
        if self._listener is not None and partitions:
            await self._listener.revoked(frozenset(self._ours(at) for at in partitions))
        self._paused.clear()
        self._committed.clear()

    async def assigned(self, partitions: Collection[KafkaPartition]) -> None:
        self._taken_back = False
        if self._listener is not None:
            await self._listener.assigned(frozenset(self._ours(at) for at in partitions))

    # --- fetching -----------------------------------------------------------------------------------------

    @property
    def _closed(self) -> bool:
        return self._closing.done()

    def _ready(self) -> bool:
        return any(queue and at not in self._paused for at, queue in self._held.items())

    async def _fetch(self, seconds: float) -> None:
        """Wait for messages, at most so long; what came lies in `_held` then."""
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._getmany(min(seconds, FETCH_SECONDS_MAX)))
        waited_for = {self._fetching, self._closing}
        await asyncio.wait(waited_for, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if self._fetching.done() and not self._closed:
            done, self._fetching = self._fetching, None
            try:
                done.result()
            except kafka_errors.ConsumerStoppedError:
                return
            except (kafka_errors.KafkaError, OSError) as exc:
                raise await self._fault(exc, "read messages") from exc

    async def _getmany(self, seconds: float) -> None:
        wanted = [
            at
            for at in self._client.assignment()
            if (ours := self._ours(at)) not in self._paused and not self._held.get(ours)
        ]
        fetched = await self._client.getmany(*(wanted or [_NOWHERE]), timeout_ms=int(seconds * 1000))
        # No step of anybody else lies between the two, so this can not be of an assignment that has ended.
        for at, records in fetched.items():
            ours = self._ours(at)
            self._held.setdefault(ours, deque()).extend(message_of(one, ours.topic) for one in records)

    def _take(self, records_max: int) -> list[Message]:
        if self._taken_back or self._closed:
            return []
        order = sorted(at for at, queue in self._held.items() if queue and at not in self._paused)
        # Each poll begins one partition further, so that a full one does not starve the others.
        self._turn = (self._turn + 1) % max(1, len(order))
        found: list[Message] = []
        size = 0
        for at in order[self._turn :] + order[: self._turn]:
            queue = self._held[at]
            while queue and len(found) < records_max and size < POLL_BYTES_MAX:
                found.append(queue.popleft())
                size += len(found[-1].value or b"")
        return found

    async def _nothing_is_there(self) -> bool:
        """Whether each partition that may be given from was read to its end.

        A look at the ends costs one request. It also is how a poll notices that the broker is away.
        """
        open_now = [at for at in self._client.assignment() if self._ours(at) not in self._paused]
        if self._taken_back or self._closed or not open_now:
            return True
        try:
            async with asyncio.timeout(ENDS_SECONDS_MAX):
                ends = await self._client.end_offsets(open_now)
                return all([await self._client.position(at) >= end for at, end in ends.items()])
        except kafka_errors.IllegalStateError:
            return True  # A rebalance began meanwhile.
        except (kafka_errors.KafkaError, OSError, TimeoutError) as exc:
            if self._taken_back or self._closed:
                return True
            raise await self._fault(exc, "read messages") from exc

    def _ours(self, at: KafkaPartition) -> TopicPartition:
        return TopicPartition(at.topic.removeprefix(self._prefix), at.partition)

    def _theirs(self, at: TopicPartition) -> KafkaPartition:
        return KafkaPartition(self._prefix + at.topic, at.partition)


class _Rebalance(ConsumerRebalanceListener):
    """aiokafka's callbacks. It only logs what they raise, so they hand over and raise nothing of their own."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Collection[KafkaPartition]) -> None:
        await self._consumer.revoked(revoked)

    async def on_partitions_assigned(self, assigned: Collection[KafkaPartition]) -> None:
        await self._consumer.assigned(assigned)
