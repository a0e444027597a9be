"""What is saved comes back bit by bit, and equal trees have equal ids. Goal: DESIGN, "Snapshots"; invariant 6.

Method: random trees on a real file system (odd names, links, modes, holes), saved and restored through the
fake store; and single trees for each promise that a random one rarely meets.
"""

# ruff: noqa: ASYNC230 - the loop of a test has nothing else to do.
from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
import tempfile
from pathlib import Path

import pytest
import snaptrees
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runlore import errors
from runlore.snapshots import Snapshots, packs, removing
from runlore.testing.stores import MemoryStore


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def _write(path: Path, body: bytes = b"x", *, mtime: int = 1_600_000_000_000_000_001) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    os.utime(path, ns=(mtime, mtime))


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(tree=snaptrees.TREES)
def test_any_tree_comes_back_bit_by_bit(tree):
    async def play(folder: bytes):
        snaptrees.make(folder + b"/in", tree)
        snapshots = Snapshots(MemoryStore(), "acme", cache_dir=os.fsdecode(folder) + "/cache")
        saved = await snapshots.save(os.fsdecode(folder) + "/in")
        await snapshots.restore(saved.id, os.fsdecode(folder) + "/out")
        assert snaptrees.describe(folder + b"/out") == snaptrees.describe(folder + b"/in")
        # And what came back is the same snapshot, also where the cache answers for the files.
        again = await snapshots.save(os.fsdecode(folder) + "/out", base=saved.ref)
        assert (again.id, again.packs_written) == (saved.id, 0)
        assert (await snapshots.verify(saved.ref)).problems == []

    folder = tempfile.mkdtemp()
    try:
        asyncio.run(play(os.fsencode(folder)))
    finally:
        removing.remove(os.fsencode(folder))


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(tree=snaptrees.TREES, seed=st.integers(0, 9))
def test_equal_trees_have_equal_ids_whatever_the_order_base_or_history(tree, seed):
    def shuffled(entries):
        items = [(k, ("dir", shuffled(v[1]), *v[2:]) if v[0] == "dir" else v) for k, v in entries.items()]
        random.Random(seed).shuffle(items)
        return dict(items)

    async def play(folder):
        snaptrees.make(os.fsencode(folder + "/one"), tree)
        snaptrees.make(os.fsencode(folder + "/two"), shuffled(tree))
        (Path(folder) / "other").mkdir()
        _write(Path(folder) / "other" / "f")
        one = await Snapshots(MemoryStore(), "acme").save(folder + "/one")
        elsewhere = Snapshots(MemoryStore(), "acme", cache_dir=folder + "/cache")
        other = await elsewhere.save(folder + "/other")
        two = await elsewhere.save(folder + "/two", base=other.ref)
        assert (one.id, one.tree, one.content_id) == (two.id, two.tree, two.content_id)

    folder = tempfile.mkdtemp()
    try:
        asyncio.run(play(folder))
    finally:
        removing.remove(os.fsencode(folder))


async def test_a_touched_file_changes_the_tree_and_not_the_content_id(folder):
    _write(folder / "in" / "a" / "f")
    snapshots = Snapshots(MemoryStore(), "acme")
    one = await snapshots.save(folder / "in")
    os.utime(folder / "in" / "a" / "f", ns=(5, 5))
    two = await snapshots.save(folder / "in", base=one.ref)
    assert one.tree != two.tree
    assert one.content_id == two.content_id


async def test_an_empty_directory_is_a_snapshot(folder):
    (folder / "in").mkdir()
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.save(folder / "in")
    await snapshots.restore(saved.id, folder / "out")
    assert snaptrees.describe(folder / "out") == snaptrees.describe(folder / "in")
    assert saved.stats["files"] == 0


async def test_hard_links_share_their_content_and_are_linked_again(folder):
    _write(folder / "in" / "a" / "one", b"body" * 100)
    (folder / "in" / "b").mkdir()
    os.link(folder / "in" / "a" / "one", folder / "in" / "b" / "two")
    snapshots = Snapshots(MemoryStore(), "acme", cache_dir=folder / "cache")
    saved = await snapshots.save(folder / "in")
    assert saved.report["hardlinks"] == [["a/one", "b/two"]]
    await snapshots.restore(saved.id, folder / "out")
    assert os.stat(folder / "out/a/one").st_ino == os.stat(folder / "out/b/two").st_ino
    assert snaptrees.describe(folder / "out") == snaptrees.describe(folder / "in")
    again = await snapshots.save(folder / "out", base=saved.ref)
    assert (again.id, again.stats["files_read"]) == (saved.id, 0)


