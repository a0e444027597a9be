"""Tar in, tar out: honest archives of every kind come in exactly, hostile ones leave nothing, exports never change.

Goal: issue 4, points 4 and 5; invariant 6. Method: archives made by GNU tar and by the standard library, and
archives made by hand to hurt; what comes out is read by the standard library.
"""

# ruff: noqa: ASYNC221, ASYNC230 - the loop of a test has nothing else to do.
from __future__ import annotations

import asyncio
import gzip
import io
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
import snaptrees
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runlore import errors
from runlore.snapshots import Snapshots, building, library, reading, removing, tarin, tarout, trees
from runlore.testing.stores import MemoryStore


def _tar(*members, fmt=tarfile.PAX_FORMAT, end=True) -> bytes:
    """A tar of (TarInfo or name, body) pairs."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=fmt) as tar:
        for member, body in members:
            if isinstance(member, str):
                member = tarfile.TarInfo(member)
            if body is not None:
                member.size = len(body)
            tar.addfile(member, io.BytesIO(body) if body is not None else None)
        size = tar.offset
    return out.getvalue() if end else out.getvalue()[:size]


def _info(name, kind=tarfile.REGTYPE, **fields):
    member = tarfile.TarInfo(name)
    member.type = kind
    for key, value in fields.items():
        setattr(member, key, value)
    return member


def _make_in(folder: Path) -> None:
    (folder / "sub" / "empty").mkdir(parents=True)
    (folder / "sub" / "f.txt").write_bytes(b"body")
    (folder / "large").write_bytes(snaptrees.noise(1, 300_000) + bytes(200_000) + b"x")
    (folder / ("n" * 120)).write_bytes(b"long")
    (folder / "ä\n").write_bytes(b"odd")
    os.symlink("sub/f.txt", folder / "link")
    os.chmod(folder / "sub" / "f.txt", 0o755)
    for path in folder.rglob("*"):
        os.utime(path, ns=(0, 1_600_000_000_123_456_789), follow_symlinks=False)
    os.utime(folder, ns=(0, 1_600_000_000_123_456_789))


# --- honest archives ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["posix", "gnu"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
async def test_what_gnu_tar_wrote_is_the_tree_that_it_read(tmp_path, fmt, packed, sparse):
    _make_in(tmp_path / "in")
    command = ["tar", "-c", f"--format={fmt}", "-C", str(tmp_path / "in"), *(["-S"] if sparse else []), "."]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    snapshots = Snapshots(MemoryStore(), "acme")
    ingested = await snapshots.ingest(io.BytesIO(gzip.compress(raw) if packed else raw))
    saved = await snapshots.save(tmp_path / "in")
    # GNU's own format has whole seconds; everything else is the same, and with PAX all of it.
    assert ingested.content_id == saved.content_id
    assert (ingested.id == saved.id) == (fmt == "posix")


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
async def test_every_format_of_the_standard_library_comes_in(tmp_path, fmt):
    raw = _tar(
        ("a/b", b"1"), (_info("d", tarfile.DIRTYPE, mode=0o700), None), ("./c", b"x" * 100_000), fmt=fmt
    )
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.ingest(io.BytesIO(raw))
    await snapshots.restore(saved.ref, tmp_path / "out")
    assert (tmp_path / "out" / "a" / "b").read_bytes() == b"1"
    assert os.stat(tmp_path / "out" / "d").st_mode & 0o777 == 0o700
    assert (tmp_path / "out" / "c").stat().st_size == 100_000


async def test_what_the_sdk_refuses_is_normalised_and_told(tmp_path):
    raw = _tar(
        ("f", b"body"),
        (_info("hard", tarfile.LNKTYPE, linkname="f"), None),
        (_info("pipe", tarfile.FIFOTYPE), None),
        (_info("null", tarfile.CHRTYPE), None),
        (_info("suid", mode=0o4755), b"x"),
        (_info("abs", tarfile.SYMTYPE, linkname="/usr/bin/python3"), None),
    )
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.ingest(io.BytesIO(raw))
    assert saved.report["normalised"] == [["hard", "hard link to f copied"], ["suid", "mode 4755 to 755"]]
    assert saved.report["skipped"] == [["null", "device"], ["pipe", "fifo"]]
    await snapshots.restore(saved.ref, tmp_path / "out")
    assert (tmp_path / "out" / "hard").read_bytes() == b"body"
    assert os.readlink(tmp_path / "out" / "abs") == "/usr/bin/python3"
    with await snapshots.export(saved.ref) as made:
        assert made.left_out == [("abs", "absolute link")]


@pytest.mark.parametrize("prefix", list(tarin.NATIVE_PREFIXES))
async def test_a_providers_own_reference_is_kept_as_it_is(tmp_path, prefix):
    body = prefix + b'{"snapshot_id":"sb-1"}'
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.ingest(io.BytesIO(body))
    with await snapshots.export(saved.id) as made:
        assert made.read() == body
    with pytest.raises(errors.NativeSnapshot) as caught:
        await snapshots.restore(saved.id, tmp_path / "out")
    assert caught.value.hint
    assert (await snapshots.verify(saved.id)).problems == []
    with pytest.raises(errors.ArchiveLimit):
        await snapshots.ingest(io.BytesIO(prefix + b"x" * 2_000_000))


async def test_an_ingest_shares_with_its_base(tmp_path):
    raw = _tar(("big", snaptrees.noise(1, 2_000_000)), ("small", b"1"))
    snapshots = Snapshots(MemoryStore(), "acme")
    first = await snapshots.ingest(io.BytesIO(raw))
    again = await snapshots.ingest(io.BytesIO(raw), base=first.ref)
    assert (again.id, again.packs_written) == (first.id, 0)
    more = _tar(("big", snaptrees.noise(1, 2_000_000)), ("small", b"2"))
    second = await snapshots.ingest(io.BytesIO(more), base=first.ref)
    assert second.packs_written == 1
    assert second.bytes_written < 10_000


async def test_an_archive_is_read_once_and_in_small_pieces():
    raw, largest = _tar(*[(f"f{n}", snaptrees.noise(n, 50_000)) for n in range(100)]), 0

    class Stream(io.RawIOBase):
        source = io.BytesIO(raw)

        def readable(self):
            return True

        def read(self, size=-1):
            nonlocal largest
            assert size > 0
            largest = max(largest, size)
            return self.source.read(size)

    saved = await Snapshots(MemoryStore(), "acme").ingest(Stream())
    assert saved.stats["files"] == 100
    assert largest <= tarin.READ_BYTES


# --- hostile archives ---------------------------------------------------------------------------------------


def _bad_header(raw: bytes) -> bytes:
    return raw[:600] + bytes([raw[600] ^ 1]) + raw[601:]


def _lying_size() -> bytes:
    raw = bytearray(_tar(("a", b"x" * 600)))
    raw[124:136] = b"%011o\0" % 10_000_000
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    return bytes(raw)


def _huge_pax() -> bytes:
    raw = bytearray(tarfile.TarInfo("PaxHeader").tobuf(tarfile.USTAR_FORMAT))
    raw[156:157] = b"x"
    raw[124:136] = b"%011o\0" % (6 * 1024**3)
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    return bytes(raw)


HOSTILE = {
    "climbs": (_tar(("a/../../x", b"")), errors.HostileArchive),
    "climbs at once": (_tar(("../x", b"")), errors.HostileArchive),
    "absolute": (_tar(("/etc/passwd", b"")), errors.HostileArchive),
    "twice": (_tar(("a", b"1"), ("./a", b"2")), errors.HostileArchive),
    "file, then directory": (_tar(("a", b"1"), (_info("a", tarfile.DIRTYPE), None)), errors.HostileArchive),
    "below a file": (_tar(("a", b"1"), ("a/b", b"2")), errors.HostileArchive),
    "below a link": (
        _tar((_info("a", tarfile.SYMTYPE, linkname="/tmp"), None), ("a/b", b"2")), errors.HostileArchive),
    "link, then directory": (
        _tar((_info("a", tarfile.SYMTYPE, linkname="b"), None), (_info("a", tarfile.DIRTYPE), None)),
        errors.HostileArchive),
    "hard link to outside": (_tar((_info("a", tarfile.LNKTYPE, linkname="../x"), None)), errors.HostileArchive),
    "hard link to nothing": (_tar((_info("a", tarfile.LNKTYPE, linkname="b"), None)), errors.HostileArchive),
    "hard links in a circle": (
        _tar((_info("a", tarfile.LNKTYPE, linkname="b"), None), (_info("b", tarfile.LNKTYPE, linkname="a"), None)),
        errors.HostileArchive),
    "root that is a file": (_tar((".", b"x")), errors.HostileArchive),
    "too deep": (_tar(("/".join(["d"] * 300), b"")), errors.ArchiveLimit),
    "name too long": (_tar(("n" * 300, b"")), errors.ArchiveLimit),
    "path too long": (_tar(("/".join(["n" * 200] * 30), b"")), errors.ArchiveLimit),
    "lying size": (_lying_size(), errors.BadArchive),
    "huge pax header": (_huge_pax(), errors.ArchiveLimit),
    "huge pax record": (
        _tar((_info("a", pax_headers={"comment": "x" * 3_000_000}), b"")), errors.ArchiveLimit),
    "cut in a body": (_tar(("a", b"x" * 5000))[:3000], errors.BadArchive),
    "cut in a header": (_tar(("a", b"x"), ("b", b"y"))[:1300], errors.BadArchive),
    "cut at an entry": (_tar(("a", b"x"), ("b", b"y"), end=False), errors.BadArchive),
    "damaged header": (_bad_header(_tar(("a", b""), ("b", b""))), errors.BadArchive),
    "no tar": (b"hello, world" * 100, errors.BadArchive),
    "nothing": (b"", errors.BadArchive),
    "gzip cut off": (gzip.compress(_tar(("a", os.urandom(50_000))))[:30_000], errors.BadArchive),
    "gzip damaged": (b"\x1f\x8b\x08\x00" + b"\xff" * 500, errors.BadArchive),
    "zip bomb": (gzip.compress(_tar(("a", bytes(100_000_000))), 9), errors.ArchiveLimit),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_archive_is_refused_and_no_snapshot_of_it_exists(name):
    raw, raised = HOSTILE[name]
    store = MemoryStore()
    limits = tarin.Limits(ratio_max=200)
    with pytest.raises(raised) as caught:
        await Snapshots(store, "acme").ingest(io.BytesIO(raw), limits=limits)
    assert caught.value.message
    assert [key for key in store.snapshot() if "/snapshots/" in key] == []


async def test_limits_on_bytes_and_entries_hold_also_for_holes():
    snapshots = Snapshots(MemoryStore(), "acme")
    with pytest.raises(errors.ArchiveLimit, match="entries"):
        raw = _tar(*[(f"f{n}", b"") for n in range(101)])
        await snapshots.ingest(io.BytesIO(raw), limits=tarin.Limits(entries_max=100))
    with pytest.raises(errors.ArchiveLimit, match="bytes"):
        raw = _tar(("a", b"x" * 600_000), ("b", b"x" * 600_000))
        await snapshots.ingest(io.BytesIO(raw), limits=tarin.Limits(bytes_max=1_000_000))
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/sparse", "wb") as file:
            file.truncate(1 << 40)
        raw = subprocess.run(["tar", "-cS", "-C", folder, "sparse"], check=True, capture_output=True).stdout
    assert len(raw) < 20_000
    with pytest.raises(errors.ArchiveLimit):
        await snapshots.ingest(io.BytesIO(raw))


# --- exports ------------------------------------------------------------------------------------------------


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(tree=snaptrees.TREES)
def test_an_export_comes_in_again_as_the_same_tree_and_is_the_same_from_any_root(tree):
    async def play(folder: str):
        snaptrees.make(os.fsencode(folder) + b"/in", tree)
        os.mkdir(folder + "/base")
        snapshots = Snapshots(MemoryStore(), "acme")
        one = await snapshots.save(folder + "/in")
        base = await snapshots.save(folder + "/base")
        two = await snapshots.save(folder + "/in", base=base.ref)
        bodies = []
        for ref in (one.ref, two.ref):
            with await snapshots.export(ref) as made:
                body = await asyncio.to_thread(made.read)
                assert len(body) == made.size
                left_out = made.left_out
            bodies.append(body)
        assert bodies[0] == bodies[1]
        if not left_out:
            again = await snapshots.ingest(io.BytesIO(bodies[0]))
            if not again.report["counts"]["normalised"]:
                assert (again.tree, again.content_id) == (one.tree, one.content_id)

    folder = tempfile.mkdtemp()
    try:
        asyncio.run(play(folder))
    finally:
        removing.remove(os.fsencode(folder))


def _paths(tree: dict, prefix: bytes = b"") -> list[bytes]:
    found = []
    for name, entry in tree.items():
        found.append(prefix + name)
        found += _paths(entry[1], prefix + name + b"/") if entry[0] == "dir" else []
    return found


def _without_folders(raw: bytes) -> bytes:
    """The archive without its entries for directories."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(raw)) as read, tarfile.open(fileobj=out, mode="w") as write:
        for member in read:
            if not member.isdir():
                write.addfile(member, read.extractfile(member) if member.isreg() else None)
    return out.getvalue()


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(tree=snaptrees.TREES, data=st.data())
def test_what_is_left_out_of_an_archive_is_what_is_left_out_of_its_folder(tree, data):
    """Globs and exact paths, also of directories that have no entry of their own in the archive."""
    paths = sorted(path for path in _paths(tree) if b"\n" not in path)
    without = data.draw(st.lists(st.sampled_from(paths), max_size=3)) if paths else []
    exclude = data.draw(st.lists(st.sampled_from(["*b", "a*/", "/?", "!a b", "100%"]), max_size=2))
    implied = data.draw(st.booleans())

    async def exported(snapshots, ref) -> bytes:
        with await snapshots.export(ref) as made:
            body = await asyncio.to_thread(made.read)
        return _without_folders(body) if implied else body

    async def play(folder: str):
        snaptrees.make(os.fsencode(folder) + b"/in", tree)
        snapshots = Snapshots(MemoryStore(), "acme")
        whole = await exported(snapshots, (await snapshots.save(folder + "/in")).ref)
        saved = await snapshots.save(folder + "/in", exclude=exclude, without=without)
        want = await snapshots.ingest(io.BytesIO(await exported(snapshots, saved.ref)))
        got = await snapshots.ingest(io.BytesIO(whole), exclude=exclude, without=without)
        assert got.content_id == want.content_id

    folder = tempfile.mkdtemp()
    try:
        asyncio.run(play(folder))
    finally:
        removing.remove(os.fsencode(folder))


