"""A proxy in front of an S3 server that breaks requests on purpose, so that every way to fail can be made to happen.

It stands between `store/s3.py` and a server, in a test or as a process of its own:

    python -m runlore.testing.s3proxy --upstream http://127.0.0.1:8333 --seed 7 --rate lost_reply=0.01

Requests and answers are passed on byte for byte, the Host header too, so signatures stay valid. It does not
interpret more of HTTP than where a message ends. What it can do to a request:

============  ========================================================================================
`slow_down`   503 SlowDown, and the server never sees the request
`conflict`    409 ConditionalRequestConflict, the same; no server that runs on one machine says it by itself
`dropped`     the request is read, the connection ends, the server never sees it
`lost_reply`  the server has done it, the connection ends without a byte of the answer
`late`        the connection ends at once, and the server sees the request `seconds` later
`cut`         the answer ends in the middle of its body (one without a body: before it begins)
`slow`        the request waits for `seconds`, then goes on
============  ========================================================================================

Rules come first, each for so many requests; else rates decide, from a hash of the seed and the request's
number. While it runs, `GET /-/faults` tells counts and rates, and `PUT /-/faults` with `{"rates": {...}}` sets them
(no bucket's name begins with '-').
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

FAULTS = ("slow_down", "conflict", "dropped", "lost_reply", "late", "cut", "slow")
HEAD_BYTES_MAX = 64 * 1024
CONTROL = "/-/faults"
_BREAKS = (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError)


@dataclass
class Rule:
    """Break the next `times` requests (None: all) of this method whose target contains `contains`."""

    fault: str
    method: str = ""
    contains: str = ""
    times: int | None = 1
    seconds: float = 0.2
    """How long `slow` and `late` wait."""

    def __post_init__(self) -> None:
        _check_fault(self.fault)


@dataclass(frozen=True)
class _Message:
    """A request or an answer: its head with the blank line, and its body as it was sent."""

    head: bytes
    body: bytes

    @property
    def first(self) -> list[str]:
        return self.head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)

    def header(self, name: str) -> str:
        for line in self.head.split(b"\r\n")[1:]:
            field, _, value = line.decode("latin-1").partition(":")
            if field.strip().lower() == name:
                return value.strip()
        return ""

    @property
    def is_conditional_write(self) -> bool:
        return self.first[0] in ("PUT", "POST", "DELETE") and bool(
            self.header("if-match") or self.header("if-none-match")
        )


class S3Proxy:
    """One proxy on a free port of 127.0.0.1. `async with` starts and stops it."""

    def __init__(
        self,
        upstream: str,
        *,
        port: int = 0,
        seed: int = 0,
        rates: Mapping[str, float] | None = None,
        seconds: float = 0.2,
    ) -> None:
        where = urlsplit(upstream)
        self._host, self._port = where.hostname or "127.0.0.1", where.port or 80
        self._listen = port
        self._seed = seed
        self._seconds = seconds
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.rules: list[Rule] = []
        self.rates: dict[str, float] = {}
        self.counts: Counter[str] = Counter()
        """Requests, and how often each fault was made to happen."""
        self.set_rates(rates or {})

    @property
    def endpoint(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """The share of requests that meets each fault, from now on. Raises `ValueError` for what is none."""
        for fault in rates:
            _check_fault(fault)
        if sum(rates.values()) > 1 or min(rates.values(), default=0) < 0:
            raise ValueError(f"rates lie between 0 and 1, and sum up to at most 1: {dict(rates)}")
        self.rates = dict(rates)

    async def start(self) -> S3Proxy:
        self._server = await asyncio.start_server(
            self._client, "127.0.0.1", self._listen, limit=HEAD_BYTES_MAX
        )
        return self

    async def stop(self) -> None:
        """End every connection; what `late` holds is let go."""
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def __aenter__(self) -> S3Proxy:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # --- one connection of a client ---------------------------------------------------------------------

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        server = _Upstream(self._host, self._port)
        try:
            while (request := await _request(reader, writer)) is not None:
                if not await self._handle(request, writer, server):
                    break
        except _BREAKS:
            pass  # Either side went away: so does the other.
        except asyncio.CancelledError:
            pass
        finally:
            self._tasks.discard(task)
            server.close()
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _handle(self, request: _Message, writer: asyncio.StreamWriter, server: _Upstream) -> bool:
        """Answer one request; whether the connection goes on."""
        if request.first[1] == CONTROL:
            return await _send(writer, self._control(request))
        fault, seconds = self._fault_of(request)
        self.counts["requests"] += 1
        if fault:
            self.counts[fault] += 1
        if fault in _ANSWERS:
            return await _send(writer, _refusal(request, *_ANSWERS[fault]))
        if fault == "dropped":
            return False
        if fault == "late":
            self._later(request, seconds)
            return False
        if fault == "slow":
            await asyncio.sleep(seconds)
        answer = await server.ask(request)
        if fault == "lost_reply" or (fault == "cut" and not answer.body):
            return False
        if fault == "cut":
            await _send(writer, _Message(answer.head, answer.body[: len(answer.body) // 2]))
            return False
        return await _send(writer, answer)

    def _fault_of(self, request: _Message) -> tuple[str, float]:
        """The fault that this request meets, empty for none, and its seconds."""
        method, target = request.first[:2]
        for rule in self.rules:
            if rule.times != 0 and rule.method in ("", method) and rule.contains in target:
                rule.times = None if rule.times is None else rule.times - 1
                return rule.fault, rule.seconds
        draw = hashlib.sha256(f"{self._seed}:{self.counts['requests']}".encode()).digest()
        share = int.from_bytes(draw[:6], "big") / 2**48
        for fault, rate in self.rates.items():
            if share < rate:
                # Nobody says 409 to a request without a condition.
                return (
                    "" if fault == "conflict" and not request.is_conditional_write else fault
                ), self._seconds
            share -= rate
        return "", 0.0

    def _later(self, request: _Message, seconds: float) -> None:
        async def send() -> None:
            await asyncio.sleep(seconds)
            server = _Upstream(self._host, self._port)
            try:
                with contextlib.suppress(*_BREAKS):
                    await server.ask(request)
            finally:
                server.close()

        task = asyncio.get_running_loop().create_task(send())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _control(self, request: _Message) -> _Message:
        status = "200 OK"
        try:
            if request.first[0] == "PUT":
                self.set_rates(json.loads(request.body)["rates"])
            said: dict[str, object] = {"counts": self.counts, "rates": self.rates}
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            status, said = "400 Bad Request", {"error": str(exc)}
        return _answer(status, json.dumps(said).encode(), "application/json")


class _Upstream:
    """The connection to the server that belongs to one of a client's, made anew where the server closed it."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: _Message) -> _Message:
        """The server's answer. A request is sent once: asking twice is the client's to decide."""
        if self._streams is None or self._streams[0].at_eof():
            self.close()
            self._streams = await asyncio.open_connection(self._host, self._port, limit=HEAD_BYTES_MAX)
        reader, writer = self._streams
        writer.write(request.head + request.body)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        answer = _Message(head, b"")
        bodiless = request.first[0] == "HEAD" or answer.first[1] in ("204", "304")
        body = b"" if bodiless else await _body(reader, answer, to_end=True)
        if answer.header("connection").lower() == "close":
            self.close()
        return _Message(head, body)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> _Message | None:
    """The next request of a connection, whole; None at its end."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as exc:
        if exc.partial:
            raise
        return None
    request = _Message(head, b"")
    if request.header("expect").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
        kept = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"expect:")]
        head = b"\r\n".join(kept)  # No signature covers it.
    return _Message(head, await _body(reader, request))


async def _body(reader: asyncio.StreamReader, message: _Message, *, to_end: bool = False) -> bytes:
    """The body behind a head, as it was sent; `to_end` where a missing length means until the end."""
    if message.header("transfer-encoding").lower() == "chunked":
        raw = b""
        while True:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            raw += line + (await reader.readexactly(size + 2) if size else await _trailer(reader))
            if not size:
                return raw
    length = message.header("content-length")
    if length or not to_end:
        return await reader.readexactly(int(length or 0))
    return await reader.read()


async def _trailer(reader: asyncio.StreamReader) -> bytes:
    raw = b""
    while not raw.endswith(b"\r\n\r\n") and raw != b"\r\n":
        raw += await reader.readuntil(b"\r\n")
    return raw


async def _send(writer: asyncio.StreamWriter, message: _Message) -> bool:
    writer.write(message.head + message.body)
    await writer.drain()
    return message.header("connection").lower() != "close"


_ANSWERS = {
    "slow_down": ("503 Service Unavailable", "SlowDown", "Please reduce your request rate."),
    "conflict": ("409 Conflict", "ConditionalRequestConflict", "A conflicting operation occurred."),
}


def _refusal(request: _Message, status: str, code: str, text: str) -> _Message:
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{text}</Message></Error>'
    )
    return _answer(status, b"" if request.first[0] == "HEAD" else body.encode(), "application/xml")


def _answer(status: str, body: bytes, kind: str) -> _Message:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return _Message(head.encode(), body)


def _check_fault(fault: str) -> None:
    if fault not in FAULTS:
        raise ValueError(f"{fault!r} is no fault; there are {', '.join(FAULTS)}")


# --- as a process -----------------------------------------------------------------------------------------


async def _serve(options: argparse.Namespace) -> None:
    rates = {fault: float(rate) for fault, _, rate in (one.partition("=") for one in options.rate)}
    proxy = S3Proxy(
        options.upstream, port=options.port, seed=options.seed, rates=rates, seconds=options.seconds
    )
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with proxy:
        print(json.dumps({"endpoint": proxy.endpoint}), flush=True)
        await ended.wait()
    print(json.dumps({"counts": proxy.counts}), flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Run until SIGTERM. Says its endpoint in a first line of JSON, its counts in a last one."""
    parser = argparse.ArgumentParser(
        prog="python -m runlore.testing.s3proxy", description="A proxy that breaks S3."
    )
    parser.add_argument("--upstream", required=True, help="URL of the S3 server")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0: a free one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", action="append", default=[], metavar="FAULT=SHARE", help=", ".join(FAULTS))
    parser.add_argument("--seconds", type=float, default=0.2, help="how long `slow` and `late` wait")
    asyncio.run(_serve(parser.parse_args(arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
