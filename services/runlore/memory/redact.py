"""Redaction: secrets out of records, and out of whatever a model or the rules write.

    shapes (ours) ─┐
    library        ┴─▶ hits ─▶ merged ─▶ `[redacted:<kind>]`, with a project's key `[redacted:<kind>:<hash>]`

The hash is an HMAC of the secret under the project's own key, so that equal secrets stay linkable inside a project
and nowhere else, and nobody without the key can try what a short one was. A record's line is searched as a whole,
with its strings decoded: the name of a field says what its value is. Only characters of strings change; a second
pass changes nothing, and placeholders of earlier versions stay as they are.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from runlore.events import records
from runlore.memory import detectors, shapes
from runlore.memory.detectors import Hit

SHAPES_VERSION = 3
"""Of `memory/shapes.py` and of what is done with its hits. Version 1 wrote placeholders without a hash; 3 knows
the keys of who administers."""
HASH_CHARS = 12
ROUNDS_MAX = 8
"""What a placeholder leaves beside it may match anew: where two tokens touched, or one hit lay over another."""

PLACEHOLDER = re.compile(r"\[redacted:([a-z0-9][a-z0-9-]{0,79})(?::([0-9a-f]{8,64}))?\]")
_DEFAULT = object()


@dataclass(frozen=True)
class Found:
    """A secret in a record's line, for whoever looks at what the rules do; never to be kept or logged."""

    kind: str
    text: str
    before: str


def rules() -> str:
    """The name of the rules that this process goes by, as records note it: `2`, or `2+kingfisher-1.5.0`."""
    library = detectors.library()
    return str(SHAPES_VERSION) if library is None else f"{SHAPES_VERSION}+{library.name}"


def line(record_line: str, key: bytes | None = None) -> tuple[str, dict[str, int]]:
    """`record_line` with every secret as a placeholder, and how many of each kind there were."""
    counts: Counter[str] = Counter()
    for _ in range(ROUNDS_MAX):
        view = records.decoded(record_line)
        hits = find(view)
        if not hits:
            break
        exact = records.exactly_decoded(record_line)
        hits = hits if exact == view else find(exact)
        changed = _put(record_line, hits, key, counts)
        if changed == record_line:
            break
        record_line = changed
    else:
        record_line = records.map_strings(record_line, lambda value: _each(value, key, counts))
    return record_line, dict(sorted(counts.items()))


def text(value: str, key: bytes | None = None) -> str:
    """`value` with every secret as a placeholder. For text that is no JSON."""
    return _each(value, key, Counter())


def counted_text(value: str, key: bytes | None = None) -> tuple[str, dict[str, int]]:
    """The same, and how many of each kind there were."""
    counts: Counter[str] = Counter()
    return _each(value, key, counts), dict(sorted(counts.items()))


def _each(value: str, key: bytes | None, counts: Counter[str]) -> str:
    for _ in range(ROUNDS_MAX):
        hits = find(value)
        if not hits:
            break
        value = _replace(value, hits, key, counts)
    return value


def inspect(record_line: str) -> list[Found]:
    """What would go from a line. It holds the secrets themselves."""
    view = records.decoded(record_line)
    return [
        Found(hit.kind, view[hit.start : hit.end], view[max(0, hit.start - 80) : hit.start])
        for hit in find(view)
    ]


def secrets(record_line: str, key: bytes | None) -> dict[str, str]:
    """Each secret in a line, and its placeholder: to hide it elsewhere too; never to be kept or logged."""
    view = records.exactly_decoded(record_line)
    found = {view[hit.start : hit.end]: hit.kind for hit in find(view)}
    return {one: placeholder(kind, one, key) for one, kind in found.items()}


def kind_of(held: str) -> str:
    """The kind that a placeholder tells."""
    match = PLACEHOLDER.fullmatch(held)
    return match.group(1) if match else "secret"


