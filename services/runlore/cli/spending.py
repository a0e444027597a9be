"""`runlore admin spend-limit`, `spend-alerts` and `usage`: what calls to models may cost, and did (docs/ADMIN.md)."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runlore.cli import admin, ui

if TYPE_CHECKING:
    from runlore.upkeep.administration import Administrator
    from runlore.upkeep.organization import Organization, Project

limit_app = typer.Typer(help="Spend limits: what calls to models may cost in a month.")
alerts_app = typer.Typer(help="Spend alerts: who is told when a month has cost so much.")
usage_app = typer.Typer(help="Usage and costs of calls to models, by day.")

DAYS_MAX = 180
ProjectArgument = Annotated[
    str | None,
    typer.Argument(metavar="[PROJECT]", help="Project; without: of the organization.", show_default=False),
]
UsdOption = Annotated[
    float | None, typer.Option("--usd", min=0, help="US dollars of a month (UTC).", show_default=False)
]
MailOption = Annotated[
    list[str] | None,
    typer.Option("--mail", metavar="ADDRESS", help="Who is told; may be repeated.", show_default=False),
]
AlertOption = Annotated[
    str, typer.Option("--alert", metavar="ID", help="The alert's id.", show_default=False)
]
PrefixOption = Annotated[
    str | None, typer.Option("--prefix", help="What the mail's subject begins with.", show_default=False)
]
DaysOption = Annotated[
    int, typer.Option("--days", min=1, max=DAYS_MAX, help="So many, the last of them today.")
]
ByOption = Annotated[
    list[str] | None,
    typer.Option("--by", help="Group by this; may be repeated.", show_default=False),
]
ProjectsOption = Annotated[
    list[str] | None,
    typer.Option("--project", "-p", help="Of this project alone; may be repeated.", show_default=False),
]
ModelsOption = Annotated[
    list[str] | None,
    typer.Option("--model", help="Of this model alone; may be repeated.", show_default=False),
]


def register() -> None:
    admin.app.add_typer(limit_app, name="spend-limit")
    admin.app.add_typer(alerts_app, name="spend-alerts")
    admin.app.add_typer(usage_app, name="usage")


def _whose(project: str | None) -> str:
    return "the organization" if project is None else f"project {project}"


def _cents(usd: float | None) -> int:
    """Raises `errors.InvalidInput` without an amount, or where it is no whole number of cents."""
    from runlore import errors

    if usd is None:
        raise errors.InvalidInput("--usd is needed", hint="--help shows an example")
    cents = round(usd * 100)
    if abs(usd * 100 - cents) > 1e-6:
        raise errors.InvalidInput("--usd is dollars and whole cents")
    return cents


async def _holder(store: Any, project: str | None) -> Organization | Project:
    """Raises `errors.NotFound`."""
    from runlore import errors
    from runlore.upkeep import administration, organization

    org = await administration.read(store)
    if project is None:
        return org
    if project in org.projects:
        return org.projects[project]
    if project not in await administration.known_projects(store):
        raise errors.NotFound(f"there is no project {project!r}")
    return organization.Project(id=project, name=project, created_at="")


# --- limits -------------------------------------------------------------------------------------------------


@limit_app.command("set")
def set_limit(
    project: ProjectArgument = None,
    usd: UsdOption = None,
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Say what calls to models may cost in a month: in force in every worker within 5 seconds.

    Example: runlore admin spend-limit set acme --usd 50 --reason "ticket 12"
    """

    async def step(hand: Administrator) -> tuple[dict[str, Any], str]:
        from runlore.upkeep import spendlimits

        cents = _cents(usd)
        await spendlimits.set_limit(hand, project, cents)
        told = {"project": project, "threshold_cents": cents}
        return told, f"{_whose(project)} may spend ${cents / 100:,.2f} in a month"

    admin.change(step, reason, home, as_json)


@limit_app.command("show")
def show_limit(
    project: ProjectArgument = None, home: ui.HomeOption = None, as_json: ui.JsonOption = False
) -> None:
    """Show a spend limit, and whether it refuses calls now.

    Example: runlore admin spend-limit show acme
    """

    async def work(out: ui.Out) -> None:
        from runlore import clock
        from runlore.upkeep import spendlimits, spendwatch

        async with admin.opened(home) as (store, _):
            limit = spendlimits.limit_of(await _holder(store, project))
            enforcing = await spendwatch.is_enforcing(store, project, limit, clock.now())
        out.answer({"project": project, "threshold_cents": limit.cents, "enforcing": enforcing})
        now = "it refuses calls now" if enforcing else "calls are made"
        out.say(f"{_whose(project)} may spend ${limit.cents / 100:,.2f} in a month; {now}")

    ui.run(work, as_json=as_json)


