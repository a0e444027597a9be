"""Issue of the whole: several workers, a broker, an S3 server, and nothing lost or doubled while all of them break.

Goal: what a producer was acknowledged for is in S3 once, with its bytes, covered by a revision or in a named state,
whatever is killed, stopped, cut off or answered late meanwhile. Method: real processes; a ledger that the producer
writes itself; a judge that reads S3 with every version of every object, and the topics, without our code.

The short form runs always. RUNLORE_TEST_DEEP=1 runs the full one: 2,000 events over 200 rollouts, three workers,
minutes. The seed is printed; RUNLORE_TEST_SEED replays its schedule.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random

import pytest
from cluster import harness, judge, reading

DEEP = os.environ.get("RUNLORE_TEST_DEEP", "") not in ("", "0")
SEED = int(os.environ.get("RUNLORE_TEST_SEED") or random.randrange(10**6))


@pytest.mark.timeout(900 if DEEP else 240)
def test_nothing_is_lost_or_doubled_while_workers_broker_and_store_break(
    tmp_path, kafka_server, seaweedfs_server
):
    cluster = harness.Cluster(
        tmp_path, kafka_server, seaweedfs_server, harness.FULL if DEEP else harness.SHORT, SEED
    )
    print(f"RUNLORE_TEST_SEED={SEED}", flush=True)
    try:
        cluster.start()
        cluster.run()
        cluster.stop_workers()
        cluster.say("workers stopped")
        world = reading.read(cluster.client, cluster.name, kafka_server.servers, f"{cluster.name}.")
        book = cluster.ledger()
        cluster.say("read")
        complaints = judge.judge(cluster.made, book, world)
        assert complaints == [], "\n".join([*complaints[:30], cluster.logs()])
        held = sum(len(json.loads(body).get("held", {})) for key, body in heads(world))
        assert held <= cluster.form.rollouts // 20, f"{held} rollouts are held for review"
        found = cluster.runlore("verify")
        assert found["ok"] and found["problems"] == [], found
        cluster.say(f"verified {found['checked']}")
        the_judge_sees_what_changes_in_s3(cluster, book, world)
        cluster.say("judge tried")
    finally:
        # A broker that a failure left down is another test's.
        kafka_server.start()
        cluster.close()


def heads(world):
    return [(key, body) for key, body in world.objects.items() if key.split("/")[1] == "memories"]


def the_judge_sees_what_changes_in_s3(cluster, book, world):
    """Four things broken for real, each read back from the server: a judge that sees none of them proves nothing."""
    client, bucket = cluster.client, cluster.name
    key = next(key for key in world.objects if key.split("/")[1] == "records")
    head_key = next(key for key in world.objects if key.split("/")[1] == "rollouts")
    body, head = world.objects[key], json.loads(world.objects[head_key])
    head["runs"].popitem()
    doubled = key.replace("/run-", "/run-9")

    for changed, change in (
        (key, lambda: client.delete_object(Bucket=bucket, Key=key)),
        (doubled, lambda: client.put_object(Bucket=bucket, Key=doubled, Body=body)),
        (key, lambda: client.put_object(Bucket=bucket, Key=key, Body=body.replace(b"task", b"tusk"))),
        (head_key, lambda: client.put_object(Bucket=bucket, Key=head_key, Body=json.dumps(head).encode())),
    ):
        made = change()["VersionId"]
        now = dataclasses.replace(
            world, versions={**world.versions, **reading.versions(client, bucket, prefix=changed)}
        )
        assert judge.judge(cluster.made, book, now), f"the judge does not see what became of {changed}"
        client.delete_object(Bucket=bucket, Key=changed, VersionId=made)
        after = reading.versions(client, bucket, prefix=changed)
        assert after == {name: some for name, some in world.versions.items() if name in after}
