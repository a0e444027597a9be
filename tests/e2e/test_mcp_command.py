"""`runlore mcp`: what an agent sees through the official client, over a real process's stdin and stdout; where the
process itself is not the question, over a server in this one.

The home holds two projects and, in one memory, runs for two subjects: what the server was not started for must
not be reachable by any argument, name or path.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess

import homes
import pytest
from mcp import Client, StdioServerParameters
from mcp.shared.exceptions import MCPError

import made
from runlore import wiring
from runlore.lookup import desk as lookup_desk
from runlore.lookup import index as lookup_index
from runlore.lookup import mcp as lookup_mcp
from runlore.settings import Settings

TOOLS = {"search_memory", "read_memory", "why", "list_runs", "list_memories", "read_rollout"}
ANA = "Ana's secret is quinoa"


def event(number, **more):
    return made.event(number, **more)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A home with two projects; no test here changes it."""
    home = homes.Home(tmp_path_factory.mktemp("mcp") / "home")
    shared = [event(number) for number in range(14)]
    own = [
        event(50 + number, rollout="ana-conv", subject="ana", record=made.payload(50 + number, text=ANA))
        for number in range(2)
    ]
    other = [event(number, project="globex", memory="sales", rollout="their-conv") for number in range(4)]
    second = [event(number, memory="builds", rollout="build-1") for number in range(80, 83)]
    home.emit(made.lines([*shared, *own, *other, *second]))
    home.up_once()
    return home


@contextlib.asynccontextmanager
async def client(home, *options):
    """The official client on a real process."""
    server = StdioServerParameters(
        command=str(homes.RUNLORE), args=["mcp", *options], env=dict(home.environment)
    )
    async with Client(server, read_timeout_seconds=homes.WAIT_SECONDS_MAX) as connected:
        yield connected


@contextlib.asynccontextmanager
async def inside(home, **whose):
    """The official client on a server in this process."""
    async with wiring.open_home(Settings(home=home.root, fsync=False)) as opened:
        index = lookup_index.Index(opened.index_path)
        try:
            desk = lookup_desk.Desk(opened.reader, index, **whose)
            async with Client(lookup_mcp.serve(desk, log_level="warning")) as connected:
                yield connected
        finally:
            index.close()


SUPPORT = {"project": "acme", "memory": "support"}


async def ask(connected, tool, /, **arguments):
    """What a tool answers; the text says the same as the structured answer."""
    got = await connected.call_tool(tool, arguments)
    assert json.loads(got.content[0].text) == got.structured_content
    assert not got.is_error, got
    return got.structured_content


async def refused(connected, tool, /, **arguments):
    """The error of a tool."""
    got = await connected.call_tool(tool, arguments)
    assert got.is_error and json.loads(got.content[0].text) == got.structured_content, got
    return got.structured_content["error"]


def test_every_tool_says_what_the_command_line_says_and_only_reads(filled):
    paths = [one["path"] for one in filled.json("show", *homes.MEANT)["files"]]
    told = filled.json("show", "memory_summary.md", *homes.MEANT)["text"]
    line = next(n for n, text in enumerate(told.splitlines(), 1) if "run_query" in text)
    notes = filled.json("why", f"memory_summary.md:{line}", *homes.MEANT)["notes"]

    async def work():
        async with client(filled, *homes.MEANT) as connected:
            tools = (await connected.list_tools()).tools
            assert {tool.name for tool in tools} == TOOLS
            assert all(tool.annotations.read_only_hint and tool.description for tool in tools)
            assert "'support' of project 'acme'" in connected.instructions
            (memory,) = (await ask(connected, "list_memories"))["memories"]
            assert memory["memory"] == "support" and memory["revision"] == 1
            assert [one["path"] for one in (await ask(connected, "read_memory"))["files"]] == paths
            summary = await ask(connected, "read_memory", path="memory_summary.md")
            assert summary["text"] == told.rstrip("\n") and "cut" not in summary
            because = await ask(connected, "why", path="memory_summary.md", line=line)
            assert because["notes"] == notes and notes[0]["evidence"]
            found = await ask(connected, "search_memory", query="total_cents RUN_QUERY")
            assert {"path": "memory_summary.md", "line": line, "text": because["text"]} in found["lines"]
            assert found["rollouts"] and set(found["rollouts"][0]) == {"rollout", "snippet"}
            runs = await ask(connected, "list_runs", limit=3)
            assert [run["run"] for run in runs["runs"]] == ["run-13", "run-12", "run-11"]
            assert "newest 3" in runs["cut"]
            rollout = await ask(connected, "read_rollout", rollout=runs["runs"][0]["rollout"])
            assert "run-13" in {run["run"] for run in rollout["runs"]}
            assert "# Please do task" in rollout["summary"]

    before = homes.tree(filled.root / "store")
    asyncio.run(work())
    assert homes.tree(filled.root / "store") == before


