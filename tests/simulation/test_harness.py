"""The simulation itself: it looks at every outcome, it is deterministic, and it tells what it saw."""

from __future__ import annotations

import asyncio

import harness
import pytest
import test_seeded
from harness import Scenario, event, worker

from runlore import clock, errors
from runlore.testing import exhaust, world
from runlore.testing.world import Faults


def test_an_exploration_runs_every_sequence_of_outcomes_once():
    seen = []

    def run(gen):
        first = gen.choose(3)
        seen.append((first, gen.choose(2) if first else None))

    assert exhaust.explore(run, schedules_max=10).complete == 5
    assert sorted(seen, key=str) == sorted({(0, None), (1, 0), (1, 1), (2, 0), (2, 1)}, key=str)


def test_a_state_is_explored_once_however_it_is_reached():
    ends = []

    def run(gen):
        total = 0
        for step in range(4):
            total += gen.choose(2, lambda step=step, total=total: (step, total))
        ends.append(total)

    explored = exhaust.explore(run, schedules_max=100)
    assert set(ends) == {0, 1, 2, 3, 4}
    assert explored.states == 10
    assert explored.schedules < 16


def test_an_exploration_that_is_too_large_says_so():
    with pytest.raises(AssertionError, match="more than 3 schedules"):
        exhaust.explore(lambda gen: gen.choose(10), schedules_max=3)


def test_hidden_randomness_is_noticed():
    counts = iter([2, 3, 2, 3])

    with pytest.raises(AssertionError, match="not deterministic"):
        exhaust.explore(lambda gen: (gen.choose(next(counts)), gen.choose(2)), schedules_max=10)


def test_the_same_choices_give_the_same_world_twice():
    faults = Faults(crashes=2, lost=1, refused=1)
    scenario = Scenario([event("a"), event("b")], processes=[worker(), worker(1)], faults=faults)
    first = scenario.run(test_seeded.Dice(8))
    again = scenario.run(test_seeded.Dice(8))
    replayed = scenario.run(exhaust.Replay(first.gen.choices()))
    assert any("[" in step for step in first.trace), "no fault came: take another seed"
    assert first.trace == again.trace == replayed.trace
    assert first.store.snapshot() == again.store.snapshot() == replayed.store.snapshot()


def _simulate(main, faults, messages=()):
    """Every end of one process: (what is in the store, what the process noted)."""
    ends = []

    def run(gen):
        notes = []
        simulation = world.Simulation(gen)
        world.finish(simulation.bus.produce(list(messages)))
        simulation.allow(faults)
        simulation.spawn("p", lambda store, bus: main(store, bus, notes), restarts=False)
        simulation.run()
        before = simulation.store.snapshot()
        simulation.land()
        ends.append((before, simulation.store.snapshot(), notes))

    exhaust.explore(run, schedules_max=1000)
    return ends


async def _put_twice(store, bus, notes):
    for key in ("a", "b"):
        try:
            await store.put_if_absent(key, b"")
            notes.append("ok")
        except errors.RunloreError as exc:
            notes.append(exc.kind)


def test_a_crash_comes_before_and_after_each_write():
    ends = _simulate(_put_twice, Faults(crashes=1))
    assert sorted((list(now), notes) for now, _, notes in ends) == [
        ([], []),
        (["a"], []),
        (["a"], ["ok"]),
        (["a", "b"], ["ok"]),
        (["a", "b"], ["ok", "ok"]),
    ]


def test_a_lost_reply_lands_at_once_later_or_never():
    ends = _simulate(_put_twice, Faults(lost=1))
    unknown = [(sorted(now), sorted(later)) for now, later, notes in ends if notes[:1] == ["outcome_unknown"]]
    assert (["a", "b"], ["a", "b"]) in unknown
    assert (["b"], ["b"]) in unknown
    assert (["b"], ["a", "b"]) in unknown


def test_refusals_tell_what_they_are_and_change_nothing():
    ends = _simulate(_put_twice, Faults(refused=1))
    kinds = {kind for _, _, notes in ends for kind in notes}
    assert kinds == {"ok", "store_unavailable", "write_conflict"}
    assert all((notes[0] == "ok") == ("a" in now) for now, _, notes in ends)


def test_code_that_goes_on_after_its_process_died_is_an_error():
    async def undead(store, bus, notes):
        try:
            await store.put("a", b"")
        except BaseException:
            await store.put("b", b"")

    with pytest.raises(AssertionError, match="went on after it died"):
        _simulate(undead, Faults(crashes=1))


def test_code_that_waits_for_anything_but_a_port_is_an_error():
    async def sleeper(store, bus, notes):
        await asyncio.sleep(0)

    with pytest.raises(AssertionError, match="waits for something that is no port"):
        _simulate(sleeper, Faults(crashes=1))


def test_each_incarnation_has_a_time_and_ids_of_its_own():
    async def main(store, bus, notes):
        await store.put("a", b"")
        notes.append((clock.now(), clock.new_id(), clock.new_id()))

    ends = [notes[0] for _, _, notes in _simulate(main, Faults())]
    assert len(ends) == 1
    assert len({*ends[0]}) == 3
    assert ends == [notes[0] for _, _, notes in _simulate(main, Faults())]


def test_a_broken_invariant_is_told_with_every_step_that_led_there(monkeypatch):
    import mutants

    next(one for one in mutants.ALL if one.hole == "offset before the mark").apply(monkeypatch)
    with pytest.raises(harness.Broken) as caught:
        Scenario([event("a")], faults=Faults(crashes=1)).explore()
    assert "commit record" in str(caught.value)
    assert "choices: [" in str(caught.value)
