"""The TypeScript client, built, with the real Agents SDK for TypeScript: its own tests, then against real processes."""

from __future__ import annotations

import json
import os
import re
import subprocess

import homes
import pytest
import serving

import servers
from runlore.events import ids, records
from runlore.sources import agents_sdk


@pytest.fixture(scope="session")
def client(tmp_path_factory):
    """The folder of a build of the client. Skips where there is no Node.js."""
    from infra.dev import node

    servers.need("node", node.missing())
    try:
        node.fetch()
    except RuntimeError as exc:  # As where there is no network.
        servers.need("node", str(exc))
    return node.build(tmp_path_factory.mktemp("typescript") / "client")


def environment():
    """Nobody's own settings, for a process that outlives a test."""
    own = ("RUNLORE_", "OPENAI_")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)}


@pytest.fixture(scope="session")
def drive(client):
    """What test/driver.mjs answers to a job: one process for all tests, because the SDK takes seconds to load."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = ["node", "test/driver.mjs"]
    with subprocess.Popen(command, cwd=client, env=environment(), text=True, **pipes) as process:

        def driven(**job):
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            assert line, f"the driver ended with {process.wait()}"
            got = json.loads(line)
            assert "failed" not in got, got["failed"]
            return got

        yield driven
        process.kill()


@pytest.mark.timeout(600)
def test_the_clients_own_tests_pass(client):
    found = sorted(path.name for path in (client / "test").glob("*.test.mjs"))
    command = ["node", "--test", "--test-force-exit", *(f"test/{name}" for name in found)]
    done = subprocess.run(
        command, cwd=client, env=environment(), capture_output=True, text=True, timeout=580, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n# skipped 0\n" in done.stdout and "\n# pass 0\n" not in done.stdout


IDS = [
    *(
        "conv-1",
        "Conv-1",
        "user:42@example.com",
        "rl-x",
        "con",
        "com1.txt",
        "a.",
        ".a",
        "-",
        "日本",
        "Straße",
    ),
    *("x" * 128, "x" * 129, "a/b c__d--e", "😀", "ſ", "İ", "nul", "nullify", "_"),
]


def test_an_alias_and_a_runs_id_are_those_that_the_service_makes(drive):
    """So a session file that is imported later holds no run that is new."""
    contents = ("plain", "é \u2028 \u0085 😀", 'q"\\u00e9', "\x7f")
    records_of = [{"rollout_id": "user:42", "input": [one], "generated_items": []} for one in contents]
    lines = [json.dumps(one, ensure_ascii=False) for one in records_of]
    got = drive(do="names", ids=IDS, lines=lines, rollout="user:42")
    assert got["aliases"] == [ids.alias(one) for one in IDS]
    assert [one["run"] for one in got["runs"]] == [agents_sdk.run(one, stem="-")["run_id"] for one in lines]
    assert [one["kept"] for one in got["runs"]] == [records.to_ascii(one) for one in lines]


def test_the_lock_file_names_no_host_to_download_from():
    from infra.dev import node

    assert "resolved" not in (node.CLIENT / "package-lock.json").read_text("utf-8")


def test_every_kind_of_error_that_the_client_has_of_its_own_is_on_its_page():
    from infra.dev import node

    sources = "".join(path.read_text("utf-8") for path in sorted((node.CLIENT / "src").glob("*.ts")))
    given = re.findall(r"RunloreError\(\s*(?:'([a-z_]+)'|([A-Z]\w*))", sources)
    named = dict(re.findall(r"const ([A-Z_]+) = '([a-z_]+)';", sources))
    kinds = {kind or named[name] for kind, name in given}
    page = (node.CLIENT / "README.md").read_text("utf-8")
    told = {
        kind
        for row in re.findall(r"^\| (`[a-z].*?) \|", page, re.MULTILINE)
        for kind in re.findall(r"`([a-z_]+)`", row)
    }
    assert {"unreachable", "no_hydrate"} <= kinds
    assert kinds - told == set()


# --- against the real service ------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path):
    """A home whose service asks for a key."""
    return homes.Home(tmp_path / "home", http_keys="true")


@pytest.fixture
def service(home):
    """`runlore up` and `runlore serve` on a home of their own."""
    home.up()
    return serving.Served(home).start()


@pytest.fixture
def settings(home, service, tmp_path):
    """A client's settings, with a key that may write."""
    given = ("--scope", "write", "--name", "typescript", "--reason", "a test")
    key = home.json("keys", "create", "acme", *given)["token"]
    place = {"url": service.url, "key": key, "outbox": str(tmp_path / "outbox")}
    return {"project": "acme", "memory": "support", "waitSeconds": 60, "deliverMsMax": 60_000, **place}


@pytest.fixture
def runs(drive, settings):
    """Runs of the real SDK."""

    def made(*several, together=False, **more):
        return drive(do="runs", runlore={**settings, **more}, runs=list(several), together=together)

    return made