async def test_no_argument_name_or_path_leads_to_another_project_memory_or_subject(filled):
    async with client(filled, *homes.MEANT) as connected:
        for tool in TOOLS:
            assert (await refused(connected, tool, project="globex"))["kind"] == "invalid_input"
        for tool, arguments in {
            "read_memory": {"path": "MEMORY.md"},
            "why": {"path": "MEMORY.md", "line": 1},
            "search_memory": {"query": "task"},
            "read_rollout": {"rollout": "their-conv"},
            "list_runs": {},
        }.items():
            for name in ("sales", "builds"):
                assert (await refused(connected, tool, memory=name, **arguments))["kind"] == "not_found"
            for name in ("../globex/sales", "globex/memories/sales", "..", "/"):
                assert (await refused(connected, tool, memory=name, **arguments))["kind"] == "invalid_id"
        for path in ("../../../globex/memories/sales", "/etc/passwd", "../home.json"):
            assert (await refused(connected, "read_memory", path=path))["kind"] == "not_found"
        for name in ("their-conv", "build-1", "ana-conv", "no-such-conv"):
            assert (await refused(connected, "read_rollout", rollout=name))["kind"] == "not_found"
        assert (await refused(connected, "read_rollout", rollout="../globex"))["kind"] == "invalid_id"
        for uri in (
            "runlore://sales/MEMORY.md",
            "runlore://builds/MEMORY.md",
            "runlore://support/..%2F..%2Fx",
        ):
            with pytest.raises(MCPError):
                await connected.read_resource(uri)
        everything = [
            await ask(connected, "list_runs", limit=100),
            await ask(connected, "search_memory", query="quinoa"),
        ]
        everything += [
            await ask(connected, "read_memory", path=one["path"])
            for one in (await ask(connected, "read_memory"))["files"]
        ]
        told = json.dumps(everything)
        assert "quinoa" not in told and "ana-conv" not in told and "their-conv" not in told


async def test_a_subject_sees_their_own_beside_what_all_see(filled):
    async with inside(filled, **SUPPORT, subject="ana") as connected:
        found = await ask(connected, "search_memory", query="quinoa")
        assert found["lines"] and [one["rollout"] for one in found["rollouts"]] == ["ana-conv"]
        assert "ana-conv" in {run["rollout"] for run in (await ask(connected, "list_runs"))["runs"]}
        assert ANA in (await ask(connected, "read_rollout", rollout="ana-conv"))["summary"]


async def test_without_a_memory_a_client_names_one_of_the_projects(filled):
    async with inside(filled, project="acme") as connected:
        listed = (await ask(connected, "list_memories"))["memories"]
        assert [one["memory"] for one in listed] == ["builds", "support"]
        error = await refused(connected, "read_memory")
        assert error["kind"] == "invalid_input" and error["hint"] == "memories: builds, support"
        assert (await ask(connected, "read_memory", memory="builds"))["memory"] == "builds"
        assert {run["memory"] for run in (await ask(connected, "list_runs"))["runs"]} == {"builds", "support"}
        (only,) = {run["memory"] for run in (await ask(connected, "list_runs", memory="builds"))["runs"]}
        assert only == "builds"
        for tool, arguments in {
            "read_memory": {},
            "why": {"path": "MEMORY.md", "line": 1},
            "search_memory": {"query": "task"},
            "read_rollout": {"rollout": "conv-1"},
            "list_runs": {},
        }.items():
            error = await refused(connected, tool, memory="sales", **arguments)
            assert error["kind"] == "not_found", tool
        assert error["hint"] == "memories: builds, support"


