"""`claude-code`: whose words count, how copies and subagents are told, and what a grown or odd file gives."""

from __future__ import annotations

import json

import hypothesis
import pytest
from hypothesis import strategies as st

import sessions
from runlore import sources
from runlore.memory import transcript
from runlore.sources import Imported
from sessions import answered, asked, claude, resulted, used

NAME = f"-src/{sessions.SESSION}.jsonl"
OTHER = "5e551000-0000-4000-8000-00000000000b"
BASE = [
    asked("u1", "Fix the test."),
    used("a1", "Bash", {"command": "pytest"}, "t1"),
    resulted("u2", "Exit code 1\n1 failed", "t1", is_error=True),
    answered("a2", "Fixed."),
]


@pytest.fixture
def read(tmp_path):
    def _read(*lines, name=NAME):
        return found(sessions.write(tmp_path / name, *lines))

    return _read


def found(path):
    out = list(sources.read("claude-code", path, project="demo", memory="support"))
    problems = [(one.line, one.kind) for one in out if not isinstance(one, Imported)]
    return [one.data for one in out if isinstance(one, Imported)], problems


def record(data):
    return json.loads(data["record"])


def items(data):
    return record(data)["input"] + record(data)["generated_items"]


def texts(data):
    return [one["content"] for one in items(data) if "role" in one]


def test_a_turn_is_a_run_of_the_session(read):
    (run,), problems = read(*BASE)
    assert not problems and run["conversation_id"] == sessions.SESSION and run["run_id"] == "u1"
    assert run["attempt"] == 4
    (call,) = (one for one in transcript.parse(run["record"]) if one.kind == "call")
    assert call.tool == "Bash" and call.args == {"command": "pytest"}
    assert call.output.is_error and (call.output.text, call.output.exit_code) == ("1 failed", 1)
    assert record(run)["final_output"] == "Fixed."


def test_the_next_words_of_the_person_begin_the_next_run(read):
    runs, _ = read(*BASE, asked("u3", "And the docs?"), answered("a3", "Done."))
    assert [run["run_id"] for run in runs] == ["u1", "u3"] and texts(runs[1]) == ["And the docs?", "Done."]


@pytest.mark.parametrize(
    "line",
    [
        asked("x", "Caveat", isMeta=True),
        asked(
            "x", "This session is being continued …", isCompactSummary=True, isVisibleInTranscriptOnly=True
        ),
        asked("x", "<task-notification>done</task-notification>", origin={"kind": "task-notification"}),
        asked("x", "<system-reminder>\nBe brief.\n</system-reminder>"),
        asked("x", "<local-command-caveat>Caveat: …</local-command-caveat>"),
        asked("x", "<bash-input>ls</bash-input>"),
        claude("assistant", "x", [{"type": "text", "text": "No response requested."}]) | {"type": "progress"},
        {"type": "summary", "summary": "Fixing a test", "leafUuid": "a2"},
        {"type": "system", "subtype": "compact_boundary", "uuid": "x", "logicalParentUuid": "a2"},
        {"type": "file-history-snapshot", "messageId": "x", "snapshot": {}},
        {"type": "ai-title", "aiTitle": "t"},
        {"type": "attachment", "attachment": {"type": "deferred_tools_delta", "prompt": "x"}},
        {
            "type": "attachment",
            "attachment": {
                "type": "queued_command",
                "prompt": "done",
                "commandMode": "task-notification",
                "origin": {"kind": "task-notification"},
            },
        },
        {"type": "attachment", "attachment": 7},
        {"type": "some-day", "message": 7},
        {"type": "user", "message": "odd"},
    ],
    ids=lambda line: f"{line['type']}-{str(line.get('message') or '')[:60].count('x')}-{len(line)}",
)
def test_what_a_program_wrote_and_what_is_unknown_leaves_no_trace(read, line):
    plain, _ = read(*BASE)
    for place in range(len(BASE) + 1):
        assert read(*BASE[:place], line, *BASE[place:]) == (plain, [])


