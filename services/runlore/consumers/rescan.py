"""Rescan: apply the present rules of redaction to what was kept under older ones.

    records (CAS, in place) → the rollout's head, its summary built anew → mark → … consolidation makes a revision

A record is rewritten under its own key: it is the same run, as sameness is judged by what was received, and nothing
names a record by its content. Every step may be repeated: a rescan that died goes on where a head or a revision still
holds what the rules hide, or where a head stands above what the revision covers. What it can not reach is told
(docs/REDACTION.md): earlier revisions, versions that a bucket keeps, claims, dead letters, the bus, workspaces.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runlore import clock, errors
from runlore.commit import heads, keys, marks, puts, redaction, revisions, rollouts
from runlore.consumers import record as record_stage
from runlore.consumers import summarize
from runlore.consumers.runtime import SEQUENTIAL, Runtime
from runlore.memory import redact
from runlore.store import port as store_port

RECORD, SUMMARY, REVISION = "record", "summary", "revision"
FINDINGS_MAX = 10_000
"""Findings that a report lists; it counts them all."""

Progress = Callable[[int, str], None]


@dataclass(frozen=True)
class Finding:
    """One object in which the present rules hide more: what and where, never the secret."""

    what: str
    where: str
    memory: str
    rollout: str | None
    kinds: Mapping[str, int]


@dataclass
class Report:
    """What a rescan of one project found, and did."""

    project: str
    records: int = 0
    """Records that were looked at: those kept under other rules, or all."""
    found: int = 0
    findings: list[Finding] = field(default_factory=list)
    rewritten: int = 0
    rebuilt: int = 0
    """Rollouts whose summary was built anew."""
    marked: int = 0
    """Rollouts that consolidation has to take in again."""

    def add(self, one: Finding) -> None:
        self.found += 1
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(one)


class Rescan:
    """Of one project, or of one memory of it."""

    def __init__(
        self,
        store: store_port.ObjectStore,
        project: str,
        memory: str | None = None,
        *,
        runtime: Runtime = SEQUENTIAL,
    ) -> None:
        self._store, self._project, self._memory = store, project, memory
        self._runtime = runtime
        self._reader = revisions.Reader(store)

    async def scan(
        self,
        *,
        apply: bool = False,
        every: bool = False,
        on_progress: Progress = lambda count, what: None,
    ) -> Report:
        """Find what the present rules hide in what is kept; `apply`: hide it. `every`: also in records of these rules.

        Raises `errors.StoreUnavailable`, `errors.Blocked`, `errors.Corrupt`: what was done by then stands, and
        another rescan goes on from there.
        """
        report = Report(self._project)
        # Without a key there was no placeholder with a hash yet, and a look must not draw one.
        where = keys.redaction(self._project)
        key = (
            await redaction.read(self._store, self._project)
            if apply or await self._store.get(where)
            else None
        )
        dirty = {
            (one.memory, one.rollout)
            async for one in self._records(report, key, apply=apply, every=every, on_progress=on_progress)
        }
        by_memory: dict[str, dict[str, int]] = {}
        async for memory, rollout in self._rollouts():
            head = await summarize.read(self._store, self._project, memory, rollout)
            kinds = await self._hidden(json.dumps(head.body.get("summary")))
            if kinds:
                report.add(Finding(SUMMARY, head.key, memory, rollout, kinds))
            if apply and (kinds or (memory, rollout) in dirty):
                head = await self._rebuild(memory, rollout)
                report.rebuilt += 1
            by_memory.setdefault(memory, {})[rollout] = head.counter
            on_progress(report.records, "summaries")
        for memory, counters in sorted(by_memory.items()):
            await self._revision(report, memory, counters, apply=apply)
        return report

    async def _records(
        self, report: Report, key: bytes | None, *, apply: bool, every: bool, on_progress: Progress
    ) -> AsyncIterator[Finding]:
        now = redact.rules()
        async for row in self._store.list(f"{self._project}/{keys.RECORDS}/"):
            memory, rollout = row.key.split("/")[3:5]
            if self._memory not in (None, memory):
                continue
            stored = await self._store.get(row.key)
            if stored is None:
                continue
            record = rollouts.decode(row.key, stored.body)
            if record.meta.get("rules") == now and not every:
                continue
            report.records += 1
            on_progress(report.records, "records")
            changed, kinds = await self._runtime.offload(rewritten, record, key)
            if not kinds:
                continue
            one = Finding(RECORD, row.key, memory, rollout, kinds)
            report.add(one)
            if apply:
                await self._replace(row.key, changed, key)
                report.rewritten += 1
            yield one

    async def _replace(self, where: str, changed: rollouts.Record, key: bytes | None) -> None:
        """Put a record's new bytes over those that were read; where another rescan was first, over its."""

        async def put() -> None:
            there = await self._store.get(where)
            if there is None:
                return
            present = rollouts.decode(where, there.body)
            wanted, kinds = await self._runtime.offload(rewritten, present, key)
            if kinds:
                try:
                    await self._store.compare_and_set(where, wanted.encode(), there.etag)
                except errors.PreconditionFailed as exc:
                    raise errors.WriteConflict(f"the record {where} changed meanwhile", key=where) from exc

        await puts.again(put, what=f"the record {where}", key=where)

    async def _rebuild(self, memory: str, rollout: str) -> heads.Head:
        """The rollout's head with its summary made from its records as they are now."""
        for restart in range(summarize.RESTARTS_MAX):
            head = await summarize.read(self._store, self._project, memory, rollout)
            summary = await summarize.rebuilt(self._store, head, self._runtime)
            try:
                return await heads.move(
                    self._store,
                    head,
                    {"summary": summary, "subject": (summary or {}).get("subject")},
                    fmt=rollouts.HEAD_FORMAT,
                )
            except errors.HeadMoved:
                await clock.sleep(0.005 * restart * clock.jitter())
        raise errors.StoreUnavailable(
            f"the head of rollout {rollout} in {self._project}/{memory} is contended"
        )

    async def _revision(
        self, report: Report, memory: str, counters: Mapping[str, int], *, apply: bool
    ) -> None:
        """What the present revision holds; and a mark for whatever it does not cover as it stands now."""
        head = await self._reader.head(self._project, memory)
        revision = await self._reader.current(head, self._project, memory)
        covered: dict[str, int] = {}
        if revision is not None:
            covered = {name: int(entry["counter"]) for name, entry in revision.map("coverage").items()}
            for part, entry in revision.map("files").items():
                body = revision.text(entry["sha256"])
                kinds = await self._hidden(json.dumps(body))
                if kinds:
                    where = f"revision {revision.number}: {part}"
                    report.add(Finding(REVISION, where, memory, None, kinds))
        due = {name: counter for name, counter in counters.items() if covered.get(name, 0) < counter}
        if apply and due:
            await marks.put(self._store, self._project, memory, due, counters=due)
            report.marked += len(due)

    async def _hidden(self, line: str) -> dict[str, int]:
        """How many secrets of each kind a line of JSON holds."""
        return (await self._runtime.offload(redact.line, line, None))[1]

    async def _rollouts(self) -> AsyncIterator[tuple[str, str]]:
        async for row in self._store.list(f"{self._project}/{keys.ROLLOUTS}/"):
            memory, rollout = row.key.removesuffix(".json").split("/")[3:5]
            if self._memory in (None, memory):
                yield memory, rollout


def rewritten(record: rollouts.Record, key: bytes | None) -> tuple[rollouts.Record, dict[str, int]]:
    """The record by the present rules, and how much more they hide of each kind. Pure."""
    line, kinds = redact.line(record.line, key)
    meta: dict[str, Any] = dict(record.meta)
    extra: dict[str, int] = {}
    if meta.get("extra"):
        kept, extra = redact.line(json.dumps(meta["extra"]), key)
        meta["extra"] = json.loads(kept)
    more = record_stage.counted(kinds, extra)
    meta |= {"redacted": record_stage.counted(meta.get("redacted", {}), more), "rules": redact.rules()}
    return rollouts.Record(
        {name: value for name, value in meta.items() if value not in (None, {}, [])}, line
    ), more
