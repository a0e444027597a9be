"""A rolling upgrade past one machine: workers of two versions in the same consumer groups, on real Kafka and S3."""

from __future__ import annotations

import asyncio

from upgrading import lines, runs_of, wait_until, wanted

WORK = ["worker", "--stages", "record,snapshot,consolidate"]


async def test_a_deployment_rolls_forward_and_back_in_the_middle_of_work(old, new, cluster):
    """Two workers, replaced one after the other, as Kubernetes does it; one is killed. Both versions send."""
    where = cluster.environment
    old.json(where, "topics", "apply", "--yes", "--replication", "1")
    sent = 0

    def start(side, name):
        home = {"RUNLORE_HOME": str(cluster.root.parent / name)}
        return side.start("command", WORK, {**where, **home})

    async def send(side):
        nonlocal sent
        some = range(sent, sent + 20)
        sent += 20
        ended = side.start("command", ["emit", "-", "--json"], where, lines(some))
        assert (await asyncio.to_thread(ended.ended)).json["sent"] == 20

    workers = [start(old, "one"), start(old, "two")]
    await send(old)
    for one in workers:
        await asyncio.to_thread(one.wait_for, "runlore worker runs")
    # Forward: the new one is there before the old one goes. Old producers meet new workers, and the reverse.
    workers.append(start(new, "three"))
    await send(new)
    await asyncio.to_thread(workers[2].wait_for, "runlore worker runs")
    await asyncio.to_thread(workers.pop(0).drain)
    await send(old)
    # The new one dies; the older one that is left does its work. Then forward for good.
    await asyncio.to_thread(workers.pop(1).kill)
    await send(new)
    workers.append(start(new, "four"))
    await asyncio.to_thread(workers[1].wait_for, "runlore worker runs")
    await wait_until(cluster.is_at_rest, "all work to be done")
    for one in workers:
        await asyncio.to_thread(one.drain)
    assert await runs_of(cluster) == wanted(range(sent))
    assert len(await cluster.objects("records")) == sent
    assert await cluster.violations() == []
    for side in (old, new):
        assert side.json(where, "verify")["problems"] == [], side.version
