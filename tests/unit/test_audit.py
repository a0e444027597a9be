"""The audit log: no effect without a trace, whatever fails around it; no secret in it; listed by project and time."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import json

import pytest

from runlore import clock, errors
from runlore.commit import keys, puts, sweep
from runlore.settings import Settings
from runlore.store import port
from runlore.testing.stores import MemoryStore
from runlore.upkeep import audit

BY = {"user": "ada", "host": "desk"}
FAULTS = ("ok", "conflict", "refused", "lost but landed", "lost", "down")
ENDS = ("done", "refused", "bug", "interrupted")


class Faulty(MemoryStore):
    """The put of an entry, or the move of the head, meets the fault planned for its half once (`down`: always)."""

    def __init__(self, at="entry", **planned):
        super().__init__()
        self.at, self.planned, self.part = at, planned, "begun"

    async def put_if_absent(self, key, body):
        self.part = json.loads(body)["kind"]
        if self.at == "entry":
            return await self._faulty(key, body, None)
        return await super().compare_and_set(key, body, None)

    async def compare_and_set(self, key, body, etag, *, guard=None):
        if self.at == "head":
            return await self._faulty(key, body, etag)
        return await super().compare_and_set(key, body, etag)

    async def _faulty(self, key, body, etag):
        part = self.part
        fault = self.planned.get(part, "ok")
        if fault != "down":
            self.planned[part] = "ok"
        if fault in ("refused", "down"):
            raise errors.StoreUnavailable("503")
        if fault == "conflict":
            raise errors.WriteConflict("409")
        if fault == "lost":
            raise errors.OutcomeUnknown("reset")
        etag = await super().compare_and_set(key, body, etag)
        if fault == "lost but landed":
            raise errors.OutcomeUnknown("reset")
        return etag


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(puts, "WAIT_SECONDS_MIN", 0.0)


async def do(store, end, effects):
    async with audit.acting(
        store, by=BY, what="revert", projects=["acme"], reason="bad merge", arguments={"to": 3}
    ) as act:
        effects.append(act.entry)
        act.result["revision"] = 7
        if end == "refused":
            raise errors.Refused("no")
        if end == "bug":
            raise KeyError("canary-of-a-user")
        if end == "interrupted":
            raise asyncio.CancelledError


@pytest.mark.parametrize("at", ["entry", "head"])
@pytest.mark.parametrize(("begun", "ended", "end"), list(itertools.product(FAULTS, FAULTS, ENDS)))
async def test_no_effect_is_without_a_trace_and_the_trace_says_what_became_of_it(begun, ended, end, at):
    store, effects = Faulty(at, begun=begun, ended=ended), []
    wanted = {"refused": errors.Refused, "bug": KeyError, "interrupted": asyncio.CancelledError}.get(end)
    if begun == "down":
        with pytest.raises(errors.StoreUnavailable):
            await do(store, end, effects)
        assert effects == [] and await audit.read_all(store) == []
        return
    if wanted is None:
        await do(store, end, effects)
    else:
        with pytest.raises(wanted):
            await do(store, end, effects)
    (found,) = await audit.read_all(store)
    assert [found.id] == effects and found.by == BY and found.projects == ("acme",)
    assert (found.what, found.reason, found.arguments) == ("revert", "bad merge", {"to": 3})
    if ended == "down" or end == "interrupted":
        assert found.state == audit.UNKNOWN
        return
    assert found.state == (audit.DONE if end == "done" else audit.FAILED)
    assert found.result["revision"] == 7
    assert ("error" in found.result) == (end != "done")
    assert "canary" not in json.dumps([value.decode() for value in store.snapshot().values()])


async def test_secrets_do_not_get_into_the_log_and_long_lists_are_cut():
    store = MemoryStore()
    secret = "ghp_" + "a1B2" * 9
    async with audit.acting(
        store,
        by=BY,
        what="dead drop",
        reason=f"it held {secret}",
        arguments={"ids": [f"{secret}{n}" for n in range(500)], "nested": {"token": secret}},
    ):
        pass
    raw = b"".join(store.snapshot().values())
    assert secret.encode() not in raw and b"500 in all" in raw and len(raw) < 20_000


async def test_the_list_is_by_project_and_time_and_shows_acts_on_several_projects_to_each():
    store = MemoryStore()
    world = Days()
    clock.install(world)
    try:
        for projects in (["acme"], ["zeta"], ["acme", "zeta"], []):
            async with audit.acting(store, by=BY, what="x", projects=projects):
                await store.put(f"{projects[0]}/records/x" if projects else "zeta/y", b"")
            world.day += 20
        every = await audit.read_all(store)
        assert [one.projects for one in every] == [("acme",), ("zeta",), ("acme", "zeta"), ()]
        assert [one.projects for one in await audit.read_all(store, project="zeta")] == [
            ("zeta",),
            ("acme", "zeta"),
        ]
        for count, one in enumerate(every):
            since = dt.datetime.fromisoformat(one.at)
            assert await audit.read_all(store, since=since) == every[count:]
            assert (
                await audit.read_all(store, since=since + dt.timedelta(milliseconds=1)) == every[count + 1 :]
            )
    finally:
        clock.install(clock.World())
    # Projects are those that hold something of theirs: what belongs to the whole deployment is none.
    assert await sweep.projects(store) == ["acme", "zeta"]


class Days(clock.World):
    """A clock that stands until it is moved, in days."""

    def __init__(self):
        self.day = 0

    def now(self):
        return dt.datetime(2026, 1, 5, 12, tzinfo=dt.UTC) + dt.timedelta(days=self.day)


async def test_a_broken_entry_is_told_and_an_unknown_month_is_no_reason_to_miss_one():
    store = MemoryStore()
    await store.put(keys.audit_entry("acme", "2026-01", "0" * 32, "begun"), b"{}")
    with pytest.raises(errors.Corrupt):
        await audit.read_all(store)


def test_who_acts_is_known_without_any_variable_and_holds_no_secret(monkeypatch):
    settings = Settings(
        bus="kafka", kafka_servers="k:1", kafka_username="ops", kafka_password="hush", home="/tmp/none"
    )
    found = audit.who(settings)
    assert found["user"] and found["host"] and found["kafka_user"] == "ops"
    assert "hush" not in json.dumps(found)
    monkeypatch.setattr(audit.os, "getuid", lambda: 4_000_000_000)
    assert audit.who(Settings(home="/tmp/none"))["user"] == "uid-4000000000"


async def kept_before(store, place, entry, *, projects, ended=True):
    """An act as it was kept before acts were chained."""
    body = {"format": audit.FORMAT, "id": entry, "at": "2026-01-02T03:04:05.000+00:00", "by": BY}
    begun = {**body, "what": "pause", "reason": "x", "projects": projects, "arguments": {}}
    await store.put(keys.audit_entry(place, "2026-01", entry, "begun"), json.dumps(begun).encode())
    if ended:
        done = {**body, "state": "done", "result": {"n": 1}}
        await store.put(keys.audit_entry(place, "2026-01", entry, "ended"), json.dumps(done).encode())


async def test_acts_from_before_there_was_a_chain_are_read_after_those_in_it_and_told_apart():
    store = MemoryStore()
    await kept_before(store, "acme", f"{1:032x}", projects=["acme"])
    await kept_before(store, keys.OPERATIONS, f"{2:032x}", projects=["acme", "zeta"], ended=False)
    async with audit.acting(store, by=BY, what="revert", projects=["zeta"]):
        pass
    found = [one async for one in audit.newest_first(store)]
    assert [(one.what, one.number, one.state) for one in found] == [
        ("revert", 1, "done"),
        ("pause", None, "unknown"),
        ("pause", None, "done"),
    ]
    assert [one.number for one in await audit.read_all(store, project="acme")] == [None, None]
    assert [one.what async for one in audit.newest_first(store, actor="ada@desk")] == [
        "revert",
        "pause",
        "pause",
    ]
    assert not [one async for one in audit.newest_first(store, actor="bob")]


def test_every_key_of_an_entry_is_one_that_a_store_takes():
    for place in ("acme", keys.OPERATIONS):
        assert port.check_key(keys.audit_entry(place, "2026-01", clock.new_id(), audit.BEGUN))
