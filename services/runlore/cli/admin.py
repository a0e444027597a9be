"""`runlore admin`: what the routes that administer do, on the machine that holds the store's rights (docs/ADMIN.md)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runlore.cli import ui

if TYPE_CHECKING:
    from runlore.store.port import ObjectStore
    from runlore.upkeep.administration import Administrator
    from runlore.upkeep.organization import Project

app = typer.Typer(
    help="Administration: admin keys, projects, service accounts, limits, and the log of it all."
)
keys_app = typer.Typer(help="Admin keys: who may administer over HTTP.")
projects_app = typer.Typer(help="Projects: what there is, made and archived.")
accounts_app = typer.Typer(help="Service accounts: programs of a project, and their keys.")
limits_app = typer.Typer(help="Rate limits: what a project may ask for in a minute.")

ProjectArgument = Annotated[
    str, typer.Argument(metavar="PROJECT", help="Project (tenant).", show_default=False)
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Its name.", show_default=False)]
KeyArgument = Annotated[str, typer.Argument(metavar="KEYID", help="The key's id.", show_default=False)]
NameOption = Annotated[str, typer.Option("--name", help="Whose it is, or what for.")]
ExpiresOption = Annotated[
    int | None,
    typer.Option("--expires-in", min=1, help="Seconds until it ends; never without.", show_default=False),
]
AccountOption = Annotated[
    str, typer.Option("--account", metavar="ID", help="The service account.", show_default=False)
]


def register(root: typer.Typer) -> None:
    app.add_typer(keys_app, name="keys")
    app.add_typer(projects_app, name="projects")
    app.add_typer(accounts_app, name="accounts")
    app.add_typer(limits_app, name="limits")
    root.add_typer(app, name="admin")


@asynccontextmanager
async def opened(home: Any, *, create: bool = False) -> AsyncIterator[tuple[ObjectStore, dict[str, str]]]:
    """The store, and who acts."""
    from runlore import wiring

    async with wiring.open_home(ui.settings_of(home), create=create) as found_home:
        found = ui.who(found_home)
        yield found_home.store, {"user": f"{found['user']}@{found['host']}"}


def change(
    step: Callable[[Administrator], Awaitable[tuple[dict[str, Any], str]]],
    reason: str,
    home: Any,
    as_json: bool,
    *needed: str,
    create: bool = False,
) -> None:
    """Run one change; `step` gives what `--json` answers, and the same in words."""

    async def work(out: ui.Out) -> None:
        from runlore import errors
        from runlore.upkeep import administration

        if not all(needed):
            raise errors.InvalidInput("an argument is missing", hint="--help shows an example")
        why = ui.needs_reason(reason)
        async with opened(home, create=create) as (store, by):
            answer, told = await step(administration.Administrator(store, by, why))
        out.answer(answer)
        out.say(told)

    ui.run(work, as_json=as_json)


def shown(one: Any) -> dict[str, Any]:
    """What is told of something that is administered: no hash of a secret."""
    return dict(one.model_dump(mode="json", exclude={"sha256"}))


# --- admin keys ---------------------------------------------------------------------------------------------


@app.command()
def bootstrap(
    name: NameOption = "bootstrap",
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Make an admin key, and show it: this once. The first, or another where all are lost.

    Example: runlore admin bootstrap --reason "setting up"
    """
    change(lambda hand: _made_key(hand, name, None), reason, home, as_json, name, create=True)


