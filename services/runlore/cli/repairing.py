"""The command that makes lost heads again: repair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from runlore.cli import ui

if TYPE_CHECKING:
    from runlore.upkeep.repair import Finding
    from runlore.wiring import Home


def register(app: typer.Typer) -> None:
    app.command()(repair)


def repair(
    project: ui.MaybeProject = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Do it; without, only say what would be done.")
    ] = False,
    take: Annotated[
        list[str] | None,
        typer.Option(
            "--take",
            metavar="MANIFEST",
            help="Of several revisions that a lost head may have named: this one (as it is shown).",
            show_default=False,
        ),
    ] = None,
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Make again what a lost head was, from what it named; and find what nobody would ever take in.

    For heads that somebody deleted, or put back from an older copy: of memories, rollouts, workspaces, the ledger of
    erasures and the log of acts. A head that is there is never moved back. Without --apply it changes nothing, and its
    exit code is 6 where there is anything to mend. Run no sweep before: what a lost head named looks like garbage.

    Example: runlore repair --apply --reason "ticket 812: a lifecycle rule deleted heads"
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors, wiring

        why = ui.needs_reason(reason) if apply else ""
        async with wiring.open_home(ui.settings_of(home)) as opened:
            found = await _log_of_acts(opened, apply=apply) if project is None else []
            if apply:
                given = {"take": take or []}
                async with ui.acting(
                    opened, "repair", projects=[project], reason=why, arguments=given
                ) as act:
                    found += await _run(out, opened, project, take or [], apply=True)
                    act.result["mended"] = sum(bool(one.does) for one in found)
            else:
                found += await _run(out, opened, project, take or [], apply=False)
        left = [one for one in found if not one.does]
        out.answer({"applied": apply, "found": [one.as_dict() for one in found], "left": len(left)})
        _say(out, found, apply=apply)
        if left or (found and not apply):
            raise errors.ProblemsFound(
                f"{len(left)} of {len(found)} things can not be made again by themselves"
                if left
                else f"{len(found)} things are not as they were",
                hint=left[0].hint if left else "`runlore repair --apply --reason …` mends them",
            )

    ui.run(work, as_json=as_json)


def _say(out: ui.Out, found: list[Finding], *, apply: bool) -> None:
    for one in found:
        out.say(f"{one.kind} {one.where}: {one.what}")
        if one.does:
            out.say(f"  {'made' if apply else 'would make'} {one.does}")
        if one.hint:
            out.say(f"  {one.hint}")
    if not found:
        out.say("every head is there, and every run is covered, held or waits")
    elif apply and any(one.does for one in found):
        out.note("next: `runlore up`, or the workers, take in what waits; then `runlore verify`")


async def _log_of_acts(opened: Home, *, apply: bool) -> list[Finding]:
    """The head of the log of acts, before the act that is to be kept in it."""
    from runlore.commit import keys
    from runlore.upkeep import acts
    from runlore.upkeep.repair import Finding

    lost = await acts.lost(opened.store)
    if lost is None:
        return []
    what, tip = lost
    if tip is None:
        hint = "put the head's version before back (the bucket's versions, a backup)"
        return [Finding("log of acts", keys.acts_head(), what, hint=hint)]
    if apply:
        await acts.make_head(opened.store, tip)
    return [Finding("log of acts", keys.acts_head(), what, f"the head at entry {tip.number}")]


async def _run(
    out: ui.Out, opened: Home, project: str | None, take: list[str], *, apply: bool
) -> list[Finding]:
    from runlore import wiring
    from runlore.upkeep import repair as upkeep_repair
    from runlore.worker import concurrency

    engine: Any = wiring.engine_of(opened.settings)
    if engine is not None:
        await engine.close()
    made = upkeep_repair.Repair(
        opened.store, opened.bus, runtime=concurrency.runtime(1), asks=engine is not None, take=take
    )
    with out.progress() as bar:
        task = bar.add_task("repair", total=None, detail="")
        return await made.run(
            project, apply=apply, on_progress=lambda n, what: bar.update(task, completed=n, detail=what)
        )
