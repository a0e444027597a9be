"""Spend limits and alerts, as they are administered: of the organization, or of one project (`project` not None).

They are part of the organization's head, so each change is one move with its entry in the log. The workers read that
head (`upkeep/spendwatch.py`): there is no copy that could be left behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runlore import clock, errors
from runlore.events import ids
from runlore.upkeep import adminlog, mail
from runlore.upkeep import organization as organizations
from runlore.upkeep.administration import Administrator, with_implied
from runlore.upkeep.organization import Organization, Project, SpendAlert, SpendLimit

CENTS_MAX = 100_000_000_000
"""A thousand million dollars."""
ALERTS_MAX = 50
"""Of the organization, and of each project."""
RECIPIENTS_MAX = 20
PREFIX_CHARS_MAX = 60
ALERT = "spend-alert-"


async def set_limit(hand: Administrator, project: str | None, cents: int) -> SpendLimit:
    """What calls to models may cost in a month."""
    _check_cents(cents)
    made = SpendLimit(cents=cents)
    await _change(hand, project, "spend_limit", {"spend_limit_cents": cents}, lambda holder, now: made)
    return made


async def delete_limit(hand: Administrator, project: str | None) -> None:
    """From now on calls may cost anything. Raises `errors.NotFound` where there is no limit."""

    def none(holder: Organization | Project, now: str) -> None:
        limit_of(holder)

    await _change(hand, project, "spend_limit", {"spend_limit_cents": None}, none)


async def create_alert(
    hand: Administrator,
    project: str | None,
    cents: int,
    *,
    recipients: Sequence[str],
    subject_prefix: str | None = None,
) -> SpendAlert:
    """Tell somebody, once in each month, that so much was spent."""
    alert_id, given = f"{ALERT}{clock.new_id()}", _checked(cents, recipients, subject_prefix)

    def made(holder: Organization | Project, now: str) -> dict[str, SpendAlert]:
        if len(holder.spend_alerts) >= ALERTS_MAX:
            raise errors.Refused(f"there are {ALERTS_MAX} spend alerts, as many as may be")
        return {**holder.spend_alerts, alert_id: SpendAlert(id=alert_id, created_at=now, **given)}

    told = {"spend_alert": alert_id, "threshold_cents": cents, "recipients": len(recipients)}
    return (await _change(hand, project, "spend_alerts", told, made))[alert_id]


async def update_alert(
    hand: Administrator,
    project: str | None,
    alert_id: str,
    cents: int,
    *,
    recipients: Sequence[str],
    subject_prefix: str | None = None,
) -> SpendAlert:
    """Another threshold, other recipients. With another threshold it may tell again in the same month."""
    given = _checked(cents, recipients, subject_prefix)

    def made(holder: Organization | Project, now: str) -> dict[str, SpendAlert]:
        changed = organizations.changed(alert_of(holder, alert_id), **given)
        return {**holder.spend_alerts, alert_id: changed}

    told = {"spend_alert": alert_id, "threshold_cents": cents, "recipients": len(recipients)}
    return (await _change(hand, project, "spend_alerts", told, made))[alert_id]


async def delete_alert(hand: Administrator, project: str | None, alert_id: str) -> None:
    def made(holder: Organization | Project, now: str) -> dict[str, SpendAlert]:
        alert_of(holder, alert_id)
        return {name: one for name, one in holder.spend_alerts.items() if name != alert_id}

    await _change(hand, project, "spend_alerts", {"spend_alert": alert_id, "deleted": True}, made)


def limit_of(holder: Organization | Project) -> SpendLimit:
    """Raises `errors.NotFound`."""
    if holder.spend_limit is None:
        raise errors.NotFound("there is no spend limit")
    return holder.spend_limit


def alert_of(holder: Organization | Project, alert_id: str) -> SpendAlert:
    """Raises `errors.NotFound`."""
    if alert_id not in holder.spend_alerts:
        raise errors.NotFound(f"there is no spend alert {alert_id!r}")
    return holder.spend_alerts[alert_id]


async def _change(
    hand: Administrator, project: str | None, name: str, told: dict[str, Any], made: Any
) -> Any:
    """Move one field of the organization, or of a project, to what `made` gives for it; that."""
    implied = await hand.implied(project) if project is not None else None

    def step(org: Organization, now: str) -> tuple[Organization, adminlog.Event, Any]:
        org = with_implied(org, implied)
        if project is None:
            value = made(org, now)
            event = adminlog.Event("organization.updated", "organization", None, told)
            return organizations.changed(org, **{name: value}), event, value
        kept = organizations.project_of(org, project)
        value = made(kept, now)
        changed = organizations.with_project(org, organizations.changed(kept, **{name: value}))
        return changed, adminlog.Event("project.updated", project, project, told), value

    return await hand.move(step)


def _check_cents(cents: int) -> None:
    if not 0 <= cents <= CENTS_MAX:
        raise errors.InvalidInput(f"threshold_amount is 0 to {CENTS_MAX} cents")


def _checked(cents: int, recipients: Sequence[str], subject_prefix: str | None) -> dict[str, Any]:
    """What an alert says. Raises `errors.InvalidInput`, which repeats no address."""
    _check_cents(cents)
    if not 1 <= len(recipients) <= RECIPIENTS_MAX:
        raise errors.InvalidInput(f"recipients: 1 to {RECIPIENTS_MAX} addresses")
    for one in recipients:
        mail.checked_address(one)
    if len(set(recipients)) < len(recipients):
        raise errors.InvalidInput("recipients: one is there twice")
    prefix = subject_prefix or None
    if prefix is not None and (len(prefix) > PREFIX_CHARS_MAX or ids.has_control(prefix)):
        raise errors.InvalidInput(f"subject_prefix: one line of at most {PREFIX_CHARS_MAX} characters")
    return {"cents": cents, "recipients": tuple(recipients), "subject_prefix": prefix}
