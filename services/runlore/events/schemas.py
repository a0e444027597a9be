"""The published contract: JSON Schemas, golden samples, AsyncAPI and OpenAPI, from the models, the map, the routes.

    python -m runlore.events.schemas [FOLDER]          # write them (default: schemas)
    python -m runlore.events.schemas --check [FOLDER]  # exit 1 and name each file that is not current

Whatever a schema accepts, the models accept too (a test tries it), so the rules that the models keep in code
(names, ids, one record) are said here as patterns; only half a surrogate pair in an id is left to them. The
other way round the models are more lenient: they turn `"1"` into 1, and a schema does not say so.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runlore import __version__, errors
from runlore.events import envelope, models

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ASYNCAPI = "asyncapi.json"
OPENAPI = "openapi.json"
GOLDEN = "golden"
BINDING_VERSION = "0.5.0"
"""Of AsyncAPI's Kafka bindings."""

# `$(?!\n)`: Python's `$` also matches before a last newline, and JSON Schema's does not.
_NAME = {
    "maxLength": 63,
    "pattern": (
        r"^(?!rl-)(?!(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$))[a-z0-9]([a-z0-9._-]*[a-z0-9_-])?$(?!\n)"
    ),
}
# No control characters, and no path that climbs.
_ID = {"maxLength": 1024, "pattern": r"^(?!(.*[/\\])?\.\.([/\\]|$))[^\x00-\x1f\x7f]*$(?!\n)"}
_DIR = {"pattern": r"^(?!\.{1,2}(/|$))[^/\\\x00]+(/(?!\.{1,2}(/|$))[^/\\\x00]+)*$(?!\n)"}
_NOT_BLANK = {"allOf": [{"pattern": r"\S"}]}

# What the validators of `events.models` check in code, by model and field.
_RULES: dict[str, dict[str, dict[str, Any]]] = {
    "RunCompleted": {
        "project": _NAME,
        "memory": _NAME,
        "run_id": {**_ID, **_NOT_BLANK},
        **dict.fromkeys(
            ("conversation_id", "session_id", "group_id", "subject", "parent_run_id", "resumed_from"), _ID
        ),
        "record": {"type": ["string", "object", "null"]},
    },
    "MemoryEdited": {
        "project": _NAME,
        "memory": _NAME,
        "run_id": {**_ID, **_NOT_BLANK},
        "edit_id": {**_ID, **_NOT_BLANK},
        **dict.fromkeys(("conversation_id", "session_id", "group_id", "subject"), _ID),
    },
    "EditedFile": {"base_sha256": {"pattern": r"^[0-9a-f]{64}$(?!\n)"}},
    "Layout": {"memories_dir": _DIR, "sessions_dir": _DIR},
    "Workspace": {
        "agent": _ID,
        "snapshot": {"pattern": r"^[0-9a-f]{64}/[0-9a-f]{64}$(?!\n)"},
    },
    "WorkspaceBase": {"snapshot": {"pattern": r"^[0-9a-f]{64}(/[0-9a-f]{64})?$(?!\n)"}},
}
_PATHS = ("MEMORY.md", "memory_summary.md")
_SOURCES = {"snapshot": "string", "archive": "object", "folder": "string"}
_ONE_SOURCE = [
    {
        "required": [one],
        "properties": {name: {"type": kind if name == one else "null"} for name, kind in _SOURCES.items()},
    }
    for one in _SOURCES
]
_ONE_TEXT = [
    {
        "required": [one],
        "properties": {one: {"type": kind}, other: {"type": "null"}},
    }
    for one, kind, other in (("text", "string", "text_claim"), ("text_claim", "object", "text"))
]
_ONE_RECORD = [
    {
        "required": [one],
        "properties": {one: {"type": kinds}, other: {"type": "null"}},
    }
    for one, kinds, other in (
        ("record", ["string", "object"], "record_claim"),
        ("record_claim", ["object"], "record"),
    )
]


@functools.cache
def documents() -> dict[str, str]:
    """Every published file: its path below `schemas/` → its text."""
    out = {f"{name}.json": _text(event_schema(name)) for name in models.DATA_BY_TYPE}
    out |= {f"{GOLDEN}/{name}.json": _text(_golden(name)) for name in models.DATA_BY_TYPE}
    out[ASYNCAPI] = _text(asyncapi())
    out[OPENAPI] = _text(openapi())
    return out


def openapi() -> dict[str, Any]:
    """The OpenAPI document of the lookup service, which its routes make. Needs `runlore[server]`."""
    from runlore.lookup.http import app

    return app.openapi()


