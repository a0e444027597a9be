"""Why a line of memory is there: its notes, their evidence, and what the evidence says."""

from __future__ import annotations

import json
from typing import Any

from runlore.commit import keys, revisions
from runlore.consumers import summarize
from runlore.memory import joint, render
from runlore.memory import notes as _notes
from runlore.store import port

QUOTE_CHARS_MAX = 200
QUOTES_MAX = 20
"""Items whose text is looked up for one answer: each is a read of its run's record."""


async def of_line(
    store: port.ObjectStore,
    revision: revisions.Revision,
    file: render.Composed,
    line: int,
    *,
    subject: str | None = None,
) -> list[dict[str, Any]]:
    """The notes behind line `line` (from 1) of a composed file, each with its evidence, the narrowest first.

    What the evidence says is quoted only where its rollout has no subject, or is of `subject` (an alias).
    """
    spans = [(last - first, note) for first, last, note in file.why if first <= line <= last]
    notes = revision.map("notes")
    answers = []
    for name in dict.fromkeys(note for _, note in sorted(spans)):
        entry = notes.get(name)
        if entry is None:
            continue
        evidence = [
            {
                "rollout": rollout,
                "run": run,
                "attempt": attempt,
                "item": item,
                "subject": contribution.get("subject"),
            }
            for rollout, contribution in sorted(entry["support"].items())
            for run, attempt, item in contribution.get("evidence", [])
        ]
        edited = _edits(entry, notes.get(_notes.note_id("edit", {"note": name})), subject)
        answers.append(
            {"note": name, "kind": entry["kind"], "evidence": evidence}
            | ({"edits": edited} if edited else {})
            | ({"joint": _joint(entry)} if entry["kind"] == joint.KIND else {})
        )
    for one in [one for answer in answers for one in answer["evidence"]][:QUOTES_MAX]:
        if one["subject"] in (None, subject):
            one["text"] = await _quote(store, revision, one)
    return answers


def _joint(entry: dict[str, Any]) -> dict[str, Any]:
    """Who brought a joint statement together, and when; what it rests on, and what it stands in place of."""
    made = entry.get("made", {})
    told = {name: made.get(name) for name in ("model", "at", "answer")}
    return told | {"over": entry["key"]["over"], "covers": entry["key"]["covers"]}


def _edits(
    entry: dict[str, Any], against: dict[str, Any] | None, subject: str | None
) -> list[dict[str, Any]]:
    """The live edits that put a line here, and those that changed it or took it out: the run of each, and its base.

    What a subject's run changed is told to that subject alone.
    """
    said = [(one, rollout, "said") for rollout, one in entry["support"].items() if one.get("by")]
    if against is not None:
        said += [
            (one, rollout, "changed" if one["now"] else "taken out")
            for rollout, one in against["support"].items()
        ]
    return [
        {"what": what, "rollout": rollout, "run": one["by"], "revision": one["revision"], "at": one["at"]}
        | ({"was": one["was"]} if one.get("was") else {})
        for one, rollout, what in sorted(said, key=lambda told: (told[0]["at"], told[1], told[2]))
        if one.get("subject") in (None, subject)
    ]


async def _quote(
    store: port.ObjectStore, revision: revisions.Revision, evidence: dict[str, Any]
) -> str | None:
    """The item itself, as far as one line shows it; None where the record is not kept any more."""
    where = (revision.project, revision.memory, evidence["rollout"])
    key = keys.record(*where, evidence["run"], evidence["attempt"])
    for record in await summarize.load(store, [key]):
        payload = json.loads(record.line)
        if "edit" in payload and record.meta.get("is_edit"):
            changes = payload["edit"]["changes"]
            one = changes[evidence["item"]] if 0 <= evidence["item"] < len(changes) else {}
            return _short({"role": "edit", "content": one.get("now", one.get("was", ""))})
        items = [*payload.get("input", []), *payload.get("generated_items", [])]
        if 0 <= evidence["item"] < len(items):
            return _short(items[evidence["item"]])
    return None


def _short(item: Any) -> str:
    """An item's own words: its text, its call or its output."""
    if not isinstance(item, dict):
        return str(item)[:QUOTE_CHARS_MAX]
    body = item.get("output", item.get("arguments", item.get("content", item.get("action", ""))))
    text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
    name = item.get("name") or item.get("role") or item.get("type") or "item"
    words = " ".join(text.split())
    return f"{name}: {words[:QUOTE_CHARS_MAX]}{' …' if len(words) > QUOTE_CHARS_MAX else ''}"
