"""Commands that look: log, show, diff, why, search, explain, status, doctor."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runlore.cli import ui

if TYPE_CHECKING:
    from runlore.lookup.index import Index
    from runlore.wiring import Home

AtOption = Annotated[
    int | None, typer.Option("--at", help="A revision other than the newest.", show_default=False)
]


WAITS_SHOWN = 20
"""Memories of which `status` says for a person what waits for a model; --json has all."""


def register(app: typer.Typer) -> None:
    for command in (log, show, diff, why, search, explain, status, doctor):
        app.command()(command)


@asynccontextmanager
async def _open(home: Any) -> AsyncIterator[tuple[Home, Index]]:
    """The home and its index, which was compared with the heads."""
    from runlore import wiring
    from runlore.lookup import index as lookup_index

    async with wiring.open_home(ui.settings_of(home)) as opened:
        index = lookup_index.Index(opened.index_path)
        try:
            await lookup_index.reconcile(index, opened.store)
            yield opened, index
        finally:
            index.close()


looking = _open
"""The same for the commands of other modules."""


def _list_memories(out: ui.Out, index: Index, project: str | None, usage: str) -> None:
    """What there is, where the memory that is meant is not clear."""
    rows = index.memories(project)
    out.answer({"memories": rows})
    if not rows:
        out.say("there is no memory yet")
        out.note("`runlore import` or `runlore emit` brings runs, `runlore up --once` makes memory of them")
        return
    columns = ("project", "memory", "revision", "rollouts", "runs", "held")
    out.table(columns, [[row[name] for name in columns] for row in rows])
    out.note(f"name one: {usage} --project {rows[0]['project']} --memory {rows[0]['memory']}")


def _meant(out: ui.Out, index: Index, project: str | None, memory: str | None, usage: str) -> tuple[str, str]:
    """The memory that is meant. Where that is not clear, what there is is listed, and the command is over."""
    meant = ui.pick(index.memories(), project, memory)
    if meant is None:
        _list_memories(out, index, project, usage)
        raise ui.Told
    return meant


async def list_rollouts(out: ui.Out, opened: Home, project: str | None, memory: str | None) -> None:
    """The rollouts of the memory that is meant."""
    from runlore.lookup import index as lookup_index

    index = lookup_index.Index(opened.index_path)
    try:
        await lookup_index.reconcile(index, opened.store)
        meant = _meant(out, index, project, memory, "runlore seed ID")
        rows = index.rollouts(*meant)
        out.answer({"project": meant[0], "memory": meant[1], "rollouts": rows})
        columns = ("original", "kind", "runs", "updated_at")
        out.table(("id", *columns[1:]), [[row[name] for name in columns] for row in rows])
    finally:
        index.close()


def log(
    name: ui.MemoryArgument = "",
    project: ui.MaybeProject = None,
    memory: ui.MaybeMemory = None,
    line: ui.LineOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="Revisions to show.")] = 20,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """List a memory's revisions, newest first: what each took in, from which engine, at what cost.

    Example: runlore log support --project acme
    """

    async def work(out: ui.Out) -> None:
        from runlore.lookup import memories

        async with _open(home) as (opened, index):
            meant = _meant(out, index, project, memory or name or None, "runlore log")
            rows = []
            async for body in opened.reader.line(*meant, side=line):
                rows.append(memories.log_row(body))
                if len(rows) == limit:
                    break
            if not rows:
                await opened.reader.at(*meant, side=line)
            out.answer({"project": meant[0], "memory": meant[1], "line": line, "revisions": rows})
            columns = ("revision", "created_at", "reason", "engine", "rollouts", "runs", "notes", "files")
            out.table(columns, [[row[name] for name in columns] for row in rows])

    ui.run(work, as_json=as_json)


def show(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A file of the memory; without it, all are listed.")
    ] = "",
    project: ui.MaybeProject = None,
    memory: ui.MaybeMemory = None,
    at: AtOption = None,
    line: ui.LineOption = None,
    subject: ui.SubjectOption = None,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Show a file of a memory's revision, or list its files.

    Example: runlore show memory_summary.md --project acme --memory support
    """

    async def work(out: ui.Out) -> None:
        from runlore.lookup import memories

        async with _open(home) as (opened, index):
            meant = _meant(out, index, project, memory, "runlore show")
            number, files = await memories.files_of(opened.reader, *meant, at, subject, side=line)
            if path:
                name, one = memories.file_of(files, path)
                out.answer({"revision": number, "path": name, "text": one.text})
                out.say(one.text.rstrip("\n"))
                return
            rows = [{"path": name, "bytes": len(one.text.encode())} for name, one in sorted(files.items())]
            out.answer({"project": meant[0], "memory": meant[1], "revision": number, "files": rows})
            out.table(("path", "bytes"), [[row["path"], row["bytes"]] for row in rows])

    ui.run(work, as_json=as_json)