async def test_an_export_can_be_sought_and_read_in_any_order(tmp_path):
    _make_in(tmp_path / "in")
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.save(tmp_path / "in")
    with await snapshots.export(saved.ref) as made:
        whole = made.read()
        assert (made.seekable(), made.tell(), made.read(10)) == (True, len(whole), b"")
        for at in range(0, len(whole), 7919):
            made.seek(at)
            assert made.read(1000) == whole[at : at + 1000]
        assert made.seek(-512, io.SEEK_END) == len(whole) - 512
        buffer = bytearray(100)
        made.seek(257)
        assert made.readinto(buffer) == 100
        assert bytes(buffer) == whole[257:357]
        with pytest.raises(ValueError):
            made.seek(-1)
    assert len(whole) % 512 == 0


async def test_gnu_tar_and_the_standard_library_read_an_export(tmp_path):
    _make_in(tmp_path / "in")
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.save(tmp_path / "in")
    with await snapshots.export(saved.ref) as made:
        raw = made.read()
    (tmp_path / "gnu").mkdir()
    subprocess.run(["tar", "-xp", "-C", str(tmp_path / "gnu")], input=raw, check=True)
    assert snaptrees.describe(tmp_path / "gnu") == snaptrees.describe(tmp_path / "in")
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        assert sorted(tar.getnames())[:2] == [".", "large"]


