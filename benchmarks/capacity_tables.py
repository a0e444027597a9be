"""The tables of docs/SCALE.md, from what was measured and checked (`docs/figures/capacity.json`). Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import capacity_model as model
from capacity_world import LATENCIES, Costs, Load

BUS_MS = {"run": 0.7, "produce": 0.3, "poll": 0.1, "commit": 0.1}
"""Processor time of aiokafka for each run, and for each call: what the bare loop of docs/BENCHMARKS.md takes beyond
its PUTs."""
AGED_SECONDS = 1e9
"""Memories that have long been full: each holds notes of 256 rollouts."""
MEMORIES_PER_RATE = 10
MONTH_SECONDS = 30 * 86_400
MILLION = 1_000_000
REPLICAS = 3
RETENTION_DAYS = 7
PARTITIONS = 8
"""As the topics ship."""


@dataclasses.dataclass(frozen=True)
class Price:
    """A list price, US dollars, AWS us-east-1."""

    usd: float
    of: str
    source: str


PRICES = {
    "PUT": Price(5.0, "a million PUT, COPY, POST or LIST requests", "aws.amazon.com/s3/pricing, August 2026"),
    "GET": Price(0.40, "a million GET requests; a DELETE is free", "aws.amazon.com/s3/pricing, August 2026"),
    "stored": Price(
        0.023, "a GB of S3 Standard for a month", "aws.amazon.com/s3/pricing; not looked up anew"
    ),
    "egress": Price(
        0.09, "a GB out of AWS; within a region none", "aws.amazon.com/ec2/pricing; not looked up anew"
    ),
    "kafka": Price(
        0.10, "a GB of a broker's disk for a month", "aws.amazon.com/msk/pricing; not looked up anew"
    ),
    "zones": Price(
        0.02, "a GB between two zones, both ways", "aws.amazon.com/ec2/pricing; not looked up anew"
    ),
    "core": Price(0.0425, "an hour of one core (c6g)", "aws.amazon.com/ec2/pricing; not looked up anew"),
}
PREFIX_PUTS, PREFIX_GETS = 3500, 5500
"""Requests a second that S3 answers at least for one partitioned prefix (its user guide, "Optimizing performance")."""


def costs_of(kept: Mapping[str, Any]) -> Costs:
    ms = kept["measured"]["ms"]
    requests = {**ms["request"], **{name: BUS_MS[name] for name in ("produce", "poll", "commit")}}
    return Costs(
        requests, ms["record"] + BUS_MS["run"], ms["pass"]["state"], ms["pass"]["taken"], ms["pass"]["made"]
    )


def load_of(rate: float, **more: Any) -> Load:
    return Load(rate, int(rate * MEMORIES_PER_RATE), projects=max(1, int(rate / 10)), **more)


# --- tables -------------------------------------------------------------------------------------------------


def table(head: list[str], rows: list[list[Any]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def number(value: float) -> str:
    """Three digits that count, with commas."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        digits = len(str(int(abs(value))))
        return f"{round(value, 3 - digits):,.0f}"
    return f"{value:.3g}"


def inputs(kept: Mapping[str, Any]) -> str:
    found = kept["measured"]
    rows = []
    for name, label in (("together", "400 runs of one memory at once"), ("alone", "one run after the other")):
        asked, sizes = found[name]["requests"], found[name]["bytes_written"]
        rows.append(
            [label]
            + [number(asked[kind]) for kind in ("PUT", "GET", "LIST", "DELETE")]
            + [number(sizes.get(part, 0)) for part in ("records", "rollouts", "packs", "manifests")]
        )
    head = [
        "for each run",
        "PUT",
        "GET",
        "LIST",
        "DELETE",
        "record, bytes",
        "rollout's head",
        "pack",
        "manifest",
    ]
    parts = [table(head, rows)]
    ms, event = found["ms"], found["events"]
    rows = [
        [f"a {kind} to S3, by boto3", f"{ms['request'][kind]:.2f} ms"]
        for kind in ("PUT", "GET", "LIST", "DELETE")
    ]
    fit = ms["pass"]
    rows += [
        ["record one run (parse, redact, digest, summary)", f"{ms['record']:.2f} ms"],
        [
            "make a revision",
            f"{fit['made']:.1f} ms + {fit['state']:.2f} ms × rollouts with notes + {fit['taken']:.2f} ms × taken in",
        ],
        ["so with 256 rollouts, one taken in", f"{fit['made'] + 256 * fit['state'] + fit['taken']:.0f} ms"],
        ["take a rollout into the index", f"{found['index']['rows'][-1]['ms']:.2f} ms"],
    ]
    parts.append(table(["processor time", ""], rows))
    rows = [
        [f"{row['rollouts']:,}", number(row["bytes"] / row["rollouts"]), number(_per_million(row) / 1e9)]
        for row in found["index"]["rows"]
    ]
    parts.append(table(["rollouts in the index", "bytes each", "GB for a million"], rows))
    parts.append(
        f"An event: {event['bytes']:,} bytes, {event['bytes_compressed']:,} compressed with zstd "
        f"({event['runs']} runs: {event['of']})."
    )
    rows = [[kind, one.p50, one.p99, f"{one.mean:.0f}"] for kind, one in LATENCIES.items()]
    parts.append(table(["taken as given, ms", "p50", "p99", "mean"], rows))
    return "\n\n".join(parts)