def diff(
    versions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MEMORY] [A] [B]",
            help="Older and newer: a revision, `main`, a side line, NAME@REVISION (default: B's parent, the newest).",
            show_default=False,
        ),
    ] = None,
    project: ui.MaybeProject = None,
    memory: ui.MaybeMemory = None,
    subject: ui.SubjectOption = None,
    stat: Annotated[
        bool, typer.Option("--stat", help="Only which files changed, and by how many lines.")
    ] = False,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Show what changed between two revisions, or between two lines, as a unified diff.

    Example: runlore diff 41 42 --project acme --memory support
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors
        from runlore.lookup import memories

        given = list(versions or [])
        if len(given) > 3:
            raise errors.InvalidInput("at most a memory and two versions can be said")
        called = given.pop(0) if len(given) == 3 else None
        async with _open(home) as (opened, index):
            meant = _meant(out, index, project, memory or called, "runlore diff")
            side, at = _version(given[1]) if len(given) == 2 else (None, None)
            newer, after = await memories.files_of(opened.reader, *meant, at, subject, side=side)
            was, older = _version(given[0]) if given else (None, newer - 1)
            if older is not None and older < 0:
                raise errors.InvalidInput("revisions are numbered from 1")
            before: dict[str, Any] = {}
            if older != 0 or was:
                older, before = await memories.files_of(opened.reader, *meant, older, subject, side=was)
            changes = memories.changes(before, after)
            out.answer(
                {
                    "project": meant[0],
                    "memory": meant[1],
                    "from": older,
                    "to": newer,
                    "from_line": was,
                    "to_line": side,
                    "files": changes,
                }
            )
            _tell_changes(out, changes, stat=stat)
            if not changes:
                out.note(f"revisions {_named(was, older)} and {_named(side, newer)} hold the same files")

    ui.run(work, as_json=as_json)


def _version(said: str) -> tuple[str | None, int | None]:
    """(side line, revision) of a version as it is said. Raises `errors.InvalidInput`."""
    from runlore import errors

    name, at, number = said.partition("@")
    if name.lstrip("-").isdigit() and not at:
        return None, int(name)
    if at and not number.isdigit():
        raise errors.InvalidInput(f"{said!r} is not NAME@REVISION", hint="like luna@3")
    return (None if name == "main" else name), (int(number) if at else None)


def _named(side: str | None, number: int | None) -> str:
    return f"{side}@{number}" if side else str(number)


def _tell_changes(out: ui.Out, changes: list[dict[str, Any]], *, stat: bool) -> None:
    for change in changes:
        if stat:
            out.say(f"{change['change']:8} +{change['added']:<5} -{change['removed']:<5} {change['path']}")
        else:
            out.say(change["diff"].rstrip("\n"))
    if stat and changes:
        added, removed = (sum(change[what] for change in changes) for what in ("added", "removed"))
        out.say(f"{len(changes)} files, {added} lines added, {removed} removed")


