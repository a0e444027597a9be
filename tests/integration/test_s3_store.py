"""What S3Store does on a real server beyond the contract: rights, old signatures, a killed server, large bodies, and
the existing parts on top of it (snapshots, sweep).
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os

import pytest

import servers
from runlore import clock, errors
from runlore.commit import age, lines, sweep
from runlore.snapshots import library
from runlore.store import s3, s3client
from runlore.testing import snapshot_invariants


@pytest.fixture
def prefix():
    return f"{clock.new_id()}/"


@pytest.fixture
def stores():
    """Makes stores, and closes them."""
    made = []

    def make(place):
        made.append(s3.S3Store(place))
        return made[-1]

    yield make

    async def close():
        for store in made:
            await store.close()

    asyncio.run(close())


# --- who may, and for how long ----------------------------------------------------------------------------


async def test_a_real_server_refuses_an_old_signature_and_the_stand_in_does_not(
    seaweedfs, moto, stores, prefix
):
    assert await stores(seaweedfs.place(prefix)).refuses_old_signatures() is True
    assert await stores(moto.place(prefix)).refuses_old_signatures() is False
    assert [row.key async for row in stores(seaweedfs.place(prefix)).list("")] == []


async def test_the_window_of_a_real_server_is_the_one_that_the_age_rule_counts_on(seaweedfs, stores, prefix):
    store = stores(seaweedfs.place(prefix))
    assert await store.refuses_old_signatures(age.WINDOW)
    assert not await store.refuses_old_signatures(age.WINDOW - dt.timedelta(minutes=2))


async def test_a_guarded_write_that_was_stopped_for_longer_than_the_window_does_not_land(
    seaweedfs, stores, prefix
):
    # The process can not be stopped for 15 minutes here, so the request is signed as of then.
    store = stores(seaweedfs.place(prefix))
    etag = await store.put("a/head", b"1")
    before = clock.now() - age.WINDOW - dt.timedelta(minutes=1)
    params = {"Key": f"{prefix}a/head", "Body": b"2", "IfMatch": f'"{etag}"'}
    guards = []
    with pytest.raises(errors.Blocked, match="RequestTimeTooSkewed"):
        await store._run("PutObject", write=True, signed_at=before, guard=lambda: guards.append(1), **params)
    assert guards == [1] and (await store.get("a/head")).body == b"1"
    await store._run("PutObject", write=True, signed_at=clock.now() - dt.timedelta(minutes=10), **params)
    assert (await store.get("a/head")).body == b"2"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("reader", "AccessDenied"),
        ("unknown key", "InvalidAccessKeyId"),
        ("wrong secret", "SignatureDoesNotMatch"),
        ("no bucket", "NoSuchBucket"),
    ],
)
async def test_what_a_person_must_change_is_told_and_never_the_secret(
    seaweedfs, moto, stores, prefix, what, said
):
    from infra.dev import s3 as dev_s3

    changes = {
        "reader": dict(zip(("access_key_id", "secret_access_key"), dev_s3.READER, strict=True)),
        "unknown key": {"access_key_id": "nobody"},
        "wrong secret": {"secret_access_key": "not-the-secret"},
        "no bucket": {"bucket": "no-such-bucket"},
    }[what]
    # SeaweedFS makes a bucket for an administrator who writes to it; AWS does not.
    server = moto if what == "no bucket" else seaweedfs
    await stores(server.place(prefix)).put("a/k", b"body")
    store = stores(server.place(prefix, **changes))
    writes = [
        lambda: store.put("a/k", b"new"),
        lambda: store.put_if_absent("a/new", b"new"),
        lambda: store.compare_and_set("a/k", b"new", "etag"),
        lambda: store.compare_and_delete("a/k", "etag"),
        lambda: store.delete("a/k"),
        lambda: store.delete_many(["a/k", "a/none"]),
    ]
    reads = [
        lambda: store.get("a/k"),
        lambda: store.get_range("a/k", 0, 1),
        lambda: store.get_tail("a/k", 1),
        lambda: store.children("a/"),
    ]
    if what == "reader":
        assert all([await read() for read in reads])
        reads = []
    for call in (*writes, *reads):
        with pytest.raises(errors.Blocked, match=said) as caught:
            await call()
        assert caught.value.hint
        assert store.place.secret_access_key not in f"{caught.value.as_dict()}{caught.value.__cause__}"
    assert (await stores(server.place(prefix)).get("a/k")).body == b"body"


async def test_one_prefix_never_sees_or_touches_another(seaweedfs, stores, prefix):
    one, other = stores(seaweedfs.place(f"{prefix}one/")), stores(seaweedfs.place(f"{prefix}one-more/"))
    whole = stores(seaweedfs.place(prefix))
    for store in (one, other):
        await store.put("a/k", b"")
    await one.delete_many(["a/k", "a/none"])
    assert await one.get("a/k") is None and [row.key async for row in one.list("")] == []
    assert [row.key async for row in other.list("")] == ["a/k"]
    assert [row.key async for row in whole.list("")] == ["one-more/a/k"]


# --- bodies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["moto", "seaweedfs"])
async def test_a_body_beyond_one_request_goes_in_parts_and_comes_back_whole(request, stores, prefix, server):
    store = stores(request.getfixturevalue(server).place(prefix))
    told = []
    store.on_request = lambda *request: told.append(request)
    body = os.urandom(s3.SINGLE_BYTES_MAX + 2)
    etag = await store.put_if_absent("a/large", body)
    assert [one[0] for one in told].count("UploadPart") == 3
    assert sum(one[2] for one in told) == len(body)
    found = await store.get("a/large")
    assert found.body == body and found.etag == etag
    assert (
        await store.get_range("a/large", s3.PART_BYTES - 2, 4) == body[s3.PART_BYTES - 2 : s3.PART_BYTES + 2]
    )
    with pytest.raises(errors.PreconditionFailed):
        await store.put_if_absent("a/large", body)
    (row,) = [row async for row in store.list("a/")]
    assert (row.etag, row.size) == (etag, len(body))
    if server == "moto":
        return  # It takes no If-Match where an upload is completed.
    guards = []
    moved = await store.compare_and_set("a/large", body[1:], etag, guard=lambda: guards.append(told[-1][0]))
    assert guards == ["UploadPart"], "nothing but the last request makes it an object"
    with pytest.raises(errors.PreconditionFailed):
        await store.compare_and_set("a/large", body, etag)
    assert (await store.get("a/large")).etag == moved


async def test_a_body_that_changed_on_its_way_is_refused_by_the_server(
    seaweedfs, stores, prefix, monkeypatch
):
    from runlore.store import s3client

    store = stores(seaweedfs.place(prefix))
    monkeypatch.setattr(s3client, "checksum", lambda body: "AAAAAA==")
    with pytest.raises(errors.StoreUnavailable, match="BadDigest"):
        await store.put_if_absent("a/k", b"body")
    monkeypatch.undo()
    assert await store.get("a/k") is None


# --- a server that dies -----------------------------------------------------------------------------------


@pytest.mark.process
async def test_nothing_that_was_acknowledged_is_lost_when_the_server_is_killed(tmp_path, stores):
    from infra.dev import s3 as dev_s3

    servers.need("s3", dev_s3.missing())
    server = dev_s3.S3Server(tmp_path / "server")
    try:
        await asyncio.to_thread(server.start)
        where = servers.S3Endpoint("own", server.endpoint, server.access_key_id, server.secret_access_key)
        store = stores(where.place("x/", timeout_seconds=2.0))
        acknowledged, told = [], []
        killed = asyncio.Event()

        async def write(name):
            for number in range(10_000):
                try:
                    await store.put_if_absent(f"{name}/{number:05d}", b"%d" % number)
                    acknowledged.append(f"{name}/{number:05d}")
                except errors.Retryable as exc:  # A busy machine may be slow before it is killed, too.
                    told.append(exc)
                    if killed.is_set():
                        return

        writers = [asyncio.create_task(write(name)) for name in "abcd"]
        while len(acknowledged) < 100:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        killed.set()
        await asyncio.to_thread(server.kill)
        await asyncio.gather(*writers)
        assert {type(one) for one in told} <= {errors.OutcomeUnknown, errors.StoreUnavailable}
        with pytest.raises(errors.StoreUnavailable):
            await store.put_if_absent("e/0", b"")
        await asyncio.to_thread(server.start)
        there = {row.key async for row in store.list("")}
        assert (
            set(acknowledged)
            <= there
            <= set(acknowledged) | {f"{n}/{i:05d}" for n in "abcd" for i in range(9999)}
        )
        assert len(there) <= len(acknowledged) + len(told)
        bodies = await store.get_many(acknowledged)
        assert [one.body for one in bodies] == [b"%d" % int(key[2:]) for key in acknowledged]
    finally:
        await asyncio.to_thread(server.kill)


# --- the parts on top of it -------------------------------------------------------------------------------


def _tree(folder, version):
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    for number in range(40):
        (folder / "sub" / f"{number}.txt").write_text(f"{number} {'x' * number}\n")
    (folder / "large.bin").write_bytes(bytes(range(256)) * 4000)
    (folder / "version").write_text(version)


def _content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Later(clock.World):
    """The machine, some time from now."""

    def __init__(self, by):
        self.by = by

    def now(self):
        return super().now() + self.by


async def test_a_workspace_is_saved_restored_verified_and_swept(seaweedfs, stores, prefix, tmp_path):
    store = stores(seaweedfs.place(prefix))
    snapshots = library.Snapshots(store, "acme", cache_dir=tmp_path / "cache")
    line = lines.line_of("acme", "conv", None)
    refs = []
    for version in ("one", "two"):
        _tree(tmp_path / "space", version)
        began, head = clock.now(), await lines.read(store, line)
        saved = await snapshots.save(tmp_path / "space", base=refs[-1] if refs else None)
        placed = await lines.save(
            store, line, str(saved.ref), lines.base_of(head.body), reason="test", began=began
        )
        assert placed.state == lines.MOVED
        refs.append(saved.ref)
        await snapshots.restore(saved.ref, tmp_path / version)
        assert _content(tmp_path / version) == _content(tmp_path / "space")
    (tmp_path / "one" / "more").write_text("named by nothing")
    garbage = await snapshots.save(tmp_path / "one")
    assert await snapshot_invariants.check(store, "acme") == []
    assert (await sweep.scan(store, "acme")).victims == [], "too young"

    clock.install(Later(age.TERM + dt.timedelta(hours=1)))
    plan = await sweep.scan(store, "acme")
    assert any(victim.key.endswith(str(garbage.ref)) for victim in plan.victims)
    assert await sweep.delete(store, plan, per_second=1e6) == len(plan.victims)
    assert (await sweep.scan(store, "acme")).victims == []
    for ref in refs:
        assert (await snapshots.verify(ref)).problems == []


@pytest.mark.parametrize("size, asks_first", [(0, False), (10_000, False), (1024 * 1024, True)])
async def test_a_small_body_goes_with_its_headers_and_a_large_one_asks_first(stores, size, asks_first):
    heard = []

    async def answer(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        heard.append(head.decode().lower())
        if "100-continue" in heard[-1]:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        heard.append(await reader.readexactly(size))
        writer.write(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 0\r\n\r\n')
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        place = s3client.Place(
            "b", endpoint=f"http://127.0.0.1:{port}", access_key_id="a", secret_access_key="s"
        )
        await stores(place).put("acme/k", b"x" * size)
    assert ("expect: 100-continue" in heard[0]) is asks_first
    assert heard[1] == b"x" * size
