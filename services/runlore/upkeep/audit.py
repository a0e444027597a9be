"""Audit: who did what, when, why and with what result. Beside the path of a run; people's acts only.

An act is two entries of the log of acts (`acts.py`): `begun` is in it before its effect, `ended` after it. So no effect
is without a trace, also where the process died in between: what has no end may have taken effect, or not. They are
chained: `runlore audit verify` finds one that was removed or altered.

Before there was that log an act was two objects, `<project>/audit/<month>/<id>.begun.json` and `….ended.json`; they
are read still, and told as not chained (`number` is None).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import pwd
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from runlore import clock, errors
from runlore.commit import keys
from runlore.events import envelope
from runlore.memory import redact
from runlore.settings import Settings
from runlore.store import port
from runlore.upkeep import acts, chain

log = structlog.get_logger("runlore.audit")

FORMAT = "runlore.audit/1"
BEGUN, ENDED = "begun", "ended"
DONE, FAILED, UNKNOWN = "done", "failed", "unknown"
LISTED_MAX = 100
"""Items of a list that an entry keeps; it says how many there were."""
REASON_CHARS_MAX = 2000
READ_BATCH = 256


@dataclass
class Act:
    """An act under way: what came of it is put into `result`."""

    entry: str
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One act as it is kept. `state` is `done`, `failed`, or `unknown` where its end was not written."""

    id: str
    at: str
    by: Mapping[str, str]
    what: str
    reason: str | None
    projects: tuple[str, ...]
    arguments: Mapping[str, Any]
    state: str
    result: Mapping[str, Any]
    number: int | None = None
    """Of its beginning in the log of acts; None where it was kept before there was one."""
    ended_at: str | None = None

    def is_by(self, actor: str) -> bool:
        """Whether `actor` names who did it: a user, `user@host`, a key's id or name, a service account."""
        return names_actor(self.by, actor)


def names_actor(by: Mapping[str, str], actor: str) -> bool:
    return actor in by.values() or actor == f"{by.get('user')}@{by.get('host')}"


def who(settings: Settings) -> dict[str, str]:
    """Who acts: the user of this machine, the machine, and the bus's user where there is one. No secret.

    It says what the process knows of itself, and proves nothing: that is what the store's and the bus's own
    access logs are for.
    """
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        # A container runs as a number that has no name.
        user = f"uid-{os.getuid()}"
    found = {"user": user, "host": socket.gethostname()}
    if settings.bus == "kafka" and settings.kafka_username:
        found["kafka_user"] = settings.kafka_username
    return found


