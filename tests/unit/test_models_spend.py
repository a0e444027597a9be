"""Spend: budgets hold also for calls at the same time; nothing counts twice, and nothing is free by being unknown."""

from __future__ import annotations

import asyncio
import datetime as dt
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from runlore import clock, errors
from runlore.commit import keys
from runlore.models import choices, ledger, port, prices, spend
from runlore.testing import models
from runlore.testing.stores import MemoryStore

NOON = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
PRICED = spend.Bound("gpt-5.4-mini", 1000, 0.01)
UNPRICED = spend.Bound("our/model", 1000, None)
TABLE = prices.built_in()


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str


class At(clock.World):
    """A clock that a test sets, and that waits for nothing."""

    def __init__(self, at=NOON):
        self.at, self.ticks = at, 0.0

    def now(self):
        return self.at

    def monotonic(self):
        return self.ticks

    async def sleep(self, seconds):
        self.ticks += seconds
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def world():
    made = At()
    clock.install(made)
    yield made
    clock.install(clock.World())


def budgets(memory=None, **project):
    return spend.Budgets(spend.Budget(**project), spend.Budget(**(memory or {})))


def body_of(store, month="2026-11"):
    return json.loads(store.body(keys.spend("acme", month)))


def ask_of(text="hello", **more):
    return port.Ask(model="gpt-5.4-mini", instructions="say", input=text, answer=Answer, **more)


def metered(store, script=(), memory="support", within=None, kept=None):
    engine = models.ScriptedEngine(script)
    made = ledger.Metered(
        engine,
        kept or ledger.Ledger(store),
        "acme",
        memory,
        budgets=within or spend.Budgets(),
        table=TABLE,
    )
    return made, engine


# --- pure -----------------------------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(
        st.sampled_from(["open", "settle", "drop", "sweep"]),
        st.integers(0, 4),
        st.sampled_from(["support", "sales"]),
        st.integers(0, 1000),
        st.integers(0, 40),
    ),
    max_size=40,
)


@given(steps, st.integers(0, 4000), st.integers(0, 3000))
def test_no_order_of_calls_passes_a_budget(moves, of_project, of_memory):
    within = budgets({"day_tokens": of_memory}, month_tokens=of_project)
    body, now = spend.empty("acme", "2026-11"), NOON
    for what, name, memory, tokens, hours in moves:
        call = f"call-{name}"
        if what == "open" and call not in body["open"]:
            if spend.refusal(body, within, memory, now, PRICED) is None:
                body = spend.opened(body, call, memory, PRICED, now=now)
        elif what == "settle":
            usage = port.Usage(input_tokens=tokens, output_tokens=0)
            body = spend.settled(body, call, usage, 0.0)
        elif what == "drop":
            body = spend.dropped(body, call)
        else:
            now += dt.timedelta(minutes=hours)
            body = spend.swept(body, now)
        assert spend.used(body).tokens <= of_project
        assert spend.used(body, memory=memory, day="2026-11-23").tokens <= of_memory


@given(steps)
def test_what_is_done_twice_counts_once(moves):
    body = spend.empty("acme", "2026-11")
    for what, name, memory, tokens, _ in moves:
        call = f"call-{name}"
        usage = port.Usage(input_tokens=tokens, output_tokens=1)
        for _ in range(2):
            before = body
            if what == "open":
                body = spend.opened(body, call, memory, PRICED, now=NOON)
            elif what == "settle":
                body = spend.settled(body, call, usage, 0.5)
            elif what == "drop":
                body = spend.dropped(body, call)
            else:
                body = spend.swept(body, NOON + dt.timedelta(days=1))
        assert body is before


def test_days_and_months_are_of_utc_and_each_has_its_own_budget():
    body = spend.opened(spend.empty("acme", "2026-11"), "a", "support", PRICED, now=NOON)
    body = spend.settled(body, "a", port.Usage(input_tokens=900, output_tokens=50), 0.009)
    assert spend.used(body, day="2026-11-23") == spend.Used(950, 0.009, 0)
    assert spend.used(body, day="2026-11-24") == spend.Used()
    late = NOON.replace(hour=23).astimezone(dt.timezone(dt.timedelta(hours=5)))
    refused = spend.refusal(body, budgets(day_usd=0.015), "support", late, PRICED)
    assert refused is not None and refused.until == "2026-11-24T00:00:00+00:00"
    assert spend.refusal(body, budgets(day_usd=0.02), "support", late, PRICED) is None
    tomorrow = NOON + dt.timedelta(days=1)
    assert spend.refusal(body, budgets(day_usd=0.015), "support", tomorrow, PRICED) is None
    refused = spend.refusal(body, budgets(month_tokens=1500), "support", tomorrow, PRICED)
    assert refused is not None and refused.until == "2026-12-01T00:00:00+00:00"
    assert "month, 1,500 tokens: 950 are used" in refused.cause


