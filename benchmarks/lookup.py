"""What a lookup costs, side by side in one run.

    python benchmarks/lookup.py [--only http,search,seed,audit,workspace,run] [--rollouts 100000] [--rates 1000,200]

http       pages, search and a resolve at `--rates` requests a second on one `runlore serve`, with `--rollouts` rollouts
           in its index: against a bare FastAPI route that returns a constant, and one that makes a raw SQLite read
search     p50 and p95 of the index's own search over 10,000 rollouts, of words in all, in a tenth and in one of them
seed       a seed over HTTP from S3 (SeaweedFS), against the bare GETs that it must make
audit      a seed with its entry in the log of seeds, against one without, from a folder and from S3
workspace  a workspace of `--files` files: a seed's into an empty folder and over one that has most of it, against
           the SDK's restore of a tar
run        what the three lines add to a run's wall time, against the SDK with its own `Memory()` and snapshot

Load comes from a process of its own on a schedule (`load.py`). Rounds are interleaved in an order that rotates, and
each ratio is the median of the rounds' own ratios: absolute times are this machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
START_SECONDS_MAX = 60.0
MARK = "http://127.0.0.1:"
SETTLE_SECONDS = 0.3


# --- servers --------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A server in a process of its own."""

    process: subprocess.Popen[bytes]
    port: int

    def cpu_seconds(self) -> float:
        """Processor time that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def server(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> Iterator[Server]:
    """Start a server, wait until it says its address on stderr (a file: it logs every request), stop it at the end."""
    told = folder / f"stderr-{time.time_ns()}"
    with open(told, "wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, **(environment or {})},
        )
        try:
            yield Server(process, _port(process, told))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=START_SECONDS_MAX)


def _port(process: subprocess.Popen[bytes], told: Path) -> int:
    give_up = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < give_up and process.poll() is None:
        for line in told.read_text("utf-8", "replace").splitlines(keepends=True):
            if MARK in line and line.endswith("\n"):
                return int(line.split(MARK, 1)[1].split()[0])
        time.sleep(0.05)
    raise RuntimeError(f"a server did not start: {told.read_text('utf-8', 'replace')[-2000:]}")


def serve(home: Path, environment: dict[str, str] | None = None) -> contextlib.AbstractContextManager[Server]:
    """`runlore serve` on this home."""
    return server(
        ["-m", "runlore.cli.main", "serve", "--home", str(home), "--port", "0"], home.parent, environment
    )


def load(
    at: Server,
    paths: list[str],
    *,
    rate: float,
    seconds: float,
    connections: int = 64,
    headers: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Ask one server; what the generator found, and the server's processor time per answer."""
    asked = {
        "port": at.port,
        "paths": paths,
        "rate": rate,
        "seconds": seconds,
        "connections": connections,
        "headers": headers or {},
    }
    began = at.cpu_seconds()
    done = subprocess.run(
        [sys.executable, str(HERE / "load.py")],
        input=json.dumps(asked).encode(),
        stdout=subprocess.PIPE,
        check=True,
        timeout=seconds + START_SECONDS_MAX,
    )
    found = json.loads(done.stdout)
    if found["failed"]:
        raise RuntimeError(f"{found['failed']} requests failed at {paths[0]}")
    found["cpu_ms"] = (at.cpu_seconds() - began) * 1000 / max(1, found["answered"])
    return found


