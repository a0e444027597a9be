"""A workspace's line: the head that names a rollout's present snapshot, and how it moves.

    head → outcome → blobs → trees → CAS head → ring → offset

Each (rollout, agent) of a project is a line of its own. Invariant 5: the head moves only when the writer saw the
base that it replaces, and a base is (version, id): by ids alone, X → Y → X would let a replay of Y undo what
came after. A run that is refused becomes the branch of its own name, and stays until somebody merges or
deletes it; a run with a parent always does.

A redelivered run is recognised by what the head says of it (it made its version or one of the earlier ones it
keeps, or is a branch), else by its *outcome*: an object put, if absent, before the move that makes the head forget
the run. So head, then outcome, is the order of reading; the other way round a run that was moved past in between
would be seen nowhere. A head says whether it ever forgot one (`forgot`): until then nobody asks for outcomes.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from runlore import clock, errors
from runlore.commit import age, heads, keys, puts
from runlore.events import envelope, ids
from runlore.store import port

HEAD_FORMAT = "runlore.snapshot-head/1"
OUTCOME_FORMAT = "runlore.outcome/1"
MAIN = "main"
"""The agent's name in the line of a run that names none."""
BRANCHES_MAX = 256
"""Branches that one line holds at most: a bound on the head's size."""
TAGS_MAX = 256
VERSIONS_MAX = 100
"""Earlier versions that a head names at most; what retention leaves beyond them stops being named, oldest first."""
SUPERSEDED_MAX = 5000
"""Versions that a head remembers until their term ends; a line that moves more often within it has to wait."""
RESTARTS_MAX = 32

MOVED, BRANCHED, ALREADY, SUPERSEDED, UNCHANGED = "moved", "branched", "already", "superseded", "unchanged"

Body = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """Which line: `rollout` and `agent` are aliases."""

    project: str
    rollout: str
    agent: str = MAIN

    @property
    def key(self) -> str:
        return keys.snapshot_head(self.project, self.rollout, self.agent)

    def __str__(self) -> str:
        return f"{self.project}/{self.rollout}" + (f" ({self.agent})" if self.agent != MAIN else "")


def line_of(project: str, rollout: str, agent: str | None) -> Line:
    """The line of ids as given. Raises `errors.InvalidId`."""
    ids.check_name(project, "project")
    ids.check_id(rollout, "the rollout's id")
    if agent is not None and agent.strip():
        ids.check_id(agent, "the agent's name")
        return Line(project, ids.alias(rollout.strip()), ids.alias(agent.strip()))
    return Line(project, ids.alias(rollout.strip()))


@dataclass(frozen=True)
class Base:
    """What a writer saw: the version of the head that it replaces, and the snapshot's id; (0, None): nothing."""

    version: int = 0
    snapshot: str | None = None


@dataclass(frozen=True)
class Offer:
    """What a run wants: its snapshot (`<id>/<root pack>`) on the line, in place of `base`."""

    run: str
    attempt: int
    ref: str
    base: Base
    event: str
    child: bool = False
    """Whether the run was called by another run."""

    @property
    def snapshot(self) -> str:
        return id_of(self.ref)

    def by(self) -> dict[str, Any]:
        return {"run": self.run, "attempt": self.attempt, "event": self.event}


@dataclass(frozen=True)
class Placed:
    """What became of an offer, and the head after it."""

    state: str
    head: heads.Head
    moved: bool = False
    """Whether this call moved the head."""


def id_of(ref: str) -> str:
    """The content's id in a ref."""
    return ref.partition("/")[0]


def base_of(body: Body) -> Base:
    """What whoever sees this head now would replace."""
    ref = body.get("ref")
    return Base(int(body.get("version", 0)), id_of(ref) if ref else None)


def named(body: Body) -> set[str]:
    """Every ref that a head names now: its version, the kept ones before it, its branches and tags."""
    found = {body["ref"]} if body.get("ref") else set()
    found |= {one["ref"] for one in body.get("versions", ())}
    for one in body.get("branches", {}).values():
        # A branch's base too, where it was known: without it the branch could not be merged.
        found |= {one["ref"], one["base_ref"]} if one.get("base_ref") else {one["ref"]}
    return found | set(body.get("tags", {}).values())