def test_a_call_without_a_price_goes_by_the_budget_in_tokens_or_is_not_made():
    body = spend.empty("acme", "2026-11")
    for within, is_refused in [
        (budgets(), False),
        (budgets(day_tokens=1000), False),
        (budgets(day_tokens=999), True),
        (budgets(day_usd=5.0), True),
        (budgets(day_usd=5.0, month_tokens=10_000), True),
        (budgets(day_usd=5.0, day_tokens=10_000), False),
        (budgets(day_usd=5.0, day_tokens=10_000, unknown="refuse"), True),
        (budgets({"day_usd": 5.0}), True),
        (budgets(day_tokens=1000, unknown="refuse"), False),
    ]:
        found = spend.refusal(body, within, "support", NOON, UNPRICED)
        assert (found is not None) == is_refused, within
    refused = spend.refusal(body, budgets(day_usd=5.0), "support", NOON, UNPRICED)
    assert refused is not None and "our/model has no price" in refused.cause


def test_a_call_is_bound_by_its_length_and_its_limit_also_where_a_price_ends():
    bound = spend.bound(ask_of("x" * 10_000, output_tokens_max=500), TABLE)
    assert bound.tokens == (10_003 // 2 + 1000) + 500 and bound.usd == pytest.approx(
        6001 * 0.75e-6 + 500 * 4.5e-6
    )
    long = port.Ask(model="gpt-5.5", instructions="", input="x" * 2_000_000, answer=Answer)
    assert spend.bound(long, TABLE).usd == pytest.approx(272_000 * 5e-6 + 16_000 * 30e-6)
    assert spend.bound(port.Ask(model="m", instructions="", input="", answer=Answer), TABLE).usd is None


# --- in the store ---------------------------------------------------------------------------------------------


async def test_a_call_is_counted_at_what_it_took_by_day_memory_and_model():
    store = MemoryStore()
    one, engine = metered(store)
    await one.ask(ask_of())
    await one.ask(ask_of())
    body = body_of(store)
    assert body["open"] == {} and len(engine.asked) == 2
    assert body["days"] == {
        "2026-11-23": {
            "support": {
                "gpt-5.4-mini": {
                    "calls": 2,
                    "input_tokens": 2000,
                    "cached_tokens": 400,
                    "output_tokens": 200,
                    "cost_usd": pytest.approx(2 * (800 * 0.75 + 200 * 0.075 + 100 * 4.5) / 1e6),
                    "unknown": 0,
                    "lost": 0,
                }
            }
        }
    }


async def test_what_is_said_to_cost_nothing_known_is_unknown_and_counts_at_its_bound():
    store = MemoryStore()
    one, _ = metered(store, [models.Reply(tokens=None)])
    wanted = spend.bound(ask_of(), TABLE)
    await one.ask(ask_of())
    row = body_of(store)["days"]["2026-11-23"]["support"]["gpt-5.4-mini"]
    assert (row["calls"], row["input_tokens"], row["cost_usd"]) == (1, wanted.tokens, wanted.usd)


@pytest.mark.parametrize(
    ("fault", "error", "calls"),
    [
        ("busy", errors.ModelBusy, 0),
        ("unauthorized", errors.ModelBlocked, 0),
        ("too_long", errors.AskRejected, 0),
        ("malformed", errors.BadAnswer, 1),
    ],
)
async def test_a_call_that_fails_counts_only_if_it_may_have_been_billed(fault, error, calls):
    store = MemoryStore()
    one, _ = metered(store, [models.Reply(fault=fault)])
    with pytest.raises(error):
        await one.ask(ask_of())
    body = body_of(store)
    assert body["open"] == {} and sum(row["calls"] for _, _, _, row in spend.rows(body)) == calls


