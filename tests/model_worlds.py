"""What tests of stages that ask a model stand on: a clock without waits, and a store that lets others go first."""

from __future__ import annotations

import asyncio
import random

import pytest

from runlore import clock, errors
from runlore.testing.stores import MemoryStore


class NoWaits(clock.World):
    async def sleep(self, seconds):
        return None


@pytest.fixture
def world():
    clock.install(NoWaits())
    yield
    clock.install(clock.World())


class Yielding(MemoryStore):
    """Lets others go first before each call, as often as a seeded dice says; now and then a reply is lost."""

    def __init__(self, seed):
        super().__init__()
        self.dice = random.Random(seed)

    async def turn(self):
        for _ in range(self.dice.randrange(4)):
            await asyncio.sleep(0)

    async def get(self, key):
        await self.turn()
        return await super().get(key)

    async def compare_and_set(self, key, body, etag, *, guard=None):
        await self.turn()
        out = await super().compare_and_set(key, body, etag, guard=guard)
        if self.dice.random() < 0.05:
            raise errors.OutcomeUnknown("the reply was lost")
        return out

    async def delete(self, key):
        await self.turn()
        await super().delete(key)
