"""Two runs at once on one task; a run after them wants what both of them left in their workspaces."""

import asyncio

from agents import RunConfig, Runner
from agents.sandbox import SandboxAgent, SandboxRunConfig
from agents.sandbox.capabilities import Filesystem, Shell
from agents.sandbox.sandboxes import UnixLocalSandboxClient
from examples.agents import scripted

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
    runs = (Runner.run(agent.clone(), task, run_config=config) for task in tasks)
    results = await asyncio.gather(*runs)
    print(*(result.final_output for result in results), sep="\n")
    result = await Runner.run(agent, "What is noted?", run_config=config)
    print(result.final_output)


asyncio.run(main())
