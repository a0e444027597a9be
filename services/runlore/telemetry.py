"""Telemetry: every metric and every span of Runlore is named here and nowhere else.

Off until somebody starts it. A metric that is off costs one look into an empty dict; a span that is off is one
comparison. `prometheus_client` and `opentelemetry` come with `runlore[server]`: without them metrics stay off,
and asking for traces says what to install.

No label names a project, a memory, a rollout, a run or an event: their number has no bound, and what a metric
says is readable by more people than what a memory says. Span attributes hold no message's key, value or
header, and no error's text, only its kind. docs/METRICS.md is generated from `METRICS`.

Trace context travels as the header `traceparent` (W3C), as every OpenTelemetry client sends it. The CloudEvents
extension of the same name (`ce_traceparent` on Kafka) is where the event began, not the last hop: it is read
where the former is missing, and never written or changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from runlore import __version__, clock, errors
from runlore.bus import port as bus_port

if TYPE_CHECKING:
    from runlore.settings import Settings

STATES = ("running", "waiting", "blocked", "failed", "paused")
"""States of a stage (`worker/loop.py`); a person's pause is told apart from what is wrong."""
NOTHING = "nothing"
"""Outcome of a message in which a stage finds nothing to do: a run without a workspace, a doorbell."""
GONE = "gone"
"""Of one that was parked, and that retention took before its turn came."""
NO_REPLY = "none"
"""Status class of a request that got no reply."""

_WORK_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""One LIST up to the ingestion of a large archive."""
_DELAY_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0)
"""From an idle pipeline to a backlog of a day."""
_REQUEST_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0)


@dataclass(frozen=True)
class Metric:
    """One metric. Its methods do nothing while metrics are off, and may be called from any thread."""

    kind: Literal["gauge", "counter", "histogram"]
    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    def inc(self, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter or a gauge."""
        if _on.metrics:
            self._one(labels).inc(amount)

    def set(self, value: float, **labels: str) -> None:
        """Set a gauge."""
        if _on.metrics:
            self._one(labels).set(value)

    def observe(self, value: float, **labels: str) -> None:
        """Count a value into a histogram."""
        if _on.metrics:
            self._one(labels).observe(value)

    def observe_all(self, values: Iterable[float], **labels: str) -> None:
        """Count many values: the look-up of the labels costs more than the counting."""
        if _on.metrics:
            observe = self._one(labels).observe
            for value in values:
                observe(value)

    def _one(self, labels: dict[str, str]) -> Any:
        found = _on.metrics[self.name]
        return found.labels(**labels) if self.labels else found


BUILD = Metric("gauge", "runlore_build_info", "Always 1; the version is the label.", ("version",))

# --- is it well? ---
STAGE_STATE = Metric(
    "gauge",
    "runlore_stage_state",
    "1 for the state that a stage is in, 0 for the others: running, waiting (a fault that may pass), blocked "
    "(a permission is missing), failed (an invariant does not hold), paused (a person paused it).",
    ("stage", "state"),
)
MEMORIES_STUCK = Metric(
    "gauge",
    "runlore_memories_stuck",
    "Memories that can not go on while their stage does (`runlore status`).",
)
LOOP_DELAY = Metric(
    "gauge",
    "runlore_loop_delay_seconds",
    "How late the event loop ran what was due; seconds mean that something blocks it.",
)
SAMPLED = Metric(
    "gauge",
    "runlore_sampled_timestamp_seconds",
    "When lag and the ages of messages were last measured, as Unix time. Old: those gauges show the past.",
)
DISK_FREE = Metric("gauge", "runlore_disk_free_bytes", "Free space on the disk of the home.")

# --- does it keep up? ---
LAG = Metric(
    "gauge",
    "runlore_lag_messages",
    "Messages that a stage has not committed. Every worker reports the whole: take the max, not the sum.",
    ("stage", "partition"),
)
OLDEST_AGE = Metric(
    "gauge",
    "runlore_oldest_unprocessed_age_seconds",
    "Age of the oldest message not committed; of consolidate: of the oldest mark. 0: nothing waits.",
    ("stage",),
)
MARKS_WAITING = Metric("gauge", "runlore_marks_waiting", "Marks that wait for consolidation.")
HELD = Metric("gauge", "runlore_held_rollouts", "Rollouts held for review (`runlore review`), by the index.")
IN_FLIGHT = Metric("gauge", "runlore_in_flight_messages", "Messages of a stage in memory.", ("stage",))
IN_FLIGHT_BYTES = Metric("gauge", "runlore_in_flight_bytes", "Bytes of their values.", ("stage",))
PARKED = Metric("gauge", "runlore_parked_messages", "Messages read past, left on the bus.", ("stage",))
REBALANCES = Metric(
    "counter", "runlore_rebalances_total", "Times that partitions were given out anew.", ("stage",)
)

