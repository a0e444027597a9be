"""Spend limits, spend alerts, usage and costs over HTTP, driven by OpenAI's own client; the limit of calls to models.

Every answer is held against the client's own types, strictly, as in test_http_admin.py.
"""

from __future__ import annotations

import datetime as dt

import openai
import pytest
from test_http_admin import OPERATOR, administered, everything, joined

from runlore import clock
from runlore.commit import keys
from runlore.events import envelope
from runlore.models import spend
from runlore.testing.stores import MemoryStore
from runlore.upkeep import administration

MONTHLY = {"currency": "USD", "interval": "month"}
NOON = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
TODAY = int(NOON.replace(hour=0).timestamp())
DAY = 86_400


class Noon(clock.World):
    """The real clock, set to noon of one day."""

    def __init__(self):
        self._off = NOON - super().now()

    def now(self):
        return super().now() + self._off


@pytest.fixture(autouse=True)
def noon():
    world, before = Noon(), clock._world.get()
    clock.install(world)
    yield world
    clock.install(before)


def channel(*recipients, **more):
    return {"type": "email", "recipients": list(recipients), **more}


def row(calls, tokens, usd, cached=0):
    return {
        **spend.EMPTY,
        "calls": calls,
        "input_tokens": tokens,
        "cached_tokens": cached,
        "output_tokens": tokens // 10,
        "cost_usd": usd,
    }


async def spent(store, project, days, month="2026-11", **more):
    """Put a month of a project into the ledger: day → memory → model → row."""
    body = {**spend.empty(project, month), "days": days, **more}
    await store.put(keys.spend(project, month), envelope.dump(body))


# --- limits ---------------------------------------------------------------------------------------------------


async def test_a_spend_limit_is_set_told_changed_and_taken_away_and_says_whether_it_refuses_calls_now(
    tmp_path,
):
    store = MemoryStore()
    await spent(store, "acme", {"2026-11-23": {"support": {"gpt-5.4-mini": row(3, 1000, 4.5)}}})
    await spent(store, "shop", {"2026-11-02": {"support": {"gpt-5.5": row(1, 500, 2.0)}}})
    async with administered(tmp_path, store) as (_, org):
        for ask, of in ((org.spend_limit, ()), (org.projects.spend_limit, ("acme",))):
            for nothing in (ask.retrieve, ask.delete):
                with pytest.raises(openai.NotFoundError, match="no spend limit"):
                    await nothing(*of)
            sums = 450 if of else 650
            for cents, status in ((sums + 1, "inactive"), (sums, "enforcing"), (0, "enforcing")):
                made = await ask.update(*of, threshold_amount=cents, **MONTHLY)
                assert (made.threshold_amount, made.currency, made.interval) == (cents, "USD", "month")
                assert made.enforcement.status == status, (of, cents)
                assert await ask.retrieve(*of) == made
            assert (await ask.delete(*of)).deleted
            with pytest.raises(openai.NotFoundError):
                await ask.retrieve(*of)
        told = [(one.type, one.project and one.project.id) for one in await everything(org.audit_logs.list())]
        assert told[:4] == [("project.updated", "acme")] * 4
        assert told[4:8] == [("organization.updated", None)] * 4


async def test_a_limit_under_which_something_waits_says_that_it_refuses_and_once_it_is_raised_that_it_does_not(
    tmp_path,
):
    store = MemoryStore()
    waiting = {
        "since": "x",
        "cause": "x",
        "until": "2026-12-01T00:00:00+00:00",
        "by": spend.SPEND_LIMIT,
        "usd": 0.2,
    }
    await spent(
        store,
        "acme",
        {"2026-11-23": {"support": {"gpt-5.4-mini": row(3, 1000, 4.9)}}},
        deferred={"support": waiting},
    )
    async with administered(tmp_path, store) as (_, org):
        limit = await org.projects.spend_limit.update("acme", threshold_amount=500, **MONTHLY)
        assert limit.enforcement.status == "enforcing"
        limit = await org.projects.spend_limit.update("acme", threshold_amount=511, **MONTHLY)
        assert limit.enforcement.status == "inactive"
        limit = await org.spend_limit.update(threshold_amount=500, **MONTHLY)
        assert limit.enforcement.status == "inactive"


