"""A restore writes what was saved, only below its target, all of it or nothing. Goal: issue 4, points 3 and 5.

Method: targets that hold files and hostile links, stores that lose, cut and flip bytes, forged trees, failing
disks, and a writer that dies at every call to the store.
"""

# ruff: noqa: ASYNC110, ASYNC221, ASYNC240 - the loop of a test has nothing else to do.
from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import snaptrees

from runlore import errors
from runlore.snapshots import Snapshots, building, library, names, packs, reading, restoring, trees
from runlore.testing.stores import MemoryStore


def _write(path: Path, body: bytes = b"x", *, mtime: int = 1_600_000_000_000_000_001) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    os.utime(path, ns=(mtime, mtime))


def _some_tree(root: Path, files: int = 12) -> None:
    for number in range(files):
        _write(root / f"d{number % 3}" / f"f{number}", snaptrees.noise(number, 5000))
    os.symlink("d0/f0", root / "link")


async def _saved(folder, **more):
    store = MemoryStore()
    snapshots = Snapshots(store, "acme", cache_dir=folder / "cache")
    _some_tree(folder / "in", **more)
    return store, snapshots, await snapshots.save(folder / "in")


# --- the target -------------------------------------------------------------------------------------------


async def test_a_target_that_holds_something_is_refused_and_untouched(tmp_path):
    _, snapshots, saved = await _saved(tmp_path)
    _write(tmp_path / "out" / "mine", b"mine")
    with pytest.raises(errors.TargetModified) as caught:
        await snapshots.restore(saved.id, tmp_path / "out")
    assert caught.value.hint
    assert sorted(os.listdir(tmp_path / "out")) == ["mine"]
    assert sorted(os.listdir(tmp_path)) == ["cache", "in", "out"]


async def test_a_target_that_is_a_link_or_a_file_is_refused(tmp_path):
    _, snapshots, saved = await _saved(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "link")
    with pytest.raises(errors.UnsafeTarget):
        await snapshots.restore(saved.id, tmp_path / "link")
    _write(tmp_path / "file")
    with pytest.raises(errors.TargetModified):
        await snapshots.restore(saved.id, tmp_path / "file", replace=True)
    assert os.listdir(tmp_path / "elsewhere") == []


async def test_an_empty_target_and_missing_parents_are_made_whole(tmp_path):
    _, snapshots, saved = await _saved(tmp_path)
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "a" / "b" / "out"):
        await snapshots.restore(saved.ref, target)
        assert snaptrees.describe(target) == snaptrees.describe(tmp_path / "in")


async def test_replacing_an_older_tree_keeps_equal_files_and_drops_the_rest(tmp_path):
    _, snapshots, first = await _saved(tmp_path)
    await snapshots.restore(first.ref, tmp_path / "out")
    _write(tmp_path / "in" / "d0" / "f0", b"changed")
    (tmp_path / "in" / "d1" / "f1").unlink()
    second = await snapshots.save(tmp_path / "in", base=first.ref)
    kept = os.stat(tmp_path / "out" / "d2" / "f2").st_ino
    _write(tmp_path / "out" / "d2" / "stray", b"stray")
    done = await snapshots.restore(second.ref, tmp_path / "out", replace=True)
    assert snaptrees.describe(tmp_path / "out") == snaptrees.describe(tmp_path / "in")
    assert done.stats["files_kept"] == 10
    assert os.stat(tmp_path / "out" / "d2" / "f2").st_ino == kept
    again = await snapshots.save(tmp_path / "out", base=second.ref)
    # What was kept proves nothing to the stat cache: its old name went away after others could reach it.
    assert (again.id, again.stats["files_read"]) == (second.id, 10)


