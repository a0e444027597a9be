"""Lanes and offsets. Goal: whatever order batches end in, whatever a rebalance or a crash takes, no offset beyond an
undone message is committed, a key keeps its order, and every message is done in the end.

Method: every schedule of a small world (two partitions, four messages, batches that end in any order, are given up or
outlive their assignment, a commit that a rebalance overtakes, a crash), each ended in peace and checked. Then the
same with faults built in, each of which must be found. Longer random worlds follow.
"""

from __future__ import annotations

import random
from collections import Counter

import hypothesis
import hypothesis.strategies as st
import pytest

from runlore.bus.port import Message, TopicPartition
from runlore.testing import exhaust
from runlore.worker import offsets

KEYS = {0: "aba", 1: "c"}
STEPS = 7


def key_of(letter):
    """`-` has no key, a capital is a rollout of another project, `?` a key that names none."""
    if letter == "-":
        return None
    return letter.encode() if letter == "?" else (b"big/" if letter.isupper() else b"p/") + letter.encode()


def logs_of(keys):
    """Partitions with a message per letter. Offsets have a gap after the first."""
    logs = {}
    for partition, letters in keys.items():
        at = TopicPartition("t", partition)
        logs[at] = [
            Message(*at, n + (n > 0), key_of(letter), b"v" * (n % 3), [], 0.0)
            for n, letter in enumerate(letters)
        ]
    return logs


class Violated(AssertionError):
    pass


def must(condition, what):
    if not condition:
        raise Violated(what)


