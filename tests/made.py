"""Made-up runs: deterministic, small, with failures and fixes in them, for tests of everything behind the bus."""

from __future__ import annotations

import datetime as dt
import json
import random

START = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
TOOLS = ("run_query", "fetch_page", "send_form", "read_sheet")
CAUSES = (
    "no such column: total_cents",
    "the form needs a field region",
    "sheet 7 is locked",
    "404: page moved",
)


def moment(minute):
    """The time `minute` minutes after the first run, as the SDK writes it."""
    return (START + dt.timedelta(minutes=minute)).isoformat(timespec="microseconds")


def payload(number, *, text=None, items=None, final="done"):
    """The SDK's record of one run: a request, a tool that failed, the same tool with other arguments that worked."""
    dice = random.Random(number)
    kind = dice.randrange(len(TOOLS))
    wrong, right = f"wrong-{dice.randrange(3)}", f"right-{kind}"
    if items is None:
        items = [
            *call(f"c{number}a", TOOLS[kind], {"argument": wrong}, {"error": CAUSES[kind]}),
            *call(f"c{number}b", TOOLS[kind], {"argument": right}, {"rows": dice.randrange(100)}),
        ]
    return {
        "updated_at": moment(number),
        "rollout_id": f"r{number}",
        "input": [{"role": "user", "content": text or f"Please do task {number} of the list"}],
        "generated_items": items,
        "terminal_metadata": {"terminal_state": "completed", "has_final_output": True},
        "final_output": final,
    }


def call(call_id, tool, arguments, output):
    """A tool call and its output, as items of a record."""
    return [
        {"type": "function_call", "call_id": call_id, "name": tool, "arguments": json.dumps(arguments)},
        {"type": "function_call_output", "call_id": call_id, "output": json.dumps(output)},
    ]


def data(number, *, rollout=None, project="acme", memory="support", record=None, **more):
    """The data of one run-completed event."""
    return {
        "project": project,
        "memory": memory,
        "session_id": rollout or f"conv-{number % 7}",
        "run_id": f"run-{number}",
        "record": json.dumps(record or payload(number), separators=(",", ":")),
        **more,
    }


def event(number, **more):
    """The same as a CloudEvent in structured mode: with a fixed id and time, so that two homes can be compared."""
    body = data(number, **more)
    return {
        "specversion": "1.0",
        "id": f"event-{body['project']}-{body['run_id']}-{body.get('attempt', 1)}",
        "source": "/test",
        "type": "io.runlore.run.completed.v1",
        "time": moment(number),
        "data": body,
    }


def lines(events):
    """Events as the lines of a file for `runlore emit`."""
    return b"".join(json.dumps(one).encode() + b"\n" for one in events)
