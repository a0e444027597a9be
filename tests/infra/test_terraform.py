"""The rights in infra/terraform against the code: the pipeline runs with them, and strange names gain nothing.

A policy is read from the .tf files as AWS would evaluate it: an explicit denial, then an allowance, else no; `*`
matches any characters, '/' too, and `?` one. Terraform itself can not be run here.
"""

from __future__ import annotations

import datetime as dt
import io
import json
import random
import re
import tarfile
from functools import cache
from pathlib import Path
from unittest import mock

import hcl2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import console_pages
import made
from lookup_service import served
from runlore import clock, errors, pipeline, producer
from runlore.bus import port as bus_port
from runlore.commit import age, erasures, keys, lines, marks, redaction, revisions, sides, sweep
from runlore.consumers import (
    consolidate,
    dead,
    model_notes,
    model_summaries,
    promote,
    rebuild,
    record,
    rescan,
    snapshot,
)
from runlore.lookup import handing, seeds, workspaces
from runlore.lookup import index as lookup_index
from runlore.models import choices
from runlore.snapshots import library
from runlore.testing import models as scripted
from runlore.testing.buses import MemoryBus
from runlore.testing.stores import MemoryStore
from runlore.upkeep import (
    access,
    administration,
    allotments,
    audit,
    doctor,
    logs,
    organization,
    repair,
    seedlog,
    seedwriter,
    spendalerts,
    spendlimits,
    verify,
)
from runlore.upkeep.erasing import asking, eraser, proof, receipts

KINDS = {value for name, value in vars(keys).items() if name.isupper() and isinstance(value, str)} - {
    keys.OPERATIONS
}
WITHIN = {"organization": keys.ADMIN}
"""Places that are one object of a kind: whoever may the kind may these."""


def plain(value):
    """A parsed value with the quotes of HCL's strings taken off."""
    if isinstance(value, dict):
        return {
            plain(name): plain(one)
            for name, one in value.items()
            if name not in ("__is_block__", "__comments__")
        }
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value[1:-1] if isinstance(value, str) and value[:1] == value[-1:] == '"' else value


@pytest.fixture(scope="session")
def terraform(infra):
    """File → its blocks."""
    return {
        path.name: plain(hcl2.loads(path.read_text("utf-8")))
        for path in sorted((infra / "terraform").glob("*.tf"))
    }


@pytest.fixture(scope="session")
def rights(terraform):
    return Rights(terraform["roles.tf"]["locals"][0])


@cache
def matcher(pattern):
    return re.compile("".join({"*": ".*", "?": "."}.get(one, re.escape(one)) for one in pattern), re.S)


class Rights:
    """What each role may do: as in the policy documents of roles.tf."""

    def __init__(self, local):
        self.places, self.roles = local["places"], local["roles"]
        self.conditional, self.ambiguous = local["conditional"], set(local["ambiguous"])

    def fits(self, key, places):
        return any(matcher(self.places[place]).fullmatch(key) for place in places)

    def may(self, role, action, key):
        granted = self.roles[role][action]
        denied = () if self.ambiguous & set(granted) else self.ambiguous
        return self.fits(key, granted) and not self.fits(key, denied)


class Allowed:
    """A store as one role sees it: refuses what its policy does not allow, and what the bucket denies to everybody."""

    def __init__(self, rights, store, role):
        self.rights, self.store, self.role = rights, store, role
        self.used = set()

    def check(self, action, key, *, conditional=False):
        if action == "write" and not conditional and self.rights.fits(key, self.rights.conditional):
            raise errors.Blocked(f"the bucket denies an unconditional write of {key}")
        if not self.rights.may(self.role, action, key):
            raise errors.Blocked(f"{self.role} may not {action} {key}")
        self.used.add((action, kind_of(key)))

    async def get(self, key):
        self.check("read", key)
        return await self.store.get(key)

    async def get_many(self, keys):
        return [await self.get(key) for key in keys]

    async def get_range(self, key, offset, length):
        self.check("read", key)
        return await self.store.get_range(key, offset, length)

    async def get_tail(self, key, length):
        self.check("read", key)
        return await self.store.get_tail(key, length)

    async def put(self, key, body):
        self.check("write", key)
        return await self.store.put(key, body)

    async def put_if_absent(self, key, body):
        self.check("write", key, conditional=True)
        return await self.store.put_if_absent(key, body)

    async def compare_and_set(self, key, body, etag, *, guard=None):
        self.check("write", key, conditional=True)
        return await self.store.compare_and_set(key, body, etag, guard=guard)

    async def delete(self, key):
        self.check("delete", key)
        await self.store.delete(key)

    async def delete_many(self, wanted):
        for key in wanted:
            await self.delete(key)

    async def compare_and_delete(self, key, etag):
        self.check("read", key)
        self.check("delete", key)
        await self.store.compare_and_delete(key, etag)

    def list(self, prefix):
        assert set(self.rights.roles[self.role]["read"]) - {"redaction"}, f"{self.role} may not list"
        return self.store.list(prefix)

    async def children(self, prefix):
        assert set(self.rights.roles[self.role]["read"]) - {"redaction"}, f"{self.role} may not list"
        return await self.store.children(prefix)

    async def settle(self):
        await self.store.settle()


