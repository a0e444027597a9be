"""Over HTTP: waiting for a run until it has come to an end, refreshing what waits for a model, and what it cost."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="runlore[server] is not installed")

import made
from lookup_service import kind, served
from runlore.commit import keys, marks
from runlore.consumers import consolidate, model_summaries, record, snapshot
from runlore.lookup import explain
from runlore.memory import guards
from runlore.models import choices
from runlore.testing import models
from runlore.upkeep import audit

SUPPORT = ("acme", "support")


async def recorded(one, *numbers):
    """These runs, recorded where a model is set; nothing asked it yet."""
    for number in numbers:
        await one.post("events", made.data(number, rollout=f"conv-{number}"), status=202)
    taken = [message async for message in one.bus.read("runs")]
    await record.RecordStage(one.store, one.bus, asks=True).process(taken)


def knows(**toml):
    chosen = choices.parse(toml)

    async def known():
        return explain.Known(chosen, {})

    return chosen, known


async def test_a_run_is_waited_for_until_its_end_or_the_wait_says_for_what_it_waits(tmp_path):
    _, known = knows(summarize={"due": {"runs": 3}})
    async with served(tmp_path, known=known) as one:
        await recorded(one, 1)
        late = await one.get("runs/run-1?wait_seconds=0.2", status=504)
        assert kind(late) == "wait_timeout" and "it is recorded" in late.json()["detail"]
        await one.work()
        (ended,) = (await one.get("runs/run-1?wait_seconds=5")).json()["runs"]
        assert (ended["end"], ended["state"]) == ("consolidated", "consolidated")
        late = await one.get("runs/run-1?wait_seconds=0.2&with_model=true", status=504)
        assert "or with 2 more runs" in late.json()["detail"]
        assert kind(await one.get("runs/run-1?wait_seconds=61", status=400)) == "invalid_input"
        late = await one.get("runs/run-1?wait_seconds=0.2&rollout=other", status=504)
        assert "nothing has that name" in late.json()["detail"]
        (story,) = (await one.get("runs/run-1")).json()["runs"]
        assert story["model"]["state"] == "waits" and "end" not in story


async def test_a_refresh_makes_it_due_and_what_it_cost_is_told(tmp_path):
    chosen, known = knows(summarize={"due": {"runs": 99}}, budget={"month_usd": 2.0})
    async with served(tmp_path, known=known) as one:
        await recorded(one, 1, 2)
        engine = models.ScriptedEngine()
        stage = model_summaries.ModelSummariesStage(one.store, one.bus, engine, chosen)
        assert await stage.model.due() == set()
        assert (await one.post("memories/support/refresh", status=202))["asks"] == 1
        assert (await one.post("memories/sales/refresh", status=202))["asks"] == 0
        assert await stage.model.due() == {SUPPORT}
        await stage.work(*SUPPORT)
        assert not [one async for one in one.store.list(keys.marks(*SUPPORT, keys.ASKS))]
        found = (await one.get("spend?by=model")).json()
        (row,) = found["rows"]
        assert (row["name"], row["calls"], row["open"]) == ("gpt-5.4-mini", 2, 0)
        (budget,) = found["budgets"]
        assert budget["limit"] == 2.0 and budget["left"] == pytest.approx(2.0 - row["cost_usd"])
        assert (await one.get("spend?month=2020-01")).json()["rows"] == []
        assert kind(await one.get("spend?month=now", status=400)) == "invalid_input"
        assert kind(await one.get("spend?by=colour", status=400)) == "invalid_input"
        acts = await audit.read_all(one.store, project="acme", since=None)
        assert [act.what for act in acts] == ["refresh", "refresh"] and acts[0].state == audit.DONE
        assert await marks.read_all(one.store, *SUPPORT, marks_max=9)


async def test_a_run_whose_workspace_is_a_branch_ends_so_and_its_workspace_is_waited_for(tmp_path):
    async with served(tmp_path) as one:
        for number in (1, 2):
            claim = await one.archive(("a.txt", b"%d" % number))
            data = made.data(number, rollout="conv", workspaces=[{"archive": claim}])
            await one.post("events", data, status=202)
            taken = [message async for message in one.bus.read("runs")]
            await record.RecordStage(one.store, one.bus).process(taken)
            await consolidate.ConsolidateStage(one.store, one.bus).work(*SUPPORT)
            late = await one.get(f"runs/run-{number}?wait_seconds=0.2", status=504)
            assert "the snapshot stage" in late.json()["detail"], "its workspace is not in its line yet"
            await snapshot.SnapshotStage(one.store, one.bus).process(taken)
        ends = [
            (await one.get(f"runs/run-{number}?wait_seconds=5")).json()["runs"][0]["end"] for number in (1, 2)
        ]
        assert ends == ["consolidated", "branched"]


async def test_a_held_run_ends_so(tmp_path, monkeypatch):
    monkeypatch.setattr(guards, "check", lambda *_: [guards.Violation("leak", "x", ())])
    async with served(tmp_path) as one:
        await one.events(made.data(1))
        (ended,) = (await one.get("runs/run-1?wait_seconds=5")).json()["runs"]
        assert ended["end"] == "held" and "runlore review" in ended["cause"]
