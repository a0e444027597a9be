"""The capacity model: from what was measured (`capacity_measure.py`) to rates, lags, requests and costs. Pure.

A worker is one core and some waiting. Each request waits for the core, takes its processor time, and then the store's
latency; so does each piece of work that is given to a thread. Four things are solved together, by iteration:

- how long a batch of the record stage takes: runs of one memory that end meanwhile share the next batch's mark;
- how long a pass over a memory takes, and how long it waits for one of a worker's places: marks that are put meanwhile
  share the next pass. So a memory makes `m / (1 + m × D)` revisions a second, from m marks a second and D seconds from
  the begin of one pass to the earliest begin of the next;
- how much processor time that is, of all workers' cores;
- how long who needs the core waits for it: a single server, by the mean and the second moment of what is asked of it.
  Who asks waits for the answer before asking again, so queues grow slower than an open system's `1 / (1 - busy)`: the
  root of that stands between an open system and none, and is what the simulations chose.

What it leaves out: faults, models, workspaces, that memories lie unevenly on workers, and that S3's latency grows with
load.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from capacity_world import LATENCIES, SELECTED_MAX, Costs, Load

from runlore.worker import loop as worker_loop

LANES = 8
LOOK_SECONDS = 5.0
PLACES = 6
TAKEN_MAX = 256
FOLLOW_SECONDS = 0.25
RECENT = 64
BUSY_MAX = 0.98
BUSY_GOOD = 0.7
LAG_SECONDS_MAX = 5.0
"""Mean lag of a fleet that has enough workers: beyond it, memories only keep up by standing in line."""
ITERATIONS_MAX = 300
DAMPING = 0.3
VISITS_OF_A_PASS = 11
"""How often a pass asks for the core one after the other: ten requests and what is done in threads."""
VISITS_OF_A_RUN = 6


@dataclass(frozen=True)
class Prediction:
    """What the model says of a load on so many workers."""

    requests: Mapping[str, float]
    """Of each run, by kind."""
    revisions: float
    """Of each run."""
    core_ms: float
    """Processor time of workers for each run."""
    busy: float
    """Which part of the workers' cores that is; above 1 they do not keep up."""
    places: float
    """Which part of the workers' places for memories is taken."""
    lag: float
    """Mean seconds from a run's end to a revision that covers it."""
    hot_lag: float
    hot_runs: float
    """Runs that one revision of the hottest memory takes in."""
    pass_seconds: float


@dataclass
class _State:
    """What is solved for."""

    waits: float = 0.0
    """Seconds that who needs a core waits for it."""
    place_waits: float = 0.0
    gaps: list[float] = field(default_factory=list)
    """From one pass of a memory to the next at the earliest, by group."""


def seconds(kind: str) -> float:
    return LATENCIES[kind].mean / 1000


