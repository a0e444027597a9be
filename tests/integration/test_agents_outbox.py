"""The outbox: a run is on the disk before it returns, once, for its owner alone, and within its bounds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

pytest.importorskip("agents", reason="openai-agents is not installed")

from runlore import errors
from runlore.agents import Runlore, delivery, outbox, port
from sandboxed import config, done, events, plain, seen, shell, worker

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(?!runlore)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def data(run="r1", attempt=1):
    return {"run_id": run, "attempt": attempt, "record": "{}"}


def waiting(box):
    return [entry for name in box.names() if (entry := box.read(name)) is not None]


@pytest.fixture
def box(tmp_path):
    return outbox.Outbox(tmp_path / "box")


@pytest.fixture
def tar(tmp_path):
    path = tmp_path / "w.tar"
    path.write_bytes(b"x" * 1000)
    return port.Left(path, None, {"counter": 1, "snapshot": "a" * 64})


def test_an_entry_comes_back_as_it_was_put(box, tar):
    assert box.put(data(), [tar]) == []
    (entry,) = waiting(box)
    assert entry.data == data() and entry.left[0].path.read_bytes() == b"x" * 1000
    assert (entry.left[0].agent, entry.left[0].base) == (tar.agent, tar.base)
    box.done(entry)
    assert waiting(box) == [] and tar.path.exists()
    box.done(entry)


def test_a_tar_that_the_sdk_replaces_later_is_not_changed_in_the_outbox(box, tar):
    box.put(data(), [tar])
    new = tar.path.with_name("new")
    new.write_bytes(b"y")
    new.replace(tar.path)
    assert waiting(box)[0].left[0].path.read_bytes() == b"x" * 1000


def test_everything_is_for_its_owner_alone(box, tar):
    box.put(data(), [tar])
    for path in [box.folder, *box.folder.rglob("*")]:
        if path.name != "delivering.lock":
            assert path.stat().st_mode & 0o077 == 0, path


def test_too_many_entries_are_refused_and_told(tmp_path):
    box = outbox.Outbox(tmp_path / "box", entries_max=2)
    for number in range(2):
        box.put(data(f"r{number}"), [])
    with pytest.raises(errors.OutboxFull):
        box.put(data("r3"), [])
    assert len(waiting(box)) == 2


def test_over_its_bytes_a_run_is_kept_without_its_workspace(tmp_path, tar):
    box = outbox.Outbox(tmp_path / "box", bytes_max=1500)
    assert box.put(data("r1"), [tar]) == []
    assert box.put(data("r2"), [tar]) == [tar]
    assert [len(one.left) for one in waiting(box)] == [1, 0]


def test_what_a_killed_process_left_half_done_is_no_entry_and_goes(box):
    box.make()
    half = box.folder / "waiting" / ".new-1"
    half.mkdir()
    assert waiting(box) == []
    os.utime(half, (1, 1))
    box.tidy()
    assert not half.exists()


def test_an_entry_that_can_not_be_read_is_set_aside_and_stops_no_other(box):
    box.put(data("bad"), [])
    box.put(data("good"), [])
    (box.folder / "waiting" / "bad.1" / "event.json").write_text("{")
    assert [one.data["run_id"] for one in waiting(box)] == ["good"]
    assert "can not be read" in (box.folder / "refused" / "bad.1" / "why.txt").read_text()


def test_one_of_two_that_share_it_delivers_at_a_time(box):
    other = outbox.Outbox(box.folder)
    with box.delivering() as mine:
        assert mine
        with other.delivering() as theirs:
            assert not theirs
    with other.delivering() as theirs:
        assert theirs


def test_the_sdk_s_own_files_are_bounded_by_bytes_but_no_young_one_goes(box, monkeypatch):
    import os
    import time

    monkeypatch.setattr(outbox, "SESSIONS_BYTES_MAX", 5)
    box.make()
    hours = {"now": 0, "old": 2, "older": 3}
    for name, age in hours.items():
        path = box.sessions / f"{name}.tar"
        path.write_bytes(b"x" * 4)
        os.utime(path, (time.time() - age * 3600,) * 2)
    box.tidy()
    assert [path.stem for path in box.sessions.iterdir()] == ["now"]
    (box.sessions / "new.tar").write_bytes(b"x" * 100)
    box.tidy()
    assert sorted(path.stem for path in box.sessions.iterdir()) == ["new", "now"]


def test_the_sdk_s_own_files_are_bounded_by_age(box):
    box.make()
    old, new = box.sessions / "old.tar", box.sessions / "new.tar"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (1, 1))
    box.tidy()
    assert not old.exists() and new.exists()


MANY, LARGE_BYTES = 1000, 2 * 1024 * 1024


@pytest.fixture
def full(box, monkeypatch):
    """As many runs as may wait, of megabytes each (one file under many names), and which of them were read."""
    box.put({"run_id": "r0", "attempt": 1, "group_id": "g", "record": "x" * LARGE_BYTES}, [])
    first = box.folder / "waiting" / "r0.1"
    for number in range(1, MANY):
        entry = first.with_name(f"r{number}.1")
        entry.mkdir()
        for path in first.iterdir():
            os.link(path, entry / path.name)
    read, read_bytes = [], Path.read_bytes

    def noted(path):
        read.append(path.parent.name)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", noted)
    return read


class Taking:
    """A backend that counts the runs that are in memory while it takes one."""

    def __init__(self, box):
        self.taken, self.at_once, self._alive = 0, 0, set()
        read = box.read

        def noted(name):
            entry = read(name)
            self._alive.add(name)
            weakref.finalize(entry, self._alive.discard, name)
            return entry

        box.read = noted

    async def send(self, data, left):
        self.taken += len(data["record"]) == LARGE_BYTES
        self.at_once = max(self.at_once, len(self._alive))
        return []


async def test_of_a_thousand_large_runs_that_wait_each_is_read_once_and_let_go(box, full):
    backend = Taking(box)
    made = delivery.Delivery(backend, box, lambda what, exc: pytest.fail(f"{what}: {exc}"))
    await made.flush()
    # The one that is handed over, and at times a few that threads are about to let go of.
    assert (backend.taken, len(full)) == (MANY, MANY) and backend.at_once < 10
    assert box.names() == []


async def test_to_look_whose_runs_wait_none_of_them_is_read(box, full):
    made = delivery.Delivery(None, box, lambda what, exc: pytest.fail(f"{what}: {exc}"))
    assert len(box.names()) == MANY and box.rollouts() == {"g"}
    # Nothing of this rollout waits, so that nothing has to be handed over before its seed.
    await made.flush(rollout="other")
    with pytest.raises(errors.OutboxFull):
        box.put(data(), [])
    assert full == []


def test_what_waits_longest_is_first_whatever_its_name(box):
    for number, name in enumerate(("b", "c", "a")):
        box.put(data(name), [])
        os.utime(box.folder / "waiting" / f"{name}.1" / outbox.EVENT, (1000 + number,) * 2)
    assert box.names() == ["b.1", "c.1", "a.1"]


async def test_an_event_that_says_no_rollout_is_kept_and_delivered_all_the_same(box):
    box.put({**data(), "group_id": 7, "record": "x" * LARGE_BYTES}, [])
    assert box.rollouts() == {outbox.UNKNOWN}
    backend = Taking(box)
    await delivery.Delivery(backend, box, lambda what, exc: pytest.fail(f"{what}: {exc}")).flush()
    assert box.names() == [] and backend.taken == 1


def test_an_entry_of_an_earlier_version_is_known_by_its_event(box):
    box.put({**data(), "conversation_id": "Läufe/7"}, [])
    told = box.rollouts()
    (box.folder / "waiting" / "r1.1" / outbox.ROLLOUT).unlink()
    again = outbox.Outbox(box.folder)
    assert again.rollouts() == told == {rollout for rollout in told if rollout.startswith("rl-")}


KILLED = """
import asyncio, os, sys
from agents import Agent, RunConfig
from agents.testing import ScriptedModel, assistant_message
from runlore.agents import Runlore

