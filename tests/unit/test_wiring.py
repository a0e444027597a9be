"""A home is what its marker says, or what can be made one; one process at a time runs its stages."""

from __future__ import annotations

import pytest

from runlore import errors, settings, wiring


def test_a_folder_becomes_a_home_once_and_stays_one(tmp_path):
    root = tmp_path / "a" / "b"
    with pytest.raises(errors.NotFound):
        wiring.check_home(root, create=False)
    assert not root.exists()
    wiring.check_home(root, create=True)
    marker = (root / "home.json").read_bytes()
    wiring.check_home(root, create=True)
    wiring.check_home(root, create=False)
    assert (root / "home.json").read_bytes() == marker and len(list(root.iterdir())) == 1


@pytest.mark.parametrize("left", ["log.db", "log.db-wal", "store", "index.db", "run", "home.json.0123"])
def test_a_home_whose_making_was_killed_is_made_to_the_end(tmp_path, left):
    (tmp_path / left).touch()
    wiring.check_home(tmp_path, create=True)
    wiring.check_home(tmp_path, create=False)


@pytest.mark.parametrize(
    "marker",
    [b"", b"{", b"[]", b"{}", b'"x"', b"\xff", b'{"format": "runlore.home/2"}', b'{"format": 7}', b"null"],
)
def test_a_marker_of_another_kind_is_refused_and_kept(tmp_path, marker):
    (tmp_path / "home.json").write_bytes(marker)
    for create in (False, True):
        with pytest.raises(errors.Refused):
            wiring.check_home(tmp_path, create=create)
    assert (tmp_path / "home.json").read_bytes() == marker


def test_a_file_or_a_folder_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "thesis").write_text("x")
    for root in (tmp_path, tmp_path / "thesis"):
        with pytest.raises(errors.Refused):
            wiring.check_home(root, create=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    wiring.write_file(path, b"old", durable=True)

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(wiring.os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        wiring.write_file(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_the_lock_is_one_at_a_time_and_names_its_holder(tmp_path):
    assert wiring.up_is_running(tmp_path) is None
    with wiring.only_one(tmp_path):
        holder = wiring.up_is_running(tmp_path)
        with pytest.raises(errors.HomeInUse, match=str(holder)), wiring.only_one(tmp_path):
            raise AssertionError("two hold the lock")
    assert wiring.up_is_running(tmp_path) is None
    with wiring.only_one(tmp_path):
        pass


def test_settings_are_frozen_bounded_and_come_from_the_environment_only(monkeypatch, tmp_path):
    monkeypatch.setenv("RUNLORE_LANES", "3")
    monkeypatch.setenv("RUNLORE_HOME", "~/x")
    monkeypatch.setenv("RUNLORE_UNKNOWN", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    found = settings.Settings()
    assert found.lanes == 3 and found.root == tmp_path / "x"
    with pytest.raises(ValueError, match="frozen"):
        found.lanes = 4
    for name, value in (("LANES", "0"), ("LANES", "65"), ("LOG_LEVEL", "loud"), ("RETRY_SECONDS_MAX", "0")):
        with monkeypatch.context() as patched:
            patched.setenv(f"RUNLORE_{name}", value)
            with pytest.raises(ValueError, match=name.lower()):
                settings.Settings()
