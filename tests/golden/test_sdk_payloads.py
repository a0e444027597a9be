"""Our builder of the rollout line against the real SDK's, on what real runs of it produced.

`sources.payloads` is our own copy, so that nothing needs the SDK at run time. Where the SDK changes its line,
its filter or its grouping, one of these fails and says so.
"""

from __future__ import annotations

import asyncio
import json

import hypothesis
import pytest
from hypothesis import strategies as st

from runlore.events import ids
from runlore.sources import payloads

# The SDK and its own dependencies may warn about each other; only our warnings are errors here.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(?!runlore)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

agents = pytest.importorskip("agents", reason="openai-agents is not installed")
rollouts = pytest.importorskip("agents.sandbox.memory.rollouts")

from agents import RunConfig, Runner, SQLiteSession, function_tool  # noqa: E402
from agents.run_internal import items as run_items  # noqa: E402
from agents.run_internal import run_grouping  # noqa: E402
from agents.testing import ScriptedModel, assistant_message, function_call  # noqa: E402

CONFIG = RunConfig(tracing_disabled=True)


@function_tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@function_tool(needs_approval=True)
def pay(cents: int) -> str:
    """Pay."""
    return "paid"


def agent(*steps, **more):
    model = ScriptedModel([step if isinstance(step, list) else [step] for step in steps])
    return agents.Agent(name="A", model=model, tools=[add, pay], **more)


def ours(result, exc=None, input=None):
    """The payload that we build from a result's public parts."""
    generated = run_items.run_items_to_input_items(result.new_items)
    waiting = getattr(result, "interruptions", [])
    interruptions = [item.raw_item.model_dump(exclude_unset=True) for item in waiting]
    final = getattr(result, "final_output", None)
    if exc is not None:
        terminal = payloads.terminal_of_exception(exc)
    elif final is not None:
        terminal = payloads.terminal(payloads.COMPLETED, has_final_output=True)
    else:
        terminal = payloads.terminal(payloads.INTERRUPTED if interruptions else payloads.FAILED)
    return payloads.build(
        updated_at="T",
        rollout_id=None,
        input=result.input if input is None else input,
        generated_items=generated,
        terminal_metadata=terminal,
        interruptions=interruptions,
        final_output=final,
    )


def same(theirs, built):
    """Both lines, with one time and one rollout, byte for byte."""
    theirs["updated_at"] = built["updated_at"] = "2026-09-01T09:00:00+00:00"
    assert payloads.dump(built) == rollouts.dump_rollout_json(theirs)


def call(name="add", call_id="c1", **arguments):
    return function_call(name, arguments, call_id=call_id)


async def test_a_run_with_tools_gives_the_sdk_s_line():
    worker = agent(
        [assistant_message("Café \u2028 😀"), call(a=1, b=2)],
        [call(call_id="c2", a=3, b=4), call(call_id="c3", a=5, b=6)],
        assistant_message("21"),
    )
    result = await Runner.run(worker, "add them", run_config=CONFIG)
    same(rollouts.build_rollout_payload_from_result(result), ours(result))


async def test_a_list_input_is_filtered_as_the_sdk_filters_it():
    given = [
        {"role": "system", "content": "be brief"},
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "id": "r1", "summary": []},
        {"type": "function_call", "call_id": "c0", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c0", "output": "0"},
    ]
    result = await Runner.run(agent(assistant_message("done")), given, run_config=CONFIG)
    same(rollouts.build_rollout_payload_from_result(result), ours(result))


async def test_an_interrupted_run_gives_the_sdk_s_line():
    result = await Runner.run(agent(call("pay", cents=5)), "pay", run_config=CONFIG)
    assert result.interruptions
    same(rollouts.build_rollout_payload_from_result(result), ours(result))


async def test_a_run_with_a_session_gives_only_this_turn():
    session = SQLiteSession("s1")
    worker = agent(assistant_message("one"), assistant_message("two"))
    try:
        await Runner.run(worker, "first", session=session, run_config=CONFIG)
        result = await Runner.run(worker, "second", session=session, run_config=CONFIG)
        theirs = rollouts.build_rollout_payload_from_result(result, input_override="second")
        same(theirs, ours(result, input="second"))
    finally:
        session.close()