# --- what did it do? ---
MESSAGES = Metric(
    "counter",
    "runlore_messages_total",
    "Messages whose effect is in the store, by outcome.",
    ("stage", "outcome"),
)
STAGE_SECONDS = Metric(
    "histogram",
    "runlore_stage_duration_seconds",
    "How long a stage took over one batch (consolidate: over one memory), faults included.",
    ("stage",),
    _WORK_SECONDS,
)
DELAY = Metric(
    "histogram",
    "runlore_message_delay_seconds",
    "From when the bus took a message to when its effect was in the store.",
    ("stage",),
    _DELAY_SECONDS,
)
REVISIONS = Metric("counter", "runlore_revisions_total", "Revisions made.")
COVERED = Metric("counter", "runlore_rollouts_covered_total", "Rollouts taken into a revision.")
HELD_TOTAL = Metric("counter", "runlore_rollouts_held_total", "Rollouts that the guards held for review.")
DEAD_LETTERS = Metric(
    "counter", "runlore_dead_letters_total", "Dead letters, by the kind of error.", ("stage", "reason")
)
CONFLICTS = Metric(
    "counter",
    "runlore_conflicts_total",
    "Writes that met another writer: precondition_failed (412), write_conflict (409); and what a head's writer "
    "did about it: head_moved (it started again), outcome_unknown (a reply was lost), commit_too_late.",
    ("kind",),
)

# --- bus, store, models ---
BUS_MESSAGES = Metric(
    "counter",
    "runlore_bus_messages_total",
    "Messages produced (out) and worked (in).",
    ("topic", "direction"),
)
BUS_BYTES = Metric("counter", "runlore_bus_bytes_total", "Bytes of their values.", ("topic", "direction"))
STORE_REQUESTS = Metric(
    "counter",
    "runlore_store_requests_total",
    "Requests to S3, by operation and class of status: 2xx, 4xx (a missing key too), 5xx, or none without a reply.",
    ("operation", "status"),
)
STORE_SECONDS = Metric(
    "histogram",
    "runlore_store_request_duration_seconds",
    "How long they took.",
    ("operation",),
    _REQUEST_SECONDS,
)
STORE_BYTES = Metric(
    "counter", "runlore_store_bytes_total", "Bytes of bodies sent (out) and read (in).", ("direction",)
)
MODEL_REQUESTS = Metric("counter", "runlore_model_requests_total", "Requests to models.", ("model", "status"))
MODEL_TOKENS = Metric(
    "counter", "runlore_model_tokens_total", "Tokens sent (in) and written (out).", ("model", "direction")
)
MODEL_COST = Metric("counter", "runlore_model_cost_usd_total", "What they cost, in US dollars.", ("model",))
MODEL_DEFERRED = Metric("gauge", "runlore_model_budget_deferred_memories", "Memories that wait for budget.")
MODEL_REFUSED = Metric("counter", "runlore_model_budget_refused_total", "Times that a memory came to wait.")
SPEND_ALERTS = Metric(
    "counter", "runlore_spend_alerts_total", "Alerts raised, mailed, not_mailed.", ("done",)
)

_ROUTE, _LIMIT = ("route", "method", "status"), ("limited", "whose", "unit")
HTTP_REQUESTS = Metric("counter", "runlore_http_requests_total", "Requests to the lookup service.", _ROUTE)
HTTP_SECONDS = Metric(
    "histogram", "runlore_http_request_duration_seconds", "To the first byte.", ("route",), _REQUEST_SECONDS
)
HTTP_LIMITED = Metric("counter", "runlore_http_limited_total", "Requests that a rate limit refused.", _LIMIT)
HTTP_CUT = Metric(
    "counter",
    "runlore_http_cut_total",
    "Connections that were ended: a head that did not come, an answer that was not taken, one too many (full).",
    ("why",),
)

METRICS: tuple[Metric, ...] = tuple(one for one in list(vars().values()) if isinstance(one, Metric))

_CONFLICTS = (errors.PreconditionFailed, errors.WriteConflict, errors.HeadMoved, errors.OutcomeUnknown)
CONFLICT_KINDS = tuple(one.kind for one in (*_CONFLICTS, errors.CommitTooLate))


