"""The main job, on real recorded runs: events in, memory made, a next run's workspace seeded. No key, no server.

    make demo
    make demo BUS=kafka STORE=s3

It runs the same commands that you would, prints each, and leaves its home in .runlore/demo. With BUS=kafka and
STORE=s3 it does the same on a real Kafka broker and a real S3 server, which it starts and ends itself (infra/dev
says what they need). The runs in examples/runs were made with the real OpenAI Agents SDK (examples/make_samples.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RUNS = sorted((ROOT / "examples" / "runs").glob("*.jsonl"))
HOME = ROOT / ".runlore" / "demo"
WORKSPACE = ROOT / ".runlore" / "workspace"
LEFT = ROOT / ".runlore" / "left-behind"
FILES = {
    "invoices/inv-204.json": '{"id": "inv-204", "total": 118.4, "status": "open"}\n',
    "invoices/check.py": "import json, sys\n\nprint(json.load(open(sys.argv[1]))['total'])\n",
    "notes.md": "# inv-204\n\n- total checked against the order\n- waiting for the customer's address\n",
}
"""A small workspace, as a run would leave it."""
RUNLORE = Path(sys.executable).with_name("runlore")
MEMORY = ["--project", "demo", "--memory", "support"]
SERVERS = ROOT / ".runlore" / "demo-servers"
SETTINGS: dict[str, str] = {}
"""Where the servers are, if it runs on any."""


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def run(*arguments: object, quiet: bool = False) -> str:
    """Run a command as a person would; with `quiet`, only for its JSON."""
    words = [shown(one) if isinstance(one, Path) else str(one) for one in arguments]
    if not quiet:
        print(f"$ runlore {shlex.join(words)}", flush=True)
    # Nobody's own settings: the demo must not write into a bucket that is in use.
    own = {name: value for name, value in os.environ.items() if not name.startswith("RUNLORE_")}
    environment = {**own, **SETTINGS, "RUNLORE_HOME": str(HOME)}
    done = subprocess.run(
        [RUNLORE, *words],
        cwd=ROOT,
        env=environment,
        check=True,
        text=True,
        stdout=subprocess.PIPE if quiet else None,
    )
    return done.stdout or ""


@contextlib.contextmanager
def servers(bus: str, store: str) -> Iterator[None]:
    """The servers that were asked for, from their start to their end."""
    sys.path.insert(0, str(ROOT))
    from infra.dev import kafka, s3

    wanted = ([kafka] if bus == "kafka" else []) + ([s3] if store == "s3" else [])
    missing = [problem for module in wanted if (problem := module.missing())]
    if missing:
        raise SystemExit("\n".join(["this demo needs a server that can not be started here:", *missing]))
    shutil.rmtree(SERVERS, ignore_errors=True)
    made: list[Any] = []
    if kafka in wanted:
        made.append(kafka.KafkaServer(SERVERS / "kafka"))
    if s3 in wanted:
        made.append(s3.S3Server(SERVERS / "s3"))
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda server: server.start(), made))
        for server in made:
            SETTINGS.update(settings_of(server))
        yield
    finally:
        for server in made:
            server.stop()
        shutil.rmtree(SERVERS, ignore_errors=True)


def settings_of(server: Any) -> dict[str, str]:
    """The settings that make Runlore use a server."""
    if hasattr(server, "servers"):
        return {"RUNLORE_BUS": "kafka", "RUNLORE_KAFKA_SERVERS": server.servers}
    return server.environment


def main() -> None:
    parser = argparse.ArgumentParser(description="The main job, on real recorded runs.")
    parser.add_argument("--bus", choices=("sqlite", "kafka"), default="sqlite")
    parser.add_argument("--store", choices=("directory", "s3"), default="directory")
    options = parser.parse_args()
    for folder in (HOME, WORKSPACE, LEFT):
        shutil.rmtree(folder, ignore_errors=True)
    if (options.bus, options.store) == ("sqlite", "directory"):
        demo()
        say("Try it on your own runs:")
        print("  .venv/bin/runlore import agents-sdk SESSIONS_DIR --project me --memory support")
        print("  .venv/bin/runlore up --once")
        print("  .venv/bin/runlore seed NEXT_SESSION_ID --project me --memory support --into WORKSPACE")
        return
    names = {"kafka": "a Kafka broker", "s3": "an S3 server"}
    asked = " and ".join(names[one] for one in (options.bus, options.store) if one in names)
    say(f"0. Start {asked} on this machine:")
    with servers(options.bus, options.store):
        for name, value in SETTINGS.items():
            print(f"{name}={value}", flush=True)
        if options.bus == "kafka":
            run("topics", "apply", "--yes")
        demo()
        say("6. Every invariant holds on what is stored there:")
        run("verify")
        say("Keep such servers running, and work on them:")
        print('  eval "$(.venv/bin/python infra/dev up)"; .venv/bin/runlore topics apply --yes')
        print("  .venv/bin/runlore worker")


def demo() -> None:
    """The same on every bus and store."""
    say("1. Each finished run emits one event. Here are the runs of seven conversations:")
    for path in RUNS:
        run("emit", path)
    say("2. The pipeline records them and makes a revision of memory:")
    run("up", "--once")
    run("log", "support")
    say(
        "3. What the last run of inv-204 left in its workspace is saved; only what changes is ever written again:"
    )
    left_behind(LEFT)
    run("snapshot", "save", LEFT, "--project", "demo", "--rollout", "inv-204")
    say("4. The next run of conversation inv-204, for ana, starts from both, memory laid over the workspace:")
    run("seed", "inv-204", *MEMORY, "--subject", "ana", "--into", WORKSPACE)
    run("snapshot", "tree", "inv-204", "--project", "demo")
    same = all((WORKSPACE / name).read_text() == text for name, text in FILES.items())
    print(f"{len(FILES)} files restored, byte for byte: {'yes' if same else 'NO'}", flush=True)
    if not same:
        raise SystemExit(1)
    summary = (WORKSPACE / "memories" / "memory_summary.md").read_text()
    say("memories/memory_summary.md, which the Agents SDK puts before the agent:")
    print(summary, flush=True)
    say("5. Every line can say why it is there:")
    run("why", f"memory_summary.md:{first_told_line()}", *MEMORY, "--subject", "ana")


def left_behind(folder: Path) -> None:
    """The workspace that the last run left."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def first_told_line() -> int:
    """The first line of the summary that a run is behind."""
    text = json.loads(run("show", "memory_summary.md", *MEMORY, "--subject", "ana", "--json", quiet=True))[
        "text"
    ]
    told = [number for number, line in enumerate(text.splitlines(), 1) if line.startswith("- ")]
    return told[0] if told else 1


if __name__ == "__main__":
    main()
