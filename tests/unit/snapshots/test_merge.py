"""Three-way merge of snapshots: nothing that either side wrote is lost, and what conflicts is told.

Method: small workspaces made in memory, merged and read back from the store; then random ones.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runlore.snapshots import merge, reading, textmerge
from runlore.testing import workspaces
from runlore.testing.stores import MemoryStore
from runlore.testing.workspaces import File, Link
from runlore.testing.world import finish

P = "acme"


class Merger:
    """Merges dicts, through the store."""

    def __init__(self):
        self.store = MemoryStore()

    def opened(self, files, bases=()):
        ref = finish(workspaces.put(self.store, P, files, bases=bases))
        return finish(reading.open_exact(self.store, P, ref))

    def __call__(self, base, ours, *others, labels=None):
        start = self.opened(base) if base is not None else None
        labels = labels or [f"b{number}" for number in range(1, len(others) + 1)]
        known = [start] if start else []
        sides = [
            merge.Side(label, self.opened(files, known)) for label, files in zip(labels, others, strict=True)
        ]
        self.ours = merge.Side("head", self.opened(ours, known))
        self.sides = sides
        self.merged = finish(merge.merge(start, self.ours, sides))
        self.saved = finish(merge.write(self.store, P, self.merged))
        self.conflicts = self.merged.conflicts
        return workspaces.read_plain(self.store, P, self.saved.ref)


@pytest.fixture
def merged():
    return Merger()


def kinds(merger):
    return [(one.path.decode(), one.kind) for one in merger.conflicts]


# --- one file at a time -----------------------------------------------------------------------------------


def test_what_only_one_side_changed_is_taken(merged):
    base = {"a": b"1", "b": b"2", "d/c": b"3", "gone": b"4"}
    ours = {"a": b"1 ours", "b": b"2", "d/c": b"3", "gone": b"4", "new": b"5"}
    theirs = {"a": b"1", "b": b"2 theirs", "d/c": b"3", "d/e": b"6"}
    found = merged(base, ours, theirs)
    assert found == {"a": b"1 ours", "b": b"2 theirs", "d/c": b"3", "d/e": b"6", "new": b"5"}
    assert merged.conflicts == ()
    assert merged.merged.record.report is None


def test_text_that_both_sides_changed_is_merged_by_lines(merged):
    base = b"".join(b"line %d\n" % number for number in range(20))
    ours, theirs = base.replace(b"line 2\n", b"line two\n"), base.replace(b"line 17\n", b"") + b"more\n"
    found = merged({"t.md": base}, {"t.md": ours}, {"t.md": theirs})
    assert found == {"t.md": theirs.replace(b"line 2\n", b"line two\n")}
    assert merged.conflicts == ()


def test_lines_that_both_changed_otherwise_are_kept_side_by_side(merged):
    found = merged({"d/report.md": b"a\n"}, {"d/report.md": b"b\n"}, {"d/report.md": b"c\n"}, labels=["b3"])
    assert found == {"d/report.md": b"b\n", "d/report.conflict-b3.md": b"c\n"}
    (conflict,) = merged.conflicts
    assert conflict.as_dict() == {
        "path": "d/report.md",
        "kind": merge.BOTH_CHANGED,
        "kept": {"head": "d/report.md", "b3": "d/report.conflict-b3.md"},
    }


def test_the_conflicts_are_part_of_the_snapshot(merged):
    merged({"f": b"a"}, {"f": b"b"}, {"f": b"c"})
    opened = finish(reading.open_snapshot(merged.store, P, merged.saved.id))
    report = finish(opened.report())
    assert report["counts"]["conflicts"] == 1
    assert report["conflicts"][0]["path"] == "f"


def test_bytes_that_are_no_text_are_kept_side_by_side(merged):
    base = b"\0" + b"x" * 100
    found = merged({"m.bin": base}, {"m.bin": base + b"1"}, {"m.bin": b"2" + base})
    assert found == {"m.bin": base + b"1", "m.conflict-b1.bin": b"2" + base}


def test_the_same_change_on_both_sides_is_no_conflict(merged):
    base, same = {"a": b"1", "l": Link(b"x")}, {"a": b"2", "l": Link(b"y"), "n/m": b"3"}
    assert merged(base, same, same) == same
    assert merged.conflicts == ()


def test_the_same_file_added_on_both_sides_is_no_conflict(merged):
    assert merged({}, {"a": b"1"}, {"a": b"1", "b": b"2"}) == {"a": b"1", "b": b"2"}
    assert merged.conflicts == ()


def test_files_added_under_one_name_with_other_bytes_are_both_kept(merged):
    assert merged({}, {"a.txt": b"1"}, {"a.txt": b"2"}) == {"a.txt": b"1", "a.conflict-b1.txt": b"2"}
    assert kinds(merged) == [("a.txt", merge.BOTH_ADDED)]


def test_what_one_side_deleted_and_the_other_changed_stays_and_is_told(merged):
    base, changed = {"a": b"1\n", "b": b"2"}, {"a": b"1\nmore\n", "b": b"2"}
    for ours, theirs in itertools.permutations([changed, {"b": b"2"}]):
        assert merged(base, ours, theirs) == changed
        assert kinds(merged) == [("a", merge.DELETED)]


def test_a_deleted_directory_goes_but_for_what_was_changed_in_it(merged):
    base = {"d/a": b"1", "d/b": b"2", "d/e/f": b"3"}
    assert merged(base, {}, {**base, "d/e/f": b"3!"}) == {"d/e/f": b"3!"}
    assert kinds(merged) == [("d/e/f", merge.DELETED)]
    assert merged(base, {}, {"d/a": b"1"}) == {}
    assert merged.conflicts == ()


@pytest.mark.parametrize("swapped", [False, True])
def test_a_directory_against_a_file_keeps_its_name(merged, swapped):
    sides = [{"x/y": b"in"}, {"x": b"file"}]
    found = merged({}, *(reversed(sides) if swapped else sides))
    label = "head" if swapped else "b1"
    assert found == {"x/y": b"in", f"x.conflict-{label}": b"file"}
    assert kinds(merged) == [("x", merge.KINDS)]


def test_a_link_against_a_file_is_kept_beside_it(merged):
    found = merged({"x": b"1"}, {"x": b"2"}, {"x": Link(b"/etc/passwd")})
    assert found == {"x": b"2", "x.conflict-b1": Link(b"/etc/passwd")}


def test_modes_are_merged_apart_from_contents(merged):
    base = {"run.sh": File(b"a\n", 0o644)}
    found = merged(base, {"run.sh": File(b"a\n", 0o755)}, {"run.sh": File(b"a\nb\n", 0o644)})
    assert found == {"run.sh": b"a\nb\n"}
    read = finish(workspaces.read(merged.store, P, merged.saved.ref))
    assert read["run.sh"].mode == 0o755


def test_a_name_for_a_conflict_that_is_taken_gets_a_number(merged):
    taken = {"a.conflict-b1.md": b"was here"}
    found = merged({"a.md": b"0", **taken}, {"a.md": b"1", **taken}, {"a.md": b"2", **taken})
    assert found == {"a.md": b"1", "a.conflict-b1-2.md": b"2", **taken}


def test_a_long_name_still_fits(merged):
    name = "n" * 255
    found = merged({}, {name: b"1"}, {name: b"2"})
    assert sorted(found.values()) == [b"1", b"2"]
    assert max(map(len, found)) == 255


def test_a_long_name_is_never_cut_within_a_character(merged):
    name = "ä" * 127
    found = merged({}, {name: b"1"}, {name: b"2"})
    assert len(found) == 2 and all(len(one.encode()) <= 255 for one in found)


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        (b"a\r\nb\r\nC\r\n", b"A\r\nb\r\nC\r\n"),  # CRLF on both sides stays CRLF.
        (b"a\r\nb\r\nc", b"A\r\nb\r\nc"),  # The last line's end was taken away by one side.
        (b"a\r\nb\r\nc\r\nd", b"A\r\nb\r\nc\r\nd"),
        (b"a\nb\nc\n", None),  # Every line's end was changed: that touches what the other changed.
        (b"a\rb\rc\r", None),
        (b"", None),
    ],
)
def test_ends_of_lines_are_bytes_of_the_line(theirs, expected):
    base, ours = b"a\r\nb\r\nc\r\n", b"A\r\nb\r\nc\r\n"
    assert textmerge.merge(base, ours, theirs) == expected == textmerge.merge(base, theirs, ours)


def test_texts_that_would_take_days_to_compare_are_given_up_in_a_bounded_number_of_steps(monkeypatch):
    """Lines that repeat make pairs as the square of their number, and a hostile workspace chooses its lines."""
    asked = []
    monkeypatch.setattr(textmerge, "PAIRS_MAX", 20_000)
    real = textmerge._Bounded.find_longest_match

    def count(self, *args):
        found = real(self, *args)
        asked.append(self._pairs)
        return found

    monkeypatch.setattr(textmerge._Bounded, "find_longest_match", count)
    same = [b"}\n"] * 500
    sides = [b"".join([*same[:half], b"%d\n" % half, *same[half:], b"%d\n" % half]) for half in (0, 200, 400)]
    assert textmerge.merge(*sides) is None
    assert max(asked, default=0) <= 20_000


def test_a_text_with_many_equal_lines_still_merges(monkeypatch):
    monkeypatch.setattr(textmerge, "PAIRS_MAX", 60_000)
    base = [b"}\n" if number % 2 else b"line %d\n" % number for number in range(2000)]
    ours, theirs = list(base), list(base)
    ours[100], theirs[1900] = b"ours\n", b"theirs\n"
    both = [*base[:100], b"ours\n", *base[101:1900], b"theirs\n", *base[1901:]]
    assert textmerge.merge(*map(b"".join, (base, ours, theirs))) == b"".join(both)


# --- several branches -------------------------------------------------------------------------------------


def test_a_fan_out_is_folded_in_order_of_the_labels(merged):
    base = {"report.md": b"todo\n", "shared": b"".join(b"%d\n" % n for n in range(30))}
    branches = []
    for number in range(8):
        lines = base["shared"].replace(b"\n%d\n" % (3 * number + 2), b"\n%d done\n" % (3 * number + 2))
        branches.append({**base, "shared": lines, f"out/{number}": b"%d" % number})
    branches[2]["report.md"], branches[5]["report.md"] = b"three\n", b"six\n"
    labels = [f"b{number + 1}" for number in range(8)]
    found = merged(base, base, *branches, labels=labels)
    again = Merger()
    backwards = list(zip(branches, labels, strict=True))[::-1]
    assert (
        again(base, base, *(one for one, _ in backwards), labels=[label for _, label in backwards]) == found
    )
    assert again.saved.id == merged.saved.id
    assert found["shared"].count(b"done") == 8
    assert [found["report.md"], found["report.conflict-b6.md"]] == [b"three\n", b"six\n"]
    assert len([path for path in found if path.startswith("out/")]) == 8
    assert kinds(merged) == [("report.md", merge.BOTH_CHANGED)]


# --- what it costs ----------------------------------------------------------------------------------------


def test_only_what_no_side_has_is_written(merged):
    big = {f"data/{number}": bytes([number]) * 5000 for number in range(100)}
    before = set(merged.store.snapshot())
    merged(big, {**big, "a": b"1\n2\n3\n4\n"}, {**big, "b": b"x"})
    before = set(merged.store.snapshot())
    finish(merge.write(merged.store, P, merged.merged))
    written = set(merged.store.snapshot()) - before
    assert sum(len(merged.store.body(key)) for key in written) < 3000
    assert merged.saved.bytes_written < 3000


def test_directories_that_do_not_differ_are_not_looked_into(merged, monkeypatch):
    same = {f"d{number}/f": b"%d" % number for number in range(50)}
    looked = []
    tree = merge._Blobs.tree
    monkeypatch.setattr(merge._Blobs, "tree", lambda self, entry: looked.append(entry) or tree(self, entry))
    merged(same, {**same, "d1/a": b"a"}, {**same, "d2/b": b"b"})
    assert len(looked) == 3  # The root of each side.


def test_a_merge_that_changes_nothing_writes_nothing(merged):
    files = {"a": b"1"}
    merged(files, files, {**files, "b": b"2"})
    assert merged.saved.packs_written == 0
    assert merged.saved.ref == merged.sides[0].opened.ref


# --- properties -------------------------------------------------------------------------------------------

names_ = st.sampled_from(["a", "b.md", "c.txt", "d", "e"])
paths = st.lists(names_, min_size=1, max_size=3).map("/".join)
lines = st.lists(st.sampled_from([b"one", b"two", b"three", b"", b"four five"]), max_size=6).map(
    lambda found: b"\n".join(found)
)
contents = st.one_of(
    lines,
    st.binary(max_size=12),
    st.builds(File, lines, st.sampled_from([0o644, 0o755]), st.integers(0, 3)),
    st.builds(Link, st.sampled_from([b"a", b"../b"]), st.integers(0, 2)),
    st.none(),
)


def possible(files):
    """`files` without what lies below a file."""
    out = {}
    for path in sorted(files):
        above = ["/".join(path.split("/")[:count]) for count in range(1, path.count("/") + 1)]
        if not any(one in out and out[one] is not None for one in above):
            out[path] = files[path]
    return out


spaces = st.dictionaries(paths, contents, max_size=8).map(possible)


@st.composite
def histories(draw):
    """A base and two sides that come from it."""
    base = draw(spaces)

    def side():
        changed = {path: one for path, one in base.items() if draw(st.integers(0, 4))}
        return possible({**changed, **draw(spaces)})

    return base, side(), side()


def bytes_of(files):
    return [one.content if isinstance(one, File) else one for one in files.values() if one is not None]


@settings(max_examples=200, deadline=None)
@given(histories())
def test_a_side_that_changed_nothing_leaves_exactly_the_other(history):
    base, ours, _ = history
    for one, two in ((base, ours), (ours, base)):
        merger = Merger()
        merger(base, one, two)
        wanted = merger.ours.opened.ref if two is base else merger.sides[0].opened.ref
        assert merger.saved.id == wanted.id
        assert merger.conflicts == ()


@settings(max_examples=300, deadline=None)
@given(histories())
def test_no_line_and_no_byte_of_either_side_is_lost(history):
    base, ours, theirs = history
    merger = Merger()
    found = merger(base, ours, theirs)
    kept = [one if isinstance(one, Link) else bytes(one) for one in found.values() if one is not None]
    kept_lines = {line for one in kept if isinstance(one, bytes) for line in one.splitlines()}
    for side, other in ((ours, theirs), (theirs, ours)):
        plain = workspaces.plain(side)
        for path, one in plain.items():
            if one is None or one in kept:
                continue
            was = workspaces.plain(base).get(path)
            if one == was:
                continue  # As the base had it: the other side's to delete or change.
            # Not whole: then merged by lines with the other side's.
            assert isinstance(one, bytes) and isinstance(was, bytes) and path in other
            assert set(one.splitlines()) - set(was.splitlines()) <= kept_lines


@settings(max_examples=200, deadline=None)
@given(histories())
def test_swapping_the_sides_changes_labels_only(history):
    base, ours, theirs = history
    one, two = Merger(), Merger()
    first, second = one(base, ours, theirs), two(base, theirs, ours)
    key = lambda value: repr(value)  # noqa: E731
    assert sorted(map(key, first.values())) == sorted(map(key, second.values()))
    assert sorted(kinds(one)) == sorted(kinds(two))


@settings(max_examples=100, deadline=None)
@given(histories())
def test_the_same_merge_gives_the_same_snapshot_and_verifies(history):
    one, two = Merger(), Merger()
    assert one(*history) == two(*history)
    assert one.saved.id == two.saved.id
    record = one.merged.record
    opened = finish(reading.open_snapshot(one.store, P, one.saved.id))
    assert opened.record == record
    read = finish(workspaces.read(one.store, P, one.saved.ref))
    assert record.files == sum(isinstance(file, File) for file in read.values())
    assert record.bytes == sum(len(file.content) for file in read.values() if isinstance(file, File))


@settings(max_examples=300, deadline=None)
@given(lines, lines, lines)
def test_texts_merge_alike_from_both_sides(base, ours, theirs):
    merged = textmerge.merge(base, ours, theirs)
    assert merged == textmerge.merge(base, theirs, ours)
    assert textmerge.merge(base, base, theirs) == theirs
    assert textmerge.merge(base, ours, ours) == ours


def test_sides_that_began_from_nothing_hold_what_each_of_them_has(merged):
    assert merged(None, {"a": b"1"}, {"b": b"2"}, {"c": b"3"}) == {"a": b"1", "b": b"2", "c": b"3"}
    assert not merged.conflicts