async def test_holes_stay_holes_and_cost_nothing(folder):
    (folder / "in").mkdir()
    with open(folder / "in" / "sparse", "wb") as file:
        file.write(b"begin")
        file.seek(10 * 1024**3)
        file.write(b"end")
        file.truncate(20 * 1024**3)
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.save(folder / "in")
    assert saved.bytes_written < 10_000
    await snapshots.restore(saved.id, folder / "out")
    status = os.stat(folder / "out" / "sparse")
    assert status.st_size == 20 * 1024**3
    assert status.st_blocks * 512 < 1024**2
    with open(folder / "out" / "sparse", "rb") as file:
        assert file.read(5) == b"begin"
        file.seek(10 * 1024**3)
        assert file.read(4) == b"end\0"


async def test_the_id_of_a_file_with_zeros_does_not_depend_on_how_the_disk_keeps_them(folder):
    body = snaptrees.noise(1, 70_000) + bytes(1_000_000) + snaptrees.noise(2, 10)
    for name, sparse in (("dense", False), ("sparse", True)):
        (folder / name).mkdir()
        with open(folder / name / "f", "wb") as file:
            if sparse:
                file.write(body[:70_000])
                file.seek(1_070_000)
                file.write(body[1_070_000:])
            else:
                file.write(body)
        os.utime(folder / name / "f", ns=(7, 7))
        os.utime(folder / name, ns=(7, 7))
    snapshots = Snapshots(MemoryStore(), "acme")
    assert (await snapshots.save(folder / "dense")).id == (await snapshots.save(folder / "sparse")).id


async def test_fifos_sockets_and_devices_are_skipped_and_told(folder):
    _write(folder / "in" / "f")
    os.mkfifo(folder / "in" / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "in" / "sock"))
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.save(folder / "in")
    assert saved.report["skipped"] == [["pipe", "fifo"], ["sock", "socket"]]
    opened = await snapshots.open(saved.id)
    assert (await opened.report())["counts"]["skipped"] == 2
    restored = await snapshots.restore(saved.id, folder / "out")
    assert sorted(os.listdir(folder / "out")) == ["f"]
    assert restored.report == saved.report


async def test_extended_attributes_are_kept_where_asked(folder):
    _write(folder / "in" / "f")
    try:
        os.setxattr(folder / "in" / "f", "user.colour", b"\x00blue")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    snapshots = Snapshots(MemoryStore(), "acme")
    without = await snapshots.save(folder / "in")
    saved = await snapshots.save(folder / "in", xattrs=True)
    assert saved.tree != without.tree
    await snapshots.restore(saved.id, folder / "out")
    assert os.getxattr(folder / "out" / "f", "user.colour") == b"\x00blue"


async def test_excluded_files_are_left_out_and_counted_by_rule(folder):
    for path in (
        "keep.py",
        "a.log",
        "sub/b.log",
        "sub/keep.log",
        "node_modules/x/y.js",
        "memories/m.md",
        "big",
    ):
        _write(folder / "in" / path, b"x" * (5000 if path == "big" else 1))
    (folder / "in" / ".runloreignore").write_text("*.log\n")
    (folder / "in" / "sub" / ".runloreignore").write_text("!keep.log\n")
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.save(
        folder / "in", exclude=["node_modules/"], without=["memories"], size_bytes_max=4096
    )
    await snapshots.restore(saved.id, folder / "out")
    files = sorted(
        str(path.relative_to(folder / "out")) for path in (folder / "out").rglob("*") if path.is_file()
    )
    assert files == [".runloreignore", "keep.py", "sub/.runloreignore", "sub/keep.log"]
    assert saved.report["excluded"] == {".runloreignore": 2, "exclude": 1, "path": 1, "size": 1}


async def test_a_workspace_that_holds_the_stat_cache_is_refused(folder):
    (folder / "in").mkdir()
    snapshots = Snapshots(MemoryStore(), "acme", cache_dir=folder / "in" / "cache")
    with pytest.raises(errors.InvalidInput, match="stat cache"):
        await snapshots.save(folder / "in")


async def test_a_path_that_is_no_directory_is_refused(folder):
    _write(folder / "f")
    snapshots = Snapshots(MemoryStore(), "acme")
    for path in (folder / "f", folder / "missing"):
        with pytest.raises(errors.InvalidInput):
            await snapshots.save(path)


# --- the stat cache -----------------------------------------------------------------------------------


async def test_a_file_replaced_by_another_of_the_same_size_and_mtime_is_seen(folder):
    # Package managers do this on purpose; git and rsync call it racy or unnoticed.
    _write(folder / "in" / "f", b"one")
    snapshots = Snapshots(MemoryStore(), "acme", cache_dir=folder / "cache")
    saved = await snapshots.save(folder / "in")
    for body in (b"two", b"six", b"ten"):
        status = os.stat(folder / "in" / "f")
        with open(folder / "in" / "f", "r+b") as file:  # The same inode, at once: only ctime can tell.
            file.write(body)
        os.utime(folder / "in" / "f", ns=(status.st_atime_ns, status.st_mtime_ns))
        saved = await snapshots.save(folder / "in", base=saved.ref)
        opened = await snapshots.open(saved.id)
        entry = await opened.lookup(b"f")
        assert b"".join([piece async for piece in opened.content(entry)]) == body