def kind_of(key):
    if key == keys.organization():
        return "organization"
    parts = key.split("/")
    return parts[1] if parts[0] == keys.OPERATIONS or not parts[0].startswith("_") else parts[0]


# --- the table ------------------------------------------------------------------------------------------------


def test_the_table_of_kinds_is_that_of_the_code(rights):
    assert rights.places.keys() == KINDS | WITHIN.keys()


def test_a_role_is_granted_only_kinds_that_exist(rights):
    for role, one in rights.roles.items():
        assert one.keys() == {"read", "write", "delete"}, role
        assert {place for places in one.values() for place in places} <= KINDS | WITHIN.keys(), role
    assert set(rights.conditional) | rights.ambiguous <= KINDS


def test_sweeper_and_eraser_alone_may_delete_what_heads_need_and_none_may_delete_a_head(rights):
    for role, one in rights.roles.items():
        heads = {keys.ROLLOUTS, keys.MEMORIES, keys.SIDES, keys.WORKSPACES, keys.ERASURES, keys.AUDIT}
        heads |= {keys.ACTS, keys.SEEDS, keys.ADMIN}
        assert not set(one["delete"]) & heads, role
        kept = {keys.RECORDS, keys.CLAIMS, keys.OUTCOMES, keys.DEAD_LETTERS, keys.ANSWERS}
        assert role == "eraser" or not set(one["delete"]) & kept, role
        if role not in ("sweeper", "eraser"):
            assert not set(one["delete"]) & set(sweep.KINDS), role
    assert set(rights.roles["eraser"]["delete"]) >= set(sweep.KINDS)
    assert set(rights.roles["sweeper"]["delete"]) == set(sweep.KINDS)


def test_the_index_may_what_lookup_may_and_say_how_it_is(rights):
    own, lookup = rights.roles["index"], rights.roles["lookup"]
    for action in own:
        assert set(own[action]) - set(lookup[action]) == {keys.WORKERS}, action


def test_whoever_deletes_by_comparison_may_read_because_s3_asks_for_both(rights):
    assert set(rights.roles["operator"]["delete"]) <= set(rights.roles["operator"]["read"])


# --- the policies, as they would be evaluated ------------------------------------------------------------------

NAMES = st.one_of(
    st.sampled_from(sorted(KINDS - {keys.DEAD_LETTERS})),
    st.sampled_from(["ab", "00", "2026-11", "a", "acme", "run-1", "support"]),
    st.from_regex(r"[a-z0-9][a-z0-9.-]{0,5}", fullmatch=True),
)
SHA = "0a" * 32