@keys_app.command("create")
def create_key(
    name: NameOption = "",
    expires_in: ExpiresOption = None,
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Make an admin key, and show it: this once.

    Example: runlore admin keys create --name terraform --reason "ticket 12"
    """
    change(lambda hand: _made_key(hand, name, expires_in), reason, home, as_json, name)


async def _made_key(hand: Administrator, name: str, expires_in: int | None) -> tuple[dict[str, Any], str]:
    from runlore import clock
    from runlore.upkeep import organization

    user = str(hand.by["user"])
    owner = organization.Person(id=user, name=user.partition("@")[0], created_at=clock.now_iso())
    key, token = await hand.create_admin_key(name, owner=owner, expires_in_seconds=expires_in)
    return {**shown(key), "token": token}, token


@keys_app.command("list")
def list_keys(home: ui.HomeOption = None, as_json: ui.JsonOption = False) -> None:
    """List the admin keys that are there.

    Example: runlore admin keys list
    """

    async def work(out: ui.Out) -> None:
        from runlore.upkeep import administration

        async with opened(home) as (store, _):
            rows = [shown(one) for one in (await administration.read(store)).admin_keys.values()]
        out.answer({"keys": rows})
        out.table(
            ("id", "name", "owner", "created", "expires"),
            [
                [one["id"], one["name"], one["owner"]["id"], one["created_at"], one["expires_at"]]
                for one in rows
            ],
        )

    ui.run(work, as_json=as_json)


@keys_app.command("delete")
def delete_key(
    key: KeyArgument = "",
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """End an admin key: within 5 seconds nobody administers with it. The last one stays.

    Example: runlore admin keys delete 0198f0c2d1ab4e5f9c0a1b2c3d4e5f60 --reason "left the team"
    """

    async def step(hand: Administrator) -> tuple[dict[str, Any], str]:
        await hand.delete_admin_key(key)
        return {"id": key, "deleted": True}, f"admin key {key} has ended"

    change(step, reason, home, as_json, key)


# --- projects -----------------------------------------------------------------------------------------------


@projects_app.command("create")
def create_project(
    name: NameArgument = "",
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Make a project. Its id is its name where that may be one, and is free.

    Example: runlore admin projects create acme --reason "ticket 12"
    """

    async def step(hand: Administrator) -> tuple[dict[str, Any], str]:
        made = await hand.create_project(name)
        return shown(made), f"project {made.id}"

    change(step, reason, home, as_json, name, create=True)


@projects_app.command("list")
def list_projects(home: ui.HomeOption = None, as_json: ui.JsonOption = False) -> None:
    """List the projects that are administered, archived ones too, and those that only events made.

    Example: runlore admin projects list
    """

    async def work(out: ui.Out) -> None:
        from runlore.upkeep import administration

        async with opened(home) as (store, _):
            kept = (await administration.read(store)).projects
            names = sorted(await administration.known_projects(store) | kept.keys())
        rows = [shown(kept[one]) if one in kept else {"id": one, "name": one} for one in names]
        out.answer({"projects": rows})
        out.table(
            ("id", "name", "created", "archived"),
            [[one["id"], one["name"], one.get("created_at"), one.get("archived_at")] for one in rows],
        )

    ui.run(work, as_json=as_json)


@projects_app.command("rename")
def rename_project(
    project: ProjectArgument = "",
    name: NameArgument = "",
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Give a project another name; its id stays.

    Example: runlore admin projects rename acme "Acme Ltd" --reason "ticket 12"
    """

    async def step(hand: Administrator) -> tuple[dict[str, Any], str]:
        made = await hand.rename_project(project, name)
        return shown(made), f"project {made.id} is called {made.name}"

    change(step, reason, home, as_json, project, name)


@projects_app.command("archive")
def archive_project(
    project: ProjectArgument = "",
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Archive a project: within 5 seconds none of its keys opens anything. What it holds stays.

    Example: runlore admin projects archive acme --reason "the pilot is over"
    """

    async def step(hand: Administrator) -> tuple[dict[str, Any], str]:
        made = await hand.archive_project(project)
        return shown(made), f"project {made.id} is archived"

    change(step, reason, home, as_json, project)


# --- service accounts ---------------------------------------------------------------------------------------


@accounts_app.command("create")
def create_account(
    project: ProjectArgument = "",
    name: NameOption = "",
    expires_in: ExpiresOption = None,
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Make a service account of a project with a key, and show it: this once.

    Example: runlore admin accounts create acme --name bot --reason "ticket 12"
    """

    async def step(hand: Administrator) -> tuple[dict[str, Any], str]:
        made = await hand.create_account(project, name)
        key, token = await hand.create_key(project, made.id, name, expires_in_seconds=expires_in)
        return {**shown(made), "keys": [key.id], "token": token}, token

    change(step, reason, home, as_json, project, name)


@accounts_app.command("list")
def list_accounts(
    project: ProjectArgument = "", home: ui.HomeOption = None, as_json: ui.JsonOption = False
) -> None:
    """List the service accounts of a project, with the ids of their keys.

    Example: runlore admin accounts list acme
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors
        from runlore.upkeep import administration

        if not project:
            raise errors.InvalidInput("PROJECT is needed", hint="`runlore admin projects list` lists them")
        async with opened(home) as (store, _):
            found = (await administration.read(store)).projects.get(project)
        if found is None:
            raise errors.NotFound(f"there is no project {project!r} that is administered")
        rows = [shown(one) for one in found.accounts.values()]
        out.answer({"project": project, "accounts": rows})
        out.table(
            ("id", "name", "role", "created", "keys"),
            [
                [one["id"], one["name"], one["role"], one["created_at"], ", ".join(one["keys"])]
                for one in rows
            ],
        )

    ui.run(work, as_json=as_json)


@accounts_app.command("delete")
def delete_account(
    project: ProjectArgument = "",
    account: AccountOption = "",
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Take a service account away: its keys end with it, within 5 seconds.

    Example: runlore admin accounts delete acme --account svc-0198f0c2 --reason "ticket 13"
    """

    async def step(hand: Administrator) -> tuple[dict[str, Any], str]:
        await hand.delete_account(project, account)
        return {"id": account, "deleted": True}, f"service account {account} and its keys have ended"

    change(step, reason, home, as_json, project, account)


# --- limits -------------------------------------------------------------------------------------------------


LIMITED_HELP = "seed, publish, read (whatever else is read), or generate (calls to models)."


@limits_app.command("set")
def set_limit(
    project: ProjectArgument = "",
    what: Annotated[str, typer.Option("--of", help=LIMITED_HELP)] = "seed",
    requests: Annotated[
        int | None, typer.Option("--requests", min=0, help="Requests in a minute.", show_default=False)
    ] = None,
    size: Annotated[
        int | None,
        typer.Option("--bytes", min=0, help="Bytes handed in in a minute: of publish.", show_default=False),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", min=0, help="Tokens in a minute: of generate.", show_default=False),
    ] = None,
    key: Annotated[
        str, typer.Option("--key", metavar="KEYID", help="Of this key alone.", show_default=False)
    ] = "",
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Say how often a project, or one key of it, may ask for a thing in a minute. With no number: as often as it likes.

    Example: runlore admin limits set acme --of publish --requests 600 --bytes 100000000 --reason "ticket 12"
    """

    async def step(hand: Administrator) -> tuple[dict[str, Any], str]:
        from runlore.upkeep import organization

        given = {"requests": requests, "bytes": size, "tokens": tokens}
        units = {unit: most for unit, most in given.items() if most is not None}
        most = units or dict.fromkeys(organization.UNITS.get(what, ()))
        if key:
            await hand.update_key(project, key, limits={what: most})
        else:
            await hand.limit(project, what, most)
        whose = {"project": project, "of": what, **({"key": key} if key else {})}
        told = " and ".join(f"{count} {unit}" for unit, count in units.items())
        words = f"of {what} {told} in a minute" if told else f"of {what} as much as it likes"
        rows = {f"{unit}_per_minute": count for unit, count in most.items()}
        return {**whose, **rows}, f"{f'key {key} of {project}' if key else project}: {words}"

    change(step, reason, home, as_json, project)


@limits_app.command("list")
def list_limits(
    project: ProjectArgument = "", home: ui.HomeOption = None, as_json: ui.JsonOption = False
) -> None:
    """List the rate limits of a project, and of its keys, with what was handed out in this minute.

    Example: runlore admin limits list acme
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors
        from runlore.upkeep import administration, allotments

        if not project:
            raise errors.InvalidInput("PROJECT is needed", hint="`runlore admin projects list` lists them")
        async with opened(home) as (store, _):
            found = (await administration.read(store)).projects.get(project)
            named = _limits_of(found) if found is not None else {}
            taken = await allotments.handed_out(store, [(project, what, key) for key, what in named])
        kept = {what: most for (key, what), most in named.items() if key is None}
        own: dict[str, dict[str, Any]] = {}
        for (key, what), most in named.items():
            if key is not None:
                own.setdefault(key, {})[what] = most
        units = sorted({unit for most in kept.values() for unit in most} | {"requests"})
        rows = {
            f"{unit}_per_minute": {name: most[unit] for name, most in kept.items() if unit in most}
            for unit in units
        }
        now = [{"key": key, "of": what, **one} for (key, what), one in zip(named, taken, strict=True) if one]
        out.answer({"project": project, **rows, "keys": own, "taken": now})
        table = [
            [key or "project", what, unit, count, one.get(unit, 0)]
            for ((key, what), most), one in zip(named.items(), taken, strict=True)
            for unit, count in most.items()
        ]
        out.table(("whose", "of", "unit", "in a minute", "taken in this one"), table)

    ui.run(work, as_json=as_json)


def _limits_of(project: Project) -> dict[tuple[str | None, str], dict[str, int]]:
    """(None, or the key whose own it is; the thing) → unit → how much in a minute."""
    found = {(None, what): one.most() for what, one in sorted(project.limits.items())}
    for account in project.accounts.values():
        for key, terms in sorted(account.terms.items()):
            found |= {(key, what): one.most() for what, one in sorted(terms.limits.items())}
    return found


# --- the log ------------------------------------------------------------------------------------------------


@app.command("log")
def show_log(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="The newest so many.")] = 50,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Tell what was administered: who, when, what, why. Newest first; `runlore audit verify` checks all of it.

    Example: runlore admin log -n 20
    """

    async def work(out: ui.Out) -> None:
        from dataclasses import asdict

        from runlore.upkeep import administration, adminlog

        rows = []
        async with opened(home) as (store, _):
            org = await administration.read(store)
            async for entry in adminlog.newest_first(store, org.tip):
                rows.append(asdict(entry))
                if len(rows) == limit:
                    break
        out.answer({"entries": rows, "total": org.tip.number})
        for one in rows:
            where = f" [{one['project']}]" if one["project"] else ""
            by = one["by"].get("key", one["by"].get("user"))
            out.say(f"{one['number']:>6}  {one['at']}  {by}  {one['type']}{where} {one['target']}")
            if one["details"]:
                out.say(f"        {', '.join(f'{name} {value}' for name, value in one['details'].items())}")
            if one["reason"]:
                out.say(f"        why: {one['reason']}")

    ui.run(work, as_json=as_json)
