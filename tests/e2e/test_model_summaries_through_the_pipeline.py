"""A model over HTTP behind the commands: `runlore up` asks it, once, and what it says is in the memory with its why."""

from __future__ import annotations

import json
import re

import homes
import pytest
from endpoints import Served

import made
from runlore.testing import models

SAID = "The list is worked from its end."


def says(seen):
    """One statement, that cites the first thing that the person said."""
    user = re.search(r"^#(\d+) user$", seen.input, re.MULTILINE)
    said = {
        "section": "knowledge",
        "text": SAID,
        "evidence": [int(user.group(1))],
    }
    value = {
        "title": "a list",
        "outcome": "uncertain",
        "outcome_evidence": [],
        "statements": [said],
        "reason": "",
    }
    return models.Reply(value)


@pytest.mark.process
def test_a_model_is_asked_once_for_a_run_and_its_statement_says_why(tmp_path):
    with Served(says) as server:
        home = homes.Home(tmp_path / "home", model_url=server.url, model_key="sk-secret")
        home.emit(made.lines([made.event(1)]))
        assert home.up_once()["recorded"] == 1
        home.emit(made.lines([made.event(1)]))
        assert home.up_once()["already"] == 1
        assert len(server.seen) == 1 and server.seen[0].path == models.RESPONSES
    shown = home.json("show", "MEMORY.md", *homes.MEANT)
    lines = shown["text"].splitlines()
    (number,) = [at for at, line in enumerate(lines, 1) if "The list is worked from its end." in line]
    found = home.json("why", f"MEMORY.md:{number}", *homes.MEANT)
    assert "run-1" in json.dumps(found), found
    (told,) = home.json("explain", "run-1")["runs"]
    assert "a model's statements: 1, 1 of them from this run" in json.dumps(told)
    home.verified()
    assert "sk-secret" not in json.dumps([found, home.json("status")])


SHEETS = (
    "Sheet 7041 is locked on Mondays; copy it before you write into it.",
    "On Mondays sheet 7041 is locked: copy it before you write.",
)
WHOLE = "Sheet 7041 is locked on Mondays: copy it before you write into it."


def brings_together(seen):
    """Summaries that say what the person said, and one statement in place of all."""
    if "operations" not in seen.schema["properties"]:
        value = says(seen).value
        value["statements"][0]["text"] = re.search(r"^#1 user\n\| (.*)$", seen.input, re.MULTILINE).group(1)
        return models.Reply(value)
    found = re.findall(r"^#(\d+) \w+ \(statement;", seen.input, re.MULTILINE)
    merge = {
        "action": "merge",
        "section": "knowledge",
        "text": WHOLE,
        "replaces": [*map(int, found)],
        "evidence": [],
    }
    return models.Reply({"operations": [merge], "skills": [], "reason": ""})


@pytest.mark.process
def test_statements_of_two_conversations_are_brought_together_and_say_whose_they_are(tmp_path):
    with Served(brings_together) as server:
        home = homes.Home(tmp_path / "home", model_url=server.url)
        runs = [
            made.event(number, rollout=f"c{number}", record=made.payload(number, text=said))
            for number, said in enumerate(SHEETS, 1)
        ]
        home.emit(made.lines(runs))
        home.up_once()
        assert [one.model for one in server.seen] == ["gpt-5.4-mini", "gpt-5.4-mini", "gpt-5.5"]
        home.up_once()
        assert len(server.seen) == 3
    lines = home.json("show", "MEMORY.md", *homes.MEANT)["text"].splitlines()
    (number,) = [at for at, line in enumerate(lines, 1) if WHOLE in line]
    assert not any(said in line for line in lines for said in SHEETS if line.startswith("- Sh"))
    found = home.json("why", f"MEMORY.md:{number}", *homes.MEANT)
    told = json.dumps(found)
    assert '"kind": "joint"' in told and "run-1" in told and "run-2" in told and "gpt-5.5" in told
    reasons = [row["reason"] for row in home.json("log", *homes.MEANT)["revisions"]]
    assert "model: 2 new statements, merge 1" in reasons
    (story,) = home.json("explain", "run-1")["runs"]
    assert "a model's joint statements that rest on this rollout: 1" in json.dumps(story)
    assert home.json("status")["summarize"]["joins"] == 0
    home.verified()


@pytest.mark.process
def test_a_model_without_quota_is_told_and_the_rules_stand(tmp_path):
    with Served(lambda seen: models.Reply(fault="no_quota")) as server:
        home = homes.Home(tmp_path / "home", model_url=server.url)
        home.emit(made.lines([made.event(1)]))
        ended = home.json("up", "--once", code=5)
        assert ended["error"]["kind"] == "model_blocked" and "quota" in ended["error"]["message"]
    assert home.json("seed", "conv-1", *homes.MEANT)["revision"] == 1
    assert home.json("status")["summarize"]["marks"] == 1
    home.verified()
