"""`Runlore` with the real SDK, its scripted model and UnixLocal: what the next run finds, and what is kept of each.

Everything is embedded: a home in a folder, no server. What it does while a server fails is in `test_agents_remote.py`.
"""

from __future__ import annotations

import asyncio
import json

import pytest

agents = pytest.importorskip("agents", reason="openai-agents is not installed")

from agents import Agent, RunState, SQLiteSession, function_tool, handoff  # noqa: E402

from runlore import clock, wiring  # noqa: E402
from runlore.agents import Runlore  # noqa: E402
from runlore.settings import Settings  # noqa: E402
from runlore.upkeep import logs, seedlog  # noqa: E402
from sandboxed import config, done, events, plain, scripted, seen, shell, until, worker  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(?!runlore)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@function_tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@function_tool(needs_approval=True)
def pay(cents: int) -> str:
    """Pay."""
    return "paid"


def call(name="add", call_id="c1", **arguments):
    from agents.testing import function_call

    return function_call(name, arguments, call_id=call_id)


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def lore(home):
    return Runlore("acme", memory="support", home=home)


def talker(*steps, name="talker", **more):
    return Agent(name=name, instructions="Talk.", model=scripted(*steps), tools=[add, pay], **more)


# --- memory and the workspace --------------------------------------------------------------------------------


async def test_the_second_run_finds_memory_and_the_workspace_of_the_first(lore):
    first = worker(shell("echo one > a.txt; false"), shell("ls", "c2"), done())
    result = await lore.run(first, "Make a.txt", conversation_id="conv-1", run_config=config())
    assert result.final_output == "done" and result.last_agent is first
    second = worker(shell("cat a.txt; ls memories"), done("seen"))
    result = await lore.run(second, "Look at it", conversation_id="conv-1", run_config=config())
    assert "one" in seen(result) and "MEMORY.md" in seen(result)
    assert "memory_summary.md" in seen(result)
    assert (await lore.seed(conversation_id="conv-1")).revision == 2
    await lore.aclose()


async def test_a_seed_of_a_home_on_this_machine_is_in_its_log_of_seeds_where_that_is_asked_for(
    home, monkeypatch
):
    monkeypatch.setenv("RUNLORE_AUDIT_SEEDS", "before")
    lore = Runlore("acme", memory="support", home=home)
    await lore.run(talker(done()), "one", conversation_id="conv")
    assert (await lore.seed(conversation_id="conv")).revision == 1
    async with wiring.open_home(Settings(home=home)) as opened:
        told = [
            (one.rollout, one.revision, "user" in one.by) async for one in seedlog.newest_first(opened.store)
        ]
        assert told == [("conv", 1, True)]
        assert not (await logs.verify(opened.store)).problems


async def test_another_process_later_finds_what_this_one_left_without_closing(lore, home):
    await lore.run(worker(shell("echo 1 > a"), done()), "go", conversation_id="c", run_config=config())
    later = Runlore("acme", memory="support", home=home)
    result = await later.run(worker(shell("cat a"), done()), "go", conversation_id="c", run_config=config())
    assert "1" in seen(result).splitlines()


async def test_memory_is_never_in_a_snapshot_and_the_next_seed_has_what_was_written_into_it(lore, home):
    await lore.run(worker(shell("false"), done()), "Say 7", conversation_id="c", run_config=config())
    spoil = worker(shell("echo spoiled > memories/MEMORY.md; echo x > b"), done())
    await lore.run(spoil, "go", conversation_id="c", run_config=config())
    look = worker(shell("cat b memories/MEMORY.md"), done())
    result = await lore.run(look, "go", conversation_id="c", run_config=config())
    said = seen(result).splitlines()
    assert "spoiled" not in said and "- spoiled" in said and "x" in said


