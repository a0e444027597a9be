"""Snapshots over HTTP: names, archives and files in ranges, trees and differences by pages, merges."""

from __future__ import annotations

import asyncio
import gzip
import io
import tarfile
import urllib.parse

import hypothesis
import pytest
import zstandard
from hypothesis import strategies as st

import made
from lookup_service import kind, served, tar, untar
from runlore.commit import lines
from runlore.lookup.http import answers
from runlore.snapshots import library
from runlore.upkeep import audit

FILES = (("a.txt", b"A" * 3000), ("dir/b.bin", bytes(range(256)) * 40), ("dir/c", b""), ("z", b"z"))


async def filled(one, rollout="conv", number=1, files=FILES, **more):
    claim = await one.archive(*files)
    await one.events(made.data(number, rollout=rollout, workspaces=[{"archive": claim, **more}]))


async def test_a_snapshot_has_many_names(tmp_path):
    async with served(tmp_path) as one:
        await filled(one)
        head = await lines.read(one.store, lines.line_of("acme", "conv", None))
        await lines.tag(one.store, lines.line_of("acme", "conv", None), "good", head.body["ref"])
        whole = lines.id_of(head.body["ref"])
        for name in ("conv", "good", whole, whole[:8]):
            found = (await one.get(f"snapshots/{name}")).json()
            assert found["snapshot"] == whole and found["files"] == 4 and found["base"]["counter"] == 1
        assert kind(await one.get("snapshots/nothing", status=404)) == "not_found"
        (row,) = (await one.get("snapshots")).json()["items"]
        assert (row["rollout"], row["snapshot"], list(row["tags"])) == ("conv", whole, ["good"])


async def test_an_id_with_slashes_and_escapes_names_its_rollout(tmp_path):
    async with served(tmp_path) as one:
        for number, rollout in enumerate(("Läufe/7", "a%2Fb", "100% sure?", "x y+z")):
            await filled(one, rollout, number, files=(("n", str(number).encode()),))
            escaped = urllib.parse.quote(rollout, safe="")
            answer = await one.get(f"snapshots/{escaped}/files/n")
            assert answer.content == str(number).encode(), rollout
            assert (await one.get(f"runs/{escaped}")).json()["runs"][0]["run"] == f"run-{number}"


async def test_an_archive_is_the_workspace_and_always_the_same_bytes(tmp_path):
    async with served(tmp_path) as one:
        await filled(one)
        answer = await one.get("snapshots/conv/archive.tar")
        assert untar(answer.content) == dict(FILES)
        found = (await one.get("snapshots/conv")).json()["snapshot"]
        by_id = await one.get(f"snapshots/{found}/archive.tar")
        assert by_id.content == answer.content and by_id.headers["etag"] == answer.headers["etag"]
        assert "immutable" in by_id.headers["cache-control"]
        assert "immutable" not in answer.headers["cache-control"]
        etag = answer.headers["etag"]
        assert (
            await one.get("snapshots/conv/archive.tar", status=304, headers={"If-None-Match": etag})
        ).content == b""


def test_every_range_is_that_slice_of_the_whole(tmp_path):
    async def main():
        async with served(tmp_path) as one:
            await filled(one)
            wholes = {
                path: (await one.get(path)).content
                for path in (
                    "snapshots/conv/archive.tar",
                    "snapshots/conv/files/dir/b.bin",
                    "memory.tar",
                    "workspace.tar",
                )
                if not path.endswith(("memory.tar", "workspace.tar"))
            }
            name = (await one.seed("conv"))["seed"]
            for what in ("memory.tar", "workspace.tar"):
                wholes[f"seeds/{name}/{what}"] = (await one.get(f"seeds/{name}/{what}")).content
            loop = asyncio.get_running_loop()
            await asyncio.to_thread(tried, one, wholes, loop)

    def tried(one, wholes, loop):
        @hypothesis.settings(max_examples=60)
        @hypothesis.given(st.sampled_from(sorted(wholes)), st.data())
        def check(path, data):
            whole = wholes[path]
            first = data.draw(st.integers(0, len(whole) - 1))
            last = data.draw(st.none() | st.integers(first, len(whole) + 5))
            tail = data.draw(st.none() | st.integers(1, len(whole) + 5))
            text = f"bytes=-{tail}" if tail else f"bytes={first}-{'' if last is None else last}"
            call = one.client.get(f"/v1/projects/acme/{path}", headers={"Range": text})
            answer = asyncio.run_coroutine_threadsafe(call, loop).result()
            start, end = (
                (max(0, len(whole) - tail), len(whole)) if tail else (first, (last or len(whole)) + 1)
            )
            end = len(whole) if last is None or tail else min(len(whole), last + 1)
            assert answer.status_code == 206 and answer.content == whole[start:end]
            assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(whole)}"
            assert answer.headers["content-length"] == str(end - start)

        check()

    asyncio.run(main())


