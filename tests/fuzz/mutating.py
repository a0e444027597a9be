"""Damage: valid bytes made into what a broken or hostile producer sends. One engine for hypothesis and for atheris.

Two levels. Bytes: cut off, flipped, doubled, spliced with others. Structure: JSON in which a value became another kind,
a name stands twice, a list is a thousand deep; also JSON that stands as a text within JSON, as a record does; tar
headers with any field and a checksum that fits, as random bytes never get past that.
"""

from __future__ import annotations

import gzip
import json
import zlib

CHANGES_MAX = 3
DEEP, TWICE = "@deep@", "@twice@"
ODD = (
    None, True, False, 0, 1, -1, 1.5, 2**31, 2**53, 2**63, 2**64, -(2**63) - 1, 10**30, 1e308, float("inf"),
    float("nan"), "", " ", "0", "-1", "1e999", "\x00", "\ud800", "\udc00x", "\u2028", "..", "../x", "a/b",
    "/etc/passwd", "_dead",
    "A" * 5000, "a\nb", "\x1b[31m", "\u202e", "9" * 4000, "1970-01-01T00:00:00", "9999-12-31T23:59:59-14:00",
    "0001-01-01T00:00:00+14:00", [], {}, [[]], [None], {"": None}, {"a": {}}, DEEP, TWICE,
)  # fmt: skip
_INSERTED = (b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"{}", b"\\", b"\r\n")
_FIELDS = {
    "name": (0, 100), "mode": (100, 8), "size": (124, 12), "mtime": (136, 12), "type": (156, 1), "link": (157, 100),
    "magic": (257, 8), "prefix": (345, 155), "sparse": (386, 96),
}  # fmt: skip
_FIELD_VALUES = (
    b"", b"\0" * 12, b"7" * 12, b"\xff" * 12, b"\x80" + b"\0" * 10 + b"\x05", b"\x80" + b"\xff" * 11, b"-1",
    b"00000000010\0", b"../x", b"/etc/x", b"a/../../b", b"a\0b", b"\xed\xa0\x80", b".", b"./", b"//", b"C:\\x",
    b"%2e%2e",
    *(bytes([kind]) for kind in b"01234567xgLKSVMD\0Z"),
)  # fmt: skip


def mutate(dice, raw, others=(), kind="json"):
    """`raw` with one to three changes; `others` are valid samples to splice with. `dice` is like `random.Random`."""
    for _ in range(dice.randint(1, CHANGES_MAX)):
        ways = [_bytes, _splice]
        ways += [_json] * 6 if kind == "json" else [_tar] * 6 if kind == "tar" else []
        way = dice.choice(ways)
        raw = way(dice, raw, others)
    return raw


def _bytes(dice, raw, others):
    at = dice.randint(0, len(raw))
    end = min(len(raw), at + dice.choice((1, 2, 4, 16, 64, 512)))
    ways = {
        "cut": lambda: raw[:at],
        "behead": lambda: raw[at:],
        "drop": lambda: raw[:at] + raw[end:],
        "double": lambda: raw[:end] + raw[at:],
        "flip": lambda: raw[:at] + bytes(byte ^ (1 << dice.randint(0, 7)) for byte in raw[at:end]) + raw[end:],
        "fill": lambda: raw[:at] + dice.choice((b"\0", b"\xff", b"[", b'"', b"\n", b"9")) * (end - at) + raw[end:],
        "insert": lambda: raw[:at] + dice.choice(_INSERTED) + raw[at:],
    }  # fmt: skip
    return ways[dice.choice(sorted(ways))]()


def _splice(dice, raw, others):
    if not others:
        return raw
    other = dice.choice(others)
    return raw[: dice.randint(0, len(raw))] + other[dice.randint(0, len(other)) :]


# --- JSON -----------------------------------------------------------------------------------------------------


