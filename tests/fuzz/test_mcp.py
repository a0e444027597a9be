"""The MCP server and whoever speaks to it badly: each call is answered, none ends it, none shows another project."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
from hostile import examples, world
from hypothesis import strategies as st

import made
from runlore.commit import revisions
from runlore.lookup import desk, index, mcp

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40) | st.just("x" * 100_000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
NAMES = ["query", "memory", "path", "line", "revision", "from_line", "limit", "rollout", "project", "subject"]
LIKELY = ["support", "MEMORY.md", "conv-1", "task", "../zoo", "zoo", "their-conv", 1, 0, -1, 10**30, "1"]
TOOLS = [
    "search_memory",
    "read_memory",
    "why",
    "list_runs",
    "list_memories",
    "read_rollout",
    "",
    "no\r\nsuch",
]
ARGUMENTS = st.dictionaries(st.sampled_from(NAMES), JSON | st.sampled_from(LIKELY), max_size=4)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mcp")

    async def fill(one):
        for number in (1, 2):
            await one.events(made.data(number, rollout=f"conv-{number}"))
        theirs = made.data(3, project="zoo", rollout="their-conv", record=made.payload(3, text="needle-text"))
        await one.post("events", theirs, status=202, prefix="/v1/projects/zoo")
        await one.work(project="zoo")
        rows = index.Index(folder / "desk.db")
        return rows, mcp.serve(
            desk.Desk(revisions.Reader(one.store), rows, project="acme"), log_level="error"
        )

    with world(folder, fill) as found, contextlib.closing(found.filled[0]):
        yield found


@examples(60, 3000)
@hypothesis.given(st.sampled_from(TOOLS), ARGUMENTS)
def test_any_arguments_are_answered_and_show_no_other_project(served, tool, arguments):
    answer = served.run(served.filled[1].call_tool(tool, arguments))
    told = str(answer)
    assert "needle" not in told and len(told) < 200_000
    if getattr(answer, "is_error", False):
        assert answer.structured_content["error"]["kind"] not in ("internal", ""), told


def frame(method, number, **params):
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode()


HELLO = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
BAD = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"\xff\xfe",
    b'"text"',
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"9" * 50_000,
    b'{"jsonrpc":"1.0","id":1}',
    b'{"jsonrpc":"2.0","id":{},"method":"tools/call"}',
    b'{"jsonrpc":"2.0","id":7,"method":7,"params":[]}',
    b'{"jsonrpc":"2.0","id":8,"result":{}}',
    frame("tools/call", 9, name="why", arguments="x" * 1_000_000),
    frame("tools/call", 10, name={"a": 1}, arguments=[1]),
    frame("resources/read", 11, uri="runlore://../../etc/passwd"),
    frame("resources/read", 12, uri="file:///etc/passwd"),
    frame("no/such", 13),
]


@pytest.mark.process
def test_frames_that_are_none_do_not_end_the_server(tmp_path):
    runlore = Path(sys.executable).with_name("runlore")
    home = ["--home", tmp_path / "home"]
    subprocess.run(
        [runlore, "emit", *home], input=made.lines([made.event(1)]), check=True, capture_output=True
    )
    command = [runlore, "mcp", "--project", "acme", *home]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as one:
        ready = json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}).encode()
        sent = [frame("initialize", 1, **HELLO), ready, *BAD, frame("tools/list", 99)]
        said = []
        try:
            one.stdin.write(b"".join(line + b"\n" for line in sent))
            one.stdin.flush()
            for line in one.stdout:
                said.append(json.loads(line))
                if said[-1].get("id") == 99:
                    break
        finally:
            one.kill()
    assert said and said[-1]["id"] == 99 and len(said[-1]["result"]["tools"]) == 6, said
    assert {row["id"] for row in said if "error" in row} >= {11, 12, 13}
    assert "root:" not in json.dumps(said)
