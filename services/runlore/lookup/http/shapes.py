"""The shapes of the answers that clients are built on, for the OpenAPI document; tests hold every answer against them.

Said beside the routes and not by them: an answer is made once, as JSON, and not validated again on its way out.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Shape(BaseModel):
    # A newer service may say more.
    model_config = ConfigDict(extra="allow")


class Resolved(_Shape):
    """Which rollout some ids mean."""

    rollout: str
    alias: str
    matched: Literal["conversation", "session", "group", "run"]


class Layout(_Shape):
    """Where memory lies in a workspace."""

    memories_dir: str
    sessions_dir: str


class File(_Shape):
    """One file of a memory."""

    path: str
    bytes: int
    sha256: str


class Base(_Shape):
    """What a run's event gives as its workspace's `base`."""

    counter: int
    snapshot: str | None


class Seed(_Shape):
    """What the next run begins with."""

    seed: str | None = Field(description="Its id; null: there is neither memory nor a workspace.")
    project: str
    memory: str
    rollout: str | None = Field(description="As given; null where the seed was asked for by its id.")
    alias: str
    matched: Literal["conversation", "session", "group", "run"] | None
    subject: str | None = Field(description="Alias of whom it is for.")
    agent: str
    revision: int
    notes: int
    expires: str | None
    layout: Layout
    files: list[File]
    snapshot: str | None
    from_template: bool
    base: Base


class Sent(_Shape):
    """An event that is on the bus."""

    event: str
    rollout: str
    run: str
    attempt: int


class Claim(_Shape):
    """What an event gives as the `archive` of a workspace."""

    sha256: str
    size: int


class Place(_Shape):
    """Where to put an archive directly."""

    url: str
    method: Literal["PUT"]
    headers: dict[str, str]
    expires: str
    claim: Claim


class Page(_Shape):
    """A part of a list."""

    items: list[dict[str, Any]]
    next: str | None


class Revision(_Shape):
    """The files of a revision."""

    project: str
    memory: str
    revision: int
    created_at: str
    layout: Layout
    files: list[File]


class Result(_Shape):
    """A rollout that search found."""

    rollout: str
    snippet: str
    rank: float
    path: str | None
    line: int | None


class Results(_Shape):
    """What search found."""

    project: str
    memory: str
    revision: int
    results: list[Result]


class Difference(_Shape):
    """What changed between two revisions."""

    project: str
    memory: str
    from_: int = Field(alias="from")
    to: int
    files: list[dict[str, Any]]


class Why(_Shape):
    """What supports a line."""

    revision: int
    path: str
    line: int
    text: str
    notes: list[dict[str, Any]]


class Held(_Shape):
    """Why a rollout is held, what it says, and what letting it in would change."""

    rollout: str
    state: Literal["held", "rejected"]
    kind: str
    reason: str
    at: str
    hold: int
    new_runs: bool
    violations: list[dict[str, Any]]
    statements: list[dict[str, Any]]
    files: list[dict[str, Any]]


class Approved(_Shape):
    """Rollouts that will be taken in, and the violations that were let pass of each."""

    project: str
    memory: str
    approved: list[str]
    let_pass: dict[str, list[str]]
    left: dict[str, str]


class Rejected(_Shape):
    """Rollouts that stay out."""

    project: str
    memory: str
    rejected: list[str]


class ErasurePlan(_Shape):
    """What an erasure would name."""

    project: str
    rollouts: int
    records: int
    memories: list[str]
    targets: list[dict[str, Any]]


class Erasure(_Shape):
    """How far an erasure is, and its receipt (docs/ERASURE.md)."""

    id: str
    project: str
    scope: str
    name: str
    state: str
    asked_at: str
    first_at: str | None
    second_at: str | None
    next_pass_at: str | None
    targets: list[dict[str, Any]]
    removed: dict[str, int]
    revisions: dict[str, list[int]]
    seeded: dict[str, Any]
    left: dict[str, Any]
    elsewhere: list[str]


class Stories(_Shape):
    """Where runs are."""

    runs: list[dict[str, Any]]


class Spend(_Shape):
    """What calls to models took in a month."""

    month: str
    by: str
    rows: list[dict[str, Any]]
    total: dict[str, Any]
    budgets: list[dict[str, Any]]
    limits: list[dict[str, Any]]
    deferred: list[dict[str, Any]]


class Refreshed(_Shape):
    """What was made due."""

    project: str
    memory: str
    asks: int


class Snapshot(_Shape):
    """A snapshot."""

    snapshot: str
    ref: str
    content: str
    kind: Literal["tree", "native"]
    files: int
    dirs: int
    links: int
    bytes: int
    saved_at: str
    report: dict[str, Any]
    rollout: str | None
    agent: str | None
    base: Base | None


class Changes(_Shape):
    """What differs between two snapshots."""

    from_: str = Field(alias="from")
    to: str
    changes: list[dict[str, Any]]
    next: str | None


class Merged(_Shape):
    """What a merge did."""

    snapshot: str
    project: str
    rollout: str
    agent: str
    state: str
    branches: list[str]
    files: int
    conflicts: list[dict[str, Any]]
    dry_run: bool


def answers(model: type[BaseModel], status: int = 200) -> dict[int | str, dict[str, Any]]:
    """What a route says of its answer."""
    return {status: {"model": model, "description": (model.__doc__ or "").strip()}}


def content(media_type: str, what: str) -> dict[int | str, dict[str, Any]]:
    """The same of one that is no JSON."""
    schema = {"type": "string"} if media_type.startswith("text/") else {"type": "string", "format": "binary"}
    found: dict[int | str, dict[str, Any]] = {
        200: {"description": what, "content": {media_type: {"schema": schema}}}
    }
    if not media_type.startswith("text/"):
        found[206] = {**found[200], "description": "The part that `Range` asked for"}
    return {**found, 304: {"description": "As `If-None-Match` has it"}}


def takes(model: type[BaseModel]) -> dict[str, Any]:
    """What a route says of the JSON that it takes, where it reads the body itself."""
    schema = model.model_json_schema()
    # A document knows no definitions but its own: they are few and small, so they stand where they are used.
    schema = _inlined(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _inlined(value: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_inlined(one, definitions) for one in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        return _inlined(definitions[value["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(one, definitions) for name, one in value.items()}
