"""One foreign message of a conversation becomes OpenAI chat messages, from which `sources.chat` builds the record.

Known without a word in the mapping: OpenAI chat (also tool calls of old), OpenAI responses items, Anthropic-style
blocks, OpenTelemetry GenAI and Gemini parts, LangChain messages as LangSmith keeps them. Anything else is told by
rules: where a message's role and text stand, which of its roles is which, where its calls and their outputs are.

Nothing is guessed about who spoke: a role that is not known is an error that says what to write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from runlore import errors
from runlore.memory import redact
from runlore.sources import items
from runlore.sources.mapping import document

USER, ASSISTANT, TOOL, CALL, SYSTEM, SKIP = "user", "assistant", "tool", "call", "system", "skip"
ROLES = (USER, ASSISTANT, TOOL, CALL, SYSTEM, SKIP)
"""What a role may be mapped to: `tool` is a call's output, `call` a call (with its output, where it has one)."""

_KNOWN = {
    **dict.fromkeys(("user", "human", "HumanMessage", "HumanMessageChunk"), USER),
    **dict.fromkeys(("assistant", "ai", "model", "AIMessage", "AIMessageChunk"), ASSISTANT),
    **dict.fromkeys(("tool", "function", "ToolMessage", "FunctionMessage"), TOOL),
    **dict.fromkeys(("system", "developer", "SystemMessage"), SYSTEM),
}
# Items of the responses API that are no message.
_ITEM_TYPES = {
    "function_call": CALL,
    "custom_tool_call": CALL,
    "function_call_output": TOOL,
    "custom_tool_call_output": TOOL,
    "reasoning": SKIP,
}
_THOUGHTS = frozenset({"thinking", "redacted_thinking", "reasoning"})
_CALLS = frozenset({"tool_use", "tool_call", "server_tool_use", "function_call"})
_OUTPUTS = frozenset({"tool_result", "tool_call_response", "function_call_output"})
_TEXTS = frozenset({"text", "input_text", "output_text"})

_CALL_ID = ("call_id", "id", "tool_call_id")
_ANSWERS_ID = ("tool_call_id", "tool_use_id", "call_id")
"""What an output answers. A message's own `id` is not among them: it would answer no call."""
_NAME = ("name", "tool_name", "tool", "function")
_ARGUMENTS = ("arguments", "args", "input", "parameters")
_OUTPUT = ("output", "result", "response", "content")
_TEXT = ("content", "parts", "text")

SHOWN_CHARS_MAX = 40
PROBLEMS_MAX = 20
"""How many messages of one conversation are told to be wrong, at most."""

_GUESSES = (
    (re.compile(r"(tool|function|action)_?(call|use)$", re.I), CALL),
    (re.compile(r"tool|function|action|observation|lookup|api", re.I), TOOL),
    (re.compile(r"system|instruction|prompt|event|note", re.I), SYSTEM),
    (re.compile(r"bot|assist|^ai$|model|llm|copilot", re.I), ASSISTANT),
    (re.compile(r"user|customer|client|human|visitor|caller|guest|person|agent", re.I), USER),
)

Reader = Callable[[Any], Any]


@dataclass(frozen=True)
class Rules:
    """Where the parts of a message stand, where the mapping says so; None where the known shapes are looked for."""

    role: Reader | None = None
    text: Reader | None = None
    calls: Reader | None = None
    call_id: Reader | None = None
    call_name: Reader | None = None
    call_arguments: Reader | None = None
    call_output: Reader | None = None
    roles: dict[str, str] = field(default_factory=dict)


class Wrong(Exception):
    """A message that can not be read; and what its role would be mapped to, where that is all it lacks."""

    def __init__(self, message: str, *, role: tuple[str, str] | None = None) -> None:
        super().__init__(message)
        self.role = role


