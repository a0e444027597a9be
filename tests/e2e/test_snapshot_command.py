"""Workspaces at the command line and through the pipeline: saved, moved, branched, merged, seeded, swept.

Method: the commands as a person calls them, on a home below a temporary folder; runs as a producer sends them.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import time

import pytest

P = ("--project", "acme")
MEANT = (*P, "--memory", "support")


@pytest.fixture
def space(tmp_path):
    made = tmp_path / "ws"
    (made / "src").mkdir(parents=True)
    (made / "src" / "main.py").write_text("print('one')\n")
    (made / "notes.md").write_text("".join(f"line {number}\n" for number in range(20)))
    return made


def save(home, path, *more, rollout="conv-1"):
    return home.json("snapshot", "save", path, *P, "--rollout", rollout, *more)


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".runlore" not in path.parts
    }


def event(home, run, workspaces, **more):
    data = {"project": "acme", "memory": "support", "session_id": "conv-1", "run_id": run, **more}
    data["record"] = {
        "updated_at": "2026-01-01T00:00:00+00:00",
        "input": [],
        "generated_items": [],
        "final_output": run,
    }
    data["workspaces"] = workspaces
    assert home.emit(json.dumps(data).encode() + b"\n")["problems"] == []


def claim(home, raw):
    import asyncio
    import hashlib

    from runlore.commit import keys
    from runlore.store.directory import DirectoryStore

    sha256 = hashlib.sha256(raw).hexdigest()

    async def put():
        store = DirectoryStore(home.root / "store", fsync=False)
        await store.put(keys.claim("acme", sha256), raw)
        await store.close()

    asyncio.run(put())
    return {"sha256": sha256, "size": len(raw)}


def tar(**members):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("__", "/").replace("_md", ".md"))
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return raw.getvalue()


# --- by hand ----------------------------------------------------------------------------------------------


def test_a_folder_is_saved_restored_and_saved_again_on_one_line(home, space, tmp_path):
    first = save(home, space)
    assert (first["state"], first["version"], first["stats"]["files"]) == ("moved", 1, 2)
    assert save(home, space)["state"] == "unchanged"
    (space / "new").write_text("x")
    second = save(home, space)
    assert (second["state"], second["version"]) == ("moved", 2)
    got = home.json("snapshot", "restore", "conv-1", *P, "--into", tmp_path / "out")
    assert got["snapshot"] == second["snapshot"]
    assert files(tmp_path / "out") == files(space)
    (line,) = home.json("snapshot", "ls", "conv-1", *P)["lines"]
    assert [one["version"] for one in line["versions"]] == [1]
    home.verified()


def test_a_save_that_did_not_see_the_head_is_a_branch_and_a_merge_joins_it(home, space, tmp_path):
    save(home, space)
    for name in ("a", "b"):
        home.json("snapshot", "restore", "conv-1", *P, "--into", tmp_path / name)
    (tmp_path / "a" / "notes.md").write_text(
        (space / "notes.md").read_text().replace("line 2\n", "line two\n")
    )
    (tmp_path / "b" / "notes.md").write_text((space / "notes.md").read_text() + "more\n")
    for name in ("a", "b"):
        (tmp_path / name / "src" / "main.py").write_text(f"print('{name}')\n")
    assert save(home, tmp_path / "a")["state"] == "moved"
    assert save(home, tmp_path / "b")["state"] == "branched"
    planned = home.json("snapshot", "merge", "conv-1", *P, "--dry-run")
    assert planned["dry_run"] and len(planned["conflicts"]) == 1
    merged = home.json("snapshot", "merge", "conv-1", *P)
    assert (merged["state"], len(merged["branches"]), merged["snapshot"]) == ("moved", 1, planned["snapshot"])
    home.json("snapshot", "restore", "conv-1", *P, "--into", tmp_path / "out")
    found = files(tmp_path / "out")
    assert "line two\n" in found["notes.md"] and found["notes.md"].endswith("more\n")
    assert found["src/main.py"] == "print('a')\n"
    assert found[merged["conflicts"][0]["kept"][merged["branches"][0]]] == "print('b')\n"
    (line,) = home.json("snapshot", "ls", *P)["lines"]
    assert line["branches"] == {}
    home.verified()


@pytest.mark.parametrize("edited", [False, True])
def test_saving_again_what_is_no_head_never_makes_it_the_base_of_the_next_save(home, space, tmp_path, edited):
    """An unchanged save of an older version, or of a branch that is there already, did not see the head."""
    save(home, space)
    for name in ("a", "b"):
        home.json("snapshot", "restore", "conv-1", *P, "--into", tmp_path / name)
    (tmp_path / "a" / "kept").write_text("a")
    assert save(home, tmp_path / "a")["state"] == "moved"
    if edited:
        (tmp_path / "b" / "first").write_text("b")
        assert save(home, tmp_path / "b")["state"] == "branched"
    assert save(home, tmp_path / "b")["state"] == ("already" if edited else "unchanged")
    (tmp_path / "b" / "second").write_text("b")
    assert save(home, tmp_path / "b")["state"] == "branched"
    home.json("snapshot", "restore", "conv-1", *P, "--into", tmp_path / "out")
    assert "kept" in files(tmp_path / "out")


def test_a_folder_restored_without_its_outer_links_is_not_the_base_of_a_save(home, space, tmp_path):
    os.symlink("/etc/hostname", space / "outer")
    save(home, space)
    got = home.json("snapshot", "restore", "conv-1", *P, "--into", tmp_path / "a", "--inside")
    assert [one["path"] for one in got["skipped"]] == ["outer"]
    (tmp_path / "a" / "new").write_text("x")
    assert save(home, tmp_path / "a")["state"] == "branched"


def test_a_folder_of_unknown_origin_does_not_replace_a_version_unless_told_to(home, space, tmp_path):
    save(home, space)
    other = tmp_path / "other"
    other.mkdir()
    (other / "x").write_text("x")
    assert save(home, other)["state"] == "branched"
    assert save(home, other, "--replace")["state"] == "moved"


@pytest.mark.parametrize("name", ["conv-1", "good", "prefix", "id", "ref"])
def test_a_snapshot_is_found_by_rollout_tag_prefix_and_id(home, space, tmp_path, name):
    saved = save(home, space)
    home.json("snapshot", "tag", "conv-1", "good", *P)
    given = {"prefix": saved["snapshot"][:8], "id": saved["snapshot"], "ref": saved["ref"]}.get(name, name)
    assert home.json("snapshot", "cat", given, "src/main.py", *P)["text"] == "print('one')\n"
    rows = home.json("snapshot", "tree", given, *P)["entries"]
    assert [row["path"] for row in rows] == ["notes.md", "src/", "src/main.py"]


def test_what_does_not_exist_is_told_apart_from_what_is_ambiguous(home, space):
    save(home, space)
    save(home, space, rollout="conv-2")
    assert home.json("snapshot", "stats", "conv-9", *P, code=3)["error"]["kind"] == "not_found"
    assert home.json("snapshot", "cat", "conv-1", "none", *P, code=3)["error"]["kind"] == "path_not_found"
    home.json("snapshot", "tag", "conv-1", "same", *P)
    (space / "x").write_text("x")
    save(home, space, rollout="conv-2")
    home.json("snapshot", "tag", "conv-2", "same", *P)
    assert home.json("snapshot", "stats", "same", *P, code=2)["error"]["kind"] == "invalid_input"
    assert home.json("snapshot", "stats", "same", *P, "--rollout", "conv-2")["stats"]["files"] == 3


@pytest.mark.parametrize(
    "command", ["tree", "cat", "diff", "merge", "restore", "export", "verify", "stats", "tag"]
)
def test_every_command_lists_what_there_is_when_it_is_given_no_id(home, space, command):
    save(home, space)
    assert [one["rollout"] for one in home.json("snapshot", command, *P)["lines"]] == ["conv-1"]


def test_a_tar_goes_in_and_the_same_content_comes_out(home, tmp_path):
    (tmp_path / "in.tar.gz").write_bytes(tar(a_md=b"1", d__b=b"2"))
    saved = home.json("snapshot", "ingest", tmp_path / "in.tar.gz", *P, "--rollout", "conv-1")
    for name in ("one.tar", "two.tar"):
        home.json("snapshot", "export", saved["snapshot"], *P, "--out", tmp_path / name)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as archive:
        assert archive.extractfile("a.md").read() == b"1"


def test_a_diff_names_what_changed(home, space):
    one = save(home, space)["snapshot"]
    (space / "notes.md").unlink()
    (space / "new").write_text("n")
    two = save(home, space)["snapshot"]
    changes = home.json("snapshot", "diff", one, two, *P)["changes"]
    assert {(row["path"], row["what"]) for row in changes} == {("new", "added"), ("notes.md", "removed")}


def test_retention_lets_versions_go_and_the_sweep_takes_them_after_their_term(home, space):
    for number in range(4):
        (space / "data").write_text("x" * 5000 + str(number))
        save(home, space)
    assert len(home.json("snapshot", "retain", "conv-1", *P, "--last", "1", "--dry-run")["let_go"]) == 2
    assert len(home.json("snapshot", "retain", "conv-1", *P, "--last", "1", "--reason", "old")["let_go"]) == 2
    assert home.json("sweep")["objects"] == 0
    garbage = home.root / "store" / "acme" / "blobs" / "00"
    garbage.mkdir(parents=True)
    (garbage / ("0" * 64)).write_bytes(b"left by a writer that died")
    old = time.time() - 80 * 3600
    for path in (home.root / "store" / "acme").rglob("*"):
        os.utime(path, (old, old))
    planned = home.json("sweep")
    assert (planned["objects"], planned["deleted"], planned["dry_run"]) == (1, 0, True)
    assert home.json("sweep", "--apply", code=2)["error"]["kind"] == "invalid_input"
    assert home.json("sweep", "--apply", "--yes", "--reason", "test")["deleted"] == 1
    assert home.json("sweep")["objects"] == 0
    home.verified()


def test_retention_that_names_nothing_to_keep_is_refused(home, space):
    save(home, space)
    (space / "new").write_text("x")
    save(home, space)
    assert home.json("snapshot", "retain", "conv-1", *P, code=2)["error"]["kind"] == "invalid_input"
    assert (
        len(home.json("snapshot", "retain", "conv-1", *P, "--last", "0", "--reason", "all of it")["let_go"])
        == 1
    )


def test_a_project_that_can_not_be_swept_stops_no_other(home, space):
    save(home, space)
    home.json("snapshot", "save", space, "--project", "broken", "--rollout", "r")
    for root in (home.root / "store" / "broken" / "snapshots").rglob("*"):
        if root.is_file():
            root.unlink()
    garbage = home.root / "store" / "acme" / "blobs" / "00"
    garbage.mkdir(parents=True)
    (garbage / ("0" * 64)).write_bytes(b"left by a writer that died")
    os.utime(garbage / ("0" * 64), (1, 1))
    got = home.json("sweep", "--apply", "--yes", "--reason", "garbage", code=6)
    assert (got["deleted"], [one["project"] for one in got["problems"]]) == (1, ["broken"])


def test_an_export_says_what_it_leaves_out(home, space, tmp_path):
    os.symlink("/etc/hostname", space / "outer")
    save(home, space)
    got = home.json("snapshot", "export", "conv-1", *P, "--out", tmp_path / "a.tar")
    assert got["left_out"] == [{"path": "outer", "why": "absolute link"}]


# --- through the pipeline -----------------------------------------------------------------------------------


def test_runs_move_the_line_by_archive_folder_and_snapshot_and_the_next_seed_holds_it(home, space, tmp_path):
    event(home, "r1", [{"archive": claim(home, tar(work_md=b"one\n", memories__MEMORY_md=b"not ours"))}])
    assert home.up_once()["snapshots"] == 1
    into = tmp_path / "next"
    seeded = home.json("seed", "conv-1", *MEANT, "--into", into)
    assert files(into)["work.md"] == "one\n"
    assert (into / "memories" / "memory_summary.md").exists()
    assert "not ours" not in "".join(files(into).values())
    (into / "work.md").write_text("two\n")
    home.environment["RUNLORE_WORKSPACE_FOLDERS"] = json.dumps([str(tmp_path)])
    event(home, "r2", [{"folder": str(into), "base": seeded["base"]}])
    assert home.up_once()["snapshots"] == 1
    again = home.json("seed", "conv-1", *MEANT, "--into", tmp_path / "third")
    assert files(tmp_path / "third")["work.md"] == "two\n"
    assert again["base"]["counter"] == 2
    tree = home.json("snapshot", "tree", "conv-1", *P)["entries"]
    assert [row["path"] for row in tree] == ["work.md"]
    home.verified()


def test_a_redelivered_run_and_a_late_one_change_nothing_but_a_branch(home):
    event(home, "r1", [{"archive": claim(home, tar(a=b"1"))}])
    event(home, "r2", [{"archive": claim(home, tar(a=b"2"))}])
    done = home.up_once()
    assert (done["snapshots"], done["branches"]) == (1, 1)
    event(home, "r1", [{"archive": claim(home, tar(a=b"1"))}])
    done = home.up_once()
    assert (done["snapshots"], done["branches"], done["dead"]) == (0, 0, 0)
    (line,) = home.json("snapshot", "ls", *P)["lines"]
    assert list(line["branches"]) == ["r2"]
    steps = [
        step["what"] for step in home.json("explain", "r2")["runs"][0]["steps"] if step["stage"] == "snapshot"
    ]
    assert len(steps) == 1 and "branch" in steps[0]


def test_each_agent_has_a_line_of_its_own(home):
    event(
        home,
        "r1",
        [{"agent": name, "archive": claim(home, tar(a=name.encode()))} for name in ("billing", "front")],
    )
    assert home.up_once()["dead"] == 0
    assert {one["agent"] for one in home.json("snapshot", "ls", *P)["lines"]} == {"billing", "front"}
    assert home.json("snapshot", "cat", "conv-1", "a", *P, "--agent", "front")["text"] == "front"


@pytest.mark.parametrize(
    ("workspace", "reason"),
    [
        ({"archive": {"sha256": "0" * 64, "size": 3}}, "claim_missing"),
        ({"folder": "/etc"}, "folder_refused"),
        ({"snapshot": f"{'1' * 64}/{'2' * 64}"}, "snapshot_missing"),
    ],
)
def test_what_can_not_be_taken_in_is_a_dead_letter_and_the_run_has_its_record(home, workspace, reason):
    event(home, "r1", [workspace])
    done = home.up_once()
    assert (done["recorded"], done["dead"]) == (1, 1)
    (letter,) = home.json("dead")["dead"]
    assert letter["reason"] == reason
    assert home.json("explain", "r1")["runs"][0]["state"] == "consolidated"


def test_a_hostile_or_false_archive_is_a_dead_letter(home):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../../escape"))
    event(home, "r1", [{"archive": claim(home, raw.getvalue())}])
    lying = claim(home, tar(a=b"1"))
    event(home, "r2", [{"archive": {**lying, "size": lying["size"] + 1}}])
    home.up_once()
    assert sorted(one["reason"] for one in home.json("dead")["dead"]) == ["archive_refused", "claim_mismatch"]
    assert home.json("snapshot", "ls", *P)["lines"] == []


def test_a_workspace_that_was_edited_is_not_replaced_unless_told_to(home, tmp_path):
    event(home, "r1", [{"archive": claim(home, tar(a=b"1"))}])
    home.up_once()
    into = tmp_path / "ws"
    home.json("seed", "conv-1", *MEANT, "--into", into)
    assert home.json("seed", "conv-1", *MEANT, "--into", into)["restored"] is None
    (into / "a").write_text("mine")
    refused = home.json("seed", "conv-1", *MEANT, "--into", into, code=4)
    assert refused["error"]["kind"] == "target_modified"
    assert (into / "a").read_text() == "mine"
    home.json("seed", "conv-1", *MEANT, "--into", into, "--force")
    assert (into / "a").read_text() == "1"


def test_a_seed_id_gives_the_same_workspace_after_the_line_moved_on(home, space, tmp_path):
    event(home, "r1", [{"archive": claim(home, tar(a=b"1"))}])
    home.up_once()
    pinned = home.json("seed", "conv-1", *MEANT)
    event(home, "r2", [{"archive": claim(home, tar(a=b"2")), "base": pinned["base"]}])
    assert home.up_once()["snapshots"] == 1
    home.json("seed", pinned["seed"], "--into", tmp_path / "old")
    assert (tmp_path / "old" / "a").read_text() == "1"
    home.json("seed", "conv-1", *MEANT, "--into", tmp_path / "new")
    assert (tmp_path / "new" / "a").read_text() == "2"
    # The older seed's workspace is what a seed put there, so the newer one may replace it.
    home.json("seed", "conv-1", *MEANT, "--into", tmp_path / "old")
    assert (tmp_path / "old" / "a").read_text() == "2"
