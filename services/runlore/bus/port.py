"""The port to the bus: Kafka's model, and no more of it than Runlore needs.

A topic has partitions; a message has an offset in its partition; messages with one key are in one partition,
in order. A consumer belongs to a group; the group commits, for each partition, the offset of the next
message to read. Delivery is at least once: a message may come again after any crash or rebalance, and a
whole topic may be replayed from its start. Correctness never rests on who owns a partition.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable


class TopicPartition(NamedTuple):
    topic: str
    partition: int


@dataclass(frozen=True)
class Message:
    """One message as read. `time` is when the bus took it, in seconds since 1970."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    time: float

    @property
    def at(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)


@dataclass(frozen=True)
class Outgoing:
    """One message to send."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


def partition_of(message: Outgoing, partitions: int) -> int:
    """Where the embedded bus and the fake put a message: by its key's CRC-32, without a key by its value's.

    A function of the message, so two processes agree and a test's world does not depend on a counter.
    """
    what = message.key if message.key is not None else message.value
    return zlib.crc32(what or b"") % partitions


class Listener(Protocol):
    """Who is told that partitions come and go. Both are called while no poll gives any message.

    A bus that shares a topic out takes *all* partitions of a member back before it gives any (an eager
    rebalance), so what is kept per partition must be cheap to drop. Neither may raise: nobody would see it.
    """

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        """Stop work on these, and commit what is done: the last moment at which a commit counts.

        It has `rebalance_seconds_max` for it. Their positions and pauses are forgotten after it.
        """
        ...

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        """These are read from their committed offsets on, and none is paused."""
        ...


@runtime_checkable
class Overwrites(Protocol):
    """What a bus that is one file may do besides: let the bytes of messages go. Kafka keeps them for their term."""

    async def overwrite(self, messages: Sequence[Message]) -> None:
        """Put each message's key, value and headers in place of what stands where it says. No byte of that stays."""
        ...


class Consumer(Protocol):
    """One member of a consumer group."""

    async def poll(self, *, records_max: int, timeout_seconds: float) -> list[Message]:
        """The next messages, in order within each partition; [] when none came within the time.

        With no time, [] says that no message is there now. The position moves on: a message is given again
        only after `seek`, a restart or a rebalance. A member that does not poll is taken for dead after a
        while, so polls go on while work is in hand, with the partitions paused.
        """
        ...

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit, for each partition, the offset of the next message to read. Never moves backwards here.

        Partitions that are not this member's any more are passed over: their messages come again elsewhere.
        """
        ...

    async def seek(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Read these partitions from these offsets on."""
        ...

    def assignment(self) -> frozenset[TopicPartition]:
        """The partitions that this member reads now."""
        ...

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        """Polls give nothing of these until `resume`, or until a rebalance, which forgets it."""
        ...

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        """Polls give messages of these again."""
        ...

    async def close(self) -> None:
        """Leave the group; commits nothing."""
        ...


class Bus(Protocol):
    """What a bus must do."""

    async def produce(self, messages: Sequence[Outgoing]) -> list[tuple[TopicPartition, int]]:
        """Send, and return when all are durable: where each one went. Raises `BusUnavailable`."""
        ...

    async def consumer(
        self, *, group: str, topics: Sequence[str], listener: Listener | None = None
    ) -> Consumer:
        """Join `group`. A group without a commit starts at the first message.

        `listener.assigned` may be called before this returns.
        """
        ...

    def read(self, topic: str, *, start: Mapping[int, int] | None = None) -> AsyncIterator[Message]:
        """Every message of `topic` that is there now, outside of any group; from `start`, by partition."""
        ...

    async def reread(self, topic: str, offsets: Mapping[int, Collection[int]]) -> list[Message]:
        """The messages at these offsets, by partition, once more and outside of any group; in order within each.

        What is not there any more (retention, a topic made anew) is left out. All are held at the same time: how
        many and how large they are is the caller's to bound.
        """
        ...

    async def lag(self, *, group: str, topic: str) -> dict[int, int]:
        """Messages not yet committed by `group`, by partition."""
        ...

    async def committed(self, *, group: str, topic: str) -> dict[int, int]:
        """The committed offset of `group`, by partition; the first, or 0, where it committed nothing."""
        ...

    async def oldest(self, *, group: str, topic: str) -> float | None:
        """When the oldest message that `group` has not committed came, in seconds since 1970; None: none waits."""
        ...

    async def rewind(self, *, group: str, topic: str, start: float | None = None) -> None:
        """Make `group` read `topic` from its first message, or from the first of `start` on: a replay.

        `start` is in seconds since 1970. Only while nobody is in the group: else raises `Refused`.
        """
        ...

    async def close(self) -> None:
        """Give back what the adapter holds."""
        ...
