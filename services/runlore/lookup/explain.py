"""Explain: where every run is, what it waits for, and why.

A run's state is one of the named ends (invariant 12), or one of the ways there:

    waiting       on the bus, not yet recorded            recorded      summarised; a mark stands
    consolidated  a revision covers it (selected or not)  superseded    a higher attempt took its place
    held          waits for review                        rejected      a person keeps it out, as it stands
    dead          could not take effect; kept with its reason
    erased        somebody had it forgotten (docs/ERASURE.md)

What a model adds comes after that, and holds nothing back: `Story.model` says what that waits for. Waiting for a run,
and by which names that ends, is `waiting.py`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runlore import errors, pipeline
from runlore.bus import port as bus_port
from runlore.commit import erasures, keys, lines, marks, revisions
from runlore.consumers import approvals, dead, record, summarize
from runlore.events import ids
from runlore.lookup import asked
from runlore.lookup import index as lookup_index
from runlore.memory import edits, joint, notes
from runlore.models import choices
from runlore.store import port as store_port
from runlore.upkeep import pauses

WAITING, RECORDED, CONSOLIDATED, SUPERSEDED, HELD, REJECTED, DEAD, ERASED = (
    "waiting",
    "recorded",
    "consolidated",
    "superseded",
    "held",
    "rejected",
    "dead",
    "erased",
)
LOOK_BACK = 2000
"""Revisions that `explain` looks through for the one that took a run in."""
DROPPED_SHOWN = 8
"""Statements of a model that code dropped, of which a story says why."""


@dataclass(frozen=True)
class Known:
    """What whoever asks knows beside the store: how asks become due, and how the stages say that they are."""

    chosen: choices.Choices | None = None
    stages: Mapping[str, Any] | None = None


@dataclass
class Story:
    """Everything that is known of one run: its state, and each step with the objects it left."""

    state: str
    project: str | None = None
    memory: str | None = None
    rollout: str | None = None
    run: str | None = None
    attempt: int | None = None
    event: str | None = None
    next: str = ""
    """What happens next, or what a person can do."""
    selected: bool | None = None
    """Whether its rollout is among the newest ones, of which a revision has notes; None: it is in none yet."""
    branched: bool = False
    """Whether its workspace was kept as a branch."""
    paused: bool = False
    """Whether a person holds back what it needs next."""
    current: bool = False
    """Whether the present revision holds all that is known of its rollout now."""
    model: Mapping[str, Any] | None = None
    """What its rollout waits for at a model (`asked.Asked`); None: nothing."""
    steps: list[dict[str, Any]] = field(default_factory=list)

    def step(self, stage: str, what: str, **details: Any) -> None:
        self.steps.append(
            {"stage": stage, "what": what, **{k: v for k, v in details.items() if v is not None}}
        )


async def explain(
    store: store_port.ObjectStore,
    bus: bus_port.Bus,
    reader: revisions.Reader,
    index: lookup_index.Index,
    name: str,
    *,
    project: str | None = None,
    known: Known = Known(),
) -> list[Story]:
    """The stories of every run that `name` can mean: an event id, a run id, or a rollout; of one project if given.

    Raises `errors.NotFound` where nothing has that name.
    """
    await lookup_index.reconcile(index, store)
    rows = rows_of(index, name, project)
    return await tell(store, bus, reader, name, rows, project=project, known=known)


def rows_of(index: lookup_index.Index, name: str, project: str | None) -> list[dict[str, Any]]:
    """The recorded runs that `name` can mean."""
    return [row for one in sorted(_meanings(name)) for row in index.runs(one, project)]


def _meanings(name: str) -> set[str]:
    return {name, ids.alias(name.strip())} if name.strip() else {name}


async def tell(
    store: store_port.ObjectStore,
    bus: bus_port.Bus,
    reader: revisions.Reader,
    name: str,
    rows: Sequence[dict[str, Any]],
    *,
    project: str | None = None,
    known: Known = Known(),
) -> list[Story]:
    """The stories of what the index knows under a name (`rows`), and of what waits on the bus or is dead under it."""
    wanted = _meanings(name)
    # The asks of a memory are read before the first of its heads: a stage moves a head, and puts its mark, before it
    # takes the ask away.
    waits = asked.Asks(store, chosen=known.chosen, stages=known.stages)
    stories = [await _recorded(store, reader, row, waits) for row in rows]
    waiting = await _waiting(bus, wanted, {story.event for story in stories})
    stories += [story for story in waiting if project in (None, story.project)]
    stories += [story for story in await _dead(bus, wanted) if project in (None, story.project)]
    await _paused(store, stories)
    # Looked for last, as it reads the ledger: whoever asks for a run that is there pays nothing.
    stories = stories or [story async for story in _erased(store, project, wanted)]
    if not stories:
        raise errors.NotFound(
            f"no event, run or rollout is called {name!r}",
            hint="`runlore explain` without a name lists the newest runs",
        )
    for letter_story in [story for story in stories if story.state == DEAD]:
        # An event that was redriven and took effect is not dead any more.
        if any(one.state != DEAD and one.event == letter_story.event for one in stories):
            letter_story.next = "another delivery of this event took effect"
    return stories


async def _recorded(
    store: store_port.ObjectStore, reader: revisions.Reader, row: dict[str, Any], asks: asked.Asks
) -> Story:
    """The story of a run that has a record."""
    project, memory, rollout = row["project"], row["memory"], row["rollout"]
    story = Story(RECORDED, project, memory, rollout, row["run"], row["attempt"], row["event"])
    waits = await asks.of(project, memory, rollout)
    story.model = waits.as_dict() if waits is not None else None
    key = keys.record(project, memory, rollout, row["run"], row["attempt"])
    for one in await summarize.load(store, [key]):
        meta = one.meta
        story.step(
            "runs", "event received", source=meta["event"]["source"], time=meta["event"]["time"] or None
        )
        story.step("record", "recorded", object=key, bytes=len(one.line), redacted=meta.get("redacted"))
        if meta.get("is_edit"):
            _edit(story, json.loads(one.line)["edit"])
    head_key = keys.rollout_head(project, memory, rollout)
    head = await summarize.read(store, project, memory, rollout)
    story.step(
        "summarize", f"in the rollout's summary {head.counter}", object=head_key, at=head.body.get("moved_at")
    )
    _told_by_a_model(story, head.body.get("model"), row)
    if waits is not None:
        story.step("summarize", f"a model's part {waits.told}", at=waits.since)
    await _workspaces(store, story)
    memory_head = await reader.head(project, memory)
    held = memory_head.body.get("held", {}).get(rollout)
    if row["superseded"]:
        story.state = SUPERSEDED
        story.next = f"attempt {head.body['runs'][row['run']]['attempt']} of this run took its place"
        return story
    if held:
        run = head.body["runs"].get(row["run"], {"since": head.counter})
        _held(story, held, is_new=approvals.is_undecided(held, run))
        return story
    revision = await reader.current(memory_head, project, memory)
    covered = revision.map("coverage").get(rollout) if revision else None
    # The head may have moved since for another run, or for what a model said: this one is in all the same.
    since = int(head.body["runs"].get(row["run"], {}).get("since", head.counter))
    if revision and covered and int(covered["counter"]) >= since:
        story.state = CONSOLIDATED
        story.current = int(covered["counter"]) >= head.counter
        number, manifest = await _first_revision(reader, project, memory, rollout, row["run"], row["attempt"])
        story.step("consolidate", f"in revision {number}" if number else "covered", object=manifest)
        _conflicts(story, revision)
        await _joined(store, story, revision)
        selected = revision.map("selected")
        story.selected = bool(selected.get(rollout))
        story.next = (
            f"its notes are in revision {revision.number}, which seeds serve"
            if story.selected
            else f"not among the newest {len(selected)} rollouts: searchable, not in seeds"
        )
        return story
    standing = await marks.read_all(store, project, memory, marks_max=1000)
    for mark in [mark for mark in standing if rollout in mark.rollouts]:
        story.step("consolidate", "marked as left to do", object=mark.key, at=mark.put_at)
    story.next = "the next `runlore up` consolidates it"
    return story


def _held(story: Story, held: Mapping[str, Any], *, is_new: bool) -> None:
    """What a person decided of a held rollout, or is to decide."""
    where = f"{story.rollout} --project {story.project} --memory {story.memory}"
    story.step("consolidate", f"held: {held['reason']}", at=held["at"], kind=held["kind"])
    if approvals.is_rejected(held):
        told = held["rejected"]
        story.step("consolidate", f"rejected: {told['reason']}", at=told["at"])
    if is_new:
        story.next = "the next `runlore up` puts it before a person again: a run came since it was rejected"
    elif approvals.is_rejected(held):
        story.state, story.next = (
            REJECTED,
            f"it stays out; `runlore review approve {where} --reason …` undoes it",
        )
    else:
        story.state = HELD
        story.next = f"`runlore review show {where}`, then approve or reject it"


def _edit(story: Story, edit: dict[str, Any]) -> None:
    """What a live edit changed."""
    changes = edit["changes"]
    added = sum("now" in one for one in changes)
    removed = sum(bool(one.get("notes")) for one in changes)
    names = ", ".join(file["path"] for file in edit["files"])
    what = f"a live edit of {names} by run {edit['run']}: lines added {added}, taken out {removed}"
    story.step("record", what, base=edit["revision"], left_out=edit["left_out"] or None)


def _conflicts(story: Story, revision: revisions.Revision) -> None:
    """Which lines that a live edit put, changed or took out stand in conflict."""
    assert story.rollout is not None
    known = notes.Notes.load(dict(revision.map("notes").items()))
    marks = edits.verdict(known).marks
    for identity, entry in known.supported_by(story.rollout).items() if marks else ():
        one = entry["support"][story.rollout]
        if one.get("by") and [story.run, 1] in [told[:2] for told in one["evidence"]]:
            about = entry["key"]["note"] if entry["kind"] == "edit" else identity
            if about in marks:
                story.step("consolidate", f"in conflict {marks[about]}", note=about)


async def _joined(store: store_port.ObjectStore, story: Story, revision: revisions.Revision) -> None:
    """What a model's consolidation made of the statements of the rollout, and whether it has still to look."""
    assert story.project and story.memory and story.rollout
    known = notes.Notes.load(dict(revision.map("notes").items()))
    made = [one for one in joint.standing(known).joints.values() if story.rollout in one["support"]]
    if made:
        story.step("consolidate", f"a model's joint statements that rest on this rollout: {len(made)}")
    standing = await marks.read_all(store, story.project, story.memory, marks_max=1000, kind=keys.JOINS)
    for mark in [mark for mark in standing if story.rollout in mark.rollouts][:1]:
        story.step("consolidate", "a model has still to look at it", object=mark.key, at=mark.put_at)


