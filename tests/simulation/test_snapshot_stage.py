"""The snapshot stage through every crash point and every interleaving of two workers.

Goal: each run takes effect on its line exactly once, whatever is redelivered, killed or doubled, and a head moves
only from the base that its writer saw. Method: the production stage in the simulated world; events name small
snapshots that are saved before; every write of a head is watched; afterwards one fresh worker replays the topic
from its start. The mutants leave out one rule each, and the same search must find what it breaks.
"""

from __future__ import annotations

import functools
import json

import harness
import pytest
from test_every_interleaving import switches

from runlore.commit import heads, keys, lines
from runlore.consumers import dead, snapshot
from runlore.testing import exhaust, snapshot_invariants, workspaces, world
from runlore.testing.stores import MemoryStore
from runlore.testing.world import Faults, finish

P = harness.PROJECT
LINE = lines.Line(P, "r1")
SCHEDULES_MAX = 40_000


@functools.cache
def refs():
    """Four small snapshots, and the store that holds them."""
    store = MemoryStore()
    made = [str(finish(workspaces.put(store, P, {"f": b"%d" % number}))) for number in range(4)]
    return store.snapshot(), made


def ref(number):
    return refs()[1][number]


def run(name, number, base=None, *, attempt=1, **more):
    """An event of a run that left snapshot `number`, having seen `base`: (version, number)."""
    seen = None if base is None else {"counter": base[0], "snapshot": ref(base[1]).split("/")[0]}
    workspace = {"snapshot": ref(number), "base": seen}
    return harness.event(name, attempt=attempt, workspaces=[workspace], **more)


def worker(count=100, group="snapshot"):
    async def main(store, bus):
        stage = snapshot.SnapshotStage(store, bus)
        consumer = await bus.consumer(group=group, topics=["runs"])
        while messages := await consumer.poll(records_max=count, timeout_seconds=0):
            processed = await stage.process(messages)
            await consumer.commit(processed.offsets)
        await consumer.close()

    return main


def watch(simulation, call, before):
    kind = call.what.split("/")[1] if "/" in call.what else ""
    if kind != keys.WORKSPACES:
        return
    after = simulation.store.body(call.what)
    found = snapshot_invariants.moved_well(call.what, before, after)
    found += finish(snapshot_invariants.forgets_nothing(simulation.store, call.what, before, after))
    if found := harness.heard(found):
        raise harness.Broken(found, simulation)


def private(call):
    """Packs are written before, and only read here; what is produced nobody here reads."""
    kind = call.what.split("/")[1] if "/" in call.what else call.what
    return kind in (keys.SNAPSHOTS, keys.BLOBS) or call.kind in ("produce", "poll", "commit")


def explore(messages, *, wanted, processes=1, faults=world.NO_FAULTS, count=100):
    """Every schedule; at the end, also after a replay from the start, the line must be as `wanted` says."""

    def schedule(gen):
        simulation = world.Simulation(gen, faults=faults, watch=watch, private=private)
        for key, body in refs()[0].items():
            finish(simulation.store.put(key, body))
        finish(simulation.bus.produce(messages))
        for number in range(processes):
            simulation.spawn(f"p{number}", worker(count))
        simulation.run()
        for group in ("snapshot", "replay"):
            simulation.quietly()
            simulation.land()
            simulation.processes.clear()
            simulation.current = None
            simulation.spawn(f"fresh-{group}", worker(count, group))
            simulation.run()
            check(simulation, wanted)

    return exhaust.explore(schedule, schedules_max=SCHEDULES_MAX)


def check(simulation, wanted):
    found = finish(snapshot_invariants.check(simulation.store, P))
    if not found:
        got = state(simulation)
        if got not in (wanted if isinstance(wanted, list) else [wanted]):
            found = [snapshot_invariants.Violation(snapshot_invariants.BASES, "line", f"{got}, not {wanted}")]
    if found:
        raise harness.Broken(found, simulation)


def state(simulation):
    """(the head's snapshot, its branches, dead letters) in numbers and names."""
    body = finish(lines.read(simulation.store, LINE)).body
    number = {text: at for at, text in enumerate(refs()[1])}
    branches = {name: number[one["ref"]] for name, one in body.get("branches", {}).items()}
    letters = sorted({letter.reason for letter in finish(dead.read_all(simulation.bus))})
    return number.get(body.get("ref")), branches, letters


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    """A head that keeps no earlier version: each move makes it forget a run, which else takes a hundred moves."""
    monkeypatch.setattr(lines, "VERSIONS_MAX", 0)


CHAIN = [("a", 0, None), ("b", 1, (1, 0)), ("c", 0, (2, 1))]


def chain():
    """X → Y → X: the second Y must not come back when the topic is replayed."""
    return [run(*one) for one in CHAIN]


@pytest.mark.parametrize("versions_max", [1, 100])
def test_a_line_that_keeps_its_earlier_versions_knows_their_runs(monkeypatch, versions_max):
    monkeypatch.setattr(lines, "VERSIONS_MAX", versions_max)
    explore(chain(), wanted=(0, {}, []), faults=Faults(crashes=1))
    explore(chain()[:2], wanted=(1, {}, []), processes=2)


def test_a_chain_survives_every_crash_and_a_replay():
    explored = explore(chain(), wanted=(0, {}, []), faults=Faults(crashes=2))
    assert explored.complete > 50


