"""The ledger: what the producer was asked to send, and what it was acknowledged for. Its own file, appended to.

A send is noted before it is tried and after it is acknowledged, by its number in the plan. A driver that is killed
leaves sends that were tried and not acknowledged: those may be there or not, and that is all that may be said of
them.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

SENDING, ACKNOWLEDGED = "sending", "acknowledged"


@dataclass
class Ledger:
    """How often each send was tried, and how often acknowledged."""

    tried: Counter[int] = field(default_factory=Counter)
    acknowledged: Counter[int] = field(default_factory=Counter)


def note(out: IO[str], what: str, numbers: Sequence[int]) -> None:
    # The newline goes first: what a kill cut in the middle must not swallow what comes after it.
    out.write("\n" + json.dumps({"what": what, "sends": list(numbers), "at": time.time()}))
    out.flush()


def read(path: Path) -> Ledger:
    """What the file says; a line that a kill cut does not count."""
    found = Ledger()
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        (found.tried if entry["what"] == SENDING else found.acknowledged).update(entry["sends"])
    return found
