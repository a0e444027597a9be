"""`codex`: which lines become which items, where a run begins, and what a grown, forked or odd file gives."""

from __future__ import annotations

import json

import hypothesis
import pytest
import zstandard
from hypothesis import strategies as st

import sessions
from runlore import sources
from runlore.events import models
from runlore.memory import transcript
from runlore.sources import Imported

NAME = f"2026/03/01/rollout-2026-03-01T10-00-00-{sessions.THREAD}.jsonl"


@pytest.fixture
def read(tmp_path):
    def _read(*lines, name=NAME):
        path = sessions.write(tmp_path / name, *lines)
        found = list(sources.read("codex", path, project="demo", memory="support"))
        return [one.data for one in found if isinstance(one, Imported)], [
            (one.line, one.kind) for one in found if not isinstance(one, Imported)
        ]

    return _read


def record(data):
    return json.loads(data["record"])


def items(data):
    return record(data)["input"] + record(data)["generated_items"]


def texts(data):
    return [one["content"] for one in items(data) if "role" in one]


def test_a_turn_is_a_run_of_the_thread(read):
    turn = sessions.codex_turn(
        1, sessions.user("Fix it."), *sessions.shell("ls", "a.py", "c1"), sessions.said("Done.")
    )
    (run,), problems = read(sessions.meta(), *turn)
    assert not problems
    assert run["conversation_id"] == sessions.THREAD
    assert run["run_id"] == f"{sessions.THREAD}.0199a000-0001-7000-8000-000000000001"
    assert [one.get("type", one.get("role")) for one in items(run)] == [
        "user",
        "function_call",
        "function_call_output",
        "assistant",
    ]
    assert record(run)["terminal_metadata"]["terminal_state"] == "completed"
    assert record(run)["final_output"] == "Done." and record(run)["updated_at"].startswith("2026-03-01T10:00")


def test_the_header_of_a_command_tells_the_rules_how_it_ended(read):
    turn = [*sessions.shell("pytest", "1 failed", "c1", 1), *sessions.shell("pytest -x", "ok", "c2")]
    (run,), _ = read(sessions.meta(), sessions.user("Go."), *turn)
    outputs = [one.output for one in transcript.parse(run["record"]) if one.kind == "call"]
    assert [(one.exit_code, one.text) for one in outputs] == [(1, "1 failed"), (0, "ok")]


@pytest.mark.parametrize(
    "line",
    [
        sessions.user("<environment_context>\n<cwd>/src</cwd>\n</environment_context>"),
        sessions.user("# AGENTS.md instructions for /src\n\n<INSTRUCTIONS>Be brief.</INSTRUCTIONS>"),
        sessions.item("message", role="developer", content=[{"type": "input_text", "text": "Obey."}]),
        sessions.item("reasoning", summary=[{"type": "summary_text", "text": "Hm."}], encrypted_content="x"),
        sessions.item("compaction", encrypted_content="x"),
        sessions.item("ghost_snapshot", ghost_commit={}),
        sessions.item("some_day", text="new"),
        sessions.event("user_message", message="Fix it."),
        sessions.event("agent_message", message="Done."),
        sessions.event("item_completed", item={"type": "UserMessage", "content": [{"text": "Fix it."}]}),
        sessions.event("thread_rolled_back", num_turns=1),
        sessions.user("# Context from my IDE setup:\n\n## Open tabs:\n- a.py: src/a.py\n"),
        sessions.event("agent_reasoning", text="Hm."),
        sessions.event("token_count", info=None),
        sessions.codex("compacted", message="summary", replacement_history=[]),
        sessions.codex("turn_context", model="gpt-5-codex"),
        sessions.codex("some_day", x=1),
        {"record_type": "state"},
        {"type": "response_item", "payload": 7},
    ],
    ids=lambda line: (
        str(line.get("type")) + "-" + str((line.get("payload") or {}).get("type"))
        if isinstance(line.get("payload"), dict)
        else "odd"
    ),
)
def test_what_a_program_wrote_and_what_is_unknown_leaves_no_trace(read, line):
    base = [sessions.meta(), sessions.user("Fix it."), sessions.said("Done.")]
    plain, _ = read(*base)
    for place in (1, 2, 3):
        assert read(*base[:place], line, *base[place:]) == (plain, [])


