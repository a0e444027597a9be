"""The service on a real port: its end, a connection that goes away, an address that is taken."""

from __future__ import annotations

import asyncio
import os
import socket

import httpx2
import pytest

from lookup_service import give_workspace, listening
from runlore import errors
from runlore.lookup.http import lists, service, serving
from runlore.testing.buses import MemoryBus
from runlore.testing.stores import MemoryStore


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


async def test_a_request_under_way_ends_before_the_service_does(tmp_path):
    store = Slow()
    async with (
        listening(tmp_path, store) as (one, url, task),
        httpx2.AsyncClient(base_url=url) as client,
    ):
        store.is_slow = True
        asked = asyncio.create_task(client.get("/v1/projects/acme/memories/support/seed?run_id=r"))
        await store.asked.wait()
        one.stopping.set()
        await asyncio.sleep(0)
        assert not task.done()
        store.may.set()
        assert (await asked).status_code == 200
        await task
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))):
        pass


async def test_who_goes_away_in_the_middle_leaves_nothing_open(tmp_path):
    async with listening(tmp_path, MemoryStore()) as (one, url, task):
        async with httpx2.AsyncClient(base_url=url) as client:
            await give_workspace(one, client, ("large", os.urandom(30_000_000)))
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