async def test_links_in_the_tree_that_is_replaced_lead_nowhere(tmp_path):
    _, snapshots, saved = await _saved(tmp_path)
    await snapshots.restore(saved.ref, tmp_path / "out")
    _write(tmp_path / "secret" / "f1", b"secret")
    shutil.rmtree(tmp_path / "out" / "d1")
    os.symlink(tmp_path / "secret", tmp_path / "out" / "d1")
    await snapshots.restore(saved.ref, tmp_path / "out", replace=True)
    assert (tmp_path / "secret" / "f1").read_bytes() == b"secret"
    assert snaptrees.describe(tmp_path / "out") == snaptrees.describe(tmp_path / "in")


async def test_what_a_killed_restore_left_is_removed_by_the_next_and_a_living_one_is_not(tmp_path):
    _, snapshots, saved = await _saved(tmp_path)
    _write(tmp_path / ".out.runlore-dead" / "half")
    living = restoring.Place(tmp_path / "out", replace=False)
    await snapshots.restore(saved.ref, tmp_path / "out")
    assert not (tmp_path / ".out.runlore-dead").exists()
    assert os.path.exists(living.temp)
    living.close(failed=True)


@pytest.mark.parametrize("call", ["pwrite", "utime", "symlink", "mkdir"])
async def test_a_failing_disk_leaves_the_target_as_it_was(tmp_path, monkeypatch, call):
    _, snapshots, saved = await _saved(tmp_path)
    real, count = getattr(os, call), 0

    def fail(*args, **kwargs):
        nonlocal count
        count += 1
        if count == 3 or call == "symlink":
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(errors.RestoreFailed, match="No space") as caught:
        await snapshots.restore(saved.ref, tmp_path / "out")
    monkeypatch.undo()
    assert caught.value.hint
    assert sorted(os.listdir(tmp_path)) == ["cache", "in"]
    await snapshots.restore(saved.ref, tmp_path / "out")


async def test_links_that_lead_elsewhere_are_kept_as_data_or_left_out_by_policy(tmp_path):
    (tmp_path / "in" / "d").mkdir(parents=True)
    for name, target in (("abs", "/etc/passwd"), ("up", "../x"), ("d/in", "../d"), ("d/out", "../../x")):
        os.symlink(target, tmp_path / "in" / name)
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.save(tmp_path / "in")
    await snapshots.restore(saved.ref, tmp_path / "all")
    assert os.readlink(tmp_path / "all" / "abs") == "/etc/passwd"
    done = await snapshots.restore(saved.ref, tmp_path / "inside", links="inside")
    assert sorted(path for path, _ in done.skipped) == ["abs", "d/out", "up"]
    assert os.readlink(tmp_path / "inside" / "d" / "in") == "../d"


# --- a store that lies --------------------------------------------------------------------------------------


class Damaged(MemoryStore):
    """A store whose objects can be changed behind everybody's back."""

    def spoil(self, key: str, change) -> None:
        self._objects.pop(key)
        self._order.remove(key)
        self._write(key, change)


@pytest.mark.parametrize("seed", range(40))
async def test_a_flipped_byte_anywhere_is_refused_or_harmless_and_never_restored(tmp_path, seed):
    store = Damaged()
    snapshots = Snapshots(store, "acme")
    _some_tree(tmp_path / "in")
    saved = await snapshots.save(tmp_path / "in")
    (key,) = store.snapshot()
    raw = bytearray(store.body(key))
    raw[(seed * 7919) % len(raw) if seed % 2 else len(raw) - 1 - seed * 5] ^= 1 << (seed % 8)
    store.spoil(key, bytes(raw))
    try:
        await snapshots.restore(saved.ref, tmp_path / "out")
    except (errors.Corrupt, errors.Fatal):
        assert sorted(os.listdir(tmp_path)) == ["in"]
        return
    assert snaptrees.describe(tmp_path / "out") == snaptrees.describe(tmp_path / "in")


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
async def test_a_torn_pack_is_refused_by_restore_and_named_by_verify(tmp_path, monkeypatch, part):
    monkeypatch.setattr(packs, "PACK_BYTES", 10_000)
    monkeypatch.setattr(packs, "FRAME_BYTES", 4096)
    store = Damaged()
    snapshots = Snapshots(store, "acme")
    _some_tree(tmp_path / "in")
    saved = await snapshots.save(tmp_path / "in")
    key = next(key for key in store.snapshot() if "/blobs/" in key)
    body = store.body(key)
    assert (await snapshots.verify(saved.ref)).problems == []
    store.spoil(key, body[: int(len(body) * part)])
    if part < 0.9:  # The last bytes of a data pack are its own index, which a reader does not need.
        with pytest.raises(errors.Corrupt):
            await snapshots.restore(saved.ref, tmp_path / "out")
        assert sorted(os.listdir(tmp_path)) == ["in"]
        assert (await snapshots.verify(saved.ref)).problems
    await store.delete(key)
    with pytest.raises(errors.Corrupt):
        await snapshots.restore(saved.ref, tmp_path / "out")
    assert (await snapshots.verify(saved.ref)).problems_count > 0


