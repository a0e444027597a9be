"""Two agents, three turns, one sandbox: each agent has a conversation and a memory of its own, in its own layout."""

import asyncio
import tempfile
from pathlib import Path

from agents import RunConfig, Runner, SQLiteSession
from agents.sandbox import LocalSnapshotSpec, MemoryLayoutConfig, SandboxAgent, SandboxRunConfig
from agents.sandbox.capabilities import Filesystem, Shell
from agents.sandbox.sandboxes import UnixLocalSandboxClient
from agents.sandbox.session import SandboxSession
from examples.agents import scripted

exporting = MemoryLayoutConfig(memories_dir="memories/exporter", sessions_dir="sessions/exporter")
reviewing = MemoryLayoutConfig(memories_dir="memories/reviewer", sessions_dir="sessions/reviewer")
exporter = SandboxAgent(
    name="Exporter",
    instructions="Export order files of the shop.",
    model=scripted.model(
        *scripted.finds_the_delimiter(), *scripted.recalls("--delimiter", memories_dir="memories/exporter")
    ),
    capabilities=[Shell(), Filesystem(), scripted.memory(exporting)],
)
reviewer = SandboxAgent(
    name="Reviewer",
    instructions="Review what was exported.",
    model=scripted.model(
        scripted.says("Both orders are there."),
        *scripted.recalls("all orders", memories_dir="memories/reviewer"),
    ),
    capabilities=[
        Shell(),
        Filesystem(),
        scripted.memory(reviewing, learnt="- Are all orders there? Both are."),
    ],
)
sessions = {"Exporter": SQLiteSession("exports"), "Reviewer": SQLiteSession("reviews")}


async def ask(agent: SandboxAgent, sandbox: SandboxSession, text: str) -> None:
    config = RunConfig(sandbox=SandboxRunConfig(session=sandbox))
    result = await Runner.run(agent, text, session=sessions[agent.name], run_config=config)
    print(f"{agent.name}: {result.final_output}")


async def main() -> None:
    client = UnixLocalSandboxClient()
    with tempfile.TemporaryDirectory() as folder:
        snapshot = LocalSnapshotSpec(base_path=Path(folder))
        async with await client.create(manifest=scripted.shop(), snapshot=snapshot) as first:
            await ask(exporter, first, "Export orders.csv.")
            await ask(reviewer, first, "Are all orders there?")
        await client.delete(first)
        async with await client.resume(first.state) as restored:
            await ask(exporter, restored, "How is orders.csv exported?")
            await ask(reviewer, restored, "What have you been asked?")
        await client.delete(restored)


asyncio.run(main())
