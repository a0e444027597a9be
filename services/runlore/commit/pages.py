"""Paged maps: a dict from string to JSON, cut into content-named pages, so that a change costs its page.

A key's page is a hash of the key modulo the number of pages, a power of two that grows with the map: about
the square root of its bytes over the size of a page's name, so that the root and a page are alike in size.
A change to one entry of n then writes O(√n) bytes. Pages are read when asked for, and only then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from runlore import errors
from runlore.commit import packs
from runlore.events import envelope

ROOT_ENTRY_BYTES = 68
"""What one page costs in the root: 64 hex digits, quotes and a comma."""


class PagedMap:
    """A map over pages fetched by name; `flush` gives the root of its present content and its new pages.

    Raises `errors.Corrupt` where a root or a page is none.
    """

    def __init__(self, root: dict[str, Any] | None, fetch: Callable[[str], bytes]) -> None:
        root = root or {"pages": [None], "count": 0, "bytes": 0}
        try:
            self._names: list[str | None] = list(root["pages"])
            self._count = int(root["count"])
            self._bytes = int(root["bytes"])
            if not self._names or any(type(name) not in (str, type(None)) for name in self._names):
                raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError):
            raise errors.Corrupt("the root of a revision's map can not be read") from None
        self._fetch = fetch
        self._loaded: dict[int, dict[str, Any]] = {}
        self._changed: set[int] = set()

    def __len__(self) -> int:
        return self._count

    def get(self, key: str, default: Any = None) -> Any:
        return self._page(self._at(key)).get(key, default)

    def set(self, key: str, value: Any) -> None:
        """Set an entry; one that is equal already changes no page."""
        at = self._at(key)
        page = self._page(at)
        if key in page:
            if page[key] == value:
                return
            self._bytes -= _weight(key, page[key])
        else:
            self._count += 1
        page[key] = value
        self._bytes += _weight(key, value)
        self._changed.add(at)

    def remove(self, key: str) -> None:
        at = self._at(key)
        page = self._page(at)
        if key in page:
            self._bytes -= _weight(key, page.pop(key))
            self._count -= 1
            self._changed.add(at)

    def replace(self, entries: dict[str, Any]) -> None:
        """Make the map hold exactly `entries`."""
        for key in [key for key, _ in self.items() if key not in entries]:
            self.remove(key)
        for key, value in entries.items():
            self.set(key, value)

    def items(self) -> Iterator[tuple[str, Any]]:
        """Every entry; reads every page."""
        for at in range(len(self._names)):
            yield from list(self._page(at).items())

    def names(self) -> list[str]:
        """The names of the pages, as of the last flush."""
        return [name for name in self._names if name]

    def flush(self, new: dict[str, bytes]) -> dict[str, Any]:
        """Put the pages that changed into `new` (name → content); the root."""
        self._grow()
        for at in sorted(self._changed):
            content = envelope.dump(dict(sorted(self._loaded[at].items())))
            self._names[at] = packs.name(content) if self._loaded[at] else None
            if self._loaded[at]:
                new[self._names[at]] = content  # type: ignore[index]
        self._changed.clear()
        return {"pages": list(self._names), "count": self._count, "bytes": self._bytes}

    def _grow(self) -> None:
        wanted = len(self._names)
        while wanted * wanted * ROOT_ENTRY_BYTES < self._bytes:
            wanted *= 2
        if wanted == len(self._names):
            return
        entries = dict(self.items())
        self._names, self._loaded = [None] * wanted, {at: {} for at in range(wanted)}
        for key, value in entries.items():
            self._loaded[self._at(key)][key] = value
        self._changed = set(range(wanted))

    def _at(self, key: str) -> int:
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") % len(self._names)

    def _page(self, at: int) -> dict[str, Any]:
        if at not in self._loaded:
            page = self._names[at]
            self._loaded[at] = _decoded(self._fetch(page)) if page else {}
        return self._loaded[at]


def _decoded(raw: bytes) -> dict[str, Any]:
    try:
        page = envelope.kept(raw)
    except ValueError:
        page = None
    if not isinstance(page, dict):
        raise errors.Corrupt("a page of a revision's map can not be read")
    return page


def _weight(key: str, value: Any) -> int:
    return len(key) + len(envelope.dump(value)) + 4
