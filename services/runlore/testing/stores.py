"""The object store in memory: the fake that every test may use, held to the contract of the real ones.

No call ever suspends, so a simulation decides alone where one step ends and the next begins.
"""

from __future__ import annotations

import bisect
import hashlib
import threading
from collections.abc import AsyncIterator, Sequence

from runlore import clock, errors
from runlore.store.port import Guard, Listed, Stored, check_key, check_prefix


class MemoryStore:
    """`store.port.ObjectStore` in a dict. Threads may share it: every call is atomic."""

    def __init__(self) -> None:
        self._objects: dict[str, tuple[Stored, float]] = {}
        self._order: list[str] = []
        self._lock = threading.Lock()

    async def get(self, key: str) -> Stored | None:
        found = self._objects.get(check_key(key))
        return found[0] if found else None

    async def get_many(self, keys: Sequence[str]) -> list[Stored | None]:
        return [await self.get(key) for key in keys]

    async def get_range(self, key: str, offset: int, length: int) -> bytes | None:
        stored = await self.get(key)
        return stored.body[offset : offset + length] if stored else None

    async def get_tail(self, key: str, length: int) -> bytes | None:
        stored = await self.get(key)
        return stored.body[max(0, len(stored.body) - length) :] if stored else None

    async def put(self, key: str, body: bytes) -> str:
        with self._lock:
            return self._write(key, body)

    async def put_if_absent(self, key: str, body: bytes) -> str:
        return await self.compare_and_set(key, body, None)

    async def compare_and_set(
        self, key: str, body: bytes, etag: str | None, *, guard: Guard | None = None
    ) -> str:
        with self._lock:
            if guard is not None:
                guard()
            self._expect(key, etag)
            return self._write(key, body)

    async def delete(self, key: str) -> None:
        with self._lock:
            self._remove(check_key(key))

    async def delete_many(self, keys: Sequence[str]) -> None:
        for key in [check_key(key) for key in keys]:
            await self.delete(key)

    async def compare_and_delete(self, key: str, etag: str) -> None:
        with self._lock:
            if check_key(key) in self._objects:
                self._expect(key, etag)
                self._remove(key)

    async def list(self, prefix: str) -> AsyncIterator[Listed]:
        key = check_prefix(prefix)
        at = bisect.bisect_left(self._order, key)
        while at < len(self._order) and (key := self._order[at]).startswith(prefix):
            stored, modified = self._objects[key]
            yield Listed(key, stored.etag, len(stored.body), modified)
            # Keys may have come or gone while the caller held the row.
            at = bisect.bisect_right(self._order, key)

    async def children(self, prefix: str) -> list[str]:
        check_prefix(prefix, folder=True)
        found = {key[len(prefix) :].split("/", 1)[0] for key in self._below(prefix)}
        return sorted(found)

    async def settle(self) -> None:
        with self._lock:  # A guarded write holds it from its guard until it has landed.
            return None

    async def close(self) -> None:
        return None

    # --- for tests ------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, bytes]:
        """Every key and its body, in order of keys."""
        return {key: self._objects[key][0].body for key in self._order}

    def page(self, prefix: str, *, after: str, rows_max: int) -> list[Listed]:
        """Rows of a LIST that come after a key."""
        at = (
            bisect.bisect_right(self._order, after)
            if after >= prefix
            else bisect.bisect_left(self._order, prefix)
        )
        found = []
        for key in self._order[at : at + rows_max]:
            if not key.startswith(prefix):
                break
            stored, modified = self._objects[key]
            found.append(Listed(key, stored.etag, len(stored.body), modified))
        return found

    def copy(self) -> MemoryStore:
        """Another store with the same objects."""
        out = MemoryStore()
        out._objects, out._order = dict(self._objects), list(self._order)
        return out

    def body(self, key: str) -> bytes | None:
        """What is at `key` now."""
        found = self._objects.get(key)
        return found[0].body if found else None

    def fingerprint(self) -> int:
        """A hash of every key and body."""
        return hash(tuple((key, self._objects[key][0].etag) for key in self._order))

    # --- inside ---------------------------------------------------------------------------------------

    def _below(self, prefix: str) -> Sequence[str]:
        first = bisect.bisect_left(self._order, prefix)
        last = bisect.bisect_left(self._order, prefix + "\x7f")  # Above every character of a key.
        return self._order[first:last]

    def _expect(self, key: str, etag: str | None) -> None:
        found = self._objects.get(check_key(key))
        if (found[0].etag if found else None) != etag:
            raise errors.PreconditionFailed(f"{key} is not what was read")

    def _write(self, key: str, body: bytes) -> str:
        if check_key(key) not in self._objects:
            self._check_no_folder(key)
            bisect.insort(self._order, key)
        stored = Stored(bytes(body), hashlib.sha256(body).hexdigest())
        self._objects[key] = (stored, clock.now().timestamp())
        return stored.etag

    def _check_no_folder(self, key: str) -> None:
        parts = key.split("/")
        above = ("/".join(parts[:count]) for count in range(1, len(parts)))
        if any(folder in self._objects for folder in above) or self._below(key + "/"):
            raise errors.InvalidId(f"{key} is a folder of another key, or lies below one")

    def _remove(self, key: str) -> None:
        if self._objects.pop(key, None) is not None:
            del self._order[bisect.bisect_left(self._order, key)]
