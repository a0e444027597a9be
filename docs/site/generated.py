"""Pages of the site that are made from the published contracts alone: events, routes, alerts.

They are made with each build and kept nowhere, so they can not be out of date.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("get", "post", "put", "delete")


def pages() -> dict[str, str]:
    """Each page's text by its path in the site."""
    return {"reference/events.md": events(), "reference/http.md": http(), "reference/alerts.md": alerts()}


def events() -> str:
    """Topics and events, of schemas/."""
    contract = _contract("asyncapi.json")
    out = [
        "# Events",
        "",
        "CloudEvents 1.0, in binary mode on Kafka (`ce_*` headers; the value is the data as JSON). Made of `schemas/`: "
        "`asyncapi.json`, a JSON Schema for each type, and samples. A field that a schema does not know is kept.",
        "",
        "## Topics",
        "",
        "| topic | holds | partitions | kept for | read by | written by |",
        "|---|---|---|---|---|---|",
    ]
    for name, channel in contract["channels"].items():
        kafka = channel["bindings"]["kafka"]
        hours = kafka["topicConfiguration"]["retention.ms"] // 3_600_000
        days = f"{hours // 24} day{'s' if hours > 24 else ''}"
        parties: dict[str, list[str]] = {"receive": [], "send": ["producers"] if name == "runs" else []}
        for stage, operation in contract["operations"].items():
            if operation["channel"]["$ref"] == f"#/channels/{name}":
                parties[operation["action"]].append(f"`{stage.split('.')[0]}`")
        shown = (", ".join(parties[one]) or "–" for one in ("receive", "send"))
        out.append(_row(f"`{name}`", channel["description"], kafka["partitions"], days, *shown))
    out += ["", "## Stages", "", "| stage | effect |", "|---|---|"]
    for stage, operation in contract["operations"].items():
        if operation["action"] == "receive":
            out.append(_row(f"`{stage}`", operation["summary"].removeprefix("Effect: ")))
    for path in sorted((ROOT / "schemas").glob("io.runlore.*.json")):
        schema = json.loads(path.read_text("utf-8"))
        whose = path.name.split(".")[3]
        out += ["", f"## {schema['title']}", "", schema.get("description", "")]
        out += _fields(schema, whose)
        for name, part in schema.get("$defs", {}).items():
            head = f"### {name} {{ #{_anchor(name, whose)} }}"
            out += ["", head, "", part.get("description", ""), *_fields(part, whose)]
        sample, *_ = json.loads((ROOT / "schemas/golden" / path.name).read_text("utf-8"))["samples"]
        out += ["", f"### A sample of {schema['title']}", "", "```json", json.dumps(sample, indent=2), "```"]
    return "\n".join(out) + "\n"


def http() -> str:
    """Every route with its parameters, body and answer, of schemas/openapi.json."""
    contract = _contract("openapi.json")
    out = [
        "# HTTP: every route",
        "",
        "Made of `schemas/openapi.json`, which a running service has at `/openapi.json`. What holds for all of them "
        "(keys, errors, ETags, pages, limits) is in docs/HTTP.md; what administers, in docs/ADMIN.md.",
    ]
    by_tag: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for path, operations in contract["paths"].items():
        for method in METHODS:
            if method in operations:
                by_tag.setdefault(operations[method]["tags"][0], []).append(
                    (method, path, operations[method])
                )
    for tag, routes in by_tag.items():
        out += ["", f"## {tag.capitalize()}"]
        for method, path, operation in routes:
            out += ["", f"### {operation['summary']}", "", f"`{method.upper()} {path}`"]
            out += _parameters(operation)
            out += _body(operation)
            out += _answers(operation)
    out += ["", "## Shapes"]
    for name, shape in sorted(contract["components"]["schemas"].items(), key=lambda one: _short(one[0])):
        out += [
            "",
            f"### {_short(name)} {{ #{_anchor(name)} }}",
            "",
            shape.get("description", ""),
            *_fields(shape),
        ]
    return "\n".join(out) + "\n"


