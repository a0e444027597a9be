"""A run that waits for an approval is saved as JSON, and goes on later in its own workspace."""

import asyncio
import tempfile
from pathlib import Path

from agents import RunConfig, RunState, function_tool
from agents.sandbox import LocalSnapshotSpec, SandboxAgent, SandboxRunConfig
from agents.sandbox.capabilities import Filesystem, Shell
from agents.sandbox.sandboxes import UnixLocalSandboxClient
from examples.agents import scripted

from runlore.agents import Runlore


@function_tool(needs_approval=True)
def refund(order: int) -> str:
    """Pay the money back."""
    return f"order {order} is refunded"


lore = Runlore("examples", memory="shop")
agent = SandboxAgent(
    name="Refunds",
    instructions="Note each refund in refunds.txt.",
    model=scripted.model(
        scripted.runs("echo 1002 >> refunds.txt"),
        scripted.calls("refund", order=1002),
        scripted.runs("cat refunds.txt"),
        scripted.tells_the_output(),
    ),
    tools=[refund],
    capabilities=[Shell(), Filesystem(), scripted.memory()],
)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        snapshot = LocalSnapshotSpec(base_path=Path(folder))
        sandbox = SandboxRunConfig(client=UnixLocalSandboxClient(), snapshot=snapshot)
        config = RunConfig(sandbox=sandbox, group_id="refund-1002")
        result = await lore.run(agent, "Refund order 1002.", run_config=config)
        waiting = result.interruptions[0]
        print(f"waits for: {waiting.name} {waiting.arguments}")
        saved = result.to_state().to_string()

        state = await RunState.from_string(agent, saved)
        state.approve(state.get_interruptions()[0])
        result = await lore.run(agent, state, run_config=config)
        print(f"refunds.txt: {result.final_output}")


asyncio.run(main())
