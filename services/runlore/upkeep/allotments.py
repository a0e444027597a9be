"""Allotments: how much may be asked for in one minute of the clock, over all replicas together.

Each limited thing has one small head, its tally: how much of which minute was handed out. A replica takes an
allotment from it by compare-and-set, lets requests through on that alone, and takes the next one when it is spent.

    tally → what is left of the minute → compare-and-set → let through

What is handed out never exceeds the limit, so neither does what is let through. A reply that was lost counts as handed
out, and is not used: it never counts twice. A replica may refuse while others still hold what they did not spend.
Of each it is less than a twentieth of the limit, and no more than that replica itself let through in that minute: so
an idle one holds nothing. docs/ADMIN.md gives the bound.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runlore import clock, errors
from runlore.commit import heads, keys, puts
from runlore.store import port

FORMAT = "runlore.tally/1"
MINUTE_SECONDS = 60
SHARE = 20
"""A replica holds less than one part in so many of a limit beyond what it needs at once."""
TAPER = 4
"""And takes at most one part in so many of what is left: towards the end of a limit less and less."""
MINUTES_KEPT = 8
"""Of a tally, the newest so many that were begun: replicas whose clocks disagree count each its own minute."""
RESTARTS_MAX = 16
TAKE_SECONDS_MAX = 5.0
"""Whoever waits longer for an allotment is told that the store is away; what it may have taken is nobody's."""
SHARES_MAX = 10_000
"""Tallies that a replica remembers its part of."""

Units = Mapping[str, int]
"""How much of each unit: `requests`, `bytes`."""


@dataclass(frozen=True)
class Want:
    """What one request takes of one limit: a project's for a thing, or one key's own."""

    project: str
    thing: str
    limits: Units
    units: Units
    """Of the units that the limit names."""
    key: str | None = None

    @property
    def whose(self) -> str:
        return "project" if self.key is None else "key"


@dataclass(frozen=True)
class Standing:
    """How a limit stands in the present minute, as far as this replica knows."""

    limit: int
    remaining: int
    reset_seconds: int


async def take(
    store: port.ObjectStore, where: str, minute: int, wanted: Callable[[Units], Units]
) -> tuple[Units, Units]:
    """(what was taken of this minute; what all took of it by then). `wanted`: from what all took, what to take.

    Raises `errors.StoreUnavailable`.
    """
    for attempt in range(RESTARTS_MAX):
        head = await heads.read(store, where, fmt=FORMAT)
        taken = _taken(head, minute)
        units = wanted(taken)
        if not any(units.values()):
            return {}, taken
        after = {unit: taken.get(unit, 0) + units.get(unit, 0) for unit in {*taken, *units}}
        try:
            await heads.move(store, head, {"minutes": _minutes(head, minute, after)}, fmt=FORMAT)
            return units, after
        except errors.HeadMoved:
            # Another was first; or the reply was lost, and then what it may have taken is nobody's.
            await puts.wait(min(attempt, 5))
    raise errors.StoreUnavailable("many take from one rate limit at the same time")


async def handed_out(store: port.ObjectStore, limits: Sequence[tuple[str, str, str | None]]) -> list[Units]:
    """What was handed out of each of these limits (project, thing, key) in the present minute."""
    places = [keys.tally(*one) for one in limits]
    found = await store.get_many(places)
    read = [heads.parse(place, one, fmt=FORMAT) for place, one in zip(places, found, strict=True)]
    return [_taken(head, _minute()) for head in read]