def test_what_was_typed_while_the_agent_worked_belongs_to_its_turn(read):
    attached = {"type": "queued_command", "prompt": "Not the docs.", "commandMode": "prompt"}
    line = {"type": "attachment", "uuid": "q1", "sessionId": sessions.SESSION, "attachment": attached}
    (run,), _ = read(*BASE[:3], line, line, BASE[3])
    assert texts(run) == ["Fix the test.", "Not the docs.", "Fixed."] and run["attempt"] == 5


def test_thoughts_are_dropped_and_an_answer_in_several_lines_is_one_turn(read):
    thought = {"type": "thinking", "thinking": "Secret musing.", "signature": "s"}
    (run,), _ = read(
        asked("u1", "Go."),
        claude("assistant", "a1", [thought]),
        answered("a2", "First I look."),
        used("a3", "Read", {"file_path": "a"}, "t1"),
        used("a4", "Read", {"file_path": "b"}, "t2"),
        resulted("u2", "B", "t2"),
        resulted("u3", [{"type": "text", "text": "A"}, {"type": "image", "source": {}}], "t1"),
        answered("a5", "Done."),
    )
    assert "musing" not in run["record"]
    calls = [one for one in transcript.parse(run["record"]) if one.kind == "call"]
    assert [one.output.text for one in calls] == ["A\n[image]", "B"]


def test_a_slash_command_is_what_the_person_typed_and_one_of_the_program_is_not_kept(read):
    command = "<command-message>fix</command-message> <command-name>/fix</command-name>"
    command += "\n<command-args>it</command-args>"
    (run,), _ = read(
        asked("u1", command), asked("m", "The long prompt.", isMeta=True), answered("a1", "Done.")
    )
    assert texts(run) == ["/fix it", "Done."]
    local = [
        asked("u0", "<command-name>/model</command-name>"),
        asked("o", "<local-command-stdout>set</local-command-stdout>"),
    ]
    (run,), _ = read(*local, *BASE)
    assert texts(run) == ["Fix the test.", "Fixed."]


def test_an_interruption_ends_the_turn_and_is_nobodys_word(read):
    stop = asked("x", [{"type": "text", "text": "[Request interrupted by user for tool use]"}])
    runs, _ = read(*BASE[:2], stop, asked("u9", "Rather so."), answered("a9", "Ok."))
    assert record(runs[0])["terminal_metadata"]["terminal_state"] == "cancelled"
    assert texts(runs[0]) == ["Fix the test."] and texts(runs[1]) == ["Rather so.", "Ok."]


def test_what_the_person_refused_is_no_failure_of_the_tool(read):
    said = "The user doesn't want to proceed with this tool use."
    refused = resulted("u2", said, "t1", is_error=True, toolUseResult="User rejected tool use")
    (run,), _ = read(*BASE[:2], refused)
    assert not transcript.parse(run["record"])[1].output.is_error


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({}, 0),
        ({"returnCodeInterpretation": "No matches found"}, None),
        ({"backgroundTaskId": "b1"}, None),
        ({"interrupted": True}, None),
        ({"stdout": None}, None),
    ],
    ids=["well", "interpreted", "background", "interrupted", "no-shell"],
)
def test_a_command_that_was_no_error_ended_with_exit_code_0(read, more, code):
    result = {"stdout": "ok", "stderr": "", "interrupted": False, "isImage": False, **more}
    (run,), _ = read(*BASE[:2], resulted("u2", "ok", "t1", toolUseResult=result))
    assert transcript.parse(run["record"])[1].output.exit_code == code
    for text in ("no", "Exit code 1", "it said:\nExit code 1\nno"):
        (run,), _ = read(*BASE[:2], resulted("u2", text, "t1", is_error=True, toolUseResult=result))
        output = transcript.parse(run["record"])[1].output
        assert output.is_error and (output.text, output.exit_code) == (text, None)


