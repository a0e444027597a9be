"""`Runlore` with the real SDK, its scripted model and UnixLocal: what the next run finds, and what is kept of each.

Everything is embedded: a home in a folder, no server. Faults of a server are in `test_agents_remote.py`.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

agents = pytest.importorskip("agents", reason="openai-agents is not installed")

from agents import RunConfig  # noqa: E402
from agents.sandbox import SandboxAgent, SandboxRunConfig  # noqa: E402
from agents.sandbox.capabilities import Filesystem, Memory, Shell  # noqa: E402
from agents.sandbox.sandboxes import UnixLocalSandboxClient  # noqa: E402
from agents.testing import ScriptedModel, assistant_message, function_call  # noqa: E402

from runlore.agents import Runlore  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(?!runlore)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def lore(tmp_path):
    return Runlore("acme", memory="support", home=tmp_path / "home", on_error=None)


def config(**more):
    return RunConfig(tracing_disabled=True, sandbox=SandboxRunConfig(client=UnixLocalSandboxClient(), **more))


def shell(command, call_id="c1"):
    return function_call("exec_command", {"cmd": command}, call_id=call_id)


def worker(*steps, name="worker", **more):
    model = ScriptedModel([step if isinstance(step, list) else [step] for step in steps])
    more.setdefault("capabilities", [Shell(), Filesystem(), Memory()])
    return SandboxAgent(name=name, instructions="Work.", model=model, **more)


def outputs(result):
    return [item.output for item in result.new_items if item.type == "tool_call_output_item"]


async def test_the_second_run_finds_memory_and_the_workspace_of_the_first(lore):
    first = worker(shell("echo one > a.txt; false"), shell("ls", "c2"), assistant_message("done"))
    result = await lore.run(first, "Make a.txt", conversation_id="conv-1", run_config=config())
    assert result.final_output == "done" and result.last_agent is first
    second = worker(shell("cat a.txt; ls memories"), assistant_message("seen"))
    result = await lore.run(second, "Look at it", conversation_id="conv-1", run_config=config())
    seen = "".join(map(str, outputs(result)))
    assert "one" in seen and "MEMORY.md" in seen and "memory_summary.md" in seen, seen
    seeded = await lore.seed(conversation_id="conv-1")
    assert seeded.revision == 2
    await lore.aclose()