async def test_memory_arrives_where_the_agent_s_own_layout_says(lore):
    from agents.sandbox import MemoryLayoutConfig
    from agents.sandbox.capabilities import Filesystem, Memory, Shell

    layout = MemoryLayoutConfig(memories_dir="notes/mem", sessions_dir="notes/runs")
    parts = [Shell(), Filesystem(), Memory(layout=layout)]
    first = worker(shell("false"), done(), capabilities=parts)
    await lore.run(first, "go", conversation_id="c", run_config=config())
    second = worker(shell("ls notes/mem; test -e memories || echo none"), done(), capabilities=parts)
    result = await lore.run(second, "go", conversation_id="c", run_config=config())
    assert "MEMORY.md" in seen(result) and "none" in seen(result).splitlines()


async def test_the_sdk_s_own_generation_is_left_out_and_said_once(lore, caplog):
    # A scripted model that is asked more often than scripted fails the run: two phases would be seen.
    for number in range(2):
        one = worker(done())
        await lore.run(one, "go", conversation_id=f"c{number}", run_config=config())
        one.model.assert_complete()
    assert sum("left out" in line.message for line in caplog.records) == 1


async def test_a_plain_run_on_a_live_session_still_generates(lore):
    from agents import Runner
    from agents.sandbox.capabilities import Filesystem, Memory, Shell
    from agents.sandbox.config import MemoryGenerateConfig
    from agents.sandbox.sandboxes import UnixLocalSandboxClient

    phase = scripted(done('{"rollout_slug": "", "rollout_summary": "", "raw_memory": ""}'))
    parts = [Shell(), Filesystem(), Memory(generate=MemoryGenerateConfig(phase_one_model=phase))]
    client = UnixLocalSandboxClient()
    session = await client.create(options=None)
    async with session:
        agent = worker(done(), done(), capabilities=parts)
        cfg = config(client=client, session=session)
        await lore.run(agent, "go", conversation_id="c", run_config=cfg)
        await Runner.run(agent, "again", conversation_id="c", run_config=cfg)
    await client.delete(session)
    phase.assert_complete()


async def test_a_live_session_is_seeded_and_refreshed_and_its_runs_are_recorded(lore, home):
    from agents.sandbox.sandboxes import UnixLocalSandboxClient

    await lore.run(worker(shell("false"), done()), "Learn", conversation_id="other", run_config=config())
    client = UnixLocalSandboxClient()
    session = await client.create(options=None)
    async with session:
        cfg = config(client=client, session=session)
        agent = worker(shell("ls memories/rollout_summaries"), done())
        result = await lore.run(agent, "go", conversation_id="c", run_config=cfg)
        assert "other" in seen(result)
        again = worker(shell("ls memories/rollout_summaries"), done())
        stream = lore.run_streamed(again, "go on", conversation_id="c", run_config=cfg)
        async for _ in stream.stream_events():
            pass
        assert any(line.startswith("c_") for line in seen(stream).splitlines())
    await client.delete(session)
    await lore.aclose()
    assert [one["workspaces"] for one in await events(home) if one["conversation_id"] == "c"] == [[], []]


async def test_a_capability_seeds_the_sessions_of_a_plain_runner(lore):
    from agents import Runner
    from agents.sandbox.capabilities import Filesystem, Memory, Shell
    from agents.sandbox.sandboxes import UnixLocalSandboxClient

    from runlore.agents import capability

    await lore.run(worker(shell("false"), done()), "Learn", conversation_id="other", run_config=config())
    await lore.aclose()
    parts = [
        Shell(),
        Filesystem(),
        capability.Seeding(lore=lore, rollout="c"),
        Memory(generate=None),
    ]
    client = UnixLocalSandboxClient()
    session = await client.create(options=None)
    async with session:
        cfg = config(client=client, session=session)
        for _ in range(2):
            agent = worker(shell("ls memories/rollout_summaries"), done(), capabilities=parts)
            result = await Runner.run(agent, "go", run_config=cfg)
            assert any(line.startswith("other") for line in seen(result).splitlines())
            prompt = agent.model.calls[0].system_instructions
            assert "memories/" in prompt and "MEMORY.md" in prompt
    await client.delete(session)


# --- what is recorded ----------------------------------------------------------------------------------------