def kept(body: Body, now: dt.datetime) -> set[str]:
    """Every ref that must still be there: what is named now, and what was until less than its term ago."""
    recent = {one["ref"] for one in body.get("superseded", ()) if age.is_kept(one["at"], now)}
    return named(body) | recent


# --- the pure rule ----------------------------------------------------------------------------------------


def runs_of(body: Body) -> dict[tuple[str, int], tuple[str, str]]:
    """The runs that a head names: (run, attempt) → (`moved` or `branched`, its ref)."""
    found = {}
    rows = [*body.get("versions", ()), {"by": body.get("moved_by", {}), "ref": body.get("ref")}]
    for one in rows:
        if one["by"].get("run"):
            found[one["by"]["run"], int(one["by"]["attempt"])] = (MOVED, one["ref"])
    for one in body.get("branches", {}).values():
        if one.get("attempt") is not None:
            found[one["run"], int(one["attempt"])] = (BRANCHED, one["ref"])
    return found


def known(body: Body, run: str) -> dict[int, str]:
    """The attempts of a run that a head names, with their refs."""
    return {attempt: ref for (name, attempt), (_, ref) in runs_of(body).items() if name == run}


def place(body: Body, done: Mapping[int, Any], run: str, attempt: int) -> str | None:
    """`already` or `superseded` if nothing is left to do for a run's attempt; None if it is new.

    `done` are the run's attempts that have an outcome.
    """
    attempts = {*known(body, run), *done}
    if attempt in attempts:
        return ALREADY
    return SUPERSEDED if any(other > attempt for other in attempts) else None


def may_move(body: Body, offer: Offer) -> bool:
    """Whether an offer that is new may move the head. Else it becomes a branch."""
    if offer.child:
        return False
    if offer.base == base_of(body):
        return True
    # A higher attempt began where the lower one did, and takes its place while that is still the head.
    by = body.get("moved_by", {})
    return by.get("run") == offer.run and offer.base == _base_from(body.get("base"))


def _base_from(value: Any) -> Base:
    return Base(int(value["version"]), value["snapshot"]) if value else Base()


def _base_dict(base: Base) -> dict[str, Any]:
    return {"version": base.version, "snapshot": base.snapshot}


def with_version(
    body: Body, ref: str, by: Mapping[str, Any], base: Base, *, replaces: bool = False
) -> Callable[[str], dict[str, Any]]:
    """The changes that make `ref` the head's version. `replaces`: the one before is not kept as an earlier one."""

    def changes(now: str) -> dict[str, Any]:
        earlier = list(body.get("versions", ()))
        if body.get("ref") and not replaces:
            earlier.append(
                {
                    "ref": body["ref"],
                    "version": body["version"],
                    "at": body["version_at"],
                    "by": body["moved_by"],
                }
            )
        change = {"version": int(body.get("counter", 0)) + 1, "ref": ref, "version_at": now}
        change |= {
            "base": _base_dict(base),
            "moved_by": dict(by),
            "versions": earlier[max(0, len(earlier) - VERSIONS_MAX) :],
        }
        return change

    return changes


def with_branch(body: Body, name: str, entry: Mapping[str, Any]) -> Callable[[str], dict[str, Any]]:
    """The changes that add the branch `name`. Raises `errors.BranchesFull`."""
    branches = dict(body.get("branches", {}))
    if name not in branches and len(branches) >= BRANCHES_MAX:
        raise errors.BranchesFull(
            f"the line has {len(branches)} branches, as many as it may", hint="`runlore snapshot merge`"
        )
    base = entry["base"]["snapshot"]
    base_ref = next((ref for ref in sorted(named(body)) if id_of(ref) == base), None)
    return lambda now: {"branches": {**branches, name: {**entry, "base_ref": base_ref, "at": now}}}


def finish(head: heads.Head, line: Line, changes: heads.Changes) -> Callable[[str], dict[str, Any]]:
    """`changes` completed: who the line is, and what the move stops naming, dated (the age rule)."""

    def completed(now: str) -> dict[str, Any]:
        change = dict(changes(now) if callable(changes) else changes)
        after = {**head.body, **change}
        moment = dt.datetime.fromisoformat(now)
        left = [one for one in head.body.get("superseded", ()) if age.is_kept(one["at"], moment)]
        left += [{"ref": ref, "at": now} for ref in sorted(named(head.body) - named(after))]
        if len(left) > SUPERSEDED_MAX:
            raise errors.Blocked(
                f"{line} moved {len(left)} times within {age.SUPERSEDED_KEPT}; at most {SUPERSEDED_MAX} are kept"
            )
        identity = {"project": line.project, "rollout": line.rollout, "agent": line.agent}
        forgot = may_have_forgotten(head) or bool(runs_of(head.body).keys() - runs_of(after).keys())
        return {**identity, **change, "superseded": left, "forgot": forgot}

    return completed


