"""`after`: what this machine saw of a seed is asked for again, so no replica that is behind gives an older one."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import multiprocessing
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

pytest.importorskip("agents", reason="openai-agents is not installed")

import made
from faulty_service import Server, tar_of
from lookup_service import served
from runlore import clock, errors
from runlore.agents import Runlore, port, remote, seen
from runlore.commit import keys, lines
from runlore.lookup.http import app
from sandboxed import config, done, events, shell, worker
from sandboxed import seen as said

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(?!runlore)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

FORKING = multiprocessing.get_context("spawn")


@pytest.fixture
def told():
    return []


@pytest.fixture
def box(tmp_path, told):
    return seen.Seen(tmp_path / "box", "here", lambda what, exc: told.append(exc))


def newest(revision, version, seed=None):
    return seen.Newest(f"s1.{revision}.{version}" if seed is None else seed, revision, version)


# --- what is noted -------------------------------------------------------------------------------------------


async def test_what_was_seen_is_found_again_by_another_object_and_nothing_before_it(box, tmp_path, told):
    assert await box.before("conv", None) is None and not (tmp_path / "box").exists()
    await box.checked("conv", None, newest(2, 1), None)
    again = seen.Seen(tmp_path / "box", "here", lambda what, exc: told.append(exc))
    assert await again.before("conv", None) == newest(2, 1)
    assert await again.before("conv", "writer") is None and await again.before("other", None) is None
    elsewhere = seen.Seen(tmp_path / "box", "there", lambda what, exc: told.append(exc))
    assert await elsewhere.before("conv", None) is None
    assert (tmp_path / "box" / seen.FILE).stat().st_mode & 0o077 == 0 and told == []


@pytest.mark.parametrize("now", [(1, 4), (2, 3), (0, 0)], ids=["revision", "workspace", "nothing"])
async def test_an_answer_that_is_older_in_either_is_refused_and_not_noted(box, now):
    before = newest(2, 4)
    await box.checked("conv", None, before, None)
    with pytest.raises(errors.SeedBehind):
        await box.checked("conv", None, newest(*now), before)
    assert await box.before("conv", None) == before


async def test_two_answers_of_which_each_has_the_newer_half_are_both_remembered(box):
    await box.checked("conv", None, newest(3, 1), None)
    await box.checked("conv", None, newest(2, 2), None)
    assert await box.before("conv", None) == seen.Newest("s1.2.2", 3, 2)
    # A workspace that was asked for alone has no seed of its own.
    await box.checked("conv", None, newest(3, 5, seed=""), None)
    assert await box.before("conv", None) == seen.Newest("s1.2.2", 3, 5)


def note_many(folder, numbers):
    box = seen.Seen(folder, "here", print)
    for number in numbers:
        asyncio.run(box.checked("conv", None, newest(number, number), None))


@pytest.mark.process
async def test_of_several_processes_that_note_at_once_the_newest_stays(tmp_path, told):
    shares = [range(start, 60, 3) for start in (1, 2, 3)]
    started = [
        FORKING.Process(target=note_many, args=(tmp_path / "box", [*reversed(share)])) for share in shares
    ]
    for one in started:
        one.start()
    for one in started:
        await asyncio.to_thread(one.join, 60)
        assert one.exitcode == 0
    box = seen.Seen(tmp_path / "box", "here", lambda what, exc: told.append(exc))
    assert await box.before("conv", None) == newest(59, 59) and told == []


async def test_as_many_lines_as_may_be_are_remembered_and_the_oldest_go(box, monkeypatch):
    class Later(clock.World):
        seconds = 0

        def now(self):
            return super().now() + dt.timedelta(seconds=self.seconds)

    world = Later()
    clock.install(world)
    monkeypatch.setattr(seen, "LINES_MAX", 3)
    for number in range(5):
        world.seconds += 1
        await box.checked(f"conv-{number}", None, newest(1, 1), None)
    assert [await box.before(f"conv-{n}", None) is not None for n in range(5)] == [False] * 2 + [True] * 3
    world.seconds += seen.SECONDS_MAX + 1
    assert await box.before("conv-4", None) is None
    # What was put back to an earlier state meanwhile is believed again.
    await box.checked("conv-4", None, newest(1, 0), None)
    assert await box.before("conv-4", None) == newest(1, 0)


async def test_a_file_that_is_broken_is_told_and_begins_anew(box, tmp_path, told):
    (tmp_path / "box").mkdir()
    (tmp_path / "box" / seen.FILE).write_bytes(b"this is no database" * 100)
    assert await box.before("conv", None) is None and len(told) == 1
    await box.checked("conv", None, newest(1, 1), None)
    assert await box.before("conv", None) == newest(1, 1) and len(told) == 1


async def test_a_place_where_nothing_can_be_written_is_told_and_stops_nobody(tmp_path, told):
    (tmp_path / "box").write_text("in the way")
    box = seen.Seen(tmp_path / "box", "here", lambda what, exc: told.append(exc))
    await box.checked("conv", None, newest(1, 1), None)
    assert told and await box.before("conv", None) is None


# --- with the lookup service ---------------------------------------------------------------------------------

SNAPSHOT = "a" * 64
SEED = {"seed": "s1.new", "revision": 2, "notes": 1, "base": {"counter": 3, "snapshot": None}}
MEMORY = (200, tar_of({"memories/MEMORY.md": b"# learnt\n"}))


@pytest.fixture
def lore_at(tmp_path, told):
    def made(url, **more):
        where = {"url": url, "home": tmp_path / "home", "deadline_seconds": 20, **more}
        return Runlore("acme", memory="support", key="k", on_error=told.append, **where)

    return made


def asked(server):
    """What the seeds that were asked for were asked with."""
    found = [request.split(" ")[1] for request, _ in server.requests if "/seed?" in request]
    return [{k: v[0] for k, v in parse_qs(urlsplit(path).query).items()} for path in found]


async def test_the_seed_that_was_seen_is_asked_for_again_also_by_the_next_program(lore_at, told):
    async with Server().run() as server:
        server.works(**SEED)
        server.answers["GET /memory.tar"] = MEMORY
        for _ in range(2):
            lore = lore_at(server.url)
            await lore.run(worker(done()), "go", conversation_id="c", run_config=config())
            await lore.aclose()
        first, second = (
            [one for one in part if "wait_for" not in one] for part in (asked(server)[:2], asked(server)[2:])
        )
        assert {one.get("after") for one in first} == {None}
        assert {one["after"] for one in second} == {"s1.new"} and {one.get("agent") for one in second} == {
            None,
            "worker",
        }
        assert all(0 < float(one["wait_seconds"]) <= remote.BEHIND_SECONDS_MAX for one in second)
        other = lore_at(server.url)
        await other.seed(conversation_id="other")
        assert "after" not in asked(server)[-1] and told == []


async def test_a_service_that_is_behind_costs_the_seed_and_not_the_run(lore_at, told, tmp_path):
    async with Server().run() as server:
        server.works(**SEED)
        server.answers["GET /memory.tar"] = MEMORY
        lore = lore_at(server.url)
        await lore.seed(conversation_id="c")
        server.answers["GET /seed?"] = (503, {"kind": "seed_behind", "detail": "not yet"}, "retry-after: 1")
        look = worker(shell("ls memories || echo none; echo kept > a"), done())
        result = await lore.run(look, "go", conversation_id="c", run_config=config())
        assert "none" in said(result).splitlines()
        assert [type(one) for one in told] == [errors.SeedBehind] and "not yet" in str(told[0])
        await lore.aclose()
        (event,) = map(json.loads, server.posted("/events"))
        # It has seen no base, so what it leaves replaces nothing.
        assert "seed" not in event and "base" not in event["workspaces"][0]


@pytest.mark.parametrize("old", [{"revision": 1}, {"base": {"counter": 2, "snapshot": None}}, {"seed": None}])
async def test_a_service_that_does_not_know_after_gives_no_older_seed_either(lore_at, told, old):
    async with Server().run() as server:
        server.works(**SEED)
        server.answers["GET /memory.tar"] = MEMORY
        lore = lore_at(server.url)
        await lore.seed(conversation_id="c")
        nothing = {"revision": 0, "base": {"counter": 0}} if "seed" in old else {}
        server.answers["GET /seed?"] = (200, {**SEED, **old, **nothing, "snapshot": None})
        with pytest.raises(errors.SeedBehind):
            await lore.seed(conversation_id="c")
        with pytest.raises(errors.SeedBehind):
            await lore.link.backend.seed(port.Ask(run_id="r", conversation_id="c"), None)


@pytest.mark.parametrize("status", [400, 403])
async def test_what_another_deployment_signed_is_forgotten(lore_at, told, status):
    async with Server().run() as server:
        server.works(**SEED)
        server.answers["GET /memory.tar"] = MEMORY
        lore = lore_at(server.url)
        await lore.seed(conversation_id="c")
        fresh = {**SEED, "seed": "s1.fresh", "revision": 0, "base": {"counter": 1, "snapshot": None}}
        server.answers = {
            "GET after=s1.new": (status, {"kind": "forbidden", "detail": "none of ours"}),
            "GET after=s1.fresh": (200, fresh | {"snapshot": None}),
            "GET /seed?": (200, fresh | {"snapshot": None}),
        }
        for _ in range(2):
            assert (await lore.seed(conversation_id="c")).id == "s1.fresh"
        assert [one.get("after") for one in asked(server)] == [None, "s1.new", None, "s1.fresh"]
        assert told == []


@contextlib.asynccontextmanager
async def real(tmp_path, told):
    """The real service in this process, and `Remote` on it."""
    async with served(tmp_path) as one:
        transport = httpx2.ASGITransport(app.make(one.service), raise_app_exceptions=False)
        notes = seen.Seen(tmp_path / "box", "http://x", lambda what, exc: told.append(exc))
        backend = remote.Remote(
            "http://127.0.0.1:7077",
            "",
            project="acme",
            memory="support",
            seeds=notes,
            behind_seconds=0.05,
            transport=transport,
        )
        yield one, backend


async def test_a_replica_that_is_behind_is_not_believed_in_its_memory(tmp_path, told):
    async with real(tmp_path, told) as (one, backend):
        ask = port.Ask(run_id="r", session_id="conv")
        await one.events(made.data(1, rollout="conv"))
        key = keys.memory_head("acme", "support")
        old = await one.store.get(key)
        await one.events(made.data(2, rollout="conv"))
        assert (await backend.seed(ask, None)).revision == 2
        new = await one.store.get(key)
        await one.store.put(key, old.body)
        with pytest.raises(errors.SeedBehind):
            await backend.seed(ask, None)
        # What it has not seen yet it takes as it comes.
        assert (await backend.seed(port.Ask(run_id="r", session_id="other"), None)).revision == 1
        await one.store.put(key, new.body)
        assert (await backend.seed(ask, None)).revision == 2 and told == []


@pytest.mark.parametrize("agent", [None, "writer"])
async def test_a_replica_that_is_behind_is_not_believed_in_a_workspace(tmp_path, told, agent):
    async with real(tmp_path, told) as (one, backend):
        ask = port.Ask(run_id="r", session_id="conv")
        space = {"archive": await one.archive(("a", b"1"))} | ({"agent": agent} if agent else {})
        await one.events(made.data(1, rollout="conv", workspaces=[space]))
        key = lines.line_of("acme", "conv", agent).key
        old = await one.store.get(key)
        base = (await backend.seed(ask, agent)).workspace.base
        assert base["counter"] == 1
        more = {**space, "archive": await one.archive(("a", b"2")), "base": dict(base)}
        await one.events(made.data(2, rollout="conv", workspaces=[more]))
        assert (await backend.seed(ask, agent)).workspace.base["counter"] == 2
        await one.store.put(key, old.body)
        with pytest.raises(errors.SeedBehind):
            await backend.seed(ask, agent)
        if agent is not None:
            with pytest.raises(errors.SeedBehind):
                await backend.workspace(ask, agent)
        assert told == []


# --- embedded ------------------------------------------------------------------------------------------------


async def test_a_home_that_was_put_back_costs_the_seed_and_says_what_to_remove(tmp_path, told):
    home = tmp_path / "home"
    lore = Runlore("acme", memory="support", home=home, on_error=told.append)
    await lore.run(worker(shell("echo 1 > a; false"), done()), "go", conversation_id="c", run_config=config())
    assert (await lore.seed(conversation_id="c")).revision == 1
    await lore.aclose()
    for path in home.iterdir():
        if path.name != "agents":
            path.rename(tmp_path / f"gone-{path.name}")
    later = Runlore("acme", memory="support", home=home, on_error=told.append)
    result = await later.run(worker(shell("ls"), done()), "go", conversation_id="c", run_config=config())
    assert result.final_output == "done"
    (behind,) = told
    assert isinstance(behind, errors.SeedBehind) and seen.FILE in behind.hint
    notes = home / "agents" / "acme.support" / seen.FILE
    notes.unlink()
    await later.run(worker(done()), "go", conversation_id="c", run_config=config())
    await later.aclose()
    assert told == [behind] and len(await events(home)) == 2