class World:
    """A topic, what a group committed of it, the effects in the store, and one process that dies and comes again."""

    def __init__(self, logs, lanes, limits=None):
        self.logs, self.make, self.limits = logs, lanes, limits or offsets.Limits()
        self.committed = dict.fromkeys(logs, 0)
        self.done = set()
        self.begin()

    def begin(self):
        self.lanes, self.hand, self.commit = self.make(self.limits), [], None
        self.passed = Counter()
        self.assign()

    def assign(self):
        self.lanes.assign(self.logs)
        self.position = dict(self.committed)

    # --- what may happen ---

    def poll(self, at, count=1):
        page = [m for m in self.logs[at] if m.offset >= self.position[at]][:count]
        if page:
            self.position[at] = page[-1].offset + 1
            self.lanes.add(page)
            self.check_bounds()

    def check_bounds(self):
        lanes, limits = self.lanes, self.limits
        at_work = sum(len(one.messages) for one in self.hand)
        must(not limits.parked_max or lanes.records <= limits.records_max + at_work, "too much is kept")
        size = sum(len(m.value) for one in self.hand for m in one.messages)
        must(not limits.parked_max or lanes.size <= limits.bytes_max + 1 + size, "too many bytes are kept")
        for one in lanes._projects.values():
            share = (limits.records_max + 1) // 2 + at_work
            must(not limits.parked_max or one.records <= share, "one project has all of the queue")

    def unread(self, at):
        return any(m.offset >= self.position[at] for m in self.logs[at])

    def take(self, records_max=2):
        waiting = list(self.lanes._idle)
        batch = self.lanes.take(records_max)
        must(batch is not None or not waiting, "nothing begins though there is work")
        if batch is not None:
            (project,) = batch.projects
            must(
                not waiting or project == waiting[0], "it was the turn of a project that has nothing at work"
            )
            for one in waiting:
                if one != project:
                    self.passed[one, project] += 1
                    must(self.passed[one, project] == 1, "a project was served twice while another waited")
            self.passed = Counter({pair: n for pair, n in self.passed.items() if pair[0] != project})
            held = {m.key for one in self.hand for m in one.messages if m.key is not None}
            # What was parked is read again first, as whoever works it does.
            again = [m for at, found in batch.parked.items() for m in self.logs[at] if m.offset in found]
            must(
                self.lanes.load(batch, again) == 0 and not batch.parked, "what was parked is not found again"
            )
            must(not held & {m.key for m in batch.messages}, "a key is in two batches")
            must(len({offsets.project_of(m) for m in batch.messages}) == 1, "projects share a batch")
            size = sum(len(m.value) for m in batch.messages)
            is_small = size <= self.limits.batch_bytes_max
            must(is_small or len(batch.messages) == 1, "a batch is too large")
            self.hand.append(batch)
        return batch

    def finish(self, number):
        batch = self.hand.pop(number)
        for m in batch.messages:
            earlier = [
                one for one in self.logs[m.at] if one.key == m.key is not None and one.offset < m.offset
            ]
            must(all((m.at, one.offset) in self.done for one in earlier), "a key was worked out of order")
            self.done.add((m.at, m.offset))
        self.lanes.finish(batch)

    def give_back(self, number):
        self.lanes.rest(self.hand[number])
        self.lanes.give_back(self.hand.pop(number))

    def commit_begins(self):
        self.commit = (self.lanes.generation, self.lanes.offsets())

    def commit_ends(self):
        generation, marks = self.commit
        self.commit = None
        if generation == self.lanes.generation:  # Else the broker refuses it: its member has joined anew.
            for at, mark in marks.items():
                must(mark >= self.committed[at], "a commit moved backwards")
                behind = [m for m in self.logs[at] if m.offset < mark]
                must(all((at, m.offset) in self.done for m in behind), "committed beyond an undone message")
                self.committed[at] = mark
        self.lanes.committed(marks, generation)

    def rebalance(self, patient):
        """Without patience nothing is waited for, and the last commit fails."""
        self.passed.clear()
        self.lanes.stop(self.logs)
        while patient and self.lanes.in_hand(self.logs):
            self.finish(0)
        if patient:
            pending, self.commit = self.commit, None
            self.commit_begins()
            self.commit_ends()
            self.commit = pending
        self.lanes.drop(self.logs)
        self.assign()

    def settle(self):
        """Faults stop: everything is worked and committed, and nothing is left over."""
        for _ in range(100):
            if self.commit:
                self.commit_ends()
            for at in self.logs:
                self.poll(at, 100)
            while self.hand:
                self.finish(0)
            while self.take(3):
                pass
            self.commit_begins()
            self.commit_ends()
            if (
                not self.hand
                and all(not self.unread(at) for at in self.logs)
                and not self.lanes.records + self.lanes.parked
            ):
                break
        ends = {at: log[-1].offset + 1 for at, log in self.logs.items() if log}
        must(self.committed | ends == self.committed, "something was never committed")
        must(len(self.done) == sum(map(len, self.logs.values())), "something was never done")
        lanes = self.lanes
        counts = (
            lanes.records,
            lanes.parked,
            lanes.size,
            *map(len, (lanes._projects, lanes._idle, lanes._served)),
        )
        must(counts == (0,) * 6, f"something is left: {counts}")

    def state(self):
        """Everything that the rest of a run depends on."""
        lanes = self.lanes

        def entry(one):
            return one.flow.at, one.offset, one.flow.fed, one.flow.dropped, one.message is None

        def queues(found):
            return tuple((lane, tuple(map(entry, queue))) for lane, queue in found.items())

        return (
            tuple(sorted(self.position.items())),
            tuple(sorted(self.committed.items())),
            frozenset(self.done),
            tuple(tuple(map(entry, batch.entries)) for batch in self.hand),
            tuple((name, queues(p.free), queues(p.behind)) for name, p in lanes._projects.items()),
            tuple(lanes._idle),
            tuple((p.name, p.jobs) for p in sorted(lanes._projects.values(), key=lambda p: p.turn)),
            frozenset(lanes._busy),
            tuple(
                (f.at, tuple(f.open), frozenset(f.done), f.next, f.committed) for f in lanes._flows.values()
            ),
            (self.commit[0] == lanes.generation, tuple(self.commit[1].items())) if self.commit else None,
        )


