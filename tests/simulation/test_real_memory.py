"""The same on the real memory: rules, notes, guards and rendering instead of the toy.

Fewer schedules, because each costs more; what is checked is the same, and memory means the same at the end.
"""

from __future__ import annotations

import json

import pytest
from harness import MEMORY, PROJECT, Scenario, edit, record, worker

from runlore.commit import revisions
from runlore.consumers import consolidate
from runlore.events import envelope, models
from runlore.lookup import seeds
from runlore.testing.buses import MemoryBus
from runlore.testing.stores import MemoryStore
from runlore.testing.world import Faults

REAL_MEMORY = True
"""Tells conftest to leave memory as it is."""


def run_of(number, rollout, attempt=1):
    """A run in which a tool fails, and works once its arguments are changed."""
    items = []
    for step, (path, output) in enumerate(
        (("wrong", {"error": "no such table"}), ("right", {"rows": number}))
    ):
        arguments = json.dumps({"path": path})
        items.append(
            {"type": "function_call", "call_id": f"c{step}", "name": "query", "arguments": arguments}
        )
        items.append({"type": "function_call_output", "call_id": f"c{step}", "output": json.dumps(output)})
    line = {
        "updated_at": f"2026-01-01T00:00:{number:02d}+00:00",
        "rollout_id": rollout,
        "input": [{"role": "user", "content": f"Count the rows of table {number}"}],
        "generated_items": items,
        "terminal_metadata": {"terminal_state": "completed", "has_final_output": True},
        "final_output": f"{number} rows, try {attempt}",
    }
    data = {
        "project": PROJECT,
        "memory": MEMORY,
        "session_id": rollout,
        "run_id": f"n{number}",
        "attempt": attempt,
    }
    data |= {"record": json.dumps(line)}
    checked = models.run_completed(data)
    made = envelope.of_run(data, source="/test")
    return record.message_of(made, f"{checked.project}/{checked.rollout.alias}", "runs")


RUNS = [run_of(1, "r1"), run_of(3, "r1"), run_of(2, "r1"), run_of(4, "r2"), run_of(1, "r1", attempt=2)]


@pytest.mark.parametrize("records_max", [1, 100])
def test_real_memory_through_every_crash(records_max):
    scenario = Scenario(RUNS, processes=[worker(records_max)], faults=Faults(crashes=1))
    assert scenario.explore().complete > 20


def test_real_memory_replayed_from_the_start():
    scenario = Scenario([], before=[(RUNS, worker(2))], replay=True, faults=Faults(crashes=1))
    assert scenario.explore().complete > 5


def test_real_memory_with_two_workers():
    scenario = Scenario(RUNS[:2], processes=[worker(1), worker()], faults=Faults(switches=1))
    assert scenario.explore().complete > 20


async def seeded():
    """`MEMORY.md` as the first run's revision has it."""
    store, bus = MemoryStore(), MemoryBus()
    await bus.produce([RUNS[0]])
    await record.RecordStage(store, bus).process([one async for one in bus.read("runs")])
    await consolidate.ConsolidateStage(store, bus).work(PROJECT, MEMORY)
    reader = revisions.Reader(store)
    seed = await seeds.resolve(reader, PROJECT, MEMORY, "r9")
    return (await seeds.open_seed(reader, seed)).files["memories/MEMORY.md"].text


async def edited():
    """Two edits of one line of it, and one of a line that a run changes meanwhile."""
    base = await seeded()
    (line,) = [row for row in base.splitlines() if row.startswith("- `query`")]
    ways = [base.replace(line, f"- Way {number}: {line[2:60]}") for number in (1, 2)]
    return [
        edit(f"e{number}", rollout=f"r{number}", text=text, base=base, revision=1)
        for number, text in enumerate([*ways, base.replace(line, "") + "- Ask first\n"], 1)
    ]


async def test_real_edits_of_real_memory_through_every_crash():
    edits = await edited()
    files = {}

    def all_is_shown(view):
        found = {path: view.revision.text(one["sha256"]) for path, one in view.revision.map("files").items()}
        text = found["base/MEMORY.md"]
        told = [f"- Way {number}" in text for number in (1, 2)] + ["- Ask first" in text, "conflict" in text]
        return None if all(told) and files.setdefault("first", found) == found else text

    for messages in ([*edits, *RUNS[1:4]], [*RUNS[1:4], *reversed(edits)]):
        # Not compared with a worker that begins from nothing: there the edits' base would be none that is known.
        scenario = Scenario(
            messages,
            processes=[worker(2)],
            before=[([RUNS[0]], worker())],
            faults=Faults(crashes=1),
            compare=False,
            holds=all_is_shown,
        )
        assert scenario.explore().complete > 20
