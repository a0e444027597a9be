"""What every command promises: help with an example, one JSON object, documented exit codes, lists without an id."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys

import homes
import pytest

import made
from runlore.cli import main

ORDERS = homes.ROOT / "examples" / "sources" / "orders.toml"
COMMANDS = {
    # words without options → the exit code on a filled home; on an empty one; where there is no home
    ("log",): (0, 0, 3),
    ("log", "support"): (0, 0, 3),
    ("show",): (0, 0, 3),
    ("show", "memory_summary.md"): (0, 0, 3),
    ("show", "no-such-file.md"): (3, 0, 3),
    ("diff",): (0, 0, 3),
    ("diff", "1", "2"): (0, 0, 3),
    ("diff", "1", "99"): (3, 0, 3),
    ("why",): (0, 0, 3),
    ("why", "memory_summary.md:1"): (0, 0, 3),
    ("why", "nonsense"): (2, 0, 3),
    ("search",): (0, 0, 3),
    ("search", "task"): (0, 0, 3),
    ("explain",): (0, 0, 3),
    ("explain", "run-1"): (0, 3, 3),
    ("explain", "nobody"): (3, 3, 3),
    ("status",): (0, 0, 3),
    ("wait",): (0, 0, 3),
    ("wait", "run-1", "--timeout", "0"): (0, 5, 3),
    ("wait", "nobody", "--timeout", "0"): (5, 5, 3),
    ("refresh",): (0, 0, 3),
    ("refresh", "support"): (2, 2, 2),
    ("refresh", "support", "-p", "acme"): (0, 0, 3),
    ("spend",): (0, 0, 3),
    ("spend", "--by", "colour"): (2, 2, 3),
    ("verify",): (0, 0, 3),
    ("doctor",): (6, 6, 0),  # The tests' homes do not sync, and doctor says so.
    ("revert",): (0, 0, 3),
    ("revert", "support", "--to", "1"): (2, 2, 3),  # No reason, or no such memory.
    ("revert", "support", "--to", "99", "--reason", "x"): (3, 2, 3),
    ("rebuild",): (0, 0, 3),
    ("rebuild", "list"): (0, 0, 3),
    ("rebuild", "start"): (2, 0, 3),  # Of what is not clear the memories are listed.
    ("rebuild", "support", "--as", "x", "--rules"): (2, 0, 3),  # No reason.
    ("rebuild", "drop"): (2, 0, 3),
    ("rebuild", "drop", "support", "nobody", "--reason", "x"): (3, 0, 3),
    ("promote",): (2, 0, 3),
    ("promote", "support", "nobody", "--reason", "x"): (3, 0, 3),
    ("dead",): (0, 0, 3),
    ("dead", "list"): (0, 0, 3),
    ("dead", "show"): (0, 0, 3),
    ("dead", "show", "0123"): (3, 3, 3),
    ("dead", "redrive"): (2, 2, 3),
    ("dead", "redrive", "--all", "--dry-run"): (0, 0, 3),
    ("dead", "drop"): (2, 2, 3),
    ("dead", "drop", "--reason", "nothing"): (0, 0, 3),
    ("review",): (0, 0, 3),
    ("review", "list"): (0, 0, 3),
    ("review", "show"): (2, 2, 2),
    ("review", "show", "nobody", *homes.MEANT): (3, 3, 3),
    ("review", "reject"): (2, 2, 2),
    ("review", "reject", "nobody", *homes.MEANT, "--reason", "x"): (3, 3, 3),
    ("review", "approve"): (2, 2, 2),
    ("review", "approve", "nobody", *homes.MEANT, "--reason", "x"): (3, 3, 3),
    ("seed",): (0, 0, 3),
    ("seed", "conv-1"): (2, 2, 3),
    ("seed", "conv-1", *homes.MEANT): (0, 0, 3),
    ("seed", "conv-1", *homes.MEANT, "--at", "99"): (3, 3, 3),
    ("seed", "s1.nonsense"): (2, 2, 3),
    ("seed", "../climbs", *homes.MEANT): (2, 2, 3),
    ("seed", "conv-1", "-p", "../x", "-m", "support"): (2, 2, 3),
    ("snapshot", "save"): (2, 2, 2),
    ("snapshot", "save", "/no/such/folder", "-p", "acme", "-r", "conv-1"): (2, 2, 2),
    ("snapshot", "ingest"): (2, 2, 2),
    ("snapshot", "ls"): (0, 0, 3),
    ("snapshot", "ls", "conv-9"): (3, 3, 3),
    **{("snapshot", one): (0, 0, 3) for one in ("tree", "cat", "diff", "restore", "export", "merge")},
    **{("snapshot", one): (0, 0, 3) for one in ("tag", "drop", "retain", "verify", "stats")},
    ("snapshot", "verify", "nothing", "-p", "acme"): (3, 3, 3),
    ("snapshot", "verify", "nothing"): (2, 2, 3),
    ("sweep",): (0, 0, 3),
    ("sweep", "--apply"): (0, 0, 3),
    ("pause",): (0, 0, 3),
    ("pause", "consolidate"): (2, 2, 3),  # No reason.
    ("pause", "index", "--reason", "x"): (2, 2, 3),
    ("pause", "record", "--memory", "acme/support", "--reason", "x"): (2, 2, 3),
    ("pause", "consolidate", "--memory", "support", "--reason", "x"): (2, 2, 3),
    ("resume",): (2, 2, 3),
    ("resume", "consolidate", "--reason", "x"): (3, 3, 3),
    ("replay",): (2, 2, 2),
    ("replay", "--from", "yesterday", "--reason", "x"): (2, 2, 2),
    ("replay", "--from", "3h", "--stage", "consolidate", "--reason", "x"): (2, 2, 2),
    ("replay", "--from", "3h"): (2, 2, 2),  # No reason.
    ("repair",): (0, 0, 3),
    ("repair", "--apply"): (2, 2, 2),  # No reason.
    ("rescan", "--dry-run"): (0, 0, 3),
    ("rescan",): (2, 2, 2),  # No reason.
    ("audit",): (0, 0, 3),
    ("audit", "--seeds", "--revision", "1"): (0, 0, 3),
    ("audit", "--revision", "1"): (2, 2, 2),  # Of seeds, which were not asked for.
    ("audit", "verify"): (0, 0, 3),
    ("audit", "verify", "--expect", "x"): (2, 2, 3),
    ("topics", "plan"): (0, 0, 0),
    ("topics", "plan", "--partitions", "nonsense=3"): (2, 2, 2),
    ("topics", "apply"): (4, 4, 4),  # The embedded log needs none.
    ("source", "check"): (2, 2, 2),  # No mapping, or no sample.
    ("source", "check", ORDERS): (2, 2, 2),
    ("source", "check", ORDERS, ORDERS.with_name("orders-sample.json")): (0, 0, 0),
    ("source", "check", "/no/such/map.toml", "-"): (3, 3, 3),
    ("source", "init"): (2, 2, 2),
    ("source", "init", ORDERS.with_name("spans-sample.json")): (0, 0, 0),
    ("source", "init", ORDERS): (2, 2, 2),  # No JSON.
    ("source", "run"): (2, 2, 2),
    ("source", "run", ORDERS, "--dry-run"): (0, 0, 3),
    ("source", "redrive"): (2, 2, 2),
    ("source", "redrive", ORDERS, "--all"): (0, 0, 3),
    ("mcp",): (0, 2, 3),  # No project to be fixed on.
    ("mcp", "-p", "acme", "-m", "support"): (0, 0, 3),
    ("mcp", "-p", "../x"): (2, 2, 3),
    ("import",): (0, 0, 0),
    ("import", "no-format"): (2, 2, 2),
    ("import", "chat"): (2, 2, 2),
    ("import", "chat", "/no/such/file", *homes.MEANT): (3, 3, 3),
    ("emit", "/no/such/file"): (3, 3, 3),
    ("emit", "-"): (0, 0, 0),
    ("log", "--no-such-option"): (2, 2, 2),
    ("dead", "no-such-command"): (2, 2, 2),
    ("up", "--once"): (0, 0, 0),
    ("worker",): (4, 4, 4),  # On one machine it is `up`.
    ("index",): (4, 4, 4),
    ("serve", "--host", "0.0.0.0"): (4, 4, 4),  # Open to everybody, without keys.
    ("serve", "--host", "no.such.host.invalid"): (4, 4, 4),
    ("keys", "create"): (2, 2, 2),
    ("keys", "create", "acme", "--name", "ci"): (2, 2, 2),  # No reason.
    ("keys", "list"): (2, 2, 2),
    ("keys", "list", "acme"): (0, 0, 3),
    ("keys", "revoke"): (2, 2, 2),
    ("keys", "revoke", "nothing", "--reason", "x"): (3, 3, 3),
    ("admin", "bootstrap"): (2, 2, 2),  # No reason.
    ("admin", "log"): (0, 0, 3),
    **{("admin", one, "list"): (0, 0, 3) for one in ("keys", "projects", "invites", "users")},
    **{("admin", one, "list"): (2, 2, 2) for one in ("accounts", "limits")},  # No project.
    ("admin", "accounts", "list", "nobody"): (3, 3, 3),
    **{("admin", one, "create"): (2, 2, 2) for one in ("keys", "projects", "accounts", "invites")},
    **{("admin", one, "delete"): (2, 2, 2) for one in ("keys", "accounts", "invites", "users")},
    **{("admin", "projects", one): (2, 2, 2) for one in ("rename", "archive")},
    ("admin", "invites", "resend"): (2, 2, 2),
    ("admin", "limits", "set"): (2, 2, 2),
    ("admin", "spend-limit", "show"): (3, 3, 3),  # There is none.
    **{("admin", "spend-limit", one): (2, 2, 2) for one in ("set", "delete")},
    ("admin", "spend-alerts", "list"): (0, 0, 3),
    ("admin", "spend-alerts", "list", "nobody"): (3, 3, 3),
    **{("admin", "spend-alerts", one): (2, 2, 2) for one in ("create", "update", "delete")},
    **{("admin", "usage", one): (0, 0, 3) for one in ("completions", "costs")},
    ("admin", "usage", "costs", "--by", "user_id"): (2, 2, 2),
    ("admin", "retention", "set"): (2, 2, 2),
    ("admin", "retention", "show"): (0, 0, 3),
    ("forget",): (2, 2, 2),  # No project.
    ("upkeep",): (2, 2, 2),  # No reason.
}


def leaves(command=None, words=()):
    """Every command of the app, with the words that call it."""
    command = command or main.command()
    subcommands = getattr(command, "commands", {})
    if words:
        yield words, command
    for name, one in subcommands.items():
        yield from leaves(one, (*words, name))


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A home with two revisions."""
    home = homes.Home(tmp_path_factory.mktemp("filled") / "home")
    for first in (0, 10):
        home.emit(made.lines(made.event(number) for number in range(first, first + 10)))
        home.up_once()
    return home


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A home in which nothing has happened yet."""
    home = homes.Home(tmp_path_factory.mktemp("empty") / "home")
    home.emit(b"")
    return home


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(map(str, words)))
def test_json_is_one_object_on_stdout_with_the_documented_exit_code(words, filled, empty, tmp_path):
    absent = homes.Home(tmp_path / "absent")
    for home, code in zip((filled, empty, absent), COMMANDS[words], strict=True):
        done = home.call(*words, "--json", code=code)
        answer = done.json
        if done.code not in (0, 6):
            error = answer["error"]
            assert error["kind"] and error["message"] and set(answer) == {"error"}
        assert "\x1b" not in done.out
    if words[0] not in ("up", "emit"):
        assert not absent.root.exists(), "a command that only looks made a home"


def test_the_table_above_has_every_command():
    assert {words for words, _ in leaves()} <= {
        tuple(str(word) for word in words[:3] if not str(word).startswith("-"))[:depth]
        for words in COMMANDS
        for depth in (1, 2, 3)
    }


DOCUMENTED = {
    # the row of docs/CLI.md → the words that give its object
    "`up`, `worker`, `index`": ("up", "--once"),
    "`emit`": ("emit", "-"),
    "`import` without FORMAT": ("import",),
    "`seed`": ("seed", "conv-1", *homes.MEANT),
    "`seed` without ID": ("seed",),
    "`log`": ("log",),
    "`show`": ("show",),
    "`show` PATH": ("show", "MEMORY.md"),
    "`diff`": ("diff",),
    "`why`": ("why",),
    "`why` PATH:LINE": ("why", "MEMORY.md:1"),
    "`search` WORDS": ("search", "task"),
    "`explain` EVENT_ID": ("explain", "run-1"),
    "`explain` without EVENT_ID": ("explain",),
    "`status`": ("status",),
    "`verify`": ("verify",),
    "`doctor`": ("doctor",),
    "`pause` without STAGE": ("pause",),
    "`audit`": ("audit",),
    "`audit` verify": ("audit", "verify"),
    "`mcp`": ("mcp",),
    "`topics plan`": ("topics", "plan"),
    "`dead list`": ("dead", "list"),
    "`dead redrive`, `dead drop`": ("dead", "redrive", "--all"),
    "`review list`": ("review", "list"),
    "any, where the memory is not clear": ("log", "--project", "nobody"),
}


@pytest.mark.parametrize("row", DOCUMENTED)
def test_the_docs_name_every_field_of_a_commands_object(row, filled):
    table = (homes.ROOT / "docs" / "CLI.md").read_text("utf-8").split("## JSON objects")[1]
    (text,) = [line for line in table.splitlines() if line.startswith(f"| {row} |")]
    named = set(re.findall(r"`([a-z_]+)`", text.split("|")[2]))
    answer = filled.json(*DOCUMENTED[row], code=None)
    inner = [
        value[0]
        for value in answer.values()
        if isinstance(value, list) and value and isinstance(value[0], dict)
    ]
    assert set(answer) <= named
    if "rows of the index" not in text and row not in ("`seed` without ID",):
        assert {name for one in inner for name in one} <= named | {"memories"} or row == "`status`"


PROCESSES = [
    ("status",),
    ("show", "no-such-file.md"),
    ("log", "--no-such-option"),
    ("dead", "list"),
    ("seed", "conv-1"),
]


@pytest.mark.parametrize("words", PROCESSES, ids=" ".join)
def test_as_a_process_stdout_holds_the_same_object_and_nothing_else(words, filled):
    done, called = filled.run(*words, "--json", code=None), filled.call(*words, "--json", code=None)
    assert (done.code, done.json) == (called.code, called.json)


@pytest.mark.parametrize("words", [words for words, _ in leaves()], ids=" ".join)
def test_every_command_has_help_with_an_example_and_help_for_every_option(words, tmp_path):
    command = dict(leaves())[words]
    told = homes.Home(tmp_path / "absent").call(*words, "--help").out
    assert f"runlore {' '.join(words)} " in told.splitlines()[0]
    if not getattr(command, "commands", {}):
        assert f"Example: runlore {' '.join(words)}" in command.help
        assert {"--json", "--home"} <= {name for one in command.params for name in one.opts} or words == (
            "import",
        )
    for one in command.params:
        assert getattr(one, "help", None), f"{one.name} of {words} has no help"


def test_a_process_that_makes_only_the_command_it_runs_says_what_all_of_them_together_say():
    for words, _ in leaves():
        said = []
        for app in (main.command(), main.command(words[0])):
            with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
                app([*words, "--help"], prog_name="runlore")
            said.append(out.getvalue())
        assert said[0] == said[1] != "", words
    assert main.command("no-such-command") is main.command("--help") is main.command()


def test_options_before_a_groups_command_count_for_it(filled, tmp_path):
    nowhere = homes.Home(tmp_path / "nowhere")
    for group in ("dead", "review"):
        assert nowhere.call(group, "--home", filled.root, "--json", "list").json
        assert nowhere.call(group, "--json", "list", code=3).json["error"]["kind"] == "not_found"


def test_emit_reads_stdin_by_dash_and_by_default(home):
    assert home.json("emit", "-", stdin=made.lines([made.event(1)]))["sent"] == 1
    assert home.json("emit", stdin=made.lines([made.event(2)]))["sent"] == 1
    assert home.up_once()["recorded"] == 2


def test_a_logged_failure_tells_where_it_happened_and_not_what_users_said(tmp_path):
    code = """
