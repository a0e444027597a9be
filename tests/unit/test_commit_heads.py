"""Heads, marks and revisions by number: what each outcome of a write means, and what survives a move."""

from __future__ import annotations

import json

import pytest

from runlore import clock, errors
from runlore.commit import heads, keys, marks, packs, pages, revisions, rollouts
from runlore.testing import stores

FMT = "runlore.test/1"
KEY = "acme/memories/00/support.json"


class Scripted(stores.MemoryStore):
    """A store whose next conditional writes end as told: `(error, landed)` or None."""

    def __init__(self, *script):
        super().__init__()
        self.script = list(script)
        self.writes = 0

    async def compare_and_set(self, key, body, etag, *, guard=None):
        self.writes += 1
        told = self.script.pop(0) if self.script else None
        if told is None:
            return await super().compare_and_set(key, body, etag, guard=guard)
        error, landed = told
        if landed:
            await super().compare_and_set(key, body, etag, guard=guard)
        raise error


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    async def at_once(seconds):
        return None

    monkeypatch.setattr(clock, "sleep", at_once)


async def moved(store, changes):
    head = await heads.read(store, KEY, fmt=FMT)
    return await heads.move(store, head, changes, fmt=FMT)


async def test_a_409_is_sent_again_until_it_lands_or_the_tries_end():
    conflict = (errors.WriteConflict("409"), False)
    store = Scripted(*[conflict] * 3)
    assert (await moved(store, {"a": 1})).counter == 1 and store.writes == 4
    store = Scripted(*[conflict] * 100)
    with pytest.raises(errors.HeadMoved):
        await moved(store, {"a": 1})
    assert store.writes == heads.CONFLICT_RETRIES_MAX and store.body(KEY) is None


@pytest.mark.parametrize("error", [errors.PreconditionFailed("412"), errors.OutcomeUnknown("lost")])
@pytest.mark.parametrize("landed", [False, True])
async def test_a_412_or_a_lost_reply_is_never_sent_again_but_read_again(error, landed):
    store = Scripted((error, landed))
    with pytest.raises(errors.HeadMoved):
        await moved(store, {"a": 1})
    assert store.writes == 1
    assert (await heads.read(store, KEY, fmt=FMT)).counter == int(landed)


async def test_fields_that_this_version_does_not_know_survive_every_move():
    store = stores.MemoryStore()
    await store.put(KEY, json.dumps({"format": FMT, "counter": 7, "future": {"x": [1]}, "a": 1}).encode())
    head = await moved(store, {"a": 2})
    head = await heads.move(store, head, {"b": 3}, fmt=FMT)
    body = json.loads(store.body(KEY))
    assert (
        body["future"] == {"x": [1]}
        and (body["a"], body["b"], body["counter"]) == (2, 3, 9)
        and head.counter == 9
    )


async def test_a_head_moves_only_from_the_version_that_was_read():
    store = stores.MemoryStore()
    old = await heads.read(store, KEY, fmt=FMT)
    await moved(store, {"a": 1})
    with pytest.raises(errors.HeadMoved):
        await heads.move(store, old, {"a": 2}, fmt=FMT)
    assert json.loads(store.body(KEY))["a"] == 1


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"format": "runlore.test/2", "counter": 1}', errors.Fatal),
        (b'{"counter": 1}', errors.Corrupt),
        (b"{", errors.Corrupt),
        (b"[]", errors.Corrupt),
        (b"\xff", errors.Corrupt),
    ],
)
async def test_a_newer_or_broken_head_is_refused_and_not_written_over(body, error):
    store = stores.MemoryStore()
    await store.put(KEY, body)
    with pytest.raises(error):
        await moved(store, {})
    assert store.body(KEY) == body


# --- marks ------------------------------------------------------------------------------------------------


