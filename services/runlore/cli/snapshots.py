"""`runlore snapshot`: save, look into, compare workspaces (`cli/workspaces.py` has the rest)."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runlore.cli import ui

if TYPE_CHECKING:
    from runlore.snapshots.library import Snapshots
    from runlore.wiring import Home

app = typer.Typer(
    help="Snapshots of workspaces: each rollout's line of versions, with its branches and tags."
)

IdArgument = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="A rollout, a tag, a branch, a seed, or the beginning of a snapshot's id.",
        show_default=False,
    ),
]
ProjectOption = Annotated[str, typer.Option("--project", "-p", help="Project (tenant).", show_default=False)]
RolloutOption = Annotated[
    str | None, typer.Option("--rollout", "-r", help="Rollout (conversation).", show_default=False)
]
WITHOUT_HELP = "A path that is left out, exactly (memory folders). May be given again."
ExcludeOption = Annotated[list[str] | None, typer.Option("--exclude", help="A glob as in .gitignore.")]
WithoutOption = Annotated[list[str] | None, typer.Option("--without", help=WITHOUT_HELP)]
AgentOption = Annotated[
    str | None,
    typer.Option("--agent", help="Agent, where each has a workspace of its own.", show_default=False),
]


def register(root: typer.Typer) -> None:
    root.add_typer(app, name="snapshot")


# --- what they share --------------------------------------------------------------------------------------


def _made(opened: Home, project: str) -> Snapshots:
    from runlore import errors
    from runlore.events import ids
    from runlore.snapshots.library import Snapshots

    if not project:
        raise errors.InvalidInput("--project is needed", hint="`runlore snapshot ls` lists what there is")
    ids.check_name(project, "project")
    return Snapshots(opened.store, project, cache_dir=opened.settings.cache_dir / "stat")


@asynccontextmanager
async def _opened(
    out: ui.Out, home: Any, project: str, named: object, usage: str
) -> AsyncIterator[tuple[Home, Snapshots]]:
    """The home and the project's snapshots. Where nothing was `named`, what there is is listed instead."""
    from runlore import wiring

    async with wiring.open_home(ui.settings_of(home)) as opened:
        if not named:
            rows = await _lines(opened, project)
            out.answer({"lines": rows})
            _table(out, rows)
            out.note(f"name one: {usage}" if rows else "no workspace is saved yet: `runlore snapshot save`")
            raise ui.Told
        yield opened, _made(opened, project)


def _bar(out: ui.Out, what: str) -> Any:
    """(a context, a progress callback): files and bytes as they pass, on a terminal."""
    bar = out.progress()
    task = bar.add_task(what, total=None, detail="")

    def show(files: int, size: int) -> None:
        bar.update(task, completed=files, detail=f"{size / 1e6:,.1f} MB")

    return bar, show


async def _lines(opened: Home, project: str) -> list[dict[str, Any]]:
    from runlore.commit import lines, sweep
    from runlore.lookup import workspaces

    rows = []
    for name in [project] if project else await sweep.projects(opened.store):
        rows += [workspaces.row_of(head) for head in await lines.all_heads(opened.store, name)]
    return sorted(rows, key=lambda row: (row["moved_at"], row["rollout"]), reverse=True)


