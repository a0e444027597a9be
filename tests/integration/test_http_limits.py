"""Rate limits over HTTP, with OpenAI's own client: over two services on one store, of a project and of one key."""

from __future__ import annotations

import contextlib
import datetime as dt
import json

import openai
import pytest

import made
from lookup_service import BASE, kind, served
from runlore import clock, errors, telemetry
from runlore.commit import keys
from runlore.lookup.http import callers
from runlore.store.port import Presigned
from runlore.testing.stores import MemoryStore
from runlore.upkeep import administration, allotments, organization

OPERATOR = {"user": "ann@desk"}
ANN = organization.Person(id="ann@desk", name="ann", created_at="2026-01-01T00:00:00+00:00")
SEED = "/v1/projects/acme/memories/support/seed?session_id=s"


class Minute(clock.World):
    """A machine that stands at the beginning of a minute until somebody moves its time forward."""

    ahead = 0.0

    def monotonic(self):
        return super().monotonic() + self.ahead

    def now(self):
        return dt.datetime(2026, 11, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=self.ahead)


@pytest.fixture(autouse=True)
def minute():
    world, before = Minute(), clock._world.get()
    clock.install(world)
    yield world
    clock.install(before)


class Deployment:
    """Services on one store, a project `acme` with a service account, and whoever administers them."""

    def __init__(self, store, services):
        self.store, self.services = store, services
        self.hand = administration.Administrator(store, OPERATOR, on_change=self.forget)

    def forget(self):
        """As after five seconds: every service looks at the organization anew."""
        for one in self.services:
            one.client._transport.app.state.keyring.forget()

    def admin(self, token, number=0):
        client = openai.AsyncOpenAI(
            api_key="none",
            admin_api_key=token,
            base_url=f"{BASE}/v1",
            max_retries=0,
            http_client=self.services[number].client,
        )
        return client.admin.organization

    def agent(self, token, number=0):
        return openai.AsyncOpenAI(
            api_key=token, base_url=f"{BASE}/v1", max_retries=0, http_client=self.services[number].client
        )

    async def ask(self, path, headers, number=0, *, method="GET", **more):
        return await self.services[number].client.request(method, path, headers=headers, **more)


@contextlib.asynccontextmanager
async def deployed(tmp_path, count=1):
    """(the deployment, the API that administers it, the headers of a key)."""
    store = MemoryStore()
    async with contextlib.AsyncExitStack() as stack:
        services = [
            await stack.enter_async_context(served(tmp_path / str(number), store=store, with_keys=True))
            for number in range(count)
        ]
        one = Deployment(store, services)
        _, admin = await one.hand.create_admin_key("first", owner=ANN)
        await one.hand.create_project("acme")
        account = await one.hand.create_account("acme", "bot")
        _, token = await one.hand.create_key("acme", account.id, "key")
        org = one.admin(admin)
        org.account, org.token = account.id, token
        yield one, org, {"Authorization": f"Bearer {token}"}


def tallies(store):
    """What lies in the store of limits: thing, or key and thing → what was handed out last."""
    prefix = f"{keys.OPERATIONS}/{keys.LIMITS}/"
    return {
        name.split("/", 3)[-1].removesuffix(".json"): json.loads(body)["minutes"][-1]["taken"]
        for name, body in store.snapshot().items()
        if name.startswith(prefix)
    }


async def test_two_services_on_one_store_let_through_one_limit_and_tell_how_it_stands(tmp_path, minute):
    async with deployed(tmp_path, 2) as (one, org, headers):
        assert (await one.ask(SEED, headers)).status_code == 200 and tallies(one.store) == {}
        await org.projects.rate_limits.update_rate_limit(
            "rl-seed", project_id="acme", max_requests_per_1_minute=5
        )
        one.forget()
        told = [await one.ask(SEED, headers, number % 2) for number in range(5)]
        assert [answer.status_code for answer in told] == [200] * 5
        names = ("limit", "remaining", "reset")
        shown = [[answer.headers[f"x-ratelimit-{name}-requests"] for name in names] for answer in told]
        assert [row[:2] for row in shown] == [["5", str(left)] for left in (4, 3, 2, 1, 0)]
        assert {row[2] for row in shown} == {"60s"}
        limits = [("acme", "seed", None), ("acme", "read", None)]
        assert await allotments.handed_out(one.store, limits) == [{"requests": 5}, {}]
        for number in (0, 1):
            agent = one.agent(org.token, number)
            with pytest.raises(openai.RateLimitError) as refused:
                await agent.get(
                    "/projects/acme/memories/support/seed",
                    cast_to=object,
                    options={"params": {"session_id": "s"}},
                )
            answer = refused.value.response
            assert answer.headers["retry-after"] == "60" and kind(answer) == "rate_limited"
            assert answer.headers["x-ratelimit-remaining-requests"] == "0"
            assert answer.json()["context"]["whose"] == "project"
        assert (await one.ask("/v1/projects/acme/memories", headers)).status_code == 200
        minute.ahead += 60
        assert (await one.ask(SEED, headers, 1)).status_code == 200
        assert tallies(one.store) == {"acme/seed": {"requests": 1}}


