"""The table of proofs: each invariant of docs/DESIGN.md, what checks it, and a hole that only its checkers see.

A checker that nothing needs proves nothing: so for each invariant a mutant of the production code is explored twice, by
every checker and by all but its own. The first must find it under that number alone, the second must find nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import harness
import mutants
import sweeping
import test_erasure
import test_snapshot_stage
import toy
from harness import PROJECT, Broken, Scenario, event, worker

from runlore.commit import lines, packs, revisions, sweep
from runlore.consumers import consolidate
from runlore.snapshots import building
from runlore.testing import (
    checks,
    erasure_invariants,
    exhaust,
    invariants,
    side_invariants,
    snapshot_invariants,
    workspaces,
    world,
)
from runlore.testing.world import Faults, finish
from runlore.upkeep.erasing import rollouts

DESIGN = Path(__file__).parents[2] / "docs" / "DESIGN.md"
IN_VERIFY = set(range(1, 12))
"""What `runlore verify` checks on a home: of 11 what it can without the seeds that were handed out. 12 needs that
nobody is at work."""


@dataclass(frozen=True)
class Proof:
    """An invariant, and a hole that its checkers alone see."""

    number: int
    mutant: mutants.Mutant
    explore: Callable[[], exhaust.Explored]


# --- scenarios --------------------------------------------------------------------------------------------


def everything(store, bus):
    """What each checker says of a world in which nobody is at work on the record stage."""
    found = finish(invariants.check(store, bus))
    for check in (side_invariants.check, erasure_invariants.check, snapshot_invariants.check):
        found += finish(check(store, PROJECT))
    found += finish(snapshot_invariants.every_workspace_reaches_an_end(store, bus))
    return harness.heard(found)


def workspaces_of(messages, refs):
    """One snapshot stage takes these in; every checker looks at each move and at the end."""

    def explore():
        saved, made = refs()

        def schedule(gen):
            simulation = world.Simulation(
                gen, watch=test_snapshot_stage.watch, private=test_snapshot_stage.private
            )
            for key, body in saved.items():
                finish(simulation.store.put(key, body))
            finish(simulation.bus.produce(messages(made)))
            simulation.spawn("snapshot", test_snapshot_stage.worker(1))
            simulation.run()
            if found := everything(simulation.store, simulation.bus):
                raise Broken(found, simulation)

        return exhaust.explore(schedule, schedules_max=100)

    return explore


def rivals(_):
    """Two runs that began from one version: the second did not see what the first left."""
    run = test_snapshot_stage.run
    return [run("a", 0), run("b", 1, (1, 0)), run("c", 2, (1, 0))]


def building_on():
    """A snapshot that shares with the one before it, and the store that holds both."""
    store = test_snapshot_stage.MemoryStore()
    kept = {"same": b"kept from one version to the next", "f": b"1"}
    first = finish(workspaces.put(store, PROJECT, kept))
    opened = finish(snapshot_invariants.reading.open_exact(store, PROJECT, first))
    second = finish(workspaces.put(store, PROJECT, {**kept, "f": b"2"}, bases=[opened]))
    return store.snapshot(), [str(first), str(second)]


def shared(refs):
    first, second = refs
    base = {"counter": 1, "snapshot": first.split("/")[0]}
    return [
        harness.event("a", workspaces=[{"snapshot": first, "base": None}]),
        harness.event("b", workspaces=[{"snapshot": second, "base": base}]),
    ]


class Quiet(sweeping.World):
    """The world of sweeps, in which only the checkers of invariants speak."""

    def broken(self, what):
        return None


def swept():
    """A version that a head stopped naming an hour ago, and a sweep."""
    made = Quiet(exhaust.Replay([]))
    made.calmly("first", sweeping.writer("r1", "first", {"a": b"1"}))
    made.at += 2 * sweeping.TERM
    nothing = test_snapshot_stage._nothing
    made.calmly("mover", sweeping.writer("r1", "w1", {"c": b"else"}, base=nothing))
    made.at += sweeping.dt.timedelta(hours=1)
    made.calmly("sweep", sweeping.sweeper())
    found = made._context.run(everything, made.store, world.MemoryBus(partitions=1))
    if found:
        raise Broken(found, made)
    return exhaust.Explored(1, 0, 1)


def explored(make):
    """A scenario, made anew: the function that explores it."""
    return lambda: make().explore()


def calm(*messages, before=()):
    return explored(lambda: Scenario(list(messages), before=list(before), compare=False))


# --- the table --------------------------------------------------------------------------------------------


def _known(hole):
    return next(one for one in mutants.ALL if one.hole == hole)


def _proof(number, hole, changes, explore, also=()):
    return Proof(number, mutants.Mutant(hole, changes, None, set(), list(also)), explore)


def _again(number, hole, explore=None):
    """A mutant that is in the tests of its stage, too."""
    mutant = _known(hole)
    return Proof(number, mutant, explore or mutant.scenario.explore)


TABLE = [
    _again(1, "manifest before its pack", calm(event("a"))),
    _again(2, "sameness judged after redaction"),
    _proof(
        3,
        "a revision does not say what it was made from",
        [
            (
                revisions.write,
                '"parent": {"revision": parent.number, "manifest": parent.sha256} if parent else None',
                '"parent": None',
            )
        ],
        calm(event("b"), before=[([event("a")], worker())]),
    ),
    _again(4, "offset before the effect", calm(event("a"))),
    _proof(
        5,
        "a head moves whatever its writer saw",
        [(lines.may_move, "    if offer.child", "    return True\n    if offer.child")],
        workspaces_of(rivals, test_snapshot_stage.refs),
        [(lines, "VERSIONS_MAX", 0)],
    ),
    _proof(
        6,
        "a root does not name the indexes of what it shares",
        [(building.Builder.finish, "tuple(loaded.ref for loaded in self._kept),", "(),")],
        workspaces_of(shared, building_on),
    ),
    _proof(
        7,
        "a sweep keeps only what is named now",
        [(sweep._of_snapshots, "lines.kept(head.body, started)", "lines.named(head.body)")],
        swept,
        [(lines, "VERSIONS_MAX", 0)],
    ),
    _proof(
        8,
        "what the guards are against is published",
        [
            (
                consolidate.accept,
                "if made is not None and not approvals.left(violations, passes or {}, tried):",
                "if made is not None:",
            )
        ],
        calm(event("a", text=toy.POISON)),
    ),
    _proof(
        9,
        "what was learnt of one subject is shown to another",
        [
            (
                consolidate.lay_out,
                'entries[key] |= {"subject": part.subject} if part.subject else {}',
                'entries[key] |= {"subject": "bob"} if part.rollout else {}',
            )
        ],
        calm(event("a", subject="alice")),
    ),
    _proof(
        10,
        "an erasure says what it removed, and removes nothing",
        [(rollouts.delete, "await store.delete_many(found[at : at + DELETE_BATCH])", "pass")],
        explored(test_erasure.alone),
    ),
    _proof(
        11,
        "packs go as soon as no present revision needs them",
        [
            (
                consolidate.ConsolidateStage._move,
                "    bell = models.Changed(",
                "    if accepted and before:\n"
                "        for pack in before.frames.packs:\n"
                "            if pack.sha256 not in {one.sha256 for one in revision.frames.packs}:\n"
                '                await self._store.delete(f"{project}/packs/{pack.sha256[:2]}/{pack.sha256}")\n'
                "    bell = models.Changed(",
            )
        ],
        calm(event("b"), before=[([event("a")], worker())]),
        [(packs, "PACKS_MAX", 1)],
    ),
    _again(
        12,
        "a mark goes only with the revision that covers it",
        explored(lambda: Scenario([event("a")], faults=Faults(crashes=1))),
    ),
]


# --- what it says -----------------------------------------------------------------------------------------


def said():
    """Number → what docs/DESIGN.md says under it."""
    text = DESIGN.read_text(encoding="utf-8").split("\n## Invariants\n")[1].split("\n## ")[0]
    found = re.findall(r"^(\d+)\. (.*?)(?=^\d+\. |\Z)", text, re.MULTILINE | re.DOTALL)
    return {int(number): " ".join(body.replace("*", "").split()) for number, body in found}


def checkers(number):
    """Names of the functions that check an invariant."""
    return [one for name, rows in checks.CHECKERS.items() if int(name.split()[0]) == number for one in rows]


def rows(checked):
    """The table as figures: `checked` says how often the checkers of each name ran."""
    texts, found = said(), []
    for one in TABLE:
        names = [name for name in checks.CHECKERS if int(name.split()[0]) == one.number]
        found.append(
            {
                "number": one.number,
                "name": names[0].partition(" ")[2],
                "says": texts[one.number],
                "checkers": checkers(one.number),
                "mutants": [one.mutant.hole],
                "in_verify": one.number in IN_VERIFY,
                "checks": sum(checked[name] for name in names),
            }
        )
    return found