@st.composite
def objects(draw):
    """A key of any kind, with names that may look like kinds; and its kind."""
    project, memory, rollout, agent, run = (draw(NAMES) for _ in range(5))
    return draw(
        st.sampled_from(
            [
                (keys.ROLLOUTS, keys.rollout_head(project, memory, rollout)),
                (keys.RECORDS, keys.record(project, memory, rollout, run, 1)),
                (keys.MARKS, keys.mark(project, memory, "0" * 32)),
                (keys.MEMORIES, keys.memory_head(project, memory)),
                (keys.SIDES, keys.side_head(project, memory, rollout)),
                (keys.MANIFESTS, keys.manifest(project, memory, 7, SHA)),
                (keys.PACKS, keys.pack(project, SHA)),
                (keys.CLAIMS, keys.claim(project, SHA)),
                (keys.SNAPSHOTS, keys.snapshot_pack(project, f"{SHA}/{SHA}")),
                (keys.BLOBS, keys.snapshot_pack(project, SHA)),
                (keys.WORKSPACES, keys.snapshot_head(project, rollout, agent)),
                (keys.OUTCOMES, keys.outcome(project, rollout, agent, run, 1)),
                (keys.AUDIT, keys.audit_entry(project, "2026-11", "0" * 32, "begun")),
                (keys.AUDIT, keys.audit_entry(keys.OPERATIONS, "2026-11", "0" * 32, "begun")),
                (keys.DEAD_LETTERS, keys.dead_letter(SHA)),
                (keys.PAUSES, keys.pause("consolidate", project, memory)),
                (keys.WORKERS, keys.worker("w-1")),
                (keys.PROBES, keys.probe("p")),
                (keys.ACCESS, keys.access_key("0" * 32)),
                (keys.SECRETS, keys.secret("seed-signing")),
                (keys.REDACTION, keys.redaction(project)),
                ("organization", keys.organization()),
                (keys.ALERTS, keys.spend_alert("2026-11", "spend-alert-1", 500)),
                (keys.ADMIN, keys.log_entry(7, SHA)),
                (keys.USED, keys.last_use("0" * 32)),
                (keys.ACTS, keys.acts_head()),
                (keys.ACTS, keys.act_entry(7, SHA)),
                (keys.SEEDS, keys.seeds_link("2026-11-23-17", "0" * 32, 7, SHA)),
                (keys.REQUESTS, keys.request(project, SHA)),
                (keys.ANSWERS, keys.answer(project, SHA)),
                (keys.ASKS, keys.mark(project, memory, "0" * 32, keys.ASKS)),
                (keys.JOINS, keys.mark(project, memory, "0" * 32, keys.JOINS)),
                (keys.SPEND, keys.spend(project, "2026-11")),
            ]
        )
    )


@settings(max_examples=500)
@given(objects())
def test_what_a_name_looks_like_takes_no_right_away_and_lets_nobody_delete(one):
    rights, (kind, key) = RIGHTS(), one
    for role, granted in rights.roles.items():
        for action, places in granted.items():
            allowed = rights.may(role, action, key)
            if {kind, WITHIN.get(kind)} & set(places):
                assert allowed, f"{role} can not {action} {key}"
            elif action == "delete" or not rights.ambiguous & set(places):
                assert not allowed, f"{role} can {action} {key}"
    # An unconditional write is denied where it is never meant, and never where it is.
    assert rights.fits(key, rights.conditional) == (
        WITHIN.get(kind, kind) in rights.conditional or kind in rights.ambiguous
    )


@cache
def RIGHTS():
    text = (Path(__file__).resolve().parents[2] / "infra/terraform/roles.tf").read_text("utf-8")
    return Rights(plain(hcl2.loads(text))["locals"][0])


def test_the_mutant_without_denials_is_caught(rights):
    """A record of a memory called `marks`: the worker's right to delete marks would fit it."""
    key = keys.record("acme", "marks", "ab", "run-1", 1)
    assert rights.fits(key, ["marks"]) and not rights.may("worker", "delete", key)


# --- the rights, in use ---------------------------------------------------------------------------------------


LARGE = random.Random(1).randbytes(40 * 1024 * 1024)
"""More than one pack holds."""


def archive(*contents):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for number, content in enumerate(contents):
            info = tarfile.TarInfo(f"{number}.md")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return raw.getvalue()


