"""A memory model of a few lines in place of `runlore.memory`: what the protocol needs of one, and no more.

The commit protocol asks memory for pure functions of sets of runs. The real ones cost milliseconds, and the
exhaustive tests call them tens of thousands of times; `test_real_memory.py` runs the same scenarios on them.
A run whose output holds POISON makes a revision that no guard lets through; one with a word that begins with ORDER, one
that only a person lets through, word by word.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace

from runlore.memory import guards

ENGINE = {"name": "toy", "version": 1}
POISON = "POISON"
ORDER = "ORDER"


def digest(line, meta):
    payload = json.loads(line)
    said = payload["edit"]["changes"][0]["now"] if meta.is_edit else payload["final_output"]
    return {"run": meta.run, "attempt": meta.attempt, "text": said, "subject": meta.subject}


def build(digests):
    latest = {}
    for one in digests:
        if one["run"] not in latest or one["attempt"] > latest[one["run"]][0]:
            latest[one["run"]] = [one["attempt"], one["text"]]
    subjects = {one["subject"] for one in digests}
    about = {"subject": subjects.pop()} if len(subjects) == 1 and None not in subjects else {}
    return {"engine": ENGINE, "runs": dict(sorted(latest.items())), **about}


def extend(summary, digests):
    known = [
        {"run": run, "attempt": at, "text": text, "subject": summary.get("subject")}
        for run, (at, text) in summary["runs"].items()
    ]
    return build([*known, *digests])


class Notes:
    def __init__(self, entries):
        self._entries = dict(sorted(entries.items()))

    @classmethod
    def load(cls, entries):
        return cls(entries)

    def entries(self):
        return self._entries

    def drop(self, name):
        return Notes({rollout: entry for rollout, entry in self._entries.items() if rollout != name})


@dataclass(frozen=True)
class Part:
    text: str
    rollout: str | None = None
    subject: str | None = None
    why: tuple = ()


def parts(notes, layout, memo=None):
    found = {name: Part(" ".join(entry["texts"]), name) for name, entry in notes.entries().items()}
    return {**found, "all": Part("\n".join(part.text for part in found.values()))}


def dropped(notes, rollouts):
    for name in rollouts:
        notes = notes.drop(name)
    return notes


def propose(notes, name, summary, told):
    return [(name, [text for _, text in summary["runs"].values()])]


def apply(notes, proposed, *, shown):
    return Notes({**notes.entries(), **{name: {"texts": texts} for name, texts in proposed}}), []


def check(before, after, parts):
    poisoned = [guards.Violation("poison", name, ()) for name, one in parts.items() if POISON in one.text]
    ordered = [
        guards.Violation("instruction", name, (one.rollout,), word)
        for name, one in parts.items()
        if one.rollout
        for word in one.text.split()
        if word.startswith(ORDER)
    ]
    return poisoned + ordered


class Detector:
    """Which secrets are known: version 2 knows one that version 1 does not."""

    version = 1


def redact(text, key=None):
    return (text.replace("SECRET", "[gone]"), {}) if Detector.version == 2 else (text, {})


def install(monkeypatch):
    """Put this model where the stages look for memory."""
    from runlore.consumers import consolidate, promote, record, summarize
    from runlore.testing import invariants
    from runlore.upkeep.erasing import memories

    rules = SimpleNamespace(ENGINE=ENGINE, digest=digest, build=build, extend=extend)
    monkeypatch.setattr(summarize, "rules", rules)
    monkeypatch.setattr(invariants, "rules", rules)
    monkeypatch.setattr(consolidate, "rules", rules)
    monkeypatch.setattr(consolidate, "notes", SimpleNamespace(Notes=Notes))
    # No model brings anything together here.
    joint = SimpleNamespace(settle=lambda notes: notes, keep_told=lambda notes, newer: notes)
    monkeypatch.setattr(consolidate, "joint", joint)
    monkeypatch.setattr(promote, "joint", joint)
    monkeypatch.setattr(invariants, "joint", joint)
    judges = SimpleNamespace(check=check, Violation=guards.Violation, SOFT=guards.SOFT)
    monkeypatch.setattr(invariants, "guards", judges)
    monkeypatch.setattr(consolidate, "operations", SimpleNamespace(propose=propose, apply=apply))
    monkeypatch.setattr(consolidate, "render", SimpleNamespace(parts=parts, Part=Part, Memo=object))
    monkeypatch.setattr(consolidate, "guards", SimpleNamespace(check=check, Violation=guards.Violation))
    monkeypatch.setattr(record, "redact", SimpleNamespace(line=redact, rules=lambda: str(Detector.version)))
    monkeypatch.setattr(memories, "joint", SimpleNamespace(dropped=dropped))
    monkeypatch.setattr(memories, "render", SimpleNamespace(parts=parts))
