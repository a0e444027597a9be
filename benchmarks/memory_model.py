"""The model's half of `memory.py`: a summary of each run by a model, with what it took in tokens, money and time."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from runlore import errors
from runlore.memory import model_summary, operations, prompts, showing, values
from runlore.models import answers, choices, port, prices
from runlore.settings import Settings
from runlore.store.directory import DirectoryStore
from runlore.testing.stores import MemoryStore

PROJECT = "bench"
TRIES_MAX = 2


class Run(Protocol):
    """What is asked of a run."""

    name: str
    line: str

    @property
    def meta(self) -> values.RunMeta: ...


@dataclass
class Asked:
    """What a model said of the runs, and what that took."""

    model: str
    told: dict[str, operations.Told] = field(default_factory=dict)
    seconds: float = 0.0
    kept: int = 0
    """Answers that were kept before, and cost nothing now."""
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    unknown: int = 0
    """Answers whose cost nobody knows."""
    statements: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Statements that code did not let through, by reason."""
    failed: Counter[str] = field(default_factory=Counter)
    """Asks without an answer that can be used, by kind."""

    def report(self) -> dict[str, Any]:
        count = max(1, len(self.told))
        return {
            "model": self.model,
            "answers": len(self.told),
            "kept_before": self.kept,
            "seconds": round(self.seconds, 1),
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost_usd": round(self.cost_usd, 6),
            "cost_unknown": self.unknown,
            "input_tokens_per_run": round(self.input_tokens / count),
            "output_tokens_per_run": round(self.output_tokens / count),
            "statements": self.statements,
            "dropped": dict(self.dropped.most_common()),
            "failed": dict(self.failed.most_common()),
        }


def ask_all(runs: Sequence[Run], options: argparse.Namespace) -> Asked:
    """Ask the model that `options` name for a summary of each run."""
    return asyncio.run(_ask_all(runs, options))


async def _ask_all(runs: Sequence[Run], options: argparse.Namespace) -> Asked:
    from runlore.models.openai import OpenAIEngine  # Only here: without a model the base install is enough.

    # What is logged goes beside the answer, not into it.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    settings = Settings()
    table = choices.load(settings.models_file).table()
    engine = OpenAIEngine(
        url=options.base_url or settings.model_url,
        key=settings.model_key.get_secret_value(),
        api=options.api,
        table=table,
        timeout_seconds=options.timeout,
        requests_max=options.at_once,
    )
    store = DirectoryStore(options.kept, fsync=False) if options.kept else MemoryStore()
    asked = Asked(options.model)
    began = time.perf_counter()
    room = asyncio.Semaphore(options.at_once)

    async def one(run: Run) -> None:
        async with room:
            await _one(asked, store, engine, run, options)

    try:
        await asyncio.gather(*(one(run) for run in runs))
    finally:
        asked.seconds = time.perf_counter() - began
        await engine.close()
        await store.close()
    # In the order of the runs, whichever answer came first: the figures are a function of the answers.
    asked.told = {run.name: asked.told[run.name] for run in runs if run.name in asked.told}
    return asked


async def _one(asked: Asked, store: Any, engine: port.Engine, run: Run, options: argparse.Namespace) -> None:
    meta = run.meta
    shown = showing.render([showing.Run(meta, run.line)], tokens_max=options.input_tokens)
    for number in range(TRIES_MAX):
        ask = port.Ask(
            model=options.model,
            effort=options.effort,
            instructions=prompts.instructions("summary", ""),
            input=shown.text,
            answer=model_summary.Summary,
            output_tokens_max=options.output_tokens,
            number=number,
        )
        try:
            kept = await answers.ask(
                store, engine, PROJECT, ask, lambda said: model_summary.accept(said, shown)
            )
        except errors.NoAnswer as exc:
            asked.failed[exc.kind] += 1
            _count(asked, exc.context, exc.context.get("cost_usd"))
            if isinstance(exc, errors.BadAnswer):
                continue
            return
        except errors.Retryable as exc:
            asked.failed[exc.kind] += 1
            return
        asked.kept += not kept.is_new
        if kept.is_new:
            _count(asked, kept.usage or {}, kept.cost_usd)
        part = {**kept.result, "points": [{"answer": kept.name}]}
        told = model_summary.told(part, {meta.run: meta.attempt})
        assert told is not None
        asked.told[run.name] = told
        asked.statements += len(told.statements)
        asked.dropped.update(_reason(one["reason"]) for one in kept.result["dropped"])
        return


def _count(asked: Asked, usage: Any, cost_usd: float | None) -> None:
    asked.input_tokens += int(usage.get("input_tokens", 0))
    asked.output_tokens += int(usage.get("output_tokens", 0))
    asked.cost_usd += cost_usd or 0.0
    asked.unknown += cost_usd is None


def _reason(said: str) -> str:
    """A reason without what it was about."""
    return " ".join(word for word in said.split() if not word.startswith("#"))


def show(result: dict[str, Any]) -> None:
    cost = f"${result['cost_usd']:.4f}" if not result["cost_unknown"] else "unknown: the model has no price"
    print(
        f"\n{result['model']}: {result['answers']} answers ({result['kept_before']} kept before) in"
        f" {result['seconds']} s; {result['input_tokens']:,} tokens in, {result['output_tokens']:,} out"
        f" ({result['input_tokens_per_run']:,} and {result['output_tokens_per_run']:,} for a run); cost {cost}"
    )
    print(f"  {result['statements']} statements stand; dropped {result['dropped'] or 'none'}")
    print(f"  asks without a usable answer: {result['failed'] or 'none'}")


def price_of(model: str, *, input_tokens: int, output_tokens: int) -> float | None:
    """What so many tokens cost, by the table that comes with Runlore."""
    usage = port.Usage(input_tokens=input_tokens, output_tokens=output_tokens)
    return prices.built_in().cost_usd(model, tier="", usage=usage)