class Deployment:
    """One store and one bus, and each role's view of them."""

    def __init__(self, rights):
        self.store, self.bus = MemoryStore(), MemoryBus()
        self.views = {role: Allowed(rights, self.store, role) for role in rights.roles}

    async def publish(self, *runs):
        source = self.views["source"]
        sender = producer.Producer(source, self.bus, hashing=redaction.Keys(source))
        await sender.publish(runs, source="/t")
        await self.work()

    async def work(self):
        worker = self.views["worker"]
        taken = [one async for one in self.bus.read("runs")]
        hashing = redaction.Keys(worker)
        await record.RecordStage(worker, self.bus, asks=True, hashing=hashing).process(taken)
        summaries = model_summaries.ModelSummariesStage(
            worker, self.bus, scripted.ScriptedEngine(), choices.Choices(), hashing=hashing
        )
        together = model_notes.ModelNotesStage(worker, self.bus, scripted.ScriptedEngine(), choices.Choices())
        await snapshot.SnapshotStage(worker, self.bus).process(taken)
        operator = administration.Administrator(self.views["operator"], {"user": "ann"})
        await spendlimits.create_alert(operator, None, 0, recipients=["ann@example.org"])
        for memory in ("support", "marks"):
            await summaries.work("acme", memory)
            await consolidate.ConsolidateStage(worker, self.bus, joins=True).work("acme", memory)
            await together.work("acme", memory)
        await spendalerts.Alerts(worker, None).check()

    async def seed(self, rollout):
        reader = revisions.Reader(self.views["lookup"])
        found = await seeds.resolve(reader, "acme", "support", rollout)
        return found, await seeds.open_seed(reader, found)


async def deployed(rights):
    """A deployment that has seen runs of every kind, and whose snapshot heads forget soon."""
    with mock.patch.object(lines, "VERSIONS_MAX", 1):
        return await _deployed(Deployment(rights))


async def _deployed(one):
    source = one.views["source"]
    claim = (await producer.put_claim(source, "acme", archive(b"one"))).model_dump()
    await one.publish(
        made.data(1, rollout="conv", workspaces=[{"archive": claim}]),
        made.data(2, record=made.payload(2, text="x" * 300_000)),
        made.data(3, rollout="ab", memory="marks"),
    )
    ref = (await lines.read(one.store, lines.line_of("acme", "conv", None))).body["ref"]
    for number, contents in ((4, [b"half"]), (5, [b"two", LARGE])):
        seed, _ = await one.seed("conv")
        claim = (await producer.put_claim(source, "acme", archive(*contents))).model_dump()
        await one.publish(
            made.data(number, rollout="conv", workspaces=[{"archive": claim, "base": seed.base}])
        )
    # The head forgot the first version, so it is an outcome only: who redelivers its run is compared with that.
    await one.publish(made.data(1, rollout="conv", workspaces=[{"snapshot": ref}]))
    # A crash between a record and its rollout's head: who takes the run again meets its record.
    await one.store.delete(keys.rollout_head("acme", "marks", "ab"))
    await one.work()
    stream = io.BytesIO(b"{" + b"x" * 1_200_000 + b"}\n")
    assert [sent async for sent in producer.Producer(source, one.bus).emit(stream, source="/t")]
    too_long = bus_port.Message("runs", 0, 99, None, b"x" * 1_100_000, [], 0.0)
    await record.RecordStage(one.views["worker"], one.bus).process([too_long])
    return one


async def test_worker_and_source_need_what_they_are_granted_and_no_more(rights):
    one = await deployed(rights)
    # Used by what is beside the stages: what a worker says of itself, the pauses that it obeys, and `doctor`. And a
    # version that shares little of a small pack copies it, which takes more versions than these.
    beside = {("read", "pauses"), ("read", "blobs")}
    beside |= {(action, place) for action in ("read", "write", "delete") for place in ("workers", "probes")}
    for role in ("worker", "source"):
        granted = {(action, place) for action, places in rights.roles[role].items() for place in places}
        assert one.views[role].used | (beside if role == "worker" else set()) == granted, role


async def test_a_seed_is_served_with_the_rights_of_lookup(rights, tmp_path):
    one = await deployed(rights)
    seed, opened = await one.seed("conv")
    assert seed.snapshot and opened.files
    snapshots = library.Snapshots(one.views["lookup"], "acme", cache_dir=tmp_path / "cache")
    await workspaces.restore(snapshots, opened, tmp_path / "space")
    assert (tmp_path / "space/0.md").read_bytes() == b"two"
    index = lookup_index.Index(tmp_path / "index.db")
    try:
        assert (await lookup_index.reconcile(index, one.views["lookup"])).applied
    finally:
        index.close()
    used = {place for action, place in one.views["lookup"].used if action == "read"}
    assert used == set(rights.roles["lookup"]["read"])


