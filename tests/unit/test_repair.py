"""Repair of workspaces' heads, and repair beside others: what tests/e2e/test_drills_heads.py does not reach.

A line's head is lost; what it named is told by the runs on the bus, each of which says what it began from.
"""

from __future__ import annotations

import json

import pytest

import made
from runlore import errors
from runlore.commit import heads, keys, lines, marks, sweep
from runlore.consumers import consolidate, record, snapshot
from runlore.producer import Producer
from runlore.snapshots import library
from runlore.testing import buses, invariants, snapshot_invariants, stores
from runlore.upkeep import repair

P, M = "acme", "support"
LINE = lines.Line(P, "conv-1")


class World:
    """A store and a bus, one worker's stages, and a folder that each run changes."""

    def __init__(self, tmp_path):
        self.store, self.bus = stores.MemoryStore(), buses.MemoryBus()
        self.folder = tmp_path / "folder"
        self.folder.mkdir()
        self.made = library.Snapshots(self.store, P)

    async def run(self, number, *, base=None, text=None, **more):
        """One run that leaves a file, from where the line is or from `base`; the ref that it left."""
        head = await lines.read(self.store, LINE)
        now = lines.base_of(head.body) if base is None else base
        (self.folder / "notes.md").write_text(text or f"run {number}")
        saved = await self.made.save(self.folder, base=head.body.get("ref"))
        workspace = {"snapshot": str(saved.ref)}
        if now.snapshot:
            workspace["base"] = {"counter": now.version, "snapshot": now.snapshot}
        data = made.data(number, rollout="conv-1", workspaces=[workspace], **more)
        await Producer(self.store, self.bus).publish([data], source="/test")
        await self.work()
        return str(saved.ref)

    async def work(self):
        for group, stage in (("record", record.RecordStage), ("snapshot", snapshot.SnapshotStage)):
            consumer = await self.bus.consumer(group=group, topics=["runs"])
            while messages := await consumer.poll(records_max=100, timeout_seconds=0):
                await consumer.commit((await stage(self.store, self.bus).process(messages)).offsets)
            await consumer.close()
        while (await consolidate.ConsolidateStage(self.store, self.bus).work(P, M)).marks_deleted:
            pass

    async def lose(self):
        head = await lines.read(self.store, LINE)
        await self.store.delete(LINE.key)
        return head

    async def repaired(self):
        found = await repair.Repair(self.store, self.bus).run()
        assert await repair.Repair(self.store, self.bus).run(apply=True) == found
        await self.work()
        assert await repair.Repair(self.store, self.bus).run() == []
        return found

    async def sound(self):
        return await invariants.check(self.store, self.bus, settled=True) + await snapshot_invariants.check(
            self.store, P
        )


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


async def test_a_workspaces_head_is_made_again_at_what_its_last_run_left(world):
    for number in range(4):
        last = await world.run(number)
    old = await world.lose()
    (found,) = await world.repaired()
    assert (found.kind, found.where) == ("workspace", LINE.key) and "4 runs" in found.what
    new = await lines.read(world.store, LINE)
    assert (new.body["ref"], new.body["branches"]) == (
        last,
        {},
    ) and new.counter > old.counter + heads.LEAP - 100
    # All of it again: each run is known, none moves the line or becomes a branch.
    await world.bus.rewind(group="snapshot", topic="runs")
    await world.work()
    assert (await lines.read(world.store, LINE)).body["ref"] == last
    assert await world.sound() == []
    assert (await lines.read(world.store, LINE)).body["branches"] == {}
    # And the next run goes on from there.
    nxt = await world.run(9)
    assert (await lines.read(world.store, LINE)).body["ref"] == nxt and await world.sound() == []


async def test_what_did_not_move_the_line_is_a_branch_of_the_new_head(world):
    first = await world.run(0)
    stale = lines.base_of((await lines.read(world.store, LINE)).body)
    await world.run(1)
    branch = await world.run(2, base=stale, text="beside it")
    child = await world.run(3, text="a child's", parent_run_id="run-1")
    last = await world.run(4)
    assert set((await lines.read(world.store, LINE)).body["branches"]) == {"run-2", "run-3"}
    await world.lose()
    await world.repaired()
    body = (await lines.read(world.store, LINE)).body
    assert body["ref"] == last and {one["ref"] for one in body["branches"].values()} == {branch, child}
    assert first not in lines.named(body) and await world.sound() == []


