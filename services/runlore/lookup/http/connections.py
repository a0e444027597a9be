"""Connections: how many there are, and how long a client may keep one waiting.

uvicorn ends a connection that is idle between two requests, and nothing else: half a head, or an answer that nobody
takes, would hold its place, and the gate, file and thread behind it, for ever. A body that does not come is
`watching`'s affair, which can still answer it.

One look a second at every connection, so that no request pays for it.
"""

from __future__ import annotations

import resource
import socket
import struct
from typing import Any

import h11
import structlog
from uvicorn.protocols.http import h11_impl

from runlore import clock, errors, telemetry
from runlore.lookup.http import answers, problems

log = structlog.get_logger("runlore.http")

LOOK_SECONDS = 1.0
HEAD_SECONDS_MAX = 30.0
"""From the first moment of a connection, or the first byte of a later request, to the end of the request's head."""
HEAD_BYTES_MAX = 64 * 1024
"""Of a request's line and headers: an id may have 8,192 characters, each of which may come as nine bytes."""
LINGER_SECONDS_MAX = 2.0
"""From the answer that ends a connection to its end, where the client goes on sending: closed before, it would be told
by a reset, which takes the answer from it."""
FILES_KEPT = 128
"""File descriptors that connections leave to the store, the bus, the index and uploads."""
TOLD_MAX = 64
"""Connections beyond those that may be, which are told so; any more are ended without a word."""
HEAD, ANSWER, FULL, OVER = "head", "answer", "full", "over"


def connections_max(wanted: int) -> int:
    """How many connections there may be, of `wanted`: each takes one of the files that the process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - FILES_KEPT))


class Watch:
    """All connections of a service. `stall_seconds`: the longest that a client may take for a piece of its answer."""

    def __init__(self, *, stall_seconds: float, most: int) -> None:
        self.stall_seconds, self.most = stall_seconds, most
        self.open: set[Connection] = set()

    async def run(self) -> None:
        """Look again and again, until it is cancelled."""
        while True:
            await clock.sleep(min(LOOK_SECONDS, self.stall_seconds / 2))
            self.look()

    def look(self) -> None:
        """Cut off whoever has kept one waiting for too long."""
        now = clock.monotonic()
        for one in list(self.open):
            one.look(now)

    def end(self) -> None:
        """Cut off whoever is left."""
        for one in list(self.open):
            one.transport.abort()


class Connection(h11_impl.H11Protocol):
    """One client's."""

    def __init__(self, *given: Any, watch: Watch, **named: Any) -> None:
        super().__init__(*given, **named)
        self._watch = watch
        self._answered = self._resumed = 0
        self._waits: tuple[str, int] | None = None
        self._since, self._left, self._is_over = 0.0, 0, False

    # --- what the transport and uvicorn tell ----------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        others = len(self._watch.open)
        self._watch.open.add(self)
        if others >= self._watch.most + TOLD_MAX:
            self._abort()
        elif others >= self._watch.most:
            self._cut(
                FULL, errors.Overloaded(f"{self._watch.most} connections are open, as many as may be"), 503
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.open.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return
        if len(data) > HEAD_BYTES_MAX and (self.cycle is None or self.cycle.response_complete):
            # In two parts: h11 compares only a head that is not whole yet with its limit, and reads any that is.
            super().data_received(data[: HEAD_BYTES_MAX + 1])
            if self._is_over or self.transport.is_closing():
                return
            data = data[HEAD_BYTES_MAX + 1 :]
        super().data_received(data)

    def resume_writing(self) -> None:
        self._resumed += 1
        super().resume_writing()

    def on_response_complete(self) -> None:
        self._answered += 1
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, or a head that is too large, answered as any other problem."""
        told = f"the request is not good HTTP/1.1, or its head has more than {HEAD_BYTES_MAX} bytes"
        self._tell(errors.InvalidInput(told), 400)

    # --- the look -------------------------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """Cut it off where the client has kept it waiting for too long."""
        waits, left = self._waiting(), self.transport.get_write_buffer_size()
        has_moved = waits != self._waits or not self._left - answers.PIECE_BYTES < left <= self._left
        if has_moved or waits is None:
            # A piece was taken, or there is more to take: the time for the next begins.
            self._waits, self._since, self._left = waits, now, left
            return
        limits = {HEAD: HEAD_SECONDS_MAX, OVER: LINGER_SECONDS_MAX}
        most = limits.get(waits[0], self._watch.stall_seconds)
        if now - self._since >= most:
            self._cut(waits[0], errors.TooSlow("the head of the request did not come in time"), 408)

    def _waiting(self) -> tuple[str, int] | None:
        """What it waits for from its client, with a count that tells one from the next; None: for nothing."""
        if self.transport.get_write_buffer_size():
            return ANSWER, self._resumed
        if self._is_over:
            return OVER, 0
        if self.cycle is not None and not self.cycle.response_complete:
            return None
        # Idle between two requests: uvicorn's own time runs, until the first byte of the next.
        return None if self.timeout_keep_alive_task is not None else (HEAD, self._answered)

    def _cut(self, why: str, told: errors.RunloreError, status: int) -> None:
        if why == OVER:
            self._abort()
            return
        telemetry.HTTP_CUT.inc(why=why)
        log.info("a connection was cut", why=why)
        if why == ANSWER:
            self._abort()
        elif why == HEAD and not self.conn.trailing_data[0]:
            # Not a word came: opened ahead by a browser or a pool, which would take this for its next request's answer.
            self.transport.close()
        else:
            self._tell(told, status)

    def _abort(self) -> None:
        """End it at once. `close` would wait until what is left was taken, and so would the kernel with its part."""
        plain = self.transport.get_extra_info("socket")
        if plain is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _tell(self, told: errors.RunloreError, status: int) -> None:
        """Answer before there is a request, and close as soon as the client has done so."""
        if self.conn.our_state is h11.IDLE or self.conn.our_state is h11.SEND_RESPONSE:
            answer = problems.problem(told, status)
            headers = [*answer.raw_headers, (b"connection", b"close")]
            for event in (
                h11.Response(status_code=status, headers=headers, reason=b""),
                h11.Data(data=bytes(answer.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
            if self.transport.can_write_eof():
                self._is_over = True
                self.transport.write_eof()
                return
        self.transport.close()
