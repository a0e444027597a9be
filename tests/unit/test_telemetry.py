"""Metrics and traces: nothing while off, no label without a bound, and a trace that crosses the bus."""

from __future__ import annotations

import http.server
import re
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

import made
from runlore import clock, errors, telemetry
from runlore.bus import port as bus_port
from runlore.consumers import record
from runlore.events import envelope, models
from runlore.settings import Settings
from runlore.testing.buses import MemoryBus
from runlore.testing.stores import MemoryStore

UNBOUNDED = {"project", "memory", "rollout", "run", "event", "subject", "key", "offset", "etag", "worker"}
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def metrics():
    assert telemetry.start_metrics()
    yield lambda name, **labels: telemetry._on.registry.get_sample_value(name, labels)
    telemetry.stop_metrics()


@pytest.fixture
def spans():
    """Tracing into a list."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    telemetry._on.tracer = provider.get_tracer("test")
    yield kept.get_finished_spans
    telemetry._on.tracer = None
    provider.shutdown()


def message(*headers, offset=0, value=b"{}"):
    at = clock.now().timestamp() - 3
    return bus_port.Message("runs", 0, offset, b"k", value, [(n, v.encode()) for n, v in headers], at)


# --- metrics --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", telemetry.METRICS, ids=lambda one: one.name)
def test_a_metric_has_a_prefix_a_unit_a_meaning_and_labels_with_a_bound(one):
    assert re.fullmatch(r"runlore_[a-z_]+", one.name)
    assert one.help.endswith((".", ")")) and len(one.help) > 10
    assert not UNBOUNDED & set(one.labels)
    assert (one.kind == "counter") == one.name.endswith("_total")
    assert (
        bool(one.buckets)
        == (one.kind == "histogram")
        == one.name.endswith(("duration_seconds", "message_delay_seconds"))
    )
    assert list(one.buckets) == sorted(set(one.buckets))


def test_nothing_is_measured_and_nothing_heavy_is_loaded_while_it_is_off():
    code = (
        "import sys\n"
        "from runlore import telemetry as t\n"
        "for one in t.METRICS: one.inc(1); one.set(1); one.observe(1); one.observe_all([1])\n"
        "with t.processing('record', 'runs', []): pass\n"
        "t.worked('record', [], ['recorded']); t.store_request('PUT', 200, 1, 1, 0.1)\n"
        "print(t.metrics_app(), *[n for n in sys.modules if n.split('.')[0] in ('prometheus_client', 'opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None"]


def test_without_the_server_extra_metrics_stay_off_and_traces_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert telemetry.start_metrics() is False
    telemetry.worked("record", [message()], ["recorded"])
    with pytest.raises(errors.InvalidInput) as caught:
        telemetry._start_tracing(Settings(otlp_endpoint="http://127.0.0.1:1"))
    assert "runlore[server]" in caught.value.hint


def test_a_dead_letter_s_first_sample_is_zero_so_that_the_first_one_is_an_increase(metrics):
    for kind in ("bad_json", "run_conflict", "claim_missing", "unprocessable", "poison"):
        for stage in ("record", "snapshot"):
            assert metrics("runlore_dead_letters_total", stage=stage, reason=kind) == 0
    assert all(metrics("runlore_conflicts_total", kind=kind) == 0 for kind in telemetry.CONFLICT_KINDS)


def test_a_stage_is_in_one_state(metrics):
    for state in (*telemetry.STATES, "blocked"):
        telemetry.stage_state("record", state)
        found = {one: metrics("runlore_stage_state", stage="record", state=one) for one in telemetry.STATES}
        assert found == {one: float(one == state) for one in telemetry.STATES}


def test_what_was_worked_is_counted_with_its_delay_and_bytes(metrics):
    telemetry.worked("record", [message(value=b"12345"), message(value=None)], ["recorded", "dead"])
    assert metrics("runlore_messages_total", stage="record", outcome="recorded") == 1
    assert metrics("runlore_bus_bytes_total", topic="runs", direction="in") == 5
    assert metrics("runlore_message_delay_seconds_count", stage="record") == 2
    assert 6 <= metrics("runlore_message_delay_seconds_sum", stage="record") < 60


@pytest.mark.parametrize(
    ("status", "shown", "conflict"),
    [
        (200, "2xx", None),
        (404, "4xx", None),
        (409, "4xx", "write_conflict"),
        (412, "4xx", "precondition_failed"),
        (503, "5xx", None),
        (0, "none", None),
    ],
)
def test_a_request_is_counted_by_class_and_conflicts_apart(metrics, status, shown, conflict):
    telemetry.store_request("PutObject", status, 7, 3, 0.2)
    assert metrics("runlore_store_requests_total", operation="PutObject", status=shown) == 1
    assert metrics("runlore_store_bytes_total", direction="out") == 7
    counted = {kind: metrics("runlore_conflicts_total", kind=kind) for kind in telemetry.CONFLICT_KINDS}
    assert counted == {kind: float(kind == conflict) for kind in telemetry.CONFLICT_KINDS}


def test_threads_count_together(metrics):
    def work():
        for _ in range(500):
            telemetry.store_request("GET", 200, 0, 1, 0.001)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert metrics("runlore_store_bytes_total", direction="in") == 2000


# --- traces ---------------------------------------------------------------------------------------------------


async def test_a_trace_goes_from_the_producer_through_the_stage_to_its_doorbells(spans):
    store, bus = MemoryStore(), telemetry.ObservedBus(MemoryBus())
    event = envelope.of_run(made.data(1), source="/t")
    await bus.produce([record.message_of(event, "acme/c", "runs")])
    taken = [one async for one in bus.read("runs")]
    with telemetry.processing("record", "runs", taken):
        await record.RecordStage(store, bus).process(taken)
    named = {one.name: one for one in spans()}
    sent, worked, rung = named["send runs"], named["record runs"], named["send changed"]
    assert worked.parent.span_id == sent.context.span_id and rung.parent.span_id == worked.context.span_id
    assert len({one.context.trace_id for one in spans()}) == 1
    bells = [one async for one in bus.read("changed")]
    assert bells and all(telemetry.trace_context(one.headers) for one in bells)


async def test_producers_that_send_no_context_work_as_before(spans):
    with telemetry.processing("record", "runs", [message(), message(offset=1)]):
        pass
    (span,) = spans()
    assert span.parent is None and not span.links and span.attributes["messaging.batch.message_count"] == 2


def test_a_batch_of_several_traces_links_to_each_and_continues_none(spans):
    batch = [
        message(("traceparent", TRACEPARENT), ("ce_id", "e1")),
        message(("traceparent", OTHER), ("ce_id", "e2"), offset=1),
        message(offset=2),
    ]
    with telemetry.processing("record", "runs", batch):
        pass
    (span,) = spans()
    assert span.parent is None
    assert {link.attributes["cloudevents.event_id"] for link in span.links} == {"e1", "e2"}


def test_a_message_without_a_trace_is_not_pulled_into_its_neighbour_s(spans):
    with telemetry.processing("record", "runs", [message(("traceparent", TRACEPARENT)), message(offset=1)]):
        pass
    (span,) = spans()
    assert span.parent is None and len(span.links) == 1


def test_the_last_hop_goes_before_the_origin_and_the_origin_before_nothing():
    both = [("ce_traceparent", OTHER.encode()), ("traceparent", TRACEPARENT.encode())]
    assert telemetry.trace_context(both) == {"traceparent": TRACEPARENT}
    assert telemetry.trace_context(both[:1]) == {"traceparent": OTHER}
    assert telemetry.trace_context([("ce_id", b"1")]) == {}


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_a_header_that_is_no_context_is_no_error(parent, state):
    headers = [("traceparent", parent), ("tracestate", state)]
    broken = bus_port.Message("runs", 0, 0, None, b"", headers, 0.0)
    telemetry._origins([broken])


async def test_the_contract_takes_events_with_either_header_and_a_redriven_one_keeps_its_trace(spans):
    event = envelope.Event("1", "/s", models.RUN_COMPLETED, {"a": 1})
    for name in ("traceparent", "ce_traceparent", "tracestate"):
        parsed = envelope.parse([*event.headers(), (name, TRACEPARENT.encode())], event.value())
        assert parsed.id == "1"
    bus = telemetry.ObservedBus(MemoryBus())
    await bus.produce([bus_port.Outgoing("runs", None, b"", [("traceparent", TRACEPARENT.encode())])])
    (kept,) = [one async for one in bus.read("runs")]
    assert [raw.decode() for name, raw in kept.headers if name == "traceparent"] == [TRACEPARENT]


def test_a_span_says_the_kind_of_an_error_and_nothing_of_its_text(spans):
    secret = "sk-live-12345"
    with (
        pytest.raises(errors.Blocked),
        telemetry.processing("record", "runs", [message(value=secret.encode())]),
    ):
        raise errors.Blocked(f"denied for {secret}")
    (span,) = spans()
    assert span.attributes["error.type"] == "blocked" and not span.status.is_ok
    assert secret not in span.to_json() and not span.events


class _Collector(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args):
        pass


async def test_spans_reach_a_collector_before_the_process_ends():
    with http.server.HTTPServer(("127.0.0.1", 0), _Collector) as server:
        server.got = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            settings = Settings(otlp_endpoint=f"http://127.0.0.1:{server.server_port}/")
            async with telemetry.tracing(settings):
                with telemetry.processing("record", "runs", [message()]):
                    pass
        finally:
            server.shutdown()
            thread.join()
    assert [path for path, _ in server.got] == ["/v1/traces"] and b"record runs" in server.got[0][1]
    assert telemetry._on.tracer is None


async def test_a_collector_that_is_away_does_not_hold_the_end_of_a_process():
    began = time.monotonic()
    async with telemetry.tracing(Settings(otlp_endpoint="http://127.0.0.1:1")):
        with telemetry.processing("record", "runs", [message()]):
            pass
    assert time.monotonic() - began < 2 * telemetry.EXPORT_SECONDS_MAX + 1


def test_the_share_of_traces_that_are_kept_is_a_setting(monkeypatch):
    end = telemetry._start_tracing(Settings(otlp_endpoint="http://127.0.0.1:1", otlp_sample_ratio=0))
    try:
        with telemetry._on.tracer.start_as_current_span("x") as span:
            assert not span.is_recording()
    finally:
        telemetry._on.tracer = None
        end()
