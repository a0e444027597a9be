"""The shipped sample runs: what the script makes, made by the real SDK, and importable by both ways in."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from runlore import sources
from runlore.events import models, records

SIZE_BYTES_MAX = 300_000


def files(root, kind):
    return sorted((root / "examples" / kind).glob("*.jsonl"))


def events(root):
    return [json.loads(line) for path in files(root, "runs") for line in path.read_text("ascii").splitlines()]


def test_the_script_makes_the_shipped_bytes_again(root, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    subprocess.run(
        [sys.executable, root / "examples" / "make_samples.py", "--into", tmp_path],
        check=True,
        capture_output=True,
        env=environment,
        timeout=120,
    )
    for kind in ("runs", "sessions"):
        made = {path.name: path.read_bytes() for path in sorted((tmp_path / kind).iterdir())}
        assert made == {path.name: path.read_bytes() for path in files(root, kind)}


def test_every_sample_is_an_event_that_the_models_accept(root):
    for data in events(root):
        run = models.run_completed(data)
        records.check(run.record)


def test_the_events_hold_the_very_lines_of_the_session_files(root):
    for path in files(root, "sessions"):
        rows = (root / "examples" / "runs" / path.name).read_text("ascii").splitlines()
        lines = [models.run_completed(json.loads(row)).record + "\n" for row in rows]
        assert "".join(lines) == path.read_text("ascii")


def test_the_session_files_import_without_a_problem(root):
    out = list(sources.read("agents-sdk", root / "examples" / "sessions", project="demo", memory="support"))
    assert all(isinstance(one, sources.Imported) for one in out) and len(out) == len(events(root))


def test_the_samples_show_what_memory_is_for(root):
    runs = events(root)
    states = {data["record"]["terminal_metadata"]["terminal_state"] for data in runs}
    assert states >= {"completed", "interrupted", "max_turns_exceeded"}
    assert any(len(data["agents"]) > 1 for data in runs), "a handoff"
    assert len({data.get("subject") for data in runs}) >= 4, "three people and nobody"
    assert any("\\u" in json.dumps(data["record"]) for data in runs), "one that is not English"
    outputs = [
        (data["session_id"], str(item.get("output")))
        for data in runs
        for item in data["record"]["generated_items"]
    ]
    failed = [rollout for rollout, output in outputs if "ConfigError: BILLING_REGION" in output]
    assert len(set(failed)) >= 2, "one failure that comes back in another rollout"


def test_the_samples_are_small_and_name_no_machine(root):
    paths = [*files(root, "runs"), *files(root, "sessions")]
    assert sum(path.stat().st_size for path in paths) < SIZE_BYTES_MAX
    for path in paths:
        text = path.read_text("ascii")
        for trace in ("/tmp", "/home", "/root", "/Users", "/var/folders", "site-packages", "Chunk ID: 1"):
            assert trace not in text, f"{path.name} holds {trace}"


def test_the_tracebacks_hold_no_line_of_python_itself(root):
    # Frames of the standard library, and carets below an expression, differ from version to version.
    for path in files(root, "sessions"):
        text = path.read_text("ascii")
        assert "lib/python" not in text and "<frozen" not in text and "^^^" not in text
