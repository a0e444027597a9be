"""Commands of review: what is held for a person, what letting it in would do, and the decision."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from runlore.cli import ui

review_app = typer.Typer(help="Rollouts held for review: what a guard refused, or a revert took out.")

RolloutsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="ROLLOUT…", help="Held rollouts.", show_default=False)
]
EveryOption = Annotated[bool, typer.Option("--all", help="Every rollout of the memory that waits.")]
HoldOption = Annotated[
    int | None,
    typer.Option("--hold", help="Only while this hold stands, as it was shown.", show_default=False),
]


def register(app: typer.Typer) -> None:
    app.add_typer(review_app, name="review")


@review_app.callback(invoke_without_command=True)
def _review(ctx: typer.Context, home: ui.HomeOption = None, as_json: ui.JsonOption = False) -> None:
    """Rollouts held for review: what a guard refused, or a revert took out. Without a command: list them."""
    if ctx.invoked_subcommand is None:
        review_list(home=home, as_json=as_json)
    else:
        ui.pass_on(ctx, home, as_json)


@review_app.command(name="list")
def review_list(
    project: ui.MaybeProject = None,
    memory: ui.MaybeMemory = None,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """List held and rejected rollouts: what, why, since when, and at which revision.

    Example: runlore review list --project acme
    """

    async def work(out: ui.Out) -> None:
        from runlore.cli import inspect
        from runlore.lookup import reviewing

        rows: list[dict[str, Any]] = []
        async with inspect._open(home) as (opened, index):
            for one in index.memories(project):
                if memory in (None, one["memory"]):
                    rows += reviewing.rows_of(await opened.reader.head(one["project"], one["memory"]))
        held = [row for row in rows if row["state"] == reviewing.HELD]
        rejected = [row for row in rows if row["state"] == reviewing.REJECTED]
        out.answer({"held": held, "rejected": rejected})
        if not held:
            out.say("nothing is held for review")
        columns = ("project", "memory", "rollout", "state", "kind", "at", "revision", "reason")
        if rows:
            out.table(columns, [[row[name] for name in columns] for row in [*held, *rejected]])
        if held:
            out.note(
                "next: `runlore review show ROLLOUT --project P --memory M` says what letting it in would do"
            )

    ui.run(work, as_json=as_json)


@review_app.command(name="show")
def review_show(
    rollout: Annotated[
        str, typer.Argument(metavar="ROLLOUT", help="A held rollout.", show_default=False)
    ] = "",
    project: ui.MaybeProject = None,
    memory: ui.MaybeMemory = None,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Show why a rollout is held, what it says, and what letting it in would make of the memory's files.

    Secrets are masked. Everything else is shown as it would stand: it may speak to whoever reads it.

    Example: runlore review show conv-7 --project acme --memory support
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors, wiring
        from runlore.lookup import reviewing

        if not project or not memory or not rollout:
            raise errors.InvalidInput(
                "say which: ROLLOUT, --project and --memory", hint="`runlore review` lists them"
            )
        async with wiring.open_home(ui.settings_of(home)) as opened:
            found = await reviewing.show(opened.store, opened.reader, project, memory, rollout)
        out.answer(found)
        _say(out, found)

    ui.run(work, as_json=as_json)


def _say(out: ui.Out, found: dict[str, Any]) -> None:
    for name in ("rollout", "state", "kind", "at", "revision", "hold", "runs", "reason", "rejected_reason"):
        if found[name] is not None:
            out.say(f"{name.replace('_', ' '):<15} {found[name]}")
    if found["new_runs"]:
        out.say("it has runs that came since; what they add is judged when it is approved")
    out.say()
    out.say("violations" if found["violations"] else "the guards say nothing against it")
    for one in found["violations"]:
        may = "may pass" if one["may_pass"] else "may never pass"
        new = ", new since it was held" if one["is_new"] else ""
        out.say(f"  {one['kind']} ({may}{new}): {one['message']}")
        if one["line"]:
            out.say(f"    > {one['line']}")
    if found["statements"]:
        out.say()
        out.say("it says")
    for one in found["statements"]:
        place = one["evidence"][0] if one["evidence"] else {}
        out.say(f"  {one['kind']}: {one['text']} (run {place.get('run')}, item {place.get('item')})")
    for one in found["files"]:
        out.say()
        out.say(f"{one['change']} {one['path']} (+{one['added']} -{one['removed']})")
        out.say(one["diff"].rstrip("\n") + (" …" if one["cut"] else ""))


@review_app.command(name="approve")
def review_approve(
    rollouts: RolloutsArgument = None,
    project: ui.MaybeProject = None,
    memory: ui.MaybeMemory = None,
    every: EveryOption = False,
    hold: HoldOption = None,
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Let held or rejected rollouts be taken in, with what their holds say and whatever runs they have now.

    What their holds do not say holds them anew. Secrets, a subject's words and broken files are never let in.

    Example: runlore review approve conv-7 --project acme --memory support --reason "looked at it: harmless"
    """

    async def work(out: ui.Out) -> None:
        from runlore import wiring
        from runlore.lookup import reviewing

        where, given, why = _decided(project, memory, rollouts, every, reason)
        async with (
            wiring.open_home(ui.settings_of(home)) as opened,
            ui.acting(opened, "review approve", projects=where[:1], reason=why, arguments=given) as act,
        ):
            done = await reviewing.approve(
                opened.store,
                opened.bus,
                opened.reader,
                *where,
                None if every else rollouts,
                reason=why,
                hold=hold,
            )
            told = {"approved": done.names, "let_pass": done.let_pass, "left": done.left}
            act.result |= told
        out.answer({"project": where[0], "memory": where[1], **told})
        out.say(f"approved {len(done.names)} rollouts; the next `runlore up`, or the workers, take them in")
        for why_not in done.left.values():
            out.note(f"left: {why_not}")

    ui.run(work, as_json=as_json)


@review_app.command(name="reject")
def review_reject(
    rollouts: RolloutsArgument = None,
    project: ui.MaybeProject = None,
    memory: ui.MaybeMemory = None,
    every: EveryOption = False,
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Keep held rollouts out of memory as they stand; a later run of one is put before you again.

    Records and snapshots stay. `runlore review approve` undoes it.

    Example: runlore review reject conv-7 --project acme --memory support --reason "a web page gave it orders"
    """

    async def work(out: ui.Out) -> None:
        from runlore import wiring
        from runlore.lookup import reviewing

        where, given, why = _decided(project, memory, rollouts, every, reason)
        async with (
            wiring.open_home(ui.settings_of(home)) as opened,
            ui.acting(opened, "review reject", projects=where[:1], reason=why, arguments=given) as act,
        ):
            names = await reviewing.reject(
                opened.store, opened.bus, opened.reader, *where, None if every else rollouts, reason=why
            )
            act.result |= {"rejected": names}
        out.answer({"project": where[0], "memory": where[1], "rejected": names})
        out.say(f"rejected {len(names)} rollouts; `runlore review approve` undoes it")

    ui.run(work, as_json=as_json)


def _decided(
    project: str | None, memory: str | None, rollouts: list[str] | None, every: bool, reason: str
) -> tuple[tuple[str, str], dict[str, Any], str]:
    """(where, the arguments as the audit log keeps them, why). Raises `errors.InvalidInput`."""
    from runlore import errors

    if not project or not memory or not (rollouts or every):
        raise errors.InvalidInput(
            "say which: ROLLOUT… or --all, --project and --memory", hint="`runlore review` lists them"
        )
    why = ui.needs_reason(reason)
    return (project, memory), {"memory": memory, "rollouts": rollouts or "all"}, why
