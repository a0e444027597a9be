"""Notes as the SDK's files. The tree is a pure function of the notes, of whom the seed is for, and of nothing else.

Two steps, because a seed shows only what its subject may see: `parts` cuts the notes into pieces that each
belong to everybody, to one subject, or to one rollout; `compose` puts together those that a seed may hold.
No clock is read: every time comes from a record, so the same runs give the same bytes.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runlore.memory import documents, handbook, joint, lines, redact, skills, values
from runlore.memory import notes as _notes
from runlore.memory import text as _text

BASE = "base"

Why = list[tuple[int, int, str]]


@dataclass(frozen=True)
class Part:
    """A piece of the tree, and who may see it. `why`: (first line, last line, note id), counted from 1."""

    text: str
    rollout: str | None = None
    subject: str | None = None
    why: Why = field(default_factory=list)

    @functools.cached_property
    def tokens(self) -> int:
        """How many model tokens it is, estimated from above."""
        return _text.token_estimate(self.text)

    @functools.cached_property
    def is_clean(self) -> bool:
        """Whether it holds nothing that redaction would take out."""
        return redact.text(self.text) == self.text


class Memo:
    """The parts of one memory's rollouts, by all that they were made of, from the last time that it was rendered.

    A revision changes a few rollouts of 256; with a memo only those are written and checked anew. It holds what the
    last rendering used, and changes nothing in what is rendered.
    """

    def __init__(self) -> None:
        self._last: dict[bytes, dict[str, Part]] = {}
        self._used: dict[bytes, dict[str, Part]] = {}

    def begin(self) -> None:
        """A rendering begins: what the one before it did not use is forgotten."""
        self._last, self._used = self._used or self._last, {}

    def get(self, key: bytes) -> dict[str, Part] | None:
        found = self._used.get(key) or self._last.get(key)
        if found is not None:
            self._used[key] = found
        return found

    def keep(self, key: bytes, made: dict[str, Part]) -> dict[str, Part]:
        self._used[key] = made
        return made


@dataclass(frozen=True)
class Composed:
    """A file of a seed."""

    text: str
    why: Why = field(default_factory=list)


def parts(notes: _notes.Notes, layout: values.Layout, memo: Memo | None = None) -> dict[str, Part]:
    """Every part, by name: `<owner>/<file>`, the owner being `base`, `subject.<alias>` or `rollout.<alias>`."""
    memo = memo or Memo()
    memo.begin()
    cards = {
        entry["key"]["rollout"]: card
        for _, entry in notes.of_kind("rollout")
        for card in entry["support"].values()
    }
    told = lines.lessons(notes)
    out: dict[str, Part] = {}
    by_subject: dict[str | None, dict[str, dict[str, Any]]] = {None: {}}
    for rollout, card in cards.items():
        by_subject.setdefault(card["subject"], {})[rollout] = card
    for _, entry in notes.of_kind("text"):
        # An edit may be here before its run.
        by_subject.setdefault(entry["key"]["subject"], {})
    for subject, own in by_subject.items():
        if subject != _notes.MIXED:
            out |= _shared_parts(notes, own, told, subject)
    by_rollout = _sentences(notes, told)
    for own in by_subject.values():
        common = documents.Common(own.values())
        for rollout, card in own.items():
            learnt = by_rollout.get(rollout, {})
            made_of = [rollout, card, layout.sessions_dir, learnt, documents.title(card, common)]
            key = hashlib.sha256(json.dumps(made_of).encode()).digest()
            out |= memo.get(key) or memo.keep(key, _rollout_parts(rollout, card, layout, learnt, common))
    return dict(sorted(out.items()))


def _shared_parts(
    notes: _notes.Notes, cards: dict[str, dict[str, Any]], told: list[lines.Lesson], subject: str | None
) -> dict[str, Part]:
    owner = BASE if subject is None else f"subject.{subject}"
    name = next((card["memory"] for card in cards.values()), told[0].memory if told else "memory")
    pages = {
        "MEMORY.md": handbook.memory(notes, cards, told, subject),
        "preferences.md": handbook.preferences(notes, subject),
        "index.md": handbook.index(cards, told, name if subject is None else f"{name}, this user"),
    }
    if subject is None:
        tips = [*skills.tips(notes), *handbook.tips(notes, told)]
        pages["tips.md"] = handbook.within(tips, handbook.TIPS_TOKENS_MAX)
    pages |= skills.pages(notes, subject)
    return {f"{owner}/{file}": _part(page, subject=subject) for file, page in pages.items() if page}


def _rollout_parts(
    rollout: str,
    card: dict[str, Any],
    layout: values.Layout,
    learnt: dict[str, str],
    common: documents.Common,
) -> dict[str, Part]:
    note = _notes.note_id("rollout", {"rollout": rollout})
    row = documents.selection_row(card, layout.sessions_dir)
    pages = {
        "raw_memory.md": documents.raw_memory(card, note, row, learnt, common),
        "rollout_summary.md": documents.rollout_summary(card, note, row, learnt, common),
        "resume.md": documents.resume(card, note),
        "selection.json": [(json.dumps(row), note)],
    }
    owned = {"rollout": rollout, "subject": card["subject"]}
    return {f"rollout.{rollout}/{file}": _part(page, **owned) for file, page in pages.items()}


def _sentences(notes: _notes.Notes, told: list[lines.Lesson]) -> dict[str, dict[str, str]]:
    """Rollout -> failure note id -> the lesson as this rollout alone shows it."""
    out: dict[str, dict[str, str]] = {}
    known = {one.note for one in told}
    for identity, entry in notes.of_kind("failure"):
        if identity in known:
            for rollout, one in entry["support"].items():
                out.setdefault(rollout, {})[identity] = lines.own_sentence(entry["key"]["head"], one)
    return out


def _part(page: list[documents.Line], rollout: str | None = None, subject: str | None = None) -> Part:
    why: Why = []
    for number, (_, note) in enumerate(page, 1):
        if not note:
            continue
        if why and why[-1][2] == note and why[-1][1] == number - 1:
            why[-1] = (why[-1][0], number, note)
        else:
            why.append((number, number, note))
    return Part("\n".join(line for line, _ in page) + "\n", rollout, subject, why)


def is_visible(
    rollout: str | None,
    subject: str | None,
    *,
    for_subject: str | None = None,
    for_rollout: str | None = None,
) -> bool:
    """Whether a part of this rollout and subject may stand in a seed for that subject, continuing that rollout."""
    if subject is None or (for_subject is not None and subject == for_subject):
        return True
    return rollout is not None and rollout == for_rollout


# --- a seed's files ---------------------------------------------------------------------------------


def compose(
    parts: Mapping[str, Part],
    *,
    subject: str | None = None,
    rollout: str | None = None,
    layout: values.Layout,
) -> dict[str, Composed]:
    """The files of a seed for `subject`, continuing `rollout`: path inside `memories_dir` -> its content."""
    seen = {
        name: part
        for name, part in parts.items()
        if is_visible(part.rollout, part.subject, for_subject=subject, for_rollout=rollout)
    }
    out = {
        "MEMORY.md": _stacked(_owned(seen, "MEMORY.md", subject)),
        "memory_summary.md": _summary(seen, subject, rollout),
    }
    for owner in [BASE, *([f"subject.{subject}"] if subject else [])]:
        # A subject's own skill goes before everybody's of that name.
        named = {name: part for name, part in seen.items() if name.startswith(f"{owner}/{joint.SKILLS}/")}
        out |= {name.partition("/")[2]: Composed(part.text, part.why) for name, part in named.items()}
    rows = _rows(seen)
    raw = []
    for row in rows:
        name = f"rollout.{row['rollout_id']}"
        memory, told = seen[f"{name}/raw_memory.md"], seen[f"{name}/rollout_summary.md"]
        out[f"raw_memories/{row['rollout_id']}.md"] = Composed(memory.text, memory.why)
        out[row["rollout_summary_file"]] = Composed(told.text, told.why)
        raw.append(memory)
    if rows:
        out["raw_memories.md"] = _joined(raw)
        out["phase_two_selection.json"] = Composed(_selection(rows))
    return dict(sorted(out.items()))


def _owned(seen: Mapping[str, Part], file: str, subject: str | None) -> list[Part]:
    names = [f"{BASE}/{file}", *([f"subject.{subject}/{file}"] if subject else [])]
    return [seen[name] for name in names if name in seen]


def _rows(seen: Mapping[str, Part]) -> list[dict[str, str]]:
    rows = [json.loads(part.text) for name, part in seen.items() if name.endswith("/selection.json")]
    return sorted(rows, key=lambda row: (values.time_key(row["updated_at"]), row["rollout_id"]), reverse=True)


def _selection(rows: list[dict[str, str]]) -> str:
    payload = {"version": 1, "updated_at": rows[0]["updated_at"], "selected": rows}
    return json.dumps(payload, indent=2) + "\n"


def _stacked(pages: list[Part]) -> Composed:
    """Pages one below the other, a blank line between."""
    return _compose_lines(
        [(page.text.rstrip("\n").split("\n"), page.why) for page in pages if page.text.strip()]
    )


def _joined(raw: list[Part]) -> Composed:
    """As `SandboxMemoryStorage.rebuild_raw_memories` joins them: a blank line between, no newline at the end."""
    whole = _stacked(raw)
    return Composed(whole.text.removesuffix("\n"), whole.why)


def _summary(seen: Mapping[str, Part], subject: str | None, rollout: str | None) -> Composed:
    sections: list[tuple[list[str], Why]] = []
    resume = seen.get(f"rollout.{rollout}/resume.md") if rollout else None
    for heading, pages in (
        ("## User preferences", _owned(seen, "preferences.md", subject)),
        ("## General Tips", _owned(seen, "tips.md", subject)),
        ("## What's in Memory", [*([_headed(resume)] if resume else []), *_owned(seen, "index.md", subject)]),
    ):
        body = _stacked(pages) if heading.endswith("Memory") else _run_on(pages)
        if body.text:
            sections.append(([heading, "", *body.text.rstrip("\n").split("\n")], _moved(body.why, 2)))
    return _compose_lines(sections)


def _headed(resume: Part) -> Part:
    return Part(
        "### This rollout so far\n\n" + resume.text, resume.rollout, resume.subject, _moved(resume.why, 2)
    )


def _run_on(pages: list[Part]) -> Composed:
    """Bullets of several pages as one list."""
    told: list[str] = []
    why: Why = []
    for page in pages:
        why += _moved(page.why, len(told))
        told += page.text.rstrip("\n").split("\n")
    return Composed("\n".join(told) + "\n" if told else "", why)


def _compose_lines(blocks: list[tuple[list[str], Why]]) -> Composed:
    told: list[str] = []
    why: Why = []
    for body, reasons in blocks:
        if told:
            told.append("")
        why += _moved(reasons, len(told))
        told += body
    return Composed("\n".join(told) + "\n" if told else "", why)


def _moved(why: Why, by: int) -> Why:
    return [(first + by, last + by, note) for first, last, note in why]