async def test_a_plain_agent_is_recorded_and_waits_for_nothing(lore, home):
    result = await lore.run(talker(call(a=1, b=2), done("3")), "add", run_config=plain())
    assert result.final_output == "3"
    await lore.aclose()
    (event,) = await events(home)
    assert event["agents"] == ["talker"] and event["line"]["final_output"] == "3"
    assert event["usage"]["requests"] == 2 and "seed" not in event


async def test_an_error_is_the_sdk_s_own_and_its_run_is_recorded(lore, home):
    with pytest.raises(RuntimeError, match="the model broke"):
        await lore.run(talker(call(a=1, b=2), RuntimeError("the model broke")), "add", run_config=plain())
    with pytest.raises(agents.MaxTurnsExceeded):
        await lore.run(talker(call(a=1, b=2)), "add", run_config=plain(), max_turns=1)
    await lore.aclose()
    lines = {one["line"]["terminal_metadata"]["terminal_state"]: one["line"] for one in await events(home)}
    assert set(lines) == {"failed", "max_turns_exceeded"}
    for line in lines.values():
        assert [item["type"] for item in line["generated_items"]] == ["function_call", "function_call_output"]
        assert line["input"] == [{"content": "add", "role": "user"}]


async def test_a_guardrail_s_run_is_recorded(lore, home):
    @agents.input_guardrail(run_in_parallel=False)
    async def never(context, agent, input):
        return agents.GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)

    with pytest.raises(agents.InputGuardrailTripwireTriggered):
        await lore.run(talker(done(), input_guardrails=[never]), "no", run_config=plain())
    await lore.aclose()
    (event,) = await events(home)
    assert event["line"]["terminal_metadata"]["terminal_state"] == "guardrail_tripped"


async def test_a_cancelled_run_is_recorded_with_what_was_there(lore, home):
    reached = asyncio.Event()

    @function_tool
    async def wait() -> str:
        """Wait for ever."""
        reached.set()
        await asyncio.Event().wait()
        return ""

    agent = Agent(name="w", model=scripted(call("wait")), tools=[wait])
    task = asyncio.ensure_future(lore.run(agent, "wait", run_config=plain()))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await lore.aclose()
    (event,) = await events(home)
    assert event["line"]["terminal_metadata"]["terminal_state"] == "cancelled"
    assert [item["type"] for item in event["line"]["generated_items"]] == ["function_call"]


async def test_a_cancelled_sandbox_run_leaves_its_workspace(lore, home):
    reached = asyncio.Event()

    @function_tool
    async def wait() -> str:
        """Wait for ever."""
        reached.set()
        await asyncio.Event().wait()
        return ""

    agent = worker(shell("echo half > h"), call("wait", "c2"), tools=[wait])
    task = asyncio.ensure_future(lore.run(agent, "go", conversation_id="c", run_config=config()))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    result = await lore.run(worker(shell("cat h"), done()), "go", conversation_id="c", run_config=config())
    assert "half" in seen(result).splitlines()


async def test_a_stream_has_the_user_s_input_and_leaves_its_workspace(lore, home):
    stream = lore.run_streamed(
        worker(shell("echo s > s"), done()), "Stream it", conversation_id="c", run_config=config()
    )
    assert isinstance(stream, agents.RunResultStreaming)
    async for _ in stream.stream_events():
        pass
    assert stream.final_output == "done"
    result = await lore.run(worker(shell("cat s"), done()), "go", conversation_id="c", run_config=config())
    assert "s" in seen(result).splitlines()
    await lore.aclose()
    first = (await events(home))[0]
    assert first["line"]["input"] == [{"content": "Stream it", "role": "user"}]
    assert first["line"]["terminal_metadata"]["terminal_state"] == "completed"


@pytest.mark.parametrize("mode", ["immediate", "after_turn", "break"])
async def test_a_stream_that_is_not_read_to_its_end_is_recorded(lore, home, mode):
    stream = lore.run_streamed(
        worker(shell("echo 1 > s"), done()), "go", conversation_id="c", run_config=config()
    )
    async for event in stream.stream_events():
        if event.type == "run_item_stream_event" and event.name == "tool_output":
            if mode == "break":
                break
            stream.cancel(mode=mode)
    left = home / "agents" / "acme.support"
    await until(lambda: any(left.glob("waiting/*/0.tar")) or stream.run_loop_task.done())
    while not any(one["workspaces"] for one in await events(home)):
        await lore.aclose()
    found = await events(home)
    assert {one["run_id"] for one in found} == {found[0]["run_id"]}
    assert found[-1]["line"]["input"] == [{"content": "go", "role": "user"}]
    result = await lore.run(worker(shell("cat s"), done()), "go", conversation_id="c", run_config=config())
    assert "1" in seen(result).splitlines()


