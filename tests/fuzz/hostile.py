"""A deployment to attack: two projects with everything in them, behind keys, asked in this process.

Hypothesis calls a test many times, each without a loop: `World` keeps one loop and one service for all of them.
How far each test looks: `examples` (RUNLORE_TEST_DEEP=1 looks much further, and differently each time).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import urllib.parse

import hypothesis

from lookup_service import BASE, served

HOST = BASE.partition("//")[2]

DEEP = bool(os.environ.get("RUNLORE_TEST_DEEP"))
PHASES = (hypothesis.Phase.explicit, hypothesis.Phase.generate)


def examples(few, many):
    """How often a property is tried: always the same `few` in CI, else `many` new ones, and what fails made small."""
    return hypothesis.settings(
        max_examples=many if DEEP else few,
        derandomize=not DEEP,
        database=None,
        deadline=None,
        phases=(*PHASES, hypothesis.Phase.shrink) if DEEP else PHASES,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back, byte for byte."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name):
        """A header's values, in order."""
        return [value.decode("latin-1") for one, value in self.headers if one.lower() == name.encode()]

    def json(self):
        return json.loads(self.body)

    def raw(self):
        """Every byte of it: where a word of somebody else's is looked for."""
        return b"\n".join([*(one for pair in self.headers for one in pair), self.body])


class World:
    """One service on a loop that is kept between calls, asked as a server asks it: no client tidies a request."""

    def __init__(self, runner, one):
        self._runner, self.one = runner, one

    def run(self, work):
        return self._runner.run(work)

    def ask(self, method, target, *, headers=(), body=b""):
        """The answer to a request; `target` (path and query) and headers as they stand on the wire."""
        return self.run(asked(self.one.app, method, target, headers=headers, body=body))


async def asked(app, method, target, *, headers=(), body=b"", pieces=None):
    """The same on a loop that runs; `pieces`: an iterator of the body's parts, whose length is not told."""
    raw_path, _, query = target.encode("latin-1").partition(b"?")
    given = [
        (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in dict(headers).items()
    ]
    if b"host" not in dict(given):
        given.append((b"host", HOST.encode()))
    if body:
        given.append((b"content-length", str(len(body)).encode()))
    elif pieces is not None:
        given.append((b"transfer-encoding", b"chunked"))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": urllib.parse.unquote(raw_path.decode("latin-1")),
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "headers": given,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 7077),
    }
    left = iter([body] if pieces is None else itertools.chain(pieces, [None]))
    said, seen = [], {}

    async def receive():
        for piece in left:
            return {
                "type": "http.request",
                "body": piece or b"",
                "more_body": pieces is not None and piece is not None,
            }
        # The client stays until it has its answer.
        return await asyncio.Event().wait()

    async def send(message):
        if message["type"] == "http.response.start":
            seen.update(message)
        else:
            said.append(message.get("body", b""))

    await app(scope, receive, send)
    return Answer(seen["status"], [tuple(pair) for pair in seen["headers"]], b"".join(said))


@contextlib.contextmanager
def world(tmp_path, fill, **more):
    """A world that `fill` has filled; closed at the end."""
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        one = runner.run(stack.enter_async_context(served(tmp_path, **more)))
        try:
            found = World(runner, one)
            found.filled = runner.run(fill(one))
            yield found
        finally:
            runner.run(stack.aclose())
