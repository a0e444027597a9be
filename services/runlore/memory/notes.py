"""Notes: what a memory knows, each with the rollouts that support it and how.

A note is `{"kind", "key", "support": {rollout: contribution}}`; its id is a hash of kind and key. A
contribution is a function of its rollout's summary alone, and what a note says is computed from all of its
contributions when it is rendered. So adding and dropping rollouts commute: the same rollouts give the same
notes, byte for byte, in whatever order and batches they came, and dropping one needs no model. (Which `joint`
notes there are depends on what a model was asked, and when; what supports them does not: `joint.py`.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

KINDS = ("rollout", "failure", "fact", "correction", "tool", "text", "edit", "joint", "shown")
"""`rollout`: the card of one rollout. `text`: a statement of a model or of a live edit. `edit`: what live edits say
against the note that its key names (`edits.py`). `joint`: what a model made of the statements of several rollouts, and
`shown`: which of a rollout's it was shown for that (`joint.py`). The others are the rules' own."""
MIXED = "*"
"""The subject of a rollout whose runs were for different subjects: it matches no seed's subject."""
SHARE_SUBJECTS_MIN = 2
"""A value counts as common knowledge once this many subjects' rollouts show it."""
NOTE_BYTES_MAX = 512 * 1024


def note_id(kind: str, key: Mapping[str, Any]) -> str:
    """The id of the note about `key`: 20 hex digits, the same whoever proposes it."""
    canonical = json.dumps([kind, key], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:20]


class Notes:
    """The notes of one revision. A value: every change gives a new one and shares what it did not touch."""

    __slots__ = ("_entries", "memo")

    def __init__(self, entries: Mapping[str, dict[str, Any]] | None = None) -> None:
        self._entries = dict(sorted((entries or {}).items()))
        self.memo: dict[str, Any] = {}
        """What was computed of them once, by whoever did."""

    @classmethod
    def load(cls, entries: Mapping[str, dict[str, Any]]) -> Notes:
        """The notes that `entries()` gave. Entries are shared, not copied: nobody changes one in place."""
        return cls(entries)

    def entries(self) -> dict[str, dict[str, Any]]:
        """Note id -> its JSON, sorted by id."""
        return dict(self._entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Notes) and self._entries == other._entries

    def __hash__(self) -> int:
        return hash(tuple(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, identity: str) -> dict[str, Any] | None:
        return self._entries.get(identity)

    def of_kind(self, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(id, note) of every note of a kind, in the order of ids."""
        return ((identity, entry) for identity, entry in self._entries.items() if entry["kind"] == kind)

    def rollouts(self) -> set[str]:
        """The rollouts that support anything here."""
        return {rollout for entry in self._entries.values() for rollout in entry["support"]}

    def supported_by(self, rollout: str) -> dict[str, dict[str, Any]]:
        """The notes that a rollout supports."""
        return {identity: entry for identity, entry in self._entries.items() if rollout in entry["support"]}

    def card(self, rollout: str) -> dict[str, Any] | None:
        """What the memory holds about a rollout itself, or None."""
        entry = self._entries.get(note_id("rollout", {"rollout": rollout}))
        return entry["support"].get(rollout) if entry else None

    def drop(self, rollout: str) -> Notes:
        """The notes without what `rollout` supported."""
        changed = {
            identity: without(entry, rollout) for identity, entry in self.supported_by(rollout).items()
        }
        return self.replace(changed)

    def replace(self, changed: Mapping[str, dict[str, Any]]) -> Notes:
        """The notes with these entries put in; one that nothing supports is left out."""
        if not changed:
            return self
        merged = {**self._entries, **changed}
        return Notes({identity: entry for identity, entry in merged.items() if entry["support"]})


def supported(entry: dict[str, Any], rollout: str, contribution: dict[str, Any]) -> dict[str, Any]:
    """`entry` with `rollout`'s contribution put in."""
    return entry | {"support": dict(sorted({**entry["support"], rollout: contribution}.items()))}


def without(entry: dict[str, Any], rollout: str) -> dict[str, Any]:
    """`entry` without `rollout`'s contribution."""
    return entry | {"support": {name: one for name, one in entry["support"].items() if name != rollout}}


def owner(entry: dict[str, Any]) -> str | None:
    """Whose seeds may show a note: a subject's, or everybody's (None)."""
    if entry["kind"] in ("text", "correction", "joint"):
        subject: str | None = entry["key"]["subject"]
        return subject
    if entry["kind"] != "fact":
        return None
    subjects = {one.get("subject") for one in entry["support"].values()}
    known = subjects - {MIXED}
    if None in known or len(known) >= SHARE_SUBJECTS_MIN:
        return None
    return next(iter(known), MIXED)