def why(
    where: Annotated[
        str, typer.Argument(metavar="PATH:LINE", help="A line of a memory's file.", show_default=False)
    ] = "",
    project: ui.MaybeProject = None,
    memory: ui.MaybeMemory = None,
    at: AtOption = None,
    side: ui.LineOption = None,
    subject: ui.SubjectOption = None,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Say why a line of memory is there: the note it comes from, and the runs and items that support it.

    Example: runlore why memory_summary.md:12 --project acme --memory support
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors
        from runlore.lookup import memories

        async with _open(home) as (opened, index):
            meant = _meant(out, index, project, memory, "runlore why PATH:LINE")
            number, files = await memories.files_of(opened.reader, *meant, at, subject, side=side)
            if not where:
                lines = [
                    {"path": name, "lines": one.text.count("\n"), "spans": len(one.why)}
                    for name, one in sorted(files.items())
                ]
                out.answer({"revision": number, "files": lines})
                out.table(("path", "lines", "explained spans"), [list(row.values()) for row in lines])
                out.note("name a line: runlore why memory_summary.md:1")
                return
            path, _, line = where.rpartition(":")
            if not path or not line.isdigit() or int(line) < 1:
                raise errors.InvalidInput(f"{where!r} is not PATH:LINE", hint="like memory_summary.md:12")
            name, one = memories.file_of(files, path)
            revision = await opened.reader.at(*meant, number, side=side)
            await _answer_why(out, opened, revision, name, one, int(line), memories.whom_of(subject))

    ui.run(work, as_json=as_json)


async def _answer_why(
    out: ui.Out,
    opened: Home,
    revision: Any,
    path: str,
    one: Any,
    line: int,
    whom: str | None,
) -> None:
    from runlore import errors
    from runlore.lookup import why as lookup_why

    texts = one.text.splitlines()
    if line > len(texts):
        raise errors.NotFound(f"{path} has {len(texts)} lines, not {line}")
    number = revision.number
    notes = await lookup_why.of_line(opened.store, revision, one, line, subject=whom)
    out.answer({"revision": number, "path": path, "line": line, "text": texts[line - 1], "notes": notes})
    out.say(f"{path}:{line}  (revision {number})")
    out.say(f"  {texts[line - 1]}")
    if not notes:
        out.say("  this line is a heading or a frame of the file: no run is behind it")
    for note in notes:
        out.say(
            f"because of note {note['note']} ({note['kind']}), supported by {len(note['evidence'])} items:"
        )
        if joint := note.get("joint"):
            out.say(f"  brought together by {joint['model']} at {joint['at']}, of {len(joint['over'])} notes")
        for one_evidence in note["evidence"][:20]:
            out.say(
                f"  rollout {one_evidence['rollout']} · run {one_evidence['run']} attempt {one_evidence['attempt']}"
                f" · item {one_evidence['item']}"
            )
            if one_evidence.get("text"):
                out.say(f"      {one_evidence['text']}")
            elif one_evidence["subject"] != whom:
                out.say("      (of a subject; --subject shows what it says)")
        if len(note["evidence"]) > 20:
            out.say(f"  … and {len(note['evidence']) - 20} more (--json lists all)")
        for edit in note.get("edits", [])[:20]:
            was = f"; it said: {edit['was']}" if edit.get("was") else ""
            where = f"rollout {edit['rollout']}, on revision {edit['revision']}{was}"
            out.say(f"  live edit: {edit['what']} by run {edit['run']} of {where}")


def search(
    query: Annotated[str, typer.Argument(help="Words that must all occur.", show_default=False)] = "",
    project: ui.MaybeProject = None,
    memory: ui.MaybeMemory = None,
    subject: ui.SubjectOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="Results to show.")] = 10,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Search the summaries of a memory's rollouts, also those that seeds no longer hold.

    Example: runlore search "timeout retry" --project acme --memory support
    """

    async def work(out: ui.Out) -> None:
        from runlore.lookup import memories

        async with _open(home) as (opened, index):
            meant = ui.pick(index.memories(), project, memory)
            if meant is None or not query.strip():
                _list_memories(out, index, project, "runlore search WORDS")
                return
            found = index.search(query, *meant, subject=memories.whom_of(subject), limit=limit)
            rows = memories.let_in(found, await opened.reader.head(*meant))
            out.answer({"project": meant[0], "memory": meant[1], "results": rows})
            for row in rows:
                out.say(f"{row['rollout']}")
                out.say(f"    {' '.join(row['snippet'].split())}")
            if not rows:
                out.note("no summary has all of these words")

    ui.run(work, as_json=as_json)


def explain(
    event_id: Annotated[
        str, typer.Argument(metavar="EVENT_ID", help="An event, run or rollout id.", show_default=False)
    ] = "",
    wait: Annotated[
        float,
        typer.Option(
            "--wait", metavar="SECONDS", min=0, max=3600, help="Wait so long until it came to an end."
        ),
    ] = 0.0,
    project: ui.MaybeProject = None,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Tell every step of a run: its state, the objects it left, what it waits for, what happens next.

    With --wait it ends when every run that is meant has come to an end (docs/CLI.md lists them), or else as
    wait_timeout; `runlore wait` tells the end by its exit code, too.

    Example: runlore explain 7d2e91c0 --wait 60
    """

    async def work(out: ui.Out) -> None:
        from dataclasses import asdict

        from runlore.lookup import asking, waiting
        from runlore.lookup import explain as lookup_explain

        async with _open(home) as (opened, index):
            if not event_id:
                list_runs(out, index, project)
                return
            known = await known_of(opened)

            async def tell() -> list[Any]:
                where = (opened.store, opened.bus, opened.reader, index, event_id)
                return await lookup_explain.explain(*where, project=project, known=known)

            if wait:
                asker = asking.Asker(opened.store, opened.bus, opened.reader)
                ended = await waiting.wait_for(tell, asker, event_id, seconds=wait)
                stories = [one.story for one in ended]
            else:
                stories = await tell()
            out.answer({"runs": [asdict(story) for story in stories]})
            for story in stories:
                _tell_story(out, story)

    ui.run(work, as_json=as_json)


