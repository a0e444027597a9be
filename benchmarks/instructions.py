"""How well does the guard against instructions tell them from honest tool output? Precision and recall.

    python benchmarks/instructions.py
    python benchmarks/instructions.py --runs ../shared/data/tau-bench ../shared/data/swe-agent

**Texts.** `instructions/attacks.jsonl`: tools' outputs into which somebody wrote for an agent that reads them, in
18 languages; `instructions/harmless.jsonl`: outputs that command, too: man pages, hints of compilers, API
documentation, and sentences as a model writes them into memory. Written by hand, before the guard. A text is of the
half `held out` by its own hash; only the other was looked at while the guard was made. They are by the hand that made
the guard, so recall on what an attacker will write is lower than here; what counts more is that honest runs pass.

**Runs.** Every real run goes through the rules alone, each as a rollout of one memory; a run is a false hit if the
guard holds any line that was written of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from runlore.events import models
from runlore.memory import injected, instructions, notes, operations, render, rules

TEXTS = Path(__file__).parent / "instructions"
HELD_OUT, TUNING = "held out", "tuning"


@dataclass(frozen=True)
class Text:
    """A labelled text. `half`: whether it was looked at while the guard was made."""

    id: str
    body: str
    is_attack: bool
    lang: str

    @property
    def half(self) -> str:
        return HELD_OUT if hashlib.sha256(self.body.encode()).digest()[-1] % 2 else TUNING

    @property
    def is_held(self) -> bool:
        """Whether any of its lines would be, said by a tool."""
        return any(instructions.against(line, instructions.TOOL) for line in self.body.split("\n"))


@dataclass(frozen=True)
class Score:
    """What came of some texts."""

    attacks: int
    caught: int
    harmless: int
    false_hits: int

    @property
    def recall(self) -> float:
        return self.caught / self.attacks

    @property
    def precision(self) -> float:
        return self.caught / max(1, self.caught + self.false_hits)


def texts() -> list[Text]:
    """Every labelled text."""
    out = []
    for name, is_attack in (("attacks", True), ("harmless", False)):
        for line in (TEXTS / f"{name}.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            out.append(Text(row["id"], row["text"], is_attack, row.get("lang", "")))
    return out


def score(some: Iterable[Text]) -> Score:
    counted = Counter((one.is_attack, one.is_held) for one in some)
    attacks, harmless = (
        counted[True, True] + counted[True, False],
        counted[False, True] + counted[False, False],
    )
    return Score(attacks, counted[True, True], harmless, counted[False, True])


def of_runs(paths: Iterable[Path]) -> tuple[int, list[str]]:
    """(how many runs, what the guard holds of what the rules write from them)."""
    import memory

    known, count = notes.Notes.load({}), 0
    for run in memory.load(paths):
        summary = rules.build([rules.digest(run.line, run.meta)])
        known, _ = operations.apply(known, operations.propose(known, run.meta.rollout, summary))
        count += 1
    parts = render.parts(known, models.Layout())
    return count, [one.message for one in injected.check(None, known, parts)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", nargs="*", type=Path, default=[], help="Folders of real runs.")
    parser.add_argument(
        "--missed", action="store_true", help=f"List what was judged wrongly, of the {TUNING} half."
    )
    args = parser.parse_args()
    found = texts()
    print(
        f"{'texts':<10} {'attacks':>8} {'caught':>7} {'harmless':>9} {'held':>5} {'precision':>10} {'recall':>7}"
    )
    for half in (TUNING, HELD_OUT):
        one = score(text for text in found if text.half == half)
        print(
            f"{half:<10} {one.attacks:>8} {one.caught:>7} {one.harmless:>9} {one.false_hits:>5}"
            f" {one.precision:>10.2f} {one.recall:>7.2f}"
        )
    if args.missed:
        for text in found:
            if text.half == TUNING and text.is_held != text.is_attack:
                print(f"  {text.id} {text.body[:120]!r}")
    if args.runs:
        count, held = of_runs(args.runs)
        print(f"real runs: {count}, lines held: {len(held)}")
        for message in held:
            print(f"  {message}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
