"""A run's record as a list of plain items, whichever SDK wrote it.

Python items are snake_case (`function_call_output`, `call_id`), JavaScript ones camelCase
(`function_call_result`, `callId`); outputs are strings, lists of parts, or objects with exit codes. All of
them become `Item`s that keep their position in `input + generated_items`: that position is what evidence
names. Nothing here raises on an odd item; what is not understood is left out.

A resumed run repeats items, and some producers use one call id for several calls. So an item is a duplicate
only if its id *and* its content were seen, and an output belongs to the oldest call with its id that has none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

OUTPUT_CHARS_MAX = 200_000
"""Characters of one output that are kept: its head and its tail, as an error can stand at either end."""
DEPTH_MAX = 12
"""How deep content parts are searched for text."""

# agents.sandbox.capabilities.tools.shell_tool._format_response: the SDK's own header of a command's output; and
# Codex's (openai/codex, core/src/tools/mod.rs), which shares its tools.
_SDK_EXEC = re.compile(
    r"\A(?:Exit code: (-?\d+)\n|Chunk ID: \w*\n)?Wall time: [\d.]+ seconds?\n(?:Process exited with code (-?\d+)\n)?"
    r"(?:Process running with session ID \d+\n)?(?:Original token count: \d+\n)?(?:Total output lines: \d+\n)?"
    r"Output:(?:\n|\Z)"
)
_DATA_KEY = re.compile(r"\d{3}|[@\s]")
_EXIT_KEYS = ("exit_code", "exitCode", "returncode", "return_code")


@dataclass(frozen=True, slots=True)
class Output:
    """What a call answered."""

    index: int
    text: str
    exit_code: int | None = None
    timed_out: bool = False
    is_error: bool = False
    """The protocol itself calls it an error: a failed status, `is_error`, an error object."""


@dataclass(frozen=True, slots=True)
class Item:
    """A message (`user`, `assistant`) or a `call` with its output."""

    index: int
    kind: str
    text: str = ""
    tool: str = ""
    args: Any = None
    call_id: str = ""
    output: Output | None = None


def parse(line: str) -> list[Item]:
    """The items of a record line, in order. Never raises: a line that is no record has no items."""
    try:
        payload = json.loads(line)
    except (ValueError, RecursionError):
        return []
    return items(payload) if isinstance(payload, dict) else []


def items(payload: dict[str, Any]) -> list[Item]:
    """The items of a record, in order."""
    raw = [*_list(payload.get("input")), *_list(payload.get("generated_items"))]
    reader = _Reader()
    for index, entry in enumerate(raw):
        if isinstance(entry, str):
            entry = {"role": "user", "content": entry}
        if isinstance(entry, dict):
            reader.read(index, entry)
    return reader.result()


class _Reader:
    def __init__(self) -> None:
        self._items: list[Item] = []
        self._seen: set[str] = set()
        self._open: dict[str, list[int]] = {}
        """Call id -> places in `_items` of the calls that have no output yet."""

    def result(self) -> list[Item]:
        return self._items

    def read(self, index: int, entry: dict[str, Any]) -> None:
        role = entry.get("role")
        kind = entry.get("type") if isinstance(entry.get("type"), str) else ""
        if role in ("user", "assistant") and kind in ("", "message"):
            self._message(index, entry, str(role))
        elif role == "tool":
            self._output(index, _id(entry, "tool_call_id"), output_of(index, entry, entry.get("content")))
        elif kind.endswith(("_output", "_result")):
            body = entry.get("output", entry.get("result"))
            self._output(index, _id(entry), output_of(index, entry, body))
        elif kind.endswith("_call"):
            self._call(index, _id(entry), *_call_of(entry, kind))
            if entry.get("output") is not None or entry.get("error"):
                self._output(index, _id(entry), output_of(index, entry, entry.get("output")))

    def _message(self, index: int, entry: dict[str, Any], role: str) -> None:
        text = text_of(entry.get("content"))
        identity = entry.get("id")
        if isinstance(identity, str) and identity and self._is_repeat("message", identity, text):
            return
        if text.strip():
            self._items.append(Item(index, role, text))
        for call in _list(entry.get("tool_calls")):
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict):
                self._call(
                    index, _id(call), str(function.get("name") or ""), _arguments(function.get("arguments"))
                )

    def _call(self, index: int, call_id: str, tool: str, args: Any) -> None:
        if not tool or (call_id and self._is_repeat("call", call_id, f"{tool}\0{_canonical(args)}")):
            return
        self._open.setdefault(call_id, []).append(len(self._items))
        self._items.append(Item(index, "call", tool=tool, args=args, call_id=call_id))

    def _output(self, index: int, call_id: str, output: Output) -> None:
        waiting = self._open.get(call_id)
        if waiting:
            place = waiting.pop(0)
            self._items[place] = replace(self._items[place], output=output)

    def _is_repeat(self, kind: str, identity: str, content: str) -> bool:
        key = f"{kind}\0{identity}\0{content}"
        if key in self._seen:
            return True
        self._seen.add(key)
        return False


def _id(entry: dict[str, Any], *names: str) -> str:
    for name in (*names, "call_id", "callId", "id"):
        value = entry.get(name)
        if isinstance(value, str) and value:
            return value
    return ""


def _call_of(entry: dict[str, Any], kind: str) -> tuple[str, Any]:
    tool = entry.get("name") if isinstance(entry.get("name"), str) else ""
    server = entry.get("server_label") or entry.get("serverLabel")
    if tool and isinstance(server, str):
        tool = f"{server}/{tool}"
    for name in ("arguments", "input", "operation", "action"):
        if entry.get(name) is not None:
            return tool or kind.removesuffix("_call"), _arguments(entry[name])
    return tool or kind.removesuffix("_call"), {}


def _arguments(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return {} if value is None else value


def output_of(index: int, entry: dict[str, Any], body: Any) -> Output:
    """The output that `body` tells, with the exit code and the error flag that the protocol gives it."""
    error = entry.get("error") or None
    failed = entry.get("status") == "failed" or _is_error(entry) or error is not None
    if isinstance(body, str):
        text, exit_code, timed_out = _from_text(body)
    else:
        text, exit_code, timed_out = _from_parts(body)
        failed = failed or (isinstance(body, dict) and _is_error(body))
    if exit_code is None:
        exit_code = _exit_code(entry)
    if error is not None and not text.strip():
        text = error if isinstance(error, str) else _canonical(error)
    if len(text) > OUTPUT_CHARS_MAX:
        half = OUTPUT_CHARS_MAX // 2
        text = f"{text[:half]}\n…\n{text[-half:]}"
    return Output(index, text, exit_code, timed_out, failed)


def _is_error(entry: dict[str, Any]) -> bool:
    # MCP's CallToolResult has `isError`; Anthropic-style tool results have `is_error`.
    return entry.get("isError") is True or entry.get("is_error") is True


def _from_text(body: str) -> tuple[str, int | None, bool]:
    header = _SDK_EXEC.match(body[:400])
    if header:
        code = header.group(1) or header.group(2)
        return body[header.end() :], int(code) if code else None, False
    # `local_shell_call_output.output` is a JSON string; other shells answer the same way.
    if body.startswith("{") and any(f'"{key}"' in body for key in _EXIT_KEYS):
        try:
            parsed = json.loads(body)
        except (ValueError, RecursionError):
            return body, None, False
        text, exit_code, timed_out = _from_parts(parsed)
        return (
            (text, exit_code, timed_out) if exit_code is not None and text else (body, exit_code, timed_out)
        )
    return body, None, False


def _from_parts(body: Any) -> tuple[str, int | None, bool]:
    texts: list[str] = []
    codes: list[int] = []
    timed_out = False
    for part in _list(body) if isinstance(body, list) else [body]:
        if not isinstance(part, dict):
            texts.append(text_of(part))
            continue
        outcome = part.get("outcome")
        if isinstance(outcome, dict):
            timed_out = timed_out or outcome.get("type") == "timeout"
            codes += [code for code in (_exit_code(outcome),) if code is not None]
        code = _exit_code(part)
        if code is None and isinstance(part.get("metadata"), dict):
            code = _exit_code(part["metadata"])
        codes += [] if code is None else [code]
        streams = [part[name] for name in ("stdout", "output", "stderr") if isinstance(part.get(name), str)]
        texts.append("\n".join(s for s in streams if s) if streams else text_of(part))
    return "\n".join(text for text in texts if text), (max(codes, key=abs) if codes else None), timed_out


def _exit_code(entry: dict[str, Any]) -> int | None:
    for key in _EXIT_KEYS:
        if isinstance(entry.get(key), int) and not isinstance(entry[key], bool):
            return entry[key]
    return None


def text_of(content: Any, depth: int = 0) -> str:
    """The text of a message's or an output's content: a string, parts, or an object that is itself the answer."""
    if isinstance(content, str):
        return content
    if content is None or depth > DEPTH_MAX:
        return ""
    if isinstance(content, list):
        return "\n".join(filter(None, (text_of(part, depth + 1) for part in content)))
    if not isinstance(content, dict):
        return json.dumps(content)
    for name in ("text", "refusal", "transcript", "content"):
        if isinstance(content.get(name), str | list | dict):
            return text_of(content[name], depth + 1)
    if isinstance(content.get("type"), str) and ("image" in content["type"] or "file" in content["type"]):
        return ""
    return _canonical(content)


def _list(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    return [value] if isinstance(value, str) else []


def _canonical(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return ""


def leaves(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every scalar in `value` with its path; list positions are `[]`, as they carry no meaning across calls."""
    if depth > DEPTH_MAX:
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            name = _key(key)
            yield from leaves(inner, f"{path}.{name}" if path else name, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, f"{path}[]", depth + 1)
    else:
        yield path, value


def _key(key: Any) -> str:
    # A key that is an id, an address or a sentence is data, and would make every object's path another one.
    name = str(key)
    return name if len(name) <= 40 and not _DATA_KEY.search(name) else "*"
