"""Rescan: apply the present rules of redaction to what was kept under older ones.

    look → kept answers, models' statements (CAS) → records (CAS) → summaries built anew (CAS) → mark → … a revision

A record is rewritten under its own key: it is the same run, as sameness is judged by what was received, and nothing
names a record by its content. A kept answer keeps its name too, which is the hash of what was asked.

Every step may be repeated, and a rescan that died is finished by the next. What was derived from a record may hold a
secret without the name that tells it there, so nobody could find it any more once the record is clean. Hence the
order: what a model said is rewritten first, by the very secrets that its project's records hold; and a rewritten
record says which rules rewrote it, its rollout's head from how many such records its summary was made. What a rescan
can not reach is told (docs/REDACTION.md): earlier revisions, versions that a bucket keeps, claims, dead letters, the
bus, workspaces.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runlore import clock, errors
from runlore.commit import heads, keys, marks, puts, redaction, revisions, rollouts
from runlore.consumers import record as record_stage
from runlore.consumers import summarize
from runlore.consumers.runtime import SEQUENTIAL, Runtime
from runlore.events import records
from runlore.memory import redact
from runlore.models import answers
from runlore.store import port as store_port

RECORD, SUMMARY, REVISION = "record", "summary", "revision"
STATEMENTS, ANSWER = "statements of a model", "kept answer"
FINDINGS_MAX = 10_000
"""Findings that a report lists; it counts them all."""
SECRETS_MAX = 100_000
"""Secrets of records that are looked for in what models said of them, letter by letter."""
LITERAL_CHARS_MIN = 8
"""A shorter one may be a word of its own elsewhere."""

Progress = Callable[[int, str], None]
Rollout = tuple[str, str]
"""Memory, rollout."""


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
    answers: int = 0
    """Kept answers, and models' statements of rollouts, that were rewritten."""
    marked: int = 0
    """Rollouts that consolidation has to take in again."""

    def add(self, one: Finding) -> None:
        self.found += 1
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(one)


