"""A message of their topic becomes a run-completed event: a function of the message, byte for byte.

No clock and no drawn id: an event without an id of its own is named by where it stands, one without a time by when
the bus took it. So a redelivery, `--from-beginning` and a redrive give the same event again, and the record stage
knows it. An object that the event points to is read as it is: it should not change.

Each step reads one thing of the event and can be told on its own (`explain`). A step fails with a `Poison`, which is
a dead letter with that reason; only what lies outside (an object, a registry) may fail for a while.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable
from collections.abc import Mapping as MappingOf
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runlore import errors
from runlore.events import envelope, ids, models, records
from runlore.sources import chat, items, payloads
from runlore.sources.mapping import document, fields, file, objects, turns

FILTERED, TOMBSTONE = "filtered", "tombstone"

_ROLLOUT = ("rollout", "conversation_id", "session_id", "group_id")
_PEOPLE = ("subject", "parent_run_id", "resumed_from", "seed")
_STATES = {
    **{state: state for state in payloads.TERMINAL_STATES},
    **dict.fromkeys(
        ("complete", "done", "success", "succeeded", "successful", "ok", "finished"), payloads.COMPLETED
    ),
    **dict.fromkeys(("error", "errored", "failure", "crashed"), payloads.FAILED),
    **dict.fromkeys(("canceled", "aborted"), payloads.CANCELLED),
}
"""Words for how a run ended that mean one thing."""
_PLAIN_PATH = re.compile(r"[\w.\"\[\]-]+")
NAMES_MAX = 200
"""Names of an object that are looked at for one that may have been meant."""
DIGITS_MAX = 19
"""Digits of a number that stands in a text; nanoseconds since 1970 have 19."""


@dataclass(frozen=True)
class Mapped:
    """What became of a message: the event with its record in it, and bytes that its claims name."""

    event: envelope.Event
    project: str
    memory: str
    rollout: str
    """Alias."""
    claims: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """A message that is no run: `filtered` by the mapping's `where`, or a `tombstone`."""

    why: str


class _Skip(Exception):
    def __init__(self, why: str) -> None:
        self.why = why


class Mapping:
    """A mapping file, ready to map. It keeps no state: any thread may use it."""

    def __init__(
        self, said: file.MappingFile, *, project: str | None = None, memory: str | None = None
    ) -> None:
        """Raises `errors.BadMapping`, or `errors.InvalidId` for a project or memory that is not a name."""
        self.said = said
        self.name, self.topic = said.name, said.topic
        self.project = _choice("project", project or said.project)
        self.memory = _choice("memory", memory or said.memory)
        self.decode = fields.function("decode", said.decode) if said.decode else None
        self.fields = _fields(said)
        self.parts = [(part.role, fields.of("messages.at", part.at)) for part in said.messages.at]
        self.rules = _rules(said.messages)
        self.workspaces = [
            {name: fields.of(f"workspaces.{name}", way) for name, way in _given(one)}
            for one in said.workspaces
        ]
        taken = [name for name in _ROLLOUT[:2] if f"run.{name}" in self.fields]
        if len(taken) > 1:
            raise errors.BadMapping("run.rollout and run.conversation_id say the same; keep one")

    @property
    def group(self) -> str:
        """The consumer group that reads the topic."""
        return f"source-{self.name}"

    @property
    def event_source(self) -> str:
        """The events' CloudEvents source."""
        return f"/runlore/source/{self.name}"

    def map(self, given: fields.Given, fetch: objects.Fetch) -> Mapped | Skipped:
        """The event that `given` becomes. Blocking where it points to an object.

        Raises `errors.Poison` for an event that can not become one; `errors.Retryable` or `errors.Blocked` where
        what lies outside of it fails.
        """
        reading = Reading(self, given, fetch)
        try:
            for _, step in reading.steps():
                step()
            return reading.build()
        except _Skip as exc:
            return Skipped(exc.why)
        except errors.RunloreError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as exc:
            # What nobody thought of must not stop a topic, nor be lost.
            raise errors.Unmappable(f"the mapping failed on this event: {type(exc).__name__}") from exc


