"""Commands for a team's own topic: source check, source init, source run, source redrive."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runlore.cli import ui

if TYPE_CHECKING:
    from runlore.bus.port import Bus
    from runlore.consumers.source import Counts, Outcome, SourceStage
    from runlore.sources.mapping import event, explain, fields
    from runlore.wiring import Home

app = typer.Typer(
    help="A team's own topic: events of any shape become runs through a mapping file (docs/SOURCES.md)."
)
SAMPLES_MAX = 1000
SAMPLE_BYTES_MAX = 64 * 1024 * 1024
TOLD_MAX = 5
"""How many samples that fail in different ways are told in full."""
NOTED_MAX = 20
"""How many dead letters a run names on stderr."""

MapArgument = Annotated[
    Path | None, typer.Argument(metavar="MAP", help="The mapping file (TOML).", show_default=False)
]
ProjectOption = Annotated[
    str | None,
    typer.Option(
        "--project", "-p", help="Project of the runs, in place of the mapping's.", show_default=False
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option("--memory", "-m", help="Memory of the runs, in place of the mapping's.", show_default=False),
]
MARKS = {"ok": "✓", "wrong": "✗", "note": "–"}


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="source")


@app.callback(invoke_without_command=True)
def _source(ctx: typer.Context) -> None:
    """A team's own topic: events of any shape become runs through a mapping file (docs/SOURCES.md)."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def _load(path: Path | None, project: str | None, memory: str | None) -> event.Mapping:
    from runlore import errors
    from runlore.sources.mapping import event

    if path is None:
        raise errors.InvalidInput("no MAP was given", hint="docs/SOURCES.md says what a mapping file holds")
    return event.load(path, project=project, memory=memory)


# --- check ----------------------------------------------------------------------------------------------


