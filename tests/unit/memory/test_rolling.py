"""Which runs a model is shown next: about one a run, all of them now and then, and no older state than holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

import made
from runlore.memory import rolling


def runs(*numbers, attempts=None):
    return {
        f"run-{one}": {"ended_at": made.moment(one), "attempt": (attempts or {}).get(one, 1)}
        for one in numbers
    }


def shown(plan):
    return [run for run, _ in plan.shown]


def follow(known, part=None):
    """The part after every ask that these runs need, and the plans."""
    plans = []
    while (plan := rolling.plan(known, part)) is not None:
        plans.append(plan)
        points = [*plan.points, rolling.point(plan, f"answer-{plan.upto}")]
        part = {"upto": plan.upto, "points": points[-rolling.POINTS_MAX :]}
        assert len(plans) < 50
    return part, plans


def test_the_next_run_is_shown_alone_and_goes_on_from_what_is_known():
    part, [first] = follow(runs(1, 2))
    assert first.is_full and shown(first) == ["run-1", "run-2"] and first.base is None
    part, [second] = follow(runs(1, 2, 3), part)
    assert not second.is_full and shown(second) == ["run-3"]
    assert second.before == ("run-2", 1) and second.base == part["points"][0]["answer"]


def test_where_nothing_is_left_nothing_is_asked():
    part, _ = follow(runs(1, 2))
    assert rolling.plan(runs(1, 2), part) is None and rolling.plan({}, None) is None


def test_a_late_run_goes_on_from_the_last_point_before_it():
    part = None
    for last in range(1, 6):
        part, _ = follow(runs(*(2 * one for one in range(1, last + 1))), part)
    late = runs(2, 4, 5, 6, 8, 10)
    after, [plan] = follow(late, part)
    assert shown(plan) == ["run-5", "run-6", "run-8", "run-10"] and plan.before == ("run-4", 1)
    assert plan.base == part["points"][1]["answer"]
    assert [one["runs"] for one in after["points"]] == [1, 2, 6], "points that no longer hold are gone"


def test_a_higher_attempt_is_as_a_late_run():
    part, _ = follow(runs(1))
    part, _ = follow(runs(1, 2), part)
    part, _ = follow(runs(1, 2, 3), part)
    _, [plan] = follow(runs(1, 2, 3, attempts={2: 2}), part)
    assert plan.shown == (("run-2", 2), ("run-3", 1)) and plan.base == part["points"][0]["answer"]


def test_a_run_before_all_others_means_all_anew():
    part, _ = follow(runs(2, 3))
    _, [plan] = follow(runs(1, 2, 3), part)
    assert plan.is_full and shown(plan) == ["run-1", "run-2", "run-3"] and plan.base is None


def test_every_so_many_runs_all_are_shown_anew():
    part, asked = None, []
    for last in range(1, 3 * rolling.FULL_RUNS):
        part, plans = follow(runs(*range(1, last + 1)), part)
        asked += plans
    full = [plan.runs for plan in asked if plan.is_full]
    assert full == [1, 2 + rolling.FULL_RUNS, 3 + 2 * rolling.FULL_RUNS]
    assert all(len(plan.shown) == 1 for plan in asked if not plan.is_full)
    assert len(part["points"]) == rolling.POINTS_MAX


def test_a_full_pass_over_more_runs_than_one_ask_shows_keeps_what_is_known_of_the_others():
    part = None
    for last in range(1, 60):
        part, plans = follow(runs(*range(1, last + 1)), part)
        for plan in plans:
            assert len(plan.shown) <= rolling.SHOWN_RUNS_MAX
            if plan.is_full and last > rolling.SHOWN_RUNS_MAX:
                of = [{"evidence": [["conv", run, 1, 0]]} for run in ("run-1", f"run-{last}")]
                assert plan.base and rolling.known(plan, of) == of[:1]


def test_a_run_whose_time_is_unknown_comes_first():
    known = runs(1, 2) | {"run-9": {"ended_at": "unknown", "attempt": 1}}
    assert rolling.order(known)[0] == ("run-9", 1)


@given(st.permutations(range(1, 14)), st.integers(1, 13))
def test_in_whatever_order_runs_come_in_the_end_all_are_covered(order, batch):
    part = None
    for count in range(batch, len(order) + batch, batch):
        part, plans = follow(runs(*order[:count]), part)
        for plan in plans:
            assert plan.runs <= min(count, len(order))
    whole = runs(*order)
    assert rolling.plan(whole, part) is None
    assert part["points"][-1]["runs"] == len(order)