def _told_by_a_model(story: Story, part: Mapping[str, Any] | None, row: Mapping[str, Any]) -> None:
    """What a model said of the rollout, where it was asked."""
    if part is None:
        return
    if "failed" in part:
        story.step("summarize", f"no summary by a model: {part['failed']['why']}", at=part["at"])
        return
    own = sum(any(place[1] == row["run"] for place in one["evidence"]) for one in part["statements"])
    dropped = "; ".join(f"{one['what']}: {one['reason']}" for one in part["dropped"][:DROPPED_SHOWN])
    what = f"a model's statements: {len(part['statements'])}, {own} of them from this run"
    story.step("summarize", what, at=part["at"], model=part["model"], dropped=dropped or None)


async def _workspaces(store: store_port.ObjectStore, story: Story) -> None:
    """What became of the workspaces that a run left."""
    assert story.project and story.rollout and story.run and story.attempt
    for head in await lines.of_rollout(store, story.project, story.rollout):
        line, body = lines.line_from(head), head.body
        by, branch = body.get("moved_by", {}), body.get("branches", {}).get(story.run, {})
        agent = line.agent if line.agent != lines.MAIN else None
        if (by.get("run"), by.get("attempt")) == (story.run, story.attempt):
            story.step(
                "snapshot",
                f"the workspace's version {body['version']}",
                snapshot=body["ref"][:12],
                agent=agent,
            )
        elif branch.get("attempt") == story.attempt:
            why = f"kept as the branch {story.run}: {branch['why']}"
            story.branched = True
            story.step("snapshot", why, snapshot=branch["ref"][:12], agent=agent, at=branch["at"])
        elif (ref := lines.known(body, story.run).get(story.attempt)) is not None:
            story.step("snapshot", "was the workspace's version", snapshot=ref[:12], agent=agent)
        elif story.attempt in (done := await lines.forgotten(store, line, story.run, head)):
            found = await lines.outcome(store, done[story.attempt])
            what = {lines.MOVED: "was the workspace's version", lines.BRANCHED: "was a branch"}[
                found["state"]
            ]
            story.branched = found["state"] == lines.BRANCHED
            story.step("snapshot", what, snapshot=found["ref"][:12], agent=agent, object=done[story.attempt])