async def test_a_stream_that_fails_is_recorded(lore, home):
    stream = lore.run_streamed(talker(call(a=1, b=2), RuntimeError("broke")), "add", run_config=plain())
    with pytest.raises(RuntimeError, match="broke"):
        async for _ in stream.stream_events():
            pass
    await lore.aclose()
    (event,) = await events(home)
    assert event["line"]["terminal_metadata"]["exception_message"] == "broke"


async def test_a_hand_off_to_a_plain_agent_is_recorded(lore, home):
    second = talker(done("from second"), name="second")
    first = worker(call("transfer_to_second"), name="first", handoffs=[handoff(second)])
    result = await lore.run(first, "go", conversation_id="c", run_config=config())
    assert result.last_agent is second
    await lore.aclose()
    (event,) = await events(home)
    assert event["agents"] == ["first", "second"] and len(event["workspaces"]) == 1


async def test_each_sandbox_agent_of_a_hand_off_has_a_line_of_its_own(lore, home):
    def pair(one, two):
        second = worker(shell(two, "b1"), done(), name="second")
        return worker(shell(one, "a1"), call("transfer_to_second", "h"), name="first", handoffs=[second])

    await lore.run(pair("echo a > who", "ls; echo b > who"), "go", conversation_id="c", run_config=config())
    result = await lore.run(pair("cat who", "cat who"), "go", conversation_id="c", run_config=config())
    said = seen(result).splitlines()
    assert said.count("a") == 1 and said.count("b") == 1
    # Whoever goes on with the second agent finds its workspace.
    alone = worker(shell("cat who"), done(), name="second")
    result = await lore.run(alone, "go", conversation_id="c", run_config=config())
    assert "b" in seen(result).splitlines()


async def test_an_agent_that_is_handed_to_after_the_deadline_finds_its_workspace(lore, monkeypatch, caplog):
    """The deadline is what a run waits for Runlore, not how long the run itself may take."""
    passed, real = [0.0], clock.monotonic
    monkeypatch.setattr(clock, "monotonic", lambda: real() + passed[0])

    @function_tool
    def think() -> str:
        """Think for an hour."""
        passed[0] += 3600
        return "thought"

    def pair(two):
        second = worker(shell(two, "b1"), done(), name="second")
        steps = call("think", "t"), call("transfer_to_second", "h")
        return worker(*steps, name="first", handoffs=[second], tools=[think])

    await lore.run(pair("echo b > who"), "go", conversation_id="c", run_config=config())
    result = await lore.run(pair("cat who; echo c > who"), "go", conversation_id="c", run_config=config())
    assert "b" in seen(result).splitlines()
    alone = worker(shell("cat who"), done(), name="second")
    result = await lore.run(alone, "go", conversation_id="c", run_config=config())
    assert "c" in seen(result).splitlines() and "goes on without" not in caplog.text


async def test_an_agent_as_a_tool_is_an_event_of_its_own(lore, home):
    inner = talker(done("inner said"), name="inner")
    tool = inner.as_tool("ask", "Ask the inner agent.")
    outer = Agent(name="outer", model=scripted(call("ask", input="hello"), done("outer")), tools=[tool])
    await lore.run(outer, "go", conversation_id="c", run_config=plain())
    await lore.aclose()
    found = {one["agents"][0]: one for one in await events(home)}
    assert found["inner"]["parent_run_id"] == found["outer"]["run_id"]
    assert found["inner"]["line"]["final_output"] == "inner said"
    assert "parent_run_id" not in found["outer"]


