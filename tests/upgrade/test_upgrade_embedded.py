"""Two versions on one machine's bus and store: what one wrote the other reads, and nothing is lost or doubled.

Goal: an upgrade, and a way back, in the middle of work. Method: real processes of the older version, from its wheel,
and of this one, in turns and at the same time, on one SQLite log and one directory; then every invariant by both.
"""

from __future__ import annotations

import asyncio
import random

from upgrading import OLD, lines, runs_of, wait_until, wanted

import runlore

STAGES = ["record", "snapshot", "consolidate"]
MEANT = ("--project", "acme", "--memory", "support")


def test_the_two_sides_are_the_versions_that_they_say(old, new, old_package):
    assert (old.version, new.version) == (OLD, runlore.__version__) and old.version != new.version
    assert old.file.is_relative_to(old_package) and not new.file.is_relative_to(old_package)


async def test_two_versions_take_turns_and_each_goes_on_where_the_other_stopped(old, new, home):
    given = []
    for turn, (sends, works, looks) in enumerate(((old, new, old), (new, old, new), (old, old, new))):
        some = range(turn * 14, turn * 14 + 14)
        given += some
        assert sends.json(home.environment, "emit", "-", stdin=lines(some))["sent"] == 14
        assert works.json(home.environment, "up", "--once")["recorded"] == 14
        for side in (old, new):
            assert side.json(home.environment, "verify")["problems"] == [], (turn, side.version)
        log = looks.json(home.environment, "log", *MEANT)
        shown = {side.run(home.environment, "show", "MEMORY.md", *MEANT).out for side in (old, new)}
        assert len(log["revisions"]) == turn + 1 and len(shown) == 1
    assert await runs_of(home) == wanted(given)
    # Sent again by either, they change nothing.
    before = await home.objects("memories", "rollouts", "records", "manifests")
    for sends, works in ((old, new), (new, old)):
        sends.json(home.environment, "emit", "-", stdin=lines(given))
        assert works.json(home.environment, "up", "--once")["recorded"] == 0
    assert await home.objects("memories", "rollouts", "records", "manifests") == before
    assert await home.violations() == []


async def test_workers_of_two_versions_share_one_log_while_they_are_killed_and_rolled_forward_and_back(
    old, new, home
):
    """Both are given every message and every mark: all that one does the other does too, at the same time."""
    dice = random.Random(20260901)
    everything, sent = list(range(60)), 0
    workers = [old.start("work", STAGES, home.environment), new.start("work", STAGES, home.environment)]
    for one in workers:
        one.wait_for("works")
    # Forward, back, and forward again; killed every second time.
    for turn, side in enumerate((new, old, new, old, new)):
        sender = (old, new)[turn % 2]
        sender.run(home.environment, "emit", "-", stdin=lines(everything[sent : sent + 12]))
        sent += 12
        place = turn % 2
        await asyncio.sleep(dice.uniform(0, 0.3))  # Somewhere in the middle of it.
        workers[place].kill() if turn % 2 else workers[place].drain()
        workers[place] = side.start("work", STAGES, home.environment)
    for one in workers:
        one.wait_for("works")
    await wait_until(home.is_at_rest, "all work to be done")
    for one in workers:
        one.drain()
    assert await runs_of(home) == wanted(everything)
    records = await home.objects("records")
    assert len(records) == len(everything)
    assert await home.violations() == []
    for side in (old, new):
        assert side.json(home.environment, "verify")["problems"] == [], side.version
        shown = side.json(home.environment, "status")
        assert shown, side.version
