"""`runlore serve`: the lookup service over HTTP; and `runlore keys`, who may ask it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runlore.cli import inspect, ui

if TYPE_CHECKING:
    from runlore.lookup.http.service import Service
    from runlore.settings import Settings
    from runlore.wiring import Home

keys_app = typer.Typer(help="Keys of the lookup service: who may do what in one project.")
REFRESH_SECONDS = 1.0
"""How old the lists of an embedded home may be."""
UPLOADS = "uploads"

ProjectArgument = Annotated[
    str, typer.Argument(metavar="PROJECT", help="Project (tenant).", show_default=False)
]


def register(app: typer.Typer) -> None:
    app.command()(serve)
    app.add_typer(keys_app, name="keys")


def serve(
    host: Annotated[
        str | None, typer.Option("--host", help="Address (default: RUNLORE_HTTP_HOST).", show_default=False)
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port", min=0, max=65535, help="Port (default: RUNLORE_HTTP_PORT); 0: any.", show_default=False
        ),
    ] = None,
    up: Annotated[
        bool, typer.Option("--up", help="Run the whole pipeline in this process too (on one machine).")
    ] = False,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Answer over HTTP what the next run needs: seeds, memory, snapshots; and take events (docs/HTTP.md).

    It holds no state: any number may run, beside `runlore up` or the workers. SIGTERM lets requests end first.
    On other addresses than this machine's own it needs keys (RUNLORE_HTTP_KEYS).

    Example: runlore serve --up
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors, wiring
        from runlore.cli import stages

        settings = ui.settings_of(home)
        settings = settings.model_copy(
            update={
                **({"http_host": host} if host is not None else {}),
                **({"http_port": port} if port is not None else {}),
            }
        )
        callers = _server_extra()
        callers.check_bind(settings.http_host, with_keys=settings.http_keys)
        embedded = settings.bus == "sqlite" or settings.store == "directory"
        if up and not embedded:
            raise errors.Refused(
                "--up is for one machine; past it the stages run in `runlore worker`",
                hint="leave --up out",
            )
        stopping = stages.stopped_by_signals()
        async with wiring.open_home(settings, create=True) as opened:
            if embedded and not up:
                async with _service(opened, stopping, REFRESH_SECONDS) as service:
                    await _listen(out, service, settings)
            else:
                await _beside_stages(out, opened, stopping, up=up)
        out.answer({"stopped": True})

    ui.run(work, as_json=as_json)


def _server_extra() -> Any:
    """The module that only `runlore[server]` can load. Raises `errors.Refused`."""
    from runlore import errors

    try:
        # The application too: what its pages are made with came to the extra later than the rest.
        from runlore.lookup.http import app as _app  # noqa: F401
        from runlore.lookup.http import callers
    except ImportError as exc:
        raise errors.Refused(
            f"the lookup service needs {exc.name}", hint="pip install 'runlore[server]'"
        ) from None
    return callers


async def _beside_stages(out: ui.Out, opened: Home, stopping: Any, *, up: bool) -> None:
    """The service with stages in the same process: all of them with --up, else the one that keeps its index."""
    import asyncio
    import contextlib

    from runlore import wiring
    from runlore.cli import stages

    with contextlib.ExitStack() as stack:
        if up:
            stack.enter_context(wiring.only_one(opened.root))
        async with (
            stages.working(opened, stopping, None if up else ["index"]) as worker,
            _service(opened, stopping, REFRESH_SECONDS if up else None) as service,
        ):
            running = asyncio.create_task(stages.run(worker, opened, "up" if up else "serve"))
            serving = asyncio.create_task(_listen(out, service, opened.settings))
            try:
                # Whichever ends first ends the other: half of it would look like the whole.
                await asyncio.wait([running, serving], return_when=asyncio.FIRST_COMPLETED)
            finally:
                stopping.set()
                results = await asyncio.gather(running, serving, return_exceptions=True)
            for one in results:
                if isinstance(one, BaseException):
                    raise one


@asynccontextmanager
async def _service(opened: Home, stopping: Any, refresh_seconds: float | None) -> AsyncIterator[Service]:
    import asyncio

    from runlore import wiring
    from runlore.lookup.http import events, lists
    from runlore.lookup.http import service as services
    from runlore.upkeep import invitations, seedwriter

    folder = opened.settings.cache_dir / UPLOADS
    await asyncio.to_thread(events.sweep, folder)
    bells = opened.bus if opened.settings.bus == "sqlite" else None
    found = lists.Lists(opened.index_path, opened.store, bells, refresh_seconds=refresh_seconds)
    mode = opened.settings.seeds_are_audited
    seed_log = seedwriter.Writer(opened.store, by=ui.who(opened), mode=mode, looks_at_others=True)
    try:
        yield services.Service(
            opened.store,
            opened.bus,
            found,
            folder,
            with_keys=opened.settings.http_keys,
            requests_max=opened.settings.http_requests_max,
            connections_max=opened.settings.http_connections_max,
            stall_seconds=opened.settings.http_stall_seconds,
            post=invitations.post_of(opened.settings),
            stopping=stopping,
            known=lambda: inspect.known_of(opened),
            status_path=opened.status_path,
            up=lambda: wiring.up_is_running(opened.root),
            seed_log=seed_log,
        )
    finally:
        await seed_log.close()
        await found.close()


async def _listen(out: ui.Out, service: Service, settings: Settings) -> None:
    """Serve until the service is told to stop, then let what is under way end."""
    import gc

    from runlore.lookup.http import serving

    def told(url: str) -> None:
        # What was loaded stays until the end: looked through again by each full collection, it costs 30 ms each time.
        gc.collect()
        gc.freeze()
        keys = "with keys" if service.with_keys else "without keys, for this machine alone"
        out.note(f"runlore serves {url} ({keys}); Ctrl-C or SIGTERM ends it")

    await serving.run(
        service,
        host=settings.http_host,
        port=settings.http_port,
        drain_seconds=settings.drain_seconds_max,
        on_listening=told,
    )


# --- keys -------------------------------------------------------------------------------------------------


def _by(opened: Home) -> dict[str, str]:
    """Who acts, as the log of what was administered keeps it."""
    found = ui.who(opened)
    return {"user": f"{found['user']}@{found['host']}"}


@keys_app.command()
def create(
    project: ProjectArgument = "",
    scope: Annotated[str, typer.Option("--scope", help="read, write or admin.")] = "read",
    name: Annotated[str, typer.Option("--name", help="Whose it is, or what for.", show_default=False)] = "",
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Make a key of a project, and show it: this once.

    Example: runlore keys create acme --scope write --name ci --reason "CI of the shop"
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors, wiring
        from runlore.events import ids
        from runlore.upkeep import administration

        if not project or not name:
            raise errors.InvalidInput("PROJECT and --name are needed", hint="--help shows an example")
        ids.check_name(project, "project")
        why = ui.needs_reason(reason)
        async with wiring.open_home(ui.settings_of(home), create=True) as opened:
            given = {"scope": scope, "name": name}
            async with ui.acting(
                opened, "keys create", projects=[project], reason=why, arguments=given
            ) as act:
                hand = administration.Administrator(opened.store, _by(opened), why)
                key, token = await hand.create_machine_key(project, scope=scope, name=name)
                act.result["key"] = key.id
        out.answer({**key.shown(), "token": token})
        out.say(token)
        out.note(f"key {key.id} of {project}, scope {scope}: shown this once, kept nowhere")

    ui.run(work, as_json=as_json)


@keys_app.command("list")
def list_keys(
    project: ProjectArgument = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """List the keys of a project, also those that were revoked.

    Example: runlore keys list acme
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors, wiring
        from runlore.events import ids
        from runlore.upkeep import access

        if not project:
            raise errors.InvalidInput("PROJECT is needed", hint="runlore keys list PROJECT")
        ids.check_name(project, "project")
        async with wiring.open_home(ui.settings_of(home)) as opened:
            rows = [one.shown() for one in await access.list_all(opened.store, project)]
        out.answer({"project": project, "keys": rows})
        columns = ("id", "scope", "name", "created_at", "revoked_at")
        out.table(columns, [[row[column] for column in columns] for row in rows])
        if not rows:
            out.note(f"{project} has no key: `runlore keys create` makes one")

    ui.run(work, as_json=as_json)


@keys_app.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="KEYID", help="The key's id.", show_default=False)] = "",
    reason: ui.ReasonOption = "",
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """End a key: within 5 seconds nobody gets in with it.

    Example: runlore keys revoke 0198f0c2 --reason "left the team"
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors, wiring
        from runlore.upkeep import access, administration

        if not key:
            raise errors.InvalidInput("KEYID is needed", hint="`runlore keys list PROJECT` lists them")
        why = ui.needs_reason(reason)
        async with wiring.open_home(ui.settings_of(home)) as opened:
            found = await access.read(opened.store, key)
            if found is None:
                raise errors.NotFound(
                    f"there is no key {key!r}", hint="`runlore keys list PROJECT` lists them"
                )
            given = {"key": key}
            async with ui.acting(
                opened, "keys revoke", projects=[found.project], reason=why, arguments=given
            ):
                if found.revoked_at is None:
                    hand = administration.Administrator(opened.store, _by(opened), why)
                    await hand.delete_key(found.project, key)
                ended = await access.read(opened.store, key) or found
        out.answer(ended.shown())
        out.say(f"key {ended.id} of {ended.project} ({ended.name}) is revoked")

    ui.run(work, as_json=as_json)
