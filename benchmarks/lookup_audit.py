"""What the log of seeds costs a seed: `RUNLORE_AUDIT_SEEDS` as `off`, `beside` and `before`, on a folder and on S3.

One service for each, with keys, on the same home; asked in interleaved rounds by one client, and by many at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Any

import lookup
import lookup_home
import lookup_seeds

from runlore import wiring
from runlore.settings import Settings
from runlore.upkeep import access

HERE = Path(__file__).resolve().parent
MODES = ("off", "beside", "before")
MANY = 32
CLIENTS = (1, MANY)


async def key_of(settings: Settings) -> str:
    """A key that opens seeds."""
    async with wiring.open_home(settings) as home:
        _, token = await access.create(home.store, lookup_home.PROJECT, scope=access.READ, name="benchmark")
        return token


def measure_store(options: argparse.Namespace, work: Path, where: dict[str, str]) -> dict[str, Any]:
    work.mkdir()
    named = {name.removeprefix("RUNLORE_").lower(): value for name, value in where.items()}
    settings = Settings(home=work / "home", **named)
    asyncio.run(lookup_home.real_runs(settings, options.real))
    (work / "space").mkdir()
    asyncio.run(lookup_seeds.give_workspace(settings, work / "space"))
    headers = {"Authorization": f"Bearer {asyncio.run(key_of(settings))}"}
    path = f"/v1/projects/{lookup_home.PROJECT}/memories/{lookup_home.MEMORY}/seed?session_id={lookup_seeds.ROLLOUT}"
    with contextlib.ExitStack() as stack:
        servers = {
            mode: stack.enter_context(
                lookup.serve(
                    work / "home", {**where, "RUNLORE_HTTP_KEYS": "true", "RUNLORE_AUDIT_SEEDS": mode}
                )
            )
            for mode in MODES
        }

        def ask(mode: str, connections: int) -> dict[str, Any]:
            given = {"rate": 0, "seconds": options.seconds, "connections": connections, "headers": headers}
            return lookup.load(servers[mode], [path], **given)

        ways = {f"{mode} {of}": lambda mode=mode, of=of: ask(mode, of) for of in CLIENTS for mode in MODES}
        for way in ways.values():
            way()
        return lookup.rounds_of(options.rounds, ways)


def measure_audit(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    sys.path.insert(0, str(HERE.parent))  # `infra` is no part of the package.
    from infra.dev import s3 as dev_s3

    found = {"a folder, synced": measure_store(options, work / "folder", {"RUNLORE_FSYNC": "true"})}
    server = dev_s3.S3Server(work / "server").start()
    try:
        found["S3"] = measure_store(options, work / "s3", {**server.environment, "RUNLORE_FSYNC": "false"})
    finally:
        server.kill()
    return found


def tell_audit(found: dict[str, Any], options: argparse.Namespace) -> None:
    for store, rows in found.items():
        print(f"\naudit: a seed with its entry in the log, from {store}")
        for of in CLIENTS:
            bare = rows[f"off {of}"]
            for mode in MODES:
                one = rows[f"{mode} {of}"]
                told = f"p50 {lookup.median(one, 'p50'):6.1f} ms   p95 {lookup.median(one, 'p95'):6.1f} ms"
                times = f"{lookup.ratio(one, bare, 'p50'):.2f}x ({lookup.spread(one, bare, 'p50')})"
                cpu = f"processor {lookup.median(one, 'cpu_ms'):.1f} ms, {lookup.ratio(one, bare, 'cpu_ms'):.2f}x"
                print(f"    {of:>3} clients  {mode:<7} {told}   p50 of off {times}   {cpu}")
