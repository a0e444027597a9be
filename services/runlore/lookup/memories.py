"""A memory's revisions as people and programs look at them: the line, the files of one, what differs between two."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from runlore import errors
from runlore.commit import heads, revisions
from runlore.events import ids, models
from runlore.lookup import seeds
from runlore.memory import render


def whom_of(subject: str | None) -> str | None:
    """The alias of a subject as given."""
    return ids.subject_alias(subject.strip()) if subject and subject.strip() else None


def log_row(body: Mapping[str, Any]) -> dict[str, Any]:
    """A revision as the log tells it: what it took in, from which engine, at what cost."""
    return {
        "revision": body["revision"],
        "created_at": body["created_at"],
        "reason": _reason(body),
        "engine": body["engine"]["name"],
        "rollouts": len(body["covers"]),
        "runs": sum(len(covers["runs"]) for covers in body["covers"]),
        "notes": body["totals"]["notes"],
        "files": body["totals"]["files"],
        "bytes": body["totals"]["bytes"],
        "tokens": body["tokens"],
        "cost_usd": body["cost_usd"],
        "parent": (body.get("parent") or {}).get("revision"),
        "manifest": body["sha256"],
    }


def _reason(body: Mapping[str, Any]) -> str:
    if body["reason"] == "revert":
        return f"revert to {body['reverted_to']}: {body['note']}"
    if body["reason"] == "model":
        done = ", ".join(f"{action} {count}" for action, count in body["operations"].items()) or "no change"
        refused = f", refused {len(body['refused'])}" if body["refused"] else ""
        return f"model: {body['shown']} new statements, {done}{refused}"
    if body["reason"] == "promote":
        return f"promote {body['promoted']['side']}@{body['promoted']['revision']}: {body['note']}"
    return str(body["reason"])


async def files_of(
    reader: revisions.Reader,
    project: str,
    memory: str,
    at: int | None,
    subject: str | None,
    rollout: str | None = None,
    *,
    side: str | None = None,
) -> tuple[int, dict[str, render.Composed]]:
    """(the revision's number, its files as a seed for `subject` would hold them, without the memory's folder).

    With `rollout` (an alias) also what only a seed that continues it may hold. `side`: of that side line.
    """
    revision = await reader.at(project, memory, at, side=side)
    return revision.number, compose(revision, whom_of(subject), rollout)


def compose(
    revision: revisions.Revision, whom: str | None, rollout: str | None = None
) -> dict[str, render.Composed]:
    """The files of a revision as a seed for `whom` (an alias), continuing `rollout`, would hold them. Blocking."""
    parts = seeds.visible_parts(revision, subject=whom, rollout=rollout)
    layout = models.Layout(**revision.body["layout"])
    return dict(render.compose(parts, subject=whom, rollout=rollout, layout=layout))


class Files:
    """The composed files of a revision, with what a search asks of them."""

    def __init__(self, files: dict[str, render.Composed]) -> None:
        self.files = files
        selection = files.get("phase_two_selection.json")
        listed = json.loads(selection.text)["selected"] if selection else []
        self._of_rollout = {row["rollout_id"]: row["rollout_summary_file"] for row in listed}

    def place(self, rollout: str, words: list[str]) -> tuple[str | None, int | None]:
        """The file that tells of a rollout and its line with the most of `words`; none where no notes of it are held.

        Such a rollout is searchable still.
        """
        path = self._of_rollout.get(rollout)
        if path is None or path not in self.files:
            return path, None
        return path, line_with(self.files[path].text, words)


def sizes(files: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """Files of a memory as they are listed: path, bytes and hash of (path, text)."""
    rows = []
    for path, content in files:
        raw = content.encode("utf-8")
        rows.append({"path": path, "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()})
    return rows


def file_of(
    files: Mapping[str, render.Composed], path: str, *, hint: str = "`runlore show` lists its files"
) -> tuple[str, render.Composed]:
    """The file that `path` means, with or without the memory's folder before it. Raises `errors.NotFound`."""
    for name in (path, path.partition("/")[2]):
        if name in files:
            return name, files[name]
    raise errors.NotFound(f"the revision has no file {path!r}", hint=hint)


def changes(
    before: Mapping[str, render.Composed], after: Mapping[str, render.Composed]
) -> list[dict[str, Any]]:
    """What differs between the files of two revisions, each as a unified diff."""
    found = []
    for path in sorted({*before, *after}):
        old, new = (files[path].text if path in files else "" for files in (before, after))
        if old == new and (path in before) == (path in after):
            continue
        lines = list(
            difflib.unified_diff(
                old.splitlines(keepends=True), new.splitlines(keepends=True), f"a/{path}", f"b/{path}", n=2
            )
        )
        body = [line for line in lines if not line.startswith(("+++", "---"))]
        found.append(
            {
                "path": path,
                "change": "added" if path not in before else "removed" if path not in after else "changed",
                "added": sum(line.startswith("+") for line in body),
                "removed": sum(line.startswith("-") for line in body),
                "diff": "".join(line if line.endswith("\n") else line + "\n" for line in lines),
            }
        )
    return found


def let_in(rows: Iterable[Mapping[str, Any]], head: heads.Head) -> list[dict[str, Any]]:
    """The rows of rollouts that are not held for review: what the guards keep out of notes is not found either."""
    held = head.body.get("held", {})
    return [dict(row) for row in rows if row["rollout"] not in held]


def words_of(query: str) -> list[str]:
    """The words that a search looks for, as they stand in a text."""
    return [word.casefold() for word in query.split()]


def line_with(text: str, words: list[str]) -> int:
    """The line (from 1) that has the most of `words`; the first such."""
    best, at = 0, 1
    for number, line in enumerate(text.splitlines(), 1):
        folded = line.casefold()
        count = sum(word in folded for word in words)
        if count > best:
            best, at = count, number
    return at
