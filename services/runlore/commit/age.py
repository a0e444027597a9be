"""The age rule: how long what is no longer named stays, and when a writer is too late to commit. Pure.

Invariant 7, and why a sweep needs neither a lock nor a lease:

- A writer refers only to what some head names when it reads that head, or to what it wrote itself. It *began*
  at the first of those reads.
- What a head stops naming stays for `SUPERSEDED_KEPT` more.
- A commit that began longer ago than `TERM` less `WINDOW` is refused. The request is signed *before* its age
  is checked, so a process that is paused after the check sends a signature which the store refuses itself
  once it is older than `WINDOW`. Nothing may sign it anew without checking again: no retries below this.
- So a commit lands at most `TERM` after it began, and a sweep takes only what was superseded, or written
  without ever being named, longer ago than that.

A head's body is dated when it is made, not when it lands: it is refused once it is older than `WINDOW` when
its age is checked, so the date is at most two windows early; `SUPERSEDED_KEPT` makes up for that.
`tests/simulation/test_sweep.py` leaves out each of these in turn, and finds the hole.
"""

from __future__ import annotations

import datetime as dt

from runlore import clock, errors
from runlore.store import port

TERM = dt.timedelta(hours=72)
"""T: the longest that a writer may take, and that what it refers to is kept for."""
WINDOW = dt.timedelta(minutes=15)
"""How old a request's signature may be before the store refuses it (15 minutes on S3)."""
SUPERSEDED_KEPT = TERM + 2 * WINDOW
"""How long a version stays after the date at which its head stopped naming it."""


class StaleBody(errors.RunloreError):
    """The body was made too long ago; make it again. Never leaves `commit/heads.py`."""

    kind = "stale_body"


def guard(began: dt.datetime, made: dt.datetime | None = None) -> port.Guard:
    """What a store calls between signing a commit and sending it.

    `began`: the writer's first read of a head; `made`: when the body was made, where that is a date in it. Raises
    `errors.CommitTooLate`.
    """

    def check() -> None:
        now = clock.now()
        if now - began > TERM - WINDOW:
            raise errors.CommitTooLate(
                f"this write began at {began:%Y-%m-%d %H:%M}, longer ago than what it refers to is kept",
                hint="start again from the head",
            )
        if made is not None and now - made > WINDOW:
            raise StaleBody

    return check


def is_kept(superseded_at: str, now: dt.datetime) -> bool:
    """Whether something superseded at that time must still be there. An unreadable date counts as kept."""
    try:
        return now - dt.datetime.fromisoformat(superseded_at) <= SUPERSEDED_KEPT
    except (TypeError, ValueError):
        return True