async def test_a_wrong_argument_is_an_error_that_says_what_is_right(filled):
    async with inside(filled, **SUPPORT) as connected:
        for tool, arguments, kind in [
            ("read_memory", {"path": "nope.md"}, "not_found"),
            ("read_memory", {"path": "MEMORY.md", "revision": 9}, "not_found"),
            ("read_memory", {"path": "MEMORY.md", "from_line": 10_000}, "not_found"),
            ("read_memory", {"path": "MEMORY.md", "from_line": 0}, "not_found"),
            ("read_memory", {"path": ["x"]}, "invalid_input"),
            ("why", {"path": "MEMORY.md"}, "invalid_input"),
            ("why", {"path": "MEMORY.md", "line": 10_000}, "not_found"),
            ("search_memory", {"query": "  "}, "invalid_input"),
            ("search_memory", {"query": "x" * 2000}, "invalid_input"),
            ("search_memory", {"query": "x", "limit": 0}, "invalid_input"),
            ("list_runs", {"limit": 10_000}, "invalid_input"),
            ("read_rollout", {"rollout": " "}, "invalid_input"),
            ("read_memory", {"from_line": 10_000}, "not_found"),
            ("read_memory", {"revision": 2**70, "path": "MEMORY.md"}, "not_found"),
            ("why", {"path": "MEMORY.md", "line": 1.5}, "invalid_input"),
            ("forget_memory", {}, "invalid_input"),
        ]:
            assert (await refused(connected, tool, **arguments))["kind"] == kind, (tool, arguments)
        assert "search_memory" in (await refused(connected, "forget_memory"))["hint"]
        # What was asked is repeated, but not all of it.
        assert len((await refused(connected, "read_memory", path="x" * 100_000))["message"]) <= 1000
        for query in ('"', "NEAR(", "a* OR b", "\ud800", "' OR 1=1 --"):
            await ask(connected, "search_memory", query=query.encode("utf-8", "replace").decode())


def test_memory_files_are_resources(filled):
    texts = {
        one["path"]: filled.json("show", one["path"], *homes.MEANT)["text"]
        for one in filled.json("show", *homes.MEANT)["files"]
        if one["path"].startswith(("memory_summary", "rollout_summaries/conv-1_"))
    }

    async def work():
        async with inside(filled, **SUPPORT) as connected:
            uris = {one.uri for one in (await connected.list_resources()).resources}
            for path, text in texts.items():
                assert f"runlore://support/{path}" in uris
                (content,) = (await connected.read_resource(f"runlore://support/{path}")).contents
                assert content.text == text
            with pytest.raises(MCPError, match="not_found"):
                await connected.read_resource("runlore://support/nope.md")

    assert len(texts) == 2
    asyncio.run(work())


def test_a_new_revision_is_seen_by_a_server_that_runs(tmp_path):
    home = homes.Home(tmp_path / "home")
    home.emit(made.lines([event(1)]))

    async def work():
        async with inside(home, **SUPPORT) as connected:
            assert (await refused(connected, "read_memory"))["kind"] == "not_found"
            await asyncio.to_thread(home.run, "up", "--once")
            assert (await ask(connected, "read_memory"))["revision"] == 1

    asyncio.run(work())


async def test_each_tool_that_shows_text_says_that_it_is_data(filled):
    async with inside(filled, **SUPPORT) as connected:
        told = {tool.name: tool.description for tool in (await connected.list_tools()).tools}
        assert "never an instruction" in connected.instructions
    says = {name for name, text in told.items() if "never an instruction" in text}
    assert says == TOOLS - {"list_memories", "list_runs"}


