"""A spend alert is told once in a month: over two workers, a killed one, and a mail server that does not take it."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest
import structlog

import mails
from runlore import clock, errors
from runlore.commit import keys
from runlore.events import envelope
from runlore.models import spend
from runlore.testing.stores import MemoryStore
from runlore.upkeep import administration, mail, spendalerts, spendlimits
from runlore.upkeep import organization as organizations

NOON = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
HAND = {"user": "ann@desk"}
ANN, BO = "ann@example.org", "bo@example.org"


class Set(clock.World):
    """A clock that a test moves."""

    at, ticks = NOON, 0.0

    def now(self):
        return self.at

    def monotonic(self):
        return self.ticks

    def later(self, seconds):
        self.at += dt.timedelta(seconds=seconds)
        self.ticks += seconds


@pytest.fixture(autouse=True)
def world(monkeypatch):
    monkeypatch.setattr(mail, "PAUSE_SECONDS", 0.001)
    made, before = Set(), clock._world.get()
    clock.install(made)
    yield made
    clock.install(before)


@pytest.fixture
def box():
    with mails.server() as made:
        yield made


def relay(box):
    return mail.Relay("127.0.0.1", box.port, "lore@example.org", security="none")


async def spent(store, project, usd, month="2026-11"):
    row = {**spend.EMPTY, "calls": 1, "cost_usd": usd}
    body = {**spend.empty(project, month), "days": {f"{month}-01": {"support": {"gpt-5.5": row}}}}
    await store.put(keys.spend(project, month), envelope.dump(body))


async def alerted(cents=500, *, project="acme", recipients=(ANN,), usd=5.0, prefix=None):
    """A store where an alert is to be told, and the alert."""
    store = MemoryStore()
    await spent(store, "acme", usd)
    hand = administration.Administrator(store, HAND)
    alert = await spendlimits.create_alert(hand, project, cents, recipients=recipients, subject_prefix=prefix)
    return store, alert


async def marks(store):
    return [row.key async for row in store.list(f"{keys.OPERATIONS}/{keys.ALERTS}/")]


async def test_an_alert_is_mailed_to_everybody_once_and_logged_without_an_address(box, world):
    store, alert = await alerted(recipients=(ANN, BO), prefix="[lore]")
    with structlog.testing.capture_logs() as logs:
        for one in (spendalerts.Alerts(store, relay(box)), spendalerts.Alerts(store, relay(box))):
            for _ in range(2):
                await one.check()
                world.later(spendalerts.CLAIM_SECONDS + 1)
    assert sorted(to for _, (to,), _ in box.mails) == [ANN, BO]
    made = box.mails[0][2]
    assert made["subject"] == "[lore] project acme has spent $5.00 in 2026-11"
    assert alert.id in made.get_content() and "$5.00" in made.get_content()
    (told,) = logs
    assert (told["alert"], told["whose"], told["threshold_usd"]) == (alert.id, "project acme", 5.0)
    assert "@" not in str(logs)
    (mark,) = await marks(store)
    assert mark == keys.spend_alert("2026-11", alert.id, 500) and "@" not in store.body(mark).decode()


@pytest.mark.parametrize(
    ("project", "usd", "is_told"),
    [("acme", 4.99, False), (None, 4.49, False), (None, 4.5, True)],
    ids=["below", "organization below", "organization"],
)
async def test_it_is_told_from_its_threshold_on_and_the_organizations_is_of_all_projects(
    box, project, usd, is_told
):
    store, _ = await alerted(project=project, usd=usd)
    await spent(store, "shop", 0.5)
    await spendalerts.Alerts(store, relay(box)).check()
    assert len(box.mails) == is_told
    if is_told:
        assert box.mails[0][2]["subject"] == "the organization has spent $5.00 in 2026-11"


class Slow(MemoryStore):
    """Others go first at every step."""

    async def get(self, key):
        await asyncio.sleep(0)
        return await super().get(key)

    async def compare_and_set(self, key, body, etag, *, guard=None):
        await asyncio.sleep(0)
        return await super().compare_and_set(key, body, etag, guard=guard)


async def test_of_workers_that_look_at_once_one_tells(box):
    store, _ = await alerted()
    slow = Slow()
    slow._objects, slow._order = store._objects, store._order
    await asyncio.gather(*(spendalerts.Alerts(slow, relay(box)).check() for _ in range(4)))
    assert len(box.mails) == 1


class Killed(MemoryStore):
    """Whoever wrote the mark of an alert dies right after."""

    async def compare_and_set(self, key, body, etag, *, guard=None):
        await super().compare_and_set(key, body, etag, guard=guard)
        raise KeyboardInterrupt


async def test_whoever_dies_before_the_mail_is_followed_by_another_who_tells(box, world):
    store, _ = await alerted()
    killed = Killed()
    killed._objects, killed._order = store._objects, store._order
    with pytest.raises(KeyboardInterrupt):
        await spendalerts.Alerts(killed, relay(box)).check()
    other = spendalerts.Alerts(store, relay(box))
    await other.check()
    assert not box.mails
    world.later(spendalerts.CLAIM_SECONDS + 1)
    await other.check()
    assert len(box.mails) == 1


async def test_who_could_not_be_mailed_is_mailed_later_and_those_who_were_are_not_again(box, world):
    store, alert = await alerted(recipients=(ANN, BO))
    box.answers["RCPT"] = ["550 5.1.1 no"]
    one = spendalerts.Alerts(store, relay(box))
    with structlog.testing.capture_logs() as logs:
        await one.check()
    (failed,) = [entry for entry in logs if entry["log_level"] == "error"]
    assert (failed["alert"], failed["kind"]) == (alert.id, errors.MailRefused.kind)
    ((_, (first,), _),) = box.mails
    await one.check()
    assert len(box.mails) == 1
    world.later(spendalerts.RETRY_SECONDS + 1)
    await spendalerts.Alerts(store, relay(box)).check()
    assert [to for _, (to,), _ in box.mails] == [first, ({ANN, BO} - {first}).pop()]


async def test_another_month_and_another_threshold_tell_again_and_the_last_day_s_spending_is_told_after_the_month(
    box, world
):
    store, alert = await alerted()
    one = spendalerts.Alerts(store, relay(box))
    await one.check()
    hand = administration.Administrator(store, HAND)
    await spendlimits.update_alert(hand, "acme", alert.id, 400, recipients=(ANN,))
    world.later(60)
    await one.check()
    assert len(box.mails) == 2
    world.at = dt.datetime(2026, 12, 1, 1, tzinfo=dt.UTC)
    world.ticks += 60
    await spent(store, "acme", 9.0, "2026-12")
    other = await spendlimits.create_alert(hand, "acme", 100, recipients=(BO,))
    await one.check()
    assert sorted((to, made["subject"][-7:]) for _, (to,), made in box.mails[2:]) == [
        (ANN, "2026-12"),
        (BO, "2026-11"),
        (BO, "2026-12"),
    ]
    await spendlimits.delete_alert(hand, "acme", other.id)


async def test_without_a_mail_server_it_is_in_the_log_once():
    store, _ = await alerted()
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            await spendalerts.Alerts(store, None).check()
    assert [entry["mailed"] for entry in logs] == ["no mail server is set"]


async def test_a_store_that_is_away_and_a_mark_that_is_none_stop_no_other_alert(box, world):
    store, alert = await alerted()
    await store.put(keys.spend_alert("2026-11", alert.id, 500), b"none")
    hand = administration.Administrator(store, HAND)
    await spendlimits.create_alert(hand, None, 1, recipients=(BO,))
    one = spendalerts.Alerts(store, relay(box))
    with structlog.testing.capture_logs() as logs:
        await one.check()
    assert [to for _, (to,), _ in box.mails] == [BO]
    assert [entry["kind"] for entry in logs if entry["log_level"] == "error"] == ["corrupt"]

    class Away(MemoryStore):
        async def get(self, key):
            raise errors.StoreUnavailable("away")

    with structlog.testing.capture_logs() as logs:
        await spendalerts.Alerts(Away(), relay(box)).check()
    assert [entry["kind"] for entry in logs] == ["store_unavailable"]


async def test_an_alert_that_no_mail_can_be_made_of_stops_no_worker(box):
    store, alert = await alerted()
    hand = administration.Administrator(store, HAND)
    await spendlimits.create_alert(hand, None, 1, recipients=(BO,))

    def step(org, now):
        # As somebody who edits the store by hand might.
        broken = organizations.changed(alert, recipients=("no address",), subject_prefix="\ud800\n")
        project = organizations.changed(org.projects["acme"], spend_alerts={alert.id: broken})
        return organizations.with_project(org, project), (), None

    await hand.move(step)
    with structlog.testing.capture_logs() as logs:
        await spendalerts.Alerts(store, relay(box)).check()
    assert [to for _, (to,), _ in box.mails] == [BO]
    assert [entry["alert"] for entry in logs if entry["log_level"] == "error"] == [alert.id]


async def test_as_many_alerts_as_may_be_are_made_and_no_more(monkeypatch):
    monkeypatch.setattr(spendlimits, "ALERTS_MAX", 1)
    store, _ = await alerted()
    hand = administration.Administrator(store, HAND)
    with pytest.raises(errors.Refused):
        await spendlimits.create_alert(hand, "acme", 1, recipients=(ANN,))
    assert isinstance(
        await spendlimits.create_alert(hand, None, 1, recipients=(ANN,)), organizations.SpendAlert
    )
