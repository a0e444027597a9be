"""The port to the object store: what Runlore asks of S3, of a directory, and of the fake alike.

Keys are `/`-separated, lower-case, at most 512 bytes; `<project>/<kind>/<2 hex>/…` (see `commit/keys.py`).
Bodies are bytes. An etag names one exact body of one key. Every adapter tells three failures apart, because
the caller does something else on each (docs/DESIGN.md, "Write order"):

- `PreconditionFailed` (412): somebody's write is there. Read again, start from the head.
- `WriteConflict` (409): nothing landed. Send again.
- `OutcomeUnknown`: the reply was lost. It may have landed, or may yet. Start from the head.

`StoreUnavailable` is a passing fault of a read or of a write that did not reach the store; `Blocked` is a
missing permission. A missing key is `None` for `get`, and nothing for `delete`. A write with an etag to a
missing key is a 412: whoever wrote that etag is gone.

No key is a folder of another (`a` and `a/b`): a directory can not hold both, so no adapter has to.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from runlore import errors

KEY_BYTES_MAX = 512
PART_BYTES_MAX = 255
"""Longest part of a key between two '/', in bytes: what every common file system takes as a name."""

Guard = Callable[[], None]
"""Called between signing a write and sending it; raises if it must not be sent any more (`commit/age.py`)."""

# A leading dot is refused in every part: it hides a file, and `.` and `..` climb.
_PART = rf"[a-z0-9_-][a-z0-9._-]{{0,{PART_BYTES_MAX - 1}}}"
_KEY = re.compile(rf"{_PART}(?:/{_PART})*", re.ASCII)
_FOLDER = re.compile(rf"(?:{_PART}/)*", re.ASCII)
_REST = re.compile(r"(?!\.)[a-z0-9._-]*", re.ASCII)


def check_key(key: str) -> str:
    """`key`, if every adapter can hold it. Raises `errors.InvalidId`."""
    if len(key) > KEY_BYTES_MAX:
        raise errors.InvalidId(f"a key of {len(key)} bytes is too long; at most {KEY_BYTES_MAX} are accepted")
    if _KEY.fullmatch(key) is None:
        raise errors.InvalidId(
            f"{key!r} is not a key",
            hint="parts of 1 to 255 of a-z, 0-9, '.', '_' and '-', not beginning with '.', joined by '/'",
        )
    return key


def check_prefix(prefix: str, *, folder: bool = False) -> str:
    """`prefix`, if some key could begin with it (with `folder`: if it ends at a '/').

    Raises `errors.InvalidId`.
    """
    parents, slash, last = prefix.rpartition("/")
    whole = _FOLDER.fullmatch(parents + slash) and _REST.fullmatch(last)
    if not whole or len(prefix) > KEY_BYTES_MAX or (folder and last):
        raise errors.InvalidId(f"no key begins with {prefix!r}")
    return prefix


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


@dataclass(frozen=True)
class Presigned:
    """A request that somebody without rights of their own may send until it expires, with exactly these headers."""

    url: str
    headers: Mapping[str, str]
    seconds: int


class Presigns(Protocol):
    """What a store may do besides: hand out the right to put one object of exactly these bytes."""

    async def presigned_put(self, key: str, *, sha256: str, size: int) -> Presigned:
        """A PUT of `key` with `size` bytes of this hash. Raises `errors.Refused` where no one request takes them."""
        ...


class ObjectStore(Protocol):
    """What a store must do. Each call is one request (but `*_many`); none retries by itself on a write."""

    async def get(self, key: str) -> Stored | None:
        """The object at `key`, or None."""
        ...

    async def get_many(self, keys: Sequence[str]) -> list[Stored | None]:
        """`get` for each key, in order; an adapter may run them at the same time."""
        ...

    async def get_range(self, key: str, offset: int, length: int) -> bytes | None:
        """`length` bytes of the object at `key` from `offset` on, fewer where it ends before; None if missing."""
        ...

    async def get_tail(self, key: str, length: int) -> bytes | None:
        """The last `length` bytes of the object at `key`, all of a shorter one; None if missing."""
        ...

    async def put(self, key: str, body: bytes) -> str:
        """Write `key` whatever was there; its etag. For content-named objects, where it is idempotent."""
        ...

    async def put_if_absent(self, key: str, body: bytes) -> str:
        """Write `key` if nothing is there; its etag. Raises `PreconditionFailed` if something is."""
        ...

    async def compare_and_set(
        self, key: str, body: bytes, etag: str | None, *, guard: Guard | None = None
    ) -> str:
        """Write `key` if its etag is still `etag` (None: if nothing is there); the new etag.

        `guard` is called after the request was signed and before it is sent; what it raises is raised, and
        nothing was sent. Neither the adapter nor its client may sign a guarded request again: whoever wants
        to retry calls this again, and so is checked again.
        """
        ...

    async def delete(self, key: str) -> None:
        """Remove `key`; a missing key is no error."""
        ...

    async def delete_many(self, keys: Sequence[str]) -> None:
        """`delete` for each key; an adapter may send them together. When it raises, any of them may be gone."""
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

    async def settle(self) -> None:
        """Return once every guarded write that passed its guard has landed, or will be refused in time.

        A store that refuses old signatures has nothing to do here; one without signatures waits for those
        writers, or raises `StoreUnavailable` where one of them does not come to an end.
        """
        ...

    async def close(self) -> None:
        """Give back what the adapter holds."""
        ...