async def test_an_export_may_be_read_on_a_running_loop(tmp_path):
    # The SDK does: a read that waited for that same loop would never end.
    _make_in(tmp_path / "in")
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.save(tmp_path / "in")
    made = await snapshots.export(saved.ref)
    assert len(made.read()) == made.size
    made.close()
    made.close()


@pytest.mark.parametrize("mtime", [0, 1, -1, -1_500_000_000, 10**9, 8**11 * 10**9, 1_600_000_000_100_000_000])
def test_every_time_fits_in_a_header(mtime):
    raw = tarout.header(b"f", trees.File(b"f", 0o644, mtime, 0))
    with tarfile.open(fileobj=io.BytesIO(raw + bytes(1024))) as tar:
        (member,) = tar.getmembers()
    assert tarin._mtime_ns(member) == mtime


@pytest.mark.parametrize("size", [97, 98, 99, 100, 101, 987, 988, 989, 990, 991, 992])
def test_a_pax_record_counts_its_own_length(size):
    record = tarout._record(b"path", b"x" * size)
    assert int(record.split(b" ")[0]) == len(record)


def test_a_snapshot_is_written_and_read_without_a_loop_or_threads_as_a_simulation_does():
    # Whoever drives coroutines by hand (sweeps beside writers) needs the pure parts: every await is a store's.
    async def play():
        store, sent = MemoryStore(), []
        builder = building.Builder(sent.append)
        work = tarin.Ingest(builder, tarin.Limits())
        record, needed = work.run(io.BytesIO(_tar(("a/b", b"1"), ("c", b"2"))))
        builder.copy({blob: b"" for blob in builder.settle(needed)})
        built = builder.finish(record, needed)
        for pack in [*sent, built.root_pack]:
            await library.put_pack(store, "acme", pack)
        opened = await reading.open_snapshot(store, "acme", built.ref)
        again = await reading.open_snapshot(store, "acme", built.ref.id)
        return [path async for path, _ in opened.walk()], again.ref == built.ref

    with pytest.raises(StopIteration) as done:
        play().send(None)
    assert done.value.value == ([b"", b"a"], True)
