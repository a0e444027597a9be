"""The mapping file and what it makes of an event: each field, each way to say it, each reason for a dead letter."""

from __future__ import annotations

import json
import re

import pytest

import foreign
from runlore import errors
from runlore.bus import port
from runlore.consumers import record as record_stage
from runlore.events import models
from runlore.sources.mapping import event, file

CHAT = {"messages": {"at": "m"}}
TALK = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "On its way."}]


def data(run, value, **more):
    """The event's data, with these keys in the mapping's [run]."""
    made = foreign.mapping(foreign.PLAIN, CHAT, {"run": run})
    return foreign.mapped(made, {"m": TALK, **value}, **more).event.data


def reason(made, value, **more):
    """The kind and the words of the dead letter that an event becomes."""
    with pytest.raises(errors.Poison) as caught:
        made.map(foreign.given(value, **more), event.no_objects)
    return caught.value.kind, caught.value.message


# --- three foreign shapes -----------------------------------------------------------------------------------


def test_an_order_desks_chat_becomes_a_run_with_its_calls_their_outputs_and_its_ids():
    found = foreign.mapped(foreign.mapping(foreign.ORDERS), foreign.order())
    assert (found.event.id, found.event.source) == ("evt-5501", "/runlore/source/orders")
    assert found.event.time == "2026-03-02T10:15:00.000000+00:00"
    wanted = {"project": "acme", "memory": "support", "conversation_id": "c-981", "run_id": "c-981/3"}
    assert wanted.items() <= found.event.data.items() and found.event.data["subject"] == "cust-77"
    assert found.event.data["usage"] == {"input_tokens": 1840, "output_tokens": 212, "total_tokens": 2052}
    payload = foreign.record(found)
    kinds = [item.get("type", item.get("role")) for item in payload["generated_items"]]
    assert kinds == ["function_call", "function_call_output"] * 2 + [
        "assistant", "user", "function_call", "function_call_output", "assistant",
    ]  # fmt: skip
    calls = [item for item in payload["generated_items"] if item.get("type")]
    assert [a["call_id"] == b["call_id"] for a, b in zip(calls[::2], calls[1::2], strict=True)] == [True] * 3
    assert payload["final_output"] == "Done. It leaves today and arrives on Thursday."


def test_a_span_of_opentelemetry_becomes_a_run_though_its_messages_travel_as_text():
    made = foreign.mapping(foreign.SPANS)
    found = foreign.mapped(made, foreign.span(), topic="otel.genai.spans", partition=3, offset=14)
    assert found.event.id == "otel.genai.spans/3/14"
    assert found.event.data["agents"] == ["ledger"] and found.event.data["run_id"] == "eee19b7ec3c1b174"
    assert found.event.time == "2026-03-02T10:00:00.123457+00:00"
    payload = foreign.record(found)
    assert [item["content"] for item in payload["input"]] == ["Close the books of February."]
    call, output = payload["generated_items"][1:3]
    assert call["call_id"] == output["call_id"] == "call_1" and output["output"] == '{"open":["inv-204"]}'