async def test_a_mark_whose_reply_was_lost_is_put_again_under_another_name():
    store = Scripted((errors.OutcomeUnknown("lost"), True), (errors.WriteConflict("409"), False))
    store.put_if_absent = lambda key, body: store.compare_and_set(key, body, None)
    key = await marks.put(store, "acme", "support", ["b", "a", "b"])
    standing = await marks.read_all(store, "acme", "support", marks_max=10)
    assert len(standing) == 2 and key in {mark.key for mark in standing}
    assert {mark.rollouts for mark in standing} == {("a", "b")}
    assert await marks.marked(store) == {("acme", "support")}
    assert len(await marks.read_all(store, "acme", "support", marks_max=1)) == 1
    await marks.delete(store, standing)
    await marks.delete(store, standing)
    assert await marks.marked(store) == set()


async def test_marks_of_projects_and_memories_are_apart_and_no_folder_of_ours_is_a_project():
    store = stores.MemoryStore()
    for project, memory in (("a", "m"), ("a", "n"), ("b", "m")):
        await marks.put(store, project, memory, ["r"])
    await store.put(keys.dead_letter("0" * 16), b"x")
    assert await marks.marked(store) == {("a", "m"), ("a", "n"), ("b", "m")}
    assert await marks.projects(store) == ["a", "b"]
    assert len(await marks.waiting(store)) == 3


async def test_a_broken_mark_is_corrupt():
    store = stores.MemoryStore()
    await store.put(keys.mark("a", "m", "0"), b"{}")
    with pytest.raises(errors.Corrupt):
        await marks.read_all(store, "a", "m", marks_max=10)


# --- records ----------------------------------------------------------------------------------------------


def record(text, received="0" * 32):
    return rollouts.Record({"run": "r", "attempt": 1, "received": received}, json.dumps({"input": [text]}))


async def test_a_record_is_put_once_found_again_and_never_replaced():
    store = Scripted((errors.OutcomeUnknown("lost"), True), (errors.WriteConflict("409"), False))
    store.put_if_absent = lambda key, body: store.compare_and_set(key, body, None)
    key = keys.record("acme", "support", "conv", "r", 1)
    there, put = await rollouts.put_record(store, key, record("a"), began=clock.now())
    assert there.line == record("a").line and not put
    # A better redaction of the same bytes is the same run; other bytes are not.
    assert (await rollouts.put_record(store, key, record("redacted otherwise"), began=clock.now()))[
        0
    ].line == record("a").line
    with pytest.raises(errors.RunConflict):
        await rollouts.put_record(store, key, record("b", received="1" * 32), began=clock.now())
    assert rollouts.decode(key, store.body(key)) == record("a")
    assert await rollouts.recorded(store, "acme", "support", "conv") == {"r": {1: key}}


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"{}\n", b'{"format": "runlore.record/9"}\n{}\n', b"[]\n{}\n", b"\xff\n"]
)
def test_what_is_no_record_is_corrupt(raw):
    with pytest.raises(errors.Corrupt):
        rollouts.decode("k", raw)


# --- revisions by number ------------------------------------------------------------------------------------


async def written(store, reader, parent, text, *, kept=b""):
    maps = {name: parent.map(name) if parent else pages.PagedMap(None, None) for name in revisions.MAPS}
    raw = text.encode()
    maps["files"].set("base/MEMORY.md", {"sha256": packs.name(raw)})
    live = frozenset({packs.name(raw), packs.name(kept)} if kept else {packs.name(raw)})
    contents = (
        {packs.name(raw): raw} if parent or not kept else {packs.name(raw): raw, packs.name(kept): kept}
    )
    draft = revisions.Draft(maps, contents, live, {"reason": "runs"})
    return await revisions.write(store, reader, "acme", "support", parent=parent, draft=draft)


