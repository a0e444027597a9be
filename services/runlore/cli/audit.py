"""`runlore audit`: who did what, who was handed which seed, and whether the logs of both are as they were written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from runlore.cli import control, ui

if TYPE_CHECKING:
    from runlore.upkeep.audit import Entry
    from runlore.upkeep.seedlog import Handed, Wanted
    from runlore.wiring import Home

VERIFY = "verify"
SNAPSHOT_CHARS = 12
KEY_CHARS = 12


def register(app: typer.Typer) -> None:
    app.command()(audit)


def _of_seeds(name: str, what: str) -> Any:
    """An option that says which seeds are meant."""
    return typer.Option(*name.split(), help=f"With --seeds: {what}", show_default=False)


Expected = Annotated[
    list[str] | None,
    typer.Option(
        "--expect",
        metavar="[acts:]N:SHA256",
        help="With verify: an entry written down, of what was administered or of acts.",
        show_default=False,
    ),
]
Actor = Annotated[
    str | None,
    typer.Option(
        "--actor",
        help="Who: a user, user@host, a key's id or name, a service account.",
        show_default=False,
    ),
]


def audit(
    what: Annotated[
        str,
        typer.Argument(
            metavar="[verify]", help="`verify`: check that every log is as it was written, instead."
        ),
    ] = "",
    seeds: Annotated[
        bool, typer.Option("--seeds", help="Seeds that were handed out, instead of what people did.")
    ] = False,
    project: ui.MaybeProject = None,
    memory: Annotated[str | None, _of_seeds("--memory -m", "of this memory.")] = None,
    revision: Annotated[int | None, _of_seeds("--revision", "of this revision.")] = None,
    snapshot: Annotated[
        str | None, _of_seeds("--snapshot", "of this snapshot, or what its id begins with.")
    ] = None,
    rollout: Annotated[str | None, _of_seeds("--rollout", "for this rollout.")] = None,
    actor: Actor = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help=f"{control.TIME_HELP}.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="The newest so many.")] = 50,
    expect: Expected = None,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """List what people did: who, when, what, why, and what came of it. Newest first.

    With --seeds: who was handed which revision and snapshot, and for which rollout. With `verify`: whether these logs,
    and that of what was administered (`runlore admin log`), are as they were written: exit code 6 where they are not.

    Example: runlore audit --seeds --project acme --memory support --revision 41
    """

    async def work(out: ui.Out) -> None:
        from runlore import wiring

        _check(what, expect, seeds, [memory, revision, snapshot, rollout])
        start = control.moment(since) if since else None
        async with wiring.open_home(ui.settings_of(home)) as opened:
            if what == VERIFY:
                await _verify(out, opened, expect or [])
            elif seeds:
                from runlore.events import ids
                from runlore.upkeep import seedlog

                alias = ids.as_alias(rollout) if rollout else None
                wanted = seedlog.Wanted(project, memory, revision, alias, snapshot, actor, start)
                await _list_seeds(out, opened, wanted, limit)
            else:
                await _list_acts(out, opened, limit, project=project, since=start, actor=actor)

    ui.run(work, as_json=as_json)


def _check(what: str, expect: list[str] | None, seeds: bool, of_seeds: list[Any]) -> None:
    """Raises `errors.InvalidInput` for options that do not go together."""
    from runlore import errors

    if what not in ("", VERIFY) or (expect and what != VERIFY):
        raise errors.InvalidInput(
            "audit takes `verify`, and with it --expect N:SHA256", hint="--help shows an example"
        )
    if not seeds and any(one is not None for one in of_seeds):
        raise errors.InvalidInput(
            "--memory, --revision, --snapshot and --rollout are of --seeds: say that, too"
        )


async def _taken(found: Any, limit: int) -> tuple[list[Any], bool]:
    """The first of them, and whether there are more."""
    taken: list[Any] = []
    async for one in found:
        if len(taken) == limit:
            return taken, True
        taken.append(one)
    return taken, False


async def _list_acts(out: ui.Out, opened: Home, limit: int, **asked: Any) -> None:
    import dataclasses

    from runlore.upkeep import audit as upkeep_audit

    shown, more = await _taken(upkeep_audit.newest_first(opened.store, **asked), limit)
    out.answer({"acts": [dataclasses.asdict(one) for one in shown], "more": more})
    for one in shown:
        _say_act(out, one)
    if not shown:
        out.say("nobody did anything that is asked for")
    elif more:
        out.note(f"there are more than {limit}: --limit shows them")


def _say_act(out: ui.Out, one: Entry) -> None:
    from runlore.upkeep import audit as upkeep_audit

    where = f" [{', '.join(one.projects)}]" if one.projects else ""
    given = " ".join(f"{name}={value}" for name, value in one.arguments.items() if value is not None)
    chained = "" if one.number is not None else "  (not chained)"
    out.say(f"{one.at}  {one.state:<7}  {_actor(one.by)}  {one.what}{where} {given}".rstrip() + chained)
    if one.reason:
        out.say(f"    why: {one.reason}")
    if one.state != upkeep_audit.DONE:
        out.say(
            "    "
            + one.result.get("error", {}).get("message", "its end was not written: look at what it names")
        )


async def _list_seeds(out: ui.Out, opened: Home, wanted: Wanted, limit: int) -> None:
    import dataclasses

    from runlore.upkeep import seedlog

    shown, more = await _taken(seedlog.newest_first(opened.store, wanted), limit)
    out.answer({"seeds": [dataclasses.asdict(one) for one in shown], "more": more})
    for one in shown:
        _say_seed(out, one)
    if not shown:
        out.say("no seed that is asked for is in the log")
        out.note("which seeds are kept there: RUNLORE_AUDIT_SEEDS, docs/ADMIN.md")
    elif more:
        out.note(f"there are more than {limit}: --limit shows them")


def _say_seed(out: ui.Out, one: Handed) -> None:
    snapshot = f" snapshot {one.snapshot[:SNAPSHOT_CHARS]}" if one.snapshot else ""
    whom = f" for {one.subject}" if one.subject else ""
    agent = f"/{one.agent}" if one.agent != "main" else ""
    said = f"{one.project}/{one.memory} revision {one.revision}{snapshot}  {one.rollout}{agent}{whom}"
    out.say(f"{one.at}  {one.how:<9}  {_actor(one.by)}  {said}")


def _actor(by: Any) -> str:
    """Who it was, for a person: a key by its name, a command by its user."""
    if "key" in by:
        return f"{by.get('name', '?')} (key {by['key'][:KEY_CHARS]})"
    if "user" in by:
        return f"{by['user']}@{by.get('host', '?')}"
    return str(by.get("client", "?"))


async def _verify(out: ui.Out, opened: Home, expect: list[str]) -> None:
    """Check every log. Raises `errors.ProblemsFound`."""
    from runlore import errors
    from runlore.upkeep import chain, logs

    expected = logs.expected_of(expect)
    with out.progress() as bar:
        task = bar.add_task("verify", total=None, detail="")
        found = await logs.verify(
            opened.store,
            expected,
            on_progress=lambda count, log: bar.update(task, completed=count, detail=log),
        )
    out.answer(found.as_dict())
    for problem in found.problems:
        out.say(problem)
    if found.seeds.untold:
        out.say(f"and {found.seeds.untold} more of the log of seeds")
    if found.problems:
        raise errors.ProblemsFound("what was logged is not as it was written")
    for name, one in ((logs.ADMINISTRATION, found.administration), (logs.ACTS, found.acts)):
        newest = f"; the newest is {chain.text_of(one.tip)}" if one.entries else ""
        out.say(f"{name}: {one.entries} entries, each as it was written{newest}")
    seeds = found.seeds
    out.say(
        f"seeds: {seeds.entries} in {seeds.links} links of {seeds.writers} writers, each as it was written"
    )
