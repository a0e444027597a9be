"""examples/any-agent: curl and tar against the real service; what one run leaves, the next begins with."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess

import homes
import pytest
import serving

AGENT = homes.ROOT / "examples" / "any-agent" / "agent.sh"
CONVERSATION = 'user:42 "ü" & co'


@pytest.fixture
def agent(home, tmp_path):
    """Run the script as a person would."""
    for tool in ("curl", "tar"):
        if shutil.which(tool) is None:
            pytest.skip(f"the example needs {tool}: install it")
    home.up()
    service = serving.Served(home).start()

    def ran(task, command, code=0, after=""):
        environment = {
            **home.environment,
            **{"RUNLORE_URL": service.url, "AFTER_RUN": after, "RUN_FILE": str(tmp_path / "run")},
        }
        made = ["sh", AGENT, CONVERSATION, task, command]
        done = subprocess.run(made, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout, (tmp_path / "run").read_text().strip()

    return ran


def test_a_second_run_of_the_shell_agent_begins_where_the_first_ended(agent, home):
    task = 'Say "hi"\tin ü\nand \\ keep it'
    out, first = agent(task, "pwd -P; mkdir empty bin; echo 'echo ran' > bin/x; chmod 755 bin/x; ln -s x bin/l; exit 3", code=3)
    assert out.count("\n") == 1
    seen, second = agent("Go on.", "ls -F . bin; sh bin/l; cat memories/MEMORY.md", after=first)
    assert {"empty/", "bin/", "memories/", "x*", "l@", "ran"} <= set(seen.split())
    assert 'Say "hi"' in seen
    homes.wait_until(lambda: len(home.objects("records")) == 2, "the second record")
    (body,) = [one for key, one in home.objects("records").items() if first in key]
    record = json.loads(body.splitlines()[1])
    assert record["input"][0]["content"] == task
    call, output = record["generated_items"]
    assert json.loads(call["arguments"])["command"].startswith("pwd -P; mkdir")
    assert output["output"].endswith("exit code 3")
    assert second != first
    home.verified()


def test_the_examples_own_words_are_the_ones_that_it_takes():
    """Every command of its README is one of this script, with as many words as it wants."""
    readme = (AGENT.parent / "README.md").read_text("utf-8")
    shown = re.findall(r"^\$ (.*agent\.sh.*)$", readme, re.MULTILINE)
    assert shown
    for line in shown:
        words = shlex.split(line)
        assert len(words[words.index(next(one for one in words if one.endswith("agent.sh"))) + 1 :]) == 3, line
