"""`runlore.agents` against a real `runlore serve`, with keys: what one run leaves, the next one finds over HTTP."""

from __future__ import annotations

import pytest

pytest.importorskip("agents", reason="openai-agents is not installed")
pytest.importorskip("fastapi", reason="runlore[server] is not installed")

import homes
import serving
from agents import RunState, function_tool
from agents.testing import function_call

from runlore import errors
from runlore.agents import Runlore
from sandboxed import config, done, seen, shell, worker

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(?!runlore)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@function_tool(needs_approval=True)
def pay(cents: int) -> str:
    """Pay."""
    return "paid"


@pytest.fixture
def served(tmp_path):
    home = homes.Home(tmp_path / "service", http_keys="true")
    made = home.json("keys", "create", "acme", "--scope", "write", "--name", "t", "--reason", "a test")
    home.token = made["token"]
    home.service = serving.Served(home, "--up").start()
    home.url = home.service.url
    return home


@pytest.fixture
def told():
    return []


@pytest.fixture
def lore(served, tmp_path, told):
    return Runlore(
        "acme",
        memory="support",
        url=served.url,
        key=served.token,
        home=tmp_path / "mine",
        deadline_seconds=30,
        on_error=told.append,
    )


async def test_what_one_run_leaves_the_next_finds_over_http(lore, told):
    first = worker(shell("echo one > a.txt; false"), done())
    await lore.run(first, "Make a.txt", conversation_id="conv-1", run_config=config())
    second = worker(shell("cat a.txt; ls memories; echo two > b.txt"), done())
    result = await lore.run(second, "Look", conversation_id="conv-1", run_config=config())
    assert "one" in seen(result).splitlines() and "MEMORY.md" in seen(result)
    third = worker(shell("cat a.txt b.txt"), done())
    result = await lore.run(third, "Look", conversation_id="conv-1", run_config=config())
    assert {"one", "two"} <= set(seen(result).splitlines())
    await lore.aclose()
    assert told == []


async def test_a_program_waits_over_http_until_its_run_has_come_to_an_end(lore, told):
    await lore.run(worker(shell("false"), done()), "Fail", conversation_id="conv-1", run_config=config())
    ended = await lore.wait_for(rollout="conv-1", seconds=30)
    assert ended.end == "consolidated" and ended.cause
    with pytest.raises(errors.WaitTimeout, match="nothing has that name"):
        await lore.wait_for("nobody", seconds=0.2)
    await lore.aclose()
    assert told == []


async def test_what_an_agent_writes_into_its_memory_is_in_the_next_seed_over_http(lore, told):
    await lore.run(worker(shell("false"), done()), "Fail", conversation_id="conv-1", run_config=config())
    writes = worker(shell("echo '- Ask `ops` first' >> memories/MEMORY.md"), done())
    await lore.run(writes, "go", conversation_id="conv-1", run_config=config())
    look = worker(shell("cat memories/MEMORY.md"), done())
    result = await lore.run(look, "Look", conversation_id="conv-1", run_config=config())
    assert "- Ask `ops` first" in seen(result).splitlines()
    await lore.aclose()
    assert told == []


async def test_a_resumed_run_moves_the_line_that_it_left(lore, served, told):
    agent = worker(shell("echo 1 > a"), function_call("pay", {"cents": 5}, call_id="p"), tools=[pay])
    result = await lore.run(agent, "pay", conversation_id="c", run_config=config())
    again = worker(shell("cat a; echo 2 > a", "c3"), done("paid"), tools=[pay])
    state = await RunState.from_json(again, result.to_state().to_json())
    state.approve(state.get_interruptions()[0])
    result = await lore.run(again, state, conversation_id="c", run_config=config())
    assert "1" in seen(result).splitlines()
    result = await lore.run(worker(shell("cat a"), done()), "go", conversation_id="c", run_config=config())
    assert "2" in seen(result).splitlines()
    await lore.aclose()
    assert told == []


