"""Foreign events as teams really send them, and the mappings that read them: for every test of `sources.mapping`."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from runlore.sources.mapping import event, fields, file

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "sources"
ORDERS = tomllib.loads((EXAMPLES / "orders.toml").read_text("utf-8"))
SPANS = tomllib.loads((EXAMPLES / "spans.toml").read_text("utf-8"))
PLAIN = {"topic": "t", "project": "acme", "memory": "support"}


def order(**changes):
    """An event of the order desk."""
    return json.loads((EXAMPLES / "orders-sample.json").read_text("utf-8")) | changes


def span(**changes):
    """A span of OpenTelemetry's GenAI conventions, as a collector writes it to Kafka."""
    return json.loads((EXAMPLES / "spans-sample.json").read_text("utf-8")) | changes


def mapping(*tables, name="orders", **options):
    """A mapping of these tables, laid over one another."""
    merged = {}
    for table in tables:
        merged = {**merged, **table}
    return event.Mapping(file.parse(merged, name=name), **options)


def given(
    value, *, topic="shop.chat.closed", partition=0, offset=0, key=None, headers=(), time=1_770_000_000.0
):
    """A message of their topic; `value` as JSON, or as the bytes that it is."""
    raw = value if isinstance(value, bytes) or value is None else json.dumps(value).encode()
    return fields.Given(topic, partition, offset, key, raw, tuple(headers), time)


def mapped(made, value, fetch=event.no_objects, **where):
    """What a mapping makes of an event that it can map."""
    found = made.map(given(value, **where), fetch)
    assert isinstance(found, event.Mapped), found
    return found


def record(found):
    """The record in an event."""
    return json.loads(found.event.data["record"])


def items(made, value, **more):
    """Every item of the record."""
    payload = record(mapped(made, value, **more))
    return payload["input"] + payload["generated_items"]


def turns(*messages, **rules):
    """The items of a conversation of these messages, read by these rules."""
    return items(mapping(PLAIN, {"messages": {"at": "m", **rules}}), {"m": list(messages)})
