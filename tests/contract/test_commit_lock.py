"""The directory store's stand-in for a signature's age: a lock from a write's guard until it has its name.

Goal: a process that is stopped between the two is waited for by a sweep, and never passed. Method: a guard that
stops until it is told to go on, in a thread, and `settle` beside it.
"""

from __future__ import annotations

import asyncio
import threading

import pytest

from runlore import errors
from runlore.store import directory


@pytest.mark.parametrize("present", [False, True])
async def test_settle_waits_for_a_write_that_passed_its_guard(tmp_path, present):
    store = directory.DirectoryStore(tmp_path / "store", fsync=False)
    etag = await store.put("a/k", b"1") if present else None
    await store.put("a/other", b"")
    inside, go_on = threading.Event(), threading.Event()

    def guard():
        inside.set()
        assert go_on.wait(10)

    write = asyncio.create_task(store.compare_and_set("a/k", b"2", etag, guard=guard))
    assert await asyncio.to_thread(inside.wait, 10)
    sweep = asyncio.create_task(store.settle())
    await asyncio.sleep(0.2)
    assert not sweep.done()
    go_on.set()
    await sweep
    assert (await store.get("a/k")).body == b"2"
    await write
    await store.close()


async def test_settle_gives_up_on_a_writer_that_never_comes_to_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(directory, "SETTLE_SECONDS_MAX", 0.1)
    store = directory.DirectoryStore(tmp_path / "store", fsync=False)
    inside, go_on = threading.Event(), threading.Event()

    def guard():
        inside.set()
        assert go_on.wait(10)

    write = asyncio.create_task(store.compare_and_set("k", b"1", None, guard=guard))
    assert await asyncio.to_thread(inside.wait, 10)
    with pytest.raises(errors.StoreUnavailable, match=r"\.locks/commit|open for more"):
        await store.settle()
    go_on.set()
    await write
    await store.close()


async def test_writers_do_not_wait_for_each_other(tmp_path):
    store = directory.DirectoryStore(tmp_path / "store", fsync=False)
    both = threading.Barrier(2, timeout=10)
    await store.put("z", b"")
    await asyncio.gather(*(store.compare_and_set(key, b"1", None, guard=both.wait) for key in ("a", "b")))
    await store.close()
