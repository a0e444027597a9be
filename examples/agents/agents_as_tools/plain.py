"""A plain agent asks a sandbox agent as a tool; what that one found out is wanted again in the next conversation."""

import asyncio

from agents import Agent, RunConfig, Runner
from agents.sandbox import SandboxAgent, SandboxRunConfig
from agents.sandbox.capabilities import Filesystem, Shell
from agents.sandbox.sandboxes import UnixLocalSandboxClient
from examples.agents import scripted

exporter = SandboxAgent(
    name="Exporter",
    instructions="Export order files of the shop.",
    default_manifest=scripted.shop(),
    model=scripted.model(*scripted.finds_the_delimiter(), *scripted.recalls("--delimiter")),
    capabilities=[Shell(), Filesystem(), scripted.memory()],
)
config = RunConfig(sandbox=SandboxRunConfig(client=UnixLocalSandboxClient()), group_id="orders")
desk = Agent(
    name="Desk",
    instructions="Answer questions about orders; the exporter works on files.",
    tools=[exporter.as_tool(tool_name="export", tool_description="Export an order file.", run_config=config)],
    model=scripted.model(
        scripted.calls("export", input="Export orders.csv."),
        scripted.tells_the_output(),
        scripted.calls("export", input="How is orders.csv exported?"),
        scripted.tells_the_output(),
    ),
)


async def main() -> None:
    for text in ("I need my orders as JSON.", "How did you do that?"):
        result = await Runner.run(desk, text)
        print(result.final_output)


asyncio.run(main())
