"""Runlore in this process: a home on this machine (SQLite and a folder), with nothing else running.

What was handed over is worked off here before the next seed, by the stages that `runlore up --once` runs. Where
`runlore up` holds the home, its result is waited for instead. The home is opened for each call: a program may run
several event loops one after the other, and other processes use the same home meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from runlore import clock, errors, producer, wiring
from runlore.agents import port, seen
from runlore.commit import lines, marks, redaction
from runlore.events import envelope, ids, models
from runlore.lookup import asking, explain, handing, index, merging, seeds, waiting
from runlore.pipeline import RUNS
from runlore.settings import Settings
from runlore.snapshots import library
from runlore.upkeep import audit
from runlore.worker import loop

POLL_SECONDS = 0.05
"""How often the work of another process is looked at."""
COPY_BYTES = 1024 * 1024


class Embedded:
    """`port.Backend` on the home that `settings` name, for one project and memory."""

    is_here = True

    def __init__(self, settings: Settings, *, project: str, memory: str, seeds: seen.Seen) -> None:
        # Past one machine the stages run elsewhere, and an agent asks the lookup service.
        self._settings = settings.model_copy(update={"bus": "sqlite", "store": "directory"})
        self._project, self._memory, self._seeds = project, memory, seeds
        if not structlog.is_configured():
            # Unconfigured, structlog prints to stdout, which belongs to the program that we are a guest of.
            structlog.configure(
                processors=[structlog.stdlib.filter_by_level, structlog.stdlib.render_to_log_kwargs],
                logger_factory=structlog.stdlib.LoggerFactory(),
                wrapper_class=structlog.stdlib.BoundLogger,
            )

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[wiring.Home]:
        async with wiring.open_home(self._settings, create=True) as opened:
            yield opened

    # --- before a run ---------------------------------------------------------------------------------------

    async def seed(self, ask: port.Ask, agent: str | None) -> port.Seeded:
        async with self._open() as opened:
            rollout = ask.rollout.original
            wanted = await self._line(opened, ask, agent)
            asked = asking.Wanted(self._project, self._memory, rollout, subject=ask.subject, agent=wanted)
            asker = asking.Asker(opened.store, opened.bus, opened.reader)

            async def resolve() -> seeds.Seed | None:
                return await asker.seed(asked, lambda: asyncio.to_thread(_tagged, opened, self._project))

            whole = await seeds.open_newest(opened.reader, resolve)
            found = whole.seed if whole else None
            now = seen.Newest(found.id, found.revision, found.version) if found else seen.Newest("", 0, 0)
            before = await self._seeds.before(ask.rollout.alias, wanted)
            await self._seeds.checked(ask.rollout.alias, wanted, now, before)
            if found is None or whole is None:
                return port.Seeded(workspace=port.Workspace(agent=wanted))
            await handing.once(
                opened.store, found, by=audit.who(self._settings), mode=self._settings.seeds_are_audited
            )
            return port.Seeded(
                id=found.id,
                revision=found.revision,
                notes=whole.notes,
                memories_dir=str(whole.layout["memories_dir"]),
                files={path: one.text.encode("utf-8") for path, one in whole.files.items()},
                workspace=port.Workspace(agent=wanted, snapshot=found.snapshot, base=found.base),
            )

    async def probe(self, ask: port.Ask) -> None:
        """Nothing: there is nobody else who could be out."""

    async def _line(self, opened: wiring.Home, ask: port.Ask, agent: str | None) -> str | None:
        """`agent` if it has a line of its own by now; else none, which is the rollout's main line."""
        if agent is None:
            return None
        head = await lines.read(opened.store, lines.line_of(self._project, ask.rollout.original, agent))
        if head.counter or await self._seeds.before(ask.rollout.alias, agent) is not None:
            return agent
        return None

    async def workspace(self, ask: port.Ask, agent: str) -> port.Workspace:
        async with self._open() as opened:
            head = await lines.read(opened.store, lines.line_of(self._project, ask.rollout.original, agent))
            base = lines.base_of(head.body)
            before = await self._seeds.before(ask.rollout.alias, agent)
            now = seen.Newest("", before.revision if before is not None else 0, base.version)
            await self._seeds.checked(ask.rollout.alias, agent, now, before)
            return port.Workspace(
                agent=agent,
                snapshot=head.body.get("ref"),
                base={"counter": base.version, "snapshot": base.snapshot},
            )

    async def fetch(self, workspace: port.Workspace, to: Path) -> None:
        if workspace.snapshot is None:
            return
        async with self._open() as opened:
            made = library.Snapshots(opened.store, self._project)
            found = await made.open(workspace.snapshot)
            archive = await made.export(found.ref)
            try:
                await asyncio.to_thread(_copy, archive, to)
            finally:
                archive.close()

    async def began_by(self, ask: port.Ask, agent: str | None, run: str) -> Mapping[str, Any] | None:
        async with self._open() as opened:
            line = lines.line_of(self._project, ask.rollout.original, agent)
            head = await lines.read(opened.store, line)
            if head.body.get("moved_by", {}).get("run") != ids.alias(run):
                return None
            base = lines.base_of(head.body)
            return {"counter": base.version, "snapshot": base.snapshot}

    # --- after a run ----------------------------------------------------------------------------------------

    async def send(self, data: dict[str, Any], left: Sequence[port.Left]) -> list[str]:
        refused: list[str] = []
        async with self._open() as opened:
            if models.type_of(data) == models.MEMORY_EDITED:
                event = envelope.of_edit(data, source=producer.source_of(self._project))
                message = await _sender(opened).message(event)
                await opened.bus.produce([message])
                return refused
            checked = models.run_completed(data)
            workspaces = []
            for one in left:
                try:
                    workspaces.append(await self._saved(opened, checked, one))
                except errors.InvalidInput as exc:
                    # The run is worth more than its workspace; whoever sent it keeps the tar.
                    refused.append(f"{exc.kind}: {exc.message}")
            event = envelope.of_run(
                {**data, "workspaces": workspaces}, source=producer.source_of(self._project)
            )
            message = await _sender(opened).message(event)
            await opened.bus.produce([message])
        return refused

    async def _saved(self, opened: wiring.Home, run: models.RunCompleted, one: port.Left) -> dict[str, Any]:
        """The workspace as a snapshot that the event names. Raises `errors.InvalidInput` on a tar that is none."""
        line = lines.line_of(self._project, run.rollout.original, one.agent)
        head = await lines.read(opened.store, line)
        made = library.Snapshots(opened.store, self._project)
        layout = one.layout or run.layout.model_dump()
        without = [layout["memories_dir"], layout["sessions_dir"], port.OWN_FOLDER]
        try:
            saved = await _ingest(made, one.path, head.body.get("ref"), without)
        except (errors.NotFound, errors.Corrupt):
            # What it might have shared packs with can not be read: that costs bytes, and no workspace.
            saved = await _ingest(made, one.path, None, without)
        return one.told({"snapshot": str(saved.ref)})

    async def settle(self) -> None:
        async with self._open() as opened:
            if not await self._is_due(opened):
                return
            with contextlib.ExitStack() as held:
                try:
                    await asyncio.to_thread(held.enter_context, wiring.only_one(opened.root))
                except errors.HomeInUse:
                    await self._wait(opened)
                    return
                found = index.Index(opened.index_path)
                try:
                    await loop.Worker(opened.store, opened.bus, found, opened.settings).drain()
                finally:
                    found.close()

    async def _is_due(self, opened: wiring.Home) -> bool:
        """Whether anything is left to do: an event that no stage read, or a mark."""
        for stage in ("record", "snapshot"):
            if sum((await opened.bus.lag(group=stage, topic=RUNS.name)).values()):
                return True
        return bool(await marks.standing(opened.store))

    async def _wait(self, opened: wiring.Home) -> None:
        """Until whoever holds the home has worked everything off, or let go of it; the caller has a deadline."""
        while await self._is_due(opened):
            if wiring.up_is_running(opened.root) is None:
                await self.settle()
                return
            await clock.sleep(POLL_SECONDS)

    async def caught_up(self, ask: port.Ask, *, is_patient: bool = True) -> None:
        await self.settle()

    async def wait_for(
        self, run: str, *, rollout: str | None, seconds: float, with_model: bool
    ) -> Sequence[port.Ended]:
        async with self._open() as opened:
            alias = ids.alias(rollout.strip()) if rollout and rollout.strip() else None
            found = index.Index(opened.index_path)

            async def tell() -> list[explain.Story]:
                where = (opened.store, opened.bus, opened.reader, found, run)
                told = await explain.explain(*where, project=self._project)
                return [one for one in told if alias in (None, one.rollout) or one.rollout is None]

            try:
                asker = asking.Asker(opened.store, opened.bus, opened.reader)
                ended = await waiting.wait_for(tell, asker, run, seconds=seconds, with_model=with_model)
            finally:
                found.close()
        return [port.Ended(str(one.story.run or run), one.end, one.cause) for one in ended]

    async def merge(self, rollout: str, branches: Mapping[str, str], base: str | None) -> Mapping[str, Any]:
        async with self._open() as opened:
            made = library.Snapshots(opened.store, self._project)
            line = lines.line_of(self._project, rollout, None)
            return merging.told(await merging.merge_rollouts(made, line, branches, base=base), line)


async def _ingest(
    made: library.Snapshots, path: Path, base: str | None, without: Sequence[str]
) -> library.Saved:
    with await asyncio.to_thread(open, path, "rb") as archive:
        return await made.ingest(archive, base=base, without=without)


def _sender(opened: wiring.Home) -> producer.Producer:
    return producer.Producer(opened.store, opened.bus, hashing=redaction.Keys(opened.store))


def _copy(archive: Any, to: Path) -> None:
    with open(to, "wb") as file:
        shutil.copyfileobj(archive, file, COPY_BYTES)


def _tagged(opened: wiring.Home, project: str) -> Sequence[dict[str, Any]]:
    """Where the project's template is, by the index; it is as new as the last time the stages ran."""
    found = index.Index(opened.index_path)
    try:
        return found.tagged(project)
    finally:
        found.close()
