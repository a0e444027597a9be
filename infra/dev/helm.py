"""Helm for the chart in infra/helm/runlore: the system's, or one that Go builds from its module alone.

    python infra/dev/helm.py fetch     build one into infra/dev/.cache, where there is none (Go; two minutes)
    python infra/dev/helm.py render    write what the chart makes of each file in its ci/ to tests/infra/rendered
    python infra/dev/helm.py WORDS...  run it

No package carries Helm, and a build costs two minutes of a processor: so nothing builds it by itself. What the chart
makes is kept in tests/infra/rendered and tested there; a test without Helm tells when that is of another chart.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHART = HERE.parent / "helm" / "runlore"
RENDERED = HERE.parents[1] / "tests" / "infra" / "rendered"
VERSION = "v3.21.4"
CACHE = HERE / ".cache" / f"helm-{VERSION}"
HOW = "install Helm 3.16 or newer (https://helm.sh), or with Go: python infra/dev/helm.py fetch"
KUBERNETES = "1.34.0"
"""What the chart is rendered for where nobody says otherwise; a Helm that Go built believes in 1.20."""
RELEASE, NAMESPACE = "lore", "memory"


def missing() -> str | None:
    """How to get it where it is not there yet; None where it is."""
    return None if there() else f"the chart's tests need Helm: {HOW}"


def there() -> str | None:
    """Where it is: on PATH, else what was built."""
    built = CACHE / "helm"
    return shutil.which("helm") or (str(built) if built.is_file() else None)


def fetch() -> str:
    """Where it is, built if it is not there. Raises `RuntimeError` where that can not be done."""
    found = there()
    if found:
        return found
    if shutil.which("go") is None:
        raise RuntimeError(f"there is no Go to build Helm with: {HOW}")
    # Into a folder of its own, then one rename: of two that build at once neither runs half of it.
    draft = CACHE.with_name(f"{CACHE.name}.{os.getpid()}")
    draft.mkdir(parents=True, exist_ok=True)
    try:
        # Not optimized: it runs for a tenth of a second, and optimizing it takes a minute.
        command = [
            "go",
            "install",
            "-gcflags=all=-N -l",
            "-ldflags=-s -w",
            f"helm.sh/helm/v3/cmd/helm@{VERSION}",
        ]
        environment = {**os.environ, "GOBIN": str(draft), "GOFLAGS": "-buildvcs=false"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"go could not build Helm: {done.stdout}{done.stderr}")
        with contextlib.suppress(OSError):
            draft.rename(CACHE)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return str(CACHE / "helm")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Helm with these words, and with nobody's configuration."""
    folder = HERE / ".cache" / "helm-home"
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    environment = {**kept, "HOME": str(folder), "HELM_CONFIG_HOME": str(folder)}
    return subprocess.run([fetch(), *words], env=environment, capture_output=True, text=True, check=False)


def template(*words: str) -> str:
    """What the chart makes. Raises `RuntimeError` with what Helm says."""
    done = run(
        "template", RELEASE, str(CHART), "--namespace", NAMESPACE, "--kube-version", KUBERNETES, *words
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def digest(values: Path) -> str:
    """Of all that decides what the chart makes of `values`."""
    found = hashlib.sha256()
    templates = sorted(path for path in (CHART / "templates").rglob("*") if path.is_file())
    for path in (CHART / "Chart.yaml", CHART / "values.yaml", *templates, values):
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def cases() -> list[Path]:
    return sorted((CHART / "ci").glob("*.yaml"))


def rendered(values: Path) -> str:
    """What is kept for `values`: what it was made of, and what was made."""
    head = "# Made by `python infra/dev/helm.py render`, of the chart and values with the SHA-256\n"
    return f"{head}# {digest(values)}\n" + template("--values", str(values))


def main() -> int:
    words = sys.argv[1:] or ["--help"]
    if words == ["fetch"]:
        print(fetch())
    elif words == ["render"]:
        RENDERED.mkdir(exist_ok=True)
        for values in cases():
            (RENDERED / values.name).write_text(rendered(values), "utf-8")
    elif words in (["--help"], ["-h"]):
        print(__doc__)
    else:
        done = run(*words)
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
        return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