async def _paused(store: store_port.ObjectStore, stories: list[Story]) -> None:
    """Which pause, if any, each run waits for."""
    standing = list((await pauses.read_all(store)).values())
    for story in stories:
        stages = {WAITING: ("record", "snapshot"), RECORDED: ("consolidate",)}.get(story.state, ())
        for one in standing:
            if any(one.holds(stage, story.project, story.memory) for stage in stages):
                story.step(one.stage, str(one), at=one.at)
                story.paused = True
                story.next = f"it goes on after `{one.end}`"


async def _first_revision(
    reader: revisions.Reader, project: str, memory: str, rollout: str, run: str, attempt: int
) -> tuple[int | None, str | None]:
    """The revision that covered a run first, and its manifest's key; looks back over `LOOK_BACK` revisions."""
    looked = 0
    async for body in reader.line(project, memory):
        for covers in body["covers"]:
            taken = [*covers["runs"], *covers.get("edits", ())]
            if covers["rollout"] == rollout and [run, attempt] in taken:
                return body["revision"], keys.manifest(project, memory, body["revision"], body["sha256"])
        looked += 1
        if looked == LOOK_BACK:
            break
    return None, None


async def _waiting(bus: bus_port.Bus, wanted: set[str], known: set[str | None]) -> list[Story]:
    """Events on the bus that the record stage has not committed."""
    start = await bus.committed(group="record", topic=pipeline.RUNS.name)
    stories = []
    async for message in bus.read(pipeline.RUNS.name, start=start):
        try:
            incoming = record.parse(message)
        except errors.Poison:
            continue
        names = {incoming.event.id, incoming.run, incoming.data.rollout.alias}
        if not names & wanted or incoming.event.id in known:
            continue
        project, memory, rollout = incoming.line_of
        story = Story(
            WAITING, project, memory, rollout, incoming.run, incoming.data.attempt, incoming.event.id
        )
        story.step(
            "runs", "on the bus", topic=message.topic, partition=message.partition, offset=message.offset
        )
        story.next = "the next `runlore up` records it"
        stories.append(story)
    return stories


