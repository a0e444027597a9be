"""Heads: the one mutable object of a line, moved by compare-and-set. The only code that writes one.

Invariant 3: a head moves only from the version that its writer read, and its counter only grows. Fields that
this version of Runlore does not know survive every move, because the next body starts from the body read.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from runlore import clock, errors, telemetry
from runlore.commit import age, puts
from runlore.events import envelope
from runlore.store import port

LEAP = 1_000_000
"""How far beyond what is known of a lost head's counter the next one begins: moves that left no trace are fewer."""
CONFLICT_RETRIES_MAX = 8
"""How often one move is sent again after a 409 or a 503 (nothing landed) before the caller starts over."""

Changes = Mapping[str, Any] | Callable[[str], Mapping[str, Any]]
"""The fields to change; or what gives them for the time at which the body is made."""


@dataclass(frozen=True)
class Head:
    """One version of a head as read: `etag` is None where there is none yet."""

    key: str
    body: dict[str, Any]
    etag: str | None
    read_at: dt.datetime = field(default_factory=clock.now, compare=False)
    """When the read began: from then on what it names is kept for T (`commit/age.py`)."""

    @property
    def counter(self) -> int:
        return int(self.body.get("counter", 0))


async def read(store: port.ObjectStore, key: str, *, fmt: str) -> Head:
    """The head at `key`, or one with counter 0 where there is none.

    `fmt` is its format, like `runlore.rollout/1`. Raises `errors.Fatal` on a format that this version does
    not know: writing over it could destroy what a newer version keeps there.
    """
    began = clock.now()
    return replace(parse(key, await store.get(key), fmt=fmt), read_at=began)


def parse(key: str, stored: port.Stored | None, *, fmt: str) -> Head:
    """The head in `stored`, checked as `read` does."""
    if stored is None:
        return Head(key, {}, None)
    try:
        body = envelope.kept(stored.body)
        found = body["format"]
        # Every version of every format has it, and no move may begin from one that is not there.
        if type(body.get("counter", 0)) is not int or body.get("counter", 0) < 0:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise errors.Corrupt(f"the head {key} is not a head", key=key) from None
    if found != fmt:
        raise errors.Fatal(
            f"the head {key} has the format {found!r}; this Runlore reads {fmt!r}",
            hint="run the newer version of Runlore that wrote it",
        )
    return Head(key, body, stored.etag)


async def move(
    store: port.ObjectStore,
    head: Head,
    changes: Changes,
    *,
    fmt: str,
    began: dt.datetime | None = None,
    above: int = 0,
) -> Head:
    """Move `head` by one: its body with `changes` over it and its counter raised.

    `above`: a counter that this line has had already, where the head was lost or put back: the new one lies beyond it.
    `began` is when the writer first read what the new version refers to, where that was before it read this
    head. Raises `errors.HeadMoved` when another writer was first, or when the reply was lost: either way the
    caller starts again from the head, and finds there whether its own write landed. Raises
    `errors.CommitTooLate` when what it refers to may be gone (the age rule): nothing was sent, and the caller
    starts again from nothing.
    """
    began = min(head.read_at, began or head.read_at)
    refused: errors.StoreUnavailable | None = None
    for attempt in range(CONFLICT_RETRIES_MAX):
        now = clock.now()
        stamp = now.isoformat(timespec="microseconds")
        changed = changes(stamp) if callable(changes) else changes
        body = {**head.body, **changed, "format": fmt, "counter": max(head.counter, above) + 1}
        body["moved_at"] = stamp
        raw, guard = envelope.dump(body), age.guard(began, now)
        try:
            etag = await store.compare_and_set(head.key, raw, head.etag, guard=guard)
            return Head(head.key, body, etag, now)
        except age.StaleBody:
            continue  # Paused between making and sending it: its dates would be wrong.
        except (errors.WriteConflict, errors.StoreUnavailable) as exc:
            refused = exc if isinstance(exc, errors.StoreUnavailable) else None
            await puts.wait(attempt)
        except errors.CommitTooLate as exc:
            telemetry.CONFLICTS.inc(kind=exc.kind)
            raise
        except (errors.PreconditionFailed, errors.OutcomeUnknown) as exc:
            lost = isinstance(exc, errors.OutcomeUnknown)
            telemetry.CONFLICTS.inc(kind=exc.kind if lost else errors.HeadMoved.kind)
            raise errors.HeadMoved(f"the head {head.key} moved past {head.counter}", key=head.key) from exc
    raise refused or errors.HeadMoved(f"the head {head.key} is contended", key=head.key)


async def gone(store: port.ObjectStore, key: str, message: str, *, hint: str) -> errors.RunloreError:
    """What to raise where a head was not there, and something is that only a head could have led to.

    `errors.HeadLost`; `errors.HeadMoved` where the head is there by now: whoever read it may have stood still since.
    """
    if await store.get(key) is not None:
        return errors.HeadMoved(f"the head {key} came to be meanwhile", key=key)
    return errors.HeadLost(message, hint=hint, key=key)