async def main():
    lore = Runlore("acme", memory="support", home=sys.argv[1], url=sys.argv[2])
    agent = Agent(name="a", model=ScriptedModel([[assistant_message("done")]]))
    await lore.run(agent, "go", conversation_id="c", run_config=RunConfig(tracing_disabled=True))
    os._exit(9)

asyncio.run(main())
"""


@pytest.mark.process
async def test_a_process_that_dies_right_after_its_run_has_lost_nothing(tmp_path):
    home = tmp_path / "home"
    started = [sys.executable, "-c", KILLED, str(home), "http://127.0.0.1:1"]
    died = subprocess.run(started, capture_output=True, text=True)  # noqa: ASYNC221
    assert died.returncode == 9, died.stderr
    lore = Runlore("acme", memory="support", home=home)
    await lore.aclose()
    (event,) = await events(home)
    assert event["line"]["final_output"] == "done"


async def test_without_a_place_for_the_outbox_the_run_is_handed_over_at_once(tmp_path):
    told = []
    home = tmp_path / "home"
    lore = Runlore("acme", memory="support", home=home, on_error=told.append)
    (home / "agents").mkdir(parents=True)
    (home / "agents" / "acme.support").write_text("in the way")
    from agents import Agent

    from sandboxed import scripted

    result = await lore.run(Agent(name="a", model=scripted(done())), "go", run_config=plain())
    assert result.final_output == "done" and told
    assert [one["line"]["final_output"] for one in await events(home)] == ["done"]


async def test_two_objects_of_one_process_share_the_outbox_and_the_home(tmp_path):
    import asyncio

    def lore():
        return Runlore("acme", memory="support", home=tmp_path / "home")

    async def one(number):
        agent = worker(shell(f"echo {number} > n"), done(), name=f"w{number}")
        await lore().run(agent, "go", conversation_id=f"c{number}", run_config=config())

    await asyncio.gather(*(one(number) for number in range(4)))
    for number in range(4):
        agent = worker(shell("cat n"), done())
        result = await lore().run(agent, "go", conversation_id=f"c{number}", run_config=config())
        assert f"{number}" in seen(result).splitlines()


def test_the_outbox_holds_no_key(tmp_path):
    import asyncio

    lore = Runlore(
        "acme",
        memory="support",
        url="http://127.0.0.1:1",
        key="rl_secret_key",
        home=tmp_path / "home",
        deadline_seconds=0.2,
    )
    asyncio.run(lore.run(worker(done()), "go", run_config=config()))
    files = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"rl_secret_key" in path.read_bytes()]
    body = next(path for path in files if path.name == "event.json")
    assert json.loads(body.read_bytes())["data"]["project"] == "acme"


def test_beside_an_agent_nothing_of_a_server_is_loaded(tmp_path):
    code = (
        "import sys; from runlore.agents import Runlore\n"
        f"Runlore('acme', memory='m', home={str(tmp_path)!r}); Runlore('acme', memory='m', url='http://x')\n"
        "print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    roots = {name.split(".")[0] for name in loaded.stdout.split()}
    assert not roots & {"aiokafka", "boto3", "botocore", "fastapi"}


async def test_a_home_that_can_not_be_opened_stops_no_run(tmp_path):
    told = []
    (tmp_path / "home").write_text("a file")
    lore = Runlore("acme", memory="support", home=tmp_path / "home", on_error=told.append)
    result = await lore.run(worker(shell("echo 1"), done()), "go", run_config=config())
    assert result.final_output == "done" and told
    await lore.aclose()
