"""The bare loop: aiokafka and boto3 as a competent team would write them, putting the same objects. A process.

    python benchmarks/bare.py OBJECTS

It reads the topic of the settings in its environment in a group of its own, and for each batch of messages puts
its share of OBJECTS (what Runlore's stage wrote for the same messages: the same keys and bytes), 32 at a time in
threads, then commits the batch's offsets. It parses nothing, decides nothing and is not restartable: it is what the
pipeline's cost is compared with. `benchmarks/cluster.py` starts it; until SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import resource
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
from aiokafka import AIOKafkaConsumer
from botocore.config import Config

from runlore.settings import Settings

THREADS = 32
BATCH = 500


def client_of(settings: Settings) -> Any:
    return boto3.session.Session().client(
        "s3",
        endpoint_url=settings.s3_endpoint,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key_id.get_secret_value(),
        aws_secret_access_key=settings.s3_secret_access_key.get_secret_value(),
        config=Config(max_pool_connections=THREADS, s3={"addressing_style": "path"}, tcp_keepalive=True),
    )


async def consume(settings: Settings, writes: list[tuple[str, bytes]], share: float) -> dict[str, Any]:
    """Put `share` objects for each message, until SIGTERM; what it took."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    client = client_of(settings)
    consumer = AIOKafkaConsumer(
        f"{settings.kafka_topic_prefix}runs",
        bootstrap_servers=settings.kafka_servers,
        group_id=f"{settings.kafka_group_prefix}bare",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    waiting: Iterator[tuple[str, bytes]] = iter(writes)
    began = ended = 0.0
    messages, due = 0, 0.0
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(THREADS) as pool:
        while not stopping.is_set():
            batch = await consumer.getmany(timeout_ms=200, max_records=BATCH)
            if not batch:
                continue
            began = began or time.time()
            count = sum(map(len, batch.values()))
            messages += count
            due += count * share
            puts = []
            while due >= 1 and (one := next(waiting, None)) is not None:
                due -= 1
                puts.append(loop.run_in_executor(pool, put, client, settings.s3_bucket, *one))
            await asyncio.gather(*puts)
            await consumer.commit({at: records[-1].offset + 1 for at, records in batch.items()})
            ended = time.time()
    await consumer.stop()
    client.close()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "began": began,
        "ended": ended,
        "messages": messages,
        "cpu": usage.ru_utime + usage.ru_stime,
    }


def put(client: Any, bucket: str, key: str, body: bytes) -> None:
    client.put_object(Bucket=bucket, Key=key, Body=body)


def main(objects: str) -> None:
    with open(objects, "rb") as file:
        found = pickle.load(file)
    print(json.dumps({"ready": True}), flush=True)
    began = resource.getrusage(resource.RUSAGE_SELF)
    out = asyncio.run(consume(Settings(), found["writes"], found["share"]))
    out["cpu"] -= began.ru_utime + began.ru_stime
    print(json.dumps(out), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
