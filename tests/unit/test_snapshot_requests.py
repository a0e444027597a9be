"""What a small workspace costs in requests: what is known of a line is not asked again. LISTs cost as much as PUTs."""

from __future__ import annotations

import asyncio
from collections import Counter

import made
from runlore.commit import lines
from runlore.consumers import snapshot
from runlore.producer import Producer
from runlore.snapshots import library
from runlore.testing.buses import MemoryBus
from runlore.testing.stores import MemoryStore


class Counting(MemoryStore):
    """Counts requests by method."""

    def __init__(self):
        super().__init__()
        self.asked = Counter()

    async def put(self, key, body):
        self.asked["put"] += 1
        return await super().put(key, body)

    async def put_if_absent(self, key, body):
        self.asked["put"] += 1
        return await super().compare_and_set(key, body, None)

    async def compare_and_set(self, key, body, etag, *, guard=None):
        self.asked["put"] += 1
        return await super().compare_and_set(key, body, etag, guard=guard)

    def list(self, prefix):
        self.asked["list"] += 1
        return super().list(prefix)


async def asked_for(tmp_path, bases):
    """The requests of each of several runs of one rollout, whose workspaces began as `bases`."""
    store, bus = Counting(), MemoryBus()
    stage = snapshot.SnapshotStage(store, bus, folders=[tmp_path])
    consumer = await bus.consumer(group="snapshot", topics=["runs"])
    found = []
    for number, base in enumerate(bases):
        left = tmp_path / f"left-{number}"
        left.mkdir()
        (left / "notes.md").write_text(f"notes of run {number}")
        workspace = {"folder": str(left), **({"base": base} if base else {})}
        data = made.data(number, rollout="conv-1", workspaces=[workspace])
        await Producer(store, bus).publish([data], source="/test")
        store.asked.clear()
        (message,) = await consumer.poll(records_max=1, timeout_seconds=0)
        processed = await stage.process([message])
        found.append((processed.outcomes[0].state, dict(store.asked)))
    return found


async def test_the_first_workspace_of_a_line_costs_its_pack_and_its_head(tmp_path):
    assert await asked_for(tmp_path, [None]) == [(snapshot.MOVED, {"put": 2})]


async def test_a_branch_costs_no_more(tmp_path):
    _, branch = await asked_for(tmp_path, [None, None])
    assert branch == (snapshot.BRANCHED, {"put": 2})


async def test_a_line_that_forgot_runs_costs_a_list_and_an_outcome_more(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "VERSIONS_MAX", 0)
    branches = [None] * 3
    monkeypatch.setattr(lines, "may_move", lambda body, offer: True)
    *_, last = await asked_for(tmp_path, branches)
    assert last == (snapshot.MOVED, {"put": 3, "list": 1})


async def read_of(monkeypatch, tmp_path, cache_dir):
    """How many files each of two runs read whose workspace is one folder, with one file more for the second."""
    read = []
    save = library.Snapshots.save

    async def spied(self, *args, **more):
        saved = await save(self, *args, **more)
        read.append(saved.stats["files_read"])
        return saved

    monkeypatch.setattr(library.Snapshots, "save", spied)
    store, bus = MemoryStore(), MemoryBus()
    stage = snapshot.SnapshotStage(store, bus, folders=[tmp_path], cache_dir=cache_dir)
    consumer = await bus.consumer(group="snapshot", topics=["runs"])
    (tmp_path / "work").mkdir()
    for number in range(2):
        for name in range(20 + number):
            if not (tmp_path / "work" / str(name)).exists():
                (tmp_path / "work" / str(name)).write_text(f"{name}")
        await asyncio.sleep(0.05)  # What is as young as the scan is read again next time.
        data = made.data(number, rollout="conv-1", workspaces=[{"folder": str(tmp_path / "work")}])
        await Producer(store, bus).publish([data], source="/test")
        (message,) = await consumer.poll(records_max=1, timeout_seconds=0)
        processed = await stage.process([message])
        assert processed.outcomes[0].error is None
    return read


async def test_a_folder_that_comes_again_is_read_where_it_changed(monkeypatch, tmp_path):
    assert await read_of(monkeypatch, tmp_path, tmp_path / "cache") == [20, 1]


async def test_a_folder_that_holds_the_home_is_taken_without_a_cache(monkeypatch, tmp_path):
    assert await read_of(monkeypatch, tmp_path, tmp_path / "work" / "home" / "cache") == [20, 21]
