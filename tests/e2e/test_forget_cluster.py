"""`runlore forget` on a real broker and a real S3 server: what goes at once, what with its term, what the bus keeps."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections import Counter

import homes
import pytest

import brokers
import made
from runlore import clock

WHY = ("--reason", "ticket 4711")
ANNA, RUN, ROLLOUT = "the codeword is heliotrope", "the number is 4711-0815", "her street is Lindenweg"


@pytest.fixture
def desk(tmp_path, kafka_server, seaweedfs):
    common = {
        "bus": "kafka",
        "kafka_servers": kafka_server.servers,
        "kafka_topic_prefix": "er.",
        "kafka_group_prefix": "er.",
        "kafka_session_seconds": "6",
        **{
            name.removeprefix("RUNLORE_").lower(): value
            for name, value in seaweedfs.environment("er/").items()
        },
    }
    one = homes.Home(tmp_path / "desk", **common)
    one.json("topics", "apply", "--yes")
    return one


def worked(desk):
    """How many messages came to which end, once nothing waits any more."""
    found = Counter()

    def once():
        found.update({name: count for name, count in desk.up_once().items() if isinstance(count, int)})
        told = desk.json("status")
        return told["record"]["lag"] == told["snapshot"]["lag"] == told["consolidate"]["marks"] == 0

    homes.wait_until(once, "everything to be worked off")
    return found


def events():
    yield made.event(0, rollout="conv-a", subject="anna", record=made.payload(0, text=ANNA))
    yield made.event(1, rollout="conv-b", record=made.payload(1, text=RUN))
    yield made.event(8, rollout="conv-b", record=made.payload(8, text="and go on"))
    yield made.event(2, rollout="conv-c", record=made.payload(2, text=f"{ROLLOUT} {'x' * 300_000}"))
    yield made.event(3, rollout="conv-d", record=made.payload(3, text="it stays"))
    # The same run with other bytes: a dead letter.
    yield {**made.event(2, rollout="conv-c", record=made.payload(4, text=ROLLOUT)), "id": "another"}


@pytest.mark.timeout(240)
def test_what_was_erased_is_in_no_object_and_no_row_and_on_the_bus_until_its_retention(
    desk, kafka_server, tmp_path, monkeypatch
):
    desk.emit(made.lines(events()))
    assert worked(desk)["dead"] == 1
    assert desk.json("search", "heliotrope", "--subject", "anna")["results"]
    needles, receipt = tmp_path / "needles", tmp_path / "receipt"
    needles.write_text(f"{ANNA}\n{RUN}\n{ROLLOUT}\n")
    for named in (("--subject", "anna"), ("--run", "run-1"), ("--rollout", "conv-c")):
        said = desk.json("forget", "--project", "acme", *named, *WHY, "--yes")["receipt"]
        assert said["elsewhere"][0].startswith("messages on the bus, which keeps them until ")
    receipt.write_text(json.dumps(said))
    assert desk.json("search", "heliotrope", "--subject", "anna")["results"] == []

    def passed(**later):
        """The states of the erasures after a pass so much later, and the topics in which a proof finds their texts."""
        with monkeypatch.context() as patch:
            patch.setattr(clock, "now", lambda: dt.datetime.now(dt.UTC) + dt.timedelta(**later))
            desk.json("upkeep", *WHY)
        rows = desk.json("forget", "--project", "acme", "--list")["erasures"]
        # The texts of all of them, by one of the receipts.
        proof = desk.json("verify", "--erased", receipt, "--needle-file", needles)
        assert all(one["until"] > dt.datetime.now(dt.UTC).isoformat() for one in proof["bus"])
        return [one["state"] for one in rows], {one["where"].split("/")[0] for one in proof["bus"]}

    on_the_bus = {"runs", "dead"}
    assert passed() == (["open", "unreachable", "unreachable"], on_the_bus)
    assert passed(minutes=31) == (["unreachable"] * 3, on_the_bus)
    # Everything once more, from the start of the log.
    desk.json("replay", "--from", "beginning", *WHY)
    assert worked(desk)["erased"] == 4
    assert [one["state"] for one in desk.json("explain", "run-1")["runs"]] == ["erased"]
    assert [one["state"] for one in desk.json("explain", "run-3")["runs"]] == ["consolidated"]
    assert passed(days=5) == (["done"] * 3, on_the_bus)
    desk.verified()

    # Retention takes the messages: then it is nowhere.
    for topic, partitions in (("runs", 8), ("dead", 1)):
        ends = {number: -1 for number in range(partitions)}
        asyncio.run(brokers.delete_records(kafka_server.servers, f"er.{topic}", ends))
    proof = desk.json("verify", "--erased", receipt, "--needle-file", needles)
    assert proof["ok"] and proof["bus"] == [] and proof["scanned"]["records"] == 2