async def test_a_change_within_the_tick_of_the_clock_in_which_it_was_saved_is_seen(folder):
    # Many rounds without a pause: somewhere a write falls into the tick of the scan before it.
    (folder / "in").mkdir()
    _write(folder / "in" / "f", b"0000")
    snapshots = Snapshots(MemoryStore(), "acme", cache_dir=folder / "cache")
    saved = await snapshots.save(folder / "in")
    for number in range(1, 60):
        with open(folder / "in" / "f", "r+b") as file:
            file.write(b"%04d" % number)
        os.utime(folder / "in" / "f", ns=(1, 1))
        os.utime(folder / "in", ns=(1, 1))
        before, saved = saved, await snapshots.save(folder / "in", base=saved.ref)
        assert saved.id != before.id, number


async def test_an_unchanged_tree_is_not_read_and_not_written(folder):
    for number in range(50):
        _write(folder / "in" / f"d{number % 7}" / f"f{number}", b"%d" % number)
    store = MemoryStore()
    snapshots = Snapshots(store, "acme", cache_dir=folder / "cache")
    saved = await snapshots.save(folder / "in")
    await asyncio.sleep(0.02)  # Past the tick of the clock in which the files were made.
    await snapshots.save(folder / "in", base=saved.ref)
    objects = store.snapshot()
    again = await snapshots.save(folder / "in", base=saved.ref)
    assert (again.id, again.stats["files_read"], again.packs_written) == (saved.id, 0, 0)
    assert store.snapshot() == objects


async def test_a_cache_of_another_base_never_stands_in_for_chunks(folder):
    # The cache knows the files; the other base does not hold them: they must be read and written.
    _write(folder / "in" / "f", b"body")
    _write(folder / "other" / "g", b"else")
    snapshots = Snapshots(MemoryStore(), "acme", cache_dir=folder / "cache")
    await asyncio.sleep(0.02)
    first = await snapshots.save(folder / "in")
    other = await snapshots.save(folder / "other")
    again = await snapshots.save(folder / "in", base=other.ref)
    assert again.id == first.id
    opened = await snapshots.open(again.ref)
    assert first.ref.pack not in {key.split("/", 3)[-1] for key in opened.packs()}
    assert (await snapshots.verify(again.ref)).problems == []


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, "truncate"], ids=["empty", "zeros", "cut"])
async def test_a_damaged_cache_costs_time_only(folder, damage):
    _write(folder / "in" / "f", b"body")
    snapshots = Snapshots(MemoryStore(), "acme", cache_dir=folder / "cache")
    saved = await snapshots.save(folder / "in")
    (path,) = (folder / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:-3] if damage == "truncate" else damage)
    assert (await snapshots.save(folder / "in", base=saved.ref)).id == saved.id


# --- cost follows change ----------------------------------------------------------------------------------


async def test_a_small_change_is_one_put(folder):
    for number in range(200):
        _write(folder / "in" / f"d{number % 10}" / f"f{number}", snaptrees.noise(number, 3000))
    snapshots = Snapshots(MemoryStore(), "acme", cache_dir=folder / "cache")
    saved = await snapshots.save(folder / "in")
    _write(folder / "in" / "d3" / "new", b"new")
    again = await snapshots.save(folder / "in", base=saved.ref)
    assert again.packs_written == 1
    assert again.bytes_written < 6000
    assert saved.bytes_written > 600_000


async def test_an_edit_in_a_large_file_sends_the_chunks_around_it(folder):
    body = bytearray(snaptrees.noise(1, 8_000_000))
    _write(folder / "in" / "f", bytes(body))
    snapshots = Snapshots(MemoryStore(), "acme", cache_dir=folder / "cache")
    saved = await snapshots.save(folder / "in")
    body[4_000_000:4_000_000] = b"inserted"
    _write(folder / "in" / "f", bytes(body))
    again = await snapshots.save(folder / "in", base=saved.ref)
    assert again.bytes_written < 700_000
    await snapshots.restore(again.id, folder / "out")
    assert (folder / "out" / "f").read_bytes() == body


