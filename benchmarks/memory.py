"""How much of what later runs run into does memory already know? DESIGN.md's measure, for any folder of runs.

    python benchmarks/memory.py ../shared/data/tau-bench ../shared/data/swe-agent
    python benchmarks/memory.py DATA --model gpt-5.4-mini --kept answers --reading lines.csv   # and a model beside
    python benchmarks/memory.py --score lines.csv                                              # once it is filled
    python benchmarks/memory.py DATA --growth 200                                              # tokens of a rollout

**Question.** Of the tool failures in runs that memory has not seen: for how many did the seed already hold the
failure's signature *and* a fix that worked, within the same number of tokens, compared with no memory, with the
last final answers, and with grep over the raw runs?

**Splits.** By task (folds of whole tasks: nothing of a tested task was seen), and, apart from it, by trial (the
same tasks were seen in other trials: an upper bound, as an agent that repeats its work would have it).

**Labels.** They are made here, by other means than the rules use: a call failed if its exit code is not 0 or its
answer carries an error word in one of several languages (the rules may not know a single word); its signature is
the letters-only words of the failing line; its fix is the set of argument names (for a command: the new words)
that differ in the next call of that tool that did not fail. So a fault of the rules' detector is not also a fault
of the measure. `reward` and `info` of the data are not read.

**Held.** A line of a seed (or of an answer) holds a failure if it names the tool and has at least 80 % of the
signature's words; it holds the fix if it also names what was changed. Raw text holds a failure if the failing call
of some seen run with such a signature was found; it holds the fix if that run's curing call was found too, and
changed one of the same things. Nothing more is asked of raw text: not that an agent sees which two calls belong
together.

**Precision** is taken over the seed's lines that name a cure, where the tested runs met the failure: the share
whose cure is one of those that worked there. **Harm**: personal values (of one subject's arguments only) that
stand in another subject's seed; and cures that a tested run tried and saw fail.

**With a model** the same is measured for the rules alone and for the rules with a model's statements, over the same
splits: each run is summarised once, as a rollout of its own. Whether its lines are true no code can tell: `--reading`
writes lines of both, shuffled and without saying which is whose, for somebody to judge by the runs.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import memory_growth
import memory_model
import memory_reading

from runlore.events import ids, models
from runlore.memory import notes, operations, render, rules, text, values

BUDGETS = (1_500, 6_000)
"""Tokens: what the SDK always injects, and that with what an agent reads when it opens MEMORY.md."""
FOLDS = 5
HELD_WORDS_SHARE = 0.8
_ERROR = re.compile(
    r"error|exception|fail|invalid|not (?:found|available|enough|allowed|permitted|valid)"
    r"|no such|denied|refused|cannot|"
    r"can't|unable|missing|timed? ?out|traceback|wrong|fehler|ungültig|nicht (?:gefunden|verfügbar|erlaubt)|erreur|"
    r"échec|introuvable|invalide|"
    r"エラー|失敗|無効|見つかりません|错误|失败|无效|خطأ|فشل|غير صالح|غير موجود|ошибка|не найден",
    re.IGNORECASE,
)
_TASK = re.compile(r"^(?P<task>.*?)\.trial-(?P<trial>\d+)$")


# --- runs and their labels --------------------------------------------------------------------------


@dataclass
class Made:
    """A call with its answer, as the labels see it."""

    tool: str
    args: str
    keys: frozenset[tuple[str, str]]
    answer: str
    failed: bool


@dataclass
class Failed:
    tool: str
    words: frozenset[str]
    cure: frozenset[str]
    tried: list[frozenset[str]]
    """What was changed in retries that failed the same way."""
    place: int
    """Number of the failing call in its run."""
    cured_at: int | None
    """Number of the curing call."""


@dataclass
class Run:
    name: str
    task: str
    trial: str
    subject: str | None
    line: str
    calls: list[Made]
    failures: list[Failed]
    request: str
    answer: str

    @property
    def meta(self) -> values.RunMeta:
        alias = ids.subject_alias(self.subject) if self.subject else None
        return values.RunMeta("bench", "bench", ids.alias(self.name), "run", 1, alias, self.ended_at)

    @property
    def ended_at(self) -> str:
        return str(json.loads(self.line).get("updated_at") or values.UNKNOWN)


def load(paths: Iterable[Path]) -> Iterator[Run]:
    """Every run below `paths`, whichever of the importers' formats it is in."""
    from runlore import sources

    for path in paths:
        for file in sorted([path] if path.is_file() else [*path.rglob("*.jsonl"), *path.rglob("*.traj")]):
            for one in sources.read(_format(file), file, project="bench", memory="bench"):
                if isinstance(one, sources.Problem):
                    print(f"skipped {one}", file=sys.stderr)
                    continue
                yield _run(one.data)


