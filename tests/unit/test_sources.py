"""Importers: the same bytes give the same runs; what is broken costs itself and no other; memory is bounded.

Each format's own rules are in `test_sources_<format>`.
"""

from __future__ import annotations

import json
import os
import pathlib
import tracemalloc

import hypothesis
import pytest
from hypothesis import strategies as st

import sessions
from runlore import errors, sources
from runlore.events import envelope, ids, models, records
from runlore.sources import Imported, Problem, files

ITEM = {"content": "hello", "role": "user"}
LINE = json.dumps({"updated_at": "unknown", "rollout_id": "r1", "input": [ITEM], "generated_items": []})
CHAT = json.dumps({"id": "c1", "messages": [ITEM, {"role": "assistant", "content": "hi"}]})
STEP = {"action": "ls", "observation": "a.txt", "thought": "Look."}
TRAJ = json.dumps({"trajectory": [STEP], "history": [], "info": {}})
CODEX = "\n".join(json.dumps(one) for one in (sessions.meta(), sessions.user("hello"), sessions.said("hi")))
CLAUDE = "\n".join(json.dumps(one) for one in (sessions.asked("u1", "hello"), sessions.answered("a1", "hi")))
GOOD = {"agents-sdk": LINE, "chat": CHAT, "swe-agent": TRAJ, "codex": CODEX, "claude-code": CLAUDE}
SUFFIX = {name: "jsonl" for name in GOOD} | {"swe-agent": "traj"}

formats = pytest.mark.parametrize("name", GOOD)
by_line = pytest.mark.parametrize("name", ["agents-sdk", "chat"])


def read(name, path):
    return list(sources.read(name, path, project="demo", memory="support"))


def found(name, path):
    """The runs, and the problems as (line, kind)."""
    out = read(name, path)
    problems = [(one.line, one.kind) for one in out if isinstance(one, Problem)]
    return [one for one in out if isinstance(one, Imported)], problems


@pytest.fixture
def write(tmp_path):
    def _write(content, name="runs.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return path

    return _write


@formats
def test_every_format_gives_events_that_the_models_accept(write, name):
    path = write(GOOD[name], f"one.{SUFFIX[name]}")
    (run,), problems = found(name, path)
    assert not problems and run.file == str(path)
    models.run_completed(run.data)
    records.check(run.data["record"])
    event = envelope.of_run(run.data, source=f"/import/{name}")
    assert envelope.parse(event.headers(), event.value()).data == run.data


@formats
def test_importing_twice_changes_nothing(write, name):
    path = write(GOOD[name], f"one.{SUFFIX[name]}")
    first = read(name, path)
    os.utime(path, (1, 1))
    assert read(name, path) == first


@by_line
def test_the_same_line_twice_is_one_run_and_a_changed_line_another(write, name):
    changed = GOOD[name].replace("hello", "hello there")
    path = write(f"{GOOD[name]}\n{GOOD[name]}\n{changed}\n")
    runs, problems = found(name, path)
    one, same, other = (run.data["run_id"] for run in runs)
    assert not problems and one == same != other
    assert len({models.run_completed(run.data).rollout for run in runs}) == 1


@by_line
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_bom_blank_lines_and_other_line_ends_do_not_matter(write, name, end):
    plain, _ = found(name, write(f"{GOOD[name]}\n"))
    odd, problems = found(name, write(f"\ufeff{GOOD[name]}{end}{end}   {end}"))
    assert not problems and [run.data for run in odd] == [run.data for run in plain]


@formats
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"),
        (b"\n\n  \n", "empty"),
        (b"\xff\xfe\x00\x01", "bad_json"),
        (b"\x1f\x8b\x08" + bytes(range(256)), "bad_json"),
        (b"\x00" * 64, "bad_json"),
        (b'{"messages": [', "bad_json"),
        (b"[" * 100_000, "bad_json"),
        (b'{"a": 1}', "invalid_record"),
        (b"[]", "invalid_record"),
        (b"7", "invalid_record"),
        (b"null", "invalid_record"),
        (b'"text"', "invalid_record"),
    ],
)
def test_a_broken_file_is_a_problem_of_its_own(write, name, content, kind):
    runs, problems = found(name, write(content, f"one.{SUFFIX[name]}"))
    assert not runs and {found_kind for _line, found_kind in problems} == {kind}


