"""Disaster drill: the store and the log are of two times. The older is brought up by the newer, without a double.

Method: a home works for two days; then its store (or its log) is put back as it was after the first. What
docs/DRILLS.md says is typed, and the home is compared with what it was before the disaster.
"""

from __future__ import annotations

import shutil
import sqlite3

import homes
import pytest

import made
from runlore.bus import port as bus_port

WHY = ("--reason", "drill: put back from a backup")


def emit(home, *numbers, **more):
    home.emit(made.lines(made.event(number, **more) for number in numbers))


def files(home, *patterns):
    return [path for pattern in patterns for path in home.root.glob(pattern)]


def set_aside(home, name, *patterns):
    """A backup of these files and folders of a home."""
    folder = home.root.parent / name
    for path in files(home, *patterns):
        target = folder / path.relative_to(home.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, target)
    return folder


def put_back(home, folder, *patterns):
    for path in files(home, *patterns):
        (shutil.rmtree if path.is_dir() else type(path).unlink)(path)
    shutil.copytree(folder, home.root, dirs_exist_ok=True)


STORE, LOG, INDEX = ("store",), ("log.db*",), ("index.db*",)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A home at the end of its second day, and backups of its first."""
    home = homes.Home(tmp_path_factory.mktemp("drills") / "home")
    emit(home, *range(10))
    home.up_once()
    home.json("status")
    yesterday = {parts: set_aside(home, f"yesterday-{parts[0][:3]}", *parts) for parts in (STORE, LOG, INDEX)}
    home.emit(made.lines([made.event(3, attempt=2, record=made.payload(3, text="again"))]))
    emit(home, *range(10, 20))
    home.up_once()
    home.json("status")
    return home, yesterday


@pytest.fixture
def home(filled, request):
    """A copy of it."""
    copy = filled[0].copy(f"copy-{abs(hash(request.node.name))}")
    copy.yesterday = filled[1]
    yield copy
    shutil.rmtree(copy.root)


def examined(home):
    """What doctor says of the store and the log."""
    (found,) = [one for one in home.json("doctor", code=None)["checks"] if one["what"] == "store and log"]
    return found


def figures(home):
    """What people see in lists, and what search finds."""
    status = home.json("status")
    rows = [(one["project"], one["memory"], one["rollouts"], one["runs"]) for one in status["memories"]]
    found = {one["rollout"] for one in home.json("search", "task")["results"]}
    return rows, found


def test_a_store_of_yesterday_under_a_newer_log_is_found_and_brought_up_by_a_replay(home, tmp_path):
    before, shown, revision = (
        home.meaning(),
        figures(home),
        home.json("log", *homes.MEANT)["revisions"][0]["revision"],
    )
    seed = home.json("seed", "conv-5", *homes.MEANT)["seed"]
    put_back(home, home.yesterday[STORE], *STORE)
    assert home.meaning()["rollouts"] != before["rollouts"]
    # What an operator sees, and what it tells them to type.
    told = examined(home)
    assert not told["ok"] and "were committed" in told["message"] and "runlore replay" in told["hint"]
    problems = home.json("verify", code=6)["problems"]
    assert sum("is not recorded" in one["what"] for one in problems) == 11
    # A client that has a newer seed is told; it gets no older bytes under that name.
    error = home.json("seed", seed, "--into", tmp_path / "w", code=None)
    assert error["error"]["kind"] == "not_found" and "put back" in error["error"]["message"]
    for stage in ("record", "snapshot"):
        home.json("replay", "--from", "beginning", "--stage", stage, *WHY)
    done = home.up_once()
    assert (done["recorded"], done["already"], done["dead"]) == (11, 10, 0)
    assert home.json("repair")["found"] == []
    assert home.meaning() == before and figures(home) == shown
    assert home.json("log", *homes.MEANT)["revisions"][0]["revision"] == revision
    assert examined(home)["ok"]
    home.verified()


def test_a_log_of_yesterday_under_a_newer_store_doubles_nothing_and_loses_nothing(home):
    before, shown = home.meaning(), figures(home)
    put_back(home, home.yesterday[LOG], *LOG)
    assert examined(home)["ok"]
    home.verified()
    # Agents send again what they were not sure of, and new runs come under offsets that were given before.
    home.emit(made.lines([made.event(3, attempt=2, record=made.payload(3, text="again"))]))
    emit(home, *range(10, 20))
    done = home.up_once()
    assert (done["recorded"], done["already"], done["dead"]) == (0, 11, 0)
    assert home.meaning() == before and figures(home) == shown
    emit(home, 20)
    assert home.up_once()["recorded"] == 1
    home.verified()


def test_a_log_that_is_gone_begins_anew_and_the_store_knows_every_run(home):
    before = home.meaning()
    for path in files(home, *LOG):
        path.unlink()
    assert examined(home)["ok"]
    emit(home, *range(20))
    done = home.up_once()
    # Attempt 1 of run 3 is there already, beside the attempt that replaced it.
    assert (done["recorded"], done["already"], done["dead"]) == (0, 20, 0)
    assert home.meaning() == before
    home.verified()


@pytest.mark.parametrize(
    "how", ["deleted", "truncated", "another file", "of a newer version", "of an older copy"]
)
def test_an_index_is_a_cache_that_may_be_lost_in_any_way(home, how):
    shown = figures(home)
    seed = home.json("seed", "conv-5", *homes.MEANT)
    index = home.root / "index.db"
    if how == "deleted":
        for path in files(home, "index.db*"):
            path.unlink()
    elif how == "truncated":
        index.write_bytes(index.read_bytes()[: index.stat().st_size // 2])
    elif how == "another file":
        index.write_bytes(b"no database at all" * 1000)
    elif how == "of a newer version":
        with sqlite3.connect(index) as connection:
            connection.execute("PRAGMA user_version=999999")
        connection.close()
    else:
        put_back(home, home.yesterday[INDEX], *INDEX)
    again = home.json("seed", "conv-5", *homes.MEANT)
    same = ("revision", "notes", "files", "base")
    assert [again[name] for name in same] == [seed[name] for name in same]
    assert figures(home) == shown
    home.verified()


def test_a_foreign_program_on_our_topic_stops_nobody_and_its_bytes_are_kept(home):
    """What another application, a newer producer and a broken one write between our own runs."""
    foreign = [
        ("metrics", b'{"cpu": 0.4}', []),
        ("gzip", b"\x1f\x8b\x08" + bytes(range(256)), [("content-type", b"application/json")]),
        (
            "avro",
            b"Obj\x01\x04\x14avro.codec",
            [("ce_type", b"com.other.v1"), ("ce_id", b"1"), ("ce_source", b"/o")],
        ),
        ("empty", None, []),
    ]

    async def write(opened):
        await opened.bus.produce([bus_port.Outgoing("runs", k.encode(), v, h) for k, v, h in foreign])

    emit(home, 20)
    home.opened(write)
    emit(home, 21)
    done = home.up_once()
    assert (done["recorded"], done["dead"]) == (2, 4)
    letters = home.json("dead", "list")["dead"]
    assert {one["reason"] for one in letters} <= {"invalid_event", "bad_json", "unknown_type"} and len(
        letters
    ) == 4
    # Whose they are is looked at before anything is dropped: each is there as it came.
    kept = home.root.parent / f"{home.root.name}.letter"
    for one in letters:
        home.json("dead", "show", one["id"], "--out", kept)
        assert kept.read_bytes() in {value or b"" for _, value, _ in foreign}
    home.json("dead", "redrive", "--all", "--note", "mapped by mistake")
    assert home.up_once()["dead"] == 4
    home.json("dead", "drop", "--all", "--note", "metrics of another program")
    assert home.json("dead")["total"] == 0
    home.verified()
