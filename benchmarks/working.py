"""A worker of the pipeline that says what it did: `working.py STAGES [OBJECTS]`. A process, until SIGTERM.

It is `runlore worker` with counters in it: requests by operation (the store's own hook), the processor's time of the
functions where it goes (`time.thread_time`, so waiting does not count), and with OBJECTS the objects that it
wrote, for `bare.py` to write again. `benchmarks/cluster.py` starts it.
"""

from __future__ import annotations

import asyncio
import functools
import json
import pickle
import resource
import signal
import sys
import threading
import time
from collections import Counter
from typing import Any

from runlore import wiring
from runlore.consumers import record
from runlore.lookup.index import Index
from runlore.memory import rules
from runlore.settings import Settings
from runlore.store import s3client
from runlore.worker.loop import Worker

PARTS: Counter[str] = Counter()
CALLS: Counter[str] = Counter()
LOCK = threading.Lock()


def timed(owner: Any, name: str, part: Any) -> None:
    """Count the processor's time of a function as `part` (or as what `part` makes of its arguments)."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def wrapper(*args: Any, **more: Any) -> Any:
        began = time.thread_time()
        try:
            return function(*args, **more)
        finally:
            took = time.thread_time() - began
            label = part(args) if callable(part) else part
            with LOCK:
                PARTS[label] += took
                CALLS[label] += 1

    setattr(owner, name, wrapper)


def instrument() -> None:
    timed(record, "parse", "parse the event")
    timed(record, "prepare", "check and redact the record")
    timed(rules, "digest", "digest (rules)")
    timed(rules, "extend", "summary (rules)")
    timed(rules, "build", "summary (rules)")
    timed(s3client.Client, "call", lambda args: f"S3 client: {args[1]}")


async def work(stages: str, objects: str) -> dict[str, Any]:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    requests: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    times = {"began": 0.0, "ended": 0.0}
    settings = Settings()
    async with wiring.open_home(settings, create=True) as home:
        told = home.store.on_request

        def on_request(operation: str, status: int, bytes_out: int, bytes_in: int, seconds: float) -> None:
            with LOCK:
                requests[operation] += 1
                sent[operation] += bytes_out
            if told is not None:
                told(operation, status, bytes_out, bytes_in, seconds)

        home.store.on_request = on_request
        index = Index(home.index_path)
        made = Worker(home.store, home.bus, index, settings, stages=stages.split(","), stopping=stopping)
        _note_times(made, times)
        began = resource.getrusage(resource.RUSAGE_SELF)
        try:
            await made.run()
        finally:
            index.close()
        usage = resource.getrusage(resource.RUSAGE_SELF)
    if objects:
        with open(objects, "wb") as file:  # noqa: ASYNC230
            count = made.progress.recorded + made.progress.already
            pickle.dump({"writes": WRITES, "share": len(WRITES) / count}, file)
    cpu = usage.ru_utime + usage.ru_stime - began.ru_utime - began.ru_stime
    return {**times, "cpu": cpu, "requests": requests, "bytes_out": sent, "parts": PARTS, "calls": CALLS}


def _note_times(made: Worker, times: dict[str, float]) -> None:
    """When the first batch began and the last one ended, of whichever stage."""
    for stage in (made._record, made._snapshot, made._consolidate):
        name = "work" if hasattr(stage, "work") else "process"
        function = getattr(stage, name)

        async def noted(*args: Any, function: Any = function) -> Any:
            times["began"] = times["began"] or time.time()
            try:
                return await function(*args)
            finally:
                times["ended"] = time.time()

        setattr(stage, name, noted)


WRITES: list[tuple[str, bytes]] = []


def keep_writes() -> None:
    call = s3client.Client.call

    def kept(self: Any, operation: str, **params: Any) -> Any:
        answer = call(self, operation, **params)
        if operation == "PutObject":
            WRITES.append((params["Key"], params["Body"]))
        return answer

    s3client.Client.call = kept  # type: ignore[method-assign]


def main(stages: str, objects: str = "") -> None:
    if objects:
        keep_writes()
    instrument()
    print(json.dumps({"ready": True}), flush=True)
    print(json.dumps(asyncio.run(work(stages, objects))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
