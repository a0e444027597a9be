"""Two runs at once on one task; a run after them wants what both of them left in their workspaces."""

import asyncio

from agents import RunConfig
from agents.sandbox import SandboxAgent, SandboxRunConfig
from agents.sandbox.capabilities import Filesystem, Shell
from agents.sandbox.sandboxes import UnixLocalSandboxClient
from examples.agents import scripted

from runlore.agents import Runlore

lore = Runlore("examples", memory="shop")

agent = SandboxAgent(
    name="Auditor",
    instructions="Check the order, and note what you find in audit-<order>.txt.",
    model=scripted.model(
        *[scripted.notes_the_order()] * 4,
        scripted.runs("cat audit-*.txt 2> /dev/null || echo Nothing is noted."),
        scripted.tells_the_output(),
    ),
    capabilities=[Shell(), Filesystem()],
)
config = RunConfig(sandbox=SandboxRunConfig(client=UnixLocalSandboxClient()), group_id="audit")
tasks = ["Check order 1001.", "Check order 1002."]


async def main() -> None:
    async with lore.fan_out("audit", n=len(tasks)) as branches:
        runs = (b.run(agent, task, run_config=config) for b, task in zip(branches, tasks, strict=True))
        results = await asyncio.gather(*runs)
    print(*(result.final_output for result in results), sep="\n")
    await lore.merge("audit")
    result = await lore.run(agent, "What is noted?", run_config=config)
    print(result.final_output)


asyncio.run(main())
