"""What a rate limit costs: the same seeds from S3 with a key that is limited and with one that is not, side by side.

The limit is above what is asked, so that every request passes; also what taking one allotment takes by itself, which
one request waits for now and then (`upkeep/allotments.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import load as generator
import lookup
import lookup_home

from runlore import wiring
from runlore.commit import keys
from runlore.lookup.http import limiting
from runlore.settings import Settings
from runlore.testing import stores
from runlore.upkeep import administration, allotments

HERE = Path(__file__).resolve().parent
LIMIT = 60_000
"""Requests in a minute."""
PATH = f"/v1/projects/{lookup_home.PROJECT}/memories/{lookup_home.MEMORY}/seed?session_id=session-7"


async def make_keys(settings: Settings) -> tuple[str, str]:
    """(the token of a key without a limit; of one with)."""
    async with wiring.open_home(settings) as home:
        hand = administration.Administrator(home.store, {"user": "benchmark"})
        account = await hand.create_account(lookup_home.PROJECT, "bench")
        made = [
            await hand.create_key(lookup_home.PROJECT, account.id, "bench", limits=limits)
            for limits in (None, {"seed": {"requests": LIMIT}})
        ]
    return made[0][1], made[1][1]


async def takes(settings: Settings, count: int) -> dict[str, Any]:
    """What one allotment takes, in ms: a read and a write."""
    times = []
    async with wiring.open_home(settings) as home:
        where = keys.tally(lookup_home.PROJECT, "bench")
        for _ in range(count):
            began = time.perf_counter()
            await allotments.take(home.store, where, 1, lambda taken: {"requests": 1})
            times.append(time.perf_counter() - began)
    times.sort()
    return {f"p{of}": generator.quantile(times, of) * 1000 for of in (50, 95)}


async def passes(count: int) -> float:
    """Processor time of one request that passes on what is held already, in µs; its headers too."""
    one = allotments.Allotments(stores.MemoryStore())
    began = time.process_time()
    for _ in range(count):
        want = allotments.Want("bench", "seed", limits={"requests": LIMIT}, units={"requests": 1})
        await one.spend([want])
        limiting.headers(one.standing([want]))
    return (time.process_time() - began) / count * 1e6


def measure_limited(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    sys.path.insert(0, str(HERE.parent))  # `infra` is no part of the package.
    from infra.dev import s3 as dev_s3

    server = dev_s3.S3Server(work / "s3").start()
    try:
        where = {**server.environment, "RUNLORE_FSYNC": "false"}
        named = {name.removeprefix("RUNLORE_").lower(): value for name, value in where.items()}
        settings = Settings(home=work / "home", **named)
        asyncio.run(lookup_home.real_runs(settings, options.real))
        free, limited = asyncio.run(make_keys(settings))
        serve = ["-m", "runlore.cli.main", "serve", "--home", str(work / "home"), "--port", "0"]
        with lookup.server(serve, work, {**where, "RUNLORE_HTTP_KEYS": "true"}) as ours:

            def seed(token: str) -> dict[str, Any]:
                headers = {"Authorization": f"Bearer {token}"}
                return lookup.load(
                    ours, [PATH], rate=0, seconds=options.seconds, connections=1, headers=headers
                )

            ways = {"unlimited": lambda: seed(free), "limited": lambda: seed(limited)}
            for way in ways.values():
                way()
            found = lookup.rounds_of(options.rounds, ways)
        took = asyncio.run(takes(settings, options.seeds))
    finally:
        server.kill()
    return {"rounds": found, "take": took, "pass_us": asyncio.run(passes(LIMIT // 2))}


def tell_limited(found: dict[str, Any], options: argparse.Namespace) -> None:
    print(
        f"\nlimited: seeds from S3, one client, one after the other, a limit of {LIMIT} in a minute and none"
    )
    rows = found["rounds"]
    for name, one in rows.items():
        of = rows["unlimited"]
        told = "".join(f"   {field} {lookup.median(one, field):7.2f} ms" for field in ("p50", "p99"))
        cpu = f"{lookup.median(one, 'cpu_ms'):.2f} ms ({lookup.ratio(one, of, 'cpu_ms'):.2f}x)"
        times = f"p50 {lookup.ratio(one, of, 'p50'):.2f}x ({lookup.spread(one, of, 'p50')})"
        print(f"    {name:<10}{told}   CPU {cpu}   {times}, p99 {lookup.ratio(one, of, 'p99'):.2f}x")
    print(f"    one allotment: p50 {found['take']['p50']:.2f} ms, p95 {found['take']['p95']:.2f} ms")
    print(f"    a request that passes on one: {found['pass_us']:.0f} µs of processor time")
