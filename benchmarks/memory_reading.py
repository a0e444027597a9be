"""A blind reading: lines of memory by rules and by a model, shuffled, for a person to judge; and its score.

Two files. `NAME.csv` is to be filled: each line with the runs that it rests on, and an empty `verdict` (`y`: true and
worth having, by those runs; `n`: not; `?`: can not be told). `NAME.key.json` says which engine each line is of, and is
not to be opened before. A line that two engines say is nobody's in particular, and left out.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runlore.memory import notes, render

KINDS = {"text": "model", "failure": "rules", "fact": "rules", "correction": "rules", "tool": "rules"}
"""Kinds of notes that an agent could act on, and whose they are. Cards of rollouts only quote."""
COLUMNS = ("id", "verdict", "line", "runs")
VERDICTS = ("y", "n", "?")
RUNS_SHOWN_MAX = 5


@dataclass(frozen=True)
class Line:
    """A line of memory to be judged."""

    text: str
    engine: str
    runs: tuple[str, ...]
    """The runs that it rests on."""

    @property
    def id(self) -> str:
        """A name that tells nothing of whose it is, and gives the order."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:8]


def lines(files: Iterable[render.Composed], known: notes.Notes, names: Mapping[str, str]) -> list[Line]:
    """The lines of these files that rest on one note of `KINDS`, each once."""
    found: dict[str, set[Line]] = defaultdict(set)
    for file in files:
        texts = file.text.splitlines()
        for first, last, note in file.why:
            entry = known.get(note)
            if first != last or entry is None or entry["kind"] not in KINDS:
                continue
            line = texts[first - 1].strip().lstrip("-* ").strip()
            rests = tuple(sorted({names.get(one, one) for one in entry["support"]}))
            if len(line) >= 12 and not line.startswith("#"):
                found[line].add(Line(line, KINDS[entry["kind"]], rests))
    whose = {line: {one.engine for one in some} for line, some in found.items()}
    return [max(some, key=lambda one: len(one.runs)) for line, some in found.items() if len(whose[line]) == 1]


def write(path: Path, found: Iterable[Line], lines_max: int) -> dict[str, Any]:
    """Write a reading with at most `lines_max` lines of each engine, and its key."""
    of_engine: dict[str, list[Line]] = defaultdict(list)
    for one in sorted(found, key=lambda one: one.id):
        of_engine[one.engine].append(one)
    chosen = sorted((one for some in of_engine.values() for one in some[:lines_max]), key=lambda one: one.id)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for one in chosen:
            more = [f"and {len(one.runs) - RUNS_SHOWN_MAX} more"] if len(one.runs) > RUNS_SHOWN_MAX else []
            table.writerow((one.id, "", one.text, "; ".join([*one.runs[:RUNS_SHOWN_MAX], *more])))
    key = _key(path)
    key.write_text(json.dumps({one.id: one.engine for one in chosen}, indent=2) + "\n", "utf-8")
    counts = {engine: len(some) for engine, some in sorted(of_engine.items())}
    return {"file": str(path), "key": str(key), "lines": len(chosen), "lines_there": counts}


def _key(path: Path) -> Path:
    return path.with_suffix(".key.json")


def score(path: Path) -> dict[str, Any]:
    """The line precision of each engine by a reading that was filled. Exits with words where it can not be read."""
    try:
        engines = json.loads(_key(path).read_text("utf-8"))
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        said = {row["id"]: row["verdict"].strip().lower() for row in rows}
    except (OSError, ValueError, KeyError, AttributeError) as exc:
        raise SystemExit(f"{path} with {_key(path)} is no reading: {type(exc).__name__}: {exc}") from None
    strange = sorted({verdict for verdict in said.values() if verdict and verdict not in VERDICTS})
    unknown = sorted(set(said) - set(engines))
    if strange or unknown:
        raise SystemExit(f"verdicts are {', '.join(VERDICTS)}, not {strange}; lines without a key: {unknown}")
    out: dict[str, Any] = {}
    for engine in sorted(set(engines.values())):
        verdicts = [said.get(one, "") for one, whose in engines.items() if whose == engine]
        good, bad = verdicts.count("y"), verdicts.count("n")
        low, high = _interval(good, good + bad)
        out[engine] = {
            "lines": len(verdicts),
            "yes": good,
            "no": bad,
            "can_not_be_told": verdicts.count("?"),
            "not_filled": verdicts.count(""),
            "line_precision": round(good / (good + bad), 3) if good + bad else None,
            "interval_95": [round(low, 3), round(high, 3)] if good + bad else None,
        }
    return {"reading": str(path), "engines": out}


def _interval(good: int, count: int) -> tuple[float, float]:
    """Wilson's interval of 95 %."""
    if not count:
        return 0.0, 1.0
    z, share = 1.96, good / count
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (middle - spread) / (1 + z * z / count), (middle + spread) / (1 + z * z / count)


def show(result: dict[str, Any]) -> None:
    print(f"{result['reading']}: line precision by a blind reading")
    print(f"  {'':10}{'lines':>7}{'yes':>6}{'no':>6}{'?':>6}{'empty':>7}{'precision':>11}   95 %")
    for engine, one in result["engines"].items():
        share = "n/a" if one["line_precision"] is None else f"{one['line_precision']:.1%}"
        between = "" if one["interval_95"] is None else "{:.0%} to {:.0%}".format(*one["interval_95"])
        print(
            f"  {engine:10}{one['lines']:>7}{one['yes']:>6}{one['no']:>6}{one['can_not_be_told']:>6}"
            f"{one['not_filled']:>7}{share:>11}   {between}"
        )
