"""Seeds that the lookup service hands out are in the log of seeds, whichever route does; or none is handed out."""

from __future__ import annotations

import contextlib
import json

import pytest

import made
from lookup_service import kind, served
from runlore import errors
from runlore.commit import keys, puts
from runlore.lookup import seeds
from runlore.testing.stores import MemoryStore
from runlore.upkeep import administration, logs, organization, seedlog, seedwriter

BY = {"user": "serve", "host": "pod-1"}
ANN = organization.Person(id="ann", name="ann", created_at="2026-01-01T00:00:00+00:00")


@contextlib.asynccontextmanager
async def logged(tmp_path, *, store=None, mode=seedwriter.BEFORE, with_keys=True):
    """A service that logs seeds, with a workspace and memory to hand out; and the key of a service account."""
    store = store or MemoryStore()
    writer = seedwriter.Writer(store, by=BY, mode=mode)
    async with served(tmp_path, store=store, seed_log=writer, with_keys=with_keys) as one:
        hand = administration.Administrator(store, {"user": "ann"})
        await hand.create_admin_key("first", owner=ANN)
        await hand.create_project("acme")
        account = await hand.create_account("acme", "bot")
        key, token = await hand.create_key("acme", account.id, "ci")
        one.client.headers["Authorization"] = f"Bearer {token}"
        claim = await one.archive(("a", b"one"))
        data = made.data(1, rollout="conv", subject="ana@example.org", workspaces=[{"archive": claim}])
        await one.events(data)
        yield one, key, writer
        await writer.close()


async def told(one):
    return [each async for each in seedlog.newest_first(one.store)]


async def test_a_seed_is_told_with_who_and_which_revision_and_snapshot_and_with_no_body_and_no_secret(
    tmp_path,
):
    async with logged(tmp_path) as (one, key, _):
        found = await one.seed("conv", subject="ana@example.org")
        (entry,) = await told(one)
        assert entry.by == {"via": "http", "key": key.id, "name": "ci", "account": key.account}
        pinned = seeds.parse(found["seed"])
        assert (entry.project, entry.memory, entry.rollout) == ("acme", "support", "conv")
        assert (entry.revision, entry.manifest) == (found["revision"], pinned.manifest)
        assert entry.snapshot == found["snapshot"] and entry.subject == pinned.subject
        assert entry.seed == found["seed"].rpartition(".")[0] == pinned.id
        raw = "".join(
            body.decode() for name, body in one.store.snapshot().items() if name.startswith(keys.seeds())
        )
        assert "ana@example.org" not in raw and found["seed"] not in raw
        await one.get(f"seeds/{entry.seed}", status=403)
    whole = await logs.verify(one.store)
    assert (whole.seeds.entries, whole.problems) == (1, [])


async def test_every_route_that_hands_out_a_seed_tells_it_and_its_files_once(tmp_path):
    async with logged(tmp_path) as (one, _, _):
        path = "memories/support/seed?session_id=conv"
        first = await one.get(path, headers={"X-Request-Id": "r-1"})
        name = first.json()["seed"]
        await one.get(path, headers={"If-None-Match": first.headers["etag"]}, status=304)
        await one.get(f"seeds/{name}", headers={"X-Request-Id": "no text, please"})
        for what in ("memory.tar", "workspace.tar", "files/memories/MEMORY.md"):
            await one.get(f"seeds/{name}/{what}")
        assert [each.how for each in await told(one)] == ["again", "unchanged", "seed"]
        assert [each.request for each in await told(one)] == [None, None, "r-1"]
        other = await one.key()
        for what in ("memory.tar", "workspace.tar", "files/memories/MEMORY.md"):
            await one.get(f"seeds/{name}/{what}", headers=other)
        newest, *before = await told(one)
        assert newest.how == "content" and newest.by["key"] in other["Authorization"] and len(before) == 3
        # Nothing was handed out: there is no such memory, nor such a seed.
        await one.get("memories/other/seed?session_id=nobody")
        await one.get(f"seeds/{name[:-2]}", status=403)
        await one.get(path, headers={"Authorization": "Bearer x"}, status=401)
        assert len(await told(one)) == 4


class Refusing(MemoryStore):
    """A store that takes no link of the log of seeds, for as long as is said."""

    refuses: errors.RunloreError | None = None

    async def compare_and_set(self, key, body, etag, *, guard=None):
        if self.refuses is not None and key.startswith(keys.seeds()):
            raise self.refuses
        return await super().compare_and_set(key, body, etag, guard=guard)


@pytest.mark.parametrize(
    "refusal", [errors.Blocked("no right"), errors.StoreUnavailable("503")], ids=lambda one: one.kind
)
async def test_where_the_log_can_not_be_written_no_seed_is_handed_out_until_it_can(
    tmp_path, monkeypatch, refusal
):
    monkeypatch.setattr(puts, "WAIT_SECONDS_MIN", 0.0)
    async with logged(tmp_path, store=Refusing()) as (one, _, _):
        one.store.refuses = refusal
        answer = await one.get("memories/support/seed?session_id=conv", status=503)
        assert kind(answer) == refusal.kind and "s1." not in answer.text
        one.store.refuses = None
        assert (await one.seed("conv"))["seed"]
        # The one that was refused may be told, too: it was about to be.
        assert [each.how for each in await told(one)] == ["seed", "seed"]
    assert not (await logs.verify(one.store)).problems


async def test_beside_a_seed_does_not_wait_and_off_and_without_a_log_none_is_told(tmp_path):
    async with logged(tmp_path / "a", mode=seedwriter.BESIDE) as (one, _, writer):
        assert (await one.seed("conv"))["seed"] and await told(one) == []
        await writer.close()
        assert len(await told(one)) == 1
    async with logged(tmp_path / "b", mode=seedwriter.OFF, with_keys=False) as (one, _, _):
        assert (await one.seed("conv"))["seed"] and await told(one) == []


async def test_without_keys_it_says_so_where_it_is_asked_for(tmp_path):
    async with logged(tmp_path, with_keys=False) as (one, _, _):
        await one.seed("conv")
        (entry,) = await told(one)
        assert entry.by == {"via": "http", "client": "without a key"}
        (link,) = [body for name, body in one.store.snapshot().items() if name.startswith(keys.seeds())]
        assert json.loads(link)["by"] == BY
