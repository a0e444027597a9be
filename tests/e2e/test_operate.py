"""Operating: what is held back stays and comes again, a replay doubles nothing, and every change has its entry."""

from __future__ import annotations

import signal

import homes
import pytest

import made

WHY = ("--reason", "ticket 812")


def emit(home, *numbers, **more):
    home.emit(made.lines(made.event(number, **more) for number in numbers))


def state(home, run, *more):
    return [one["state"] for one in home.json("explain", run, *more)["runs"]]


def test_a_paused_memory_learns_nothing_loses_nothing_and_stops_no_other(home):
    home.emit(b"")
    paused = home.json("pause", "consolidate", "--memory", "acme/support", *WHY)["pause"]
    assert (paused["project"], paused["memory"], paused["reason"]) == ("acme", "support", "ticket 812")
    emit(home, 1, 2)
    emit(home, 3, memory="sales")
    emit(home, 4, project="zeta")
    assert home.up_once()["recorded"] == 4
    revisions = {(one["project"], one["memory"]): one["revision"] for one in home.json("status")["memories"]}
    assert revisions == {("acme", "support"): 0, ("acme", "sales"): 1, ("zeta", "support"): 1}
    told = home.json("status")
    assert told["pauses"] == [paused] == home.json("pause")["pauses"]
    assert told["consolidate"]["marks"] == 1 and any("ticket 812" in cause for cause in told["causes"])
    (story,) = home.json("explain", "run-1")["runs"]
    assert (
        story["state"] == "recorded" and "runlore resume consolidate --memory acme/support" in story["next"]
    )
    assert "ticket 812" in home.call("doctor", code=None).out
    # Twice is refused with the words of the first; what is not paused can not be resumed.
    assert (
        "ticket 812"
        in home.json("pause", "consolidate", "-m", "acme/support", *WHY, code=4)["error"]["message"]
    )
    home.json("resume", "consolidate", "--memory", "acme/sales", *WHY, code=3)
    home.json("resume", "consolidate", "--project", "acme", "--memory", "support", *WHY)
    home.up_once()
    assert state(home, "run-1") == ["consolidated"] and home.json("pause")["pauses"] == []
    home.verified()


@pytest.mark.parametrize("stage", ["record", "snapshot"])
def test_a_stage_that_is_paused_as_a_whole_leaves_its_messages_on_the_bus(home, stage):
    home.emit(b"")
    home.json("pause", stage, *WHY)
    emit(home, *range(5))
    error = home.json("up", "--once", code=5)["error"]
    assert error["kind"] == "stage_paused" and "ticket 812" in error["message"]
    assert home.json("status")[stage]["lag"] == 5
    home.json("resume", stage, *WHY)
    home.up_once()
    assert home.json("status")[stage]["lag"] == 0 and state(home, "run-1") == ["consolidated"]
    assert home.json("dead")["total"] == 0
    home.verified()


def test_a_replay_from_any_time_doubles_nothing(home):
    emit(home, *range(20))
    assert home.up_once()["recorded"] == 20
    before = home.meaning()
    assert home.json("replay", "--from", "beginning", *WHY) == {
        "stage": "record",
        "from": "beginning",
        "messages": 20,
    }
    done = home.up_once()
    assert (done["already"], done["recorded"], done["revisions"]) == (20, 0, 0)
    assert home.json("replay", "--from", "1h", "--stage", "snapshot", *WHY)["messages"] == 20
    assert home.json("replay", "--from", home.json("audit")["acts"][0]["at"], *WHY)["messages"] == 0
    home.up_once()
    assert home.meaning() == before
    home.verified()


def test_a_replay_is_refused_while_somebody_reads_and_the_refusal_is_kept(home):
    process = home.up()
    error = home.json("replay", "--from", "beginning", *WHY, code=4)["error"]
    assert error["kind"] == "home_in_use"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=homes.WAIT_SECONDS_MAX)
    (act,) = home.json("audit")["acts"]
    assert (act["what"], act["state"], act["result"]["error"]["kind"]) == ("replay", "failed", "home_in_use")