def schedule(gen, lanes, steps=STEPS, keys=KEYS, limits=None):
    """One run: a few choices of what happens next, then peace."""
    world = World(logs_of(keys), lanes, limits)
    faults = {"hasty": 1, "patient": 1, "crash": 1, "give_back": 1}
    for step in range(steps):
        options = [("poll", at) for at in world.logs if world.unread(at)]
        options += [("take", None)] if world.lanes._idle or world.lanes._served else []
        options += [("finish", number) for number in range(len(world.hand))]
        options += [("commit_ends", None)] if world.commit else [("commit_begins", None)]
        options += [(fault, None) for fault in ("hasty", "patient", "crash") if faults[fault]]
        options += [("give_back", number) for number in range(len(world.hand)) if faults["give_back"]]
        what, about = options[
            gen.choose(len(options), lambda: (step, world.state(), tuple(faults.values())))  # noqa: B023
        ]
        if what in faults:
            faults[what] -= 1
        if what in ("hasty", "patient"):
            world.rebalance(what == "patient")
        elif what == "crash":
            world.begin()
        else:
            getattr(world, what)(*([about] if about is not None else []))
    world.settle()


def test_every_schedule_commits_only_what_is_done_keeps_keys_in_order_and_forgets_nothing():
    found = exhaust.explore(lambda gen: schedule(gen, offsets.Lanes), schedules_max=100_000)
    assert found.states > 2_000


SHARED = {0: "aAa", 1: "Ba"}
TIGHT = offsets.Limits(records_max=2, parked_max=100)
"""Room for one message of each project: whatever comes after it is parked."""


def test_so_does_every_schedule_in_which_messages_are_parked():
    found = exhaust.explore(lambda gen: schedule(gen, offsets.Lanes, 6, SHARED, TIGHT), schedules_max=100_000)
    assert found.states > 1_000


class CommitsTheHighestDone(offsets.Lanes):
    def offsets(self):
        out = {}
        for at, flow in self._flows.items():
            done = [offset + 1 for offset in flow.done]
            high = max([flow.low, *done])
            if high > flow.committed:
                out[at] = high
        return out


class CommitsWhatWasReceived(offsets.Lanes):
    def offsets(self):
        return {at: flow.next for at, flow in self._flows.items() if flow.next > flow.committed}


class GivesAKeyToTwoBatches(offsets.Lanes):
    def take(self, *args):
        self._busy.clear()
        for project in self._projects.values():
            for lane in list(project.behind):
                project.free[lane] = project.behind.pop(lane)
            self._settle(project)
        return super().take(*args)

    def add(self, messages):
        self._busy.clear()
        super().add(messages)


class FreesAKeyWithItsAssignment(offsets.Lanes):
    """The stale batch of an old assignment is still at work when its messages come again."""

    def drop(self, partitions):
        super().drop(partitions)
        self._busy.clear()


class ForgetsWhatIsGivenBack(offsets.Lanes):
    def give_back(self, batch):
        for entry in batch.entries:
            self._count(entry, -1)
        self._end(batch)


class QueuesWhatIsGivenBackLast(offsets.Lanes):
    def give_back(self, batch):
        for entry in batch.entries:
            if entry.flow.fed:
                self._projects[entry.project].behind.setdefault(entry.lane, []).append(entry)
            else:
                self._count(entry, -1)
        self._end(batch)


class PassesOverWhatIsParked(offsets.Lanes):
    def add(self, messages):
        super().add(messages)
        for project in self._projects.values():
            for queue in project.free.values():
                for entry in queue:
                    if entry.message is None and entry.offset in entry.flow.open:
                        entry.flow.open.remove(entry.offset)


class WorksTheFirstThatCame(offsets.Lanes):
    """The order of the log: a project waits behind all that another has sent."""

    def _next(self, may):
        waiting = [self._projects[name] for name in (*self._idle, *self._served)]
        return min(waiting, key=lambda one: min(e.offset for q in one.free.values() for e in q), default=None)


class CountsACommitOfAnotherAssignment(offsets.Lanes):
    def committed(self, offsets, generation):
        super().committed(offsets, self.generation)