@dataclass
class _On:
    """What is on in this process."""

    metrics: Mapping[str, Any] = field(default_factory=dict)
    registry: Any = None
    tracer: Any = None
    system: str = "kafka"


_on = _On()


# --- metrics --------------------------------------------------------------------------------------------------


def start_metrics() -> bool:
    """Turn metrics on, all at zero; whether they are on: not without `prometheus_client`."""
    if _on.metrics:
        return True
    try:
        import prometheus_client as prometheus
    except ImportError:
        return False
    # One more series for each counter and bucket, for nothing that is asked here.
    prometheus.disable_created_metrics()
    registry = prometheus.CollectorRegistry()
    for collector in (prometheus.ProcessCollector, prometheus.GCCollector):
        collector(registry=registry)
    made: dict[str, Any] = {}
    for one in METRICS:
        if one.kind == "histogram":
            made[one.name] = prometheus.Histogram(
                one.name, one.help, one.labels, buckets=one.buckets, registry=registry
            )
        else:
            kind = prometheus.Gauge if one.kind == "gauge" else prometheus.Counter
            made[one.name] = kind(one.name, one.help, one.labels, registry=registry)
    _on.metrics, _on.registry = made, registry
    BUILD.set(1, version=__version__)
    # A counter that appears with its first event shows no increase: that alert would never fire.
    for stage in ("record", "snapshot"):
        for reason in poison_kinds():
            DEAD_LETTERS.inc(0, stage=stage, reason=reason)
    for kind in CONFLICT_KINDS:
        CONFLICTS.inc(0, kind=kind)
    return True


def stop_metrics() -> None:
    """Turn metrics off, and forget them."""
    _on.metrics, _on.registry = {}, None


def metrics_app() -> Callable[..., Any] | None:
    """The metrics as a WSGI application in the formats that Prometheus asks for; None while they are off."""
    if _on.registry is None:
        return None
    import prometheus_client

    return prometheus_client.make_wsgi_app(_on.registry)


def poison_kinds() -> list[str]:
    """Every kind of error that makes a dead letter."""
    found, left = set(), [errors.Poison]
    while left:
        one = left.pop()
        found.add(one.kind)
        left += one.__subclasses__()
    return sorted(found)


def stage_state(stage: str, state: str) -> None:
    """The state that a stage is in now."""
    for one in STATES:
        STAGE_STATE.set(float(one == state), stage=stage, state=one)


def worked(stage: str, messages: Sequence[bus_port.Message], outcomes: Iterable[str]) -> None:
    """These messages have their effect; `outcomes` says what became of those for which there was something to do."""
    if not _on.metrics:
        return
    counts = Counter(outcomes)
    counts[NOTHING] += max(0, len(messages) - counts.total())
    for outcome, count in counts.items():
        MESSAGES.inc(count, stage=stage, outcome=outcome)
    now = clock.now().timestamp()
    DELAY.observe_all((max(0.0, now - message.time) for message in messages), stage=stage)
    _count(messages, "in")


def _count(messages: Sequence[bus_port.Message | bus_port.Outgoing], direction: str) -> None:
    sizes: dict[str, list[int]] = {}
    for message in messages:
        sizes.setdefault(message.topic, []).append(len(message.value or b""))
    for topic, found in sizes.items():
        BUS_MESSAGES.inc(len(found), topic=topic, direction=direction)
        BUS_BYTES.inc(sum(found), topic=topic, direction=direction)


def consolidated(made: bool, covered: int, held: int) -> None:
    """One pass over a memory's marks: whether it made a revision, and how many rollouts it took in and held."""
    REVISIONS.inc(float(made))
    COVERED.inc(covered)
    HELD_TOTAL.inc(held)


def marks_standing(put_at: Sequence[float]) -> None:
    """These marks stand; when each was put, in seconds since 1970."""
    if not _on.metrics:
        return
    MARKS_WAITING.set(len(put_at))
    oldest = clock.now().timestamp() - min(put_at) if put_at else 0.0
    OLDEST_AGE.set(max(0.0, oldest), stage="consolidate")