async def test_the_service_answers_with_the_rights_of_serve(rights, tmp_path):
    one = await deployed(rights)
    seed, _ = await one.seed("conv")
    view = one.views["serve"]
    async with served(tmp_path, store=view, bus=one.bus) as asked:
        claim = await asked.post("archives", archive(b"three"), status=201)
        event = made.data(9, rollout="conv", workspaces=[{"archive": claim}])
        await asked.post("events", event, status=202, headers={"Idempotency-Key": "k"})
        await asked.post("events", event, status=202, headers={"Idempotency-Key": "k"})
        large = made.data(10, record=made.payload(10, text="x" * 300_000))
        await asked.post("events", large, status=202)
        await one.work()
        # Its base was not the head, so it became a branch.
        assert (await asked.post("snapshots/merge", {"rollout": "conv"}, status=200))["state"] == "moved"
        found = await asked.seed("conv", wait_for="run-9")
        assert found["base"]["counter"] > seed.base["counter"]
        for path in (
            f"seeds/{found['seed']}/workspace.tar",
            f"seeds/{found['seed']}/memory.tar",
            "snapshots",
            "memories",
            "memories/support/search?q=task",
            "memories/support/revisions/head/why/memory_summary.md?line=3",
            "memories/support/diff",
            "runs/run-9",
        ):
            await asked.get(path)
        writer, token = await access.create(one.views["operator"], "acme", scope="read", name="x")
        assert (await access.read(view, writer.id)).opens_with(token.rpartition("_")[2])
        with pytest.raises(errors.Blocked):
            await access.create(view, "acme", scope="admin", name="its own")
    with pytest.raises(errors.Blocked):
        await view.delete(keys.memory_head("acme", "support"))


async def test_what_is_held_is_decided_with_the_rights_of_serve_admin_and_shown_with_those_of_serve(
    rights, tmp_path
):
    one = await deployed(rights)
    operator = one.views["operator"]
    await one.publish(made.data(11, rollout="new"))
    await one.work()
    await consolidate.revert(
        operator, one.bus, revisions.Reader(operator), "acme", "support", to=1, reason="it was better"
    )
    decided = {"rollouts": ["new"], "reason": "looked at it"}
    for role, wanted in (("serve", 503), ("serve_admin", 200)):
        async with served(tmp_path / role, store=one.views[role], bus=one.bus) as asked:
            assert (await asked.get("memories/support/review")).json()["items"], role
            for verb in ("reject", "approve"):
                await asked.post(f"memories/support/review/{verb}", decided, status=wanted)


LIMIT = {"threshold_amount": 5, "currency": "USD", "interval": "month"}


async def test_it_is_administered_with_the_rights_of_serve_admin_and_of_an_operator_and_not_with_those_of_serve(
    rights, tmp_path
):
    one = Deployment(rights)
    ann = organization.Person(id="ann", name="ann", created_at="2026-01-01T00:00:00+00:00")
    operator = administration.Administrator(one.views["operator"], {"user": "ann"})
    _, token = await operator.create_admin_key("first", owner=ann)
    headers = {"Authorization": f"Bearer {token}"}
    place = "v1/organization/projects"
    for role, wanted in (("serve", 503), ("serve_admin", 200)):
        async with served(tmp_path / role, store=one.views[role], bus=one.bus, with_keys=True) as asked:
            answer = await asked.client.get(f"/{place}", headers=headers)
            assert answer.status_code == 200, role
            for path, body in (
                (place, {"name": "acme"}),
                (f"{place}/acme/service_accounts", {"name": "bot"}),
                (f"{place}/acme/rate_limits/rl-seed", {"max_requests_per_1_minute": 9}),
                (f"{place}/acme/spend_limit", LIMIT),
                ("v1/organization/spend_limit", LIMIT),
            ):
                answer = await asked.client.post(f"/{path}", json=body, headers=headers)
                assert answer.status_code == wanted, (role, path, answer.text)
                if wanted != 200:
                    break
                made = answer.json()
                if "api_key" in made:
                    key = {"Authorization": f"Bearer {made['api_key']['value']}"}
    async with served(tmp_path / "data", store=one.views["serve"], bus=one.bus, with_keys=True) as asked:
        await asked.get("memories", headers=key)
        # Counted for the limit that was set, which takes the right to its tally.
        await asked.get("memories/support/seed?session_id=s", headers=key)
    (taken,) = await allotments.handed_out(one.views["operator"], [("acme", "seed", None)])
    assert taken in ({"requests": 1}, {})  # The minute may have turned.
    async with served(tmp_path / "end", store=one.views["serve_admin"], with_keys=True) as asked:
        (listed,) = (await asked.client.get(f"/{place}/acme/api_keys", headers=headers)).json()["data"]
        assert listed["last_used_at"]
        gone = await asked.client.delete(f"/{place}/acme/api_keys/{listed['id']}", headers=headers)
        assert gone.status_code == 200
        found = await asked.client.get("/v1/organization/audit_logs", headers=headers)
        assert len(found.json()["data"]) == 8
        for path in ("spend_limit", "projects/acme/spend_limit", "spend_alerts", "costs?start_time=0"):
            shown = await asked.client.get(f"/v1/organization/{path}", headers=headers)
            assert shown.status_code == 200, path
    assert not (await administration.verify(one.views["operator"])).problems


