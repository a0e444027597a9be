"""A head that comes to be while somebody who read that there is none stands still is no lost head."""

from __future__ import annotations

import pytest

import made
from runlore import errors
from runlore.commit import keys, revisions, sweep
from runlore.consumers import consolidate, record
from runlore.lookup import seeds
from runlore.producer import Producer
from runlore.testing import buses, stores
from runlore.upkeep import acts, administration

P, M = "acme", "support"


class Behind(stores.MemoryStore):
    """A store that answers the first read of a key, or LIST of a prefix, with what was there before `meanwhile` was."""

    key, meanwhile = "", None

    async def _pause(self, key):
        if self.meanwhile is not None and key == self.key:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()

    async def get(self, key):
        found = await super().get(key)
        await self._pause(key)
        return found

    async def list(self, prefix):
        rows = [row async for row in super().list(prefix)]
        await self._pause(prefix)
        for row in rows:
            yield row


async def worked(store, bus, *numbers):
    for number in numbers:
        await Producer(store, bus).publish([made.data(number)], source="/test")
        await record.RecordStage(store, bus).process([one async for one in bus.read("runs")])
        await consolidate.ConsolidateStage(store, bus).work(P, M)


@pytest.fixture
def world():
    """A store in which a memory of two revisions comes to be behind the first read of its head, and its bus."""
    store, bus = Behind(), buses.MemoryBus()

    async def meanwhile():
        await worked(store, bus, 0, 1)

    store.key, store.meanwhile = keys.memory_head(P, M), meanwhile
    return store, bus


async def test_whoever_asked_for_a_seed_before_there_was_a_memory_gets_none(world):
    reader = revisions.Reader(world[0])
    assert await seeds.resolve(reader, P, M, "conv-1") is None
    assert (await seeds.resolve(reader, P, M, "conv-1")).revision == 2


async def test_a_worker_that_stood_still_goes_on_from_the_head_that_there_is_now(world):
    store, bus = world
    other = stores.MemoryStore()
    await Producer(other, bus).publish([made.data(2)], source="/test")
    await record.RecordStage(store, bus).process([one async for one in bus.read("runs")])
    await consolidate.ConsolidateStage(store, bus).work(P, M)
    revision = await revisions.Reader(store).at(P, M)
    assert revision.number >= 2 and len(dict(revision.map("coverage").items())) == 3


async def test_a_sweep_keeps_a_memory_that_began_since_it_listed_them(world):
    store, _ = world
    store.key = f"{P}/{keys.MEMORIES}/"
    plan = await sweep.scan(store, P)
    assert store.meanwhile is None and not plan.victims and plan.kept[keys.MANIFESTS] == 2


async def test_an_act_and_a_change_of_the_organization_are_written_behind_those_of_others():
    store = Behind()

    async def acted():
        for number in range(2):
            await acts.append(store, acts.BEGUN, {"of": number})

    store.key, store.meanwhile = keys.acts_head(), acted
    assert (await acts.append(store, acts.BEGUN, {"of": 3})).number == 3

    async def changed():
        for number in range(4):
            await administration.Administrator(store, {"user": "ann"}, "a test").create_project(f"p{number}")

    store.key, store.meanwhile = keys.organization(), changed
    await administration.Administrator(store, {"user": "bo"}, "a test").create_project("last")
    assert len((await administration.read(store)).projects) == 5


async def test_a_head_that_is_gone_is_told_all_the_same(world):
    store, bus = world
    store.meanwhile = None
    await worked(store, bus, 0, 1)
    await store.delete(keys.memory_head(P, M))
    with pytest.raises(errors.HeadLost):
        await seeds.resolve(revisions.Reader(store), P, M, "conv-1")
    with pytest.raises(errors.HeadLost):
        await sweep.scan(store, P)
