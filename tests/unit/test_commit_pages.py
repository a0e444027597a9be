"""Paged maps against a dict: the same answers after any history, and only what changed is written."""

from __future__ import annotations

import itertools

import hypothesis
from hypothesis import stateful
from hypothesis import strategies as st

from runlore import errors
from runlore.commit import packs, pages

KEYS = st.text(st.characters(codec=None), max_size=5)
VALUES = st.one_of(st.integers(), st.text(max_size=300), st.lists(st.integers(), max_size=3), st.none())


class PagedMapMachine(stateful.RuleBasedStateMachine):
    """A map, the pages that were flushed of it, and the dict that it should be."""

    def __init__(self):
        super().__init__()
        self.stored = {}
        self.fetched = []
        self.model, self.flushed = {}, {}
        self.paged = pages.PagedMap(None, self.fetch)

    def fetch(self, name):
        self.fetched.append(name)
        return self.stored[name]

    @stateful.rule(key=KEYS, value=VALUES)
    def set(self, key, value):
        self.paged.set(key, value)
        self.model[key] = value

    @stateful.rule(number=st.integers(0, 400))
    def set_many(self, number):
        """So that it grows."""
        entries = {f"k{one}": "x" * 100 for one in range(number)}
        for key, value in entries.items():
            self.paged.set(key, value)
        self.model |= entries

    @stateful.rule(key=KEYS)
    def remove(self, key):
        self.paged.remove(key)
        self.model.pop(key, None)

    @stateful.rule(keep=st.integers(0, 3))
    def replace(self, keep):
        wanted = {key: value for number, (key, value) in enumerate(self.model.items()) if number % 4 == keep}
        self.paged.replace(wanted)
        self.model = wanted

    @stateful.rule()
    def flush_and_read_back(self):
        new = {}
        root = self.paged.flush(new)
        again = {}
        assert self.paged.flush(again) == root and again == {}
        for name, content in new.items():
            assert packs.name(content) == name
        self.stored |= new
        self.paged = pages.PagedMap(root, self.fetch)
        self.flushed = dict(self.model)
        assert set(self.paged.names()) <= set(self.stored)

    @stateful.rule(key=KEYS)
    def a_read_loads_one_page_at_most(self, key):
        self.fetched.clear()
        assert self.paged.get(key, "absent") == self.model.get(key, "absent")
        assert len(self.fetched) <= 1

    @stateful.invariant()
    def it_is_as_long_as_the_dict(self):
        assert len(self.paged) == len(self.model)

    @stateful.rule()
    def it_holds_what_the_dict_holds(self):
        assert dict(self.paged.items()) == self.model


PagedMapMachine.TestCase.settings = hypothesis.settings(
    max_examples=40, stateful_step_count=25, deadline=None
)
TestPagedMap = PagedMapMachine.TestCase


def filled(count):
    paged, stored = pages.PagedMap(None, None), {}
    for number in range(count):
        paged.set(f"rollout-{number}", {"counter": 1, "updated_at": "2026-01-01T00:00:00.000000+00:00"})
    root = paged.flush(stored)
    return root, stored


def test_one_changed_entry_writes_one_page_and_an_equal_one_none():
    root, stored = filled(1000)
    paged = pages.PagedMap(root, stored.__getitem__)
    paged.set("rollout-7", dict(paged.get("rollout-7")))
    new = {}
    assert paged.flush(new) == root and new == {}
    paged.set("rollout-7", {"counter": 2})
    after = paged.flush(new)
    assert len(new) == 1
    assert sum(one != other for one, other in zip(root["pages"], after["pages"], strict=True)) == 1


def test_a_change_costs_the_square_root_of_the_map():
    costs = []
    for count in (100, 400, 1600, 6400):
        root, stored = filled(count)
        paged = pages.PagedMap(root, stored.__getitem__)
        paged.set("rollout-7", {"counter": 2})
        new = {}
        root = paged.flush(new)
        costs.append(sum(map(len, new.values())) + 68 * len(root["pages"]))
    assert all(later < 3 * earlier for earlier, later in itertools.pairwise(costs)), costs
    assert costs[-1] < 12 * costs[0], costs


def test_the_same_entries_make_the_same_pages_whatever_their_order():
    entries = [(f"k{number}", number) for number in range(300)]
    roots = []
    for order in (entries, entries[::-1]):
        paged = pages.PagedMap(None, None)
        for key, value in order:
            paged.set(key, value)
        roots.append(paged.flush({}))
    assert roots[0] == roots[1]


def test_a_page_that_is_missing_is_told_as_corrupt_by_its_reader():
    root, _ = filled(10)
    frames = packs.Frames([])
    try:
        pages.PagedMap(root, frames.content).get("rollout-1")
    except errors.Corrupt:
        return
    raise AssertionError("a missing page was read")