def list_runs(out: ui.Out, index: Index, project: str | None) -> None:
    """The newest runs, where none was named."""
    rows = index.recent_runs(project)
    out.answer({"runs": rows})
    columns = ("event", "run", "attempt", "rollout", "ended_at")
    out.table(columns, [[row[name] for name in columns] for row in rows])
    if not rows:
        out.note("no run is recorded yet; `runlore status` shows what waits")


async def known_of(opened: Home) -> Any:
    """What this machine knows beside the store: the file of models, and what the stages last said."""
    from runlore import wiring
    from runlore.lookup import explain as lookup_explain
    from runlore.lookup import status as lookup_status

    up = wiring.up_is_running(opened.root)
    stages = await lookup_status.stages_told(opened.store, opened.status_path, up)
    return lookup_explain.Known(_chosen(opened)[0], stages)


def _chosen(opened: Home) -> tuple[Any, str]:
    """The file of models, or what is wrong with it: whoever looks is not kept from looking by that."""
    from runlore import errors
    from runlore.models import choices

    try:
        return choices.load(opened.settings.models_file), ""
    except errors.BadModels as exc:
        return None, exc.message


def _tell_story(out: ui.Out, story: Any) -> None:
    where = f"{story.project}/{story.memory} rollout {story.rollout} run {story.run} attempt {story.attempt}"
    out.say(f"{story.state}  {where if story.run else 'event ' + str(story.event)}")
    for step in story.steps:
        details = {key: value for key, value in step.items() if key not in ("stage", "what")}
        out.say(f"  {step['stage']:<12} {step['what']}")
        for key, value in details.items():
            out.say(f"  {'':<12}   {key}: {value}")
    out.say(f"  next         {story.next}")