@contextlib.asynccontextmanager
async def acting(
    store: port.ObjectStore,
    *,
    by: Mapping[str, str],
    what: str,
    projects: Sequence[str] = (),
    reason: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> AsyncIterator[Act]:
    """Do one act between its two entries.

    Raises `errors.StoreUnavailable` or `errors.Blocked`, before the act, where its beginning can not be written:
    what would leave no trace is not done. Where only its end can not be written, the act stands and is told.
    """
    names = sorted(set(projects))
    act = Act(clock.new_id())
    body = {
        "id": act.entry,
        "at": clock.now().isoformat(timespec="milliseconds"),
        "by": dict(by),
        "what": what,
        "reason": redact.text(reason)[:REASON_CHARS_MAX] if reason else None,
        "projects": names[:LISTED_MAX],
        "arguments": _told(arguments or {}),
    }
    await acts.append(store, acts.BEGUN, body)
    state, result = UNKNOWN, act.result
    try:
        yield act
        state = DONE
    except errors.RunloreError as exc:
        state, result = FAILED, {**act.result, "error": exc.as_dict()}
        raise
    except Exception as exc:
        state, result = FAILED, {**act.result, "error": {"kind": "internal", "message": type(exc).__name__}}
        raise
    finally:
        # Interrupted, it has no end: whether it took effect is not known here.
        if state != UNKNOWN:
            ended = {"id": act.entry, "at": clock.now_iso(), "state": state, "result": _told(result)}
            try:
                await acts.append(store, acts.ENDED, ended)
            except errors.RunloreError as exc:
                log.warning("the end of an act is not in the audit log", what=what, kind=exc.kind)


async def newest_first(
    store: port.ObjectStore,
    *,
    project: str | None = None,
    since: dt.datetime | None = None,
    actor: str | None = None,
    kept: chain.Kept[acts.Entry] | None = None,
) -> AsyncIterator[Entry]:
    """Acts, as far as somebody reads on: those in the log, newest first, then those from before there was one.

    `project`: also where it was one of several. `actor`: as `Entry.is_by`. Raises `errors.Corrupt`.
    """

    def is_meant(one: Entry) -> bool:
        return (project is None or project in one.projects) and (actor is None or one.is_by(actor))

    least = since.astimezone(dt.UTC).isoformat(timespec="milliseconds") if since is not None else ""
    ends: dict[str, Mapping[str, Any]] = {}
    async for link in acts.newest_first(store, since=least, kept=kept):
        if link.kind == acts.ENDED:
            ends[str(link.body.get("id"))] = link.body
        elif link.kind == acts.BEGUN:
            one = _chained(link, ends.pop(str(link.body.get("id")), {}))
            if one.at >= least and is_meant(one):
                yield one
    async for one in _older(store, project, since):
        if is_meant(one):
            yield one


def _chained(link: acts.Entry, ended: Mapping[str, Any]) -> Entry:
    try:
        return _entry(link.body, ended, number=link.number)
    except (KeyError, TypeError):
        raise errors.Corrupt(f"the entry {link.number} of {acts.WHAT} is not one") from None


async def read_all(
    store: port.ObjectStore, *, project: str | None = None, since: dt.datetime | None = None
) -> list[Entry]:
    """Every act, oldest first; those of one project, and since a time."""
    found = [one async for one in newest_first(store, project=project, since=since)]
    return sorted(found, key=lambda one: one.id)


async def _older(
    store: port.ObjectStore, project: str | None, since: dt.datetime | None
) -> AsyncIterator[Entry]:
    """Those that are not chained, newest first."""
    places = await store.children("") if project is None else [keys.OPERATIONS, project]
    months: dict[str, list[str]] = {}
    for place in sorted(set(places)):
        if place == keys.DEAD_LETTERS:
            continue
        for month in await store.children(keys.audit(place)):
            if since is None or month >= f"{since:%Y-%m}":
                months.setdefault(month, []).append(f"{keys.audit(place)}{month}/")
    for month in sorted(months, reverse=True):
        found = [one for prefix in months[month] for one in await _read(store, prefix, since)]
        for one in sorted(found, key=lambda one: one.id, reverse=True):
            yield one


async def _read(store: port.ObjectStore, prefix: str, since: dt.datetime | None) -> list[Entry]:
    least = f"{int(since.timestamp() * 1000):012x}" if since else ""
    halves: dict[str, dict[str, dict[str, Any]]] = {}
    rows = [row.key async for row in store.list(prefix) if row.key.rpartition("/")[2][:12] >= least]
    for at in range(0, len(rows), READ_BATCH):
        batch = rows[at : at + READ_BATCH]
        for key, one in zip(batch, await store.get_many(batch), strict=True):
            if one is not None:
                name, part = key.rpartition("/")[2].split(".")[:2]
                halves.setdefault(name, {})[part] = parse(key, one.body)
    # An end without a beginning can not be: the beginning is put first and nothing deletes it.
    return [_entry(both[BEGUN], both.get(ENDED, {})) for both in halves.values() if BEGUN in both]


def _entry(begun: Mapping[str, Any], ended: Mapping[str, Any], number: int | None = None) -> Entry:
    return Entry(
        begun["id"],
        begun["at"],
        begun["by"],
        begun["what"],
        begun["reason"],
        tuple(begun["projects"]),
        begun["arguments"],
        ended.get("state", UNKNOWN),
        ended.get("result", {}),
        number,
        ended.get("at"),
    )


def parse(key: str, raw: bytes) -> dict[str, Any]:
    """One half of an act that is not chained. Raises `errors.Corrupt`."""
    wanted = {
        BEGUN: ("at", "by", "what", "reason", "projects", "arguments"),
        ENDED: ("at", "state", "result"),
    }
    name, _, part = key.rpartition("/")[2].removesuffix(".json").partition(".")
    try:
        body = envelope.kept(raw)
        if body["format"] == FORMAT and body["id"] == name and all(one in body for one in wanted[part]):
            return body
    except (ValueError, KeyError, TypeError):
        pass
    raise errors.Corrupt(f"the audit entry {key} is not one", key=key)


def _told(value: Any) -> Any:
    """`value` as JSON that may be kept: secrets redacted, long lists cut."""
    if isinstance(value, str):
        return redact.text(value)[:REASON_CHARS_MAX]
    if isinstance(value, Mapping):
        return {str(name): _told(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        kept = [_told(one) for one in list(value)[:LISTED_MAX]]
        return kept if len(value) <= LISTED_MAX else [*kept, f"… {len(value)} in all"]
    return value if value is None or isinstance(value, bool | int | float) else str(value)
