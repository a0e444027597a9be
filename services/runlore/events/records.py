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
from collections.abc import Callable, Iterator
from typing import Any

from runlore import errors

DEPTH_MAX = 100
"""Deepest nesting of lists and objects in an event or a record: what parses might not encode again."""

VALUES_MAX = 1_000_000
"""Most values (list items, members of objects) of a record or an event: two bytes of JSON can take 60 of memory."""

_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_decode = json.JSONDecoder(strict=False).decode
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"')
"""Possessive: with a choice for each character, a string of 60 MB took gigabytes to match."""
_STRUCTURE = re.compile(_STRING.pattern + r"|[,\[{]")
_ESCAPES = (
    ("\\n", "\n"),
    ('\\"', '"'),
    ("\\t", "\t"),
    ("\\r", "\r"),
    ("\\/", "/"),
    ("\\b", "\b"),
    ("\\f", "\f"),
)
_UNICODE = re.compile(r"(?:\\u[0-9a-fA-F]{4})+")


def received_hash(line: str) -> str:
    """The hash by which a run's sameness is judged: of the bytes as received, before any redaction.

    32 hex digits of SHA-256. The trailing newline and the spelling of non-ASCII characters (raw or escaped)
    do not count: one run may come once through a producer that escapes and once through one that does not.
    """
    return hashlib.sha256(to_ascii(line.rstrip("\r\n")).encode("ascii")).hexdigest()[:32]


def to_ascii(line: str) -> str:
    """`line` with every non-ASCII character as its JSON escape (a surrogate pair above U+FFFF)."""

    def escape(match: re.Match[str]) -> str:
        return json.dumps(match.group())[1:-1]

    return _NOT_ASCII.sub(escape, line)


def check(line: str) -> dict[str, Any]:
    """The record as a JSON object. Raises `errors.InvalidRecord`, `errors.RecordTooLarge`.

    It asks only for what memory needs: an object on one line whose `input` and `generated_items` are lists.
    """
    text = line.rstrip("\r\n")
    if "\n" in text or "\r" in text:
        raise errors.InvalidRecord("the record is more than one line")
    if has_too_many_values(text):
        raise errors.RecordTooLarge(f"the record holds more than {VALUES_MAX} values")
    try:
        payload = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise errors.InvalidRecord(f"the record is not valid JSON: {type(exc).__name__}") from None
    if not isinstance(payload, dict):
        raise errors.InvalidRecord("the record is not a JSON object")
    if is_too_deep(payload):
        raise errors.InvalidRecord(f"the record is nested more than {DEPTH_MAX} deep")
    for name in ("input", "generated_items"):
        if not isinstance(payload.get(name, []), list):
            raise errors.InvalidRecord(f"the record's {name!r} is not a list")
    if not isinstance(payload.get("terminal_metadata", {}), dict):
        raise errors.InvalidRecord("the record's 'terminal_metadata' is not an object")
    return payload


def has_too_many_values(line: str) -> bool:
    """Whether JSON holds more than `VALUES_MAX` values: asked before it is parsed and memory is taken for it."""
    if line.count(",") + line.count("[") + line.count("{") <= VALUES_MAX:
        return False
    # Most of those stand in texts, as a rule; only here it is worth looking.
    found = 0
    for match in _STRUCTURE.finditer(line):
        found += match.end() - match.start() == 1
        if found > VALUES_MAX:
            return True
    return False


def is_too_deep(value: Any) -> bool:
    """Whether `value` is nested more than `DEPTH_MAX` deep; level by level, so that no bomb goes off here."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEPTH_MAX):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def literals(line: str) -> Iterator[tuple[int, str, str]]:
    """Every JSON string of `line` (keys too): where it begins, as it is spelled, and what it says."""
    for match in _STRING.finditer(line):
        literal = match.group()
        try:
            yield match.start(), literal, _decode(literal) if "\\" in literal else literal[1:-1]
        except ValueError:
            yield match.start(), literal, literal[1:-1]


def decoded(line: str) -> str:
    """`line`, valid JSON, with every string decoded where it stands, inside its quotes: to search, not to parse.

    In valid JSON a backslash stands in strings alone, so this is a few replacements of the whole.
    """
    if "\\" not in line:
        return line
    if "\0" in line:
        return exactly_decoded(line)
    out = line.replace("\\\\", "\0")
    for escape, char in _ESCAPES:
        out = out.replace(escape, char)
    if "\\u" not in out:
        return out.replace("\0", "\\")
    # Apart from each other: what an escape means may be the character that stands for a backslash here.
    parts = [_UNICODE.sub(lambda match: _decode(f'"{match.group()}"'), part) for part in out.split("\0")]
    return "\\".join(parts)


def exactly_decoded(line: str) -> str:
    """What `decoded` gives, string by string: also for a line that is no valid JSON."""
    out: list[str] = []
    done = 0
    for start, literal, value in literals(line):
        if len(literal) != len(value) + 2:
            out += [line[done : start + 1], value]
            done = start + len(literal) - 1
    return "".join([*out, line[done:]])


def map_strings(line: str, change: Callable[[str], str]) -> str:
    """`line` with every JSON string (keys too) passed through `change`; no other byte differs.

    A string that `change` leaves alone keeps its original spelling.
    """

    def one(match: re.Match[str]) -> str:
        literal = match.group()
        try:
            text = _decode(literal) if "\\" in literal else literal[1:-1]
        except ValueError:
            return literal
        changed = change(text)
        return literal if changed == text else json.dumps(changed)

    return _STRING.sub(one, line)
