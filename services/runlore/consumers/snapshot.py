"""Snapshot: what a run left in its workspaces becomes the next version of their lines.

    head → ledger of erasures → outcome → blobs → trees → CAS head → ring → offset

It reads the same events as the record stage, in a group of its own, and neither waits for the other: a run with a
workspace that can not be taken in still has its record. A workspace is a snapshot saved already, an archive (a
claim) or a folder; what is ingested here refers only to the version that the line's head named when it was read
(invariant 7), and is checked on the way in, so that what is published can be restored (invariant 6).

A redelivered run costs its head and one LIST. A run that did not see the head becomes a branch (`commit/lines.py`).
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runlore import clock, errors
from runlore.bus import port as bus_port
from runlore.commit import age, erasures, heads, keys, lines, rollouts
from runlore.consumers import dead, record
from runlore.consumers.runtime import SEQUENTIAL, Runtime
from runlore.events import ids, models
from runlore.snapshots import library, names, reading, statcache, streams
from runlore.store import port as store_port

RESTARTS_MAX = 8
ARCHIVE_BYTES_MAX = 16 * 1024**3
"""The largest archive that is read at all, in bytes; what it may unfold to is limited where it is read."""
REFS_OPENED_MAX = 16
"""Refs of a head that are looked into for the packs of a snapshot saved elsewhere."""
OWN_DIRS = (".runlore",)
"""What Runlore itself writes into a workspace."""

MOVED, BRANCHED, ALREADY, SUPERSEDED, UNCHANGED = (
    lines.MOVED,
    lines.BRANCHED,
    lines.ALREADY,
    lines.SUPERSEDED,
    lines.UNCHANGED,
)


@dataclass(frozen=True)
class Work:
    """One workspace of one run."""

    incoming: record.Incoming
    workspace: models.Workspace

    @property
    def line(self) -> lines.Line:
        data, agent = self.incoming.data, self.workspace.agent
        name = ids.alias(agent.strip()) if agent and agent.strip() else lines.MAIN
        return lines.Line(data.project, data.rollout.alias, name)

    @property
    def base(self) -> lines.Base:
        base = self.workspace.base
        if base is None:
            return lines.Base()
        return lines.Base(base.counter, lines.id_of(base.snapshot) if base.snapshot else None)

    def offer(self, ref: str) -> lines.Offer:
        data, event = self.incoming.data, self.incoming.event
        child = bool(data.parent_run_id and data.parent_run_id.strip())
        return lines.Offer(self.incoming.run, data.attempt, ref, self.base, event.id, child=child)


class SnapshotStage:
    """Takes batches of messages of the topic `runs`. `folders` are those below which a workspace may lie."""

    def __init__(
        self,
        store: store_port.ObjectStore,
        bus: bus_port.Bus,
        *,
        folders: Sequence[Path] = (),
        cache_dir: Path | None = None,
        runtime: Runtime = SEQUENTIAL,
    ) -> None:
        self._store, self._bus = store, bus
        self._folders, self._cache_dir = tuple(folders), cache_dir
        self._runtime = runtime

    async def process(self, messages: Sequence[bus_port.Message]) -> record.Processed:
        """Put the effect of every message in the store; only then are there offsets to commit.

        An event that the record stage refuses is left to it: one message, one dead letter. Raises
        `errors.Retryable` or `errors.Blocked` as the store does.
        """
        groups: dict[tuple[str, str], list[tuple[int, record.Incoming]]] = {}
        for number, message in enumerate(messages):
            try:
                # What was erased has no bytes.
                incoming = record.parse(message)
            except errors.Poison:
                continue
            if incoming.data.workspaces:
                where = (incoming.data.project, incoming.data.rollout.alias)
                groups.setdefault(where, []).append((number, incoming))
        jobs = [lambda members=members: self._rollout(members) for members in groups.values()]
        outcomes: dict[int, record.Outcome] = {}
        bells: list[models.Changed] = []
        for found, rung in await self._runtime.gather(jobs):
            outcomes |= found
            bells += rung
        await self._bury([one for one in outcomes.values() if one.error])
        await record.ring(self._bus, bells)
        offsets: dict[bus_port.TopicPartition, int] = {}
        for message in messages:
            offsets[message.at] = max(offsets.get(message.at, 0), message.offset + 1)
        return record.Processed([outcomes[number] for number in sorted(outcomes)], offsets)

    async def _bury(self, outcomes: Sequence[record.Outcome]) -> None:
        letters = [
            await dead.letter(self._store, one.message, one.error, stage="snapshot")
            for one in outcomes
            if one.error is not None
        ]
        if letters:
            await self._bus.produce(letters)

    async def _rollout(
        self, members: Sequence[tuple[int, record.Incoming]]
    ) -> tuple[dict[int, record.Outcome], list[models.Changed]]:
        """The effect of a rollout's runs, in order; their outcomes, and what to ring."""
        outcomes: dict[int, record.Outcome] = {}
        bells = []
        for number, incoming in members:
            states, error = [], None
            for workspace in incoming.data.workspaces:
                # One workspace that can not be taken in keeps no other from its line.
                try:
                    placed = await self.place(Work(incoming, workspace))
                    states.append(placed.state)
                    bells += [_bell(incoming, placed.head)] if placed.moved else []
                except errors.Poison as exc:
                    error = error or exc
            state = record.DEAD if error else next((one for one in states if one != ALREADY), ALREADY)
            outcomes[number] = record.Outcome(incoming.message, state, error)
        return outcomes, bells

    async def place(self, work: Work) -> lines.Placed:
        """One workspace on its line. Raises a `Poison` where it never can be."""
        for _ in range(RESTARTS_MAX):
            head = await lines.read(self._store, work.line)
            if await self._is_erased(work, head):
                return lines.Placed(record.ERASED, head)
            done = await lines.forgotten(self._store, work.line, work.incoming.run, head)
            there = lines.place(head.body, done, work.incoming.run, work.incoming.data.attempt)
            if there is not None:
                await self._check_same(work, head, done)
                return lines.Placed(there, head)
            ref, began = await self._saved(work, head)
            try:
                return await lines.advance(self._store, work.line, work.offer(ref), began=began, seen=head)
            except errors.CommitTooLate:
                # What it refers to may be gone: from the head again, and everything is written anew.
                continue
        raise errors.StoreUnavailable(f"the workspace of {work.line} took too long, {RESTARTS_MAX} times")

    async def _is_erased(self, work: Work, head: heads.Head) -> bool:
        """Whether the run was erased: its workspace's head, its rollout's head or the ledger says so."""
        data = work.incoming.data
        if erasures.is_erased(head.body, work.incoming.run):
            return True
        key = keys.rollout_head(*work.incoming.line_of)
        rollout, ledger = await self._store.get_many([key, keys.erasure_ledger(data.project)])
        parsed = heads.parse(key, rollout, fmt=rollouts.HEAD_FORMAT)
        rows = erasures.rows(
            heads.parse(keys.erasure_ledger(data.project), ledger, fmt=erasures.LEDGER_FORMAT)
        )
        return work.incoming.is_erased(parsed, rows)

    async def _check_same(self, work: Work, head: heads.Head, done: dict[int, str]) -> None:
        """A run and attempt leaves one snapshot. What it said first stands; another one is told."""
        attempt, given = work.incoming.data.attempt, work.workspace.snapshot
        ref = lines.known(head.body, work.incoming.run).get(attempt)
        if ref is None and given is not None and attempt in done:
            ref = (await lines.outcome(self._store, done[attempt])).get("ref")
        if given is not None and ref is not None and lines.id_of(given) != lines.id_of(ref):
            raise errors.SnapshotConflict(
                f"run {work.incoming.run} attempt {attempt} left snapshot {ref[:12]} before, not {given[:12]}",
                hint="a corrected run needs a higher `attempt`",
            )

    # --- blobs and trees ------------------------------------------------------------------------------------

    async def _saved(self, work: Work, head: heads.Head) -> tuple[str, dt.datetime]:
        """The workspace as a snapshot: (its ref, since when what it refers to is known to be kept)."""
        if work.workspace.snapshot is not None:
            return await self._named(work, head)
        base = await self._base(work, head)
        try:
            if work.workspace.folder is None:
                return await self._ingest(work, base), head.read_at
            folder = await self._runtime.offload(self._allowed, work.workspace.folder)
            cache_dir = await self._runtime.offload(self._cache_for, folder)
            made = library.Snapshots(self._store, work.line.project, cache_dir=cache_dir)
            saved = await made.save(folder, base=base, without=_own(work))
            return str(saved.ref), head.read_at
        except errors.InvalidInput as exc:
            raise errors.ArchiveRefused(f"{exc.kind}: {exc.message}", hint=exc.hint) from exc

    async def _base(self, work: Work, head: heads.Head) -> str | None:
        """The version to share packs with; None where it can not be read: that costs bytes, and stops nobody."""
        ref = head.body.get("ref")
        try:
            if ref:
                await reading.open_exact(self._store, work.line.project, names.Ref.parse(ref))
        except (errors.NotFound, errors.Corrupt):
            return None
        return ref

    async def _ingest(self, work: Work, base: str | None) -> str:
        claim = work.workspace.archive
        assert claim is not None
        key = keys.claim(work.line.project, claim.sha256)
        if claim.size > ARCHIVE_BYTES_MAX:
            raise errors.ArchiveRefused(
                f"the archive has {claim.size} bytes; at most {ARCHIVE_BYTES_MAX} are read"
            )
        if await self._store.get_range(key, 0, 1) is None:
            raise errors.ClaimMissing(
                f"the claim {claim.sha256[:12]} is not in project {work.line.project}",
                hint="upload the archive, then `runlore dead redrive`",
            )
        with streams.ObjectFile(self._store, key, claim.size) as archive:
            made = library.Snapshots(self._store, work.line.project)
            saved = await made.ingest(archive, base=base, without=_own(work))  # type: ignore[arg-type]
            # Before anything names it: until then a lie about the bytes has no effect.
            if await self._runtime.offload(archive.finish) != claim.sha256:
                raise errors.ClaimMismatch(
                    f"the archive {claim.sha256[:12]} has other bytes than its claim says"
                )
        return str(saved.ref)

    def _allowed(self, folder: str) -> str:
        """The folder's real path, if it is below one that the settings allow. Blocking."""
        real = os.path.realpath(folder)
        for root in self._folders:
            if real.startswith(os.path.realpath(root).rstrip("/") + "/"):
                if os.path.isdir(real):
                    return real
                raise errors.FolderRefused(f"there is no folder {folder!r}")
        raise errors.FolderRefused(
            f"the folder {folder!r} is not below one of RUNLORE_WORKSPACE_FOLDERS",
            hint="allow it there, or hand over an archive",
        )

    def _cache_for(self, folder: str) -> Path | None:
        """Where the stat cache of `folder` lies; None where that is in the folder itself. Blocking."""
        here = self._cache_dir
        return None if here is None or statcache.lies_in(here, folder) else here

    async def _named(self, work: Work, head: heads.Head) -> tuple[str, dt.datetime]:
        """A snapshot that somebody saved: every pack of it is named by the head now, or young enough.

        Nothing names it yet, so a sweep may take what is old. Its oldest pack therefore counts as the beginning of
        this write, whoever wrote it.
        """
        assert work.workspace.snapshot is not None
        project, ref = work.line.project, names.Ref.parse(work.workspace.snapshot)
        try:
            wanted = (await reading.open_exact(self._store, project, ref)).packs()
        except errors.NotFound as exc:
            raise errors.SnapshotMissing(exc.message, hint="save it again, as a higher attempt") from None
        except errors.Corrupt as exc:
            raise errors.SnapshotMissing(f"snapshot {ref.id[:12]} is not whole: {exc.message}") from None
        present = head.body.get("ref")
        refs = [*([present] if present else []), *sorted(lines.named(head.body) - {present})]
        for one in refs[:REFS_OPENED_MAX]:
            if wanted:
                wanted -= (await reading.open_exact(self._store, project, names.Ref.parse(one))).packs()
        began = head.read_at
        for key in sorted(wanted):
            rows = [row async for row in self._store.list(key) if row.key == key]
            if not rows:
                raise errors.SnapshotMissing(f"snapshot {ref.id[:12]} needs {key}, which is not there")
            began = min(began, dt.datetime.fromtimestamp(rows[0].modified, dt.UTC))
        if clock.now() - began > age.TERM - age.WINDOW:
            raise errors.SnapshotExpired(
                f"snapshot {ref.id[:12]} refers to what was written {began:%Y-%m-%d %H:%M} and no head names",
                hint="save it again from the workspace, as a higher attempt",
            )
        return str(ref), began


def _own(work: Work) -> list[str]:
    """What is never part of a snapshot: the memory directories, which a seed overlays, and Runlore's own."""
    layout = work.workspace.layout or work.incoming.data.layout
    return [layout.memories_dir, layout.sessions_dir, *OWN_DIRS]


def _bell(incoming: record.Incoming, head: heads.Head) -> models.Changed:
    return models.Changed(
        kind="snapshot",
        project=incoming.data.project,
        memory=incoming.data.memory,
        rollout=head.body["rollout"],
        agent=head.body["agent"],
        counter=head.counter,
    )
