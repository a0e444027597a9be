"""`runlore refresh`, `wait` and `spend` at a terminal, with a model over HTTP: when it is asked, and what it cost."""

from __future__ import annotations

import homes
import pytest
from endpoints import Served

import made
from runlore.testing import models

PRICES = '[prices."gpt-5.4-mini".tiers]\ndefault = { input = 1.0, output = 10.0 }\n'
A_CALL_USD = 1000 * 1.0e-6 + 100 * 10.0e-6


@pytest.fixture
def endpoint():
    with Served(lambda seen: models.Reply()) as server:
        yield server


@pytest.fixture
def home_with(tmp_path, endpoint):
    def make(toml=""):
        path = tmp_path / "models.toml"
        path.write_text(PRICES + toml)
        home = homes.Home(tmp_path / "home", model_url=endpoint.url, models_file=path)
        home.models_file = path
        return home

    return make


def emit(home, *numbers):
    home.emit(made.lines([made.event(number) for number in numbers]))


@pytest.mark.process
def test_what_waits_is_told_and_a_refresh_works_it_while_up_runs(home_with, endpoint):
    home = home_with("[summarize.due]\nruns = 9\n")
    emit(home, 1, 2)
    home.up_once()
    assert not endpoint.seen
    waits = home.json("status")["summarize"]["waits"]["acme/support"]
    assert waits["state"] == "waits" and waits["told"].endswith("with 7 more runs")
    assert "with 7 more runs" in home.call("status").out and "with 7 more runs" in home.call("refresh").out
    assert home.json("wait", "run-1")["runs"][0]["end"] == "consolidated"
    ended = home.json("wait", "run-1", "--model", "--timeout", "0", code=5)
    assert ended["error"]["kind"] == "wait_timeout" and "with 7 more runs" in ended["error"]["message"]
    home.up()
    found = home.json("refresh", "support", "--project", "acme", "--wait", "40")
    (row,) = found["refreshed"]
    assert (row["memory"], row["asks"], row["state"]) == ("support", 1, "consolidated")
    assert len(endpoint.seen) == 2
    assert home.json("wait", "run-1", "--model")["runs"][0]["end"] == "consolidated"
    assert home.json("refresh", "--all", "--project", "acme")["refreshed"] == []
    home.verified()


@pytest.mark.process
def test_over_budget_every_command_says_so_and_a_larger_one_is_worked_off_while_up_runs(home_with, endpoint):
    home = home_with("[budget]\nday_usd = 0.0\n")
    emit(home, 1)
    assert home.up_once()["recorded"] == 1 and not endpoint.seen
    found = home.json("spend")
    (deferred,) = found["deferred"]
    assert (deferred["memory"], found["rows"], found["budgets"][0]["left"]) == ("support", [], 0)
    assert any("waits for budget" in cause for cause in home.json("status")["causes"])
    assert "waits for budget" in home.call("explain", "run-1").out
    ended = home.json("wait", "run-1", "--model", code=5)["runs"][0]
    assert ended["end"] == "deferred" and "raised" in ended["cause"]
    refused = home.call("refresh", "support", "--project", "acme", "--wait", "20", code=5)
    assert "deferred" in refused.out and "budget of a day" in refused.err
    home.up()
    home.models_file.write_text(PRICES + "[budget]\nday_usd = 1.0\n")
    homes.wait_until(lambda: endpoint.seen, "the file of models to be read again")
    assert home.json("wait", "run-1", "--model", "--timeout", "40")["runs"][0]["end"] == "consolidated"
    assert len(endpoint.seen) == 1
    found = home.json("spend", "--project", "acme", "--by", "model")
    assert found["deferred"] == [] and found["rows"][0]["name"] == "gpt-5.4-mini"
    assert found["total"]["calls"] == 1 and found["total"]["cost_usd"] == pytest.approx(A_CALL_USD, rel=1e-6)
    shown = home.call("spend").out
    assert "acme/support" in shown and "budget of acme for a day: $0.0020 of $1.0000 used" in shown
    home.verified()


@pytest.mark.process
def test_each_end_has_its_exit_code_and_what_is_meant_must_be_said(home_with):
    home = home_with()
    emit(home, 1)
    home.emit(b'{"project": "acme", "memory": "support", "session_id": "s", "run_id": "bad", "record": 1}\n')
    home.up_once()
    (letter,) = home.json("dead", "list")["dead"]
    dead = home.json("wait", letter["id"], code=4)
    assert dead["runs"][0]["end"] == "dead"
    assert home.json("wait", "--rollout", "conv-1", "--run", "run-1")["runs"][0]["run"] == "run-1"
    assert [row["run"] for row in home.json("wait")["runs"]] == ["run-1"]
    assert home.json("refresh")["waits"] == {}
    for words in (["wait", "x", "--run", "y"], ["refresh", "support"], ["refresh", "--all"]):
        assert home.json(*words, code=2)["error"]["kind"] == "invalid_input", words
    for words in (["refresh", "support", "--project", "acme", "--all"], ["spend", "--by", "colour"]):
        assert home.json(*words, code=2)["error"]["kind"] == "invalid_input", words
    assert home.json("spend", "--month", "2026-13", code=2)["error"]["kind"] == "invalid_input"
    assert "no model was asked" in home.call("spend", "--month", "2020-01").out


@pytest.mark.process
def test_a_file_of_models_that_is_broken_keeps_nobody_from_looking(home_with):
    home = home_with()
    emit(home, 1)
    home.up_once()
    home.models_file.write_text("[budget]\nday_usd = 'much'\n")
    assert any(
        "the file of models" in cause and "day_usd" in cause for cause in home.json("status")["causes"]
    )
    assert home.json("explain", "run-1")["runs"][0]["state"] == "consolidated"
    assert home.json("spend", code=2)["error"]["kind"] == "bad_models"
