"""Commands that move runs: emit, import, seed (`cli/stages.py` has those that run the stages)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from runlore.cli import ui

BATCH = 100
BATCH_BYTES = 8 * 1024 * 1024
"""An import publishes after this many runs, or after this many bytes of records."""


def register(app: typer.Typer) -> None:
    app.command()(emit)
    app.command(name="import")(import_)
    app.command()(seed)


def emit(
    file: Annotated[
        str,
        typer.Argument(
            help="JSON lines: run.completed and memory.edited events, or their data. '-' reads stdin."
        ),
    ] = "-",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Publish events, one a line: a CloudEvent (structured mode), or a run's data alone.

    Each line ends on the bus or in a dead letter, never nowhere; a line that no stage can take is named here
    and can be seen with `runlore dead` after the next `up`. Sending a file twice changes nothing.

    Example: runlore emit runs.jsonl
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors, wiring
        from runlore.commit import redaction
        from runlore.producer import Producer

        if file == "-" and sys.stdin.isatty():
            out.note("reading events from the terminal; end with Ctrl-D")
        settings = ui.settings_of(home)
        try:
            # Not closed: its reader may be waiting in it, and would not let go.
            stream = _stdin() if file == "-" else open(file, "rb")  # noqa: SIM115, ASYNC230
        except OSError as exc:
            raise errors.NotFound(f"{file} can not be read: {exc.strerror}") from None
        async with wiring.open_home(settings, create=True) as opened:
            made = Producer(opened.store, opened.bus, hashing=redaction.Keys(opened.store))
            await _emit(out, made, stream, file)
        stream.close()

    ui.run(work, as_json=as_json)


def _stdin() -> BinaryIO:
    """Standard input as a stream of its own: the interpreter's would be locked at exit by a waiting reader."""
    import os

    try:
        return open(os.dup(sys.stdin.fileno()), "rb")
    except (OSError, ValueError):
        return sys.stdin.buffer


async def _emit(out: ui.Out, producer: Any, stream: Any, name: str) -> None:
    from runlore import errors

    sent = 0
    problems = ui.Problems()
    with out.progress() as bar:
        task = bar.add_task("emit", total=None, detail="")
        try:
            async for batch in producer.emit(stream, source="/runlore/emit"):
                sent += len(batch)
                for one in batch:
                    if one.problem:
                        problems.add({"line": one.line, "event": one.event_id, **one.problem.as_dict()})
                        out.note(f"{name}:{one.line}: {one.problem.kind}: {one.problem.message}")
                bar.update(task, completed=sent, detail=f"{len(problems)} problems" if problems else "")
        except OSError as exc:
            raise errors.InvalidInput(f"{name} can not be read: {exc.strerror}") from None
    out.answer({"sent": sent, **problems.answer()})
    said = f"sent {sent} events"
    if problems:
        said += f"; {len(problems)} of them will be dead letters (`runlore dead` after the next `up`)"
    out.say(said)
    if sent == 0:
        out.note(f"{name} holds no event")


def import_(
    fmt: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT", help="agents-sdk, chat, swe-agent, codex or claude-code.", show_default=False
        ),
    ] = "",
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="PATH…", help="Files or folders.", show_default=False)
    ] = None,
    project: ui.MaybeProject = None,
    memory: ui.MaybeMemory = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and check everything, publish nothing.")
    ] = False,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Read transcripts that are there already and publish a run-completed event for each run.

    A broken file or line is named and does not stop the others. Importing twice changes nothing, and an
    interrupted import can simply be run again. Without a FORMAT it lists the formats.

    Example: runlore import chat conversations.jsonl --project acme --memory support
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors, sources, wiring
        from runlore.commit import redaction
        from runlore.events import ids
        from runlore.producer import Producer

        if not fmt:
            _list_formats(out)
            return
        if fmt not in sources.FORMATS:
            raise errors.InvalidInput(
                f"there is no format {fmt!r}", hint=f"formats: {', '.join(sources.FORMATS)}"
            )
        if not paths:
            raise errors.InvalidInput(
                "no PATH was given", hint=f"`runlore import {fmt} PATH… --project P --memory M`"
            )
        if not project or not memory:
            raise errors.InvalidInput(
                "--project and --memory are needed", hint="they say where the runs belong"
            )
        ids.check_name(project, "project")
        ids.check_name(memory, "memory")
        missing = [path for path in paths if not path.exists()]
        if missing:
            raise errors.NotFound(f"{missing[0]} does not exist")
        settings = ui.settings_of(home)
        if dry_run:
            await _import(out, None, fmt, paths, project, memory)
            return
        async with wiring.open_home(settings, create=True) as opened:
            made = Producer(opened.store, opened.bus, hashing=redaction.Keys(opened.store))
            await _import(out, made, fmt, paths, project, memory)

    ui.run(work, as_json=as_json)


