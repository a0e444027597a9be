"""A home and the commands on it: what a person has at a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

from runlore import wiring
from runlore.cli import main
from runlore.commit import keys
from runlore.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
RUNLORE = Path(sys.executable).with_name("runlore")
SAMPLES = sorted((ROOT / "examples" / "runs").glob("*.jsonl"))
WAIT_SECONDS_MAX = 60
STARTED: list[subprocess.Popen] = []
"""Processes of the present test: those that it leaves running, because it failed, end with it."""
MEANT = ("--project", "acme", "--memory", "support")
FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(
    [
        "runlore.cli.main",
        "runlore.wiring",
        "runlore.worker.loop",
        "runlore.store.directory",
        "runlore.bus.sqlite",
    ]
)


class Done:
    """A process that has ended."""

    def __init__(self, words, code, out, err):
        self.words, self.code, self.out, self.err = words, code, out, err

    @property
    def json(self):
        """The one JSON object on stdout, and nothing else."""
        value, end = json.JSONDecoder().raw_decode(self.out)
        assert isinstance(value, dict) and self.out[end:] == "\n", self.out
        return value

    def __repr__(self):
        return f"runlore {' '.join(self.words)} → {self.code}\n{self.out}\n{self.err}"


class Home:
    """One home below a temporary folder."""

    def __init__(self, root, *, processes=False, **settings):
        self.root, self.processes = Path(root), processes
        self.environment = {
            name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR", "PYTHONPATH") if name in os.environ
        }
        # Syncing costs the tests minutes, and no test pulls the plug.
        given = {
            "home": self.root,
            "fsync": "0",
            # Loading the library's rules takes each process a second, and ten in a new HOME.
            "redact_library": "0",
            "marks_interval_seconds": "0.5",
            "poll_timeout_seconds": "0.2",
        }
        self.environment |= {
            f"RUNLORE_{name}".upper(): str(value) for name, value in {**given, **settings}.items()
        }
        self.environment["HOME"] = str(self.root.parent)

    def run(self, *words, code=0, stdin=b"", cwd=None):
        """Run a command to its end, and expect its exit code."""
        made = [RUNLORE, *map(str, words)]
        got = subprocess.run(
            made,
            input=stdin,
            env=self.environment,
            cwd=cwd,
            capture_output=True,
            timeout=WAIT_SECONDS_MAX,
            check=False,
        )
        done = Done(made[1:], got.returncode, got.stdout.decode(), got.stderr.decode())
        assert code in (None, done.code), done
        assert "Traceback" not in done.err, done
        return done

    def call(self, *words, code=0, stdin=b""):
        """The same command inside of this process: a tenth of the time, for what needs no process to be seen."""
        words = [str(word) for word in words]
        out, err = io.StringIO(), io.StringIO()
        given = io.TextIOWrapper(io.BytesIO(stdin))
        with (
            mock.patch.dict(os.environ, self.environment, clear=True),
            mock.patch.object(sys, "argv", ["runlore", *words]),
            mock.patch.object(sys, "stdin", given),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                main.main()
                ended = 0
            except SystemExit as exc:
                ended = exc.code
        done = Done(words, ended or 0, out.getvalue(), err.getvalue())
        assert code in (None, done.code), done
        assert "Traceback" not in done.err, done
        return done

    def json(self, *words, code=0, stdin=b""):
        """What a command answers."""
        start = self.run if self.processes else self.call
        return start(*words, "--json", code=code, stdin=stdin).json

    def start(self, *words, **more):
        """Start a process that goes on."""
        made = [RUNLORE, *map(str, words)]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        process = subprocess.Popen(made, env=self.environment, **pipes)
        STARTED.append(process)
        return process

    def fork(self, *words):
        """`start` for a process that is there at once: forked from one that has loaded Runlore. It is not heard."""
        process = FORKING.Process(target=_forked, args=([*map(str, words)], self.environment), daemon=True)
        process.start()
        return process

    def emit(self, raw):
        """Publish these lines, and expect them to be sent."""
        return self.json("emit", "-", stdin=raw)

    def up_once(self):
        return self.json("up", "--once")

    def up(self):
        """A running `up`, that has begun to work."""
        process = self.start("up")
        wait_until(lambda: process.poll() is not None or self.is_up(process.pid), "up to begin")
        assert process.poll() is None, process.communicate()
        return process

    def is_up(self, pid):
        return wiring.up_is_running(self.root) == pid

    def verified(self):
        found = self.json("verify")
        assert found["ok"] and found["problems"] == [], found
        return found["checked"]

    def copy(self, name):
        """Another home with the same content."""
        target = self.root.with_name(name)
        shutil.copytree(self.root, target)
        other = Home(target)
        other.environment = {**self.environment, "RUNLORE_HOME": str(target)}
        return other

    # --- what is in it ------------------------------------------------------------------------------------

    def opened(self, work):
        """What `work(home)` gives on the open home."""

        async def main():
            async with wiring.open_home(Settings(home=self.root, fsync=False), create=True) as opened:
                return await work(opened)

        return asyncio.run(main())

    def objects(self, *kinds):
        """Every object of the store (of these kinds) by its key."""

        async def read(opened):
            found = {}
            for project in await opened.store.children(""):
                async for row in opened.store.list(f"{project}/"):
                    if not kinds or row.key.split("/")[1] in kinds:
                        found[row.key] = (await opened.store.get(row.key)).body
            return found

        return self.opened(read)

    def meaning(self, project="acme", memory="support"):
        """What is in a memory, without when and in how many steps it came there."""

        async def read(opened):
            revision = await opened.reader.at(project, memory)
            head = await opened.reader.head(project, memory)
            return {
                "notes": dict(revision.map("notes").items()),
                "selected": dict(revision.map("selected").items()),
                "covered": sorted(key for key, _ in revision.map("coverage").items()),
                "files": {
                    key: (entry, revision.text(entry["sha256"]))
                    for key, entry in revision.map("files").items()
                },
                "held": sorted(head.body.get("held", {})),
            }

        found = self.opened(read)
        rollouts = {key: json.loads(body) for key, body in self.objects(keys.ROLLOUTS).items()}
        for body in rollouts.values():
            # In how many steps the head came here, and when.
            del body["counter"], body["moved_at"]
            for entry in body["runs"].values():
                entry.pop("since", None)
        found["rollouts"] = rollouts
        found["records"] = self.objects(keys.RECORDS)
        return found


def _forked(words, environment):
    os.environ.clear()
    os.environ.update(environment)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    sys.argv = ["runlore", *words]
    main.main()


def tree(folder):
    """Every file below a folder by its path; what a symlink shows, not what it leads to."""
    return {
        str(path.relative_to(folder)): os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_symlink() or not path.is_dir()
    }


def wait_until(condition, what):
    """Wait until `condition()` holds."""
    end = time.monotonic() + WAIT_SECONDS_MAX
    while not condition():
        assert time.monotonic() < end, f"waited {WAIT_SECONDS_MAX} s for {what}"
        time.sleep(0.01)


def kill(process):
    """kill -9."""
    process.send_signal(signal.SIGKILL)
    process.communicate()


def end_all():
    """End what a test started and left running."""
    while STARTED:
        process = STARTED.pop()
        with process:
            if process.poll() is None:
                process.kill()
