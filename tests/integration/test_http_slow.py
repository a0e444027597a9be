"""Clients that keep one waiting, on real connections: who stands still is cut off, and nobody else waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import types

import httpx2
import pytest
import uvicorn

from lookup_service import ACME, give_workspace, listening, tar
from runlore.lookup.http import connections, service, watching
from runlore.testing.stores import MemoryStore
from runlore.upkeep import access

STALL_SECONDS = 0.3
MEGABYTE = 1024 * 1024
UPLOAD = f"POST {ACME}/archives HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2048\r\n\r\n".encode()
DOWNLOAD = f"GET {ACME}/snapshots/conv/archive.tar HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """The limits that are no settings, short."""
    monkeypatch.setattr(connections, "HEAD_SECONDS_MAX", STALL_SECONDS)
    monkeypatch.setattr(connections, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(service, "UPLOADS_AT_ONCE_MAX", 3)
    monkeypatch.setattr(service, "DOWNLOADS_AT_ONCE_MAX", 3)


@contextlib.asynccontextmanager
async def service_with_a_client(tmp_path, **more):
    given = {"stall_seconds": STALL_SECONDS, **more}
    async with (
        listening(tmp_path, MemoryStore(), **given) as (one, url, _),
        httpx2.AsyncClient(base_url=url, timeout=60) as client,
    ):
        yield types.SimpleNamespace(one=one, client=client, port=int(url.rpartition(":")[2]))


@contextlib.asynccontextmanager
async def connected(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def reading_slowly(port, asked):
    """A bare socket that has asked this, and takes as little ahead as the kernel lets it."""
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
        await asyncio.get_running_loop().sock_sendall(plain, asked)
        yield plain


async def rest_of(reader):
    """(status, body) of all that comes until the other side closes."""
    raw = await reader.read()
    head, _, body = raw.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, body


async def dripped(reader, writer, drop):
    """The same while a byte is sent again and again."""
    answer = asyncio.create_task(rest_of(reader))
    while not answer.done():
        with contextlib.suppress(ConnectionError):
            writer.write(drop)
            await writer.drain()
        await asyncio.wait({answer}, timeout=0.02)
    return await answer


@pytest.mark.parametrize("begun", [b"GET /v1 HT", b"GET /v1 HTTP/1.1\r\nHost: localhost\r\n"])
async def test_a_head_that_does_not_come_ends_its_connection(tmp_path, begun):
    async with service_with_a_client(tmp_path) as here, connected(here.port) as (reader, writer):
        writer.write(begun)
        status, body = await rest_of(reader)
        assert status == 408 and json.loads(body)["kind"] == "too_slow"


async def test_a_connection_without_a_word_is_closed_without_one(tmp_path):
    async with service_with_a_client(tmp_path) as here, connected(here.port) as (reader, _):
        assert await reader.read() == b""


async def test_who_goes_on_sending_after_the_answer_that_ends_its_connection_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(connections, "LINGER_SECONDS_MAX", STALL_SECONDS)
    async with service_with_a_client(tmp_path) as here, connected(here.port) as (reader, writer):
        writer.write(b"no HTTP at all\r\n\r\n")
        assert (await rest_of(reader))[0] == 400
        with pytest.raises(ConnectionError):
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.01)


async def test_a_head_that_drips_ends_its_connection_also_after_an_answer(tmp_path):
    async with service_with_a_client(tmp_path) as here, connected(here.port) as (reader, writer):
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.readuntil(b"\r\n")).split()[1] == b"200"
        await reader.readuntil(b"[]}")
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: ")
        assert (await dripped(reader, writer, b"x"))[0] == 408


@pytest.mark.parametrize("drop", [b"", b"x"])
async def test_a_body_that_stands_still_or_drips_is_told_so_and_leaves_nothing(tmp_path, drop):
    async with service_with_a_client(tmp_path) as here, connected(here.port) as (reader, writer):
        writer.write(UPLOAD)
        status, body = await dripped(reader, writer, drop)
        assert status == 408 and json.loads(body)["kind"] == "too_slow"
        assert here.one.uploads._inside == 0 and not list((tmp_path / "uploads").iterdir())


async def test_uploads_that_stand_still_keep_nobody_from_anything_for_long(tmp_path):
    async with (
        service_with_a_client(tmp_path, stall_seconds=3) as here,
        contextlib.AsyncExitStack() as stack,
    ):
        stalled = [await stack.enter_async_context(connected(here.port)) for _ in range(3)]
        for _, writer in stalled:
            writer.write(UPLOAD)
        while here.one.uploads._inside < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert (await here.client.get(f"{ACME}/memories")).status_code == 200
        refused = await here.client.post(f"{ACME}/archives", content=tar(("a", b"1")))
        assert refused.status_code == 503 and refused.headers["retry-after"]
        for reader, _ in stalled:
            assert (await rest_of(reader))[0] == 408
        assert (await here.client.post(f"{ACME}/archives", content=tar(("a", b"1")))).status_code == 201


async def test_readers_that_stand_still_or_drip_keep_nobody_from_anything_for_long(tmp_path, monkeypatch):
    look, may_look = connections.Watch.look, asyncio.Event()
    monkeypatch.setattr(connections.Watch, "look", lambda watch: may_look.is_set() and look(watch))
    async with service_with_a_client(tmp_path) as here, contextlib.AsyncExitStack() as stack:
        await give_workspace(here.one, here.client, ("large", os.urandom(20 * MEGABYTE)))
        stalled = [await stack.enter_async_context(reading_slowly(here.port, DOWNLOAD)) for _ in range(3)]
        dripping = asyncio.create_task(_one_byte_after_another(stalled[0], here.one))
        while here.one.downloads._inside < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert (await here.client.get(f"{ACME}/memories")).status_code == 200
        assert (await here.client.get(f"{ACME}/snapshots/conv/archive.tar")).status_code == 503
        may_look.set()
        while here.one.downloads._inside:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await dripping < MEGABYTE
        whole = await here.client.get(f"{ACME}/snapshots/conv/archive.tar")
        assert whole.status_code == 200 and len(whole.content) > 20 * MEGABYTE


async def _one_byte_after_another(plain, one):
    count = 0
    with contextlib.suppress(ConnectionError):
        while await asyncio.get_running_loop().sock_recv(plain, 1):
            count += 1
            # Once it is cut, what the kernel took ahead is left.
            await asyncio.sleep(0.01 if one.downloads._inside else 0)
    return count


async def test_who_never_takes_small_answers_is_cut_too(tmp_path):
    asked = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200
    async with service_with_a_client(tmp_path) as here, reading_slowly(here.port, asked) as plain:
        with pytest.raises(ConnectionError):
            while True:  # It reads nothing, so only a write can tell it that it was cut.
                await asyncio.get_running_loop().sock_sendall(plain, b" ")
                await asyncio.sleep(0.05)


async def test_a_reader_that_stands_still_does_not_hold_up_the_end_of_the_service(tmp_path):
    given = {"stall_seconds": 3600, "drain_seconds": 1}
    async with listening(tmp_path, MemoryStore(), **given) as (one, url, task):
        async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
            await give_workspace(one, client, ("large", os.urandom(20 * MEGABYTE)))
        async with reading_slowly(int(url.rpartition(":")[2]), DOWNLOAD) as plain:
            assert await asyncio.get_running_loop().sock_recv(plain, 1)
            one.stopping.set()
            await task
            assert one.downloads._inside == 0


async def test_one_project_never_takes_all_of_what_may_be_under_way_from_the_others(tmp_path):
    async with (
        service_with_a_client(tmp_path, stall_seconds=60, with_keys=True) as here,
        contextlib.AsyncExitStack() as stack,
    ):
        keys = {}
        for project in ("acme", "shop"):
            _, token = await access.create(here.one.store, project, scope="write", name="test")
            keys[project] = {"Authorization": f"Bearer {token}"}
        body = tar(("a", b"1"))
        for _ in range(2):  # Three quarters of three.
            _, writer = await stack.enter_async_context(connected(here.port))
            key = f"Authorization: {keys['acme']['Authorization']}\r\n\r\n".encode()
            writer.write(UPLOAD.removesuffix(b"\r\n") + key)
        while here.one.uploads._inside < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        refused = await here.client.post(f"{ACME}/archives", content=body, headers=keys["acme"])
        assert refused.status_code == 503 and "of the project" in refused.json()["detail"]
        assert (await here.client.get(f"{ACME}/memories", headers=keys["acme"])).status_code == 200
        shop = ACME.replace("acme", "shop")
        taken = await here.client.post(f"{shop}/archives", content=body, headers=keys["shop"])
        assert taken.status_code == 201


class Waiting:
    """A transport with so many bytes that its client has not taken."""

    def __init__(self):
        self.left, self.is_cut, self.written = 0, False, b""

    def get_write_buffer_size(self):
        return self.left

    def get_extra_info(self, name):
        return None

    def can_write_eof(self):
        return False

    def write(self, data):
        self.written += data

    def abort(self):
        self.is_cut = True

    close = abort


@pytest.fixture
def waiting():
    """(a connection whose answer is under way, its transport): nobody but the test looks at it."""
    watch = connections.Watch(stall_seconds=60, most=10)
    config = uvicorn.Config(lambda: None, log_config=None)
    made = connections.Connection(config, uvicorn.server.ServerState(), {}, _loop=object(), watch=watch)
    transport = Waiting()
    made.connection_made(transport)
    return made, transport


def test_a_reader_that_takes_a_piece_in_time_is_never_cut(waiting):
    one, transport = waiting
    transport.left = 20 * MEGABYTE
    for now in range(0, 600, 50):
        one.look(now)
        transport.left -= MEGABYTE
    for now in range(600, 1200, 50):
        one.look(now)
        one.resume_writing()  # uvicorn's next piece fits.
    assert not transport.is_cut


def test_a_reader_that_takes_less_is_cut_when_the_time_is_over(waiting):
    one, transport = waiting
    transport.left = 3 * MEGABYTE
    for now in range(0, 60, 5):
        one.look(now)
        transport.left -= MEGABYTE // 13
    assert not transport.is_cut
    one.look(60)
    assert transport.is_cut


async def test_requests_sent_ahead_are_answered_in_their_order(tmp_path):
    async with service_with_a_client(tmp_path) as here, connected(here.port) as (reader, writer):
        paths = [f"{ACME}/resolve?session_id=s{number}" for number in range(40)]
        writer.write(b"".join(f"GET {one} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() for one in paths))
        for number in range(40):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split()[0])
            assert json.loads(await reader.readexactly(length))["rollout"] == f"s{number}"


async def test_a_head_has_a_limit_and_an_id_that_is_as_long_as_may_be_is_under_it(tmp_path):
    async with service_with_a_client(tmp_path) as here:
        async with connected(here.port) as (reader, writer):
            writer.write(b"GET /v1 HTTP/1.1\r\nX: " + b"x" * connections.HEAD_BYTES_MAX)
            status, body = await rest_of(reader)
            assert status == 400 and json.loads(body)["kind"] == "invalid_input"
        async with connected(here.port) as (reader, writer):  # Whole, too.
            writer.write(b"GET /v1 HTTP/1.1\r\nX: " + b"x" * 2 * connections.HEAD_BYTES_MAX + b"\r\n\r\n")
            assert (await rest_of(reader))[0] == 400
        async with connected(here.port) as (reader, writer):
            writer.write(b"no HTTP at all\r\n\r\n")
            assert (await rest_of(reader))[0] == 400
        many = {f"X-{number}": "x" for number in range(watching.HEADERS_MAX)}
        refused = await here.client.get("/v1", headers=many)
        assert refused.status_code == 431 and refused.json()["kind"] == "invalid_input"
        longest = "\U0001f600" * 1024
        found = await here.client.get(f"{ACME}/resolve", params={"session_id": longest})
        assert found.json()["rollout"] == longest


async def test_one_connection_too_many_is_told_so_and_served_once_another_has_ended(tmp_path):
    async with service_with_a_client(tmp_path, connections_max=1, stall_seconds=60) as here:
        async with httpx2.AsyncClient(base_url=here.client.base_url) as first:
            assert (await first.get("/livez")).status_code == 200
            refused = await here.client.get("/livez")
            assert refused.status_code == 503 and refused.json()["kind"] == "overloaded"
            assert refused.headers["retry-after"] and refused.headers["connection"] == "close"
            assert (await first.get("/livez")).status_code == 200
        while (await here.client.get("/livez")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_connections_leave_files_to_the_rest_of_the_process(monkeypatch):
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (1024, 4096))
    assert connections.connections_max(4096) == 1024 - connections.FILES_KEPT
    assert connections.connections_max(100) == 100
