"""Agents as tools with a sandbox of their own: each goes on in a line of its own, and never in that of the run."""

from __future__ import annotations

import asyncio
import json

import pytest

agents = pytest.importorskip("agents", reason="openai-agents is not installed")

from agents import Agent, RunState, function_tool  # noqa: E402
from agents.testing import function_call  # noqa: E402

from runlore import wiring  # noqa: E402
from runlore.agents import Runlore, tools  # noqa: E402
from runlore.commit import lines  # noqa: E402
from runlore.settings import Settings  # noqa: E402
from sandboxed import config, done, events, scripted, seen, shell, worker  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(?!runlore)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def told():
    return []


@pytest.fixture
def lore(home, told):
    return Runlore("acme", memory="support", home=home, on_error=told.append)


@function_tool(needs_approval=True)
def pay(cents: int) -> str:
    """Pay."""
    return "paid"


def ask(call_id="a", tool="ask"):
    return function_call(tool, {"input": "x"}, call_id=call_id)


def asks(*commands, name="inner", times=1, outer=None, tool="ask", **more):
    """An agent that asks a sandbox agent as a tool, once for each command, one after the other."""
    steps = []
    for number, command in enumerate(commands):
        steps += [shell(command, f"s{number}"), done(f"did {number}")]
    inner = worker(*steps, name=name)
    made = inner.as_tool(tool, "Ask.")
    calls = [ask(f"a{number}", tool) for number in range(len(commands))]
    if outer is not None:
        return worker(*outer, *calls, done(), name="outer", tools=[made], **more), inner
    return Agent(name="desk", model=scripted(*calls, done()), tools=[made], **more), inner


def printed(agent):
    """What the commands of a scripted agent printed, as its model saw it."""
    found = []
    for one in agent.model.calls:
        items = one.input if isinstance(one.input, list) else []
        found += [str(i["output"]) for i in items if i.get("type") == "function_call_output"]
    return "\n".join(found).splitlines()


async def line(home, rollout, agent):
    async with wiring.open_home(Settings(home=home)) as opened:
        return (await lines.read(opened.store, lines.line_of("acme", rollout, agent))).body


async def test_a_tool_goes_on_where_its_call_in_the_run_before_stopped(lore, home, told):
    desk, _ = asks("echo one > a")
    await lore.run(desk, "go", conversation_id="c", run_config=config())
    desk, inner = asks("cat a; echo two >> a")
    await lore.run(desk, "go", conversation_id="c", run_config=config())
    assert "one" in printed(inner)
    desk, inner = asks("cat a")
    await lore.run(desk, "go", conversation_id="c", run_config=config())
    assert {"one", "two"} <= set(printed(inner))
    # Another conversation has nothing of it.
    desk, inner = asks("cat a || echo none")
    await lore.run(desk, "go", conversation_id="d", run_config=config())
    assert "none" in printed(inner)
    await lore.aclose()
    assert told == [] and (await line(home, "c", "tool.inner"))["version"] == 3


async def test_what_a_tool_leaves_goes_with_the_event_of_the_run_that_nobody_called(lore, home):
    desk, _ = asks("echo one > a")
    await lore.run(desk, "go", conversation_id="c", run_config=config())
    await lore.aclose()
    found = {one["agents"][0]: one for one in await events(home)}
    assert [one["agent"] for one in found["desk"]["workspaces"]] == ["tool.inner"]
    assert found["inner"]["workspaces"] == []
    assert found["inner"]["parent_run_id"] == found["desk"]["run_id"]


async def test_the_line_of_the_run_itself_is_never_moved_by_a_tool(lore, home, told):
    outer, _ = asks("ls; echo tool > a", outer=[shell("echo own > a", "o1")])
    await lore.run(outer, "go", conversation_id="c", run_config=config())
    outer, inner = asks("cat a", outer=[shell("cat a", "o1")])
    result = await lore.run(outer, "go", conversation_id="c", run_config=config())
    assert "own" in seen(result).splitlines() and "tool" not in seen(result).splitlines()
    assert "tool" in printed(inner) and "own" not in printed(inner)
    # An agent of the same name that nobody calls is another one: the conversation's main line is its.
    alone = worker(shell("cat a"), done(), name="inner")
    result = await lore.run(alone, "go", conversation_id="c", run_config=config())
    assert "own" in seen(result).splitlines() and "tool" not in seen(result).splitlines()
    await lore.aclose()
    assert told == [] and not (await line(home, "c", "inner"))
    assert (await line(home, "c", "main"))["version"] >= 1


