"""What every object store must do, whichever it is. Goal: the fake may be trusted in place of the real one.

Method: the same assertions for each adapter; races with tasks, with threads that each run a loop, and,
where the adapter allows it, with real processes, some of them killed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runlore import errors
from runlore.testing.stores import MemoryStore


async def _keys(store, prefix=""):
    return [row.key async for row in store.list(prefix)]


async def _put_all(store, keys, body=b""):
    for at in range(0, len(keys), 32):
        await asyncio.gather(*(store.put(key, body) for key in keys[at : at + 32]))


def _only_with_races(factory):
    if not factory.races:
        pytest.skip(f"{factory.adapter} compares, then writes, without a lock: two may win")


# --- one object -----------------------------------------------------------------------------------


async def test_a_missing_key_is_none_to_get_and_nothing_to_delete(store):
    assert await store.get("a/b") is None
    await store.delete("a/b")
    await store.compare_and_delete("a/b", "0" * 64)


@pytest.mark.parametrize(
    "body", [b"", b"\x00\xff\n", b"x" * (5 * 1024 * 1024)], ids=["empty", "binary", "large"]
)
async def test_a_body_comes_back_byte_for_byte(store, body):
    etag = await store.put("a/b", body)
    stored = await store.get("a/b")
    assert stored.body == body
    assert stored.etag == etag


async def test_put_replaces_what_was_there(store):
    first = await store.put("k", b"1")
    second = await store.put("k", b"2")
    assert first != second
    assert (await store.get("k")).body == b"2"


async def test_an_etag_names_the_body_and_not_the_write(store):
    first = await store.put("k", b"same")
    assert await store.put("k", b"same") == first
    assert await store.put("k", b"other") != first


async def test_get_many_keeps_the_order_asked_for_and_tells_what_is_missing(store):
    await asyncio.gather(*(store.put(f"n/{number:03d}", b"%d" % number) for number in range(300)))
    wanted = [f"n/{number:03d}" for number in range(310, -1, -1)]
    found = await store.get_many(wanted)
    bodies = [stored.body if stored else None for stored in found]
    assert bodies == [None] * 11 + [b"%d" % number for number in range(299, -1, -1)]
    assert await store.get_many([]) == []


async def test_delete_many_removes_each_key_that_is_there_and_nothing_else(store):
    await _put_all(store, [f"n/{number:04d}" for number in range(120)])
    await store.delete_many([f"n/{number:04d}" for number in range(100)] + ["n/missing", "other"])
    assert await _keys(store) == [f"n/{number:04d}" for number in range(100, 120)]
    await store.delete_many(["n/0100"])
    await store.delete_many([])
    with pytest.raises(errors.InvalidId):
        await store.delete_many(["n/0101", "../x"])
    assert len(await _keys(store)) == 19, "a bad key is refused before anything is deleted"


async def test_an_overwritten_or_deleted_object_is_seen_at_once_by_everybody(make_store):
    one, two = make_store(), make_store()
    await one.put("k", b"1")
    assert (await two.get("k")).body == b"1"
    await two.delete("k")
    assert await one.get("k") is None


async def test_a_range_is_that_part_of_the_body_and_ends_where_the_body_ends(store):
    await store.put("a/b", b"0123456789")
    assert await store.get_range("a/b", 2, 3) == b"234"
    assert await store.get_range("a/b", 0, 10) == b"0123456789"
    assert await store.get_range("a/b", 8, 1 << 60) == b"89"
    assert await store.get_range("a/b", 10, 5) == b""
    assert await store.get_range("a/b", 3, 0) == b""
    assert await store.get_range("missing", 0, 1) is None


async def test_a_tail_is_the_end_of_the_body_and_all_of_a_shorter_one(store):
    await store.put("a/b", b"0123456789")
    assert await store.get_tail("a/b", 3) == b"789"
    assert await store.get_tail("a/b", 1 << 60) == b"0123456789"
    assert await store.get_tail("missing", 1) is None
    await store.put("empty", b"")
    assert await store.get_tail("empty", 8) == b""


# --- conditions -----------------------------------------------------------------------------------


async def test_put_if_absent_refuses_a_key_that_is_there_even_with_the_same_body(store):
    await store.put_if_absent("k", b"1")
    with pytest.raises(errors.PreconditionFailed):
        await store.put_if_absent("k", b"1")
    with pytest.raises(errors.PreconditionFailed):
        await store.compare_and_set("k", b"2", None)
    assert (await store.get("k")).body == b"1"


async def test_compare_and_set_moves_only_the_version_that_was_read(store):
    first = await store.compare_and_set("k", b"1", None)
    second = await store.compare_and_set("k", b"2", first)
    with pytest.raises(errors.PreconditionFailed):
        await store.compare_and_set("k", b"3", first)
    assert (await store.get("k")) == (await store.get_many(["k"]))[0]
    assert (await store.get("k")).etag == second


@pytest.mark.parametrize("present", [False, True])
async def test_a_guard_that_raises_keeps_a_write_from_being_sent(store, present):
    etag = await store.put("k", b"1") if present else None

    def too_late():
        raise errors.CommitTooLate

    with pytest.raises(errors.CommitTooLate):
        await store.compare_and_set("k", b"2", etag, guard=too_late)
    found = await store.get("k")
    assert (found.body if found else None) == (b"1" if present else None)
    called = []
    await store.compare_and_set("k", b"2", etag, guard=lambda: called.append(1))
    assert (await store.get("k")).body == b"2" and called == [1]


async def test_settle_returns_where_nobody_commits(store):
    await store.settle()
    await store.put("k", b"1")
    await store.settle()


async def test_compare_and_set_of_a_key_that_is_gone_is_refused(store):
    etag = await store.put("k", b"1")
    await store.delete("k")
    with pytest.raises(errors.PreconditionFailed):
        await store.compare_and_set("k", b"2", etag)
    assert await store.get("k") is None


async def test_compare_and_delete_removes_only_the_version_that_was_read(store):
    first = await store.put("k", b"1")
    await store.put("k", b"2")
    with pytest.raises(errors.PreconditionFailed):
        await store.compare_and_delete("k", first)
    second = (await store.get("k")).etag
    await store.compare_and_delete("k", second)
    assert await store.get("k") is None


async def test_a_deleted_key_may_be_put_again(store):
    await store.put_if_absent("k", b"1")
    await store.delete("k")
    await store.put_if_absent("k", b"2")
    assert (await store.get("k")).body == b"2"


async def test_a_refused_write_leaves_nothing_behind(store):
    etag = await store.put("k", b"1")
    for write in (
        store.put_if_absent("k", b"2"),
        store.compare_and_set("k", b"2", "no such etag"),
        store.compare_and_delete("k", "no such etag"),
    ):
        with pytest.raises(errors.PreconditionFailed):
            await write
    assert await _keys(store) == ["k"]
    assert (await store.get("k")).etag == etag


# --- races ----------------------------------------------------------------------------------------


async def _try_put(store, key, body):
    try:
        await store.put_if_absent(key, body)
        return body
    except errors.PreconditionFailed:
        return None


async def test_of_racing_put_if_absent_exactly_one_wins_and_its_body_stays(make_store):
    _only_with_races(make_store)
    stores = [make_store() for _ in range(4)]
    for round_ in range(3 if make_store.environment else 20):  # A lost race may cost a real server a second.
        key = f"r/{round_}"
        results = await asyncio.gather(*(_try_put(stores[n % 4], key, b"%d" % n) for n in range(16)))
        winners = [body for body in results if body is not None]
        assert len(winners) == 1
        assert (await stores[0].get(key)).body == winners[0]


async def _add_one(store, key):
    while True:
        found = await store.get(key)
        value = int(found.body) if found else 0
        try:
            return await store.compare_and_set(key, b"%d" % (value + 1), found.etag if found else None)
        except errors.PreconditionFailed:
            await asyncio.sleep(0)


async def test_a_counter_moved_by_many_tasks_loses_no_step(make_store):
    _only_with_races(make_store)
    stores = [make_store() for _ in range(3)]

    async def count(number):
        for _ in range(10):
            await _add_one(stores[number % 3], "counter")

    await asyncio.gather(*(count(number) for number in range(9)))
    assert (await stores[0].get("counter")).body == b"90"


def test_a_counter_moved_by_many_threads_loses_no_step(make_store):
    _only_with_races(make_store)
    stores = [make_store() for _ in range(4)]

    async def count(store):
        for _ in range(25):
            await _add_one(store, "counter")

    threads = [threading.Thread(target=lambda s=store: asyncio.run(count(s))) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asyncio.run(stores[0].get("counter")).body == b"100"


async def test_compare_and_delete_never_takes_a_newer_body_with_it(make_store):
    _only_with_races(make_store)
    # A deleter that read version n races with a writer that moves it on: exactly one of them is refused.
    one, two = make_store(), make_store()
    for round_ in range(50):
        key = f"d/{round_}"
        etag = await one.put(key, b"old")
        outcomes = await asyncio.gather(
            one.compare_and_delete(key, etag), two.compare_and_set(key, b"new", etag), return_exceptions=True
        )
        refused = [isinstance(outcome, errors.PreconditionFailed) for outcome in outcomes]
        assert sorted(refused) == [False, True]
        found = await one.get(key)
        assert (found.body if found else None) == (None if refused[1] else b"new")


async def test_a_plain_put_during_a_compare_and_set_is_never_lost_unnoticed(make_store):
    _only_with_races(make_store)
    # Either order is right: the put last, or the put first and the compare-and-set refused.
    one, two = make_store(), make_store()
    for round_ in range(50):
        key = f"p/{round_}"
        etag = await one.put(key, b"old")
        _, moved = await asyncio.gather(
            one.put(key, b"put"), two.compare_and_set(key, b"cas", etag), return_exceptions=True
        )
        assert (await one.get(key)).body == b"put", moved


async def test_a_reader_never_sees_part_of_a_body(make_store):
    one, two = make_store(), make_store()
    bodies = [bytes([number]) * 200_000 for number in range(8)]
    whole = {hashlib.sha256(body).digest() for body in bodies}
    await one.put("k", bodies[0])
    writing = True

    async def write():
        nonlocal writing
        for _ in range(5):
            for body in bodies:
                await one.put("k", body)
        writing = False

    async def read():
        while writing:
            assert hashlib.sha256((await two.get("k")).body).digest() in whole
            await asyncio.sleep(0)

    await asyncio.gather(write(), read(), read())


# --- lists ----------------------------------------------------------------------------------------


async def test_a_list_is_in_order_of_keys_where_a_folder_and_a_file_begin_alike(make_store, store):
    # '-' and '.' sort before '/', digits and letters after it: an order by name of file would differ.
    keys = ["a-b/c", "a.b", "a/b", "a/b-c", "ab/c", "a0", "a_", "b"]
    for key in keys:
        await store.put(key, b"")
    assert await _keys(store) == make_store.sorted(keys)
    assert await _keys(store, "a/") == ["a/b", "a/b-c"]
    assert await _keys(store, "a") == make_store.sorted(keys)[:-1]
    assert await _keys(store, "a/b-") == ["a/b-c"]
    assert await _keys(store, "c") == []


async def test_a_list_is_complete_beyond_a_thousand_keys(store):
    keys = [f"many/{number % 7}/{number:05d}" for number in range(1100)]
    await _put_all(store, keys)
    assert await _keys(store, "many/") == sorted(keys)


async def test_a_row_of_a_list_says_what_a_get_would(store):
    etag = await store.put("a/b", b"body")
    (row,) = [row async for row in store.list("a/")]
    assert (row.key, row.etag, row.size) == ("a/b", etag, 4)
    assert row.modified > 1_600_000_000


async def test_a_list_bears_keys_that_come_and_go_while_it_is_read(store):
    await _put_all(store, [f"l/{number:04d}" for number in range(600)])
    seen = []
    async for row in store.list("l/"):
        if not seen:
            await asyncio.gather(*(store.delete(f"l/{number:04d}") for number in range(300, 600, 2)))
            await store.put("l/0000-new", b"")
        seen.append(row.key)
    stayed = {f"l/{number:04d}" for number in range(600) if number < 300 or number % 2}
    assert stayed <= set(seen)
    assert seen == sorted(set(seen))


async def test_a_list_that_is_left_early_harms_nothing(store):
    await _put_all(store, [f"l/{number:04d}" for number in range(300)])
    rows = store.list("l/")
    assert (await anext(rows)).key == "l/0000"
    await rows.aclose()
    await store.put("l/x", b"")


async def test_children_are_the_distinct_next_parts_that_hold_something(make_store, store):
    for key in ("p/a/1", "p/a/2", "p/a-b", "p/c/d/e", "q/x"):
        await store.put(key, b"")
    assert await store.children("") == ["p", "q"]
    assert await store.children("p/") == ["a", "a-b", "c"]
    assert await store.children("nothing/") == []
    await store.delete("p/c/d/e")
    # SeaweedFS forgets an empty folder only some time later.
    forgotten = {"c"} if make_store.adapter == "seaweedfs" else set()
    assert set(await store.children("p/")) - forgotten == {"a", "a-b"}


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_sequence_of_calls_ends_as_it_does_in_a_dict(make_store, data):
    store, model = make_store(), {}
    part = st.sampled_from(["a", "b", "a-b", "a.b", "0"])
    key = st.builds(lambda parts: "/".join([*parts, "leaf"]), st.lists(part, max_size=2))
    steps = st.lists(
        st.tuples(st.sampled_from(["put", "cas", "absent", "delete"]), key, st.binary(max_size=2))
    )

    async def play():
        for existing in await _keys(store):
            await store.delete(existing)
        for what, name, body in data.draw(steps):
            if what == "put":
                await store.put(name, body)
                model[name] = body
            elif what == "delete":
                await store.delete(name)
                model.pop(name, None)
            elif what == "absent" and name not in model:
                await store.put_if_absent(name, body)
                model[name] = body
            elif what == "cas" and name in model:
                await store.compare_and_set(name, body, (await store.get(name)).etag)
                model[name] = body
        assert await _keys(store) == make_store.sorted(model)
        assert [found.body for found in await store.get_many(sorted(model))] == [
            model[k] for k in sorted(model)
        ]

    asyncio.run(play())


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    ["", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", ".tmp/x", "a/.b", "A", "a b", "ä", "a\n", "a\0",
     "a\\b", "x" * 256, "/".join(["x" * 200] * 3)],
)  # fmt: skip
async def test_a_key_that_climbs_or_that_some_store_could_not_hold_is_refused(store, key):
    for call in (store.get, store.delete):
        with pytest.raises(errors.InvalidId):
            await call(key)
    with pytest.raises(errors.InvalidId):
        await store.get_range(key, 0, 1)
    with pytest.raises(errors.InvalidId):
        await store.get_tail(key, 1)
    for write in (store.put, store.put_if_absent):
        with pytest.raises(errors.InvalidId):
            await write(key, b"")
    with pytest.raises(errors.InvalidId):
        await store.compare_and_set(key, b"", "etag")


@pytest.mark.parametrize("prefix", ["/", "../", "a/../", ".", ".tmp/", "A/", "a//"])
async def test_a_prefix_that_climbs_is_refused(store, prefix):
    with pytest.raises(errors.InvalidId):
        await _keys(store, prefix)
    with pytest.raises(errors.InvalidId):
        await store.children(prefix)


async def test_no_key_is_a_folder_of_another(make_store, store):
    if make_store.environment:
        pytest.skip(
            "S3 has no folders; callers never make such keys, because a directory could not hold them"
        )
    await store.put("a/b", b"")
    for key in ("a", "a/b/c"):
        with pytest.raises(errors.InvalidId):
            await store.put(key, b"")
        with pytest.raises(errors.InvalidId):
            await store.put_if_absent(key, b"")
    assert await _keys(store) == ["a/b"]


# --- what only a store that outlives its process can do -------------------------------------------


def _only_durable(factory):
    if not factory.durable:
        pytest.skip(f"the {factory.adapter} store ends with its process")


async def test_everything_is_there_after_a_restart(make_store):
    _only_durable(make_store)
    first = make_store()
    etag = await first.put("a/b", b"1")
    await first.close()
    second = make_store()
    assert (await second.get("a/b")).etag == etag
    assert await _keys(second) == ["a/b"]


@pytest.mark.process
def test_a_counter_moved_by_many_processes_loses_no_step(make_store):
    _only_with_races(make_store)
    _only_durable(make_store)
    processes = [make_store.process("count", "counter", 50) for _ in range(4)]
    assert [make_store.acknowledged(process) for process in processes] == [["done"]] * 4
    assert asyncio.run(make_store().get("counter")).body == b"200"


@pytest.mark.process
def test_of_racing_processes_exactly_one_wins_each_key(make_store):
    _only_with_races(make_store)
    _only_durable(make_store)
    processes = {name: make_store.process("race", name, 200) for name in ("p", "q", "r")}
    won = {name: make_store.acknowledged(process)[0] for name, process in processes.items()}
    assert sorted(number for numbers in won.values() for number in numbers) == list(range(200))
    store = make_store()
    for name, numbers in won.items():
        bodies = asyncio.run(store.get_many([f"race/{number:04d}" for number in numbers]))
        assert {stored.body for stored in bodies} <= {name.encode()}


@pytest.mark.process
def test_a_process_killed_at_any_point_loses_nothing_it_was_told_and_tears_nothing(make_store):
    _only_durable(make_store)
    last = 0
    for kill in range(8):
        process = make_store.process("write_for_ever")
        for _ in range(3 + kill):
            process.stdout.readline()
        process.kill()
        said = make_store.acknowledged(process)
        last = max([last + 3 + kill, *said])
        _check_after_kill(make_store(), last)
        last = int(asyncio.run(make_store().get("head")).body.split()[0])


def _check_after_kill(store, acknowledged_last):
    async def check():
        head = int((await store.get("head")).body.split()[0])
        # What was said is there; at most the one step that was under way came on top.
        assert acknowledged_last <= head <= acknowledged_last + 1
        keys = await _keys(store, "objects/")
        assert keys[:head] == [f"objects/{number:06d}" for number in range(1, head + 1)]
        for number, stored in enumerate(await store.get_many(keys), 1):
            assert stored.body == b"%d %s" % (number, b"x" * 50_000)
        # A put that the kill separated from its head must not stop the next process.
        for key in keys[head:]:
            await store.delete(key)

    asyncio.run(check())


# --- what only the directory can do wrong ---------------------------------------------------------


@pytest.fixture
def directory(make_store):
    if make_store.adapter != "directory":
        pytest.skip("about files")
    return make_store()


async def test_old_temporary_files_are_swept_and_young_ones_left_to_their_writers(directory):
    temp = directory.root / ".tmp"
    temp.mkdir(parents=True)
    (temp / "old").write_bytes(b"")
    os.utime(temp / "old", (1, 1))
    (temp / "young").write_bytes(b"")
    await directory.put("k", b"")
    assert [path.name for path in temp.iterdir()] == ["young"]


async def test_reading_makes_no_file(directory):
    assert await directory.get("a/b") is None
    assert await _keys(directory) == []
    await directory.delete("a/b")
    assert not directory.root.exists()


async def test_empty_folders_can_be_pruned_under_a_writer(make_store, directory):
    other = make_store()
    await directory.put("a/b/c", b"")
    await other.delete("a/b/c")
    assert await other.prune() == 2
    assert not (directory.root / "a").exists()
    await directory.put_if_absent("a/b/c", b"again")
    assert (await other.get("a/b/c")).body == b"again"


@pytest.mark.parametrize(
    ("number", "raised"),
    [("ENOSPC", errors.StoreUnavailable), ("EIO", errors.StoreUnavailable), ("EROFS", errors.Blocked)],
)
async def test_a_failing_disk_before_the_name_is_given_means_that_nothing_landed(
    directory, monkeypatch, number, raised
):
    import errno

    await directory.put("k", b"1")

    def fail(*_):
        raise OSError(getattr(errno, number), number)

    monkeypatch.setattr(os, "write", fail)
    for write in (directory.put("k", b"2"), directory.put_if_absent("new", b"2")):
        with pytest.raises(raised) as caught:
            await write
    monkeypatch.undo()
    assert caught.value.hint or number == "EIO"
    assert await _keys(directory) == ["k"]
    assert (await directory.get("k")).body == b"1"
    assert list((directory.root / ".tmp").iterdir()) == []


async def test_a_failing_sync_after_the_name_was_given_is_an_unknown_outcome(tmp_path, monkeypatch):
    from runlore.store import directory as module

    store = module.DirectoryStore(tmp_path / "s")
    etag = await store.put("k", b"1")

    def fail(self, folder):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(module.DirectoryStore, "_sync_folder", fail)
    with pytest.raises(errors.OutcomeUnknown):
        await store.compare_and_set("k", b"2", etag)
    assert (await store.get("k")).body == b"2"
    await store.close()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
async def test_the_default_store_syncs_file_and_folders_before_it_returns(tmp_path, monkeypatch):
    from runlore.store import directory as module

    synced = []
    monkeypatch.setattr(module, "_sync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    store = module.DirectoryStore(tmp_path / "s")
    await store.put_if_absent("a/b/c", b"1")
    await store.close()
    root = str(tmp_path / "s")
    assert synced[-1] == f"{root}/a/b"
    assert {str(tmp_path), root, f"{root}/a"} <= set(synced)
    assert any(path.startswith(f"{root}/.tmp/") for path in synced)


async def test_a_file_where_the_folder_should_be_blocks_with_a_message(tmp_path):
    from runlore.store.directory import DirectoryStore

    (tmp_path / "s").write_text("")
    store = DirectoryStore(tmp_path / "s")
    with pytest.raises(errors.Blocked, match="not a folder"):
        await store.put("k", b"")
    assert await store.get("k") is None
    await store.close()


async def test_the_memory_store_shows_what_it_holds():
    store = MemoryStore()
    await store.put("b", b"2")
    await store.put("a", b"1")
    assert store.snapshot() == {"a": b"1", "b": b"2"}
