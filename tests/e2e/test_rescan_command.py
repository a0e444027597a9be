"""`runlore rescan` on a home: what an older version kept is found, told without being shown, and hidden."""

from __future__ import annotations

import json

import pytest
from homes import Home

import made

TOKEN = "ghp_" + "aB3dE5" * 6


@pytest.fixture
def home(tmp_path):
    """A home whose record holds a secret, as one kept by rules that did not know it."""
    home = Home(tmp_path / "home")
    home.call("emit", "-", stdin=made.lines([made.data(1, record=made.payload(1, text="push with PLACE"))]))
    home.call("up", "--once")
    (record,) = home.root.glob("store/acme/records/*/*/*/*")
    record.write_bytes(record.read_bytes().replace(b"PLACE", TOKEN.encode()))
    return home


def test_a_dry_run_says_what_and_where_and_changes_nothing(home):
    before = {path: path.read_bytes() for path in home.root.glob("store/**/*") if path.is_file()}
    done = home.call("rescan", "--all", "--dry-run", "--json", code=6)
    (found,) = json.loads(done.out)["projects"][0]["findings"]
    assert found["what"] == "record" and found["kinds"] == {"github-token": 1}
    assert TOKEN not in done.out + done.err
    assert {path: path.read_bytes() for path in home.root.glob("store/**/*") if path.is_file()} == before


def test_what_is_found_is_hidden_and_kept_in_the_audit_log(home):
    assert "--reason" in home.call("rescan", "--all", code=2).err
    done = home.call("rescan", "--all", "--reason", "rules of 0.2")
    assert "rewrote 1 records" in done.out and TOKEN not in done.out + done.err
    home.call("up", "--once")
    assert "find nothing more" in home.call("rescan", "--all", "--dry-run").out
    held = [
        path
        for path in home.root.glob("store/**/*")
        if path.is_file() and TOKEN.encode() in path.read_bytes()
    ]
    assert held == []
    assert "rescan" in home.call("audit").out
    home.call("verify")


def test_a_memory_alone_is_no_place(home):
    assert "--project" in home.call("rescan", "--memory", "support", "--dry-run", code=2).err
