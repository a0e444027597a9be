"""Joint statements: what a model made of the statements of several rollouts, and what they stand for.

A joint statement is a note of kind `joint`. Its key holds its words, the notes that it rests on (`over`) and those that
it stands in place of (`covers`); the key never changes, another wording is another note. Its support is computed, by
code alone, from the notes that it rests on (`settle`): a rollout supports it exactly as long as it supports one of
them. So dropping a rollout, a replaced attempt, a summary that says something else now: each takes its support away,
and a joint statement that nothing supports is gone. No model is asked for it.

Which joint statements there are depends on what a model was asked, and when; given those, all that is here is a
function of the notes, whatever the order in which rollouts came:

- What a joint statement covers is not shown while that stands (`standing`). The covered notes are kept, so they are
  shown again, word for word, once it goes.
- A person wins. Where a live edit took a covered note out, changed it, or stands against it, the joint statement gives
  way; where one took the joint statement itself out, what it covers does not come back.
- One without words (a *retirement*) only says that newer evidence stands against what it covers, and covers it while
  that evidence is the newer.

A note of kind `shown` says which of a rollout's statements a model was shown for this, so that none is paid for twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from runlore.memory import edits, values
from runlore.memory import notes as _notes

KIND, SHOWN = "joint", "shown"
COMPUTED = (KIND, SHOWN)
"""Kinds whose support is computed here: what a rollout says now withdraws nothing of it."""
SKILLS = "skills"
"""The section of joint statements that are procedures (`skills.py`); their key has a name and steps, too."""
SOURCES = ("text", "correction", "fact", "failure")
"""Kinds that a joint statement may rest on."""
OVER_MAX = 256
"""Notes that one joint statement rests on."""
EVIDENCE_MAX = 16
"""Places in one rollout that a joint statement cites: the newest."""

Notes = _notes.Notes
Entry = Mapping[str, Any]


def key_of(
    *,
    section: str,
    subject: str | None,
    text: str,
    over: Iterable[str],
    covers: Iterable[str],
    name: str = "",
    steps: Iterable[str] = (),
) -> dict[str, Any]:
    """The key of the joint statement in these words."""
    said: dict[str, Any] = {"section": section, "subject": subject, "text": text}
    said |= {"name": name, "steps": list(steps)} if name else {}
    return said | {"over": sorted(set(over)), "covers": sorted(set(covers))}


def over_of(identity: str, entry: Entry) -> list[str]:
    """What a note rests on: itself, or of a joint statement what that rests on."""
    return list(entry["key"]["over"]) if entry["kind"] == KIND else [identity]


# --- support, computed --------------------------------------------------------------------------------------------


def settle(notes: Notes) -> Notes:
    """The notes with the support of every joint statement as it follows from the others; none without support."""
    changed: dict[str, dict[str, Any]] = {}
    for identity, entry in notes.of_kind(KIND):
        support = support_of(entry["key"], notes)
        if support != entry["support"]:
            changed[identity] = entry | {"support": support}
    said: dict[str, set[str]] = {}
    for identity, entry in notes.of_kind("text") if any(True for _ in notes.of_kind(SHOWN)) else ():
        for rollout in _models(entry):
            said.setdefault(rollout, set()).add(identity)
    for identity, entry in notes.of_kind(SHOWN):
        for rollout, one in entry["support"].items():
            kept = [note for note in one["told"] if note in said.get(rollout, ())]
            if kept != one["told"]:
                changed[identity] = entry | {"support": {rollout: one | {"told": kept}} if kept else {}}
    return notes.replace(changed)


def dropped(notes: Notes, rollouts: Collection[str]) -> Notes:
    """The notes without what these rollouts supported, and without every joint statement that rests on any of it.

    Other support does not save one: its words are a model's, who was shown what these rollouts said.
    """
    gone = set(rollouts)
    tainted = {
        identity: {**entry, "support": {}}
        for identity, entry in notes.of_kind(KIND)
        if gone & entry["support"].keys()
    }
    now = notes.replace(tainted)
    for rollout in sorted(gone):
        now = now.drop(rollout)
    return settle(now)


def support_of(key: Mapping[str, Any], notes: Notes) -> dict[str, dict[str, Any]]:
    """Rollout → its contribution to the joint statement with this key: of its own subject's rollouts alone."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for source in key["over"]:
        entry = notes.get(source)
        for rollout, one in entry["support"].items() if entry and entry["kind"] in SOURCES else ():
            if one.get("subject") == key["subject"] and _says(one):
                found.setdefault(rollout, []).append(one)
    return {rollout: _contribution(said, key["subject"]) for rollout, said in sorted(found.items())}


