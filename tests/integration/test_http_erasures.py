"""Over HTTP: what is erased answers 410 at once, also where it was kept composed; its receipt tells how far it is."""

from __future__ import annotations

import asyncio
import itertools

import pytest

pytest.importorskip("fastapi", reason="runlore[server] is not installed")

import made
from lookup_service import ACME, kind, served
from runlore.consumers import record
from runlore.lookup import seeds
from runlore.testing import stores
from runlore.upkeep import audit
from runlore.upkeep.erasing import asking, eraser


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


class Between(stores.MemoryStore):
    """A store in which something happens before read number `at`."""

    at, reads, what = -1, 0, None

    async def get(self, key):
        if self.what is not None:
            self.reads += 1
            if self.reads > self.at:
                what, self.what = self.what, None
                await what()
        return await super().get(key)


async def told_while_erased(tmp_path, path):
    """What is answered where an erasure lands before its first read, its second, and so on to the last."""
    answers = []
    for at in itertools.count():
        async with served(tmp_path / str(at), store=Between()) as one:
            for number, rollout, text in (
                (0, "conv-a", "the codeword is heliotrope"),
                (2, "conv-b", "something else"),
            ):
                said = made.payload(number, text=text)
                await one.events(made.data(number, rollout=rollout, record=said, subject="bert"))

            async def erase(one=one):
                worker = eraser.Eraser(one.store, one.bus, "acme")
                entry = await worker.begin(asking.wanted_of(project="acme", rollout="conv-a"))
                await worker.carry_on(str(entry.body["id"]))

            one.store.at, one.store.what = at, erase
            answer = await one.client.get(f"{ACME}/memories/support/{path}")
            if one.store.what is not None:
                return answers  # It reads no further.
            answers.append((answer.status_code, answer.json()))


async def test_whoever_asks_for_a_seed_while_an_erasure_lands_gets_what_stands_after_it(
    tmp_path, monkeypatch
):
    told = await told_while_erased(tmp_path / "a", "seed?session_id=conv-b")
    assert {(status, body["revision"]) for status, body in told} == {(200, 3)}
    # Asked once only, somebody would be told that it is erased.
    monkeypatch.setattr(seeds, "RESOLVED_MAX", 1)
    told = await told_while_erased(tmp_path / "b", "seed?session_id=conv-b")
    assert {(status, body.get("kind")) for status, body in told} == {(200, None), (410, "erased")}


async def test_a_search_while_an_erasure_lands_is_answered_from_what_stands_or_asked_again(tmp_path):
    told = await told_while_erased(tmp_path, "search?q=something&subject=bert")
    assert {(status, body.get("kind")) for status, body in told} == {(200, None), (503, "head_moved")}
