"""A lookup service in raw HTTP, so that it can do what no honest server does: hang, break off, answer nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import tarfile

NOTHING = {"seed": None, "snapshot": None, "base": {"counter": 0, "snapshot": None}}


def tar_of(files):
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return body.getvalue()


class Server:
    """Answers by the beginning of `METHOD path`: (status, body, *headers), "hang", "break", "trickle" or "endless"."""

    def __init__(self):
        self.answers = {}
        self.requests = []
        self.bodies = []
        self._writers = set()

    @contextlib.asynccontextmanager
    async def run(self):
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for writer in self._writers:
                writer.close()
            await server.wait_closed()

    async def _serve(self, reader, writer):
        self._writers.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                line, *rows = head.strip().split("\r\n")
                headers = {k.lower(): v for k, v in (row.split(": ", 1) for row in rows)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                method, path, _ = line.split(" ")
                self.requests.append((f"{method} {path}", headers))
                self.bodies.append((f"{method} {path}", body))
                answer = next(
                    (a for start, a in self.answers.items() if self._is(f"{method} {path}", start)),
                    (404, {}),
                )
                if answer == "hang":
                    await asyncio.Event().wait()
                if answer in ("trickle", "endless"):
                    await self._pour(writer, 1 if answer == "trickle" else 2**20)
                    return
                status, content, *more = answer if answer != "break" else (200, None)
                if content is None:
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf")
                    await writer.drain()
                    writer.close()
                    return
                raw = content if isinstance(content, bytes) else json.dumps(content).encode()
                rows = "".join(f"{row}\r\n" for row in [f"content-length: {len(raw)}", *more])
                writer.write(f"HTTP/1.1 {status} X\r\n{rows}\r\n".encode() + raw)
                await writer.drain()

    @staticmethod
    async def _pour(writer, count):
        """An answer that has no end; one byte now and then, or as much as may be."""
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(f"{count:x}\r\n".encode() + b" " * count + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0.02 if count == 1 else 0)

    @staticmethod
    def _is(request, start):
        method, _, end = start.partition(" ")
        return request.startswith(method) and end in request

    def posted(self, end):
        return [body for request, body in self.bodies if request.startswith("POST") and end in request]

    def works(self, **seed):
        """A service that takes everything, and has this seed."""
        self.answers = {
            "GET /seed?": (200, {**NOTHING, **seed}),
            "POST /archives": (201, {"sha256": "0" * 64, "size": 1}),
            "POST /events": (202, {"event": "e"}),
            **{k: v for k, v in self.answers.items() if k.startswith("GET") and "seed?" not in k},
        }
