"""Summarize: bring a rollout's summary up to its records.

    head → LIST of records → GET those not covered → CAS the head

The record stage does it for the runs in its hand, and its mark gives the head's counter after that. A head that
stands there covers what the mark waits for. Where it does not (the mark says no counter, or the store was restored
from a backup) whoever works the mark does it again from a LIST. A record whose writer died before its head was
moved comes again from the bus, and costs no mark until then. The summary is a function of the set of runs, so
whoever comes later, with whatever batch, writes the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import structlog

from runlore import clock, errors
from runlore.commit import erasures, heads, keys, rollouts
from runlore.consumers.runtime import Runtime
from runlore.events import envelope, ids
from runlore.memory import rules, values
from runlore.store import port

log = structlog.get_logger("runlore.summarize")

RESTARTS_MAX = 32
"""How often one effect starts again from its head before it gives up for now (the worker then retries it)."""
UNKNOWN = "unknown"

NEW, NEWER, OLDER, COVERED = "new", "newer", "older", "covered"


def place(entry: Mapping[str, Any] | None, attempt: int, received: str, run: str) -> str:
    """Where a run's attempt stands against what its rollout's head has of it.

    `new`: the run is not there. `newer`: this attempt replaces the one that is. `older`: a later attempt is
    there, and this one is only to be noted. `covered`: it is there already. Raises `errors.RunConflict` where
    the same attempt is there with other bytes.
    """
    if entry is None:
        return NEW
    known = {int(entry["attempt"]): entry["received"]} | {
        int(at): got for at, got, _ in entry.get("earlier", ())
    }
    if attempt in known:
        if known[attempt] != received:
            raise rollouts.conflict(run, attempt)
        return COVERED
    return NEWER if attempt > int(entry["attempt"]) else OLDER


def note(entry: Mapping[str, Any] | None, record: rollouts.Record, counter: int) -> dict[str, Any]:
    """The head's entry of a run, with `record` taken in: its highest attempt, and the earlier ones.

    `since` is the counter from which the head covers the highest attempt.
    """
    attempts = [(record.attempt, record.received, str(record.meta["event"]["id"]))]
    ended = {record.attempt: str(record.meta["ended_at"])}
    if entry is not None:
        attempts.append((int(entry["attempt"]), entry["received"], entry["event"]))
        attempts += [(int(at), got, event) for at, got, event in entry.get("earlier", ())]
        ended.setdefault(int(entry["attempt"]), str(entry["ended_at"]))
    (top, received, event), *earlier = sorted(attempts, reverse=True)
    since = counter if entry is None or top != int(entry["attempt"]) else entry["since"]
    out = {"attempt": top, "received": received, "event": event, "ended_at": ended[top], "since": since}
    if record.meta.get("is_edit"):
        # It is no run of its own where runs are counted or listed: one of them made it.
        out["edit_of"] = ids.alias(str(record.meta["ids"]["run_id"]))
    return out | ({"earlier": sorted(map(list, earlier))} if earlier else {})


async def read(store: port.ObjectStore, project: str, memory: str, rollout: str) -> heads.Head:
    return await heads.read(store, keys.rollout_head(project, memory, rollout), fmt=rollouts.HEAD_FORMAT)


async def advance(
    store: port.ObjectStore,
    head: heads.Head,
    records: Sequence[rollouts.Record],
    runtime: Runtime,
    *,
    above: int = 0,
) -> heads.Head:
    """Move a rollout's head so that it covers `records`; the head itself where it does already.

    `above`: a counter that it has had already (see `regain`). Raises `errors.HeadMoved` (start again from the head).
    """
    runs: dict[str, Any] = dict(head.body.get("runs", {}))
    fresh: list[rollouts.Record] = []
    rebuild = False
    changed = False
    for record in records:
        where = place(runs.get(record.run), record.attempt, record.received, record.run)
        if where == COVERED:
            continue
        runs[record.run] = note(runs.get(record.run), record, max(head.counter, above) + 1)
        changed = True
        if where in (NEW, NEWER):
            fresh = [one for one in fresh if one.run != record.run] + [record]
            rebuild = rebuild or where == NEWER
    if not changed:
        return head
    first = records[0].meta
    summary = head.body.get("summary")
    if fresh:
        known = None if rebuild or not _same_rules(summary) else summary
        summary = await _summary(store, known, first, runs, fresh, runtime)
    changes = {
        "project": first["project"],
        "memory": first["memory"],
        "rollout": first["rollout"],
        "kind": head.body.get("kind", first["ids"]["kind"]),
        "original": head.body.get("original", first["ids"]["original"]),
        # Of all its runs: a rollout whose runs were for two subjects is shown to neither.
        "subject": (summary or {}).get("subject"),
        "layout": head.body.get("layout", first["layout"]),
        "updated_at": latest(entry["ended_at"] for entry in runs.values()),
        "runs": runs,
        "summary": summary,
    }
    return await heads.move(store, head, changes, fmt=rollouts.HEAD_FORMAT, above=above)


async def bring_up(
    store: port.ObjectStore,
    project: str,
    memory: str,
    rollout: str,
    runtime: Runtime,
    *,
    covered: int | None = None,
) -> heads.Head:
    """The rollout's head once it stands at `covered`; else after it covers every record that a LIST shows."""
    for _ in range(RESTARTS_MAX):
        head = await read(store, project, memory, rollout)
        if covered is not None and head.counter >= covered:
            return head
        listed = await rollouts.recorded(store, project, memory, rollout)
        missing = [
            key
            for run, attempts in sorted(listed.items())
            for attempt, key in sorted(attempts.items())
            if not has(head.body.get("runs", {}).get(run), attempt) and not erasures.is_erased(head.body, run)
        ]
        if not missing:
            return head
        records = await load(store, missing)
        try:
            return await advance(store, head, records, runtime)
        except errors.HeadMoved:
            continue
    raise errors.StoreUnavailable(f"the head of rollout {rollout} in {project}/{memory} is contended")


