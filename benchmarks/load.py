"""An open-loop load generator for HTTP on this machine. A process.

    python benchmarks/load.py    < {"port": 7077, "paths": ["/…"], "rate": 1000, "seconds": 5, "connections": 64}

Requests have a schedule that no answer moves, and a latency is counted from the scheduled time: an answer that is late
makes those behind it late too, as it would for people, and not fewer. With `rate` 0 each connection asks again as
soon as it has its answer (closed loop: how many a second at most). It parses of an answer what it must (status,
length), so that its own cost stays small; `late` says how far behind its own schedule it was (p99).
Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import deque
from typing import Any

HEAD_END = b"\r\n\r\n"
LENGTH = b"content-length:"


class Connection(asyncio.Protocol):
    """One connection, one request at a time. `done` is called with the connection and the status."""

    def __init__(self, done: Any) -> None:
        self._done = done
        self._buffer = bytearray()
        self._whole = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._whole:
            end = self._buffer.find(HEAD_END)
            if end < 0:
                return
            head = bytes(self._buffer[:end]).lower()
            at = head.find(LENGTH)
            length = int(head[at + len(LENGTH) :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            self._whole = end + len(HEAD_END) + length
        if len(self._buffer) >= self._whole:
            status = int(self._buffer[9:12])
            del self._buffer[: self._whole]
            self._whole = 0
            self._done(self, status)

    def connection_lost(self, exc: Exception | None) -> None:
        self._done(self, 0)


class Load:
    """One run of the generator."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self._asked = asked
        more = "".join(f"{name}: {value}\r\n" for name, value in asked.get("headers", {}).items())
        self._requests = [
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{asked['port']}\r\n{more}\r\n".encode()
            for path in asked["paths"]
        ]
        self._dice = random.Random(7)
        self._free: deque[Connection] = deque()
        self._waiting: deque[float] = deque()
        self._under_way: dict[Connection, float] = {}
        self.latencies: list[float] = []
        self.late: list[float] = []
        self.failed = 0
        self._ended = False

    def done(self, connection: Connection, status: int) -> None:
        due = self._under_way.pop(connection, None)
        if due is not None and not self._ended:
            self.latencies.append(time.perf_counter() - due)
            self.failed += status != 200
        if status == 0:
            return
        if self._waiting:
            self.send(connection, self._waiting.popleft())
        elif not self._asked["rate"] and not self._ended:
            self.send(connection, time.perf_counter())
        else:
            self._free.append(connection)

    def send(self, connection: Connection, due: float) -> None:
        self._under_way[connection] = due
        connection.transport.write(self._dice.choice(self._requests))

    async def run(self) -> dict[str, Any]:
        loop, rate, seconds = asyncio.get_running_loop(), self._asked["rate"], self._asked["seconds"]
        for _ in range(self._asked.get("connections", 64)):
            _, made = await loop.create_connection(
                lambda: Connection(self.done), "127.0.0.1", self._asked["port"]
            )
            self._free.append(made)
        began = time.perf_counter()
        if rate:
            await self._scheduled(began, rate, seconds)
        else:
            while self._free:
                self.send(self._free.popleft(), time.perf_counter())
            await asyncio.sleep(seconds)
        # What is still under way counts with what it has waited already: leaving it out would flatter.
        took = time.perf_counter() - began
        unanswered = [*self._under_way.values(), *self._waiting] if rate else []
        self._ended = True
        now = time.perf_counter()
        answered = len(self.latencies)
        found = sorted([*self.latencies, *(now - due for due in unanswered)])
        return {
            "answered": answered,
            "unanswered": len(unanswered),
            "failed": self.failed,
            "per_second": answered / took,
            **{f"p{of}": quantile(found, of) * 1000 for of in (50, 95, 99)},
            "late": quantile(sorted(self.late), 99) * 1000,
        }

    async def _scheduled(self, began: float, rate: float, seconds: float) -> None:
        sent, total = 0, int(rate * seconds)
        while sent < total:
            now = time.perf_counter()
            while sent < total and began + sent / rate <= now:
                due = began + sent / rate
                self.late.append(now - due)
                if self._free:
                    self.send(self._free.popleft(), due)
                else:
                    self._waiting.append(due)
                sent += 1
            await asyncio.sleep(max(0.0005, began + sent / rate - time.perf_counter()))
        give_up = time.perf_counter() + 1.0
        while (self._under_way or self._waiting) and time.perf_counter() < give_up:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def quantile(ordered: list[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else 0.0


if __name__ == "__main__":
    print(json.dumps(asyncio.run(Load(json.load(sys.stdin)).run())))