def load(path: Path, *, project: str | None = None, memory: str | None = None) -> Mapping:
    """The mapping in the file `path`; `project` and `memory` in place of the file's.

    Raises `errors.NotFound`, `errors.BadMapping`, `errors.InvalidId`.
    """
    fields.importable_from(path.parent)
    return Mapping(file.read(path), project=project, memory=memory)


def no_objects(_url: str, _bytes_max: int) -> bytes:
    """A fetch where nothing may be fetched."""
    raise errors.ObjectRefused("objects are not read here")


# --- from the file ------------------------------------------------------------------------------------------


def _given(table: Any) -> list[tuple[str, Any]]:
    return [(name, way) for name in type(table).model_fields if (way := getattr(table, name)) is not None]


def _fields(said: file.MappingFile) -> dict[str, fields.Field]:
    out = {f"run.{name}": fields.of(f"run.{name}", way) for name, way in _given(said.run)}
    out |= {f"usage.{name}": fields.of(f"usage.{name}", way) for name, way in _given(said.usage)}
    out |= {
        f"end.{name}": fields.of(f"end.{name}", way) for name, way in _given(said.end) if name != "states"
    }
    if said.where is not None:
        out["where"] = fields.of("where", said.where)
    if said.messages.object is not None:
        out["messages.object"] = fields.of("messages.object", said.messages.object)
    return out


def _rules(said: file.Messages) -> turns.Rules:
    def reader(name: str, way: str | None) -> Callable[[Any], Any] | None:
        if way is None:
            return None
        read = fields.of(f"messages.{name}", way)
        nowhere = fields.Given("", 0, 0, None, None)
        return lambda message: read.value(fields.Scope(nowhere, message))

    call = said.call
    return turns.Rules(
        role=reader("role", said.role),
        text=reader("text", said.text),
        calls=reader("calls", said.calls),
        call_id=reader("call.id", call.id),
        call_name=reader("call.name", call.name),
        call_arguments=reader("call.arguments", call.arguments),
        call_output=reader("call.output", call.output),
        roles=dict(said.roles),
    )


@dataclass(frozen=True)
class Choice:
    """Which project or memory: one, or one of those that are allowed."""

    name: str
    fixed: str | None
    field: fields.Field | None = None
    allowed: MappingOf[str, str] | None = None

    @property
    def source(self) -> str:
        return self.field.source if self.field else "as the mapping says"

    def value(self, scope: fields.Scope) -> str:
        if self.field is None or self.allowed is None:
            assert self.fixed is not None
            return self.fixed
        found = self.field.value(scope)
        if found is None:
            raise errors.MissingField(absent(self.field, scope))
        known = self.allowed.get(str(found)) if isinstance(found, str | int) else None
        if known is None:
            raise errors.NotAllowed(
                f"{self.field.source} names a {self.name} that {self.name}.allowed does not list"
            )
        return known


def _choice(name: str, said: Any) -> Choice:
    if said is None:
        raise errors.BadMapping(
            f"`{name}` is missing",
            hint=f'{name} = "…" in the mapping, or --{name}; never from the event unless listed',
        )
    if isinstance(said, str):
        return Choice(name, ids.check_name(said, name))
    for one in said.allowed.values():
        ids.check_name(one, name)
    return Choice(name, None, fields.of(f"{name}.at", said.at), said.allowed)


# --- from the event -----------------------------------------------------------------------------------------