async def test_a_line_of_which_the_bus_knows_nothing_any_more_is_told_and_left(world):
    for number in range(2):
        await world.run(number)
    await world.lose()
    key = keys.outcome(P, "conv-1", "main", "run-0", 1)
    await world.store.put(
        key, b'{"format":"runlore.outcome/1","run":"run-0","attempt":1,"state":"moved","ref":null}'
    )
    world.bus = buses.MemoryBus()
    (found,) = await repair.Repair(world.store, world.bus).run(apply=True)
    assert not found.does and "version before" in found.hint
    # What it named would look like garbage.
    with pytest.raises(errors.HeadLost):
        await sweep.scan(world.store, P)
    assert await world.store.get(LINE.key) is None


async def test_a_snapshot_that_is_gone_too_is_told_and_nothing_is_made(world):
    await world.run(0)
    last = await world.run(1)
    await world.lose()
    await world.store.delete(keys.snapshot_pack(P, last))
    (found,) = await repair.Repair(world.store, world.bus).run(apply=True)
    assert not found.does and "can not be read" in found.what and await world.store.get(LINE.key) is None


async def test_a_rollout_that_nobody_marked_is_marked_and_one_that_waits_is_left(world):
    await world.run(0)
    head = await record.summarize.read(world.store, P, M, "conv-1")
    # A head put back from an older copy under a newer memory: the memory covers it further than it stands.
    await world.run(1)
    await world.store.put(head.key, json.dumps(head.body).encode())
    found = await repair.Repair(world.store, world.bus).run()
    assert [one.kind for one in found] == ["rollout"] and "does not name 1" in found[0].what
    await world.repaired()
    assert await world.sound() == []
    # Its mark was lost with a restore: nobody would ever take the run in.
    await Producer(world.store, world.bus).publish([made.data(5, rollout="conv-5")], source="/test")
    consumer = await world.bus.consumer(group="record", topics=["runs"])
    messages = await consumer.poll(records_max=9, timeout_seconds=0)
    await consumer.commit((await record.RecordStage(world.store, world.bus).process(messages)).offsets)
    assert await repair.Repair(world.store, world.bus).run() == []
    for mark in await marks.waiting(world.store):
        await world.store.delete(mark.key)
    (found,) = await world.repaired()
    assert found.kind == "mark" and await world.sound() == []


async def test_a_rollout_whose_head_stands_lower_than_its_revision_is_taken_in_without_any_repair(world):
    """The next run of it finds a lost head by itself, where its counter is one that the revision has covered."""
    for number in range(3):
        await world.run(number)
    key = keys.rollout_head(P, M, "conv-1")
    await world.store.delete(key)
    await world.run(3)
    head = await record.summarize.read(world.store, P, M, "conv-1")
    assert set(head.body["runs"]) == {f"run-{n}" for n in range(4)} and await world.sound() == []


async def test_a_head_that_came_back_meanwhile_is_not_moved(world):
    for number in range(2):
        await world.run(number)
    old = await world.lose()
    steps = [step async for step in repair.Repair(world.store, world.bus)._workspaces(P)]
    await world.store.put(LINE.key, json.dumps(old.body).encode())
    with pytest.raises(errors.HeadMoved):
        await steps[0].work()
    assert (await lines.read(world.store, LINE)).body == old.body


async def test_a_first_revision_that_no_head_names_yet_is_no_lost_head_while_its_marks_stand(world):
    await Producer(world.store, world.bus).publish([made.data(0, rollout="conv-0")], source="/test")
    messages = [one async for one in world.bus.read("runs")]
    await record.RecordStage(world.store, world.bus).process(messages)
    key = keys.memory_head(P, M)
    mark = [row.key async for row in world.store.list(keys.marks(P, M))]
    kept = await world.store.get(mark[0])
    await consolidate.ConsolidateStage(world.store, world.bus).work(P, M)
    await world.store.delete(key)
    await world.store.put(mark[0], kept.body)  # As a worker leaves it that died between manifest and head.
    assert await repair.Repair(world.store, world.bus).run() == []
    await world.store.delete(mark[0])
    (found,) = await repair.Repair(world.store, world.bus).run(apply=True)
    assert (found.kind, found.where) == ("memory", key) and await invariants.check(world.store) == []


async def test_a_workspace_that_could_never_be_taken_in_is_no_lost_line(world):
    nowhere = {"archive": {"sha256": "0" * 64, "size": 7}}
    await Producer(world.store, world.bus).publish(
        [made.data(0, rollout="conv-1", workspaces=[nowhere])], source="/test"
    )
    await world.work()
    assert [one.reason for one in await snapshot.dead.read_all(world.bus)] == ["claim_missing"]
    assert await repair.Repair(world.store, world.bus).run() == []
