"""What a call cost: the endpoint's token counts, times one table of prices (`prices.json`, with its source and date).

A team's own file of models goes before the table (`choices.py`). A model without a price has an unknown cost, which is
None and never 0: a budget must not take it for free.
"""

from __future__ import annotations

import functools
import importlib.resources
import re
from collections.abc import Mapping

import pydantic

from runlore.models import port

DEFAULT_TIER = "default"
# The day of a model's version, which endpoints add to the name that was asked for.
_DATED = re.compile(r"-\d{4}-\d{2}-\d{2}\Z")


class Price(pydantic.BaseModel):
    """US dollars for a million tokens."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    input: float = pydantic.Field(ge=0, allow_inf_nan=False)
    output: float = pydantic.Field(ge=0, allow_inf_nan=False)
    cached: float | None = pydantic.Field(None, ge=0, allow_inf_nan=False)
    """Of input tokens that the endpoint had in its prompt cache; None: as any other."""


class ModelPrices(pydantic.BaseModel):
    """The prices of one model, by service tier."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    tiers: dict[str, Price]
    input_tokens_max: int | None = None
    """Above so many input tokens another price holds, which the table does not have."""


class Table(pydantic.BaseModel):
    """Prices, with where and when they were read."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    source: str
    checked: str
    unit: str = ""
    models: dict[str, ModelPrices]

    def over(self, own: Mapping[str, ModelPrices]) -> Table:
        """This table with a team's own prices in front."""
        return self.model_copy(update={"models": {**self.models, **own}})

    def cost_usd(self, model: str, *, tier: str, usage: port.Usage | None) -> float | None:
        """What a call cost, to a billionth of a dollar; None where that is not known."""
        known = self.models.get(model) or self.models.get(_DATED.sub("", model))
        if usage is None or known is None:
            return None
        price = known.tiers.get(DEFAULT_TIER if tier in ("", "auto", "standard") else tier)
        if price is None or usage.input_tokens > (known.input_tokens_max or usage.input_tokens):
            return None
        cached = price.input if price.cached is None else price.cached
        fresh = max(0, usage.input_tokens - usage.cached_tokens)
        whole = fresh * price.input + usage.cached_tokens * cached + usage.output_tokens * price.output
        return round(whole / 1_000_000, 9)


@functools.cache
def built_in() -> Table:
    """The table that comes with Runlore."""
    raw = importlib.resources.files("runlore.models").joinpath("prices.json").read_bytes()
    return Table.model_validate_json(raw)
