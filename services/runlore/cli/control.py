"""Commands that hold back or bring back work: pause, resume, replay, rescan."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runlore.cli import ui

if TYPE_CHECKING:
    from runlore.consumers.rescan import Report
    from runlore.wiring import Home

StageArgument = Annotated[
    str,
    typer.Argument(metavar="STAGE", help="record, snapshot, summarize or consolidate.", show_default=False),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory", "-m", metavar="P/M", help="Only this memory, as PROJECT/MEMORY.", show_default=False
    ),
]
ProjectOption = Annotated[
    str | None, typer.Option("--project", "-p", help="Only this project.", show_default=False)
]
TIME_HELP = "A time (2026-01-31T03:00Z), or how long ago (90m, 2h, 3d)"
AGO = {"m": 60, "h": 3600, "d": 86_400}


def register(app: typer.Typer) -> None:
    for command in (pause, resume, replay, rescan):
        app.command()(command)


def pause(
    stage: StageArgument = "",
    project: ProjectOption = None,
    memory: MemoryOption = None,
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Hold a stage back, in every worker, until `runlore resume`. Without a STAGE: list what is paused.

    Nothing is lost meanwhile. consolidate and summarize leave their marks standing, and can be paused for one memory;
    record and snapshot leave their messages on the bus (for as long as the topic keeps them), and can only be paused
    as a whole, as the runs of all memories follow each other in their topic. Workers obey within a minute.

    Example: runlore pause consolidate --memory acme/support --reason "bad runs come in, see ticket 812"
    """

    async def work(out: ui.Out) -> None:
        from runlore import wiring
        from runlore.upkeep import pauses

        async with wiring.open_home(ui.settings_of(home)) as opened:
            if not stage:
                standing = sorted((await pauses.read_all(opened.store)).items())
                out.answer({"pauses": [one.as_dict() for _, one in standing]})
                for _, one in standing:
                    out.say(str(one))
                if not standing:
                    out.say("nothing is paused")
                return
            where = _where(project, memory)
            pauses.check(stage, *where)
            why = ui.needs_reason(reason)
            by = ui.who(opened)
            arguments = {"stage": stage, "memory": where[1]}
            async with ui.acting(opened, "pause", projects=where[:1], reason=why, arguments=arguments):
                made = await pauses.put(
                    opened.store, stage, project=where[0], memory=where[1], reason=why, by=by
                )
        out.answer({"pause": made.as_dict()})
        out.say(str(made))

    ui.run(work, as_json=as_json)