async def test_over_budget_nothing_is_asked_and_the_ledger_says_since_when_and_until_when():
    store = MemoryStore()
    wanted = spend.bound(ask_of(), TABLE)
    one, engine = metered(store, within=budgets(day_tokens=wanted.tokens))
    await one.ask(ask_of())
    with pytest.raises(errors.OverBudget, match="the project's budget of a day"):
        await one.ask(ask_of())
    assert len(engine.asked) == 1 and one.refused == wanted
    found = spend.deferred(body_of(store), "support", NOON)
    assert found is not None and found["until"] == "2026-11-24T00:00:00+00:00"
    assert spend.deferred(body_of(store), "support", NOON + dt.timedelta(hours=13)) is None
    before = store.fingerprint()
    with pytest.raises(errors.OverBudget):
        await one.ask(ask_of())
    assert store.fingerprint() == before, "it is written once"


async def test_of_one_memorys_budget_the_others_hear_nothing():
    store = MemoryStore()
    small = spend.Budgets(spend.Budget(), spend.Budget(day_usd=0.0))
    one, _ = metered(store, within=small)
    with pytest.raises(errors.OverBudget, match="the memory's budget"):
        await one.ask(ask_of())
    other, engine = metered(store, memory="sales")
    await other.ask(ask_of())
    assert len(engine.asked) == 1


async def test_a_raised_budget_and_the_next_day_let_calls_through_and_end_the_deferral(world):
    store = MemoryStore()
    kept = ledger.Ledger(store)
    one, _ = metered(store, within=budgets(day_usd=0.0), kept=kept)
    with pytest.raises(errors.OverBudget):
        await one.ask(ask_of())
    raised, _ = metered(store, within=budgets(day_usd=1.0), kept=kept)
    await raised.ask(ask_of())
    assert body_of(store)["deferred"] == {}
    tight = budgets(day_usd=0.075)
    later, engine = metered(store, within=tight, kept=kept)
    for _ in range(9):
        try:
            await later.ask(ask_of())
        except errors.OverBudget:
            break
    asked = len(engine.asked)
    world.at += dt.timedelta(days=1)
    await later.ask(ask_of())
    assert len(engine.asked) == asked + 1


class Slow(models.ScriptedEngine):
    """Others go on while it answers."""

    async def ask(self, ask):
        for _ in range(7):
            await asyncio.sleep(0)
        return await super().ask(ask)


async def test_a_call_says_for_which_project_it_is_so_that_requests_can_be_shared_out():
    seen = []

    class Noting(models.ScriptedEngine):
        async def ask(self, ask):
            seen.append(ask)
            return await super().ask(ask)

    store, one = MemoryStore(), ask_of()
    await ledger.Metered(
        Noting(()), ledger.Ledger(store), "acme", "support", budgets=spend.Budgets(), table=TABLE
    ).ask(one)
    assert seen[0].project == "acme" and seen == [one] and seen[0].name == one.name


async def spent_by(workers, calls_max):
    """How often so many workers asked, with room for so many calls that each take what they may; what that took."""
    store = MemoryStore()
    one = ask_of(output_tokens_max=500)
    wanted = spend.bound(one, TABLE).tokens
    within = budgets(day_tokens=wanted * calls_max)
    engine = Slow(lambda seen: models.Reply(tokens=(wanted - 500, 0, 500)))
    made = [
        ledger.Metered(engine, ledger.Ledger(store), "acme", "support", budgets=within, table=TABLE)
        for _ in range(workers)
    ]

    async def work(meter):
        while True:
            try:
                await meter.ask(one)
            except errors.OverBudget:
                return

    await asyncio.gather(*(work(meter) for meter in made for _ in range(3)))
    assert body_of(store)["open"] == {}
    return len(engine.asked), spend.used(body_of(store)).tokens / wanted


@pytest.mark.parametrize("workers", [1, 2, 5])
async def test_workers_on_one_budget_do_not_pass_it_together(workers):
    assert await spent_by(workers, 20) == (20, 20)


async def test_were_open_calls_not_counted_workers_would_pass_it(monkeypatch):
    real = spend.used
    monkeypatch.setattr(spend, "used", lambda body, **more: real({**body, "open": {}}, **more))
    asked, _ = await spent_by(5, 20)
    assert asked > 20


async def test_a_process_that_dies_leaves_a_call_that_counts_at_its_bound_and_then_for_good(world):
    store = MemoryStore()
    kept = ledger.Ledger(store)
    call = await kept.open("acme", "support", spend.Budgets(), PRICED)
    assert spend.used(await ledger.Ledger(store).month("acme", "2026-11")).tokens == 1000
    world.at += dt.timedelta(seconds=spend.OPEN_SECONDS_MAX + 1)
    one, _ = metered(store)
    await one.ask(ask_of())
    row = body_of(store)["days"]["2026-11-23"]["support"]["gpt-5.4-mini"]
    assert (row["calls"], row["lost"], row["input_tokens"]) == (2, 1, 2000) and body_of(store)["open"] == {}
    # It was paused, and not dead: what it took comes too late to be told apart.
    await kept.settle(call, port.Usage(input_tokens=1, output_tokens=1), 0.0)
    assert body_of(store)["days"]["2026-11-23"]["support"]["gpt-5.4-mini"] == row