def _list_formats(out: ui.Out) -> None:
    from runlore import sources

    rows = [{"format": name, "reads": one.description} for name, one in sources.FORMATS.items()]
    out.answer({"formats": rows})
    out.table(["format", "reads"], [list(row.values()) for row in rows])


async def _import(out: ui.Out, producer: Any, fmt: str, paths: list[Path], project: str, memory: str) -> None:
    from dataclasses import asdict

    from runlore import errors, sources
    from runlore import producer as producers

    runs, rollouts, problems = 0, set(), ui.Problems()
    batch: list[dict[str, Any]] = []
    held = 0

    async def flush() -> None:
        nonlocal held
        if producer is not None and batch:
            await producer.publish(batch, source=producers.source_of(project))
        batch.clear()
        held = 0

    with out.progress() as bar:
        task = bar.add_task(f"import {fmt}", total=None, detail="")
        for path in paths:
            for found in sources.read(fmt, path, project=project, memory=memory):
                if isinstance(found, sources.Problem):
                    problems.add(asdict(found))
                    where = f"{found.file}:{found.line}" if found.line else str(found.file)
                    out.note(f"{where}: {found.kind}: {found.message}")
                    continue
                runs += 1
                rollouts.add(
                    found.data.get("conversation_id") or found.data.get("session_id") or found.data["run_id"]
                )
                batch.append(found.data)
                held += len(found.data["record"])
                bar.update(task, completed=runs, detail=str(path.name))
                if len(batch) >= BATCH or held >= BATCH_BYTES:
                    await flush()
        await flush()
    out.answer({"runs": runs, "rollouts": len(rollouts), **problems.answer(), "dry_run": producer is None})
    verb = "would publish" if producer is None else "published"
    out.say(
        f"{verb} {runs} runs of {len(rollouts)} rollouts"
        + (f"; {len(problems)} problems" if problems else "")
    )
    if producer is not None and runs:
        out.note("next: `runlore up --once` makes memory of them")
    if problems and not runs:
        raise errors.InvalidInput(f"nothing in {', '.join(map(str, paths))} could be read as {fmt}")


