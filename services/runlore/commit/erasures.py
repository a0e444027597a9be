"""The ledger of erasures: what was asked to be forgotten, put before anything is removed, and never deleted.

An **entry** is a head of its own (`erasures/hh/<id>.json`): what it names (aliases, never a text), how far it is, and
what became of it. The **ledger's head** moves with every entry: whoever keeps anything in memory compares its counter.
It also names what holds by time and not by rollout, as `rows`: an erased subject or memory is not known by its runs,
since some may still be on the bus.

What stops a run from coming back is where its writer looks anyway: the rollout's head says which runs were erased, or
that all of them were (invariant 10: head → ledger → inputs). A head only moves from the version that was read, so a
writer that read it before the erasure finds, when it moves it, that it has moved.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from runlore import clock, errors
from runlore.commit import heads, keys
from runlore.store import port

FORMAT = "runlore.erasure/1"
LEDGER_FORMAT = "runlore.erasures/1"
RUN, ROLLOUT, SUBJECT, MEMORY = "run", "rollout", "subject", "memory"
RETENTION = "retention"
"""Rollouts past the days that they are kept."""
SCOPES = (RUN, ROLLOUT, SUBJECT, MEMORY, RETENTION)
OPEN, UNREACHABLE, DONE = "open", "unreachable", "done"
"""Something of it may still be reached; nothing may (the first date); no byte is left (the second)."""
ROWS_MAX = 10_000
"""Subjects and memories that a project's ledger names: it is read with every poll of a stage."""
RESTARTS_MAX = 32


@dataclass(frozen=True, order=True)
class Target:
    """What is erased of one rollout: some of its runs, or (None) the whole of it, for good."""

    memory: str
    rollout: str
    runs: tuple[str, ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "runs": list(self.runs) if self.runs is not None else None}


def target_of(body: Mapping[str, Any]) -> Target:
    runs = body["runs"]
    return Target(str(body["memory"]), str(body["rollout"]), None if runs is None else tuple(runs))


@dataclass(frozen=True)
class Row:
    """What an erasure holds for by time: events of a subject, or of a whole memory, up to a moment."""

    erasure: str
    until: str
    memory: str | None = None
    subject: str | None = None

    def holds(self, memory: str, subject: str | None, time: str) -> bool:
        """Whether an event is one of those; one that does not say when it was counts as old."""
        if self.memory not in (None, memory) or self.subject not in (None, subject):
            return False
        return not _is_after(time, self.until)


def _is_after(time: str, until: str) -> bool:
    try:
        found = dt.datetime.fromisoformat(time)
    except (ValueError, TypeError):
        return False
    found = found if found.tzinfo else found.replace(tzinfo=dt.UTC)
    return found > dt.datetime.fromisoformat(until)


# --- what the heads say -----------------------------------------------------------------------------------


def is_whole(body: Mapping[str, Any]) -> bool:
    """Whether a rollout's head, or its workspace's, says that all of the rollout was erased."""
    return bool((body.get("erased") or {}).get("all"))


def is_empty(body: Mapping[str, Any]) -> bool:
    """Whether nothing is left of a rollout from which runs were erased. Unless all of it was, a later run may come."""
    return bool(body.get("erased")) and not body.get("runs")


def is_erased(body: Mapping[str, Any], *runs: str) -> bool:
    """Whether one of these runs was erased, as the head says."""
    told = body.get("erased") or {}
    return bool(told.get("all")) or any(run in told.get("runs", {}) for run in runs)


def newest(body: Mapping[str, Any]) -> int:
    """The counter of the head's last move that erased anything; 0: none did."""
    told = body.get("erased") or {}
    entries = [*told.get("runs", {}).values(), *([told["all"]] if told.get("all") else [])]
    return max((int(one["counter"]) for one in entries), default=0)


def marked(
    body: Mapping[str, Any], name: str, runs: Iterable[str] | None, *, counter: int, at: str
) -> dict[str, Any]:
    """What a head says of erasures from now on: `name` erased these runs of it (None: all that is and will be)."""
    told = dict(body.get("erased") or {})
    entry = {"erasure": name, "counter": counter, "at": at}
    if runs is None:
        return {**told, "all": told.get("all") or entry}
    known = dict(told.get("runs", {}))
    return {**told, "runs": known | {run: entry for run in runs if run not in known}}