def resume(
    stage: StageArgument = "",
    project: ProjectOption = None,
    memory: MemoryOption = None,
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """End a pause. What waited is worked off in order.

    Example: runlore resume consolidate --memory acme/support --reason "the producer is mended"
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors, wiring
        from runlore.upkeep import pauses

        async with wiring.open_home(ui.settings_of(home)) as opened:
            if not stage:
                raise errors.InvalidInput("say which STAGE", hint="`runlore pause` lists what is paused")
            where = _where(project, memory)
            pauses.check(stage, *where)
            why = ui.needs_reason(reason)
            arguments = {"stage": stage, "memory": where[1]}
            async with ui.acting(
                opened, "resume", projects=where[:1], reason=why, arguments=arguments
            ) as act:
                ended = await pauses.lift(opened.store, stage, project=where[0], memory=where[1])
                act.result["pause"] = ended.as_dict()
        out.answer({"resumed": ended.as_dict()})
        out.say(f"resumed; {ended}")

    ui.run(work, as_json=as_json)


def _where(project: str | None, memory: str | None) -> tuple[str | None, str | None]:
    """(project, memory) as `--project P`, `--memory P/M`, or both apart. Raises `errors.InvalidInput`."""
    from runlore import errors
    from runlore.events import ids

    if memory is not None:
        before, slash, name = memory.rpartition("/")
        if slash and project not in (None, before):
            raise errors.InvalidInput(f"--memory {memory} is not of --project {project}")
        project, memory = (before if slash else project), name
        if project is None:
            raise errors.InvalidInput(f"{memory!r} is not PROJECT/MEMORY", hint="like --memory acme/support")
        ids.check_name(memory, "memory")
    if project is not None:
        ids.check_name(project, "project")
    return project, memory


def replay(
    since: Annotated[
        str,
        typer.Option("--from", metavar="TIME", help=f"{TIME_HELP}, or `beginning`.", show_default=False),
    ] = "",
    stage: Annotated[str, typer.Option("--stage", help="record or snapshot.")] = "record",
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Make a stage read its topic again from a time on, while no worker runs it.

    Runs that took effect are recognised, so a replay doubles nothing: it brings back what a bug or a lost
    object left out. What the topic does not keep any more can not be replayed.

    Example: runlore replay --from 3h --stage record --reason "objects of the last hours were lost"
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors, pipeline, wiring

        stages = {one.name: one for one in pipeline.STAGES if one.reads == pipeline.RUNS.name}
        if stage not in stages:
            raise errors.InvalidInput(
                f"{stage!r} can not be replayed",
                hint=f"stages that read events: {', '.join(stages)}; consolidate works from marks, and "
                "`runlore review approve` or a new run makes one",
            )
        if not since:
            raise errors.InvalidInput("say from when: --from TIME or --from beginning", hint=TIME_HELP)
        start = None if since == "beginning" else moment(since)
        why = ui.needs_reason(reason)
        async with wiring.open_home(ui.settings_of(home)) as opened:
            arguments = {"stage": stage, "from": start.isoformat() if start else "beginning"}
            async with ui.acting(opened, "replay", reason=why, arguments=arguments) as act:
                lag = await _rewind(opened, str(stages[stage].group), stages[stage].reads, start)
                act.result["messages"] = lag
        out.answer({"stage": stage, "from": arguments["from"], "messages": lag})
        out.say(f"{stage} reads {lag} messages, from {arguments['from']} on, when a worker starts again")

    ui.run(work, as_json=as_json)


async def _rewind(opened: Home, group: str, topic: str, start: dt.datetime | None) -> int:
    """Move the group back; how many messages it has before it then. Raises `errors.Refused` while it is in use."""
    import contextlib

    from runlore import wiring

    # On one machine the lock says whether a stage runs; past it the group itself does.
    embedded = opened.settings.bus == "sqlite"
    with wiring.only_one(opened.root) if embedded else contextlib.nullcontext():
        await opened.bus.rewind(group=group, topic=topic, start=start.timestamp() if start else None)
        return sum((await opened.bus.lag(group=group, topic=topic)).values())


def rescan(
    project: ui.MaybeProject = None,
    memory: ui.MaybeMemory = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only find: exit code 6 where there is anything to hide.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="Look at records that were kept by the present rules, too.")
    ] = False,
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Hide in what is kept what the present rules of redaction find and older ones did not.

    Records are rewritten, summaries built anew, and the next revision is made of those. It tells what and where,
    and never the secret. Run it when every worker has the new version; interrupted, run it again. Earlier revisions
    keep what they held: docs/REDACTION.md says what is left, and change every secret that was found.

    Example: runlore rescan --project acme --reason "version 0.2 knows our tokens"
    """

    async def work(out: ui.Out) -> None:
        import asyncio

        from runlore import errors, wiring
        from runlore.commit import sweep
        from runlore.memory import detectors, redact

        why = "" if dry_run else ui.needs_reason(reason)
        settings = ui.settings_of(home)
        if memory and not project:
            raise errors.InvalidInput("--memory needs its --project")
        if settings.redact_library:
            await asyncio.to_thread(detectors.load)
        async with wiring.open_home(settings) as opened:
            names = [project] if project else await sweep.projects(opened.store)
            if dry_run:
                reports = await _rescan(out, opened, names, memory, apply=False, every=every)
            else:
                given = {"memory": memory, "rules": redact.rules(), "all": every}
                async with ui.acting(opened, "rescan", projects=names, reason=why, arguments=given) as act:
                    reports = await _rescan(out, opened, names, memory, apply=True, every=every)
                    act.result |= {"rewritten": sum(one.rewritten for one in reports)}
        found = sum(one.found for one in reports)
        rows = [_report_row(one) for one in reports]
        out.answer({"rules": redact.rules(), "dry_run": dry_run, "found": found, "projects": rows})
        for report in reports:
            for one in report.findings:
                kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(one.kinds.items()))
                out.say(f"{one.what} {report.project}/{one.memory} {one.where}: {kinds}")
        if not found:
            out.say(f"the rules {redact.rules()} find nothing more in what is kept")
        elif dry_run:
            raise errors.ProblemsFound(
                f"the rules {redact.rules()} hide more in {found} objects",
                hint="`runlore rescan --reason …` hides it",
            )
        else:
            done = sum(one.rewritten for one in reports), sum(one.rebuilt for one in reports)
            out.say(f"rewrote {done[0]} records and {done[1]} summaries; the next revisions hold none of it")
            out.note("earlier revisions still do; change the secrets")

    ui.run(work, as_json=as_json)


async def _rescan(
    out: ui.Out, opened: Home, names: list[str], memory: str | None, *, apply: bool, every: bool
) -> list[Report]:
    from runlore.consumers.rescan import Rescan
    from runlore.worker import concurrency

    runtime = concurrency.runtime(1)
    with out.progress() as bar:
        task = bar.add_task("rescan", total=None, detail="")
        show = lambda count, what: bar.update(task, completed=count, detail=what)  # noqa: E731
        return [
            await Rescan(opened.store, name, memory, runtime=runtime).scan(
                apply=apply, every=every, on_progress=show
            )
            for name in names
        ]


def _report_row(report: Report) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(report)


def moment(text: str) -> dt.datetime:
    """The time that `text` means. Raises `errors.InvalidInput`."""
    from runlore import clock, errors

    try:
        if text[-1:] in AGO and text[:-1].isdigit():
            return clock.now() - dt.timedelta(seconds=int(text[:-1]) * AGO[text[-1]])
        found = dt.datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise errors.InvalidInput(f"{text!r} is not a time", hint=TIME_HELP) from None
    found = found if found.tzinfo else found.replace(tzinfo=dt.UTC)
    if found > clock.now():
        raise errors.InvalidInput(f"{text} is in the future")
    return found
