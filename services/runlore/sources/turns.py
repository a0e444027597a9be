"""A coding agent's session file becomes runs, one a turn: the part that `codex` and `claude-code` share.

Such a file is one conversation, and it grows. **A run is one turn**: what a person asked, and all that the agent
did about it. A turn is known from the lines up to its end alone, so a grown file gives the same runs again, and
then more. The last turn may have been imported before it was over: its attempt is the number of lines that it is
made of, so the longer one replaces it, and the same one is recognised.

A turn in which the agent did nothing is no run (yet). Thoughts, and texts that a program put into the person's
mouth, are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from runlore import errors
from runlore.events import envelope, ids, models
from runlore.sources import Problem, chat, files, items, payloads

ITEM_BYTES = 64
"""What an item costs in a record besides its texts, in bytes: its keys and quotes."""
_WRAPPED = re.compile(r"<([a-z]{1,30}(?:[-_][a-z]{1,30}){1,6}|skill|INSTRUCTIONS)\b[^>]*>.*</\1>", re.DOTALL)


@dataclass(frozen=True)
class Line:
    """One line of a session file, as the object that it is."""

    number: int
    data: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """The fields of one run's event, and the line with which its turn begins."""

    line: int
    data: dict[str, Any]


class Reader(Protocol):
    """Reads one session file, line after line, and gives each run once its turn is over."""

    known: int
    """Lines that were of this format."""

    def read(self, line: Line) -> Iterator[Run | Problem]: ...

    def end(self) -> Iterator[Run | Problem]: ...


def runs(reader: Reader, path: Path) -> Iterator[Run | Problem]:
    """The runs of the file that `reader` reads, and what is wrong in it."""
    count, broken = 0, False
    for raw in files.lines(path):
        one = raw if isinstance(raw, Problem) else _object(path, raw)
        if isinstance(one, Problem):
            broken = True
            yield one
        else:
            count += 1
            try:
                yield from reader.read(one)
            except RecursionError:
                broken = True
                yield Problem(str(path), one.number, errors.BadJson.kind, "it is nested too deeply")
    yield from reader.end()
    if count and not reader.known:
        yield _invalid(path, 0, f"none of its {count} lines is one of such a session file")
    elif not count and not broken:
        yield Problem(str(path), 0, files.EMPTY, "the file is empty")


def _object(path: Path, raw: files.Raw) -> Line | Problem:
    try:
        found = envelope.load(raw.text, "the line")
    except errors.BadJson as exc:
        return Problem(str(path), raw.line, exc.kind, exc.message)
    return (
        Line(raw.line, found) if isinstance(found, dict) else _invalid(path, raw.line, "it is not an object")
    )


def _invalid(path: Path, line: int, message: str) -> Problem:
    return Problem(str(path), line, errors.InvalidRecord.kind, message)


class Turn:
    """One turn in the making."""

    def __init__(self, run_id: str, conversation: str, *, path: Path, line: int) -> None:
        self.run_id = run_id
        self.conversation = conversation
        self.acted = False
        """Whether the agent said or did anything."""
        self.parent: str | None = None
        self.agents: list[str] = []
        self._path = path
        self._line = line
        self._lines: set[int] = set()
        self._bytes = 0
        self._time: str | None = None
        self._terminal: dict[str, Any] | None = None
        self._transcript = items.Transcript(run_id)

    def seen(self, line: Line, when: Any) -> None:
        """Count a line that says something, with its time."""
        self._lines.add(line.number)
        self._time = chat.moment(when) or self._time

    def user(self, text: str) -> None:
        held = self._transcript.items
        if held and held[-1] == {"content": text, "role": "user"}:
            return  # Sent again, or written down twice.
        if text.strip() and self._has_room(text):
            self._transcript.user(text)

    def unsay(self, start: str) -> None:
        """Take the person's last words back, if they begin so: they were for the program, not for the agent."""
        held = self._transcript.items
        if held and held[-1].get("role") == "user" and held[-1]["content"].startswith(start):
            held.pop()

    def assistant(self, text: str) -> None:
        if not text.strip():
            return
        self._act()
        if self._has_room(text):
            self._transcript.assistant(text)

    def call(self, name: str, arguments: str, call_id: str | None) -> None:
        self._act()
        if self._has_room(name, arguments):
            self._transcript.call(name, arguments, call_id)

    def custom_call(self, name: str, input: str, call_id: str | None) -> None:
        self._act()
        if self._has_room(name, input):
            self._transcript.custom_call(name, input, call_id)

    def output(
        self, text: str, call_id: str | None, *, failed: bool = False, exit_code: int | None = None
    ) -> None:
        self._act()
        if self._has_room(text):
            self._transcript.output(text, call_id, failed=failed, exit_code=exit_code)

    def stopped(self) -> None:
        """The person stopped the agent."""
        self._terminal = payloads.terminal(payloads.CANCELLED)

    def failed(self, error_type: str, error: str) -> None:
        """The program gave up."""
        self.acted = True
        self._terminal = payloads.terminal(payloads.FAILED, error_type=error_type, error=error)

    def _act(self) -> None:
        self.acted = True
        self._terminal = None  # It went on after what looked like the end.

    def _has_room(self, *texts: str) -> bool:
        """Whether there is room for this; past the largest record nothing more is held, whatever comes."""
        self._bytes += ITEM_BYTES + sum(len(text) for text in texts)
        if self._bytes > models.RECORD_BYTES_MAX:
            self._transcript.items.clear()
            return False
        return True

    def finish(self) -> Iterator[Run | Problem]:
        """The run, if there is one by now."""
        if not self.acted:
            return
        if self._bytes > models.RECORD_BYTES_MAX:
            too_large = errors.RecordTooLarge()
            yield Problem(str(self._path), self._line, too_large.kind, too_large.message)
            return
        if not self._transcript.items:
            return
        payload = chat.payload_of(
            self._transcript,
            updated_at=self._time or payloads.UNKNOWN_TIME,
            rollout_id=ids.alias(self.conversation),
            terminal=self._terminal,
        )
        data: dict[str, Any] = {
            "conversation_id": self.conversation,
            "run_id": self.run_id,
            "attempt": len(self._lines),
            "record": payloads.dump(payload).removesuffix("\n"),
        }
        if self.parent:
            data["parent_run_id"] = self.parent
        if self.agents:
            data["agents"] = self.agents
        yield Run(self._line, data)


def is_wrapped(text: str) -> bool:
    """Whether a program wrote this in the person's name: one tag around all, as `<environment_context>…`."""
    return _WRAPPED.fullmatch(text.strip()) is not None


def text_of(value: Any) -> str:
    """The value, if it is a text; else none."""
    return value if isinstance(value, str) else ""


def id_of(value: Any) -> str | None:
    """The value as an id; None where it is none."""
    return value.strip() if isinstance(value, str) and value.strip() else None


def part_of(value: Any, name: str) -> dict[str, Any]:
    """An object's member that is an object itself; an empty one where it is not."""
    inner = value.get(name) if isinstance(value, dict) else None
    return inner if isinstance(inner, dict) else {}
