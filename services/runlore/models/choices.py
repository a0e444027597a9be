"""Which model does what: a choice for each phase, which a memory may change, from one TOML file.

    [summarize]                              # for every memory
    model = "gpt-5.4-mini"
    effort = "low"

    [memories."acme/support".consolidate]    # for this one
    extra_prompt = "Orders are in cents."

    [prices."my-model".tiers]                # US dollars for a million tokens
    default = { input = 0.1, output = 0.4 }

What the file does not say is the default, which is the Agents SDK's (`MemoryGenerateConfig`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

import pydantic

from runlore import errors
from runlore.models import port
from runlore.models import prices as _prices

EXTRA_PROMPT_CHARS_MAX = 8_000
FILE_BYTES_MAX = 1024 * 1024
NAME = r"[A-Za-z0-9][\w.:/@+-]{0,127}"


class Said(pydantic.BaseModel):
    """What the file says about one phase; None: nothing."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    model: str | None = pydantic.Field(None, pattern=rf"^{NAME}$")
    effort: str | None = pydantic.Field(None, pattern=r"^[a-z]{0,16}$")
    tier: str | None = pydantic.Field(None, pattern=r"^[a-z]{0,16}$")
    extra_prompt: str | None = pydantic.Field(None, max_length=EXTRA_PROMPT_CHARS_MAX)
    input_tokens_max: int | None = pydantic.Field(None, ge=8_000, le=1_000_000)
    output_tokens_max: int | None = pydantic.Field(None, ge=500, le=200_000)


class Phases(pydantic.BaseModel):
    """What the file says about the phases of one memory."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    summarize: Said = Said()
    consolidate: Said = Said()


class Choice(pydantic.BaseModel):
    """The model of one phase of one memory, and how it is asked."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    model: str
    effort: str = "medium"
    """Empty: the endpoint's default. A model that does not reason takes no other."""
    tier: str = ""
    extra_prompt: str = ""
    """What a team adds to the prompt of the phase."""
    prompt: str = ""
    """What stands in place of the phase's own prompt. Only a side line has one (`consumers/rebuild.py`)."""
    input_tokens_max: int = 60_000
    """By the estimate of `memory/text.py`, which counts from above; the prompt itself comes on top."""
    output_tokens_max: int = 16_000
    """What a model reasons counts too."""


DEFAULTS = {port.SUMMARIZE: Choice(model="gpt-5.4-mini"), port.CONSOLIDATE: Choice(model="gpt-5.5")}


class Choices(Phases):
    """The whole file."""

    memories: dict[str, Phases] = {}
    """`<project>/<memory>` → what is different there."""
    prices: dict[str, _prices.ModelPrices] = {}

    @pydantic.field_validator("memories")
    @classmethod
    def _named(cls, value: dict[str, Phases]) -> dict[str, Phases]:
        for name in value:
            if name.count("/") != 1 or not all(name.split("/")):
                raise ValueError("a memory is named as project/memory")
        return value

    def of(self, project: str, memory: str, phase: str) -> Choice:
        """The choice for one phase of one memory."""
        own = self.memories.get(f"{project}/{memory}", Phases())
        said = {}
        for one in (self, own):
            said |= getattr(one, phase).model_dump(exclude_none=True)
        return DEFAULTS[phase].model_copy(update=said)

    def first(self, phase: str) -> Choice:
        """The choice for a phase of a memory that the file does not name."""
        return self.of("", "", phase)

    def table(self) -> _prices.Table:
        """The prices, the team's own in front."""
        return _prices.built_in().over(self.prices)


def load(path: Path | None) -> Choices:
    """The choices in `path`; the defaults without one. Raises `errors.BadModels` with the place of what is wrong."""
    if path is None:
        return Choices()
    try:
        raw = path.read_bytes()
    except OSError as exc:
        raise errors.BadModels(f"{path} can not be read: {exc.strerror}") from None
    if len(raw) > FILE_BYTES_MAX:
        raise errors.BadModels(f"{path} has {len(raw)} bytes; at most {FILE_BYTES_MAX} are read")
    try:
        return parse(tomllib.loads(raw.decode("utf-8")))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise errors.BadModels(f"{path} is not TOML: {exc}") from None


def parse(said: Mapping[str, object]) -> Choices:
    """The choices that a file's content says. Raises `errors.BadModels`."""
    try:
        return Choices.model_validate(said)
    except pydantic.ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise errors.BadModels(
            f"the file of models, at {where}: {first['msg']}",
            hint=f"phases are {', '.join(port.PHASES)}; docs/MODELS.md shows a whole file",
        ) from None