@app.command(name="check")
def check(
    mapping: MapArgument = None,
    samples: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SAMPLE…", help="Events: JSON files, JSON lines, or '-' for stdin.", show_default=False
        ),
    ] = None,
    project: ProjectOption = None,
    memory: MemoryOption = None,
    object_file: Annotated[
        Path | None,
        typer.Option(
            "--object", help="Read this file for any object that a sample points to.", show_default=False
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="The samples' message key.", show_default=False)
    ] = None,
    headers: Annotated[
        list[str] | None,
        typer.Option("--header", help="A header of the samples, NAME=VALUE.", show_default=False),
    ] = None,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Try a mapping on sample events: each field, what it gave, and what to write where it gave nothing.

    Nothing is sent. A file in JSON lines is one sample a line; with `decode` a file is the bytes of one message.

    Example: runlore source check orders.toml sample.json
    """

    async def work(out: ui.Out) -> None:
        import asyncio

        from runlore import errors, wiring
        from runlore.sources.mapping import explain

        made = _load(mapping, project, memory)
        if not samples:
            raise errors.InvalidInput("no SAMPLE was given", hint="a file with one event of the topic, or -")
        fetch = _of_file(object_file) if object_file else wiring.object_reader(ui.settings_of(home))
        given = await asyncio.to_thread(_samples, made, samples, key, headers or [])
        told = [(name, await asyncio.to_thread(explain.explain, made, one, fetch)) for name, one in given]
        _tell_check(out, made, told)
        if wrong := sum(not one.ok for _, one in told):
            raise errors.ProblemsFound(f"{wrong} of {len(told)} samples can not be mapped")

    ui.run(work, as_json=as_json)


def _of_file(path: Path) -> Any:
    from runlore import errors

    def fetch(_url: str, bytes_max: int) -> bytes:
        try:
            with path.open("rb") as stream:
                body = stream.read(bytes_max + 1)
        except OSError as exc:
            raise errors.ObjectMissing(f"{path} can not be read: {exc.strerror}") from None
        if len(body) > bytes_max:
            raise errors.ObjectTooLarge(f"{path} has more than {bytes_max} bytes")
        return body

    return fetch


def _samples(
    mapping: event.Mapping, names: list[str], key: str | None, headers: list[str]
) -> list[tuple[str, fields.Given]]:
    """The samples as messages, each with its name. Raises `errors.NotFound`, `errors.InvalidInput`."""
    from runlore import errors
    from runlore.sources.mapping import fields

    pairs = [one.partition("=") for one in headers]
    if any(not sign for _, sign, _ in pairs):
        raise errors.InvalidInput("--header needs NAME=VALUE")
    known = tuple((name, value.encode()) for name, _, value in pairs)
    found: list[tuple[str, fields.Given]] = []
    for name in names:
        for label, raw in _values(mapping, name, _read(name)):
            one = fields.Given(mapping.topic, 0, len(found), key.encode() if key else None, raw, known)
            found.append((label, one))
            if len(found) > SAMPLES_MAX:
                raise errors.InvalidInput(
                    f"more than {SAMPLES_MAX} samples", hint="`source run --dry-run` reads a topic"
                )
    return found


def _read(name: str) -> bytes:
    from runlore import errors

    try:
        if name == "-":
            raw = sys.stdin.buffer.read(SAMPLE_BYTES_MAX + 1)
        else:
            with open(name, "rb") as stream:
                raw = stream.read(SAMPLE_BYTES_MAX + 1)
    except OSError as exc:
        raise errors.NotFound(f"{name} can not be read: {exc.strerror}") from None
    if len(raw) > SAMPLE_BYTES_MAX:
        raise errors.InvalidInput(f"{name} has more than {SAMPLE_BYTES_MAX} bytes")
    return raw


def _values(mapping: event.Mapping, name: str, raw: bytes) -> list[tuple[str, bytes]]:
    """The messages in a file: one, or one a line."""
    from runlore import errors
    from runlore.sources.mapping import document

    lines = [(number, line) for number, line in enumerate(raw.split(b"\n"), 1) if line.strip()]
    if mapping.decode is not None or len(lines) < 2:
        return [(name, raw)]
    try:
        document.of_json(raw, name)
        return [(name, raw)]
    except errors.BadJson as exc:
        try:
            document.of_json(lines[0][1], name)
        except errors.BadJson:
            # Neither one event nor lines of them: what is wrong with the whole says more than with its lines.
            return [(name, raw)] if "Extra data" not in exc.message else _named(name, lines)
        return _named(name, lines)


def _named(name: str, lines: list[tuple[int, bytes]]) -> list[tuple[str, bytes]]:
    return [(f"{name}:{number}", line) for number, line in lines]


def _tell_check(out: ui.Out, mapping: event.Mapping, told: list[tuple[str, explain.Explained]]) -> None:
    from runlore.sources.mapping import explain

    warnings = explain.warnings(mapping, [one for _, one in told])
    out.answer(
        {
            "mapping": _about(mapping),
            "samples": [_sample(name, one) for name, one in told],
            "warnings": warnings,
            **_count(told).as_dict(),
        }
    )
    about = _about(mapping)
    out.say(f"{about['topic']} → {about['project']}/{about['memory']} · group {about['group']}")
    for name, one in _worth_telling(told):
        if len(told) > 1:
            out.say(name)
        width = max((len(finding.name) for finding in one.findings), default=0) + 2
        for finding in one.findings:
            out.say(f"  {MARKS[finding.state]} {finding.name:<{width}}{finding.line}")
    first = next((one.mapped for _, one in told if one.mapped), None)
    if first is not None and all(one.ok for _, one in told):
        import json

        out.say("the event, shortened:")
        for line in json.dumps(explain.shortened(first), indent=2, ensure_ascii=False).splitlines():
            out.say(f"  {line}")
    for one in warnings:
        out.say(f"  ! {one}")
    out.say(str(_count(told)))


def _about(mapping: event.Mapping) -> dict[str, Any]:
    def chosen(choice: Any) -> str:
        return choice.fixed or "|".join(sorted(set(choice.allowed.values())))

    return {
        "name": mapping.name,
        "topic": mapping.topic,
        "group": mapping.group,
        "project": chosen(mapping.project),
        "memory": chosen(mapping.memory),
    }


def _sample(name: str, one: explain.Explained) -> dict[str, Any]:
    from dataclasses import asdict

    from runlore.sources.mapping import explain

    return {
        "sample": name,
        "ok": one.ok,
        "reason": one.reason,
        "skipped": one.skipped.why if one.skipped else None,
        "fields": [asdict(finding) for finding in one.findings],
        "event": explain.shortened(one.mapped) if one.mapped else None,
    }


def _worth_telling(told: list[tuple[str, explain.Explained]]) -> list[tuple[str, explain.Explained]]:
    """The first sample, and each that fails in another way."""
    out, ways = [], set()
    for number, (name, one) in enumerate(told):
        wrong = tuple(finding.name for finding in one.findings if finding.state == "wrong")
        if number == 0 or (wrong and (one.reason, wrong) not in ways and len(ways) < TOLD_MAX):
            out.append((name, one))
        if wrong:
            ways.add((one.reason, wrong))
    return out


def _count(told: list[tuple[str, explain.Explained]]) -> Counts:
    from runlore.consumers import source

    counts = source.Counts()
    for _, one in told:
        counts.states[one.skipped.why if one.skipped else source.MAPPED if one.ok else source.DEAD] += 1
        if one.reason:
            counts.reasons[one.reason] += 1
    return counts


# --- init -----------------------------------------------------------------------------------------------


@app.command(name="init")
def init(
    sample: Annotated[
        str, typer.Argument(metavar="SAMPLE", help="One event: a JSON file, or '-'.", show_default=False)
    ] = "",
    name: Annotated[str, typer.Option("--name", help="Name of the source.")] = "runs",
    topic: Annotated[str, typer.Option("--topic", help="The topic of the events.", show_default=False)] = "",
    project: ProjectOption = None,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Draft a mapping from one event; what it can not tell is left open, or stands in a comment.

    It goes by names and shapes only: try the draft with `source check`, and say who is who.

    Example: runlore source init sample.json > orders.toml
    """

    async def work(out: ui.Out) -> None:
        import asyncio

        from runlore import errors
        from runlore.sources.mapping import document, draft

        if not sample:
            raise errors.InvalidInput("no SAMPLE was given", hint="a file with one event of the topic, or -")
        raw = await asyncio.to_thread(_read, sample)
        lines = [line for line in raw.split(b"\n") if line.strip()]
        try:
            found = document.of_json(raw, sample)
        except errors.BadJson:
            if len(lines) < 2:
                raise
            found = document.of_json(lines[0], f"{sample}, line 1")
        text = await asyncio.to_thread(draft.draft, found, name=name, topic=topic, project=project or "")
        out.answer({"mapping": text})
        out.say(text.removesuffix("\n"))
        out.note("next: fill in what is left open, then `runlore source check MAP SAMPLE`")

    ui.run(work, as_json=as_json)