async def test_an_index_that_lies_costs_an_error_and_never_wrong_bytes(tmp_path):
    # Two blobs change places in the index of a forged root pack of the same snapshot.
    _, snapshots, saved = await _saved(tmp_path)
    opened = await snapshots.open(saved.ref)
    table = opened.tables[-1].table
    table.ids[0], table.ids[1] = table.ids[1], table.ids[0]
    raw = snapshots.store.body(opened.key(saved.ref.pack))
    frames = raw[: opened.tables[-1].ref.at]
    index, root = table.encode(), opened.root.encode()
    forged = frames + index + root + packs.TRAILER.pack(len(index), len(root), packs.MAGIC)
    ref = names.Ref(saved.id, names.digest(forged))
    await snapshots.store.put(opened.key(ref.pack), forged)
    with pytest.raises(errors.Corrupt):
        await snapshots.restore(ref, tmp_path / "out")


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "a\0b", "x" * 256, "%2E%2E"])
def test_a_forged_tree_with_a_name_that_climbs_is_refused(name):
    raw = names.canonical({"dirs": [], "files": [[name, 420, 0, 0, []]], "links": []})
    with pytest.raises(errors.Corrupt):
        trees.decode(raw)


@pytest.mark.parametrize(
    "row",
    [
        ["a", 420, 0, -1, []],
        ["a", 420, 0, 2**64, []],
        ["a", 420, 0.5, 0, []],
        ["a", 1 << 20, 0, 0, []],
        ["a", 420, 0, 10, [], {"data": [5, 10]}],
        ["a", 420, 0, 10, [], {"data": [5, 2, 4, 2]}],
        ["a", 420, 0, 10, [], {"data": [5]}],
        ["a"],
        "a",
    ],
)
def test_a_forged_file_that_can_not_be_is_refused(row):
    with pytest.raises(errors.Corrupt):
        trees.decode(names.canonical({"dirs": [], "files": [row], "links": []}))


def test_a_name_that_a_tree_holds_twice_is_refused():
    body = {"dirs": [], "files": [["a", 420, 0, 0, []]], "links": [["a", 0, "x"]]}
    with pytest.raises(errors.Corrupt):
        trees.decode(names.canonical(body))


def test_a_frame_that_claims_another_size_is_refused_before_it_is_inflated():
    bomb = packs.compress([bytes(50_000_000)], 1)
    with pytest.raises(errors.Corrupt):
        packs.inflate(bomb, 10)


async def test_an_unknown_snapshot_is_not_found_and_says_so(tmp_path):
    snapshots = Snapshots(MemoryStore(), "acme")
    with pytest.raises(errors.SnapshotNotFound):
        await snapshots.open("0" * 64)
    with pytest.raises(errors.SnapshotNotFound):
        await snapshots.open(f"{'0' * 64}/{'1' * 64}")
    for text in ("", "x", "0" * 63, "../" + "0" * 61, f"{'0' * 64}/../x"):
        with pytest.raises(errors.InvalidId):
            await snapshots.open(text)


