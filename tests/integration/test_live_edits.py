"""Live edits from the event to the seed, over HTTP: what is taken, what becomes a dead letter, and where an edit is."""

from __future__ import annotations

import hashlib
import json

import pytest

import made
from lookup_service import kind, served
from runlore.commit import keys, redaction
from runlore.consumers import dead
from runlore.events import models
from runlore.memory import redact
from runlore.testing import invariants

SECRET = "ghp_" + "a1B2" * 9


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


async def memory_of(one, seed):
    """`MEMORY.md` of a seed."""
    return (await one.get(f"seeds/{seed['seed']}/files/memories/MEMORY.md")).text


async def learnt(one, *, rollout="next", **query):
    """Two runs, then the seed of another rollout and its `MEMORY.md`."""
    await one.events(made.data(1, rollout="c1"), made.data(2, rollout="c2"))
    seed = await one.seed(rollout, **query)
    return seed, await memory_of(one, seed)


def edit(number, seed, base, text, *, rollout=None, **more):
    """The data of an edit of `MEMORY.md`."""
    files = [{"path": "MEMORY.md", "text": text, "base_sha256": sha(base)}]
    said = {
        "project": "acme",
        "memory": "support",
        "session_id": rollout or "next",
        "run_id": f"run-{number}",
        "edit_id": f"edit-{number}",
        "edited_at": made.moment(100 + number),
        "seed": seed["seed"],
        "revision": seed["revision"],
        "files": files,
    }
    return {name: value for name, value in (said | more).items() if value is not None}


async def letters(one):
    return [(letter.reason, letter.message) for letter in await dead.read_all(one.bus)]


async def present(one, rollout="later", **query):
    return await memory_of(one, await one.seed(rollout, **query))


async def test_an_edit_is_in_the_next_seed_and_why_and_runs_tell_of_it(tmp_path):
    async with served(tmp_path) as one:
        seed, base = await learnt(one)
        told = await one.post("events", edit(3, seed, base, base + "- Ask `ops` first\n"), status=202)
        assert (told["run"], told["attempt"], told["rollout"]) == ("edit-3", 1, "next")
        await one.work()
        after = await one.seed("next", wait_for="edit-3", wait_seconds=1)
        text = await memory_of(one, after)
        number = text.splitlines().index("- Ask `ops` first") + 1
        path = f"memories/support/revisions/{after['revision']}/why/MEMORY.md"
        (note,) = (await one.get(path, params={"line": number})).json()["notes"]
        assert note["kind"] == "text" and note["evidence"][0]["text"].endswith("Ask `ops` first")
        assert [(found["what"], found["run"], found["revision"]) for found in note["edits"]] == [
            ("said", "run-3", seed["revision"])
        ]
        (story,) = (await one.get("runs/edit-3")).json()["runs"]
        assert story["state"] == "consolidated"
        assert any("a live edit of MEMORY.md by run run-3" in step["what"] for step in story["steps"])
        # Runs are listed and counted without it.
        assert [row["run"] for row in (await one.get("runs")).json()["items"]] == ["run-2", "run-1"]
        assert await letters(one) == []


async def test_two_edits_of_one_line_are_shown_and_explained_as_a_conflict(tmp_path):
    async with served(tmp_path) as one:
        seed, base = await learnt(one)
        line = next(row for row in base.splitlines() if row.startswith("- `"))
        for number in (3, 4):
            new = base.replace(line, f"- Way {number}: {line[2:70]}")
            await one.post("events", edit(number, seed, base, new, rollout=f"r{number}"), status=202)
        await one.work()
        text = await present(one)
        sides = [row for row in text.splitlines() if row.startswith("- Way")]
        assert line not in text and [
            "said by run run-3]" in sides[0] or "said by run run-3]" in sides[1]
        ] == [True]
        for number in (3, 4):
            (story,) = (await one.get(f"runs/edit-{number}")).json()["runs"]
            assert any(step["what"].startswith("in conflict [conflict ") for step in story["steps"])
        path = "memories/support/revisions/head/why/MEMORY.md"
        place = text.splitlines().index(sides[0]) + 1
        (note,) = (await one.get(path, params={"line": place})).json()["notes"]
        assert note["edits"][0]["was"].startswith("'")


async def test_the_same_edit_again_changes_nothing_and_one_with_other_bytes_is_a_dead_letter(tmp_path):
    async with served(tmp_path) as one:
        seed, base = await learnt(one)
        data = edit(3, seed, base, base + "- One\n")
        await one.events(data, data)
        before = await one.seed("later")
        await one.events(data)
        assert (await one.seed("later"))["revision"] == before["revision"] and await letters(one) == []
        await one.events(edit(3, seed, base, base + "- Two\n"))
        assert [reason for reason, _ in await letters(one)] == ["run_conflict"]
        assert "- Two" not in await present(one)


async def test_an_edit_and_a_run_can_not_have_one_id(tmp_path):
    async with served(tmp_path) as one:
        seed, base = await learnt(one)
        await one.events(edit(3, seed, base, base + "- One\n", rollout="c1", edit_id="run-1"))
        assert [reason for reason, _ in await letters(one)] == ["run_conflict"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"revision": 7, "seed": None},
        {"revision": 7},
        {"seed": "s1.nonsense"},
        {"subject": "ana"},
        {"memory": "other"},
        {"files": [{"path": "MEMORY.md", "text": "x", "base_sha256": "0" * 64}]},
        {"revision": 0, "seed": None},
    ],
)
async def test_an_edit_of_an_unknown_base_is_a_dead_letter_and_nothing_is_guessed(tmp_path, wrong):
    async with served(tmp_path) as one:
        seed, base = await learnt(one)
        await one.events(edit(3, seed, base, base + "- One\n") | wrong)
        ((reason, _),) = await letters(one)
        assert reason == "edit_base_unknown" and "- One" not in await present(one)
        # Whoever waits for it hears that it has come to an end.
        await one.seed("next", wait_for="edit-3", wait_seconds=0)