@by_line
@pytest.mark.parametrize("broken", ["{", "\x00\x00", "[]", '{"messages":{}}', '{"input":7}', "[" * 5000])
def test_a_broken_line_is_named_and_the_lines_around_it_are_read(write, name, broken):
    path = write(f"{GOOD[name]}\n{broken}\n\n{GOOD[name]}")
    runs, problems = found(name, path)
    assert [run.line for run in runs] == [1, 4]
    assert [line for line, _kind in problems] == [2]


@by_line
def test_a_last_line_that_was_cut_off_is_named(write, name):
    runs, problems = found(name, write(f"{GOOD[name]}\n{GOOD[name][:40]}"))
    assert len(runs) == 1 and problems == [(2, "bad_json")]


@formats
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(content=st.binary(max_size=80))
def test_no_bytes_make_an_importer_raise(write, name, content):
    read(name, write(content, f"one.{SUFFIX[name]}"))


SESSION_TYPES = (
    "response_item",
    "event_msg",
    "session_meta",
    "message",
    "function_call",
    "function_call_output",
    "task_started",
    "tool_use",
    "tool_result",
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "messages",
                    "traj",
                    "role",
                    "content",
                    "tool_calls",
                    "function",
                    "name",
                    "arguments",
                    "id",
                    "tool_call_id",
                    "info",
                    "task",
                    "user_id",
                    "task_id",
                    "trial",
                    "metadata",
                    "conversation_id",
                    "created_at",
                    "trajectory",
                    "history",
                    "action",
                    "observation",
                    "thought",
                    "response",
                    "exit_status",
                    "submission",
                    "is_demo",
                    "agent",
                    "input",
                    "rollout_id",
                    "type",
                    "text",
                    "payload",
                    "call_id",
                    "source",
                    "subagent",
                    "turn_id",
                    "message",
                    "uuid",
                    "parentUuid",
                    "isSidechain",
                    "sessionId",
                    "toolUseResult",
                    "tool_use_id",
                ]
            ),
            inner,
            max_size=5,
        )
        | st.sampled_from(["user", "assistant", "tool", "system", "function", *SESSION_TYPES])
    ),
    max_leaves=25,
)


@formats
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(value=json_values)
def test_no_json_makes_an_importer_raise_and_what_it_yields_is_valid(write, name, value):
    for one in read(name, write(json.dumps(value), f"one.{SUFFIX[name]}")):
        if isinstance(one, Imported):
            records.check(one.data["record"])


ODD = st.one_of(
    json_values,
    st.sampled_from(["team/child", "u1", 7, True, "<environment_context>x</environment_context>"]),
)


@pytest.mark.parametrize("name", ["codex", "claude-code"])
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(data=st.data())
def test_no_odd_field_of_a_session_file_makes_an_importer_raise(write, name, data):
    lines = [json.loads(line) for line in GOOD[name].splitlines() * 2]
    for line in lines:
        # The inner object first: afterwards it may be none any more.
        for holder in (line.get("payload") or line["message"], line):
            named = st.sampled_from([*sorted(holder), "source", "toolUseResult"])
            for key in data.draw(st.lists(named, max_size=2)):
                holder[key] = data.draw(ODD)
    for one in read(name, write("\n".join(map(json.dumps, lines)), "rollout-1.jsonl")):
        if isinstance(one, Imported):
            records.check(one.data["record"])


@by_line
def test_a_line_over_the_limit_is_skipped_without_being_held(write, name, monkeypatch):
    monkeypatch.setattr(models, "RECORD_BYTES_MAX", 64 * 1024)
    huge = b'{"messages": "' + b"x" * 30_000_000 + b'"}'
    path = write(GOOD[name].encode() + b"\n" + huge + b"\n" + GOOD[name].encode() + b"\n")
    del huge
    tracemalloc.start()
    runs, problems = found(name, path)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [run.line for run in runs] == [1, 3] and problems == [(2, "record_too_large")]
    assert peak_bytes < 4 * files.SKIP_BYTES