def chat(messages: Any, where: str, rules: Rules) -> list[dict[str, Any]]:
    """The conversation as OpenAI chat messages. Raises `errors.BadMessages` with every message that is wrong."""
    if isinstance(messages, str):
        messages = parsed(messages, where)
    if not isinstance(messages, list):
        raise errors.BadMessages(f"{where} is {kind_of(messages)}, not a list of messages")
    out: list[dict[str, Any]] = []
    wrong: list[Wrong] = []
    for number, message in enumerate(messages):
        try:
            out += _one(message, f"{where}[{number}]", rules)
        except Wrong as exc:
            wrong.append(exc)
            if len(wrong) == PROBLEMS_MAX:
                break
    if wrong:
        raise errors.BadMessages(told(wrong))
    return out


def told(wrong: list[Wrong]) -> str:
    """What is wrong, in one line: the first message, and one `roles` for every role that is not known."""
    roles = dict(one.role for one in wrong if one.role)
    if roles:
        pairs = ", ".join(f"{key_of(raw)} = {json.dumps(to)}" for raw, to in roles.items())
        first = next(one for one in wrong if one.role)
        return f"{first}; map it with roles = {{{pairs}}}"
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    return f"{wrong[0]}{more}"


def shown(text: str) -> str:
    """A name that an event holds, for a message: short, and without a secret."""
    return redact.text(text)[:SHOWN_CHARS_MAX]


def key_of(raw: str) -> str:
    """A name as TOML writes it."""
    return raw if re.fullmatch(r"[A-Za-z0-9_-]+", raw) else quoted(raw)


def quoted(raw: str) -> str:
    """A text as TOML writes it, which is JSON but for U+007F and for what JSON says in a pair of escapes."""
    said = json.dumps(raw, ensure_ascii=False).replace("\x7f", "\\u007f")
    return said.encode("utf-8", "replace").decode("utf-8")  # Half a pair is no character: `?`.


def parsed(text: str, where: str) -> Any:
    """Messages that travel as a text of JSON, as attributes of a span do. Raises `errors.BadMessages`."""
    try:
        return document.of_json(text, where)
    except errors.BadJson:
        raise errors.BadMessages(f"{where} is a text, and no JSON list of messages") from None


def _one(message: Any, where: str, rules: Rules) -> list[dict[str, Any]]:
    if not isinstance(message, dict):
        raise Wrong(f"{where} is {kind_of(message)}, not an object")
    name, message = _unwrapped(message)
    role = _role(message, name, where, rules)
    if role in (SKIP, SYSTEM):
        return []
    if role == CALL:
        return _call_item(message, where, rules)
    if role == TOOL:
        return list(_output_item(message, rules))
    return list(_spoken(message, role, where, rules))