@dataclass
class _Seen:
    """What the records showed."""

    dirty: list[str] = field(default_factory=list)
    """The records to rewrite."""
    rewritten: dict[Rollout, set[str]] = field(default_factory=lambda: defaultdict(set))
    """The records that the present rules rewrote, before or now."""
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    """Secret → placeholder. Never kept, never shown."""


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
        self._key: bytes | None = None

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
        if apply or await self._store.get(where):
            self._key = await redaction.read(self._store, self._project)
        seen = await self._look(report, every=every, on_progress=on_progress)
        await self._answers(report, seen, apply=apply)
        await self._statements(report, seen, apply=apply)
        if apply:
            for where in seen.dirty:
                await self._replace(where)
                report.rewritten += 1
                on_progress(report.rewritten, "rewritten")
        counters = await self._summaries(report, seen, apply=apply, on_progress=on_progress)
        for memory, found in sorted(counters.items()):
            await self._revision(report, seen, memory, found, apply=apply)
        return report

    # --- records ------------------------------------------------------------------------------------------

    async def _look(self, report: Report, *, every: bool, on_progress: Progress) -> _Seen:
        now = redact.rules()
        seen = _Seen()
        async for row in self._store.list(f"{self._project}/{keys.RECORDS}/"):
            memory, rollout = row.key.split("/")[3:5]
            if self._memory not in (None, memory):
                continue
            stored = await self._store.get(row.key)
            if stored is None:
                continue
            record = rollouts.decode(row.key, stored.body)
            if record.meta.get("rescanned") == now:
                seen.rewritten[memory, rollout].add(row.key)
            if record.meta.get("rules") == now and not every:
                continue
            report.records += 1
            on_progress(report.records, "records")
            _, kinds = await self._runtime.offload(rewritten, record, self._key)
            if not kinds:
                continue
            report.add(Finding(RECORD, row.key, memory, rollout, kinds))
            seen.dirty.append(row.key)
            seen.rewritten[memory, rollout].add(row.key)
            for secret, put in redact.secrets(record.line, self._key).items():
                if len(secret) >= LITERAL_CHARS_MIN and len(seen.secrets) < SECRETS_MAX:
                    seen.secrets[secret] = put
        return seen

    async def _replace(self, where: str) -> None:
        """Put a record's new bytes over those that are there: also over those that another rescan put."""

        async def put() -> None:
            there = await self._store.get(where)
            if there is None:
                return
            present = rollouts.decode(where, there.body)
            wanted, kinds = await self._runtime.offload(rewritten, present, self._key)
            if kinds:
                await self._over(where, wanted.encode(), there.etag)

        await puts.again(put, what=f"the record {where}", key=where)

    async def _over(self, where: str, raw: bytes, etag: str) -> None:
        try:
            await self._store.compare_and_set(where, raw, etag)
        except errors.PreconditionFailed as exc:
            raise errors.WriteConflict(f"{where} changed meanwhile", key=where) from exc

    # --- what models said ---------------------------------------------------------------------------------

    async def _answers(self, report: Report, seen: _Seen, *, apply: bool) -> None:
        """Those of every memory: an answer's name does not say whose it is."""
        async for row in self._store.list(keys.answers(self._project)):
            if await self._answer(report, seen, row.key, apply=False):
                report.answers += apply
                if apply:
                    await puts.again(
                        lambda where=row.key: self._answer(None, seen, where, apply=True),
                        what=f"the answer {row.key}",
                        key=row.key,
                    )

    async def _answer(self, report: Report | None, seen: _Seen, where: str, *, apply: bool) -> bool:
        there = await self._store.get(where)
        if there is None:
            return False
        kinds: Counter[str] = Counter()

        def change(line: str) -> str:
            kept, found = hidden(line, seen.secrets, self._key)
            kinds.update(found)
            return kept

        raw = await self._runtime.offload(answers.rewritten, where, there.body, change)
        if kinds and report is not None:
            report.add(Finding(ANSWER, where, self._memory or "*", None, dict(kinds)))
        if kinds and apply:
            await self._over(where, raw, there.etag)
        return bool(kinds)

    async def _statements(self, report: Report, seen: _Seen, *, apply: bool) -> None:
        async for memory, rollout in self._rollouts():
            head = await summarize.read(self._store, self._project, memory, rollout)
            _, kinds = await self._part(head, seen)
            if not kinds:
                continue
            report.add(Finding(STATEMENTS, head.key, memory, rollout, kinds))
            if apply:
                await self._moved(memory, rollout, seen)
                report.answers += 1

    async def _part(self, head: heads.Head, seen: _Seen) -> tuple[dict[str, Any], dict[str, int]]:
        """What to change of a head for the sake of what a model said, and how much is hidden of each kind."""
        part = head.body.get("model")
        if not part:
            return {}, {}
        kept, kinds = await self._runtime.offload(hidden, json.dumps(part), seen.secrets, self._key)
        return ({"model": json.loads(kept)} if kinds else {}), kinds

    # --- summaries ----------------------------------------------------------------------------------------

    async def _summaries(
        self, report: Report, seen: _Seen, *, apply: bool, on_progress: Progress
    ) -> dict[str, dict[str, int]]:
        """Each memory's rollouts with the counters of their heads, once no summary holds what is hidden."""
        found: dict[str, dict[str, int]] = {}
        async for memory, rollout in self._rollouts():
            head = await summarize.read(self._store, self._project, memory, rollout)
            kinds = (
                await self._runtime.offload(redact.line, json.dumps(head.body.get("summary")), self._key)
            )[1]
            if kinds:
                report.add(Finding(SUMMARY, head.key, memory, rollout, kinds))
            if apply and (kinds or len(seen.rewritten[memory, rollout]) > noted(head)):
                head = await self._moved(memory, rollout, seen, rebuild=True)
                report.rebuilt += 1
            found.setdefault(memory, {})[rollout] = head.counter
            on_progress(report.records, "summaries")
        return found

    async def _moved(self, memory: str, rollout: str, seen: _Seen, *, rebuild: bool = False) -> heads.Head:
        """The rollout's head with nothing to hide in what a model said; `rebuild`: its summary made anew, too."""
        for restart in range(summarize.RESTARTS_MAX):
            head = await summarize.read(self._store, self._project, memory, rollout)
            changes, _ = await self._part(head, seen)
            told = {**(head.body.get("rescanned") or {}), "counter": head.counter + 1}
            if rebuild:
                summary = await summarize.rebuilt(self._store, head, self._runtime)
                count = len(seen.rewritten[memory, rollout])
                changes |= {"summary": summary, "subject": (summary or {}).get("subject")}
                told |= {"rules": redact.rules(), "records": count}
            if not changes:
                return head
            try:
                changes["rescanned"] = told
                return await heads.move(self._store, head, changes, fmt=rollouts.HEAD_FORMAT)
            except errors.HeadMoved:
                await clock.sleep(0.005 * restart * clock.jitter())
        raise errors.StoreUnavailable(
            f"the head of rollout {rollout} in {self._project}/{memory} is contended"
        )

    async def _revision(
        self, report: Report, seen: _Seen, memory: str, counters: Mapping[str, int], *, apply: bool
    ) -> None:
        """What the present revision holds; and a mark for whatever it does not cover as it stands now."""
        head = await self._reader.head(self._project, memory)
        revision = await self._reader.current(head, self._project, memory)
        covered: dict[str, int] = {}
        if revision is not None:
            covered = {name: int(entry["counter"]) for name, entry in revision.map("coverage").items()}
            for part, entry in revision.map("files").items():
                body = json.dumps(revision.text(entry["sha256"]))
                _, kinds = await self._runtime.offload(hidden, body, seen.secrets, self._key)
                if kinds:
                    where = f"revision {revision.number}: {part}"
                    report.add(Finding(REVISION, where, memory, None, kinds))
        due = {name: counter for name, counter in counters.items() if covered.get(name, 0) < counter}
        if apply and due:
            await marks.put(self._store, self._project, memory, due, counters=due)
            report.marked += len(due)

    async def _rollouts(self) -> AsyncIterator[Rollout]:
        async for row in self._store.list(f"{self._project}/{keys.ROLLOUTS}/"):
            memory, rollout = row.key.removesuffix(".json").split("/")[3:5]
            if self._memory in (None, memory):
                yield memory, rollout