# --- reading ----------------------------------------------------------------------------------------------


async def read(store: port.ObjectStore, line: Line) -> heads.Head:
    """The line's head; counter 0 where it has none."""
    return await heads.read(store, line.key, fmt=HEAD_FORMAT)


def may_have_forgotten(head: heads.Head) -> bool:
    """Whether some run may have an outcome only. A head from before it was noted may."""
    return bool(head.counter) and bool(head.body.get("forgot", True))


async def forgotten(store: port.ObjectStore, line: Line, run: str, head: heads.Head) -> dict[int, str]:
    """The attempts of a run that `head` has forgotten → the key of each outcome. A LIST, where it forgot any run."""
    return await outcomes(store, line, run) if may_have_forgotten(head) else {}


async def outcomes(store: port.ObjectStore, line: Line, run: str) -> dict[int, str]:
    """The attempts of a run that have an outcome → its key. Read it after the head, never before."""
    found = {}
    async for row in store.list(keys.outcomes(line.project, line.rollout, line.agent) + f"{run}."):
        name, attempt = keys.record_name(row.key)
        if name == run:
            found[attempt] = row.key
    return found


async def outcome(store: port.ObjectStore, key: str) -> dict[str, Any]:
    """What an outcome says. Raises `errors.Corrupt`."""
    stored = await store.get(key)
    try:
        body = json.loads(stored.body) if stored else None
        if body["format"] != OUTCOME_FORMAT:
            raise ValueError
        return body
    except (ValueError, KeyError, TypeError):
        raise errors.Corrupt(f"the outcome {key} is not an outcome", key=key) from None


async def all_heads(store: port.ObjectStore, project: str) -> list[heads.Head]:
    """Every line's head of a project, in order of keys."""
    found = [row.key async for row in store.list(f"{project}/{keys.WORKSPACES}/")]
    began = clock.now()
    stored = await store.get_many(found)
    parsed = [heads.parse(key, one, fmt=HEAD_FORMAT) for key, one in zip(found, stored, strict=True)]
    return [heads.Head(one.key, one.body, one.etag, began) for one in parsed if one.counter]


async def of_rollout(store: port.ObjectStore, project: str, rollout: str) -> list[heads.Head]:
    """Every line's head of one rollout (alias)."""
    found = [row.key async for row in store.list(keys.snapshot_heads(project, rollout))]
    return [await heads.read(store, key, fmt=HEAD_FORMAT) for key in found]


def line_from(head: heads.Head) -> Line:
    body = head.body
    return Line(str(body["project"]), str(body["rollout"]), str(body["agent"]))


# --- moving -----------------------------------------------------------------------------------------------


async def move(
    store: port.ObjectStore,
    line: Line,
    head: heads.Head,
    changes: heads.Changes,
    *,
    began: dt.datetime | None = None,
) -> heads.Head:
    """Move `head`, after an outcome is put for every run that it forgets thereby.

    Raises `errors.HeadMoved`, `errors.CommitTooLate`.
    """
    completed = finish(head, line, changes)
    await _remember(store, line, head.body, {**head.body, **completed(clock.now_iso())})
    return await heads.move(store, head, completed, fmt=HEAD_FORMAT, began=began)


async def _remember(store: port.ObjectStore, line: Line, before: Body, after: Body) -> None:
    """Put the outcome of each run that `before` names and `after` does not."""
    names, still = runs_of(before), runs_of(after)
    for run, attempt in sorted(names.keys() - still.keys()):
        state, ref = names[run, attempt]
        key = keys.outcome(line.project, line.rollout, line.agent, run, attempt)
        body = {"format": OUTCOME_FORMAT, "run": run, "attempt": attempt, "state": state, "ref": ref}
        await _put_outcome(store, key, envelope.dump({**body, "head": int(before["counter"])}))