async def test_what_is_no_limit_or_alert_is_refused_in_words(tmp_path):
    async with administered(tmp_path) as (_, org):
        await org.projects.create(name="acme")
        for wrong in (
            org.spend_limit.update(threshold_amount=-1, **MONTHLY),
            org.spend_limit.update(threshold_amount=10**12, **MONTHLY),
            org.spend_limit.update(threshold_amount=12.5, **MONTHLY),
            org.spend_limit.update(threshold_amount="12", **MONTHLY),
            org.spend_limit.update(threshold_amount=1, currency="EUR", interval="month"),
            org.spend_limit.update(threshold_amount=1, currency="USD", interval="day"),
            org.spend_alerts.create(threshold_amount=1, notification_channel=channel(), **MONTHLY),
            org.spend_alerts.create(threshold_amount=1, notification_channel=channel("secret@"), **MONTHLY),
            org.spend_alerts.create(
                threshold_amount=1, notification_channel=channel("a@b", "a,b@c"), **MONTHLY
            ),
            org.spend_alerts.create(
                threshold_amount=1, notification_channel=channel(*["a@b"] * 21), **MONTHLY
            ),
            org.spend_alerts.create(
                threshold_amount=1,
                notification_channel=channel("a@b.c", subject_prefix="x\nTo: y"),
                **MONTHLY,
            ),
            org.spend_alerts.create(
                threshold_amount=1, notification_channel={"type": "pager", "recipients": ["a@b.c"]}, **MONTHLY
            ),
            org.spend_alerts.list(limit=101),
        ):
            with pytest.raises(openai.BadRequestError) as refused:
                await wrong
            assert refused.value.code == "invalid_input" and "secret" not in str(refused.value)
        with pytest.raises(openai.NotFoundError):
            await org.projects.spend_limit.update("nobody", threshold_amount=1, **MONTHLY)
        await org.projects.archive("acme")
        with pytest.raises(openai.ConflictError):
            await org.projects.spend_limit.update("acme", threshold_amount=1, **MONTHLY)


async def test_a_reader_may_read_usage_and_set_no_limit_but_of_a_project_that_they_own(tmp_path):
    async with administered(tmp_path) as (one, org):
        await org.projects.create(name="acme")
        account = await org.projects.service_accounts.create("acme", name="bot")
        ours = (await one.client(admin=account.api_key.value)).admin.organization
        with pytest.raises(openai.PermissionDeniedError):
            await ours.spend_limit.update(threshold_amount=1, **MONTHLY)
        bo, hers = await joined(one, org, "bo@example.org")
        assert (await hers.usage.costs(start_time=TODAY)).data[0].results == []
        await org.projects.users.create("acme", role="owner", user_id=bo["id"])
        # An owner of a project sets its limit, and no other's.
        assert (
            await hers.projects.spend_limit.update("acme", threshold_amount=1, **MONTHLY)
        ).threshold_amount == 1
        with pytest.raises(openai.PermissionDeniedError):
            await hers.spend_limit.update(threshold_amount=1, **MONTHLY)
        nobody = (await one.client(admin="rla_nothing")).admin.organization
        for refused in (nobody.usage.costs(start_time=0), nobody.spend_alerts.list()):
            with pytest.raises(openai.AuthenticationError):
                await refused


# --- alerts ---------------------------------------------------------------------------------------------------