def test_a_langsmith_run_with_a_prompt_and_an_answer_becomes_a_run():
    made = foreign.mapping(
        foreign.PLAIN,
        {
            "run": {
                "rollout": "session_id",
                "run_id": "id",
                "parent_run_id": "parent_run_id",
                "time": "end_time",
            },
            "messages": {"at": ["inputs.messages[0]", "outputs.generations[0][0].message"]},
            "end": {"error": "error"},
        },
    )
    human = {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", "HumanMessage"]}
    ai = {**human, "id": ["langchain", "schema", "messages", "AIMessage"]}
    tool = {**human, "id": ["langchain", "schema", "messages", "ToolMessage"]}
    calls = [{"name": "find", "args": {"id": 7}, "id": "t1", "type": "tool_call"}]
    value = {
        "id": "0192a7b4", "session_id": "s-1", "parent_run_id": None, "end_time": "2026-03-02T10:00:00",
        "error": None,
        "inputs": {"messages": [[
            {**human, "kwargs": {"content": "Find 7.", "type": "human"}},
            {**ai, "kwargs": {"content": [{"type": "tool_use", "id": "t1", "name": "find", "input": {"id": 7}}],
                              "tool_calls": calls}},
            {**tool, "kwargs": {"content": "nothing", "tool_call_id": "t1", "id": "m-9", "status": "error"}},
        ]]},
        "outputs": {"generations": [[{"message": {**ai, "kwargs": {"content": "There is no 7."}}}]]},
    }  # fmt: skip
    payload = foreign.record(foreign.mapped(made, value))
    assert payload["input"] == [{"content": "Find 7.", "role": "user"}]
    assert payload["generated_items"] == [
        {"arguments": '{"id":7}', "call_id": "t1", "name": "find", "type": "function_call"},
        {"call_id": "t1", "is_error": True, "output": "nothing", "type": "function_call_output"},
        {"content": "There is no 7.", "role": "assistant"},
    ]
    failed = foreign.record(foreign.mapped(made, {**value, "error": "RateLimitError: …", "outputs": None}))
    assert failed["terminal_metadata"]["terminal_state"] == "failed" and "final_output" not in failed
    assert failed["terminal_metadata"]["exception_message"] == "RateLimitError: …"


@pytest.mark.parametrize("shape", ["orders", "spans"])
def test_what_is_mapped_is_what_the_record_stage_takes(shape):
    tables, value = {"orders": (foreign.ORDERS, foreign.order()), "spans": (foreign.SPANS, foreign.span())}[
        shape
    ]
    found = foreign.mapped(foreign.mapping(tables), value)
    message = port.Message("runs", 0, 0, b"k", found.event.value(), found.event.headers(), 0.0)
    incoming = record_stage.parse(message)
    _, meta = record_stage.prepare(incoming, incoming.data.record)
    assert meta["event"] == {"id": found.event.id, "source": found.event.source, "time": found.event.time}


# --- ids ----------------------------------------------------------------------------------------------------


def test_an_event_without_an_id_is_named_by_where_it_stands_and_so_is_its_run():
    found = foreign.mapped(
        foreign.mapping(foreign.PLAIN, CHAT), {"m": TALK}, topic="t", partition=2, offset=40
    )
    assert found.event.id == found.event.data["run_id"] == "t/2/40"
    assert models.run_completed(found.event.data).rollout.original == "run-t/2/40"


def test_where_it_stands_is_the_id_also_where_only_this_event_has_none():
    made = foreign.mapping(foreign.PLAIN, CHAT, {"run": {"id": "uid"}})
    ids = [foreign.mapped(made, {"m": TALK, **more}).event.id for more in ({"uid": "e1"}, {"uid": " "}, {})]
    assert ids == ["e1", "shop.chat.closed/0/0", "shop.chat.closed/0/0"]


@pytest.mark.parametrize("way", ["rollout", "conversation_id"])
def test_a_rollout_is_the_conversation(way):
    assert data({way: "chat.id"}, {"chat": {"id": "c-1"}})["conversation_id"] == "c-1"


def test_a_number_is_an_id_and_blanks_around_one_do_not_count():
    assert data({"rollout": "a", "run_id": "b"}, {"a": 17, "b": " r-1 "}).items() >= {
        "conversation_id": "17", "run_id": "r-1",
    }.items()  # fmt: skip


def test_session_or_group_stand_in_for_a_conversation_and_one_of_them_is_enough():
    run = {"session_id": "s", "group_id": "g"}
    assert data(run, {"g": "g-1"}).keys() >= {"group_id"} and "session_id" not in data(run, {"g": "g-1"})


@pytest.mark.parametrize(
    "value", [{}, {"chat": None}, {"chat": {}}, {"chat": {"id": ""}}, {"chat": {"id": "  "}}]
)
def test_an_event_that_does_not_say_its_conversation_is_a_dead_letter(value):
    made = foreign.mapping(foreign.PLAIN, CHAT, {"run": {"rollout": "chat.id"}})
    kind, words = reason(made, {"m": TALK, **value})
    assert kind == "missing_rollout" and words.startswith(("chat.id is not there", "chat.id is blank"))


@pytest.mark.parametrize(
    ("run", "value", "kind"),
    [
        ({"rollout": "a"}, {"a": [1]}, "bad_field"),
        ({"rollout": "a"}, {"a": True}, "bad_field"),
        ({"rollout": "a"}, {"a": 1.5}, "bad_field"),
        ({"rollout": "a"}, {"a": "../up"}, "invalid_id"),
        ({"rollout": "a"}, {"a": "x" * 2000}, "invalid_id"),
        ({"rollout": "a"}, {"a": "b\u0000"}, "invalid_id"),
        ({"rollout": "a"}, {"a": "\ud800"}, "invalid_id"),
        ({"id": "a"}, {"a": "\ud800"}, "invalid_event"),
        ({"id": "a"}, {"a": "x\ny"}, "invalid_id"),
        ({"run_id": "a"}, {}, "missing_field"),
        ({"run_id": "a"}, {"a": None}, "missing_field"),
        ({"attempt": "a"}, {"a": 0}, "invalid_event"),
        ({"attempt": "a"}, {"a": -1}, "bad_field"),
        ({"attempt": "a"}, {"a": "often"}, "bad_field"),
        ({"attempt": "a"}, {"a": 10**30}, "bad_field"),
        ({"attempt": "a"}, {"a": True}, "bad_field"),
        ({"time": "a"}, {"a": "yesterday"}, "bad_field"),
        ({"time": "a"}, {"a": 10**40}, "bad_field"),
        ({"time": "a"}, {"a": {}}, "bad_field"),
        ({"agents": "a"}, {"a": [1]}, "bad_field"),
        ({"subject": "length(a)"}, {}, "bad_field"),
    ],
)
def test_a_value_of_the_wrong_kind_is_a_dead_letter_with_its_reason(run, value, kind):
    made = foreign.mapping(foreign.PLAIN, CHAT, {"run": run})
    assert reason(made, {"m": TALK, **value})[0] == kind


# --- times --------------------------------------------------------------------------------------------------

NOON = "2026-03-02T12:00:00.000000+00:00"


@pytest.mark.parametrize(
    "value",
    [
        "2026-03-02T12:00:00Z", "2026-03-02 13:00:00+01:00", "2026-03-02T12:00:00", 1772452800, 1772452800.0,
        1772452800000, "1772452800000", 1772452800000000, "1772452800000000000",
    ],
)  # fmt: skip
def test_a_time_is_read_in_every_common_spelling(value):
    made = foreign.mapping(foreign.PLAIN, CHAT, {"run": {"time": "at"}})
    found = foreign.mapped(made, {"m": TALK, "at": value})
    assert found.event.time == foreign.record(found)["updated_at"] == NOON


def test_a_run_without_a_time_has_the_one_at_which_the_bus_took_it_and_none_where_there_is_none():
    made = foreign.mapping(foreign.PLAIN, CHAT, {"run": {"time": "at"}})
    assert foreign.mapped(made, {"m": TALK}, time=1772452800.0).event.time == NOON
    found = foreign.mapped(made, {"m": TALK}, time=-0.001)
    assert found.event.time == "" and foreign.record(found)["updated_at"] == "unknown"


# --- ways to say a field ------------------------------------------------------------------------------------


def test_a_field_is_an_expression_a_constant_a_header_the_key_or_has_a_default():
    run = {
        "rollout": {"key": True},
        "run_id": {"header": "X-Run"},
        "subject": {"value": "everyone"},
        "attempt": 3,
        "agents": {"at": "nobody", "default": ["desk"]},
    }
    found = data(run, {}, key=b"conv-7", headers=[("x-run", b"r-7")])
    assert [found[name] for name in ("conversation_id", "run_id", "subject", "attempt", "agents")] == [
        "conv-7", "r-7", "everyone", 3, ["desk"],
    ]  # fmt: skip


def test_bytes_of_a_key_that_are_no_text_are_a_dead_letter():
    made = foreign.mapping(foreign.PLAIN, CHAT, {"run": {"rollout": {"key": True}}})
    assert reason(made, {"m": TALK}, key=b"\xff")[0] == "bad_field"


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """Write a module beside a mapping; the loaded mapping with these tables."""

    def write(code, *tables, name="their_functions"):
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / f"{name}.py").write_text(code, "utf-8")
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
        return foreign.mapping(foreign.PLAIN, *tables)

    return write


