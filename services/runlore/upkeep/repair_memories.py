"""Which revision a memory's lost head named, from its manifests: the newest that is whole, and whose whole line is.

Each manifest says which it follows. One that nothing follows is a tip: the newest revision, or one whose writer lost a
race or died before it moved the head. Of the highest number there is mostly one. A tip of a writer that died is as
good as any: the marks of what it took in still stand, as they are deleted after the head moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from runlore import errors
from runlore.commit import erasures, heads, keys, revisions
from runlore.consumers import consolidate


@dataclass(frozen=True)
class Tip:
    """A revision that nothing follows, whole back to the first."""

    revision: revisions.Revision
    line: tuple[dict[str, Any], ...] = field(repr=False)
    """The manifests of its line, newest first."""

    @property
    def number(self) -> int:
        return self.revision.number

    @property
    def name(self) -> str:
        return f"{self.number}-{self.revision.sha256}"


@dataclass(frozen=True)
class Told:
    """The tip to take, or why none can be."""

    chosen: Tip | None = None
    why: str = ""
    hint: str = ""


async def tips(reader: revisions.Reader, project: str, memory: str) -> list[Tip]:
    """The tips with the highest number that is whole; side lines' and erased revisions are none."""
    named: dict[int, list[str]] = {}
    async for row in reader.store.list(keys.manifests(project, memory)):
        number, _, sha256 = row.key.rpartition("/")[2].partition("-")
        named.setdefault(int(number), []).append(sha256)
    for number in sorted(named, reverse=True):
        found = []
        for sha256 in named[number]:
            try:
                if (tip := await _tip(reader, project, memory, number, sha256)) is not None:
                    found.append(tip)
            except errors.RunloreError as exc:
                if isinstance(exc, errors.Retryable | errors.Blocked):
                    raise
                continue  # Something of it is gone or altered.
        if found:
            return found
    return []


async def _tip(reader: revisions.Reader, project: str, memory: str, number: int, sha256: str) -> Tip | None:
    body = await reader.manifest(project, memory, number, sha256)
    if body.get("side") or body.get("erased"):
        return None
    revision = await reader.load(project, memory, number, sha256)
    for name in revisions.MAPS:
        dict(revision.map(name).items())
    for _, entry in revision.map("files").items():
        revision.text(entry["sha256"])
    line = [one async for one in reader.line_from(project, memory, (number, sha256))]
    return Tip(revision, tuple(line)) if int(line[-1]["revision"]) == 1 else None


async def choose(
    reader: revisions.Reader, found: Sequence[Tip], entries: Sequence[heads.Head], take: Sequence[str]
) -> Told:
    """The one to take. `entries`: the project's erasures; `take`: what a person named."""
    clean = [tip for tip in found if not _shows(tip, entries)]
    if not clean:
        return Told(
            why=f"revision {found[0].number} holds what was erased since",
            hint="put the head's version before back; or `runlore forget --again RECEIPT`, then a backup",
        )
    if len(clean) > 1:
        clean = [tip for tip in clean if any(tip.name.startswith(one) for one in take if one)]
    if len(clean) == 1:
        return Told(clean[0])
    told = "; ".join(
        f"{tip.name[: len(str(tip.number)) + 13]} of {tip.revision.body['created_at'][:19]},"
        f" {len(tip.revision.body['covers'])} rollouts new in it"
        for tip in found
    )
    return Told(
        why=f"{len(found)} writers met at revision {found[0].number}, and nobody can tell whose the head named: {told}",
        hint="choose one with --take; what only the other took in is taken in again by a mark",
    )


def _shows(tip: Tip, entries: Sequence[heads.Head]) -> bool:
    """Whether a line took in what was erased, and was not made without it since."""
    made = {body.get("erasure") for body in tip.line}
    for entry in entries:
        targets = {one.rollout: one for one in map(erasures.target_of, entry.body["targets"])}
        targets = {name: one for name, one in targets.items() if one.memory == tip.revision.memory}
        for body in tip.line:
            if entry.body["id"] in made:
                break
            for row in body["covers"]:
                target = targets.get(row["rollout"])
                taken = {run for run, _ in [*row["runs"], *row.get("edits", ())]}
                if target is not None and (target.runs is None or taken & set(target.runs)):
                    return True
    return False


async def body(reader: revisions.Reader, tip: Tip, *, at: int) -> dict[str, Any]:
    """The fields of the head that names a tip. `at`: the counter that the head will have."""
    revision = tip.revision
    return {
        "project": revision.project,
        "memory": revision.memory,
        "layout": revision.body["layout"],
        "revision": revision.number,
        "manifest": revision.sha256,
        "held": await _held(reader, tip, at),
    }


async def _held(reader: revisions.Reader, tip: Tip, at: int) -> dict[str, Any]:
    """What reverts took out, and nothing took in since. What the guards held was not covered, and meets them anew."""
    held: dict[str, Any] = {}
    since: set[str] = set()
    for position, one in enumerate(tip.line):
        if one.get("reason") == "revert" and position + 1 < len(tip.line):
            try:
                old = await _load(reader, tip, int(one["reverted_to"]))
                before = await _load(reader, tip, int(one["revision"]) - 1)
            except errors.Erased:
                continue  # What it took out has left its records, too.
            why = {"kind": "revert", "reason": one["note"], "at": one["created_at"], "hold": at}
            for rollout, counter in consolidate.changed_since(old, before).items():
                if rollout not in since:
                    held.setdefault(rollout, {"counter": counter, **why})
        since |= {row["rollout"] for row in one["covers"]}
    return held


async def _load(reader: revisions.Reader, tip: Tip, number: int) -> revisions.Revision:
    (one,) = [body for body in tip.line if int(body["revision"]) == number]
    return await reader.load(tip.revision.project, tip.revision.memory, number, str(one["sha256"]))
