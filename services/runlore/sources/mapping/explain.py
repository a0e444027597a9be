"""A mapping told field by field on a sample: what each field gave, what is wrong with it, and what to write.

The same steps as mapping takes (`event.Reading`), each on its own, so that one that fails hides no other. What is
shown is redacted and short: a sample is somebody's conversation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from runlore import errors
from runlore.memory import redact
from runlore.sources.mapping import event, fields, objects

OK, WRONG, NOTE = "ok", "wrong", "note"
SHOWN_CHARS_MAX = 60
LARGE_BYTES = 4096
"""A part of a sample that no field reads is told from this size on, in bytes of JSON."""
LARGE_MAX = 3
TEXT_CHARS_MAX = 100
LIST_MAX = 3
_VARIES = re.compile(
    r"(^|_)(delivery|nonce|produced|published|ingest(ed|ion)?|sent|received|timestamp|now|offset)(_|$)", re.I
)
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d|\d{13,19}$")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@dataclass(frozen=True)
class Finding:
    """What one field gave: `ok`, `wrong`, or a `note` on one that the mapping does not state."""

    name: str
    state: str
    source: str
    value: str = ""
    problem: str = ""

    @property
    def line(self) -> str:
        """`chat.id → "c-981"`, or what is wrong."""
        return self.problem or f"{self.source} → {self.value}"


@dataclass
class Explained:
    """What a sample became, and every field of it."""

    findings: list[Finding] = field(default_factory=list)
    mapped: event.Mapped | None = None
    skipped: event.Skipped | None = None
    reason: str | None = None
    """The kind of the dead letter that the event would be."""
    document: Any = None

    @property
    def ok(self) -> bool:
        return self.reason is None


def explain(mapping: event.Mapping, given: fields.Given, fetch: objects.Fetch) -> Explained:
    """`given`, field by field. Nothing that it holds makes it raise."""
    out = Explained()
    reading = event.Reading(mapping, given, fetch)
    for name, step in reading.steps():
        source = _source(mapping, name)
        try:
            value = step()
        except event._Skip as exc:
            out.skipped = event.Skipped(exc.why)
            out.findings.append(Finding(name, NOTE, source, problem=_skipped(exc.why, source)))
            break
        except errors.RunloreError as exc:
            _wrong(out, name, source, exc)
        except Exception as exc:
            _wrong(out, name, source, errors.Unmappable(f"the mapping failed: {type(exc).__name__}"))
        else:
            if name != "decode":
                out.findings.append(_finding(mapping, name, source, value))
        if name == "decode" and out.reason:
            break
    out.document = reading.scope.document
    if out.ok and out.skipped is None:
        _build(out, mapping, given, fetch, reading)
    return out


def _build(
    out: Explained, mapping: event.Mapping, given: fields.Given, fetch: objects.Fetch, reading: event.Reading
) -> None:
    try:
        out.mapped = reading.build()
        # A function in the mapping could ask a clock or draw an id, and then no replay would be recognised.
        again = mapping.map(given, fetch)
    except errors.RunloreError as exc:
        _wrong(out, "event", "", exc)
    else:
        if isinstance(again, event.Skipped) or again.event.value() != out.mapped.event.value():
            told = errors.BadField(
                "the same message gave two events: a function of the mapping is not one of it alone"
            )
            _wrong(out, "event", "", told)


def _wrong(out: Explained, name: str, source: str, exc: errors.RunloreError) -> None:
    out.reason = out.reason or exc.kind
    hint = f"; {exc.hint}" if exc.hint else ""
    out.findings.append(Finding(name, WRONG, source, problem=f"{exc.message}{hint}"))


def _skipped(why: str, source: str) -> str:
    if why == event.TOMBSTONE:
        return "the message has no value (a tombstone): it is skipped"
    return f"{source} → false: the event is skipped"


def _source(mapping: event.Mapping, name: str) -> str:
    """Where the mapping finds a field, in its own words."""
    known = mapping.fields
    if name in ("project", "memory"):
        return getattr(mapping, name).source
    if name == "messages":
        places = [one.source for _, one in mapping.parts]
        holder = known.get("messages.object")
        return (f"{holder.source}: " if holder else "") + " + ".join(places)
    if name == "rollout":
        asked = [f"run.{one}" for one in event._ROLLOUT if f"run.{one}" in known]
        return ", ".join(known[one].source for one in asked) or "not mapped"
    if name in ("end", "usage"):
        return ", ".join(one.source for key, one in known.items() if key.startswith(f"{name}."))
    if name == "workspaces":
        return ", ".join(one.source for way in mapping.workspaces for one in way.values())
    found = known.get(f"run.{name}") or known.get(name)
    return (
        found.source
        if found
        else {"id": "where it stands", "run_id": "the event's id"}.get(name, "not mapped")
    )


def _finding(mapping: event.Mapping, name: str, source: str, value: Any) -> Finding:
    if name == "rollout" and value is None:
        return Finding(name, NOTE, source, problem="not mapped: each event is a rollout of its own")
    if name == "time" and "run.time" not in mapping.fields:
        return Finding(name, NOTE, source, problem="not mapped: it is when the bus took the event")
    if name == "end" and value is None:
        return Finding(name, NOTE, source, problem=f"{source} says nothing: the agent's last act decides")
    if name == "messages":
        return Finding(name, OK, source, _conversation(value))
    return Finding(name, OK, source, shown(value))


def _conversation(messages: list[dict[str, Any]]) -> str:
    calls = sum(len(one.get("tool_calls") or ()) for one in messages)
    roles = [one["role"] for one in messages if not one.get("tool_calls")]
    parts = [f"{roles.count('user')} of the user", f"{roles.count('assistant')} of the assistant"]
    return f"{len(messages)} messages: {', '.join(parts)}, {calls} calls, {roles.count('tool')} outputs"


def shown(value: Any) -> str:
    """A value in one short line, redacted."""
    text = redact.text(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= SHOWN_CHARS_MAX else f"{text[: SHOWN_CHARS_MAX - 2]} …"


def shortened(mapped: event.Mapped) -> dict[str, Any]:
    """The event to look at: its record opened, long texts and lists cut, secrets redacted."""
    data = {**mapped.event.data, "record": json.loads(mapped.event.data["record"])}
    whole = {"id": mapped.event.id, "source": mapped.event.source, "type": mapped.event.type}
    return _cut({**whole, "time": mapped.event.time, "data": data})


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        text = redact.text(value)
        return (
            text if len(text) <= TEXT_CHARS_MAX else f"{text[:TEXT_CHARS_MAX]} … ({len(text):,} characters)"
        )
    if isinstance(value, dict):
        return {name: _cut(one) for name, one in value.items()}
    if isinstance(value, list):
        more = [f"… {len(value) - LIST_MAX} more"] if len(value) > LIST_MAX else []
        return [*(_cut(one) for one in value[:LIST_MAX]), *more]
    return value


# --- warnings ----------------------------------------------------------------------------------------------


def warnings(mapping: event.Mapping, samples: Sequence[Explained]) -> list[str]:
    """What works, and may still not be meant. In the order in which it matters."""
    found = [
        *_ids(mapping, samples),
        *_empty(samples),
        *_secrets(samples),
        *_people(mapping),
        *_unread(mapping, samples),
    ]
    return list(dict.fromkeys(found))


def _ids(mapping: event.Mapping, samples: Sequence[Explained]) -> Iterator[str]:
    known = mapping.fields
    if "run.id" not in known and "run.run_id" not in known:
        yield (
            "neither run.id nor run.run_id is mapped: the event is named by topic/partition/offset, so one that its "
            "producer sends twice is two runs"
        )
    for name in ("run.id", "run.run_id", "run.rollout"):
        field = known.get(name)
        if field is None or not field.chains:
            continue
        last = field.chains[-1][-1] if field.chains[-1] else ""
        if _VARIES.search(_CAMEL.sub("_", last)):
            yield f"{name}: {field.source} sounds like something drawn at each delivery; a run needs the same id again"
        elif any(isinstance(one, str) and _TIME.match(one) for one in _given(samples, name)):
            yield f"{name}: {field.source} looks like a time; two runs of one moment would be one"
    yield from _doubles(samples)


def _given(samples: Sequence[Explained], name: str) -> list[Any]:
    made = [one.mapped for one in samples if one.mapped]
    values = {"run.id": lambda m: m.event.id, "run.run_id": lambda m: m.event.data["run_id"]}
    read = values.get(name, lambda m: m.event.data.get("conversation_id"))
    return [read(one) for one in made]


def _doubles(samples: Sequence[Explained]) -> Iterator[str]:
    """Samples that are one run by all they say, and two by their ids; and the other way round."""
    runs: dict[str, str] = {}
    records: dict[tuple[str, str, int], str] = {}
    for one in samples:
        if one.mapped is None:
            continue
        data = one.mapped.event.data
        record, run = data["record"], data["run_id"]
        if runs.setdefault(record, run) != run:
            yield "run.run_id: two samples say the same, and have two ids: is it drawn at each delivery?"
        identity = (f"{data['project']}/{data['memory']}", run, data["attempt"])
        if records.setdefault(identity, record) != record:
            yield "run.run_id: two samples with one id and attempt say different things: one will be a dead letter"


def _empty(samples: Sequence[Explained]) -> Iterator[str]:
    """Words and outputs that are empty: a sign that their text is not where the mapping looks."""
    for one in samples:
        if one.mapped is None:
            continue
        payload = json.loads(one.mapped.event.data["record"])
        said = [
            item["output"] if "output" in item else item["content"]
            for item in payload["input"] + payload["generated_items"]
            if "output" in item or "content" in item
        ]
        if empty := said.count(""):
            yield f"{empty} of {len(said)} messages and outputs are empty: is messages.text, or call.output, right?"


def _secrets(samples: Sequence[Explained]) -> Iterator[str]:
    for one in samples:
        if one.mapped is None:
            continue
        data = one.mapped.event.data
        for name in ("run_id", "conversation_id", "session_id", "group_id", "subject"):
            if name in data and redact.text(data[name]) != data[name]:
                yield f"{name} holds a secret; ids are kept as they are"
        _, kinds = redact.line(data["record"])
        if kinds:
            told = ", ".join(f"{kind} {count}" for kind, count in kinds.items())
            yield f"the messages hold secrets ({told}): they become placeholders before `runs`; your topic keeps them"


def _people(mapping: event.Mapping) -> Iterator[str]:
    if "run.subject" not in mapping.fields:
        yield "run.subject is not mapped: what is learnt about one person is shown to all"


def _unread(mapping: event.Mapping, samples: Sequence[Explained]) -> Iterator[str]:
    """Large parts of the samples that no field reads: often where the conversation really is."""
    chains = _read_chains(mapping)
    if chains is None:
        return
    sizes: dict[tuple[str, ...], int] = {}
    for one in samples:
        if one.skipped is None:
            for path, size in _large(one.document, (), chains):
                sizes[path] = max(size, sizes.get(path, 0))
    for path, size in sorted(sizes.items(), key=lambda item: -item[1])[:LARGE_MAX]:
        yield f"nothing reads {'.'.join(path)} ({size:,} bytes)"


def _read_chains(mapping: event.Mapping) -> list[tuple[str, ...]] | None:
    every = [*mapping.fields.values(), *(one for way in mapping.workspaces for one in way.values())]
    if "messages.object" not in mapping.fields:
        every += [one for _, one in mapping.parts]
    every += [choice.field for choice in (mapping.project, mapping.memory) if choice.field]
    if any(one.chains is None for one in every):
        return None
    return [chain for one in every for chain in one.chains or ()]


def _large(
    value: Any, path: tuple[str, ...], chains: Sequence[tuple[str, ...]]
) -> Iterator[tuple[tuple[str, ...], int]]:
    if any(path[: len(chain)] == chain for chain in chains):
        return
    on_the_way = [chain for chain in chains if chain[: len(path)] == path]
    if isinstance(value, dict) and on_the_way:
        for name, one in value.items():
            yield from _large(one, (*path, name), chains)
    elif path:
        size = len(json.dumps(value))
        if size >= LARGE_BYTES:
            yield tuple(redact.text(part)[:40] for part in path), size
