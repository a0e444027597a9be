"""`chat`: what of a conversation becomes which item, which ids count, and that labels are never read."""

from __future__ import annotations

import json

import pytest

from runlore import errors
from runlore.events import models
from runlore.sources import chat

USER = {"role": "user", "content": "Where is my order?"}
SAID = {"role": "assistant", "content": "It is on its way."}


def call(name="find", arguments='{"id":1}', call_id="c1"):
    out = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return out if call_id is None else {"id": call_id, **out}


def calling(*calls, content=None):
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def answer(text="found", call_id="c1", **more):
    return {"role": "tool", "tool_call_id": call_id, "content": text, **more}


def run(line, stem="log"):
    found = chat.run(json.dumps(line), stem=stem)
    models.run_completed({"project": "p", "memory": "m", **found})
    return found


def record(*messages, **line):
    return json.loads(run({"messages": list(messages), **line})["record"])


def items(*messages):
    payload = record(*messages)
    return payload["input"] + payload["generated_items"]


def test_a_record_has_the_keys_of_the_sdk_in_its_order():
    found = run({"id": "c-1", "messages": [USER, SAID]})
    assert found["record"] == (
        '{"updated_at":"unknown","rollout_id":"c-1",'
        '"input":[{"content":"Where is my order?","role":"user"}],'
        '"generated_items":[{"content":"It is on its way.","role":"assistant"}],'
        '"terminal_metadata":{"terminal_state":"completed","exception_type":null,"exception_message":null,'
        '"has_final_output":true},"final_output":"It is on its way."}'
    )


@pytest.mark.parametrize("wrap", [lambda m: {"messages": m}, lambda m: {"traj": m}, lambda m: m])
def test_the_three_shapes_of_a_line_say_the_same(wrap):
    assert run(wrap([USER, SAID])) == run({"messages": [USER, SAID]})


def test_instructions_are_dropped():
    system, developer = ({"role": role, "content": "Be kind."} for role in ("system", "developer"))
    assert items(system, USER, developer, SAID) == items(USER, SAID)


def test_the_input_is_what_came_before_the_agents_first_word_and_order_is_kept():
    payload = record(USER, USER, SAID, USER, SAID)
    assert [len(payload["input"]), len(payload["generated_items"])] == [2, 3]
    assert [item["role"] for item in payload["generated_items"]] == ["assistant", "user", "assistant"]


def test_parallel_calls_keep_their_order_and_find_their_outputs():
    found = items(
        USER,
        calling(call(call_id="a"), call("look", "{}", "b"), content="Let me see."),
        answer("second", "b"),
        answer("first", "a"),
    )
    assert found[1] == {"content": "Let me see.", "role": "assistant"}
    assert found[2] == {"arguments": '{"id":1}', "call_id": "a", "name": "find", "type": "function_call"}
    assert [item["call_id"] for item in found[2:]] == ["a", "b", "b", "a"]
    assert found[4] == {"call_id": "b", "output": "second", "type": "function_call_output"}


def test_a_call_id_used_again_becomes_another_so_that_no_call_is_taken_for_its_repetition():
    turn = [calling(call(call_id="call_0")), answer("x", "call_0")]
    found = items(USER, *turn, *turn)
    first, first_out, second, second_out = (item["call_id"] for item in found[1:])
    assert first == first_out == "call_0" and second == second_out != first


@pytest.mark.parametrize("given", [None, ""])
def test_calls_without_ids_get_derived_ones_that_survive_the_next_turn(given):
    turn = [calling(call(call_id=given), call("look", "{}", given)), answer("1", given), answer("2", given)]
    short, longer = items(USER, *turn), items(USER, *turn, USER, *turn)
    assert longer[: len(short)] == short
    pairs = [item["call_id"] for item in longer if "call_id" in item]
    assert pairs[0] == pairs[2] and pairs[1] == pairs[3] and len(set(pairs)) == 4


def test_an_output_without_an_id_answers_the_open_call_of_its_name():
    found = items(USER, calling(call("a", "{}", None), call("b", "{}", None)), answer("x", None, name="b"))
    assert found[3]["call_id"] == found[2]["call_id"]


def test_an_output_that_answers_no_call_is_kept():
    found = items(USER, answer("late", "c9"))
    assert found[1] == {"call_id": "c9", "output": "late", "type": "function_call_output"}


def test_the_old_function_messages_are_calls_too():
    legacy = {"role": "assistant", "content": None, "function_call": {"name": "find", "arguments": "{}"}}
    found = items(USER, legacy, {"role": "function", "name": "find", "content": "x"})
    assert [item.get("type") for item in found] == [None, "function_call", "function_call_output"]
    assert found[1]["call_id"] == found[2]["call_id"]


def test_a_custom_tool_is_one_with_free_text():
    custom = {"id": "c1", "type": "custom", "custom": {"name": "sql", "input": "select 1"}}
    found = items(USER, calling(custom), answer("1"))
    assert found[1] == {"call_id": "c1", "input": "select 1", "name": "sql", "type": "custom_tool_call"}
    assert found[2]["type"] == "custom_tool_call_output"


def test_arguments_given_as_an_object_become_json_text():
    found = items(USER, calling(call(arguments={"city": "Köln"})))
    assert found[1]["arguments"] == '{"city":"Köln"}'


def test_parts_become_text_and_a_picture_only_leaves_its_kind():
    parts = [
        {"type": "text", "text": "Look:"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1000}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "refusal", "refusal": "No."},
    ]
    assert items({"role": "user", "content": parts})[0]["content"] == "Look:\n[image]\n[audio]\nNo."


