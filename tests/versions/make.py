"""Builds the wheel of an older version from the commit that it was: `python tests/versions/make.py`.

The rolling upgrade is tested with the bytes of a real older version, not with what the present code believes that it
was. The build is reproducible: the same commit gives the same bytes, so whoever doubts the wheel can make it again
and compare. Needs git with the history, and hatchling; no network.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COMMITS = {"0.1.0": "78f6562"}
"""Version → the commit that it was."""


def build(version: str, target: Path) -> Path:
    """The wheel of `version`, written into the folder `target`."""
    commit = COMMITS[version]
    moment = _git("show", "-s", "--format=%ct", commit).decode().strip()
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(_git("archive", commit))) as tree:
            tree.extractall(folder, filter="data")
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
        # The time of the commit is that of every file in the wheel.
        environment = {**os.environ, "SOURCE_DATE_EPOCH": moment}
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"hatchling could not build {version}: {done.stdout}{done.stderr}")
    (made,) = target.glob(f"runlore-{version}-*.whl")
    return made


def _git(*words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with what is here; write nothing")
    check = parser.parse_args().check
    differs = 0
    for version in COMMITS:
        with tempfile.TemporaryDirectory() as folder:
            made = build(version, Path(folder))
            body = made.read_bytes()
            kept = HERE / made.name
        if check:
            differs |= not (kept.is_file() and kept.read_bytes() == body)
        else:
            kept.write_bytes(body)
        print(f"{hashlib.sha256(body).hexdigest()}  {kept.name}  ({COMMITS[version]}, {len(body):,} bytes)")
    return differs


if __name__ == "__main__":
    sys.exit(main())
