"""What an erasure names: from what a person says to rollouts and runs, by what is recorded and what is on the bus."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

from runlore import errors
from runlore.bus import port as bus_port
from runlore.commit import erasures, heads, keys, rollouts
from runlore.consumers import summarize, told
from runlore.events import ids
from runlore.memory import notes
from runlore.store import port as store_port
from runlore.upkeep.erasing import rollouts as erasing_rollouts
from runlore.upkeep.erasing import traces

ERASE, KEEP = "erase", "keep"
HEADS_AT_ONCE = 256
TARGETS_MAX = 100_000
"""Rollouts that one erasure names."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for."""

    project: str
    scope: str
    name: str
    """The run, rollout, subject or memory, as given."""
    memory: str | None = None
    """Only in this memory; None: wherever it is."""
    snapshots: str = ERASE
    strict: bool = False

    @property
    def alias(self) -> str:
        """Its name as the ledger keeps it: never the text of a subject."""
        if self.scope == erasures.MEMORY:
            return self.name
        return _subject(self.name) if self.scope == erasures.SUBJECT else ids.as_alias(self.name.strip())


def _subject(name: str) -> str:
    text = name.strip()
    is_alias = text.startswith(ids.ALIAS_PREFIX) and ids.as_alias(text) == text
    return text if is_alias else ids.subject_alias(text)


def wanted_of(
    *,
    project: str,
    run: str | None = None,
    rollout: str | None = None,
    subject: str | None = None,
    memory: str | None = None,
    snapshots: str = ERASE,
    strict: bool = False,
) -> Wanted:
    """The request in these words. Raises `errors.InvalidInput`, `errors.InvalidId`."""
    given = {erasures.RUN: run, erasures.ROLLOUT: rollout, erasures.SUBJECT: subject}
    named = {scope: name.strip() for scope, name in given.items() if name and name.strip()}
    if len(named) > 1 or not (named or memory):
        raise errors.InvalidInput(
            "say one of a run, a rollout, a subject, or a memory alone",
            hint="--run ID, --rollout ID, --subject S, or --memory M",
        )
    if snapshots not in (ERASE, KEEP):
        raise errors.InvalidInput(f"snapshots are {ERASE}d or kept, not {snapshots!r}")
    ids.check_name(project, "project")
    if memory is not None:
        ids.check_name(memory, "memory")
    scope, name = next(iter(named.items()), (erasures.MEMORY, memory or ""))
    ids.check_id(name, "the id")
    only = None if scope == erasures.MEMORY else memory
    return Wanted(project=project, scope=scope, name=name, memory=only, snapshots=snapshots, strict=strict)


def row_of(wanted: Wanted, name: str, until: str) -> erasures.Row | None:
    """What the ledger says for it by time; None: its heads say all."""
    if wanted.scope == erasures.MEMORY:
        return erasures.Row(name, until, memory=wanted.alias)
    if wanted.scope == erasures.SUBJECT:
        return erasures.Row(name, until, memory=wanted.memory, subject=wanted.alias)
    return None


async def targets(store: store_port.ObjectStore, bus: bus_port.Bus, wanted: Wanted) -> list[erasures.Target]:
    """What is recorded, and what is on the bus, of what is asked for. Raises `errors.NotFound` where nothing is."""
    found = set()
    if wanted.scope == erasures.RUN:
        found = {one async for one in _of_run(store, wanted)} or await _on_the_bus(store, bus, wanted)
    elif wanted.scope == erasures.SUBJECT:
        found = {one async for one in _of_subject(store, wanted.project, wanted.memory, wanted.alias)}
    else:
        only = wanted.alias if wanted.scope == erasures.MEMORY else wanted.memory
        async for memory, rollout in named(store, wanted.project, only):
            if wanted.scope == erasures.MEMORY or rollout == wanted.alias:
                found.add(erasures.Target(memory, rollout))
        if wanted.scope == erasures.ROLLOUT:
            # Where only some events of it are recorded, it may have gone to other memories, too.
            found |= {
                erasures.Target(one.memory, one.rollout) for one in await _on_the_bus(store, bus, wanted)
            }
    if not found and wanted.scope in (erasures.RUN, erasures.ROLLOUT):
        raise errors.NotFound(
            f"nothing in project {wanted.project} is called {wanted.alias!r}",
            hint="`runlore explain ID` finds runs and rollouts",
        )
    if len(found) > TARGETS_MAX:
        raise errors.Refused(f"it names {len(found)} rollouts; one erasure takes {TARGETS_MAX}")
    return sorted(found, key=lambda one: (one.memory, one.rollout, one.runs or ()))


