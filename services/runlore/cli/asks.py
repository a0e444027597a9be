"""Commands about what waits for a model: refresh, wait, spend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from runlore.cli import inspect, ui

if TYPE_CHECKING:
    from runlore.settings import Settings
    from runlore.wiring import Home

POLL_SECONDS = 0.5


def register(app: typer.Typer) -> None:
    for command in (refresh, wait, spend):
        app.command()(command)


# --- refresh --------------------------------------------------------------------------------------------------


def refresh(
    memory: Annotated[
        str, typer.Argument(metavar="MEMORY", help="Memory of the project.", show_default=False)
    ] = "",
    project: ui.MaybeProject = None,
    every: Annotated[bool, typer.Option("--all", help="Every memory of the project.")] = False,
    wait: Annotated[
        float,
        typer.Option(
            "--wait", metavar="SECONDS", min=0, max=86_400, help="Wait so long until it is in a revision."
        ),
    ] = 0.0,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Work what waits for a model until it is due (docs/MODELS.md) now. Without a MEMORY: list what waits.

    It puts a mark, which any worker takes up.

    With --wait it ends when all of it is in a revision, when it waits for budget or for a person (exit code 5), or as
    wait_timeout. A worker, or `runlore up`, has to run.

    Example: runlore refresh support --project acme --wait 120
    """

    async def work(out: ui.Out) -> None:
        from dataclasses import asdict

        from runlore import errors, wiring
        from runlore.events import ids
        from runlore.upkeep import refresh as upkeep_refresh

        if not memory and not every:
            await _list_waits(out, ui.settings_of(home), project)
            return
        if not project or (memory and every):
            raise errors.InvalidInput(
                "say which: MEMORY, or --all, of --project P", hint="`runlore refresh` lists what waits"
            )
        ids.check_name(project, "project")
        if memory:
            ids.check_name(memory, "memory")
        async with wiring.open_home(ui.settings_of(home)) as opened:
            arguments = {"memory": memory or None}
            async with ui.acting(opened, "refresh", projects=[project], arguments=arguments) as act:
                asked = await upkeep_refresh.refresh(opened.store, project, memory or None)
                act.result["memories"] = [one.memory for one in asked]
            rows = [{**asdict(one), "state": "asked"} for one in asked]
            if wait:
                rows = await _wait_refreshed(out, opened, asked, wait)
        out.answer({"project": project, "refreshed": rows})
        for row in rows:
            out.say(f"{row['project']}/{row['memory']}: {row['asks']} asks, {row['state']}")
        if not rows:
            out.say("nothing waits there")
        still = [row for row in rows if row["state"] in ("deferred", "blocked")]
        if still:
            raise errors.RunStandsStill(f"{still[0]['project']}/{still[0]['memory']}: {still[0]['cause']}")

    ui.run(work, as_json=as_json)


async def _list_waits(out: ui.Out, settings: Settings, project: str | None) -> None:
    from runlore import wiring
    from runlore.lookup import asked as lookup_asked

    async with wiring.open_home(settings) as opened:
        known = await inspect.known_of(opened)
        found = await lookup_asked.of_all(opened.store, chosen=known.chosen, stages=known.stages)
    shown = {name: one for name, one in found.items() if project in (None, name.split("/")[0])}
    out.answer({"waits": {name: one.as_dict() for name, one in shown.items()}})
    for name, one in shown.items():
        out.say(f"{name}: {one.asks} asks, {one.told}")
    if not shown:
        out.note("nothing waits for a model")


async def _wait_refreshed(out: ui.Out, opened: Home, asked: Any, seconds: float) -> list[dict[str, Any]]:
    """How each memory ended: consolidated, deferred or blocked. Raises `errors.WaitTimeout`."""
    from dataclasses import asdict

    from runlore import clock, errors
    from runlore.lookup import asked as lookup_asked
    from runlore.upkeep import refresh as upkeep_refresh

    give_up = clock.monotonic() + seconds
    total = sum(one.asks for one in asked)
    ended: dict[str, dict[str, Any]] = {}
    with out.progress() as bar:
        task = bar.add_task("refresh", total=total, detail="")
        while True:
            known = await inspect.known_of(opened)
            left = await upkeep_refresh.left(opened.store, asked)
            bar.update(task, completed=total - sum(left.values()), detail="")
            for one in asked:
                told = None
                if one.mark in left:
                    told = await lookup_asked.of_memory(
                        opened.store, one.project, one.memory, chosen=known.chosen, stages=known.stages
                    )
                elif not await upkeep_refresh.unconsolidated(opened.store, one):
                    ended[one.mark] = {**asdict(one), "state": "consolidated", "cause": ""}
                if told is not None and told.state in (lookup_asked.DEFERRED, lookup_asked.BLOCKED):
                    ended[one.mark] = {**asdict(one), "state": told.state, "cause": told.told}
            if len(ended) == len(asked):
                return list(ended.values())
            if clock.monotonic() >= give_up:
                open_ones = [f"{one.project}/{one.memory}" for one in asked if one.mark not in ended]
                raise errors.WaitTimeout(
                    f"after {seconds:g} seconds {', '.join(open_ones[:5])} is not worked off; {sum(left.values())}"
                    " asks stand",
                    hint="it goes on by itself; `runlore status` tells what is behind, and why",
                )
            await clock.sleep(min(POLL_SECONDS, max(0.0, give_up - clock.monotonic())))


