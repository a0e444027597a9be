"""What may cross from one subject's rollouts into what everybody is shown: words, and whole values.

Invariant: a value (of an argument, a command, a message) is shown to a subject's seed only if it is that
subject's own, or if rollouts of two subjects, or one of nobody in particular, show it too. Other values are
replaced by a placeholder that says what kind of thing stood there.

Words are not enough: where every one of `2024`, `05` and `17` is known of others, the date of the three may still be
one person's. So a whole value must have been shown as a whole (`Personal`), and each of its words too (`Shared`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from runlore.memory import notes as _notes
from runlore.memory import summary

SHARE_SUBJECTS_MIN = _notes.SHARE_SUBJECTS_MIN
VALUE_CHARS_MIN = 6
"""A shorter value is likely to stand in a shared line for reasons of its own."""

PIECE = re.compile(r"[A-Za-z]+|[0-9]+|[^\W\d_A-Za-z]+", re.UNICODE)
_EMAIL = re.compile(r"\S+@\S+\.\S+")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}.*")
_NUMBER = re.compile(r"[-+]?[\d.,]+%?")


class Personal:
    """The whole values of fixes that one subject alone has shown, over all notes of a memory."""

    def __init__(self, all_notes: _notes.Notes) -> None:
        by: dict[str, set[str | None]] = defaultdict(set)
        for body, subject in _told(all_notes):
            # A rollout of several subjects counts for none: one of them may be known already.
            by[body] |= {subject} - {summary.MIXED}
        self._values: dict[str, list[str]] = defaultdict(list)
        """By their first word, so that a text is compared with few of them."""
        for value, subjects in by.items():
            if _is_value(value) and None not in subjects and len(subjects) < SHARE_SUBJECTS_MIN:
                self._values[_first(value)].append(value)
        for values in self._values.values():
            values.sort(key=lambda value: (-len(value), value))

    def hide(self, body: str) -> str:
        """`body` with a placeholder for every personal value that stands in it."""
        for first in dict.fromkeys(PIECE.findall(body)):
            for value in self._values.get(first, ()):
                if value in body:
                    body = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", placeholder(value), body)
        return body


def _told(all_notes: _notes.Notes) -> Iterator[tuple[str, str | None]]:
    """Every whole value that a rollout shows, with its subject."""
    for _, entry in all_notes.of_kind("failure"):
        for one in entry["support"].values():
            yield from ((value, one.get("subject")) for value in _fix_values(one))
    for _, entry in all_notes.of_kind("fact"):
        for one in entry["support"].values():
            yield entry["key"]["command"], one.get("subject")


def _fix_values(one: Mapping[str, Any]) -> Iterator[str]:
    """Every whole value in the fixes of a rollout's failure: of arguments before and after, commands, steps between."""
    for fix in one.get("fixes", ()):
        for change in fix.get("changes", ()):
            yield from (change[side] for side in ("was", "is") if side in change)
        yield from (fix[side] for side in ("was", "command") if side in fix)
        yield from fix.get("after", ())


def _is_value(body: str) -> bool:
    # A plain word is no more than its piece.
    return len(body) >= VALUE_CHARS_MIN and bool(re.search(r"[\d@ ]", body)) and bool(PIECE.search(body))


def _first(value: str) -> str:
    found = PIECE.search(value)
    assert found is not None, "a value has a word"
    return found.group()


class Shared:
    """Which words may be shown to everybody: those that enough different subjects' rollouts show."""

    def __init__(self, personal: Personal | None = None) -> None:
        """`personal`: the values that may not be shown even where each of their words may; None: all may be shown."""
        self._by: dict[str, set[str]] = defaultdict(set)
        self._personal = personal

    def saw(self, body: str, subject: str | None) -> None:
        """Note the words of `body`. A rollout of several subjects counts for none: one of them may be known already."""
        if subject == summary.MIXED:
            return
        for piece in PIECE.findall(body):
            self._by[piece].add(subject or "")

    def is_public(self, piece: str) -> bool:
        """Whether a word may be shown."""
        if self._personal is None:
            return True
        by = self._by.get(piece, ())
        return "" in by or len(by) >= SHARE_SUBJECTS_MIN

    def mask(self, body: str) -> str:
        """`body` with a placeholder for all that may not be shown; one placeholder if nothing is left."""
        if self._personal is None:
            return body
        # Words first: a value that lost one of them no longer stands there.
        masked = self._personal.hide(PIECE.sub(lambda match: self._piece(match.group()), body))
        if masked == body:
            return body
        rest = re.sub(r"<\w+>", "", masked)
        if not PIECE.search(rest):
            return placeholder(body)
        return re.sub(r"(<\w+>)(?:[\W_]?<\w+>)+", r"\1", masked)

    def _piece(self, piece: str) -> str:
        if self.is_public(piece):
            return piece
        return "<number>" if piece.isdigit() else "<text>"


def placeholder(value: str) -> str:
    """What kind of thing `value` is."""
    for pattern, name in ((_EMAIL, "<address>"), (_DATE, "<date>"), (_NUMBER, "<number>")):
        if pattern.fullmatch(value.strip()):
            return name
    return "<id>" if re.search(r"\d", value) else "<text>"
