"""The data of each event type. JSON Schema and AsyncAPI in `schemas/` are generated from here.

Unknown fields are accepted and kept: a newer producer must not be refused by an older consumer, and what
it sent survives in the record's metadata.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from runlore import errors
from runlore.events import ids

RUN_COMPLETED = "io.runlore.run.completed.v1"
MEMORY_EDITED = "io.runlore.memory.edited.v1"
CHANGED = "io.runlore.changed.v1"

RECORD_INLINE_BYTES_MAX = 256 * 1024
"""A record above this many bytes travels as a claim check: its bytes in the store, its hash in the event."""
RECORD_BYTES_MAX = 64 * 1024 * 1024
"""Largest record accepted at all, in bytes."""
EDITED_BYTES_MAX = 512 * 1024
"""Largest edited file accepted, in bytes; a rendered `MEMORY.md` has at most 192 KiB."""


class _Data(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


T = TypeVar("T", bound=_Data)


def _relative_dir(value: str) -> str:
    """The SDK's own rule for a layout directory: relative, not empty, never above the workspace."""
    parts = value.split("/")
    if not value or value.startswith(("/", "\\")) or "\\" in value or "\0" in value:
        raise ValueError("must be a relative path with '/'")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError("must not hold empty, '.' or '..' parts")
    return value


def _record_line(value: Any) -> Any:
    # Producers without the SDK may send the record as an object; it becomes the SDK's compact ASCII line.
    if isinstance(value, dict):
        return json.dumps(value, separators=(",", ":"))
    return value


RelativeDir = Annotated[str, AfterValidator(_relative_dir)]


class Layout(_Data):
    """Where memory lies in a workspace; the SDK's `MemoryLayoutConfig`."""

    memories_dir: RelativeDir = "memories"
    sessions_dir: RelativeDir = "sessions"


class Claim(_Data):
    """A claim check: the bytes lie in the event's own project under this hash."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]
    """Bytes."""


class WorkspaceBase(_Data):
    """What a run's workspace began as: the version of the line that it replaces, as its seed said."""

    counter: Annotated[int, Field(ge=0)]
    """The head's counter when that version became the head."""
    snapshot: Annotated[str | None, Field(pattern=r"^[0-9a-f]{64}(/[0-9a-f]{64})?$")] = None
    """Its id, with or without its root pack."""


class Workspace(_Data):
    """What a run left in the workspace of one of its sandbox agents."""

    agent: str | None = None
    """Whose workspace, where a hand-off gives each agent its own: each is a line of its own in the rollout."""
    snapshot: Annotated[str | None, Field(pattern=r"^[0-9a-f]{64}/[0-9a-f]{64}$")] = None
    """A snapshot that is saved already, with its root pack. Exactly one of `snapshot`, `archive` and `folder`."""
    archive: Claim | None = None
    """A tar of the workspace, plain or gzipped."""
    folder: Annotated[str | None, Field(min_length=1, max_length=4096)] = None
    """A folder that the snapshot stage can reach, below one that its settings allow."""
    base: WorkspaceBase | None = None
    """What the run began from; none where the line had nothing."""
    layout: Layout | None = None
    """Where memory lies in this workspace, where that is not the event's: it is never part of a snapshot."""

    @model_validator(mode="after")
    def _one_source(self) -> Workspace:
        if sum(one is not None for one in (self.snapshot, self.archive, self.folder)) != 1:
            raise ValueError("exactly one of `snapshot`, `archive` and `folder` is needed")
        return self


