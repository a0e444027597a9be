"""Workspaces of the SDK's sandboxes: what becomes a line's next version, and what must not.

The two rules with a mutant each: a tar is accepted only of a session that started, and a version is replaced only by
who began from it.
"""

from __future__ import annotations

import json
import shutil

import pytest

agents = pytest.importorskip("agents", reason="openai-agents is not installed")

from agents import RunState, function_tool  # noqa: E402
from agents.sandbox import LocalSnapshotSpec, Manifest  # noqa: E402
from agents.sandbox.entries import File  # noqa: E402
from agents.sandbox.sandboxes import UnixLocalSandboxClient  # noqa: E402
from agents.testing import function_call  # noqa: E402

from runlore import wiring  # noqa: E402
from runlore.agents import Runlore, runs  # noqa: E402
from runlore.commit import lines  # noqa: E402
from runlore.settings import Settings  # noqa: E402
from sandboxed import config, done, events, seen, shell, worker  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(?!runlore)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@function_tool(needs_approval=True)
def pay(cents: int) -> str:
    """Pay."""
    return "paid"


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def told():
    return []


@pytest.fixture
def lore(home, told):
    return Runlore("acme", memory="support", home=home, on_error=told.append)


async def head(home, rollout="c", agent=None):
    async with wiring.open_home(Settings(home=home)) as opened:
        return (await lines.read(opened.store, lines.line_of("acme", rollout, agent))).body


class Failing(UnixLocalSandboxClient):
    """A client whose sessions fail in the midst of their start, after the workspace was cleared."""

    async def create(self, **named):
        session = await super().create(**named)
        inner = session._inner

        async def fail(*args, **more):
            raise OSError("the backend broke")

        inner.hydrate_workspace = inner._apply_manifest = fail
        return session


async def failed_start_leaves_nothing(lore, home):
    await lore.run(worker(shell("echo 1 > a"), done()), "go", conversation_id="c", run_config=config())
    with pytest.raises(Exception, match="the backend broke"):
        await lore.run(worker(done()), "go", conversation_id="c", run_config=config(client=Failing()))
    await lore.aclose()
    body = await head(home)
    assert body["version"] == 1 and not body.get("branches"), body
    result = await lore.run(worker(shell("cat a"), done()), "go", conversation_id="c", run_config=config())
    assert "1" in seen(result).splitlines()


async def test_a_session_whose_start_failed_leaves_no_workspace(lore, home):
    await failed_start_leaves_nothing(lore, home)


async def test_mutant_a_tar_accepted_without_a_start_is_caught(lore, home, monkeypatch):
    def take(self):
        self.taken = self.path.exists()

    monkeypatch.setattr(runs.Space, "take", take)
    with pytest.raises(AssertionError):
        await failed_start_leaves_nothing(lore, home)


async def unseen_base_is_a_branch(lore, home):
    await lore.run(worker(shell("echo 1 > a"), done()), "go", conversation_id="c", run_config=config())
    await lore.aclose()
    before = await head(home)
    packs = home / "store" / "acme" / "snapshots"
    shutil.move(packs, home / "aside")
    await lore.run(worker(shell("echo 2 > a"), done()), "go", conversation_id="c", run_config=config())
    shutil.copytree(home / "aside", packs, dirs_exist_ok=True)
    await lore.aclose()
    after = await head(home)
    assert after["ref"] == before["ref"] and len(after["branches"]) == 1, after


async def test_a_version_that_could_not_be_fetched_is_not_replaced(lore, home, told):
    await unseen_base_is_a_branch(lore, home)
    assert told


async def test_mutant_a_base_that_was_not_seen_is_caught(lore, home, monkeypatch):
    fill = runs.Run.fill

    async def filled(self, space, found):
        await fill(self, space, found)
        space.base = found.base

    monkeypatch.setattr(runs.Run, "fill", filled)
    with pytest.raises(AssertionError):
        await unseen_base_is_a_branch(lore, home)


async def test_two_runs_at_once_in_one_rollout_lose_neither_workspace(lore, home):
    import asyncio

    await lore.run(worker(shell("echo 0 > a"), done()), "go", conversation_id="c", run_config=config())
    await asyncio.gather(
        *(
            lore.run(
                worker(shell(f"echo {n} > f{n}"), done()), "go", conversation_id="c", run_config=config()
            )
            for n in range(2)
        )
    )
    await lore.aclose()
    body = await head(home)
    assert len(body["branches"]) == 1


async def test_a_saved_run_state_is_resumed_by_a_program_without_runlore(lore, home):
    agent = worker(shell("echo 1 > a"), function_call("pay", {"cents": 5}, call_id="p"), tools=[pay])
    result = await lore.run(agent, "pay", run_config=config())
    saved = json.dumps(result.to_state().to_json())
    assert json.loads(saved)["sandbox"]["session_state"]["snapshot"]["type"] == "local"
    again = worker(shell("cat a", "c3"), done("paid"), tools=[pay], capabilities=plain_parts())
    state = await RunState.from_json(again, json.loads(saved))
    state.approve(state.get_interruptions()[0])
    result = await agents.Runner.run(again, state, run_config=config())
    assert "1" in seen(result).splitlines()


def plain_parts():
    from agents.sandbox.capabilities import Filesystem, Shell

    return [Shell(), Filesystem()]