def groups(load: Load) -> Iterator[tuple[int, float]]:
    """(How many memories, the rate of each): the hottest one by one, the others in groups of similar rates."""
    rates, at = load.rates(), 0
    while at < len(rates):
        count = max(1, at // 6)
        found = rates[at : at + count]
        yield len(found), sum(found) / len(found)
        at += count


def looks(load: Load) -> float:
    """LISTs a second of a worker that looks for marks, whatever there is: one for each project and look."""
    asked = load.projects + 1
    pause = max(LOOK_SECONDS, load.projects * worker_loop.LOOK_SECONDS_PER_PROJECT)
    return asked / (pause + asked * seconds("LIST"))


def distinct(runs: float, load: Load) -> float:
    """How many rollouts so many successive runs of a memory are of."""
    fresh = runs / load.runs_per_rollout
    again = runs - fresh
    return min(runs, fresh + RECENT * (1 - (1 - 1 / RECENT) ** again)) if runs > 1 else runs


def predict(
    load: Load, workers: int, costs: Costs, *, age_seconds: float = 0.0, gap_seconds: float = 0.0
) -> Prediction:
    """`age_seconds`: how long runs have come in already; it says how many rollouts each memory holds notes of.

    `gap_seconds`: if a memory were worked no more often than that (no setting does it today).
    """
    found = [*groups(load)]
    state = _State(gaps=[max(0.3, gap_seconds)] * len(found))
    told = _step(load, workers, costs, (age_seconds, gap_seconds), found, state)
    for _ in range(ITERATIONS_MAX):
        before, told = told, _step(load, workers, costs, (age_seconds, gap_seconds), found, state)
        if abs(told.lag - before.lag) < 1e-4 * told.lag and abs(told.busy - before.busy) < 1e-4:
            break
    return told


def _step(  # One system of equations, in the order of the docstring above.
    load: Load,
    workers: int,
    costs: Costs,
    times: tuple[float, float],
    found: list[tuple[int, float]],
    state: _State,
) -> Prediction:
    age, least = times
    ms, waits = costs.request, state.waits
    batch = 2 * seconds("GET") + 3 * seconds("PUT") + VISITS_OF_A_RUN * waits + costs.run / 1000
    window = min(batch, FOLLOW_SECONDS + seconds("poll"))
    bell = seconds("produce") + seconds("poll") + 2 * waits
    base = (
        seconds("LIST") + 4 * seconds("GET") + 3 * seconds("PUT") + seconds("DELETE") + seconds("produce")
    ) + VISITS_OF_A_PASS * waits
    totals = {"GET": 2.0, "PUT": 2.0, "LIST": 0.0, "DELETE": 0.0}
    totals = {kind: count * load.runs_per_second for kind, count in totals.items()}
    totals["LIST"] += workers * looks(load)
    passes = place_seconds = lag = 0.0
    work = [(load.runs_per_second, costs.run / 1000)]
    hot_lag = hot_runs = 0.0
    for number, (count, rate) in enumerate(found):
        marks = rate / (1 + rate / workers * window)
        made = marks / (1 + marks * state.gaps[number])
        runs = min(rate / made, TAKEN_MAX * 4.0)
        taken = min(TAKEN_MAX, distinct(runs, load))
        held = min(SELECTED_MAX, rate / load.runs_per_rollout * (age + load.seconds / 2) + taken)
        thread = costs.of_pass(held, taken) / 1000
        took = base + thread + (math.ceil(taken / LANES) - 1) * seconds("GET")
        gap = max(took + state.place_waits, least)
        state.gaps[number] += DAMPING * (gap - state.gaps[number])
        empty = made * (1 - math.exp(-marks * bell))
        first = min(1.0, 1 / max(1e-9, made * load.seconds)) if not age else 0.0
        totals["LIST"] += count * (made + empty)
        totals["GET"] += count * (marks + made * (1 + taken + 1 - first))
        totals["PUT"] += count * (marks + 3 * made)
        totals["DELETE"] += count * marks
        passes += count * made
        place_seconds += count * (made * took + empty * seconds("LIST"))
        work.append((count * made, thread))
        shared = marks * gap / (1 + marks * gap)
        own = batch + bell + took + state.place_waits + shared * gap / 2
        lag += count * rate * own
        if number == 0:
            hot_lag, hot_runs = own, runs
    work += [(rate, ms.get(kind, 0.0) / 1000) for kind, rate in totals.items()]
    busy = sum(rate * cost for rate, cost in work) / workers
    second = sum(rate * cost * cost for rate, cost in work) / workers
    capped = min(busy, BUSY_MAX)
    state.waits += DAMPING * (second / 2 / math.sqrt(1 - capped) - state.waits)
    places = place_seconds / workers / PLACES
    full = min(places, BUSY_MAX)
    queue = full ** (math.sqrt(2 * (PLACES + 1)) - 1) / (PLACES * (1 - full))
    state.place_waits += DAMPING * (queue * place_seconds / max(passes, 1e-9) - state.place_waits)
    rate = load.runs_per_second
    return Prediction(
        {kind: count / rate for kind, count in totals.items()},
        passes / rate,
        busy * workers / rate * 1000,
        busy,
        places,
        lag / rate,
        hot_lag,
        hot_runs,
        place_seconds / max(passes, 1e-9),
    )


def bears(
    load: Load, workers: int, costs: Costs, *, age_seconds: float = 0.0, gap_seconds: float = 0.0
) -> bool:
    """Whether so many workers keep cores and places below `BUSY_GOOD`, and the mean lag below its own limit."""
    told = predict(load, workers, costs, age_seconds=age_seconds, gap_seconds=gap_seconds)
    return max(told.busy, told.places) <= BUSY_GOOD and told.lag <= LAG_SECONDS_MAX + gap_seconds


def workers_for(load: Load, costs: Costs, *, age_seconds: float, gap_seconds: float = 0.0) -> int:
    """How many workers bear a load."""
    return _least(
        lambda workers: bears(load, workers, costs, age_seconds=age_seconds, gap_seconds=gap_seconds)
    )


def _least(is_enough: Callable[[int], bool]) -> int:
    """The least number that bears it, of those that are found by doubling and halving."""
    most = 1
    while not is_enough(most):
        most *= 2
    least = most // 2
    while most - least > max(1, most // 25):
        middle = (least + most) // 2
        least, most = (least, middle) if is_enough(middle) else (middle, most)
    return most


def head_rate(costs: Costs, load: Load) -> dict[str, float]:
    """What one memory's head bears: moves a second with one rollout each, and runs a second with full passes."""
    base = seconds("LIST") + 4 * seconds("GET") + 3 * seconds("PUT") + seconds("DELETE") + seconds("produce")
    small = base + costs.of_pass(SELECTED_MAX, 1) / 1000
    full = base + (TAKEN_MAX / LANES) * seconds("GET") + costs.of_pass(SELECTED_MAX, TAKEN_MAX) / 1000
    full += TAKEN_MAX * costs.request["GET"] / 1000
    return {"moves": 1 / small, "rollouts": TAKEN_MAX / full}
