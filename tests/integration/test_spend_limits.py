"""Spend limits and the rate limit of calls to models in the workers: what waits, for how long, and how it goes on."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest
from test_model_budgets import SUPPORT, Shifted, World, until, world_month

import mails
from runlore import clock, errors
from runlore.commit import marks
from runlore.lookup import spending, waiting
from runlore.lookup import status as lookup_status
from runlore.models import ledger, spend
from runlore.testing import invariants
from runlore.upkeep import administration, spendlimits, spendwatch

HAND = {"user": "ann@desk"}


@pytest.fixture(autouse=True)
def shifted():
    world, before = Shifted(), clock._world.get()
    clock.install(world)
    yield world
    clock.install(before)


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(spendwatch, "LIMITS_SECONDS", 0.0)
    monkeypatch.setattr(spendwatch, "TOTALS_SECONDS", 0.0)
    made = World(tmp_path)
    yield made
    made.index.close()


def hand(world):
    return administration.Administrator(world.store, HAND)


async def project(world):
    """Whoever administers the project; it is there before its first run."""
    await hand(world).create_project("acme")
    return hand(world)


async def cents_of_a_call(world):
    """The most that a call of these tests can cost, in cents, rounded up."""
    await world.runs(1)
    await world.worker().drain()
    bound = spend.bound(world.engine.asked[0], world.chosen.table())
    return int(bound.usd * 100) + 1


async def test_over_a_projects_spend_limit_the_memory_is_deferred_with_cause_and_the_rules_stand_until_it_is_raised(
    world,
):
    await spendlimits.set_limit(await project(world), "acme", 0)
    await world.runs(3)
    async with world.up():

        async def is_deferred():
            told = await world.told()
            return told is not None and told.state == "deferred" and await world.covered() == 3

        await until(is_deferred)
        assert not world.engine.asked and len(await world.asks()) == 1
        told = await world.told()
        assert "the project's spend limit of a month, $0" in told.told
        assert told.told.endswith("or once the spend limit is raised")
        found = await lookup_status.status(world.store, world.bus, world.index, world.status_path, None)
        assert any("spend limit" in cause and "runlore spend" in cause for cause in found["causes"])
        (ended,) = await world.wait("run-1", with_model=True)
        assert ended.end == waiting.DEFERRED and "spend limit" in ended.cause
        report = await spending.report(world.store, chosen=world.chosen)
        (limit,) = report["limits"]
        assert (limit["project"], limit["limit"], limit["enforcing"]) == ("acme", 0.0, True)
        assert report["deferred"][0]["by"] == spend.SPEND_LIMIT

        await spendlimits.set_limit(hand(world), "acme", 500)

        async def is_done():
            standing = await marks.read_all(world.store, *SUPPORT, marks_max=9)
            return not standing and not await world.asks()

        await until(is_done)
    assert len(world.engine.asked) == 3
    report = await spending.report(world.store, chosen=world.chosen)
    assert report["deferred"] == [] and report["limits"][0]["enforcing"] is False
    assert await invariants.check(world.store, world.bus, settled=True) == []


async def test_two_workers_at_a_projects_spend_limit_pay_no_more_than_it(world):
    one = await cents_of_a_call(world)
    before = len(world.engine.asked)
    used = spend.used(await world_month(world)).usd
    limit = one / 100 + 4 * used
    await spendlimits.set_limit(hand(world), "acme", round(limit * 100))
    await world.runs(12)
    async with world.up(workers=2):

        async def is_quiet():
            told = await world.told()
            return await world.covered() == 13 and told is not None and told.state == "deferred"

        await until(is_quiet)
    month = await world_month(world)
    assert month["open"] == {} and spend.used(month).usd <= round(limit * 100) / 100
    assert len(world.engine.asked) > before


async def test_a_limit_of_the_organization_holds_over_all_projects_and_tells_no_project_what_others_spent(
    world,
):
    one = await cents_of_a_call(world)
    taken = spend.used(await world_month(world)).usd
    await world.runs(1)
    await spendlimits.set_limit(hand(world), None, one - 1)
    await world.worker().drain()
    assert len(world.engine.asked) == 1 and (await world.told()).state == "deferred"
    assert "organization" in (await world.told()).told
    mine = await spending.report(world.store, project="acme", chosen=world.chosen)
    assert [(row["project"], "used" in row, row["enforcing"]) for row in mine["limits"]] == [
        (None, False, True)
    ]
    every = await spending.report(world.store, chosen=world.chosen)
    assert every["limits"][0]["used"] == pytest.approx(taken)
    await spendlimits.delete_limit(hand(world), None)
    await world.worker().drain()
    assert len(world.engine.asked) == 2


async def test_over_the_rate_limit_calls_go_on_in_the_next_minute_by_themselves(world, shifted):
    shifted.off = clock.now().replace(second=30, microsecond=0) - clock.now()
    await (await project(world)).limit("acme", "generate", {"requests": 2})
    await world.runs(5)
    for minute in range(3):
        for _ in range(2):
            await world.worker().drain()
            assert len(world.engine.asked) == min(5, 2 * (minute + 1)), minute
        if minute < 2:
            told = await world.told()
            assert told.state == "waits" and told.told.startswith(
                "waits for the next minute: the project's rate"
            )
        shifted.off += dt.timedelta(minutes=1)
    assert await world.asks() == [] and await world.covered() == 5


async def test_a_running_worker_looks_again_when_the_minute_is_over_and_not_at_its_next_list(world, shifted):
    shifted.off = clock.now().replace(second=30, microsecond=0) - clock.now()
    await (await project(world)).limit("acme", "generate", {"requests": 1})
    await world.runs(2)
    worker = world.worker(marks_interval_seconds=3600)
    await worker.drain()
    assert len(world.engine.asked) == 1
    assert await worker._asked() == set()
    wakes = worker._model_wakes_at()
    assert wakes == clock.now().replace(second=0, microsecond=0) + dt.timedelta(minutes=1)
    loop = worker._memories("summarize", worker._for_a_model, worker._ask, wakes_at=lambda: wakes)
    assert loop._until_look() <= 31


async def test_a_changed_limit_is_in_force_in_a_worker_within_five_seconds(tmp_path, shifted):
    assert spendwatch.LIMITS_SECONDS == 5.0
    world = World(tmp_path)
    watch = spendwatch.Watch(world.store)
    ticks = 0.0
    shifted.monotonic = lambda: ticks
    await project(world)
    assert (await watch.limits("acme")).project_usd is None
    await spendlimits.set_limit(hand(world), "acme", 150)
    ticks = 4.9
    assert (await watch.limits("acme")).project_usd is None
    ticks = 5.0
    assert (await watch.limits("acme")).project_usd == 1.5
    world.index.close()


async def test_what_other_projects_spent_is_known_within_thirty_seconds_and_the_own_at_once(
    tmp_path, shifted
):
    assert spendwatch.TOTALS_SECONDS == 30.0
    world, bound, ticks = World(tmp_path), spend.Bound("gpt-5.4-mini", 10, 0.6), 0.0
    shifted.monotonic = lambda: ticks
    await spendlimits.set_limit(hand(world), None, 100)
    watch, book = spendwatch.Watch(world.store), ledger.Ledger(world.store)
    assert (await watch.limits("acme")).others_usd == 0.0
    await book.open("shop", "support", spend.Budgets(), bound)
    ticks = 29.9
    # Up to then it may be passed: by what others began meanwhile.
    within = spend.Budgets(limits=await watch.limits("acme"))
    assert await book.refusal("acme", "support", within, bound) is None
    ticks = 30.0
    within = spend.Budgets(limits=await watch.limits("acme"))
    assert within.limits.others_usd == 0.6
    with pytest.raises(errors.OverBudget, match="the organization's spend limit"):
        await book.open("acme", "support", within, bound)
    # Its own it knows: they are no others.
    assert (await watch.limits("shop")).others_usd == 0.0
    world.index.close()


async def test_a_worker_mails_an_alert_beside_its_work(world, monkeypatch):
    await spendlimits.create_alert(hand(world), None, 0, recipients=("ann@example.org",))
    with mails.server() as box:
        mail = {
            **{"smtp_host": "127.0.0.1", "smtp_port": box.port, "smtp_security": "none"},
            "smtp_from": "lore@example.org",
        }
        async with world.up(workers=2, **mail):

            async def is_mailed():
                return bool(box.mails)

            await until(is_mailed)
            await asyncio.sleep(0)
    assert len(box.mails) == 1 and SUPPORT[0] == "acme"
