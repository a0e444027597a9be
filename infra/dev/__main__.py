"""Real servers on this machine, for development: `python infra/dev up`.

    python infra/dev up [kafka] [s3]      start what is asked for (both), and print the settings for it
    python infra/dev env                  print the settings of what runs:  eval "$(python infra/dev env)"
    python infra/dev status               what runs
    python infra/dev down [kafka] [s3]    end it, and delete its data

Each server has a process that watches over it and ends it when it is itself ended. What they know lies in
infra/dev/.cache/run, which git ignores. Both listen on 127.0.0.1 only, with credentials that are no secret.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STATE = Path(__file__).resolve().parent / ".cache" / "run"
NAMES = ("kafka", "s3")
START_SECONDS_MAX = 180.0
"""The first start of Kafka fetches its jars."""
STOP_SECONDS_MAX = 40.0


def server_of(name: str) -> tuple[Any, Any]:
    """The module and the server of that name. Imported late: one may be missing while the other is wanted."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    folder = STATE / name / "server"
    if name == "s3":
        from infra.dev import s3

        return s3, s3.S3Server(folder)
    from infra.dev import kafka

    return kafka, kafka.KafkaServer(folder)


def environment_of(name: str, server: Any) -> dict[str, str]:
    if name == "s3":
        return server.environment
    return {"RUNLORE_BUS": "kafka", "RUNLORE_KAFKA_SERVERS": server.servers}


# --- what a person calls ------------------------------------------------------------------------------


def up(names: list[str]) -> int:
    """Start each server that does not run. The others stay up if one fails."""
    failed = 0
    started = {name: None if watcher(name) else spawn(name) for name in names}
    for name, process in started.items():
        problem = None if process is None else wait_for(name, process)
        if problem:
            failed = 1
            print(f"{name} did not start: {problem}", file=sys.stderr)
        else:
            print(f"{name} runs", file=sys.stderr)
    env(names)
    return failed


def env(names: list[str]) -> int:
    for name in names:
        if watcher(name):
            for key, value in settings_of(name).items():
                print(f"export {key}={shlex.quote(value)}")
    return 0


def status(names: list[str]) -> int:
    """One line for each; 1 if any does not run."""
    for name in names:
        pid = watcher(name)
        where = settings_of(name) if pid else {}
        address = where.get("RUNLORE_S3_ENDPOINT") or where.get("RUNLORE_KAFKA_SERVERS") or "starting"
        print(f"{name:6} {f'runs      {address}  (process {pid})' if pid else 'is down'}")
    return 0 if all(watcher(name) for name in names) else 1


def down(names: list[str]) -> int:
    """End each, and delete its data; what does not run is no error."""
    watchers = {name: watcher(name) for name in names}
    for pid in filter(None, watchers.values()):
        os.kill(pid, signal.SIGTERM)
    give_up = time.monotonic() + STOP_SECONDS_MAX
    for name in names:
        while watcher(name) and time.monotonic() < give_up:
            time.sleep(0.05)
        if watcher(name):
            print(f"{name} does not end (process {watchers[name]})", file=sys.stderr)
            return 1
        shutil.rmtree(STATE / name, ignore_errors=True)
        print(f"{name} is down", file=sys.stderr)
    return 0


# --- the process that watches over one server ----------------------------------------------------------


def spawn(name: str) -> subprocess.Popen[bytes]:
    shutil.rmtree(STATE / name, ignore_errors=True)
    (STATE / name).mkdir(parents=True)
    with open(STATE / name / "log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve().parent), "watch", name],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # It outlives the shell that asked for it.
        )


def watch(names: list[str]) -> int:
    """Start one server, say so, wait to be ended, end it. A server that dies by itself ends this too."""
    (name,) = names
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    (STATE / name / "pid").write_text(str(os.getpid()))
    module, server = server_of(name)
    problem = module.missing()
    if problem:
        (STATE / name / "problem").write_text(problem)
        return 1
    try:
        server.start()
        ready = STATE / name / "settings.json"
        draft = ready.with_suffix(".draft")
        draft.write_text(json.dumps(environment_of(name, server)))
        draft.rename(ready)
        while not ended.wait(1.0) and server.pid:
            pass
    except RuntimeError as exc:
        (STATE / name / "problem").write_text(str(exc))
        return 1
    finally:
        server.stop()
        (STATE / name / "settings.json").unlink(missing_ok=True)
    return 0


def wait_for(name: str, process: subprocess.Popen[bytes]) -> str | None:
    """Until the server runs; else why it does not."""
    give_up = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < give_up:
        if settings_of(name):
            return None
        if process.poll() is not None:
            with contextlib.suppress(FileNotFoundError):
                return (STATE / name / "problem").read_text()
            return (STATE / name / "log").read_text()[-2000:]
        time.sleep(0.05)
    return f"not within {START_SECONDS_MAX:.0f} seconds; see {STATE / name / 'log'}"


def watcher(name: str) -> int | None:
    """The process that watches over it, if there is one: a number alone may have been given to another."""
    try:
        pid = int((STATE / name / "pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if command[-3:-1] == [b"watch", name.encode()] else None


def settings_of(name: str) -> dict[str, str]:
    try:
        return json.loads((STATE / name / "settings.json").read_text())
    except FileNotFoundError:
        return {}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python infra/dev", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = {"up": up, "env": env, "status": status, "down": down, "watch": watch}
    parser.add_argument("command", choices=[name for name in commands if name != "watch"] + ["watch"])
    parser.add_argument("server", nargs="*", help=f"of {', '.join(NAMES)}; all if none is named")
    chosen = parser.parse_args()
    if set(chosen.server) - set(NAMES):
        parser.error(f"there is no such server; there are {', '.join(NAMES)}")
    return commands[chosen.command](chosen.server or list(NAMES))


if __name__ == "__main__":
    sys.exit(main())
