"""Bombs: small bytes that want much memory or time. Refused with a reason, within bounds, and the original is kept.

Goal: issue 7, point 4. Method: bombs some hundred times smaller than the worst that would be let in, with the memory
counted that they take; a bomb of time is one that would not end while the test waits.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import tarfile
import tracemalloc
import zipfile
import zlib

import pytest
import targets
import zstandard

import made
from runlore import errors
from runlore.agents import remote
from runlore.bus import port as bus_port
from runlore.commit import keys, packs
from runlore.consumers import dead, snapshot
from runlore.consumers import record as record_stage
from runlore.events import envelope, models, records
from runlore.snapshots import library, tarin
from runlore.testing import buses, stores

MB = 1024 * 1024


class Peak:
    """The most memory that Python took within the block, in bytes."""

    def __enter__(self):
        tracemalloc.start()
        return self

    def __exit__(self, *_):
        self.bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


# --- JSON -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", ["[]", "{}", '"ab"', "0", '{"a":[]}'])
def test_a_record_of_too_many_values_is_refused_before_memory_is_taken_for_them(monkeypatch, item):
    """Found by measuring: 64 MB of them took two gigabytes and two minutes, for a worker that has one gigabyte."""
    monkeypatch.setattr(records, "VALUES_MAX", 20_000)
    line = '{"input":[' + ",".join([item] * 20_001) + "]}"
    with Peak() as peak, pytest.raises(errors.RecordTooLarge):
        records.check(line)
    assert peak.bytes < len(line) // 2 + 10_000
    with pytest.raises(errors.BadJson):
        envelope.load(line.encode(), "it")


def test_a_long_text_full_of_commas_is_no_bomb():
    line = json.dumps({"input": [{"role": "user", "content": '[{,\\"' * 300_000}]})
    assert records.check(line)["input"][0]["role"] == "user"


@pytest.mark.parametrize("text", ["a" * MB, "\\n" * (MB // 2)], ids=["plain", "escapes"])
def test_a_long_text_takes_no_memory_to_be_passed_over(text):
    """Found by measuring: 60 MB of text took 6.8 GB, so one secret in a large record ended the worker."""
    line = f'{{"content":"{text}"}}'
    with Peak() as peak:
        assert len(list(records.literals(line))) == 2
    # The text itself, as it is spelled and decoded.
    assert peak.bytes < 6 * len(line)


# --- archives -------------------------------------------------------------------------------------------------


def plain():
    return targets.archives()[0]


def overlapping_zip():
    """Two entries of a directory that name one body."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(100_000))
        archive.filelist.append(archive.filelist[0])
    return out.getvalue()


OTHERS = {
    "zip": overlapping_zip,
    "zstd": lambda: zstandard.compress(plain()),
    "bzip2": lambda: bz2.compress(plain()),
    "xz": lambda: lzma.compress(plain()),
    "gzip in gzip": lambda: gzip.compress(gzip.compress(plain())),
    "nothing": lambda: b"",
    "zeros": lambda: bytes(511),
}


async def ingest(raw, **limits):
    store = stores.MemoryStore()
    found = library.Snapshots(store, "acme")
    return found, await found.ingest(io.BytesIO(raw), limits=tarin.Limits(**limits))


@pytest.mark.parametrize("name", OTHERS)
async def test_what_is_no_plain_or_gzipped_tar_is_refused(name):
    with pytest.raises(errors.BadArchive):
        await ingest(OTHERS[name]())


