"""Runs many schedules: seeds of the whole deployment, small random ones, deep exhaustive ones.

    make soak                                # 1,000 seeds of the whole deployment, from 0
    make soak SEEDS=5000                     # so many
    make soak SEEDS=17,18                    # these
    make soak SEEDS=3000 DEEP=1 REPORT=figures.json

A failure prints its seed and what broke at once. When all has run, each failing seed is made small: the fewest faults
with which it still breaks, and the last steps of that schedule. The same seed gives the same schedule, in any
interpreter: `SEEDS=<seed>,` runs it again. Ctrl-C ends what is under way, in seconds, and tells what was done.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import multiprocessing
import signal
import sys
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import structlog
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn

sys.path.insert(0, str(Path(__file__).resolve().parent))

import deep
import disks
import figures
import fleet
import toy

from runlore.consumers import record
from runlore.lookup import index as lookup_index
from runlore.testing import checks
from runlore.worker import intake

SEEDS_DEFAULT = 1000
TRIES_MAX = 80
"""Schedules that are run to make a failing one smaller."""
SHRINK_SECONDS = 180.0
"""How long that may take for one seed."""
STEPS_SHOWN = 40
SAID_SECONDS = 30.0
"""How often a line says how far it is, where no bar can be shown."""
RANDOM_GROUP = 50
OVER = multiprocessing.Event()
"""Set once nothing more is to begin; the processes of the pool share it."""
ENDED = 130
"""Exit code after Ctrl-C."""
DEEP_RANDOM, DEEP_BOUND = 2_000, 30_000
"""With `--deep`: seeds of small random schedules; schedules of an exhaustive scenario at most (but `deep.WHOLE`)."""


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
        patch.setattr(lookup_index.sqlitefile, "connect", disks.small_pages(lookup_index.sqlitefile.connect))
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


def smaller(seed, broken, *, mutant=None, tries_max=TRIES_MAX, seconds_max=SHRINK_SECONDS, told=None):
    """The same break with fewer faults, as far as leaving some out in turn finds it in that time.

    `told` is called with each try: how many were made, and how many faults are left.
    """
    without, size, tries = frozenset(), max(1, len(broken.faults) // 2), 0
    ends = time.monotonic() + seconds_max
    while tries < tries_max and time.monotonic() < ends:
        at, found = 0, False
        while at < len(broken.faults) and tries < tries_max and time.monotonic() < ends:
            tries += 1
            fewer = without | set(broken.faults[at : at + size])
            again = _broken(seed, fewer, mutant)
            if again and again.names & broken.names and len(again.faults) < len(broken.faults):
                broken, without, found = again, fewer, True
            else:
                at += size
            if told:
                told(tries, len(broken.faults))
        if size == 1 and not found:
            break
        size = max(1, size // 2)
    return broken


def _broken(seed, without, mutant):
    """What breaks without these faults; None if nothing does."""
    try:
        run(seed, without=without, mutant=mutant)
    except fleet.Broken as exc:
        return exc
    return None


# --- jobs, each in a process of the pool ------------------------------------------------------------------


@dataclass
class Told:
    """What one job did."""

    kind: str
    """`deployment`, `random` or `exhaustive`."""
    name: str
    schedules: int = 1
    seconds: float = 0.0
    steps: int = 0
    simulated_seconds: float = 0.0
    happened: Counter = field(default_factory=Counter)
    checked: Counter = field(default_factory=Counter)
    explored: object = None
    broke: str = ""


def job(kind, what):
    """Run one job and tell what it did; None where nothing more is to begin."""
    if OVER.is_set():
        return None
    began, before = time.process_time(), Counter(checks.RAN)
    out = {"deployment": _deployment, "random": _random, "exhaustive": _exhaustive}[kind](what)
    out.seconds, out.checked = time.process_time() - began, checks.RAN - before
    return out


def _deployment(seed):
    out = Told("deployment", str(seed))
    try:
        world = run(seed)
    except fleet.Broken as exc:
        out.broke = "\n".join(map(str, exc.violations[:5]))
        return out
    out.steps, out.simulated_seconds, out.happened = len(world.trace), world.loop.time(), world.happened
    return out


def _random(first):
    out = Told("random", f"{first}-{first + RANDOM_GROUP - 1}", RANDOM_GROUP)
    with deep.prepared():
        for seed in range(first, first + RANDOM_GROUP):
            try:
                out.steps += len(deep.random_schedule(seed).trace)
            except AssertionError as exc:
                out.broke += f"random seed {seed}: {exc}\n"
    return out


def _exhaustive(asked):
    name, bound, ends = asked
    out = Told("exhaustive", name)
    with deep.prepared():
        try:
            out.explored = deep.SCENARIOS[name](bound, lambda: OVER.is_set() or time.monotonic() >= ends)
            out.schedules = out.explored.schedules
        except AssertionError as exc:
            out.broke = str(exc)
    return out


# --- the command ------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("seeds", nargs="?", default=str(SEEDS_DEFAULT), help="how many, or which: `17,18`")
    parser.add_argument(
        "--first", type=int, default=0, help="the first seed, where a number of them is asked for"
    )
    parser.add_argument("--processes", type=int, default=2, help="jobs at the same time")
    parser.add_argument("--deep", action="store_true", help="random and exhaustive schedules besides")
    parser.add_argument(
        "--minutes", type=float, help="end explorations, and begin nothing more, after so long"
    )
    parser.add_argument(
        "--shrink-seconds", type=float, default=SHRINK_SECONDS, help="for each failing seed; 0: do not"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the figures there, as JSON")
    asked = parser.parse_args()
    if asked.processes < 1:
        parser.error("--processes must be 1 or more")
    try:
        seeds = _seeds(asked.seeds, asked.first)
    except ValueError:
        parser.error(f"seeds: a number, or numbers with commas, not {asked.seeds!r}")
    jobs = [("deployment", seed) for seed in seeds]
    if asked.deep:
        ends = time.monotonic() + asked.minutes * 60 if asked.minutes else math.inf
        more = [("exhaustive", (name, deep.WHOLE.get(name, DEEP_BOUND), ends)) for name in deep.SCENARIOS]
        randoms = [("random", first) for first in range(0, DEEP_RANDOM, RANDOM_GROUP)]
        jobs = _mixed(more, _mixed(randoms, jobs))
    before = signal.signal(signal.SIGINT, _interrupted)
    try:
        return soak(jobs, asked)
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupted(*_):
    """What is under way ends, which takes seconds; asked again, everything ends at once."""
    if OVER.is_set():
        raise KeyboardInterrupt
    OVER.set()


def _shared(over):
    """A process of the pool: Ctrl-C is for whoever started it."""
    global OVER
    OVER = over
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _seeds(text, first):
    if "," in text:
        return [int(one) for one in text.split(",") if one.strip()]
    return list(range(first, first + int(text)))


def _mixed(fewer, more):
    """Both, spread evenly, so that a run that is ended early has some of each."""
    placed = [((number + 0.5) / len(rows), one) for rows in (fewer, more) for number, one in enumerate(rows)]
    return [one for _, one in sorted(placed, key=lambda row: row[0])]


def soak(jobs, asked):
    console, began, done = Console(), time.monotonic(), []
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console) as bar:
        line = bar.add_task("schedules", total=len(jobs))
        said = began
        for told in _done(jobs, asked.processes, asked.minutes):
            done.append(told)
            bar.advance(line)
            if not console.is_terminal and time.monotonic() - said > SAID_SECONDS:
                said = time.monotonic()
                schedules = sum(one.schedules for one in done)
                console.print(f"{len(done)} of {len(jobs)} jobs, {schedules} schedules")
            if told.broke:
                console.print(f"broken: {told.kind} {told.name}", style="bold", highlight=False)
                console.print(told.broke[:4000], markup=False, highlight=False, soft_wrap=True)
    report = figures.of(done, seconds=time.monotonic() - began, processes=asked.processes)
    console.print(figures.told(report), markup=False, highlight=False, soft_wrap=True)
    if asked.report:
        figures.write(asked.report, report)
        console.print(f"written: {asked.report}", markup=False, highlight=False)
    failed = [int(told.name) for told in done if told.broke and told.kind == "deployment"]
    if failed:
        console.print(f"run them again with SEEDS={','.join(map(str, failed))},", markup=False)
    if OVER.is_set():
        console.print(f"interrupted after {len(done)} of {len(jobs)} jobs", markup=False, highlight=False)
        return ENDED
    if asked.shrink_seconds > 0:
        for seed in failed:
            _shrink(console, seed, asked.shrink_seconds)
    return 1 if report["broken"] else 0


def _done(jobs, processes, minutes):
    """Each job as it is done. None begins after its time."""
    ends = time.monotonic() + minutes * 60 if minutes else float("inf")
    left, running = iter(jobs), set()
    with ProcessPoolExecutor(processes, initializer=_shared, initargs=(OVER,)) as pool:
        while True:
            while len(running) < 2 * processes and time.monotonic() < ends and not OVER.is_set():
                if (one := next(left, None)) is None:
                    break
                running.add(pool.submit(job, *one))
            if not running:
                return
            over, running = wait(running, return_when=FIRST_COMPLETED)
            for future in over:
                if (told := future.result()) is not None:
                    yield told


def _shrink(console, seed, seconds):
    """Find fewer faults with which a seed breaks, and tell them."""
    console.print(f"seed {seed} is made small, for {seconds:.0f} s at most", highlight=False)
    with Progress(
        *Progress.get_default_columns(), TimeElapsedColumn(), console=console, transient=True
    ) as bar:
        line = bar.add_task(f"seed {seed}: running it again", total=TRIES_MAX)
        try:
            run(seed)
        except fleet.Broken as exc:
            broken = exc
        else:
            console.print(f"seed {seed} does not break here: is the code another?")
            return

        def told(tries, faults):
            bar.update(line, completed=tries, description=f"seed {seed}: {faults} faults left")

        least = smaller(seed, broken, seconds_max=seconds, told=told)
    lines = [f"seed {seed} ({kind_of(seed)})", *map(str, least.violations[:5])]
    lines += [f"{len(least.faults)} faults are enough:", *(f"  {name}" for name in least.faults)]
    steps = [step for step in least.trace if ": poll " not in step]
    lines += ["its last steps, without polls:", *(f"  {step}" for step in steps[-STEPS_SHOWN:])]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def kind_of(seed):
    more = [", real memory"] * fleet.is_real(seed) + [", with an erasure"] * fleet.erases(seed)
    return fleet.scale_of(seed).name + "".join(more)


if __name__ == "__main__":
    sys.exit(main())
