"""One field of a mapping: where in a foreign event its value stands, and reading it without trusting the event.

Four ways to say it: a JMESPath expression, a constant, a header (or the key) of the message, or a function
`module:function` that is given the event. Whatever the event holds, reading a field gives plain JSON or raises
`errors.BadField`; only a function may also say that a fault will pass (`errors.Retryable`, `errors.Blocked`, OSError).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import importlib
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runlore import errors
from runlore.events import records

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", re.ASCII)
SAID_CHARS_MAX = 120
"""How much of a library's own message is repeated."""


@dataclass(frozen=True)
class Given:
    """One message of a foreign topic, as it came."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    time: float = 0.0
    """When the bus took it, in seconds since 1970; 0 or less where it does not say."""

    @property
    def place(self) -> str:
        """Where it stands: the event's id, where it has none of its own."""
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass(frozen=True)
class Scope:
    """What a field is read from: the message and its decoded value."""

    given: Given
    document: Any


@dataclass(frozen=True)
class Field:
    """One field: its name in the mapping file, what the file says, and how to read it."""

    name: str
    source: str
    """As the mapping says it, for a person: `chat.id`."""
    read: Callable[[Scope], Any]
    default: Any = None
    chains: tuple[tuple[str, ...], ...] | None = ()
    """The paths into the event that an expression follows; None where nobody can tell (a function)."""
    is_fixed: bool = False

    def value(self, scope: Scope) -> Any:
        """The value, as plain JSON; the default, else None, where there is none. Raises `errors.BadField`."""
        found = self.read(scope)
        return self.default if found is None else found


def of(name: str, given: Any) -> Field:
    """The field that a mapping file states. Raises `errors.BadMapping`."""
    if isinstance(given, bool | int | float):
        return constant(name, given)
    if isinstance(given, str):
        return _expression(name, given)
    if not isinstance(given, dict):
        raise errors.BadMapping(f"{name} is neither an expression nor a table")
    known = {"at", "value", "header", "key", "default"}
    if wrong := set(given) - known:
        raise errors.BadMapping(
            f"{name} has no {sorted(wrong)[0]!r}", hint=f"it may have {', '.join(sorted(known))}"
        )
    ways = [way for way in ("at", "value", "header", "key") if way in given]
    if len(ways) != 1:
        raise errors.BadMapping(f"{name} needs exactly one of `at`, `value`, `header` and `key`")
    made = _way(name, ways[0], given[ways[0]])
    return dataclasses.replace(made, default=given.get("default"))


def _way(name: str, way: str, said: Any) -> Field:
    if way == "value":
        return constant(name, said)
    if way == "key":
        return Field(name, "the message's key", lambda scope: _text(scope.given.key, name))
    if not isinstance(said, str):
        raise errors.BadMapping(f"{name}.{way} is not a text")
    if way == "at":
        return _expression(name, said)
    return Field(name, f"header {said}", lambda scope: _header(scope.given, said, name))


def constant(name: str, value: Any) -> Field:
    """A field that is the same for every event."""
    said = plain(value, name)
    return Field(name, "as the mapping says", lambda scope: said, is_fixed=True)


def _expression(name: str, said: str) -> Field:
    if _FUNCTION.fullmatch(said):
        called = function(name, said)
        read = lambda scope: plain(call(said, called, scope.document), name)  # noqa: E731
        return Field(name, said, read, chains=None)
    search, chains = path(name, said)
    return Field(name, said.strip(), lambda scope: search(scope.document), chains=chains)


def path(name: str, said: str) -> tuple[Callable[[Any], Any], tuple[tuple[str, ...], ...]]:
    """A JMESPath expression: (what reads it, which paths it follows). Raises `errors.BadMapping`."""
    try:
        import jmespath
    except ImportError:
        raise errors.BadMapping(
            "mappings need the package jmespath", hint="pip install 'runlore[server]'"
        ) from None
    try:
        compiled = jmespath.compile(said)
    except (ValueError, RecursionError) as exc:
        hint = None
        if re.fullmatch(r"[\w.-]+", said) and "-" in said:
            quoted = ".".join(f'"{part}"' if "-" in part else part for part in said.split("."))
            hint = f"a name with '-' stands in double quotes: '{quoted}'"
        raise errors.BadMapping(
            f"{name}: {said!r} is no JMESPath expression: {_said(exc)}", hint=hint
        ) from None

    if _gives_expressions(compiled.parsed):
        raise errors.BadMapping(f"{name}: {said!r} gives an expression (&…), not a value")

    def search(document: Any) -> Any:
        try:
            return compiled.search(document)
        except Exception as exc:
            # The library raises what its functions raise: an expression must never end a source.
            raise errors.BadField(f"{name}: {said} can not be evaluated: {_kind(exc)}") from None

    return search, tuple(_chains(compiled.parsed))


