"""An agent's program in whichever version runs it: runs of one conversation against two services in turn.

client.py, with its arguments as JSON on stdin. It prints what each run saw, and what was told of errors.
"""

from __future__ import annotations

import asyncio
import json
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runlore.agents import Runlore  # noqa: E402
from sandboxed import config, done, seen, shell, worker  # noqa: E402


async def main(given):
    told, saw = [], []
    for number, url in enumerate(given["urls"]):
        lore = Runlore(
            "acme",
            memory="support",
            url=url,
            key=given["key"],
            home=given["home"],
            deadline_seconds=30,
            on_error=told.append,
        )
        steps = worker(shell(f"cat *.txt; ls memories; echo {number} > {number}.txt; false"), done())
        name = given["conversation"]
        result = await lore.run(steps, f"Turn {number}", conversation_id=name, run_config=config())
        saw.append(seen(result).splitlines())
        ended = await lore.wait_for(rollout=name, seconds=60)
        assert ended.end == "consolidated", ended
        await lore.aclose()
    print(json.dumps({"saw": saw, "told": [str(one) for one in told]}), flush=True)


asyncio.run(main(json.loads(sys.stdin.read())))
