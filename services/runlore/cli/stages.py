"""Commands that run the stages: `up` (all of them, here), `worker` and `index` (past one machine)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runlore.cli import ui

if TYPE_CHECKING:
    from runlore.settings import Settings
    from runlore.wiring import Home
    from runlore.worker.loop import Progress, Worker

WORKED = ("record", "snapshot", "summarize", "consolidate")
BEAT_SECONDS = 0.5


def register(app: typer.Typer) -> None:
    for command in (up, worker, index):
        app.command()(command)


def up(
    once: Annotated[bool, typer.Option("--once", help="Work off what is there, then exit.")] = False,
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Run the whole pipeline in one process, until SIGTERM or Ctrl-C (then it drains).

    Bus and store are a SQLite log and a folder below --home. It can be killed at any moment: what it had not
    finished comes again, and nothing is doubled.

    Example: runlore up --once
    """

    async def work(out: ui.Out) -> None:
        from runlore import wiring

        settings = ui.settings_of(home)
        stopping = stopped_by_signals()
        async with wiring.open_home(settings, create=True) as opened:
            with wiring.only_one(opened.root):
                async with working(opened, stopping) as made:
                    if once:
                        await _drain(out, made, opened)
                    else:
                        out.note(f"runlore is up on {opened.root}; Ctrl-C or SIGTERM drains and ends it")
                        await run(made, opened, "up")
                _report(out, made.progress)

    ui.run(work, as_json=as_json)


def worker(
    stages: Annotated[
        str,
        typer.Option(
            "--stages", metavar="A,B", help="Of record, snapshot, summarize, consolidate and index."
        ),
    ] = ",".join(WORKED),
    home: ui.HomeOption = None,
    as_json: ui.JsonOption = False,
) -> None:
    """Run stages past one machine, over Kafka and S3, beside as many others as wanted; SIGTERM drains.

    Workers share the work by themselves, and none owns any of it: kill or start them at will. --home holds caches
    only. On one machine, with the embedded log and folder, use `runlore up`.

    Example: runlore worker --stages record,consolidate
    """
    _work_on("worker", lambda: _stages(stages), home, as_json)


def index(home: ui.HomeOption = None, as_json: ui.JsonOption = False) -> None:
    """Keep this machine's index: by doorbell at once, by a LIST of all heads at start and every minute.

    For search and lists past one machine. The file (index.db in --home) is a cache: delete it, also under a
    running process, and it is made again. Each replica hears every doorbell.

    Example: runlore index
    """
    _work_on("index", lambda: ["index"], home, as_json)


def _work_on(what: str, wanted: Any, home: Any, as_json: bool) -> None:
    async def work(out: ui.Out) -> None:
        from runlore import errors, wiring

        settings = ui.settings_of(home)
        if settings.bus == "sqlite" or settings.store == "directory":
            raise errors.Refused(
                "bus and store are on this machine, where `runlore up` runs all stages in one process",
                hint="past one machine set RUNLORE_BUS=kafka and RUNLORE_STORE=s3",
            )
        stages = wanted()
        stopping = stopped_by_signals()
        async with wiring.open_home(settings) as opened:
            async with working(opened, stopping, stages) as made:
                out.note(
                    f"runlore {what} runs {', '.join(sorted(stages))}; Ctrl-C or SIGTERM drains and ends it"
                )
                await run(made, opened, what)
            _report(out, made.progress)

    ui.run(work, as_json=as_json)


def _stages(text: str) -> list[str]:
    """The stages that are meant. Raises `errors.InvalidInput`."""
    from runlore import errors

    named = [one.strip() for one in text.split(",") if one.strip()]
    strange = [one for one in named if one not in (*WORKED, "index")]
    if strange or not named:
        raise errors.InvalidInput(
            f"there is no stage {strange[0]!r}" if strange else "no stage was named",
            hint=f"stages: {', '.join(WORKED)}, index (summarize only where there is a model)",
        )
    return named


def stopped_by_signals() -> Any:
    """An event that SIGTERM and Ctrl-C set. Before anything says that it is up, so that whoever waits can stop it."""
    import asyncio
    import signal

    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    return stopping


@asynccontextmanager
async def working(
    opened: Home, stopping: Any, stages: Collection[str] | None = None
) -> AsyncIterator[Worker]:
    import asyncio

    from runlore import wiring
    from runlore.lookup.index import Index
    from runlore.memory import detectors
    from runlore.models import choices
    from runlore.worker import loop

    if opened.settings.redact_library and {"record", "consolidate"} & set(stages or loop.STAGES):
        # Before the first message: a worker must not keep some records by fewer rules than others.
        await asyncio.to_thread(detectors.load)
    found = Index(opened.index_path)
    engine = wiring.engine_of(opened.settings)
    summaries = None
    if engine is not None:
        watched = choices.Watched(opened.settings.models_file)
        summaries = loop.Summaries(engine, watched(), reload=watched)
    try:
        yield loop.Worker(
            opened.store,
            opened.bus,
            found,
            opened.settings,
            stages=stages or loop.STAGES,
            index_group=_index_group(opened),
            stopping=stopping,
            summaries=summaries,
        )
    finally:
        found.close()
        if engine is not None:
            await engine.close()