import structlog
from runlore.cli import ui
from runlore.settings import Settings
ui.configure_logs(Settings(log_format={form!r}))
try:
    secret = "canary-" + "of-a-user"
    raise KeyError("bug")
except KeyError:
    structlog.get_logger().exception("the engine failed")
"""
    for form in ("json", "text"):
        words = [sys.executable, "-c", code.replace("{form!r}", repr(form))]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert "KeyError" in done.stderr and "line 8" in done.stderr and "canary-of-a-user" not in done.stderr
        assert done.stdout == "" and (
            form == "text" or json.loads(done.stderr)["event"] == "the engine failed"
        )


def test_a_reader_that_goes_away_is_no_error(filled):
    for words in (("log",), ("log", "--json"), ("show", "MEMORY.md"), ("diff",)):
        read, write = os.pipe()
        process = filled.start(*words, stdout=write)
        os.close(write), os.close(read)
        _, err = process.communicate()
        assert (process.returncode, err) == (0, b""), words


def test_a_terminal_that_can_not_show_a_character_ends_no_command(filled):
    process = subprocess.run(
        [homes.RUNLORE, "doctor"],
        env={**filled.environment, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert process.returncode == 6 and b"python:" in process.stdout


def test_ctrl_c_of_an_import_ends_with_130_and_running_it_again_finishes_it(home, tmp_path):
    talk = [{"role": "user", "content": "x" * 20_000}, {"role": "assistant", "content": "done"}]
    lines = [
        json.dumps({"messages": [*talk, {"role": "user", "content": f"{number}"}]}) for number in range(1500)
    ]
    (tmp_path / "talks.jsonl").write_text("\n".join(lines) + "\n")
    words = ("import", "chat", tmp_path / "talks.jsonl", *homes.MEANT)
    process = home.start(*words)
    homes.wait_until(lambda: (home.root / "log.db").exists(), "it to begin")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=homes.WAIT_SECONDS_MAX)
    assert process.returncode == 130 and b"run the same command again" in err and b"Traceback" not in err
    assert home.json(*words)["runs"] == 1500
    lag = home.json("status")["record"]["lag"]
    assert 1500 <= lag < 3000


def test_a_live_edit_is_emitted_shown_with_its_source_and_explained(home):
    home.emit(made.lines([made.event(1, rollout="c1")]))
    home.up_once()
    base = home.call("show", "MEMORY.md").out
    edit = {"project": "acme", "memory": "support", "session_id": "c2", "run_id": "r2", "edit_id": "e2"}
    edit |= {"revision": 1, "edited_at": made.moment(9)}
    text = base + "- Ask \x1b[31mops first\n"
    sha256 = hashlib.sha256(base.encode()).hexdigest()
    edit["files"] = [{"path": "MEMORY.md", "text": text, "base_sha256": sha256}]
    assert home.json("emit", "-", stdin=made.lines([edit, edit]))["sent"] == 2
    assert home.up_once()["dead"] == 0
    after = home.call("show", "MEMORY.md").out.splitlines()
    (place,) = [number for number, line in enumerate(after, 1) if "ops first" in line]
    told = home.call("why", f"MEMORY.md:{place}").out
    assert "live edit: said by run r2 of rollout c2, on revision 1" in told and "\x1b" not in told
    assert "a live edit of MEMORY.md by run r2: lines added 1, taken out 0" in home.call("explain", "e2").out
    home.verified()


def test_control_characters_in_memory_do_not_reach_the_terminal(home):
    nasty = "\x1b[31mred\x07 \x9b2J \u202e \ud800 caf\u00e9"
    record = made.payload(1, text=nasty, items=made.call("a", "run_query", {"q": nasty}, nasty), final=nasty)
    home.emit(made.lines([made.event(1, rollout=f"conv {nasty[:5]!r}", record=record)]))
    home.up_once()
    files = [one["path"] for one in home.json("show")["files"]]
    words = [*(("show", path) for path in files), ("seed",), ("explain",), ("diff",), ("search", "caf\u00e9")]
    outs = [home.call(*one).out for one in words]
    assert not {char for out in outs for char in out if ord(char) < 32 or 127 <= ord(char) < 160} - {
        "\n",
        "\t",
    }
    home.verified()


def test_wrong_settings_are_told_by_their_name_and_an_empty_one_is_none(tmp_path):
    home = homes.Home(tmp_path / "home", lanes="0", log_level="loud")
    message = home.json("status", code=2)["error"]["message"]
    assert "RUNLORE_LANES" in message and "RUNLORE_LOG_LEVEL" in message
    home = homes.Home(tmp_path / "home", lanes="", home="")
    # An empty RUNLORE_HOME is none: the default below HOME, never the folder one happens to be in.
    assert str(tmp_path / ".runlore") in home.json("status", code=3)["error"]["message"]


def test_a_folder_with_other_files_is_not_made_a_home(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for path in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        home = homes.Home(path)
        assert home.json("up", "--once", code=4)["error"]["kind"] == "refused"
        assert home.json("emit", "-", code=4, stdin=b"{}\n")["error"]["kind"] == "refused"
    assert homes.tree(tmp_path / "mine") == {"thesis.txt": b"years of work"}
