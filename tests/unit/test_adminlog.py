"""The log of what was administered: every change is in it once, whatever is lost, and no change to it is unseen."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hashlib
import json

import pytest

from runlore import errors
from runlore.commit import heads, keys
from runlore.testing.buses import MemoryBus
from runlore.testing.stores import MemoryStore
from runlore.upkeep import access, administration, adminlog, chain, organization, verify

ANN = organization.Person(id="ann", name="ann", created_at="2026-01-01T00:00:00+00:00")


def hand(store):
    return administration.Administrator(store, {"user": "ann@desk"}, "a test")


async def entries(store):
    tip = (await administration.read(store)).tip
    return [one async for one in adminlog.newest_first(store, tip)]


async def filled(changes=5):
    """A store with so many projects, and so many entries."""
    store = MemoryStore()
    for number in range(changes):
        await hand(store).create_project(f"p{number}")
    return store


async def names(store):
    return [row.key async for row in store.list(keys.log())]


async def test_an_untouched_log_is_whole_and_holds_what_was_written_down(monkeypatch):
    monkeypatch.setattr(chain, "READ_BATCH", 2)
    store = await filled()
    found = await administration.verify(store)
    assert (found.entries, found.beside, found.problems) == (5, 0, [])
    written = (await entries(store))[2].tip
    await hand(store).create_project("later")
    assert not (await administration.verify(store, written)).problems
    wrong = organization.Tip(number=written.number, sha256="0" * 64)
    assert (await administration.verify(store, wrong)).problems


async def test_no_organization_begins_anew_where_the_head_of_one_was_lost():
    store = await filled()
    kept = await store.get(keys.organization())
    await store.delete(keys.organization())
    with pytest.raises(errors.HeadLost, match="organization is gone"):
        await hand(store).create_project("anew")
    assert await store.get(keys.organization()) is None
    # Put back, it goes on where it was.
    await store.put(keys.organization(), kept.body)
    await hand(store).create_project("p5")
    assert set((await administration.read(store)).projects) == {f"p{number}" for number in range(6)}
    assert not (await administration.verify(store)).problems


async def test_a_first_change_whose_writer_died_before_the_head_is_no_lost_organization():
    store = await filled(1)
    await store.delete(keys.organization())
    await hand(store).create_project("p0")
    assert set((await administration.read(store)).projects) == {"p0"}


async def test_entries_that_were_read_are_not_read_again_and_new_ones_are(monkeypatch):
    monkeypatch.setattr(chain, "READ_BATCH", 2)
    store, kept = await filled(), adminlog.Kept()
    before = [one async for one in adminlog.newest_first(store, (await administration.read(store)).tip, kept)]
    await hand(store).create_project("later")
    tip, asked = (await administration.read(store)).tip, []
    read = store.get_many

    async def noted(wanted):
        asked.extend(wanted)
        return await read(wanted)

    store.get_many = noted
    after = [one async for one in adminlog.newest_first(store, tip, kept)]
    assert after[1:] == before and after[0].target == "later"
    assert asked and all(int(key.rpartition("/")[2].partition("-")[0]) >= 5 for key in asked)
    monkeypatch.setattr(chain, "KEPT_MAX", 1)
    few = adminlog.Kept()
    assert [one async for one in adminlog.newest_first(store, tip, few)] == after


async def test_an_empty_log_is_whole():
    found = await administration.verify(MemoryStore())
    assert (found.entries, found.tip.number, found.problems) == (0, 0, [])


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("how", ["removed", "altered", "renamed", "exchanged"])
async def test_an_entry_that_was_removed_altered_or_exchanged_is_found(number, how):
    store = await filled()
    key = sorted(await names(store))[number]
    body = json.loads((await store.get(key)).body)
    await store.delete(key)
    changed = json.dumps({**body, "target": "other"}).encode()
    if how == "altered":
        await store.put(key, changed)
    elif how == "renamed":
        await store.put(keys.log_entry(number + 1, hashlib.sha256(changed).hexdigest()), changed)
    elif how == "exchanged":
        other = sorted(await names(store))[number - 1]
        await store.put(key, (await store.get(other)).body)
    found = await administration.verify(store)
    assert found.problems and f" {number + 1}" in found.problems[0].replace(
        f"{number + 1:012d}", f" {number + 1}"
    )


async def test_a_head_that_was_set_back_is_found_while_later_entries_stay_and_else_by_what_was_written_down():
    store = await filled(3)
    old = (await store.get(keys.organization())).body
    for name in ("w", "x", "y", "z"):
        await hand(store).create_project(name)
    written = (await administration.read(store)).tip
    await store.put(keys.organization(), old)
    assert "set back" in (await administration.verify(store)).problems[0]
    for key in sorted(await names(store))[3:]:
        await store.delete(key)
    assert not (await administration.verify(store)).problems
    assert (await administration.verify(store, written)).problems


async def test_runlore_verify_tells_of_a_broken_log():
    store = await filled(2)
    assert not (await verify.verify(store, MemoryBus())).violations
    await store.delete(sorted(await names(store))[0])
    (violation,) = (await verify.verify(store, MemoryBus())).violations
    assert violation.where == keys.log() and "missing" in violation.what


async def test_many_writers_each_have_their_entry_in_one_chain():
    store = MemoryStore()
    await asyncio.gather(*(hand(store).create_project(f"p{number}") for number in range(12)))
    found = await administration.verify(store)
    assert found.entries == 12 and not found.problems
    assert {one.target for one in await entries(store)} == {f"p{number}" for number in range(12)}


class Lossy(MemoryStore):
    """Loses replies of moves of the head: `after` the write landed, `before` it, or it lands `late`, after a read."""

    def __init__(self, *how):
        super().__init__()
        self.how, self.held = list(how), None

    async def get(self, key):
        found = await super().get(key)
        if self.held and key == keys.organization():
            late, self.held = self.held, None
            with contextlib.suppress(errors.PreconditionFailed):
                await super().compare_and_set(*late)
        return found

    async def compare_and_set(self, key, body, etag, *, guard=None):
        how = self.how.pop(0) if self.how and key == keys.organization() else None
        if how == "after":
            await super().compare_and_set(key, body, etag, guard=guard)
        if how == "late":
            self.held = key, body, etag
        if how is not None:
            raise errors.OutcomeUnknown("the reply was lost")
        return await super().compare_and_set(key, body, etag, guard=guard)


@pytest.mark.parametrize(
    "how",
    [("after",), ("before",), ("late",), ("before", "after"), ("late", "after"), ("after", "late")],
    ids="-".join,
)
async def test_a_change_whose_reply_is_lost_is_made_once_and_told_once(how):
    store = Lossy(*how)
    made = await hand(store).create_project("acme")
    assert made.id == "acme" and [*(await administration.read(store)).projects] == ["acme"]
    assert [one.type for one in await entries(store)] == ["project.created"]
    await hand(store).create_admin_key("first", owner=ANN)
    key, _ = await hand(store).create_admin_key("second", owner=ANN)
    store.how = list(how)
    await hand(store).delete_admin_key(key.id)
    assert len(await entries(store)) == 4 and not (await administration.verify(store)).problems


async def test_a_key_that_could_not_be_put_into_the_log_opens_nothing():
    store = await filled(1)
    moved = store.compare_and_set

    async def refused(key, body, etag, *, guard=None):
        if key == keys.organization():
            raise errors.Blocked("no right to it")
        return await moved(key, body, etag, guard=guard)

    store.compare_and_set = refused
    with pytest.raises(errors.Blocked):
        await hand(store).create_machine_key("p0", scope="read", name="x")
    assert all(one.revoked_at for one in await access.list_all(store, "p0"))


async def test_fields_of_a_newer_version_survive_a_change():
    store = await filled(1)
    head = await heads.read(store, keys.organization(), fmt=organization.FORMAT)
    body = json.loads(json.dumps(head.body))
    body["newer"] = {"x": 1}
    body["projects"]["p0"]["newer"] = [1]
    body["projects"]["p0"]["limits"] = {"seed": {"requests_per_minute": 5, "newer": "a"}}
    await store.compare_and_set(keys.organization(), json.dumps(body).encode(), head.etag)
    await hand(store).rename_project("p0", "P")
    after = json.loads((await store.get(keys.organization())).body)
    assert after["newer"] == {"x": 1} and after["projects"]["p0"]["newer"] == [1]
    limit = after["projects"]["p0"]["limits"]["seed"]
    assert (limit["requests_per_minute"], limit["newer"]) == (5, "a")


async def test_keys_that_ended_do_not_pile_up_in_the_head(monkeypatch):
    monkeypatch.setattr(administration, "ENDED_KEYS_KEPT", 3)
    store = MemoryStore()
    # Not before every replica has forgotten the objects that said nothing of it yet.
    for number in range(5):
        key, _ = await hand(store).create_machine_key("acme", scope="read", name=f"k{number}")
        await hand(store).delete_key("acme", key.id)
    assert len((await administration.read(store)).ended_keys) == 5
    monkeypatch.setattr(administration, "ENDED_KEPT", dt.timedelta(0))
    for number in range(8):
        key, _ = await hand(store).create_machine_key("acme", scope="read", name=f"k{number}")
        await hand(store).delete_key("acme", key.id)
        assert len((await administration.read(store)).ended_keys) <= 3
        with pytest.raises(errors.NotFound):
            await hand(store).delete_key("acme", key.id)
    assert all(one.revoked_at for one in await access.list_all(store, "acme"))


async def test_a_broken_head_of_the_organization_is_told_and_never_written_over():
    store = MemoryStore()
    await store.put(keys.organization(), b'{"format": "runlore.organization/1", "projects": 7}')
    with pytest.raises(errors.Corrupt):
        await hand(store).create_project("acme")
    await store.put(keys.organization(), b'{"format": "runlore.organization/2"}')
    with pytest.raises(errors.Fatal):
        await hand(store).create_project("acme")
