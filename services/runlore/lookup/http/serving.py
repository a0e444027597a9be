"""Serving: the application on a port, until it is told to stop; then what is under way may end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from runlore import errors
from runlore.lookup.http import app, connections
from runlore.lookup.http import service as services

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75
"""Longer than the idle time-out of common proxies (60 s), which then never reuse a connection that is just closed."""

END_SECONDS_MAX = 5.0
"""How long requests that were cut off may take to end."""


class _Server(uvicorn.Server):
    """Signals are the command line's: it drains the stages too."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def run(
    service: services.Service,
    *,
    host: str,
    port: int,
    drain_seconds: float,
    on_listening: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until `service.stopping` is set. Raises `errors.Refused` where the address can not be opened."""
    listener = _listener(host, port)
    watch = connections.Watch(
        stall_seconds=service.stall_seconds, most=connections.connections_max(service.connections_max)
    )
    config = uvicorn.Config(
        app.make(service),
        http=functools.partial(connections.Connection, watch=watch),  # type: ignore[arg-type]
        ws="none",
        h11_max_incomplete_event_size=connections.HEAD_BYTES_MAX,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, int(drain_seconds)),
    )
    server = _Server(config)
    beside = [asyncio.create_task(_stop(server, service)), asyncio.create_task(watch.run())]
    try:
        shown = f"[{host}]" if ":" in host else host
        on_listening(f"http://{shown}:{listener.getsockname()[1]}")
        await server.serve(sockets=[listener])
    finally:
        for one in beside:
            one.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        watch.end()
        if left := list(server.server_state.tasks):
            # They were cancelled, and let go of what they hold: before the store and the index are closed.
            await asyncio.wait(left, timeout=END_SECONDS_MAX)
        listener.close()


async def _stop(server: Any, service: services.Service) -> None:
    await service.stopping.wait()
    server.should_exit = True


def _listener(host: str, port: int) -> socket.socket:
    """The socket, open before anybody is told that it is."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # With its protocol named: else asyncio leaves Nagle's algorithm on for each connection, and an answer in two
        # packets waits 40 ms for the client's delayed acknowledgement of the first.
        made = socket.socket(family, kind, protocol)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(where)
            made.listen(BACKLOG)
            made.setblocking(False)
        except BaseException:
            made.close()
            raise
        return made
    except OSError as exc:
        raise errors.Refused(
            f"{host}:{port} can not be opened: {exc.strerror or exc}",
            hint="choose another with --port, or 0 for any",
        ) from exc