class Usage(_Data):
    """What the run cost, as the SDK counts it."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0


class RunCompleted(_Data):
    """One agent run ended. One run that feeds two memories sends two events."""

    project: str
    memory: str
    layout: Layout = Layout()
    conversation_id: str | None = None
    session_id: str | None = None
    group_id: str | None = None
    run_id: Annotated[str, Field(min_length=1)]
    """The producer's id of the run; with `attempt`, what the run is recognised by."""
    attempt: Annotated[int, Field(ge=1, le=999_999)] = 1
    """A higher attempt replaces a lower one of the same run."""
    subject: str | None = None
    """Whom the run was for. Preferences and personal facts never cross subjects."""
    agents: list[str] = []
    """The chain of agents that worked, in order of hand-off."""
    parent_run_id: str | None = None
    """The run that called this one as a tool."""
    resumed_from: str | None = None
    """The interrupted run that this one resumes."""
    record: Annotated[str | None, BeforeValidator(_record_line)] = None
    """The SDK's rollout line, as text (or as an object). Exactly one of `record` and `record_claim`."""
    record_claim: Claim | None = None
    received: Annotated[str | None, Field(pattern=r"^[0-9a-f]{32}$")] = None
    """Where the producer hid secrets: the hash of the record before that, by which the run's sameness is judged."""
    redacted: Annotated[dict[str, Annotated[int, Field(ge=0)]], Field(max_length=1000)] = {}
    """Where the producer hid secrets: how many of each kind."""
    workspaces: Annotated[list[Workspace], Field(max_length=64)] = []
    """What the run left: one for each sandbox agent. None: no workspace moves."""
    seed: str | None = None
    """The seed that the run started from."""
    usage: Usage | None = None

    @model_validator(mode="after")
    def _one_record(self) -> RunCompleted:
        if (self.record is None) == (self.record_claim is None):
            raise ValueError("exactly one of `record` and `record_claim` is needed")
        return self

    def check_ids(self) -> RunCompleted:
        """Itself, if every id is one that Runlore accepts. Raises `errors.InvalidId`."""
        ids.check_name(self.project, "project")
        ids.check_name(self.memory, "memory")
        ids.check_id(self.run_id, "run_id")
        optional = ("conversation_id", "session_id", "group_id", "subject", "parent_run_id", "resumed_from")
        for name in optional:
            value = getattr(self, name)
            # A blank id counts as none, as in the SDK; a control character is refused, blank or not.
            if value is not None and (value.strip() or ids.has_control(value)):
                ids.check_id(value, name)
        for workspace in self.workspaces:
            if workspace.agent is not None and workspace.agent.strip():
                ids.check_id(workspace.agent, "agent")
        return self

    @property
    def identity(self) -> str:
        """What the event is recognised by in its rollout, with `attempt`."""
        return self.run_id

    @property
    def rollout(self) -> ids.Rollout:
        return ids.resolve_rollout(
            conversation_id=self.conversation_id,
            session_id=self.session_id,
            group_id=self.group_id,
            run_id=self.run_id,
        )


class EditedFile(_Data):
    """One memory file as an agent left it."""

    path: Literal["MEMORY.md", "memory_summary.md"]
    """Inside the layout's `memories_dir`."""
    text: str | None = None
    """The whole new text. Exactly one of `text` and `text_claim`."""
    text_claim: Claim | None = None
    """The text's bytes (UTF-8), at most 512 KiB, where the bus is too small for it."""
    base_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the file's bytes as they were seeded; of no bytes where nothing was."""
    received: Annotated[str | None, Field(pattern=r"^[0-9a-f]{64}$")] = None
    """Where the producer hid secrets: the SHA-256 of the text before that, by which the edit's sameness is judged."""

    def check_size(self) -> None:
        """Raises `errors.RecordTooLarge`."""
        size = self.text_claim.size if self.text_claim else len((self.text or "").encode("utf-8", "replace"))
        if size > EDITED_BYTES_MAX:
            raise errors.RecordTooLarge(
                f"the edited {self.path} has {size} bytes; at most {EDITED_BYTES_MAX} are accepted"
            )

    @model_validator(mode="after")
    def _one_text(self) -> EditedFile:
        if (self.text is None) == (self.text_claim is None):
            raise ValueError("exactly one of `text` and `text_claim` is needed")
        return self


