"""A store that is asked no more than so often a second: for work that must leave room for others (`runlore upkeep`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from runlore import clock
from runlore.store.port import Guard, Listed, ObjectStore, Stored

LIST_ROWS = 1000
"""Rows of a LIST that count as one request, as S3 gives them."""


class Paced:
    """`inner` with at most `per_second` requests a second; every object of a `*_many` counts as one.

    What was asked for is done in its turn: a call waits before its request is made, and so before it is signed.
    """

    def __init__(self, inner: ObjectStore, *, per_second: float) -> None:
        self._inner, self._seconds_each = inner, 1 / per_second
        self._free_at = clock.monotonic()

    async def _turn(self, count: int = 1) -> None:
        now = clock.monotonic()
        begins = max(now, self._free_at)
        self._free_at = begins + count * self._seconds_each
        if begins > now:
            await clock.sleep(begins - now)

    async def get(self, key: str) -> Stored | None:
        await self._turn()
        return await self._inner.get(key)

    async def get_many(self, keys: Sequence[str]) -> list[Stored | None]:
        await self._turn(len(keys))
        return await self._inner.get_many(keys)

    async def get_range(self, key: str, offset: int, length: int) -> bytes | None:
        await self._turn()
        return await self._inner.get_range(key, offset, length)

    async def get_tail(self, key: str, length: int) -> bytes | None:
        await self._turn()
        return await self._inner.get_tail(key, length)

    async def put(self, key: str, body: bytes) -> str:
        await self._turn()
        return await self._inner.put(key, body)

    async def put_if_absent(self, key: str, body: bytes) -> str:
        await self._turn()
        return await self._inner.put_if_absent(key, body)

    async def compare_and_set(
        self, key: str, body: bytes, etag: str | None, *, guard: Guard | None = None
    ) -> str:
        await self._turn()
        return await self._inner.compare_and_set(key, body, etag, guard=guard)

    async def delete(self, key: str) -> None:
        await self._turn()
        await self._inner.delete(key)

    async def delete_many(self, keys: Sequence[str]) -> None:
        await self._turn(len(keys))
        await self._inner.delete_many(keys)

    async def compare_and_delete(self, key: str, etag: str) -> None:
        await self._turn()
        await self._inner.compare_and_delete(key, etag)

    async def list(self, prefix: str) -> AsyncIterator[Listed]:
        number = 0
        async for row in self._inner.list(prefix):
            if number % LIST_ROWS == 0:
                await self._turn()
            number += 1
            yield row
        if not number:
            await self._turn()

    async def children(self, prefix: str) -> list[str]:
        await self._turn()
        return await self._inner.children(prefix)

    async def settle(self) -> None:
        await self._inner.settle()

    async def close(self) -> None:
        await self._inner.close()
