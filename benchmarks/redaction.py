"""How good redaction is: recall and precision on the labelled set, and what it costs. `redaction.py [--cases] [RUNS…]`.

Three detectors on both halves of `tests/redaction/`: our shapes alone, the library alone, and both together, which
is what runs. A secret counts as found when no part of it is left; a span counts as false when it hides nothing that
is labelled, or more than `SPILL_CHARS_MAX` around it. Precision is over spans, recall over secrets.

`--cases` shows the misses and the false hits of the tuning half; those of the other half are never shown (see
`labelled.py`). RUNS are files of real runs, one JSON a line: what would be hidden in them is counted by kind, and
`--cases` shows where. `--before FILE` measures another version's `redact.py` too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "redaction"))

import labelled

from runlore.memory import detectors, redact

SPILL_CHARS_MAX = 24
RECORD_BYTES = 8 * 1024
ROUNDS = 200

Span = tuple[int, int, str]
Finder = Callable[[str], list[Span]]


def ours_alone(text: str) -> list[Span]:
    return [(one.start, one.end, one.kind) for one in redact.find(text, library=None)]


def library_alone(text: str) -> list[Span]:
    library = detectors.library()
    return [] if library is None else [(one.start, one.end, one.kind) for one in library.find(text)]


def both(text: str) -> list[Span]:
    return [(one.start, one.end, one.kind) for one in redact.find(text)]


def before(path: str) -> Finder:
    """Another version's spans, by where its placeholders stand in what it made."""
    spec = importlib.util.spec_from_file_location("redact_before", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def find(text: str) -> list[Span]:
        spans: list[Span] = []
        for kind, pattern in module._PATTERNS:
            for match in pattern.finditer(text):
                parts = match.groupdict()
                start = match.end("keep") if parts.get("keep") else match.start()
                end = match.start("tail") if parts.get("tail") else match.end()
                if not any(at < end and start < to for at, to, _ in spans):
                    spans.append((start, end, kind))
        return spans

    return find


def judge(case: labelled.Case, spans: Sequence[Span]) -> tuple[int, list[str], list[Span]]:
    """How many of a case's secrets are hidden wholly, those that are not, and the false spans."""
    wanted = [(at, at + len(one)) for one in case.hidden for at in [case.text.index(one)]]
    missed = []
    for start, end in wanted:
        covered = {n for at, to, _ in spans for n in range(max(at, start), min(to, end))}
        # A quote, a bracket or a line break at the edge is not the secret.
        left = [case.text[n] for n in range(start, end) if n not in covered and case.text[n].isalnum()]
        missed += [case.text[start:end]] if left else []
    false = [
        span
        for span in spans
        if not any(
            span[0] < end and start < span[1] and (start - span[0]) + (span[1] - end) <= SPILL_CHARS_MAX
            for start, end in wanted
        )
    ]
    return len(wanted) - len(missed), missed, false


def measure(half: str, finders: dict[str, Finder], *, show: bool) -> None:
    cases = labelled.cases(half)
    rows: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0, 0, 0]))
    for case in cases:
        for name, find in finders.items():
            spans = find(case.text)
            found, missed, false = judge(case, spans)
            for key in (case.kind, "all"):
                row = rows[key][name]
                row[0] += found
                row[1] += len(case.hidden)
                row[2] += len(spans) - len(false)
                row[3] += len(false)
            if show and name == "both" and (missed or false):
                hits = [(kind, case.text[at:to]) for at, to, kind in false]
                print(f"  {case.name}: missed {missed} false {hits}\n      {case.text[:200]!r}")
    names = list(finders)
    positives = sum(bool(case.hidden) for case in cases)
    print(f"\n{half}: {positives} texts with a secret, {len(cases) - positives} without")
    print(f"  {'recall, then false hits':28}" + "".join(f"{name:>24}" for name in names))
    for kind, row in sorted(rows.items(), key=lambda item: (item[0] == "all", item[0])):
        told = []
        for name in names:
            found, total, _, false = row[name]
            told.append((f"{found}/{total}" if total else "") + (f"  false {false}" if false else ""))
        if any(told):
            print(f"  {kind:28}" + "".join(f"{one:>24}" for one in told))
    for name in names:
        found, total, true, false = rows["all"][name]
        print(f"  {name}: recall {found / total:.3f}, precision {true / max(1, true + false):.3f}")


def real_runs(paths: Sequence[str], *, show: bool) -> None:
    """What would be hidden in real runs, by kind."""
    counts: Counter[str] = Counter()
    size = 0
    for path in paths:
        raw = Path(path).read_text("utf-8")
        lines = raw.splitlines() if path.endswith("l") else [json.dumps(json.loads(raw))]
        for number, line in enumerate(lines, 1):
            size += len(line)
            found = redact.inspect(line)
            counts.update(one.kind for one in found)
            for one in found if show else ():
                print(f"  {Path(path).name}:{number} {one.kind}: {one.text!r} after {one.before[-60:]!r}")
    print(f"\nreal runs: {size:,} bytes in {len(paths)} files; hidden: {dict(counts) or 'nothing'}")


def cost() -> None:
    """Milliseconds of the processor for one record of 8 KB, with nothing to hide and with one secret."""
    turn = {"type": "message", "role": "user", "content": 'The build in src/app.py failed: "exit 2"\n' * 4}
    clean = json.dumps({"input": [turn] * max(1, RECORD_BYTES // len(json.dumps(turn)))})
    held = clean.replace("exit 2", labelled.KINDS["github-classic"](labelled.Draw("cost")).body, 1)
    redact.line(held)
    for name, line in (("nothing in it", clean), ("one secret in it", held)):
        began = time.thread_time()
        for _ in range(ROUNDS):
            redact.line(line)
        print(
            f"cost: {(time.thread_time() - began) / ROUNDS * 1e3:.3f} ms for {len(line):,} bytes with {name}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--cases", action="store_true")
    parser.add_argument("--before")
    parser.add_argument("--tuning-only", action="store_true")
    asked = parser.parse_args()
    if detectors.load() is None:
        print("the library is not installed: `pip install runlore[redact]`")
    print(f"rules {redact.rules()}")
    finders: dict[str, Finder] = {"before": before(asked.before)} if asked.before else {}
    finders |= {"shapes": ours_alone, "library": library_alone, "both": both}
    for half in (labelled.TUNING,) if asked.tuning_only else labelled.HALVES:
        measure(half, finders, show=asked.cases and half == labelled.TUNING)
    if asked.runs:
        real_runs(asked.runs, show=asked.cases)
    cost()


if __name__ == "__main__":
    main()
