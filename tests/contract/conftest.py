"""One suite for each port, held against every adapter: a new adapter adds a line to `STORES` or `BUSES`.

A factory makes an instance on the *same* backing each time it is called, as two processes of one home would.
`durable` adapters keep their state when all are closed, and real processes may share them.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import brokers
from runlore import clock
from runlore.bus.kafka import KafkaBus
from runlore.bus.sqlite import SqliteBus
from runlore.settings import Settings
from runlore.store.directory import DirectoryStore
from runlore.store.s3 import S3Store
from runlore.testing.buses import MemoryBus
from runlore.testing.stores import MemoryStore

STORES = ("memory", "directory", "moto", "seaweedfs")
BUSES = ("memory", "sqlite", "kafka")
TOPICS = ("t", "u", "none")
"""Topics of the suite. The embedded buses make them as they are used; Kafka's must be there."""


@dataclass
class Factory:
    """Makes instances of one adapter on one backing, and remembers them so that all are closed."""

    adapter: str
    folder: Path
    make: Any
    durable: bool
    races: bool = True
    """Whether of two conditional writes at the same time exactly one can win."""
    environment: dict[str, str] = field(default_factory=dict)
    """Settings with which a process finds the same backing, where the folder alone does not say it."""

    def __post_init__(self):
        self.made = []

    def __call__(self):
        instance = self.make()
        self.made.append(instance)
        return instance

    def process(self, *args: object) -> subprocess.Popen:
        """A real process that works on the same backing (tests/contract/process.py says what it can do)."""
        script = Path(__file__).with_name("process.py")
        command = [sys.executable, str(script), str(self.folder), *map(str, args)]
        environment = {**os.environ, **self.environment}
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    def sorted(self, keys: Sequence[str]) -> list[str]:
        """Keys in the order of a LIST. SeaweedFS sorts each folder on its own, AWS and the others by key."""
        return sorted(keys, key=(lambda key: key.split("/")) if self.adapter == "seaweedfs" else None)

    @staticmethod
    def acknowledged(process: subprocess.Popen) -> list[Any]:
        """What a process said it had done, one JSON value a line; a line cut by the kill does not count."""
        lines = process.stdout.read().split("\n")[:-1]
        process.stdout.close()
        process.wait()
        return [json.loads(line) for line in lines]

    async def aclose(self):
        while self.made:
            await self.made.pop().close()

    def close(self):
        asyncio.run(self.aclose())


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Close what a test made on the loop on which it was made: Kafka's clients belong to theirs."""
    factories = [one for one in pyfuncitem.funcargs.values() if isinstance(one, Factory)]
    if not factories or not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}

    async def run():
        try:
            await pyfuncitem.obj(**arguments)
        finally:
            for factory in factories:
                await factory.aclose()

    asyncio.run(run())
    return True


@pytest.fixture(params=STORES)
def make_store(request, tmp_path):
    if request.param == "memory":
        one = MemoryStore()
        factory = Factory("memory", tmp_path, lambda: one, durable=False)
    elif request.param in ("moto", "seaweedfs"):
        server = request.getfixturevalue(request.param)
        prefix = f"{clock.new_id()}/"
        factory = Factory(
            request.param,
            tmp_path,
            lambda: S3Store(server.place(prefix)),
            durable=request.param != "moto",
            races=request.param != "moto",  # It compares, then writes, without a lock.
            environment=server.environment(prefix),
        )
    else:
        # Synced writes are for power cuts, which no test can make; the kills here need none.
        factory = Factory(
            "directory", tmp_path, lambda: DirectoryStore(tmp_path / "store", fsync=False), True
        )
    yield factory
    factory.close()


@pytest.fixture(params=BUSES)
def make_bus(request, tmp_path):
    if request.param == "memory":
        one = MemoryBus()
        factory = Factory("memory", tmp_path, lambda: one, durable=False)
    elif request.param == "sqlite":
        factory = Factory("sqlite", tmp_path, lambda: SqliteBus(tmp_path / "bus.db", fsync=False), True)
    else:
        server = request.getfixturevalue("kafka_server")
        # A prefix of its own, so that tests share a broker and nothing on it.
        settings = kafka_settings(server, f"x{next(_NUMBERS)}.")
        names = [settings.kafka_topic_prefix + topic for topic in TOPICS]
        asyncio.run(brokers.create_topics(server.servers, *names))
        (tmp_path / "kafka.json").write_text(
            json.dumps({"servers": server.servers, "prefix": settings.kafka_topic_prefix})
        )
        factory = Factory("kafka", tmp_path, lambda: KafkaBus.of(settings), True)
    yield factory
    factory.close()


_NUMBERS = itertools.count()


def kafka_settings(server: Any, prefix: str, **more: Any) -> Settings:
    return Settings(
        bus="kafka",
        kafka_servers=server.servers,
        kafka_topic_prefix=prefix,
        kafka_group_prefix=prefix,
        **more,
    )


@pytest.fixture
def store(make_store):
    return make_store()


@pytest.fixture
def bus(make_bus):
    return make_bus()
