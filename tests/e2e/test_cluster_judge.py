"""The judge of the cluster test can complain: each way to lose, double or change something is told.

The world that it judges is made by the real stages on the fakes, so this needs no server. Then one thing at a time
is broken in what was read, or in the ledger; a judge that stays silent at any of them proves nothing.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import io
import json
import re

import pytest
from cluster import judge, ledger, plan, reading

from runlore import producer
from runlore.lookup.index import Index
from runlore.settings import Settings
from runlore.testing.buses import MemoryBus
from runlore.testing.stores import MemoryStore
from runlore.worker.loop import Worker

SEED = 20260901
EVENTS, ROLLOUTS = 160, 12


class Historic(MemoryStore):
    """The store in memory, with every version of every object."""

    def __init__(self):
        super().__init__()
        self.versions = {}

    def _write(self, key, body):
        etag = super()._write(key, body)
        self.versions.setdefault(key, []).append(reading.Version(etag, bytes(body)))
        return etag

    def _remove(self, key):
        if self.body(key) is not None:
            self.versions[key].append(reading.Version("", None, deleted=True))
        super()._remove(key)


async def happen(made, folder):
    """Send the plan in four parts, with the worker on each: what is there then, and the ledger."""
    store, bus, index = Historic(), MemoryBus(), Index(folder / "index.db")
    settings = Settings(home=folder, workspace_folders=[folder])
    book = ledger.Ledger()
    try:
        sends = made.sends
        for part in range(4):
            numbers = range(part * len(sends) // 4, (part + 1) * len(sends) // 4)
            for number in numbers:
                if sends[number].archive:
                    await producer.put_claim(store, *sends[number].archive)
            raw = b"".join(sends[number].raw for number in numbers)
            async for _ in producer.Producer(store, bus).emit(io.BytesIO(raw), source="/cluster-test"):
                pass
            book.tried.update(numbers)
            book.acknowledged.update(numbers)
            await Worker(store, bus, index, settings, stages=("record", "snapshot", "consolidate")).drain()
        topics = {name: [message(one) async for one in bus.read(name)] for name in ("runs", "dead")}
    finally:
        index.close()
    return reading.World(store.versions, **topics), book


def message(one):
    return reading.Message(one.partition, one.offset, one.value, dict(one.headers))


@pytest.fixture(scope="module")
def happened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    made = plan.make(SEED, events=EVENTS, rollouts=ROLLOUTS, folder=folder)
    world, book = asyncio.run(happen(made, folder))
    return made, book, world


@pytest.fixture
def scene(happened):
    """A copy that may be broken."""
    made, book, world = happened
    return Scene(copy.deepcopy(made), copy.deepcopy(book), copy.deepcopy(world))


class Scene:
    def __init__(self, made, book, world):
        self.plan, self.book, self.world = made, book, world

    @property
    def complaints(self):
        return judge.judge(self.plan, self.book, self.world)

    def keys(self, kind):
        return [key for key in self.world.objects if key.split("/")[1] == kind]

    def key(self, kind):
        """One that has a neighbour before and after it."""
        return self.keys(kind)[len(self.keys(kind)) // 2]

    def json(self, key):
        return json.loads(self.world.objects[key])

    def put(self, key, body):
        """Another version of an object."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        version = reading.Version(hashlib.sha256(raw).hexdigest(), raw)
        self.world.versions.setdefault(key, []).append(version)

    def replace(self, key, body):
        """Other bytes, as if nothing else had ever been there."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.world.versions[key][-1] = reading.Version(self.world.versions[key][-1].etag, raw)

    def number_of(self, label):
        return next(number for number, send in enumerate(self.plan.sends) if send.label == label)

    def plain_run(self):
        """A run with one attempt, sent once, without workspace."""
        for runs in self.plan.identities.values():
            (first, *others) = runs
            alone = not others and first.files is None and not first.letters
            attempts = [one for one in self.plan.identities if one[:4] == first.identity[:4]]
            sends = [send for send in self.plan.sends if send.label == first.label]
            if alone and len(attempts) == 1 and len(sends) == 1:
                return first
        raise AssertionError

    def workspace_head(self):
        return next(key for key in self.keys("workspaces") if "moved_by" in self.json(key))


def test_the_judge_has_nothing_to_say_where_all_is_well(scene):
    assert scene.complaints == []
    kinds = {key.split("/")[1] for key in scene.world.objects}
    # A world without one of these would prove less than it says.
    assert kinds >= {
        "records",
        "rollouts",
        "memories",
        "manifests",
        "packs",
        "claims",
        "workspaces",
        "snapshots",
    }
    reasons = {poison.reason for poison in scene.plan.poison.values()}
    assert len(reasons) >= 4 and any(len(runs) > 1 for runs in scene.plan.identities.values())
    assert any(run.attempt > 1 for run in scene.plan.runs.values())
    assert any(run.child for run in scene.plan.runs.values())


def a_record_is_lost(scene):
    del scene.world.versions[scene.key("records")]


def a_record_is_doubled_as_another_run(scene):
    key = scene.key("records")
    scene.put(key.replace("/run-", "/run-9"), scene.world.objects[key])


def a_record_is_doubled_as_another_attempt(scene):
    key = scene.key("records")
    meta, line = scene.world.objects[key].split(b"\n", 1)
    meta = json.loads(meta)
    scene.put(f"{key[:-1]}7", json.dumps({**meta, "attempt": 7}).encode() + b"\n" + line)


def a_byte_of_a_record_differs(scene):
    key = scene.key("records")
    scene.replace(key, scene.world.objects[key].replace(b"Please", b"please"))


def a_record_is_of_another_event(scene):
    key = scene.key("records")
    scene.replace(key, scene.world.objects[key].replace(b'"event":{"id":"', b'"event":{"id":"x'))


def a_record_is_written_again_with_the_same_bytes(scene):
    key = scene.key("records")
    scene.put(key, scene.world.objects[key])


def a_record_was_deleted_and_written_again(scene):
    key = scene.key("records")
    versions = scene.world.versions[key]
    versions[:] = [versions[0], reading.Version("", None, deleted=True), versions[0]]


def a_secret_is_kept(scene):
    start = plan.REDACTED.removesuffix("]").encode()
    key = next(key for key in scene.keys("records") if start in scene.world.objects[key])
    hidden = re.compile(re.escape(start) + rb":[0-9a-f]{12}\]")
    scene.replace(key, hidden.sub(plan.SECRET.encode(), scene.world.objects[key]))


def a_run_drops_out_of_its_rollouts_head(scene):
    key = scene.key("rollouts")
    head = scene.json(key)
    head["runs"].pop(sorted(head["runs"])[0])
    scene.replace(key, head)


def a_run_that_nobody_sent_is_in_a_head(scene):
    key = scene.key("rollouts")
    head = scene.json(key)
    head["runs"]["run-stranger"] = next(iter(head["runs"].values()))
    scene.replace(key, head)


def a_head_has_other_bytes_of_a_run(scene):
    key = scene.key("rollouts")
    head = scene.json(key)
    head["runs"][sorted(head["runs"])[0]]["received"] = "0" * 32
    scene.replace(key, head)


def a_rollouts_head_is_lost(scene):
    del scene.world.versions[scene.key("rollouts")]


def a_head_goes_back(scene):
    key = next(key for key in scene.keys("rollouts") if len(scene.world.versions[key]) > 1)
    versions = scene.world.versions[key]
    versions.append(versions[0])


def a_head_moves_twice_from_one_version(scene):
    key = next(key for key in scene.keys("rollouts") if len(scene.world.versions[key]) > 1)
    versions = scene.world.versions[key]
    versions.insert(-1, versions[-1])


def a_head_was_deleted_and_began_again(scene):
    versions = scene.world.versions[scene.key("rollouts")]
    versions.insert(len(versions) - 1, reading.Version("", None, deleted=True))


def the_last_revision_does_not_cover_the_last_runs(scene):
    key = next(key for key in scene.keys("memories") if len(scene.world.versions[key]) > 1)
    scene.world.versions[key].pop()


def a_memory_has_no_head(scene):
    del scene.world.versions[scene.key("memories")]


def a_manifest_is_lost(scene):
    del scene.world.versions[first_manifest(scene)]


def a_manifest_has_other_bytes(scene):
    key = first_manifest(scene)
    scene.replace(key, scene.world.objects[key].replace(b'"tokens":0', b'"tokens":1'))


def first_manifest(scene):
    return next(key for key in scene.keys("manifests") if "/000000000001-" in key)


def a_pack_is_lost(scene):
    (name,) = {pack["sha256"] for pack in last_manifest(scene)["packs"][:1]}
    del scene.world.versions[next(key for key in scene.keys("packs") if key.endswith(name))]


def a_pack_has_other_bytes(scene):
    name = last_manifest(scene)["packs"][0]["sha256"]
    key = next(key for key in scene.keys("packs") if key.endswith(name))
    body = scene.world.objects[key]
    scene.replace(key, body[:20] + bytes([body[20] ^ 1]) + body[21:])


def last_manifest(scene):
    head = scene.json(scene.key("memories"))
    return scene.json(next(key for key in scene.keys("manifests") if key.endswith(head["manifest"])))


def an_object_of_an_unknown_kind(scene):
    scene.put("acme/strange/00/thing", b"{}")


def a_claim_that_nobody_sent(scene):
    scene.put("acme/claims/00/" + "0" * 64, b"bytes")


def a_mark_is_left(scene):
    scene.put("acme/marks/00/support/x.json", b"{}")


def a_workspaces_line_is_lost(scene):
    del scene.world.versions[scene.workspace_head()]


def a_workspace_that_nobody_left(scene):
    key = scene.workspace_head()
    head = scene.json(key)
    head["moved_by"]["run"] = "run-stranger"
    scene.replace(key, head)


def a_child_moves_its_parents_line(scene):
    child = next(run for run in scene.plan.runs.values() if run.child)
    scene.plan.runs.update(
        {
            label: plan.dataclasses.replace(run, child=True)
            for label, run in scene.plan.runs.items()
            if run.files is not None and run is not child
        }
    )


def a_workspace_holds_other_files(scene):
    run = next(run for run in scene.plan.runs.values() if run.files)
    run.files["more.txt"] = "was left, and is not there"


def a_snapshot_has_other_bytes(scene):
    key = scene.key("snapshots")
    body = scene.world.objects[key]
    scene.replace(key, body[:20] + bytes([body[20] ^ 1]) + body[21:])


def an_acknowledged_event_is_not_on_the_bus(scene):
    run = scene.plain_run()
    scene.world.runs[:] = [one for one in scene.world.runs if judge.label_of(one) != run.label]


def an_event_on_the_bus_that_nobody_tried_to_send(scene):
    number = scene.number_of(scene.plain_run().label)
    del scene.book.tried[number], scene.book.acknowledged[number]


def an_event_is_on_the_bus_more_often_than_it_was_tried(scene):
    run = scene.plain_run()
    one = next(one for one in scene.world.runs if judge.label_of(one) == run.label)
    scene.world.runs.append(reading.Message(one.partition, one.offset + 1000, one.value, one.headers))


def an_acknowledged_run_has_no_effect_at_all(scene):
    """Sent and acknowledged, and nowhere: neither the log nor the store knows it."""
    run = scene.plain_run()
    an_acknowledged_event_is_not_on_the_bus(scene)
    del scene.world.versions[judge.record_key(*run.identity)]


def a_poison_event_is_not_dead(scene):
    scene.world.dead[:] = [one for one in scene.world.dead if judge.label_of(one) not in scene.plan.poison]


def a_poison_event_is_dead_for_another_reason(scene):
    letter = next(one for one in scene.world.dead if judge.label_of(one) in scene.plan.poison)
    letter.headers["rl_reason"] = b"internal"


def a_good_event_is_dead(scene):
    run = scene.plain_run()
    one = next(one for one in scene.world.runs if judge.label_of(one) == run.label)
    where = f"runs/{one.partition}/{one.offset}"
    fields = {
        "rl_dead": hashlib.sha256(where.encode()).hexdigest()[:16],
        "rl_reason": "invalid_event",
        "rl_topic": "runs",
        "rl_partition": str(one.partition),
        "rl_offset": str(one.offset),
    }
    headers = {**one.headers, **{name: text.encode() for name, text in fields.items()}}
    scene.world.dead.append(reading.Message(0, 10_000, one.value, headers))


def a_letter_comes_again_under_another_name(scene):
    letter = scene.world.dead[0]
    headers = {**letter.headers, "rl_dead": b"0123456789abcdef"}
    scene.world.dead.append(reading.Message(0, 10_000, letter.value, headers))


def a_letter_is_of_another_place(scene):
    letter = scene.world.dead[0]
    letter.headers["rl_offset"] = b"9999"


def of_two_that_contradict_each_other_none_is_dead(scene):
    scene.world.dead[:] = [one for one in scene.world.dead if one.headers["rl_reason"] != b"run_conflict"]


def a_bad_workspace_is_not_told(scene):
    stage = [one for one in scene.world.dead if judge.label_of(one) in scene.plan.runs]
    refused = [one for one in stage if one.headers["rl_reason"] != b"run_conflict"]
    scene.world.dead[:] = [one for one in scene.world.dead if one not in refused]


BROKEN = [
    value
    for name, value in list(globals().items())
    if callable(value)
    and name.startswith(("a_", "an_", "the_", "of_"))
    and getattr(value, "__module__", "") == __name__
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda one: one.__name__)
def test_the_judge_complains_when(scene, broken):
    broken(scene)
    assert scene.complaints


def test_a_letter_that_came_twice_and_a_send_that_was_tried_twice_are_no_fault(scene):
    """At least once: a letter may be written again under its name, a try may have landed without its reply."""
    scene.world.dead.append(scene.world.dead[0])
    scene.book.tried[scene.number_of(scene.plain_run().label)] += 1
    assert scene.complaints == []