async def _dead(bus: bus_port.Bus, wanted: set[str]) -> list[Story]:
    stories = []
    for letter in await dead.read_all(bus):
        if letter.id not in wanted and letter.event_id not in wanted:
            continue
        story = Story(DEAD, project=dead.project_of(letter), event=letter.event_id)
        story.step(
            "runs", "event received", topic=letter.topic, partition=letter.partition, offset=letter.offset
        )
        story.step("record", f"dead letter {letter.id}: {letter.reason}: {letter.message}", at=letter.at)
        if letter.resolution:
            story.step("record", letter.resolution, at=letter.resolved_at, reason=letter.resolved_why)
            story.next = f"it was {letter.resolution}"
        else:
            story.next = f"`runlore dead redrive {letter.id}` once the cause is gone, or `runlore dead drop`"
        stories.append(story)
    return stories


async def _erased(
    store: store_port.ObjectStore, project: str | None, wanted: set[str]
) -> AsyncIterator[Story]:
    """What the ledgers of erasures say of a name."""
    for one in [project] if project is not None else await marks.projects(store):
        entry = await erasures.naming(store, one, sorted(wanted))
        if entry is not None:
            story = Story(ERASED, project=one)
            told = entry.body
            story.step("erased", f"erasure {told['id']}, of a {told['scope']}", at=told["asked_at"])
            story.next = "it was erased, and no event brings it back"
            yield story