def _format(file: Path) -> str:
    if file.suffix == ".traj":
        return "swe-agent"
    with file.open(encoding="utf-8") as lines:
        return "agents-sdk" if '"generated_items"' in lines.readline() else "chat"


def _run(data: dict[str, Any]) -> Run:
    event = models.run_completed(data)
    name = event.rollout.original
    found = _TASK.match(name)
    made, request, answer = _read(json.loads(event.record or "{}"))
    return Run(
        name=name,
        task=found["task"] if found else name,
        trial=found["trial"] if found else "",
        subject=event.subject,
        line=event.record or "{}",
        calls=made,
        failures=list(_label(made)),
        request=request,
        answer=answer,
    )


def _read(payload: dict[str, Any]) -> tuple[list[Made], str, str]:
    """Calls, first request and last words: a reader of its own, so that it shares no fault with the rules'."""
    waiting: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    made: list[Made] = []
    request, answer = "", str(payload.get("final_output") or "")
    for item in [*payload.get("input", []), *payload.get("generated_items", [])]:
        kind, call_id = item.get("type", ""), str(item.get("call_id") or item.get("callId") or "")
        if kind == "function_call":
            waiting[call_id].append((item.get("name", ""), item.get("arguments", "")))
        elif kind in ("function_call_output", "function_call_result") and waiting[call_id]:
            made.append(_made(*waiting[call_id].pop(0), _plain(item.get("output"))))
        elif item.get("role") == "user" and not request:
            request = _plain(item.get("content"))
        elif item.get("role") == "assistant" and not payload.get("final_output"):
            answer = _plain(item.get("content"))
    return made, request, answer


def _made(tool: str, arguments: Any, answer: str) -> Made:
    args = arguments if isinstance(arguments, str) else json.dumps(arguments)
    try:
        parsed = json.loads(args)
    except ValueError:
        parsed = args
    keys = frozenset(_named(parsed, ""))
    if len({name for name, _ in keys}) == 1:
        # One text argument: a command, whose first word is the tool and whose words are the arguments.
        words = str(next(iter(keys))[1]).split()
        if words and re.fullmatch(r"[a-z][\w.-]*", words[0]):
            tool, keys = words[0], frozenset((word, word) for word in words[1:60])
    return Made(tool, args, keys, answer, _did_fail(answer))


