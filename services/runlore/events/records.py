"""A run's record: the SDK's JSONL line, byte for byte but for redaction and ASCII escapes.

The SDK writes `json.dumps(payload, separators=(",", ":")) + "\\n"` with keys in this order: updated_at,
rollout_id, input, generated_items, [interruptions], terminal_metadata, [final_output]. Its readers split
files with `str.splitlines()`, so a raw U+2028, U+2029 or U+0085 inside a line breaks them (the JavaScript
SDK writes such lines). In valid JSON a non-ASCII character can only stand inside a string, so replacing
each by its `\\uXXXX` escape is exact and needs no re-encoding of anything else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

from runlore import errors

_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def received_hash(line: str) -> str:
    """The hash by which a run's sameness is judged: of the bytes as received, before any redaction.

    32 hex digits of SHA-256. The line's trailing newline does not count: producers differ in it.
    """
    return hashlib.sha256(line.rstrip("\r\n").encode("utf-8", "surrogatepass")).hexdigest()[:32]


def to_ascii(line: str) -> str:
    """`line` with every non-ASCII character as its JSON escape (a surrogate pair above U+FFFF)."""

    def escape(match: re.Match[str]) -> str:
        return json.dumps(match.group())[1:-1]

    return _NOT_ASCII.sub(escape, line)


def check(line: str) -> dict[str, Any]:
    """The record as a JSON object. Raises `errors.InvalidRecord`.

    It asks only for what memory needs: an object on one line whose `input` and `generated_items` are lists.
    """
    text = line.rstrip("\r\n")
    if "\n" in text or "\r" in text:
        raise errors.InvalidRecord("the record is more than one line")
    try:
        payload = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise errors.InvalidRecord(f"the record is not valid JSON: {type(exc).__name__}") from None
    if not isinstance(payload, dict):
        raise errors.InvalidRecord("the record is not a JSON object")
    for name in ("input", "generated_items"):
        if not isinstance(payload.get(name, []), list):
            raise errors.InvalidRecord(f"the record's {name!r} is not a list")
    if not isinstance(payload.get("terminal_metadata", {}), dict):
        raise errors.InvalidRecord("the record's 'terminal_metadata' is not an object")
    return payload


def map_strings(line: str, change: Callable[[str], str]) -> str:
    """`line` with every JSON string (keys too) passed through `change`; no other byte differs.

    A string that `change` leaves alone keeps its original spelling.
    """

    def one(match: re.Match[str]) -> str:
        literal = match.group()
        try:
            text = json.loads(literal, strict=False)
        except ValueError:
            return literal
        changed = change(text)
        return literal if changed == text else json.dumps(changed)

    return _STRING.sub(one, line)
