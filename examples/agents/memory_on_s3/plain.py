"""Memory in a bucket: two sandboxes share what was learnt, and no workspace."""

import asyncio

from agents import RunConfig, Runner
from agents.sandbox import SandboxAgent, SandboxRunConfig
from agents.sandbox.capabilities import Filesystem, Shell
from agents.sandbox.sandboxes import UnixLocalSandboxClient
from examples.agents import bucket, scripted

agent = SandboxAgent(
    name="Exporter",
    instructions="Export order files of the shop.",
    model=scripted.model(*scripted.finds_the_delimiter(), *scripted.recalls("--delimiter")),
    capabilities=[Shell(), Filesystem(), scripted.memory()],
)


async def ask(text: str) -> None:
    client = UnixLocalSandboxClient()
    async with await bucket.mounted(client, scripted.shop(), at="memories") as sandbox:
        config = RunConfig(sandbox=SandboxRunConfig(session=sandbox), group_id="orders")
        result = await Runner.run(agent, text, run_config=config)
        print(result.final_output)
    await client.delete(sandbox)


async def main() -> None:
    await ask("Export orders.csv.")
    await ask("How is orders.csv exported?")


asyncio.run(main())