# --- wait -----------------------------------------------------------------------------------------------------


def wait(
    name: Annotated[
        str, typer.Argument(metavar="EVENT_ID", help="An event, run or rollout id.", show_default=False)
    ] = "",
    rollout: Annotated[
        str | None, typer.Option("--rollout", help="Only runs of this rollout.", show_default=False)
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", help="The run, instead of EVENT_ID.", show_default=False)
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0, max=86_400, help="Wait at most so long.")
    ] = 60.0,
    with_model: Annotated[
        bool, typer.Option("--model", help="Wait for what a model adds, too, and for its due time.")
    ] = False,
    project: ui.MaybeProject = None,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Wait until a run has come to an end, and say which. Without an id: list the newest runs.

    consolidated, not_selected, superseded and branched exit with 0: memory has the run. held and dead exit with 4,
    deferred (budget) and blocked (a person) with 5, and so does wait_timeout, which says what the run waits for.

    Example: runlore wait 7d2e91c0 --timeout 120
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors
        from runlore.events import ids
        from runlore.lookup import asking, waiting
        from runlore.lookup import explain as lookup_explain

        wanted = name or run or rollout or ""
        if name and run:
            raise errors.InvalidInput("say for what: EVENT_ID, or --run")
        alias = ids.alias(rollout.strip()) if rollout and rollout.strip() else None
        async with inspect.looking(home) as (opened, index):
            if not wanted:
                inspect.list_runs(out, index, project)
                return

            async def tell() -> list[Any]:
                where = (opened.store, opened.bus, opened.reader, index, wanted)
                known = await inspect.known_of(opened)
                found = await lookup_explain.explain(*where, project=project, known=known)
                return [one for one in found if alias in (None, one.rollout) or one.rollout is None]

            asker = asking.Asker(opened.store, opened.bus, opened.reader)
            found = await waiting.wait_for(tell, asker, wanted, seconds=timeout, with_model=with_model)
        out.answer({"runs": [one.as_dict() for one in found]})
        for one in found:
            out.say(f"{one.end}  {one.story.run or one.story.event}: {one.cause}")
        waiting.check(found)

    ui.run(work, as_json=as_json)


# --- spend ----------------------------------------------------------------------------------------------------


def spend(
    project: ui.MaybeProject = None,
    memory: ui.MaybeMemory = None,
    by: Annotated[str, typer.Option("--by", help="memory, model, day or project.")] = "memory",
    month: Annotated[
        str | None, typer.Option("--month", metavar="YYYY-MM", help="Another month.", show_default=False)
    ] = None,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Show what calls to models took in a month (UTC), what the budgets leave, and what waits for them.

    UNKNOWN counts calls whose cost nobody knows (no price, or no usage told), OPEN those under way, LOST those whose
    process died: they count at the most that they can have taken.

    Example: runlore spend --project acme --by day
    """

    async def work(out: ui.Out) -> None:
        from runlore import wiring
        from runlore.lookup import spending
        from runlore.models import choices

        async with wiring.open_home(ui.settings_of(home)) as opened:
            chosen = choices.load(opened.settings.models_file)
            found = await spending.report(
                opened.store, project=project, memory=memory, by=by, month=month, chosen=chosen
            )
        out.answer(found)
        _tell_spend(out, found)

    ui.run(work, as_json=as_json)


def _tell_spend(out: ui.Out, found: dict[str, Any]) -> None:
    if not found["rows"]:
        out.say(f"no model was asked in {found['month']}")
    else:
        columns = (
            "calls",
            "input_tokens",
            "cached_tokens",
            "output_tokens",
            "cost_usd",
            "unknown",
            "open",
            "lost",
        )
        rows = [*found["rows"], {"name": "total", **found["total"]}]
        cells = [
            [row["name"], *(f"{row[one]:.4f}" if one == "cost_usd" else f"{row[one]:,}" for one in columns)]
            for row in rows
        ]
        out.table([found["by"], *(one.replace("_", " ") for one in columns)], cells)
    for one in found["budgets"]:
        whose = f"{one['project']}/{one['memory']}" if one["memory"] else one["project"]
        shown = [
            f"${one[key]:,.4f}" if one["unit"] == "usd" else f"{one[key]:,}"
            for key in ("used", "limit", "left")
        ]
        unit = "" if one["unit"] == "usd" else " tokens"
        out.say(
            f"budget of {whose} for a {one['length']}: {shown[0]} of {shown[1]}{unit} used, {shown[2]} left"
        )
    for one in found["limits"]:
        whose = "the organization" if one["project"] is None else one["project"]
        amounts = f": ${one['used']:,.4f} of ${one['limit']:,.2f} used" if "limit" in one else ""
        now = "it refuses calls now" if one["enforcing"] else "calls are made"
        out.say(f"spend limit of {whose} for a month{amounts}; {now}")
    for one in found["deferred"]:
        out.say(f"deferred: {one['project']}/{one['memory']} since {one['since']}: {one['cause']}")
        out.say(f"  {one['ends']}")
