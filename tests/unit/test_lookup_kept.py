"""What is kept of revisions: made once however many ask at once, bounded, and never a failure."""

from __future__ import annotations

import asyncio

import pytest

from runlore.lookup.http import kept


class Maker:
    """Counts how often it was asked; makes nothing before it may."""

    def __init__(self, size=1):
        self.times, self.may, self.size = 0, asyncio.Event(), size

    async def __call__(self):
        self.times += 1
        await self.may.wait()
        return f"made {self.times}", self.size


async def test_many_that_ask_at_once_have_it_made_once():
    found, maker = kept.Kept(size_max=10), Maker()
    asking = [asyncio.ensure_future(found.get("a", maker)) for _ in range(5)]
    await asyncio.sleep(0)
    maker.may.set()
    assert await asyncio.gather(*asking) == ["made 1"] * 5
    assert await found.get("a", maker) == "made 1" and maker.times == 1


async def test_who_goes_away_does_not_take_it_from_the_others():
    found, maker = kept.Kept(size_max=10), Maker()
    first = asyncio.ensure_future(found.get("a", maker))
    second = asyncio.ensure_future(found.get("a", maker))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    maker.may.set()
    assert await second == "made 1"


async def test_a_failure_is_not_kept():
    found, maker = kept.Kept(size_max=10), Maker()

    async def fail():
        raise OSError("gone")

    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            await found.get("a", fail)
    maker.may.set()
    assert await found.get("a", maker) == "made 1"


async def test_what_was_asked_for_longest_ago_goes_first_and_the_last_one_stays_however_large():
    found = kept.Kept(size_max=10)
    makers = {name: Maker(size) for name, size in (("a", 4), ("b", 4), ("c", 4), ("large", 99))}
    for maker in makers.values():
        maker.may.set()
    for name in ("a", "b", "a", "c"):
        await found.get(name, makers[name])
    await found.get("a", makers["a"])
    await found.get("b", makers["b"])
    assert (makers["a"].times, makers["b"].times) == (1, 2)
    for _ in range(2):
        await found.get("large", makers["large"])
    assert makers["large"].times == 1
    await found.get("a", makers["a"])
    assert makers["a"].times == 2