def find(value: str, library: object = _DEFAULT) -> list[Hit]:
    """Every secret in a text, in order and apart from each other."""
    hits = list(_of_shapes(value))
    used = detectors.library() if library is _DEFAULT else library
    if used is not None:
        places = [(hit.start, hit.end) for hit in hits if hit.kind == "url-credentials"]
        for hit in used.find(value):  # type: ignore[attr-defined]
            # Of a whole address only its password is a secret, and that we have.
            is_address = any(hit.start < at and to < hit.end for at, to in places)
            if not is_address and not shapes.is_placeholder(value[hit.start : hit.end]):
                hits.append(hit)
    return _apart(value, hits) if hits else []


def _of_shapes(value: str) -> Iterator[Hit]:
    """By the table, then by names. Earlier ones name the kind where two are the same secret."""
    small = shapes.folded(value)
    for kind, needles, pattern in shapes.PATTERNS:
        hay = value if kind not in shapes.FOLDED else small
        if hay is not None and not any(needle in hay for needle in needles):
            continue
        for match in pattern.finditer(value):
            parts = match.groupdict()
            start = match.end("keep") if parts.get("keep") is not None else match.start()
            end = match.start("tail") if parts.get("tail") is not None else match.end()
            if not shapes.is_placeholder(value[start:end]):
                yield Hit(start, end, kind)
    for start, end in shapes.named(value, small):
        yield Hit(start, end, "named-secret")


def _apart(value: str, hits: list[Hit]) -> list[Hit]:
    """Hits that overlap made one, of the first one's kind. What touches a placeholder is dropped, but a key's block."""
    old = [match.span() for match in PLACEHOLDER.finditer(value)]
    rank = {id(hit): number for number, hit in enumerate(hits)}
    merged: list[tuple[Hit, int]] = []
    for hit in sorted(hits, key=lambda one: (one.start, one.end)):
        if hit.kind != "private-key" and any(at < hit.end and hit.start < to for at, to in old):
            continue
        if merged and hit.start < merged[-1][0].end:
            last, order = merged[-1]
            kind = last.kind if order < rank[id(hit)] else hit.kind
            merged[-1] = (Hit(last.start, max(last.end, hit.end), kind), min(order, rank[id(hit)]))
        else:
            merged.append((hit, rank[id(hit)]))
    return [hit for hit, _ in merged]


def _put(record_line: str, hits: list[Hit], key: bytes | None, counts: Counter[str]) -> str:
    """The line with hits of its view replaced: each in the string in which it begins, and no further."""
    left = list(reversed(hits))
    shift = 0  # Characters by which the view is behind the line, up to here.
    out: list[str] = []
    done = 0
    for start, literal, value in records.literals(record_line):
        at = start - shift + 1
        end = at + len(value)
        shift += len(literal) - len(value) - 2
        mine: list[Hit] = []
        while left and left[-1].start < end:
            hit = left.pop()
            if hit.end > at:
                mine.append(Hit(max(hit.start, at) - at, min(hit.end, end) - at, hit.kind))
        if mine:
            out += [record_line[done:start], json.dumps(_replace(value, mine, key, counts))]
            done = start + len(literal)
    return "".join([*out, record_line[done:]])


def _replace(value: str, hits: list[Hit], key: bytes | None, counts: Counter[str]) -> str:
    out: list[str] = []
    done = 0
    for hit in hits:
        out += [value[done : hit.start], placeholder(hit.kind, value[hit.start : hit.end], key)]
        counts[hit.kind] += 1
        done = hit.end
    return "".join([*out, value[done:]])


def placeholder(kind: str, secret: str, key: bytes | None) -> str:
    """What stands for a secret. Spelling (escapes, white space in a key's block) does not change its hash."""
    if key is None:
        return f"[redacted:{kind}]"
    plain = "".join(secret.replace("\\n", "\n").replace("\\r", "\r").split())
    mac = hmac.digest(key, plain.encode("utf-8", "surrogatepass"), hashlib.sha256).hex()
    return f"[redacted:{kind}:{mac[:HASH_CHARS]}]"
