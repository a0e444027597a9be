"""The examples of the Agents SDK do what they say, plain and with Runlore, and differ in three lines at most.

Method: the two programs of a pattern run one after the other in one process (importing the SDK costs seconds),
offline, from the repository's root as the README says, with Runlore as its wheel installs it. What they print is what
their agents saw: the commands ran in real sandboxes. What Runlore kept is then read from its home.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import re
import subprocess
import sys

import homes
import pytest
import serving

from runlore.commit import keys

pytest.importorskip("agents", reason="openai-agents is not installed")

EXAMPLES = homes.ROOT / "examples" / "agents"
PATTERNS = sorted(path.parent.name for path in EXAMPLES.glob("*/plain.py"))
LINES_MAX = {"fan_out": 6}
"""Three, but where the SDK has nothing like it."""
ALONE = """
import os, runpy, sys
for name in ("aiokafka", "boto3", "botocore", "fastapi", "jmespath", "prometheus_client", "opentelemetry.sdk"):
    sys.modules[name] = None  # As in an install of runlore[agents] alone: importing it fails.
import runlore
from runlore.agents import remote, runner
print("of the wheel:", os.path.dirname(runlore.__file__))
# A machine that runs tests is busy.
runner.DEADLINE_SECONDS_EMBEDDED = runner.DEADLINE_SECONDS_REMOTE = 120
remote.WAIT_SECONDS_MAX = 60.0
for program in sys.argv[1:]:
    print(f"--- {program}", flush=True)
    runpy.run_module(f"examples.agents.{program}", run_name="__main__")
"""


def lines_of(program):
    """A program's lines of code without what it imports, and without its docstring."""
    text = program.read_text("utf-8").split('"""\n', 1)[1]
    text = re.sub(r"^from \S+ import \([^)]*\)$", "", text, flags=re.MULTILINE)
    lines = [line for line in text.splitlines() if not re.match(r"(from|import) ", line)]
    return [line for line in lines if line.strip()]


def lines_changed(plain, with_runlore):
    """How many lines one of two programs has that the other has not."""
    steps = difflib.SequenceMatcher(None, plain, with_runlore, autojunk=False).get_opcodes()
    return sum(max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in steps if tag != "equal")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_program_with_runlore_differs_in_three_lines_at_most(pattern):
    plain, with_runlore = (lines_of(EXAMPLES / pattern / name) for name in ("plain.py", "with_runlore.py"))
    assert 1 <= lines_changed(plain, with_runlore) <= LINES_MAX.get(pattern, 3)


@pytest.mark.parametrize("more", [0, 1, 4])
def test_a_line_more_in_a_program_is_counted_and_an_import_is_not(more, tmp_path):
    program = tmp_path / "more.py"
    text = (EXAMPLES / "memory" / "plain.py").read_text("utf-8")
    extra = "".join(f"\nextra_{number} = {number}\n" for number in range(more))
    program.write_text(f"{text}import json\nfrom json import (\n    dumps,\n    loads,\n)\n{extra}", "utf-8")
    assert lines_changed(lines_of(EXAMPLES / "memory" / "plain.py"), lines_of(program)) == more


def run_alone(programs, home, installed, **more):
    """What each of these programs prints, one after the other in one process, on the installed wheel."""
    environment = {
        **home.environment,
        "HOME": str(home.root.parent),
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
        "PYTHONWARNINGS": "error::ResourceWarning",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(installed), home.environment.get("PYTHONPATH")])),
        **more,
    }
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *programs],
        cwd=homes.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    first, *printed = re.split(r"^--- .*\n", done.stdout, flags=re.MULTILINE)
    assert first == f"of the wheel: {installed / 'runlore'}\n"
    return [text.splitlines() for text in printed]


def shortened(line):
    """Runlore's own line on the export, without its count and date."""
    return re.sub(r"- `exec_command: .* What worked: (`.*`) instead of .*", r"\1", line)


