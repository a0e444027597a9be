"""JSON from bytes that nobody vouches for: what comes out is plain, not too deep, and can be written again.

Python's reader takes `NaN`, `Infinity` and `1e999`, which are no JSON and can not be written as such; they are read
as null. UTF-8 only: a guess at another encoding would be one more way to read the same bytes.
"""

from __future__ import annotations

import json
import math
from typing import Any

from runlore import errors
from runlore.events import records


def of_json(raw: bytes | str, what: str) -> Any:
    """The JSON value. Raises `errors.BadJson`."""
    try:
        text = raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw
        if records.has_too_many_values(text):
            raise errors.BadJson(f"{what} holds more than {records.VALUES_MAX} values")
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except UnicodeDecodeError as exc:
        raise errors.BadJson(f"{what} is not UTF-8 (byte {exc.start + 1})") from None
    except (ValueError, RecursionError) as exc:
        reason = "nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        raise errors.BadJson(f"{what} is not valid JSON: {reason}") from None
    if records.is_too_deep(value):
        raise errors.BadJson(f"{what} is nested more than {records.DEPTH_MAX} deep")
    return value


def of_json_or_lines(raw: bytes, what: str) -> Any:
    """One JSON value; or a list of them, one a line. Raises `errors.BadJson`."""
    try:
        return of_json(raw, what)
    except errors.BadJson:
        lines = [line for line in raw.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
        if len(lines) < 2:
            raise
        return [of_json(line, f"{what}, line {number}") for number, line in enumerate(lines, 1)]


def _no_number(_name: str) -> None:
    return None


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None
