"""examples/any-agent: curl and tar against the real service; what one run leaves, the next begins with."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import tarfile

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
    # Where a shell's paths have blanks, and what curl takes for patterns.
    (tmp_path / "tmp {a,b} [1-2]").mkdir()
    served = serving.Served(home).start()
    found = {"RUNLORE_URL": f"{served.url}/", "TMPDIR": str(tmp_path / "tmp {a,b} [1-2]"), "RETRIES": "0"}
    return Environment({**home.environment, **found}, served)


class Environment(dict):
    """What a shell needs, and the service that it finds."""

    def __init__(self, variables, served):
        super().__init__(variables)
        self.served = served


def left_over(environment):
    return sorted(pathlib.Path(environment["TMPDIR"]).iterdir())


@pytest.fixture
def agent(environment, tmp_path):
    def ran(task, command, code=0, after="", binary=False):
        given = {**environment, "AFTER_RUN": after, "RUN_FILE": str(tmp_path / "run")}
        made = ["sh", "agent.sh", CONVERSATION, task, command]
        done = subprocess.run(
            made, env=given, cwd=tmp_path, capture_output=True, text=not binary, timeout=120, check=False
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        return done.stdout, (tmp_path / "run").read_text().strip()

    ran.environment = environment
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
    assert left_over(agent.environment) == []
    home.verified()


def test_what_a_command_prints_may_be_anything(agent, home):
    out, _ = agent("Print.", r"printf 'a\377\303\251\000\033[1m\tb\r\n\342\200\250\\'", binary=True)
    assert out == b"a\xff\xc3\xa9\0\x1b[1m\tb\r\n\xe2\x80\xa8\\"
    homes.wait_until(lambda: home.objects("records"), "the record")
    (body,) = home.objects("records").values()
    (_, output) = json.loads(body.splitlines()[1])["generated_items"]
    assert output["output"].splitlines()[0] == "aé[1m\tb"


def test_what_goes_wrong_before_a_run_is_told_with_its_kind_and_leaves_nothing(environment, tmp_path):
    for given, kind in (
        ({"MEMORY": "Support"}, "invalid_id"),
        ({"PROJECT": ".hidden"}, "invalid_id"),
        ({"RUNLORE_URL": f"{environment.served.url}/x"}, "not_found"),
    ):
        made = ["sh", "agent.sh", "conv-1", "task", "echo ran"]
        done = subprocess.run(
            made,
            env={**environment, **given},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 1 and done.stdout == "", given
        assert f'"kind": "{kind}"' in done.stderr or f'"kind":"{kind}"' in done.stderr, given
        assert left_over(environment) == [], given


def test_a_run_that_can_not_be_delivered_is_kept(environment, tmp_path):
    work = "echo one > a.txt; touch ../begun; while [ ! -e ../go ]; do sleep 0.05; done; echo done"
    with subprocess.Popen(
        ["sh", "agent.sh", "conv-1", "task", work],
        env=dict(environment),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        homes.STARTED.append(process)
        homes.wait_until(
            lambda: list(pathlib.Path(environment["TMPDIR"]).glob("*/begun")), "the work to begin"
        )
        environment.served.end()
        (folder,) = left_over(environment)
        (folder / "go").touch()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and out == "done\n" and f"kept in {folder}" in err
    assert json.loads((folder / "record.json").read_text())["input"][0]["content"] == "task"
    with tarfile.open(folder / "left.tar") as tar:
        assert "./a.txt" in tar.getnames()
    assert not (folder / "key").exists()


def test_without_its_three_words_it_says_how_it_is_called(tmp_path):
    done = subprocess.run(
        ["sh", str(AGENT), "conv-1"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2 and "CONVERSATION TASK COMMAND" in done.stderr
