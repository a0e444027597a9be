"""What a run of many schedules came to, as figures: for the console, and as JSON for docs/figures/simulation.json."""

from __future__ import annotations

import json
import platform
from collections import Counter

import fleet
import proof

from runlore import clock
from runlore.testing import cluster

FORMAT = "runlore.simulation.1"


def of(done, *, seconds, processes):
    """The figures of these jobs (`soak.Told`)."""
    by_kind = {
        kind: [one for one in done if one.kind == kind] for kind in ("deployment", "random", "exhaustive")
    }
    schedules = sum(one.schedules for one in done)
    happened = sum((one.happened for one in done), Counter())
    checked = sum((one.checked for one in done), Counter())
    return {
        "format": FORMAT,
        "date": clock.now_iso()[:10],
        "python": platform.python_version(),
        "processes": processes,
        "schedules": schedules,
        "steps": sum(one.steps for one in done),
        "simulated_seconds": round(sum(one.simulated_seconds for one in done)),
        "wall_seconds": round(seconds, 1),
        "schedules_per_minute": round(schedules / max(seconds, 0.001) * 60),
        "deployments": _deployments(by_kind["deployment"]),
        "random": {
            "seeds": sum(one.schedules for one in by_kind["random"]),
            "steps": sum(one.steps for one in by_kind["random"]),
            "cpu_seconds": _cpu(by_kind["random"]),
        },
        "exhaustive": [_explored(one) for one in by_kind["exhaustive"]],
        "faults": {kind: happened[kind] for kind in cluster.KINDS},
        "invariants": proof.rows(checked),
        "broken": [{"kind": one.kind, "name": one.name, "what": one.broke} for one in done if one.broke],
    }


def _cpu(rows):
    return round(sum(one.seconds for one in rows), 1)


def _deployments(rows):
    seeds = sorted(int(one.name) for one in rows)
    return {
        "seeds": len(seeds),
        "first": seeds[0] if seeds else 0,
        "last": seeds[-1] if seeds else 0,
        "dense": sum(fleet.scale_of(seed) is fleet.DENSE for seed in seeds),
        "long": sum(fleet.scale_of(seed) is fleet.LONG for seed in seeds),
        "erasing": sum(map(fleet.erases, seeds)),
        "real_memory": sum(map(fleet.is_real, seeds)),
        "steps": sum(one.steps for one in rows),
        "simulated_seconds": round(sum(one.simulated_seconds for one in rows)),
        "cpu_seconds": _cpu(rows),
    }


def _explored(one):
    found = one.explored
    return {
        "scenario": one.name,
        "schedules": one.schedules,
        "complete": found.complete if found else 0,
        "states": found.states if found else 0,
        "whole": bool(found and found.whole),
        "cpu_seconds": round(one.seconds, 1),
    }


def told(report):
    """The figures in a few lines."""
    deployments, exhaustive = report["deployments"], report["exhaustive"]
    days = report["simulated_seconds"] / 86_400
    lines = [
        f"{report['schedules']:,} schedules in {report['wall_seconds'] / 60:.1f} min,"
        f" {report['schedules_per_minute']:,} a minute on {report['processes']} processes",
        f"  {deployments['seeds']:,} of the whole deployment ({deployments['dense']:,} dense, {deployments['long']:,}"
        f" long): {deployments['steps']:,} writes and polls, {days:,.0f} simulated days",
    ]
    if report["random"]["seeds"]:
        lines.append(f"  {report['random']['seeds']:,} small random ones")
    if exhaustive:
        whole = sum(one["whole"] for one in exhaustive)
        count = sum(one["schedules"] for one in exhaustive)
        lines.append(f"  {count:,} of {len(exhaustive)} exhaustive scenarios, {whole} of them whole")
    lines.append("faults: " + ", ".join(f"{kind} {count:,}" for kind, count in report["faults"].items()))
    lines.append(
        "checks: " + ", ".join(f"{one['number']}: {one['checks']:,}" for one in report["invariants"])
    )
    lines.append(f"broken: {len(report['broken'])}" if report["broken"] else "nothing broke")
    return "\n".join(lines)


def write(path, report):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