async def _put_outcome(store: port.ObjectStore, key: str, raw: bytes) -> None:
    # Whoever put it meant the same: a run and attempt has one outcome.
    await puts.once(store, key, raw, what=f"the outcome {key}")


async def advance(
    store: port.ObjectStore,
    line: Line,
    offer: Offer,
    *,
    began: dt.datetime | None = None,
    seen: heads.Head | None = None,
) -> Placed:
    """Move the line to what a run left, or keep that as the run's branch; nothing where it is there already.

    `began` is when the writer read the head that its packs refer to. `seen` is a head of which the caller knows, by
    its outcomes too, that the offer is new there: it is not asked again, and a line that has moved since refuses the
    move. Raises `errors.CommitTooLate` (start again from nothing), `errors.BranchesFull`.
    """
    if offer.snapshot == offer.base.snapshot and not offer.child:
        return Placed(UNCHANGED, await read(store, line))
    for restart in range(RESTARTS_MAX):
        head = seen if seen is not None and not restart else await read(store, line)
        if head is not seen:
            done = await forgotten(store, line, offer.run, head)
            there = place(head.body, done, offer.run, offer.attempt)
            if there is not None:
                return Placed(there, head)
        state, changes = _changes(head.body, offer)
        try:
            return Placed(state, await move(store, line, head, changes, began=began), moved=True)
        except errors.HeadMoved:
            await clock.sleep(0.005 * restart * clock.jitter())
    raise errors.StoreUnavailable(f"the head of {line} is contended")


def _changes(body: Body, offer: Offer) -> tuple[str, Callable[[str], dict[str, Any]]]:
    if not may_move(body, offer):
        why = "called by another run" if offer.child else "its base is not the head"
        entry = {**offer.by(), "ref": offer.ref, "base": _base_dict(offer.base), "why": why}
        return BRANCHED, with_branch(body, offer.run, entry)
    replaces = offer.base != base_of(body)
    moved = with_version(body, offer.ref, offer.by(), offer.base, replaces=replaces)
    branches = dict(body.get("branches", {}))
    if branches.pop(offer.run, None) is None:
        return MOVED, moved
    # The branch of a lower attempt: this one takes its place.
    return MOVED, lambda now: {**moved(now), "branches": branches}


# --- by hand ----------------------------------------------------------------------------------------------


async def save(
    store: port.ObjectStore,
    line: Line,
    ref: str,
    base: Base,
    *,
    reason: str,
    began: dt.datetime,
    name: str | None = None,
    merged: Mapping[str, str] | None = None,
) -> Placed:
    """Move the line to a snapshot that a person (or a merge) made from `base`; a branch where that has moved on.

    `name` is the branch's name then. `merged` are branches (name → ref) that the snapshot holds: they go with the
    same move, as far as they are still what was merged.
    """
    for restart in range(RESTARTS_MAX):
        head = await read(store, line)
        same = head.body.get("ref") == ref or id_of(ref) == base.snapshot
        if same and not merged:
            return Placed(UNCHANGED, head)
        by = {"reason": reason}
        changes: Callable[[str], dict[str, Any]]
        if base == base_of(head.body):
            left = {
                branch: entry
                for branch, entry in head.body.get("branches", {}).items()
                if (merged or {}).get(branch) != entry["ref"]
            }
            # A merge that brings nothing new lets its branches go, and makes no version.
            moved = (lambda now: {}) if same else with_version(head.body, ref, by, base)
            state = UNCHANGED if same else MOVED
            changes = lambda now, moved=moved, left=left: {**moved(now), "branches": left}  # noqa: E731
        else:
            label = name or f"save-{id_of(ref)[:12]}"
            present = head.body.get("branches", {}).get(label)
            # By content: a second save of it has another root pack.
            if present is not None and id_of(present["ref"]) == id_of(ref):
                return Placed(ALREADY, head)
            entry = {"run": None, "attempt": None, "ref": ref, "base": _base_dict(base)}
            entry |= {"why": f"its base is not the head: {reason}"}
            state, changes = BRANCHED, with_branch(head.body, label, entry)
        try:
            return Placed(state, await move(store, line, head, changes, began=began), moved=True)
        except errors.HeadMoved:
            await clock.sleep(0.005 * restart * clock.jitter())
    raise errors.StoreUnavailable(f"the head of {line} is contended")