async def test_calls_one_after_the_other_go_on_in_one_workspace_that_is_sent_once(lore, home, told):
    desk, inner = asks("echo 1 > a", "cat a; echo 2 >> a", "cat a; echo 3 >> a")
    await lore.run(desk, "go", conversation_id="c", run_config=config())
    assert printed(inner).count("1") >= 2 and "2" in printed(inner)
    desk, inner = asks("cat a")
    await lore.run(desk, "go", conversation_id="c", run_config=config())
    assert {"1", "2", "3"} <= set(printed(inner))
    await lore.aclose()
    spaces = [len(one["workspaces"]) for one in await events(home) if one["agents"] == ["desk"]]
    assert spaces == [1, 1] and told == []


async def test_what_the_sdk_archives_and_would_not_restore_stops_no_later_call(lore, home, told):
    """A virtualenv, a pipe, a hard link: each makes the SDK's own tar one that it refuses (reference of the SDK)."""
    odd = "ln -s /bin/sh sh; mkfifo p; echo 1 > a; ln a b"
    desk, inner = asks(odd, "cat a b; echo 2 > c", "cat a b c", name="odd")
    await lore.run(desk, "go", conversation_id="c", run_config=config())
    assert printed(inner).count("1") >= 4 and "2" in printed(inner)
    await lore.aclose()
    assert told == [] and (await line(home, "c", "tool.odd"))["version"] == 1
    assert not [one.name for one in lore.link.outbox.sessions.iterdir() if one.name.startswith(".new-")]


