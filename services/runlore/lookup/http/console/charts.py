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
    """Runs per day."""

    bars: Sequence[Bar]
    first: str
    last: str
    most: int
    total: int
    width: int = WIDTH
    height: int = HEIGHT


def days(count: int = DAYS) -> list[str]:
    """The last so many days, the oldest first, as times begin with them."""
    today = clock.now().astimezone(dt.UTC).date()
    return [(today - dt.timedelta(days=back)).isoformat() for back in range(count - 1, -1, -1)]


def per_day(names: Sequence[str], counts: Sequence[int], most_counted: int) -> Chart:
    """The chart of these counts; a day with `most_counted` has so many at least."""
    most, step = max([*counts, 1]), WIDTH / max(1, len(counts))
    bars = []
    for at, (name, count) in enumerate(zip(names, counts, strict=True)):
        high = HEIGHT * count / most
        # A single run among thousands is seen still.
        high = max(high, 3.0) if count else 0.0
        told = f"{count:,}{' or more' if count >= most_counted else ''} {'run' if count == 1 else 'runs'}"
        bars.append(
            Bar(
                round(at * step + 1, 1),
                round(HEIGHT - high, 1),
                round(step - 2, 1),
                round(high, 1),
                f"{name}: {told}",
            )
        )
    return Chart(bars, names[0], names[-1], max(counts), sum(counts))
