"""How far a deployment goes, what it costs, and what breaks first: the tables of docs/SCALE.md.

    python benchmarks/capacity.py                               # the tables, from docs/figures/capacity.json
    python benchmarks/capacity.py --runs-per-second 1000        # one load: workers, lag, requests, costs
    python benchmarks/capacity.py --measure [FOLDER…] --keep    # measure anew; prints new against kept
    python benchmarks/capacity.py --check --scale 50            # model against a simulation of a 50th of the load
    python benchmarks/capacity.py --check --keep                # of 1,000 runs/s over 10,000 memories; an hour

The model is `capacity_model.py`, what it starts from `capacity_measure.py`, the simulation `capacity_world.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import capacity_model as model
import capacity_tables as tables
from capacity_tables import number
from capacity_world import Fleet, Load, Measured, simulate

KEPT = Path(__file__).resolve().parents[1] / "docs" / "figures" / "capacity.json"
# --- the check ------------------------------------------------------------------------------------------------


def full_load(scale: float, seconds: float) -> tuple[Load, Fleet]:
    """1,000 runs/s over 10,000 memories and 32 workers, or a part of that with the same skew."""
    projects, workers = max(1, round(100 / scale)), max(1, round(32 / scale))
    partitions = max(4, round(64 / scale))
    load = Load(1000 / scale, round(10_000 / scale), seconds=seconds, projects=projects)
    return load, Fleet(workers, partitions)


def simulated(found: Measured) -> dict[str, float]:
    """What a simulation came to, as the tables compare it."""
    lags, runs = found.all_lags(), max(1, found.runs)
    return {
        "puts": found.requests["PUT"] / runs,
        "gets": found.requests["GET"] / runs,
        "lists": found.requests["LIST"] / runs,
        "revisions": sum(found.moves.values()) / max(1, len(lags)),
        "core_ms": sum(found.core_seconds.values()) / runs * 1000,
        "lag": statistics.fmean(lags) if lags else 0.0,
        "hot_lag": statistics.fmean(found.lags[0]) if found.lags[0] else 0.0,
        "hot_runs": len(found.lags[0]) / max(1, found.moves[0]),
    }


def check(kept: Mapping[str, Any], scale: float, seconds: float, *, is_aged: bool = False) -> dict[str, Any]:
    """Simulate a load and compare it with the model."""
    load, fleet = full_load(scale, seconds)
    costs, began = tables.costs_of(kept), time.monotonic()
    if is_aged:
        load = dataclasses.replace(load, is_aged=True)
        workers = model.workers_for(load, costs, age_seconds=tables.AGED_SECONDS)
        fleet = dataclasses.replace(fleet, workers=workers)
    found = simulate(load, fleet, costs, tell=_progress)
    lags = found.all_lags()
    told = (
        f"{load.runs_per_second:,.0f} runs/s over {load.memories:,} memories of {load.projects} projects, "
        f"skew {load.skew}, {fleet.workers} workers, {seconds:.0f} simulated seconds: "
        f"{found.runs:,} runs, {len(lags):,} covered, "
        f"{sum(found.moves.values()):,} revisions, {found.passes_lost} of them written in vain; "
        f"{(time.monotonic() - began) / 60:.0f} minutes"
    )
    kept = {name: round(value, 4) for name, value in simulated(found).items()}
    return {"told": told, "load": dataclasses.asdict(load), "workers": fleet.workers, "simulated": kept}


def _progress(at: float, found: Measured) -> None:
    print(f"{at:6.0f} s simulated: {found.runs:,} runs, {len(found.all_lags()):,} covered", flush=True)


# --- the command ----------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs-per-second", type=float, help="tell of this load alone")
    parser.add_argument(
        "--memories", type=int, help="with it: over how many memories (default ten for each run a second)"
    )
    parser.add_argument(
        "--skew", type=float, default=1.1, help="with it: the k-th memory's share is 1 / k^SKEW (default 1.1)"
    )
    parser.add_argument(
        "--measure",
        nargs="*",
        type=Path,
        metavar="FOLDER",
        help="measure anew, with the runs in these folders",
    )
    parser.add_argument(
        "--check", action="store_true", help="simulate a load, and print model against simulation"
    )
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="with --check: a part of 1,000 runs/s over 10,000 memories (50: a 50th)",
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="with --check: simulated seconds")
    parser.add_argument(
        "--aged", action="store_true", help="with --check: charge each pass as that of a memory that is full"
    )
    parser.add_argument(
        "--keep", action="store_true", help="write what was found to docs/figures, and docs/SCALE.md anew"
    )
    options = parser.parse_args()
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {"measured": {}, "checks": {}}
    if options.measure is not None:
        _measure(kept, options.measure)
    elif options.check:
        import logging

        import structlog

        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        found = check(kept, options.scale, options.seconds, is_aged=options.aged)
        name = "All of it" if options.scale == 1 else f"A {options.scale:g}th of it"
        name += ", memories charged as full" if options.aged else ""
        kept.setdefault("checks", {})[name] = found
        print(found["told"])
        for row in tables.compared(kept, found):
            print(
                f"   {row['what']:<40} model {number(row['model']):>8}   "
                f"simulated {number(row['simulated']):>8}   {row['ratio']:.2f}"
            )
    elif options.runs_per_second:
        _tell_load(kept, options)
    else:
        for name, text in tables.render(kept).items():
            print(f"## {name}\n\n{text}\n")
    if options.keep:
        KEPT.write_text(json.dumps(kept, indent=1) + "\n")
        page = KEPT.parents[1] / "SCALE.md"
        if page.exists():
            page.write_text(tables.inserted(page.read_text(), tables.render(kept)))


def _measure(kept: dict[str, Any], folders: list[Path]) -> None:
    import capacity_measure

    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise SystemExit(f"no such folder: {', '.join(missing)}")
    found = asyncio.run(capacity_measure.measure(folders))
    before = kept.get("measured") or found
    for name in ("record", "seed"):
        print(f"{name}: {found['ms'][name]:.2f} ms, {found['ms'][name] / before['ms'][name]:.2f} of the kept")
    for kind, ms in found["ms"]["request"].items():
        print(f"{kind}: {ms:.2f} ms, {ms / before['ms']['request'][kind]:.2f} of the kept")
    for name in ("made", "state", "taken"):
        ms = found["ms"]["pass"][name]
        print(f"a pass, {name}: {ms:.2f} ms, {ms / (before['ms']['pass'][name] or ms):.2f} of the kept")
    kept["measured"] = found


def _tell_load(kept: Mapping[str, Any], options: argparse.Namespace) -> None:
    costs, load = tables.costs_of(kept), tables.load_of(options.runs_per_second, skew=options.skew)
    load = dataclasses.replace(load, memories=options.memories or load.memories)
    workers = model.workers_for(load, costs, age_seconds=tables.AGED_SECONDS)
    told = model.predict(load, workers, costs, age_seconds=tables.AGED_SECONDS)
    print(
        f"{number(load.runs_per_second)} runs/s over {load.memories:,} memories (skew {load.skew}), "
        "each with notes of 256 rollouts"
    )
    print(
        f"   workers of one core        {workers:,} (as many partitions at least); cores {told.busy:.0%} busy"
    )
    print(f"   lag, mean                  {told.lag:.1f} s; in the hottest memory {told.hot_lag:.1f} s")
    hottest, bears = load.rates()[0], model.head_rate(costs, load)["rollouts"]
    verdict = "" if hottest < bears else f" — more than the {bears:.0f} rollouts/s that one head bears"
    print(f"   the hottest memory         {number(hottest)} runs/s{verdict}")
    print(
        "   requests a run             "
        + ", ".join(f"{count:.2f} {kind}" for kind, count in told.requests.items())
    )
    for name, dollars in tables.million(kept, {"told": told}).items():
        print(f"   a million runs, {name:<22} ${dollars:.2f}")


if __name__ == "__main__":
    main()