async def test_a_revision_is_found_by_number_though_writers_raced_for_it():
    store = stores.MemoryStore()
    reader = revisions.Reader(store)
    head = await reader.head("acme", "support")
    with pytest.raises(errors.NotFound):
        await reader.at("acme", "support")
    parent, line = None, []
    for number in range(1, 6):
        # The loser of each race wrote its manifest too, and no head ever named it.
        await written(store, reader, parent, f"loser {number}")
        parent = await written(store, reader, parent, f"winner {number}")
        changes = {"revision": parent.number, "manifest": parent.sha256}
        head = await heads.move(store, head, changes, fmt=revisions.HEAD_FORMAT)
        line.append(parent.sha256)
    await written(store, reader, parent, "ahead of the head")
    fresh = revisions.Reader(store)
    for number in range(1, 6):
        found = await fresh.at("acme", "support", number)
        assert found.sha256 == line[number - 1]
        assert found.text(found.map("files").get("base/MEMORY.md")["sha256"]) == f"winner {number}"
    for number in (0, -1, 6, 10**9):
        with pytest.raises(errors.NotFound):
            await fresh.at("acme", "support", number)
    assert [body["revision"] async for body in fresh.line("acme", "support")] == [5, 4, 3, 2, 1]


async def test_a_revision_whose_objects_are_changed_or_gone_is_corrupt():
    store = stores.MemoryStore()
    reader = revisions.Reader(store)
    one = await written(store, reader, None, "text")
    manifest = keys.manifest("acme", "support", 1, one.sha256)
    pack = keys.pack("acme", one.body["packs"][0]["sha256"])
    for key in (manifest, pack):
        body = store.body(key)
        for broken in (body[:-1], body + b" ", None):
            if broken is None:
                await store.delete(key)
            else:
                await store.put(key, broken)
            with pytest.raises(errors.Corrupt):
                await revisions.Reader(store).load("acme", "support", 1, one.sha256)
        await store.put(key, body)
    assert (await revisions.Reader(store).load("acme", "support", 1, one.sha256)).number == 1


async def test_a_reader_keeps_at_most_its_share_of_packs(monkeypatch):
    monkeypatch.setattr(revisions, "CACHE_BYTES_MAX", 3000)
    store = stores.MemoryStore()
    reader = revisions.Reader(store)
    parent = None
    for number in range(30):
        text = "".join(packs.name(f"{number}/{at}".encode()) for at in range(20))
        parent = await written(store, reader, parent, text)
        assert reader._bytes == sum(
            len(pack.raw) + revisions.INDEX_ENTRY_BYTES * len(pack.index) for pack in reader._packs.values()
        )
        assert reader._bytes <= 3000 or len(reader._packs) == 1
    assert (await reader.load("acme", "support", 30, parent.sha256)).number == 30


async def test_a_pack_may_leave_the_cache_while_another_of_the_same_revision_is_read(monkeypatch):
    store = stores.MemoryStore()
    writer = revisions.Reader(store)
    kept = bytes(range(256)) * 8
    one = await written(store, writer, None, "first", kept=kept)
    two = await written(store, writer, one, "second, in a pack of its own", kept=kept)
    assert len(two.body["packs"]) == 2
    reader = revisions.Reader(store)
    await reader.load("acme", "support", 1, one.sha256)
    read = store.get_many

    async def another_reader_fills_the_cache(wanted):
        found = await read(wanted)
        monkeypatch.setattr(revisions, "CACHE_BYTES_MAX", 1)
        reader.keep(packs.encode({packs.name(b"of others"): packs.compress(b"of others")}))
        return found

    monkeypatch.setattr(store, "get_many", another_reader_fills_the_cache)
    loaded = await reader.load("acme", "support", 2, two.sha256)
    assert loaded.frames.content(packs.name(kept)) == kept


async def test_a_reader_keeps_nothing_of_what_the_newest_revision_does_not_name():
    store = stores.MemoryStore()
    reader = revisions.Reader(store)
    parent = None
    for number in range(40):
        parent = await written(store, reader, parent, f"text {number} " * 200)
        assert reader._packs.keys() == {pack["sha256"] for pack in parent.body["packs"]}
    assert (await reader.load("acme", "support", 40, parent.sha256)).number == 40