# --- the ledger -------------------------------------------------------------------------------------------


async def ledger(store: port.ObjectStore, project: str) -> heads.Head:
    return await heads.read(store, keys.erasure_ledger(project), fmt=LEDGER_FORMAT)


def rows(head: heads.Head) -> list[Row]:
    """What holds by time. Raises `errors.Corrupt`: what may be a row must not be passed over."""
    try:
        found = [Row(**one) for one in head.body.get("rows", ())]
        if all(dt.datetime.fromisoformat(row.until).tzinfo for row in found):
            return found
    except (ValueError, TypeError):
        pass
    raise errors.Corrupt(f"the ledger {head.key} can not be read", key=head.key)


async def read(store: port.ObjectStore, project: str, name: str) -> heads.Head:
    """One erasure. Raises `errors.NotFound`."""
    head = await heads.read(store, keys.erasure(project, name), fmt=FORMAT)
    if not head.counter:
        raise errors.NotFound(
            f"project {project} has no erasure {name!r}", hint="`runlore forget --list` lists them"
        )
    return head


async def every(store: port.ObjectStore, project: str) -> AsyncIterator[heads.Head]:
    """Every erasure of a project, in the order of their keys."""
    async for key in keys_of(store, project):
        yield await heads.read(store, key, fmt=FORMAT)


async def keys_of(store: port.ObjectStore, project: str) -> AsyncIterator[str]:
    """Where each lies."""
    own = keys.erasure_ledger(project)
    async for row in store.list(keys.erasures(project)):
        if row.key.endswith(".json") and row.key != own:
            yield row.key


async def begin(
    store: port.ObjectStore, project: str, name: str, body: Mapping[str, Any], row: Row | None
) -> heads.Head:
    """Put an erasure, and what holds by time: from here on it is finished, whoever dies. Interrupted, call it again."""
    entry = await heads.read(store, keys.erasure(project, name), fmt=FORMAT)
    for _ in range(RESTARTS_MAX):
        if entry.counter:
            break
        try:
            entry = await heads.move(store, entry, {"project": project, "id": name, **body}, fmt=FORMAT)
        except errors.HeadMoved:  # Ours, whose reply was lost, or nobody's.
            entry = await heads.read(store, keys.erasure(project, name), fmt=FORMAT)
    await ring(store, project, row)
    return entry


async def ring(store: port.ObjectStore, project: str, row: Row | None = None) -> None:
    """Move the ledger's head, so that whoever keeps something in memory lets it go; with what holds by time."""
    for restart in range(RESTARTS_MAX):
        head = await ledger(store, project)
        known = rows(head)
        if row is not None and row not in known:
            known.append(row)
        if len(known) > ROWS_MAX:
            raise errors.Blocked(f"the ledger of {project} names {len(known)} subjects and memories already")
        changes = {"project": project, "rows": [asdict(one) for one in known]}
        try:
            await heads.move(store, head, changes, fmt=LEDGER_FORMAT)
            return
        except errors.HeadMoved:
            await clock.sleep(0.005 * restart * clock.jitter())
    raise errors.StoreUnavailable(f"the ledger of erasures of {project} is contended")


async def note(store: port.ObjectStore, project: str, name: str, changes: Mapping[str, Any]) -> heads.Head:
    """Move an erasure on."""
    for restart in range(RESTARTS_MAX):
        head = await read(store, project, name)
        if all(head.body.get(key) == value for key, value in changes.items()):
            return head
        try:
            return await heads.move(store, head, changes, fmt=FORMAT)
        except errors.HeadMoved:
            await clock.sleep(0.005 * restart * clock.jitter())
    raise errors.StoreUnavailable(f"the erasure {name} of {project} is contended")


async def naming(store: port.ObjectStore, project: str, names: Sequence[str]) -> heads.Head | None:
    """The erasure that names a run or a rollout by one of these aliases, if there is one. Reads the whole ledger."""
    async for head in every(store, project):
        if set(names) & set(head.body.get("runs", ())):
            return head
        for one in head.body.get("targets", ()):
            if one["rollout"] in names or any(run in names for run in one["runs"] or ()):
                return head
    return None
