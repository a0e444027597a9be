"""`codex`: sessions of Codex CLI, `~/.codex/sessions/YYYY/MM/DD/rollout-<time>-<thread>.jsonl` (or `.jsonl.zst`;
with `_<rollout>` after the thread once it was reverted), and what was archived, flat in `~/.codex/archived_sessions`.

A line is `{"timestamp", "type", "payload"}` (openai/codex, `codex-rs/protocol/src/protocol.rs`, `RolloutLine`):

| type | what is taken |
|---|---|
| `session_meta` | the thread's `id`; `forked_from_id`; in `source.subagent.thread_spawn`, whose subagent it is |
| `response_item` | messages, calls and outputs (`models.rs`, `ResponseItem`); reasoning and compactions are left out |
| `event_msg` | `task_started`, `task_complete`, `turn_aborted`: where a turn begins and how it ends |
| `turn_context` | whose turn follows, in a fork |
| `inter_agent_communication` | to a subagent: what it was asked (as the item `agent_message` is) |

What a `user_message` or `agent_message` event says (since the summer of 2026 an `item_completed`:
zilliztech/memsearch#743, quirq-ai/xo-space#162) stands in a `response_item` too (`rollout/src/policy.rs`), so events
are not read for text. A compaction (`compacted`) repeats what the file holds already.
Before the autumn of 2025 a line was the bare item; such files are read the same way.

**Whose words.** Codex puts what it has to say (`<environment_context>`, AGENTS.md) into messages of the user. A
message that is one tag around all, or instructions of a file, is not the person's. An editor's extension writes what
is open there above the request, which stands below a heading of its own.

**Forks.** `codex fork` and some subagents begin with a copy of their parent's lines, its `session_meta` included,
all with the time of the fork (openai/codex#21025, kenn-io/agentsview#657). The parent's own file has them; here
they are passed over until the first turn that is not older than this thread, which the turn's id tells (a UUIDv7,
minted when the turn ran), or its `started_at` (junhoyeo/tokscale#895). Since the summer of 2026 a fork or a reverted
thread names what it goes on from (`history_base`) and copies nothing (kzahel/yepanywhere#122).
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runlore.sources import Problem, chat, items, turns

_MESSAGE = "inter_agent_communication"
_TYPES = ("session_meta", "response_item", "event_msg", "turn_context", "compacted", _MESSAGE)
_STARTS = ("task_started", "turn_started")
_ENDS = ("task_complete", "turn_complete", "turn_aborted")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_INSTRUCTIONS = re.compile(r"# AGENTS\.md instructions\b")
_EDITOR = ("# Context from my IDE setup:", "# Files mentioned by the user:")
_REQUEST = re.compile(r"^## My request(?: for [A-Z][a-z]+)?:[ \t]*$", re.MULTILINE)


class Importer:
    """Reads the files of one import; each stands for itself."""

    def runs(self, path: Path) -> Iterator[turns.Run | Problem]:
        """The runs of one file, and what is wrong in it."""
        return turns.runs(_Reader(path), path)


class _Reader:
    def __init__(self, path: Path) -> None:
        self.known = 0
        self._path = path
        named = _UUID.findall(path.name)
        # The thread; after it may stand which of its files this is.
        self._thread = named[0] if named else path.name.removesuffix(".zst").removesuffix(".jsonl")
        self._has_meta = False
        self._born_ms: int | None = None
        self._is_copy = False
        """Whether the lines are still the parent's."""
        self._parent: str | None = None
        self._agents: list[str] = []
        self._address: str | None = None
        """Where messages of other agents reach this one."""
        self._turn: turns.Turn | None = None
        self._count = 0
        self._turn_id: str | None = None
        """The id of the turn that was announced, until it ended."""

    def read(self, line: turns.Line) -> Iterator[turns.Run | Problem]:
        kind, payload, when = _parts(line.data)
        if kind is None:
            return
        self.known += 1
        if kind == "session_meta":
            self._meta(payload)
        elif kind == "turn_context":
            self._own(payload)
        elif kind == "event_msg":
            yield from self._event(line, payload, when)
        elif kind == "response_item" and not self._is_copy:
            yield from self._item(line, payload, when)
        elif kind == _MESSAGE and not self._is_copy:
            yield from self._item(line, {**payload, "type": "agent_message"}, when)

    def end(self) -> Iterator[turns.Run | Problem]:
        if self._turn is not None:
            yield from self._turn.finish()

    def _meta(self, meta: dict[str, Any]) -> None:
        if self._has_meta:
            # A second one is the parent's: what follows is its history, until a turn of this thread's own.
            self._is_copy = self._is_copy or (
                self._count == 0 and turns.id_of(meta.get("id")) != self._thread
            )
            return
        self._has_meta = True
        self._thread = turns.id_of(meta.get("id")) or self._thread
        self._born_ms = _minted_ms(self._thread) or _epoch_ms(meta.get("timestamp"))
        spawned = turns.part_of(turns.part_of(meta.get("source"), "subagent"), "thread_spawn")
        parent = turns.id_of(spawned.get("parent_thread_id")) or turns.id_of(meta.get("parent_thread_id"))
        self._parent = parent if parent != self._thread else None
        name = turns.id_of(spawned.get("agent_role")) or turns.id_of(spawned.get("agent_nickname"))
        self._agents = [name] if name and self._parent else []
        self._address = turns.id_of(spawned.get("agent_path"))
        self._is_copy = turns.id_of(meta.get("forked_from_id")) is not None

    def _own(self, start: dict[str, Any]) -> None:
        """Whether a turn that begins here is this thread's own: then the copy is over."""
        if not self._is_copy:
            return
        began = _minted_ms(turns.text_of(start.get("turn_id")))
        if began is None and isinstance(start.get("started_at"), int | float):
            began = _epoch_ms(start["started_at"])
            # Whole seconds, of which the thread may have been born in the midst.
            began = began + 999 if began is not None else None
        self._is_copy = began is None or began < (self._born_ms or 0)

    def _event(self, line: turns.Line, event: dict[str, Any], when: Any) -> Iterator[turns.Run | Problem]:
        kind = event.get("type")
        if kind in _STARTS:
            self._own(event)
            if not self._is_copy:
                yield from self._next(turns.id_of(event.get("turn_id")))
        elif self._is_copy or self._turn is None:
            return
        elif kind in _ENDS:
            if kind == "turn_aborted" and self._turn.acted:
                self._turn.seen(line, when)
                self._turn.stopped()
            yield from self._next(None)
        elif kind == "error" and self._turn.acted:
            self._turn.seen(line, when)
            self._turn.failed("error", turns.text_of(event.get("message")))

    def _next(self, turn_id: str | None) -> Iterator[turns.Run | Problem]:
        """The turn so far is over, if the agent did anything in it."""
        if self._turn is not None and self._turn.acted:
            yield from self._turn.finish()
            self._turn = None
        if self._turn is None:
            self._turn_id = turn_id

    def _begin(self, line: turns.Line) -> turns.Turn:
        self._count += 1
        name = self._turn_id or str(self._count)
        turn = turns.Turn(f"{self._thread}.{name}", self._thread, path=self._path, line=line.number)
        turn.parent, turn.agents = self._parent, self._agents
        return turn

    def _item(self, line: turns.Line, item: dict[str, Any], when: Any) -> Iterator[turns.Run | Problem]:
        kind = item.get("type")
        said = ""
        if kind == "message" and item.get("role") == "user":
            said = _spoken(item.get("content"))
        elif kind == "agent_message" and self._address and item.get("recipient") == self._address:
            said = items.as_text(item.get("content")).strip()
        # Words in the midst of a turn that was announced steer it; else they begin the next.
        if said and self._turn is not None and self._turn.acted and self._turn_id is None:
            yield from self._next(None)
        if not said and kind not in _ACTS and not (kind == "message" and item.get("role") == "assistant"):
            return
        if self._turn is None:
            self._turn = self._begin(line)
        self._turn.seen(line, when)
        if said:
            self._turn.user(said)
        elif kind == "message":
            self._turn.assistant(items.as_text(item.get("content")))
        else:
            _act(self._turn, str(kind), item)


