"""What a person does at 3 a.m.: revert, review, explain; and what is a cache, broken."""

from __future__ import annotations

import random

import homes
import pytest

import made
from runlore.commit import keys


def filled(home, *ranges):
    for first, last in ranges:
        home.emit(made.lines(made.event(number) for number in range(first, last)))
        home.up_once()


def state_of(home, run):
    return {one["attempt"]: one["state"] for one in home.json("explain", run)["runs"]}


def test_a_revert_brings_the_old_notes_back_and_holds_what_came_since(home):
    filled(home, (0, 4), (4, 9))
    paths = [one["path"] for one in home.json("show", "--at", 1)["files"]]
    old = {path: home.json("show", path, "--at", 1)["text"] for path in paths}
    assert home.json("revert", "support", "--to", 1, code=2)["error"]["kind"] == "invalid_input"
    told = home.json("revert", "support", "--to", 1, "--reason", "bad merge")
    assert told["revision"] == 3 and told["reverted_to"] == 1
    assert {path: home.json("show", path)["text"] for path in old} == old
    assert {one["path"] for one in home.json("show")["files"]} == set(old)
    # conv-0 and conv-1 had a run before and one since.
    assert told["held"] == [f"conv-{number}" for number in (0, 1, 4, 5, 6)]
    assert {one["rollout"] for one in home.json("review")["held"]} == set(told["held"])
    assert state_of(home, "run-4") == {1: "held"} and state_of(home, "run-2") == {1: "consolidated"}
    assert home.json("log")["revisions"][0]["reason"] == "revert to 1: bad merge"
    home.json("revert", "support", "--to", 3, "--reason", "again", code=4)

    # Later runs of what was reverted stay held; what is new comes in.
    filled(home, (11, 15))
    assert state_of(home, "run-11") == {1: "held"} and state_of(home, "run-14") == {1: "held"}
    home.emit(made.lines([made.event(20, rollout="conv-new")]))
    home.up_once()
    assert state_of(home, "run-20") == {1: "consolidated"}
    assert home.json("status")["consolidate"]["marks"] == 0
    home.verified()

    home.json("review", "approve", "conv-4", *homes.MEANT, "--reason", "looked at it")
    home.up_once()
    assert (state_of(home, "run-4"), state_of(home, "run-5")) == ({1: "consolidated"}, {1: "held"})
    home.json("review", "approve", "--all", *homes.MEANT, "--reason", "all harmless")
    home.up_once()
    assert home.json("review")["held"] == [] and state_of(home, "run-14") == {1: "consolidated"}
    home.json("review", "approve", "--all", *homes.MEANT, "--reason", "nothing left", code=3)
    home.verified()

    calm = homes.Home(home.root.with_name("calm"))
    numbers = [*range(9), *range(11, 15)]
    calm.emit(made.lines([*(made.event(number) for number in numbers), made.event(20, rollout="conv-new")]))
    calm.up_once()
    ended, wanted = home.meaning(), calm.meaning()
    for name in wanted:
        assert ended[name] == wanted[name], f"{name} does not mean the same as without revert and release"


def test_a_held_rollout_is_released_by_the_name_that_review_lists(home):
    filled(home, (0, 2))
    home.emit(made.lines([made.event(2, rollout="Ticket 7/B")]))
    home.up_once()
    home.json("revert", "support", "--to", 1, "--reason", "x")
    (listed,) = home.json("review")["held"]
    assert listed["rollout"].startswith("rl-")
    home.json("review", "approve", listed["rollout"], *homes.MEANT, "--reason", "y")
    home.up_once()
    assert state_of(home, "Ticket 7/B") == {1: "consolidated"} == state_of(home, listed["rollout"])


