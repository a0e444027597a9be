"""Agents that read memory in layouts of their own: each finds it where its `Memory()` looks."""

from __future__ import annotations

import pytest

pytest.importorskip("agents", reason="openai-agents is not installed")

from agents.sandbox import MemoryLayoutConfig
from agents.sandbox.capabilities import Filesystem, Memory, Shell
from agents.sandbox.sandboxes import UnixLocalSandboxClient
from agents.testing import function_call

from runlore.agents import Runlore
from sandboxed import config, done, seen, shell, worker

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(?!runlore)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

LOOK = shell("ls memories/*", "look")


def reading(folder, *steps, **more):
    """An agent whose memory lies in a folder of its own."""
    layout = MemoryLayoutConfig(memories_dir=f"memories/{folder}", sessions_dir=f"sessions/{folder}")
    return worker(*steps, name=folder, capabilities=[Shell(), Filesystem(), Memory(layout=layout)], **more)


async def test_a_second_memory_in_a_live_session_leaves_the_first_where_it_is(tmp_path):
    lores = {
        name: Runlore("acme", memory=name, home=tmp_path / "home", deadline_seconds=120)
        for name in ("a", "b")
    }
    for name, lore in lores.items():
        await lore.run(reading(name, shell("false"), done()), "Learn", run_config=config(group_id=name))
    client = UnixLocalSandboxClient()
    session = await client.create(options=None)
    async with session:
        for name, lore in lores.items():
            agent = reading(name, LOOK, done())
            result = await lore.run(agent, "Look", run_config=config(session=session, group_id=name))
    await client.delete(session)
    assert seen(result).count("MEMORY.md") == 2
    for lore in lores.values():
        await lore.aclose()


async def test_an_agent_that_a_run_is_handed_to_finds_memory_in_its_own_layout(tmp_path):
    lore = Runlore("acme", memory="support", home=tmp_path / "home", deadline_seconds=120)
    await lore.run(reading("a", shell("false"), done()), "Learn", run_config=config(group_id="g"))
    second = reading("b", shell("ls memories/b", "look-b"), done())
    first = reading("a", LOOK, function_call("transfer_to_b", {}, call_id="over"), handoffs=[second])
    result = await lore.run(first, "Look", run_config=config(group_id="g"))
    assert result.last_agent is second
    looks = [one.output for one in result.new_items if one.type == "tool_call_output_item"]
    assert ["MEMORY.md" in str(one) for one in (looks[0], looks[-1])] == [True, True]
    await lore.aclose()
