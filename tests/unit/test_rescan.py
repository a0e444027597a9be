"""Rescan: what older rules kept is hidden by the present ones, everywhere that is served, and nothing else changes."""

from __future__ import annotations

import contextlib

import pytest

import made
from runlore import errors
from runlore.commit import keys, redaction, revisions, rollouts
from runlore.consumers import consolidate, record, rescan
from runlore.lookup import seeds
from runlore.memory import redact
from runlore.producer import Producer
from runlore.testing import buses, invariants, stores

TOKEN = "ghp_" + "aB3dE5" * 6
SAID = f"always push with {TOKEN} from here on"


@pytest.fixture
def older(monkeypatch):
    """Rules that do not know the token yet; call it to have the present ones."""
    with monkeypatch.context() as patch:
        patch.setattr(redact, "find", lambda value, library=None: [])
        patch.setattr(redact, "SHAPES_VERSION", 1)
        yield patch.undo


async def kept(store=None):
    """A store whose records, summary and revision hold the token: one rollout with it, one without."""
    store, bus = store or stores.MemoryStore(), buses.MemoryBus()
    await Producer(store, bus).publish(
        [
            made.data(0, rollout="conv-0", record=made.payload(0, text=SAID)),
            made.data(1, rollout="conv-0", record=made.payload(1, text="and again")),
            made.data(2, rollout="conv-2", record=made.payload(2, text="nothing here")),
        ],
        source="/test",
    )
    messages = [one async for one in bus.read("runs")]
    await record.RecordStage(store, bus).process(messages)
    await consolidate.ConsolidateStage(store, bus).work("acme", "support")
    return store, bus, messages


async def holders(store, project="acme"):
    """The kinds of objects that hold the token, but packs, which are compressed; and whether a seed does."""
    found = {
        row.key.split("/")[1]
        async for row in store.list(f"{project}/")
        if TOKEN in store.body(row.key).decode("latin-1")
    }
    reader = revisions.Reader(store)
    seed = await seeds.resolve(reader, "acme", "support", "conv-0")
    opened = await seeds.open_seed(reader, seed)
    return found | ({"seed"} if TOKEN in "".join(map(str, opened.files.values())) else set())


async def test_what_older_rules_kept_is_found_without_a_write(older):
    store, _, _ = await kept()
    assert {"records", "rollouts", "seed"} <= await holders(store)
    older()
    before = {row.key async for row in store.list("")}, await holders(store)
    report = await rescan.Rescan(store, "acme").scan()
    assert {one.what for one in report.findings} >= {rescan.RECORD, rescan.SUMMARY, rescan.REVISION}
    assert TOKEN not in str(report) and report.rewritten == report.rebuilt == 0
    assert ({row.key async for row in store.list("")}, await holders(store)) == before


async def test_the_next_revision_holds_no_secret_and_every_invariant_holds(older):
    store, bus, messages = await kept()
    untouched = store.body(keys.record("acme", "support", "conv-2", "run-2", 1))
    older()
    report = await rescan.Rescan(store, "acme").scan(apply=True)
    assert (report.rewritten, report.rebuilt, report.marked) == (1, 1, 1)
    await consolidate.ConsolidateStage(store, bus).work("acme", "support")
    assert not await holders(store)
    again = await rescan.Rescan(store, "acme").scan(apply=True, every=True)
    assert (again.found, again.rewritten, again.rebuilt, again.marked) == (0, 0, 0, 0)
    assert store.body(keys.record("acme", "support", "conv-2", "run-2", 1)) == untouched
    assert await invariants.check(store, bus) == []
    # The same run comes again: it is recognised, and its plain text does not come back.
    done = await record.RecordStage(store, bus).process(messages)
    assert done.count(record.ALREADY) == len(messages) and not await holders(store)


async def test_a_rewritten_record_has_the_hash_of_the_projects_key_and_is_the_same_run(older):
    store, _, _ = await kept()
    where = keys.record("acme", "support", "conv-0", "run-0", 1)
    before = rollouts.decode(where, store.body(where))
    older()
    await rescan.Rescan(store, "acme").scan(apply=True)
    after = rollouts.decode(where, store.body(where))
    hidden = redact.placeholder("github-token", TOKEN, await redaction.read(store, "acme"))
    assert after.line == before.line.replace(TOKEN, hidden)
    assert after.received == before.received and after.meta["redacted"] == {
        "github-token": before.line.count(TOKEN)
    }


@pytest.mark.parametrize("at", range(1, 12))
async def test_a_rescan_that_died_anywhere_is_finished_by_another(at, older):
    class Dying(stores.MemoryStore):
        left = None

        async def compare_and_set(self, key, body, etag, **more):
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise errors.Blocked("died")
            return await super().compare_and_set(key, body, etag, **more)

    store, bus, _ = await kept(Dying())
    older()
    store.left = at - 1
    with contextlib.suppress(errors.Blocked):
        await rescan.Rescan(store, "acme").scan(apply=True)
    store.left = None
    await rescan.Rescan(store, "acme").scan(apply=True)
    await consolidate.ConsolidateStage(store, bus).work("acme", "support")
    assert not await holders(store) and await invariants.check(store, bus) == []


async def test_only_the_memory_that_is_named_is_rewritten(older):
    store, _, _ = await kept()
    older()
    assert (await rescan.Rescan(store, "acme", "other").scan(apply=True)).found == 0
    assert (await rescan.Rescan(store, "other").scan(apply=True)).found == 0
    assert "records" in await holders(store)


async def test_two_rescans_at_once_end_in_the_same(older):
    import asyncio

    store, bus, _ = await kept()
    older()
    await asyncio.gather(*(rescan.Rescan(store, "acme").scan(apply=True) for _ in range(3)))
    await consolidate.ConsolidateStage(store, bus).work("acme", "support")
    assert not await holders(store) and await invariants.check(store, bus) == []