def test_a_function_may_say_a_field_and_gives_what_json_can_hold(functions):
    code = """
import datetime, decimal, enum, uuid
class Colour(str, enum.Enum):
    RED = "red"
def rollout(event):
    return uuid.UUID(int=7)
def subject(event):
    return Colour.RED
def when(event):
    return datetime.datetime(2026, 3, 2, 12, tzinfo=datetime.timezone.utc)
def messages(event):
    return ({"role": "user", "content": text} for text in event["texts"])
def listed(event):
    return tuple(messages(event))
"""
    run = {name: f"their_functions:{name}" for name in ("rollout", "subject")}
    made = functions(
        code, {"run": {**run, "time": "their_functions:when"}, "messages": "their_functions:listed"}
    )
    found = foreign.mapped(made, {"texts": ["a", "b"]})
    assert found.event.data["conversation_id"] == "00000000-0000-0000-0000-000000000007"
    assert found.event.data["subject"] == "red" and found.event.time == NOON
    assert [item["content"] for item in foreign.record(found)["input"]] == ["a", "b"]
    generator = functions(code, {"messages": "their_functions:messages"})
    assert reason(generator, {"texts": []})[0] == "bad_field"


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        ("ValueError('sk-proj-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa')", "bad_field"),
        ("KeyError('x')", "bad_field"),
        ("RecursionError()", "bad_field"),
        ("ConnectionError('registry')", "source_unavailable"),
        ("TimeoutError()", "source_unavailable"),
        ("errors.StoreUnavailable()", "store_unavailable"),
        ("errors.Blocked('401')", "blocked"),
        ("errors.MissingRollout()", "missing_rollout"),
    ],
)
def test_a_function_that_raises_is_a_dead_letter_and_one_that_can_not_reach_something_is_tried_again(
    functions, raised, kind
):
    made = functions(
        f"from runlore import errors\ndef bad(event):\n    raise {raised}\n",
        CHAT,
        {"run": {"rollout": "their_functions:bad"}},
    )
    with pytest.raises(errors.RunloreError) as caught:
        made.map(foreign.given({"m": TALK}), event.no_objects)
    assert caught.value.kind == kind and "sk-proj" not in caught.value.message


