"""A model over HTTP behind the commands: `runlore up` asks it, once, and what it says is in the memory with its why."""

from __future__ import annotations

import asyncio
import json
import re
import threading

import homes
import pytest

import made
from runlore.testing import models

SAID = "The list is worked from its end."


def says(seen):
    """One statement, that cites the first thing that the person said."""
    user = re.search(r"^#(\d+) user$", seen.input, re.MULTILINE)
    said = {
        "section": "knowledge",
        "text": SAID,
        "evidence": [int(user.group(1))],
    }
    value = {
        "title": "a list",
        "outcome": "uncertain",
        "outcome_evidence": [],
        "statements": [said],
        "reason": "",
    }
    return models.Reply(value)


class Served:
    """A scripted endpoint in a thread of its own, beside commands that block."""

    def __init__(self, script):
        self._script, self._ready = script, threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self):
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with models.ModelServer(self._script) as self.server:
            self._ready.set()
            await self._stop.wait()

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(20)
        return self.server

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)


@pytest.mark.process
def test_a_model_is_asked_once_for_a_run_and_its_statement_says_why(tmp_path):
    with Served(says) as server:
        home = homes.Home(tmp_path / "home", model_url=server.url, model_key="sk-secret")
        home.emit(made.lines([made.event(1)]))
        assert home.up_once()["recorded"] == 1
        home.emit(made.lines([made.event(1)]))
        assert home.up_once()["already"] == 1
        assert len(server.seen) == 1 and server.seen[0].path == models.RESPONSES
    shown = home.json("show", "MEMORY.md", *homes.MEANT)
    lines = shown["text"].splitlines()
    (number,) = [at for at, line in enumerate(lines, 1) if "The list is worked from its end." in line]
    found = home.json("why", f"MEMORY.md:{number}", *homes.MEANT)
    assert "run-1" in json.dumps(found), found
    (told,) = home.json("explain", "run-1")["runs"]
    assert "a model's statements: 1, 1 of them from this run" in json.dumps(told)
    home.verified()
    assert "sk-secret" not in json.dumps([found, home.json("status")])


@pytest.mark.process
def test_a_model_without_quota_is_told_and_the_rules_stand(tmp_path):
    with Served(lambda seen: models.Reply(fault="no_quota")) as server:
        home = homes.Home(tmp_path / "home", model_url=server.url)
        home.emit(made.lines([made.event(1)]))
        ended = home.json("up", "--once", code=5)
        assert ended["error"]["kind"] == "model_blocked" and "quota" in ended["error"]["message"]
    assert home.json("seed", "conv-1", *homes.MEANT)["revision"] == 1
    assert home.json("status")["summarize"]["marks"] == 1
    home.verified()