def _text(document: Any) -> str:
    return json.dumps(document, indent=2) + "\n"


# --- JSON Schema ------------------------------------------------------------------------------------------


def event_schema(event_type: str) -> dict[str, Any]:
    """The JSON Schema of one event type's data."""
    model = models.DATA_BY_TYPE[event_type]
    schema = model.model_json_schema()
    nested = schema.pop("$defs", {})
    for name, part in (*nested.items(), (model.__name__, schema)):
        _finish(part, name)
    if model is models.RunCompleted:
        schema["oneOf"] = _ONE_RECORD
        nested["Workspace"]["oneOf"] = _ONE_SOURCE
    if model is models.MemoryEdited:
        nested["EditedFile"]["oneOf"] = _ONE_TEXT
        # Two files, so two names: a schema can say no more simply that no file is named twice.
        one_each = [{"contains": {"properties": {"path": {"const": path}}}} for path in _PATHS]
        for part in one_each:
            part |= {"minContains": 0, "maxContains": 1}
        schema["properties"]["files"]["allOf"] = one_each
    stem, _dot, version = event_type.rpartition(".")
    head = {
        "$schema": DIALECT,
        "$id": f"urn:runlore:{stem.removeprefix('io.runlore.')}:{version}",
        "title": event_type,
        "description": schema.pop("description"),
    }
    schema.pop("title")
    return {**head, **schema, **({"$defs": nested} if nested else {})}


def _finish(part: dict[str, Any], model: str) -> None:
    """Field docs and rules in; the titles and null defaults that pydantic makes up, out."""
    docs = field_docs(getattr(models, model))
    for name, field in part.get("properties", {}).items():
        field.pop("title", None)
        if field.get("default", ...) is None:
            del field["default"]
        kinds = [option.get("type") for option in field.get("anyOf", ())]
        if kinds and all(kinds) and all(len(option) == 1 for option in field["anyOf"]):
            del field["anyOf"]
            field["type"] = kinds
        field.update(_RULES.get(model, {}).get(name, {}))
        if name in docs:
            field["description"] = docs[name]


def field_docs(model: type) -> dict[str, str]:
    """The sentence below each field of a model, from its source: pydantic would read it at every start."""
    body = ast.parse(inspect.getsource(model)).body[0].body  # type: ignore[attr-defined]
    return {
        field.target.id: inspect.cleandoc(doc.value.value)
        for field, doc in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(doc, ast.Expr)
        and isinstance(doc.value, ast.Constant)
        and isinstance(doc.value.value, str)
    }


# --- golden samples ---------------------------------------------------------------------------------------

_RECORD = (
    '{"updated_at":"2026-09-01T09:00:00.120000+00:00","rollout_id":"conv-1",'
    '"input":[{"content":"Caf\\u00e9 \\u2028 \\ud83d\\ude00","role":"user"}],"generated_items":[],'
    '"terminal_metadata":{"terminal_state":"completed","exception_type":null,"exception_message":null,'
    '"has_final_output":true},"final_output":"done"}'
)
_TIME = "2026-09-01T09:00:01.000000+00:00"
_SHA = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_SNAPSHOT = "4355a46b19d348dc2f57c046f8ef63d4538ebb936000f3c9ee954a27460dd865"
_MINIMAL = {"project": "acme", "memory": "support", "run_id": "run-1", "record": _RECORD}