def rounds_of(count: int, ways: dict[str, Callable[[], dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Each way once a round, in an order that rotates."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(count):
        turn = number % len(names)
        for name in [*names[turn:], *names[:turn]]:
            found[name].append(ways[name]())
            time.sleep(SETTLE_SECONDS)
    return found


def median(rows: list[dict[str, Any]], field: str) -> float:
    return statistics.median(row[field] for row in rows)


def ratio(rows: list[dict[str, Any]], of: list[dict[str, Any]], field: str) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a[field] / max(b[field], 1e-9) for a, b in zip(rows, of, strict=True))


def spread(rows: list[dict[str, Any]], of: list[dict[str, Any]], field: str) -> str:
    """The rounds' ratios themselves."""
    return ", ".join(f"{a[field] / max(b[field], 1e-9):.2f}" for a, b in zip(rows, of, strict=True))


# --- pages and search over HTTP -------------------------------------------------------------------------------


def measure_http(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    import lookup_home

    home = work / "home"
    made = asyncio.run(lookup_home.make(home, rollouts=options.rollouts, real=options.real))
    base = f"/v1/projects/{lookup_home.PROJECT}"
    memory = f"{base}/memories/{lookup_home.MEMORY}"
    # A word of one rollout alone, and the same with a word that is in all.
    count = max(2, options.rollouts - options.real)
    numbers = range(1, count, max(1, count // 200))
    wanted = {
        "resolve": [f"{base}/resolve?session_id=session-7"],
        "memories": [f"{base}/memories"],
        "rollouts": [f"{memory}/rollouts?limit=20"],
        "runs": [f"{base}/runs?limit=20"],
        "search rare": [f"{memory}/search?q=T{number}" for number in numbers],
        "search both": [f"{memory}/search?q=ticket%20T{number}" for number in numbers],
    }
    bare = [str(HERE / "bare_http.py"), str(home / "index.db"), lookup_home.PROJECT, lookup_home.MEMORY]
    with serve(home) as ours, server(bare, work) as theirs:
        places = {"constant": (theirs, ["/constant"]), "raw read": (theirs, ["/read"])}
        places |= {name: (ours, paths) for name, paths in wanted.items()}
        for at, paths in places.values():  # Connections, caches and imports.
            load(at, paths, rate=0, seconds=0.5, connections=4)
        found: dict[str, Any] = {"home_seconds": made, "rates": {}}
        for rate in [*options.rates, 0]:
            ways = {
                name: lambda at=at, paths=paths, rate=rate: load(
                    at, paths, rate=rate, seconds=options.seconds, connections=64 if rate else 8
                )
                for name, (at, paths) in places.items()
            }
            found["rates"][rate] = rounds_of(options.rounds, ways)
    return found


def tell_http(found: dict[str, Any], options: argparse.Namespace) -> None:
    seconds = ", ".join(f"{name} {took:.0f} s" for name, took in found["home_seconds"].items())
    print(f"\nhttp: {options.rollouts} rollouts in the index (made in: {seconds})")
    for rate, rows in found["rates"].items():
        of = rows["constant"]
        print(f"  {f'{rate} requests/s, open loop' if rate else '8 connections, closed loop'}")
        print(
            "    route       p50 ms   p99 ms   p50 x   p99 x   answers/s   CPU ms   CPU x   (p99 x by round)"
        )
        for name, one in rows.items():
            told = "".join(f"{median(one, field):9.2f}" for field in ("p50", "p99"))
            times = "".join(f"{ratio(one, of, field):8.2f}" for field in ("p50", "p99"))
            cpu = f"{median(one, 'cpu_ms'):9.2f}{ratio(one, of, 'cpu_ms'):8.2f}"
            print(
                f"    {name:<11}{told}{times}{median(one, 'per_second'):12.0f}{cpu}   ({spread(one, of, 'p99')})"
            )


# --- search by itself -------------------------------------------------------------------------------------------


def measure_search(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    import lookup_home

    from runlore.lookup import index as lookup_index

    path = work / "search.db"
    count = min(10_000, options.rollouts)
    took = lookup_home.fill(path, count)
    noun = lookup_home.NOUNS[0]
    wanted = {"in all": "mended", "in a tenth": f"test_{noun}", "in one": "ticket T{}"}
    found: dict[str, Any] = {"rollouts": count, "fill_seconds": took}
    index = lookup_index.Index(path)
    try:
        for name, words in wanted.items():
            times = []
            for number in range(options.searches):
                began = time.perf_counter()
                rows = index.search(
                    words.format(number * 37 % count), lookup_home.PROJECT, lookup_home.MEMORY
                )
                times.append((time.perf_counter() - began) * 1000)
                assert rows
            times.sort()
            found[name] = {f"p{of}": times[len(times) * of // 100] for of in (50, 95)}
    finally:
        index.close()
    return found


def tell_search(found: dict[str, Any], options: argparse.Namespace) -> None:
    print(f"\nsearch: {found['rollouts']} rollouts (taken in within {found['fill_seconds']:.0f} s)")
    for name in ("in all", "in a tenth", "in one"):
        print(f"    words {name:<11} p50 {found[name]['p50']:7.2f} ms   p95 {found[name]['p95']:7.2f} ms")


# --- together ---------------------------------------------------------------------------------------------------

PARTS = ("http", "search", "seed", "audit", "workspace", "run")


def part(name: str) -> tuple[Callable[..., dict[str, Any]], Callable[..., None]]:
    """What measures a part and what tells it. Imported late: `run` needs the SDK, `seed` an S3 client."""
    where = {"http": "lookup", "search": "lookup", "seed": "lookup_seeds", "workspace": "lookup_seeds"}
    where["audit"] = "lookup_audit"
    module = importlib.import_module(where.get(name, "lookup_run"))
    return getattr(module, f"measure_{name}"), getattr(module, f"tell_{name}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument("--rollouts", type=int, default=100_000, help="in the index (default 100,000)")
    parser.add_argument("--real", type=int, default=300, help="of them made by the pipeline (default 300)")
    parser.add_argument("--rates", default="1000,200", help="requests a second (default 1000,200)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of load in each round (default 4)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    parser.add_argument("--searches", type=int, default=200, help="of each kind (default 200)")
    parser.add_argument(
        "--seeds", type=int, default=100, help="bare GETs of each kind in a round (default 100)"
    )
    parser.add_argument("--files", type=int, default=35_000, help="of the workspace (default 35,000)")
    parser.add_argument("--runs", type=int, default=10, help="of each kind in `run` (default 10)")
    parser.add_argument("--think-seconds", type=float, default=0.5, help="between runs (default 0.5)")
    parser.add_argument("--json", type=Path, help="write what was found there, too")
    options = parser.parse_args()
    options.rates = [int(rate) for rate in options.rates.split(",") if rate]
    found: dict[str, Any] = {"load_average": os.getloadavg()[0]}
    for name in options.only.split(","):
        measure, tell = part(name)
        with tempfile.TemporaryDirectory(prefix="runlore-bench-") as folder:
            found[name] = measure(options, Path(folder))
        tell(found[name], options)
    print(
        f"\nload of the machine: {found['load_average']:.1f} at the start, {os.getloadavg()[0]:.1f} at the end"
    )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2, default=str))


if __name__ == "__main__":
    main()