@pytest.mark.parametrize("length", [-1, 0, 1])
def test_the_limit_is_exact(write, monkeypatch, length):
    monkeypatch.setattr(models, "RECORD_BYTES_MAX", len(LINE) + length)
    for end in ("", "\n", "\r\n"):
        runs, problems = found("agents-sdk", write(LINE + end))
        assert (len(runs), len(problems)) == ((1, 0) if length >= 0 else (0, 1))


def test_a_file_over_the_limit_is_not_read_whole(write, monkeypatch):
    monkeypatch.setattr(models, "RECORD_BYTES_MAX", 100)
    assert found("swe-agent", write("x" * 101, "one.traj")) == ([], [(0, "record_too_large")])


def test_a_file_of_another_format_is_given_up(write):
    out = read("chat", write("nonsense\n" * 1000))
    assert len(out) == sources.PROBLEMS_PER_FILE_MAX + 1
    assert out[-1].kind == "given_up"


def test_broken_lines_never_cost_a_good_one_however_many_they_are(write):
    good = '{"messages": [{"role": "user", "content": "hello"}]}\n'
    out = read("chat", write(good + "nonsense\n" * 1000 + good))
    assert sum(isinstance(one, sources.Imported) for one in out) == 2


def test_a_folder_is_read_recursively_in_name_order_and_other_files_are_left_alone(write, tmp_path):
    for name in ("b.jsonl", "a/z.jsonl", "a/a.jsonl", "c.txt", "a/notes.md"):
        write(LINE.replace('"rollout_id": "r1", ', ""), name)
    runs, problems = found("agents-sdk", tmp_path)
    names = [os.path.relpath(run.file, tmp_path) for run in runs]
    assert not problems and names == ["b.jsonl", "a/a.jsonl", "a/z.jsonl"]
    assert [run.data["conversation_id"] for run in runs] == ["b", "a", "z"]


def test_a_broken_file_does_not_stop_the_folder(write, tmp_path):
    write(LINE, "a.jsonl")
    write(b"\xff", "b.jsonl")
    write("", "c.jsonl")
    write(LINE, "d.jsonl")
    out = read("agents-sdk", tmp_path)
    assert [type(one).__name__ for one in out] == ["Imported", "Problem", "Problem", "Imported"]


def test_a_folder_without_such_files_says_so(tmp_path):
    assert found("swe-agent", tmp_path) == ([], [(0, "empty")])


def test_a_link_to_a_folder_is_not_followed(write, tmp_path):
    write(LINE, "runs/a.jsonl")
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs")
    assert len(read("agents-sdk", tmp_path)) == 1


def test_a_link_that_leads_out_of_the_folder_is_named_and_not_read(write, tmp_path):
    write(LINE, "runs/a.jsonl")
    write(LINE.replace("hello", "secret"), "elsewhere/secret.jsonl")
    (tmp_path / "runs" / "b.jsonl").symlink_to("a.jsonl")
    (tmp_path / "runs" / "c.jsonl").symlink_to(tmp_path / "elsewhere" / "secret.jsonl")
    out = read("agents-sdk", tmp_path / "runs")
    assert [type(one).__name__ for one in out] == ["Imported", "Imported", "Problem"]
    assert out[2].kind == "unreadable" and "leads out" in out[2].message
    # A folder that is itself reached by a link is the folder that was meant.
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    assert len(read("agents-sdk", tmp_path / "link")) == 3


def test_a_file_that_is_not_there_or_is_no_file_is_a_problem(tmp_path):
    assert found("chat", tmp_path / "absent.jsonl") == ([], [(0, "not_found")])
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert found("chat", tmp_path) == ([], [(0, "unreadable")])