def test_a_decoder_reads_the_bytes_and_headers_and_what_it_can_not_read_is_a_dead_letter(functions):
    code = """
def decode(value, headers):
    return {"m": [{"role": "user", "content": value[1:].decode()}], "v": headers["v"], "t": float("nan")}
"""
    made = functions(code, CHAT, {"decode": "their_functions:decode", "run": {"run_id": "v"}})
    found = foreign.mapped(made, b"\x00hello", headers=[("v", b"r9")])
    assert found.event.data["run_id"] == "r9"
    assert foreign.record(found)["input"] == [{"content": "hello", "role": "user"}]
    assert reason(made, b"\x00\xff", headers=[("v", b"r9")])[0] == "undecodable"
    assert reason(made, b"\x00x")[0] == "undecodable"


# --- project and memory --------------------------------------------------------------------------------------


def test_the_project_comes_from_the_event_only_among_those_that_the_mapping_lists():
    made = foreign.mapping(
        foreign.PLAIN, CHAT, {"project": {"at": "tenant", "allowed": {"T-1": "acme", "7": "globex"}}}
    )
    assert foreign.mapped(made, {"m": TALK, "tenant": "T-1"}).event.data["project"] == "acme"
    assert foreign.mapped(made, {"m": TALK, "tenant": 7}).event.data["project"] == "globex"
    assert reason(made, {"m": TALK, "tenant": "initech"})[0] == "not_allowed"
    assert reason(made, {"m": TALK, "tenant": ["acme"]})[0] == "not_allowed"
    assert reason(made, {"m": TALK})[0] == "missing_field"


def test_an_expression_can_not_stand_for_the_project():
    made = foreign.mapping(foreign.PLAIN, CHAT, {"project": "tenant"})
    assert foreign.mapped(made, {"m": TALK, "tenant": "globex"}).event.data["project"] == "tenant"


def test_an_option_stands_above_the_file():
    made = foreign.mapping({"topic": "t"}, CHAT, project="globex", memory="desk")
    assert (
        foreign.mapped(made, {"m": TALK}).event.data.items()
        >= {"project": "globex", "memory": "desk"}.items()
    )


# --- how it ended ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "state", "final"),
    [
        ({}, "completed", "On its way."),
        ({"s": None}, "completed", "On its way."),
        ({"s": "resolved"}, "completed", "On its way."),
        ({"s": "SUCCESS"}, "completed", "On its way."),
        ({"s": "error"}, "failed", None),
        ({"s": "canceled"}, "cancelled", None),
        ({"e": {"code": 7}}, "failed", None),
        ({"k": "Timeout"}, "failed", None),
        ({"s": "done", "f": {"answer": 1}}, "completed", {"answer": 1}),
        ({"s": "resolved", "e": "warned"}, "completed", "On its way."),
        ({"f": "said"}, "completed", "said"),
    ],
)
def test_how_a_run_ended_is_what_the_event_says_else_its_error_else_its_last_act(value, state, final):
    end = {
        "state": "s",
        "states": {"resolved": "completed"},
        "error": "e",
        "error_type": "k",
        "final_output": "f",
    }
    payload = foreign.record(
        foreign.mapped(foreign.mapping(foreign.PLAIN, CHAT, {"end": end}), {"m": TALK, **value})
    )
    assert payload["terminal_metadata"]["terminal_state"] == state
    assert payload.get("final_output") == final
    assert payload["terminal_metadata"]["has_final_output"] is (final is not None)