async def test_a_clock_that_goes_back_an_hour_over_midnight_counts_where_it_says_and_loses_nothing(world):
    store = MemoryStore()
    world.at = dt.datetime(2026, 12, 1, 0, 20, tzinfo=dt.UTC)
    kept = ledger.Ledger(store)
    one, _ = metered(store, within=budgets(month_tokens=40_000), kept=kept)
    await one.ask(ask_of())
    world.at -= dt.timedelta(hours=1)
    await one.ask(ask_of())
    world.at += dt.timedelta(hours=1)
    await one.ask(ask_of())
    took = [
        sum(row["calls"] for *_, row in spend.rows(body_of(store, month))) for month in ("2026-11", "2026-12")
    ]
    assert took == [1, 2]
    assert [body["month"] for body in await ledger.months(store, "acme", world.at)] == ["2026-11", "2026-12"]


class Faulty(MemoryStore):
    """One CAS of the ledger goes wrong in one way: `landed`, `lost` (both without a reply), `refused` or `moved`."""

    def __init__(self, at, how):
        super().__init__()
        self.at, self.how, self.count = at, how, 0

    async def compare_and_set(self, key, body, etag, *, guard=None):
        self.count += 1
        if self.count != self.at or self.how == "none":
            return await super().compare_and_set(key, body, etag, guard=guard)
        if self.how == "landed":
            await super().compare_and_set(key, body, etag, guard=guard)
        if self.how == "moved":
            other = spend.opened(spend.empty("acme", "2026-11"), "other", "sales", PRICED, now=NOON)
            found = await self.get(key)
            if found is not None:
                other = spend.opened(json.loads(found.body), "other", "sales", PRICED, now=NOON)
            await super().put(key, json.dumps(other).encode())
            raise errors.PreconditionFailed("moved")
        raise (errors.StoreUnavailable if self.how == "refused" else errors.OutcomeUnknown)("scripted")


@pytest.mark.parametrize("how", ["landed", "lost", "refused", "moved"])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
async def test_whatever_goes_wrong_at_any_write_each_call_counts_once(at, how):
    store = Faulty(at, how)
    one, engine = metered(store)
    await one.ask(ask_of())
    await one.ask(ask_of())
    body = body_of(store)
    row = body["days"]["2026-11-23"]["support"]["gpt-5.4-mini"]
    assert len(engine.asked) == 2 and (row["calls"], row["input_tokens"], row["lost"]) == (2, 2000, 0)
    assert set(body["open"]) == ({"other"} if how == "moved" else set())


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"format":"runlore.spend/1"}', b'{"format":"x/2"}'], ids=str)
async def test_a_ledger_that_is_none_is_not_written_over(raw):
    store = MemoryStore()
    await store.put(keys.spend("acme", "2026-11"), raw)
    one, engine = metered(store)
    with pytest.raises(errors.Fatal):
        await one.ask(ask_of())
    assert store.body(keys.spend("acme", "2026-11")) == raw and not engine.asked


# --- the file of models ---------------------------------------------------------------------------------------


def test_a_project_of_its_own_and_a_memorys_budget_stand_beside_the_one_for_all():
    chosen = choices.parse(
        {
            "budget": {"day_usd": 5.0},
            "projects": {"big": {"budget": {"day_usd": 50.0, "unknown": "refuse"}}},
            "memories": {"acme/support": {"budget": {"month_tokens": 1000}}},
        }
    )
    assert chosen.budgets("acme", "support") == budgets({"month_tokens": 1000}, day_usd=5.0)
    assert chosen.budgets("acme", "sales") == budgets(day_usd=5.0)
    assert chosen.budgets("big", "x") == budgets(day_usd=50.0, unknown="refuse")
    with pytest.raises(errors.BadModels, match=r"budget\.day_usd"):
        choices.parse({"budget": {"day_usd": -1}})