CHANGES = {
    # what changes something → its arguments, without the reason
    ("pause", "record"): (),
    ("pause", "consolidate", "--project", "acme"): (),
    ("resume", "record"): (),
    ("replay", "--from", "beginning"): (),
    ("revert", "support"): ("-p", "acme", "--to", "1"),
    ("review", "approve", "--all"): homes.MEANT,
    ("review", "reject", "--all"): homes.MEANT,
    ("dead", "redrive", "--all"): (),
    ("dead", "drop", "--all"): (),
    ("snapshot", "drop", "conv-1", "run-1"): ("-p", "acme"),
    ("snapshot", "retain", "conv-1"): ("-p", "acme", "--last", "3"),
    ("snapshot", "tag", "conv-1", "x", "--delete"): ("-p", "acme"),
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    home = homes.Home(tmp_path_factory.mktemp("filled") / "home")
    for first in (0, 10):
        emit(home, *range(first, first + 10))
        home.up_once()
    home.emit(b'{"project": "acme"}\n{"project": "zeta"}\n{\n')
    home.up_once()
    home.json("revert", "support", "-p", "acme", "--to", "1", *WHY)
    return home


@pytest.mark.parametrize("words", CHANGES, ids=" ".join)
def test_what_changes_something_asks_why_before_it_does_anything(filled, words):
    before, acts = filled.objects(), filled.json("audit")["acts"]
    error = filled.json(*words, *CHANGES[words], code=2)["error"]
    assert error["kind"] == "invalid_input" and (
        "--reason" in error["message"] or "--note" in error["message"]
    )
    assert filled.objects() == before and filled.json("audit")["acts"] == acts


def test_dead_letters_are_listed_and_changed_by_project_and_the_act_is_kept_with_the_project(filled):
    home = filled.copy("by-project")
    assert home.json("dead")["total"] == 3
    (ours,) = home.json("dead", "list", "--project", "acme")["dead"]
    assert ours["project"] == "acme"
    assert home.json("dead", "redrive", "--all", "-p", "acme", "--dry-run")["dead"] == [ours]
    assert len(home.json("dead", "drop", "--all", "-p", "acme", "--note", "made up")["dead"]) == 1
    assert {one["project"] for one in home.json("dead")["dead"]} == {"zeta", None}
    # A letter that names no project is nobody's.
    assert home.json("dead", "list", "-p", "other")["total"] == 0
    (act,) = [one for one in home.json("audit", "--project", "acme")["acts"] if one["what"] == "dead drop"]
    assert act["arguments"]["letters"] == [ours["id"]] and act["reason"] == "made up"
    assert not [one for one in home.json("audit", "--project", "zeta")["acts"] if one["what"] == "dead drop"]
    home.json("dead", "redrive", "--all", "--note", "once more")
    assert home.json("audit", "-p", "zeta")["acts"][0]["what"] == "dead redrive"


def test_explain_by_project_shows_no_run_of_another(home):
    emit(home, 1)
    emit(home, 1, project="zeta")
    home.up_once()
    assert [one["project"] for one in home.json("explain", "run-1", "-p", "zeta")["runs"]] == ["zeta"]
    assert {one["project"] for one in home.json("explain", "run-1")["runs"]} == {"acme", "zeta"}
    assert {one["project"] for one in home.json("explain", "-p", "acme")["runs"]} == {"acme"}
    home.json("explain", "run-1", "-p", "other", code=3)


def test_the_audit_says_who_did_what_when_why_and_with_what_result(filled):
    found = filled.json("audit", "--project", "acme")
    (act,) = [one for one in found["acts"] if one["what"] == "revert"]
    assert act["reason"] == "ticket 812" and act["arguments"] == {"memory": "support", "to": 1}
    assert act["state"] == "done" and act["result"]["revision"] == 3 and act["result"]["held"]
    assert act["by"]["user"] and act["by"]["host"]
    assert filled.json("audit", "--since", "1h", "--project", "acme") == found
    assert filled.json("audit", "--project", "nobody") == {"acts": [], "more": False}
    by = act["by"]
    assert filled.json("audit", "--actor", f"{by['user']}@{by['host']}", "--project", "acme") == found
    assert filled.json("audit", "--actor", "nobody")["acts"] == []
    acts = filled.json("audit")["acts"]
    assert filled.json("audit", "-n", "1") == {"acts": acts[:1], "more": len(acts) > 1}
    told = filled.call("audit").out
    assert "revert [acme]" in told and "why: ticket 812" in told


def test_verify_names_an_entry_or_a_pause_that_can_not_be_read_and_a_sweep_leaves_them(filled):
    home = filled.copy("broken")
    home.json("pause", "consolidate", "--project", "zeta", *WHY)
    acts = "_operations/acts/"
    keys = [key for key in home.objects() if key.startswith(acts) or "/pauses/" in key]
    # The revert of the fixture and the pause, each begun and ended; and the head.
    assert len([key for key in keys if key.startswith(acts)]) >= 5
    home.verified()
    home.json("sweep", "--apply", "--yes", *WHY)
    assert set(keys) <= set(home.objects())
    for key in keys:
        good = home.objects()[key]
        (home.root / "store" / key).write_bytes(b"{torn")
        problems = home.json("verify", code=6)["problems"]
        where = f"{acts}log/" if key.startswith(acts) else key
        assert [one["where"] for one in problems] == [where]
        home.opened(lambda opened, key=key, good=good: opened.store.put(key, good))
    home.verified()
