"""A sandbox agent does the work and hands over to a plain agent. Does the next run know what was learnt?"""

import asyncio
import tempfile
from pathlib import Path

from agents import Agent, RunConfig
from agents.sandbox import LocalSnapshotSpec, SandboxAgent, SandboxRunConfig
from agents.sandbox.capabilities import Filesystem, Shell
from agents.sandbox.sandboxes import UnixLocalSandboxClient
from agents.sandbox.session import SandboxSession
from examples.agents import scripted

from runlore.agents import Runlore

writer = Agent(
    name="Writer",
    instructions="Tell the customer, in one sentence.",
    model=scripted.model(scripted.says("Your two orders are exported.")),
)
lore = Runlore("examples", memory="shop")
exporter = SandboxAgent(
    name="Exporter",
    instructions="Export order files of the shop, then hand over to the writer.",
    handoffs=[writer],
    model=scripted.model(
        *scripted.finds_the_delimiter()[:-1],
        scripted.calls("transfer_to_writer"),
        *scripted.recalls("--delimiter"),
    ),
    capabilities=[Shell(), Filesystem(), scripted.memory()],
)


async def ask(sandbox: SandboxSession, text: str) -> None:
    config = RunConfig(sandbox=SandboxRunConfig(session=sandbox), group_id="orders")
    result = await lore.run(exporter, text, run_config=config)
    print(f"{result.last_agent.name}: {result.final_output}")


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
