"""What the three lines of `runlore.agents` add to a run's wall time, against the SDK's own `Memory()` and snapshot.

The same agent, sandbox (UnixLocal) and scripted model: *bare* (no memory, no snapshot), *sdk* (its `Memory()`, which
generates at the end of the run, and its own snapshot), *home* (the three lines with a home on this machine, which works
off earlier runs before a seed) and *service* (the three lines with the address of a `runlore serve --up`). The models
answer at once, which flatters the SDK: a run of its own waits for two more model phases, ours for none.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lookup

WAYS = ("bare", "sdk", "home", "service")
FILES = 200
PHASE_ONE = json.dumps(
    {
        "rollout_slug": "mended",
        "rollout_summary": "# Mended\nIt works now.",
        "raw_memory": "---\ntask: a\n---\n",
    }
)


class Way:
    """One way of running, with its own conversation that goes on from run to run."""

    def __init__(self, name: str, folder: Path, url: str) -> None:
        from runlore.agents import Runlore

        self.name, self.number, self.snapshots = name, 0, folder / "snapshots"
        self.lore = None
        if name in ("home", "service"):
            more = {"url": url} if name == "service" else {}
            self.lore = Runlore("bench", memory="code", home=folder / "home", on_error=self._failed, **more)

    def _failed(self, exc: BaseException) -> None:
        raise SystemExit(f"{self.name}: {exc!r}")

    def _agent(self) -> Any:
        from agents.sandbox import SandboxAgent
        from agents.sandbox.capabilities import Filesystem, Memory, Shell
        from agents.sandbox.config import MemoryGenerateConfig
        from agents.testing import ScriptedModel, assistant_message, function_call

        self.number += 1
        make = f"mkdir -p d && for i in $(seq {FILES}); do echo $i-{self.number} > d/$i; done; false"
        steps = [
            [function_call("exec_command", {"cmd": make if self.number == 1 else "false"}, call_id="c1")],
            [function_call("exec_command", {"cmd": f"echo {self.number} > a"}, call_id="c2")],
            [assistant_message("done")],
        ]
        more: list[Any] = []
        if self.name == "sdk":
            # Each phase asks once, and its model has nothing to think about.
            first = ScriptedModel([[assistant_message(PHASE_ONE)]])
            second = ScriptedModel([[assistant_message("done")]])
            more = [Memory(generate=MemoryGenerateConfig(phase_one_model=first, phase_two_model=second))]
        elif self.lore is not None:
            more = [Memory(generate=None)]
        return SandboxAgent(
            name="worker",
            instructions="Work.",
            model=ScriptedModel(steps),
            capabilities=[Shell(), Filesystem(), *more],
        )

    def _config(self) -> Any:
        from agents import RunConfig
        from agents.sandbox import SandboxRunConfig
        from agents.sandbox.sandboxes import UnixLocalSandboxClient
        from agents.sandbox.snapshot import LocalSnapshot, NoopSnapshot

        more: dict[str, Any] = {}
        if self.name == "sdk":
            more = {"snapshot": LocalSnapshot(id="conversation", base_path=self.snapshots)}
        elif self.name == "bare":
            more = {"snapshot": NoopSnapshot(id="none")}
        return RunConfig(
            tracing_disabled=True, sandbox=SandboxRunConfig(client=UnixLocalSandboxClient(), **more)
        )

    async def run(self) -> dict[str, Any]:
        """One run; the seconds until its result is there."""
        from agents import Runner, SQLiteSession

        # In the SDK's memory alone: its id names the rollout, and each run begins with an empty history.
        agent, config = self._agent(), self._config()
        runner = self.lore or Runner
        gc.collect()
        began = time.perf_counter()
        await runner.run(agent, "Mend it", run_config=config, session=SQLiteSession("conversation"))
        return {"seconds": time.perf_counter() - began}

    async def close(self) -> None:
        if self.lore is not None:
            await self.lore.aclose()


def measure_run(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    serve = ["-m", "runlore.cli.main", "serve", "--up", "--home", str(work / "served"), "--port", "0"]
    try:
        with lookup.server(serve, work) as service:
            return asyncio.run(_measure(options, work, f"http://127.0.0.1:{service.port}"))
    finally:
        logging.disable(logging.NOTSET)


async def _measure(options: argparse.Namespace, work: Path, url: str) -> dict[str, Any]:
    ways = []
    for name in WAYS:
        (work / name).mkdir()
        ways.append(Way(name, work / name, url))
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    for number in range(options.runs + 1):
        turn = number % len(ways)
        for way in [*ways[turn:], *ways[:turn]]:
            took = await way.run()
            if number:  # The first makes the workspace, and imports.
                found[way.name].append(took)
            await asyncio.sleep(options.think_seconds)
    for way in ways:
        await way.close()
    assert list((work / "sdk" / "snapshots").iterdir()), "the SDK wrote no snapshot"
    return {"rounds": found}


def tell_run(found: dict[str, Any], options: argparse.Namespace) -> None:
    print(
        f"\nrun: {options.runs} runs of one conversation, {FILES} files in its workspace, models answer at once"
    )
    rows = found["rounds"]
    for name in WAYS:
        one = rows[name]
        more = lookup.median(
            [{"s": a["seconds"] - b["seconds"]} for a, b in zip(one, rows["bare"], strict=True)], "s"
        )
        told = f"{lookup.median(one, 'seconds') * 1000:7.0f} ms   adds {more * 1000:6.0f} ms"
        print(f"    {name:<8} {told}   {lookup.ratio(one, rows['sdk'], 'seconds'):.2f}x of the SDK's own")
