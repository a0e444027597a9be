"""Events and archives over HTTP: on the bus before they are answered, once, within limits, for one's own project."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json

import httpx2
import pytest

import made
from lookup_service import kind, served, tar, untar
from runlore import clock, errors
from runlore.commit import keys
from runlore.events import envelope, models
from runlore.lookup.http import events, service
from runlore.store import s3


async def on_the_bus(one):
    return [envelope.parse(message.headers, message.value) async for message in one.bus.read("runs")]


async def test_an_event_is_on_the_bus_when_it_is_answered(tmp_path):
    async with served(tmp_path) as one:
        data = made.data(1, rollout="Läufe/7")
        told = await one.post("events", data, status=202)
        (event,) = await on_the_bus(one)
        assert told == {"event": event.id, "rollout": "Läufe/7", "run": "run-1", "attempt": 1}
        assert event.data["record"] == data["record"] and event.type == models.RUN_COMPLETED
        assert (await one.post("events", data, status=202))["event"] == event.id
        structured = made.event(2)
        told = await one.post("events", structured, status=202)
        assert told["event"] == structured["id"]
        assert (await on_the_bus(one))[-1].source == "/test" or len(await on_the_bus(one)) == 3


@pytest.mark.parametrize("size", [10, models.RECORD_INLINE_BYTES_MAX], ids=["inline", "claimed"])
async def test_no_secret_goes_on_to_the_bus_or_the_store_and_the_run_stays_the_same(tmp_path, size):
    token = "ghp_" + "aB3dE5" * 6
    async with served(tmp_path) as one:
        data = made.data(1, record=made.payload(1, text=f"push with {token} " + "x" * size))
        first = await one.post("events", data, status=202, headers={"Idempotency-Key": "k"})
        again = await one.post("events", data, status=202, headers={"Idempotency-Key": "k"})
        assert first == again
        sent = await on_the_bus(one)
        assert all(token not in json.dumps(event.data) for event in sent)
        assert all(event.data["received"] == sent[0].data["received"] for event in sent)
        async for row in one.store.list(""):
            assert token.encode() not in (await one.store.get(row.key)).body
        await one.work()
        told = (await one.get("runs/run-1")).json()
        assert token not in json.dumps(told) and "github-token" in json.dumps(told)


async def test_the_project_is_the_path_s_and_no_other_can_be_named(tmp_path):
    async with served(tmp_path) as one:
        data = made.data(1)
        nameless = {name: value for name, value in data.items() if name != "project"}
        await one.post("events", nameless, status=202)
        assert (await on_the_bus(one))[0].data["project"] == "acme"
        for wrong in (
            {**data, "project": "other"},
            {**data, "project": None},
            made.event(1, project="other"),
        ):
            answer = await one.client.post("/v1/projects/acme/events", json=wrong)
            assert answer.status_code == 403 and kind(answer) == "forbidden"
        assert len(await on_the_bus(one)) == 1


async def test_an_event_goes_on_with_the_trace_of_its_producer(tmp_path):
    async with served(tmp_path) as one:
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        for number, given in enumerate((trace, "nonsense", None)):
            headers = {"traceparent": given} if given else {}
            await one.post("events", made.data(number, rollout="conv"), status=202, headers=headers)
        sent = [dict(message.headers).get("traceparent") async for message in one.bus.read("runs")]
        assert sent == [trace.encode(), None, None]


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b"{", "bad_json"),
        (b"", "bad_json"),
        (b"[]", "invalid_event"),
        (b'"x"', "invalid_event"),
        (b"{}", "invalid_event"),
        (b"[" * 5000, "bad_json"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "bad_json"),
        (json.dumps({**made.data(1), "run_id": "../x"}).encode(), "invalid_id"),
        (json.dumps({**made.data(1), "attempt": 0}).encode(), "invalid_event"),
        (json.dumps({**made.event(1), "type": "io.runlore.run.completed.v9"}).encode(), "unknown_version"),
        (json.dumps({**made.event(1), "type": "x"}).encode(), "unknown_type"),
        (json.dumps({**made.event(1), "data": 3}).encode(), "invalid_event"),
        (b"\xff\xfe", "bad_json"),
    ],
)
async def test_what_no_stage_would_take_is_refused_here(body, wanted, tmp_path):
    async with served(tmp_path) as one:
        answer = await one.client.post("/v1/projects/acme/events", content=body)
        assert answer.status_code == 400 and kind(answer) == wanted
        assert not await on_the_bus(one)


async def test_the_same_key_and_body_is_one_event_and_another_body_a_conflict(tmp_path):
    async with served(tmp_path) as one:
        data = {name: value for name, value in made.data(1).items() if name != "run_id"}
        headers = {"Idempotency-Key": "job 7/try"}
        first = await one.post("events", data, status=202, headers=headers)
        assert first["run"] == "job 7/try"
        turned = dict(reversed(data.items()))
        assert await one.post("events", turned, status=202, headers=headers) == first
        other = {**data, "session_id": "another"}
        answer = await one.client.post("/v1/projects/acme/events", json=other, headers=headers)
        assert answer.status_code == 409 and kind(answer) == "idempotency_conflict"
        await one.post(
            "events", {**other, "project": "shop"}, status=202, headers=headers, prefix="/v1/projects/shop"
        )
        own = await one.post("events", made.data(3), status=202, headers={"Idempotency-Key": "k"})
        assert own["run"] == "run-3"
        await one.work()
        assert {event.id for event in await on_the_bus(one) if event.data["project"] == "acme"} == {
            first["event"],
            own["event"],
        }
        for key in ("", "x" * 256):
            answer = await one.client.post(
                "/v1/projects/acme/events", json=data, headers={"Idempotency-Key": key}
            )
            assert answer.status_code == 400


async def test_a_crash_between_the_key_and_the_bus_loses_nothing(tmp_path):
    async with served(tmp_path) as one:
        headers = {"Idempotency-Key": "k"}
        produce = one.bus.produce

        async def away(messages):
            raise errors.BusUnavailable()

        one.bus.produce = away
        answer = await one.client.post("/v1/projects/acme/events", json=made.data(1), headers=headers)
        assert (
            answer.status_code == 503 and kind(answer) == "bus_unavailable" and answer.headers["retry-after"]
        )
        one.bus.produce = produce
        await one.post("events", made.data(1), status=202, headers=headers)
        assert len(await on_the_bus(one)) == 1


async def test_two_bodies_under_one_key_at_the_same_time_are_one_event(tmp_path):
    async with served(tmp_path) as one:
        bodies = [{**made.data(1), "session_id": f"s{number}"} for number in range(6)]
        answers = await asyncio.gather(
            *(
                one.client.post("/v1/projects/acme/events", json=body, headers={"Idempotency-Key": "k"})
                for body in bodies
            )
        )
        assert sorted(answer.status_code for answer in answers) == [202, *[409] * 5]
        assert len(await on_the_bus(one)) == 1


async def test_a_large_record_goes_to_the_store_and_one_too_large_nowhere(tmp_path, monkeypatch):
    async with served(tmp_path) as one:
        large = made.data(1, record=made.payload(1, text="é" * 200_000))
        await one.post("events", large, status=202)
        (event,) = await on_the_bus(one)
        claim = event.data["record_claim"]
        stored = await one.store.get(keys.claim("acme", claim["sha256"]))
        assert len(stored.body) == claim["size"] and "record" not in event.data
        await one.work()
        assert (await one.get("runs/run-1")).json()["runs"][0]["state"] == "consolidated"
        monkeypatch.setattr(models, "RECORD_BYTES_MAX", 100_000)
        answer = await one.client.post(
            "/v1/projects/acme/events", json=made.data(2, record=made.payload(2, text="x" * 300_000))
        )
        assert answer.status_code == 413 and kind(answer) == "record_too_large"


@pytest.mark.parametrize("path", ["events", "archives", "snapshots/merge"])
@pytest.mark.parametrize("told", [True, False])
async def test_a_body_beyond_the_limit_is_refused_as_soon_as_that_is_known(path, told, tmp_path, monkeypatch):
    for name in ("JSON_BYTES_MAX", "SMALL_JSON_BYTES_MAX", "ARCHIVE_BYTES_MAX"):
        monkeypatch.setattr(service, name, 10_000)
    async with served(tmp_path) as one:
        sent = 0

        async def endless():
            nonlocal sent
            while True:
                sent += 1000
                yield b"x" * 1000

        headers = {"Content-Length": "20000"} if told else {}
        answer = await one.client.post(f"/v1/projects/acme/{path}", content=endless(), headers=headers)
        assert answer.status_code == 413 and kind(answer) == "body_too_large"
        assert sent <= 12_000 and list((tmp_path / "uploads").glob("*")) == []


async def test_an_archive_is_hashed_as_it_comes_and_nothing_of_it_stays_here(tmp_path):
    async with served(tmp_path) as one:
        raw = gzip.compress(tar(("a", b"A" * 100_000), ("b/c", b"C")), mtime=0)

        async def pieces():
            for at in range(0, len(raw), 1000):
                yield raw[at : at + 1000]

        answer = await one.client.post("/v1/projects/acme/archives", content=pieces())
        claim = answer.json()
        assert answer.status_code == 201
        assert claim == {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)}
        assert (await one.store.get(keys.claim("acme", claim["sha256"]))).body == raw
        assert list((tmp_path / "uploads").glob("*")) == []
        await one.events(made.data(1, rollout="conv", workspaces=[{"archive": claim}]))
        assert untar((await one.get("snapshots/conv/archive.tar")).content)["b/c"] == b"C"
        empty = await one.client.post("/v1/projects/acme/archives", content=b"")
        assert empty.status_code == 400 and kind(empty) == "bad_archive"


async def test_a_large_archive_is_sent_to_the_store_from_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "MAPPED_FROM_BYTES", 1000)
    async with served(tmp_path) as one:
        put, types = one.store.put, []

        async def noted(key, body):
            types.append(type(body).__name__)
            return await put(key, body)

        one.store.put = noted
        claim = await one.archive(("a", b"A" * 50_000))
        assert types == ["mmap"]
        assert len((await one.store.get(keys.claim("acme", claim["sha256"]))).body) == claim["size"]


async def test_an_upload_that_breaks_off_leaves_nothing(tmp_path):
    async with served(tmp_path) as one:

        async def cut():
            yield b"x" * 2_000_000
            raise ConnectionError

        answer = await one.client.post("/v1/projects/acme/archives", content=cut())
        assert answer.status_code == 500
        assert list((tmp_path / "uploads").glob("*")) == [] and one.service.uploads._inside == 0
        assert not [row async for row in one.store.list("acme/claims/")]


def test_what_a_killed_service_had_half_received_is_swept(tmp_path):
    (tmp_path / f"0{events.TEMPORARY}").write_bytes(b"x")
    (tmp_path / "somebody-elses").write_bytes(b"x")
    events.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["somebody-elses"]


async def test_a_disk_that_is_full_is_a_fault_that_may_pass(tmp_path, monkeypatch):
    async with served(tmp_path) as one:

        def full(folder):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(events, "_temporary", full)
        answer = await one.client.post("/v1/projects/acme/archives", content=b"x")
        assert answer.status_code == 503 and kind(answer) == "store_unavailable"


# --- straight into the bucket -----------------------------------------------------------------------------------


async def test_a_store_without_presigned_places_says_so(tmp_path):
    async with served(tmp_path) as one:
        claim = {"sha256": "0" * 64, "size": 5}
        answer = await one.client.post("/v1/projects/acme/archives/url", json=claim)
        assert answer.status_code == 409 and kind(answer) == "refused"
        for wrong in ({}, {"sha256": "x", "size": 1}, {"sha256": "0" * 64, "size": -1}):
            assert (await one.client.post("/v1/projects/acme/archives/url", json=wrong)).status_code == 400
        large = await one.client.post("/v1/projects/acme/archives/url", json={**claim, "size": 2**40})
        assert large.status_code == 413


async def test_an_archive_is_put_straight_into_the_bucket_and_becomes_a_snapshot(tmp_path, seaweedfs):
    store = s3.S3Store(seaweedfs.place(f"{clock.new_id()}/"))
    raw = tar(("a", b"A" * 1000))
    claim = {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)}
    try:
        async with served(tmp_path, store=store) as one:
            told = await one.post("archives/url", claim, status=200)
            assert seaweedfs.secret_access_key not in json.dumps(told) and told["claim"] == claim
            async with httpx2.AsyncClient() as outside:
                changed = told["url"].replace(claim["sha256"], "0" * 64)
                refused = await outside.put(changed, content=raw, headers=told["headers"])
                assert refused.status_code == 403
                longer = await outside.put(told["url"], content=raw + b"x")
                assert longer.status_code >= 400
                done = await outside.put(told["url"], content=raw, headers=told["headers"])
                assert done.status_code == 200, done.text
            assert (await store.get(keys.claim("acme", claim["sha256"]))).body == raw
            await one.events(made.data(1, rollout="conv", workspaces=[{"archive": claim}]))
            assert untar((await one.get("snapshots/conv/archive.tar")).content) == {"a": b"A" * 1000}
            with pytest.raises(errors.Refused):
                await store.presigned_put("acme/claims/00/x", sha256="0" * 64, size=6 * 1024**3)
    finally:
        await store.close()