async def regain(
    store: port.ObjectStore, project: str, memory: str, rollout: str, runtime: Runtime, *, above: int
) -> heads.Head:
    """The rollout's head made anew from every record that a LIST shows, with a counter far beyond `above`.

    For a head that was lost, or put back from an older copy, while a revision covers the rollout further: with a lower
    counter its runs would count as covered, and no revision would take them in. Every run counts as new.
    """
    for restart in range(RESTARTS_MAX):
        head = await read(store, project, memory, rollout)
        listed = await rollouts.recorded(store, project, memory, rollout)
        wanted = [
            key
            for run, attempts in sorted(listed.items())
            if not erasures.is_erased(head.body, run)
            for _, key in sorted(attempts.items())
        ]
        blank = {**head.body, "runs": {}, "summary": None}
        records = await load(store, wanted)
        if not records:
            return head
        try:
            return await advance(store, replace(head, body=blank), records, runtime, above=above + heads.LEAP)
        except errors.HeadMoved:
            await clock.sleep(0.005 * restart * clock.jitter())
    raise errors.StoreUnavailable(f"the head of rollout {rollout} in {project}/{memory} is contended")


async def rescanned_since(
    store: port.ObjectStore, project: str, memory: str, covered: Mapping[str, int]
) -> list[str]:
    """Of these rollouts, each with a counter of its head, those in which a rescan has hidden something since."""
    named = {keys.rollout_head(project, memory, rollout): rollout for rollout in covered}
    out = []
    for (key, rollout), stored in zip(named.items(), await store.get_many([*named]), strict=True):
        told = heads.parse(key, stored, fmt=rollouts.HEAD_FORMAT).body.get("rescanned") or {}
        if int(told.get("counter", 0)) > covered[rollout]:
            out.append(rollout)
    return out


async def load(store: port.ObjectStore, record_keys: Sequence[str]) -> list[rollouts.Record]:
    """The records at these keys; one that is gone meanwhile is left out."""
    found = await store.get_many(record_keys)
    return [
        rollouts.decode(key, one.body) for key, one in zip(record_keys, found, strict=True) if one is not None
    ]


def digest(record: rollouts.Record) -> dict[str, Any]:
    """The rules' digest of one record. Pure; kept with the record."""
    if "digest" not in record.memo:
        record.memo["digest"] = rules.digest(record.line, meta_of(record))
    return record.memo["digest"]