def _table(out: ui.Out, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    cells = [
        [
            row["project"], row["rollout"], row["agent"], (row["snapshot"] or "-")[:12], row["version"],
            len(row["versions"]), len(row["branches"]), " ".join(row["tags"]), row["moved_at"][:19],
        ]
        for row in rows
    ]  # fmt: skip
    out.table(
        ("project", "rollout", "agent", "snapshot", "version", "kept", "branches", "tags", "moved at"), cells
    )


def _told(out: ui.Out, saved: Any, placed: Any, line: Any) -> None:
    """The answer of whatever saved a snapshot and moved a line."""
    counts = saved.report["counts"]
    out.answer(
        {
            "snapshot": saved.id,
            "ref": str(saved.ref),
            "content": saved.content_id,
            "project": line.project,
            "rollout": line.rollout,
            "agent": line.agent,
            "state": placed.state,
            "version": int(placed.head.body.get("version", 0)),
            "stats": saved.stats,
            "packs_written": saved.packs_written,
            "bytes_written": saved.bytes_written,
            "report": saved.report,
        }
    )
    stats = saved.stats
    out.say(
        f"{placed.state} {saved.id[:12]}  {line} · {stats['files']:,} files, {stats['bytes'] / 1e6:,.1f} MB"
        f" · {saved.bytes_written / 1e6:,.2f} MB written"
    )
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    if told:
        out.note(f"not kept as it was: {told} (--json lists them)")
    if placed.state == "branched":
        out.note(
            "the line moved on since this began, so it is a branch: `runlore snapshot merge`, or save --replace"
        )


# --- save, ingest -----------------------------------------------------------------------------------------


@app.command()
def save(
    path: Annotated[
        Path | None, typer.Argument(metavar="PATH", help="The workspace.", show_default=False)
    ] = None,
    project: ProjectOption = "",
    rollout: RolloutOption = None,
    agent: AgentOption = None,
    exclude: ExcludeOption = None,
    without: WithoutOption = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the line's version, whatever this folder began as.")
    ] = False,
    xattrs: Annotated[
        bool, typer.Option("--xattrs", help="Keep extended attributes too (those named user.*).")
    ] = False,
    reason: ui.ReasonOption = "saved by hand",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Save a folder as the next version of a rollout's workspace; only what changed is written.

    It becomes a branch where the rollout moved on since this folder was restored or saved. Memory that a seed laid
    over the folder is left out, and so is what `.runloreignore` files name (rules as in .gitignore).

    Example: runlore snapshot save ./workspace --project acme --rollout conv-7
    """

    async def work(out: ui.Out) -> None:
        import asyncio

        from runlore import errors, wiring

        if path is None or not rollout:
            raise errors.InvalidInput("PATH and --rollout are needed", hint="--help shows an example")
        if not await asyncio.to_thread(path.is_dir):
            raise errors.InvalidInput(
                f"{path} is no folder", hint="a tar goes in with `runlore snapshot ingest`"
            )
        async with wiring.open_home(ui.settings_of(home), create=True) as opened:
            await _save(
                out, opened, path, project, (rollout, agent), (exclude, without), replace, reason, xattrs
            )

    ui.run(work, as_json=as_json)


async def _save(
    out: ui.Out,
    opened: Home,
    path: Path,
    project: str,
    where: tuple[str, str | None],
    left_out: tuple[list[str] | None, list[str] | None],
    replace: bool,
    reason: str,
    xattrs: bool,
) -> None:
    import asyncio

    from runlore.commit import lines
    from runlore.lookup import seeds, workspaces

    made = _made(opened, project)
    line = lines.line_of(project, *where)
    head = await lines.read(opened.store, line)
    base = (
        None
        if replace
        else await asyncio.to_thread(workspaces.began_as, opened.settings.cache_dir, path, line)
    )
    if replace:
        base = lines.base_of(head.body)
    receipt = await asyncio.to_thread(seeds.receipt_of, path)
    layout = receipt.get("layout") if isinstance(receipt.get("layout"), dict) else {}
    exclude, without = left_out
    bar, show = _bar(out, "save")
    with bar:
        saved = await made.save(
            path,
            base=head.body.get("ref"),
            exclude=exclude or (),
            without=[*workspaces.not_saved(layout), *(without or ())],
            xattrs=xattrs,
            progress=show,
        )
    placed = await lines.save(
        opened.store, line, str(saved.ref), base or lines.Base(), reason=reason, began=head.read_at
    )
    now = lines.base_of(placed.head.body)
    # Only where the head is what this folder holds. An unchanged folder of an older version (or a branch that is
    # there already) did not see the head: noted as its base, the next save would undo what others did.
    if now.snapshot == saved.id:
        await asyncio.to_thread(workspaces.remember, opened.settings.cache_dir, path, line, now)
    _told(out, saved, placed, line)


@app.command()
def ingest(
    archive: Annotated[
        str,
        typer.Argument(metavar="TAR", help="A tar, plain or gzipped; '-' reads stdin.", show_default=False),
    ] = "",
    project: ProjectOption = "",
    rollout: RolloutOption = None,
    agent: AgentOption = None,
    exclude: ExcludeOption = None,
    without: WithoutOption = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the line's version.")] = False,
    reason: ui.ReasonOption = "ingested by hand",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Save a tar as the next version of a rollout's workspace; hostile or broken ones are refused.

    Example: runlore snapshot ingest workspace.tar --project acme --rollout conv-7
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors, wiring
        from runlore.commit import lines

        if not archive or not rollout:
            raise errors.InvalidInput("TAR and --rollout are needed", hint="--help shows an example")
        try:
            stream = sys.stdin.buffer if archive == "-" else open(archive, "rb")  # noqa: SIM115, ASYNC230
        except OSError as exc:
            raise errors.NotFound(f"{archive} can not be read: {exc.strerror}") from None
        with stream:
            async with wiring.open_home(ui.settings_of(home), create=True) as opened:
                made, line = _made(opened, project), lines.line_of(project, rollout, agent)
                head = await lines.read(opened.store, line)
                base = lines.base_of(head.body) if replace else lines.Base()
                bar, show = _bar(out, "ingest")
                with bar:
                    saved = await made.ingest(
                        stream,
                        base=head.body.get("ref"),
                        exclude=exclude or (),
                        without=without or (),
                        progress=show,
                    )
                placed = await lines.save(
                    opened.store, line, str(saved.ref), base, reason=reason, began=head.read_at
                )
        _told(out, saved, placed, line)

    ui.run(work, as_json=as_json)


# --- looking ----------------------------------------------------------------------------------------------


@app.command()
def ls(
    name: Annotated[
        str, typer.Argument(metavar="ROLLOUT", help="One rollout, in full.", show_default=False)
    ] = "",
    project: ProjectOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """List workspaces: the present version of each, how many are kept before it, branches and tags.

    Example: runlore snapshot ls conv-7 --project acme
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors, wiring
        from runlore.events import ids

        async with wiring.open_home(ui.settings_of(home)) as opened:
            rows = await _lines(opened, project)
        if name:
            rows = [row for row in rows if row["rollout"] == ids.alias(name.strip())]
            if not rows:
                raise errors.NotFound(
                    f"no workspace of rollout {name!r} is saved", hint="`runlore snapshot ls`"
                )
        out.answer({"lines": rows})
        _table(out, rows)
        for row in rows if name else ():
            _tell_line(out, row)
        if not rows:
            out.note("no workspace is saved yet: `runlore snapshot save`")

    ui.run(work, as_json=as_json)


def _tell_line(out: ui.Out, row: dict[str, Any]) -> None:
    out.say()
    present = {"version": row["version"], "ref": row["ref"], "at": row["moved_at"], "by": row["moved_by"]}
    for one in [present, *row["versions"]] if row["ref"] else row["versions"]:
        tags = " ".join(tag for tag, ref in row["tags"].items() if ref == one["ref"])
        out.say(
            f"version {one['version']:<4} {one['ref'][:12]}  {one['at'][:19]}  {_by(one['by'])}  {tags}".rstrip()
        )
    for label, one in row["branches"].items():
        began = (one["base"]["snapshot"] or "nothing")[:12]
        out.say(f"branch {label}  {one['ref'][:12]}  from {began} · {one['why']}")


def _by(by: dict[str, Any] | None) -> str:
    by = by or {}
    return f"run {by['run']} attempt {by['attempt']}" if by.get("run") else str(by.get("reason", ""))


@app.command()
def tree(
    id: IdArgument = "",
    path: Annotated[str, typer.Argument(metavar="PATH", help="A folder in it.", show_default=False)] = "",
    project: ProjectOption = "",
    rollout: RolloutOption = None,
    agent: AgentOption = None,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """List the files of a snapshot.

    Example: runlore snapshot tree conv-7 src --project acme
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors
        from runlore.lookup import workspaces
        from runlore.snapshots import names, trees

        async with _opened(out, home, project, id, "runlore snapshot tree ID") as (_, made):
            found, _, _ = await workspaces.resolve(made, id, rollout=rollout, agent=agent)
            entry = await found.lookup(names.from_text(path)) if path else None
            if path and entry is not None and not isinstance(entry, trees.Dir):
                raise errors.InvalidInput(
                    f"{path!r} is no folder", hint="`runlore snapshot cat` shows a file"
                )
            rows = []
            async for folder, listed in found.walk(entry.tree if isinstance(entry, trees.Dir) else None):
                prefix = names.to_text(folder) + "/" if folder else ""
                rows += [_entry_row(prefix, one) for one in listed.entries()]
        rows.sort(key=lambda row: row["path"])
        out.answer({"snapshot": found.ref.id, "path": path or None, "entries": rows})
        for row in rows:
            link = f" -> {row['target']}" if "target" in row else ""
            out.say(f"{row['mode']:>5}  {row.get('bytes', ''):>12}  {row['path']}{link}")

    ui.run(work, as_json=as_json)


def _entry_row(prefix: str, entry: Any) -> dict[str, Any]:
    from runlore.snapshots import names, trees

    row: dict[str, Any] = {"path": prefix + names.to_text(entry.name), "kind": type(entry).__name__.lower()}
    if isinstance(entry, trees.Link):
        return {**row, "mode": "link", "target": names.to_text(entry.target)}
    row["mode"] = f"{entry.mode:o}"
    if isinstance(entry, trees.File):
        return {**row, "bytes": entry.size}
    return {**row, "path": row["path"] + "/"}


@app.command()
def cat(
    id: IdArgument = "",
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file in it.", show_default=False)] = "",
    project: ProjectOption = "",
    rollout: RolloutOption = None,
    agent: AgentOption = None,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Write one file of a snapshot to stdout, byte for byte (--json: as text, or base64 where it is none).

    Example: runlore snapshot cat conv-7 src/main.py --project acme
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors
        from runlore.lookup import workspaces
        from runlore.snapshots import names, trees

        async with _opened(out, home, project, id, "runlore snapshot cat ID PATH") as (_, made):
            found, _, _ = await workspaces.resolve(made, id, rollout=rollout, agent=agent)
            entry = await found.lookup(names.from_text(path))
            if not isinstance(entry, trees.File):
                raise errors.InvalidInput(
                    f"{path or '/'!r} is no file", hint="`runlore snapshot tree` lists them"
                )
            parts = []
            async for part in found.content(entry):
                if as_json:
                    parts.append(part)
                else:
                    sys.stdout.buffer.write(part)
            sys.stdout.flush()
        if as_json:
            out.answer(
                {"snapshot": found.ref.id, "path": path, "bytes": entry.size, **_as_text(b"".join(parts))}
            )

    ui.run(work, as_json=as_json)


def _as_text(raw: bytes) -> dict[str, str]:
    import base64

    try:
        return {"text": raw.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(raw).decode()}


@app.command()
def diff(
    a: Annotated[
        str, typer.Argument(metavar="A", help="Older: as ID in the other commands.", show_default=False)
    ] = "",
    b: Annotated[str, typer.Argument(metavar="B", help="Newer.", show_default=False)] = "",
    project: ProjectOption = "",
    rollout: RolloutOption = None,
    agent: AgentOption = None,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """List the paths that differ between two snapshots; unchanged folders are not even read.

    Example: runlore snapshot diff 8f1c 9a02 --project acme
    """

    async def work(out: ui.Out) -> None:
        from runlore.lookup import workspaces
        from runlore.snapshots import comparing

        async with _opened(out, home, project, a and b, "runlore snapshot diff A B") as (_, made):
            one, _, _ = await workspaces.resolve(made, a, rollout=rollout, agent=agent)
            two, _, _ = await workspaces.resolve(made, b, rollout=rollout, agent=agent)
            changes = [change.as_dict() async for change in comparing.diff(one, two)]
        out.answer({"from": one.ref.id, "to": two.ref.id, "changes": changes})
        for change in changes:
            out.say(f"{change['what']:<8} {change['path']}")
        if not changes:
            out.note("the two hold the same")

    ui.run(work, as_json=as_json)