def test_a_state_that_nobody_mapped_is_a_dead_letter_that_says_what_to_write():
    made = foreign.mapping(foreign.PLAIN, CHAT, {"end": {"state": "s"}})
    kind, words = reason(made, {"m": TALK, "s": "gave up"})
    assert kind == "bad_field" and 'states = {"gave up" = "completed"}' in words


# --- what is no run --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "value", "is_run"),
    [
        ("k == 'x'", {"k": "x"}, True),
        ("k == 'x'", {"k": "y"}, False),
        ("k", {"k": ""}, False),
        ("k", {"k": []}, False),
        ("k", {"k": 0}, True),  # As JMESPath has it.
        ("k", {}, False),
        (True, {}, True),
    ],
)
def test_an_event_for_which_where_is_not_true_is_skipped(where, value, is_run):
    made = foreign.mapping(foreign.PLAIN, CHAT, {"where": where})
    found = made.map(foreign.given({"m": TALK, **value}), event.no_objects)
    assert found == event.Skipped(event.FILTERED) if not is_run else isinstance(found, event.Mapped)


def test_a_tombstone_is_no_run():
    assert foreign.mapping(foreign.PLAIN).map(foreign.given(None), event.no_objects) == event.Skipped(
        "tombstone"
    )


# --- workspaces --------------------------------------------------------------------------------------------------


def test_a_workspace_is_a_snapshot_or_an_archive_below_an_allowed_prefix():
    made = foreign.mapping(
        foreign.PLAIN,
        CHAT,
        {
            "workspaces": [{"archive": "box.url", "agent": "box.who"}, {"snapshot": "snap", "base": "base"}],
            "objects": {"prefixes": ["s3://boxes/out/"]},
        },
    )
    asked = []

    def fetch(url, bytes_max):
        asked.append(url)
        return b"tar"

    box = {"box": {"url": "s3://boxes/out/7.tar", "who": "coder"}}
    snap = {"snap": f"{'a' * 64}/{'b' * 64}", "base": {"counter": 2, "snapshot": "c" * 64}}
    found = foreign.mapped(made, {"m": TALK, **box, **snap}, fetch)
    archive, snapshot = models.run_completed(found.event.data).workspaces
    assert asked == ["s3://boxes/out/7.tar"] and found.claims == (b"tar",) and archive.archive.size == 3
    assert (archive.agent, snapshot.base.counter) == ("coder", 2)
    assert "workspaces" not in foreign.mapped(made, {"m": TALK}, fetch).event.data
    assert reason(made, {"m": TALK, "box": {"url": "s3://boxes/other/7.tar"}})[0] == "object_refused"
    assert reason(made, {"m": TALK, "snap": "nonsense"})[0] == "invalid_event"


