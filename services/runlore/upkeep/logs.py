"""Verifying every log of the audit together: what was administered, acts, and seeds that were handed out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runlore import errors
from runlore.store import port
from runlore.upkeep import acts, administration, chain, seedlog

ADMINISTRATION, ACTS = "administration", "acts"


@dataclass(frozen=True)
class Verified:
    """What a look at all of them found."""

    administration: chain.Verified
    acts: chain.Verified
    seeds: seedlog.Verified

    @property
    def problems(self) -> list[str]:
        return [*self.administration.problems, *self.acts.problems, *self.seeds.problems]

    def as_dict(self) -> dict[str, Any]:
        return {
            "is_whole": not self.problems,
            "problems": self.problems,
            "entries": self.administration.entries,
            "tip": chain.text_of(self.administration.tip),
            "beside": self.administration.beside,
            "acts": {
                "entries": self.acts.entries,
                "tip": chain.text_of(self.acts.tip),
                "beside": self.acts.beside,
            },
            "seeds": {
                "writers": self.seeds.writers,
                "links": self.seeds.links,
                "entries": self.seeds.entries,
                "beside": self.seeds.beside,
                "problems_untold": self.seeds.untold,
            },
        }


def expected_of(given: list[str]) -> dict[str, chain.Tip]:
    """Log → the entry of it that somebody wrote down: `N:SHA256`, `acts:N:SHA256`. Raises `errors.InvalidInput`."""
    found: dict[str, chain.Tip] = {}
    for text in given:
        log, _, rest = text.partition(":") if text.startswith(f"{ACTS}:") else (ADMINISTRATION, "", text)
        place = chain.parsed(rest)
        if place is None or log in found:
            raise errors.InvalidInput(f"{text!r} is no entry: N:SHA256, or {ACTS}:N:SHA256")
        found[log] = place
    return found


async def verify(
    store: port.ObjectStore,
    expected: Mapping[str, chain.Tip] | None = None,
    *,
    on_progress: chain.OnProgress = lambda count, what: None,
) -> Verified:
    """Look at every entry of every log. `expected`: log → an entry of it that somebody wrote down."""
    wanted = expected or {}
    administered = await administration.verify(store, wanted.get(ADMINISTRATION), on_progress=on_progress)
    anchors = seedlog.Anchors()
    acted = await acts.verify(store, wanted.get(ACTS), on_entry=anchors.look, on_progress=on_progress)
    # After the acts: each link that an anchor names was there before it.
    handed_out = await seedlog.verify(store, anchors, on_progress=on_progress)
    return Verified(administered, acted, handed_out)
