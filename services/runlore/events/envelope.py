"""CloudEvents 1.0 on the bus: binary mode out, binary or structured in.

Binary mode (CloudEvents Kafka protocol binding §3.2): each attribute is a header `ce_<name>`, the data's
media type is `content-type`, the value is the data as JSON. Structured mode (§3.3) is accepted, because a
producer with nothing but `curl` can write it by hand.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

from runlore import clock, errors
from runlore.events import models, records

EVENT_BYTES_MAX = 1024 * 1024
"""Largest value of one message on the bus, in bytes (Kafka's default `message.max.bytes`)."""

ATTRIBUTES_BYTES_MAX = 32 * 1024
"""All attributes of an event together: each is a header of its message, and is kept with it."""

Headers = list[tuple[str, bytes]]
_STRUCTURED = "application/cloudevents+json"
_NAME = re.compile(r"[a-z0-9_]{1,64}", re.ASCII)
_REQUIRED = ("id", "source", "type", "specversion")


@dataclass(frozen=True)
class Event:
    """One event: the CloudEvents attributes and its data (any JSON, until a stage parses it)."""

    id: str
    source: str
    type: str
    data: Any
    time: str = ""
    extensions: dict[str, str] = field(default_factory=dict)

    def headers(self) -> Headers:
        """The binary-mode headers, in a fixed order."""
        attributes = {"specversion": "1.0", "id": self.id, "source": self.source, "type": self.type}
        if self.time:
            attributes["time"] = self.time
        attributes |= self.extensions
        out = [(f"ce_{name}", value.encode()) for name, value in attributes.items()]
        return [*out, ("content-type", b"application/json")]

    def value(self) -> bytes:
        """The binary-mode value: compact JSON, ASCII only."""
        return dump(self.data)


def dump(data: Any) -> bytes:
    """Compact ASCII JSON: what every value, head and manifest of Runlore is written as."""
    return json.dumps(data, separators=(",", ":")).encode("ascii")


def load(raw: bytes | str, what: str) -> Any:
    """JSON from untrusted bytes. Raises `errors.BadJson`; never a RecursionError or a UnicodeError."""
    try:
        if len(raw) > 2 * records.VALUES_MAX and records.has_too_many_values(_as_text(raw)):
            raise errors.BadJson(f"{what} holds more than {records.VALUES_MAX} values")
        return json.loads(raw)
    except (ValueError, RecursionError) as exc:
        reason = "nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        raise errors.BadJson(f"{what} is not valid JSON: {reason}") from None


def _as_text(raw: bytes | str) -> str:
    # What is no UTF-8 is refused by whoever parses it; here only commas and brackets count.
    return raw if isinstance(raw, str) else raw.decode("utf-8", "replace")


def strict(raw: bytes, what: str) -> Any:
    """JSON of an event, as RFC 8259 has it: what two readers could read differently is refused.

    So no name may stand twice in an object, and no number be none (`NaN`, `Infinity`, `1e999`). A record's own line, a
    text within the event, is kept as the SDK's readers take it. Raises `errors.BadJson`.
    """
    try:
        return json.loads(raw, parse_constant=_number, parse_float=_number, object_pairs_hook=_object)
    except (ValueError, RecursionError) as exc:
        reason = "nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        raise errors.BadJson(f"{what} is not valid JSON: {reason}") from None


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("it holds a number that no JSON number is, or none that can be counted with")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def kept(raw: bytes | str) -> Any:
    """JSON from bytes that may be damaged: `ValueError` is all that it raises, also where it is nested too deeply."""
    try:
        return json.loads(raw)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse(headers: Headers, value: bytes | None) -> Event:
    """The event of one message. Raises a `Poison` that says what is wrong with it."""
    if value is None:
        raise errors.InvalidEvent("the message has no value (a tombstone)")
    if len(value) > EVENT_BYTES_MAX:
        raise errors.EventTooLarge(f"the event has {len(value)} bytes; the limit is {EVENT_BYTES_MAX}")
    named = {name.lower(): _text(name, raw) for name, raw in headers}
    if named.get("content-type", "").startswith(_STRUCTURED):
        return from_structured(strict(value, "the event"))
    attributes = {name[3:]: text for name, text in named.items() if name.startswith("ce_")}
    return _event(attributes, strict(value, "the event's data"))


def from_structured(document: Any) -> Event:
    """The event of a structured-mode JSON document."""
    if not isinstance(document, dict):
        raise errors.InvalidEvent("the event is not a JSON object")
    if "data" not in document:
        raise errors.InvalidEvent("the event has no data")
    attributes = {name: value for name, value in document.items() if name not in ("data", "datacontenttype")}
    wrong = [name for name, value in attributes.items() if not isinstance(value, str | int | bool)]
    if wrong:
        raise errors.InvalidEvent(f"attribute {wrong[0]!r} is not a string, a number or a boolean")
    return _event({name: str(value) for name, value in attributes.items()}, document["data"])


def of_run(data: dict[str, Any], *, source: str) -> Event:
    """The run-completed event for `data`. Its id is derived, so that sending it twice is one event."""
    identity = dump([data.get(name) for name in ("project", "memory", "run_id", "attempt")])
    body = dump([data.get("record"), data.get("record_claim")])
    event_id = hashlib.sha256(identity + b"\0" + body).hexdigest()[:32]
    return Event(event_id, source, models.RUN_COMPLETED, data, clock.now_iso())


def of_edit(data: dict[str, Any], *, source: str) -> Event:
    """The memory-edited event for `data`; its id is derived in the same way."""
    identity = dump([data.get(name) for name in ("project", "memory", "run_id", "edit_id")])
    body = dump([data.get("revision"), data.get("files")])
    event_id = hashlib.sha256(identity + b"\0" + body).hexdigest()[:32]
    return Event(event_id, source, models.MEMORY_EDITED, data, clock.now_iso())


def changed(data: models.Changed) -> Event:
    """The doorbell event for `data`."""
    body = data.model_dump(exclude_none=True)
    event_id = hashlib.sha256(dump(body)).hexdigest()[:32]
    return Event(event_id, "/runlore", models.CHANGED, body, clock.now_iso())


def _text(name: str, raw: bytes | None) -> str:
    try:
        return (raw or b"").decode("utf-8")
    except UnicodeDecodeError:
        raise errors.InvalidEvent(f"header {name!r} is not UTF-8") from None


def _event(attributes: dict[str, str], data: Any) -> Event:
    missing = [name for name in _REQUIRED if not attributes.get(name)]
    if missing:
        raise errors.InvalidEvent(
            f"the event has no {', '.join(missing)}",
            hint="a CloudEvents 1.0 event needs id, source, type and specversion (headers ce_…)",
        )
    if any(0xD800 <= ord(char) <= 0xDFFF for text in (*attributes, *attributes.values()) for char in text):
        raise errors.InvalidEvent("an attribute holds half a surrogate pair, which no header can carry")
    if wrong := [name for name in attributes if _NAME.fullmatch(name) is None]:
        # Headers are read whatever their case: `ID` would stand for `id`, and the event be another one on the bus.
        raise errors.InvalidEvent(
            f"{wrong[0][:64]!r} is no name of an attribute", hint="CloudEvents 1.0 takes a-z and 0-9"
        )
    size = sum(len(text.encode()) for pair in attributes.items() for text in pair)
    if size > ATTRIBUTES_BYTES_MAX:
        raise errors.EventTooLarge(
            f"the event's attributes have {size} bytes; the limit is {ATTRIBUTES_BYTES_MAX}"
        )
    if attributes["specversion"] != "1.0":
        raise errors.UnknownVersion(f"CloudEvents {attributes['specversion']!r} is not supported; 1.0 is")
    if records.is_too_deep(data):
        raise errors.BadJson(f"the event's data is nested more than {records.DEPTH_MAX} deep")
    known = {*_REQUIRED, "time"}
    return Event(
        id=attributes["id"],
        source=attributes["source"],
        type=attributes["type"],
        time=attributes.get("time", ""),
        data=data,
        extensions={name: value for name, value in attributes.items() if name not in known},
    )


def check_type(event: Event, *wanted: str) -> None:
    """Raises `errors.UnknownVersion` or `errors.UnknownType` unless `event` has one of the types `wanted`."""
    if event.type in wanted:
        return
    told = " or ".join(wanted)
    if event.type.rpartition(".v")[0] in {one.rpartition(".v")[0] for one in wanted}:
        raise errors.UnknownVersion(f"{event.type} is not a version that this Runlore reads ({told})")
    raise errors.UnknownType(f"no stage of this topic reads events of type {event.type!r}, only {told}")