def test_a_file_without_permission_is_a_problem(write, monkeypatch):
    def refuse(*_args):
        raise PermissionError(13, "Permission denied")

    path = write(LINE)
    monkeypatch.setattr(pathlib.Path, "open", refuse)  # Root, who may run the tests, may read every file.
    assert found("agents-sdk", path) == ([], [(0, "unreadable")])


def test_an_unknown_format_and_a_bad_name_are_refused_at_once(tmp_path):
    with pytest.raises(errors.InvalidInput, match="nope"):
        sources.read("nope", tmp_path, project="demo", memory="m")
    with pytest.raises(errors.InvalidId):
        sources.read("chat", tmp_path, project="../demo", memory="m")
    with pytest.raises(errors.InvalidId):
        sources.read("chat", tmp_path, project="demo", memory="M")


# --- agents-sdk -------------------------------------------------------------------------------------------


def test_an_sdk_line_is_the_record_byte_for_byte(write):
    odd = '{ "rollout_id":"r1","input" : [{"role":"user","content":"Caf\\u00e9 é \u2028 \u0085"}], "x":1.50 }'
    (run,), problems = found("agents-sdk", write(odd + "\r\n"))
    assert not problems and run.data["record"] == odd


def test_a_line_of_the_javascript_sdk_is_one_record(write):
    line = json.dumps(
        {
            "updated_at": "2026-09-01T09:00:00.120+00:00",
            "rollout_id": "js-1",
            "input": [{"type": "message", "role": "user", "content": "naïve \u2028 text"}],
            "generated_items": [
                {"type": "function_call", "callId": "c1", "name": "sh", "arguments": "{}"},
                {"type": "function_call_result", "callId": "c1", "output": {"type": "text", "text": "ok"}},
            ],
        },
        ensure_ascii=False,
    )
    (run,), problems = found("agents-sdk", write(line + "\n"))
    assert not problems and run.data["record"] == line and run.data["conversation_id"] == "js-1"


@pytest.mark.parametrize("own", [None, "", "  ", 7])
def test_a_line_without_a_rollout_id_belongs_to_its_file(write, own):
    line = json.dumps({"rollout_id": own, "input": [ITEM]})
    (run,), _ = found("agents-sdk", write(line, "conv-9.jsonl"))
    assert run.data["conversation_id"] == "conv-9"


@pytest.mark.parametrize("own", ["../x", "a\u0000b", "x" * 2000, "\ud800"])
def test_a_rollout_id_that_is_an_attack_is_a_problem(write, own):
    assert found("agents-sdk", write(json.dumps({"rollout_id": own, "input": [ITEM]}))) == (
        [],
        [(1, "invalid_id")],
    )


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(one=st.text(min_size=1, max_size=30), other=st.text(min_size=1, max_size=30))
def test_runs_of_two_rollouts_never_share_a_run_id(write, one, other):
    hypothesis.assume(one.strip() != other.strip())
    lines = [json.dumps({"rollout_id": rollout, "input": [ITEM]}) for rollout in (one, other)]
    runs, _ = found("agents-sdk", write("\n".join(lines), "stem.jsonl"))
    assert len({run.data["run_id"] for run in runs}) == len(runs)
    for run in runs:
        assert run.data["run_id"].startswith(ids.alias(run.data["conversation_id"]))


# --- a folder as it is found -------------------------------------------------------------------------------

PICTURE = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0K" * 4000},
}


