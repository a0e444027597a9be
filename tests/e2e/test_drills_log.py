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