def meta_of(record: rollouts.Record) -> values.RunMeta:
    meta = record.meta
    return values.RunMeta(
        project=meta["project"],
        memory=meta["memory"],
        rollout=meta["rollout"],
        run=meta["run"],
        attempt=int(meta["attempt"]),
        subject=meta.get("subject_alias"),
        ended_at=meta["ended_at"],
        agents=list(meta.get("agents", [])),
        is_edit=bool(meta.get("is_edit")),
    )


def latest(times: Iterable[str]) -> str:
    """The latest of some times (normalised to UTC, so text order is time order); `unknown` counts least."""
    return max((time for time in times if time != UNKNOWN), default=UNKNOWN)


def subject_of(data_subject: str | None) -> str | None:
    return ids.subject_alias(data_subject.strip()) if data_subject and data_subject.strip() else None


async def _summary(
    store: port.ObjectStore,
    known: Mapping[str, Any] | None,
    first: Mapping[str, Any],
    runs: Mapping[str, Any],
    fresh: Sequence[rollouts.Record],
    runtime: Runtime,
) -> dict[str, Any]:
    """The summary with `fresh` taken in: onto the `known` one, or from every record.

    A bug in the rules must not stop a partition: the rollout then has a summary that says so, the engine holds
    it for review, and the next run (or a release, once mended) builds it anew.
    """
    try:
        digests, summary = await runtime.offload(extended, known, fresh)
        return summary if summary is not None else await _rebuild(store, first, runs, digests, runtime)
    except errors.RunloreError:
        raise
    except Exception:
        log.exception("the rules failed on a rollout", rollout=first["rollout"])
        return {"engine": {"name": "none", "version": 0}, "subject": first.get("subject_alias")}


async def rebuilt(store: port.ObjectStore, head: heads.Head, runtime: Runtime) -> dict[str, Any] | None:
    """The summary of a rollout from every record that its head names; None where it names none."""
    runs: Mapping[str, Any] = head.body.get("runs", {})
    return await _rebuild(store, head.body, runs, [], runtime) if runs else None


async def present(store: port.ObjectStore, head: heads.Head, runtime: Runtime) -> dict[str, Any]:
    """A rollout's summary by the present rules: the head's own, or, where others made that, from the records."""
    summary: dict[str, Any] | None = head.body.get("summary")
    if summary is not None and _same_rules(summary):
        return summary
    made = await _summary(store, None, head.body, head.body["runs"], [], runtime)
    # As a head would give it back: tuples and numbers as JSON has them.
    return json.loads(envelope.dump(made))


def extended(
    known: Mapping[str, Any] | None, fresh: Sequence[rollouts.Record]
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The digests of `fresh`, and the `known` summary with them; None where it has to be built from every record."""
    digests = [digest(record) for record in fresh]
    return digests, rules.extend(known, digests) if known is not None else None


async def _rebuild(
    store: port.ObjectStore,
    first: Mapping[str, Any],
    runs: Mapping[str, Any],
    known: Sequence[dict[str, Any]],
    runtime: Runtime,
) -> dict[str, Any]:
    """The summary from every record: for a late or replaced run that the summary no longer holds in detail."""
    have = {(one["run"], one["attempt"]) for one in known}
    project, memory, rollout = first["project"], first["memory"], first["rollout"]
    wanted = [
        keys.record(project, memory, rollout, run, int(entry["attempt"]))
        for run, entry in sorted(runs.items())
        if (run, int(entry["attempt"])) not in have
    ]
    digests = list(known)
    # One record at a time: a rollout's records together may not fit in memory.
    for key in wanted:
        for record in await load(store, [key]):
            digests.append(await runtime.offload(digest, record))
    return await runtime.offload(rules.build, digests)


def _same_rules(summary: Mapping[str, Any] | None) -> bool:
    return summary is not None and summary.get("engine") == rules.ENGINE


def has(entry: Mapping[str, Any] | None, attempt: int) -> bool:
    return entry is not None and (
        int(entry["attempt"]) == attempt or any(int(at) == attempt for at, _, _ in entry.get("earlier", ()))
    )
