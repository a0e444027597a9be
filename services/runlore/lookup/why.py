"""Why a line of memory is there: its notes, their evidence, and what the evidence says."""

from __future__ import annotations

import json
from typing import Any

from runlore.commit import keys, revisions
from runlore.consumers import summarize
from runlore.memory import render
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
        answers.append({"note": name, "kind": entry["kind"], "evidence": evidence})
    for one in [one for answer in answers for one in answer["evidence"]][:QUOTES_MAX]:
        if one["subject"] in (None, subject):
            one["text"] = await _quote(store, revision, one)
    return answers


async def _quote(
    store: port.ObjectStore, revision: revisions.Revision, evidence: dict[str, Any]
) -> str | None:
    """The item itself, as far as one line shows it; None where the record is not kept any more."""
    where = (revision.project, revision.memory, evidence["rollout"])
    key = keys.record(*where, evidence["run"], evidence["attempt"])
    for record in await summarize.load(store, [key]):
        payload = json.loads(record.line)
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
