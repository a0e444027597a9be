"""What every command shares: its output, its errors, its exit code, its way of running.

One documented JSON object on stdout with `--json`, or text for a person; everything else (progress, logs,
notes, errors) goes to stderr, so a pipe gets only the answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from runlore.settings import Settings
    from runlore.upkeep.audit import Act
    from runlore.wiring import Home

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home", help="Folder of all state (default: RUNLORE_HOME, else ~/.runlore).", show_default=False
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
ProjectOption = Annotated[str, typer.Option("--project", "-p", help="Project (tenant).")]
MemoryOption = Annotated[str, typer.Option("--memory", "-m", help="Memory of the project.")]
MaybeProject = Annotated[
    str | None, typer.Option("--project", "-p", help="Project (tenant).", show_default=False)
]
MaybeMemory = Annotated[
    str | None, typer.Option("--memory", "-m", help="Memory of the project.", show_default=False)
]
MemoryArgument = Annotated[
    str, typer.Argument(metavar="MEMORY", help="Memory of the project.", show_default=False)
]
SubjectOption = Annotated[
    str | None,
    typer.Option("--subject", help="Whom it is for: their own notes are shown too.", show_default=False),
]
LineOption = Annotated[
    str | None,
    typer.Option(
        "--line", help="A side line (`runlore rebuild`) instead of the memory's own.", show_default=False
    ),
]
ReasonOption = Annotated[
    str, typer.Option("--reason", help="Why; asked for, and kept with the change.", show_default=False)
]
MaybeReason = Annotated[str, typer.Option("--reason", help="Why; kept in the audit log.", show_default=False)]

INTERRUPTED = 130


class Told(Exception):
    """The command has answered already (it listed what there is to name): nothing is left to do."""


class Out:
    """Where a command writes: `answer` once, `say` for a person, `note` on stderr."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.answered = False
        self._err: Console | None = None

    @property
    def err(self) -> Console:
        """The console on stderr."""
        if self._err is None:
            from rich.console import Console

            self._err = Console(stderr=True, highlight=False, soft_wrap=True)
        return self._err

    def answer(self, value: dict[str, Any]) -> None:
        """The command's JSON object; nothing without `--json`."""
        if self.as_json and not self.answered:
            self.answered = True
            sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")

    def say(self, text: str = "") -> None:
        """A line for a person on stdout; nothing with `--json`."""
        if not self.as_json:
            # Memory holds what tools printed: a control character must not reach the terminal.
            sys.stdout.write(printable(text) + "\n")

    def note(self, text: str) -> None:
        """A line for a person on stderr."""
        sys.stderr.write(printable(text) + "\n")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Rows under headings, aligned; plain text, so that it can be piped into anything."""
        cells = [[str(column).upper() for column in columns]]
        cells += [["-" if cell is None else str(cell) for cell in row] for row in rows]
        widths = [max(len(row[at]) for row in cells) for at in range(len(columns))]
        for row in cells:
            self.say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def progress(self) -> Any:
        """A progress bar on stderr; silent where stderr is not a terminal."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
        )
        return Progress(*columns, console=self.err, disable=not sys.stderr.isatty(), transient=True)


class Problems:
    """What went wrong with single lines: all are counted, the first `LISTED_MAX` are kept for `--json`."""

    LISTED_MAX = 1000

    def __init__(self) -> None:
        self._count = 0
        self._listed: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return self._count

    def add(self, problem: dict[str, Any]) -> None:
        self._count += 1
        if self._count <= self.LISTED_MAX:
            self._listed.append(problem)

    def answer(self) -> dict[str, Any]:
        return {"problems": self._listed, "problems_total": self._count}


def printable(text: str) -> str:
    """`text` without control characters other than newline and tab."""
    return "".join(
        char if char in "\n\t" or (ord(char) >= 32 and not 127 <= ord(char) < 160) else "�" for char in text
    )


