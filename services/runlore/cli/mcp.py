"""The command mcp: memory for any agent that speaks the Model Context Protocol."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Annotated

import typer

from runlore.cli import ui

if TYPE_CHECKING:
    from runlore.lookup.index import Index


def register(app: typer.Typer) -> None:
    app.command()(mcp)


def mcp(
    project: ui.MaybeProject = None,
    memory: ui.MaybeMemory = None,
    subject: ui.SubjectOption = None,
    home: ui.HomeOption = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print what it would serve as one JSON object on stdout, and serve nothing."
        ),
    ] = False,
) -> None:
    """Serve memory to an agent over the Model Context Protocol, on stdin and stdout, until it hangs up.

    It only reads. The project is fixed here and no client can name another; with --memory one memory is all it
    shows. Whose personal notes it shows is --subject's to say; without it, nobody's. docs/MCP.md has the lines for
    Claude Code, Codex and Cursor.

    Example: runlore mcp --project acme --memory support
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors, wiring
        from runlore.events import ids
        from runlore.lookup import desk as lookup_desk
        from runlore.lookup import index as lookup_index

        try:
            from runlore.lookup import mcp as lookup_mcp
        except ImportError as exc:
            raise errors.Refused(
                f"{exc.name} is not installed", hint="pip install 'runlore[server]'"
            ) from None
        settings = ui.settings_of(home)
        async with wiring.open_home(settings) as opened:
            index = lookup_index.Index(opened.index_path)
            try:
                await lookup_index.reconcile(index, opened.store)
                meant = ids.check_name(project, "project") if project else _only_project(index)
                if memory:
                    ids.check_name(memory, "memory")
                desk = lookup_desk.Desk(opened.reader, index, project=meant, memory=memory, subject=subject)
                server = lookup_mcp.serve(desk, log_level=settings.log_level)
                if out.as_json:
                    out.answer({"project": meant, "memory": memory, "tools": await lookup_mcp.told(server)})
                    return
                _die_when_told()
                await server.run_stdio_async()
            finally:
                index.close()

    ui.run(work, as_json=as_json)


def _die_when_told() -> None:
    """Let SIGTERM and Ctrl-C end the process at once: a thread that waits for stdin can not be called back, and a
    server that only reads has nothing to finish."""
    asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _only_project(index: Index) -> str:
    from runlore import errors

    projects = sorted({row["project"] for row in index.memories()})
    if len(projects) == 1:
        return projects[0]
    hint = f"projects: {', '.join(projects)}" if projects else "the home has none yet"
    raise errors.InvalidInput("--project is needed: it is fixed for as long as the server runs", hint=hint)
