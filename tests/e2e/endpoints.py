"""A scripted model's endpoint for tests of commands."""

from __future__ import annotations

import asyncio
import threading

from runlore.testing import models


class Served:
    """A scripted endpoint in a thread of its own, beside commands that block."""

    def __init__(self, script):
        self._script, self._ready = script, threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self):
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with models.ModelServer(self._script) as self.server:
            self._ready.set()
            await self._stop.wait()

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(20)
        return self.server

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
