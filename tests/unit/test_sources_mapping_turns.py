"""Messages in the shapes that teams have: each becomes the items that `runlore import chat` would make of them."""

from __future__ import annotations

import json

import hypothesis
import pytest
from hypothesis import strategies as st

import foreign
from runlore import errors
from runlore.sources import chat, payloads

CALL = {"arguments": '{"id":1}', "call_id": "c1", "name": "find", "type": "function_call"}
OUTPUT = {"call_id": "c1", "output": "found", "type": "function_call_output"}
ASKED, SAID = {"content": "Find 1.", "role": "user"}, {"content": "Here.", "role": "assistant"}
WHOLE = [ASKED, CALL, OUTPUT, SAID]
FUNCTION = {"name": "find", "arguments": '{"id":1}'}

SHAPES = {
    "openai chat": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Find 1."}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": FUNCTION}]},
        {"role": "tool", "tool_call_id": "c1", "content": "found"},
        {"role": "assistant", "content": "Here."},
    ],
    "openai responses": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Find 1."}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", **FUNCTION},
        {"type": "function_call_output", "call_id": "c1", "output": "found"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Here."}]},
    ],
    "anthropic blocks": [
        {"role": "user", "content": "Find 1."},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Let me look.", "signature": "x"},
            {"type": "tool_use", "id": "c1", "name": "find", "input": {"id": 1}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "found"}]}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Here."}]},
    ],
    "opentelemetry parts": [
        {"role": "user", "parts": [{"type": "text", "content": "Find 1."}]},
        {"role": "assistant", "parts": [{"type": "tool_call", "id": "c1", "name": "find", "arguments": {"id": 1}}]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "found"}]},
        {"role": "assistant", "parts": [{"type": "text", "content": "Here."}], "finish_reason": "stop"},
    ],
    "gemini": [
        {"role": "user", "parts": [{"text": "Find 1."}]},
        {"role": "model", "parts": [{"text": "Hm.", "thought": True},
                                    {"functionCall": {"id": "c1", "name": "find", "args": {"id": 1}}}]},
        {"role": "user", "parts": [{"functionResponse": {"id": "c1", "name": "find", "response": "found"}}]},
        {"role": "model", "parts": [{"text": "Here."}]},
    ],
    "langchain": [
        {"type": "human", "content": "Find 1."},
        {"type": "ai", "data": {"content": "", "tool_calls": [{"id": "c1", "name": "find", "args": {"id": 1}}]}},
        {"lc": 1, "id": ["langchain", "ToolMessage"], "kwargs": {"content": "found", "tool_call_id": "c1"}},
        {"type": "ai", "content": "Here."},
    ],
}  # fmt: skip

