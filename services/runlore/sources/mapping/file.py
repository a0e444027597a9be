"""The mapping file: its tables and keys, and what is wrong with one that says something else (docs/SOURCES.md).

Nothing but TOML is read here; `event.Mapping` makes of it what can map.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from runlore import errors
from runlore.events import models
from runlore.sources.mapping import objects

FILE_BYTES_MAX = 1024 * 1024
NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
Said = Any
"""An expression, a constant, or a table: `fields.of` reads it."""
Role = Literal["user", "assistant", "tool", "call", "system", "skip"]
State = Literal["completed", "interrupted", "cancelled", "failed", "max_turns_exceeded", "guardrail_tripped"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Choice(_Table):
    """A project or memory that the event chooses, among those that are allowed."""

    at: str
    allowed: Annotated[
        dict[str, str], BeforeValidator(lambda v: {x: x for x in v} if isinstance(v, list) else v)
    ]
    """Their word → our name; a list where they are the same."""


class Run(_Table):
    """Who the run was."""

    id: Said = None
    rollout: Said = None
    conversation_id: Said = None
    session_id: Said = None
    group_id: Said = None
    run_id: Said = None
    attempt: Said = None
    subject: Said = None
    agents: Said = None
    parent_run_id: Said = None
    resumed_from: Said = None
    seed: Said = None
    time: Said = None


class Call(_Table):
    """Where the parts of a call stand, in the call."""

    id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | None = None


class Part(_Table):
    """One of several places of messages; `role` makes a message of a text."""

    at: str
    role: Literal["user", "assistant"] | None = None


def _part(value: Any) -> Any:
    return {"at": value} if isinstance(value, str | list) else value


def _parts(value: Any) -> Any:
    return [_part(one) for one in (value if isinstance(value, list) else [value])]


class Messages(_Table):
    """What was said and done."""

    at: Annotated[list[Part], BeforeValidator(_parts), Field(min_length=1)] = [Part(at="@")]
    object: Said = None
    role: str | None = None
    text: str | None = None
    calls: str | None = None
    call: Call = Call()
    roles: dict[str, Role] = {}


class End(_Table):
    """How the run ended."""

    state: Said = None
    states: dict[str, State] = {}
    error: Said = None
    error_type: Said = None
    final_output: Said = None


class Usage(_Table):
    """What the run cost."""

    requests: Said = None
    input_tokens: Said = None
    output_tokens: Said = None
    total_tokens: Said = None


class Workspace(_Table):
    """What the run left in the workspace of one agent."""

    agent: Said = None
    snapshot: Said = None
    archive: Said = None
    folder: Said = None
    base: Said = None


class Objects(_Table):
    """What may be read besides the topic."""

    prefixes: list[str] = []
    bytes_max: Annotated[int, Field(ge=1, le=models.RECORD_BYTES_MAX)] = objects.OBJECT_BYTES_MAX
    archive_bytes_max: Annotated[int, Field(ge=1, le=objects.ARCHIVE_BYTES_MAX)] = objects.ARCHIVE_BYTES_MAX


class MappingFile(_Table):
    """A whole mapping file."""

    name: Annotated[str, Field(pattern=NAME)] = ""
    topic: Annotated[str, Field(min_length=1, max_length=249, pattern=r"^[A-Za-z0-9._-]+$")]
    project: str | Choice | None = None
    memory: str | Choice | None = None
    format: Literal["json"] = "json"
    decode: str | None = None
    where: Said = None
    layout: models.Layout = models.Layout()
    run: Run = Run()
    messages: Annotated[Messages, BeforeValidator(_part)] = Messages()
    end: End = End()
    usage: Usage = Usage()
    workspaces: Annotated[list[Workspace], Field(max_length=64)] = []
    objects: Objects = Objects()


def read(path: Path) -> MappingFile:
    """The mapping in the file `path`, named as the file where it does not name itself.

    Raises `errors.NotFound`, or `errors.BadMapping` with the first things that are wrong.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(FILE_BYTES_MAX + 1)
    except OSError as exc:
        raise errors.NotFound(f"{path} can not be read: {exc.strerror or type(exc).__name__}") from None
    if len(raw) > FILE_BYTES_MAX:
        raise errors.BadMapping(f"{path} has more than {FILE_BYTES_MAX} bytes; is it a mapping?")
    try:
        table = tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise errors.BadMapping(f"{path} is not valid TOML: {str(exc) or type(exc).__name__}") from None
    return parse(table, name=path.name.removesuffix(".toml").lower())


def parse(table: dict[str, Any], *, name: str) -> MappingFile:
    """The mapping in a table, named `name` where it does not name itself. Raises `errors.BadMapping`."""
    try:
        found = MappingFile.model_validate({"name": name, **table})
    except ValidationError as exc:
        wrong = exc.errors(include_input=False, include_url=False)
        told = [_told(one) for one in wrong[:3]]
        raise errors.BadMapping(
            "; ".join(dict.fromkeys(told)), hint="docs/SOURCES.md has every table and key"
        ) from None
    for prefix in found.objects.prefixes:
        objects.check_prefix(prefix)
    return found


def _told(error: Any) -> str:
    """One thing that is wrong, in the words of the file."""
    where = ".".join(str(part) for part in error["loc"] if part not in ("str", "Choice"))
    if error["type"] == "missing":
        return f"`{where}` is missing"
    if error["type"] != "extra_forbidden":
        return f"{where}: {error['msg']}"
    known = _keys(MappingFile, error["loc"][:-1])
    name = str(error["loc"][-1])
    near = difflib.get_close_matches(name, known, 1)
    holder = ".".join(str(part) for part in error["loc"][:-1]) or "a mapping"
    meant = f"; did you mean `{near[0]}`?" if near else f"; it has {', '.join(known)}"
    return f"{holder} has no `{name}`{meant}"


def _keys(model: Any, path: tuple[Any, ...]) -> list[str]:
    """The keys of the table at `path`."""
    tables = {
        "run": Run, "messages": Messages, "end": End, "usage": Usage, "workspaces": Workspace, "objects": Objects,
        "call": Call, "at": Part, "project": Choice, "memory": Choice, "layout": models.Layout,
    }  # fmt: skip
    for part in path:
        model = tables.get(str(part), model)
    return list(model.model_fields)