_RUNS: dict[str, dict[str, Any]] = {
    "minimal": _MINIMAL,
    "record as an object": {**_MINIMAL, "record": json.loads(_RECORD)},
    "claim": {
        "project": "acme",
        "memory": "support",
        "session_id": "s-1",
        "run_id": "run-2",
        "record_claim": {"sha256": _SHA, "size": 4},
    },
    "ids that are not file-safe": {
        **_MINIMAL,
        "conversation_id": "user:42@example.com",
        "run_id": "Läufe/7",
        "subject": "ana@example.com",
    },
    "all fields": {
        "project": "acme",
        "memory": "support",
        "layout": {"memories_dir": "agent/memories", "sessions_dir": "agent/sessions"},
        "conversation_id": "conv-1",
        "session_id": "session-1",
        "group_id": "group-1",
        "run_id": "run-3",
        "attempt": 2,
        "subject": "ana",
        "agents": ["Front desk", "Billing"],
        "parent_run_id": "run-0",
        "resumed_from": "run-2",
        "record": _RECORD,
        "workspaces": [
            {
                "agent": "Billing",
                "snapshot": f"{_SNAPSHOT}/{_SHA}",
                "base": {"counter": 3, "snapshot": _SNAPSHOT},
            },
            {"archive": {"sha256": _SHA, "size": 4}},
            {"agent": "Front desk", "folder": "/srv/workspaces/run-3", "base": {"counter": 0}},
        ],
        "seed": "seed-1",
        "usage": {"requests": 3, "input_tokens": 1200, "output_tokens": 80, "total_tokens": 1280},
    },
    "unknown fields": {
        **_MINIMAL,
        "layout": {"memories_dir": "memories", "sessions_dir": "sessions", "x_summary_file": "s.md"},
        "x_team": {"name": "billing", "tags": ["a", "b"]},
    },
    "secrets hidden by the producer": {
        **_MINIMAL,
        "record": _RECORD.replace('"done"', '"done with [redacted:github-token:3f2504e04f89]"'),
        "received": "0cc175b9c0f1b6a831c399e269772661",
        "redacted": {"github-token": 1},
    },
}
_NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
_EDITS: dict[str, dict[str, Any]] = {
    "minimal": {
        "project": "acme",
        "memory": "support",
        "run_id": "run-1",
        "edit_id": "run-1-edit",
        "revision": 0,
        "files": [{"path": "MEMORY.md", "text": "- Caf\u00e9 opens at nine\n", "base_sha256": _NOTHING}],
    },
    "all fields": {
        "project": "acme",
        "memory": "support",
        "layout": {"memories_dir": "agent/memories", "sessions_dir": "agent/sessions"},
        "conversation_id": "conv-1",
        "session_id": "session-1",
        "group_id": "group-1",
        "run_id": "run-3",
        "edit_id": "run-3-edit",
        "subject": "ana",
        "agents": ["Billing"],
        "edited_at": "2026-09-01T09:00:00.500000+00:00",
        "seed": "seed-1",
        "revision": 7,
        "files": [
            {"path": "MEMORY.md", "text_claim": {"sha256": _SHA, "size": 4}, "base_sha256": _SHA},
            {"path": "memory_summary.md", "text": "", "base_sha256": _SHA},
        ],
    },
    "unknown fields": {
        "project": "acme",
        "memory": "support",
        "run_id": "run-1",
        "edit_id": "run-1-edit",
        "revision": 0,
        "files": [{"path": "MEMORY.md", "text": "- a\n", "base_sha256": _NOTHING, "x_mode": 420}],
        "x_team": "billing",
    },
    "secrets hidden by the producer": {
        "project": "acme",
        "memory": "support",
        "run_id": "run-1",
        "edit_id": "run-1-edit",
        "revision": 0,
        "files": [
            {
                "path": "MEMORY.md",
                "text": "- Push with [redacted:github-token:3f2504e04f89]\n",
                "base_sha256": _NOTHING,
                "received": _SHA,
            }
        ],
        "redacted": {"github-token": 1},
    },
}
_CHANGED: dict[str, dict[str, Any]] = {
    "minimal": {"kind": "mark", "project": "acme", "memory": "support"},
    "all fields": {
        "kind": "rollout",
        "project": "acme",
        "memory": "support",
        "rollout": "conv-1",
        "counter": 7,
    },
    "snapshot": {
        "kind": "snapshot",
        "project": "acme",
        "memory": "support",
        "rollout": "conv-1",
        "agent": "billing",
        "counter": 4,
    },
    "unknown fields": {
        "kind": "memory",
        "project": "acme",
        "memory": "support",
        "counter": 1,
        "x_reason": "revert",
    },
}
_DATA = {models.RUN_COMPLETED: _RUNS, models.MEMORY_EDITED: _EDITS, models.CHANGED: _CHANGED}


def _golden(event_type: str) -> dict[str, Any]:
    return {"type": event_type, "samples": list(_samples(event_type))}


def _samples(event_type: str) -> Iterator[dict[str, Any]]:
    """Every message of the golden file: binary mode, which re-encodes to the same bytes; one structured."""
    for name, data in _DATA[event_type].items():
        event = _event(event_type, data)
        yield {
            "name": name,
            "headers": {key: value.decode() for key, value in event.headers()},
            "value": event.value().decode(),
        }
    name, data = next(iter(_DATA[event_type].items()))
    event = _event(event_type, data)
    structured = {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "time": event.time,
        "datacontenttype": "application/json",
        "data": data,
    }
    yield {
        "name": f"{name}, structured mode",
        "headers": {"content-type": "application/cloudevents+json"},
        "value": envelope.dump(structured).decode(),
    }


