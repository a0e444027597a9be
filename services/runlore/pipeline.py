"""THE MAP: every topic and every stage, in the order in which a run passes them.

Topics, AsyncAPI (`schemas/asyncapi.json`) and the diagram in the README come from here; `tests/golden`
checks that they do. A stage's `effect` is what is in the store before its offset is committed.
"""

from __future__ import annotations

from dataclasses import dataclass

from runlore.events import envelope, models

MESSAGE_BYTES_MAX = envelope.EVENT_BYTES_MAX + 1024 * 1024
"""Largest message that a topic takes, in bytes: the largest event, with room for its key and headers."""


@dataclass(frozen=True)
class Topic:
    """One topic of the bus."""

    name: str
    key: str
    events: tuple[str, ...]
    """CloudEvents types; () where messages keep the form in which they came."""
    partitions: int
    retention_hours: int
    description: str
    insync_min: int = 2
    """Replicas that have a message before it counts, where the topic has three. Doorbells may be lost."""
    cleanup: str = "delete"
    """Never compaction: two runs of one rollout have one key, and it would keep the last."""
    message_bytes_max: int = MESSAGE_BYTES_MAX
    timestamps: str = "LogAppendTime"
    """The broker's clock: a producer whose clock is wrong must not make retention take its runs at once."""


@dataclass(frozen=True)
class Stage:
    """One stage: what it reads, under which key in order, its effect in the store, what it emits."""

    name: str
    reads: str
    key: str
    effect: str
    emits: tuple[str, ...]
    group: str | None = None
    """Consumer group, where the stage reads a topic."""


RUNS = Topic(
    name="runs",
    key="project/rollout",
    events=(models.RUN_COMPLETED, models.MEMORY_EDITED),
    partitions=8,
    retention_hours=7 * 24,
    description="One event per finished run, and per live edit of memory. The truth until it is recorded.",
)
CHANGED = Topic(
    name="changed",
    key="project/memory",
    events=(models.CHANGED,),
    partitions=8,
    retention_hours=24,
    description="Doorbells: a head moved or a mark was put. Losing one costs nothing.",
    insync_min=1,
)
DEAD = Topic(
    name="dead",
    key="as it came",
    events=(),
    partitions=1,
    retention_hours=30 * 24,
    description="Events that could not take effect, as they came, each with its reason; and what became of them.",
)
TOPICS = (RUNS, CHANGED, DEAD)

RECORD = Stage(
    name="record",
    reads="runs",
    key="project/rollout",
    effect="redact; put the record if absent; move the rollout's head with the rules' summary; put a mark",
    emits=("changed", "dead"),
    group="record",
)
SUMMARIZE = Stage(
    name="summarize",
    reads="marks",
    key="project/rollout",
    effect="bring the rollout's summary up to its records; a model's, where there is one, with its answers kept",
    emits=("changed",),
)
CONSOLIDATE = Stage(
    name="consolidate",
    reads="marks",
    key="project/memory",
    effect="next revision from the summaries not covered; guards; move the memory's head; delete the marks",
    emits=("changed",),
    group="consolidate",
)
SNAPSHOT = Stage(
    name="snapshot",
    reads="runs",
    key="project/rollout",
    effect="ingest the workspace's archive or folder, if there is one; move the rollout's snapshot head, or branch",
    emits=("changed", "dead"),
    group="snapshot",
)
INDEX = Stage(
    name="index",
    reads="changed",
    key="project/memory",
    effect="rows of a SQLite file, for search and lists; a cache that may be deleted",
    emits=(),
    group="index",
)
LOOKUP = Stage(
    name="lookup",
    reads="heads",
    key="project/memory",
    effect="none: a seed is read from the heads, never from the index",
    emits=(),
)
STAGES = (RECORD, SUMMARIZE, CONSOLIDATE, SNAPSHOT, INDEX, LOOKUP)


def topic(name: str) -> Topic:
    return next(topic for topic in TOPICS if topic.name == name)


def diagram() -> str:
    """The pipeline as a Mermaid flow chart."""
    lines = ["flowchart LR", "  producer([run ends]) --> runs[(runs)]"]
    for stage in STAGES:
        source = {"runs": "runs[(runs)]", "changed": "changed[(changed)]"}.get(
            stage.reads, f"{stage.reads}[/{stage.reads}/]"
        )
        lines.append(f"  {source} --> {stage.name}")
        lines += [f"  {stage.name} --> {name}[({name})]" for name in stage.emits]
    lines += [
        "  record --> marks[/marks/]",
        "  record --> records[/records/]",
        "  summarize --> heads[/heads/]",
        "  consolidate --> heads[/heads/]",
        "  snapshot --> heads[/heads/]",
        "  lookup --> seed([seed of the next run])",
    ]
    return "\n".join(lines) + "\n"
