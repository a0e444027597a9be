"""Memory across a snapshot: the second run, in a sandbox restored from the first, knows what the first found out."""

import asyncio
import tempfile
from pathlib import Path

from agents import RunConfig, Runner
from agents.sandbox import LocalSnapshotSpec, SandboxAgent, SandboxRunConfig
from agents.sandbox.capabilities import Filesystem, Shell
from agents.sandbox.sandboxes import UnixLocalSandboxClient
from agents.sandbox.session import SandboxSession
from examples.agents import scripted

agent = SandboxAgent(
    name="Exporter",
    instructions="Export order files of the shop.",
    model=scripted.model(*scripted.finds_the_delimiter(), *scripted.recalls("--delimiter")),
    capabilities=[Shell(), Filesystem(), scripted.memory()],
)


async def ask(sandbox: SandboxSession, text: str) -> None:
    config = RunConfig(sandbox=SandboxRunConfig(session=sandbox), group_id="orders")
    result = await Runner.run(agent, text, run_config=config)
    print(result.final_output)


async def main() -> None:
    client = UnixLocalSandboxClient()
    with tempfile.TemporaryDirectory() as folder:
        snapshot = LocalSnapshotSpec(base_path=Path(folder))
        async with await client.create(manifest=scripted.shop(), snapshot=snapshot) as first:
            await ask(first, "Export orders.csv.")
        await client.delete(first)
        async with await client.resume(first.state) as restored:
            await ask(restored, "How is orders.csv exported?")
        await client.delete(restored)


asyncio.run(main())
