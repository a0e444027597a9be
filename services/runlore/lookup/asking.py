"""Asking for a seed: at a time, not before a run is covered, never older than the one before, from the template.

The command line asks `lookup/seeds.py` at once; a client of the service asks through this. Everything is read from
the heads in the store; only where the project's template is, the index knows.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from runlore import clock, errors, pipeline
from runlore.bus import port as bus_port
from runlore.commit import erasures, heads, keys, lines, revisions
from runlore.consumers import approvals, dead, summarize
from runlore.events import ids, models
from runlore.lookup import memories, seeds
from runlore.store import port as store_port

TEMPLATE = "template"
"""The tag of the snapshot with which an empty line begins."""
POLL_SECONDS_MIN, POLL_SECONDS_MAX = 0.1, 1.0
TEMPLATES_READ_MAX = 16
REVISION_CHARS_MAX = 12
META_BYTES_MAX = 256 * 1024
"""The beginning of a record, in which its metadata lie."""
SNAPSHOT_GROUP = "snapshot"

Tagged = Callable[[], Awaitable[Sequence[dict[str, Any]]]]
"""The lines with a snapshot that is tagged `template`, the one that moved last first."""

Letters = Callable[[], Awaitable[Sequence[dead.Letter]]]
"""The dead letters; whoever is asked often may remember them for a moment."""


@dataclass(frozen=True)
class Wanted:
    """What a client asks for; ids as given."""

    project: str
    memory: str
    rollout: str
    subject: str | None = None
    agent: str | None = None
    at: int | dt.datetime | None = None
    after: seeds.Seed | None = None
    """The seed that it saw last: an older one is never given."""
    wait_for: str | None = None
    """A run that the seed must cover."""
    wait_seconds: float = 10.0
    with_template: bool = True

    @property
    def whom(self) -> str | None:
        return memories.whom_of(self.subject)


def moment_of(text: str | None) -> int | dt.datetime | None:
    """A revision's number or an RFC 3339 time. Raises `errors.InvalidInput`."""
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) <= REVISION_CHARS_MAX:
        return int(text)
    try:
        # In a query an unescaped '+' is a blank.
        moment = dt.datetime.fromisoformat(text.replace(" ", "+"))
        if moment.tzinfo is not None:
            return moment.astimezone(dt.UTC)
    except (ValueError, OverflowError):
        pass
    raise errors.InvalidInput("`at` is neither a revision's number nor an RFC 3339 time with its zone")


def default_layout() -> dict[str, Any]:
    return models.Layout().model_dump()


