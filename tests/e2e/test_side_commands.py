"""Side lines at the command line: built by a model over HTTP, compared, tried as a seed, promoted and taken back."""

from __future__ import annotations

import signal

import homes
import pytest
from test_model_summaries_through_the_pipeline import SAID, Served, says

import made
from runlore.commit import keys
from runlore.testing import models

WHY = ("--reason", "a better model?")


@pytest.fixture
def filled(home):
    home.emit(made.lines(made.event(number) for number in range(1, 3)))
    home.up_once()
    return home


def rebuilt(home, *words, code=0):
    return home.json("rebuild", "support", "--project", "acme", *words, code=code)


def test_a_side_by_a_model_is_built_compared_tried_promoted_and_taken_back(tmp_path):
    with Served(says) as server:
        home = homes.Home(tmp_path / "home", model_url=server.url, model_key="sk-secret")
        home.environment.pop("RUNLORE_MODEL_URL")
        key = home.environment.pop("RUNLORE_MODEL_KEY")
        home.emit(made.lines(made.event(number) for number in range(1, 4)))
        home.up_once()
        home.environment |= {"RUNLORE_MODEL_URL": server.url, "RUNLORE_MODEL_KEY": key}
        built = rebuilt(home, "--as", "luna", "--model", "gpt-5.4", "--limit-usd", "5", *WHY)
        assert (built["rollouts"], built["runs"], built["asks"]) == (3, 3, 3) and built["cost_usd"] > 0
        assert {seen.body["model"] for seen in server.seen} == {"gpt-5.4"}
        again = rebuilt(home, "--as", "luna", *WHY)
        assert (again["rollouts"], again["asks"], len(server.seen)) == (0, 0, 3)
        assert rebuilt(home, "--as", "luna", "--model", "gpt-5.5", *WHY, code=4)["error"]["kind"] == "refused"
        unpriced = rebuilt(home, "--as", "own", "--model", "our/own", "--limit-usd", "1", *WHY, code=4)
        assert unpriced["error"]["kind"] == "spend_limit" and len(server.seen) == 3
    (row,) = home.json("rebuild", "list", "support")["sides"]
    assert (row["side"], row["state"], row["model"], row["answers"]) == ("luna", "built", "gpt-5.4", 3)
    found = home.json("diff", "support", "main", "luna")
    assert (found["from_line"], found["to_line"]) == (None, "luna")
    assert any(f"+- {SAID}" in one["diff"] or SAID in one["diff"] for one in found["files"])
    assert "lines added" in home.call("diff", "support", "main", "luna@1", "--stat").out
    assert home.json("log", "support", "--line", "luna")["revisions"][0]["reason"] == "rebuild"
    shown = home.json("show", "MEMORY.md", "--line", "luna")["text"]
    assert SAID in shown and SAID not in home.json("show", "MEMORY.md")["text"]
    (number, *_) = [at for at, line in enumerate(shown.splitlines(), 1) if SAID in line]
    told = home.json("why", f"MEMORY.md:{number}", "--line", "luna")["notes"]
    assert told and all(one["evidence"] for one in told)
    seeded = home.json("seed", "next", *homes.MEANT, "--line", "luna", "--into", tmp_path / "trial")
    assert any(SAID in path.read_text() for path in (tmp_path / "trial").rglob("*.md")), seeded
    home.verified()
    done = home.json("promote", "support", "luna", *WHY)
    assert SAID in home.json("show", "MEMORY.md")["text"] and done["side"] == "luna"
    assert home.json("log", "support")["revisions"][0]["reason"].startswith("promote luna@1")
    home.verified()
    assert home.json("promote", "support", "luna", *WHY)["revision"] == done["revision"]
    home.json("revert", "support", "--to", done["revision"] - 1, *WHY)
    assert SAID not in home.json("show", "MEMORY.md")["text"]
    home.json("rebuild", "drop", "support", "luna", *WHY)
    assert home.json("rebuild", "list")["sides"] == []
    home.json("show", "--line", "luna", code=3)
    assert home.json("seed", seeded["seed"])["revision"] == 1
    home.verified()
    acts = [one["what"] for one in home.json("audit")["acts"]]
    assert {"rebuild", "promote", "rebuild drop"} <= set(acts)


@pytest.mark.process
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_build_that_ends_in_between_goes_on_and_asks_only_what_is_not_kept(filled, sign):
    answered = iter(range(2))

    def twice(seen):
        return says(seen) if next(answered, None) is not None else models.Reply(fault="silent")

    filled.emit(made.lines(made.event(number) for number in range(3, 6)))
    filled.up_once()
    words = ("--as", "luna", "--model", "gpt-5.4", *WHY)
    with Served(twice) as server:
        filled.environment |= {"RUNLORE_MODEL_URL": server.url, "RUNLORE_MODEL_KEY": "sk-secret"}
        process = filled.start("rebuild", "support", "--project", "acme", *words)
        homes.wait_until(lambda: len(filled.objects(keys.ANSWERS)) == 2, "two answers to be kept")
        process.send_signal(sign)
        _, err = process.communicate(timeout=homes.WAIT_SECONDS_MAX)
    assert process.returncode == (-signal.SIGKILL if sign == signal.SIGKILL else 130), err
    assert b"Traceback" not in err
    (row,) = filled.json("rebuild", "list")["sides"]
    assert (row["state"], row["revision"]) == ("building", 0)
    filled.verified()
    with Served(says) as server:
        filled.environment["RUNLORE_MODEL_URL"] = server.url
        built = rebuilt(filled, *words)
        assert (built["rollouts"], built["asks"], len(server.seen)) == (5, 3, 3)
    (row,) = filled.json("rebuild", "list")["sides"]
    assert (row["state"], row["answers"]) == ("built", 5) and row["cost_usd"] > built["cost_usd"]
    filled.verified()


def test_the_present_rules_make_the_same_memory_anew(filled):
    built = rebuilt(filled, "--as", "fresh", "--rules", *WHY)
    assert (built["rollouts"], built["asks"], built["held"]) == (2, 0, [])
    found = filled.json("diff", "support", "main", "fresh")
    assert found["files"] == []
    assert "hold the same files" in filled.call("diff", "support", "main", "fresh").err
    assert filled.json("diff", "main", "fresh", *homes.MEANT)["files"] == []
    filled.verified()


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("--as", "x", "--rules"), "invalid_input"),
        (("--rules", *WHY), "invalid_input"),
        (("--as", "main", "--rules", *WHY), "invalid_id"),
        (("--as", "7", "--rules", *WHY), "invalid_id"),
        (("--as", "x", "--rules", "--model", "m", *WHY), "invalid_input"),
        (("--as", "x", "--prompt", "/nowhere/at/all", *WHY), "invalid_input"),
        (("--as", "x", *WHY), "refused"),
    ],
    ids=[
        "no reason",
        "no name",
        "main",
        "a number",
        "rules and a model",
        "no such prompt",
        "no model is configured",
    ],
)
def test_what_can_not_be_built_is_said_before_anything_is_done(filled, words, kind):
    assert rebuilt(filled, *words, code=None)["error"]["kind"] == kind
    assert filled.json("rebuild", "list")["sides"] == []


def test_a_promotion_of_nothing_is_refused(filled):
    filled.json("promote", "support", "luna", *WHY, code=3)
    filled.json("promote", "support", *WHY, code=2)
    filled.json("promote", "support", "luna", code=2)


@pytest.mark.parametrize("words", [("1", "2", "3", "4"), ("x@y", "1")], ids=["too many", "no revision"])
def test_a_diff_of_what_is_no_version_is_refused(filled, words):
    filled.json("diff", *words, code=2)
