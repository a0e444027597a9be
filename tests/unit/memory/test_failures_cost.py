"""What finding failures costs follows the number of calls: counted in comparisons of two calls, not in time."""

from __future__ import annotations

import json

import pytest

from runlore.memory import calls, failures, fixes, transcript


def run_of(count, answer):
    """A run that calls one tool `count` times, each time otherwise."""
    items = []
    for number in range(count):
        items.append(
            {
                "type": "function_call",
                "call_id": f"c{number}",
                "name": "query",
                "arguments": json.dumps({"path": f"p{number}", "limit": number % 7}),
            }
        )
        items.append(
            {"type": "function_call_output", "call_id": f"c{number}", "output": json.dumps(answer(number))}
        )
    payload = {"input": [{"role": "user", "content": "Count"}], "generated_items": items}
    return list(transcript.items(payload))


ANSWERS = {
    "each works": lambda number: {"rows": number},
    "each fails": lambda number: {"error": f"no such table {number}"},
    "each other fails": lambda number: {"error": "no such table"} if number % 2 else {"rows": number},
    "answers that nobody understands": lambda number: (
        {"note": "see"} if number % 2 else {"rows": [number] * 30}
    ),
    "sentences": lambda number: (
        "Please say which table." if number % 3 else f"The table has {number} rows in it."
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_twice_the_calls_of_one_tool_take_about_twice_the_comparisons(monkeypatch, name):
    counted = {"all": 0}
    for what in ("is_variant", "is_same"):
        true = getattr(calls, what)

        def counting(a, b, true=true):
            counted["all"] += 1
            return true(a, b)

        monkeypatch.setattr(calls, what, counting)
    looked = failures._works

    def works(call):
        counted["all"] += 1
        return looked(call)

    monkeypatch.setattr(failures, "_works", works)

    def cost(count):
        counted["all"] = 0
        failures.find(fixes.Context(calls.of(run_of(count, ANSWERS[name])), []))
        return counted["all"]

    cost(10)
    # 200 and more: past the window in which the retries of one call are looked for.
    once, twice = cost(200), cost(400)
    assert twice <= 2.2 * once + 10, (once, twice)
