"""examples/any-agent: curl and tar against the real service; what one run leaves, the next begins with."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import homes
import pytest
import serving

AGENT = homes.ROOT / "examples" / "any-agent" / "agent.sh"
CONVERSATION = 'user:42 "ü" & co'


@pytest.fixture
def environment(home, tmp_path):
    """What a shell needs to reach a real service, and to find the example as a person does: beside it."""
    for tool in ("curl", "tar"):
        if shutil.which(tool) is None:
            pytest.skip(f"the example needs {tool}: install it")
    shutil.copy(AGENT, tmp_path / "agent.sh")
    home.up()
    return {**home.environment, "RUNLORE_URL": serving.Served(home).start().url}


@pytest.fixture
def agent(environment, tmp_path):
    def ran(task, command, code=0, after=""):
        given = {**environment, "AFTER_RUN": after, "RUN_FILE": str(tmp_path / "run")}
        made = ["sh", "agent.sh", CONVERSATION, task, command]
        done = subprocess.run(
            made, env=given, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout, (tmp_path / "run").read_text().strip()

    return ran


def test_a_second_run_of_the_shell_agent_begins_where_the_first_ended(agent, home):
    task = 'Say "hi"\tin ü\nand \\ keep it'
    work = "pwd -P; mkdir empty bin; echo 'echo ran' > bin/x; chmod 755 bin/x; ln -s x bin/l; exit 3"
    out, first = agent(task, work, code=3)
    assert out.count("\n") == 1
    seen, second = agent("Go on.", "ls -F . bin; sh bin/l; cat memories/MEMORY.md", after=first)
    assert {"empty/", "bin/", "memories/", "x*", "l@", "ran"} <= set(seen.split())
    assert 'Say "hi"' in seen
    homes.wait_until(lambda: len(home.objects("records")) == 2, "the second record")
    (body,) = [one for key, one in home.objects("records").items() if first in key]
    record = json.loads(body.splitlines()[1])
    assert record["input"][0]["content"] == task
    call, output = record["generated_items"]
    assert json.loads(call["arguments"])["command"] == work
    assert output["output"].endswith("exit code 3")
    assert second != first
    home.verified()


def test_what_its_page_shows_is_what_its_commands_print(environment, tmp_path):
    readme = (AGENT.parent / "README.md").read_text("utf-8")
    (session,) = re.findall(r"^```console\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    serve, *commands = re.findall(r"^\$ (.*)$", session, re.MULTILINE)
    assert serve.startswith("runlore serve --up")
    done = subprocess.run(
        ["sh", "-eu"],
        input="\n".join(commands),
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shown = [line for line in session.splitlines() if not line.startswith("$") and line != "…"]
    assert done.stdout.splitlines()[: len(shown)] == shown
