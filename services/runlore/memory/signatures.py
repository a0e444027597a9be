"""The signature of a failure: its message with every value taken out.

Two failures are one when their tool and their signature are the same. What is a value is told by form (a
number, a quotation, a path, a word with a digit) or by provenance (it was an argument of this very call),
never by what a word means.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from runlore.memory import calls, text

MESSAGE_CHARS_MAX = 240
SIGNATURE_WORDS_MAX = 28
_ARGUMENT_CHARS_MAX = 80
"""Longer arguments are prose or code, whose words say nothing about where a value came from."""

# What a frame of a stack trace looks like: Python, JavaScript, Java and Kotlin, Go, Ruby and PHP.
_FRAMES = re.compile(
    r"^\s+File \"[^\"\n]+\", line \d+|^\s+at .+[:(]\d+(?::\d+)?\)?$|^\s+at [\w.$<>]+\(.*\)$"
    r"|^\t\S+\.go:\d+|^\s+from \S+:\d+:in |^#\d+ \S+\(\d+\)",
    re.MULTILINE,
)
# `file:line:col: message`, as compilers and linters report.
_DIAGNOSTIC = re.compile(r"^(?:\s{0,4})(\S+?[:(]\d+[:,]\d+\)?):?\s+(\S.*)$", re.MULTILINE)
# `name: message`, where the name is one word without blanks: an exception, a program.
_LABELLED = re.compile(r"^\W{0,4}([^\W\d][\w.$\[\]()-]{1,60}): +(\S.*)$")

_VALUE = re.compile(
    r"""(?P<quoted>"[^"\n]{0,200}"|(?<!\w)'[^'\n]{0,200}'(?!\w)|`[^`\n]{0,200}`|[“„«][^”“»\n]{0,200}[”“»]|「[^」\n]{0,200}」|『[^』\n]{0,200}』)
    |(?P<address>\b[a-z][a-z0-9+.-]{1,20}://\S+|\b[\w.+-]+@[\w-]+\.[\w.-]+)
    |(?P<path>(?<![\w])(?:~|\.{1,2})?(?:/[\w.@%+-]+)+/?|\b[\w.@-]+(?:/[\w.@%+-]+)+|\b[A-Za-z]:\\\S+|\b[\w-]+\.(?:[a-z]{1,4}\d?)\b(?!\())
    |(?P<date>\b\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:Z|[+-]\d{2}:?\d{2})?)?)
    |(?P<number>(?<![A-Za-z0-9_])[-+]?\d[\d.,:]*%?(?![A-Za-z0-9_]))
    |(?P<id>(?<![A-Za-z0-9_])[A-Za-z_]*\d[A-Za-z0-9_]*(?:[-.][A-Za-z0-9_]+)*)
    """,
    re.VERBOSE,
)
_WORDS = re.compile(r"<[^<>\s]*>|[^\W_]+(?:['’_-][^\W_]+)*|[^\w\s]", re.UNICODE)


@dataclass(frozen=True, slots=True)
class Signature:
    """`key`: what makes two failures the same. `shown`: the same with named placeholders, for a reader."""

    key: str
    shown: str


def has_frames(body: str) -> bool:
    """Whether `body` ends as a stack trace does: frames, and at most a few lines after the last."""
    found = list(_FRAMES.finditer(body[-20_000:]))
    if not found:
        return False
    after = body[-20_000:][found[-1].end() :].strip("\n").splitlines()
    return len(after) <= 12


def message_of(call: calls.Call, *, is_whole: bool = False) -> str:
    """The part of a failing answer that says what was wrong: one line.

    `is_whole`: the answer failed by its shape, so its beginning is what tells it from the tool's others.
    """
    if isinstance(call.container, dict):
        found = _message_in(call.container)
        if found:
            return text.inline(found, MESSAGE_CHARS_MAX)
    first = next((line for line in call.text.splitlines() if line.strip()), "")
    whole = is_whole and len(call.text) > MESSAGE_CHARS_MAX and not has_frames(call.text)
    return text.inline(first if whole else _line_of(call.text), MESSAGE_CHARS_MAX)


def _message_in(container: dict[Any, Any], depth: int = 0) -> str:
    # JSON-RPC, MCP and OpenAI put the text under `error.message`; anybody else's object is read by form: the
    # longest sentence-like string among its leaves.
    inner = container.get("error") or container.get("errors")
    if isinstance(inner, list) and inner:
        inner = inner[0]
    if isinstance(inner, str):
        return inner
    if isinstance(inner, dict) and depth < 3:
        return _message_in(inner, depth + 1)
    if isinstance(container.get("message"), str):
        return container["message"]
    strings = [value for value in container.values() if isinstance(value, str)]
    return max(strings, key=lambda value: (len(value[:400]), value), default="")


def _line_of(body: str) -> str:
    body = body[-20_000:]
    lines = [line for line in body.splitlines() if line.strip()]
    if not lines:
        return ""
    if has_frames(body):
        return _after_frames(lines)
    diagnostic = _DIAGNOSTIC.search(body)
    if diagnostic:
        return diagnostic.group(2)
    if len(lines) <= 3 and len(body) <= MESSAGE_CHARS_MAX:
        return " ".join(line.strip() for line in lines)
    labelled = [line for line in lines[-40:] if _LABELLED.match(line)]
    if labelled:
        return labelled[-1].strip()
    return lines[0].strip() if len(lines) > 12 else lines[-1].strip()


def _after_frames(lines: list[str]) -> str:
    # Python and Ruby name the exception after the frames, JavaScript and Java before them.
    places = [place for place, line in enumerate(lines) if _FRAMES.match(line)]
    for line in lines[places[-1] + 1 :]:
        if _LABELLED.match(line) or re.fullmatch(r"[A-Za-z_][\w.]*", line):
            return line.strip()
    for line in reversed(lines[: places[0]]):
        if _LABELLED.match(line):
            return line.strip()
    return lines[-1].strip()


def of(message: str, arguments: Iterable[tuple[str, str]]) -> Signature:
    """The signature of `message`, the answer to a call with these `arguments` (path, value)."""
    for path, value in sorted(_own_values(arguments), key=lambda pair: (-len(pair[1]), pair)):
        message = _whole(value).sub(f" <{_placeholder(path)}> ", message)
    shown = _VALUE.sub(_by_form, message)
    words = _WORDS.findall(shown)[:SIGNATURE_WORDS_MAX]
    key = " ".join("*" if word.startswith("<") and len(word) > 2 else word for word in words)
    key = re.sub(r"\*(?: [^\w*]? ?\*)+", "*", key)
    return Signature(key, _tidy(" ".join(shown.split())))


def _tidy(shown: str) -> str:
    shown = text.clip(shown, MESSAGE_CHARS_MAX - 40)
    shown = re.sub(r"(<[^\s<>]+>) (?=[,.;:!?)\]」』）、。：])", r"\1", shown)
    return re.sub(r"(?<=[(\[「『（]) (<[^\s<>]+>)", r"\1", shown)


def _own_values(arguments: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    out: dict[str, str] = {}
    for path, value in arguments:
        if (
            path
            and 2 <= len(value) <= _ARGUMENT_CHARS_MAX
            and "\n" not in value
            and any(map(str.isalnum, value))
        ):
            out.setdefault(value, path)
    return {(path, value) for value, path in out.items()}


def _whole(value: str) -> re.Pattern[str]:
    # Scripts without blanks between words have no word boundary to ask for.
    before = r"(?<![A-Za-z0-9_])" if value[0].isascii() else ""
    after = r"(?![A-Za-z0-9_])" if value[-1].isascii() else ""
    return re.compile(rf"{before}['\"]?{re.escape(value)}['\"]?{after}")


def _placeholder(path: str) -> str:
    return re.sub(r"[^\w.\[\]-]", "", path.replace(" ", "_"))[-40:] or "value"


def _by_form(match: re.Match[str]) -> str:
    kind = match.lastgroup or "value"
    body = match.group()
    if kind == "quoted":
        inner = body[1:-1]
        # A quoted mark (`unmatched ')'`) is grammar, not a value; so is what is a placeholder already.
        if not any(map(str.isalnum, inner)) or (
            inner.strip().startswith("<") and inner.strip().endswith(">")
        ):
            return body
        kind = "text"
    return f"<{kind}>"


def has_words(signature: Signature) -> bool:
    """Whether anything is left to recognise the failure by."""
    return sum(len(word) for word in re.findall(r"[^\W\d_]+", signature.key.replace("*", " "))) >= 4


def as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
