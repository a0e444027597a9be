"""What the examples have in common: their models, and the folder they work on.

The models are scripted, so an example runs offline, costs nothing and says the same each time. Only what a model
says is scripted: its commands run in a real sandbox. With OPENAI_API_KEY set, a real model is asked instead.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import uuid
from pathlib import Path
from typing import Any

from agents import set_tracing_disabled
from agents.sandbox import Manifest, MemoryGenerateConfig, MemoryLayoutConfig
from agents.sandbox.capabilities import Memory
from agents.sandbox.entries import LocalDir
from agents.testing import ModelCall, ScriptedModel, assistant_message, function_call

LIVE = "OPENAI_API_KEY" in os.environ
EXPORT = "cd shop && python3 export.py orders.csv"
LEARNT = f"- `{EXPORT}` needs --delimiter ';'"
NOTHING = "Nothing is remembered."

if not LIVE:
    set_tracing_disabled(True)  # the SDK would send traces


def shop() -> Manifest:
    """A workspace with a small project in it, whose export needs an option that nobody tells the agents."""
    return Manifest(entries={"shop": LocalDir(src=Path(__file__).parent / "shop")})


def model(*steps: Any) -> ScriptedModel | None:
    """A model that takes these steps, whatever it is asked; None, the SDK's default model, with a key."""
    return None if LIVE else ScriptedModel(steps)


def says(text: str) -> list[Any]:
    return [assistant_message(text)]


def calls(tool: str, **arguments: Any) -> list[Any]:
    return [function_call(tool, arguments, call_id=f"call_{uuid.uuid4().hex}")]


def runs(command: str) -> list[Any]:
    """Run a command in the sandbox."""
    return calls("exec_command", cmd=command)


def finds_the_delimiter() -> list[Any]:
    """What a run learns: the export fails, and works with an option."""
    return [runs(EXPORT), runs(f"{EXPORT} --delimiter ';' | tee orders.json"), says("Exported 2 orders.")]


def tells_the_output() -> Any:
    """Say what the last tool answered; of a command, what it printed."""

    def answer(call: ModelCall) -> list[Any]:
        printed = [item["output"] for item in call.input if item.get("type") == "function_call_output"][-1]
        return says(printed.rpartition("Output:\n")[2].strip())

    return {"responder": answer}


def notes_the_order() -> Any:
    """Write the order of the request into a file of its own, then say so. For models that several runs share."""

    def answer(call: ModelCall) -> list[Any]:
        (order,) = re.findall(r"order (\d+)", call.input[0]["content"])
        if len(call.input) == 1:
            return runs(f"echo {order} is paid > audit-{order}.txt")
        return says(f"Order {order} is noted.")

    return {"responder": answer}


def recalls(word: str, *, memories_dir: str = "memories") -> list[Any]:
    """Look `word` up in memory, as the SDK's instructions say, and tell what was found."""
    found = f"grep -hs -e {shlex.quote(word)} {memories_dir}/MEMORY.md | tail -1"
    return [runs(f'told="$({found})"; echo "${{told:-{NOTHING}}}"'), tells_the_output()]


def memory(layout: MemoryLayoutConfig | None = None, *, learnt: str = LEARNT) -> Memory:
    """The SDK's own `Memory`; offline, the two models that it asks when a sandbox closes are scripted too."""
    layout = layout or MemoryLayoutConfig()
    if LIVE:
        return Memory(layout=layout)
    extracted = {"rollout_slug": "export", "rollout_summary": learnt, "raw_memory": learnt}
    write = f"echo {shlex.quote(learnt)} | tee {layout.memories_dir}/memory_summary.md {layout.memories_dir}/MEMORY.md"
    rounds = 8  # as many sandboxes as an example may close
    generate = MemoryGenerateConfig(
        phase_one_model=ScriptedModel([says(json.dumps(extracted))] * rounds),
        phase_two_model=ScriptedModel([runs(write), says("Consolidated.")] * rounds),
    )
    return Memory(layout=layout, generate=generate)
