"""`swe-agent`: steps become calls and outputs; prompts and demonstrations are left out."""

from __future__ import annotations

import json

import pytest

from runlore import errors
from runlore.events import models
from runlore.sources import swe_agent

TASK = {"role": "user", "content": "Fix the bug."}
SYSTEM = {"role": "system", "content": "You are a programmer."}
DEMO = {"role": "user", "content": "Here is a demonstration.", "is_demo": True}


def step(action="ls\n", observation="main.py", thought="Look around."):
    return {"action": action, "observation": observation, "thought": thought, "response": f"{thought}\n```"}


def turn(action="ls\n", **more):
    return {"role": "assistant", "content": "…", "action": action, "agent": "primary", **more}


def tool_call(name, arguments, call_id):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def run(steps, history=(TASK,), info=None, **more):
    document = {"trajectory": list(steps), "history": list(history), "info": info or {}, **more}
    found = swe_agent.run(json.dumps(document), stem="task-1")
    models.run_completed({"project": "p", "memory": "m", **found})
    return found


def record(*args, **more):
    return json.loads(run(*args, **more)["record"])


def test_a_text_action_is_a_call_of_the_tool_that_the_file_names():
    payload = record([step()])
    said, call, output = payload["generated_items"]
    assert payload["input"] == [{"content": "Fix the bug.", "role": "user"}]
    assert said == {"content": "Look around.", "role": "assistant"}
    assert (call["name"], json.loads(call["arguments"])) == ("action", {"action": "ls\n"})
    assert output == {"call_id": call["call_id"], "output": "main.py", "type": "function_call_output"}


def test_two_equal_actions_are_two_calls():
    calls = [item["call_id"] for item in record([step(), step()])["generated_items"] if "name" in item]
    assert len(set(calls)) == 2


def test_tool_calls_are_taken_from_the_turn_of_the_same_action():
    history = [
        TASK,
        turn("view a", tool_calls=[tool_call("view", '{"path":"a"}', "c1")]),
        turn("asked again and dropped"),
        turn("view b", tool_calls=[tool_call("view", '{"path":"b"}', "c2")]),
    ]
    payload = record([step("view a", "A"), step("view b", "B"), step("submit", "diff")], history)
    calls = [item for item in payload["generated_items"] if item.get("type") == "function_call"]
    assert [(c["name"], c["call_id"]) for c in calls[:2]] == [("view", "c1"), ("view", "c2")]
    assert calls[2]["name"] == "action"
    outputs = [item for item in payload["generated_items"] if item.get("type") == "function_call_output"]
    assert [(o["call_id"], o["output"]) for o in outputs[:2]] == [("c1", "A"), ("c2", "B")]


def test_prompts_and_demonstrations_are_not_what_happened():
    payload = record([step()], [SYSTEM, DEMO, {**turn("demo"), "is_demo": True}, TASK, turn()])
    assert payload["input"] == [{"content": "Fix the bug.", "role": "user"}]
    assert "demonstration" not in json.dumps(payload) and "programmer" not in json.dumps(payload)


def test_a_step_without_an_action_ran_nothing():
    payload = record([step(action="", observation="Your output was not formatted correctly.")])
    assert [item.get("role") for item in payload["generated_items"]] == ["assistant"]


@pytest.mark.parametrize(
    ("info", "state", "kind", "final"),
    [
        ({"exit_status": "submitted", "submission": "diff"}, "completed", None, "diff"),
        ({"exit_status": "submitted", "submission": ""}, "completed", None, ""),
        (
            {"exit_status": "submitted (exit_cost)", "submission": "d"},
            "completed",
            "submitted (exit_cost)",
            "d",
        ),
        ({"exit_status": "exit_cost", "submission": None}, "failed", "exit_cost", None),
        ({"exit_status": "exit_context"}, "failed", "exit_context", None),
        ({}, "cancelled", None, None),
        ({"exit_status": None}, "cancelled", None, None),
    ],
)
def test_how_it_ended_is_what_the_file_says(info, state, kind, final):
    payload = record([step()], info=info)
    assert payload["terminal_metadata"] == {
        "terminal_state": state,
        "exception_type": kind,
        "exception_message": None,
        "has_final_output": final is not None,
    }
    assert payload.get("final_output") == final


def test_the_file_is_the_rollout_and_no_time_is_made_up():
    found = run([step()], [TASK, turn()])
    assert found["conversation_id"] == "task-1" and found["agents"] == ["primary"]
    assert json.loads(found["record"])["updated_at"] == "unknown"


@pytest.mark.parametrize(
    ("document", "what"),
    [
        ([], "trajectory"),
        ({}, "trajectory"),
        ({"trajectory": {}}, "trajectory"),
        ({"trajectory": []}, "no task"),
        ({"trajectory": [7]}, r"trajectory\[0\]"),
        ({"trajectory": [], "history": [7]}, r"history\[0\]"),
        ({"trajectory": [], "history": 7}, "history"),
    ],
)
def test_a_file_of_another_shape_says_where_it_differs(document, what):
    with pytest.raises(errors.InvalidRecord, match=what):
        swe_agent.run(json.dumps(document), stem="x")
