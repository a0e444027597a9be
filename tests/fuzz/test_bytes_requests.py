"""Requests that somebody else chose: what names an object or an address leads nowhere that was not meant.

Goal: issue 7, point 4 (server-side request forgery). Where Runlore asks for what others name: objects of foreign events
(`sources/mapping/objects.py`; its URLs are in tests/unit/test_sources_mapping_hostile.py), claims and snapshots (keys
made of hashes, in the event's own project: tests/fuzz/test_bytes_isolation.py), folders of workspaces, parts of dead
letters. Endpoints stand in settings; a redirect of one of them is not followed.
"""

from __future__ import annotations

import http.server
import os
import threading

import pytest

import made
from runlore import errors
from runlore.bus import port as bus_port
from runlore.commit import keys
from runlore.consumers import dead, snapshot
from runlore.events import envelope
from runlore.memory import model_summary
from runlore.models import openai, port
from runlore.sources.mapping import objects
from runlore.testing import buses, stores

SECRET = b"instance credentials"


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers every request with what its server says, and remembers it."""

    def do_GET(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.seen.append(self.path)
        status, headers, body = self.server.answer
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    """Starts servers on free ports: `serve(status, headers, body)` gives one, with its `url` and what it has `seen`."""
    running = []

    def start(status, headers=None, body=b""):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        server.answer, server.seen = (status, headers or {}, body), []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_bucket_that_redirects_is_followed_nowhere(serve, status):
    inside = serve(200, body=SECRET)
    told = {"location": f"{inside.url}/latest/meta-data/", "x-amz-bucket-region": "eu-west-1"}
    bucket = serve(status, told)
    client = objects.client(
        endpoint=bucket.url, region="us-east-1", access_key_id="a", secret_access_key="b", timeout_seconds=5
    )
    with pytest.raises((errors.SourceUnavailable, errors.Blocked)) as caught:
        objects.reader(client)("s3://bucket/in/a", 1000)
    assert inside.seen == [] and bucket.seen and inside.url not in caught.value.message
    client.close()


@pytest.mark.parametrize("status", [301, 307, 308])
async def test_a_models_endpoint_that_redirects_gets_no_text_of_a_run_elsewhere(serve, status):
    """Found by reading: the package's own client follows redirects, with the body."""
    inside = serve(200, body=b"{}")
    endpoint = serve(status, {"location": f"{inside.url}/v1/responses"})
    engine = openai.OpenAIEngine(url=f"{endpoint.url}/v1", key="k", timeout_seconds=5)
    ask = port.Ask(model="m", instructions="i", input="what a run said", answer=model_summary.Summary)
    with pytest.raises(errors.ModelBlocked, match="redirect"):
        await engine.ask(ask)
    assert inside.seen == [] and endpoint.seen
    await engine.close()


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/", "https://bucket/in/a", "file:///etc/passwd", "s3://other/in/a",
        "s3://bucket/inner", "s3://bucket/in/../zoo/claims/aa", "gopher://bucket/in/", "s3://bucket@evil/in/a",
        "//bucket/in/a",
        "s3://bucket/in/%2e%2e/zoo", "s3://[::ffff:169.254.169.254]/in/a", "S3://BUCKET/in/a", "s3://bucket\\in\\a",
    ],
)  # fmt: skip
def test_an_object_elsewhere_is_refused_before_anything_is_asked(url):
    with pytest.raises(errors.ObjectRefused):
        objects.check_url(url, ("s3://bucket/in/",), "url")


@pytest.mark.parametrize(
    "prefix", ["http://x/", "s3://", "s3:///a/", "s3://b/../", "s3://bucket/a", "file:///", "s3://bucket/a//"]
)
def test_a_prefix_that_would_allow_more_than_a_folder_is_no_prefix(prefix):
    with pytest.raises(errors.BadMapping):
        objects.check_prefix(prefix)


async def taken(stage, store, bus, folder):
    event = envelope.of_run(made.data(1, workspaces=[{"folder": folder}]), source="/t")
    given = bus_port.Message("runs", 0, 0, b"k", event.value(), event.headers(), 0.0)
    (outcome,) = (await stage.process([given])).outcomes
    return outcome.error.kind if outcome.error else None


async def test_a_folder_outside_of_those_allowed_is_refused_however_it_is_spelled(tmp_path):
    allowed, other = tmp_path / "allowed", tmp_path / "allowed-not"
    for folder in (allowed / "run", other):
        folder.mkdir(parents=True)
        (folder / "f").write_text("x")
    os.symlink(other, allowed / "link")
    os.symlink("/", allowed / "top")
    store, bus = stores.MemoryStore(), buses.MemoryBus()
    stage = snapshot.SnapshotStage(store, bus, folders=(str(allowed),))
    wrong = (
        str(other), f"{allowed}/../allowed-not", f"{allowed}/link", f"{allowed}/top/etc", "/", "/proc/self/root",
        "allowed",
        str(allowed), f"file://{allowed}/run", "http://169.254.169.254/", f"{allowed}/run/../../allowed-not",
    )  # fmt: skip
    for folder in wrong:
        assert await taken(stage, store, bus, folder) == "folder_refused", folder
    assert [row async for row in store.list("acme/")] == []
    assert await taken(stage, store, bus, f"{allowed}/run") is None


@pytest.mark.parametrize(
    "pointer",
    [
        "acme/records/00/support/c/r.000001",
        "_operations/secrets/seed-signing.json",
        "../x",
        "",
        "_dead/aa/" + "a" * 63,
    ],
)
async def test_a_letter_that_points_elsewhere_reads_nothing(pointer):
    """Found by reading: who may write to the topic of dead letters chose what an operator's command read."""
    store, bus = stores.MemoryStore(), buses.MemoryBus()
    if pointer.count("/") > 1 and not pointer.startswith(".."):
        await store.put(pointer, SECRET)
    headers = [
        ("rl_dead", b"a" * 16),
        ("rl_pointers", pointer.encode()),
        ("rl_partition", b"no number"),
        ("rl_time", b"nan"),
    ]
    await bus.produce([bus_port.Outgoing("dead", b"k", None, headers)])
    (letter,) = await dead.read_all(bus)
    with pytest.raises(errors.NotFound):
        await dead.value_of(store, letter)
    assert keys.DEAD_LETTERS == "_dead"
