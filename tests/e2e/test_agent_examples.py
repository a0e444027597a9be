"""The examples of the Agents SDK do what they say, plain and with Runlore, and differ in three lines at most.

Method: the two programs of a pattern run one after the other in one process (importing the SDK costs seconds),
offline, from the repository's root as the README says. What they print is what their agents saw: the commands ran
in real sandboxes. What Runlore kept is then read from its home.
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
from pathlib import Path

import homes
import pytest

pytest.importorskip("agents", reason="openai-agents is not installed")

EXAMPLES = homes.ROOT / "examples" / "agents"
PATTERNS = sorted(path.parent.name for path in EXAMPLES.glob("*/plain.py"))
LINES_MAX = 3
BOTH = """
import runpy, sys
for program in ("plain", "with_runlore"):
    print(f"--- {program}", flush=True)
    runpy.run_module(f"examples.agents.{sys.argv[1]}.{program}", run_name="__main__")
"""
FIXED = "instead of `cd shop && python3 export.py orders.csv`"
"""How the end of Runlore's line on the export reads; the beginning is a count and a date."""


def lines_of(program):
    """A program's lines of code without what it imports, and without its docstring."""
    text = program.read_text("utf-8").split('"""\n', 1)[1]
    text = re.sub(r"^from \S+ import \([^)]*\)$", "", text, flags=re.MULTILINE)
    lines = [line for line in text.splitlines() if not re.match(r"(from|import) ", line)]
    return [line for line in lines if line.strip()]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_program_with_runlore_differs_in_three_lines_at_most(pattern):
    plain, with_runlore = (lines_of(EXAMPLES / pattern / name) for name in ("plain.py", "with_runlore.py"))
    steps = difflib.SequenceMatcher(None, plain, with_runlore, autojunk=False).get_opcodes()
    changed = [max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in steps if tag != "equal"]
    assert 1 <= sum(changed) <= LINES_MAX


def run_both(pattern, tmp_path):
    """What the two programs print, and the home in which Runlore kept its part."""
    home = homes.Home(tmp_path / "home")
    environment = {
        **home.environment,
        "HOME": str(tmp_path),
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
        "PYTHONWARNINGS": "error::ResourceWarning",
    }
    done = subprocess.run(
        [sys.executable, "-c", BOTH, pattern],
        cwd=homes.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert home.verified()
    _, plain, with_runlore = re.split(r"^--- .*\n", done.stdout, flags=re.MULTILINE)
    return plain.splitlines(), with_runlore.splitlines(), home
