"""`runlore up`: it drains on SIGTERM, is alone on its home, and takes up what is emitted beside it."""

from __future__ import annotations

import signal

import homes
import pytest

import made


def stop(process, number=signal.SIGTERM):
    """Send a signal and wait for the end: (exit code, stdout, stderr)."""
    process.send_signal(number)
    out, err = process.communicate(timeout=homes.WAIT_SECONDS_MAX)
    assert b"Traceback" not in err, err.decode()
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_up_and_it_ends_with_0(home, number):
    home.emit(made.lines(made.event(one) for one in range(300)))
    process = home.up()
    code, out, _ = stop(process, number)
    assert code == 0 and "recorded" in out
    # What was in hand is finished: no mark is missing, whatever had been recorded.
    home.verified()
    left = home.json("status")["record"]["lag"]
    recorded = int(out.split()[1])
    assert recorded + left == 300
    assert home.up_once()["recorded"] == left
    home.verified()


def test_what_is_emitted_beside_a_running_up_is_consolidated_within_seconds(home):
    process = home.up()
    home.emit(made.lines([made.event(1)]))

    def state():
        done = home.run("explain", "run-1", "--json", code=None)
        return done.json["runs"][0]["state"] if done.code == 0 else None

    homes.wait_until(lambda: state() == "consolidated", "the run to be consolidated")
    assert home.json("status")["up"] == process.pid
    assert home.json("seed", "conv-1", *homes.MEANT)["revision"] == 1
    assert home.json("search", "task")["results"]
    assert stop(process)[0] == 0
    assert home.json("status")["up"] is None


def test_a_second_up_is_refused_and_the_first_goes_on(home):
    process = home.up()
    for words in (("up",), ("up", "--once")):
        refused = home.json(*words, code=4)
        assert refused["error"]["kind"] == "home_in_use" and str(process.pid) in refused["error"]["message"]
    # Asking for the status takes no part in it.
    for _ in range(3):
        assert home.json("status")["up"] == process.pid
    assert process.poll() is None and stop(process)[0] == 0
    home.json("up", "--once")


def test_asking_who_is_up_never_refuses_an_up_that_begins(home, tmp_path):
    """`status` holds the lock for a moment; a beginning `up` waits that moment out."""
    import fcntl
    import threading
    import time

    from runlore import wiring

    home.json("up", "--once")
    with open(home.root / "run" / "up.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        threading.Timer(0.05, lambda: fcntl.flock(lock, fcntl.LOCK_UN)).start()
        with wiring.only_one(home.root):
            time.sleep(0.1)


def test_up_begins_on_an_empty_home_and_a_killed_one_leaves_no_lock(home):
    process = home.up()
    homes.kill(process)
    assert home.json("status")["up"] is None
    process = home.up()
    assert stop(process)[0] == 0


def test_up_survives_the_loss_of_its_index_and_of_its_run_folder(home):
    """What is a cache may be deleted, also under a running process."""
    import shutil

    process = home.up()
    home.emit(made.lines([made.event(1)]))
    homes.wait_until(lambda: home.json("status")["memories"], "the first run")
    for name in ("index.db", "index.db-wal", "index.db-shm"):
        (home.root / name).unlink(missing_ok=True)
    shutil.rmtree(home.root / "run")
    home.emit(made.lines([made.event(2)]))
    homes.wait_until(lambda: home.json("status")["memories"][0]["runs"] == 2, "the second run")
    assert stop(process)[0] == 0
    home.verified()
