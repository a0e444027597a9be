"""The detector library beside our own shapes: Kingfisher's rules, in this process, offline.

It knows the tokens of some 480 vendors and the places where they stand. It is an extra (`runlore[redact]`, part of
`runlore[server]`): 35 MB installed and 40 MB of memory, and its rules take up to two seconds to load from their
cache, four to ten the first time on a machine. So only what records runs loads it, once a process (`load`); everything
else, and an install without it, goes by our shapes. Nothing here ever asks a network: finding is all that is used.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Protocol

CONFIDENCE = "medium"
"""Of the library's own grades: `high` misses a sixth of what this finds, `low` finds no more (docs/REDACTION.md)."""


@dataclass(frozen=True)
class Hit:
    """One secret in a text: characters `start` to `end`."""

    start: int
    end: int
    kind: str


class Library(Protocol):
    """What finds secrets beside our shapes."""

    name: str
    """With its version: a part of the rules' name in every record."""

    def find(self, text: str) -> list[Hit]: ...


class Kingfisher:
    """The rules of Kingfisher. May be used by several threads at once."""

    def __init__(self) -> None:
        import importlib.metadata

        import kingfisher_sdk

        self.name = f"kingfisher-{importlib.metadata.version('kingfisher-secret-scanner')}"
        self._scanner: Any = kingfisher_sdk.Scanner(kingfisher_sdk.Rules(confidence=CONFIDENCE), base64=False)

    def find(self, text: str) -> list[Hit]:
        raw = text.encode("utf-8", "replace")
        hits = []
        for one in self._scanner.scan(raw):
            # What is not visible helps to verify another find (an account's name): no secret, and often a word.
            if one.visible:
                start, end = one.location["start_offset"], one.location["end_offset"]
                if len(raw) != len(text):
                    start, end = (len(raw[:at].decode("utf-8", "ignore")) for at in (start, end))
                hits.append(Hit(start, end, _kind(one.rule_id)))
        return hits


def _kind(rule: str) -> str:
    """A rule's name as a placeholder may hold it: `betterleaks.github-pat` is `github-pat`."""
    last = rule.replace("/", ".").rpartition(".")[2].lower()
    return "".join(char if char.isascii() and char.isalnum() else "-" for char in last).strip("-") or "secret"


_lock = threading.Lock()
_library: Library | None = None


def library() -> Library | None:
    """The library that this process has loaded; None where it goes by our shapes alone."""
    return _library


def load() -> Library | None:
    """Load the library, if it is installed; blocking, up to ten seconds. A second call costs nothing."""
    global _library
    with _lock:
        if _library is None:
            try:
                _library = Kingfisher()
            except ImportError:
                return None
    return _library


def use(one: Library | None) -> None:
    """Go by `one` from here on; None: by our shapes alone."""
    global _library
    _library = one
