"""`runlore seed`: what it writes, what it leaves alone, and that a seed id keeps its promise."""

from __future__ import annotations

import base64
import json

import homes
import pytest

import made
from runlore.events import envelope

SEED = ("seed", "conv-1", *homes.MEANT)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A home with two revisions; no test here changes it."""
    home = homes.Home(tmp_path_factory.mktemp("filled") / "home")
    for first in (0, 20):
        home.emit(made.lines(made.event(number) for number in range(first, first + 20)))
        home.up_once()
    return home


def memory_of(folder):
    return {path: body for path, body in homes.tree(folder).items() if path.startswith("memories/")}


def test_seeding_twice_writes_nothing_the_second_time(filled, tmp_path):
    first = filled.json(*SEED, "--into", tmp_path / "w")
    before = memory_of(tmp_path / "w")
    again = filled.json(*SEED, "--into", tmp_path / "w")
    assert first["written"] == len(before) == again["unchanged"] and again["written"] == again["removed"] == 0
    assert memory_of(tmp_path / "w") == before


@pytest.mark.parametrize(
    "where", ["memories", ".runlore", "memories/memory_summary.md", "memories/rollout_summaries"]
)
def test_nothing_is_written_through_a_symlink(filled, tmp_path, where):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    link = tmp_path / "w" / where
    link.parent.mkdir(parents=True)
    link.symlink_to(outside / "file" if where.endswith(".md") else outside)
    for force in ([], ["--force"]):
        told = filled.json(*SEED, "--into", tmp_path / "w", *force, code=4)
        assert told["error"]["kind"] == "unsafe_target"
    assert homes.tree(outside) == {"file": b"mine"}


@pytest.mark.parametrize("path", ["../victim", "/victim", "memories/../../victim", "", ".", "a\0b", "\ud800"])
def test_a_forged_receipt_removes_nothing_outside_of_the_workspace(filled, tmp_path, path):
    work = tmp_path / "w"
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (work / ".runlore").mkdir(parents=True)
    path = str(victim) if path == "/victim" else path
    (work / ".runlore" / "seed.json").write_text(json.dumps({"files": {path: []}}))
    told = filled.json(*SEED, "--into", work, "--force", code=4)
    assert told["error"]["kind"] == "unsafe_target" and victim.read_text() == "mine"


def test_edited_files_are_kept_unless_forced(filled, tmp_path):
    work = tmp_path / "w"
    filled.json(*SEED, "--into", work)
    summary = work / "memories" / "memory_summary.md"
    summary.write_text("my own words")
    told = filled.json(*SEED, "--into", work, code=4)
    assert told["error"]["kind"] == "target_modified" and "memory_summary.md" in told["error"]["message"]
    assert summary.read_text() == "my own words"
    filled.json(*SEED, "--into", work, "--force")
    assert summary.read_text() != "my own words"
    # What the SDK makes empty where it is missing holds nothing to lose.
    summary.write_text("")
    filled.json(*SEED, "--into", work)


def test_files_of_the_earlier_seed_go_and_the_workspaces_own_stay(filled, tmp_path):
    work = tmp_path / "w"
    filled.json(*SEED, "--into", work)
    (work / "memories" / "notes-of-mine.md").write_text("mine")
    (work / "src").mkdir()
    (work / "src" / "main.py").write_text("print()")
    told = filled.json("seed", "conv-1", *homes.MEANT, "--at", 1, "--into", work)
    fresh = tmp_path / "fresh"
    filled.json("seed", "conv-1", *homes.MEANT, "--at", 1, "--into", fresh)
    got = memory_of(work)
    assert got.pop("memories/notes-of-mine.md") == b"mine" and (work / "src" / "main.py").exists()
    assert got == memory_of(fresh) and told["revision"] == 1
    back = filled.json(*SEED, "--into", work)
    assert back["revision"] == 2 and back["removed"] > 0
    assert memory_of(work).keys() - {"memories/notes-of-mine.md"} == {one["path"] for one in back["files"]}


def test_the_same_seed_id_gives_the_same_bytes_though_memory_moved_on(tmp_path):
    home = homes.Home(tmp_path / "home")
    home.emit(made.lines(made.event(number) for number in range(10)))
    home.up_once()
    seed = home.json(*SEED, "--into", tmp_path / "a")["seed"]
    home.emit(made.lines(made.event(number) for number in range(10, 60)))
    home.up_once()
    home.json("revert", "support", "--to", 1, "--reason", "to move it once more")
    home.json("seed", seed, "--into", tmp_path / "b")
    assert memory_of(tmp_path / "a") == memory_of(tmp_path / "b")
    receipt = json.loads((tmp_path / "b" / ".runlore" / "seed.json").read_text())
    assert receipt["revision"] == 1 and receipt["seed"] == seed
    home.json("seed", seed, "-p", "other", "-m", "support", code=3)


def test_an_expired_seed_is_refused(filled):
    seed = filled.json(*SEED)["seed"]
    fields = json.loads(base64.urlsafe_b64decode(seed.removeprefix("s1.") + "=="))
    # As seeds were before they held a workspace: those fields are optional.
    old = envelope.dump([*fields[:6], "2026-01-01T00:00:00+00:00"])
    name = "s1." + base64.urlsafe_b64encode(old).decode().rstrip("=")
    assert filled.json("seed", name, code=4)["error"]["kind"] == "seed_expired"


def test_a_target_that_can_not_be_a_folder_is_refused_in_words(filled, tmp_path):
    (tmp_path / "file").write_text("mine")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        assert filled.json(*SEED, "--into", target, code=4)["error"]["kind"] == "unsafe_target"
    assert (tmp_path / "file").read_text() == "mine"


def test_a_memory_without_a_revision_seeds_nothing_and_says_so(tmp_path):
    home = homes.Home(tmp_path / "home")
    home.emit(b"")
    told = home.json(*SEED, "--into", tmp_path / "w")
    assert (told["seed"], told["revision"], told["files"]) == (None, 0, [])


def test_what_a_killed_writer_left_half_written_is_swept(filled, tmp_path):
    from runlore.lookup import seeds

    filled.json(*SEED, "--into", tmp_path / "w")
    left = tmp_path / "w" / "memories" / f".0123{seeds.TEMPORARY}"
    left.write_text("half")
    filled.json(*SEED, "--into", tmp_path / "w")
    assert not left.exists()


def test_nothing_in_a_workspace_grows_with_the_number_of_seeds(filled, tmp_path):
    for _ in range(3):
        filled.json(*SEED, "--into", tmp_path / "w")
    receipt = json.loads((tmp_path / "w" / ".runlore" / "seed.json").read_text())
    assert all(len(hashes) == 1 for hashes in receipt["files"].values())