async def test_a_reference_whose_root_was_packed_anew_is_found_by_its_id(tmp_path):
    store, snapshots, saved = await _saved(tmp_path)
    _write(tmp_path / "other" / "f")
    other = await snapshots.save(tmp_path / "other")
    second = await Snapshots(store, "acme").save(tmp_path / "in", base=other.ref)
    assert (second.id, second.ref.root != saved.ref.root) == (saved.id, True)
    await store.delete((await snapshots.open(saved.ref)).key(saved.ref.pack))
    assert (await snapshots.open(saved.ref)).ref == second.ref
    # But a writer builds on exactly what its head named.
    with pytest.raises(errors.SnapshotNotFound):
        await snapshots.save(tmp_path / "in", base=saved.ref)


# --- a writer that dies ---------------------------------------------------------------------------------------


class Dying(MemoryStore):
    """Dies at the n-th call: before it, or after its effect."""

    def __init__(self, inner: MemoryStore, at: int, after: bool) -> None:
        super().__init__()
        self._objects, self._order, self.left, self.after = inner._objects, inner._order, at, after

    async def put(self, key, body):
        self.left -= 1
        if self.left == 0 and not self.after:
            raise ConnectionAbortedError("killed")
        etag = await super().put(key, body)
        if self.left == 0:
            raise ConnectionAbortedError("killed")
        return etag


@pytest.mark.parametrize("after", [False, True])
async def test_a_writer_that_dies_at_any_call_leaves_garbage_and_the_base_intact(
    tmp_path, monkeypatch, after
):
    monkeypatch.setattr(packs, "PACK_BYTES", 20_000)
    monkeypatch.setattr(packs, "FRAME_BYTES", 8192)
    store, snapshots, base = await _saved(tmp_path)
    was = snaptrees.describe(tmp_path / "in")
    for number in range(20):
        _write(tmp_path / "in" / "new" / f"g{number}", snaptrees.noise(100 + number, 5000))
    deaths = 0
    for at in range(1, 50):
        dying = Dying(store, at, after)
        try:
            saved = await Snapshots(dying, "acme", cache_dir=tmp_path / "cache").save(
                tmp_path / "in", base=base.ref
            )
        except ConnectionAbortedError:
            deaths += 1
            await snapshots.restore(base.ref, tmp_path / f"base{at}")
            assert snaptrees.describe(tmp_path / f"base{at}") == was
            continue
        break
    assert deaths > 3
    await snapshots.restore(saved.ref, tmp_path / "out")
    assert snaptrees.describe(tmp_path / "out") == snaptrees.describe(tmp_path / "in")


async def test_a_lost_reply_is_answered_by_sending_the_same_pack_again(tmp_path, monkeypatch):
    class Losing(MemoryStore):
        count = 0

        async def put(self, key, body):
            etag = await super().put(key, body)
            self.count += 1
            if self.count == 1:
                raise errors.OutcomeUnknown
            return etag

    async def no_wait(_):
        return None

    monkeypatch.setattr(library.clock, "sleep", no_wait)
    _some_tree(tmp_path / "in")
    store = Losing()
    saved = await Snapshots(store, "acme").save(tmp_path / "in")
    assert (store.count, len(store.snapshot())) == (2, 1)
    assert (await Snapshots(store, "acme").verify(saved.ref)).problems == []


def test_a_root_can_not_be_closed_over_a_blob_that_is_nowhere():
    builder = building.Builder(lambda pack: None)
    with pytest.raises(errors.Fatal):
        builder.settle({b"x" * 32})
        builder.finish(trees.Record(), {b"x" * 32})


# --- looking ------------------------------------------------------------------------------------------------


async def test_a_diff_tells_what_differs_and_reads_only_trees_that_do(tmp_path):
    _, snapshots, first = await _saved(tmp_path, files=30)
    _write(tmp_path / "in" / "d0" / "f0", b"changed")
    os.utime(tmp_path / "in" / "d0" / "f3", ns=(9, 9))
    (tmp_path / "in" / "d0" / "f6").unlink()
    _write(tmp_path / "in" / "d0" / "sub" / "g", b"new")
    second = await snapshots.save(tmp_path / "in", base=first.ref)
    found = {change.path: change.what for change in await snapshots.diff(first.ref, second.ref)}
    assert found == {
        b"d0": "changed", b"d0/f0": "changed", b"d0/f3": "touched", b"d0/f6": "removed", b"d0/sub": "added",
        b"d0/sub/g": "added",
    }  # fmt: skip
    assert await snapshots.diff(first.ref, first.ref) == []