_ACTS = (
    "function_call",
    "function_call_output",
    "custom_tool_call",
    "custom_tool_call_output",
    "local_shell_call",
    "tool_search_call",
    "tool_search_output",
    "web_search_call",
)


def _act(turn: turns.Turn, kind: str, item: dict[str, Any]) -> None:
    call_id = turns.id_of(item.get("call_id"))
    name = turns.id_of(item.get("name"))
    if kind.endswith("_output"):
        turn.output(
            *_output(item.get("output", item.get("tools")), call_id), failed=_failed(item.get("output"))
        )
    elif kind == "custom_tool_call":
        turn.custom_call(name or kind, items.as_text(item.get("input")), call_id)
    elif kind == "function_call":
        turn.call(name or kind, items.as_arguments(item.get("arguments")), call_id)
    else:
        arguments = item.get("action", item.get("arguments"))
        call_id = call_id or turns.id_of(item.get("id"))
        turn.call(kind.removesuffix("_call"), items.as_arguments(arguments), call_id)


def _output(output: Any, call_id: str | None) -> tuple[str, str | None]:
    if isinstance(output, dict) and "content" in output:
        output = output["content"]  # Until 2025: {"content": …, "success": …}
    return items.as_text(output), call_id


def _failed(output: Any) -> bool:
    return isinstance(output, dict) and output.get("success") is False


def _spoken(content: Any) -> str:
    """The person's words in a message of the user; what Codex put there is left out, part by part."""
    parts = content if isinstance(content, list) else [content]
    texts = [items.as_text([part]) for part in parts if part is not None]
    own = [text for text in texts if not turns.is_wrapped(text) and not _INSTRUCTIONS.match(text.lstrip())]
    return "\n".join(text for text in map(_asked, own) if text.strip())


def _asked(text: str) -> str:
    """A text without what an editor's extension wrote above the person's words."""
    if not text.lstrip().startswith(_EDITOR):
        return text
    found = _REQUEST.search(text)
    return text[found.end() :].strip() if found else ""


def _parts(data: dict[str, Any]) -> tuple[str | None, dict[str, Any], Any]:
    """A line's type, its payload and its time; type None where the line is none of a session."""
    kind, payload = data.get("type"), data.get("payload")
    when = data.get("timestamp")
    if isinstance(payload, dict):
        return (kind if kind in _TYPES else None), payload, when
    if "type" not in data and "id" in data and "timestamp" in data:
        return "session_meta", data, when
    if kind in _ACTS or kind in ("message", "reasoning"):
        return "response_item", data, when
    return None, {}, None


def _minted_ms(uuid: str) -> int | None:
    """When a UUIDv7 was minted, in milliseconds since 1970; None for any other id."""
    if not _UUID.fullmatch(uuid) or uuid[14] != "7":
        return None
    return int(uuid[:8] + uuid[9:13], 16)


def _epoch_ms(value: Any) -> int | None:
    when = chat.moment(value)
    return int(dt.datetime.fromisoformat(when).timestamp() * 1000) if when else None