async def test_a_run_state_is_resumed_on_another_machine(lore, served, told, tmp_path):
    agent = worker(shell("echo 1 > a"), function_call("pay", {"cents": 5}, call_id="p"), tools=[pay])
    result = await lore.run(agent, "pay", conversation_id="c", run_config=config())
    saved = result.to_state().to_json()
    await lore.aclose()
    (tmp_path / "mine").rename(tmp_path / "far_away")
    there = Runlore(
        "acme",
        memory="support",
        url=served.url,
        key=served.token,
        home=tmp_path / "theirs",
        deadline_seconds=30,
        on_error=told.append,
    )
    again = worker(shell("cat a; echo 2 > a", "c3"), done("paid"), tools=[pay])
    state = await RunState.from_json(again, saved)
    state.approve(state.get_interruptions()[0])
    result = await there.run(again, state, conversation_id="c", run_config=config())
    assert "1" in seen(result).splitlines()
    result = await there.run(worker(shell("cat a"), done()), "go", conversation_id="c", run_config=config())
    assert "2" in seen(result).splitlines()
    await there.aclose()
    assert told == []


async def test_a_service_that_is_killed_and_comes_back_loses_no_run(lore, served, told):
    served.service.end()
    agent = worker(shell("echo 1 > a"), done())
    result = await lore.run(agent, "go", conversation_id="c", run_config=config())
    assert result.final_output == "done" and told
    told.clear()
    served.service.start()
    result = await lore.run(worker(shell("cat a"), done()), "go", conversation_id="c", run_config=config())
    assert "1" in seen(result).splitlines()
    await lore.aclose()


async def test_a_wrong_key_stops_no_run_and_is_told(served, tmp_path, told):
    lore = Runlore(
        "acme",
        memory="support",
        url=served.url,
        key="rl_0_wrong",
        home=tmp_path / "mine",
        deadline_seconds=5,
        on_error=told.append,
    )
    result = await lore.run(worker(done()), "go", conversation_id="c", run_config=config())
    assert result.final_output == "done" and any("401" in str(one) for one in told)
    await lore.aclose()


async def test_a_fan_out_is_merged_by_the_service(lore, told):
    first = worker(shell("echo base > both"), done())
    await lore.run(first, "Begin", conversation_id="audit", run_config=config())
    async with lore.fan_out("audit", n=2) as (one, two):
        for branch in (one, two):
            agent = worker(shell(f"cat both; echo {branch.name} > {branch.name}"), done())
            result = await branch.run(agent, "Part", run_config=config())
            assert "base" in seen(result).splitlines()
    merged = await lore.merge("audit")
    assert (merged.state, len(merged.merged), merged.conflicts) == ("moved", 2, ())
    look = worker(shell("cat both b0 b1"), done())
    result = await lore.run(look, "go", conversation_id="audit", run_config=config())
    assert {"base", "b0", "b1"} <= set(seen(result).splitlines())
    await lore.aclose()
    assert told == []


async def test_a_merge_of_what_is_no_map_of_rollouts_is_refused(served):
    import httpx2

    for rollouts in ([1], {"b0": 1}, "x"):
        answer = httpx2.post(
            f"{served.url}/v1/projects/acme/snapshots/merge",
            json={"rollout": "audit", "rollouts": rollouts},
            headers={"authorization": f"Bearer {served.token}"},
        )
        assert (answer.status_code, answer.json()["kind"]) == (400, "invalid_input")


async def test_a_tool_goes_on_in_its_own_line_over_http(lore, told):
    from agents import Agent

    from sandboxed import scripted

    async def ask(*commands):
        steps = [step for n, command in enumerate(commands) for step in (shell(command, f"s{n}"), done())]
        inner = worker(*steps, name="inner")
        calls = [function_call("ask", {"input": "x"}, call_id=f"a{n}") for n in range(len(commands))]
        desk = Agent(name="desk", model=scripted(*calls, done()), tools=[inner.as_tool("ask", "Ask.")])
        await lore.run(desk, "go", conversation_id="c", run_config=config())
        items = [item for call in inner.model.calls for item in call.input if isinstance(item, dict)]
        return "\n".join(str(item.get("output")) for item in items).splitlines()

    await lore.run(worker(shell("echo own > a"), done()), "go", conversation_id="c", run_config=config())
    said = await ask("cat a || echo 1 > b", "cat b; echo 2 >> b")
    assert "1" in said and "own" not in said
    assert {"1", "2"} <= set(await ask("cat b"))
    result = await lore.run(worker(shell("ls"), done()), "go", conversation_id="c", run_config=config())
    assert {"a"} == {"a", "b"} & set(seen(result).splitlines())
    await lore.aclose()
    assert told == []