async def test_files_can_be_read_in_part_and_paths_that_are_not_there_are_told(tmp_path):
    body = snaptrees.noise(3, 200_000) + bytes(200_000) + b"end"
    _write(tmp_path / "in" / "d" / "f", body)
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.save(tmp_path / "in")
    opened = await snapshots.open(saved.ref)
    entry = await opened.lookup(b"d/f")
    for offset, length in ((0, None), (199_990, 30), (250_000, 10), (399_990, 100), (0, 0), (400_003, 5)):
        got = b"".join([piece async for piece in opened.content(entry, offset=offset, length=length)])
        assert got == body[offset:][:length] if length is not None else body[offset:], (offset, length)
    for path in (b"x", b"d/f/g", b"d/x"):
        with pytest.raises(errors.PathNotFound):
            await opened.lookup(path)
    assert isinstance(opened, reading.Opened)
    stats = await snapshots.stats(saved.ref)
    assert stats["files"] == 1
    assert stats["packs"] == 1


async def test_progress_tells_files_and_bytes(tmp_path):
    seen = []
    snapshots = Snapshots(MemoryStore(), "acme")
    _some_tree(tmp_path / "in")
    saved = await snapshots.save(tmp_path / "in", progress=lambda files, size: seen.append((files, size)))
    assert seen[-1] == (12, 60_000)
    seen.clear()
    await snapshots.restore(
        saved.ref, tmp_path / "out", progress=lambda files, size: seen.append((files, size))
    )
    assert seen[-1][1] == 60_000


def test_saving_does_not_hold_up_the_loop(tmp_path):
    for number in range(300):
        _write(tmp_path / "in" / f"f{number}", snaptrees.noise(number, 60_000))

    async def play():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        await Snapshots(MemoryStore(), "acme").save(tmp_path / "in")
        ticking.cancel()
        return ticks

    assert asyncio.run(play()) > 5


async def test_a_cancelled_save_or_restore_stops_before_it_returns_and_leaves_nothing(tmp_path):
    for number in range(200):
        _write(tmp_path / "in" / f"f{number}", snaptrees.noise(number, 60_000))
    store = MemoryStore()
    snapshots = Snapshots(store, "acme")
    saved = await snapshots.save(tmp_path / "in")

    def threads():
        busy = ("runlore-read", "runlore-write")
        return [thread.name for thread in threading.enumerate() if thread.name.startswith(busy)]

    for start in (lambda: Snapshots(MemoryStore(), "acme").save(tmp_path / "in"),
                  lambda: snapshots.restore(saved.ref, tmp_path / "out")):  # fmt: skip
        task = asyncio.create_task(start())
        while not threads():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert threads() == []
    assert sorted(os.listdir(tmp_path)) == ["in"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
async def test_a_mount_point_is_filled_in_place(tmp_path):
    _, snapshots, saved = await _saved(tmp_path)
    (tmp_path / "out").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "none", str(tmp_path / "out")], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not let us mount")
    try:
        for _ in range(2):
            await snapshots.restore(saved.ref, tmp_path / "out", replace=True)
            assert snaptrees.describe(tmp_path / "out") == snaptrees.describe(tmp_path / "in")
            _write(tmp_path / "out" / "stray")
        # And a mount inside of a workspace is no part of it.
        again = await Snapshots(MemoryStore(), "acme").save(tmp_path, exclude=["cache/", "in/"])
        assert again.report["excluded"]["mount"] == 1
    finally:
        subprocess.run(["umount", str(tmp_path / "out")], check=True)
