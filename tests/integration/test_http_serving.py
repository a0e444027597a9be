"""The service as a process: `runlore serve` on a home, its keys, its end; and a real connection that goes away."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import httpx2
import pytest

import made
from lookup_service import tar, untar
from runlore import errors
from runlore.lookup.http import lists, service, serving
from runlore.testing.buses import MemoryBus
from runlore.testing.stores import MemoryStore

RUNLORE = Path(sys.executable).with_name("runlore")


def environment(home, **more):
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    given = {
        "home": home,
        "fsync": "0",
        "marks_interval_seconds": "0.5",
        "poll_timeout_seconds": "0.2",
        **more,
    }
    return {**kept, **{f"RUNLORE_{name.upper()}": str(value) for name, value in given.items()}}


def call(env, *words):
    done = subprocess.run([RUNLORE, *words, "--json"], env=env, capture_output=True, timeout=60, check=True)
    return json.loads(done.stdout)


class Running:
    """A `runlore serve`, until the block ends."""

    def __init__(self, env, *words):
        self.process = subprocess.Popen(
            [RUNLORE, "serve", "--port", "0", *words], env=env, stderr=subprocess.PIPE, text=True
        )
        said = self.process.stderr.readline()
        self.url = re.search(r"http://\S+", said).group()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def ask(self, path, body=None, headers=None):
        request = urllib.request.Request(self.url + path, data=body, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as exc:
            return exc.code, exc.read()

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


@pytest.mark.process
def test_one_command_is_the_pipeline_and_the_service(tmp_path):
    with Running(environment(tmp_path / "home"), "--up") as one:
        status, raw = one.ask("/v1/projects/acme/archives", tar(("a.txt", b"one")))
        assert status == 201
        data = made.data(1, rollout="conv", workspaces=[{"archive": json.loads(raw)}])
        assert one.ask("/v1/projects/acme/events", json.dumps(data).encode())[0] == 202
        status, raw = one.ask(
            "/v1/projects/acme/memories/support/seed?session_id=conv&wait_for=run-1&wait_seconds=60"
        )
        seed = json.loads(raw)
        assert status == 200 and seed["revision"] == 1 and seed["snapshot"]
        status, raw = one.ask(f"/v1/projects/acme/seeds/{seed['seed']}/workspace.tar")
        files = untar(raw)
        assert files["a.txt"] == b"one" and files["memories/MEMORY.md"]
        # The command line reads the same id, beside it.
        answer = call(environment(tmp_path / "home"), "seed", seed["seed"], "--into", str(tmp_path / "space"))
        assert answer["revision"] == 1 and (tmp_path / "space/a.txt").read_bytes() == b"one"
        assert one.end() == 0


@pytest.mark.process
def test_keys_are_made_shown_once_listed_revoked_and_kept_in_the_audit_log(tmp_path):
    env = environment(tmp_path / "home", http_keys="true")
    key = call(env, "keys", "create", "acme", "--scope", "read", "--name", "ci", "--reason", "a test")
    with Running(env) as one:
        headers = {"Authorization": f"Bearer {key['token']}"}
        assert one.ask("/v1/projects/acme/memories", headers=headers)[0] == 200
        assert one.ask("/v1/projects/acme/memories")[0] == 401
        assert one.ask("/v1/projects/shop/memories", headers=headers)[0] == 403
        assert one.ask("/v1/projects/acme/events", b"{}", headers=headers)[0] == 403
    (listed,) = call(env, "keys", "list", "acme")["keys"]
    assert listed["id"] == key["id"] and "token" not in listed and "sha256" not in listed
    assert call(env, "keys", "revoke", key["id"], "--reason", "left")["revoked_at"]
    with Running(env) as one:
        assert one.ask("/v1/projects/acme/memories", headers=headers)[0] == 401
        assert one.end() == 0
    acts = call(env, "audit")["acts"]
    assert [act["what"] for act in acts] == ["keys revoke", "keys create"] or {
        act["what"] for act in acts
    } == {
        "keys create",
        "keys revoke",
    }
    assert key["token"].rpartition("_")[2] not in json.dumps(acts)


class Slow(MemoryStore):
    """A store whose ranged reads wait for a sign."""

    def __init__(self):
        super().__init__()
        self.may, self.asked = asyncio.Event(), asyncio.Event()
        self.is_slow = False

    async def get(self, key):
        if self.is_slow:
            self.asked.set()
            await self.may.wait()
        return await super().get(key)


async def listening(tmp_path, store):
    """(the service, its address, its task)."""
    made_lists = lists.Lists(tmp_path / "index.db", store)
    one = service.Service(store, MemoryBus(), made_lists, tmp_path / "uploads")
    told = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        serving.run(one, host="127.0.0.1", port=0, drain_seconds=30, on_listening=told.set_result)
    )
    return one, await told, task


async def test_a_request_under_way_ends_before_the_service_does(tmp_path):
    store = Slow()
    one, url, task = await listening(tmp_path, store)
    async with httpx2.AsyncClient(base_url=url) as client:
        store.is_slow = True
        asked = asyncio.create_task(client.get("/v1/projects/acme/memories/support/seed?run_id=r"))
        await store.asked.wait()
        one.stopping.set()
        await asyncio.sleep(0)
        assert not task.done()
        store.may.set()
        assert (await asked).status_code == 200
        await task
    await one.lists.close()
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))):
        pass


async def test_who_goes_away_in_the_middle_leaves_nothing_open(tmp_path):
    store = MemoryStore()
    one, url, task = await listening(tmp_path, store)
    async with httpx2.AsyncClient(base_url=url) as client:
        raw = tar(("large", os.urandom(30_000_000)))
        claim = (await client.post("/v1/projects/acme/archives", content=raw)).json()
        data = made.data(1, rollout="conv", workspaces=[{"archive": claim}])
        assert (await client.post("/v1/projects/acme/events", json=data)).status_code == 202
        from runlore.consumers import snapshot

        await snapshot.SnapshotStage(store, one.bus).process([m async for m in one.bus.read("runs")])
    async with (
        httpx2.AsyncClient(base_url=url) as client,
        client.stream("GET", "/v1/projects/acme/snapshots/conv/archive.tar") as answer,
    ):
        async for _ in answer.aiter_raw():
            break
        assert one.downloads._inside == 1
    one.stopping.set()
    # It ends only once every request has let go.
    await task
    assert one.downloads._inside == 0
    await one.lists.close()


async def test_a_port_that_is_taken_is_refused_in_words(tmp_path):
    store = MemoryStore()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        found = lists.Lists(tmp_path / "index.db", store)
        one = service.Service(store, MemoryBus(), found, tmp_path)
        with pytest.raises(errors.Refused, match="can not be opened"):
            await serving.run(one, host="127.0.0.1", port=taken.getsockname()[1], drain_seconds=1)
        await found.close()


async def test_a_connection_sends_at_once():
    """With Nagle's algorithm an answer of two packets waits 40 ms for a delayed acknowledgement."""
    accepted = asyncio.get_running_loop().create_future()

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport):
            accepted.set_result(transport)

    server = await asyncio.get_running_loop().create_server(Protocol, sock=serving._listener("127.0.0.1", 0))
    async with server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        transport = await accepted
        assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        for one in (writer, transport):
            one.close()
        await writer.wait_closed()
