"""Erasing: what was named is gone from everything that is kept and shown, and nothing brings it back."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import zlib

import pytest

import made
from runlore import clock, errors
from runlore.bus import port as bus_port
from runlore.commit import erasures, keys, lines, packs, revisions
from runlore.consumers import consolidate, dead, rebuild, record
from runlore.events import envelope, ids
from runlore.lookup import index as lookup_index
from runlore.lookup import seeds
from runlore.producer import Producer
from runlore.snapshots import library
from runlore.testing import (
    buses,
    erasure_invariants,
    invariants,
    side_invariants,
    snapshot_invariants,
    stores,
)
from runlore.upkeep import retention
from runlore.upkeep.erasing import asking, eraser, proof, receipts

NEEDLE = "the codeword is heliotrope"
P, M = "acme", "support"


def events():
    """Two rollouts of two runs each: one with the needle in its first run, one that never heard of it."""
    return [
        made.data(0, rollout="conv-a", record=made.payload(0, text=f"Remember: {NEEDLE}"), subject="anna"),
        made.data(7, rollout="conv-a", record=made.payload(7, text="and go on"), subject="anna"),
        made.data(2, rollout="conv-b", record=made.payload(2, text="something else"), subject="bert"),
        made.data(9, rollout="conv-b", record=made.payload(9, text="and more"), subject="bert"),
    ]


async def worked(store, bus, sent=None):
    """The stages until nothing is left, as one worker does it."""
    if sent:
        await Producer(store, bus).publish(sent, source="/test")
    messages = [one async for one in bus.read("runs")]
    done = await record.RecordStage(store, bus).process(messages)
    while (await consolidate.ConsolidateStage(store, bus).work(P, M)).marks_deleted:
        pass
    return done


async def kept(store=None):
    store, bus = store or stores.MemoryStore(), buses.MemoryBus()
    for one in events():
        await worked(store, bus, [one])
    return store, bus


def bytes_of(store):
    """Everything that a store keeps, also what is compressed."""
    for key, body in store.snapshot().items():
        yield key, body
        if key.split("/")[1] == keys.PACKS:
            pack = packs.decode(packs.name(body), body)
            for frame in pack.index:
                if not frame.startswith("salt"):
                    yield key, zlib.decompress(pack.stored(frame))


def holders(store, needle=NEEDLE):
    return sorted({key.split("/")[1] for key, body in bytes_of(store) if needle.encode() in body})


async def sound(store, bus=None):
    """What is wrong, of all that must hold once everything is worked off."""
    found = await invariants.check(store, settled=True) + await erasure_invariants.check(store, P)
    return found + (await invariants.check(store, bus) if bus else [])


async def erase(store, bus, **named):
    one = eraser.Eraser(store, bus, P)
    entry = await one.begin(asking.wanted_of(project=P, **named))
    return await one.carry_on(str(entry.body["id"]))


async def test_an_erased_run_leaves_what_its_rollout_said_besides():
    store, bus = await kept()
    assert {"records", "rollouts", "packs"} <= set(holders(store))
    entry = await erase(store, bus, run="run-0")
    assert entry.body["state"] == erasures.UNREACHABLE and entry.body["first_at"]
    assert holders(store) == []
    await worked(store, bus)
    (view,) = await invariants.look(store, P)
    assert sorted(view.rollouts["conv-a"].body["runs"]) == ["run-7"]
    assert view.end("conv-a", "run-7", 1) == "consolidated"
    assert holders(store) == [] and await sound(store, bus) == []


async def test_an_erased_rollout_is_gone_and_a_later_run_of_it_ends_erased():
    store, bus = await kept()
    await erase(store, bus, rollout="conv-a")
    assert holders(store) == [] and holders(store, "and go on") == []
    later = made.data(11, rollout="conv-a", record=made.payload(11, text=f"again: {NEEDLE}"))
    done = await worked(store, bus, [later])
    assert done.count(record.ERASED) == 3 and holders(store) == []
    assert await sound(store, bus) == []


async def test_one_run_after_the_other_of_a_rollout_is_erased():
    store, bus = await kept()
    last = made.data(14, rollout="conv-a", record=made.payload(14, text="it stays"), subject="anna")
    await worked(store, bus, [last])
    for run, text in (("run-0", NEEDLE), ("run-7", "and go on")):
        await erase(store, bus, run=run)
        await worked(store, bus)
        assert holders(store, text) == [] and await sound(store, bus) == []
    assert await selected(store) == ["conv-a", "conv-b"] and holders(store, "it stays")


@pytest.mark.parametrize("together", [False, True])
async def test_what_an_earlier_erasure_took_over_is_erased_too(together):
    store, bus = stores.MemoryStore(), buses.MemoryBus()
    every = [*events(), made.data(3, rollout="conv-c", record=made.payload(3, text="a third thing"))]
    for one in [every] if together else [[one] for one in every]:
        await worked(store, bus, one)
    for named, text in (
        ({"rollout": "conv-c"}, "a third thing"),
        ({"subject": "anna"}, NEEDLE),
        ({"run": "run-2"}, "something else"),
    ):
        await erase(store, bus, **named)
        assert holders(store, text) == [] and await erasure_invariants.check(store, P) == [], named
    await worked(store, bus)
    assert await selected(store) == ["conv-b"] and await sound(store, bus) == []


async def test_a_replay_from_the_start_brings_nothing_back():
    store, bus = await kept()
    untouched = buses.MemoryBus()  # As Kafka, which lets nothing go.
    await Producer(store, untouched).publish(events(), source="/test")
    await erase(store, bus, run="run-0")
    done = await worked(store, untouched)
    assert done.count(record.ERASED) == 1 and done.count(record.DEAD) == 0
    assert holders(store) == []


@pytest.mark.parametrize(("named", "left"), [({"subject": "anna"}, ["conv-b"]), ({"memory": M}, [])])
async def test_a_subject_and_a_whole_memory_are_erased_and_begin_again_later(named, left):
    store, bus = await kept()
    entry = await erase(store, bus, **named)
    # Whoever had an event in hand may still put it, so it is looked at once more.
    assert entry.body["state"] == erasures.OPEN and holders(store) == []
    assert [one for one in await selected(store) if one] == left
    old = made.data(4, rollout="conv-new", subject="anna", record=made.payload(4, text=NEEDLE))
    await Producer(store, bus).publish([old], source="/test")
    assert await sound(store) == []


async def selected(store):
    head = await revisions.Reader(store).head(P, M)
    found = await revisions.Reader(store).current(head, P, M)
    return sorted(name for name, _ in found.map("selected").items())


async def test_an_event_of_an_erased_subject_that_was_on_the_bus_is_not_taken_in():
    store, bus = await kept()
    waiting = made.data(4, rollout="conv-new", subject="anna", record=made.payload(4, text=NEEDLE))
    await Producer(store, bus).publish([waiting], source="/test")
    await erase(store, bus, subject="anna")
    done = await worked(store, bus)
    assert done.count(record.RECORDED) == 0 and holders(store) == []


async def test_strict_makes_the_notes_anew_from_the_runs_that_are_left():
    store, bus = await kept()
    other = await kept()
    await erase(store, bus, rollout="conv-a", strict=True)
    await erase(*other, rollout="conv-a")
    notes = [await notes_of(one) for one in (store, other[0])]
    assert notes[0] == notes[1] and notes[0] and holders(store) == []


async def notes_of(store):
    head = await revisions.Reader(store).head(P, M)
    return dict((await revisions.Reader(store).current(head, P, M)).map("notes").items())


async def test_revisions_that_were_shown_it_and_their_seeds_answer_erased():
    store, bus = await kept()
    reader = revisions.Reader(store)
    seed = await seeds.resolve(reader, P, M, "conv-b")
    await seeds.open_seed(reader, seed)
    await erase(store, bus, run="run-0")
    with pytest.raises(errors.Erased):
        await seeds.open_seed(reader, seed)
    with pytest.raises(errors.Erased):
        await reader.at(P, M, 1)
    with pytest.raises(errors.Erased):
        await consolidate.revert(store, bus, reader, P, M, to=2, reason="no")
    assert [body["revision"] async for body in reader.line(P, M) if body.get("erased")] == [4, 3, 2, 1]


async def test_the_index_lets_go_of_every_byte(tmp_path):
    store, bus = await kept()
    index = lookup_index.Index(tmp_path / "index.db")
    await lookup_index.reconcile(index, store)
    assert index.search("heliotrope", P, M, subject=ids.subject_alias("anna"))
    await erase(store, bus, run="run-0")
    await lookup_index.reconcile(index, store)
    assert (
        not index.search("heliotrope", P, M, subject=ids.subject_alias("anna")) and index.runs("run-0") == []
    )
    (row,) = index.memories(P)
    assert (row["rollouts"], row["runs"]) == (2, 3)
    index.close()
    raw = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"heliotrope" not in raw


async def test_dead_letters_and_claims_of_it_go():
    store, bus = await kept()
    bad = made.data(0, rollout="conv-a", record=made.payload(5, text=f"other bytes, {NEEDLE}"))
    assert (await worked(store, bus, [bad])).count(record.DEAD) == 1
    await erase(store, bus, run="run-0")
    (letter,) = await dead.read_all(bus)
    assert letter.resolution == dead.ERASED and NEEDLE.encode() not in (letter.value or b"")
    with pytest.raises(errors.Erased):
        await dead.redrive(bus, store, [letter], why="try")
    texts = []
    for topic in ("runs", "dead"):
        texts += [one.value or b"" async for one in bus.read(topic)]
    assert NEEDLE.encode() not in b"".join(texts)


class Dying(stores.MemoryStore):
    """A store whose process dies at the call `left`."""

    left = None

    def _tick(self):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise errors.Blocked("died")

    def copy(self):
        out = Dying()
        out._objects, out._order = dict(self._objects), list(self._order)
        return out


def _ticking(name):
    async def call(self, *args, **more):
        self._tick()
        return await getattr(super(Dying, self), name)(*args, **more)

    return call


for _name in ("put", "put_if_absent", "compare_and_set", "delete", "delete_many", "compare_and_delete"):
    setattr(Dying, _name, _ticking(_name))


@pytest.mark.parametrize(
    "named", [{"run": "run-0"}, {"rollout": "conv-a"}, {"subject": "anna"}, {"memory": M}]
)
async def test_an_erasure_that_died_at_any_write_is_finished_by_another_pass(named):
    begun, bus = await kept(Dying())
    calls = 0
    while True:
        store, own = begun.copy(), bus.copy()
        store.left = calls
        with contextlib.suppress(errors.Blocked):
            await erase(store, own, **named)
        is_whole, store.left = store.left >= 0, None
        one = eraser.Eraser(store, own, P)
        for entry in await eraser.unfinished(store, P):
            await one.carry_on(str(entry.body["id"]))
        # One that died before its entry was asked for by nobody.
        if [entry async for entry in erasures.every(store, P)]:
            await worked(store, own)
            assert holders(store) == [] and await sound(store) == [], calls
        if is_whole:
            break
        calls += 1
    assert calls > 10


# --- workspaces ---------------------------------------------------------------------------------------------


async def workspace(store, tmp_path, rollout, run, text, base=None):
    """A version that a run left; its ref."""
    folder = tmp_path / f"{rollout}-{run}"
    folder.mkdir()
    (folder / "notes.txt").write_text(text)
    made_ = library.Snapshots(store, P)
    saved = await made_.save(folder, base=base)
    line = lines.line_of(P, rollout, None)
    head = await lines.read(store, line)
    offer = lines.Offer(run, 1, str(saved.ref), lines.base_of(head.body), "e")
    await lines.advance(store, line, offer)
    return str(saved.ref)


async def test_an_erased_rollouts_workspaces_can_not_be_read_and_their_bytes_go_with_the_second_date(
    tmp_path, monkeypatch
):
    store, bus = await kept()
    ref = await workspace(store, tmp_path, "conv-a", "run-0", f"{NEEDLE} one")
    other = await workspace(store, tmp_path, "conv-b", "run-2", "another")
    entry = await erase(store, bus, rollout="conv-a")
    snapshots = library.Snapshots(store, P)
    for name in (ref, ref.split("/")[0]):
        with pytest.raises(errors.Erased):
            await snapshots.open(name)
    await snapshots.open(other)
    assert await sound(store) == [] and await snapshot_invariants.check(store, P) == []
    said = receipts.of(entry.body)
    needles = proof.needles_in(NEEDLE)
    found = await proof.prove(store, bus, said, needles=needles)
    assert {one["where"].split("/")[1] for one in found.problems} == {keys.SNAPSHOTS}
    later = clock.now() + eraser.LAST_LOOK + dt.timedelta(hours=1)
    monkeypatch.setattr(clock, "now", lambda: later)
    entry = await eraser.Eraser(store, bus, P).carry_on(str(entry.body["id"]))
    assert entry.body["state"] == erasures.DONE and entry.body["second_at"]
    assert (await proof.prove(store, bus, receipts.of(entry.body), needles=needles)).problems == []
    with pytest.raises(errors.NotFound):
        await snapshots.open(ref)
    await snapshots.open(other)


async def test_of_an_erased_run_its_versions_and_branches_go_and_the_line_steps_back(tmp_path):
    store, bus = await kept()
    first = await workspace(store, tmp_path, "conv-a", "run-7", "before")
    second = await workspace(store, tmp_path, "conv-a", "run-0", f"{NEEDLE} two", base=first)
    line = lines.line_of(P, "conv-a", None)
    assert (await lines.read(store, line)).body["ref"] == second
    await erase(store, bus, run="run-0")
    body = (await lines.read(store, line)).body
    assert body["ref"] == first and body["version"] == 3
    with pytest.raises(errors.Erased):
        await library.Snapshots(store, P).open(second)
    await library.Snapshots(store, P).open(first)
    assert await snapshot_invariants.check(store, P) == []


async def test_workspaces_are_kept_where_that_is_asked_for(tmp_path):
    store, bus = await kept()
    ref = await workspace(store, tmp_path, "conv-a", "run-0", "one")
    entry = await erase(store, bus, rollout="conv-a", snapshots="keep")
    await library.Snapshots(store, P).open(ref)
    assert entry.body["left"] == {"snapshots kept by policy": 1}


# --- what else is made of it ----------------------------------------------------------------------------------


async def test_a_side_line_that_was_shown_it_is_dropped_with_all_its_revisions():
    store, bus = await kept()
    await rebuild.Rebuild(store, bus, P, M, "side").build(rebuild.setup_of(None), reason="try")
    reader = revisions.Reader(store)
    shown = await reader.at(P, M, side="side")
    entry = await erase(store, bus, run="run-0")
    assert entry.body["removed"]["side lines"] == 1 and holders(store) == []
    with pytest.raises(errors.NotFound):
        await reader.at(P, M, side="side")
    with pytest.raises(errors.Erased):
        await reader.load(P, M, shown.number, shown.sha256)
    await rebuild.Rebuild(store, bus, P, M, "side").build(rebuild.setup_of(None), reason="again")
    assert holders(store) == [] and await side_invariants.check(store, P) == []


async def test_runs_that_began_from_an_erased_revision_are_in_the_receipt():
    store, bus = await kept()
    seed = await seeds.resolve(revisions.Reader(store), P, M, "conv-b")
    after = made.data(16, rollout="conv-b", subject="bert", seed=seed.id)
    await worked(store, bus, [after])
    entry = await erase(store, bus, run="run-0")
    assert entry.body["seeded"]["total"] == 1
    (one,) = entry.body["seeded"]["runs"]
    assert (one["run"], one["revision"]) == ("run-16", seed.revision)
    assert NEEDLE not in json.dumps(receipts.of(entry.body))


async def test_a_claim_goes_unless_another_event_names_the_same_bytes():
    store, bus = stores.MemoryStore(), buses.MemoryBus()
    large = made.payload(0, text=f"{NEEDLE} {'x' * 300_000}")
    shared = made.payload(1, text="y" * 300_000)
    await worked(store, bus, [made.data(0, rollout="conv-a", record=large)])
    await worked(store, bus, [made.data(1, rollout="conv-a", record=shared)])
    await worked(store, bus, [made.data(2, rollout="conv-b", record=shared)])
    claims = [row.key async for row in store.list(f"{P}/{keys.CLAIMS}/")]
    assert len(claims) == 2
    entry = await erase(store, bus, rollout="conv-a")
    assert entry.body["removed"]["claims"] == 1
    assert [row.key async for row in store.list(f"{P}/{keys.CLAIMS}/")] and holders(store) == []


# --- restores, terms, retention -------------------------------------------------------------------------------


async def test_after_a_restore_of_an_older_copy_its_receipt_does_it_again():
    store, bus = await kept()
    backup = store.copy()
    entry = await erase(store, bus, run="run-0")
    said = receipts.parse(json.dumps({"receipt": receipts.of(entry.body)}))
    assert (await proof.prove(backup, bus, said)).problems and holders(backup)
    await erasures.begin(backup, P, said["id"], receipts.as_entry(said), None)
    await eraser.Eraser(backup, bus, P).carry_on(said["id"])
    assert (await proof.prove(backup, bus, said)).problems == [] and holders(backup) == []
    for wrong in (b"{}", b"[]", b"x", json.dumps({**said, "scope": "all"})):
        with pytest.raises(errors.InvalidInput):
            receipts.parse(wrong)


async def test_what_a_stage_put_late_is_taken_by_the_last_pass_and_the_term_begins_anew(monkeypatch):
    store, bus = await kept()
    where = keys.record(P, M, "conv-a", "run-0", 1)
    late = store.body(where)
    entry = await erase(store, bus, run="run-0")
    await worked(store, bus)
    await store.put_if_absent(where, late)
    assert await sound(store) == []  # Nothing shows it.
    there = clock.now()
    for days, state in ((1, erasures.UNREACHABLE), (4, erasures.UNREACHABLE), (8, erasures.DONE)):
        monkeypatch.setattr(clock, "now", lambda days=days: there + dt.timedelta(days=days))
        entry = await eraser.Eraser(store, bus, P).carry_on(str(entry.body["id"]))
        if days == 1:
            await store.put_if_absent(where, late)
            await store.delete(where)
            await store.put_if_absent(where, late)
        assert entry.body["state"] == state, days
    assert holders(store) == []


async def test_what_no_stage_could_read_of_an_erased_run_goes_too_and_a_replay_keeps_none_of_it():
    store, bus = await kept()
    broken = made.data(0, rollout="conv-a", attempt=0, record=made.payload(0, text=NEEDLE))
    other = made.data(2, rollout="conv-b", attempt=0)
    await bus.produce(
        [record.message_of(envelope.of_run(one, source="/test"), "k", "runs") for one in (broken, other)]
    )
    await bus.produce([bus_port.Outgoing("runs", None, b"{", [])])
    untouched = bus.copy()  # As Kafka, which lets nothing go.
    assert (await worked(store, bus)).count(record.DEAD) == 3
    entry = await erase(store, bus, run="run-0")
    texts = [one.value or b"" for topic in ("runs", "dead") for one in [m async for m in bus.read(topic)]]
    assert NEEDLE.encode() not in b"".join(texts) and entry.body["removed"]["dead letters"] == 1
    assert entry.body["left"] == {"dead letters that do not say whose they are": 1}
    done = await worked(store, untouched)
    assert (done.count(record.ERASED), done.count(record.DEAD)) == (2, 2)
    assert await sound(store, bus) == []


class Slow(stores.MemoryStore):
    """A store that has every write sent to it once more, later: a request that its client gave up, still under way."""

    def __init__(self):
        super().__init__()
        self.sent = []

    async def put(self, key, body):
        self.sent.append(lambda: super(Slow, self).put(key, body))
        return await super().put(key, body)

    async def compare_and_set(self, key, body, etag, *, guard=None):
        self.sent.append(lambda: super(Slow, self).compare_and_set(key, body, etag))
        return await super().compare_and_set(key, body, etag, guard=guard)

    async def land(self):
        late, self.sent = self.sent, []
        for write in late:
            with contextlib.suppress(errors.PreconditionFailed):
                await write()


@pytest.mark.parametrize("named", [{"run": "run-0"}, {"rollout": "conv-a"}, {"subject": "anna"}])
async def test_writes_that_were_given_up_and_land_after_an_erasure_bring_nothing_back(named, monkeypatch):
    store, bus = await kept(Slow())
    await rebuild.Rebuild(store, bus, P, M, "side").build(rebuild.setup_of(None), reason="try")
    shown = [await revisions.Reader(store).at(P, M, side=side) for side in (None, "side")]
    large = made.data(
        0, rollout="conv-a", record=made.payload(5, text=f"{NEEDLE} {'x' * 2_000_000}"), subject="anna"
    )
    await bus.produce(
        [record.message_of(envelope.of_run({**large, "attempt": 2}, source="/test"), "k", "runs")]
    )
    assert (await worked(store, bus)).count(record.DEAD) == 1
    assert [one.reason for one in await dead.read_all(bus)] == ["event_too_large"]
    entry = await erase(store, bus, **named)
    await store.land()
    await worked(store, bus)
    assert await sound(store) == []
    for one in shown:
        with pytest.raises(errors.Erased):
            await revisions.Reader(store).load(P, M, one.number, one.sha256)
    there = clock.now()
    for days in (1, 4, 8):
        monkeypatch.setattr(clock, "now", lambda days=days: there + dt.timedelta(days=days))
        entry = await eraser.Eraser(store, bus, P).carry_on(str(entry.body["id"]))
        await worked(store, bus)
    assert entry.body["state"] == erasures.DONE
    assert holders(store) == [] and await sound(store) == []


class Standing(stores.MemoryStore):
    """A store before whose next pack or record its writer stands still until `go`."""

    def __init__(self):
        super().__init__()
        self.stands, self.go = asyncio.Event(), None

    async def _stand(self, key, kind):
        if self.go is not None and f"/{kind}/" in key:
            go, self.go = self.go, None
            self.stands.set()
            await go.wait()

    async def put(self, key, body):
        await self._stand(key, keys.PACKS)
        return await super().put(key, body)

    async def compare_and_set(self, key, body, etag, *, guard=None):
        await self._stand(key, keys.RECORDS)
        return await super().compare_and_set(key, body, etag, guard=guard)


async def test_the_second_date_waits_for_what_somebody_who_stood_still_has_put(monkeypatch):
    store, bus = await kept(Standing())
    await Producer(store, bus).publish([made.data(11, rollout="conv-c")], source="/test")
    await record.RecordStage(store, bus).process([one async for one in bus.read("runs")])
    go = store.go = asyncio.Event()
    standing = asyncio.create_task(consolidate.ConsolidateStage(store, bus).work(P, M))
    await store.stands.wait()
    entry = await erase(store, bus, run="run-0")
    there, hours = clock.now(), 0
    monkeypatch.setattr(clock, "now", lambda: there + dt.timedelta(hours=hours))
    hours = 50
    go.set()
    await standing
    assert holders(store) == [keys.PACKS]
    for hours, state in ((74, erasures.UNREACHABLE), (121, erasures.UNREACHABLE), (123, erasures.DONE)):
        entry = await eraser.Eraser(store, bus, P).carry_on(str(entry.body["id"]))
        assert entry.body["state"] == state, hours
    assert holders(store) == []


async def test_a_stage_that_stood_still_until_an_erasure_was_done_puts_no_record_any_more(monkeypatch):
    store, bus = await kept(Standing())
    again = made.data(0, rollout="conv-a", attempt=2, record=made.payload(0, text=NEEDLE), subject="anna")
    await Producer(store, bus).publish([again], source="/test")
    go = store.go = asyncio.Event()
    messages = [one async for one in bus.read("runs")]
    standing = asyncio.create_task(record.RecordStage(store, bus).process(messages))
    await store.stands.wait()
    entry = await erase(store, bus, run="run-0")
    there = clock.now()
    for days in (1, 4, 8):
        monkeypatch.setattr(clock, "now", lambda days=days: there + dt.timedelta(days=days))
        entry = await eraser.Eraser(store, bus, P).carry_on(str(entry.body["id"]))
    assert entry.body["state"] == erasures.DONE
    go.set()
    with pytest.raises(errors.CommitTooLate):
        await standing
    assert holders(store) == []
    # From the start it reads the head anew, which says that the run is erased.
    assert (await worked(store, bus)).count(record.ERASED) == 2
    assert holders(store) == [] and await sound(store) == []


async def test_rollouts_past_their_days_are_erased_and_a_replay_brings_none_back(monkeypatch):
    store, bus = await kept()
    ended = dt.datetime.fromisoformat(made.moment(7))
    monkeypatch.setattr(clock, "now", lambda: ended + dt.timedelta(days=30, minutes=1))
    past = [one async for one in retention.due(store, P, days=30)]
    assert [one.rollout for one in past] == ["conv-a"]
    assert [one async for one in retention.due(store, P, days=31)] == []
    one = eraser.Eraser(store, bus, P)
    entry = await one.begin_retention(retention.targets(past), days=30)
    # Whoever dies here has asked for it: the next one goes on, and asks for nothing twice.
    assert eraser.whole_rollouts_of(await eraser.unfinished(store, P)) == {(M, "conv-a")}
    await one.carry_on(str(entry.body["id"]))
    assert holders(store) == [] and [one async for one in retention.due(store, P, days=30)] == []
    await worked(store, bus, events())
    assert holders(store) == [] and await sound(store) == []
