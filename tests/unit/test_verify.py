"""`runlore verify`: what is wrong with a home is found, wherever it lies."""

from __future__ import annotations

import made
from runlore.commit import keys, packs, revisions
from runlore.consumers import consolidate, record
from runlore.producer import Producer
from runlore.testing import buses, invariants, stores
from runlore.upkeep import verify

P, M = "acme", "support"


async def three_revisions(monkeypatch):
    """A memory of which each revision has a pack of its own, as each 12th has."""
    monkeypatch.setattr(packs, "PACKS_MAX", 0)
    store, bus = stores.MemoryStore(), buses.MemoryBus()
    for number in range(3):
        await Producer(store, bus).publish([made.data(number, rollout=f"conv-{number}")], source="/test")
        await record.RecordStage(store, bus).process([one async for one in bus.read("runs")])
        while (await consolidate.ConsolidateStage(store, bus).work(P, M)).marks_deleted:
            pass
    return store, bus


async def test_a_pack_that_an_earlier_revision_alone_needs_is_missed(monkeypatch):
    # A seed of that revision is good for its term, and `runlore show --at 1` for ever.
    store, bus = await three_revisions(monkeypatch)
    assert not (await verify.verify(store, bus)).violations
    first, *_ = await made_by(store)
    await store.delete(first)
    (found,) = (await verify.verify(store, bus)).violations
    assert (found.invariant, found.where) == (invariants.SEEDS, first)
    assert "revision 1" in found.what


class Reads(stores.MemoryStore):
    """Notes what is read of it."""

    def __init__(self):
        super().__init__()
        self.read = set()

    async def get(self, key, **more):
        self.read.add(key.split("/")[0])
        return await super().get(key, **more)


async def test_of_one_project_a_lost_run_is_told_and_nothing_of_the_others_is_read():
    store, bus = Reads(), buses.MemoryBus()
    for number, project in enumerate((P, "globex")):
        await Producer(store, bus).publish([made.data(number, project=project)], source="/test")
        await record.RecordStage(store, bus).process([one async for one in bus.read("runs")])
        await consolidate.ConsolidateStage(store, bus).work(project, M)
    for key in store.snapshot():
        if key.startswith(P):
            await store.delete(key)
    bus.note_commit(
        "record", {one.at: one.offset + 1 async for one in bus.read("runs")}
    )  # All counts as worked.
    (lost,) = (await verify.verify(store, bus)).violations
    assert lost.invariant == invariants.MARKED and "run-0 is not recorded" in lost.what
    assert (await verify.verify(store, bus, project=P)).violations == [lost]
    store.read.clear()
    assert not (await verify.verify(store, bus, project="globex")).violations
    assert store.read == {"globex"}


async def made_by(store):
    """The packs in the order in which the revisions were made."""
    found = [body async for body in revisions.Reader(store).line(P, M)]
    return [keys.pack(P, one["sha256"]) for body in reversed(found) for one in body["packs"]]
