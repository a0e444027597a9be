"""The workspaces of an erasure: their lines stop naming what it names, and nobody may read it any more.

    a note for each root that no other head names → CAS the line's head → (the term) → a sweep takes the packs

Another line's writer may be building on those packs (a template, a seed of elsewhere), so they stay for the term like
all that was superseded (invariant 7), and the note is what readers find. A run's later versions may hold files that
the run made: which, nobody can tell. They stay, and the receipt says how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from runlore import clock, errors
from runlore.commit import erasures, heads, keys, lines, puts
from runlore.events import envelope
from runlore.snapshots import names
from runlore.store import port

NOTE_FORMAT = "runlore.erased-snapshot/1"
NO_BASE = {"version": 0, "snapshot": None}


@dataclass
class Gone:
    """What became of the lines of one rollout."""

    refs: int = 0
    """References that a head named, and that nobody may read any more."""
    later: int = 0
    """Versions that stay and came after one that went."""


async def erase(store: port.ObjectStore, project: str, name: str, target: erasures.Target) -> Gone:
    """Take the target's snapshots out of every line of its rollout. Interrupted, or done, it may be done again."""
    gone = Gone()
    for head in await lines.of_rollout(store, project, target.rollout):
        for restart in range(erasures.RESTARTS_MAX):
            changes, later = _changes(head.body, name, target, head.counter + 1)
            if changes is None or not head.counter:
                break
            refs = lines.named(head.body) - lines.named({**head.body, **changes(clock.now_iso())})
            # Before the move: nothing else remembers which they were.
            gone.refs += await _hide(store, project, name, refs, head.key)
            try:
                await lines.move(store, lines.line_from(head), head, changes)
                gone.later += later
                break
            except errors.HeadMoved:
                await clock.sleep(0.005 * restart * clock.jitter())
                head = await heads.read(store, head.key, fmt=lines.HEAD_FORMAT)
    return gone


def _changes(
    body: lines.Body, name: str, target: erasures.Target, counter: int
) -> tuple[Callable[[str], dict[str, Any]] | None, int]:
    """What to change of a line's head (None: nothing), and how many later versions stay. Pure."""
    runs = target.runs
    if runs is None:
        blank = {"ref": None, "versions": [], "branches": {}, "tags": {}, "moved_by": {}, "base": NO_BASE}
        if erasures.is_whole(body) and not lines.named(body):
            return None, 0
        return lambda at: {**blank, "erased": erasures.marked(body, name, None, counter=counter, at=at)}, 0
    of_run = {ref for (run, _), (_, ref) in lines.runs_of(body).items() if run in runs}
    if not of_run and all(erasures.is_erased(body, run) for run in runs):
        return None, 0
    versions = [one for one in body.get("versions", ()) if one["ref"] not in of_run]
    branches = {
        branch: one
        for branch, one in body.get("branches", {}).items()
        if one["ref"] not in of_run and one.get("base_ref") not in of_run
    }
    tags = {tag: ref for tag, ref in body.get("tags", {}).items() if ref not in of_run}
    change: dict[str, Any] = {"branches": branches, "tags": tags, "versions": versions}
    if body.get("ref") in of_run:
        last = versions.pop() if versions else {"ref": None, "by": {}}
        change |= {"ref": last["ref"], "moved_by": last["by"], "version": counter, "base": NO_BASE}
    firsts = [int(one["version"]) for one in body.get("versions", ()) if one["ref"] in of_run]
    later = sum(int(one["version"]) > min(firsts) for one in versions) if firsts else 0
    later += bool(firsts and body.get("ref") and body["ref"] not in of_run)

    def changes(at: str) -> dict[str, Any]:
        dated = {"version_at": at} if "version" in change else {}
        return {**change, **dated, "erased": erasures.marked(body, name, runs, counter=counter, at=at)}

    return changes, later


async def _hide(store: port.ObjectStore, project: str, name: str, refs: Iterable[str], own: str) -> int:
    """Note, of each of these references that no head but `own` names, that it was erased; how many."""
    still: set[str] = set()
    for head in await lines.all_heads(store, project):
        still |= lines.named(head.body) if head.key != own else set()
    wanted = sorted(set(refs) - still)
    for ref in wanted:
        parsed = names.Ref.parse(ref)
        key = keys.erased_snapshot(project, parsed.id, parsed.root)
        body = {"format": NOTE_FORMAT, "erasure": name}
        await puts.once(store, key, envelope.dump(body), what=f"the note {key}")
    return len(wanted)
