"""`runlore`: the command line. Nothing heavy is imported before a command runs (`--help` stays fast)."""

from __future__ import annotations

import copy
import functools
import json
import re
import sys

import typer

from runlore.cli import (
    admin,
    asks,
    audit,
    control,
    forgetting,
    inspect,
    mcp,
    operate,
    people,
    pipeline,
    repairing,
    retention,
    review,
    serve,
    sides,
    snapshots,
    sources,
    spending,
    stages,
    topics,
    workspaces,
)

EPILOG = (
    "Exit codes: 0 done · 1 internal error · 2 bad input or usage · 3 no such thing · 4 refused by the present "
    "state · 5 a fault that may pass, or a missing permission · 6 problems found · 130 interrupted (run it again)."
)

app = typer.Typer(
    name="runlore",
    help="Memory and snapshots for AI agents: every finished run becomes memory, and seeds the next run.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from runlore import __version__

        typer.echo(f"runlore {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    ctx: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Set by the app's own help."""


stages.register(app)
pipeline.register(app)
inspect.register(app)
operate.register(app)
review.register(app)
sides.register(app)
snapshots.register(app)
workspaces.register(app, snapshots.app)
topics.register(app)
control.register(app)
audit.register(app)
repairing.register(app)
forgetting.register(app)
asks.register(app)
sources.register(app)
mcp.register(app)
serve.register(app)
admin.register(app)
people.register()
spending.register()
retention.register()


def _shorten(group: typer.Typer) -> None:
    """What a list says of each command: its first words, whole, where typer would cut the line anywhere."""
    for one in group.registered_commands:
        first = (one.callback.__doc__ or "").strip().splitlines()[0]
        one.short_help = re.split(r"[:;,.(]", first, maxsplit=1)[0].strip()
    for below in group.registered_groups:
        if below.typer_instance is not None:
            below.short_help = str(below.typer_instance.info.help).partition(":")[0]
            _shorten(below.typer_instance)


_shorten(app)


def _alone(first: str) -> typer.Typer:
    """The app with nothing but what `first` names; where that is nothing, the whole app, which says so."""
    alone = copy.copy(app)
    alone.registered_commands = [
        one
        for one in app.registered_commands
        if first == (one.name or typer.main.get_command_name(one.callback.__name__))
    ]
    alone.registered_groups = [one for one in app.registered_groups if first == one.name]
    return alone if alone.registered_commands or alone.registered_groups else app


@functools.lru_cache(maxsize=128)
def command(first: str = "") -> typer.core.TyperGroup:
    """The commands as an object, for what describes them (docs and tests); with `first`, that one alone.

    A process makes only what it runs: typer looks at the type of every option of every command, and of all
    of them that takes longer than many a command.
    """
    alone = _alone(first)
    return command() if first and alone is app else typer.main.get_command(alone)  # type: ignore[return-value]


def main() -> None:
    """The entry point of the `runlore` script."""
    try:
        command(*sys.argv[1:2])()
    except SystemExit as exc:
        # A usage error is told by typer, on stderr; who asked for JSON gets its object too.
        usage = getattr(exc.__context__, "format_message", None)
        if usage is not None and "--json" in sys.argv[1:]:
            error = {"kind": "invalid_input", "message": usage(), "hint": "--help shows the usage"}
            sys.stdout.write(json.dumps({"error": error}, indent=2) + "\n")
        raise


if __name__ == "__main__":
    main()