FLAT = {
    "role": "who",
    "text": "say",
    "roles": {"customer": "user", "bot": "assistant", "lookup": "call", "ping": "skip"},
    "call": {"id": "ref", "name": "tool", "arguments": "ask", "output": "got"},
}
RULED = {
    "a flat list": (
        [
            {"who": "customer", "say": "Find 1."},
            {"who": "ping"},
            {"who": "lookup", "tool": "find", "ask": {"id": 1}, "got": "found", "ref": "c1"},
            {"who": "bot", "say": "Here."},
        ],
        FLAT,
    ),
    "a call and its output apart": (
        [
            {"who": "customer", "say": "Find 1."},
            {"who": "lookup", "tool": "find", "ask": {"id": 1}, "ref": "c1"},
            {"who": "tool", "say": "found", "ref": "c1"},
            {"who": "bot", "say": "Here."},
        ],
        FLAT,
    ),
    "an output where the rules do not look": (
        [
            {"who": "customer", "say": "Find 1."},
            {"who": "lookup", "tool": "find", "ask": {"id": 1}, "ref": "c1"},
            {"who": "tool", "result": "found", "ref": "c1"},
            {"who": "bot", "say": "Here."},
        ],
        FLAT,
    ),
    "calls with their outputs beside a text": (
        [
            {"who": "customer", "say": "Find 1."},
            {"who": "bot", "steps": [{"tool": "find", "ask": {"id": 1}, "got": "found", "ref": "c1"}]},
            {"who": "bot", "say": "Here."},
        ],
        {**FLAT, "calls": "steps"},
    ),
    "a boolean that says who": (
        [{"mine": False, "say": "Find 1."}, {"mine": True, "say": "Here."}],
        {"role": "mine", "text": "say", "roles": {"true": "assistant", "false": "user"}},
    ),
    "an expression that says who": (
        [
            {"sender": {"kind": "Client"}, "body": {"plain": "Find 1."}},
            {"sender": {"kind": "AI"}, "body": {"plain": "Here."}},
        ],
        {"role": "sender.kind", "text": "body.plain", "roles": {"Client": "user", "AI": "assistant"}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_the_common_shapes_need_no_word_in_the_mapping(shape):
    assert foreign.turns(*SHAPES[shape]) == WHOLE


@pytest.mark.parametrize("shape", RULED)
def test_any_other_shape_is_told_by_rules(shape):
    messages, rules = RULED[shape]
    wanted = [ASKED, SAID] if "says who" in shape else WHOLE
    assert foreign.turns(*messages, **rules) == wanted


def test_messages_may_travel_as_a_text_of_json_in_several_places_and_as_bare_texts():
    made = foreign.mapping(foreign.PLAIN, {"messages": {"at": [
        {"at": "q", "role": "user"}, "steps", "last", {"at": "a", "role": "assistant"}]}})  # fmt: skip
    found = foreign.items(
        made, {"q": "Find 1.", "steps": json.dumps([CALL, OUTPUT]), "last": None, "a": "Here."}
    )
    assert found == WHOLE
    assert foreign.items(made, {"q": "Find 1.", "last": {"role": "assistant", "content": "Here."}}) == [
        ASKED,
        SAID,
    ]


def test_text_and_calls_of_one_message_keep_their_order():
    parts = [{"type": "text", "text": "One."}, {"type": "tool_use", "id": "c1", "name": "find", "input": {"id": 1}},
             {"type": "text", "text": "Two."}]  # fmt: skip
    found = foreign.turns({"role": "assistant", "content": parts})
    assert [item.get("content", item.get("name")) for item in found] == ["One.", "find", "Two."]


def test_a_call_that_langchain_keeps_twice_is_one_call():
    blocks = [{"type": "tool_use", "id": "c1", "name": "find", "input": {"id": 1}}]
    message = {
        "type": "ai",
        "content": blocks,
        "tool_calls": [{"id": "c1", "name": "find", "args": {"id": 1}}],
    }
    assert foreign.turns(message) == [CALL]


@pytest.mark.parametrize(
    "failed",
    [
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "no", "is_error": True}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "no", "status": "error"},
    ],
)
def test_what_the_log_itself_calls_an_error_stays_one(failed):
    call = {"role": "assistant", "tool_calls": [{"id": "c1", "function": FUNCTION}]}
    assert foreign.turns(call, failed)[1] == {**OUTPUT, "is_error": True, "output": "no"}


def test_pictures_leave_their_kind_only():
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    (found,) = foreign.turns({"role": "user", "content": [{"type": "text", "text": "See:"}, picture]})
    assert found["content"] == "See:\n[image]"


@pytest.mark.parametrize(
    ("messages", "rules", "words"),
    [
        ([ASKED, {"who": "bot"}], {"role": "who || role"}, 'm[1] has no role; map it with roles = {bot = "assistant"}'),
        (
            [{"who": "bot"}, {"who": "Shopper 2"}, {"who": "bot"}],
            {"role": "who"},
            'm[0] has no role; map it with roles = {bot = "assistant", "Shopper 2" = "user"}',
        ),
        ([{"type": "lookup_tool"}], {}, 'm[0] has no role; map it with roles = {lookup_tool = "tool"}'),
        ([{"from": "x", "text": "y"}], {}, "m[0] has no role; its fields are from, text; say where it stands: role"),
        ([{"text": "y"}], {"role": "who"}, "m[0] has no role; its fields are text; its role is not where"),
        ([ASKED, "hello"], {}, "m[1] is a text, not an object"),
        ([None], {}, "m[0] is not there, not an object"),
        ([{"role": ["user"]}], {}, "m[0] has a role that is a list, not a text"),
        ([{"role": "assistant", "tool_calls": "x"}], {}, "m[0] has calls that are a text, not a list"),
        ([{"role": "assistant", "tool_calls": [7]}], {}, "m[0].tool_calls[0] is a number, not an object"),
        ([{"role": "assistant", "tool_calls": [{}]}], {}, "m[0].tool_calls[0] is a call without a tool's name"),
        ([{"role": "system", "content": "x"}], {}, "m holds no message"),
        ([], {}, "m holds no message"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place_and_what_to_write(messages, rules, words):
    with pytest.raises(errors.BadMessages) as caught:
        foreign.turns(*messages, **rules)
    assert caught.value.message.startswith(words)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"m": 7}, "m is a number, not a list"),
        ({"m": "hello"}, "m is a text, and no JSON"),
        ({"m": "7"}, "m is a number"),
        ({"turns": []}, "m is not there; the event has turns"),
        ({"m": "[" * 500 + "]" * 500}, "m is a text, and no JSON"),
    ],
)
def test_messages_that_are_none_are_told(value, words):
    made = foreign.mapping(foreign.PLAIN, {"messages": "m"})
    with pytest.raises(errors.BadMessages) as caught:
        foreign.mapped(made, value)
    assert caught.value.message.startswith(words)


def test_a_role_that_is_a_secret_is_not_repeated():
    with pytest.raises(errors.BadMessages) as caught:
        foreign.turns({"role": "sk-proj-" + "a1B2c3D4" * 5})
    assert "sk-proj" not in caught.value.message


ids = st.sampled_from([None, "c1", "c2"])
texts = st.text(max_size=8)
messages = st.lists(
    st.one_of(
        st.builds(lambda t: {"role": "user", "content": t}, texts),
        st.builds(lambda t: {"role": "assistant", "content": t}, texts),
        st.builds(
            lambda t, i, a: {"role": "assistant", "content": t or None, "tool_calls": [
                {**({"id": i} if i else {}), "type": "function", "function": {"name": "f", "arguments": a}}]},
            texts, ids, texts,
        ),
        st.builds(
            lambda t, i: {"role": "tool", "content": t, **({"tool_call_id": i} if i else {"name": "f"})}, texts, ids
        ),
    ),
    min_size=1, max_size=8,
)  # fmt: skip


@hypothesis.given(messages)
def test_chat_messages_mapped_give_the_record_that_importing_them_gives(found):
    try:
        imported = json.loads(chat.run(json.dumps({"id": "c-1", "messages": found}), stem="x")["record"])
    except errors.InvalidRecord:
        hypothesis.reject()
    made = foreign.mapping(foreign.PLAIN, {"run": {"rollout": "id", "time": "t"}, "messages": "deep.turns"})
    payload = foreign.record(foreign.mapped(made, {"id": "c-1", "deep": {"turns": found}}, time=0.0))
    assert payload == imported and imported["updated_at"] == payloads.UNKNOWN_TIME
