"""What snapshots cost, side by side in one run: Runlore, the SDK's way (a tar), restic, borg, and the machine.

    python benchmarks/snapshots.py [venv] [repo] [binaries] [--rounds 3] [--work DIR] [--json FILE]

Every tool saves the same trees in the same rounds, in an order that rotates by round; every restore goes to a
directory that never was, and is compared bit by bit with what was saved (the SDK's without times and full modes:
its restore drops them). Each operation runs in a process of its own, which says how long the work took (without
interpreter start and imports), how much processor time it took, and its peak memory.

How to read it. restic and borg encrypt and keep owners; Runlore leaves encryption to the store. restic's fixed
start (key derivation) is measured with `restic cat config`, and "net" takes it off. Runlore's store syncs every
object, as restic's does. `floor` is scan, read and tar by themselves. On a shared machine times drift: trust
the ratios of one run. Object stores over a network are not measured here yet; requests are counted instead.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path

TOOLS = ("runlore", "sdk-tar", "restic", "borg")
STEPS = ("first", "same", "next", "restore")
PASSWORD = {
    "RESTIC_PASSWORD": "bench",
    "BORG_PASSPHRASE": "bench",
    "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
}


# --- one operation, in its own process ------------------------------------------------------------------------


def _measured(work) -> dict:
    wall, cpu = time.perf_counter(), os.times()
    out = work() or {}
    used = os.times()
    cpu_seconds = used.user + used.system - cpu.user - cpu.system
    rss = _peak_mb()
    return {"seconds": time.perf_counter() - wall, "cpu": cpu_seconds, "rss_mb": rss, **out}


def _peak_mb() -> float:
    """The peak of this process alone: ru_maxrss inherits the parent's across fork."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _runlore(step: str, source: str, home: str, into: str) -> dict:
    from runlore.snapshots import Snapshots
    from runlore.store import directory

    class Counting(directory.DirectoryStore):
        """The directory store, with its calls counted."""

        puts = gets = 0

        async def put(self, key, body):
            type(self).puts += 1
            return await super().put(key, body)

        async def get_range(self, key, offset, length):
            type(self).gets += 1
            return await super().get_range(key, offset, length)

        async def get_tail(self, key, length):
            type(self).gets += 1
            return await super().get_tail(key, length)

    pointer = Path(home) / "head"

    async def play():
        store = Counting(Path(home) / "store")
        snapshots = Snapshots(store, "bench", cache_dir=Path(home) / "cache")
        # The head is read and moved as a rollout's would be: one GET, one PUT.
        base = pointer.read_text() if pointer.exists() else None
        if step == "restore":
            await snapshots.restore(base, into)
        else:
            saved = await snapshots.save(source, base=base)
            if str(saved.ref) != base:
                pointer.write_text(str(saved.ref))
                Counting.puts += 1
        await store.close()
        return {"puts": Counting.puts, "gets": Counting.gets}

    return _measured(lambda: asyncio.run(play()))


def _sdk_tar(step: str, source: str, home: str, into: str) -> dict:
    """What the SDK does, with its own extractor: the whole tree as a tar in memory, one object; and back."""
    import io

    from agents.sandbox.util import tar_utils

    from runlore.store import directory

    async def put(body):
        store = directory.DirectoryStore(Path(home) / "store")
        await store.put("bench/tar", body)
        await store.close()

    async def get():
        store = directory.DirectoryStore(Path(home) / "store")
        found = await store.get("bench/tar")
        await store.close()
        return found.body

    def save():
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            # Links that leave the tree would make every restore fail; they are left out for both sides' sake.
            tar.add(
                source, arcname=".", filter=lambda m: None if m.issym() and m.linkname.startswith("/") else m
            )
        asyncio.run(put(buffer.getvalue()))
        return {"puts": 1, "gets": 0, "bytes": buffer.tell()}  # One key: the folder does not grow.

    def restore():
        body = asyncio.run(get())
        with tarfile.open(fileobj=io.BytesIO(body), mode="r:*") as tar:
            tar_utils.safe_extract_tarfile(tar, root=Path(into), allow_external_symlink_targets=False)
        return {"puts": 0, "gets": 1}

    return _measured(restore if step == "restore" else save)


