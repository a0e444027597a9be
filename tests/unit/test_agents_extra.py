"""`runlore.agents` on the base install: who lacks the extra is told which, in a process that can not import the SDK."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
sys.modules["agents"] = None  # what the interpreter does with a module that is not there
import runlore.agents
"""


def test_without_the_sdk_the_import_says_which_extra_brings_it():
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "pip install 'runlore[agents]'" in ended.stderr.splitlines()[-1]