def test_a_chain_survives_every_lost_reply_and_late_write():
    explore(chain(), wanted=(0, {}, []), faults=Faults(lost=1, refused=1))


def test_two_workers_on_one_line_do_everything_once():
    explored = explore(chain()[:2], wanted=(1, {}, []), processes=2)
    assert explored.states > 100


def test_two_workers_and_a_crash():
    # Every order is explored by the deep run (RUNLORE_TEST_DEEP=1).
    faults = Faults(crashes=1, switches=switches(2))
    assert explore(chain()[:2], wanted=(1, {}, []), processes=2, faults=faults).complete > 1000


def test_rivals_from_one_base_leave_a_version_and_a_branch():
    messages = [run("a", 0), run("b", 1, (1, 0)), run("c", 2, (1, 0))]
    explore(messages, wanted=(1, {"c": 2}, []), faults=Faults(crashes=1))


def test_a_child_never_moves_the_head():
    messages = [run("a", 0), run("child", 1, (1, 0), parent_run_id="a"), run("b", 2, (1, 0))]
    explore(messages, wanted=(2, {"child": 1}, []), faults=Faults(crashes=1))


def test_a_higher_attempt_replaces_its_lower_one():
    messages = [run("a", 0), run("b", 1, (1, 0)), run("b", 2, (1, 0), attempt=2)]
    explore(messages, wanted=(2, {}, []), faults=Faults(crashes=1))


def test_the_same_attempt_with_another_snapshot_is_a_dead_letter():
    messages = [run("a", 0), run("a", 1)]
    explore(messages, wanted=(0, {}, ["snapshot_conflict"]), faults=Faults(crashes=1))


# --- mutants ----------------------------------------------------------------------------------------------


def caught(messages, **more):
    with pytest.raises(harness.Broken) as found:
        explore(messages, **more)
    return json.dumps(str(found.value))


def test_mutant_bases_by_content_alone(monkeypatch):
    """X → Y → X by ids: the replay of Y undoes what came after."""
    monkeypatch.setattr(lines, "_remember", _nothing)
    monkeypatch.setattr(
        lines, "may_move", lambda body, offer: offer.base.snapshot == lines.base_of(body).snapshot
    )
    caught(chain(), wanted=(0, {}, []))


def test_mutant_no_outcome_before_the_head_forgets_a_run(monkeypatch):
    monkeypatch.setattr(lines, "_remember", _nothing)
    caught(chain(), wanted=(0, {}, []))


async def _nothing(*_):
    return None


def test_mutant_the_outcome_is_put_after_the_move(monkeypatch):
    remember, move = lines._remember, heads.move

    async def late(store, line, head, changes, *, began=None):
        completed = lines.finish(head, line, changes)
        after = await move(store, head, completed, fmt=lines.HEAD_FORMAT, began=began)
        await remember(store, line, head.body, after.body)
        return after

    monkeypatch.setattr(lines, "move", late)
    caught(chain(), wanted=(0, {}, []), faults=Faults(crashes=1))


def test_mutant_the_outcome_is_read_before_the_head(monkeypatch):
    """Moved past in between, the run is seen nowhere, and comes a second time, as a branch."""
    read, outcomes = lines.read, lines.outcomes
    early = {}

    async def read_later(store, line):
        early[id(store)] = {name: await outcomes(store, line, name) for name in ("a", "b")}
        return await read(store, line)

    async def seen_before(store, line, name):
        return early[id(store)].get(name, {})

    monkeypatch.setattr(lines, "read", read_later)
    monkeypatch.setattr(lines, "outcomes", seen_before)
    monkeypatch.setattr(snapshot_invariants, "forgets_nothing", _no_violation)
    caught(chain()[:2], wanted=(1, {}, []), processes=2)


def test_mutant_a_head_does_not_say_that_it_forgot(monkeypatch):
    monkeypatch.setattr(lines, "may_have_forgotten", lambda head: False)
    monkeypatch.setattr(snapshot_invariants, "forgets_nothing", _no_violation)
    caught(chain(), wanted=(0, {}, []))


def test_mutant_the_runs_of_earlier_versions_are_not_looked_at(monkeypatch):
    monkeypatch.setattr(lines, "VERSIONS_MAX", 100)
    monkeypatch.setattr(lines, "known", lambda body, run: {})
    monkeypatch.setattr(lines, "_remember", _nothing)
    caught(chain(), wanted=(0, {}, []))


async def _no_violation(*_):
    return []


def test_mutant_a_child_reaches_the_base_test(monkeypatch):
    monkeypatch.setattr(lines, "may_move", lambda body, offer: offer.base == lines.base_of(body))
    caught([run("a", 0), run("child", 1, (1, 0), parent_run_id="a")], wanted=(0, {"child": 1}, []))


def test_mutant_an_offset_committed_before_the_effect(monkeypatch):
    async def main(store, bus):
        stage = snapshot.SnapshotStage(store, bus)
        consumer = await bus.consumer(group="snapshot", topics=["runs"])
        while messages := await consumer.poll(records_max=1, timeout_seconds=0):
            await consumer.commit({message.at: message.offset + 1 for message in messages})
            await stage.process(messages)

    monkeypatch.setitem(globals(), "worker", lambda count, group="snapshot": main)
    caught([run("a", 0)], wanted=(0, {}, []), faults=Faults(crashes=1))
