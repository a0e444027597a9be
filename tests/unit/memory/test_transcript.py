"""The transcript: items of both SDKs become the same thing, with the position that evidence names."""

from __future__ import annotations

import json

import pytest

from runlore.memory import transcript


def parse(*items, generated=()):
    return transcript.parse(json.dumps({"input": list(items), "generated_items": list(generated)}))


def test_python_and_javascript_items_read_the_same():
    python = parse(
        {"role": "user", "content": "hi"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c", "output": "done"},
    )
    javascript = parse(
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "function_call", "callId": "c", "name": "f", "arguments": '{"a": 1}', "status": "completed"},
        {"type": "function_call_result", "callId": "c", "output": {"type": "text", "text": "done"}},
    )
    assert python == javascript
    assert [item.kind for item in python] == ["user", "call"]
    assert python[1].output == transcript.Output(2, "done")


def test_an_items_index_is_its_position_in_input_and_generated_items():
    items = parse(
        {"role": "user", "content": "a"},
        {"type": "reasoning"},
        generated=[{"role": "assistant", "content": "b"}],
    )
    assert [item.index for item in items] == [0, 2]


@pytest.mark.parametrize(
    ("call", "tool"),
    [
        ({"type": "shell_call", "call_id": "c", "action": {"commands": ["ls"]}}, "shell"),
        ({"type": "local_shell_call", "call_id": "c", "action": {"command": ["ls"]}}, "local_shell"),
        (
            {"type": "apply_patch_call", "call_id": "c", "operation": {"type": "delete_file", "path": "x"}},
            "apply_patch",
        ),
        ({"type": "custom_tool_call", "call_id": "c", "name": "t", "input": "free text"}, "t"),
        ({"type": "mcp_call", "id": "c", "name": "t", "server_label": "s", "arguments": "{}"}, "s/t"),
        ({"type": "hosted_tool_call", "id": "c", "name": "t", "arguments": "{}"}, "t"),
        ({"type": "computer_call", "callId": "c", "action": {"type": "click"}}, "computer"),
    ],
)
def test_every_kind_of_call_is_a_call(call, tool):
    (item,) = parse(call)
    assert (item.kind, item.tool, item.call_id, item.output) == ("call", tool, "c", None)


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        (
            {"output": [{"stdout": "x", "stderr": "y", "outcome": {"type": "exit", "exit_code": 3}}]},
            ("x\ny", 3, False),
        ),
        ({"output": [{"stdout": "", "stderr": "", "outcome": {"type": "timeout"}}]}, ("", None, True)),
        ({"output": '{"output": "x", "metadata": {"exit_code": 2}}'}, ("x", 2, False)),
        (
            {"output": "Chunk ID: a1\nWall time: 0.1 seconds\nProcess exited with code 1\nOutput:\nx"},
            ("x", 1, False),
        ),
        (
            {"output": "Exit code: 2\nWall time: 0.1 seconds\nTotal output lines: 1\nOutput:\nx"},
            ("x", 2, False),
        ),
        ({"output": "Wall time: 0.1 seconds\nOutput:\nx"}, ("x", None, False)),
        ({"output": "x", "exit_code": 3}, ("x", 3, False)),
        ({"output": {"content": [{"type": "text", "text": "x"}]}}, ("x", None, False)),
        (
            {"output": "the answer was: Process exited with code 1"},
            ("the answer was: Process exited with code 1", None, False),
        ),
    ],
)
def test_exit_codes_are_read_from_protocol_fields_and_never_from_prose(output, wanted):
    (item,) = parse(
        {"type": "shell_call", "call_id": "c", "action": {}},
        {"type": "shell_call_output", "call_id": "c", **output},
    )
    assert (item.output.text, item.output.exit_code, item.output.timed_out) == wanted


@pytest.mark.parametrize(
    "flag",
    [{"status": "failed"}, {"is_error": True}, {"output": {"isError": True, "content": []}}, {"error": "x"}],
)
def test_an_error_of_the_protocol_is_marked(flag):
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    (item,) = parse(call, {"type": "function_call_output", "call_id": "c", "output": "x", **flag})
    assert item.output.is_error
    (item,) = parse(
        call, {"type": "function_call_output", "call_id": "c", "output": "x", "status": "completed"}
    )
    assert not item.output.is_error


def test_a_repeated_item_counts_once_but_a_reused_call_id_does_not_hide_another_call():
    first = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a":1}'}
    other = {"type": "function_call", "call_id": "c", "name": "g", "arguments": '{"b":2}'}
    done = [{"type": "function_call_output", "call_id": "c", "output": text} for text in ("one", "two")]
    items = parse(first, done[0], first, done[0], other, done[1])
    assert [(item.tool, item.output.text) for item in items] == [("f", "one"), ("g", "two")]


def test_a_message_is_repeated_only_if_its_id_is():
    said = {
        "type": "message",
        "role": "assistant",
        "id": "m1",
        "content": [{"type": "output_text", "text": "x"}],
    }
    assert len(parse(said, said)) == 1
    assert len(parse({"role": "user", "content": "yes"}, {"role": "user", "content": "yes"})) == 2


def test_a_huge_output_keeps_its_head_and_its_tail():
    body = "a" + "x" * 500_000 + "z"
    (item,) = parse(
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": body},
    )
    assert len(item.output.text) <= transcript.OUTPUT_CHARS_MAX + 10
    assert item.output.text[0] + item.output.text[-1] == "az"
