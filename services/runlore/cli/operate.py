"""Commands that change what others see: revert, dead. Each asks for a reason, and keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from runlore.cli import ui

dead_app = typer.Typer(help="Dead letters: events that could not take effect, kept with their reason.")

IdsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="ID…", help="Dead letters.", show_default=False)
]
CodeOption = Annotated[
    str | None,
    typer.Option("--reason", help="Only letters with this reason code.", metavar="CODE", show_default=False),
]
OfProjectOption = Annotated[
    str | None, typer.Option("--project", "-p", help="Only letters of this project.", show_default=False)
]
NoteOption = Annotated[
    str, typer.Option("--note", help="Why; kept with the letters, and asked for.", show_default=False)
]
LimitOption = Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="At most this many.")]
AllOption = Annotated[bool, typer.Option("--all", help="Every open letter.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; do nothing.")]


def register(app: typer.Typer) -> None:
    app.command()(revert)
    app.add_typer(dead_app, name="dead")


def revert(
    name: ui.MemoryArgument = "",
    project: ui.MaybeProject = None,
    memory: ui.MaybeMemory = None,
    to: Annotated[
        int | None, typer.Option("--to", help="The revision whose notes to go back to.", show_default=False)
    ] = None,
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Go back to an earlier revision's notes, as a new revision; what came since is held for review.

    Nothing is deleted: the reverted revisions stay in the log, their rollouts wait in `runlore review`.

    Example: runlore revert support --to 41 --reason "bad merge"
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors, wiring
        from runlore.cli import inspect
        from runlore.consumers import consolidate

        async with inspect._open(home) as (_, index):
            meant = ui.pick(index.memories(), project, memory or name or None)
            if to is None:
                inspect._list_memories(out, index, project, "runlore revert --to N --reason …")
                return
        if meant is None:
            raise errors.InvalidInput(
                "say which memory: --project and --memory", hint="`runlore log` lists them"
            )
        why = ui.needs_reason(reason)
        arguments = {"memory": meant[1], "to": to}
        async with (
            wiring.open_home(ui.settings_of(home)) as opened,
            ui.acting(opened, "revert", projects=meant[:1], reason=why, arguments=arguments) as act,
        ):
            number, held = await consolidate.revert(
                opened.store, opened.bus, opened.reader, *meant, to=to, reason=why
            )
            act.result |= {"revision": number, "held": held}
        out.answer(
            {"project": meant[0], "memory": meant[1], "revision": number, "reverted_to": to, "held": held}
        )
        out.say(
            f"revision {number} has the notes of revision {to}; {len(held)} rollouts are held (`runlore review`)"
        )

    ui.run(work, as_json=as_json)


# --- dead letters ---------------------------------------------------------------------------------------


@dead_app.callback(invoke_without_command=True)
def _dead(ctx: typer.Context, home: ui.HomeOption = None, as_json: ui.JsonOption = False) -> None:
    """Dead letters: events that could not take effect, kept with their reason. Without a command: list them."""
    if ctx.invoked_subcommand is None:
        dead_list(home=home, as_json=as_json)
    else:
        ui.pass_on(ctx, home, as_json)


@dead_app.command(name="list")
def dead_list(
    kind: CodeOption = None,
    project: OfProjectOption = None,
    every: Annotated[bool, typer.Option("--all", help="Also redriven and dropped ones.")] = False,
    limit: LimitOption = 100,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """List dead letters, oldest first.

    Example: runlore dead list --reason claim_missing
    """

    async def work(out: ui.Out) -> None:
        from runlore import wiring
        from runlore.consumers import dead

        async with wiring.open_home(ui.settings_of(home)) as opened:
            found = await dead.read_all(opened.bus)
        rows = [
            _row(one)
            for one in found
            if (every or not one.resolution)
            and kind in (None, one.reason)
            and project in (None, dead.project_of(one))
        ]
        out.answer({"dead": rows[:limit], "total": len(rows)})
        columns = ("id", "reason", "at", "event", "bytes", "message")
        if not rows:
            out.say("no dead letters")
            return
        out.table(columns, [[row[name] for name in columns] for row in rows[:limit]])
        if len(rows) > limit:
            out.note(f"{len(rows) - limit} more; --limit shows them")

    ui.run(work, as_json=as_json)


def _row(one: Any) -> dict[str, Any]:
    from runlore.consumers import dead

    return {
        "id": one.id,
        "project": dead.project_of(one),
        "reason": one.reason,
        "message": one.message,
        "at": one.at,
        "event": one.event_id,
        "source": one.source,
        "topic": one.topic,
        "partition": one.partition,
        "offset": one.offset,
        "bytes": one.size,
        "resolution": one.resolution,
        "resolved_at": one.resolved_at,
        "resolved_why": one.resolved_why,
    }


@dead_app.command(name="show")
def dead_show(
    letter: Annotated[str, typer.Argument(metavar="ID", help="A dead letter.", show_default=False)] = "",
    to: Annotated[
        Path | None, typer.Option("--out", help="Write the event's bytes to this file.", show_default=False)
    ] = None,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Show one dead letter: its reason, where it came from, and its event (redacted; --out writes it as it came).

    Example: runlore dead show 1f2e3d4c5b6a7980
    """

    async def work(out: ui.Out) -> None:
        import asyncio

        from runlore import wiring
        from runlore.consumers import dead

        if not letter:
            await _list_for_show(out, home)
            return
        async with wiring.open_home(ui.settings_of(home)) as opened:
            (one,) = choose(await dead.read_all(opened.bus), [letter], None, None, False, 1)
            value = await dead.value_of(opened.store, one) if to or one.size <= 65_536 else None
        if to:
            await asyncio.to_thread(to.write_bytes, value or b"")
        preview = _preview(value, one.size)
        out.answer({**_row(one), "event_preview": preview, "out": str(to) if to else None})
        for name, text in _row(one).items():
            if text is not None:
                out.say(f"{name:<12} {text}")
        out.say(f"{'event':<12} {preview}")

    ui.run(work, as_json=as_json)