async def test_bytes_that_are_handed_in_are_counted_by_whatever_way_they_come(tmp_path, minute):
    async with deployed(tmp_path) as (one, org, headers):
        body = json.dumps(made.data(1)).encode()
        limit = await org.projects.rate_limits.update_rate_limit(
            "rl-publish", project_id="acme", extra_body={"max_bytes_per_1_minute": 3 * len(body) + 1000}
        )
        assert limit.max_bytes_per_1_minute == 3 * len(body) + 1000
        assert limit.max_requests_per_1_minute == 1_000_000_000

        async def pieces(content):
            yield content[: len(content) // 2]
            yield content[len(content) // 2 :]

        async def send(path, content):
            return await one.ask(f"/v1/projects/acme/{path}", headers, method="POST", content=content)

        first = await send("events", body)
        assert first.status_code == 202
        assert first.headers["x-ratelimit-remaining-bytes"] == str(2 * len(body) + 1000)
        assert "x-ratelimit-limit-requests" not in first.headers
        assert (await send("events", pieces(body))).status_code == 202
        assert (await send("archives", b"a" * 400)).status_code == 201
        assert (await send("archives", pieces(b"b" * 300))).status_code == 201
        one.store.presigned_put = lambda key, *, sha256, size: presigned(key)
        place = {"sha256": "0" * 64, "size": 300}
        assert (await send("archives/url", json.dumps(place).encode())).status_code == 200
        last = await send("archives", b"c" * (len(body) + 1))
        assert last.status_code == 429 and "bytes in a minute" in last.json()["detail"]
        assert (await send("archives", pieces(b"d" * (len(body) + 1)))).status_code == 429
        assert (await send("events", pieces(body))).status_code == 202
        assert (await send("events", body)).status_code == 429
        assert tallies(one.store) == {"acme/publish": {"bytes": 3 * len(body) + 1000}}
        assert len([one async for one in one.services[0].bus.read("runs")]) == 3
        assert not [name for name in one.store.snapshot() if b"d" * 9 in one.store.body(name)]


async def presigned(key):
    return Presigned(f"https://bucket.example/{key}", {}, 900)


async def test_a_key_has_limits_of_its_own_beside_its_project_s(tmp_path):
    async with deployed(tmp_path, 2) as (one, org, headers):
        accounts = org.projects.service_accounts
        other = await accounts.api_keys.create(
            org.account, project_id="acme", extra_body={"limits": {"read": {"max_requests_per_1_minute": 1}}}
        )
        theirs = {"Authorization": f"Bearer {other.value}"}
        changed = await org.projects.api_keys.update(
            other.id,
            project_id="acme",
            extra_body={"limits": {"seed": {"max_requests_per_1_minute": 2}}},
        )
        wanted = {"read": {"max_requests_per_1_minute": 1}, "seed": {"max_requests_per_1_minute": 2}}
        assert changed.limits == wanted
        shown = await org.projects.api_keys.retrieve(other.id, project_id="acme")
        assert shown.limits == wanted and shown.expires_at is None
        await org.projects.rate_limits.update_rate_limit(
            "rl-seed", project_id="acme", max_requests_per_1_minute=4
        )
        one.forget()
        assert [(await one.ask(SEED, theirs, number)).status_code for number in (0, 1, 0, 1)] == [
            *(200, 200, 429, 429)
        ]
        refused = await one.ask(SEED, theirs)
        assert refused.json()["context"]["whose"] == "key"
        assert refused.headers["x-ratelimit-limit-requests"] == "2"
        assert [(await one.ask(SEED, headers, number)).status_code for number in (0, 1, 0)] == [200, 200, 429]
        assert [(await one.ask("/v1/projects/acme/memories", theirs)).status_code for _ in "ab"] == [200, 429]
        assert tallies(one.store) == {
            "acme/seed": {"requests": 4},
            f"acme/{other.id}/seed": {"requests": 2},
            f"acme/{other.id}/read": {"requests": 1},
        }
        ended = await org.projects.api_keys.update(
            other.id,
            project_id="acme",
            scopes=["read"],
            extra_body={"limits": {"seed": None, "read": {"max_requests_per_1_minute": None}}},
        )
        assert not hasattr(ended, "limits")
        found = (await org.audit_logs.list(resource_ids=[other.id])).data
        assert [row.type for row in found] == ["api_key.updated", "api_key.updated", "api_key.created"]
        assert found[2].api_key_created.data.limits == {"read": {"max_requests_per_1_minute": 1}}
        assert found[1].api_key_updated.changes_requested.limits == {"seed": {"max_requests_per_1_minute": 2}}
        assert found[0].api_key_updated.changes_requested.limits["seed"] == {
            "max_requests_per_1_minute": 1_000_000_000
        }


SENSELESS = (
    ("rl-seed", {"max_tokens_per_1_minute": 5}, "of seed no tokens are counted"),
    ("rl-publish", {"max_tokens_per_1_minute": 5}, "of publish no tokens are counted"),
    ("rl-seed", {"max_bytes_per_1_minute": 5}, "of seed no bytes are counted"),
    ("rl-read", {"max_requests_per_1_minute": 10**9 + 1}, "requests in a minute are 0 to"),
    ("rl-publish", {"max_bytes_per_1_minute": -1}, "bytes in a minute are 0 to"),
    ("rl-seed", {"max_requests_per_1_day": 1}, "max_requests_per_1_day"),
    ("rl-publish", {}, "max_bytes_per_1_minute is needed"),
    ("rl-seed", {"max_requests_per_1_minute": None}, "max_requests_per_1_minute is needed"),
)


async def test_a_limit_that_makes_no_sense_is_told_so(tmp_path):
    async with deployed(tmp_path) as (_, org, _headers):
        (key,) = (await org.projects.api_keys.list("acme")).data
        for limit, body, wanted in SENSELESS:
            with pytest.raises(openai.BadRequestError) as refused:
                await org.projects.rate_limits.update_rate_limit(limit, project_id="acme", extra_body=body)
            assert wanted in refused.value.message
            if any(body.values()):
                own = {"limits": {limit.removeprefix("rl-"): body}}
                with pytest.raises(openai.BadRequestError):
                    await org.projects.api_keys.update(key.id, project_id="acme", extra_body=own)
        with pytest.raises(openai.NotFoundError):
            await org.projects.api_keys.update(
                key.id, project_id="acme", extra_body={"limits": {"x": {"max_requests_per_1_minute": 1}}}
            )
        assert not (await org.audit_logs.list(event_types=["rate_limit.updated", "api_key.updated"])).data


async def test_what_was_read_of_a_limit_can_be_sent_back_and_ends_nothing(tmp_path):
    async with deployed(tmp_path) as (_, org, _headers):
        for row in (await org.projects.rate_limits.list_rate_limits("acme")).data:
            given = row.model_dump(exclude={"id", "model", "object"}, exclude_unset=True)
            back = await org.projects.rate_limits.update_rate_limit(
                row.id, project_id="acme", extra_body=given
            )
            assert back == row


async def test_a_limit_that_nobody_can_count_is_503_and_one_who_is_refused_is_in_the_metrics(
    tmp_path, monkeypatch
):
    counted = []
    monkeypatch.setattr(
        telemetry.Metric, "inc", lambda self, amount=1.0, **labels: counted.append((self, labels))
    )
    async with deployed(tmp_path) as (one, org, headers):
        await org.projects.rate_limits.update_rate_limit(
            "rl-seed", project_id="acme", max_requests_per_1_minute=0
        )
        answer = await one.ask(SEED, headers)
        assert answer.status_code == 429
        assert (
            telemetry.HTTP_LIMITED,
            {"limited": "seed", "whose": "project", "unit": "requests"},
        ) in counted
        await org.projects.rate_limits.update_rate_limit(
            "rl-seed", project_id="acme", max_requests_per_1_minute=9
        )
        read = one.store.get

        async def away(key):
            if f"/{keys.LIMITS}/" in key:
                raise errors.StoreUnavailable("the bucket is away")
            return await read(key)

        one.store.get = away
        answer = await one.ask(SEED, headers)
        assert answer.status_code == 503 and kind(answer) == "store_unavailable"
        assert answer.headers["retry-after"]


async def test_a_changed_limit_holds_within_five_seconds_in_another_service(tmp_path, minute):
    async with deployed(tmp_path, 2) as (one, org, headers):
        assert (await one.ask(SEED, headers, 1)).status_code == 200
        await org.projects.rate_limits.update_rate_limit(
            "rl-seed", project_id="acme", max_requests_per_1_minute=0
        )
        assert (await one.ask(SEED, headers)).status_code == 429
        minute.ahead += callers.ENDS_SECONDS_MAX
        assert (await one.ask(SEED, headers, 1)).status_code == 429
