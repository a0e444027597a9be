"""The format is what docs/FORMAT.md says. Goal: a second implementation could read and write it.

Method: a reader written from the document alone restores what Runlore saved; the worked example of the document
is made again byte by byte; the cutting rules meet their test vector.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path

import snapshot_reader
from hypothesis import HealthCheck, given, settings

from runlore.snapshots import Snapshots, chunks, names, removing, trees
from runlore.store.directory import DirectoryStore
from runlore.testing.stores import MemoryStore

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "snapshots"))
import snaptrees

FORMAT = (Path(__file__).parents[2] / "docs" / "FORMAT.md").read_text()


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(tree=snaptrees.TREES)
def test_a_reader_written_from_the_document_alone_restores_any_snapshot(tree):
    async def play(folder: str):
        store = DirectoryStore(folder + "/store", fsync=False)
        snapshots = Snapshots(store, "acme")
        os.mkdir(folder + "/base")
        base = await snapshots.save(folder + "/base")
        snaptrees.make(os.fsencode(folder + "/in"), tree)
        saved = await snapshots.save(folder + "/in", base=base.ref)
        await store.close()
        for number, snapshot in enumerate((str(saved.ref), saved.id)):
            snapshot_reader.restore(folder + "/store", "acme", snapshot, f"{folder}/out{number}")
            assert snaptrees.describe(f"{folder}/out{number}") == snaptrees.describe(folder + "/in")

    folder = tempfile.mkdtemp()
    try:
        asyncio.run(play(folder))
    finally:
        removing.remove(os.fsencode(folder))


async def test_the_same_reader_gives_back_attributes_references_and_reports(tmp_path):
    store = DirectoryStore(tmp_path / "store", fsync=False)
    snapshots = Snapshots(store, "acme")
    (tmp_path / "in" / "d").mkdir(parents=True)
    (tmp_path / "in" / "d" / "f").write_bytes(b"x")
    os.link(tmp_path / "in" / "d" / "f", tmp_path / "in" / "g")
    os.mkfifo(tmp_path / "in" / "pipe\n%")
    odd = {b"user.a%\xff": b"\x00\xff", b"user.b": b""}
    try:
        for path in ("d", "d/f"):
            for name, value in odd.items():
                os.setxattr(tmp_path / "in" / path, name, value)
    except OSError:
        odd = {}
    saved = await snapshots.save(tmp_path / "in", xattrs=True)
    native = await snapshots.ingest(io.BytesIO(b'E2B_SANDBOX_SNAPSHOT_V1\n{"snapshot_id":"x"}'))
    await store.close()
    where = (str(tmp_path / "store"), "acme")
    snapshot_reader.restore(*where, str(saved.ref), str(tmp_path / "out"))
    for path in ("d", "d/f"):
        at = os.fsencode(tmp_path / "out" / path)
        assert {name: os.getxattr(at, name) for name in map(os.fsencode, os.listxattr(at))} == odd
    snapshot_reader.restore(*where, native.id, str(tmp_path / "reference"))
    assert (tmp_path / "reference").read_bytes() == b'E2B_SANDBOX_SNAPSHOT_V1\n{"snapshot_id":"x"}'
    told = snapshot_reader.report(*where, saved.id)
    assert told["skipped"] == [["pipe\n%25", "fifo"]]
    assert told["hardlinks"] == [["d/f", "g"]]
    assert told["counts"] == {"skipped": 1, "changed": 0, "hardlinks": 1, "normalised": 0, "excluded": 0}


def _example(folder: Path) -> None:
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "a%b.txt").write_bytes(b"hi\n")
    os.chmod(folder / "src" / "a%b.txt", 0o644)
    os.symlink("src/a%b.txt", folder / "latest")
    os.utime(folder / "src" / "a%b.txt", ns=(1_700_000_000_500_000_000,) * 2)
    os.utime(folder / "latest", ns=(1_700_000_001_000_000_000,) * 2, follow_symlinks=False)
    os.chmod(folder / "src", 0o755)
    os.utime(folder / "src", ns=(1_700_000_002_000_000_000,) * 2)
    os.chmod(folder, 0o755)
    os.utime(folder, ns=(1_700_000_003_000_000_000,) * 2)


async def test_the_worked_example_is_what_runlore_writes(tmp_path):
    _example(tmp_path / "in")
    snapshots = Snapshots(MemoryStore(), "acme")
    saved = await snapshots.save(tmp_path / "in")
    opened = await snapshots.open(saved.id)
    shown = [line.strip() for line in FORMAT.split("## Worked example")[1].split("## Tar")[0].splitlines()]
    entry = await opened.lookup(b"src")
    for raw in (opened.root.record, await opened.blob(opened.record.tree), await opened.blob(entry.tree)):
        assert raw.decode() in shown
        assert names.digest(raw) in "\n".join(shown)
    assert saved.id in "\n".join(shown)


def test_files_are_cut_where_the_test_vector_says():
    body = hashlib.shake_128(b"chunk").digest(1_000_000)
    listed = re.search(r"are cut into lengths\s([\d, ]+)\.", FORMAT)
    expected = [int(number) for number in listed[1].split(",")]
    for piece in (65536, 262144, 2 * 1024 * 1024):
        cutter = chunks.Cutter(chunks.cutter())
        found = []
        for at in range(0, len(body), piece):
            found += [len(chunk) for chunk in cutter.feed(body[at : at + piece])]
        found += [len(chunk) for chunk in cutter.finish()]
        assert found == expected
        assert cutter.extents == [0, 1_000_000]


def test_the_document_names_the_rules_that_records_carry():
    assert chunks.CHUNKER in FORMAT
    assert trees.RECORD_FORMAT in FORMAT
    assert trees.REPORT_FORMAT in FORMAT
