"""When what waits for a model is due: judged from the asks, whoever judges, and ended by age in any case."""

from __future__ import annotations

import datetime as dt

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runlore import errors
from runlore.commit import keys, marks
from runlore.models import choices, due, port
from runlore.testing.stores import MemoryStore

NOW = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)


def ask(seconds_ago=0.0, rollout="conv", runs=(("r1.1", 100),), **more):
    at = (NOW - dt.timedelta(seconds=seconds_ago)).isoformat()
    return marks.Mark("k", (rollout,), at, sizes={rollout: dict(runs)} if runs else {}, **more)


asks_of = st.lists(
    st.builds(
        ask,
        seconds_ago=st.floats(0, 10_000),
        rollout=st.sampled_from(["a", "b", "c"]),
        runs=st.lists(st.tuples(st.sampled_from(["r1.1", "r2.1", "r3.2"]), st.integers(0, 1000)), max_size=3),
    ),
    min_size=1,
    max_size=12,
)
policies = st.builds(
    due.Policy,
    runs=st.none() | st.integers(1, 12),
    tokens=st.none() | st.integers(1, 5000),
    idle_seconds=st.none() | st.floats(1, 5000),
    age_seconds=st.none() | st.floats(0, 9000),
)


@given(asks_of, policies)
def test_whatever_is_not_due_says_when_it_will_be_and_is_so_then(asks, policy):
    verdict = due.is_due(asks, policy, NOW)
    if verdict.is_due:
        assert verdict.why
        return
    assert verdict.at is not None and NOW < verdict.at <= NOW + dt.timedelta(seconds=policy.age)
    assert due.is_due(asks, policy, verdict.at).is_due
    assert not due.is_due(asks, policy, verdict.at - dt.timedelta(milliseconds=1)).is_due


@given(asks_of, policies)
def test_age_always_ends_it(asks, policy):
    oldest = min(dt.datetime.fromisoformat(one.put_at) for one in asks)
    assert due.is_due(asks, policy, oldest + dt.timedelta(seconds=policy.age + 0.001)).is_due


@given(asks_of, policies, st.integers(0, 11))
def test_who_sees_the_asks_in_another_order_or_twice_judges_the_same(asks, policy, turn):
    turn %= len(asks)
    again = [*asks[turn:], *asks[:turn], asks[0]]
    assert due.is_due(again, policy, NOW) == due.is_due(asks, policy, NOW)


@given(asks_of, policies)
def test_without_idle_what_is_due_stays_due_as_more_comes_and_time_goes(asks, policy):
    policy = policy.model_copy(update={"idle_seconds": None})
    if due.is_due(asks, policy, NOW).is_due:
        more = [*asks, ask(0, "new", (("r9.1", 5),))]
        assert due.is_due(more, policy, NOW + dt.timedelta(seconds=5)).is_due


@given(asks_of, policies)
def test_a_refresh_makes_all_of_it_due(asks, policy):
    assert due.is_due([*asks, marks.Mark("k", (), NOW.isoformat(), is_refresh=True)], policy, NOW).is_due


@given(asks_of, policies, st.floats(61, 86_400))
def test_a_clock_that_goes_back_makes_asks_due_early_or_late_by_so_much_at_most(asks, policy, back):
    before = due.is_due(asks, policy, NOW)
    after = due.is_due(asks, policy, NOW - dt.timedelta(seconds=back))
    if before.is_due and not after.is_due:
        assert after.at <= NOW
    if any(dt.datetime.fromisoformat(one.put_at) > NOW - dt.timedelta(seconds=back - 60) for one in asks):
        assert after.is_due, "what is dated in the future was put by another clock"


