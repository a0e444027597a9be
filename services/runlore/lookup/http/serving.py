"""Serving: the application on a port, until it is told to stop; then what is under way may end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from runlore import errors
from runlore.lookup.http import app
from runlore.lookup.http import service as services

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75
"""Longer than the idle time-out of common proxies (60 s), which then never reuse a connection that is just closed."""


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
    config = uvicorn.Config(
        app.make(service),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, int(drain_seconds)),
    )
    server = _Server(config)
    stopper = asyncio.create_task(_stop(server, service))
    try:
        shown = f"[{host}]" if ":" in host else host
        on_listening(f"http://{shown}:{listener.getsockname()[1]}")
        await server.serve(sockets=[listener])
    finally:
        stopper.cancel()
        await asyncio.gather(stopper, return_exceptions=True)
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