def _unwrapped(message: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """A LangChain message out of its wrapping: (what it is by its class, its fields)."""
    kwargs, path, data = message.get("kwargs"), message.get("id"), message.get("data")
    if isinstance(kwargs, dict) and isinstance(path, list) and path and isinstance(path[-1], str):
        return path[-1], kwargs
    if isinstance(data, dict) and isinstance(message.get("type"), str) and "content" in data:
        return message["type"], data
    return None, message


def _role(message: dict[str, Any], name: str | None, where: str, rules: Rules) -> str:
    if rules.role is not None:
        raw = rules.role(message)
        raw = name if raw is None else raw
    else:
        raw = name or message.get("role")
        kind = message.get("type")
        if raw is None and isinstance(kind, str):
            raw = kind
    if raw is None or raw == "":
        fields = ", ".join(shown(one) for one in list(message)[:6])
        hint = "its role is not where the mapping says" if rules.role else 'say where it stands: role = "…"'
        raise Wrong(f"{where} has no role; its fields are {fields or 'none'}; {hint}")
    if not isinstance(raw, str | int | bool):
        raise Wrong(f"{where} has a role that is {kind_of(raw)}, not a text")
    raw = str(raw).lower() if isinstance(raw, bool) else str(raw)
    found = rules.roles.get(raw) or _KNOWN.get(raw) or _ITEM_TYPES.get(raw)
    if found is None:
        raise Wrong(f"{where} has no role", role=(shown(raw), guess(raw)))
    return found


def guess(raw: str) -> str:
    """What a role most likely is: for a message to a person, never for an event."""
    return next((to for pattern, to in _GUESSES if pattern.search(raw)), USER)


# --- what was said ------------------------------------------------------------------------------------------


def _spoken(message: dict[str, Any], role: str, where: str, rules: Rules) -> Iterator[dict[str, Any]]:
    """A message of a user or an assistant: its text, and the calls and outputs that stand in it, in order."""
    content = rules.text(message) if rules.text else _first(message, _TEXT)
    name = message.get("name")
    speaker = {"name": name} if role == ASSISTANT and isinstance(name, str) else {}
    calls = list(_calls(message, where, rules)) if role == ASSISTANT else []
    texts: list[str] = []
    said = False
    for part in content if isinstance(content, list) else [content]:
        if calls and isinstance(part, dict) and _type(part) in _CALLS:
            continue  # LangChain keeps a call twice: in the content, and beside it.
        moved = _part(part, where)
        if isinstance(moved, str):
            texts.append(moved)
            continue
        if any(texts):
            yield {"role": role, **speaker, "content": "\n".join(filter(None, texts))}
        texts, said = [], True
        if moved is not None:
            yield moved
    text = "\n".join(filter(None, texts))
    refusal = message.get("refusal")
    if role == ASSISTANT and not text and not said and isinstance(refusal, str):
        text = refusal
    # An empty turn of a user is a turn all the same, as in a chat log.
    if text or (role == USER and not said):
        yield {"role": role, **speaker, "content": text}
    yield from calls


def _part(part: Any, where: str) -> str | dict[str, Any] | None:
    """A part of a message's content: its text, a chat message that it stands for, or nothing (a thought)."""
    if not isinstance(part, dict):
        return items.as_text(part)
    kind = _type(part)
    for wrapped, is_call in (("functionCall", True), ("functionResponse", False)):  # Gemini
        inner = part.get(wrapped)
        if isinstance(inner, dict):
            return _call(inner, where) if is_call else _answer(inner)
    if kind in _THOUGHTS or part.get("thought") is True:
        return None
    if kind in _CALLS:
        return _call(part, where)
    if kind in _OUTPUTS:
        return _answer(part)
    if kind in _TEXTS and isinstance(part.get("content"), str):  # OpenTelemetry
        return part["content"]
    return items.as_text([part])


def _type(part: dict[str, Any]) -> str | None:
    kind = part.get("type")
    return kind if isinstance(kind, str) else None


# --- calls and outputs ----------------------------------------------------------------------------------------


def _calls(message: dict[str, Any], where: str, rules: Rules) -> Iterator[dict[str, Any]]:
    """The calls beside a message's text; with the output of each, where it stands with it."""
    calls = rules.calls(message) if rules.calls else message.get("tool_calls")
    if not calls and isinstance(message.get("function_call"), dict):
        calls = [message["function_call"]]
    if isinstance(calls, dict):
        calls = [calls]
    if not calls:
        return
    if not isinstance(calls, list):
        raise Wrong(f"{where} has calls that are {kind_of(calls)}, not a list")
    for number, call in enumerate(calls):
        place = f"{where}.{'calls' if rules.calls else 'tool_calls'}[{number}]"
        if not isinstance(call, dict):
            raise Wrong(f"{place} is {kind_of(call)}, not an object")
        inner = call.get("function")
        if isinstance(call.get("custom"), dict):
            yield _custom(call["custom"], place, _id(call.get("id")))
        elif isinstance(inner, dict) and not _tells_calls(rules):
            yield _call({**inner, "id": call.get("id")}, place)
        else:
            yield _call(call, place, rules)
        if rules.call_output is not None and (output := rules.call_output(call)) is not None:
            yield _output(call, output, _CALL_ID, rules)


def _tells_calls(rules: Rules) -> bool:
    return any((rules.call_id, rules.call_name, rules.call_arguments))


def _call_item(message: dict[str, Any], where: str, rules: Rules) -> list[dict[str, Any]]:
    """A message that is a call; and its output, where it stands in the same message."""
    if message.get("type") == "custom_tool_call" and not _tells_calls(rules):
        return [_custom(message, where, _id(_first(message, _CALL_ID)))]
    out = [_call(message, where, rules)]
    output = rules.call_output(message) if rules.call_output else _first(message, ("output", "result"))
    if output is not None:
        out.append(_output(message, output, _CALL_ID, rules))
    return out


def _output_item(message: dict[str, Any], rules: Rules) -> Iterator[dict[str, Any]]:
    """A message that is an output; or that wraps several, as parts."""
    told = [reader for reader in (rules.call_output, rules.text) if reader]
    parts = None if told else _first(message, ("parts", "content"))
    inner = [_part(part, "") for part in parts] if isinstance(parts, list) else []
    if any(isinstance(one, dict) for one in inner):
        yield from (one for one in inner if isinstance(one, dict))
        return
    content = next((found for reader in told if (found := reader(message)) is not None), None)
    if content is None:
        # Also where the rules find nothing: an output that is lost is a failure that nobody learns from.
        content = _first(message, ("content", "parts", *_OUTPUT, "text"))
    yield _output(message, content, _ANSWERS_ID, rules)


def _call(call: dict[str, Any], where: str, rules: Rules | None = None) -> dict[str, Any]:
    rules = rules or Rules()
    name = rules.call_name(call) if rules.call_name else _first(call, _NAME)
    if not isinstance(name, str) or not name:
        raise Wrong(f'{where} is a call without a tool\'s name; say where it stands: call.name = "…"')
    arguments = rules.call_arguments(call) if rules.call_arguments else _first(call, _ARGUMENTS)
    given = _id(rules.call_id(call) if rules.call_id else _first(call, _CALL_ID))
    function = {"name": name, "arguments": items.as_arguments(arguments)}
    made = {"type": "function", "function": function} | ({"id": given} if given else {})
    return {"role": "assistant", "content": None, "tool_calls": [made]}


def _custom(custom: dict[str, Any], where: str, given: str | None) -> dict[str, Any]:
    name = custom.get("name")
    if not isinstance(name, str) or not name:
        raise Wrong(f"{where} is a call without a tool's name")
    made = {"type": "custom", "custom": {"name": name, "input": items.as_text(custom.get("input"))}}
    return {"role": "assistant", "content": None, "tool_calls": [made | ({"id": given} if given else {})]}


def _answer(part: dict[str, Any]) -> dict[str, Any]:
    """A part that is an output."""
    return _output(part, _first(part, _OUTPUT), (*_ANSWERS_ID, "id"), Rules())


def _output(message: dict[str, Any], content: Any, id_names: tuple[str, ...], rules: Rules) -> dict[str, Any]:
    given = _id(rules.call_id(message) if rules.call_id else _first(message, id_names))
    name = rules.call_name(message) if rules.call_name else _first(message, _NAME)
    failed = message.get("is_error") is True or message.get("status") == "error"
    return {
        "role": "tool",
        "content": items.as_text(content),
        **({"tool_call_id": given} if given else {}),
        **({"name": name} if isinstance(name, str) and name else {}),
        **({"is_error": True} if failed else {}),
    }


def _id(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value else None


def _first(holder: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((holder[name] for name in names if holder.get(name) is not None), None)


def kind_of(value: Any) -> str:
    """What a value is, for a message."""
    if value is None:
        return "not there"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list"}
    return names.get(type(value), "an object")