class MemoryEdited(_Data):
    """An agent edited its memory files in a run. The edit belongs to that run's rollout."""

    project: str
    memory: str
    layout: Layout = Layout()
    conversation_id: str | None = None
    session_id: str | None = None
    group_id: str | None = None
    run_id: Annotated[str, Field(min_length=1)]
    """The run in which it was made."""
    edit_id: Annotated[str, Field(min_length=1)]
    """What the edit is recognised by in its rollout. No run of the rollout may have the same id."""
    subject: str | None = None
    """Whom the run was for: what was added stays with that subject."""
    agents: list[str] = []
    edited_at: str = ""
    """When it was found, RFC 3339; the event's time where it says none."""
    seed: str | None = None
    """The seed whose files were edited. None: those of `revision` as this rollout and subject see them."""
    revision: Annotated[int, Field(ge=0)]
    """The base: the revision whose files were edited; 0 where the memory had none."""
    files: Annotated[list[EditedFile], Field(min_length=1, max_length=2)]
    """The files that were edited, each once."""
    redacted: Annotated[dict[str, Annotated[int, Field(ge=0)]], Field(max_length=1000)] = {}
    """Where the producer hid secrets: how many of each kind."""

    @model_validator(mode="after")
    def _each_once(self) -> MemoryEdited:
        if len({one.path for one in self.files}) != len(self.files):
            raise ValueError("`files` names one file twice")
        return self

    def check_ids(self) -> MemoryEdited:
        """Itself, if every id is one that Runlore accepts. Raises `errors.InvalidId`."""
        ids.check_name(self.project, "project")
        ids.check_name(self.memory, "memory")
        for name in ("run_id", "edit_id"):
            ids.check_id(getattr(self, name), name)
        for name in ("conversation_id", "session_id", "group_id", "subject"):
            value = getattr(self, name)
            if value is not None and (value.strip() or ids.has_control(value)):
                ids.check_id(value, name)
        return self

    @property
    def identity(self) -> str:
        return self.edit_id

    @property
    def attempt(self) -> int:
        """An edit is made once: what is corrected is another edit."""
        return 1

    @property
    def workspaces(self) -> tuple[Workspace, ...]:
        return ()

    @property
    def rollout(self) -> ids.Rollout:
        return ids.resolve_rollout(
            conversation_id=self.conversation_id,
            session_id=self.session_id,
            group_id=self.group_id,
            run_id=self.run_id,
        )


class Changed(_Data):
    """A doorbell: some head moved, or a mark was put. It carries no text, and losing it costs nothing."""

    kind: Literal["mark", "rollout", "memory", "snapshot"]
    project: str
    memory: str
    rollout: str | None = None
    """Alias; only for `rollout` and `snapshot`."""
    agent: str | None = None
    """Alias; only for `snapshot`."""
    counter: Annotated[int, Field(ge=0)] = 0


DATA_BY_TYPE: dict[str, type[_Data]] = {
    RUN_COMPLETED: RunCompleted,
    MEMORY_EDITED: MemoryEdited,
    CHANGED: Changed,
}


def run_completed(data: Any) -> RunCompleted:
    """`data` as a valid run-completed event.

    Raises `errors.InvalidEvent` with the first fields that are wrong (never their values, which may be
    secrets), or `errors.InvalidId`.
    """
    return parse_data(RunCompleted, data).check_ids()


def memory_edited(data: Any) -> MemoryEdited:
    """`data` as a valid memory-edited event. Raises as `run_completed` does."""
    return parse_data(MemoryEdited, data).check_ids()


def type_of(data: Any) -> str:
    """Which event `data` alone, without an envelope, is: an edit has an `edit_id` and no record."""
    is_edit = isinstance(data, dict) and "edit_id" in data and not {"record", "record_claim"} & data.keys()
    return MEMORY_EDITED if is_edit else RUN_COMPLETED


def handed_in(event_type: str, data: Any) -> RunCompleted | MemoryEdited:
    """`data` as an event that a producer may hand in. Raises a `Poison`."""
    return memory_edited(data) if event_type == MEMORY_EDITED else run_completed(data)


def parse_data(model: type[T], data: Any) -> T:
    from pydantic import ValidationError

    try:
        return model.model_validate(data)
    except ValidationError as exc:
        wrong = exc.errors(include_input=False)
        found = [f"{'.'.join(map(str, e['loc'])) or 'event'}: {e['msg']}" for e in wrong]
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise errors.InvalidEvent("; ".join(found[:3]) + more) from None
