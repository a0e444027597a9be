"""Records for tests: a small language to write runs in, and invented worlds in several human languages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from runlore.events import models
from runlore.memory import notes, operations, render, rules, values

LAYOUT = models.Layout()
Turn = list[dict[str, Any]]


def user(said: str) -> Turn:
    return [{"role": "user", "content": said}]


def agent(said: str) -> Turn:
    return [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": said}]}]


def call(tool: str, args: Any, answer: Any, *, id: str = "", **more: Any) -> Turn:
    """A function call with its answer; an answer that is not a text is sent as JSON."""
    body = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    given = id or f"call-{len(json.dumps([tool, args]))}-{abs(hash_of(tool, args, body))}"
    made = {"type": "function_call", "call_id": given, "name": tool, "arguments": json.dumps(args)}
    return [made, {"type": "function_call_output", "call_id": given, "output": body, **more}]


def hash_of(*parts: Any) -> int:
    import zlib

    return zlib.crc32(json.dumps(parts, sort_keys=True).encode())


def shell(command: str, output: str, exit_code: int = 0, *, id: str = "") -> Turn:
    """The SDK's own shell tool, in its own output format."""
    head = f"Chunk ID: abc123\nWall time: 0.1000 seconds\nProcess exited with code {exit_code}\nOutput:\n"
    return call("exec_command", {"cmd": command}, head + output, id=id)


def patch(path: str, id: str = "p1") -> Turn:
    operation = {"type": "update_file", "path": path, "diff": "@@\n-a\n+b\n"}
    made = {"type": "apply_patch_call", "call_id": id, "operation": operation, "status": "completed"}
    return [made, {"type": "apply_patch_call_output", "call_id": id, "status": "completed", "output": "ok"}]


def line(*turns: Turn, state: str = "completed", at: str = "2026-03-01T10:00:00+00:00", **more: Any) -> str:
    items = [item for turn in turns for item in turn]
    payload = {
        "updated_at": at,
        "rollout_id": "r",
        "input": items[:1],
        "generated_items": items[1:],
        "terminal_metadata": {"terminal_state": state, "exception_type": None},
        **more,
    }
    return json.dumps(payload, separators=(",", ":"))


def meta(rollout: str = "r1", run: str = "run1", **more: Any) -> values.RunMeta:
    given = {"project": "p", "memory": "m", "ended_at": "2026-03-01T10:00:00+00:00"} | more
    return values.RunMeta(rollout=rollout, run=run, **given)


def digest(*turns: Turn, about: values.RunMeta | None = None, **more: Any) -> dict[str, Any]:
    return rules.digest(line(*turns, **more), about or meta())


def summary(*turns: Turn, about: values.RunMeta | None = None, **more: Any) -> dict[str, Any]:
    return rules.build([digest(*turns, about=about, **more)])


def learn(summaries: list[dict[str, Any]], known: notes.Notes | None = None) -> notes.Notes:
    known = known or notes.Notes()
    for one in summaries:
        known, refused = operations.apply(known, operations.propose(known, one["rollout"], one))
        assert not refused
    return known


def tree(known: notes.Notes, *, subject: str | None = None, rollout: str | None = None) -> dict[str, str]:
    composed = render.compose(render.parts(known, LAYOUT), subject=subject, rollout=rollout, layout=LAYOUT)
    return {path: one.text for path, one in composed.items()}


# --- invented worlds --------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """Tools and phrases that no rule can know. `wrong` is refused with `refusal`, `right` is answered with data."""

    name: str
    tool: str
    field: str
    wrong: str
    right: str
    refusal: str
    greeting: str
    thanks: str

    def args(self, value: str, other: str = "x1") -> dict[str, Any]:
        return {self.field: value, "kunde": other, "menge": 2}

    def refused(self, value: str, other: str = "x1", *, id: str) -> Turn:
        return call(self.tool, self.args(value, other), self.refusal.format(value), id=id)

    def granted(self, value: str, other: str = "x1", *, id: str) -> Turn:
        return call(
            self.tool, self.args(value, other), {"nr": hash_of(value) % 1000, self.field: value}, id=id
        )


WORLDS = [
    World(
        "german",
        "zimmer_buchen",
        "reisetag",
        "2026-02-30",
        "2026-02-28",
        "Der Reisetag {} liegt nicht im Kalender",
        "Bitte buche mir ein Zimmer am See.",
        "Danke, das passt wunderbar so.",
    ),
    World(
        "japanese",
        "部屋を予約する",
        "日付",
        "二月三十日",
        "二月二十八日",
        "日付「{}」は暦に存在しません",
        "湖畔の部屋を予約してください。",
        "ありがとうございます。これで大丈夫です。",
    ),
    World(
        "arabic",
        "احجز_غرفة",
        "التاريخ",
        "٣٠ فبراير",
        "٢٨ فبراير",
        "التاريخ {} ليس في التقويم",
        "من فضلك احجز لي غرفة قرب البحيرة",
        "شكرا جزيلا هذا يكفيني تماما",
    ),
]