def run_of(rollout, *commands, **more):
    return {"id": rollout, "commands": list(commands), **more}


def printed(run):
    return [one.partition("Output:\n")[2].strip() for one in run["outputs"]]


def recorded(home):
    """Every record of the home: (rollout, run)."""
    return {tuple(key.split("/")[-2:]) for key in home.objects("records")}


def test_a_second_fresh_run_begins_with_the_first_ones_workspace_and_memory(runs, home):
    broken = 'test "$REGION" = eu || { echo "ConfigError: REGION is not set" >&2; exit 3; }; echo passed'
    script = f"printf '%s\\n' '{broken}' > check.sh; chmod +x check.sh; ln -s check.sh link; mkdir empty"
    made = run_of("conv-1", script, "sh check.sh", "REGION=eu sh check.sh", input="Make the check pass.")
    again = run_of("conv-1", "ls -F; stat -c %a check.sh; REGION=eu sh link; cat memories/MEMORY.md")
    got = runs(made, again)
    first, second = got["runs"]
    assert "ConfigError" in printed(first)[1] and printed(first)[2] == "passed", first
    seen = printed(second)[0]
    assert {"check.sh*", "link@", "empty/", "memories/", "755", "passed"} <= set(seen.split()), seen
    assert "Make the check pass." in seen, seen
    assert "Make the check pass." not in first["instructions"]
    assert "Make the check pass." in second["instructions"]
    assert got["reports"] == []
    assert branches(home) == []
    home.verified()


def test_odd_ids_and_names_survive_and_what_is_not_touched_is_no_version(runs, home):
    rollout = 'a/b c%2F?d#é😀 "q"'
    script = "mkdir -m 700 secret; echo 1 > constructor; echo 2 > __proto__; chmod 755 __proto__; touch 'secret/ü x'"
    seen = "stat -c '%a %n' constructor __proto__ secret; cat constructor __proto__; ls secret"
    got = runs(run_of(rollout, script), run_of(rollout, seen, input="second"))
    first, second = got["runs"]
    assert printed(first) == [""]
    assert printed(second)[0].splitlines() == [
        "644 constructor",
        "755 __proto__",
        "700 secret",
        "1",
        "2",
        "ü x",
    ]
    assert got["reports"] == []
    homes.wait_until(lambda: len(recorded(home)) == 2, "two records")
    (head,) = home.objects("workspaces").values()
    assert json.loads(head)["counter"] == 1, "the second run changed nothing"
    home.verified()


def test_runs_of_one_conversation_at_once_all_stay(runs, home, service):
    several = [run_of("conv-1", f"echo {one} > {one}.txt", input=f"task {one}") for one in range(4)]
    got = runs(*several, together=True)
    homes.wait_until(lambda: len(recorded(home)) == 4, "four records")
    assert got["reports"] == []
    homes.wait_until(lambda: len(branches(home)) == 3, "one workspace to lead, and three branches")
    home.verified()


def branches(home):
    heads = home.objects("workspaces")
    return [name for body in heads.values() for name in json.loads(body).get("branches", {})]


def test_a_service_that_is_away_fails_no_run_and_has_everything_later(drive, runs, home, service, settings):
    runs(run_of("conv-1", "echo one > a.txt"))
    service.end()
    away = runs(
        run_of("conv-1", "cat a.txt; echo two > b.txt", answer="finished", input="second"), deliverMsMax=500
    )
    (second,) = away["runs"]
    assert second["finalOutput"] == "finished"
    assert "No such file" in printed(second)[0]
    assert any("branch" in one for one in away["reports"]), away
    service.start()
    assert drive(do="flush", runlore=settings) == {"delivered": True, "reports": []}
    homes.wait_until(lambda: len(recorded(home)) == 2 and len(branches(home)) == 1, "the run that was away")
    third = runs(run_of("conv-1", "cat a.txt; ls b.txt", input="third"))
    # What the blind run left has overwritten nothing: it waits as a branch.
    assert printed(third["runs"][0])[0].startswith("one") and "No such file" in printed(third["runs"][0])[0]
    home.verified()


def test_a_run_that_was_interrupted_and_resumed_is_one_run_with_one_workspace(drive, runs, home, settings):
    assert drive(do="resumed", runlore=settings, id="conv-1") == {"finalOutput": "paid", "reports": []}

    def moved_by():
        return [
            json.loads(body).get("moved_by", {}).get("attempt")
            for body in home.objects("workspaces").values()
        ]

    homes.wait_until(lambda: moved_by() == [2], "the workspace of the second attempt")
    runs_of = {name.rpartition(".")[0] for _, name in recorded(home)}
    assert len(runs_of) == 1 and len(recorded(home)) == 2 and branches(home) == []
    later = runs(run_of("conv-1", "cat b.txt"))
    assert printed(later["runs"][0]) == ["one"]
    home.verified()
