"""The TypeScript client, built, with the real Agents SDK for TypeScript: its own tests, then against real processes."""

from __future__ import annotations

import json
import subprocess

import pytest
import servers

from runlore.events import ids, records
from runlore.sources import agents_sdk


@pytest.fixture(scope="session")
def client(tmp_path_factory):
    """The folder of a build of the client. Skips where there is no Node.js."""
    from infra.dev import node

    servers.need("node", node.missing())
    return node.build(tmp_path_factory.mktemp("typescript") / "client")


def drive(client, **job):
    """What test/driver.mjs answers to a job."""
    done = subprocess.run(
        ["node", "test/driver.mjs"],
        cwd=client,
        input=json.dumps(job),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout)


def test_the_clients_own_tests_pass(client):
    found = sorted(path.name for path in (client / "test").glob("*.test.mjs"))
    command = ["node", "--test", "--test-force-exit", *(f"test/{name}" for name in found)]
    done = subprocess.run(command, cwd=client, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n# skipped 0\n" in done.stdout and "\n# pass 0\n" not in done.stdout


IDS = [
    *("conv-1", "Conv-1", "user:42@example.com", "rl-x", "con", "com1.txt", "a.", ".a", "-", "日本", "Straße"),
    *("x" * 128, "x" * 129, "a/b c__d--e", "😀", "ſ", "İ", "nul", "nullify", "_"),
]


def test_an_alias_and_a_runs_id_are_those_that_the_service_makes(client):
    """So a session file that is imported later holds no run that is new."""
    lines = [
        json.dumps({"rollout_id": "user:42", "input": [{"content": content}], "generated_items": []}, ensure_ascii=False)
        for content in ("plain", "é \u2028 \u0085 😀", 'q"\\u00e9', "\x7f")
    ]
    got = drive(client, do="names", ids=IDS, lines=lines, rollout="user:42")
    assert got["aliases"] == [ids.alias(one) for one in IDS]
    assert [one["run"] for one in got["runs"]] == [agents_sdk.run(one, stem="-")["run_id"] for one in lines]
    assert [one["kept"] for one in got["runs"]] == [records.to_ascii(one) for one in lines]


def test_the_lock_file_names_no_host_to_download_from():
    from infra.dev import node

    assert "resolved" not in (node.CLIENT / "package-lock.json").read_text("utf-8")
