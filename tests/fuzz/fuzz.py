"""Fuzzing guided by coverage: `make fuzz [TARGET=…] [SECONDS=…]`; a crash stays in `corpus/`, which the suite replays.

For each target a process of its own, as libFuzzer ends with the first crash; the corpus that it grows lies in a folder
that is told, and is used again by the next run. Not part of the suite: it wants time, and atheris.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
GROWN = Path(tempfile.gettempdir(), "runlore-fuzz")
INPUT_BYTES_MAX = 64 * 1024
SECONDS_OF_ONE_INPUT_MAX = 20
MEMORY_MB_MAX = 2048


def keep(name, raw):
    """Keep what broke a target, named by its content."""
    path = CORPUS / name / hashlib.sha256(raw).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return path


def one(name, seconds):
    """Fuzz one target in this process."""
    import atheris

    with atheris.instrument_imports(include=["runlore"], enable_loader_override=False):
        import mutating
        import targets

    target = targets.TARGETS[name]
    samples = target.samples()
    grown = GROWN / name
    grown.mkdir(parents=True, exist_ok=True)
    for raw in samples:
        (grown / hashlib.sha256(raw).hexdigest()[:16]).write_bytes(raw)

    def run(raw):
        try:
            targets.check(name, raw)
        except BaseException:
            print(f"kept as {keep(name, raw)}", flush=True)
            raise

    def mutate(raw, max_size, seed):
        dice = random.Random(seed)
        changed = (
            mutating.mutate(dice, raw or dice.choice(samples), samples, target.kind)
            if dice.randint(0, 2)
            else atheris.Mutate(raw, len(raw) + 64)
        )
        return changed[:max_size]

    options = [
        f"-max_total_time={seconds}", f"-max_len={INPUT_BYTES_MAX}", f"-timeout={SECONDS_OF_ONE_INPUT_MAX}",
        f"-rss_limit_mb={MEMORY_MB_MAX}", "-print_final_stats=1", "-verbosity=0",
        f"-artifact_prefix={grown.parent}/{name}-",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], str(grown), *options], run, custom_mutator=mutate)
    atheris.Fuzz()


def main(arguments):
    """All targets, or one: each for so many seconds. The exit status says whether anything broke."""
    wanted, seconds = (arguments[0] if arguments else ""), int(arguments[1]) if arguments[1:] else 60
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    if wanted and os.environ.get("RUNLORE_FUZZ_CHILD"):
        return one(wanted, seconds)
    import targets

    if wanted and wanted not in targets.TARGETS:
        print(
            f"there is no target {wanted!r}; targets: {', '.join(sorted(targets.TARGETS))}", file=sys.stderr
        )
        return 2
    broken = []
    for name in [wanted] if wanted else sorted(targets.TARGETS):
        print(f"--- {name}: {seconds} s", flush=True)
        command = [sys.executable, __file__, name, str(seconds)]
        done = subprocess.run(command, env={**os.environ, "RUNLORE_FUZZ_CHILD": "1"}, check=False)
        broken += [name] if done.returncode else []
        # What took too long, or too much memory, ends the process: only libFuzzer could keep it.
        for path in [*GROWN.glob(f"{name}-timeout-*"), *GROWN.glob(f"{name}-oom-*")]:
            print(f"kept as {keep(name, path.read_bytes())}")
            path.unlink()
    print(f"broken: {', '.join(broken) or 'none'}; corpora in {GROWN}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
