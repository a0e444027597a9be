"""Runs many seeds of the whole deployment, and makes a failing one small.

    make soak                    # 1,000 seeds from 0
    make soak SEEDS=5000         # so many
    make soak SEEDS=17,18        # these

A failure prints its seed, what broke, the fewest faults found with which it still breaks, and the last steps of that
schedule. The same seed gives the same schedule, in any interpreter: `SEEDS=<seed>` runs it again.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import pytest
import structlog

sys.path.insert(0, str(Path(__file__).resolve().parent))

import fleet
import toy

from runlore.consumers import record
from runlore.lookup import index as lookup_index
from runlore.worker import intake

SEEDS_DEFAULT = 1000
TRIES_MAX = 80
"""Schedules that are run to make a failing one smaller."""
STEPS_SHOWN = 40


@contextlib.contextmanager
def prepared(seed, mutant=None):
    """The code as a seed's schedule needs it: the toy memory, commits as often as its time scale asks, no logs."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with pytest.MonkeyPatch.context() as patch:
        if not fleet.is_real(seed):
            toy.install(patch)
        patch.setattr(intake, "COMMIT_SECONDS", fleet.scale_of(seed).commit)
        patch.setattr(record, "parse", _once(record.parse))
        patch.setattr(lookup_index.sqlitefile, "connect", fleet.small_pages(lookup_index.sqlitefile.connect))
        if mutant is not None:
            mutant(patch)
        try:
            yield
        finally:
            structlog.configure(**before)


def _once(parse):
    """Each message is parsed once: the checkers look at all of them at every commit."""
    parsed = {}

    def parse_once(message):
        name = (message.at, message.offset, message.value)
        if name not in parsed:
            parsed[name] = parse(message)
        return parsed[name]

    return parse_once


def run(seed, *, without=(), mutant=None):
    """One schedule; its world. Raises `fleet.Broken`."""
    with prepared(seed, mutant):
        return fleet.Fleet(seed, without=without).run()


def smaller(seed, broken, *, mutant=None, tries_max=TRIES_MAX):
    """The same break with fewer faults, as far as leaving some out in turn finds it."""
    without, size = frozenset(), max(1, len(broken.faults) // 2)
    while tries_max > 0:
        at, found = 0, False
        while at < len(broken.faults) and tries_max > 0:
            tries_max -= 1
            fewer = without | set(broken.faults[at : at + size])
            try:
                run(seed, without=fewer, mutant=mutant)
            except fleet.Broken as exc:
                if exc.names & broken.names and len(exc.faults) < len(broken.faults):
                    broken, without, found = exc, fewer, True
                    continue
            at += size
        if size == 1 and not found:
            break
        size = max(1, size // 2)
    return broken


def told(seed):
    """What one seed did: (seed, kind, seconds, steps, faults, what broke or None)."""
    began = time.monotonic()
    kind = fleet.scale_of(seed).name + (", real memory" if fleet.is_real(seed) else "")
    try:
        world = run(seed)
    except fleet.Broken as exc:
        least = smaller(seed, exc)
        lines = [f"seed {seed} ({kind})", *map(str, least.violations[:5])]
        lines += [f"{len(least.faults)} faults are enough:", *(f"  {name}" for name in least.faults)]
        lines += ["its last steps:", *(f"  {step}" for step in least.trace[-STEPS_SHOWN:])]
        return seed, kind, time.monotonic() - began, len(exc.trace), len(exc.faults), "\n".join(lines)
    return seed, kind, time.monotonic() - began, len(world.trace), len(world.faults), None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seeds", nargs="?", default=str(SEEDS_DEFAULT), help="how many, or which: `17,18`")
    parser.add_argument(
        "--first", type=int, default=0, help="the first seed, where a number of them is asked for"
    )
    parser.add_argument("--processes", type=int, default=2, help="schedules at the same time")
    asked = parser.parse_args()
    listed = "," in asked.seeds
    seeds = (
        [int(one) for one in asked.seeds.split(",") if one]
        if listed
        else list(range(asked.first, asked.first + int(asked.seeds)))
    )
    return soak(seeds, asked.processes)


def soak(seeds, processes):
    from rich.console import Console
    from rich.progress import Progress

    console, began, failed, steps, faults = Console(), time.monotonic(), [], 0, 0
    with Progress(console=console) as bar, ProcessPoolExecutor(processes) as pool:
        line = bar.add_task("schedules", total=len(seeds))
        for future in as_completed([pool.submit(told, seed) for seed in seeds]):
            seed, _, _, taken, wrong, broke = future.result()
            steps, faults = steps + taken, faults + wrong
            bar.advance(line)
            if broke:
                failed.append(seed)
                console.print(broke, markup=False, highlight=False)
    minutes = (time.monotonic() - began) / 60
    console.print(
        f"{len(seeds)} schedules, {steps} writes and polls, {faults} faults, {len(seeds) / minutes:.0f} a minute"
    )
    if failed:
        console.print(f"broken: run them again with SEEDS={','.join(map(str, failed))},")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
