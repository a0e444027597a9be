"""Rescan: what older rules kept is hidden by the present ones, everywhere that is served, and nothing else changes."""

from __future__ import annotations

import contextlib
import hashlib
import json

import pytest

import made
from runlore import errors
from runlore.commit import keys, redaction, revisions, rollouts
from runlore.consumers import consolidate, model_summaries, record, rescan, summarize
from runlore.lookup import index as lookup_index
from runlore.lookup import seeds
from runlore.memory import redact
from runlore.models import choices
from runlore.producer import Producer
from runlore.testing import buses, invariants, models, stores

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


# --- what was derived from a record, and holds a secret without the name that tells it there ------------------------

PASSWORD = "h7Kq" + "2vZ9xLm4"
ITEMS = [
    *made.call("c1", "connect", {"db_password": "old-5Kq" + "7vZ9x"}, {"error": "access denied"}),
    *made.call("c2", "connect", {"db_password": PASSWORD}, {"rows": 3}),
]


def says(text):
    """An engine that says this of everything."""
    said = {"section": "knowledge", "text": text, "evidence": [1]}
    value = {
        "title": text,
        "outcome": "uncertain",
        "outcome_evidence": [],
        "statements": [said],
        "reason": "",
    }
    return models.ScriptedEngine(lambda asked: models.Reply(value))


async def summarized(store, bus, engine):
    stage = model_summaries.ModelSummariesStage(store, bus, engine, choices.Choices())
    return await stage.work("acme", "support")


async def derived(store=None, engine=None):
    """A store in which the rules and a model say a password, which a record alone tells by its name."""
    store, bus = store or stores.MemoryStore(), buses.MemoryBus()
    payload = made.payload(0, text="Connect please", items=ITEMS)
    await Producer(store, bus).publish([made.data(0, rollout="conv-0", record=payload)], source="/test")
    await record.RecordStage(store, bus, asks=True).process([one async for one in bus.read("runs")])
    if engine is None:
        await summarized(store, bus, says(f"it wants {PASSWORD} there"))
        await consolidate.ConsolidateStage(store, bus).work("acme", "support")
    return store, bus


async def kinds_with(store, secret):
    return {
        row.key.split("/")[1] async for row in store.list("acme/") if secret.encode() in store.body(row.key)
    }


async def test_what_a_model_or_the_rules_took_from_a_record_goes_with_it(older, tmp_path):
    store, bus = await derived()
    older()
    assert await kinds_with(store, PASSWORD) == {"records", "rollouts", "answers"}
    head = await summarize.read(store, "acme", "support", "conv-0")
    assert PASSWORD in json.dumps(head.body["summary"]) and PASSWORD in json.dumps(head.body["model"])
    # Nothing but the record tells that it is a secret.
    assert redact.line(json.dumps(head.body["model"]))[1] == {}
    report = await rescan.Rescan(store, "acme").scan()
    assert {one.what for one in report.findings} >= {rescan.RECORD, rescan.STATEMENTS, rescan.ANSWER}
    assert PASSWORD not in repr(report)
    report = await rescan.Rescan(store, "acme").scan(apply=True)
    assert (report.rewritten, report.rebuilt, report.answers, report.marked) == (1, 1, 2, 1)
    assert await kinds_with(store, PASSWORD) == set()
    await consolidate.ConsolidateStage(store, bus).work("acme", "support")
    opened = await seeds.open_seed(
        revisions.Reader(store), await seeds.resolve(revisions.Reader(store), "acme", "support", "conv-0")
    )
    text = "".join(one.text for one in opened.files.values())
    assert PASSWORD not in text and "[redacted:named-secret:" in text
    again = await rescan.Rescan(store, "acme").scan(apply=True, every=True)
    assert (again.found, again.rewritten, again.rebuilt, again.answers, again.marked) == (0, 0, 0, 0, 0)
    assert await invariants.check(store, bus) == []


async def test_a_search_finds_no_more_what_was_hidden(older, tmp_path):
    store, _ = await derived()
    index = lookup_index.Index(tmp_path / "index.db")
    try:
        await lookup_index.reconcile(index, store)
        assert index.search(PASSWORD, "acme", "support")
        older()
        await rescan.Rescan(store, "acme").scan(apply=True)
        await lookup_index.reconcile(index, store)
        assert not index.search(PASSWORD, "acme", "support")
    finally:
        index.close()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", range(1, 8))