def _index_group(opened: Home) -> str:
    """The consumer group of this home's index: in one group, replicas would share the doorbells out between them.

    On Kafka it is named after this worker, or after the home: whoever shares the home shares its index file.
    """
    from runlore import clock, wiring

    if opened.settings.bus != "kafka":
        return "index"
    if opened.settings.kafka_instance:
        return f"index-{opened.settings.kafka_instance}"
    path = opened.root / "run" / "replica"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        wiring.write_file(path, clock.new_id().encode())
    return f"index-{path.read_text().strip()}"


async def run(made: Worker, opened: Home, what: str) -> None:
    """Run the stages, telling meanwhile how they are: to a file on one machine, to the store past it."""
    import asyncio
    import contextlib

    from runlore.upkeep import ages

    embedded = opened.settings.store == "directory"
    beside = [asyncio.create_task(_beat(made, opened) if embedded else _tell(made, opened, what))]
    if "record" in made.stages:
        beside.append(asyncio.create_task(ages.tell(opened.store, opened.bus)))
    try:
        async with _served(made, opened.settings):
            await made.run()
    finally:
        for one in beside:
            one.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await one


@asynccontextmanager
async def _served(made: Worker, settings: Settings) -> AsyncIterator[None]:
    """The worker's probes and metrics, where the settings name a port for them."""
    from runlore.worker import health

    async with health.serve(made, settings):
        yield


async def _tell(made: Worker, opened: Home, what: str) -> None:
    """What `runlore status` shows of this worker, past one machine."""
    from runlore.upkeep import workers

    instance = opened.settings.kafka_instance
    await workers.Teller(opened.store, lambda: _told(made), instance=instance, what=what).run()


async def _beat(made: Worker, opened: Home) -> None:
    """The same, on one machine: a file, written when it changes."""
    import asyncio
    import contextlib
    import json

    from runlore import wiring

    last = b""
    while True:
        body = json.dumps({"stages": _told(made)}).encode()
        if body != last:
            # Nothing rests on the status file: a full disk must not end the stages.
            with contextlib.suppress(OSError):
                await asyncio.to_thread(wiring.write_file, opened.status_path, body)
                last = body
        await asyncio.sleep(BEAT_SECONDS)


def _told(made: Worker) -> dict[str, Any]:
    from dataclasses import asdict

    return {name: asdict(stage) for name, stage in made.progress.stages.items()}


async def _drain(out: ui.Out, worker: Worker, opened: Any) -> None:
    """`up --once`, with a bar over what is on the bus."""
    total = sum((await opened.bus.lag(group="record", topic="runs")).values())
    with out.progress() as bar:
        task = bar.add_task("record", total=total, detail="")

        def show(progress: Progress) -> None:
            done = (
                progress.recorded + progress.already + progress.superseded + progress.dead + progress.erased
            )
            detail = (
                f"{progress.covered} rollouts in {progress.revisions} revisions" if progress.revisions else ""
            )
            bar.update(task, completed=done, total=max(total, done), detail=detail)

        worker._on_progress = show
        await worker.drain()


def _report(out: ui.Out, progress: Progress) -> None:
    counts = {
        name: getattr(progress, name)
        for name in (
            "recorded",
            "already",
            "superseded",
            "erased",
            "dead",
            "revisions",
            "covered",
            "held",
            "snapshots",
            "branches",
        )
    }
    out.answer(counts)
    parts = [f"recorded {progress.recorded} runs"]
    parts += [f"{progress.already} were recorded already"] if progress.already else []
    parts += [f"{progress.superseded} superseded"] if progress.superseded else []
    parts += [f"{progress.erased} were erased, and stay so"] if progress.erased else []
    parts += [f"{progress.dead} dead letters (`runlore dead`)"] if progress.dead else []
    parts += (
        [f"{progress.revisions} revisions over {progress.covered} rollouts"] if progress.revisions else []
    )
    parts += [f"{progress.snapshots} workspaces moved"] if progress.snapshots else []
    parts += [f"{progress.branches} branches (`runlore snapshot ls`)"] if progress.branches else []
    parts += [f"{progress.held} rollouts held (`runlore review`)"] if progress.held else []
    out.say(" · ".join(parts))
