"""Disaster drill: a head is deleted. `runlore repair` makes it again from what it named; nothing is lost or doubled.

Method: a home with several memories' worth of life is filled once; each test copies it, deletes an object as a person
with a shell would, types what docs/DRILLS.md says, and compares with the home before.
"""

from __future__ import annotations

import json
import shutil

import homes
import pytest

import made
from runlore.commit import heads, keys

WHY = ("--reason", "drill: a head was deleted")
MEMORY = "acme/support"


def emit(home, *numbers, **more):
    home.emit(made.lines(made.event(number, **more) for number in numbers))


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """Seven rollouts in two revisions, one of them with two attempts, and a line of workspaces."""
    home = homes.Home(tmp_path_factory.mktemp("drills") / "home")
    emit(home, *range(7))
    home.up_once()
    home.emit(
        made.lines([made.event(3, attempt=2, record=made.payload(3, text="again")), *map(made.event, (7, 8))])
    )
    home.up_once()
    return home


@pytest.fixture
def home(filled, request):
    """A copy of it: the commands open it as they find it."""
    copy = filled.copy(f"copy-{abs(hash(request.node.name))}")
    yield copy
    shutil.rmtree(copy.root)


def head_of(home, key):
    return json.loads((home.root / "store" / key).read_bytes())


def delete(home, key):
    (home.root / "store" / key).unlink()


def repaired(home, *more):
    found = home.json("repair", *more, code=6)
    assert found["applied"] is False
    done = home.json("repair", "--apply", *WHY, *more)
    assert done["found"] == found["found"] and done["left"] == 0
    home.up_once()
    assert home.json("repair")["found"] == []
    return done["found"]


def runs_of(meaning):
    return {key: sorted(body["runs"]) for key, body in meaning["rollouts"].items()}


def test_a_whole_home_has_nothing_to_repair_and_a_look_changes_nothing(home):
    before = home.objects()
    assert home.json("repair") == {"applied": False, "found": [], "left": 0}
    assert "every head is there" in home.call("repair").out and home.objects() == before
    assert "--reason" in home.call("repair", "--apply", code=2).err


def test_a_memorys_head_is_made_again_from_its_manifests_and_no_client_sees_an_older_one(home):
    key = keys.memory_head("acme", "support")
    before, old = home.meaning(), head_of(home, key)
    delete(home, key)
    error = home.json("verify", code=6)
    assert any(one["where"] == key and "runlore repair" in one["what"] for one in error["problems"])
    (found,) = repaired(home)
    assert (found["kind"], found["where"]) == ("memory", key)
    new = head_of(home, key)
    assert (new["revision"], new["manifest"]) == (old["revision"], old["manifest"])
    assert new["counter"] > old["counter"] + heads.LEAP - 1
    assert home.meaning() == before
    home.verified()
    emit(home, 20)
    assert home.up_once()["revisions"] == 1
    assert head_of(home, key)["revision"] == old["revision"] + 1
    home.verified()
    (act,) = [one for one in home.json("audit")["acts"] if one["what"] == "repair"]
    assert act["reason"] == WHY[1] and act["result"]["mended"] == 1


def test_a_run_that_comes_before_the_repair_begins_no_second_line_and_is_not_lost(home):
    key = keys.memory_head("acme", "support")
    old = head_of(home, key)
    delete(home, key)
    emit(home, 20)
    error = home.json("up", "--once", code=6)["error"]
    assert error["kind"] == "head_lost" and "runlore repair" in error["hint"]
    assert not (home.root / "store" / key).exists()
    repaired(home)
    assert head_of(home, key)["revision"] == old["revision"] + 1
    assert "conv-6" in {one.split("/")[4].removesuffix(".json") for one in runs_of(home.meaning())}
    home.verified()


def test_a_sweep_beside_a_lost_head_takes_nothing(home):
    delete(home, keys.memory_head("acme", "support"))
    before = home.objects(keys.MANIFESTS, keys.PACKS)
    error = home.json("sweep", "--apply", "--yes", *WHY, code=6)["error"]
    assert error["kind"] == "head_lost"
    assert home.objects(keys.MANIFESTS, keys.PACKS) == before


def test_what_a_revert_took_out_stays_out_after_its_memorys_head_was_lost(home):
    home.json("revert", "support", "-p", "acme", "--to", "1", *WHY)
    before = home.meaning()
    assert before["held"]
    delete(home, keys.memory_head("acme", "support"))
    repaired(home)
    assert home.meaning() == before
    home.verified()