async def test_a_structured_final_output_gives_the_sdk_s_line():
    shape = agents.AgentOutputSchema(dict[str, int], strict_json_schema=False)
    worker = agent(assistant_message('{"n": 1}'), output_type=shape)
    result = await Runner.run(worker, "give", run_config=CONFIG)
    assert result.final_output == {"n": 1}
    same(rollouts.build_rollout_payload_from_result(result), ours(result))


async def test_a_run_out_of_turns_gives_the_sdk_s_line():
    worker = agent(call(a=1, b=2), call(call_id="c2", a=1, b=2))
    with pytest.raises(agents.MaxTurnsExceeded) as found:
        await Runner.run(worker, "add", run_config=CONFIG, max_turns=1)
    data = found.value.run_data
    theirs = rollouts.build_rollout_payload(
        input=data.input,
        new_items=data.new_items,
        final_output=None,
        interruptions=[],
        terminal_metadata=rollouts.terminal_metadata_for_exception(found.value),
    )
    same(theirs, ours(data, exc=found.value))


@pytest.mark.parametrize(
    "exc",
    [
        agents.MaxTurnsExceeded("Max turns (3) exceeded"),
        agents.ModelBehaviorError("no"),
        agents.UserError(""),
        asyncio.CancelledError(),
        RuntimeError("boom é"),
        KeyError("x"),
        type("InputGuardrailTripwireTriggered", (Exception,), {})("g"),
    ],
)
def test_every_exception_has_the_sdk_s_terminal_state(exc):
    theirs = rollouts.terminal_metadata_for_exception(exc).model_dump(mode="json")
    assert list(payloads.terminal_of_exception(exc).items()) == list(theirs.items())


def test_the_terminal_states_are_the_sdk_s():
    field = rollouts.RolloutTerminalMetadata.model_fields["terminal_state"]
    assert field.annotation.__args__ == payloads.TERMINAL_STATES


KINDS = sorted(
    rollouts._INCLUDED_MEMORY_ITEM_TYPES
    | rollouts._EXCLUDED_MEMORY_ITEM_TYPES
    | {"message", "file_search_call", "code_interpreter_call", "mcp_list_tools", "item_reference", "new_kind"}
)
item = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "tool", "system", "developer", "critic", None]),
        "type": st.sampled_from(KINDS) | st.none(),
    },
)


@hypothesis.given(item)
def test_the_item_filter_is_the_sdk_s(one):
    assert payloads.keeps(one) == rollouts._should_include_memory_item(one)


@pytest.mark.parametrize("kind", KINDS)
def test_every_item_type_is_kept_or_dropped_as_in_the_sdk(kind):
    assert payloads.keeps({"type": kind}) == rollouts._should_include_memory_item({"type": kind})


@hypothesis.given(st.dictionaries(st.text(), st.text() | st.integers() | st.floats() | st.none()))
def test_a_line_is_dumped_as_the_sdk_dumps_it(payload):
    assert payloads.dump(payload) == rollouts.dump_rollout_json(payload)


class _Session:
    def __init__(self, session_id):
        self.session_id = session_id


given_ids = st.none() | st.sampled_from(["", " ", "\t", "\u2003", "a", " a "]) | st.text(max_size=6)


@hypothesis.given(given_ids, given_ids, given_ids)
def test_a_rollout_is_resolved_in_the_sdk_s_order(conversation_id, session_id, group_id):
    session = None if session_id is None else _Session(session_id)
    kind, value = run_grouping.resolve_run_grouping(
        conversation_id=conversation_id, session=session, group_id=group_id
    )
    found = ids.resolve_rollout(
        conversation_id=conversation_id, session_id=session_id, group_id=group_id, run_id=value
    )
    assert found.kind == kind
    assert found.original == (f"run-{value}" if kind == "run" else value)


def test_the_sample_session_files_are_lines_as_the_sdk_dumps_them(root):
    for path in (root / "examples" / "sessions").glob("*.jsonl"):
        for line in path.read_text("ascii").splitlines(keepends=True):
            assert line == rollouts.dump_rollout_json(json.loads(line))