def _json(dice, raw, others):
    """A line that is JSON, changed within; other bytes where there is none."""
    lines = raw.split(b"\n")
    found = [at for at, line in enumerate(lines) if line[:1] in (b"{", b"[") and len(line) < 200_000]
    if not found:
        return _bytes(dice, raw, others)
    at = dice.choice(found)
    try:
        value = json.loads(lines[at])
    except (ValueError, RecursionError):
        return _bytes(dice, raw, others)
    lines[at] = dumped(_changed(dice, value), dice)
    return b"\n".join(lines)


def dumped(value, dice):
    """A value as JSON, with what no value can hold: nesting, and a name that stands twice."""
    raw = json.dumps(value, separators=(",", ":")).encode()
    depth = dice.choice((99, 101, 900, 100_000))
    raw = raw.replace(f'"{DEEP}"'.encode(), b"[" * depth + b"]" * depth)
    return raw.replace(f'"{TWICE}"'.encode(), b'{"a":1,"a":{"project":"other","project":2}}')


def _changed(dice, value):
    if isinstance(value, str):
        inner = _inside(value)
        if inner is not None and dice.randint(0, 2):
            return dumped(_changed(dice, inner), dice).decode()
        return dice.choice(ODD)
    if not isinstance(value, dict | list) or not value or dice.randint(0, 9) == 0:
        return dice.choice(ODD)
    if isinstance(value, list):
        return _changed_list(dice, value)
    name = dice.choice(sorted(value))
    out = dict(value)
    way = dice.randint(0, 7)
    if way == 0:
        del out[name]
    elif way == 1:
        out[dice.choice(("", "project", "\ud800", "x" * 300, "__class__", name.upper()))] = out[name]
    elif way == 2:
        out[name] = out[dice.choice(sorted(out))]
    else:
        out[name] = _changed(dice, out[name])
    return out


def _changed_list(dice, value):
    at = dice.randint(0, len(value) - 1)
    way = dice.randint(0, 7)
    if way == 0:
        return value[:at] + value[at + 1 :]
    if way == 1:
        return value[: at + 1] + value[at:]
    if way == 2:
        return [value[at]] * 200 if len(str(value[at])) < 300 else value[::-1]
    return [*value[:at], _changed(dice, value[at]), *value[at + 1 :]]


def _inside(text):
    """The JSON that a text holds, if it holds an object or a list."""
    if text[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


# --- tar ------------------------------------------------------------------------------------------------------


def _tar(dice, raw, others):
    """A header with another field and the checksum that goes with it; also within gzip."""
    if raw.startswith(b"\x1f\x8b"):
        try:
            return gzip.compress(_tar(dice, gzip.decompress(raw), others), 1, mtime=0)
        except (OSError, EOFError, ValueError, zlib.error):
            return _bytes(dice, raw, others)
    blocks = [at for at in range(0, len(raw) - 511, 512) if raw[at + 257 : at + 262] == b"ustar"]
    if not blocks:
        return _bytes(dice, raw, others)
    at = dice.choice(blocks)
    header = bytearray(raw[at : at + 512])
    start, size = _FIELDS[dice.choice(sorted(_FIELDS))]
    header[start : start + size] = dice.choice(_FIELD_VALUES)[:size].ljust(size, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % (sum(header) & 0o777777)
    body = raw[at + 512 :]
    if dice.randint(0, 3) == 0:
        body = _pax(dice, body)
    return raw[:at] + bytes(header) + body


def _pax(dice, body):
    """Records of an extended header that say something else, as long as they were."""
    for name in (b"path", b"size", b"mtime", b"linkpath", b"GNU.sparse.", b"SCHILY.xattr."):
        at = body.find(name)
        if at > 0 and dice.randint(0, 1):
            end = body.find(b"\n", at)
            value = dice.choice((b"-1", b"1e999", b"nan", b"../x", b"\xff", b"9" * 25, b"0,1,1,1", b""))
            return (
                body[: at + len(name)]
                + b"="
                + value.ljust(max(0, end - at - len(name) - 1), b"0")
                + body[end:]
            )
    return body
