"""The whole path: recorded and sample runs go in at one end, the next run's workspace comes out at the other."""

from __future__ import annotations

import homes
import pytest

from runlore.commit import keys


@pytest.fixture
def home(tmp_path):
    """A home on which every command is a process of its own."""
    return homes.Home(tmp_path / "home", processes=True)


FILES = {"memories/memory_summary.md", "memories/MEMORY.md", "memories/raw_memories.md"}


@pytest.mark.data
def test_every_recorded_run_goes_through_import_up_and_seed_in_one_go(home, recorded, tmp_path):
    assert home.json("import", "chat", recorded / "tau-bench", *homes.MEANT)["runs"] == 100
    assert home.json("import", "swe-agent", recorded / "swe-agent", *homes.MEANT)["runs"] == 6
    done = home.up_once()
    assert (done["recorded"], done["covered"]) == (106, 106)
    assert (done["dead"], done["held"], done["already"]) == (0, 0, 0)
    seed = home.json("seed", "the-next-one", *homes.MEANT, "--into", tmp_path / "work")
    assert seed["notes"] > 0 and seed["written"] == len(seed["files"])
    written = homes.tree(tmp_path / "work")
    assert FILES | {one["path"] for one in seed["files"]} <= set(written)
    assert {one["path"]: one["bytes"] for one in seed["files"]} == {
        path: len(body) for path, body in written.items() if path.startswith("memories/")
    }
    checked = home.verified()
    assert (checked["records"], checked["rollouts"]) == (106, 106)
    assert home.json("dead")["total"] == 0
    status = home.json("status")
    assert (status["record"]["lag"], status["consolidate"]["marks"], status["causes"]) == (0, 0, [])


def test_importing_twice_changes_nothing(home):
    sessions = homes.ROOT / "examples" / "sessions"
    first = home.json("import", "agents-sdk", sessions, *homes.MEANT)
    home.up_once()
    before, revision = home.objects(), home.json("log")["revisions"][0]["revision"]
    assert home.json("import", "agents-sdk", sessions, *homes.MEANT) == first
    done = home.up_once()
    assert (done["recorded"], done["already"], done["revisions"]) == (0, first["runs"], 0)
    assert home.objects() == before
    assert not home.objects(keys.MARKS)
    assert [row["revision"] for row in home.json("log")["revisions"]] == [revision]


def test_a_dry_run_reads_everything_and_makes_no_home(home):
    told = home.json("import", "agents-sdk", homes.ROOT / "examples" / "sessions", *homes.MEANT, "--dry-run")
    assert told["runs"] > 0 and told["dry_run"] is True and told["problems"] == []
    assert not home.root.exists()


def test_a_broken_file_is_named_and_does_not_stop_the_others(home, tmp_path):
    broken = tmp_path / "files" / "a-broken.jsonl"
    broken.parent.mkdir()
    broken.write_text('{"messages": [\n')
    good = homes.ROOT / "examples" / "sessions"
    told = home.json("import", "agents-sdk", broken.parent, good, *homes.MEANT)
    assert told["runs"] > 0
    first = told["problems"][0]
    assert (first["file"], first["line"]) == (str(broken), 1)
    home.json("import", "agents-sdk", broken, *homes.MEANT, code=2)


def test_the_samples_make_memory_that_can_be_read_searched_and_explained(home):
    first, *others = homes.SAMPLES
    home.json("emit", first)
    for path in others:
        home.call("emit", path)
    home.up_once()
    rows = home.json("log")["revisions"]
    assert [row["revision"] for row in rows] == [1] and rows[0]["notes"] > 0
    files = {one["path"]: one["bytes"] for one in home.json("show")["files"]}
    for path, size in files.items():
        assert len(home.call("show", path, "--json").json["text"].encode()) == size
    summary = home.json("show", "memory_summary.md")["text"].splitlines()
    told = [number for number, line in enumerate(summary, 1) if line.startswith("- `")]
    for number in told[:3]:
        answer = home.json("why", f"memory_summary.md:{number}")
        assert answer["text"] == summary[number - 1]
        assert all(note["evidence"] for note in answer["notes"]) and answer["notes"]
    change = home.json("diff")
    assert (change["from"], change["to"]) == (0, 1)
    assert {one["path"] for one in change["files"]} == set(files)
    rollout = home.json("seed")["rollouts"][0]["original"]
    assert home.json("explain", rollout)["runs"]
    home.verified()
