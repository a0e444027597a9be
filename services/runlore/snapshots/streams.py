"""An object of the store as a file that a thread reads: in ranges, hashed on the way, never held whole."""

from __future__ import annotations

import asyncio
import hashlib
import io

from runlore import errors
from runlore.store import port

READ_BYTES = 4 * 1024 * 1024


class ObjectFile(io.RawIOBase):
    """The object at `key`, read once from its beginning to its end by one thread that is not the loop's."""

    def __init__(self, store: port.ObjectStore, key: str, size: int) -> None:
        self._store, self._key, self._size = store, key, size
        self._loop = asyncio.get_running_loop()
        self._at = 0
        self._part = memoryview(b"")
        self._sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._part and self._at < self._size:
            wanted = min(READ_BYTES, self._size - self._at)
            call = self._store.get_range(self._key, self._at, wanted)
            raw = asyncio.run_coroutine_threadsafe(call, self._loop).result()
            if raw is None:
                raise errors.ClaimMissing(f"the object {self._key} is gone")
            if len(raw) != wanted:
                raise errors.ClaimMismatch(f"the object {self._key} is shorter than its claim says")
            self._sha256.update(raw)
            self._at += len(raw)
            self._part = memoryview(raw)
        count = min(len(buffer), len(self._part))
        buffer[:count] = self._part[:count]
        self._part = self._part[count:]
        return count

    def finish(self) -> str:
        """Read what is left, as whoever parsed it may have stopped at an end mark; the SHA-256 of it all."""
        while self.read(READ_BYTES):
            pass
        return self._sha256.hexdigest()