@limit_app.command("delete")
def delete_limit(
    project: ProjectArgument = None,
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Take a spend limit away: what waited for it goes on.

    Example: runlore admin spend-limit delete acme --reason "ticket 13"
    """

    async def step(hand: Administrator) -> tuple[dict[str, Any], str]:
        from runlore.upkeep import spendlimits

        await spendlimits.delete_limit(hand, project)
        return {"project": project, "deleted": True}, f"{_whose(project)} has no spend limit"

    admin.change(step, reason, home, as_json)


# --- alerts -------------------------------------------------------------------------------------------------


@alerts_app.command("create")
def create_alert(
    project: ProjectArgument = None,
    usd: UsdOption = None,
    mail: MailOption = None,
    prefix: PrefixOption = None,
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Tell somebody, once in each month, that calls to models have cost so much.

    Example: runlore admin spend-alerts create acme --usd 40 --mail ann@example.org --reason "ticket 12"
    """

    async def step(hand: Administrator) -> tuple[dict[str, Any], str]:
        from runlore.upkeep import spendlimits

        made = await spendlimits.create_alert(
            hand, project, _cents(usd), recipients=mail or (), subject_prefix=prefix
        )
        return admin.shown(made), made.id

    admin.change(step, reason, home, as_json)


@alerts_app.command("list")
def list_alerts(
    project: ProjectArgument = None, home: ui.HomeOption = None, as_json: ui.JsonOption = False
) -> None:
    """List the spend alerts of a project, or those of the organization.

    Example: runlore admin spend-alerts list acme
    """

    async def work(out: ui.Out) -> None:
        async with admin.opened(home) as (store, _):
            kept = (await _holder(store, project)).spend_alerts
        rows = [admin.shown(kept[one]) for one in sorted(kept)]
        out.answer({"project": project, "alerts": rows})
        out.table(
            ("id", "US dollars", "told"),
            [[one["id"], f"{one['cents'] / 100:,.2f}", ", ".join(one["recipients"])] for one in rows],
        )

    ui.run(work, as_json=as_json)


@alerts_app.command("update")
def update_alert(
    project: ProjectArgument = None,
    alert: AlertOption = "",
    usd: UsdOption = None,
    mail: MailOption = None,
    prefix: PrefixOption = None,
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Change a spend alert; what is not said stays. With another amount it may tell again in the same month.

    Example: runlore admin spend-alerts update acme --alert spend-alert-0198f0c2 --usd 60 --reason "ticket 13"
    """

    async def step(hand: Administrator) -> tuple[dict[str, Any], str]:
        from runlore.upkeep import spendlimits

        before = spendlimits.alert_of(await _holder(hand.store, project), alert)
        made = await spendlimits.update_alert(
            hand,
            project,
            alert,
            before.cents if usd is None else _cents(usd),
            recipients=mail or before.recipients,
            subject_prefix=before.subject_prefix if prefix is None else prefix,
        )
        return admin.shown(made), f"{made.id} tells at ${made.cents / 100:,.2f}"

    admin.change(step, reason, home, as_json, alert)


@alerts_app.command("delete")
def delete_alert(
    project: ProjectArgument = None,
    alert: AlertOption = "",
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Take a spend alert away.

    Example: runlore admin spend-alerts delete acme --alert spend-alert-0198f0c2 --reason "ticket 13"
    """

    async def step(hand: Administrator) -> tuple[dict[str, Any], str]:
        from runlore.upkeep import spendlimits

        await spendlimits.delete_alert(hand, project, alert)
        return {"id": alert, "deleted": True}, f"{alert} is gone"

    admin.change(step, reason, home, as_json, alert)


# --- usage --------------------------------------------------------------------------------------------------


@usage_app.command("completions")
def completions(
    days: DaysOption = 7,
    by: ByOption = None,
    project: ProjectsOption = None,
    model: ModelsOption = None,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Tell what calls to models took, by day (UTC); `--by` project_id, model or batch. JSON: as over HTTP.

    Example: runlore admin usage completions --days 30 --by project_id
    """

    def work(out: ui.Out) -> Any:
        columns = ("num_model_requests", "input_tokens", "input_cached_tokens", "output_tokens")
        return _usage(out, "completions", columns, days, by, project, model, home)

    ui.run(work, as_json=as_json)


@usage_app.command("costs")
def costs(
    days: DaysOption = 7,
    by: ByOption = None,
    project: ProjectsOption = None,
    model: ModelsOption = None,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Tell what calls to models cost, by day (UTC); `--by` project_id or line_item (a model). JSON: as over HTTP.

    Example: runlore admin usage costs --days 30 --by line_item
    """

    def work(out: ui.Out) -> Any:
        return _usage(out, "costs", ("amount",), days, by, project, model, home)

    ui.run(work, as_json=as_json)


async def _usage(
    out: ui.Out,
    what: str,
    columns: tuple[str, ...],
    days: int,
    by: list[str] | None,
    project: list[str] | None,
    model: list[str] | None,
    home: Any,
) -> None:
    from runlore import clock
    from runlore.lookup import usage

    groups = usage.checked_by(by or (), usage.COSTS_BY if what == "costs" else usage.COMPLETIONS_BY)
    wanted = usage.Wanted(
        start=int((clock.now() - dt.timedelta(days=days - 1)).timestamp()),
        end=None,
        buckets_max=days,
        by=groups,
        projects=frozenset(project or ()),
        models=frozenset(model or ()),
    )
    async with admin.opened(home) as (store, _):
        found, after = await usage.buckets(store, wanted)
    shown = usage.costs(groups) if what == "costs" else usage.completions(groups)
    body = usage.page(found, after, shown)
    out.answer(body)
    rows = []
    for bucket in body["data"]:
        day = f"{dt.datetime.fromtimestamp(bucket['start_time'], dt.UTC):%Y-%m-%d}"
        for one in bucket["results"]:
            cells = [
                f"${one[name]['value']:,.4f}" if name == "amount" else f"{one[name]:,}" for name in columns
            ]
            rows.append([day, *(str(one[group]) for group in groups), *cells])
    if not rows:
        out.say("no model was asked on these days")
        return
    out.table(("day", *groups, *(name.replace("_", " ") for name in columns)), rows)
