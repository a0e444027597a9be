"""Rate limits: what a request takes of its project's and of its key's, and the headers that say how they stand.

    key → its limits, as the organization has them → an allotment (`upkeep/allotments.py`) → let through, or 429

Without keys nobody is limited. The headers are those that OpenAI's API sends, and the same for bytes.
"""

from __future__ import annotations

from typing import Any

from fastapi import Request

from runlore import errors, telemetry
from runlore.upkeep import allotments

PUBLISH, READ, SEED = "publish", "read", "seed"
HEADER = "x-ratelimit"


async def count_request(request: Request, thing: str) -> None:
    """Count a request for `thing`, and the bytes of its body as far as it says them. Raises `errors.RateLimited`."""
    units = {"requests": 1}
    if thing == PUBLISH and (size := told_bytes(request)) is not None:
        units["bytes"] = size
    await _count(request, thing, units)


async def count_bytes(request: Request, size: int) -> None:
    """Count bytes that are handed in. Raises `errors.RateLimited`."""
    await _count(request, PUBLISH, {"bytes": size})


def told_bytes(request: Request) -> int | None:
    """How long the body is by the request's own word, which the server holds it to."""
    told = request.headers.get("content-length", "")
    return int(told) if told.isascii() and told.isdigit() and len(told) < 20 else None


async def _count(request: Request, thing: str, units: dict[str, int]) -> None:
    key = getattr(request.state, "key", None)
    if key is None:
        return
    state = request.app.state
    found = [
        allotments.Want(
            key.project,
            thing,
            limits=limits,
            units={unit: count for unit, count in units.items() if unit in limits},
            key=whose,
        )
        for whose, limits in await state.keyring.limits(key, thing)
    ]
    wants = [one for one in found if one.units]
    if not wants:
        return
    try:
        await state.allotments.spend(wants)
    except errors.RateLimited as exc:
        labels: dict[str, Any] = {name: exc.context[name] for name in telemetry.HTTP_LIMITED.labels}
        telemetry.HTTP_LIMITED.inc(**labels)
        raise
    finally:
        request.state.headers = headers(state.allotments.standing(wants))


def headers(standing: dict[str, allotments.Standing]) -> list[tuple[bytes, bytes]]:
    """How the limits stand, as OpenAI's API tells it."""
    return [
        (f"{HEADER}-{name}-{unit}".encode(), told.encode())
        for unit, one in standing.items()
        for name, told in (
            ("limit", str(one.limit)),
            ("remaining", str(one.remaining)),
            ("reset", f"{one.reset_seconds}s"),
        )
    ]