def settings_of(home: Path | None) -> Settings:
    """The settings, with `--home` over the environment. Raises `errors.InvalidInput`."""
    from pydantic import ValidationError

    from runlore import errors
    from runlore.settings import Settings

    try:
        settings = Settings(home=home) if home is not None else Settings()
        configure_logs(settings)
        return settings
    except ValidationError as exc:
        wrong = "; ".join(f"RUNLORE_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in exc.errors())
        raise errors.InvalidInput(f"the settings are not valid: {wrong}") from None


def run(work: Callable[[Out], Awaitable[None]], *, as_json: bool) -> None:
    """Run a command's coroutine; its errors become words on stderr, an object on stdout, and an exit code."""
    from runlore import errors

    out = Out(as_json=as_json)
    if hasattr(sys.stdout, "reconfigure"):
        # A terminal that can not show a character must not end the command.
        sys.stdout.reconfigure(errors="replace")
    try:
        asyncio.run(_interruptible(work(out)))
        # Here, where a reader that went away can still be told from a failure.
        sys.stdout.flush()
    except Told:
        sys.stdout.flush()
    except errors.RunloreError as exc:
        out.note(f"error: {exc.message}")
        if exc.hint:
            out.note(f"  hint: {exc.hint}")
        out.answer({"error": exc.as_dict()})
        raise typer.Exit(exc.exit_code) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        out.note("interrupted; nothing is lost: run the same command again")
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # The reader of a pipe went away (`runlore log | head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except Exception as exc:
        # A bug of ours: say so in words first, and leave the trace for the report of it.
        import traceback

        out.note(f"internal error: {type(exc).__name__}: {exc}")
        out.note(
            "  hint: nothing is lost; run the same command again, and report the trace below if it stays"
        )
        out.answer({"error": {"kind": "internal", "message": f"{type(exc).__name__}: {exc}"}})
        traceback.print_exc()
        raise typer.Exit(1) from None


async def _interruptible(work: Awaitable[None]) -> None:
    """`work`, cancelled by SIGTERM as by Ctrl-C; `runlore up` replaces this by its drain."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await task


def configure_logs(settings: Settings) -> None:
    """Logs as events with fields, on stderr."""
    import logging

    import structlog

    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    as_text = settings.log_format == "text" or (settings.log_format == "auto" and sys.stderr.isatty())
    # Plain traces: the rich ones show local variables, and so what users said.
    plain = structlog.dev.plain_traceback
    as_lines = structlog.dev.ConsoleRenderer(exception_formatter=plain)
    renderers = (
        [as_lines] if as_text else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def needs_reason(reason: str, *, option: str = "--reason") -> str:
    """The reason as it is kept. Raises `errors.InvalidInput` where there is none."""
    from runlore import errors

    if not reason.strip():
        raise errors.InvalidInput(f"this changes what others see: say why with {option}")
    return reason.strip()


def who(opened: Home) -> dict[str, str]:
    """Who acts, as the audit log and a pause keep it."""
    from runlore.upkeep import audit

    return audit.who(opened.settings)


@asynccontextmanager
async def acting(
    opened: Home,
    what: str,
    *,
    projects: Sequence[str | None] = (),
    reason: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> AsyncIterator[Act]:
    """Do what changes something between the two entries of the audit log; `act.result` is kept with it."""
    from runlore.upkeep import audit

    named = [one for one in projects if one is not None]
    async with audit.acting(
        opened.store, by=who(opened), what=what, projects=named, reason=reason, arguments=arguments
    ) as act:
        yield act


def confirm(out: Out, question: str, *, yes: bool, what: str) -> None:
    """Ask before `what` is done, unless --yes said so.

    Raises `errors.InvalidInput` where nobody can be asked, `errors.Refused` where the answer is no.
    """
    from runlore import errors

    if yes:
        return
    if out.as_json or not sys.stdin.isatty():
        raise errors.InvalidInput(f"{what}: say --yes where nobody can be asked")
    if not typer.confirm(question, err=True):
        raise errors.Refused("nothing was changed: the answer was no")


def pick(rows: Sequence[dict[str, Any]], project: str | None, memory: str | None) -> tuple[str, str] | None:
    """The memory that is meant: the one named, or the only one there is. None where that is not clear."""
    if project and memory:
        return project, memory
    found = [
        (row["project"], row["memory"])
        for row in rows
        if project in (None, row["project"]) and memory in (None, row["memory"])
    ]
    return found[0] if len(found) == 1 else None


def pass_on(ctx: typer.Context, home: Path | None, as_json: bool) -> None:
    """Let options that stand before a group's command count for it: `runlore dead --home H list`."""
    given = {"home": home, "as_json": as_json or None}
    known = {name: value for name, value in given.items() if value is not None}
    ctx.default_map = {str(ctx.invoked_subcommand): known}
