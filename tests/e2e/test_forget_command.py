"""`runlore forget` as its user meets it: seen before, asked why, done, proven, and brought back by nothing."""

from __future__ import annotations

import json
import shutil

import homes
import pytest

import made

NEEDLE = "the codeword is heliotrope"


@pytest.fixture
def home(tmp_path):
    one = homes.Home(tmp_path / "home")
    told = made.payload(1, text=f"Remember: {NEEDLE}")
    one.emit(made.lines([made.data(1, rollout="conv-1", record=told), made.data(2, rollout="conv-2")]))
    one.up_once()
    return one


def test_a_rollout_is_forgotten_proven_gone_and_a_redelivery_does_not_bring_it_back(home, tmp_path):
    where = ("--project", "acme", "--rollout", "conv-1")
    assert home.json("search", "heliotrope")["results"]
    plan = home.json("forget", *where, "--dry-run")
    assert (plan["rollouts"], plan["records"], plan["memories"]) == (1, 1, ["support"])
    assert home.json("search", "heliotrope")["results"]
    home.call("forget", *where, code=2)  # Why?
    home.call("forget", *where, "--reason", "ticket", code=2)  # Nobody can be asked.
    done = home.call("forget", *where, "--reason", "ticket 4711", "--yes")
    assert "is unreachable" in done.out and "answer `erased`" in done.out
    assert home.json("search", "heliotrope")["results"] == []
    (row,) = home.json("forget", "--project", "acme", "--list")["erasures"]
    receipt, needles = tmp_path / "receipt.json", tmp_path / "needles"
    told = home.json("forget", "--project", "acme", "--receipt", row["id"])
    receipt.write_text(json.dumps(told))
    needles.write_text(f"{NEEDLE}\n")
    proof = home.json("verify", "--erased", receipt, "--needle-file", needles)
    assert proof["ok"] and {"files", "messages", "packs", "records"} <= proof["scanned"].keys()
    assert home.json("explain", "run-1")["runs"][0]["state"] == "erased"
    home.emit(made.lines([made.data(1, rollout="conv-1", record=made.payload(1, text=NEEDLE))]))
    assert home.json("up", "--once")["erased"] == 1
    assert home.json("search", "heliotrope")["results"] == []
    home.call("verify")
    # What came since lies on the bus: it is found, and the next pass takes it away.
    assert not home.json("verify", "--erased", receipt, "--needle-file", needles, code=6)["ok"]
    home.call("forget", "--project", "acme", "--resume", "--reason", "it was sent again")
    assert home.json("verify", "--erased", receipt, "--needle-file", needles)["ok"]
    acts = home.json("audit")["acts"]
    assert [one["what"] for one in acts] == ["forget resume", "forget"] and NEEDLE not in json.dumps(acts)


@pytest.mark.parametrize(
    ("what", "of"), [("the store", "before the runs"), ("the whole home", "before the erasures")]
)
def test_after_a_restore_its_receipts_and_a_replay_bring_nothing_back(tmp_path, what, of):
    home = homes.Home(tmp_path / "home")
    home.emit(made.lines([made.event(9, rollout="conv-9")]))
    home.up_once()
    copies = [home.copy("before the runs")]
    said = {"conv-1": NEEDLE, "conv-2": "her street is Lindenweg", "conv-3": "he is allergic to nuts"}
    for number, (rollout, text) in enumerate(said.items(), 1):
        told = made.payload(number, text=text)
        home.emit(made.lines([made.event(number, rollout=rollout, subject=f"s-{number}", record=told)]))
        home.emit(made.lines([made.event(number + 30, rollout=rollout, subject=f"s-{number}")]))
    home.up_once()
    copies.append(home.copy("before the erasures"))
    receipts, needles = [], tmp_path / "needles"
    needles.write_text("\n".join(said.values()))
    for named in (("--run", "run-1"), ("--rollout", "conv-2"), ("--subject", "s-3")):
        receipts.append(tmp_path / named[1])
        told = home.json("forget", "--project", "acme", *named, "--reason", "ticket", "--yes")
        receipts[-1].write_text(json.dumps(told))
    copy = next(one for one in copies if one.root.name == of)
    if what == "the store":
        shutil.rmtree(home.root / "store")
        shutil.copytree(copy.root / "store", home.root / "store")
    else:
        home = copy
    # It says which receipts are needed; they go in before a worker starts.
    assert all(not home.json("verify", "--erased", one, code=6)["ok"] for one in receipts)
    for one in receipts:
        home.json("forget", "--again", one, "--reason", "restored")
    home.json("replay", "--from", "beginning", "--reason", "restored")
    home.up_once()
    # An event that had come after the copy is there again; what was erased is not.
    home.emit(
        made.lines([made.event(1, rollout="conv-1", subject="s-1", record=made.payload(1, text=NEEDLE))])
    )
    assert home.up_once()["erased"] == 1
    home.json("forget", "--project", "acme", "--resume", "--reason", "restored")
    for one in receipts:
        assert home.json("verify", "--erased", one, "--needle-file", needles)["ok"]
    assert home.json("search", "heliotrope", "--subject", "s-1")["results"] == []
    assert [one["state"] for one in home.json("explain", "run-31")["runs"]] == ["consolidated"]
    assert [one["state"] for one in home.json("explain", "run-33")["runs"]] == ["erased"]
    home.verified()


def test_what_can_not_be_meant_is_refused(home, tmp_path):
    home.call("forget", "--run", "run-1", code=2)
    home.call("forget", "--project", "acme", "--run", "a", "--rollout", "b", "--reason", "x", code=2)
    home.call("forget", "--project", "acme", "--run", "nobody", "--reason", "x", "--yes", code=3)
    home.call("forget", "--project", "acme", "--receipt", "nothing", code=3)
    other = tmp_path / "other.json"
    other.write_text("{}")
    home.call("forget", "--again", other, "--reason", "x", code=2)
    home.call("verify", "--needle-file", other, code=2)
    assert home.json("forget", "--project", "acme")["erasures"] == []


def test_upkeep_says_what_is_due_and_erases_what_is_past_its_days(home):
    due = home.json("upkeep", "--keep-days", "1", "--dry-run")["projects"]
    assert [(one["project"], one["past"]) for one in due] == [("acme", 2)]
    assert {one["rollout"] for one in due[0]["rollouts"]} == {"conv-1", "conv-2"}
    assert "would erase support/conv-1" in home.call("upkeep", "--keep-days", "1", "--dry-run").out
    home.call("upkeep", "--per-second", "0", "--dry-run", code=2)
    home.call("admin", "retention", "set", "acme", "--keep", "--reason", "kept for ever")
    assert home.json("upkeep", "--keep-days", "1", "--dry-run")["projects"][0]["past"] == 0
    home.call("admin", "retention", "set", "acme", "--days", "30", "--reason", "policy 12")
    (done,) = home.json("upkeep", "--reason", "nightly")["projects"]
    assert done["past"] == 2 and done["erasures"][0]["scope"] == "retention"
    assert home.json("upkeep", "--reason", "nightly")["projects"][0]["past"] == 0
    home.call("verify")
