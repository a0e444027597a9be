"""`runlore admin retention`: how long rollouts are kept after their last run. `runlore upkeep` obeys it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from runlore.cli import admin, ui

if TYPE_CHECKING:
    from runlore.upkeep.administration import Administrator

app = typer.Typer(help="Data retention: how many days rollouts are kept after their last run.")

MaybeProjectArgument = Annotated[
    str, typer.Argument(metavar="[PROJECT]", help="A project; else all that do not say.", show_default=False)
]


def register() -> None:
    admin.app.add_typer(app, name="retention")


@app.command("set")
def set_retention(
    project: MaybeProjectArgument = "",
    days: Annotated[
        int | None,
        typer.Option("--days", min=1, max=36_500, help="Erased after so many.", show_default=False),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Kept until somebody erases it.")] = False,
    inherit: Annotated[bool, typer.Option("--inherit", help="Of a project: as all do.")] = False,
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Say how long rollouts are kept after their last run: of one project, or of all that do not say.

    Example: runlore admin retention set acme --days 365 --reason "policy 12"
    """

    async def step(hand: Administrator) -> tuple[dict[str, Any], str]:
        from runlore import errors
        from runlore.upkeep import organization

        if (days is not None) + keep + inherit != 1 or (inherit and not project):
            raise errors.InvalidInput("say one of --days N, --keep or, of a project, --inherit")
        kept = organization.KEEP_HERE if project else organization.KEEP
        kind = organization.FOR_DAYS if days else organization.INHERITED if inherit else kept
        made = await hand.retain(kind, days, project=project or None)
        told = {"project": project or None, "type": made.type, "days": made.days}
        return told, f"{project or 'every project'}: {_told(made.type, made.days)}"

    admin.change(step, reason, home, as_json)


@app.command("show")
def show_retention(
    project: MaybeProjectArgument = "", home: ui.HomeOption = None, as_json: ui.JsonOption = False
) -> None:
    """Show how long rollouts are kept: by default, and of each project that says something else.

    Example: runlore admin retention show
    """

    async def work(out: ui.Out) -> None:
        from runlore.upkeep import administration

        async with admin.opened(home) as (store, _):
            org = await administration.read(store)
        rows = [{"project": None, "type": org.retention.type, "days": org.retention.days}]
        named = [project] if project else sorted(org.projects)
        for name in named:
            found = org.retention_of(name)
            rows.append({"project": name, "type": found.type, "days": found.days})
        out.answer({"retention": rows})
        for row in rows:
            out.say(f"{row['project'] or 'by default'}: {_told(str(row['type']), row['days'])}")

    ui.run(work, as_json=as_json)


def _told(kind: str, days: Any) -> str:
    return f"erased {days} days after the last run" if days else f"kept until it is erased ({kind})"