@pytest.mark.parametrize("head", ["", "Exit code 2\n"], ids=["plain", "failed"])
@pytest.mark.parametrize("tail", ["\n...\n</persisted-output>", "\n..."], ids=["closed", "open"])
def test_of_an_output_in_a_file_of_its_own_the_beginning_is_kept_and_no_path(read, head, tail):
    text = (
        f"{head}<persisted-output>\nOutput too large (4.8MB). Full output saved to: /somewhere/tool-results/x.txt\n\n"
        f"Preview (first 2KB):\nE: no such table\nmore{tail}"
    )
    lines = [
        sessions.asked("u1", "Go."),
        sessions.used("a1", "Bash", {"command": "make"}, "t1"),
        sessions.resulted("u2", text, "t1", is_error=bool(head)),
    ]
    (run,), _ = read(*lines)
    (output,) = [one for one in items(run) if one.get("type") == "function_call_output"]
    assert output["output"] == "E: no such table\nmore\n...\n[cut]"
    assert output.get("exit_code") == (2 if head else None)


def test_an_error_of_the_api_fails_the_turn_unless_it_went_on(read):
    error = answered("e", "API Error: 529 overloaded", isApiErrorMessage=True)
    error["message"]["model"] = "<synthetic>"
    (run,), _ = read(asked("u1", "Go."), error)
    assert record(run)["terminal_metadata"]["terminal_state"] == "failed"
    (run,), _ = read(asked("u1", "Go."), error, answered("a1", "Done."))
    assert record(run)["terminal_metadata"]["terminal_state"] == "completed"


# --- copies ------------------------------------------------------------------------------------------------


def test_a_line_written_again_with_its_uuid_counts_once(read):
    once, _ = read(*BASE, asked("u3", "More."), answered("a3", "Done."))
    assert read(*BASE, *BASE[:3], asked("u3", "More."), *BASE, answered("a3", "Done.")) == (once, [])


def test_a_continued_session_repeats_its_ancestors_runs_under_their_own_names(read):
    ancestors, _ = read(*BASE)
    own = [asked("n1", "Go on.", session=OTHER), answered("n2", "Done.", session=OTHER)]
    runs, _ = read(*BASE, *own, name=f"-src/{OTHER}.jsonl")
    assert runs[0] == ancestors[0]
    assert runs[1]["conversation_id"] == OTHER and runs[1]["run_id"] == "n1"


def test_what_a_branch_copied_is_passed_over(read):
    copied = [
        line | {"forkedFrom": {"sessionId": sessions.SESSION, "messageUuid": line["uuid"]}} for line in BASE
    ]
    runs, problems = read(
        *copied, asked("n1", "Go on.", session=OTHER), answered("n2", "Done.", session=OTHER)
    )
    assert not problems and [run["run_id"] for run in runs] == ["n1"]


def test_a_copy_that_hides_its_origin_is_had_once_in_one_import(read, tmp_path):
    read(*BASE)
    read(*(line | {"sessionId": OTHER} for line in BASE), name=f"-src/{OTHER}.jsonl")
    runs, _ = found(tmp_path)
    assert [(run["run_id"], run["conversation_id"]) for run in runs] == [("u1", sessions.SESSION)]


# --- subagents ---------------------------------------------------------------------------------------------

CALLED = [
    asked("u1", "Review it."),
    answered("a0", "First one thing."),
    asked("u5", "Now review it."),
    used("a1", "Agent", {"prompt": "Review a.py"}, "t1"),
    resulted("u2", "Fine.", "t1", toolUseResult={"status": "completed", "agentId": "7f3a"}),
    answered("a2", "It is fine."),
]
SUBAGENT = [
    asked("s1", "Review a.py", isSidechain=True, agentId="7f3a"),
    answered("s2", "Fine.", isSidechain=True, agentId="7f3a"),
]


@pytest.mark.parametrize(
    "place",
    [
        f"-src/{sessions.SESSION}/subagents/agent-7f3a.jsonl",
        f"-src/{sessions.SESSION}/subagents/workflows/wf_1/agent-7f3a.jsonl",
        "-src/agent-7f3a.jsonl",
    ],
)
def test_a_subagent_is_a_rollout_of_its_own_below_the_turn_that_called_it(read, tmp_path, place):
    read(*CALLED)
    alone, _ = read(*SUBAGENT, name=place)
    runs, problems = found(tmp_path)
    assert not problems and len(runs) == 3 and alone[0] in runs
    assert alone[0]["conversation_id"] == f"{sessions.SESSION}.agent-7f3a"
    assert alone[0]["parent_run_id"] == "u5" and texts(alone[0]) == ["Review a.py", "Fine."]


