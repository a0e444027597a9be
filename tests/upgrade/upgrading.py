"""Two versions of Runlore side by side: this one, and an older one from its wheel (tests/versions)."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import made
from runlore import wiring
from runlore.settings import Settings
from runlore.testing import invariants, snapshot_invariants

OLD = "0.1.0"
HERE = Path(__file__).resolve().parent
WHEELS = HERE.parent / "versions"
WAIT_SECONDS_MAX = 120.0


def unpacked(version: str, folder: Path) -> Path:
    """The older version's package, in a folder that goes before every other on PYTHONPATH."""
    with zipfile.ZipFile(WHEELS / f"runlore-{version}-py3-none-any.whl") as wheel:
        wheel.extractall(folder)
    return folder


@dataclass
class Done:
    """A process that has ended."""

    what: str
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)

    def __str__(self):
        return f"{self.what} → {self.code}\n{self.out}\n{self.err}"


class Process:
    """One that a side forked."""

    def __init__(self, side, pid, folder, what):
        self.side, self.pid, self.folder, self.what = side, pid, folder, what
        self._done = None

    def said(self):
        return (self.folder / "out").read_text() + (self.folder / "err").read_text()

    def wait_for(self, text):
        """Until it says `text`; what it said."""
        end = time.monotonic() + WAIT_SECONDS_MAX
        while text not in self.said():
            assert time.monotonic() < end, f"{self.side.version} never said {text!r}: {self.said()}"
            time.sleep(0.01)
        return self.said()

    def ended(self):
        """Until it has ended."""
        if self._done is None:
            code = self.side.ask({"wait": self.pid})["code"]
            out, err = ((self.folder / name).read_text() for name in ("out", "err"))
            self._done = Done(f"{self.side.version}: {self.what}", code, out, err)
            self.side.running.discard(self)
        return self._done

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        return self.ended()

    def drain(self):
        """SIGTERM, and its end."""
        os.kill(self.pid, signal.SIGTERM)
        done = self.ended()
        assert done.code == 0 and "Traceback" not in done.err, done
        return done


class Side:
    """One version."""

    def __init__(self, folder: Path, *, package: Path):
        self.folder, self.running = folder, set()
        self._numbers = itertools.count(1)
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        self._environment = {**kept, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(package)}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "side.py")],
            env=self._environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        hello = self._answer()
        self.version, self.file = hello["version"], Path(hello["file"])

    def close(self):
        for one in list(self.running):
            one.kill()
        self._process.stdin.close()
        self._process.wait(timeout=10)
        self._process.stdout.close()

    def ask(self, what):
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def load(self, *names):
        """Import these once, for all that is started later."""
        self.ask({"load": names})

    def _answer(self):
        line = self._process.stdout.readline()
        assert line, "the side has ended"
        return json.loads(line)

    def start(self, task, given, environment, stdin=b""):
        folder = self.folder / f"{next(self._numbers)}"
        folder.mkdir()
        (folder / "in").write_bytes(stdin)
        for name in ("out", "err"):
            (folder / name).touch()
        files = {name: str(folder / name) for name in ("in", "out", "err")}
        # The environment of the command, with the way to this version's package.
        whole = {**environment, **self._environment}
        pid = self.ask({"task": task, "with": given, "environment": whole, **files})["pid"]
        made = Process(self, pid, folder, f"{task} {given}")
        self.running.add(made)
        return made

    def run(self, environment, *words, code=0, stdin=b""):
        """A command, to its end; `environment` says on what."""
        done = self.start("command", [str(word) for word in words], environment, stdin).ended()
        assert code in (None, done.code) and "Traceback" not in done.err, done
        return done

    def json(self, environment, *words, code=0, stdin=b""):
        return self.run(environment, *words, "--json", code=code, stdin=stdin).json


class Home:
    """One home, which both versions use; looked at by this one."""

    def __init__(self, root, **more):
        self.root = root
        self.settings = {
            "home": str(root),
            "fsync": "0",
            "redact_library": "0",
            "marks_interval_seconds": "0.2",
            "poll_timeout_seconds": "0.1",
            "poll_records_max": "4",
            **more,
        }

    @property
    def environment(self):
        return {f"RUNLORE_{name.upper()}": value for name, value in self.settings.items()} | {
            "HOME": str(self.root.parent)
        }

    def opened(self):
        return wiring.open_home(Settings(**self.settings), create=True)

    async def objects(self, *kinds):
        """Every object of the store (of these kinds) by its key."""
        found = {}
        async with self.opened() as opened:
            for project in await opened.store.children(""):
                async for row in opened.store.list(f"{project}/"):
                    if kinds and row.key.split("/")[1] not in kinds:
                        continue
                    if (stored := await opened.store.get(row.key)) is not None:  # Not worked meanwhile.
                        found[row.key] = stored.body
        return found

    async def violations(self):
        """What does not hold, once all work is done."""
        async with self.opened() as opened:
            found = await invariants.check(opened.store, opened.bus, settled=True)
            for project in await invariants.projects(opened.store):
                found += await snapshot_invariants.check(opened.store, project)
        return [str(one) for one in found]

    async def is_at_rest(self):
        """Whether nothing is left to do: no message that a stage has not committed, and no mark."""
        async with self.opened() as opened:
            for group in ("record", "snapshot"):
                if sum((await opened.bus.lag(group=group, topic="runs")).values()):
                    return False
        return not await self.objects("marks")


async def runs_of(home):
    """(project, rollout) → the runs that its head has, each with its attempt."""
    found = {}
    for key, raw in (await home.objects("rollouts")).items():
        head = json.loads(raw)
        runs = {run: entry["attempt"] for run, entry in head["runs"].items()}
        found[key.split("/")[0], head["rollout"]] = runs
    return found


async def wait_until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    end = time.monotonic() + WAIT_SECONDS_MAX
    while not await condition():
        assert time.monotonic() < end, f"waited {WAIT_SECONDS_MAX:.0f} s for {what}"
        await asyncio.sleep(0.1)


def lines(numbers, **more):
    return made.lines([made.event(number, **more) for number in numbers])


def wanted(numbers):
    """What `runs_of` shows of these runs."""
    found = {}
    for number in numbers:
        found.setdefault(("acme", f"conv-{number % 7}"), {})[f"run-{number}"] = 1
    return found