def status(home: ui.HomeOption = None, as_json: ui.JsonOption = False) -> None:
    """Show how the pipeline is: lag, what waits and since when, what is paused, held or dead, with causes.

    Example: runlore status
    """

    async def work(out: ui.Out) -> None:
        from runlore import wiring
        from runlore.lookup import index as lookup_index
        from runlore.lookup import status as lookup_status

        async with wiring.open_home(ui.settings_of(home)) as opened:
            index = lookup_index.Index(opened.index_path)
            try:
                up = wiring.up_is_running(opened.root)
                chosen, wrong = _chosen(opened)
                where = (opened.store, opened.bus, index, opened.status_path, up)
                found = await lookup_status.status(*where, chosen=chosen)
                found["causes"] += [f"the file of models can not be read: {wrong}"] if wrong else []
            finally:
                index.close()
        out.answer({"home": str(opened.root), **found})
        settings = opened.settings
        if settings.bus == "kafka" or settings.store == "s3":
            log_, folder = f"log in {opened.root}", f"folder in {opened.root}"
            out.say(f"bus          {settings.kafka_servers if settings.bus == 'kafka' else log_}")
            place = f"s3://{settings.s3_bucket}/{settings.s3_prefix}"
            out.say(f"store        {place if settings.store == 's3' else folder}")
        else:
            out.say(f"home         {opened.root}" + (f" · up as process {up}" if up else " · not up"))
        _tell_status(out, found)

    ui.run(work, as_json=as_json)


def _tell_status(out: ui.Out, found: dict[str, Any]) -> None:
    from runlore.lookup import status as lookup_status

    for name in lookup_status.STAGES:
        one = found[name]
        parts = [one["state"]] if one.get("state") else []
        if "lag" in one:
            parts.append(f"lag {one['lag']:,}" if one["lag"] is not None else "lag not known")
        if one.get("marks") is not None:
            parts.append(f"{one['rollouts']:,} rollouts wait in {one['marks']:,} marks")
        if one.get("joins"):
            parts.append(f"{one['joins']:,} joins wait for a model")
        parts += [f"oldest {lookup_status.age(one['oldest'])}"] if one.get("oldest") else []
        out.say(f"{name:<12} {' · '.join(parts) or 'not told'}")
        for memory, waits in list(one.get("waits", {}).items())[:WAITS_SHOWN]:
            out.say(f"{'':<12}   {memory}: {waits['told']}")
    alive = [one for one in found["workers"] if not one["silent"]]
    if found["workers"]:
        versions = ", ".join(sorted({one["version"] for one in alive})) or "none"
        out.say(f"workers      {len(alive)} of {len(found['workers'])} speak · version {versions}")
    out.say(f"dead         {found['dead']['open']} open")
    for row in found["memories"]:
        held = f" · {row['held']} held" if row["held"] else ""
        out.say(
            f"memory       {row['project']}/{row['memory']} revision {row['revision']}"
            f" · {row['rollouts']} rollouts · {row['runs']} runs{held}"
        )
    for cause in found["causes"]:
        out.say(f"!            {cause}")


def doctor(home: ui.HomeOption = None, as_json: ui.JsonOption = False) -> None:
    """Say in words what is wrong with this machine or home, trying what the pipeline relies on for real.

    Example: runlore doctor
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors
        from runlore.upkeep import doctor as upkeep_doctor

        checks = await upkeep_doctor.examine(ui.settings_of(home))
        bad = [check for check in checks if not check.ok]
        for check in checks:
            out.say(f"{'✓' if check.ok else '✗'} {check.what}: {check.message}")
            if check.hint and not check.ok:
                out.say(f"    {check.hint}")
        rows = [{"what": c.what, "ok": c.ok, "message": c.message, "hint": c.hint} for c in checks]
        out.answer({"ok": not bad, "checks": rows})
        if bad:
            raise errors.ProblemsFound(f"{len(bad)} of {len(checks)} checks failed")

    ui.run(work, as_json=as_json)
