"""Charts as SVG that the server makes: no script, no style of their own, readable without looking at them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from runlore import clock

DAYS = 30
WIDTH, HEIGHT = 600, 90


@dataclass(frozen=True)
class Bar:
    """One day: where its bar stands, and what it says."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Chart:
    """A bar for each day. `title` says of what; `total` of how much in all, and at most on one day."""

    title: str
    bars: Sequence[Bar]
    first: str
    last: str
    total: str
    width: int = WIDTH
    height: int = HEIGHT


def days(count: int = DAYS) -> list[str]:
    """The last so many days, the oldest first, as times begin with them."""
    today = clock.now().astimezone(dt.UTC).date()
    return [(today - dt.timedelta(days=back)).isoformat() for back in range(count - 1, -1, -1)]


def days_of(month: str) -> list[str]:
    """The days of a month (`2026-11`), up to today."""
    first = dt.date.fromisoformat(f"{month}-01")
    today = clock.now().astimezone(dt.UTC).date()
    found = (first + dt.timedelta(days=ahead) for ahead in range(31))
    return [one.isoformat() for one in found if one.month == first.month and (one <= today or one == first)]


def per_day(names: Sequence[str], counts: Sequence[int], most_counted: int) -> Chart:
    """The chart of so many runs a day; a day with `most_counted` has so many at least."""
    told = [
        f"{count:,}{' or more' if count >= most_counted else ''} {'run' if count == 1 else 'runs'}"
        for count in counts
    ]
    total = f"{sum(counts):,} in {len(names)} days"
    if most := max(counts):
        total += f", at most {most:,} on one"
    return bars("Runs per day", names, counts, told, total)


def bars(title: str, names: Sequence[str], values: Sequence[float], told: Sequence[str], total: str) -> Chart:
    """The chart of these values, one a day, each with what it says in words."""
    most, step = max([*values]) or 1, WIDTH / max(1, len(values))
    found = []
    for at, (name, value, words) in enumerate(zip(names, values, told, strict=True)):
        # A single one among thousands is seen still.
        high = max(HEIGHT * value / most, 3.0) if value else 0.0
        found.append(
            Bar(
                round(at * step + 1, 1),
                round(HEIGHT - high, 1),
                round(step - 2, 1),
                round(high, 1),
                f"{name}: {words}",
            )
        )
    return Chart(title, found, names[0], names[-1], total)
