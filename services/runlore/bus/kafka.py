"""The bus over Kafka, through aiokafka.

Kafka's topics are ours with a prefix, its groups too. The bus creates no topic: one that is not there is
`errors.Blocked`, with the command that makes it. Every call has a deadline, after which a broker that is away is
`errors.BusUnavailable`.

Producing is idempotent (a lost reply is not a second message, as long as this producer lives) and acknowledged by
all in-sync replicas. When a call's time is over its producer is given up with all that it still held: whoever sent
is told, sends again, and may so send twice, which every stage bears.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient

from runlore import clock, errors
from runlore.bus import kafka_clients
from runlore.bus.kafka_consumer import KafkaConsumer, message_of
from runlore.bus.kafka_reread import FETCH_SECONDS_MAX, Rereader
from runlore.bus.port import Listener, Message, Outgoing, TopicPartition
from runlore.settings import Settings

REQUEST_SECONDS_MAX = 10.0
"""How long one request to a broker may take, before it is tried again elsewhere."""
METADATA_SECONDS_MAX = 60.0
"""How long a partition that was added goes unnoticed."""
PRODUCE_SECONDS_MAX = 30.0
"""How long `produce` waits for its acknowledgements; a broker that restarts is back by then."""
ASK_SECONDS_MAX = 15.0
"""How long a question (offsets, topics) is asked again."""
READ_SECONDS_MAX = 30.0
"""How long `read` waits for the next message that must be there."""
MESSAGE_BYTES_MAX = 16 * 1024 * 1024
"""Largest message that is tried; how large one may be is the topic's own setting, after compression."""
BATCH_BYTES_MAX = 256 * 1024
"""Messages that go out together. Below the topics' own limit, which counts batches."""
FETCH_BYTES_MAX = 16 * 1024 * 1024
PARTITION_FETCH_BYTES_MAX = 1024 * 1024
OLDEST_FETCH_BYTES_MAX = 16 * 1024
POLL_INTERVAL_SECONDS_MAX = 300.0
"""A member that does not poll for so long is taken for dead."""
REBALANCE_SLACK_SECONDS = 10.0
"""What a rebalance needs beyond the wait for work in hand: commits, and joining."""

T = TypeVar("T")


