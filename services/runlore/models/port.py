"""The port to a model: what it is asked, what it answers, and in which ways it does not.

An ask is a value, and its `name` a hash of all that decides the answer, so that an answer can be kept and found again
(`answers.py`). What an engine raises tells what to do about it:

- `errors.ModelUnavailable`, `errors.ModelBusy`: it may pass. The engine tried again already where that helps.
- `errors.ModelBlocked`: nothing passes until a person acts; the stage is paused, and loses nothing.
- `errors.NoAnswer` (`ModelRefused`, `BadAnswer`, `AskRejected`): the same ask would end the same way. The rules stand.

No error holds the endpoint's own words: it may repeat a key, or what it was asked.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pydantic

from runlore import errors

SUMMARIZE, CONSOLIDATE = "summarize", "consolidate"
PHASES = (SUMMARIZE, CONSOLIDATE)
ASK_FORMAT = "runlore.ask/1"
INPUT_BYTES_MAX = 8 * 1024 * 1024
ANSWER_CHARS_MAX = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One question. What many asks share is in `instructions`, which go first: endpoints cache how a prompt begins."""

    model: str
    instructions: str
    input: str
    answer: type[pydantic.BaseModel]
    """The shape of the answer. Each of its fields is required, and it takes no others: see `schema_of`."""
    effort: str = ""
    """How much the model may reason; empty: the endpoint's default, and nothing is sent."""
    tier: str = ""
    """Service tier, which changes price and speed and not the answer; empty: nothing is sent."""
    about: Mapping[str, Any] | None = None
    """Whose records decide the input: the memory, and its rollouts (None: any). Kept with the answer, for erasures."""
    output_tokens_max: int = 16_000
    number: int = 0
    """Raised where a kept answer must not be taken again: after a revert, a redrive, or a guard that refused it."""
    project: str = field(default="", compare=False)
    """For whom it is asked: what goes out at the same time is shared out by it. It decides no answer."""

    def decides(self) -> dict[str, Any]:
        """All that decides the answer, in a form that has one spelling."""
        return {
            "format": ASK_FORMAT,
            "model": self.model,
            "effort": self.effort,
            "prompt": hashlib.sha256(self.instructions.encode("utf-8", "surrogatepass")).hexdigest(),
            "input": hashlib.sha256(self.input.encode("utf-8", "surrogatepass")).hexdigest(),
            "schema": schema_of(self.answer),
            "output_tokens_max": self.output_tokens_max,
            "number": self.number,
        }

    @property
    def name(self) -> str:
        """The hash of all that decides the answer, in hex."""
        said = json.dumps(self.decides(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(said.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of one call, as the endpoint counts them."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    """Of the input: those that the endpoint had in its prompt cache."""
    reasoning_tokens: int = 0
    """Of the output: those that nobody sees."""

    def as_dict(self) -> dict[str, int]:
        return {
            "input_tokens": self.input_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "reasoning_tokens": self.reasoning_tokens,
        }


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model answered, checked against the shape that was asked for."""

    value: pydantic.BaseModel
    model: str
    """As the endpoint names it: often more exact than what was asked for."""
    usage: Usage | None
    """None where the endpoint does not say."""
    cost_usd: float | None
    """None where it is not known: no usage was told, or the model has no price in the table."""


class Engine(Protocol):
    """What answers asks. Any number at the same time; it bounds by itself how many go out."""

    async def ask(self, ask: Ask) -> Answer:
        """The answer. Raises as the module says."""
        ...

    async def close(self) -> None:
        """Give back what the engine holds."""
        ...


@functools.cache
def schema_of(answer: type[pydantic.BaseModel]) -> dict[str, Any]:
    """The JSON Schema of an answer, as strict structured output wants it. Made once: nobody changes it.

    Raises `errors.Fatal` for a shape with an optional field or room for others: endpoints refuse it, or do not hold
    the model to it.
    """
    schema = answer.model_json_schema()
    for name, one in [(answer.__name__, schema), *schema.get("$defs", {}).items()]:
        if one.get("type") != "object":
            continue
        loose = one.get("additionalProperties") is not False
        if loose or set(one.get("required", ())) != set(one.get("properties", {})):
            raise errors.Fatal(f"the shape {name} has optional fields, or room for others")
    return schema


def read(ask: Ask, said: str, context: Mapping[str, Any]) -> pydantic.BaseModel:
    """The value in what a model said. Raises `errors.BadAnswer`, with `context`."""
    if len(said) > ANSWER_CHARS_MAX:
        raise errors.BadAnswer(f"the answer has more than {ANSWER_CHARS_MAX} characters", **context)
    try:
        return ask.answer.model_validate_json(said)
    except pydantic.ValidationError as exc:
        first = exc.errors(include_input=False, include_context=False, include_url=False)[0]
        # Of the place only what the schema names: a key that is not in it is the model's own word.
        named = {*_names(schema_of(ask.answer))}
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in named)
        raise errors.BadAnswer(
            f"the answer is not of the shape that was asked for: {first['type']}{f' at {where}' if where else ''}",
            **context,
        ) from None


def _names(schema: Mapping[str, Any]) -> list[str]:
    parts = [schema, *schema.get("$defs", {}).values()]
    return [name for part in parts for name in part.get("properties", {})]
