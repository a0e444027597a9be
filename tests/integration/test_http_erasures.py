"""Over HTTP: what is erased answers 410 at once, also where it was kept composed; its receipt tells how far it is."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("fastapi", reason="runlore[server] is not installed")

import made
from lookup_service import kind, served
from runlore.consumers import record
from runlore.upkeep import audit


async def worked(one, *numbers):
    for number in numbers:
        data = made.data(
            number, rollout=f"conv-{number}", subject="anna@example.com" if number == 1 else None
        )
        await one.post("events", data, status=202)
        await one.work()


async def until(one, erasure, state):
    for _ in range(500):
        found = (await one.get(f"erasures/{erasure}")).json()
        if found["state"] == state:
            return found
        await asyncio.sleep(0.01)
    raise AssertionError(f"it is {found['state']}")


async def test_an_erased_run_is_gone_from_every_route_and_a_redelivery_ends_erased(tmp_path):
    async with served(tmp_path) as one:
        await worked(one, 1, 2)
        seed = (await one.seed("conv-2"))["seed"]
        files = (await one.get(f"seeds/{seed}")).json()["files"]
        assert files
        plan = await one.post("erasures/plan", {"run": "run-1"}, status=200)
        assert (plan["records"], plan["memories"]) == (1, ["support"])
        told = await one.post("erasures", {"run": "run-1", "reason": "ticket 4711"}, status=202)
        done = await until(one, told["id"], "unreachable")
        assert done["removed"]["records"] == 1 and done["first_at"] and not done["second_at"]
        assert kind(await one.get(f"seeds/{seed}", status=410)) == "erased"
        assert kind(await one.get("memories/support/revisions/2", status=410)) == "erased"
        (story,) = (await one.get("runs/run-1")).json()["runs"]
        assert story["state"] == "erased"
        await one.post("events", made.data(1, rollout="conv-1", subject="anna@example.com"), status=202)
        taken = [message async for message in one.bus.read("runs")]
        assert (await record.RecordStage(one.store, one.bus).process(taken)).count(record.ERASED) == 2
        (row,) = (await one.get("erasures")).json()["items"]
        assert row["id"] == told["id"] and row["name"] == "run-1"


async def test_who_may_not_or_asks_for_nothing_is_told(tmp_path):
    async with served(tmp_path) as one:
        await worked(one, 1)
        for body in ({}, {"run": "run-1"}, {"reason": "x"}, {"run": "a", "subject": "b", "reason": "x"}):
            assert kind(await one.client.post("/v1/projects/acme/erasures", json=body)) == "invalid_input"
        for body in ({"run": 7, "reason": "x"}, {"run": "run-1", "reason": "x", "snapshots": "sell"}):
            assert kind(await one.client.post("/v1/projects/acme/erasures", json=body)) == "invalid_input"
        nobody = {"run": "nobody", "reason": "x"}
        assert kind(await one.client.post("/v1/projects/acme/erasures", json=nobody)) == "not_found"
        assert kind(await one.get("erasures/nothing", status=404)) == "not_found"


async def test_a_subject_is_nowhere_in_the_ledger_or_the_audit_log(tmp_path):
    async with served(tmp_path) as one:
        await worked(one, 1, 2)
        told = await one.post(
            "erasures", {"subject": "anna@example.com", "reason": "she asked for it"}, status=202
        )
        # Whoever had an event in hand may still put it: the first date is after that.
        assert told["state"] == "open" and told["next_pass_at"]
        for _ in range(500):
            found = (await one.get(f"erasures/{told['id']}")).json()
            if found["removed"].get("records"):
                break
            await asyncio.sleep(0.01)
        for key in [row.key async for row in one.store.list("")]:
            assert b"anna@" not in (await one.store.get(key)).body, key
        (act,) = await audit.read_all(one.store, project="acme", since=None)
        assert (act.what, act.reason) == ("forget", "she asked for it")
