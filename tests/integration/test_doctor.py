"""Doctor names what a deployment lacks: a store that keeps no conditions, a wrong clock, a wrong key, each in one line.

The stores are fakes that forget one promise each (as `rclone serve s3` forgets all), then a real server and broker.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools

import pytest

import brokers
from runlore import clock, errors, pipeline, wiring
from runlore.bus import topics
from runlore.bus.port import Outgoing
from runlore.commit import keys
from runlore.settings import Settings
from runlore.store import port
from runlore.testing import models
from runlore.testing.buses import MemoryBus
from runlore.testing.stores import MemoryStore
from runlore.upkeep import deployment, doctor, pauses, workers

_NUMBERS = itertools.count()


class Loose(MemoryStore):
    """A store without some of the promises: `forgets` names those."""

    def __init__(self, *forgets):
        super().__init__()
        self.forgets = forgets

    async def put_if_absent(self, key, body):
        if "put-if-absent" in self.forgets:
            return await self.put(key, body)
        return await super().compare_and_set(key, body, None)

    async def compare_and_set(self, key, body, etag, *, guard=None):
        missing = key not in self._objects
        if "compare-and-set" in self.forgets and not missing:
            return await self.put(key, body)
        if "compare-and-set on nothing" in self.forgets and missing:
            return await self.put(key, body)
        return await super().compare_and_set(key, body, etag, guard=guard)

    async def compare_and_delete(self, key, etag):
        if "compare-and-delete" in self.forgets:
            return await self.delete(key)
        if "delete" in self.forgets:
            return None
        return await super().compare_and_delete(key, etag)

    async def delete(self, key):
        if "delete" not in self.forgets:
            await super().delete(key)

    async def get_range(self, key, offset, length):
        return b"x" if "ranges" in self.forgets else await super().get_range(key, offset, length)

    async def list(self, prefix):
        async for row in super().list(prefix):
            yield port.Listed(row.key, "old", row.size, row.modified) if "list" in self.forgets else row


PROMISES = {
    # what the store forgets → the check that fails
    "put-if-absent": "store: put-if-absent",
    "compare-and-set": "store: compare-and-set",
    "compare-and-set on nothing": "store: compare-and-set",
    "compare-and-delete": "store: compare-and-delete",
    "ranges": "store: read and list",
    "list": "store: read and list",
    "delete": "store: compare-and-delete",
}


@pytest.mark.parametrize("forgotten", PROMISES)
async def test_a_store_that_forgets_a_promise_is_refused_by_the_name_of_it(forgotten):
    store = Loose(forgotten)
    found = await doctor.of_store(store)
    bad = [one for one in found if not one.ok]
    assert PROMISES[forgotten] in [one.what for one in bad] and all(one.hint for one in bad)
    if forgotten != "delete":
        assert [one.what for one in bad] == [PROMISES[forgotten]] and store.snapshot() == {}


async def test_a_store_without_any_condition_is_told_all_that_it_lacks_and_one_that_keeps_them_is_fit():
    found = await doctor.of_store(
        Loose("put-if-absent", "compare-and-set", "compare-and-set on nothing", "compare-and-delete")
    )
    assert [one.what for one in found] == [
        "store: put-if-absent",
        "store: compare-and-set",
        "store: compare-and-delete",
    ]
    (fit,) = await doctor.of_store(store := MemoryStore())
    assert fit.ok and store.snapshot() == {}


@pytest.mark.parametrize("problem", [errors.Blocked("403", hint="ask"), errors.StoreUnavailable("503")])
async def test_a_store_that_answers_nothing_is_one_line(problem):
    class Away(MemoryStore):
        async def put_if_absent(self, key, body):
            raise problem

    (found,) = await doctor.of_store(Away())
    assert (found.what, found.ok, found.message) == ("store", False, f"{problem.kind}: {problem}")


class Apart(MemoryStore):
    """A store whose clock is off by `seconds`."""

    seconds = 0.0

    def _write(self, key, body):
        etag = super()._write(key, body)
        stored, modified = self._objects[key]
        self._objects[key] = (stored, float(int(modified + self.seconds)))
        return etag


@pytest.mark.parametrize(("seconds", "ok"), [(0, True), (30, True), (-30, True), (90, False), (-90, False)])
async def test_a_clock_that_a_sweep_can_not_allow_for_is_told(seconds, ok):
    store = Apart()
    store.seconds = seconds
    (found, *_) = await deployment.of_store(store, Settings())
    assert (found.what, found.ok) == ("store's clock", ok)
    assert seconds == 0 or ("ahead" if seconds > 0 else "behind") in found.message
    assert store.snapshot() == {}


@pytest.mark.parametrize("answer", [True, False, errors.StoreUnavailable("503")])
async def test_a_store_that_takes_old_signatures_must_not_be_swept(answer):
    class Signing(MemoryStore):
        async def refuses_old_signatures(self):
            if isinstance(answer, Exception):
                raise answer
            return answer

    (found,) = [
        one for one in await deployment.of_store(Signing(), Settings()) if one.what == "store's signatures"
    ]
    assert found.ok is (answer is True)
    assert answer is not False or "sweep" in found.hint


async def test_another_deployment_below_the_same_prefix_is_told():
    async def strange(*written):
        store = MemoryStore()
        for key in written:
            await store.put(key, b"")
        found = (await deployment.of_store(store, Settings()))[-1]
        assert found.what == "store's prefix"
        return None if found.ok else found.message

    ours = [f"acme/{kind}/aa/x" for kind in keys.KINDS]
    ours += [keys.dead_letter("0" * 64), keys.pause("record"), keys.worker("w"), "acme2/audit/2026-01/x"]
    assert await strange(*ours) is None
    assert "staging/acme" in await strange(*ours, "staging/acme/records/aa/x")
    assert "_other" in await strange(*ours, "_other/x")
    assert "photo.jpg" in await strange(*ours, "photo.jpg")


async def test_what_waits_is_told_with_its_age_and_before_it_is_lost():
    bus = MemoryBus()
    kept = pipeline.RUNS.retention_hours * 3600

    class Later(clock.World):
        after = 0.0

        def now(self):
            return super().now() + dt.timedelta(seconds=self.after)

    world = Later()
    clock.install(world)
    try:
        record, snapshot = await deployment.of_bus(bus, Settings())
        assert record.ok and "nothing waits" in record.message
        await bus.produce([Outgoing("runs", b"k", b"v", [])])
        world.after = 7200
        record, snapshot = await deployment.of_bus(bus, Settings())
        assert record.ok and snapshot.ok and "1 messages" in record.message and "2:00:0" in record.message
        world.after = kept * 0.9
        record, snapshot = await deployment.of_bus(bus, Settings())
        assert not record.ok and not snapshot.ok and "retention" in record.hint
    finally:
        clock.install(clock.World())


async def test_workers_of_two_versions_a_silent_one_and_an_ill_stage_are_told(monkeypatch):
    store = MemoryStore()
    settings = Settings(bus="kafka", kafka_servers="k:1")

    async def told():
        (found, *more) = await deployment.of_workers(store, settings)
        assert found.what == "workers"
        return found, more

    found, _ = await told()
    assert not found.ok and "none" in found.message
    stage = {"state": "running", "cause": None, "since": None}

    async def speak(version, **stages):
        teller = workers.Teller(store, lambda: stages)
        monkeypatch.setattr(workers.runlore, "__version__", version)
        await teller._put(workers.essence(stages))

    await speak("0.1.0", record=stage)
    found, more = await told()
    assert found.ok and "version 0.1.0" in found.message and more == []
    await speak("0.2.0", record=stage)
    found, _ = await told()
    assert not found.ok and "0.1.0, 0.2.0" in found.message
    await speak("0.2.0", record={**stage, "state": "blocked", "cause": "denied", "since": "02:21"})
    await pauses.put(store, "snapshot", project=None, memory=None, reason="ticket 1", by={"user": "ada"})
    found, more = await told()
    assert not found.ok and "record blocked since 02:21: denied" in found.message
    assert [one.ok for one in more] == [True] and "ticket 1" in more[0].message


# --- real servers -----------------------------------------------------------------------------------------


def s3_settings(server, tmp_path, **more):
    given = {
        "home": tmp_path / "home",
        "store": "s3",
        "s3_endpoint": server.endpoint,
        "s3_bucket": server.bucket,
        "s3_prefix": f"d{next(_NUMBERS)}/",
        "s3_region": "us-east-1",
        "s3_access_key_id": server.access_key_id,
        "s3_secret_access_key": server.secret_access_key,
        "s3_connections_max": 4,
    }
    return Settings(**given | more)


def by_name(checks):
    return {one.what: one for one in checks}


async def test_a_real_store_and_broker_are_found_fit(seaweedfs, kafka_server, tmp_path):
    prefix = f"d{next(_NUMBERS)}."
    settings = s3_settings(
        seaweedfs,
        tmp_path,
        bus="kafka",
        kafka_servers=kafka_server.servers,
        kafka_topic_prefix=prefix,
        kafka_group_prefix=prefix,
    )
    found = by_name(await doctor.examine(settings))
    assert not found["topics"].ok and "apply" in found["topics"].hint
    async with topics.connect(settings) as cluster:
        wanted = topics.wanted(pipeline.TOPICS, prefix=prefix, replication=1)
        await cluster.apply(await cluster.plan(wanted))
        assert [one.state for one in await cluster.plan(wanted)] == [topics.FINE] * 3
    found = by_name(await doctor.examine(settings))
    assert [what for what, one in found.items() if not one.ok] == ["workers"], found
    assert found["store's signatures"].ok and found["broker's clock"].ok and found["record"].ok
    async with wiring.open_home(settings) as opened:
        await opened.bus.produce([Outgoing("runs", b"acme/x", b"{}", [])])
        assert [row.key async for row in opened.store.list(keys.probe(""))] == []
    assert "1 messages wait" in by_name(await doctor.examine(settings))["record"].message


async def test_wrong_keys_a_missing_bucket_and_a_server_that_is_away_are_one_line_each(
    seaweedfs, moto, tmp_path
):
    wiring.check_home(tmp_path / "home", create=True)
    told = {}
    for name, settings in {
        "secret": s3_settings(seaweedfs, tmp_path, s3_secret_access_key="wrong"),
        "key": s3_settings(seaweedfs, tmp_path, s3_access_key_id="nobody"),
        "bucket": s3_settings(moto, tmp_path, s3_bucket="no-such-bucket"),
        "away": s3_settings(seaweedfs, tmp_path, s3_endpoint="http://127.0.0.1:1"),
        "broker": s3_settings(seaweedfs, tmp_path, bus="kafka", kafka_servers="127.0.0.1:1"),
    }.items():
        bad = [one for one in await doctor.examine(settings) if not one.ok and one.what != "workers"]
        assert len(bad) == 1 and bad[0].hint, (name, bad)
        told[name] = f"{bad[0].message} {bad[0].hint}"
        assert "'wrong'" not in bad[0].message and seaweedfs.secret_access_key not in told[name]
    assert "SECRET" in told["secret"] and "ACCESS_KEY_ID" in told["key"] and "BUCKET" in told["bucket"]
    assert "ENDPOINT" in told["away"] and "KAFKA_SERVERS" in told["broker"]


async def test_a_login_that_the_broker_refuses_and_acls_that_are_missing_are_told_apart(
    kafka_server, tmp_path
):
    from infra.dev import kafka as dev_kafka

    prefix = f"d{next(_NUMBERS)}."
    await brokers.create_topics(kafka_server.servers, *(prefix + one.name for one in pipeline.TOPICS))
    common = {
        "home": tmp_path / "home",
        "bus": "kafka",
        "kafka_servers": kafka_server.sasl_servers,
        "kafka_security": "sasl_plaintext",
        "kafka_sasl_mechanism": "PLAIN",
        "kafka_username": dev_kafka.SASL_USER,
        "kafka_topic_prefix": prefix,
    }
    found = await deployment.of_bus(MemoryBus(), Settings(**common, kafka_password="hush-hush"))
    assert [one.ok for one in found] == [False] and "refuses the login" in found[0].message
    assert "hush" not in found[0].message + found[0].hint and "PASSWORD" in found[0].hint
    found = await deployment.of_bus(MemoryBus(), Settings(**common, kafka_password=dev_kafka.SASL_PASSWORD))
    assert found[0].ok and not found[-1].ok and "not to be seen" in found[-1].message


async def test_topics_that_differ_are_told_and_mended_without_losing_what_others_set(kafka_server):
    prefix = f"d{next(_NUMBERS)}."
    settings = Settings(bus="kafka", kafka_servers=kafka_server.servers, kafka_topic_prefix=prefix)
    names = [prefix + one.name for one in pipeline.TOPICS]
    await brokers.create_topics(
        kafka_server.servers,
        *names,
        partitions=2,
        retention_ms="3600000",
        cleanup_policy="compact",
        segment_bytes="1048576",
    )
    found = by_name(await deployment._topics(settings))
    assert "cleanup.policy is compact, planned delete" in found[f"topic {names[0]}"].message
    assert "kafka-configs.sh" in found[f"topic {names[0]}"].hint
    async with topics.connect(settings) as cluster:
        wanted = topics.wanted(pipeline.TOPICS, prefix=prefix, replication=1, partitions={"runs": 9})
        planned = await cluster.plan(wanted)
        await asyncio.gather(cluster.apply(planned), cluster.apply(planned))
        after = {one.wanted.name: one for one in await cluster.plan(wanted)}
    runs = after[names[0]]
    assert [one.what for one in runs.differences] == ["cleanup.policy"]
    assert runs.found.partitions == 9 and after[names[2]].found.partitions == 2
    assert runs.found.settings["retention.ms"] == str(7 * 24 * 3_600_000)
    assert runs.found.settings["segment.bytes"] == "1048576", "what somebody set for this topic is gone"


async def test_topics_of_another_deployment_below_our_prefix_are_told(kafka_server):
    prefix = f"d{next(_NUMBERS)}."
    names = [prefix + one.name for one in pipeline.TOPICS]
    await brokers.create_topics(kafka_server.servers, *names, f"{prefix}staging.runs", f"{prefix}metrics")
    settings = Settings(bus="kafka", kafka_servers=kafka_server.servers, kafka_topic_prefix=prefix)
    found = by_name(await deployment._topics(settings))["topics' prefix"]
    assert not found.ok and f"{prefix}staging.runs" in found.message and "metrics" not in found.message


async def test_a_model_is_asked_for_a_word_where_one_is_set():
    assert await deployment.of_model(Settings()) == []
    async with models.ModelServer([models.Reply(), models.Reply(fault="no_quota")]) as server:
        settings = Settings(model_url=server.url, model_key="sk-secret")
        good, bad = await deployment.of_model(settings)
    assert [one.model for one in server.seen] == ["gpt-5.4-mini", "gpt-5.5"], "each phase's"
    assert good.ok and "for $0.001065" in good.message
    assert not bad.ok and "model_blocked" in bad.message and bad.hint
    assert "sk-secret" not in f"{good}{bad}"


async def test_a_file_of_models_that_is_wrong_is_told_by_its_place(tmp_path):
    path = tmp_path / "models.toml"
    path.write_text("[summarize]\nmodel = 7\n")
    (found,) = await deployment.of_model(Settings(model_key="sk-secret", models_file=path))
    assert not found.ok and "summarize.model" in found.message
