"""Pauses hold back exactly what they name, stand until they are lifted, and are never passed over."""

from __future__ import annotations

import itertools

import pytest

from runlore import clock, errors
from runlore.commit import keys
from runlore.testing.stores import MemoryStore
from runlore.upkeep import pauses

BY = {"user": "ada", "host": "desk"}
PLACES = [(None, None), ("acme", None), ("acme", "support"), ("acme", "sales"), ("zeta", "support")]


class Clock(clock.World):
    seconds = 0.0

    def monotonic(self):
        return self.seconds


@pytest.fixture
def world():
    made = Clock()
    clock.install(made)
    yield made
    clock.install(clock.World())


async def put(store, project, memory, stage="consolidate"):
    return await pauses.put(store, stage, project=project, memory=memory, reason="why", by=BY)


@pytest.mark.parametrize("where", PLACES)
async def test_a_pause_holds_what_it_names_and_nothing_else(where, world):
    store = MemoryStore()
    await put(store, *where)
    view = pauses.Pauses(store)
    for project, memory in itertools.product(("acme", "zeta"), ("support", "sales")):
        held = await view.of("consolidate", project, memory)
        assert (held is not None) == (where[0] in (None, project) and where[1] in (None, memory))
        assert await view.of("record", project, memory) is None
    # A stage as a whole is only held by a pause of the whole stage.
    if where == (None, None):
        with pytest.raises(pauses.StagePaused, match="by ada: why"):
            await view.check("consolidate")
    else:
        await view.check("consolidate")


async def test_a_stage_that_reads_a_topic_is_paused_as_a_whole_or_not_at_all():
    store = MemoryStore()
    for stage in pauses.WHOLE_ONLY:
        with pytest.raises(errors.InvalidInput, match="as a whole"):
            await put(store, "acme", "support", stage)
        await put(store, None, None, stage)
    with pytest.raises(errors.InvalidInput):
        await put(store, None, None, "index")
    assert len(store.snapshot()) == 2


async def test_a_second_pause_is_refused_with_the_words_of_the_first_and_lifting_ends_exactly_one():
    store = MemoryStore()
    for where in PLACES:
        await put(store, *where)
    with pytest.raises(errors.Refused, match=r"since .* by ada: why"):
        await put(store, "acme", "support")
    await pauses.lift(store, "consolidate", project="acme", memory="support")
    with pytest.raises(errors.NotFound):
        await pauses.lift(store, "consolidate", project="acme", memory="support")
    assert {(one.project, one.memory) for one in (await pauses.read_all(store)).values()} == {
        where for where in PLACES if where != ("acme", "support")
    }


async def test_a_worker_sees_a_pause_and_its_end_within_the_refresh_and_reads_each_pause_once(world):
    reads = []

    class Counting(MemoryStore):
        async def get_many(self, wanted):
            reads.extend(wanted)
            return await super().get_many(wanted)

    store = Counting()
    view = pauses.Pauses(store)
    assert await view.standing() == []
    await put(store, "acme", "support")
    assert await view.standing() == []
    for _ in range(3):
        world.seconds += pauses.REFRESH_SECONDS
        assert len(await view.standing()) == 1
    assert len(reads) == 1
    await pauses.lift(store, "consolidate", project="acme", memory="support")
    world.seconds += pauses.REFRESH_SECONDS
    assert await view.standing() == []


async def test_what_may_be_a_pause_is_never_passed_over(world):
    for body in (b"", b"{}", b"nonsense", b'{"format": "runlore.pause/2"}'):
        store = MemoryStore()
        await store.put(keys.pause("consolidate"), body)
        view = pauses.Pauses(store)
        for _ in range(2):
            with pytest.raises(errors.Corrupt):
                await view.check("consolidate")

    class Down(MemoryStore):
        def list(self, prefix):
            raise errors.StoreUnavailable("503")

    with pytest.raises(errors.StoreUnavailable):
        await pauses.Pauses(Down()).check("consolidate")
