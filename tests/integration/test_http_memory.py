"""Memory over HTTP: revisions and their files, differences, why, search, lists by pages; and where a run is."""

from __future__ import annotations

import hashlib

import made
from lookup_service import kind, served
from runlore import clock, errors
from runlore.commit import keys
from runlore.consumers import rebuild
from runlore.lookup import memories


async def filled(one, runs=9, rounds=3):
    for first in range(0, runs, runs // rounds):
        await one.events(*(made.data(number) for number in range(first, first + runs // rounds)))


async def pages(one, path, limit, **asked):
    """Every item of a list, page by page."""
    seen, cursor = [], None
    for _ in range(100):
        found = (
            await one.get(path, params={"limit": limit, **asked, **({"cursor": cursor} if cursor else {})})
        ).json()
        assert len(found["items"]) <= limit
        seen += found["items"]
        cursor = found["next"]
        if cursor is None:
            return seen
    raise AssertionError("the pages do not end")


async def test_every_list_visits_each_item_once_whatever_the_page(tmp_path):
    async with served(tmp_path) as one:
        await filled(one)
        for memory in ("a", "b", "c"):
            await one.post("events", made.data(1, memory=memory), status=202)
        await one.work(memories=("a", "b", "c"))
        for path, name in (
            ("memories", lambda row: row["memory"]),
            ("memories/support/revisions", lambda row: row["revision"]),
            ("memories/support/rollouts", lambda row: row["rollout"]),
            ("runs", lambda row: (row["memory"], row["run"])),
        ):
            whole = [name(row) for row in (await one.get(path)).json()["items"]]
            assert len(whole) == len(set(whole)) >= 3, path
            for limit in (1, 2, 3, 1000):
                assert [name(row) for row in await pages(one, path, limit)] == whole, (path, limit)


async def test_a_page_of_revisions_goes_on_below_where_it_ended_while_new_ones_come(tmp_path):
    async with served(tmp_path) as one:
        await filled(one)
        first = (await one.get("memories/support/revisions?limit=2")).json()
        await one.events(made.data(50))
        second = (
            await one.get("memories/support/revisions", params={"limit": 2, "cursor": first["next"]})
        ).json()
        assert [row["revision"] for row in first["items"] + second["items"]] == [3, 2, 1] and second[
            "next"
        ] is None


async def test_a_revision_s_files_are_those_that_a_seed_without_subject_holds(tmp_path):
    async with served(tmp_path) as one:
        await filled(one)
        found = (await one.get("memories/support/revisions/head")).json()
        assert found["revision"] == 3 and {"path", "bytes", "sha256"} == found["files"][0].keys()
        number, files = await memories.files_of(one.service.reader, "acme", "support", None, None)
        assert number == 3 and [row["path"] for row in found["files"]] == sorted(files)
        for row in found["files"]:
            answer = await one.get(f"memories/support/revisions/3/files/{row['path']}")
            assert answer.text == files[row["path"]].text
            assert hashlib.sha256(answer.content).hexdigest() == row["sha256"]
            assert "immutable" in answer.headers["cache-control"]
            etag = answer.headers["etag"]
            await one.get(
                f"memories/support/revisions/3/files/{row['path']}",
                status=304,
                headers={"If-None-Match": etag},
            )
        head = await one.get("memories/support/revisions/head")
        assert head.headers["etag"].startswith('W/"') and "no-cache" in head.headers["cache-control"]
        await one.events(made.data(77))
        assert await one.get(
            "memories/support/revisions/head", headers={"If-None-Match": head.headers["etag"]}
        )


async def test_what_is_personal_needs_its_subject(tmp_path):
    async with served(tmp_path) as one:
        text = "my cat is called Zebedee"
        await one.events(
            made.data(1, rollout="hers", subject="ana", record=made.payload(1, text=text)), made.data(2)
        )

        async def seen(**asked):
            rows = (await one.get("memories/support/revisions/head", params=asked)).json()["files"]
            paths = [f"memories/support/revisions/head/files/{row['path']}" for row in rows]
            return "".join([(await one.get(path, params=asked)).text for path in paths])

        assert text not in await seen() and text not in await seen(subject="bea")
        assert text in await seen(subject="ana")
        for asked, count in ((None, 0), ("bea", 0), ("ana", 1)):
            query = {"q": "zebedee", **({"subject": asked} if asked else {})}
            found = (await one.get("memories/support/search", params=query)).json()
            assert len(found["results"]) == count, asked


async def test_search_names_the_line_where_the_words_stand(tmp_path):
    async with served(tmp_path) as one:
        await one.events(
            made.data(1, rollout="conv", record=made.payload(1, text="Repair the flux capacitor, please"))
        )
        (row,) = (await one.get("memories/support/search?q=flux+capacitor")).json()["results"]
        text = (await one.get(f"memories/support/revisions/head/files/{row['path']}")).text
        assert "flux capacitor" in text.splitlines()[row["line"] - 1].lower() and row["rollout"] == "conv"
        assert (await one.get("memories/support/search?q=nowhere")).json()["results"] == []
        assert kind(await one.get("memories/support/search?q=%20", status=400)) == "invalid_input"
        for hostile in ('"', "a AND (b", "*", "NEAR(x)", "col:x", "'; DROP TABLE runs; --"):
            assert (await one.get("memories/support/search", params={"q": hostile})).json()["results"] == []


async def test_a_line_says_why_it_is_there(tmp_path):
    async with served(tmp_path) as one:
        await filled(one)
        number, files = await memories.files_of(one.service.reader, "acme", "support", None, None)
        first, _, note = files["memory_summary.md"].why[0]
        found = (
            await one.get(f"memories/support/revisions/{number}/why/memory_summary.md?line={first}")
        ).json()
        assert note in [row["note"] for row in found["notes"]] and found["notes"][0]["evidence"]
        for line, status in ((0, 400), (9999, 404)):
            await one.get(f"memories/support/revisions/head/why/memory_summary.md?line={line}", status=status)
        await one.get("memories/support/revisions/head/why/nothing.md?line=1", status=404)


async def test_a_difference_between_two_revisions(tmp_path):
    async with served(tmp_path) as one:
        await filled(one)
        found = (await one.get("memories/support/diff")).json()
        assert (found["from"], found["to"]) == (2, 3) and found["files"][0]["diff"]
        whole = (await one.get("memories/support/diff?from=0&to=1")).json()
        assert {row["change"] for row in whole["files"]} == {"added"}
        answer = await one.get("memories/support/diff?from=1&to=2")
        assert "immutable" in answer.headers["cache-control"]
        assert kind(await one.get("memories/support/diff?from=1&to=99", status=404)) == "not_found"


async def test_a_side_line_is_read_by_its_name_and_is_never_said_to_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(rebuild, "ROLLOUTS_PER_REVISION_MAX", 3)
    async with served(tmp_path) as one:
        await filled(one)
        line = rebuild.Rebuild(one.store, one.bus, "acme", "support", "fresh")
        await line.build(rebuild.setup_of(None), reason="newer rules")
        at = "memories/support/revisions"
        rows = [await pages(one, at, limit, side="fresh") for limit in (1, 100)]
        assert rows[0] == rows[1] and [row["revision"] for row in rows[0]] == [3, 2, 1]
        assert {row["reason"] for row in rows[0]} == {"rebuild"}
        for n in ("head", "3"):
            own, side = await one.get(f"{at}/{n}"), await one.get(f"{at}/{n}", params={"side": "fresh"})
            assert own.json()["files"] == side.json()["files"] and own.headers["etag"] != side.headers["etag"]
            assert "immutable" not in side.headers["cache-control"]
        path = f"{at}/head/files/MEMORY.md"
        assert (await one.get(path)).text == (await one.get(path, params={"side": "fresh"})).text
        asked = {"line": 1, "side": "fresh"}
        assert (await one.get(f"{at}/3/why/MEMORY.md", params=asked)).json()["revision"] == 3
        for name, status in (("other", 404), ("main", 400), ("a b", 400), ("x" * 64, 400)):
            for place in (at, f"{at}/head"):
                await one.get(place, params={"side": name}, status=status)


async def test_where_a_run_is(tmp_path):
    async with served(tmp_path) as one:
        event = (await one.post("events", made.data(1, rollout="conv"), status=202))["event"]
        assert (await one.get("runs/run-1")).json()["runs"][0]["state"] == "waiting"
        await one.work()
        for name in ("run-1", event, "conv"):
            (story,) = (await one.get(f"runs/{name}")).json()["runs"]
            assert story["state"] in ("consolidated", "recorded") and story["event"] == event
        assert kind(await one.get("runs/nobody", status=404)) == "not_found"
        assert (await one.get("runs", prefix="/v1/projects/other")).json()["items"] == []
        await one.get("runs/run-1", prefix="/v1/projects/other", status=404)


async def test_an_index_that_is_deleted_under_the_service_is_made_again(tmp_path):
    async with served(tmp_path) as one:
        await filled(one)
        before = (await one.get("memories/support/rollouts")).json()
        for path in tmp_path.glob("index.db*"):
            path.unlink()
        assert (await one.get("memories/support/rollouts")).json() == before


async def test_a_broken_object_is_a_fault_of_ours_and_says_which(tmp_path):
    async with served(tmp_path) as one:
        await filled(one)
        found = [row.key async for row in one.store.list(f"acme/{keys.PACKS}/")]
        for key in found:
            await one.store.put(key, b"x")
        one.service.reader._packs.clear()
        answer = await one.get("memories/support/seed?session_id=conv-1", status=500)
        assert kind(answer) == errors.Corrupt.kind and clock.now_iso()
