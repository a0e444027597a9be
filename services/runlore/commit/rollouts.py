"""A rollout's head and records: which runs it has, and its summary.

The head of a rollout holds the membership of its runs (invariant 2: a run is recognised by run and attempt,
never by its body) and the summary itself, so that a run costs two writes: its record and the head.

A record is one object: a line of metadata, then the run's own line, exactly as it is kept.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runlore import errors
from runlore.commit import age, keys, puts
from runlore.events import envelope
from runlore.store import port

HEAD_FORMAT = "runlore.rollout/1"
RECORD_FORMAT = "runlore.record/1"


@dataclass(frozen=True)
class Record:
    """One recorded run: its metadata (see `consumers/record.py`) and its line without the newline."""

    meta: Mapping[str, Any]
    line: str
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What was computed from it once (its digest), so that it is not computed twice."""

    @property
    def run(self) -> str:
        return str(self.meta["run"])

    @property
    def attempt(self) -> int:
        return int(self.meta["attempt"])

    @property
    def received(self) -> str:
        return str(self.meta["received"])

    def encode(self) -> bytes:
        return (
            envelope.dump({"format": RECORD_FORMAT, **self.meta}) + b"\n" + self.line.encode("ascii") + b"\n"
        )


def decode(key: str, raw: bytes) -> Record:
    """The record in `raw`. Raises `errors.Corrupt`."""
    try:
        head, line = raw.decode("ascii").split("\n", 1)
        meta = envelope.kept(head)
        if meta.pop("format") != RECORD_FORMAT:
            raise ValueError
        if type(meta["attempt"]) is not int or not {"run", "received"} <= meta.keys():
            raise ValueError
        return Record(meta, line.removesuffix("\n"))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise errors.Corrupt(f"the record {key} is not a record", key=key) from None


async def put_record(
    store: port.ObjectStore, key: str, record: Record, *, began: dt.datetime
) -> tuple[Record, bool]:
    """Put `record` if nothing is at `key`; (the record that is there, whether this call put it).

    `began`: when the head was read that did not say that the run is erased. Later than the age rule allows nothing is
    put (`errors.CommitTooLate`): an erasure since then looked for records for the last time.

    Its body is a function of the event, so after a lost reply the same put is simply sent again; after a refusal
    (503) too, as giving a whole batch up for one would begin it anew, and at some rate of refusals never end. Raises
    `errors.RunConflict` when the record that is there was received with other bytes.
    """
    raw = record.encode()

    async def put() -> tuple[Record, bool]:
        try:
            await store.compare_and_set(key, raw, None, guard=age.guard(began))
            return record, True
        except errors.PreconditionFailed:
            there = await store.get(key)
            if there is None:
                raise errors.WriteConflict(f"the record {key} went between two looks", key=key) from None
            known = decode(key, there.body)
            if known.received != record.received:
                raise conflict(record.run, record.attempt) from None
            return known, False

    return await puts.again(put, what=f"the record {key}", key=key)


def conflict(run: str, attempt: int) -> errors.RunConflict:
    return errors.RunConflict(
        f"run {run} attempt {attempt} was recorded before with other bytes",
        hint="a corrected run needs a higher `attempt`; drop this one if it was sent by mistake",
        run=run,
        attempt=attempt,
    )


async def recorded(
    store: port.ObjectStore, project: str, memory: str, rollout: str
) -> dict[str, dict[int, str]]:
    """What a LIST shows of a rollout: run alias → attempt → key of the record."""
    found: dict[str, dict[int, str]] = {}
    async for row in store.list(keys.records(project, memory, rollout)):
        run, attempt = keys.record_name(row.key)
        found.setdefault(run, {})[attempt] = row.key
    return found
