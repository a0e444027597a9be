"""The TypeScript client, installed and built for tests and development, from npm's packages alone.

The packages are fetched once for each lock file into infra/dev/.cache, which git ignores; a build lies in a folder of
its own and refers to them, so that two tests at once never write into one another's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
CLIENT = HERE.parents[1] / "clients" / "typescript"
VERSION_MIN = 20
LOCKED = ("package.json", "package-lock.json", ".npmrc")
SOURCES = ("package.json", "tsconfig.json", "src", "test")
HOW = f"install Node.js {VERSION_MIN} or newer with npm (https://nodejs.org, or your system's nodejs and npm packages)"


def missing() -> str | None:
    """How to get what the client needs and this machine has not; None where it can be built."""
    node = shutil.which("node")
    if node is None:
        return f"the TypeScript client needs Node.js: {HOW}"
    told = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"v(\d+)\.", told)
    if found is None or int(found[1]) < VERSION_MIN:
        return f"the TypeScript client does not run on Node.js {told.strip()}: {HOW}"
    if not _modules().is_dir() and shutil.which("npm") is None:
        return f"the TypeScript client's packages need npm: {HOW}"
    return None


def fetch() -> Path:
    """The folder of its packages, fetched if they are not there. Raises `RuntimeError` where that can not be done."""
    modules = _modules()
    if modules.is_dir():
        return modules
    # Into a folder of its own, then one rename: of two that fetch at once neither sees half of it.
    draft = modules.parent.with_name(f"{modules.parent.name}.{os.getpid()}")
    draft.mkdir(parents=True, exist_ok=True)
    for name in LOCKED:
        shutil.copy(CLIENT / name, draft / name)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(command, cwd=draft, capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(draft, ignore_errors=True)
        raise RuntimeError(f"npm could not fetch the client's packages: {done.stdout}{done.stderr}")
    with contextlib.suppress(OSError):
        draft.rename(modules.parent)
    shutil.rmtree(draft, ignore_errors=True)
    return modules


def build(target: Path) -> Path:
    """The client and its tests, built in the folder `target`. Raises `RuntimeError` with what the compiler says."""
    modules = fetch()
    target.mkdir(parents=True, exist_ok=True)
    for name in SOURCES:
        source = CLIENT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, target / name)
    # What the page shows is compiled with the rest.
    shown = re.findall(
        r"^```ts\n(.*?)^```", (CLIENT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    for number, text in enumerate(shown):
        (target / "src" / f"shown{number}.ts").write_text(text, "utf-8")
    (target / "node_modules").symlink_to(modules)
    command = ["node", str(modules / "typescript" / "bin" / "tsc"), "-p", "."]
    done = subprocess.run(command, cwd=target, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the TypeScript client does not compile:\n{done.stdout}{done.stderr}")
    return target


def _modules() -> Path:
    digest = hashlib.sha256(b"".join((CLIENT / name).read_bytes() for name in LOCKED)).hexdigest()[:12]
    return HERE / ".cache" / f"node-{digest}" / "node_modules"