@pytest.mark.parametrize("what", ["project", "subject"])
async def test_a_run_for_somebody_else_inside_of_a_run_sees_nothing_of_it(home, what):
    mine = Runlore("acme", memory="support", home=home, subject="ann")
    learns = worker(shell("echo mine > a; false"), done())
    await mine.run(learns, "My number is 77-aa", conversation_id="c", run_config=config())
    other = Runlore("acme" if what == "subject" else "rival", memory="support", home=home, subject="bob")
    looks = worker(shell("cat memories/*/* a; echo end"), done())

    @function_tool
    async def ask() -> str:
        """Ask somebody."""
        return seen(await other.run(looks, "x", conversation_id="d", run_config=config()))

    outer = worker(shell("cat a memories/*/*"), call("ask", "c2"), done(), name="outer", tools=[ask])
    result = await mine.run(outer, "go", conversation_id="c", run_config=config())
    own, asked = [item.output for item in result.new_items if item.type == "tool_call_output_item"]
    assert "mine" in own and "77-aa" in own
    assert "77-aa" not in asked and "end" in asked
    await other.aclose()
    await mine.aclose()
    assert not any("parent_run_id" in one for one in await events(home))


async def test_a_run_that_a_tool_starts_with_runlore_names_its_parent(lore, home):
    @function_tool
    async def ask() -> str:
        """Ask somebody."""
        return str((await lore.run(talker(done("deep"), name="deep"), "x", run_config=plain())).final_output)

    outer = Agent(name="outer", model=scripted(call("ask"), done()), tools=[ask])
    await lore.run(outer, "go", run_config=plain())
    await lore.aclose()
    found = {one["agents"][0]: one for one in await events(home)}
    assert found["deep"]["parent_run_id"] == found["outer"]["run_id"] and len(found) == 2


async def test_a_streamed_agent_as_a_tool_is_an_event_of_its_own(lore, home):
    async def seen_event(event):
        return None

    tool = talker(done("inner"), name="inner").as_tool("ask", "Ask.", on_stream=seen_event)
    outer = Agent(name="outer", model=scripted(call("ask", input="x"), done()), tools=[tool])
    stream = lore.run_streamed(outer, "go", run_config=plain())
    async for _ in stream.stream_events():
        pass
    await lore.aclose()
    found = {one["agents"][0]: one for one in await events(home)}
    assert found["inner"]["parent_run_id"] == found["outer"]["run_id"] and len(found) == 2


async def test_two_agents_as_tools_at_once_both_name_their_parent(lore, home):
    tools = [talker(done(f"{n}"), name=f"inner{n}").as_tool(f"ask{n}", "Ask.") for n in range(2)]
    both = [call(f"ask{n}", f"c{n}", input="x") for n in range(2)]
    outer = Agent(name="outer", model=scripted(both, done()), tools=tools)
    await lore.run(outer, "go", run_config=plain())
    await lore.aclose()
    found = {one["agents"][0]: one for one in await events(home)}
    parents = {one.get("parent_run_id") for name, one in found.items() if name != "outer"}
    assert parents == {found["outer"]["run_id"]} and len(found) == 3


async def test_a_run_outside_of_runlore_is_not_touched(lore, home):
    await lore.run(talker(done()), "one", run_config=plain())
    await agents.Runner.run(talker(done()), "two", run_config=plain())
    await lore.aclose()
    assert [one["line"]["input"][0]["content"] for one in await events(home)] == ["one"]


async def test_an_interrupted_run_resumed_from_json_without_any_id_stays_one_rollout(lore, home):
    agent = worker(shell("echo 1 > a"), call("pay", "p1", cents=5), tools=[pay])
    result = await lore.run(agent, "pay", run_config=config())
    assert result.interruptions
    saved = json.dumps(result.to_state().to_json())
    again = worker(shell("cat a", "c3"), done("paid"), tools=[pay])
    state = await RunState.from_json(again, json.loads(saved))
    state.approve(state.get_interruptions()[0])
    later = Runlore("acme", memory="support", home=home)
    result = await later.run(again, state, run_config=config())
    assert result.final_output == "paid" and "1" in seen(result).splitlines()
    await later.aclose()
    first, second = sorted(await events(home), key=lambda one: one.get("resumed_from", ""))
    assert second["resumed_from"] == first["run_id"]
    assert second["group_id"] == f"run-{first['run_id']}"
    assert first["line"]["terminal_metadata"]["terminal_state"] == "interrupted"
    assert second["workspaces"][0]["base"]["counter"] == 1