def store_request(operation: str, status: int, bytes_out: int, bytes_in: int, seconds: float) -> None:
    """One request to the store has ended; `status` 0 where no reply came. The hook of `store/s3.py`."""
    if not _on.metrics:
        return
    STORE_REQUESTS.inc(operation=operation, status=f"{status // 100}xx" if status else NO_REPLY)
    STORE_SECONDS.observe(seconds, operation=operation)
    STORE_BYTES.inc(bytes_out, direction="out")
    STORE_BYTES.inc(bytes_in, direction="in")
    kind = {412: errors.PreconditionFailed.kind, 409: errors.WriteConflict.kind}.get(status)
    if kind:
        CONFLICTS.inc(kind=kind)


# --- traces ---------------------------------------------------------------------------------------------------

TRACER = "runlore"
TRACE_HEADERS = ("traceparent", "tracestate")
"""Where a message carries the context of its last hop."""
ORIGIN_PREFIX = "ce_"
"""With it they are the CloudEvents extension: where the event began."""
SEND, PROCESS = "send", "process"
LINKS_MAX = 128
"""Messages of one batch whose contexts its span links to (OpenTelemetry's own limit)."""
EXPORT_SECONDS_MAX = 3.0
"""How long one export to the collector may take, and how long the end of a process waits for the last ones."""

SYSTEM = "messaging.system"
OPERATION_NAME, OPERATION_TYPE = "messaging.operation.name", "messaging.operation.type"
DESTINATION, GROUP = "messaging.destination.name", "messaging.consumer.group.name"
BATCH_COUNT = "messaging.batch.message_count"
PARTITION, OFFSET = "messaging.destination.partition.id", "messaging.kafka.offset"
EVENT_ID, ERROR_TYPE = "cloudevents.event_id", "error.type"


@contextlib.asynccontextmanager
async def tracing(settings: Settings) -> AsyncIterator[None]:
    """Send spans to `RUNLORE_OTLP_ENDPOINT` meanwhile; nothing where it is not set, or inside of another one.

    The end waits a few seconds at most for what was not sent yet. Raises `errors.InvalidInput` without
    `runlore[server]`.
    """
    if not settings.otlp_endpoint or _on.tracer is not None:
        yield
        return
    end = _start_tracing(settings)
    try:
        yield
    finally:
        _on.tracer = None
        await asyncio.to_thread(end)