class Reading:
    """One message being mapped: each step reads one thing, `build` makes the event of what they read."""

    def __init__(self, mapping: Mapping, given: fields.Given, fetch: objects.Fetch) -> None:
        self.mapping, self.given, self._fetch = mapping, given, fetch
        self.scope = fields.Scope(given, None)
        self.data: dict[str, Any] = {}
        self.time: str | None = None
        self.event_id = given.place
        self.chat: list[dict[str, Any]] = []
        self.final: Any = None
        self.terminal: dict[str, Any] | None = None
        self._claims: list[bytes] = []

    def steps(self) -> list[tuple[str, Callable[[], Any]]]:
        """Every step by the name under which it is told, in order; each gives the value that it read."""
        known = self.mapping.fields
        out: list[tuple[str, Callable[[], Any]]] = [("decode", self._decode)]
        if "where" in known:
            out.append(("where", self._where))
        out += [("project", self._project), ("memory", self._memory)]
        out += [("id", self._id), ("rollout", self._rollout), ("run_id", self._run_id)]
        out += [("attempt", self._attempt)] if "run.attempt" in known else []
        out += [(name, self._person(name)) for name in _PEOPLE if f"run.{name}" in known]
        out += [("agents", self._agents)] if "run.agents" in known else []
        out += [("time", self._time), ("messages", self._messages)]
        if any(name.startswith("end.") for name in known):
            out.append(("end", self._end))
        if any(name.startswith("usage.") for name in known):
            out.append(("usage", self._usage))
        if self.mapping.workspaces:
            out.append(("workspaces", self._workspaces))
        return out

    def build(self) -> Mapped:
        """The event, once every step was taken. Raises `errors.Poison`."""
        data = dict(self.data)
        rollout = ids.resolve_rollout(
            conversation_id=data.get("conversation_id"),
            session_id=data.get("session_id"),
            group_id=data.get("group_id"),
            run_id=data["run_id"],
        )
        named = next((data[name] for name in _ROLLOUT[1:] if name in data), "")
        try:
            transcript = chat.transcribe(self.chat, named)
        except errors.InvalidRecord as exc:
            raise errors.BadMessages(exc.message) from None
        payload = chat.payload_of(
            transcript,
            updated_at=self.time or payloads.UNKNOWN_TIME,
            rollout_id=rollout.alias,
            terminal=self._terminal(transcript),
            final_output=self.final,
        )
        record = payloads.dump(payload).removesuffix("\n")
        if len(record) > models.RECORD_BYTES_MAX:
            raise errors.RecordTooLarge(
                f"the record has {len(record)} bytes; at most {models.RECORD_BYTES_MAX} are accepted"
            )
        records.check(record)
        speakers = chat.speakers(self.chat)
        if speakers and "agents" not in data:
            data["agents"] = speakers
        data["layout"] = self.mapping.said.layout.model_dump()
        data["record"] = record
        models.run_completed(data)
        ids.check_id(self.event_id, "the event's id")
        event = envelope.Event(
            self.event_id, self.mapping.event_source, models.RUN_COMPLETED, data, self.time or ""
        )
        return Mapped(event, data["project"], data["memory"], rollout.alias, tuple(self._claims))

    def _terminal(self, transcript: items.Transcript) -> dict[str, Any] | None:
        """How the run ended, where the mapping says it; a completed one ends with the agent's last word."""
        if self.terminal is None:
            return None
        if self.final is None and self.terminal["terminal_state"] == payloads.COMPLETED:
            self.final = transcript.last_word()
        return {**self.terminal, "has_final_output": self.final is not None}

    # --- one step each ----------------------------------------------------------------------------------------

    def _decode(self) -> Any:
        given = self.given
        if given.value is None:
            raise _Skip(TOMBSTONE)
        if self.mapping.decode is None:
            found = document.of_json(given.value, "the event")
        else:
            said = self.mapping.said.decode or ""
            try:
                found = fields.plain(
                    fields.call(said, self.mapping.decode, given.value, dict(given.headers)), "the event"
                )
            except errors.BadField as exc:
                raise errors.Undecodable(exc.message) from exc
        self.scope = fields.Scope(given, found)
        return found

    def _where(self) -> bool:
        found = self.mapping.fields["where"].value(self.scope)
        # JMESPath's own idea of what is true: not null, false, or empty.
        if found is None or found is False or found in ("", [], {}):
            raise _Skip(FILTERED)
        return True

    def _project(self) -> str:
        self.data["project"] = self.mapping.project.value(self.scope)
        return self.data["project"]

    def _memory(self) -> str:
        self.data["memory"] = self.mapping.memory.value(self.scope)
        return self.data["memory"]

    def _id(self) -> str:
        self.event_id = self._named("run.id") or self.given.place
        return self.event_id

    def _rollout(self) -> str | None:
        asked = [name for name in _ROLLOUT if f"run.{name}" in self.mapping.fields]
        for name in asked:
            if (found := self._named(f"run.{name}")) is not None:
                self.data["conversation_id" if name == "rollout" else name] = found
        named = next((self.data[name] for name in _ROLLOUT[1:] if name in self.data), None)
        if asked and named is None:
            raise errors.MissingRollout(absent(self.mapping.fields[f"run.{asked[0]}"], self.scope))
        return named

    def _run_id(self) -> str:
        found = self._named("run.run_id")
        if found is None and "run.run_id" in self.mapping.fields:
            raise errors.MissingField(absent(self.mapping.fields["run.run_id"], self.scope))
        self.data["run_id"] = found or self.event_id
        self.data["attempt"] = 1
        return self.data["run_id"]

    def _attempt(self) -> int:
        found = self._whole("run.attempt")
        self.data["attempt"] = 1 if found is None else found
        return self.data["attempt"]

    def _person(self, name: str) -> Callable[[], str | None]:
        def step() -> str | None:
            found = self._named(f"run.{name}")
            if found is not None:
                self.data[name] = found
            return found

        return step

    def _agents(self) -> list[str]:
        field = self.mapping.fields["run.agents"]
        found = field.value(self.scope)
        named = [found] if isinstance(found, str) else [] if found is None else found
        if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
            raise errors.BadField(f"{field.source} is {turns.kind_of(found)}, not a name or a list of names")
        self.data["agents"] = list(dict.fromkeys(one for one in named if one))
        return self.data["agents"]

    def _time(self) -> str | None:
        """The run's own time; else when the bus took the event, which is the same at every reading."""
        field = self.mapping.fields.get("run.time")
        found = field.value(self.scope) if field else None
        if found is None:
            self.time = chat.moment(self.given.time) if self.given.time > 0 else None
            return self.time
        if found == payloads.UNKNOWN_TIME:
            self.time = None  # The mapping's way to say that the event has none.
            return None
        is_digits = isinstance(found, str) and found.strip().isdecimal() and len(found) <= DIGITS_MAX
        self.time = chat.moment(int(found) if is_digits else found)
        if self.time is None:
            raise errors.BadField(f"{field.source} is no time (ISO 8601, or a number since 1970)")
        return self.time

    def _messages(self) -> list[dict[str, Any]]:
        scope = self._object_scope()
        self.chat = []
        for role, field in self.mapping.parts:
            found = field.value(scope)
            where = field.source if _PLAIN_PATH.fullmatch(field.source) else "messages"
            if role is not None and isinstance(found, str):
                self.chat.append({"role": role, "content": found})
                continue
            if found is None and len(self.mapping.parts) > 1:
                continue  # Of several places an event may lack some: a run that failed has no output.
            if found is None:
                raise errors.BadMessages(absent(field, scope))
            found = [found] if isinstance(found, dict) else found
            self.chat += turns.chat(found, "event" if where == "@" else where, self.mapping.rules)
        if not self.chat:
            raise errors.BadMessages(f"{self.mapping.parts[0][1].source} holds no message")
        return self.chat

    def _object_scope(self) -> fields.Scope:
        """Where messages are read: the event, or the object that it names."""
        field = self.mapping.fields.get("messages.object")
        if field is None:
            return self.scope
        url = field.value(self.scope)
        if url is None:
            raise errors.MissingField(absent(field, self.scope))
        said = self.mapping.said.objects
        body = self._fetch(objects.check_url(url, said.prefixes, field.source), said.bytes_max)
        body = objects.unpacked(body, said.bytes_max, field.source)
        return fields.Scope(self.given, document.of_json_or_lines(body, "the object"))

    def _end(self) -> str | None:
        """How the run ended; None where the event does not say, and the agent's last act decides."""
        known = self.mapping.fields
        read = {name: field.value(self.scope) for name, field in known.items() if name.startswith("end.")}
        self.final = read.get("end.final_output")
        error, kind = read.get("end.error"), read.get("end.error_type")
        state = self._state(read.get("end.state"))
        if state is None and (error or kind):
            state = payloads.FAILED
        if state is not None:
            self.terminal = payloads.terminal(
                state,
                error_type=items.as_text(kind) or None,
                error=items.as_text(error) or None if state != payloads.COMPLETED else None,
            )
        return state

    def _state(self, raw: Any) -> str | None:
        if raw is None or raw == "":
            return None
        if not isinstance(raw, str | int | bool):
            raise errors.BadField(
                f"{self.mapping.fields['end.state'].source} is {turns.kind_of(raw)}, not a text"
            )
        word = str(raw).lower() if isinstance(raw, bool) else str(raw)
        found = self.mapping.said.end.states.get(word) or _STATES.get(word.lower())
        if found is None:
            raise errors.BadField(
                f"{self.mapping.fields['end.state'].source} is a state that is not known; map it with "
                f'states = {{{turns.key_of(turns.shown(word))} = "completed"}} (or failed, cancelled, …)'
            )
        return found

    def _usage(self) -> dict[str, int]:
        found = {name: self._whole(f"usage.{name}") for name in file.Usage.model_fields}
        usage = {name: count for name, count in found.items() if count is not None}
        if usage:
            usage.setdefault("total_tokens", usage.get("input_tokens", 0) + usage.get("output_tokens", 0))
            self.data["usage"] = usage
        return usage

    def _workspaces(self) -> list[dict[str, Any]]:
        self._claims = []
        made = [one for way in self.mapping.workspaces if (one := self._workspace(way))]
        if made:
            self.data["workspaces"] = made
        return made

    def _workspace(self, way: dict[str, fields.Field]) -> dict[str, Any] | None:
        found = {name: value for name, field in way.items() if (value := field.value(self.scope)) is not None}
        if not found.keys() & {"snapshot", "archive", "folder"}:
            return None
        if "archive" in found:
            said = self.mapping.said.objects
            url = objects.check_url(found["archive"], said.prefixes, way["archive"].source)
            body = self._fetch(url, said.archive_bytes_max)
            self._claims.append(body)
            found["archive"] = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body)}
        return found

    # --- kinds of values --------------------------------------------------------------------------------------

    def _named(self, name: str) -> str | None:
        """An id: a text that is not blank, or a whole number."""
        field = self.mapping.fields.get(name)
        found = field.value(self.scope) if field else None
        if isinstance(found, int) and not isinstance(found, bool):
            return str(found)
        if found is None or (isinstance(found, str) and not found.strip()):
            return None
        if not isinstance(found, str):
            raise errors.BadField(f"{field.source} is {turns.kind_of(found)}, not an id")
        return found.strip()

    def _whole(self, name: str) -> int | None:
        """A count: a whole number that is not negative."""
        field = self.mapping.fields.get(name)
        found = field.value(self.scope) if field else None
        if found is None:
            return None
        if isinstance(found, str) and found.strip().isdecimal() and len(found) <= DIGITS_MAX:
            found = int(found)
        if isinstance(found, float) and found.is_integer():
            found = int(found)
        if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < 2**63:
            raise errors.BadField(f"{field.source} is {turns.kind_of(found)}, not a count")
        return found


def absent(field: fields.Field, scope: fields.Scope) -> str:
    """Why a field gives nothing: as far as its path leads, and what stands there instead."""
    chain = next(iter(field.chains or ()), ())
    if len(field.chains or ()) != 1 or not chain:
        return f"{field.name}: {field.source} gives nothing"
    at, walked = scope.document, []
    for name in chain:
        if not isinstance(at, dict) or at.get(name) is None:
            break
        at = at[name]
        walked.append(name)
    holder = ".".join(walked) or "the event"
    if isinstance(at, str) and not at.strip():
        return f"{field.source} is blank"
    if not isinstance(at, dict):
        return f"{field.source} gives nothing: {holder} is {turns.kind_of(at)}"
    names = ", ".join(turns.shown(name) for name in list(at)[:8]) or "nothing"
    more = ", …" if len(at) > 8 else ""
    near = difflib.get_close_matches(chain[len(walked)], list(at)[:NAMES_MAX], 1, 0.5)
    meant = f"; did you mean {'.'.join([*walked, turns.shown(near[0])])}?" if near else ""
    return f"{field.source} is not there; {holder} has {names}{more}{meant}"
