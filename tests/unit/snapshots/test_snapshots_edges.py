"""Trees, targets and archives at the edge: what may be saved must be restorable, and nothing else may be hurt.

Goal: issue 4, points 3 to 5. Method: each is an input that once broke a promise, or that a reader of the code
would doubt: real mounts, another user, real links of links, forged trees.
"""

# ruff: noqa: ASYNC221 - the loop of a test has nothing else to do.
from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
import snaptrees

from runlore import errors
from runlore.snapshots import (
    Snapshots,
    ignore,
    names,
    packs,
    reading,
    restoring,
    scan,
    statcache,
    symlinks,
    tarin,
    trees,
)
from runlore.testing.stores import MemoryStore

NOBODY = 65534
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts and becomes somebody else")


def _write(path: Path, body: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return path


# --- mounts, other users, other restores ------------------------------------------------------------------


@root_only
@pytest.mark.parametrize("kind", ["bind", "tmpfs"])
async def test_a_mount_in_a_folder_that_is_replaced_is_never_emptied(tmp_path, kind):
    _write(tmp_path / "in" / "f")
    snapshots = Snapshots(MemoryStore(), "acme", cache_dir=tmp_path / "cache")
    saved = await snapshots.save(tmp_path / "in")
    await snapshots.restore(saved.ref, tmp_path / "out")
    (tmp_path / "out" / "a b" / "data").mkdir(parents=True)
    point = tmp_path / "out" / "a b" / "data"
    (tmp_path / "elsewhere").mkdir()
    how = ["--bind", str(tmp_path / "elsewhere")] if kind == "bind" else ["-t", "tmpfs", "none"]
    if subprocess.run(["mount", *how, str(point)], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount")
    try:
        _write(point / "precious")
        with pytest.raises(errors.UnsafeTarget, match="mount") as caught:
            await snapshots.restore(saved.ref, tmp_path / "out", replace=True)
        assert caught.value.hint
        assert os.listdir(point) == ["precious"]
        assert sorted(os.listdir(tmp_path)) == ["cache", "elsewhere", "in", "out"]
    finally:
        subprocess.run(["umount", str(point)], check=True)
    await snapshots.restore(saved.ref, tmp_path / "out", replace=True)
    assert os.listdir(tmp_path / "out") == ["f"]


@root_only
async def test_a_target_that_is_a_bind_mount_of_the_same_file_system_is_filled_in_place(tmp_path):
    _write(tmp_path / "in" / "d" / "f")
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.save(tmp_path / "in")
    for name in ("out", "behind"):
        (tmp_path / name).mkdir()
    mounted = ["mount", "--bind", str(tmp_path / "behind"), str(tmp_path / "out")]
    if subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("this machine does not let us mount")
    try:
        for _ in range(2):
            await snapshots.restore(saved.ref, tmp_path / "out", replace=True)
            assert snaptrees.describe(tmp_path / "behind") == snaptrees.describe(tmp_path / "in")
            _write(tmp_path / "out" / "stray")
    finally:
        subprocess.run(["umount", str(tmp_path / "out")], check=True)


_AS_NOBODY = """
import asyncio, io, os, sys, encodings.idna, concurrent.futures.thread
from runlore.snapshots import Snapshots
from runlore.testing.stores import MemoryStore

async def play(archive, folder):
    snapshots = Snapshots(MemoryStore(), "acme", cache_dir=folder + "/cache")
    with open(archive, "rb") as file:
        saved = await snapshots.ingest(file)
    for _ in range(3):
        await snapshots.restore(saved.ref, folder + "/out", replace=True)
    assert sorted(os.listdir(folder)) == ["cache", "out"], os.listdir(folder)

# The interpreter may lie where nobody else can read, so the rights go once everything is imported.
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
asyncio.run(play(*sys.argv[1:]))
"""


@root_only
@pytest.mark.parametrize("mode", [0o000, 0o444, 0o555, 0o111])
def test_a_user_without_rights_restores_and_replaces_directories_that_nobody_may_enter(tmp_path, mode):
    """Modes are data: a directory that can not be entered any more still holds what it holds."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        kinds = {"d": tarfile.DIRTYPE, "f": tarfile.REGTYPE, "l": tarfile.SYMTYPE}
        for name, kind in (
            ("./d", "d"),
            ("./d/e", "d"),
            ("./d/e/g", "d"),
            ("./d/e/f", "f"),
            ("./d/e/l", "l"),
            (".", "d"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mode = kinds[kind], "f" if kind == "l" else "", mode
            tar.addfile(member)
    _write(tmp_path / "a.tar", raw.getvalue())
    with tempfile.TemporaryDirectory() as home:  # `tmp_path` lies where only its owner may enter.
        shutil.copy(tmp_path / "a.tar", home)
        os.mkdir(f"{home}/home")
        for path in (home, f"{home}/home", f"{home}/a.tar"):
            os.chown(path, NOBODY, NOBODY)
        done = subprocess.run(
            [sys.executable, "-c", _AS_NOBODY, f"{home}/a.tar", f"{home}/home"],
            capture_output=True, text=True, cwd="/", env={"PYTHONPATH": str(Path(errors.__file__).parents[1])},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr


async def test_a_directory_that_can_not_be_listed_is_refused_in_words(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(scan, "_look", fail)
    with pytest.raises(errors.InvalidInput, match="Permission denied"):
        await Snapshots(MemoryStore(), "acme").save(tmp_path)


async def test_a_restore_that_another_one_took_for_a_dead_one_makes_its_directory_anew(tmp_path, monkeypatch):
    _write(tmp_path / "in" / "f")
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.save(tmp_path / "in")
    real, swept = restoring.fcntl.flock, []

    def lock(descriptor, how):
        if not swept:
            swept.extend(name for name in os.listdir(tmp_path) if name.startswith(".out.runlore-"))
            os.rmdir(tmp_path / swept[0])
        real(descriptor, how)

    monkeypatch.setattr(restoring.fcntl, "flock", lock)
    await snapshots.restore(saved.ref, tmp_path / "out")
    assert len(swept) == 1
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


async def test_files_that_are_one_in_the_old_tree_or_elsewhere_are_written_anew(tmp_path):
    """Linked with something that stays, a file would change where somebody edits the other name."""
    for name in "abc":
        os.utime(_write(tmp_path / "in" / name), ns=(0, 1_600_000_000_000_000_001))
    os.utime(tmp_path / "in")
    snapshots = Snapshots(MemoryStore(), "acme", cache_dir=tmp_path / "cache")
    saved = await snapshots.save(tmp_path / "in")
    await snapshots.restore(saved.ref, tmp_path / "out")
    os.link(tmp_path / "out" / "a", tmp_path / "store")  # As a package manager's store would hold it.
    os.unlink(tmp_path / "out" / "c")
    os.link(tmp_path / "out" / "b", tmp_path / "out" / "c")
    await snapshots.save(tmp_path / "out", base=saved.ref)
    await snapshots.restore(saved.ref, tmp_path / "out", replace=True)
    assert snaptrees.describe(tmp_path / "out") == snaptrees.describe(tmp_path / "in")
    assert [os.stat(tmp_path / "out" / name).st_nlink for name in "abc"] == [1, 1, 1]


# --- trees --------------------------------------------------------------------------------------------------


async def test_the_deepest_tree_that_may_be_saved_is_restored_exported_and_verified(tmp_path, monkeypatch):
    monkeypatch.setattr(trees, "DEPTH_MAX", 5)
    _write(tmp_path / "in" / "1" / "2" / "3" / "4" / "5" / "f")
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.save(tmp_path / "in")
    await snapshots.restore(saved.ref, tmp_path / "out")
    assert snaptrees.describe(tmp_path / "out") == snaptrees.describe(tmp_path / "in")
    assert (await snapshots.verify(saved.ref)).problems == []
    (await snapshots.export(saved.ref)).close()
    (tmp_path / "in" / "1" / "2" / "3" / "4" / "5" / "6").mkdir()
    with pytest.raises(errors.InvalidInput, match="deeper"):
        await snapshots.save(tmp_path / "in")


async def test_an_export_reads_on_where_one_frame_is_larger_than_what_a_reader_keeps(tmp_path, monkeypatch):
    _write(tmp_path / "in" / "large", snaptrees.noise(1, 3_000_000))
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.save(tmp_path / "in")
    monkeypatch.setattr(reading, "FRAMES_KEPT_BYTES", 1)
    with await snapshots.export(saved.ref) as archive, tarfile.open(fileobj=archive) as tar:
        assert tar.extractfile("large").read() == snaptrees.noise(1, 3_000_000)


async def test_what_a_reader_keeps_is_counted_once(tmp_path):
    _write(tmp_path / "in" / "large", snaptrees.noise(1, 6_000_000))
    snapshots = Snapshots(MemoryStore(), "acme")
    opened = await snapshots.open((await snapshots.save(tmp_path / "in")).ref)
    entry = await opened.lookup(b"large")
    for chunk in (*entry.chunks, *reversed(entry.chunks)):
        await opened.blob_ahead(chunk)
    assert opened._kept_bytes == sum(map(len, opened._kept.values()))


async def test_files_of_one_inode_number_on_two_devices_are_two_files(tmp_path, monkeypatch):
    """As on overlayfs, where a tree shows files of several layers."""
    for name in "ab":
        _write(tmp_path / "in" / name)
        os.link(tmp_path / "in" / name, tmp_path / f"other-{name}")
    real = scan.os.scandir

    class Entry:
        def __init__(self, entry, number):
            self._entry, self._number, self.name = entry, number, entry.name

        def stat(self, *, follow_symlinks):
            fields = list(self._entry.stat(follow_symlinks=follow_symlinks))
            fields[1], fields[2] = 7, self._number
            return os.stat_result(fields, {"st_mtime_ns": 0, "st_ctime_ns": 0})

    class Listing:
        def __init__(self, descriptor):
            with real(descriptor) as listed:
                self._entries = [Entry(one, number) for number, one in enumerate(listed)]

        def __enter__(self):
            return self._entries

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(scan.os, "scandir", Listing)
    saved = await Snapshots(MemoryStore(), "acme").save(tmp_path / "in")
    assert saved.report["hardlinks"] == []


@pytest.mark.parametrize(
    "row",
    [
        ["a", 420, 10**40, 0, []],
        ["a", 420, -(10**40), 0, []],
        ["a", 420.5, 0, 0, []],
        ["a", True, 0, 0, []],
        ["a", 420, 0, 0, [], {"xattrs": {"security.capability": "AAAA"}}],
        ["a", 420, 0, 0, [], {"xattrs": {"user.": "AAAA"}}],
        ["a", 420, 0, 0, [], {"xattrs": {"user.a%00": "AAAA"}}],
        ["a", 420, 0, 0, [], {"xattrs": {"user.a": 1}}],
    ],
)
def test_a_forged_row_that_a_restore_could_not_write_or_must_not_is_refused(row):
    with pytest.raises(errors.Corrupt):
        trees.decode(names.canonical({"dirs": [], "files": [row], "links": []}))


@pytest.mark.parametrize(
    ("field", "value"), [("kind", "other"), ("mode", 1 << 40), ("mtime", 10**40), ("mode", None)]
)
def test_a_forged_record_is_refused(field, value):
    body = {"format": trees.RECORD_FORMAT, "kind": "tree", "tree": "0" * 64, "content": "0" * 64, "mode": 493,
            "mtime": 0, "files": 0, "dirs": 0, "links": 0, "bytes": 0, "chunker": "x", "report": None}  # fmt: skip
    raw = names.canonical({**body, field: value})
    trees.decode_record(names.canonical(body), names.digest(names.canonical(body)))
    with pytest.raises(errors.Corrupt):
        trees.decode_record(raw, names.digest(raw))


@pytest.mark.parametrize(
    "given", ["memories", "./memories", "memories/", "/memories", "x/../memories", "memories/."]
)
async def test_a_memory_folder_stays_out_however_its_path_is_spelled(tmp_path, given):
    _write(tmp_path / "in" / "memories" / "secret")
    _write(tmp_path / "in" / "f")
    saved = await Snapshots(MemoryStore(), "acme").save(tmp_path / "in", without=[given])
    assert saved.stats["files"] == 1 and saved.report["excluded"] == {"path": 1}


@pytest.mark.parametrize("line", ["*a*a*a*a*b", "a/**/b/**/c/**/d/**/e", "!*.*.*.*.x", "**/*a*b*c*d/**"])
async def test_an_ignore_file_that_would_take_days_to_match_is_refused(tmp_path, line):
    _write(tmp_path / "sub" / ".runloreignore", line.encode())
    with pytest.raises(errors.InvalidInput, match=r"sub/\.runloreignore has more than 3 stars") as caught:
        await Snapshots(MemoryStore(), "acme").save(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize(
    "line", ["**/*.egg-info/**/*.py", "*.py[cod]", "**/node_modules/**", "# * * * * *", "a*b*c*"]
)
def test_rules_that_people_write_are_taken(line):
    ignore.spec([line])


async def test_rules_that_take_too_long_together_end_the_save(tmp_path, monkeypatch):
    _write(tmp_path / "f")
    monkeypatch.setattr(ignore, "SECONDS_MAX", 0.0)
    with pytest.raises(errors.InvalidInput, match="rules take longer"):
        await Snapshots(MemoryStore(), "acme").save(tmp_path, exclude=["*.pyc"])
    with pytest.raises(errors.InvalidInput, match="at most"):
        ignore.spec(["a"] * (ignore.RULES_MAX + 1))


async def test_a_tree_of_many_directories_goes_through_every_piece_and_is_not_read_again(
    tmp_path, monkeypatch
):
    """The stat cache is written, and trees are read, a number of directories at a time."""
    monkeypatch.setattr(statcache, "FOLDERS_PER_PIECE", 2)
    monkeypatch.setattr(reading, "TREES_AHEAD", 2)
    for number in range(9):
        _write(tmp_path / "in" / f"d{number % 5}" / f"e{number}" / "f", b"%d" % number)
    snapshots = Snapshots(MemoryStore(), "acme", cache_dir=tmp_path / "cache")
    saved = await snapshots.save(tmp_path / "in")
    done = await snapshots.restore(saved.ref, tmp_path / "out")
    assert snaptrees.describe(tmp_path / "out") == snaptrees.describe(tmp_path / "in")
    again = await snapshots.save(tmp_path / "out", base=saved.ref)
    assert (again.id, again.stats["files_read"], done.stats["files"]) == (saved.id, 0, 9)


def test_a_frame_takes_the_memory_of_its_bytes_and_not_of_the_worst_case():
    stored = packs.compress([bytes(1_000_000)], 1)
    assert sys.getsizeof(stored) < len(stored) + 100


@pytest.mark.parametrize("number", [2**64, -1, 1.0])
def test_an_index_with_a_place_that_can_not_be_is_refused(number):
    table = packs.Table([packs.SELF], [(0, number, 1, 0)])
    with pytest.raises(errors.Corrupt):
        packs.decode_table(table.encode())


# --- attributes -----------------------------------------------------------------------------------------------

ODD = {
    "user.colour": b"\x00blue\xff",
    "user.a=b%c": b"x",
    "user.\udcff\u00e4": "ä".encode(),
    "user.empty": b"",
}


@pytest.fixture
def marked(tmp_path):
    """A tree whose file and directory have attributes, odd ones too."""
    _write(tmp_path / "in" / "d" / "f")
    try:
        for path in (tmp_path / "in" / "d", tmp_path / "in" / "d" / "f"):
            for name, value in ODD.items():
                os.setxattr(path, name, value)
    except OSError:
        pytest.skip("this file system has no extended attributes")
    return tmp_path


def _attributes(path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name) for name in os.listxattr(path) if name.startswith("user.")}


async def test_attributes_go_through_a_save_an_export_and_an_ingest(marked):
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.save(marked / "in", xattrs=True)
    with await snapshots.export(saved.ref) as archive:
        again = await snapshots.ingest(archive)
        archive.seek(0)
        _write(marked / "out.tar", archive.read())
    assert again.tree == saved.tree
    await snapshots.restore(again.ref, marked / "out")
    for path in ("d", "d/f"):
        assert _attributes(marked / "out" / path) == ODD


async def test_gnu_tar_reads_and_writes_the_same_attributes(marked):
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.save(marked / "in", xattrs=True)
    (marked / "gnu").mkdir()
    with await snapshots.export(saved.ref) as archive:
        _write(marked / "out.tar", archive.read())
    subprocess.run(["tar", "-C", marked / "gnu", "--xattrs", "-xpf", marked / "out.tar"], check=True)
    assert _attributes(marked / "gnu" / "d" / "f") == ODD
    packed = subprocess.run(
        ["tar", "-C", marked / "in", "--format=posix", "--xattrs", "-cf", "-", "."],
        check=True,
        capture_output=True,
    )
    assert (await snapshots.ingest(io.BytesIO(packed.stdout))).tree == saved.tree


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOSPC, errno.E2BIG])
async def test_attributes_that_a_file_system_does_not_take_are_told_and_the_tree_is_restored(
    marked, monkeypatch, number
):
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.save(marked / "in", xattrs=True)

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "setxattr", refuse)
    done = await snapshots.restore(saved.ref, marked / "out")
    assert {path for path, _ in done.skipped} == {"d", "d/f"}
    assert snaptrees.describe(marked / "out") == snaptrees.describe(marked / "in")


# --- links, merges ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "target", "inside"),
    [
        (b"a", b"d/f", True),
        (b"a", b"d/up", True),  # What it leads to is judged itself.
        (b"a", b"d/up/../x", False),  # By its words alone this stays inside.
        (b"a", b"d/up/", True),
        (b"a", b"d/up/d/up/d/up/x", True),
        (b"a", b"d/up/d/up/..", False),
        (b"d/a", b"up/../x", False),
        (b"d/a", b"../d/up/f", True),
        (b"a", b"circle/x", True),
        (b"a", b"away/../../x", True),  # `away` is left out, so there is nothing behind it.
        (b"a", b"../x", False),
        (b"a", b"/x", False),
    ],
)
def test_a_link_is_judged_by_where_it_leads_through_other_links_too(path, target, inside):
    links = {b"d/up": b"..", b"circle": b"circle", b"away": b"/etc"}
    assert symlinks.stays_inside(path, target, links) is inside


async def test_a_link_that_leaves_by_way_of_another_is_left_out_of_exports_and_careful_restores(tmp_path):
    _write(tmp_path / "in" / "d" / "f")
    os.symlink("..", tmp_path / "in" / "d" / "up")
    os.symlink("d/up/../secret", tmp_path / "in" / "out")
    _write(tmp_path / "secret")
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.save(tmp_path / "in")
    done = await snapshots.restore(saved.ref, tmp_path / "careful", links="inside")
    assert [path for path, _ in done.skipped] == ["out"]
    with await snapshots.export(saved.ref) as archive:
        assert [path for path, _ in archive.left_out] == ["out"]
    assert sorted(os.listdir(tmp_path / "careful")) == ["d"]


async def test_an_export_that_is_closed_or_sought_nowhere_says_so(tmp_path):
    (tmp_path / "in").mkdir()
    snapshots = Snapshots(MemoryStore(), "acme")
    archive = await snapshots.export((await snapshots.save(tmp_path / "in")).ref)
    for offset, whence in ((-1, 0), (-(10**9), 2), (0, 7)):
        with pytest.raises(ValueError, match="nowhere"):
            archive.seek(offset, whence)
    archive.close()
    for use in (archive.read, lambda: archive.seek(0)):
        with pytest.raises(ValueError, match="closed"):
            use()


async def test_the_library_merges_what_two_saves_made_of_one_base(tmp_path):
    snapshots = Snapshots(MemoryStore(), "acme")
    refs = []
    for name, body in (
        ("base", b"1\n2\n3\n4\n"),
        ("ours", b"one\n2\n3\n4\n"),
        ("theirs", b"1\n2\n3\nfour\n"),
    ):
        _write(tmp_path / name / "f", body)
        _write(tmp_path / name / "c", name.encode())
        refs.append((await snapshots.save(tmp_path / name, base=refs[0] if refs else None)).ref)
    saved, conflicts = await snapshots.merge(*refs)
    await snapshots.restore(saved.ref, tmp_path / "out")
    assert (tmp_path / "out" / "f").read_bytes() == b"one\n2\n3\nfour\n"
    assert [one.path for one in conflicts] == [b"c"]
    assert (tmp_path / "out" / "c.conflict-theirs").read_bytes() == b"theirs"
    with pytest.raises(errors.InvalidInput):
        await snapshots.merge(refs[0].id, *refs[1:])


# --- archives -------------------------------------------------------------------------------------------------


async def test_hard_links_of_links_and_of_fifos_come_in_as_gnu_tar_writes_them(tmp_path):
    (tmp_path / "in").mkdir()
    os.symlink("nowhere", tmp_path / "in" / "a")
    os.link(tmp_path / "in" / "a", tmp_path / "in" / "b", follow_symlinks=False)
    raw = subprocess.run(["tar", "-C", tmp_path / "in", "-cf", "-", "."], check=True, capture_output=True)
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.ingest(io.BytesIO(raw.stdout))
    assert saved.report["counts"]["normalised"] == 1
    await snapshots.restore(saved.ref, tmp_path / "out")
    assert snaptrees.describe(tmp_path / "out", times=False) == snaptrees.describe(
        tmp_path / "in", times=False
    )


async def test_a_hard_link_to_a_fifo_is_dropped_with_it():
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, kind, target in (
            ("g", tarfile.LNKTYPE, "f"),
            ("f", tarfile.FIFOTYPE, ""),
            ("h", tarfile.LNKTYPE, "g"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
    raw.seek(0)
    saved = await Snapshots(MemoryStore(), "acme").ingest(raw)
    assert [path for path, _ in saved.report["skipped"]] == ["f", "g", "h"]
    assert saved.stats["files"] == 0


@pytest.mark.parametrize("what", ["names", "targets", "attributes"])
async def test_what_an_archive_makes_us_hold_is_limited(what):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(40):
            member = tarfile.TarInfo(f"{number}" + ("n" * 200 if what == "names" else ""))
            if what == "targets":
                member.type, member.linkname = tarfile.SYMTYPE, "t" * 4000
            if what == "attributes":
                member.pax_headers = {"SCHILY.xattr.user.x": "v" * 4000}
            tar.addfile(member)
    raw.seek(0)
    limits = tarin.Limits(held_bytes_max=7000 if what == "names" else 100_000)
    with pytest.raises(errors.ArchiveLimit, match="names, links and attributes"):
        await Snapshots(MemoryStore(), "acme").ingest(raw, limits=limits)