def test_each_bound_alone_makes_asks_due():
    three = [ask(9, runs=(("r1.1", 10),)), ask(5, "b", (("r2.1", 20),)), ask(3, "b", (("r3.1", 30),))]
    for policy, is_due, told in [
        (due.Policy(), True, "due: at once"),
        (due.Policy(age_seconds=0, runs=99), True, "due: at once"),
        (due.Policy(runs=3), True, "due: 3 runs"),
        (due.Policy(runs=4), False, "due in 3591 s, or with 1 more run"),
        (due.Policy(runs=5, age_seconds=40), False, "due in 31 s, or with 2 more runs"),
        (due.Policy(tokens=60), True, "due: 60 tokens"),
        (due.Policy(tokens=1061), False, "due in 3591 s, or with 1,001 more tokens"),
        (due.Policy(idle_seconds=3), True, "due: no run came for 3 s"),
        (due.Policy(idle_seconds=4), False, "due in 1 s"),
        (due.Policy(age_seconds=9), True, "due: it has waited 9 s"),
    ]:
        verdict = due.is_due(three, policy, NOW)
        assert (verdict.is_due, verdict.told(NOW)) == (is_due, told), policy


def test_a_redelivered_run_counts_once_and_an_ask_of_an_older_version_one_for_each_rollout():
    assert due.size([ask(), ask(), ask(runs=(("r1.2", 50),))]) == (2, 150)
    assert due.size([ask(runs=()), ask(rollout="b", runs=())]) == (2, 0)
    assert due.size([ask(), ask(runs=())]) == (1, 100), "it is the same run"


def test_too_many_asks_and_one_without_a_time_are_due():
    assert due.is_due(
        [ask(rollout=f"r{n}", runs=()) for n in range(due.ASKS_MAX)], due.Policy(runs=99_999), NOW
    )
    assert due.is_due([marks.Mark("k", ("a",), "")], due.Policy(age_seconds=60), NOW).is_due
    assert not due.is_due([], due.Policy(), NOW).is_due


async def test_an_ask_keeps_what_its_policy_is_judged_by_and_an_old_one_is_still_read():
    store = MemoryStore()
    sizes = {"conv": {"r1.1": 70}}
    await marks.put(store, "acme", "support", ["conv"], kind=keys.ASKS, sizes=sizes)
    await marks.put(store, "acme", "support", (), kind=keys.ASKS, is_refresh=True)
    found = await marks.read_all(store, "acme", "support", marks_max=9, kind=keys.ASKS)
    first, second = sorted(
        found, key=lambda one: one.is_refresh
    )  # Put in one millisecond, they have no order.
    assert (first.sizes, first.is_refresh, second.is_refresh) == (sizes, False, True)
    old = b'{"format":"runlore.mark/1","rollouts":["conv"],"put_at":"2026-11-23T11:00:00+00:00"}'
    found = marks.parse("acme/asks/00/support/x.json", old)
    assert due.is_due([found], due.Policy(age_seconds=3600), NOW).is_due
    assert not due.is_due([found], due.Policy(age_seconds=3601), NOW).is_due
    with pytest.raises(errors.Corrupt):
        marks.parse("acme/asks/00/support/x.json", b'{"rollouts":["conv"],"sizes":[1]}')


def test_a_memory_changes_what_it_names_of_the_policy_and_no_more():
    chosen = choices.parse(
        {
            "summarize": {"due": {"runs": 5, "age_seconds": 900}},
            "memories": {
                "acme/support": {"summarize": {"due": {"runs": 2}}},
                "acme/now": {"summarize": {"due": {"age_seconds": 0}}},
            },
        }
    )
    assert chosen.due("acme", "other", port.SUMMARIZE) == due.Policy(runs=5, age_seconds=900)
    assert chosen.due("acme", "support", port.SUMMARIZE) == due.Policy(runs=2, age_seconds=900)
    assert chosen.due("acme", "now", port.SUMMARIZE).is_at_once
    assert chosen.due("acme", "support", port.CONSOLIDATE).is_at_once
    assert choices.Choices().due("acme", "support", port.SUMMARIZE).is_at_once
    assert chosen.of("acme", "support", port.SUMMARIZE).model == "gpt-5.4-mini"


@pytest.mark.parametrize(
    "said",
    [
        {"runs": 0},
        {"runs": 1.5},
        {"idle_seconds": 0},
        {"age_seconds": -1},
        {"age_seconds": 1e9},
        {"hours": 1},
    ],
    ids=str,
)
def test_a_policy_that_says_nothing_of_use_is_refused(said):
    with pytest.raises(pydantic.ValidationError):
        due.Policy(**said)
    with pytest.raises(errors.BadModels, match=r"summarize\.due"):
        choices.parse({"summarize": {"due": said}})