def _per_million(row: Mapping[str, float]) -> float:
    return row["bytes"] / row["rollouts"] * MILLION


def one_of_each(kept: Mapping[str, Any]) -> str:
    """What one core, partition, head, prefix and replica bear."""
    costs, index = costs_of(kept), kept["measured"]["index"]["rows"][-1]
    head = model.head_rate(costs, load_of(100))
    full = plan(kept, 100)
    replica = 1000 / ((costs.request["GET"] + index["ms"]) * (1 + full["told"].revisions))
    puts = full["told"].requests["PUT"]
    rows = [
        [
            "a worker (one core), memories full",
            f"{100 / full['workers']:.1f} runs/s",
            "at 70 % of its core; ten memories for each run a second",
        ],
        [
            "a partition of `runs`",
            f"{100 / full['workers']:.1f} runs/s",
            f"a worker each at most; 8 as they ship, so {PARTITIONS * 100 / full['workers']:.0f} runs/s",
        ],
        [
            "a memory's head, one rollout a revision",
            f"{head['moves']:.1f} moves/s",
            "a pass is ten requests one after the other, and the processor's time",
        ],
        [
            "a memory's head, 256 rollouts a revision",
            f"{head['rollouts']:.0f} rollouts/s",
            "what a pass takes in at most",
        ],
        [
            "a prefix of S3, before S3 splits it",
            f"{PREFIX_PUTS / puts:.0f} runs/s",
            f"{PREFIX_PUTS:,} PUTs a second, {puts:.1f} a run",
        ],
        [
            "a kind of object in a project, once split",
            f"{256 * PREFIX_PUTS:,} PUTs/s",
            "256 prefixes: `<project>/<kind>/<2 hex>/`",
        ],
        ["an index replica (one core)", f"{replica:.0f} runs/s", "it reads each head that moves"],
        [
            "a LIST of all heads, each 15 minutes",
            f"{900 / (LATENCIES['LIST'].mean / 1000) * 1000 / MILLION:.0f} million rollouts",
            "1,000 a page, one page after the other",
        ],
    ]
    return table(["one", "bears", "why"], rows)


def plan(kept: Mapping[str, Any], rate: float, **more: Any) -> dict[str, Any]:
    """A load: what it takes and costs, once memories are full."""
    costs, load = costs_of(kept), load_of(rate, **more)
    gap = 0.0
    workers = model.workers_for(load, costs, age_seconds=AGED_SECONDS, gap_seconds=gap)
    return {
        "load": load,
        "workers": workers,
        "told": model.predict(load, workers, costs, age_seconds=AGED_SECONDS),
    }


def loads(kept: Mapping[str, Any]) -> str:
    """One machine of two cores, and ten, a hundred and a thousand times that."""
    rows, one = [], machine(kept)
    for times in (1, 10, 100, 1000):
        found = plan(kept, one * times)
        told, load = found["told"], found["load"]
        rollouts = load.runs_per_second * 86_400 / load.runs_per_rollout
        event = kept["measured"]["events"]
        rows.append(
            [
                f"{times:,}×",
                number(load.runs_per_second),
                number(load.memories),
                number(found["workers"]),
                f"{told.lag:.1f} s",
                number(load.rates()[0]),
                number(told.requests["PUT"] * load.runs_per_second),
                number(rollouts * _per_million(kept["measured"]["index"]["rows"][-1]) / MILLION / 1e9),
                number(load.runs_per_second * event["bytes_compressed"] / 1e6),
                number(load.runs_per_second * MONTH_SECONDS / MILLION * sum(million(kept, found).values())),
            ]
        )
    head = [
        "",
        "runs/s",
        "memories",
        "workers",
        "lag, mean",
        "runs/s in the hottest",
        "PUTs/s",
        "index, GB a day",
        "bus, MB/s",
        "$ for a month's runs",
    ]
    return table(head, rows)


def machine(kept: Mapping[str, Any]) -> float:
    """Runs a second of one machine with two workers."""
    costs = costs_of(kept)
    for rate in range(30, 1, -1):
        if model.bears(load_of(rate), 2, costs, age_seconds=AGED_SECONDS):
            return float(rate)
    return 1.0


