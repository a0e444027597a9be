"""Spend alerts: who is told, once in each month, that calls to models have cost so much.

    sums of the ledgers → put (or take over) the alert's mark → log, mail → the mark says who was told

Every worker that asks models looks, beside what it does, so nothing waits for a mail. The mark of an alert, its month
and its threshold is moved by compare-and-set: of two workers one tells. Whoever dies between the mark and the mail
leaves a mark that is over after `CLAIM_SECONDS`; then another worker tells again. So it is told at least once, and
twice only where somebody died, or where the mail server did not say whether it took the message.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from runlore import clock, errors, tasks, telemetry
from runlore.commit import keys
from runlore.events import envelope
from runlore.models import ledger, spend
from runlore.store import port
from runlore.upkeep import mail, spendwatch
from runlore.upkeep.organization import Organization, SpendAlert

log = structlog.get_logger("runlore.spendalerts")

FORMAT = "runlore.spendalert/1"
LOOK_SECONDS = 60.0
"""From one look at what was spent to the next, where there are alerts."""
CLAIM_SECONDS = 600.0
"""For so long whoever put the mark has the telling to itself: longer than any mail takes."""
RETRY_SECONDS, RETRY_SECONDS_MAX = 60.0, 3600.0
"""After a mail that was not taken; twice as long each time."""
LATE = dt.timedelta(days=1)
"""So long a month is looked at after its end: its last calls are told of, too."""


@dataclass(frozen=True)
class Fired:
    """An alert whose threshold a month has come to; `project` None: of the organization."""

    alert: SpendAlert
    project: str | None
    month: str
    usd: float

    @property
    def key(self) -> str:
        return keys.spend_alert(self.month, self.alert.id, self.alert.cents)

    @property
    def whose(self) -> str:
        return "the organization" if self.project is None else f"project {self.project}"


class Alerts:
    """The telling, as one process does its part of it."""

    def __init__(self, store: port.ObjectStore, relay: mail.Relay | None) -> None:
        self._store, self._relay = store, relay
        self._watch = spendwatch.Watch(store)
        self._told: set[str] = set()

    async def run(self, stopping: asyncio.Event) -> None:
        """Look now and then, until stopped."""
        while not stopping.is_set():
            await self.check()
            await tasks.any_of(stopping, seconds_max=LOOK_SECONDS)

    async def check(self) -> None:
        """Tell what is to be told now. Never raises for a fault: it is logged, and the next look tries again."""
        try:
            org, now = await self._watch.organization(), clock.now()
            if not has_alerts(org):
                return
            for month in sorted({spend.month_of(now), spend.month_of(now - LATE)}):
                bodies = await ledger.month_of_all(self._store, month, now)
                spent = {name: spend.settled_usd(body) for name, body in bodies.items()}
                for one in fired(org, spent, month):
                    await self._told_once(one)
        except (errors.RunloreError, OSError) as exc:
            log.error("spend alerts are not looked at", kind=getattr(exc, "kind", type(exc).__name__))

    async def _told_once(self, one: Fired) -> None:
        if one.key in self._told:
            return
        try:
            if await self._tell(one):
                self._told.add(one.key)
        except Exception as exc:
            # Whatever is wrong with one alert stops no other, nor the models beside which it is told.
            kind = getattr(exc, "kind", type(exc).__name__)
            log.error("a spend alert is not told", alert=one.alert.id, kind=kind)

    async def _tell(self, one: Fired) -> bool:
        """Tell of one alert where nobody has, or does; whether that is done with."""
        stored, now = await self._store.get(one.key), clock.now()
        mark = parse(one.key, stored.body) if stored is not None else _EMPTY
        if mark["done"]:
            return True
        if mark["until"] is not None and now < dt.datetime.fromisoformat(mark["until"]):
            return False
        claim = {**mark, "until": _in(CLAIM_SECONDS), "tries": mark["tries"] + 1}
        try:
            etag = await self._store.compare_and_set(
                one.key, envelope.dump(claim), stored.etag if stored is not None else None
            )
        except (errors.PreconditionFailed, errors.OutcomeUnknown, errors.WriteConflict):
            return False  # Another tells; or this one's own write landed, and it tells once that is over.
        telemetry.SPEND_ALERTS.inc(done="raised")
        log.warning(
            "a spend alert",
            alert=one.alert.id,
            whose=one.whose,
            month=one.month,
            threshold_usd=spendwatch.usd(one.alert.cents),
            spent_usd=round(one.usd, 4),
            mailed="no mail server is set" if self._relay is None else f"to {len(one.alert.recipients)}",
        )
        told = {*mark["told"], *(await self._mailed(one, mark["told"]) if self._relay is not None else ())}
        left = [name for name in one.alert.recipients if _name(name) not in told]
        is_done = self._relay is None or not left
        wait = min(RETRY_SECONDS * 2 ** min(mark["tries"], 10), RETRY_SECONDS_MAX)
        after = {**claim, "told": sorted(told), "done": is_done, "until": None if is_done else _in(wait)}
        await self._store.compare_and_set(one.key, envelope.dump(after), etag)
        return is_done

    async def _mailed(self, one: Fired, told: list[str]) -> list[str]:
        """Mail everybody who has not been told; who was, by name."""
        wanted = [name for name in one.alert.recipients if _name(name) not in told]
        done = await asyncio.gather(*(self._mail(one, name) for name in wanted))
        return [_name(name) for name, is_told in zip(wanted, done, strict=True) if is_told]

    async def _mail(self, one: Fired, to: str) -> bool:
        assert self._relay is not None
        try:
            await mail.send(self._relay, to=to, subject=subject(one), text=text(one))
        except errors.RunloreError as exc:
            # No address is logged: the alert says whose it is.
            log.error("a spend alert is not mailed", alert=one.alert.id, kind=exc.kind, cause=exc.message)
            telemetry.SPEND_ALERTS.inc(done="not_mailed")
            return False
        telemetry.SPEND_ALERTS.inc(done="mailed")
        return True


def has_alerts(org: Organization) -> bool:
    return bool(org.spend_alerts or any(one.spend_alerts for one in org.projects.values()))


def fired(org: Organization, spent: Mapping[str, float], month: str) -> Iterator[Fired]:
    """Every alert whose threshold a month has come to. What is open is not spent; what has no price is not known."""
    total = sum(spent.values())
    for alert in org.spend_alerts.values():
        if total >= spendwatch.usd(alert.cents):
            yield Fired(alert, None, month, total)
    for project in org.projects.values():
        usd = spent.get(project.id, 0.0)
        for alert in project.spend_alerts.values():
            if usd >= spendwatch.usd(alert.cents):
                yield Fired(alert, project.id, month, usd)


def subject(one: Fired) -> str:
    told = f"{one.whose} has spent ${one.usd:.2f} in {one.month}"
    return f"{one.alert.subject_prefix} {told}" if one.alert.subject_prefix else told


def text(one: Fired) -> str:
    return (
        f"Calls to models have cost {one.whose} ${one.usd:.2f} in {one.month} (UTC).\n"
        f"The alert {one.alert.id} is at ${spendwatch.usd(one.alert.cents):.2f}. It comes once in a month.\n\n"
        f"`runlore spend` shows what was spent on what; a spend limit, or a budget, ends it (docs/ADMIN.md).\n"
    )


_EMPTY: dict[str, Any] = {"format": FORMAT, "done": False, "until": None, "tries": 0, "told": []}


def parse(key: str, raw: bytes) -> dict[str, Any]:
    """An alert's mark. Raises `errors.Corrupt`; `errors.Fatal` on a newer format."""
    try:
        body = envelope.kept(raw)
        if body["format"] != FORMAT:
            raise errors.Fatal(f"{key} has the format {body['format']!r}; this Runlore reads {FORMAT!r}")
        if isinstance(body["told"], list) and isinstance(body["tries"], int) and "until" in body:
            return {**_EMPTY, **body}
    except (ValueError, KeyError, TypeError):
        pass
    raise errors.Corrupt(f"the mark {key} of a spend alert is none", hint="deleting it tells again", key=key)


def _name(address: str) -> str:
    """How a mark names who was told: no address is kept in it."""
    return hashlib.sha256(address.encode()).hexdigest()[:16]


def _in(seconds: float) -> str:
    return (clock.now() + dt.timedelta(seconds=seconds)).isoformat(timespec="seconds")
