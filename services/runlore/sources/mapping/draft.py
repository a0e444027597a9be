"""A first mapping from one sample: what is clear from names and shapes, and a comment where somebody must decide.

It reads names only, and guesses only where a wrong guess shows in `source check`. What it can not tell (the project,
the topic, who is who) is left open in the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from runlore import errors
from runlore.sources.mapping import turns

PLACES_MAX = 2000
"""Places of a sample that are looked at, shallow ones first."""
MESSAGES_LOOKED_AT = 50
DEPTH_MAX = 6

Place = tuple[tuple[str, ...], Any]
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_FIELDS = (
    # key of [run], what the end of a path may be called, in words, best first
    ("id", ("event id", "message id", "evt id", "uid")),
    ("rollout", ("conversation id", "thread id", "session id", "chat id", "ticket id", "dialog id", "group id")),
    ("run_id", ("run id", "trace id", "execution id", "invocation id", "task id", "span id")),
    ("subject", ("user id", "customer id", "client id", "account id", "subject", "end user")),
    ("time", ("ended at", "closed at", "finished at", "completed at", "end time", "end time unix nano",
              "updated at", "timestamp", "created at", "time")),
)  # fmt: skip
_END = (
    ("state", ("status", "outcome", "state", "result status", "status code")),
    ("error", ("error", "error message", "exception", "failure", "failure message")),
    ("final_output", ("final output", "final answer", "answer")),
)
_USAGE = (
    ("input_tokens", ("input tokens", "prompt tokens", "gen ai usage input tokens")),
    ("output_tokens", ("output tokens", "completion tokens", "gen ai usage output tokens")),
)
_ROLE = ("role", "who", "from", "sender", "author", "speaker", "actor", "type", "kind")
_TEXT = ("content", "parts", "text", "body", "message", "msg", "say", "value")


def draft(document: Any, *, name: str, topic: str = "", project: str = "") -> str:
    """A mapping as TOML text. Pure; nothing that the sample holds makes it raise."""
    places = list(_places(document))
    lists = _conversations(places)
    inside = [path for path, _ in lists]
    rest = [one for one in places if not any(one[0][: len(path)] == path for path in inside)]
    lines = [
        f"# Drafted from a sample: `runlore source check {name}.toml SAMPLE` tries it; docs/SOURCES.md has every key.",
        f"name = {_quoted(name)}",
        f"topic = {_quoted(topic or '…')}{'' if topic else '   # the topic that the events are on'}",
        f"project = {_quoted(project or '…')}{'' if project else '   # the tenant, never taken from the event'}",
        'memory = "support"',
        "# where = \"type == '…'\"      # where the topic also carries what is no run",
        "",
        "[run]",
        *_table(rest, _FIELDS),
        "",
        *_messages(lists),
        "",
        "[end]",
        *_table(rest, _END),
    ]
    usage = _table(rest, _USAGE, told=False)
    lines += ["", "[usage]", *usage] if usage else []
    return "\n".join(lines) + "\n"


def _places(document: Any) -> Iterator[Place]:
    """Every place in the sample that a path of names leads to, shallow ones first."""
    level: list[Place] = [((), document)]
    count = 0
    for _ in range(DEPTH_MAX):
        below: list[Place] = []
        for path, value in level:
            yield path, value
            count += 1
            if count >= PLACES_MAX:
                return
            if isinstance(value, dict):
                # What TOML can not spell is no name that anybody maps.
                below += [((*path, one), inner) for one, inner in value.items() if one.isprintable() and one]
        level = below


def _words(name: str) -> str:
    return " ".join(re.split(r"[^a-z0-9]+", _CAMEL.sub(" ", name).lower())).strip()


def _table(places: list[Place], wanted: Any, *, told: bool = True) -> list[str]:
    """The lines of a table: each key with the place whose name fits best; a comment for one that none fits."""
    lines, taken = [], set()
    for key, names in wanted:
        path = _best(places, names, taken)
        if path is not None:
            taken.add(path)
            lines.append(f"{key} = {_said(path)}")
        elif told:
            lines.append(f'# {key} = "…"')
    return lines


def _best(places: list[Place], names: tuple[str, ...], taken: set[tuple[str, ...]]) -> tuple[str, ...] | None:
    """`conversation id` is `conversation_id`, `meta.conversationId` and `conversation.id`."""
    scalars = [
        (path, f" {_words(path[-1])}", f" {' '.join(map(_words, path[-2:]))}")
        for path, value in places
        if path and path not in taken and isinstance(value, str | int) and not isinstance(value, bool)
    ]
    for name in names:
        for path, last, two in scalars:
            if last == f" {name}" or (" " in name and two.endswith(f" {name}")):
                return path
    return None


def _said(path: tuple[str, ...]) -> str:
    """A path as a JMESPath expression in TOML."""
    parts = [one if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", one) else json.dumps(one) for one in path]
    return _quoted(".".join(parts))


def _quoted(text: str) -> str:
    """A text in TOML: in single quotes where it holds double ones, which most expressions do."""
    if '"' in text and "'" not in text and text.isprintable():
        return f"'{text}'"
    return turns.quoted(text)


# --- messages ----------------------------------------------------------------------------------------------


def _conversations(places: list[Place]) -> list[tuple[tuple[str, ...], list[dict[str, Any]]]]:
    """The lists of objects that look like messages, the longest first; one may travel as a text."""
    found = []
    for path, value in places:
        if isinstance(value, str) and value.lstrip().startswith("[{"):
            try:
                value = turns.parsed(value, "messages")
            except errors.BadMessages:
                continue
        if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
            continue
        told = sum(_key(one, _ROLE) is not None or "kwargs" in one for one in value)
        if told * 2 > len(value):
            found.append((path, value))
    return sorted(found, key=lambda one: -len(one[1]))


def _key(message: dict[str, Any], names: tuple[str, ...]) -> str | None:
    return next((one for one in names if isinstance(message.get(one), str | int)), None)


def _messages(lists: list[tuple[tuple[str, ...], list[dict[str, Any]]]]) -> list[str]:
    if not lists:
        return ["[messages]", 'at = "…"   # where the list of messages is: none was found']
    path, messages = lists[0]
    lines = ["[messages]", f"at = {_said(path) if path else _quoted('@')}"]
    lines += [f"# these look like messages too: {_said(path)}" for path, _ in lists[1:4]]
    try:
        turns.chat(messages, "m", turns.Rules())
        return lines  # A shape that needs no word.
    except errors.BadMessages:
        return lines + _rules(messages[:MESSAGES_LOOKED_AT])


def _rules(messages: list[dict[str, Any]]) -> list[str]:
    """Where the parts of a message seem to be, and who seems to be who."""
    role = next(
        (one for one in _ROLE if sum(one in message for message in messages) * 2 > len(messages)), None
    )
    text = next(
        (one for one in _TEXT if any(isinstance(message.get(one), str) for message in messages)), None
    )
    lines = [f"role = {_said((role,))}" if role else '# role = "…"   # where a message says who spoke']
    lines += [f"text = {_said((text,))}"] if text and text not in ("content", "text") else []
    words: dict[str, str] = {}
    for message in messages:
        word = message.get(role) if role else None
        if isinstance(word, str | int) and str(word).isprintable():
            # What says nothing is something that was done.
            silent = text is not None and message.get(text) is None
            words.setdefault(turns.shown(str(word)), turns.CALL if silent else turns.guess(str(word)))
    if words:
        pairs = ", ".join(f"{turns.key_of(word)} = {_quoted(to)}" for word, to in words.items())
        lines.append(f"roles = {{ {pairs} }}   # guessed: user, assistant, tool, call, system or skip")
    if {turns.TOOL, turns.CALL} & set(words.values()):
        lines.append(
            '# call = { name = "…", arguments = "…", output = "…" }   # where in a call its parts are'
        )
    return lines