class KafkaBus:
    """`bus.port.Bus` on a cluster. Its clients start at first use, on the loop that uses them."""

    def __init__(
        self,
        options: Mapping[str, Any],
        *,
        topic_prefix: str,
        group_prefix: str,
        compression: str | None = "zstd",
        instance: str | None = None,
        session_seconds: float = 30.0,
        rebalance_seconds_max: float = 10.0,
        poll_interval_seconds_max: float = POLL_INTERVAL_SECONDS_MAX,
    ) -> None:
        self._options = dict(options)
        self._topic_prefix, self._group_prefix = topic_prefix, group_prefix
        self._compression = compression
        self._group_options = _group_options(
            instance, session_seconds, rebalance_seconds_max, poll_interval_seconds_max
        )
        self._lock = asyncio.Lock()
        self._producer: AIOKafkaProducer | None = None
        self._admin: AIOKafkaAdminClient | None = None
        self._offsets: AIOKafkaConsumer | None = None
        self._known: set[str] = set()
        self._consumers: set[KafkaConsumer] = set()
        self._readers: set[AIOKafkaConsumer] = set()
        self._rereaders: dict[str, Rereader] = {}
        self._closed = False
        kafka_clients.hush()

    @classmethod
    def of(cls, settings: Settings, topic_prefix: str | None = None) -> KafkaBus:
        """The bus that `settings` name; `topic_prefix` in place of theirs ("" for a team's own topics)."""
        return cls(
            client_options(settings),
            topic_prefix=settings.kafka_topic_prefix if topic_prefix is None else topic_prefix,
            group_prefix=settings.kafka_group_prefix,
            compression=None if settings.kafka_compression == "none" else settings.kafka_compression,
            instance=settings.kafka_instance or None,
            session_seconds=settings.kafka_session_seconds,
            rebalance_seconds_max=settings.rebalance_seconds_max,
        )

    # --- producing ----------------------------------------------------------------------------------------

    async def produce(self, messages: Sequence[Outgoing]) -> list[tuple[TopicPartition, int]]:
        if not messages:
            return []
        for message in messages:
            _check(message)
        for topic in {message.topic for message in messages}:
            await self._must_be_there(topic)
        producer = await self._producing()
        try:
            async with asyncio.timeout(PRODUCE_SECONDS_MAX):
                sent = [await self._send(producer, message) for message in messages]
                placed = await asyncio.gather(*sent, return_exceptions=True)
        except (kafka_errors.KafkaError, OSError, TimeoutError) as exc:
            await self._give_up(producer)
            raise await self._fault(exc, "take messages") from exc
        for one in placed:
            if isinstance(one, BaseException):
                if not isinstance(one, (*kafka_clients.REFUSED, *kafka_clients.TOO_LARGE)):
                    await self._give_up(producer)
                raise await self._fault(one, "take messages") from one
        return [
            (TopicPartition(message.topic, one.partition), one.offset)
            for message, one in zip(messages, placed, strict=True)
        ]

    async def _send(self, producer: AIOKafkaProducer, message: Outgoing) -> Awaitable[Any]:
        return await producer.send(
            self._topic_prefix + message.topic, message.value, message.key, headers=message.headers
        )

    async def _producing(self) -> AIOKafkaProducer:
        async with self._lock:
            self._must_be_open()
            if self._producer is None:
                producer = AIOKafkaProducer(
                    **self._options,
                    acks="all",
                    enable_idempotence=True,
                    compression_type=self._compression,
                    max_batch_size=BATCH_BYTES_MAX,
                    max_request_size=MESSAGE_BYTES_MAX + 64 * 1024,
                )
                stop = functools.partial(kafka_clients.stop_producer, flush=False)
                await self._begin(producer, "take messages", stop=stop, seconds_max=PRODUCE_SECONDS_MAX)
                self._producer = producer
            return self._producer

    async def _give_up(self, producer: AIOKafkaProducer) -> None:
        """Drop a producer, and what it holds; the next call starts another."""
        if self._producer is producer:
            self._producer = None
            await kafka_clients.stop_producer(producer, flush=False)

    # --- consuming ----------------------------------------------------------------------------------------

    async def consumer(
        self, *, group: str, topics: Sequence[str], listener: Listener | None = None
    ) -> KafkaConsumer:
        for topic in topics:
            await self._must_be_there(topic)
        client = AIOKafkaConsumer(
            **{**self._options, **self._group_options},
            group_id=self._group_prefix + group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_bytes=FETCH_BYTES_MAX,
            max_partition_fetch_bytes=PARTITION_FETCH_BYTES_MAX,
        )
        consumer = KafkaConsumer(
            client,
            prefix=self._topic_prefix,
            fault=self._fault,
            leave=self._consumers.discard,
            listener=listener,
        )
        self._consumers.add(consumer)
        try:
            await consumer.join(topics)
        except BaseException:
            await consumer.close()
            raise
        return consumer

    async def read(self, topic: str, *, start: Mapping[int, int] | None = None) -> AsyncIterator[Message]:
        # The ends are read first: what comes while the caller reads is not "there now".
        firsts, ends = await self._bounds(topic)
        starts = {
            partition: max(first, (start or {}).get(partition, 0)) for partition, first in firsts.items()
        }
        for partition in sorted(ends):
            if starts[partition] < ends[partition]:
                spans = {partition: (starts[partition], ends[partition])}
                async with self._reader(topic, spans) as pages:
                    async for page in pages:
                        for message in page:
                            yield message

    @contextlib.asynccontextmanager
    async def _reader(
        self,
        topic: str,
        spans: Mapping[int, tuple[int, int]],
        *,
        fetch_bytes_max: int = PARTITION_FETCH_BYTES_MAX,
    ) -> AsyncIterator[AsyncIterator[list[Message]]]:
        """Pages of the messages of `topic` in `spans`: from an offset to before another, by partition."""
        client = AIOKafkaConsumer(
            **self._options,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=fetch_bytes_max,
        )
        self._readers.add(client)
        try:
            await self._begin(client, "read messages")
            client.assign([self._at(topic, partition) for partition in spans])
            for partition, (first, _) in spans.items():
                client.seek(self._at(topic, partition), first)
            yield self._pages(client, topic, dict(spans))
        finally:
            self._readers.discard(client)
            await kafka_clients.stop_consumer(client)

    async def _pages(
        self, client: AIOKafkaConsumer, topic: str, spans: dict[int, tuple[int, int]]
    ) -> AsyncIterator[list[Message]]:
        moved = clock.monotonic()
        while spans:
            try:
                fetched = await client.getmany(timeout_ms=250)
                ended = [p for p in spans if await client.position(self._at(topic, p)) >= spans[p][1]]
            except (kafka_errors.KafkaError, OSError) as exc:
                raise await self._fault(exc, "read messages") from exc
            page = [
                message_of(record, topic)
                for records in fetched.values()
                for record in records
                if record.partition in spans and record.offset < spans[record.partition][1]
            ]
            if page or ended:
                moved = clock.monotonic()
            elif clock.monotonic() - moved > READ_SECONDS_MAX:
                raise await self._fault(TimeoutError(), "read messages")
            for partition in ended:
                del spans[partition]
                client.pause(self._at(topic, partition))
            if page:
                yield page

    async def reread(self, topic: str, offsets: Mapping[int, Collection[int]]) -> list[Message]:
        reader = await self._rereader(topic)
        async with reader.lock:
            try:
                async with asyncio.timeout(READ_SECONDS_MAX):
                    return await reader.read(offsets)
            except BaseException as exc:
                # Wherever it stopped, the next call begins with another.
                if self._rereaders.get(topic) is reader:
                    del self._rereaders[topic]
                if isinstance(exc, asyncio.CancelledError):
                    raise  # Nobody waits for its end but `close`.
                self._readers.discard(reader.client)
                await kafka_clients.stop_consumer(reader.client)
                if isinstance(exc, kafka_errors.KafkaError | OSError | TimeoutError):
                    raise await self._fault(exc, "read messages again") from exc
                raise

    async def _rereader(self, topic: str) -> Rereader:
        await self._must_be_there(topic)
        async with self._lock:
            self._must_be_open()
            if topic not in self._rereaders:
                client = AIOKafkaConsumer(
                    **self._options,
                    enable_auto_commit=False,
                    auto_offset_reset="earliest",
                    fetch_max_wait_ms=int(FETCH_SECONDS_MAX * 1000),
                    max_partition_fetch_bytes=PARTITION_FETCH_BYTES_MAX,
                )
                await self._begin(client, "read messages again")
                self._readers.add(client)
                self._rereaders[topic] = Rereader(client, name=self._topic_prefix + topic, topic=topic)
            return self._rereaders[topic]

    # --- offsets ------------------------------------------------------------------------------------------

    async def lag(self, *, group: str, topic: str) -> dict[int, int]:
        committed, (firsts, ends) = await self._committed(group, topic), await self._bounds(topic)
        # What retention has removed waits for nobody.
        return {
            partition: max(0, end - max(firsts[partition], committed.get(partition, 0)))
            for partition, end in ends.items()
        }

    async def committed(self, *, group: str, topic: str) -> dict[int, int]:
        firsts, _ = await self._bounds(topic)
        return firsts | {p: at for p, at in (await self._committed(group, topic)).items() if p in firsts}

    async def oldest(self, *, group: str, topic: str) -> float | None:
        committed, (firsts, ends) = await self._committed(group, topic), await self._bounds(topic)
        starts = {partition: max(first, committed.get(partition, 0)) for partition, first in firsts.items()}
        waiting = {p: (starts[p], ends[p]) for p in ends if starts[p] < ends[p]}
        if not waiting:
            return None
        found: dict[int, float] = {}
        async with self._reader(topic, waiting, fetch_bytes_max=OLDEST_FETCH_BYTES_MAX) as pages:
            async for page in pages:
                for message in page:
                    found.setdefault(message.partition, message.time)
                if len(found) == len(waiting):
                    break
        return min(found.values(), default=None)

    async def rewind(self, *, group: str, topic: str, start: float | None = None) -> None:
        name = self._group_prefix + group
        await self._must_be_empty(name, group, topic)
        firsts, ends = await self._bounds(topic)
        wanted = firsts
        if start is not None:
            times = {self._at(topic, partition): int(start * 1000) for partition in ends}
            found = await self._ask("find offsets", lambda: self._asking_offsets("offsets_for_times", times))
            wanted = {at.partition: one.offset if one else ends[at.partition] for at, one in found.items()}
        client = AIOKafkaConsumer(**self._options, group_id=name, enable_auto_commit=False)
        self._readers.add(client)
        try:
            await self._begin(client, "set offsets")
            client.assign([self._at(topic, partition) for partition in wanted])
            async with asyncio.timeout(ASK_SECONDS_MAX):
                await client.commit({self._at(topic, partition): at for partition, at in wanted.items()})
        except kafka_errors.CommitFailedError:
            raise _in_use(group, topic) from None
        except (kafka_errors.KafkaError, OSError, TimeoutError) as exc:
            raise await self._fault(exc, "set offsets") from exc
        finally:
            self._readers.discard(client)
            await kafka_clients.stop_consumer(client)

    async def close(self) -> None:
        self._closed = True
        producer, self._producer = self._producer, None
        if producer is not None:
            await kafka_clients.stop_producer(producer, flush=True)
        for consumer in list(self._consumers):
            await consumer.close()
        for client in [*self._readers, *([self._offsets] if self._offsets else [])]:
            await kafka_clients.stop_consumer(client)
        if self._admin is not None:
            await kafka_clients.stop_admin(self._admin)
        self._offsets = self._admin = None

    async def _must_be_empty(self, name: str, group: str, topic: str) -> None:
        async def members() -> int:
            (found,) = await (await self._administrating()).describe_consumer_groups([name])
            code, members = found.groups[0][0], found.groups[0][5]
            if code and kafka_errors.for_code(code) is not kafka_errors.GroupIdNotFound:
                raise kafka_errors.for_code(code)(name)
            return len(members)

        if await self._ask("describe a consumer group", members):
            raise _in_use(group, topic)

    async def _committed(self, group: str, topic: str) -> dict[int, int]:
        """What `group` has committed, by partition; without those for which it committed nothing."""
        partitions = await self._partitions(topic)
        wanted = [self._at(topic, partition) for partition in partitions]

        async def fetch() -> dict[int, int]:
            admin = await self._administrating()
            found = await admin.list_consumer_group_offsets(self._group_prefix + group, partitions=wanted)
            # aiokafka passes over an error of the whole request; then there is no row for any partition.
            if set(found) != set(wanted):
                raise kafka_errors.GroupCoordinatorNotAvailableError()
            return {at.partition: one.offset for at, one in found.items() if one.offset >= 0}

        return await self._ask("fetch committed offsets", fetch)

    async def _bounds(self, topic: str) -> tuple[dict[int, int], dict[int, int]]:
        """(offset of the first message that is left, offset of the next message), by partition."""
        at = [self._at(topic, partition) for partition in await self._partitions(topic)]
        firsts = await self._ask("list offsets", lambda: self._asking_offsets("beginning_offsets", at))
        ends = await self._ask("list offsets", lambda: self._asking_offsets("end_offsets", at))
        return {one.partition: firsts[one] for one in at}, {one.partition: ends[one] for one in at}

    async def _asking_offsets(self, call: str, about: Any) -> dict[KafkaPartition, Any]:
        async with self._lock:
            self._must_be_open()
            if self._offsets is None:
                client = AIOKafkaConsumer(**self._options, enable_auto_commit=False)
                await self._begin(client, "list offsets")
                self._offsets = client
        return await getattr(self._offsets, call)(about)

    # --- topics -------------------------------------------------------------------------------------------

    async def _must_be_there(self, topic: str) -> None:
        """Raises `errors.Blocked` where Kafka has no such topic.

        Asked by a list of all: asking for the one would create it where the brokers are set so.
        """
        name = self._topic_prefix + topic
        if name in self._known:
            return
        for wait in (0.1, 0.3, 0.6, None):
            # A broker learns of a topic a moment after it was made.
            self._known |= set(await self._ask("list topics", self._list_topics))
            if name in self._known:
                return
            if wait is not None:
                await clock.sleep(wait)
        raise errors.Blocked(
            f"topic {name} is not there, or this user may not see it", hint="`runlore topics apply` makes it"
        )

    async def _list_topics(self) -> list[str]:
        return await (await self._administrating()).list_topics()

    async def _partitions(self, topic: str) -> list[int]:
        await self._must_be_there(topic)
        name = self._topic_prefix + topic

        async def describe() -> list[int]:
            (found,) = await (await self._administrating()).describe_topics([name])
            if found["error_code"]:
                raise kafka_errors.for_code(found["error_code"])(name)
            return sorted(one["partition"] for one in found["partitions"])

        return await self._ask("describe a topic", describe)

    async def _administrating(self) -> AIOKafkaAdminClient:
        async with self._lock:
            self._must_be_open()
            if self._admin is None:
                admin = AIOKafkaAdminClient(**self._options)
                await self._begin(admin, "answer", stop=kafka_clients.stop_admin)
                self._admin = admin
            return self._admin

    # --- faults -------------------------------------------------------------------------------------------

    async def _begin(
        self,
        client: Any,
        what: str,
        *,
        stop: Callable[[Any], Awaitable[None]] = kafka_clients.stop_consumer,
        seconds_max: float | None = None,
    ) -> None:
        """Start a client that is in no group, within `seconds_max` (None: a question's). One that fails is ended."""
        self._must_be_open()
        try:
            async with asyncio.timeout(seconds_max or ASK_SECONDS_MAX):
                await client.start()
        except BaseException as exc:
            await stop(client)
            if isinstance(exc, kafka_errors.KafkaError | OSError | TimeoutError):
                raise await self._fault(exc, what) from exc
            raise

    async def _ask(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        """`call`, again while its failure may pass, for at most `ASK_SECONDS_MAX`."""
        last: BaseException | None = None
        try:
            async with asyncio.timeout(ASK_SECONDS_MAX):
                while True:
                    try:
                        return await call()
                    except kafka_errors.KafkaError as exc:
                        last = exc
                        if isinstance(exc, kafka_clients.REFUSED):
                            raise
                    await clock.sleep(0.2)
        except (kafka_errors.KafkaError, OSError, TimeoutError) as exc:
            raise await self._fault(last or exc, what) from exc

    async def _fault(self, exc: BaseException, what: str) -> errors.RunloreError:
        """A failure as one of ours; where nobody answered, first ask whether this client is refused."""
        servers = ",".join(self._options["bootstrap_servers"])
        found = kafka_clients.fault(exc, what, servers)
        if isinstance(found, errors.BusUnavailable) and not isinstance(exc, errors.RunloreError):
            refusal = await kafka_clients.refusal(self._options)
            if refusal is not None:
                return kafka_clients.fault(refusal, what, servers)
        return found

    def _must_be_open(self) -> None:
        if self._closed:
            raise errors.BusUnavailable("the bus is closed")

    def _at(self, topic: str, partition: int) -> KafkaPartition:
        return KafkaPartition(self._topic_prefix + topic, partition)


def _in_use(group: str, topic: str) -> errors.Refused:
    return errors.Refused(
        f"group {group!r} is reading {topic!r}",
        hint="stop its workers first; one with a static name (RUNLORE_KAFKA_INSTANCE) counts until its session ends",
    )


def _check(message: Outgoing) -> None:
    """Raises before anything of a batch is sent, so that a batch that can not go goes not in part."""
    if message.key is None and message.value is None:
        raise errors.InvalidInput("a message needs a key or a value")
    size = len(message.key or b"") + len(message.value or b"")
    size += sum(len(name) + len(raw) for name, raw in message.headers)
    if size > MESSAGE_BYTES_MAX:
        raise errors.EventTooLarge(
            f"a message for {message.topic} has {size} bytes; at most {MESSAGE_BYTES_MAX} are sent",
            hint="send the record as a claim",
        )


def _group_options(
    instance: str | None, session_seconds: float, rebalance_seconds_max: float, poll_seconds_max: float
) -> dict[str, Any]:
    rebalance_seconds = rebalance_seconds_max + REBALANCE_SLACK_SECONDS
    return {
        "group_instance_id": instance,
        "session_timeout_ms": int(session_seconds * 1000),
        "heartbeat_interval_ms": int(min(3.0, session_seconds / 3) * 1000),
        "max_poll_interval_ms": int(poll_seconds_max * 1000),
        "rebalance_timeout_ms": int(rebalance_seconds * 1000),
        # A join is answered once the slowest member has joined, so its request must be let wait for that.
        "request_timeout_ms": int((rebalance_seconds + 5) * 1000),
    }


def client_options(settings: Settings) -> dict[str, Any]:
    """Keyword arguments that aiokafka's producer, consumer and admin client all take.

    Servers, client id, security, login, and how long a request may take. Raises `errors.Blocked` where a file
    of the TLS settings can not be used.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": [one.strip() for one in settings.kafka_servers.split(",") if one.strip()],
        "client_id": settings.kafka_instance or "runlore",
        "request_timeout_ms": int(REQUEST_SECONDS_MAX * 1000),
        "metadata_max_age_ms": int(METADATA_SECONDS_MAX * 1000),
        "security_protocol": settings.kafka_security.upper(),
    }
    if settings.kafka_security in ("ssl", "sasl_ssl"):
        options["ssl_context"] = _ssl_context(settings)
    if settings.kafka_security.startswith("sasl_"):
        options |= {
            "sasl_mechanism": settings.kafka_sasl_mechanism,
            "sasl_plain_username": settings.kafka_username,
            "sasl_plain_password": settings.kafka_password.get_secret_value(),
        }
    return options


def _ssl_context(settings: Settings) -> ssl.SSLContext:
    """TLS that checks the broker's certificate and its name, always."""
    try:
        context = ssl.create_default_context(cafile=settings.kafka_ca_file or None)
        if settings.kafka_cert_file:
            context.load_cert_chain(settings.kafka_cert_file, settings.kafka_key_file or None)
    except (OSError, ssl.SSLError) as exc:
        raise errors.Blocked(
            f"a TLS file for Kafka can not be used: {exc}",
            hint="check RUNLORE_KAFKA_CA_FILE, RUNLORE_KAFKA_CERT_FILE and RUNLORE_KAFKA_KEY_FILE",
        ) from exc
    return context