class Asker:
    """Answers `Wanted`."""

    def __init__(
        self,
        store: store_port.ObjectStore,
        bus: bus_port.Bus,
        reader: revisions.Reader,
        *,
        stopping: Callable[[], bool] = lambda: False,
        letters: Letters | None = None,
    ) -> None:
        self._store, self._bus, self._reader, self._stopping = store, bus, reader, stopping
        self._letters = letters or (lambda: dead.read_all(bus))
        self._ends: dict[tuple[str, str], dict[int, int]] = {}
        """Where the snapshot stage must have come to for a run, by partition: what was on the bus at its record."""

    async def line(self, wanted: Wanted) -> lines.Line:
        return lines.line_of(wanted.project, wanted.rollout, wanted.agent)

    async def seed(self, wanted: Wanted, tagged: Tagged) -> seeds.Seed | None:
        """The seed; None where there is neither memory nor a workspace nor a template.

        Raises `errors.WaitTimeout`, `errors.SeedBehind`, and as `seeds.resolve` does.
        """
        give_up = clock.monotonic() + wanted.wait_seconds
        ids.check_name(wanted.project, "project")
        ids.check_name(wanted.memory, "memory")
        if wanted.wait_for:
            ids.check_id(wanted.wait_for, "wait_for")
            await self._until(lambda: self._is_done(wanted), give_up, self._timed_out(wanted))
        at = await self._revision_at(wanted) if isinstance(wanted.at, dt.datetime) else wanted.at
        found: seeds.Seed | None = None

        async def is_new_enough() -> bool:
            nonlocal found
            found = await seeds.resolve(
                self._reader,
                wanted.project,
                wanted.memory,
                wanted.rollout,
                subject=wanted.subject,
                at=at,
                agent=wanted.agent,
            )
            return not _is_behind(found, wanted)

        behind = errors.SeedBehind(hint="ask again, or without `after`")
        await self._until(is_new_enough, give_up, lambda: _raise(behind))
        if wanted.with_template and (found is None or found.snapshot is None):
            found = await self._from_template(wanted, found, tagged)
        return found

    def _timed_out(self, wanted: Wanted) -> Callable[[], Awaitable[None]]:
        async def told() -> None:
            # A dead letter is an end too: whoever waits for more waits for ever. It is looked for once, at the last
            # moment, because it costs a read of the whole topic.
            if await self._is_dead(wanted):
                return
            raise errors.WaitTimeout(
                f"run {wanted.wait_for!r} is not covered after {wanted.wait_seconds:g} seconds",
                hint="ask again, or without `wait_for`; GET …/runs/{run} says where it is",
            )

        return told

    async def _until(
        self, is_so: Callable[[], Awaitable[bool]], give_up: float, otherwise: Callable[[], Awaitable[None]]
    ) -> None:
        pause = POLL_SECONDS_MIN
        while not await is_so():
            left = give_up - clock.monotonic()
            if left <= 0 or self._stopping():
                return await otherwise()
            await clock.sleep(min(pause, left))
            pause = min(POLL_SECONDS_MAX, pause * 1.5)

    # --- is the run done? -----------------------------------------------------------------------------------

    async def _is_done(self, wanted: Wanted) -> bool:
        """Whether the run has come to an end: covered, or held; and its workspaces are in their lines."""
        assert wanted.wait_for is not None
        rollout, run = ids.alias(wanted.rollout.strip()), ids.alias(wanted.wait_for)
        head = await summarize.read(self._store, wanted.project, wanted.memory, rollout)
        entry = head.body.get("runs", {}).get(run)
        if entry is None:
            return erasures.is_erased(head.body, run)
        if not await self.workspaces_done(wanted.project, wanted.memory, rollout, run, int(entry["attempt"])):
            return False
        memory = await self._reader.head(wanted.project, wanted.memory)
        hold = memory.body.get("held", {}).get(rollout)
        if hold is not None:
            return not approvals.is_undecided(hold, entry)
        revision = await self._reader.current(memory, wanted.project, wanted.memory)
        covered = revision.map("coverage").get(rollout) if revision else None
        return covered is not None and int(covered["counter"]) >= int(entry.get("since", head.counter))

    async def workspaces_done(self, project: str, memory: str, rollout: str, run: str, attempt: int) -> bool:
        """Whether every workspace that the run left has been worked: else its next run would begin from an older one.

        A line says whether it took the run in, but for one that left its workspace as it was: that the snapshot
        stage has passed the run's event is what is known of it then.
        """
        key = keys.record(project, memory, rollout, run, attempt)
        start = await self._store.get_range(key, 0, META_BYTES_MAX)
        try:
            agents = json.loads((start or b"{}").partition(b"\n")[0]).get("workspaces", [])
        except ValueError:
            agents = []
        for agent in agents:
            line = lines.Line(project, rollout, agent)
            head = await lines.read(self._store, line)
            done = await lines.forgotten(self._store, line, run, head)
            if lines.place(head.body, done, run, attempt) is None:
                return await self._has_passed((rollout, run))
        return True

    async def _has_passed(self, run: tuple[str, str]) -> bool:
        at = {"group": SNAPSHOT_GROUP, "topic": pipeline.RUNS.name}
        committed = await self._bus.committed(**at)
        if run not in self._ends:
            lag = await self._bus.lag(**at)
            self._ends[run] = {
                partition: offset + lag.get(partition, 0) for partition, offset in committed.items()
            }
        return all(committed.get(partition, 0) >= end for partition, end in self._ends[run].items())

    async def _is_dead(self, wanted: Wanted) -> bool:
        for letter in await self._letters():
            is_theirs = letter.resolution is None and dead.project_of(letter) == wanted.project
            if is_theirs and dead.run_of(letter) == wanted.wait_for:
                return True
        return False

    # --- at a time ------------------------------------------------------------------------------------------

    async def _revision_at(self, wanted: Wanted) -> int:
        """The newest revision that was there at a time. Raises `errors.NotFound`."""
        assert isinstance(wanted.at, dt.datetime)
        async for body in self._reader.line(wanted.project, wanted.memory):
            if dt.datetime.fromisoformat(body["created_at"]) <= wanted.at:
                return int(body["revision"])
        raise errors.NotFound(
            f"memory {wanted.project}/{wanted.memory} had no revision at {wanted.at.isoformat()}"
        )

    # --- the template ---------------------------------------------------------------------------------------

    async def _from_template(
        self, wanted: Wanted, found: seeds.Seed | None, tagged: Tagged
    ) -> seeds.Seed | None:
        """The seed with the project's template as its workspace, where there is one."""
        ref = await self._template(wanted.project, await tagged())
        if ref is None:
            return found
        if found is not None:
            return replace(found, snapshot=ref, template=True)
        line = await self.line(wanted)
        term = clock.now() + dt.timedelta(hours=seeds.TERM_HOURS)
        return seeds.Seed(
            project=wanted.project,
            memory=wanted.memory,
            revision=0,
            manifest="",
            rollout=line.rollout,
            subject=wanted.whom,
            expires=term.isoformat(timespec="seconds"),
            agent=line.agent,
            snapshot=ref,
            template=True,
        )

    async def _template(self, project: str, rows: Sequence[dict[str, Any]]) -> str | None:
        """The ref that is tagged, as the head says it now: the index may be behind it."""
        for row in rows[:TEMPLATES_READ_MAX]:
            key = keys.snapshot_head(project, row["rollout"], row["agent"])
            head = await heads.read(self._store, key, fmt=lines.HEAD_FORMAT)
            ref = head.body.get("tags", {}).get(TEMPLATE)
            if ref:
                return str(ref)
        return None


async def _raise(exc: errors.RunloreError) -> None:
    raise exc


def _is_behind(found: seeds.Seed | None, wanted: Wanted) -> bool:
    """Whether a seed is older than the one that the client saw last, in any line that both name.

    A revision asked for by its number or its time is what the client wants, however old.
    """
    after = wanted.after
    if after is None:
        return False
    revision, version = (found.revision, found.version) if found else (0, 0)
    line = lines.line_of(wanted.project, wanted.rollout, wanted.agent)
    if after.memory == wanted.memory and wanted.at is None and revision < after.revision:
        return True
    return (after.rollout, after.agent) == (line.rollout, line.agent) and version < after.version