# --- run ------------------------------------------------------------------------------------------------


@app.command(name="run")
def run(
    mapping: MapArgument = None,
    from_beginning: Annotated[
        bool,
        typer.Option("--from-beginning", help="Read the topic from its first message: harmless, see below."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Map what is there now; produce and commit nothing.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option("--limit", "-n", min=1, help="Stop after this many messages.", show_default=False),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Stop once no message is left.")] = False,
    project: ProjectOption = None,
    memory: MemoryOption = None,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Read a team's own topic, and publish the run that each of its events becomes; until Ctrl-C or SIGTERM.

    It reads as a consumer group of its own and commits only what is published. An event that can not be mapped
    becomes a dead letter with its reason; what was mapped before is recognised, so reading twice changes nothing.
    No topic is created.

    Example: runlore source run orders.toml --from-beginning --dry-run --limit 100
    """

    async def work(out: ui.Out) -> None:
        from runlore import wiring

        made = _load(mapping, project, memory)
        settings = ui.settings_of(home)
        async with wiring.open_home(settings, create=not dry_run) as opened:
            await _run(
                out, opened, made, from_beginning=from_beginning, dry_run=dry_run, limit=limit, once=once
            )

    ui.run(work, as_json=as_json)


async def _run(
    out: ui.Out,
    opened: Home,
    mapping: event.Mapping,
    *,
    from_beginning: bool,
    dry_run: bool,
    limit: int | None,
    once: bool,
) -> None:
    import asyncio
    import contextlib
    import signal

    from runlore import wiring
    from runlore.consumers import source
    from runlore.worker import concurrency
    from runlore.worker import source as loop

    settings = opened.settings
    plan = loop.Plan(limit=limit, once=once)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, plan.stopping.set)
    stage = source.SourceStage(
        opened.store,
        opened.bus,
        mapping,
        wiring.object_reader(settings),
        runtime=concurrency.runtime(settings.lanes),
    )
    counts, problems = source.Counts(), ui.Problems()
    async with contextlib.AsyncExitStack() as stack:
        topics = wiring.source_bus(settings)
        stack.push_async_callback(topics.close)
        waiting = await _waiting(topics, mapping)
        bar = stack.enter_context(out.progress())
        task = bar.add_task(f"source {mapping.name}", total=limit or (waiting if once else None), detail="")

        def tell(outcomes: list[Outcome]) -> None:
            counts.add(outcomes)
            _note(out, problems, outcomes)
            bar.update(task, completed=counts.total, detail=str(counts))

        one = loop.Source(topics, stage, mapping, settings, tell)
        if dry_run:
            await loop.rehearse(one, plan, from_beginning=from_beginning)
        else:
            if from_beginning:
                await topics.rewind(group=mapping.group, topic=mapping.topic)
            await loop.run(one, plan)
    out.answer({**counts.as_dict(), **problems.answer(), "dry_run": dry_run})
    out.say(str(counts))
    ended = dry_run or once or (limit is not None and counts.total >= limit)
    if plan.stopping.is_set() and ended and (limit is None or counts.total < limit):
        raise KeyboardInterrupt


async def _waiting(topics: Bus, mapping: event.Mapping) -> int | None:
    """How many messages are not committed; None where the bus does not answer yet, which is waited for later.

    Raises `errors.Blocked` where there is no such topic: a typing error must not wait for ever.
    """
    from runlore import errors

    try:
        return sum((await topics.lag(group=mapping.group, topic=mapping.topic)).values())
    except errors.Blocked as exc:
        hint = "the mapping's `topic` names it; a source reads a team's own topic and makes none"
        raise errors.Blocked(exc.message, hint=hint) from exc
    except errors.Retryable:
        return None


def _note(out: ui.Out, problems: ui.Problems, outcomes: list[Outcome]) -> None:
    from runlore.sources.mapping import fields

    for one in outcomes:
        if one.error is None:
            continue
        at = one.message
        place = fields.Given(at.topic, at.partition, at.offset, None, None).place
        problems.add({"at": place, **one.error.as_dict()})
        if len(problems) <= NOTED_MAX:
            out.note(f"{place}: {one.error.kind}: {one.error.message}")
        elif len(problems) == NOTED_MAX + 1:
            out.note("… `runlore dead` lists the others")


# --- redrive --------------------------------------------------------------------------------------------


@app.command(name="redrive")
def redrive(
    mapping: MapArgument = None,
    letters: Annotated[
        list[str] | None, typer.Argument(metavar="ID…", help="Dead letters.", show_default=False)
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--reason", help="Only letters with this reason code.", metavar="CODE", show_default=False
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every open letter of this source.")] = False,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=100_000, help="At most this many.")
    ] = 1000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Map them; publish and note nothing.")] = False,
    note: Annotated[
        str, typer.Option("--note", help="Why; kept with the letters, and asked for.", show_default=False)
    ] = "",
    project: ProjectOption = None,
    memory: MemoryOption = None,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Map dead letters of a source anew, once its mapping (or what an event points to) was mended.

    The event keeps the id and the time of its first reading. What still can not be mapped stays a dead letter.

    Example: runlore source redrive orders.toml --reason bad_messages --dry-run
    """

    async def work(out: ui.Out) -> None:
        from runlore import errors, wiring
        from runlore.consumers import dead, source
        from runlore.worker import concurrency

        made = _load(mapping, project, memory)
        if not letters and not every and kind is None:
            raise errors.InvalidInput(
                "say which: ids, --reason CODE or --all", hint="`runlore dead` lists them"
            )
        settings = ui.settings_of(home)
        async with wiring.open_home(settings) as opened:
            fetch = wiring.object_reader(settings)
            runtime = concurrency.runtime(settings.lanes)
            stage = source.SourceStage(opened.store, opened.bus, made, fetch, runtime=runtime)
            chosen = _chosen(await dead.read_all(opened.bus), made.name, letters, kind, limit)
            problems = ui.Problems()
            if dry_run or not chosen:
                counts = await _redrive(out, stage, chosen, problems, why="", dry_run=True)
            else:
                why = ui.needs_reason(note, option="--note")
                arguments = {"source": made.name, "letters": [one.id for one in chosen], "reason": kind}
                projects = [made.project.fixed]
                async with ui.acting(
                    opened, "source redrive", projects=projects, reason=why, arguments=arguments
                ) as act:
                    counts = await _redrive(out, stage, chosen, problems, why=why, dry_run=False)
                    act.result |= counts.as_dict()
        out.answer({"letters": len(chosen), **counts.as_dict(), **problems.answer(), "dry_run": dry_run})
        out.say(f"{len(chosen)} letters: {counts}")

    ui.run(work, as_json=as_json)


async def _redrive(
    out: ui.Out, stage: SourceStage, chosen: list[Any], problems: ui.Problems, *, why: str, dry_run: bool
) -> Counts:
    from runlore.consumers import source

    counts = source.Counts()
    for one in chosen:
        found = await stage.redrive(one, why=why, dry_run=dry_run)
        counts.add([found])
        _note(out, problems, [found])
    return counts


def _chosen(
    every: list[Any], source: str, names: list[str] | None, kind: str | None, limit: int
) -> list[Any]:
    """The open letters of a source that are meant. Raises `errors.NotFound`."""
    from runlore import errors

    if not names:
        mine = [one for one in every if one.source == source and not one.resolution]
        return [one for one in mine if kind in (None, one.reason)][:limit]
    found = []
    for name in names:
        matches = [one for one in every if one.id.startswith(name)]
        if len(matches) != 1:
            problem = "more than one dead letter begins" if matches else "no dead letter begins"
            raise errors.NotFound(f"{problem} with {name!r}", hint="`runlore dead` lists them")
        found += matches
    return found
