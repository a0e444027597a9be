"""Sends a plan through the real producer, as a process: `driver.py PLAN LEDGER SECONDS`.

Where it was killed it goes on: what its ledger does not show as acknowledged is sent (again). It takes at least
SECONDS for the whole plan, so that there is something to break meanwhile.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
import time
from pathlib import Path
from typing import IO

from cluster import ledger
from runlore import errors, producer, wiring
from runlore.settings import Settings

BATCH = 4
WAIT_SECONDS = 0.2


async def send(sends: list, out: IO[str], known: ledger.Ledger, seconds: float) -> None:
    """Send what the ledger does not show as acknowledged."""
    todo = [number for number in range(len(sends)) if not known.acknowledged[number]]
    began = time.monotonic()
    async with wiring.open_home(Settings(), create=True) as home:
        made = producer.Producer(home.store, home.bus)
        for at in range(0, len(todo), BATCH):
            batch = todo[at : at + BATCH]
            await asyncio.sleep(max(0.0, began + seconds * at / len(sends) - time.monotonic()))
            sent = False
            while not sent:
                sent = await _sent(made, home.store, sends, batch, out)


async def _sent(made, store, sends, batch, out) -> bool:
    ledger.note(out, ledger.SENDING, batch)
    try:
        for number in batch:
            if sends[number][1]:
                project, archive = sends[number][1]
                await producer.put_claim(store, project, bytes.fromhex(archive))
        raw = b"".join(sends[number][0].encode() for number in batch)
        async for _ in made.emit(io.BytesIO(raw), source="/cluster-test"):
            pass
    except errors.Retryable as exc:
        print(f"not sent: {exc.kind}: {exc}", file=sys.stderr, flush=True)
        await asyncio.sleep(WAIT_SECONDS)
        return False
    ledger.note(out, ledger.ACKNOWLEDGED, batch)
    return True


def main(plan_file: str, ledger_file: str, seconds: str) -> None:
    sends = [json.loads(line) for line in Path(plan_file).read_text().splitlines()]
    known = ledger.read(Path(ledger_file))
    with open(ledger_file, "a") as out:
        asyncio.run(send(sends, out, known, float(seconds)))


if __name__ == "__main__":
    main(*sys.argv[1:])