@pytest.mark.parametrize("heading", ["## My request for Codex:", "## My request:"])
@pytest.mark.parametrize("above", ["# Context from my IDE setup:", "# Files mentioned by the user:"])
def test_what_an_editor_wrote_above_the_request_is_left_out(read, above, heading):
    text = f"{above}\n\n## Active file: a.py\n\n{heading}\nFix it.\n\n## My request:\nThat one, too.\n"
    (run,), problems = read(sessions.meta(), sessions.user(text), sessions.said("Done."))
    assert not problems and texts(run) == ["Fix it.\n\n## My request:\nThat one, too.", "Done."]


def test_a_reverted_threads_second_file_goes_on_in_the_thread(read):
    """As Codex writes it since 0.146: the file names what it goes on from, and copies none of it."""
    base = {"thread_id": sessions.THREAD, "end_ordinal_exclusive": 9, "end_byte_offset": 1234}
    name = NAME.replace(".jsonl", f"_{CHILD}.jsonl")
    first, _ = read(sessions.meta(), *sessions.codex_turn(1, sessions.user("Go."), sessions.said("Done.")))
    lines = [
        {"ordinal": 9, **sessions.meta(history_base=base)},
        *sessions.codex_turn(2, sessions.user("No, so."), sessions.said("Ok.")),
    ]
    (second,), problems = read(*lines, name=name)
    assert not problems and second["conversation_id"] == first[0]["conversation_id"] == sessions.THREAD
    assert texts(second) == ["No, so.", "Ok."] and second["run_id"] != first[0]["run_id"]
    (broken,), _ = read("{half", *lines[1:], name=name)
    assert (broken["run_id"], broken["record"]) == (second["run_id"], second["record"])


def test_a_fork_that_copies_nothing_has_all_its_turns(read):
    base = {"thread_id": sessions.THREAD, "end_ordinal_exclusive": 9, "end_byte_offset": 1234}
    turn = [sessions.event("task_started", turn_id=OWN_TURN), sessions.user("Mine."), sessions.said("Ok.")]
    (run,), _ = read(sessions.meta(CHILD, forked_from_id=sessions.THREAD, history_base=base), *turn)
    assert texts(run) == ["Mine.", "Ok."]


def test_parts_of_a_message_are_told_apart(read):
    parts = [
        {"type": "input_text", "text": "<environment_context>x</environment_context>"},
        {"type": "input_text", "text": "Look at this:"},
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
    ]
    (run,), _ = read(
        sessions.meta(), sessions.item("message", role="user", content=parts), sessions.said("Ok.")
    )
    assert texts(run) == ["Look at this:\n[image]", "Ok."]


def test_every_kind_of_call_and_output_is_kept(read):
    lines = [
        sessions.item("custom_tool_call", name="apply_patch", input="*** Begin Patch", call_id="p"),
        sessions.item(
            "custom_tool_call_output", call_id="p", output="Exit code: 0\nWall time: 0 seconds\nOutput:\nok"
        ),
        sessions.item("local_shell_call", call_id="l", action={"type": "exec", "command": ["ls", "-a"]}),
        sessions.item("function_call_output", call_id="l", output=[{"type": "input_text", "text": ".git"}]),
        sessions.item("web_search_call", id="w", action={"type": "search", "query": "tar"}),
        sessions.item("function_call", name="old", arguments="{}", call_id="o"),
        sessions.item("function_call_output", call_id="o", output={"content": "no", "success": False}),
    ]
    (run,), problems = read(sessions.meta(), sessions.user("Go."), *lines)
    found = [one for one in transcript.parse(run["record"]) if one.kind == "call"]
    assert not problems
    assert [one.tool for one in found] == ["apply_patch", "local_shell", "web_search", "old"]
    assert [one.output and one.output.text for one in found] == ["ok", ".git", None, "no"]
    assert found[3].output.is_error and not found[1].output.is_error


def test_words_in_the_midst_of_an_announced_turn_steer_it(read):
    first = sessions.codex_turn(
        1,
        sessions.user("Go."),
        *sessions.shell("ls", "a", "c1"),
        sessions.user("Faster."),
        sessions.said("Done."),
    )
    runs, _ = read(
        sessions.meta(), *first, *sessions.codex_turn(2, sessions.user("Thanks."), sessions.said("Bye."))
    )
    assert [texts(run) for run in runs] == [["Go.", "Faster.", "Done."], ["Thanks.", "Bye."]]


