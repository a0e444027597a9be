"""A sandbox is closed, its state is saved as JSON, and a later run goes on where the workspace was left."""

import asyncio
import json
import tempfile
from pathlib import Path

from agents import RunConfig, Runner
from agents.sandbox import LocalSnapshotSpec, SandboxAgent, SandboxRunConfig
from agents.sandbox.capabilities import Filesystem, Shell
from agents.sandbox.sandboxes import UnixLocalSandboxClient
from examples.agents import scripted

agent = SandboxAgent(
    name="Exporter",
    instructions="Export order files of the shop.",
    model=scripted.model(
        *scripted.finds_the_delimiter(),
        *scripted.recalls("--delimiter"),
        scripted.runs("cat shop/orders.json"),
        scripted.tells_the_output(),
    ),
    capabilities=[Shell(), Filesystem(), scripted.memory()],
)


async def ask(sandbox: SandboxRunConfig, text: str) -> None:
    result = await Runner.run(agent, text, run_config=RunConfig(sandbox=sandbox, group_id="orders"))
    print(result.final_output)


async def main() -> None:
    client = UnixLocalSandboxClient()
    with tempfile.TemporaryDirectory() as folder:
        snapshot = LocalSnapshotSpec(base_path=Path(folder))
        async with await client.create(manifest=scripted.shop(), snapshot=snapshot) as session:
            await ask(SandboxRunConfig(session=session), "Export orders.csv.")
        saved = json.dumps(client.serialize_session_state(session.state))
        await client.delete(session)

        state = client.deserialize_session_state(json.loads(saved))
        await ask(SandboxRunConfig(client=client, session_state=state), "How is orders.csv exported?")
        await ask(SandboxRunConfig(client=client, session_state=state), "What was exported?")


asyncio.run(main())