def test_a_refusal_is_what_the_agent_said():
    payload = record(USER, {"role": "assistant", "content": None, "refusal": "I can't."})
    assert payload["final_output"] == "I can't."


@pytest.mark.parametrize(
    ("messages", "state", "final"),
    [
        ([USER, SAID], "completed", "It is on its way."),
        ([USER, SAID, {"role": "user", "content": "Thanks!"}], "completed", "It is on its way."),
        ([USER], "cancelled", None),
        ([USER, calling(call())], "cancelled", None),
        ([USER, SAID, calling(call()), answer()], "cancelled", None),
        ([USER, calling(call()), answer(), USER], "cancelled", None),
    ],
)
def test_how_a_conversation_ended_is_told_by_the_agents_last_act(messages, state, final):
    payload = record(*messages)
    assert payload["terminal_metadata"] == {
        "terminal_state": state,
        "exception_type": None,
        "exception_message": None,
        "has_final_output": final is not None,
    }
    assert payload.get("final_output") == final


# --- ids, subject, time -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ({"conversation_id": "c", "id": "x"}, {"conversation_id": "c"}),
        ({"thread_id": "t"}, {"conversation_id": "t"}),
        ({"session_id": "s", "id": "completion-1"}, {"session_id": "s"}),
        ({"group_id": "g"}, {"group_id": "g"}),
        ({"id": 7}, {"conversation_id": "7"}),
        ({"metadata": {"conversation_id": "m"}}, {"conversation_id": "m"}),
        ({"id": True, "conversation_id": " "}, {}),
        ({"task_id": 3, "trial": 1}, {"conversation_id": "log.task-3.trial-1"}),
        ({"task_id": 3}, {"conversation_id": "log.task-3"}),
    ],
)
def test_the_id_of_a_conversation_is_the_one_that_groups_the_most(line, fields):
    found = run({"messages": [USER, SAID], **line})
    names = ("conversation_id", "session_id", "group_id")
    assert {name: found[name] for name in names if name in found} == fields


def test_a_conversation_without_an_id_is_a_rollout_of_its_own():
    found = run([USER, SAID])
    assert json.loads(found["record"])["rollout_id"] == f"run-{found['run_id']}"
    assert run([USER, SAID], stem="other") == found


def test_the_record_bears_the_alias_of_an_id_that_is_not_file_safe():
    found = run({"id": "user:42", "messages": [USER, SAID]})
    assert found["conversation_id"] == "user:42"
    assert json.loads(found["record"])["rollout_id"].startswith("rl-user-42-")


def test_who_spoke_is_the_chain_of_agents():
    messages = [{**SAID, "name": name} for name in ("Desk", "Billing", "Desk")]
    assert run([USER, *messages])["agents"] == ["Desk", "Billing"]
    assert "agents" not in run([USER, SAID])


@pytest.mark.parametrize(
    ("line", "subject"),
    [
        ({"user_id": "ana"}, "ana"),
        ({"subject": "ben", "user_id": "ana"}, "ben"),
        ({"metadata": {"user_id": "ana"}}, "ana"),
        ({"info": {"task": {"user_id": "mia_1"}}}, "mia_1"),
        ({"info": {"user_id": "no"}}, None),
        ({"info": {"task": []}}, None),
        ({}, None),
    ],
)
def test_the_subject_is_the_user(line, subject):
    assert run({"messages": [USER, SAID], **line}).get("subject") == subject


def test_labels_change_nothing():
    line = {"traj": [USER, SAID], "task_id": 1, "trial": 0, "info": {"task": {"user_id": "mia_1"}}}
    labels = {"actions": [{"name": "book"}], "instruction": "You are mia_1.", "outputs": ["42"]}
    told = {**line, "reward": 1.0, "info": {"task": {"user_id": "mia_1", **labels}, "reward_info": {"r": 1}}}
    assert run(told) == run(line)


@pytest.mark.parametrize(
    ("line", "time"),
    [
        ({}, "unknown"),
        ({"created_at": "yesterday"}, "unknown"),
        ({"created": 1e300}, "unknown"),
        ({"created": True}, "unknown"),
        ({"created": 0}, "1970-01-01T00:00:00.000000+00:00"),
        ({"created": 1756717200}, "2025-09-01T09:00:00.000000+00:00"),
        ({"created_at": 1756717200123}, "2025-09-01T09:00:00.123000+00:00"),
        ({"updated_at": "2026-09-01T11:00:00.5+02:00", "created": 0}, "2026-09-01T09:00:00.500000+00:00"),
        ({"metadata": {"timestamp": "2026-09-01T09:00:00Z"}}, "2026-09-01T09:00:00.000000+00:00"),
        ({"timestamp": "2026-09-01 09:00:00"}, "2026-09-01T09:00:00.000000+00:00"),
    ],
)
def test_the_time_is_the_conversations_own_or_unknown(line, time):
    assert record(USER, SAID, **line)["updated_at"] == time


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ({}, "messages"),
        ({"messages": {}}, "not a list"),
        ({"messages": []}, "no message"),
        ([{"role": "system", "content": "x"}], "no message"),
        ([USER, 7], r"messages\[1\]"),
        ([USER, {"content": "x"}], r"messages\[1\] has no role"),
        ([{"role": "bot", "content": "x"}], "'bot'"),
        ([USER, calling({"id": "c1"})], r"messages\[1\].tool_calls\[0\]"),
        ([USER, {"role": "assistant", "tool_calls": {"a": 1}}], "not a list"),
        ([USER, {"role": "assistant", "function_call": {}}], "no name"),
    ],
)
def test_a_line_of_another_shape_says_where_it_differs(line, what):
    with pytest.raises(errors.InvalidRecord, match=what):
        run(line)
