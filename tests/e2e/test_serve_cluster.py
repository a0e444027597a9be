"""`runlore serve` past one machine: beside a worker, on a real broker and a real S3 server, as its clients meet it."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import signal
import urllib.request

import homes
import pytest
import serving

import made
from lookup_service import tar, untar
from runlore.lookup.http import app

ACME = "/v1/projects/acme"
FILLED = {
    "erasure": "e1",
    "memory": "support",
    "n": "head",
    "path": "MEMORY.md",
    "snapshot": "conv",
    "rollout": "conv",
    "run": "run-1",
    "seed": "s1.x.y",
}


@pytest.fixture
def deployment(tmp_path, kafka_server, seaweedfs):
    """A function that makes one more place of the same deployment, with topics that are made."""
    name = tmp_path.name.replace("_", "-")
    common = {
        "bus": "kafka",
        "kafka_servers": kafka_server.servers,
        "kafka_topic_prefix": f"{name}.",
        "kafka_group_prefix": f"{name}.",
        "kafka_session_seconds": "6",
        "retry_seconds_max": "1",
        "http_keys": "true",
        "s3_timeout_seconds": "0.5",
    }

    def place(where):
        (tmp_path / where).mkdir(exist_ok=True)
        home = homes.Home(tmp_path / where / "home", **common)
        home.environment |= seaweedfs.environment(f"{name}/")
        return home

    place("desk").json("topics", "apply", "--yes", "--replication", "1")
    return place


class Client:
    """A program with a key of a project."""

    def __init__(self, served, token):
        self._served, self.headers = served, {"Authorization": f"Bearer {token}"}

    def ask(self, path, body=None, *, prefix=ACME, method=None):
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        return self._served.ask(prefix + path, body, self.headers, method)

    def connection(self):
        return http.client.HTTPConnection("127.0.0.1", self._served.port, timeout=homes.WAIT_SECONDS_MAX)

    def json(self, path, body=None, *, status=200):
        got, raw, _ = self.ask(path, body)
        assert got == status, (path, got, raw)
        return json.loads(raw)

    def seed(self, **query):
        given = "&".join(f"{name}={value}" for name, value in query.items())
        return self.json(f"/memories/support/seed?session_id=conv&{given}")

    def workspace(self, seed):
        status, raw, _ = self.ask(f"/seeds/{seed['seed']}/workspace.tar")
        assert status == 200
        return untar(raw)


def put_directly(client, raw):
    """The claim of an archive that goes past the service, straight into the store."""
    sha256 = hashlib.sha256(raw).hexdigest()
    place = client.json("/archives/url", {"sha256": sha256, "size": len(raw)})
    request = urllib.request.Request(place["url"], data=raw, headers=place["headers"], method=place["method"])
    with urllib.request.urlopen(request, timeout=homes.WAIT_SECONDS_MAX) as answer:
        assert answer.status == 200
    assert place["claim"] == {"sha256": sha256, "size": len(raw)}
    return place["claim"]


@contextlib.contextmanager
def stopped(server):
    """An S3 server that does not answer meanwhile, though its port is open."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def test_runs_go_in_and_seeds_come_out_over_kafka_and_s3(deployment, seaweedfs_server):
    desk = deployment("desk")
    given = ("--scope", "write", "--name", "test", "--reason", "ticket 812")
    tokens = {project: desk.json("keys", "create", project, *given)["token"] for project in ("acme", "shop")}
    worker = deployment("worker").start("worker", "--json")
    served = serving.Served(deployment("serve")).start()
    client, stranger = Client(served, tokens["acme"]), Client(served, tokens["shop"])
    homes.wait_until(lambda: served.ask("/readyz")[0] == 200, "it to be ready")

    # A run, its workspace by way of the service; then another, whose workspace goes straight into the store.
    claim = client.json("/archives", tar(("a.txt", b"one")), status=201)
    data = made.data(1, rollout="conv", workspaces=[{"archive": claim}])
    assert client.json("/events", data, status=202)["run"] == "run-1"
    first = client.seed(wait_for="run-1", wait_seconds=60)
    assert first["revision"] == 1 and client.workspace(first)["a.txt"] == b"one"
    claim = put_directly(client, tar(("a.txt", b"two"), ("b.txt", b"new")))
    workspace = {"archive": claim, "base": first["base"]}
    client.json("/events", made.data(2, rollout="conv", workspaces=[workspace]), status=202)
    second = client.seed(wait_for="run-2", wait_seconds=60, after=first["seed"])
    assert second["revision"] == 2 and second["base"]["counter"] == first["base"]["counter"] + 1
    files = client.workspace(second)
    assert files["a.txt"] == b"two" and files["b.txt"] == b"new" and files["memories/MEMORY.md"]
    assert client.workspace(first)["a.txt"] == b"one", "a seed gives the same bytes again"
    found = lambda: client.json("/memories/support/search?q=task")["results"]  # noqa: E731
    homes.wait_until(lambda: [one["rollout"] for one in found()] == ["conv"], "its own index to hear of it")

    # Whoever has another project's key is told nothing, whatever is asked.
    for path, operations in app.openapi()["paths"].items():
        for method in operations if "{project}" in path else ():
            asked = path.format(project="acme", **FILLED)
            body = b"{}" if method == "post" else None
            status, raw, _ = stranger.ask(asked, body, prefix="", method=method.upper())
            assert (status, json.loads(raw)["kind"]) == (403, "forbidden"), (method, asked)

    # The store stands still for a moment: that is said, with when to ask again, and passes by itself.
    with stopped(seaweedfs_server):
        status, raw, headers = client.ask("/memories/support/seed?session_id=conv")
        assert status == 503 and int(headers["Retry-After"]) > 0
        assert json.loads(raw)["kind"] == "store_unavailable"
        status, raw, _ = served.ask("/readyz")
        assert status == 503 and "store" in json.loads(raw)["reasons"][0]
        assert served.ask("/livez")[0] == 200
    homes.wait_until(lambda: served.ask("/readyz")[0] == 200, "it to be ready again")
    assert client.seed(after=second["seed"])["revision"] == 2

    # Who waits for a run when it is told to end has an answer.
    with contextlib.closing(client.connection()) as waiting:
        waiting.request(
            "GET",
            f"{ACME}/memories/support/seed?session_id=conv&wait_for=never&wait_seconds=60",
            headers=client.headers,
        )
        assert served.ask("/livez")[0] == 200
        assert served.drain() == 0
        answer = waiting.getresponse()
        assert (answer.status, json.load(answer)["kind"]) == (504, "wait_timeout")
    worker.send_signal(signal.SIGTERM)
    _, err = worker.communicate(timeout=homes.WAIT_SECONDS_MAX)
    assert worker.returncode == 0 and b"Traceback" not in err, err.decode()
