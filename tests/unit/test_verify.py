"""`runlore verify`: what is wrong with a home is found, wherever it lies."""

from __future__ import annotations

import pytest

import made
from runlore.commit import heads, keys, lines, packs, revisions
from runlore.consumers import consolidate, record
from runlore.producer import Producer
from runlore.testing import buses, invariants, stores
from runlore.upkeep import verify
from runlore.upkeep.erasing import asking, eraser

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


async def erased():
    """A home in which a run was erased, and another run left something to be told."""
    store, bus = stores.MemoryStore(), buses.MemoryBus()
    sent = [made.data(number, rollout=f"conv-{number}") for number in range(2)]
    await Producer(store, bus).publish(sent, source="/test")
    await record.RecordStage(store, bus).process([one async for one in bus.read("runs")])
    await consolidate.ConsolidateStage(store, bus).work(P, M)
    one = eraser.Eraser(store, bus, P)
    entry = await one.begin(asking.wanted_of(project=P, run="run-0"))
    await one.carry_on(str(entry.body["id"]))
    line = lines.line_of(P, "conv-1", None)
    await heads.move(store, await lines.read(store, line), {}, fmt=lines.HEAD_FORMAT)
    await store.put(keys.outcome(P, "conv-1", "main", "run-1", 1), b'{"format": "runlore.outcome/1"}')
    return store, bus


@pytest.mark.parametrize(
    "kind",
    [keys.ERASURES, keys.ROLLOUTS, keys.MEMORIES, keys.MANIFESTS, keys.PACKS, keys.RECORDS, keys.OUTCOMES],
)
async def test_whatever_is_damaged_is_told_beside_all_else_and_ends_nothing(kind):
    store, bus = await erased()
    assert not (await verify.verify(store, bus)).violations
    for key in [key for key in store.snapshot() if key.split("/")[1] == kind]:
        was = (await store.get(key)).body
        await store.put(key, b"{")
        found = (await verify.verify(store, bus)).violations
        assert any(key in f"{one.where} {one.what}" or M in one.where for one in found), key
        # A fault elsewhere is told, too.
        other = f"{P}/{keys.CLAIMS}/00/{'0' * 64}"
        await store.put(other, b"other bytes than its name says")
        assert any(one.where == other for one in (await verify.verify(store, bus)).violations)
        await store.delete(other)
        await store.put(key, was)


async def made_by(store):
    """The packs in the order in which the revisions were made."""
    found = [body async for body in revisions.Reader(store).line(P, M)]
    return [keys.pack(P, one["sha256"]) for body in reversed(found) for one in body["packs"]]
