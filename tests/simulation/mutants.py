"""Mutants: each puts one hole of the commit protocol back into the production code, by patching its lines.

The holes are those that were found when the protocol was explored (docs/DESIGN.md, "Write order"). A mutant
names the scenario in which it must be caught and the invariants that may catch it. Where the lines that a
mutant replaces are not there any more, it fails at once: whoever changed them says here how the hole looks now.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from dataclasses import dataclass, field

import harness
import toy
from harness import (
    Scenario,
    bell_worker,
    consolidator,
    event,
    newer,
    person,
    recorder,
    rejecter,
    reverter,
    worker,
)

from runlore.commit import heads, marks, puts, revisions, rollouts
from runlore.consumers import consolidate, record
from runlore.testing import invariants
from runlore.testing.world import Faults
from runlore.worker import loop

MARKED, ENDS, ONCE = invariants.MARKED, invariants.ENDS, invariants.ONCE
DANGLING, ONE_LINE = invariants.DANGLING, invariants.ONE_LINE


@dataclass
class Mutant:
    """One hole: the lines that make it, where it shows, and by which invariant."""

    hole: str
    lines: list
    """(function, its line or lines, what stands there in the mutant)"""
    scenario: object
    caught_by: set
    also: list = field(default_factory=list)
    """(owner, name, value) to set besides."""

    def apply(self, monkeypatch):
        for owner, name, value in self.also:
            monkeypatch.setattr(owner, name, value)
        by_function = {}
        for function, old, new in self.lines:
            by_function.setdefault(function, []).append((old, new))
        for function, changes in by_function.items():
            _replace(monkeypatch, function, changes)


def _replace(monkeypatch, function, changes):
    """Put a function with some lines changed where `function` was."""
    source = textwrap.dedent(inspect.getsource(function))
    for old, new in changes:
        assert source.count(old) == 1, f"{function.__qualname__} has not once:\n{old}"
        source = source.replace(old, new)
    module = sys.modules[function.__module__]
    made = {}
    exec(compile(source, f"<mutant of {function.__qualname__}>", "exec"), vars(module), made)
    *owners, name = function.__qualname__.split(".")
    owner = module
    for part in owners:
        owner = getattr(owner, part)
    monkeypatch.setattr(owner, name, made[name])


# --- scenarios: the smallest in which a hole of a kind can show -----------------------------------------------


def loops(**more):
    """The record loop takes two runs of one rollout one by one, the consolidate loop works beside it."""
    told = {
        "messages": [event("a"), event("b")],
        "processes": [recorder(1), consolidator(2)],
        "compare": False,
    }
    return Scenario(**(told | more))


def crash(count=1, **more):
    return Scenario(
        **({"messages": [event("a"), event("b", rollout="r2")], "faults": Faults(crashes=count)} | more)
    )


def lost():
    return Scenario([event("a")], faults=Faults(lost=1))


def refused():
    return Scenario([event("a")], faults=Faults(refused=1))


def two_polls():
    return Scenario([event("b")], before=[([event("a")], worker())])


def from_the_future():
    return Scenario([event("b")], before=[([event("a")], worker()), ([], newer())])


def second_attempt():
    return Scenario([event("a", attempt=2)], before=[([event("a")], worker())])


def racing_recorders():
    return Scenario([event("a"), event("b")], processes=[recorder(1), recorder(2)], compare=False)


def racing_consolidators():
    # Each has read other marks when it moves the memory's head.
    return Scenario(
        [event("b", rollout="r2")],
        before=[([event("a")], recorder())],
        processes=[recorder(), consolidator(), consolidator()],
        faults=Faults(switches=3),
        compare=False,
    )


def reverted():
    before = [([event("a")], worker()), ([event("b", rollout="r2", text="bad")], worker())]
    return Scenario(
        [event("c", rollout="r2")], processes=[reverter(), worker()], before=before, compare=False
    )


def rejected_beside_a_run():
    return Scenario(
        [event("c", text=f"{toy.ORDER}-2")],
        processes=[rejecter("r1"), recorder(), consolidator()],
        before=[([event("a", text=f"{toy.ORDER}-1")], worker())],
        faults=Faults(switches=2),
        compare=False,
    )


def released_twice():
    """A rollout is released, held again and released again, beside somebody who looked at the head long ago."""

    def looked_at_again(view):
        hold = view.held["r1"]["hold"]
        return None if hold > harness.person.lifted else f"hold {hold} was lifted, but nobody looked at it"

    return Scenario(
        [],
        processes=[bell_worker(), person("r1")],
        before=[([event("a", text=toy.POISON)], worker())],
        compare=False,
        holds=looked_at_again,
    )


def newer_detector():
    def set_back():
        toy.Detector.version = 1

    async def upgraded(store, bus):
        toy.Detector.version = 2
        await worker()(store, bus)

    return Scenario(
        [],
        processes=[upgraded],
        before=[([event("a", text="SECRET")], worker())],
        replay=True,
        prepare=set_back,
    )


# --- holes in the order of writes -----------------------------------------------------------------------------

ORDER = [
    Mutant(
        "mark before the summary",
        [
            (
                record.RecordStage.process,
                "    moved: list[heads.Head] = []\n",
                "    moved = []\n    await self._mark(dict.fromkeys(groups, 0))\n",
            ),
            (
                record.RecordStage.process,
                "    await self._mark(counters, _sizes(groups, outcomes))\n    ordered",
                "    ordered",
            ),
        ],
        loops(),
        {MARKED},
    ),
    Mutant(
        "offset before the effect",
        [
            (
                loop.Worker._take,
                "    processed = await self._recorded(messages)\n",
                "    await consumer.commit({message.at: message.offset + 1 for message in messages})\n"
                "    processed = await self._recorded(messages)\n",
            )
        ],
        crash(),
        {MARKED},
    ),
    Mutant(
        "offset before the mark",
        [
            (
                record.RecordStage.process,
                "    await self._mark(counters, _sizes(groups, outcomes))\n",
                "    self.late = counters\n",
            ),
            (
                loop.Worker._take,
                "    await consumer.commit(processed.offsets)\n",
                "    await consumer.commit(processed.offsets)\n    await self._record._mark(self._record.late)\n",
            ),
        ],
        crash(),
        {MARKED},
    ),
    Mutant(
        "the offset on a bell alone",
        [(record.RecordStage.process, "    await self._mark(counters, _sizes(groups, outcomes))\n", "")],
        crash(0),
        {MARKED},
    ),
    Mutant(
        "already there, return early without a mark",
        [
            (
                record.RecordStage.process,
                "    await self._mark(counters, _sizes(groups, outcomes))\n",
                "    there = {number for number, one in outcomes.items() if one.state == ALREADY}\n"
                "    await self._mark({line: counters[line] for line, members in groups.items()"
                " if not there.issuperset(number for number, _ in members)})\n",
            )
        ],
        crash(),
        {MARKED},
    ),
    Mutant(
        "marks deleted before the head has moved",
        [
            (
                consolidate.ConsolidateStage._pass,
                "    made = Pass()\n",
                "    made = Pass()\n    await marks.delete(self._store, found)\n",
            )
        ],
        crash(),
        {MARKED},
    ),
    Mutant(
        "manifest before its pack",
        [
            (
                revisions.write,
                "        await store.put(keys.pack(project, written.sha256), written.raw)\n",
                "        pass\n",
            ),
            (
                revisions.write,
                "    return Revision(",
                "    if written is not None:\n"
                "        await store.put(keys.pack(project, written.sha256), written.raw)\n"
                "    return Revision(",
            ),
        ],
        crash(),
        {DANGLING},
    ),
    Mutant(
        "head before its manifest",
        [
            (
                revisions.write,
                '    await puts.once(store, where, raw, what=f"the manifest {where}")\n',
                "    write.late = where, raw\n",
            ),
            (
                consolidate.ConsolidateStage._move,
                "    bell = models.Changed(",
                "    if accepted:\n"
                "        await self._store.put(*revisions.write.late)\n"
                "    bell = models.Changed(",
            ),
        ],
        crash(0),
        {DANGLING},
    ),
    Mutant(
        "head before its record",
        [
            (
                record.RecordStage._put,
                "record, _ = await rollouts.put_record(self._store, key, record, began=head.read_at)\n",
                "pass\n",
            )
        ],
        crash(0),
        {DANGLING},
    ),
]

# --- holes in the order of reads ------------------------------------------------------------------------------

READS = [
    Mutant(
        "marks read after the inputs",
        [
            (
                consolidate.ConsolidateStage._pass,
                "    left = set(later)\n",
                "    left = set(later)\n"
                "    found = await marks.read_all(self._store, project, memory, marks_max=MARKS_PER_PASS_MAX)\n",
            )
        ],
        loops(),
        {MARKED},
    ),
    Mutant(
        # A revision made from an older one in place of the one that came between: {a, c}@2 replaced by {a}@3.
        "head read again after the revision was made",
        [
            (
                consolidate.ConsolidateStage._move,
                "    head = await heads.move(",
                "    head = await self._reader.head(project, memory)\n    head = await heads.move(",
            )
        ],
        racing_consolidators(),
        {ONE_LINE, ONCE},
    ),
    Mutant(
        "head read before the marks",
        [
            (
                consolidate.ConsolidateStage._pass,
                "    found = await marks.read_all(",
                "    head = await self._reader.head(project, memory)\n    found = await marks.read_all(",
            ),
            (
                consolidate.ConsolidateStage._pass,
                "        return Pass()\n    head = await self._reader.head(project, memory)\n",
                "        return Pass()\n",
            ),
        ],
        released_twice(),
        {harness.AS_TOLD},
    ),
    Mutant(
        "a held rollout's mark deleted before the head knows of its run",
        [
            (
                consolidate.ConsolidateStage._pass,
                'if waits := approvals.seen_in(head.body.get("held", {}), inputs):',
                "if waits := {}:",
            )
        ],
        rejected_beside_a_run(),
        {MARKED, ENDS},
    ),
]

# --- holes in what counts as covered --------------------------------------------------------------------------

_COVERED = 'known is None or int(known["counter"]) < head.counter'
_SET = 'maps["coverage"].set(name, {'

COVERAGE = [
    Mutant(
        "coverage by the rollout's name",
        [(consolidate.uncovered, _COVERED, "known is None")],
        two_polls(),
        {MARKED, ENDS},
    ),
    Mutant(
        "coverage by run ids",
        [
            (consolidate.uncovered, _COVERED, 'known is None or known["runs"] != sorted(head.body["runs"])'),
            (consolidate.draft_of, _SET, _SET + '"runs": sorted(body["runs"]), '),
        ],
        second_attempt(),
        {MARKED, ENDS},
    ),
    Mutant(
        "coverage by the number of runs",
        [
            (consolidate.uncovered, _COVERED, 'known is None or known["runs"] < len(head.body["runs"])'),
            (consolidate.draft_of, _SET, _SET + '"runs": len(body["runs"]), '),
        ],
        second_attempt(),
        {MARKED, ENDS},
    ),
    Mutant(
        "revert carries the old coverage",
        [
            (
                consolidate.revert,
                "maps = {name: before.map(name) for name in revisions.MAPS}",
                'maps = {name: (old if name == "coverage" else before).map(name) for name in revisions.MAPS}',
            )
        ],
        reverted(),
        {ONCE},
    ),
]

# --- holes in marks -------------------------------------------------------------------------------------------

_DONE = "done = [mark for mark in found if left.isdisjoint(mark.rollouts)]"

MARKS = [
    Mutant(
        "one reused name for a memory's mark",
        [
            (marks.put, "clock.new_id()", '"one"'),
            (marks.put, "store.put_if_absent(", "store.put("),
        ],
        loops(),
        {MARKED},
    ),
    Mutant(
        "compare-and-delete of one mark per memory",
        [
            (marks.put, "clock.new_id()", '"one"'),
            (marks.put, "store.put_if_absent(", "store.put("),
            (marks.put, '        "put_at": clock.now_iso(),\n', ""),
            (marks.put, 'body["counters"] = dict(counters)', "pass"),
            (
                marks.delete,
                "        await store.delete_many([mark.key for mark in marks])\n",
                "        for mark in marks:\n"
                "            try:\n"
                "                await store.compare_and_delete(mark.key, mark.etag)\n"
                "            except errors.PreconditionFailed:\n"
                "                pass\n",
            ),
            (
                marks.read_all,
                "    return [parse(key, one.body) for key, one in zip(found, stored, strict=True)"
                " if one is not None]\n",
                "    out = []\n"
                "    for key, one in zip(found, stored, strict=True):\n"
                "        if one is not None:\n"
                "            out.append(parse(key, one.body))\n"
                "            object.__setattr__(out[-1], 'etag', one.etag)\n"
                "    return out\n",
            ),
        ],
        loops(),
        {MARKED},
    ),
    Mutant(
        "a mark goes only with the revision that covers it",
        [(consolidate.ConsolidateStage._pass, _DONE, "done = [mark for mark in found if made.covered]")],
        crash(),
        {ENDS},
    ),
    Mutant(
        "a mark goes although some of its rollouts were left for later",
        [
            (consolidate.ConsolidateStage._pass, _DONE, "done = found"),
        ],
        crash(),
        {MARKED},
        also=[(consolidate, "ROLLOUTS_PER_REVISION_MAX", 1)],
    ),
]

# --- holes in how an outcome is read --------------------------------------------------------------------------

OUTCOMES = [
    Mutant(
        "a head moved without compare-and-set",
        [
            (
                heads.move,
                "await store.compare_and_set(head.key, raw, head.etag, guard=guard)",
                "await store.put(head.key, raw)",
            )
        ],
        racing_recorders(),
        {ONE_LINE, ONCE},
    ),
    Mutant(
        "a conflict on a head taken for success",
        [
            (
                heads.move,
                "await puts.wait(attempt)",
                "return Head(head.key, body, head.etag)",
            )
        ],
        refused(),
        {MARKED},
    ),
    Mutant(
        "an unknown outcome on a head taken for success",
        [
            (
                heads.move,
                "    except (errors.PreconditionFailed, errors.OutcomeUnknown) as exc:\n",
                "    except errors.OutcomeUnknown:\n"
                "            return Head(head.key, body, head.etag)\n"
                "        except errors.PreconditionFailed as exc:\n",
            )
        ],
        lost(),
        {MARKED},
    ),
    Mutant(
        "a 412 on a head taken for success",
        [
            (
                heads.move,
                "    except (errors.PreconditionFailed, errors.OutcomeUnknown) as exc:\n",
                "    except errors.PreconditionFailed:\n"
                "            return Head(head.key, body, head.etag)\n"
                "        except errors.OutcomeUnknown as exc:\n",
            )
        ],
        racing_consolidators(),
        {MARKED},
    ),
    Mutant(
        "an unknown outcome on a record taken for success",
        [
            (
                rollouts.put_record,
                "    except errors.PreconditionFailed:\n",
                "    except errors.OutcomeUnknown:\n            return record, True\n"
                "        except errors.PreconditionFailed:\n",
            ),
        ],
        lost(),
        {DANGLING},
    ),
    Mutant(
        "a conflict on a record taken for success",
        [
            (
                rollouts.put_record,
                "    except errors.PreconditionFailed:\n",
                "    except errors.WriteConflict:\n            return record, True\n"
                "        except errors.PreconditionFailed:\n",
            ),
        ],
        refused(),
        {DANGLING},
    ),
    Mutant(
        "an unknown outcome on a mark taken for success",
        [
            (
                marks.put,
                "    except errors.PreconditionFailed as exc:\n",
                "    except errors.OutcomeUnknown:\n            return key\n"
                "        except errors.PreconditionFailed as exc:\n",
            )
        ],
        lost(),
        {MARKED},
    ),
    Mutant(
        "a lost reply taken for a failure of the event",
        [
            (
                record.RecordStage._put,
                "except errors.Poison as exc:",
                "except (errors.Poison, errors.OutcomeUnknown) as exc:",
            ),
            (
                puts.again,
                "except (errors.WriteConflict, errors.OutcomeUnknown, errors.StoreUnavailable) as exc:",
                "except errors.WriteConflict as exc:",
            ),
        ],
        lost(),
        {ONCE, ENDS},
    ),
    Mutant(
        "a 412 taken for a rival without reading what is there",
        [(rollouts.put_record, "if known.received != record.received:", "if True:")],
        crash(),
        {ONCE, ENDS},
    ),
    Mutant(
        "sameness judged after redaction",
        [(record.prepare, "records.received_hash(line)", "records.received_hash(kept)")],
        newer_detector(),
        {ONCE},
    ),
    Mutant(
        "fields of a head that this version does not know are dropped",
        [(heads.move, "**head.body, **changed", "**changed")],
        from_the_future(),
        {ONE_LINE},
    ),
]

ALL = [*ORDER, *READS, *COVERAGE, *MARKS, *OUTCOMES]
