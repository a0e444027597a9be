"""The wheel holds all that the package needs at run time, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile

import homes

SOURCE = homes.ROOT / "services" / "runlore"


def names_of(wheel):
    with zipfile.ZipFile(wheel) as found:
        return {name for name in found.namelist() if not name.endswith("/")}


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel):
    there = {
        f"runlore/{path.relative_to(SOURCE).as_posix()}"
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = names_of(wheel)
    own = {name for name in packed if ".dist-info/" not in name}
    assert own == there and "runlore/py.typed" in own
    assert {name.rpartition("/")[2] for name in packed - own} >= {"METADATA", "RECORD", "entry_points.txt"}
    assert not [name for name in own if "test_" in name or "conftest" in name]


def test_the_installed_wheel_is_found_before_the_source_and_answers(installed, home):
    code = "import runlore, sys; from runlore.cli import main; print(runlore.__file__); sys.argv[1:] = []; main.main()"
    environment = {**home.environment, "PYTHONPATH": str(installed)}
    made = [sys.executable, "-c", code.replace("[]", "['--help']")]
    done = subprocess.run(made, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert first == str(installed / "runlore" / "__init__.py") and any("seed" in line for line in rest)