NEEDS = "- `cd shop && python3 export.py orders.csv` needs --delimiter ';'"
"""What the scripted models of the SDK's own memory write down."""
WORKED = "`cd shop && python3 export.py orders.csv --delimiter ';' | tee orders.json`"
"""What Runlore finds out by itself."""
ORDERS = (
    '[{"order": "1001", "customer": "Ines", "cents": "1000"}, '
    '{"order": "1002", "customer": "Tom", "cents": "2550"}]'
)
NOTHING = "Nothing is remembered."
EXPORTED = "Exported 2 orders."
PRINTED = {
    # pattern: what the plain program prints, what the one with Runlore prints
    "agents_as_tools": ([EXPORTED, NOTHING], [EXPORTED, WORKED]),
    "fan_out": (
        ["Order 1001 is noted.", "Order 1002 is noted.", "Nothing is noted."],
        ["Order 1001 is noted.", "Order 1002 is noted.", "1001 is paid", "1002 is paid"],
    ),
    "handoffs": (
        ["Writer: Your two orders are exported.", f"Exporter: {NOTHING}"],
        ["Writer: Your two orders are exported.", f"Exporter: {WORKED}"],
    ),
    "layouts": (
        [
            f"Exporter: {EXPORTED}",
            "Reviewer: Both orders are there.",
            f"Exporter: {NEEDS}",
            "Reviewer: - Are all orders there? Both are.",
        ],
        [
            f"Exporter: {EXPORTED}",
            "Reviewer: Both orders are there.",
            f"Exporter: {WORKED}",
            "Reviewer: ## Task 1: Are all orders there? (uncertain)",
        ],
    ),
    "memory": ([EXPORTED, NEEDS], [EXPORTED, WORKED]),
    "memory_on_s3": ([EXPORTED, NEEDS], [EXPORTED, WORKED]),
    "remote_snapshot": (["Written.", "2 orders exported"],) * 2,
    "run_state": (['waits for: refund {"order":1002}', "refunds.txt: 1002"],) * 2,
    "session_state": ([EXPORTED, NEEDS, ORDERS], [EXPORTED, WORKED, ORDERS]),
}
RECORDED = {
    # pattern: memory → rollout → how many of its runs were recorded. `run` stands for those without an id, and
    # of a branch of a fan-out the name of the fan-out is left out.
    "agents_as_tools": {"shop": {"orders": 2, "run": 2}},
    "fan_out": {"shop": {"audit": 1, "audit.b0": 1, "audit.b1": 1}},
    "handoffs": {"shop": {"orders": 2}},
    "layouts": {"exporter": {"exports": 2}, "reviewer": {"reviews": 2}},
    "memory": {"shop": {"orders": 2}},
    "memory_on_s3": {"shop": {"orders": 2}},
    "remote_snapshot": {"shop": {"reports": 2}},
    "run_state": {"shop": {"refund-1002": 2}},
    "session_state": {"shop": {"orders": 3}},
}


def recorded(home, memories):
    """Which runs are in the store, once what the last run left in the outbox is delivered."""
    from runlore.agents import Runlore

    for memory in memories:
        asyncio.run(Runlore("examples", memory=memory, home=home.root).aclose())
    found = {}
    for key in home.objects(keys.RECORDS):
        _, _, _, memory, rollout, _ = key.split("/")
        rollouts = found.setdefault(memory, {})
        name = "run" if rollout.startswith("run-") else re.sub(r"\.[0-9a-f]{6}\.", ".", rollout)
        rollouts[name] = rollouts.get(name, 0) + 1
    return found


@pytest.mark.process
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_examples_run_offline_and_print_what_their_agents_saw(pattern, home, installed):
    programs = [f"{pattern}.{name}" for name in ("plain", "with_runlore")]
    plain, with_runlore = run_alone(programs, home, installed)
    assert (plain, [shortened(line) for line in with_runlore]) == tuple(map(list, PRINTED[pattern]))
    assert recorded(home, RECORDED[pattern]) == RECORDED[pattern]
    assert home.verified()


@pytest.mark.process
def test_the_examples_print_the_same_with_a_lookup_service(tmp_path, installed):
    pytest.importorskip("fastapi", reason="runlore[server] is not installed")
    service = homes.Home(tmp_path / "service", http_keys="true")
    named = ("examples", "--scope", "write", "--name", "t", "--reason", "a test")
    key = service.json("keys", "create", *named)["token"]
    served = serving.Served(service, "--up").start()
    mine = homes.Home(tmp_path / "mine")
    where = {"RUNLORE_URL": served.url, "RUNLORE_KEY": key}
    printed = run_alone([f"{pattern}.with_runlore" for pattern in PATTERNS], mine, installed, **where)
    for pattern, lines in zip(PATTERNS, printed, strict=True):
        assert [shortened(line) for line in lines] == PRINTED[pattern][1], pattern
