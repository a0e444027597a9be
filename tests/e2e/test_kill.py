"""kill -9 at random moments: the end is the same as that of a run that nobody disturbed.

Events carry their own id and time, so that records, notes and files can be compared byte for byte. The seed
is printed when a test fails; RUNLORE_TEST_SEED sets it.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import time
from pathlib import Path

import homes
import pytest

import made
from runlore.producer import Producer

KILLS = 50
SEED = int(os.environ.get("RUNLORE_TEST_SEED", "20260901"))


def events():
    """The sample runs, and generated ones: later attempts, a run that comes twice, and garbage among them."""
    samples = [json.loads(line) for path in homes.SAMPLES for line in path.read_text().splitlines()]
    out = [made.event(400 + number, rollout=None) for number in range(3)]
    for number, one in enumerate(samples):
        record = one.pop("record")
        line = record if isinstance(record, str) else json.dumps(record, separators=(",", ":"))
        body = {**one, "project": "acme", "memory": "support", "record": line}
        out.append({**made.event(500 + number), "id": f"sample-{number}", "data": body})
    for number in range(2 * KILLS):
        out.append(made.event(number, subject=f"person-{number % 3}" if number % 4 == 0 else None))
        if number % 9 == 0:
            out.append(
                made.event(number, attempt=2, record=made.payload(number, text=f"task {number}, again"))
            )
        if number % 11 == 0:
            out.append(out[-1])
        if number % 25 == 0:
            out.append({"specversion": "1.0"})
    return out


def publish(home, some):
    async def work(opened):
        async for _ in Producer(opened.store, opened.bus).emit(io.BytesIO(made.lines(some)), source="/test"):
            pass

    home.opened(work)


def seeds(home, workspaces):
    """The files of seeds for some rollouts and subjects."""
    out = {}
    for name, more in (("conv-1", ()), ("inv-219", ()), ("new", ("--subject", "person-1"))):
        home.json("seed", name, *homes.MEANT, *more, "--into", workspaces / name)
        written = homes.tree(workspaces / name)
        out[name] = {path: body for path, body in written.items() if not path.startswith(".runlore")}
    return out


@pytest.mark.timeout(280)
def test_fifty_kills_of_up_over_an_import_end_as_an_undisturbed_run(tmp_path):
    calm = homes.Home(tmp_path / "calm")
    every = events()
    publish(calm, every)
    calm.up_once()

    # Two messages a poll: more offsets, marks and revisions to die between.
    home = homes.Home(tmp_path / "killed", poll_records_max=2)
    dice = random.Random(SEED)
    share = len(every) // KILLS + 1
    worked = 0
    for kill in range(KILLS):
        publish(home, every[kill * share : (kill + 1) * share])
        process = home.fork("up")
        homes.wait_until(lambda process=process: home.is_up(process.pid), "up to begin")
        time.sleep(dice.random() ** 2 * 0.35)
        worked += process.is_alive()
        process.kill()
        process.join()
        process.close()
    assert worked == KILLS, f"up ended by itself (seed {SEED})"
    home.up_once()

    home.verified()
    calm_end, end = calm.meaning(), home.meaning()
    for name in calm_end:
        assert end[name] == calm_end[name], f"{name} differs (seed {SEED})"
    assert seeds(home, tmp_path / "a") == seeds(calm, tmp_path / "b")
    reasons = [sorted(one["reason"] for one in each.json("dead", "list")["dead"]) for each in (home, calm)]
    assert reasons[0] == reasons[1] and reasons[0]
    assert home.json("status")["causes"] == calm.json("status")["causes"]


@pytest.mark.parametrize("command", ["import", "emit"])
def test_a_killed_import_or_emit_is_finished_by_running_it_again(tmp_path, command):
    file = tmp_path / "runs.jsonl"
    if command == "emit":
        file.write_bytes(made.lines(made.event(number) for number in range(600)))
        words = ("emit", file)
    else:
        talk = [{"role": "user", "content": "look"}, {"role": "assistant", "content": "done"}]
        lines = [json.dumps({"messages": [*talk, {"role": "user", "content": f"{n}"}]}) for n in range(600)]
        file.write_text("\n".join(lines) + "\n")
        words = ("import", "chat", file, *homes.MEANT)
    calm, home = homes.Home(tmp_path / "calm"), homes.Home(tmp_path / "killed")
    calm.run(*words)
    dice = random.Random(SEED)
    for _ in range(4):
        process = home.start(*words)
        homes.wait_until(
            lambda process=process: (home.root / "log.db").exists() or process.poll() == 0, "it to begin"
        )
        time.sleep(dice.random() * 0.2)
        homes.kill(process)
    home.run(*words)
    assert (calm.up_once()["recorded"], home.up_once()["recorded"]) == (600, 600)
    home.verified()
    calm_end, end = calm.meaning(), home.meaning()
    if command == "import":
        # Only the time at which the event was made differs.
        for one in (calm_end, end):
            one["records"] = {key: without_time(raw) for key, raw in one["records"].items()}
    for name in calm_end:
        assert end[name] == calm_end[name], f"{name} differs (seed {SEED})"


def without_time(raw):
    head, line = raw.split(b"\n", 1)
    meta = json.loads(head)
    del meta["event"]["time"]
    return meta, line


def test_a_killed_seed_is_finished_by_running_it_again(tmp_path, monkeypatch):
    """Every moment between two writes, in-process: what a kill leaves there is what is on the disk."""
    from runlore import wiring
    from runlore.lookup import seeds as lookup_seeds
    from runlore.settings import Settings

    home = homes.Home(tmp_path / "home")
    publish(home, events()[:40])
    home.up_once()
    publish(home, events()[40:])
    home.up_once()

    async def opened_at(at):
        async with wiring.open_home(Settings(home=home.root, fsync=False)) as opened:
            seed = await lookup_seeds.resolve(opened.reader, "acme", "support", "conv-1", at=at)
            return await lookup_seeds.open_seed(opened.reader, seed)

    earlier, later = asyncio.run(opened_at(1)), asyncio.run(opened_at(2))
    replace, unlink = os.replace, Path.unlink
    moments = 0
    while True:
        work = tmp_path / f"work-{moments}"
        lookup_seeds.write_into(earlier, work)
        left = [moments]

        def dying(source, target, left=left):
            left[0] -= 1
            if left[0] == -1:
                raise KeyboardInterrupt
            replace(source, target)

        def only_stale(path, **more):
            # What is half written stays: a killed process tidies nothing up.
            if not path.name.endswith(lookup_seeds.TEMPORARY):
                unlink(path, **more)

        monkeypatch.setattr(os, "replace", dying)
        monkeypatch.setattr(Path, "unlink", only_stale)
        died = False
        try:
            lookup_seeds.write_into(later, work)
        except KeyboardInterrupt:
            died = True
        monkeypatch.undo()
        lookup_seeds.write_into(later, work)
        got = {
            path: body for path, body in homes.tree(work).items() if not path.startswith(".runlore/seed.json")
        }
        assert got == {path: one.text.encode() for path, one in later.files.items()}, moments
        moments += 1
        if not died:
            break
    assert moments > 5