def _gives_expressions(node: Any) -> bool:
    """Whether `&…` stands anywhere but where a function takes it."""
    if node.get("type") == "expref":
        return True
    below = [child for child in node.get("children", []) if isinstance(child, dict)]
    if node.get("type") == "function_expression":
        below = [
            inner
            for child in below
            for inner in (child["children"] if child["type"] == "expref" else [child])
        ]
    return any(_gives_expressions(child) for child in below)


def _chains(node: Any) -> list[tuple[str, ...]]:
    """The names that a parsed expression follows from the root, as far as that can be told from it."""
    kind = node.get("type")
    if kind == "field":
        return [(node["value"],)]
    if kind in ("current", "identity"):
        return [()]
    if kind == "literal":
        return []
    found = [_chains(child) for child in node.get("children", []) if isinstance(child, dict)]
    if kind == "subexpression":
        return [first + rest for first in found[0] for rest in found[1] or [()]]
    if kind in ("index_expression", "projection", "value_projection", "filter_projection", "pipe", "flatten"):
        # The first part leads from the root; what follows goes on from there.
        return found[0]
    return [chain for chains in found for chain in chains]


def function(name: str, said: str) -> Callable[..., Any]:
    """The function `module:function`. Raises `errors.BadMapping`."""
    module, _, attribute = said.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as exc:
        raise errors.BadMapping(
            f"{name}: {said!r} can not be loaded: {_kind(exc)}: {_said(exc)}",
            hint="the module must be importable, or lie beside the mapping file",
        ) from None
    if not callable(found):
        raise errors.BadMapping(f"{name}: {said!r} is not a function")
    return found


def importable_from(folder: Path) -> None:
    """Let functions be imported from the mapping's own folder; after everything that is installed."""
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.append(place)


def call(said: str, called: Callable[..., Any], *args: Any) -> Any:
    """`called(*args)`: a fault that may pass is told apart from an event that it can not read.

    Raises `errors.Retryable` or `errors.Blocked` as the function does, `errors.SourceUnavailable` for an OSError
    (a registry that does not answer), and `errors.BadField` for everything else.
    """
    try:
        return called(*args)
    except (errors.Retryable, errors.Blocked, errors.Poison):
        raise
    except OSError as exc:
        raise errors.SourceUnavailable(f"{said} can not reach what it needs: {_kind(exc)}") from exc
    except Exception as exc:
        # Not its message: it may repeat what users said.
        raise errors.BadField(f"{said} raised {_kind(exc)}") from exc


def plain(value: Any, name: str) -> Any:
    """`value` as JSON holds it. Raises `errors.BadField`.

    What decoders of other formats give (times, decimals, bytes that are text, tuples) is translated; a number
    that JSON can not hold is none.
    """
    if records.is_too_deep(value):
        raise errors.BadField(f"{name} is nested more than {records.DEPTH_MAX} deep")
    return _plain(value, name)


def _plain(value: Any, name: str) -> Any:
    if value is None or isinstance(value, str | bool | int):
        # Not a subclass (an enum, a library's own text): what is dumped must not depend on it.
        return value if value is None or type(value) in (str, bool, int) else _base(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_name(key, name): _plain(one, name) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, name) for one in value]
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value) if value.is_finite() else None
    if isinstance(value, bytes):
        return _text(value, name)
    if type(value).__module__ == "uuid":
        return str(value)
    raise errors.BadField(f"{name} is of the type {type(value).__name__}, which JSON can not hold")


def _base(value: Any) -> str | int:
    return str.__str__(value) if isinstance(value, str) else int(value)


def _name(key: Any, name: str) -> str:
    if isinstance(key, str):
        return str.__str__(key)
    raise errors.BadField(f"{name} holds an object with a name that is no text")


def _text(raw: bytes | None, name: str) -> str | None:
    if raw is None:
        return None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise errors.BadField(f"{name} holds bytes that are no UTF-8 text") from None


def _header(given: Given, wanted: str, name: str) -> str | None:
    found = [raw for header, raw in given.headers if header.lower() == wanted.lower()]
    return _text(found[-1], name) if found else None


def _kind(exc: BaseException) -> str:
    return type(exc).__name__


def _said(exc: BaseException) -> str:
    first = next(iter(str(exc).strip().splitlines()), "")
    return first[:SAID_CHARS_MAX]
