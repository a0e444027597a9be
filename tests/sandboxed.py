"""What tests of `runlore.agents` share: the real SDK with its scripted model on UnixLocal, and a look at what came."""

from __future__ import annotations

import asyncio
import json

from agents import RunConfig
from agents.sandbox import SandboxAgent, SandboxRunConfig
from agents.sandbox.capabilities import Filesystem, Memory, Shell
from agents.sandbox.sandboxes import UnixLocalSandboxClient
from agents.testing import ScriptedModel, assistant_message, function_call

from runlore import wiring
from runlore.settings import Settings


def config(**more):
    """A run's configuration with a sandbox; `group_id` is the run's, the rest the sandbox's."""
    group = {"group_id": more.pop("group_id")} if "group_id" in more else {}
    more.setdefault("client", UnixLocalSandboxClient())
    return RunConfig(tracing_disabled=True, sandbox=SandboxRunConfig(**more), **group)


def plain(**more):
    return RunConfig(tracing_disabled=True, **more)


def shell(command, call_id="c1"):
    return function_call("exec_command", {"cmd": command}, call_id=call_id)


def scripted(*steps):
    return ScriptedModel([one if isinstance(one, list | Exception) else [one] for one in steps])


def worker(*steps, name="worker", **more):
    """A sandbox agent that does what it is told, and reads memory."""
    more.setdefault("capabilities", [Shell(), Filesystem(), Memory()])
    return SandboxAgent(name=name, instructions="Work.", model=scripted(*steps), **more)


def done(text="done"):
    return assistant_message(text)


def seen(result):
    """The outputs of a result's tools, as one text."""
    return "\n".join(str(one.output) for one in result.new_items if one.type == "tool_call_output_item")


async def events(home):
    """The data of every event that a home was given, each once, by the time of its record."""
    async with wiring.open_home(Settings(home=home)) as opened:
        read = [json.loads(message.value) async for message in opened.bus.read("runs")]
    # Handed over at least once: a second time changes nothing.
    each = {(one["run_id"], one["attempt"]): one for one in read}.values()
    found = sorted(each, key=lambda one: json.loads(one["record"])["updated_at"])
    for one in found:
        one["line"] = json.loads(one["record"])
    return found


async def until(check):
    """Wait for a condition that another task brings about."""
    while not check():  # noqa: ASYNC110  (it is somebody else's state)
        await asyncio.sleep(0.01)
