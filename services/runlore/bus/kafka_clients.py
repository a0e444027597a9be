"""What aiokafka's clients need to serve a port: quiet logs, faults told apart, and an end within a deadline.

aiokafka retries for ever, logs each try, and hides why it could not connect behind "unable to bootstrap". Here
every wait has a limit, a cause is logged once in a while, and a refused login is told from a broker that is away:
the first needs a person (`errors.Blocked`), the second only time (`errors.BusUnavailable`).
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Coroutine, Mapping
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, conn
from aiokafka import errors as kafka_errors

from runlore import clock, errors

STOP_SECONDS_MAX = 10.0
"""How long a client may take to end in peace; then it is cut off. `stop()` hangs while Kafka is down."""
PROBE_SECONDS_MAX = 5.0
QUIET_SECONDS = 60.0
"""How long one cause is not logged again."""
CAUSES_MAX = 1000
ORDINARY = ("Heartbeat failed for group %s because it is rebalancing",)
"""What aiokafka warns of, though it is how a group works."""

REFUSED = (
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.GroupAuthorizationFailedError,
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.TransactionalIdAuthorizationFailed,
    kafka_errors.SaslAuthenticationFailed,
    kafka_errors.AuthenticationFailedError,
    kafka_errors.AuthenticationMethodNotSupported,
    kafka_errors.UnsupportedSaslMechanismError,
    kafka_errors.IllegalSaslStateError,
    kafka_errors.SecurityDisabled,
    ssl.SSLError,
)
"""What no waiting mends: a login, a certificate or a permission."""
TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)


def fault(exc: BaseException, what: str, servers: object) -> errors.RunloreError:
    """A failure of aiokafka as one of ours. `what` says what was tried, `servers` where."""
    if isinstance(exc, errors.RunloreError):
        return exc
    said = f"{type(exc).__name__}: {exc}".rstrip(": ")
    if isinstance(exc, REFUSED):
        return errors.Blocked(
            f"Kafka refused to {what}: {said}",
            hint="check the login (RUNLORE_KAFKA_*) and the ACLs: `runlore topics plan` prints what is needed",
        )
    if isinstance(exc, TOO_LARGE):
        return errors.EventTooLarge(
            f"Kafka refused to {what}: the message is larger than the topic takes",
            hint="raise the topic's max.message.bytes (`runlore topics apply`), or send the record as a claim",
        )
    if isinstance(exc, kafka_errors.UnknownTopicOrPartitionError):
        return errors.Blocked(
            f"Kafka could not {what}: the topic is not there", hint="`runlore topics apply`"
        )
    if isinstance(exc, TimeoutError):
        said = "no answer in time"
    return errors.BusUnavailable(
        f"Kafka at {servers} could not {what}: {said}", hint="check RUNLORE_KAFKA_SERVERS and the brokers"
    )


async def refusal(options: Mapping[str, Any]) -> Exception | None:
    """Why a broker refuses this client, if one does; asked anew, because aiokafka keeps the reason to its logs."""
    if options["security_protocol"] == "PLAINTEXT":
        return None
    named = {
        name: value
        for name, value in options.items()
        if name not in ("bootstrap_servers", "request_timeout_ms", "metadata_max_age_ms")
    }
    for server in options["bootstrap_servers"]:
        host, _, port = server.rpartition(":")
        try:
            async with asyncio.timeout(PROBE_SECONDS_MAX):
                probe = await conn.create_conn(
                    host, int(port), request_timeout_ms=int(PROBE_SECONDS_MAX * 1000), **named
                )
                await probe.close()
                return None
        except REFUSED as exc:
            return exc
        except (kafka_errors.KafkaError, OSError, TimeoutError, ValueError):
            continue
    return None


# --- an end within a deadline -------------------------------------------------------------------------------


async def stop_producer(producer: AIOKafkaProducer, *, flush: bool) -> None:
    """End a producer within `STOP_SECONDS_MAX`.

    Without `flush`, what was not acknowledged is dropped: whoever sent it was told, and sends it again. Kept, it
    would go out behind its back hours later, and fill the memory meanwhile.
    """
    if flush and await _ended(producer.stop(), STOP_SECONDS_MAX):
        return
    # aiokafka has no call for this. The version is pinned, and `tests/integration` covers it.
    producer._closed = True
    held = producer._message_accumulator
    held.fail_all(kafka_errors.ProducerClosed())
    for batch in [*held._pending_batches, *(one for queue in held._batches.values() for one in queue)]:
        if batch._drain_waiter.done():
            batch._drain_waiter.exception()  # Or the loop reports it as one that nobody looked at.
    sending = producer._sender.sender_task
    if sending is not None:
        # It fails everything once more, and stumbles over a transaction that was never begun.
        sending.remove_done_callback(producer._sender._fail_all)
    await _cut_off(sending)
    await _ended(producer.client.close(), 1.0)


async def stop_consumer(consumer: AIOKafkaConsumer) -> None:
    """End a consumer within `STOP_SECONDS_MAX`: leave its group if Kafka answers, else only cut it off."""
    if await _ended(consumer.stop(), STOP_SECONDS_MAX):
        return
    coordinator = consumer._coordinator
    for name in ("_coordination_task", "_heartbeat_task", "_commit_refresh_task"):
        await _cut_off(getattr(coordinator, name, None))
    if consumer._fetcher is not None:
        await _ended(consumer._fetcher.close(), 1.0)
    await _ended(consumer._client.close(), 1.0)


async def stop_admin(admin: Any) -> None:
    await _ended(admin.close(), STOP_SECONDS_MAX)


async def _ended(closing: Coroutine[Any, Any, Any], seconds: float) -> bool:
    """Whether `closing` came to its end in time. In a task of its own: aiokafka lets the cancellation of its own
    parts escape, which would look like ours."""
    task = asyncio.create_task(closing)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():
            await _cut_off(task)
    return task.done() and not task.cancelled() and task.exception() is None


async def _cut_off(task: asyncio.Task | None) -> None:
    """Cancel a task; twice, because aiokafka's wait for their requests when they are cancelled once."""
    for _ in range(2):
        if task is None or task.done():
            break
        task.cancel()
        await asyncio.wait({task}, timeout=0.5)
    if task is not None and task.done() and not task.cancelled():
        task.exception()  # So that nobody is told of an error that was never looked at.