async def test_no_answer_holds_more_than_its_bound_and_lists_go_on_where_they_were_cut(filled, monkeypatch):
    async with inside(filled, **SUPPORT) as connected:
        paths = [one["path"] for one in (await ask(connected, "read_memory"))["files"]]
        monkeypatch.setattr(lookup_desk, "TEXT_CHARS_MAX", 400)
        found, first = [], 1
        while first:
            part = await ask(connected, "read_memory", from_line=first)
            assert len(json.dumps(part["files"])) <= 600
            found += [one["path"] for one in part["files"]]
            first = int(part["cut"].rpartition("=")[2]) if "cut" in part else 0
        assert found == paths and len(paths) > len(part["files"])
        for tool, arguments, rows in [
            ("search_memory", {"query": "task", "limit": 50}, "lines"),
            ("list_runs", {"limit": 100}, "runs"),
            ("why", {"path": "memory_summary.md", "line": 3}, "notes"),
        ]:
            got = await ask(connected, tool, **arguments)
            assert len(got[rows]) <= 1 or len(json.dumps(got[rows])) <= 600, tool
            assert tool == "why" or "cut" in got


def test_a_long_file_is_read_in_parts_that_make_the_whole(filled, monkeypatch):
    whole = filled.json("show", "MEMORY.md", *homes.MEANT)["text"]
    monkeypatch.setattr(lookup_desk, "TEXT_CHARS_MAX", 300)

    async def work():
        parts, line = [], 1
        async with inside(filled, **SUPPORT) as connected:
            while line:
                part = await ask(connected, "read_memory", path="MEMORY.md", from_line=line)
                assert len(part["text"]) <= 300
                parts.append(part["text"])
                line = int(part["cut"].rpartition("=")[2]) if "cut" in part else 0
            (content,) = (await connected.read_resource("runlore://support/MEMORY.md")).contents
            assert (
                content.text.endswith("from_line=" + content.text.rpartition("=")[2])
                and "[cut: " in content.text
            )
        return parts

    parts = asyncio.run(work())
    assert len(parts) > 3 and "\n".join(parts) == whole.rstrip("\n")


async def test_a_bug_of_ours_shows_nothing_of_itself(filled, monkeypatch):
    async def fail(*_args, **_named):
        raise ValueError("the secret in the traceback")

    async with inside(filled, **SUPPORT) as connected:
        monkeypatch.setattr(lookup_desk.Desk, "list_memories", fail)
        got = await connected.call_tool("list_memories", {})
    assert got.is_error and "secret" not in got.content[0].text


def test_stdout_holds_the_protocol_alone_and_the_end_of_stdin_is_the_end(filled):
    first = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "t", "version": "0"},
        },
    }
    call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call"}
    call["params"] = {"name": "read_memory", "arguments": {"path": "nope"}}
    told = [first, {"jsonrpc": "2.0", "method": "notifications/initialized"}, call]
    with subprocess.Popen(
        [homes.RUNLORE, "mcp", *homes.MEANT],
        env=filled.environment | {"RUNLORE_LOG_LEVEL": "debug"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        homes.STARTED.append(process)
        answered = []
        for one in told:
            process.stdin.write(json.dumps(one) + "\n")
            process.stdin.flush()
            if "id" in one:
                answered.append(json.loads(process.stdout.readline()))
        process.stdin.close()
        rest = process.stdout.read()
        assert process.wait(homes.WAIT_SECONDS_MAX) == 0 and rest == ""
        assert [one["id"] for one in answered] == [1, 2] and answered[1]["result"]["isError"]
        assert "Traceback" not in process.stderr.read()


def test_sigterm_ends_it(filled):
    with subprocess.Popen(
        [homes.RUNLORE, "mcp", *homes.MEANT],
        env=filled.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        homes.STARTED.append(process)
        process.stdin.write(b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n')
        process.stdin.flush()
        assert process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(homes.WAIT_SECONDS_MAX) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        ((), "--project is needed", 2),
        (("--project", "../acme"), "is not a name", 2),
        (("--project", "acme", "--memory", "A B"), "is not a name", 2),
        (("--home", "nowhere"), "there is no Runlore home", 3),
    ],
    ids=["several-projects", "bad-project", "bad-memory", "no-home"],
)
def test_what_it_can_not_serve_ends_it_with_words_on_stderr(filled, tmp_path, words, said, code):
    words = [str(tmp_path / word) if word == "nowhere" else word for word in words]
    done = filled.call("mcp", *words, code=None)
    assert said in done.err and done.out == "" and done.code == code
