"""What made a failing call work: the shape of the change, and where the new value came from.

A change is told by argument path, never by tool. Its source is found by looking for the new value: in the
failure's own text, in what another tool answered before, in what the user said. That is the part that
helps the next run, whose values are others.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from runlore.memory import calls, text, transcript

CHANGES_MAX = 4
"""A retry that changes more paths than this is another errand; nothing is learnt from it."""
VALUE_CHARS_MAX = 80
COMMAND_CHARS_MAX = 160
SOURCE_CHARS_MIN = 4
SOURCE_LEAVES_MAX = 4_000
"""Leaves of earlier answers that are searched for where a value came from."""

WHOLE = "arguments"
"""How a change is called that is of no argument by name: the call was given a bare text or number."""

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Context:
    """What the agent could have taken a new value from."""

    calls: list[calls.Call]
    users: list[tuple[int, str]]
    """(item index, text) of each user message."""


def of(
    context: Context, failing: calls.Call, working: calls.Call, between: calls.Call | None
) -> dict[str, Any] | None:
    """The fix that turned `failing` into `working`, or None where the change says nothing.

    `between` is the first retry that failed in another way: what it changed is what cured this failure.
    """
    if failing.command:
        return _of_command(failing, working)
    paths = calls.changed_paths(failing, working)
    if between is not None:
        # Nothing but what the first step and the working call both changed can be what mattered here.
        paths = [path for path in paths if path in calls.changed_paths(failing, between)] or paths
    if not paths or len(paths) > CHANGES_MAX:
        return None
    changes = [_change(context, failing, working, path) for path in paths]
    if all(map(functools.partial(_says_nothing, failing, working), paths, changes)):
        return None
    return {"changes": _by_list(changes), "item": working.index}


def _of_command(failing: calls.Call, working: calls.Call) -> dict[str, Any] | None:
    before, after = text.inline(failing.command, 4_000), text.inline(working.command, 4_000)
    if before == after:
        return None
    if len(after) <= COMMAND_CHARS_MAX:
        return {"command": after, "was": text.clip(before, COMMAND_CHARS_MAX), "item": working.index}
    pieces = _differences(before.split(), after.split())
    if not pieces:
        return None
    return {"pieces": pieces, "item": working.index}


def _differences(before: list[str], after: list[str]) -> list[list[str]]:
    """The first places where two long commands differ, as [was, is]; none if they have little in common."""
    matcher = difflib.SequenceMatcher(None, before[:400], after[:400], autojunk=False)
    pieces = []
    for tag, a0, a1, b0, b1 in matcher.get_opcodes():
        if tag != "equal":
            was, now = " ".join(before[a0:a1]), " ".join(after[b0:b1])
            pieces.append([text.clip(was, VALUE_CHARS_MAX), text.clip(now, VALUE_CHARS_MAX)])
    return pieces if 0 < len(pieces) <= 3 else []


def _change(context: Context, failing: calls.Call, working: calls.Call, path: str) -> dict[str, Any]:
    before, after = _values(failing, path), _values(working, path)
    added = list((Counter(after) - Counter(before)).elements())
    dropped = list((Counter(before) - Counter(after)).elements())
    change: dict[str, Any] = {"path": path[-VALUE_CHARS_MAX:] or WHOLE, "how": _how(before, after)}
    if dropped:
        change["was"] = text.inline(dropped[0], VALUE_CHARS_MAX)
    if added:
        change["is"] = text.inline(added[0], VALUE_CHARS_MAX)
        change["from"] = _source(context, failing, working, path, added[0])
    return {name: value for name, value in change.items() if value}


def _says_nothing(failing: calls.Call, working: calls.Call, path: str, change: dict[str, Any]) -> bool:
    """Whether all that is known is that some long text was replaced by another."""
    both = _values(failing, path) + _values(working, path)
    is_long = any(len(value) > VALUE_CHARS_MAX or "\n" in value for value in both)
    return is_long and change["how"] == "set" and not change.get("from")


def _by_list(changes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The changes, those of a list that became longer or shorter as one change of that list."""
    out: list[dict[str, Any]] = []
    lists: set[str] = set()
    for change in changes:
        if change["how"] not in ("more", "fewer") or "[]" not in change["path"]:
            out.append(change)
            continue
        name = change["path"].rpartition("[]")[0] + "[]"
        if name not in lists:
            lists.add(name)
            out.append({"path": name, "how": change["how"]})
        if change.get("from") in ("error", "error sum"):
            out.append(change | {"how": "set"})
    return out


def _values(call: calls.Call, path: str) -> list[str]:
    return [value for where, value in call.leaves if where == path]


def _how(before: list[str], after: list[str]) -> str:
    if not before:
        return "add"
    if not after:
        return "drop"
    if len(before) != len(after):
        return "more" if len(after) > len(before) else "fewer"
    return "set"


def _source(context: Context, failing: calls.Call, working: calls.Call, path: str, value: str) -> str:
    """Where the new value stood before: `error`, `error sum`, `answer <head> <path>`, `user`, or ""."""
    message = failing.text[:4_000]
    if _stands_in(value, message):
        return "error"
    if _sums_to(working, path, message):
        return "error sum"
    if len(value) < SOURCE_CHARS_MIN or not (
        any(map(str.isdigit, value)) or len(value) >= 2 * SOURCE_CHARS_MIN
    ):
        # A plain short word (`economy`, `true`) stands in many places; where it came from can't be told.
        return (
            "user"
            if any(index < working.index and _stands_in(value, said) for index, said in context.users)
            else ""
        )
    found = _in_answers(context, working, value)
    if found:
        return found
    said = [words for index, words in context.users if index < working.index]
    return "user" if any(_stands_in(value, words) for words in reversed(said)) else ""


def _stands_in(value: str, body: str) -> bool:
    if len(value) < 2 or value not in body:
        return False
    return (
        re.search(rf"(?<![A-Za-z0-9]){re.escape(value)}(?![A-Za-z0-9])", body) is not None
        or not value.isascii()
    )


def _sums_to(working: calls.Call, path: str, message: str) -> bool:
    numbers = [float(value) for value in _values(working, path) if _NUMBER.fullmatch(value)]
    wanted = {float(number) for number in _NUMBER.findall(message)}
    return len(numbers) > 1 and sum(numbers) in wanted


def _in_answers(context: Context, working: calls.Call, value: str) -> str:
    looked = 0
    # The latest answer is the likeliest source: an agent looks something up, then uses it.
    for call in reversed(context.calls[: working.number]):
        if call.container is None:
            if call.output and call.head != working.head and _stands_in(value, call.text[:4_000]):
                return f"answer {call.head}"
            continue
        for path, leaf in transcript.leaves(call.container):
            looked += 1
            if leaf == value or (not isinstance(leaf, str) and str(leaf) == value):
                return f"answer {call.head} {path[-VALUE_CHARS_MAX:]}"
            if looked > SOURCE_LEAVES_MAX:
                return ""
    return ""
