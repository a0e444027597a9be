"""What a seed costs: its answer over HTTP from S3 against the bare GETs; a large workspace against the SDK's restore.

Each restore runs in a process of its own (`lookup_seeds.py --one WAY FOLDER INTO`), as `snapshots.py` does it, from a
directory store; its time is the work's, without the start of the interpreter and imports.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bare
import load as generator
import lookup
import lookup_home
import snapshots as sdk

from runlore import clock, wiring
from runlore.commit import keys, lines
from runlore.lookup import seeds, workspaces
from runlore.settings import Settings
from runlore.snapshots import library
from runlore.store import directory

HERE = Path(__file__).resolve().parent
ROLLOUT = "session-7"
FILES_PER_FOLDER = 50
CHANGED_SHARE = 0.02
WAYS = ("cold", "most", "sdk")


# --- over HTTP, from S3 -----------------------------------------------------------------------------------------


async def give_workspace(settings: Settings, folder: Path) -> None:
    """A version of the rollout's workspace."""
    (folder / "a.txt").write_text("one")
    async with wiring.open_home(settings) as home:
        line = lines.line_of(lookup_home.PROJECT, ROLLOUT, None)
        head = await lines.read(home.store, line)
        saved = await library.Snapshots(home.store, line.project).save(folder)
        await lines.save(
            home.store, line, str(saved.ref), lines.Base(), reason="benchmark", began=head.read_at
        )


class BareGets:
    """The two heads of a seed, by boto3 as it comes: one after the other, or both at once in two threads."""

    def __init__(self, settings: Settings) -> None:
        self._client, self._bucket = bare.client_of(settings), settings.s3_bucket
        line = lines.line_of(lookup_home.PROJECT, ROLLOUT, None)
        self._keys = [line.key, keys.memory_head(lookup_home.PROJECT, lookup_home.MEMORY)]
        self._pool = ThreadPoolExecutor(2)

    def _get(self, key: str) -> bytes:
        return self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()

    def ask(self, count: int, *, at_once: bool) -> dict[str, Any]:
        """So many seeds' worth, one after the other."""
        times = []
        for _ in range(count):
            began = time.perf_counter()
            list(self._pool.map(self._get, self._keys) if at_once else map(self._get, self._keys))
            times.append(time.perf_counter() - began)
        times.sort()
        return {f"p{of}": generator.quantile(times, of) * 1000 for of in (50, 95, 99)}

    def close(self) -> None:
        self._pool.shutdown()
        self._client.close()