def _says(one: Mapping[str, Any]) -> bool:
    """Whether a contribution says the note, and is no evidence against it."""
    return one.get("action", "add") in ("add", "amend")


def _contribution(said: list[Mapping[str, Any]], subject: str | None) -> dict[str, Any]:
    newest = max(said, key=lambda one: values.time_key(one.get("at", "")))
    places = dict.fromkeys(tuple(place) for one in said for place in one.get("evidence", ()))
    out = {
        "at": newest.get("at", ""),
        "evidence": [list(place) for place in sorted(places)][-EVIDENCE_MAX:],
        "subject": subject,
    }
    named = next((one for one in said if one.get("memory")), None)
    return out | ({"memory": named["memory"], "agent": named.get("agent", "")} if named else {})


# --- what stands --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Standing:
    """The joint statements that stand, by note, and what each covered note is covered by."""

    joints: Mapping[str, dict[str, Any]]
    """Those with words."""
    covered: Mapping[str, str]


def standing(notes: Notes) -> Standing:
    """What the joint statements come to."""
    if "joint" not in notes.memo:
        notes.memo["joint"] = _standing(notes)
    found: Standing = notes.memo["joint"]
    return found


def _standing(notes: Notes) -> Standing:
    joints: dict[str, dict[str, Any]] = {}
    covered: dict[str, str] = {}
    all_joints = list(notes.of_kind(KIND))
    contested = people_changed(notes) if all_joints else frozenset()
    for identity, entry in all_joints:
        covers = entry["key"]["covers"]
        if contested.intersection(covers):
            continue
        if entry["key"]["text"]:
            joints[identity] = entry
            covered |= dict.fromkeys(covers, identity)
        else:
            since = newest(entry)
            covered |= {
                note: identity
                for note in covers
                if (known := notes.get(note)) is None or newest(known) < since
            }
    return Standing({name: one for name, one in joints.items() if name not in covered}, covered)


def people_changed(notes: Notes) -> frozenset[str]:
    """The notes that a live edit took out or changed, or that stand in a conflict."""
    found = edits.verdict(notes)
    return found.hidden | frozenset(found.marks)


def newest(entry: Entry) -> tuple[int, str]:
    """The time of the newest evidence that says a note."""
    times = (values.time_key(one.get("at", "")) for one in entry["support"].values() if _says(one))
    return max(times, default=(0, ""))


# --- what a model was shown ---------------------------------------------------------------------------------------


def _models(entry: Entry) -> list[str]:
    """The rollouts in whose summary a model says this; what a person wrote is not a model's."""
    return [name for name, one in entry["support"].items() if not one.get("by") and _says(one)]


def fresh(notes: Notes) -> set[str]:
    """The statements of models that some rollout makes of which no model was shown them for this."""
    known = told(notes)
    return {
        identity
        for identity, entry in notes.of_kind("text")
        if any(identity not in known.get(rollout, ()) for rollout in _models(entry))
    }


def told(notes: Notes) -> dict[str, frozenset[str]]:
    """Rollout → the statements of it that a model was shown."""
    return {
        rollout: frozenset(one["told"])
        for _, entry in notes.of_kind(SHOWN)
        for rollout, one in entry["support"].items()
    }


def with_told(notes: Notes, statements: Collection[str]) -> Notes:
    """The notes, saying that a model was shown these statements, of every rollout that makes them."""
    wanted: dict[str, set[str]] = {}
    subjects: dict[str, str | None] = {}
    for identity in statements:
        entry = notes.get(identity)
        for rollout in _models(entry) if entry else ():
            subjects[rollout] = entry["key"]["subject"] if entry else None
            wanted.setdefault(rollout, set()).add(identity)
    changed = {}
    for rollout, some in wanted.items():
        key = {"rollout": rollout}
        identity = _notes.note_id(SHOWN, key)
        known = notes.get(identity)
        before = known["support"][rollout]["told"] if known else []
        every = sorted({*before, *some})
        if every != before:
            said = {"told": every, "evidence": [], "subject": subjects[rollout]}
            changed[identity] = {"kind": SHOWN, "key": key, "support": {rollout: said}}
    return notes.replace(changed)


def keep_told(notes: Notes, newer: Notes) -> Notes:
    """`notes` with what `newer` says was shown: who goes back to `notes` does not want the same answer again."""
    return settle(notes.replace({name: entry for name, entry in newer.of_kind(SHOWN)}))
