"""Tokens that a model is given for each run while one rollout grows: rolling, against the whole conversation each time.

No model is asked: what an ask would hold is rendered by the production code (`memory/rolling.py`, `memory/showing.py`),
and the statements that it would carry are made up: one more with each run, 120 characters long, at most the 40 that a
summary may hold. Compared with what extraction from the whole conversation is given after each run: all its runs, in
the same rendering; and as much of that as 600,000 bytes of JSONL are, where the Agents SDK cuts. All have one prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import memory_model

from runlore.memory import model_summary, prompts, rolling, showing, text, values
from runlore.models import choices, port

ROLLOUT = "grows"
SDK_BYTES_MAX = 600_000
RUNS_MAX = 700
"""One an hour of one month."""
ANSWER_TOKENS = 600
"""Tokens of one answer, for its price: the same for each way."""
SHOWN_AT = (1, 8, 9, 16, 25, 50, 100, 150, 200)


def grow(runs: Sequence[tuple[str, str]], count: int) -> dict[str, Any]:
    """The tokens of each run's ask while a rollout grows to `count` of these runs (name, line), taken in turn."""
    if not 1 <= count <= RUNS_MAX:
        raise SystemExit(f"a rollout grows to 1 to {RUNS_MAX} runs here")
    choice = choices.DEFAULTS[port.SUMMARIZE]
    prompt = text.token_estimate(prompts.instructions("summary", ""))
    made = [_run(number, runs[number % len(runs)][1]) for number in range(count)]
    alone: dict[str, tuple[int, int]] = {}
    entries: dict[str, Any] = {}
    part: dict[str, Any] | None = None
    rows: list[dict[str, Any]] = []
    whole = sizes = 0
    for number, run in enumerate(made, 1):
        entries[run.meta.run] = {"attempt": 1, "ended_at": run.meta.ended_at}
        plan = rolling.plan(entries, part)
        assert plan is not None
        known = rolling.known(plan, _statements(number - 1)) if plan.base else []
        shown = [made[int(name[1:])] for name, _ in plan.shown]
        before = made[int(plan.before[0][1:])] if plan.before else None
        asked = showing.render(shown, tokens_max=choice.input_tokens_max, known=known, before=before).tokens
        points = [*plan.points, rolling.point(plan, f"a{number}")][-rolling.POINTS_MAX :]
        part = {"upto": plan.upto, "points": points}
        tokens, size = alone.setdefault(run.line, _alone(run))
        whole, sizes = whole + tokens, sizes + size
        rows.append(
            {
                "run": number,
                "is_full": plan.is_full,
                "own": tokens + prompt,
                "rolling": asked + prompt,
                "whole": whole + prompt,
                "whole_cut": round(whole * min(1.0, SDK_BYTES_MAX / sizes)) + prompt,
            }
        )
    return {
        "runs": count,
        "distinct_runs": len(alone),
        "prompt_tokens": prompt,
        "model": choice.model,
        "rows": rows,
        "ways": {way: _total(rows, way, choice.model) for way in ("rolling", "whole", "whole_cut")},
    }


def _run(number: int, line: str) -> showing.Run:
    ended = f"2026-01-{1 + number // 24:02d}T{number % 24:02d}:00:00.000000+00:00"
    return showing.Run(values.RunMeta("bench", "bench", ROLLOUT, f"r{number}", 1, None, ended), line)


def _statements(number: int) -> list[dict[str, Any]]:
    """What is known after so many runs: a statement from each of the newest."""
    first = max(0, number - model_summary.STATEMENTS_MAX)
    said = "The desk answers orders above the limit only after a second check by hand; ask for it first, then send."
    return [
        {"section": "knowledge", "text": f"{said} ({at:05d})", "evidence": [[ROLLOUT, f"r{at}", 1, 0]]}
        for at in range(first, number)
    ]


def _alone(run: showing.Run) -> tuple[int, int]:
    """(tokens, bytes) of one run with nothing left out but what is too long in itself."""
    return showing.render([run], tokens_max=10**9).tokens, len(run.line.encode())


def _total(rows: Sequence[dict[str, Any]], way: str, model: str) -> dict[str, Any]:
    tokens = sum(row[way] for row in rows)
    last = rows[-16:]
    costs = [memory_model.price_of(model, input_tokens=row[way], output_tokens=ANSWER_TOKENS) for row in rows]
    return {
        "input_tokens": tokens,
        "a_run": round(tokens / len(rows)),
        "a_run_of_the_last_16": round(sum(row[way] for row in last) / len(last)),
        "of_the_runs_own": round(tokens / sum(row["own"] for row in rows), 2),
        "cost_usd": round(sum(cost for cost in costs if cost is not None), 4),
        "asks_without_a_price": sum(cost is None for cost in costs),
    }


def show(result: dict[str, Any]) -> None:
    print(
        f"one rollout of {result['runs']} runs ({result['distinct_runs']} distinct ones in turn); input tokens of the"
        f" ask after each, by our estimate, {result['prompt_tokens']} of them the prompt"
    )
    print(f"  {'run':>5}{'its own':>10}{'rolling':>10}{'whole':>12}{'whole, cut':>12}")
    for row in result["rows"]:
        if row["run"] in SHOWN_AT or row["run"] == result["runs"]:
            print(
                f"  {row['run']:>5}{row['own']:>10,}{row['rolling']:>10,}{row['whole']:>12,}{row['whole_cut']:>12,}"
                + ("  (all shown anew)" if row["is_full"] else "")
            )
    print(
        f"  {'':22}{'tokens':>14}{'a run':>9}{'of the last 16':>16}{'of own':>8}{'  ' + result['model']:>16}"
    )
    for way, one in result["ways"].items():
        print(
            f"  {way:22}{one['input_tokens']:>14,}{one['a_run']:>9,}{one['a_run_of_the_last_16']:>16,}"
            f"{one['of_the_runs_own']:>8}{'$' + format(one['cost_usd'], '.2f'):>16}"
            + (
                f" + {one['asks_without_a_price']} asks without a price"
                if one["asks_without_a_price"]
                else ""
            )
        )