def _event(event_type: str, data: dict[str, Any]) -> envelope.Event:
    if event_type == models.RUN_COMPLETED:
        event = envelope.of_run(data, source="/golden")
    elif event_type == models.MEMORY_EDITED:
        event = envelope.of_edit(data, source="/golden")
    else:
        event = envelope.changed(models.parse_data(models.Changed, data))
    extensions = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    return dataclasses.replace(event, time=_TIME, data=data, extensions=extensions)


# --- AsyncAPI ---------------------------------------------------------------------------------------------


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI 3.0 document: channels and operations from `pipeline`, messages from the models."""
    # The map stands above the contract and imports it; only this generator looks back.
    from runlore import pipeline

    schemas: dict[str, Any] = {}
    messages = {event_type: _message(event_type, schemas) for event_type in models.DATA_BY_TYPE}
    channels: dict[str, Any] = {}
    for topic in pipeline.TOPICS:
        names = topic.events or (topic.name,)
        if not topic.events:
            messages[topic.name] = {"title": topic.name, "description": topic.description, "payload": {}}
        channels[topic.name] = {
            "address": topic.name,
            "description": f"{topic.description} Key: {topic.key}.",
            "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
            "bindings": {"kafka": _topic_binding(topic)},
        }
    return {
        "asyncapi": "3.0.0",
        "id": "urn:runlore",
        "info": {
            "title": "Runlore",
            "version": __version__,
            "description": "Agent runs come in on `runs`; all else follows. CloudEvents 1.0, binary mode.",
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": dict(_operations(channels)),
        "components": {"messages": messages, "schemas": schemas},
    }


def _topic_binding(topic: Any) -> dict[str, Any]:
    return {
        "topic": topic.name,
        "partitions": topic.partitions,
        "topicConfiguration": {
            "cleanup.policy": [topic.cleanup],
            "retention.ms": topic.retention_hours * 3_600_000,
            "max.message.bytes": topic.message_bytes_max,
        },
        "bindingVersion": BINDING_VERSION,
    }


def _operations(channels: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    from runlore import pipeline

    for stage in pipeline.STAGES:
        if stage.reads in channels:
            receive = _operation("receive", stage.reads, channels)
            receive["summary"] = f"Effect: {stage.effect}."
            if stage.group:
                group = {"type": "string", "const": stage.group}
                receive["bindings"] = {"kafka": {"groupId": group, "bindingVersion": BINDING_VERSION}}
            yield stage.name, receive
        for name in stage.emits:
            yield f"{stage.name}.emits.{name}", _operation("send", name, channels)


def _operation(action: str, topic: str, channels: dict[str, Any]) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{topic}"},
        "messages": [{"$ref": f"#/channels/{topic}/messages/{name}"} for name in channels[topic]["messages"]],
    }


def _message(event_type: str, schemas: dict[str, Any]) -> dict[str, Any]:
    """One message. Its schema and its `$defs` go into `schemas`, as AsyncAPI's own dialect is draft 7."""
    text = json.dumps(event_schema(event_type)).replace("#/$defs/", "#/components/schemas/")
    schema = json.loads(text)
    schemas |= schema.pop("$defs", {})
    del schema["$schema"], schema["$id"]
    schemas[event_type] = schema
    attributes = {name: {"type": "string"} for name in ("id", "source", "time")}
    attributes |= {"specversion": {"const": "1.0"}, "type": {"const": event_type}}
    return {
        "name": event_type,
        "title": event_type,
        "summary": schema["description"],
        "contentType": "application/json",
        "headers": {
            "type": "object",
            "required": [f"ce_{name}" for name in ("specversion", "id", "source", "type")],
            "properties": {f"ce_{name}": kind for name, kind in attributes.items()},
        },
        "payload": {"$ref": f"#/components/schemas/{event_type}"},
    }


# --- writing ----------------------------------------------------------------------------------------------


def stale(folder: Path) -> list[str]:
    """What in `folder` is not what `documents` says: changed, missing, or of a type that is gone."""
    wanted = documents()
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.json")}
    changed = {
        name for name in wanted if name in found and (folder / name).read_text("utf-8") != wanted[name]
    }
    return sorted(changed | (found ^ wanted.keys()))


def write(folder: Path) -> None:
    for name, text in documents().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def main(arguments: list[str]) -> int:
    check = "--check" in arguments
    folder = Path(next((one for one in arguments if not one.startswith("-")), "schemas"))
    if not check:
        write(folder)
        return 0
    for name in stale(folder):
        print(f"{folder / name} is not current; run python -m runlore.events.schemas", file=sys.stderr)
    return errors.ProblemsFound.exit_code if stale(folder) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
