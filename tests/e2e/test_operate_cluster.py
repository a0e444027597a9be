"""Operating past one machine: real processes on a real broker and a real S3 server, as an operator meets them."""

from __future__ import annotations

import contextlib
import signal
import sqlite3

import homes
import pytest

import made

WHY = ("--reason", "ticket 812")


@pytest.fixture(scope="module")
def deployment(tmp_path_factory, kafka_server, seaweedfs):
    """A function that makes one more place of the same deployment, with topics that are planned and made."""
    folder = tmp_path_factory.mktemp("deployment")
    common = {
        "bus": "kafka",
        "kafka_servers": kafka_server.servers,
        "kafka_topic_prefix": "op.",
        "kafka_group_prefix": "op.",
        "kafka_session_seconds": "6",
        "retry_seconds_max": "1",
        **{
            name.removeprefix("RUNLORE_").lower(): value
            for name, value in seaweedfs.environment("op/").items()
        },
    }

    def place(name, **settings):
        return homes.Home(folder / name, **{**common, **settings})

    desk = place("desk")
    assert {one["state"] for one in desk.json("topics", "plan")["topics"]} == {"missing"}
    desk.json("topics", "apply", code=2)  # Nobody can be asked.
    assert len(desk.json("topics", "apply", "--yes", "--partitions", "runs=12")["applied"]) == 3
    assert desk.json("topics", "apply", "--yes", "--partitions", "runs=12")["applied"] == []
    assert [one["state"] for one in desk.json("topics", "plan")["topics"]] == ["fine"] * 3
    return place


def stop(process, number=signal.SIGTERM):
    process.send_signal(number)
    out, err = process.communicate(timeout=homes.WAIT_SECONDS_MAX)
    assert b"Traceback" not in err, err.decode()
    return process.returncode, out.decode()


def settled(desk):
    told = desk.json("status")
    return told["record"]["lag"] == told["snapshot"]["lag"] == told["consolidate"]["marks"] == 0


def rows(home):
    """The rollouts in the index file of a replica, read as any other process would."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{home.root}/index.db?mode=ro", uri=True)) as opened:
            return {name for (name,) in opened.execute("SELECT project || '/' || rollout FROM rollouts")}
    except sqlite3.OperationalError:
        return set()  # It is being made.


def test_workers_and_replicas_share_what_is_to_be_shared_and_obey_their_operator(deployment):
    desk = deployment("desk")
    workers = [deployment(f"worker-{n}").start("worker", "--json") for n in range(2)]
    # Only bells can tell them of a run: their next LIST comes after the test.
    replicas = [deployment(f"replica-{n}", marks_interval_seconds="600") for n in range(2)]
    indexes = [one.start("index", "--json") for one in replicas]
    homes.wait_until(lambda: len(desk.json("status")["workers"]) == 4, "all four to speak")

    desk.emit(made.lines(made.event(number) for number in range(40)))
    wanted = {f"acme/conv-{number}" for number in range(7)}
    homes.wait_until(lambda: settled(desk), "everything to be consolidated")
    homes.wait_until(lambda: all(rows(one) == wanted for one in replicas), "every replica to hear every bell")
    told = desk.json("status")
    assert told["record"]["workers"] == 2 and told["index"]["workers"] == 2 and told["causes"] == []
    assert [one["what"] for one in desk.json("doctor", code=6)["checks"] if not one["ok"]] == ["fsync"]

    # A replay while they read would be undone by their next commit.
    assert desk.json("replay", "--from", "beginning", *WHY, code=4)["error"]["kind"] == "refused"
    # One dies, one drains; then it is allowed, and doubles nothing.
    homes.kill(workers[0])
    code, _ = stop(workers[1])
    assert code == 0
    stopped = desk.json("status")["workers"]
    assert len(stopped) == 3, "the killed one is still told of, the drained one is not"
    homes.wait_until(
        lambda: "messages" in desk.json("replay", "--from", "beginning", *WHY, code=None),
        "the session of the killed one to end",
    )
    assert desk.json("status")["record"]["lag"] == 40
    desk.json("pause", "consolidate", "--memory", "acme/support", *WHY)
    worker = deployment("worker-2").start("worker", "--stages", "record,consolidate", "--json")
    desk.emit(made.lines([made.event(100), made.event(101, project="zeta")]))
    homes.wait_until(lambda: desk.json("status")["record"]["lag"] == 0, "the replay")
    homes.wait_until(
        lambda: desk.json("explain", "run-101")["runs"][0]["state"] == "consolidated", "the other memory"
    )
    (story,) = desk.json("explain", "run-100")["runs"]
    assert story["state"] == "recorded" and "runlore resume" in story["next"]
    desk.json("resume", "consolidate", "--memory", "acme/support", *WHY)
    homes.wait_until(
        lambda: desk.json("explain", "run-100")["runs"][0]["state"] == "consolidated", "the resumed memory"
    )
    for one in (worker, *indexes):
        assert stop(one)[0] == 0
    assert desk.json("verify")["ok"]
    acts = [(one["what"], one["state"]) for one in desk.json("audit")["acts"]]
    assert ("topics apply", "done") in acts and ("replay", "failed") in acts and acts[0] == ("resume", "done")


def test_an_index_that_is_deleted_under_a_running_process_is_made_again(deployment):
    replica = deployment("replica-9", marks_interval_seconds="0.2", kafka_instance="replica-9")
    deployment("desk").emit(made.lines([made.event(1, project="deleted")]))
    process = replica.start("index", "--json")
    worker = deployment("worker-9").start("worker", "--json")
    homes.wait_until(lambda: "deleted/conv-1" in rows(replica), "the run")
    for path in replica.root.glob("index.db*"):
        path.unlink()
    homes.wait_until(lambda: "deleted/conv-1" in rows(replica), "the file to be made again")
    assert stop(process)[0] == 0 and stop(worker)[0] == 0


def test_dead_letters_on_kafka_are_redriven_by_project_reason_and_number(deployment):
    desk = deployment("desk")
    bad = [made.event(number, project=project) for number in (1, 2) for project in ("dead-a", "dead-b")]
    for one in bad:
        one["data"]["record"] = "not a record"
    desk.emit(made.lines(bad))
    worker = deployment("worker-8").start("worker", "--stages", "record", "--json")
    homes.wait_until(
        lambda: desk.json("dead", "list", "--reason", "invalid_record")["total"] == 4, "the letters"
    )
    given = ("dead", "redrive", "--reason", "invalid_record", "--project", "dead-a")
    assert len(desk.json(*given, "--dry-run")["dead"]) == 2
    (chosen,) = desk.json(*given, "--limit", "1", "--note", "once more")["dead"]
    homes.wait_until(
        lambda: desk.json("dead", "list", "--project", "dead-a")["total"] == 2, "it to come back"
    )
    redriven = [one for one in desk.json("dead", "list", "--all")["dead"] if one["resolution"] == "redriven"]
    assert [one["id"] for one in redriven] == [chosen["id"]] and redriven[0]["resolved_why"] == "once more"
    assert len(desk.json("dead", "drop", "--all", "--note", "made up")["dead"]) == 4
    assert stop(worker)[0] == 0
