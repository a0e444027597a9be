"""Messages of a Kafka topic once more, by their offsets: what a worker has put aside, when its turn has come.

One client for a topic, in no group, that stays where the last call ended: what is asked for next usually lies right
behind it, and its fetch is there already. A partition that nobody asks for is paused, so that nothing of it is fetched.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Mapping

from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as KafkaPartition

from runlore.bus.kafka_consumer import message_of
from runlore.bus.port import Message

FETCH_SECONDS_MAX = 0.05
"""How long a fetch waits at the end of a partition: it stands in the way of those of other partitions."""
SKIP_MAX = 1000
"""Messages that nobody wants which are read over, rather than fetched anew behind them."""
PAGE = 500


class Rereader:
    """Reads again from one topic; `name` is what Kafka calls it. One call at a time."""

    def __init__(self, client: AIOKafkaConsumer, *, name: str, topic: str) -> None:
        self.client, self._name, self._topic = client, name, topic
        self.lock = asyncio.Lock()
        self._mine: set[KafkaPartition] = set()

    async def read(self, offsets: Mapping[int, Collection[int]]) -> list[Message]:
        """As `bus.port.Bus.reread`. Raises as aiokafka does; then the client is of no more use."""
        wanted = {
            KafkaPartition(self._name, one): sorted(set(found)) for one, found in offsets.items() if found
        }
        await self._begin(wanted)
        found: list[Message] = []
        for at, mine in sorted(wanted.items()):
            found += await self._partition(at, deque(mine))
            self.client.pause(at)
        return found

    async def _begin(self, wanted: Mapping[KafkaPartition, list[int]]) -> None:
        """Let the partitions be fetched from where they are wanted, all with one request."""
        fresh = wanted.keys() - self._mine
        if fresh:
            # It forgets where it was in all of them.
            self._mine |= fresh
            self.client.assign(sorted(self._mine))
            self.client.pause(*self._mine)
        for at, mine in wanted.items():
            if fresh or not mine[0] - SKIP_MAX <= await self.client.position(at) <= mine[0]:
                self.client.seek(at, mine[0])
        self.client.resume(*wanted)

    async def _partition(self, at: KafkaPartition, left: deque[int]) -> list[Message]:
        found: list[Message] = []
        while left:
            position = await self.client.position(at)
            if left[0] < position:
                left.popleft()  # It is not there any more: the position went past it.
                continue
            if left[0] - position > SKIP_MAX:
                if await self._end(at) <= left[0]:
                    break
                self.client.seek(at, left[0])
            # Never more than up to the last that is wanted, so that the next call can go on from there.
            count = min(PAGE, left[-1] - position + 1)
            page = await self.client.getmany(at, timeout_ms=250, max_records=count)
            for record in page.get(at, ()):
                while left and left[0] < record.offset:
                    left.popleft()
                if left and left[0] == record.offset:
                    found.append(message_of(record, self._topic))
                    left.popleft()
            if not page and await self._end(at) <= left[0]:
                break
        return found

    async def _end(self, at: KafkaPartition) -> int:
        return (await self.client.end_offsets([at]))[at]
