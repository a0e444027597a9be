"""`Runlore.run_sync`: the SDK's own restrictions, and all that `run` does, for a program without an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading

import pytest

agents = pytest.importorskip("agents", reason="openai-agents is not installed")

from agents import Agent, function_tool  # noqa: E402
from agents.testing import function_call  # noqa: E402

from runlore import errors  # noqa: E402
from runlore.agents import Runlore, delivery  # noqa: E402
from sandboxed import config, done, events, plain, scripted, seen, shell, worker  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(?!runlore)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def lore(home):
    made = Runlore("acme", memory="support", home=home)
    yield made
    made.close()


@contextlib.contextmanager
def own_loop():
    """The loop that the SDK keeps for a thread ends with this."""
    yield
    policy = asyncio.get_event_loop_policy()
    with contextlib.suppress(RuntimeError):
        policy.get_event_loop().close()
        policy.set_event_loop(None)


@pytest.fixture(autouse=True)
def no_loop_is_left():
    with own_loop():
        yield


def told_of(home):
    """`events`, where no loop runs; not `asyncio.run`, which would take the thread's loop away."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(events(home))


def test_the_second_run_finds_memory_and_the_workspace_of_the_first(lore, home):
    first = worker(shell("echo one > a.txt; false"), done())
    result = lore.run_sync(first, "Make a.txt", conversation_id="c", run_config=config())
    assert result.final_output == "done" and result.last_agent is first
    second = worker(shell("cat a.txt; ls memories"), done())
    result = lore.run_sync(second, "Look at it", conversation_id="c", run_config=config())
    assert "one" in seen(result).splitlines() and "MEMORY.md" in seen(result)
    lore.close()
    assert [one["line"]["final_output"] for one in told_of(home)] == ["done", "done"]


def test_what_is_recorded_is_what_the_sdk_s_own_runner_would_record(lore, home):
    agent = Agent(name="a", model=scripted(RuntimeError("the model broke")))
    with pytest.raises(RuntimeError, match="the model broke"):
        lore.run_sync(agent, "add", run_config=plain())
    lore.close()
    (event,) = told_of(home)
    assert event["line"]["terminal_metadata"]["terminal_state"] == "failed"
    assert event["line"]["input"] == [{"content": "add", "role": "user"}]


async def test_inside_of_a_running_loop_it_raises_what_the_sdk_raises(lore):
    agent = Agent(name="a", model=scripted(done()))
    told = []
    for runner in (agents.Runner, lore):
        with pytest.raises(RuntimeError) as caught:
            runner.run_sync(agent, "go", run_config=plain())
        told.append(str(caught.value))
    assert told[0] == told[1] and "event loop" in told[0]
    with pytest.raises(errors.Refused):
        lore.close()
    await lore.aclose()


@pytest.mark.parametrize("named", [{"sesion": None}, {"max_turn": 3}])
def test_an_argument_that_the_sdk_does_not_know_is_refused_as_there(lore, named):
    agent = Agent(name="a", model=scripted(done()))
    for runner in (agents.Runner, lore):
        with pytest.raises(TypeError, match=next(iter(named))):
            runner.run_sync(agent, "go", **named)


def test_the_loop_that_the_sdk_keeps_for_the_thread_is_the_same_before_and_after(lore):
    loops = []

    class Seen(agents.RunHooks):
        async def on_agent_start(self, context, agent):
            loops.append(asyncio.get_running_loop())

    for runner in (agents.Runner, lore, agents.Runner):
        agent = Agent(name="a", model=scripted(done()))
        runner.run_sync(agent, "go", hooks=Seen(), run_config=plain())
        lore.close()
    assert len(set(map(id, loops))) == 1 and not loops[0].is_closed()


def test_what_a_run_left_is_handed_over_while_the_program_does_something_else(home, monkeypatch):
    delivered = threading.Event()
    lore = Runlore("acme", memory="support", home=home)
    send = lore.link.backend.send

    async def sent(data, left):
        refused = await send(data, left)
        delivered.set()
        return refused

    monkeypatch.setattr(lore.link.backend, "send", sent)
    lore.run_sync(Agent(name="a", model=scripted(done())), "go", run_config=plain())
    assert delivered.wait(20)
    lore.close()
    assert len(told_of(home)) == 1


def test_a_thread_that_hands_over_ends_with_close_also_while_the_service_is_down(tmp_path):
    told = []
    more = {"home": tmp_path / "home", "deadline_seconds": 0.3, "on_error": told.append}
    lore = Runlore("acme", memory="support", url="http://127.0.0.1:1", **more)
    lore.run_sync(Agent(name="a", model=scripted(done())), "go", run_config=plain())
    lore.close()
    assert not [one for one in threading.enumerate() if one.name == "runlore-delivery"]
    assert any((tmp_path / "home").glob("agents/acme.support/waiting/*/event.json"))
    assert any(isinstance(one, errors.ServiceUnavailable) for one in told)


