"""Disaster drill: the disk is full. Whatever writes says so and waits; with room again it goes on, and nothing is lost.

Method: a home on a real, small file system (a tmpfs, where this user may mount one), which a ballast fills.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess

import homes
import pytest
from test_probes import ask, free_port, total

import made

DISK_BYTES = 12 * 1024 * 1024


class Disk:
    """A small disk of its own, which can be filled up."""

    def __init__(self, folder, sudo):
        self.folder, self.sudo, self._ballast = folder, sudo, folder / "ballast"

    def fill(self, left=0):
        """Leave so many bytes free."""
        found = os.statvfs(self.folder)
        with self._ballast.open("wb") as out:
            out.write(b"x" * max(0, found.f_bavail * found.f_frsize - left))

    def empty(self):
        self._ballast.unlink()

    def remount(self, how):
        """`ro` or `rw`, as a kernel does after a fault of the disk."""
        words = [*self.sudo, "mount", "-o", f"remount,{how}", str(self.folder)]
        subprocess.run(words, capture_output=True, timeout=20, check=True)


@pytest.fixture
def disk(tmp_path):
    """Skips where this user may mount nothing."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = f"size={DISK_BYTES},mode=0777"
    for sudo in ([], ["sudo", "-n"]):
        words = [*sudo, "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            done = subprocess.run(words, capture_output=True, timeout=20, check=False)
        except FileNotFoundError:
            continue
        if done.returncode == 0:
            break
    else:
        pytest.skip("this user may mount no file system: a full disk can't be made")
    yield Disk(folder, sudo)
    homes.end_all()
    subprocess.run([*sudo, "umount", "-l", str(folder)], timeout=20, check=True)


def runs(*numbers, size=0):
    return made.lines(made.event(n, record=made.payload(n, text=f"task {n} " + "x" * size)) for n in numbers)


def test_every_command_says_that_the_disk_is_full_and_nothing_that_was_taken_is_lost(disk):
    home = homes.Home(disk.folder / "home")
    home.emit(runs(*range(5)))
    home.up_once()
    home.emit(runs(*range(5, 10)))
    disk.fill()
    for words in (("up", "--once"), ("emit", "-"), ("status",)):
        error = home.json(*words, code=5, stdin=runs(99))["error"]
        assert "is full" in error["message"] and "free space" in error["hint"], words
    told = home.call("doctor", code=6).out
    assert "✗ disk: 0 MiB are free" in told and "No space left" in told
    # What is pinned is served all the while: it needs no room.
    assert home.json("seed", "conv-1", *homes.MEANT)["revision"] == 1
    assert home.json("pause", "record", "--reason", "full", code=5)["error"]["kind"] == "store_unavailable"
    disk.empty()
    done = home.up_once()
    assert (done["recorded"], done["already"], done["dead"]) == (5, 0, 0)
    assert home.json("explain", "run-99", code=3)["error"]["kind"] == "not_found"
    assert home.verified()["records"] == 10


def test_on_a_disk_that_became_read_only_what_is_there_is_served_and_work_goes_on_after_it(disk):
    home = homes.Home(disk.folder / "home")
    home.emit(runs(*range(3)))
    home.up_once()
    home.emit(runs(*range(3, 6)))
    disk.remount("ro")
    error = home.json("up", "--once", code=5)["error"]
    assert error["kind"] == "blocked" and "Read-only file system" in error["message"], error
    assert home.json("seed", "conv-1", *homes.MEANT)["revision"] == 1
    assert "✗" in home.call("doctor", code=6).out
    disk.remount("rw")
    assert home.up_once()["recorded"] == 3
    assert home.verified()["records"] == 6


def test_a_worker_whose_disk_fills_up_waits_says_so_and_goes_on_by_itself(disk):
    port = free_port()
    home = homes.Home(disk.folder / "home", processes=True, health_port=port)
    process = home.start("up")
    homes.wait_until(lambda: ask(port, "/readyz")[0] == 200, "it to be ready")
    home.environment.pop("RUNLORE_HEALTH_PORT")
    # Room for the log's copy of these runs, and not for the records that are made of them.
    disk.fill(left=3 * 1024 * 1024)
    home.emit(runs(*range(12), size=180_000))

    def stage():
        return json.loads(ask(port, "/status")[1])["stages"]["record"]

    homes.wait_until(lambda: stage()["state"] == "waiting", "the record stage to wait")
    assert "No space left" in stage()["cause"] or "is full" in stage()["cause"], stage()
    text = ask(port, "/metrics")[1]
    assert 'runlore_stage_state{stage="record",state="waiting"} 1.0' in text
    assert (
        total(text, "runlore_disk_free_bytes") < 512 * 1024 * 1024
        and total(text, "runlore_dead_letters_total") == 0
    )
    # It lives: to restart it would heal nothing.
    assert ask(port, "/livez")[0] == 200 and process.poll() is None
    disk.empty()
    homes.wait_until(lambda: home.json("status")["record"]["lag"] == 0, "it to go on")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=homes.WAIT_SECONDS_MAX)
    home.up_once()
    assert home.verified()["records"] == 12 and home.json("dead")["total"] == 0