def test_without_announcements_words_after_an_act_begin_the_next_turn(read):
    runs, _ = read(
        sessions.meta(),
        sessions.user("A"),
        sessions.user("B"),
        sessions.said("1"),
        sessions.user("C"),
        sessions.said("2"),
    )
    assert [texts(run) for run in runs] == [["A", "B", "1"], ["C", "2"]]
    assert [run["run_id"] for run in runs] == [f"{sessions.THREAD}.1", f"{sessions.THREAD}.2"]


def test_a_turn_that_was_stopped_is_cancelled_and_one_with_an_error_failed(read):
    start = [sessions.meta(), sessions.user("Go."), sessions.said("Wait.")]
    (run,), _ = read(*start, sessions.event("turn_aborted", reason="interrupted"))
    assert record(run)["terminal_metadata"]["terminal_state"] == "cancelled"
    assert run["attempt"] == read(*start)[0][0]["attempt"] + 1
    (run,), _ = read(*start, sessions.event("error", message="usage limit"))
    assert record(run)["terminal_metadata"]["exception_message"] == "usage limit"
    (run,), _ = read(*start, sessions.event("error", message="usage limit"), sessions.said("Done."))
    assert record(run)["terminal_metadata"]["terminal_state"] == "completed"


def test_a_turn_without_an_act_is_no_run_yet(read):
    assert read(sessions.meta(), sessions.user("Go.")) == ([], [])
    assert read(sessions.meta()) == ([], [])