# --- the file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({}, "`topic` is missing"),
        ({"topic": "a b"}, "topic:"),
        ({"topic": "t", "memory": "m"}, "`project` is missing"),
        ({**foreign.PLAIN, "project": "No Name"}, "is not a name"),
        ({**foreign.PLAIN, "project": {"at": "x", "allowed": ["../up"]}}, "is not a name"),
        ({**foreign.PLAIN, "project": {"at": "x"}}, "allowed"),
        ({**foreign.PLAIN, "rum": {}}, "a mapping has no `rum`; did you mean `run`?"),
        ({**foreign.PLAIN, "run": {"rolout": "x"}}, "run has no `rolout`; did you mean `rollout`?"),
        (
            {**foreign.PLAIN, "messages": {"call": {"nam": "x"}}},
            "messages.call has no `nam`; did you mean `name`?",
        ),
        ({**foreign.PLAIN, "messages": {"roles": {"bot": "robot"}}}, "messages.roles.bot:"),
        ({**foreign.PLAIN, "end": {"states": {"x": "fine"}}}, "end.states.x:"),
        ({**foreign.PLAIN, "run": {"rollout": "a."}}, "run.rollout: 'a.' is no JMESPath expression"),
        ({**foreign.PLAIN, "run": {"rollout": "chat-id"}}, "chat-id"),
        ({**foreign.PLAIN, "run": {"rollout": "&a"}}, "gives an expression"),
        ({**foreign.PLAIN, "run": {"rollout": "[a, &b]"}}, "gives an expression"),
        ({**foreign.PLAIN, "run": {"rollout": "nope(a)"}}, None),
        ({**foreign.PLAIN, "run": {"rollout": "a", "conversation_id": "b"}}, "keep one"),
        ({**foreign.PLAIN, "run": {"rollout": {"at": "a", "key": True}}}, "exactly one of"),
        ({**foreign.PLAIN, "run": {"rollout": {"att": "a"}}}, "has no 'att'"),
        ({**foreign.PLAIN, "run": {"rollout": ["a"]}}, "neither an expression nor a table"),
        ({**foreign.PLAIN, "run": {"rollout": "no_such_module_here:f"}}, "can not be loaded"),
        ({**foreign.PLAIN, "run": {"rollout": "json:no_such_function"}}, "can not be loaded"),
        ({**foreign.PLAIN, "decode": "json:__name__"}, "not a function"),
        ({**foreign.PLAIN, "objects": {"prefixes": ["http://x/"]}}, "is no prefix"),
        ({**foreign.PLAIN, "objects": {"prefixes": ["s3://bucket"]}}, "is no prefix"),
        ({**foreign.PLAIN, "objects": {"prefixes": ["s3://bucket/a/../b/"]}}, "is no prefix"),
        ({**foreign.PLAIN, "objects": {"bytes_max": 10**12}}, "objects.bytes_max:"),
        ({**foreign.PLAIN, "layout": {"memories_dir": "../up"}}, "layout.memories_dir"),
        ({**foreign.PLAIN, "name": "../x"}, "name:"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_in_its_own_words(table, words):
    if words is None:
        # An unknown function is known only when it is called: then it is the events' reason, and `check` shows it.
        assert reason(foreign.mapping(table), {})[0] == "bad_field"
        return
    with pytest.raises((errors.BadMapping, errors.InvalidId)) as caught:
        foreign.mapping(table)
    assert words in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize("raw", [b"\xff", b"topic = ", b"[" * 5000, b"x" * (file.FILE_BYTES_MAX + 1)])
def test_a_file_that_is_no_toml_is_told(tmp_path, raw):
    (tmp_path / "m.toml").write_bytes(raw)
    with pytest.raises(errors.BadMapping):
        file.read(tmp_path / "m.toml")


def test_a_mapping_is_named_as_its_file_and_a_missing_file_is_told(tmp_path):
    (tmp_path / "Orders.toml").write_text(json.dumps("t").join(["topic = ", "\n"]), "utf-8")
    assert file.read(tmp_path / "Orders.toml").name == "orders"
    with pytest.raises(errors.NotFound):
        file.read(tmp_path / "none.toml")


# --- the docs ------------------------------------------------------------------------------------------------------

DOCS = (foreign.EXAMPLES.parents[1] / "docs" / "SOURCES.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("table", "heading"),
    [
        (file.MappingFile, "## The file"),
        (file.Run, "### `[run]`"),
        (file.Messages, "### `[messages]`"),
        (file.Call, "### `[messages]`"),
        (file.End, "### `[end]`"),
        (file.Usage, "### `[end]`"),
        (file.Workspace, "### `[[workspaces]]`"),
        (file.Objects, "### `[objects]`"),
        (file.Choice, "### Top of the file"),
    ],
)
def test_the_docs_have_every_key_of_a_mapping(table, heading):
    part = DOCS.split(heading)[1]
    missing = [name for name in table.model_fields if not re.search(rf"[`\[ .]{name}\b", part)]
    assert not missing


def test_the_docs_have_every_reason_that_only_a_mapping_gives():
    table = DOCS.split("## Dead letters")[1]
    own = [
        one for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, errors.Poison)
    ]
    first, last = own.index(errors.Undecodable), own.index(errors.ObjectTooLarge)
    assert not [one.kind for one in own[first : last + 1] if f"`{one.kind}`" not in table]


def test_the_examples_in_the_docs_load_and_read_their_samples():
    for path in sorted(foreign.EXAMPLES.glob("*.toml")):
        made = event.load(path)
        sample = path.with_name(f"{path.stem}-sample.json").read_bytes()
        assert isinstance(made.map(foreign.given(sample), event.no_objects), event.Mapped)