def seed(
    id: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="The next run's conversation, session or group id; or a seed id.",
            show_default=False,
        ),
    ] = "",
    project: ui.MaybeProject = None,
    memory: ui.MaybeMemory = None,
    into: Annotated[
        Path | None, typer.Option("--into", help="The workspace to write into.", show_default=False)
    ] = None,
    subject: ui.SubjectOption = None,
    at: Annotated[
        int | None, typer.Option("--at", help="A revision other than the newest.", show_default=False)
    ] = None,
    agent: Annotated[
        str | None,
        typer.Option("--agent", help="Agent, where each has a workspace of its own.", show_default=False),
    ] = None,
    line: ui.LineOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what was edited in the workspace, memory or not.")
    ] = False,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Restore the workspace of ID as its last run left it, and write memory for the next run into it.

    Memory holds what every run may know, what only --subject may know, and where rollout ID stopped. Without
    --into it shows what would be written; without an ID it lists the rollouts that there are.

    Example: runlore seed conv-7 --project acme --memory support --into ./workspace
    """

    async def work(out: ui.Out) -> None:
        from runlore import wiring
        from runlore.cli import inspect

        async with wiring.open_home(ui.settings_of(home)) as opened:
            if not id:
                await inspect.list_rollouts(out, opened, project, memory)
                return
            await _seed(out, opened, id, project, memory, into, (subject, at, agent, line), force)

    ui.run(work, as_json=as_json)


async def _seed(
    out: ui.Out,
    opened: Any,
    name: str,
    project: str | None,
    memory: str | None,
    into: Path | None,
    wanted: tuple[str | None, int | None, str | None, str | None],
    force: bool,
) -> None:
    from runlore import errors
    from runlore.lookup import seeds

    found: seeds.Opened | None
    if name.startswith(seeds.PREFIX):
        pinned = seeds.parse(name)
        if project not in (None, pinned.project) or memory not in (None, pinned.memory):
            raise errors.NotFound("the seed is not one of this project and memory")
        found = await seeds.open_seed(opened.reader, pinned)
    else:
        if not project or not memory:
            raise errors.InvalidInput(
                "--project and --memory are needed", hint="`runlore seed` lists what there is"
            )
        subject, at, agent, line = wanted
        found = await seeds.open_newest(
            opened.reader,
            lambda: seeds.resolve(
                opened.reader, project, memory, name, subject=subject, at=at, agent=agent, side=line
            ),
        )
    if found is None:
        nothing = {"snapshot": None, "base": {"counter": 0, "snapshot": None}, "restored": None}
        out.answer({"seed": None, "revision": 0, "files": [], "into": None, "written": 0, **nothing})
        out.say(f"{project}/{memory} has no revision yet: the run starts without memory")
        return
    await _write_seed(out, opened, found, into, force=force)


async def _write_seed(out: ui.Out, opened: Any, found: Any, into: Path | None, *, force: bool) -> None:
    import asyncio

    from runlore.lookup import seeds

    pinned: seeds.Seed = found.seed
    mode = opened.settings.seeds_are_audited
    if mode != "off":
        from runlore.lookup import handing

        await handing.once(opened.store, pinned, by=ui.who(opened), mode=mode)
    restored = await _restore(out, opened, found, into, force=force) if into and pinned.snapshot else None
    written = await asyncio.to_thread(seeds.write_into, found, into, force=force) if into else None
    files = [{"path": path, "bytes": len(one.text.encode())} for path, one in sorted(found.files.items())]
    out.answer(
        {
            "seed": pinned.id,
            "project": pinned.project,
            "memory": pinned.memory,
            "rollout": pinned.rollout,
            "subject": pinned.subject,
            "revision": pinned.revision,
            "expires": pinned.expires,
            "notes": found.notes,
            "files": files,
            "into": str(into) if into else None,
            "written": written.written if written else 0,
            "unchanged": written.unchanged if written else 0,
            "removed": written.removed if written else 0,
            "agent": pinned.agent,
            "snapshot": pinned.base["snapshot"],
            "base": pinned.base,
            "restored": restored.stats if restored else None,
        }
    )
    out.say(
        f"seed of {pinned.project}/{pinned.memory} revision {pinned.revision} ({found.notes} notes, {len(files)} files)"
    )
    if pinned.snapshot:
        shown = (
            f"restored, {restored.stats['files']:,} files"
            if restored
            else "there already"
            if into
            else "pinned"
        )
        out.say(f"workspace {pinned.snapshot[:12]} version {pinned.version}: {shown}")
    _tree(out, into, files)
    if into is None:
        out.note("nothing was written: name a workspace with --into DIR")


async def _restore(out: ui.Out, opened: Any, found: Any, into: Path, *, force: bool) -> Any:
    """The seed's workspace, before memory is laid over it; None where it is there already."""
    from runlore.lookup import workspaces
    from runlore.snapshots.library import Snapshots

    made = Snapshots(opened.store, found.seed.project, cache_dir=opened.settings.cache_dir / "stat")
    with out.progress() as bar:
        task = bar.add_task("restore", total=None, detail="")
        show = lambda files, size: bar.update(task, completed=files, detail=f"{size / 1e6:,.1f} MB")  # noqa: E731
        return await workspaces.restore(made, found, into, force=force, progress=show)


def _tree(out: ui.Out, into: Path | None, files: list[dict[str, Any]]) -> None:
    """The files as a tree; long folders cut in the middle."""
    out.say(f"{into or '.'}/")
    folders: dict[str, list[dict[str, Any]]] = {}
    for one in files:
        folders.setdefault(str(Path(one["path"]).parent), []).append(one)
    for folder, members in sorted(folders.items()):
        out.say(f"  {folder}/")
        shown = members if len(members) <= 8 else members[:6]
        for one in shown:
            out.say(f"    {Path(one['path']).name}  ({one['bytes']:,} bytes)")
        if len(shown) < len(members):
            out.say(f"    … and {len(members) - len(shown)} more")
