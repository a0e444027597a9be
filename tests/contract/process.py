"""A process of its own on a store or a bus: `process.py FOLDER COMMAND ...`.

It says what is done, a JSON value a line.
A line is printed after the call returned, so whoever kills this process knows what must have survived.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from pathlib import Path

from runlore import errors, settings, wiring
from runlore.bus import port
from runlore.bus.port import Outgoing
from runlore.bus.sqlite import SqliteBus
from runlore.settings import Settings
from runlore.store.directory import DirectoryStore


def open_store(folder: Path):
    """The store that the environment names, or the one in `folder`."""
    named = settings.Settings()
    return wiring.store_of(named) if named.store == "s3" else DirectoryStore(folder / "store", fsync=False)


def say(value: object) -> None:
    print(json.dumps(value), flush=True)


async def count(folder: Path, key: str, times: str) -> None:
    """Add one to a counter object, `times` times, by compare-and-set."""
    store = open_store(folder)
    for _ in range(int(times)):
        while True:
            found = await store.get(key)
            value = int(found.body) if found else 0
            try:
                await store.compare_and_set(key, b"%d" % (value + 1), found.etag if found else None)
                break
            except errors.PreconditionFailed:
                continue
    await store.close()
    say("done")


async def race(folder: Path, name: str, keys: str) -> None:
    """Put the same keys as everybody else, if absent; says which it won."""
    store = open_store(folder)
    won = []
    for number in range(int(keys)):
        try:
            await store.put_if_absent(f"race/{number:04d}", name.encode())
            won.append(number)
        except errors.PreconditionFailed:
            pass
    await store.close()
    say(won)


async def write_for_ever(folder: Path) -> None:
    """Put objects and move a head until killed; says each thing once it is done."""
    store = open_store(folder)
    found = await store.get("head")
    etag = found.etag if found else None
    for number in itertools.count(int(found.body.split()[0]) + 1 if found else 1):
        body = b"%d %s" % (number, b"x" * 50_000)
        await store.put_if_absent(f"objects/{number:06d}", body)
        etag = await store.compare_and_set("head", body, etag)
        say(number)


def bus_of(folder: Path) -> port.Bus:
    """The bus that the folder tells of: Kafka where it names a broker, else the log in it."""
    if not (folder / "kafka.json").exists():
        return SqliteBus(folder / "bus.db", fsync=False)
    from runlore.bus.kafka import KafkaBus

    told = json.loads((folder / "kafka.json").read_text())
    return KafkaBus.of(
        Settings(bus="kafka", kafka_servers=told["servers"], kafka_topic_prefix=told["prefix"])
    )


async def produce_for_ever(folder: Path) -> None:
    """Produce pairs of messages until killed; says each pair's number once it is durable."""
    bus = bus_of(folder)
    done = [message async for message in bus.read("t")]
    for number in itertools.count(len(done) // 2):
        pair = [Outgoing("t", b"k", b"%d-%d" % (number, half), []) for half in (0, 1)]
        await bus.produce(pair)
        say(number)


async def produce(folder: Path, name: str, times: str) -> None:
    bus = bus_of(folder)
    for number in range(int(times)):
        await bus.produce([Outgoing("t", name.encode(), b"%d" % number, [])])
    await bus.close()
    say("done")


if __name__ == "__main__":
    commands = {f.__name__: f for f in (count, race, write_for_ever, produce_for_ever, produce)}
    asyncio.run(commands[sys.argv[2]](Path(sys.argv[1]), *sys.argv[3:]))
