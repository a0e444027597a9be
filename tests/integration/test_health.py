"""Probes over HTTP: what they say of a worker that starts, works, is blocked, hangs and drains."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time

import pytest

import made
from runlore import errors, telemetry
from runlore.lookup.index import Index
from runlore.producer import Producer
from runlore.settings import Settings
from runlore.testing.buses import MemoryBus
from runlore.testing.stores import MemoryStore
from runlore.worker import health
from runlore.worker.loop import Worker


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Denied(MemoryStore):
    """A bucket whose permission somebody takes away, with a secret in the refusal's context."""

    denied = False

    async def get(self, key):
        if self.denied:
            raise errors.Blocked("the bucket denied GetObject")
        return await super().get(key)


@contextlib.asynccontextmanager
async def running(tmp_path, *, store=None, bus=None, **more):
    """A worker that serves its health: (health, worker, a function that asks a path, bus)."""
    settings = Settings(
        home=tmp_path,
        health_port=free_port(),
        poll_timeout_seconds=0.05,
        marks_interval_seconds=0.2,
        retry_seconds_max=0.2,
        **more,
    )
    bus, store = bus or MemoryBus(), store or MemoryStore()
    index = Index(tmp_path / "index.db")
    worker = Worker(store, bus, index, settings)
    try:
        async with health.serve(worker, settings) as served:
            task = asyncio.create_task(worker.run())
            try:
                yield served, worker, lambda path, **how: ask(settings.health_port, path, **how), bus
            finally:
                worker.stopping.set()
                await task
    finally:
        index.close()


async def ask(port, path, *, method="GET"):
    return await asyncio.to_thread(ask_now, port, path, method)


def ask_now(port, path, method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


async def until(condition, seconds=10):
    give_up = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < give_up, "it did not come about"
        await asyncio.sleep(0.05)


def sample(text, name):
    """The value of a sample in the text format, given with its labels."""
    return next(
        (float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name + " ")), None
    )


async def test_a_worker_becomes_ready_when_its_stages_joined_and_its_index_caught_up(tmp_path):
    async with running(tmp_path) as (served, worker, get, _):
        first = health.Health(worker, Settings(home=tmp_path)).noted.not_ready
        assert set(first) == {f"{name} has not joined its group" for name in worker.stages}

        async def is_ready():
            return (await get("/readyz"))[0] == 200

        await until(is_ready)
        assert worker.caught_up and not served.noted.not_ready
        assert (await get("/livez"))[0] == 200


async def test_metrics_tell_what_the_stages_did(tmp_path):
    async with running(tmp_path) as (_, worker, get, bus):
        await Producer(worker._store, bus).publish([made.data(n) for n in range(20)], source="/t")
        bad = await Producer(worker._store, bus)._as_it_came(1, b"{", errors.BadJson("x"))
        await bus.produce([bad[0]])

        async def is_done():
            return worker.progress.covered >= 7 and worker.progress.dead == 1

        await until(is_done)
        status, text = await get("/metrics")
    assert status == 200
    assert sample(text, 'runlore_messages_total{outcome="recorded",stage="record"}') == 20
    assert sample(text, 'runlore_messages_total{outcome="nothing",stage="snapshot"}') == 21
    assert sample(text, 'runlore_dead_letters_total{reason="bad_json",stage="record"}') == 1
    assert (
        sample(text, "runlore_rollouts_covered_total") >= 7 and sample(text, "runlore_revisions_total") >= 1
    )
    assert sample(text, 'runlore_stage_duration_seconds_count{stage="record"}') >= 1
    assert sample(text, 'runlore_stage_duration_seconds_count{stage="consolidate"}') >= 1
    assert sample(text, 'runlore_stage_state{stage="record",state="running"}') == 1
    assert sample(text, 'runlore_lag_messages{partition="0",stage="record"}') is not None
    assert sample(text, "runlore_sampled_timestamp_seconds") > 1e9
    assert sample(text, "runlore_disk_free_bytes") > 0 and sample(text, "runlore_marks_waiting") is not None
    assert not [word for word in ("acme", "support", "conv-", "run-1") if word in text]