def _command(commands: list[list[str]], cwd: str) -> dict:
    """A program, timed whole; its memory and processor time are those of the child."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    for command in commands:
        subprocess.run(
            command, check=True, cwd=cwd, env={**os.environ, **PASSWORD}, stdout=subprocess.DEVNULL
        )
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu": cpu, "rss_mb": after.ru_maxrss / 1024}


def _restic(step: str, source: str, home: str, into: str) -> dict:
    repo = ["restic", "-q", "-r", f"{home}/repo", "--no-cache"]
    if step == "restore":
        os.mkdir(into)
        return _command([[*repo, "restore", "latest", "--target", into]], "/")
    if step == "first":
        _command([[*repo, "init"]], "/")
    return _command([[*repo, "backup", "."]], source)


def _borg(step: str, source: str, home: str, into: str) -> dict:
    repo, env = f"{home}/repo", {"BORG_BASE_DIR": f"{home}/borg"}
    os.environ.update(env)
    if step == "restore":
        os.mkdir(into)
        return _command([["borg", "extract", f"{repo}::{_last_archive(repo)}"]], into)
    if step == "first":
        _command([["borg", "init", "-e", "repokey-blake2", repo]], "/")
    return _command([["borg", "create", "-C", "zstd,1", f"{repo}::{time.time_ns()}", "."]], source)


def _last_archive(repo: str) -> str:
    listed = subprocess.run(
        ["borg", "list", "--short", "--last", "1", repo],
        check=True,
        capture_output=True,
        env={**os.environ, **PASSWORD},
    )
    return listed.stdout.decode().strip()


OPERATIONS = {"runlore": _runlore, "sdk-tar": _sdk_tar, "restic": _restic, "borg": _borg}


def _floor(source: str) -> dict:
    """The machine by itself: look at every entry; read every byte; tar in, tar out."""

    def scan():
        stack, count = [source], 0
        while stack:
            with os.scandir(stack.pop()) as entries:
                for entry in entries:
                    count += 1
                    if stat.S_ISDIR(entry.stat(follow_symlinks=False).st_mode):
                        stack.append(entry.path)
        return {"entries": count}

    out = {"scan": _measured(scan)}
    tar = subprocess.Popen(["tar", "cf", "-", "-C", source, "."], stdout=subprocess.PIPE)
    start = time.perf_counter()
    while tar.stdout.read(1 << 20):
        pass
    tar.wait()
    out["tar c"] = {"seconds": time.perf_counter() - start}
    return out


def _in_process(tool: str, step: str, source: str, home: str, into: str) -> dict:
    command = [sys.executable, __file__, "--one", tool, step, source, home, into]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{tool} {step} of {source} failed")
    return json.loads(done.stdout.splitlines()[-1])


# --- trees --------------------------------------------------------------------------------------------------


class Venv:
    """A virtualenv of 30,000 files and more; each step installs a small package and edits two files."""

    nexts = 2

    def __init__(self, work: Path) -> None:
        self.path = work / "venv"
        if not self.path.exists():
            subprocess.run([sys.executable, "-m", "venv", self.path], check=True)
            packages = ["django", "scipy", "pandas", "moto[all]", "sqlalchemy", "boto3", "openai-agents"]
            subprocess.run([self.path / "bin" / "pip", "install", "-q", *packages], check=True)

    def step(self, number: int) -> None:
        (site,) = self.path.glob("lib/*/site-packages")
        package = site / f"bench_{time.time_ns()}"  # A tree may be used by several runs.
        package.mkdir()
        for at in range(20):
            (package / f"m{at}.py").write_text(f"# {number} {at}\n" + "x = 1\n" * (at * 20))
        for name in ("django/__init__.py", "pandas/__init__.py"):
            with open(site / name, "a") as file:
                file.write(f"# {number}\n")


class Repo:
    """A checkout with its .git, walked through 20 commits: those of `origin`, or made up from installed packages."""

    nexts = 20

    def __init__(self, work: Path, origin: str | None) -> None:
        self.path = work / "repo"
        if not self.path.exists():
            if origin:
                subprocess.run(["git", "clone", "-q", "--no-hardlinks", origin, self.path], check=True)
            else:
                self._make_up(Venv(work).path)
        self.commits = self._git("rev-list", "--first-parent", "--max-count=21", "--all").split()[::-1]
        self.step(0)

    def _git(self, *words: str) -> str:
        # No collection in the background: it would change the tree under the tools.
        settings = ("user.name=bench", "user.email=bench@localhost", "gc.auto=0", "maintenance.auto=false")
        names = [word for setting in settings for word in ("-c", setting)]
        command = ["git", "-C", str(self.path), *names, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def _make_up(self, venv: Path) -> None:
        (site,) = venv.glob("lib/*/site-packages")
        self.path.mkdir()
        for name in ("sqlalchemy", "openai", "agents"):
            shutil.copytree(site / name, self.path / name, ignore=shutil.ignore_patterns("__pycache__"))
        self._git("init", "-q")
        files = sorted(self.path.glob("*/**/*.py"))
        for number in range(21):
            rng = random.Random(number)
            for path in rng.sample(files, 8):
                lines = path.read_text().splitlines(keepends=True)
                lines[len(lines) // 2 : len(lines) // 2] = [f"# {rng.getrandbits(64)}\n"] * 3
                path.write_text("".join(lines))
            self._git("add", "-A")
            self._git("commit", "-q", "-m", f"commit {number}")

    def step(self, number: int) -> None:
        self._git("checkout", "-q", "--force", self.commits[number % len(self.commits)])


class Binaries:
    """500 MB of databases, arrays, logs and images; each step edits a little in the middle of some."""

    nexts = 3

    def __init__(self, work: Path) -> None:
        self.path = work / "binaries"
        rng = random.Random(1)
        if not self.path.exists():
            self.path.mkdir()
            for at in range(5):
                (self.path / f"array{at}.npy").write_bytes(rng.randbytes(40_000_000))
            for at in range(5):
                line = lambda n, at=at: json.dumps({"id": n, "at": at, "text": rng.getrandbits(200)})  # noqa: E731
                (self.path / f"log{at}.jsonl").write_text("\n".join(line(n) for n in range(400_000)))
            for at in range(250):
                (self.path / f"image{at}.png").write_bytes(rng.randbytes(600_000))

    def step(self, number: int) -> None:
        rng = random.Random(number)
        with open(self.path / f"array{number % 5}.npy", "r+b") as file:
            for _ in range(50):
                file.seek(rng.randrange(39_000_000))
                file.write(rng.randbytes(4096))
        log = self.path / f"log{number % 5}.jsonl"
        body = log.read_bytes()
        log.write_bytes(body[: len(body) // 2] + b"inserted line\n" + body[len(body) // 2 :])
        (self.path / f"image{number}.png").unlink(missing_ok=True)
        (self.path / f"new{number}.png").write_bytes(rng.randbytes(3_000_000))


# --- comparing ------------------------------------------------------------------------------------------------


def _describe(root: str) -> dict:
    found = {}
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                what = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    what = hashlib.file_digest(file, "blake2b").hexdigest()
            else:
                what = "dir"
            found[os.path.relpath(path, root)] = (what, status.st_mode, status.st_mtime_ns)
    return found


def _differs(tool: str, want: dict, got: dict) -> int:
    if tool == "sdk-tar":  # It drops times, most mode bits and links that leave the tree.
        want = {path: row[0] for path, row in want.items() if not str(row[0]).startswith("/")}
        got = {path: row[0] for path, row in got.items()}
    return sum(want.get(path) != got.get(path) for path in {*want, *got})


def _size(path: Path) -> int:
    return sum(
        entry.stat().st_size for entry in path.rglob("*") if entry.is_file() and "cache" not in entry.parts
    )


# --- rounds -----------------------------------------------------------------------------------------------------


def bench(name: str, tree, work: Path, rounds: int, tools: tuple[str, ...], result: dict) -> None:
    """Every tool through first, same, next (`rounds` times each) and restore."""
    rows = result.setdefault(name, {tool: {step: [] for step in STEPS} for tool in tools})
    result[name]["floor"] = _floor(str(tree.path))
    number = 0
    for round_ in range(rounds):
        order = [tools[(at + round_) % len(tools)] for at in range(len(tools))]
        # The bare scan beside every round, because the machine's speed drifts.
        rows.setdefault("scans", []).append(_floor(str(tree.path))["scan"]["seconds"])
        homes = {tool: work / f"{name}-{round_}-{tool}" for tool in tools}
        for home in homes.values():
            home.mkdir()
        for step in ("first", "same", *["next"] * tree.nexts, "restore"):
            if step == "next":
                number += 1
                tree.step(number)
                time.sleep(0.05)
            want = _describe(str(tree.path)) if step == "restore" else {}
            for tool in order:
                size = _size(homes[tool])
                into = str(work / f"{name}-{round_}-{tool}-out")
                row = _in_process(tool, step, str(tree.path), str(homes[tool]), into)
                row.setdefault("bytes", _size(homes[tool]) - size)
                if step == "restore":
                    row["differs"] = _differs(tool, want, _describe(into))
                rows[tool][step].append(row)
                print(
                    f"  {name} round {round_} {step:8} {tool:8} {row['seconds']:7.2f} s",
                    file=sys.stderr,
                    flush=True,
                )
        if round_ + 1 < rounds:
            result[name].setdefault("fixed", []).append(_fixed(homes["restic"]) if "restic" in tools else 0.0)
    result[name].setdefault("fixed", []).append(_fixed(homes["restic"]) if "restic" in tools else 0.0)


def _fixed(home: Path) -> float:
    return _command([["restic", "-q", "-r", f"{home}/repo", "--no-cache", "cat", "config"]], "/")["seconds"]


def _median(values: list[float]) -> float:
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def report(result: dict, tools: tuple[str, ...]) -> None:
    for name, rows in result.items():
        fixed = _median(rows["fixed"])
        scan = {**rows["floor"]["scan"], "seconds": _median(rows["scans"])}
        tar = rows["floor"]["tar c"]["seconds"]
        print(f"\n## {name}: {scan['entries']} entries; scan {scan['seconds']:.2f} s, tar c {tar:.2f} s")
        print(f"restic's own start: {fixed:.2f} s\n")
        print(
            "| step | tool | seconds (min-max) | CPU s | MB sent | PUT/GET | peak MB | time / restic (net) | differs |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for step in STEPS:
            for tool in tools:
                print(_row(step, tool, rows[tool][step], rows.get("restic", {}).get(step), fixed))
        if "runlore" in tools:
            same = _median([row["seconds"] for row in rows["runlore"]["same"]])
            print(f"\nunchanged / bare scan: {same / scan['seconds']:.2f}x")


def _row(step: str, tool: str, rows: list[dict], restic: list[dict] | None, fixed: float) -> str:
    seconds = [row["seconds"] for row in rows]
    middle = _median(seconds)
    ratio = ""
    if restic:
        theirs = _median([row["seconds"] for row in restic])
        ratio = (
            f"{middle / theirs:.2f} ({middle / max(0.01, theirs - fixed):.2f})" if tool != "restic" else "1"
        )
    sent = _median([row["bytes"] for row in rows]) / 1e6
    calls = f"{rows[0]['puts']}/{rows[0]['gets']}" if "puts" in rows[0] else ""
    if step == "next" and calls:
        calls = f"{_median([row['puts'] for row in rows]):.0f}/{_median([row['gets'] for row in rows]):.0f}"
    differs = str(max(row.get("differs", 0) for row in rows)) if step == "restore" else ""
    peak = max(row["rss_mb"] for row in rows)
    cpu = _median([row["cpu"] for row in rows])
    return (f"| {step} | {tool} | {middle:.2f} ({min(seconds):.2f}-{max(seconds):.2f}) | {cpu:.2f} | {sent:.2f} | "
            f"{calls} | {peak:.0f} | {ratio} | {differs} |")  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        tool, step, source, home, into = sys.argv[2:]
        print(json.dumps(OPERATIONS[tool](step, source, home, into)))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trees", nargs="*", default=["venv", "repo", "binaries"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("benchmarks/out/snapshots"))
    parser.add_argument("--origin", help="a repository whose history `repo` walks through")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tools = tuple(tool for tool in options.tools if tool in ("runlore", "sdk-tar") or shutil.which(tool))
    # Nothing is deleted between runs: on ext4 making files right after removing many is many times slower.
    work = options.work.resolve() / str(time.time_ns())
    work.mkdir(parents=True)
    made = {"venv": Venv, "repo": lambda at: Repo(at, options.origin), "binaries": Binaries}
    result: dict = {}
    for name in options.trees:
        bench(name, made[name](options.work.resolve()), work, options.rounds, tools, result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    report(result, tools)


if __name__ == "__main__":
    main()