def _named(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _named(inner, str(key))
    elif isinstance(value, list):
        yield name, f"#{len(value)}"
        for inner in value:
            yield from _named(inner, name)
    else:
        yield name, json.dumps(value) if not isinstance(value, str) else value


def _plain(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(_plain(part) for part in content)
    if isinstance(content, dict):
        return _plain(content.get("text") or content.get("content") or json.dumps(content))
    return "" if content is None else str(content)


def _did_fail(answer: str) -> bool:
    code = re.search(r'(?:exited with code |"exit_code": ?)(-?\d+)', answer[:400] + answer[-400:])
    if code:
        return code.group(1) != "0"
    if re.search(r"^Traceback \(most recent", answer, re.MULTILINE):
        return True
    # A long or structured answer that mentions an error is content; a short one that does is an error.
    return len(answer) <= 300 and not answer.lstrip().startswith(("{", "[")) and bool(_ERROR.search(answer))


def _label(made: list[Made]) -> Iterator[Failed]:
    for place, call in enumerate(made):
        if not call.failed:
            continue
        words = _signature(call)
        if not words:
            continue
        tried: list[frozenset[str]] = []
        cure: frozenset[str] = frozenset()
        cured_at = None
        for number, later in enumerate(made[place + 1 : place + 13], place + 1):
            if later.tool != call.tool:
                continue
            changed = frozenset(name for name, _ in call.keys ^ later.keys)
            if not later.failed:
                cure, cured_at = changed, number if changed else None
                break
            if _signature(later) == words:
                tried.append(changed)
        yield Failed(call.tool, words, cure, tried, place, cured_at)


def _signature(call: Made) -> frozenset[str]:
    lines = [line for line in call.answer.splitlines() if _ERROR.search(line)] or call.answer.splitlines()[
        -1:
    ]
    line = lines[-1] if lines else ""
    own = {value for _, value in call.keys}
    line = re.sub(r"'[^']*'|\"[^\"]*\"", " ", line)
    words = [word for word in re.findall(r"[^\s,;:()\[\]<>]+", line) if word not in own]
    return frozenset(
        word
        for word in re.findall(r"[^\W\d_]+", " ".join(w for w in words if not re.search(r"\d", w)).lower())
    )


# --- what a text holds ------------------------------------------------------------------------------


def holds(windows: list[str], failed: Failed) -> tuple[bool, bool]:
    """Whether some window has the failure, and whether such a window has the cure too."""
    has_signature = False
    for window in windows:
        # What the seed names as the failure must not count as the cure, nor the other way round.
        said, _, cure = window.rpartition("worked:") if "worked:" in window else (window, "", window)
        if failed.tool.lower() not in said:
            continue
        # Neither the tool's name nor a placeholder's may stand for a word of the message.
        message = re.sub(r"<\S*>", " ", said.replace(failed.tool.lower(), " "))
        if not _is_alike(len(failed.words & set(re.findall(r"[^\W\d_]+", message))), failed):
            continue
        has_signature = True
        if failed.cure and any(_names(cure, name) for name in failed.cure):
            return True, True
    return has_signature, False


def _names(window: str, name: str) -> bool:
    return re.search(rf"(?<![a-z0-9]){re.escape(name.lower())}(?![a-z0-9])", window) is not None


def lines_of(body: str) -> list[str]:
    return [line.lower() for line in body.splitlines() if line.strip()]


def holds_raw(found: set[tuple[str, int]], train: list[Run], failed: Failed) -> tuple[bool, bool]:
    """The same of raw calls (run, number) that were found."""
    has_signature = False
    for run in train:
        for one in run.failures:
            if one.tool != failed.tool or (run.name, one.place) not in found:
                continue
            if not _is_alike(len(one.words & failed.words), failed):
                continue
            has_signature = True
            if one.cure & failed.cure and (run.name, one.cured_at) in found:
                return True, True
    return has_signature, False


def _is_alike(shared: int, failed: Failed) -> bool:
    return shared >= HELD_WORDS_SHARE * len(failed.words)


# --- the four contenders ----------------------------------------------------------------------------


def cut(body: str, tokens: int) -> str:
    """As many whole lines from the top of `body` as fit in `tokens`."""
    kept, left = [], tokens
    for line in body.splitlines():
        left -= text.token_estimate(line) + 1
        if left < 0:
            break
        kept.append(line)
    return "\n".join(kept)


Told = Mapping[str, operations.Told]
"""What a model says of runs, by their names, besides the rules."""
RULES = "runlore"
"""The rules alone: the engine that there always is."""


def learn(runs: Iterable[Run], told: Told = MappingProxyType({})) -> notes.Notes:
    known = notes.Notes()
    for run in runs:
        summary = rules.build([rules.digest(run.line, run.meta)])
        proposed = operations.propose(known, run.meta.rollout, summary, told.get(run.name))
        known, refused = operations.apply(known, proposed)
        assert not refused, refused
    return known


def seed_of(parts: dict[str, render.Part], subject: str | None) -> tuple[str, str]:
    alias = ids.subject_alias(subject) if subject else None
    files = render.compose(parts, subject=alias, layout=models.Layout())
    return files["memory_summary.md"].text, files["MEMORY.md"].text


def raw_of(run: Run) -> list[str]:
    return [
        f"{call.tool} {call.args[:1200]} -> {call.answer[:1200]}".replace("\n", " ") for call in run.calls
    ]


def grep(train: list[Run], run: Run, raw: dict[str, list[str]]) -> list[tuple[str, int]]:
    """The raw calls that share most words with the request and the tools of the run that starts, the best first."""
    words = set(re.findall(r"\w{4,}", run.request.lower())) | {call.tool.lower() for call in run.calls}
    scored = []
    for other in train:
        for number, line in enumerate(raw[other.name]):
            low = line.lower()
            scored.append((-sum(word in low for word in words) / (200 + len(low)), other.name, number))
    return [(name, number) for _, name, number in sorted(scored)[:400]]


def fitting(found: list[tuple[str, int]], raw: dict[str, list[str]], tokens: int) -> set[tuple[str, int]]:
    """The first of `found` that fit in `tokens`."""
    kept, left = set(), tokens
    for name, number in found:
        left -= text.token_estimate(raw[name][number]) + 1
        if left < 0:
            break
        kept.add((name, number))
    return kept


# --- the measure ------------------------------------------------------------------------------------


@dataclass
class Score:
    failures: int = 0
    cured: int = 0
    preventable: int = 0
    signature: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    held: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    tokens: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    confirmed: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    met: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    leaks: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    stale: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def measure(
    runs: list[Run], groups: list[set[str]], key: str, engines: Mapping[str, Told] | None = None
) -> Score:
    """The measure over these splits, for each of `engines` by what a model says there besides the rules."""
    score = Score()
    engines = engines or {RULES: {}}
    raw = {run.name: raw_of(run) for run in runs}
    for group in groups:
        test = [run for run in runs if getattr(run, key) in group]
        train = [run for run in runs if getattr(run, key) not in group]
        if train and test:
            _measure_fold(score, train, test, raw, engines)
    return score


def _measure_fold(
    score: Score,
    train: list[Run],
    test: list[Run],
    raw: dict[str, list[str]],
    engines: Mapping[str, Told],
) -> None:
    parts = {name: render.parts(learn(train, told), models.Layout()) for name, told in engines.items()}
    everything = {(run.name, number) for run in train for number in range(len(run.calls))}
    private = _private_values(train)
    lessons: dict[str, dict[str, list[Failed]]] = {name: defaultdict(list) for name in engines}
    last = "\n".join(run.answer.replace("\n", " ") for run in reversed(train))
    for run in test:
        seeds = {name: seed_of(parts[name], run.subject) for name in engines}
        for name, files in seeds.items():
            score.leaks[name] += _leaks("\n".join(files), run, train, private)
        found = grep(train, run, raw) if run.failures else []
        for tokens in BUDGETS:
            held = {"last answer": lines_of(cut(last, tokens)), "none": []}
            for name, (summary, memory) in seeds.items():
                held[name] = lines_of(
                    cut(summary if tokens == BUDGETS[0] else f"{summary}\n{memory}", tokens)
                )
                score.tokens[f"{name}@{tokens}"].append(text.token_estimate("\n".join(held[name])))
            lines = fitting(found, raw, tokens)
            for one in run.failures:
                told = {name: holds(windows, one) for name, windows in held.items()}
                told["grep"] = holds_raw(lines, train, one)
                for name, (signature, cure) in told.items():
                    score.signature[f"{name}@{tokens}"] += signature
                    score.held[f"{name}@{tokens}"] += cure
        for one in run.failures:
            score.failures += 1
            score.cured += bool(one.cure)
            score.preventable += holds_raw(everything, train, one)[1]
            for name, (_, memory) in seeds.items():
                for line in lines_of(memory):
                    if "what worked:" in line and holds([line], one)[0]:
                        lessons[name][line].append(one)
    for name, found in lessons.items():
        for line, met in found.items():
            _judge_line(score, name, line, met)


def _judge_line(score: Score, engine: str, line: str, met: list[Failed]) -> None:
    """Whether a line that names a cure was right where the tested runs met its failure."""
    cured = [one for one in met if one.cure]
    score.met[engine] += bool(cured)
    score.confirmed[engine] += any(holds([line], one)[1] for one in cured)
    said = line.partition("what worked:")[2]
    tried = [one for one in met for names in one.tried if names and all(_names(said, name) for name in names)]
    score.stale[engine] += bool(tried) and not any(holds([line], one)[1] for one in cured)


def _private_values(train: list[Run]) -> dict[str, str | None]:
    """Argument values with a digit or an @ that one subject's runs alone have."""
    owners: dict[str, set[str | None]] = defaultdict(set)
    for run in train:
        for call in run.calls:
            for _, value in call.keys:
                if 6 <= len(value) <= 60 and re.search(r"[\d@]", value) and not value.startswith("#"):
                    owners[value].add(run.subject)
    return {value: next(iter(by)) for value, by in owners.items() if len(by) == 1 and None not in by}


def _leaks(seed: str, run: Run, train: list[Run], private: dict[str, str | None]) -> int:
    """Other subjects' values in a seed, but for those that the subject's own runs say too."""
    found = [value for value, owner in private.items() if owner != run.subject and value in seed]
    own = [one.line for one in train if one.subject == run.subject] if found else []
    return sum(not any(value in line for line in own) for value in found)


def folds(runs: list[Run], key: str) -> list[set[str]]:
    names = sorted({getattr(run, key) for run in runs})
    count = min(FOLDS, len(names)) if key == "task" else len(names)
    return [set(names[place::count]) for place in range(count)]


def report(name: str, score: Score, engines: Iterable[str] = (RULES,)) -> dict[str, Any]:
    total = max(1, score.failures)
    out: dict[str, Any] = {
        "split": name,
        "failures": score.failures,
        "cured_in_their_run": score.cured,
        "preventable": score.preventable,
        "contenders": {},
        "engines": {
            engine: {
                "line_precision": round(score.confirmed[engine] / score.met[engine], 3)
                if score.met[engine]
                else None,
                "lines_met": score.met[engine],
                "leaks": score.leaks[engine],
                "stale_lines": score.stale[engine],
            }
            for engine in engines
        },
    }
    for tokens in BUDGETS:
        for who in ("none", "last answer", "grep", *engines):
            slot = f"{who}@{tokens}"
            out["contenders"][slot] = {
                "signature": score.signature[slot],
                "signature_and_fix": score.held[slot],
                "share_of_failures": round(score.held[slot] / total, 3),
                "share_of_preventable": round(score.held[slot] / max(1, score.preventable), 3),
            }
        for engine in engines:
            used = score.tokens[f"{engine}@{tokens}"]
            out["contenders"][f"{engine}@{tokens}"]["tokens_used_mean"] = round(sum(used) / max(1, len(used)))
    return out


def show(result: dict[str, Any]) -> None:
    print(
        f"\nsplit by {result['split']}: {result['failures']} failures in unseen runs, "
        f"{result['cured_in_their_run']} cured in their own run, {result['preventable']} of them preventable "
        "(same tool, signature and changed arguments in a seen run)"
    )
    print(f"  {'':24}{'signature':>10}{'+ fix':>8}{'of all':>9}{'of prev.':>10}")
    for slot, one in result["contenders"].items():
        print(
            f"  {slot:24}{one['signature']:>10}{one['signature_and_fix']:>8}"
            f"{one['share_of_failures']:>9.1%}{one['share_of_preventable']:>10.1%}"
            + (f"   ({one['tokens_used_mean']} tokens used)" if "tokens_used_mean" in one else "")
        )
    for engine, one in result["engines"].items():
        precision = "n/a" if one["line_precision"] is None else f"{one['line_precision']:.1%}"
        print(
            f"  {engine}: line precision {precision} of {one['lines_met']} lines met; leaks {one['leaks']}; "
            f"stale lines {one['stale_lines']}"
        )


def speed(runs: list[Run]) -> dict[str, Any]:
    times = []
    for run in runs:
        begin = time.perf_counter()
        rules.build([rules.digest(run.line, run.meta)])
        times.append((time.perf_counter() - begin) / max(1, len(run.line)) * 50 * 1024)
    known = learn(runs)
    begin = time.perf_counter()
    parts = render.parts(known, models.Layout())
    return {
        "digest_and_build_ms_per_50KB_median": round(sorted(times)[len(times) // 2] * 1000, 2),
        "parts_ms": round((time.perf_counter() - begin) * 1000, 1),
        "rollouts": len(known.rollouts()),
        "parts": len(parts),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks/memory.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "paths", nargs="*", type=Path, help="files or folders: sessions/*.jsonl, chat *.jsonl, *.traj"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--runs", type=int, help="take only the first so many runs")
    model = parser.add_argument_group("with a model, beside the rules")
    model.add_argument("--model", help="ask this model for the summary of each run")
    model.add_argument("--base-url", default="", help="its endpoint; the key is RUNLORE_MODEL_KEY")
    model.add_argument("--effort", default="", help="how much it may reason; empty sends none")
    model.add_argument("--api", default="auto", choices=("auto", "responses", "chat"))
    model.add_argument("--input-tokens", type=int, default=60_000, help="of one ask, by our estimate")
    model.add_argument("--output-tokens", type=int, default=16_000, help="of one answer")
    model.add_argument("--timeout", type=float, default=300.0, help="seconds for one answer")
    model.add_argument("--at-once", type=int, default=4, help="asks under way at the same time")
    model.add_argument("--kept", type=Path, help="folder of answers, so that none is paid for twice")
    model.add_argument("--reading", type=Path, help="write lines of both engines here, for a blind reading")
    model.add_argument("--lines", type=int, default=60, help="lines of each engine in the reading")
    parser.add_argument("--score", type=Path, help="compute line precision from a reading that was filled")
    parser.add_argument(
        "--growth", type=int, metavar="RUNS", help="tokens per run while one rollout grows to so many runs"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(argv)
    if options.score:
        return _print(options, memory_reading.score(options.score), memory_reading.show)
    missing = [str(path) for path in options.paths if not path.exists()]
    if missing or not options.paths:
        parser.error(f"there is no {missing[0]}" if missing else "name files or folders of runs")
    runs = list(load(options.paths))[: options.runs]
    if options.growth:
        told = [(run.name, run.line) for run in runs]
        return _print(options, memory_growth.grow(told, options.growth), memory_growth.show)
    if len({run.task for run in runs}) < 2:
        parser.error("at least two tasks are needed to split them")
    engines: dict[str, Told] = {RULES: {}}
    asked = memory_model.ask_all(runs, options) if options.model else None
    if asked is not None:
        engines[f"{RULES}+model"] = asked.told
    results = [report("task", measure(runs, folds(runs, "task"), "task", engines), engines)]
    if len({run.trial for run in runs}) > 1:
        trials = [run for run in runs if run.trial]
        results.append(report("trial", measure(trials, folds(trials, "trial"), "trial", engines), engines))
    out = {
        "runs": len(runs),
        "tasks": len({run.task for run in runs}),
        "splits": results,
        "speed": speed(runs),
    }
    if asked is not None:
        out["model"] = asked.report()
    if options.reading:
        told = asked.told if asked else {}
        out["reading"] = memory_reading.write(options.reading, lines_to_read(runs, told), options.lines)
    return _print(options, out, show_all)


def lines_to_read(runs: list[Run], told: Told) -> list[memory_reading.Line]:
    """The lines that memory would hold of all these runs, as any of their subjects would see them."""
    known = learn(runs, told)
    names = {run.meta.rollout: run.name for run in runs}
    parts = render.parts(known, models.Layout())
    subjects = {ids.subject_alias(run.subject) if run.subject else None for run in runs} | {None}
    files = [
        one
        for subject in sorted(subjects, key=str)
        for one in render.compose(parts, subject=subject, layout=models.Layout()).values()
    ]
    return memory_reading.lines(files, known, names)


def show_all(out: dict[str, Any]) -> None:
    print(f"{out['runs']} runs of {out['tasks']} tasks")
    for result in out["splits"]:
        show(result)
    print(f"\nspeed: {out['speed']}")
    if "model" in out:
        memory_model.show(out["model"])
    if "reading" in out:
        one = out["reading"]
        print(f"\nreading: {one['lines']} lines in {one['file']}; what said each is in {one['key']}")


def _print(
    options: argparse.Namespace, out: dict[str, Any], show_it: Callable[[dict[str, Any]], None]
) -> int:
    if options.json:
        print(json.dumps(out, indent=2))
    else:
        show_it(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
