"""The record that `runlore.agents` makes against the line that the SDK itself writes in the same run.

The SDK writes its line into the workspace before it stops; a client that keeps the file before the workspace is
deleted shows it. Where the SDK changes its line, one of these fails.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pydantic
import pytest

pytest.importorskip("agents", reason="openai-agents is not installed")

from agents import SQLiteSession, function_tool
from agents.sandbox.sandboxes import UnixLocalSandboxClient
from agents.testing import assistant_message, function_call

from runlore.agents import Runlore
from sandboxed import config, done, events, shell, worker

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(?!runlore)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


class Keeping(UnixLocalSandboxClient):
    """Keeps the SDK's own lines of a session before its workspace goes."""

    def __init__(self):
        super().__init__()
        self.lines = []

    async def delete(self, session):
        for path in sorted(Path(session.state.manifest.root).glob("sessions/*.jsonl")):  # noqa: ASYNC240
            self.lines += path.read_text("ascii").splitlines(keepends=True)
        return await super().delete(session)


@function_tool(needs_approval=True)
def pay(cents: int) -> str:
    """Pay."""
    return "paid"


class Answer(pydantic.BaseModel):
    number: int
    why: list[str]


def elsewhere(tmp_path):
    """Another home, for the run before: with it the SDK calls no model of its own."""
    return Runlore("acme", memory="support", home=tmp_path / "elsewhere")


async def both(tmp_path, agent, input="Do it", **named):
    """One run: (the SDK's line, ours)."""
    client = Keeping()
    lore = Runlore("acme", memory="support", home=tmp_path / "home")
    named.setdefault("conversation_id", "conv-1")
    with contextlib.suppress(Exception):
        await lore.run(agent, input, run_config=config(client=client), **named)
    await lore.aclose()
    (event,) = await events(tmp_path / "home")
    return client.lines[-1], event["record"]


def same(theirs, ours):
    """Both lines byte for byte, but for the time."""
    at = json.loads(theirs)["updated_at"], json.loads(ours)["updated_at"]
    assert theirs.replace(at[0], "T") == ours.replace(at[1], "T")


CASES = {
    "completed": lambda: worker([assistant_message("Café \u2028 😀"), shell("echo hi")], done("Ende")),
    "failed_tool": lambda: worker(shell("exit 3"), shell("echo ok", "c2"), done()),
    "interrupted": lambda: worker(function_call("pay", {"cents": 5}, call_id="p"), tools=[pay]),
    "model_error": lambda: worker(shell("echo hi"), RuntimeError("broke é")),
    "structured": lambda: worker(done('{"number": 1, "why": ["a"]}'), output_type=Answer),
}


@pytest.mark.parametrize("case", CASES)
async def test_the_record_is_the_sdk_s_own_line(tmp_path, case):
    same(*await both(tmp_path, CASES[case]()))


async def test_a_run_out_of_turns_has_the_sdk_s_own_line(tmp_path):
    agent = worker(shell("echo 1"), shell("echo 2", "c2"))
    same(*await both(tmp_path, agent, max_turns=1))


async def test_a_list_of_items_has_the_sdk_s_own_line(tmp_path):
    given = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "id": "r1", "summary": []},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "go on"},
    ]
    same(*await both(tmp_path, worker(done()), given))


async def test_a_session_s_second_turn_has_the_sdk_s_own_line(tmp_path):
    session = SQLiteSession("s-1")
    try:
        await elsewhere(tmp_path).run(worker(done()), "first", session=session, run_config=config())
        named = {"session": session, "conversation_id": None}
        same(*await both(tmp_path, worker(done()), "second", **named))
    finally:
        session.close()


async def test_a_resumed_run_has_the_sdk_s_own_line(tmp_path):
    agent = worker(function_call("pay", {"cents": 5}, call_id="p"), done("paid"), tools=[pay])
    result = await elsewhere(tmp_path).run(agent, "pay", conversation_id="conv-1", run_config=config())
    state = result.to_state()
    state.approve(state.get_interruptions()[0])
    same(*await both(tmp_path, agent, state))