def test_explain_tells_the_state_at_every_step(home):
    event = made.event(1)
    home.emit(made.lines([event]))
    assert (
        state_of(home, event["id"]) == {1: "waiting"} == state_of(home, "run-1") == state_of(home, "conv-1")
    )

    async def record(opened):
        from runlore.consumers import record as stage

        consumer = await opened.bus.consumer(group="record", topics=["runs"])
        messages = await consumer.poll(records_max=100, timeout_seconds=1)
        done = await stage.RecordStage(opened.store, opened.bus).process(messages)
        await consumer.commit(done.offsets)

    home.opened(record)
    (story,) = home.json("explain", event["id"])["runs"]
    assert story["state"] == "recorded" and "up" in story["next"]
    assert home.json("status")["consolidate"]["marks"] == 1 and home.json("status")["causes"]
    home.up_once()
    (story,) = home.json("explain", event["id"])["runs"]
    assert story["state"] == "consolidated" and "revision 1" in story["next"]
    # Every object that it names is there.
    there = home.objects()
    assert all(step["object"] in there for step in story["steps"] if "object" in step)


def test_a_late_attempt_is_noted_as_superseded(home):
    events = [
        made.event(7, attempt=attempt, record=made.payload(7, text=f"try {attempt}")) for attempt in (3, 1, 2)
    ]
    for event in events:
        home.emit(made.lines([event]))
        home.up_once()
    assert state_of(home, "run-7") == {1: "superseded", 2: "superseded", 3: "consolidated"}
    assert state_of(home, events[1]["id"]) == {1: "superseded"}
    assert len(home.objects(keys.RECORDS)) == 3
    home.verified()


def answers(home):
    words = [("log",), ("explain",), ("explain", "run-3"), ("search", "task"), ("seed",), ("review",)]
    return [home.json(*one) for one in words] + [home.json("status")["memories"]]


def test_an_index_that_is_gone_is_made_again(home):
    filled(home, (0, 9))
    before = answers(home)
    for path in home.root.glob("index.db*"):
        path.unlink()
    assert answers(home) == before


@pytest.mark.parametrize("seed", range(6))
def test_an_index_with_broken_pages_is_made_again(home, seed):
    """Each of these overwrites whole pages, somewhere or everywhere; no command fails on it twice."""
    filled(home, (0, 30))
    before = answers(home)
    file = home.root / "index.db"
    for path in home.root.glob("index.db-*"):
        path.unlink()
    raw = bytearray(file.read_bytes())
    dice = random.Random(seed)
    pages = range(len(raw) // 4096)
    broken = {0: list(pages), 1: list(pages)[1:], 2: [0]}.get(seed, dice.sample(pages, len(pages) // 2))
    for page in broken:
        raw[page * 4096 : (page + 1) * 4096] = dice.randbytes(4096) if seed % 2 else bytes(4096)
    file.write_bytes(raw if seed != 2 else raw[:5000])
    for words in (("status",), ("search", "task"), ("explain",), ("log",)):
        home.call(*words, "--json", code=None)
    assert answers(home) == before
    home.up_once()


def test_a_head_that_can_not_be_read_hides_no_other_memory(home):
    filled(home, (0, 3))
    home.emit(made.lines([made.event(5, project="zoo", memory="animals")]))
    home.up_once()
    (key,) = [key for key in home.objects(keys.MEMORIES) if key.startswith("acme/")]
    path = home.root / "store" / key
    assert path.exists()
    path.write_bytes(b"{torn")
    for path in home.root.glob("index.db*"):
        path.unlink()
    assert {row["project"] for row in home.json("status")["memories"]} == {"acme", "zoo"}
    assert home.json("log", "-p", "zoo", "-m", "animals")["revisions"]
    assert home.json("seed", "x", *homes.MEANT, code=6)["error"]["kind"] == "corrupt"
    # The other memory goes on, also in the same process; this one says why it does not.
    home.emit(made.lines([made.event(6, project="zoo", memory="animals"), made.event(7)]))
    home.json("up", "--once", code=6)
    assert home.json("log", "-p", "zoo", "-m", "animals")["revisions"][0]["revision"] == 2
    process = home.up()

    def causes():
        return [cause for cause in home.json("status")["causes"] if "acme/support" in cause]

    homes.wait_until(causes, "the cause to be told")
    for _ in range(3):
        assert "corrupt" in causes()[0], "the cause comes and goes"
    assert home.json("status")["consolidate"]["state"] == "running"
    homes.kill(process)