def test_a_changed_file_is_read_again_and_a_broken_one_leaves_what_was(tmp_path):
    path = tmp_path / "models.toml"
    path.write_text("[budget]\nday_usd = 1.0\n")
    watched = choices.Watched(path)
    assert watched().budget.day_usd == 1.0
    path.write_text("[budget]\nday_usd = 22.5\n")
    assert watched().budget.day_usd == 22.5
    path.write_text("[budget]\nday_usd = 'much'\n")
    assert watched().budget.day_usd == 22.5
    path.unlink()
    assert watched().budget.day_usd == 22.5
    path.write_text("[budget]\nday_usd = 3.25\n")
    assert watched().budget.day_usd == 3.25
    assert choices.Watched(None)() == choices.Choices()


async def test_what_only_open_calls_keep_out_is_no_deferral_until_somebody_says_so():
    store = MemoryStore()
    kept, within = ledger.Ledger(store), budgets(day_tokens=1500)
    call = await kept.open("acme", "support", within, PRICED)
    with pytest.raises(errors.OverBudget) as refused:
        await kept.open("acme", "support", within, PRICED)
    assert refused.value.context["is_open"] and body_of(store)["deferred"] == {}
    assert await kept.defer("acme", "support", within, PRICED) is not None
    assert spend.deferred(body_of(store), "support", NOON) is not None
    await kept.settle(call, port.Usage(input_tokens=100, output_tokens=10), 0.001)
    assert await kept.defer("acme", "support", within, PRICED) is None
    await kept.open("acme", "support", within, PRICED)
    assert body_of(store)["deferred"] == {}


async def test_no_more_months_are_remembered_than_may_be(monkeypatch):
    monkeypatch.setattr(ledger, "MONTHS_KNOWN_MAX", 2)
    store = MemoryStore()
    kept = ledger.Ledger(store)
    for project in ("a", "b", "c", "a"):
        call = await kept.open(project, "support", spend.Budgets(), PRICED)
        await kept.settle(call, port.Usage(input_tokens=10, output_tokens=0), 0.0)
    assert len(kept._known) == 2
    assert spend.used(await kept.month("a", "2026-11")).tokens == 20


# --- what an administrator limits -----------------------------------------------------------------------------


def limits(**given):
    return spend.Budgets(limits=spend.Limits(**given))


def spent(usd, *, tokens=1000):
    body = spend.opened(spend.empty("acme", "2026-11"), "a", "support", PRICED, now=NOON)
    return spend.settled(body, "a", port.Usage(input_tokens=tokens, output_tokens=0), usd)


def test_a_spend_limit_holds_with_what_is_open_and_a_call_without_a_price_is_not_made_under_one():
    body = spend.opened(spent(4.97), "b", "support", PRICED, now=NOON)
    assert spend.refusal(body, limits(project_usd=4.99), "support", NOON, PRICED) is None
    refused = spend.refusal(body, limits(project_usd=4.985), "support", NOON, PRICED)
    assert (refused.by, refused.is_open, refused.until) == (
        spend.SPEND_LIMIT,
        True,
        "2026-12-01T00:00:00+00:00",
    )
    assert "the project's spend limit of a month, $4.985: $4.9800 are used" in refused.cause
    for of in ("project_usd", "organization_usd"):
        refused = spend.refusal(body, limits(**{of: 99.0}), "support", NOON, UNPRICED)
        assert "has no price" in refused.cause and of.partition("_")[0] in refused.cause


def test_the_organizations_limit_counts_every_project_and_tells_none_what_the_others_spent():
    within = limits(organization_usd=100.0, others_usd=98.985)
    assert spend.refusal(spent(1.0), within, "support", NOON, PRICED) is None
    refused = spend.refusal(spent(1.01), within, "support", NOON, PRICED)
    assert (
        refused.by == spend.ORGANIZATION_LIMIT and "98" not in refused.cause and "$100" not in refused.cause
    )


def test_a_limit_refuses_now_where_it_is_used_up_or_where_a_call_waits_that_does_not_fit():
    body = spent(4.995)
    assert not spend.is_enforcing([body], 5.0, spend.SPEND_LIMIT, NOON)
    why = spend.refusal(body, limits(project_usd=5.0), "support", NOON, PRICED)
    waiting = spend.deferring(body, "support", why, NOON)
    assert spend.is_enforcing([waiting], 5.0, spend.SPEND_LIMIT, NOON)
    assert not spend.is_enforcing([waiting], 5.1, spend.SPEND_LIMIT, NOON)
    assert not spend.is_enforcing([waiting], 5.0, spend.ORGANIZATION_LIMIT, NOON)
    assert not spend.is_enforcing([waiting], 5.0, spend.SPEND_LIMIT, NOON + dt.timedelta(days=9))
    assert spend.is_enforcing([body, spent(0.005)], 5.0, spend.ORGANIZATION_LIMIT, NOON)