async def test_a_rescan_that_died_anywhere_leaves_nothing_that_cannot_be_found_any_more(at, when, older):
    class Dying(stores.MemoryStore):
        left = None

        async def compare_and_set(self, key, body, etag, **more):
            if self.left is None:
                return await super().compare_and_set(key, body, etag, **more)
            self.left -= 1
            if self.left == 0 and when == "before":
                raise errors.Blocked("died")
            done = await super().compare_and_set(key, body, etag, **more)
            if self.left == 0:
                raise errors.Blocked("died")
            return done

    store, bus = await derived(Dying())
    older()
    store.left = at
    with contextlib.suppress(errors.Blocked):
        await rescan.Rescan(store, "acme").scan(apply=True)
    died, store.left = store.left <= 0, None
    assert died == (at <= 6)  # The project's key, an answer, a model's part, a record, a summary, a mark.
    await rescan.Rescan(store, "acme").scan(apply=True)
    assert await kinds_with(store, PASSWORD) == set()
    await consolidate.ConsolidateStage(store, bus).work("acme", "support")
    assert await invariants.check(store, bus) == []


async def test_what_a_model_was_asked_before_a_rescan_does_not_land_after_it(older):
    first, asked = says(f"it wants {PASSWORD} there"), []

    class Slow:
        """Asked for the first time, it answers after a rescan; then it knows nothing."""

        async def ask(self, ask):
            asked.append(ask)
            if len(asked) > 1:
                return await says("it wants a password").ask(ask)
            older()
            await rescan.Rescan(store, "acme").scan(apply=True)
            return await first.ask(ask)

    store, bus = await derived(engine="none yet")
    await summarized(store, bus, Slow())
    assert PASSWORD in asked[0].input and PASSWORD not in asked[1].input
    # The answer that came late is kept under a name that nothing knows (docs/REDACTION.md).
    assert await kinds_with(store, PASSWORD) == {"answers"}
    head = await summarize.read(store, "acme", "support", "conv-0")
    assert [one["text"] for one in head.body["model"]["statements"]] == ["it wants a password"]
    await consolidate.ConsolidateStage(store, bus).work("acme", "support")
    assert await invariants.check(store, bus) == []


async def test_a_live_edit_of_a_base_that_older_rules_kept_says_only_what_was_edited(older):
    store, _, _ = await kept()
    reader = revisions.Reader(store)
    base = (await seeds.open_seed(reader, await seeds.resolve(reader, "acme", "support", "next"))).files
    text = base["memories/MEMORY.md"].text
    assert TOKEN in text
    older()
    edit = {
        "project": "acme",
        "memory": "support",
        "session_id": "next",
        "run_id": "run-9",
        "edit_id": "edit-9",
        "edited_at": made.moment(99),
        "revision": 1,
        "files": [
            {
                "path": "MEMORY.md",
                "text": text + "- ask first\n",
                "base_sha256": hashlib.sha256(text.encode()).hexdigest(),
            }
        ],
    }
    bus = buses.MemoryBus()
    await Producer(store, bus).publish([edit], source="/test")
    stage = record.RecordStage(store, bus, hashing=redaction.Keys(store))
    done = await stage.process([one async for one in bus.read("runs")])
    assert done.count(record.RECORDED) == 1
    where = keys.record("acme", "support", "next", "edit-9", 1)
    line = rollouts.decode(where, store.body(where)).line
    assert TOKEN not in line and [one["now"] for one in json.loads(line)["edit"]["changes"]] == ["ask first"]


async def test_a_revert_does_not_bring_back_what_a_rescan_hid(older):
    store, bus = await derived()
    older()
    await rescan.Rescan(store, "acme").scan(apply=True)
    await consolidate.ConsolidateStage(store, bus).work("acme", "support")
    bus = buses.MemoryBus()
    await Producer(store, bus).publish([made.data(1, rollout="conv-1")], source="/test")
    await record.RecordStage(store, bus).process([one async for one in bus.read("runs")])
    await consolidate.ConsolidateStage(store, bus).work("acme", "support")
    reader = revisions.Reader(store)

    async def revert(to):
        return await consolidate.revert(store, bus, reader, "acme", "support", to=to, reason="test")

    with pytest.raises(errors.Refused, match="rescan"):
        await revert(1)
    number, held = await revert(2)
    assert (number, held) == (4, ["conv-1"])
