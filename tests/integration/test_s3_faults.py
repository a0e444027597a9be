"""The store over a real S3 server, behind a proxy that breaks what it is told to break.

Goal: each fault ends as the port says, and what is on top ends exactly once whatever happens. Method: SeaweedFS,
`runlore.testing.s3proxy` between, and a second store that goes round the proxy to see what really landed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import urllib.request

import pytest

import made
from runlore import clock, errors
from runlore.commit import marks, revisions
from runlore.consumers import dead, record
from runlore.events import envelope, models
from runlore.lookup import index as lookup_index
from runlore.settings import Settings
from runlore.store import s3
from runlore.testing import buses, invariants, s3proxy
from runlore.worker import loop

FAST = {
    "poll_timeout_seconds": 0.02,
    "marks_interval_seconds": 0.1,
    "retry_seconds_max": 0.2,
    "drain_seconds_max": 20.0,
}
LATE_SECONDS = 0.3


@pytest.fixture
def prefix():
    return f"{clock.new_id()}/"


@pytest.fixture
def behind(seaweedfs, prefix):
    """A proxy, a store behind it, and one that goes round it."""

    @contextlib.asynccontextmanager
    async def opened(**options):
        async with s3proxy.S3Proxy(seaweedfs.endpoint, **options) as proxy:
            one = s3.S3Store(seaweedfs.place(prefix, endpoint=proxy.endpoint, timeout_seconds=5.0))
            other = s3.S3Store(seaweedfs.place(prefix))
            try:
                yield proxy, one, other
            finally:
                await one.close()
                await other.close()

    return opened


WRITES = {
    # method → (make what it needs, call it, what is at the key if it landed)
    "put_if_absent": (None, lambda store, etag: store.put_if_absent("a/k", b"new"), b"new"),
    "compare_and_set of nothing": (
        None,
        lambda store, etag: store.compare_and_set("a/k", b"new", None),
        b"new",
    ),
    "compare_and_set": (b"old", lambda store, etag: store.compare_and_set("a/k", b"new", etag), b"new"),
    "delete": (b"old", lambda store, etag: store.delete("a/k"), None),
    "compare_and_delete": (b"old", lambda store, etag: store.compare_and_delete("a/k", etag), None),
    "delete_many": (b"old", lambda store, etag: store.delete_many(["a/k", "a/none"]), None),
}
FAULTS = {
    # fault → (what the caller is told, whether it landed)
    "slow_down": (errors.StoreUnavailable, False),
    "conflict": (errors.WriteConflict, False),
    "dropped": (errors.OutcomeUnknown, False),
    "lost_reply": (errors.OutcomeUnknown, True),
    "late": (errors.OutcomeUnknown, True),
    "slow": (None, True),
}


@pytest.mark.parametrize("method", WRITES)
async def test_a_broken_write_is_told_by_what_may_have_become_of_it(behind, method):
    before, call, after = WRITES[method]
    async with behind() as (proxy, store, truth):
        for fault, (raised, landed) in FAULTS.items():
            await truth.delete("a/k")
            etag = await truth.put("a/k", before) if before else None
            proxy.rules = [s3proxy.Rule(fault, seconds=LATE_SECONDS)]
            with pytest.raises(raised) if raised else contextlib.nullcontext():
                await call(store, etag)
            assert proxy.counts.pop(fault) == 1 and proxy.counts.pop("requests") == 1, "one request each"
            if fault == "late":
                found = await truth.get("a/k")
                assert (found.body if found else None) == before, "not yet"
                await asyncio.sleep(LATE_SECONDS + 0.3)
            found = await truth.get("a/k")
            assert (found.body if found else None) == (after if landed else before), fault


async def test_a_content_named_put_gets_through_whatever_is_broken(behind):
    async with behind() as (proxy, store, truth):
        for fault in (*FAULTS, "cut"):
            proxy.rules = [s3proxy.Rule(fault, method="PUT", times=2)]
            etag = await store.put(f"a/{fault}", b"body")
            assert await truth.get(f"a/{fault}") == await store.get(f"a/{fault}")
            assert (await truth.get(f"a/{fault}")).etag == etag


@pytest.mark.parametrize("fault", ["slow_down", "dropped", "lost_reply", "cut", "slow"])
async def test_a_read_gets_through_whole_or_not_at_all(behind, fault, monkeypatch):
    body = bytes(range(256)) * 1000
    async with behind() as (proxy, store, truth):
        for number in range(20):
            await truth.put(f"a/{number:02d}", body)

        def broken():
            proxy.rules = [s3proxy.Rule(fault, times=2, seconds=0.05)]

        for call, whole in (
            (lambda: store.get("a/00"), lambda found: found.body == body),
            (lambda: store.get_range("a/00", 100, 100_000), lambda found: found == body[100:100_100]),
            (lambda: store.get_tail("a/00", 1000), lambda found: found == body[-1000:]),
            (lambda: _rows(store), lambda found: found == [f"a/{number:02d}" for number in range(20)]),
            (lambda: store.children("a/"), lambda found: len(found) == 20),
        ):
            broken()
            assert whole(await call())
            assert proxy.counts[fault] == (1 if fault == "slow" else 2), "broken twice, and tried again"
            proxy.counts.clear()
        monkeypatch.setattr(s3, "READ_TRIES_MAX", 2)
        proxy.rules = [s3proxy.Rule(fault, times=None, seconds=0.05)]
        if fault != "slow":
            with pytest.raises(errors.StoreUnavailable):
                await store.get("a/00")


async def _rows(store):
    return [row.key async for row in store.list("a/")]


async def test_a_large_body_bears_the_loss_of_its_parts_and_lands_whole_or_not_at_all(behind):
    body = bytes(range(256)) * (160 * 1024)  # 40 MB: three parts.
    async with behind() as (proxy, store, truth):
        proxy.rules = [
            s3proxy.Rule("slow_down", contains="uploads"),
            s3proxy.Rule("lost_reply", contains="partNumber=1"),
            s3proxy.Rule("dropped", contains="partNumber=3"),
        ]
        etag = await store.put_if_absent("a/large", body)
        assert [rule.times for rule in proxy.rules] == [0, 0, 0]
        found = await truth.get("a/large")
        assert (found.body == body, found.etag) == (True, etag)
        with pytest.raises(errors.PreconditionFailed):
            await store.put_if_absent("a/large", body)
        proxy.rules = [s3proxy.Rule("lost_reply", method="POST", contains="uploadId")]
        with pytest.raises(errors.OutcomeUnknown):
            await store.compare_and_set("a/large", body[1:], etag)
        assert (await truth.get("a/large")).body == body[1:]
        proxy.rules = [s3proxy.Rule("slow_down", method="POST", contains="uploadId")]
        with pytest.raises(errors.StoreUnavailable):
            await store.put_if_absent("a/other", body)
        assert await truth.get("a/other") is None
        assert await _uploads(truth) == []


async def _uploads(store):
    """What multipart writes left behind below the prefix."""
    client = store._client._made
    found = await asyncio.to_thread(client.list_multipart_uploads, Bucket=store.place.bucket)
    return [one["Key"] for one in found.get("Uploads", ()) if one["Key"].startswith(store.place.prefix)]


async def test_a_counter_survives_every_fault_without_losing_or_doubling_a_step(behind):
    # As every head does: read, move, and after an unknown outcome start again from what is there.
    rates = dict.fromkeys(("slow_down", "conflict", "dropped", "lost_reply", "late", "cut"), 0.05)
    async with behind(seed=3, rates=rates, seconds=0.1) as (proxy, store, truth):

        async def add(name):
            for number in range(25):
                step = f"{name}:{number}"
                while True:
                    found = await store.get("counter")
                    steps = json.loads(found.body) if found else []
                    if step in steps:
                        break
                    with contextlib.suppress(errors.Retryable, errors.PreconditionFailed):
                        new = json.dumps([*steps, step]).encode()
                        await store.compare_and_set("counter", new, found.etag if found else None)

        await asyncio.gather(*(add(name) for name in "ab"))
        await asyncio.sleep(0.3)
        steps = json.loads((await truth.get("counter")).body)
        for name in "ab":
            assert [step for step in steps if step.startswith(name)] == [f"{name}:{n}" for n in range(25)]
        # A conflict needs its number to fall on a conditional write, which no seed decides.
        assert {"slow_down", "dropped", "lost_reply", "late"} <= set(proxy.counts)


class World:
    """The pipeline on a store, with a bus in memory: made, worked, judged."""

    def __init__(self, tmp_path, store):
        self.store, self.bus = store, buses.MemoryBus()
        self.index = lookup_index.Index(tmp_path / "index.db")
        self.settings = Settings(**FAST)

    async def emit(self, *events):
        messages = []
        for one in events:
            event = envelope.from_structured(one)
            checked = models.run_completed(event.data)
            messages.append(record.message_of(event, f"{checked.project}/{checked.rollout.alias}", "runs"))
        await self.bus.produce(messages)

    async def work(self, until):
        """Run a worker until nothing is left to do."""
        worker = loop.Worker(self.store, self.bus, self.index, self.settings)
        running = asyncio.create_task(worker.run())
        try:
            async with asyncio.timeout(until):
                while not await self._settled():
                    assert not running.done(), await running
                    await asyncio.sleep(0.2)
        finally:
            worker.stopping.set()
            await asyncio.wait_for(running, 30)
        return worker

    async def _settled(self):
        lag = await self.bus.lag(group="record", topic="runs")
        with contextlib.suppress(errors.Retryable):
            return not sum(lag.values()) and not await marks.marked(self.store)
        return False


@pytest.mark.parametrize(
    "rates",
    [
        {},
        {"lost_reply": 0.15},
        dict.fromkeys(("slow_down", "conflict", "dropped", "lost_reply", "late", "cut"), 0.03),
    ],
    ids=["calm", "lost replies", "everything"],
)
async def test_the_pipeline_ends_exactly_once_whatever_the_store_does_to_it(behind, tmp_path, rates):
    async with behind(seed=11, rates=rates, seconds=0.2) as (proxy, store, truth):
        world = World(tmp_path, store)
        try:
            events = [made.event(number) for number in range(24)]
            await world.emit(*events, *events[5:9])  # Some are delivered twice, as Kafka may.
            await world.work(120)
        finally:
            world.index.close()
        await asyncio.sleep(0.5)
        assert await invariants.check(truth, world.bus, settled=True) == []
        assert await dead.read_all(world.bus) == []
        # The judge counts for itself: each run is there once, in its rollout, and covered.
        runs = [row.key.rpartition("/")[2].rpartition(".")[0] async for row in truth.list("acme/records/")]
        assert sorted(runs) == sorted(f"run-{number}" for number in range(24))
        revision = await revisions.Reader(truth).at("acme", "support")
        assert sorted(name for name, _ in revision.map("coverage").items()) == sorted(
            f"conv-{number}" for number in range(7)
        )
        for fault in rates:
            assert proxy.counts[fault] or fault == "conflict", f"{fault} never happened: {proxy.counts}"


def test_as_a_process_it_says_where_it_is_obeys_and_counts(seaweedfs):
    command = [sys.executable, "-m", "runlore.testing.s3proxy", "--upstream", seaweedfs.endpoint]
    process = subprocess.Popen(
        [*command, "--seed", "1", "--rate", "slow_down=1"], stdout=subprocess.PIPE, text=True
    )
    try:
        endpoint = json.loads(process.stdout.readline())["endpoint"]

        def ask(path, body=None):
            request = urllib.request.Request(endpoint + path, data=body, method="PUT" if body else "GET")
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.loads(answer.read() or b"null") if path == s3proxy.CONTROL else answer.status

        with pytest.raises(urllib.error.HTTPError) as caught:
            ask("/runlore/x")
        assert caught.value.code == 503 and b"SlowDown" in caught.value.read()
        caught.value.close()
        assert ask(s3proxy.CONTROL) == {
            "counts": {"requests": 1, "slow_down": 1},
            "rates": {"slow_down": 1.0},
        }
        with pytest.raises(urllib.error.HTTPError) as caught:
            ask(s3proxy.CONTROL, b'{"rates": {"nonsense": 1}}')
        assert caught.value.code == 400
        caught.value.close()
        assert ask(s3proxy.CONTROL, b'{"rates": {}}')["rates"] == {}
        with pytest.raises(urllib.error.HTTPError) as caught:
            ask("/runlore/x")  # Nobody signed it: the server itself answers now.
        assert caught.value.code == 403
        caught.value.close()
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=10)
        assert json.loads(rest) == {"counts": {"requests": 2, "slow_down": 1}}
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
