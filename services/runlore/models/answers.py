"""Kept answers: what a model answered lies under the hash of all that decides it, so nobody pays for it twice.

    GET → (none) open the call in the ledger → ask → accept → put if absent → what lies there → settle the call

An answer is put only once code has accepted it, and what is kept is what code made of it, without secrets: a kept
answer is good for ever. (`rescan` alone rewrites one, to hide more.) Who wants another for the same ask raises its
`number` (a revert, a redrive, a guard that refused it). Two workers that ask the same at the same time both pay, and
both go on with the one that landed.

Answers of one project are never found by another: the key begins with the project.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pydantic

from runlore import clock, errors
from runlore.commit import keys, puts
from runlore.events import envelope
from runlore.models import ledger, port
from runlore.store import port as store_port

FORMAT = "runlore.answer/1"

Accept = Callable[[pydantic.BaseModel], Mapping[str, Any]]
"""Makes of an answer what is kept: JSON, without secrets. Raises `errors.NoAnswer` where nothing of it can be used."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """An answer as it is kept."""

    name: str
    result: Mapping[str, Any]
    """What code made of the answer."""
    model: str
    usage: Mapping[str, int] | None
    cost_usd: float | None
    at: str
    is_new: bool = False
    """Whether this call paid for it."""


async def ask(
    store: store_port.ObjectStore, engine: port.Engine, project: str, one: port.Ask, accept: Accept
) -> Kept:
    """The accepted answer to `one`, from the store or else from the engine.

    Raises what the engine raises (`models/port.py`), what `accept` raises, and what the store does.
    """
    known = await read(store, project, one.name)
    if known is not None:
        return known
    async with _answered(engine, one) as answer:
        body = {
            "format": FORMAT,
            "name": one.name,
            "asked": one.decides(),
            "about": dict(one.about) if one.about is not None else None,
            "result": dict(accept(answer.value)),
            "model": answer.model,
            "usage": answer.usage.as_dict() if answer.usage else None,
            "cost_usd": answer.cost_usd,
            "at": clock.now_iso(),
        }
        return await _put(store, keys.answer(project, one.name), envelope.dump(body))


@contextlib.asynccontextmanager
async def _answered(engine: port.Engine, one: port.Ask) -> AsyncIterator[port.Answer]:
    """The engine's answer; where calls are counted, what it took is settled once it is kept."""
    if isinstance(engine, ledger.Metered):
        async with engine.counted(one) as answer:
            yield answer
    else:
        yield await engine.ask(one)


async def read(store: store_port.ObjectStore, project: str, name: str) -> Kept | None:
    """The answer that is kept under `name`, if there is one. Raises `errors.Corrupt`."""
    key = keys.answer(project, name)
    stored = await store.get(key)
    return parse(key, stored.body) if stored is not None else None


def parse(key: str, raw: bytes) -> Kept:
    """The answer in an object's bytes. Raises `errors.Corrupt`."""
    try:
        body = envelope.kept(raw)
        if body["format"] != FORMAT or keys.answer(key.split("/")[0], body["name"]) != key:
            raise ValueError
        if not isinstance(body["result"], dict):
            raise TypeError
        return Kept(
            name=body["name"],
            result=body["result"],
            model=str(body["model"]),
            usage=body["usage"],
            cost_usd=body["cost_usd"],
            at=str(body["at"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise errors.Corrupt(
            f"the answer {key} is not an answer", hint="delete it: the model is then asked again", key=key
        ) from None


def about(raw: bytes) -> dict[str, Any] | None:
    """Whose records decided the answer in an object's bytes; None where it does not say."""
    try:
        found = envelope.kept(raw).get("about")
    except (ValueError, AttributeError):
        return None
    return found if isinstance(found, dict) else None


def rewritten(key: str, raw: bytes, change: Callable[[str], str]) -> bytes:
    """An answer's bytes with its result, as a line of JSON, passed through `change`. Raises `errors.Corrupt`."""
    parse(key, raw)
    body = json.loads(raw)
    return envelope.dump(body | {"result": json.loads(change(json.dumps(body["result"])))})


async def _put(store: store_port.ObjectStore, key: str, raw: bytes) -> Kept:
    async def put() -> Kept:
        try:
            await store.put_if_absent(key, raw)
        except errors.PreconditionFailed:
            stored = await store.get(key)
            if stored is None:
                raise errors.WriteConflict(f"the answer {key} went between two looks", key=key) from None
            # A lost reply's own write, or another worker's: whoever reads it later reads these bytes, and so do we.
            return replace(parse(key, stored.body), is_new=stored.body == raw)
        return replace(parse(key, raw), is_new=True)

    return await puts.again(put, what=f"the answer {key}", key=key)