async def test_acts_and_seeds_are_logged_with_each_role_that_writes_them_and_verified_with_that_of_an_operator(
    rights, tmp_path
):
    one = await deployed(rights)
    for role in ("serve", "serve_admin", "sweeper", "rescanner", "operator"):
        async with audit.acting(one.views[role], by={"user": role}, what="test"):
            pass
    for role in ("serve", "serve_admin", "operator"):
        writer = seedwriter.Writer(one.views[role], by={"user": role})
        async with served(
            tmp_path / role,
            store=one.views[role] if role != "operator" else one.views["serve"],
            seed_log=writer,
        ) as asked:
            assert (await asked.seed("conv"))["seed"]
        await writer.close()
    with pytest.raises(errors.Blocked):
        await seedwriter.Writer(one.views["lookup"], by={}).hand_out(
            handing.handed((await one.seed("conv"))[0], by={})
        )
    found = await logs.verify(one.views["operator"])
    assert (found.seeds.writers, found.problems) == (3, [])
    for role in ("operator", "serve_admin"):
        assert len([row async for row in seedlog.newest_first(one.views[role])]) == 3
        assert len(await audit.read_all(one.views[role])) == 5


async def test_the_console_answers_with_the_rights_of_serve_and_ends_no_key_with_them(rights, tmp_path):
    one = await deployed(rights)
    async with served(tmp_path, store=one.views["serve"], bus=one.bus) as asked:
        await asked.post("events", {**made.data(11), "record": "no JSON"}, status=202)
        await one.work()
        found, routes = await console_pages.crawled(asked, "/projects/acme", most=3)
        assert {route.rpartition("}/")[2] for route in routes} >= {
            "runs",
            "snapshots",
            "dead",
            "status",
            "keys",
        }
        (letter,) = [path for path, seen in found.items() if any("redrive" in str(one) for one in seen.forms)]
        sent = {"token": found[letter].token(), "reason": "mended"}
        done = await asked.client.post(f"{letter}/redrive", data=sent, headers=console_pages.HTML)
        assert done.status_code == 303
        key, _ = await access.create(one.views["operator"], "acme", scope="read", name="x")
        path = f"/projects/acme/keys/{key.id}/revoke"
        refused = await asked.client.post(path, data=sent, headers=console_pages.HTML)
        console_pages.whole(refused, status=503)
        assert (await access.read(one.store, key.id)).revoked_at is None


async def test_a_sweep_runs_with_the_rights_of_the_sweeper(rights):
    one = await deployed(rights)
    sweeper = one.views["sweeper"]
    plan = await sweep.scan(sweeper, "acme")
    # Nothing ever names what an idempotency key stood for.
    assert plan.kept.keys() == set(sweep.KINDS) - {keys.REQUESTS}
    plan.victims = [
        sweep.Victim(row.key, row.size, row.modified)
        for kind in sweep.KINDS
        async for row in one.store.list(f"acme/{kind}/")
    ]
    assert await sweep.delete(sweeper, plan, per_second=1e6) == len(plan.victims)
    with pytest.raises(errors.Blocked):
        await sweeper.delete(keys.memory_head("acme", "support"))