async def change(
    store: port.ObjectStore,
    line: Line,
    changes: Callable[[heads.Head], heads.Changes | None],
) -> heads.Head:
    """Move a head that is there by what `changes` makes of it; as it is where that is None. Else `errors.NotFound`."""
    for restart in range(RESTARTS_MAX):
        head = await read(store, line)
        if not head.counter:
            raise errors.NotFound(
                f"{line} has no snapshots", hint="`runlore snapshot ls` lists what there is"
            )
        wanted = changes(head)
        if wanted is None:
            return head
        try:
            return await move(store, line, head, wanted)
        except errors.HeadMoved:
            await clock.sleep(0.005 * restart * clock.jitter())
    raise errors.StoreUnavailable(f"the head of {line} is contended")


async def tag(store: port.ObjectStore, line: Line, name: str, ref: str) -> heads.Head:
    """Give `ref`, which the line names now, a name that keeps it. Raises `errors.NotFound`, `errors.Refused`."""
    ids.check_name(name, "tag")

    def changes(head: heads.Head) -> heads.Changes | None:
        tags = head.body.get("tags", {})
        if ref not in named(head.body):
            # Something merely in its term may be gone before the tag lands.
            raise errors.NotFound(
                f"{line} does not name snapshot {id_of(ref)[:12]} now",
                hint="`runlore snapshot ls` shows what it names",
            )
        if tags.get(name) == ref:
            return None
        if name not in tags and len(tags) >= TAGS_MAX:
            raise errors.Refused(f"{line} has {len(tags)} tags, as many as it may")
        return {"tags": {**tags, name: ref}}

    return await change(store, line, changes)


async def untag(store: port.ObjectStore, line: Line, name: str) -> heads.Head:
    """Take a tag away. Raises `errors.NotFound`."""

    def changes(head: heads.Head) -> heads.Changes:
        tags = dict(head.body.get("tags", {}))
        if tags.pop(name, None) is None:
            raise errors.NotFound(f"{line} has no tag {name!r}")
        return {"tags": tags}

    return await change(store, line, changes)


async def delete_branch(store: port.ObjectStore, line: Line, name: str) -> heads.Head:
    """Let a branch go. Its run stays known by its outcome. Raises `errors.NotFound`."""

    def changes(head: heads.Head) -> heads.Changes:
        branches = dict(head.body.get("branches", {}))
        if branches.pop(name, None) is None:
            raise errors.NotFound(f"{line} has no branch {name!r}")
        return {"branches": branches}

    return await change(store, line, changes)


# --- retention --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Keep:
    """Which earlier versions stay named. A version stays if any rule keeps it; tagged ones always do."""

    last: int = 0
    """The newest so many."""
    hourly: int = 0
    """The newest of each of the last so many hours that have one."""
    daily: int = 0
    """The same by days."""
    within: dt.timedelta | None = None
    """Every one that was made no longer ago."""


def retained(body: Body, keep: Keep, now: dt.datetime) -> list[Body]:
    """The earlier versions that `keep` keeps, oldest first. Pure."""
    rows, tagged = list(body.get("versions", ())), set(body.get("tags", {}).values())
    newest_first = list(reversed(rows))
    stay = {one["version"] for one in newest_first[: keep.last]}
    stay |= {one["version"] for one in rows if one["ref"] in tagged}
    for count, width in ((keep.hourly, 13), (keep.daily, 10)):
        slots: dict[str, int] = {}
        for one in newest_first:
            # The prefix of a UTC time names its hour or its day.
            slots.setdefault(str(one["at"])[:width], one["version"])
        stay |= {slots[slot] for slot in sorted(slots, reverse=True)[:count]}
    if keep.within is not None:
        stay |= {one["version"] for one in rows if now - dt.datetime.fromisoformat(one["at"]) <= keep.within}
    return [one for one in rows if one["version"] in stay]


async def retain(store: port.ObjectStore, line: Line, keep: Keep, *, dry_run: bool = False) -> list[Body]:
    """Stop naming the earlier versions that `keep` does not keep; they stay for their term. What was let go."""
    let_go: list[Body] = []

    def changes(head: heads.Head) -> heads.Changes | None:
        stay = retained(head.body, keep, clock.now())
        let_go[:] = [one for one in head.body.get("versions", ()) if one not in stay]
        return {"versions": stay} if let_go and not dry_run else None

    await change(store, line, changes)
    return let_go
