"""Names: of blobs, packs and snapshots, and of files as a tree writes them. Pure.

Every id is a BLAKE3-256 of exact bytes, so an id is a function of content alone: not of a machine, an order,
or a place (docs/FORMAT.md, "Ids"). In memory an id is 32 bytes, in text 64 hex digits.
"""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass
from typing import Any

import blake3

from runlore import errors

ID_BYTES = 32
_HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)
_THREADS_FROM_BYTES = 8 * 1024 * 1024
"""Bytes from which one hash is worth both cores."""


def blob_id(content: bytes | memoryview) -> bytes:
    """The id of a blob."""
    return blake3.blake3(content).digest()


def digest(content: bytes) -> str:
    """The BLAKE3-256 of `content` in hex; of a large one (a pack) on all cores."""
    threads = blake3.blake3.AUTO if len(content) >= _THREADS_FROM_BYTES else 1
    return blake3.blake3(content, max_threads=threads).hexdigest()


def is_id(text: object) -> bool:
    return isinstance(text, str) and _HEX.fullmatch(text) is not None


def canonical(value: Any) -> bytes:
    """JSON as every hash of this format is taken over it: ASCII, no spaces, keys in the order given."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True).encode("ascii")


@dataclass(frozen=True, order=True)
class Ref:
    """A snapshot and the root pack that says where its blobs lie.

    The id alone names the content and never changes. The root pack is what a head names beside it, so that a
    reader needs no LIST and a sweep knows which pack is in use.
    """

    id: str
    root: str

    def __post_init__(self) -> None:
        if not (is_id(self.id) and is_id(self.root)):
            raise errors.InvalidId(
                f"{self.id!r}/{self.root!r} names no snapshot", hint="64 hex digits, '/', 64 hex digits"
            )

    def __str__(self) -> str:
        return f"{self.id}/{self.root}"

    @property
    def pack(self) -> str:
        """The root pack's name, as indexes write it."""
        return str(self)

    @classmethod
    def parse(cls, text: str) -> Ref:
        """The reverse of `str`. Raises `errors.InvalidId`."""
        snapshot, _, root = text.partition("/")
        return cls(snapshot, root)


def check_pack(name: object) -> str:
    """`name`, if it is a pack's: `<id>`, or `<snapshot>/<id>`. Raises `errors.Corrupt`: it comes from an index."""
    parts = name.split("/") if isinstance(name, str) else []
    if len(parts) not in (1, 2) or not all(is_id(part) for part in parts):
        raise errors.Corrupt(f"{name!r} names no pack")
    return str(name)


# --- names of files ---------------------------------------------------------------------------------------


def _escape_undecodable(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    bad = error.object[error.start : error.end]
    return "".join(f"%{byte:02X}" for byte in bad), error.end


codecs.register_error("runlore_percent", _escape_undecodable)
_ESCAPED = re.compile(rb"%([0-9A-F]{2})")


def to_text(raw: bytes) -> str:
    """A file's name or a link's target as text: UTF-8, where `%` and every byte that is not UTF-8 is `%XX`."""
    if b"%" in raw:
        raw = raw.replace(b"%", b"%25")
    return raw.decode("utf-8", "runlore_percent")


def from_text(text: str) -> bytes:
    """The reverse of `to_text`."""
    raw = text.encode("utf-8")
    if b"%" not in raw:
        return raw
    return _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), raw)