async def test_a_rescan_runs_with_the_rights_of_the_rescanner_and_needs_them_all(rights):
    one = await deployed(rights)
    rescanner = one.views["rescanner"]
    assert (await rescan.Rescan(rescanner, "acme").scan()).found == 0
    token = "ghp_" + "aB3dE5" * 6
    where = keys.record("acme", "support", "conv", "run-1", 1)
    await one.store.put(where, (await one.store.get(where)).body.replace(b"user", token.encode()))
    (answer, *_) = [row.key async for row in one.store.list(keys.answers("acme"))]
    told = json.loads((await one.store.get(answer)).body)
    told["result"]["title"] = token
    await one.store.put(answer, json.dumps(told).encode())
    by = {"user": "ana"}
    async with audit.acting(rescanner, by=by, what="rescan", projects=["acme"], reason="test"):
        report = await rescan.Rescan(rescanner, "acme").scan(apply=True, every=True)
    assert (report.rewritten, report.answers) == (1, 1) and report.marked
    granted = {(action, place) for action, places in rights.roles["rescanner"].items() for place in places}
    # The key is there already: it is drawn where a project was never redacted with one.
    assert granted - rescanner.used == {("write", "redaction")}


async def test_lost_heads_are_made_again_with_the_rights_of_the_repairer(rights):
    one = await deployed(rights)
    view = one.views["repairer"]
    consumer = await one.bus.consumer(group="snapshot", topics=["runs"])
    found = await consumer.poll(records_max=1000, timeout_seconds=0)
    await consumer.commit({message.at: message.offset + 1 for message in found})
    await consumer.close()
    for key in (
        keys.memory_head("acme", "support"),
        keys.rollout_head("acme", "support", "conv"),
        keys.snapshot_head("acme", "conv", "main"),
    ):
        await one.store.delete(key)
    async with audit.acting(view, by={"user": "ana"}, what="repair", projects=["acme"], reason="test"):
        found = await repair.Repair(view, one.bus, asks=True).run(apply=True)
    assert {one.kind for one in found if one.does} >= {repair.MEMORY, repair.ROLLOUT, repair.WORKSPACE}
    await one.work()
    assert await repair.Repair(view, one.bus).run() == []
    with pytest.raises(errors.Blocked):
        await view.delete(keys.memory_head("acme", "support"))


async def test_an_erasure_runs_with_the_rights_of_the_eraser_to_its_second_date(rights, monkeypatch):
    one = await deployed(rights)
    view = one.views["eraser"]
    erasing = eraser.Eraser(view, one.bus, "acme")
    entry = await erasing.begin(asking.wanted_of(project="acme", memory="support"))
    for later in (dt.timedelta(), eraser.IN_HAND, eraser.LAST_LOOK + 2 * eraser.IN_HAND):
        there = clock.now() + later
        monkeypatch.setattr(clock, "now", lambda there=there: there)
        entry = await erasing.carry_on(str(entry.body["id"]))
        monkeypatch.undo()
    assert entry.body["state"] == erasures.DONE and entry.body["removed"]["records"]
    assert not [row async for row in one.store.list("acme/records/") if "/support/" in row.key]
    granted = {(action, place) for action, places in rights.roles["eraser"].items() for place in places}
    rest = granted - view.used
    # A claim, a letter's parts and a side line are not in every deployment; the command itself keeps the act.
    assert not {one for one in rest if one[1] in (keys.ROLLOUTS, keys.RECORDS, keys.MEMORIES, keys.ERASURES)}
    assert (await proof.prove(one.store, one.bus, receipts.of(entry.body))).problems == []


async def test_a_person_reverts_and_verifies_with_the_rights_of_an_operator(rights):
    one = await deployed(rights)
    operator = one.views["operator"]
    number, _ = await consolidate.revert(
        operator, one.bus, revisions.Reader(operator), "acme", "support", to=1, reason="test"
    )
    assert number == 4
    await marks.put(operator, "acme", "support", ["conv"], releases={"conv": 1}, reason="test")
    assert not (await verify.verify(operator, one.bus)).violations
    for letter in await dead.read_all(one.bus):
        assert await dead.value_of(operator, letter)


