"""Seeds over HTTP: pinned, signed, never older, waited for, from a template; and their files as the CLI writes them."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import datetime as dt
import json

import hypothesis
import pytest
from hypothesis import strategies as st

import made
from lookup_service import kind, served, untar
from runlore import clock, errors
from runlore.commit import heads, keys, lines
from runlore.consumers import consolidate, record, snapshot
from runlore.lookup import seeds, signing, workspaces
from runlore.snapshots import library


async def test_ids_are_resolved_in_the_sdk_s_order(tmp_path):
    async with served(tmp_path) as one:
        asked = {"conversation_id": " ", "session_id": "Läufe/7", "group_id": "g", "run_id": "r"}
        found = (await one.get("resolve", params=asked)).json()
        assert found["rollout"] == "Läufe/7" and found["matched"] == "session"
        assert found["alias"].startswith("rl-lufe-7-")
        only = (await one.get("resolve", params={"run_id": "r"})).json()
        assert only == {"rollout": "run-r", "alias": "run-r", "matched": "run"}
        assert kind(await one.get("resolve", status=400)) == "invalid_input"
        assert kind(await one.get("resolve?run_id=../x", status=400)) == "invalid_id"


async def test_nothing_at_all_is_an_answer_not_an_error(tmp_path):
    async with served(tmp_path) as one:
        found = await one.seed("conv-1")
        assert found["seed"] is None and found["files"] == [] and found["revision"] == 0
        assert found["base"] == {"counter": 0, "snapshot": None}
        assert found["layout"] == {"memories_dir": "memories", "sessions_dir": "sessions"}


async def test_a_seed_is_what_the_command_line_would_write(tmp_path):
    async with served(tmp_path) as one:
        claim = await one.archive(("src/a.txt", b"one"), ("b.md", b"two"))
        await one.events(made.data(1, rollout="conv", workspaces=[{"archive": claim}]), made.data(2))
        found = await one.seed("conv")
        assert (found["project"], found["memory"], found["rollout"]) == ("acme", "support", "conv")
        pinned = seeds.parse(found["seed"])
        opened = await seeds.open_seed(one.service.reader, pinned)
        await workspaces.restore(library.Snapshots(one.store, "acme"), opened, tmp_path / "space")
        await asyncio.to_thread(seeds.write_into, opened, tmp_path / "space")
        on_disk = {
            str(path.relative_to(tmp_path / "space")): path.read_bytes()
            for path in (tmp_path / "space").rglob("*")
            if path.is_file() and ".runlore" not in path.parts
        }
        name = found["seed"]
        assert untar((await one.get(f"seeds/{name}/workspace.tar")).content) == on_disk
        memory = {path: raw for path, raw in on_disk.items() if path.startswith("memories/")}
        assert untar((await one.get(f"seeds/{name}/memory.tar")).content) == memory
        assert {row["path"]: row["bytes"] for row in found["files"]} == {
            path: len(raw) for path, raw in memory.items()
        }
        for row in found["files"]:
            answer = await one.get(f"seeds/{name}/files/{row['path']}")
            assert answer.content == memory[row["path"]] and answer.headers["content-type"].startswith(
                "text/plain"
            )
            assert "immutable" in answer.headers["cache-control"]
        again = (await one.get(f"seeds/{name}")).json()
        assert {**again, "rollout": "conv", "matched": "session"} == found


async def test_a_seed_gives_the_same_bytes_whatever_comes_after_it(tmp_path):
    async with served(tmp_path) as one:
        claim = await one.archive(("a", b"one"))
        await one.events(made.data(1, rollout="conv", workspaces=[{"archive": claim}]))
        first = await one.seed("conv")
        paths = [
            f"seeds/{first['seed']}/{what}"
            for what in ("workspace.tar", "memory.tar", "files/memories/MEMORY.md")
        ]
        before = [(await one.get(path)).content for path in paths]
        other = await one.archive(("a", b"two"))
        await one.events(made.data(2, rollout="conv", workspaces=[{"archive": other, "base": first["base"]}]))
        one.service._kept.clear()
        assert [(await one.get(path)).content for path in paths] == before
        second = await one.seed("conv")
        assert second["revision"] > first["revision"] and second["base"]["counter"] > first["base"]["counter"]


async def test_a_seed_id_that_was_made_up_or_changed_or_is_another_project_s_opens_nothing(tmp_path):
    async with served(tmp_path) as one:
        await one.events(
            made.data(1, rollout="conv", subject="ana"), made.data(2, rollout="x", project="acme")
        )
        found = await one.seed("conv", subject="bea")
        name, pinned = found["seed"], seeds.parse(found["seed"])
        payload, _, mac = name.rpartition(".")
        forged = dataclasses.replace(pinned, subject=seeds.ids.subject_alias("ana")).id
        wrong = [
            payload,
            f"{payload}.",
            f"{forged}.{mac}",
            f"{payload}.{mac[:-1]}",
            f"{payload}.{mac}A",
            "s1.",
            "x",
        ]
        wrong += [dataclasses.replace(pinned, project="other").id + "." + mac, f"{payload}=.{mac}"]
        for one_wrong in wrong:
            for what in ("", "/memory.tar", "/workspace.tar", "/files/memories/MEMORY.md"):
                assert kind(await one.get(f"seeds/{one_wrong}{what}", status=403)) == "forbidden", one_wrong
        foreign = await one.get(f"seeds/{name}", prefix="/v1/projects/other", status=403)
        assert kind(foreign) == "forbidden"
        assert (
            kind(await one.get(f"memories/support/seed?run_id=r&after={payload}", status=403)) == "forbidden"
        )


@hypothesis.given(st.text(max_size=200))
def test_no_text_is_a_signed_seed(text):
    with pytest.raises((errors.Forbidden, errors.InvalidInput)):
        signing.open_signed(b"0" * 32, "acme", text)


async def test_a_seed_ends_with_its_term(tmp_path):
    class Later(clock.World):
        shift = dt.timedelta()

        def now(self):
            return super().now() + self.shift

    world = Later()
    clock.install(world)
    async with served(tmp_path) as one:
        await one.events(made.data(1, rollout="conv"))
        name = (await one.seed("conv"))["seed"]
        world.shift = dt.timedelta(hours=71)
        await one.get(f"seeds/{name}")
        world.shift = dt.timedelta(hours=73)
        assert kind(await one.get(f"seeds/{name}", status=409)) == "seed_expired"
        # As what was seen last it still counts.
        assert (await one.seed("conv", after=name))["revision"] == 1


async def test_what_is_personal_is_shown_to_its_subject_and_to_nobody_else(tmp_path):
    async with served(tmp_path) as one:
        secret = "my cat is called Zebedee"
        await one.events(
            made.data(1, rollout="hers", subject="ana", record=made.payload(1, text=secret)),
            made.data(2, rollout="conv-2"),
        )

        async def seen(**asked):
            found = await one.seed("conv-9", **asked)
            return untar((await one.get(f"seeds/{found['seed']}/memory.tar")).content)

        assert secret.encode() not in b"".join((await seen()).values())
        assert secret.encode() not in b"".join((await seen(subject="bea")).values())
        assert secret.encode() in b"".join((await seen(subject="ana")).values())


# --- never older, and not before ------------------------------------------------------------------------------


async def test_an_older_seed_than_the_one_seen_last_is_never_given(tmp_path):
    async with served(tmp_path) as one:
        await one.events(made.data(1, rollout="conv"))
        key = keys.memory_head("acme", "support")
        old = await one.store.get(key)
        await one.events(made.data(2, rollout="conv"))
        seen = (await one.seed("conv"))["seed"]
        assert seeds.parse(seen).revision == 2
        # A replica that is behind.
        new = await one.store.get(key)
        await one.store.put(key, old.body)
        answer = await one.get(
            "memories/support/seed",
            status=503,
            params={"session_id": "conv", "after": seen, "wait_seconds": 0},
        )
        assert kind(answer) == "seed_behind" and answer.headers["retry-after"]
        waiting = asyncio.create_task(one.seed("conv", after=seen, wait_seconds=20))
        await asyncio.sleep(0)
        await one.store.put(key, new.body)
        assert (await waiting)["revision"] == 2


async def test_a_seed_waits_until_the_run_is_covered(tmp_path):
    async with served(tmp_path) as one:
        await one.events(made.data(1, rollout="conv"))
        await one.post("events", made.data(8, rollout="conv"), status=202)
        asked = {"session_id": "conv", "wait_for": "run-8", "wait_seconds": 0}
        assert kind(await one.get("memories/support/seed", status=504, params=asked)) == "wait_timeout"
        waiting = asyncio.create_task(one.seed("conv", wait_for="run-8", wait_seconds=20))
        await asyncio.sleep(0)
        await one.work()
        found = await waiting
        assert found["revision"] == 2 and (await one.seed("conv", wait_for="run-1"))["revision"] == 2


async def test_a_seed_waits_for_the_run_s_workspace_too(tmp_path):
    async with served(tmp_path) as one:
        claim = await one.archive(("a", b"1"))
        await one.post("events", made.data(1, rollout="conv", workspaces=[{"archive": claim}]), status=202)
        taken = [message async for message in one.bus.read("runs")]
        await record.RecordStage(one.store, one.bus).process(taken)
        await consolidate.ConsolidateStage(one.store, one.bus).work("acme", "support")
        asked = {"session_id": "conv", "wait_for": "run-1", "wait_seconds": 0}
        assert kind(await one.get("memories/support/seed", status=504, params=asked)) == "wait_timeout"
        waiting = asyncio.create_task(one.seed("conv", wait_for="run-1", wait_seconds=20))
        await asyncio.sleep(0)
        await snapshot.SnapshotStage(one.store, one.bus).process(taken)
        found = await waiting
        assert found["snapshot"] and found["base"]["counter"] == 1


async def test_a_run_that_left_its_workspace_as_it_was_is_done_once_the_stage_passed_it(tmp_path):
    async with served(tmp_path) as one:
        claim = await one.archive(("a", b"1"))
        await one.events(made.data(1, rollout="conv", workspaces=[{"archive": claim}]))
        base = (await one.seed("conv"))["base"]
        await one.events(made.data(8, rollout="conv", workspaces=[{"archive": claim, "base": base}]))
        # Its line does not tell of it, so only the stage's own place does.
        asked = {"session_id": "conv", "wait_for": "run-8", "wait_seconds": 0}
        assert kind(await one.get("memories/support/seed", status=504, params=asked)) == "wait_timeout"
        consumer = await one.bus.consumer(group="snapshot", topics=["runs"])
        taken = await consumer.poll(records_max=100, timeout_seconds=0)
        await consumer.commit({message.at: message.offset + 1 for message in taken})
        assert (await one.seed("conv", wait_for="run-8", wait_seconds=0))["base"] == base


async def test_a_run_that_is_dead_or_held_is_waited_for_no_longer(tmp_path):
    async with served(tmp_path) as one:
        await one.events(made.data(1, rollout="conv"))
        # The same run with other bytes.
        await one.events(made.data(1, rollout="conv", record=made.payload(5)), made.data(3, rollout="conv"))
        claim = {"sha256": "0" * 64, "size": 3}
        lost = {name: value for name, value in made.data(7, rollout="conv").items() if name != "record"}
        await one.events({**lost, "record_claim": claim})
        assert (await one.seed("conv", wait_for="run-7", wait_seconds=0))["revision"] >= 1
        head = await one.service.reader.head("acme", "support")
        await one.post("events", made.data(9, rollout="held"), status=202)
        await record.RecordStage(one.store, one.bus).process([m async for m in one.bus.read("runs")])
        held = {"held": {"held": {"kind": "x", "reason": "y", "at": clock.now_iso(), "counter": 1}}}
        await heads.move(one.store, head, held, fmt="runlore.memory/1")
        assert (await one.seed("held", wait_for="run-9", wait_seconds=0))["seed"]


async def test_a_revision_is_pinned_by_its_number_or_by_a_time(tmp_path):
    async with served(tmp_path) as one:
        await one.events(made.data(1, rollout="conv"))
        between = clock.now_iso()
        await one.events(made.data(2, rollout="conv"))
        assert (await one.seed("conv", at="1"))["revision"] == 1
        assert (await one.seed("conv", at=between))["revision"] == 1
        assert (await one.seed("conv", at=clock.now_iso()))["revision"] == 2
        assert kind(await one.get("memories/support/seed?session_id=c&at=2000-01-01T00:00:00Z", status=404))
        assert kind(await one.get("memories/support/seed?session_id=c&at=9", status=404)) == "not_found"
        for wrong in ("tomorrow", "2026-01-01", "-1", "1.5"):
            assert await one.get(f"memories/support/seed?session_id=c&at={wrong}", status=400), wrong


async def test_an_unchanged_seed_costs_no_bytes_and_a_moved_one_is_sent(tmp_path):
    async with served(tmp_path) as one:
        await one.events(made.data(1, rollout="conv"))
        path = "memories/support/seed?session_id=conv"
        etag = (await one.get(path)).headers["etag"]
        assert etag.startswith('W/"')
        assert (await one.get(path, status=304, headers={"If-None-Match": etag})).content == b""
        assert (await one.get(path, status=304, headers={"If-None-Match": f'"x", {etag}'})).content == b""
        await one.events(made.data(2, rollout="conv"))
        assert (await one.get(path, headers={"If-None-Match": etag})).headers["etag"] != etag


# --- the template -----------------------------------------------------------------------------------------------


async def tagged(one, rollout, *files):
    claim = await one.archive(*files)
    number = len(await lines.all_heads(one.store, "acme")) + 50
    await one.events(made.data(number, rollout=rollout, workspaces=[{"archive": claim}]))
    line = lines.line_of("acme", rollout, None)
    head = await lines.read(one.store, line)
    await lines.tag(one.store, line, "template", head.body["ref"])
    return lines.id_of(head.body["ref"])


async def test_an_empty_line_begins_with_the_project_s_template_and_its_save_moves_the_head(tmp_path):
    async with served(tmp_path) as one:
        await tagged(one, "older", ("old", b"x"))
        template = await tagged(one, "newer", ("base.txt", b"base"))
        found = await one.seed("conv")
        assert found["from_template"] and found["snapshot"] == template
        assert found["base"] == {"counter": 0, "snapshot": None}
        space = untar((await one.get(f"seeds/{found['seed']}/workspace.tar")).content)
        assert space["base.txt"] == b"base"
        claim = await one.archive(("base.txt", b"base"), ("new", b"n"))
        await one.events(made.data(3, rollout="conv", workspaces=[{"archive": claim, "base": found["base"]}]))
        own = await one.seed("conv")
        assert not own["from_template"] and own["base"]["counter"] == 1 and own["snapshot"] != template


async def test_an_empty_line_stays_empty_where_that_is_wanted_or_there_is_no_template(tmp_path):
    async with served(tmp_path) as one:
        assert not (await one.seed("conv"))["from_template"]
        await tagged(one, "other", ("a", b"a"))
        found = await one.seed("conv", template="no")
        assert found["snapshot"] is None and not found["from_template"]
        line = lines.line_of("acme", "other", None)
        await lines.untag(one.store, line, "template")
        assert (await one.seed("conv"))["snapshot"] is None
        assert await one.get("memories/support/seed?session_id=c&template=maybe", status=400)


async def test_a_template_serves_a_memory_that_has_no_revision(tmp_path):
    async with served(tmp_path) as one:
        template = await tagged(one, "other", ("a", b"a"))
        found = (await one.get("memories/empty/seed", params={"session_id": "conv"})).json()
        assert found["snapshot"] == template and found["revision"] == 0 and found["files"] == []
        assert untar((await one.get(f"seeds/{found['seed']}/workspace.tar")).content) == {"a": b"a"}


async def test_what_a_snapshot_holds_below_memory_s_folders_does_not_get_into_the_workspace(tmp_path):
    """A link called `memories`, saved by hand: what is unpacked over it would be written elsewhere."""
    async with served(tmp_path) as one:
        await one.events(made.data(1, rollout="conv"))
        space = tmp_path / "by-hand"
        (space / "elsewhere").mkdir(parents=True)
        (space / "memories").symlink_to("elsewhere")
        (space / "kept").write_text("k")
        saved = await library.Snapshots(one.store, "acme").save(space)
        line = lines.line_of("acme", "conv", None)
        await lines.save(one.store, line, str(saved.ref), lines.Base(), reason="t", began=clock.now())
        found = await one.seed("conv")
        assert found["snapshot"] == saved.id
        files = untar((await one.get(f"seeds/{found['seed']}/workspace.tar")).content)
        assert files["kept"] == b"k" and "memories/MEMORY.md" in files


def test_seeds_that_have_no_template_keep_the_ids_that_they_had():
    seed = seeds.Seed("acme", "support", 3, "0" * 64, "conv-1", None, "2999-01-01T00:00:00+00:00")
    text = seed.id.removeprefix("s1.")
    assert len(json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))) == 10
    template = dataclasses.replace(seed, snapshot=f"{'0' * 64}/{'1' * 64}", template=True)
    assert seeds.parse(template.id) == template
    assert seeds.parse(signing.sign(b"0" * 32, template)) == template


@pytest.mark.parametrize(
    "path",
    ["../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/x", "memories%2f..%2fMEMORY.md", "%00", "", "/"],
)
async def test_a_hostile_path_finds_nothing(path, tmp_path):
    async with served(tmp_path) as one:
        claim = await one.archive(("src/a", b"a"))
        await one.events(made.data(1, rollout="conv", workspaces=[{"archive": claim}]))
        name = (await one.seed("conv"))["seed"]
        for prefix in (
            f"seeds/{name}/files/",
            "memories/support/revisions/1/files/",
            "snapshots/conv/files/",
        ):
            answer = await one.client.get(f"/v1/projects/acme/{prefix}{path}")
            assert answer.status_code in (400, 404) and kind(answer), answer.text
