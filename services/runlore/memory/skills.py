"""Skills: a procedure that worked in at least two rollouts, as the SDK's `skills/<name>/SKILL.md`.

A skill is a joint statement (`joint.py`) of the section `skills`: a model proposes it, code lets it through only where
two rollouts that ended in success bear what it says, and its support is computed as that of any other: with fewer than
two rollouts behind it, it is not shown. Another skill of the same name takes its place and its support.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pydantic

from runlore.memory import documents, joint, operations, text
from runlore.memory import notes as _notes

SECTION = joint.SKILLS
ROLLOUTS_MIN = 2
"""Rollouts that ended in success, behind every skill."""
STEPS_MAX = 16
SKILLS_MAX = 24
"""Of one owner: those that most rollouts bear are shown."""
TOLD_MAX = 4
"""Of everybody's, those that `memory_summary.md` tells of."""
DESCRIPTION_CHARS_MAX = 240
FILE = "SKILL.md"
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{1,46}[a-z0-9])")


class Skill(pydantic.BaseModel):
    """A procedure that a model proposes."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str
    steps: list[str]
    evidence: list[int]


def of(notes: _notes.Notes) -> list[tuple[str, Mapping[str, Any]]]:
    """(note, its JSON) of every skill that stands, those of most rollouts first."""
    found = [
        (identity, entry)
        for identity, entry in joint.standing(notes).joints.items()
        if entry["key"]["section"] == SECTION and len(entry["support"]) >= ROLLOUTS_MIN
    ]
    return sorted(found, key=lambda one: (-len(one[1]["support"]), one[0]))


def pages(notes: _notes.Notes, subject: str | None) -> dict[str, list[documents.Line]]:
    """`skills/<name>/SKILL.md` → its lines, of one owner's skills."""
    own = [one for one in of(notes) if one[1]["key"]["subject"] == subject][:SKILLS_MAX]
    return {f"skills/{entry['key']['name']}/{FILE}": _page(identity, entry) for identity, entry in own}


def tips(notes: _notes.Notes) -> list[documents.Line]:
    """Bullets for `memory_summary.md`, so that everybody's skills are found."""
    own = [one for one in of(notes) if one[1]["key"]["subject"] is None][:TOLD_MAX]
    return [(f"- {_said(entry)}: see `skills/{entry['key']['name']}/{FILE}`", note) for note, entry in own]


def _said(entry: Mapping[str, Any]) -> str:
    return text.statement(entry["key"]["text"], DESCRIPTION_CHARS_MAX).rstrip(".")


def _page(identity: str, entry: Mapping[str, Any]) -> list[documents.Line]:
    key = entry["key"]
    said = text.statement(key["text"], DESCRIPTION_CHARS_MAX)
    head = ["---", f"name: {key['name']}", f"description: {json.dumps(said, ensure_ascii=False)}", "---", ""]
    steps = [
        f"{number}. {text.statement(step, operations.TEXT_CHARS_MAX)}"
        for number, step in enumerate(key["steps"], 1)
    ]
    count = len(entry["support"])
    borne = f"This worked in {count} conversations, the last on {joint.newest(entry)[1][:10] or 'an unknown day'}."
    return [(line, identity) for line in [*head, f"# {key['name']}", "", borne, "", *steps]]


def whole(name: str, description: str, steps: Iterable[str]) -> str:
    """A skill as one text."""
    return " ".join([f"{name}:", description, *steps])


def reason_against(name: str, description: str, steps: list[str]) -> str | None:
    """Why the form of a skill is not taken; None where it is."""
    if not _NAME.fullmatch(name):
        return "its name is not of small letters, digits and single dashes"
    if not 2 <= len(steps) <= STEPS_MAX:
        return f"a skill has 2 to {STEPS_MAX} steps"
    if len(description) > DESCRIPTION_CHARS_MAX:
        return f"its description is longer than {DESCRIPTION_CHARS_MAX} characters"
    reasons = (operations.reason_against_text(said) for said in (description, *steps))
    return next((reason for reason in reasons if reason), None)


def successes(notes: _notes.Notes, rollouts: Iterable[str]) -> set[str]:
    """Those of some rollouts that ended in success: by a check that passed, or by what a model cited for it."""
    found = set()
    for rollout in rollouts:
        card = notes.card(rollout)
        if card is not None and "success" in (
            documents.outcome(card)[0],
            card.get("model", {}).get("outcome"),
        ):
            found.add(rollout)
    return found