def measure_seed(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    sys.path.insert(0, str(HERE.parent))  # `infra` is no part of the package.
    from infra.dev import s3 as dev_s3

    server = dev_s3.S3Server(work / "s3").start()
    try:
        where = {**server.environment, "RUNLORE_FSYNC": "false"}
        named = {name.removeprefix("RUNLORE_").lower(): value for name, value in where.items()}
        settings = Settings(home=work / "home", **named)
        asyncio.run(lookup_home.real_runs(settings, options.real))
        (work / "space").mkdir()
        asyncio.run(give_workspace(settings, work / "space"))
        path = f"/v1/projects/{lookup_home.PROJECT}/memories/{lookup_home.MEMORY}/seed?session_id={ROLLOUT}"
        gets = BareGets(settings)
        with lookup.server(
            ["-m", "runlore.cli.main", "serve", "--home", str(work / "home"), "--port", "0"], work, where
        ) as ours:

            def seed(connections: int, **headers: str) -> dict[str, Any]:
                return lookup.load(
                    ours, [path], rate=0, seconds=options.seconds, connections=connections, headers=headers
                )

            ways = {
                "two GETs, one by one": lambda: gets.ask(options.seeds, at_once=False),
                "two GETs at once": lambda: gets.ask(options.seeds, at_once=True),
                "seed": lambda: seed(1),
                "seed, compressed": lambda: seed(1, **{"Accept-Encoding": "zstd"}),
            }
            for way in ways.values():
                way()
            found = lookup.rounds_of(options.rounds, ways)
        gets.close()
    finally:
        server.kill()
    return {"rounds": found}


def tell_seed(found: dict[str, Any], options: argparse.Namespace) -> None:
    print(f"\nseed: from S3, {options.real} runs in the memory, one client, one after the other")
    rows = found["rounds"]
    for name, one in rows.items():
        told = "".join(f"   {of} {lookup.median(one, of):7.2f} ms" for of in ("p50", "p95"))
        times = [
            f"{lookup.ratio(one, rows[bare_name], 'p50'):.2f}x ({lookup.spread(one, rows[bare_name], 'p50')})"
            for bare_name in ("two GETs, one by one", "two GETs at once")
        ]
        print(f"    {name:<22}{told}   p50 of the GETs one by one {times[0]}, at once {times[1]}")


# --- a large workspace --------------------------------------------------------------------------------------------


def make_tree(root: Path, files: int) -> None:
    """Source-like files: half of them of 1 to 4 KB, some of 40 KB, in folders of fifty."""
    dice = random.Random(11)
    words = [bytes(dice.choices(b"abcdefghijklmnopqrstuvwxyz_", k=dice.randint(3, 11))) for _ in range(4000)]
    for number in range(files):
        folder = (
            root / f"pkg{number // FILES_PER_FOLDER // 20:03}" / f"part{number // FILES_PER_FOLDER % 20:02}"
        )
        if number % FILES_PER_FOLDER == 0:
            folder.mkdir(parents=True, exist_ok=True)
        size = 40_000 if number % 97 == 0 else dice.randint(200, 4000)
        body = b" ".join(dice.choices(words, k=size // 8))
        (folder / f"file{number:06}.py").write_bytes(body)


def change_tree(root: Path) -> int:
    """Another content for one file in fifty."""
    dice = random.Random(13)
    changed = 0
    for path in sorted(root.rglob("*.py")):
        if dice.random() < CHANGED_SHARE:
            path.write_bytes(path.read_bytes() + b"\nchanged\n")
            changed += 1
    return changed


def seed_of(ref: str, version: int) -> seeds.Seed:
    """A seed of a workspace alone."""
    ends = clock.now().replace(year=clock.now().year + 1).isoformat(timespec="seconds")
    return seeds.Seed(
        lookup_home.PROJECT,
        lookup_home.MEMORY,
        0,
        "",
        ROLLOUT,
        None,
        ends,
        version=version,
        snapshot=ref,
    )


async def put_seed(folder: Path, ref: str, version: int, into: Path) -> None:
    """What `runlore seed --into` does with a seed."""
    store = directory.DirectoryStore(folder / "store")
    try:
        made = library.Snapshots(store, lookup_home.PROJECT, cache_dir=folder / "cache")
        opened = seeds.Opened(seed_of(ref, version), {}, 0, {"memories_dir": "memories"})
        await workspaces.restore(made, opened, into)
        await asyncio.to_thread(seeds.write_into, opened, into)
    finally:
        await store.close()


def one_way(way: str, folder: Path, into: Path) -> dict[str, Any]:
    """One restore, measured in this process."""
    refs = json.loads((folder / "refs.json").read_text())
    if way == "sdk":
        return sdk._sdk_tar("restore", "", str(folder / "sdk"), str(into))
    ref = refs[1]
    return sdk._measured(lambda: asyncio.run(put_seed(folder, ref, 2, into)))


def in_process(way: str, folder: Path, into: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--one", way, str(folder), str(into)],
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure_workspace(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    source, number = work / "source", 0
    make_tree(source, options.files)

    async def save() -> str:
        store = directory.DirectoryStore(work / "store")
        try:
            made = library.Snapshots(store, lookup_home.PROJECT, cache_dir=work / "cache")
            return str((await made.save(source)).ref)
        finally:
            await store.close()

    refs = [asyncio.run(save())]
    changed = change_tree(source)
    refs.append(asyncio.run(save()))
    (work / "refs.json").write_text(json.dumps(refs))
    (work / "sdk").mkdir()
    sdk._sdk_tar("first", str(source), str(work / "sdk"), "")

    def restored(way: str) -> dict[str, Any]:
        nonlocal number
        number += 1
        into = work / f"out-{number}"
        if way == "most":
            asyncio.run(put_seed(work, refs[0], 1, into))
        try:
            return in_process(way, work, into)
        finally:
            shutil.rmtree(into)

    found = lookup.rounds_of(options.rounds, {way: lambda way=way: restored(way) for way in WAYS})
    return {"changed": changed, "rounds": found}


def tell_workspace(found: dict[str, Any], options: argparse.Namespace) -> None:
    names = {
        "cold": "a seed, into an empty folder",
        "most": f"a seed, over all but {found['changed']} of the files",
        "sdk": "the SDK's restore of its tar",
    }
    print(f"\nworkspace: {options.files} files, from a folder as the store")
    rows = found["rounds"]
    for way in WAYS:
        one = rows[way]
        told = f"{lookup.median(one, 'seconds'):6.2f} s, processor {lookup.median(one, 'cpu'):6.2f} s"
        times = (
            f"{lookup.ratio(one, rows['sdk'], 'seconds'):.2f}x ({lookup.spread(one, rows['sdk'], 'seconds')})"
        )
        print(f"    {names[way]:<42} {told}, {times} of the SDK's")


if __name__ == "__main__":
    _, way, folder, into = sys.argv[1:]
    print(json.dumps(one_way(way, Path(folder), Path(into))))