def test_two_revisions_that_a_head_may_have_named_are_left_to_a_person(home):
    key = keys.memory_head("acme", "support")
    home.json("pause", "consolidate", *WHY)
    emit(home, 20)
    home.up_once()
    home.json("resume", "consolidate", *WHY)
    other = home.copy("rival")
    for one in (home, other):
        assert one.up_once()["revisions"] == 1
    number = head_of(home, key)["revision"]
    assert number == head_of(other, key)["revision"]
    # The loser's manifest and pack lie beside the winner's, as two writers that met leave them.
    for kind in (keys.MANIFESTS, keys.PACKS):
        for name, body in other.objects(kind).items():
            path = home.root / "store" / name
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(body)
    wanted = head_of(home, key)["manifest"]
    delete(home, key)
    done = home.json("repair", "--apply", *WHY, code=6)
    (left,) = done["found"]
    assert done["left"] == 1 and "2 writers met" in left["what"] and "--take" in left["hint"]
    assert not (home.root / "store" / key).exists()
    home.json("repair", "--apply", "--take", f"{number}-{wanted[:12]}", *WHY)
    assert head_of(home, key)["manifest"] == wanted
    home.up_once()
    shutil.rmtree(other.root)
    home.verified()


@pytest.mark.parametrize("comes", ["nothing", "a run of it", "the bus again"])
def test_a_rollouts_head_is_made_again_from_its_records(home, comes):
    key = keys.rollout_head("acme", "support", "conv-3")
    before, old = home.meaning(), head_of(home, key)
    delete(home, key)
    if comes == "a run of it":
        emit(home, 10)
        home.up_once()
    if comes == "the bus again":
        home.json("replay", "--from", "beginning", *WHY)
        assert home.up_once()["dead"] == 0
    else:
        found = home.json("repair", code=None)["found"]
        assert comes != "nothing" or [one["where"] for one in found] == [key]
        home.json("repair", "--apply", *WHY)
        home.up_once()
    assert home.json("repair")["found"] == []
    new = head_of(home, key)
    assert new["counter"] > old["counter"] and set(old["runs"]) <= set(new["runs"])
    after = home.meaning()
    if comes == "a run of it":
        assert "run-10" in new["runs"]
    else:
        assert after == before
    assert [one["state"] for one in home.json("explain", "run-3")["runs"]] == ["superseded", "consolidated"]
    home.verified()


def test_what_was_erased_stays_erased_when_the_heads_that_say_so_are_lost(home):
    where = ("--project", "acme", "--rollout", "conv-4")
    home.call("forget", *where, *WHY, "--yes")
    home.call("forget", "--project", "acme", "--run", "run-1", *WHY, "--yes")
    home.call("forget", "--project", "acme", "--subject", "anna", *WHY, "--yes", code=None)
    ledger = keys.erasure_ledger("acme")
    rows = head_of(home, ledger)["rows"]
    before = home.meaning()
    for key in (
        ledger,
        keys.memory_head("acme", "support"),
        keys.rollout_head("acme", "support", "conv-4"),
        keys.rollout_head("acme", "support", "conv-1"),
    ):
        delete(home, key)
    repaired(home)
    assert head_of(home, ledger)["rows"] == rows
    home.json("replay", "--from", "beginning", *WHY)
    done = home.up_once()
    assert done["recorded"] == 0 and done["erased"] >= 2
    assert runs_of(home.meaning()) == runs_of(before)
    home.verified()


def test_the_log_of_acts_goes_on_behind_a_head_that_was_lost(home):
    for verb in ("pause", "resume"):
        home.json(verb, "consolidate", *WHY)
    before = home.json("audit")["acts"]
    delete(home, keys.acts_head())
    # Nothing is done that could not be written down, and no second log is begun.
    assert home.json("pause", "consolidate", *WHY, code=6)["error"]["kind"] == "head_lost"
    assert home.json("pause")["pauses"] == []
    home.json("repair", code=6)
    home.json("repair", "--apply", *WHY)
    after = home.json("audit")["acts"]
    assert [one for one in after if one["what"] != "repair"] == before and after[0]["what"] == "repair"
    assert home.json("audit", "verify")["problems"] == []
    home.verified()