# --- quiet logs ---------------------------------------------------------------------------------------------


class _Quiet(logging.Handler):
    """aiokafka's warnings as ours, each cause once per `QUIET_SECONDS`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._log = structlog.get_logger("runlore.bus.kafka")
        self._told: dict[tuple[str, str], float] = {}
        self._hushed: dict[tuple[str, str], int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        # The template, not the text: a text that holds a number or a port is a new one each time.
        cause = (record.name, str(record.msg))
        if cause[1] in ORDINARY:
            return
        now = clock.monotonic()
        if now - self._told.get(cause, -QUIET_SECONDS) < QUIET_SECONDS:
            self._hushed[cause] = self._hushed.get(cause, 0) + 1
            return
        if len(self._told) > CAUSES_MAX:
            self._told.clear()
            self._hushed.clear()
        self._told[cause] = now
        try:
            said = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                said += f" ({type(record.exc_info[1]).__name__}: {record.exc_info[1]})"
        except Exception:
            said = cause[1]
        hushed = self._hushed.pop(cause, 0)
        self._log.warning(
            "kafka client", said=said, source=record.name, **({"times": hushed} if hushed else {})
        )


def hush() -> None:
    """Route aiokafka's logs through ours. Its debug level prints keys and values, so it stays off."""
    log = logging.getLogger("aiokafka")
    if not any(isinstance(handler, _Quiet) for handler in log.handlers):
        log.addHandler(_Quiet())
        log.setLevel(logging.WARNING)
        log.propagate = False