def noted(head: heads.Head) -> int:
    """How many records that the present rules rewrote a head's summary was made from, at least."""
    told = head.body.get("rescanned") or {}
    return int(told["records"]) if told.get("rules") == redact.rules() else 0


def hidden(line: str, secrets: Mapping[str, str], key: bytes | None) -> tuple[str, dict[str, int]]:
    """A line of JSON without these secrets, and without what the rules find; how many of each kind. Pure."""
    view = records.decoded(line)
    # A longer one first: a shorter may be a part of it.
    known = sorted((one for one in secrets if one in view), key=len, reverse=True)
    counts: Counter[str] = Counter()

    def literally(value: str) -> str:
        for one in known:
            if one in value:
                counts[redact.kind_of(secrets[one])] += value.count(one)
                value = value.replace(one, secrets[one])
        return value

    kept, found = redact.line(records.map_strings(line, literally) if known else line, key)
    return kept, record_stage.counted(counts, found)


def rewritten(record: rollouts.Record, key: bytes | None) -> tuple[rollouts.Record, dict[str, int]]:
    """The record by the present rules, and how much more they hide of each kind. Pure."""
    line, kinds = redact.line(record.line, key)
    meta: dict[str, Any] = dict(record.meta)
    extra: dict[str, int] = {}
    if meta.get("extra"):
        kept, extra = redact.line(json.dumps(meta["extra"]), key)
        meta["extra"] = json.loads(kept)
    more = record_stage.counted(kinds, extra)
    now = redact.rules()
    meta |= {"redacted": record_stage.counted(meta.get("redacted", {}), more), "rules": now, "rescanned": now}
    return rollouts.Record(
        {name: value for name, value in meta.items() if value not in (None, {}, [])}, line
    ), more