async def test_many_saves_keep_the_root_small_and_everything_restorable(folder):
    _write(folder / "in" / "big", snaptrees.noise(1, 3_000_000))
    for number in range(30):
        _write(folder / "in" / "d" / f"f{number}", snaptrees.noise(number, 500))
    snapshots = Snapshots(MemoryStore(), "acme", cache_dir=folder / "cache")
    saved = await snapshots.save(folder / "in")
    for number in range(60):
        _write(folder / "in" / "d" / f"f{number % 30}", snaptrees.noise(1000 + number, 500))
        saved = await snapshots.save(folder / "in", base=saved.ref)
        opened = await snapshots.open(saved.ref)
        assert len(opened.tables) <= 13
        assert saved.packs_written == 1
        assert saved.bytes_written < 100_000
    assert len(opened.packs()) <= 16
    assert (await snapshots.verify(saved.ref)).problems == []
    await snapshots.restore(saved.ref, folder / "out")
    assert snaptrees.describe(folder / "out") == snaptrees.describe(folder / "in")


async def test_projects_share_nothing(folder):
    _write(folder / "in" / "f", snaptrees.noise(1, 100_000))
    store = MemoryStore()
    one = await Snapshots(store, "acme").save(folder / "in")
    with pytest.raises(errors.SnapshotNotFound):
        await Snapshots(store, "other").open(one.ref)
    two = await Snapshots(store, "other").save(folder / "in")
    assert two.id == one.id
    assert two.bytes_written == one.bytes_written


async def test_a_base_without_its_root_is_refused_because_a_listing_may_show_what_is_about_to_go(folder):
    (folder / "in").mkdir()
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.save(folder / "in")
    with pytest.raises(errors.InvalidInput, match="root pack"):
        await snapshots.save(folder / "in", base=saved.id)
    assert (await snapshots.save(folder / "in", base=str(saved.ref))).id == saved.id


# --- files that change ------------------------------------------------------------------------------------


async def test_a_file_that_never_holds_still_is_told_and_never_trusted(folder, monkeypatch):
    _write(folder / "in" / "log", b"line\n" * 10)
    from runlore.snapshots import saving

    real = saving._content

    def grows(file, status, cdc, batch):
        found = real(file, status, cdc, batch)
        with open(folder / "in" / "log", "ab") as log:
            log.write(b"more\n")
        return found

    monkeypatch.setattr(saving, "_content", grows)
    snapshots = Snapshots(MemoryStore(), "acme", cache_dir=folder / "cache")
    saved = await snapshots.save(folder / "in")
    assert saved.report["changed"] == ["log"]
    monkeypatch.undo()
    await asyncio.sleep(0.02)
    again = await snapshots.save(folder / "in", base=saved.ref)
    assert again.stats["files_read"] == 1
    assert again.report["changed"] == []


async def test_a_file_that_goes_away_meanwhile_is_no_error(folder, monkeypatch):
    _write(folder / "in" / "a")
    _write(folder / "in" / "b")
    from runlore.snapshots import scan

    real = scan.scan

    def vanishing(*args, **kwargs):
        found = real(*args, **kwargs)
        os.unlink(folder / "in" / "a")
        return found

    monkeypatch.setattr(scan, "scan", vanishing)
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.save(folder / "in")
    assert saved.stats["files"] == 1


async def test_a_directory_swapped_for_a_link_while_it_is_read_leads_nowhere(folder, monkeypatch):
    _write(folder / "in" / "d" / "f", b"mine")
    _write(folder / "secret" / "f", b"theirs")
    from runlore.snapshots import scan

    real = scan.scan

    def swapping(*args, **kwargs):
        found = real(*args, **kwargs)
        shutil.rmtree(folder / "in" / "d")
        os.symlink(folder / "secret", folder / "in" / "d")
        return found

    monkeypatch.setattr(scan, "scan", swapping)
    store = MemoryStore()
    saved = await Snapshots(store, "acme").save(folder / "in")
    assert saved.stats["files"] == 0
    assert saved.report["counts"]["skipped"] == 1


# --- memory -------------------------------------------------------------------------------------------------


async def test_a_pack_is_closed_at_its_size_and_a_slow_store_slows_the_readers(folder, monkeypatch):
    monkeypatch.setattr(packs, "PACK_BYTES", 256 * 1024)
    for number in range(40):
        _write(folder / "in" / f"f{number}", snaptrees.noise(number, 60_000))
    waiting = most = 0

    class Slow(MemoryStore):
        async def put(self, key, body):
            nonlocal waiting, most
            waiting += 1
            most = max(most, waiting)
            await asyncio.sleep(0.01)
            waiting -= 1
            return await super().put(key, body)

    snapshots = Snapshots(Slow(), "acme")
    monkeypatch.setattr(packs, "FRAME_BYTES", 64 * 1024)
    saved = await snapshots.save(folder / "in")
    assert saved.packs_written > 5
    assert most <= 2
    await snapshots.restore(saved.id, folder / "out")
    assert snaptrees.describe(folder / "out") == snaptrees.describe(folder / "in")