async def _list_for_show(out: ui.Out, home: Path | None) -> None:
    from runlore import wiring
    from runlore.consumers import dead

    async with wiring.open_home(ui.settings_of(home)) as opened:
        rows = [_row(one) for one in await dead.read_all(opened.bus) if not one.resolution]
    out.answer({"dead": rows, "total": len(rows)})
    out.table(("id", "reason"), [[row["id"], row["reason"]] for row in rows])


def _preview(value: bytes | None, size: int) -> str:
    """The first of an event, redacted: it was refused before the record stage could redact it."""
    from runlore.memory import redact

    if value is None:
        return f"({size:,} bytes; --out FILE writes them)"
    text = redact.text(value[:65_536].decode("utf-8", "replace"))
    return text[:2000] + (" …" if len(text) > 2000 else "")


def choose(
    letters: list[Any],
    names: list[str] | None,
    kind: str | None,
    project: str | None,
    every: bool,
    limit: int,
) -> list[Any]:
    """The open letters that are meant. Raises `errors.NotFound` or `errors.InvalidInput`."""
    from runlore import errors
    from runlore.consumers import dead

    if project is not None:
        letters = [one for one in letters if dead.project_of(one) == project]
    if names:
        found = []
        for name in names:
            matches = [one for one in letters if one.id == name] or [
                one for one in letters if one.id.startswith(name)
            ]
            if len(matches) != 1:
                problem = "more than one dead letter begins" if matches else "no dead letter begins"
                raise errors.NotFound(f"{problem} with {name!r}", hint="`runlore dead` lists them")
            found += matches
        return found
    if not every and kind is None:
        raise errors.InvalidInput("say which: ids, --reason CODE or --all", hint="`runlore dead` lists them")
    return [one for one in letters if not one.resolution and kind in (None, one.reason)][:limit]


@dead_app.command(name="redrive")
def dead_redrive(
    letters: IdsArgument = None,
    kind: CodeOption = None,
    project: OfProjectOption = None,
    every: AllOption = False,
    limit: LimitOption = 1000,
    dry_run: DryRunOption = False,
    note: NoteOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Publish dead events again as they came, once their cause is gone.

    Example: runlore dead redrive --reason claim_missing --limit 10 --dry-run
    """
    _resolve("redrive", (letters, kind, project, every, limit), dry_run, note, home, as_json)


@dead_app.command(name="drop")
def dead_drop(
    letters: IdsArgument = None,
    kind: CodeOption = None,
    project: OfProjectOption = None,
    every: AllOption = False,
    limit: LimitOption = 1000,
    dry_run: DryRunOption = False,
    note: NoteOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Note that nobody wants these events any more; they leave the list.

    Example: runlore dead drop 1f2e3d4c --note "test data"
    """
    _resolve("drop", (letters, kind, project, every, limit), dry_run, note, home, as_json)


def _resolve(
    verb: str,
    wanted: tuple[list[str] | None, str | None, str | None, bool, int],
    dry_run: bool,
    note: str,
    home: Path | None,
    as_json: bool,
) -> None:
    async def work(out: ui.Out) -> None:
        from runlore import wiring
        from runlore.consumers import dead

        names, kind, project, _, limit = wanted
        async with wiring.open_home(ui.settings_of(home)) as opened:
            chosen = choose(await dead.read_all(opened.bus), *wanted)
            # Of many, those that can never be redriven as they are stay; one that is named is refused.
            left = [] if names or verb != "redrive" else [one for one in chosen if not dead.fits(one)]
            chosen = [one for one in chosen if one not in left]
            if chosen and not dry_run:
                why = ui.needs_reason(note, option="--note")
                arguments = {"letters": [one.id for one in chosen], "reason": kind, "limit": limit}
                projects = {dead.project_of(one) for one in chosen}
                async with ui.acting(
                    opened, f"dead {verb}", projects=list(projects), reason=why, arguments=arguments
                ):
                    if verb == "redrive":
                        await dead.redrive(opened.bus, opened.store, chosen, why=why)
                    else:
                        await dead.drop(opened.bus, chosen, why=why)
        rows, stay = [_row(one) for one in chosen], [_row(one) for one in left]
        out.answer({"verb": verb, "dry_run": dry_run, "dead": rows, "left": stay})
        would = "would " if dry_run else ""
        out.say(f"{would}{verb} {len(chosen)} dead letters" + (f" of project {project}" if project else ""))
        foreign = sum(one.source is not None for one in left)
        if foreign:
            out.note(f"{foreign} are of a team's own topic: `runlore source redrive MAP` maps them anew")
        if len(left) > foreign:
            out.note(
                f"{len(left) - foreign} are too large for the bus: `runlore dead show ID --out FILE` writes one out"
            )
        if chosen and verb == "redrive" and not dry_run:
            out.note("next: `runlore up`, or the workers, take them up again")

    ui.run(work, as_json=as_json)