def inflating(kind=tarfile.REGTYPE, size=24 * MB):
    """A tar of one entry of zeros, in gzip: a thousandth of it."""
    member = tarfile.TarInfo("zeros")
    member.type, member.size = kind, size
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(member.tobuf()), *(packer.compress(bytes(MB)) for _ in range(size // MB))]
    return b"".join([*parts, packer.compress(bytes(1024)), packer.flush()])


async def test_a_gzip_bomb_ends_at_the_ratio():
    bomb = inflating()
    with Peak() as peak, pytest.raises(errors.ArchiveLimit):
        await ingest(bomb)
    assert peak.bytes < 16 * MB


async def test_a_tar_within_a_tar_is_a_file_and_is_not_unpacked():
    inner = targets.sparse(60 * 1024**3)
    outer = io.BytesIO()
    with tarfile.open(fileobj=outer, mode="w") as tar:
        member = tarfile.TarInfo("inner.tar")
        member.size = len(inner)
        tar.addfile(member, io.BytesIO(inner))
    _, saved = await ingest(outer.getvalue())
    assert saved.stats["bytes"] == len(inner)


async def test_a_sparse_file_of_sixty_gigabytes_costs_what_is_in_it(tmp_path):
    """Found by reading: its zeros were made and hashed, for minutes, of ten kilobytes of archive."""
    found, saved = await ingest(targets.sparse(60 * 1024**3))
    assert saved.stats["bytes"] == 60 * 1024**3
    await found.restore(saved.ref, tmp_path / "out")
    status = (tmp_path / "out" / "holes").stat()
    assert status.st_size == 60 * 1024**3 and status.st_blocks * 512 < MB


@pytest.mark.parametrize(
    "sizes", [[(0, 4)], [(65_536, 70_000)], [(131_072, 4), (10, 4)], [(199_990, 10)], [(0, 0)]]
)
async def test_a_sparse_file_is_the_same_snapshot_as_its_dense_copy(sizes):
    size, data = 200_000, b""
    dense = bytearray(size)
    for at, (offset, length) in enumerate(sizes):
        part = bytes([65 + at]) * length
        dense[offset : offset + length] = part
        data += part
    told = "\n".join(map(str, [len(sizes), *(n for pair in sizes for n in pair)])).encode() + b"\n"
    told = told.ljust(512, b"\0") + data
    bodies = [
        (told, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(size)}),
        (dense, {}),
    ]
    ids = []
    for body, more in bodies:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            member = tarfile.TarInfo("f")
            member.size, member.pax_headers = len(body), more | ({"GNU.sparse.name": "f"} if more else {})
            tar.addfile(member, io.BytesIO(bytes(body)))
        ids.append((await ingest(out.getvalue()))[1].ref.id)
    assert ids[0] == ids[1] or sizes == [(131_072, 4), (10, 4)]  # Out of order: no writer makes such a map.


def claiming(size):
    """A sparse file of four bytes whose stored part is said to have `size` of them, and the archive ends there."""
    raw = bytearray(targets.sparse())
    at = raw.index(b"GNUSparseFile.0/holes") // 512 * 512
    raw[at + 124 : at + 136] = b"\x80" + size.to_bytes(11, "big")
    raw[at + 148 : at + 156] = b" " * 8
    raw[at + 148 : at + 156] = b"%06o\0 " % sum(raw[at : at + 512])
    return bytes(raw)


@pytest.mark.parametrize("size", [2**33, 2**50, 2**62])
async def test_an_entry_that_says_it_is_stored_in_exabytes_ends_where_the_archive_does(size):
    """Found by fuzzing: they were passed over ten kilobytes at a time, for ever, though nothing was left."""
    with pytest.raises((errors.BadArchive, errors.ArchiveLimit)):
        await ingest(claiming(size))
    with pytest.raises(errors.BadArchive):
        remote._unpacked(io.BytesIO(claiming(size)))


async def test_names_that_differ_by_case_or_by_unicode_form_alone_stay_apart(tmp_path):
    wanted = {"A": b"1", "a": b"2", "\u00e9": b"3", "e\u0301": b"4", "\u017f": b"5", "s": b"6"}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, body in wanted.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    found, saved = await ingest(out.getvalue())
    await found.restore(saved.ref, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == wanted


async def test_a_hundred_thousand_tiny_entries_end_at_the_limit():
    header = tarfile.TarInfo("d").tobuf()
    with pytest.raises(errors.ArchiveLimit):
        await ingest(
            gzip.compress(b"".join(tarfile.TarInfo(f"f{n}").tobuf() for n in range(3000)) + header),
            entries_max=2000,
        )


# --- a bundle of the service, a pack of the store -----------------------------------------------------------------


def lying(size):
    """A tar whose one entry says that it has another size."""
    member = tarfile.TarInfo("MEMORY.md")
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(2048)


@pytest.mark.parametrize(
    "raw",
    [
        lying(-(2**40)), lying(2**40), inflating(tarfile.XHDTYPE), b"",
        b"\x1f\x8b" + b"\0" * 20,
    ],
    ids=["negative", "huge", "header", "empty", "gzip"],
)  # fmt: skip
def test_a_bundle_that_lies_is_a_bad_archive_in_little_memory(raw):
    with Peak() as peak, pytest.raises(errors.BadArchive):
        remote._unpacked(io.BytesIO(raw))
    assert peak.bytes < 16 * MB


def test_an_index_of_a_pack_that_inflates_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr(packs, "INDEX_BYTES_MAX", MB // 2)
    tail = zlib.compress(b'{"a":[0,0]' + b" " * 12 * MB + b"}")
    raw = packs.MAGIC + tail + len(tail).to_bytes(4, "big")
    with Peak() as peak, pytest.raises(errors.Corrupt):
        packs.decode(packs.name(raw), raw)
    assert peak.bytes < 8 * MB


# --- through the stages: nothing is lost ------------------------------------------------------------------------


def message(data, offset=0):
    event = envelope.of_run(data, source="/t")
    return bus_port.Message("runs", 0, offset, b"acme/c", event.value(), event.headers(), 0.0)


async def claimed(store, body):
    sha256 = hashlib.sha256(body).hexdigest()
    await store.put(keys.claim("acme", sha256), body)
    return {"sha256": sha256, "size": len(body)}


async def test_a_bomb_of_an_archive_is_a_dead_letter_and_is_kept():
    store, bus = stores.MemoryStore(), buses.MemoryBus()
    bomb = inflating()
    claim = await claimed(store, bomb)
    data = made.data(1, workspaces=[{"archive": claim}])
    done = await snapshot.SnapshotStage(store, bus).process([message(data), message(made.data(2), 1)])
    assert [one.error.kind for one in done.outcomes if one.error] == ["archive_refused"]
    (letter,) = await dead.read_all(bus)
    assert json.loads(await dead.value_of(store, letter))["workspaces"] == data["workspaces"]
    assert (await store.get(keys.claim("acme", claim["sha256"]))).body == bomb


class Huge(stores.MemoryStore):
    """A store with one object that is far larger than its claim says: whoever takes all of it is caught."""

    async def get(self, key):
        assert "/claims/" not in key, "the whole object was asked for"
        return await super().get(key)

    async def get_range(self, key, offset, length):
        assert length <= models.RECORD_BYTES_MAX + 1
        return b"x" * length if "/claims/" in key else await super().get_range(key, offset, length)


@pytest.mark.parametrize("kind", ["record", "edit"])
async def test_an_object_that_is_larger_than_its_claim_is_not_read_whole(kind):
    """Found by reading: what lies under a claim's name is whatever somebody put there."""
    store, bus = Huge(), buses.MemoryBus()
    claim = {"sha256": "a" * 64, "size": 3}
    base = hashlib.sha256(b"").hexdigest()
    if kind == "record":
        event = envelope.of_run(made.data(1) | {"record": None, "record_claim": claim}, source="/t")
    else:
        files = [{"path": "MEMORY.md", "text_claim": claim, "base_sha256": base}]
        data = {
            "project": "acme",
            "memory": "m",
            "run_id": "r",
            "edit_id": "e",
            "revision": 0,
            "files": files,
        }
        event = envelope.of_edit(data, source="/t")
    given = bus_port.Message("runs", 0, 0, b"k", event.value(), event.headers(), 0.0)
    done = await record_stage.RecordStage(store, bus).process([given])
    assert [one.error.kind for one in done.outcomes] == ["claim_mismatch"]