def test_a_subagent_whose_session_is_gone_still_names_it(read):
    (run,), _ = read(*SUBAGENT, name=f"-src/{sessions.SESSION}/subagents/agent-7f3a.jsonl")
    assert run["parent_run_id"] == sessions.SESSION


def test_a_session_that_is_named_like_a_path_is_refused_and_not_looked_for(read, tmp_path):
    sessions.write(tmp_path / "secret.jsonl", *CALLED)
    lines = [line | {"sessionId": "../secret"} for line in SUBAGENT]
    assert read(*lines, name="-src/agent-7f3a.jsonl") == ([], [(1, "invalid_id")])


def test_a_subagents_lines_between_those_of_the_session_are_a_run_of_their_own(read):
    chain = [
        asked("s1", "Review a.py", isSidechain=True),
        answered("s2", "Looking.", isSidechain=True) | {"parentUuid": "s1"},
        answered("s3", "Fine.", isSidechain=True) | {"parentUuid": "s2"},
    ]
    other = [
        asked("r1", "Review b.py", isSidechain=True),
        answered("r2", "Bad.", isSidechain=True) | {"parentUuid": "r1"},
    ]
    lines = [*CALLED[:4], chain[0], other[0], chain[1], other[1], chain[2], *CALLED[4:]]
    runs, _ = read(*lines)
    by_id = {run["run_id"]: run for run in runs}
    assert texts(by_id["u5"]) == ["Now review it.", "It is fine."]
    assert texts(by_id["s1"]) == ["Review a.py", "Looking.", "Fine."] and texts(by_id["r1"]) == [
        "Review b.py",
        "Bad.",
    ]
    assert by_id["s1"]["parent_run_id"] == by_id["r1"]["parent_run_id"] == "u5"
    assert by_id["s1"]["conversation_id"] == f"{sessions.SESSION}.agent-s1"


# --- growth and damage -------------------------------------------------------------------------------------


@st.composite
def session_lines(draw):
    lines = []
    for number in range(draw(st.integers(1, 14))):
        made = draw(
            st.sampled_from(
                [
                    asked("", "Do it."),
                    answered("", "Doing."),
                    used("", "Bash", {"command": "ls"}, f"t{number // 2}"),
                    resulted("", "a", f"t{number // 2}"),
                    asked("", "[Request interrupted by user]"),
                    asked("", "Summary.", isCompactSummary=True),
                    asked("", "Inner.", isSidechain=True),
                    answered("", "Inner answer.", isSidechain=True) | {"parentUuid": f"l{number - 1}"},
                    {"type": "summary", "summary": "x"},
                ]
            )
        )
        lines.append(made | {"uuid": f"l{number}"})
    return lines


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(lines=session_lines(), cut=st.integers(1, 14))
def test_a_file_that_grew_gives_the_same_runs_and_longer_ones(read, lines, cut):
    before, _ = read(*lines[:cut])
    after, problems = read(*lines)
    known = {run["run_id"]: run for run in after}
    for run in before:
        grown = known[run["run_id"]]
        assert grown == run or grown["attempt"] > run["attempt"]
    assert not problems and len(known) == len(after)


def test_a_broken_line_costs_itself(read):
    runs, problems = read(*BASE[:2], "{", "7", *BASE[2:], '{"type": "us')
    assert texts(runs[0]) == ["Fix the test.", "Fixed."]
    assert problems == [(3, "bad_json"), (4, "invalid_record"), (7, "bad_json")]


def test_a_file_of_another_program_says_so(read):
    assert read({"messages": []}, {"a": 1}) == ([], [(0, "invalid_record")])


def test_a_file_without_an_act_is_no_problem(read):
    assert read({"type": "summary", "summary": "x"}, asked("u1", "Hello?")) == ([], [])
