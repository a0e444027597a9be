"""An outage of the lookup service costs the runs after the first one little, is told once, and ends by itself.

What a run waits for is seen in what it asks: the service here counts its requests. The clock is moved, not waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

pytest.importorskip("agents", reason="openai-agents is not installed")

from agents import RunState, function_tool
from agents.testing import function_call

from faulty_service import Server
from runlore import clock, errors
from runlore.agents import Runlore, outage, outbox, port, runs
from sandboxed import config, done, shell, worker

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(?!runlore)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

SEED = {"seed": "s1.x", "revision": 0, "base": {"counter": 1, "snapshot": None}}
FAULTS = {
    "hangs": "hang",
    "500": (500, {"kind": "internal"}),
    "breaks_off": "break",
    "proxy": (502, b"<html>"),
}
SOON, PROBING, LATER = 0.5, 4, 20
"""Deadlines: of a run that waits in vain, of one that does so for a share of it, and of one that must not."""


@pytest.fixture
def time(monkeypatch):
    """A clock that is moved: `time[0] += seconds`."""
    passed, real = [0.0], clock.monotonic
    monkeypatch.setattr(clock, "monotonic", lambda: real() + passed[0])
    return passed


@pytest.fixture
def told():
    return []


@pytest.fixture
def lore_at(tmp_path, told):
    def made(url):
        where = {"url": url, "home": tmp_path / "home", "deadline_seconds": SOON}
        return Runlore("acme", memory="support", key="k", on_error=told.append, **where)

    return made


async def go(lore, number=0, deadline=SOON):
    """One run; whether it had a seed."""
    lore.link.deadline_seconds = deadline
    agent = worker(done(), name=f"w{number}")
    result = await lore.run(agent, "go", conversation_id=f"c{number}", run_config=config())
    assert result.final_output == "done"
    path = lore.link.outbox.folder / "waiting"
    # Not one that another run is just putting there.
    events = [one for one in path.glob("*/event.json") if not one.parent.name.startswith(outbox.TEMPORARY)]
    found = [json.loads(one.read_bytes())["data"] for one in events]
    return any(one["conversation_id"] == f"c{number}" and "seed" in one for one in found)


def asked(server):
    """How often a seed was asked for since the last look; the lines of one run count one by one."""
    count = sum("/seed?" in request for request, _ in server.requests)
    server.requests.clear()
    return count


def down(server, fault):
    # Nothing is delivered, so that what a run began with is still in the outbox.
    server.answers = {"GET ": FAULTS[fault], "POST ": (503, {})}


def up(server):
    server.answers = {"GET /seed?": (200, {**SEED, "snapshot": None}), "POST ": (503, {})}


def of_seeds(told):
    """What was told but for the delivery in the background, which tells its own."""
    return [one for one in told if "503" not in str(one)]


async def test_a_service_that_hangs_costs_one_run_its_deadline_and_those_after_it_a_share(
    lore_at, told, time
):
    async with Server().run() as server:
        down(server, "hangs")
        lore = lore_at(server.url)
        assert not await go(lore, 0) and asked(server) == 2
        # The next one asks one small question; then nobody asks for a while.
        assert not await go(lore, 1, PROBING) and asked(server) == 1
        for number in (2, 3):
            assert not await go(lore, number, LATER) and asked(server) == 0
        time[0] += outage.PAUSE_SECONDS
        assert not await go(lore, 4, PROBING) and asked(server) == 1
        assert not await go(lore, 5, LATER) and asked(server) == 0
        assert [type(one) for one in of_seeds(told)] == [TimeoutError]
        up(server)
        # The first run a pause later has its seed, and so have all after it.
        time[0] += outage.PAUSE_SECONDS
        assert await go(lore, 6, LATER) and asked(server) == 3
        assert await go(lore, 7, LATER) and asked(server) == 2
        assert [type(one) for one in of_seeds(told)] == [TimeoutError]
        await lore.aclose()


@pytest.mark.parametrize("fault", ["500", "breaks_off", "proxy"])
async def test_what_fails_at_once_is_told_once_and_the_first_run_after_it_is_seeded(
    lore_at, told, time, fault
):
    async with Server().run() as server:
        down(server, fault)
        lore = lore_at(server.url)
        for number in range(3):
            assert not await go(lore, number, LATER) and asked(server) == (1 if number else 2)
        assert [type(one) for one in of_seeds(told)] == [errors.ServiceUnavailable]
        up(server)
        assert await go(lore, 3, LATER) and lore.link.outage.is_on is False
        down(server, fault)
        assert not await go(lore, 4, LATER) and not await go(lore, 5, LATER)
        # Another outage is told again.
        assert [type(one) for one in of_seeds(told)] == [errors.ServiceUnavailable] * 2
        await lore.aclose()


async def test_a_service_that_is_gone_and_comes_back_at_its_address_seeds_the_next_run(lore_at, told, time):
    server = Server()
    async with server.run():
        up(server)
        lore = lore_at(server.url)
        assert await go(lore, 0, LATER)
    assert not await go(lore, 1, LATER) and not await go(lore, 2, LATER)
    seeds = [one for one in told if "ConnectError" in str(one)]
    assert {type(one) for one in seeds} == {errors.ServiceUnavailable}
    # The delivery tells its own outage, and once too.
    assert len(seeds) <= 2
    back = await asyncio.start_server(server._serve, "127.0.0.1", int(server.url.rpartition(":")[2]))
    assert await go(lore, 3, LATER)
    await lore.aclose()
    back.close()
    for writer in server._writers:
        writer.close()
    await back.wait_closed()


async def test_of_several_runs_at_once_one_asks_a_service_that_is_out(lore_at, told, time):
    async with Server().run() as server:
        down(server, "hangs")
        lore = lore_at(server.url)
        # Three at once get to ask only after a while on a busy machine.
        await asyncio.gather(*(go(lore, number, PROBING / 2) for number in range(3)))
        assert asked(server) == 6
        time[0] += outage.PAUSE_SECONDS
        await asyncio.gather(*(go(lore, number, PROBING) for number in range(3, 7)))
        assert asked(server) == 1 and len(of_seeds(told)) == 1
        await lore.aclose()


async def test_a_service_that_only_looks_alive_is_asked_once_in_a_while_and_told_once(lore_at, told, time):
    async with Server().run() as server:
        up(server)
        server.answers = {
            "GET /memory.tar": "hang",
            "GET /seed?": (200, {**SEED, "revision": 1, "snapshot": None}),
            "POST ": (503, {}),
        }
        lore = lore_at(server.url)
        for number in range(2):
            assert not await go(lore, number, PROBING / 2)
        assert asked(server) == 2 + 3
        assert not await go(lore, 2, LATER) and asked(server) == 0
        time[0] += outage.PAUSE_SECONDS
        assert not await go(lore, 3, PROBING / 2) and asked(server) == 3
        assert [type(one) for one in of_seeds(told)] == [TimeoutError]
        await lore.aclose()


async def test_a_service_that_answers_what_is_wrong_is_not_out(lore_at, told, time):
    async with Server().run() as server:
        down(server, "500")
        lore = lore_at(server.url)
        await go(lore, 0, LATER)
        server.answers["GET "] = (401, {"kind": "unauthorized"})
        for number in (1, 2):
            await go(lore, number, LATER)
        assert lore.link.outage.is_on is False
        kinds = [type(one) for one in of_seeds(told)]
        assert kinds == [errors.ServiceUnavailable, errors.Refused, errors.Refused]
        await lore.aclose()


@function_tool(needs_approval=True)
def pay(cents: int) -> str:
    """Pay."""
    return "paid"


async def test_a_run_that_is_resumed_in_an_outage_asks_nothing_and_goes_on_in_its_workspace(
    lore_at, told, time
):
    async with Server().run() as server:
        down(server, "hangs")
        lore = lore_at(server.url)
        agent = worker(shell("echo 1 > a"), function_call("pay", {"cents": 5}, call_id="p"), tools=[pay])
        result = await lore.run(agent, "pay", conversation_id="c", run_config=config())
        assert not await go(lore, 1, PROBING)
        server.requests.clear()
        again = worker(shell("cat a", "c3"), done("paid"), tools=[pay])
        state = await RunState.from_json(again, result.to_state().to_json())
        state.approve(state.get_interruptions()[0])
        result = await lore.run(again, state, conversation_id="c", run_config=config())
        assert result.final_output == "paid" and not [
            one for one, _ in server.requests if one.startswith("GET")
        ]
        await lore.aclose()


async def test_a_run_that_is_resumed_on_another_machine_waits_for_the_one_that_it_goes_on_from(
    tmp_path, lore_at, told
):
    async with Server().run() as server:
        up(server)
        lore = lore_at(server.url)
        lore.link.deadline_seconds = LATER
        agent = worker(function_call("pay", {"cents": 5}, call_id="p"), tools=[pay])
        result = await lore.run(agent, "pay", conversation_id="c", run_config=config())
        [entry] = [lore.link.outbox.read(name) for name in lore.link.outbox.names()]
        there = Runlore(
            "acme", memory="support", url=server.url, key="k", home=tmp_path / "theirs", on_error=told.append
        )
        again = worker(done("paid"), tools=[pay])
        state = await RunState.from_json(again, result.to_state().to_json())
        state.approve(state.get_interruptions()[0])
        server.requests.clear()
        await there.run(again, state, conversation_id="c", run_config=config())
        first = next(request for request, _ in server.requests if "/seed?" in request)
        assert f"wait_for={entry.data['run_id']}&" in first + "&"
        await lore.aclose()
        await there.aclose()


async def test_the_question_of_a_run_in_an_outage_has_a_share_of_its_deadline(lore_at, time, monkeypatch):
    shares, waiting = [], runs.Run.waiting

    @contextlib.asynccontextmanager
    async def noted(run, **named):
        shares.append(named.get("share", 1.0))
        async with waiting(run, **named):
            yield

    async with Server().run() as server:
        down(server, "hangs")
        lore = lore_at(server.url)
        await go(lore, 0)
        monkeypatch.setattr(runs.Run, "waiting", noted)
        await go(lore, 1, PROBING)
        assert shares[0] == outage.PROBE_SHARE < 1 and asked(server) == 3
        await lore.aclose()


async def test_this_machine_is_never_out(tmp_path, told, monkeypatch):
    lore = Runlore("acme", memory="support", home=tmp_path / "home", on_error=told.append)
    seed = lore.link.backend.seed

    async def busy(ask, agent):
        raise TimeoutError

    monkeypatch.setattr(lore.link.backend, "seed", busy)
    await lore.run(worker(done()), "go", conversation_id="c", run_config=config())
    monkeypatch.setattr(lore.link.backend, "seed", seed)
    assert not lore.link.outage.is_on and [type(one) for one in told] == [TimeoutError]
    assert (await lore.link.backend.seed(port.Ask(run_id="r"), None)) is not None
    await lore.aclose()
