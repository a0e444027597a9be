"""Lookup services of two versions over one store, and clients of either: as behind a load balancer meanwhile."""

from __future__ import annotations

import asyncio
import functools
import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from upgrading import wait_until

import made

pytest.importorskip("agents", reason="openai-agents is not installed")
pytest.importorskip("fastapi", reason="runlore[server] is not installed")

CLIENT = str(Path(__file__).with_name("client.py"))
STAGES = ["record", "snapshot", "consolidate"]
WHY = ("--reason", "ticket 812")


class Service:
    """`runlore serve` of one version."""

    def __init__(self, side, home):
        self.process = side.start("command", ["serve", "--port", "0"], home.environment)

    def listening(self):
        said = self.process.wait_for("runlore serves ")
        self.url = re.search(r"serves (http://\S+)", said)[1]
        return self

    def ask(self, path, key, body=None):
        """(status, answer) of a request."""
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        raw = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/v1/projects/acme{path}", data=raw, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, exc.read()


@pytest.fixture
def services(old, new, home):
    """An old and a new one, and a worker of each version behind them."""
    for side in (old, new):
        side.load("runlore.lookup.http.app", "runlore.lookup.http.serving", "uvicorn")
    home.settings["http_keys"] = "true"
    old.json(home.environment, "up", "--once")
    made = {side.version: Service(side, home) for side in (old, new)}
    workers = [side.start("work", STAGES, home.environment) for side in (old, new)]
    for one in workers:
        one.wait_for("works")
    return [made[side.version].listening() for side in (old, new)]


async def test_clients_and_services_of_two_versions_meet_in_any_pair(services, old, new, home, tmp_path):
    older, newer = services
    give = ("keys", "create", "acme", "--scope", "write", *WHY)
    keys = {side.version: side.json(home.environment, *give, "--name", "t") for side in (old, new)}
    tokens = [one["token"] for one in keys.values()]

    # Handed in at one, asked for at the other: keys, seeds and their order hold at both.
    for number, (takes, gives, token) in enumerate(((older, newer, tokens[1]), (newer, older, tokens[0]))):
        status, raw = takes.ask("/events", token, made.data(number, rollout="conv"))
        assert status == 202, raw
        asked = f"/memories/support/seed?session_id=conv&wait_for=run-{number}&wait_seconds=50"
        status, raw = gives.ask(asked, token)
        seed = json.loads(raw)
        assert status == 200 and seed["revision"] >= 1, raw
        same = [one.ask(f"/seeds/{seed['seed']}/memory.tar", token) for one in services]
        assert same[0] == same[1] and same[0][0] == 200, "a seed gives the same bytes at every service"
        after = f"/memories/support/seed?session_id=conv&after={seed['seed']}"
        status, raw = takes.ask(after, token)
        assert status == 200 and json.loads(raw)["revision"] >= seed["revision"], raw

    # An agent's program of either version, whose requests go now here, now there.
    started = []
    for side in (old, new):
        given = {
            "urls": [newer.url, older.url] if side is old else [older.url, newer.url],
            "key": tokens[0] if side is new else tokens[1],
            "home": str(tmp_path / f"agent-{side.version}"),
            "conversation": f"talk-{side.version}",
        }
        started.append(side.start("script", CLIENT, {"HOME": str(tmp_path)}, json.dumps(given).encode()))
    for one in started:
        ended = await asyncio.to_thread(one.ended)
        assert ended.code == 0, ended
        _first, second = ended.json["saw"]
        assert ended.json["told"] == [], ended
        assert "0" in second and "MEMORY.md" in second, "the second run begins where the first one ended"

    # What one version takes away is gone at the other.
    old.json(home.environment, "keys", "revoke", keys[new.version]["id"], *WHY)
    for one in services:
        asked = functools.partial(one.ask, "/memories/support/seed?session_id=conv")

        async def is_over(asked=asked):
            return asked(tokens[1])[0] == 401

        await wait_until(is_over, "the key to end")
        assert asked(tokens[0])[0] == 200
        assert one.process.drain()
    await wait_until(home.is_at_rest, "all work to be done")
    assert await home.violations() == []
