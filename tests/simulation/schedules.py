"""How many schedules each of these tests explores at least: 10,000 in all, in every run of the suite.

Counted where they are explored (`exhaust.RAN`) and held to by `conftest.py`, test by test, so that it does not matter
which processes run them. A schedule is one sequence of outcomes, to its end or to a state that was met before.
"""

from __future__ import annotations

IN_ALL = 10_000
LEAST = {
    "test_every_interleaving.py::test_the_two_loops_of_one_worker_in_every_order_with_a_crash": 3000,
    "test_every_interleaving.py::test_the_power_goes_at_every_point_of_two_workers": 1000,
    "test_every_interleaving.py::test_two_workers_left_for_each_other_at_every_call": 2000,
    "test_every_interleaving.py::test_two_workers_that_poll_differently": 600,
    "test_every_interleaving.py::test_two_workers_of_which_one_dies_and_comes_back": 1000,
    "test_every_interleaving.py::test_two_recorders_of_one_rollout_with_a_lost_reply": 3000,
    "test_every_interleaving.py::test_an_approval_and_a_rejection_at_once_let_in_nothing_unseen": 2000,
    "test_every_interleaving.py::test_a_replay_from_the_start_beside_a_working_consolidator": 1200,
    "test_every_crash.py::test_three_runs_through_every_crash_three_crashes_deep": 1000,
    "test_every_crash.py::test_a_lost_reply_and_a_crash": 2500,
    "test_every_crash.py::test_every_refusal_two_deep_and_with_a_crash": 1200,
    "test_every_crash.py::test_live_edits_among_the_runs_through_every_crash_two_crashes_deep": 1200,
    "test_snapshot_stage.py::test_a_chain_survives_every_lost_reply_and_late_write": 1200,
}