async def test_lag_and_age_are_measured_from_outside(tmp_path):
    async with running(tmp_path) as (served, worker, get, bus):
        worker.stopping.set()  # Nobody works any more, and what comes is left.
        await asyncio.sleep(0.3)
        await Producer(worker._store, bus).publish([made.data(n) for n in range(5)], source="/t")
        await asyncio.sleep(0.05)
        await served._sample()
        _, text = await get("/metrics")
    lag = [
        line
        for line in text.splitlines()
        if line.startswith("runlore_lag_messages") and 'stage="record"' in line
    ]
    assert sum(float(line.rpartition(" ")[2]) for line in lag) == 5
    assert 0 < sample(text, 'runlore_oldest_unprocessed_age_seconds{stage="record"}') < 60


async def test_a_blocked_stage_is_shown_and_makes_nobody_unready_or_unlive(tmp_path):
    store = Denied()
    async with running(tmp_path, store=store) as (_, _, get, bus):

        async def is_ready():
            return (await get("/readyz"))[0] == 200

        await until(is_ready)
        store.denied = True
        await Producer(store, bus).publish([made.data(1)], source="/t")

        async def is_blocked():
            return json.loads((await get("/status"))[1])["stages"]["record"]["state"] == "blocked"

        await until(is_blocked)
        stage = json.loads((await get("/status"))[1])["stages"]["record"]
        assert stage["cause"] == "blocked: the bucket denied GetObject" and stage["in_flight"] == 1
        assert (
            stage["parked"] == 0
            and sample((await get("/metrics"))[1], 'runlore_parked_messages{stage="record"}') == 0
        )
        assert (await get("/readyz"))[0] == (await get("/livez"))[0] == 200
        assert sample((await get("/metrics"))[1], 'runlore_stage_state{stage="record",state="blocked"}') == 1
        store.denied = False


async def test_a_loop_that_hangs_says_so_from_another_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(health, "LIVE_SECONDS_MAX", 1.0)
    async with running(tmp_path) as (_, worker, get, _):
        port = worker._settings.health_port
        assert (await get("/livez"))[0] == 200
        answers = []

        def probe():
            time.sleep(2.0)
            answers.extend(ask_now(port, path) for path in ("/livez", "/readyz", "/metrics"))

        thread = threading.Thread(target=probe)
        thread.start()
        time.sleep(2.5)  # noqa: ASYNC251
        thread.join()
        (live, body), (ready, _), (scraped, text) = answers
        assert (live, ready, scraped) == (503, 503, 200)
        assert "stood still" in body and sample(text, "runlore_loop_delay_seconds") > 1

        async def is_live():
            return (await get("/livez"))[0] == 200

        await until(is_live)


class Polls(MemoryBus):
    """A bus whose polls fail or hang when told to."""

    def __init__(self):
        super().__init__()
        self.fault, self.goes_on = None, asyncio.Event()
        self.goes_on.set()

    async def consumer(self, **how):
        found, bus = await super().consumer(**how), self
        poll = found.poll

        async def watched(**limits):
            await bus.goes_on.wait()
            if bus.fault is not None:
                raise bus.fault
            return await poll(**limits)

        found.poll = watched
        return found


async def test_a_stage_whose_polls_hang_is_not_live_and_one_whose_polls_fail_is(tmp_path, monkeypatch):
    monkeypatch.setattr(health, "POLL_SECONDS_MAX", 1.0)
    bus = Polls()
    async with running(tmp_path, bus=bus) as (_, worker, get, _):

        async def answers(path, wanted):
            return (await get(path))[0] == wanted

        await until(lambda: answers("/readyz", 200))
        bus.fault = errors.BusUnavailable("no broker")
        await asyncio.sleep(2.0)
        assert "has not polled" not in (await get("/livez"))[1]
        bus.fault = None
        bus.goes_on.clear()

        async def each_is_named():
            status, body = await get("/livez")
            return status == 503 and all(f"{name} has not polled" in body for name in worker.stages)

        await until(each_is_named)
        bus.goes_on.set()
        await until(lambda: answers("/livez", 200))