async def test_a_base_is_also_told_by_its_revision_alone(tmp_path):
    async with served(tmp_path) as one:
        seed, base = await learnt(one)
        await one.events(edit(3, seed, base, base + "- One\n") | {"seed": None})
        assert "- One" in (await present(one)).splitlines() and await letters(one) == []


async def test_an_edit_that_took_effect_is_none_again_once_its_base_is_gone(tmp_path):
    async with served(tmp_path) as one:
        seed, base = await learnt(one)
        await one.events(edit(3, seed, base, base + "- One\n"))
        rows = [row.key async for row in one.store.list(keys.manifests("acme", "support", seed["revision"]))]
        for key in rows:
            await one.store.delete(key)
        await one.work()
        assert await letters(one) == [] and "- One" in (await present(one)).splitlines()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"edit_id": ""}, "edit_id"),
        ({"edit_id": "a/../b"}, "edit_id"),
        ({"run_id": None}, "run_id"),
        ({"revision": -1}, "revision"),
        ({"files": []}, "files"),
        ({"files": [{"path": "MEMORY.md", "text": "x", "base_sha256": "0" * 64}] * 2}, "twice"),
        ({"files": [{"path": "../x", "text": "x", "base_sha256": "0" * 64}]}, "path"),
        ({"files": [{"path": "MEMORY.md", "base_sha256": "0" * 64}]}, "exactly one"),
        ({"files": [{"path": "MEMORY.md", "text": "x", "base_sha256": "0"}]}, "base_sha256"),
    ],
)
async def test_what_is_no_edit_is_refused_at_the_door(tmp_path, change, said):
    async with served(tmp_path) as one:
        data = {"memory": "support", "run_id": "r", "edit_id": "e", "revision": 0} | change
        data.setdefault("files", [{"path": "MEMORY.md", "text": "x", "base_sha256": "0" * 64}])
        answer = await one.client.post("/v1/projects/acme/events", json=data)
        assert answer.status_code == 400 and said in answer.json()["detail"]
        assert [message async for message in one.bus.read("runs")] == []


async def test_an_edit_is_of_the_key_s_own_project_and_needs_its_scope(tmp_path):
    async with served(tmp_path, with_keys=True) as one:
        data = {"memory": "support", "run_id": "r", "edit_id": "e", "revision": 0}
        data["files"] = [{"path": "MEMORY.md", "text": "- x\n", "base_sha256": sha("")}]
        reader, writer = await one.key(scope="read"), await one.key(scope="write")
        refused = await one.client.post("/v1/projects/acme/events", json=data, headers=reader)
        assert refused.status_code == 403
        other = await one.client.post(
            "/v1/projects/acme/events", json=data | {"project": "other"}, headers=writer
        )
        assert other.status_code == 403 and kind(other) == "forbidden"
        taken = await one.client.post("/v1/projects/acme/events", json=data, headers=writer)
        assert taken.status_code == 202


async def test_a_large_edit_travels_as_a_claim_and_one_too_large_is_refused(tmp_path):
    async with served(tmp_path) as one:
        seed, base = await learnt(one)
        filler = "".join(f"# heading {number}\n" for number in range(20_000))
        assert len(filler) > models.RECORD_INLINE_BYTES_MAX
        await one.events(edit(3, seed, base, f"{base}- One\n{filler}"))
        read = [json.loads(message.value) async for message in one.bus.read("runs")]
        (last,) = [data for data in read if "edit_id" in data]
        assert "text" not in last["files"][0] and last["files"][0]["text_claim"]["size"] > len(filler)
        assert "- One" in (await present(one)).splitlines() and await letters(one) == []
        huge = edit(4, seed, base, "x" * (models.EDITED_BYTES_MAX + 1))
        answer = await one.client.post("/v1/projects/acme/events", json=huge)
        assert kind(answer) == "record_too_large"


async def test_a_secret_in_an_edit_is_kept_nowhere(tmp_path):
    async with served(tmp_path) as one:
        seed, base = await learnt(one)
        await one.events(edit(3, seed, base, f"{base}- The key is {SECRET}\n"))
        hidden = redact.placeholder("github-token", SECRET, await redaction.read(one.store, "acme"))
        assert f"- The key is {hidden}" in (await present(one)).splitlines()
        for row in [row async for row in one.store.list("acme/")]:
            assert SECRET.encode() not in (await one.store.get(row.key)).body


async def test_a_subject_s_edit_reaches_no_other_seed(tmp_path):
    async with served(tmp_path) as one:
        seed, base = await learnt(one, rollout="hers", subject="ana")
        await one.events(
            made.data(5, rollout="hers", subject="ana"),
            edit(3, seed, base, base + "- Allergic to nuts\n", rollout="hers", subject="ana"),
        )
        assert "- Allergic to nuts" in await present(one, subject="ana")
        for query in ({}, {"subject": "bob"}):
            assert "nuts" not in await present(one, **query)
        assert await letters(one) == []


async def test_every_invariant_holds_and_a_replay_from_the_start_gives_the_same_bytes(tmp_path):
    async with served(tmp_path) as one:
        seed, base = await learnt(one)
        line = next(row for row in base.splitlines() if row.startswith("- `"))
        await one.events(
            edit(3, seed, base, base.replace(line, "- Gone another way")),
            made.data(3, rollout="next"),
            made.data(4, rollout="r4"),
            edit(4, seed, base, base + "- One\n", rollout="r4"),
        )
        before = await present(one)
        await one.work()
        assert await present(one) == before
        assert await invariants.check(one.store) == []