async def test_a_person_builds_a_side_by_a_model_promotes_and_drops_it_with_the_rights_of_an_operator(rights):
    one = await deployed(rights)
    operator = one.views["operator"]
    setup = rebuild.setup_of(choices.Choice(model="gpt-5.4"))
    line = rebuild.Rebuild(operator, one.bus, "acme", "support", "luna")
    built = await line.build(setup, reason="test", engine=scripted.ScriptedEngine())
    assert built.revision and built.progress.asks
    reader = revisions.Reader(operator)
    await promote.promote(operator, one.bus, reader, "acme", "support", "luna", reason="test")
    await sides.drop(operator, "acme", "support", "luna", reason="test")
    assert not (await verify.verify(operator, one.bus)).violations
    # Whoever serves reads it, and changes nothing of it; whoever sweeps must see it.
    head = keys.side_head("acme", "support", "luna")
    for role in ("serve", "sweeper"):
        assert await one.views[role].get(head)
        with pytest.raises(errors.Blocked):
            await one.views[role].compare_and_set(head, b"{}", None)


@pytest.mark.parametrize(("role", "may"), [("worker", True), ("operator", True), ("lookup", False)])
async def test_doctor_finds_a_role_fit_for_what_it_is_for(rights, role, may):
    view = Allowed(rights, MemoryStore(), role)
    checks = await doctor.of_store(view)
    assert checks and all(one.ok for one in checks) == may, checks
    if may:
        assert [row async for row in view.store.list("")] == []


# --- the bucket -----------------------------------------------------------------------------------------------


def blocks(terraform, file, kind, of):
    return [one[of] for one in terraform[file][kind] if of in one]


def test_no_rule_expires_what_a_head_may_name(terraform):
    (found,) = blocks(terraform, "bucket.tf", "resource", "aws_s3_bucket_lifecycle_configuration")
    for rule in found["store"]["rule"]:
        if "expiration" in rule:
            assert rule["filter"] == [{"prefix": "${var.prefix}" + keys.DEAD_LETTERS + "/"}]
            assert rule["expiration"][0]["days"] * 24 > pipeline.DEAD.retention_hours
        for one in rule.get("abort_incomplete_multipart_upload", ()):
            assert one["days_after_initiation"] * 24 > age.TERM.total_seconds() / 3600


def test_the_bucket_is_private_encrypted_and_refuses_old_signatures(terraform):
    (public,) = blocks(terraform, "bucket.tf", "resource", "aws_s3_bucket_public_access_block")
    assert [str(value).lower() for name, value in public["store"].items() if name != "bucket"] == ["true"] * 4
    (policy,) = blocks(terraform, "bucket.tf", "data", "aws_iam_policy_document")
    statements = {one["sid"]: one for one in policy["bucket"]["statement"]}
    assert all(one["effect"] == "Deny" for one in statements.values())
    (fresh,) = statements["FreshSignaturesOnly"]["condition"]
    assert fresh["values"] == [str(int(age.WINDOW.total_seconds() * 1000))]
    assert {one["variable"] for one in statements["ConditionalWritesOnly"]["condition"]} == {
        "s3:if-match",
        "s3:if-none-match",
        "s3:ObjectCreationOperation",
    }
    assert statements["TlsOnly"]["condition"][0]["variable"] == "aws:SecureTransport"


def test_policies_name_places_by_the_table_alone(infra):
    """A literal place in a document would be one that nobody compares with the code; the producer's is its own."""
    text = (infra / "terraform/roles.tf").read_text("utf-8") + (infra / "terraform/bucket.tf").read_text(
        "utf-8"
    )
    literal = re.findall(r"aws_s3_bucket\.store\.arn\}/([^\"]*)\"", text)
    allowed = {"*", "${var.prefix}${local.places[place]}", "${var.prefix}${pattern}"}
    assert set(literal) - allowed == {"${var.prefix}${each.key}/claims/??/*"}


def test_every_policy_fits_into_what_aws_takes(rights):
    """A managed policy has 6,144 characters at most, without spaces; here with the longest bucket and a long prefix."""
    arn = len('"arn:aws:s3:::') + 63 + len("/") + 40 + len('",')
    for role, granted in rights.roles.items():
        # What is read and written stands in one statement of both.
        named = [*set(granted["read"]) | set(granted["write"]), *granted["delete"]]
        resources = [*named, *3 * list(rights.ambiguous)]
        size = 1000 + sum(arn + len(rights.places[one]) for one in resources)
        assert size <= 6144, f"{role}: {size}"