async def test_a_run_state_whose_snapshot_file_is_gone_gets_the_line_s_version(lore, home):
    agent = worker(shell("echo 1 > a"), function_call("pay", {"cents": 5}, call_id="p"), tools=[pay])
    result = await lore.run(agent, "pay", conversation_id="c", run_config=config())
    saved = result.to_state().to_json()
    for tar in (home / "agents" / "acme.support" / "sessions").iterdir():
        tar.unlink()
    again = worker(shell("cat a", "c3"), done("paid"), tools=[pay])
    state = await RunState.from_json(again, saved)
    state.approve(state.get_interruptions()[0])
    result = await lore.run(again, state, conversation_id="c", run_config=config())
    assert "1" in seen(result).splitlines()


async def test_a_resumed_run_whose_line_moved_meanwhile_becomes_a_branch(lore, home):
    agent = worker(shell("echo 1 > a"), function_call("pay", {"cents": 5}, call_id="p"), tools=[pay])
    result = await lore.run(agent, "pay", conversation_id="c", run_config=config())
    state = result.to_state()
    state.approve(state.get_interruptions()[0])
    await lore.run(worker(shell("echo 2 > a"), done()), "go", conversation_id="c", run_config=config())
    again = worker(done("paid"), tools=[pay])
    state = await RunState.from_json(again, state.to_json())
    await lore.run(again, state, conversation_id="c", run_config=config())
    await lore.aclose()
    body = await head(home)
    assert body["version"] == 2 and len(body["branches"]) == 1


async def test_a_session_state_of_an_earlier_run_goes_on_in_its_line(lore, home):
    client = UnixLocalSandboxClient()
    agent = worker(shell("echo 1 > a"), function_call("pay", {"cents": 5}, call_id="p"), tools=[pay])
    result = await lore.run(agent, "pay", conversation_id="c", run_config=config(client=client))
    saved = result.to_state().to_json()["sandbox"]["session_state"]
    for number in (2, 3):
        state = client.deserialize_session_state(json.loads(json.dumps(saved)))
        agent = worker(shell(f"cat a; echo {number} > a"), done())
        cfg = config(client=client, session_state=state)
        result = await lore.run(agent, "go", conversation_id="c", run_config=cfg)
        assert str(number - 1) in seen(result).splitlines()
    await lore.aclose()
    body = await head(home)
    assert body["version"] == 3 and not body.get("branches")


async def test_a_snapshot_of_the_program_s_own_is_left_to_it(lore, home, tmp_path, caplog):
    for number in range(2):
        own = LocalSnapshotSpec(base_path=tmp_path / "own")
        agent = worker(shell("ls"), done())
        await lore.run(agent, "go", conversation_id="c", run_config=config(snapshot=own))
        assert len(list((tmp_path / "own").iterdir())) == number + 1
    await lore.aclose()
    assert not (await head(home)).get("ref")
    assert sum("of its own" in line.message for line in caplog.records) == 1


async def test_a_changed_manifest_arrives_in_a_restored_workspace(lore, home):
    def given(text, extra=None):
        entries = {"in.txt": File(content=text.encode()), "kept.txt": File(content=b"same")}
        return Manifest(entries={**entries, **(extra or {})})

    first = worker(shell("cat in.txt; echo own > kept.txt; echo o > out"), done())
    await lore.run(first, "go", conversation_id="c", run_config=config(manifest=given("v1")))
    second = worker(shell("cat in.txt kept.txt out new"), done())
    cfg = config(manifest=given("v2\n", {"new": File(content=b"n\n")}))
    result = await lore.run(second, "go", conversation_id="c", run_config=cfg)
    said = seen(result).splitlines()
    assert {"v2", "o", "n"} <= set(said)
    # What the program did not change, the agent's own edit of it stands.
    assert "own" in said


async def test_an_agent_without_memory_keeps_folders_that_are_called_like_memory_s(lore):
    first = worker(
        shell("mkdir sessions memories; echo s > sessions/s; echo m > memories/m; false"),
        done(),
        capabilities=plain_parts(),
    )
    await lore.run(first, "go", conversation_id="c", run_config=config())
    second = worker(
        shell("cat sessions/s memories/m; ls .runlore/memories"), done(), capabilities=plain_parts()
    )
    result = await lore.run(second, "go", conversation_id="c", run_config=config())
    said = seen(result).splitlines()
    assert {"s", "m", "MEMORY.md"} <= set(said)


async def test_a_nested_sandbox_run_is_recorded_and_moves_no_line(lore, home):
    inner = worker(shell("echo i > inner"), done("inner"), name="inner")
    outer = worker(
        function_call("ask", {"input": "x"}, call_id="t"),
        shell("echo o > outer", "c2"),
        done(),
        name="outer",
        tools=[inner.as_tool("ask", "Ask.")],
    )
    await lore.run(outer, "go", conversation_id="c", run_config=config())
    result = await lore.run(worker(shell("ls"), done()), "go", conversation_id="c", run_config=config())
    assert "outer" in seen(result).splitlines() and "inner" not in seen(result).splitlines()
    await lore.aclose()
    found = {one["agents"][0]: one for one in await events(home)}
    assert found["inner"]["workspaces"] == [] and found["inner"]["parent_run_id"]
