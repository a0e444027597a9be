"""Which function checks which invariant of docs/DESIGN.md, and how often each ran in this process.

A checker says with `@checks.of(NAME)` what it looks after. So the table of proofs (tests/simulation/proof.py), the
figures of `make soak` and `runlore verify` name the same functions.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

Check = TypeVar("Check", bound=Callable[..., Any])

CHECKERS: dict[str, list[str]] = {}
"""Name of an invariant → its checkers, as `module.function`."""
RAN: Counter[str] = Counter()
"""Name of an invariant → how often one of its checkers ran."""


def of(name: str) -> Callable[[Check], Check]:
    """This function is a checker of the invariant called `name`."""

    def register(check: Check) -> Check:
        CHECKERS.setdefault(name, []).append(f"{check.__module__.rpartition('.')[2]}.{check.__name__}")

        @functools.wraps(check)
        def counted(*args: Any, **more: Any) -> Any:
            RAN[name] += 1
            return check(*args, **more)

        return counted  # type: ignore[return-value]

    return register