def alerts() -> str:
    """Every alert, of infra/prometheus/alerts.yml."""
    found = yaml.safe_load((ROOT / "infra/prometheus/alerts.yml").read_text("utf-8"))
    out = [
        "# Alerts",
        "",
        "Made of `infra/prometheus/alerts.yml`. `page` wakes somebody, `ticket` waits for the morning. Each has a "
        "section in docs/OPERATIONS.md.",
        "",
        "| alert | severity | after | says |",
        "|---|---|---|---|",
    ]
    for group in found["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                place = rule["annotations"]["runbook_url"].removeprefix("docs/")
                summary = re.sub(
                    r"\{\{ *\$(?:labels\.)?(\w+)[^}]*\}\}", r"‹\1›", rule["annotations"]["summary"]
                )
                severity = f"`{rule['labels']['severity']}`"
                out.append(
                    _row(f"[{rule['alert']}](../{place})", severity, rule.get("for", "at once"), summary)
                )
    return "\n".join(out) + "\n"


def _contract(name: str) -> Any:
    return json.loads((ROOT / "schemas" / name).read_text("utf-8"))


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _short(name: str) -> str:
    """A shape's name without the module that two of them carry: its last parts tell them apart."""
    parts = name.split("__")
    return f"{parts[-1]} ({'administration' if 'organization' in name else 'lists'})" if parts[1:] else name


def _anchor(name: str, whose: str = "shape") -> str:
    return f"{whose}-" + re.sub(r"\W+", "-", _short(name).lower()).strip("-")


def _fields(schema: dict[str, Any], whose: str = "shape") -> list[str]:
    """An object's fields as a table."""
    if not schema.get("properties"):
        return []
    needed = schema.get("required", [])
    rows = [
        _row(
            f"`{name}`",
            _kind(one, whose),
            "yes" if name in needed else _default(one),
            one.get("description", ""),
        )
        for name, one in schema["properties"].items()
    ]
    return ["", "| field | type | needed | meaning |", "|---|---|---|---|", *rows]


def _default(schema: dict[str, Any]) -> str:
    default = schema.get("default")
    return f"else `{json.dumps(default)}`" if default not in (None, [], {}) else "no"


def _kind(schema: dict[str, Any], whose: str = "shape") -> str:
    """A type in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{_short(name)}](#{_anchor(name, whose)})"
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return " or ".join(f"`{one}`" for one in schema["enum"])
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(_kind(one, whose) for one in schema[several]))
    kind = schema.get("type", "anything")
    kinds = kind if isinstance(kind, list) else [kind]
    if "items" in schema:
        kinds = [f"list of {_kind(schema['items'], whose)}" if one == "array" else one for one in kinds]
    return " or ".join(kinds) + _bounds(schema)


def _bounds(schema: dict[str, Any]) -> str:
    told = [
        f"{words} {schema[name]:,}"
        for name, words in (("minimum", "at least"), ("maximum", "at most"), ("maxLength", "at most"))
        if isinstance(schema.get(name), int | float)
    ]
    unit = " characters" if "maxLength" in schema else ""
    return f" ({', '.join(told)}{unit})" if told else ""


def _parameters(operation: dict[str, Any]) -> list[str]:
    rows = [
        _row(
            f"`{one['name']}`",
            one["in"],
            _kind(one["schema"]),
            "yes" if one.get("required") else _default(one["schema"]),
            one.get("description", ""),
        )
        for one in operation.get("parameters", [])
    ]
    head = ["", "| parameter | in | type | needed | meaning |", "|---|---|---|---|---|"]
    return [*head, *rows] if rows else []


def _body(operation: dict[str, Any]) -> list[str]:
    body = operation.get("requestBody")
    if not body:
        return []
    told = body.get("description", "")
    out = ["", f"Body: {', '.join(f'`{kind}`' for kind in body['content'])}. {told}".rstrip()]
    for one in body["content"].values():
        schema = one.get("schema", {})
        out += _fields(schema) or (["", f"It is {_kind(schema)}."] if "$ref" in schema else [])
    return out


def _answers(operation: dict[str, Any]) -> list[str]:
    out = [""]
    for status, one in operation["responses"].items():
        if status == "4XX":  # The same for all.
            continue
        shapes = [
            f"`{kind}`" + (f", {_kind(what['schema'])}" if what.get("schema", {}).get("$ref") else "")
            for kind, what in one.get("content", {}).items()
        ]
        out.append(f"- **{status}**: {one['description']} {' or '.join(shapes)}".rstrip())
    return out