async def test_a_streamed_interruption_with_a_session_is_resumed_in_its_rollout(lore, home):
    session = SQLiteSession("s-2")
    try:
        agent = talker(call("pay", "p9", cents=5), done("paid"))
        stream = lore.run_streamed(agent, "pay", session=session, run_config=plain())
        async for _ in stream.stream_events():
            pass
        state = stream.to_state()
        state.approve(state.get_interruptions()[0])
        result = await lore.run(agent, state, session=session, run_config=plain())
    finally:
        session.close()
    assert result.final_output == "paid"
    await lore.aclose()
    first, second = await events(home)
    assert second["resumed_from"] == first["run_id"] and second["session_id"] == "s-2"
    assert second["line"]["input"] == []


async def test_a_runner_of_the_program_s_own_around_ours_records_each_run_once(lore, home):
    from agents.run import AgentRunner, get_default_agent_runner, set_default_agent_runner

    await lore.run(talker(done()), "one", run_config=plain())

    class Own(AgentRunner):
        inner = get_default_agent_runner()

        async def run(self, *args, **named):
            return await self.inner.run(*args, **named)

    before = get_default_agent_runner()
    set_default_agent_runner(Own())
    try:
        tool = talker(done("inner"), name="inner").as_tool("ask", "Ask.")
        outer = Agent(name="outer", model=scripted(call("ask", input="x"), done()), tools=[tool])
        await lore.run(outer, "two", run_config=plain())
    finally:
        set_default_agent_runner(before)
    await lore.aclose()
    names = sorted(name for one in await events(home) for name in one["agents"])
    assert names == ["inner", "outer", "talker"]


def test_one_object_serves_several_event_loops(lore, home):
    for number in range(2):
        agent = worker(shell(f"echo {number} >> n; cat n"), done())
        result = asyncio.run(lore.run(agent, "go", conversation_id="c", run_config=config()))
    assert {"0", "1"} <= set(seen(result).splitlines())


async def test_a_session_s_run_is_recorded_with_this_turn_s_input_alone(lore, home):
    session = SQLiteSession("s-1")
    try:
        for text in ("first", "second"):
            await lore.run(talker(done()), text, session=session, run_config=plain())
    finally:
        session.close()
    await lore.aclose()
    found = await events(home)
    assert {one["session_id"] for one in found} == {"s-1"}
    assert sorted(item["content"] for one in found for item in one["line"]["input"]) == ["first", "second"]


async def test_an_id_that_no_file_can_have_does_not_lose_the_run(lore, home):
    await lore.run(talker(done()), "go", conversation_id="../../etc\n", run_config=plain())
    await lore.aclose()
    (event,) = await events(home)
    assert event["conversation_id"].startswith("rl-")


async def test_the_program_s_hooks_are_called_and_their_errors_are_the_run_s(lore):
    called = []

    class Own(agents.RunHooks):
        async def on_agent_start(self, context, agent):
            called.append("start")

        async def on_llm_end(self, context, agent, response):
            raise ValueError("own hook")

    with pytest.raises(ValueError, match="own hook"):
        await lore.run(talker(done()), "go", hooks=Own(), run_config=plain())
    assert called == ["start"]


async def test_what_a_run_does_is_told_in_one_line(lore, caplog):
    caplog.set_level("INFO", "runlore.agents")
    await lore.run(worker(shell("echo 1 > a; false"), done()), "go", conversation_id="c", run_config=config())
    await lore.run(worker(done()), "go", conversation_id="c", run_config=config())
    lines = [one.message for one in caplog.records if "recorded run" in one.message]
    assert lines[0].startswith("nothing to seed · recorded run ")
    assert lines[1].startswith("seeded revision 1 (") and "(1 files) · recorded run " in lines[1]