def found_folder(folder, name):
    """Session files as they are found: whole, half-written, of Windows, empty, of another program, not text."""
    turn, more = (
        (
            [sessions.meta(), sessions.user("hello"), sessions.said("hi")],
            [*sessions.shell("ls", "a.txt", "c9"), sessions.item("message", role="user", content=[PICTURE])],
        )
        if name == "codex"
        else (
            [sessions.asked("u1", "hello"), sessions.answered("a1", "hi")],
            [sessions.claude("user", "u2", [PICTURE, {"type": "text", "text": "See."}])],
        )
    )
    whole = "".join(json.dumps(one) + "\n" for one in turn)
    grown = "".join(json.dumps(one) + "\n" for one in more)
    stem = "rollout-" if name == "codex" else ""
    bodies = {
        "a-live": (whole + grown)[:-20].encode(),
        "b-windows": b"\xef\xbb\xbf" + whole.replace("\n", "\r\n").encode(),
        "c-empty": b"",
        "d-other": b'{"record_type": "state"}\n',
        "e-utf16": whole.encode("utf-16"),
        "f-latin": whole.replace("hello", "h\xe9llo").encode("latin-1"),
        "g-mixed": whole.replace("\n", "\nnull\n[1]\n{broken\n\n").encode(),
        "h-cut": whole.encode() + b"\0" * 4096,
    }
    for label, body in bodies.items():
        path = folder / "2026" / f"{stem}{label}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return folder, folder / "2026" / f"{stem}a-live.jsonl", (whole + grown).encode()


@pytest.mark.parametrize("name", ["codex", "claude-code"])
def test_a_folder_of_sessions_is_read_as_far_as_it_is_whole_each_time_alike(name, tmp_path):
    folder, live, finished = found_folder(tmp_path, name)
    out = read(name, folder)
    assert read(name, folder) == out
    runs = [one for one in out if isinstance(one, Imported)]
    problems = {
        (pathlib.Path(one.file).stem.removeprefix("rollout-"), one.kind)
        for one in out
        if isinstance(one, Problem)
    }
    assert {
        ("a-live", "bad_json"),
        ("c-empty", "empty"),
        ("d-other", "invalid_record"),
        ("e-utf16", "bad_json"),
        ("f-latin", "bad_json"),
        ("g-mixed", "bad_json"),
        ("g-mixed", "invalid_record"),
        ("h-cut", "bad_json"),
    } <= problems
    assert {"a-live", "b-windows", "g-mixed", "h-cut"} == {
        pathlib.Path(one.file).stem.removeprefix("rollout-") for one in runs
    } - {"f-latin"}
    # The same session in several files is the same run.
    assert len({one.data["run_id"] for one in runs if "f-latin" not in one.file}) == 1
    assert not any("iVBORw0K" in one.data["record"] for one in runs)
    live.write_bytes(finished)
    later = [one for one in read(name, live) if isinstance(one, Imported)]
    assert not [one for one in read(name, live) if isinstance(one, Problem)]
    assert later[0].data["run_id"] == runs[0].data["run_id"]
    assert not any("iVBORw0K" in one.data["record"] for one in later)


@pytest.mark.parametrize("name", ["codex", "claude-code"])
def test_two_files_of_one_session_are_one_session(name, tmp_path):
    """A copy of its folder, or a worktree: one went on, and what both hold is the same run."""
    if name == "codex":
        head, more = [sessions.meta()], [sessions.said("More.", 3)]
        first = sessions.codex_turn(1, sessions.user("Go."), sessions.said("Done."))[:-1]
        later = sessions.codex_turn(2, sessions.user("Next."), sessions.said("Next done."))
    else:
        head, more = [], [sessions.answered("a2", "More.")]
        first = [sessions.asked("u1", "Go."), sessions.answered("a1", "Done.")]
        later = [sessions.asked("u3", "Next."), sessions.answered("a3", "Next done.")]
    stem = f"rollout-{sessions.THREAD}" if name == "codex" else sessions.SESSION
    sessions.write(tmp_path / "one" / f"{stem}.jsonl", *head, *first)
    sessions.write(tmp_path / "two" / f"{stem}.jsonl", *head, *first, *more, *later)
    out = read(name, tmp_path)
    assert all(isinstance(one, Imported) for one in out)
    runs = [(one.data["run_id"], one.data["attempt"]) for one in out]
    assert len({run for run, _ in runs}) == 2 and len(set(runs)) == 3
    short, long = runs[0], runs[1]
    assert short[0] == long[0] and short[1] < long[1]
    assert len({one.data["conversation_id"] for one in out}) == 1
