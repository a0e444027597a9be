"""The index: only what is newer counts, a search takes any words, and a subject's words are its own."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from concurrent import futures

import hypothesis
import pytest
from hypothesis import strategies as st

from runlore import errors
from runlore.commit import heads, keys, revisions, rollouts
from runlore.consumers import index as index_consumer
from runlore.consumers import record
from runlore.events import envelope, models
from runlore.lookup import index as lookup_index
from runlore.lookup import rows as rows_of
from runlore.testing import buses, stores


@pytest.fixture
def index(tmp_path):
    with contextlib.closing(lookup_index.Index(tmp_path / "index.db")) as opened:
        yield opened


def rollout(name, counter=1, *, text="hello", subject=None, project="acme", runs=1, earlier=()):
    entry = {
        "event": f"e-{name}",
        "ended_at": "2026-01-01T00:00:00.000000+00:00",
        "attempt": 1 + len(earlier),
    }
    entry |= {"received": "0", "earlier": [[at, "0", f"e-{name}-{at}"] for at in earlier]}
    body = {
        "format": rollouts.HEAD_FORMAT,
        "counter": counter,
        "project": project,
        "memory": "support",
        "rollout": name,
        "kind": "session",
        "original": name,
        "subject": subject,
        "updated_at": "2026-01-01T00:00:00.000000+00:00",
        "moved_at": "2026-01-01T00:00:00.000000+00:00",
        "runs": {f"run-{name}-{number}": entry for number in range(runs)},
        "summary": {"words": [text]},
    }
    return heads.Head(keys.rollout_head(project, "support", name), body, f"etag-{counter}")


def test_a_head_is_applied_only_where_its_counter_is_higher(index):
    assert index.apply([rollout("a", 3, text="third", runs=3)]) == 1
    assert index.apply([rollout("a", 2, text="second", runs=2), rollout("a", 3, text="other")]) == 0
    assert index.search("third", "acme", "support") and not index.search("second", "acme", "support")
    assert index.rollouts("acme", "support")[0]["runs"] == 3
    assert index.apply([rollout("a", 4, text="fourth", runs=4)]) == 1
    assert not index.search("third", "acme", "support")
    assert index.memories()[0]["runs"] == 4


def test_many_that_open_and_fill_a_new_file_at_one_time_wait_for_each_other(tmp_path):
    """`up` makes the file while `status` opens it: neither may be told that it is locked."""
    many = 6
    barrier = threading.Barrier(many)

    def open_and_apply(round, number):
        barrier.wait()
        with contextlib.closing(lookup_index.Index(tmp_path / f"{round}.db")) as opened:
            return opened.apply([rollout(f"r-{number}-{n}") for n in range(3)])

    with futures.ThreadPoolExecutor(many) as pool:
        for round in range(20):
            assert list(pool.map(open_and_apply, [round] * many, range(many))) == [3] * many


def test_an_earlier_attempt_is_found_by_its_own_event(index):
    index.apply([rollout("a", 1, earlier=(1, 2))])
    assert [(row["attempt"], row["superseded"]) for row in index.runs("e-a-1")] == [(1, 1)]
    assert [row["attempt"] for row in index.runs("run-a-0")] == [1, 2, 3]


@hypothesis.given(st.text(max_size=40))
@hypothesis.example('"')
@hypothesis.example("a\0b")
@hypothesis.example("\0")
@hypothesis.example("a AND b OR NOT (c) NEAR/2 col:x ^y z*")
@hypothesis.example("-")
@hypothesis.settings(max_examples=80, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_a_search_takes_any_words_as_words(index, query):
    index.apply([rollout("a", 1, text="plain words, a AND b (c)")])
    if not query.replace("\0", " ").split():
        with pytest.raises(errors.InvalidInput):
            index.search(query, "acme", "support")
        return
    assert len(index.search(query, "acme", "support")) <= 1
    assert index.search("plain", "acme", "support"), "what nobody can search for took the index with it"


@hypothesis.given(st.lists(st.from_regex(r"[a-zäöü]{2,8}", fullmatch=True), min_size=1, max_size=4))
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_every_summary_is_found_by_its_own_words_in_any_order(index, words):
    (counter,) = index._db.conn.execute("SELECT count(*) + 1 FROM heads").fetchone()
    index.apply([rollout(f"r{counter}", 1, text=" ".join(words))])
    found = {row["rollout"] for row in index.search(" ".join(reversed(words)), "acme", "support", limit=100)}
    assert f"r{counter}" in found or len(found) == 100


def test_a_subjects_words_are_found_only_by_that_subject_and_a_projects_only_there(index):
    index.apply(
        [
            rollout("open", text="canary"),
            rollout("hers", text="canary", subject="rl-anna"),
            rollout("mixed", text="canary", subject="*"),
            rollout("theirs", text="canary", project="zoo"),
        ]
    )

    def found(project="acme", **more):
        return {row["rollout"] for row in index.search("canary", project, "support", **more)}

    assert found() == {"open"} == found(subject="rl-bert")
    assert found(subject="rl-anna") == {"open", "hers"}
    assert found("zoo") == {"theirs"} and found("nobody") == set()
    assert [row["project"] for row in index.memories("zoo")] == ["zoo"]


def test_what_others_have_changes_no_rank_and_no_order(index):
    hers = [
        ("often", "canary " * 5),
        ("twice", "canary canary wolf"),
        ("wolves", "wolf wolf canary " + "x " * 90),
    ]
    index.apply([rollout(name, text=text) for name, text in hers])

    def found():
        return [index.search(words, "acme", "support") for words in ("canary", "wolf canary", "wolf")]

    alone = found()
    assert [row["rollout"] for row in alone[0]] == ["often", "twice", "wolves"]
    # So many that a weight by how rare a word is would turn around.
    index.apply([rollout(f"z{number}", text="wolf " * 9, project="zoo") for number in range(20)])
    index.apply([rollout(f"a{number}", text="canary", subject="rl-anna") for number in range(20)])
    assert found() == alone


def test_a_newer_layout_of_the_file_is_cleared_and_made_again(index, tmp_path):
    index.apply([rollout("a")])
    index.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "index.db")) as connection:
        connection.execute("PRAGMA user_version=99")
        connection.commit()
    with contextlib.closing(lookup_index.Index(tmp_path / "index.db")) as again:
        assert again.etags([rollout("a").key]) == {} and again.apply([rollout("a")]) == 1


def test_a_file_that_another_process_writes_is_not_taken_for_a_damaged_one(index, tmp_path, monkeypatch):
    index.apply([rollout("a")])
    index._db.conn.execute("PRAGMA busy_timeout=10")
    with contextlib.closing(sqlite3.connect(tmp_path / "index.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(errors.StoreUnavailable):
            index.apply([rollout("b")])
        other.execute("ROLLBACK")
    assert index.apply([rollout("b")]) == 1 and len(index.etags([rollout(name).key for name in "ab"])) == 2


def test_a_disk_that_was_full_as_the_first_rows_came_hides_none_later(index):
    """sqlite-utils tries out once what SQLite can do; tried on a full disk that said no, and new rows were dropped."""
    index._db.conn.execute(
        "PRAGMA max_page_count=1"
    )  # None below what the file has is taken: it can not grow.
    with pytest.raises(errors.StoreUnavailable, match="full"):
        index.apply([rollout(f"r{number}", text="y" * 500) for number in range(40)])
    index._db.conn.execute("PRAGMA max_page_count=1000000")
    assert index.apply([rollout(f"r{number}") for number in range(5)]) == 5
    assert {row["rollout"] for row in index.rollouts("acme", "support")} == {"r0", "r1", "r2", "r3", "r4"}


async def test_comparing_with_a_list_takes_in_what_differs_and_nothing_else(index):
    store = stores.MemoryStore()
    for number in range(10):
        head = rollout(f"r{number}")
        await heads.move(store, heads.Head(head.key, head.body, None), {}, fmt=rollouts.HEAD_FORMAT)
    memory = heads.Head(keys.memory_head("acme", "support"), {"project": "acme", "memory": "support"}, None)
    await heads.move(store, memory, {"revision": 1, "manifest": "0" * 64}, fmt=revisions.HEAD_FORMAT)
    assert await lookup_index.reconcile(index, store) == (11, 11)
    assert await lookup_index.reconcile(index, store) == (0, 11)
    key = keys.rollout_head("acme", "support", "r3")
    head = await heads.read(store, key, fmt=rollouts.HEAD_FORMAT)
    await heads.move(store, head, {}, fmt=rollouts.HEAD_FORMAT)
    assert (
        await lookup_index.take_in(index, store, [key, key, keys.rollout_head("acme", "support", "gone")])
        == 1
    )
    assert await lookup_index.reconcile(index, store) == (0, 11)
    assert index.memories()[0]["revision"] == 1


def test_only_heads_newer_than_their_rows_are_worth_a_read(index):
    index.apply([rollout("a", 3), rollout("b", 1)])
    a, b, c = (rollout(name).key for name in "abc")
    assert index.behind({a: 3, b: 2, c: 1}) == sorted([b, c])
    # A bell without a counter says nothing of what it is about.
    assert index.behind({a: 0}) == [a]


async def test_a_replica_that_begins_reads_nothing_for_the_bells_of_the_past(index):
    class Counting(stores.MemoryStore):
        gets = 0

        async def get_many(self, wanted):
            self.gets += len(wanted)
            return await super().get_many(wanted)

    store, bus = Counting(), buses.MemoryBus()
    for counter in (1, 2, 3):
        await store.put(rollout("a").key, envelope.dump(rollout("a", counter).body))
        bell = models.Changed(kind="rollout", project="acme", memory="support", rollout="a", counter=counter)
        await record.ring(bus, [bell])
    stage = index_consumer.IndexStage(store, index)
    assert await stage.reconcile() == (1, 1)
    store.gets = 0
    assert await stage.process([one async for one in bus.read("changed")]) == 0 and store.gets == 0
    await store.put(rollout("a").key, envelope.dump(rollout("a", 4).body))
    await record.ring(
        bus, [models.Changed(kind="rollout", project="acme", memory="support", rollout="a", counter=4)]
    )
    assert await stage.process([one async for one in bus.read("changed")]) == 1 and store.gets == 1


async def test_a_file_that_is_deleted_under_the_process_is_made_again_by_the_next_list(index):
    store = stores.MemoryStore()
    await store.put(rollout("a").key, envelope.dump(rollout("a").body))
    assert await lookup_index.reconcile(index, store) == (1, 1)
    for path in index.path.parent.glob("index.db*"):
        path.unlink()
    assert await lookup_index.reconcile(index, store) == (1, 1) and index.path.exists()
    assert [row["rollout"] for row in index.rollouts("acme", "support")] == ["a"]


def test_the_totals_of_a_memory_follow_its_rollouts(index):
    index.apply([rollout("a", runs=2), rollout("b", runs=1), rollout("c", runs=4, project="zoo")])
    index.apply([rollout("a", 2, runs=5), rollout("a", 3, runs=6), rollout("b", 1, runs=9)])
    found = {row["project"]: (row["rollouts"], row["runs"]) for row in index.memories()}
    assert found == {"acme": (2, 7), "zoo": (1, 4)}


def test_of_a_head_that_comes_twice_the_newer_counts_in_any_order(index):
    assert index.apply([rollout("a", 3, text="third"), rollout("a", 2, text="second")]) == 1
    assert index.search("third", "acme", "support") and not index.search("second", "acme", "support")


def test_pages_of_lists_meet_every_row_once_in_order(index):
    times = ["2026-01-02", "unknown", "2026-01-02", "2026-01-01", "unknown", "2026-01-03", "2026-01-02"]
    made = [rollout(f"r{number}") for number in range(len(times))]
    for head, time in zip(made, times, strict=True):
        head.body["updated_at"] = time
        head.body["runs"] = {"run": {**head.body["runs"][f"run-{head.body['rollout']}-0"], "ended_at": time}}
    index.apply(made)

    def walked(page, place):
        found, after = [], None
        while rows := page(after):
            found += rows
            after = place(rows[-1])
        return found

    rollouts = walked(
        lambda after: index.rollouts("acme", "support", limit=2, after=after),
        lambda row: (rows_of.place(row["updated_at"]), row["rollout"]),
    )
    assert [row["rollout"] for row in rollouts] == ["r5", "r0", "r2", "r6", "r3", "r1", "r4"]
    for project in ("acme", None):
        runs = walked(
            lambda after, project=project: index.recent_runs(project, limit=2, after=after),
            rows_of.run_place,
        )
        assert [row["rollout"] for row in runs] == ["r5", "r6", "r2", "r0", "r3", "r4", "r1"]


@pytest.mark.parametrize(
    "question",
    [
        lambda index: index.rollouts("acme", "support"),
        lambda index: index.rollouts("acme", "support", after=("2026-01-01", "a")),
        lambda index: index.recent_runs("acme"),
        lambda index: index.recent_runs("acme", after=("2026-01-01", "support", "a", "r", 1)),
        lambda index: index.runs("a", "acme"),
        lambda index: index.snapshots("acme"),
        lambda index: index.tagged("acme"),
    ],
    ids=["rollouts", "rollouts-on", "runs", "runs-on", "run", "snapshots", "tagged"],
)
def test_no_list_of_a_project_looks_at_every_row(index, question):
    """A page of a hundred thousand rollouts must cost what one of ten does."""
    asked = []
    index._db.conn.set_trace_callback(asked.append)
    question(index)
    index._db.conn.set_trace_callback(None)
    (sql,) = asked
    plan = [row[3] for row in index._db.conn.execute(f"EXPLAIN QUERY PLAN {sql}")]
    assert not [step for step in plan if step.startswith("SCAN")], plan
    # The few runs of one name may be sorted.
    sorts = [step for step in plan if "TEMP B-TREE" in step]
    assert not sorts or any("MULTI-INDEX OR" in step for step in plan), plan


async def test_a_large_store_is_listed_less_often_unless_the_file_lacks_what_the_last_list_brought(index):
    store = stores.MemoryStore()
    for number in range(20):
        await store.put(rollout(f"r{number}").key, envelope.dump(rollout(f"r{number}").body))
    stage = index_consumer.IndexStage(store, index)
    assert stage.list_seconds(least=0.01, most=9) == 0.01, "nothing was listed yet"
    await stage.reconcile()
    assert stage.list_seconds(least=0.01, most=9) == pytest.approx(20 * 3 / 1000)
    assert stage.list_seconds(least=0.01, most=0.02) == 0.02 and stage.list_seconds(least=5, most=9) == 5
    for path in index.path.parent.glob("index.db*"):
        path.unlink()
    assert stage.list_seconds(least=0.01, most=9) == 0.01 and index.rollouts("acme", "support") == []
    await stage.reconcile()
    assert stage.list_seconds(least=0.01, most=9) > 0.01 and len(index.rollouts("acme", "support")) == 20
