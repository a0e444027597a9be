"""Isolation below HTTP: what one project reads is the same whether the other is there or not.

Goal: issue 7, point 4; invariant 9. Method: arbitrary operations of two projects on one store and one bus, and the same
of one of them alone; then every read of that one is compared. Names are chosen to be mistaken for each other.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import tempfile
from pathlib import Path

import hypothesis
import mutating
import pytest
import targets
from hypothesis import strategies as st

import made
from runlore import clock, errors, producer
from runlore.bus import port as bus_port
from runlore.commit import keys, marks, revisions
from runlore.consumers import consolidate, dead, record, snapshot
from runlore.events import envelope, ids
from runlore.lookup import index as lookup_index
from runlore.lookup import seeds
from runlore.snapshots import library
from runlore.store import directory, port
from runlore.testing import buses, stores
from runlore.testing.world import finish

PAIRS = (("a", "a.a"), ("acme", "acme-2"), ("x", "x_"), ("acme", "acme.support"), ("a-b", "a"), ("0", "00"))
MEMORIES = ("support", "support.2", "a")
ROLLOUTS = ("c", "c.1", "c/1", "C", "rl-c")
TEXTS = ("Find the blue folder", "Find the red folder", "canary of ours")
OPERATIONS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from(("run", "run", "claim", "theirs", "consolidate", "archive")),
        st.sampled_from(MEMORIES[:2]),
        st.sampled_from(ROLLOUTS),
        st.integers(1, 3),
        st.sampled_from((None, "ana", "bert")),
    ),
    min_size=2,
    max_size=8,
)


class Still(clock.World):
    """A clock that stands still, so that two worlds differ in nothing but who is in them."""

    def now(self):
        return made.START

    async def sleep(self, seconds):
        return None


class World:
    """One store and one bus, and everything that happens to them, a step at a time."""

    def __init__(self):
        self.store, self.bus = stores.MemoryStore(), buses.MemoryBus()
        self.count = 0

    def do(self, project, operation):
        _, kind, memory, rollout, number, subject = operation
        if kind == "consolidate":
            finish(consolidate.ConsolidateStage(self.store, self.bus).work(project, memory))
            return
        payload = made.payload(number, text=TEXTS[number % 3])
        data = made.data(
            number, rollout=rollout, project=project, memory=memory, record=payload, subject=subject
        )
        body = data["record"].encode()
        claim = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body)}
        if kind == "claim":
            finish(producer.put_claim(self.store, project, body))
        if kind == "archive":
            data["workspaces"] = [{"archive": claim}]
        if kind in ("claim", "theirs"):
            data = {**data, "record": None, "record_claim": claim}
        event = envelope.of_run(data, source="/t")
        self.count += 1
        given = bus_port.Message(
            "runs", hash_of(project), self.count, b"k", event.value(), event.headers(), 0.0
        )
        finish(record.RecordStage(self.store, self.bus).process([given]))
        if kind == "archive":
            asyncio.run(snapshot.SnapshotStage(self.store, self.bus).process([given]))

    def reads(self, project):
        """Everything that is read of a project, but for what a write is named by."""
        reader, out = revisions.Reader(self.store), {}
        for memory in MEMORIES:
            head = finish(reader.head(project, memory))
            out[memory, "revision"] = head.body.get("revision"), sorted(head.body.get("held", {}))
            for rollout in ROLLOUTS:
                for subject in (None, "ana"):
                    seed = finish(seeds.resolve(reader, project, memory, rollout, subject=subject))
                    opened = finish(seeds.open_seed(reader, seed)) if seed is not None else None
                    shown = {path: one.text for path, one in opened.files.items()} if opened else None
                    out[memory, rollout, subject] = shown
        out["searches"] = self.searches(project)
        out["dead"] = sorted(
            one.reason for one in finish(dead.read_all(self.bus)) if dead.project_of(one) == project
        )
        kinds = (keys.RECORDS, keys.ROLLOUTS, keys.CLAIMS, keys.WORKSPACES)
        out["objects"] = [row.key for kind in kinds for row in finish(_all(self.store, f"{project}/{kind}/"))]
        return out

    def searches(self, project):
        out = []
        with tempfile.TemporaryDirectory() as folder:
            index = lookup_index.Index(Path(folder, "index.db"))
            finish(lookup_index.reconcile(index, self.store))
            for memory in MEMORIES:
                rows = index.rollouts(project, memory)
                out.append([(row["rollout"], row["runs"], row["subject"]) for row in rows])
                for text in TEXTS:
                    found = index.search(text, project, memory, subject="ana")
                    out.append(sorted((row["rollout"], row["snippet"]) for row in found))
            index.close()
        return out


def hash_of(project):
    return int(hashlib.sha256(project.encode()).hexdigest()[:6], 16)


async def _all(store, prefix):
    return [row async for row in store.list(prefix)]


@hypothesis.settings(max_examples=12, derandomize=True, database=None, deadline=None)
@hypothesis.given(pair=st.sampled_from(PAIRS), operations=OPERATIONS)
def test_what_a_project_reads_is_the_same_whoever_else_is_there(pair, operations):
    clock.install(Still())
    try:
        both, alone = World(), World()
        for operation in operations:
            both.do(pair[operation[0]], operation)
            if operation[0] == 0:
                alone.do(pair[0], operation)
        assert both.reads(pair[0]) == alone.reads(pair[0])
    finally:
        clock.install(clock.World())


def test_what_is_compared_would_show_a_leak():
    """The check of the check: another run in the same rollout is seen, in a seed and in a search."""
    worlds = [World(), World()]
    for number, world in enumerate(worlds, 1):
        world.do("acme", (0, "run", "support", "c", number, None))
        world.do("acme", (0, "consolidate", "support", "c", number, None))
    one, other = (world.reads("acme") for world in worlds)
    assert one["support", "c", None] != other["support", "c", None]
    assert one["searches"] != other["searches"] and one["objects"] != other["objects"]


@hypothesis.settings(max_examples=200, derandomize=True, database=None)
@hypothesis.given(
    st.text(max_size=20)
    | st.sampled_from([*ROLLOUTS, *(one for one in mutating.ODD if isinstance(one, str))]),
    st.text(max_size=20) | st.sampled_from([*ROLLOUTS, "acme/records", "../zoo", "acme"]),
)
def test_no_id_makes_a_key_outside_of_its_project_or_the_key_of_another_id(one, other):
    made_keys = []
    for given in (one, other):
        try:
            rollout = ids.alias(ids.check_id(given, "rollout").strip())
        except errors.InvalidId:
            return
        found = [
            keys.rollout_head("acme", "support", rollout), keys.record("acme", "support", rollout, rollout, 1),
            keys.snapshot_head("acme", rollout, rollout), keys.outcome("acme", rollout, rollout, rollout, 1),
            keys.side_head("acme", "support", "side"),
        ]  # fmt: skip
        assert all(port.check_key(key).startswith("acme/") for key in found)
        made_keys.append(found)
    same = one.strip() == other.strip()
    assert (made_keys[0][0] == made_keys[1][0]) is same and (made_keys[0][2] == made_keys[1][2]) is same


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "A", "é", "_dead", "_operations", "a" * 64, "con", "a\n", "rl-x", " a"]
)
def test_what_is_no_name_of_a_project_is_none_anywhere(name):
    with pytest.raises(errors.InvalidId):
        ids.check_name(name, "project")


@pytest.mark.parametrize("kind", ["memory", "directory"])
async def test_a_listing_of_one_project_shows_no_object_of_one_whose_name_it_begins(tmp_path, kind):
    store = stores.MemoryStore() if kind == "memory" else directory.DirectoryStore(tmp_path / "store")
    names = ["a", "a.b", "a-b", "a_b", "a0", "ab"]
    for project in names:
        await store.put(keys.claim(project, "a" * 64), project.encode())
        await marks.put(store, project, "support", ["c"])
    for project in names:
        listed = [row.key async for row in store.list(f"{project}/")]
        assert len(listed) == 2 and all(key.split("/")[0] == project for key in listed)
    assert await marks.projects(store) == sorted(names)
    assert await marks.marked(store) == {(project, "support") for project in names}


async def test_the_same_bytes_in_two_projects_are_two_objects_and_erasing_one_leaves_the_other():
    store = stores.MemoryStore()
    body = b'{"input":[]}'
    for project in ("acme", "zoo"):
        await producer.put_claim(store, project, body)
    sha256 = hashlib.sha256(body).hexdigest()
    await store.delete(keys.claim("zoo", sha256))
    assert (await store.get(keys.claim("acme", sha256))).body == body
    assert await store.get(keys.claim("zoo", sha256)) is None


async def test_a_snapshot_of_another_project_is_not_there_whatever_names_it():

    store, bus = stores.MemoryStore(), buses.MemoryBus()
    saved = await library.Snapshots(store, "zoo").ingest(io.BytesIO(targets.archives()[0]))
    data = made.data(1, workspaces=[{"snapshot": str(saved.ref)}])
    event = envelope.of_run(data, source="/t")
    given = bus_port.Message("runs", 0, 0, b"k", event.value(), event.headers(), 0.0)
    done = await snapshot.SnapshotStage(store, bus).process([given])
    assert [one.error.kind for one in done.outcomes] == ["snapshot_missing"]
    for ref in (str(saved.ref), saved.ref.id):
        with pytest.raises(errors.SnapshotNotFound):
            await library.Snapshots(store, "acme").open(ref)
    # And saving the same bytes shares nothing: as many objects again, none of them the other's.
    before = {row.key for row in await _all(store, "zoo/")}
    await library.Snapshots(store, "acme").ingest(io.BytesIO(targets.archives()[0]))
    assert {row.key for row in await _all(store, "zoo/")} == before and await _all(store, "acme/")


async def test_an_edit_of_a_seed_of_another_project_has_no_base():
    store, bus = stores.MemoryStore(), buses.MemoryBus()
    seed = seeds.Seed("zoo", "support", 1, "0" * 64, "c", None, "2999-01-01T00:00:00+00:00")
    files = [{"path": "MEMORY.md", "text": "x\n", "base_sha256": hashlib.sha256(b"").hexdigest()}]
    data = {
        "project": "acme",
        "memory": "support",
        "run_id": "r",
        "edit_id": "e",
        "revision": 1,
        "seed": seed.id,
    }
    event = envelope.of_edit({**data, "files": files}, source="/t")
    given = bus_port.Message("runs", 0, 0, b"k", event.value(), event.headers(), 0.0)
    done = await record.RecordStage(store, bus).process([given])
    assert [one.error.kind for one in done.outcomes] == ["edit_base_unknown"]
    (letter,) = await dead.read_all(bus)
    assert "zoo" not in letter.message and not await _all(store, "zoo/")