async def test_spend_alerts_are_made_listed_changed_and_deleted(tmp_path):
    async with administered(tmp_path) as (one, org):
        await org.projects.create(name="acme")
        for ask, of in ((org.spend_alerts, {}), (org.projects.spend_alerts, {"project_id": "acme"})):
            place = tuple(of.values())
            made = [
                await ask.create(
                    *place,
                    threshold_amount=cents,
                    notification_channel=channel("ann@example.org", subject_prefix=prefix),
                    **MONTHLY,
                )
                for cents, prefix in ((100, "[acme]"), (200, None), (300, None))
            ]
            ids = [alert.id for alert in made]
            assert ids == sorted(ids) and made[0].notification_channel.subject_prefix == "[acme]"
            assert [alert.id for alert in await everything(ask.list(*place, limit=1))] == ids
            assert [alert.id for alert in await everything(ask.list(*place, limit=2, order="desc"))] == ids[
                ::-1
            ]
            for order, wanted in (("asc", ids[:2]), ("desc", ids[2:])):
                page = await ask.list(
                    *place, before=ids[2] if order == "asc" else ids[1], order=order, limit=2
                )
                assert [alert.id for alert in page.data] == wanted
            assert await ask.retrieve(ids[0], **of) == made[0]
            changed = await ask.update(
                ids[0],
                **of,
                threshold_amount=150,
                notification_channel=channel("bo@example.org", "ann@example.org"),
                **MONTHLY,
            )
            assert (changed.id, changed.threshold_amount) == (ids[0], 150)
            assert changed.notification_channel.recipients == ["bo@example.org", "ann@example.org"]
            assert changed.notification_channel.subject_prefix is None
            assert (await ask.delete(ids[1], **of)).id == ids[1]
            for nothing in (ids[1], "spend-alert-nothing"):
                with pytest.raises(openai.NotFoundError):
                    await ask.retrieve(nothing, **of)
                with pytest.raises(openai.NotFoundError):
                    await ask.delete(nothing, **of)
            assert len(await everything(ask.list(*place))) == 2
        # One of the organization is none of a project.
        with pytest.raises(openai.NotFoundError):
            await org.spend_alerts.retrieve(ids[0])
        log = [entry async for entry in _log(one.store)]
        assert not [entry for entry in log if "@" in str(entry.details)]


async def _log(store):
    from runlore.upkeep import adminlog

    async for entry in adminlog.newest_first(store, (await administration.read(store)).tip):
        yield entry


# --- usage and costs ------------------------------------------------------------------------------------------

DAYS = {
    "acme": {
        "2026-11-21": {
            "support": {"gpt-5.4-mini": row(2, 1000, 0.5, cached=400)},
            "sales": {"gpt-5.5": row(1, 300, 0.25)},
        },
        "2026-11-23": {"support": {"gpt-5.5": row(1, 200, 0.125)}},
    },
    "shop": {"2026-11-21": {"faq": {"gpt-5.5": row(4, 4000, 2.0)}}},
}


async def used(store):
    for project, days in DAYS.items():
        await spent(store, project, days)
    await spent(store, "acme", {"2026-10-31": {"support": {"gpt-5.5": row(9, 90, 9.0)}}}, month="2026-10")
    return store


async def test_usage_and_costs_are_told_by_day_in_groups_and_of_what_is_asked_for(tmp_path):
    async with administered(tmp_path, await used(MemoryStore())) as (_, org):
        page = await org.usage.completions(start_time=TODAY - 2 * DAY + 4711)
        assert [(one.start_time, one.end_time) for one in page.data] == [
            (TODAY + at * DAY, TODAY + (at + 1) * DAY) for at in (-2, -1, 0)
        ]
        assert (page.has_more, page.next_page) == (False, None)
        first, empty, last = (one.results for one in page.data)
        assert empty == [] and len(first) == len(last) == 1
        assert (first[0].input_tokens, first[0].input_cached_tokens, first[0].output_tokens) == (
            5300,
            400,
            530,
        )
        assert first[0].num_model_requests == 7 and first[0].project_id is first[0].model is None

        grouped = await org.usage.completions(
            start_time=TODAY - 2 * DAY, end_time=TODAY - DAY, group_by=["project_id", "model", "batch"]
        )
        assert [
            (one.project_id, one.model, one.num_model_requests, one.batch) for one in grouped.data[0].results
        ] == [
            ("acme", "gpt-5.4-mini", 2, False),
            ("acme", "gpt-5.5", 1, False),
            ("shop", "gpt-5.5", 4, False),
        ]
        assert len(grouped.data) == 1
        some = await org.usage.completions(
            start_time=TODAY - 2 * DAY, project_ids=["acme", "nobody"], models=["gpt-5.5"], group_by=["model"]
        )
        assert [[one.num_model_requests for one in day.results] for day in some.data] == [[1], [], [1]]
        none = await org.usage.completions(start_time=TODAY - 2 * DAY, batch=True)
        assert [day.results for day in none.data] == [[], [], []]

        costs = await org.usage.costs(start_time=TODAY - 2 * DAY, group_by=["project_id", "line_item"])
        assert [
            (
                one.project_id,
                one.line_item,
                one.amount.value,
                one.amount.currency,
                one.quantity,
                one.quantity_unit,
            )
            for one in costs.data[0].results
        ] == [
            ("acme", "gpt-5.4-mini", 0.5, "usd", 1100.0, "tokens"),
            ("acme", "gpt-5.5", 0.25, "usd", 330.0, "tokens"),
            ("shop", "gpt-5.5", 2.0, "usd", 4400.0, "tokens"),
        ]
        total = await org.usage.costs(
            start_time=TODAY - 2 * DAY, line_items=["gpt-5.5"], project_ids=["acme"]
        )
        assert [[one.amount.value for one in day.results] for day in total.data] == [[0.25], [], [0.125]]
        assert total.data[0].results[0].quantity is None


