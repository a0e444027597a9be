"""Probes, metrics and traces of real processes: embedded, and over a real broker and a real S3 server."""

from __future__ import annotations

import http.client
import http.server
import json
import signal
import socket
import threading

import homes
import pytest

import made


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def ask(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except OSError:
        return 0, ""
    finally:
        connection.close()


def total(text, name):
    """The sum of a metric's samples, over what its labels hold."""
    starts = (name + " ",) if "{" in name else (name + " ", name + "{")
    lines = [line for line in text.splitlines() if line.startswith(starts)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


class _Collector(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.got.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def collector():
    """An OpenTelemetry collector: (its URL, a function that gives its spans by name)."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    def spans():
        found = {}
        for raw in list(server.got):
            request = ExportTraceServiceRequest.FromString(raw)
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        found.setdefault(span.name, []).append(span)
        return found

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Collector) as server:
        server.got = []
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", spans
        server.shutdown()
        thread.join()


def end(process):
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=homes.WAIT_SECONDS_MAX)
    assert process.returncode == 0 and b"Traceback" not in err, err.decode()
    return out.decode()


def test_a_process_tells_how_it_is_and_a_trace_goes_from_one_process_to_the_next(tmp_path, collector):
    url, spans = collector
    port = free_port()
    home = homes.Home(tmp_path / "home", processes=True, health_port=port, otlp_endpoint=url)
    process = home.start("up")
    homes.wait_until(lambda: ask(port, "/readyz")[0] == 200, "it to be ready")
    home.environment.pop("RUNLORE_HEALTH_PORT")
    home.emit(made.lines([made.event(1)]))
    homes.wait_until(lambda: total(ask(port, "/metrics")[1], "runlore_revisions_total") == 1, "a revision")
    text = ask(port, "/metrics")[1]
    assert total(text, "runlore_messages_total") >= 2
    assert total(text, "runlore_message_delay_seconds_count") >= 2 and "process_resident_memory_bytes" in text
    stages = json.loads(ask(port, "/status")[1])["stages"]
    assert {one["state"] for one in stages.values()} == {"running"}
    end(process)
    found = spans()
    (sent,) = found["send runs"]
    for name in ("record runs", "snapshot runs"):
        assert [span.parent_span_id for span in found[name]] == [sent.span_id], name
        assert {span.trace_id for span in found[name]} == {sent.trace_id}
    assert found["consolidate marks"]


def test_a_port_that_is_taken_ends_a_worker_with_words(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        home = homes.Home(tmp_path / "home", health_port=taken.getsockname()[1])
        done = home.run("up", code=4)
        assert "RUNLORE_HEALTH_PORT" in done.err


def test_a_worker_over_kafka_and_s3_is_ready_counts_its_requests_and_its_lag(
    tmp_path, seaweedfs, kafka_server
):
    port, prefix = free_port(), f"probes-{tmp_path.name}."
    servers = {"bus": "kafka", "kafka_servers": kafka_server.servers, "kafka_topic_prefix": prefix}
    servers |= {"kafka_group_prefix": prefix, "kafka_session_seconds": "6"}
    home = homes.Home(tmp_path / "home", processes=True, **servers)
    home.environment |= seaweedfs.environment(f"{tmp_path.name}/".replace("_", "-"))
    home.json("topics", "apply", "--yes", "--replication", "1")
    home.emit(made.lines(made.event(number) for number in range(200)))
    home.environment["RUNLORE_HEALTH_PORT"] = str(port)
    process = home.start("worker")
    homes.wait_until(lambda: ask(port, "/readyz")[0] == 200, "it to be ready")

    def worked():
        """Runs by what the record stage found: consolidation may bring a rollout up to a record before it does."""
        text = ask(port, "/metrics")[1]
        return sum(
            total(text, f'runlore_messages_total{{outcome="{one}",stage="record"}}')
            for one in ("recorded", "already")
        )

    homes.wait_until(lambda: worked() == 200, "every run to be recorded")
    homes.wait_until(
        lambda: total(ask(port, "/metrics")[1], "runlore_rollouts_covered_total") >= 7, "every rollout"
    )
    text = ask(port, "/metrics")[1]
    lines = text.splitlines()
    written = [line for line in lines if 'operation="PutObject"' in line and "requests_total" in line]
    assert written and total(text, "runlore_store_bytes_total") > 100_000
    assert total(text, "runlore_rebalances_total") >= 0 and "runlore_lag_messages{" in text
    end(process)