def test_files_of_the_first_versions_are_read(read):
    lines = [
        {"id": "old-1", "timestamp": "2025-05-07T17:24:21.000Z", "instructions": None},
        {"record_type": "state"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Go."}]},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "name": "shell", "arguments": '{"command":["ls"]}', "call_id": "c"},
        {
            "type": "function_call_output",
            "call_id": "c",
            "output": '{"output":"a","metadata":{"exit_code":0}}',
        },
    ]
    (run,), problems = read(*lines, name="rollout-2025.jsonl")
    assert not problems and run["conversation_id"] == "old-1" and record(run)["updated_at"] == "unknown"
    assert transcript.parse(run["record"])[1].output.exit_code == 0


# --- forks and subagents -----------------------------------------------------------------------------------

CHILD = "0199b000-0000-7000-8000-00000000000b"
OLD_TURN = "0199a000-0001-7000-8000-000000000001"
OWN_TURN = "0199b000-0001-7000-8000-000000000002"


@pytest.mark.parametrize("announced", [True, False])
def test_a_fork_has_only_the_turns_that_are_its_own(read, announced):
    copied = [sessions.meta(), *sessions.codex_turn(1, sessions.user("Go."), sessions.said("Done."))]
    own = [
        sessions.event("task_started", turn_id=OWN_TURN) if announced else sessions.event("token_count"),
        sessions.codex("turn_context", turn_id=OWN_TURN),
        sessions.user("Another way."),
        sessions.said("Done otherwise."),
    ]
    (run,), problems = read(sessions.meta(CHILD, forked_from_id=sessions.THREAD), *copied, *own)
    assert not problems and run["conversation_id"] == CHILD
    assert texts(run) == ["Another way.", "Done otherwise."] and "parent_run_id" not in run


def test_a_copied_turn_with_an_old_id_does_not_end_the_copy(read):
    copied = [
        sessions.meta(),
        sessions.event(
            "task_started", turn_id="0b5f6c1e-0000-4000-8000-000000000001", started_at=1_700_000_000
        ),
        sessions.codex("turn_context", turn_id="0b5f6c1e-0000-4000-8000-000000000001"),
        sessions.user("Go."),
        sessions.said("Done."),
    ]
    own = [sessions.event("task_started", turn_id=OWN_TURN), sessions.user("Mine."), sessions.said("Ok.")]
    (run,), _ = read(sessions.meta(CHILD, forked_from_id=sessions.THREAD), *copied, *own)
    assert texts(run) == ["Mine.", "Ok."]


def test_a_subagent_names_the_thread_that_called_it(read):
    spawned = {
        "subagent": {
            "thread_spawn": {"parent_thread_id": sessions.THREAD, "depth": 1, "agent_role": "worker"}
        }
    }
    lines = [
        sessions.meta(CHILD, source=spawned),
        sessions.meta(),
        sessions.event("task_started", turn_id=OLD_TURN),
        sessions.user("Inherited."),
        sessions.said("Inherited too."),
        sessions.event("task_started", turn_id=OWN_TURN),
        sessions.user("Review it."),
        sessions.said("It is fine."),
    ]
    (run,), _ = read(*lines)
    assert run["parent_run_id"] == sessions.THREAD and run["agents"] == ["worker"]
    assert texts(run) == ["Review it.", "It is fine."] and run["conversation_id"] == CHILD


def test_what_a_subagent_was_asked_by_another_agent_is_its_request(read):
    spawn = {"parent_thread_id": sessions.THREAD, "agent_path": "team/child"}
    told = {"author": "team", "recipient": "team/child"}
    lines = [
        sessions.meta(CHILD, source={"subagent": {"thread_spawn": spawn}}),
        sessions.codex("inter_agent_communication", **told, content="Review it.", trigger_turn=True),
        sessions.item("agent_message", **told, content=[{"type": "input_text", "text": "Review it."}]),
        sessions.said("It is fine."),
        sessions.item("agent_message", author="team/child", recipient="team", content=[]),
        sessions.codex("inter_agent_communication", **told, encrypted_content="x"),
    ]
    (run,), problems = read(*lines)
    assert not problems and texts(run) == ["Review it.", "It is fine."]


# --- growth, damage, other files ---------------------------------------------------------------------------


@st.composite
def threads(draw):
    lines = [sessions.meta()]
    for number in range(draw(st.integers(1, 4))):
        inner = draw(
            st.lists(
                st.sampled_from(
                    [
                        sessions.user("Do it."),
                        sessions.said("Doing."),
                        *sessions.shell("ls", "a", f"c{number}"),
                        sessions.event("token_count"),
                        sessions.event("turn_aborted"),
                        sessions.item("reasoning", summary=[]),
                    ]
                ),
                max_size=6,
            )
        )
        lines += sessions.codex_turn(number, *inner) if draw(st.booleans()) else inner
    return lines


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(lines=threads(), cut=st.integers(0, 40))
def test_a_file_that_grew_gives_the_same_runs_and_a_longer_last_one(read, lines, cut):
    before, _ = read(*lines[:cut]) if cut else ([], [])
    after, _ = read(*lines)
    known = {run["run_id"]: run for run in after}
    for run in before:
        grown = known[run["run_id"]]
        assert grown == run or grown["attempt"] > run["attempt"]
    assert len(known) == len(after)


def test_a_broken_line_costs_itself(read):
    base = [sessions.meta(), sessions.user("Go."), sessions.said("Done.")]
    plain, _ = read(*base)
    runs, problems = read(*base[:2], "{", "[]", *base[2:], '{"type": "response_item", "payl')
    assert [run["record"] for run in runs] == [run["record"] for run in plain]
    assert problems == [(3, "bad_json"), (4, "invalid_record"), (6, "bad_json")]


def test_a_turn_over_the_limit_is_a_problem_and_the_next_one_is_read(read, monkeypatch):
    monkeypatch.setattr(models, "RECORD_BYTES_MAX", 4000)
    long = [one for number in range(4) for one in sessions.shell("cat", "x" * 1500, f"c{number}")]
    runs, problems = read(sessions.meta(), sessions.user("A"), *long, sessions.user("B"), sessions.said("b"))
    assert [texts(run) for run in runs] == [["B", "b"]] and problems == [(2, "record_too_large")]


def test_a_compressed_file_is_read_as_it_was(read, tmp_path):
    path = sessions.write(tmp_path / NAME, sessions.meta(), sessions.user("Go."), sessions.said("Done."))
    plain = list(sources.read("codex", tmp_path, project="demo", memory="support"))
    packed = path.with_name(path.name + ".zst")
    packed.write_bytes(zstandard.compress(path.read_bytes()))
    path.unlink()
    (run,) = sources.read("codex", tmp_path, project="demo", memory="support")
    assert [run.data] == [one.data for one in plain]
    packed.write_bytes(b"no zstd stream")
    assert [one.kind for one in sources.read("codex", tmp_path, project="demo", memory="support")] == [
        "unreadable"
    ]


def test_other_files_of_the_folder_are_left_alone(read, tmp_path):
    sessions.write(tmp_path / "session_index.jsonl", {"id": "x"})
    runs, problems = read(sessions.meta(), sessions.user("Go."), sessions.said("Done."))
    found = list(sources.read("codex", tmp_path, project="demo", memory="support"))
    assert len(found) == len(runs) == 1 and not problems