async def test_usage_comes_page_by_page_over_the_turn_of_a_month(tmp_path):
    async with administered(tmp_path, await used(MemoryStore())) as (_, org):
        start, end = TODAY - 24 * DAY, TODAY - 20 * DAY + 1
        asked = {"start_time": start, "end_time": end, "limit": 2}
        found, cursor = [], openai.omit
        while True:
            page = await org.usage.costs(**asked, page=cursor)
            found += page.data
            cursor = page.next_page
            assert page.has_more == (cursor is not None) and len(page.data) <= 2
            if cursor is None:
                break
        assert [one.start_time for one in found] == [start + at * DAY for at in range(5)]
        assert [[one.amount.value for one in day.results] for day in found] == [[], [9.0], [], [], []]
        assert (await org.usage.costs(start_time=TODAY + DAY)).data == []


async def test_what_usage_is_not_kept_by_is_refused_in_words_and_other_usage_is_not_there(tmp_path):
    async with administered(tmp_path, await used(MemoryStore())) as (_, org):
        for wrong, word in (
            (org.usage.completions(start_time=0, bucket_width="1h"), "by day"),
            (org.usage.completions(start_time=0, bucket_width="1m"), "by day"),
            (org.usage.completions(start_time=0, bucket_width="1w"), "bucket_width"),
            (org.usage.completions(start_time=0, group_by=["user_id"]), "not by user_id"),
            (org.usage.completions(start_time=0, group_by=["project_id", "service_tier"]), "service_tier"),
            (org.usage.completions(start_time=0, api_key_ids=["x"]), "api_key_ids"),
            (org.usage.completions(start_time=0, user_ids=["x"]), "user_ids"),
            (org.usage.completions(start_time=0, limit=32), "limit"),
            (org.usage.completions(start_time=-1), "start_time"),
            (org.usage.completions(start_time=5, end_time=5), "end_time"),
            (org.usage.completions(start_time=0, page="page_12"), "page"),
            (org.usage.costs(start_time=TODAY, page=f"page_{TODAY - DAY}"), "page"),
            (org.usage.costs(start_time=0, api_key_ids=["x"]), "api_key_ids"),
            (org.usage.costs(start_time=0, group_by=["model"]), "not by model"),
            (org.usage.costs(start_time=0, limit=181), "limit"),
        ):
            with pytest.raises(openai.BadRequestError, match=word):
                await wrong
        for absent in (org.usage.images(start_time=0), org.usage.vector_stores(start_time=0)):
            with pytest.raises(openai.NotFoundError):
                await absent


# --- the rate limit of calls to models ------------------------------------------------------------------------


async def test_rl_generate_takes_calls_and_tokens_each_by_itself(tmp_path):
    async with administered(tmp_path) as (one, org):
        await org.projects.create(name="acme")
        update = org.projects.rate_limits.update_rate_limit
        limit = await update("rl-generate", project_id="acme", max_tokens_per_1_minute=5000)
        assert (limit.max_requests_per_1_minute, limit.max_tokens_per_1_minute) == (1_000_000_000, 5000)
        limit = await update("rl-generate", project_id="acme", max_requests_per_1_minute=3)
        assert (limit.max_requests_per_1_minute, limit.max_tokens_per_1_minute) == (3, 5000)
        with pytest.raises(openai.BadRequestError):
            await update("rl-generate", project_id="acme")
        (entry, *_) = await everything(org.audit_logs.list(limit=1, event_types=["rate_limit.updated"]))
        assert entry.rate_limit_updated.changes_requested.max_requests_per_1_minute == 3
        hand = administration.Administrator(one.store, OPERATOR)
        changed = await hand.limit("acme", "generate", {"tokens": 7})
        assert changed.limits["generate"].requests_per_minute == 3