MUTANTS = [
    CommitsTheHighestDone,
    CommitsWhatWasReceived,
    GivesAKeyToTwoBatches,
    FreesAKeyWithItsAssignment,
    ForgetsWhatIsGivenBack,
    QueuesWhatIsGivenBackLast,
    CountsACommitOfAnotherAssignment,
]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_fault_built_in_is_found(mutant):
    with pytest.raises((Violated, KeyError)):
        exhaust.explore(lambda gen: schedule(gen, mutant), schedules_max=400_000)


@pytest.mark.parametrize("mutant", [PassesOverWhatIsParked, WorksTheFirstThatCame])
def test_a_fault_built_in_is_found_where_messages_are_parked(mutant):
    with pytest.raises((Violated, KeyError)):
        exhaust.explore(lambda gen: schedule(gen, mutant, 6, SHARED, TIGHT), schedules_max=400_000)


@hypothesis.given(
    keys=st.dictionaries(st.integers(0, 3), st.text("abcdABC-?", max_size=12), min_size=1, max_size=4),
    limits=st.builds(
        offsets.Limits,
        records_max=st.integers(1, 8),
        bytes_max=st.integers(1, 8),
        parked_max=st.sampled_from([0, 100]),
        batch_bytes_max=st.integers(0, 5),
    ),
    seed=st.integers(0, 2**32),
)
def test_longer_random_worlds_end_well(keys, limits, seed):
    rng = random.Random(seed)
    world = World(logs_of(keys), offsets.Lanes, limits)
    for _ in range(rng.randrange(60)):
        what = rng.choice(
            ["poll"] * 4
            + ["take"] * 3
            + ["finish"] * 3
            + ["give_back", "begins", "ends", "hasty", "patient", "crash"]
        )
        if what == "poll":
            world.poll(rng.choice(list(world.logs)), rng.randrange(1, 5))
        elif what == "take":
            world.take(rng.randrange(1, 6))
        elif what in ("finish", "give_back") and world.hand:
            getattr(world, what)(rng.randrange(len(world.hand)))
        elif what == "begins" and not world.commit:
            world.commit_begins()
        elif what == "ends" and world.commit:
            world.commit_ends()
        elif what in ("hasty", "patient"):
            world.rebalance(what == "patient")
        elif what == "crash":
            world.begin()
    world.settle()


def keys_of(batch):
    return [message.key for message in batch.messages]


def test_a_batch_takes_whole_keys_the_longest_waiting_first():
    world = World(logs_of({0: "abacab"}), offsets.Lanes)
    world.poll(TopicPartition("t", 0), 100)
    assert keys_of(world.take(4)) == [b"p/a", b"p/a", b"p/a", b"p/b"]
    # What did not fit waits for the batch that has its key.
    assert keys_of(world.take(4)) == [b"p/c"]
    assert world.take(4) is None
    world.finish(0)
    assert keys_of(world.take(4)) == [b"p/b"]


def test_messages_without_a_key_stand_in_nobodys_way():
    world = World(logs_of({0: "---"}), offsets.Lanes)
    world.poll(TopicPartition("t", 0), 100)
    assert [len(world.take(1).messages) for _ in range(3)] == [1, 1, 1]


def test_a_position_that_goes_back_is_read_anew_rather_than_passed_over():
    """A topic that was made anew begins at 0 again."""
    at = TopicPartition("t", 0)
    lanes = offsets.Lanes()
    lanes.assign([at])
    lanes.add([Message(*at, n, b"k", b"v", [], 0.0) for n in (5, 6)])
    batch = lanes.take(1)
    lanes.add([Message(*at, n, b"k", b"v", [], 0.0) for n in (0, 1)])
    lanes.finish(batch)
    assert lanes.offsets() == {at: 0} and lanes.records == 2
    again = lanes.take(10)
    assert [m.offset for m in again.messages] == [0, 1]
    lanes.finish(again)
    assert lanes.offsets() == {at: 2} and (lanes.records, lanes.size) == (0, 0)


def test_messages_of_others_partitions_are_passed_over():
    lanes = offsets.Lanes()
    lanes.assign([TopicPartition("t", 0)])
    lanes.add([Message("t", 1, 0, b"k", b"v", [], 0.0)])
    assert (lanes.records, lanes.take(10), lanes.offsets()) == (0, None, {})
