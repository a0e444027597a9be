"""The importers on recorded runs of others: every one goes in, says the same twice, and no label with it."""

from __future__ import annotations

import collections
import json

import pytest

from runlore import sources
from runlore.events import models, records

pytestmark = pytest.mark.data


def read(name, path):
    out = list(sources.read(name, path, project="demo", memory="support"))
    assert [one for one in out if isinstance(one, sources.Problem)] == []
    return out


def payloads(runs):
    return [records.check(models.run_completed(run.data).record) for run in runs]


def said(messages):
    """How much of each kind a conversation holds, counted from its messages."""
    out = collections.Counter()
    for message in messages:
        out["call"] += len(message.get("tool_calls") or [])
        if message["role"] == "tool":
            out["output"] += 1
        elif message["role"] != "system" and message["content"]:
            out[message["role"]] += 1
    return out


def census(items):
    """The same, counted from the items of its record."""
    kinds = {"function_call": "call", "function_call_output": "output"}
    return collections.Counter(kinds.get(item.get("type")) or item["role"] for item in items)


def test_all_hundred_tau_bench_conversations_are_imported_without_loss(recorded):
    runs = read("chat", recorded / "tau-bench")
    assert len(runs) == len({run.data["run_id"] for run in runs}) == 100
    lines = [
        json.loads(line)
        for path in sorted((recorded / "tau-bench").glob("*.jsonl"))
        for line in path.read_text("utf-8").splitlines()
    ]
    for line, run, payload in zip(lines, runs, payloads(runs), strict=True):
        assert census(payload["input"] + payload["generated_items"]) == said(line["traj"])
        assert run.data["subject"] == line["info"]["task"]["user_id"]
        assert line["info"]["task"]["instruction"] not in run.data["record"]
        assert "reward" not in run.data["record"]


def test_every_output_in_tau_bench_answers_one_call(recorded):
    for payload in payloads(read("chat", recorded / "tau-bench")):
        items = payload["input"] + payload["generated_items"]
        called = [item["call_id"] for item in items if item.get("type") == "function_call"]
        answered = [item["call_id"] for item in items if item.get("type") == "function_call_output"]
        assert len(called) == len(set(called)) and set(answered) <= set(called)


def test_all_swe_agent_trajectories_are_imported_without_loss(recorded):
    runs = read("swe-agent", recorded / "swe-agent")
    paths = sorted((recorded / "swe-agent").glob("*.traj"))
    assert len(runs) == len(paths) == 6
    for path, payload in zip(paths, payloads(runs), strict=True):
        document = json.loads(path.read_text("utf-8"))
        outputs = [item["output"] for item in payload["generated_items"] if "output" in item]
        assert outputs == [step["observation"] for step in document["trajectory"]]
        assert payload["final_output"] == document["info"]["submission"]
        assert (len(payload["input"]) == 1 and "ISSUE" in json.dumps(payload)) or "CTF" in json.dumps(payload)


def test_importing_recorded_runs_twice_gives_the_same_bytes(recorded):
    for name, folder in (("chat", "tau-bench"), ("swe-agent", "swe-agent")):
        assert read(name, recorded / folder) == read(name, recorded / folder)