def _taken(head: heads.Head, minute: int) -> Units:
    """What was handed out of a minute. Raises `errors.Corrupt`."""
    try:
        for one in head.body.get("minutes", ()):
            if one["minute"] == minute:
                return {str(unit): int(count) for unit, count in one["taken"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise errors.Corrupt(
            f"the tally {head.key} is none",
            hint="without it the present minute is counted anew",
            key=head.key,
        ) from None
    return {}


def _minutes(head: heads.Head, minute: int, taken: Units) -> list[dict[str, Any]]:
    """The tally's minutes with this one as it is now, in the order in which they were begun."""
    kept = list(head.body.get("minutes", ()))
    now = {"minute": minute, "taken": dict(taken)}
    for at, one in enumerate(kept):
        if one["minute"] == minute:
            kept[at] = now
            return kept
    return [*kept, now][-MINUTES_KEPT:]


class _Share:
    """One replica's part of one tally, in the present minute."""

    def __init__(self, store: port.ObjectStore, where: str) -> None:
        self._store, self._where = store, where
        self._minute, self._limits = -1, dict[str, int]()
        self._left, self._spent = Counter[str](), Counter[str]()
        self._seen: Units = {}
        """What all took of this minute, when this replica looked last."""
        self._waiting: list[Units] = []
        self._taking: asyncio.Task[None] | None = None
        self._begun = 0
        """Raised whenever what is held is dropped: what was asked for before is dropped as it comes."""

    def at(self, minute: int, limits: Units) -> None:
        """Begin anew in another minute; and where a limit is lower now, drop what was taken under the old one."""
        if minute != self._minute:
            self._minute, self._seen = minute, {}
            self._spent.clear()
            self._drop()
        elif any(most < self._limits.get(unit, most) for unit, most in limits.items()):
            self._drop()
        self._limits = dict(limits)

    def _drop(self) -> None:
        self._left.clear()
        self._begun += 1

    def lacks(self, units: Units) -> bool:
        return any(self._left[unit] < count for unit, count in units.items())

    def over(self, units: Units) -> str | None:
        """The unit of which there is too little left in this minute, as far as is known here."""
        return next((unit for unit, count in units.items() if count > self.remaining(unit)), None)

    def remaining(self, unit: str) -> int:
        """What this replica could still let through in this minute, if no other took anything."""
        return max(0, self._limits[unit] - self._seen.get(unit, 0)) + self._left[unit]

    def spend(self, units: Units) -> None:
        self._left.subtract(units)
        self._spent.update(units)

    async def refill(self, units: Units) -> None:
        """Take an allotment; one for all who wait for it. What came of it the caller looks up."""
        self._waiting.append(units)
        try:
            if self._taking is None:
                self._taking = asyncio.create_task(self._take())
                self._taking.add_done_callback(lambda task: task.cancelled() or task.exception())
            # Whoever goes away leaves the others theirs.
            await asyncio.shield(self._taking)
        finally:
            self._waiting.remove(units)

    async def _take(self) -> None:
        begun = self._begun
        try:
            async with asyncio.timeout(TAKE_SECONDS_MAX):
                granted, taken = await take(self._store, self._where, self._minute, self._wanted)
            if begun == self._begun:
                self._left.update(granted)
                self._seen = taken
        except TimeoutError:
            raise errors.StoreUnavailable(
                "the store took too long to say what is left of a rate limit"
            ) from None
        finally:
            self._taking = None

    def _wanted(self, taken: Units) -> Units:
        """For those who wait, in their order, as far as there is room; and some more for those who come next."""
        room = {unit: max(0, most - taken.get(unit, 0)) for unit, most in self._limits.items()}
        needed = Counter[str]()
        for units in self._waiting:
            asked = {unit: count for unit, count in units.items() if unit in room}
            if all(needed[unit] + count <= self._left[unit] + room[unit] for unit, count in asked.items()):
                needed.update(asked)
        out = {}
        for unit, most in self._limits.items():
            short = needed[unit] - self._left[unit]
            if short > 0:
                more = min(most // SHARE - 1, self._spent[unit], (room[unit] - short) // TAPER)
                out[unit] = short + max(0, more)
        return out


class Allotments:
    """What one replica holds of every limit that it has met lately."""

    def __init__(self, store: port.ObjectStore) -> None:
        self._store = store
        self._shares: OrderedDict[tuple[str, str, str | None], _Share] = OrderedDict()

    async def spend(self, wants: Sequence[Want]) -> None:
        """Let one request through, on all of its limits or on none. Raises `errors.RateLimited`.

        Raises `errors.StoreUnavailable` where nobody can say what is left.
        """
        while True:
            # Nothing waits between this look and the spending: no two requests spend the same.
            shares = self._present(wants)
            for one, want in zip(shares, wants, strict=True):
                if (unit := one.over(want.units)) is not None:
                    raise _refused(want, unit)
            short = next(
                (pair for pair in zip(shares, wants, strict=True) if pair[0].lacks(pair[1].units)), None
            )
            if short is None:
                for one, want in zip(shares, wants, strict=True):
                    one.spend(want.units)
                return
            await short[0].refill(short[1].units)

    def standing(self, wants: Sequence[Want]) -> dict[str, Standing]:
        """How each unit stands by the limit that will be used up first."""
        out: dict[str, Standing] = {}
        for one, want in zip(self._present(wants), wants, strict=True):
            for unit, most in want.limits.items():
                remaining = min(most, one.remaining(unit))
                if unit not in out or remaining < out[unit].remaining:
                    out[unit] = Standing(most, remaining, _reset_seconds())
        return out

    def _present(self, wants: Sequence[Want]) -> list[_Share]:
        minute = _minute()
        shares = [self._share(one) for one in wants]
        for one, want in zip(shares, wants, strict=True):
            one.at(minute, want.limits)
        return shares

    def _share(self, want: Want) -> _Share:
        name = (want.project, want.thing, want.key)
        found = self._shares.get(name)
        if found is None:
            found = self._shares[name] = _Share(self._store, keys.tally(*name))
        self._shares.move_to_end(name)
        while len(self._shares) > SHARES_MAX:
            self._shares.popitem(last=False)
        return found


def _minute() -> int:
    return int(clock.now().timestamp() // MINUTE_SECONDS)


def _reset_seconds() -> int:
    return MINUTE_SECONDS - int(clock.now().timestamp() % MINUTE_SECONDS)


def _refused(want: Want, unit: str) -> errors.RateLimited:
    most = want.limits[unit]
    whose = "the project" if want.key is None else "the key"
    told = f"{whose} may ask for {want.thing} {most} times in a minute"
    if unit != "requests":
        told = f"{whose} may {want.thing} {most} {unit} in a minute"
        if want.units[unit] > most:
            told += f", and this alone has {want.units[unit]}"
    return errors.RateLimited(
        told,
        **{"limited": want.thing, "whose": want.whose, "unit": unit},
        retry_seconds=_reset_seconds(),
    )