async def test_ranges_that_can_not_be_served_and_those_that_say_nothing(tmp_path):
    async with served(tmp_path) as one:
        await filled(one)
        path = "snapshots/conv/files/a.txt"
        for text in ("bytes=3000-", "bytes=9999-10000", "bytes=-0"):
            answer = await one.get(path, status=416, headers={"Range": text})
            assert kind(answer) == "bad_range" and answer.headers["content-range"] == "bytes */3000"
        for text in ("bytes=5-2", "bytes=0-1,4-5", "lines=1-2", "bytes=a-b", "bytes=", "bytes=-"):
            assert len((await one.get(path, headers={"Range": text})).content) == 3000, text
        etag = (await one.get(path)).headers["etag"]
        part = {"Range": "bytes=0-9"}
        assert len((await one.get(path, status=206, headers={**part, "If-Range": etag})).content) == 10
        assert len((await one.get(path, headers={**part, "If-Range": '"other"'})).content) == 3000
        assert kind(await one.get("snapshots/conv/files/dir/c", status=416, headers=part)) == "bad_range"
        assert (await one.get("snapshots/conv/files/dir/c")).content == b""
        # Whatever was opened for these is let go.
        assert one.service.downloads._inside == 0


async def test_a_folder_s_entries_come_by_pages_each_once(tmp_path):
    async with served(tmp_path) as one:
        names = [*(f"f{number:03d}" for number in range(25)), "sub/x"]
        await filled(one, files=tuple((name, b"1") for name in names))
        seen, cursor = [], None
        while True:
            asked = {"limit": 7, **({"cursor": cursor} if cursor else {})}
            page = (await one.get("snapshots/conv/tree", params=asked)).json()
            seen += page["items"]
            cursor = page["next"]
            if cursor is None:
                break
        assert [row["name"] for row in seen] == [*names[:-1], "sub"]
        assert seen[-1]["kind"] == "dir" and seen[0]["bytes"] == 1
        (row,) = (await one.get("snapshots/conv/tree?path=sub")).json()["items"]
        assert row["path"] == "sub/x"
        assert kind(await one.get("snapshots/conv/tree?path=f000", status=400)) == "invalid_input"
        assert kind(await one.get("snapshots/conv/tree?path=none", status=404)) == "path_not_found"
        assert kind(await one.get("snapshots/conv/files/sub", status=400)) == "invalid_input"


async def test_a_difference_goes_on_between_the_snapshots_that_it_began_with(tmp_path):
    async with served(tmp_path) as one:
        await filled(one, "one", 1, files=tuple((f"f{n}", b"1") for n in range(9)))
        await filled(one, "two", 2, files=tuple((f"f{n}", b"2") for n in range(9)))
        first = (await one.get("snapshots/one/diff", params={"to": "two", "limit": 4})).json()
        base = (await one.seed("two"))["base"]
        await filled(one, "two", 3, files=(("other", b"3"),), base=base)
        seen, cursor = list(first["changes"]), first["next"]
        while cursor:
            asked = {"to": "two", "limit": 4, "cursor": cursor}
            page = (await one.get("snapshots/one/diff", params=asked)).json()
            assert page["to"] == first["to"]
            seen, cursor = seen + page["changes"], page["next"]
        assert [row["path"] for row in seen] == [f"f{n}" for n in range(9)]
        assert {row["what"] for row in seen} == {"changed"}


