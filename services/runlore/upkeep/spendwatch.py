"""Spend limits, as whoever asks models goes by them: read from the organization's head, and from the ledgers.

A worker reads that head itself. It holds addresses of people and hashes of random secrets of 256 bits, which open
nothing; a copy without them could be left behind by whoever dies between the two writes, and a limit must not be.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Mapping
from dataclasses import replace

from runlore import clock
from runlore.commit import heads, keys
from runlore.models import ledger, spend
from runlore.store import port
from runlore.upkeep import organization as organizations
from runlore.upkeep.organization import Organization

LIMITS_SECONDS = 5.0
"""How old what is known of the limits may be: so long after it was changed one is in force in every worker."""
TOTALS_SECONDS = 30.0
"""How old what is known of the other projects' spending may be, where a limit of the organization is."""


class Watch:
    """What an administrator lets projects spend, as one process knows it."""

    def __init__(self, store: port.ObjectStore) -> None:
        self._store = store
        self._organization: tuple[float, str | None, Organization] | None = None
        self._totals: tuple[float, str, dict[str, float]] | None = None
        self._reading, self._summing = asyncio.Lock(), asyncio.Lock()

    async def organization(self) -> Organization:
        """The organization, a few seconds old at most. Raises as the store does: an unknown limit is no leave."""
        async with self._reading:
            before, asked = self._organization, clock.monotonic()
            if before is not None and asked - before[0] < LIMITS_SECONDS:
                return before[2]
            key = keys.organization()
            stored = await self._store.get(key)
            etag = stored.etag if stored is not None else None
            if before is not None and etag == before[1]:
                found = before[2]
            else:
                found = organizations.parse(heads.parse(key, stored, fmt=organizations.FORMAT))
            self._organization = asked, etag, found
            return found

    async def limits(self, project: str) -> spend.Limits:
        """What a project's calls are held against."""
        org = await self.organization()
        found = limits_of(org, project)
        if found.organization_usd is None:
            return found
        totals = await self._others(spend.month_of(clock.now()))
        return replace(found, others_usd=sum(usd for name, usd in totals.items() if name != project))

    async def _others(self, month: str) -> Mapping[str, float]:
        """What each project spent in a month, open calls at their bound."""
        async with self._summing:
            before, asked = self._totals, clock.monotonic()
            if before is not None and before[1] == month and asked - before[0] < TOTALS_SECONDS:
                return before[2]
            bodies = await ledger.month_of_all(self._store, month, clock.now())
            found = {name: spend.used(body).usd for name, body in bodies.items()}
            self._totals = asked, month, found
            return found


def limits_of(org: Organization, project: str) -> spend.Limits:
    """What the organization says of a project's calls to models; what the others spent is not in it."""
    kept = org.projects.get(project)
    own = kept.spend_limit if kept is not None else None
    rate = kept.limits.get(organizations.GENERATE) if kept is not None else None
    return spend.Limits(
        project_usd=usd(own.cents) if own is not None else None,
        organization_usd=usd(org.spend_limit.cents) if org.spend_limit is not None else None,
        requests_per_minute=rate.requests_per_minute if rate is not None else None,
        tokens_per_minute=rate.tokens_per_minute if rate is not None else None,
    )


def usd(cents: int) -> float:
    return cents / 100


async def is_enforcing(
    store: port.ObjectStore, project: str | None, limit: organizations.SpendLimit, now: dt.datetime
) -> bool:
    """Whether a spend limit refuses calls now; `project` None: the organization's."""
    month = spend.month_of(now)
    if project is None:
        bodies = list((await ledger.month_of_all(store, month, now)).values())
        return spend.is_enforcing(bodies, usd(limit.cents), spend.ORGANIZATION_LIMIT, now)
    body = await ledger.Ledger(store).month(project, month)
    return spend.is_enforcing([body], usd(limit.cents), spend.SPEND_LIMIT, now)
