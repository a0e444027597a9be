"""A snapshot kept elsewhere: the program wires its own client to `RemoteSnapshot`; the next run goes on from it."""

import asyncio

from agents import RunConfig
from agents.sandbox import RemoteSnapshot, SandboxAgent, SandboxRunConfig
from agents.sandbox.capabilities import Filesystem, Shell
from agents.sandbox.sandboxes import UnixLocalSandboxClient
from agents.sandbox.session import Dependencies
from examples.agents import scripted

from runlore.agents import Runlore, snapshots

lore = Runlore("examples", memory="shop")

agent = SandboxAgent(
    name="Writer",
    instructions="Keep report.md up to date.",
    model=scripted.model(
        scripted.runs("echo '2 orders exported' > report.md"),
        scripted.says("Written."),
        scripted.runs("cat report.md"),
        scripted.tells_the_output(),
    ),
    capabilities=[Shell(), Filesystem()],
)


async def main() -> None:
    kept = Dependencies().bind_factory("snapshots", snapshots.of(lore))
    client = UnixLocalSandboxClient(dependencies=kept)
    snapshot = RemoteSnapshot(id="reports", client_dependency_key="snapshots")
    config = RunConfig(sandbox=SandboxRunConfig(client=client, snapshot=snapshot), group_id="reports")
    for text in ("Write the report.", "What does the report say?"):
        result = await lore.run(agent, text, run_config=config)
        print(result.final_output)


asyncio.run(main())