def million(kept: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, float]:
    """US dollars for a million runs, by what they are for."""
    asked, told = found["told"].requests, found["told"]
    alone = kept["measured"]["alone"]["bytes_kept"]
    stored = sum(alone[part] for part in ("records", "rollouts")) * MILLION / 1e9
    event = kept["measured"]["events"]["bytes_compressed"] * MILLION / 1e9
    return {
        "PUT and LIST": (asked["PUT"] + asked["LIST"]) * PRICES["PUT"].usd,
        "GET": asked["GET"] * PRICES["GET"].usd,
        "stored for a year": stored * PRICES["stored"].usd * 12,
        "Kafka: kept": event * REPLICAS * RETENTION_DAYS / 30 * PRICES["kafka"].usd,
        "Kafka: between zones": event * REPLICAS * PRICES["zones"].usd,
        "workers' cores": told.core_ms / 0.7 / 1000 * MILLION / 3600 * PRICES["core"].usd,
    }


def money(kept: Mapping[str, Any]) -> str:
    few, many = plan(kept, 100), plan(kept, 1000)
    columns = [million(kept, found) for found in (few, many)]
    rows = [[name, *(f"${column[name]:.2f}" for column in columns)] for name in columns[0]]
    rows.append(["**all**", *(f"**${sum(column.values()):.2f}**" for column in columns)])
    prices = [[f"${one.usd:g}", one.of, one.source] for one in PRICES.values()]
    return "\n\n".join(
        [
            table(["a million runs", "at 100 runs/s", "at 1,000 runs/s"], rows),
            table(["price", "of", "from"], prices),
        ]
    )


def gaps(kept: Mapping[str, Any], rate: float = 100.0) -> str:
    """What a least time between two revisions of a memory would bring."""
    costs, load, rows = costs_of(kept), load_of(rate), []
    for gap in (0.0, 5.0, 30.0, 300.0):
        workers = model.workers_for(load, costs, age_seconds=AGED_SECONDS, gap_seconds=gap)
        told = model.predict(load, workers, costs, age_seconds=AGED_SECONDS, gap_seconds=gap)
        dollars = sum(million(kept, {"told": told}).values())
        rows.append(
            [
                f"{gap:.0f} s",
                workers,
                f"{told.revisions:.2f}",
                f"{told.core_ms:.0f} ms",
                f"{told.requests['PUT']:.2f}",
                f"{told.lag:.1f} s",
                f"${dollars:.2f}",
            ]
        )
    return table(
        [
            "least time",
            "workers",
            "revisions a run",
            "core a run",
            "PUTs a run",
            "lag, mean",
            "a million runs",
        ],
        rows,
    )


COMPARED = {
    "puts": "PUTs a run",
    "gets": "GETs a run",
    "lists": "LISTs a run",
    "revisions": "revisions a run",
    "core_ms": "processor time a run, ms",
    "lag": "lag of a run, mean, s",
    "hot_lag": "lag in the hottest memory, mean, s",
    "hot_runs": "runs a revision of the hottest memory",
}


def compared(kept: Mapping[str, Any], one: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the model says of a load, beside what was simulated."""
    load = Load(**one["load"])
    age = AGED_SECONDS if load.is_aged else 0.0
    told = model.predict(load, one["workers"], costs_of(kept), age_seconds=age)
    asked = {"puts": told.requests["PUT"], "gets": told.requests["GET"], "lists": told.requests["LIST"]}
    rows = []
    for name, what in COMPARED.items():
        said, was = asked.get(name) or getattr(told, name), one["simulated"][name]
        rows.append(
            {"name": name, "what": what, "model": said, "simulated": was, "ratio": said / was if was else 0.0}
        )
    return rows


def checked(kept: Mapping[str, Any]) -> str:
    parts = []
    for name, one in kept.get("checks", {}).items():
        rows = [
            [row["what"], number(row["model"]), number(row["simulated"]), f"{row['ratio']:.2f}"]
            for row in compared(kept, one)
        ]
        parts.append(f"**{name}**: {one['told']}")
        parts.append(table(["", "model", "simulated", "ratio"], rows))
    return "\n\n".join(parts)


SECTIONS = {
    "Measured": inputs,
    "What one of each bears": one_of_each,
    "Loads": loads,
    "Costs": money,
    "A least time between revisions": gaps,
    "Model and simulation": checked,
}


def render(kept: Mapping[str, Any]) -> dict[str, str]:
    """Every table, by its section."""
    return {name: make(kept) for name, make in SECTIONS.items()}


def inserted(page: str, tables: Mapping[str, str]) -> str:
    """The page with its tables, each between markers that name it."""
    for name, text in tables.items():
        begin, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = f"{before}{begin}\n\n{text}\n\n{end}{after}"
    return page