async def test_a_bug_in_noting_does_not_restart_a_worker(tmp_path, monkeypatch):
    async with running(tmp_path) as (served, _, get, _):
        monkeypatch.setattr(served, "_note", lambda: 1 / 0)
        before = served.noted.at

        async def goes_on():
            return served.noted.at > before and (await get("/livez"))[0] == 200

        await until(goes_on)


async def test_a_worker_that_drains_is_not_ready_and_still_live(tmp_path):
    async with running(tmp_path) as (_, worker, get, _):

        async def is_ready():
            return (await get("/readyz"))[0] == 200

        await until(is_ready)
        worker.stopping.set()

        async def is_not():
            return (await get("/readyz"))[0] == 503

        await until(is_not)
        assert "drains" in (await get("/readyz"))[1] and (await get("/livez"))[0] == 200


async def test_a_bus_that_is_away_is_told_once_and_stops_no_measure(tmp_path, monkeypatch):
    async with running(tmp_path) as (served, _, get, bus):
        monkeypatch.setattr(health, "SAMPLE_SECONDS", 0.05)

        async def away(**_):
            raise errors.BusUnavailable("no broker")

        monkeypatch.setattr(bus, "lag", away)
        task = asyncio.create_task(served.sample())
        await asyncio.sleep(0.3)
        assert not task.done() and (await get("/livez"))[0] == 200
        task.cancel()


async def test_other_paths_and_methods_are_refused_in_words(tmp_path):
    async with running(tmp_path) as (_, _, get, _):
        assert (await get("/"))[0] == (await get("/metrics/../livez"))[0] == 404
        assert (await get("/livez", method="POST"))[0] == 405


async def test_a_client_that_sends_nothing_holds_nobody_up(tmp_path):
    async with running(tmp_path) as (_, worker, get, _):
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(socket.create_connection(("127.0.0.1", worker._settings.health_port)))
            assert (await get("/livez"))[0] == 200


async def test_without_a_port_nothing_is_opened_and_nothing_measured(tmp_path):
    async with health.serve(None, Settings(home=tmp_path)) as served:
        assert served is None and telemetry.metrics_app() is None


async def test_a_port_that_is_taken_is_told_with_its_setting(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = Settings(home=tmp_path, health_port=taken.getsockname()[1])
        index = Index(tmp_path / "index.db")
        try:
            worker = Worker(MemoryStore(), MemoryBus(), index, settings)
            with pytest.raises(errors.Refused) as caught:
                async with health.serve(worker, settings):
                    pass
        finally:
            index.close()
    assert "RUNLORE_HEALTH_PORT" in caught.value.hint and telemetry.metrics_app() is None


async def test_without_prometheus_client_the_probes_work_and_metrics_say_what_to_install(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    async with running(tmp_path) as (_, _, get, _):
        assert (await get("/livez"))[0] == 200
        status, text = await get("/metrics")
        assert status == 501 and "runlore[server]" in text


async def test_an_image_checks_itself_without_curl(tmp_path):
    def check(**environment):
        done = subprocess.run(
            [sys.executable, "-m", "runlore.worker.health"],
            env={"PATH": "/usr/bin:/bin", **environment},
            capture_output=True,
            text=True,
            timeout=30,
        )
        return done.returncode, done.stdout

    async with running(tmp_path) as (_, worker, _, _):
        port = str(worker._settings.health_port)
        for address in ("127.0.0.1", "0.0.0.0"):
            code, said = await asyncio.to_thread(
                lambda address=address: check(RUNLORE_HEALTH_PORT=port, RUNLORE_HEALTH_ADDRESS=address)
            )
            assert code == 0 and '"live": true' in said
    code, said = await asyncio.to_thread(lambda: check(RUNLORE_HEALTH_PORT=port))
    assert code == 1 and "does not answer" in said
    assert (await asyncio.to_thread(check))[0] == 0
