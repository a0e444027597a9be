"""The main job, on real recorded runs: events in, memory made, a next run's workspace seeded. No key, no server.

    make demo

It runs the same commands that you would, prints each, and leaves its home in .runlore/demo. The runs in
examples/runs were made with the real OpenAI Agents SDK (examples/make_samples.py).
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNS = sorted((ROOT / "examples" / "runs").glob("*.jsonl"))
HOME = ROOT / ".runlore" / "demo"
WORKSPACE = ROOT / ".runlore" / "workspace"
LEFT = ROOT / ".runlore" / "left-behind"
FILES = {
    "invoices/inv-204.json": '{"id": "inv-204", "total": 118.4, "status": "open"}\n',
    "invoices/check.py": "import json, sys\n\nprint(json.load(open(sys.argv[1]))['total'])\n",
    "notes.md": "# inv-204\n\n- total checked against the order\n- waiting for the customer's address\n",
}
"""A small workspace, as a run would leave it."""
RUNLORE = Path(sys.executable).with_name("runlore")
MEMORY = ["--project", "demo", "--memory", "support"]


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def run(*arguments: object, quiet: bool = False) -> str:
    """Run a command as a person would; with `quiet`, only for its JSON."""
    words = [shown(one) if isinstance(one, Path) else str(one) for one in arguments]
    if not quiet:
        print(f"$ runlore {shlex.join(words)}", flush=True)
    environment = {**os.environ, "RUNLORE_HOME": str(HOME)}
    done = subprocess.run(
        [RUNLORE, *words],
        cwd=ROOT,
        env=environment,
        check=True,
        text=True,
        stdout=subprocess.PIPE if quiet else None,
    )
    return done.stdout or ""


def main() -> None:
    shutil.rmtree(HOME, ignore_errors=True)
    shutil.rmtree(WORKSPACE, ignore_errors=True)
    shutil.rmtree(LEFT, ignore_errors=True)
    say("1. Each finished run emits one event. Here are the runs of seven conversations:")
    for path in RUNS:
        run("emit", path)
    say("2. The pipeline records them and makes a revision of memory:")
    run("up", "--once")
    run("log", "support")
    say(
        "3. What the last run of inv-204 left in its workspace is saved; only what changes is ever written again:"
    )
    left_behind(LEFT)
    run("snapshot", "save", LEFT, "--project", "demo", "--rollout", "inv-204")
    say("4. The next run of conversation inv-204, for ana, starts from both, memory laid over the workspace:")
    run("seed", "inv-204", *MEMORY, "--subject", "ana", "--into", WORKSPACE)
    run("snapshot", "tree", "inv-204", "--project", "demo")
    same = all((WORKSPACE / name).read_text() == text for name, text in FILES.items())
    print(f"{len(FILES)} files restored, byte for byte: {'yes' if same else 'NO'}", flush=True)
    if not same:
        raise SystemExit(1)
    summary = (WORKSPACE / "memories" / "memory_summary.md").read_text()
    say("memories/memory_summary.md, which the Agents SDK puts before the agent:")
    print(summary, flush=True)
    say("5. Every line can say why it is there:")
    run("why", f"memory_summary.md:{first_told_line()}", *MEMORY, "--subject", "ana")
    say("Try it on your own runs:")
    print("  .venv/bin/runlore import agents-sdk SESSIONS_DIR --project me --memory support")
    print("  .venv/bin/runlore up --once")
    print("  .venv/bin/runlore seed NEXT_SESSION_ID --project me --memory support --into WORKSPACE")


def left_behind(folder: Path) -> None:
    """The workspace that the last run left."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def first_told_line() -> int:
    """The first line of the summary that a run is behind."""
    text = json.loads(run("show", "memory_summary.md", *MEMORY, "--subject", "ana", "--json", quiet=True))[
        "text"
    ]
    told = [number for number, line in enumerate(text.splitlines(), 1) if line.startswith("- ")]
    return told[0] if told else 1


if __name__ == "__main__":
    main()
