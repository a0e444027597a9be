"""Which model does what: a choice for each phase, which a memory may change, from one TOML file.

    [summarize]                              # for every memory
    model = "gpt-5.4-mini"
    effort = "low"

    [memories."acme/support".consolidate]    # for this one
    extra_prompt = "Orders are in cents."

    [summarize.due]                          # when it is asked; without it at once
    runs = 5
    age_seconds = 900

    [budget]                                 # of each project; [projects."acme".budget] is one project's own
    day_usd = 5.0

    [memories."acme/support".budget]         # of a memory, beside its project's
    month_tokens = 5_000_000

    [prices."my-model".tiers]                # US dollars for a million tokens
    default = { input = 0.1, output = 0.4 }

What the file does not say is the default, which is the Agents SDK's (`MemoryGenerateConfig`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

import pydantic
import structlog

from runlore import errors
from runlore.models import due as _due
from runlore.models import port, spend
from runlore.models import prices as _prices

log = structlog.get_logger("runlore.models")

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
    due: _due.Policy | None = None


class Phases(pydantic.BaseModel):
    """What the file says about the phases of one memory."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    summarize: Said = Said()
    consolidate: Said = Said()


class OfProject(pydantic.BaseModel):
    """What the file says about one project."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    budget: spend.Budget | None = None


class OfMemory(Phases):
    """What the file says about one memory."""

    budget: spend.Budget | None = None


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

    memories: dict[str, OfMemory] = {}
    """`<project>/<memory>` → what is different there."""
    budget: spend.Budget = spend.Budget()
    """Of each project that has none of its own."""
    projects: dict[str, OfProject] = {}
    prices: dict[str, _prices.ModelPrices] = {}

    @pydantic.field_validator("memories")
    @classmethod
    def _named(cls, value: dict[str, OfMemory]) -> dict[str, OfMemory]:
        for name in value:
            if name.count("/") != 1 or not all(name.split("/")):
                raise ValueError("a memory is named as project/memory")
        return value

    def of(self, project: str, memory: str, phase: str) -> Choice:
        """The choice for one phase of one memory."""
        own = self.memories.get(f"{project}/{memory}", OfMemory())
        said = {}
        for one in (self, own):
            said |= getattr(one, phase).model_dump(exclude_none=True, exclude={"due"})
        return DEFAULTS[phase].model_copy(update=said)

    def due(self, project: str, memory: str, phase: str) -> _due.Policy:
        """When the asks of one phase of one memory are due."""
        own = self.memories.get(f"{project}/{memory}", OfMemory())
        found = _due.Policy()
        for one in (self, own):
            found = (getattr(one, phase).due or _due.Policy()).over(found)
        return found

    def budgets(self, project: str, memory: str) -> spend.Budgets:
        """What may be spent for one memory: its project's budget, and its own."""
        named = self.projects.get(project, OfProject()).budget
        own = self.memories.get(f"{project}/{memory}", OfMemory()).budget
        return spend.Budgets(self.budget if named is None else named, own or spend.Budget())

    def first(self, phase: str) -> Choice:
        """The choice for a phase of a memory that the file does not name."""
        return self.of("", "", phase)

    def table(self) -> _prices.Table:
        """The prices, the team's own in front."""
        return _prices.built_in().over(self.prices)


class Watched:
    """The choices in a file, read again once the file is another. What can not be read leaves those before it."""

    def __init__(self, path: Path | None, first: Choices | None = None) -> None:
        self._path = path
        self._seen = self._mark()
        self._now = load(path) if first is None else first

    def __call__(self) -> Choices:
        """The choices as they are now. Blocking."""
        seen = self._mark()
        if seen != self._seen:
            self._seen = seen
            try:
                self._now = load(self._path)
                log.info("the file of models was read again")
            except errors.BadModels as exc:
                log.error("the file of models stays as it was", cause=exc.message)
        return self._now

    def _mark(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat() if self._path is not None else None
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_size, found.st_ino) if found else None


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