@given(steps, st.integers(0, 8), st.integers(0, 5000))
def test_no_order_of_calls_passes_a_rate_limit(moves, requests, tokens):
    within = limits(requests_per_minute=requests, tokens_per_minute=tokens)
    body, now = spend.empty("acme", "2026-11"), NOON
    made = {}
    for number, (what, name, memory, took, seconds) in enumerate(moves):
        call = f"call-{name}"
        if what == "open" and call not in body["open"]:
            if spend.refusal(body, within, memory, now, PRICED) is None:
                body = spend.opened(body, call, memory, PRICED, now=now)
                made[number] = now.replace(second=0)
        elif what == "settle":
            body = spend.settled(body, call, port.Usage(input_tokens=took, output_tokens=0), 0.0)
        elif what == "drop":
            body = spend.dropped(body, call)
        else:
            now += dt.timedelta(seconds=seconds)
        assert list(made.values()).count(now.replace(second=0)) <= requests
        minute = body.get("minute", {"tokens": 0})
        assert minute["tokens"] <= tokens


def test_a_rate_limit_lets_go_on_in_the_next_minute_and_one_that_no_call_fits_says_so():
    within = limits(requests_per_minute=1)
    at = NOON + dt.timedelta(seconds=30)
    body = spend.opened(spend.empty("acme", "2026-11"), "a", "support", PRICED, now=at)
    refused = spend.refusal(body, within, "sales", at, PRICED)
    assert (refused.by, refused.until) == (spend.RATE, "2026-11-23T12:01:00+00:00")
    assert refused.cause == "the project's rate limit of 1 calls in a minute: 1 are used"
    assert spend.refusal(body, within, "sales", NOON + dt.timedelta(seconds=60), PRICED) is None
    tokens = limits(tokens_per_minute=1999)
    assert spend.refusal(body, tokens, "sales", at, PRICED).is_open
    settled = spend.settled(body, "a", port.Usage(input_tokens=900, output_tokens=99), 0.0)
    assert spend.refusal(settled, tokens, "sales", at, PRICED) is None
    for never in (limits(tokens_per_minute=999), limits(requests_per_minute=0)):
        refused = spend.refusal(settled, never, "sales", at, PRICED)
        assert refused.until == "2026-12-01T00:00:00+00:00" and "one call may take" in refused.cause
    assert spend.refusal(body, within, "sales", at, PRICED).told.endswith("or once the rate limit is raised")


def test_a_minute_that_another_clock_began_early_is_counted_in_and_one_far_ahead_is_not():
    body = spend.opened(
        spend.empty("acme", "2026-11"), "a", "support", PRICED, now=NOON + dt.timedelta(seconds=61)
    )
    within = limits(requests_per_minute=1)
    refused = spend.refusal(body, within, "support", NOON, PRICED)
    assert refused is not None and refused.until == "2026-11-23T12:02:00+00:00"
    assert spend.refusal(body, within, "support", NOON - dt.timedelta(hours=1), PRICED) is None


def test_a_month_that_an_older_version_wrote_is_gone_on_with():
    old = spend.opened(spend.empty("acme", "2026-11"), "a", "support", PRICED, now=NOON)
    del old["minute"], old["open"]["a"]["minute"]
    settled = spend.settled(old, "a", port.Usage(input_tokens=1, output_tokens=1), 0.0)
    assert spend.used(settled).tokens == 2
    assert spend.opened(old, "b", "support", PRICED, now=NOON)["minute"]["requests"] == 1


async def test_workers_together_make_no_more_calls_in_a_minute_than_the_rate_limit(world):
    store, within = MemoryStore(), limits(requests_per_minute=7)
    engine = Slow(lambda seen: models.Reply())
    workers = [
        ledger.Metered(engine, ledger.Ledger(store), "acme", "support", budgets=within, table=TABLE)
        for _ in range(4)
    ]
    done = await asyncio.gather(
        *(one.ask(ask_of(f"{number}-{at}")) for number, one in enumerate(workers) for at in range(4)),
        return_exceptions=True,
    )
    assert len(engine.asked) == 7 and sum(isinstance(one, errors.OverBudget) for one in done) == 9
    world.at += dt.timedelta(minutes=1)
    await workers[0].ask(ask_of("later"))
    assert len(engine.asked) == 8 and body_of(store)["deferred"] == {}