def test_what_is_put_while_the_thread_is_busy_is_delivered_by_it_too(tmp_path):
    """Whoever begins a delivery relies on it: the thread must not have looked for the last time already."""
    reached, go_on, taken = threading.Event(), threading.Event(), []

    class Backend:
        async def send(self, data, left):
            taken.append(data["run_id"])
            reached.set()
            await asyncio.to_thread(go_on.wait, 20)
            return []

    from runlore.agents import outbox

    box = outbox.Outbox(tmp_path / "box")
    made = delivery.Delivery(Backend(), box, lambda what, exc: taken.append(exc))
    delivery.LOOP_STOPS.set(True)
    try:
        box.put({"run_id": "r1", "attempt": 1, "record": "{}"}, [])
        made.begin()
        assert reached.wait(20)
        box.put({"run_id": "r2", "attempt": 1, "record": "{}"}, [])
        made.begin()
        thread = made._thread
        go_on.set()
        thread.join(20)
    finally:
        delivery.LOOP_STOPS.set(False)
    assert taken == ["r1", "r2"] and box.names() == []


def test_a_run_in_a_tool_s_thread_is_recorded_with_its_parent(lore, home):
    inner = Agent(name="inner", model=scripted(done("deep")))

    @function_tool
    def ask() -> str:
        """Ask somebody."""
        with own_loop():
            return str(agents.Runner.run_sync(inner, "x", run_config=plain()).final_output)

    outer = Agent(name="outer", model=scripted(function_call("ask", {}, call_id="c1"), done()), tools=[ask])
    result = lore.run_sync(outer, "go", run_config=plain())
    assert "deep" in seen(result)
    lore.close()
    found = {one["agents"][0]: one for one in told_of(home)}
    assert found["inner"]["parent_run_id"] == found["outer"]["run_id"] and len(found) == 2


def test_a_sandbox_in_a_tool_s_thread_has_the_seed_of_the_run_around_it(lore):
    lore.run_sync(worker(shell("false"), done()), "Learn", conversation_id="other", run_config=config())
    inner = worker(shell("ls memories"), done(), name="inner")
    told = []

    @function_tool
    def ask() -> str:
        """Ask somebody."""
        with own_loop():
            told.append(seen(lore.run_sync(inner, "x", run_config=config())))
        return "asked"

    outer = Agent(name="outer", model=scripted(function_call("ask", {}, call_id="c1"), done()), tools=[ask])
    assert lore.run_sync(outer, "go", run_config=plain()).final_output == "done"
    assert "MEMORY.md" in told[0]


PROGRAM = """
import concurrent.futures
import sys
import time
from agents import Agent, RunConfig
from agents.testing import ScriptedModel, assistant_message
from runlore.agents import Runlore

with Runlore("acme", memory="support", home=sys.argv[1]) as lore:
    for number in range(3):
        agent = Agent(name="a", model=ScriptedModel([[assistant_message("done")]]))
        lore.run_sync(agent, "go", conversation_id="c", run_config=RunConfig(tracing_disabled=True))
if len(sys.argv) > 2:
    # What it does last holds its end up: until then no executor takes any more.
    concurrent.futures.ThreadPoolExecutor(1).submit(time.sleep, float(sys.argv[2]))
    lore.run_sync(Agent(name="a", model=ScriptedModel([[assistant_message("last")]])), "go",
                  run_config=RunConfig(tracing_disabled=True))
"""


@pytest.mark.process
@pytest.mark.parametrize("more", [[], ["0"], ["1"]], ids=["closed", "not_closed", "held_up"])
def test_a_program_without_a_loop_ends_quietly_and_has_lost_nothing(home, more):
    started = [sys.executable, "-W", "ignore::ResourceWarning", "-c", PROGRAM, str(home), *more]
    ended = subprocess.run(started, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
    Runlore("acme", memory="support", home=home).close()
    outputs = [json.dumps(one["line"]["final_output"]) for one in told_of(home)]
    assert outputs == ['"done"'] * 3 + ['"last"'] * len(more)


def test_several_threads_share_one_object_each_with_a_loop_of_its_own(lore, home):
    found = {}

    def one(number):
        with own_loop():
            for command in (f"echo {number} > n", "cat n"):
                agent = worker(shell(command), done(), name=f"w{number}")
                result = lore.run_sync(agent, "go", conversation_id=f"c{number}", run_config=config())
            found[number] = seen(result).splitlines()

    started = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join(60)
    assert all(str(number) in found[number] for number in range(4)) and len(found) == 4
    lore.close()
    assert len(told_of(home)) == 8