async def test_branches_are_merged_and_who_did_it_is_kept(tmp_path):
    async with served(tmp_path, with_keys=True) as one:
        writer = await one.key("acme", "write")
        one.client.headers.update(writer)
        for number, path in enumerate(("a", "b", "c")):
            await filled(one, "fan", number, files=((path, b"1"),))
        heads = await lines.read(one.store, lines.line_of("acme", "fan", None))
        assert len(heads.body["branches"]) == 2
        dry = await one.post("snapshots/merge", {"rollout": "fan", "dry_run": True}, status=200)
        assert dry["state"] == "dry run" and dry["files"] == 3
        done = await one.post("snapshots/merge", {"rollout": "fan", "reason": "fan-in"}, status=200)
        assert done["state"] == "moved" and done["files"] == 3 and done["conflicts"] == []
        assert set(untar((await one.get("snapshots/fan/archive.tar")).content)) == {"a", "b", "c"}
        (act,) = await audit.read_all(one.store, project="acme")
        assert act.what == "snapshot merge" and act.by["via"] == "http" and act.by["name"] == "test"
        assert act.reason == "fan-in" and act.state == "done"
        for wrong in (
            {},
            {"rollout": 3},
            {"rollout": "fan", "branches": "x"},
            {"rollout": "fan", "dry_run": 1},
            [],
        ):
            await one.post("snapshots/merge", wrong, status=400)
        await one.post("snapshots/merge", {"rollout": "fan"}, status=404)


async def test_a_snapshot_of_another_project_is_not_there(tmp_path):
    async with served(tmp_path) as one:
        await filled(one)
        found = (await one.get("snapshots/conv")).json()
        for name in ("conv", found["snapshot"], urllib.parse.quote(found["ref"], safe="")):
            for what in ("", "/archive.tar", "/tree", "/files/a.txt"):
                await one.get(f"snapshots/{name}{what}", prefix="/v1/projects/other", status=404)


@pytest.mark.parametrize(
    ("coding", "opened"), [("gzip", gzip.decompress), ("zstd", None), ("br, gzip;q=0", "plain")]
)
async def test_json_is_compressed_as_the_client_takes_it_and_archives_never(coding, opened, tmp_path):
    async with served(tmp_path) as one:
        await filled(one, files=tuple((f"file-{n:04d}", b"1") for n in range(200)))
        request = one.client.build_request(
            "GET", "/v1/projects/acme/snapshots/conv/tree?limit=1000", headers={"Accept-Encoding": coding}
        )
        answer = await one.client.send(request, stream=True)
        raw = b"".join([piece async for piece in answer.aiter_raw()])
        if opened == "plain":
            assert "content-encoding" not in answer.headers and raw.startswith(b"{")
        else:
            assert answer.headers["content-encoding"] == coding and len(raw) < 10_000
            plain = opened(raw) if opened else zstandard.ZstdDecompressor().decompress(raw)
            assert plain.count(b"file-") == 400
        archive = await one.get("snapshots/conv/archive.tar", headers={"Accept-Encoding": coding})
        assert "content-encoding" not in archive.headers


def test_a_cursor_is_what_was_put_into_it_or_refused():
    assert answers.place_of(answers.cursor_of("a", 3), str, int) == ("a", 3)
    for wrong, kinds in (
        (answers.cursor_of("a"), (int,)),
        (answers.cursor_of(True), (int,)),
        (answers.cursor_of(2**63), (int,)),
        (answers.cursor_of(-1), (int,)),
        (answers.cursor_of("\ud800"), (str,)),
        ("~", (str,)),
    ):
        with pytest.raises(answers.errors.InvalidInput):
            answers.place_of(wrong, *kinds)


async def test_a_provider_s_own_reference_is_given_as_it_came(tmp_path):
    async with served(tmp_path) as one:
        raw = io.BytesIO()
        assert tarfile and raw is not None
        await filled(one)
        made_by = library.Snapshots(one.store, "acme")
        with io.BytesIO(tar(("q", b"1"))) as stream:
            saved = await made_by.ingest(stream)
        answer = await one.get(f"snapshots/{saved.id}/archive.tar")
        assert untar(answer.content) == {"q": b"1"}