def _start_tracing(settings: Settings) -> Callable[[], None]:
    """Turn tracing on; what ends it, blocking."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError:
        raise errors.InvalidInput(
            "RUNLORE_OTLP_ENDPOINT is set, but OpenTelemetry is not installed",
            hint="pip install 'runlore[server]'",
        ) from None
    endpoint = settings.otlp_endpoint.rstrip("/") + "/v1/traces"
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_SECONDS_MAX)
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.otlp_sample_ratio)),
        resource=Resource.create({"service.name": "runlore", "service.version": __version__}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    # Not the process's own provider: whoever embeds Runlore keeps theirs.
    _on.tracer, _on.system = provider.get_tracer(TRACER, __version__), settings.bus

    def end() -> None:
        # The provider would wait half a minute for a collector that is away.
        giving_up = threading.Timer(EXPORT_SECONDS_MAX, exporter.shutdown)
        giving_up.start()
        try:
            provider.shutdown()
        finally:
            giving_up.cancel()
            giving_up.join()

    return end


@contextlib.contextmanager
def processing(stage: str, source: str, messages: Sequence[bus_port.Message] = ()) -> Iterator[None]:
    """A stage works a batch of `source` (a topic, or `marks`): its duration, and its span.

    The span continues the trace of the messages where they share one, else it links to the first of theirs.
    """
    if not _on.metrics and _on.tracer is None:
        yield
        return
    began = clock.monotonic()
    try:
        with _span(stage, source, messages):
            yield
    finally:
        STAGE_SECONDS.observe(clock.monotonic() - began, stage=stage)


@contextlib.contextmanager
def _span(stage: str, source: str, messages: Sequence[bus_port.Message]) -> Iterator[None]:
    if _on.tracer is None:
        yield
        return
    from opentelemetry import trace

    parent, links = _origins(messages)
    attributes: dict[str, Any] = {
        SYSTEM: _on.system,
        OPERATION_NAME: stage,
        OPERATION_TYPE: PROCESS,
        DESTINATION: source,
        GROUP: stage,
    }
    if messages:
        attributes[BATCH_COUNT] = len(messages)
    if len(messages) == 1:
        attributes |= {PARTITION: str(messages[0].partition), OFFSET: messages[0].offset}
    with (
        _on.tracer.start_as_current_span(
            f"{stage} {source}",
            context=parent,
            kind=trace.SpanKind.CONSUMER if messages else trace.SpanKind.INTERNAL,
            attributes=attributes,
            links=links,
            # An error's text may name what a trace's readers should not see.
            record_exception=False,
            set_status_on_exception=False,
        ) as span,
        _told(span),
    ):
        yield


@contextlib.contextmanager
def _told(span: Any) -> Iterator[None]:
    """Mark `span` with the kind of the error that ends it."""
    try:
        yield
    except Exception as exc:
        from opentelemetry import trace

        span.set_attribute(ERROR_TYPE, getattr(exc, "kind", type(exc).__name__))
        span.set_status(trace.StatusCode.ERROR)
        raise


def _origins(messages: Sequence[bus_port.Message]) -> tuple[Any, list[Any]]:
    """(the context that all these messages share, or None; links to the contexts that they do not)."""
    from opentelemetry import trace
    from opentelemetry.trace.propagation import tracecontext

    propagator = tracecontext.TraceContextTextMapPropagator()
    contexts: dict[tuple[int, int], tuple[Any, Any, str]] = {}
    carrying = 0
    for message in messages:
        context = propagator.extract(trace_context(message.headers))
        found = trace.get_current_span(context).get_span_context()
        if not found.is_valid:
            continue
        carrying += 1
        named = [raw or b"" for name, raw in message.headers if name.lower() == "ce_id"]
        event = named[0].decode("utf-8", "replace") if named else ""
        contexts.setdefault((found.trace_id, found.span_id), (context, found, event))
        if len(contexts) == LINKS_MAX:
            break
    if len(contexts) == 1 and carrying == len(messages):
        return next(iter(contexts.values()))[0], []
    return None, [trace.Link(found, {EVENT_ID: event}) for _, found, event in contexts.values()]


def trace_context(headers: Iterable[tuple[str, bytes | None]]) -> dict[str, str]:
    """The trace context that a message carries: of its last hop, else of its origin; {} where it has none.

    Bytes that are no context are no error: the span then begins a trace of its own.
    """
    named = {name.lower(): (raw or b"").decode("latin-1") for name, raw in headers}
    for prefix in ("", ORIGIN_PREFIX):
        if named.get(prefix + TRACE_HEADERS[0]):
            return {name: named[prefix + name] for name in TRACE_HEADERS if named.get(prefix + name)}
    return {}


def _carries(message: bus_port.Outgoing, header: str) -> bool:
    return any(name.lower() == header for name, _ in message.headers)


class ObservedBus:
    """A bus whose messages are counted and carry the trace of whoever sends them."""

    def __init__(self, bus: bus_port.Bus) -> None:
        self._bus = bus

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def produce(
        self, messages: Sequence[bus_port.Outgoing]
    ) -> list[tuple[bus_port.TopicPartition, int]]:
        """As the bus does it."""
        with _sending(messages) as sent:
            where = await self._bus.produce(sent)
        if _on.metrics:
            _count(sent, "out")
        return where


def observed(bus: bus_port.Bus, settings: Settings) -> bus_port.Bus:
    """`bus`, observed where anything is on that would see it."""
    if not settings.health_port and not settings.otlp_endpoint:
        return bus
    return ObservedBus(bus)  # type: ignore[return-value]


@contextlib.contextmanager
def _sending(messages: Sequence[bus_port.Outgoing]) -> Iterator[Sequence[bus_port.Outgoing]]:
    """The span of a produce; the messages, with its context where they carry none yet.

    A redriven event keeps the trace that it came with.
    """
    if _on.tracer is None or not messages:
        yield messages
        return
    from opentelemetry import trace
    from opentelemetry.trace.propagation import tracecontext

    topics = sorted({message.topic for message in messages})
    with (
        _on.tracer.start_as_current_span(
            f"{SEND} {topics[0]}" if len(topics) == 1 else SEND,
            kind=trace.SpanKind.PRODUCER,
            attributes={
                SYSTEM: _on.system,
                OPERATION_NAME: SEND,
                OPERATION_TYPE: SEND,
                DESTINATION: ",".join(topics),
                BATCH_COUNT: len(messages),
            },
            record_exception=False,
            set_status_on_exception=False,
        ) as span,
        _told(span),
    ):
        carrier: dict[str, str] = {}
        tracecontext.TraceContextTextMapPropagator().inject(carrier)
        context = [(name, text.encode("latin-1")) for name, text in carrier.items()]
        yield [
            message
            if _carries(message, TRACE_HEADERS[0])
            else dataclasses.replace(message, headers=[*message.headers, *context])
            for message in messages
        ]
