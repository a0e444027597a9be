"""How well a row matches a search, by what the rows that are compared hold, and nothing else.

FTS5's own `bm25` weighs a word by how often it stands in all rows of the table, and a length by their mean: those are
of every project and subject, and a rank, or an order, would tell of them (invariant 9).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SATURATION, LENGTH_SHARE = 1.2, 0.75
"""BM25's k1 and b."""


def ranked(found: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], float]]:
    """Rows with their rank, the best (lowest) first, among equals in their order.

    A row says its length in `bytes`, and in `marked` what that is with one more byte for each place that matches.
    """
    mean = sum(row["bytes"] for row in found) / max(1, len(found)) or 1.0

    def rank(row: dict[str, Any]) -> float:
        hits = row["marked"] - row["bytes"]
        length = 1 - LENGTH_SHARE + LENGTH_SHARE * row["bytes"] / mean
        return -round(hits * (SATURATION + 1) / (hits + SATURATION * length), 6)

    return sorted(((row, rank(row)) for row in found), key=lambda pair: pair[1])
