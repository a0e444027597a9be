"""One version of Runlore as a process that forks others: it runs commands and workers as it is told, a JSON line each.

Started with an older version's folder on PYTHONPATH it is that version. What takes a second to load is loaded once,
and forked before any thread is there: so a command costs milliseconds, and a worker can be killed like any process.

It uses as little of Runlore as it can, and only what every version has.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import traceback

PRELOADED = (
    "sqlite_utils",
    "runlore.cli.inspect",
    "runlore.lookup.states",
    "runlore.lookup.explain",
    "runlore.snapshots.library",
    "runlore.upkeep.administration",
    "runlore.upkeep.verify",
    "runlore.cli.main",
    "runlore.cli.stages",
    "runlore.wiring",
    "runlore.worker.loop",
    "runlore.store.directory",
    "runlore.bus.sqlite",
    "runlore.producer",
)


BUILT = []
"""The command line, built once: it takes longer than most commands."""


def command(words: list[str]) -> None:
    sys.argv = ["runlore", *words]
    BUILT[0](words, prog_name="runlore")


def work(stages: list[str]) -> None:
    """A worker on one machine's home beside others of any version: `runlore up` would let nobody beside it."""
    from runlore import settings, wiring
    from runlore.cli import stages as cli_stages

    async def run() -> None:
        stopping = cli_stages.stopped_by_signals()
        async with (
            wiring.open_home(settings.Settings(), create=True) as opened,
            cli_stages.working(opened, stopping, stages) as worker,
        ):
            print("works", flush=True)
            await worker.run()

    asyncio.run(run())


def script(path: str) -> None:
    """A program of a test's own, with `runlore` of this version."""
    with open(path, encoding="utf-8") as file:
        exec(compile(file.read(), path, "exec"), {"__name__": "__main__", "__file__": path})


TASKS = {"command": command, "work": work, "script": script}


def forked(asked: dict) -> int:
    """The process that does it."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.clear()
        os.environ.update(asked["environment"])
        for number, name, flags in (
            (0, "in", os.O_RDONLY),
            (1, "out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            (2, "err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        ):
            os.dup2(os.open(asked[name], flags, 0o600), number)
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
        sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
        TASKS[asked["task"]](asked["with"])
        code = 0
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def main() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    import runlore
    from runlore.cli import main as cli

    BUILT.append(cli.command())
    print(json.dumps({"version": runlore.__version__, "file": runlore.__file__}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "load" in asked:
            # Here, so that what is forked later need not.
            for name in asked["load"]:
                importlib.import_module(name)
            answer = {}
        elif "wait" in asked:
            _, status = os.waitpid(asked["wait"], 0)
            answer = {"code": os.waitstatus_to_exitcode(status)}
        else:
            answer = {"pid": forked(asked)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