async def named(
    store: store_port.ObjectStore, project: str, memory: str | None
) -> AsyncIterator[tuple[str, str]]:
    """(Memory, rollout) of every head, and of every record whose head is still to come."""
    seen = set()
    for kind in (keys.ROLLOUTS, keys.RECORDS):
        async for row in store.list(f"{project}/{kind}/"):
            parts = row.key.removesuffix(".json").split("/")
            one = (parts[3], parts[4])
            if memory in (None, one[0]) and one not in seen:
                seen.add(one)
                yield one


async def _of_run(store: store_port.ObjectStore, wanted: Wanted) -> AsyncIterator[erasures.Target]:
    async for row in store.list(f"{wanted.project}/{keys.RECORDS}/"):
        _, _, _, memory, rollout, _ = row.key.split("/")
        if keys.record_name(row.key)[0] == wanted.alias and wanted.memory in (None, memory):
            yield erasures.Target(memory, rollout, (wanted.alias,))


async def _of_subject(
    store: store_port.ObjectStore, project: str, memory: str | None, subject: str
) -> AsyncIterator[erasures.Target]:
    """Whole rollouts where all runs were for the subject; of those for several, the subject's runs."""
    batch: list[str] = []
    async for row in store.list(f"{project}/{keys.ROLLOUTS}/"):
        if memory in (None, row.key.split("/")[3]):
            batch.append(row.key)
        if len(batch) == HEADS_AT_ONCE:
            async for one in _of_heads(store, project, batch, subject):
                yield one
            batch = []
    async for one in _of_heads(store, project, batch, subject):
        yield one


async def _of_heads(
    store: store_port.ObjectStore, project: str, batch: Sequence[str], subject: str
) -> AsyncIterator[erasures.Target]:
    for key, stored in zip(batch, await store.get_many(batch), strict=True):
        body = heads.parse(key, stored, fmt=rollouts.HEAD_FORMAT).body
        if body.get("subject") == subject:
            yield erasures.Target(body["memory"], body["rollout"])
        elif body.get("subject") == notes.MIXED or (body.get("runs") and not body.get("summary")):
            runs = [run async for run in _runs_of(store, project, body, subject)]
            if runs:
                yield erasures.Target(body["memory"], body["rollout"], tuple(sorted(set(runs))))


async def _runs_of(
    store: store_port.ObjectStore, project: str, body: dict[str, object], subject: str
) -> AsyncIterator[str]:
    async for row in store.list(keys.records(project, str(body["memory"]), str(body["rollout"]))):
        if (await erasing_rollouts.meta_of(store, row.key)).get("subject_alias") == subject:
            yield keys.record_name(row.key)[0]


async def _on_the_bus(
    store: store_port.ObjectStore, bus: bus_port.Bus, wanted: Wanted
) -> set[erasures.Target]:
    """What waits on the bus, or is a dead letter, under the name."""
    memory, alias = wanted.memory, wanted.alias

    def matches(one: told.Told) -> bool:
        named = one.rollout == alias if wanted.scope == erasures.ROLLOUT else alias in one.runs
        return named and (memory is None or one.memory in (None, memory))

    return (await traces.find(store, bus, wanted.project, matches)).targets


async def late(
    store: store_port.ObjectStore,
    project: str,
    rows: Sequence[erasures.Row],
    known: Iterable[erasures.Target],
) -> list[erasures.Target]:
    """Runs that were recorded all the same, by whoever had them in hand before the ledger said so."""
    whole = {(one.memory, one.rollout) for one in known if one.runs is None}
    found: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        async for memory, rollout in named(store, project, row.memory):
            if (memory, rollout) in whole:
                continue
            head = await summarize.read(store, project, memory, rollout)
            if row.subject is not None and head.body.get("subject") not in (row.subject, notes.MIXED):
                continue
            async for one in store.list(keys.records(project, memory, rollout)):
                meta = await erasing_rollouts.meta_of(store, one.key)
                time = str((meta.get("event") or {}).get("time") or "")
                if meta and row.holds(memory, meta.get("subject_alias"), time):
                    found.setdefault((memory, rollout), set()).add(keys.record_name(one.key)[0])
    return [erasures.Target(*place, tuple(sorted(runs))) for place, runs in sorted(found.items())]
