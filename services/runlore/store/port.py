"""The port to the object store: what Runlore asks of S3, of a directory, and of the fake alike.

Keys are `/`-separated, lower-case, at most 512 bytes; `<project>/<kind>/<2 hex>/…` (see `commit/keys.py`).
Bodies are bytes. An etag names one exact body of one key. Every adapter tells three failures apart, because
the caller does something else on each (docs/DESIGN.md, "Write order"):

- `PreconditionFailed` (412): somebody's write is there. Read again, start from the head.
- `WriteConflict` (409): nothing landed. Send again.
- `OutcomeUnknown`: the reply was lost. It may have landed, or may yet. Start from the head.

`StoreUnavailable` is a passing fault of a read or of a write that did not reach the store; `Blocked` is a
missing permission. A missing key is `None` for `get`, and nothing for `delete`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Stored:
    """One object as read: its body and the etag of exactly that body."""

    body: bytes
    etag: str


@dataclass(frozen=True)
class Listed:
    """One row of a LIST: key, etag, size in bytes, and when it was written (seconds since 1970)."""

    key: str
    etag: str
    size: int
    modified: float


class ObjectStore(Protocol):
    """What a store must do. Each call is one request; none retries by itself on a write."""

    async def get(self, key: str) -> Stored | None:
        """The object at `key`, or None."""
        ...

    async def get_many(self, keys: Sequence[str]) -> list[Stored | None]:
        """`get` for each key, in order; an adapter may run them at the same time."""
        ...

    async def put(self, key: str, body: bytes) -> str:
        """Write `key` whatever was there; its etag. Only for content-named objects, where it is idempotent."""
        ...

    async def put_if_absent(self, key: str, body: bytes) -> str:
        """Write `key` if nothing is there; its etag. Raises `PreconditionFailed` if something is."""
        ...

    async def compare_and_set(self, key: str, body: bytes, etag: str | None) -> str:
        """Write `key` if its etag is still `etag` (None: if nothing is there); the new etag."""
        ...

    async def delete(self, key: str) -> None:
        """Remove `key`; a missing key is no error."""
        ...

    async def compare_and_delete(self, key: str, etag: str) -> None:
        """Remove `key` if its etag is still `etag`; a missing key is no error."""
        ...

    def list(self, prefix: str) -> AsyncIterator[Listed]:
        """Every object whose key begins with `prefix`, in order of keys."""
        ...

    async def children(self, prefix: str) -> list[str]:
        """The distinct next path parts below `prefix` (which ends with '/' or is empty), in order."""
        ...

    async def close(self) -> None:
        """Give back what the adapter holds."""
        ...