async def test_what_can_not_be_restored_at_all_costs_the_call_what_was_left_and_is_told(
    lore, told, monkeypatch
):
    async def broken(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(tools, "_normalised", broken)
    desk, inner = asks("echo 1 > a", "cat a || echo none")
    await lore.run(desk, "go", conversation_id="c", run_config=config())
    assert "none" in printed(inner) and [str(one) for one in told] == ["the disk is full"]
    await lore.aclose()


async def test_of_calls_at_once_each_has_the_same_version_and_one_is_kept(lore, home, told, caplog):
    desk, _ = asks("echo before > a")
    await lore.run(desk, "go", conversation_id="c", run_config=config())
    # Each waits for the other, so that both are under way.
    both = asyncio.Barrier(2)

    @function_tool
    async def meet() -> str:
        """Meet the other."""
        await both.wait()
        return "met"

    def one(name):
        steps = shell(f"cat a; echo {name} >> a", "s"), function_call("meet", {}, call_id="m"), done(name)
        return worker(*steps, name="inner", tools=[meet])

    pair = [one("left"), one("right")]
    made = [agent.as_tool(f"ask{n}", "Ask.") for n, agent in enumerate(pair)]
    desk = Agent(
        name="desk", model=scripted([ask("a0", "ask0"), ask("a1", "ask1")], done("both")), tools=made
    )
    await lore.run(desk, "go", conversation_id="c", run_config=config())
    assert all("before" in printed(agent) for agent in pair)
    desk, inner = asks("cat a")
    await lore.run(desk, "go", conversation_id="c", run_config=config())
    found = set(printed(inner)) & {"before", "left", "right"}
    assert "before" in found and len(found) == 2
    await lore.aclose()
    assert told == [] and sum("under way at once" in one.message for one in caplog.records) == 1
    assert not (await line(home, "c", "tool.inner")).get("branches")


async def test_a_tool_of_a_tool_has_a_line_in_the_rollout_of_the_run_that_nobody_called(lore, home, told):
    def nest(deep_command, middle_command):
        deep = worker(shell(deep_command, "d1"), done("deep"), name="deep")
        steps = shell(middle_command, "m1"), ask("m2", "ask_deep"), done("middle")
        middle = worker(*steps, name="middle", tools=[deep.as_tool("ask_deep", "Ask.")])
        made = [middle.as_tool("ask", "Ask.")]
        return Agent(name="desk", model=scripted(ask(), done()), tools=made), deep, middle

    desk, _, _ = nest("echo deep > d", "echo middle > m")
    await lore.run(desk, "go", conversation_id="c", run_config=config())
    desk, deep, middle = nest("cat d; ls m || echo apart", "cat m; ls d || echo apart")
    await lore.run(desk, "go", conversation_id="c", run_config=config())
    assert {"deep", "apart"} <= set(printed(deep)) and {"middle", "apart"} <= set(printed(middle))
    await lore.aclose()
    found = [one for one in await events(home) if one["agents"] == ["desk"]]
    assert [sorted(one["agent"] for one in run["workspaces"]) for run in found] == [
        ["tool.deep", "tool.middle"]
    ] * 2
    assert told == []


async def test_a_call_that_fails_leaves_its_workspace_as_it_was_then(lore, told):
    inner = worker(shell("echo half > h"), RuntimeError("the model broke"), name="inner")
    desk = Agent(name="desk", model=scripted(ask(), done()), tools=[inner.as_tool("ask", "Ask.")])
    await lore.run(desk, "go", conversation_id="c", run_config=config())
    desk, inner = asks("cat h")
    await lore.run(desk, "go", conversation_id="c", run_config=config())
    assert "half" in printed(inner) and told == []
    await lore.aclose()


async def test_a_streamed_tool_goes_on_too(lore, home, told):
    async def on_event(event):
        return None

    for command in ("echo 1 > a", "cat a"):
        inner = worker(shell(command), done("did"), name="inner")
        made = inner.as_tool("ask", "Ask.", on_stream=on_event)
        desk = Agent(name="desk", model=scripted(ask(), done()), tools=[made])
        stream = lore.run_streamed(desk, "go", conversation_id="c", run_config=config())
        async for _ in stream.stream_events():
            pass
    assert "1" in printed(inner) and told == []
    await lore.aclose()


async def test_a_tool_that_waits_for_an_approval_goes_on_in_its_workspace(lore, home, told):
    inner = worker(
        shell("echo 1 > a"), function_call("pay", {"cents": 5}, call_id="p"), name="inner", tools=[pay]
    )
    desk = Agent(name="desk", model=scripted(ask()), tools=[inner.as_tool("ask", "Ask.")])
    result = await lore.run(desk, "pay", conversation_id="c", run_config=config())
    assert result.interruptions
    saved = json.dumps(result.to_state().to_json())
    inner = worker(shell("cat a; echo 2 >> a", "s9"), done("paid"), name="inner", tools=[pay])
    desk = Agent(name="desk", model=scripted(done("paid")), tools=[inner.as_tool("ask", "Ask.")])
    state = await RunState.from_json(desk, json.loads(saved))
    state.approve(state.get_interruptions()[0])
    later = Runlore("acme", memory="support", home=home, on_error=told.append)
    result = await later.run(desk, state, conversation_id="c", run_config=config())
    assert result.final_output == "paid" and "1" in printed(inner)
    desk, inner = asks("cat a")
    await later.run(desk, "go", conversation_id="c", run_config=config())
    assert {"1", "2"} <= set(printed(inner))
    await later.aclose()
    await lore.aclose()
    assert told == []


async def test_more_agents_as_tools_than_may_be_are_not_kept_and_told_once(lore, home, monkeypatch, caplog):
    monkeypatch.setattr(tools, "LINES_MAX", 1)
    made = [worker(shell("echo 1 > a"), done(), name=f"i{n}").as_tool(f"ask{n}", "Ask.") for n in range(3)]
    calls = [ask(f"a{n}", f"ask{n}") for n in range(3)]
    desk = Agent(name="desk", model=scripted(*calls, done()), tools=made)
    await lore.run(desk, "go", conversation_id="c", run_config=config())
    await lore.aclose()
    (event,) = [one for one in await events(home) if one["agents"] == ["desk"]]
    assert [one["agent"] for one in event["workspaces"]] == ["tool.i0"]
    assert sum("and no more" in one.message for one in caplog.records) == 1


async def test_a_tool_without_a_sandbox_leaves_nothing(lore, home, told):
    inner = Agent(name="inner", model=scripted(done("said")))
    desk = Agent(name="desk", model=scripted(ask(), done()), tools=[inner.as_tool("ask", "Ask.")])
    await lore.run(desk, "go", conversation_id="c", run_config=config())
    await lore.aclose()
    assert [one["workspaces"] for one in await events(home)] == [[], []] and told == []


async def test_a_cancelled_run_leaves_what_its_tool_had_done(lore, home, told):
    reached = asyncio.Event()

    @function_tool
    async def wait() -> str:
        """Wait for ever."""
        reached.set()
        await asyncio.Event().wait()
        return ""

    inner = worker(shell("echo half > h"), function_call("wait", {}, call_id="w"), name="inner", tools=[wait])
    desk = Agent(name="desk", model=scripted(ask(), done()), tools=[inner.as_tool("ask", "Ask.")])
    task = asyncio.ensure_future(lore.run(desk, "go", conversation_id="c", run_config=config()))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # The SDK lets go of the tool before its sandbox is stopped: what that leaves is a higher attempt of the run.
    while not any(one["workspaces"] for one in await events(home)):
        await lore.aclose()
    desk, inner = asks("cat h")
    await lore.run(desk, "go", conversation_id="c", run_config=config())
    assert "half" in printed(inner)
    await lore.aclose()
